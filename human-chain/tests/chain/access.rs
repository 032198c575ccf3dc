//! Tests of access: which grants and revocations are taken, which grants stand, and what ends them. Each
//! attack has a positive control.

use crate::support::{
    HOUR, NOW, check, circle, enact, genesis, member, name, policy, secret, set_members, suspend, try_propose,
};
use human_chain::{
    AccessBook, ChainError, CircleState, FoundGrant, check_grant, check_grant_stands, check_revocation,
    describe_grant, may_grant, sign_grant, sign_revocation,
};
use protocol::access::{
    ACCESS_PAGE_MAX, ACCESS_VERSION, AccessBookRecord, AccessEnvelope, AccessGrant, AccessRecord,
    AccessRevocation, GrantedAccess, SignedGrant, SignedRevocation,
};
use protocol::gateway::ApiKey;
use protocol::governance::{Change, TokenScope};
use protocol::keys::ByteString;
use protocol::limits::CLOCK_GRACE_MS;
use protocol::{CircleId, Digest, GrantId, Millis};
use std::collections::BTreeSet;

const PEOPLE: [&str; 2] = ["alice", "bob"];

fn key(state: &CircleState, who: &str, holder: &str) -> AccessGrant {
    AccessGrant {
        version: ACCESS_VERSION,
        circle: state.id(),
        envelope: state.access_certificate(),
        issuer: name(who),
        signer: secret(who).public().ed25519,
        holder: name(holder),
        access: GrantedAccess::Key { services: None, requests_per_minute: None },
        secret: Digest::of(holder.as_bytes()),
        issued_at: NOW,
        expires_at: NOW.plus(24 * HOUR),
    }
}

fn token(state: &CircleState, who: &str, holder: &str, scopes: &[TokenScope]) -> AccessGrant {
    let access = GrantedAccess::Token { scopes: scopes.iter().copied().collect() };
    AccessGrant { access, ..key(state, who, holder) }
}

fn granted(grant: AccessGrant) -> SignedGrant {
    let who = grant.issuer.to_string();
    sign_grant(&secret(&who), grant)
}

fn revoked(grant: &AccessGrant, who: &str) -> SignedRevocation {
    let (member, issued_at) = (name(who), NOW);
    let revocation = AccessRevocation { version: ACCESS_VERSION, grant: grant.clone(), member, issued_at };
    sign_revocation(&secret(who), revocation)
}

fn take(book: &mut AccessBook, state: &CircleState, grant: AccessGrant) -> Result<bool, ChainError> {
    book.accept(check_grant(state, granted(grant), NOW)?)
}

fn set_access(alter: impl FnOnce(&mut AccessEnvelope)) -> Change {
    let mut envelope = genesis().access;
    alter(&mut envelope);
    Change::SetAccess(Box::new(envelope))
}

/// Attack: a grant is made in a member's name, or altered after it was signed.
#[test]
fn a_forged_grant_is_refused() {
    type Forge = fn(&mut SignedGrant);
    let state = circle();
    let sound = granted(key(&state, "alice", "app"));
    check("the positive control", check_grant(&state, sound.clone(), NOW), "approved");
    let forgeries: [(&str, Forge); 6] = [
        ("one half alone: Ed25519", |g| g.signature.ml_dsa.0[0] ^= 1),
        ("one half alone: ML-DSA-65", |g| g.signature.ed25519.0[0] ^= 1),
        ("no post-quantum half", |g| g.signature.ml_dsa = ByteString(vec![])),
        ("another secret", |g| g.grant.secret = Digest::of(b"of the thief")),
        ("another holder", |g| g.grant.holder = name("thief")),
        ("a longer life", |g| g.grant.expires_at = NOW.plus(48 * HOUR)),
    ];
    for (case, forge) in forgeries {
        let mut forged = sound.clone();
        forge(&mut forged);
        check(case, check_grant(&state, forged, NOW), "signature-invalid");
    }
    let mut foreign = key(&state, "alice", "app");
    foreign.circle = CircleId(Digest::of(b"another circle"));
    check("another circle", check_grant(&state, granted(foreign), NOW), "circle-mismatch");
}

