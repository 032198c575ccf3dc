//! Lease tests: leases, lapses and ends to the millisecond and to the generation, and steps that break their
//! rules.
//!
//! They also cover the effects of a service's end and of a node's new keys.

use crate::common::*;
use protocol::agent::{SlotState, SyncRequest};
use protocol::governance::Change;
use protocol::limits::LEASE_MS;
use protocol::{Digest, Fence, Millis, ReplicaId, SlotIndex};
use scheduler::limits::*;
use scheduler::*;

const T0: u64 = START.0;

/// Returns the leader's time this many milliseconds after the start.
fn after(ms: u64) -> LeaderTime {
    LeaderTime(START).plus(ms)
}

fn two_nodes() -> World {
    let mut world = World::new(&[node("node-1", 4000, 4096), node("node-2", 4000, 4096)]);
    world.share_model("minilm", 90 << 20);
    world
}

/// Returns a cluster in which `embed` has that many slots of an envelope of four, all ready.
fn running(replicas: u32) -> World {
    let mut world = two_nodes();
    world.approve(deploy(manifest("embed", 1, 4, 500, 64)));
    world.must(Action::Scale { service: service_name("embed"), replicas });
    world.settle();
    world
}

fn slot(index: u32, fence: u64) -> SlotName {
    SlotName { service: service_name("embed"), slot: SlotIndex(index), fence: Fence::new(1, fence) }
}

fn execute(world: &World, steps: Vec<Step>) -> (World, &'static str) {
    let mut world = world.clone();
    let parent_generation = world.cluster.generation();
    let before = world.cluster.digest();
    let reply = world.apply(Actor::Scheduler, Action::Execute { parent_generation, steps });
    if code(&reply) != "ok" {
        assert_eq!(world.cluster.digest(), before, "a refusal leaves no trace");
    }
    (world, code(&reply))
}

fn drain(name: SlotName, until: ClusterTime) -> Step {
    Step::Drain { slot: name, until, cause: "a test".into(), failed: false }
}

fn phase(world: &World, index: u32) -> Option<HoldingPhase> {
    let service = &world.cluster.services()[&service_name("embed")];
    service.slots.get(&SlotIndex(index))?.holding.as_ref().map(|holding| holding.phase.clone())
}

#[test]
fn a_lease_ends_to_the_millisecond() {
    let spec = node("node-1", 1, 1);
    let id = spec.admission.id;
    let request = World::new(std::slice::from_ref(&spec)).request(&spec);
    let dead = |since| Liveness::Dead { silent_since: LeaderTime(Millis(since)) };
    let unknown = |until| Liveness::Unknown { until: LeaderTime(Millis(until)) };
    for (name, heartbeat_at, asked, expected) in [
        ("never heard, just now leads", None, 0, unknown(T0 + LEASE_MS)),
        ("never heard, a moment before the end", None, LEASE_MS - 1, unknown(T0 + LEASE_MS)),
        ("never heard, at the end", None, LEASE_MS, dead(T0)),
        ("never heard, long after", None, 10 * LEASE_MS, dead(T0)),
        ("heard now", Some(0), 0, Liveness::Alive),
        ("heard a lease ago, less a moment", Some(500), 500 + LEASE_MS - 1, Liveness::Alive),
        ("heard a lease ago", Some(500), 500 + LEASE_MS, dead(T0 + 500)),
        ("heard in the leader's future", Some(5000), 0, Liveness::Alive),
    ] {
        let mut observed = Observed::new(LeaderTime(START));
        if let Some(at) = heartbeat_at {
            observed.record_heartbeat(id, &request, 1, after(at)).unwrap();
        }
        assert_eq!(observed.liveness(&id, after(asked)), expected, "{name}");
        assert_eq!(observed.is_alive(&id, after(asked)), expected == Liveness::Alive, "{name}");
    }
}

