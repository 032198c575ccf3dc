//! Cost of a plan with many jobs in the queue, of the real scheduler in this process.

use crate::cluster::{fresh_directory, nodes::prepare};
use crate::report::{BenchmarkReport, ComparisonRow, median};
use anyhow::{Context as _, Result, bail};
use control::grant::{GrantTerms, unsigned_grant};
use control::policy::simple_policy;
use human_chain::{MemberSecret, propose, sign_genesis, sign_grant, vote};
use protocol::access::{AccessEnvelope, GRANT_SECONDS_MAX, GrantedAccess};
use protocol::agent::{NodeResources, SyncRequest};
use protocol::governance::{Change, Choice, ControlReplica, Genesis, Member, NodeAdmission, TokenScope};
use protocol::manifest::{Isolation, Manifest};
use protocol::{Digest, MemberId, Millis, PublicKey, ReplicaId, TokenName};
use scheduler::{
    Action, Actor, ClockReadings, Cluster, ClusterView, Command, JobRequest, LeaderTime, Observed, Reply,
    WallTime, apply, plan,
};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

/// Nodes of the cluster, and jobs in the queue of each measurement.
const NODES: u32 = 100;
const QUEUES: [u32; 3] = [100, 1_000, 10_000];
/// Most tasks of one array.
const ARRAY: u32 = 1_000;
/// Plans of each measurement.
const PLANS: usize = 20;
/// Time of all events: 2026-11-21 12:41:50 UTC.
const NOW: Millis = Millis(1_795_264_910_000);
/// Jobs of one core; each node has eight.
const MANIFEST: &str = "kind = 'job'\nname = 'queued'\nartifact = { name = 'trainer', root = 'ROOT' }\n\
    command = ['/bin/train']\nranks = 1\nranks_per_slot = 1\nslots = 1024\nrun_seconds_max = 3600\n\
    submit = { any_token = true }\nresources = { cpu_millicores = 1000, memory = '1 GiB' }\n";
const NODE_MILLICORES: u64 = 8_000;

/// Measures a plan with each queue, beside that with the shortest.
pub(super) fn measure(report: &mut BenchmarkReport) -> Result<()> {
    let directory = fresh_directory("plan")?;
    let admissions = (0..NODES).map(|number| prepare(&directory, &format!("node-{number}")));
    let admissions: Vec<NodeAdmission> = admissions.collect::<Result<_>>()?;
    let mut shortest = None;
    for queue in QUEUES {
        let lab = PlanLab::new(&admissions, queue)?;
        let times: Vec<f64> = (0..PLANS).map(|_| lab.plan_ms()).collect();
        let base = *shortest.get_or_insert_with(|| median(&times));
        let (metric, peer) = (format!("plan_{queue}_queued"), format!("with {} queued", QUEUES[0]));
        report.rows.push(ComparisonRow::new(&metric, "ms", &peer, &times, &[base; PLANS], None));
    }
    report
        .notes
        .push(format!("plans: {NODES} nodes of 8 cores, jobs of one core; the first plan of a queue"));
    Ok(())
}

/// A cluster in this process, with jobs that wait.
struct PlanLab {
    cluster: Cluster,
    observed: Observed,
    clocks: ClockReadings,
}

impl PlanLab {
    fn new(admissions: &[NodeAdmission], queue: u32) -> Result<Self> {
        let member: MemberId = "member-00".parse().map_err(anyhow::Error::msg)?;
        let secret = MemberSecret::generate(&[1; 64]);
        let clocks: ClockReadings = [(ReplicaId(1), WallTime(NOW))].into_iter().collect();
        let mut lab = Self { cluster: Cluster::new(), observed: Observed::new(LeaderTime(NOW)), clocks };
        let genesis = genesis(&member, &secret, admissions);
        let circle = human_chain::circle_id(&genesis);
        let signed = sign_genesis(genesis, &[(member.clone(), &secret)]);
        lab.must(Actor::Scheduler, Action::Found(Box::new(signed)))?;
        lab.must(Actor::Scheduler, Action::Lead { replica: ReplicaId(1) })?;
        let terms = GrantTerms {
            circle,
            envelope: circle.0,
            holder: "benchmark".parse().map_err(anyhow::Error::msg)?,
            access: GrantedAccess::Token { scopes: [TokenScope::Submit].into() },
            valid_seconds: GRANT_SECONDS_MAX,
        };
        let grant = unsigned_grant(terms, &member, &secret, "a token that only this process knows", NOW);
        lab.must(Actor::Scheduler, Action::GrantAccess(Box::new(sign_grant(&secret, grant))))?;
        lab.approve(&member, &secret)?;
        lab.submit(queue)?;
        for admission in admissions {
            let generation = lab.cluster.generation();
            let heard =
                lab.observed.record_heartbeat(admission.id, &heartbeat(), generation, LeaderTime(NOW));
            heard.context("the node is in no eviction")?;
        }
        Ok(lab)
    }

