//! State machine tests: accepted and refused commands, and refusals that leave no trace.

use crate::common::*;
use protocol::agent::SlotState;
use protocol::api::ProposalState;
use protocol::canonical::to_bytes;
use protocol::error_code::{BALLOT_DUPLICATE, IDEMPOTENCY_KEY_REUSED, NAME_TAKEN, TOKEN_SCOPE_MISSING};
use protocol::governance::*;
use protocol::limits::{CLOCK_GRACE_MS, LEASE_MS};
use protocol::manifest::*;
use protocol::{Digest, Fence, Millis, ReplicaId, SlotIndex};
use scheduler::limits::*;
use scheduler::*;

fn scale(service: &str, replicas: u32) -> Action {
    Action::Scale { service: service_name(service), replicas }
}

#[test]
fn nothing_happens_before_the_circle_is_founded() {
    let world = World::empty();
    let other = two_nodes();
    let proposal = other.proposal(deploy(manifest("embed", 1, 1, 1000, 64)));
    let ballot = other.ballot("alice", &proposal, Choice::Approve);
    let mut forged = genesis(&[]);
    forged.genesis.name = "another".into();
    check(
        &world,
        vec![
            ("scale", scale("embed", 1), "circle-not-founded"),
            ("key", world.granting_key("app", "secret"), "circle-not-founded"),
            ("model", world.register(model("minilm", 1), &[]), "circle-not-founded"),
            ("wraps", Action::PutWraps(vec![]), "circle-not-founded"),
            ("proposal", Action::SubmitProposal(Box::new(proposal)), "circle-not-founded"),
            ("ballot", Action::CastBallot(Box::new(ballot)), "circle-not-founded"),
            ("enrol", Action::Enrol(Box::new(node("n", 1, 1).admission)), "circle-not-founded"),
            ("altered genesis", Action::Found(Box::new(forged)), "signature-invalid"),
            ("lead", Action::Lead { replica: ReplicaId(1) }, "ok"),
            ("tick", Action::Tick, "ok"),
            ("genesis", Action::Found(Box::new(genesis(&[]))), "ok"),
        ],
    );
    assert!(world.plan().is_empty());
    let again = Action::Found(Box::new(genesis(&[])));
    check(&other, vec![("a second genesis", again, "circle-already-founded")]);
}

#[test]
fn tokens_do_what_their_scopes_allow() {
    let world = running();
    let proposal = world.proposal(Change::Retire { service: service_name("embed"), grace_seconds: 1 });
    let submit = || Action::SubmitProposal(Box::new(proposal.clone()));
    for (name, actor, action, expected) in [
        ("reader scales", token("reader"), scale("embed", 2), "token-scope-missing"),
        ("operator scales", token("operator"), scale("embed", 2), "ok"),
        ("nobody scales", token("nobody"), scale("embed", 2), "token-scope-missing"),
        ("reader proposes", token("reader"), submit(), "token-scope-missing"),
        ("operator proposes", token("operator"), submit(), "ok"),
    ] {
        assert_eq!(verdict(&world, actor, action), expected, "{name}");
    }
}

#[test]
fn proposals_are_judged_when_they_come() {
    let world = running();
    let change = deploy(manifest("other", 1, 1, 1000, 64));
    let good = world.proposal(change.clone());
    let mut other_circle = good.clone();
    other_circle.circle = protocol::CircleId(Digest::of(b"another"));
    let mut other_epoch = good.clone();
    other_epoch.epoch = protocol::Epoch(9);
    let mut expired = good.clone();
    (expired.created_at, expired.expires_at) = (Millis(1), Millis(2));
    let mut wrong_version = good.clone();
    wrong_version.subjects[0].version = 7;
    let mut impossible = good.clone();
    impossible.change = deploy(manifest("other", 3, 1, 1000, 64));
    let job = "kind = 'job'\nname = 'other'\nartifact = { name = 'trainer', root = 'ROOT' }\n\
        command = ['/bin/train']\nranks = 1\nrun_seconds_max = 1\nsubmit = { members = true }\n\
        resources = { cpu_millicores = 1000, memory = '1 GiB' }\n";
    let job = Manifest::from_toml(&job.replace("ROOT", &"1".repeat(64))).expect("a sound manifest");
    let mut of_a_job = good.clone();
    of_a_job.change = Change::Deploy(Box::new(job));
    let mut with_egress = good.clone();
    let open_world = ServiceManifest { egress: vec!["example.org".into()], ..manifest("other", 1, 1, 1, 1) };
    with_egress.change = deploy(open_world);
    let submit = |proposal: Proposal| Action::SubmitProposal(Box::new(proposal));
    check(
        &world,
        vec![
            ("good", submit(good), "ok"),
            ("another circle", submit(other_circle), "circle-mismatch"),
            ("another epoch", submit(other_epoch), "circle-mismatch"),
            ("expired", submit(expired), "proposal-expired"),
            ("wrong version", submit(wrong_version), "proposal-stale"),
            ("min > max", submit(impossible), "governance-invalid"),
            ("a job", submit(of_a_job), "ok"),
            ("egress", submit(with_egress), "egress-not-built"),
        ],
    );
}

