//! Times and durations as ISO 8601 writes them, as far as Kafka's tools take them: `2026-11-28T15:30:00.250+01:00`, `P1DT2H`.

const SECOND_MS: i64 = 1000;
const MINUTE_MS: i64 = 60 * SECOND_MS;
const HOUR_MS: i64 = 60 * MINUTE_MS;
const DAY_MS: i64 = 24 * HOUR_MS;

/// A time, ms since the Unix epoch: that number, or a date with or without a time of day, in UTC unless it says otherwise.
pub(super) fn parse_time(text: &str) -> Result<i64, String> {
    if let Ok(millis) = text.parse() {
        return Ok(millis);
    }
    time(text).ok_or_else(|| format!("neither ms since 1970-01-01 UTC nor a time as 2026-11-28T15:30:00.250Z: {text:?}"))
}

/// A duration in ms: a number of seconds, or days, hours, minutes and seconds.
pub(super) fn parse_duration(text: &str) -> Result<i64, String> {
    let seconds = text.parse::<u64>().ok().and_then(|seconds| i64::try_from(seconds).ok()?.checked_mul(SECOND_MS));
    seconds.or_else(|| duration(text)).ok_or_else(|| format!("neither seconds nor a duration as P1DT2H30M: {text:?}"))
}

fn time(text: &str) -> Option<i64> {
    let (date, clock) = text.split_once(['T', 't', ' ']).map_or((text, None), |(date, clock)| (date, Some(clock)));
    let [year, month, day] = numbers(date, '-')?;
    let days = days_of(year, month, day)?;
    let Some(clock) = clock else { return Some(days * DAY_MS) };
    let (clock, ahead_ms) = match clock.strip_suffix(['Z', 'z']) {
        Some(clock) => (clock, 0),
        None => match clock.rfind(['+', '-']) {
            Some(at) => (&clock[..at], offset(&clock[at..])?),
            None => (clock, 0),
        },
    };
    Some(days * DAY_MS + time_of_day(clock)? - ahead_ms)
}

/// Numbers of digits alone, between separators.
fn numbers<const N: usize>(text: &str, separator: char) -> Option<[i64; N]> {
    let parts: Option<Vec<i64>> = text.split(separator).map(digits).collect();
    parts?.try_into().ok()
}

fn digits(text: &str) -> Option<i64> {
    let is_number = (1..=9).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    if is_number { text.parse().ok() } else { None }
}

