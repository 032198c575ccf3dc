//! The text side of a model: tokenizer, chat template, end tokens, limits. Shared between the HTTP side,
//! which needs it before a request is queued, and the batcher, which turns tokens back into text.
//!
//! The mathematics is elsewhere. Inputs are never truncated, even where the tokenizer file requests it: an
//! input that is too long is an error that states the limit. A text with more bytes than the context can hold
//! is rejected before it is tokenized. A tokenizer needs hundreds of bytes of memory for each byte of text.

use super::chat::{ChatTemplate, Conversation};
use super::config::{self, EncoderOutput, ModelConfig, Shape};
use super::grammar::{GrammarCompiler, GrammarError, TokenTable};
use super::matryoshka::Matryoshka;
use super::reasoning::ReasoningStart;
use super::special_tokens::SpecialTokens;
use super::tools::{CallFormat, CallStyle};
use super::{EngineError, EngineOptions, Operation};
use crate::weights::{ModelFiles, WeightsError};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{LazyLock, OnceLock};
use tokenizers::{DecoderWrapper, Encoding, Tokenizer};

mod pairs;

/// Memory of a tokenizer per byte of text: 250 bytes were measured with megabytes of English.
const TOKENIZER_BYTES_PER_BYTE: usize = 320;
/// Allowed ratio of a text's length to that of its tokens. A normalizer drops accents, control characters and
/// repeated spaces, which then belong to no token.
const DROPPED_FACTOR: usize = 4;
/// Length of text that is always tokenized, in bytes, regardless of the context.
const TEXT_BYTES_MIN: usize = 64 * 1024;

/// A conversation as a prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChatPrompt {
    pub tokens: Vec<u32>,
    /// Where the answer begins, of a model that reasons.
    pub reasoning: Option<ReasoningStart>,
}

/// The text side of a model.
#[derive(Debug)]
pub struct TextFrontend {
    operation: Operation,
    tokenizer: Tokenizer,
    special: SpecialTokens,
    template: Option<ChatTemplate>,
    /// Template of conversations with functions, where the model has one of its own.
    tool_template: Option<ChatTemplate>,
    end_tokens: Vec<u32>,
    context_tokens_max: usize,
    text_bytes_max: usize,
    vocabulary: usize,
    dimensions: Option<Matryoshka>,
    delay: Option<Delay>,
    /// Compiler of grammars, once one was needed.
    grammars: OnceLock<Result<GrammarCompiler, GrammarError>>,
}

/// Test hook, called with each text before it is tokenized: a simulated engine's tokenizer blocks until it
/// returns.
pub(super) struct Delay(pub(super) Box<dyn Fn(&str) + Send + Sync>);

impl std::fmt::Debug for Delay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Delay")
    }
}

#[derive(Deserialize, Default)]
struct RawTokenizerConfig {
    chat_template: Option<RawTemplate>,
    bos_token: Option<RawToken>,
    eos_token: Option<RawToken>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum RawTemplate {
    One(String),
    Named(Vec<RawNamedTemplate>),
}

#[derive(Deserialize)]
struct RawNamedTemplate {
    name: String,
    template: String,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum RawToken {
    Text(String),
    Full { content: String },
}

impl RawToken {
    fn into_text(self) -> String {
        match self {
            Self::Text(text) | Self::Full { content: text } => text,
        }
    }
}

impl TextFrontend {
    /// Reads tokenizer and template; waits for those files only.
    ///
    /// # Errors
    /// [`EngineError`]: a file is missing or invalid.
    pub fn read(
        files: &ModelFiles,
        config: &ModelConfig,
        options: &EngineOptions,
    ) -> Result<Self, EngineError> {
        let path = "tokenizer.json";
        if !files.contains(path) {
            return Err(WeightsError::FileMissing { path: path.to_owned() }.into());
        }
        let mut tokenizer = Tokenizer::from_bytes(files.read(path)?).map_err(|error| {
            EngineError::ConfigInvalid { path: path.to_owned(), reason: error.to_string() }
        })?;
        untruncated(&mut tokenizer);
        let known = tokenizer.get_vocab_size(true);
        if known > config.vocabulary {
            return Err(EngineError::ConfigInvalid {
                path: path.to_owned(),
                reason: format!("{known} tokens, but the model knows {}", config.vocabulary),
            });
        }
        let (operation, width) = operation_of(&config.shape);
        if operation == Operation::Rerank && tokenizer.get_post_processor().is_none() {
            return Err(EngineError::ConfigInvalid {
                path: path.to_owned(),
                reason: "no `post_processor`, which joins a query and a document".to_owned(),
            });
        }
        let dimensions = width.map(|width| Matryoshka::read(files, width)).transpose()?;
        let (template, tool_template) = read_templates(files)?;
        let limit = options.context_tokens_max.unwrap_or(usize::MAX);
        let context_tokens_max = config.context_tokens_max.min(limit);
        let text_bytes_max =
            text_bytes_of(longest_token(&tokenizer), context_tokens_max, options.tokenizer_bytes_max);
        Ok(Self {
            operation,
            special: SpecialTokens::of(&tokenizer),
            tokenizer,
            template,
            tool_template,
            end_tokens: config.end_tokens.clone(),
            context_tokens_max,
            text_bytes_max,
            vocabulary: config.vocabulary,
            dimensions,
            delay: None,
            grammars: OnceLock::new(),
        })
    }

