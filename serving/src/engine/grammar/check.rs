//! Check of a whole answer for what its grammar does not say: the last token of an answer is allowed only
//! where the value is an instance of the schema.
//!
//! The grammar steers an answer as far as it goes. Where it leads to a value that is no instance, all tokens
//! that would complete it are forbidden, so that the model adds what is missing. An answer that cannot be
//! completed any more fails by name, and is never sent as a whole one.

use super::validator::Validator;
use crate::engine::reasoning::ReasoningStart;
use llguidance::toktrie::{SimpleVob, TokEnv, TokTrie};
use serde_json::Value;
use std::collections::BTreeMap;

/// Tag after the reasoning, and before it.
const CLOSE: &[u8] = b"</think>";
const OPEN: &[u8] = b"<think>";

/// Tokens that may complete a JSON value.
#[derive(Debug, Default)]
pub(super) struct ClosingTokens {
    tokens: Vec<u32>,
    /// Most brackets that one of them closes.
    brackets_max: usize,
}

impl ClosingTokens {
    /// Finds the tokens of a vocabulary that end in a quote or a bracket.
    pub(super) fn of(trie: &TokTrie) -> Self {
        let mut found = Self::default();
        for token in 0..trie.vocab_size() as u32 {
            let bytes = trie.token(token);
            if !trie.is_special_token(token) && bytes.last().is_some_and(|byte| b"}]\"".contains(byte)) {
                found.tokens.push(token);
                let brackets = bytes.iter().filter(|byte| b"}]".contains(byte)).count();
                found.brackets_max = found.brackets_max.max(brackets);
            }
        }
        found
    }
}

/// Check of one request's answers.
pub(super) struct FinalCheck {
    pub(super) validator: Validator,
    pub(super) vocabulary: TokEnv,
    pub(super) closing: std::sync::Arc<ClosingTokens>,
    /// Where the answer begins, of a model that reasons.
    pub(super) start: Option<ReasoningStart>,
}

/// Place in a JSON text.
#[derive(Debug, Clone, Copy, Default)]
struct JsonPlace {
    depth: usize,
    is_quoted: bool,
    is_escaped: bool,
    /// Whether a text or a container is complete.
    is_complete: bool,
}

impl JsonPlace {
    fn push(&mut self, byte: u8) {
        if self.is_quoted {
            match byte {
                _ if std::mem::take(&mut self.is_escaped) => {}
                b'\\' => self.is_escaped = true,
                b'"' => {
                    self.is_quoted = false;
                    self.is_complete = self.depth == 0;
                }
                _ => {}
            }
            return;
        }
        match byte {
            b'"' => self.is_quoted = true,
            b'{' | b'[' => self.depth += 1,
            b'}' | b']' => {
                self.depth = self.depth.saturating_sub(1);
                self.is_complete = self.depth == 0;
            }
            _ => {}
        }
    }

    fn after(mut self, bytes: &[u8]) -> Self {
        bytes.iter().for_each(|byte| self.push(*byte));
        self
    }
}

impl FinalCheck {
    /// Returns the bytes that a token adds to the text.
    pub(super) fn bytes(&self, token: u32) -> &[u8] {
        let trie = self.vocabulary.tok_trie();
        if trie.is_special_token(token) { &[] } else { trie.token(token) }
    }

    /// Forbids the tokens that would complete an answer that is no instance.
    pub(super) fn restrict(&self, text: &[u8], mask: &mut SimpleVob) {
        let Some(answer) = self.answer(text) else { return };
        let ends = self.vocabulary.tok_trie().eos_tokens();
        if ends.iter().any(|end| mask.is_allowed(*end)) && !self.is_instance(answer) {
            ends.iter().for_each(|end| mask.disallow_token(*end));
        }
        let place = JsonPlace::default().after(answer);
        if place.depth > self.closing.brackets_max {
            return;
        }
        // Tokens that differ in whitespace alone complete the same value.
        let mut known: BTreeMap<Vec<u8>, bool> = BTreeMap::new();
        for token in &self.closing.tokens {
            let bytes = self.vocabulary.tok_trie().token(*token);
            if !mask.is_allowed(*token) || !place.after(bytes).is_complete {
                continue;
            }
            let is_plain = !place.is_quoted && !bytes.contains(&b'"');
            let key: Vec<u8> =
                bytes.iter().copied().filter(|byte| !is_plain || !byte.is_ascii_whitespace()).collect();
            let is_instance = || self.is_instance(&[answer, bytes].concat());
            if !*known.entry(key).or_insert_with(is_instance) {
                mask.disallow_token(*token);
            }
        }
    }

    /// Returns the text after the reasoning; `None` within it.
    fn answer<'t>(&self, text: &'t [u8]) -> Option<&'t [u8]> {
        let reasons = match self.start {
            None | Some(ReasoningStart::After) => false,
            Some(ReasoningStart::Within) => true,
            Some(ReasoningStart::Before) => {
                let begun = text.trim_ascii_start();
                if OPEN.starts_with(begun) {
                    return begun.is_empty().then_some(begun);
                }
                begun.starts_with(OPEN)
            }
        };
        if !reasons {
            return Some(text);
        }
        let end = text.windows(CLOSE.len()).position(|window| window == CLOSE)?;
        Some(&text[end + CLOSE.len()..])
    }

    fn is_instance(&self, answer: &[u8]) -> bool {
        serde_json::from_slice::<Value>(answer).is_ok_and(|value| self.validator.accepts(&value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_value_is_seen_from_its_brackets_and_quotes() {
        for (text, is_complete) in [
            ("", false),
            ("{\"a\": [1, {\"b\": \"}\\\"]\"}]", false),
            ("{\"a\": [1, {\"b\": \"}\\\"]\"}]}", true),
            ("\"a", false),
            ("\"a\\\"", false),
            ("\"a\\\\\"", true),
            ("[", false),
            ("[]", true),
            ("12", false),
        ] {
            assert_eq!(JsonPlace::default().after(text.as_bytes()).is_complete, is_complete, "{text}");
        }
    }
}
