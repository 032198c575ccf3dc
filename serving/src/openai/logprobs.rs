//! Log-probabilities in answers: OpenAI's two forms, of chats and of completions.

use crate::batcher::{AnswerToken, TokenPiece};
use serde::{Serialize, Serializer};
use std::borrow::Cow;
use std::collections::BTreeMap;

/// Smallest log-probability that is written, as in OpenAI's API; JSON has no infinity.
const LEAST: f32 = -9999.0;

/// Log-probabilities of one choice, or of a piece of it.
#[derive(Serialize)]
#[serde(untagged)]
pub(super) enum ChoiceLogprobs<'a> {
    Chat {
        content: Vec<ChatToken<'a>>,
        refusal: Option<()>,
    },
    Text {
        tokens: Vec<Cow<'a, str>>,
        token_logprobs: Vec<Logprob>,
        top_logprobs: Vec<BTreeMap<Cow<'a, str>, Logprob>>,
        text_offset: Vec<usize>,
    },
}

#[derive(Serialize)]
pub(super) struct ChatToken<'a> {
    #[serde(flatten)]
    token: Alternative<'a>,
    top_logprobs: Vec<Alternative<'a>>,
}

#[derive(Serialize)]
struct Alternative<'a> {
    token: Cow<'a, str>,
    logprob: Logprob,
    bytes: &'a [u8],
}

/// A log-probability.
pub(super) struct Logprob(f32);

impl Serialize for Logprob {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f32(self.0.max(LEAST))
    }
}

impl<'a> ChoiceLogprobs<'a> {
    /// Writes the tokens of a chat.
    pub(super) fn of_chat(tokens: &'a [AnswerToken]) -> Self {
        let alternative = |piece: &'a TokenPiece, logprob: f32| Alternative {
            token: String::from_utf8_lossy(&piece.bytes),
            logprob: Logprob(logprob),
            bytes: &piece.bytes,
        };
        let content = tokens.iter().map(|token| ChatToken {
            token: alternative(&token.piece, token.logprob),
            top_logprobs: token.top.iter().map(|(piece, logprob)| alternative(piece, *logprob)).collect(),
        });
        Self::Chat { content: content.collect(), refusal: None }
    }

    /// Writes the tokens of a completion that begin at this character of its text. The alternatives hold the
    /// token itself, too.
    pub(super) fn of_text(tokens: &'a [AnswerToken], offset: usize) -> Self {
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
        Self::Text {
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
        let found = serde_json::to_value(ChoiceLogprobs::of_chat(&tokens[..2])).expect("JSON");
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
        let found = serde_json::to_value(ChoiceLogprobs::of_text(&tokens, 10)).expect("JSON");
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
