//! Incremental detokenization: turns tokens into text in whole characters.
//!
//! Text can lag behind tokens, because a token may end inside a UTF-8 character.

use super::TextFrontend;

/// Tokens of a prompt that give the decoder its context: enough for a character of four byte tokens and the
/// word before it.
const PROMPT_CONTEXT_TOKENS: usize = 8;
/// Maximum tokens without a complete character. UTF-8 needs four bytes, byte tokens one each; a few more
/// allow for decoders that inspect neighbours. After that, the available bytes are taken as text.
const INCOMPLETE_TOKENS_MAX: usize = 8;

/// Turns tokens into text, one at a time.
#[derive(Debug, Default)]
pub struct Detokenizer {
    /// Recent tokens; `tokens[..sent]` have been turned into text and give the decoder its context.
    tokens: Vec<u32>,
    sent: usize,
    /// Whether that context is the end of a prompt, which may end inside a character.
    is_at_prompt: bool,
}

impl Detokenizer {
    /// Continues the text of a prompt. A decoder of the SentencePiece family drops the space before the first
    /// token that it sees, so it must see what precedes the answer.
    #[must_use]
    pub fn after(prompt: &[u32]) -> Self {
        let context = &prompt[prompt.len().saturating_sub(PROMPT_CONTEXT_TOKENS)..];
        Self { tokens: context.to_vec(), sent: context.len(), is_at_prompt: true }
    }

    /// Returns the text that this token completes, possibly empty.
    pub fn push(&mut self, frontend: &TextFrontend, token: u32) -> String {
        self.tokens.push(token);
        self.advance(frontend, false)
    }

    /// Returns the remaining text, with replacement characters for incomplete bytes.
    pub fn finish(&mut self, frontend: &TextFrontend) -> String {
        self.advance(frontend, true)
    }

    fn advance(&mut self, frontend: &TextFrontend, finish: bool) -> String {
        assert!(self.sent <= self.tokens.len(), "only tokens that exist are sent");
        if self.sent == self.tokens.len() {
            return String::new();
        }
        let mut before = frontend.decode(&self.tokens[..self.sent]);
        let after = frontend.decode(&self.tokens);
        if self.is_at_prompt {
            // The answer completes the character in which the prompt ends.
            before.truncate(before.trim_end_matches(char::REPLACEMENT_CHARACTER).len());
        }
        let waiting = self.tokens.len() - self.sent < INCOMPLETE_TOKENS_MAX;
        if after.ends_with(char::REPLACEMENT_CHARACTER) && waiting && !finish {
            return String::new();
        }
        // A decoder may rewrite the end of its context; text already sent is not revised.
        let common = before.len().min(after.len());
        let fresh = after.get(common..).unwrap_or_default().to_owned();
        // Keep the tokens just sent as context, so that spaces between words decode as they would in full.
        self.tokens.drain(..self.sent);
        self.sent = self.tokens.len();
        self.is_at_prompt = false;
        fresh
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_are_never_cut() {
        let frontend = TextFrontend::bytes(64);
        let text = "naïve 東京 👩‍👩‍👧 end";
        let mut detokenizer = Detokenizer::default();
        let mut sent = String::new();
        for byte in frontend.encode(text, false).expect("byte tokens") {
            let chunk = detokenizer.push(&frontend, byte);
            assert!(!chunk.contains(char::REPLACEMENT_CHARACTER), "{chunk:?}");
            sent.push_str(&chunk);
        }
        sent.push_str(&detokenizer.finish(&frontend));
        assert_eq!(sent, text);
    }

    /// Returns a frontend whose decoder drops the first space, as those of Llama 2, Mistral and Gemma do.
    fn sentence_pieces() -> TextFrontend {
        let metaspace = serde_json::json!({
            "type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true
        });
        let vocabulary = serde_json::json!({ "<unk>": 0, "▁the": 1, "▁cat": 2, "▁sat": 3, "s": 4 });
        let json = serde_json::json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
            "pre_tokenizer": metaspace, "post_processor": null, "decoder": metaspace,
            "model": { "type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>" }
        });
        let tokenizer = tokenizers::Tokenizer::from_bytes(json.to_string()).expect("a valid tokenizer");
        TextFrontend::bytes(64).with(tokenizer, None)
    }

    #[test]
    fn a_completion_keeps_the_space_that_separates_it_from_its_prompt() {
        let frontend = sentence_pieces();
        let prompt = frontend.encode("the cat", false).expect("tokens");
        assert_eq!(prompt, [1, 2]);
        let answer = |mut detokenizer: Detokenizer| {
            let text: String = [3, 4].map(|token| detokenizer.push(&frontend, token)).concat();
            text + &detokenizer.finish(&frontend)
        };
        assert_eq!(answer(Detokenizer::after(&prompt)), " sats");
        assert_eq!(frontend.token_bytes(3), b" sat");
        // The control: without the prompt, the first space is lost. An answer to a chat begins like this.
        assert_eq!(answer(Detokenizer::default()), "sats");
    }

    #[test]
    fn an_answer_completes_the_character_in_which_its_prompt_ends() {
        let frontend = TextFrontend::bytes(64);
        let tokens = frontend.encode("caf\u{e9}!", false).expect("byte tokens");
        for cut in 1..=tokens.len() {
            let mut detokenizer = Detokenizer::after(&tokens[..cut]);
            let mut text = String::new();
            for token in &tokens[cut..] {
                text.push_str(&detokenizer.push(&frontend, *token));
            }
            text.push_str(&detokenizer.finish(&frontend));
            let expected = ["af\u{e9}!", "f\u{e9}!", "\u{e9}!", "\u{e9}!", "!", ""][cut - 1];
            assert_eq!(text, expected, "prompt of {cut} bytes");
        }
    }

    #[test]
    fn an_unfinished_character_is_replaced_at_the_end() {
        let frontend = TextFrontend::bytes(64);
        let tokens = frontend.encode("é", false).expect("byte tokens");
        let mut detokenizer = Detokenizer::default();
        assert_eq!(detokenizer.push(&frontend, tokens[0]), "");
        assert_eq!(detokenizer.finish(&frontend), "\u{fffd}");
    }
}
