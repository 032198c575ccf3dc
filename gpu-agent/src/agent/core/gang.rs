//! The orders of a whole gang, as a node verified them with its own: which node holds which ranks.

use human_chain::GangMembers;
use protocol::job::SignedJobOrder;
use protocol::sandbox::GangDevice;
use protocol::{NodeId, gang::GANG_PACKET_BYTES_MAX};
use std::net::{IpAddr, Ipv4Addr};

/// First two bytes of every address of a gang. Each gang has a network of its own, so all use the same.
const NETWORK: [u8; 2] = [10, 77];
/// Length of the network's prefix in bits.
const PREFIX: u8 = 16;

/// Verified members of a gang, with the orders that are the evidence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GangOrders {
    /// Every slot of the attempt.
    pub members: GangMembers,
    /// Order of this node.
    pub own: SignedJobOrder,
    /// Orders for the other slots.
    pub peers: Vec<SignedJobOrder>,
}

impl GangOrders {
    /// Returns whether ranks of several slots must reach each other.
    #[must_use]
    pub fn needs_network(&self) -> bool {
        self.members.slots.len() > 1
    }

    /// Returns the addresses of the slots that a node holds.
    #[must_use]
    pub fn addresses_of(&self, node: NodeId) -> Vec<IpAddr> {
        let slots = self.members.slots.iter().filter(|slot| slot.node == node);
        slots.map(|slot| slot_address(slot.ranks.first)).collect()
    }

    /// Returns the device of this node's slot.
    #[must_use]
    pub fn device(&self) -> GangDevice {
        let address = slot_address(self.own.order.ranks.first);
        GangDevice { addresses: vec![format!("{address}/{PREFIX}")], mtu: GANG_PACKET_BYTES_MAX as u32 }
    }
}

/// Returns the address of a slot: that of its first rank. The ranks of a slot share a sandbox, its device and
/// so its address; they differ by their ports, as processes of one machine do.
#[must_use]
pub fn slot_address(first_rank: u32) -> IpAddr {
    let [_, _, high, low] = first_rank.saturating_add(1).to_be_bytes();
    debug_assert!(first_rank < u32::from(u16::MAX) - 1, "a gang has fewer ranks than its network addresses");
    Ipv4Addr::new(NETWORK[0], NETWORK[1], high, low).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_follows_from_the_first_rank_of_its_slot() {
        for (rank, address) in
            [(0, "10.77.0.1"), (1, "10.77.0.2"), (254, "10.77.0.255"), (4095, "10.77.16.0")]
        {
            assert_eq!(slot_address(rank).to_string(), address, "rank {rank}");
        }
    }
}
