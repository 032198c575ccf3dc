//! The words under a text to sign: a person types the first two after reading it, a script passes them.
//!
//! No option signs without them, so no signature is given for a text that its member did not see.

use anyhow::Result;
use clap::Args;
use protocol::{Refusal, error_code};
use std::io::{IsTerminal, Write};

/// Number of words that are asked for. More may be given; all must be right.
const WORDS_ASKED: usize = 2;

/// The words of the text to sign, for scripts.
#[derive(Debug, Args)]
pub(crate) struct WordsArguments {
    /// First two of the six words of the text, instead of typing them; the text is still printed
    #[arg(long, value_name = "WORDS")]
    pub(super) words: Option<String>,
}

impl WordsArguments {
    /// Compares the words with those of the text that was just printed; asks a person for them.
    ///
    /// # Errors
    /// Fails with `words-mismatch` if they are others, or if there is no person to ask.
    pub(super) fn confirm(&self, question: &str, expected: &[&str]) -> Result<()> {
        let given = match &self.words {
            Some(words) => words.clone(),
            None => typed(question)?,
        };
        Ok(compare(&given, expected)?)
    }
}

fn typed(question: &str) -> Result<String> {
    if !std::io::stdin().is_terminal() {
        let message = "standard input is no terminal; give the first two words with --words";
        return Err(Refusal::new(error_code::WORDS_MISMATCH, message).into());
    }
    eprint!("{question}: type the first two of the six words: ");
    std::io::stderr().flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(answer)
}

/// Checks that these are the first words of the text: two of them, or more.
fn compare(given: &str, expected: &[&str]) -> Result<(), Refusal> {
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
            assert_eq!(compare(given, &EXPECTED), Ok(()), "{given}");
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
            let refusal = compare(given, &EXPECTED).expect_err(given);
            assert_eq!(refusal.code, error_code::WORDS_MISMATCH);
            assert!(refusal.message.contains(reason), "{given}: {refusal}");
        }
    }

    #[test]
    fn a_script_passes_the_words_and_nothing_is_asked() {
        let arguments = |words: &str| WordsArguments { words: Some(words.into()) };
        assert!(arguments("badge pelican").confirm("sign", &EXPECTED).is_ok());
        let error = arguments("badge barn").confirm("sign", &EXPECTED).expect_err("another text");
        assert_eq!(
            error.downcast_ref::<Refusal>().map(|refusal| refusal.code),
            Some(error_code::WORDS_MISMATCH)
        );
    }
}