#[test]
fn a_clock_that_falls_behind_shortens_no_lease() {
    let spec = node("node-1", 1, 1);
    let id = spec.admission.id;
    let request = World::new(std::slice::from_ref(&spec)).request(&spec);
    let mut observed = Observed::new(LeaderTime(START));
    for (now, heartbeat_at) in [(1000, 1000), (400, 1000), (999, 1000), (1001, 1001)] {
        observed.record_heartbeat(id, &request, 1, after(now)).unwrap();
        assert_eq!(observed.node(&id).unwrap().heartbeat_at, after(heartbeat_at), "heard at {now}");
    }
    let mut late = Observed::new(after(5000));
    late.record_heartbeat(id, &request, 1, after(0)).unwrap();
    assert_eq!(late.node(&id).unwrap().heartbeat_at, after(5000), "never before its leader began");
}

#[test]
fn a_node_is_steady_as_long_as_no_lease_of_it_ended() {
    let spec = node("node-1", 1, 1);
    let id = spec.admission.id;
    let request = World::new(std::slice::from_ref(&spec)).request(&spec);
    let mut observed = Observed::new(LeaderTime(START));
    for (now, alive_since) in [
        (0, 0),
        (LEASE_MS - 1, 0),
        (2 * LEASE_MS - 2, 0),
        (3 * LEASE_MS - 2, 3 * LEASE_MS - 2),
        (3 * LEASE_MS, 3 * LEASE_MS - 2),
        (9 * LEASE_MS, 9 * LEASE_MS),
    ] {
        observed.record_heartbeat(id, &request, 1, after(now)).unwrap();
        assert_eq!(observed.node(&id).unwrap().alive_since, after(alive_since), "heard at {now}");
    }
}

#[test]
fn a_report_is_news_if_a_slot_is_in_another_state_than_before() {
    let world = running(2);
    let spec = world.specs[&"node-1".parse().unwrap()].clone();
    let (id, request) = (spec.admission.id, world.request(&spec));
    assert!(!request.slots.is_empty(), "the node holds a slot");
    let mut observed = Observed::new(LeaderTime(START));
    let mut other = request.clone();
    other.slots[0].state = SlotState::Draining;
    let mut counted = other.clone();
    counted.slots[0].segments_verified += 1;
    let none = SyncRequest { slots: vec![], ..request.clone() };
    for (request, is_news) in [
        (&request, true),
        (&request, false),
        (&other, true),
        (&counted, false),
        (&none, true),
        (&none, false),
    ] {
        assert_eq!(observed.record_heartbeat(id, request, 1, after(1)), Ok(is_news), "{:?}", request.slots);
    }
}

#[test]
fn a_node_under_eviction_waits_for_the_decision_and_no_longer() {
    let mut world = running(2);
    world.wait(LEASE_MS);
    let plan = world.plan();
    assert_eq!(plan.steps.iter().filter(|step| matches!(step, Step::Lapse { .. })).count(), 2);
    let planned_for = world.cluster.generation();
    world.observed.begin_eviction(&plan);
    let spec = world.specs[&"node-1".parse().unwrap()].clone();
    let request = world.request(&spec);
    for generation in [0, planned_for - 1, planned_for] {
        let answer = world.observed.clone().record_heartbeat(
            spec.admission.id,
            &request,
            generation,
            world.leader_now(),
        );
        assert_eq!(answer, Err(EvictionInProgress), "in generation {generation}");
    }
    let before = world.observed.clone();
    assert_eq!(
        world.observed.record_heartbeat(spec.admission.id, &request, planned_for, world.leader_now()),
        Err(EvictionInProgress)
    );
    assert_eq!(world.observed, before, "what is not answered is not heard");
    world
        .observed
        .record_heartbeat(spec.admission.id, &request, planned_for + 1, world.leader_now())
        .unwrap();
    world.observed.record_heartbeat(spec.admission.id, &request, planned_for, world.leader_now()).unwrap();
    assert!(!world.heartbeat("node-2"), "the other one is still condemned");
}

