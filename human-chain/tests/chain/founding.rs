//! Tests of a genesis before it is founded: its text, its form, and signatures made in parallel.

use crate::renderings::{check_golden, mutations};
use crate::support::{check, genesis, name, policy, secret};
use human_chain::{
    CircleState, check_draft, circle_id, merge_signatures, render_genesis, sign_genesis, unsigned_founders,
};
use protocol::governance::{GENESIS_RENDERING_DOMAIN, Genesis, SignedGenesis, TokenScope};
use protocol::{Digest, MemberId};
use std::collections::BTreeMap;

/// Returns the genesis with the signatures of these founders.
fn signed_by(founders: &[&str]) -> SignedGenesis {
    let secrets: Vec<_> = founders.iter().map(|who| (name::<MemberId>(who), secret(who))).collect();
    let founders: Vec<_> = secrets.iter().map(|(id, secret)| (id.clone(), secret)).collect();
    sign_genesis(genesis(), &founders)
}

fn names(members: &[MemberId]) -> Vec<&str> {
    members.iter().map(MemberId::as_str).collect()
}

#[test]
fn the_text_that_founders_read() {
    let rendering = render_genesis(&genesis());
    let shown = format!("{}\nwords: {}\n", rendering.text, rendering.words.join(" "));
    check_golden("genesis.txt", &shown);
    assert!(rendering.text.contains(&circle_id(&genesis()).to_string()), "the circle's id is shown");
    let digest = Digest::of_domain(GENESIS_RENDERING_DOMAIN, rendering.text.as_bytes());
    assert_eq!(rendering.digest, digest);
}

/// Returns the rendering without the line with the digest of the whole, which always differs.
fn text_alone(genesis: &Genesis) -> String {
    let text = render_genesis(genesis).text;
    let id = circle_id(genesis).to_string();
    text.lines().filter(|line| !line.contains(&id)).collect::<Vec<_>>().join("\n")
}

#[test]
fn a_change_anywhere_in_a_genesis_changes_its_text() {
    let genesis = genesis();
    let text = text_alone(&genesis);
    let value = serde_json::to_value(&genesis).expect("a genesis is JSON for people");
    let mut compared = 0;
    for mutated in mutations(&value) {
        let Ok(other) = serde_json::from_value::<Genesis>(mutated) else { continue };
        if other != genesis {
            assert_ne!(text, text_alone(&other), "{other:?}");
            compared += 1;
        }
    }
    assert!(compared > 300, "only {compared} mutations were genesis documents");
}

#[test]
fn nothing_hides_in_the_text_of_a_genesis() {
    let mut hostile = genesis();
    hostile.name = "lab\u{1b}[2J\u{202e}\ncircle   0000".into();
    hostile.control[0].api = "http://[::1]:7000/\u{430}".into();
    hostile.access.scopes.remove(&TokenScope::Submit);
    let text = render_genesis(&hostile).text;
    let harmless = |c: char| c == '\n' || matches!(c, ' '..='~' | '\u{c0}'..='\u{17f}');
    assert!(text.chars().all(harmless), "{text}");
    assert_eq!(text.lines().count(), render_genesis(&genesis()).text.lines().count(), "no line is added");
}

#[test]
fn a_genesis_that_could_never_be_founded_is_refused_before_it_is_signed() {
    let draft = |alter: fn(&mut Genesis)| {
        let mut genesis = genesis();
        alter(&mut genesis);
        check_draft(&genesis)
    };
    check("as it is", draft(|_| {}), "approved");
    check(
        "four of three",
        draft(|g| g.policy = policy("4 of (alice, bob, carol)", "4 of (alice, bob, carol)")),
        "governance-invalid: asks for 4 of 3",
    );
    check(
        "a member twice",
        draft(|g| g.members.push(g.members[0].clone())),
        "governance-invalid: two members have the same id",
    );
    check("no replica", draft(|g| g.control.clear()), "governance-invalid: 0 replicas");
}

#[test]
fn signatures_made_in_parallel_are_joined() {
    let mut joined = signed_by(&["alice"]);
    let kept = joined.signatures.clone();
    assert_eq!(unsigned_founders(&joined).as_deref().map(names), Ok(vec!["bob", "carol"]));
    let copies = [signed_by(&["bob", "alice"]), signed_by(&["carol"])];
    merge_signatures(&mut joined, &copies).expect("copies of one genesis");
    assert_eq!(unsigned_founders(&joined).as_deref().map(names), Ok(vec![]));
    assert_eq!(joined.signatures[&name("alice")], kept[&name("alice")], "the first signature is kept");
    check("founded", CircleState::found(&joined, None), "approved");
}

#[test]
fn nothing_of_another_genesis_and_no_false_signature_is_joined() {
    let mut other = signed_by(&["bob"]);
    other.genesis.name = "harbor".into();
    let mut forged = signed_by(&["bob"]);
    let by_alice = signed_by(&["alice"]).signatures[&name("alice")].clone();
    forged.signatures.insert(name("bob"), by_alice.clone());
    let mut outsider = signed_by(&["bob"]);
    outsider.signatures.insert(name("mallory"), by_alice);
    for (case, copy, expected) in [
        ("another genesis", other, "circle-mismatch"),
        ("a forged signature", forged, "signature-invalid: `bob`"),
        ("an outsider", outsider, "not-a-member: `mallory`"),
    ] {
        let mut signed = signed_by(&["alice"]);
        check(case, merge_signatures(&mut signed, &[signed_by(&["carol"]), copy]), expected);
        assert_eq!(signed.signatures.len(), 1, "{case}: nothing was joined");
    }
    let mut unsigned = SignedGenesis { genesis: genesis(), signatures: BTreeMap::new() };
    merge_signatures(&mut unsigned, &[]).expect("nothing to join");
}
