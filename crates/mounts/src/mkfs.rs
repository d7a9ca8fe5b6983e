//! `mkfs/…`: the source is a file with a file system in it, made once.
//!
//! Options: `X-containerd.mkfs.size=10M` (necessary), `X-containerd.mkfs.fs=ext2|ext3|ext4|xfs`,
//! `X-containerd.mkfs.uuid=UUID`. A file that exists is taken as it is.

use std::fs::File;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use model::Mount;
use rustix::fs::{AtFlags, Mode, OFlags, SeekFrom, openat, unlinkat};
use sys::spawn::Command;

use crate::Error;
use crate::roots::{Place, Roots};

const PREFIX: &str = "X-containerd.mkfs.";
/// A sparse file of any size costs little to make.
const DEADLINE: Duration = Duration::from_secs(60);
/// More than this is a mistake.
const SIZE_MAX_BYTES: u64 = 1 << 50;
/// So much of what the program prints is told.
const OUTPUT_MAX_BYTES: usize = 1024;

#[derive(Debug, Default, PartialEq, Eq)]
struct Wanted {
    size: u64,
    kind: String,
    uuid: Option<String>,
}

/// Makes the file and takes the options away.
pub(crate) fn mkfs(mount: &mut Mount, roots: &Roots) -> Result<(), Error> {
    let path = PathBuf::from(&mount.source);
    let place = roots.find(&path)?;
    let wanted = parse(&mount.options)?;
    mount.options.retain(|option| !option.starts_with(PREFIX));
    if place.stat()?.is_some() {
        return Ok(());
    }
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = openat(&place.parent, &place.name, flags, Mode::from_raw_mode(0o640))
        .map_err(|errno| Error::file("make", &path, errno))?;
    let made = fill(&place, &wanted, file);
    if made.is_err() {
        // A file without a file system would be taken for one with it the next time.
        let _ = unlinkat(&place.parent, &place.name, AtFlags::empty());
    }
    made
}

fn parse(options: &[String]) -> Result<Wanted, Error> {
    let mut wanted = Wanted { kind: "ext4".to_owned(), ..Wanted::default() };
    for option in options {
        let Some(rest) = option.strip_prefix(PREFIX) else { continue };
        let wrong = |problem| Error::Option { option: option.clone(), problem };
        let (key, value) = rest.split_once('=').unwrap_or((rest, ""));
        match key {
            "size" => {
                let size = size(value).filter(|size| (1..=SIZE_MAX_BYTES).contains(size));
                wanted.size = size.ok_or_else(|| wrong("no size, or more than 1 PiB"))?;
            }
            "fs" if ["ext2", "ext3", "ext4", "xfs"].contains(&value) => value.clone_into(&mut wanted.kind),
            "fs" => return Err(wrong("the file system must be ext2, ext3, ext4 or xfs")),
            // It becomes an argument of a program.
            "uuid" if value.len() == 36 && value.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-') => {
                wanted.uuid = Some(value.to_owned());
            }
            "uuid" => return Err(wrong("no uuid")),
            _ => return Err(wrong("unknown")),
        }
    }
    if wanted.size == 0 {
        return Err(Error::Option { option: format!("{PREFIX}size"), problem: "is necessary" });
    }
    Ok(wanted)
}

/// Bytes in the words of Go's `units.RAMInBytes`: a number, and a unit that is a power of 1024.
fn size(text: &str) -> Option<u64> {
    let lower = text.trim().to_ascii_lowercase();
    let digits = lower.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(lower.len());
    let (number, unit) = lower.split_at(digits);
    let unit = unit.trim().trim_end_matches('b').trim_end_matches('i');
    let power = if unit.is_empty() { 0 } else { 1 + "kmgtp".find(unit).filter(|_| unit.len() == 1)? };
    let number: f64 = number.parse().ok()?;
    let bytes = number * 1024_f64.powi(i32::try_from(power).ok()?);
    // Far below what the conversion could lose.
    (bytes.is_finite() && bytes <= SIZE_MAX_BYTES as f64).then_some(bytes as u64)
}

fn fill(place: &Place<'_>, wanted: &Wanted, file: OwnedFd) -> Result<(), Error> {
    rustix::fs::ftruncate(&file, wanted.size).map_err(|errno| Error::file("set the size of", place.path, errno))?;
    let name = format!("mkfs.{}", wanted.kind);
    let program = find(&name).ok_or_else(|| Error::Format {
        path: place.path.to_owned(),
        program: name.clone(),
        output: "the program is not installed".to_owned(),
    })?;
    let uuid = match (&wanted.uuid, wanted.kind.as_str()) {
        (None, _) => Vec::new(),
        (Some(uuid), "xfs") => vec!["-m".to_owned(), format!("uuid={uuid}")],
        (Some(uuid), _) => vec!["-U".to_owned(), uuid.clone()],
    };
    // By descriptor: the name may mean something else by now.
    let command = Command::new(&program).inherit_env().arg("-q").args(uuid).arg("/proc/self/fd/3").fd(3, file);
    let (status, output) = run(command, &name, place.path)?;
    if status == 0 {
        return Ok(());
    }
    let output = format!("exit status {status}: {output}");
    Err(Error::Format { path: place.path.to_owned(), program: name, output })
}

fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/sbin", "/sbin", "/usr/bin"].map(PathBuf::from);
    let places = std::env::split_paths(&path).chain(usual).filter(|directory| directory.is_absolute());
    places.map(|directory| directory.join(name)).find(|program| program.is_file())
}

/// Runs a program to its end, or ends it after the deadline. Gives its status and the beginning of its output.
fn run(command: Command, name: &str, path: &Path) -> Result<(u32, String), Error> {
    let failed = |errno: sys::Errno| Error::file("run a program for", path, errno);
    let output = rustix::fs::memfd_create("output", rustix::fs::MemfdFlags::CLOEXEC).map_err(failed)?;
    let command = command.borrow_fd(1, output.as_fd()).and_then(|command| command.borrow_fd(2, output.as_fd()));
    let child = command.and_then(Command::spawn).map_err(failed)?;
    let ended = sys::fs::poll_readable(child.pidfd.as_fd(), Some(DEADLINE)).map_err(failed)?;
    if !ended {
        // Gone in between is as good.
        let _ = sys::process::pidfd_send_signal(&child.pidfd, 9);
    }
    let exited = sys::process::wait(child.pidfd.as_fd()).map_err(failed)?;
    if !ended {
        return Err(Error::Deadline { program: name.to_owned(), limit: DEADLINE });
    }
    let mut printed = Vec::new();
    rustix::fs::seek(&output, SeekFrom::Start(0)).map_err(failed)?;
    let read = std::io::Read::take(File::from(output), OUTPUT_MAX_BYTES as u64);
    std::io::Read::read_to_end(&mut { read }, &mut printed)
        .map_err(|error| Error::file("read output for", path, error))?;
    Ok((exited.exit.status(), String::from_utf8_lossy(&printed).trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options() {
        for (text, want) in [
            ("10", Some(10)),
            ("10M", Some(10 << 20)),
            ("1.5g", Some(3 << 29)),
            ("2 KiB", Some(2048)),
            ("7kb", Some(7168)),
            ("", None),
            ("M", None),
            ("-1", None),
            ("1e3", None),
            ("99999999999999999999P", None),
            ("1kk", None),
            ("nan", None),
        ] {
            assert_eq!(size(text), want, "{text}");
        }
        let parse = |options: &[&str]| {
            parse(&options.iter().map(|option| format!("X-containerd.mkfs.{option}")).collect::<Vec<_>>())
        };
        assert_eq!(parse(&["size=1M"]).unwrap(), Wanted { size: 1 << 20, kind: "ext4".into(), uuid: None });
        for options in [&[][..], &["size=0"], &["size=1M", "fs=vfat"], &["size=1M", "uuid=-F"], &["size=1M", "more=1"]]
        {
            assert!(parse(options).is_err(), "{options:?}");
        }
    }

    #[test]
    fn a_file_system_is_made_once() {
        let scratch = tempfile::tempdir().unwrap();
        let roots = Roots::open(&[scratch.path()]).unwrap();
        if find("mkfs.ext4").is_none() {
            println!("SKIP mkfs.ext4");
            return;
        }
        let image = scratch.path().join("image");
        let run = |source: &Path, size: &str| {
            let options = vec![format!("X-containerd.mkfs.size={size}"), "ro".to_owned()];
            let mut mount = Mount { source: source.display().to_string(), options, ..Mount::default() };
            mkfs(&mut mount, &roots).map(|()| mount.options)
        };
        assert_eq!(run(&image, "8M").unwrap(), ["ro"]);
        let bytes = std::fs::read(&image).unwrap();
        // ext4's magic number, by its documentation 0x38 behind the superblock at 1024.
        assert_eq!((bytes.len(), &bytes[1080..1082]), (8 << 20, &[0x53, 0xef][..]));
        assert_eq!(run(&image, "16M").unwrap(), ["ro"]);
        assert_eq!(std::fs::metadata(&image).unwrap().len(), 8 << 20);
        // Too small for a file system: nothing is left.
        let small = scratch.path().join("small");
        assert!(matches!(run(&small, "1k"), Err(Error::Format { .. })));
        assert!(!small.exists());
        assert!(matches!(run(Path::new("/etc/image"), "8M"), Err(Error::Outside(_))));
        assert!(matches!(run(Path::new("image"), "8M"), Err(Error::Outside(_))));
    }
}
