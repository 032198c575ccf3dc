//! Tests of the decision core, as tables and properties.
#![allow(clippy::unwrap_used)]

mod giving_way;
mod halts;
mod jobs;
mod properties;

use super::testing::{NOW, TestCircle, admission, desired, job, service};
use super::*;
use human_chain::{HaltBook, MemberSecret};
use overlay::Identity;
use protocol::agent::{Assignment, Desired, Gpu, NodeResources};
use protocol::agent_state::ORDER_BOOK_VERSION;
use protocol::governance::{BallotSignature, Bundle, Change};
use protocol::manifest::{Isolation, OnExpiry, ServiceManifest};
use protocol::order::SignedOrder;
use protocol::{BootTime, Digest, Fence, Millis, ModelRoot, Signature, limits};
use std::collections::{BTreeMap, BTreeSet};

/// A node of the circle and its state.
struct Scene {
    world: TestCircle,
    facts: NodeFacts,
    book: OrderBook,
    halts: HaltBook,
    running: BTreeMap<SlotKey, RunningSlot>,
    refused_bundles: BTreeMap<Digest, Refusal>,
    chain_complete: bool,
    now: Millis,
}

fn root() -> ModelRoot {
    ModelRoot(Digest::of(b"model"))
}

fn key(slot: u32) -> SlotKey {
    SlotKey { service: "chat".parse().unwrap(), slot: SlotIndex(slot) }
}

/// Returns the resources of a node of 4 cores, 2 GiB and 2 GPUs.
fn resources() -> NodeResources {
    let gpu = |index| Gpu {
        index,
        uuid: format!("GPU-{index}"),
        name: "H100".into(),
        memory_bytes: 80 << 30,
        simulated: true,
        healthy: true,
    };
    NodeResources { cpu_millicores: 4000, memory_bytes: 2 << 30, gpus: vec![gpu(0), gpu(1)] }
}

impl Scene {
    fn new() -> Self {
        let identity = Identity::from_seed(&[7; 32]);
        let encryption = MemberSecret::generate(&[9; 64]).public().encryption;
        let others = MemberSecret::generate(&[10; 64]).public().encryption;
        let other = admission("other", &Identity::from_seed(&[8; 32]), others);
        let nodes = vec![admission("node-1", &identity, encryption), other];
        let facts = NodeFacts {
            id: NodeId(identity.public_key()),
            isolation: Isolation::SameUid,
            resources: resources(),
            weights: BTreeMap::new(),
        };
        Self {
            world: TestCircle::new(nodes, &["127.0.0.1:1".into(), "127.0.0.1:2".into()], NOW),
            facts,
            book: OrderBook::default(),
            halts: HaltBook::default(),
            running: BTreeMap::new(),
            refused_bundles: BTreeMap::new(),
            chain_complete: true,
            now: NOW,
        }
    }

    fn deployed(change: impl FnOnce(&mut ServiceManifest)) -> (Self, Bundle) {
        let mut scene = Self::new();
        let mut manifest = service("chat", root(), 4);
        change(&mut manifest);
        let bundle = scene.world.deploy(&manifest);
        (scene, bundle)
    }

    fn order(&self, bundle: &Bundle, slot: u32, fence: u64) -> SignedOrder {
        self.world.order(bundle, self.facts.id, slot, fence)
    }

    fn admitted(&self) -> BTreeSet<Digest> {
        self.world.bundles.iter().map(|bundle| bundle.certificate.digest()).collect()
    }

    fn verifier<'a>(&'a self, admitted: &'a BTreeSet<Digest>) -> OrderVerifier<'a> {
        OrderVerifier {
            circle: &self.world.state,
            admitted,
            facts: &self.facts,
            book: &self.book,
            halts: &self.halts,
            now: self.now,
        }
    }

    fn verdict(&self, bundle: &Bundle, signed: &SignedOrder) -> String {
        match self.verifier(&self.admitted()).verify(bundle, signed) {
            Ok(_) => "granted".into(),
            Err(refusal) => refusal.code.to_string(),
        }
    }

    fn plan(&self, desired: &Desired) -> Vec<SlotAction> {
        reconcile(&ReconcileInput {
            verifier: self.verifier(&self.admitted()),
            boot: BootTime(self.now.0),
            desired,
            chain_complete: self.chain_complete,
            refused_bundles: &self.refused_bundles,
            running: &self.running,
        })
    }

    fn names(&self, desired: &Desired) -> Vec<String> {
        self.plan(desired).iter().map(name).collect()
    }

