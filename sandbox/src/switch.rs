//! Switch of IP packets between the ranks of gangs. It is pure: packets and configuration go in, decisions
//! come out. A shell reads the packets from TUN devices and from other nodes, and writes them where the
//! switch says.
//!
//! A port belongs to one attempt of one submission and owns some addresses: those of a sandbox's device, or
//! those of the ranks on another node. A packet passes if its source is an address of the port that it came
//! from, and its destination an address of another port of the same job and attempt. Everything else is
//! dropped and counted: other jobs, another submission of the same job, an earlier attempt, the host, the
//! metadata service, broadcasts.

use protocol::JobId;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Maximum number of addresses of one port: the ranks of a gang on one node or, for a link, those on another.
pub const PORT_ADDRESSES_MAX: usize = 64;
/// Length of an IPv4 header without options, in bytes.
const V4_HEADER_BYTES: usize = 20;
/// Length of an IPv6 header, in bytes.
const V6_HEADER_BYTES: usize = 40;

/// One attempt of one submission. Ranks of different attempts never reach each other, and neither do those of
/// two submissions of one approved job: the id is the digest of the submission.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct GangId {
    /// Submission that the ranks run.
    pub job: JobId,
    /// Number of the attempt.
    pub attempt: u32,
}

/// Number of a port, chosen by the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct SwitchPort(pub u32);

/// Kind of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PortKind {
    /// The device of a sandbox on this node.
    Device,
    /// The way to another node. A packet from one link goes to a device, never to another link: a node is no
    /// router.
    Link,
}

/// Reason to drop a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum PacketDrop {
    /// The port is not attached (any more).
    UnknownPort,
    /// No whole IPv4 or IPv6 packet.
    Malformed,
    /// An IPv4 packet with options, which could name a route.
    Options,
    /// The source is not an address of the port.
    ForgedSource,
    /// The destination is no other rank of the same job and attempt.
    NoSuchRank,
}

impl PacketDrop {
    /// Returns a label for metrics.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::UnknownPort => "unknown-port",
            Self::Malformed => "malformed",
            Self::Options => "options",
            Self::ForgedSource => "forged-source",
            Self::NoSuchRank => "no-such-rank",
        }
    }
}

/// Reason why a port cannot be attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AttachRefusal {
    #[error("the port is attached already")]
    PortTaken,
    #[error("{0} belongs to another port of the gang")]
    AddressTaken(IpAddr),
    #[error("a port has 1 to {max} addresses", max = PORT_ADDRESSES_MAX)]
    AddressCount,
}

/// Numbers of packets that a port sent.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PortCounters {
    /// Packets that passed.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Packets that were dropped.
    pub dropped: BTreeMap<PacketDrop, u64>,
}

#[derive(Debug)]
struct AttachedPort {
    gang: GangId,
    kind: PortKind,
    addresses: BTreeSet<IpAddr>,
    counters: PortCounters,
}

/// Switch of one node.
#[derive(Debug, Default)]
pub struct PacketSwitch {
    ports: BTreeMap<SwitchPort, AttachedPort>,
    /// Port of each address of each gang.
    owners: BTreeMap<GangId, BTreeMap<IpAddr, SwitchPort>>,
    unknown: u64,
}

impl PacketSwitch {
    /// Attaches a port to a gang.
    ///
    /// # Errors
    /// See [`AttachRefusal`]; nothing has changed then.
    pub fn attach(
        &mut self,
        port: SwitchPort,
        kind: PortKind,
        gang: GangId,
        addresses: &[IpAddr],
    ) -> Result<(), AttachRefusal> {
        if self.ports.contains_key(&port) {
            return Err(AttachRefusal::PortTaken);
        }
        if addresses.is_empty() || addresses.len() > PORT_ADDRESSES_MAX {
            return Err(AttachRefusal::AddressCount);
        }
        let known = self.owners.get(&gang);
        let taken = |address: &&IpAddr| known.is_some_and(|owners| owners.contains_key(*address));
        if let Some(address) = addresses.iter().find(taken) {
            return Err(AttachRefusal::AddressTaken(*address));
        }
        let owners = self.owners.entry(gang).or_default();
        owners.extend(addresses.iter().map(|address| (*address, port)));
        let addresses = addresses.iter().copied().collect();
        let counters = PortCounters::default();
        self.ports.insert(port, AttachedPort { gang, kind, addresses, counters });
        debug_assert!(self.is_consistent());
        Ok(())
    }

    /// Detaches a port and returns its counters; none if it was not attached.
    pub fn detach(&mut self, port: SwitchPort) -> Option<PortCounters> {
        let attached = self.ports.remove(&port)?;
        if let Some(owners) = self.owners.get_mut(&attached.gang) {
            owners.retain(|_, owner| *owner != port);
            if owners.is_empty() {
                self.owners.remove(&attached.gang);
            }
        }
        debug_assert!(self.is_consistent());
        Some(attached.counters)
    }

