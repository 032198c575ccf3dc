//! Tests of access: what the log takes of grants and revocations, which tokens stand, and what ends them.

use crate::common::samples::every_service;
use crate::common::*;
use protocol::access::{AccessEnvelope, AccessGrant, GRANT_SECONDS_MAX, GrantedAccess};
use protocol::governance::{Change, TokenScope};
use protocol::limits::CLOCK_GRACE_MS;
use protocol::{Digest, Millis};
use scheduler::*;

const YEAR_MS: u64 = GRANT_SECONDS_MAX as u64 * 1000;

fn verdict(world: &World, action: Action) -> String {
    match world.clone().apply(Actor::Scheduler, action) {
        Reply::Refused { code, .. } => code.to_string(),
        _ => "ok".into(),
    }
}

fn token_code(world: &World, text: &str, now: Millis) -> String {
    let found = world.cluster.token(&Digest::of(text.as_bytes()), ClusterTime(now));
    found.map_or_else(|refusal| refusal.code.to_string(), |token| token.holder.to_string())
}

fn bounds(alter: impl FnOnce(&mut AccessEnvelope)) -> Change {
    let mut envelope = AccessEnvelope::standard(["alice", "bob"].map(member));
    alter(&mut envelope);
    Change::SetAccess(Box::new(envelope))
}

#[test]
fn a_holder_has_a_key_and_its_successor_and_a_key_has_one_text() {
    let mut world = World::new(&[node("n1", 4000, 4096)]);
    world.must(world.granting_key("app", "secret"));
    for (case, action, expected) in [
        ("its successor", world.granting_key("app", "another"), "ok"),
        ("same text", world.granting_key("app-2", "secret"), "name-taken"),
        ("the same again", world.granting_key("app", "secret"), "ok"),
        ("of no use", world.granting("app-2", "another", every_service(Some(0))), "governance-invalid"),
        ("another", world.granting_key("app-2", "another"), "ok"),
        ("a token beside it", world.granting("app", "another", reading()), "ok"),
        ("revoke", world.revoking_key("app"), "ok"),
        ("revoke another", world.revoking_key("app-2"), "grant-not-found"),
    ] {
        assert_eq!(verdict(&world, action), expected, "{case}");
    }
    let (grant, revocation) = (world.granting_key("app", "secret"), world.revoking_key("app"));
    let mut rotated = world.clone();
    rotated.must(rotated.granting_key("app", "successor"));
    assert_eq!(verdict(&rotated, rotated.granting_key("app", "third")), "name-taken");
    rotated.must(revocation.clone());
    let successor = rotated.key_of("app").map(|grant| grant.secret);
    assert_eq!(successor, Some(Digest::of(b"successor")), "the revocation names one of them");
    assert_eq!(verdict(&rotated, rotated.granting_key("app", "third")), "ok");
    let issued = world.cluster.audit().recorded();
    world.must(grant.clone());
    assert_eq!(world.cluster.audit().recorded(), issued, "the same grant again leaves no trace");
    world.must(revocation.clone());
    world.must(revocation);
    assert_eq!(world.key_of("app"), None);
    assert_eq!(verdict(&world, grant), "grant-revoked", "it never returns");
    assert_eq!(verdict(&world, world.granting_key("app", "secret")), "grant-revoked");
    assert_eq!(verdict(&world, world.granting_key("app", "fresh")), "ok");
}

fn reading() -> GrantedAccess {
    GrantedAccess::Token { scopes: [TokenScope::Read].into() }
}

/// Attack: a member's key grants without end. The envelope bounds what stands.
#[test]
fn the_envelope_bounds_what_stands() {
    let mut world = World::new(&[node("n1", 4000, 4096)]);
    world.approve(bounds(|envelope| (envelope.keys_max, envelope.tokens_max) = (1, 3)));
    world.must(world.granting_key("app", "app"));
    assert_eq!(verdict(&world, world.granting_key("second", "second")), "limit-reached");
    world.must(world.granting("dave", "dave", reading()));
    assert_eq!(verdict(&world, world.granting("erin", "erin", reading())), "limit-reached");
    // Positive control: a revocation makes room.
    world.must(world.revoking_key("app"));
    assert_eq!(verdict(&world, world.granting_key("second", "second")), "ok");
}

