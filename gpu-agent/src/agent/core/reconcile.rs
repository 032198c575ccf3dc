//! Level-triggered reconciliation of the desired with the observed state.
//!
//! Three rules hold regardless of control's requests. Nothing starts without a grant from [`OrderVerifier`].
//! Nothing starts that a halt covers.
//! A slot's next order is not accepted while anything runs under its last one. Two fences of a slot therefore
//! never run here at the same time.

use super::verifier::{check_model, may_be_early};
use super::{GrantedResources, Held, NodeFacts, OrderVerifier, Refusal, SlotKey};
use human_chain::{Approved, SlotGrant};
use protocol::agent::{Assignment, Desired};
use protocol::manifest::OnExpiry;
use protocol::order::SignedOrder;
use protocol::{BootTime, Fence, limits};
use std::cmp::Reverse;
use std::collections::BTreeMap;

/// Time to drain when an approval ended and specifies a drain, and when another order has taken a slot's
/// place, in milliseconds: the same as the scheduler's.
const DRAIN_MS: u64 = 30_000;
/// Margin of the node's own deadline over the scheduler's, which ends a drain first.
const DRAIN_SLACK_MS: u64 = 5_000;

/// A slot in which something runs or is about to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunningSlot {
    /// Fence of the order under which it runs.
    pub fence: Fence,
    /// Time since which it drains and takes no new requests.
    pub draining_since: Option<BootTime>,
    /// True if it drains because control no longer names its order.
    pub gives_way: bool,
}

/// Input of a reconciliation.
#[derive(Debug, Clone, Copy)]
pub struct ReconcileInput<'a> {
    pub verifier: OrderVerifier<'a>,
    /// Boot clock of the node, by which drains end.
    pub boot: BootTime,
    /// Desired state from control.
    pub desired: &'a Desired,
    /// Whether the chain was complete when control reported the desired state. While it is not, an order that
    /// no approval covers yet is deferred rather than refused.
    pub chain_complete: bool,
    /// Refused bundles with the reason, by their certificate's digest.
    pub refused_bundles: &'a BTreeMap<protocol::Digest, Refusal>,
    /// Slots in which something runs.
    pub running: &'a BTreeMap<SlotKey, RunningSlot>,
}

/// An action to carry out. The shell carries out all of them, in the order returned.
#[derive(Debug, PartialEq, Eq)]
pub enum SlotAction {
    /// Persist the order as accepted. The next reconciliation starts it.
    Accept {
        /// Order to persist.
        signed: Box<SignedOrder>,
        /// Proof that the order is granted.
        grant: Box<Approved<SlotGrant>>,
    },
    /// Start the grant of the slot's held order; nothing of the slot runs.
    Start {
        /// Slot to start.
        key: SlotKey,
    },
    /// Let running requests finish; take no new ones.
    Drain {
        /// Slot to drain.
        key: SlotKey,
        /// Explanation for logs and reports.
        reason: String,
    },
    /// Control no longer names the slot's order, and may have given the slot to another node while this one
    /// received nothing: let running requests finish, take no new ones, then end.
    GiveWay {
        /// Slot that gives way.
        key: SlotKey,
        /// Explanation for logs and reports.
        reason: String,
    },
    /// End the slot's worker.
    End {
        /// Slot to end.
        key: SlotKey,
        /// Explanation for logs and reports.
        reason: String,
    },
    /// Nothing runs under the held order and nothing will: report to control that the slot is free.
    Release {
        /// Slot to release.
        key: SlotKey,
        /// Explanation for logs and reports.
        reason: String,
    },
    /// Control no longer names the held order and nothing runs: remove it from the book.
    Forget {
        /// Slot whose order is removed.
        key: SlotKey,
    },
    /// Report to control that the order is refused.
    Refuse {
        /// Slot of the order.
        key: SlotKey,
        /// Fence of the order.
        fence: Fence,
        /// Reason with its code.
        refusal: Refusal,
    },
}

/// An order and its assignment.
struct Named<'a> {
    signed: &'a SignedOrder,
    assignment: &'a Assignment,
}

