//! The command line: our flags, which are also containerd's, and the `config` commands.

use std::ffi::{OsStr, OsString};
use std::io::Write as _;
use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};

use crate::config::Config;

/// Runs containers for clients of the containerd API.
///
/// Every flag overrides the configuration file. Containers keep running when the daemon stops; the next one takes them
/// over.
#[derive(Clone, Debug, Parser)]
#[command(name = "gantryd", version = model::BUILD, about)]
pub(crate) struct Arguments {
    /// Configuration file (TOML, containerd's versions 1 to 4); a file named here must exist
    #[arg(short, long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,

    /// Directory of what survives a reboot: images, snapshots, records
    #[arg(long, value_name = "DIRECTORY")]
    pub(crate) root: Option<PathBuf>,

    /// Directory of what does not survive a reboot: running tasks, events
    #[arg(long, value_name = "DIRECTORY")]
    pub(crate) state: Option<PathBuf>,

    /// Socket of the API; shims report at the same path with ".ttrpc" behind it
    #[arg(short, long, value_name = "SOCKET")]
    pub(crate) address: Option<String>,

    /// How much to log: trace, debug, info, warn, error, fatal or panic
    #[arg(short, long, value_name = "LEVEL")]
    pub(crate) log_level: Option<String>,

    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

#[derive(Clone, Debug, Subcommand)]
pub(crate) enum Command {
    /// Show the configuration
    Config {
        #[arg(value_enum)]
        action: ConfigAction,
    },
    /// Publish an event: for shims that report by running this program. The event is an `Any` on standard input
    Publish {
        /// Topic of the event, "/tasks/exit" for instance
        #[arg(long)]
        topic: String,
        /// Namespace of the event
        #[arg(long)]
        namespace: String,
    },
    /// Be a hook of a container: execute a program whose arguments are templates ({{pid}}, {{id}}, {{bundle}}, {{rootfs}},
    /// {{status}}, {{annotation "KEY"}}), filled from the container's state on standard input
    OciHook {
        /// The program, an absolute path, and its arguments
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum ConfigAction {
    /// As it is without a file and flags
    Default,
    /// As it is with them
    Dump,
    /// As it is with them, in the version that this program writes
    Migrate,
}

/// containerd's own flag parser takes long flags with one dash as well; so do its users' unit files.
pub(crate) fn with_long_dashes(arguments: impl Iterator<Item = OsString>) -> Vec<OsString> {
    const LONG: [&str; 9] =
        ["config", "root", "state", "address", "log-level", "help", "version", "topic", "namespace"];
    // Behind a lone "--" stands what is none of ours.
    let mut ours = true;
    arguments
        .map(|argument| {
            ours &= argument != "--";
            if !ours {
                return argument;
            }
            let text = argument.to_string_lossy();
            let name = text.strip_prefix('-').map(|rest| rest.split('=').next().unwrap_or(rest));
            if name.is_some_and(|name| LONG.contains(&name)) {
                let mut long = OsString::from("-");
                long.push(OsStr::new(text.as_ref()));
                return long;
            }
            argument
        })
        .collect()
}

/// Prints a configuration as a file that this program reads.
pub(crate) fn print_config(action: ConfigAction, loaded: &Config) -> anyhow::Result<()> {
    let text = match action {
        ConfigAction::Default => Config::defaults().to_toml()?,
        ConfigAction::Dump | ConfigAction::Migrate => loaded.to_toml()?,
    };
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_lines() {
        let parse = |line: &str| {
            let words = line.split_whitespace().map(OsString::from);
            Arguments::try_parse_from(with_long_dashes(words))
        };
        for line in [
            "gantryd --config F --root R --state S --address A --log-level L",
            "containerd -c F --root R --state S -a A -l L",
            "containerd -config F -root R -state S -address A -log-level L",
            "containerd -config=F -root=R -state=S -address=A -log-level=L",
        ] {
            let arguments = parse(line).unwrap();
            assert_eq!(arguments.config, Some("F".into()), "{line}");
            assert_eq!(arguments.root, Some("R".into()), "{line}");
            assert_eq!(arguments.state, Some("S".into()), "{line}");
            assert_eq!(arguments.address.as_deref(), Some("A"), "{line}");
            assert_eq!(arguments.log_level.as_deref(), Some("L"), "{line}");
        }
        assert!(matches!(
            parse("gantryd --config F config dump").unwrap().command,
            Some(Command::Config { action: ConfigAction::Dump })
        ));
        for line in
            ["gantryd -address A publish -topic /t -namespace n", "gantryd -a A publish --topic=/t --namespace=n"]
        {
            let Some(Command::Publish { topic, namespace }) = parse(line).unwrap().command else { panic!("{line}") };
            assert_eq!((topic.as_str(), namespace.as_str()), ("/t", "n"), "{line}");
        }
        let line = "containerd oci-hook -- /bin/ps -config {{pid}} --state";
        let Some(Command::OciHook { command }) = parse(line).unwrap().command else { panic!("{line}") };
        assert_eq!(command, ["/bin/ps", "-config", "{{pid}}", "--state"]);
        for line in ["gantryd oci-hook", "gantryd surplus", "gantryd --unknown", "gantryd config", "gantryd --root"] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
