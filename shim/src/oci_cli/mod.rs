//! The commands of `gantry-oci`.

mod args;
mod console;
mod create;
mod error;
mod exec;
mod features;
mod lifecycle;
mod log;
mod show;
mod store;
mod update;

use std::io::Write as _;
use std::process::ExitCode;

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
    update::UPDATE,
    show::SPEC,
    features::FEATURES,
];

pub(crate) fn main() -> ExitCode {
    let mut global = Global::default();
    let words = std::env::args_os().skip(1).map(|word| word.into_string());
    let outcome = words
        .collect::<core::result::Result<Vec<String>, _>>()
        .map_err(|word| Error::Usage(format!("argument {word:?} is not UTF-8")))
        .and_then(|words| global.parse(words))
        .and_then(|rest| run(&global, rest));
    match outcome {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            log::error(&global, &model::render(&error));
            ExitCode::from(error.exit_code())
        }
    }
}

fn run(global: &Global, mut rest: Vec<String>) -> Result {
    if global.version {
        let version = env!("CARGO_PKG_VERSION");
        let (spec, build) = (oci::RUNTIME_SPEC_VERSION, model::BUILD);
        return print(&format!("gantry-oci version {version}\nspec: {spec}\nbuild: {build}\n"));
    }
    if rest.is_empty() || global.help || rest.first().is_some_and(|word| word == "help") {
        return print(&help());
    }
    let name = rest.remove(0);
    let Some(command) = COMMANDS.iter().find(|command| command.name == name) else {
        return Err(Error::Usage(format!("no such command: {name} (gantry-oci --help lists those there are)")));
    };
    let words = Words::parse(rest, command.flags, command.rest_is_command)?;
    if words.has("help") { print(&command.help()) } else { (command.run)(global, words) }
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
        let mut text =
            format!("gantry-oci {} - {}\n\nUsage: gantry-oci {}\n\nOptions:\n", self.name, self.about, self.usage);
        for flag in self.flags {
            text.push_str(&flag.help());
        }
        text
    }
}

fn help() -> String {
    let mut text = String::from(
        "gantry-oci - runs containers by the OCI runtime specification\n\n\
         Usage: gantry-oci [global options] command [options] [arguments]\n\nCommands:\n",
    );
    for command in COMMANDS {
        text.push_str(&format!("  {:<10} {}\n", command.name, command.about));
    }
    text.push_str("\nGlobal options:\n");
    for flag in args::GLOBAL {
        text.push_str(&flag.help());
    }
    text.push_str("  --version, -v            print the version\n");
    text
}
