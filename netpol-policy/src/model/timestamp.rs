//! Points in time.

use std::fmt;

/// A point in time, in whole seconds since 1970. The default is the start of 1970. While the clock of a
/// `ClusterState` has the default, no suspension of enforcement is in effect.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// Parses an RFC 3339 time, such as `2026-11-29T18:00:00Z`. Fractions of a second are dropped.
    pub fn parse(text: &str) -> Option<Self> {
        text.parse::<jiff::Timestamp>().ok().map(|time| Self(time.as_second()))
    }

    /// Returns the time this many seconds later.
    #[must_use]
    pub const fn plus_seconds(self, seconds: i64) -> Self {
        Self(self.0.saturating_add(seconds))
    }

    /// Returns the number of seconds until `later`; zero if `later` is not after this time.
    pub fn seconds_until(self, later: Self) -> u64 {
        u64::try_from(later.0.saturating_sub(self.0)).unwrap_or(0)
    }
}

/// Drops fractions of a second.
impl From<jiff::Timestamp> for Timestamp {
    fn from(time: jiff::Timestamp) -> Self {
        Self(time.as_second())
    }
}

/// Writes an RFC 3339 time in UTC.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_second(self.0) {
            Ok(time) => time.fmt(f),
            Err(_) => write!(f, "{} seconds after 1970", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_rfc_3339_with_any_offset() {
        let time = Timestamp::parse("2026-11-29T18:00:00Z").expect("a time");
        assert_eq!(time.to_string(), "2026-11-29T18:00:00Z");
        for same in ["2026-11-29T19:00:00+01:00", "2026-11-29T18:00:00.9Z"] {
            assert_eq!(Timestamp::parse(same), Some(time), "{same}");
        }
        for other in ["", "18:00", "2026-11-29", "2026-11-29T18:00:00", "tomorrow", "2026-13-29T18:00:00Z"] {
            assert_eq!(Timestamp::parse(other), None, "{other}");
        }
        assert_eq!((time.seconds_until(time.plus_seconds(7)), time.seconds_until(Timestamp(0))), (7, 0));
    }
}
