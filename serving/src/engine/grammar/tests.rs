//! Tests of grammars over byte tokens and over tokens of several bytes: what they allow, refuse and forbid.

use super::*;
use serde_json::json;

/// The end of an answer.
const END: u32 = 256;

/// Returns a compiler over 256 byte tokens, an end token, and these tokens of several bytes.
fn compiler(more: &[&str]) -> GrammarCompiler {
    let mut bytes: Vec<Vec<u8>> = (0..=u8::MAX).map(|byte| vec![byte]).collect();
    bytes.push(b"<|end|>".to_vec());
    bytes.extend(more.iter().map(|text| text.as_bytes().to_vec()));
    GrammarCompiler::new(&TokenTable { bytes, special: vec![END], ends: vec![END] }).expect("all bytes")
}

fn strict(schema: Value) -> GrammarSource {
    GrammarSource::Schema { schema, is_strict: true }
}

fn answer(source: GrammarSource) -> AnswerGrammar {
    AnswerGrammar { answer: Some(source), calls: None }
}

/// Writes a text byte by byte; returns the bytes that were allowed, and whether the answer may end there.
fn written(compiled: &CompiledGrammar, text: &str) -> (usize, bool) {
    let state = compiled.begin();
    for (count, byte) in text.bytes().enumerate() {
        if !state.allows(u32::from(byte)) {
            return (count, state.allows(END));
        }
        state.push(u32::from(byte));
    }
    (text.len(), state.allows(END))
}

fn accepts(compiled: &CompiledGrammar, text: &str) -> bool {
    written(compiled, text) == (text.len(), true)
}

fn refused(source: GrammarSource) -> String {
    let error = compiler(&[]).compile(&answer(source), None).expect_err("refused");
    format!("{} {error}", error.code())
}

/// Schemas with instances that they have, and with such that they have not.
fn schemas() -> Vec<(Value, Vec<Value>, Vec<Value>)> {
    let person = json!({
        "type": "object",
        "properties": {
            "name": { "type": "string", "minLength": 1 }, "age": { "type": "integer", "minimum": 0 },
        },
        "required": ["name"], "additionalProperties": false,
    });
    let tree = json!({
        "$defs": { "node": { "type": "object", "properties": {
            "value": { "type": "number" },
            "children": { "type": "array", "items": { "$ref": "#/$defs/node" } },
        }, "required": ["value"], "additionalProperties": false } },
        "$ref": "#/$defs/node",
    });
    let port =
        json!({ "anyOf": [{ "type": "integer", "minimum": 1, "maximum": 65535 }, { "enum": ["http"] }] });
    let tuple = json!({ "type": "array", "prefixItems": [{ "const": "x" }, { "type": "boolean" }],
        "items": false, "minItems": 2 });
    let map = json!({ "type": "object", "patternProperties": { "^[a-z]+$": { "type": "null" } },
        "additionalProperties": false, "minProperties": 1 });
    let when = json!({ "type": "string", "format": "date" });
    let short = json!({ "type": "string", "maxLength": 3, "pattern": "^[a-c]*$" });
    vec![
        (
            person,
            vec![json!({ "name": "Ada", "age": 36 }), json!({ "name": "\u{e9}\u{1f600}\"\\" })],
            vec![json!({ "age": 3 }), json!({ "name": "" }), json!({ "name": "A", "age": -1 }), json!([])],
        ),
        (
            tree,
            vec![json!({ "value": 1.5, "children": [{ "value": 2 }, { "value": 3, "children": [] }] })],
            vec![json!({ "value": 1, "children": [{}] }), json!({ "value": "1" })],
        ),
        (port, vec![json!(8080), json!("http")], vec![json!(0), json!(65536), json!("https"), json!(1.5)]),
        (tuple, vec![json!(["x", true])], vec![json!(["x"]), json!(["y", true]), json!(["x", true, 1])]),
        (
            map,
            vec![json!({ "a": null, "bc": null })],
            vec![json!({}), json!({ "A": null }), json!({ "a": 1 })],
        ),
        (when, vec![json!("2026-11-25")], vec![json!("2026-13-25"), json!("today")]),
        (short, vec![json!(""), json!("abc")], vec![json!("abca"), json!("d")]),
        (json!(true), vec![json!({ "a": [1, null, "x"] }), json!("x")], vec![]),
    ]
}

