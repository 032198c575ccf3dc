//! `hf:owner/name`: the files of a model from a Hugging Face hub, into a folder that is then imported like
//! any other. `HF_ENDPOINT` and `HF_TOKEN` mean what they mean to the hub's own tools. Nothing fetched here
//! is trusted: the import checks the files, and the circle approves the root of what was imported.

use anyhow::{Context as _, Result, bail, ensure};
use futures::StreamExt;
use indicatif::ProgressBar;
use serde::Deserialize;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;
use tokio::io::AsyncWriteExt;

/// The hub, unless the environment names another.
const ENDPOINT: &str = "https://huggingface.co";
/// Most files of a model.
const FILES_MAX: usize = 1000;
/// Largest description of a model.
const LISTING_BYTES_MAX: usize = 8 * 1024 * 1024;
/// How long the hub may take to begin an answer.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// Endings of what an engine reads. Pickle files are not even fetched.
const WANTED: [&str; 4] = [".safetensors", ".json", ".txt", ".model"];

/// The part of the hub's description that is needed; it has many more fields, which are the hub's affair.
#[derive(Deserialize)]
struct Description {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
}

/// Fetches a model's files into a fresh folder below `place` and returns that folder.
///
/// # Errors
/// `model-hub-unreachable` when there is no way to the hub; otherwise what the hub refused.
pub async fn fetch(name: &str, place: &Path, bar: &ProgressBar) -> Result<PathBuf> {
    ensure!(is_model_name(name), "`hf:{name}` is not `hf:owner/name`");
    let endpoint = std::env::var("HF_ENDPOINT").unwrap_or_else(|_| ENDPOINT.into());
    let hub = Hub::new(endpoint.trim_end_matches('/').to_string())?;
    let description = hub.describe(name).await?;
    ensure!(description.siblings.len() <= FILES_MAX, "`{name}` has more than {FILES_MAX} files");
    let files: Vec<&str> =
        description.siblings.iter().map(|s| s.rfilename.as_str()).filter(|file| is_wanted(file)).collect();
    ensure!(!files.is_empty(), "`{name}` has no safetensors model");
    for file in files {
        bar.set_message(file.to_string());
        hub.download(name, &description.sha, file, place, bar).await?;
    }
    bar.finish_and_clear();
    Ok(place.to_path_buf())
}

fn is_model_name(name: &str) -> bool {
    let part = |text: &str| {
        !text.is_empty()
            && !text.starts_with('.')
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
    };
    name.split_once('/').is_some_and(|(owner, model)| part(owner) && part(model))
}

/// Whether a file of the hub is one to fetch, under a path that stays in its folder.
fn is_wanted(file: &str) -> bool {
    let plain = Path::new(file).components().all(|part| matches!(part, Component::Normal(_)));
    plain && WANTED.iter().any(|ending| file.ends_with(ending))
}

struct Hub {
    http: reqwest::Client,
    endpoint: String,
    token: Option<String>,
}

impl Hub {
    fn new(endpoint: String) -> Result<Self> {
        let http = reqwest::Client::builder().connect_timeout(CONNECT_LIMIT).build()?;
        Ok(Self { http, endpoint, token: std::env::var("HF_TOKEN").ok() })
    }

    async fn get(&self, path: &str) -> Result<reqwest::Response> {
        let mut request = self.http.get(format!("{}{path}", self.endpoint));
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        let response = request.send().await.with_context(|| {
            format!(
                "model-hub-unreachable: no answer from {}; fetch the directory elsewhere and import it",
                self.endpoint
            )
        })?;
        if !response.status().is_success() {
            bail!("the hub answered {} for {path}", response.status());
        }
        Ok(response)
    }

    async fn describe(&self, name: &str) -> Result<Description> {
        let response = self.get(&format!("/api/models/{name}")).await?;
        let bytes = response.bytes().await?;
        ensure!(bytes.len() <= LISTING_BYTES_MAX, "the hub's description of `{name}` is too large");
        serde_json::from_slice(&bytes).context("the hub's description of the model")
    }

    async fn download(
        &self,
        name: &str,
        revision: &str,
        file: &str,
        place: &Path,
        bar: &ProgressBar,
    ) -> Result<()> {
        let path = place.join(file);
        if let Some(parent) = path.parent() {
            tokio::fs::create_dir_all(parent).await?;
        }
        let response = self.get(&format!("/{name}/resolve/{revision}/{file}")).await?;
        bar.inc_length(response.content_length().unwrap_or(0));
        let mut target = tokio::fs::File::create(&path).await?;
        let mut stream = response.bytes_stream();
        while let Some(bytes) = stream.next().await {
            let bytes = bytes.with_context(|| format!("download `{file}`"))?;
            target.write_all(&bytes).await?;
            bar.inc(bytes.len() as u64);
        }
        target.flush().await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_files_cannot_leave_their_place() {
        for good in ["sentence-transformers/all-MiniLM-L6-v2", "a/b"] {
            assert!(is_model_name(good), "{good}");
        }
        for bad in ["", "a", "a/", "/b", "a/b/c", "../b", "a/..", "a b/c", "a/b?x=1"] {
            assert!(!is_model_name(bad), "{bad}");
        }
        for (file, wanted) in [
            ("model.safetensors", true),
            ("1_Pooling/config.json", true),
            ("pytorch_model.bin", false),
            ("../evil.json", false),
            ("/etc/evil.json", false),
        ] {
            assert_eq!(is_wanted(file), wanted, "{file}");
        }
    }

    /// A hub of two files on loopback.
    async fn small_hub() -> String {
        let list = r#"{"sha":"abc","private":false,"siblings":[{"rfilename":"config.json"},{"rfilename":"pytorch_model.bin"},{"rfilename":"model.safetensors"}]}"#;
        let router = axum::Router::new()
            .route("/api/models/owner/small", axum::routing::get(move || async move { list }))
            .route("/owner/small/resolve/abc/config.json", axum::routing::get(|| async { "{}" }))
            .route("/owner/small/resolve/abc/model.safetensors", axum::routing::get(|| async { "weights" }));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        tokio::spawn(async move { axum::serve(listener, router).await });
        format!("http://{address}")
    }

    #[tokio::test]
    async fn what_is_wanted_is_fetched_and_a_hub_out_of_reach_is_said_by_code() {
        let folder = tempfile::tempdir().expect("temporary directory");
        let bar = ProgressBar::hidden();
        let hub = Hub::new(small_hub().await).expect("a client");
        let description = hub.describe("owner/small").await.expect("described");
        let files: Vec<&str> = description.siblings.iter().map(|s| s.rfilename.as_str()).collect();
        for file in files.into_iter().filter(|file| is_wanted(file)) {
            hub.download("owner/small", &description.sha, file, folder.path(), &bar).await.expect("fetched");
        }
        assert_eq!(std::fs::read(folder.path().join("model.safetensors")).expect("read"), b"weights");
        assert!(!folder.path().join("pytorch_model.bin").exists());

        let nobody = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = nobody.local_addr().expect("bound");
        drop(nobody);
        let hub = Hub::new(format!("http://{address}")).expect("a client");
        let error = hub.describe("owner/small").await.err().expect("nobody answers");
        assert!(error.to_string().starts_with("model-hub-unreachable"), "{error}");
    }
}
