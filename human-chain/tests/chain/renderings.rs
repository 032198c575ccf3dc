//! Tests of renderings: golden texts, and distinct texts for distinct proposals.

use crate::samples::{full_job, full_service, lift_all, open_job, prices, projects, proposals};
use crate::support::{
    NOW, approve, circle, deploy, enact, forget, member, name, node, policy, proposal, retire, set_members,
    suspend,
};
use human_chain::{CircleState, RENDERER_VERSION, render, render_difference};
use proptest::prelude::*;
use protocol::access::AccessEnvelope;
use protocol::governance::{Change, NodeRole, Proposal, RENDERING_DOMAIN};
use protocol::manifest::{JobManifest, Manifest, OnFailure, ParameterRule, RollOutRules};
use protocol::project::ProjectTree;
use protocol::usage::Prices;
use protocol::{Digest, Epoch, Millis};
use serde_json::Value;
use std::path::Path;

/// Compares a text with its golden file; `REFRESH_GOLDEN=1 cargo test -p human-chain` rewrites the file.
#[expect(clippy::disallowed_methods, reason = "a test may ask to rewrite its golden files")]
pub(crate) fn check_golden(file: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(file);
    if std::env::var_os("REFRESH_GOLDEN").is_some() {
        std::fs::write(&path, text).expect("golden file is writable");
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(text == expected, "{file} differs; a renderer version never changes. Now it is:\n{text}");
}

#[test]
fn the_texts_that_members_read() {
    for (case, proposal) in proposals() {
        let rendering = render(&proposal);
        check_golden(
            &format!("{case}.txt"),
            &format!("{}\nwords: {}\n", rendering.text, rendering.words.join(" ")),
        );
    }
}

#[test]
fn the_differences_shown_beside_them() {
    let mut state = circle();
    enact(&mut state, deploy(4), &["alice", "bob"]);
    let rules = policy("3 of (alice, bob, dave)", "2 of (alice, bob, dave)");
    let mut chat = full_service();
    chat.egress.clear();
    let mut moved = node("n1", &[NodeRole::Worker]);
    moved.region = "oslo".into();
    for (case, change) in [
        ("more-replicas", deploy(9)),
        ("nothing", deploy(4)),
        ("new-service", Change::Deploy(Box::new(Manifest::Service(chat)))),
        ("retire", retire("embed")),
        ("move-node", Change::AdmitNode(Box::new(moved))),
        ("remove-node", Change::RemoveNode { node: name("n3") }),
        ("forget-model", forget("spare", 3600)),
        ("lift", lift_all()),
        ("members", set_members(&state, ["alice", "bob", "dave"].map(member).to_vec(), rules)),
        ("suspend", suspend("carol")),
        ("access", Change::SetAccess(Box::new(AccessEnvelope::standard([name("alice"), name("bob")])))),
    ] {
        let text = render_difference(&state, &proposal(&state, change));
        check_golden(&format!("difference-{case}.txt"), &text);
    }
}

/// A member who reads only the difference must see each bound that a job gains or loses.
#[test]
fn the_differences_of_a_job() {
    let job = |job: JobManifest| Change::Deploy(Box::new(Manifest::Job(job)));
    let mut state = circle();
    let show = |state: &CircleState, case: &str, change: Change| {
        let text = render_difference(state, &proposal(state, change));
        check_golden(&format!("difference-{case}.txt"), &text);
        text
    };
    show(&state, "new-job", job(full_job()));
    enact(&mut state, job(full_job()), &["alice", "bob"]);
    let same = show(&state, "job-nothing", job(full_job()));
    show(&state, "job-opens", job(open_job()));
    show(&state, "job-retire", retire("train"));
    let mut wider = full_job();
    let steps = wider.parameters.get_mut(&name("steps")).expect("a parameter");
    steps.rule = ParameterRule::Integer { least: 1, most: 1001 };
    wider.slots += 1;
    wider.submit.tokens.insert(name("cron"));
    let text = show(&state, "job-wider", job(wider));
    let changed = |text: &str| text.lines().filter(|line| line.starts_with('~')).count();
    assert_eq!((changed(&same), changed(&text)), (0, 3), "{text}");
}

/// New prices are read beside the present ones: absolute, and as a difference.
#[test]
fn the_differences_of_prices() {
    let mut state = circle();
    let first = render_difference(&state, &proposal(&state, Change::SetPrices(prices())));
    check_golden("difference-first-prices.txt", &first);
    enact(&mut state, Change::SetPrices(prices()), &["alice", "bob", "carol"]);
    assert_eq!((state.prices().version, state.prices().prices), (1, prices()));
    let dearer = Prices { gpu_hour_micro_units: 3_000_000, memory_gib_hour_micro_units: 5_000, ..prices() };
    let text = render_difference(&state, &proposal(&state, Change::SetPrices(dearer)));
    check_golden("difference-prices.txt", &text);
    assert!(text.contains("+500000 millionths, +20.0 %") && text.contains("-1 millionths"), "{text}");
    assert!(!text.contains("core"), "what stays is left out: {text}");
}

/// A member reads which project gains or loses, and by how much.
#[test]
fn the_differences_of_projects() {
    let mut state = circle();
    let set = |tree: ProjectTree| Change::SetProjects(Box::new(tree));
    let first = render_difference(&state, &proposal(&state, set(projects())));
    check_golden("difference-first-projects.txt", &first);
    enact(&mut state, set(projects()), &["alice", "bob", "carol"]);
    let mut tree = projects();
    tree.projects.remove(0);
    tree.projects[1].weight = 4;
    tree.projects[1].borrow = None;
    let text = render_difference(&state, &proposal(&state, set(tree)));
    check_golden("difference-projects.txt", &text);
    assert!(text.contains("~ project vision.weight: 2 -> 4"), "{text}");
    assert!(text.contains("- project operations.weight") && !text.contains("research"), "{text}");
}

/// The rules of a roll-out and the priority of a service are read line by line too.
#[test]
fn the_differences_of_a_roll_out() {
    let mut state = circle();
    let service = |service| Change::Deploy(Box::new(Manifest::Service(service)));
    let mut before = full_service();
    before.egress.clear();
    enact(&mut state, service(before.clone()), &["alice", "bob"]);
    let mut after = before.clone();
    after.priority = 71;
    after.rollout =
        RollOutRules { ready_seconds: 11, max_unavailable: 1, failure_limit: 4, on_failure: OnFailure::Hold };
    let text = render_difference(&state, &proposal(&state, service(after.clone())));
    check_golden("difference-roll-out.txt", &text);
    for field in ["priority", "available after", "taken at once", "failed starts", "on failure"] {
        let is_shown = text.lines().any(|line| line.starts_with('~') && line.contains(field));
        assert!(is_shown, "{field} before and after: {text}");
    }
    let unchanged = render_difference(&state, &proposal(&state, service(before)));
    assert!(!unchanged.contains("roll-out"), "{unchanged}");
}

#[test]
fn a_difference_against_another_state_says_so() {
    let mut state = circle();
    let old = proposal(&state, deploy(4));
    assert!(!render_difference(&state, &old).starts_with('!'));
    enact(&mut state, deploy(2), &["alice", "bob"]);
    assert!(render_difference(&state, &old).starts_with("! this proposal was made for another state"));
    for alter in [|p: &mut Proposal| p.epoch = Epoch(9), |p: &mut Proposal| p.circle.0.0[0] ^= 1] {
        let mut other = proposal(&state, deploy(4));
        alter(&mut other);
        assert!(render_difference(&state, &other).starts_with('!'));
    }
}

#[test]
fn a_rendering_is_made_of_the_proposal_alone_and_is_its_digest() {
    for (case, proposal) in proposals() {
        let rendering = render(&proposal);
        assert_eq!(rendering, render(&proposal.clone()), "{case}");
        assert_eq!(
            rendering.digest,
            Digest::of_domain(RENDERING_DOMAIN, rendering.text.as_bytes()),
            "{case}"
        );
        assert!(rendering.text.contains(&proposal.id().to_string()), "{case}: names the proposal");
        assert!(
            rendering.text.contains(&format!("| rendering version                  {RENDERER_VERSION}\n"))
        );
    }
}

/// Returns the rendering without the line that holds the digest of the whole proposal. That line differs for
/// any two proposals, so the tests below would pass trivially.
fn text_alone(proposal: &Proposal) -> String {
    let text = render(proposal).text;
    text.lines().filter(|line| !line.starts_with("| proposal ")).collect::<Vec<_>>().join("\n")
}

/// Returns values that differ from this one in one position.
pub(crate) fn mutations(value: &Value) -> Vec<Value> {
    let mut all = match value {
        Value::Null => vec![Value::from(1), Value::from("x"), Value::from("00".repeat(32))],
        Value::Bool(b) => vec![Value::from(!b)],
        Value::Number(number) => {
            let number = number.as_u64().unwrap_or(0);
            vec![number.wrapping_add(1).into(), number.wrapping_sub(1).into(), Value::Null]
        }
        Value::String(text) => text_mutations(text),
        Value::Array(items) => {
            let mut all = Vec::new();
            for at in 0..items.len() {
                let mut without = items.clone();
                let removed = without.remove(at);
                let mut doubled = items.clone();
                doubled.insert(at, removed.clone());
                let mut rotated = without.clone();
                rotated.insert((at + 1) % items.len(), removed);
                all.extend([without.into(), doubled.into(), rotated.into()]);
                all.extend(mutations(&items[at]).into_iter().map(|item| {
                    let mut changed = items.clone();
                    changed[at] = item;
                    Value::from(changed)
                }));
            }
            all.push(vec![Value::from("x")].into());
            all
        }
        Value::Object(entries) => {
            let mut all = Vec::new();
            for (key, item) in entries {
                all.extend(mutations(item).into_iter().map(|item| {
                    let mut changed = entries.clone();
                    changed.insert(key.clone(), item);
                    Value::from(changed)
                }));
                let mut without = entries.clone();
                let removed = without.remove(key).expect("the key was just seen");
                all.push(without.clone().into());
                without.insert(format!("{key}2"), removed);
                all.push(without.into());
            }
            all
        }
    };
    all.retain(|other| other != value);
    all
}

/// Returns other texts: names of variants, other digits and letters, look-alikes, invisible characters.
fn text_mutations(text: &str) -> Vec<Value> {
    let variants = [
        "embed",
        "generate",
        "candle",
        "process",
        "hold",
        "drain",
        "none",
        "same_uid",
        "full",
        "worker",
        "storage",
        "gateway",
        "routine",
        "sensitive",
        "",
    ];
    let mut all: Vec<Value> = variants.map(Value::from).to_vec();
    for suffix in ["0", "b", " ", "\u{200b}", "\u{430}", "\"", "\\", "\n", ", ", "\", \""] {
        all.push(format!("{text}{suffix}").into());
    }
    if !text.is_empty() {
        let mut letters: Vec<char> = text.chars().collect();
        letters[0] = if letters[0] == '0' { '1' } else { '0' };
        all.push(letters.into_iter().collect::<String>().into());
        all.push(text.chars().skip(1).collect::<String>().into());
    }
    all
}

#[test]
fn a_change_anywhere_in_a_proposal_changes_its_text() {
    let mut compared = 0;
    for (case, proposal) in proposals() {
        let text = text_alone(&proposal);
        let value = serde_json::to_value(&proposal).expect("proposals are JSON for people");
        for mutated in mutations(&value) {
            let Ok(other) = serde_json::from_value::<Proposal>(mutated) else { continue };
            if other != proposal {
                assert_ne!(text, text_alone(&other), "{case}: {other:?}");
                compared += 1;
            }
        }
    }
    assert!(compared > 1500, "only {compared} mutations were proposals");
}

fn any_proposal() -> impl Strategy<Value = Proposal> {
    let samples: Vec<Proposal> = proposals().into_iter().map(|(_, proposal)| proposal).collect();
    let sample = samples[0].clone();
    let change = prop_oneof![
        prop::sample::select(samples).prop_map(|proposal| proposal.change),
        (1u32..3).prop_map(deploy),
        ("[ab]", 0u32..2)
            .prop_map(|(service, grace)| Change::Retire { service: name(&service), grace_seconds: grace }),
        "[ab]".prop_map(|node| Change::RemoveNode { node: name(&node) }),
        ("[ab]", 0u32..2).prop_map(|(model, grace)| forget(&model, grace)),
        ("[ab]", "[ab\" ,=]{0,3}", "[ab\" ,=]{0,3}").prop_map(|(who, key, value)| {
            let mut node = node(&who, &[NodeRole::Worker]);
            node.labels.insert(key, value);
            Change::AdmitNode(Box::new(node))
        }),
    ];
    (change, 0u64..2, "[ab\n\u{202e}\"\\\\]{0,3}", 0u64..2, 0u64..2, 0u8..2).prop_map(
        move |(change, epoch, reason, created, expires, nonce)| {
            let mut proposal = sample.clone();
            proposal.epoch = Epoch(epoch);
            proposal.created_at = Millis(created);
            proposal.expires_at = Millis(expires);
            proposal.nonce = Digest([nonce; 32]);
            Proposal { change, reason, ..proposal }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(128) })]

    #[test]
    fn no_two_proposals_render_equal(a in any_proposal(), b in any_proposal()) {
        prop_assert_eq!(a == b, text_alone(&a) == text_alone(&b));
        prop_assert_eq!(a == b, render(&a).digest == render(&b).digest);
    }

    #[test]
    fn a_rendering_holds_nothing_that_hides(proposal in any_proposal(), reason: String) {
        let text = render(&Proposal { reason, ..proposal }).text;
        let harmless = |c: char| c == '\n' || matches!(c, ' '..='~' | '\u{c0}'..='\u{17f}');
        prop_assert!(text.chars().all(harmless), "{}", text);
        let lines = text.lines().filter(|line| line.starts_with("| circle ")).count();
        prop_assert_eq!(lines, 1, "a reason cannot imitate a field");
    }
}

