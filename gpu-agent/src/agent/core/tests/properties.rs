//! Properties of the decision core over random histories of a node, and over random edits of an order.

use super::*;
use crate::agent::core::halted_slots;
use human_chain::{check_halt, lift};
use proptest::prelude::*;
use protocol::halt::{Halt, HaltScope};

/// An order that control names: slot, fence, and its edits.
#[derive(Debug, Clone)]
struct NamedOrder {
    slot: u32,
    fence: u64,
    draining: bool,
    signed: bool,
    /// Whether it is for this node.
    here: bool,
}

/// Events that may happen to a node, in any order.
#[derive(Debug, Clone)]
enum NodeEvent {
    /// Control names these orders.
    Want(Vec<NamedOrder>),
    /// Control names another model than the approved one.
    WantAnotherModel,
    /// The worker in a slot ends on its own.
    Die(u32),
    /// The agent is killed at any moment and restarted from its disk; running workers survive or have ended.
    Restart {
        sandboxes_survive: bool,
    },
    /// The circle retires the service.
    Retire,
    Redeploy,
    /// The circle removes the node.
    RemoveNode,
    /// A member halts the circle.
    Halt,
    /// The circle lifts every halt.
    Lift,
    /// Time passes, in seconds.
    Pass(u32),
    /// Control states that the chain is complete, or that it is not.
    ChainComplete(bool),
}

fn events() -> impl Strategy<Value = Vec<NodeEvent>> {
    let usually = || prop::bool::weighted(0.9);
    let order = (0_u32..3, 1_u64..6, any::<bool>(), usually(), usually())
        .prop_map(|(slot, fence, draining, signed, here)| NamedOrder { slot, fence, draining, signed, here });
    let event = prop_oneof![
        9 => prop::collection::vec(order, 0..4).prop_map(NodeEvent::Want),
        3 => (0_u32..3).prop_map(NodeEvent::Die),
        3 => any::<bool>().prop_map(|sandboxes_survive| NodeEvent::Restart { sandboxes_survive }),
        2 => (0_u32..90).prop_map(NodeEvent::Pass),
        2 => any::<bool>().prop_map(NodeEvent::ChainComplete),
        1 => Just(NodeEvent::WantAnotherModel),
        1 => Just(NodeEvent::Retire),
        1 => Just(NodeEvent::Redeploy),
        1 => Just(NodeEvent::RemoveNode),
        1 => Just(NodeEvent::Halt),
        1 => Just(NodeEvent::Lift),
    ];
    prop::collection::vec(event, 1..20)
}

/// A node's history so far.
struct History {
    scene: Scene,
    bundle: Bundle,
    wanted: Desired,
    /// Highest fence started for each slot.
    started: BTreeMap<SlotKey, Fence>,
    /// Orders that control signed for this node.
    signed_ever: BTreeSet<(SlotKey, Fence)>,
}

impl History {
    fn new() -> Self {
        let (scene, bundle) = Scene::deployed(|_| {});
        let wanted = Desired { assignments: vec![], routes: None, jobs: vec![] };
        Self { scene, bundle, wanted, started: BTreeMap::new(), signed_ever: BTreeSet::new() }
    }

    fn is_admitted(&self) -> bool {
        self.scene.world.state.node_by_id(self.scene.facts.id).is_some()
    }

    fn is_deployed(&self) -> bool {
        self.scene.world.state.service(&"chat".parse().unwrap()).is_some()
    }

