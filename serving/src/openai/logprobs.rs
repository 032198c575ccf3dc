//! Log-probabilities in answers: OpenAI's two forms, of chats and of completions.

use crate::batcher::{AnswerToken, TokenPiece};
use serde::{Serialize, Serializer};
use std::borrow::Cow;
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// Smallest log-probability that is written, as in OpenAI's API; JSON has no infinity.
const LEAST: f32 = -9999.0;

/// Log-probabilities of an answer to a conversation, or of a piece of it.
#[derive(Serialize, ToSchema)]
pub(super) struct ChatLogprobs<'a> {
    content: Vec<ChatToken<'a>>,
    #[schema(value_type = Option<String>)]
    refusal: Option<()>,
}

/// Log-probabilities of a completion, or of a piece of it.
#[derive(Serialize, ToSchema)]
pub(super) struct TextLogprobs<'a> {
    tokens: Vec<Cow<'a, str>>,
    token_logprobs: Vec<Logprob>,
    /// For each token, the most likely ones and the token itself.
    #[schema(value_type = Vec<BTreeMap<String, f32>>)]
    top_logprobs: Vec<BTreeMap<Cow<'a, str>, Logprob>>,
    /// Character of the text at which each token begins.
    text_offset: Vec<usize>,
}

/// A token, and the most likely ones in its place.
#[derive(Serialize, ToSchema)]
pub(super) struct ChatToken<'a> {
    #[serde(flatten)]
    token: Alternative<'a>,
    top_logprobs: Vec<Alternative<'a>>,
}

/// A token with its log-probability.
#[derive(Serialize, ToSchema)]
pub(super) struct Alternative<'a> {
    token: Cow<'a, str>,
    logprob: Logprob,
    #[schema(value_type = Vec<u32>)]
    bytes: &'a [u8],
}

/// A log-probability.
#[derive(ToSchema)]
#[schema(value_type = f32)]
pub(super) struct Logprob(f32);

impl Serialize for Logprob {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f32(self.0.max(LEAST))
    }
}

impl<'a> ChatLogprobs<'a> {
    /// Writes the tokens of a chat.
    pub(super) fn of(tokens: &'a [AnswerToken]) -> Self {
        let alternative = |piece: &'a TokenPiece, logprob: f32| Alternative {
            token: String::from_utf8_lossy(&piece.bytes),
            logprob: Logprob(logprob),
            bytes: &piece.bytes,
        };
        let content = tokens.iter().map(|token| ChatToken {
            token: alternative(&token.piece, token.logprob),
            top_logprobs: token.top.iter().map(|(piece, logprob)| alternative(piece, *logprob)).collect(),
        });
        Self { content: content.collect(), refusal: None }
    }
}

impl<'a> TextLogprobs<'a> {
    /// Writes the tokens of a completion that begin at this character of its text. The alternatives hold the
    /// token itself, too.
    pub(super) fn of(tokens: &'a [AnswerToken], offset: usize) -> Self {
        let mut next = offset;
        let text_offset = tokens.iter().map(|token| {
            let start = next;
            next += token.piece.characters();
            start
        });
        let text_offset = text_offset.collect();
        let top_logprobs = tokens.iter().map(|token| {
            let own = [(written(&token.piece), Logprob(token.logprob))];
            let top = token.top.iter().map(|(piece, logprob)| (written(piece), Logprob(*logprob)));
            top.chain(own).collect()
        });
        Self {
            tokens: tokens.iter().map(|token| written(&token.piece)).collect(),
            token_logprobs: tokens.iter().map(|token| Logprob(token.logprob)).collect(),
            top_logprobs: top_logprobs.collect(),
            text_offset,
        }
    }
}

/// Returns a token as completions write it: its text or, where that is no whole text, `bytes:` and these.
fn written(piece: &TokenPiece) -> Cow<'_, str> {
    match std::str::from_utf8(&piece.bytes) {
        Ok(text) => Cow::Borrowed(text),
        Err(_) => {
            let bytes: String = piece.bytes.iter().map(|byte| format!("\\x{byte:02x}")).collect();
            Cow::Owned(format!("bytes:{bytes}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn tokens() -> Vec<AnswerToken> {
        let piece = |bytes: &[u8]| TokenPiece { bytes: bytes.to_vec() };
        vec![
            AnswerToken {
                piece: piece(b"a"),
                logprob: -0.5,
                top: vec![(piece(b"a"), -0.5), (piece(b"b"), f32::NEG_INFINITY)],
            },
            AnswerToken { piece: piece(b"\xc3"), logprob: -1.5, top: Vec::new() },
            AnswerToken { piece: piece(b"\xa9!"), logprob: -2.0, top: Vec::new() },
        ]
    }

    #[test]
    fn a_chats_tokens_have_openais_shape() {
        let tokens = tokens();
        let found = serde_json::to_value(ChatLogprobs::of(&tokens[..2])).expect("JSON");
        let expected = json!({ "refusal": null, "content": [
            { "token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": [
                { "token": "a", "logprob": -0.5, "bytes": [97] },
                { "token": "b", "logprob": -9999.0, "bytes": [98] },
            ] },
            { "token": "\u{fffd}", "logprob": -1.5, "bytes": [195], "top_logprobs": [] },
        ] });
        assert_eq!(found, expected);
    }

    #[test]
    fn a_completions_tokens_have_openais_shape() {
        let tokens = tokens();
        let found = serde_json::to_value(TextLogprobs::of(&tokens, 10)).expect("JSON");
        let second = "bytes:\\xa9\\x21";
        let expected = json!({
            "tokens": ["a", "bytes:\\xc3", second],
            "token_logprobs": [-0.5, -1.5, -2.0],
            "top_logprobs": [{ "a": -0.5, "b": -9999.0 }, { "bytes:\\xc3": -1.5 }, { second: -2.0 }],
            "text_offset": [10, 11, 12],
        });
        assert_eq!(found, expected);
    }
}
