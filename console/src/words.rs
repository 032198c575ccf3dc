//! Comparison of words that a person typed with those of the text to sign.

use protocol::{Refusal, error_code};

/// Number of words that are asked for. More may be given; all must be right.
const WORDS_ASKED: usize = 2;

/// Checks that these are the first words of the text: two of them, or more.
///
/// # Errors
/// Fails with `words-mismatch` if they are others, or too few.
pub fn compare_words(given: &str, expected: &[&str]) -> Result<(), Refusal> {
    let given: Vec<String> = given.split_whitespace().map(str::to_lowercase).collect();
    let right = given.iter().zip(expected).all(|(given, expected)| given == expected);
    if right && (WORDS_ASKED..=expected.len()).contains(&given.len()) {
        return Ok(());
    }
    let message = match given.len() {
        0 => "no words were given; nothing was signed",
        1 if right => "one word was given, two are needed; nothing was signed",
        _ => "these are not the first words of this text; nothing was signed",
    };
    Err(Refusal::new(error_code::WORDS_MISMATCH, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXPECTED: [&str; 6] = ["badge", "pelican", "gecko", "iris", "barn", "velvet"];

    #[test]
    fn the_first_two_words_or_more_are_needed_and_all_must_be_right() {
        for given in ["badge pelican", " Badge\tPELICAN \n", "badge pelican gecko", &EXPECTED.join(" ")] {
            assert_eq!(compare_words(given, &EXPECTED), Ok(()), "{given}");
        }
        for (given, reason) in [
            ("", "no words"),
            ("y", "not the first words"),
            ("yes", "not the first words"),
            ("badge", "two are needed"),
            ("badge gecko", "not the first words"),
            ("pelican badge", "not the first words"),
            ("badge pelican barn", "not the first words"),
            ("badge pelican gecko iris barn velvet velvet", "not the first words"),
        ] {
            let refusal = compare_words(given, &EXPECTED).expect_err(given);
            assert_eq!(refusal.code, error_code::WORDS_MISMATCH);
            assert!(refusal.message.contains(reason), "{given}: {refusal}");
        }
    }
}
