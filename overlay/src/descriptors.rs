//! Messages with file descriptors between an agent and a process that it started on the same machine.
//!
//! A frame is its length as a little-endian `u32`, then that many bytes of canonical CBOR, on a unix stream
//! socket. Up to [`DESCRIPTORS_MAX`] descriptors travel with its first byte (`SCM_RIGHTS`).
//!
//! Caveats: a frame without descriptors is sent by plain `send`, never `sendmsg`, because a worker's filter
//! denies `sendmsg`. Received descriptors are close-on-exec, and those of a refused frame are closed.

use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, send, sendmsg};
use protocol::canonical::{self, CanonicalError};
use protocol::limits::FRAME_BYTES_MAX;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use tokio::io::Interest;
use tokio::net::UnixStream;

/// Most descriptors of one frame: a connection needs one, the start of a sandbox a few.
pub const DESCRIPTORS_MAX: usize = 4;
/// Most descriptors that the kernel attaches to one read (`SCM_MAX_FD`). Space for all of them means that
/// none is left over, unowned, when a peer sends too many.
const KERNEL_DESCRIPTORS_MAX: usize = 253;
const HEADER_BYTES: usize = 4;

/// The failure to send or receive a frame. After any of these the stream is of no further use.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// Reading or writing failed; the end of the stream inside a frame is `UnexpectedEof`.
    #[error("unix socket")]
    Socket(#[from] io::Error),
    /// The frame's length is above the limit.
    #[error("frame of {bytes} bytes exceeds {FRAME_BYTES_MAX}")]
    TooLong {
        /// Length in bytes.
        bytes: usize,
    },
    /// More descriptors than [`DESCRIPTORS_MAX`].
    #[error("more than {DESCRIPTORS_MAX} descriptors with one frame")]
    TooManyDescriptors,
    /// The bytes are not the canonical form of the expected message.
    #[error("frame is not the expected message")]
    Malformed(#[from] CanonicalError),
}

/// Splits an asynchronous socket into its two directions, for use by two tasks.
#[must_use]
pub fn channel(stream: UnixStream) -> (FrameSender, FrameReceiver) {
    let stream = Arc::new(stream);
    (FrameSender(stream.clone()), FrameReceiver { stream, incoming: Incoming::default() })
}

/// The sending direction. The socket closes when both directions are dropped.
#[derive(Debug)]
pub struct FrameSender(Arc<UnixStream>);

impl FrameSender {
    /// Sends one message with descriptors. Not cancel-safe: a future dropped halfway leaves half a frame.
    ///
    /// # Errors
    /// See [`FrameError`].
    pub async fn send<T: Serialize + ?Sized>(
        &mut self,
        message: &T,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), FrameError> {
        let mut outgoing = Outgoing::new(message, descriptors)?;
        let socket = self.0.as_raw_fd();
        while !outgoing.is_sent() {
            self.0.async_io(Interest::WRITABLE, || outgoing.step(socket)).await?;
        }
        Ok(())
    }
}

/// The receiving direction.
#[derive(Debug)]
pub struct FrameReceiver {
    stream: Arc<UnixStream>,
    incoming: Incoming,
}

impl FrameReceiver {
    /// Receives one message with its descriptors; `None` at the end of the stream. Cancel-safe.
    ///
    /// # Errors
    /// See [`FrameError`].
    pub async fn receive<T: Serialize + DeserializeOwned>(
        &mut self,
    ) -> Result<Option<(T, Vec<OwnedFd>)>, FrameError> {
        let socket = self.stream.as_raw_fd();
        let incoming = &mut self.incoming;
        loop {
            match self.stream.async_io(Interest::READABLE, || incoming.step(socket)).await? {
                FrameProgress::More => incoming.check()?,
                FrameProgress::End => return Ok(None),
                FrameProgress::Complete => return incoming.take().map(Some),
            }
        }
    }
}

/// The same frames on a blocking socket; its own read and write timeouts apply.
pub mod blocking {
    use super::*;
    use std::os::unix::net::UnixStream;

    /// Sends one message with descriptors.
    ///
    /// # Errors
    /// See [`FrameError`].
    pub fn send<T: Serialize + ?Sized>(
        stream: &UnixStream,
        message: &T,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), FrameError> {
        let mut outgoing = Outgoing::new(message, descriptors)?;
        while !outgoing.is_sent() {
            outgoing.step(stream.as_raw_fd())?;
        }
        Ok(())
    }

    /// Receives one message with its descriptors; `None` at the end of the stream.
    ///
    /// # Errors
    /// See [`FrameError`].
    pub fn receive<T: Serialize + DeserializeOwned>(
        stream: &UnixStream,
    ) -> Result<Option<(T, Vec<OwnedFd>)>, FrameError> {
        let mut incoming = Incoming::default();
        loop {
            match incoming.step(stream.as_raw_fd())? {
                FrameProgress::More => incoming.check()?,
                FrameProgress::End => return Ok(None),
                FrameProgress::Complete => return incoming.take().map(Some),
            }
        }
    }
}

/// A frame that is being sent.
struct Outgoing<'a> {
    bytes: Vec<u8>,
    sent: usize,
    descriptors: Vec<RawFd>,
    /// Keeps the descriptors open until they are sent.
    _borrowed: std::marker::PhantomData<BorrowedFd<'a>>,
}

