//! Unambiguous text forms of values: quoted strings, times, amounts.
//!
//! Letters outside Latin are written as `\u{...}`. Some of them look exactly like another letter, and a
//! signed text must not depend on the reader's ability to distinguish them.

use super::MARGIN;
use protocol::Millis;
use protocol::display::counted;
use protocol::manifest::format_bytes;

/// Returns text in quotes, escaped so that different texts always look different. Printable ASCII and the
/// accented letters of European languages stay as they are; every other character is escaped. So is each
/// space after a space, since spaces could push a text to the place where a terminal breaks the line.
pub(super) fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    let mut before = None;
    for c in text.chars() {
        let in_run = c == ' ' && before == Some(' ');
        before = Some(c);
        match c {
            c if in_run => out.push_str(&format!("\\u{{{:x}}}", c as u32)),
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            c if stands_for_itself(c) => out.push(c),
            c => out.push_str(&format!("\\u{{{:x}}}", c as u32)),
        }
    }
    out.push('"');
    debug_assert!(out.chars().all(stands_for_itself), "no character of {out} hides");
    out
}

/// Checks that a character needs no escape: ASCII from space to tilde, and the letters of Latin-1 and Latin
/// Extended-A. The exceptions look like another letter or like a sign: the margin mark, multiplication,
/// division, dotless i, kra, long s, the l with a middle dot and the n behind an apostrophe.
fn stands_for_itself(c: char) -> bool {
    const LOOK_ALIKE: &[char] = &[MARGIN, '×', '÷', 'ı', 'ĸ', 'ſ', 'Ŀ', 'ŀ', 'ŉ', 'Ĳ', 'ĳ'];
    matches!(c, ' '..='~' | '\u{c0}'..='\u{17f}') && !LOOK_ALIKE.contains(&c)
}

/// Formats a time for people and machines: `2026-11-21 12:41:50.000 UTC (1795265710000)`.
#[must_use]
pub fn show_time(time: Millis) -> String {
    let (seconds, milliseconds) = (time.0 / 1000, time.0 % 1000);
    let (year, month, day) = date_of(seconds / 86_400);
    debug_assert!((1..=12).contains(&month) && (1..=31).contains(&day), "{year}-{month}-{day} is no date");
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!(
        "{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}.{milliseconds:03} UTC ({})",
        time.0
    )
}

/// Returns the Gregorian date of a number of days since 1970-01-01 (Howard Hinnant, "chrono-Compatible
/// Low-Level Date Algorithms", `civil_from_days`).
fn date_of(days: u64) -> (u64, u64, u64) {
    debug_assert!(days < u64::MAX / 1000, "a time in milliseconds is as many days at most");
    let days = days + 719_468;
    let era = days / 146_097;
    let day_of_era = days % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    debug_assert!(day_of_year < 366 && shifted_month < 12, "day {day_of_year} of a year");
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    debug_assert!((1..=12).contains(&month) && (1..=31).contains(&day), "{month}-{day} is no date");
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

/// Formats an amount of bytes, both rounded for people and exact.
pub(super) fn show_bytes(bytes: u64) -> String {
    if bytes < 1024 { format!("{bytes} B") } else { format!("{} ({bytes} B)", format_bytes(bytes)) }
}

/// Formats a duration, in the units of people and exact: `1 day 12 hours (129600 seconds)`.
#[must_use]
pub fn show_duration(seconds: u64) -> String {
    const UNITS: [(u64, &str); 4] = [(86_400, "day"), (3_600, "hour"), (60, "minute"), (1, "second")];
    let exact = counted(seconds, "second");
    if seconds < 60 {
        return exact;
    }
    let (mut rest, mut parts) = (seconds, Vec::new());
    for (length, noun) in UNITS.into_iter().filter(|(length, _)| *length <= seconds) {
        let count = rest / length;
        rest %= length;
        parts.extend((count > 0).then(|| counted(count, noun)));
    }
    debug_assert!(rest == 0 && !parts.is_empty(), "{seconds} seconds are in whole units");
    format!("{} ({exact})", parts.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn nothing_hides_in_a_quoted_text() {
        for (text, expected) in [
            ("plain text.", r#""plain text.""#),
            ("Zürich, Čapek", r#""Zürich, Čapek""#),
            ("say \"yes\"", r#""say \"yes\"""#),
            ("back\\slash", r#""back\\slash""#),
            ("two\nlines", r#""two\nlines""#),
            ("\r\t\u{0}\u{7f}", r#""\u{d}\u{9}\u{0}\u{7f}""#),
            ("right \u{202e}tfel", r#""right \u{202e}tfel""#),
            ("isolate \u{2066}x\u{2069}", r#""isolate \u{2066}x\u{2069}""#),
            ("zero\u{200b}width\u{feff}", r#""zero\u{200b}width\u{feff}""#),
            ("p\u{430}yp\u{430}l", r#""p\u{430}yp\u{430}l""#),
            ("full\u{ff41}", r#""full\u{ff41}""#),
            ("e\u{301}", r#""e\u{301}""#),
            ("soft\u{ad}hyphen no\u{a0}break", r#""soft\u{ad}hyphen no\u{a0}break""#),
            ("dotless ı, long ſ, ×", r#""dotless \u{131}, long \u{17f}, \u{d7}""#),
            ("tag \u{e0041} emoji \u{1f600}", r#""tag \u{e0041} emoji \u{1f600}""#),
            ("\\u{202e}", r#""\\u{202e}""#),
            ("one  two   three", r#""one \u{20}two \u{20}\u{20}three""#),
            ("a | b", r#""a \u{7c} b""#),
        ] {
            assert_eq!(quoted(text), expected);
        }
    }

    #[test]
    fn times_are_dates() {
        for (time, expected) in [
            (0, "1970-01-01 00:00:00.000 UTC (0)"),
            (951_782_400_000, "2000-02-29 00:00:00.000 UTC (951782400000)"),
            (1_795_264_910_123, "2026-11-21 12:41:50.123 UTC (1795264910123)"),
            (4_107_542_399_999, "2100-02-28 23:59:59.999 UTC (4107542399999)"),
            (4_107_542_400_000, "2100-03-01 00:00:00.000 UTC (4107542400000)"),
        ] {
            assert_eq!(show_time(Millis(time)), expected);
        }
        assert!(show_time(Millis(u64::MAX)).ends_with("(18446744073709551615)"));
    }

    #[test]
    fn durations_are_in_the_units_of_people_and_exact() {
        for (seconds, expected) in [
            (0, "0 seconds"),
            (1, "1 second"),
            (59, "59 seconds"),
            (60, "1 minute (60 seconds)"),
            (90, "1 minute 30 seconds (90 seconds)"),
            (3_600, "1 hour (3600 seconds)"),
            (86_400, "1 day (86400 seconds)"),
            (90_061, "1 day 1 hour 1 minute 1 second (90061 seconds)"),
            (172_800, "2 days (172800 seconds)"),
        ] {
            assert_eq!(show_duration(seconds), expected);
        }
        assert!(show_duration(u64::MAX).ends_with("(18446744073709551615 seconds)"));
    }

    proptest! {
        #[test]
        fn different_texts_are_quoted_differently(a: String, b: String) {
            prop_assert_eq!(a == b, quoted(&a) == quoted(&b));
        }

        #[test]
        fn quoted_text_is_harmless(text: String) {
            let shown = quoted(&text);
            prop_assert!(shown.chars().all(stands_for_itself), "{}", shown);
        }
    }
}
