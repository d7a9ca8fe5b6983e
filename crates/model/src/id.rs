use std::fmt;
use std::str::FromStr;

/// The text is no identifier (see [`check_identifier`]).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentifierError {
    /// It is empty.
    #[error("identifier must not be empty")]
    Empty,
    /// It is too long.
    #[error("identifier {0:?} greater than maximum length (76 characters)")]
    TooLong(String),
    /// It has another form.
    #[error("identifier {0:?} must match ^[A-Za-z0-9]+(?:[._-](?:[A-Za-z0-9]+))*$")]
    Malformed(String),
}

/// Checks containerd's identifier rule: 1 to 76 bytes, runs of ASCII letters and digits with single `.`, `_` or `-`
/// between them. Such a text is safe as a file name.
pub fn check_identifier(text: &str) -> Result<(), IdentifierError> {
    if text.is_empty() {
        return Err(IdentifierError::Empty);
    }
    if text.len() > 76 {
        return Err(IdentifierError::TooLong(text.chars().take(76).collect()));
    }
    let mut separated = true;
    for byte in text.bytes() {
        let separator = matches!(byte, b'.' | b'_' | b'-');
        if !(byte.is_ascii_alphanumeric() || (separator && !separated)) {
            return Err(IdentifierError::Malformed(text.to_owned()));
        }
        separated = separator;
    }
    if separated { Err(IdentifierError::Malformed(text.to_owned())) } else { Ok(()) }
}

macro_rules! identifier {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(String);

        impl $name {
            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = IdentifierError;

            fn from_str(text: &str) -> Result<Self, IdentifierError> {
                check_identifier(text).map(|()| Self(text.to_owned()))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
    };
}

identifier! {
    /// The name of a namespace: the scope of every other name.
    Namespace
}
identifier! {
    /// The id of a container and of its task.
    ContainerId
}
identifier! {
    /// The id of an additional process of a task.
    ExecId
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifier_rule() {
        for good in ["a", "a-b", "a.b_c-d9", &"x".repeat(76)] {
            assert_eq!(check_identifier(good), Ok(()), "{good}");
        }
        for bad in ["", ".a", "a-", "a--b", "a__b", "a/b", "ä", "a b", &"x".repeat(77)] {
            assert!(check_identifier(bad).is_err(), "{bad}");
        }
    }
}
