//! Compiles grammars for one tokenizer.
//!
//! The compiler knows the vocabulary as bytes. Its limits count work, never time: the same grammar is always
//! accepted or always refused.

use super::check::{ClosingTokens, FinalCheck};
use super::error::{GrammarError, refusal};
use super::schema::{Coverage, normalized};
use super::state::GrammarState;
use super::validator::Validator;
use super::{AnswerGrammar, GrammarPart};
use crate::engine::reasoning::ReasoningStart;
use llguidance::api::{GrammarWithLexer, ParserLimits, TopLevelGrammar};
use llguidance::toktrie::{TokEnv, TokRxInfo, TokTrie, TokenizerEnv};
use llguidance::{Matcher, ParserFactory};
use std::sync::{Arc, Mutex, PoisonError};

/// Symbols of a compiled grammar; a fifth of the library's own limit, with room for the largest schemas that
/// Kubernetes publishes.
const SYMBOLS_MAX: usize = 100_000;
/// States of the lexer, of one or two kilobytes each: they are the memory that one answer may take.
const LEXER_STATES_MAX: usize = 20_000;

/// The tokens of a model as bytes, by their number.
#[derive(Debug, Clone, Default)]
pub struct TokenTable {
    /// Bytes that each token adds to a text; the name of a special one.
    pub bytes: Vec<Vec<u8>>,
    /// Tokens that add no text; sorted.
    pub special: Vec<u32>,
    /// Tokens that end an answer.
    pub ends: Vec<u32>,
}

/// Compiler of one tokenizer's grammars. Building it takes about a second for 200,000 tokens.
pub struct GrammarCompiler {
    factory: ParserFactory,
    vocabulary: TokEnv,
    closing: Arc<ClosingTokens>,
}

/// A compiled grammar, from which each choice begins. Clones share it.
#[derive(Clone)]
pub struct CompiledGrammar {
    matcher: Arc<Mutex<Matcher>>,
    check: Option<Arc<FinalCheck>>,
}

impl std::fmt::Debug for GrammarCompiler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("GrammarCompiler")
    }
}

impl std::fmt::Debug for CompiledGrammar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CompiledGrammar")
    }
}

impl PartialEq for CompiledGrammar {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.matcher, &other.matcher)
    }
}

/// The vocabulary as a prefix tree. Texts are never forced as tokens, so none is tokenized.
struct Vocabulary(TokTrie);

impl TokenizerEnv for Vocabulary {
    fn tok_trie(&self) -> &TokTrie {
        &self.0
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<u32> {
        self.0.greedy_tokenize(bytes)
    }

    fn tokenize_is_canonical(&self) -> bool {
        false
    }
}

impl GrammarCompiler {
    /// Builds the compiler of a vocabulary.
    ///
    /// # Errors
    /// [`GrammarError::Unsupported`]: a text cannot be written with these tokens, or none ends an answer.
    pub fn new(table: &TokenTable) -> Result<Self, GrammarError> {
        let unsupported = |reason: &str| GrammarError::Unsupported(format!("the model {reason}"));
        let vocabulary = table.bytes.len() as u32;
        let ends: Vec<u32> = table.ends.iter().copied().filter(|token| *token < vocabulary).collect();
        let first =
            ends.first().ok_or_else(|| unsupported("names no end token, so no answer is complete"))?;
        if let Some(byte) = missing_byte(table) {
            return Err(unsupported(&format!("has no token for the byte {byte:#04x} alone")));
        }
        let is_marked = |token: u32| table.special.binary_search(&token).is_ok() || ends.contains(&token);
        let marked = |(token, bytes): (u32, &Vec<u8>)| match is_marked(token) {
            // No text has this byte, so none is taken for the token.
            true => [&[TokTrie::SPECIAL_TOKEN_MARKER], bytes.as_slice()].concat(),
            false => bytes.clone(),
        };
        let words: Vec<Vec<u8>> = (0..).zip(&table.bytes).map(marked).collect();
        let trie = TokTrie::from(&TokRxInfo::new(vocabulary, *first), &words).with_eos_tokens(&ends);
        let environment: TokEnv = Arc::new(Vocabulary(trie));
        let mut factory = ParserFactory::new_simple(&environment).map_err(|error| refusal(&error))?;
        factory.quiet();
        *factory.limits_mut() = ParserLimits {
            max_grammar_size: SYMBOLS_MAX,
            max_lexer_states: LEXER_STATES_MAX,
            verbose_errors: false,
            ..ParserLimits::default()
        };
        let closing = Arc::new(ClosingTokens::of(environment.tok_trie()));
        Ok(Self { factory, vocabulary: environment, closing })
    }

