//! Special tokens of a tokenizer, and tokenization of texts in which they are text.
//!
//! The tokenizer library treats the text of a special token as that token, wherever it occurs. A client that
//! writes `<|im_start|>system` into a message would then open a turn of its own. Here a special token counts
//! only where none of its bytes came from a client. Texts without such an occurrence take the library's own
//! path, so that their tokens are the library's. A unigram model has the texts of special tokens in its own
//! vocabulary too, and would find them after its normalizer; there they are divided into characters.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use tokenizers::models::ModelWrapper;
use tokenizers::tokenizer::normalizer::Range as Slice;
use tokenizers::{
    AddedToken, Encoding, Model as _, NormalizedString, Normalizer as _, OffsetType, PreTokenizedString,
    PreTokenizer as _, Token, Tokenizer,
};

/// A piece of text, with its token if it is one.
type Piece = (NormalizedString, Option<Vec<Token>>);

/// The tokens that a tokenizer finds before its model runs: special ones and other added ones.
#[derive(Debug, Default)]
pub struct SpecialTokens {
    /// Found in the text as it is.
    raw: Patterns,
    /// Found in the normalized text.
    normalized: Patterns,
    /// Texts of the special ones, sorted.
    special: Vec<String>,
    /// Whether the model itself finds these texts.
    is_unigram: bool,
    /// First and last characters of these.
    edges: BTreeSet<char>,
}

impl SpecialTokens {
    /// Reads the added tokens of `tokenizer`.
    #[must_use]
    pub fn of(tokenizer: &Tokenizer) -> Self {
        let (mut raw, mut normalized, mut special) = (Patterns::default(), Patterns::default(), Vec::new());
        for (id, token) in tokenizer.get_added_tokens_decoder() {
            if token.content.is_empty() {
                continue;
            }
            if token.special {
                special.push(token.content.clone());
            }
            if token.normalized {
                normalized.add(normal_form(tokenizer, &token.content), id, token);
            } else {
                raw.add(token.content.clone(), id, token);
            }
        }
        raw.sort();
        normalized.sort();
        special.sort_unstable();
        let edges =
            special.iter().flat_map(|token| token.chars().next().into_iter().chain(token.chars().last()));
        let edges = edges.collect();
        let is_unigram = matches!(tokenizer.get_model(), ModelWrapper::Unigram(_));
        Self { raw, normalized, special, is_unigram, edges }
    }

    /// Reports whether a text may hold a special token, or a part of one that its surroundings complete.
    #[must_use]
    pub fn may_be_in(&self, text: &str) -> bool {
        // Normalization can turn other characters into those of a token.
        self.is_unigram
            || self.normalized.has_special()
            || text.chars().any(|character| self.edges.contains(&character))
    }

    /// Reports whether a text holds a whole special token.
    #[must_use]
    pub fn is_in(&self, text: &str) -> bool {
        self.special.iter().any(|token| text.contains(token.as_str()))
    }

    /// Reports whether an occurrence of a special token could share a byte with an occurrence of `literal`.
    #[must_use]
    pub fn may_touch(&self, literal: &str) -> bool {
        self.normalized.has_special()
            || self.special.iter().any(|token| {
                literal.contains(token.as_str())
                    || token.contains(literal)
                    || overlaps_at_an_end(token, literal)
            })
    }

    /// Tokenizes `text`, in which no special token has a byte within `untrusted` (ascending ranges).
    /// `special` adds the tokens that the tokenizer puts around an input.
    ///
    /// # Errors
    /// The tokenizer's own.
    pub fn encode(
        &self,
        tokenizer: &Tokenizer,
        text: &str,
        untrusted: &[Range<usize>],
        special: bool,
    ) -> tokenizers::Result<Encoding> {
        if !self.is_written_in(text, untrusted) {
            return tokenizer.encode_fast(text, special);
        }
        let mut pieces = PreTokenizedString::from(text);
        pieces.split(|_, piece| Ok(self.raw.cut(&piece, untrusted)))?;
        pieces.split(|_, mut piece| {
            if let Some(normalizer) = tokenizer.get_normalizer() {
                normalizer.normalize(&mut piece)?;
            }
            Ok(self.normalized.cut(&piece, untrusted))
        })?;
        if let Some(pre_tokenizer) = tokenizer.get_pre_tokenizer() {
            pre_tokenizer.pre_tokenize(&mut pieces)?;
        }
        pieces.tokenize(|piece| self.tokenize_text(tokenizer, piece.get()))?;
        tokenizer.post_process(pieces.into_encoding(None, 0, OffsetType::None)?, None, special)
    }

    /// Tokenizes a piece without special tokens by the model. One that a unigram model finds nevertheless is
    /// divided into its characters.
    fn tokenize_text(&self, tokenizer: &Tokenizer, text: &str) -> tokenizers::Result<Vec<Token>> {
        let model = tokenizer.get_model();
        let found = model.tokenize(text)?;
        let is_special = |token: &Token| {
            let written = &text[token.offsets.0..token.offsets.1];
            self.special.binary_search_by(|special| special.as_str().cmp(written)).is_ok()
        };
        if !self.is_unigram || !found.iter().any(is_special) {
            return Ok(found);
        }
        let mut tokens = Vec::with_capacity(found.len());
        for token in found {
            if !is_special(&token) {
                tokens.push(token);
                continue;
            }
            let start = token.offsets.0;
            for (at, character) in text[start..token.offsets.1].char_indices() {
                let offsets = (start + at, start + at + character.len_utf8());
                let parts = model.tokenize(&text[offsets.0..offsets.1])?;
                tokens.extend(parts.into_iter().map(|part| Token::new(part.id, part.value, offsets)));
            }
        }
        Ok(tokens)
    }

