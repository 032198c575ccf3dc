//! Commands of `quorate`, run as a user with the cluster's context runs them.

use anyhow::{Context as _, Result, bail};
use serde::de::DeserializeOwned;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use tokio::process::Command;

/// The `quorate` binary beside this program, and the context file of one cluster.
#[derive(Debug, Clone)]
pub(crate) struct Quorate {
    program: PathBuf,
    context: PathBuf,
}

impl Quorate {
    /// Finds the binary beside this program.
    pub(crate) fn beside_this_program(directory: &Path) -> Result<Self> {
        let program = std::env::current_exe().context("find this binary")?.with_file_name("quorate");
        if !program.is_file() {
            bail!("`{}` is missing; `cargo xtask up` builds it", program.display());
        }
        Ok(Self { program, context: directory.join("context.json") })
    }

    /// Returns a command of the binary that dies with this process.
    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(words)
            .env("QUORATE_WITH_PARENT", std::process::id().to_string())
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    /// Returns a command of the binary that uses the cluster's context.
    pub(crate) fn command_in_context(&self, words: &[&str]) -> Command {
        let mut command = self.command(words);
        command.env("QUORATE_CONTEXT", &self.context);
        command
    }

    /// Runs a command to its end, regardless of its exit status.
    pub(crate) async fn run(&self, words: &[&str]) -> Result<Output> {
        let mut command = self.command_in_context(words);
        command.output().await.with_context(|| format!("run `quorate {}`", words.join(" ")))
    }

    /// Returns the standard output of a command that must succeed.
    pub(crate) async fn text(&self, words: &[&str]) -> Result<String> {
        let output = self.run(words).await?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("`quorate {}` ended with {}: {}", words.join(" "), output.status, said.trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Returns the JSON output of a command that must succeed.
    pub(crate) async fn json<T: DeserializeOwned>(&self, words: &[&str]) -> Result<T> {
        let text = self.text(&[words, &["--output", "json"]].concat()).await?;
        serde_json::from_str(&text)
            .with_context(|| format!("read the output of `quorate {}`", words.join(" ")))
    }

    /// Returns the exit status and the JSON output of a command whose exit status is a verdict.
    pub(crate) async fn verdict(&self, words: &[&str]) -> Result<(Option<i32>, serde_json::Value)> {
        let output = self.run(&[words, &["--output", "json"]].concat()).await?;
        let value = serde_json::from_slice(&output.stdout).with_context(|| {
            let said = String::from_utf8_lossy(&output.stderr);
            format!("`quorate {}` ended with {}: {}", words.join(" "), output.status, said.trim())
        })?;
        Ok((output.status.code(), value))
    }
}