/// Returns the actions that reconcile the node with the desired state.
#[must_use]
pub fn reconcile(input: &ReconcileInput<'_>) -> Vec<SlotAction> {
    debug_assert_eq!(input.verifier.book.check_invariants(), Ok(()), "the order book");
    let named = named(input.desired);
    let mut room = Room::new(input, &named);
    let mut actions = Vec::new();
    // A running slot that a halt covers is killed beside this plan, which leaves it alone until it has ended.
    let halted =
        |key: &SlotKey| input.running.contains_key(key) && input.verifier.halt_on(&key.service).is_some();
    for (key, orders) in named.iter().filter(|(key, _)| !halted(key)) {
        let settled = settle(input, key, orders, &room);
        room.count(key, &settled);
        actions.extend(settled);
    }
    let unnamed = input.running.iter().filter(|(key, _)| !named.contains_key(key) && !halted(key));
    for (key, running) in unnamed {
        actions.extend(give_way(input, key, running, "control names it no more"));
    }
    for (key, _) in input.verifier.book.all_held() {
        if !named.contains_key(key) && !input.running.contains_key(key) {
            actions.push(SlotAction::Forget { key: key.clone() });
        }
    }
    actions
}

/// Groups the orders by slot, highest fence first.
fn named(desired: &Desired) -> BTreeMap<SlotKey, Vec<Named<'_>>> {
    let mut all: BTreeMap<SlotKey, Vec<Named<'_>>> = BTreeMap::new();
    for assignment in &desired.assignments {
        for signed in assignment.orders.iter().take(limits::SLOTS_MAX as usize) {
            all.entry(SlotKey::of(&signed.order)).or_default().push(Named { signed, assignment });
        }
    }
    for orders in all.values_mut() {
        orders.sort_by_key(|named| Reverse(named.signed.order.fence));
    }
    all
}

/// Orders that hold resources while one reconciliation accepts further ones.
struct Room<'a> {
    node: &'a NodeFacts,
    /// Orders that are not released, and whether they stay: control still names them and does not ask them to
    /// finish. The others will be free soon.
    held: BTreeMap<&'a SlotKey, (&'a SlotGrant, bool)>,
    /// Orders accepted by this reconciliation.
    accepted: BTreeMap<SlotKey, SlotGrant>,
}

impl<'a> Room<'a> {
    fn new(input: &ReconcileInput<'a>, named: &BTreeMap<SlotKey, Vec<Named<'_>>>) -> Self {
        let book = input.verifier.book;
        let stays = |key: &SlotKey| {
            let Some(held) = book.held(key) else { return false };
            let is_held = |named: &&Named<'_>| named.signed.order == held.order.signed.order;
            let Some(named) = named.get(key).and_then(|orders| orders.iter().find(is_held)) else {
                return false;
            };
            let finishes = named.assignment.draining.contains(&key.slot);
            !finishes && required_end(input, held, input.running.get(key)).is_none()
        };
        let held: BTreeMap<_, _> =
            book.all_granted().map(|(key, grant)| (key, (grant, stays(key)))).collect();
        let is_here = |(grant, _): &(&SlotGrant, bool)| grant.node == input.verifier.facts.id;
        debug_assert!(held.values().all(is_here), "each held order is for this node");
        Self { node: input.verifier.facts, held, accepted: BTreeMap::new() }
    }

    /// Checks that a grant fits beside the orders of other slots; it replaces that of its own.
    fn check(&self, key: &SlotKey, grant: &SlotGrant) -> RoomDecision {
        debug_assert!(!self.accepted.contains_key(key), "one order of a slot is accepted at a time");
        let others = |staying: bool| {
            let held = self.held.iter().filter(move |(_, (_, stays))| *stays || !staying);
            let held = held.filter(|(other, _)| !self.accepted.contains_key(**other) && **other != key);
            let accepted = self.accepted.iter().filter(|(other, _)| *other != key);
            let grants = held.map(|(_, (grant, _))| *grant).chain(accepted.map(|(_, grant)| grant));
            GrantedResources::of(grants, &self.node.weights)
        };
        if others(false).check_room(grant, self.node).is_ok() {
            return RoomDecision::Now;
        }
        match others(true).check_room(grant, self.node) {
            Ok(()) => RoomDecision::Soon,
            Err(refusal) => RoomDecision::Never(refusal),
        }
    }

