//! Tests of halts: which are taken, which stand, and how the circle lifts them. Each attack has a positive
//! control.

use crate::support::{
    NOW, approve, check, circle, deploy, enact, halt, member, name, node, policy, proposal, prove, secret,
    set_members, suspend, try_propose,
};
use human_chain::{
    ChainError, CircleState, DeferredHalts, HaltBook, check_halt, covers, describe_halt, describe_scope,
    halt_stands, lift, render, sign_halt, verify, vote,
};
use protocol::canonical::to_bytes;
use protocol::governance::{ActionClass, Change, Choice, NodeRole};
use protocol::halt::{
    HALT_BYTES_MAX, HALT_DOMAIN, HALT_REASON_BYTES_MAX, HALTS_PAGE_MAX, HALTS_PER_MEMBER_MAX, Halt,
    HaltBookRecord, HaltScope, HaltSignature, LIFTED_MAX, SignedHalt,
};
use protocol::keys::{ByteString, HybridSignature};
use protocol::{CircleId, Digest, HaltId, Millis, ServiceName};
use std::collections::BTreeSet;

const PEOPLE: [&str; 2] = ["alice", "bob"];

fn signed(state: &CircleState, who: &str, scope: HaltScope, nonce: &str) -> SignedHalt {
    sign_halt(&secret(who), halt(state, who, scope, nonce))
}

/// Returns the hybrid signature of a halt.
fn hybrid(signed: &mut SignedHalt) -> &mut HybridSignature {
    match &mut signed.signature {
        HaltSignature::Hybrid(signature) => signature,
        HaltSignature::Passkey(_) => panic!("signed by passkey"),
    }
}

fn service(text: &str) -> HaltScope {
    HaltScope::Service(name(text))
}

/// Returns a book that has taken these halts.
fn book(state: &CircleState, halts: &[SignedHalt]) -> HaltBook {
    let mut book = HaltBook::default();
    for signed in halts {
        let verified = check_halt(state, signed.clone()).expect("a sound halt");
        assert_eq!(book.accept(verified), Ok(true));
        assert_eq!(book.check_invariants(), Ok(()));
    }
    book
}

/// The attack: another party halts in a member's name.
#[test]
fn a_forged_halt_is_refused() {
    type Forge = fn(&mut SignedHalt);
    let state = circle();
    let sound = signed(&state, "alice", HaltScope::Circle, "1");
    check("the positive control", check_halt(&state, sound.clone()), "approved");
    let forgeries: [(&str, Forge); 7] = [
        ("one half alone: Ed25519", |h| hybrid(h).ml_dsa.0[0] ^= 1),
        ("one half alone: ML-DSA-65", |h| hybrid(h).ed25519.0[0] ^= 1),
        ("no post-quantum half", |h| hybrid(h).ml_dsa = ByteString(vec![])),
        ("another member", |h| h.halt.member = name("bob")),
        ("another scope", |h| h.halt.scope = HaltScope::Service(name("embed"))),
        ("another reason", |h| h.halt.reason.push('!')),
        ("another nonce", |h| h.halt.nonce = Digest::of(b"2")),
    ];
    for (case, forge) in forgeries {
        let mut forged = sound.clone();
        forge(&mut forged);
        check(case, check_halt(&state, forged), "signature-invalid");
    }
    // A signature over the same bytes for another purpose is none.
    let halt = sound.halt.clone();
    let signature = HaltSignature::Hybrid(secret("alice").sign("quorate/ballot/v3", &to_bytes(&halt)));
    check("another domain", check_halt(&state, SignedHalt { halt, signature }), "signature-invalid");
}

#[test]
fn a_halt_of_a_person_who_is_no_member_is_refused() {
    let mut state = circle();
    let foreign = signed(&state, "dave", HaltScope::Circle, "1");
    check("dave", check_halt(&state, foreign.clone()), "not-a-member");
    // The positive control: dave becomes a member, and the same halt is taken.
    let rule = "2 of (alice, bob, dave)";
    let members = ["alice", "bob", "dave"].map(member).to_vec();
    let change = set_members(&state, members, policy(rule, rule));
    enact(&mut state, change, &PEOPLE);
    check("dave, a member", check_halt(&state, foreign), "approved");
    check(
        "carol, who left",
        check_halt(&state, signed(&state, "carol", HaltScope::Circle, "1")),
        "not-a-member",
    );
}

