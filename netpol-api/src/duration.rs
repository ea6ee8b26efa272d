//! Durations in kubectl's format: a number and a unit.

use std::time::Duration;

use crate::MAX_WAIT;

/// Parses a duration with a unit, such as `500ms`, `30s`, `2m` or `1h`. Only `0` needs no unit.
///
/// # Errors
/// If the text has another form, or the duration is longer than [`MAX_WAIT`].
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let unit_milliseconds = match unit {
        "ms" => Some(1),
        "s" => Some(1_000),
        "m" => Some(60_000),
        "h" => Some(3_600_000),
        "" if number == "0" => Some(0),
        _ => None,
    };
    let duration = unit_milliseconds
        .and_then(|milliseconds| number.parse::<u64>().ok()?.checked_mul(milliseconds))
        .map(Duration::from_millis)
        .ok_or_else(|| format!("`{text}` is not a duration; use a number and a unit, such as 500ms, 30s or 2m"))?;
    if duration > MAX_WAIT {
        return Err(format!("`{text}` is too long; the maximum is 1h"));
    }
    Ok(duration)
}

/// Formats a duration as `30s`, or as `250ms` if it is not a whole number of seconds.
pub fn format_duration(duration: Duration) -> String {
    let milliseconds = duration.as_millis();
    if milliseconds.is_multiple_of(1_000) { format!("{}s", milliseconds / 1_000) } else { format!("{milliseconds}ms") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_other_than_zero_need_a_unit() {
        for (text, milliseconds) in
            [("0", 0), ("0s", 0), ("250ms", 250), ("30s", 30_000), ("2m", 120_000), ("1h", 3_600_000)]
        {
            let duration = Duration::from_millis(milliseconds);
            assert_eq!(parse_duration(text), Ok(duration));
            assert_eq!(parse_duration(&format_duration(duration)), Ok(duration));
        }
        for text in ["", "30", "s", "-1s", "1.5s", "2d", "61m", "99999999999999999999s"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }
}
