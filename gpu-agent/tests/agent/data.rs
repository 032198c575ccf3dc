//! Checkpoints and outputs of a job: real agents, sandboxes and stores. A rank leaves a checkpoint on one
//! node, and its next attempt resumes from it on another.

use crate::circle::{TestCircle, job};
use crate::control::{Control, listeners};
use crate::gangs::{GangNode, identity, node_id, pack};
use crate::node::{Agent, now};
use crate::program::copy_program;
use model_store::{
    ArtifactBuilder, ArtifactLimits, Context, ImportOptions, ModelKey, PlacementRule, Pool, Store,
    fresh_nonce, open_store, wrap_key,
};
use overlay::Identity;
use protocol::agent::Desired;
use protocol::canonical::to_bytes;
use protocol::governance::Change;
use protocol::job::{
    JOB_ORDER_DOMAIN, JobOrder, JobSubmission, SignedJobOrder, SignedSubmission, SlotRanks, Submitter,
};
use protocol::job_data::{JOB_DATA_DOMAIN, JobData, JobDataKind, JobDataSource, RegisterJobData};
use protocol::job_report::{ArtifactSource, JobAssignment, JobSlotReport, JobSlotState, RankOutcome};
use protocol::manifest::{ArtifactChoice, Manifest, ModelChoice};
use protocol::model::{ErasureCode, ModelRecord, Recipient, StoreReference, StoredKind};
use protocol::{ArtifactRoot, Digest, ErrorCode, Fence, JobId, Refusal, SlotIndex, error_code};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use tokio::net::TcpListener;

/// Number of nodes: two run the job in turn, and all three store.
const NODES: usize = 3;

/// A circle whose members approved a job of one rank, with its nodes.
struct DataWorld {
    directory: tempfile::TempDir,
    control: Control,
    nodes: Vec<GangNode>,
    agents: Vec<Agent>,
    program: PathBuf,
    packed: (PathBuf, ArtifactRoot),
    /// Locations of models and datasets that control sends with each order.
    inputs: Vec<ArtifactSource>,
}

impl DataWorld {
    /// Founds the circle with a job of this command, and starts the nodes.
    async fn new(arguments: &[&str]) -> Self {
        Self::reading(arguments, |_| vec![]).await
    }

