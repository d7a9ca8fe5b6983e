//! From a set-up process to the program of the specification.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{Access, AtFlags, FileType, Gid, Mode, OFlags, Stat, Uid};
use rustix::io::Errno;
use sys::undefended::{Defence, left_out};

use super::path::Text;
use super::scratch::Scratch;
use super::{Child, Kind, Process, Record, Stdio, creds, home, path, send, wait_for_byte};

fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL)
}

fn is_null_device(found: &Stat) -> bool {
    FileType::from_raw_mode(found.st_mode) == FileType::CharacterDevice && found.st_rdev == rustix::fs::makedev(1, 3)
}

fn is_null(file: BorrowedFd<'_>) -> bool {
    rustix::fs::fstat(file).is_ok_and(|found| is_null_device(&found))
}

/// The container's `/dev/null`, if that is what it has there.
fn open_null(scratch: &Scratch) -> Option<OwnedFd> {
    // Looked at before it is opened: opening something else could block.
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let seen = rustix::fs::open(c"/dev/null", flags, Mode::empty()).ok()?;
    let null = is_null(seen.as_fd());
    scratch.put(seen);
    if !null {
        return None;
    }
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NOCTTY | OFlags::CLOEXEC;
    rustix::fs::open(c"/dev/null", flags, Mode::empty()).ok().filter(|null| is_null(null.as_fd()))
}

