//! Starting a program from a process that may have threads.
//!
//! The child shares our memory until it execs (glibc's `posix_spawn` is `clone(CLONE_VM | CLONE_VFORK)`), so starting
//! costs the same however large the parent is, and nothing of ours runs in it: what it does between clone and exec is
//! a list prepared here.
//!
//! **Invariant:** the child gets exactly the descriptors that the command names and `/dev/null` for the standard
//! streams it does not name; default signal handlers and an empty signal mask; and only the environment it was given.

#![expect(unsafe_code, reason = "posix_spawn takes raw pointers")]

use std::ffi::{CString, OsStr, c_char};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;

use crate::Result;
use crate::process::{self, Exited};

/// A program to start.
#[derive(Debug)]
pub struct Command {
    program: CString,
    arguments: Vec<CString>,
    environment: Vec<CString>,
    directory: Option<CString>,
    descriptors: Vec<(RawFd, OwnedFd)>,
    new_session: bool,
    /// An argument had a NUL byte in it; told when starting, so that building needs no error handling.
    invalid: bool,
}

/// A started child. Dropping it neither kills nor reaps it.
#[derive(Debug)]
pub struct Child {
    /// Its pid.
    pub pid: u32,
    /// Its pidfd, readable when it has ended.
    pub pidfd: OwnedFd,
}

