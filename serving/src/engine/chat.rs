//! Chat templates: render messages into a prompt with the model's own Jinja template.
//!
//! The template is part of the approved model; the messages are data that it arranges. Templates read no
//! clock: the time that `strftime_now` formats is part of the conversation. The rendered prompt states which
//! of its bytes came from messages ([`provenance`]), so that no message writes a special token.

mod calendar;
mod json;
mod provenance;
mod source;

use super::EngineError;
use super::reasoning::ReasoningStart;
use super::special_tokens::SpecialTokens;
use super::tools::ToolDefinition;
use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, ErrorKind, Value};
use protocol::Millis;
use provenance::Marker;
use std::collections::BTreeMap;
use std::ops::Range;

/// Maximum length of a rendered prompt, in bytes: four for each token of the largest context served today.
const PROMPT_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Text of the message with which a template is tried.
const PROBE: &str = "quorate probe";
/// Variables that the renderer itself sets; a request's arguments may not replace them.
const RESERVED: [&str; 8] = [
    "messages",
    "tools",
    "documents",
    "bos_token",
    "eos_token",
    "add_generation_prompt",
    "strftime_now",
    "raise_exception",
];

/// A conversation to continue: what a chat template renders.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Conversation {
    /// Messages, oldest first.
    pub messages: Vec<ChatMessage>,
    /// Functions that the model may call.
    pub tools: Vec<ToolDefinition>,
    /// Further variables of the template (`enable_thinking`), as the request gives them.
    pub arguments: serde_json::Map<String, serde_json::Value>,
    /// Wall-clock time of the request, for templates that state the date. UTC.
    pub at: Millis,
}

impl From<Vec<ChatMessage>> for Conversation {
    fn from(messages: Vec<ChatMessage>) -> Self {
        Self { messages, ..Self::default() }
    }
}

impl Conversation {
    /// Returns the bytes of text that the messages hold.
    #[must_use]
    pub fn text_bytes(&self) -> usize {
        self.texts().map(str::len).sum()
    }

    /// Iterates over all texts that a template may print.
    fn texts(&self) -> impl Iterator<Item = &str> {
        self.messages.iter().flat_map(ChatMessage::texts).chain(self.tools.iter().flat_map(tool_texts))
    }
}

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ChatMessage {
    /// `system`, `user`, `assistant`, `tool`, or another role that the template knows. Never a client's text.
    pub role: String,
    /// Text of the message; absent where an assistant only calls tools.
    pub content: Option<String>,
    /// Reasoning of an assistant, which templates repeat where the model expects it.
    pub reasoning_content: Option<String>,
    /// Name of the participant or of the tool.
    pub name: Option<String>,
    /// The call that a tool's message answers.
    pub tool_call_id: Option<String>,
    /// Calls of an assistant's message.
    pub tool_calls: Vec<ToolCall>,
}

/// A call of a tool, within an assistant's message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolCall {
    /// Identifier that the tool's answer repeats.
    pub id: String,
    /// Name of the function.
    pub name: String,
    /// Arguments: a JSON object, as templates expect.
    pub arguments: serde_json::Value,
}

impl ChatMessage {
    /// Creates a message of text.
    #[must_use]
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: Some(content.into()), ..Self::default() }
    }

    fn texts(&self) -> impl Iterator<Item = &str> {
        let own = [&self.content, &self.reasoning_content, &self.name, &self.tool_call_id];
        let own = own.into_iter().filter_map(Option::as_deref);
        let calls = self.tool_calls.iter().flat_map(|call| {
            let mut texts = vec![call.id.as_str(), call.name.as_str()];
            collect_texts(&call.arguments, &mut texts);
            texts
        });
        own.chain(calls)
    }
}

fn tool_texts(tool: &ToolDefinition) -> Vec<&str> {
    let mut texts = vec![tool.name.as_str()];
    texts.extend(tool.description.as_deref());
    collect_texts(&tool.parameters, &mut texts);
    texts
}

fn collect_texts<'a>(value: &'a serde_json::Value, texts: &mut Vec<&'a str>) {
    match value {
        serde_json::Value::String(text) => texts.push(text),
        serde_json::Value::Array(items) => items.iter().for_each(|item| collect_texts(item, texts)),
        serde_json::Value::Object(fields) => fields.iter().for_each(|(name, item)| {
            texts.push(name);
            collect_texts(item, texts);
        }),
        _ => {}
    }
}

