//! Running a program of somebody else to its end: `start` and `delete` of shims.
//!
//! **Invariant:** a program gets a deadline and a limit for what it prints, and is reaped whatever happens. The end of
//! its output is not waited for: what it leaves running may hold its streams open for ever.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Duration;

use rustix::fs::MemfdFlags;
use rustix::pipe::PipeFlags;
use sys::spawn::{Child, Command};
use tokio::net::unix::pipe::Receiver;

use crate::pidfd::Pidfd;

/// More than this of what a program prints is thrown away.
const OUTPUT_MAX_BYTES: usize = 64 * 1024;

/// How a program ended.
#[derive(Debug)]
pub(crate) struct Finished {
    /// Exit code, or 128 and the signal.
    pub(crate) status: u32,
    /// What it printed.
    pub(crate) output: Vec<u8>,
}

/// Where a program's standard error goes.
#[derive(Debug)]
pub(crate) enum Errors {
    /// Into the output.
    Output,
    /// To a file; to nowhere without one.
    File(Option<OwnedFd>),
}

/// Runs a program with `input` on standard input. After `limit` it is killed and the error is `TimedOut`.
///
/// Runs to its end even if the future is dropped.
pub(crate) async fn run(command: Command, input: Vec<u8>, errors: Errors, limit: Duration) -> io::Result<Finished> {
    tokio::spawn(run_to_the_end(command, input, errors, limit)).await.map_err(io::Error::other)?
}

async fn run_to_the_end(command: Command, input: Vec<u8>, errors: Errors, limit: Duration) -> io::Result<Finished> {
    let spawned = tokio::task::spawn_blocking(move || spawn(command, &input, errors));
    let (child, output) = spawned.await.map_err(io::Error::other)??;
    let output = Receiver::from_owned_fd(output)?;
    let (pid, copy) = (child.pid, child.pidfd.try_clone()?);
    let process = Pidfd::new(pid, copy).map_err(io::Error::other)?;
    let mut printed = Vec::new();
    let ended = tokio::time::timeout(limit, read_until_ended(&process, &output, &mut printed)).await;
    if ended.is_err() {
        // Gone in between is as good.
        let _ = process.signal(9);
        process.ended().await;
    }
    drain(&output, &mut printed);
    let exited = sys::process::wait(child.pidfd.as_fd())?;
    match ended {
        Ok(()) => Ok(Finished { status: exited.exit.status(), output: printed }),
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

fn spawn(command: Command, input: &[u8], errors: Errors) -> io::Result<(Child, OwnedFd)> {
    let stdin = rustix::fs::memfd_create("input", MemfdFlags::CLOEXEC)?;
    let mut left = input;
    while !left.is_empty() {
        let count = rustix::io::pwrite(&stdin, left, (input.len() - left.len()) as u64)?;
        left = left.get(count..).unwrap_or_default();
    }
    let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    let mut command = command.fd(0, stdin);
    match errors {
        Errors::Output => command = command.borrow_fd(2, writer.as_fd())?,
        Errors::File(Some(file)) => command = command.fd(2, file),
        Errors::File(None) => {}
    }
    Ok((command.fd(1, writer).spawn()?, reader))
}

async fn read_until_ended(process: &Pidfd, output: &Receiver, printed: &mut Vec<u8>) {
    let mut open = true;
    loop {
        tokio::select! {
            biased;
            ready = output.readable(), if open => open = ready.is_ok() && drain(output, printed),
            () = process.ended() => return,
        }
    }
}

/// Reads what is there. False once nobody can write any more.
fn drain(output: &Receiver, printed: &mut Vec<u8>) -> bool {
    let mut buffer = [0; 4096];
    loop {
        match output.try_read(&mut buffer) {
            Ok(0) => return false,
            Ok(count) => {
                let room = OUTPUT_MAX_BYTES.saturating_sub(printed.len());
                printed.extend(buffer.iter().take(count.min(room)));
            }
            Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        Command::new("/bin/sh").args(["-c", script]).env("PATH", "/usr/bin:/bin")
    }

    #[tokio::test]
    async fn output_and_status() {
        let run = |script: &str, errors| run(shell(script), b"in".to_vec(), errors, Duration::from_secs(20));
        let finished = run("cat; echo out; echo err >&2; exit 3", Errors::Output).await.unwrap();
        assert_eq!((finished.status, finished.output.as_slice()), (3, &b"inout\nerr\n"[..]));
        let finished = run("echo err >&2; head -c 100000 /dev/zero", Errors::File(None)).await.unwrap();
        assert_eq!((finished.status, finished.output.len()), (0, OUTPUT_MAX_BYTES));
    }

    #[tokio::test]
    async fn what_is_left_running_is_not_waited_for() {
        let run = |script: &str, limit| run(shell(script), Vec::new(), Errors::Output, Duration::from_secs(limit));
        let finished = run("sleep 1000 & echo $!", 20).await.unwrap();
        let pid: i32 = String::from_utf8(finished.output).unwrap().trim().parse().unwrap();
        rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), rustix::process::Signal::KILL)
            .unwrap();
        let error = run("exec sleep 1000", 0).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
