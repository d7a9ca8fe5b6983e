use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// A point in time: seconds since 1970 in UTC and nanoseconds within the second, as `google.protobuf.Timestamp` has
/// them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Timestamp {
    /// Seconds since the epoch; negative before it.
    pub seconds: i64,
    /// 0 to 999,999,999.
    pub nanos: i32,
}

impl Timestamp {
    /// "Never happened": Go's zero time, the first of January of year 1. An absent protobuf timestamp reads as 1970 in
    /// Go clients, so this value is sent explicitly.
    pub const ZERO: Self = Self { seconds: -62_135_596_800, nanos: 0 };

    /// The wall clock.
    pub fn now() -> Self {
        match SystemTime::now().duration_since(UNIX_EPOCH) {
            Ok(since) => Self {
                seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
                nanos: i32::try_from(since.subsec_nanos()).unwrap_or(0),
            },
            Err(_) => Self { seconds: 0, nanos: 0 },
        }
    }

    /// Whether this is [`Timestamp::ZERO`].
    pub fn is_zero(self) -> bool {
        self == Self::ZERO
    }
}

impl Default for Timestamp {
    fn default() -> Self {
        Self::ZERO
    }
}
