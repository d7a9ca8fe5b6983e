//! Annotations `org.systemd.property.<Name>`: properties of the scope that whoever writes the specification may set.
//!
//! Annotations often come from people who may start containers but do not rule over the host, so only properties that
//! say how the scope is stopped, collected, ordered and weighed are taken, each with its own type. What starts or
//! stops other units, moves the scope, gives away control over it or puts processes into it is refused by name
//! (CVE-2024-3154 is what comes of passing everything on).

use crate::{Error, Result};

use super::Property;
use super::wire::Value;

/// What the key of an annotation begins with.
const PREFIX: &str = "org.systemd.property.";

/// The type of a property, in the words of D-Bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Type {
    Bool,
    /// `i`
    Signal,
    /// `t`
    Number,
    /// `t`, microseconds; may be given in seconds under the name that unit files have.
    Time,
    /// `s`, one of these.
    Word(&'static [&'static str]),
    /// `s`
    Text,
    /// `as`, names of units.
    Units,
}

/// The properties that may be set.
const KNOWN: [(&str, Type); 30] = [
    ("TimeoutStopUSec", Type::Time),
    ("RuntimeMaxUSec", Type::Time),
    ("RuntimeRandomizedExtraUSec", Type::Time),
    ("CollectMode", Type::Word(&["inactive", "inactive-or-failed"])),
    ("KillMode", Type::Word(&["control-group", "process", "mixed", "none"])),
    ("KillSignal", Type::Signal),
    ("FinalKillSignal", Type::Signal),
    ("SendSIGKILL", Type::Bool),
    ("SendSIGHUP", Type::Bool),
    ("OOMPolicy", Type::Word(&["continue", "stop", "kill"])),
    ("Description", Type::Text),
    ("DefaultDependencies", Type::Bool),
    ("After", Type::Units),
    ("Before", Type::Units),
    ("PartOf", Type::Units),
    ("CPUWeight", Type::Number),
    ("CPUShares", Type::Number),
    ("IOWeight", Type::Number),
    ("BlockIOWeight", Type::Number),
    ("MemoryMin", Type::Number),
    ("MemoryLow", Type::Number),
    ("MemoryHigh", Type::Number),
    ("MemoryMax", Type::Number),
    ("MemorySwapMax", Type::Number),
    ("MemoryZSwapMax", Type::Number),
    ("TasksMax", Type::Number),
    ("IPAccounting", Type::Bool),
    ("ManagedOOMSwap", Type::Word(&["auto", "kill"])),
    ("ManagedOOMMemoryPressure", Type::Word(&["auto", "kill"])),
    ("ManagedOOMPreference", Type::Word(&["none", "avoid", "omit"])),
];

/// The properties that the annotations ask for; other annotations mean nothing here.
pub(super) fn properties<'text>(annotations: impl Iterator<Item = (&'text str, &'text str)>) -> Result<Vec<Property>> {
    annotations
        .filter_map(|(key, value)| Some((key.strip_prefix(PREFIX)?, value)))
        .map(|(name, value)| property(name, value))
        .collect()
}

fn property(name: &str, value: &str) -> Result<Property> {
    let refuse = |reason| {
        let short = |text: &str| text.chars().take(200).collect();
        Err(Error::Property { name: short(name), value: short(value), reason })
    };
    let known = |name: &str| KNOWN.iter().find(|(known, _)| *known == name).copied();
    // Unit files write TimeoutStopSec where the bus says TimeoutStopUSec.
    let seconds = name.strip_suffix("Sec").filter(|stem| !stem.ends_with('U'));
    let in_seconds = seconds.and_then(|stem| known(&format!("{stem}USec")));
    let Some((name, kind)) = known(name).or(in_seconds) else {
        return refuse("is not a property that may be set by an annotation");
    };
    let Some(literal) = Literal::parse(value.trim()) else {
        return refuse("cannot be read: numbers, true, false, 'text' and ['text'] are understood");
    };
    let scale = if in_seconds.is_some() { 1_000_000.0 } else { 1.0 };
    let value = match (kind, literal) {
        (Type::Bool, Literal::Bool(value)) => Value::Bool(value),
        (Type::Signal, Literal::Number(number)) if (1..=64).contains(&number) => {
            Value::I32(i32::try_from(number).unwrap_or(0))
        }
        (Type::Number, Literal::Number(number)) => Value::U64(number),
        (Type::Time, Literal::Number(number)) if in_seconds.is_none() => Value::U64(number),
        (Type::Time, Literal::Number(number)) => match number.checked_mul(1_000_000) {
            Some(number) => Value::U64(number),
            None => return refuse("is too long a time"),
        },
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the range was just checked")]
        (Type::Time, Literal::Fraction(number)) if (0.0..1e12).contains(&number) => Value::U64((number * scale) as u64),
        (Type::Word(words), Literal::Text(text)) if words.contains(&text.as_str()) => Value::Text(text),
        (Type::Text, Literal::Text(text)) => Value::Text(text),
        (Type::Units, Literal::Texts(list)) if list.iter().all(|name| super::name::is_unit_name(name)) => {
            Value::Texts(list)
        }
        _ => return refuse("is not of the property's type, or not one of its values"),
    };
    Ok(Property { name: name.into(), value })
}

/// A value in the text format of GVariant, as far as the types above need it.
#[derive(Clone, Debug, PartialEq)]
enum Literal {
    Bool(bool),
    Number(u64),
    Fraction(f64),
    Text(String),
    Texts(Vec<String>),
}