/// A node's report from before the order to end a slot says nothing about the slots that it runs afterwards.
#[test]
fn an_ended_slot_is_free_only_after_a_later_report_of_its_node() {
    let mut world = two_nodes();
    world.approve(deploy(manifest("embed", 1, 1, 500, 64)));
    world.settle();
    let (mut world, _) = execute(&world, vec![drain(slot(0, 1), world.cluster_now())]);
    world.reports.clear();
    world.heartbeat_all();
    let heard_in = world.cluster.generation();
    let (ended, verdict) = execute(&world, vec![Step::End(slot(0, 1))]);
    assert_eq!(verdict, "ok");
    assert_eq!(phase(&ended, 0), Some(HoldingPhase::Ending { generation: heard_in + 1 }));
    assert!(ended.plan().steps.is_empty(), "it was answered from the state before the end, and may run it");
    let mut heard = ended.clone();
    heard.heartbeat("node-2");
    assert!(heard.plan().steps.is_empty(), "another node says nothing of it");
    heard.heartbeat("node-1");
    assert_eq!(heard.plan().steps[0], Step::Release(slot(0, 1)), "now it does not run it and never will");
    let mut still = ended;
    still.set_state("embed", 0, SlotState::Draining, "");
    still.heartbeat_all();
    assert!(still.plan().steps.is_empty(), "it says that it still runs");
    still.set_state("embed", 0, SlotState::Released, "");
    still.heartbeat_all();
    assert_eq!(still.plan().steps[0], Step::Release(slot(0, 1)));
}

/// The holder of a lapsing slot is no longer admitted and cannot be asked, so only time frees the slot.
#[test]
fn a_removed_nodes_slot_is_freed_by_time_alone() {
    let mut world = running(2);
    world.approve(Change::RemoveNode { node: "node-1".parse().unwrap() });
    assert_eq!(phase(&world, 0), Some(HoldingPhase::Lapsing));
    for (name, step) in [
        ("release", Step::Release(slot(0, 1))),
        ("drain", drain(slot(0, 1), world.cluster_now())),
        ("end", Step::End(slot(0, 1))),
    ] {
        assert_eq!(execute(&world, vec![step]).1, "plan-stale", "{name}");
    }
    let lapse = |silent_ms| Step::Lapse { node: node_id("node-1"), silent_ms };
    assert_eq!(execute(&world, vec![lapse(LEASE_MS - 1)]).1, "plan-stale", "its lease may hold");
    world.set_state("embed", 0, SlotState::Released, "");
    let plan = world.plan();
    assert_eq!(
        plan.orders().count(),
        plan.steps.len(),
        "what it says is not asked; its replica is placed elsewhere"
    );
    world.wait(LEASE_MS);
    let (freed, verdict) = execute(&world, vec![lapse(LEASE_MS)]);
    assert_eq!((verdict, phase(&freed, 0)), ("ok", None));
    assert!(phase(&freed, 1).is_some(), "nobody else's slot is touched");
}

#[test]
fn each_phase_allows_its_own_steps() {
    let running = running(1);
    let (draining, _) = execute(&running, vec![drain(slot(0, 1), running.cluster_now().plus(9))]);
    let (ending, _) = execute(&draining, vec![Step::End(slot(0, 1))]);
    let (free, _) = execute(&draining, vec![Step::Release(slot(0, 1))]);
    let order = |fence| {
        let certificate = running.cluster.services()[&service_name("embed")].certificate;
        let (service, node) = (service_name("embed"), node_id("node-2"));
        let (slot, fence) = (SlotIndex(0), Fence::new(1, fence));
        Step::Order(OrderPlan { service, slot, fence, node, certificate, gpus: vec![], replaces: None })
    };
    for (name, world, may_drain, may_end, may_release, may_order) in [
        ("running", &running, true, false, true, None),
        ("draining", &draining, false, true, true, None),
        ("ending", &ending, false, false, true, None),
        ("free", &free, false, false, false, Some(2)),
    ] {
        let allowed = |step| execute(world, vec![step]).1 == "ok";
        assert_eq!(allowed(drain(slot(0, 1), world.cluster_now())), may_drain, "drain {name}");
        assert_eq!(allowed(Step::End(slot(0, 1))), may_end, "end {name}");
        assert_eq!(allowed(Step::Release(slot(0, 1))), may_release, "release {name}");
        for fence in 0..4 {
            assert_eq!(allowed(order(fence)), may_order == Some(fence), "order {name} under {fence}");
        }
        for fence in [0, 2] {
            assert!(!allowed(Step::Release(slot(0, fence))), "release {name} under a wrong fence");
        }
    }
}

