//! The formats of control files.

/// A number; `max` is `u64::MAX`. What cannot be read is 0: a statistic is no reason to fail.
pub(crate) fn number(text: &str) -> u64 {
    match text.trim() {
        "max" => u64::MAX,
        digits => digits.parse().unwrap_or(0),
    }
}

/// Lines of a name and a number, as `memory.stat` has them.
pub(crate) fn keyed(text: &str) -> impl Iterator<Item = (&str, u64)> {
    text.lines().filter_map(|line| line.split_once(' ')).map(|(key, value)| (key, number(value)))
}

/// The number that a file of [`keyed`] lines has for a name; 0 if none.
pub(crate) fn value_of(text: &str, name: &str) -> u64 {
    keyed(text).find(|(key, _)| *key == name).map_or(0, |(_, value)| value)
}

/// A device number `major:minor`.
pub(crate) fn device(text: &str) -> Option<(u64, u64)> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_keys() {
        assert_eq!(number("12\n"), 12);
        assert_eq!(number("max\n"), u64::MAX);
        assert_eq!(number("-1"), 0);
        assert_eq!(value_of("a 1\nbb 2\nb 3\n", "b"), 3);
        assert_eq!(value_of("", "b"), 0);
        assert_eq!(device("8:16"), Some((8, 16)));
        assert_eq!(device("8"), None);
    }
}
