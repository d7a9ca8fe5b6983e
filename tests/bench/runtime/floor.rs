//! The floor: what the kernel alone takes for a container's life. One fixed container, made by the fewest calls of the
//! same class that a runtime needs (clone, cgroup, mounts, devices, masks, root, capabilities, filter, exec, wait),
//! without a document to read, a state to keep, a check or an undo.
//!
//! `bench-floor once WORDS ROOTFS FILE CGROUP...` makes one; `serve` makes one for every byte on standard input and
//! answers its nanoseconds; `launch FILE PROGRAM ARGUMENT...` runs a program and writes to the file the most memory that
//! any process of its tree had, KiB (a small launcher, because the kernel counts the memory of whoever executes).

#![expect(unsafe_code, reason = "bare system calls are what this program is about")]
#![expect(clippy::multiple_unsafe_ops_per_block, reason = "one fixed sequence of calls without invariants of its own")]

use std::ffi::{CStr, CString, c_int, c_long};
use std::io::{Read as _, Write as _};
use std::time::Instant;

use libc::{MS_BIND, MS_NODEV, MS_NOEXEC, MS_NOSUID, MS_RDONLY, MS_REC, MS_REMOUNT, MS_SLAVE, c_char, c_ulong};

const NULL: *const c_char = std::ptr::null();
const RESTRICTED: c_ulong = MS_NOSUID | MS_NODEV | MS_NOEXEC;
/// Docker's default capabilities.
const CAPABILITIES: u64 = 0xa804_25fb;
const KNOWN: c_int = 41;

/// Files and directories that Docker hides, and those that it makes read-only.
const MASKED_FILES: [&CStr; 4] = [c"proc/kcore", c"proc/keys", c"proc/timer_list", c"proc/interrupts"];
const MASKED_DIRECTORIES: [&CStr; 4] = [c"proc/acpi", c"proc/scsi", c"sys/firmware", c"sys/devices/virtual/powercap"];
const READ_ONLY: [&CStr; 5] = [c"proc/bus", c"proc/fs", c"proc/irq", c"proc/sys", c"proc/sysrq-trigger"];

struct Container {
    net: bool,
    cgroup_space: bool,
    filter: Option<Vec<libc::sock_filter>>,
    rootfs: CString,
    hosts: CString,
    cgroups: Vec<CString>,
    /// `tasks` of each group; empty on version 2, where the process is born in its group.
    entrances: Vec<CString>,
    /// Names below `/sys/fs/cgroup`, for version 1.
    hierarchies: Vec<CString>,
}

fn main() {
    let words: Vec<CString> = std::env::args().skip(1).map(|word| CString::new(word).unwrap_or_default()).collect();
    let outcome = match words.first().map(|word| word.to_bytes()) {
        Some(b"once") => container(&words).map(|container| life(&container)),
        Some(b"serve") => container(&words).map(|container| serve(&container)),
        Some(b"launch") if words.len() > 2 => Some(launch(&words[1], &words[2..])),
        _ => None,
    };
    if outcome != Some(true) {
        fail(c"usage: bench-floor once|serve WORDS ROOTFS FILE CGROUP...");
    }
}

fn fail(what: &CStr) -> ! {
    // SAFETY: plain calls on a C string that lives.
    unsafe {
        libc::perror(what.as_ptr());
        libc::_exit(1)
    }
}

fn check(result: c_long, what: &CStr) -> c_long {
    if result < 0 { fail(what) } else { result }
}

fn container(words: &[CString]) -> Option<Container> {
    let [_, flags, rootfs, hosts, cgroups @ ..] = words else { return None };
    let has = |flag: &str| flags.to_string_lossy().split(',').any(|word| word == flag);
    let text = |cgroup: &CString| cgroup.to_string_lossy().into_owned();
    let (entrances, hierarchies) = if has("v1") {
        let name = |cgroup: &CString| text(cgroup).split('/').nth(4).unwrap_or_default().to_owned();
        (
            cgroups.iter().filter_map(|cgroup| CString::new(text(cgroup) + "/tasks").ok()).collect(),
            cgroups
                .iter()
                .filter_map(|cgroup| CString::new("sys/fs/cgroup/".to_owned() + &name(cgroup)).ok())
                .collect(),
        )
    } else {
        (Vec::new(), Vec::new())
    };
    Some(Container {
        net: has("net"),
        cgroup_space: has("cgroup"),
        filter: has("seccomp").then(filter),
        rootfs: rootfs.clone(),
        hosts: hosts.clone(),
        cgroups: cgroups.to_vec(),
        entrances,
        hierarchies,
    })
}

/// A filter as large as a compiled Docker profile: a search by halving over 256 ranges, all of which allow.
fn filter() -> Vec<libc::sock_filter> {
    fn search(first: u32, count: u32, code: &mut Vec<libc::sock_filter>) {
        if count == 1 {
            code.push(libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: 0x7fff_0000 });
            return;
        }
        let at = code.len();
        code.push(libc::sock_filter { code: 0x35, jt: 0, jf: 1, k: first + count });
        code.push(libc::sock_filter { code: 0x05, jt: 0, jf: 0, k: 0 });
        search(first, count / 2, code);
        code[at + 1].k = u32::try_from(code.len() - at - 2).unwrap_or(0);
        search(first + count, count / 2, code);
    }
    let mut code = vec![libc::sock_filter { code: 0x20, jt: 0, jf: 0, k: 0 }];
    search(0, 256, &mut code);
    code
}

