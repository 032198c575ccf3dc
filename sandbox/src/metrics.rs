//! Metrics pipe of a sandbox: short JSON lines, the only output besides replies to requests. It is data from
//! untrusted code. A line is at most [`METRICS_LINE_BYTES_MAX`] bytes and must be exactly the expected type;
//! everything else is counted and discarded.

use crate::pacer::InputPacer;
use protocol::limits::METRICS_LINE_BYTES_MAX;
use protocol::worker::WorkerMetrics;
use std::io;
use std::path::Path;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::unix::pipe;

/// Rate limit in bytes: a worker writes one line of a few hundred bytes per second.
const BYTES_PER_SECOND: u32 = 16 * 1024;
/// Burst beyond that: a pipe that filled up while no agent was alive.
const BURST_BYTES: u32 = 64 * 1024;
/// Minimum cost of a read, so that single bytes are no cheaper way to keep an agent busy.
const READ_BYTES_MIN: u32 = 512;

/// Splits a stream of bytes into lines of bounded length. Holds at most one line.
#[derive(Debug, Default)]
pub struct LineSplitter {
    line: Vec<u8>,
    /// Inside a line that is already too long: no bytes are kept until it ends.
    skipping: bool,
    too_long: u64,
}

impl LineSplitter {
    /// Appends bytes and passes each complete line, without its newline, to `on_line`.
    pub fn push(&mut self, bytes: &[u8], mut on_line: impl FnMut(&[u8])) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (text, ends) = match piece.split_last() {
                Some((b'\n', text)) => (text, true),
                _ => (piece, false),
            };
            if !self.skipping && self.line.len() + text.len() < METRICS_LINE_BYTES_MAX {
                self.line.extend_from_slice(text);
            } else if !self.skipping {
                self.skipping = true;
                self.too_long += 1;
                self.line.clear();
            }
            if ends && !std::mem::take(&mut self.skipping) {
                on_line(&self.line);
            }
            if ends {
                self.line.clear();
            }
        }
    }

    /// Returns the number of lines that were too long.
    #[must_use]
    pub fn too_long(&self) -> u64 {
        self.too_long
    }
}

/// The agent's end of a worker's metrics pipe.
pub struct MetricsReader {
    pipe: Box<dyn AsyncRead + Send + Sync + Unpin>,
    lines: LineSplitter,
    refused: u64,
    limiter: InputPacer,
}

impl std::fmt::Debug for MetricsReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "MetricsReader({} refused)", self.refused())
    }
}

