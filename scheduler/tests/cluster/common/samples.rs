//! Sample cluster with everything that is replicated, a command of every kind that fits it, and small edits
//! of commands.
//!
//! The format test, the mutation test and the fuzzer of commands start here.

use super::*;
use ciborium::value::Value as Cbor;
use protocol::canonical::to_bytes;
use protocol::{Fence, SlotIndex};

/// Builds the sample cluster. Its services run, drain, lapse and are retired; its proposals are open,
/// rejected, carried and stale. It has keys, wraps and a node that waits for admission. Everything but
/// signatures is the same each time.
pub(crate) fn running() -> World {
    let mut gpu = node("gpu", 8000, 8192);
    gpu.resources.gpus = gpus(2, 80, true);
    gpu.admission.labels.insert("disk".into(), "ssd".into());
    let mut world = World::new(&[node("n1", 4000, 4096), node("n2", 4000, 4096), gpu]);
    world.share_model("minilm", 50 << 20);
    world.must(Action::PutWraps(vec![world.wrap("minilm", Recipient::Member(member("bob")))]));
    world.must(world.register(model("spare", 1 << 20), &[]));
    world.must(world.granting("app", "app", every_service(Some(600))));
    let taken = world.granting_key("another", "app");
    assert!(matches!(world.apply_once("used", taken), Reply::Refused { .. }), "the secret is another's");
    world.must(world.granting_key("gone", "gone"));
    world.must(world.revoking_key("gone"));
    world.approve(deploy(manifest("old", 1, 1, 100, 64)));
    let mut chat = autonomous(600, manifest("chat", 2, 4, 700, 100));
    chat.valid_until = Some(START.plus(1_000_000_000));
    chat.placement.regions.push("eu".into());
    world.approve(deploy(chat));
    let mut large = autonomous(86_400, manifest("large", 1, 2, 1000, 200));
    (large.resources.gpu_count, large.resources.gpu_memory_bytes) = (1, 40 << 30);
    large.placement.node_selector.insert("disk".into(), "ssd".into());
    large.context_tokens_max = Some(4096);
    world.approve(deploy(large));
    world.settle();
    world.approve(Change::Retire { service: service_name("old"), grace_seconds: 1 });
    world.settle();
    world.approve(Change::RemoveNode { node: "n2".parse().unwrap() });
    world.must(Action::Scale { service: service_name("chat"), replicas: 3 });
    world.execute();
    world.must(Action::Scale { service: service_name("chat"), replicas: 2 });
    world.execute();
    world.must(Action::Enrol(Box::new(node("n9", 1000, 1024).admission)));
    roll_out(&mut world);
    let rejected = world.proposal(deploy(manifest("never", 1, 1, 100, 64)));
    world.open_by("carol", &rejected);
    for who in ["alice", "bob"] {
        let ballot = world.ballot(who, &rejected, Choice::Reject);
        world.must(Action::CastBallot(Box::new(ballot)));
    }
    let draft = world.proposal(deploy(manifest("drafted", 1, 1, 100, 64)));
    let operator = Actor::Token("operator".parse().unwrap());
    assert!(!matches!(world.apply(operator, Action::SubmitProposal(Box::new(draft))), Reply::Refused { .. }));
    let open = waiting(&world);
    world.must(Action::SubmitProposal(Box::new(open.clone())));
    let ballot = world.ballot("alice", &open, Choice::Approve);
    world.must(Action::CastBallot(Box::new(ballot)));
    world
}

/// Rolls out a second approval of a service, which may return to the first: a replica runs under each.
fn roll_out(world: &mut World) {
    let mut rolling = manifest("rolling", 1, 2, 100, 64);
    for slot in [0, 1] {
        world.approve(deploy(rolling.clone()));
        let service = &world.cluster.services()[&service_name("rolling")];
        let order = Step::Order(OrderPlan {
            service: service_name("rolling"),
            slot: SlotIndex(slot),
            fence: Fence::new(service.version, 1),
            node: node_id("gpu"),
            certificate: service.certificate,
            gpus: vec![],
            replaces: None,
        });
        let parent_generation = world.cluster.generation();
        world.must(Action::Execute { parent_generation, steps: vec![order] });
        (rolling.rollout.failure_limit, rolling.rollout.on_failure) = (1, OnFailure::Return);
    }
}