    /// Founds the circle with a job that also reads these datasets and models, which are imported for the
    /// first node. The one of the name `corpus` is a dataset of the manifest.
    async fn reading(arguments: &[&str], import: impl FnOnce(&Path) -> Vec<(PathBuf, &'static str)>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let program = directory.path().join("program");
        copy_program(Path::new(env!("CARGO_BIN_EXE_pretend-worker")), &program);
        let packed = pack(&program, &directory.path().join("packed"));
        let (mut nodes, mut opened) = (Vec::new(), Vec::new());
        for number in 0..NODES {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap().to_string();
            nodes.push(GangNode::new(directory.path().join(format!("node-{number}")), number, Some(address)));
            opened.push(listener);
        }
        let (control_listeners, addresses) = listeners(1).await;
        let admissions = nodes.iter().map(|node| node.admission.clone()).collect();
        let mut world = TestCircle::new(admissions, &addresses, now());
        let mut manifest = job("train");
        (manifest.ranks, manifest.ranks_per_slot, manifest.checkpoints) = (1, 1, 2);
        let mut inputs = Vec::new();
        for (path, name) in import(directory.path()) {
            let (record, key) = import_item(&path, name, directory.path()).await;
            let choice = ModelChoice { name: name.parse().unwrap(), root: record.root };
            match name {
                "corpus" => manifest.datasets.push(choice),
                _ => manifest.models.push(choice),
            }
            let to = &nodes[0].admission.encryption;
            let wrap = wrap_key(&key, to, record.root, Recipient::Node(node_id(0))).unwrap();
            inputs.push(ArtifactSource { wrap: Some(world.sign_wrap(wrap, to)), record });
        }
        manifest.artifact = Some(ArtifactChoice { name: "trainer".parse().unwrap(), root: packed.1 });
        let command = ["/bin/rank", "trainer"].iter().chain(arguments);
        manifest.command = Some(command.map(ToString::to_string).collect());
        world.decide(Change::Deploy(Box::new(Manifest::Job(manifest))));
        let control = Control::start(world, control_listeners);
        let start = |(number, (node, listener)): (usize, (&GangNode, TcpListener))| {
            node.start(number, &control, &program, &packed, Some(listener))
        };
        let agents = nodes.iter().zip(opened).enumerate().map(start).collect();
        Self { directory, control, nodes, agents, program, packed, inputs }
    }

    /// Makes control assign the slot to a node alone.
    fn assign(&self, node: usize, attempt: u32, start: bool, checkpoint: Option<JobDataSource>) {
        self.control.say(|script| {
            let order = order(&script.world, node, attempt);
            let inputs = self.inputs.clone();
            let job = JobAssignment { order, start, peers: vec![], artifact: None, inputs, checkpoint };
            for other in 0..NODES {
                let jobs = if other == node { vec![job.clone()] } else { vec![] };
                script.desired_of.insert(node_id(other), Desired { assignments: vec![], routes: None, jobs });
            }
        });
    }

    async fn until(&self, node: usize, attempt: u32, state: JobSlotState) -> JobSlotReport {
        let reported = |script: &crate::control::ControlScript| {
            let mut reports = script.last_of.get(&node_id(node))?.jobs.iter();
            reports.find(|report| report.attempt == attempt && report.state == state).cloned()
        };
        self.control.until(&format!("{state:?} in attempt {attempt}"), reported).await
    }

    /// Lets an attempt run, once its slot is ready.
    async fn run(&self, node: usize, attempt: u32, checkpoint: Option<JobDataSource>) {
        self.assign(node, attempt, false, checkpoint);
        self.until(node, attempt, JobSlotState::Ready).await;
        self.assign(node, attempt, true, None);
    }

    /// Returns the registration with this number.
    async fn registration(&self, number: usize) -> RegisterJobData {
        self.control.until("a registration", |script| script.job_data.get(number).cloned()).await
    }

    /// Asserts that the first attempt ends with this code before a rank starts.
    async fn must_be_refused(self, code: ErrorCode) {
        self.assign(0, 1, false, None);
        let ended = self.until(0, 1, JobSlotState::Ended).await;
        assert_eq!(ended.refusal.map(|refusal| refusal.code), Some(code));
        assert_eq!(self.control.script().rank_lines, [""; 0], "no rank ran");
        self.stop().await;
    }

    async fn stop(self) {
        for agent in self.agents {
            agent.stop().await;
        }
    }
}

fn order(world: &TestCircle, node: usize, attempt: u32) -> SignedJobOrder {
    let approved = world.state.job(&"train".parse().unwrap()).unwrap();
    let submission = JobSubmission {
        circle: world.state.id(),
        job: "train".parse().unwrap(),
        certificate: approved.certificate,
        idempotency: Digest::of(b"data"),
        parameters: BTreeMap::new(),
        artifact: None,
        command: None,
        priority: 0,
        submitter: Submitter::Token("ci".parse().unwrap()),
        issued_at: world.now,
        deadline: world.now.plus(3_600_000),
        after: vec![],
        array: None,
    };
    let order = JobOrder {
        circle: world.state.id(),
        certificate: approved.certificate,
        submission: SignedSubmission { submission, signature: None },
        attempt,
        slot: SlotIndex(0),
        fence: Fence::new(approved.version, attempt.into()),
        node: node_id(node),
        ranks: SlotRanks { first: 0, count: 1 },
        gpus: vec![],
        issued_at: world.now,
    };
    let signer: &Identity = &world.control[0];
    let signature = signer.sign(JOB_ORDER_DOMAIN, &to_bytes(&order));
    SignedJobOrder { order, signer: signer.public_key(), signature }
}

/// Returns what control sends to a node of a registration.
fn source_for(request: &RegisterJobData, node: usize) -> JobDataSource {
    let wrap = request.wrap_of(&Recipient::Node(node_id(node))).cloned();
    JobDataSource { signed: request.signed.clone(), wrap }
}

/// Returns the source after control, or the node, altered its statement; the node signs again.
fn resigned(mut source: JobDataSource, node: usize, alter: impl FnOnce(&mut JobDataSource)) -> JobDataSource {
    alter(&mut source);
    source.signed.signature = identity(node).sign(JOB_DATA_DOMAIN, &to_bytes(&source.signed.data));
    source
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rank_resumes_on_another_node_from_the_checkpoint_that_it_left() {
    let world = DataWorld::new(&[]).await;
    world.run(0, 1, None).await;
    let kept = world.registration(0).await;
    let data = &kept.signed.data;
    assert_eq!(data.kind, JobDataKind::Checkpoint("step-1".parse().unwrap()));
    assert_eq!((data.attempt, data.node, data.stored.stores.len()), (1, node_id(0), NODES));
    assert!(data.stored.bytes > 1_500_000, "{} bytes", data.stored.bytes);
    // The first node loses the job, and the second gets it.
    world.run(1, 2, Some(source_for(&kept, 1))).await;
    let ended = world.until(1, 2, JobSlotState::Ended).await;
    let lines = world.control.script().rank_lines.clone();
    assert_eq!(ended.refusal, None, "{lines:?}");
    assert_eq!(ended.ends[0].outcome, RankOutcome::Exited { code: 0 }, "{lines:?}");
    assert!(lines.iter().any(|line| line == "resumed from step-1"), "{lines:?}");
    let outputs = world.registration(1).await.signed.data;
    assert_eq!((outputs.kind, outputs.attempt, outputs.node), (JobDataKind::Outputs, 2, node_id(1)));
    let all = world.control.script().job_data.len();
    assert_eq!(all, 2, "what was written in place is no checkpoint");
    world.stop().await;
}

/// Returns the root of a tree with this log of rank 0 alone.
fn tree_of_log(directory: &Path, text: &str) -> ArtifactRoot {
    let (files, work) = (directory.join("files"), directory.join("work"));
    for path in [&files, &work] {
        fs::create_dir_all(path).unwrap();
    }
    fs::write(files.join("rank-0.log"), text).unwrap();
    let mut builder = ArtifactBuilder::new(&work, ArtifactLimits::default()).unwrap();
    builder.add_data(&fs::File::open(&files).unwrap(), &files).unwrap();
    builder.pack_data().unwrap().unwrap().root
}

/// The logs of an attempt that is ended from outside are stored as those of one that succeeds. No node can
/// read them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_logs_of_each_attempt_are_stored_for_the_members_alone() {
    let world = DataWorld::new(&[]).await;
    world.run(0, 1, None).await;
    let kept = world.registration(0).await;
    world.run(1, 2, Some(source_for(&kept, 1))).await;
    world.until(1, 2, JobSlotState::Ended).await;
    let both = |script: &crate::control::ControlScript| {
        let mut logs = script.job_logs.clone();
        logs.sort_by_key(|request| request.signed.data.attempt);
        (logs.len() == 2).then_some(logs)
    };
    let logs = world.control.until("the logs of both attempts", both).await;
    for (number, (request, text)) in logs.iter().zip(["left step-1\n", "resumed from step-1\n"]).enumerate() {
        let data = &request.signed.data;
        assert_eq!((data.attempt as usize, data.node), (number + 1, node_id(number)));
        let expected = tree_of_log(&world.directory.path().join(format!("expected-{number}")), text);
        assert_eq!(data.tree(), Some(expected), "attempt {}", data.attempt);
        assert!(request.wraps.iter().all(|wrap| matches!(wrap.recipient, Recipient::Member(_))));
    }
    world.stop().await;
}

/// A slot that ended is stated once more, and no longer once control has answered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_cpu_time_of_a_slot_comes_under_the_signature_of_its_node() {
    let world = DataWorld::new(&["many"]).await;
    world.run(0, 1, None).await;
    let ended = world.until(0, 1, JobSlotState::Ended).await;
    assert!(ended.cpu_micros > 0, "it computed");
    let last = |script: &crate::control::ControlScript| {
        let counted = script.usage.iter().map(|signed| signed.usage.counts.cpu_used_microseconds).max();
        counted.filter(|counted| *counted == ended.cpu_micros)
    };
    world.control.until("the counts at the end", last).await;
    let (circle, stated) = {
        let script = world.control.script();
        (script.world.state.id(), script.usage.clone())
    };
    for signed in &stated {
        assert!(signed.holds(circle), "{signed:?}");
        let usage = &signed.usage;
        assert_eq!((usage.node, usage.envelope.as_str(), usage.fence), (node_id(0), "train", ended.fence));
    }
    world.stop().await;
}

