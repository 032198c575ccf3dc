//! One link: its state, and the packets of both directions over a stream whose peer has proven its key.

use super::queue::{FrameBatch, LENGTH_BYTES, LinkQueue, QueueBudget};
use protocol::NodeId;
use protocol::canonical;
use protocol::gang::GANG_PACKET_BYTES_MAX;
use sandbox::SwitchPort;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::sync::watch;

/// Pause after which a quiet link sends a sign of life: its peer takes a silence of 15 s for its end.
const LIFE_SIGN: Duration = Duration::from_secs(5);
/// Size of the reader's buffer in bytes: a few of the largest packets.
const READ_BYTES: usize = 256 * 1024;
/// Packets that are delivered before other tasks get their turn.
pub(super) const BURST: u32 = 64;

/// End of a stream of a link.
#[derive(Debug, thiserror::Error)]
pub(super) enum LinkEnd {
    #[error("a newer stream took its place")]
    Replaced,
    #[error("the attempt has ended on this node")]
    Left,
    #[error("the peer is no longer admitted")]
    NotAdmitted,
    #[error("the peer sent a frame of {0} bytes; accepted: at most {GANG_PACKET_BYTES_MAX}")]
    Oversized(usize),
    #[error("the connection was lost")]
    Lost(#[source] io::Error),
}

/// State of a link.
#[derive(Debug, Default)]
pub(super) struct GangLinkStatus {
    /// Number of the newest stream.
    turn: u64,
    pub(super) is_up: bool,
    /// Whether the attempt has ended on this node.
    has_left: bool,
    /// Cause of the last failure; empty if there was none.
    pub(super) trouble: String,
}

/// Link to one other node of a gang.
#[derive(Debug)]
pub(super) struct GangLink {
    pub(super) peer: NodeId,
    pub(super) port: SwitchPort,
    pub(super) queue: LinkQueue,
    status: watch::Sender<GangLinkStatus>,
}

impl GangLink {
    pub(super) fn new(peer: NodeId, port: SwitchPort, budget: Arc<QueueBudget>) -> Self {
        Self { peer, port, queue: LinkQueue::new(budget), status: watch::Sender::default() }
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<GangLinkStatus> {
        self.status.subscribe()
    }

    /// Records why the link is not up.
    pub(super) fn note(&self, trouble: String) {
        self.status.send_modify(|status| status.trouble = trouble);
    }

    /// Ends the link permanently.
    pub(super) fn leave(&self) {
        self.status.send_modify(|status| status.has_left = true);
        self.queue.close();
    }

    /// Carries packets over a stream until it ends; `deliver` gets those of the peer. A newer stream takes
    /// the place of an older one, whose end the peer may have seen first.
    pub(super) async fn carry<S>(
        &self,
        stream: S,
        deliver: impl FnMut(&[u8]),
        removed: impl Future<Output = ()>,
    ) -> LinkEnd
    where
        S: AsyncRead + AsyncWrite,
    {
        let mut turn = 0;
        self.status.send_modify(|status| {
            status.turn += 1;
            turn = status.turn;
            status.is_up = !status.has_left;
        });
        self.queue.open();
        let mut status = self.subscribe();
        let (reader, writer) = tokio::io::split(stream);
        let end = tokio::select! {
            biased;
            Ok(status) = status.wait_for(|status| status.turn != turn || status.has_left) => {
                if status.has_left { LinkEnd::Left } else { LinkEnd::Replaced }
            }
            () = removed => LinkEnd::NotAdmitted,
            end = receive(reader, deliver) => end,
            error = send(writer, &self.queue) => LinkEnd::Lost(error),
        };
        self.status.send_if_modified(|status| {
            let is_newest = status.turn == turn;
            if is_newest {
                (status.is_up, status.trouble) = (false, protocol::error_chain(&end));
                self.queue.close();
            }
            is_newest
        });
        end
    }
}

async fn receive(reader: impl AsyncRead + Unpin, mut deliver: impl FnMut(&[u8])) -> LinkEnd {
    let mut reader = BufReader::with_capacity(READ_BYTES, reader);
    let mut packet = vec![0; GANG_PACKET_BYTES_MAX];
    let mut delivered = 0_u32;
    loop {
        let length = match reader.read_u16().await {
            Ok(0) => continue,
            Ok(length) => usize::from(length),
            Err(error) => return LinkEnd::Lost(error),
        };
        let Some(packet) = packet.get_mut(..length) else { return LinkEnd::Oversized(length) };
        if let Err(error) = reader.read_exact(packet).await {
            return LinkEnd::Lost(error);
        }
        deliver(packet);
        delivered = delivered.wrapping_add(1);
        if delivered.is_multiple_of(BURST) {
            tokio::task::yield_now().await;
        }
    }
}

async fn send(mut writer: impl AsyncWrite + Unpin, queue: &LinkQueue) -> io::Error {
    let sent = async {
        loop {
            match tokio::time::timeout(LIFE_SIGN, queue.take()).await {
                Ok(FrameBatch { ref bytes, .. }) => writer.write_all(bytes).await?,
                Err(_) => writer.write_all(&[0; LENGTH_BYTES]).await?,
            }
            writer.flush().await?;
        }
    };
    let sent: io::Result<std::convert::Infallible> = sent.await;
    match sent {
        Ok(never) => match never {},
        Err(error) => error,
    }
}

/// Writes a message behind its length.
pub(super) async fn write_message(
    stream: &mut (impl AsyncWrite + Unpin),
    message: &impl Serialize,
) -> io::Result<()> {
    let bytes = canonical::to_bytes(message);
    let length = u32::try_from(bytes.len()).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
    stream.write_all(&length.to_be_bytes()).await?;
    stream.write_all(&bytes).await?;
    stream.flush().await
}

/// Reads a message of at most `bytes_max` bytes.
pub(super) async fn read_message<T: Serialize + DeserializeOwned>(
    stream: &mut (impl AsyncRead + Unpin),
    bytes_max: usize,
) -> io::Result<T> {
    let length = stream.read_u32().await? as usize;
    if length > bytes_max {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a message of {length} bytes")));
    }
    // Grown as the bytes arrive: a peer that sends a length alone takes no memory.
    let mut bytes = Vec::new();
    stream.take(length as u64).read_to_end(&mut bytes).await?;
    if bytes.len() != length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    canonical::from_bytes(&bytes, bytes_max)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}