#[test]
fn a_schema_allows_its_instances_and_completes_no_other() {
    let compiler = compiler(&[]);
    for (schema, valid, invalid) in schemas() {
        let compiled = compiler.compile(&answer(strict(schema.clone())), None).expect("compiles");
        for instance in &valid {
            let pretty = serde_json::to_string_pretty(instance).expect("JSON");
            for text in [instance.to_string(), pretty] {
                assert!(accepts(&compiled, &text), "{schema} has {text}: {:?}", written(&compiled, &text));
            }
        }
        for instance in &invalid {
            let text = instance.to_string();
            assert!(!accepts(&compiled, &text), "{schema} has not {text}");
        }
    }
}

#[test]
fn every_kind_of_grammar_is_followed() {
    let compiler = compiler(&["yes", "no", "ab", "{\"", "\":"]);
    let lark = "start: \"a\" b+\nb: \"b\" | \"(\" start \")\"\n";
    for (source, valid, invalid) in [
        (GrammarSource::JsonObject, vec!["{}", "{\"a\": {\"b\": [1]}}"], vec!["[]", "1", " {}", "{} "]),
        (GrammarSource::Regex("[a-c]{2}/\\d+".into()), vec!["ab/7", "ca/01"], vec!["a/1", "ab/", "ab/7x"]),
        (GrammarSource::Lark(lark.into()), vec!["ab", "abb(ab)"], vec!["a", "b", "ab(", "aba"]),
        (
            GrammarSource::Choice(vec!["yes".into(), "no".into(), "a\"\\\n/\u{7f}\u{e9}".into()]),
            vec!["yes", "no", "a\"\\\n/\u{7f}\u{e9}"],
            vec!["y", "yesno", "maybe", ""],
        ),
    ] {
        let compiled = compiler.compile(&answer(source.clone()), None).expect("compiles");
        for text in valid {
            assert!(accepts(&compiled, text), "{source:?} {text}: {:?}", written(&compiled, text));
        }
        for text in invalid {
            assert!(!accepts(&compiled, text), "{source:?} {text}");
        }
    }
}

#[test]
fn tokens_of_several_bytes_and_no_others_follow() {
    let compiler = compiler(&["yes", "no", "ye", "yes!"]);
    let source = GrammarSource::Choice(vec!["yes".into(), "no".into()]);
    let state = compiler.compile(&answer(source), None).expect("compiles").begin();
    let allowed = |state: &GrammarState| (0..261).filter(|token| state.allows(*token)).collect::<Vec<u32>>();
    assert_eq!(allowed(&state), [u32::from(b'n'), u32::from(b'y'), 257, 258, 259]);
    let mut row = vec![1.0; 261];
    state.apply(&mut row);
    let kept: Vec<usize> = (0..261).filter(|token| row[*token] == 1.0).collect();
    assert_eq!(kept, [110, 121, 257, 258, 259]);
    state.push(259);
    assert_eq!(allowed(&state), [u32::from(b's')]);
    state.push(u32::from(b's'));
    assert_eq!(allowed(&state), [END], "a complete answer must end");
    state.push(END);
    assert_eq!(state.failure(), None);
}

#[test]
fn choices_do_not_share_their_progress() {
    let compiled =
        compiler(&[]).compile(&answer(GrammarSource::Regex("ab|cd".into())), None).expect("compiles");
    let (first, second) = (compiled.begin(), compiled.begin());
    first.push(u32::from(b'a'));
    assert!(first.allows(u32::from(b'b')) && !first.allows(u32::from(b'd')));
    assert!(second.allows(u32::from(b'c')));
    second.push(u32::from(b'c'));
    assert!(second.allows(u32::from(b'd')) && first.allows(u32::from(b'b')));
}

/// Attack: a token that may not follow is appended, as by a worker that reports false tokens.
#[test]
fn a_token_that_may_not_follow_fails_the_grammar() {
    let state =
        compiler(&[]).compile(&answer(GrammarSource::Regex("ab".into())), None).expect("compiles").begin();
    state.push(u32::from(b'x'));
    assert!(state.failure().is_some());
    let mut row = [1.0; 257];
    state.apply(&mut row);
    assert!(row.iter().all(|logit| *logit == f32::NEG_INFINITY), "nothing follows");
    assert!(!state.allows(u32::from(b'a')) && !state.allows(END) && !state.allows(u32::MAX));
}

