//! The order book: the orders that this node accepted, and the highest fence of every slot it ever held.
//!
//! The book in memory holds the proof beside each order. The disk holds only the order. Reading it verifies
//! it again: against the present state if its approval is still in force, and otherwise against the chain at
//! the time of acceptance.

use super::SlotKey;
use super::fences::{BookError, BookHead, Fences};
use human_chain::{
    Approved, ApprovedService, ChainError, CircleState, SlotGrant, check_order, verify_replay,
};
use protocol::agent_state::{HeldOrder, ORDER_BOOK_VERSION, OrderBookRecord};
use protocol::governance::{Bundle, SignedGenesis};
use protocol::order::SignedOrder;
use protocol::{CircleId, Fence, Millis, NodeId};
use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::sync::Arc;

/// An order that is held, with the proof that it was granted.
#[derive(Debug, Clone)]
pub struct Held {
    /// The order, and the time of its acceptance.
    pub order: HeldOrder,
    /// The verified grant of the order.
    pub grant: Arc<Approved<SlotGrant>>,
}

/// Orders and fences of one node.
#[derive(Debug, Clone, Default)]
pub struct OrderBook {
    fences: Fences,
    held: BTreeMap<SlotKey, Held>,
}

impl OrderBook {
    /// Returns the highest fence ever accepted for a slot.
    #[must_use]
    pub fn last_fence(&self, key: &SlotKey) -> Option<Fence> {
        self.fences.highest(key)
    }

    /// Returns the order held for a slot.
    #[must_use]
    pub fn held(&self, key: &SlotKey) -> Option<&Held> {
        self.held.get(key)
    }

    /// Returns all held orders, by slot.
    pub fn all_held(&self) -> impl Iterator<Item = (&SlotKey, &Held)> {
        self.held.iter()
    }

    /// Returns the grants under which a slot runs or may start: those of all orders that are not released.
    pub fn all_granted(&self) -> impl Iterator<Item = (&SlotKey, &SlotGrant)> {
        let live = self.held.iter().filter(|(_, held)| !held.order.released);
        live.map(|(key, held)| (key, held.grant.get()))
    }

    /// Records an order as accepted; it replaces the one held before for its slot.
    ///
    /// # Panics
    /// If the grant does not belong to the order, or its fence is not above the last: verification rules out
    /// both.
    pub fn accept(
        &mut self,
        signed: SignedOrder,
        grant: Approved<SlotGrant>,
        governance_length: u64,
        accepted_at: Millis,
    ) {
        let (key, fence) = (SlotKey::of(&signed.order), signed.order.fence);
        let granted = grant.get();
        assert!(granted.service.name == key.service && granted.slot == key.slot && granted.fence == fence);
        self.fences.raise(key.clone(), fence);
        let order = HeldOrder { signed, governance_length, accepted_at, released: false };
        self.held.insert(key, Held { order, grant: Arc::new(grant) });
    }

    /// Marks a slot as permanently ended under its order. Control gets the report until it no longer names
    /// the order.
    pub fn release(&mut self, key: &SlotKey) {
        if let Some(held) = self.held.get_mut(key) {
            held.order.released = true;
        }
    }

    /// Removes an order. Its fence stays.
    pub fn forget(&mut self, key: &SlotKey) {
        self.held.remove(key);
    }

    /// Checks that the book does not contradict itself: a held order has its slot's key, its slot's highest
    /// fence, and the grant of the same slot and fence.
    ///
    /// # Errors
    /// The text of the first violated invariant.
    pub fn check_invariants(&self) -> Result<(), String> {
        for (key, held) in &self.held {
            let (order, grant) = (&held.order.signed.order, held.grant.get());
            let of_order = SlotKey::of(order);
            if of_order != *key {
                return Err(format!("the order for {of_order} is held for {key}"));
            }
            self.fences.check_held(key, order.fence)?;
            if (&grant.service.name, grant.slot, grant.fence) != (&key.service, key.slot, order.fence) {
                return Err(format!("{key} at fence {} is held under the grant of another", order.fence));
            }
        }
        Ok(())
    }

    /// Checks that this book may follow `before`: no slot's fence is lower or forgotten.
    ///
    /// # Errors
    /// The text of the first violated invariant.
    pub fn check_follows(&self, before: &Self) -> Result<(), String> {
        self.fences.check_follows(&before.fences)
    }

    /// Returns the record to persist.
    #[must_use]
    pub fn to_record(&self, circle: CircleId, node: NodeId) -> OrderBookRecord {
        OrderBookRecord {
            version: ORDER_BOOK_VERSION,
            circle,
            node,
            fences: self.fences.to_list(),
            held: self.held.values().map(|held| held.order.clone()).collect(),
        }
    }