#[test]
fn a_quorum_puts_a_change_into_force() {
    let mut world = two_nodes();
    let proposal = world.proposal(deploy(manifest("embed", 1, 3, 1000, 64)));
    let submit = Action::SubmitProposal(Box::new(proposal.clone()));
    world.must(submit.clone());
    world.must(submit);
    assert_eq!(world.cluster.drafts().len(), 1, "bringing it twice is bringing it once");
    let cast = |ballot: SignedBallot| Action::CastBallot(Box::new(ballot));

    let reply = world.must(cast(world.ballot("alice", &proposal, Choice::Approve)));
    assert!(matches!(reply, Reply::Counted { state: ProposalState::Open, certificate: None, .. }));
    assert_eq!(proposal_view(&world.cluster, &proposal.id()).unwrap().missing.len(), 2);

    let mut forged = world.ballot("bob", &proposal, Choice::Approve);
    let BallotSignature::Hybrid(signature) = &mut forged.signature else { panic!("a hybrid one") };
    signature.ed25519.0[0] ^= 1;
    let mut stranger = world.ballot("bob", &proposal, Choice::Approve);
    stranger.ballot.member = member("mallory");
    let mut wrong_text = world.ballot("bob", &proposal, Choice::Approve);
    wrong_text.ballot.rendering = Digest::of(b"another text");
    let mut elsewhere = world.ballot("bob", &proposal, Choice::Approve);
    elsewhere.ballot.proposal = protocol::ProposalId(Digest::of(b"another"));
    check(
        &world,
        vec![
            ("twice", cast(world.ballot("alice", &proposal, Choice::Approve)), "ballot-duplicate"),
            ("changed mind", cast(world.ballot("alice", &proposal, Choice::Reject)), "ballot-duplicate"),
            ("altered signature", cast(forged), "signature-invalid"),
            ("a stranger", cast(stranger), "not-a-member"),
            ("another text", cast(wrong_text), "ballot-mismatch"),
            ("another proposal", cast(elsewhere), "proposal-not-found"),
        ],
    );

    let index = world.log.len() as u64 + 1;
    let reply = world.must(cast(world.ballot("bob", &proposal, Choice::Approve)));
    let Reply::Counted { state: ProposalState::Approved, certificate: Some(digest), .. } = reply else {
        panic!("{reply:?}")
    };
    let bundle = world.cluster.bundle(&digest).unwrap();
    assert_eq!(bundle.log_evidence, Some(LogEvidence { sequence: index }));
    assert_eq!(world.cluster.governance_chain().len(), 1);
    assert_eq!(world.cluster.services()[&service_name("embed")].certificate, digest);
    let view = proposal_view(&world.cluster, &proposal.id()).unwrap();
    assert_eq!(
        (view.state, view.certificate, view.approved.len()),
        (ProposalState::Approved, Some(digest), 2)
    );
    let late = cast(world.ballot("carol", &proposal, Choice::Approve));
    check(&world, vec![("after the decision", late, "proposal-not-found")]);
}

#[test]
fn a_proposal_that_cannot_be_carried_is_rejected() {
    let mut world = two_nodes();
    let proposal = world.proposal(deploy(manifest("embed", 1, 3, 1000, 64)));
    world.open_by("bob", &proposal);
    let states: Vec<ProposalState> = ["alice", "carol"]
        .iter()
        .map(|name| {
            match world.must(Action::CastBallot(Box::new(world.ballot(name, &proposal, Choice::Reject)))) {
                Reply::Counted { state, .. } => state,
                other => panic!("{other:?}"),
            }
        })
        .collect();
    assert_eq!(states, [ProposalState::Open, ProposalState::Rejected]);
    let again = Action::SubmitProposal(Box::new(proposal.clone()));
    check(&world, vec![("brought again until somebody tires", again, "proposal-not-found")]);
    assert!(world.cluster.open_proposals().is_empty());
    assert_eq!(proposal_view(&world.cluster, &proposal.id()).unwrap().rejected.len(), 2);
    let answer = why(world.view(), &Question::Proposal(proposal.id())).unwrap();
    assert_eq!(answer.answer, "rejected: 2 of (alice, bob, carol) cannot be reached any more");
    assert_eq!(answer.reasons, ["bob: approved", "alice: rejected", "carol: rejected"]);
}

