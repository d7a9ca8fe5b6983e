//! Attacks on the runtime: each is mounted on gantry-oci and on whatever other runtime is given, and a table tells
//! where it bites.
//!
//! ```text
//! attacks [--runtime [LABEL=]PATH]... [--undefended PATH] [--short] [--cgroup2] [--markdown FILE] [FILTER]...
//! ```
//!
//! Without `--runtime` the subject is the gantry-oci of `GANTRY_BIN_DIR`. An attack that bites on a subject called
//! `gantry-oci` fails the program. `--undefended` is a build with the feature of that name: for each attack the one
//! defence is left out that the attack is about, and the attack must bite, which shows that it can.
//!
//! Everything happens in a private mount namespace below a tmpfs; what stands for the host is a directory of sentinels.

mod descriptors;
mod injection;
mod lab;
mod limits;
mod mounts;
mod permissions;
mod procfs;
mod program;
mod race;
mod terminal;
mod users;

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use lab::{Bundle, Lab, Subject, Verdict};

/// The name of our own runtime in the table.
const OURS: &str = "gantry-oci";
/// Set in the copy that runs in a mount namespace of its own.
const INSIDE: &str = "GANTRY_ATTACKS_INSIDE";

/// One attack.
#[derive(Clone, Copy)]
pub(crate) struct Attack {
    /// The class by its root cause, A to M.
    class: char,
    name: &'static str,
    /// Where it was first seen.
    source: &'static str,
    /// The defence that stops it, as the undefended build calls it.
    defence: Option<&'static str>,
    run: fn(&Lab) -> Verdict,
}

pub(crate) const fn attack(
    class: char,
    name: &'static str,
    source: &'static str,
    defence: Option<&'static str>,
    run: fn(&Lab) -> Verdict,
) -> Attack {
    Attack { class, name, source, defence, run }
}

/// The words of the command line.
#[derive(Default)]
struct Settings {
    runtimes: Vec<(String, PathBuf)>,
    undefended: Option<PathBuf>,
    short: bool,
    cgroup2: bool,
    markdown: Option<PathBuf>,
    filter: Vec<String>,
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["payload", "watch", ..] => {
            program::watch(&words[2..]);
            return ExitCode::SUCCESS;
        }
        words if words.contains(&"--list") => return ExitCode::SUCCESS,
        _ => {}
    }
    let settings = match settings(&words) {
        Ok(settings) => settings,
        Err(problem) => {
            eprintln!("attacks: {problem}");
            return ExitCode::FAILURE;
        }
    };
    if let Some(reason) = missing() {
        println!("SKIP attacks: {reason}");
        return ExitCode::SUCCESS;
    }
    if std::env::var_os(INSIDE).is_none() {
        return go_inside(&words, settings.cgroup2);
    }
    mount_all(&settings)
}

fn settings(words: &[String]) -> Result<Settings, String> {
    let mut settings = Settings::default();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let mut value = || words.next().cloned().ok_or(format!("{word} needs a value"));
        match word.as_str() {
            "--runtime" => {
                let value = value()?;
                let (label, path) = match value.split_once('=') {
                    Some((label, path)) => (label.to_owned(), PathBuf::from(path)),
                    None => (value.rsplit('/').next().unwrap_or(&value).to_owned(), PathBuf::from(&value)),
                };
                settings.runtimes.push((label, path));
            }
            "--undefended" => settings.undefended = Some(value()?.into()),
            "--markdown" => settings.markdown = Some(value()?.into()),
            "--short" => settings.short = true,
            "--cgroup2" => settings.cgroup2 = true,
            // Words of the test runner.
            "--show-output" | "--nocapture" | "--quiet" => {}
            word if word.starts_with("--") => return Err(format!("no option {word}")),
            word => settings.filter.push(word.to_owned()),
        }
    }
    if settings.runtimes.is_empty() && settings.undefended.is_none() {
        settings.runtimes.push((OURS.to_owned(), testkit::binary(OURS)));
        // The short form, as every other test.
        settings.short = true;
    }
    Ok(settings)
}

fn missing() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("needs root".to_owned());
    }
    testkit::requires_busybox().err().map(|error| error.to_string())
}

