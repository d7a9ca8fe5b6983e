use std::fmt;
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

/// RFC 3339 in UTC, with nanoseconds where there are any.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (days, rest) = (self.seconds.div_euclid(86_400), self.seconds.rem_euclid(86_400));
        // Days to a date of the Gregorian calendar, counted in eras of 400 years that begin on a 1 March.
        let shifted = days.saturating_add(719_468);
        let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
        let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let from_march = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * from_march + 2) / 5 + 1;
        let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
        let year = year_of_era + era * 400 + i64::from(month <= 2);
        let (hour, minute, second) = (rest / 3600, rest % 3600 / 60, rest % 60);
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}")?;
        if self.nanos != 0 {
            write!(f, ".{:09}", self.nanos)?;
        }
        f.write_str("Z")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_as_text() {
        for (seconds, nanos, want) in [
            (0, 0, "1970-01-01T00:00:00Z"),
            (951_782_399, 1, "2000-02-28T23:59:59.000000001Z"),
            (951_782_400, 0, "2000-02-29T00:00:00Z"),
            (1_795_000_000, 120_000_000, "2026-11-18T11:06:40.120000000Z"),
            (-1, 0, "1969-12-31T23:59:59Z"),
            (Timestamp::ZERO.seconds, 0, "0001-01-01T00:00:00Z"),
        ] {
            assert_eq!(Timestamp { seconds, nanos }.to_string(), want);
        }
        for seconds in [i64::MIN, i64::MAX] {
            assert!(Timestamp { seconds, nanos: 0 }.to_string().ends_with('Z'));
        }
    }
}