    /// Carries out actions immediately, in place of the shell.
    fn perform(&mut self, actions: Vec<SlotAction>) -> bool {
        let before = self.book.clone();
        let mut accepted = false;
        for action in actions {
            match action {
                SlotAction::Accept { signed, grant } => {
                    let length = self.world.bundles.len() as u64;
                    self.book.accept(*signed, *grant, length, self.now);
                    accepted = true;
                }
                SlotAction::Start { key } => {
                    let fence = self.book.held(&key).unwrap().order.signed.order.fence;
                    let slot = RunningSlot { fence, draining_since: None, gives_way: false };
                    let before = self.running.insert(key, slot);
                    assert_eq!(before, None, "never two of a slot at once");
                }
                SlotAction::Drain { key, .. } => {
                    let boot = BootTime(self.now.0);
                    self.running.get_mut(&key).unwrap().draining_since.get_or_insert(boot);
                }
                SlotAction::GiveWay { key, .. } => {
                    let boot = BootTime(self.now.0);
                    let slot = self.running.get_mut(&key).unwrap();
                    (slot.gives_way, slot.draining_since) = (true, Some(boot));
                }
                SlotAction::End { key, .. } => self.end(&key),
                SlotAction::Release { key, .. } => self.book.release(&key),
                SlotAction::Forget { key } => self.book.forget(&key),
                SlotAction::Refuse { .. } => {}
            }
        }
        assert_eq!(self.book.check_invariants().and_then(|()| self.book.check_follows(&before)), Ok(()));
        accepted
    }

    fn end(&mut self, key: &SlotKey) {
        let ended = self.running.remove(key).unwrap();
        if self.book.held(key).is_some_and(|held| held.order.signed.order.fence == ended.fence) {
            self.book.release(key);
        }
    }

    fn settle(&mut self, desired: &Desired) {
        for _ in 0..10 {
            let actions = self.plan(desired);
            if actions.iter().all(|action| matches!(action, SlotAction::Refuse { .. })) {
                return;
            }
            self.perform(actions);
        }
        panic!("it does not settle: {:?}", self.names(desired));
    }
}

fn name(action: &SlotAction) -> String {
    match action {
        SlotAction::Accept { signed, .. } => {
            format!("accept {}@{}", signed.order.slot, signed.order.fence.count)
        }
        SlotAction::Start { key } => format!("start {}", key.slot),
        SlotAction::Drain { key, .. } => format!("drain {}", key.slot),
        SlotAction::GiveWay { key, .. } => format!("give-way {}", key.slot),
        SlotAction::End { key, .. } => format!("end {}", key.slot),
        SlotAction::Release { key, .. } => format!("release {}", key.slot),
        SlotAction::Forget { key } => format!("forget {}", key.slot),
        SlotAction::Refuse { key, fence, refusal } => {
            format!("refuse {}@{} {}", key.slot, fence.count, refusal.code)
        }
    }
}

/// Makes the circle deploy `chat` and `other`, each with a whole GPU, and returns orders for these slots.
fn on_gpus(slots: &[(&str, u32, u32)]) -> (Scene, Vec<Desired>) {
    let mut scene = Scene::new();
    let mut bundles = BTreeMap::new();
    for name in ["chat", "other"] {
        let mut manifest = service(name, root(), 4);
        manifest.resources.gpu_count = 1;
        bundles.insert(name, scene.world.deploy(&manifest));
    }
    let orders = slots.iter().map(|(name, slot, gpu)| {
        let mut order = scene.world.plain_order(&bundles[name], scene.facts.id, *slot, 1);
        order.gpus = vec![*gpu];
        desired(&bundles[name], vec![scene.world.sign(0, order)], &[])
    });
    let orders = orders.collect();
    (scene, orders)
}

fn together(parts: &[&Desired]) -> Desired {
    let assignments = parts.iter().flat_map(|part| part.assignments.clone()).collect();
    Desired { assignments, routes: None, jobs: vec![] }
}

