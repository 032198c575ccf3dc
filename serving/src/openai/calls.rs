//! Calls of functions in answers: OpenAI's two forms, of whole answers and of streams.

use super::response::WholeCall;
use crate::engine::tools::CallDelta;
use protocol::Digest;
use serde::Serialize;
use utoipa::ToSchema;

/// Letters and digits of an identifier: Mistral's chat template refuses any other length.
const ID_CHARACTERS: usize = 9;

/// A call of a function.
#[derive(Serialize, ToSchema)]
pub(super) struct AnsweredCall<'a> {
    /// Identifier that the function's result repeats as `tool_call_id`.
    id: String,
    /// `function`.
    r#type: &'static str,
    function: AnsweredFunction<'a>,
}

/// The function of a call.
#[derive(Serialize, ToSchema)]
pub(super) struct AnsweredFunction<'a> {
    name: &'a str,
    /// Text of a JSON object.
    arguments: &'a str,
}

/// A part of a call.
#[derive(Serialize, ToSchema)]
pub(super) struct CallChunk<'a> {
    /// Number of the call in the choice.
    index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    /// `function`, in the first part.
    #[serde(skip_serializing_if = "Option::is_none")]
    r#type: Option<&'static str>,
    function: FunctionChunk<'a>,
}

/// A part of a call's function.
#[derive(Serialize, ToSchema)]
pub(super) struct FunctionChunk<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    /// More text of a JSON object.
    arguments: &'a str,
}

impl<'a> AnsweredCall<'a> {
    /// Writes a call by the id of its answer, and the numbers of its choice and of itself.
    pub(super) fn new(answer: &str, (choice, index): (usize, usize), call: &'a WholeCall) -> Self {
        let function = AnsweredFunction { name: &call.name, arguments: &call.arguments };
        Self { id: call_id(answer, choice, index), r#type: "function", function }
    }
}

impl<'a> CallChunk<'a> {
    /// Writes a part of a call of this choice.
    pub(super) fn new(answer: &str, choice: usize, call: &'a CallDelta) -> Self {
        let is_first = call.name.is_some();
        Self {
            index: call.index,
            id: is_first.then(|| call_id(answer, choice, call.index)),
            r#type: is_first.then_some("function"),
            function: FunctionChunk { name: call.name.as_deref(), arguments: &call.arguments },
        }
    }
}

/// Returns the identifier of a call. It is a function of the answer's own, so that a stream has the same one
/// where another worker continues it.
fn call_id(answer: &str, choice: usize, index: usize) -> String {
    const ALPHABET: &[u8; 32] = b"0123456789abcdefghijklmnopqrstuv";
    let text = format!("quorate call 1 {answer} {choice} {index}");
    let digest = Digest::of(text.as_bytes()).0;
    digest.iter().take(ID_CHARACTERS).map(|byte| char::from(ALPHABET[usize::from(byte % 32)])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn calls_have_openais_shape() {
        let call = WholeCall { name: "f".into(), arguments: r#"{"x": 1}"#.into() };
        let whole = serde_json::to_value(AnsweredCall::new("chatcmpl-1", (0, 1), &call)).expect("JSON");
        let id = call_id("chatcmpl-1", 0, 1);
        let function = json!({ "name": "f", "arguments": "{\"x\": 1}" });
        assert_eq!(whole, json!({ "id": id, "type": "function", "function": function }));
        let first = CallDelta { index: 1, name: Some("f".into()), arguments: "{".into() };
        let chunk = serde_json::to_value(CallChunk::new("chatcmpl-1", 0, &first)).expect("JSON");
        let function = json!({ "name": "f", "arguments": "{" });
        assert_eq!(chunk, json!({ "index": 1, "id": id, "type": "function", "function": function }));
        let more = CallDelta { index: 1, name: None, arguments: "}".into() };
        let chunk = serde_json::to_value(CallChunk::new("chatcmpl-1", 0, &more)).expect("JSON");
        assert_eq!(chunk, json!({ "index": 1, "function": { "arguments": "}" } }));
    }

    #[test]
    fn each_call_has_an_identifier_of_its_own() {
        let mut ids = std::collections::BTreeSet::new();
        for (choice, index) in (0..20).flat_map(|choice| (0..20).map(move |index| (choice, index))) {
            let id = call_id("chatcmpl-1", choice, index);
            assert!(id.len() == 9 && id.bytes().all(|byte| byte.is_ascii_alphanumeric()), "{id}");
            assert!(ids.insert(id), "{choice} {index}");
        }
        assert_eq!(call_id("a", 1, 2), call_id("a", 1, 2));
        assert_ne!(call_id("a", 1, 2), call_id("b", 1, 2));
    }
}