#[test]
fn the_first_approval_makes_the_other_proposal_stale() {
    let mut world = two_nodes();
    let late = world.proposal(deploy(manifest("embed", 2, 3, 1000, 64)));
    let unrelated = world.proposal(deploy(manifest("other", 1, 1, 1000, 64)));
    for proposal in [&late, &unrelated] {
        world.open_by("carol", proposal);
    }
    let draft = world.proposal(deploy(manifest("embed", 1, 2, 1000, 64)));
    world.must(Action::SubmitProposal(Box::new(draft.clone())));
    world.approve(deploy(manifest("embed", 1, 3, 1000, 64)));
    assert!(proposal_view(&world.cluster, &draft.id()).is_none(), "a draft goes with its subject");
    assert_eq!(proposal_view(&world.cluster, &late.id()).unwrap().state, ProposalState::Stale);
    assert_eq!(proposal_view(&world.cluster, &unrelated.id()).unwrap().state, ProposalState::Open);
    let ballot = Action::CastBallot(Box::new(world.ballot("alice", &late, Choice::Approve)));
    check(&world, vec![("a vote on it", ballot, "proposal-stale")]);

    let members: Vec<Member> = world.cluster.circle_state().unwrap().members().cloned().collect();
    let policy = world.cluster.circle_state().unwrap().policy().clone();
    world.approve(Change::SetMembers { members, policy, proofs: [].into() });
    assert_eq!(
        proposal_view(&world.cluster, &unrelated.id()).unwrap().state,
        ProposalState::Stale,
        "a new epoch"
    );
}

/// Valid when it was approved, impossible when it is executed: the slots that run cannot be replaced.
#[test]
fn a_new_approval_that_can_run_nowhere_ends_nothing() {
    type Edit = fn(&mut ServiceManifest);
    fn keyless() -> (protocol::ModelName, protocol::ModelRoot) {
        ("keyless".parse().unwrap(), root("keyless"))
    }
    let edits: [(&str, Edit); 8] = [
        ("too much CPU", |m| m.resources.cpu_millicores = 4001),
        ("too much memory", |m| m.resources.memory_bytes = 1 << 40),
        ("a GPU", |m| m.resources.gpu_count = 1),
        ("a share of a GPU", |m| m.resources.gpu_share_percent = 10),
        ("another model", |m| (m.model.name, m.model.root) = ("unknown".parse().unwrap(), root("unknown"))),
        ("a model without keys", |m| (m.model.name, m.model.root) = keyless()),
        ("no slot to spare, too much CPU", |m| (m.replicas.max, m.resources.cpu_millicores) = (2, 4001)),
        ("no slot to spare, no key", |m| {
            m.replicas.max = 2;
            (m.model.name, m.model.root) = keyless();
        }),
    ];
    for (name, edit) in edits {
        let mut world = two_nodes();
        world.must(world.register(model("keyless", 1), &[]));
        world.approve(deploy(manifest("embed", 2, 3, 1000, 128)));
        world.settle();
        let mut wanted = manifest("embed", 2, 3, 1000, 128);
        edit(&mut wanted);
        world.approve(deploy(wanted));
        for _ in 0..5 {
            world.execute();
            world.obey();
        }
        assert_eq!(world.placements("embed"), ["0@node-1", "1@node-2"], "{name}");
        let view = service_view(world.view(), &service_name("embed")).unwrap();
        assert_eq!((view.ready, view.ready_current), (2, 0), "{name}: who waits for the new one waits on");
        let question = Question::Service(service_name("embed"));
        let answer = why(world.view(), &question).unwrap();
        assert!(answer.answer.starts_with("2 of 2 replicas of embed are ready; 0 of 2 run"), "{name}");
        assert!(answer.remedy.is_some(), "{name}: {answer:?}");
        let leader = LeaderView { leader: Some(ReplicaId(1)), silent: Some(Vec::new()) };
        let status = status(world.view(), leader);
        assert!(!status.healthy && status.findings[0].message == answer.answer, "{name}: {status:?}");
    }
}