fn serve(container: &Container) -> bool {
    let mut byte = [0];
    while std::io::stdin().read(&mut byte).is_ok_and(|count| count == 1) {
        let began = Instant::now();
        let fine = life(container);
        let nanoseconds = if fine { u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX) } else { u64::MAX };
        let told = std::io::stdout().write_all(&nanoseconds.to_ne_bytes()).and_then(|()| std::io::stdout().flush());
        if told.is_err() {
            break;
        }
        for cgroup in &container.cgroups {
            // SAFETY: a C string.
            unsafe { libc::rmdir(cgroup.as_ptr()) };
        }
    }
    true
}

/// One life; the groups are left to `serve` to remove, or removed here by `once`, which calls it with nobody else.
fn life(container: &Container) -> bool {
    // SAFETY: every pointer is a C string or a structure that outlives its call; the child of the clone makes system
    // calls only, on memory that was made before.
    unsafe {
        for cgroup in &container.cgroups {
            libc::mkdir(cgroup.as_ptr(), 0o755);
        }
        let mut flags = libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;
        if container.net {
            flags |= libc::CLONE_NEWNET;
        }
        let mut arguments = [0_u64; 11];
        if container.entrances.is_empty() {
            let group = check(
                libc::open(container.cgroups[0].as_ptr(), libc::O_PATH | libc::O_CLOEXEC).into(),
                c"open the cgroup",
            );
            arguments[10] = group.unsigned_abs();
            arguments[0] = 0x2_0000_0000;
            if container.cgroup_space {
                flags |= libc::CLONE_NEWCGROUP;
            }
        }
        arguments[0] |= u64::from(flags.cast_unsigned());
        arguments[4] = libc::SIGCHLD.unsigned_abs().into();
        let pid = check(libc::syscall(libc::SYS_clone3, arguments.as_ptr(), size_of_val(&arguments)), c"clone3");
        if pid == 0 {
            child(container);
        }
        if arguments[10] != 0 {
            libc::close(i32::try_from(arguments[10]).unwrap_or(-1));
        }
        let mut status = 0;
        libc::wait4(i32::try_from(pid).unwrap_or(-1), &raw mut status, 0, std::ptr::null_mut());
        if std::env::args_os().nth(1).is_some_and(|word| word == "once") {
            for cgroup in &container.cgroups {
                libc::rmdir(cgroup.as_ptr());
            }
        }
        status == 0
    }
}

unsafe fn mount(source: &CStr, target: &CStr, kind: &CStr, flags: c_ulong, data: &CStr) {
    let [source, kind, data] = [source, kind, data].map(|text| if text.is_empty() { NULL } else { text.as_ptr() });
    // SAFETY: C strings and null.
    check(unsafe { libc::mount(source, target.as_ptr(), kind, flags, data.cast()) }.into(), target);
}

unsafe fn child(container: &Container) -> ! {
    // SAFETY: as in `life`.
    unsafe {
        for entrance in &container.entrances {
            let file = libc::open(entrance.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
            check(libc::write(file, c"0".as_ptr().cast(), 1) as c_long, entrance);
            libc::close(file);
        }
        if container.cgroup_space && !container.entrances.is_empty() {
            check(libc::unshare(libc::CLONE_NEWCGROUP).into(), c"unshare");
        }
        libc::setsid();
        libc::sethostname(c"bench".as_ptr(), 5);
        if container.net {
            let socket = libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0);
            let mut request: libc::ifreq = std::mem::zeroed();
            request.ifr_name[0] = b'l'.cast_signed();
            request.ifr_name[1] = b'o'.cast_signed();
            request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as i16;
            check(libc::ioctl(socket, libc::SIOCSIFFLAGS, &raw const request).into(), c"lo");
            libc::close(socket);
        }
        mount(c"", c"/", c"", MS_REC | MS_SLAVE, c"");
        mount(&container.rootfs, &container.rootfs, c"", MS_BIND | MS_REC, c"");
        check(libc::chdir(container.rootfs.as_ptr()).into(), c"chdir");
        mounts(container);
        devices();
        for path in MASKED_FILES {
            libc::mount(c"/dev/null".as_ptr(), path.as_ptr(), NULL, MS_BIND, std::ptr::null());
        }
        for path in MASKED_DIRECTORIES {
            libc::mount(c"tmpfs".as_ptr(), path.as_ptr(), c"tmpfs".as_ptr(), MS_RDONLY, std::ptr::null());
        }
        for path in READ_ONLY {
            if libc::mount(path.as_ptr(), path.as_ptr(), NULL, MS_BIND | MS_REC, std::ptr::null()) == 0 {
                mount(c"", path, c"", MS_REMOUNT | MS_BIND | MS_RDONLY | RESTRICTED, c"");
            }
        }
        mount(c"", c".", c"", MS_REMOUNT | MS_BIND | MS_RDONLY, c"");
        check(libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr()), c"pivot_root");
        check(libc::umount2(c".".as_ptr(), libc::MNT_DETACH).into(), c"umount2");
        libc::chdir(c"/".as_ptr());
        rights(container);
        let arguments = [c"true".as_ptr(), NULL];
        let environment = [c"PATH=/bin".as_ptr(), NULL];
        libc::execve(c"/bin/true".as_ptr(), arguments.as_ptr(), environment.as_ptr());
        fail(c"execve")
    }
}