/// Returns the proposal that waits for one more vote.
fn waiting(world: &World) -> Proposal {
    let change = deploy(manifest("chat", 1, 5, 800, 128));
    let nonce = Digest::of(b"waiting");
    let state = world.cluster.circle_state().unwrap();
    propose(state, change, "more".into(), START, START.plus(3_600_000), nonce).unwrap()
}

fn asked(proposal: &Proposal) -> Action {
    Action::PutComment(Box::new(comment_of("carol", proposal, None)))
}

/// Returns the access of an inference key for every service.
pub(crate) fn every_service(requests_per_minute: Option<u32>) -> GrantedAccess {
    GrantedAccess::Key { services: None, requests_per_minute }
}

/// Returns a command of every kind, and a plan with every kind of step; all but a second founding are
/// executed.
pub(crate) fn commands(world: &World) -> Vec<(&'static str, Command)> {
    let mut later = world.clone();
    later.wait(4000);
    later.heartbeat("n1");
    let operator = || Actor::Token("operator".parse().unwrap());
    let ballot = world.ballot("bob", &waiting(world), Choice::Approve);
    let dissent = world.ballot("carol", &waiting(world), Choice::Reject);
    let mut node = node("n9", 1000, 1024).admission;
    node.labels.insert("disk".into(), "ssd".into());
    let members = genesis(&[]).genesis.members;
    let policy = Policy {
        quorums: BTreeMap::from([(ActionClass::Routine, quorum(3)), (ActionClass::Sensitive, quorum(2))]),
        passkeys: None,
        veto_seconds: 3600,
        proposer_counts: true,
    };
    let of = |name: &str| world.proposal(deploy(manifest(name, 1, 1, 100, 64)));
    let submit = |change| Action::SubmitProposal(Box::new(world.proposal(change)));
    let retire = Change::Retire { service: service_name("chat"), grace_seconds: 30 };
    let all: Vec<(&'static str, Actor, Action)> = vec![
        ("lead", Actor::Scheduler, Action::Lead { replica: ReplicaId(2) }),
        ("found", Actor::Scheduler, Action::Found(Box::new(genesis(&[])))),
        ("submit-deploy", operator(), submit(deploy(manifest("embed", 1, 2, 500, 128)))),
        ("submit-retire", operator(), submit(retire)),
        ("submit-admit", operator(), submit(Change::AdmitNode(Box::new(node.clone())))),
        ("submit-remove", operator(), submit(Change::RemoveNode { node: "n1".parse().unwrap() })),
        ("submit-forget", operator(), submit(forget("spare", 604_800))),
        ("submit-members", operator(), submit(Change::SetMembers { members, policy, proofs: [].into() })),
        ("draft", operator(), drafted(manifest("drafted-too", 1, 2, 500, 128))),
        ("open", Actor::Member(member("bob")), world.opening("bob", &of("opened"))),
        ("withdraw", Actor::Member(member("alice")), withdrawn("alice", &waiting(world), false)),
        ("withdraw-draft", operator(), withdraw_draft(world)),
        ("cast", Actor::Member(member("bob")), Action::CastBallot(Box::new(ballot))),
        ("cast-no", Actor::Member(member("carol")), Action::CastBallot(Box::new(dissent))),
        ("ask", Actor::Member(member("carol")), asked(&waiting(world))),
        ("register", operator(), world.register(model("llama", 3 << 30), &[node_id("n1")])),
        ("wraps", operator(), Action::PutWraps(vec![world.wrap_to("spare", "n1")])),
        ("drop-wrap", Actor::Scheduler, Action::DropWrap(Box::new(complain(world, "minilm", "gpu")))),
        ("drop-wrap-of-member", operator(), Action::DropWrap(Box::new(bobs_complaint(world)))),
        ("key", Actor::Member(member("alice")), world.granting_key("other", "other")),
        ("token", Actor::Member(member("alice")), world.granting("dave", "dave", reading())),
        ("revoke", Actor::Member(member("alice")), world.revoking_key("app")),
        ("scale", operator(), Action::Scale { service: service_name("chat"), replicas: 4 }),
        ("roll-back", operator(), rolled_back()),
        ("execute", Actor::Scheduler, every_step(&later)),
        ("enrol", Actor::Scheduler, Action::Enrol(Box::new(node))),
        ("tick", Actor::Scheduler, Action::Tick),
    ];
    let command = |(name, actor, action)| {
        (name, Command { clocks: later.clocks.clone(), actor, action, idempotency: None })
    };
    let mut all: Vec<(&'static str, Command)> = all.into_iter().map(command).collect();
    let action = world.granting_key("once", "once");
    all.push((
        "key-once",
        Command { clocks: later.clocks.clone(), actor: operator(), action, idempotency: Some(once("new")) },
    ));
    all
}

fn reading() -> GrantedAccess {
    GrantedAccess::Token { scopes: BTreeSet::from([TokenScope::Read]) }
}

fn rolled_back() -> Action {
    Action::RollBack { service: service_name("rolling"), reason: "its answers are empty".into() }
}

/// Returns the command that drafts the deployment of this manifest.
pub(crate) fn drafted(manifest: ServiceManifest) -> Action {
    let manifest = Box::new(Manifest::Service(manifest));
    Action::DraftDeployment { manifest, reason: "a test".into() }
}

/// Returns the command with which the maker of the first draft withdraws it.
fn withdraw_draft(world: &World) -> Action {
    let operator = Actor::Token("operator".parse().unwrap());
    let mut drafts = world.cluster.drafts().iter();
    let (id, _) = drafts.find(|(_, draft)| draft.actor == operator).unwrap();
    Action::Withdraw { proposal: *id, withdrawal: None }
}

/// Returns a node's complaint about the wrap that it holds.
pub(crate) fn complain(world: &World, model: &str, node: &str) -> SignedComplaint {
    complaint(node, about(world, model, Recipient::Node(node_id(node))))
}

/// Returns bob's complaint about the wrap that he holds.
fn bobs_complaint(world: &World) -> SignedComplaint {
    let bob = member("bob");
    human_chain::sign_complaint(&secrets()[&bob], about(world, "minilm", Recipient::Member(bob.clone())))
}

/// Returns the statement that the wrap which this recipient holds does not open.
pub(crate) fn about(world: &World, model: &str, recipient: Recipient) -> WrapComplaint {
    let wrap = world.cluster.wrap_of(&root(model), &recipient).unwrap().digest();
    let circle = world.cluster.circle_state().unwrap().id();
    WrapComplaint { circle, root: root(model), recipient, wrap }
}

/// Returns an idempotency key of the operator's token.
pub(crate) fn once(text: &str) -> IdempotencyKey {
    IdempotencyKey { token: "operator".parse().unwrap(), key: Digest::of(text.as_bytes()) }
}

/// Returns the name of a held slot that is in the wanted phase.
fn held(world: &World, wanted: impl Fn(&HoldingPhase) -> bool) -> SlotName {
    let found = world.cluster.holdings().find(|(_, _, holding)| wanted(&holding.phase));
    let (service, slot, holding) = found.expect("the sample cluster holds a slot in every phase");
    SlotName { service: service.clone(), slot, fence: holding.order.fence }
}

/// Returns a plan with every kind of step, none of which is refused.
fn every_step(world: &World) -> Action {
    let draining = held(world, |phase| matches!(phase, HoldingPhase::Draining { .. }));
    let running = held(world, |phase| *phase == HoldingPhase::Running);
    let chat = &world.cluster.services()[&service_name("chat")];
    let large = &world.cluster.services()[&service_name("large")];
    let order = |name: &str, service: &Service, slot: u32, node: &str, gpus, replaces| {
        let known = service.slots.get(&SlotIndex(slot)).map_or(0, |slot| slot.fence.count);
        Step::Order(OrderPlan {
            service: service_name(name),
            slot: SlotIndex(slot),
            fence: Fence::new(1, known + 1),
            node: node_id(node),
            certificate: service.certificate,
            gpus,
            replaces,
        })
    };
    let lapsing = held(world, |phase| *phase == HoldingPhase::Lapsing);
    let until = world.cluster_now().plus(30_000);
    let cause = "is not wanted any more".to_string();
    let moves = Some(running.clone());
    let other = if chat.slots[&running.slot]
        .holding
        .as_ref()
        .is_some_and(|holding| holding.order.node == node_id("gpu"))
    {
        "n1"
    } else {
        "gpu"
    };
    let newcomer = SlotName { service: service_name("rolling"), slot: SlotIndex(1), fence: Fence::new(2, 1) };
    let fault = "the model does not load".to_string();
    let steps = vec![
        Step::FailStart { slot: newcomer, starts: 1, available: 0, cause: fault.clone() },
        Step::EndRollOut { service: service_name("rolling"), failed: Some(fault) },
        Step::Lapse { node: node_id("n2"), silent_ms: 4000 },
        Step::ReleaseFormer { node: node_id("n2"), slot: lapsing },
        Step::End(draining.clone()),
        Step::Release(draining),
        order("chat", chat, 3, other, vec![], moves),
        order("large", large, 1, "gpu", vec![1], None),
        Step::Drain { slot: running, until, cause, failed: true },
        // The other slots of this node are silent then.
        Step::Lapse { node: node_id("gpu"), silent_ms: 4000 },
        Step::Resume(SlotName {
            service: service_name("large"),
            slot: SlotIndex(1),
            fence: Fence::new(1, 1),
        }),
    ];
    Action::Execute { parent_generation: world.cluster.generation(), steps }
}

/// Returns a value's tree, as the log holds it.
pub(crate) fn tree<T: serde::Serialize>(value: &T) -> Cbor {
    ciborium::from_reader(to_bytes(value).as_slice()).unwrap()
}

/// A change of one part of a command.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Edit {
    pub(crate) kind: u8,
    /// Number of the part that changes.
    pub(crate) at: u16,
    /// Number to use, or number of the part of another command.
    pub(crate) with: u16,
}