    /// Compiles the grammar of an answer that begins at `start` of its reasoning, if its model reasons.
    /// Keywords that no grammar says are checked at the end, unless the request is strict.
    ///
    /// # Errors
    /// [`GrammarError`]: it cannot be enforced, or is too large.
    pub fn compile(
        &self,
        grammar: &AnswerGrammar,
        start: Option<ReasoningStart>,
    ) -> Result<CompiledGrammar, GrammarError> {
        let whole = self.compile_as(grammar, start, Coverage::Whole);
        let (Err(GrammarError::Unsupported(_)), Some(schema)) = (&whole, grammar.checked_schema()) else {
            return whole;
        };
        let part = self.compile_as(grammar, start, Coverage::Part)?;
        let check = FinalCheck {
            validator: Validator::new(&normalized(schema))?,
            vocabulary: Arc::clone(&self.vocabulary),
            closing: Arc::clone(&self.closing),
            start,
        };
        Ok(CompiledGrammar { check: Some(Arc::new(check)), ..part })
    }

    fn compile_as(
        &self,
        grammar: &AnswerGrammar,
        start: Option<ReasoningStart>,
        coverage: Coverage,
    ) -> Result<CompiledGrammar, GrammarError> {
        let named = |(name, part): (String, GrammarPart)| {
            let part = match part {
                GrammarPart::Lark(text) => GrammarWithLexer::from_lark(text),
                GrammarPart::Schema(schema) => GrammarWithLexer::from_json_schema(schema),
            };
            GrammarWithLexer { name: Some(name), ..part }
        };
        let grammars: Vec<GrammarWithLexer> =
            grammar.parts(start, coverage)?.into_iter().map(named).collect();
        assert!(!grammars.is_empty(), "an answer has a grammar");
        let whole = TopLevelGrammar { grammars, max_tokens: None };
        let parser = self.factory.create_parser(whole).map_err(|error| refusal(&error))?;
        let mut matcher = Matcher::new(Ok(parser));
        // A grammar without any text is found by its first mask.
        if let Err(error) = matcher.compute_mask_or_eos() {
            return Err(refusal(&error));
        }
        Ok(CompiledGrammar { matcher: Arc::new(Mutex::new(matcher)), check: None })
    }
}

impl CompiledGrammar {
    /// Returns the state at the beginning of an answer.
    #[must_use]
    pub fn begin(&self) -> GrammarState {
        let matcher = self.matcher.lock().unwrap_or_else(PoisonError::into_inner).deep_clone();
        GrammarState::new(matcher, self.check.clone())
    }
}

/// Returns the first byte of UTF-8 that no token writes alone.
fn missing_byte(table: &TokenTable) -> Option<u8> {
    let mut found = [false; 256];
    for (token, bytes) in (0_u32..).zip(&table.bytes) {
        if let [byte] = bytes[..]
            && table.special.binary_search(&token).is_err()
        {
            found[usize::from(byte)] = true;
        }
    }
    // No text has these.
    let is_text = |byte: &u8| !matches!(byte, 0xc0 | 0xc1 | 0xf5..=0xff);
    (0..=u8::MAX).filter(is_text).find(|byte| !found[usize::from(*byte)])
}
