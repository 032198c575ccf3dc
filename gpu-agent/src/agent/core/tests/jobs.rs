//! Tests of the slots of jobs in the decision core: what is accepted, prepared, started, ended and refused.

use super::*;
use protocol::CircleId;
use protocol::agent_state::{JOB_BOOK_VERSION, JobBookRecord};
use protocol::canonical::to_bytes;
use protocol::halt::HaltScope;
use protocol::job::{
    JOB_ORDER_DOMAIN, JobOrder, JobSubmission, SignedJobOrder, SignedSubmission, SlotRanks, Submitter,
};
use protocol::job_report::{JobAssignment, JobSlotState, RankOutcome};
use protocol::manifest::{JobManifest, Manifest};

/// A node that runs jobs.
struct JobScene {
    scene: Scene,
    book: JobOrderBook,
    running: BTreeMap<SlotKey, Fence>,
    free: NodeResources,
}

fn slot(slot: u32) -> SlotKey {
    SlotKey { service: "train".parse().unwrap(), slot: SlotIndex(slot) }
}

impl JobScene {
    fn new(change: impl FnOnce(&mut JobManifest)) -> Self {
        let mut scene = Scene::new();
        let mut manifest = job("train");
        change(&mut manifest);
        scene.world.decide(Change::Deploy(Box::new(Manifest::Job(manifest))));
        let free = scene.facts.resources.clone();
        Self { scene, book: JobOrderBook::default(), running: BTreeMap::new(), free }
    }

    fn order(&self, slot: u32, fence: u64) -> JobOrder {
        let state = &self.scene.world.state;
        let approved = state.job(&"train".parse().unwrap()).unwrap();
        let submission = JobSubmission {
            circle: state.id(),
            job: "train".parse().unwrap(),
            certificate: approved.certificate,
            idempotency: Digest::of(&fence.to_le_bytes()),
            parameters: BTreeMap::new(),
            artifact: None,
            command: None,
            priority: 0,
            submitter: Submitter::Token("ci".parse().unwrap()),
            issued_at: NOW,
            deadline: NOW.plus(3_600_000),
            after: vec![],
            array: None,
        };
        JobOrder {
            circle: state.id(),
            certificate: approved.certificate,
            submission: SignedSubmission { submission, signature: None },
            attempt: 1,
            slot: SlotIndex(slot),
            fence: Fence::new(approved.version, fence),
            node: self.scene.facts.id,
            ranks: SlotRanks { first: 0, count: 2 },
            gpus: vec![],
            issued_at: NOW,
        }
    }

    fn assign(&self, order: JobOrder, start: bool) -> JobAssignment {
        let signer = &self.scene.world.control[0];
        let signature = signer.sign(JOB_ORDER_DOMAIN, &to_bytes(&order));
        let order = SignedJobOrder { order, signer: signer.public_key(), signature };
        JobAssignment { order, start, peers: vec![], artifact: None, inputs: vec![], checkpoint: None }
    }

    fn actions(&self, assigned: &[JobAssignment]) -> Vec<JobAction> {
        reconcile_jobs(&JobInput {
            circle: &self.scene.world.state,
            halts: &self.scene.halts,
            facts: &self.scene.facts,
            free: &self.free,
            book: &self.book,
            now: self.scene.now,
            assigned,
            chain_complete: true,
            running: &self.running,
        })
    }

    /// Returns the actions as texts: their kind and slot, and the code of a refusal.
    fn names(&self, assigned: &[JobAssignment]) -> Vec<String> {
        let name = |action: JobAction| match action {
            JobAction::Accept { signed, .. } => format!("accept {}", signed.order.slot),
            JobAction::Prepare { key } => format!("prepare {}", key.slot),
            JobAction::Start { key } => format!("start {}", key.slot),
            JobAction::End { key, .. } => format!("end {}", key.slot),
            JobAction::Close { key, refusal } => format!("close {} {}", key.slot, refusal.code),
            JobAction::Forget { key } => format!("forget {}", key.slot),
            JobAction::Refuse { signed, refusal } => {
                format!("refuse {} {}", signed.order.slot, refusal.code)
            }
        };
        self.actions(assigned).into_iter().map(name).collect()
    }

