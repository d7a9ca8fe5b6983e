//! libseccomp, loaded at run time: says what the filter of a profile does, as runc would have it.
//!
//! Only tests, fuzz targets and measurements use it. The rules by which runc calls the library are those of its
//! `libcontainer/seccomp`: rules with the default action are left out, several conditions on one argument are rules of
//! their own, and before the library's program runs a stub that gives ENOSYS for numbers above the highest that the
//! profile names.

#![expect(unsafe_code, reason = "libseccomp is a C library, loaded only to compare with it")]

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::fd::AsRawFd as _;

use oci::runtime::{Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompOperator};
use rustix::fs::MemfdFlags;
use sys::seccomp::Instruction;

use super::interpret::{Data, run};

const ENOSYS: u32 = 0x0005_0000 | 38;
const X32_BIT: u32 = 0x4000_0000;

type Init = unsafe extern "C" fn(u32) -> *mut c_void;
type Release = unsafe extern "C" fn(*mut c_void);
type AddArch = unsafe extern "C" fn(*mut c_void, u32) -> c_int;
type ResolveName = unsafe extern "C" fn(*const c_char) -> c_int;
type ResolveNameFor = unsafe extern "C" fn(u32, *const c_char) -> c_int;
type AddRule = unsafe extern "C" fn(*mut c_void, u32, c_int, c_uint, *const Comparison) -> c_int;
type Export = unsafe extern "C" fn(*const c_void, c_int) -> c_int;
type SetLevel = unsafe extern "C" fn(c_uint) -> c_int;

/// `struct scmp_arg_cmp`.
#[repr(C)]
struct Comparison {
    argument: c_uint,
    operator: c_int,
    first: u64,
    second: u64,
}

/// The library.
#[derive(Debug)]
pub(crate) struct Library {
    init: Init,
    release: Release,
    add_arch: AddArch,
    resolve_name: ResolveName,
    resolve_name_for: ResolveNameFor,
    add_rule: AddRule,
    export: Export,
}

/// A filter as runc would make it.
#[derive(Debug)]
pub(crate) struct Oracle {
    program: Vec<Instruction>,
    /// The highest number that the profile names for an architecture: `AUDIT_ARCH_*`, whether x32, number.
    last: Vec<(u32, bool, u32)>,
}

/// Why there is no verdict of the library on a profile.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// Two rules contradict each other (EEXIST).
    Conflict,
    /// Another error number, negative.
    Error(c_int),
}

/// A C function of the library as a pointer of the type that its header gives it.
macro_rules! symbol {
    ($handle:expr, $name:literal, $type:ty) => {{
        let name: &CStr = $name;
        // SAFETY: the handle is that of a loaded library, the name a C string.
        let found = unsafe { libc::dlsym($handle, name.as_ptr()) };
        if found.is_null() {
            return Err(format!("libseccomp has no {}", name.to_string_lossy()));
        }
        // SAFETY: the type is the one of libseccomp's header, seccomp.h.
        unsafe { std::mem::transmute::<*mut c_void, $type>(found) }
    }};
}

impl Library {
    /// Loads it; the text says why it is not there.
    pub(crate) fn load() -> Result<Self, String> {
        // SAFETY: the name is a C string; the library's constructors do nothing.
        let handle = unsafe { libc::dlopen(c"libseccomp.so.2".as_ptr(), libc::RTLD_NOW) };
        if handle.is_null() {
            return Err("libseccomp.so.2 is not installed".to_owned());
        }
        let level = symbol!(handle, c"seccomp_api_set", SetLevel);
        // SAFETY: takes a number. The level that knows notifications, whatever the kernel around the test knows.
        if unsafe { level(5) } != 0 {
            return Err("libseccomp is older than 2.5".to_owned());
        }
        Ok(Self {
            init: symbol!(handle, c"seccomp_init", Init),
            release: symbol!(handle, c"seccomp_release", Release),
            add_arch: symbol!(handle, c"seccomp_arch_add", AddArch),
            resolve_name: symbol!(handle, c"seccomp_syscall_resolve_name", ResolveName),
            resolve_name_for: symbol!(handle, c"seccomp_syscall_resolve_name_arch", ResolveNameFor),
            add_rule: symbol!(handle, c"seccomp_rule_add_array", AddRule),
            export: symbol!(handle, c"seccomp_export_bpf", Export),
        })
    }

    /// The number of a call on an architecture; negative: the library's number for one that the architecture lacks.
    /// `None`: it does not know the name.
    pub(crate) fn number(&self, arch: Arch, name: &str) -> Option<i32> {
        let name = CString::new(name).ok()?;
        // SAFETY: the name is a C string.
        let number = unsafe { (self.resolve_name_for)(arch as u32, name.as_ptr()) };
        (number != -1).then_some(number)
    }

    /// What runc makes of a profile, which must be one that [`super::compile`] takes.
    pub(crate) fn compile(&self, seccomp: &LinuxSeccomp) -> Result<Oracle, Refused> {
        let default = word(seccomp.default_action(), seccomp.default_errno_ret());
        // SAFETY: takes a number; an invalid one gives null.
        let context = unsafe { (self.init)(default) };
        if context.is_null() {
            return Err(Refused::Error(-libc::EINVAL));
        }
        let result = self.fill(context, seccomp, default).and_then(|()| self.read(context));
        // SAFETY: the context is that of seccomp_init and not used any more.
        unsafe { (self.release)(context) };
        Ok(Oracle { program: result?, last: self.last(seccomp) })
    }