#[test]
fn a_fence_survives_everything_that_frees_its_slot() {
    let mut world = running(1);
    for fence in 2..6 {
        let (freed, _) = execute(
            &world,
            vec![drain(slot(0, fence - 1), world.cluster_now()), Step::Release(slot(0, fence - 1))],
        );
        world = freed;
        let known = &world.cluster.services()[&service_name("embed")].slots[&SlotIndex(0)];
        assert_eq!((known.fence, known.last_holder), (Fence::new(1, fence - 1), Some(node_id("node-1"))));
        world.settle();
        let known = &world.cluster.services()[&service_name("embed")].slots[&SlotIndex(0)];
        assert_eq!(known.fence, Fence::new(1, fence));
    }
    world.approve(Change::Retire { service: service_name("embed"), grace_seconds: 0 });
    world.settle();
    world.approve(deploy(manifest("embed", 1, 4, 500, 64)));
    world.settle();
    let known = &world.cluster.services()[&service_name("embed")].slots[&SlotIndex(0)];
    assert_eq!(known.fence, Fence::new(3, 1), "the deployment is the third change: above all that nodes saw");
}

/// A moving replica names the slot that it leaves; only a running slot elsewhere makes a valid move.
#[test]
fn a_move_leaves_a_slot_that_runs_elsewhere() {
    let world = running(2);
    let certificate = world.cluster.services()[&service_name("embed")].certificate;
    let to = |name: &str, leaves: SlotName| {
        Step::Order(OrderPlan {
            service: service_name("embed"),
            slot: SlotIndex(2),
            fence: Fence::new(1, 1),
            node: node_id(name),
            certificate,
            gpus: vec![],
            replaces: Some(leaves),
        })
    };
    let other = SlotName { service: service_name("other"), ..slot(0, 1) };
    assert_eq!(world.placements("embed"), ["0@node-1", "1@node-2"]);
    for (name, steps, expected) in [
        ("to another node", vec![to("node-2", slot(0, 1))], "ok"),
        ("to the same node", vec![to("node-1", slot(0, 1))], "plan-stale"),
        ("an earlier order", vec![to("node-2", slot(0, 0))], "plan-stale"),
        ("a later order", vec![to("node-2", slot(0, 2))], "plan-stale"),
        ("a free slot", vec![to("node-2", slot(3, 0))], "plan-stale"),
        ("its own slot", vec![to("node-2", slot(2, 1))], "plan-stale"),
        ("another service's", vec![to("node-2", other)], "plan-stale"),
        (
            "one that drains",
            vec![drain(slot(0, 1), world.cluster_now()), to("node-2", slot(0, 1))],
            "plan-stale",
        ),
    ] {
        assert_eq!(execute(&world, steps).1, expected, "{name}");
    }
    let (moving, _) = execute(&world, vec![to("node-2", slot(0, 1))]);
    assert!(moving.plan().steps.is_empty(), "three run while two are wanted, until the new one answers");
    let mut answers = moving.clone();
    answers.obey();
    let plan = answers.plan();
    assert!(matches!(&plan.steps[..], [Step::Drain { slot: left, .. }] if *left == slot(0, 1)), "{plan:?}");
    let mut late = moving.clone();
    late.wait(REBALANCE_PATIENCE_MS - 1);
    late.heartbeat_all();
    assert!(late.plan().steps.is_empty(), "it may still come");
    late.wait(1);
    late.heartbeat_all();
    let plan = late.plan();
    assert!(matches!(&plan.steps[..], [Step::Drain { slot: left, .. }] if *left == slot(2, 1)), "{plan:?}");
    let mut scaled = moving.clone();
    scaled.must(Action::Scale { service: service_name("embed"), replicas: 3 });
    scaled.obey();
    assert!(scaled.plan().steps.is_empty(), "as many are wanted as run: nobody leaves");
    let mut again = moving;
    again.must(Action::Lead { replica: ReplicaId(2) });
    assert_eq!(
        Cluster::from_snapshot(&again.cluster.to_snapshot()).unwrap(),
        again.cluster,
        "a move survives"
    );
}