    /// Accepts what the core accepts.
    fn accept(&mut self, assigned: &[JobAssignment]) {
        for action in self.actions(assigned) {
            if let JobAction::Accept { signed, grant, gang } = action {
                self.book.accept(&signed.order, *grant, *gang);
            }
        }
    }

    /// Makes the slot run, as the shell does after it was accepted.
    fn run(&mut self, slot_index: u32, fence: u64) {
        let order = self.order(slot_index, fence);
        let assigned = [self.assign(order.clone(), false)];
        self.accept(&assigned);
        self.running.insert(slot(slot_index), order.fence);
    }
}

#[test]
fn a_slot_is_accepted_prepared_started_ended_and_forgotten() {
    let mut scene = JobScene::new(|_| {});
    let waits = [scene.assign(scene.order(0, 1), false)];
    let starts = [scene.assign(scene.order(0, 1), true)];
    assert_eq!(scene.names(&starts), ["accept 0"]);
    scene.accept(&waits);
    assert_eq!(scene.names(&starts), ["prepare 0"], "nothing starts that is not ready");
    scene.running.insert(slot(0), scene.order(0, 1).fence);
    assert!(scene.names(&waits).is_empty(), "control alone decides that the gang is ready");
    assert_eq!(scene.names(&starts), ["start 0"]);
    assert_eq!(scene.names(&[]), ["end 0"], "control names it no more");
    let fence = scene.running.remove(&slot(0)).unwrap();
    let end = JobSlotEnd::of_all(SlotRanks { first: 0, count: 2 }, RankOutcome::Stopped, None);
    assert!(scene.book.end(&slot(0), fence, end.clone()));
    assert!(!scene.book.end(&slot(0), fence, end), "an end is final");
    assert!(scene.names(&starts).is_empty(), "what ended does not start again");
    assert_eq!(scene.names(&[]), ["forget 0"]);
    scene.book.forget(&slot(0));
    assert_eq!(scene.names(&starts), ["refuse 0 order-replayed"], "the fence stays");
    assert_eq!(scene.names(&[scene.assign(scene.order(0, 2), false)]), ["accept 0"]);
}

/// Attacks of a hostile control that signs any order. The first line is the positive control.
#[test]
fn an_order_beyond_the_envelope_or_the_node_is_refused() {
    type Alter = fn(&mut JobOrder);
    let attacks: [(&str, Alter, &str); 6] = [
        ("a sound order", |_| {}, "accept 0"),
        (
            "of another node",
            |order| order.node = NodeId(protocol::PublicKey([3; 32])),
            "refuse 0 order-mismatch",
        ),
        ("of another circle", |order| order.circle = CircleId(Digest::of(b"x")), "refuse 0 order-mismatch"),
        ("with more ranks", |order| order.ranks.count = 3, "refuse 0 order-mismatch"),
        ("with a GPU", |order| order.gpus = vec!["GPU-0".into()], "refuse 0 order-mismatch"),
        ("of attempt 0", |order| order.attempt = 0, "refuse 0 order-mismatch"),
    ];
    let scene = JobScene::new(|_| {});
    for (what, alter, expected) in attacks {
        let mut order = scene.order(0, 1);
        alter(&mut order);
        assert_eq!(scene.names(&[scene.assign(order, false)]), [expected], "an order {what}");
    }
}

#[test]
fn a_halt_refuses_what_waits_and_is_seen_by_what_runs() {
    let mut scene = JobScene::new(|_| {});
    let wanted = [scene.assign(scene.order(0, 1), true)];
    assert_eq!(scene.names(&wanted), ["accept 0"], "positive control");
    scene.scene.halt(HaltScope::Service("train".parse().unwrap()), 1);
    assert_eq!(scene.names(&wanted), ["refuse 0 halted"]);

    let mut scene = JobScene::new(|_| {});
    scene.run(0, 1);
    let wanted = [scene.assign(scene.order(0, 1), true)];
    scene.scene.halt(HaltScope::Circle, 1);
    assert_eq!(scene.names(&wanted), ["end 0"]);
    let halted = halted_slots(
        &scene.scene.halts,
        &scene.scene.world.state,
        scene.scene.facts.id,
        scene.running.keys(),
    );
    assert_eq!(halted.len(), 1, "the shell kills it beside this plan");
    scene.running.clear();
    assert_eq!(scene.names(&wanted), ["close 0 halted"], "accepted, and not prepared");
}