    /// Restores a book from its record. Every held order is verified again, against the present `state` or
    /// against the chain at the time of its acceptance, which is replayed from these bundles if there is
    /// need. Orders that do not verify are dropped and returned beside the book. Their fences stay.
    ///
    /// # Errors
    /// [`BookError`]: the whole record must be discarded.
    pub fn from_record(
        record: OrderBookRecord,
        state: &CircleState,
        genesis: &SignedGenesis,
        bundles: impl IntoIterator<Item = impl Borrow<Bundle>>,
        node: NodeId,
    ) -> Result<(Self, Vec<(SlotKey, ChainError)>), BookError> {
        let head = BookHead { version: record.version, circle: record.circle, node: record.node };
        head.check(BookHead { version: ORDER_BOOK_VERSION, circle: state.id(), node })?;
        let mut book = Self { fences: Fences::from_list(record.fences)?, held: BTreeMap::new() };
        for order in &record.held {
            let key = SlotKey::of(&order.signed.order);
            if book.last_fence(&key) != Some(order.signed.order.fence) {
                return Err(BookError::Contradiction("a held order's fence is not its slot's highest"));
            }
        }
        let mut superseded = Vec::new();
        for order in record.held {
            let key = SlotKey::of(&order.signed.order);
            match prove_in_force(state, &order, node) {
                Some(grant) => drop(book.held.insert(key, Held { order, grant })),
                None => superseded.push(order),
            }
        }
        let unproven = book.prove_superseded(superseded, genesis, bundles, node);
        Ok((book, unproven))
    }

    /// Verifies orders of earlier approvals against the chain's states at the time of their acceptance, in
    /// one replay.
    fn prove_superseded(
        &mut self,
        mut orders: Vec<HeldOrder>,
        genesis: &SignedGenesis,
        bundles: impl IntoIterator<Item = impl Borrow<Bundle>>,
        node: NodeId,
    ) -> Vec<(SlotKey, ChainError)> {
        if orders.is_empty() {
            return Vec::new();
        }
        orders.sort_by_key(|order| order.governance_length);
        let mut unproven = Vec::new();
        let mut state = CircleState::found(genesis, None);
        let mut rest = bundles.into_iter();
        for order in orders {
            let key = SlotKey::of(&order.signed.order);
            while state.as_ref().is_ok_and(|state| state.length() < order.governance_length) {
                let Some(bundle) = rest.next() else { break };
                state = state.and_then(|mut state| {
                    let bundle: &Bundle = bundle.borrow();
                    let approved = verify_replay(&state, &bundle.certificate)?;
                    state.advance(approved)?;
                    Ok(state)
                });
            }
            let grant =
                state.as_ref().map_err(Clone::clone).and_then(|state| verify_again(state, &order, node));
            match grant {
                Ok(grant) => {
                    self.held.insert(key, Held { order, grant: Arc::new(grant) });
                }
                Err(error) => unproven.push((key, error)),
            }
        }
        unproven
    }
}

/// Verifies an order against the present state, under the approval in force or the one to which that returns.
/// None if its approval is in force no longer, or was not yet when the order was accepted.
fn prove_in_force(state: &CircleState, order: &HeldOrder, node: NodeId) -> Option<Arc<Approved<SlotGrant>>> {
    let named = &order.signed.order;
    let is_return = |service: &ApprovedService| {
        let before = service.before.as_ref().filter(|before| before.certificate == named.certificate);
        before.is_some() && named.fence.version == service.version
    };
    let of_order =
        |service: &&ApprovedService| service.certificate == named.certificate || is_return(service);
    let service = state.service(&named.service).filter(of_order)?;
    let approved_at = state.number_of(&service.proposal)?;
    let was_approved = (approved_at..=state.length()).contains(&order.governance_length);
    was_approved.then(|| verify_again(state, order, node).ok().map(Arc::new)).flatten()
}