#[test]
fn a_halt_of_another_circle_or_form_is_refused() {
    let state = circle();
    let mut other = halt(&state, "alice", HaltScope::Circle, "1");
    other.circle = CircleId(Digest::of(b"another"));
    check("another circle", check_halt(&state, sign_halt(&secret("alice"), other)), "circle-mismatch");
    let with_reason = |length: usize| {
        let mut long = halt(&state, "alice", HaltScope::Circle, "1");
        long.reason = "x".repeat(length);
        check_halt(&state, sign_halt(&secret("alice"), long))
    };
    check("the longest reason", with_reason(HALT_REASON_BYTES_MAX), "approved");
    check("one byte more", with_reason(HALT_REASON_BYTES_MAX + 1), "governance-invalid: its reason is 257");
    check("a huge reason", with_reason(HALT_BYTES_MAX), "governance-invalid: accepted: at most 4096");
    for (region, expected) in
        [("ghent", "approved"), ("", "governance-invalid"), ("a\nb", "governance-invalid")]
    {
        let signed = signed(&state, "alice", HaltScope::Region(region.into()), "1");
        check(region, check_halt(&state, signed), expected);
    }
}

#[test]
fn a_scope_covers_its_services_and_nodes_and_no_others() {
    let state = circle();
    let (n1, embed): (_, ServiceName) = (node("n1", &[NodeRole::Worker]), name("embed"));
    let mut elsewhere = node("n9", &[NodeRole::Worker]);
    elsewhere.region = "oslo".into();
    for (scope, text, expected) in [
        (service("embed"), "the service embed", [true, true, false]),
        (service("other"), "the service other", [false, false, true]),
        (HaltScope::Node(name("n1")), "the node n1", [true, false, true]),
        (HaltScope::Region("ghent".into()), "the region \"ghent\"", [true, false, true]),
        (HaltScope::Region("gent".into()), "the region \"gent\"", [false, false, false]),
        (HaltScope::Circle, "the whole circle", [true, true, true]),
    ] {
        let halt = halt(&state, "alice", scope.clone(), "1");
        let found = [
            covers(&halt, &embed, &n1),
            covers(&halt, &embed, &elsewhere),
            covers(&halt, &name("other"), &n1),
        ];
        assert_eq!(found, expected, "{scope:?}");
        assert_eq!(describe_scope(&scope), text);
    }
}

#[test]
fn a_halt_in_words_hides_nothing() {
    let state = circle();
    let mut sample = halt(&state, "alice", HaltScope::Circle, "1");
    let id = sample.id().short();
    assert_eq!(describe_halt(&sample), format!("halted by alice: \"because\" (halt {id})"));
    sample.reason.clear();
    assert_eq!(describe_halt(&sample), format!("halted by alice (halt {})", sample.id().short()));
    sample.reason = "x\nhalted by bob \u{202e}".into();
    let text = describe_halt(&sample);
    assert!(!text.contains('\n') && !text.contains('\u{202e}'), "{text}");
}

#[test]
fn a_lift_is_sensitive_and_names_its_halts() {
    let mut state = circle();
    let rule = "3 of (alice, bob, carol)";
    let members = ["alice", "bob", "carol"].map(member).to_vec();
    let tighter = policy("2 of (alice, bob, carol)", rule);
    let change = set_members(&state, members, tighter);
    enact(&mut state, change, &["alice", "bob", "carol"]);
    let halt = signed(&state, "alice", service("embed"), "1").halt;
    let change = lift(vec![halt.clone()]);
    assert_eq!(human_chain::class_of(&change), ActionClass::Sensitive);
    assert_eq!(human_chain::subject_of(&change), "halts");
    let proposed = proposal(&state, change.clone());
    let two = verify(&state, &approve(&proposed, &PEOPLE), NOW);
    check("the routine quorum", two.map(drop), "quorum-not-reached");
    let certificate = enact(&mut state, change, &["alice", "bob", "carol"]);
    let lifted = state.lifted(&halt.id()).expect("lifted");
    assert_eq!((&lifted.halt, lifted.certificate), (&halt, certificate.digest()));
    assert_eq!((lifted.lifted_at, state.lifted_halts().count()), (NOW, 1));
    assert_eq!(state.subject("halts").version, 1);
}

