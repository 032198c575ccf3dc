//! Refusals of grammars.

use protocol::ErrorCode;
use protocol::error_code as code;

/// Characters of a compiler's message that a client gets.
const MESSAGE_CHARACTERS_MAX: usize = 400;

/// Refusal of a grammar.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GrammarError {
    /// It asks for what cannot be enforced, contradicts itself, or is invalid.
    #[error("{0}")]
    Unsupported(String),
    /// It is larger than what is compiled.
    #[error("{0}")]
    TooLarge(String),
}

impl GrammarError {
    /// Returns the stable code that `quorate explain` documents.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Unsupported(_) => code::GRAMMAR_UNSUPPORTED,
            Self::TooLarge(_) => code::GRAMMAR_TOO_LARGE,
        }
    }
}

/// Turns a message of the library into a refusal, without the state of its parser.
pub(super) fn refusal(error: &anyhow::Error) -> GrammarError {
    let whole = format!("{error:#}");
    let ends = ["<state>", "<non-verbose/>", "<backtrace>"];
    let end = ends.iter().filter_map(|mark| whole.find(mark)).min().unwrap_or(whole.len());
    let lines: Vec<&str> = whole[..end].lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let shown: String = lines.join(" ").chars().take(MESSAGE_CHARACTERS_MAX).collect();
    let lower = shown.to_lowercase();
    let words = ["too large", "too big", "too complex", "too many", "limit", "exceeded", "fuel"];
    if words.iter().any(|word| lower.contains(word)) {
        GrammarError::TooLarge(shown)
    } else {
        GrammarError::Unsupported(shown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_of_the_library_is_one_line_with_a_code() {
        for (message, expected) in [
            ("Unimplemented keys: [\"not\"]", "grammar-unsupported Unimplemented keys: [\"not\"]"),
            ("schema too large", "grammar-too-large schema too large"),
            ("step: fuel used up\n<state>\nTokens: 5", "grammar-too-large step: fuel used up"),
            ("at 1(2): no\n  1 | start\n    |  ^", "grammar-unsupported at 1(2): no 1 | start |  ^"),
            ("panic: index\n<backtrace>\n0: main", "grammar-unsupported panic: index"),
        ] {
            let error = refusal(&anyhow::anyhow!(message.to_owned()));
            assert_eq!(format!("{} {error}", error.code()), expected);
        }
        let long = refusal(&anyhow::anyhow!("\u{e9}".repeat(1000)));
        assert_eq!(long.to_string().chars().count(), MESSAGE_CHARACTERS_MAX);
    }
}
