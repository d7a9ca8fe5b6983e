//! `state`, `list`, `ps` and `spec`.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use runtime::Status;
use serde::Serialize;
use serde_json::{Value, json};
use sys::undefended::{Defence, left_out};

use super::args::{Global, Words, option, switch};
use super::store::Entry;
use super::{Command, Error, Result, log, print};

pub(crate) const STATE: Command = Command {
    name: "state",
    about: "print the state of a container as JSON",
    usage: "state CONTAINER",
    flags: &[],
    rest_is_command: false,
    run: |global, words| {
        let state = describe(&Entry::find(global, words.id()?)?)?;
        print(&pretty(&state))
    },
};

pub(crate) const LIST: Command = Command {
    name: "list",
    about: "list the containers below the root",
    usage: "list [options]",
    flags: &[option("format", "f", "table (default) or json"), switch("quiet", "q", "ids only")],
    rest_is_command: false,
    run: list,
};

pub(crate) const PS: Command = Command {
    name: "ps",
    about: "list the processes of a container",
    usage: "ps [options] CONTAINER [ps options]",
    flags: &[option("format", "f", "table (default) or json")],
    rest_is_command: true,
    run: ps,
};

pub(crate) const SPEC: Command = Command {
    name: "spec",
    about: "write a template of config.json",
    usage: "spec [options]",
    flags: &[
        option("bundle", "b", "directory of the bundle (default: the current one)"),
        switch("rootless", "", "for a caller that is not root"),
    ],
    rest_is_command: false,
    run: spec,
};

fn pretty(value: &impl Serialize) -> String {
    // What is given here always has a text.
    serde_json::to_string_pretty(value).unwrap_or_default() + "\n"
}

/// The state document (runtime-spec, runtime, "State") with runc's additions, in runc's order.
#[derive(Debug, Serialize)]
struct Described {
    #[serde(rename = "ociVersion")]
    version: String,
    id: String,
    pid: u32,
    status: Status,
    bundle: PathBuf,
    rootfs: PathBuf,
    created: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
    owner: String,
}

/// Who a container belongs to, by the directory of its state: a name where the host has one.
fn owner(entry: &Entry) -> String {
    let Ok(found) = std::fs::metadata(&entry.path) else { return String::new() };
    let uid = found.uid().to_string();
    let table = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let name = table.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == uid).then(|| name.to_owned())
    });
    name.unwrap_or_else(|| format!("#{uid}"))
}

fn describe(entry: &Entry) -> core::result::Result<Described, Error> {
    let (container, saved) = entry.open()?;
    let spec = entry.spec()?;
    let status = container.status();
    let pid = if status == Status::Stopped { 0 } else { saved.state.init.pid };
    let root = spec.root().as_ref().map(|root| saved.state.bundle.join(root.path())).unwrap_or_default();
    Ok(Described {
        version: spec.version().clone(),
        id: saved.state.id,
        pid,
        status,
        bundle: saved.state.bundle,
        rootfs: root,
        created: saved.created,
        annotations: spec.annotations().iter().flatten().map(|(key, value)| (key.clone(), value.clone())).collect(),
        owner: owner(entry),
    })
}

fn format(words: &Words) -> core::result::Result<bool, Error> {
    match words.value("format").unwrap_or("table") {
        "json" => Ok(true),
        "table" => Ok(false),
        other => Err(Error::Usage(format!("invalid format option: {other}"))),
    }
}

fn list(global: &Global, words: Words) -> Result {
    words.no_plain()?;
    let as_json = format(&words)?;
    let mut states = Vec::new();
    for entry in Entry::all(global)? {
        match describe(&entry) {
            Ok(state) => states.push(state),
            // Just being made or removed.
            Err(Error::NoContainer) => {}
            Err(error) => log::plain(&format!("load container {}: {}", entry.id, model::render(&error))),
        }
    }
    if words.has("quiet") {
        return print(&states.iter().map(|state| format!("{}\n", state.id)).collect::<String>());
    }
    if as_json {
        let text = serde_json::to_string(&states).map_err(|source| Error::io("writing the list", source))?;
        return print(&(text + "\n"));
    }
    let mut rows = vec![["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"].map(str::to_owned)];
    rows.extend(states.into_iter().map(|state| {
        let (pid, bundle) = (state.pid.to_string(), state.bundle.display().to_string());
        [state.id, pid, state.status.as_str().to_owned(), bundle, state.created, state.owner]
    }));
    print(&table(&rows))
}

