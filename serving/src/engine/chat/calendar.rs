//! The date for `strftime_now`, which some templates print: Python's `strftime` in UTC and in English.

use protocol::Millis;

const DAY_MS: u64 = 86_400_000;
const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// A moment as a calendar shows it, in UTC.
struct Moment {
    year: u64,
    /// From 1.
    month: u64,
    /// From 1.
    day: u64,
    /// From 1.
    day_of_year: u64,
    /// Sunday is 0.
    weekday: u64,
    hour: u64,
    minute: u64,
    second: u64,
}

/// Formats `at` by Python's directives.
///
/// # Errors
/// Names the first unknown directive.
pub(super) fn strftime(at: Millis, format: &str) -> Result<String, String> {
    let moment = Moment::of(at);
    let mut text = String::with_capacity(format.len());
    let mut characters = format.chars();
    while let Some(character) = characters.next() {
        if character != '%' {
            text.push(character);
            continue;
        }
        let directive = characters.next();
        // glibc's `%-d`: without padding.
        let (directive, is_padded) = match directive {
            Some('-') => (characters.next(), false),
            other => (other, true),
        };
        let shown = directive.and_then(|directive| moment.show(directive));
        let shown = shown.ok_or_else(|| {
            let named: String = directive.into_iter().collect();
            format!("strftime_now does not know the directive `%{named}`")
        })?;
        text.push_str(&if is_padded { shown } else { unpadded(&shown) });
    }
    Ok(text)
}

/// Removes the zeros before a number, but not its only digit.
fn unpadded(shown: &str) -> String {
    let rest = shown.trim_start_matches('0');
    let is_zero = rest.len() < shown.len() && !rest.starts_with(|first: char| first.is_ascii_digit());
    if is_zero { format!("0{rest}") } else { rest.to_owned() }
}

impl Moment {
    fn of(at: Millis) -> Self {
        let days = at.0 / DAY_MS;
        let second_of_day = at.0 % DAY_MS / 1000;
        // Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", `civil_from_days`.
        let since_march = days + 719_468;
        let era = since_march / 146_097;
        let day_of_era = since_march % 146_097;
        let year_of_era =
            (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let shifted = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * shifted + 2) / 5 + 1;
        let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
        let year = year_of_era + era * 400 + u64::from(month <= 2);
        let is_leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
        // January 1 is day 306 of the year that begins in March.
        let day_of_year = if month <= 2 { day_of_year - 305 } else { day_of_year + 60 + u64::from(is_leap) };
        Self {
            year,
            month,
            day,
            day_of_year,
            weekday: (days + 4) % 7,
            hour: second_of_day / 3600,
            minute: second_of_day / 60 % 60,
            second: second_of_day % 60,
        }
    }

    /// Returns the text of one directive; `None` for an unknown one.
    fn show(&self, directive: char) -> Option<String> {
        let month = MONTHS[self.month as usize - 1];
        let weekday = DAYS[self.weekday as usize];
        let half_day = (self.hour + 11) % 12 + 1;
        Some(match directive {
            'Y' => self.year.to_string(),
            'y' => format!("{:02}", self.year % 100),
            'm' => format!("{:02}", self.month),
            'd' => format!("{:02}", self.day),
            'e' => format!("{:2}", self.day),
            'j' => format!("{:03}", self.day_of_year),
            'H' => format!("{:02}", self.hour),
            'I' => format!("{half_day:02}"),
            'M' => format!("{:02}", self.minute),
            'S' => format!("{:02}", self.second),
            'p' => if self.hour < 12 { "AM" } else { "PM" }.to_owned(),
            'B' => month.to_owned(),
            'b' | 'h' => month[..3].to_owned(),
            'A' => weekday.to_owned(),
            'a' => weekday[..3].to_owned(),
            'F' => format!("{}-{:02}-{:02}", self.year, self.month, self.day),
            'T' => format!("{:02}:{:02}:{:02}", self.hour, self.minute, self.second),
            'D' => format!("{:02}/{:02}/{:02}", self.month, self.day, self.year % 100),
            'Z' => "UTC".to_owned(),
            'z' => "+0000".to_owned(),
            '%' => "%".to_owned(),
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_a_calendar() {
        // Each time is `date -u -d @SECONDS`.
        for (seconds, format, expected) in [
            (0, "%A %d %B %Y %H:%M:%S %j", "Thursday 01 January 1970 00:00:00 001"),
            (951_782_400, "%F %a %j", "2000-02-29 Tue 060"),
            (951_868_800, "%F %j", "2000-03-01 061"),
            (1_735_689_599, "%F %T %j %p %I", "2024-12-31 23:59:59 366 PM 11"),
            (1_795_392_000, "%d %b %Y", "23 Nov 2026"),
            (4_102_444_800, "%D %y %e %Z%z %%", "01/01/00 00  1 UTC+0000 %"),
            (1_735_689_600, "%-d.%-m.%Y %-H:%-M", "1.1.2025 0:0"),
        ] {
            assert_eq!(strftime(Millis(seconds * 1000), format), Ok(expected.to_owned()), "{seconds}");
        }
    }

    #[test]
    fn an_unknown_directive_is_named() {
        for (format, named) in [("%Q", "`%Q`"), ("%", "`%`"), ("%-", "`%`")] {
            let error = strftime(Millis(0), format).expect_err(format);
            assert!(error.contains(named), "{error}");
        }
    }
}
