//! Dates in a configuration: `2026-12-31`, `2026-12-31T18:00:00Z`, `2026-12-31T18:00:00+02:00`.

use std::time::{Duration, SystemTime};

/// Reads a date, or date and time, as RFC 3339 writes them. A date alone means its last second in
/// UTC, so that "not after" includes the day. None for anything else, or before 1970.
pub(super) fn parse(text: &str) -> Option<SystemTime> {
    let (date, time) = match text.split_once(['T', 't', ' ']) {
        Some((date, time)) => (date, Some(time)),
        None => (text, None),
    };
    let mut parts = date.split('-');
    let year = digits(parts.next()?, 4)?;
    let month = digits(parts.next()?, 2)?;
    let day = digits(parts.next()?, 2)?;
    if parts.next().is_some()
        || year < 1970
        || !(1..=12).contains(&month)
        || day < 1
        || day > month_days(year, month)
    {
        return None;
    }
    let seconds = match time {
        Some(time) => seconds_of_day(time)?,
        None => 86_399,
    };
    let total = days_from_epoch(year, month, day) * 86_400 + seconds;
    Some(SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(total).ok()?))
}

/// Seconds since midnight UTC; may lie outside the day after its offset is taken off.
fn seconds_of_day(time: &str) -> Option<i64> {
    let at = time.find(['Z', 'z', '+', '-'])?;
    let (clock, offset) = time.split_at(at);
    // Fractions of a second do not matter for a validity.
    let clock = clock.split('.').next()?;
    let mut parts = clock.split(':');
    let hour = digits(parts.next()?, 2)?;
    let minute = digits(parts.next()?, 2)?;
    let second = parts.next().map_or(Some(0), |s| digits(s, 2))?;
    if parts.next().is_some() || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let shift = if offset.eq_ignore_ascii_case("z") {
        0
    } else {
        let (hours, minutes) = offset[1..].split_once(':')?;
        let (hours, minutes) = (digits(hours, 2)?, digits(minutes, 2)?);
        if hours > 23 || minutes > 59 {
            return None;
        }
        let shift = hours * 3600 + minutes * 60;
        if offset.starts_with('-') {
            -shift
        } else {
            shift
        }
    };
    Some(hour * 3600 + minute * 60 + second - shift)
}

fn digits(text: &str, count: usize) -> Option<i64> {
    (text.len() == count && text.bytes().all(|b| b.is_ascii_digit()))
        .then(|| text.parse().ok())
        .flatten()
}

fn leap(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

fn month_days(year: i64, month: i64) -> i64 {
    match month {
        2 if leap(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

fn days_from_epoch(year: i64, month: i64, day: i64) -> i64 {
    let years: i64 = (1970..year).map(|y| if leap(y) { 366 } else { 365 }).sum();
    let months: i64 = (1..month).map(|m| month_days(year, m)).sum();
    years + months + day - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unix(text: &str) -> Option<u64> {
        parse(text)?
            .duration_since(SystemTime::UNIX_EPOCH)
            .ok()
            .map(|d| d.as_secs())
    }

    #[test]
    fn dates_are_read_to_the_second() {
        assert_eq!(unix("2026-12-31T18:00:00Z"), Some(1_798_740_000));
        assert_eq!(unix("2026-12-31T20:00:00+02:00"), Some(1_798_740_000));
        assert_eq!(unix("2026-12-31"), Some(1_798_761_599));
        assert_eq!(unix("2024-02-29T00:00:00.5Z"), Some(1_709_164_800));
    }

    #[test]
    fn other_texts_are_no_dates() {
        for bad in [
            "",
            "tomorrow",
            "2026-13-01",
            "2023-02-29",
            "2026-12-31T25:00:00Z",
            "2026-12-31T18:00:00",
            "1969-12-31",
        ] {
            assert_eq!(unix(bad), None, "{bad}");
        }
    }
}
