//! A gang of two ranks on two nodes: real agents, real sandboxes with TUN devices, the link between them,
//! and a program that exchanges bytes over TCP by the names of its ranks.

use crate::circle::{TestCircle, admission, claimed_by, job};
use crate::control::{Control, LONG_LEASE_MS, PATIENCE, listeners};
use crate::node::{Agent, now, storage};
use crate::program::copy_program;
use gpu_agent::agent::{AgentConfig, ControlLink, DrainConfig, ResourceCaps, run};
use host::Clock;
use model_store::{ArtifactBuilder, ArtifactCache, ArtifactLimits, EncryptionSecret};
use overlay::{CancellationToken, Identity};
use protocol::agent::Desired;
use protocol::artifact::ArtifactStart;
use protocol::canonical::to_bytes;
use protocol::governance::{Change, NodeAdmission, NodeRole, StorageEndpoint};
use protocol::job::{
    JOB_ORDER_DOMAIN, JobOrder, JobSubmission, SignedJobOrder, SignedSubmission, SlotRanks, Submitter,
};
use protocol::job_report::{JobAssignment, JobSlotReport, JobSlotState, RankOutcome};
use protocol::manifest::{ArtifactChoice, Manifest};
use protocol::{ArtifactRoot, Digest, Fence, NodeId, SlotIndex};
use sandbox::{LauncherConfig, SandboxLauncher, libraries_of};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use tokio::net::TcpListener;

/// Seeds of the nodes' keys. The first two run the ranks, and the third can carry their link.
const NODES: [u8; 3] = [21, 22, 23];
const RANKS: usize = 2;

pub(crate) fn identity(node: usize) -> Identity {
    Identity::from_seed(&[NODES[node]; 32])
}

pub(crate) fn node_id(node: usize) -> NodeId {
    NodeId(identity(node).public_key())
}

/// Packs the test program, with the libraries that it needs.
pub(crate) fn pack(program: &Path, work: &Path) -> (PathBuf, ArtifactRoot) {
    fs::create_dir(work).unwrap();
    let mut builder = ArtifactBuilder::new(work, ArtifactLimits::default()).unwrap();
    let mut add = |path: &str, from: &Path| {
        let file = File::open(from).unwrap();
        let length = file.metadata().unwrap().len();
        builder.add_file(path.trim_start_matches('/'), true, file, length, from).unwrap();
    };
    add("/bin/rank", program);
    for library in libraries_of(program).unwrap() {
        add(library.to_str().unwrap(), &library);
    }
    let start = ArtifactStart {
        command: vec!["/bin/rank".into()],
        environment: BTreeMap::new(),
        working_directory: "/".into(),
        architecture: "amd64".into(),
    };
    let packed = builder.pack(start).unwrap();
    (packed.path, packed.root)
}

fn order(world: &TestCircle, node: usize) -> SignedJobOrder {
    let approved = world.state.job(&"train".parse().unwrap()).unwrap();
    let submission = JobSubmission {
        circle: world.state.id(),
        job: "train".parse().unwrap(),
        certificate: approved.certificate,
        idempotency: Digest::of(b"gang"),
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
        attempt: 1,
        slot: SlotIndex(node as u32),
        fence: Fence::new(approved.version, 1),
        node: node_id(node),
        ranks: SlotRanks { first: node as u32, count: 1 },
        gpus: vec![],
        issued_at: world.now,
    };
    let signer = &world.control[0];
    let signature = signer.sign(JOB_ORDER_DOMAIN, &to_bytes(&order));
    SignedJobOrder { order, signer: signer.public_key(), signature }
}

/// Directory of one node, and its keys.
pub(crate) struct GangNode {
    pub(crate) directory: PathBuf,
    pub(crate) admission: NodeAdmission,
}

impl GangNode {
    pub(crate) fn new(directory: PathBuf, number: usize, address: Option<String>) -> Self {
        fs::create_dir(&directory).unwrap();
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o755)).unwrap();
        let encryption = EncryptionSecret::create(&directory.join("encryption.key")).unwrap();
        let name = format!("node-{number}");
        let mut admission = admission(&name, &identity(number), encryption.public().clone());
        if let Some(address) = address {
            admission.roles.insert(NodeRole::Storage);
            admission.storage = Some(StorageEndpoint { address, stores: ["disk-0".parse().unwrap()].into() });
        }
        Self { directory, admission: claimed_by(&identity(number), admission) }
    }

    pub(crate) fn start(
        &self,
        number: usize,
        control: &Control,
        program: &Path,
        (packed, root): &(PathBuf, ArtifactRoot),
        listener: Option<TcpListener>,
    ) -> Agent {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let (count, directory) = (COUNT.fetch_add(1, Ordering::Relaxed), self.directory.join("agent"));
        let is_first = !directory.exists();
        fs::create_dir_all(&directory).unwrap();
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o700)).unwrap();
        let cache = ArtifactCache::open(&directory.join("artifacts"), 1 << 30).unwrap();
        if is_first {
            cache.insert(*root, &File::open(packed).unwrap()).unwrap();
        }
        let launcher = SandboxLauncher::new(LauncherConfig {
            program: program.to_path_buf(),
            arguments: vec!["sandbox-init".into()],
            state_dir: directory.join("sandboxes"),
            cgroup_parent: format!("quorate-test/gang-{}-{count}", std::process::id()),
            ids_first: 340_000 + (std::process::id() % 500) * 64 + count * 8,
            id_pairs: 4,
            lease_ms_max: LONG_LEASE_MS,
        });
        let script = control.script();
        let config = AgentConfig {
            directory,
            identity: identity(number),
            encryption: EncryptionSecret::load(&self.directory.join("encryption.key")).unwrap(),
            genesis: script.world.genesis.clone(),
            circle: script.world.state.id(),
            admission: self.admission.clone(),
            storage: listener.map(|listener| storage(listener, &self.directory)),
            gateway: None,
            serve_program: program.to_path_buf(),
            resources: ResourceCaps { cpu_millicores: Some(4000), memory_bytes: None },
            device: gpu_agent::device::open(Some("1xH100")).unwrap(),
            launcher: Arc::new(launcher.unwrap()),
            clock: Clock::machine(),
            lease_ms_max: LONG_LEASE_MS,
            control: ControlLink::Overlay,
            metrics: None,
            drain: DrainConfig::default(),
        };
        drop(script);
        let shutdown = CancellationToken::new();
        Agent { task: tokio::spawn(run(config, shutdown.clone())), shutdown }
    }
}

