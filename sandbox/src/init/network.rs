//! Network of a process sandbox: the loopback device, and a TUN device if its ranks belong to a gang.
//!
//! Packets that ranks send to the device are read by the agent from the device's descriptor, and nowhere
//! else. The namespace has no other device, so this is the only way out of it.

use super::{InStep, StepResult};
use crate::profile::GangAddress;
use crate::system::{self, InterfaceRequest};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use protocol::sandbox::{GANG_DEVICE_NAME, GangDevice};
use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

/// Device by which TUN devices are made.
pub(crate) const TUN_PATH: &str = "/dev/net/tun";
/// Name of the loopback device.
const LOOPBACK: &str = "lo";
/// Bytes of an interface's name in a request, with its final zero.
const NAME_BYTES: usize = 16;

// From <linux/if_tun.h> and <linux/sockios.h>.
const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
const SIOCGIFFLAGS: libc::c_ulong = 0x8913;
const SIOCSIFFLAGS: libc::c_ulong = 0x8914;
const SIOCSIFADDR: libc::c_ulong = 0x8916;
const SIOCSIFNETMASK: libc::c_ulong = 0x891c;
const SIOCSIFMTU: libc::c_ulong = 0x8922;
const SIOCGIFINDEX: libc::c_ulong = 0x8933;
/// `IFF_TUN | IFF_NO_PI`: IP packets without a header of the driver's.
const TUN_FLAGS: u16 = 0x1001;
/// `IFF_UP`.
const UP: u16 = 1;

/// Makes the device of a gang, with its addresses, and brings it up. Must be called with the agent's own user
/// id, which may open the device, and with the capabilities of the new namespace.
pub(super) fn create(device: &GangDevice) -> StepResult<OwnedFd> {
    let tun = File::options().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(TUN_PATH);
    let tun = OwnedFd::from(tun.step(&format!("open {TUN_PATH}"))?);
    let mut request = request(GANG_DEVICE_NAME, &TUN_FLAGS.to_ne_bytes());
    system::interface_ioctl(tun.as_fd(), TUNSETIFF, &mut request).step("make the gang device")?;
    let control = control_socket(AddressFamily::Inet).step("open a socket for the gang device")?;
    ask(&control, SIOCSIFMTU, GANG_DEVICE_NAME, &device.mtu.to_ne_bytes())
        .step("set the gang device's MTU")?;
    for text in &device.addresses {
        let step = format!("give the gang device the address {text}");
        let parsed = GangAddress::parse(text).ok_or("it is no unicast address").step(&step)?;
        let set = match parsed.address {
            IpAddr::V4(address) => set_v4(&control, address, parsed.prefix),
            IpAddr::V6(address) => set_v6(&control, address, parsed.prefix),
        };
        set.step(&step)?;
    }
    bring_up(&control, GANG_DEVICE_NAME).step("bring the gang device up")?;
    Ok(tun)
}

/// Brings the loopback device up, which programs use among themselves.
pub(super) fn bring_up_loopback() -> StepResult<()> {
    let up = control_socket(AddressFamily::Inet).and_then(|control| bring_up(&control, LOOPBACK));
    up.step("bring the loopback device up")
}

fn control_socket(family: AddressFamily) -> io::Result<OwnedFd> {
    Ok(socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?)
}

fn set_v4(control: &OwnedFd, address: Ipv4Addr, prefix: u8) -> io::Result<()> {
    ask(control, SIOCSIFADDR, GANG_DEVICE_NAME, &v4_socket_address(address))?;
    let mask = Ipv4Addr::from(u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0));
    ask(control, SIOCSIFNETMASK, GANG_DEVICE_NAME, &v4_socket_address(mask)).map(drop)
}

fn set_v6(control: &OwnedFd, address: Ipv6Addr, prefix: u8) -> io::Result<()> {
    let answer = ask(control, SIOCGIFINDEX, GANG_DEVICE_NAME, &[])?;
    let index: [u8; 4] = std::array::from_fn(|at| answer.0[NAME_BYTES + at]);
    // A `struct in6_ifreq`: address, prefix length, index.
    let mut request = InterfaceRequest([0; 40]);
    request.0[..16].copy_from_slice(&address.octets());
    request.0[16..20].copy_from_slice(&u32::from(prefix).to_ne_bytes());
    request.0[20..24].copy_from_slice(&index);
    let six = control_socket(AddressFamily::Inet6)?;
    system::interface_ioctl(six.as_fd(), SIOCSIFADDR, &mut request)
}

fn bring_up(control: &OwnedFd, name: &str) -> io::Result<()> {
    let answer = ask(control, SIOCGIFFLAGS, name, &[])?;
    let flags = u16::from_ne_bytes([answer.0[NAME_BYTES], answer.0[NAME_BYTES + 1]]);
    ask(control, SIOCSIFFLAGS, name, &(flags | UP).to_ne_bytes()).map(drop)
}

/// Makes a request about an interface and returns the kernel's answer.
fn ask(control: &OwnedFd, number: libc::c_ulong, name: &str, value: &[u8]) -> io::Result<InterfaceRequest> {
    let mut request = request(name, value);
    system::interface_ioctl(control.as_fd(), number, &mut request)?;
    Ok(request)
}

/// Returns a `struct ifreq`: the name, then the value.
fn request(name: &str, value: &[u8]) -> InterfaceRequest {
    debug_assert!(name.len() < NAME_BYTES, "the names are constants");
    let mut request = InterfaceRequest([0; 40]);
    request.0[..name.len()].copy_from_slice(name.as_bytes());
    request.0[NAME_BYTES..NAME_BYTES + value.len()].copy_from_slice(value);
    request
}

/// Returns a `struct sockaddr_in` without a port.
fn v4_socket_address(address: Ipv4Addr) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
    bytes[4..8].copy_from_slice(&address.octets());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_a_name_and_a_value_as_the_kernel_reads_them() {
        let bytes = request("gang0", &1_500_u32.to_ne_bytes()).0;
        assert_eq!(&bytes[..6], b"gang0\0");
        assert_eq!(bytes[16..20], 1_500_u32.to_ne_bytes());
        assert!(bytes[20..].iter().all(|byte| *byte == 0));
        let address = v4_socket_address(Ipv4Addr::new(10, 77, 0, 1));
        assert_eq!(address[..8], [libc::AF_INET as u8, 0, 0, 0, 10, 77, 0, 1]);
        assert_eq!(size_of::<InterfaceRequest>(), size_of::<libc::ifreq>());
    }
}