/// The attack: hostile control gives one whole GPU to three slots of two services. The positive control is
/// the judgement of each order alone, which grants all three.
#[test]
fn one_whole_gpu_for_three_slots() {
    let (mut scene, orders) = on_gpus(&[("chat", 0, 0), ("chat", 1, 0), ("other", 0, 0)]);
    for order in &orders {
        let Assignment { certificate, orders, .. } = &order.assignments[0];
        let admitted = scene.admitted();
        let granted = scene.verifier(&admitted).grant_named(*certificate, &orders[0]);
        assert!(granted.is_ok(), "alone it is granted");
    }
    let all = together(&[&orders[0], &orders[1], &orders[2]]);
    let refused = ["refuse 1@1 resources-exceeded", "refuse 0@1 resources-exceeded"];
    assert_eq!(scene.names(&all), ["accept 0@1", refused[0], refused[1]]);
    scene.settle(&all);
    assert_eq!(scene.names(&all), refused, "nor one by one");
    assert_eq!(scene.running.len(), 1);
    let Assignment { certificate, orders: signed, .. } = &orders[1].assignments[0];
    let mut bundles = scene.world.bundles.iter();
    let bundle = bundles.find(|bundle| bundle.certificate.digest() == *certificate).unwrap();
    assert_eq!(scene.verdict(bundle, &signed[0]), "resources-exceeded", "nor by hand");
}

/// The attack: 20 slots of 256 MiB on a node of 2 GiB.
#[test]
fn more_memory_than_there_is() {
    let (mut scene, bundle) = Scene::deployed(|manifest| {
        (manifest.replicas.max, manifest.resources.cpu_millicores) = (20, 50);
    });
    let wanted = desired(&bundle, (0..20).map(|slot| scene.order(&bundle, slot, 1)).collect(), &[]);
    scene.settle(&wanted);
    assert_eq!(scene.running.len(), 8, "as many as there is memory for");
    assert_eq!(scene.names(&wanted).len(), 12, "the others are refused");
    // The positive control: with more memory all of them run.
    scene.facts.resources.memory_bytes = 20 << 28;
    scene.settle(&wanted);
    assert_eq!(scene.running.len(), 20);
}

#[test]
fn a_resource_that_will_be_free_soon_is_waited_for() {
    let (mut scene, orders) = on_gpus(&[("chat", 0, 0), ("other", 0, 0), ("chat", 1, 0)]);
    let (first, second) = (&orders[0], &orders[1]);
    scene.settle(first);
    // Control moves the GPU: it names the first order no more, or asks it to finish.
    let mut draining = together(&[first, second]);
    draining.assignments[0].draining = vec![SlotIndex(0)];
    assert_eq!(scene.names(&draining), ["drain 0"]);
    assert_eq!(scene.names(second), ["give-way 0"]);
    scene.end(&key(0));
    assert_eq!(scene.names(second), ["accept 0@1", "forget 0"]);
    // After a restart the book still knows what is held.
    scene.settle(second);
    let (circle, node) = (scene.world.state.id(), scene.facts.id);
    let record = scene.book.to_record(circle, node);
    let world = &scene.world;
    let read = OrderBook::from_record(record, &world.state, &world.genesis, &world.bundles, node);
    scene.book = read.unwrap().0;
    assert_eq!(scene.names(&together(&[second, &orders[2]])), ["refuse 1@1 resources-exceeded"]);
}

/// The attack: the memory of two slots fits, and the weights of their two models do not.
#[test]
fn the_weights_of_a_model_take_memory_beside_its_slots() {
    for (weights, expected) in [(0, "accept 0@1"), (1800 << 20, "refuse 0@1 resources-exceeded")] {
        let mut scene = Scene::new();
        let other = ModelRoot(Digest::of(b"other"));
        let (first, second) =
            (scene.world.deploy(&service("chat", root(), 4)), scene.world.deploy(&service("more", other, 4)));
        scene.facts.weights = BTreeMap::from([(root(), 300 << 20), (other, weights)]);
        let mut both = desired(&first, vec![scene.order(&first, 0, 1), scene.order(&first, 1, 1)], &[]);
        scene.settle(&both);
        assert_eq!(scene.running.len(), 2, "two slots share one copy");
        let more = scene.order(&second, 0, 1);
        both.assignments.extend(desired(&second, vec![more], &[]).assignments);
        assert_eq!(scene.names(&both), [expected], "{weights}");
    }
}

#[test]
fn a_newer_order_of_the_same_slot_needs_no_room_beside_the_old_one() {
    let (mut scene, bundle) = Scene::deployed(|manifest| manifest.resources.cpu_millicores = 4000);
    scene.settle(&desired(&bundle, vec![scene.order(&bundle, 0, 1)], &[]));
    let newer = desired(&bundle, vec![scene.order(&bundle, 0, 2)], &[]);
    assert_eq!(scene.names(&newer), ["give-way 0"]);
    scene.end(&key(0));
    assert_eq!(scene.names(&newer), ["accept 0@2"]);
}

