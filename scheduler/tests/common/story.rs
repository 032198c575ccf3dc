//! Stories: a text file of commands (`> ...`) and the answers that follow each. The runner carries out the
//! commands and writes the file anew; a test compares.

use super::*;
use protocol::NodeName;
use std::fmt::Write;

/// Runs every command of a story and gives the whole text with fresh answers. Lines before the first
/// command, and those that begin with `#`, are kept.
pub(crate) fn run(text: &str) -> String {
    let mut teller = Teller { world: World::empty(), nodes: Vec::new() };
    let mut out = String::new();
    for line in text.lines() {
        if line.starts_with('#') {
            writeln!(out, "{line}").unwrap();
        } else if let Some(command) = line.strip_prefix("> ") {
            writeln!(out, "> {command}").unwrap();
            for answer in teller.tell(command).lines() {
                writeln!(out, "    {answer}").unwrap();
            }
        } else if line.is_empty() {
            out.push('\n');
        }
    }
    out
}

struct Teller {
    world: World,
    nodes: Vec<NodeSpec>,
}

impl Teller {
    fn tell(&mut self, command: &str) -> String {
        let words: Vec<&str> = command.split_whitespace().collect();
        let world = &mut self.world;
        match words.as_slice() {
            ["node", name, rest @ ..] => self.nodes.push(parse_node(name, rest)),
            ["found"] => *world = World::new(&self.nodes),
            ["admit", name, rest @ ..] => {
                let spec = parse_node(name, rest);
                world.specs.insert(spec.admission.name.clone(), spec.clone());
                world.approve(Change::AdmitNode(Box::new(spec.admission)));
            }
            ["change", name, rest @ ..] => {
                let spec = parse_node(name, rest);
                world.specs.insert(spec.admission.name.clone(), spec);
            }
            ["remove", name] => {
                world.approve(Change::RemoveNode { node: name.parse().unwrap() });
            }
            ["model", name, mib] => {
                let bytes = mib.parse::<u64>().unwrap() << 20;
                world.must(Action::RegisterModel(Box::new(model(name, bytes))));
            }
            ["share", name, nodes @ ..] => {
                let wraps = nodes.iter().map(|node| wrap(name, Recipient::Node(node_id(node)))).collect();
                world.must(Action::PutWraps(wraps));
            }
            ["deploy", name, rest @ ..] => {
                world.approve(deploy(parse_manifest(name, rest, world.now)));
            }
            ["retire", name, seconds] => {
                let grace_seconds = seconds.parse().unwrap();
                world.approve(Change::Retire { service: service_name(name), grace_seconds });
            }
            ["propose-retire", name] => {
                let change = Change::Retire { service: service_name(name), grace_seconds: 5 };
                let proposal = world.proposal(change);
                world.must(Action::SubmitProposal(Box::new(proposal)));
            }
            ["scale", name, replicas] => {
                let (service, replicas) = (service_name(name), replicas.parse().unwrap());
                return match world.apply(Actor::Scheduler, Action::Scale { service, replicas }) {
                    Reply::Refused { code, message } => format!("{code}: {message}"),
                    _ => String::new(),
                };
            }
            ["plan"] => return show_plan(&world.execute()),
            ["obey", nodes @ ..] => {
                for name in nodes {
                    let spec = world.specs[&name.parse::<NodeName>().unwrap()].clone();
                    world.obey_node(&spec);
                }
                if nodes.is_empty() {
                    world.obey();
                }
            }
            ["state", place, state, detail @ ..] => {
                let (service, slot) = place.split_once('/').unwrap();
                let state = serde_json::from_value(serde_json::json!(state)).unwrap();
                world.set_state(service, slot.parse().unwrap(), state, &detail.join(" "));
                world.hear_all();
            }
            ["hear", nodes @ ..] => {
                for name in nodes {
                    world.hear(name);
                }
            }
            ["wait", ms] => world.wait(ms.parse().unwrap()),
            ["lead", replica] => world.lead(replica.parse().unwrap()),
            ["why", question] => return self.why(question),
            ["dry-run", name, rest @ ..] => return self.dry_run(name, rest),
            ["status"] => return self.status(),
            ["routes"] => return self.routes(),
            ["audit", count] => {
                let events = world.cluster.audit().last(count.parse().unwrap());
                let line = |e: &protocol::api::AuditEvent| {
                    let text = format!("{} {} {} {}", e.actor, e.action, e.subject, e.detail);
                    text.split_inclusive([' ', '/']).map(mask).collect::<String>() + "\n"
                };
                return events.map(line).collect();
            }
            other => panic!("no such command: {other:?}"),
        }
        String::new()
    }

