//! Child processes that end with their benchmark, and free ports for them.

use anyhow::{Context, ensure};
use std::ffi::OsStr;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command};

/// A child process that is killed on drop.
pub(crate) struct ChildGuard(Child);

impl ChildGuard {
    /// Starts `command`.
    pub(crate) fn start(command: &mut Command) -> anyhow::Result<Self> {
        let child = command.spawn().with_context(|| format!("start {:?}", command.get_program()))?;
        Ok(Self(child))
    }

    /// Returns the id of the process.
    pub(crate) fn id(&self) -> u32 {
        self.0.id()
    }

    /// Returns the pipes of a process that was started with both, once.
    pub(crate) fn pipes(&mut self) -> Option<(ChildStdin, ChildStdout)> {
        Some((self.0.stdin.take()?, self.0.stdout.take()?))
    }
}

impl Drop for ChildGuard {
    fn drop(&mut self) {
        // The process may have exited already; in either case it must not remain.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a program to its end.
///
/// # Errors
/// If it cannot be started, or fails.
pub(crate) fn run_to_end(command: &mut Command) -> anyhow::Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let status = command.status().with_context(|| format!("start `{program}`"))?;
    ensure!(status.success(), "`{program}` failed: {status}");
    Ok(())
}

/// Returns the SHA-256 of files of a directory in hexadecimal, each with its name, by `sha256sum`.
///
/// # Errors
/// If a file cannot be read.
pub(crate) fn sha256_sums(
    directory: &Path,
    files: &[impl AsRef<OsStr>],
) -> anyhow::Result<Vec<(String, String)>> {
    let output = Command::new("sha256sum").args(files).current_dir(directory).output()?;
    ensure!(output.status.success(), "`sha256sum` failed: {}", output.status);
    let sums = String::from_utf8(output.stdout)?;
    let sum = |line: &str| {
        let (digest, file) =
            line.split_once("  ").with_context(|| format!("`{line}` is no digest and file"))?;
        Ok((digest.to_string(), file.to_string()))
    };
    sums.lines().map(sum).collect()
}

/// Returns distinct ports of loopback that were free a moment ago.
pub(crate) fn free_ports(count: usize) -> anyhow::Result<Vec<u16>> {
    let listeners: Vec<TcpListener> =
        (0..count).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<_, _>>()?;
    listeners.iter().map(|listener| Ok(listener.local_addr()?.port())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_program_that_fails_or_is_not_there_is_named() {
        run_to_end(&mut Command::new("true")).expect("it succeeds");
        for (program, reason) in [("false", "`false` failed"), ("no-such-program", "start `no-such")] {
            let error = run_to_end(&mut Command::new(program)).expect_err(program).to_string();
            assert!(error.contains(reason), "{error}");
        }
    }

    #[test]
    fn digests_are_those_of_the_files_that_are_named() {
        let directory = tempfile::tempdir().expect("a directory");
        std::fs::write(directory.path().join("a"), "abc").expect("written");
        // FIPS 180-2, appendix B.1.
        let of_abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let sums = sha256_sums(directory.path(), &["a"]).expect("digests");
        assert_eq!(sums, [(of_abc.to_string(), "a".to_string())]);
        sha256_sums(directory.path(), &["none"]).expect_err("no such file");
    }

    #[test]
    fn free_ports_are_distinct() {
        let ports = free_ports(8).expect("loopback has ports");
        assert_eq!(ports.iter().collect::<BTreeSet<_>>().len(), 8, "{ports:?}");
        assert!(!ports.contains(&0), "{ports:?}");
    }
}