/// Returns the lines that a terminal of this width shows of a text, which it breaks at any character.
fn on_a_screen(text: &str, width: usize) -> Vec<String> {
    let breaks = |line: &str| {
        let letters: Vec<char> = line.chars().collect();
        letters.chunks(width).map(|part| part.iter().collect()).collect::<Vec<String>>()
    };
    text.lines().flat_map(breaks).collect()
}

/// Texts of a proposer that a terminal breaks so that their last part stands below the names of fields.
fn padded_reasons(line: &str) -> impl Iterator<Item = String> {
    (0..200).map(move |pad| format!("Nothing.{}{line}", " ".repeat(pad)))
}

#[test]
fn no_reason_wraps_into_a_line_that_looks_like_a_field() {
    let field = format!("| {:<34} 3", "service.replicas.max");
    let sample = proposal(&circle(), deploy(900));
    let imitations = |show: fn(&Proposal) -> String| {
        let shown = padded_reasons(&field).map(|reason| show(&Proposal { reason, ..sample.clone() }));
        let lines = shown.flat_map(|text| [80, 100, 120].map(|width| on_a_screen(&text, width)));
        lines.flatten().filter(|line| line.starts_with(field.as_str())).count()
    };
    assert_eq!(imitations(|proposal| render(proposal).text), 0);
    let without_escapes = |proposal: &Proposal| format!("| {:<34} {}\n", "reason", proposal.reason);
    assert!(imitations(without_escapes) > 0, "the attack succeeds without the escapes");
}

