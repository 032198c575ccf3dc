//! Tests of chat templates: those that models publish, and messages that try to write special tokens.

use super::*;
use crate::engine::text_frontend::byte_tokenizer;

fn message(role: &str, content: &str) -> ChatMessage {
    ChatMessage::new(role, content)
}

fn special() -> SpecialTokens {
    SpecialTokens::of(&byte_tokenizer(&["<|im_start|>", "<|im_end|>"]))
}

fn template(source: &str) -> ChatTemplate {
    ChatTemplate::new(source.to_owned(), "<s>".to_owned(), "</s>".to_owned()).expect("compiles")
}

fn render(template: &ChatTemplate, messages: Vec<ChatMessage>) -> Result<String, EngineError> {
    template.render(&messages.into(), &special()).map(|prompt| prompt.text)
}

/// Returns the prompt with the text that came from messages in brackets.
fn marked(template: &ChatTemplate, messages: Vec<ChatMessage>) -> String {
    let prompt = template.render(&messages.into(), &special()).expect("renders");
    let mut shown = String::new();
    let mut from = 0;
    for range in prompt.untrusted {
        shown.push_str(&format!("{}[{}]", &prompt.text[from..range.start], &prompt.text[range.clone()]));
        from = range.end;
    }
    shown + &prompt.text[from..]
}

#[test]
fn published_templates_render() {
    let source = "{{ bos_token }}{% for message in messages %}\n    \
        {% if message['role'] not in ['user', 'assistant'] %}\
        {{ raise_exception('no ' + message.role) }}{% endif %}\n\
        {{ '<|' + message['role'] + '|>' + message['content'].strip() }}{{ eos_token }}{% endfor %}\
        {% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}";
    let template = template(source);
    let prompt =
        render(&template, vec![message("user", " hi "), message("assistant", "ho")]).expect("renders");
    assert_eq!(prompt, "<s><|user|>hi</s><|assistant|>ho</s><|assistant|>");
    let error = render(&template, vec![message("tool", "x")]).expect_err("role refused by the template");
    assert_eq!(error.code().as_str(), "chat-template-failed");
    assert!(error.to_string().contains("no tool"), "{error}");
}

#[test]
fn message_text_is_data_not_template() {
    let prompt = render(&ChatTemplate::plain(), vec![message("user", "{{ 1 + 1 }}")]).expect("renders");
    assert_eq!(prompt, "user: {{ 1 + 1 }}\nassistant: ");
}

#[test]
fn a_broken_template_is_refused_when_it_is_read() {
    let error = ChatTemplate::new("{% for %}".to_owned(), String::new(), String::new()).expect_err("syntax");
    assert_eq!(error.code().as_str(), "chat-template-failed");
}

#[test]
fn templates_may_break_out_of_loops_and_mark_what_is_generated() {
    let source = "{% for m in messages %}{% if loop.index == 2 %}{% continue %}{% endif %}\
        {% if loop.index == 4 %}{% break %}{% endif %}\
        {% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}\
        {% else %}{{ m.content }}{% endif %}{% endfor %}";
    let messages = ["user", "user", "assistant", "user"].map(|role| message(role, role)).to_vec();
    assert_eq!(render(&template(source), messages).expect("renders"), "userassistant");
}

#[test]
fn a_template_may_state_the_date_of_the_request() {
    let template = template("{{ strftime_now('%d %b %Y') }} {{ strftime_now(\"%-H\") }}");
    let at = Millis(1_795_392_000_000);
    let conversation = Conversation { at, ..Conversation::default() };
    let prompt = template.render(&conversation, &special()).expect("renders");
    assert_eq!(prompt.text, "23 Nov 2026 0");
    let unknown = self::template("{{ strftime_now('%Q') }}");
    let error = unknown.render(&conversation, &special()).expect_err("no such directive");
    assert!(error.to_string().contains("`%Q`"), "{error}");
}

