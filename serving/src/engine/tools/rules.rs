//! Grammars of calls: Lark rules for the envelope of each family, and a schema for each function's arguments.

use super::{CallFormat, CallStyle, ToolChoice, ToolDefinition};
use crate::engine::grammar::{CallRules, lark_text};
use serde_json::json;

/// Returns the rules of an answer that may or must call these functions. `is_parallel` allows several calls.
/// Where the model chooses, the arguments of functions that are not strict are any object.
#[must_use]
pub fn call_rules(
    format: CallFormat,
    tools: &[ToolDefinition],
    choice: &ToolChoice,
    is_parallel: bool,
) -> CallRules {
    assert!(!tools.is_empty(), "there is a function to call");
    let is_optional = *choice == ToolChoice::Auto;
    let allowed: Vec<&ToolDefinition> = match choice {
        ToolChoice::Named(name) => tools.iter().filter(|tool| tool.name == *name).collect(),
        ToolChoice::Auto | ToolChoice::Required => tools.iter().collect(),
    };
    let mut schemas = Vec::new();
    let mut objects = String::new();
    let mut names = Vec::new();
    for (index, tool) in allowed.into_iter().enumerate() {
        objects.push_str(&object_rule(format, index, &tool.name));
        names.push(format!("object{index}"));
        let is_free = is_optional && !tool.is_strict;
        let schema = if is_free { json!({ "type": "object" }) } else { tool.parameters.clone() };
        schemas.push((format!("arguments{index}"), schema));
    }
    let mut lark = format!("object: {}\n{objects}GAP: /[ \\n]{{1,8}}/\n", names.join(" | "));
    lark.push_str(&list_rules(format, is_parallel));
    CallRules { lark, schemas, is_optional }
}

/// Writes the rule of one function's object: name, then arguments.
fn object_rule(CallFormat { style, separator, .. }: CallFormat, index: usize, name: &str) -> String {
    if let Some(mark) = style.separator() {
        let mark = separator.map_or_else(|| lark_text(mark), |token| format!("<[{token}]>"));
        return format!("object{index}: {} {mark} GAP? @arguments{index}\n", lark_text(name));
    }
    let text = |name: &str| lark_text(&format!("\"{name}\""));
    let (key, value) = (text("name"), text(name));
    let arguments = text(style.arguments());
    format!(
        "object{index}: \"{{\" GAP? {key} GAP? \":\" GAP? {value} GAP? \",\" GAP? {arguments} GAP? \
         \":\" GAP? @arguments{index} GAP? \"}}\"\n"
    )
}

/// Writes the rules `calls` and `called` of a family.
fn list_rules(format: CallFormat, is_parallel: bool) -> String {
    let CallFormat { style, trigger, .. } = format;
    let more = |separated: &str| if is_parallel { format!(" ({separated})*") } else { String::new() };
    let token = trigger.map(|token| format!("<[{token}]>"));
    match style {
        CallStyle::Tagged => {
            let begin = token.clone().unwrap_or_else(|| lark_text(style.trigger()));
            let rest = "GAP? object GAP? \"</tool_call>\"";
            let (lead, text) = led_by_text(token, "<tool_call>");
            format!(
                "calls: call{}\ncall: {begin} {rest}\n{lead}called: TEXT | lead {rest}{}\n{text}",
                more("GAP? call"),
                more("GAP? call"),
            )
        }
        CallStyle::Listed => {
            let begin = token.clone().unwrap_or_else(|| lark_text(style.trigger()));
            let (lead, text) = led_by_text(token, "\\[TOOL_CALLS\\]");
            format!(
                "calls: {begin} GAP? list\nlist: \"[\" GAP? object{} GAP? \"]\"\n{lead}\
                 called: TEXT | lead GAP? list\n{text}",
                more("GAP? \",\" GAP? object"),
            )
        }
        CallStyle::Named => {
            let begin = token.clone().unwrap_or_else(|| lark_text(style.trigger()));
            let (lead, text) = led_by_text(token, "\\[TOOL_CALLS\\]");
            let (rest, more) = ("GAP? object", more("GAP? call"));
            format!("calls: call{more}\ncall: {begin} {rest}\n{lead}called: TEXT | lead {rest}{more}\n{text}")
        }
        CallStyle::Bare => {
            let begin = token.map(|token| format!("{token}? ")).unwrap_or_default();
            format!(
                "calls: {begin}object{}\ncalled: TEXT | calls\nTEXT: /[^{{ \\n](.|\\n)*/\n",
                more("GAP? \";\" GAP? object"),
            )
        }
    }
}

