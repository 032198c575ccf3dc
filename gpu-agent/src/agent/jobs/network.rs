//! Network of a slot: the addresses of the ranks of its gang.

use crate::agent::core::Refusal;
use human_chain::{JobGrant, rank_host};
use protocol::error_code;
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

/// Returns the network of a slot that has all ranks of its gang: they share a sandbox, and its loopback.
///
/// # Errors
/// For a gang of several slots: this release has no network between them.
pub(super) fn network_of(grant: &JobGrant) -> Result<SlotNetwork, Refusal> {
    let (ranks, here) = (grant.manifest.ranks, grant.ranks.len());
    if u32::try_from(here) != Ok(ranks) {
        let message = format!("the slot has {here} of {ranks} ranks, and no network to the others");
        return Err(Refusal::new(error_code::GANG_NETWORK_UNAVAILABLE, message));
    }
    let host = |rank| (IpAddr::V4(Ipv4Addr::LOCALHOST), rank_host(rank));
    Ok(SlotNetwork { hosts: (0..ranks).map(host).collect(), device: None })
}