impl Child<'_> {
    /// The last step: never returns without an error. The order is that of the rights each part needs.
    pub(super) fn become_program(&mut self, process: &Process) -> Result<(), Errno> {
        self.connect_stdio(process)?;
        if let Some(name) = &process.keyring
            && let Err(errno) = join_keyring(name)
            && errno != Errno::NOSYS
        {
            self.warn(errno);
        }
        rustix::process::umask(Mode::from_raw_mode(process.umask));
        let entered = self.enter_directory(process)?;
        let mut home = Text::new();
        if process.find_home {
            home::find(process.uid, &mut home)?;
            process.environment.add(home.as_c_str()?);
        }
        if process.no_new_privileges {
            rustix::thread::set_no_new_privs(true)?;
        }
        creds::drop_bounding(process)?;
        creds::set_groups(process)?;
        if !process.same_ids {
            sys::caps::keep(true)?;
            creds::set_ids(process)?;
            creds::regain()?;
        }
        if !entered {
            // As the user, who may have rights that root lacks (NFS).
            self.enter_directory_as_user(process)?;
        }
        // The root, which this process is in since it was changed, is below itself.
        if !process.working_directory.is_empty() {
            check_directory()?;
        }
        // Whatever is opened from here on closes by itself; and a filter may forbid the call.
        close_later(process);
        if let Some((start, report)) = &process.gate {
            close_now(process, [self.sync.as_raw_fd(), start.as_raw_fd(), report.as_raw_fd()]);
            end_on_signals()?;
        }
        let program = if process.no_new_privileges {
            creds::set_capabilities(process)?;
            self.find_program(process)
        } else {
            // Without no_new_privs the filter needs CAP_SYS_ADMIN: it comes before the capabilities go, and from here
            // on the profile must allow what follows.
            let program = self.find_program(process);
            self.install(process)?;
            creds::set_capabilities(process)?;
            program
        };
        let late = match &process.filter {
            Some(filter) if process.no_new_privileges => {
                // Its listener goes to the agent while the container is created: who creates it may be gone later.
                if filter.listener.is_some() {
                    self.install(process)?;
                }
                filter.listener.is_none()
            }
            _ => false,
        };
        if !process.silent {
            self.send(Kind::Ready, 0, 0);
        }
        let (start, report) = match &process.gate {
            Some((start, report)) => (start.as_fd(), report.as_fd()),
            None => (self.sync, self.sync),
        };
        if !process.at_once {
            wait_for_byte(start)?;
        }
        if process.candidates.is_empty() && !process.searched {
            send(report, Record { kind: Kind::NoProcess, step: self.step, errno: 0, value: 0 });
            sys::clone::exit_now(1);
        }
        if late {
            // Before the hooks, which have the filter of the container too.
            self.install_or_report(process, report);
        }
        for hook in &process.start_hooks {
            if let Err(failure) = self.run_hook_process(hook, Some(&process.environment)) {
                let index = u32::try_from(hook.index).unwrap_or(u32::MAX);
                failure.report(report, index);
                sys::clone::exit_now(1);
            }
        }
        let errno = execute(program, process);
        send(report, self.record(Kind::Exec, errno.raw_os_error(), 0));
        sys::clone::exit_now(1)
    }

    fn connect_stdio(&mut self, process: &Process) -> Result<(), Errno> {
        match &process.stdio {
            Stdio::Streams(streams) => {
                let mut own = None;
                for (number, stream) in (0..).zip(streams) {
                    match self.own_null(stream.as_fd(), &mut own) {
                        Some(null) => duplicate(null, number)?,
                        None => duplicate(stream.as_fd(), number)?,
                    }
                }
                own.into_iter().for_each(|null| self.scratch.put(null));
            }
            Stdio::Inherited => {
                let mut own = None;
                for number in 0..3 {
                    // SAFETY: whoever made this process has the standard streams open.
                    #[expect(unsafe_code, reason = "the standard streams have fixed numbers")]
                    let stream = unsafe { BorrowedFd::borrow_raw(number) };
                    if let Some(null) = self.own_null(stream, &mut own) {
                        duplicate(null, number)?;
                    }
                }
                own.into_iter().for_each(|null| self.scratch.put(null));
            }
            Stdio::Terminal => {
                let terminal = self.terminal.take().ok_or(Errno::BADF)?;
                rustix::process::ioctl_tiocsctty(&terminal)?;
                for number in 0..3 {
                    duplicate(terminal.as_fd(), number)?;
                }
            }
        }
        if process.uid == 0 {
            return Ok(());
        }
        // The program must be able to open /dev/stdout again. Not possible on every file, and then not vital.
        for number in 0..3 {
            // SAFETY: descriptors 0 to 2 have just been made.
            #[expect(unsafe_code, reason = "the standard streams have fixed numbers")]
            let stream = unsafe { BorrowedFd::borrow_raw(number) };
            let found = rustix::fs::fstat(stream)?;
            if !is_null_device(&found) && found.st_uid != process.uid {
                let _ = rustix::fs::fchown(stream, Some(Uid::from_raw(process.uid)), None::<Gid>);
            }
        }
        Ok(())
    }

    /// The container's null device, for a stream that is the host's: by its own mount, because one of the host would
    /// stay in use, and CRIU, which knows the container's mounts only, could not dump it.
    fn own_null<'own>(&self, stream: BorrowedFd<'_>, own: &'own mut Option<OwnedFd>) -> Option<BorrowedFd<'own>> {
        if !is_null(stream) {
            return None;
        }
        if own.is_none() {
            *own = match self.ground.own_directory(c"dev") {
                // Made by this process, in a place that nobody else has been in.
                Some(place) => {
                    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NOCTTY | OFlags::CLOEXEC;
                    rustix::fs::openat(place, c"null", flags, Mode::empty()).ok().filter(|null| is_null(null.as_fd()))
                }
                None => open_null(&self.scratch),
            };
        }
        own.as_ref().map(AsFd::as_fd)
    }

    /// False if root may not enter the directory.
    fn enter_directory(&self, process: &Process) -> Result<bool, Errno> {
        match self.enter_directory_as_user(process) {
            Ok(()) => Ok(true),
            Err(Errno::ACCESS) => Ok(false),
            Err(errno) => Err(errno),
        }
    }

    /// Resolved in the root and without magic links, so that no descriptor of ours can be a way out
    /// (CVE-2024-21626).
    fn enter_directory_as_user(&self, process: &Process) -> Result<(), Errno> {
        if left_out(Defence::Cwd) {
            let mut path = Text::new();
            path.set(b"/")?;
            path.append(process.working_directory.to_bytes())?;
            return rustix::process::chdir(path.as_c_str()?);
        }
        if process.working_directory.is_empty() {
            // This process has been in the root since it was changed.
            return Ok(());
        }
        let directory = path::open(self.root()?, &process.working_directory, OFlags::DIRECTORY)?;
        rustix::process::fchdir(&directory)?;
        self.scratch.put(directory);
        Ok(())
    }

    /// Where the program is. Reports and ends if it is nowhere.
    fn find_program<'process>(&self, process: &'process Process) -> &'process CStr {
        let mut problem = (Errno::NOENT, false);
        if process.candidates.is_empty() && !process.searched {
            // There is no process to run, which is told when it is started.
            return c"";
        }
        for candidate in &process.candidates {
            match executable(candidate, process.own_program, self.own_program_in_reach) {
                Ok(()) => return candidate,
                Err(error) => problem = error,
            }
        }
        let (errno, stat) = if process.searched { (0, false) } else { (problem.0.raw_os_error(), problem.1) };
        self.fail(Kind::Program, errno, i32::from(stat))
    }

    fn install(&self, process: &Process) -> Result<(), Errno> {
        let Some(filter) = &process.filter else { return Ok(()) };
        let descriptor = sys::seccomp::install(&filter.program, filter.flags)?;
        match (descriptor, &filter.listener) {
            (Some(descriptor), Some(listener)) => self.hand_over(&descriptor, listener.sendable()),
            _ => Ok(()),
        }
    }

    /// Gives the filter's listener to the parent, who passes it on to the agent. The filter is on already: a call that
    /// it forbids fails, and one that it asks the agent about would wait for ever before the agent has the descriptor.
    /// So where `sendmsg` is not free the parent is told the number only, by `write`, and takes the descriptor itself.
    fn hand_over(&self, listener: &OwnedFd, sendable: bool) -> Result<(), Errno> {
        if sendable {
            self.send_descriptor(Kind::Listener, listener.as_fd())?;
        } else {
            self.send(Kind::Listener, 0, listener.as_raw_fd());
        }
        self.wait_for_parent()
    }

    fn install_or_report(&self, process: &Process, report: BorrowedFd<'_>) {
        if let Err(errno) = self.install(process) {
            send(report, self.record(Kind::Failed, errno.raw_os_error(), 0));
            sys::clone::exit_now(1);
        }
    }
}