/// Days since 1970-01-01 of a date of the Gregorian calendar.
fn days_of(year: i64, month: i64, day: i64) -> Option<i64> {
    let is_leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let longest = [31, if is_leap { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let month = usize::try_from(month).ok().filter(|month| (1..=12).contains(month))?;
    if !(1970..=9999).contains(&year) || !(1..=longest[month - 1]).contains(&day) {
        return None;
    }
    let before = year - 1;
    let leap_days = |year: i64| year / 4 - year / 100 + year / 400;
    let of_years = (year - 1970) * 365 + leap_days(before) - leap_days(1969);
    Some(of_years + longest[..month - 1].iter().sum::<i64>() + day - 1)
}

/// ms of `15:30`, `15:30:05` or `15:30:05.25`.
fn time_of_day(text: &str) -> Option<i64> {
    let (clock, fraction) = text.split_once(['.', ',']).map_or((text, None), |(clock, fraction)| (clock, Some(fraction)));
    let (hour, minute, second) = match numbers(clock, ':') {
        Some([hour, minute, second]) => (hour, minute, second),
        None if fraction.is_none() => numbers(clock, ':').map(|[hour, minute]| (hour, minute, 0))?,
        None => return None,
    };
    let is_one = hour < 24 && minute < 60 && second < 60;
    is_one.then_some(hour * HOUR_MS + minute * MINUTE_MS + second * SECOND_MS)?.checked_add(fraction.map_or(Some(0), millis)?)
}

/// The first three digits of a fraction of a second.
fn millis(fraction: &str) -> Option<i64> {
    digits(fraction)?;
    digits(&format!("{fraction:0<3}")[..3])
}

/// ms that a zone is ahead of UTC: `+01:00`, `-0530` or `+02`.
fn offset(text: &str) -> Option<i64> {
    let (sign, clock) = text.split_at_checked(1)?;
    let (hours, minutes) = match clock.len() {
        2 => (digits(clock)?, 0),
        4 => (digits(&clock[..2])?, digits(&clock[2..])?),
        _ => numbers(clock, ':').map(|[hours, minutes]| (hours, minutes))?,
    };
    let ms = (hours < 24 && minutes < 60).then_some(hours * HOUR_MS + minutes * MINUTE_MS)?;
    Some(if sign == "-" { -ms } else { ms })
}

fn duration(text: &str) -> Option<i64> {
    let text = text.strip_prefix(['P', 'p'])?;
    let (days, clock) = text.split_once(['T', 't']).map_or((text, None), |(days, clock)| (days, Some(clock)));
    if clock.map_or(days.is_empty(), str::is_empty) {
        return None;
    }
    let of_days = parts(days, &[('W', 7 * DAY_MS), ('D', DAY_MS)])?;
    of_days.checked_add(parts(clock.unwrap_or_default(), &[('H', HOUR_MS), ('M', MINUTE_MS), ('S', SECOND_MS)])?)
}

/// A number before each of these letters, which come in their order; the last may have a fraction of a second.
fn parts(mut text: &str, units: &[(char, i64)]) -> Option<i64> {
    let mut sum = 0_i64;
    for (letter, ms) in units {
        let Some((number, rest)) = text.split_once([*letter, letter.to_ascii_lowercase()]) else { continue };
        let (whole, fraction) = match number.split_once(['.', ',']) {
            Some((whole, fraction)) if *ms == SECOND_MS => (whole, millis(fraction)?),
            _ => (number, 0),
        };
        sum = sum.checked_add(digits(whole)?.checked_mul(*ms)?)?.checked_add(fraction)?;
        text = rest;
    }
    text.is_empty().then_some(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checked against `date -u -d TIME +%s`.
    #[test]
    fn times_are_read() {
        for (text, seconds) in [
            ("1970-01-01", 0),
            ("2000-02-29T12:00:00Z", 951_825_600),
            ("2020-01-01T00:00", 1_577_836_800),
            ("2026-11-28T15:30:00+01:00", 1_795_876_200),
            ("2026-11-28 10:00:00-0430", 1_795_876_200),
            ("2100-03-01T00:00:00+00", 4_107_542_400),
        ] {
            assert_eq!(parse_time(text), Ok(seconds * SECOND_MS), "{text}");
        }
        assert_eq!(parse_time("1970-01-01T00:00:01.2509"), Ok(1250));
        assert_eq!((parse_time("1577836800000"), parse_time("-1")), (Ok(1_577_836_800_000), Ok(-1)));
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for text in [
            "",
            "now",
            "2026-13-01",
            "2026-00-01",
            "2026-02-29",
            "2026-01-32",
            "1969-12-31",
            "2026-01-01T",
            "2026-01-01T24:00",
            "2026-01-01T10",
            "2026-01-01T10:60",
            "2026-01-01T10:00:60",
            "2026-01-01T10:00.5",
            "2026-01-01T10:00:00.",
            "2026-01-01T10:00+1",
            "2026-01-01T10:00+25:00",
            "2026-01-01T10:00é",
            "2026-01-01T10:00+é1é",
            "+2026-01-01",
            "2026-01-01-01",
        ] {
            assert!(parse_time(text).is_err(), "{text}");
        }
    }

    #[test]
    fn durations_are_read() {
        for (text, ms) in
            [("90", 90_000), ("PT1H", HOUR_MS), ("P1DT2H30M", 26 * HOUR_MS + 30 * MINUTE_MS), ("P2W", 14 * DAY_MS), ("pt0.25s", 250)]
        {
            assert_eq!(parse_duration(text), Ok(ms), "{text}");
        }
        for text in ["", "P", "PT", "P1DT", "1H", "PT1M1H", "PT-1H", "P1M", "PT1.5H", "PT999999999H1", "18446744073709551615"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }
}
