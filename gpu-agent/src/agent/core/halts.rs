//! Halts as they bind a node: the slots that must end, and the orders that are refused.

use super::{OrderVerifier, Refusal, SlotKey};
use human_chain::{CircleState, HaltBook, describe_halt};
use protocol::{NodeId, ServiceName, error_code};

/// Returns the refusal of a service's slots on a node that a halt covers. A node that the circle does not
/// admit has no slots to halt.
#[must_use]
pub fn halt_on(
    halts: &HaltBook,
    circle: &CircleState,
    node: NodeId,
    service: &ServiceName,
) -> Option<Refusal> {
    let halt = halts.covering(circle, service, circle.node_by_id(node)?)?;
    debug_assert!(
        circle.member(&halt.member).is_some(),
        "a halt stands while its member belongs to the circle"
    );
    Some(Refusal::new(error_code::HALTED, describe_halt(halt)))
}

impl OrderVerifier<'_> {
    /// Returns the refusal of a service's slots on this node, if a halt covers them.
    pub(super) fn halt_on(&self, service: &ServiceName) -> Option<Refusal> {
        halt_on(self.halts, self.circle, self.facts.id, service)
    }
}

/// Returns the slots among these that must end now, each with the reason. It needs neither control nor a
/// clock.
#[must_use]
pub fn halted_slots<'a>(
    halts: &HaltBook,
    circle: &CircleState,
    node: NodeId,
    slots: impl IntoIterator<Item = &'a SlotKey>,
) -> Vec<(SlotKey, Refusal)> {
    let halted = |key: &SlotKey| Some((key.clone(), halt_on(halts, circle, node, &key.service)?));
    slots.into_iter().filter_map(halted).collect()
}
