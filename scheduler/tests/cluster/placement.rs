//! Placement tests: the nodes of replicas and the obstacles elsewhere, one table per rule in `tests/tables`.
//!
//! A case is a cluster and the wanted services. The orders of the first plan follow it. For waiting replicas
//! the cause follows too, with the obstacles of each node and the smallest change that would help.
//! `REFRESH_GOLDEN=1 cargo test -p scheduler` writes the answers again.

use crate::common::script::{parse_manifest, parse_node};
use crate::common::*;
use protocol::governance::NodeRole;
use protocol::manifest::{Manifest, ServiceManifest};
use scheduler::*;
use std::fmt::Write;

/// A case as parsed.
#[derive(Default)]
struct Case {
    nodes: Vec<NodeSpec>,
    silent: Vec<String>,
    keyless: Vec<String>,
    /// Model sizes in MiB, by name.
    models: Vec<(String, u64)>,
    services: Vec<ServiceManifest>,
    scales: Vec<(String, u32)>,
}

impl Case {
    fn read(&mut self, line: &str) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["node", name, rest @ ..] => {
                let known = |word: &&&str| !["silent", "keyless"].contains(*word);
                let plain: Vec<&str> = rest.iter().filter(known).copied().collect();
                self.nodes.push(parse_node(name, &plain));
                self.silent.extend(rest.contains(&"silent").then(|| name.to_string()));
                self.keyless.extend(rest.contains(&"keyless").then(|| name.to_string()));
            }
            ["model", name, mib] => self.models.push((name.to_string(), mib.parse().unwrap())),
            ["service", name, rest @ ..] => self.services.push(parse_manifest(name, rest, START)),
            ["scale", name, replicas] => self.scales.push((name.to_string(), replicas.parse().unwrap())),
            other => panic!("no such line: {other:?}"),
        }
    }

    fn world(&self) -> World {
        let mut world = World::new(&self.nodes);
        world.observed = Observed::new(world.leader_now());
        for spec in &self.nodes {
            if !self.silent.contains(&spec.admission.name.to_string()) {
                world.heartbeat(spec.admission.name.as_str());
            }
        }
        let standard = [("minilm".to_string(), 100)];
        let models = if self.models.is_empty() { &standard[..] } else { &self.models };
        for (name, mib) in models {
            let keyed = self.nodes.iter().filter(|spec| {
                let admission = &spec.admission;
                admission.roles.contains(&NodeRole::Worker)
                    && !self.keyless.contains(&admission.name.to_string())
            });
            let keyed: Vec<_> = keyed.map(|spec| spec.admission.id).collect();
            world.must(world.register(model(name, mib << 20), &keyed));
        }
        for manifest in &self.services {
            world.approve(deploy(manifest.clone()));
        }
        for (service, replicas) in &self.scales {
            world.must(Action::Scale { service: service_name(service), replicas: *replicas });
        }
        world
    }

    fn answer(&self) -> String {
        let world = self.world();
        let plan = world.plan();
        let mut text = String::new();
        for order in plan.orders() {
            let gpus = if order.gpus.is_empty() { String::new() } else { format!(" GPUs {:?}", order.gpus) };
            writeln!(
                text,
                "-> {}/{} {}{gpus}",
                order.service,
                order.slot,
                world.cluster.node_name(&order.node)
            )
            .unwrap();
        }
        for waiting in &plan.waiting {
            writeln!(text, "-> {} of {} wait: {}", waiting.replicas, waiting.service, waiting.cause).unwrap();
            for (node, obstacles) in &waiting.nodes {
                writeln!(text, "   {node}: {}", obstacles.join("; ")).unwrap();
            }
        }
        assert_eq!(plan.steps.len(), plan.orders().count(), "a fresh cluster has nothing to end");
        self.check_agreement(&world, &plan);
        text + &self.remedies(&world, &plan)
    }

    /// Checks that `why` and a dry run agree with the plan.
    fn check_agreement(&self, world: &World, plan: &Plan) {
        for manifest in &self.services {
            let name = &manifest.name;
            let answer = why(world.view(), &Question::Service(name.clone())).unwrap();
            let waits = plan.waiting.iter().find(|waiting| waiting.service == *name);
            let orders = plan.orders().filter(|order| order.service == *name).count() as u32;
            let desired = world.cluster.services()[name].desired;
            assert_eq!(
                orders + waits.map_or(0, |waiting| waiting.replicas),
                desired,
                "{name}: all are accounted for"
            );
            let count = match desired {
                1 => "1 replica of".to_string(),
                many => format!("{many} replicas of"),
            };
            assert!(answer.answer.starts_with(&format!("0 of {count} {name} ")), "{}", answer.answer);
            if self.services.len() == 1
                && orders == 0
                && let Some(waiting) = waits
            {
                assert!(answer.answer.ends_with(&waiting.cause), "{}: {}", answer.answer, waiting.cause);
                let run = dry_run(world.view(), &Manifest::Service(manifest.clone()));
                assert!(run.unwrap().placements.is_empty(), "a dry run places no more than a plan");
            }
        }
    }

    fn remedies(&self, world: &World, plan: &Plan) -> String {
        let mut text = String::new();
        let mut after = world.clone();
        if let Some(command) = plan.command(after.clocks.clone()) {
            after.must(command.action);
        }
        for waiting in &plan.waiting {
            let question = Question::Service(waiting.service.clone());
            let answer = why(after.view(), &question).unwrap();
            if let Some(remedy) = answer.remedy {
                writeln!(text, "   to help: {remedy}").unwrap();
            }
        }
        text
    }
}

/// Runs every case of a table and returns the text with fresh answers.
fn answer(text: &str) -> String {
    let mut answered = String::new();
    for block in text.split("\n\n") {
        let lines = block.lines().filter(|line| !line.starts_with("->") && !line.starts_with("   "));
        let mut case = Case::default();
        let mut is_case = false;
        for line in lines {
            writeln!(answered, "{line}").unwrap();
            is_case |= line.starts_with("= ");
            if is_case && !line.starts_with("= ") && !line.starts_with('#') {
                case.read(line);
            }
        }
        if is_case {
            answered.push_str(&case.answer());
        }
        answered.push('\n');
    }
    answered.trim_end().to_string() + "\n"
}

#[test]
fn replicas_go_where_the_tables_say() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tables");
    let mut paths: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(paths.len() >= 6, "only {} tables", paths.len());
    for path in paths {
        let written = std::fs::read_to_string(&path).unwrap();
        let answered = answer(&written);
        if std::env::var_os("REFRESH_GOLDEN").is_some() {
            let mut file = std::fs::OpenOptions::new().write(true).truncate(true).open(&path).unwrap();
            std::io::Write::write_all(&mut file, answered.as_bytes()).unwrap();
            continue;
        }
        for (at, (answered, written)) in answered.lines().zip(written.lines()).enumerate() {
            assert_eq!(answered, written, "{}:{}", path.display(), at + 1);
        }
        assert_eq!(answered.len(), written.len(), "{} has another length", path.display());
    }
}
