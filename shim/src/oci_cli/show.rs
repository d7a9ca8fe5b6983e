//! `state`, `list`, `ps` and `spec`.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use runtime::Status;
use serde_json::{Value, json};

use super::args::{Global, Words, option, switch};
use super::store::Entry;
use super::{Command, Error, Result, print};

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

fn pretty(value: &Value) -> String {
    // A Value always has a text.
    serde_json::to_string_pretty(value).unwrap_or_default() + "\n"
}

/// The state document (runtime-spec, runtime, "State") with runc's additions.
fn describe(entry: &Entry) -> core::result::Result<Value, Error> {
    let (container, saved) = entry.open()?;
    let spec = entry.spec()?;
    let status = container.status();
    let pid = if status == Status::Stopped { 0 } else { saved.state.init.pid };
    let root = spec.root().as_ref().map(|root| saved.state.bundle.join(root.path())).unwrap_or_default();
    Ok(json!({
        "ociVersion": spec.version(),
        "id": saved.state.id,
        "pid": pid,
        "status": status.as_str(),
        "bundle": saved.state.bundle,
        "rootfs": root,
        "created": saved.created,
        "annotations": spec.annotations().clone().unwrap_or_default(),
        "owner": if saved.owner == 0 { "root".to_owned() } else { format!("#{}", saved.owner) },
    }))
}

fn format(words: &Words) -> core::result::Result<bool, Error> {
    match words.value("format").unwrap_or("table") {
        "json" => Ok(true),
        "table" => Ok(false),
        other => Err(Error::Usage(format!("invalid format option: {other}"))),
    }
}

fn list(global: &Global, words: Words) -> Result {
    let as_json = format(&words)?;
    // One that is just being made or removed is left out.
    let states: Vec<Value> = Entry::all(global)?.iter().filter_map(|entry| describe(entry).ok()).collect();
    let text = |state: &Value, key: &str| state[key].as_str().map_or_else(|| state[key].to_string(), str::to_owned);
    if words.has("quiet") {
        let ids: Vec<String> = states.iter().map(|state| text(state, "id") + "\n").collect();
        return print(&ids.concat());
    }
    if as_json {
        return print(&(json!(states).to_string() + "\n"));
    }
    const COLUMNS: [&str; 6] = ["id", "pid", "status", "bundle", "created", "owner"];
    let mut rows = vec![COLUMNS.map(|name| name.to_uppercase())];
    rows.extend(states.iter().map(|state| COLUMNS.map(|key| text(state, key))));
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0).max(11);
    let widths: Vec<usize> = (0..COLUMNS.len()).map(width).collect();
    let mut table = String::new();
    for row in &rows {
        for (cell, width) in row.iter().zip(&widths) {
            table.push_str(&format!("{cell:<width$} "));
        }
        table.truncate(table.trim_end().len());
        table.push('\n');
    }
    print(&table)
}

fn ps(global: &Global, words: Words) -> Result {
    let Some((id, rest)) = words.plain.split_first() else {
        return Err(Error::Usage("a container id is needed".to_owned()));
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
    let path = Path::new(words.value("bundle").unwrap_or(".")).join("config.json");
    let failed = |source: std::io::Error| Error::io(format!("writing {}", path.display()), source);
    let refused = |source| Error::Document { document: "template".to_owned(), source };
    let template = oci::default_spec().map_err(refused)?;
    let mut value = serde_json::to_value(&template).map_err(|source| failed(source.into()))?;
    if words.has("rootless") {
        rootless(&mut value);
    }
    use std::io::Write as _;
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).open(&path).map_err(|error| {
        if error.kind() == std::io::ErrorKind::AlreadyExists {
            return Error::State(format!("file {} exists. Remove it first", path.display()));
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

/// The present time, RFC 3339 in UTC with nanoseconds.
pub(crate) fn now() -> String {
    rfc3339(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
}

fn rfc3339(since_epoch: Duration) -> String {
    let seconds = since_epoch.as_secs();
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Days to a date of the Gregorian calendar, counted in eras of 400 years that begin on a 1 March.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (rest / 3600, rest % 3600 / 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:09}Z", since_epoch.subsec_nanos())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        for (seconds, want) in [
            (0, "1970-01-01T00:00:00.000000000Z"),
            (951_782_399, "2000-02-28T23:59:59.000000000Z"),
            (951_782_400, "2000-02-29T00:00:00.000000000Z"),
            (1_795_000_000, "2026-11-18T11:06:40.000000000Z"),
        ] {
            assert_eq!(rfc3339(Duration::from_secs(seconds)), want);
        }
    }

    #[test]
    fn the_rootless_template_is_valid() {
        let mut value = serde_json::to_value(oci::default_spec().unwrap()).unwrap();
        rootless(&mut value);
        oci::parse_spec(value.to_string().as_bytes()).unwrap();
    }
}