#[test]
fn each_step_is_in_the_audit_log() {
    let world = running(1);
    let (world, _) =
        execute(&world, vec![drain(slot(0, 1), world.cluster_now().plus(5)), Step::End(slot(0, 1))]);
    let events: Vec<String> = world
        .cluster
        .audit()
        .last(2)
        .map(|event| format!("{} {} {} {}", event.actor, event.action, event.subject, event.detail))
        .collect();
    assert_eq!(events, ["scheduler drain embed/0 a test", "scheduler end embed/0 "]);
}

/// Old entries of the log and old snapshots contain no moves; they are read as they were written.
#[test]
fn entries_without_moves_are_written_as_before() {
    let order = OrderPlan {
        service: service_name("embed"),
        slot: SlotIndex(0),
        fence: Fence::new(1, 1),
        node: node_id("node-1"),
        certificate: Digest::of(b"c"),
        gpus: vec![],
        replaces: None,
    };
    let json = serde_json::to_value(&order).unwrap();
    assert!(json.get("replaces").is_none(), "{json}");
    assert_eq!(serde_json::from_value::<OrderPlan>(json).unwrap(), order);
    let bytes = protocol::canonical::to_bytes(&order);
    assert_eq!(protocol::canonical::from_bytes::<OrderPlan>(&bytes, 1000), Ok(order.clone()));
    let moving = OrderPlan { replaces: Some(slot(1, 2)), ..order };
    let bytes = protocol::canonical::to_bytes(&moving);
    assert_eq!(protocol::canonical::from_bytes::<OrderPlan>(&bytes, 1000), Ok(moving));
}

/// Returns two services of two replicas each on one node, and a second node that has been alive for long
/// enough.
fn crowded(cpu_millicores: u64) -> World {
    let mut world = World::new(&[node("node-1", cpu_millicores, 8192)]);
    world.share_model("minilm", 90 << 20);
    for name in ["embed", "other"] {
        world.approve(deploy(manifest(name, 1, 3, 500, 64)));
        world.must(Action::Scale { service: service_name(name), replicas: 2 });
    }
    world.settle();
    let spec = node("node-2", 8000, 8192);
    world.approve(Change::AdmitNode(Box::new(spec.admission.clone())));
    world.specs.insert(spec.admission.name.clone(), spec);
    world.share_model("minilm", 90 << 20);
    world.heartbeat_all();
    world.pass(REBALANCE_CALM_MS);
    world
}

#[test]
fn nothing_moves_while_anything_drains_anywhere() {
    let mut world = crowded(8000);
    assert!(matches!(&world.plan().steps[..], [Step::Order(order)] if order.replaces.is_some()));
    world.must(Action::Scale { service: service_name("other"), replicas: 1 });
    world.execute();
    world.heartbeat_all();
    assert!(world.plan().steps.is_empty(), "another service's slot drains");
    world.obey();
    assert!(matches!(&world.plan().steps[..], [Step::Release(_)]), "and is free");
    world.execute();
    let plan = world.plan();
    assert!(
        matches!(&plan.steps[..], [Step::Order(order)] if order.service == service_name("embed")),
        "{plan:?}"
    );
}

#[test]
fn a_move_whose_replica_fails_is_abandoned_at_once() {
    let mut world = crowded(2000);
    world.execute();
    world.obey();
    world.set_state("embed", 2, SlotState::Loading, "");
    world.heartbeat_all();
    assert!(world.plan().steps.is_empty(), "it loads; there is no room for a third elsewhere");
    world.set_state("embed", 2, SlotState::Failed, "out of memory");
    world.heartbeat_all();
    let plan = world.plan();
    assert!(matches!(&plan.steps[..], [Step::Drain { slot: left, .. }] if *left == slot(2, 1)), "{plan:?}");
}