#[test]
fn another_root_under_the_same_name_reads_differently() {
    let state = circle();
    let mut other = proposal(&state, deploy(4));
    let Change::Deploy(manifest) = &mut other.change else { panic!("a deployment") };
    let Manifest::Service(service) = manifest.as_mut() else { panic!("a service") };
    service.model.root.0 = Digest::of(b"planted");
    let sentence = |proposal: &Proposal| render(proposal).text.lines().next().map(str::to_owned);
    let [approved, planted] = [&proposal(&state, deploy(4)), &other].map(|shown| sentence(shown).unwrap());
    assert_ne!(approved, planted, "the first line tells them apart");
    // Positive control: without the words of the root, which stand in brackets, the two lines are one.
    let without_root = |line: &str| {
        let (before, rest) = line.split_once(" (").expect("the words of the root");
        format!("{before}{}", rest.split_once(')').expect("their end").1)
    };
    assert_eq!(without_root(&approved), without_root(&planted));
}

#[test]
fn the_first_line_says_on_how_many_nodes_a_slot_may_live() {
    let state = circle();
    let mut shown = proposal(&state, deploy(4));
    let mut sentence = |seconds, exclusive| {
        let Change::Deploy(manifest) = &mut shown.change else { panic!("a deployment") };
        let Manifest::Service(service) = manifest.as_mut() else { panic!("a service") };
        (service.autonomy_seconds, service.exclusive) = (seconds, exclusive);
        render(&shown).text.lines().next().map(str::to_owned).expect("a sentence")
    };
    let shared = "keeps its replicas for up to 1 day (86400 seconds); until then a slot may live on each \
        node that held it.";
    assert!(sentence(86_400, false).ends_with(shared));
    assert!(!sentence(3_600, false).contains("86400"), "the time is the manifest's");
    let alone = "No slot lives on two nodes: a node that gets no answer from the control plane ends its \
        replicas after 3 seconds.";
    assert!(sentence(3, true).ends_with(alone));
}

