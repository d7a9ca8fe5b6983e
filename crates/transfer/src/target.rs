use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;

use archive::ApplyOptions;
use model::Mount;

use crate::Error;

/// The directory behind a snapshot's mounts, and how a layer is written there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// The upper directory of an overlay over `lowers`, nearest first: removals become overlayfs's marks.
    Upper {
        /// The upper directory.
        dir: PathBuf,
        /// The directories below it.
        lowers: Vec<PathBuf>,
    },
    /// A directory that holds all files itself: removals are removals.
    InPlace(PathBuf),
    /// File systems that have to be mounted to be written to.
    Mounted(Vec<Mount>),
}

impl Target {
    /// Finds the directory behind the mounts of an active snapshot. UNIMPLEMENTED for a mount without a type.
    pub fn of(mounts: &[Mount]) -> Result<Self, Error> {
        let Some(last) = mounts.last() else { return Err(Error::NoMounts) };
        let mount = match mounts {
            [mount] if mount.target.is_empty() || mount.target == "/" => mount,
            // What is mounted last, or below the rest, is written to as well as that.
            _ if last.options.iter().any(|option| option == "ro") => return Err(Error::ReadOnly),
            several => return Ok(Self::Mounted(several.to_vec())),
        };
        match mount.kind.as_str() {
            "overlay" => overlay(mount),
            "bind" | "rbind" => bind(mount),
            // fstab's way to say it.
            "" | "none" if mount.options.iter().any(|option| option == "bind" || option == "rbind") => bind(mount),
            "" | "none" => Err(Error::Unsupported("a mount without a type".to_owned())),
            _ if mount.options.iter().any(|option| option == "ro") => Err(Error::ReadOnly),
            _ => Ok(Self::Mounted(vec![mount.clone()])),
        }
    }

    /// The directory to write to, open for as long as that takes.
    pub(crate) fn open(&self) -> Result<Opened, Error> {
        match self {
            Self::Upper { dir, .. } | Self::InPlace(dir) => Ok(Opened { path: dir.clone(), mount: None }),
            Self::Mounted(mounts) => {
                let mount = crate::tree::unseen(mounts)?;
                Ok(Opened { path: sys::fs::proc_path(mount.as_fd()).into(), mount: Some(mount) })
            }
        }
    }

    pub(crate) fn options(&self) -> ApplyOptions {
        match self {
            Self::Upper { lowers, .. } => ApplyOptions::upper(lowers.clone()),
            // A mounted file system makes of a removal what it needs.
            Self::InPlace(_) | Self::Mounted(_) => ApplyOptions::in_place(),
        }
    }
}

/// A directory that is written to.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) path: PathBuf,
    /// The mount that it is the root of, if it is ours.
    pub(crate) mount: Option<OwnedFd>,
}

fn overlay(mount: &Mount) -> Result<Target, Error> {
    let (mut upper, mut lowers, mut mounted) = (None, Vec::new(), false);
    for option in &mount.options {
        match option.split_once('=') {
            Some(("upperdir", dir)) => upper = Some(absolute(mount, dir.to_owned())?),
            Some(("lowerdir", dirs)) => {
                for dir in split_lower(dirs) {
                    lowers.push(absolute(mount, dir)?);
                }
            }
            // The kernel knows how to write marks of the user form.
            None if option == "userxattr" => mounted = true,
            None if option == "ro" => return Err(Error::ReadOnly),
            _ => {}
        }
    }
    match upper {
        Some(_) if mounted => Ok(Target::Mounted(vec![mount.clone()])),
        Some(dir) => Ok(Target::Upper { dir, lowers }),
        None => Err(Error::ReadOnly),
    }
}

fn bind(mount: &Mount) -> Result<Target, Error> {
    if mount.options.iter().any(|option| option == "ro") {
        return Err(Error::ReadOnly);
    }
    Ok(Target::InPlace(absolute(mount, mount.source.clone())?))
}

pub(crate) fn absolute(mount: &Mount, path: String) -> Result<PathBuf, Error> {
    let path = PathBuf::from(path);
    if path.is_absolute() {
        return Ok(path);
    }
    Err(Error::BadMount { kind: head(&mount.kind), reason: "its directories must be absolute paths" })
}

/// The directories of a `lowerdir` option: separated by colons, where a backslash takes a character's meaning.
pub(crate) fn split_lower(dirs: &str) -> Vec<String> {
    let mut found = vec![String::new()];
    let mut characters = dirs.chars();
    while let Some(character) = characters.next() {
        match (character, found.last_mut()) {
            (':', _) => found.push(String::new()),
            ('\\', Some(last)) => last.extend(characters.next()),
            (other, Some(last)) => last.push(other),
            (_, None) => {}
        }
    }
    found
}

fn head(text: &str) -> String {
    text.chars().take(64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{Code, Coded as _};

    fn mount(kind: &str, source: &str, options: &[&str]) -> Mount {
        Mount {
            kind: kind.to_owned(),
            source: source.to_owned(),
            target: String::new(),
            options: options.iter().map(|option| (*option).to_owned()).collect(),
        }
    }

    #[test]
    fn targets() {
        let upper = |lowers: &[&str]| Target::Upper {
            dir: "/s/2/fs".into(),
            lowers: lowers.iter().map(PathBuf::from).collect(),
        };
        let layers = ["workdir=/s/2/work", "upperdir=/s/2/fs", "lowerdir=/s/1/fs:/s/0/fs", "index=off"];
        for (mounts, want) in [
            (vec![mount("overlay", "overlay", &layers)], Ok(upper(&["/s/1/fs", "/s/0/fs"]))),
            (
                vec![mount("overlay", "overlay", &["upperdir=/s/2/fs", r"lowerdir=/a\:b:/c\\d"])],
                Ok(upper(&["/a:b", r"/c\d"])),
            ),
            (vec![mount("bind", "/s/1/fs", &["rw", "rbind"])], Ok(Target::InPlace("/s/1/fs".into()))),
            (vec![mount("", "/s/1/fs", &["rbind"])], Ok(Target::InPlace("/s/1/fs".into()))),
            (vec![mount("bind", "/s/1/fs", &["ro", "rbind"])], Err(Code::FailedPrecondition)),
            (vec![mount("overlay", "overlay", &["lowerdir=/a:/b"])], Err(Code::FailedPrecondition)),
            (vec![mount("overlay", "overlay", &["upperdir=a", "lowerdir=/b"])], Err(Code::InvalidArgument)),
            (vec![mount("overlay", "overlay", &["upperdir=/a", "lowerdir=/b:"])], Err(Code::InvalidArgument)),
            (vec![mount("bind", "", &["rw"])], Err(Code::InvalidArgument)),
            (vec![mount("", "", &[])], Err(Code::Unimplemented)),
            (vec![mount("ext4", "/dev/sda", &[])], Ok(Target::Mounted(vec![mount("ext4", "/dev/sda", &[])]))),
            (vec![mount("ext4", "/dev/sda", &["ro"])], Err(Code::FailedPrecondition)),
            (
                vec![mount("bind", "/a", &[]), mount("bind", "/b", &[])],
                Ok(Target::Mounted(vec![mount("bind", "/a", &[]), mount("bind", "/b", &[])])),
            ),
            (vec![mount("bind", "/a", &[]), mount("bind", "/b", &["ro"])], Err(Code::FailedPrecondition)),
            (vec![], Err(Code::InvalidArgument)),
        ] {
            assert_eq!(Target::of(&mounts).map_err(|error| error.code()), want, "{mounts:?}");
        }
    }
}
