use std::fmt;
use std::str::FromStr;

use crate::Error;

/// A place in a journal: behind one of its events. Written `<journal uuid>:<sequence>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// The journal's identity.
    pub uuid: String,
    /// The event that was seen last; 0 for none.
    pub sequence: u64,
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.uuid, self.sequence)
    }
}

/// Where a subscriber begins that keeps account of what it has seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Since {
    /// With what is published from now on.
    Now,
    /// With the first event behind the cursor.
    After(Cursor),
}

impl FromStr for Since {
    type Err = Error;

    /// `now`, or a cursor as it was received.
    fn from_str(text: &str) -> Result<Self, Error> {
        if text == "now" {
            return Ok(Self::Now);
        }
        let cursor = text.rsplit_once(':').and_then(|(uuid, sequence)| {
            let digits = !sequence.is_empty() && sequence.bytes().all(|byte| byte.is_ascii_digit());
            let sequence = if digits { sequence.parse().ok()? } else { return None };
            (!uuid.is_empty()).then(|| Cursor { uuid: uuid.to_owned(), sequence })
        });
        cursor.map(Self::After).ok_or_else(|| Error::Cursor { text: text.chars().take(128).collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let cursor = Cursor { uuid: "7d1f-22".into(), sequence: u64::MAX };
        assert_eq!(cursor.to_string().parse::<Since>().unwrap(), Since::After(cursor));
        assert_eq!("now".parse::<Since>().unwrap(), Since::Now);
        for bad in ["", "Now", "7d1f", "7d1f:", ":4", "7d1f:-1", "7d1f:+1", "7d1f:1 ", "7d1f:18446744073709551616"] {
            let error = bad.parse::<Since>().unwrap_err();
            assert_eq!(model::Coded::code(&error), model::Code::InvalidArgument, "{bad:?}");
        }
    }
}