    /// Decides on a packet that came from a port: the port to write it to, or the reason to drop it.
    ///
    /// # Errors
    /// The reason of the drop, which is counted.
    pub fn forward(&mut self, from: SwitchPort, packet: &[u8]) -> Result<SwitchPort, PacketDrop> {
        let decision = self.decide(from, packet);
        let Some(attached) = self.ports.get_mut(&from) else {
            self.unknown += 1;
            return decision;
        };
        match decision {
            Ok(_) => {
                attached.counters.packets += 1;
                attached.counters.bytes += packet.len() as u64;
            }
            Err(reason) => *attached.counters.dropped.entry(reason).or_default() += 1,
        }
        decision
    }

    /// Returns the counters of a port; none if it is not attached.
    #[must_use]
    pub fn counters(&self, port: SwitchPort) -> Option<&PortCounters> {
        self.ports.get(&port).map(|attached| &attached.counters)
    }

    /// Returns the number of packets of ports that were not attached.
    #[must_use]
    pub fn dropped_of_unknown_ports(&self) -> u64 {
        self.unknown
    }

    fn decide(&self, from: SwitchPort, packet: &[u8]) -> Result<SwitchPort, PacketDrop> {
        let sender = self.ports.get(&from).ok_or(PacketDrop::UnknownPort)?;
        let (source, destination) = addresses_of(packet)?;
        if !sender.addresses.contains(&source) {
            return Err(PacketDrop::ForgedSource);
        }
        let to = self.owners.get(&sender.gang).and_then(|owners| owners.get(&destination));
        let to = *to.ok_or(PacketDrop::NoSuchRank)?;
        let receiver = self.ports.get(&to).ok_or(PacketDrop::NoSuchRank)?;
        debug_assert!(receiver.gang == sender.gang, "a gang's address belongs to a port of the gang");
        let relayed = sender.kind == PortKind::Link && receiver.kind == PortKind::Link;
        // A device does not send what its own kernel delivers.
        if to == from || relayed { Err(PacketDrop::NoSuchRank) } else { Ok(to) }
    }

    /// Returns whether ports and addresses agree: each address has one owner, which lists it.
    fn is_consistent(&self) -> bool {
        let listed: usize = self.ports.values().map(|attached| attached.addresses.len()).sum();
        let owned: usize = self.owners.values().map(BTreeMap::len).sum();
        let agree = self.owners.iter().all(|(gang, owners)| {
            !owners.is_empty()
                && owners.iter().all(|(address, port)| {
                    self.ports
                        .get(port)
                        .is_some_and(|found| found.gang == *gang && found.addresses.contains(address))
                })
        });
        listed == owned && agree
    }
}

/// Returns source and destination of a packet, as a TUN device delivers it: one whole IP packet.
fn addresses_of(packet: &[u8]) -> Result<(IpAddr, IpAddr), PacketDrop> {
    match packet.first().map(|byte| byte >> 4) {
        Some(4) => v4_addresses(packet),
        Some(6) => v6_addresses(packet),
        _ => Err(PacketDrop::Malformed),
    }
}

/// RFC 791, section 3.1.
fn v4_addresses(packet: &[u8]) -> Result<(IpAddr, IpAddr), PacketDrop> {
    let header: &[u8; V4_HEADER_BYTES] = packet.first_chunk().ok_or(PacketDrop::Malformed)?;
    let header_bytes = usize::from(header[0] & 0x0f) * 4;
    let total_bytes = usize::from(u16::from_be_bytes([header[2], header[3]]));
    if header_bytes < V4_HEADER_BYTES || total_bytes != packet.len() || header_bytes > packet.len() {
        return Err(PacketDrop::Malformed);
    }
    if header_bytes > V4_HEADER_BYTES {
        return Err(PacketDrop::Options);
    }
    let address = |at: usize| Ipv4Addr::new(header[at], header[at + 1], header[at + 2], header[at + 3]);
    Ok((address(12).into(), address(16).into()))
}

/// RFC 8200, section 3. A payload length of 0 would be a jumbogram, which no device here carries.
fn v6_addresses(packet: &[u8]) -> Result<(IpAddr, IpAddr), PacketDrop> {
    let header: &[u8; V6_HEADER_BYTES] = packet.first_chunk().ok_or(PacketDrop::Malformed)?;
    let payload_bytes = usize::from(u16::from_be_bytes([header[4], header[5]]));
    if payload_bytes == 0 || payload_bytes + V6_HEADER_BYTES != packet.len() {
        return Err(PacketDrop::Malformed);
    }
    let address = |at: usize| {
        let bytes: [u8; 16] = std::array::from_fn(|offset| header[at + offset]);
        IpAddr::from(Ipv6Addr::from(bytes))
    };
    Ok((address(8), address(24)))
}

#[cfg(test)]
mod tests;