/// Performs an edit; parts of `donor` may replace others.
pub(crate) fn edit(value: &mut Cbor, donor: &Cbor, edit: Edit) {
    let Edit { kind, at, with } = edit;
    let (at, with) = (usize::from(at) % count(value), usize::from(with));
    let part = part_mut(value, &mut { at }).expect("counted before");
    match kind % 5 {
        0 => {
            const NUMBERS: [i128; 9] =
                [0, 1, -1, 99, 1024, 1 << 31, u32::MAX as i128, i64::MAX as i128, u64::MAX as i128];
            let number = NUMBERS[with % NUMBERS.len()];
            *part = Cbor::Integer(ciborium::value::Integer::try_from(number).unwrap());
        }
        1 => *part = part_of(donor, with % count(donor)),
        2 => shorten(part, with),
        3 => lengthen(part, with),
        _ => nudge(part, with),
    }
}

fn shorten(part: &mut Cbor, with: usize) {
    match part {
        Cbor::Map(entries) if !entries.is_empty() => drop(entries.remove(with % entries.len())),
        Cbor::Array(items) if !items.is_empty() => drop(items.remove(with % items.len())),
        Cbor::Bytes(bytes) => bytes.truncate(with % (bytes.len() + 1)),
        Cbor::Text(text) => drop(text.pop()),
        other => *other = Cbor::Null,
    }
}

