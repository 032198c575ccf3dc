//! Script runner: a script is a text file of commands (`> ...`), each followed by its answers.
//!
//! The runner executes the commands and writes the file again; a test compares.

use super::*;
use protocol::NodeName;
use std::fmt::Write;

/// Runs every command of a script and returns the whole text with fresh answers. Lines before the first
/// command, and those that begin with `#`, are kept.
pub(crate) fn run(text: &str) -> String {
    let mut runner = ScriptRunner { world: World::empty(), nodes: Vec::new(), proposals: Vec::new() };
    let mut out = String::new();
    for line in text.lines() {
        if line.starts_with('#') {
            writeln!(out, "{line}").unwrap();
        } else if let Some(command) = line.strip_prefix("> ") {
            writeln!(out, "> {command}").unwrap();
            for answer in runner.execute(command).lines() {
                writeln!(out, "    {answer}").unwrap();
            }
        } else if line.is_empty() {
            out.push('\n');
        }
    }
    out
}

struct ScriptRunner {
    world: World,
    nodes: Vec<NodeSpec>,
    /// Submitted proposals, named `p1`, `p2` and so on.
    proposals: Vec<Proposal>,
}

impl ScriptRunner {
    /// Executes a command; one of the groups of commands knows it.
    fn execute(&mut self, command: &str) -> String {
        let words: Vec<&str> = command.split_whitespace().collect();
        let answer = self.change(&words).or_else(|| self.decide(&words)).or_else(|| self.run(&words));
        let answer =
            answer.or_else(|| self.ask(&words)).unwrap_or_else(|| panic!("no such command: {words:?}"));
        answer.split_inclusive([' ', '/', '\n', ',']).map(mask).collect()
    }

    /// Changes the inventory: nodes, models, approved services.
    fn change(&mut self, words: &[&str]) -> Option<String> {
        let world = &mut self.world;
        match words {
            ["node", name, rest @ ..] => self.nodes.push(parse_node(name, rest)),
            ["found"] => *world = World::new(&self.nodes),
            ["admit", name, rest @ ..] => {
                let spec = parse_node(name, rest);
                world.specs.insert(spec.admission.name.clone(), spec.clone());
                world.approve(Change::AdmitNode(Box::new(spec.admission)));
            }
            ["change" | "return", name, rest @ ..] => {
                let spec = parse_node(name, rest);
                world.specs.insert(spec.admission.name.clone(), spec);
                if words[0] == "return" {
                    world.heartbeat(name);
                }
            }
            ["die", nodes @ ..] => {
                for name in nodes {
                    world.specs.remove(&name.parse::<NodeName>().unwrap());
                    world.reports.remove(&node_id(name));
                }
            }
            ["remove", name] => {
                world.approve(Change::RemoveNode { node: name.parse().unwrap() });
            }
            ["model", name, mib] => {
                let bytes = mib.parse::<u64>().unwrap() << 20;
                let members = world.cluster.circle_state().unwrap().members();
                let members: Vec<_> = members.map(|member| Recipient::Member(member.id.clone())).collect();
                world.must(world.register_for(model(name, bytes), members));
            }
            ["deploy", name, rest @ ..] => {
                world.approve(deploy(parse_manifest(name, rest, world.now)));
            }
            ["retire", name, seconds] => {
                let grace_seconds = seconds.parse().unwrap();
                world.approve(Change::Retire { service: service_name(name), grace_seconds });
            }
            _ => return None,
        }
        Some(String::new())
    }

