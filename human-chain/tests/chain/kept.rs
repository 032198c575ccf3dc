//! Tests of the state that a machine keeps for itself: it comes back as it was, judges as it did, and neither
//! damage nor another circle passes for it.

use crate::authenticator::{Authenticator, passkey_policy};
use crate::samples::{prices, projects};
use crate::support::{
    NOW, approve, check, circle, deploy, enact, forget, genesis, halt, member, name, node, policy, proposal,
    retire, set_members, signed, suspend,
};
use human_chain::{ChainError, CircleState, lift, verify};
use protocol::governance::{Change, NodeRole};
use protocol::halt::HaltScope;
use protocol::{CircleId, Digest};

const BOTH: [&str; 2] = ["alice", "bob"];

/// Returns a state with something in each of its fields.
fn rich() -> CircleState {
    let mut genesis = genesis();
    genesis.policy.passkeys = Some(passkey_policy());
    let mut state = CircleState::found(&signed(genesis), None).expect("a sound genesis");
    let passkeys = vec![Authenticator::es256("phone").passkey("phone")];
    let halts = vec![halt(&state, "bob", HaltScope::Circle, "1")];
    for change in [
        deploy(4),
        deploy(2),
        Change::RemoveNode { node: name("n2") },
        Change::AdmitNode(Box::new(node("n4", &[NodeRole::Worker]))),
        retire("embed"),
        forget("spare", 60),
        Change::SetPrices(prices()),
        Change::SetProjects(Box::new(projects())),
        lift(halts),
    ] {
        enact(&mut state, change, &BOTH);
    }
    let dropped = Authenticator::es256("laptop").passkey("laptop");
    for passkeys in [[passkeys.clone(), vec![dropped]].concat(), passkeys] {
        enact(&mut state, Change::SetPasskeys { member: name("alice"), passkeys }, &["alice"]);
    }
    let members = ["alice", "bob", "dave"].map(member).to_vec();
    let rule = "2 of (alice, bob, dave)";
    let change = set_members(&state, members, policy(rule, rule));
    enact(&mut state, change, &["alice", "bob", "dave"]);
    enact(&mut state, suspend("dave"), &BOTH);
    enact(&mut state, deploy(3), &BOTH);
    state
}

fn read(bytes: &[u8], state: &CircleState) -> Result<CircleState, ChainError> {
    CircleState::from_kept_bytes(bytes, state.id())
}

#[test]
fn a_kept_state_comes_back_as_it_was() {
    for state in [circle(), rich()] {
        let kept = read(&state.to_kept_bytes(), &state).expect("as it was written");
        assert_eq!(kept, state);
        assert_eq!((kept.head(), kept.check_invariants()), (state.head(), Ok(())));
        assert_eq!(kept.to_kept_bytes(), state.to_kept_bytes(), "one state, one byte string");
    }
}

/// A kept state judges later decisions as the one that was replayed does.
#[test]
fn a_kept_state_judges_what_follows() {
    let state = rich();
    let mut kept = read(&state.to_kept_bytes(), &state).expect("as it was written");
    let proposal = proposal(&state, deploy(5));
    check("a quorum", verify(&kept, &approve(&proposal, &BOTH), NOW), "approved");
    check("one", verify(&kept, &approve(&proposal, &["alice"]), NOW), "quorum-not-reached");
    check("suspended", verify(&kept, &approve(&proposal, &["alice", "dave"]), NOW), "member-suspended");
    check("removed", verify(&kept, &approve(&proposal, &["alice", "carol"]), NOW), "not-a-member");
    let mut replayed = state;
    let certificate = enact(&mut replayed, deploy(5), &BOTH);
    kept.advance(verify(&kept, &certificate, NOW).expect("sound")).expect("it applies");
    assert_eq!(kept, replayed);
}

#[test]
fn every_decision_is_found_by_its_number_and_its_proposal() {
    let mut state = circle();
    let certificates = [4, 2, 3].map(|replicas| enact(&mut state, deploy(replicas), &BOTH));
    for (number, certificate) in (1..).zip(&certificates) {
        let entry = state.decision(number).expect("admitted");
        assert_eq!((entry.certificate, entry.proposal), (certificate.digest(), certificate.proposal.id()));
        assert_eq!(state.number_of(&entry.proposal), Some(number));
    }
    assert_eq!((state.decision(0), state.decision(4), state.decision(u64::MAX)), (None, None, None));
    let open = proposal(&state, deploy(9));
    assert_eq!(state.number_of(&open.id()), None);
}

/// Attack: a file of another circle, and a damaged one.
#[test]
fn a_damaged_or_foreign_state_is_refused() {
    let state = circle();
    let sound = state.to_kept_bytes();
    for at in 0..sound.len() {
        let mut damaged = sound.clone();
        damaged[at] ^= 1;
        assert!(read(&damaged, &state).is_err(), "byte {at}");
    }
    for length in [0, 1, 31, 32, 33, sound.len() - 1] {
        assert!(read(&sound[..length], &state).is_err(), "{length} bytes");
    }
    let other = CircleId(Digest::of(b"another circle"));
    check("another circle", CircleState::from_kept_bytes(&sound, other), "circle-mismatch");
    let mut later = sound[32..].to_vec();
    let version = later.len() - 1;
    assert_eq!(later[version], 5, "the version is the last field");
    later[version] = 6;
    check(
        "another format",
        read(&with_digest(&later), &state),
        "governance-invalid: kept state of a circle: of format 6",
    );
    // The digest finds damage and no attack: the caller vouches for the file.
    let mut renamed = sound[32..].to_vec();
    let at = renamed.windows(7).position(|part| part == b"harbour").expect("the circle's name");
    renamed[at] = b'H';
    assert_eq!(read(&with_digest(&renamed), &state).expect("sound").name(), "Harbour");
}

fn with_digest(record: &[u8]) -> Vec<u8> {
    [&Digest::of_domain("quorate/kept-circle/v1", record).0[..], record].concat()
}