    /// Counts the orders that these actions accept.
    fn count(&mut self, key: &SlotKey, actions: &[SlotAction]) {
        for action in actions {
            if let SlotAction::Accept { grant, .. } = action {
                debug_assert_eq!(grant.get().slot, key.slot, "the grant is of this slot");
                self.accepted.insert(key.clone(), grant.get().clone());
            }
        }
    }
}

/// Whether a grant fits beside the other orders of the node.
enum RoomDecision {
    Now,
    /// Once slots have ended that control no longer wants.
    Soon,
    Never(Refusal),
}

/// Returns the action for a slot. The order with the highest fence that is held or granted counts. A refused
/// order changes nothing, so it cannot end a worker that runs under a good order of the same slot.
fn settle(
    input: &ReconcileInput<'_>,
    key: &SlotKey,
    orders: &[Named<'_>],
    room: &Room<'_>,
) -> Vec<SlotAction> {
    debug_assert!(orders.iter().all(|named| SlotKey::of(&named.signed.order) == *key), "orders of one slot");
    debug_assert!(orders.is_sorted_by_key(|named| Reverse(named.signed.order.fence)), "highest fence first");
    let mut refused = None;
    let mut early = false;
    for named in orders {
        let held = input.verifier.book.held(key).filter(|held| held.order.signed.order == named.signed.order);
        let counts = match held {
            Some(held) => keep(input, key, held, named),
            None => match verify(input, key, named, room) {
                OrderDecision::Granted(grant) => take(input, key, named, grant),
                OrderDecision::Early => {
                    early = true;
                    continue;
                }
                OrderDecision::Refused(refusal) => {
                    let fence = named.signed.order.fence;
                    refused.get_or_insert(SlotAction::Refuse { key: key.clone(), fence, refusal });
                    continue;
                }
            },
        };
        return counts.into_iter().chain(refused).collect();
    }
    let action = input.running.get(key).and_then(|running| match early {
        true => end_despite_early(input, key, running),
        false => give_way(input, key, running, "control names it no more"),
    });
    action.into_iter().chain(refused).collect()
}

/// Returns the action for a running slot of which control names only orders that are early. They may turn out
/// to take its place, so it runs on, unless the circle itself has ended it.
fn end_despite_early(input: &ReconcileInput<'_>, key: &SlotKey, running: &RunningSlot) -> Option<SlotAction> {
    debug_assert_eq!(input.running.get(key), Some(running), "the slot runs");
    let held = input.verifier.book.held(key).filter(|held| held.order.signed.order.fence == running.fence)?;
    let RequiredEnd { reason, at_once } = required_end(input, held, Some(running))?;
    let key = key.clone();
    match running.draining_since {
        _ if at_once => Some(SlotAction::End { key, reason }),
        None => Some(SlotAction::Drain { key, reason }),
        Some(_) => None,
    }
}

/// Returns the action for an order that is held.
fn keep(input: &ReconcileInput<'_>, key: &SlotKey, held: &Held, named: &Named<'_>) -> Option<SlotAction> {
    debug_assert_eq!(held.order.signed.order, named.signed.order, "the order that control names is held");
    if held.order.released {
        return None;
    }
    let key = key.clone();
    let running = input.running.get(&key);
    let draining = named.assignment.draining.contains(&key.slot);
    let going = required_end(input, held, running).or_else(|| {
        draining.then(|| RequiredEnd { reason: "control asks it to finish".into(), at_once: false })
    });
    match (running, going) {
        (Some(running), _) if running.fence != held.order.signed.order.fence => {
            Some(SlotAction::End { key, reason: "it runs under another order than the one held".into() })
        }
        (Some(_), Some(RequiredEnd { reason, at_once: true })) => Some(SlotAction::End { key, reason }),
        (Some(running), Some(RequiredEnd { reason, .. })) => {
            running.draining_since.is_none().then_some(SlotAction::Drain { key, reason })
        }
        (Some(_), None) => None,
        (None, Some(RequiredEnd { reason, .. })) => Some(SlotAction::Release { key, reason }),
        (None, None) => Some(SlotAction::Start { key }),
    }
}

/// Result of verifying an order that is not held.
enum OrderDecision {
    Granted(Box<Approved<SlotGrant>>),
    /// The chain is incomplete, and its missing part may cover the order; or there is no room for it yet.
    Early,
    Refused(Refusal),
}

fn verify(
    input: &ReconcileInput<'_>,
    key: &SlotKey,
    Named { signed, assignment }: &Named<'_>,
    room: &Room<'_>,
) -> OrderDecision {
    let granted = input.verifier.grant_named(assignment.certificate, signed).and_then(|grant| {
        check_model(grant.get(), assignment.model.root)?;
        Ok(grant)
    });
    match granted {
        Ok(grant) => match room.check(key, grant.get()) {
            RoomDecision::Now => OrderDecision::Granted(Box::new(grant)),
            RoomDecision::Soon => OrderDecision::Early,
            RoomDecision::Never(refusal) => OrderDecision::Refused(refusal),
        },
        Err(refusal) if !input.chain_complete && may_be_early(&refusal) => OrderDecision::Early,
        Err(refusal) => {
            let of_bundle = input.refused_bundles.get(&signed.order.certificate);
            OrderDecision::Refused(of_bundle.cloned().unwrap_or(refusal))
        }
    }
}

/// Returns the action for an order that is granted and not held.
fn take(
    input: &ReconcileInput<'_>,
    key: &SlotKey,
    named: &Named<'_>,
    grant: Box<Approved<SlotGrant>>,
) -> Option<SlotAction> {
    debug_assert_eq!(grant.get().fence, named.signed.order.fence, "the grant of this order");
    match input.running.get(key) {
        Some(running) => give_way(input, key, running, "a newer order takes its place"),
        None => Some(SlotAction::Accept { signed: Box::new(named.signed.clone()), grant }),
    }
}

/// Returns the action for a running slot whose order control no longer names. Its requests finish first, for
/// a limited time. A slot ends at once if control has drained it before, if its work is exclusive, or if the
/// circle requires it.
fn give_way(
    input: &ReconcileInput<'_>,
    key: &SlotKey,
    running: &RunningSlot,
    reason: &str,
) -> Option<SlotAction> {
    debug_assert_eq!(input.running.get(key), Some(running), "the slot runs");
    let held = input.verifier.book.held(key).filter(|held| held.order.signed.order.fence == running.fence);
    let may_finish = held.is_some_and(|held| {
        let ends_at_once = required_end(input, held, Some(running)).is_some_and(|required| required.at_once);
        !held.grant.get().service.exclusive && !ends_at_once
    });
    let (key, reason) = (key.clone(), reason.to_string());
    match running.draining_since {
        None if may_finish => Some(SlotAction::GiveWay { key, reason }),
        Some(since) if may_finish && running.gives_way => {
            let over = input.boot > since.plus(DRAIN_MS + DRAIN_SLACK_MS);
            over.then_some(SlotAction::End { key, reason })
        }
        _ => Some(SlotAction::End { key, reason }),
    }
}

/// Reason why a slot must end, regardless of control's requests.
struct RequiredEnd {
    reason: String,
    at_once: bool,
}

/// Checks the circle's own decisions about a held slot: the node does not wait for control to relay them.
fn required_end(
    input: &ReconcileInput<'_>,
    held: &Held,
    running: Option<&RunningSlot>,
) -> Option<RequiredEnd> {
    let (circle, service) = (input.verifier.circle, &held.grant.get().service);
    if circle.node_by_id(input.verifier.facts.id).is_none() {
        return Some(RequiredEnd { reason: "this node is no longer admitted".into(), at_once: true });
    }
    if let Some(halted) = input.verifier.halt_on(&service.name) {
        return Some(RequiredEnd { reason: halted.message, at_once: true });
    }
    let (reason, grace_ms) = if circle.service(&service.name).is_none() {
        let grace = circle.retired_service(&service.name).map_or(0, |retired| retired.grace_seconds);
        ("the service is retired", u64::from(grace) * 1000)
    } else if service.on_expiry == OnExpiry::Drain
        && service.valid_until.is_some_and(|until| input.verifier.now > until.plus(limits::CLOCK_GRACE_MS))
    {
        ("its approval has ended", DRAIN_MS)
    } else {
        return None;
    };
    let since = running.and_then(|running| running.draining_since);
    let over = since.is_some_and(|since| input.boot > since.plus(grace_ms + DRAIN_SLACK_MS));
    Some(RequiredEnd { reason: reason.into(), at_once: over })
}