/// Writes the rules of text that ends with a trigger, and of text without one. Lazy: the first trigger ends
/// it, and a call must follow.
fn led_by_text(token: Option<String>, trigger: &str) -> (String, &'static str) {
    let text = "TEXT: /(.|\\n)*/\n";
    match token {
        Some(token) => (format!("lead: TEXT? {token}\n"), text),
        None => (format!("lead[lazy]: /(.|\\n)*{trigger}/\n"), text),
    }
}

#[cfg(test)]
mod tests {
    use super::super::CallParser;
    use super::*;
    use crate::engine::grammar::{AnswerGrammar, CompiledGrammar, GrammarCompiler, TokenTable};

    /// The end of an answer, and special tokens before calls and arguments.
    const END: u32 = 256;
    const TRIGGER: u32 = 257;
    const SEPARATOR: u32 = 258;

    /// Returns a format with special tokens or without.
    fn format_of(style: CallStyle, is_special: bool) -> CallFormat {
        let separator = (is_special && style.separator().is_some()).then_some(SEPARATOR);
        CallFormat { style, trigger: is_special.then_some(TRIGGER), separator }
    }

    fn tools(is_strict: bool) -> Vec<ToolDefinition> {
        let schema = |name: &str| {
            json!({ "type": "object", "properties": { name: { "type": "integer" } }, "required": [name],
                "additionalProperties": false })
        };
        [("f", "x"), ("g", "y")]
            .map(|(name, field)| ToolDefinition {
                name: name.to_owned(),
                description: None,
                parameters: schema(field),
                is_strict,
            })
            .to_vec()
    }

    fn compiled(format: CallFormat, choice: &ToolChoice, is_parallel: bool) -> CompiledGrammar {
        let mut bytes: Vec<Vec<u8>> = (0..=u8::MAX).map(|byte| vec![byte]).collect();
        let separator = format.style.separator().unwrap_or("<|other|>");
        bytes.extend([b"<|end|>".to_vec(), format.style.trigger().into(), separator.into()]);
        let table = TokenTable { bytes, special: vec![END, TRIGGER, SEPARATOR], ends: vec![END] };
        let calls = Some(call_rules(format, &tools(*choice == ToolChoice::Auto), choice, is_parallel));
        let compiler = GrammarCompiler::new(&table).expect("all bytes");
        compiler.compile(&AnswerGrammar { answer: None, calls }, None).expect("compiles")
    }

    /// Returns the tokens of a text in which the trigger is one token, if the format has one.
    fn tokens(format: CallFormat, text: &str) -> Vec<u32> {
        let bytes = |text: &str| text.bytes().map(u32::from).collect::<Vec<u32>>();
        let split =
            |text: &str, mark: Option<&str>, token: Option<u32>, inner: &dyn Fn(&str) -> Vec<u32>| match (
                mark, token,
            ) {
                (Some(mark), Some(token)) => {
                    text.split(mark).map(inner).collect::<Vec<_>>().join(&[token][..])
                }
                _ => inner(text),
            };
        let inner = |text: &str| split(text, format.style.separator(), format.separator, &bytes);
        split(text, Some(format.style.trigger()), format.trigger, &inner)
    }

    fn accepts(format: CallFormat, compiled: &CompiledGrammar, text: &str) -> bool {
        let state = compiled.begin();
        tokens(format, text).into_iter().chain([END]).all(|token| {
            let is_allowed = state.allows(token);
            state.push(token);
            is_allowed
        })
    }

