//! Attacks on a member: the real `quorate` binary against a server that shows what it likes. Each positive
//! control takes the same way with an answer that an honest server could give.

use crate::Attack;
use crate::circle::{TestCircle, admission, claimed_by, model_name, record};
use crate::member::{Desk, now, view};
use crate::node::small;
use model_store::{
    Context, ImportOptions, ModelKey, PlacementRule, Pool, fresh_nonce, import, open_store, wrap_key,
};
use overlay::Identity;
use protocol::agent::PendingNode;
use protocol::api::{LackingKey, ProposalState};
use protocol::governance::{Change, NodeAdmission, Proposal};
use protocol::halt::HaltScope;
use protocol::manifest::{Manifest, ModelChoice};
use protocol::model::{ErasureCode, ModelRecord, Recipient, StoreReference};
use protocol::{Digest, ModelRoot};
use std::fs::File;
use std::path::Path;
use std::time::{Duration, SystemTime};

pub(crate) async fn all() -> Vec<Attack> {
    vec![
        a_shorter_history().await,
        another_history().await,
        a_decision_left_out().await,
        another_proposal_under_the_id().await,
        a_proposal_altered_after_its_words().await,
        votes_that_no_member_cast().await,
        a_rule_of_its_own().await,
        a_ballot_dropped().await,
        an_escape_sequence().await,
        an_exchanged_key().await,
        a_key_for_an_unadmitted_node().await,
        a_reason_that_imitates_fields().await,
        another_root_under_a_name().await,
        a_list_without_end().await,
        an_answer_without_end().await,
        a_register_of_no_models().await,
        a_key_overwritten().await,
        a_genesis_exchanged().await,
        a_halt_not_taken().await,
    ]
}

pub(crate) fn deployment(name: &str) -> Change {
    Change::Deploy(Box::new(Manifest::Service(small(name))))
}

pub(crate) fn words_of(proposal: &Proposal) -> String {
    human_chain::render(proposal).words[..2].join(" ")
}

fn world_of(nodes: Vec<NodeAdmission>, services: &[&str]) -> TestCircle {
    let mut world = TestCircle::new(nodes, &["127.0.0.1:1".into()], now());
    services.iter().for_each(|name| drop(world.deploy(&small(name))));
    world
}

async fn desk_with(services: &[&str]) -> Desk {
    Desk::new(world_of(vec![], services)).await
}

const SHOW: [&str; 2] = ["circle", "show"];

/// The member is served genesis alone, after it has verified a decision.
async fn a_shorter_history() -> Attack {
    let desk = desk_with(&["chat"]).await;
    assert_eq!(desk.outcome(&SHOW).await, Ok(()));
    desk.stub().history.bundles.clear();
    let attack = desk.outcome(&SHOW).await;
    // The positive control: a machine that remembers nothing takes the same answer.
    desk.forget();
    let control = desk.outcome(&SHOW).await.is_ok();
    Attack::refused(1, "a history that became shorter", attack, "history-shorter", control)
}

async fn another_history() -> Attack {
    let desk = desk_with(&["chat"]).await;
    assert_eq!(desk.outcome(&SHOW).await, Ok(()));
    let other = {
        let mut world = world_of(vec![], &[]);
        // The same circle, by the same members, with another first decision.
        (world.genesis, world.state) = (desk.world.genesis.clone(), desk.founded());
        world.founders = desk.founders();
        world.deploy(&small("evil"))
    };
    desk.stub().history.bundles = vec![other];
    let attack = desk.outcome(&SHOW).await;
    desk.forget();
    let control = desk.outcome(&SHOW).await.is_ok();
    Attack::refused(1, "another history of the circle", attack, "history-forked", control)
}

/// A machine that remembers nothing is served a history without its second decision.
async fn a_decision_left_out() -> Attack {
    let desk = desk_with(&["chat", "restricts", "later"]).await;
    desk.stub().history.bundles.remove(1);
    let attack = desk.outcome(&SHOW).await;
    desk.show_history();
    let control = desk.outcome(&SHOW).await.is_ok();
    Attack::refused(1, "a decision left out of the history", attack, "history-shorter", control)
}