/// The error, and whether looking at the file failed already.
fn executable(candidate: &CStr, own_program: (u64, u64), in_reach: bool) -> Result<(), (Errno, bool)> {
    let found = rustix::fs::stat(candidate).map_err(|errno| (errno, true))?;
    if FileType::from_raw_mode(found.st_mode) == FileType::Directory {
        return Err((Errno::ISDIR, false));
    }
    let own = |found: &Stat| (found.st_dev, found.st_ino) == own_program && !left_out(Defence::Program);
    if own(&found) || (in_reach && interpreter(candidate).is_some_and(|found| own(&found))) {
        // /proc/self/exe: a container that runs our program could get hold of the host's file (CVE-2019-5736).
        return Err((Errno::ACCESS, false));
    }
    rustix::fs::accessat(rustix::fs::CWD, candidate, Access::EXEC_OK, AtFlags::EACCESS).map_err(|errno| (errno, false))
}

/// What interprets a script, through scripts that interpret scripts. For kernels where the process cannot let go of our
/// program: whoever changes the script after this look gets around it.
fn interpreter(candidate: &CStr) -> Option<Stat> {
    // As many as the kernel follows.
    const DEPTH: usize = 5;
    let mut path = Text::new();
    path.set(candidate.to_bytes()).ok()?;
    let mut last = None;
    for _ in 0..DEPTH {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let Ok(file) = rustix::fs::open(path.as_c_str().ok()?, flags, Mode::empty()) else { return last };
        let mut head = [0_u8; 256];
        let length = rustix::io::read(&file, &mut head).unwrap_or(0);
        let Some(line) = head.get(..length).and_then(|head| head.strip_prefix(b"#!")) else { return last };
        let ends = |byte: &u8| matches!(byte, b'\n' | b' ' | b'\t' | 0);
        let line = line.trim_ascii_start();
        path.set(line.split(ends).next().unwrap_or_default()).ok()?;
        last = Some(rustix::fs::stat(path.as_c_str().ok()?).ok()?);
    }
    last
}