/// The attack: orders beside certificates of the past, each of which once cost a replay of the history. The
/// verifier has no history to replay, only the digests of its certificates.
#[test]
fn an_order_beside_a_certificate_of_the_past_is_judged_by_its_digest() {
    let (mut scene, first) = Scene::deployed(|_| {});
    let old = scene.order(&first, 0, 1);
    // The positive control: while its certificate is in force, the same order is granted.
    assert_eq!(scene.verdict(&first, &old), "granted");
    scene.world.deploy(&service("chat", root(), 3));
    assert_eq!(scene.verdict(&first, &old), "order-not-approved");
    let mut altered = first.clone();
    altered.certificate.proposal.reason = "another".into();
    assert_eq!(scene.verdict(&altered, &old), "ballot-mismatch", "an altered one is named as such");
    scene.world.bundles.clear();
    assert_eq!(scene.verdict(&first, &old), "order-not-approved", "nor is its content needed");
}

#[test]
fn an_order_is_accepted_then_started_then_left_alone() {
    let (mut scene, bundle) = Scene::deployed(|_| {});
    let wanted = desired(&bundle, vec![scene.order(&bundle, 0, 1)], &[]);
    for expected in [vec!["accept 0@1"], vec!["start 0"], vec![]] {
        assert_eq!(scene.names(&wanted), expected);
        let actions = scene.plan(&wanted);
        scene.perform(actions);
    }
    // The same order from a new leader: another signature, the same content.
    let resigned = scene.world.sign(1, scene.world.plain_order(&bundle, scene.facts.id, 0, 1));
    assert!(scene.names(&desired(&bundle, vec![resigned], &[])).is_empty());
}

/// An edit of a deployed scene, of the bundle beside the order, or of the order.
type Edit = fn(&mut Scene, &mut Bundle, &mut SignedOrder);

/// Makes each edit in a scene of its own, and compares the code of the verdict on the order.
fn check_verdicts(cases: &[(&str, Edit, &str)]) {
    for (name, edit, expected) in cases {
        let (mut scene, mut bundle) = Scene::deployed(|_| {});
        let mut signed = scene.order(&bundle, 0, 1);
        edit(&mut scene, &mut bundle, &mut signed);
        assert_eq!(scene.verdict(&bundle, &signed), *expected, "{name}");
    }
}

#[test]
fn an_altered_order_is_refused_with_its_code() {
    check_verdicts(&[
        ("as it should be", |_, _, _| {}, "granted"),
        ("unsigned", |_, _, o| o.signature = Signature([0; 64]), "order-signature-invalid"),
        ("altered", |_, _, o| o.order.slot = SlotIndex(1), "order-signature-invalid"),
        (
            "signed by an unknown key",
            |_, _, o| {
                let unknown = Identity::from_seed(&[99; 32]);
                let bytes = protocol::canonical::to_bytes(&o.order);
                o.signature = unknown.sign(protocol::order::ORDER_DOMAIN, &bytes);
                o.signer = unknown.public_key();
            },
            "order-signature-invalid",
        ),
        (
            "for another node",
            |s, _, o| {
                o.order.node = s.world.state.node(&"other".parse().unwrap()).unwrap().id;
                *o = s.world.sign(0, o.order.clone());
            },
            "order-mismatch",
        ),
        (
            "a slot beyond the envelope",
            |s, _, o| {
                o.order.slot = SlotIndex(4);
                *o = s.world.sign(0, o.order.clone());
            },
            "order-mismatch",
        ),
        (
            "GPUs beyond the envelope",
            |s, _, o| {
                o.order.gpus = vec![0];
                *o = s.world.sign(0, o.order.clone());
            },
            "order-mismatch",
        ),
        (
            "naming another certificate",
            |s, _, o| {
                o.order.certificate = Digest::of(b"another");
                *o = s.world.sign(0, o.order.clone());
            },
            "order-mismatch",
        ),
    ]);
}