async fn another_proposal_under_the_id() -> Attack {
    let desk = desk_with(&[]).await;
    let (asked, other) = (desk.proposal(deployment("asked"), "a"), desk.proposal(deployment("evil"), "b"));
    let mut forged = view(&other, vec![]);
    forged.id = asked.id();
    desk.stub().proposals = vec![forged];
    let (id, mut attack) = (asked.id().to_string(), Ok(()));
    for words in [words_of(&asked), words_of(&other)] {
        attack = desk.outcome(&["approve", &id, "--words", &words]).await;
        assert!(attack.is_err() && desk.stub().ballots.is_empty(), "something was signed");
    }
    desk.stub().proposals = vec![view(&asked, vec![])];
    let control = desk.outcome(&["approve", &id, "--words", &words_of(&asked)]).await.is_ok();
    let signed = desk.stub().ballots.iter().all(|ballot| ballot.ballot.proposal == asked.id());
    Attack::refused(2, "another proposal under the asked id", attack, "proposal-mismatch", control && signed)
}

/// The server exchanges the proposal after a script has learned the words of the first.
async fn a_proposal_altered_after_its_words() -> Attack {
    let desk = desk_with(&[]).await;
    let (agreed, shown) = (desk.proposal(deployment("chat"), "a"), desk.proposal(deployment("evil"), "b"));
    desk.stub().proposals = vec![view(&shown, vec![])];
    let id = shown.id().to_string();
    let attack = desk.outcome(&["approve", &id, "--words", &words_of(&agreed)]).await;
    assert!(desk.stub().ballots.is_empty(), "something was signed");
    let control = desk.outcome(&["reject", &id, "--words", &words_of(&shown)]).await.is_ok();
    Attack::refused(2, "a proposal altered after its words", attack, "words-mismatch", control)
}

/// Returns the members that `quorate review` counts as approving.
async fn approving(desk: &Desk, id: &str) -> Vec<String> {
    let ran = desk.run(&["-o", "json", "review", id]).await;
    let document: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    let names = document["approved"].as_array().unwrap();
    names.iter().map(|name| name.as_str().unwrap().to_string()).collect()
}

async fn votes_that_no_member_cast() -> Attack {
    let desk = desk_with(&[]).await;
    let proposal = desk.proposal(deployment("chat"), "a");
    let id = proposal.id().to_string();
    let mut claimed = view(&proposal, vec![desk.ballot(0, &proposal)]);
    claimed.approved = ["alice", "bob", "carol"].map(|name| name.parse().unwrap()).into();
    claimed.state = ProposalState::Approved;
    // Bob's ballot is a copy of alice's under his name.
    let mut copied = desk.ballot(0, &proposal);
    copied.ballot.member = "bob".parse().unwrap();
    claimed.ballots.push(copied);
    desk.stub().proposals = vec![claimed];
    let has_effect = approving(&desk, &id).await != ["alice"];
    let own = vec![desk.ballot(0, &proposal), desk.ballot(1, &proposal)];
    desk.stub().proposals = vec![view(&proposal, own)];
    let control = approving(&desk, &id).await == ["alice", "bob"];
    Attack::without_effect(2, "votes that no member cast", has_effect, "counted from ballots", control)
}

/// A manifest for a dry run.
const MANIFEST: &str = "kind = 'service'\nname = 'chat'\ntask = 'embed'\n\
    model = { name = 'minilm', root = 'ROOT' }\nreplicas = { min = 1, max = 2 }\n\
    resources = { cpu_millicores = 500, memory = '256 MiB' }\n";

/// Control says that one signature is enough for a deployment.
async fn a_rule_of_its_own() -> Attack {
    let desk = desk_with(&[]).await;
    let manifest = desk.path("chat.toml");
    std::fs::write(&manifest, MANIFEST.replace("ROOT", &"1".repeat(64))).unwrap();
    desk.stub().dry_run.needs = "1 of (alice) must approve".into();
    let ran = desk.run(&["deploy", manifest.to_str().unwrap(), "--dry-run"]).await;
    let has_effect = ran.stdout.contains("1 of (alice)") || !ran.stdout.contains("2 of (alice, bob, carol)");
    // The positive control: what only control knows, such as the placement, is shown as it was sent.
    let control = ran.stdout.contains("starts with 1 replica");
    Attack::without_effect(2, "a deployment said to need one signature", has_effect, "own rule", control)
}