    fn why(&self, question: &str) -> String {
        let World { cluster, observed, now, .. } = &self.world;
        let Some(why) = why(cluster, observed, &question.parse().unwrap(), *now) else {
            return "no such thing".into();
        };
        let mut text = format!("{}\n", why.answer);
        for reason in &why.reasons {
            writeln!(text, "- {reason}").unwrap();
        }
        if let Some(remedy) = &why.remedy {
            writeln!(text, "to help: {remedy}").unwrap();
        }
        text
    }

    fn dry_run(&self, name: &str, rest: &[&str]) -> String {
        let World { cluster, observed, now, .. } = &self.world;
        let manifest = Manifest::Service(parse_manifest(name, rest, *now));
        match dry_run(cluster, observed, &manifest, *now) {
            Err(refusal) => format!("{}: {refusal}", refusal.code),
            Ok(run) => {
                let mut text = String::new();
                for placement in &run.placements {
                    writeln!(text, "{name}/{} -> {}", placement.slot, placement.node).unwrap();
                }
                for line in &run.waiting {
                    writeln!(text, "{line}").unwrap();
                }
                writeln!(text, "{}", run.needs).unwrap();
                text
            }
        }
    }

    fn status(&self) -> String {
        let World { cluster, observed, now, .. } = &self.world;
        let leader = LeaderView { leader: Some(ReplicaId(1)), replicas_alive: Some(3) };
        let status = status(cluster, observed, leader, *now);
        let mut text = format!("{}\n", status.summary);
        for finding in &status.findings {
            let next: String = finding.next.split_inclusive(' ').map(mask).collect();
            writeln!(text, "- {} -> {next}", finding.message).unwrap();
        }
        for line in &status.simulated {
            writeln!(text, "simulated: {line}").unwrap();
        }
        text
    }

    fn routes(&self) -> String {
        let World { cluster, observed, now, .. } = &self.world;
        let table = route_table(cluster, observed, &Default::default(), *now);
        let mut text = String::new();
        for service in &table.services {
            for route in &service.routes {
                let node = cluster.node_name(&route.node);
                let draining = if route.draining { " draining" } else { "" };
                writeln!(
                    text,
                    "{}/{} fence {} at {node}{draining}",
                    service.service, route.slot, route.fence
                )
                .unwrap();
            }
        }
        text
    }
}

/// Short ids of proposals and certificates differ from run to run: members' keys are random.
fn mask(word: &str) -> String {
    let bare = word.trim_end_matches([' ', '/']);
    let is_id = bare.len() == 8 && bare.bytes().all(|c| c.is_ascii_hexdigit());
    if is_id { word.replacen(bare, "ID", 1) } else { word.to_string() }
}