    /// Returns a generating frontend with 256 byte tokens and token 256 as the end; for tests and the
    /// simulated engine.
    #[must_use]
    pub fn bytes(context_tokens_max: usize) -> Self {
        let tokenizer = byte_tokenizer(&["<|end|>"]);
        Self {
            operation: Operation::Generate,
            special: SpecialTokens::of(&tokenizer),
            tokenizer,
            template: Some(ChatTemplate::plain()),
            tool_template: None,
            end_tokens: vec![256],
            context_tokens_max,
            text_bytes_max: text_bytes_of(1, context_tokens_max, usize::MAX),
            vocabulary: 257,
            dimensions: None,
            delay: None,
            grammars: OnceLock::new(),
        }
    }

    /// Returns the same byte tokenizer for an embedding model of this many dimensions.
    #[must_use]
    pub fn bytes_embedding(context_tokens_max: usize, dimensions: usize) -> Self {
        let dimensions = Some(Matryoshka::none(dimensions));
        Self { operation: Operation::Embed, dimensions, ..Self::bytes(context_tokens_max) }
    }

    /// Returns the same byte tokenizer for a cross-encoder: the end token is between query and document, and
    /// the document has the second type.
    #[must_use]
    pub fn bytes_reranking(context_tokens_max: usize) -> Self {
        let mut json = byte_tokenizer_json(&["<|end|>"]);
        json["post_processor"] = pair_template("<|end|>", 256);
        let tokenizer = Tokenizer::from_bytes(json.to_string()).expect("the literal is a valid tokenizer");
        let special = SpecialTokens::of(&tokenizer);
        Self { operation: Operation::Rerank, special, tokenizer, ..Self::bytes(context_tokens_max) }
    }

    /// Returns this frontend with a tokenizer that calls `delay` first.
    pub(super) fn delayed(self, delay: Delay) -> Self {
        Self { delay: Some(delay), ..self }
    }

    /// Returns this frontend with another template.
    #[cfg(test)]
    pub(super) fn templated(self, source: &str) -> Self {
        let template = ChatTemplate::new(source.to_owned(), String::new(), String::new());
        Self { template: Some(template.expect("the test's template compiles")), ..self }
    }

    /// Returns this frontend with another tokenizer and template.
    #[cfg(test)]
    pub(super) fn with(self, tokenizer: Tokenizer, template: Option<ChatTemplate>) -> Self {
        let vocabulary = tokenizer.get_vocab_size(true);
        Self { special: SpecialTokens::of(&tokenizer), tokenizer, template, vocabulary, ..self }
    }

    /// Returns the operation that the model supports.
    #[must_use]
    pub fn operation(&self) -> Operation {
        self.operation
    }

    /// Returns the maximum tokens of an input and its output together.
    #[must_use]
    pub fn context_tokens_max(&self) -> usize {
        self.context_tokens_max
    }

    /// Returns the size of the vocabulary: the width of a row of logits.
    #[must_use]
    pub fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    /// Returns the length of an embedding; `None` for a model that does not embed.
    #[must_use]
    pub fn dimensions(&self) -> Option<usize> {
        self.dimensions.as_ref().map(Matryoshka::own)
    }

    /// Returns the lengths to which an embedding may be shortened; `None` for a model that does not embed.
    #[must_use]
    pub fn lengths(&self) -> Option<&Matryoshka> {
        self.dimensions.as_ref()
    }

    /// Reports whether this token ends a generation.
    #[must_use]
    pub fn is_end(&self, token: u32) -> bool {
        self.end_tokens.contains(&token)
    }