async fn a_ballot_dropped() -> Attack {
    let desk = desk_with(&[]).await;
    let proposal = desk.proposal(deployment("chat"), "a");
    let mut shown = view(&proposal, vec![]);
    (shown.approved, shown.state) = (vec!["alice".parse().unwrap()], ProposalState::Approved);
    desk.stub().proposals = vec![shown];
    desk.stub().hides_ballots = true;
    let (id, words) = (proposal.id().to_string(), words_of(&proposal));
    let attack = desk.outcome(&["approve", &id, "--words", &words]).await;
    desk.stub().hides_ballots = false;
    let control = desk.outcome(&["approve", &id, "--words", &words]).await.is_ok();
    Attack::refused(2, "a ballot taken, dropped and called counted", attack, "outcome-unknown", control)
}

/// The message of a refusal clears the screen and prints a success.
async fn an_escape_sequence() -> Attack {
    let desk = desk_with(&[]).await;
    desk.stub().refusal = Some("later\u{1b}[2J\u{9b}31m\u{202e}all is well\nrecorded: approve".into());
    let (text, json) = (desk.run(&["model", "list"]).await, desk.run(&["-o", "json", "model", "list"]).await);
    let shown = [text.stdout, text.stderr, json.stdout, json.stderr].concat();
    let acts = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
    let has_effect = shown.chars().any(acts) || shown.lines().any(|line| line.starts_with("recorded"));
    Attack::without_effect(2, "escape sequences in a message", has_effect, "escaped", shown.contains("later"))
}

/// A node that asks to be admitted, with a claim over its own keys.
fn pending() -> (Identity, NodeAdmission) {
    let identity = Identity::from_seed(&[31; 32]);
    let encryption = human_chain::MemberSecret::generate(&[31; 64]).public().encryption;
    let node = admission("node-9", &identity, encryption);
    (identity, node)
}

/// Control puts its own encryption key into the admission of an honest node.
async fn an_exchanged_key() -> Attack {
    let desk = desk_with(&[]).await;
    let (_, honest) = pending();
    let mut exchanged = honest.clone();
    exchanged.encryption = human_chain::MemberSecret::generate(&[66; 64]).public().encryption;
    let asks = |admission: NodeAdmission| PendingNode { id: admission.id, admission, last_seen: now() };
    desk.stub().pending = vec![asks(exchanged)];
    let attack = desk.outcome(&["node", "admit", "node-9"]).await;
    assert!(desk.stub().submitted.is_empty(), "it was proposed");
    desk.stub().pending = vec![asks(honest)];
    let control = desk.outcome(&["node", "admit", "node-9"]).await.is_ok();
    let proposed = desk.stub().submitted.len() == 1;
    Attack::refused(3, "a node's key exchanged on its way", attack, "node-keys-unproven", control && proposed)
}

/// Control lists a node that the circle never admitted among those that lack a model's key.
async fn a_key_for_an_unadmitted_node() -> Attack {
    let admitted = Identity::from_seed(&[7; 32]);
    let encryption = human_chain::MemberSecret::generate(&[7; 64]).public().encryption;
    let node = claimed_by(&admitted, admission("node-1", &admitted, encryption));
    let desk = Desk::new(world_of(vec![node.clone()], &[])).await;
    let (key, root) = (ModelKey::generate().unwrap(), ModelRoot(Digest::of(b"model")));
    let (alice, bob) = (&desk.world.founders[0], &desk.world.founders[1]);
    let own = desk.world.state.member(&alice.0).unwrap().keys.encryption.clone();
    let wrap = wrap_key(&key, &own, root, Recipient::Member(alice.0.clone())).unwrap();
    let wrap = human_chain::sign_wrap(&bob.1, bob.0.clone(), desk.world.state.id(), &own, wrap);
    let lacks = |recipient| {
        let lacking = LackingKey { model: model_name(root), wrap: wrap.clone(), recipients: vec![recipient] };
        desk.stub().wraps.lacking = vec![lacking];
    };
    lacks(Recipient::Node(pending().1.id));
    let attack = desk.outcome(&["node", "share"]).await;
    let has_effect = !desk.stub().stored_wraps.is_empty();
    lacks(Recipient::Node(node.id));
    let control = desk.outcome(&["node", "share"]).await.is_ok() && desk.stub().stored_wraps.len() == 1;
    let name = "a model's key for an unadmitted node";
    Attack::without_effect(3, name, has_effect || attack.is_err(), "not wrapped", control)
}

