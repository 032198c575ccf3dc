//! The context file: the cluster, access token and member that the command line uses.
//!
//! The file is `--context FILE`, else `$QUORATE_CONTEXT`, else `$XDG_CONFIG_HOME/quorate/context.json` (or
//! `~/.config/quorate/context.json`). It is a file so that scripts can select it. It holds paths to secrets,
//! never secrets.

use crate::client::ControlClient;
use anyhow::{Context as _, Result, bail};
use protocol::{CircleId, Refusal, error_code};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// A context file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Context {
    /// Name of the cluster, for people.
    pub name: String,
    /// The pinned circle: everything that a server sends is verified against it.
    pub circle: CircleId,
    /// Base URLs of the control replicas' APIs.
    pub control: Vec<String>,
    /// Base URL of a gateway's OpenAI API.
    pub gateway: Option<String>,
    /// File with the access token.
    pub token_file: PathBuf,
    /// File with this member's key, if the user is a member.
    pub member_key_file: Option<PathBuf>,
    /// State directory of a node on this machine, through which models are imported.
    pub node_directory: Option<PathBuf>,
    /// PEM file of the authority that signed the replicas' API certificates; without one the system's
    /// authorities are trusted.
    pub certificate_authority_file: Option<PathBuf>,
}

impl Context {
    /// Reads the requested context, or the default one.
    ///
    /// # Errors
    /// Returns an error that names the missing or invalid file and how to create one.
    pub fn load(asked: Option<&Path>) -> Result<Self> {
        let path = asked.map_or_else(usual_path, Path::to_path_buf);
        let text = std::fs::read_to_string(&path).with_context(|| {
            let message = format!(
                "read context `{}` (`quorate up` creates one; `quorate context use FILE` selects one)",
                path.display()
            );
            Refusal::new(error_code::CONTEXT_MISSING, message)
        })?;
        let mut context: Self =
            serde_json::from_str(&text).with_context(|| format!("context `{}`", path.display()))?;
        let base = path.parent().unwrap_or(Path::new("."));
        context.token_file = base.join(&context.token_file);
        context.member_key_file = context.member_key_file.map(|file| base.join(file));
        context.node_directory = context.node_directory.map(|directory| base.join(directory));
        context.certificate_authority_file = context.certificate_authority_file.map(|file| base.join(file));
        Ok(context)
    }

    /// Creates a client with this context's token.
    ///
    /// # Errors
    /// Returns an error if the token's or the certificate authority's file cannot be read.
    pub fn client(&self) -> Result<ControlClient> {
        let token = std::fs::read_to_string(&self.token_file)
            .with_context(|| format!("read token `{}`", self.token_file.display()))?;
        if self.control.is_empty() {
            bail!("the context lists no control replica");
        }
        let authority = self.certificate_authority_file.as_deref().map(read_authority).transpose()?;
        ControlClient::new(self.control.clone(), token.trim().to_string(), authority)
            .context("create a client of the control API")
    }
}

fn read_authority(path: &Path) -> Result<reqwest::Certificate> {
    let pem = std::fs::read(path).with_context(|| format!("read `{}`", path.display()))?;
    reqwest::Certificate::from_pem(&pem)
        .with_context(|| format!("`{}` is not a certificate in PEM", path.display()))
}

/// Environment variable that names the context of one terminal; it takes precedence over the user's own file.
pub const VARIABLE: &str = "QUORATE_CONTEXT";

/// Returns the path of the context file when no option names one.
#[must_use]
pub fn usual_path() -> PathBuf {
    std::env::var_os(VARIABLE).map_or_else(own_path, PathBuf::from)
}

/// Returns the path of the user's own context file, which `quorate context use` writes.
///
/// The file that [`VARIABLE`] names belongs to a cluster and is only read.
#[must_use]
pub fn own_path() -> PathBuf {
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".config"));
    let base = std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from).or_else(home);
    base.unwrap_or_default().join("quorate/context.json")
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::Digest;

    /// Writes a context with these control replicas and relative paths, and returns its path.
    fn write(directory: &Path, control: &[&str]) -> PathBuf {
        let context = Context {
            name: "lab".into(),
            circle: CircleId(Digest::of(b"circle")),
            control: control.iter().map(|url| (*url).to_string()).collect(),
            gateway: None,
            token_file: "token".into(),
            member_key_file: Some("keys/alice.key".into()),
            node_directory: Some("/var/node".into()),
            certificate_authority_file: Some("authority.pem".into()),
        };
        let file = directory.join("lab.json");
        std::fs::write(&file, serde_json::to_vec(&context).expect("JSON")).expect("written");
        file
    }

    #[test]
    fn a_missing_context_is_refused_by_code_with_the_path_and_the_cause() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let file = directory.path().join("none.json");
        let error = Context::load(Some(&file)).expect_err("there is none");
        let refusal = error.downcast_ref::<Refusal>().expect("with a code");
        assert_eq!(refusal.code, error_code::CONTEXT_MISSING);
        assert!(
            refusal.message.contains("none.json") && refusal.message.contains("`quorate up`"),
            "{refusal}"
        );
        let cause = error.root_cause().downcast_ref::<std::io::Error>().expect("of the system");
        assert_eq!(cause.kind(), std::io::ErrorKind::NotFound);
    }

    #[test]
    fn relative_paths_begin_at_the_file() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let context = Context::load(Some(&write(directory.path(), &["http://127.0.0.1:1"]))).expect("valid");
        let inside = |path: &str| directory.path().join(path);
        assert_eq!(context.token_file, inside("token"));
        assert_eq!(context.member_key_file, Some(inside("keys/alice.key")));
        assert_eq!(context.node_directory, Some(PathBuf::from("/var/node")), "an absolute path stays");
        assert_eq!(context.certificate_authority_file, Some(inside("authority.pem")));
    }

    #[test]
    fn an_unknown_field_is_refused_and_named() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let file = write(directory.path(), &[]);
        let mut value: serde_json::Value =
            serde_json::from_slice(&std::fs::read(&file).expect("read")).expect("JSON");
        value["sky"] = "blue".into();
        std::fs::write(&file, value.to_string()).expect("written");
        let error = format!("{:#}", Context::load(Some(&file)).expect_err("unknown"));
        assert!(error.contains("lab.json") && error.contains("`sky`"), "{error}");
    }

    #[test]
    fn a_client_needs_a_token_a_replica_and_an_authority_in_pem() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let client = |control: &[&str]| {
            let context = Context::load(Some(&write(directory.path(), control))).expect("valid");
            context.client().map(|_| ()).map_err(|error| format!("{error:#}"))
        };
        assert!(client(&[]).expect_err("no token").starts_with("read token"));
        std::fs::write(directory.path().join("token"), "secret\n").expect("written");
        assert_eq!(client(&[]), Err("the context lists no control replica".into()));
        assert!(client(&["https://10.0.0.1"]).expect_err("no authority").starts_with("read `"));
    }
}
