//! The words under a text to sign: a person types the first two after reading it, a script passes them.
//!
//! No option signs without them, so no signature is given for a text that its member did not see.

use crate::print;
use anyhow::Result;
use clap::Args;
use console::compare_words;
use protocol::{Refusal, error_code};
use std::io::IsTerminal;

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
            None => typed(question, "give the first two words with --words")?,
        };
        Ok(compare_words(&given, expected)?)
    }
}

/// Asks a person for the words of a text that this command has just made: no script can know them.
///
/// # Errors
/// Fails with `words-mismatch` if they are others, or if there is no person to ask.
pub(super) fn confirm_own(question: &str, expected: &[&str]) -> Result<()> {
    let hint = "leave out --key to make a draft, and approve that with --words";
    Ok(compare_words(&typed(question, hint)?, expected)?)
}

fn typed(question: &str, hint: &str) -> Result<String> {
    if !std::io::stdin().is_terminal() {
        let message = format!("standard input is no terminal; {hint}");
        return Err(Refusal::new(error_code::WORDS_MISMATCH, message).into());
    }
    print::ask(format_args!("{question}: type the first two of the six words: "))?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXPECTED: [&str; 6] = ["badge", "pelican", "gecko", "iris", "barn", "velvet"];

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