impl Command {
    /// A command that runs the file at `program`, an absolute path (no search in `PATH`), with `program` as its first
    /// argument, an empty environment, the caller's working directory and no open file but `/dev/null` three times.
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        let mut invalid = false;
        let program = c_string(program.as_ref(), &mut invalid);
        Self {
            arguments: vec![program.clone()],
            program,
            environment: Vec::new(),
            directory: None,
            descriptors: Vec::new(),
            new_session: false,
            invalid,
        }
    }

    /// Replaces argument 0, which is otherwise the path of the program.
    pub fn arg0(mut self, name: impl AsRef<OsStr>) -> Self {
        self.arguments[0] = c_string(name.as_ref(), &mut self.invalid);
        self
    }

    /// Adds an argument.
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        let argument = c_string(argument.as_ref(), &mut self.invalid);
        self.arguments.push(argument);
        self
    }

    /// Adds arguments.
    pub fn args<S: AsRef<OsStr>>(self, arguments: impl IntoIterator<Item = S>) -> Self {
        arguments.into_iter().fold(self, Self::arg)
    }

    /// Adds an environment variable.
    pub fn env(self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        let mut assignment = name.as_ref().to_owned();
        assignment.push("=");
        assignment.push(value.as_ref());
        self.env_assignment(assignment)
    }

    /// Adds an environment entry in the form `NAME=value`.
    pub fn env_assignment(mut self, assignment: impl AsRef<OsStr>) -> Self {
        let assignment = c_string(assignment.as_ref(), &mut self.invalid);
        self.environment.push(assignment);
        self
    }

    /// Adds the caller's own environment.
    pub fn inherit_env(self) -> Self {
        std::env::vars_os().fold(self, |command, (name, value)| command.env(name, value))
    }

    /// Sets the working directory.
    pub fn cwd(mut self, directory: impl AsRef<OsStr>) -> Self {
        let directory = c_string(directory.as_ref(), &mut self.invalid);
        self.directory = Some(directory);
        self
    }

    /// Gives the child `descriptor` under the number `target`. A later one for the same number wins.
    pub fn fd(mut self, target: RawFd, descriptor: OwnedFd) -> Self {
        self.descriptors.retain(|(other, _)| *other != target);
        self.descriptors.push((target, descriptor));
        self
    }

    /// Gives the child a copy of `descriptor` under the number `target`.
    pub fn borrow_fd(self, target: RawFd, descriptor: BorrowedFd<'_>) -> Result<Self> {
        let copy = rustix::io::fcntl_dupfd_cloexec(descriptor, 0)?;
        Ok(self.fd(target, copy))
    }

    /// Makes the child the leader of a new session.
    pub fn new_session(mut self) -> Self {
        self.new_session = true;
        self
    }

    /// Starts the program. An error of exec is returned here: ENOENT for a missing file, EACCES for one that is not
    /// executable, EINVAL for an argument with a NUL byte.
    ///
    /// Blocks until the child has executed the program. Needs to be the only one in the process that reaps children
    /// it did not start (`waitpid(-1)` elsewhere could take the child's end away).
    pub fn spawn(self) -> Result<Child> {
        if self.invalid {
            return Err(Errno::INVAL);
        }
        // A descriptor to pass must not stand on a number that an earlier step overwrites: move them all above.
        let above = self.descriptors.iter().map(|(target, _)| *target).max().unwrap_or(2).max(2) + 1;
        let mut mapping = Vec::with_capacity(self.descriptors.len());
        for (target, descriptor) in &self.descriptors {
            if *target < 0 {
                return Err(Errno::BADF);
            }
            mapping.push((*target, rustix::io::fcntl_dupfd_cloexec(descriptor, above)?));
        }
        let mut actions = Actions::new()?;
        for standard in 0..3 {
            if !mapping.iter().any(|(target, _)| *target == standard) {
                actions.open_null(standard)?;
            }
        }
        for (target, descriptor) in &mapping {
            actions.duplicate(descriptor.as_fd(), *target)?;
        }
        for hole in (3..above).filter(|number| !mapping.iter().any(|(target, _)| target == number)) {
            actions.close(hole)?;
        }
        // By descriptor: the program's own name for the function that takes a path is weak in `std`, and a static link
        // then leaves it out.
        let directory = self.directory.as_ref().map(|path| open_directory(path, above)).transpose()?;
        if let Some(directory) = &directory {
            actions.change_directory(directory.as_fd())?;
        }
        actions.close_from(above)?;
        let attributes = Attributes::new(self.new_session)?;
        let pid = self.posix_spawn(&actions, &attributes)?;
        // The child cannot be reaped by anyone but us, so its pid is still its own.
        match process::pidfd_open(pid) {
            Ok(pidfd) => Ok(Child { pid, pidfd }),
            Err(errno) => {
                // No descriptor left: a child that nobody can watch must not stay.
                kill_unwatched(pid);
                Err(errno)
            }
        }
    }

    /// Starts the program and waits for its end. Blocks.
    pub fn status(self) -> Result<Exited> {
        let child = self.spawn()?;
        process::wait(child.pidfd.as_fd())
    }

    fn posix_spawn(&self, actions: &Actions, attributes: &Attributes) -> Result<u32> {
        let arguments = pointers(&self.arguments);
        let environment = pointers(&self.environment);
        let mut pid: libc::pid_t = 0;
        // SAFETY: all pointers are to values that live until the call returns; the two arrays end with null; actions
        // and attributes are initialised.
        let code = unsafe {
            libc::posix_spawn(
                &raw mut pid,
                self.program.as_ptr(),
                actions.0.as_ptr(),
                attributes.0.as_ptr(),
                arguments.as_ptr(),
                environment.as_ptr(),
            )
        };
        check(code)?;
        Ok(pid.unsigned_abs())
    }
}

fn kill_unwatched(pid: u32) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw) {
        // Both can only fail if the child is gone, which is what is wanted.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        let _ = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty());
    }
}

fn c_string(text: &OsStr, invalid: &mut bool) -> CString {
    CString::new(text.as_bytes()).unwrap_or_else(|_| {
        *invalid = true;
        CString::default()
    })
}

fn pointers(strings: &[CString]) -> Vec<*mut c_char> {
    strings.iter().map(|string| string.as_ptr().cast_mut()).chain([std::ptr::null_mut()]).collect()
}

/// Opens a directory on a number that no step of the child overwrites or closes before it is used.
fn open_directory(path: &CString, above: RawFd) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::openat(CWD, path.as_c_str(), flags, Mode::empty())?;
    rustix::io::fcntl_dupfd_cloexec(directory, above)
}

/// The posix_spawn family returns the error number instead of setting errno.
fn check(code: i32) -> Result<()> {
    if code == 0 { Ok(()) } else { Err(Errno::from_raw_os_error(code)) }
}