#[test]
fn proposals_expire_by_tick() {
    let mut world = two_nodes();
    let proposal = world.proposal(deploy(manifest("embed", 1, 3, 1000, 64)));
    world.open_by("alice", &proposal);
    let draft = world.proposal(deploy(manifest("embed", 1, 2, 1000, 64)));
    world.must(Action::SubmitProposal(Box::new(draft)));
    let end = proposal.expires_at.plus(CLOCK_GRACE_MS);
    assert!(!tick_is_due(&world.cluster, &all_at(end)));
    world.set_now(end);
    world.must(Action::Tick);
    assert_eq!((world.cluster.open_proposals().len(), world.cluster.drafts().len()), (1, 1), "in its grace");
    world.wait(1);
    assert!(tick_is_due(&world.cluster, &world.clocks));
    world.must(Action::Tick);
    assert!(!tick_is_due(&world.cluster, &world.clocks));
    assert_eq!(proposal_view(&world.cluster, &proposal.id()).unwrap().state, ProposalState::Expired);
    assert!(world.cluster.drafts().is_empty(), "a draft expires too");
}

#[test]
fn a_command_never_sets_the_time_back() {
    let mut world = running();
    world.wait(60_000);
    world.must(scale("embed", 2));
    let late = world.cluster.now();
    world.set_now(Millis(5));
    world.must(scale("embed", 3));
    assert_eq!(world.cluster.now(), late);
}

#[test]
fn scaling_stays_inside_the_envelope() {
    let world = running();
    check(
        &world,
        vec![
            ("the least", scale("embed", 1), "ok"),
            ("the most", scale("embed", 3), "ok"),
            ("fewer", scale("embed", 0), "scale-outside-envelope"),
            ("more", scale("embed", 4), "scale-outside-envelope"),
            ("nothing", scale("nothing", 1), "service-not-found"),
        ],
    );
    let mut world = world;
    world.must(scale("embed", 3));
    world.approve(deploy(manifest("embed", 1, 2, 1000, 128)));
    assert_eq!(world.cluster.services()[&service_name("embed")].desired, 2, "clamped to the new envelope");
    world.settle();
    world.approve(Change::Retire { service: service_name("embed"), grace_seconds: 0 });
    check(&world, vec![("retiring", scale("embed", 1), "service-not-found")]);
}

#[test]
fn a_wiped_node_serves_again_after_the_vote_and_a_wrap() {
    let mut world = two_nodes();
    world.approve(deploy(manifest("embed", 2, 2, 1000, 128)));
    world.settle();
    let mut fresh = node("node-1", 4000, 4096);
    fresh.admission.encryption = encryption("node-1 anew");
    fresh.admission = claimed_by("node-1 anew", fresh.admission);
    let enrol = Action::Enrol(Box::new(fresh.admission.clone()));
    assert_eq!(world.must(enrol.clone()), Reply::Enrolled { admitted: false });
    assert_eq!(world.cluster.pending_nodes().len(), 1);
    let before = world.cluster.digest();
    world.must(enrol.clone());
    assert_eq!(world.cluster.digest(), before, "asking again within a minute changes nothing");
    let early = world.apply(Actor::Scheduler, Action::PutWraps(vec![world.wrap_to("minilm", "node-1 anew")]));
    assert_eq!(code(&early), "node-not-admitted", "a node that waits is no recipient");
    world.approve(Change::AdmitNode(Box::new(fresh.admission.clone())));
    world.must(Action::PutWraps(vec![world.wrap_to("minilm", "node-1 anew")]));
    world.specs.insert(fresh.admission.name.clone(), fresh.clone());
    assert!(world.cluster.pending_nodes().is_empty());
    assert_eq!(world.must(enrol), Reply::Enrolled { admitted: true });
    assert!(
        world.cluster.wrap_for(&root("minilm"), node_id("node-1")).is_none(),
        "the old identity's is gone"
    );
    assert!(desired_for(&world.cluster, node_id("node-1")).is_empty(), "it is told to run nothing");

    world.obey();
    assert!(world.execute().is_empty(), "the old identity's lease may hold");
    world.wait(LEASE_MS);
    world.obey();
    world.settle();
    assert_eq!(world.placements("embed"), ["0@node-1", "1@node-2"]);
    let holding =
        world.cluster.services()[&service_name("embed")].slots[&SlotIndex(0)].holding.clone().unwrap();
    assert_eq!((holding.order.node, holding.order.fence), (fresh.admission.id, Fence::new(1, 2)));
}

