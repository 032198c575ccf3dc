//! Parameters of a job: the values that a submission may set, each within the bounds that members approved.
//!
//! A value is text, spelled exactly as the program receives it. It replaces a placeholder within one argument
//! and never becomes two: no shell reads it. A text never begins with `-`, so that no value becomes an option
//! of the program.

use crate::limits::PARAMETER_BYTES_MAX;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Maximum number of digits on either side of a decimal point: a 64-bit number holds both sides.
const DECIMAL_DIGITS_MAX: usize = 9;

const _: () = assert!(2 * DECIMAL_DIGITS_MAX <= 18, "i64 holds eighteen digits");

/// Decimal number, compared exactly: `0.001`, `-12.5`. At most nine digits stand on either side of the point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "String", into = "String")]
#[schema(value_type = String, pattern = r"^-?(0|[1-9][0-9]{0,8})(\.[0-9]{1,9})?$")]
pub struct Decimal(String);

impl Decimal {
    /// Returns the number as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the number in billionths.
    fn billionths(&self) -> i64 {
        let digits = self.0.trim_start_matches('-');
        let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
        let digit = |sum: i64, byte: u8| sum * 10 + i64::from(byte - b'0');
        let zeros = std::iter::repeat_n(b'0', DECIMAL_DIGITS_MAX - fraction.len());
        let size = whole.bytes().chain(fraction.bytes()).chain(zeros).fold(0, digit);
        debug_assert!(size >= 0, "eighteen digits fit");
        if self.0.starts_with('-') { -size } else { size }
    }
}

impl TryFrom<String> for Decimal {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let digits = text.strip_prefix('-').unwrap_or(&text);
        let (whole, fraction) = digits.split_once('.').unwrap_or((digits, "0"));
        let is_number = |part: &str| {
            (1..=DECIMAL_DIGITS_MAX).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_digit())
        };
        if !is_number(whole) || !is_number(fraction) || (whole.len() > 1 && whole.starts_with('0')) {
            return Err("is no decimal number like `0.001`, with at most nine digits on either side".into());
        }
        Ok(Self(text))
    }
}

impl From<Decimal> for String {
    fn from(decimal: Decimal) -> String {
        decimal.0
    }
}

impl std::str::FromStr for Decimal {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::try_from(text.to_string())
    }
}

/// Characters of which a text may consist.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum TextCharacters {
    /// Letters and digits of ASCII, `-`, `_` and `.`; never `..` alone, which would climb in a path.
    Word,
    /// Those of [`Self::Word`], and `/`; no part of the path is `..`.
    Path,
    /// Printable ASCII, the space included.
    Printable,
}

impl TextCharacters {
    /// Returns the characters, as an error lists them.
    fn describe(self) -> &'static str {
        match self {
            Self::Word => "a-z, A-Z, 0-9, `-`, `_` and `.`, except `..`",
            Self::Path => "a-z, A-Z, 0-9, `-`, `_`, `.` and `/`, without `..`",
            Self::Printable => "printable ASCII",
        }
    }

    fn allow(self, text: &str) -> bool {
        let word = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        match self {
            Self::Word => text.bytes().all(word) && text != "..",
            Self::Path => {
                text.bytes().all(|byte| word(byte) || byte == b'/')
                    && text.split('/').all(|part| part != "..")
            }
            Self::Printable => text.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic()),
        }
    }
}

/// Values that a parameter may have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ParameterRule {
    /// Whole number.
    Integer {
        /// Smallest value.
        least: i64,
        /// Largest value.
        most: i64,
    },
    /// Decimal number.
    Decimal {
        /// Smallest value.
        least: Decimal,
        /// Largest value.
        most: Decimal,
    },
    /// One of these words.
    Choice(Vec<String>),
    /// Text of at least one byte that does not begin with `-`.
    Text {
        /// Maximum length in bytes.
        length: u32,
        /// Characters of which it may consist.
        characters: TextCharacters,
    },
}

impl ParameterRule {
    /// Checks that the rule accepts some value.
    ///
    /// # Errors
    /// Returns an error text that states the accepted rules.
    pub(super) fn check(&self) -> Result<(), String> {
        match self {
            Self::Integer { least, most } if least > most => {
                Err(format!("least is {least}, more than {most}"))
            }
            Self::Decimal { least, most } if least.billionths() > most.billionths() => {
                Err(format!("least is {}, more than {}", least.as_str(), most.as_str()))
            }
            Self::Choice(words) => check_words(words),
            Self::Text { length, .. } if !(1..=PARAMETER_BYTES_MAX as u32).contains(length) => {
                Err(format!("length is {length}; accepted: 1 to {PARAMETER_BYTES_MAX}"))
            }
            Self::Integer { .. } | Self::Decimal { .. } | Self::Text { .. } => Ok(()),
        }
    }

