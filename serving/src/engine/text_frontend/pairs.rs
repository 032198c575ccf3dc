//! Tokens of a query and a document, as a cross-encoder reads them together.

use super::super::{EngineError, TokenPair};
use super::TextFrontend;
use tokenizers::Encoding;

impl TextFrontend {
    /// Tokenizes a query without the tokens around it. A special token in it is text.
    ///
    /// # Errors
    /// [`EngineError::TextTooLong`] before any work, or [`EngineError::Tokenize`].
    pub fn encode_query(&self, query: &str) -> Result<Encoding, EngineError> {
        self.encode_part(query)
    }

    /// Tokenizes a document, joins it to a query and rejects a pair that exceeds the context. A special token
    /// in it is text.
    ///
    /// # Errors
    /// As [`Self::encode_query`], and [`EngineError::ContextExceeded`].
    pub fn encode_pair(&self, query: &Encoding, document: &str) -> Result<TokenPair, EngineError> {
        let document = self.encode_part(document)?;
        let joined = self
            .tokenizer
            .post_process(query.clone(), Some(document), true)
            .map_err(|error| EngineError::Tokenize { reason: error.to_string() })?;
        self.check(joined.get_ids().len())?;
        pair_of(joined.get_ids(), joined.get_type_ids())
    }

    fn encode_part(&self, text: &str) -> Result<Encoding, EngineError> {
        let whole = 0..text.len();
        self.encoding(text, std::slice::from_ref(&whole), false)
    }
}

/// Finds where the second type begins: types are 0 up to there and 1 after it.
fn pair_of(tokens: &[u32], types: &[u32]) -> Result<TokenPair, EngineError> {
    assert_eq!(tokens.len(), types.len(), "a type for each token");
    let second = types.iter().position(|kind| *kind != 0).unwrap_or(types.len());
    if types[second..].iter().any(|kind| *kind != 1) {
        let reason = "the tokenizer's types of a pair are not 0 and then 1".to_owned();
        return Err(EngineError::Tokenize { reason });
    }
    Ok(TokenPair { tokens: tokens.to_vec(), second })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(frontend: &TextFrontend, query: &str, document: &str) -> Result<TokenPair, EngineError> {
        frontend.encode_pair(&frontend.encode_query(query)?, document)
    }

    #[test]
    fn a_pair_has_the_tokens_between_and_its_types() {
        let frontend = TextFrontend::bytes_reranking(100);
        let tokens = |text: &str| text.bytes().map(u32::from).collect::<Vec<_>>();
        let found = pair(&frontend, "ab", "cde").expect("tokens");
        let expected = [tokens("ab"), vec![256], tokens("cde")].concat();
        assert_eq!(found, TokenPair { tokens: expected, second: 3 });
        let empty = pair(&frontend, "", "").expect("tokens");
        assert_eq!(empty, TokenPair { tokens: vec![256], second: 1 });
    }

    #[test]
    fn a_special_token_in_a_text_of_a_pair_is_text() {
        let frontend = TextFrontend::bytes_reranking(100);
        for (query, document) in [("<|end|>", "x"), ("x", "<|end|>")] {
            let found = pair(&frontend, query, document).expect("tokens");
            assert_eq!(found.tokens.iter().filter(|token| **token == 256).count(), 1, "{query} {document}");
            assert_eq!(found.tokens.len(), 9);
        }
    }

    #[test]
    fn a_pair_beyond_the_context_is_refused() {
        let frontend = TextFrontend::bytes_reranking(6);
        assert!(pair(&frontend, "ab", "cde").is_ok(), "the control");
        let error = pair(&frontend, "ab", "cdef").expect_err("seven tokens");
        assert_eq!(error.to_string(), "7 tokens exceed the model's context of 6");
        let long = "x".repeat(frontend.text_bytes_max() + 1);
        for (query, document) in [(long.as_str(), ""), ("", long.as_str())] {
            let error = pair(&frontend, query, document).expect_err("too long");
            assert!(error.to_string().contains("bytes of text"), "{error}");
        }
    }

    #[test]
    fn types_that_do_not_ascend_are_refused() {
        let found = |types: &[u32]| pair_of(&[7; 3], types).map(|pair| pair.second).ok();
        assert_eq!(found(&[0, 0, 0]), Some(3));
        assert_eq!(found(&[0, 1, 1]), Some(1));
        assert_eq!(found(&[0, 1, 0]), None);
        assert_eq!(found(&[0, 0, 2]), None);
    }
}