/// After the change of ids and with all mounts done, the working directory must still be below the root.
fn check_directory() -> Result<(), Errno> {
    if left_out(Defence::Cwd) {
        return Ok(());
    }
    let mut buffer = [0_u8; 4096];
    // SAFETY: the kernel writes at most the buffer's length.
    #[expect(unsafe_code, reason = "rustix's getcwd allocates")]
    let length = unsafe { libc::syscall(libc::SYS_getcwd, buffer.as_mut_ptr(), buffer.len()) };
    if length < 0 {
        let errno = last_errno();
        // Longer than PATH_MAX, or removed: inside all the same.
        return if errno == Errno::RANGE || errno == Errno::NOENT { Ok(()) } else { Err(errno) };
    }
    if buffer.first() == Some(&b'/') { Ok(()) } else { Err(Errno::XDEV) }
}

fn join_keyring(name: &CStr) -> Result<(), Errno> {
    const JOIN_SESSION_KEYRING: libc::c_int = 1;
    // SAFETY: the name is a C string that outlives the call.
    #[expect(unsafe_code, reason = "keyctl has no wrapper")]
    let result = unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, name.as_ptr()) };
    if result < 0 { Err(last_errno()) } else { Ok(()) }
}

pub(super) fn duplicate(fd: BorrowedFd<'_>, number: i32) -> Result<(), Errno> {
    // SAFETY: numbers 0 to 2 belong to nobody in this process, which is about to become another program.
    #[expect(unsafe_code, reason = "the standard streams have fixed numbers")]
    let result = unsafe { libc::dup2(fd.as_raw_fd(), number) };
    if result < 0 { Err(last_errno()) } else { Ok(()) }
}

/// Nothing but the standard streams and what is preserved survives the exec, whoever opened it.
fn close_later(process: &Process) {
    if left_out(Defence::Fds) {
        return;
    }
    let first = 3_u32.saturating_add(process.preserve_fds);
    if sys::features().close_range {
        // SAFETY: only sets a flag on descriptors.
        #[expect(unsafe_code, reason = "close_range has no wrapper")]
        let result = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
        if result == 0 {
            return;
        }
    }
    for number in first..process.descriptor_limit {
        // SAFETY: only sets a flag; a number that is not open is refused.
        #[expect(unsafe_code, reason = "every possible number is tried")]
        unsafe {
            libc::fcntl(number.cast_signed(), libc::F_SETFD, libc::FD_CLOEXEC)
        };
    }
}

/// The first process of a pid namespace does not die of a signal that it does not handle, and a container that waits
/// must be one that can be stopped. The exec takes the handlers away.
fn end_on_signals() -> Result<(), Errno> {
    extern "C" fn end(signal: libc::c_int) {
        sys::clone::exit_now(128 + signal)
    }
    // SAFETY: all zero is a valid action, which is filled in next.
    #[expect(unsafe_code, reason = "sigaction is a C structure")]
    let mut action: libc::sigaction = unsafe { core::mem::zeroed() };
    action.sa_sigaction = end as *const () as usize;
    for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM] {
        // SAFETY: the handler makes one system call, which ends the process.
        #[expect(unsafe_code, reason = "the one place where a handler is installed")]
        let result = unsafe { libc::sigaction(signal, &raw const action, core::ptr::null_mut()) };
        if result < 0 {
            return Err(last_errno());
        }
    }
    Ok(())
}

/// A container that waits for another process to start it holds nothing meanwhile but its streams, what is preserved and
/// `kept`: its creator's pipes and files would stay open for as long as that takes.
fn close_now(process: &Process, mut kept: [i32; 3]) {
    if !sys::features().close_range {
        return;
    }
    kept.sort_unstable();
    let mut first = 3_u32.saturating_add(process.preserve_fds);
    for next in kept.map(i32::cast_unsigned).into_iter().chain([u32::MAX]) {
        if next > first {
            // SAFETY: nothing but what is kept is used from here on, and nothing is dropped before the exec.
            #[expect(unsafe_code, reason = "close_range has no wrapper")]
            unsafe {
                libc::syscall(libc::SYS_close_range, first, next.saturating_sub(1), 0)
            };
        }
        first = first.max(next.saturating_add(1));
    }
}

fn execute(program: &CStr, process: &Process) -> Errno {
    let (arguments, environment) = (process.arguments.as_ptr(), process.environment.as_ptr());
    // SAFETY: the program is a C string; both arrays end with null and their strings live in `process`.
    #[expect(unsafe_code, reason = "execve takes raw pointers")]
    unsafe {
        libc::execve(program.as_ptr(), arguments, environment)
    };
    last_errno()
}