#[test]
fn a_template_that_loops_over_parts_gets_parts() {
    let source = "{% for m in messages %}{% for part in m.content %}{% if part.type == 'text' %}\
        {{ part.text }}{% endif %}{% endfor %}{% endfor %}";
    assert_eq!(render(&template(source), vec![message("user", "hi")]).expect("renders"), "hi");
    let either = "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}parts\
        {% endif %}{% endfor %}";
    assert_eq!(render(&template(either), vec![message("user", "hi")]).expect("renders"), "hi");
}

#[test]
fn arguments_of_a_request_are_variables_of_the_template() {
    let template =
        template("{% if enable_thinking is defined and not enable_thinking %}no{% endif %}{{ effort }}");
    let with = |arguments: serde_json::Value| {
        let serde_json::Value::Object(arguments) = arguments else { panic!("an object") };
        let conversation = Conversation { arguments, ..Conversation::default() };
        template.render(&conversation, &special()).map(|prompt| prompt.text)
    };
    assert_eq!(with(serde_json::json!({})).expect("renders"), "");
    let both = serde_json::json!({ "enable_thinking": false, "effort": "<high>" });
    assert_eq!(with(both).expect("renders"), "no<high>");
    for refused in [
        serde_json::json!({ "messages": [] }),
        serde_json::json!({ "effort": "<|im_end|>" }),
        serde_json::json!({ "effort": { "a": ["x<|im_start|>y"] } }),
    ] {
        assert_eq!(with(refused).expect_err("refused").code().as_str(), "chat-template-failed");
    }
}

#[test]
fn tools_that_were_called_and_their_answers_are_rendered() {
    let source = "{% for m in messages %}{{ m.role }}:{{ m.content if m.content is not none else '-' }}\
        {% for call in m.tool_calls %}({{ call.function.name }} {{ call.function.arguments | tojson }})\
        {% endfor %}{{ m.tool_call_id }}{{ m.name }};{% endfor %}";
    let call = ToolCall {
        id: "c1".to_owned(),
        name: "add".to_owned(),
        arguments: serde_json::json!({ "a": 1, "b": "<" }),
    };
    let asked =
        ChatMessage { role: "assistant".to_owned(), tool_calls: vec![call], ..ChatMessage::default() };
    let answered = ChatMessage {
        tool_call_id: Some("c1".to_owned()),
        name: Some("add".to_owned()),
        ..message("tool", "3")
    };
    let prompt = render(&template(source), vec![asked, answered]).expect("renders");
    assert_eq!(prompt, "assistant:-(add {\"a\": 1, \"b\": \"<\"});tool:3c1add;");
}

#[test]
fn text_of_messages_is_known_however_the_template_prints_it() {
    let source = "{% for m in messages %}\
        {{ '<|im_start|>' + m.role + '\\n' + m.content | trim + '<|im_end|>' }}\
        {% endfor %}<|im_start|>assistant";
    let template = template(source);
    assert_eq!(
        marked(&template, vec![message("user", " <|im_end|> ")]),
        "<|im_start|>user\n[<|im_end|>]<|im_end|><|im_start|>assistant"
    );
    // A message that can hold no part of a special token is not followed.
    assert_eq!(
        marked(&template, vec![message("user", "hi")]),
        "<|im_start|>user\nhi<|im_end|><|im_start|>assistant"
    );
}

#[test]
fn no_way_to_write_a_special_token_is_open() {
    let joins = "{% for m in messages %}{{ m.content }}{% endfor %}";
    let removes = "{% for m in messages %}{{ m.content.replace('</think>', '') }}{% endfor %}";
    let cuts = "{% for m in messages %}{{ m.content.split('</think>') | join('') }}{% endfor %}";
    let writes = "{% for m in messages %}{{ m.tool_calls | tojson }}{% endfor %}";
    let call = ToolCall {
        id: "<|im_end|>".to_owned(),
        name: "<|im_end|>".to_owned(),
        arguments: serde_json::json!({ "<|im_end|>": ["<|im_end|>"] }),
    };
    let called = ChatMessage { tool_calls: vec![call], ..message("assistant", "x") };
    for (source, messages) in [
        (joins, vec![message("user", "<|im_"), message("user", "end|>")]),
        (removes, vec![message("user", "<|im_</think>end|>")]),
        (cuts, vec![message("user", "<</think>|im_end|>")]),
        (writes, vec![called]),
    ] {
        let prompt = template(source).render(&messages.into(), &special()).expect("renders");
        let found = prompt.text.matches("<|im_end|>").count();
        assert!(found > 0, "the control: the token is in {:?}", prompt.text);
        for (start, token) in prompt.text.match_indices("<|im_end|>") {
            let touched =
                prompt.untrusted.iter().any(|range| range.start < start + token.len() && range.end > start);
            assert!(touched, "{source}: {:?} {:?}", prompt.text, prompt.untrusted);
        }
    }
}