#[test]
fn the_first_line_says_whether_the_service_may_return() {
    let state = circle();
    let mut shown = proposal(&state, deploy(4));
    let mut says = |on_failure| {
        let Change::Deploy(manifest) = &mut shown.change else { panic!("a deployment") };
        let Manifest::Service(service) = manifest.as_mut() else { panic!("a service") };
        service.rollout.on_failure = on_failure;
        render(&shown)
            .text
            .lines()
            .next()
            .is_some_and(|line| line.contains("may return to the present value"))
    };
    assert_eq!([OnFailure::Hold, OnFailure::Return].map(&mut says), [false, true]);
}

#[test]
fn a_ballot_is_judged_by_the_renderer_that_it_names() {
    let state = circle();
    let mut certificate = approve(&proposal(&state, deploy(2)), &["alice", "bob"]);
    for version in [0, RENDERER_VERSION - 1, RENDERER_VERSION + 1, u32::MAX] {
        certificate.ballots[0].ballot.renderer_version = version;
        let error =
            human_chain::verify(&state, &certificate, NOW).expect_err("this release has one renderer");
        assert!(error.to_string().contains("another rendering"), "{version}: {error}");
    }
}

#[test]
fn a_vote_for_one_text_is_no_vote_for_another() {
    let state = circle();
    let shown = proposal(&state, deploy(2));
    let mut swapped = shown.clone();
    swapped.change = deploy(3);
    let mut certificate = approve(&shown, &["alice", "bob"]);
    assert!(human_chain::verify(&state, &certificate, NOW).is_ok());
    certificate.proposal = swapped;
    assert!(human_chain::verify(&state, &certificate, NOW).is_err());
}