/// Attacks of a hostile control, and of a node whose statement it hands on: each alters one thing that the
/// next attempt would begin with. Without the check, the ranks would compute from it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_rank_begins_with_a_checkpoint_that_does_not_hold() {
    let world = DataWorld::new(&[]).await;
    world.run(0, 1, None).await;
    let sound = source_for(&world.registration(0).await, 1);
    let tree = ArtifactRoot(Digest::of(b"another tree"));
    let other_tree = |source: &mut JobDataSource| {
        source.signed.data.stored.kind = StoredKind::JobData { tree };
    };
    let mut unsigned = sound.clone();
    unsigned.signed.data.attempt = 1;
    unsigned.signed.data.stored.bytes += 1;
    let attacks = [
        (unsigned, error_code::JOB_DATA_INVALID),
        (
            resigned(sound.clone(), 0, |source| source.signed.data.id = JobId(Digest::of(b"other"))),
            error_code::JOB_DATA_INVALID,
        ),
        (resigned(sound.clone(), 0, |source| source.signed.data.attempt = 9), error_code::JOB_DATA_INVALID),
        (resigned(sound.clone(), 0, other_tree), error_code::JOB_DATA_INVALID),
        (
            resigned(sound.clone(), 0, |source| source.signed.data.stored.bytes = 1 << 40),
            error_code::ARTIFACT_TOO_LARGE,
        ),
        (JobDataSource { wrap: None, ..sound.clone() }, error_code::MODEL_KEY_WRONG),
        (source_for(&world.registration(0).await, 2), error_code::MODEL_KEY_WRONG),
    ];
    for (attempt, (source, code)) in (2..).zip(attacks) {
        world.assign(1, attempt, false, Some(source));
        let ended = world.until(1, attempt, JobSlotState::Ended).await;
        let refusal = ended.refusal.unwrap_or_else(|| panic!("attempt {attempt} was not refused"));
        assert_eq!(refusal.code, code, "attempt {attempt}: {refusal}");
    }
    // The positive control: the checkpoint as it was left.
    world.assign(1, 20, false, Some(sound));
    world.until(1, 20, JobSlotState::Ready).await;
    world.stop().await;
}

