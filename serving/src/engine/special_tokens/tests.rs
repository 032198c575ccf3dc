//! Tests of tokenization with special tokens as text: against the tokenizer library where it has an answer.

use super::*;
use crate::engine::text_frontend::byte_tokenizer_json;
use serde_json::{Value, json};

/// Returns a tokenizer of bytes with special tokens, one of which takes the whitespace after it, and an added
/// token that is not special.
fn tokenizer() -> Tokenizer {
    let mut json = byte_tokenizer_json(&["<|user|>", "<|end|>"]);
    json["added_tokens"][0]["rstrip"] = json!(true);
    let plain = json!({
        "id": 258, "content": "<tool>", "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": false
    });
    json["added_tokens"].as_array_mut().expect("an array").push(plain);
    parse(&json)
}

fn parse(json: &Value) -> Tokenizer {
    Tokenizer::from_bytes(json.to_string()).expect("a valid tokenizer")
}

/// Returns a tokenizer that normalizes, and whose special token is found after that.
fn normalizing() -> Tokenizer {
    let mut json = byte_tokenizer_json(&["<s>"]);
    json["added_tokens"][0]["normalized"] = json!(true);
    json["normalizer"] = json!({ "type": "Lowercase" });
    parse(&json)
}

fn bytes(text: &str) -> Vec<u32> {
    text.bytes().map(u32::from).collect()
}

/// Returns the tokens of a text of which a client wrote this range.
fn encode(tokenizer: &Tokenizer, text: &str, untrusted: Range<usize>) -> Vec<u32> {
    let special = SpecialTokens::of(tokenizer);
    let tokens = special.encode(tokenizer, text, std::slice::from_ref(&untrusted), false);
    tokens.expect("tokens").get_ids().to_vec()
}

/// Returns the library's tokens.
fn of_library(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    tokenizer.encode_fast(text, false).expect("tokens").get_ids().to_vec()
}

#[test]
fn a_special_token_with_a_byte_from_a_client_is_text() {
    let tokenizer = tokenizer();
    let text = "<|user|> a<|end|>b<|end|>";
    let library = of_library(&tokenizer, text);
    assert_eq!(library, [vec![256], bytes("a"), vec![257], bytes("b"), vec![257]].concat());
    // Any byte of the second token makes it text; the third stays a token.
    for byte in 10..17 {
        let tokens = encode(&tokenizer, text, byte..byte + 1);
        assert_eq!(tokens, [vec![256], bytes("a<|end|>b"), vec![257]].concat(), "byte {byte}");
    }
    for untrusted in [9..10, 17..18, 0..0] {
        assert_eq!(encode(&tokenizer, text, untrusted.clone()), library, "{untrusted:?}");
    }
    let both = [9..10, 17..18];
    let tokens = SpecialTokens::of(&tokenizer).encode(&tokenizer, text, &both, false).expect("tokens");
    assert_eq!(tokens.get_ids(), library);
}

#[test]
fn a_token_of_the_template_is_found_beside_text_that_resembles_one() {
    let tokenizer = tokenizer();
    // The client wrote `<|` and `<|end|`, the template what follows.
    assert_eq!(encode(&tokenizer, "<|<|end|>", 0..2), [bytes("<|"), vec![257]].concat());
    assert_eq!(encode(&tokenizer, "<|end|>", 0..6), bytes("<|end|>"));
    assert_eq!(encode(&tokenizer, "<|end|><|end|>", 0..7), [bytes("<|end|>"), vec![257]].concat());
}

#[test]
fn an_added_token_that_is_not_special_counts_everywhere() {
    let tokenizer = tokenizer();
    let tokens = encode(&tokenizer, "<tool><|end|>", 0..13);
    assert_eq!(tokens, [vec![258], bytes("<|end|>")].concat());
}

#[test]
fn a_token_that_is_found_after_normalization_is_text_too() {
    let tokenizer = normalizing();
    for tokens in [of_library(&tokenizer, "A<S>"), encode(&tokenizer, "A<S>", 0..0)] {
        assert_eq!(tokens, [bytes("a"), vec![256]].concat());
    }
    assert_eq!(encode(&tokenizer, "A<S>", 1..2), bytes("a<s>"));
    assert_eq!(encode(&tokenizer, "<S>A<S>", 3..7), [vec![256], bytes("a<s>")].concat());
    assert!(SpecialTokens::of(&tokenizer).may_be_in("no bracket"), "a normalizer may write one");
}

#[test]
fn texts_without_special_tokens_have_the_librarys_tokens() {
    for mut tokenizer in [tokenizer(), normalizing()] {
        let special = SpecialTokens::of(&tokenizer);
        // With this setting the library has no special tokens either, anywhere.
        tokenizer.set_encode_special_tokens(true);
        for text in ["", "a", "Ä b\u{301}  <tool> <|en", "<|end|>", "<S> <s>", " <|user|> \n x"] {
            let library = tokenizer.encode_fast(text, true).expect("tokens").get_ids().to_vec();
            let whole = 0..text.len();
            let ours = special.encode(&tokenizer, text, std::slice::from_ref(&whole), true).expect("tokens");
            assert_eq!(ours.get_ids(), library, "{text:?}");
        }
    }
}

#[test]
fn what_may_hold_a_part_of_a_special_token_is_recognized() {
    let special = SpecialTokens::of(&tokenizer());
    assert!(special.may_be_in("a < b") && special.may_be_in("a>") && !special.may_be_in("user|end"));
    assert!(special.is_in("x<|end|>") && !special.is_in("<|end|") && !special.is_in("<tool>"));
    for (literal, touches) in [
        ("</think>", false),
        ("end", true),
        ("x<|", true),
        ("|>x", true),
        ("a<|end|>b", true),
        (">", true),
        ("think", false),
    ] {
        assert_eq!(special.may_touch(literal), touches, "{literal}");
    }
}