/// Attack: a member grants more than the circle voted. The positive control is an envelope that allows it.
#[test]
fn a_grant_outside_the_envelope_is_refused() {
    type Alter = fn(&mut AccessGrant);
    let mut narrow = circle();
    let change = set_access(|envelope| {
        envelope.scopes.remove(&TokenScope::Submit);
        envelope.services = Some(BTreeSet::from([name("chat"), name("embed")]));
        envelope.seconds_max = 7200;
    });
    enact(&mut narrow, change, &PEOPLE);
    let wide = circle();
    let cases: [(&str, &str, Alter); 5] = [
        ("a scope", "grant-outside-envelope: no token with the scope `submit`", |g| {
            g.access = GrantedAccess::Token { scopes: BTreeSet::from([TokenScope::Submit]) };
        }),
        ("every service", "grant-outside-envelope: keys for chat, embed, not for every service", |_| {}),
        ("another service", "grant-outside-envelope: not for chat, other", |g| {
            let services = Some(BTreeSet::from([name("chat"), name("other")]));
            g.access = GrantedAccess::Key { services, requests_per_minute: None };
        }),
        ("too long", "grant-outside-envelope: valid for 7201 s; accepted: 1 to 7200", |g| {
            g.access = GrantedAccess::Token { scopes: BTreeSet::from([TokenScope::Read]) };
            g.expires_at = NOW.plus(7_200_001);
        }),
        ("no time at all", "grant-outside-envelope: valid for 0 s", |g| {
            g.access = GrantedAccess::Token { scopes: BTreeSet::from([TokenScope::Read]) };
            g.expires_at = NOW;
        }),
    ];
    for (case, expected, alter) in cases {
        let of = |state: &CircleState| {
            let mut grant = key(state, "alice", "app");
            grant.expires_at = NOW.plus(HOUR);
            alter(&mut grant);
            granted(grant)
        };
        check(case, check_grant(&narrow, of(&narrow), NOW), expected);
        if case != "no time at all" {
            check(case, check_grant(&wide, of(&wide), NOW), "approved");
        }
    }
}

#[test]
fn the_form_of_a_grant_is_checked() {
    type Alter = fn(&mut AccessGrant);
    let state = circle();
    let cases: [(&str, &str, Alter); 5] = [
        ("another version", "governance-invalid: of format 2; this release reads 1", |g| g.version = 2),
        ("no scope", "governance-invalid: can do nothing", |g| {
            g.access = GrantedAccess::Token { scopes: BTreeSet::new() };
        }),
        ("no request", "governance-invalid: 0 requests per minute", |g| {
            g.access = GrantedAccess::Key { services: None, requests_per_minute: Some(0) };
        }),
        ("no service", "governance-invalid: 0 services", |g| {
            g.access = GrantedAccess::Key { services: Some(BTreeSet::new()), requests_per_minute: None };
        }),
        ("too many services", "governance-invalid: 65 services", |g| {
            let services = (0..65).map(|number| name(&format!("s{number}"))).collect();
            g.access = GrantedAccess::Key { services: Some(services), requests_per_minute: None };
        }),
    ];
    for (case, expected, alter) in cases {
        let mut grant = key(&state, "alice", "app");
        alter(&mut grant);
        check(case, check_grant(&state, granted(grant), NOW), expected);
    }
}

/// Attack: a time of signing in the future prolongs a grant; a time in the past does not.
#[test]
fn a_grant_begins_with_its_signature_and_ends_in_time() {
    let state = circle();
    let at = |issued_at: Millis| {
        granted(AccessGrant { issued_at, expires_at: issued_at.plus(HOUR), ..key(&state, "alice", "app") })
    };
    check("within the error of clocks", check_grant(&state, at(NOW.plus(CLOCK_GRACE_MS)), NOW), "approved");
    let late = at(NOW.plus(CLOCK_GRACE_MS + 1));
    check("the future", check_grant(&state, late, NOW), "grant-outside-envelope: it is signed at");
    let grant = at(NOW).grant;
    assert_eq!(check_grant_stands(&state, &grant, NOW.plus(HOUR - 1)), Ok(()), "the positive control");
    check("over", check_grant_stands(&state, &grant, NOW.plus(HOUR)), "grant-expired");
    check("over when it arrives", check_grant(&state, at(NOW), NOW.plus(HOUR)), "grant-expired");
}

/// Attack: a member that the circle did not name grants access.
#[test]
fn only_the_named_members_grant() {
    let mut state = circle();
    check("named", check_grant(&state, granted(key(&state, "alice", "app")), NOW), "approved");
    let by_bob = granted(key(&state, "bob", "app"));
    check("not named", check_grant(&state, by_bob.clone(), NOW), "grantor-refused: `bob`");
    let mut outsider = key(&state, "mallory", "app");
    check("an outsider", check_grant(&state, granted(outsider.clone()), NOW), "not-a-member");
    outsider.issuer = name("alice");
    let signature = granted(key(&state, "mallory", "app")).signature;
    let in_her_name = SignedGrant { grant: outsider, signature };
    check("in a member's name", check_grant(&state, in_her_name, NOW), "signature-invalid");
    enact(
        &mut state,
        set_access(|envelope| {
            envelope.grantors.insert(name("bob"));
        }),
        &PEOPLE,
    );
    check("the positive control", check_grant(&state, by_bob, NOW), "approved");
}