/// The attack: a hostile replica sends a halt again that the circle has lifted.
#[test]
fn a_lifted_halt_stays_lifted() {
    let mut state = circle();
    let first = signed(&state, "alice", service("embed"), "1");
    let second = signed(&state, "alice", service("embed"), "2");
    let mut book = book(&state, &[first.clone(), second.clone()]);
    let n1 = node("n1", &[NodeRole::Worker]);
    let covering =
        |book: &HaltBook, state: &CircleState| book.covering(state, &name("embed"), &n1).map(Halt::id);
    assert!(covering(&book, &state).is_some());
    enact(&mut state, lift(vec![first.halt.clone()]), &PEOPLE);
    assert!(!halt_stands(&state, &first.halt.id(), &first.halt));
    assert_eq!(covering(&book, &state), Some(second.halt.id()), "each halt is lifted by its own id");
    assert!(book.prune(&state) && !book.prune(&state));
    assert_eq!(book.in_force(&state).count(), 1);
    let replayed = check_halt(&state, first.clone());
    check("replayed", replayed.map(drop), "halt-lifted: stays so");
    // The positive control: without the lifted ids, the replayed halt would be taken.
    check("in a state without the lift", check_halt(&circle(), first.clone()), "approved");
    enact(&mut state, lift(vec![second.halt.clone()]), &PEOPLE);
    assert_eq!(covering(&book, &state), None);
    // Equal but for the nonce: a member may halt the same thing again.
    check("another one", check_halt(&state, signed(&state, "alice", service("embed"), "3")), "approved");
    check("lifted twice", try_propose(&state, lift(vec![first.halt])).map(drop), "halt-lifted");
}

#[test]
fn a_lift_has_a_form() {
    let state = circle();
    let of = |nonce: &str| halt(&state, "alice", service("embed"), nonce);
    let halts = |count: usize| (0..count).map(|at| of(&at.to_string())).collect::<Vec<_>>();
    let Change::Lift { halts: mut unsorted } = lift(halts(3)) else { panic!("a lift") };
    unsorted.reverse();
    let twice = vec![of("1"), of("1")];
    let mut foreign = of("1");
    foreign.circle = CircleId(Digest::of(b"another"));
    for (case, change, expected) in [
        ("never seen here", lift(halts(3)), "approved"),
        ("as many as there may be", lift(halts(LIFTED_MAX)), "approved"),
        ("one more", lift(halts(LIFTED_MAX + 1)), "governance-invalid: 257 halts"),
        ("none", Change::Lift { halts: vec![] }, "governance-invalid: 0 halts"),
        ("unsorted", Change::Lift { halts: unsorted }, "governance-invalid: not sorted"),
        ("one twice", Change::Lift { halts: twice }, "governance-invalid: named twice"),
        ("another circle", Change::Lift { halts: vec![foreign] }, "circle-mismatch"),
    ] {
        check(case, try_propose(&state, change).map(drop), expected);
    }
    assert_eq!(lift(vec![of("1"), of("1")]), lift(vec![of("1")]), "each once");
}

/// Two votes to lift see each other: the second is stale, and is proposed again.
#[test]
fn of_two_lifts_side_by_side_the_second_is_stale() {
    let mut state = circle();
    let change = |state: &CircleState, nonce| lift(vec![halt(state, "alice", HaltScope::Circle, nonce)]);
    let second = proposal(&state, change(&state, "2"));
    enact(&mut state, change(&circle(), "1"), &PEOPLE);
    check("the second", verify(&state, &approve(&second, &PEOPLE), NOW).map(drop), "proposal-stale");
    let again = change(&state, "2");
    enact(&mut state, again, &PEOPLE);
    assert_eq!(state.subject("halts").version, 2);
}

