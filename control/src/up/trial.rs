//! One request to the model of the user. Its contents are unknown: the check is only that it answers.

use super::StartupLog;
use anyhow::{Context as _, Result, bail};
use protocol::api::ServiceView;
use protocol::manifest::{Manifest, Task};
use reqwest::StatusCode;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// Text of the request.
const PROMPT: &str = "Once upon a time";
/// Timeout of the request.
const ANSWER_LIMIT: Duration = Duration::from_secs(120);

/// Timeout for the gateway to know a key that was just granted.
const KEY_LIMIT: Duration = Duration::from_secs(60);
/// Interval between two questions whether it does.
const KEY_POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Waits until the gateway knows an inference key: its agent fetches the grant, verifies it, and hands it on.
///
/// # Errors
/// Returns an error if the gateway does not answer, or refuses the key to the end of the timeout.
pub(super) async fn until_known(gateway: &str, key: &str) -> Result<()> {
    let http = reqwest::Client::builder().no_proxy().timeout(ANSWER_LIMIT).build()?;
    let (url, deadline) = (format!("{gateway}/v1/models"), Instant::now() + KEY_LIMIT);
    loop {
        let response = http.get(&url).bearer_auth(key).send().await.context("reach the gateway")?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("the gateway does not know the key `demo` after {} s", KEY_LIMIT.as_secs());
        }
        tokio::time::sleep(KEY_POLL_INTERVAL).await;
    }
}

/// Sends one request to a service through the gateway, with an inference key, and prints the answer.
///
/// # Errors
/// Returns an error if the service does not answer.
pub(super) async fn ask(log: &StartupLog, gateway: &str, key: &str, service: &ServiceView) -> Result<()> {
    let Manifest::Service(manifest) = &service.manifest else { bail!("{} is no service", service.name) };
    let (model, began) = (manifest.model.name.as_str(), Instant::now());
    let answer = match manifest.task {
        Task::Embed => {
            let body = json!({ "model": model, "input": [PROMPT] });
            let answer = post(&format!("{gateway}/v1/embeddings"), key, &body).await?;
            let numbers = answer["data"][0]["embedding"].as_array().context("`embedding` is numbers")?;
            format!("an embedding of {} numbers", numbers.len())
        }
        Task::Generate => {
            let body = json!({ "model": model, "prompt": PROMPT, "max_tokens": 16, "temperature": 0.0 });
            let answer = post(&format!("{gateway}/v1/completions"), key, &body).await?;
            let text = answer["choices"][0]["text"].as_str().context("`text` is a text")?;
            format!("\"{PROMPT}\" -> \"{}\"", text.trim())
        }
        Task::Rerank => {
            let body = json!({ "model": model, "query": PROMPT, "documents": [PROMPT] });
            let answer = post(&format!("{gateway}/v1/rerank"), key, &body).await?;
            let score = answer["results"][0]["relevance_score"].as_f64();
            format!("a score of {:.3}", score.context("`relevance_score` is a number")?)
        }
    };
    log.line(format!("{model}: {answer} in {:.0} ms", began.elapsed().as_secs_f64() * 1000.0));
    Ok(())
}

async fn post(url: &str, key: &str, body: &Value) -> Result<Value> {
    let http = reqwest::Client::builder().no_proxy().timeout(ANSWER_LIMIT).build()?;
    let response = http.post(url).bearer_auth(key).json(body).send().await.context("reach the gateway")?;
    if !response.status().is_success() {
        let status = response.status();
        bail!("{url} answered {status}: {}", response.text().await.unwrap_or_default());
    }
    Ok(response.json().await?)
}
