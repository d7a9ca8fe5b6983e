//! `exec`.

use std::path::Path;

use oci::Process;
use runtime::{ExecOptions, Status, SubCgroup, wait};
use serde_json::{Value, json};
use sys::undefended::{Defence, left_out};

use super::args::{Global, Words, option, switch};
use super::console::{self, Terminal};
use super::create::Links;
use super::store::Entry;
use super::{Command, Error, Result, create, log};

pub(crate) const EXEC: Command = Command {
    name: "exec",
    about: "run another process in a container",
    usage: "exec [options] CONTAINER COMMAND [ARGUMENT...], or exec --process FILE CONTAINER",
    flags: &[
        option("process", "p", "file with the process document"),
        option("console-socket", "", "unix socket that gets the master of the terminal"),
        option("pidfd-socket", "", "unix socket that gets a pidfd of the process"),
        option("cwd", "", "working directory in the container"),
        option("env", "e", "NAME=value; may be repeated"),
        switch("tty", "t", "give the process a terminal"),
        option("user", "u", "UID or UID:GID, numbers only"),
        option("additional-gids", "g", "additional group; may be repeated"),
        switch("detach", "d", "do not wait for its end"),
        option("pid-file", "", "file that gets the pid of the process"),
        switch("no-new-privs", "", "forbid new privileges"),
        option("cap", "c", "capability to add; may be repeated"),
        option("preserve-fds", "", "how many descriptors from 3 on the process keeps"),
        option("process-label", "", "SELinux label: refused where SELinux is missing"),
        option("apparmor", "", "AppArmor profile: refused where AppArmor is missing"),
        option("cgroup", "", "[CONTROLLER[,CONTROLLER...]:]PATH of a group below the container's; may be repeated"),
        switch("ignore-paused", "", "in a paused container too: it runs once that is resumed"),
    ],
    rest_is_command: true,
    run: exec,
};

fn exec(global: &Global, words: Words) -> Result {
    let Some((id, command)) = words.plain.split_first() else {
        return Err(words.wrong("a minimum of 1"));
    };
    let preserve_fds = console::preserved(&words)?;
    let entry = Entry::find(global, id)?;
    let (container, _) = entry.open()?;
    let ignore_paused = words.has("ignore-paused");
    match container.status() {
        Status::Stopped => return Err(Error::State("cannot exec in a stopped container".to_owned())),
        Status::Paused if !ignore_paused => {
            let text = "cannot exec in a paused container (use --ignore-paused to override)";
            return Err(Error::State(text.to_owned()));
        }
        Status::Created | Status::Running | Status::Paused => {}
    }
    let (process, notes) = document(&entry, &words, command)?;
    log::warnings(global, &notes);
    let terminal = process.terminal().unwrap_or(false);
    let detach = words.has("detach");
    let links = Links::new(&words, terminal, detach)?;
    let options = ExecOptions { preserve_fds, no_new_keyring: false, ignore_paused, cgroups: sub_cgroups(&words)? };
    let watch = if detach { None } else { Some(console::watch_signals()?) };
    let started =
        container.exec(&process, console::own_io(terminal), &options).and_then(|mut execing| wait(&mut execing));
    let mut started = started?;
    log::warnings(global, &started.warnings);
    if let Some(path) = words.value("pid-file") {
        create::write_pid_file(Path::new(path), started.identity.pid)?;
    }
    let own = links.hand_over(started.console.take(), std::os::fd::AsFd::as_fd(&started.pidfd))?;
    let own = own.map(Terminal::new).transpose()?;
    let Some(signals) = watch else { return Ok(0) };
    let pidfd = &started.pidfd;
    let status = console::follow(std::os::fd::AsFd::as_fd(pidfd), signals, own, None, |signal| {
        let _ = sys::process::pidfd_send_signal(pidfd, signal);
    })?;
    Ok(u8::try_from(status).unwrap_or(255))
}

/// The groups that `--cgroup` names.
fn sub_cgroups(words: &Words) -> core::result::Result<Vec<SubCgroup>, Error> {
    let mut list: Vec<SubCgroup> = Vec::new();
    let refuse =
        |text: &str, problem: String| Err(Error::Usage(format!("invalid --cgroup argument: {text} ({problem})")));
    for text in words.values("cgroup") {
        let (controllers, path) = text.split_once(':').unwrap_or(("", text));
        for controller in controllers.split(',') {
            if controller.is_empty() && text.contains(':') {
                return refuse(text, "empty <controller> prefix".to_owned());
            }
            if list.iter().any(|sub| sub.controller == controller || sub.controller.is_empty()) {
                return refuse(text, format!("controller {controller} specified multiple times"));
            }
            list.push(SubCgroup { controller: controller.to_owned(), path: path.to_owned() });
        }
    }
    if list.len() > 1 && list.iter().any(|sub| sub.controller.is_empty()) {
        return refuse("", "missing <controller>: prefix".to_owned());
    }
    Ok(list)
}