#[test]
fn a_halt_ends_with_its_members_place_and_not_with_its_key() {
    let mut state = circle();
    let [alice, carol] = ["alice", "carol"].map(|who| signed(&state, who, HaltScope::Circle, who));
    let mut book = book(&state, &[alice.clone(), carol.clone()]);
    let rule = "2 of (alice, bob)";
    let mut rotated = ["alice", "bob"].map(member).to_vec();
    rotated[0].keys = member("alice-2").keys;
    let proofs = [(name("alice"), prove("alice-2", &rotated[0]))].into();
    let change = Change::SetMembers { members: rotated, policy: policy(rule, rule), proofs };
    let wanted = proposal(&state, change);
    let mut certificate = approve(&wanted, &["alice", "bob"]);
    let by_new_keys = vote(&secret("alice-2"), name("alice"), wanted.history, &wanted, Choice::Approve, NOW);
    certificate.ballots.insert(1, by_new_keys);
    state.advance(verify(&state, &certificate, NOW).expect("both quorums")).expect("just verified");
    let standing: Vec<&Halt> = book.in_force(&state).collect();
    assert_eq!(standing, [&alice.halt], "carol left; alice has other keys");
    assert!(book.prune(&state));
    assert_eq!(book.signed().map(|(id, _)| *id).collect::<Vec<_>>(), [alice.halt.id()]);
    // A party that did not take it before the change cannot verify it any more.
    check("the first key", check_halt(&state, alice).map(drop), "signature-invalid");
}

/// The attack: a stolen key signs halts until every disk is full.
#[test]
fn one_member_has_a_limited_number_of_halts() {
    let state = circle();
    let mut book = HaltBook::default();
    let take = |book: &mut HaltBook, who: &str, number: usize| {
        let signed = signed(&state, who, service("embed"), &number.to_string());
        book.accept(check_halt(&state, signed).expect("a sound halt"))
    };
    for number in 0..HALTS_PER_MEMBER_MAX {
        check("within the limit", take(&mut book, "alice", number), "approved");
    }
    let over = take(&mut book, "alice", HALTS_PER_MEMBER_MAX);
    check("over the limit", over, "limit-reached: 64 halts of `alice` stand already");
    // The positive controls: known halts are no new ones, and other members have their own share.
    assert_eq!(take(&mut book, "alice", 0), Ok(false));
    assert_eq!(take(&mut book, "bob", 0), Ok(true));
    assert_eq!(book.in_force(&state).count(), HALTS_PER_MEMBER_MAX + 1);
}

#[test]
fn halts_are_handed_on_in_the_order_of_their_arrival() {
    let mut state = circle();
    let halts: Vec<SignedHalt> =
        (0..40).map(|at| signed(&state, "alice", service("embed"), &at.to_string())).collect();
    let mut book = book(&state, &halts);
    let mut received = Vec::new();
    let mut number = 0;
    loop {
        let (last, page) = book.after(number);
        assert!(page.len() <= HALTS_PAGE_MAX);
        if page.is_empty() {
            assert_eq!((last, number), (book.last(), book.last()));
            break;
        }
        assert!(last > number);
        (number, received) = (last, [received, page].concat());
    }
    assert_eq!(received, halts, "each once");
    assert_eq!(book.after(u64::MAX), (u64::MAX, vec![]));
    // A lifted halt leaves a gap, and no number is used again.
    enact(&mut state, lift(vec![halts[39].halt.clone()]), &PEOPLE);
    book.prune(&state);
    assert_eq!((book.after(39), book.last()), ((39, vec![]), 40));
    let record: HaltBookRecord = book.to_record(state.id());
    assert!(record.halts.is_sorted_by(|a, b| a.halt.id() < b.halt.id()));
    let restored = HaltBook::from_record(record);
    assert_eq!(restored.in_force(&state).count(), 39);
    assert_eq!(restored.check_invariants(), Ok(()));
}

