//! The command line, in the dialect of Go's `flag` package that daemons speak: one dash or two, `-name value` or
//! `-name=value`, and flags end where the first word without a dash stands.

use crate::error::Error;

/// What to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Command {
    /// Start a shim, or find the running one of the same group, and print its address (protocol of foreign daemons).
    Start,
    /// Clean up after a shim that died, and print how its task ended.
    Delete,
    /// Be the shim: serve on the listening socket that is descriptor 3.
    Serve,
    /// Print what the runtime can do.
    Info,
    /// Print the version.
    Version,
    /// Print how this program is used.
    #[default]
    Help,
}

/// The command line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Arguments {
    pub(crate) command: Command,
    pub(crate) namespace: String,
    pub(crate) id: String,
    /// The daemon's gRPC socket.
    pub(crate) address: String,
    /// Where events go: the daemon's ttrpc socket. Empty under gantryd, which makes the events itself.
    pub(crate) ttrpc_address: String,
    /// The bundle; only daemons that call `delete` name it, otherwise it is the working directory.
    pub(crate) bundle: String,
    pub(crate) debug: bool,
}

impl Arguments {
    /// Reads the words after the program's name.
    pub(crate) fn parse(words: impl IntoIterator<Item = String>) -> Result<Self, Error> {
        let mut arguments = Self::default();
        let mut words = words.into_iter();
        while let Some(word) = words.next() {
            let Some(flag) = word.strip_prefix("--").or_else(|| word.strip_prefix('-')).filter(|flag| !flag.is_empty())
            else {
                arguments.command = subcommand(&word)?;
                break;
            };
            let (name, inline) = match flag.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (flag, None),
            };
            let mut value = || {
                inline
                    .clone()
                    .or_else(|| words.next())
                    .ok_or_else(|| Error::Usage(format!("flag -{name} needs a value")))
            };
            match name {
                "namespace" => arguments.namespace = value()?,
                "id" => arguments.id = value()?,
                "address" => arguments.address = value()?,
                "ttrpc-address" => arguments.ttrpc_address = value()?,
                "bundle" => arguments.bundle = value()?,
                // Understood because every daemon passes it; events go over ttrpc, so the program it names is not used.
                "publish-binary" | "socket" => drop(value()?),
                "debug" => arguments.debug = switch(name, inline.as_deref())?,
                "v" | "version" => return Ok(Self { command: Command::Version, ..arguments }),
                "info" => return Ok(Self { command: Command::Info, ..arguments }),
                "h" | "help" => return Ok(Self { command: Command::Help, ..arguments }),
                _ => return Err(Error::Usage(format!("flag provided but not defined: -{name}"))),
            }
        }
        arguments.check()
    }

    fn check(self) -> Result<Self, Error> {
        if matches!(self.command, Command::Start | Command::Delete | Command::Serve) {
            model::check_identifier(&self.namespace)
                .map_err(|source| Error::Identifier { what: "namespace", source })?;
            model::check_identifier(&self.id).map_err(|source| Error::Identifier { what: "id", source })?;
        }
        Ok(self)
    }
}

fn subcommand(word: &str) -> Result<Command, Error> {
    match word {
        "start" => Ok(Command::Start),
        "delete" => Ok(Command::Delete),
        "serve" => Ok(Command::Serve),
        "help" => Ok(Command::Help),
        _ => Err(Error::Usage(format!("unknown command {word:?}"))),
    }
}

fn switch(name: &str, inline: Option<&str>) -> Result<bool, Error> {
    match inline {
        None | Some("true" | "1") => Ok(true),
        Some("false" | "0") => Ok(false),
        Some(other) => Err(Error::Usage(format!("flag -{name} is on or off, not {other:?}"))),
    }
}

/// What `-h` prints.
pub(crate) const USAGE: &str = "\
containerd-shim-gantry-v2 keeps the processes of one container, or of one pod, for a containerd-compatible daemon.
A daemon runs it; there is no need to run it by hand.

    containerd-shim-gantry-v2 -namespace NS -id ID -address SOCKET [-debug] start    start a shim, print its address
    containerd-shim-gantry-v2 -namespace NS -id ID -bundle DIR delete                clean up after a shim that died
    containerd-shim-gantry-v2 -namespace NS -id ID -address SOCKET serve             be the shim (socket: descriptor 3)
    containerd-shim-gantry-v2 -info                                                  what the runtime can do (protobuf)
    containerd-shim-gantry-v2 -v                                                     version

Use it from a stock client as the runtime io.containerd.gantry.v2, for instance:
    ctr run --rm --runtime io.containerd.gantry.v2 docker.io/library/busybox:latest demo echo hello
";

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Arguments, Error> {
        Arguments::parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn lines_of_real_daemons() {
        let want = Arguments {
            command: Command::Start,
            namespace: "default".to_owned(),
            id: "a".to_owned(),
            address: "/run/c.sock".to_owned(),
            debug: true,
            ..Arguments::default()
        };
        for line in [
            "-namespace default -address /run/c.sock -publish-binary /usr/bin/containerd -id a -debug start",
            "--namespace=default --address=/run/c.sock --publish-binary= --id=a --debug=true start",
            "-debug -namespace default -id a -address /run/c.sock start -ignored",
        ] {
            assert_eq!(parse(line).unwrap(), want, "{line}");
        }
        let delete = parse("-namespace n -id a -bundle /b delete").unwrap();
        assert_eq!((delete.command, delete.bundle.as_str()), (Command::Delete, "/b"));
        assert_eq!(parse("-info").unwrap().command, Command::Info);
        assert_eq!(parse("-v").unwrap().command, Command::Version);
        assert_eq!(parse("").unwrap().command, Command::Help);
    }

    #[test]
    fn refusals_say_what_is_wrong() {
        for (line, text) in [
            ("-nope start", "not defined: -nope"),
            ("-id", "needs a value"),
            ("-namespace n -id a explode", "unknown command"),
            ("-namespace n -id ../x start", "must match"),
            ("-id a start", "must not be empty"),
            ("-debug=perhaps start", "on or off"),
        ] {
            let error = model::render(&parse(line).unwrap_err());
            assert!(error.contains(text), "{line}: {error}");
        }
    }
}