    fn must(&mut self, actor: Actor, action: Action) -> Result<Reply> {
        let command = Command { clocks: self.clocks.clone(), actor, action, idempotency: None };
        match apply(&mut self.cluster, 1, &command) {
            Reply::Refused { code, message } => bail!("{code}: {message}"),
            reply => Ok(reply),
        }
    }

    fn approve(&mut self, member: &MemberId, secret: &MemberSecret) -> Result<()> {
        let manifest = Manifest::from_toml(&MANIFEST.replace("ROOT", &"1".repeat(64)))?;
        let state = self.cluster.circle_state().context("a circle")?;
        let (change, ends) = (Change::Deploy(Box::new(manifest)), NOW.plus(3_600_000));
        let proposal = propose(state, change, "for the benchmark".into(), NOW, ends, Digest::of(b"nonce"))?;
        let ballot = vote(secret, member.clone(), proposal.history, &proposal, Choice::Approve, NOW);
        self.must(Actor::Scheduler, Action::SubmitProposal(Box::new(proposal)))?;
        self.must(Actor::Scheduler, Action::CastBallot(Box::new(ballot))).map(drop)
    }

    /// Submits arrays until this many jobs wait.
    fn submit(&mut self, queue: u32) -> Result<()> {
        let token: TokenName = "benchmark".parse().map_err(anyhow::Error::msg)?;
        let mut left = queue;
        while left > 0 {
            let tasks = left.min(ARRAY);
            let request = JobRequest {
                job: "queued".parse().map_err(anyhow::Error::msg)?,
                idempotency: Digest::of(&left.to_le_bytes()),
                parameters: BTreeMap::new(),
                priority: None,
                deadline_seconds: None,
                after: BTreeSet::new(),
                array: Some(tasks),
            };
            self.must(Actor::Token(token.clone()), Action::RequestJob(Box::new(request)))?;
            left -= tasks;
        }
        Ok(())
    }

    /// Returns the milliseconds of a plan. It is not executed, so that each has the same work.
    fn plan_ms(&self) -> f64 {
        let (cluster, observed, clocks) = (&self.cluster, &self.observed, &self.clocks);
        let began = Instant::now();
        let plan = plan(ClusterView { cluster, observed, now: LeaderTime(NOW), clocks });
        let elapsed = began.elapsed().as_secs_f64() * 1e3;
        assert!(!plan.steps.is_empty(), "a free cluster starts jobs");
        elapsed
    }
}

fn genesis(member: &MemberId, secret: &MemberSecret, nodes: &[NodeAdmission]) -> Genesis {
    let members = vec![Member { id: member.clone(), keys: secret.public() }];
    Genesis {
        name: "plan".into(),
        founded_at: NOW,
        policy: simple_policy(&members, 1),
        access: AccessEnvelope::standard([member.clone()]),
        members,
        control: vec![ControlReplica {
            id: ReplicaId(1),
            key: PublicKey([9; 32]),
            address: "127.0.0.1:7001".into(),
            api: "http://127.0.0.1:7000".into(),
        }],
        nodes: nodes.to_vec(),
    }
}

/// Returns the report of a node that runs nothing.
fn heartbeat() -> SyncRequest {
    SyncRequest {
        boot: 1,
        version: "benchmark".into(),
        resources: NodeResources { cpu_millicores: NODE_MILLICORES, memory_bytes: 64 << 30, gpus: vec![] },
        isolation: Isolation::Full,
        not_enforced: vec![],
        slots: vec![],
        governance_length: 0,
        routes_version: None,
        wait_ms: 0,
        desired: Digest::of(b""),
        logs: vec![],
        complaints: vec![],
        jobs: vec![],
        usage: vec![],
        rank_lines_term: 0,
        rank_lines: vec![],
    }
}