#[test]
fn waiting_nodes_are_few_and_forgotten() {
    let mut world = two_nodes();
    for i in 0..PENDING_NODES_MAX {
        world.must(Action::Enrol(Box::new(node(&format!("new-{i}"), 1, 1).admission)));
    }
    let one_more = Action::Enrol(Box::new(node("one-more", 1, 1).admission));
    let mut large = node("new-0", 1, 1).admission;
    large.region = "x".repeat(20_000);
    check(
        &world,
        vec![
            ("one more", one_more.clone(), "limit-reached"),
            ("known", Action::Enrol(Box::new(node("new-0", 1, 1).admission)), "ok"),
            ("large", Action::Enrol(Box::new(large)), "command-invalid"),
        ],
    );
    world.wait(PENDING_NODE_MS);
    assert!(tick_is_due(&world.cluster, &world.clocks));
    world.must(Action::Tick);
    world.must(one_more);
    assert_eq!(world.cluster.pending_nodes().len(), 1);
}

#[test]
fn a_full_list_evicts_the_pending_node_that_was_silent_longest() {
    let mut world = two_nodes();
    let admission = |i: usize| node(&format!("new-{i}"), 1, 1).admission;
    let enrol = |i: usize| Action::Enrol(Box::new(admission(i)));
    for i in 0..PENDING_NODES_MAX {
        world.must(enrol(i));
        world.wait(1);
    }
    world.wait(PENDING_SILENT_MS - PENDING_NODES_MAX as u64 - 100);
    check(&world, vec![("nobody was silent for long enough", enrol(1000), "limit-reached")]);
    world.must(enrol(0));
    world.wait(102);
    assert_eq!(world.must(enrol(1000)), Reply::Enrolled { admitted: false });
    let pending = world.cluster.pending_nodes();
    assert_eq!(pending.len(), PENDING_NODES_MAX);
    assert!(pending.contains_key(&admission(0).id), "who goes on asking stays");
    assert!(!pending.contains_key(&admission(1).id), "who was silent longest leaves");
    assert!(pending.contains_key(&admission(2).id));
}

#[test]
fn asking_to_be_admitted_writes_nothing_that_is_known() {
    let mut world = two_nodes();
    let fresh = node("fresh", 1, 1).admission;
    let mut moved = fresh.clone();
    moved.region = "elsewhere".into();
    let mut large = fresh.clone();
    large.region = "x".repeat(PENDING_BYTES_MAX);
    let enrolled = |admitted| Some(Ok(Reply::Enrolled { admitted }));
    let code =
        |answer: Option<Result<Reply, scheduler::Refusal>>| answer.unwrap().unwrap_err().code.to_string();
    let answer = |world: &World, admission| enrol_answer(&world.cluster, admission, &world.clocks);
    assert_eq!(code(enrol_answer(&Cluster::default(), &fresh, &world.clocks)), "circle-not-founded");
    assert_eq!(answer(&world, &fresh), None, "that it asks is news");
    assert_eq!(code(answer(&world, &large)), "command-invalid");
    world.must(Action::Enrol(Box::new(fresh.clone())));
    assert_eq!(answer(&world, &fresh), enrolled(false));
    assert_eq!(answer(&world, &moved), None, "it says something else than before");
    world.wait(PENDING_REFRESH_MS);
    assert_eq!(answer(&world, &fresh), None, "that it still asks is news after a minute");
    let known = node("node-1", 4000, 4096).admission;
    assert_eq!(answer(&world, &known), enrolled(true));
}

#[test]
fn plans_are_refused_when_the_state_moved_on() {
    let mut world = two_nodes();
    world.approve(deploy(manifest("embed", 1, 3, 1000, 128)));
    let command = world.plan().command(world.clocks.clone()).unwrap().action;
    for (name, change) in [
        ("another leader", Action::Lead { replica: ReplicaId(2) }),
        ("scaled", scale("embed", 2)),
        ("another plan", command.clone()),
    ] {
        let mut moved = world.clone();
        moved.must(change);
        assert_eq!(verdict(&moved, Actor::Scheduler, command.clone()), "plan-stale", "{name}");
    }
    let granting = world.granting_key("app", "secret");
    world.must(granting);
    assert_eq!(verdict(&world, Actor::Scheduler, command), "ok", "an API key matters to no plan");
}