    fn happen(&mut self, event: NodeEvent) {
        match event {
            NodeEvent::Want(orders) => {
                let draining: Vec<u32> = orders.iter().filter(|o| o.draining).map(|o| o.slot).collect();
                let signed: Vec<SignedOrder> = orders.iter().map(|order| self.sign(order)).collect();
                self.wanted = desired(&self.bundle, signed, &draining);
            }
            NodeEvent::WantAnotherModel => {
                for assignment in &mut self.wanted.assignments {
                    assignment.model.root = ModelRoot(Digest::of(b"another"));
                }
            }
            NodeEvent::Die(slot) if self.scene.running.contains_key(&key(slot)) => self.scene.end(&key(slot)),
            NodeEvent::Restart { sandboxes_survive } => self.restart(sandboxes_survive),
            NodeEvent::Retire if self.is_deployed() => {
                let service = "chat".parse().unwrap();
                self.scene.world.decide(Change::Retire { service, grace_seconds: 1 });
            }
            NodeEvent::Redeploy => self.bundle = self.scene.world.deploy(&service("chat", root(), 4)),
            NodeEvent::RemoveNode if self.is_admitted() => {
                self.scene.world.decide(Change::RemoveNode { node: "node-1".parse().unwrap() });
            }
            NodeEvent::Halt => {
                let number = self.scene.world.bundles.len() as u64;
                let signed = self.scene.world.halt(0, HaltScope::Circle, number);
                let verified = check_halt(&self.scene.world.state, signed).unwrap();
                self.scene.halts.accept(verified).unwrap();
            }
            NodeEvent::Lift => {
                let halts: Vec<Halt> = self.scene.halts.in_force(&self.scene.world.state).cloned().collect();
                if !halts.is_empty() {
                    self.scene.world.decide(lift(halts));
                }
            }
            NodeEvent::Pass(seconds) => {
                self.scene.now = self.scene.now.plus(u64::from(seconds) * 1000);
            }
            NodeEvent::ChainComplete(complete) => self.scene.chain_complete = complete,
            NodeEvent::Die(_) | NodeEvent::Retire | NodeEvent::RemoveNode => {}
        }
    }

    fn sign(&mut self, order: &NamedOrder) -> SignedOrder {
        let other = self.scene.world.state.node(&"other".parse().unwrap()).unwrap().id;
        let node = if order.here { self.scene.facts.id } else { other };
        let mut signed = self.scene.world.order(&self.bundle, node, order.slot, order.fence);
        if !order.signed {
            signed.signature = Signature([0; 64]);
        } else if order.here {
            self.signed_ever.insert((key(order.slot), signed.order.fence));
        }
        signed
    }

    fn restart(&mut self, sandboxes_survive: bool) {
        let world = &self.scene.world;
        let (circle, node) = (world.state.id(), self.scene.facts.id);
        let record = self.scene.book.to_record(circle, node);
        let (book, unproven) =
            OrderBook::from_record(record, &world.state, &world.genesis, &world.bundles, node).unwrap();
        assert!(unproven.is_empty(), "{unproven:?}");
        self.scene.book = book;
        if !sandboxes_survive {
            self.scene.running.clear();
        }
    }

    /// Reconciles once and checks every transition. Returns whether the plan was empty but for refusals.
    fn step(&mut self) -> Result<bool, TestCaseError> {
        for slot in self.halted() {
            self.scene.end(&slot);
        }
        let actions = self.scene.plan(&self.wanted);
        prop_assert_eq!(&actions, &self.scene.plan(&self.wanted), "the same input, the same plan");
        self.check_plan(&actions)?;
        let idle = actions.iter().all(|action| matches!(action, SlotAction::Refuse { .. }));
        let before = self.scene.running.clone();
        self.scene.perform(actions);
        prop_assert_eq!(self.halted(), vec![], "nothing starts under a halt");
        for (slot, now) in &self.scene.running {
            if before.get(slot).map(|running| running.fence) != Some(now.fence) {
                // Started now. A slot's fence was never started before, unless it is still held after a
                // restart that its sandbox did not survive.
                let last = self.started.insert(slot.clone(), now.fence);
                prop_assert!(last.is_none_or(|last| now.fence >= last));
                prop_assert!(self.signed_ever.contains(&(slot.clone(), now.fence)));
                prop_assert_eq!(self.scene.book.last_fence(slot), Some(now.fence));
            }
        }
        Ok(idle)
    }

    /// Returns the running slots that a halt covers.
    fn halted(&self) -> Vec<SlotKey> {
        let scene = &self.scene;
        let slots = halted_slots(&scene.halts, &scene.world.state, scene.facts.id, scene.running.keys());
        slots.into_iter().map(|(key, _)| key).collect()
    }