/// The attack is a job that offers a file of the machine as its output.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_output_that_leads_out_fails_the_attempt_by_name() {
    let world = DataWorld::new(&["leads-out"]).await;
    world.run(0, 1, None).await;
    let ended = world.until(0, 1, JobSlotState::Ended).await;
    assert_eq!(ended.ends[0].outcome, RankOutcome::Exited { code: 0 }, "its ranks succeeded");
    let refusal = ended.refusal.expect("its outputs are refused");
    assert_eq!(refusal.code, error_code::ARTIFACT_LINK_REFUSED, "{refusal}");
    assert!(world.control.script().job_data.is_empty(), "nothing was registered");
    world.stop().await;
}

/// The attack is two sparse files, each below the bound of its area: to read them would fill the node's disk.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn outputs_of_too_many_bytes_fail_the_attempt_by_name() {
    let world = DataWorld::new(&["too-large"]).await;
    world.run(0, 1, None).await;
    let ended = world.until(0, 1, JobSlotState::Ended).await;
    assert_eq!(ended.ends[0].outcome, RankOutcome::Exited { code: 0 }, "its ranks succeeded");
    let refusal = ended.refusal.expect("its outputs are refused");
    assert_eq!(refusal.code, error_code::ARTIFACT_TOO_LARGE, "{refusal}");
    assert!(world.control.script().job_data.is_empty(), "nothing was registered");
    world.stop().await;
}

