//! What is measured: runtimes by their command line, and the floor.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use sys::process::Exit;
use sys::spawn::Command;

/// A program under measurement.
#[derive(Debug)]
pub(crate) struct Subject {
    /// How the table calls it.
    pub(crate) name: String,
    /// What it says about its version.
    pub(crate) version: String,
    program: PathBuf,
    root: PathBuf,
}

/// The environment that all get.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

fn command(words: &[String]) -> Result<Command> {
    let (program, arguments) = words.split_first().context("an empty command")?;
    Ok(Command::new(program).args(arguments).env("PATH", PATH))
}

/// Runs a command to its end; anything but success is an error with what it printed.
pub(crate) fn timed(words: &[String]) -> Result<Duration> {
    let command = command(words)?;
    let began = Instant::now();
    let exited = command.status().with_context(|| format!("starting {words:?}"))?;
    let took = began.elapsed();
    if exited.exit != Exit::Code(0) {
        let again = std::process::Command::new(&words[0]).args(&words[1..]).output()?;
        let text = String::from_utf8_lossy(&again.stderr).into_owned();
        anyhow::bail!("{words:?} ended with {:?}; run again it says: {}", exited.exit, text.trim());
    }
    Ok(took)
}

/// Runs a command and gives what it prints.
pub(crate) fn output(words: &[String]) -> Result<String> {
    let (reader, writer) = std::io::pipe()?;
    let child = command(words)?.fd(1, OwnedFd::from(writer)).spawn().with_context(|| format!("starting {words:?}"))?;
    let mut text = String::new();
    File::from(OwnedFd::from(reader)).read_to_string(&mut text)?;
    let exited = sys::process::wait(child.pidfd.as_fd())?;
    ensure!(exited.exit == Exit::Code(0), "{words:?} ended with {:?}: {}", exited.exit, text.trim());
    Ok(text)
}

pub(crate) fn words<S: AsRef<str>>(list: &[S]) -> Vec<String> {
    list.iter().map(|word| word.as_ref().to_owned()).collect()
}

impl Subject {
    pub(crate) fn new(program: &Path, scratch: &Path, number: usize) -> Result<Self> {
        let shown = program.display().to_string();
        let text = output(&[shown.clone(), "--version".to_owned()])?;
        let version = text.lines().next().unwrap_or_default().to_owned();
        let number_of = version.split_whitespace().last().unwrap_or_default().to_owned();
        let name = program.file_name().unwrap_or_default().to_string_lossy();
        let root = scratch.join(format!("state-{number}"));
        Ok(Self {
            name: format!("{name} {number_of}"),
            version: format!("{version} ({shown})"),
            program: program.to_owned(),
            root,
        })
    }

    /// A command of it.
    pub(crate) fn command(&self, list: &[&str]) -> Vec<String> {
        let mut words = vec![self.program.display().to_string(), "--root".to_owned(), self.root.display().to_string()];
        words.extend(list.iter().map(|word| (*word).to_owned()));
        words
    }

    pub(crate) fn run(&self, bundle: &Path, id: &str) -> Vec<String> {
        self.command(&["run", "--bundle", &bundle.display().to_string(), id])
    }
}

/// The most memory of a command's tree, KiB.
pub(crate) fn memory(floor: &Path, scratch: &Path, words: &[String]) -> Result<u64> {
    let note = scratch.join("memory");
    let mut all = vec![floor.display().to_string(), "launch".to_owned(), note.display().to_string()];
    all.extend(words.iter().cloned());
    timed(&all)?;
    Ok(std::fs::read_to_string(&note)?.trim().parse()?)
}

/// How many system calls a command's tree makes.
pub(crate) fn calls(scratch: &Path, words: &[String]) -> Result<u64> {
    let counts = scratch.join("strace");
    let mut all =
        ["/usr/bin/strace", "-f", "-c", "-o", &counts.display().to_string(), "--"].map(str::to_owned).to_vec();
    all.extend(words.iter().cloned());
    timed(&all)?;
    let text = std::fs::read_to_string(&counts)?;
    let total = text.lines().rev().find(|line| line.trim_end().ends_with("total")).context("strace counted nothing")?;
    Ok(total.split_whitespace().nth(3).context("strace has another format")?.parse()?)
}

/// A program that makes one container for every byte and answers how long it took.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) name: &'static str,
    questions: File,
    answers: File,
    child: sys::spawn::Child,
}

impl Server {
    pub(crate) fn start(name: &'static str, list: &[String]) -> Result<Self> {
        let (reader, questions) = std::io::pipe()?;
        let (answers, writer) = std::io::pipe()?;
        let errors = OwnedFd::from(File::options().append(true).open("/dev/stderr")?);
        let command = command(list)?.fd(0, OwnedFd::from(reader)).fd(1, OwnedFd::from(writer)).fd(2, errors);
        let child = command.spawn().with_context(|| format!("starting {list:?}"))?;
        let file = |fd: OwnedFd| File::from(fd);
        Ok(Self { name, questions: file(questions.into()), answers: file(answers.into()), child })
    }

    pub(crate) fn life(&mut self) -> Result<Duration> {
        self.questions.write_all(b"x")?;
        let mut answer = [0; 8];
        self.answers.read_exact(&mut answer).with_context(|| format!("{} has ended", self.name))?;
        let nanoseconds = u64::from_ne_bytes(answer);
        ensure!(nanoseconds != u64::MAX, "{}: its container failed", self.name);
        Ok(Duration::from_nanos(nanoseconds))
    }

    pub(crate) fn end(self) -> Result<()> {
        drop(self.questions);
        sys::process::wait(self.child.pidfd.as_fd())?;
        Ok(())
    }
}