/// Steps that a correct planner never makes.
#[test]
fn steps_that_would_break_a_rule_are_refused() {
    let mut world = running();
    world.must(scale("embed", 2));
    let service = &world.cluster.services()[&service_name("embed")];
    let certificate = service.certificate;
    let order = |change: &dyn Fn(&mut OrderPlan)| {
        let mut order = OrderPlan {
            service: service_name("embed"),
            slot: SlotIndex(1),
            fence: Fence::new(1, 1),
            node: node_id("node-2"),
            certificate,
            gpus: vec![],
            replaces: None,
        };
        change(&mut order);
        Step::Order(order)
    };
    let held =
        |fence| SlotName { service: service_name("embed"), slot: SlotIndex(0), fence: Fence::new(1, fence) };
    let lapse = |silent_ms: u64| Step::Lapse { node: node_id("node-1"), silent_ms };
    let drain = |fence| Step::Drain {
        slot: held(fence),
        until: world.cluster_now(),
        cause: String::new(),
        failed: false,
    };
    let generation = world.cluster.generation();
    for (name, steps, expected) in [
        ("a good order", vec![order(&|_| {})], "ok"),
        ("twice", vec![order(&|_| {}), order(&|_| {})], "plan-stale"),
        ("fence 0", vec![order(&|o| o.fence = Fence::new(1, 0))], "plan-stale"),
        ("fence skipped", vec![order(&|o| o.fence = Fence::new(1, 2))], "plan-stale"),
        ("a held slot", vec![order(&|o| (o.slot, o.fence) = (SlotIndex(0), Fence::new(1, 2)))], "plan-stale"),
        ("outside the envelope", vec![order(&|o| o.slot = SlotIndex(3))], "plan-stale"),
        ("another certificate", vec![order(&|o| o.certificate = Digest::of(b"x"))], "plan-stale"),
        ("a stranger", vec![order(&|o| o.node = node_id("node-9"))], "plan-stale"),
        ("no such service", vec![order(&|o| o.service = service_name("other"))], "plan-stale"),
        ("good and bad", vec![order(&|_| {}), order(&|o| o.slot = SlotIndex(3))], "plan-stale"),
        ("lapse too early", vec![lapse(LEASE_MS - 1)], "plan-stale"),
        ("lapse in time", vec![lapse(LEASE_MS)], "ok"),
        ("release a stale order", vec![Step::Release(held(9))], "plan-stale"),
        ("end what does not drain", vec![Step::End(held(1))], "plan-stale"),
        ("drain twice", vec![drain(1), drain(1)], "plan-stale"),
        ("drain and end", vec![drain(1), Step::End(held(1))], "ok"),
        ("too many steps", vec![drain(1); PLAN_STEPS_MAX + 1], "command-invalid"),
    ] {
        let action = Action::Execute { parent_generation: generation, steps };
        assert_eq!(verdict(&world, Actor::Scheduler, action), expected, "{name}");
    }
}

#[test]
fn bytes_that_are_no_command_are_refused() {
    let mut world = running();
    let before = world.cluster.digest();
    let good = to_bytes(&Command {
        clocks: world.clocks.clone(),
        actor: Actor::Scheduler,
        action: Action::Tick,
        idempotency: None,
    });
    let longer = [good.as_slice(), &[0]].concat();
    for bytes in [&[][..], &[0xff; 40], &good[1..], &longer, &vec![0; COMMAND_BYTES_MAX + 1]] {
        let reply: Reply =
            protocol::canonical::from_bytes(&apply_bytes(&mut world.cluster, 9, bytes), 10_000).unwrap();
        assert_eq!(code(&reply), "command-invalid");
        assert_eq!(world.cluster.digest(), before);
    }
    let reply: Reply =
        protocol::canonical::from_bytes(&apply_bytes(&mut world.cluster, 9, &good), 10_000).unwrap();
    assert_eq!(reply, Reply::Done);
}

#[test]
fn a_forged_snapshot_is_refused() {
    let world = running();
    let snapshot = world.cluster.to_snapshot();
    assert_eq!(Cluster::from_snapshot(&snapshot).unwrap(), world.cluster);
    // A forger edits a manifest that the circle signed: the reader verifies every certificate again.
    let text = b"memory_bytes";
    let at = snapshot.windows(text.len()).position(|window| window == text).unwrap() + text.len();
    let mut forged = snapshot.clone();
    assert_eq!(&forged[at..at + 5], &[0x1a, 8, 0, 0, 0], "128 MiB, before it is altered");
    forged[at + 4] = 1;
    assert!(Cluster::from_snapshot(&forged).is_err());
    assert!(Cluster::from_snapshot(&snapshot[..snapshot.len() - 1]).is_err());
    assert!(Cluster::from_snapshot(&[]).is_err());
}

