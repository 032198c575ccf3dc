//! Tests of request parsing: bodies as text, with the parsed request or the error.

use super::*;

/// Returns the result of parsing a body: `ok`, or `code param`.
fn outcome(endpoint: Endpoint, body: &str) -> String {
    match InferenceRequest::parse(endpoint, body.as_bytes()) {
        Ok(_) => "ok".to_owned(),
        Err(error) => format!("{} {}", error.code, error.param.unwrap_or_default()),
    }
}

fn generated(endpoint: Endpoint, body: &str) -> Generate {
    match InferenceRequest::parse(endpoint, body.as_bytes()) {
        Ok(InferenceRequest::Generate(generate)) => *generate,
        other => panic!("{other:?}"),
    }
}

fn embedded(input: &str) -> Vec<EmbedInput> {
    let body = format!(r#"{{"model": "m", "input": {input}}}"#);
    match InferenceRequest::parse(Endpoint::Embeddings, body.as_bytes()) {
        Ok(InferenceRequest::Embed(embed)) => embed.inputs,
        other => panic!("{other:?}"),
    }
}

/// Adds `fields` to an otherwise valid chat.
fn chat_with(fields: &str) -> String {
    let body = format!(r#"{{"model": "m", "messages": [{{"role": "user", "content": "hi"}}], {fields}}}"#);
    outcome(Endpoint::Chat, &body)
}

#[test]
fn chat_fields_are_served_or_refused_by_name() {
    for (fields, expected) in [
        (r#""temperature": 0, "top_p": 0.5, "seed": 7, "max_tokens": 5"#, "ok"),
        (r#""max_completion_tokens": 5"#, "ok"),
        (r#""max_completion_tokens": 5, "max_tokens": 5"#, "invalid-value max_tokens"),
        (r#""max_tokens": 0"#, "invalid-value max_tokens"),
        (r#""max_tokens": "5""#, "invalid-value max_tokens"),
        (r#""max_tokens": 1.5"#, "invalid-value max_tokens"),
        (r#""temperature": 2.1"#, "invalid-value temperature"),
        (r#""temperature": -0.1"#, "invalid-value temperature"),
        (r#""top_p": 1.1"#, "invalid-value top_p"),
        (r#""seed": "x""#, "invalid-value seed"),
        (r#""seed": -3"#, "ok"),
        (r#""n": 1"#, "ok"),
        (r#""n": 2"#, "ok"),
        (r#""n": 0"#, "invalid-value n"),
        (r#""n": 129"#, "invalid-value n"),
        (r#""ignore_eos": true"#, "ok"),
        (r#""ignore_eos": 1"#, "invalid-value ignore_eos"),
        (r#""chat_template_kwargs": {"enable_thinking": false, "tags": ["a"]}"#, "ok"),
        (r#""chat_template_kwargs": ["a"]"#, "invalid-value chat_template_kwargs"),
        (r#""stop": "x""#, "ok"),
        (r#""stop": ["x", "y"]"#, "ok"),
        (r#""stop": [""]"#, "invalid-value stop[0]"),
        (r#""stop": ["x", 1]"#, "invalid-value stop[1]"),
        (r#""stop": ["1","2","3","4","5"]"#, "invalid-value stop"),
        (r#""stop": null"#, "ok"),
        (r#""min_tokens": 5"#, "ok"),
        (r#""min_tokens": 5, "max_tokens": 4"#, "invalid-value min_tokens"),
        (r#""min_tokens": -1"#, "invalid-value min_tokens"),
        (r#""stop_token_ids": [1, 2], "include_stop_str_in_output": true"#, "ok"),
        (r#""stop_token_ids": 1"#, "invalid-value stop_token_ids"),
        (r#""stop_token_ids": [-1]"#, "invalid-value stop_token_ids[0]"),
        (r#""include_stop_str_in_output": "yes""#, "invalid-value include_stop_str_in_output"),
        (r#""best_of": 1"#, "unknown-parameter best_of"),
        (r#""stream": true"#, "ok"),
        (r#""stream": "yes""#, "invalid-value stream"),
        (r#""stream": true, "stream_options": {"include_usage": true}"#, "ok"),
        (r#""stream": true, "stream_options": {"speed": 1}"#, "unknown-parameter stream_options.speed"),
        (r#""stream_options": {"include_usage": true}"#, "invalid-value stream_options"),
        (r#""user": "me", "store": false, "metadata": {}"#, "ok"),
        (r#""store": true"#, "unsupported-parameter store"),
        (r#""metadata": {"a": "b"}"#, "unsupported-parameter metadata"),
    ] {
        assert_eq!(chat_with(fields), expected, "{fields}");
    }
}

#[test]
fn chat_fields_of_sampling_are_served_or_refused_by_name() {
    for (fields, expected) in [
        (r#""logprobs": false, "tools": [], "tool_choice": "auto", "logit_bias": {}"#, "ok"),
        (r#""logprobs": true"#, "ok"),
        (r#""logprobs": true, "top_logprobs": 0"#, "ok"),
        (r#""logprobs": true, "top_logprobs": 20"#, "ok"),
        (r#""logprobs": true, "top_logprobs": 21"#, "invalid-value top_logprobs"),
        (r#""top_logprobs": 2"#, "invalid-value top_logprobs"),
        (r#""logprobs": 2"#, "invalid-value logprobs"),
        (r#""tools": [{"type": "function"}]"#, "missing-parameter tools[0].function"),
        (r#""response_format": {"type": "text"}"#, "ok"),
        (r#""response_format": {"type": "json_object"}"#, "ok"),
        (r#""frequency_penalty": 0, "presence_penalty": 0.0"#, "ok"),
        (r#""frequency_penalty": 2, "presence_penalty": -2, "repetition_penalty": 1.1"#, "ok"),
        (r#""presence_penalty": 2.5"#, "invalid-value presence_penalty"),
        (r#""repetition_penalty": 0"#, "invalid-value repetition_penalty"),
        (r#""logit_bias": {"5": -100, "7": 0.5}"#, "ok"),
        (r#""logit_bias": {"5": -101}"#, "invalid-value logit_bias.5"),
        (r#""logit_bias": {"the": 1}"#, "invalid-value logit_bias.the"),
        (r#""logit_bias": {"5": "1"}"#, "invalid-value logit_bias.5"),
        (r#""logit_bias": [5]"#, "invalid-value logit_bias"),
        (r#""reasoning_effort": "low""#, "unsupported-parameter reasoning_effort"),
        (r#""top_k": 5, "min_p": 0.1"#, "ok"),
        (r#""top_k": -1, "min_p": null"#, "ok"),
        (r#""top_k": -2"#, "invalid-value top_k"),
        (r#""top_k": 1.5"#, "invalid-value top_k"),
        (r#""top_k": "5""#, "invalid-value top_k"),
        (r#""min_p": 1.1"#, "invalid-value min_p"),
        (r#""typical_p": 0.5"#, "unknown-parameter typical_p"),
    ] {
        assert_eq!(chat_with(fields), expected, "{fields}");
    }
}

#[test]
fn the_form_of_an_answer_is_taken_or_refused_by_name() {
    let format =
        |schema: &str| format!(r#""response_format": {{"type": "json_schema", "json_schema": {schema}}}"#);
    for (fields, expected) in [
        (format(r#"{"name": "a", "schema": {"type": "object"}, "strict": true, "description": "x"}"#), "ok"),
        (format(r#"{"name": "a"}"#), "ok"),
        (format(r#"{"name": "a", "schema": true}"#), "ok"),
        (format(r#"{"schema": {}}"#), "missing-parameter response_format.json_schema.name"),
        (format(r#"{"name": "a b"}"#), "invalid-value response_format.json_schema.name"),
        (format(r#"{"name": "a", "schema": "x"}"#), "invalid-value response_format.json_schema.schema"),
        (format(r#"{"name": "a", "x": 1}"#), "unknown-parameter response_format.json_schema.x"),
        (r#""response_format": {"type": "xml"}"#.to_owned(), "invalid-value response_format.type"),
        (
            r#""response_format": {"type": "json_schema"}"#.to_owned(),
            "missing-parameter response_format.json_schema",
        ),
        (r#""response_format": "json""#.to_owned(), "invalid-value response_format"),
    ] {
        assert_eq!(chat_with(&fields), expected, "{fields}");
    }
    for (outputs, expected) in [
        (r#"{"json": {"type": "object"}}"#, "ok"),
        (r#"{"json": "{}"}"#, "ok"),
        (r#"{"json": "{"}"#, "invalid-value structured_outputs.json"),
        (r#"{"json_object": true}"#, "ok"),
        (r#"{"regex": "a+"}"#, "ok"),
        (r#"{"grammar": "start: \"a\""}"#, "ok"),
        (r#"{"choice": ["a", "b"]}"#, "ok"),
        (r#"{"choice": []}"#, "invalid-value structured_outputs.choice"),
        (r#"{"choice": ["a", ""]}"#, "invalid-value structured_outputs.choice[1]"),
        (r#"{"regex": ""}"#, "invalid-value structured_outputs.regex"),
        (r#"{"regex": "a", "choice": ["a"]}"#, "invalid-value structured_outputs"),
        (r#"{}"#, "invalid-value structured_outputs"),
        (r#"{"structural_tag": "x", "regex": "a"}"#, "unknown-parameter structured_outputs.structural_tag"),
    ] {
        assert_eq!(chat_with(&format!(r#""structured_outputs": {outputs}"#)), expected, "{outputs}");
        let body = format!(r#"{{"model": "m", "prompt": "a", "structured_outputs": {outputs}}}"#);
        assert_eq!(outcome(Endpoint::Completions, &body), expected, "{outputs}");
    }
    let both = r#""response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}"#;
    assert_eq!(chat_with(both), "invalid-value structured_outputs");
    let endless = r#""response_format": {"type": "json_object"}, "ignore_eos": true"#;
    assert_eq!(chat_with(endless), "unsupported-parameter ignore_eos");
    assert_eq!(chat_with(r#""guided_regex": "a""#), "unknown-parameter guided_regex");
}

#[test]
fn functions_are_taken_or_refused_by_name() {
    let tool = |function: &str| format!(r#""tools": [{{"type": "function", "function": {function}}}]"#);
    let choose = |choice: &str| format!(r#"{}, "tool_choice": {choice}"#, tool(r#"{"name": "f"}"#));
    let named = |name: &str| choose(&format!(r#"{{"type": "function", "function": {{"name": "{name}"}}}}"#));
    for (fields, expected) in [
        (
            tool(r#"{"name": "f", "description": "d", "parameters": {"type": "object"}, "strict": true}"#),
            "ok",
        ),
        (tool(r#"{"name": "f"}"#), "ok"),
        (tool(r#"{"name": "f g"}"#), "invalid-value tools[0].function.name"),
        (tool(r#"{"name": "f", "parameters": []}"#), "invalid-value tools[0].function.parameters"),
        (tool(r#"{"name": "f", "code": "x"}"#), "unknown-parameter tools[0].function.code"),
        (r#""tools": [{"type": "web_search"}]"#.to_owned(), "unsupported-parameter tools[0].type"),
        (r#""tools": {}"#.to_owned(), "invalid-value tools"),
        (
            r#""tools": [{"function": {"name": "f"}}, {"function": {"name": "f"}}]"#.to_owned(),
            "invalid-value tools",
        ),
        (choose(r#""auto""#), "ok"),
        (choose(r#""none""#), "ok"),
        (choose(r#""required""#), "ok"),
        (choose(r#""any""#), "invalid-value tool_choice"),
        (choose("1"), "invalid-value tool_choice"),
        (named("f"), "ok"),
        (named("g"), "invalid-value tool_choice"),
        (r#""tool_choice": "required""#.to_owned(), "invalid-value tool_choice"),
        (r#""tool_choice": "auto", "tools": []"#.to_owned(), "ok"),
        (format!(r#"{}, "parallel_tool_calls": false"#, choose(r#""auto""#)), "ok"),
        (r#""parallel_tool_calls": 1"#.to_owned(), "invalid-value parallel_tool_calls"),
    ] {
        assert_eq!(chat_with(&fields), expected, "{fields}");
    }
    let long = format!(r#"{{"name": "f", "description": "{}"}}"#, "x".repeat(20_000));
    assert_eq!(chat_with(&tool(&long)), "invalid-value tools[0].function.description");
    let large = format!(r#"{{"name": "f", "parameters": {{"title": "{}"}}}}"#, "x".repeat(300_000));
    assert_eq!(chat_with(&tool(&large)), "grammar-too-large tools");
}

#[test]
fn messages_are_text_with_known_roles() {
    for (messages, expected) in [
        (r#"[{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]"#, "ok"),
        (r#"[{"role": "user", "content": [{"type": "text", "text": "b"}]}]"#, "ok"),
        (
            r#"[{"role": "assistant", "content": "b", "refusal": null, "tool_calls": [], "audio": null}]"#,
            "ok",
        ),
        (
            r#"[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]"#,
            "unsupported-parameter messages[0].content[0].type",
        ),
        (r#"[{"role": "tool", "content": "b"}]"#, "missing-parameter messages[0].tool_call_id"),
        (r#"[{"role": "tool", "content": "b", "tool_call_id": "c-1", "name": "add"}]"#, "ok"),
        (
            r#"[{"role": "tool", "content": "b", "tool_call_id": ""}]"#,
            "invalid-value messages[0].tool_call_id",
        ),
        (
            r#"[{"role": "user", "content": "b", "tool_call_id": "c"}]"#,
            "unsupported-parameter messages[0].tool_call_id",
        ),
        (r#"[{"role": "critic", "content": "b"}]"#, "invalid-value messages[0].role"),
        (r#"[{"role": "assistant"}]"#, "missing-parameter messages[0].content"),
        (r#"[{"role": "user"}]"#, "missing-parameter messages[0].content"),
        (r#"[{"role": "user", "content": null}]"#, "missing-parameter messages[0].content"),
        (r#"[{"role": "user", "content": "b", "name": "x"}]"#, "ok"),
        (r#"[{"role": "assistant", "content": "b", "reasoning_content": "r"}]"#, "ok"),
        (r#"[{"role": "assistant", "content": null, "reasoning_content": "r"}]"#, "ok"),
        (
            r#"[{"role": "assistant", "content": "b", "reasoning_content": 1}]"#,
            "invalid-value messages[0].reasoning_content",
        ),
        (
            r#"[{"role": "user", "content": "b", "reasoning_content": "r"}]"#,
            "unsupported-parameter messages[0].reasoning_content",
        ),
        (r#"[{"role": "user", "content": "b", "name": "<|x|>"}]"#, "invalid-value messages[0].name"),
        (r#"[{"role": "user", "content": "b", "mood": "x"}]"#, "unknown-parameter messages[0].mood"),
        (r#"[{"role": "user", "content": 5}]"#, "invalid-value messages[0].content"),
        ("[]", "invalid-value messages"),
        ("{}", "invalid-value messages"),
        (r#"["hi"]"#, "invalid-value messages[0]"),
        ("null", "missing-parameter messages"),
    ] {
        let body = format!(r#"{{"model": "m", "messages": {messages}}}"#);
        assert_eq!(outcome(Endpoint::Chat, &body), expected, "{messages}");
    }
}

#[test]
fn completions_take_prompts() {
    for (prompt, expected) in [
        (r#""text""#, "ok"),
        (r#"["text"]"#, "ok"),
        ("[1, 2]", "ok"),
        ("[[1, 2]]", "ok"),
        (r#"["a", "b"]"#, "ok"),
        (r#"["a", [1]]"#, "ok"),
        ("[]", "invalid-value prompt"),
        ("[1, -2]", "invalid-value prompt[1]"),
        ("[[1, 4294967296]]", "invalid-value prompt[0][1]"),
        ("[null]", "invalid-value prompt[0]"),
        ("7", "invalid-value prompt"),
    ] {
        let body = format!(r#"{{"model": "m", "prompt": {prompt}}}"#);
        assert_eq!(outcome(Endpoint::Completions, &body), expected, "{prompt}");
    }
    for (field, expected) in [
        (r#""best_of": 1, "echo": false, "suffix": null"#, "ok"),
        (r#""best_of": 3"#, "ok"),
        (r#""best_of": 3, "n": 2"#, "ok"),
        (r#""best_of": 2, "n": 3"#, "invalid-value best_of"),
        (r#""best_of": 0"#, "invalid-value best_of"),
        (r#""best_of": 129"#, "invalid-value best_of"),
        (r#""best_of": 3, "stream": true"#, "invalid-value best_of"),
        (r#""best_of": 3, "n": 3, "stream": true"#, "ok"),
        (r#""min_tokens": 17"#, "invalid-value min_tokens"),
        (r#""min_tokens": 16"#, "ok"),
        (r#""echo": true"#, "ok"),
        (r#""logprobs": 0"#, "ok"),
        (r#""logprobs": 21"#, "invalid-value logprobs"),
        (r#""logprobs": 2, "echo": true"#, "unsupported-parameter logprobs"),
        (r#""messages": []"#, "unknown-parameter messages"),
    ] {
        let body = format!(r#"{{"model": "m", "prompt": "x", {field}}}"#);
        assert_eq!(outcome(Endpoint::Completions, &body), expected, "{field}");
    }
}

#[test]
fn embeddings_take_texts_and_tokens() {
    let text = |text: &str| EmbedInput::Text(text.to_owned());
    assert_eq!(embedded(r#""a""#), [text("a")]);
    assert_eq!(embedded(r#"["a", "b"]"#), [text("a"), text("b")]);
    assert_eq!(embedded("[1, 2]"), [EmbedInput::Tokens(vec![1, 2])]);
    assert_eq!(embedded("[[1], [2, 3]]"), [EmbedInput::Tokens(vec![1]), EmbedInput::Tokens(vec![2, 3])]);
    for (fields, expected) in [
        (r#""input": "a", "encoding_format": "float""#, "ok"),
        (r#""input": "a", "encoding_format": "base64""#, "ok"),
        (r#""input": "a", "encoding_format": "int8""#, "invalid-value encoding_format"),
        (r#""input": "a", "dimensions": 8"#, "ok"),
        (r#""input": "a", "dimensions": 0"#, "invalid-value dimensions"),
        (r#""input": [], "user": "me""#, "invalid-value input"),
        (r#""input": [1, "a"]"#, "invalid-value input[1]"),
        (r#""input": ["a", 1]"#, "invalid-value input[1]"),
        (r#""input": {}"#, "invalid-value input"),
        (r#""user": "x""#, "missing-parameter input"),
    ] {
        let body = format!(r#"{{"model": "m", {fields}}}"#);
        assert_eq!(outcome(Endpoint::Embeddings, &body), expected, "{fields}");
    }
}

#[test]
fn defaults_are_openais() {
    let chat =
        generated(Endpoint::Chat, r#"{"model": "m", "messages": [{"role": "developer", "content": "x"}]}"#);
    assert_eq!((chat.temperature, chat.top_p, chat.seed, chat.tokens_max), (1.0, 1.0, None, None));
    assert_eq!(chat.delivery, Delivery::Whole);
    let [Prompt::Chat(conversation)] = &chat.prompts[..] else { panic!("a chat") };
    assert_eq!(conversation.messages[0].role, "system");
    assert_eq!((chat.choices, chat.candidates, chat.echo), (1, 1, false));
    assert_eq!(chat.stops, StopConditions::default());
    let completion = generated(Endpoint::Completions, r#"{"model": "m", "prompt": "x", "stream": true}"#);
    assert_eq!(completion.tokens_max, Some(16));
    assert_eq!(completion.delivery, Delivery::Stream { include_usage: false });
}

#[test]
fn stop_tokens_are_limited() {
    let with = |count: usize| format!(r#""stop_token_ids": [{}7]"#, "7,".repeat(count - 1));
    assert_eq!(chat_with(&with(128)), "ok");
    assert_eq!(chat_with(&with(129)), "invalid-value stop_token_ids");
}

#[test]
fn tokens_are_turned_into_text() {
    for (fields, expected) in [
        (r#""tokens": [1, 2]"#, "ok"),
        (r#""tokens": []"#, "ok"),
        (r#""tokens": [1, -2]"#, "invalid-value tokens[1]"),
        (r#""tokens": "a""#, "invalid-value tokens"),
        (r#""prompt": "a""#, "missing-parameter tokens"),
        (r#""tokens": [1], "user": "u""#, "unknown-parameter user"),
    ] {
        let body = format!(r#"{{"model": "m", {fields}}}"#);
        assert_eq!(outcome(Endpoint::Detokenize, &body), expected, "{fields}");
    }
}

#[test]
fn a_model_must_be_named() {
    for body in [r#"{"messages": []}"#, r#"{"model": ""}"#, r#"{"model": null}"#] {
        assert_eq!(outcome(Endpoint::Chat, body), "missing-parameter model", "{body}");
    }
    assert_eq!(outcome(Endpoint::Chat, r#"{"model": 5}"#), "invalid-value model");
    let long = format!(r#"{{"model": "{}"}}"#, "m".repeat(257));
    assert_eq!(outcome(Endpoint::Chat, &long), "invalid-value model");
}

#[test]
fn the_answers_to_all_prompts_are_limited() {
    let request = |prompts: usize, n: usize| {
        let prompts = vec!["x"; prompts];
        outcome(
            Endpoint::Completions,
            &serde_json::json!({ "model": "m", "prompt": prompts, "n": n }).to_string(),
        )
    };
    assert_eq!(request(128, 1), "ok");
    assert_eq!(request(64, 2), "ok");
    assert_eq!(request(65, 2), "invalid-value n");
    assert_eq!(request(129, 1), "invalid-value prompt");
}

/// Returns a conversation in which the assistant called a function with these arguments.
fn called(content: &str, arguments: &str) -> String {
    let arguments = serde_json::Value::from(arguments);
    format!(
        r#"{{"model": "m", "messages": [{{"role": "assistant", {content} "tool_calls": [{{"id": "c1",
        "type": "function", "function": {{"name": "add", "arguments": {arguments}}}}}]}},
        {{"role": "tool", "tool_call_id": "c1", "content": "3"}}]}}"#
    )
}

#[test]
fn calls_of_tools_are_read_with_their_arguments() {
    for content in ["", r#""content": null,"#, r#""content": "I add.","#] {
        let chat = generated(Endpoint::Chat, &called(content, r#"{"a": 1, "b": [2]}"#));
        let [Prompt::Chat(conversation)] = &chat.prompts[..] else { panic!("a chat") };
        let [asked, answered] = &conversation.messages[..] else { panic!("two messages") };
        assert_eq!(asked.content.as_deref(), content.contains("add").then_some("I add."));
        assert_eq!((asked.tool_calls[0].id.as_str(), asked.tool_calls[0].name.as_str()), ("c1", "add"));
        assert_eq!(asked.tool_calls[0].arguments, serde_json::json!({ "a": 1, "b": [2] }));
        assert_eq!(answered.tool_call_id.as_deref(), Some("c1"));
    }
    let path = "messages[0].tool_calls[0].function.arguments";
    let long = format!("{{\"a\": \"{}\"}}", "x".repeat(256 * 1024));
    for arguments in ["", "[1]", "{\"a\": }", long.as_str()] {
        assert_eq!(outcome(Endpoint::Chat, &called("", arguments)), format!("invalid-value {path}"));
    }
}

#[test]
fn tokens_are_asked_for_a_prompt_or_for_messages() {
    for (fields, expected) in [
        (r#""prompt": "a""#, "ok"),
        (r#""prompt": "a", "add_special_tokens": true, "return_token_strs": true"#, "ok"),
        (r#""prompt": "a", "add_special_tokens": false"#, "unsupported-parameter add_special_tokens"),
        (r#""messages": [{"role": "user", "content": "a"}], "add_generation_prompt": true"#, "ok"),
        (r#""messages": [{"role": "user", "content": "a"}], "prompt": "a""#, "unknown-parameter prompt"),
        (r#""prompt": ["a"]"#, "invalid-value prompt"),
        (r#""prompt": null"#, "missing-parameter prompt"),
    ] {
        let body = format!(r#"{{"model": "m", {fields}}}"#);
        assert_eq!(outcome(Endpoint::Tokenize, &body), expected, "{fields}");
    }
}
