//! A minimal client of the OpenAI API for the demonstration; its requests are those of any other client.

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// A client of one gateway.
#[derive(Debug, Clone)]
pub(crate) struct OpenAi {
    http: reqwest::Client,
    base: String,
    key: String,
}

/// A streamed response.
pub(crate) struct StreamedCompletion {
    pub(crate) text: String,
    /// Time until the first chunk.
    pub(crate) first_token: Duration,
    /// Number of chunks received.
    pub(crate) pieces: usize,
}

impl OpenAi {
    pub(crate) fn new(base: &str, key: &str) -> Result<Self> {
        let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(120)).build()?;
        Ok(Self { http, base: base.to_string(), key: key.to_string() })
    }

    async fn post(&self, path: &str, body: &Value) -> Result<reqwest::Response> {
        let request = self.http.post(format!("{}{path}", self.base)).bearer_auth(&self.key).json(body);
        let response = request.send().await.context("reach the gateway")?;
        if !response.status().is_success() {
            let status = response.status();
            bail!("{path} answered {status}: {}", response.text().await.unwrap_or_default());
        }
        Ok(response)
    }

    /// Returns the embeddings of these texts.
    pub(crate) async fn embed(&self, model: &str, input: &[&str]) -> Result<Vec<Vec<f32>>> {
        let answer: Value =
            self.post("/v1/embeddings", &json!({ "model": model, "input": input })).await?.json().await?;
        let data = answer["data"].as_array().context("`data` is an array")?;
        data.iter()
            .map(|item| serde_json::from_value(item["embedding"].clone()).context("`embedding` is numbers"))
            .collect()
    }

    /// Requests a streamed chat completion.
    pub(crate) async fn chat(&self, model: &str, question: &str) -> Result<StreamedCompletion> {
        self.stream_chat(model, question, json!({ "max_tokens": 64 })).await
    }

    /// Requests a streamed chat completion of exactly this many tokens, sampled, and beyond the end that the
    /// model writes: what a model says that has hardly learned.
    pub(crate) async fn chat_of(
        &self,
        model: &str,
        question: &str,
        tokens: u32,
    ) -> Result<StreamedCompletion> {
        let limits = json!({ "max_tokens": tokens, "ignore_eos": true, "temperature": 1.0, "seed": 7 });
        self.stream_chat(model, question, limits).await
    }

    async fn stream_chat(&self, model: &str, question: &str, limits: Value) -> Result<StreamedCompletion> {
        let began = Instant::now();
        let mut body = json!({
            "model": model, "stream": true, "temperature": 0.0,
            "messages": [{ "role": "user", "content": question }],
        });
        for (name, value) in limits.as_object().into_iter().flatten() {
            body[name] = value.clone();
        }
        let mut response = self.post("/v1/chat/completions", &body).await?;
        let (mut buffer, mut streamed) =
            (Vec::new(), StreamedCompletion { text: String::new(), first_token: Duration::ZERO, pieces: 0 });
        let mut done = false;
        while let Some(bytes) = response.chunk().await.context("read the stream")? {
            buffer.extend_from_slice(&bytes);
            while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = buffer.drain(..=end).collect();
                let line = String::from_utf8_lossy(&line);
                let Some(data) = line.trim().strip_prefix("data: ") else { continue };
                if data == "[DONE]" {
                    done = true;
                    continue;
                }
                let event: Value = serde_json::from_str(data).context("an event is JSON")?;
                if let Some(piece) =
                    event["choices"][0]["delta"]["content"].as_str().filter(|piece| !piece.is_empty())
                {
                    if streamed.pieces == 0 {
                        streamed.first_token = began.elapsed();
                    }
                    streamed.text.push_str(piece);
                    streamed.pieces += 1;
                }
            }
        }
        if !done {
            bail!("the stream ended without [DONE]");
        }
        Ok(streamed)
    }
}