/// A circle whose grantors are all gone is not locked out of its control API.
#[test]
fn every_member_grants_once_no_grantor_is_left() {
    let mut state = circle();
    assert!(may_grant(&state, &name("alice")) && !may_grant(&state, &name("bob")));
    enact(&mut state, suspend("alice"), &["bob", "carol"]);
    assert!(!may_grant(&state, &name("alice")) && may_grant(&state, &name("bob")));
    assert!(!may_grant(&state, &name("mallory")));
    check("by bob", check_grant(&state, granted(key(&state, "bob", "app")), NOW), "approved");
}

#[test]
fn an_envelope_ends_earlier_grants_if_it_says_so() {
    let mut state = circle();
    let first = key(&state, "alice", "app");
    enact(&mut state, set_access(|envelope| envelope.keys_max = 1), &PEOPLE);
    assert_eq!(check_grant_stands(&state, &first, NOW), Ok(()), "it fits the later envelope");
    assert_ne!(state.access_certificate(), state.id().0);
    let second = key(&state, "alice", "second");
    enact(&mut state, set_access(|envelope| envelope.ends_earlier = true), &PEOPLE);
    for (case, grant) in [("of genesis", &first), ("of the second", &second)] {
        check(case, check_grant_stands(&state, grant, NOW), "grant-envelope-ended");
    }
    let third = key(&state, "alice", "third");
    check("under the new one", check_grant(&state, granted(third), NOW), "approved");
    let mut invented = key(&state, "alice", "app");
    invented.envelope = Digest::of(b"never voted");
    check("of no vote", check_grant(&state, granted(invented), NOW), "grant-envelope-ended");
    assert_eq!(state.subject("access").version, 3);
    assert_eq!(state.check_invariants(), Ok(()));
}

/// Attack: a thief of a member's key grants itself access. Its grants end with the key.
#[test]
fn grants_end_with_the_keys_of_their_issuer() {
    let mut state = circle();
    let mut book = AccessBook::default();
    assert_eq!(take(&mut book, &state, key(&state, "alice", "app")), Ok(true));
    assert_eq!(book.standing(&state, NOW).count(), 1, "the positive control");
    let before = state.clone();
    enact(&mut state, suspend("alice"), &["bob", "carol"]);
    let ended = |state: &CircleState| check_grant_stands(state, &key(&before, "alice", "app"), NOW);
    check("suspended", ended(&state), "member-suspended");
    assert_eq!(book.standing(&state, NOW).count(), 0);
    let mut renewed = member("alice-2");
    renewed.id = name("alice");
    let members = vec![renewed, member("bob"), member("carol")];
    let mut proofs_by =
        set_members(&state, members, policy("2 of (alice, bob, carol)", "2 of (alice, bob, carol)"));
    if let Change::SetMembers { proofs, members, .. } = &mut proofs_by {
        proofs.insert(name("alice"), crate::support::prove("alice-2", &members[0]));
    }
    enact(&mut state, proofs_by, &["bob", "carol"]);
    check("new keys", ended(&state), "signature-invalid");
    assert!(book.prune(&state, NOW) && !book.prune(&state, NOW), "what ended is forgotten once");
    assert_eq!((book.standing(&state, NOW).count(), book.check_invariants()), (0, Ok(())));
}

#[test]
fn a_revocation_is_by_the_issuer_or_a_member_that_may_grant() {
    let mut state = circle();
    enact(
        &mut state,
        set_access(|envelope| {
            envelope.grantors.insert(name("bob"));
        }),
        &PEOPLE,
    );
    let of_bob = key(&state, "bob", "app");
    for who in ["alice", "bob"] {
        check(who, check_revocation(&state, revoked(&of_bob, who)), "approved");
    }
    check("another", check_revocation(&state, revoked(&of_bob, "carol")), "grantor-refused");
    let mut forged = revoked(&of_bob, "alice");
    forged.revocation.grant.holder = name("other");
    check("another grant", check_revocation(&state, forged), "signature-invalid");
    enact(&mut state, set_access(|_| {}), &PEOPLE);
    check("no longer named", check_revocation(&state, revoked(&of_bob, "bob")), "approved");
}