/// The process document: a file, or that of the container with what the options change.
fn document(entry: &Entry, words: &Words, command: &[String]) -> core::result::Result<(Process, Vec<String>), Error> {
    let refused = |source| Error::Document { document: "process document".to_owned(), source };
    if let Some(path) = words.value("process") {
        let bytes = super::store::read_document(Path::new(path))?;
        return oci::parse_process_noting(&bytes).map_err(refused);
    }
    if command.is_empty() {
        return Err(Error::Usage("exec args cannot be empty".to_owned()));
    }
    let spec = entry.spec()?;
    let process = spec.process().as_ref().ok_or_else(|| Error::Usage("the container has no process".to_owned()))?;
    let mut value = serde_json::to_value(process).map_err(|source| Error::Record { id: entry.id.clone(), source })?;
    value["args"] = json!(command);
    value["terminal"] = json!(words.has("tty"));
    if let Some(cwd) = words.value("cwd") {
        value["cwd"] = json!(cwd);
    }
    let added = |value: &Value, names: Vec<&str>| {
        let mut list = value.as_array().cloned().unwrap_or_default();
        list.extend(names.into_iter().map(|name| json!(name)));
        json!(list)
    };
    value["env"] = added(&value["env"], words.values("env").collect());
    if let Some(user) = words.value("user") {
        let (uid, gid) = numbers(user)?;
        value["user"]["uid"] = json!(uid);
        if let Some(gid) = gid {
            value["user"]["gid"] = json!(gid);
        }
    }
    let groups = words.values("additional-gids").map(id).collect::<core::result::Result<Vec<_>, _>>()?;
    if !groups.is_empty() {
        let mut all = value["user"]["additionalGids"].as_array().cloned().unwrap_or_default();
        all.extend(groups.into_iter().map(|group| json!(group)));
        value["user"]["additionalGids"] = json!(all);
    }
    // The ambient set takes only what may be inherited too.
    let inherits = value["capabilities"]["inheritable"].is_array();
    for set in ["bounding", "effective", "permitted", "ambient"] {
        let names: Vec<&str> = words.values("cap").collect();
        if !names.is_empty() && (set != "ambient" || inherits) {
            value["capabilities"][set] = added(&value["capabilities"][set], names);
        }
    }
    if words.given("no-new-privs") {
        value["noNewPrivileges"] = json!(words.has("no-new-privs"));
    }
    for (option, field) in [("process-label", "selinuxLabel"), ("apparmor", "apparmorProfile")] {
        if let Some(label) = words.value(option) {
            value[field] = json!(label);
        }
    }
    oci::parse_process_noting(value.to_string().as_bytes()).map_err(refused)
}

/// Digits only: no sign, no blanks, no name (CVE-2026-30892).
fn id(text: &str) -> core::result::Result<u32, Error> {
    if left_out(Defence::Ids) {
        // As C's atoi, cut to size.
        let digits: String = text.trim().chars().take_while(char::is_ascii_digit).collect();
        return Ok(digits.parse::<u64>().unwrap_or(0) as u32);
    }
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits
        .then(|| text.parse().ok())
        .flatten()
        .filter(|id| *id != u32::MAX)
        .ok_or_else(|| Error::Usage(format!("{text:?} is no numeric id")))
}

fn numbers(user: &str) -> core::result::Result<(u32, Option<u32>), Error> {
    match user.split_once(':') {
        Some((uid, gid)) => Ok((id(uid)?, Some(id(gid)?))),
        None => Ok((id(user)?, None)),
    }
}

#[cfg(test)]
mod tests {
    use super::numbers;

    #[test]
    fn users_are_numbers() {
        assert_eq!(numbers("0").unwrap(), (0, None));
        assert_eq!(numbers("1000:7").unwrap(), (1000, Some(7)));
        for bad in ["", ":", "1:", ":1", "root", "+0", "-1", " 1", "1:2:3", "4294967295", "4294967296", "0x1"] {
            assert!(numbers(bad).is_err(), "{bad}");
        }
    }
}