    /// Executes an operator's request, as a member or under a token (`by operator`); returns the state
    /// machine's answer.
    fn decide(&mut self, words: &[&str]) -> Option<String> {
        let (words, actor) = match words {
            [rest @ .., "by", token] => (rest, Actor::Token(token.parse().unwrap())),
            _ => (words, Actor::Scheduler),
        };
        let action = match words {
            ["propose", lifetime_ms, rest @ ..] => {
                let change = self.parse_change(rest)?;
                let world = &self.world;
                let nonce = Digest::of(&world.log.len().to_le_bytes());
                let expires = world.now.plus(lifetime_ms.parse().unwrap());
                let state = world.cluster.circle_state().unwrap();
                let made = propose(state, change, "script".into(), world.now, expires, nonce);
                let proposal = match made {
                    Ok(proposal) => proposal,
                    Err(error) => return Some(format!("{}: {error}", error.code())),
                };
                self.proposals.push(proposal.clone());
                Action::SubmitProposal(Box::new(proposal))
            }
            ["submit", label] => Action::SubmitProposal(Box::new(self.proposal(label).clone())),
            ["vote", name, choice, label] => {
                let choice = serde_json::from_value(serde_json::json!(choice)).unwrap();
                Action::CastBallot(Box::new(self.world.ballot(name, self.proposal(label), choice)))
            }
            ["withdraw", label] => Action::Withdraw { proposal: self.proposal(label).id(), withdrawal: None },
            ["withdraw", label, "as", name] => withdrawn(name, self.proposal(label), false),
            ["tick"] => Action::Tick,
            ["scale", name, replicas] => {
                Action::Scale { service: service_name(name), replicas: replicas.parse().unwrap() }
            }
            ["rollback", name, reason @ ..] => {
                Action::RollBack { service: service_name(name), reason: reason.join(" ") }
            }
            ["enrol", name, rest @ ..] => Action::Enrol(Box::new(parse_node(name, rest).admission)),
            ["share", name, nodes @ ..] => {
                Action::PutWraps(nodes.iter().map(|node| self.world.wrap_to(name, node)).collect())
            }
            ["key", holder, text] => self.world.granting_key(holder, text),
            ["revoke", holder] => self.world.revoking_key(holder),
            _ => return None,
        };
        Some(show_reply(&self.world.apply(actor, action)))
    }

    fn parse_change(&self, words: &[&str]) -> Option<Change> {
        Some(match words {
            ["deploy", name, rest @ ..] => deploy(parse_manifest(name, rest, self.world.now)),
            ["retire", name, seconds] => {
                Change::Retire { service: service_name(name), grace_seconds: seconds.parse().unwrap() }
            }
            ["admit", name, rest @ ..] => Change::AdmitNode(Box::new(parse_node(name, rest).admission)),
            ["remove", name] => Change::RemoveNode { node: name.parse().unwrap() },
            ["members", names @ ..] => {
                let of = |name: &&str| Quorum::Member(member(name));
                let all =
                    Quorum::Threshold { required: names.len() as u32, of: names.iter().map(of).collect() };
                let quorums =
                    [ActionClass::Routine, ActionClass::Sensitive].map(|class| (class, all.clone()));
                let state = self.world.cluster.circle_state().unwrap();
                let members = names.iter().map(|name| state.member(&member(name)).unwrap().clone()).collect();
                let policy = Policy {
                    quorums: quorums.into(),
                    passkeys: None,
                    veto_seconds: 0,
                    proposer_counts: true,
                };
                Change::SetMembers { members, policy, proofs: [].into() }
            }
            _ => return None,
        })
    }

    fn proposal(&self, label: &str) -> &Proposal {
        let number: usize = label.strip_prefix('p').unwrap().parse().unwrap();
        &self.proposals[number - 1]
    }

    /// Executes an event of the leader, of the nodes or of time.
    fn run(&mut self, words: &[&str]) -> Option<String> {
        let world = &mut self.world;
        match words {
            ["plan"] => return Some(show_plan(&world.execute())),
            ["obey", nodes @ ..] => {
                for name in nodes {
                    let spec = world.specs[&name.parse::<NodeName>().unwrap()].clone();
                    world.obey_node(&spec);
                }
                if nodes.is_empty() {
                    world.obey();
                }
            }
            ["state", slot, state, detail @ ..] => {
                let (service, slot) = slot.split_once('/').unwrap();
                let state = serde_json::from_value(serde_json::json!(state)).unwrap();
                world.set_state(service, slot.parse().unwrap(), state, &detail.join(" "));
                world.heartbeat_all();
            }
            ["forget", slot] => {
                let (service, slot) = slot.split_once('/').unwrap();
                let slot = protocol::SlotIndex(slot.parse().unwrap());
                for reports in world.reports.values_mut() {
                    reports.retain(|report| report.service.as_str() != service || report.slot != slot);
                }
                world.heartbeat_all();
            }
            ["heartbeat", nodes @ ..] => {
                for name in nodes {
                    world.heartbeat(name);
                }
            }
            ["wait", ms] => world.wait(ms.parse().unwrap()),
            ["pass", ms] => world.pass(ms.parse().unwrap()),
            ["lead", replica] => world.lead(replica.parse().unwrap()),
            _ => return None,
        }
        Some(String::new())
    }