/// A registration that control refuses is reported to the people of the job, and its bytes leave the stores.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkpoint_that_control_refuses_is_reported_and_removed() {
    let world = DataWorld::new(&[]).await;
    let refusal = Refusal::new(error_code::JOB_DATA_FENCED, "the attempt is over");
    world.control.say(|script| script.data_refusal = Some(refusal));
    world.run(0, 1, None).await;
    world.registration(0).await;
    let told = |script: &crate::control::ControlScript| {
        let line = script.rank_lines.iter().find(|line| line.starts_with("quorate: "))?;
        Some(line.clone())
    };
    let line = world.control.until("a line about it", told).await;
    assert!(line.contains("job-data-fenced") && line.contains("`step-1`"), "{line}");
    let stores = (0..NODES).map(|node| world.directory.path().join(format!("node-{node}/offered")));
    for store in stores {
        let left = objects(&store);
        assert!(left.is_empty(), "{}: {left:?}", store.display());
    }
    world.stop().await;
}

/// Control takes one checkpoint after another, and loses its leader: an agent asks until it answers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registration_is_sent_again_until_control_answers_it() {
    let world = DataWorld::new(&[]).await;
    let busy = Refusal::new(error_code::LIMIT_REACHED, "one a second");
    world.control.say(|script| script.data_refusal = Some(busy));
    world.run(0, 1, None).await;
    let first = world.registration(0).await;
    let second = world.registration(1).await;
    assert_eq!(first, second, "the same statement");
    world.control.say(|script| script.data_refusal = None);
    let asked = world.control.script().job_data.len();
    world.registration(asked).await;
    // The checkpoint is in the stores: the next attempt begins with it.
    world.run(1, 2, Some(source_for(&first, 1))).await;
    let ended = world.until(1, 2, JobSlotState::Ended).await;
    assert_eq!(ended.refusal, None);
    assert!(!world.control.script().rank_lines.iter().any(|line| line.starts_with("quorate: ")));
    world.stop().await;
}

/// The crash: the agent is killed once the bytes are in the stores, and before control keeps them. Nothing is
/// registered, so the next attempt begins without a checkpoint, and registers its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_is_killed_in_mid_import_leaves_nothing_registered() {
    let mut world = DataWorld::new(&[]).await;
    let busy = Refusal::new(error_code::LIMIT_REACHED, "one a second");
    world.control.say(|script| script.data_refusal = Some(busy));
    world.run(0, 1, None).await;
    let lost = world.registration(0).await;
    world.agents.remove(0).kill().await;
    world.control.say(|script| {
        script.data_refusal = None;
        script.job_data.clear();
    });
    world.run(1, 2, None).await;
    let kept = world.registration(0).await.signed.data;
    assert_eq!((kept.attempt, kept.node), (2, node_id(1)));
    assert_eq!(kept.stored.kind, lost.signed.data.stored.kind, "the same tree");
    assert_ne!(kept.stored.root, lost.signed.data.stored.root, "under a key of its own");
    world.stop().await;
}

/// The crash: the agent is killed while a job runs, and started again. Its job has ended, no file of its
/// areas is left, and nothing is registered a second time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_starts_again_has_no_areas_of_its_last_jobs() {
    let mut world = DataWorld::new(&[]).await;
    world.run(0, 1, None).await;
    world.registration(0).await;
    let areas = world.directory.path().join("node-0/agent/areas");
    assert!(objects(&areas).iter().any(|path| path.ends_with("checkpoint/step-1/weights")), "it has files");
    world.agents.remove(0).kill().await;
    world.control.say(|script| {
        script.last_of.remove(&node_id(0));
        script.desired_of.remove(&node_id(0));
    });
    let again = world.nodes[0].start(0, &world.control, &world.program, &world.packed, None);
    world.agents.push(again);
    let is_back = |script: &crate::control::ControlScript| {
        let report = script.last_of.get(&node_id(0))?;
        report.jobs.iter().all(|job| job.state == JobSlotState::Ended).then_some(())
    };
    world.control.until("the agent is back", is_back).await;
    assert_eq!(objects(&areas), [""; 0]);
    assert_eq!(world.control.script().job_data.len(), 1);
    // The other node resumes from what was registered before.
    let kept = world.registration(0).await;
    world.run(1, 2, Some(source_for(&kept, 1))).await;
    let ended = world.until(1, 2, JobSlotState::Ended).await;
    assert_eq!(ended.ends[0].outcome, RankOutcome::Exited { code: 0 });
    world.stop().await;
}

