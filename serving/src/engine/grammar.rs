//! Grammars that an answer must follow: JSON schemas, regular expressions, Lark grammars, choices, calls.
//!
//! A request's grammar is compiled once ([`compiler`]), after its prompt is known: the reasoning of a model
//! that reasons precedes the answer and is free. Each choice has a state of its own ([`state`]), which says
//! what the next token may be. A schema that cannot be enforced is refused before a token is drawn
//! ([`schema`]). Keywords that no grammar says are checked before the last token ([`check`]), unless the
//! request is strict.
//!
//! A state is a function of the grammar and of the tokens so far, and its limits count work instead of time.
//! A stream that continues on another worker is therefore held to the same grammar, at the same place.

mod check;
mod compiler;
mod error;
mod schema;
mod state;
#[cfg(test)]
mod tests;
mod validator;

use super::reasoning::ReasoningStart;
use serde_json::{Value, json};

use schema::Coverage;

pub use compiler::{CompiledGrammar, GrammarCompiler, TokenTable};
pub use error::GrammarError;
pub use state::GrammarState;

/// Maximum bytes of a schema, an expression, a grammar, or all choices; of all tools together too. Ten times
/// the size of those that models are asked to write; compiling as much takes a second at worst.
pub const GRAMMAR_BYTES_MAX: usize = 128 * 1024;

/// Form of an answer.
#[derive(Debug, Clone, PartialEq)]
pub enum GrammarSource {
    /// Any JSON object.
    JsonObject,
    /// JSON of this schema. Properties are in the schema's order.
    Schema {
        schema: Value,
        /// Whether each keyword must decide token by token, and none at the end alone.
        is_strict: bool,
    },
    /// Text that the whole expression matches, in the syntax of Rust's `regex`.
    Regex(String),
    /// A grammar in Lark's notation, whose rule `start` is the answer.
    Lark(String),
    /// One of these texts.
    Choice(Vec<String>),
}

/// Rules of calls: a Lark text with the rules `calls` and, where other text may precede or replace them,
/// `called`; and the grammars that it names with `@`.
#[derive(Debug, Clone, PartialEq)]
pub struct CallRules {
    pub lark: String,
    /// Schemas by name.
    pub schemas: Vec<(String, Value)>,
    /// Whether the answer may be other text.
    pub is_optional: bool,
}

/// Form that an answer must have: the one that a request states, calls, or either of both.
#[derive(Debug, Clone, PartialEq)]
pub struct AnswerGrammar {
    pub answer: Option<GrammarSource>,
    pub calls: Option<CallRules>,
}

/// A grammar of the compiler's own kind: a Lark text, or a schema.
#[derive(Debug, Clone, PartialEq)]
enum GrammarPart {
    Lark(String),
    Schema(Value),
}

impl AnswerGrammar {
    /// Returns the schema of which a part may be checked at the end of an answer, if there is one.
    fn checked_schema(&self) -> Option<&Value> {
        match &self.answer {
            Some(GrammarSource::Schema { schema, is_strict: false }) if self.calls.is_none() => Some(schema),
            _ => None,
        }
    }

    /// Returns the parts of the whole grammar with their names, the one to start with first. `coverage` is
    /// that of the answer's own schema.
    ///
    /// # Errors
    /// [`GrammarError`]: a schema cannot be enforced.
    fn parts(
        &self,
        start: Option<ReasoningStart>,
        coverage: Coverage,
    ) -> Result<Vec<(String, GrammarPart)>, GrammarError> {
        assert!(self.answer.is_some() || self.calls.is_some(), "a grammar has a rule");
        let mut parts = Vec::new();
        let mut bodies = Vec::new();
        let mut rules = String::new();
        if let Some(calls) = &self.calls {
            // Where the answer has a form of its own, other text than calls is of this form.
            let is_free = calls.is_optional && self.answer.is_none();
            bodies.push(if is_free { "called" } else { "calls" });
            rules.push_str(&calls.lark);
            for (name, schema) in &calls.schemas {
                parts.push((name.clone(), GrammarPart::Schema(schema::prepared(schema, Coverage::Whole)?)));
            }
        }
        if let Some(answer) = &self.answer {
            let part = answer.part(coverage)?;
            if bodies.is_empty() && reasoning_rule(start).is_none() {
                return Ok(vec![("answer".to_owned(), part)]);
            }
            bodies.push("@answer");
            parts.push(("answer".to_owned(), part));
        }
        let body = bodies.join(" | ");
        let whole = match reasoning_rule(start) {
            Some(rule) => format!("{rule}body: {body}\n{rules}"),
            None => format!("start: {body}\n{rules}"),
        };
        parts.insert(0, ("whole".to_owned(), GrammarPart::Lark(whole)));
        Ok(parts)
    }
}

/// Returns the rules of an answer that begins in or before the reasoning; `None` where it begins with its
/// body. Lazy: the reasoning ends with the first tag.
fn reasoning_rule(start: Option<ReasoningStart>) -> Option<&'static str> {
    match start? {
        ReasoningStart::After => None,
        ReasoningStart::Within => Some(concat!(
            "start: reasoning SPACE? body\n",
            "reasoning[lazy]: /(.|\\n)*<\\/think>/\n",
            "SPACE: /[ \\t\\r\\n]{1,8}/\n",
        )),
        ReasoningStart::Before => Some(concat!(
            "start: (reasoning SPACE?)? body\n",
            "reasoning[lazy]: /[ \\t\\r\\n]{0,8}<think>(.|\\n)*<\\/think>/\n",
            "SPACE: /[ \\t\\r\\n]{1,8}/\n",
        )),
    }
}

impl GrammarSource {
    /// Returns the grammar in the compiler's own form.
    fn part(&self, coverage: Coverage) -> Result<GrammarPart, GrammarError> {
        Ok(match self {
            Self::JsonObject => {
                GrammarPart::Schema(schema::prepared(&json!({ "type": "object" }), Coverage::Whole)?)
            }
            Self::Schema { schema, .. } => GrammarPart::Schema(schema::prepared(schema, coverage)?),
            Self::Regex(expression) => GrammarPart::Lark(lark_of_regex(expression)?),
            Self::Lark(grammar) => GrammarPart::Lark(grammar.clone()),
            Self::Choice(texts) => {
                let texts: Vec<String> = texts.iter().map(|text| lark_text(text)).collect();
                GrammarPart::Lark(format!("start: {}\n", texts.join(" | ")))
            }
        })
    }
}

/// Writes a text as a literal of Lark: as JSON does, and control characters by their number.
pub(in crate::engine) fn lark_text(text: &str) -> String {
    let quoted = Value::from(text).to_string();
    // JSON leaves it as it is, and Lark refuses it.
    quoted.replace('\u{7f}', "\\u007f")
}

/// Writes an expression as a grammar. A slash would end it.
fn lark_of_regex(expression: &str) -> Result<String, GrammarError> {
    let refused = |reason: &str| GrammarError::Unsupported(format!("the regular expression {reason}"));
    if expression.contains(['\n', '\r']) {
        return Err(refused("has a line break; write `\\n`"));
    }
    let mut written = String::with_capacity(expression.len());
    let mut characters = expression.chars();
    while let Some(character) = characters.next() {
        match character {
            '/' => written.push_str("\\/"),
            '\\' => {
                let escaped = characters.next().ok_or_else(|| refused("ends in `\\`"))?;
                written.extend(['\\', escaped]);
            }
            other => written.push(other),
        }
    }
    if written.is_empty() {
        return Err(refused("is empty"));
    }
    Ok(format!("start: /{written}/\n"))
}