/// A reason full of spaces wraps into lines that look like fields.
async fn a_reason_that_imitates_fields() -> Attack {
    let desk = desk_with(&[]).await;
    let spaces = " ".repeat(300);
    let reason =
        format!("harmless{spaces}\n| service.name                       good\r\u{2028}service.name good");
    let proposal = desk.proposal(deployment("evil"), &reason);
    desk.stub().proposals = vec![view(&proposal, vec![])];
    let ran = desk.run(&["review", &proposal.id().to_string()]).await;
    let (signed, _) = ran.stdout.split_once("\nChanges\n").unwrap();
    let names: Vec<&str> = signed.lines().filter(|line| line.contains("service.name  ")).collect();
    let is_field = |line: &&str| line.starts_with("| service.name ") && line.ends_with(" evil");
    let is_marked = signed.lines().filter(|line| !line.is_empty()).all(|line| line.starts_with('|'));
    let runs_of_spaces = signed.lines().any(|line| line.contains("harmless  "));
    let has_effect = names.len() != 1 || !names.iter().all(is_field) || !is_marked || runs_of_spaces;
    let control = signed.contains("\"harmless");
    Attack::without_effect(7, "a reason that imitates fields", has_effect, "marked and escaped", control)
}

async fn another_root_under_a_name() -> Attack {
    let desk = desk_with(&["chat"]).await;
    let root = ModelRoot(Digest::of(b"model"));
    let approved = ModelRecord { name: model_name(root), ..record(root) };
    let other = ModelRecord { root: ModelRoot(Digest::of(b"evil")), ..approved.clone() };
    let name = approved.name.to_string();
    let new = ["new", "service", "--model", &name];
    desk.stub().models = vec![other];
    let attack = desk.outcome(&new).await;
    desk.stub().models = vec![approved];
    let control = desk.outcome(&new).await.is_ok();
    Attack::refused(7, "another root under an approved name", attack, "model-name-taken", control)
}

async fn a_list_without_end() -> Attack {
    let desk = desk_with(&[]).await;
    desk.stub().is_endless = true;
    let ended = desk.run(&["review"]).await;
    let is_refused = ended.status == Some(1) && ended.stderr.contains("the list does not end");
    desk.stub().is_endless = false;
    let control = desk.outcome(&["review"]).await.is_ok();
    Attack::without_effect(9, "a list of pages without end", !is_refused, "the list does not end", control)
}

async fn an_answer_without_end() -> Attack {
    let desk = desk_with(&[]).await;
    desk.stub().floods = true;
    let attack = desk.outcome(&SHOW).await;
    desk.stub().floods = false;
    let control = desk.outcome(&SHOW).await.is_ok();
    Attack::refused(9, "an answer without end", attack, "control-unavailable", control)
}

/// Returns the number of files below a folder, each made three days older.
fn aged(folder: &Path) -> usize {
    let mut files = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files += aged(&path);
        } else {
            let then = SystemTime::now() - Duration::from_secs(3 * 24 * 3600);
            File::options().write(true).open(&path).unwrap().set_modified(then).unwrap();
            files += 1;
        }
    }
    files
}