struct Actions(Box<MaybeUninit<libc::posix_spawn_file_actions_t>>);

impl Actions {
    fn new() -> Result<Self> {
        let mut actions = Box::new(MaybeUninit::uninit());
        // SAFETY: the pointer is to writable memory of the right type.
        check(unsafe { libc::posix_spawn_file_actions_init(actions.as_mut_ptr()) })?;
        Ok(Self(actions))
    }

    fn open_null(&mut self, target: RawFd) -> Result<()> {
        // SAFETY: initialised in new; the path is copied by glibc.
        check(unsafe {
            libc::posix_spawn_file_actions_addopen(self.0.as_mut_ptr(), target, c"/dev/null".as_ptr(), libc::O_RDWR, 0)
        })
    }

    fn duplicate(&mut self, from: BorrowedFd<'_>, target: RawFd) -> Result<()> {
        // SAFETY: initialised in new; the descriptors are numbers to glibc.
        check(unsafe { libc::posix_spawn_file_actions_adddup2(self.0.as_mut_ptr(), from.as_raw_fd(), target) })
    }

    fn close(&mut self, target: RawFd) -> Result<()> {
        // SAFETY: initialised in new; closing a number that is not open is not an error here.
        check(unsafe { libc::posix_spawn_file_actions_addclose(self.0.as_mut_ptr(), target) })
    }

    fn close_from(&mut self, first: RawFd) -> Result<()> {
        // SAFETY: initialised in new.
        check(unsafe { libc::posix_spawn_file_actions_addclosefrom_np(self.0.as_mut_ptr(), first) })
    }

    fn change_directory(&mut self, directory: BorrowedFd<'_>) -> Result<()> {
        // SAFETY: initialised in new; the descriptor is a number to glibc.
        check(unsafe { libc::posix_spawn_file_actions_addfchdir_np(self.0.as_mut_ptr(), directory.as_raw_fd()) })
    }
}

impl Drop for Actions {
    fn drop(&mut self) {
        // SAFETY: initialised in new, destroyed once.
        unsafe { libc::posix_spawn_file_actions_destroy(self.0.as_mut_ptr()) };
    }
}

struct Attributes(Box<MaybeUninit<libc::posix_spawnattr_t>>);

impl Attributes {
    /// Default handlers for all signals (tokio and Rust's runtime change some), nothing blocked.
    fn new(new_session: bool) -> Result<Self> {
        let mut attributes = Box::new(MaybeUninit::uninit());
        // SAFETY: the pointer is to writable memory of the right type.
        check(unsafe { libc::posix_spawnattr_init(attributes.as_mut_ptr()) })?;
        let mut this = Self(attributes);
        let mut all = MaybeUninit::<libc::sigset_t>::zeroed();
        // Not sigfillset: it leaves out the two signals that glibc keeps for threads, which the child would then
        // inherit as ignored.
        // SAFETY: a signal set is an array of bits, valid with all of them set.
        unsafe { all.as_mut_ptr().write_bytes(0xff, 1) };
        let mut none = MaybeUninit::<libc::sigset_t>::zeroed();
        // SAFETY: the pointer is to a writable signal set.
        unsafe { libc::sigemptyset(none.as_mut_ptr()) };
        // SAFETY: initialised above; the set is filled.
        check(unsafe { libc::posix_spawnattr_setsigdefault(this.0.as_mut_ptr(), all.as_ptr()) })?;
        // SAFETY: initialised above; the set is filled.
        check(unsafe { libc::posix_spawnattr_setsigmask(this.0.as_mut_ptr(), none.as_ptr()) })?;
        // POSIX_SPAWN_SETSID of spawn.h, which the libc crate does not name for every target.
        const SETSID: i32 = 0x80;
        let flags = libc::POSIX_SPAWN_SETSIGDEF | libc::POSIX_SPAWN_SETSIGMASK | if new_session { SETSID } else { 0 };
        let flags = i16::try_from(flags).map_err(|_| Errno::INVAL)?;
        // SAFETY: initialised above.
        check(unsafe { libc::posix_spawnattr_setflags(this.0.as_mut_ptr(), flags) })?;
        Ok(this)
    }
}