#[test]
fn a_halt_that_does_not_verify_yet_waits_and_pushes_out_none_of_another_source() {
    let state = circle();
    let [honest, junk] = ["dave", "erin"].map(|who| signed(&state, who, HaltScope::Circle, "1"));
    let mut waiting = DeferredHalts::default();
    waiting.defer(1, honest.clone());
    waiting.defer(1, honest.clone());
    for number in 0..1000 {
        let mut junk = junk.clone();
        junk.halt.issued_at = Millis(number);
        waiting.defer(2, junk);
    }
    let taken = waiting.take();
    assert_eq!(taken.iter().filter(|(source, _)| *source == 1).count(), 1, "each once");
    assert_eq!(
        taken.iter().filter(|(source, _)| *source == 2).count(),
        256,
        "a hostile source has its share"
    );
    assert!(taken.contains(&(1, honest)));
    assert_eq!(waiting.take(), []);
}

#[test]
fn a_lift_reads_as_the_halts_that_it_names() {
    let state = circle();
    let first_line = |halts: Vec<Halt>| {
        let text = render(&proposal(&state, lift(halts))).text;
        text.lines().next().map(str::to_owned).expect("a sentence")
    };
    for (who, scope, expected) in [
        ("alice", service("embed"), "the service embed by alice"),
        ("bob", HaltScope::Node(name("n1")), "the node n1 by bob"),
        ("carol", HaltScope::Region("ghent".into()), "the region \"ghent\" by carol"),
        ("alice", HaltScope::Circle, "the whole circle by alice"),
    ] {
        let shown = first_line(vec![halt(&state, who, scope, "1")]);
        assert_eq!(shown, format!("| Lift the halt of {expected}: what only it stopped runs again."));
    }
    let both =
        vec![halt(&state, "alice", HaltScope::Circle, "1"), halt(&state, "bob", HaltScope::Circle, "2")];
    let shown = first_line(both.clone());
    assert!(shown.starts_with("| Lift the halts of the whole circle by "), "{shown}");
    assert!(shown.ends_with(": what only they stopped runs again."), "{shown}");
    // Two halts that differ in a nonce alone read differently, though not in the first line.
    let text =
        |nonce| render(&proposal(&state, lift(vec![halt(&state, "alice", HaltScope::Circle, nonce)]))).text;
    assert_ne!(text("1"), text("2"));
    for signed in both {
        let listed = text("1").contains(&signed.id().to_string());
        assert_eq!(listed, signed.member == name("alice"), "the whole id is in the text that names it");
    }
}

/// Random lives of a book, against a model: the ids that were taken and not lifted.
#[test]
fn a_book_is_what_was_taken_and_not_lifted() {
    for seed in 0_u64..6 {
        let (mut state, mut book) = (circle(), HaltBook::default());
        let (mut taken, mut lifted) = (BTreeSet::new(), BTreeSet::new());
        for step in 0_u64..24 {
            let dice = Digest::of(&[seed, step].map(u64::to_le_bytes).concat()).0;
            let who = ["alice", "bob", "carol"][usize::from(dice[0]) % 3];
            let signed = signed(&state, who, HaltScope::Circle, &(dice[1] % 5).to_string());
            let id = signed.halt.id();
            match dice[2] % 4 {
                0 if !lifted.contains(&id) => {
                    enact(&mut state, lift(vec![signed.halt]), &PEOPLE);
                    lifted.insert(id);
                    taken.remove(&id);
                }
                1 => book = HaltBook::from_record(book.to_record(state.id())),
                _ => match check_halt(&state, signed) {
                    Ok(verified) => assert_eq!(book.accept(verified), Ok(taken.insert(id))),
                    Err(error) => {
                        assert_eq!(error, ChainError::HaltLifted(id));
                        assert!(lifted.contains(&id), "only a lifted one is refused");
                    }
                },
            }
            book.prune(&state);
            assert_eq!(book.check_invariants(), Ok(()));
            let standing: BTreeSet<HaltId> = book.in_force(&state).map(Halt::id).collect();
            assert_eq!(standing, taken, "seed {seed}, step {step}");
            assert_eq!(book.signed().count(), taken.len());
            assert!(taken.iter().all(|id| book.contains(id)) && taken.is_disjoint(&lifted));
        }
        assert_eq!(state.lifted_halts().count(), lifted.len());
    }
}