/// A job that leaves more than it may keep: the oldest leaves the stores, and names that are no checkpoint
/// are reported to its people. The attack among them is a link to a file of the machine.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_newest_checkpoints_are_kept_and_the_oldest_leaves_the_stores() {
    let world = DataWorld::new(&["many"]).await;
    world.run(0, 1, None).await;
    let ended = world.until(0, 1, JobSlotState::Ended).await;
    assert_eq!(ended.refusal, None, "checkpoints that are not kept fail no attempt");
    let mut kept = Vec::new();
    for number in 0..3 {
        kept.push(world.registration(number).await.signed.data);
    }
    let names: Vec<String> = kept.iter().map(|data| data.kind.to_string()).collect();
    assert_eq!(names, ["checkpoint `step-1`", "checkpoint `step-2`", "checkpoint `step-3`"]);
    for number in 0..NODES {
        let store = world.directory.path().join(format!("node-{number}/offered"));
        let found = objects(&store).join(" ");
        let has = |data: &JobData| found.contains(&data.stored.root.to_string());
        assert_eq!(kept.iter().map(has).collect::<Vec<_>>(), [false, true, true], "{found}");
    }
    let lines = world.control.script().rank_lines.clone();
    for (part, why) in [("`empty`", "is empty"), ("not kept", "name"), ("`link`", "artifact-link-refused")] {
        let is_told =
            |line: &String| line.starts_with("quorate: ") && line.contains(part) && line.contains(why);
        assert!(lines.iter().any(is_told), "{part}: {lines:?}");
    }
    world.stop().await;
}

/// A storage node that is down is done without, and the circle of two that is left keeps the checkpoint. The
/// loss of a second leaves no place, which fails the attempt by name: its outputs would be lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn data_is_stored_without_a_node_that_is_down_and_refused_without_two() {
    let mut world = DataWorld::new(&[]).await;
    world.run(0, 1, None).await;
    let sound = world.registration(0).await;
    world.agents.remove(2).kill().await;
    world.run(1, 2, None).await;
    let kept = world.registration(1).await;
    let urls: Vec<&str> = kept.signed.data.stored.stores.iter().map(|store| store.url.as_str()).collect();
    assert_eq!(urls, ["node://node-0/disk-0", "node://node-1/disk-0"]);
    assert_eq!(kept.signed.data.stored.kind, sound.signed.data.stored.kind, "the same tree");
    // It resumes from either, and leaves outputs.
    world.assign(0, 3, false, Some(source_for(&kept, 0)));
    world.until(0, 3, JobSlotState::Ready).await;
    world.agents.remove(1).kill().await;
    world.assign(0, 3, true, None);
    let ended = world.until(0, 3, JobSlotState::Ended).await;
    assert_eq!(ended.ends[0].outcome, RankOutcome::Exited { code: 0 }, "its ranks succeeded");
    assert!(ended.refusal.is_some(), "its outputs have no place");
    assert_eq!(world.control.script().job_data.len(), 2, "nothing more was registered");
    world.stop().await;
}

/// Returns the files below a directory.
fn objects(directory: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        match entry.file_type().unwrap().is_dir() {
            true => found.extend(objects(&entry.path())),
            false => found.push(entry.path().display().to_string()),
        }
    }
    found
}