#[test]
fn an_order_beside_an_altered_certificate_is_refused_with_its_code() {
    check_verdicts(&[
        (
            "beside an altered certificate",
            |_, b, _| {
                b.certificate.proposal.reason = "another".into();
            },
            "ballot-mismatch",
        ),
        (
            "beside a certificate with one bit flipped in a signature",
            |_, b, _| {
                let signature = &mut b.certificate.ballots[0].signature;
                let BallotSignature::Hybrid(hybrid) = signature else { panic!("a hybrid one") };
                hybrid.ml_dsa.0[0] ^= 1;
            },
            "signature-invalid",
        ),
        (
            "beside a certificate with too few ballots",
            |_, b, _| {
                b.certificate.ballots.pop();
            },
            "quorum-not-reached",
        ),
        (
            "beside a certificate for more replicas",
            |_, b, _| {
                let protocol::governance::Change::Deploy(manifest) = &mut b.certificate.proposal.change
                else {
                    return;
                };
                let protocol::manifest::Manifest::Service(service) = manifest.as_mut() else { return };
                service.replicas.max = 100;
            },
            "ballot-mismatch",
        ),
        ("beside a bundle of a later form", |_, b, _| b.version = 99, "governance-invalid"),
        (
            "beside a certificate of another circle",
            |_, b, _| {
                b.certificate.proposal.circle = protocol::CircleId(Digest::of(b"another"));
            },
            "circle-mismatch",
        ),
    ]);
}

#[test]
fn an_order_that_the_circle_no_longer_approves_is_refused_with_its_code() {
    check_verdicts(&[
        (
            "for a retired service",
            |s, b, _| {
                let _ = b;
                let service = "chat".parse().unwrap();
                s.world.decide(protocol::governance::Change::Retire { service, grace_seconds: 1 });
            },
            "order-not-approved",
        ),
        (
            "under an approval that was replaced",
            |s, _, _| {
                s.world.deploy(&service("chat", ModelRoot(Digest::of(b"newer")), 4));
            },
            "order-not-approved",
        ),
        (
            "on a node that was removed",
            |s, _, _| {
                let node = "node-1".parse().unwrap();
                s.world.decide(protocol::governance::Change::RemoveNode { node });
            },
            "node-not-admitted",
        ),
    ]);
}

#[test]
fn an_order_beside_a_certificate_that_expired_is_refused() {
    let mut scene = Scene::new();
    let deploy = Change::Deploy(Box::new(protocol::manifest::Manifest::Service(service("chat", root(), 4))));
    let bundle = scene.world.certify(deploy);
    let signed = scene.order(&bundle, 0, 1);
    let expires = bundle.certificate.proposal.expires_at;
    // The chain does not show that it was admitted in time: a withheld bundle must not be accepted later.
    for (now, expected) in
        [(expires, "order-not-approved"), (expires.plus(limits::CLOCK_GRACE_MS + 1), "proposal-expired")]
    {
        scene.now = now;
        assert_eq!(scene.verdict(&bundle, &signed), expected, "{now:?}");
    }
    let late = desired(&bundle, vec![signed], &[]);
    assert_eq!(scene.names(&late), ["refuse 0@1 order-not-approved"]);
    // It may have been admitted in time although the chain does not show it yet.
    scene.chain_complete = false;
    assert!(scene.names(&late).is_empty());
}

/// Control sends digests of certificates, not certificates: the node takes each from its own chain.
#[test]
fn an_assignment_names_the_certificate_of_its_orders_and_of_the_nodes_chain() {
    let (mut scene, bundle) = Scene::deployed(|_| {});
    let good = desired(&bundle, vec![scene.order(&bundle, 0, 1)], &[]);
    assert_eq!(scene.names(&good), ["accept 0@1"]);
    let mut other = good.clone();
    other.assignments[0].certificate = Digest::of(b"another certificate");
    assert_eq!(scene.names(&other), ["refuse 0@1 order-mismatch"]);
    // A certificate that this node's chain does not have is fetched before its orders count.
    let newer = protocol::manifest::Manifest::Service(service("chat", root(), 3));
    let ahead = scene.world.certify(Change::Deploy(Box::new(newer)));
    let ahead = desired(&ahead, vec![scene.order(&ahead, 0, 1)], &[]);
    scene.chain_complete = false;
    assert!(scene.names(&ahead).is_empty());
    scene.chain_complete = true;
    assert_eq!(scene.names(&ahead), ["refuse 0@1 order-not-approved"]);
}

#[test]
fn a_replayed_order_is_refused_though_its_slot_is_long_free() {
    let (mut scene, bundle) = Scene::deployed(|_| {});
    let first = scene.order(&bundle, 0, 5);
    assert_eq!(scene.verdict(&bundle, &first), "granted");
    scene.settle(&desired(&bundle, vec![first.clone()], &[]));
    assert_eq!(scene.verdict(&bundle, &first), "order-replayed", "handed again while it is held");
    scene.settle(&desired(&bundle, vec![], &[]));
    scene.end(&key(0));
    scene.settle(&desired(&bundle, vec![], &[]));
    assert!(scene.book.held(&key(0)).is_none() && scene.running.is_empty());
    for fence in [1, 4, 5] {
        assert_eq!(scene.verdict(&bundle, &scene.order(&bundle, 0, fence)), "order-replayed", "{fence}");
        let again = desired(&bundle, vec![scene.order(&bundle, 0, fence)], &[]);
        assert_eq!(scene.names(&again), [format!("refuse 0@{fence} order-replayed")]);
    }
    assert_eq!(scene.verdict(&bundle, &scene.order(&bundle, 0, 6)), "granted");
}