#[test]
fn standing_halts_are_counted_by_the_kind_of_their_scope() {
    let mut state = circle();
    let scopes = [HaltScope::Circle, service("embed"), service("other"), HaltScope::Region("ghent".into())];
    let halts: Vec<SignedHalt> =
        scopes.into_iter().map(|scope| signed(&state, "alice", scope, "1")).collect();
    let book = book(&state, &halts);
    let counts = |state: &CircleState| book.standing_by_kind(state).into_iter().collect::<Vec<_>>();
    assert_eq!(counts(&state), [("circle", 1), ("node", 0), ("region", 1), ("service", 2)]);
    enact(&mut state, lift(vec![halts[1].halt.clone()]), &PEOPLE);
    assert_eq!(counts(&state), [("circle", 1), ("node", 0), ("region", 1), ("service", 1)]);
}

#[test]
fn a_halt_signs_its_own_id() {
    let state = circle();
    let halt = halt(&state, "alice", service("embed"), "1");
    let input = protocol::keys::signing_input(HALT_DOMAIN, &to_bytes(&halt));
    assert_eq!(Digest(input), halt.id().0, "the challenge of a passkey would be the id");
}

#[test]
fn a_service_that_is_halted_stays_approved() {
    let mut state = circle();
    enact(&mut state, deploy(2), &PEOPLE);
    let before = state.clone();
    let book = book(&state, &[signed(&state, "bob", service("embed"), "1")]);
    assert_eq!(state, before, "a halt stands beside the history and changes nothing in it");
    assert!(state.service(&name("embed")).is_some());
    assert!(book.covering(&state, &name("embed"), &node("n1", &[NodeRole::Worker])).is_some());
    let error: Result<(), ChainError> = try_propose(&state, deploy(3)).map(drop);
    check("an update may be voted", error, "approved");
}

/// Attack: the thief of a key halts what it likes. The suspension of its member voids the halts that it does
/// not list, and no new one is taken.
#[test]
fn a_suspension_leaves_the_halts_that_it_lists() {
    let mut state = circle();
    let [kept, other] = ["1", "2"].map(|nonce| signed(&state, "carol", HaltScope::Circle, nonce));
    let ids = [kept.halt.id(), other.halt.id()];
    let mut book = book(&state, &[kept.clone(), other.clone()]);
    let stand = |state: &CircleState| {
        [halt_stands(state, &ids[0], &kept.halt), halt_stands(state, &ids[1], &other.halt)]
    };
    // The positive control: before the suspension both stand.
    assert_eq!((stand(&state), book.in_force(&state).count()), ([true, true], 2));
    let change = Change::SuspendMember { member: name("carol"), halts: [ids[0].0].into() };
    enact(&mut state, change, &PEOPLE);
    assert_eq!((stand(&state), book.in_force(&state).count()), ([true, false], 1));
    assert!(book.prune(&state));
    let third = signed(&state, "carol", service("embed"), "3");
    check("a new one", check_halt(&state, third), "member-suspended");
    let mut all_void = circle();
    enact(&mut all_void, suspend("carol"), &PEOPLE);
    assert_eq!(stand(&all_void), [false, false]);
}

/// Gives carol other keys, those of this name, with the votes of alice and bob.
fn with_new_keys(state: &CircleState, keys_of: &str) -> CircleState {
    let mut next = state.clone();
    let mut members: Vec<_> = state.members().cloned().collect();
    let carol = members.iter_mut().find(|member| member.id == name("carol")).expect("a member");
    carol.keys = member(keys_of).keys;
    let proofs = [(name("carol"), prove(keys_of, carol))].into();
    let policy = state.policy().clone();
    enact(&mut next, Change::SetMembers { members, policy, proofs }, &PEOPLE);
    next
}

