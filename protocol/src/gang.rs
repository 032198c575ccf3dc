//! First messages of a link between two nodes of a gang, and the bounds of what follows.
//!
//! A link is a bare stream of the overlay: its peer has proven the key of a node. It begins with a
//! [`GangHello`] of the dialling node and a [`GangAnswer`], each behind its length as a big-endian `u32`.
//! Packets follow in both directions, each behind its length as a big-endian `u16`; a length of zero is a
//! sign of life. The hello grants nothing: the other node serves the link only by an order of its own that
//! names the dialling node as a peer.

use crate::ids::{CircleId, JobId};
use crate::job::SignedJobOrder;
use crate::refusal::Refusal;
use serde::{Deserialize, Serialize};

/// Version of the messages of a link.
pub const GANG_LINK_VERSION: u32 = 1;
/// Largest hello in bytes: two orders, each with a submission.
pub const GANG_HELLO_BYTES_MAX: usize = 512 * 1024;
/// Largest answer in bytes: a refusal.
pub const GANG_ANSWER_BYTES_MAX: usize = 4096;
/// Largest packet between two nodes of a gang in bytes, and MTU of their devices: below the largest IPv4
/// packet, so that a packet and its length fit into 64 KiB.
pub const GANG_PACKET_BYTES_MAX: usize = 60_000;
/// Most links of a node, for all of its gangs, and most other nodes of one gang.
pub const GANG_LINKS_MAX: usize = 256;

const _: () = assert!(
    GANG_HELLO_BYTES_MAX > 2 * crate::limits::SUBMISSION_BYTES_MAX
        && GANG_PACKET_BYTES_MAX < crate::sandbox::GANG_MTU_MAX as usize,
    "two submissions fit into a hello, and a packet's length into 16 bits"
);

/// First message of a link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GangHello {
    /// Must be [`GANG_LINK_VERSION`].
    pub version: u32,
    /// Circle that the gang belongs to.
    pub circle: CircleId,
    /// Submission that the ranks run.
    pub job: JobId,
    /// Number of the attempt.
    pub attempt: u32,
    /// Orders of the two nodes that are to meet at the answering one; none for a link to the answering node
    /// itself.
    pub meeting: Option<GangMeeting>,
}

/// Evidence for a node that is no part of a gang: two of its nodes, which listen nowhere, are to meet there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GangMeeting {
    /// Order of the dialling node.
    pub own: SignedJobOrder,
    /// Order of the node that it is to meet.
    pub peer: SignedJobOrder,
}

/// Answer to a [`GangHello`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GangAnswer {
    /// Cause for which the stream ends here; none if packets may follow, or the handshake with the node that
    /// was met.
    pub refusal: Option<Refusal>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::canonical::{from_bytes, to_bytes};
    use crate::digest::Digest;
    use crate::error_code::GANG_LINK_REFUSED;

    #[test]
    fn a_hello_and_its_answer_survive_their_encoding() {
        let hello = GangHello {
            version: GANG_LINK_VERSION,
            circle: CircleId(Digest([1; 32])),
            job: JobId(Digest([2; 32])),
            attempt: 3,
            meeting: None,
        };
        assert_eq!(from_bytes(&to_bytes(&hello), GANG_HELLO_BYTES_MAX), Ok(hello));
        for refusal in [None, Some(Refusal::new(GANG_LINK_REFUSED, "no slot of it is held here"))] {
            let answer = GangAnswer { refusal };
            assert_eq!(from_bytes(&to_bytes(&answer), GANG_ANSWER_BYTES_MAX), Ok(answer));
        }
    }
}