/// Verifies an order that was accepted before, as if its slot had the fence before it.
fn verify_again(
    state: &CircleState,
    order: &HeldOrder,
    node: NodeId,
) -> Result<Approved<SlotGrant>, ChainError> {
    let fence = order.signed.order.fence;
    let before = fence.count.checked_sub(1).map(|count| Fence { count, ..fence });
    check_order(state, &order.signed, node, before, order.accepted_at)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::fences::tests::planted;
    use super::super::testing::{NOW, TestCircle, admission, service};
    use super::*;
    use human_chain::MemberSecret;
    use overlay::Identity;
    use protocol::order::SlotOrder;
    use protocol::{Digest, ModelRoot, SlotIndex};
    use std::mem::take;

    fn key(slot: u32) -> SlotKey {
        SlotKey { service: "chat".parse().unwrap(), slot: SlotIndex(slot) }
    }

    /// Returns a book that holds slots 0 and 1 at fence 5.
    fn book() -> OrderBook {
        let identity = Identity::from_seed(&[7; 32]);
        let encryption = MemberSecret::generate(&[9; 64]).public().encryption;
        let node = NodeId(identity.public_key());
        let replicas = ["127.0.0.1:1".to_owned()];
        let mut world = TestCircle::new(vec![admission("node-1", &identity, encryption)], &replicas, NOW);
        let bundle = world.deploy(&service("chat", ModelRoot(Digest::of(b"model")), 4));
        let mut book = OrderBook::default();
        for slot in 0..2 {
            let signed = world.order(&bundle, node, slot, 5);
            let grant = check_order(&world.state, &signed, node, None, NOW).unwrap();
            book.accept(signed, grant, 1, NOW);
        }
        book
    }

    #[test]
    fn a_book_that_contradicts_itself_is_found() {
        type Plant = fn(&mut OrderBook);
        assert_eq!(book().check_invariants(), Ok(()));
        let plants: [(Plant, &str); 4] = [
            (
                |book| book.fences = planted(take(&mut book.fences), &key(0), Some(Fence::new(1, 6))),
                "chat/0 is held at fence 1.5, its highest is 1.6",
            ),
            (
                |book| book.fences = planted(take(&mut book.fences), &key(0), None),
                "chat/0 is held at fence 1.5, its highest is none",
            ),
            (
                |book| {
                    let other = book.held[&key(1)].clone();
                    book.held.insert(key(0), other);
                },
                "the order for chat/1 is held for chat/0",
            ),
            (
                |book| {
                    let grant = book.held[&key(1)].grant.clone();
                    book.held.get_mut(&key(0)).unwrap().grant = grant;
                },
                "chat/0 at fence 1.5 is held under the grant of another",
            ),
        ];
        for (plant, expected) in plants {
            let mut planted = book();
            plant(&mut planted);
            assert_eq!(planted.check_invariants(), Err(expected.to_owned()));
        }
    }

    /// A slot that returned to the approval before is proved without a replay. One that was never ordered
    /// again since that approval is proved by the history, as any order of an earlier approval.
    #[test]
    fn an_order_that_returned_is_read_back() {
        let identity = Identity::from_seed(&[7; 32]);
        let encryption = MemberSecret::generate(&[9; 64]).public().encryption;
        let node = NodeId(identity.public_key());
        let replicas = ["127.0.0.1:1".to_owned()];
        let mut world = TestCircle::new(vec![admission("node-1", &identity, encryption)], &replicas, NOW);
        let mut manifest = service("chat", ModelRoot(Digest::of(b"model")), 4);
        let first = world.deploy(&manifest);
        let mut book = OrderBook::default();
        let mut accept = |world: &TestCircle, signed: SignedOrder| {
            let grant = check_order(&world.state, &signed, node, None, NOW).unwrap();
            book.accept(signed, grant, world.state.length(), NOW);
        };
        accept(&world, world.order(&first, node, 0, 1));
        manifest.rollout.on_failure = protocol::manifest::OnFailure::Return;
        world.deploy(&manifest);
        let returned = SlotOrder { fence: Fence::new(2, 1), ..world.plain_order(&first, node, 1, 1) };
        accept(&world, world.sign(0, returned));
        let read = |bundles: &[Bundle]| {
            let record = book.to_record(world.state.id(), node);
            let read = OrderBook::from_record(record, &world.state, &world.genesis, bundles, node).unwrap();
            let slots = read.0.all_held().map(|(key, _)| key.slot.0).collect::<Vec<_>>();
            (slots, read.1.len())
        };
        assert_eq!(read(&[]), (vec![1], 1), "without the history");
        assert_eq!(read(&world.bundles), (vec![0, 1], 0));
    }

    #[test]
    fn a_fence_that_falls_or_is_forgotten_is_found() {
        let before = book();
        let mut after = before.clone();
        after.forget(&key(0));
        assert_eq!(after.check_follows(&before), Ok(()), "a forgotten order leaves its fence");
        after.fences = planted(after.fences, &key(0), None);
        assert_eq!(after.check_follows(&before), Err("the fence of chat/0 fell below 1.5".into()));
    }
}