    /// Checks that the plan fits the state that it was made for.
    fn check_plan(&self, actions: &[SlotAction]) -> Result<(), TestCaseError> {
        let mut changed = BTreeSet::new();
        for action in actions {
            let key = match action {
                SlotAction::Refuse { .. } => continue,
                SlotAction::Accept { signed, .. } => SlotKey::of(&signed.order),
                SlotAction::Start { key }
                | SlotAction::Drain { key, .. }
                | SlotAction::GiveWay { key, .. }
                | SlotAction::End { key, .. }
                | SlotAction::Release { key, .. }
                | SlotAction::Forget { key } => key.clone(),
            };
            let runs = self.scene.running.contains_key(&key);
            let held = self.scene.book.held(&key);
            let fits = match action {
                SlotAction::Drain { .. } | SlotAction::GiveWay { .. } | SlotAction::End { .. } => runs,
                SlotAction::Accept { .. } | SlotAction::Refuse { .. } => !runs,
                SlotAction::Forget { .. } => !runs && held.is_some(),
                SlotAction::Start { .. } | SlotAction::Release { .. } => {
                    !runs && held.is_some_and(|held| !held.order.released)
                }
            };
            prop_assert!(fits, "{}: runs {runs}, held {}", name(action), held.is_some());
            prop_assert!(changed.insert(key), "two actions for a slot: {actions:?}");
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn no_history_runs_a_slot_twice_lowers_a_fence_or_runs_an_unsigned_order(events in events()) {
        let mut history = History::new();
        for event in events {
            history.happen(event);
            // A node that is killed between two steps is a restart event of a later case.
            for _ in 0..2 {
                history.step()?;
            }
        }
        let mut rounds = 0;
        while !history.step()? {
            rounds += 1;
            prop_assert!(rounds < 10, "it does not settle: {:?}", history.scene.names(&history.wanted));
        }
        prop_assert!(history.is_admitted() || history.scene.running.is_empty(), "a removed node is idle");
    }

    #[test]
    fn an_order_is_granted_only_above_the_last_fence(last in 1_u64..100, fence in 0_u64..100) {
        let (mut scene, bundle) = Scene::deployed(|_| {});
        scene.settle(&desired(&bundle, vec![scene.order(&bundle, 0, last)], &[]));
        let order = scene.order(&bundle, 0, fence);
        let expected = if fence > last { "granted" } else { "order-replayed" };
        prop_assert_eq!(scene.verdict(&bundle, &order), expected);
        // Another slot has fences of its own.
        let order = scene.order(&bundle, 1, fence.max(1));
        prop_assert_eq!(scene.verdict(&bundle, &order), "granted");
    }

    #[test]
    fn an_order_that_differs_from_the_signed_one_is_refused(
        slot in 0_u32..4,
        fence in 1_u64..9,
        gpus in prop::collection::vec(0_u32..2, 0..2),
        issued in 0_u64..3,
    ) {
        let (scene, bundle) = Scene::deployed(|_| {});
        let signed = scene.order(&bundle, 0, 1);
        let mut edited = signed.clone();
        edited.order.slot = SlotIndex(slot);
        edited.order.fence = Fence::new(1, fence);
        edited.order.gpus = gpus;
        edited.order.issued_at = edited.order.issued_at.plus(issued);
        let expected = if edited == signed { "granted" } else { "order-signature-invalid" };
        prop_assert_eq!(scene.verdict(&bundle, &edited), expected);
    }

    #[test]
    fn the_books_record_is_the_book(
        orders in prop::collection::btree_map(0_u32..4, (1_u64..9, 0_u32..3), 0..4),
    ) {
        let (mut scene, bundle) = Scene::deployed(|_| {});
        let mut named = Vec::new();
        for (slot, (fence, fate)) in &orders {
            named.push(scene.order(&bundle, *slot, *fence));
            scene.settle(&desired(&bundle, named.clone(), &[]));
            scene.running.clear();
            match fate {
                0 => scene.book.release(&key(*slot)),
                1 => scene.book.forget(&key(*slot)),
                _ => {}
            }
        }
        let world = &scene.world;
        let record = scene.book.to_record(world.state.id(), scene.facts.id);
        let (again, unproven) = OrderBook::from_record(
            record.clone(), &world.state, &world.genesis, &world.bundles, scene.facts.id).unwrap();
        prop_assert!(unproven.is_empty());
        prop_assert_eq!(again.check_invariants(), Ok(()));
        prop_assert_eq!(again.check_follows(&scene.book), Ok(()));
        prop_assert_eq!(again.to_record(world.state.id(), scene.facts.id), record);
    }
}