/// Returns a halt by carol, signed by the keys of this name.
fn by_carol(state: &CircleState, keys_of: &str, nonce: &str) -> SignedHalt {
    let signer = secret(keys_of).public().ed25519;
    let halt = Halt { signer, ..halt(state, "carol", HaltScope::Circle, nonce) };
    sign_halt(&secret(keys_of), halt)
}

/// Attack: a stolen key halts, its member is suspended, and a node that was away has the halt in its book.
/// The member's new keys must not bring the halt back.
#[test]
fn a_voided_halt_stays_void_when_its_member_gets_new_keys() {
    let founded = circle();
    let halts = ["1", "2"].map(|nonce| by_carol(&founded, "carol", nonce));
    let ids = halts.each_ref().map(|signed| signed.halt.id());
    let away = book(&founded, &halts);
    let standing = |state: &CircleState| -> BTreeSet<HaltId> { away.in_force(state).map(Halt::id).collect() };
    // The positive control: without a suspension, new keys end no halt.
    assert_eq!(standing(&with_new_keys(&founded, "carol-2")), ids.into());
    let mut suspended = founded.clone();
    let change = Change::SuspendMember { member: name("carol"), halts: [ids[0].0].into() };
    enact(&mut suspended, change, &PEOPLE);
    check("listed, to a node that was away", check_halt(&suspended, halts[0].clone()), "approved");
    check("voided", check_halt(&suspended, halts[1].clone()), "member-suspended");
    let renewed = with_new_keys(&suspended, "carol-2");
    assert_eq!(standing(&renewed), [ids[0]].into(), "the list outlives the suspension");
    check("listed, later", check_halt(&renewed, halts[0].clone()), "approved");
    check("voided, later", check_halt(&renewed, halts[1].clone()), "signature-invalid");
    check("the old keys", check_halt(&renewed, by_carol(&renewed, "carol", "3")), "signature-invalid");
    let own = by_carol(&renewed, "carol-2", "4");
    check("the new keys", check_halt(&renewed, own.clone()), "approved");
    // A halt by the new keys is judged by these, regardless of an earlier suspension.
    let again = with_new_keys(&renewed, "carol-3");
    assert!(halt_stands(&again, &own.halt.id(), &own.halt) && standing(&again) == [ids[0]].into());
    // A second suspension lists nothing: no halt of any key of carol stands from then on.
    let mut twice = again;
    enact(&mut twice, suspend("carol"), &PEOPLE);
    let twice = with_new_keys(&twice, "carol-4");
    assert!(standing(&twice).is_empty() && !halt_stands(&twice, &own.halt.id(), &own.halt));
}

/// Attack: a halt names a key that is not its signer's, to be judged by it.
#[test]
fn a_halt_is_signed_by_the_key_that_it_names() {
    let state = circle();
    let mut halt = halt(&state, "alice", HaltScope::Circle, "1");
    check("its own", check_halt(&state, sign_halt(&secret("alice"), halt.clone())), "approved");
    halt.signer = secret("bob").public().ed25519;
    check("another's", check_halt(&state, sign_halt(&secret("alice"), halt)), "signature-invalid");
}

