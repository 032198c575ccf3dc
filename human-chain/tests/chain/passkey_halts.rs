//! Attacks on halts by passkey, each beside the honest halt that is taken.

use crate::authenticator::{Authenticator, Ceremony, ORIGIN, PRESENT, client_data};
use crate::passkey_ballots::{phone, set, tapped, with_phones};
use crate::support::{NOW, check, deploy, enact, halt, name, proposal, secret, suspend};
use human_chain::{
    CircleState, HaltBook, ballot_challenge, certify, check_ballot, check_halt, halt_challenge, halt_stands,
    lift, sign_halt, unsigned_ballot, verify, vote,
};
use protocol::canonical::{from_bytes, to_bytes};
use protocol::governance::{BallotSignature, Choice, SignedBallot};
use protocol::halt::{HALT_BYTES_MAX, HALT_DOMAIN, Halt, HaltScope, HaltSignature, SignedHalt};
use protocol::{Digest, PasskeyAssertion};

fn whole(state: &CircleState, who: &str) -> Halt {
    halt(state, who, HaltScope::Circle, "1")
}

fn by_passkey(halt: Halt, assertion: PasskeyAssertion) -> SignedHalt {
    SignedHalt { halt, signature: HaltSignature::Passkey(assertion) }
}

/// Returns a halt that this authenticator signs, with some parts of the ceremony made wrong.
fn stopped_by(
    authenticator: &Authenticator,
    halt: Halt,
    counter: u32,
    alter: impl FnOnce(&mut Ceremony),
) -> SignedHalt {
    let mut ceremony = Ceremony::of(&halt_challenge(&halt).0, counter);
    alter(&mut ceremony);
    by_passkey(halt, authenticator.answer(&ceremony))
}

fn stopped(state: &CircleState, who: &str) -> SignedHalt {
    stopped_by(&phone(who), whole(state, who), 1, |_| {})
}

/// A passkey halts in a circle in which it does not vote, and the halt stands until the circle lifts it.
#[test]
fn a_passkey_halts_whether_or_not_it_votes() {
    for routine in [true, false] {
        let mut state = with_phones(routine);
        let signed = stopped(&state, "alice");
        assert!(!signed.is_hybrid());
        let bytes = to_bytes(&signed);
        assert_eq!(
            from_bytes::<SignedHalt>(&bytes, HALT_BYTES_MAX),
            Ok(signed.clone()),
            "it survives a wire"
        );
        let verified = check_halt(&state, signed.clone()).expect("a sound halt");
        let (id, taken) = (verified.id(), verified.halt().clone());
        let mut book = HaltBook::default();
        assert_eq!(book.accept(verified), Ok(true));
        assert_eq!(book.in_force(&state).collect::<Vec<_>>(), [&signed.halt]);
        assert_eq!(HaltBook::from_record(book.to_record(state.id())), book, "it survives a restart");
        // Losing the passkey ends no halt that was taken with it.
        enact(&mut state, set("alice", vec![]), &["alice"]);
        assert!(halt_stands(&state, &id, &taken));
        enact(&mut state, lift(vec![taken.clone()]), &["alice", "bob"]);
        assert!(!halt_stands(&state, &id, &taken), "the circle lifts it as any other");
        check("a lifted one", check_halt(&state, signed), "halt-lifted");
    }
}

/// Attack: an assertion of another site, without its user, of another passkey, or of a copied authenticator.
#[test]
fn a_halt_by_passkey_needs_the_page_the_user_and_the_passkey() {
    let state = with_phones(false);
    let sound = || whole(&state, "alice");
    let other = |origin: &str| client_data("webauthn.get", &halt_challenge(&sound()).0, origin);
    let altered = |alter: &dyn Fn(&mut Ceremony)| stopped_by(&phone("alice"), sound(), 1, |one| alter(one));
    let foreign = other("https://console.example.org.evil.example");
    let plain = other("http://console.example.org");
    let registers = client_data("webauthn.create", &halt_challenge(&sound()).0, ORIGIN);
    let thief = stopped_by(&Authenticator::es256("thief"), sound(), 1, |_| {});
    let mut broken = stopped(&state, "alice");
    let HaltSignature::Passkey(assertion) = &mut broken.signature else { panic!("by passkey") };
    assertion.signature.0[20] ^= 1;
    let framed = other(ORIGIN).replace("\"crossOrigin\":false", "\"crossOrigin\":true");
    for (case, signed, expected) in [
        ("another origin", altered(&|one| one.client_data = foreign.clone()), "passkey-origin"),
        ("without TLS", altered(&|one| one.client_data = plain.clone()), "passkey-origin"),
        ("within another site's page", altered(&|one| one.client_data = framed.clone()), "passkey-origin"),
        ("another relying party", altered(&|one| one.rp_id = "evil.example".into()), "passkey-origin"),
        ("an unverified user", altered(&|one| one.flags = PRESENT), "passkey-unverified"),
        ("no user at all", altered(&|one| one.flags = 0), "passkey-unverified"),
        ("a registration", altered(&|one| one.client_data = registers.clone()), "passkey-invalid"),
        ("an unregistered passkey", thief, "passkey-unknown"),
        ("a broken signature", broken, "signature-invalid"),
    ] {
        check(case, check_halt(&state, signed), expected);
    }
    check("the positive control", check_halt(&state, stopped(&state, "alice")), "approved");
    let same = altered(&|one| one.client_data = other(ORIGIN));
    check("the same parts, made again", check_halt(&state, same), "approved");
}