/// A rendered prompt.
#[derive(Debug, PartialEq, Eq)]
pub struct RenderedPrompt {
    /// The text.
    pub text: String,
    /// Bytes of it that came from messages, ascending. Empty where no message can hold a special token.
    pub untrusted: Vec<Range<usize>>,
    /// Where the answer begins, of a model that reasons.
    pub reasoning: Option<ReasoningStart>,
}

/// Form in which a template reads a message's text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ContentForm {
    /// A string.
    Text,
    /// A list of one part, `{"type": "text", "text": ...}`.
    Parts,
}

/// A compiled chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    begin: String,
    end: String,
    form: ContentForm,
    literals: Vec<String>,
    source: String,
}

impl ChatTemplate {
    /// Compiles `source`. `begin` and `end` are the texts of the model's begin and end tokens.
    ///
    /// # Errors
    /// [`EngineError::ChatTemplate`]: the template does not compile.
    pub fn new(source: String, begin: String, end: String) -> Result<Self, EngineError> {
        let mut environment = Environment::new();
        // Configured as Hugging Face's renderer, for which templates are written.
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.expect("the default delimiters are valid"));
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_filter("tojson", json::tojson);
        environment.add_function("raise_exception", |message: String| -> Result<String, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        });
        let literals = source::literals(&source);
        environment.add_template_owned("chat", source::without_generation(&source)).map_err(failed)?;
        let template = Self { environment, begin, end, form: ContentForm::Text, literals, source };
        Ok(Self { form: template.content_form(), ..template })
    }

    /// Returns a template of `role: content` lines, for the simulated engine.
    #[must_use]
    pub fn plain() -> Self {
        let source = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant: ";
        Self::new(source.to_owned(), String::new(), String::new()).expect("the literal compiles")
    }

    /// Finds out by trial whether the template prints the text of a message that is a string. One that loops
    /// over parts prints nothing of a string.
    fn content_form(&self) -> ContentForm {
        let prints = |form| {
            let probe = Conversation::from(vec![ChatMessage::new("user", PROBE)]);
            self.print(&probe, form, (&Marker::none(), &SpecialTokens::default()))
                .is_ok_and(|prompt| prompt.contains(PROBE))
        };
        if !prints(ContentForm::Text) && prints(ContentForm::Parts) {
            return ContentForm::Parts;
        }
        ContentForm::Text
    }

    /// Renders a conversation into a prompt that ends where the assistant's answer begins.
    ///
    /// # Errors
    /// [`EngineError::ChatTemplate`]: the template rejects this conversation, or an argument holds a special
    /// token.
    pub fn render(
        &self,
        conversation: &Conversation,
        special: &SpecialTokens,
    ) -> Result<RenderedPrompt, EngineError> {
        self.check_arguments(conversation, special)?;
        if !conversation.texts().any(|text| special.may_be_in(text)) {
            let text = self.print(conversation, self.form, (&Marker::none(), special))?;
            return Ok(self.rendered(text, Vec::new()));
        }
        let marker = Marker::for_texts(conversation.texts(), &self.literals, special);
        let marker = marker.ok_or_else(|| refused("the messages use every private character".to_owned()))?;
        let marked = self.print(conversation, self.form, (&marker, special))?;
        let (text, untrusted) = marker.read(&marked);
        Ok(self.rendered(text, untrusted))
    }

    /// Returns the template's text.
    #[must_use]
    pub fn source(&self) -> &str {
        &self.source
    }

    fn rendered(&self, text: String, untrusted: Vec<Range<usize>>) -> RenderedPrompt {
        let reasoning = ReasoningStart::of(&self.source, &text);
        RenderedPrompt { text, untrusted, reasoning }
    }

    fn check_arguments(
        &self,
        conversation: &Conversation,
        special: &SpecialTokens,
    ) -> Result<(), EngineError> {
        for (name, value) in &conversation.arguments {
            if RESERVED.contains(&name.as_str()) {
                return Err(refused(format!("`{name}` is set by the server")));
            }
            let mut texts = Vec::new();
            collect_texts(value, &mut texts);
            if texts.iter().any(|text| special.is_in(text)) {
                return Err(refused(format!("argument `{name}` holds a special token of the model")));
            }
        }
        Ok(())
    }

    fn print(
        &self,
        conversation: &Conversation,
        form: ContentForm,
        (marker, special): (&Marker, &SpecialTokens),
    ) -> Result<String, EngineError> {
        let at = conversation.at;
        let mut variables: BTreeMap<&str, Value> = BTreeMap::new();
        for (name, value) in &conversation.arguments {
            variables.insert(name, json_value(value, &Marker::none()));
        }
        let messages = conversation.messages.iter().map(|message| message_value(message, form, marker));
        variables.insert("messages", messages.collect());
        let tools = conversation.tools.iter().map(|tool| tool_value(tool, marker, special));
        let is_without = conversation.tools.is_empty();
        variables.insert("tools", if is_without { Value::from(()) } else { tools.collect() });
        variables.insert("documents", Value::from(()));
        variables.insert("bos_token", Value::from(self.begin.as_str()));
        variables.insert("eos_token", Value::from(self.end.as_str()));
        variables.insert("add_generation_prompt", Value::from(true));
        let now = move |format: String| calendar::strftime(at, &format).map_err(invalid_operation);
        variables.insert("strftime_now", Value::from_function(now));
        let template = self.environment.get_template("chat").map_err(failed)?;
        let prompt = template.render(Value::from_pairs(variables)).map_err(failed)?;
        let bytes_max = marker.bytes_of(PROMPT_BYTES_MAX);
        if prompt.len() > bytes_max {
            return Err(refused(format!("{} bytes, at most {bytes_max}", prompt.len())));
        }
        Ok(prompt)
    }
}

