//! The byte strings that the store hands out.

use std::borrow::Borrow;
use std::fmt;
use std::ops::Deref;

macro_rules! bytes_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub(crate) sled::IVec);

        impl Deref for $name {
            type Target = [u8];
            fn deref(&self) -> &[u8] {
                &self.0
            }
        }

        impl AsRef<[u8]> for $name {
            fn as_ref(&self) -> &[u8] {
                &self.0
            }
        }

        impl Borrow<[u8]> for $name {
            fn borrow(&self) -> &[u8] {
                &self.0
            }
        }

        impl From<&[u8]> for $name {
            fn from(bytes: &[u8]) -> Self {
                Self(bytes.into())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(formatter, "{}({})", stringify!($name), self.0.escape_ascii())
            }
        }
    };
}

bytes_type! {
    /// A key: at most [`MAX_KEY_BYTES`](crate::MAX_KEY_BYTES) bytes, ordered bytewise. Cloning is cheap.
    Key
}
bytes_type! {
    /// A value: at most [`MAX_VALUE_BYTES`](crate::MAX_VALUE_BYTES) bytes. Cloning is cheap.
    Value
}