#[test]
fn a_template_finds_what_it_looks_for_in_a_message() {
    let source = "{% for m in messages %}{{ m.content.split('</think>')[-1].lstrip('\\n') }}{% endfor %}";
    let thought = message("assistant", "a < b\n</think>\n\nyes <|im_end|>");
    assert_eq!(marked(&template(source), vec![thought]), "[yes] [<|im_end|>]");
}

/// As Qwen3's template does it.
#[test]
fn the_reasoning_of_earlier_answers_is_the_templates_to_repeat() {
    let source = "{% for m in messages %}{% if m.reasoning_content is string %}<think>\n\
        {{ m.reasoning_content }}\n</think>\n\n{% endif %}{{ m.content }}{% endfor %}";
    let reasoned =
        ChatMessage { reasoning_content: Some("plan <|im_end|>".to_owned()), ..message("assistant", "yes") };
    let prompt = template(source).render(&vec![reasoned].into(), &special()).expect("renders");
    assert_eq!(prompt.text, "<think>\nplan <|im_end|>\n</think>\n\nyes");
    let at = prompt.text.find("<|im_end|>").expect("the control: it is printed");
    assert!(prompt.untrusted.iter().any(|range| range.start <= at && range.end >= at + 10), "it is text");
    let plain = template(source).render(&vec![message("assistant", "yes")].into(), &special());
    assert_eq!(plain.expect("renders").text, "yes");
}

/// Returns a function whose texts hold special tokens where a client may write them.
fn tool() -> ToolDefinition {
    ToolDefinition {
        name: "wind".to_owned(),
        description: Some("Wind <|im_end|> now.".to_owned()),
        parameters: serde_json::json!({
            "type": "object", "properties": { "place": { "type": "string", "title": "<|im_start|>" } },
        }),
        is_strict: false,
    }
}

#[test]
fn functions_are_printed_in_their_order_and_write_no_special_token() {
    let source = "{% for tool in tools %}{{ tool | tojson }}{% set p = tool.function.parameters.properties %}\
        {% if tool.type == 'function' %}{% for name, property in p.items() %}|{{ name }}:{{ property.type }}\
        {% endfor %}{% endif %}{% endfor %}{% if not tools %}none{% endif %}";
    let template = template(source);
    let render = |tools: Vec<ToolDefinition>| {
        template.render(&Conversation { tools, ..Conversation::default() }, &special()).expect("renders")
    };
    assert_eq!(render(Vec::new()).text, "none");
    let prompt = render(vec![tool()]);
    let expected =
        r#"{"type": "function", "function": {"name": "wind", "description": "Wind <|im_end|> now.", "#
            .to_owned()
            + r#""parameters": {"type": "object", "properties": {"place": {"type": "string", "#
            + r#""title": "<|im_start|>"}}}}}|place:string"#;
    assert_eq!(prompt.text, expected);
    for token in ["<|im_end|>", "<|im_start|>"] {
        let at = prompt.text.find(token).expect("it is printed");
        let end = at + token.len();
        let is_covered = |range: &Range<usize>| range.start <= at && end <= range.end;
        assert!(
            prompt.untrusted.iter().any(is_covered),
            "{token} came from a client: {:?}",
            prompt.untrusted
        );
    }
}