/// Attack: an assertion for one halt is handed in for another.
#[test]
fn an_assertion_is_for_its_halt_alone() {
    let state = with_phones(true);
    let honest = stopped(&state, "alice");
    check("the positive control", check_halt(&state, honest.clone()), "approved");
    let sound = || whole(&state, "alice");
    let service = HaltScope::Service(name("embed"));
    for (case, halt, expected) in [
        ("another scope", Halt { scope: service, ..sound() }, "passkey-challenge"),
        ("another reason", Halt { reason: "none".into(), ..sound() }, "passkey-challenge"),
        ("another time", Halt { issued_at: NOW.plus(1), ..sound() }, "passkey-challenge"),
        ("a second one", Halt { nonce: Digest::of(b"2"), ..sound() }, "passkey-challenge"),
        ("another member", whole(&state, "bob"), "passkey-unknown"),
        ("a member without any", whole(&state, "carol"), "passkey-unknown"),
        ("the keys of another", Halt { member: name("bob"), ..sound() }, "signature-invalid"),
        ("no member", Halt { member: name("dave"), ..sound() }, "not-a-member"),
    ] {
        let replayed = SignedHalt { halt: halt.clone(), signature: honest.signature.clone() };
        check(case, check_halt(&state, replayed), expected);
        // The positive control: signed by the passkey of that member, the very halt is taken.
        let who = halt.member.as_str().to_string();
        if ["alice", "bob"].contains(&who.as_str()) && expected != "signature-invalid" {
            check(case, check_halt(&state, stopped_by(&phone(&who), halt, 1, |_| {})), "approved");
        }
    }
}

/// Attack: a vote's assertion is handed in as a halt's, and a halt's as a vote's; also over the other bytes.
#[test]
fn a_vote_is_no_halt_and_a_halt_is_no_vote() {
    let state = with_phones(true);
    let wanted = proposal(&state, deploy(4));
    let halt = whole(&state, "alice");
    let ballot = unsigned_ballot(name("alice"), wanted.history, &wanted, Choice::Approve, NOW);
    let answer = |challenge: Digest| phone("alice").answer(&Ceremony::of(&challenge.0, 1));
    let BallotSignature::Passkey(voted) = tapped("alice", &wanted, 1).signature else { panic!("by passkey") };
    for (case, challenge) in [
        ("a ballot's", ballot_challenge(&ballot)),
        ("the halt's bytes as a ballot's", Digest::of_domain("quorate/passkey-ballot/v2", &to_bytes(&halt))),
        ("the halt's id", Digest::of_domain(HALT_DOMAIN, &to_bytes(&halt))),
        ("a bare digest", Digest::of(&to_bytes(&halt))),
    ] {
        let signed = by_passkey(halt.clone(), answer(challenge));
        check(case, check_halt(&state, signed), "passkey-challenge");
    }
    check("a counted vote", check_halt(&state, by_passkey(halt.clone(), voted)), "passkey-challenge");
    let as_vote = |challenge: Digest| {
        let signature = BallotSignature::Passkey(answer(challenge));
        check_ballot(&state, &wanted, &SignedBallot { ballot: ballot.clone(), signature }, NOW)
    };
    check("a halt's", as_vote(halt_challenge(&halt)), "passkey-challenge");
    let of_halts = Digest::of_domain("quorate/passkey-halt/v1", &to_bytes(&ballot));
    check("the ballot's bytes as a halt's", as_vote(of_halts), "passkey-challenge");
    // The positive controls: each under its own challenge.
    check("its own", check_halt(&state, by_passkey(halt.clone(), answer(halt_challenge(&halt)))), "approved");
    check("its own", as_vote(ballot_challenge(&ballot)), "approved");
}

/// Counters follow the rule of ballots: a halt is compared with uses that were decided, and signed before it.
#[test]
fn a_copied_authenticator_that_counts_back_halts_nothing() {
    let mut state = with_phones(true);
    let wanted = proposal(&state, deploy(4));
    let typed = vote(&secret("bob"), name("bob"), wanted.history, &wanted, Choice::Approve, NOW);
    let certificate = certify(&state, &wanted, &[tapped("alice", &wanted, 7), typed]).expect("a quorum");
    let approved = verify(&state, &certificate, NOW).expect("sound");
    state.advance(approved).expect("applies");
    let at = |counter, issued_at| {
        let halt = Halt { issued_at, ..whole(&state, "alice") };
        check_halt(&state, stopped_by(&phone("alice"), halt, counter, |_| {}))
    };
    check("a copy", at(7, NOW.plus(1)), "passkey-counter: counts 7, and counted 7 before");
    check("the positive control", at(8, NOW.plus(1)), "approved");
    check("one signed before that vote", at(3, NOW), "approved");
}

#[test]
fn a_suspended_members_passkey_halts_nothing_and_a_key_still_does() {
    let mut state = with_phones(true);
    let (signed, typed) = (stopped(&state, "alice"), sign_halt(&secret("alice"), whole(&state, "alice")));
    check("a passkey", check_halt(&state, signed.clone()), "approved");
    check("a key", check_halt(&state, typed.clone()), "approved");
    assert_eq!(signed.halt.id(), typed.halt.id(), "one halt, however it is signed");
    enact(&mut state, suspend("alice"), &["bob", "carol"]);
    check("suspended", check_halt(&state, signed), "member-suspended");
}