#[test]
fn what_only_the_node_knows_is_judged_by_the_node() {
    for (what, isolation, gpu, expected) in [
        ("enough isolation", Isolation::SameUid, None, "granted"),
        ("too little isolation", Isolation::Full, None, "node-unfit"),
        ("a GPU that is there", Isolation::None, Some(1), "granted"),
        ("a GPU that is not", Isolation::None, Some(2), "node-unfit"),
    ] {
        let (scene, bundle) = Scene::deployed(|manifest| {
            manifest.placement.isolation = isolation;
            manifest.resources.gpu_count = u32::from(gpu.is_some());
        });
        let mut order = scene.world.plain_order(&bundle, scene.facts.id, 0, 1);
        order.gpus = gpu.into_iter().collect();
        assert_eq!(scene.verdict(&bundle, &scene.world.sign(0, order)), expected, "{what}");
    }
}

#[test]
fn a_model_that_the_circle_did_not_approve_is_refused() {
    let (scene, bundle) = Scene::deployed(|_| {});
    let mut wanted = desired(&bundle, vec![scene.order(&bundle, 0, 1)], &[]);
    wanted.assignments[0].model.root = ModelRoot(Digest::of(b"another"));
    assert_eq!(scene.names(&wanted), ["refuse 0@1 order-mismatch"]);
}

#[test]
fn a_newer_order_waits_until_nothing_runs_under_the_last() {
    let (mut scene, bundle) = Scene::deployed(|_| {});
    scene.settle(&desired(&bundle, vec![scene.order(&bundle, 0, 1)], &[]));
    let newer = desired(&bundle, vec![scene.order(&bundle, 0, 2)], &[]);
    assert_eq!(scene.names(&newer), ["give-way 0"]);
    assert_eq!(scene.book.last_fence(&key(0)), Some(Fence::new(1, 1)), "not even accepted");
    scene.end(&key(0));
    for expected in ["accept 0@2", "start 0"] {
        assert_eq!(scene.names(&newer), [expected]);
        let actions = scene.plan(&newer);
        scene.perform(actions);
    }
}

#[test]
fn of_two_orders_for_one_slot_the_higher_fence_counts() {
    let (scene, bundle) = Scene::deployed(|_| {});
    for fences in [[1, 2], [2, 1]] {
        let orders = fences.map(|fence| scene.order(&bundle, 0, fence)).to_vec();
        assert_eq!(scene.names(&desired(&bundle, orders, &[])), ["accept 0@2"]);
    }
}

#[test]
fn a_refused_order_moves_nothing_beside_a_good_one() {
    let (mut scene, bundle) = Scene::deployed(|_| {});
    let good = scene.order(&bundle, 0, 2);
    let mut unsigned = scene.order(&bundle, 0, 3);
    unsigned.signature = Signature([0; 64]);
    let beside = |orders: &[&SignedOrder]| desired(&bundle, orders.iter().copied().cloned().collect(), &[]);
    let refused = "refuse 0@3 order-signature-invalid";
    for orders in [[&good, &unsigned], [&unsigned, &good]] {
        assert_eq!(scene.names(&beside(&orders)), ["accept 0@2", refused]);
    }
    scene.settle(&beside(&[&good]));
    for orders in [[&good, &unsigned], [&unsigned, &good]] {
        assert_eq!(scene.names(&beside(&orders)), [refused], "it goes on");
    }
    // The same holds for an order that no approval covers yet, be it early or wrong.
    let newer = protocol::manifest::Manifest::Service(service("chat", root(), 3));
    let ahead = scene.world.certify(Change::Deploy(Box::new(newer)));
    let mut early = desired(&ahead, vec![scene.order(&ahead, 0, 4)], &[]);
    early.assignments.extend(beside(&[&good]).assignments);
    scene.chain_complete = false;
    assert!(scene.names(&early).is_empty());
    scene.chain_complete = true;
    assert_eq!(scene.names(&early), ["refuse 0@4 order-not-approved"]);
    // Without the good order beside it, it means that control has replaced the good one.
    assert_eq!(scene.names(&beside(&[&unsigned])), ["give-way 0", refused]);
}