/// A halt of rotated keys is signed again by the keys in force, unchanged. Parties that took it before
/// replace their copy, and so hand on one that verifies.
#[test]
fn a_halt_that_its_member_signs_again_reaches_every_party_under_its_own_id() {
    let founded = circle();
    let old = by_carol(&founded, "carol", "1");
    let mut taken = book(&founded, std::slice::from_ref(&old));
    let rotated = with_new_keys(&founded, "carol-2");
    let by = |keys_of: &str| sign_halt(&secret(keys_of), old.halt.clone());
    check("the copy that was taken", check_halt(&rotated, old.clone()), "signature-invalid");
    for keys_of in ["carol", "alice"] {
        check(keys_of, check_halt(&rotated, by(keys_of)), "signature-invalid");
    }
    let again = by("carol-2");
    assert_eq!(again.halt.id(), old.halt.id());
    let verified =
        |state: &CircleState, signed: &SignedHalt| check_halt(state, signed.clone()).expect("sound");
    let mut late = HaltBook::default();
    for book in [&mut taken, &mut late] {
        let before = book.last();
        assert!(book.lacks(&rotated, &again));
        assert_eq!(book.take(&rotated, verified(&rotated, &again)), Ok(true));
        assert_eq!(book.after(before), (before + 1, vec![again.clone()]), "it is handed on");
        // One sound copy is enough: signing without end makes no party write.
        for more in [&old, &again, &by("carol-2")] {
            assert!(!book.lacks(&rotated, more));
        }
        assert_eq!(book.take(&rotated, verified(&rotated, &by("carol-2"))), Ok(false));
        assert_eq!(book.in_force(&rotated).collect::<Vec<_>>(), [&old.halt]);
        assert_eq!(book.check_invariants(), Ok(()));
    }
    // The positive control: before the rotation, the copy that was taken is sound.
    let mut before = book(&founded, std::slice::from_ref(&old));
    assert_eq!(before.take(&founded, verified(&founded, &by("carol"))), Ok(false));
    let mut lifted = rotated;
    enact(&mut lifted, lift(vec![old.halt.clone()]), &PEOPLE);
    check("one lift ends both copies", check_halt(&lifted, again), "halt-lifted");
    assert_eq!((taken.in_force(&lifted).count(), late.in_force(&lifted).count()), (0, 0));
}

/// Attack: a member signs again what the circle voided, or a halt of keys that were never its own.
#[test]
fn attack_no_signature_brings_back_a_halt_that_a_suspension_voided() {
    let founded = circle();
    let [listed, voided] = ["1", "2"].map(|nonce| by_carol(&founded, "carol", nonce));
    let mut state = founded;
    let change = Change::SuspendMember { member: name("carol"), halts: [listed.halt.id().0].into() };
    enact(&mut state, change, &PEOPLE);
    let state = with_new_keys(&state, "carol-2");
    let again = |halt: &Halt| sign_halt(&secret("carol-2"), halt.clone());
    check("the positive control", check_halt(&state, again(&listed.halt)), "approved");
    check("voided", check_halt(&state, again(&voided.halt)), "signature-invalid");
    let foreign = Halt { signer: secret("bob").public().ed25519, ..voided.halt };
    check("another member's key", check_halt(&state, again(&foreign)), "signature-invalid");
}

/// A halt never expires, and stands where it was taken. A key that was rotated vouches for no halt any more
/// at a party that has not taken it: its thief could sign as many.
#[test]
fn a_halt_by_a_rotated_key_reaches_no_new_party_until_it_is_signed_again() {
    let mut state = circle();
    let old = signed(&state, "alice", HaltScope::Circle, "1");
    let taken = book(&state, std::slice::from_ref(&old));
    check("before the rotation", check_halt(&state, old.clone()), "approved");
    let mut members: Vec<_> = state.members().cloned().collect();
    members[0].keys = member("alice-2").keys;
    let proofs = [(name("alice"), prove("alice-2", &members[0]))].into();
    let policy = state.policy().clone();
    enact(&mut state, Change::SetMembers { members, policy, proofs }, &["bob", "carol"]);
    assert_eq!(taken.in_force(&state).collect::<Vec<_>>(), [&old.halt], "it stands where it was taken");
    check("at a new party", check_halt(&state, old.clone()), "signature-invalid");
    // The attack that this refuses: the thief of the old key halts after the rotation.
    let thiefs = signed(&state, "alice", service("embed"), "2");
    check("the thief's", check_halt(&state, thiefs), "signature-invalid");
    // Signed again with the new key, the same stop reaches every party; a lift names both.
    let signer = secret("alice-2").public().ed25519;
    let again = sign_halt(&secret("alice-2"), Halt { signer, ..old.halt.clone() });
    assert_ne!(again.halt.id(), old.halt.id());
    let late = book(&state, std::slice::from_ref(&again));
    assert_eq!(late.in_force(&state).count(), 1);
    enact(&mut state, lift(vec![old.halt, again.halt]), &["bob", "carol"]);
    assert_eq!((taken.in_force(&state).count(), late.in_force(&state).count()), (0, 0));
}
