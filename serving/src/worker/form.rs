//! The form that a request asks of its answers: a grammar, functions to call, or both.

use crate::batcher::{Batcher, EncodedPrompt};
use crate::engine::TextFrontend;
use crate::engine::grammar::{AnswerGrammar, CompiledGrammar};
use crate::engine::tools::{ToolChoice, call_rules};
use crate::openai::{ApiError, RequestedGrammar, ToolRequest};
use protocol::error_code as code;
use std::sync::Arc;

/// The form of a request's answers.
#[derive(Debug, Default)]
pub(super) struct AnswerForm {
    grammar: Option<AnswerGrammar>,
    /// Field of the request that errors name.
    field: &'static str,
    functions: Arc<[String]>,
}

impl AnswerForm {
    /// Returns the form of a request to this model.
    ///
    /// # Errors
    /// 400: the model has no form of calls that is known.
    pub(super) fn of(
        grammar: Option<&RequestedGrammar>,
        tools: Option<&ToolRequest>,
        frontend: &TextFrontend,
    ) -> Result<Self, ApiError> {
        let field = grammar.map_or("tools", |grammar| grammar.field);
        let answer = grammar.map(|grammar| grammar.source.clone());
        let Some(ToolRequest { tools, choice, is_parallel }) = tools else {
            let grammar = answer.map(|answer| AnswerGrammar { answer: Some(answer), calls: None });
            return Ok(Self { grammar, field, ..Self::default() });
        };
        let Some(format) = frontend.call_format() else {
            let message = "`tools`: the chat template of this model has no form of calls that is known";
            return Err(ApiError::field(code::UNSUPPORTED_PARAMETER, "tools", message));
        };
        // A model that chooses freely is held to nothing, unless it must be valid either way.
        let is_free = *choice == ToolChoice::Auto && !tools.iter().any(|tool| tool.is_strict);
        let calls = (!is_free || answer.is_some()).then(|| call_rules(format, tools, choice, *is_parallel));
        // An answer that must call has no other form.
        let answer = answer.filter(|_| *choice == ToolChoice::Auto);
        let grammar = (answer.is_some() || calls.is_some()).then_some(AnswerGrammar { answer, calls });
        let functions = tools.iter().map(|tool| tool.name.clone()).collect();
        Ok(Self { grammar, field, functions })
    }

    /// Compiles the grammar of answers to a prompt.
    ///
    /// # Errors
    /// 400: it cannot be enforced. 503: the worker is busy or drains.
    pub(super) async fn compiled(
        &self,
        batcher: &Batcher,
        prompt: &EncodedPrompt,
    ) -> Result<Option<CompiledGrammar>, ApiError> {
        let Some(grammar) = &self.grammar else { return Ok(None) };
        let compiled = batcher.compile(grammar.clone(), prompt).await;
        compiled.map(Some).map_err(|error| ApiError::from_batch(&error, self.field))
    }

    /// Returns the names of the functions that an answer may call.
    pub(super) fn functions(&self) -> Arc<[String]> {
        Arc::clone(&self.functions)
    }
}

#[cfg(test)]
mod tests;