    /// Returns the tokens that end a generation.
    #[must_use]
    pub fn end_tokens(&self) -> &[u32] {
        &self.end_tokens
    }

    /// Returns the length of the longest text that is tokenized, in bytes.
    #[must_use]
    pub fn text_bytes_max(&self) -> usize {
        self.text_bytes_max
    }

    /// Tokenizes a text in which special tokens count. `special` adds the tokens that the tokenizer puts
    /// around an input (`[CLS]`, a begin token).
    ///
    /// # Errors
    /// Returns [`EngineError::TextTooLong`] before any work, or [`EngineError::Tokenize`].
    pub fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>, EngineError> {
        self.encode_marked(text, &[], special)
    }

    /// Tokenizes a text, of which `untrusted` came from clients: no special token counts there.
    fn encode_marked(
        &self,
        text: &str,
        untrusted: &[Range<usize>],
        special: bool,
    ) -> Result<Vec<u32>, EngineError> {
        Ok(self.encoding(text, untrusted, special)?.get_ids().to_vec())
    }

    fn encoding(
        &self,
        text: &str,
        untrusted: &[Range<usize>],
        special: bool,
    ) -> Result<Encoding, EngineError> {
        self.check_bytes(text.len())?;
        if let Some(Delay(delay)) = &self.delay {
            delay(text);
        }
        self.special
            .encode(&self.tokenizer, text, untrusted, special)
            .map_err(|error| EngineError::Tokenize { reason: error.to_string() })
    }

    /// Tokenizes a prompt and rejects one that exceeds the context. Its special tokens count: who sends a
    /// prompt instead of messages writes the template's part too.
    ///
    /// # Errors
    /// As [`Self::encode`], and [`EngineError::ContextExceeded`].
    pub fn encode_checked(&self, text: &str, special: bool) -> Result<Vec<u32>, EngineError> {
        let tokens = self.encode(text, special)?;
        self.check(tokens.len())?;
        Ok(tokens)
    }

    /// Tokenizes a text to embed and rejects one that exceeds the context. A special token in it is text.
    ///
    /// # Errors
    /// As [`Self::encode_checked`].
    pub fn encode_document(&self, text: &str) -> Result<Vec<u32>, EngineError> {
        let whole = 0..text.len();
        let tokens = self.encode_marked(text, std::slice::from_ref(&whole), true)?;
        self.check(tokens.len())?;
        Ok(tokens)
    }

    /// Tokenizes a conversation into a prompt and rejects one that leaves no room for an answer. The
    /// template's special tokens count, those in messages are text.
    ///
    /// # Errors
    /// As [`Self::encode_checked`], and [`EngineError::ChatTemplate`].
    pub fn encode_chat(&self, conversation: &Conversation) -> Result<ChatPrompt, EngineError> {
        let template = self.template_of(!conversation.tools.is_empty());
        let template = template.ok_or_else(|| EngineError::ChatTemplate {
            reason: "the model has no chat template; use /v1/completions".to_owned(),
        })?;
        self.check_bytes(conversation.text_bytes())?;
        let prompt = template.render(conversation, &self.special)?;
        let tokens = self.encode_marked(&prompt.text, &prompt.untrusted, false)?;
        self.check(tokens.len() + 1)?;
        Ok(ChatPrompt { tokens, reasoning: prompt.reasoning })
    }

    /// Decodes tokens to text without special tokens; invalid UTF-8 becomes replacement characters.
    #[must_use]
    pub fn decode(&self, tokens: &[u32]) -> String {
        // Decoding fails only if the decoder rejects its own tokens; the correct rendering of that is no
        // text.
        self.tokenizer.decode(tokens, true).unwrap_or_default()
    }

    /// Decodes tokens to text with special tokens; invalid UTF-8 becomes replacement characters.
    #[must_use]
    pub fn decode_whole(&self, tokens: &[u32]) -> String {
        self.tokenizer.decode(tokens, false).unwrap_or_default()
    }

    /// Returns the bytes that a token adds to the text before it; the text of a special token.
    #[must_use]
    pub fn token_bytes(&self, token: u32) -> Vec<u8> {
        let Some(written) = self.tokenizer.id_to_token(token) else { return Vec::new() };
        // After itself, because decoders drop the space before a first token.
        let (once, twice) = (self.decode(&[token]), self.decode(&[token, token]));
        if twice.is_empty() {
            return written.into_bytes();
        }
        match twice.strip_prefix(&once) {
            Some(text) if !text.contains(char::REPLACEMENT_CHARACTER) => text.as_bytes().to_vec(),
            _ => bytes_written_as(&written),
        }
    }

