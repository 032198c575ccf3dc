//! TUN device of a gang as the agent holds it: whole packets in, whole packets out.

use crate::system;
use std::io;
use std::os::fd::OwnedFd;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Device of one sandbox. Each read is a packet that a rank sent, each write one that its ranks get.
#[derive(Debug)]
pub struct PacketDevice(AsyncFd<OwnedFd>);

impl PacketDevice {
    /// Takes a descriptor that does not block: [`crate::ProcessDescriptors::gang_device`], or a socket that
    /// keeps the bounds of messages.
    ///
    /// # Errors
    /// The error of the runtime's reactor.
    pub fn new(device: OwnedFd) -> io::Result<Self> {
        system::watch_readable(device).map(Self)
    }

    /// Waits for the next packet, and returns its length in bytes. A packet that is longer than the buffer is
    /// cut, so that no reader takes it for a whole one.
    ///
    /// # Errors
    /// The error of the device: its sandbox has ended.
    pub async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = |device: &OwnedFd| nix::unistd::read(device, buffer).map_err(io::Error::from);
        self.0.async_io(Interest::READABLE, read).await
    }

    /// Writes a packet without waiting. Returns false if the device did not take it: as in any network, a
    /// full queue loses packets.
    pub fn write(&self, packet: &[u8]) -> bool {
        nix::unistd::write(self.0.get_ref(), packet).is_ok_and(|length| length == packet.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

    fn pair() -> (PacketDevice, PacketDevice) {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let (near, far) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).unwrap();
        (PacketDevice::new(near).unwrap(), PacketDevice::new(far).unwrap())
    }

    #[tokio::test]
    async fn packets_keep_their_bounds() {
        let (near, far) = pair();
        assert!(near.write(b"first") && near.write(b"second"));
        let mut buffer = [0; 8];
        assert_eq!(far.read(&mut buffer).await.unwrap(), 5);
        assert_eq!(&buffer[..5], b"first");
        assert_eq!(far.read(&mut buffer).await.unwrap(), 6);
        assert_eq!(&buffer[..6], b"second");
    }

    #[tokio::test]
    async fn a_device_that_is_full_loses_packets_and_does_not_wait() {
        let (near, _far) = pair();
        let lost = (0..100_000).find(|_| !near.write(&[0; 1024]));
        assert!(lost.is_some(), "a queue is bounded");
    }
}
