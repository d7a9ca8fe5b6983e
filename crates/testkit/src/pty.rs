use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

/// A program under a pseudo terminal, as a person at a terminal would run it.
#[derive(Debug)]
pub struct Pty {
    master: File,
    child: Child,
    seen: String,
}

impl Pty {
    /// Starts the program on a terminal of 80 columns and 24 rows.
    pub fn spawn(program: impl AsRef<std::ffi::OsStr>, arguments: &[&str]) -> Result<Self> {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).context("openpt")?;
        grantpt(&master).context("grantpt")?;
        unlockpt(&master).context("unlockpt")?;
        let path = ptsname(&master, Vec::new()).context("ptsname")?;
        let slave = File::options().read(true).write(true).open(path.to_str()?).context("open the terminal")?;
        tcsetwinsize(&slave, Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 }).context("set its size")?;
        let clone = |fd: &File| -> Result<OwnedFd> { Ok(fd.try_clone()?.into()) };
        // setsid(1) makes the terminal the controlling one, which a client needs to receive SIGWINCH and ^C.
        let child = Command::new("setsid")
            .args(["--ctty", "--wait"])
            .arg(program)
            .args(arguments)
            .stdin(Stdio::from(clone(&slave)?))
            .stdout(Stdio::from(clone(&slave)?))
            .stderr(Stdio::from(clone(&slave)?))
            .spawn()
            .context("start under a terminal")?;
        drop(slave);
        Ok(Self { master: master.into(), child, seen: String::new() })
    }

    /// Changes the size of the terminal.
    pub fn resize(&self, columns: u16, rows: u16) -> Result<()> {
        tcsetwinsize(&self.master, Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 })
            .context("resize the terminal")
    }

    /// Types text.
    pub fn send(&mut self, text: &str) -> Result<()> {
        self.master.write_all(text.as_bytes()).context("type into the terminal")
    }

    /// Reads until the output holds `text`; everything read so far is returned.
    pub fn expect(&mut self, text: &str) -> &str {
        let until = Instant::now() + Duration::from_secs(20);
        while !self.seen.contains(text) {
            assert!(self.read_some(until), "terminal: {text:?} did not appear in {:?}", self.seen);
        }
        &self.seen
    }

    /// Reads until the output holds `text` or the time is over; says whether it does.
    pub fn sees(&mut self, text: &str, within: Duration) -> bool {
        let until = Instant::now() + within;
        while !self.seen.contains(text) {
            if !self.read_some(until) {
                return false;
            }
        }
        true
    }

    /// Reads to the end and gives the exit code and all output.
    pub fn finish(mut self) -> Result<(i32, String)> {
        let until = Instant::now() + Duration::from_secs(20);
        while self.read_some(until) {}
        let status = self.child.wait().context("wait for the program under the terminal")?;
        Ok((status.code().unwrap_or(137), self.seen))
    }

    /// Whether anything more was read before the end or the deadline.
    fn read_some(&mut self, until: Instant) -> bool {
        let left = until.saturating_duration_since(Instant::now());
        let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
        let ready = poll(&mut [PollFd::new(&self.master, PollFlags::IN)], Some(&timeout)).unwrap_or(0);
        let mut buffer = [0u8; 4096];
        // EIO is the end of a terminal whose last user is gone.
        match if ready > 0 { self.master.read(&mut buffer) } else { Ok(0) } {
            Ok(count) if count > 0 => {
                self.seen.push_str(&String::from_utf8_lossy(&buffer[..count]));
                true
            }
            _ => false,
        }
    }
}