#[test]
fn what_cannot_be_enforced_is_refused_by_name() {
    let schema = |schema: Value| refused(strict(schema));
    for (found, expected) in [
        (schema(json!({ "not": { "const": 1 } })), "grammar-unsupported `not` at the root"),
        (schema(json!({ "not": {} })), "grammar-unsupported"),
        (
            schema(json!({ "type": "string", "format": "colour" })),
            "grammar-unsupported Unknown format: colour",
        ),
        (schema(json!({ "type": "integer", "minimum": 5, "maximum": 4 })), "grammar-unsupported"),
        (schema(json!({ "type": "quantity" })), "grammar-unsupported Invalid type: quantity"),
        (schema(json!({ "$ref": "https://example.org/schema" })), "grammar-unsupported"),
        (schema(json!({ "$ref": "#/$defs/absent" })), "grammar-unsupported"),
        (refused(GrammarSource::Regex("(?=a)b".into())), "grammar-unsupported"),
        (refused(GrammarSource::Regex("a\\".into())), "grammar-unsupported the regular expression ends in"),
        (
            refused(GrammarSource::Regex("a\nb".into())),
            "grammar-unsupported the regular expression has a line",
        ),
        (refused(GrammarSource::Lark("start: missing".into())), "grammar-unsupported"),
        (refused(GrammarSource::Lark("begin: \"a\"".into())), "grammar-unsupported"),
    ] {
        assert!(found.starts_with(expected), "{found}, not {expected}");
        assert!(found.len() < 600, "{found}");
    }
}

#[test]
fn what_is_too_large_is_refused_by_work_and_not_by_time() {
    let names = |count: usize| -> serde_json::Map<String, Value> {
        (0..count).map(|index| (format!("p{index}"), json!({ "type": "array" }))).collect()
    };
    let object = |count: usize| strict(json!({ "type": "object", "properties": names(count) }));
    assert!(refused(object(20_000)).starts_with("grammar-too-large"));
    assert!(compiler(&[]).compile(&answer(object(100)), None).is_ok(), "the control");
}

#[test]
fn reasoning_precedes_the_grammar_and_is_free() {
    let compiler = compiler(&[]);
    let schema = answer(strict(json!({ "type": "boolean" })));
    let check = |start: ReasoningStart, text: &str, expected: bool| {
        let compiled = compiler.compile(&schema, Some(start)).expect("compiles");
        assert_eq!(accepts(&compiled, text), expected, "{start:?} {text:?}: {:?}", written(&compiled, text));
    };
    check(ReasoningStart::After, "true", true);
    check(ReasoningStart::After, "<think>x</think>true", false);
    check(ReasoningStart::Within, "is it? </i>\n</think>\n\nfalse", true);
    check(ReasoningStart::Within, "true", false);
    check(ReasoningStart::Before, "true", true);
    check(ReasoningStart::Before, "\n<think>a </think>\n\ntrue", true);
    check(ReasoningStart::Before, "<think>a</think>b", false);
    check(ReasoningStart::Before, "<think>a", false);
}

#[test]
fn a_vocabulary_that_lacks_a_byte_or_an_end_holds_no_answer_to_a_grammar() {
    let bytes = |all: std::ops::RangeInclusive<u8>| all.map(|byte| vec![byte]).collect::<Vec<_>>();
    let build =
        |table: TokenTable| GrammarCompiler::new(&table).map(|_| ()).map_err(|error| error.to_string());
    let error = build(TokenTable { bytes: bytes(0..=0x7f), special: vec![], ends: vec![5] });
    assert_eq!(error, Err("the model has no token for the byte 0x80 alone".to_owned()));
    for ends in [vec![], vec![999]] {
        let error = build(TokenTable { bytes: bytes(0..=0xff), special: vec![], ends });
        assert!(error.is_err_and(|error| error.contains("no end token")));
    }
    // The control. UTF-8 has no byte 0xff, and the end token writes nothing.
    assert_eq!(build(TokenTable { bytes: bytes(0..=0xf4), special: vec![], ends: vec![0xc0] }), Ok(()));
}

