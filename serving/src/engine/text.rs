//! Incremental detokenization: turns tokens into text that may be sent, in whole characters and never past a
//! stop string.
//!
//! Text can lag behind tokens. A token may end inside a UTF-8 character. Text that could be the beginning of
//! a stop string is held back until the match is decided.

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

/// Conditions on which an answer ends before its longest form.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StopConditions {
    /// Strings before which it ends; at each position the shortest counts.
    pub strings: Vec<String>,
    /// Tokens before which it ends, beside the model's end tokens.
    pub tokens: Vec<u32>,
    /// Whether the text has the string or the token that ended it.
    pub is_included: bool,
    /// Whether the model's end tokens do not end it.
    pub ignores_end: bool,
    /// Tokens before which it does not end: no end or stop token is drawn, and no string counts.
    pub tokens_min: usize,
}

/// Holds text back while it could be the beginning of a stop string.
#[derive(Debug)]
pub struct StopStrings {
    stops: Vec<String>,
    /// Whether the text that is sent has the string that was found.
    is_included: bool,
    held: String,
}

/// Result of checking a chunk of text for stop strings.
#[derive(Debug, PartialEq, Eq)]
pub enum StopCheck {
    /// Text to send; generation continues.
    Text(String),
    /// Text to send; a stop string followed it.
    Stopped(String),
}

impl StopStrings {
    /// Watches for these strings; empty ones are ignored. The text before one is sent, with the string itself
    /// where it `is_included`.
    #[must_use]
    pub fn new(stops: Vec<String>, is_included: bool) -> Self {
        let stops = stops.into_iter().filter(|stop| !stop.is_empty()).collect();
        Self { stops, is_included, held: String::new() }
    }

    /// Adds text; returns the part that is certainly before any stop string.
    pub fn push(&mut self, text: &str) -> StopCheck {
        self.held.push_str(text);
        let find = |stop: &String| Some((self.held.find(stop.as_str())?, stop.len()));
        if let Some((at, length)) = self.stops.iter().filter_map(find).min() {
            self.held.truncate(if self.is_included { at + length } else { at });
            return StopCheck::Stopped(std::mem::take(&mut self.held));
        }
        let keep = self.stops.iter().map(|stop| overlap(&self.held, stop)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        StopCheck::Text(std::mem::replace(&mut self.held, rest))
    }

    /// Returns the text held back, when generation ends for another reason.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// Returns the number of bytes at the end of `text` that are a proper prefix of `stop`.
pub(super) fn overlap(text: &str, stop: &str) -> usize {
    assert!(!stop.is_empty(), "an empty stop string is ignored earlier");
    let longest = text.len().min(stop.len() - 1);
    (1..=longest).rev().find(|length| text.as_bytes().ends_with(&stop.as_bytes()[..*length])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feed(stops: &[&str], chunks: &[&str]) -> (String, bool) {
        feed_as(stops, chunks, false)
    }

    fn feed_as(stops: &[&str], chunks: &[&str], is_included: bool) -> (String, bool) {
        let mut watch = StopStrings::new(stops.iter().map(|stop| (*stop).to_owned()).collect(), is_included);
        let mut sent = String::new();
        for chunk in chunks {
            match watch.push(chunk) {
                StopCheck::Text(text) => sent.push_str(&text),
                StopCheck::Stopped(text) => return (sent + &text, true),
            }
        }
        (sent + &watch.finish(), false)
    }

    #[test]
    fn a_stop_string_is_sent_where_it_is_included() {
        for (stops, chunks, sent) in [
            (&["STOP"][..], &["one ST", "OP two"][..], "one STOP"),
            (&["abc", "ab"], &["xabc"], "xab"), // At one position the shortest counts.
            (&["\n"], &["line"], "line"),
        ] {
            assert_eq!(feed_as(stops, chunks, true).0, sent, "{stops:?} {chunks:?}");
        }
    }

    #[test]
    fn stop_strings_are_found_across_pieces_and_never_sent() {
        let cases: &[(&[&str], &[&str], &str, bool)] = &[
            (&[], &["a", "b"], "ab", false),
            (&["STOP"], &["one ST", "OP two"], "one ", true),
            (&["STOP"], &["one ST", "ART"], "one START", false),
            (&["STOP"], &["one STO"], "one STO", false),
            (&["b", "abc"], &["a", "bc"], "", true), // The match that begins first wins.
            (&["\n\n"], &["line\n", "\nrest"], "line", true),
            (&["é"], &["caf", "é!"], "caf", true),
            (&["aab"], &["aaaab"], "aa", true),
            (&["", "x"], &["yx"], "y", true),
        ];
        for (stops, chunks, sent, stopped) in cases {
            assert_eq!(feed(stops, chunks), ((*sent).to_owned(), *stopped), "{stops:?} {chunks:?}");
        }
    }

    #[test]
    fn text_that_cannot_become_a_stop_string_is_sent_at_once() {
        let mut watch = StopStrings::new(vec!["STOP".to_owned()], false);
        assert_eq!(watch.push("hello"), StopCheck::Text("hello".to_owned()));
        assert_eq!(watch.push(" S"), StopCheck::Text(" ".to_owned()));
        assert_eq!(watch.push("he"), StopCheck::Text("She".to_owned()));
    }

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
