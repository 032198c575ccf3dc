//! Remedy tests: every "smallest change that would help" is applied, and the replica must then be placed.

use crate::common::*;
use proptest::prelude::*;
use protocol::governance::Change;
use protocol::manifest::{ServiceManifest, parse_bytes};
use scheduler::*;

/// Traits of a test node: CPU, memory in MiB, has the label, in the region, has the key.
type Traits = (u64, u64, bool, bool, bool);

fn world_of(nodes: &[Traits], wanted: &ServiceManifest) -> World {
    let specs: Vec<NodeSpec> = nodes
        .iter()
        .enumerate()
        .map(|(i, (cpu, memory, labelled, at_home, _))| {
            let mut spec = node(&format!("node-{i}"), *cpu, *memory);
            if *labelled {
                spec.admission.labels.insert("disk".into(), "ssd".into());
            }
            spec.admission.region = if *at_home { "eu".into() } else { "us".into() };
            spec
        })
        .collect();
    let mut world = World::new(&specs);
    world.must(world.register(model("minilm", 64 << 20), &[]));
    for (i, (.., has_key)) in nodes.iter().enumerate() {
        if *has_key {
            world.must(Action::PutWraps(vec![world.wrap_to("minilm", &format!("node-{i}"))]));
        }
    }
    world.approve(deploy(wanted.clone()));
    world
}

/// Performs one part of a remedy.
fn follow(world: &mut World, wanted: &mut ServiceManifest, step: &str) {
    let step = step.split(", or ").next().unwrap();
    let words: Vec<&str> = step.split(' ').collect();
    match words.as_slice() {
        ["offer" | "free", rest @ ..] => {
            let rest = rest.strip_prefix(&["another"]).unwrap_or(rest);
            let node = world.specs.get_mut(&words.last().unwrap().parse().unwrap()).unwrap();
            match rest {
                [amount, "millicores", ..] => node.resources.cpu_millicores += amount.parse::<u64>().unwrap(),
                [amount, unit, ..] => {
                    node.resources.memory_bytes += parse_bytes(&format!("{amount} {unit}")).unwrap()
                }
                other => panic!("{other:?}"),
            }
        }
        ["share", "the", "model's", "key", "with", node, ..] => {
            let node = node.trim_end_matches(':');
            world.must(Action::PutWraps(vec![world.wrap_to("minilm", node)]));
        }
        ["admit", node, "again", "with", "label", label] => {
            let (key, value) = label.split_once('=').unwrap();
            let spec = world.specs.get_mut(&node.parse().unwrap()).unwrap();
            spec.admission.labels.insert(key.into(), value.into());
            let admission = spec.admission.clone();
            world.approve(Change::AdmitNode(Box::new(admission)));
        }
        ["allow", "region", region, ..] => {
            wanted.placement.regions.push((*region).into());
            world.approve(deploy(wanted.clone()));
        }
        other => panic!("no such remedy: {other:?}"),
    }
}

fn traits() -> impl Strategy<Value = Traits> {
    let cpu = prop::sample::select(vec![200, 900, 1500, 3000]);
    let memory = prop::sample::select(vec![64, 300, 700, 2000]);
    (cpu, memory, any::<bool>(), any::<bool>(), any::<bool>())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn every_remedy_helps(nodes in prop::collection::vec(traits(), 1..5), labelled: bool, at_home: bool) {
        let mut wanted = manifest("embed", 1, 1, 1000, 512);
        if labelled {
            wanted.placement.node_selector.insert("disk".into(), "ssd".into());
        }
        if at_home {
            wanted.placement.regions.push("eu".into());
        }
        let mut world = world_of(&nodes, &wanted);
        if world.plan().orders().count() == 1 {
            return Ok(());
        }
        let question = Question::Service(service_name("embed"));
        let answer = why(world.view(), &question).unwrap();
        prop_assert_eq!(answer.reasons.len(), nodes.len(), "a reason for every node");
        let remedy = answer.remedy.unwrap();
        for step in remedy.split("; and ") {
            follow(&mut world, &mut wanted, step);
        }
        world.heartbeat_all();
        let plan = world.plan();
        prop_assert_eq!(plan.orders().count(), 1, "`{}` did not help: {:?}", remedy, plan.waiting);
        prop_assert!(dry_run(world.view(), &protocol::manifest::Manifest::Service(wanted))
            .unwrap().waiting.is_empty());
    }
}
