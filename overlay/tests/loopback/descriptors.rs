//! Tests of frames and descriptors between local processes.

use crate::common::within_deadline;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use overlay::descriptors::{DESCRIPTORS_MAX, FrameError, blocking, channel};
use protocol::keys::ByteString;
use protocol::limits::FRAME_BYTES_MAX;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

fn open_file(content: &str) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(content.as_bytes()).unwrap();
    std::io::Seek::rewind(&mut file).unwrap();
    file
}

fn content(descriptor: OwnedFd) -> String {
    let mut text = String::new();
    File::from(descriptor).read_to_string(&mut text).unwrap();
    text
}

fn asynchronous(stream: UnixStream) -> tokio::net::UnixStream {
    stream.set_nonblocking(true).unwrap();
    tokio::net::UnixStream::from_std(stream).unwrap()
}

#[tokio::test]
async fn descriptors_arrive_with_their_own_frame_and_do_not_leak_into_children() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (mut sender, _) = channel(asynchronous(ours));
    let (_, mut receiver) = channel(asynchronous(theirs));
    let (one, two) = (open_file("one"), open_file("two"));
    // All three are in the socket before the first is read.
    sender.send(&"first", &[one.as_fd()]).await.unwrap();
    sender.send(&"none", &[]).await.unwrap();
    sender.send(&"both", &[two.as_fd(), one.as_fd()]).await.unwrap();
    drop(sender);

    let mut seen = Vec::new();
    while let Some((message, descriptors)) = within_deadline(receiver.receive::<String>()).await.unwrap() {
        for descriptor in &descriptors {
            let flags = fcntl(descriptor, FcntlArg::F_GETFD).unwrap();
            assert!(FdFlag::from_bits_retain(flags).contains(FdFlag::FD_CLOEXEC));
        }
        let count = descriptors.len();
        seen.push((message, count, descriptors.into_iter().next().map(content)));
    }
    let expected = [("first", 1, Some("one")), ("none", 0, None), ("both", 2, Some("two"))];
    let expected =
        expected.map(|(message, count, text)| (message.to_owned(), count, text.map(str::to_owned)));
    assert_eq!(seen, expected);
}

#[test]
fn a_blocking_sender_and_receiver_speak_the_same() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let file = open_file("weights");
    // Larger than the socket's buffer, so that it is sent in several parts.
    let large = ByteString(vec![3; FRAME_BYTES_MAX - 5]);
    let sender = std::thread::spawn(move || {
        blocking::send(&ours, &large, &[file.as_fd(); DESCRIPTORS_MAX]).unwrap();
        blocking::send(&ours, &7_u32, &[]).unwrap();
    });
    let (message, descriptors) = blocking::receive::<ByteString>(&theirs).unwrap().unwrap();
    assert_eq!(message.0, vec![3; FRAME_BYTES_MAX - 5]);
    assert_eq!(descriptors.len(), DESCRIPTORS_MAX);
    let (number, descriptors) = blocking::receive::<u32>(&theirs).unwrap().unwrap();
    assert_eq!((number, descriptors.len()), (7, 0));
    assert!(blocking::receive::<u32>(&theirs).unwrap().is_none(), "the end of the stream");
    sender.join().unwrap();
}

#[test]
fn frames_above_the_limits_are_not_sent() {
    let (ours, _theirs) = UnixStream::pair().unwrap();
    let large = ByteString(vec![3; FRAME_BYTES_MAX]);
    assert!(matches!(blocking::send(&ours, &large, &[]), Err(FrameError::TooLong { .. })));
    let file = open_file("");
    let many = [file.as_fd(); DESCRIPTORS_MAX + 1];
    assert!(matches!(blocking::send(&ours, &0, &many), Err(FrameError::TooManyDescriptors)));
}

/// Returns a receiver's result for these raw bytes and the end of the stream after them.
fn received(bytes: &[u8]) -> Result<Option<(u32, Vec<OwnedFd>)>, FrameError> {
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    ours.write_all(bytes).unwrap();
    drop(ours);
    blocking::receive(&theirs)
}

#[test]
fn malformed_frames_are_refused() {
    assert!(matches!(received(&[]), Ok(None)));
    assert!(matches!(received(&[1, 0, 0, 0, 7]), Ok(Some((7, _)))));
    let torn = [&[1][..], &[1, 0, 0], &[1, 0, 0, 0], &[2, 0, 0, 0, 7]];
    for bytes in torn {
        let Err(FrameError::Socket(error)) = received(bytes) else { panic!("{bytes:?}") };
        assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof, "{bytes:?}");
    }
    let malformed = [&[0, 0, 0, 0][..], &[2, 0, 0, 0, 0x18, 7], &[1, 0, 0, 0, 0x61], &[2, 0, 0, 0, 7, 7]];
    for bytes in malformed {
        assert!(matches!(received(bytes), Err(FrameError::Malformed(_))), "{bytes:?}");
    }
    let long = received(&[0xff, 0xff, 0xff, 0xff, 0, 0]);
    assert!(matches!(long, Err(FrameError::TooLong { bytes: 0xffff_ffff })));
}

#[test]
fn descriptors_above_the_limit_are_refused_and_closed() {
    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
    use std::io::IoSlice;
    use std::os::fd::AsRawFd;
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (watched, end) = std::io::pipe().unwrap();
    let numbers = [end.as_raw_fd(); 5];
    let rights = [ControlMessage::ScmRights(&numbers)];
    let frame = [IoSlice::new(&[1, 0, 0, 0, 7])];
    sendmsg::<()>(ours.as_raw_fd(), &frame, &rights, MsgFlags::empty(), None).unwrap();
    drop(end);
    let refused = blocking::receive::<u32>(&theirs);
    assert!(matches!(refused, Err(FrameError::TooManyDescriptors)));
    // The pipe ends only when every copy of its other end is closed.
    let mut rest = Vec::new();
    { watched }.read_to_end(&mut rest).unwrap();
    assert!(rest.is_empty());
}

#[tokio::test]
async fn a_cancelled_receive_loses_nothing() {
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let (_, mut receiver) = channel(asynchronous(theirs));
    for part in [&[3][..], &[0, 0, 0], &[0x19], &[1]] {
        ours.write_all(part).unwrap();
        let early = receiver.receive::<u32>();
        // Polls once: takes the bytes that have arrived, then gives up.
        assert!(futures::FutureExt::now_or_never(early).is_none());
    }
    ours.write_all(&[2]).unwrap();
    let (number, _) = within_deadline(receiver.receive::<u32>()).await.unwrap().unwrap();
    assert_eq!(number, 0x0102);
}
