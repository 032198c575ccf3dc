//! Requests to rerank, in the form of Jina and Cohere as vLLM serves it.

use super::super::error::ApiError;
use super::super::json::{ObjectFields, invalid, wrong_type};
use super::{INPUTS_MAX, ignore_user, model};
use protocol::error_code as code;
use serde_json::Value;

/// A request for the scores of documents.
#[derive(Debug, Clone, PartialEq)]
pub struct Rerank {
    /// Name of the model, repeated in the answer.
    pub model: String,
    pub query: String,
    /// Documents to score, 1 to 2,048.
    pub documents: Vec<String>,
    /// Maximum results; `None` for all documents.
    pub top_n: Option<usize>,
    /// Whether each result has its document.
    pub with_documents: bool,
}

pub(super) fn parse(mut fields: ObjectFields) -> Result<Rerank, ApiError> {
    let model = model(&mut fields)?;
    let query = match fields.require("query")? {
        Value::String(text) => text,
        other => return Err(wrong_type("query".to_owned(), &other, "a string")),
    };
    let documents = documents(fields.require("documents")?)?;
    // Above the number of documents all are returned, as in Cohere's API.
    let top_n = fields.count("top_n", INPUTS_MAX as u64)?.map(|count| count as usize);
    let with_documents = match fields.take("return_documents") {
        None => true,
        Some(Value::Bool(flag)) => flag,
        Some(other) => return Err(wrong_type("return_documents".to_owned(), &other, "a boolean")),
    };
    for name in ["rank_fields", "max_tokens_per_doc", "max_chunks_per_doc", "truncate_prompt_tokens"] {
        fields.unsupported(name, |_| false)?;
    }
    ignore_user(&mut fields)?;
    fields.finish()?;
    assert!(!documents.is_empty(), "a request has a document");
    Ok(Rerank { model, query, documents, top_n, with_documents })
}

/// Reads the documents: texts, or objects with a text.
fn documents(value: Value) -> Result<Vec<String>, ApiError> {
    let path = "documents";
    let items = match value {
        Value::Array(items) => items,
        other => return Err(wrong_type(path.to_owned(), &other, "an array")),
    };
    if items.is_empty() || items.len() > INPUTS_MAX {
        let problem = format!("has {} items, expected 1 to {INPUTS_MAX}", items.len());
        return Err(invalid(path.to_owned(), problem));
    }
    items.into_iter().enumerate().map(|(index, item)| document(item, format!("{path}[{index}]"))).collect()
}

fn document(item: Value, path: String) -> Result<String, ApiError> {
    let (text, path) = match item {
        Value::String(text) => return Ok(text),
        Value::Object(_) => {
            let mut fields = ObjectFields::of(item, path)?;
            let path = fields.path("text");
            let text = fields.take("text");
            let missing = || {
                let message = format!("missing required parameter `{path}`");
                ApiError::field(code::MISSING_PARAMETER, path.clone(), message)
            };
            let text = text.ok_or_else(missing)?;
            fields.finish()?;
            (text, path)
        }
        other => return Err(wrong_type(path, &other, "a string or an object with `text`")),
    };
    match text {
        Value::String(text) => Ok(text),
        other => Err(wrong_type(path, &other, "a string")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Endpoint, InferenceRequest};
    use super::*;

    fn parsed(fields: &str) -> Result<Rerank, ApiError> {
        let body = format!(r#"{{"model": "m", {fields}}}"#);
        match InferenceRequest::parse(Endpoint::Rerank, body.as_bytes())? {
            InferenceRequest::Rerank(rerank) => Ok(rerank),
            other => unreachable!("a request to rerank, not {other:?}"),
        }
    }

    #[test]
    fn documents_are_texts_or_objects_with_a_text() {
        let expected = Rerank {
            model: "m".into(),
            query: "q".into(),
            documents: vec!["a".into(), "b".into()],
            top_n: None,
            with_documents: true,
        };
        let plain = r#""query": "q", "documents": ["a", {"text": "b"}]"#;
        assert_eq!(parsed(plain).as_ref(), Ok(&expected));
        let options = format!(r#"{plain}, "top_n": 1, "return_documents": false, "user": "u""#);
        let chosen = Rerank { top_n: Some(1), with_documents: false, ..expected };
        assert_eq!(parsed(&options), Ok(chosen));
    }

    #[test]
    fn every_other_form_is_refused_by_its_field() {
        let many = format!(r#""query": "q", "documents": [{}"x"]"#, r#""x","#.repeat(INPUTS_MAX));
        for (fields, expected) in [
            (r#""documents": ["a"]"#, "missing-parameter query"),
            (r#""query": "q""#, "missing-parameter documents"),
            (r#""query": ["q"], "documents": ["a"]"#, "invalid-value query"),
            (r#""query": "q", "documents": "a""#, "invalid-value documents"),
            (r#""query": "q", "documents": []"#, "invalid-value documents"),
            (many.as_str(), "invalid-value documents"),
            (r#""query": "q", "documents": ["a", 1]"#, "invalid-value documents[1]"),
            (r#""query": "q", "documents": [{"title": "a"}]"#, "missing-parameter documents[0].text"),
            (r#""query": "q", "documents": [{"text": 1}]"#, "invalid-value documents[0].text"),
            (
                r#""query": "q", "documents": [{"text": "a", "title": "b"}]"#,
                "unknown-parameter documents[0].title",
            ),
            (r#""query": "q", "documents": ["a"], "top_n": 0"#, "invalid-value top_n"),
            (r#""query": "q", "documents": ["a"], "return_documents": 1"#, "invalid-value return_documents"),
            (
                r#""query": "q", "documents": ["a"], "rank_fields": ["title"]"#,
                "unsupported-parameter rank_fields",
            ),
            (r#""query": "q", "documents": ["a"], "texts": ["a"]"#, "unknown-parameter texts"),
        ] {
            let error = parsed(fields).expect_err(expected);
            let found = format!("{} {}", error.code.as_str(), error.param.unwrap_or_default());
            assert_eq!((error.status.as_u16(), found.as_str()), (400, expected));
        }
    }
}