    /// Answers an operator's query.
    fn ask(&self, words: &[&str]) -> Option<String> {
        Some(match words {
            ["why", question] => self.why(question),
            ["why", label, "by", digits] => {
                let id = self.proposal(label).id().to_string();
                self.why(&id[..digits.parse().unwrap()])
            }
            ["why", label, "as-subject"] => {
                self.why(&format!("proposal/{}", self.proposal(label).id().short()))
            }
            ["dry-run", name, rest @ ..] => self.dry_run(name, rest),
            ["status"] => self.status(),
            ["routes"] => self.routes(),
            ["show", name] => self.show(name),
            ["nodes"] => self.show_nodes(),
            ["proposals"] => self.show_proposals(),
            ["desired", node] => self.desired(node),
            ["audit", count] => {
                let events = self.world.cluster.audit().last(count.parse().unwrap());
                let line = |e: &protocol::api::AuditEvent| {
                    format!("{} {} {} {}\n", e.actor, e.action, e.subject, e.detail)
                };
                events.map(line).collect()
            }
            _ => return None,
        })
    }

    fn show(&self, name: &str) -> String {
        let Some(view) = service_view(self.world.view(), &service_name(name)) else {
            return "no such service".into();
        };
        let retiring = if view.retiring { ", retiring" } else { "" };
        let mut text = format!("{} of {} ready{retiring}\n", view.ready, view.desired);
        for slot in &view.slots {
            let node = slot.node.as_ref().map_or("unknown", |node| node.as_str());
            let state =
                slot.report.as_ref().map_or("unreported".into(), |report| format!("{:?}", report.state));
            writeln!(text, "{} fence {} at {node} {state}: {}", slot.slot, slot.fence, slot.why).unwrap();
        }
        text
    }

    fn show_nodes(&self) -> String {
        let mut text = String::new();
        for view in node_views(self.world.view()) {
            let alive = if view.alive { "alive" } else { "silent" };
            let gpus = view.gpus.len();
            let (cpu, slots) = (view.cpu_millicores, view.slots);
            let heard =
                view.heard_ms_ago.map_or("no heartbeat".into(), |ms| format!("heartbeat {ms} ms ago"));
            writeln!(text, "{} {alive}, {heard}, {cpu} millicores, {gpus} GPUs, {slots} slots", view.name)
                .unwrap();
        }
        for pending in self.world.cluster.pending_nodes().values() {
            writeln!(text, "{} asks", pending.admission.name).unwrap();
        }
        text
    }

    /// Lists proposals by label: those of the same moment are sorted by id, and ids differ from run to run.
    fn show_proposals(&self) -> String {
        let mut lines = Vec::new();
        for view in proposal_views(&self.world.cluster) {
            let names = |ids: &[MemberId]| ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
            let label = self.proposals.iter().position(|proposal| proposal.id() == view.id);
            let label = label.map_or("others".into(), |at| format!("p{}", at + 1));
            let (approved, rejected) = (names(&view.approved), names(&view.rejected));
            let (state, missing) = (format!("{:?}", view.state).to_lowercase(), names(&view.missing));
            lines.push(format!(
                "{label} {state}: for [{approved}] against [{rejected}] missing [{missing}]\n"
            ));
        }
        lines.sort_unstable_by_key(|line| (line.starts_with("others"), line.clone()));
        lines.concat()
    }

    fn desired(&self, node: &str) -> String {
        let mut text = String::new();
        for assignment in desired_for(&self.world.cluster, node_id(node)) {
            let key = if assignment.wrap.is_some() { "with its key" } else { "without a key" };
            for order in &assignment.orders {
                let verb = if assignment.draining.contains(&order.slot) { "drain" } else { "run" };
                writeln!(
                    text,
                    "{verb} {}/{} fence {} of {} {key}",
                    order.service, order.slot, order.fence, assignment.model.name
                )
                .unwrap();
            }
        }
        if text.is_empty() { "nothing".into() } else { text }
    }