#[test]
fn an_agent_receives_its_own_assignments_alone() {
    let mut world = running();
    let assignments = desired_for(&world.cluster, node_id("node-1"));
    let [assignment] = assignments.as_slice() else { panic!("{assignments:?}") };
    assert_eq!(assignment.orders.len(), 1);
    assert_eq!(assignment.orders[0].certificate, assignment.certificate);
    assert!(assignment.draining.is_empty() && assignment.wrap.is_some());
    assert!(desired_for(&world.cluster, node_id("node-2")).is_empty());
    assert!(desired_for(&world.cluster, node_id("stranger")).is_empty());
    world.approve(Change::Retire { service: service_name("embed"), grace_seconds: 9 });
    world.execute();
    assert_eq!(desired_for(&world.cluster, node_id("node-1"))[0].draining, [SlotIndex(0)]);
    let service = service_view(world.view(), &service_name("embed")).unwrap();
    assert!(service.retiring);
    world.obey();
    world.settle();
    assert!(desired_for(&world.cluster, node_id("node-1")).is_empty());
    assert!(service_views(world.view()).is_empty(), "retired ones are not listed");
}

/// Leases are counted on the leader's own clock: the cluster's time ends none, even if it is ahead.
#[test]
fn a_cluster_time_that_is_ahead_takes_no_slot() {
    let mut world = running();
    let now = world.now;
    world.wait(60_000);
    world.must(Action::Tick);
    world.set_now(now);
    assert_eq!(world.cluster.now(), ClusterTime(now.plus(60_000)));
    assert!(world.plan().is_empty(), "all nodes were heard just now by the leader's own clock");
    world.lead(2);
    world.heartbeat("node-2");
    world.wait(LEASE_MS - 1);
    world.heartbeat("node-2");
    assert!(world.plan().is_empty(), "a new leader waits a lease by its own clock");
    world.wait(1);
    assert!(matches!(world.plan().steps[0], Step::Lapse { .. }), "and no longer");
}

/// Rule 4 of the leases: a node whose slots are being taken gets no answer until that is decided.
#[test]
fn a_late_node_is_not_answered_while_its_lapse_is_decided() {
    let mut world = running();
    world.wait(LEASE_MS);
    world.heartbeat("node-2");
    let plan = world.plan();
    assert!(matches!(plan.steps[0], Step::Lapse { .. }));
    world.observed.begin_eviction(&plan);
    assert!(!world.heartbeat("node-1"), "it would run on while another node is given its slot");
    world.must(plan.command(world.clocks.clone()).unwrap().action);
    assert!(world.heartbeat("node-1"), "now it is told to run nothing");
    assert!(desired_for(&world.cluster, node_id("node-1")).is_empty());
}

#[test]
fn views_show_the_state() {
    let mut world = running();
    let service = service_view(world.view(), &service_name("embed")).unwrap();
    assert_eq!((service.desired, service.ready, service.slots.len()), (1, 1, 1));
    assert_eq!(service.slots[0].why, "ready on node-1 under fence 1.1");
    world.set_state("embed", 0, SlotState::Loading, "");
    world.heartbeat_all();
    let service = service_view(world.view(), &service_name("embed")).unwrap();
    assert_eq!(
        (service.ready, service.slots[0].why.as_str()),
        (0, "loads on node-1 under fence 1.1: 3 of 12 segments")
    );
    world.wait(LEASE_MS);
    world.heartbeat("node-2");
    let nodes = node_views(world.view());
    let alive: Vec<(String, bool, u32)> =
        nodes.iter().map(|n| (n.name.to_string(), n.alive, n.slots)).collect();
    assert_eq!(alive, [("node-1".to_string(), false, 1), ("node-2".to_string(), true, 0)]);
    assert_eq!(nodes[0].heard_ms_ago, Some(LEASE_MS));
}

#[test]
fn questions_are_read_as_people_write_them() {
    for (text, expected) in [
        ("embed", Some(Question::Service(service_name("embed")))),
        ("embed/7", Some(Question::Slot(service_name("embed"), SlotIndex(7)))),
        ("", None),
        ("embed/", None),
        ("embed/x", None),
        ("embed/1/2", None),
        ("Embed", None),
    ] {
        assert_eq!(text.parse::<Question>().ok(), expected, "{text}");
    }
    let id = protocol::ProposalId(Digest::of(b"x"));
    assert_eq!(id.to_string().parse::<Question>(), Ok(Question::Proposal(id)));
}

