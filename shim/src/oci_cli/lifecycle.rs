//! `kill`, `delete`, `pause` and `resume`.

use runtime::{Status, wait};

use super::args::{Global, Words, switch};
use super::store::Entry;
use super::{Command, Error, Result};

pub(crate) const KILL: Command = Command {
    name: "kill",
    about: "send a signal to a container's process",
    usage: "kill [options] CONTAINER [SIGNAL]",
    flags: &[switch("all", "a", "a container that has ended is no error")],
    rest_is_command: false,
    run: kill,
};

pub(crate) const DELETE: Command = Command {
    name: "delete",
    about: "remove what is left of a container",
    usage: "delete [options] CONTAINER",
    flags: &[switch("force", "f", "kill it first; a container that does not exist is no error")],
    rest_is_command: false,
    run: delete,
};

pub(crate) const PAUSE: Command = Command {
    name: "pause",
    about: "freeze all processes of a container",
    usage: "pause CONTAINER",
    flags: &[],
    rest_is_command: false,
    run: |global, words| {
        Entry::find(global, words.id()?)?.open()?.0.pause()?;
        Ok(0)
    },
};

pub(crate) const RESUME: Command = Command {
    name: "resume",
    about: "let frozen processes go on",
    usage: "resume CONTAINER",
    flags: &[],
    rest_is_command: false,
    run: |global, words| {
        Entry::find(global, words.id()?)?.open()?.0.resume()?;
        Ok(0)
    },
};

const KILL_SIGNAL: i32 = 9;

const SIGNALS: [(&str, i32); 31] = [
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("STKFLT", 16),
    ("CHLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("VTALRM", 26),
    ("PROF", 27),
    ("WINCH", 28),
    ("IO", 29),
    ("PWR", 30),
    ("SYS", 31),
];

/// A number, or a name with or without `SIG`.
fn signal(text: &str) -> core::result::Result<i32, Error> {
    let upper = text.to_ascii_uppercase();
    let bare = upper.strip_prefix("SIG").unwrap_or(&upper);
    let named = SIGNALS.iter().find(|(name, _)| *name == bare).map(|(_, number)| *number);
    named
        .or_else(|| text.parse().ok().filter(|number| (0..=64).contains(number)))
        .ok_or_else(|| Error::Usage(format!("unknown signal {text:?}")))
}

fn kill(global: &Global, words: Words) -> Result {
    let (id, name) = match words.plain.as_slice() {
        [id] => (id, "TERM"),
        [id, name] => (id, name.as_str()),
        [] => return Err(words.wrong("a minimum of 1")),
        _ => return Err(words.wrong("a maximum of 2")),
    };
    let number = signal(name)?;
    let (container, _) = Entry::find(global, id)?.open()?;
    let outcome = if number == KILL_SIGNAL && !container.has_own_pids() {
        // The end of init is not the end of the others here.
        let none = container.status() == Status::Stopped && container.pids()?.is_empty();
        if none { Err(runtime::Error::Finished) } else { container.kill_all(number) }
    } else {
        container.kill(number)
    };
    match outcome {
        Err(runtime::Error::Finished) if words.has("all") => Ok(0),
        // runc's words, which engines look for.
        Err(runtime::Error::Finished) => Err(Error::State("container not running".to_owned())),
        other => other.map(|()| 0).map_err(Error::from),
    }
}

fn delete(global: &Global, words: Words) -> Result {
    let force = words.has("force");
    let entry = match Entry::find(global, words.id()?) {
        Err(Error::NoContainer) if force => return Ok(0),
        other => other?,
    };
    let (mut container, _) = match entry.open() {
        // A creation that was interrupted: there is no container, only its directory.
        Err(Error::NoContainer) if force => {
            entry.remove()?;
            return Ok(0);
        }
        other => other?,
    };
    let status = container.status();
    // A created container has run nothing yet and may go.
    if !force && !matches!(status, Status::Stopped | Status::Created) {
        let text = format!("cannot delete container {} that is not stopped: {}", entry.id, status.as_str());
        return Err(Error::State(text));
    }
    wait(&mut container.delete(true)?)?;
    entry.remove()?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::signal;

    #[test]
    fn signals_by_name_and_number() {
        for (text, want) in [("9", 9), ("KILL", 9), ("SIGKILL", 9), ("sigterm", 15), ("34", 34), ("0", 0)] {
            assert_eq!(signal(text).unwrap(), want, "{text}");
        }
        for bad in ["", "65", "NOPE", "-9"] {
            assert!(signal(bad).is_err(), "{bad}");
        }
    }
}
