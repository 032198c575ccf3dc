//! A peer that runs in a process of its own, and answers each line of JSON with one.

use anyhow::{Context as _, Result, ensure};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// A running peer, killed with its value.
pub(crate) struct PeerProcess {
    child: Child,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
    log: PathBuf,
}

impl PeerProcess {
    /// Starts the peer; what it says apart from answers goes into this file.
    pub(crate) fn start(command: &mut Command, log: &Path) -> Result<Self> {
        let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(File::create(log)?);
        let mut child = piped.spawn().with_context(|| format!("start {:?}", command.get_program()))?;
        let requests = child.stdin.take().context("the peer's input")?;
        let answers = BufReader::new(child.stdout.take().context("the peer's output")?);
        Ok(Self { child, requests, answers, log: log.to_path_buf() })
    }

    /// Sends a request, and returns its answer.
    pub(crate) fn ask<T: DeserializeOwned>(&mut self, request: &Value) -> Result<T> {
        writeln!(self.requests, "{request}")?;
        self.requests.flush()?;
        self.read()
    }

    /// Returns the next line of the peer.
    pub(crate) fn read<T: DeserializeOwned>(&mut self) -> Result<T> {
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        ensure!(!line.is_empty(), "the peer ended; see {}", self.log.display());
        Ok(serde_json::from_str(&line)?)
    }
}

impl Drop for PeerProcess {
    fn drop(&mut self) {
        // The process may have exited already; in either case it must not remain.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn each_request_has_its_answer_and_an_end_names_the_log() {
        let directory = tempfile::tempdir().expect("a directory");
        let log = directory.path().join("peer.log");
        let mut echo = PeerProcess::start(&mut Command::new("cat"), &log).expect("started");
        for number in 0..3 {
            let answer: Value = echo.ask(&json!({ "number": number })).expect("an answer");
            assert_eq!(answer["number"], number);
        }
        let mut ended = PeerProcess::start(&mut Command::new("true"), &log).expect("started");
        let error = ended.read::<Value>().expect_err("no answer").to_string();
        assert!(error.contains("peer.log"), "{error}");
    }
}