impl Drop for Attributes {
    fn drop(&mut self) {
        // SAFETY: initialised in new, destroyed once.
        unsafe { libc::posix_spawnattr_destroy(self.0.as_mut_ptr()) };
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};

    use rustix::pipe::{PipeFlags, pipe_with};

    use super::*;
    use crate::process::Exit;

    /// Runs a shell script with its standard output in a pipe.
    fn output(command: Command) -> (String, Exit) {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let child = command.fd(1, writer).spawn().unwrap();
        let mut text = String::new();
        File::from(reader).read_to_string(&mut text).unwrap();
        (text, process::wait(child.pidfd.as_fd()).unwrap().exit)
    }

    #[test]
    fn environment_directory_and_arguments_are_as_told() {
        let command = Command::new("/bin/sh")
            .arg0("mine")
            .args(["-c", "echo $0 $1; pwd; env -i true; echo ${A}${HOME}", "zero", "one"])
            .env("A", "b=c")
            .cwd("/proc");
        let (text, exit) = output(command);
        assert_eq!((text.as_str(), exit), ("zero one\n/proc\nb=c\n", Exit::Code(0)));
    }

    #[test]
    fn descriptors_are_mapped_even_crosswise_and_nothing_else_is_open() {
        let directory = tempfile::tempdir().unwrap();
        let make = |name: &str| {
            let mut file = File::create_new(directory.path().join(name)).unwrap();
            file.write_all(name.as_bytes()).unwrap();
            OwnedFd::from(File::open(directory.path().join(name)).unwrap())
        };
        let (first, second) = (make("first"), make("second"));
        // Crosswise: each wants the number that the other one has now.
        let (a, b) = (first.as_raw_fd(), second.as_raw_fd());
        let script = format!("cat /proc/self/fd/{b} /proc/self/fd/{a} /proc/self/fd/3; echo; ls /proc/self/fd | wc -l");
        let command =
            Command::new("/bin/sh").args(["-c", &script]).env("PATH", "/usr/bin:/bin").fd(b, first).fd(a, second);
        let command = if a == 3 || b == 3 { command } else { command.fd(3, make("third")) };
        let (text, _) = output(command);
        assert!(text.starts_with("firstsecond"), "{text}");
        // 0, 1, 2, the three mapped ones, and the directory that ls reads.
        let count: usize = text.lines().last().unwrap().trim().parse().unwrap();
        assert!(count <= 7, "{text}");
    }

    #[test]
    fn a_missing_program_is_told_at_once() {
        assert_eq!(Command::new("/does/not/exist").spawn().unwrap_err(), Errno::NOENT);
        assert_eq!(Command::new("/etc/passwd").spawn().unwrap_err(), Errno::ACCESS);
        assert_eq!(Command::new("/bin/true").arg("a\0b").spawn().unwrap_err(), Errno::INVAL);
        assert_eq!(Command::new("/bin/true").cwd("/does/not/exist").spawn().unwrap_err(), Errno::NOENT);
    }

    #[test]
    fn a_session_of_its_own_and_clean_signals() {
        let script = "read -r _ _ _ _ _ session _ < /proc/self/stat; [ $session = $$ ] && echo leader; \
                      while read -r name value; do case $name in SigBlk:|SigIgn:) echo $value;; esac; done < /proc/self/status";
        let (text, _) = output(Command::new("/bin/sh").args(["-c", script]).new_session());
        assert_eq!(text, "leader\n0000000000000000\n0000000000000000\n");
    }

    #[test]
    fn threads_may_spawn_at_the_same_time() {
        std::thread::scope(|scope| {
            for code in 0..8 {
                scope.spawn(move || {
                    for _ in 0..20 {
                        let status = Command::new("/bin/sh").args(["-c", &format!("exit {code}")]).status().unwrap();
                        assert_eq!(status.exit, Exit::Code(code));
                    }
                });
            }
        });
    }
}
