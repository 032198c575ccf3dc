//! Tools: functions that a model may call, in the form in which its family writes calls.
//!
//! The chat template says which family a model is of: it prints earlier calls as the model writes new ones.
//! A family has two sides here: the grammar of calls ([`rules`]), to which an answer is held that must call,
//! and the parser of calls ([`calls`]), which separates them from other text.

mod calls;
mod reader;
mod rules;

use serde_json::Value;

pub use calls::{CallDelta, CallParser, CalledText};
pub use rules::call_rules;

/// A function that a model may call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolDefinition {
    pub name: String,
    pub description: Option<String>,
    /// Schema of the arguments.
    pub parameters: Value,
    /// Whether arguments are held to the schema also where the model need not call.
    pub is_strict: bool,
}

/// Functions that an answer calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToolChoice {
    /// Those that the model chooses, if any.
    Auto,
    /// One at least.
    Required,
    /// The one of this name.
    Named(String),
}

/// Form in which a family of models writes calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallStyle {
    /// `<tool_call>{"name": …, "arguments": {…}}</tool_call>`, for each call: Hermes, Qwen.
    Tagged,
    /// `[TOOL_CALLS][{"name": …, "arguments": {…}}, …]`: Mistral.
    Listed,
    /// `[TOOL_CALLS]NAME[ARGS]{…}`, for each call: later models of Mistral.
    Named,
    /// `{"name": …, "parameters": {…}}`, separated by `;`: Llama 3.
    Bare,
}

/// Text between the name and the arguments of a named call.
const ARGUMENTS_MARK: &str = "[ARGS]";

/// Calls as one model writes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CallFormat {
    pub style: CallStyle,
    /// The special token by which calls begin, where the vocabulary has one; it adds no text.
    pub trigger: Option<u32>,
    /// The special token between name and arguments, where the style and the vocabulary have one; it adds no
    /// text either.
    pub separator: Option<u32>,
}

impl CallStyle {
    /// Finds out from a chat template; `None` for a model that calls nothing, or in another way.
    #[must_use]
    pub fn of(template: &str) -> Option<Self> {
        if !template.contains("tools") {
            return None;
        }
        // Qwen's later templates name several tags; that of a call decides.
        if template.contains("<tool_call>") && !template.contains("<function=") {
            return Some(Self::Tagged);
        }
        if template.contains("[TOOL_CALLS]") {
            return match (template.contains(ARGUMENTS_MARK), template.contains("[CALL_ID]")) {
                (false, _) => Some(Self::Listed),
                (true, false) => Some(Self::Named),
                // With ids that the model writes.
                (true, true) => None,
            };
        }
        let is_bare = template.contains("<|python_tag|>") || template.contains("\"parameters\"");
        (is_bare && !template.contains("<function=")).then_some(Self::Bare)
    }

    /// Returns the text before calls: a special token's name, or text like any other.
    #[must_use]
    pub fn trigger(self) -> &'static str {
        match self {
            Self::Tagged => "<tool_call>",
            Self::Listed | Self::Named => "[TOOL_CALLS]",
            Self::Bare => "<|python_tag|>",
        }
    }

    /// Returns the text between name and arguments, where no field holds them: a special token's name, or
    /// text like any other.
    #[must_use]
    pub fn separator(self) -> Option<&'static str> {
        (self == Self::Named).then_some(ARGUMENTS_MARK)
    }

    /// Returns the field that holds the arguments.
    fn arguments(self) -> &'static str {
        match self {
            Self::Tagged | Self::Listed | Self::Named => "arguments",
            Self::Bare => "parameters",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_template_says_how_a_model_calls() {
        for (template, expected) in [
            (
                "{% if tools %}<tool_call>\n{{ call | tojson }}\n</tool_call>{% endif %}",
                Some(CallStyle::Tagged),
            ),
            ("{% for tool in tools %}{% endfor %}[TOOL_CALLS]", Some(CallStyle::Listed)),
            (
                "{% if tools %}{{ '{\"name\": ' }}{{ '\"parameters\": ' }}<|python_tag|>{% endif %}",
                Some(CallStyle::Bare),
            ),
            ("{% for m in messages %}{{ m.content }}{% endfor %}", None),
            // Forms without a parser here: they are refused, not guessed.
            ("{% if tools %}<tool_call>\n<function={{ name }}>{% endif %}", None),
            ("{% if tools %}[TOOL_CALLS]{{ name }}[CALL_ID]{{ id }}[ARGS]{% endif %}", None),
            ("{% if tools %}[TOOL_CALLS]{{ name }}[ARGS]{{ arguments }}{% endif %}", Some(CallStyle::Named)),
            ("{% if tools %}{{ tools }}{% endif %}", None),
            ("<tool_call>", None),
        ] {
            assert_eq!(CallStyle::of(template), expected, "{template}");
        }
    }
}