#[test]
fn draining_slots_finish_and_are_released_for_good() {
    let (mut scene, bundle) = Scene::deployed(|_| {});
    let orders = vec![scene.order(&bundle, 0, 1)];
    scene.settle(&desired(&bundle, orders.clone(), &[]));
    let draining = desired(&bundle, orders.clone(), &[0]);
    assert_eq!(scene.names(&draining), ["drain 0"]);
    let actions = scene.plan(&draining);
    scene.perform(actions);
    assert!(scene.names(&draining).is_empty(), "drained once");
    scene.end(&key(0));
    assert!(scene.names(&draining).is_empty());
    // The same holds if control forgot that the slot was draining.
    assert!(scene.names(&desired(&bundle, orders, &[])).is_empty());
    assert_eq!(scene.names(&desired(&bundle, vec![], &[])), ["forget 0"]);
}

#[test]
fn a_slot_that_drains_while_nothing_runs_is_released() {
    let (mut scene, bundle) = Scene::deployed(|_| {});
    let orders = vec![scene.order(&bundle, 0, 1)];
    scene.settle(&desired(&bundle, orders.clone(), &[]));
    // The agent was restarted and its sandbox has ended.
    scene.running.clear();
    assert_eq!(scene.names(&desired(&bundle, orders, &[0])), ["release 0"]);
}

#[test]
fn what_the_circle_ended_ends_though_control_still_wants_it() {
    let grace_seconds = 10;
    let retire = || Change::Retire { service: "chat".parse().unwrap(), grace_seconds };
    let (mut scene, bundle) = Scene::deployed(|_| {});
    let wanted = desired(&bundle, vec![scene.order(&bundle, 0, 1)], &[]);
    scene.settle(&wanted);
    scene.world.decide(retire());
    assert_eq!(scene.names(&wanted), ["drain 0"]);
    let actions = scene.plan(&wanted);
    scene.perform(actions);
    scene.now = NOW.plus(u64::from(grace_seconds) * 1000);
    assert!(scene.names(&wanted).is_empty(), "its grace");
    scene.now = NOW.plus(u64::from(grace_seconds) * 1000 + 5_001);
    assert_eq!(scene.names(&wanted), ["end 0"]);

    let (mut scene, bundle) = Scene::deployed(|_| {});
    let wanted = desired(&bundle, vec![scene.order(&bundle, 0, 1)], &[]);
    scene.settle(&wanted);
    scene.world.decide(Change::RemoveNode { node: "node-1".parse().unwrap() });
    assert_eq!(scene.names(&wanted), ["end 0"]);
}

#[test]
fn an_approval_that_ends_drains_only_where_it_says_so() {
    for (on_expiry, expected) in [(OnExpiry::Hold, vec![]), (OnExpiry::Drain, vec!["drain 0"])] {
        let until = NOW.plus(3600 * 1000);
        let (mut scene, bundle) = Scene::deployed(|manifest| {
            manifest.valid_until = Some(until);
            manifest.on_expiry = on_expiry;
        });
        let wanted = desired(&bundle, vec![scene.order(&bundle, 0, 1)], &[]);
        scene.settle(&wanted);
        scene.now = until.plus(protocol::limits::CLOCK_GRACE_MS + 1);
        assert_eq!(scene.names(&wanted), expected);
        // Nothing new starts either way.
        assert_eq!(scene.verdict(&bundle, &scene.order(&bundle, 1, 1)), "order-not-approved");
    }
}

#[test]
fn a_slot_under_a_replaced_approval_goes_on_until_control_moves_it() {
    let (mut scene, bundle) = Scene::deployed(|_| {});
    let wanted = desired(&bundle, vec![scene.order(&bundle, 0, 1)], &[]);
    scene.settle(&wanted);
    scene.world.deploy(&service("chat", ModelRoot(Digest::of(b"newer")), 4));
    assert!(scene.names(&wanted).is_empty());
}

#[test]
fn an_order_may_be_ahead_of_the_chain_only_while_the_chain_is_incomplete() {
    let mut scene = Scene::new();
    let bundle = scene
        .world
        .certify(Change::Deploy(Box::new(protocol::manifest::Manifest::Service(service("chat", root(), 4)))));
    let wanted = desired(&bundle, vec![scene.order(&bundle, 0, 1)], &[]);
    scene.chain_complete = false;
    assert!(scene.names(&wanted).is_empty());
    scene.chain_complete = true;
    assert_eq!(scene.names(&wanted), ["refuse 0@1 order-not-approved"]);
    // An invalid signature is wrong now and later.
    scene.chain_complete = false;
    let mut unsigned = scene.order(&bundle, 0, 1);
    unsigned.signature = Signature([0; 64]);
    let wanted = desired(&bundle, vec![unsigned], &[]);
    assert_eq!(scene.names(&wanted), ["refuse 0@1 order-signature-invalid"]);
}