    /// Checks a value of the parameter. The error never repeats the value, which may be any text.
    ///
    /// # Errors
    /// Returns an error text that states the accepted values.
    pub fn accept(&self, value: &str) -> Result<(), String> {
        match self {
            Self::Integer { least, most } => {
                let number: Option<i64> = value.parse().ok();
                // Other spellings, such as `+1` and `01`, are refused: a value has one text.
                let exact = number.filter(|number| number.to_string() == value);
                let number = exact.ok_or("is no whole number like `100`")?;
                if (*least..=*most).contains(&number) {
                    return Ok(());
                }
                Err(format!("is {number}; accepted: {least} to {most}"))
            }
            Self::Decimal { least, most } => {
                let number: Decimal = value.parse()?;
                let within = least.billionths()..=most.billionths();
                if within.contains(&number.billionths()) {
                    return Ok(());
                }
                Err(format!("is {}; accepted: {} to {}", number.as_str(), least.as_str(), most.as_str()))
            }
            Self::Choice(words) if words.iter().any(|word| word == value) => Ok(()),
            Self::Choice(words) => Err(format!("is none of: {}", words.join(", "))),
            Self::Text { length, characters } => {
                let fits = (1..=*length as usize).contains(&value.len());
                if fits && !value.starts_with('-') && characters.allow(value) {
                    return Ok(());
                }
                let allowed = characters.describe();
                Err(format!("is no text of 1 to {length} bytes of {allowed}, not beginning with `-`"))
            }
        }
    }
}

/// Checks that each word of a choice is there once, and can be shown in a line.
fn check_words(words: &[String]) -> Result<(), String> {
    let is_word = |word: &String| {
        (1..=PARAMETER_BYTES_MAX).contains(&word.len()) && TextCharacters::Printable.allow(word)
    };
    if words.is_empty() || words.len() > crate::limits::JOB_LIST_MAX {
        return Err(format!("has {} words; accepted: 1 to {}", words.len(), crate::limits::JOB_LIST_MAX));
    }
    if !words.iter().all(is_word) {
        return Err(format!("has a word that is not 1 to {PARAMETER_BYTES_MAX} bytes of printable ASCII"));
    }
    let distinct: std::collections::BTreeSet<&String> = words.iter().collect();
    if distinct.len() == words.len() { Ok(()) } else { Err("has a word twice".into()) }
}

/// Parameter of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct JobParameter {
    /// Values that it may have.
    pub rule: ParameterRule,
    /// Value of a submission that sets none; none = each submission sets one.
    pub default: Option<String>,
}

/// Replaces each `{name}` of an argument by the value of that parameter, and `{{` and `}}` by one brace. A
/// value is inserted as it is: a brace within it means nothing.
///
/// # Errors
/// Returns an error text for a brace alone, and for a name without a value.
pub fn expand_argument<'v>(
    argument: &str,
    mut value_of: impl FnMut(&str) -> Option<&'v str>,
) -> Result<String, String> {
    let (mut expanded, mut rest) = (String::with_capacity(argument.len()), argument);
    while let Some(at) = rest.find(['{', '}']) {
        let (before, marked) = rest.split_at(at);
        expanded.push_str(before);
        if let Some(after) = marked.strip_prefix("{{") {
            expanded.push('{');
            rest = after;
        } else if let Some(after) = marked.strip_prefix("}}") {
            expanded.push('}');
            rest = after;
        } else {
            let inner = marked.strip_prefix('{').and_then(|inner| inner.split_once('}'));
            let (name, after) = inner.ok_or("has a brace alone; `{{` and `}}` stand for one as text")?;
            let unknown = || format!("names `{{{}}}`, which is no parameter", name.escape_debug());
            expanded.push_str(value_of(name).ok_or_else(unknown)?);
            rest = after;
        }
        debug_assert!(rest.len() < marked.len(), "each step consumes a part");
    }
    expanded.push_str(rest);
    Ok(expanded)
}

#[cfg(test)]
mod tests;
