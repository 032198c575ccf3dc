//! Downloads models from a Hugging Face hub: `hf:owner/name` names one for import.
//!
//! The files go to a folder that is then imported like any other. `HF_ENDPOINT` and `HF_TOKEN` have the same
//! meaning as in the hub's own tools. No downloaded file is trusted: the import checks the files, and the
//! circle approves the root of the imported model.

use crate::terminal;
use anyhow::{Context as _, Result};
use futures::StreamExt;
use indicatif::ProgressBar;
use protocol::manifest::format_bytes;
use protocol::{Refusal, error_code};
use serde::Deserialize;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;
use tokio::io::AsyncWriteExt;

/// URL of the hub, unless the environment names another.
const ENDPOINT: &str = "https://huggingface.co";
/// Maximum number of files of a model.
const FILES_MAX: usize = 1000;
/// Maximum size of all files, in bytes: the limit of a model manifest. More data from a hub would only fill
/// the disk.
const MODEL_BYTES_MAX: u64 = 256 << 30;
/// Maximum size of a model's description, in bytes.
const LISTING_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Timeout for connecting to the hub.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// Timeout for silence of the hub, at the beginning of a response or within it.
const SILENCE_LIMIT: Duration = Duration::from_secs(30);
/// File name ending of weights; a model without weights is rejected.
const WEIGHTS: &str = ".safetensors";
/// Endings of the files that an engine reads. Pickle files are not downloaded at all.
const WANTED: [&str; 4] = [WEIGHTS, ".json", ".txt", ".model"];

/// The fields of the hub's model description that are needed; the many others are ignored.
#[derive(Deserialize)]
struct Description {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
}

/// Downloads a model's files below `directory` and returns that folder.
///
/// # Errors
/// Fails with `model-hub-unreachable` if the hub cannot be reached and `model-hub-refused` if it has no such
/// model. Fails with `model-file-missing` if the model has no safetensors, and with `model-too-large`.
pub async fn fetch(name: &str, directory: &Path, bar: &ProgressBar) -> Result<PathBuf> {
    let endpoint = std::env::var("HF_ENDPOINT").unwrap_or_else(|_| ENDPOINT.into());
    let limits = Limits { silence: SILENCE_LIMIT, bytes: MODEL_BYTES_MAX };
    Hub::new(endpoint.trim_end_matches('/').to_string(), limits)?.fetch(name, directory, bar).await
}

fn is_model_name(name: &str) -> bool {
    let part = |text: &str| {
        !text.is_empty()
            && !text.starts_with('.')
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
    };
    name.split_once('/').is_some_and(|(owner, model)| part(owner) && part(model))
}

/// Returns whether a file of the hub is to be downloaded; its path must stay within its folder.
fn is_wanted(file: &str) -> bool {
    let plain = Path::new(file).components().all(|part| matches!(part, Component::Normal(_)));
    plain && WANTED.iter().any(|ending| file.ends_with(ending))
}

/// Limits on the time and disk space that a hub can consume.
#[derive(Clone, Copy)]
struct Limits {
    silence: Duration,
    bytes: u64,
}

struct Hub {
    http: reqwest::Client,
    endpoint: String,
    token: Option<String>,
    limits: Limits,
}

impl Hub {
    fn new(endpoint: String, limits: Limits) -> Result<Self> {
        let http = reqwest::Client::builder().connect_timeout(CONNECT_LIMIT).read_timeout(limits.silence);
        Ok(Self { http: http.build()?, endpoint, token: std::env::var("HF_TOKEN").ok(), limits })
    }