/// Control reports to a collection of garbage that no model is registered.
async fn a_register_of_no_models() -> Attack {
    let mut desk = desk_with(&[]).await;
    let source = desk.path("weights");
    std::fs::write(&source, vec![7; 100_000]).unwrap();
    let url = |number: usize| format!("file://{}", desk.path(&format!("store-{number}")).display());
    let urls: Vec<String> = (0..3).map(url).collect();
    let reference = |(number, url): (usize, &String)| {
        let reference = StoreReference { url: url.clone(), failure_domain: number.to_string() };
        open_store(&reference, &Context::new()).unwrap()
    };
    let stores: Vec<_> = urls.iter().enumerate().map(reference).collect();
    let options = ImportOptions {
        erasure: ErasureCode { data: 2, parity: 1 },
        placement: PlacementRule { shards_per_domain_max: 1 },
        ..ImportOptions::new("tiny".parse().unwrap(), fresh_nonce().unwrap())
    };
    let key = ModelKey::generate().unwrap();
    let imported = import(&source, options, &stores, &key, &Pool::new(2), |_| ()).await.unwrap();
    let count = |desk: &Desk| (0..3).map(|n| aged(&desk.path(&format!("store-{n}")))).sum::<usize>();
    let node = desk.path("node").display().to_string();
    let prepared = desk.outcome(&["agent", "init", "--dir", &node, "--name", "node-1"]).await;
    assert_eq!(prepared, Ok(()));
    let mut sweep = vec!["model", "sweep", "--node", &node];
    urls.iter().for_each(|url| sweep.extend(["--store", url]));
    let before = count(&desk);
    let swept = desk.run(&sweep).await;
    let has_effect = count(&desk) != before || before == 0 || swept.status != Some(0);
    // The positive control: the circle decides to forget the model, and the same command removes it.
    let model = ModelChoice { name: imported.record.name.clone(), root: imported.record.root };
    desk.world.decide(Change::ForgetModel { model, grace_seconds: 0 });
    desk.show_history();
    let control = desk.outcome(&sweep).await.is_ok() && count(&desk) == 0;
    Attack::without_effect(10, "garbage collection told of no models", has_effect, "kept: complete", control)
}

/// The commands of the founding run twice, and the second must not destroy the first key.
async fn a_key_overwritten() -> Attack {
    let desk = desk_with(&[]).await;
    let key = desk.path("dana.key").display().to_string();
    let member = ["circle", "member", "dana", "--key", &key];
    let control = desk.outcome(&member).await.is_ok();
    let first = std::fs::read(&key).unwrap();
    let attack = desk.outcome(&member).await;
    assert_eq!(std::fs::read(&key).unwrap(), first, "the key was destroyed");
    Attack::refused(11, "a second key over the first", attack, "key-exists", control)
}

/// A genesis is exchanged between the reading and the signing of it.
async fn a_genesis_exchanged() -> Attack {
    let desk = desk_with(&[]).await;
    let mut agreed = desk.world.genesis.clone();
    agreed.signatures.clear();
    let words = |signed: &protocol::governance::SignedGenesis| {
        human_chain::render_genesis(&signed.genesis).words[..2].join(" ")
    };
    let mut exchanged = agreed.clone();
    exchanged.genesis.name = "evil".into();
    let file = desk.path("genesis.json").display().to_string();
    let write = |signed| std::fs::write(&file, serde_json::to_vec(signed).unwrap()).unwrap();
    write(&exchanged);
    let key = desk.path("alice.key").display().to_string();
    let sign = ["circle", "sign", &file, "--key", &key, "--words", &words(&agreed)];
    let attack = desk.outcome(&sign).await;
    write(&agreed);
    let control = desk.outcome(&sign).await.is_ok();
    Attack::refused(11, "a genesis exchanged before its signature", attack, "words-mismatch", control)
}

/// A replica acknowledges another halt than the one that it was sent.
async fn a_halt_not_taken() -> Attack {
    let desk = desk_with(&["chat"]).await;
    let control = desk.outcome(&["halt", "circle", "--reason", "smoke"]).await.is_ok();
    let sent = desk.stub().halts[0].clone();
    assert_eq!(sent.halt.scope, HaltScope::Circle);
    assert!(human_chain::check_halt(&desk.world.state, sent).is_ok(), "alice signed it");
    let attack = desk.outcome(&["halt", "service", "chat", "--reason", "more smoke"]).await;
    Attack::refused(12, "a halt acknowledged and not taken", attack, "control-unavailable", control)
}