#[test]
fn a_token_is_known_by_its_text_until_it_ends() {
    let mut world = World::new(&[node("n1", 4000, 4096)]);
    world.must(world.granting_key("app", "app"));
    assert_eq!(token_code(&world, "operator", world.now), "operator");
    assert_eq!(token_code(&world, "app", world.now), "token-unknown", "a key is no token");
    assert_eq!(token_code(&world, "stolen", world.now), "token-unknown");
    let last = START.plus(YEAR_MS - 1);
    assert_eq!(token_code(&world, "operator", last), "operator", "the positive control");
    assert_eq!(token_code(&world, "operator", START.plus(YEAR_MS)), "grant-expired");
    world.approve(bounds(|envelope| envelope.ends_earlier = true));
    assert_eq!(token_code(&world, "operator", world.now), "token-unknown", "it is forgotten");
    let denied = world.apply(Actor::Token("operator".parse().unwrap()), Action::PutWraps(vec![]));
    assert!(matches!(&denied, Reply::Refused { code, .. } if code.as_str() == "token-scope-missing"));
}

/// The clocks of a majority may have leapt ahead: what expired by them is kept until a signed decision
/// attests the later time.
#[test]
fn what_expired_is_forgotten_once_a_decision_attests_the_time() {
    let mut world = World::new(&[node("n1", 4000, 4096)]);
    world.must(world.granting_key("app", "app"));
    world.must(world.granting_key("gone", "gone"));
    world.must(world.revoking_key("gone"));
    assert!(!tick_is_due(&world.cluster, &world.clocks));
    let before = world.cluster.access().last();
    world.set_now(START.plus(YEAR_MS + CLOCK_GRACE_MS));
    world.must(Action::Tick);
    assert_eq!(token_code(&world, "operator", world.now), "grant-expired");
    assert!(!world.cluster.access().after(0).1.is_empty(), "kept, as long as clocks alone say so");
    world.approve(bounds(|envelope| envelope.keys_max = 7));
    world.must(Action::Tick);
    assert!(!tick_is_due(&world.cluster, &world.clocks));
    assert_eq!(world.cluster.access().after(0), (0, vec![]), "nothing is left to hand out");
    assert_eq!(world.cluster.access().last(), before, "numbers are never used again");
}

/// A token or a key that ends unannounced is an outage. It is no fault of the cluster: all is well.
#[test]
fn access_that_expires_within_a_week_is_named_until_it_has_a_successor() {
    const DAY_MS: u64 = 24 * 3_600_000;
    let mut world = World::new(&[node("n1", 4000, 4096)]);
    world.must(world.granting_key("app", "app"));
    let told = |world: &World| -> Vec<(String, String)> {
        let found = status(world.view(), LeaderView { leader: None, silent: None }).findings;
        let found = found.into_iter().filter(|finding| finding.message.contains("expires in"));
        found.map(|finding| (finding.message, finding.next)).collect()
    };
    world.set_now(START.plus(YEAR_MS - 8 * DAY_MS));
    assert!(told(&world).is_empty());
    world.set_now(START.plus(YEAR_MS - 6 * DAY_MS));
    let expected = [
        ("the key of app expires in 6 days", "quorate key issue app"),
        (
            "the token of operator expires in 6 days",
            "quorate token issue operator --scope read propose submit",
        ),
        ("the token of reader expires in 6 days", "quorate token issue reader --scope read"),
    ];
    let expected = expected.map(|(message, next)| (message.to_string(), next.to_string()));
    assert_eq!(told(&world), expected);
    let successor = AccessGrant {
        issued_at: world.now,
        expires_at: world.now.plus(90 * DAY_MS),
        ..world.grant("app", "successor", every_service(None))
    };
    world.must(Action::GrantAccess(Box::new(signed_grant(successor))));
    assert_eq!(told(&world), expected[1..]);
    world.set_now(START.plus(YEAR_MS));
    assert!(told(&world).is_empty(), "what has expired is no longer access");
}