#[test]
fn a_newer_order_waits_until_the_older_one_has_ended() {
    let mut scene = JobScene::new(|_| {});
    scene.run(0, 1);
    let newer = [scene.assign(scene.order(0, 2), true)];
    assert_eq!(scene.names(&newer), ["end 0"]);
    scene.running.clear();
    assert_eq!(scene.names(&newer), ["accept 0"]);
}

#[test]
fn slots_of_jobs_and_services_share_the_room_of_a_node() {
    let mut scene = JobScene::new(|_| {});
    // 4 cores, of which each slot takes one for its two ranks.
    let all: Vec<JobAssignment> = (0..4).map(|slot| scene.assign(scene.order(slot, 1), false)).collect();
    assert_eq!(scene.names(&all).len(), 4);
    assert!(scene.names(&all).iter().all(|name| name.starts_with("accept")), "all fit");
    scene.free.cpu_millicores = 3000;
    assert_eq!(scene.names(&all)[3], "refuse 3 resources-exceeded", "a service holds a core");
    scene.accept(&all);
    let held = HeldByJobs::of(scene.book.all_granted());
    let left = held.left_of(&scene.scene.facts.resources);
    assert_eq!((left.cpu_millicores, left.memory_bytes), (1000, (2 << 30) - 3 * (512 << 20)));
}

#[test]
fn a_gpu_serves_one_job_and_no_service() {
    let mut scene = JobScene::new(|job| job.resources.gpu_count = 1);
    let with = |scene: &JobScene, slot, gpus: [&str; 2]| {
        let mut order = scene.order(slot, 1);
        order.gpus = gpus.map(str::to_string).to_vec();
        scene.assign(order, false)
    };
    let both = with(&scene, 0, ["GPU-0", "GPU-1"]);
    assert_eq!(scene.names(std::slice::from_ref(&both)), ["accept 0"]);
    assert_eq!(scene.names(&[with(&scene, 0, ["GPU-0", "GPU-9"])]), ["refuse 0 node-unfit"]);
    let twice = [both.clone(), with(&scene, 1, ["GPU-1", "GPU-0"])];
    assert_eq!(scene.names(&twice), ["accept 0", "refuse 1 resources-exceeded"]);
    scene.free.gpus.remove(0);
    assert_eq!(
        scene.names(std::slice::from_ref(&both)),
        ["refuse 0 resources-exceeded"],
        "a service holds GPU 0"
    );
    scene.free = scene.scene.facts.resources.clone();
    scene.accept(&[both]);
    let held = HeldByJobs::of(scene.book.all_granted());
    assert!(held.left_of(&scene.scene.facts.resources).gpus.is_empty(), "services get none of them");
}

#[test]
fn the_end_of_an_approval_ends_what_runs() {
    let mut scene = JobScene::new(|job| job.valid_until = Some(NOW.plus(1_000)));
    scene.run(0, 1);
    let wanted = [scene.assign(scene.order(0, 1), false)];
    assert!(scene.names(&wanted).is_empty(), "positive control");
    scene.scene.now = NOW.plus(2_000 + limits::CLOCK_GRACE_MS);
    assert_eq!(scene.names(&wanted), ["end 0"]);
}