/// Attack: a revoked grant is handed in again, before or after its revocation.
#[test]
fn a_revoked_grant_never_returns() {
    let state = circle();
    let grant = key(&state, "alice", "app");
    let verified = || check_grant(&state, granted(grant.clone()), NOW).expect("sound");
    let revocation = || check_revocation(&state, revoked(&grant, "alice")).expect("sound");
    let mut book = AccessBook::default();
    assert_eq!((book.accept(verified()), book.accept(verified())), (Ok(true), Ok(false)));
    assert_eq!(book.keys(&state, NOW).len(), 1, "the positive control");
    assert_eq!((book.revoke(revocation()), book.revoke(revocation())), (Ok(true), Ok(false)));
    check("afterwards", book.accept(verified()), "grant-revoked");
    assert!(book.keys(&state, NOW).is_empty() && book.is_revoked(&grant.id()));
    assert_eq!(book.find(&grant.secret), Some(FoundGrant::Revoked(&grant)));
    let mut other = AccessBook::default();
    assert_eq!(other.revoke(revocation()), Ok(true), "the revocation arrives first");
    check("before", other.accept(verified()), "grant-revoked");
    // A restart forgets nothing.
    let record = book.to_record(state.id());
    let mut restored = AccessBook::from_record(record.clone());
    check("restored", restored.accept(verified()), "grant-revoked");
    // Attack: a record that still has the grant beside its revocation.
    let both = AccessBookRecord { grants: vec![granted(grant.clone())], ..record };
    assert!(!AccessBook::from_record(both).contains(&grant.id()));
    // Once the grant has expired, nothing is left to remember.
    assert!(!book.is_anything_over(NOW) && book.is_anything_over(grant.expires_at));
    assert!(book.prune(&state, grant.expires_at) && book.find(&grant.secret).is_none());
    check("expired", check_grant(&state, granted(grant.clone()), grant.expires_at), "grant-expired");
}

#[test]
fn a_gateway_gets_the_keys_that_stand() {
    let state = circle();
    let mut book = AccessBook::default();
    let mut chat = key(&state, "alice", "app");
    let services = Some(BTreeSet::from([name("chat")]));
    chat.access = GrantedAccess::Key { services: services.clone(), requests_per_minute: Some(60) };
    let of_bob = token(&state, "alice", "bob", &[TokenScope::Read]);
    assert_eq!(take(&mut book, &state, chat.clone()), Ok(true));
    assert_eq!(take(&mut book, &state, of_bob.clone()), Ok(true));
    let [only]: [ApiKey; 1] = book.keys(&state, NOW).try_into().expect("one key; a token is none");
    let found = (only.name, only.hash, only.services, only.requests_per_minute);
    assert_eq!(found, (name("app"), chat.secret, services, Some(60)));
    assert_eq!(book.find(&of_bob.secret), Some(FoundGrant::Granted(&of_bob)));
    // Attack: more keys than the circle voted. The oldest two stand.
    for (number, holder) in (2..).zip(["second", "third"]) {
        let grant = AccessGrant { issued_at: NOW.plus(number), ..key(&state, "alice", holder) };
        assert_eq!(take(&mut book, &state, grant), Ok(true));
    }
    assert_eq!(holders(&book, &state), ["app", "second"]);
    let mut wider = state.clone();
    enact(&mut wider, set_access(|envelope| envelope.keys_max = 3), &PEOPLE);
    assert_eq!(book.keys(&wider, NOW).len(), 3, "the positive control");
    assert!(book.keys(&state, NOW.plus(24 * HOUR)).is_empty(), "keys expire");
}

fn holders(book: &AccessBook, state: &CircleState) -> Vec<String> {
    book.keys(state, NOW).iter().map(|key| key.name.to_string()).collect()
}

