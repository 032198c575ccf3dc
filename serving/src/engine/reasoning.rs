//! Reasoning of a model, apart from its answer: the text between `<think>` and `</think>`, as Qwen3 and the
//! models distilled from DeepSeek R1 write it.
//!
//! Only a model whose chat template names the end tag reasons ([`ReasoningStart`]). Where its answer begins
//! follows from the prompt: some templates open the tag, and Qwen3's closes it where the request has
//! `enable_thinking` false. Otherwise the model opens it first or not at all. A tag may be cut anywhere
//! between two pieces of text; what could be its beginning is held back.

use super::stop::overlap;

/// Tag before the reasoning.
const OPEN: &str = "<think>";
/// Tag after it.
const CLOSE: &str = "</think>";
/// Longest whitespace before the first tag that is held back, in bytes.
const WHITESPACE_BYTES_MAX: usize = 64;

/// Where an answer begins, of a model that reasons.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReasoningStart {
    /// Before the tag that opens the reasoning, or without any.
    Before,
    /// In the reasoning.
    Within,
    /// After it.
    After,
}

impl ReasoningStart {
    /// Finds out from a chat template and the prompt that it rendered; `None` for a model that does not
    /// reason.
    #[must_use]
    pub fn of(template: &str, prompt: &str) -> Option<Self> {
        if !template.contains(CLOSE) {
            return None;
        }
        let end = prompt.trim_end();
        Some(match (end.ends_with(OPEN), end.ends_with(CLOSE)) {
            (true, _) => Self::Within,
            (_, true) => Self::After,
            _ => Self::Before,
        })
    }
}

/// Text of an answer, of which either part may be empty.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ReasonedText {
    pub reasoning: String,
    /// Text after the reasoning.
    pub content: String,
}

/// Separates reasoning and content of one answer, piece by piece.
#[derive(Debug)]
pub struct ReasoningParser {
    position: ReasoningStart,
    /// Text that could be the beginning of a tag, with the whitespace before the first one.
    held: String,
}

impl ReasoningParser {
    /// Begins an answer.
    #[must_use]
    pub fn new(position: ReasoningStart) -> Self {
        Self { position, held: String::new() }
    }

    /// Adds text; returns what certainly belongs to either part.
    pub fn push(&mut self, text: &str) -> ReasonedText {
        self.held.push_str(text);
        let mut found = ReasonedText::default();
        if self.position == ReasoningStart::Before {
            let begun = self.held.trim_start();
            if let Some(rest) = begun.strip_prefix(OPEN) {
                self.held = rest.to_owned();
                self.position = ReasoningStart::Within;
            } else if !OPEN.starts_with(begun) || self.held.len() > WHITESPACE_BYTES_MAX {
                self.position = ReasoningStart::After;
            }
        }
        if self.position == ReasoningStart::Within {
            match self.held.split_once(CLOSE) {
                Some((reasoning, content)) => {
                    found.reasoning = reasoning.to_owned();
                    self.held = content.to_owned();
                    self.position = ReasoningStart::After;
                }
                None => {
                    let certain = self.held.len() - overlap(&self.held, CLOSE);
                    found.reasoning = self.held.drain(..certain).collect();
                }
            }
        }
        if self.position == ReasoningStart::After {
            found.content = std::mem::take(&mut self.held);
        }
        found
    }

    /// Adds the last text; returns all that is left.
    pub fn finish(&mut self, text: &str) -> ReasonedText {
        let mut found = self.push(text);
        let held = std::mem::take(&mut self.held);
        match self.position {
            ReasoningStart::Within => found.reasoning.push_str(&held),
            ReasoningStart::Before | ReasoningStart::After => found.content.push_str(&held),
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Parses a text in two pieces, cut at every character; returns reasoning and content.
    fn parsed(start: ReasoningStart, text: &str) -> (String, String) {
        let read = |pieces: &[&str]| {
            let (mut parser, mut whole) = (ReasoningParser::new(start), ReasonedText::default());
            for (index, piece) in pieces.iter().enumerate() {
                let is_last = index + 1 == pieces.len();
                let found = if is_last { parser.finish(piece) } else { parser.push(piece) };
                whole.reasoning.push_str(&found.reasoning);
                whole.content.push_str(&found.content);
            }
            (whole.reasoning, whole.content)
        };
        let whole = read(&[text]);
        for (cut, _) in text.char_indices() {
            assert_eq!(read(&[&text[..cut], &text[cut..]]), whole, "{text:?} cut at {cut}");
        }
        let characters: Vec<String> = text.chars().map(String::from).collect();
        assert_eq!(read(&characters.iter().map(String::as_str).collect::<Vec<_>>()), whole, "{text:?}");
        whole
    }

    #[test]
    fn tags_are_found_wherever_they_are_cut() {
        use ReasoningStart::{After, Before, Within};
        for (start, text, reasoning, content) in [
            (Before, "<think>\nplan é\n</think>\n\nyes", "\nplan é\n", "\n\nyes"),
            (Before, "\n <think>a</think>b", "a", "b"),
            (Before, "no tag", "", "no tag"),
            (Before, " <thin", "", " <thin"),
            (Before, "a <think>b</think>", "", "a <think>b</think>"),
            (Before, "</think>x", "", "</think>x"),
            (Before, "<think>never closed </thin", "never closed </thin", ""),
            (Before, "<think></think>x", "", "x"),
            (Within, "plan</think>x</think><think>y", "plan", "x</think><think>y"),
            (Within, "a < b </ c</think>d", "a < b </ c", "d"),
            (Within, "cut off", "cut off", ""),
            (After, "<think>text</think>", "", "<think>text</think>"),
            (Before, "", "", ""),
        ] {
            assert_eq!(parsed(start, text), (reasoning.to_owned(), content.to_owned()), "{start:?} {text:?}");
        }
    }

    /// Attack: an answer of whitespace alone would be held back until its end.
    #[test]
    fn endless_whitespace_is_not_held_back() {
        let mut parser = ReasoningParser::new(ReasoningStart::Before);
        let sent: String = (0..1000).map(|_| parser.push("\n").content).collect();
        assert!(sent.len() >= 1000 - WHITESPACE_BYTES_MAX, "{}", sent.len());
        assert_eq!(parser.push("<think>x").content, "<think>x", "the tag is late");
    }

    #[test]
    fn text_is_sent_as_soon_as_it_is_no_tag() {
        let mut parser = ReasoningParser::new(ReasoningStart::Before);
        let mut step = |text: &str| {
            let ReasonedText { reasoning, content } = parser.push(text);
            format!("{reasoning}|{content}")
        };
        let steps = ["\n<thi", "nk>a", "b</", "i></thi", "nk>c", "</think>"].map(&mut step);
        assert_eq!(steps, ["|", "a|", "b|", "</i>|", "|c", "|</think>"]);
    }

    #[test]
    fn the_template_says_whether_and_where_a_model_reasons() {
        let qwen = "{% if not enable_thinking %}<think>\n\n</think>\n\n{% endif %}";
        let of = |prompt: &str| ReasoningStart::of(qwen, prompt);
        assert_eq!(of("<|im_start|>assistant\n"), Some(ReasoningStart::Before));
        assert_eq!(of("<|im_start|>assistant\n<think>\n\n</think>\n\n"), Some(ReasoningStart::After));
        assert_eq!(of("<｜Assistant｜><think>\n"), Some(ReasoningStart::Within));
        assert_eq!(ReasoningStart::of("{{ messages[0].content }}", "<think>"), None);
    }
}