unsafe fn mounts(container: &Container) {
    // SAFETY: as in `life`.
    unsafe {
        mount(c"proc", c"proc", c"proc", RESTRICTED, c"");
        mount(c"tmpfs", c"dev", c"tmpfs", MS_NOSUID, c"mode=755,size=65536k");
        libc::mkdir(c"dev/pts".as_ptr(), 0o755);
        libc::mkdir(c"dev/shm".as_ptr(), 0o755);
        libc::mkdir(c"dev/mqueue".as_ptr(), 0o755);
        let options = c"newinstance,ptmxmode=0666,mode=0620,gid=5";
        mount(c"devpts", c"dev/pts", c"devpts", MS_NOSUID | MS_NOEXEC, options);
        mount(c"shm", c"dev/shm", c"tmpfs", RESTRICTED, c"mode=1777,size=65536k");
        mount(c"mqueue", c"dev/mqueue", c"mqueue", RESTRICTED, c"");
        mount(c"sysfs", c"sys", c"sysfs", RESTRICTED | MS_RDONLY, c"");
        if container.entrances.is_empty() {
            if container.cgroup_space {
                mount(c"cgroup", c"sys/fs/cgroup", c"cgroup2", RESTRICTED | MS_RDONLY, c"");
            } else {
                mount(&container.cgroups[0], c"sys/fs/cgroup", c"", MS_BIND, c"");
            }
        } else {
            mount(c"tmpfs", c"sys/fs/cgroup", c"tmpfs", RESTRICTED, c"mode=755");
            for (group, place) in container.cgroups.iter().zip(&container.hierarchies) {
                libc::mkdir(place.as_ptr(), 0o755);
                mount(group, place, c"", MS_BIND, c"");
            }
        }
        mount(&container.hosts, c"etc/hosts", c"", MS_BIND, c"");
    }
}

unsafe fn devices() {
    let nodes =
        [(c"null", 1, 3), (c"zero", 1, 5), (c"full", 1, 7), (c"random", 1, 8), (c"urandom", 1, 9), (c"tty", 5, 0)];
    let links = [
        (c"/proc/self/fd", c"fd"),
        (c"/proc/self/fd/0", c"stdin"),
        (c"/proc/self/fd/1", c"stdout"),
        (c"/proc/self/fd/2", c"stderr"),
        (c"pts/ptmx", c"ptmx"),
    ];
    // SAFETY: as in `life`.
    unsafe {
        let place = libc::open(c"dev".as_ptr(), libc::O_PATH | libc::O_CLOEXEC);
        for (name, major, minor) in nodes {
            libc::mknodat(place, name.as_ptr(), libc::S_IFCHR | 0o666, libc::makedev(major, minor));
        }
        for (target, name) in links {
            libc::symlinkat(target.as_ptr(), place, name.as_ptr());
        }
        libc::close(place);
    }
}

unsafe fn rights(container: &Container) {
    // SAFETY: as in `life`; the header and the data are of version 3.
    unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        for capability in (0..KNOWN).filter(|capability| CAPABILITIES & (1 << capability) == 0) {
            libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0);
        }
        let header = [0x2008_0522_u32, 0];
        let low = (CAPABILITIES & 0xffff_ffff) as u32;
        let data = [low, low, 0, 0, 0, 0];
        libc::syscall(libc::SYS_capset, header.as_ptr(), data.as_ptr());
        libc::syscall(libc::SYS_close_range, 3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC);
        if let Some(filter) = &container.filter {
            let program =
                libc::sock_fprog { len: u16::try_from(filter.len()).unwrap_or(0), filter: filter.as_ptr().cast_mut() };
            check(
                libc::syscall(libc::SYS_seccomp, 1, libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW, &raw const program),
                c"seccomp",
            );
        }
    }
}

/// Runs a program and notes the most memory of its tree. Ends as it ended.
fn launch(file: &CStr, words: &[CString]) -> bool {
    let mut arguments: Vec<*const c_char> = words.iter().map(|word| word.as_ptr()).collect();
    arguments.push(NULL);
    // SAFETY: the array ends with null and its strings live; the child only executes.
    unsafe {
        let pid = libc::fork();
        if pid == 0 {
            libc::execv(arguments[0], arguments.as_ptr());
            fail(c"execv");
        }
        let (mut status, mut usage) = (0, std::mem::zeroed::<libc::rusage>());
        libc::wait4(pid, &raw mut status, 0, &raw mut usage);
        status == 0 && std::fs::write(file.to_string_lossy().as_ref(), usage.ru_maxrss.to_string()).is_ok()
    }
}