impl MetricsReader {
    /// Opens the pipe, which may already hold earlier lines.
    ///
    /// # Errors
    /// Errors of the system; `InvalidInput` if it is no pipe.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self::of(pipe::OpenOptions::new().open_receiver(path)?))
    }

    /// Reads from any stream that carries such lines.
    pub fn of(pipe: impl AsyncRead + Send + Sync + Unpin + 'static) -> Self {
        let limiter = InputPacer::new(BYTES_PER_SECOND, BURST_BYTES);
        Self { pipe: Box::new(pipe), lines: LineSplitter::default(), refused: 0, limiter }
    }

    /// Returns the newest metrics as soon as there are some; none when the worker and its init are gone. A
    /// worker that exceeds the rate limit has to wait. Safe to cancel.
    ///
    /// # Errors
    /// Errors of the system.
    pub async fn next(&mut self) -> io::Result<Option<WorkerMetrics>> {
        let mut buffer = vec![0; METRICS_LINE_BYTES_MAX];
        loop {
            self.limiter.ready().await;
            let length = self.pipe.read(&mut buffer).await?;
            if length == 0 {
                return Ok(None);
            }
            self.limiter.take(u32::try_from(length).unwrap_or(u32::MAX).max(READ_BYTES_MIN));
            let mut newest = None;
            let mut refused = 0;
            self.lines.push(&buffer[..length], |line| match serde_json::from_slice(line) {
                _ if line.is_empty() => refused += 1,
                Ok(metrics) => newest = Some(metrics),
                Err(_) => refused += 1,
            });
            self.refused += refused;
            if newest.is_some() {
                return Ok(newest);
            }
        }
    }

    /// Returns the number of lines that were too long or not metrics.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.refused + self.lines.too_long()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;

    fn split(pieces: &[&[u8]]) -> (Vec<Vec<u8>>, u64) {
        let mut splitter = LineSplitter::default();
        let mut lines = Vec::new();
        for piece in pieces {
            splitter.push(piece, |line| lines.push(line.to_vec()));
        }
        (lines, splitter.too_long())
    }

    #[test]
    fn lines_are_found_and_long_ones_skipped() {
        let long = vec![b'x'; METRICS_LINE_BYTES_MAX];
        let fits = vec![b'y'; METRICS_LINE_BYTES_MAX - 1];
        let text = |bytes: &[u8]| bytes.to_vec();
        for (name, pieces, lines, too_long) in [
            ("two at once", vec![&b"a\nb\n"[..]], vec![text(b"a"), text(b"b")], 0),
            ("in pieces", vec![b"a", b"b", b"\n"], vec![text(b"ab")], 0),
            ("no end yet", vec![b"a"], vec![], 0),
            ("empty", vec![b"\n"], vec![text(b"")], 0),
            ("longest", vec![&fits, b"\n"], vec![fits.clone()], 0),
            ("too long, then good", vec![&long, &long, b"\nz\n"], vec![text(b"z")], 1),
        ] {
            assert_eq!(split(&pieces), (lines, too_long), "{name}");
        }
    }

    proptest! {
        #[test]
        fn where_reads_end_does_not_matter(
            bytes in proptest::collection::vec(prop_oneof![Just(b'\n'), any::<u8>()], 0..200),
            at in 0usize..200,
        ) {
            let at = at.min(bytes.len());
            prop_assert_eq!(split(&[&bytes]), split(&[&bytes[..at], &bytes[at..]]));
        }
    }

    /// A worker that never stops writing is read at the agent's pace, independent of the content.
    #[tokio::test(start_paused = true)]
    async fn a_flood_is_left_in_the_pipe() {
        for chunk in [&b"\n"[..], b"x", &[b'\n'; 8192], b"{}\n"] {
            let (reader, mut writer) = tokio::io::duplex(1024);
            let mut metrics = MetricsReader::of(reader);
            let written = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
            let counted = written.clone();
            let flood = tokio::spawn(async move {
                while tokio::io::AsyncWriteExt::write_all(&mut writer, chunk).await.is_ok() {
                    counted.fetch_add(chunk.len() as u64, std::sync::atomic::Ordering::Relaxed);
                    tokio::task::yield_now().await;
                }
            });
            let minute = std::time::Duration::from_secs(60);
            assert!(tokio::time::timeout(minute, metrics.next()).await.is_err(), "it never says anything");
            let written = written.load(std::sync::atomic::Ordering::Relaxed);
            let most = u64::from(BURST_BYTES + 60 * BYTES_PER_SECOND) + 2 * 8192;
            assert!(written <= most, "{written} of chunks of {} bytes", chunk.len());
            assert!(written >= 60, "it is read: {written}");
            flood.abort();
        }
    }

    #[tokio::test]
    async fn garbage_is_counted_and_the_newest_metrics_win() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("metrics");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).expect("mkfifo");
        let mut reader = MetricsReader::open(&path).expect("open");
        let mut writer = std::fs::OpenOptions::new().write(true).open(&path).expect("open");
        let metrics = |total| WorkerMetrics { requests_total: total, ..WorkerMetrics::default() };
        let line = |total| serde_json::to_string(&metrics(total)).expect("json") + "\n";
        let text = format!("nonsense\n{{\"rm\": \"-rf\"}}\n{}{}\n", line(1), line(2));
        writer.write_all(text.as_bytes()).expect("write");
        assert_eq!(reader.next().await.expect("read"), Some(metrics(2)));
        assert_eq!(reader.refused(), 3, "nonsense, an unknown field, an empty line");
        drop(writer);
        assert_eq!(reader.next().await.expect("read"), None);
    }
}
