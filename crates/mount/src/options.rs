//! The table of mount options: fstab's, those of the runtime specification, and containerd's.

use sys::mount::attr;

use crate::{Error, IdMap, Result, idmap};

/// Attributes of a mount to set and to clear: bits of [`sys::mount::attr`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Bits to set.
    pub set: u64,
    /// Bits to clear; the whole atime mask where an atime mode is named.
    pub clear: u64,
}

impl Attributes {
    /// Whether there is nothing to change.
    pub fn is_empty(&self) -> bool {
        self.set == 0 && self.clear == 0
    }

    /// A later word wins over an earlier one about the same thing.
    fn apply(&mut self, word: Word) {
        match word {
            Word::Set(bit) => {
                self.set |= bit;
                self.clear &= !bit;
            }
            Word::Clear(bit) => {
                self.set &= !bit;
                self.clear |= bit;
            }
            Word::Atime(mode) => {
                self.set = (self.set & !attr::ATIME) | mode;
                self.clear |= attr::ATIME;
            }
            Word::AnyAtime => {
                self.set &= !attr::ATIME;
                self.clear &= !attr::ATIME;
            }
        }
    }
}

/// Whether a mount binds an existing tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bind {
    /// `bind`: the one mount.
    One,
    /// `rbind`: with all mounts below.
    Tree,
}

/// How mount events spread; set after the mount is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Propagation {
    /// [`Propagation::PRIVATE`] or one of its kin.
    pub kind: u64,
    /// For all mounts below, too.
    pub recursive: bool,
}

impl Propagation {
    /// `MS_UNBINDABLE`
    pub const UNBINDABLE: u64 = 1 << 17;
    /// `MS_PRIVATE`
    pub const PRIVATE: u64 = 1 << 18;
    /// `MS_SLAVE`
    pub const SLAVE: u64 = 1 << 19;
    /// `MS_SHARED`
    pub const SHARED: u64 = 1 << 20;
}

/// The source is a file to be put behind a loop device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loop {
    /// The device does not go through the page cache of the backing file.
    pub direct_io: bool,
}

/// Options of a mount, told apart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ParsedOptions {
    /// Attributes of this mount.
    pub attributes: Attributes,
    /// Attributes of this mount and all below it (`rro` and its kin).
    pub recursive_attributes: Attributes,
    /// `bind` or `rbind`.
    pub bind: Option<Bind>,
    /// `remount`: change an existing mount.
    pub remount: bool,
    /// Propagation changes, in the order given.
    pub propagation: Vec<Propagation>,
    /// `loop`.
    pub loop_device: Option<Loop>,
    /// `uidmap=` and `gidmap=`. A caller that has maps from elsewhere may put them here.
    pub id_map: Option<IdMap>,
    /// `idmap` (`Some(false)`) or `ridmap` (`Some(true)`): the caller has maps for this mount, as the runtime
    /// specification gives them beside the options. With `Some(true)` the maps hold for all mounts below a bind, too.
    pub id_mapped: Option<bool>,
    /// `tmpcopyup`: copy what the mount covers into it. The caller's business.
    pub copy_up: bool,
    /// Flags of the file system itself, as `mount(2)` numbers them: [`ParsedOptions::SYNCHRONOUS`] and its kin. `ro`
    /// is an attribute of the mount and of a new file system alike, and only in `attributes`.
    pub superblock_flags: u64,
    /// What is left, for the file system: `key` or `key=value`, in order.
    pub data: Vec<String>,
}

impl ParsedOptions {
    /// `MS_SYNCHRONOUS`
    pub const SYNCHRONOUS: u64 = 1 << 4;
    /// `MS_MANDLOCK`
    pub const MANDLOCK: u64 = 1 << 6;
    /// `MS_DIRSYNC`
    pub const DIRSYNC: u64 = 1 << 7;
    /// `MS_SILENT`
    pub const SILENT: u64 = 1 << 15;
    /// `MS_LAZYTIME`
    pub const LAZYTIME: u64 = 1 << 25;

    /// The flags of a new file system, with the option that stands for each.
    pub(crate) const SUPERBLOCK_WORDS: [(u64, &str); 4] = [
        (Self::SYNCHRONOUS, "sync"),
        (Self::MANDLOCK, "mand"),
        (Self::DIRSYNC, "dirsync"),
        (Self::LAZYTIME, "lazytime"),
    ];

    /// Whether the mount itself is to be read-only.
    pub fn is_read_only(&self) -> bool {
        self.attributes.set & attr::RDONLY != 0
    }
}

/// What a word does to attributes.
#[derive(Clone, Copy)]
enum Word {
    Set(u64),
    Clear(u64),
    Atime(u64),
    /// Takes an atime mode back: what a bind's source has then stays, and a new file system has the kernel's default.
    AnyAtime,
}