fn message_value(message: &ChatMessage, form: ContentForm, marker: &Marker) -> Value {
    let text = |text: &str| Value::from(marker.mark(text));
    let mut fields: BTreeMap<&str, Value> = BTreeMap::new();
    fields.insert("role", Value::from(message.role.as_str()));
    let content = match (&message.content, form) {
        (None, _) => Value::from(()),
        (Some(content), ContentForm::Text) => text(content),
        (Some(content), ContentForm::Parts) => {
            let part = [("type", Value::from("text")), ("text", text(content))];
            [Value::from_pairs(part)].into_iter().collect()
        }
    };
    fields.insert("content", content);
    if let Some(reasoning) = &message.reasoning_content {
        fields.insert("reasoning_content", text(reasoning));
    }
    if let Some(name) = &message.name {
        fields.insert("name", text(name));
    }
    if let Some(id) = &message.tool_call_id {
        fields.insert("tool_call_id", text(id));
    }
    if !message.tool_calls.is_empty() {
        let call = |call: &ToolCall| {
            let arguments = json_value(&call.arguments, marker);
            let function = Value::from_pairs([("name", text(&call.name)), ("arguments", arguments)]);
            Value::from_pairs([
                ("id", text(&call.id)),
                ("type", Value::from("function")),
                ("function", function),
            ])
        };
        fields.insert("tool_calls", message.tool_calls.iter().map(call).collect());
    }
    Value::from_pairs(fields)
}

/// Returns a function as templates expect it. They look for words of schemas (`properties`), so a text stays
/// unmarked there unless a special token could begin or end in it.
fn tool_value(tool: &ToolDefinition, marker: &Marker, special: &SpecialTokens) -> Value {
    let mark = |text: &str| if special.may_be_in(text) { marker.mark(text) } else { text.to_owned() };
    let mut function = vec![("name", Value::from(mark(&tool.name)))];
    function.extend(tool.description.as_ref().map(|text| ("description", Value::from(mark(text)))));
    function.push(("parameters", json_value_by(&tool.parameters, &mark)));
    Value::from_pairs([("type", Value::from("function")), ("function", Value::from_pairs(function))])
}

/// Converts JSON into a value of templates; texts and names are marked.
fn json_value(value: &serde_json::Value, marker: &Marker) -> Value {
    json_value_by(value, &|text| marker.mark(text))
}

fn json_value_by(value: &serde_json::Value, mark: &dyn Fn(&str) -> String) -> Value {
    match value {
        serde_json::Value::Null => Value::from(()),
        serde_json::Value::Bool(flag) => Value::from(*flag),
        serde_json::Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(number), _) => Value::from(number),
            (None, Some(number)) => Value::from(number),
            (None, None) => Value::from(number.as_f64().unwrap_or_default()),
        },
        serde_json::Value::String(text) => Value::from(mark(text)),
        serde_json::Value::Array(items) => items.iter().map(|item| json_value_by(item, mark)).collect(),
        serde_json::Value::Object(fields) => {
            Value::from_pairs(fields.iter().map(|(name, item)| (mark(name), json_value_by(item, mark))))
        }
    }
}

fn failed(error: minijinja::Error) -> EngineError {
    refused(error.to_string())
}

fn refused(reason: String) -> EngineError {
    EngineError::ChatTemplate { reason }
}

fn invalid_operation(reason: String) -> minijinja::Error {
    minijinja::Error::new(ErrorKind::InvalidOperation, reason)
}

#[cfg(test)]
mod tests;