impl Literal {
    fn parse(text: &str) -> Option<Self> {
        match text {
            "true" => return Some(Self::Bool(true)),
            "false" => return Some(Self::Bool(false)),
            _ => {}
        }
        if let Some(list) = text.strip_prefix('[') {
            return Self::list(list);
        }
        if text.starts_with(['\'', '"']) {
            let (text, rest) = quoted(text)?;
            return rest.trim().is_empty().then_some(Self::Text(text));
        }
        let types = ["byte ", "int16 ", "uint16 ", "int32 ", "uint32 ", "int64 ", "uint64 ", "double "];
        let number = types.iter().find_map(|kind| text.strip_prefix(kind)).unwrap_or(text).trim();
        if let Some(hexadecimal) = number.strip_prefix("0x") {
            return u64::from_str_radix(hexadecimal, 16).ok().map(Self::Number);
        }
        if !number.starts_with(|first: char| first.is_ascii_digit()) {
            return None;
        }
        number
            .parse()
            .ok()
            .map(Self::Number)
            .or_else(|| number.parse().ok().filter(|number: &f64| number.is_finite()).map(Self::Fraction))
    }

    fn list(mut rest: &str) -> Option<Self> {
        let mut list = Vec::new();
        rest = rest.trim_start();
        while !rest.starts_with(']') {
            let (text, tail) = quoted(rest)?;
            list.push(text);
            rest = tail.trim_start();
            match rest.strip_prefix(',') {
                Some(tail) => rest = tail.trim_start(),
                None if rest.starts_with(']') => {}
                None => return None,
            }
        }
        (rest.trim_end() == "]").then_some(Self::Texts(list))
    }
}

/// The text between two quotes of one kind, and what follows. A backslash takes the next character as it is; those
/// before a letter or digit would be more than that, and are not understood.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut characters = text.char_indices();
    let (_, quote) = characters.next().filter(|(_, first)| matches!(first, '\'' | '"'))?;
    let mut value = String::new();
    while let Some((at, character)) = characters.next() {
        match character {
            '\\' => value.push(characters.next().map(|(_, next)| next).filter(|next| !next.is_ascii_alphanumeric())?),
            _ if character == quote => return Some((value, &text[at + character.len_utf8()..])),
            // Nothing that a unit is told needs them, and D-Bus forbids the one.
            '\0' | '\n' => return None,
            _ => value.push(character),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_have_the_type_of_the_property() {
        let text = |text: &str| Value::Text(text.to_owned());
        for (name, value, expected, found) in [
            ("TimeoutStopUSec", "uint64 123456789", "TimeoutStopUSec", Value::U64(123_456_789)),
            ("TimeoutStopSec", "1", "TimeoutStopUSec", Value::U64(1_000_000)),
            ("RuntimeMaxSec", "2.5", "RuntimeMaxUSec", Value::U64(2_500_000)),
            ("CollectMode", "'inactive-or-failed'", "CollectMode", text("inactive-or-failed")),
            ("KillSignal", "int32 15", "KillSignal", Value::I32(15)),
            ("SendSIGKILL", " false ", "SendSIGKILL", Value::Bool(false)),
            ("CPUWeight", "0x10", "CPUWeight", Value::U64(16)),
            ("Description", r#""it's \"mine\"""#, "Description", text(r#"it's "mine""#)),
            (
                "After",
                "['a.service', \"b.target\"]",
                "After",
                Value::Texts(vec!["a.service".to_owned(), "b.target".to_owned()]),
            ),
            ("Before", "[]", "Before", Value::Texts(Vec::new())),
        ] {
            let property = property(name, value).unwrap();
            assert_eq!((property.name.as_ref(), property.value), (expected, found), "{name}");
        }
    }

    #[test]
    fn what_rules_over_the_host_is_refused() {
        for name in [
            "Delegate",
            "DelegateControllers",
            "Slice",
            "PIDs",
            "PIDFDs",
            "Controller",
            "Wants",
            "Requires",
            "BindsTo",
            "Upholds",
            "Conflicts",
            "OnFailure",
            "OnSuccess",
            "SuccessAction",
            "FailureAction",
            "JobTimeoutAction",
            "ExecStartPre",
            "ExecStopPost",
            "DeviceAllow",
            "DevicePolicy",
            "BPFProgram",
            "IPIngressFilterPath",
            "User",
            "delegate",
            "",
            "../x",
            "USec",
            "Sec",
        ] {
            let error = property(name, "true").unwrap_err();
            assert!(matches!(error, Error::Property { .. }), "{name}: {error}");
        }
    }

    #[test]
    fn values_that_cannot_be_meant_are_refused() {
        for (name, value) in [
            ("CollectMode", "inactive"),
            ("CollectMode", "'nonsense'"),
            ("CollectMode", "'inactive' 'x'"),
            ("CollectMode", "'inactive"),
            ("TimeoutStopUSec", "-1"),
            ("TimeoutStopUSec", "'1'"),
            ("TimeoutStopUSec", "1.5e999"),
            ("TimeoutStopSec", "18446744073709551615"),
            ("KillSignal", "65"),
            ("KillSignal", "0"),
            ("SendSIGKILL", "1"),
            ("After", "'a.service'"),
            ("After", "['a.service'"),
            ("After", "['a.service' 'b']"),
            ("After", "['a/b']"),
            ("After", "['a\nb']"),
            ("Description", "'a\\x41'"),
            ("Description", ""),
        ] {
            assert!(matches!(property(name, value), Err(Error::Property { .. })), "{name} {value}");
        }
    }

    #[test]
    fn other_annotations_are_left_alone() {
        let list = [("org.example", "x"), ("org.systemd.property.IOWeight", "7")];
        let found = properties(list.into_iter()).unwrap();
        assert_eq!(found, [Property { name: "IOWeight".into(), value: Value::U64(7) }]);
    }
}