/// Imports a file into three directories under a key of its own.
async fn import_item(path: &Path, name: &str, directory: &Path) -> (ModelRecord, ModelKey) {
    let store = |number: usize| {
        let url = format!("file://{}", directory.join(format!("store-{number}")).display());
        open_store(&StoreReference { url, failure_domain: number.to_string() }, &Context::new()).unwrap()
    };
    let stores: Vec<Store> = (0..3).map(store).collect();
    let options = ImportOptions {
        erasure: ErasureCode { data: 2, parity: 1 },
        placement: PlacementRule { shards_per_domain_max: 1 },
        ..ImportOptions::new(name.parse().unwrap(), fresh_nonce().unwrap())
    };
    let key = ModelKey::generate().unwrap();
    let imported = model_store::import(path, options, &stores, &key, &Pool::new(1), |_| ()).await.unwrap();
    (imported.record, key)
}

/// Makes a packed dataset and a model of one file.
fn dataset_and_model(directory: &Path) -> Vec<(PathBuf, &'static str)> {
    let (files, work) = (directory.join("files"), directory.join("dataset"));
    fs::create_dir_all(files.join("deep")).unwrap();
    fs::create_dir(&work).unwrap();
    fs::write(files.join("deep/part-0"), vec![3; 700_000]).unwrap();
    let mut builder = ArtifactBuilder::new(&work, ArtifactLimits::default()).unwrap();
    builder.add_data(&fs::File::open(&files).unwrap(), &files).unwrap();
    let packed = builder.pack_data().unwrap().unwrap();
    let model = directory.join("weights.txt");
    fs::write(&model, vec![4; 1_200_000]).unwrap();
    vec![(packed.path, "corpus"), (model, "tiny")]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn models_and_datasets_appear_read_only_under_their_names() {
    let mut world = DataWorld::reading(&["reads"], dataset_and_model).await;
    world.run(0, 1, None).await;
    let ended = world.until(0, 1, JobSlotState::Ended).await;
    let mut lines = world.control.script().rank_lines.clone();
    assert_eq!(ended.refusal, None, "{lines:?}");
    assert_eq!(ended.ends[0].outcome, RankOutcome::Exited { code: 0 }, "{lines:?}");
    // Lines are sent again if their answer is lost, or news broke off their request.
    lines.dedup();
    assert_eq!(lines[..2], ["read 700000 and 1200000 bytes", "inputs are read-only"]);
    // Attacks of a hostile control: it names other items than those that members approved, or none.
    let (dataset, model) = (world.inputs[0].clone(), world.inputs[1].clone());
    let elsewhere = ModelRecord { stores: vec![], ..model.record.clone() };
    let unshared = ArtifactSource { wrap: None, ..model.clone() };
    for (attempt, inputs, code) in [
        (2, vec![], error_code::MODEL_NOT_FOUND),
        (3, vec![model.clone()], error_code::MODEL_NOT_FOUND),
        (4, vec![dataset.clone(), ArtifactSource { record: elsewhere, ..model }], {
            error_code::MODEL_MANIFEST_INVALID
        }),
        (5, vec![dataset, unshared], error_code::MODEL_KEY_WRONG),
    ] {
        world.inputs = inputs;
        world.assign(0, attempt, false, None);
        let ended = world.until(0, attempt, JobSlotState::Ended).await;
        let refusal = ended.refusal.unwrap_or_else(|| panic!("attempt {attempt} was not refused"));
        assert_eq!(refusal.code, code, "attempt {attempt}: {refusal}");
    }
    world.stop().await;
}

/// The attack is a manifest that names an item of another kind: a dataset under `/models`, a model under
/// `/datasets`. Neither is placed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_input_of_another_kind_is_refused_by_code() {
    let only = |at: usize, name: &'static str| {
        move |directory: &Path| vec![(dataset_and_model(directory).swap_remove(at).0, name)]
    };
    let dataset_as_model = DataWorld::reading(&["reads"], only(0, "tiny")).await;
    dataset_as_model.must_be_refused(error_code::MODEL_KIND_WRONG).await;
    let model_as_dataset = DataWorld::reading(&["reads"], only(1, "corpus")).await;
    model_as_dataset.must_be_refused(error_code::MODEL_KIND_WRONG).await;
}
