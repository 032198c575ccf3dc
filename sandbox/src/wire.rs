//! Blocking messages over unix sockets, for processes without a runtime. The launcher's start-up messages
//! with its init are packets with descriptors, one per message. The init later answers with the
//! length-prefixed frames of `overlay::descriptors`.

use super::system::uninterrupted;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use protocol::sandbox::LOCAL_RANKS_MAX;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

/// Maximum number of descriptors in one message: two outputs of each rank and the gang device. A start passes
/// five for the worker and seven for its init.
const DESCRIPTORS_MAX: usize = 2 * LOCAL_RANKS_MAX + 1;
const _: () = assert!(DESCRIPTORS_MAX >= 12, "a start passes twelve");

/// Sends one packet with copies of some descriptors.
pub(crate) fn send(socket: BorrowedFd<'_>, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let numbers: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&numbers)];
    let control = if numbers.is_empty() { &rights[..0] } else { &rights[..] };
    let parts = [IoSlice::new(bytes)];
    let sent =
        uninterrupted(|| sendmsg::<()>(socket.as_raw_fd(), &parts, control, MsgFlags::MSG_NOSIGNAL, None))?;
    if sent == bytes.len() {
        Ok(())
    } else {
        Err(io::Error::new(io::ErrorKind::WriteZero, "a packet was cut short"))
    }
}

/// Receives one packet of at most `limit` bytes with its descriptors. A closed peer is `UnexpectedEof`.
pub(crate) fn receive(socket: BorrowedFd<'_>, limit: usize) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut bytes = vec![0; limit];
    let mut control = nix::cmsg_space!([RawFd; DESCRIPTORS_MAX]);
    let (length, flags, descriptors) = uninterrupted(|| {
        let mut buffers = [IoSliceMut::new(&mut bytes)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = recvmsg::<()>(socket.as_raw_fd(), &mut buffers, Some(&mut control), flags)?;
        let mut descriptors = Vec::new();
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(numbers) = control {
                descriptors.extend(numbers.into_iter().map(super::system::own));
            }
        }
        Ok((message.bytes, message.flags, descriptors))
    })?;
    if flags.intersects(MsgFlags::MSG_CTRUNC | MsgFlags::MSG_TRUNC) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a packet is too long"));
    }
    if length == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    bytes.truncate(length);
    Ok((bytes, descriptors))
}

/// Prefixes a frame's bytes with their length.
pub(crate) fn frame(bytes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(bytes.len()).expect("our frames are far below 4 GiB");
    [&length.to_le_bytes()[..], bytes].concat()
}

/// Collects bytes until a frame is complete.
#[derive(Debug, Default)]
pub struct FrameBuffer(Vec<u8>);