/// Makes control name the slot of each node, with the other's order as its peer's.
fn assign(control: &Control, start: bool) {
    control.say(|script| {
        for node in 0..RANKS {
            let (order, peer) = (order(&script.world, node), order(&script.world, 1 - node));
            let job = JobAssignment {
                order,
                start,
                peers: vec![peer],
                artifact: None,
                inputs: vec![],
                checkpoint: None,
            };
            let desired = Desired { assignments: vec![], routes: None, jobs: vec![job] };
            script.desired_of.insert(node_id(node), desired);
        }
    });
}

/// Waits until the slot of each node is reported in this state, and returns the reports.
async fn until_both(control: &Control, state: JobSlotState) -> Vec<JobSlotReport> {
    let reported = |script: &crate::control::ControlScript| {
        let reports = (0..RANKS).map(|node| {
            let report = script.last_of.get(&node_id(node))?.jobs.first()?;
            assert!(report.refusal.is_none(), "{:?}", report.refusal);
            (report.state == state).then(|| report.clone())
        });
        reports.collect::<Option<Vec<JobSlotReport>>>()
    };
    control.until(&format!("{state:?} on both nodes"), reported).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_ranks_on_two_nodes_exchange_bytes_by_their_names() {
    run_gang(0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_ranks_on_nodes_that_listen_nowhere_exchange_bytes_through_a_third() {
    run_gang(2).await;
}

/// Runs the gang in a circle of which one node, `listens`, has a storage address.
async fn run_gang(listens: usize) {
    if File::options().read(true).write(true).open("/dev/net/tun").is_err() {
        eprintln!("skipped: this user may not open /dev/net/tun");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let program = directory.path().join("program");
    copy_program(Path::new(env!("CARGO_BIN_EXE_pretend-worker")), &program);
    let packed = pack(&program, &directory.path().join("packed"));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let node = |number: usize| {
        let address = (number == listens).then(|| address.clone());
        GangNode::new(directory.path().join(format!("node-{number}")), number, address)
    };
    let nodes = [0, 1, 2].map(node);
    let (control_listeners, addresses) = listeners(1).await;
    let admissions = nodes.iter().map(|node| node.admission.clone()).collect();
    let mut world = TestCircle::new(admissions, &addresses, now());
    let mut manifest = job("train");
    (manifest.ranks, manifest.ranks_per_slot) = (2, 1);
    manifest.artifact = Some(ArtifactChoice { name: "trainer".parse().unwrap(), root: packed.1 });
    manifest.command = Some(vec!["/bin/rank".into(), "rank".into()]);
    world.decide(Change::Deploy(Box::new(Manifest::Job(manifest))));
    let control = Control::start(world, control_listeners);

    let mut listener = Some(listener);
    let mut start = |number: usize| {
        let listener = listener.take_if(|_| number == listens);
        nodes[number].start(number, &control, &program, &packed, listener)
    };
    let (third, first) = (start(2), start(0));
    assign(&control, false);
    // The first node's slot is not ready before the second node is there.
    let prepares = |script: &crate::control::ControlScript| {
        let report = script.last_of.get(&node_id(0))?.jobs.first()?.clone();
        Some(report.state)
    };
    assert_eq!(control.until("the first node's report", prepares).await, JobSlotState::Preparing);
    let second = start(1);
    until_both(&control, JobSlotState::Ready).await;
    assign(&control, true);
    let ended = until_both(&control, JobSlotState::Ended).await;
    let lines = control.script().rank_lines.clone();
    for report in &ended {
        let outcomes: Vec<RankOutcome> = report.ends.iter().map(|end| end.outcome).collect();
        assert_eq!(outcomes, [RankOutcome::Exited { code: 0 }], "{lines:?}");
    }
    let said = |text: &str| lines.iter().any(|line| line.contains(text));
    assert!(said("rank-0 received 8388608 bytes") && said("rank-1 got them back"), "{lines:?}");
    assert!(said("rank 1 reaches nothing else"), "{lines:?}");
    let stopped = async { tokio::join!(first.stop(), second.stop(), third.stop()) };
    tokio::time::timeout(PATIENCE, stopped).await.unwrap();
}