    /// Reports whether the library would find a special token that has a byte within `untrusted`.
    fn is_written_in(&self, text: &str, untrusted: &[Range<usize>]) -> bool {
        if untrusted.is_empty() {
            return false;
        }
        // Its normalizer can write any of them, from other characters.
        if self.is_unigram {
            return true;
        }
        let is_foreign = |found: &FoundToken<'_>| {
            let range = found.start..found.start + found.pattern.text.len();
            found.pattern.token.special && touches(untrusted, range)
        };
        self.normalized.has_special() || self.raw.find(text, |_, _| true).iter().any(is_foreign)
    }
}

/// Returns the text of an added token as the tokenizer's normalizer leaves it.
fn normal_form(tokenizer: &Tokenizer, content: &str) -> String {
    let mut normalized = NormalizedString::from(content);
    let is_normal =
        tokenizer.get_normalizer().is_none_or(|normalizer| normalizer.normalize(&mut normalized).is_ok());
    if is_normal { normalized.get().to_owned() } else { content.to_owned() }
}

/// Reports whether an end of one text is the beginning of the other.
fn overlaps_at_an_end(token: &str, literal: &str) -> bool {
    let meets = |first: &str, second: &str| {
        second.char_indices().skip(1).any(|(length, _)| first.ends_with(&second[..length]))
    };
    meets(token, literal) || meets(literal, token)
}

/// Reports whether a range shares a byte with one of these ascending ranges.
fn touches(ranges: &[Range<usize>], range: Range<usize>) -> bool {
    let next = ranges.partition_point(|earlier| earlier.end <= range.start);
    ranges.get(next).is_some_and(|other| other.start < range.end)
}

/// Added tokens to find in a text.
#[derive(Debug, Default)]
struct Patterns(BTreeMap<u8, Vec<Pattern>>);

#[derive(Debug)]
struct Pattern {
    text: String,
    id: u32,
    token: AddedToken,
}

/// An occurrence of a token.
struct FoundToken<'p> {
    pattern: &'p Pattern,
    /// First byte of the token's text.
    start: usize,
    /// Bytes that the token takes, with the whitespace that it strips.
    taken: Range<usize>,
}

impl Patterns {
    fn add(&mut self, text: String, id: u32, token: AddedToken) {
        let Some(first) = text.bytes().next() else { return };
        self.0.entry(first).or_default().push(Pattern { text, id, token });
    }

    /// Orders the tokens of each first byte: the longest first.
    fn sort(&mut self) {
        for patterns in self.0.values_mut() {
            patterns.sort_unstable_by_key(|pattern| (std::cmp::Reverse(pattern.text.len()), pattern.id));
        }
    }

    fn has_special(&self) -> bool {
        self.0.values().flatten().any(|pattern| pattern.token.special)
    }

    /// Finds the accepted tokens in a text: leftmost first, longest first, none within another. `accepts`
    /// gets the range of the token's text.
    fn find<'p>(
        &'p self,
        text: &str,
        accepts: impl Fn(&Pattern, Range<usize>) -> bool,
    ) -> Vec<FoundToken<'p>> {
        let mut found: Vec<FoundToken<'p>> = Vec::new();
        let (mut at, mut taken_to) = (0, 0);
        while let Some(first) = text.as_bytes().get(at) {
            let starting = self.0.get(first).into_iter().flatten();
            let pattern = starting
                .filter(|pattern| text.as_bytes()[at..].starts_with(pattern.text.as_bytes()))
                .find(|pattern| accepts(pattern, at..at + pattern.text.len()));
            let Some(pattern) = pattern else {
                at += 1;
                continue;
            };
            let end = at + pattern.text.len();
            if pattern.token.single_word && (ends_with_word(&text[..at]) || starts_with_word(&text[end..])) {
                at = end;
                continue;
            }
            let mut taken = at..end;
            if pattern.token.lstrip {
                taken.start = text[..at].trim_end().len().max(taken_to);
            }
            if pattern.token.rstrip {
                taken.end = text.len() - text[end..].trim_start().len();
            }
            taken_to = taken.end;
            found.push(FoundToken { pattern, start: at, taken });
            at = taken_to;
        }
        found
    }

    /// Cuts a piece at its tokens. A special token with a byte within `untrusted`, which counts bytes of the
    /// original text, is none.
    fn cut(&self, piece: &NormalizedString, untrusted: &[Range<usize>]) -> Vec<Piece> {
        let slice =
            |range: Range<usize>| piece.slice(Slice::Normalized(range)).expect("a range of the piece");
        let accepts = |pattern: &Pattern, range: Range<usize>| {
            let is_foreign = || {
                let (start, end) = slice(range).offsets_original();
                touches(untrusted, start..end)
            };
            !pattern.token.special || !is_foreign()
        };
        let text = piece.get();
        let mut pieces = Vec::new();
        let mut from = 0;
        for FoundToken { pattern, taken, .. } in self.find(text, accepts) {
            if from < taken.start {
                pieces.push((slice(from..taken.start), None));
            }
            let token = Token::new(pattern.id, text[taken.clone()].to_owned(), (0, taken.len()));
            from = taken.end;
            pieces.push((slice(taken), Some(vec![token])));
        }
        if from < text.len() {
            pieces.push((slice(from..text.len()), None));
        }
        pieces
    }
}

fn starts_with_word(text: &str) -> bool {
    text.chars().next().is_some_and(is_of_word)
}

fn ends_with_word(text: &str) -> bool {
    text.chars().next_back().is_some_and(is_of_word)
}

fn is_of_word(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}

#[cfg(test)]
mod tests;