#[test]
fn a_restarted_agent_reports_what_ran_as_lost_and_keeps_the_fences() {
    let mut scene = JobScene::new(|_| {});
    scene.run(0, 1);
    scene.run(1, 1);
    let success = JobSlotEnd::of_all(SlotRanks { first: 0, count: 2 }, RankOutcome::Exited { code: 0 }, None);
    scene.book.end(&slot(1), scene.order(1, 1).fence, success.clone());
    let (circle, node) = (scene.scene.world.state.id(), scene.scene.facts.id);
    let record = scene.book.to_record(circle, node);
    scene.book = JobOrderBook::from_record(record.clone(), circle, node).unwrap();
    scene.running.clear();
    let ends = |slot_index| scene.book.held(&slot(slot_index)).unwrap().report.clone();
    assert_eq!((ends(0).state, ends(0).ends[1].outcome), (JobSlotState::Ended, RankOutcome::Lost));
    assert_eq!(ends(1).ends, success.ends, "an end that is on disk is no loss");
    let wanted = [scene.assign(scene.order(0, 1), true), scene.assign(scene.order(1, 1), true)];
    assert!(scene.names(&wanted).is_empty(), "nothing starts from the disk");
    assert_eq!(scene.names(&[]), ["forget 0", "forget 1"]);
    let other = NodeId(protocol::PublicKey([3; 32]));
    assert_eq!(JobOrderBook::from_record(record, circle, other).unwrap_err(), BookError::Foreign("node"));
}

/// Faults of a disk, or of a program that wrote the file: each would let an order of before start again.
#[test]
fn a_job_book_that_contradicts_itself_is_discarded_whole() {
    let mut scene = JobScene::new(|_| {});
    scene.run(0, 3);
    scene.run(1, 3);
    assert_eq!(scene.book.check_invariants(), Ok(()));
    let (circle, node) = (scene.scene.world.state.id(), scene.scene.facts.id);
    let record = scene.book.to_record(circle, node);
    let read = |fault: fn(&mut JobBookRecord)| {
        let mut faulty = record.clone();
        fault(&mut faulty);
        JobOrderBook::from_record(faulty, circle, node).map(|book| book.all_held().count())
    };
    let contradiction = |text| Err(BookError::Contradiction(text));
    assert_eq!(read(|_| {}), Ok(2), "positive control");
    let below = "a held slot's fence is not its highest";
    assert_eq!(read(|record| record.held[0].fence.count = 2), contradiction(below));
    assert_eq!(read(|record| record.fences[1].fence.count = 4), contradiction(below));
    assert_eq!(read(|record| drop(record.fences.remove(0))), contradiction(below));
    let twice = |record: &mut JobBookRecord| record.fences.push(record.fences[0].clone());
    assert_eq!(read(twice), contradiction("a slot has two fences"));
    let older = |record: &mut JobBookRecord| record.version += 1;
    let (found, read_version) = (JOB_BOOK_VERSION + 1, JOB_BOOK_VERSION);
    assert_eq!(read(older), Err(BookError::Version { found, read: read_version }));
}

#[test]
fn a_slot_ends_once_and_under_its_own_fence_alone() {
    let mut scene = JobScene::new(|_| {});
    scene.run(0, 3);
    let (key, fence) = (slot(0), scene.order(0, 3).fence);
    let end = |code| JobSlotEnd::of_all(SlotRanks { first: 0, count: 2 }, RankOutcome::Exited { code }, None);
    assert!(!scene.book.end(&key, scene.order(0, 2).fence, end(1)), "an end of an order before");
    assert!(!scene.book.end(&slot(1), fence, end(1)), "a slot that is not held");
    assert_eq!(scene.book.all_granted().count(), 1);
    let measured = JobSlotEnd { cpu_micros: 12, ..end(0) };
    assert!(scene.book.end(&key, fence, measured));
    assert!(!scene.book.end(&key, fence, end(1)), "a second end");
    let report = &scene.book.held(&key).unwrap().report;
    assert_eq!(
        (report.state, report.ends.clone(), report.cpu_micros),
        (JobSlotState::Ended, end(0).ends, 12)
    );
    assert_eq!(scene.book.all_granted().count(), 0, "nothing starts under it");
    scene.book.forget(&key);
    assert_eq!((scene.book.all_held().count(), scene.book.last_fence(&key)), (0, Some(fence)));
}