fn show_plan(plan: &Plan) -> String {
    let mut text = String::new();
    for (step, reason) in plan.steps.iter().zip(&plan.reasons) {
        let what = match step {
            Step::Lapse { .. } => "lapse".to_string(),
            Step::Release(_) => "release".into(),
            Step::Drain { .. } => "drain".into(),
            Step::End(_) => "end".into(),
            Step::Order(order) if order.gpus.is_empty() => format!("order (fence {})", order.fence),
            Step::Order(order) => format!("order (fence {}, GPUs {:?})", order.fence, order.gpus),
        };
        writeln!(text, "{what} {}: {}", reason.subject, reason.text).unwrap();
    }
    for waiting in &plan.waiting {
        writeln!(text, "{} of {} wait: {}", waiting.replicas, waiting.service, waiting.cause).unwrap();
        for (node, obstacles) in &waiting.nodes {
            writeln!(text, "- {node}: {}", obstacles.join("; ")).unwrap();
        }
    }
    if text.is_empty() { "nothing to do".into() } else { text }
}

/// `cpu=2000 memory=4096 gpus=2x80 simulated region=eu label=disk:ssd isolation=same_uid storage-only`
fn parse_node(name: &str, words: &[&str]) -> NodeSpec {
    let mut spec = node(name, 2000, 4096);
    for word in words {
        let (key, value) = word.split_once('=').unwrap_or((word, ""));
        match key {
            "cpu" => spec.resources.cpu_millicores = value.parse().unwrap(),
            "memory" => spec.resources.memory_bytes = value.parse::<u64>().unwrap() << 20,
            "gpus" => {
                let (count, gib) = value.split_once('x').unwrap();
                spec.resources.gpus = gpus(count.parse().unwrap(), gib.parse().unwrap(), false);
            }
            "simulated" => spec.resources.gpus.iter_mut().for_each(|gpu| gpu.simulated = true),
            "sick" => spec.resources.gpus[0].healthy = false,
            "region" => spec.admission.region = value.into(),
            "label" => {
                let (key, value) = value.split_once(':').unwrap();
                spec.admission.labels.insert(key.into(), value.into());
            }
            "isolation" => spec.isolation = parse_isolation(value),
            "storage-only" => {
                spec.admission.roles = BTreeSet::from([NodeRole::Storage]);
                spec.admission.storage_address = Some("127.0.0.1:9000".into());
            }
            other => panic!("no such property of a node: {other}"),
        }
    }
    spec
}

fn parse_isolation(word: &str) -> Isolation {
    serde_json::from_value(serde_json::json!(word)).unwrap()
}

/// `replicas=1..3 cpu=1000 memory=512 gpu=1 share=50 gpu-memory=40 region=eu label=disk:ssd model=chat ...`
fn parse_manifest(name: &str, words: &[&str], now: Millis) -> ServiceManifest {
    let mut manifest = manifest(name, 1, 1, 1000, 512);
    for word in words {
        let (key, value) = word.split_once('=').unwrap();
        match key {
            "replicas" => {
                let (min, max) = value.split_once("..").unwrap();
                manifest.replicas = ReplicaRange { min: min.parse().unwrap(), max: max.parse().unwrap() };
            }
            "cpu" => manifest.resources.cpu_millicores = value.parse().unwrap(),
            "memory" => manifest.resources.memory_bytes = value.parse::<u64>().unwrap() << 20,
            "gpu" => manifest.resources.gpu_count = value.parse().unwrap(),
            "share" => manifest.resources.gpu_share_percent = value.parse().unwrap(),
            "gpu-memory" => manifest.resources.gpu_memory_bytes = value.parse::<u64>().unwrap() << 30,
            "region" => manifest.placement.regions.push(value.into()),
            "label" => {
                let (key, value) = value.split_once(':').unwrap();
                manifest.placement.node_selector.insert(key.into(), value.into());
            }
            "isolation" => manifest.placement.isolation = parse_isolation(value),
            "model" => manifest.model = ModelChoice { name: value.parse().unwrap(), root: root(value) },
            "valid-ms" => manifest.valid_until = Some(now.plus(value.parse().unwrap())),
            "on-expiry" => manifest.on_expiry = serde_json::from_value(serde_json::json!(value)).unwrap(),
            other => panic!("no such property of a manifest: {other}"),
        }
    }
    manifest
}