    fn fill(&self, context: *mut c_void, seccomp: &LinuxSeccomp, default: u32) -> Result<(), Refused> {
        let check = |result: c_int| match result {
            0 => Ok(()),
            error if error == -libc::EEXIST => Err(Refused::Conflict),
            error => Err(Refused::Error(error)),
        };
        for arch in seccomp.architectures().iter().flatten() {
            // SAFETY: the context is valid.
            match unsafe { (self.add_arch)(context, *arch as u32) } {
                error if error == -libc::EEXIST => {}
                result => check(result)?,
            }
        }
        for entry in seccomp.syscalls().iter().flatten() {
            let action = word(entry.action(), entry.errno_ret());
            if action == default {
                continue;
            }
            let all: Vec<Comparison> = entry.args().iter().flatten().map(comparison).collect();
            let repeated = (0..6).any(|argument| all.iter().filter(|one| one.argument == argument).count() > 1);
            let rules: Vec<&[Comparison]> = if repeated { all.chunks(1).collect() } else { vec![&all] };
            for name in entry.names() {
                let Ok(name) = CString::new(name.as_str()) else { continue };
                // SAFETY: the name is a C string.
                let number = unsafe { (self.resolve_name)(name.as_ptr()) };
                if number == -1 {
                    continue;
                }
                for rule in &rules {
                    let count = c_uint::try_from(rule.len()).unwrap_or(0);
                    // SAFETY: the context is valid, and `count` comparisons are at the pointer.
                    check(unsafe { (self.add_rule)(context, action, number, count, rule.as_ptr()) })?;
                }
            }
        }
        Ok(())
    }

    fn read(&self, context: *const c_void) -> Result<Vec<Instruction>, Refused> {
        let broken = |_| Refused::Error(-libc::EIO);
        let file = rustix::fs::memfd_create(c"bpf", MemfdFlags::CLOEXEC);
        let mut file = std::fs::File::from(file.map_err(|errno| Refused::Error(-errno.raw_os_error()))?);
        // SAFETY: the context is valid and the descriptor open.
        let result = unsafe { (self.export)(context, file.as_raw_fd()) };
        if result != 0 {
            return Err(Refused::Error(result));
        }
        let mut bytes = Vec::new();
        file.seek(SeekFrom::Start(0)).and_then(|_| file.read_to_end(&mut bytes)).map_err(broken)?;
        let decode = |bytes: &[u8]| match *bytes {
            [a, b, jump_true, jump_false, c, d, e, f] => Some(Instruction {
                code: u16::from_ne_bytes([a, b]),
                jump_true,
                jump_false,
                operand: u32::from_ne_bytes([c, d, e, f]),
            }),
            _ => None,
        };
        bytes.chunks(8).map(decode).collect::<Option<_>>().ok_or(Refused::Error(-libc::EIO))
    }

    fn last(&self, seccomp: &LinuxSeccomp) -> Vec<(u32, bool, u32)> {
        let permissive = matches!(
            seccomp.default_action(),
            LinuxSeccompAction::ScmpActAllow | LinuxSeccompAction::ScmpActLog | LinuxSeccompAction::ScmpActTrace
        );
        if permissive || word(seccomp.default_action(), seccomp.default_errno_ret()) == ENOSYS {
            return Vec::new();
        }
        let mut list = Vec::new();
        for (arch, audit, x32) in [
            (Arch::ScmpArchX86_64, 0xc000_003e, false),
            (Arch::ScmpArchX32, 0xc000_003e, true),
            (Arch::ScmpArchX86, 0x4000_0003, false),
        ] {
            let listed = seccomp.architectures().iter().flatten().any(|listed| *listed == arch);
            if !listed && arch != Arch::ScmpArchX86_64 {
                continue;
            }
            let names = seccomp.syscalls().iter().flatten().flat_map(|entry| entry.names());
            let highest = names.filter_map(|name| self.number(arch, name)).filter(|number| *number > 0).max();
            list.extend(highest.map(|number| (audit, x32, number.cast_unsigned())));
        }
        list
    }
}

impl Oracle {
    /// The return value of the filter. `None`: its program uses what the interpreter does not know.
    pub(crate) fn verdict(&self, data: &Data) -> Option<u32> {
        let x32 = data.arch == 0xc000_003e && data.number & X32_BIT != 0;
        for (arch, of_x32, number) in &self.last {
            if (data.arch, x32) == (*arch, *of_x32) && data.number > *number {
                return Some(ENOSYS);
            }
        }
        run(&self.program, data).map(|(verdict, _)| verdict)
    }
}

/// `SCMP_ACT_*`, whose values are those of the kernel.
fn word(action: LinuxSeccompAction, errno: Option<u32>) -> u32 {
    action.as_u32(errno)
}

fn comparison(given: &oci::runtime::LinuxSeccompArg) -> Comparison {
    let operator = match given.op() {
        LinuxSeccompOperator::ScmpCmpNe => 1,
        LinuxSeccompOperator::ScmpCmpLt => 2,
        LinuxSeccompOperator::ScmpCmpLe => 3,
        LinuxSeccompOperator::ScmpCmpEq => 4,
        LinuxSeccompOperator::ScmpCmpGe => 5,
        LinuxSeccompOperator::ScmpCmpGt => 6,
        LinuxSeccompOperator::ScmpCmpMaskedEq => 7,
    };
    Comparison {
        argument: c_uint::try_from(given.index()).unwrap_or(c_uint::MAX),
        operator,
        first: given.value(),
        second: given.value_two().unwrap_or(0),
    }
}
