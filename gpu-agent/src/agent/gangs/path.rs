//! The path between two nodes of a gang: the one that dials, and the meeting node of two that listen nowhere.
//! It is a pure function of the circle's state, so both nodes come to the same answer.

use crate::agent::core::Refusal;
use human_chain::CircleState;
use overlay::Address;
use protocol::governance::NodeAdmission;
use protocol::{Digest, NodeId, error_code};
use sandbox::GangId;

/// Most nodes at which two others try to meet.
const MEETING_NODES_MAX: usize = 3;

/// Way of a link, as one of its two nodes sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum LinkPath {
    /// This node dials the peer's admitted storage address.
    Dial(Address),
    /// The peer dials this node.
    Answer,
    /// Neither listens: both dial a third node.
    Meet {
        /// Nodes to meet at, in the order of the attempts.
        at: Vec<(NodeId, Address)>,
        /// Whether this node begins the handshake inside.
        dials: bool,
    },
}

/// Returns the way of the link from `own` to `peer` for a gang.
///
/// # Errors
/// A peer that is not admitted, and two nodes that cannot meet.
pub(super) fn link_path(
    circle: &CircleState,
    gang: GangId,
    own: NodeId,
    peer: NodeId,
) -> Result<LinkPath, Refusal> {
    let admitted = |id: NodeId| {
        let unknown = || Refusal::new(error_code::NODE_NOT_ADMITTED, format!("node {id} is not admitted"));
        circle.node_by_id(id).ok_or_else(unknown)
    };
    let (here, there) = (storage_address(admitted(own)?), storage_address(admitted(peer)?));
    let is_lower = own < peer;
    Ok(match (here, there) {
        (Some(_), Some(address)) if is_lower => LinkPath::Dial(address),
        (Some(_), _) => LinkPath::Answer,
        (None, Some(address)) => LinkPath::Dial(address),
        (None, None) => LinkPath::Meet { at: meeting_nodes(circle, gang, own, peer)?, dials: is_lower },
    })
}

/// Returns the nodes at which two others meet. Their order is another for each gang, so that no node carries
/// all of them.
fn meeting_nodes(
    circle: &CircleState,
    gang: GangId,
    own: NodeId,
    peer: NodeId,
) -> Result<Vec<(NodeId, Address)>, Refusal> {
    let others = circle.nodes().filter(|node| node.id != own && node.id != peer);
    let mut nodes: Vec<(NodeId, Address)> =
        others.filter_map(|node| Some((node.id, storage_address(node)?))).collect();
    let turn = |(node, _): &(NodeId, Address)| {
        Digest::of(&[&gang.job.0.0[..], &gang.attempt.to_be_bytes(), &node.0.0].concat())
    };
    nodes.sort_by_key(turn);
    nodes.truncate(MEETING_NODES_MAX);
    if nodes.is_empty() {
        let name = circle.node_by_id(peer).map_or_else(|| peer.to_string(), |node| node.name.to_string());
        let message = format!(
            "this node and `{name}` have no storage address, and no other admitted node has one, at which \
             they could meet"
        );
        return Err(Refusal::new(error_code::GANG_NETWORK_UNAVAILABLE, message));
    }
    Ok(nodes)
}

fn storage_address(node: &NodeAdmission) -> Option<Address> {
    node.storage.as_ref()?.address.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::gangs::testing::{GANG, circle_of, node_key};
    use protocol::JobId;

    #[test]
    fn both_nodes_of_a_link_come_to_the_same_way() {
        let world = circle_of(&[(1, None), (2, Some("10.0.0.2:1")), (3, Some("10.0.0.3:1")), (4, None)]);
        let path = |own, peer| link_path(&world.state, GANG, node_key(own), node_key(peer));
        for (one, other) in [(1, 2), (2, 3), (3, 4), (1, 3)] {
            let (there, back) = (path(one, other).unwrap(), path(other, one).unwrap());
            let dials = |path: &LinkPath| matches!(path, LinkPath::Dial(_));
            let answers = |path: &LinkPath| *path == LinkPath::Answer;
            assert!(
                (dials(&there) && answers(&back)) || (answers(&there) && dials(&back)),
                "{one} and {other}: {there:?}, {back:?}"
            );
        }
        assert_eq!(path(1, 2).unwrap(), LinkPath::Dial("10.0.0.2:1".parse().unwrap()));
        let (LinkPath::Meet { at, dials }, LinkPath::Meet { at: same, dials: answers }) =
            (path(1, 4).unwrap(), path(4, 1).unwrap())
        else {
            panic!("nodes that listen nowhere meet")
        };
        assert_eq!((at.len(), &at, dials), (2, &same, !answers));
        let firsts = (0..32).map(|attempt| {
            let gang = GangId { job: JobId(Digest::of(b"other")), attempt };
            match link_path(&world.state, gang, node_key(1), node_key(4)) {
                Ok(LinkPath::Meet { at, .. }) => at[0].0,
                other => panic!("{other:?}"),
            }
        });
        assert_eq!(firsts.collect::<std::collections::BTreeSet<_>>().len(), 2, "gangs share the nodes");
    }

    #[test]
    fn nodes_that_cannot_meet_are_refused_by_name() {
        let world = circle_of(&[(1, None), (4, None)]);
        let refused = link_path(&world.state, GANG, node_key(1), node_key(4)).unwrap_err();
        assert_eq!(refused.code, error_code::GANG_NETWORK_UNAVAILABLE);
        assert!(refused.message.contains("`node-4`"), "{refused}");
        let unknown = link_path(&world.state, GANG, node_key(1), node_key(9)).unwrap_err();
        assert_eq!(unknown.code, error_code::NODE_NOT_ADMITTED);
    }
}
