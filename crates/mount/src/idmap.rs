//! Id-mapped mounts: the maps, and a user namespace that carries them.

use std::fmt::Write as _;
use std::os::fd::OwnedFd;

use crate::{Error, Result};

/// A range of ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdRange {
    /// First id in the file system.
    pub inside: u32,
    /// First id as processes of the host see it through the mount.
    pub outside: u32,
    /// How many.
    pub length: u32,
}

/// How an id-mapped mount translates owners.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdMap {
    /// User ids.
    pub users: Vec<IdRange>,
    /// Group ids.
    pub groups: Vec<IdRange>,
}

impl IdMap {
    /// A user namespace with these maps, for `mount_setattr(MOUNT_ATTR_IDMAP)`.
    pub fn user_namespace(&self) -> Result<OwnedFd> {
        let lines = |ranges: &[IdRange]| {
            ranges.iter().fold(String::new(), |mut lines, range| {
                // Writing to a String cannot fail.
                let _ = writeln!(lines, "{} {} {}", range.inside, range.outside, range.length);
                lines
            })
        };
        sys::userns::with_maps(&lines(&self.users), &lines(&self.groups))
            .map_err(|source| Error::UserNamespace { source })
    }
}

/// Parses `inside:outside:length`, several separated by commas.
pub(crate) fn parse(option: &str, map: &str) -> Result<Vec<IdRange>> {
    let range = |text: &str| {
        let mut numbers = text.split(':').map(str::parse);
        let range =
            IdRange { inside: numbers.next()?.ok()?, outside: numbers.next()?.ok()?, length: numbers.next()?.ok()? };
        numbers.next().is_none().then_some(range)
    };
    map.split(',').map(range).collect::<Option<Vec<_>>>().ok_or_else(|| Error::Option {
        option: option.chars().take(200).collect(),
        reason: "ranges are written container-id:host-id:size, separated by commas",
    })
}
