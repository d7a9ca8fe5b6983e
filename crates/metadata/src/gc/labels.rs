//! Labels that steer the collection.

use model::Timestamp;

const PREFIX: &str = "containerd.io/gc.";
/// Makes content and snapshots roots, whatever its value.
pub(crate) const ROOT: &str = "containerd.io/gc.root";
/// When leases and images end, RFC 3339.
pub(crate) const EXPIRE: &str = "containerd.io/gc.expire";
/// Makes a lease hold its members only, not what their labels refer to.
pub(crate) const FLAT: &str = "containerd.io/gc.flat";

/// What a label refers to, or is referred to by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target<'a> {
    Content(&'a str),
    Image(&'a str),
    Container(&'a str),
    Snapshot { snapshotter: &'a str, key: &'a str },
    Outside { kind: &'static str, id: &'a str },
}

/// A reference in a label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reference<'a> {
    /// The labelled object keeps the target.
    To(Target<'a>),
    /// The target keeps the labelled object.
    From(Target<'a>),
}

/// Reads one label: `gc.ref.content`, `gc.ref.image`, `gc.ref.stream`, `gc.ref.mount` and `gc.ref.snapshot.<snapshotter>`, and `gc.bref.*` with
/// `container` besides. A name may follow behind `.` or `/` (behind `/` for snapshots) and makes several references of
/// one kind possible.
pub(crate) fn reference<'a>(key: &'a str, value: &'a str) -> Option<Reference<'a>> {
    let rest = key.strip_prefix(PREFIX)?;
    if let Some(kind) = rest.strip_prefix("ref.") {
        let target = target(kind, value)?;
        // A container is a root; nothing need keep it.
        return (!matches!(target, Target::Container(_))).then_some(Reference::To(target));
    }
    rest.strip_prefix("bref.").and_then(|kind| target(kind, value)).map(Reference::From)
}

/// Whether labels name something that keeps the labelled object.
pub(crate) fn has_back_reference(labels: &model::Labels) -> bool {
    labels.iter().any(|(key, value)| matches!(reference(key, value), Some(Reference::From(_))))
}

fn target<'a>(kind: &'a str, value: &'a str) -> Option<Target<'a>> {
    if let Some(rest) = kind.strip_prefix("snapshot.") {
        let snapshotter = rest.split('/').next().unwrap_or_default();
        return Some(Target::Snapshot { snapshotter, key: value });
    }
    let named = |word: &str| {
        kind.strip_prefix(word).is_some_and(|rest| rest.is_empty() || rest.starts_with('.') || rest.starts_with('/'))
    };
    if named("content") {
        Some(Target::Content(value))
    } else if named("image") {
        Some(Target::Image(value))
    } else if named("container") {
        Some(Target::Container(value))
    } else {
        let outside = ["stream", "mount"].into_iter().find(|kind| named(kind));
        outside.map(|kind| Target::Outside { kind, id: value })
    }
}

/// Whether labels say that their object has expired. A value that is no time never expires.
pub(crate) fn expired(labels: &model::Labels, now: Timestamp) -> bool {
    labels.get(EXPIRE).and_then(|text| parse_rfc3339(text)).is_some_and(|end| end < now)
}

/// `2026-11-23T09:24:00.5+01:00` as a timestamp (RFC 3339, section 5.6).
fn parse_rfc3339(text: &str) -> Option<Timestamp> {
    let bytes = text.as_bytes();
    let number = |from: usize, to: usize| -> Option<i64> {
        let digits = bytes.get(from..to)?;
        digits.iter().all(u8::is_ascii_digit).then(|| std::str::from_utf8(digits).ok()?.parse().ok())?
    };
    let mark = |at: usize, marks: &[u8]| bytes.get(at).is_some_and(|byte| marks.contains(byte));
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    let shape = mark(4, b"-") && mark(7, b"-") && mark(10, b"Tt ") && mark(13, b":") && mark(16, b":");
    let range = (1..=12).contains(&month) && (1..=31).contains(&day) && hour < 24 && minute < 60 && second <= 60;
    if !shape || !range {
        return None;
    }
    let mut at = 19;
    let mut nanos = 0;
    if mark(at, b".") {
        let end = (at + 1..bytes.len()).find(|at| !bytes[*at].is_ascii_digit()).unwrap_or(bytes.len());
        let digits = &text[at + 1..end.min(at + 10)];
        nanos = format!("{digits:0<9}").parse().ok().filter(|_| !digits.is_empty())?;
        at = end;
    }
    let offset = match bytes.get(at..)? {
        b"Z" | b"z" => 0,
        [sign @ (b'+' | b'-'), _, _, b':', _, _] => {
            let seconds = number(at + 1, at + 3)? * 3600 + number(at + 4, at + 6)? * 60;
            if *sign == b'-' { -seconds } else { seconds }
        }
        _ => return None,
    };
    let seconds = days_since_1970(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second - offset;
    Some(Timestamp { seconds, nanos })
}

/// Days from 1970-01-01 to a date of the Gregorian calendar, which may be before it.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    // Years are taken to begin in March, so that the leap day is the last of its year.
    let year = if month <= 2 { year - 1 } else { year };
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    year * 365 + leap_days + day_of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references() {
        use Reference::{From, To};
        use Target::{Container, Content, Image, Snapshot};
        let snapshot = |snapshotter| Snapshot { snapshotter, key: "v" };
        for (key, want) in [
            ("containerd.io/gc.ref.content", Some(To(Content("v")))),
            ("containerd.io/gc.ref.content.l.0", Some(To(Content("v")))),
            ("containerd.io/gc.ref.content/config", Some(To(Content("v")))),
            ("containerd.io/gc.ref.contentfoo", None),
            ("containerd.io/gc.ref.image.x", Some(To(Image("v")))),
            ("containerd.io/gc.ref.images", None),
            ("containerd.io/gc.ref.container", None),
            ("containerd.io/gc.ref.snapshot.overlayfs", Some(To(snapshot("overlayfs")))),
            ("containerd.io/gc.ref.snapshot.overlayfs/x", Some(To(snapshot("overlayfs")))),
            ("containerd.io/gc.ref.snapshot.a.b/x.y", Some(To(snapshot("a.b")))),
            ("containerd.io/gc.ref.snapshot", None),
            ("containerd.io/gc.bref.container", Some(From(Container("v")))),
            ("containerd.io/gc.bref.container.a", Some(From(Container("v")))),
            ("containerd.io/gc.bref.content/a", Some(From(Content("v")))),
            ("containerd.io/gc.bref.image", Some(From(Image("v")))),
            ("containerd.io/gc.bref.snapshot.native/a", Some(From(snapshot("native")))),
            ("containerd.io/gc.root", None),
            ("containerd.io/gc.cond.snapshot.x", None),
            ("other/gc.ref.content", None),
        ] {
            assert_eq!(reference(key, "v"), want, "{key}");
        }
    }

    #[test]
    fn times() {
        for (text, want) in [
            ("1970-01-01T00:00:00Z", Some((0, 0))),
            ("2026-11-23T09:24:00Z", Some((1_795_425_840, 0))),
            ("2026-11-23T10:24:00.25+01:00", Some((1_795_425_840, 250_000_000))),
            ("2026-11-23T04:24:00.123456789123-05:00", Some((1_795_425_840, 123_456_789))),
            ("2000-02-29T00:00:00Z", Some((951_782_400, 0))),
            ("1969-12-31T23:59:59Z", Some((-1, 0))),
            ("0001-01-01T00:00:00Z", Some((Timestamp::ZERO.seconds, 0))),
            ("2026-11-23", None),
            ("2026-11-23T09:24:00", None),
            ("2026-13-23T09:24:00Z", None),
            ("2026-11-23T09:24:00.Z", None),
            ("2026-11-23T09:24:00+0100", None),
            ("+026-11-23T09:24:00Z", None),
            ("ääääääääääääää", None),
            ("", None),
        ] {
            let parsed = parse_rfc3339(text).map(|time| (time.seconds, time.nanos));
            assert_eq!(parsed, want, "{text}");
        }
    }
}