    async fn fetch(&self, name: &str, directory: &Path, bar: &ProgressBar) -> Result<PathBuf> {
        if !is_model_name(name) {
            let message = format!("`hf:{name}` is not `hf:owner/name`");
            return Err(Refusal::new(error_code::MODEL_HUB_REFUSED, message).into());
        }
        let description = self.describe(name).await?;
        if description.siblings.len() > FILES_MAX {
            let message = format!("`{name}` has more than {FILES_MAX} files");
            return Err(Refusal::new(error_code::MODEL_TOO_LARGE, message).into());
        }
        let files = description.siblings.iter().map(|sibling| sibling.rfilename.as_str());
        let files: Vec<&str> = files.filter(|file| is_wanted(file)).collect();
        if !files.iter().any(|file| file.ends_with(WEIGHTS)) {
            let message = format!("`{name}` has no safetensors; other formats are not downloaded");
            return Err(Refusal::new(error_code::MODEL_FILE_MISSING, message).into());
        }
        let mut bytes_left = self.limits.bytes;
        for file in files {
            bar.set_message(terminal::line(file));
            bytes_left -= self.download(name, &description.sha, file, directory, bytes_left, bar).await?;
        }
        bar.finish_and_clear();
        Ok(directory.to_path_buf())
    }

    /// Returns the error for a hub that did not respond, or stopped in the middle of a response.
    fn unreachable(&self, error: &reqwest::Error) -> anyhow::Error {
        let cause = protocol::error_chain(error);
        let message = format!(
            "no response from {} ({cause}); download the directory elsewhere and import it",
            self.endpoint
        );
        Refusal::new(error_code::MODEL_HUB_UNREACHABLE, message).into()
    }

    async fn get(&self, path: &str) -> Result<reqwest::Response> {
        let mut request = self.http.get(format!("{}{path}", self.endpoint));
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        let response = request.send().await.map_err(|error| self.unreachable(&error))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let later = status.is_server_error() || status == reqwest::StatusCode::TOO_MANY_REQUESTS;
        let code = if later { error_code::MODEL_HUB_UNREACHABLE } else { error_code::MODEL_HUB_REFUSED };
        Err(Refusal::new(code, format!("{} answered {status} for {path}", self.endpoint)).into())
    }

    async fn describe(&self, name: &str) -> Result<Description> {
        let mut response = self.get(&format!("/api/models/{name}")).await?;
        let mut bytes = Vec::new();
        while let Some(more) = response.chunk().await.map_err(|error| self.unreachable(&error))? {
            if bytes.len() + more.len() > LISTING_BYTES_MAX {
                let message = format!("the hub's description of `{name}` is too large");
                return Err(Refusal::new(error_code::MODEL_TOO_LARGE, message).into());
            }
            bytes.extend_from_slice(&more);
        }
        serde_json::from_slice(&bytes).map_err(|error| {
            let message = format!("{} sent no valid description of `{name}`: {error}", self.endpoint);
            Refusal::new(error_code::MODEL_HUB_REFUSED, message).into()
        })
    }