impl FrameBuffer {
    /// Appends bytes that were read.
    pub fn push(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// Returns the next complete frame.
    ///
    /// # Errors
    /// `InvalidData` if it claims more than `limit` bytes: the stream is then unusable.
    pub fn next(&mut self, limit: usize) -> io::Result<Option<Vec<u8>>> {
        let Some(prefix) = self.0.first_chunk::<4>() else { return Ok(None) };
        let length = u32::from_le_bytes(*prefix) as usize;
        if length > limit {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a frame is too long"));
        }
        if self.0.len() < 4 + length {
            return Ok(None);
        }
        let rest = self.0.split_off(4 + length);
        let mut frame = std::mem::replace(&mut self.0, rest);
        frame.drain(..4);
        debug_assert_eq!(frame.len(), length, "a frame is as long as it claims");
        Ok(Some(frame))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
    use proptest::prelude::*;
    use std::io::Read;
    use std::os::fd::AsFd;

    fn pair() -> (OwnedFd, OwnedFd) {
        let kind = SockType::SeqPacket;
        socketpair(AddressFamily::Unix, kind, None, SockFlag::SOCK_CLOEXEC).expect("socketpair")
    }

    #[test]
    fn a_packet_carries_bytes_and_descriptors() {
        let (here, there) = pair();
        let (reader, writer) = std::io::pipe().expect("pipe");
        send(here.as_fd(), b"hello", &[writer.as_fd()]).expect("send");
        drop(writer);
        let (bytes, mut descriptors) = receive(there.as_fd(), 64).expect("receive");
        assert_eq!((bytes.as_slice(), descriptors.len()), (&b"hello"[..], 1));
        let copy = std::fs::File::from(descriptors.remove(0));
        std::io::Write::write_all(&mut &copy, b"through").expect("write to the copy");
        drop(copy);
        let mut text = String::new();
        (&reader).read_to_string(&mut text).expect("read");
        assert_eq!(text, "through");
    }

    #[test]
    fn a_packet_arrives_although_signals_interrupt_the_wait_for_it() {
        use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
        use std::os::unix::thread::JoinHandleExt;
        use std::sync::atomic::{AtomicU32, Ordering};
        static INTERRUPTED: AtomicU32 = AtomicU32::new(0);
        extern "C" fn count(_: libc::c_int) {
            INTERRUPTED.fetch_add(1, Ordering::Relaxed);
        }
        let action = SigAction::new(SigHandler::Handler(count), SaFlags::empty(), SigSet::empty());
        // SAFETY: the handler only adds to an atomic counter.
        unsafe { sigaction(Signal::SIGUSR2, &action) }.expect("install the handler");
        let (here, there) = pair();
        let reader = std::thread::spawn(move || receive(there.as_fd(), 64));
        while INTERRUPTED.load(Ordering::Relaxed) < 200 && !reader.is_finished() {
            // SAFETY: the thread is joined below, so its handle is valid.
            let sent = unsafe { libc::pthread_kill(reader.as_pthread_t(), libc::SIGUSR2) };
            assert_eq!(sent, 0);
            std::thread::yield_now();
        }
        send(here.as_fd(), b"spec", &[]).expect("send");
        let (bytes, _) = reader.join().expect("the reader").expect("the packet");
        assert_eq!(bytes, b"spec");
    }

    #[test]
    fn a_long_packet_and_a_closed_peer_are_errors() {
        let (here, there) = pair();
        send(here.as_fd(), &[7; 65], &[]).expect("send");
        let kind = receive(there.as_fd(), 64).expect_err("too long").kind();
        assert_eq!(kind, io::ErrorKind::InvalidData);
        drop(here);
        let kind = receive(there.as_fd(), 64).expect_err("closed").kind();
        assert_eq!(kind, io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn frames_are_found_however_the_bytes_arrive() {
        let stream: Vec<u8> = [frame(b"one"), frame(b""), frame(b"three")].concat();
        for step in 1..=stream.len() {
            let mut buffer = FrameBuffer::default();
            let mut found = Vec::new();
            for piece in stream.chunks(step) {
                buffer.push(piece);
                while let Some(frame) = buffer.next(5).expect("short frames") {
                    found.push(frame);
                }
            }
            assert_eq!(found, [&b"one"[..], b"", b"three"], "step {step}");
        }
    }

    proptest! {
        #[test]
        fn frames_come_out_as_they_went_in(
            frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..8),
            pieces in prop::collection::vec(1_usize..60, 1..40),
        ) {
            let stream: Vec<u8> = frames.iter().flat_map(|bytes| frame(bytes)).collect();
            let (mut buffer, mut rest, mut found) = (FrameBuffer::default(), &stream[..], Vec::new());
            for length in pieces.iter().cycle() {
                let (piece, later) = rest.split_at((*length).min(rest.len()));
                buffer.push(piece);
                while let Some(frame) = buffer.next(40).expect("none is longer") {
                    found.push(frame);
                }
                rest = later;
                if rest.is_empty() {
                    break;
                }
            }
            prop_assert_eq!(found, frames);
            prop_assert_eq!(buffer.next(40).expect("nothing is left"), None);
        }

        #[test]
        fn no_frame_is_longer_than_its_limit(
            bytes in prop::collection::vec(any::<u8>(), 0..64),
            limit in 0_usize..64,
        ) {
            let mut buffer = FrameBuffer::default();
            buffer.push(&bytes);
            let mut taken = 0;
            while let Ok(Some(frame)) = buffer.next(limit) {
                prop_assert!(frame.len() <= limit);
                taken += 4 + frame.len();
            }
            prop_assert!(taken <= bytes.len());
        }
    }

    #[test]
    fn a_frame_that_claims_too_much_is_refused_before_it_is_read() {
        let mut buffer = FrameBuffer::default();
        buffer.push(&6u32.to_le_bytes());
        assert!(buffer.next(5).is_err());
    }
}