    fn why(&self, question: &str) -> String {
        let question = match question.strip_prefix('p').filter(|rest| rest.parse::<usize>().is_ok()) {
            Some(_) => Question::Proposal(self.proposal(question).id()),
            None => question.parse().unwrap(),
        };
        let Some(why) = why(self.world.view(), &question) else {
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
        let manifest = Manifest::Service(parse_manifest(name, rest, self.world.now));
        match dry_run(self.world.view(), &manifest) {
            Err(refusal) => refusal.to_string(),
            Ok(run) => {
                let mut text = String::new();
                for placement in &run.placements {
                    writeln!(text, "{name}/{} -> {}", placement.slot, placement.node).unwrap();
                }
                for placement in &run.possible {
                    writeln!(text, "{name}/{} could start on {}", placement.slot, placement.node).unwrap();
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
        let leader = LeaderView { leader: Some(ReplicaId(1)), silent: Some(Vec::new()) };
        let status = status(self.world.view(), leader);
        let mut text = format!("{}\n", status.summary);
        for finding in &status.findings {
            writeln!(text, "- {} -> {}", finding.message, finding.next).unwrap();
        }
        for line in &status.simulated {
            writeln!(text, "simulated: {line}").unwrap();
        }
        for line in &status.not_enforced {
            writeln!(text, "not enforced: {line}").unwrap();
        }
        text
    }

    fn routes(&self) -> String {
        let table = route_table(self.world.view(), &Default::default());
        let mut text = String::new();
        for service in &table.services {
            for route in &service.routes {
                let node = self.world.cluster.node_name(&route.node);
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

/// Masks ids of proposals and certificates, which differ from run to run: members' keys are random.
fn mask(word: &str) -> String {
    let bare = word.trim_end_matches([' ', '/', '\n', ',']);
    let is_id = [8, 64].contains(&bare.len()) && bare.bytes().all(|c| c.is_ascii_hexdigit());
    if is_id { word.replacen(bare, "ID", 1) } else { word.to_string() }
}

fn show_reply(reply: &Reply) -> String {
    match reply {
        Reply::Refused { code, message } => format!("{code}: {message}"),
        Reply::Counted { state, .. } => format!("{state:?}").to_lowercase(),
        Reply::Submitted { .. } => "submitted".into(),
        Reply::Enrolled { admitted: true } => "admitted already".into(),
        Reply::Enrolled { admitted: false } => "waits for admission".into(),
        _ => String::new(),
    }
}

fn show_plan(plan: &Plan) -> String {
    let mut text = String::new();
    for (step, reason) in plan.steps.iter().zip(&plan.reasons) {
        let what = match step {
            Step::Lapse { .. } => "lapse".to_string(),
            Step::Resume(_) => "resume".into(),
            Step::Release(_) => "release".into(),
            Step::ReleaseFormer { .. } => "release former holder of".into(),
            Step::Drain { .. } => "drain".into(),
            Step::End(_) => "end".into(),
            Step::FailStart { starts, .. } => format!("count {starts} failed starts of"),
            Step::StartGang(_) => "start".into(),
            Step::RunGang { .. } => "run".into(),
            Step::EndGang { .. } => "end".into(),
            Step::ReleaseGang(_) => "release".into(),
            Step::CountUsage(_) => "count".into(),
            Step::EndRollOut { .. } => "end the roll-out of".into(),
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
pub(crate) fn parse_node(name: &str, words: &[&str]) -> NodeSpec {
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
            "as" => spec.admission.name = value.parse().unwrap(),
            "label" => {
                let (key, value) = value.split_once(':').unwrap();
                spec.admission.labels.insert(key.into(), value.into());
            }
            "isolation" => spec.isolation = parse_isolation(value),
            "lacks" => spec.not_enforced = value.split(',').map(|limit| format!("{limit}: denied")).collect(),
            "storage-only" => {
                spec.admission.roles = BTreeSet::from([NodeRole::Storage]);
                spec.admission.storage = Some(StorageEndpoint {
                    address: "127.0.0.1:9000".into(),
                    stores: BTreeSet::from(["disk-0".parse().expect("a name")]),
                });
            }
            other => panic!("no such property of a node: {other}"),
        }
    }
    spec
}

fn parse_isolation(word: &str) -> Isolation {
    serde_json::from_value(serde_json::json!(word)).unwrap()
}

/// `autonomy=3600` makes it work that is not exclusive.
/// `replicas=1..3 cpu=1000 memory=512 gpu=1 share=50 gpu-memory=40 region=eu label=disk:ssd model=chat ...`
pub(crate) fn parse_manifest(name: &str, words: &[&str], now: Millis) -> ServiceManifest {
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
            "priority" => manifest.priority = value.parse().unwrap(),
            "ready" => manifest.rollout.ready_seconds = value.parse().unwrap(),
            "unavailable" => manifest.rollout.max_unavailable = value.parse().unwrap(),
            "failures" => manifest.rollout.failure_limit = value.parse().unwrap(),
            "on-failure" => {
                manifest.rollout.on_failure = serde_json::from_value(serde_json::json!(value)).unwrap();
            }
            "autonomy" => manifest = autonomous(value.parse().unwrap(), manifest),
            "on-expiry" => manifest.on_expiry = serde_json::from_value(serde_json::json!(value)).unwrap(),
            other => panic!("no such property of a manifest: {other}"),
        }
    }
    manifest
}