/// Columns as wide as their widest cell and three more, 12 at least.
fn table(rows: &[[String; 6]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].len() + 3).max().unwrap_or(0).max(12);
    let widths: [usize; 6] = std::array::from_fn(width);
    let mut table = String::new();
    for row in rows {
        let line: String = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        table.push_str(line.trim_end());
        table.push('\n');
    }
    table
}

fn ps(global: &Global, words: Words) -> Result {
    let Some((id, rest)) = words.plain.split_first() else {
        return Err(words.wrong("a minimum of 1"));
    };
    let (container, _) = Entry::find(global, id)?.open()?;
    let pids = container.pids()?;
    // runc takes its own option behind the id too.
    let as_json = format(&words)?
        || matches!(rest, [flag, value, ..] if matches!(flag.as_str(), "-f" | "--format") && value == "json");
    if as_json {
        return print(&(json!(pids).to_string() + "\n"));
    }
    let options: Vec<String> = if rest.is_empty() { vec!["-ef".to_owned()] } else { rest.to_vec() };
    let output =
        std::process::Command::new("ps").args(options).output().map_err(|source| Error::io("running ps", source))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(Error::State(format!("ps: {}: {said}", output.status)));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let mut lines = text.lines();
    let header = lines.next().unwrap_or_default();
    let column = header
        .split_whitespace()
        .position(|name| name == "PID")
        .ok_or_else(|| Error::Usage("couldn't find PID field in ps output".to_owned()))?;
    let mut shown = format!("{header}\n");
    for line in lines {
        let pid = line.split_whitespace().nth(column).and_then(|pid| pid.parse::<u32>().ok());
        if pid.is_some_and(|pid| pids.contains(&pid)) {
            shown.push_str(line);
            shown.push('\n');
        }
    }
    print(&shown)
}

fn spec(_: &Global, words: Words) -> Result {
    words.no_plain()?;
    let path = Path::new(words.value("bundle").unwrap_or(".")).join("config.json");
    let failed = |source: std::io::Error| Error::io(format!("writing {}", path.display()), source);
    let refused = |source| Error::Document { document: "template".to_owned(), source };
    let template = oci::default_spec().map_err(refused)?;
    let mut value = serde_json::to_value(&template).map_err(|source| failed(source.into()))?;
    if words.has("rootless") {
        rootless(&mut value);
    }
    // As runc: with version 1 the container sees the cgroups of the host.
    if !cgroups::Host::detect().is_ok_and(|host| host.is_v2())
        && let Some(spaces) = value["linux"]["namespaces"].as_array_mut()
    {
        spaces.retain(|space| space["type"] != "cgroup");
    }
    if let (true, Some(masks)) = (left_out(Defence::Masks), value["linux"]["maskedPaths"].as_array_mut()) {
        masks.retain(|path| path != "/sys/devices/virtual/powercap");
    }
    use std::io::Write as _;
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).open(&path).map_err(|error| {
        if error.kind() == std::io::ErrorKind::AlreadyExists {
            return Error::State(format!("File {} exists. Remove it first", path.display()));
        }
        failed(error)
    })?;
    file.write_all(pretty(&value).as_bytes()).map_err(failed)?;
    Ok(0)
}

fn rootless(spec: &mut Value) {
    let map = |id: u32| json!([{"containerID": 0, "hostID": id, "size": 1}]);
    spec["linux"]["uidMappings"] = map(rustix::process::geteuid().as_raw());
    spec["linux"]["gidMappings"] = map(rustix::process::getegid().as_raw());
    if let Some(linux) = spec["linux"].as_object_mut() {
        linux.remove("resources");
    }
    if let Some(spaces) = spec["linux"]["namespaces"].as_array_mut() {
        spaces.retain(|space| space["type"] != "network");
        spaces.push(json!({"type": "user"}));
    }
    for mount in spec["mounts"].as_array_mut().into_iter().flatten() {
        if mount["destination"] == "/sys" {
            *mount = json!({"destination": "/sys", "type": "none", "source": "/sys",
                            "options": ["rbind", "nosuid", "noexec", "nodev", "ro"]});
        }
        if let Some(options) = mount["options"].as_array_mut() {
            options.retain(|option| option != "gid=5");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rootless_template_is_valid() {
        let mut value = serde_json::to_value(oci::default_spec().unwrap()).unwrap();
        rootless(&mut value);
        oci::parse_spec(value.to_string().as_bytes()).unwrap();
    }
}
