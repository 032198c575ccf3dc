//! tough as the peer: a program of its own, built by cargo, that verifies as often as it is asked to.

use crate::process::ChildGuard;
use crate::report;
use anyhow::{Context, ensure};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, ChildStdout, Command, Stdio};

/// Running peer.
pub(super) struct TufPeer {
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    /// Size of the metadata that it verifies.
    pub(super) bytes: usize,
    _child: ChildGuard,
}

/// Builds the peer into `target/bench/tough` and returns its program.
pub(super) fn build() -> anyhow::Result<PathBuf> {
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/peers/tough/Cargo.toml");
    let target = report::directory()?.join("tough");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let arguments =
        ["build", "--quiet", "--locked", "--release", "--manifest-path", manifest, "--target-dir"];
    let status = Command::new(cargo).args(arguments).arg(&target).status().context("run cargo")?;
    ensure!(status.success(), "the peer in {manifest} does not build");
    Ok(target.join("release/tough-peer"))
}

impl TufPeer {
    /// Starts the peer with metadata of this threshold.
    pub(super) fn start(program: &Path, required: u32, keys: u32) -> anyhow::Result<Self> {
        let mut command = Command::new(program);
        command.args([required.to_string(), keys.to_string()]);
        let mut child = ChildGuard::start(command.stdin(Stdio::piped()).stdout(Stdio::piped()))?;
        let (input, output) = child.pipes().context("the peer has pipes")?;
        let mut output = BufReader::new(output);
        let bytes = line(&mut output)?.trim().parse()?;
        Ok(Self { input, output, bytes, _child: child })
    }

    /// Lets the peer verify this many times; returns the durations in milliseconds.
    pub(super) fn verified(&mut self, times: usize) -> anyhow::Result<Vec<f64>> {
        writeln!(self.input, "{times}").context("tell the peer")?;
        let durations = line(&mut self.output)?;
        let durations: Vec<f64> = durations
            .split_whitespace()
            .map(|text| Ok(text.parse::<f64>()? / 1e6))
            .collect::<anyhow::Result<_>>()?;
        ensure!(durations.len() == times, "the peer verified {} times, not {times}", durations.len());
        Ok(durations)
    }
}

fn line(output: &mut BufReader<ChildStdout>) -> anyhow::Result<String> {
    let mut text = String::new();
    ensure!(output.read_line(&mut text)? > 0, "the peer has ended");
    Ok(text)
}