fn lengthen(part: &mut Cbor, with: usize) {
    match part {
        Cbor::Array(items) if !items.is_empty() => {
            let item = items[with % items.len()].clone();
            items.extend(std::iter::repeat_n(item, 1 + with % 40));
        }
        Cbor::Bytes(bytes) => bytes.push(with as u8),
        Cbor::Text(text) => text.push_str(["a", "-", "\u{0}", "ä", "/"][with % 5]),
        _ => {}
    }
}

/// Makes the smallest change: a nearly correct command gets furthest.
fn nudge(part: &mut Cbor, with: usize) {
    match part {
        Cbor::Integer(number) => {
            let near = i128::from(*number) + [1, -1, 2, 1000, -1000][with % 5];
            if let Ok(near) = ciborium::value::Integer::try_from(near) {
                *number = near;
            }
        }
        Cbor::Bytes(bytes) if !bytes.is_empty() => {
            let at = with % bytes.len();
            bytes[at] ^= 1 << (with % 8);
        }
        Cbor::Text(text) => *text = text.chars().rev().collect(),
        Cbor::Bool(value) => *value = !*value,
        Cbor::Array(items) => items.reverse(),
        _ => {}
    }
}

/// Returns the number of parts of a value, including itself; names of fields do not count.
pub(crate) fn count(value: &Cbor) -> usize {
    1 + match value {
        Cbor::Map(entries) => entries.iter().map(|(_, value)| count(value)).sum(),
        Cbor::Array(items) => items.iter().map(count).sum(),
        _ => 0,
    }
}

