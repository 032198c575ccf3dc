//! What follows from what is wanted and what is: levels compared, every time anew.
//!
//! Two rules hold whatever control says. Nothing starts that [`Judge`] did not grant. And a slot's next
//! order is not even accepted while anything runs under its last one, so no two fences of a slot ever run
//! here at once.

use super::judge::{check_model, may_be_early};
use super::{Held, Judge, Refusal, SlotKey};
use human_chain::{Approved, SlotGrant};
use protocol::agent::{Assignment, Desired};
use protocol::manifest::OnExpiry;
use protocol::order::SignedOrder;
use protocol::{Fence, Millis, limits};
use std::cmp::Reverse;
use std::collections::BTreeMap;

/// How long what runs may finish when its approval ended and the approval says drain: as long as the
/// scheduler would give it.
const DRAIN_MS: u64 = 30_000;
/// The scheduler ends a drain first; the node's own deadline is this much later.
const DRAIN_SLACK_MS: u64 = 5_000;

/// A slot of which something runs, or is about to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunningSlot {
    /// Under which order.
    pub fence: Fence,
    /// Since when it finishes and takes nothing new, wall clock.
    pub draining_since: Option<Millis>,
}

/// What is known when deciding.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// How orders are judged.
    pub judge: Judge<'a>,
    /// What control wants.
    pub desired: &'a Desired,
    /// Whether the chain was complete when control said so. While it is not, an order that no approval
    /// covers yet is left alone rather than refused.
    pub chain_complete: bool,
    /// Bundles that were refused, by their certificate's digest, and why.
    pub refused_bundles: &'a BTreeMap<protocol::Digest, Refusal>,
    /// What runs.
    pub running: &'a BTreeMap<SlotKey, RunningSlot>,
}

/// One thing to do. The shell does all of them, in this order.
#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    /// Write the order down as accepted. Starting comes with the next look.
    Accept {
        /// What to write down.
        signed: Box<SignedOrder>,
        /// The proof.
        grant: Box<Approved<SlotGrant>>,
    },
    /// Start what the held order of this slot grants; nothing of the slot runs.
    Start {
        /// Which slot.
        key: SlotKey,
    },
    /// Let what runs finish; take nothing new.
    Drain {
        /// Which slot.
        key: SlotKey,
        /// Why.
        reason: String,
    },
    /// End what runs.
    End {
        /// Which slot.
        key: SlotKey,
        /// Why.
        reason: String,
    },
    /// Nothing runs and nothing shall under the held order: tell control that the slot is free.
    Release {
        /// Which slot.
        key: SlotKey,
        /// Why.
        reason: String,
    },
    /// Control names the held order no more and nothing runs: give it back.
    Forget {
        /// Which slot.
        key: SlotKey,
    },
    /// Tell control that the order is refused.
    Refuse {
        /// Which slot.
        key: SlotKey,
        /// Under which fence.
        fence: Fence,
        /// Why.
        refusal: Refusal,
    },
}

/// An order and what came with it.
struct Named<'a> {
    signed: &'a SignedOrder,
    assignment: &'a Assignment,
}

/// Decides what to do now.
#[must_use]
pub fn reconcile(view: &View<'_>) -> Vec<Action> {
    let named = named(view.desired);
    let mut actions = Vec::new();
    for (key, orders) in &named {
        actions.extend(settle(view, key, orders));
    }
    for key in view.running.keys().filter(|key| !named.contains_key(key)) {
        actions.push(end(key, "control names it no more"));
    }
    for (key, _) in view.judge.book.all_held() {
        if !named.contains_key(key) && !view.running.contains_key(key) {
            actions.push(Action::Forget { key: key.clone() });
        }
    }
    actions
}

/// The orders by slot, the highest fence first.
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

