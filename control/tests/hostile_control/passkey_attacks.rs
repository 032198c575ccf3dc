//! Attacks with a member's passkey. A replica's page can ask for assertions, and the hostile control has the
//! ballot of one honest member besides. Each positive control is the same certificate with a sound assertion.

use crate::Attack;
use crate::authenticator::{Authenticator, Ceremony, ORIGIN, PRESENT, client_data, passkey_policy};
use crate::circle::TestCircle;
use crate::node::{Scene, small};
use crate::node_attacks::{head_after, order};
use human_chain::{assemble, ballot_challenge, propose, unsigned_ballot, verify, vote};
use protocol::governance::{
    BUNDLE_VERSION, BallotSignature, Bundle, Change, Choice, Policy, Proposal, SignedBallot,
};
use protocol::manifest::Manifest;
use protocol::{Digest, MemberId};
use std::time::Duration;

const HOUR_MS: u64 = 3_600_000;
/// Count of the assertion that the circle has seen.
const COUNTED: u32 = 7;

pub(crate) async fn all() -> Vec<Attack> {
    let other_page = |ceremony: &mut Ceremony, challenge: &[u8]| {
        ceremony.client_data = client_data("webauthn.get", challenge, "https://console.example.com");
    };
    let without_user = |ceremony: &mut Ceremony, _: &[u8]| ceremony.flags = PRESENT;
    let counts_back = |ceremony: &mut Ceremony, _: &[u8]| ceremony.counter = COUNTED - 1;
    vec![
        by_assertion("a vote made on the page of another origin", other_page, "passkey-origin").await,
        by_assertion("a vote that its user did not verify", without_user, "passkey-unverified").await,
        by_assertion("a vote by a copy that counts back", counts_back, "passkey-counter").await,
        a_passkey_registered_by_a_replicas_page().await,
    ]
}

fn alice() -> MemberId {
    "alice".parse().unwrap()
}

fn phone() -> Authenticator {
    Authenticator::es256("phone of alice")
}

fn propose_change(world: &TestCircle, change: Change) -> Proposal {
    let nonce = Digest::of(&world.bundles.len().to_le_bytes());
    let (made, ends) = (world.now, world.now.plus(24 * HOUR_MS));
    propose(&world.state, change, "test".into(), made, ends, nonce).unwrap()
}

/// Returns the approval of alice by her phone, over a ceremony with some part made wrong.
fn by_phone(
    world: &TestCircle,
    proposal: &Proposal,
    counter: u32,
    alter: impl FnOnce(&mut Ceremony, &[u8]),
) -> SignedBallot {
    let ballot = unsigned_ballot(alice(), world.state.head(), proposal, Choice::Approve, world.now);
    let challenge = ballot_challenge(&ballot).0;
    let mut ceremony = Ceremony::of(&challenge, counter);
    assert!(ceremony.client_data.contains(ORIGIN), "sound, unless it is altered");
    alter(&mut ceremony, &challenge);
    SignedBallot { ballot, signature: BallotSignature::Passkey(phone().answer(&ceremony)) }
}

fn by_key(world: &TestCircle, founder: usize, proposal: &Proposal) -> SignedBallot {
    let (member, secret) = &world.founders[founder];
    vote(secret, member.clone(), world.state.head(), proposal, Choice::Approve, world.now)
}

fn bundle(proposal: &Proposal, ballots: &[SignedBallot]) -> Bundle {
    Bundle { version: BUNDLE_VERSION, certificate: assemble(proposal, ballots), log_evidence: None }
}

/// Returns the approval of a service by alice's phone and by bob's key.
fn deployment(
    world: &TestCircle,
    name: &str,
    counter: u32,
    alter: impl FnOnce(&mut Ceremony, &[u8]),
) -> Bundle {
    let proposal = propose_change(world, Change::Deploy(Box::new(Manifest::Service(small(name)))));
    let ballots = [by_phone(world, &proposal, counter, alter), by_key(world, 1, &proposal)];
    bundle(&proposal, &ballots)
}

/// Lets the circle count votes by passkey, and alice register her phone and vote by it once.
fn with_phone(scene: &Scene) {
    let mut script = scene.script();
    let world = &mut script.world;
    let members = world.state.members().cloned().collect();
    let policy = Policy { passkeys: Some(passkey_policy()), ..world.state.policy().clone() };
    world.decide(Change::SetMembers { members, policy, proofs: [].into() });
    world.decide(Change::SetPasskeys { member: alice(), passkeys: vec![phone().passkey("phone")] });
    let first = deployment(world, "first", COUNTED, |_, _| {});
    let approved = verify(&world.state, &first.certificate, world.now).unwrap();
    world.state.advance(approved).unwrap();
    world.heads.push(world.state.head());
    world.bundles.push(first);
    world.now = world.now.plus(60_000);
}

/// Serves one more decision after those of the circle.
fn serve_after(scene: &Scene, next: &Bundle) {
    let mut script = scene.script();
    script.claimed = Some(head_after(&script.world, next));
    let served = script.world.bundles.iter().chain([next]).cloned().collect();
    (script.forced, script.served) = (None, Some(served));
}

/// Control orders by a certificate one of whose ballots has an assertion that is not sound.
async fn by_assertion(
    name: &'static str,
    alter: impl FnOnce(&mut Ceremony, &[u8]),
    expected: &str,
) -> Attack {
    let scene = Scene::new();
    with_phone(&scene);
    let (forged, whole) = {
        let world = &scene.script().world;
        let next = COUNTED + 1;
        (deployment(world, "chat", next, alter), deployment(world, "chat", next, |_, _| {}))
    };
    let agent = scene.start();
    scene.until_length(3).await;
    scene.script().forced = Some(vec![forged.clone()]);
    let attack = scene.try_order(&forged, order(&scene, &forged, 0, 1)).await;
    serve_after(&scene, &whole);
    let control = scene.try_order(&whole, order(&scene, &whole, 1, 1)).await.is_ok();
    agent.stop().await;
    Attack::refused(13, name, attack, expected, control)
}

/// A replica's page has alice confirm a login, and uses her assertion to register a passkey of its own.
async fn a_passkey_registered_by_a_replicas_page() -> Attack {
    let scene = Scene::new();
    with_phone(&scene);
    let (forged, own) = {
        let world = &scene.script().world;
        let planted = Authenticator::es256("of the replica").passkey("phone");
        let proposal =
            propose_change(world, Change::SetPasskeys { member: alice(), passkeys: vec![planted] });
        let tapped = by_phone(world, &proposal, COUNTED + 1, |_, _| {});
        (bundle(&proposal, &[tapped]), bundle(&proposal, &[by_key(world, 0, &proposal)]))
    };
    let agent = scene.start();
    scene.until_length(3).await;
    scene.script().forced = Some(vec![forged]);
    tokio::time::sleep(Duration::from_secs(10)).await;
    scene.script().last = None;
    scene.until("the agent asks again", |script| script.last.is_some()).await;
    let has_effect = scene.script().last.as_ref().is_some_and(|request| request.governance_length != 3);
    // The positive control: alice registers the same passkey by her key.
    serve_after(&scene, &own);
    scene.until_length(4).await;
    agent.stop().await;
    let name = "a passkey registered by a replica's page";
    Attack::without_effect(13, name, has_effect, "only her key registers it", true)
}
