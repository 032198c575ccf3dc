//! Chat templates: render messages into a prompt with the model's own Jinja template.
//!
//! The template is part of the approved model; the messages are data that it arranges. Templates get no
//! clock, so one that asks for the date is refused at render time.

use super::EngineError;
use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, ErrorKind, context};

/// Maximum length of a rendered prompt, in bytes: four for each token of the largest context served today.
const PROMPT_BYTES_MAX: usize = 8 * 1024 * 1024;

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChatMessage {
    /// `system`, `user`, `assistant`, or another role that the template knows.
    pub role: String,
    /// Text of the message.
    pub content: String,
}

/// A compiled chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    begin: String,
    end: String,
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
        environment.add_function("raise_exception", |message: String| -> Result<String, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_template_owned("chat", source).map_err(failed)?;
        Ok(Self { environment, begin, end })
    }

    /// Returns a template of `role: content` lines, for the simulated engine.
    #[must_use]
    pub fn plain() -> Self {
        let source = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant: ";
        Self::new(source.to_owned(), String::new(), String::new()).expect("the literal compiles")
    }

    /// Renders these messages into a prompt that ends where the assistant's answer begins.
    ///
    /// # Errors
    /// [`EngineError::ChatTemplate`]: the template rejects these messages.
    pub fn render(&self, messages: &[ChatMessage]) -> Result<String, EngineError> {
        let messages: Vec<minijinja::Value> = messages
            .iter()
            .map(|message| context! { role => message.role.as_str(), content => message.content.as_str() })
            .collect();
        let template = self.environment.get_template("chat").map_err(failed)?;
        let prompt = template
            .render(context! {
                messages => messages, bos_token => self.begin.as_str(), eos_token => self.end.as_str(),
                add_generation_prompt => true,
            })
            .map_err(failed)?;
        if prompt.len() > PROMPT_BYTES_MAX {
            let reason = format!("{} bytes, at most {PROMPT_BYTES_MAX}", prompt.len());
            return Err(EngineError::ChatTemplate { reason });
        }
        Ok(prompt)
    }
}

fn failed(error: minijinja::Error) -> EngineError {
    EngineError::ChatTemplate { reason: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(role: &str, content: &str) -> ChatMessage {
        ChatMessage { role: role.to_owned(), content: content.to_owned() }
    }

    #[test]
    fn published_templates_render() {
        let source = "{{ bos_token }}{% for message in messages %}\n    \
            {% if message['role'] not in ['user', 'assistant'] %}\
            {{ raise_exception('no ' + message.role) }}{% endif %}\n\
            {{ '<|' + message['role'] + '|>' + message['content'].strip() }}{{ eos_token }}{% endfor %}\
            {% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}";
        let template =
            ChatTemplate::new(source.to_owned(), "<s>".to_owned(), "</s>".to_owned()).expect("compiles");
        let prompt =
            template.render(&[message("user", " hi "), message("assistant", "ho")]).expect("renders");
        assert_eq!(prompt, "<s><|user|>hi</s><|assistant|>ho</s><|assistant|>");
        let error = template.render(&[message("tool", "x")]).expect_err("role refused by the template");
        assert_eq!(error.code().as_str(), "chat-template-failed");
        assert!(error.to_string().contains("no tool"), "{error}");
    }

    #[test]
    fn message_text_is_data_not_template() {
        let prompt = ChatTemplate::plain().render(&[message("user", "{{ 1 + 1 }}")]).expect("renders");
        assert_eq!(prompt, "user: {{ 1 + 1 }}\nassistant: ");
    }

    #[test]
    fn a_broken_template_is_refused_when_it_is_read() {
        let error =
            ChatTemplate::new("{% for %}".to_owned(), String::new(), String::new()).expect_err("syntax");
        assert_eq!(error.code().as_str(), "chat-template-failed");
    }
}