    /// Returns the compiler of grammars for this vocabulary. The first call builds it, which takes about a
    /// second for 200,000 tokens.
    ///
    /// # Errors
    /// [`GrammarError::Unsupported`]: no answer can be held to a grammar with this vocabulary.
    pub fn grammars(&self) -> Result<&GrammarCompiler, GrammarError> {
        let built = self.grammars.get_or_init(|| GrammarCompiler::new(&self.token_table()));
        built.as_ref().map_err(GrammarError::clone)
    }

    /// Returns the tokens as bytes.
    fn token_table(&self) -> TokenTable {
        let added = self.tokenizer.get_added_tokens_decoder();
        // Each token is then written by characters that stand for bytes, and need not be decoded.
        let is_bytes = matches!(self.tokenizer.get_decoder(), Some(DecoderWrapper::ByteLevel(_)));
        let bytes = |token: u32| match (added.get(&token), self.tokenizer.id_to_token(token)) {
            (Some(added), _) => added.content.clone().into_bytes(),
            (None, Some(written)) if is_bytes => bytes_written_as(&written),
            (None, _) => self.token_bytes(token),
        };
        let mut special: Vec<u32> =
            added.iter().filter(|(_, token)| token.special).map(|(token, _)| *token).collect();
        special.sort_unstable();
        let bytes = (0..self.vocabulary as u32).map(bytes).collect();
        TokenTable { bytes, special, ends: self.end_tokens.clone() }
    }

    /// Returns the form in which this model calls functions; `None` if its template names no known one.
    #[must_use]
    pub fn call_format(&self) -> Option<CallFormat> {
        let style = CallStyle::of(self.template_of(true)?.source())?;
        let is_special = |token: &u32| {
            self.tokenizer.get_added_tokens_decoder().get(token).is_some_and(|token| token.special)
        };
        let special = |text: &str| self.tokenizer.token_to_id(text).filter(is_special);
        let (trigger, separator) = (special(style.trigger()), style.separator().and_then(special));
        Some(CallFormat { style, trigger, separator })
    }

    /// Returns the template of conversations, with functions or without.
    fn template_of(&self, has_tools: bool) -> Option<&ChatTemplate> {
        self.tool_template.as_ref().filter(|_| has_tools).or(self.template.as_ref())
    }

    fn check_bytes(&self, bytes: usize) -> Result<(), EngineError> {
        let (bytes_max, context_tokens_max) = (self.text_bytes_max, self.context_tokens_max);
        if bytes <= bytes_max {
            return Ok(());
        }
        Err(EngineError::TextTooLong { bytes, bytes_max, context_tokens_max })
    }

