//! `exec`.

use std::path::Path;

use oci::Process;
use runtime::{ExecOptions, wait};
use serde_json::{Value, json};

use super::args::{Global, Words, option, switch};
use super::console::{self, Terminal};
use super::store::Entry;
use super::{Command, Error, Result, create, log};

pub(crate) const EXEC: Command = Command {
    name: "exec",
    about: "run another process in a container",
    usage: "exec [options] CONTAINER COMMAND [ARGUMENT...], or exec --process FILE CONTAINER",
    flags: &[
        option("process", "p", "file with the process document"),
        option("console-socket", "", "unix socket that gets the master of the terminal"),
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
        switch("ignore-paused", "", "accepted; a paused container is refused all the same"),
    ],
    rest_is_command: true,
    run: exec,
};

fn exec(global: &Global, words: Words) -> Result {
    let Some((id, command)) = words.plain.split_first() else {
        return Err(Error::Usage("a container id is needed".to_owned()));
    };
    // Behind the id, engines put options of a process document: nothing is left over then.
    let entry = Entry::find(global, id)?;
    let (container, _) = entry.open()?;
    let process = document(&entry, &words, command)?;
    let terminal = process.terminal().unwrap_or(false);
    let detach = words.has("detach");
    let socket = console::socket_for(terminal, words.value("console-socket"), detach)?;
    let options = ExecOptions {
        preserve_fds: words.number("preserve-fds")?.unwrap_or(0) + console::listen_fds(),
        no_new_keyring: false,
    };
    let watch = if detach { None } else { Some(console::watch_signals()?) };
    let started =
        container.exec(&process, console::plain_io(terminal)?, &options).and_then(|mut execing| wait(&mut execing));
    let mut started = started.map_err(Error::Exec)?;
    log::warnings(global, &started.warnings);
    if let Some(path) = words.value("pid-file") {
        create::write_pid_file(Path::new(path), started.identity.pid)?;
    }
    let own = match (socket, started.console.take()) {
        (Some(socket), Some(master)) => {
            console::send(&socket, master)?;
            None
        }
        (None, Some(master)) => Some(Terminal::new(master)?),
        _ => None,
    };
    let Some(signals) = watch else { return Ok(0) };
    let pidfd = &started.pidfd;
    let status = console::follow(std::os::fd::AsFd::as_fd(pidfd), signals, own, |signal| {
        let _ = sys::process::pidfd_send_signal(pidfd, signal);
    })?;
    Ok(u8::try_from(status).unwrap_or(255))
}

/// The process document: a file, or that of the container with what the options change.
fn document(entry: &Entry, words: &Words, command: &[String]) -> core::result::Result<Process, Error> {
    let refused = |source| Error::Document { document: "process document".to_owned(), source };
    if let Some(path) = words.value("process") {
        let bytes = super::store::read_document(Path::new(path))?;
        return oci::parse_process(&bytes).map_err(refused);
    }
    if command.is_empty() {
        return Err(Error::Usage("process args cannot be empty".to_owned()));
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
        value["user"]["additionalGids"] = json!(groups);
    }
    for set in ["bounding", "effective", "permitted"] {
        let names: Vec<&str> = words.values("cap").collect();
        if !names.is_empty() {
            value["capabilities"][set] = added(&value["capabilities"][set], names);
        }
    }
    if words.has("no-new-privs") {
        value["noNewPrivileges"] = json!(true);
    }
    for (option, field) in [("process-label", "selinuxLabel"), ("apparmor", "apparmorProfile")] {
        if let Some(label) = words.value(option) {
            value[field] = json!(label);
        }
    }
    oci::parse_process(value.to_string().as_bytes()).map_err(refused)
}

/// Digits only: no sign, no blanks, no name (CVE-2026-30892).
fn id(text: &str) -> core::result::Result<u32, Error> {
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
