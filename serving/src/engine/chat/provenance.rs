//! Provenance of a rendered prompt: the bytes that came from messages.
//!
//! A template is a program: it trims, cuts and joins the texts of messages. To follow them, each of their
//! characters is preceded by a private mark while the template runs, and the marks are removed from its
//! output. Whitespace stays unmarked, so that trimming works, and so do those texts that the template itself
//! looks for (`</think>`), unless a special token could begin or end in them. A mark is a character that no
//! message holds.

use super::super::special_tokens::SpecialTokens;
use std::collections::BTreeSet;
use std::ops::Range;

/// Characters that may be marks: the private use area of the first plane.
const MARKS: std::ops::RangeInclusive<char> = '\u{e000}'..='\u{f8ff}';

/// Marks texts, and reads marked output.
#[derive(Debug)]
pub(super) struct Marker {
    mark: Option<char>,
    /// Texts that are never marked, longest first.
    exempt: Vec<String>,
}

impl Marker {
    /// Returns a marker that changes no text.
    pub(super) fn none() -> Self {
        Self { mark: None, exempt: Vec::new() }
    }

    /// Returns a marker for these texts; `None` when they hold all characters that could be a mark.
    /// `literals` are the texts that the template may look for.
    pub(super) fn for_texts<'t>(
        texts: impl Iterator<Item = &'t str>,
        literals: &[String],
        special: &SpecialTokens,
    ) -> Option<Self> {
        let mut used: BTreeSet<char> = BTreeSet::new();
        let mut note = |text: &str| used.extend(text.chars().filter(|character| MARKS.contains(character)));
        texts.for_each(&mut note);
        literals.iter().for_each(|literal| note(literal));
        let mut marks = MARKS;
        let mark = marks.find(|mark| !used.contains(mark))?;
        let mut exempt: Vec<String> =
            literals.iter().filter(|literal| !special.may_touch(literal)).cloned().collect();
        exempt.sort_unstable_by_key(|literal| std::cmp::Reverse(literal.len()));
        Some(Self { mark: Some(mark), exempt })
    }

    /// Returns the bytes that a marked text of at most `bytes` unmarked ones may take.
    pub(super) fn bytes_of(&self, bytes: usize) -> usize {
        // One mark for each character, which has at least one byte.
        bytes.saturating_mul(1 + self.mark.map_or(0, char::len_utf8))
    }

    /// Marks a text of a message.
    pub(super) fn mark(&self, text: &str) -> String {
        let Some(mark) = self.mark else { return text.to_owned() };
        let mut marked = String::with_capacity(self.bytes_of(text.len()));
        let mut rest = text;
        while let Some(character) = rest.chars().next() {
            let plain = self.exempt.iter().find(|literal| rest.starts_with(literal.as_str()));
            let length = plain.map_or(character.len_utf8(), String::len);
            if plain.is_none() && !character.is_whitespace() {
                marked.push(mark);
            }
            marked.push_str(&rest[..length]);
            rest = &rest[length..];
        }
        marked
    }

    /// Removes the marks from a template's output; returns the text, and the ranges of the characters that
    /// were marked.
    pub(super) fn read(&self, output: &str) -> (String, Vec<Range<usize>>) {
        let mut text = String::with_capacity(output.len());
        let mut untrusted: Vec<Range<usize>> = Vec::new();
        let mut is_marked = false;
        for character in output.chars() {
            if Some(character) == self.mark {
                is_marked = true;
                continue;
            }
            let start = text.len();
            text.push(character);
            if std::mem::take(&mut is_marked) {
                match untrusted.last_mut() {
                    Some(last) if last.end == start => last.end = text.len(),
                    _ => untrusted.push(start..text.len()),
                }
            }
        }
        (text, untrusted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::text_frontend::byte_tokenizer;

    fn special() -> SpecialTokens {
        SpecialTokens::of(&byte_tokenizer(&["<|user|>", "<|end|>"]))
    }

    fn marker(texts: &[&str], literals: &[&str]) -> Marker {
        let literals: Vec<String> = literals.iter().map(|literal| (*literal).to_owned()).collect();
        Marker::for_texts(texts.iter().copied(), &literals, &special()).expect("a free character")
    }

    #[test]
    fn marks_are_found_again() {
        let marker = marker(&["a b", "\u{e000}"], &[]);
        let marked = marker.mark("é b\u{e000}");
        assert_eq!(marked, "\u{e001}é \u{e001}b\u{e001}\u{e000}");
        let output = format!("<{}>", marked.trim());
        assert_eq!(marker.read(&output), ("<é b\u{e000}>".to_owned(), vec![1..3, 4..8]));
        assert_eq!(Marker::none().mark("a"), "a");
    }

    #[test]
    fn what_a_template_looks_for_is_not_marked_unless_a_special_token_could_touch_it() {
        let literals = ["</think>", "<|end|>", "user", "\n<|", "|>\n", "x<|end|>y"];
        let marker = marker(&[""], &literals);
        assert_eq!(marker.exempt, ["</think>"]);
        let marked = marker.mark("a</think>user<|");
        let (text, untrusted) = marker.read(&marked);
        assert_eq!((text.as_str(), untrusted), ("a</think>user<|", vec![0..1, 9..15]));
    }

    #[test]
    fn messages_that_hold_every_mark_are_refused() {
        let all: String = MARKS.collect();
        assert!(Marker::for_texts([all.as_str()].into_iter(), &[], &special()).is_none());
    }
}