    fn check(&self, tokens: usize) -> Result<(), EngineError> {
        if tokens <= self.context_tokens_max {
            return Ok(());
        }
        Err(EngineError::ContextExceeded { tokens, context_tokens_max: self.context_tokens_max })
    }
}

/// Returns the operation of a model, and the length of its vectors if it embeds.
fn operation_of(shape: &Shape) -> (Operation, Option<usize>) {
    match shape {
        Shape::Encoder(shape) => match shape.output {
            EncoderOutput::Vector(_) => (Operation::Embed, Some(shape.hidden)),
            EncoderOutput::Score(_) => (Operation::Rerank, None),
        },
        Shape::Decoder(shape) if shape.vector.is_some() => (Operation::Embed, Some(shape.hidden)),
        Shape::Decoder(_) => (Operation::Generate, None),
    }
}

/// Returns the length of the longest token as the vocabulary writes it, never less than that of its text.
fn longest_token(tokenizer: &Tokenizer) -> usize {
    tokenizer.get_vocab(true).keys().map(String::len).max().unwrap_or(1).max(1)
}

/// Returns the size of the longest text to tokenize, in bytes: a generous bound for the context, capped by
/// memory.
fn text_bytes_of(longest_token: usize, context_tokens_max: usize, tokenizer_bytes_max: usize) -> usize {
    let fits = context_tokens_max.saturating_mul(longest_token).saturating_mul(DROPPED_FACTOR);
    fits.saturating_add(TEXT_BYTES_MIN)
        .min((tokenizer_bytes_max / TOKENIZER_BYTES_PER_BYTE).max(TEXT_BYTES_MIN))
}

fn untruncated(tokenizer: &mut Tokenizer) {
    tokenizer.with_padding(None);
    tokenizer.with_truncation(None).expect("removing a truncation has no parameter to be wrong");
}

/// Reads the chat template, and that of conversations with functions where there are two. A file of its own
/// takes precedence over those in `tokenizer_config.json`, as in transformers, which writes it since 2025.
fn read_templates(files: &ModelFiles) -> Result<(Option<ChatTemplate>, Option<ChatTemplate>), EngineError> {
    let (path, alone) = ("tokenizer_config.json", "chat_template.jinja");
    let raw: RawTokenizerConfig =
        if files.contains(path) { config::json(files, path)? } else { RawTokenizerConfig::default() };
    let (mut one, mut with_tools) = match raw.chat_template {
        Some(RawTemplate::One(template)) => (Some(template), None),
        Some(RawTemplate::Named(templates)) => {
            let named = |name: &str| {
                templates.iter().find(|named| named.name == name).map(|named| named.template.clone())
            };
            (named("default"), named("tool_use"))
        }
        None => (None, None),
    };
    if files.contains(alone) {
        let text = std::str::from_utf8(files.read(alone)?);
        let invalid = |error: std::str::Utf8Error| EngineError::ConfigInvalid {
            path: alone.to_owned(),
            reason: error.to_string(),
        };
        (one, with_tools) = (Some(text.map_err(invalid)?.to_owned()), None);
    }
    let text = |token: Option<RawToken>| token.map(RawToken::into_text).unwrap_or_default();
    let (begin, end) = (text(raw.bos_token), text(raw.eos_token));
    let compile = |source: Option<String>| {
        source.map(|source| ChatTemplate::new(source, begin.clone(), end.clone())).transpose()
    };
    Ok((compile(one)?, compile(with_tools)?))
}

/// Returns the bytes of a token that is no text alone: `<0xE2>` where a tokenizer falls back to bytes, or
/// characters that stand for bytes.
fn bytes_written_as(written: &str) -> Vec<u8> {
    static BYTES: LazyLock<BTreeMap<char, u8>> =
        LazyLock::new(|| (0..=u8::MAX).map(|byte| (byte_name(byte), byte)).collect());
    let hexadecimal = written.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
    if let Some(byte) = hexadecimal.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
        return vec![byte];
    }
    let bytes: Option<Vec<u8>> = written.chars().map(|character| BYTES.get(&character).copied()).collect();
    bytes.unwrap_or_else(|| written.as_bytes().to_vec())
}

/// Returns a Hugging Face tokenizer: 256 byte tokens, then these special tokens.
#[must_use]
pub fn byte_tokenizer(special: &[&str]) -> Tokenizer {
    let json = byte_tokenizer_json(special);
    Tokenizer::from_bytes(json.to_string()).expect("the literal is a valid tokenizer")
}

/// Returns the `tokenizer.json` of [`byte_tokenizer`].
#[must_use]
pub fn byte_tokenizer_json(special: &[&str]) -> serde_json::Value {
    let vocabulary: BTreeMap<String, u32> =
        (0_u32..256).map(|byte| (byte_name(byte as u8).into(), byte)).collect();
    let added: Vec<serde_json::Value> = special
        .iter()
        .enumerate()
        .map(|(index, content)| {
            serde_json::json!({ "id": 256 + index, "content": content, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": true })
        })
        .collect();
    let byte_level = serde_json::json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false
    });
    serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": byte_level, "post_processor": null, "decoder": byte_level,
        "model": { "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocabulary,
            "merges": [] }
    })
}

/// Returns the `post_processor` of a tokenizer that puts this special token between the texts of a pair.
#[must_use]
pub fn pair_template(between: &str, id: u32) -> serde_json::Value {
    let text = |name: &str, kind: u32| serde_json::json!({ "Sequence": { "id": name, "type_id": kind } });
    let special = serde_json::json!({ "SpecialToken": { "id": between, "type_id": 0 } });
    let token = serde_json::json!({ "id": between, "ids": [id], "tokens": [between] });
    serde_json::json!({
        "type": "TemplateProcessing", "single": [text("A", 0)],
        "pair": [text("A", 0), special, text("B", 1)], "special_tokens": { between: token }
    })
}

