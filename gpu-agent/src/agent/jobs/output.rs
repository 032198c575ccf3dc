//! Readers of the output of ranks. A rank that prints faster than its rate has to wait.

use super::rank_log::RankLog;
use crate::agent::logs::cut;
use crate::agent::node::Node;
use sandbox::{InputPacer, RankOutput};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Rate limit of one stream of a rank in bytes: as that of a worker's log.
const BYTES_PER_SECOND: u32 = 1024 * 1024;
/// Burst beyond that: what a pipe holds, several times.
const BURST_BYTES: u32 = 256 * 1024;
/// Size of a read in bytes.
const READ_BYTES: usize = 16 * 1024;
/// Minimum cost of a read, so that single bytes are no cheaper way to keep an agent busy.
const READ_BYTES_MIN: u32 = 512;

/// Starts to read both streams of a rank. A reader ends when every writer of its stream is gone.
pub(super) fn read_rank(readers: &mut JoinSet<()>, node: &Arc<Node>, log: &Arc<RankLog>, output: RankOutput) {
    for stream in [output.output, output.error] {
        readers.spawn(read_stream(node.clone(), log.clone(), stream));
    }
}

/// Keeps lines of a rank in its file and for control, and lets the agent send them at once if a request may
/// carry them now.
pub(super) fn keep_lines(node: &Node, log: &RankLog, lines: Vec<String>) {
    log.write(&lines);
    if node.rank_lines.push(log.key, &log.sequence, lines, Instant::now()) {
        node.news.notify_one();
    }
}

async fn read_stream(node: Arc<Node>, log: Arc<RankLog>, stream: OwnedFd) {
    let mut pipe = match pipe::Receiver::from_owned_fd(stream) {
        Ok(pipe) => pipe,
        Err(error) => {
            tracing::error!(rank = log.key.rank, %error, "the output of a rank cannot be read");
            return;
        }
    };
    let mut pacer = InputPacer::new(BYTES_PER_SECOND, BURST_BYTES);
    let (mut buffer, mut rest) = (vec![0; READ_BYTES], Vec::new());
    loop {
        pacer.ready().await;
        let mut lines = Vec::new();
        let length = pipe.read(&mut buffer).await.unwrap_or(0);
        match buffer.get(..length) {
            Some(bytes) if length > 0 => {
                pacer.take(u32::try_from(length).unwrap_or(u32::MAX).max(READ_BYTES_MIN));
                cut(&mut rest, bytes, &mut lines);
            }
            // The last line may have no end.
            _ => cut(&mut rest, b"\n", &mut lines),
        }
        if !lines.is_empty() {
            keep_lines(&node, &log, lines);
        }
        if length == 0 {
            return;
        }
    }
}