/// The words for attributes; with an `r` in front each holds for all mounts below, too (runtime-spec 1.3, `mounts`).
fn attribute(word: &str) -> Option<Word> {
    Some(match word {
        "ro" => Word::Set(attr::RDONLY),
        "rw" => Word::Clear(attr::RDONLY),
        "nosuid" => Word::Set(attr::NOSUID),
        "suid" => Word::Clear(attr::NOSUID),
        "nodev" => Word::Set(attr::NODEV),
        "dev" => Word::Clear(attr::NODEV),
        "noexec" => Word::Set(attr::NOEXEC),
        "exec" => Word::Clear(attr::NOEXEC),
        "nodiratime" => Word::Set(attr::NODIRATIME),
        "diratime" => Word::Clear(attr::NODIRATIME),
        "nosymfollow" => Word::Set(attr::NOSYMFOLLOW),
        "symfollow" => Word::Clear(attr::NOSYMFOLLOW),
        "noatime" => Word::Atime(attr::NOATIME),
        "strictatime" => Word::Atime(attr::STRICTATIME),
        "relatime" => Word::Atime(attr::RELATIME),
        "norelatime" | "atime" | "nostrictatime" => Word::AnyAtime,
        _ => return None,
    })
}

fn propagation(word: &str) -> Option<Propagation> {
    let (name, recursive) = match word.strip_prefix('r') {
        Some(name) => (name, true),
        None => (word, false),
    };
    let kind = match name {
        "private" => Propagation::PRIVATE,
        "slave" => Propagation::SLAVE,
        "shared" => Propagation::SHARED,
        "unbindable" => Propagation::UNBINDABLE,
        _ => return None,
    };
    Some(Propagation { kind, recursive })
}

/// A flag of the file system and whether the word switches it on.
fn superblock(word: &str) -> Option<(u64, bool)> {
    Some(match word {
        "sync" => (ParsedOptions::SYNCHRONOUS, true),
        "async" => (ParsedOptions::SYNCHRONOUS, false),
        "dirsync" => (ParsedOptions::DIRSYNC, true),
        "mand" => (ParsedOptions::MANDLOCK, true),
        "nomand" => (ParsedOptions::MANDLOCK, false),
        "lazytime" => (ParsedOptions::LAZYTIME, true),
        "nolazytime" => (ParsedOptions::LAZYTIME, false),
        "silent" => (ParsedOptions::SILENT, true),
        "loud" => (ParsedOptions::SILENT, false),
        _ => return None,
    })
}

/// Tells options apart. Does no input or output.
///
/// One string may hold several options separated by commas. What is not in the table is data for the file system. An
/// option `X-containerd.*` is an error: it was meant for the mount manager, and ignoring it would mount something else
/// than was asked for.
pub fn parse_options(options: &[String]) -> Result<ParsedOptions> {
    let mut parsed = ParsedOptions::default();
    let (mut users, mut groups) = (None, None);
    let mut direct_io = false;
    for option in options {
        // An overlay's directories, and maps, may hold commas of their own.
        let whole = ["lowerdir=", "upperdir=", "workdir=", "uidmap=", "gidmap="];
        if whole.iter().any(|key| option.starts_with(key)) {
            word(option, &mut parsed, (&mut users, &mut groups), &mut direct_io)?;
            continue;
        }
        for part in split(option) {
            word(part, &mut parsed, (&mut users, &mut groups), &mut direct_io)?;
        }
    }
    match (users, groups) {
        (Some(users), Some(groups)) => parsed.id_map = Some(IdMap { users, groups }),
        (None, None) => {}
        _ => {
            let reason = "uidmap and gidmap are only supported together";
            return Err(Error::Option { option: "uidmap/gidmap".to_owned(), reason });
        }
    }
    match &mut parsed.loop_device {
        Some(device) => device.direct_io = direct_io,
        None if direct_io => parsed.data.push("direct-io".to_owned()),
        None => {}
    }
    Ok(parsed)
}

type Ranges = Option<Vec<crate::IdRange>>;

fn word(
    option: &str,
    parsed: &mut ParsedOptions,
    (users, groups): (&mut Ranges, &mut Ranges),
    direct_io: &mut bool,
) -> Result<()> {
    let refuse = |reason| Err(Error::Option { option: option.chars().take(200).collect(), reason });
    if option.starts_with("X-containerd.") {
        return refuse("is for containerd's mount manager and was not consumed by it");
    }
    if option.contains('\0') {
        return refuse("has a NUL byte");
    }
    if let Some(change) = attribute(option) {
        parsed.attributes.apply(change);
    } else if let Some(change) = option.strip_prefix('r').and_then(attribute) {
        // The kernel has no mode "not relative": what is not one of the other two is relative.
        let change = if matches!(change, Word::AnyAtime) { Word::Atime(attr::RELATIME) } else { change };
        parsed.recursive_attributes.apply(change);
    } else if let Some(change) = propagation(option) {
        parsed.propagation.push(change);
    } else if let Some((flag, on)) = superblock(option) {
        parsed.superblock_flags = if on { parsed.superblock_flags | flag } else { parsed.superblock_flags & !flag };
    } else if let Some(map) = option.strip_prefix("uidmap=") {
        *users = Some(idmap::parse(option, map)?);
    } else if let Some(map) = option.strip_prefix("gidmap=") {
        *groups = Some(idmap::parse(option, map)?);
    } else {
        match option {
            "" | "defaults" => {}
            "bind" => parsed.bind = parsed.bind.or(Some(Bind::One)),
            "rbind" => parsed.bind = Some(Bind::Tree),
            "remount" => parsed.remount = true,
            "loop" => parsed.loop_device = Some(Loop { direct_io: false }),
            "direct-io" => *direct_io = true,
            "idmap" => parsed.id_mapped = Some(false),
            "ridmap" => parsed.id_mapped = Some(true),
            "tmpcopyup" => parsed.copy_up = true,
            _ => parsed.data.push(option.to_owned()),
        }
    }
    Ok(())
}