/// A secret is replaced without a gap: the key in use and its successor both open the gateway, until the
/// earlier one is revoked. Attack: control lets a third one in.
#[test]
fn a_key_and_its_successor_stand_together_and_a_third_does_not() {
    let state = circle();
    let mut book = AccessBook::default();
    let issued = |number: u64, text: &[u8]| AccessGrant {
        issued_at: NOW.plus(number),
        secret: Digest::of(text),
        ..key(&state, "alice", "app")
    };
    let hashes =
        |book: &AccessBook| -> Vec<Digest> { book.keys(&state, NOW).iter().map(|key| key.hash).collect() };
    let [first, second, third] = [(0, b"1"), (1, b"2"), (2, b"3")].map(|(at, text)| issued(at, text));
    for grant in [&second, &first] {
        assert_eq!(take(&mut book, &state, grant.clone()), Ok(true));
    }
    assert_eq!(hashes(&book), [first.secret, second.secret]);
    assert_eq!(take(&mut book, &state, third.clone()), Ok(true));
    assert_eq!(hashes(&book), [second.secret, third.secret], "two of one holder, the latest");
    book.revoke(check_revocation(&state, revoked(&second, "alice")).expect("sound")).expect("taken");
    book.revoke(check_revocation(&state, revoked(&first, "alice")).expect("sound")).expect("taken");
    assert_eq!(hashes(&book), [third.secret], "each is revoked by its own id");
    // Where the envelope has room for one key, the successor counts.
    let mut narrow = state.clone();
    enact(&mut narrow, set_access(|envelope| envelope.keys_max = 1), &PEOPLE);
    let last = issued(3, b"4");
    assert_eq!(take(&mut book, &state, last.clone()), Ok(true));
    let [only]: [ApiKey; 1] = book.keys(&narrow, NOW).try_into().expect("one key");
    assert_eq!(only.hash, last.secret);
}

#[test]
fn records_travel_in_pages_and_each_once() {
    let state = circle();
    let mut book = AccessBook::default();
    let count = ACCESS_PAGE_MAX + 3;
    let grants: Vec<AccessGrant> = (0..count).map(|n| key(&state, "alice", &format!("app-{n}"))).collect();
    for grant in &grants {
        assert_eq!(take(&mut book, &state, grant.clone()), Ok(true));
    }
    book.revoke(check_revocation(&state, revoked(&grants[0], "alice")).expect("sound")).expect("taken");
    let id_of = |record: &AccessRecord| -> (GrantId, bool) {
        match record {
            AccessRecord::Grant(signed) => (signed.grant.id(), false),
            AccessRecord::Revocation(signed) => (signed.revocation.grant.id(), true),
        }
    };
    let (mut after, mut seen) = (0, Vec::new());
    loop {
        let (last, records) = book.after(after);
        assert!(records.len() <= ACCESS_PAGE_MAX);
        if records.is_empty() {
            assert_eq!((last, after), (after, book.last()));
            break;
        }
        seen.extend(records.iter().map(id_of));
        after = last;
    }
    let mut expected: Vec<_> = grants[1..].iter().map(|grant| (grant.id(), false)).collect();
    expected.push((grants[0].id(), true));
    assert_eq!(seen, expected, "in the order of their arrival, and no revoked grant");
    assert!(book.after(u64::MAX).1.is_empty());
    assert_eq!(AccessBook::from_record(book.to_record(state.id())).last(), count as u64);
}

#[test]
fn an_envelope_has_its_form() {
    let state = circle();
    type Alter = fn(&mut AccessEnvelope);
    let cases: [(&str, Alter); 8] = [
        ("names no member that may grant access", |e| e.grantors.clear()),
        ("`mallory` is to grant access, and is no member", |e| {
            e.grantors.insert(name("mallory"));
        }),
        ("lets no token read and propose", |e| {
            e.scopes.remove(&TokenScope::Propose);
        }),
        ("0 tokens and 2 keys", |e| e.tokens_max = 0),
        ("2 tokens and 1023 keys", |e| e.keys_max = 1023),
        ("0 s of validity", |e| e.seconds_max = 0),
        ("31622401 s of validity; accepted: 1 to 31622400", |e| e.seconds_max = 31_622_401),
        ("0 services", |e| e.services = Some(BTreeSet::new())),
    ];
    for (expected, alter) in cases {
        let outcome = try_propose(&state, set_access(alter));
        check(expected, outcome, &format!("governance-invalid: {expected}"));
        crate::support::founded(expected, &format!("governance-invalid: {expected}"), |genesis| {
            alter(&mut genesis.access);
        });
    }
    check("the largest", try_propose(&state, set_access(|e| e.keys_max = 1022)), "approved");
    let mut alone = state;
    let one = human_chain::verify(
        &alone,
        &crate::support::approve(&crate::support::proposal(&alone, set_access(|_| {})), &["alice"]),
        NOW,
    );
    check("by one member", one.map(drop), "quorum-not-reached");
    enact(&mut alone, set_access(|_| {}), &PEOPLE);
}

#[test]
fn a_grant_in_words() {
    let state = circle();
    let shown = describe_grant(&token(&state, "alice", "bob", &[TokenScope::Read, TokenScope::Propose]));
    assert!(shown.starts_with("bob the access token (read, propose) until 2026-11-22 "), "{shown}");
    let shown = describe_grant(&key(&state, "alice", "app"));
    assert!(shown.starts_with("app an inference key for every service until "), "{shown}");
}
