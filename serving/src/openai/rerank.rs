//! The answer to a request to rerank, in the form of Jina and Cohere as vLLM serves it.

use super::response::{Usage, json};
use bytes::Bytes;
use serde::Serialize;
use utoipa::ToSchema;

/// The documents, highest score first.
#[derive(Serialize, ToSchema)]
pub(super) struct RerankAnswer<'a> {
    id: &'a str,
    model: &'a str,
    usage: Usage,
    results: Vec<RerankResult<'a>>,
}

/// The score of one document.
#[derive(Serialize, ToSchema)]
pub(super) struct RerankResult<'a> {
    index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    document: Option<RerankDocument<'a>>,
    relevance_score: f32,
}

/// A document of the request.
#[derive(Serialize, ToSchema)]
pub(super) struct RerankDocument<'a> {
    text: &'a str,
}

/// Builds the answer: the `top_n` documents of the highest scores, highest first; of equal scores the earlier
/// document precedes. `documents` are repeated where they are given.
#[must_use]
pub fn rerank(
    (id, model): (&str, &str),
    scores: &[f32],
    documents: Option<&[String]>,
    top_n: Option<usize>,
    usage: Usage,
) -> Bytes {
    assert!(documents.is_none_or(|documents| documents.len() == scores.len()), "a score for each document");
    let mut order: Vec<usize> = (0..scores.len()).collect();
    // The sort is stable.
    order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
    order.truncate(top_n.unwrap_or(usize::MAX));
    let result = |index: usize| RerankResult {
        index,
        document: documents.map(|documents| RerankDocument { text: &documents[index] }),
        relevance_score: scores[index],
    };
    json(&RerankAnswer { id, model, usage, results: order.into_iter().map(result).collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_ranked_and_cut() {
        let documents = ["a", "b", "c", "d"].map(String::from);
        let usage = Usage::embedded(9);
        let answer = |documents, top_n| {
            let bytes = rerank(("rerank-1", "m"), &[0.25, 0.5, 0.25, 1.0], documents, top_n, usage);
            String::from_utf8(bytes.to_vec()).expect("UTF-8")
        };
        let head = concat!(
            r#"{"id":"rerank-1","model":"m","usage":{"prompt_tokens":9,"total_tokens":9},"#,
            r#""results":["#,
        );
        assert_eq!(
            answer(Some(&documents[..]), Some(2)),
            format!(
                "{head}{}",
                concat!(
                    r#"{"index":3,"document":{"text":"d"},"relevance_score":1.0},"#,
                    r#"{"index":1,"document":{"text":"b"},"relevance_score":0.5}]}"#,
                )
            )
        );
        let all = answer(None, None);
        let indices: Vec<usize> = all.match_indices("\"index\":").map(|(at, _)| at).collect();
        assert_eq!(indices.len(), 4);
        let order = [3, 1, 0, 2].map(|index| all.find(&format!("\"index\":{index},")).expect("a result"));
        assert!(order.is_sorted(), "of equal scores the earlier document precedes: {all}");
        assert!(!all.contains("document"), "{all}");
        assert_eq!(answer(None, Some(99)), all);
    }
}