/// What to do about a slot. Of its orders the highest fence counts that is held or granted: an order that
/// is refused moves nothing, so it cannot end what a good one beside it keeps running.
fn settle(view: &View<'_>, key: &SlotKey, orders: &[Named<'_>]) -> Vec<Action> {
    let mut refused = None;
    let mut early = false;
    for named in orders {
        let held = view.judge.book.held(key).filter(|held| held.order.signed.order == named.signed.order);
        let counts = match held {
            Some(held) => keep(view, key, held, named),
            None => match judge(view, named) {
                Verdict::Granted(grant) => Some(take(view, key, named, grant)),
                Verdict::Early => {
                    early = true;
                    continue;
                }
                Verdict::Refused(refusal) => {
                    let fence = named.signed.order.fence;
                    refused.get_or_insert(Action::Refuse { key: key.clone(), fence, refusal });
                    continue;
                }
            },
        };
        return counts.into_iter().chain(refused).collect();
    }
    let nothing_counts = !early && view.running.contains_key(key);
    nothing_counts.then(|| end(key, "control names it no more")).into_iter().chain(refused).collect()
}

/// What to do about an order that is held.
fn keep(view: &View<'_>, key: &SlotKey, held: &Held, named: &Named<'_>) -> Option<Action> {
    if held.order.released {
        return None;
    }
    let key = key.clone();
    let running = view.running.get(&key);
    let draining = named.assignment.draining.contains(&key.slot);
    let going = must_go(view, held, running)
        .or_else(|| draining.then(|| Going { reason: "control asks it to finish".into(), at_once: false }));
    match (running, going) {
        (Some(running), _) if running.fence != held.order.signed.order.fence => {
            Some(Action::End { key, reason: "it runs under another order than the one held".into() })
        }
        (Some(_), Some(Going { reason, at_once: true })) => Some(Action::End { key, reason }),
        (Some(running), Some(Going { reason, .. })) => {
            running.draining_since.is_none().then_some(Action::Drain { key, reason })
        }
        (Some(_), None) => None,
        (None, Some(Going { reason, .. })) => Some(Action::Release { key, reason }),
        (None, None) => Some(Action::Start { key }),
    }
}

/// What became of an order that is not held.
enum Verdict {
    Granted(Box<Approved<SlotGrant>>),
    /// The chain is not complete, and what it lacks may cover the order.
    Early,
    Refused(Refusal),
}

fn judge(view: &View<'_>, Named { signed, assignment }: &Named<'_>) -> Verdict {
    let granted = view.judge.judge(&assignment.bundle, signed).and_then(|grant| {
        check_model(grant.get(), assignment.model.root)?;
        Ok(grant)
    });
    match granted {
        Ok(grant) => Verdict::Granted(Box::new(grant)),
        Err(refusal) if !view.chain_complete && may_be_early(&refusal) => Verdict::Early,
        Err(refusal) => {
            let of_bundle = view.refused_bundles.get(&signed.order.certificate);
            Verdict::Refused(of_bundle.cloned().unwrap_or(refusal))
        }
    }
}

/// What to do about an order that was granted and is not held.
fn take(view: &View<'_>, key: &SlotKey, named: &Named<'_>, grant: Box<Approved<SlotGrant>>) -> Action {
    if view.running.contains_key(key) {
        return end(key, "a newer order takes its place");
    }
    Action::Accept { signed: Box::new(named.signed.clone()), grant }
}

fn end(key: &SlotKey, reason: &str) -> Action {
    Action::End { key: key.clone(), reason: reason.into() }
}

/// Why a slot may not stay, whatever control says.
struct Going {
    reason: String,
    at_once: bool,
}

/// What the circle itself decided about a held slot: the node does not wait for control to say so.
fn must_go(view: &View<'_>, held: &Held, running: Option<&RunningSlot>) -> Option<Going> {
    let (circle, service) = (view.judge.circle, &held.grant.get().service);
    if circle.node_by_id(view.judge.facts.id).is_none() {
        return Some(Going { reason: "this node is no longer admitted".into(), at_once: true });
    }
    let (reason, grace_ms) = if circle.service(&service.name).is_none() {
        let grace = circle.retired_service(&service.name).map_or(0, |retired| retired.grace_seconds);
        ("the service is retired", u64::from(grace) * 1000)
    } else if service.on_expiry == OnExpiry::Drain
        && service.valid_until.is_some_and(|until| view.judge.now > until.plus(limits::CLOCK_GRACE_MS))
    {
        ("its approval has ended", DRAIN_MS)
    } else {
        return None;
    };
    let since = running.and_then(|running| running.draining_since);
    let over = since.is_some_and(|since| view.judge.now > since.plus(grace_ms + DRAIN_SLACK_MS));
    Some(Going { reason: reason.into(), at_once: over })
}