/// Returns the printable character by which byte-level tokenizers write a byte (GPT-2's table). Printable
/// Latin-1 maps to itself, every other byte to the next free character from U+0100 on.
fn byte_name(byte: u8) -> char {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if printable(byte) {
        return char::from(byte);
    }
    let index = (0..byte).filter(|earlier| !printable(*earlier)).count() as u32;
    char::from_u32(0x100 + index).expect("68 code points above U+0100 are characters")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::chat::ChatMessage;

    #[test]
    fn bytes_round_trip_and_have_their_own_ids() {
        let frontend = TextFrontend::bytes(100);
        let text = "a é\n\u{0}~";
        let tokens = frontend.encode(text, true).expect("bytes");
        assert_eq!(tokens, text.bytes().map(u32::from).collect::<Vec<_>>());
        assert_eq!(frontend.decode(&tokens), text);
        assert_eq!(frontend.encode("<|end|>", false).expect("special"), [256]);
        assert_eq!(frontend.decode(&[104, 105, 256]), "hi");
    }

    #[test]
    fn a_token_has_the_bytes_that_it_adds() {
        let frontend = TextFrontend::bytes(100);
        for byte in 0..=u8::MAX {
            assert_eq!(frontend.token_bytes(u32::from(byte)), [byte]);
        }
        assert_eq!(frontend.token_bytes(256), b"<|end|>");
        assert_eq!(frontend.token_bytes(999), b"");
        assert_eq!(bytes_written_as("<0xE2>"), [0xe2]);
        assert_eq!(bytes_written_as("\u{2581}a"), "\u{2581}a".as_bytes());
    }

    #[test]
    fn the_limit_on_texts_follows_context_and_memory() {
        const GIB: usize = 1 << 30;
        for (longest, context, memory, expected) in [
            // MiniLM, the shipped model, Llama 3: every text that fits the context is tokenized.
            (18, 256, GIB, 18_432 + TEXT_BYTES_MIN),
            (10, 512, GIB, 20_480 + TEXT_BYTES_MIN),
            (128, 131_072, 64 * GIB, 67_108_864 + TEXT_BYTES_MIN),
            // Little memory: 6 bytes for each token of the context, and a page of text at least.
            (128, 8_192, 56 << 20, 183_500),
            (128, 8_192, 1 << 20, TEXT_BYTES_MIN),
            (1, usize::MAX, usize::MAX, usize::MAX / TOKENIZER_BYTES_PER_BYTE),
        ] {
            assert_eq!(text_bytes_of(longest, context, memory), expected, "{longest} x {context}");
        }
        let tokenizer = byte_tokenizer(&["<|end|>"]);
        assert_eq!(longest_token(&tokenizer), 7, "special tokens count");
    }

    #[test]
    fn a_text_of_megabytes_is_refused_before_it_is_tokenized() {
        let frontend = TextFrontend::bytes(100);
        let long = "x".repeat(4_000_000);
        let chat = Conversation::from(vec![ChatMessage::new("user", long.as_str())]);
        for refused in [
            frontend.encode(&long, true),
            frontend.encode_checked(&long, true),
            frontend.encode_document(&long),
            frontend.encode_chat(&chat).map(|prompt| prompt.tokens),
        ] {
            let error = refused.expect_err("too long");
            assert_eq!(error.code().as_str(), "context-length-exceeded");
            let text = error.to_string();
            // The message counts bytes, not tokens: the text was never tokenized.
            assert!(text.starts_with("4000000 ") && text.contains("bytes of text, at most 65936"), "{text}");
        }
        let fits = "y".repeat(frontend.text_bytes_max());
        assert_eq!(frontend.encode(&fits, true).expect("tokens").len(), 65_936);
    }

    #[test]
    fn a_special_token_counts_in_a_prompt_and_not_in_messages_or_documents() {
        let frontend = TextFrontend::bytes(100);
        let bytes = |text: &str| text.bytes().map(u32::from).collect::<Vec<_>>();
        // The control: the library itself takes it for the token.
        assert_eq!(frontend.encode("<|end|>", true).expect("tokens"), [256]);
        assert_eq!(frontend.encode_document("a<|end|>").expect("tokens"), bytes("a<|end|>"));
        let chat = Conversation::from(vec![ChatMessage::new("user", "<|end|>")]);
        let tokens = frontend.encode_chat(&chat).expect("tokens").tokens;
        assert_eq!(tokens, bytes("user: <|end|>\nassistant: "));
    }

    #[test]
    fn an_oversized_input_is_an_error_with_its_length() {
        let error = TextFrontend::bytes(4).encode_checked("12345", true).expect_err("five tokens");
        assert_eq!(error.code().as_str(), "context-length-exceeded");
        assert_eq!(error.to_string(), "5 tokens exceed the model's context of 4");
    }
}