/// Splits at commas that are neither escaped nor inside of double quotes, as SELinux contexts have them.
fn split(option: &str) -> impl Iterator<Item = &str> {
    let (mut quoted, mut escaped) = (false, false);
    option.split(move |character| {
        let separates = character == ',' && !quoted && !escaped;
        quoted ^= character == '"' && !escaped;
        escaped = character == '\\' && !escaped;
        separates
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::IdRange;

    fn parse(options: &[&str]) -> Result<ParsedOptions> {
        parse_options(&options.iter().map(|option| (*option).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn attributes_are_set_cleared_and_overridden() {
        for (options, set, clear) in [
            (&["ro"][..], attr::RDONLY, 0),
            (&["rw"], 0, attr::RDONLY),
            (&["ro", "rw"], 0, attr::RDONLY),
            (&["rw", "ro"], attr::RDONLY, 0),
            (&["nosuid,nodev,noexec"], attr::NOSUID | attr::NODEV | attr::NOEXEC, 0),
            (&["noexec", "exec"], 0, attr::NOEXEC),
            (&["noatime"], attr::NOATIME, attr::ATIME),
            (&["noatime", "strictatime"], attr::STRICTATIME, attr::ATIME),
            (&["noatime", "relatime", "nodiratime"], attr::NODIRATIME, attr::ATIME),
            (&["noatime", "atime"], 0, 0),
            (&["norelatime"], 0, 0),
            (&["nosymfollow"], attr::NOSYMFOLLOW, 0),
            (&["defaults", ""], 0, 0),
        ] {
            let parsed = parse(options).unwrap();
            assert_eq!(parsed.attributes, Attributes { set, clear }, "{options:?}");
            assert_eq!(parsed, ParsedOptions { attributes: parsed.attributes, ..ParsedOptions::default() });
        }
        let parsed = parse(&["ro", "rrw", "rnoexec", "rrelatime"]).unwrap();
        assert_eq!(parsed.attributes, Attributes { set: attr::RDONLY, clear: 0 });
        let expected = Attributes { set: attr::NOEXEC, clear: attr::RDONLY | attr::ATIME };
        assert_eq!(parsed.recursive_attributes, expected);
    }

    #[test]
    fn binds_and_propagation() {
        assert_eq!(parse(&["bind"]).unwrap().bind, Some(Bind::One));
        for both in [["bind", "rbind"], ["rbind", "bind"]] {
            assert_eq!(parse(&both).unwrap().bind, Some(Bind::Tree));
        }
        let parsed = parse(&["rbind", "rslave", "shared"]).unwrap();
        let slave = Propagation { kind: Propagation::SLAVE, recursive: true };
        let shared = Propagation { kind: Propagation::SHARED, recursive: false };
        assert_eq!(parsed.propagation, [slave, shared]);
    }

    #[test]
    fn data_stays_in_order_and_whole() {
        let context = r#"context="system_u:object_r:x:s0:c1,c2""#;
        let parsed =
            parse(&["size=1m,mode=755", "lowerdir=/a,b:/c", context, r"key=a\,b", "userxattr", "sync"]).unwrap();
        assert_eq!(parsed.data, ["size=1m", "mode=755", "lowerdir=/a,b:/c", context, r"key=a\,b", "userxattr"]);
        assert_eq!(parsed.superblock_flags, ParsedOptions::SYNCHRONOUS);
    }

    #[test]
    fn loops_and_maps() {
        assert_eq!(parse(&["loop"]).unwrap().loop_device, Some(Loop { direct_io: false }));
        assert_eq!(parse(&["direct-io", "loop"]).unwrap().loop_device, Some(Loop { direct_io: true }));
        assert_eq!(parse(&["direct-io"]).unwrap().data, ["direct-io"]);
        let map = parse(&["uidmap=0:1000:10,10:5000:1", "gidmap=0:7:1"]).unwrap().id_map.unwrap();
        let range = |inside, outside, length| IdRange { inside, outside, length };
        assert_eq!(map.users, [range(0, 1000, 10), range(10, 5000, 1)]);
        assert_eq!(map.groups, [range(0, 7, 1)]);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for option in [
            "X-containerd.mkdir.path=/x",
            "ro,X-containerd.anything",
            "uidmap=0:0:1",
            "uidmap=1:2",
            "gidmap=a:b:c",
            "gidmap=0:0:4294967296",
            "a\0b",
        ] {
            assert!(matches!(parse(&[option]).unwrap_err(), Error::Option { .. }), "{option}");
        }
    }
}