/// A client that waits for an update sees its first replica, and no earlier one.
#[test]
fn a_replica_counts_as_current_once_its_order_names_the_new_approval() {
    let mut world = running();
    let counts = |world: &World| {
        let view = service_view(world.view(), &service_name("embed")).unwrap();
        (view.ready, view.ready_current)
    };
    assert_eq!(counts(&world), (1, 1));
    world.approve(deploy(manifest("embed", 1, 3, 900, 128)));
    assert_eq!(counts(&world), (1, 0), "approved, and nothing runs under it yet");
    let mut seen = Vec::new();
    for _ in 0..10 {
        world.execute();
        world.obey();
        seen.push(counts(&world).1);
    }
    assert_eq!(seen.last(), Some(&1), "{seen:?}");
    assert!(seen.is_sorted(), "it does not go back: {seen:?}");
}

/// A client whose reply is lost sends the same again under the same key. It does so before and after another
/// replica leads or one was restored from a snapshot.
#[test]
fn a_write_under_a_key_is_executed_once_with_one_reply() {
    let mut world = World::new(&[node("n1", 4000, 4096)]);
    let granting = world.clone();
    let create = |holder: &str| granting.granting_key(holder, holder);
    assert_eq!(world.apply_once("k1", create("app")), Reply::Done);
    let after_one = world.cluster.clone();
    assert_eq!(world.apply_once("k1", create("app")), Reply::Done);
    assert_eq!(world.cluster, after_one, "nothing was done twice, nothing recorded twice");
    world.lead(2);
    world.cluster = Cluster::from_snapshot(&world.cluster.to_snapshot()).unwrap();
    assert_eq!(world.apply_once("k1", create("app")), Reply::Done);

    world.must(granting.granting_key("app", "successor"));
    let another = || granting.granting_key("app", "another");
    let refused = world.apply_once("k2", another());
    assert!(matches!(refused, Reply::Refused { code: NAME_TAKEN, .. }), "{refused:?}");
    for _ in 0..2 {
        world.must(world.revoking_key("app"));
    }
    assert_eq!(world.apply_once("k2", another()), refused, "a late copy of what was refused stays refused");
    assert_eq!(world.key_of("app"), None);
    assert_eq!(world.apply_once("k3", another()), Reply::Done, "a new key is a new write");

    let reused = world.apply_once("k1", create("other"));
    assert!(matches!(reused, Reply::Refused { code: IDEMPOTENCY_KEY_REUSED, .. }), "{reused:?}");
    assert_eq!(world.key_of("other"), None);
}

#[test]
fn a_ballot_sent_again_under_its_key_is_no_second_ballot() {
    let mut world = World::new(&[node("n1", 4000, 4096)]);
    let proposal = world.proposal(Change::RemoveNode { node: "n1".parse().unwrap() });
    let submit = || Action::SubmitProposal(Box::new(proposal.clone()));
    assert_eq!(world.apply_once("submit", submit()), world.apply_once("submit", submit()));
    let ballot = Box::new(world.ballot("alice", &proposal, Choice::Approve));
    let counted = world.apply_once("vote", Action::CastBallot(ballot.clone()));
    assert!(matches!(counted, Reply::Counted { .. }), "{counted:?}");
    assert_eq!(world.apply_once("vote", Action::CastBallot(ballot.clone())), counted);
    let again = world.apply_once("other", Action::CastBallot(ballot));
    assert!(matches!(again, Reply::Refused { code: BALLOT_DUPLICATE, .. }), "{again:?}");
}

#[test]
fn a_token_that_the_circle_does_not_know_leaves_no_record() {
    let mut world = World::new(&[node("n1", 4000, 4096)]);
    let before = world.cluster.clone();
    let mut key = samples::once("k");
    key.token = "stranger".parse().unwrap();
    let action = world.granting_key("app", "app");
    let command =
        Command { clocks: world.clocks.clone(), actor: Actor::Scheduler, action, idempotency: Some(key) };
    let reply = apply(&mut world.cluster, 99, &command);
    assert!(matches!(reply, Reply::Refused { code: TOKEN_SCOPE_MISSING, .. }), "{reply:?}");
    assert_eq!(world.cluster, before);
}