    /// Downloads one file below `directory`; returns its length, at most `bytes_max`.
    async fn download(
        &self,
        name: &str,
        revision: &str,
        file: &str,
        directory: &Path,
        bytes_max: u64,
        bar: &ProgressBar,
    ) -> Result<u64> {
        let path = directory.join(file);
        if let Some(parent) = path.parent() {
            tokio::fs::create_dir_all(parent).await?;
        }
        let response = self.get(&format!("/{name}/resolve/{revision}/{file}")).await?;
        bar.inc_length(response.content_length().unwrap_or(0));
        let mut target = tokio::fs::File::create(&path).await?;
        let mut stream = response.bytes_stream();
        let mut length = 0;
        while let Some(bytes) = stream.next().await {
            let bytes = bytes.map_err(|error| self.unreachable(&error))?;
            length += bytes.len() as u64;
            if length > bytes_max {
                let message = format!("`{name}` has more than {}", format_bytes(self.limits.bytes));
                return Err(Refusal::new(error_code::MODEL_TOO_LARGE, message).into());
            }
            target.write_all(&bytes).await.with_context(|| format!("write `{}`", path.display()))?;
            bar.inc(bytes.len() as u64);
        }
        target.flush().await?;
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::routing::get;

    #[test]
    fn names_and_files_cannot_leave_their_directory() {
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

    fn listing(files: &[&str]) -> String {
        let siblings: Vec<_> = files.iter().map(|file| serde_json::json!({ "rfilename": file })).collect();
        serde_json::json!({ "sha": "abc", "private": false, "siblings": siblings }).to_string()
    }

    /// Starts a hub with a few models on loopback.
    async fn small_hub() -> String {
        let small = listing(&["config.json", "pytorch_model.bin", "model.safetensors"]);
        let pickled = listing(&["config.json", "pytorch_model.bin"]);
        let busy = || async { axum::http::StatusCode::SERVICE_UNAVAILABLE };
        let private = || async { axum::http::StatusCode::UNAUTHORIZED };
        let router = axum::Router::new()
            .route("/api/models/owner/small", get(move || async move { small }))
            .route("/api/models/owner/pickled", get(move || async move { pickled }))
            .route("/api/models/owner/long", get(|| async { "x".repeat(LISTING_BYTES_MAX + 1) }))
            .route("/api/models/owner/odd", get(|| async { "<html>" }))
            .route("/api/models/owner/private", get(private))
            .route("/api/models/owner/busy", get(busy))
            .route("/owner/small/resolve/abc/config.json", get(|| async { "{}" }))
            .route("/owner/small/resolve/abc/model.safetensors", get(|| async { "weights" }));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        tokio::spawn(async move { axum::serve(listener, router).await });
        format!("http://{address}")
    }

    const LIMITS: Limits = Limits { silence: SILENCE_LIMIT, bytes: MODEL_BYTES_MAX };

    /// Downloads into a temporary folder; returns the code of the failure, if any.
    async fn code(endpoint: &str, limits: Limits, name: &str) -> Option<&'static str> {
        let folder = tempfile::tempdir().expect("temporary directory");
        let hub = Hub::new(endpoint.to_string(), limits).expect("a client");
        let error = hub.fetch(name, folder.path(), &ProgressBar::hidden()).await.err()?;
        let refusal = error.downcast_ref::<Refusal>().unwrap_or_else(|| panic!("no code: {error:#}"));
        Some(refusal.code.as_str())
    }

    #[tokio::test]
    async fn only_the_wanted_files_are_downloaded() {
        let folder = tempfile::tempdir().expect("temporary directory");
        let hub = Hub::new(small_hub().await, LIMITS).expect("a client");
        hub.fetch("owner/small", folder.path(), &ProgressBar::hidden()).await.expect("fetched");
        assert_eq!(std::fs::read(folder.path().join("model.safetensors")).expect("read"), b"weights");
        assert!(folder.path().join("config.json").exists());
        assert!(!folder.path().join("pytorch_model.bin").exists());
    }

    #[tokio::test]
    async fn a_refusal_of_the_hub_has_a_code() {
        let hub = small_hub().await;
        let tight = Limits { bytes: 8, ..LIMITS };
        for (name, limits, expected) in [
            ("owner/small", LIMITS, None),
            ("owner/small", tight, Some("model-too-large")),
            ("owner/long", LIMITS, Some("model-too-large")),
            ("owner/pickled", LIMITS, Some("model-file-missing")),
            ("owner/nothing", LIMITS, Some("model-hub-refused")),
            ("owner/private", LIMITS, Some("model-hub-refused")),
            ("owner/odd", LIMITS, Some("model-hub-refused")),
            ("not-a-name", LIMITS, Some("model-hub-refused")),
            ("owner/busy", LIMITS, Some("model-hub-unreachable")),
        ] {
            assert_eq!(code(&hub, limits, name).await, expected, "{name}");
        }
    }

    #[tokio::test]
    async fn an_unreachable_or_silent_hub_times_out() {
        // Bound but not listening: the kernel refuses connections, and no other process can take the port
        // during the test.
        let nobody = tokio::net::TcpSocket::new_v4().expect("a socket");
        nobody.bind("127.0.0.1:0".parse().expect("an address")).expect("a free port");
        let gone = format!("http://{}", nobody.local_addr().expect("bound"));
        assert_eq!(code(&gone, LIMITS, "owner/small").await, Some("model-hub-unreachable"));

        // The kernel accepts the connection, and no byte is ever sent.
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let endpoint = format!("http://{}", silent.local_addr().expect("bound"));
        let impatient = Limits { silence: Duration::from_millis(50), ..LIMITS };
        assert_eq!(code(&endpoint, impatient, "owner/small").await, Some("model-hub-unreachable"));
    }
}