fn part_mut<'a>(value: &'a mut Cbor, at: &mut usize) -> Option<&'a mut Cbor> {
    if *at == 0 {
        return Some(value);
    }
    *at -= 1;
    match value {
        Cbor::Map(entries) => entries.iter_mut().find_map(|(_, value)| part_mut(value, at)),
        Cbor::Array(items) => items.iter_mut().find_map(|item| part_mut(item, at)),
        _ => None,
    }
}

fn part_of(value: &Cbor, at: usize) -> Cbor {
    part_mut(&mut value.clone(), &mut { at }).expect("counted before").clone()
}

/// Returns a state without the replies that it keeps for idempotency keys.
fn without_outcomes(cluster: &Cluster) -> Cbor {
    let Cbor::Map(mut fields) = tree(cluster) else { panic!("a state is a map") };
    fields.retain(|(name, _)| name.as_text() != Some("outcomes"));
    Cbor::Map(fields)
}

/// Applies a possible log entry to a copy of a cluster. Every entry gets a reply, and a refusal changes
/// nothing. A cluster that took it can be planned for, shown, written and read. Returns the new state, or the
/// code of the refusal.
pub(crate) fn judge(world: &World, bytes: &[u8]) -> Result<Cluster, protocol::ErrorCode> {
    let mut cluster = world.cluster.clone();
    let answer = apply_bytes(&mut cluster, world.log.len() as u64 + 1, bytes);
    let reply: Reply = protocol::canonical::from_bytes(&answer, 4 << 20).expect("an answer");
    check_change(&world.cluster, &cluster);
    if let Reply::Refused { code, .. } = reply {
        let keyed = protocol::canonical::from_bytes::<Command>(bytes, limits::COMMAND_BYTES_MAX)
            .is_ok_and(|command| command.idempotency.is_some());
        let unchanged = match keyed {
            true => without_outcomes(&cluster) == without_outcomes(&world.cluster),
            false => cluster == world.cluster,
        };
        assert!(unchanged, "a refused command changes nothing but the record of its outcome: {code}");
        return Err(code);
    }
    for now in [world.now, cluster.now().0, Millis(u64::MAX)] {
        let (observed, clocks) = (&world.observed, &all_at(now));
        let view = ClusterView { cluster: &cluster, observed, now: LeaderTime(now), clocks };
        let plan = plan(view);
        if let Some(command) = plan.command(clocks.clone()) {
            apply(&mut cluster.clone(), world.log.len() as u64 + 2, &command);
        }
        let leader = LeaderView { leader: None, silent: Some(vec![ReplicaId(2), ReplicaId(3)]) };
        let shown = status(view, leader);
        assert!(serde_json::to_vec(&shown).is_ok());
        let _ = service_views(view);
        let _ = node_views(view);
    }
    let _ = proposal_views(&cluster);
    assert!(
        Cluster::from_snapshot(&cluster.to_snapshot()).as_ref() == Ok(&cluster),
        "it is read as it was written"
    );
    Ok(cluster)
}
