//! The commands of `gantry-oci`.

mod args;
mod checkpoint;
mod console;
mod create;
mod error;
mod events;
mod exec;
mod features;
mod libcontainer;
mod lifecycle;
mod log;
mod notify;
mod show;
mod stats;
mod store;
mod update;

use std::io::Write as _;
use std::path::{Path, PathBuf};

use args::{Global, Words};
pub(crate) use error::Error;

/// What every command gives: an exit code.
type Result = core::result::Result<u8, Error>;

/// A command by its name.
struct Command {
    name: &'static str,
    about: &'static str,
    usage: &'static str,
    flags: &'static [args::Flag],
    /// Whether everything behind the first plain word belongs to the container's command line.
    rest_is_command: bool,
    run: fn(&Global, Words) -> Result,
}

/// The name by which this program was called: it stands in messages and in the help, as engines that call it `runc`
/// expect.
pub(crate) fn name() -> String {
    let called = std::env::args_os().next().map(PathBuf::from);
    let base = called.as_deref().and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
    base.unwrap_or_else(|| "gantry-oci".to_owned())
}

const COMMANDS: &[Command] = &[
    create::CREATE,
    create::START,
    create::RUN,
    exec::EXEC,
    lifecycle::KILL,
    lifecycle::DELETE,
    lifecycle::PAUSE,
    lifecycle::RESUME,
    show::STATE,
    show::LIST,
    show::PS,
    events::EVENTS,
    update::UPDATE,
    checkpoint::CHECKPOINT,
    checkpoint::RESTORE,
    show::SPEC,
    features::FEATURES,
];

pub(crate) fn main() -> u8 {
    let mut global = Global::default();
    let words = std::env::args_os().skip(1).map(|word| word.into_string());
    let outcome = words
        .collect::<core::result::Result<Vec<String>, _>>()
        .map_err(|word| Error::Usage(format!("argument {word:?} is not UTF-8")))
        .and_then(|words| global.parse(words))
        .and_then(|rest| run(&global, rest));
    match outcome {
        Ok(code) => code,
        Err(error) => {
            let text = model::render(&error);
            if error.is_bare() {
                log::plain(&text)
            } else {
                log::error(&global, &text)
            }
            error.exit_code()
        }
    }
}

fn run(global: &Global, mut rest: Vec<String>) -> Result {
    if global.version {
        let version = env!("CARGO_PKG_VERSION");
        let (spec, build) = (oci::RUNTIME_SPEC_VERSION, model::BUILD);
        return print(&format!("{} version {version}\ncommit: {build}\nspec: {spec}\n", name()));
    }
    if rest.is_empty() || global.help || rest.first().is_some_and(|word| word == "help") {
        return print(&help());
    }
    let name = rest.remove(0);
    let Some(command) = COMMANDS.iter().find(|command| command.name == name) else {
        return Err(Error::Usage(format!("No help topic for '{name}'")));
    };
    let words = Words::parse(command.name, rest, command.flags, command.rest_is_command)?;
    if words.has("help") {
        return print(&command.help());
    }
    log::debug(global, || format!("{} {}, state below {}", self::name(), command.name, global.root.display()));
    (command.run)(global, words).map_err(|error| error.of(command.name))
}

/// Writes to standard output.
fn print(text: &str) -> Result {
    std::io::stdout()
        .write_all(text.as_bytes())
        .map_err(|source| Error::Io { operation: "writing to standard output".to_owned(), source })?;
    Ok(0)
}

impl Command {
    fn help(&self) -> String {
        let (name, program) = (self.name, name());
        let mut text = format!("NAME:\n   {program} {name} - {}\n\nUSAGE:\n   {program} {}\n", self.about, self.usage);
        if !self.flags.is_empty() {
            text.push_str("\nOPTIONS:\n");
        }
        for flag in self.flags {
            text.push_str(&flag.help());
        }
        text
    }
}

fn help() -> String {
    let program = name();
    let mut text = format!(
        "NAME:\n   {program} - Open Container Initiative runtime\n\n\
         USAGE:\n   {program} [global options] command [options] [arguments]\n\nCOMMANDS:\n"
    );
    for command in COMMANDS {
        text.push_str(&format!("   {:<10} {}\n", command.name, command.about));
    }
    text.push_str("\nGLOBAL OPTIONS:\n");
    for flag in args::GLOBAL {
        text.push_str(&flag.help());
    }
    text.push_str("   --version, -v                    print the version\n");
    text
}