impl<'a> Outgoing<'a> {
    fn new<T: Serialize + ?Sized>(message: &T, descriptors: &[BorrowedFd<'a>]) -> Result<Self, FrameError> {
        let payload = canonical::to_bytes(message);
        if payload.len() > FRAME_BYTES_MAX {
            return Err(FrameError::TooLong { bytes: payload.len() });
        }
        if descriptors.len() > DESCRIPTORS_MAX {
            return Err(FrameError::TooManyDescriptors);
        }
        let mut bytes = Vec::with_capacity(HEADER_BYTES + payload.len());
        bytes.extend_from_slice(&(payload.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&payload);
        let descriptors = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
        Ok(Self { bytes, sent: 0, descriptors, _borrowed: std::marker::PhantomData })
    }

    fn is_sent(&self) -> bool {
        self.sent == self.bytes.len()
    }

    /// Makes one system call.
    fn step(&mut self, socket: RawFd) -> io::Result<()> {
        let rest = &self.bytes[self.sent..];
        let flags = MsgFlags::MSG_NOSIGNAL;
        let sent = if self.descriptors.is_empty() {
            uninterrupted(|| send(socket, rest, flags))?
        } else {
            let rights = [ControlMessage::ScmRights(&self.descriptors)];
            uninterrupted(|| sendmsg::<()>(socket, &[IoSlice::new(rest)], &rights, flags, None))?
        };
        // The descriptors went with the first byte; the rest of a long frame follows without any.
        self.descriptors.clear();
        self.sent += sent;
        Ok(())
    }
}

/// A frame that is being received. Reads never pass the frame's end, so descriptors stay with their frame.
#[derive(Debug, Default)]
struct Incoming {
    header: [u8; HEADER_BYTES],
    payload: Vec<u8>,
    received: usize,
    descriptors: Vec<OwnedFd>,
}

enum FrameProgress {
    More,
    Complete,
    End,
}

impl Incoming {
    /// Makes one system call.
    fn step(&mut self, socket: RawFd) -> io::Result<FrameProgress> {
        let rest = match self.received.checked_sub(HEADER_BYTES) {
            None => &mut self.header[self.received..],
            Some(received) => &mut self.payload[received..],
        };
        let count = receive_some(socket, rest, &mut self.descriptors)?;
        if count == 0 {
            return match self.received {
                0 => Ok(FrameProgress::End),
                _ => Err(io::ErrorKind::UnexpectedEof.into()),
            };
        }
        self.received += count;
        let length = u32::from_le_bytes(self.header) as usize;
        if self.received == HEADER_BYTES {
            self.payload = vec![0; length.min(FRAME_BYTES_MAX)];
        }
        let complete = self.received == HEADER_BYTES + length;
        Ok(if complete && self.received >= HEADER_BYTES {
            FrameProgress::Complete
        } else {
            FrameProgress::More
        })
    }

    fn check(&self) -> Result<(), FrameError> {
        let bytes = u32::from_le_bytes(self.header) as usize;
        if self.received >= HEADER_BYTES && bytes > FRAME_BYTES_MAX {
            return Err(FrameError::TooLong { bytes });
        }
        if self.descriptors.len() > DESCRIPTORS_MAX {
            return Err(FrameError::TooManyDescriptors);
        }
        Ok(())
    }

    fn take<T: Serialize + DeserializeOwned>(&mut self) -> Result<(T, Vec<OwnedFd>), FrameError> {
        let Self { payload, descriptors, .. } = std::mem::take(self);
        if descriptors.len() > DESCRIPTORS_MAX {
            return Err(FrameError::TooManyDescriptors);
        }
        Ok((canonical::from_bytes(&payload, FRAME_BYTES_MAX)?, descriptors))
    }
}

/// Reads some bytes, and takes ownership of every descriptor that came with them.
fn receive_some(socket: RawFd, buffer: &mut [u8], descriptors: &mut Vec<OwnedFd>) -> io::Result<usize> {
    let mut space = cmsg_space!([RawFd; KERNEL_DESCRIPTORS_MAX]);
    let mut parts = [IoSliceMut::new(buffer)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = loop {
        // Not through `uninterrupted`: the message borrows the buffers.
        match recvmsg::<()>(socket, &mut parts, Some(&mut space), flags) {
            Err(Errno::EINTR) => {}
            received => break received?,
        }
    };
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(numbers) = control {
            // SAFETY: the kernel has just made these descriptors for this process; nothing else owns them.
            let owned = numbers.into_iter().map(|number| unsafe { OwnedFd::from_raw_fd(number) });
            descriptors.extend(owned);
        }
    }
    Ok(message.bytes)
}

fn uninterrupted(mut call: impl FnMut() -> nix::Result<usize>) -> nix::Result<usize> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            outcome => return outcome,
        }
    }
}