/// Schemas of which a grammar says a part, with instances and others that the grammar alone would allow.
fn checked_schemas() -> Vec<(Value, Vec<Value>, Vec<Value>)> {
    vec![
        (
            json!({ "type": "object", "not": { "required": ["image"] }, "required": ["build"] }),
            vec![json!({ "build": "." })],
            vec![json!({ "build": ".", "image": 1 }), json!({ "image": 1 })],
        ),
        (
            json!({ "type": "integer", "not": { "multipleOf": 7 } }),
            vec![json!(13), json!(141)],
            vec![json!(14)],
        ),
        (json!({ "type": "string", "not": { "pattern": "^a" } }), vec![json!("ba")], vec![json!("ab")]),
        (
            json!({ "type": "array", "items": { "enum": ["x", "y"] }, "uniqueItems": true }),
            vec![json!([]), json!(["y", "x"])],
            vec![json!(["x", "x"])],
        ),
        (
            json!({ "type": "object", "if": { "required": ["a"] }, "then": { "required": ["b"] } }),
            vec![json!({ "a": {}, "b": { "c": [1] } }), json!({})],
            vec![json!({ "a": {} })],
        ),
        (
            json!({ "oneOf": [{ "type": "integer" }, { "type": "number", "minimum": 2 }] }),
            vec![json!(1), json!(2.5)],
            vec![json!(3)],
        ),
        (json!({ "type": "string", "format": "colour" }), vec![json!("red")], vec![json!(1)]),
    ]
}

#[test]
fn what_no_grammar_says_is_checked_before_the_end_unless_the_request_is_strict() {
    let compiler = compiler(&["}}", " }", "\"}", "]}"]);
    for (schema, valid, invalid) in checked_schemas() {
        let source = GrammarSource::Schema { schema: schema.clone(), is_strict: false };
        let compiled = compiler.compile(&answer(source), None).expect("compiles");
        for instance in &valid {
            assert!(accepts(&compiled, &instance.to_string()), "{schema} has {instance}");
        }
        for instance in &invalid {
            assert!(!accepts(&compiled, &instance.to_string()), "{schema} has not {instance}");
        }
        assert!(refused(strict(schema)).starts_with("grammar-unsupported"));
    }
}

#[test]
fn an_answer_may_go_on_until_it_is_an_instance() {
    let compiler = compiler(&["}}", " }"]);
    let schema = json!({ "type": "object", "if": { "required": ["a"] }, "then": { "required": ["b"] } });
    let source = answer(GrammarSource::Schema { schema, is_strict: false });
    for (start, before) in [
        (None, ""),
        (Some(ReasoningStart::Within), "hm }</think>\n"),
        (Some(ReasoningStart::Before), "<think>{}</think>"),
        (Some(ReasoningStart::Before), ""),
    ] {
        let state = compiler.compile(&source, start).expect("compiles").begin();
        let push = |text: &str| text.bytes().for_each(|byte| state.push(u32::from(byte)));
        push(before);
        push("{\"a\": {\"x\": 1");
        assert!(state.allows(u32::from(b'}')) && !state.allows(257), "{start:?}: `b` is missing");
        push("}");
        assert!(!state.allows(u32::from(b'}')) && !state.allows(258) && state.allows(u32::from(b',')));
        push(", \"b\": 2");
        assert!(state.allows(u32::from(b'}')) && state.allows(258), "{start:?}");
        push("}");
        assert!(state.allows(END) && state.failure().is_none(), "{start:?}");
    }
}

#[test]
fn an_answer_that_cannot_become_an_instance_fails() {
    let schema = json!({ "type": "object", "properties": { "a": { "enum": [1] } }, "required": ["a"],
        "additionalProperties": false, "not": { "required": ["a"] } });
    let source = answer(GrammarSource::Schema { schema, is_strict: false });
    let state = compiler(&[]).compile(&source, None).expect("compiles").begin();
    "{\"a\":1".bytes().for_each(|byte| state.push(u32::from(byte)));
    // Whitespace may follow for a while, and then nothing.
    for _ in 0..64 {
        assert!(!state.allows(u32::from(b'}')) && state.failure().is_none());
        state.push(u32::from(b' '));
    }
    assert!(!state.allows(u32::from(b'}')));
    assert!(state.failure().is_some_and(|reason| reason.contains("cannot become an instance")));
}
