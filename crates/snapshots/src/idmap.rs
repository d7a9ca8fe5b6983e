//! The id mapping labels of a snapshot: which host user owns what is root's inside.

use model::Labels;

use crate::{Error, GID_MAPPING_LABEL, UID_MAPPING_LABEL};

/// Most ranges in a mapping; the kernel takes 340 lines.
const MAX_RANGES: usize = 340;

/// The host's user and group for the root of the snapshot, where `labels` map ids; `None` where they do not.
pub(crate) fn mapped_root(labels: &Labels) -> Result<Option<(u32, u32)>, Error> {
    let user = labels.get(UID_MAPPING_LABEL).map(|value| root_of(UID_MAPPING_LABEL, value)).transpose()?;
    let group = labels.get(GID_MAPPING_LABEL).map(|value| root_of(GID_MAPPING_LABEL, value)).transpose()?;
    // One label without the other leaves the other kind of ids as it is.
    Ok((user.is_some() || group.is_some()).then(|| (user.unwrap_or(0), group.unwrap_or(0))))
}

/// What 0 becomes under a mapping of `container:host:length` triples.
fn root_of(label: &'static str, value: &str) -> Result<u32, Error> {
    let refuse = || Error::IdMapping { label, value: value.chars().take(64).collect() };
    let mut root = None;
    for (number, triple) in value.split(',').enumerate() {
        let mut fields = triple.split(':').map(|field| field.trim().parse::<u32>().ok());
        let (Some(Some(inside)), Some(Some(outside)), Some(Some(length)), None) =
            (fields.next(), fields.next(), fields.next(), fields.next())
        else {
            return Err(refuse());
        };
        // The highest id, 4294967295, is "no id" to the kernel.
        if number >= MAX_RANGES
            || length == 0
            || inside.checked_add(length).is_none()
            || outside.checked_add(length).is_none()
        {
            return Err(refuse());
        }
        if inside == 0 && root.replace(outside).is_some() {
            return Err(refuse());
        }
    }
    root.ok_or_else(refuse)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mapping_labels() {
        for (uid, gid, want) in [
            (None, None, Some(None)),
            (Some("0:100000:65536"), Some("0:200000:65536"), Some(Some((100_000, 200_000)))),
            (Some("1:1:9,0:4000000000:1"), Some("0:7:1"), Some(Some((4_000_000_000, 7)))),
            (Some("0:100000:65536"), None, Some(Some((100_000, 0)))),
            (Some(""), None, None),
            (Some("0:1"), None, None),
            (Some("0:1:1:1"), None, None),
            (Some("0:1:0"), None, None),
            (Some("1:1:1"), None, None),
            (Some("0:1:1,0:2:1"), None, None),
            (Some("0:4294967295:1"), None, None),
            (Some("0:-1:1"), None, None),
            (Some("0:x:1"), None, None),
        ] {
            let mut labels = Labels::new();
            labels.extend(uid.map(|value| (UID_MAPPING_LABEL.to_owned(), value.to_owned())));
            labels.extend(gid.map(|value| (GID_MAPPING_LABEL.to_owned(), value.to_owned())));
            assert_eq!(mapped_root(&labels).ok(), want, "{uid:?} {gid:?}");
        }
    }
}
