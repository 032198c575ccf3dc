//! One line for an error and all of its causes.

use std::error::Error;

/// Formats an error and its causes, outermost first: `open manifest: read file: permission denied`.
///
/// A cause whose text is already part of the line is left out, because some libraries repeat their source in
/// their own text.
#[must_use]
pub fn error_chain(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let text = cause.to_string();
        if !line.contains(&text) {
            line = format!("{line}: {text}");
        }
        next = cause.source();
        debug_assert!(line.contains(&text), "no cause is lost");
    }
    debug_assert!(line.starts_with(&error.to_string()), "the error itself comes before its causes");
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Cause {
        text: &'static str,
        source: Option<Box<Cause>>,
    }

    fn chain(texts: &[&'static str]) -> String {
        let link = |source, text: &&'static str| Some(Box::new(Cause { text, source }));
        error_chain(&*texts.iter().rev().fold(None, link).expect("one text at least"))
    }

    #[test]
    fn causes_follow_their_error_and_a_repeated_one_is_left_out() {
        assert_eq!(chain(&["open manifest"]), "open manifest");
        assert_eq!(chain(&["open manifest", "read file", "denied"]), "open manifest: read file: denied");
        assert_eq!(chain(&["connect: refused", "refused", "os error 111"]), "connect: refused: os error 111");
    }
}
