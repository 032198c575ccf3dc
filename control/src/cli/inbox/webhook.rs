//! Webhooks as Standard Webhooks has them: a post whose id, time and body are signed with HMAC-SHA256.
//!
//! The id is that of the notice, so a receiver recognizes one that it has received before. Each attempt is
//! signed at its own time, over the same body. Redirects are not followed: a signed body goes to the address
//! that was given, and to no other.

use super::announce::{Announcement, AttemptError};
use anyhow::Result;
use aws_lc_rs::hmac::{HMAC_SHA256, Key, sign};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use host::{files, wall_clock};
use protocol::{Millis, Refusal, error_chain, error_code};
use reqwest::redirect;
use serde::Serialize;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;
use zeroize::Zeroizing;

/// Beginning of a secret's text.
const SECRET_PREFIX: &str = "whsec_";
/// Lengths of a secret in bytes, as the standard has them.
const SECRET_BYTES: std::ops::RangeInclusive<usize> = 24..=64;
/// Largest file with a secret, in bytes.
const SECRET_FILE_BYTES_MAX: usize = 256;
/// Time for one attempt.
const ATTEMPT_LIMIT: Duration = Duration::from_secs(15);
/// Status of a receiver that wants no more posts.
const GONE: u16 = 410;

/// A receiver of signed posts.
pub(super) struct Webhook {
    client: reqwest::Client,
    url: reqwest::Url,
    key: Key,
}

/// Body of a post.
#[derive(Debug, Serialize)]
struct WebhookBody<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    data: &'a Announcement,
}

impl Webhook {
    /// Creates the receiver at this address, with the secret in this file.
    ///
    /// # Errors
    /// Fails with `plain-http-refused` if the posts would leave the machine unencrypted, and with
    /// `key-file-unusable` if the file is missing, readable by others, or holds no secret.
    pub(super) fn new(url: &str, secret: &Path) -> Result<Self> {
        let invalid =
            |reason: String| Refusal::new(error_code::INVALID_VALUE, format!("--webhook: {reason}"));
        let url = reqwest::Url::parse(url).map_err(|error| invalid(error.to_string()))?;
        let is_local = matches!(url.host_str(), Some("localhost" | "127.0.0.1" | "[::1]"));
        match url.scheme() {
            "https" => {}
            "http" if is_local => {}
            "http" => {
                let message = "--webhook: the address is not this machine's, and begins with http://";
                return Err(Refusal::new(error_code::PLAIN_HTTP_REFUSED, message).into());
            }
            other => return Err(invalid(format!("`{other}` is not https")).into()),
        }
        let client = reqwest::Client::builder().timeout(ATTEMPT_LIMIT).redirect(redirect::Policy::none());
        Ok(Self { client: client.build()?, url, key: Key::new(HMAC_SHA256, &read_secret(secret)?) })
    }

    /// Returns the address of the receiver.
    pub(super) fn address(&self) -> &str {
        self.url.as_str()
    }

    /// Posts an announcement once.
    pub(super) async fn send(&self, announcement: &Announcement) -> Result<(), AttemptError> {
        let body = serde_json::to_vec(&WebhookBody { kind: "proposal.waiting", data: announcement });
        let body = body.expect("an announcement is JSON");
        let request = self.client.post(self.url.clone()).header("content-type", "application/json");
        let signed = signature_headers(&self.key, &announcement.notice().to_string(), wall_clock(), &body);
        let request = signed.into_iter().fold(request, |request, (name, value)| request.header(name, value));
        let sent = request.body(body).send().await;
        // The address may hold a token, so it is left out of the reason.
        let answer = sent.map_err(|error| {
            AttemptError::Retry(format!("the webhook: {}", error_chain(&error.without_url())))
        })?;
        match answer.status().as_u16() {
            200..=299 => Ok(()),
            GONE => Err(AttemptError::Refused("the webhook answers 410, gone".into())),
            status => Err(AttemptError::Retry(format!("the webhook answers {status}"))),
        }
    }
}

/// Returns the headers that sign a body under this id at this time.
fn signature_headers(key: &Key, id: &str, at: Millis, body: &[u8]) -> [(&'static str, String); 3] {
    let seconds = at.0 / 1000;
    let signed = [format!("{id}.{seconds}.").as_bytes(), body].concat();
    let signature = STANDARD.encode(sign(key, &signed));
    [
        ("webhook-id", id.to_string()),
        ("webhook-timestamp", seconds.to_string()),
        ("webhook-signature", format!("v1,{signature}")),
    ]
}

/// Reads a secret from a file that its owner alone can read.
fn read_secret(path: &Path) -> Result<Zeroizing<Vec<u8>>, Refusal> {
    let unusable = |reason: String| {
        let message = format!("the webhook secret `{}`: {reason}", path.display());
        Refusal::new(error_code::KEY_FILE_UNUSABLE, message)
    };
    let mode = std::fs::metadata(path).map_err(|error| unusable(error.to_string()))?.permissions().mode();
    if mode & 0o077 != 0 {
        let mode = mode & 0o777;
        return Err(unusable(format!("is readable by other users (mode {mode:o}); run chmod 600 on it")));
    }
    let read = files::read(path, SECRET_FILE_BYTES_MAX).map_err(|error| unusable(error.to_string()))?;
    let bytes = Zeroizing::new(read.unwrap_or_default());
    let text = std::str::from_utf8(&bytes).unwrap_or_default().trim();
    let secret = text.strip_prefix(SECRET_PREFIX).and_then(|text| STANDARD.decode(text).ok());
    match secret.map(Zeroizing::new).filter(|secret| SECRET_BYTES.contains(&secret.len())) {
        Some(secret) => Ok(secret),
        None => Err(unusable("is not `whsec_` and base64 of 24 to 64 bytes".into())),
    }
}

#[cfg(test)]
mod tests;
