//! The tree behind a set of mounts, to be read.
//!
//! **Invariant:** nothing is mounted where anybody can see it, and nothing of the tree is written: an upper directory that a
//! container uses right now is read as one more lower one, without its mount being made a second time.

use std::os::fd::OwnedFd;

use model::{Code, Coded as _, Mount};
use rustix::fs::{CWD, Mode, OFlags};

use crate::Error;
use crate::target::{absolute, split_lower};

/// Opens the tree; `None` for no mounts at all, which is an empty one.
pub(crate) fn open(mounts: &[Mount]) -> Result<Option<OwnedFd>, Error> {
    let mount = match mounts {
        [] => return Ok(None),
        [mount] if mount.target.is_empty() || mount.target == "/" => read_only(mount)?,
        several => {
            let several: Vec<Mount> = several.iter().map(read_only).collect::<Result<_, _>>()?;
            return Ok(Some(::mount::mount_apart(&several)?));
        }
    };
    let id_mapped = mount.options.iter().any(|option| option.starts_with("uidmap=") || option.starts_with("gidmap="));
    if is_bind(&mount) && !id_mapped {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let path = absolute(&mount, mount.source.clone())?;
        let opened = rustix::fs::openat(CWD, &path, flags, Mode::empty());
        return opened.map(Some).map_err(|errno| Error::OpenTree { path, source: errno.into() });
    }
    Ok(Some(unseen(&[mount])?))
}

/// Makes mounts that nobody sees.
pub(crate) fn unseen(mounts: &[Mount]) -> Result<OwnedFd, Error> {
    if let [mount] = mounts
        && (mount.target.is_empty() || mount.target == "/")
    {
        match ::mount::detached(mount) {
            // An older kernel, or one that takes fewer layers that way.
            Err(error) if error.code() == Code::Unimplemented => {}
            other => return Ok(other?),
        }
    }
    Ok(::mount::mount_apart(mounts)?)
}

fn is_bind(mount: &Mount) -> bool {
    match mount.kind.as_str() {
        "bind" | "rbind" => true,
        "" | "none" => mount.options.iter().any(|option| option == "bind" || option == "rbind"),
        _ => false,
    }
}

/// The mount as one that only reads.
fn read_only(mount: &Mount) -> Result<Mount, Error> {
    let mut mount = mount.clone();
    // For writers only; and a `volatile` upper directory must not be mounted a second time.
    mount.options.retain(|option| !matches!(option.as_str(), "rw" | "volatile" | "fsync=volatile"));
    if mount.kind == "overlay" {
        overlay(&mut mount)?;
    }
    if !mount.options.iter().any(|option| option == "ro") {
        mount.options.push("ro".to_owned());
    }
    Ok(mount)
}

fn overlay(mount: &mut Mount) -> Result<(), Error> {
    let value = |key: &str| mount.options.iter().find_map(|option| option.strip_prefix(key)).map(str::to_owned);
    let upper = value("upperdir=");
    let lowers = value("lowerdir=").unwrap_or_default();
    let dirs = upper.iter().cloned().chain(split_lower(&lowers).into_iter().filter(|dir| !dir.is_empty()));
    let dirs: Vec<String> = dirs.collect();
    for dir in &dirs {
        absolute(mount, dir.clone())?;
    }
    if let [only] = dirs.as_slice() {
        // Overlayfs wants two layers; one alone is what it shows.
        *mount = Mount { kind: "bind".to_owned(), source: only.clone(), target: String::new(), options: Vec::new() };
        return Ok(());
    }
    let written_only = |option: &String| {
        ["upperdir=", "workdir=", "lowerdir=", "index=", "metacopy="].iter().any(|key| option.starts_with(key))
            || (upper.is_some() && (option.starts_with("uidmap=") || option.starts_with("gidmap=")))
    };
    let mut options: Vec<String> = mount.options.iter().filter(|option| !written_only(option)).cloned().collect();
    let escaped: Vec<String> = dirs.iter().map(|dir| dir.replace('\\', r"\\").replace(':', r"\:")).collect();
    options.push(format!("lowerdir={}", escaped.join(":")));
    mount.options = options;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(kind: &str, source: &str, options: &[&str]) -> Mount {
        Mount {
            kind: kind.to_owned(),
            source: source.to_owned(),
            target: String::new(),
            options: options.iter().map(|option| (*option).to_owned()).collect(),
        }
    }

    #[test]
    fn mounts_that_only_read() {
        for (given, want) in [
            (mount("bind", "/a", &["rw", "rbind"]), Some(mount("bind", "/a", &["rbind", "ro"]))),
            (
                mount(
                    "overlay",
                    "overlay",
                    &["workdir=/w", "upperdir=/u:1", "lowerdir=/b:/a", "index=off", "volatile"],
                ),
                Some(mount("overlay", "overlay", &[r"lowerdir=/u\:1:/b:/a", "ro"])),
            ),
            (
                mount("overlay", "overlay", &["upperdir=/u", "workdir=/w", "lowerdir=/b", "userxattr", "uidmap=0:1:1"]),
                Some(mount("overlay", "overlay", &["userxattr", "lowerdir=/u:/b", "ro"])),
            ),
            (mount("overlay", "overlay", &["lowerdir=/a"]), Some(mount("bind", "/a", &["ro"]))),
            (mount("overlay", "overlay", &["lowerdir=a:/b"]), None),
            (mount("ext4", "/dev/x", &["noatime"]), Some(mount("ext4", "/dev/x", &["noatime", "ro"]))),
        ] {
            assert_eq!(read_only(&given).ok(), want, "{given:?}");
        }
    }

    #[test]
    fn trees() {
        assert!(matches!(open(&[]), Ok(None)));
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().to_str().unwrap();
        assert!(open(&[mount("bind", path, &["rw"])]).unwrap().is_some());
        for mounts in [
            vec![mount("bind", "relative", &[])],
            vec![mount("bind", "/nonexistent/x", &[])],
            vec![Mount { target: "/no/such/directory".to_owned(), ..mount("bind", path, &[]) }],
            vec![mount("overlay", "overlay", &["lowerdir=/nonexistent/a:/nonexistent/b"])],
        ] {
            assert!(open(&mounts).is_err(), "{mounts:?}");
        }
    }
}