    /// Returns the names and arguments that the parser finds, in one line.
    fn parsed(format: CallFormat, text: &str) -> String {
        let mut parser = CallParser::new(format, ["f".to_owned(), "g".to_owned()].into());
        let mut found = Vec::new();
        for token in tokens(format, text) {
            if Some(token) == format.trigger {
                parser.begin_calls();
            } else if let Some(mark) = parser.text_of(token) {
                found.extend(parser.push(mark).calls);
            } else {
                found.extend(parser.push(&char::from(token as u8).to_string()).calls);
            }
        }
        found.extend(parser.finish("").calls);
        found.iter().map(|part| part.name.clone().unwrap_or_default() + &part.arguments).collect()
    }

    #[test]
    fn every_family_is_held_to_calls_that_its_parser_reads() {
        use CallStyle::{Bare, Listed, Named, Tagged};
        let two = [
            (
                Tagged,
                "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"x\": 1}}\n</tool_call>\n\
                 <tool_call>{\"name\":\"g\",\"arguments\":{\"y\":2}}</tool_call>",
            ),
            (
                Listed,
                "[TOOL_CALLS] [{\"name\": \"f\", \"arguments\": {\"x\": 1}}, \
                 {\"name\":\"g\",\"arguments\":{\"y\":2}}]",
            ),
            (Named, "[TOOL_CALLS]f[ARGS]{\"x\": 1}[TOOL_CALLS]g[ARGS]{\"y\":2}"),
            (
                Bare,
                "{\"name\": \"f\", \"parameters\": {\"x\": 1}}; {\"name\":\"g\",\"parameters\":{\"y\":2}}",
            ),
        ];
        for ((style, both), is_special) in two.iter().flat_map(|two| [(two, false), (two, true)]) {
            let format = format_of(*style, is_special);
            let several = compiled(format, &ToolChoice::Required, true);
            assert!(accepts(format, &several, both), "{format:?} {both}");
            assert_eq!(parsed(format, both), "f{\"x\": 1}g{\"y\":2}", "{format:?}");
            let single = compiled(format, &ToolChoice::Required, false);
            assert!(!accepts(format, &single, both), "{format:?}: one call alone");
            for wrong in [
                both.replace("\"x\": 1", "\"x\": \"1\""),
                both.replace("\"x\": 1", "\"z\": 1"),
                both.replace("\"f\"", "\"h\"").replace("]f[", "]h["),
                both.replace("\"f\"", "\"g\"").replace("]f[", "]g["),
                format!("Well: {both}"),
                String::new(),
            ] {
                assert!(!accepts(format, &several, &wrong), "{format:?} {wrong}");
            }
            let named = compiled(format, &ToolChoice::Named("g".to_owned()), true);
            assert!(!accepts(format, &named, both), "{format:?}: f is not g");
        }
    }

    #[test]
    fn where_the_model_chooses_text_is_free_until_a_call_begins() {
        for (style, before, call, after) in [
            (
                CallStyle::Tagged,
                "a < b\n<tool_call>",
                "{\"name\": \"f\", \"arguments\": {\"x\": 1}}",
                "</tool_call>",
            ),
            (CallStyle::Listed, "So [TOOL_CALLS]", "[{\"name\": \"f\", \"arguments\": {\"x\": 1}}", "]"),
            (CallStyle::Named, "So [TOOL_CALLS]", "f[ARGS]{\"x\": 1}", ""),
            (CallStyle::Bare, "", "{\"name\": \"f\", \"parameters\": {\"x\": 1}}", ""),
        ] {
            for is_special in [false, true] {
                let format = format_of(style, is_special);
                let auto = compiled(format, &ToolChoice::Auto, true);
                assert!(accepts(format, &auto, "Just <text> [and] more\n{"), "{format:?}");
                assert!(accepts(format, &auto, &format!("{before}{call}{after}")), "{format:?}");
                let wrong = format!("{before}{}{after}", call.replace('1', "true"));
                assert!(!accepts(format, &auto, &wrong), "{format:?} {wrong}");
                assert!(style == CallStyle::Bare || !accepts(format, &auto, before), "{format:?}");
            }
        }
    }
}