#[test]
fn an_order_under_a_refused_bundle_says_why_the_bundle_was_refused() {
    let mut scene = Scene::new();
    let mut bundle = scene
        .world
        .certify(Change::Deploy(Box::new(protocol::manifest::Manifest::Service(service("chat", root(), 4)))));
    bundle.certificate.ballots.pop();
    let digest = bundle.certificate.digest();
    scene
        .refused_bundles
        .insert(digest, Refusal::new(protocol::error_code::QUORUM_NOT_REACHED, "one of two"));
    let wanted = desired(&bundle, vec![scene.order(&bundle, 0, 1)], &[]);
    assert_eq!(scene.names(&wanted), ["refuse 0@1 quorum-not-reached"]);
}

#[test]
fn the_book_comes_back_from_disk_with_proofs_and_fences() {
    let (mut scene, bundle) = Scene::deployed(|_| {});
    scene.settle(&desired(&bundle, vec![scene.order(&bundle, 0, 3), scene.order(&bundle, 1, 9)], &[]));
    scene.settle(&desired(&bundle, vec![scene.order(&bundle, 0, 3)], &[]));
    scene.end(&key(1));
    scene.settle(&desired(&bundle, vec![scene.order(&bundle, 0, 3)], &[]));
    // The approval was replaced since; the held order was valid when it was accepted.
    scene.world.deploy(&service("chat", ModelRoot(Digest::of(b"newer")), 4));
    let circle = scene.world.state.id();
    let record = scene.book.to_record(circle, scene.facts.id);
    let world = &scene.world;
    let read =
        |record, node| OrderBook::from_record(record, &world.state, &world.genesis, &world.bundles, node);
    let (book, unproven) = read(record.clone(), scene.facts.id).unwrap();
    assert!(unproven.is_empty());
    assert_eq!(book.to_record(circle, scene.facts.id), record);
    assert_eq!(book.held(&key(0)).unwrap().grant.get().service.model.root, root());
    assert_eq!(
        (book.last_fence(&key(0)), book.last_fence(&key(1))),
        (Some(Fence::new(1, 3)), Some(Fence::new(1, 9)))
    );
    assert!(book.held(&key(1)).is_none());

    let other = NodeId(Identity::from_seed(&[8; 32]).public_key());
    assert_eq!(read(record.clone(), other).unwrap_err(), BookError::Foreign("node"));
    let mut wrong = record.clone();
    wrong.fences[0].fence = Fence::new(1, 99);
    assert!(matches!(read(wrong, scene.facts.id).unwrap_err(), BookError::Contradiction(_)));
    let mut wrong = record.clone();
    wrong.version = 99;
    let error = BookError::Version { found: 99, read: ORDER_BOOK_VERSION };
    assert_eq!(read(wrong, scene.facts.id).unwrap_err(), error);
}

#[test]
fn an_order_that_was_altered_on_disk_is_not_held_but_its_fence_stays() {
    let (mut scene, bundle) = Scene::deployed(|_| {});
    scene.settle(&desired(&bundle, vec![scene.order(&bundle, 0, 3)], &[]));
    let circle = scene.world.state.id();
    type Change = fn(&mut protocol::agent_state::HeldOrder);
    let changes: [(&str, Change); 3] = [
        ("another certificate", |held| held.signed.order.certificate = Digest::of(b"another")),
        ("no signature", |held| held.signed.signature = Signature([0; 64])),
        ("a chain that had not approved it", |held| held.governance_length = 0),
    ];
    for (what, change) in changes {
        let mut record = scene.book.to_record(circle, scene.facts.id);
        change(&mut record.held[0]);
        let (world, node) = (&scene.world, scene.facts.id);
        let (book, unproven) =
            OrderBook::from_record(record, &world.state, &world.genesis, &world.bundles, node).unwrap();
        assert_eq!(unproven.len(), 1, "{what}");
        assert!(book.held(&key(0)).is_none(), "{what}");
        assert_eq!(book.last_fence(&key(0)), Some(Fence::new(1, 3)), "{what}");
    }
}