#[test]
fn a_redeployed_service_begins_with_its_minimum() {
    let mut world = running(3);
    let desired = |world: &World| world.cluster.services()[&service_name("embed")].desired;
    world.approve(deploy(manifest("embed", 1, 4, 600, 64)));
    assert_eq!(desired(&world), 3, "a new approval of what runs keeps what is wanted");
    world.approve(Change::Retire { service: service_name("embed"), grace_seconds: 0 });
    world.approve(deploy(manifest("embed", 1, 4, 600, 64)));
    assert_eq!(desired(&world), 1, "what was wanted of a service that was ended is not wanted again");
}

/// A wrap opens only with the key that it was made for.
#[test]
fn a_node_with_new_keys_needs_a_new_wrap() {
    let mut world = running(1);
    let mut spec = world.specs[&"node-1".parse().unwrap()].clone();
    let wrapped =
        |world: &World, node: &str| world.cluster.wrap_for(&root("minilm"), node_id(node)).is_some();
    world.approve(Change::AdmitNode(Box::new(spec.admission.clone())));
    assert!(wrapped(&world, "node-1"), "admitted again as it was");
    spec.admission.encryption = encryption("node-1 anew");
    world.approve(Change::AdmitNode(Box::new(claimed_by("node-1", spec.admission))));
    assert!(!wrapped(&world, "node-1") && wrapped(&world, "node-2"));
}

#[test]
fn a_proposal_is_brought_before_its_end() {
    let world = two_nodes();
    let proposal = world.proposal(deploy(manifest("embed", 1, 1, 500, 64)));
    for (at, expected) in [(proposal.expires_at.0 - 1, "ok"), (proposal.expires_at.0, "proposal-expired")] {
        let mut world = world.clone();
        world.set_now(Millis(at));
        let reply = world.apply(Actor::Scheduler, Action::SubmitProposal(Box::new(proposal.clone())));
        assert_eq!(code(&reply), expected, "{} ms before its end", proposal.expires_at.0 - at);
    }
}

/// A node's resources are known only while it is alive: a new leader knows of no GPU at all.
#[test]
fn a_gpu_is_lost_only_on_a_node_that_is_alive() {
    let mut spec = node("node-1", 4000, 4096);
    spec.resources.gpus = gpus(1, 80, false);
    let mut world = World::new(&[spec, node("node-2", 4000, 4096)]);
    world.share_model("minilm", 90 << 20);
    let mut wanted = manifest("embed", 1, 2, 500, 64);
    wanted.resources.gpu_count = 1;
    world.approve(deploy(wanted));
    world.settle();
    world.lead(2);
    world.heartbeat("node-2");
    assert!(world.plan().steps.is_empty(), "its slot runs on");
    world.specs.get_mut(&"node-1".parse().unwrap()).unwrap().resources.gpus.clear();
    world.heartbeat("node-1");
    assert!(matches!(&world.plan().steps[..], [Step::Drain { .. }]), "now it says that the GPU is gone");
}

/// Nothing keeps a worker within its part of a GPU, and a listing states so if one runs.
#[test]
fn a_part_of_a_gpu_is_labelled_as_counted_only() {
    type Edit = fn(&mut protocol::manifest::Resources);
    let edits: [(&str, Edit, bool); 4] = [
        ("no GPU", |_| {}, false),
        ("a whole one", |r| r.gpu_count = 1, false),
        ("a share", |r| r.gpu_share_percent = 25, true),
        ("memory", |r| (r.gpu_count, r.gpu_memory_bytes) = (1, 8 << 30), true),
    ];
    for (name, edit, expected) in edits {
        let mut spec = node("node-1", 4000, 4096);
        spec.resources.gpus = gpus(1, 80, false);
        let mut world = World::new(&[spec, node("node-2", 4000, 4096)]);
        world.share_model("minilm", 90 << 20);
        let mut wanted = manifest("embed", 1, 1, 500, 64);
        wanted.placement.regions = vec!["eu".into()];
        edit(&mut wanted.resources);
        world.approve(deploy(wanted));
        world.settle();
        let views = node_views(world.view());
        let labelled: Vec<bool> = views
            .iter()
            .map(|view| view.not_enforced.iter().any(|label| label.starts_with("gpu-share")))
            .collect();
        assert_eq!(labelled, [expected, false], "{name}");
    }
}
