//! `quorate up` as a child process: its start, its output, its end.

use crate::Arguments;
use crate::command::Quorate;
use crate::processes::signal;
use anyhow::{Context as _, Result, anyhow, bail};
use nix::sys::signal::Signal;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStdout};
use tokio::sync::watch;

/// Beginning of the line that `quorate up` prints when every daemon answers.
const READY: &str = "cluster ready after ";
/// End of the line that `quorate up` prints when it restarts a daemon.
const RESTART: &str = "; starting it again";
/// Time that `quorate up` has to stop every process before it is killed.
const END_LIMIT: Duration = Duration::from_secs(60);

/// A running `quorate up`.
#[derive(Debug)]
pub(crate) struct UpProcess {
    child: Child,
    output: Arc<UpOutput>,
}

impl UpProcess {
    /// Starts `quorate up` in a process group of its own, so that Ctrl-C reaches this program alone.
    pub(crate) fn start(quorate: &Quorate, directory: &Path, arguments: &Arguments) -> Result<Self> {
        let path = directory.display().to_string();
        let mut words = vec!["up", "--dir", &path];
        if arguments.fresh {
            words.push("--fresh");
        }
        if let Some(gpus) = &arguments.simulate_gpus {
            words.extend(["--simulate-gpus", gpus]);
        }
        // The story reads the nodes' logs, whose usual level it needs.
        let mut command = quorate.command(&words);
        command.process_group(0).env_remove("RUST_LOG").stdout(Stdio::piped());
        let mut child = command.spawn().context("start `quorate up`")?;
        let stdout = child.stdout.take().context("`quorate up` has an output")?;
        let output = Arc::new(UpOutput::default());
        tokio::spawn(relay(stdout, output.clone()));
        Ok(Self { child, output })
    }

    /// Returns the process id.
    pub(crate) fn pid(&self) -> Result<i32> {
        let pid = self.child.id().ok_or_else(|| anyhow!("`quorate up` ended at once"))?;
        Ok(i32::try_from(pid)?)
    }

    /// Returns the output, which grows while the process runs.
    pub(crate) fn output(&self) -> Arc<UpOutput> {
        self.output.clone()
    }

    /// Waits until the process ends without a signal of this program.
    pub(crate) async fn ended(&mut self) -> Result<ExitStatus> {
        Ok(self.child.wait().await?)
    }

    /// Sends Ctrl-C and waits for the end, which must be clean.
    pub(crate) async fn stop(mut self) -> Result<()> {
        if let Ok(pid) = self.pid() {
            signal(pid, Signal::SIGINT);
        }
        let Ok(status) = tokio::time::timeout(END_LIMIT, self.child.wait()).await else {
            self.child.kill().await?;
            bail!("`quorate up` did not stop within {} s of Ctrl-C", END_LIMIT.as_secs());
        };
        let status = status?;
        if status.success() { Ok(()) } else { Err(anyhow!("`quorate up` ended with {status} after Ctrl-C")) }
    }
}

/// Output of `quorate up`, read as it comes.
#[derive(Debug, Default)]
pub(crate) struct UpOutput {
    ready: watch::Sender<bool>,
    farewell: Mutex<Vec<String>>,
}

impl UpOutput {
    /// Waits until every daemon answers; forever if the process ends before.
    pub(crate) async fn ready(&self) {
        if self.ready.subscribe().wait_for(|ready| *ready).await.is_err() {
            std::future::pending().await
        }
    }

    /// Returns the lines with the next steps, which `quorate up` prints once it is ready.
    pub(crate) fn farewell(&self) -> Vec<String> {
        self.farewell.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes one line; returns it if it is to be printed now.
    fn take(&self, line: String) -> Option<String> {
        if line.starts_with(READY) {
            self.ready.send_replace(true);
            return None;
        }
        if line.ends_with(RESTART) {
            return Some(format!("          {line}"));
        }
        if !*self.ready.borrow() {
            return Some(line);
        }
        self.farewell.lock().unwrap_or_else(PoisonError::into_inner).push(line);
        None
    }
}

async fn relay(stdout: ChildStdout, output: Arc<UpOutput>) {
    let mut lines = BufReader::new(stdout).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        if let Some(line) = output.take(line) {
            println!("{line}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_before_the_cluster_is_ready_are_printed_and_the_next_steps_are_kept() {
        let output = UpOutput::default();
        let take = |line: &str| output.take(line.to_string());
        assert_eq!(take("  0.82 s  3 control replicas"), Some("  0.82 s  3 control replicas".to_string()));
        assert_eq!((take("cluster ready after 0.9 s"), *output.ready.borrow()), (None, true));
        assert_eq!(take("# any OpenAI client"), None);
        let restart = take("node-1 ended (signal: 9 (SIGKILL)); starting it again").expect("printed");
        assert!(restart.trim_start().starts_with("node-1 ended"), "{restart}");
        assert_eq!(output.farewell(), ["# any OpenAI client"]);
    }
}