/// Runs this program again in a mount namespace of its own, with a fresh tmpfs for everything.
fn go_inside(words: &[String], cgroup2: bool) -> ExitCode {
    let mut script = String::from("mount -t tmpfs -o mode=755 tmpfs /mnt && ");
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private"]);
    if cgroup2 {
        command.arg("--cgroup");
        script.push_str("umount -R /sys/fs/cgroup && mount -t cgroup2 cgroup2 /sys/fs/cgroup && ");
    }
    script.push_str("exec \"$0\" \"$@\"");
    let program = std::env::current_exe().expect("know this program");
    let status = command.args(["sh", "-c", &script]).arg(program).args(words).env(INSIDE, "1").status();
    match status.expect("run unshare").code() {
        Some(0) => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

/// All attacks on all subjects.
fn mount_all(settings: &Settings) -> ExitCode {
    let attacks: Vec<Attack> = [
        mounts::ATTACKS,
        procfs::ATTACKS,
        descriptors::ATTACKS,
        program::ATTACKS,
        users::ATTACKS,
        limits::ATTACKS,
        injection::ATTACKS,
        permissions::ATTACKS,
    ]
    .concat()
    .into_iter()
    .filter(|attack| {
        let chosen = |part: &String| match part.len() {
            1 => part.starts_with(attack.class),
            _ => attack.name.contains(part.as_str()) || attack.source.contains(part.as_str()),
        };
        settings.filter.is_empty() || settings.filter.iter().any(chosen)
    })
    .collect();
    let top = Path::new("/mnt").to_owned();
    lab::prepare(&top);
    let mut columns = Vec::new();
    let given = settings.runtimes.iter().map(|(label, path)| (label.clone(), path, false));
    let ours = settings.undefended.iter().map(|path| ("undefended".to_owned(), path, true));
    for (index, (label, path, undefended)) in given.chain(ours).enumerate() {
        let program = top.join(format!("runtime-{index}"));
        fs::copy(path, &program).expect("copy the runtime");
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("make the copy executable");
        let subject = Subject { label, program, undefended };
        let verdicts = column(&subject, &attacks, &top, settings.short);
        columns.push((subject, verdicts));
    }
    injection::remove_groups(&format!("gantry-attacks-{}", std::process::id()));
    let table = table(&attacks, &columns);
    println!("\n{table}");
    if let Some(path) = &settings.markdown {
        fs::write(path, &table).expect("write the table");
    }
    judge(&attacks, &columns)
}

/// One subject under every attack.
fn column(subject: &Subject, attacks: &[Attack], top: &Path, short: bool) -> Vec<Verdict> {
    let lab = Lab {
        subject: subject.clone(),
        without: None,
        scratch: top.to_owned(),
        rounds: if short { 12 } else { 60 },
        race_time: Duration::from_secs(if short { 2 } else { 8 }),
    };
    // Whatever cannot run a harmless container would stop every attack.
    let control = Bundle::new(&lab, "echo harmless").run();
    if !control.ok() || !control.text.contains("harmless") {
        println!("{}: cannot run here: {}", subject.label, control.said());
        return attacks.iter().map(|_| Verdict::Skipped("cannot run here".to_owned())).collect();
    }
    attacks
        .iter()
        .map(|attack| {
            let lab = Lab { without: attack.defence.filter(|_| subject.undefended), ..lab.clone() };
            let began = Instant::now();
            let verdict = match attack.defence {
                None if subject.undefended => Verdict::Skipped("no one defence to leave out".to_owned()),
                _ => (attack.run)(&lab),
            };
            let (word, detail) = match &verdict {
                Verdict::Stopped(detail) => ("stopped", detail),
                Verdict::Bites(detail) => ("BITES", detail),
                Verdict::Skipped(detail) => ("skipped", detail),
            };
            let time = began.elapsed().as_millis();
            println!("{} | {} {} | {word} | {time} ms | {detail}", subject.label, attack.class, attack.name);
            verdict
        })
        .collect()
}

fn table(attacks: &[Attack], columns: &[(Subject, Vec<Verdict>)]) -> String {
    let mut text = String::from("| class | attack | seen as | defence |");
    for (subject, _) in columns {
        let _ = write!(text, " {} |", subject.label);
    }
    text.push_str("\n|---|---|---|---|");
    text.push_str(&"---|".repeat(columns.len()));
    for (index, attack) in attacks.iter().enumerate() {
        let defence = attack.defence.unwrap_or("-");
        let _ = write!(text, "\n| {} | {} | {} | {defence} |", attack.class, attack.name, attack.source);
        for (_, verdicts) in columns {
            let word = match &verdicts[index] {
                Verdict::Stopped(_) => "stopped",
                Verdict::Bites(_) => "**bites**",
                Verdict::Skipped(_) => "-",
            };
            let _ = write!(text, " {word} |");
        }
    }
    text.push('\n');
    text
}

/// On ours nothing may bite; without its defence everything should.
fn judge(attacks: &[Attack], columns: &[(Subject, Vec<Verdict>)]) -> ExitCode {
    let mut bad = 0;
    let mut toothless = Vec::new();
    for (subject, verdicts) in columns {
        for (attack, verdict) in attacks.iter().zip(verdicts) {
            if subject.label == OURS && !matches!(verdict, Verdict::Stopped(_)) {
                println!("FAILED {} {} on {}: {verdict:?}", attack.class, attack.name, subject.label);
                bad += 1;
            }
            if subject.undefended && matches!(verdict, Verdict::Stopped(_)) {
                toothless.push(format!("{} {}", attack.class, attack.name));
            }
        }
    }
    if !toothless.is_empty() {
        println!("without their defence these were stopped all the same: {}", toothless.join("; "));
    }
    let ours = columns.iter().filter(|(subject, _)| subject.label == OURS).count() * attacks.len();
    println!("test result: {}. {} passed; {bad} failed", if bad == 0 { "ok" } else { "FAILED" }, ours - bad);
    if bad == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
