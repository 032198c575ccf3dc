//! Network of a slot: the addresses of the ranks of its gang.

use crate::agent::core::{GangOrders, slot_address};
use human_chain::rank_host;
use protocol::sandbox::GangDevice;
use std::net::{IpAddr, Ipv4Addr};

/// Network of a slot's sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SlotNetwork {
    /// Address and host name of every rank of the gang.
    pub(super) hosts: Vec<(IpAddr, String)>,
    /// Device by which they reach ranks of other slots; none if there are none.
    pub(super) device: Option<GangDevice>,
}

/// Returns the network of a slot. The ranks of one slot share its device and address. Those of a gang that is
/// in one slot share the loopback of its sandbox, and need no device.
pub(super) fn network_of(gang: &GangOrders) -> SlotNetwork {
    let is_spread = gang.needs_network();
    let hosts = gang.members.slots.iter().flat_map(|slot| {
        let alone = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let address = if is_spread { slot_address(slot.ranks.first) } else { alone };
        let end = slot.ranks.first.saturating_add(slot.ranks.count);
        (slot.ranks.first..end).map(move |rank| (address, rank_host(rank)))
    });
    SlotNetwork { hosts: hosts.collect(), device: is_spread.then(|| gang.device()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::gangs::testing::{Attempt, circle_of};

    fn lines(network: &SlotNetwork) -> Vec<String> {
        network.hosts.iter().map(|(address, name)| format!("{address} {name}")).collect()
    }

    #[test]
    fn ranks_of_a_slot_share_an_address_and_every_rank_has_a_name() {
        let world = circle_of(&[(1, None), (2, Some("10.0.0.2:1"))]);
        let network = network_of(&Attempt::of_two(&world, 1, 2).orders(&world, 1));
        assert_eq!(
            lines(&network),
            ["10.77.0.1 rank-0", "10.77.0.1 rank-1", "10.77.0.3 rank-2", "10.77.0.3 rank-3"]
        );
        let device = network.device.expect("another node has ranks");
        assert_eq!(device.addresses, ["10.77.0.1/16"]);
        let other = network_of(&Attempt::of_two(&world, 1, 2).orders(&world, 2));
        assert_eq!(other.hosts, network.hosts, "a name means the same to every rank");
        assert_eq!(other.device.expect("a device").addresses, ["10.77.0.3/16"]);
    }

    #[test]
    fn a_gang_in_one_slot_needs_no_device() {
        let world = circle_of(&[(1, None)]);
        let network = network_of(&Attempt::of_one(&world, 1).orders(&world, 1));
        let own = ["rank-0", "rank-1", "rank-2", "rank-3"].map(|name| format!("127.0.0.1 {name}"));
        assert_eq!((lines(&network), network.device), (own.to_vec(), None));
    }
}
