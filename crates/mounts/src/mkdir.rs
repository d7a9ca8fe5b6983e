//! `mkdir/…`: directories that a mount needs, named by options `X-containerd.mkdir.path=PATH[:MODE[:UID:GID]]`.

use std::path::Path;

use model::Mount;
use rustix::fs::{FileType, Gid, Uid};

use crate::Error;
use crate::roots::Roots;

const PREFIX: &str = "X-containerd.mkdir.";
const DEFAULT_MODE: u32 = 0o700;

/// A directory to make.
#[derive(Debug, PartialEq, Eq)]
struct Wanted<'a> {
    path: &'a Path,
    mode: u32,
    owner: Option<(u32, u32)>,
}

/// Makes the directories and takes the options away. Their parents must exist; one that exists must have the mode.
pub(crate) fn mkdir(mount: &mut Mount, roots: &Roots) -> Result<(), Error> {
    for option in mount.options.iter().filter(|option| option.starts_with(PREFIX)) {
        make(option, &parse(option)?, roots)?;
    }
    mount.options.retain(|option| !option.starts_with(PREFIX));
    Ok(())
}

fn parse(option: &str) -> Result<Wanted<'_>, Error> {
    let wrong = |problem| Error::Option { option: option.to_owned(), problem };
    let value = option.strip_prefix(PREFIX).and_then(|option| option.strip_prefix("path="));
    let value = value.ok_or_else(|| wrong("must be path=PATH[:MODE[:UID:GID]]"))?;
    let parts: Vec<&str> = value.split(':').collect();
    let mode = |text: &str| {
        let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o777);
        mode.ok_or_else(|| wrong("the mode must be octal, 777 at most"))
    };
    let id = |text: &str| text.parse().ok().filter(|id| *id != u32::MAX).ok_or_else(|| wrong("no user or group id"));
    let (path, mode, owner) = match parts.as_slice() {
        [path] => (*path, DEFAULT_MODE, None),
        [path, bits] => (*path, mode(bits)?, None),
        [path, bits, uid, gid] => (*path, mode(bits)?, Some((id(uid)?, id(gid)?))),
        _ => return Err(wrong("must be path=PATH[:MODE[:UID:GID]]")),
    };
    Ok(Wanted { path: Path::new(path), mode, owner })
}

fn make(option: &str, wanted: &Wanted<'_>, roots: &Roots) -> Result<(), Error> {
    let place = roots.find(wanted.path)?;
    if let Some(stat) = place.stat()? {
        let unsupported = |problem| Error::Unsupported { option: option.to_owned(), problem };
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            return Err(unsupported("something else is there"));
        }
        if stat.st_mode & 0o777 != wanted.mode {
            return Err(unsupported("the directory exists with another mode"));
        }
        if wanted.owner.is_some_and(|owner| owner != (stat.st_uid, stat.st_gid)) {
            return Err(unsupported("the directory exists and is somebody else's"));
        }
        return Ok(());
    }
    place.mkdir(wanted.mode, wanted.owner.map(|(uid, gid)| (Uid::from_raw(uid), Gid::from_raw(gid))))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt as _, symlink};

    use model::Coded as _;

    use super::*;

    #[test]
    fn directories() {
        let scratch = tempfile::tempdir().unwrap();
        let root = scratch.path().join("root");
        std::fs::create_dir(&root).unwrap();
        symlink("/", root.join("out")).unwrap();
        let roots = Roots::open(&[&root]).unwrap();
        let run = |rest: &str| {
            let option = format!("X-containerd.mkdir.{rest}");
            let mut mount = Mount { options: vec!["ro".into(), option], ..Mount::default() };
            mkdir(&mut mount, &roots).map(|()| mount.options)
        };
        let at = |name: &str| format!("path={}/{name}", root.display());
        assert_eq!(run(&at("a")).unwrap(), ["ro"]);
        assert_eq!(run(&at("a")).unwrap(), ["ro"]);
        run(&at("a/b:0751:7:8")).unwrap();
        let made = std::fs::metadata(root.join("a/b")).unwrap();
        assert_eq!((made.mode() & 0o7777, made.uid(), made.gid()), (0o751, 7, 8));
        // A link leads nowhere but into the root again.
        run(&at("out/c")).unwrap();
        assert!(root.join("c").is_dir() && !Path::new("/c").exists());
        for (rest, code) in [
            (at("a:0755"), model::Code::Unimplemented),
            (at("a/b:0751:0:0"), model::Code::Unimplemented),
            (at("out"), model::Code::Unimplemented),
            (at("x/y/z"), model::Code::Unknown),
            (at("..:700"), model::Code::Unknown),
            (at("x:9"), model::Code::InvalidArgument),
            (at("x:4755"), model::Code::InvalidArgument),
            (at("x:700:1"), model::Code::InvalidArgument),
            (at("x:700:a:b"), model::Code::InvalidArgument),
            (at("x:700:4294967295:0"), model::Code::InvalidArgument),
            ("path=".into(), model::Code::Unimplemented),
            ("path=/etc/x".into(), model::Code::Unimplemented),
            (format!("path={}-beside/x", root.display()), model::Code::Unimplemented),
            ("other=1".into(), model::Code::InvalidArgument),
        ] {
            let error = run(&rest).unwrap_err();
            assert_eq!(error.code(), code, "{rest}: {error}");
        }
    }
}
