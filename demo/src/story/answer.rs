//! Step: a search through the project's own documentation, and a streamed chat completion.

use super::Demonstration;
use crate::openai::OpenAi;
use anyhow::{Context as _, Result, bail};
use std::path::Path;
use std::time::Instant;

/// Query for the search through the documentation.
const QUERY: &str = "What can a hostile control plane do, and what not?";
/// Question to the language model; a correct answer contains `ANSWER`.
const QUESTION: &str = "What is three plus four?";
const ANSWER: &str = "seven";
/// Number of passages embedded in one request.
const BATCH: usize = 16;
/// Maximum number of passages to search.
const PASSAGES_MAX: usize = 64;

pub(super) async fn first_answers(
    demonstration: &Demonstration,
    api: &OpenAi,
    documents: Option<&Path>,
) -> Result<()> {
    let began = Instant::now();
    let query = api.embed("minilm", &[QUERY]).await?.pop().context("one vector")?;
    demonstration.say(format!(
        "first answer: an embedding of {} numbers in {:.0} ms",
        query.len(),
        began.elapsed().as_secs_f64() * 1000.0
    ));
    if let Some(documents) = documents {
        search(demonstration, api, &query, &passages(documents)?).await?;
    }
    let streamed = api.chat("tiny", QUESTION).await?;
    demonstration.say(format!(
        "chat: \"{QUESTION}\" -> \"{}\" ({} pieces streamed, the first after {:.0} ms)",
        streamed.text.trim(),
        streamed.pieces,
        streamed.first_token.as_secs_f64() * 1000.0
    ));
    if !streamed.text.to_lowercase().contains(ANSWER) {
        bail!("the model was expected to answer `{ANSWER}`");
    }
    Ok(())
}

/// Returns paragraphs of the project's documents.
fn passages(root: &Path) -> Result<Vec<String>> {
    let mut passages = Vec::new();
    for name in
        ["README.md", "ARCHITECTURE.md", "docs/errors/lease-lapsed.md", "docs/errors/order-replayed.md"]
    {
        let Ok(text) = std::fs::read_to_string(root.join(name)) else { continue };
        let mut in_code = false;
        for paragraph in text.split("\n\n") {
            let fences = paragraph.matches("```").count();
            let code = in_code || fences > 0;
            in_code ^= fences % 2 == 1;
            let plain = paragraph.trim().replace('\n', " ");
            if !code && plain.len() > 80 && !plain.starts_with(['|', '#', '<', '>', '-']) {
                passages.push(plain.chars().take(400).collect());
            }
        }
    }
    passages.truncate(PASSAGES_MAX);
    if passages.len() < 3 {
        bail!("`{}` holds no documents to search", root.display());
    }
    Ok(passages)
}

async fn search(
    demonstration: &Demonstration,
    api: &OpenAi,
    query: &[f32],
    passages: &[String],
) -> Result<()> {
    let began = Instant::now();
    let mut scored = Vec::new();
    for batch in passages.chunks(BATCH) {
        let texts: Vec<&str> = batch.iter().map(String::as_str).collect();
        let vectors = api.embed("minilm", &texts).await?;
        scored.extend(vectors.iter().map(|vector| cosine(query, vector)).zip(batch));
    }
    scored.sort_by(|a, b| b.0.total_cmp(&a.0));
    demonstration.say(format!(
        "searched {} passages of the documentation in {:.2} s: \"{QUERY}\"",
        passages.len(),
        began.elapsed().as_secs_f64()
    ));
    for (score, passage) in scored.iter().take(3) {
        let short: String = passage.chars().take(110).collect();
        println!("            {score:.3}  {short}…");
    }
    let score = |found: Option<&(f32, &String)>| found.map_or(f32::NAN, |(score, _)| *score);
    let (best, worst) = (score(scored.first()), score(scored.last()));
    if !(best > worst && best > 0.2) {
        bail!("the search tells nothing apart: best {best:.3}, worst {worst:.3}");
    }
    Ok(())
}

fn cosine(a: &[f32], b: &[f32]) -> f32 {
    let dot: f32 = a.iter().zip(b).map(|(x, y)| x * y).sum();
    let norm = |v: &[f32]| v.iter().map(|x| x * x).sum::<f32>().sqrt();
    dot / (norm(a) * norm(b)).max(f32::EPSILON)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cosine_of_equal_opposite_and_orthogonal_vectors() {
        for (b, expected) in [([1.0, 0.0], 1.0), ([-2.0, 0.0], -1.0), ([0.0, 3.0], 0.0)] {
            assert!((cosine(&[1.0, 0.0], &b) - expected).abs() < 1e-6);
        }
    }
}
