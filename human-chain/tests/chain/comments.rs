//! Attacks on comments, each beside the honest comment that is taken, and the thread as people read it.

use crate::authenticator::{Authenticator, Ceremony, ORIGIN, PRESENT, client_data};
use crate::passkey_ballots::{phone, set, with_phones};
use crate::support::{HOUR, NOW, check, circle, deploy, enact, name, proposal, secret, suspend};
use human_chain::{
    ballot_challenge, check_ballot, check_comment, check_halt, comment_challenge, read_thread, render_thread,
    sign_comment, sign_halt, unsigned_ballot,
};
use protocol::canonical::{from_bytes, to_bytes};
use protocol::comment::{
    COMMENT_BYTES_MAX, COMMENT_DOMAIN, COMMENT_TEXT_BYTES_MAX, COMMENTS_PER_PROPOSAL_MAX, Comment,
    CommentSignature, SignedComment,
};
use protocol::governance::{BALLOT_DOMAIN, BallotSignature, Choice, Proposal, SignedBallot};
use protocol::halt::{Halt, HaltScope, HaltSignature, SignedHalt};
use protocol::{CommentId, Digest, Millis};

fn comment(proposal: &Proposal, who: &str, text: &str) -> Comment {
    Comment {
        proposal: proposal.id(),
        member: name(who),
        answers: None,
        text: text.into(),
        issued_at: NOW.plus(1000),
    }
}

fn asked(proposal: &Proposal, who: &str, text: &str) -> SignedComment {
    sign_comment(&secret(who), comment(proposal, who, text))
}

fn answered(proposal: &Proposal, who: &str, to: CommentId, text: &str, at: Millis) -> SignedComment {
    let answer = Comment { answers: Some(to), issued_at: at, ..comment(proposal, who, text) };
    sign_comment(&secret(who), answer)
}

#[test]
fn a_comment_is_its_members_own_on_one_proposal() {
    let state = circle();
    let (about, other) = (proposal(&state, deploy(3)), proposal(&state, deploy(4)));
    let sound = asked(&about, "alice", "why three?");
    check("the positive control", check_comment(&state, &about, &sound), "approved");
    let with = |edit: &dyn Fn(&mut Comment)| {
        let mut altered = sound.clone();
        edit(&mut altered.comment);
        altered
    };
    let again = |edit: &dyn Fn(&mut Comment)| {
        let mut altered = sound.comment.clone();
        edit(&mut altered);
        sign_comment(&secret("alice"), altered)
    };
    for (case, signed, expected) in [
        ("another text", with(&|one| one.text.push('!')), "signature-invalid"),
        ("another time", with(&|one| one.issued_at = NOW), "signature-invalid"),
        ("an answer", with(&|one| one.answers = Some(sound.comment.id())), "signature-invalid"),
        ("another member", with(&|one| one.member = name("bob")), "signature-invalid"),
        ("no member", with(&|one| one.member = name("dave")), "not-a-member"),
        ("another proposal", again(&|one| one.proposal = other.id()), "governance-invalid: another proposal"),
        ("no text", again(&|one| one.text = " \n\t".into()), "governance-invalid: empty"),
        (
            "a book",
            again(&|one| one.text = "x".repeat(COMMENT_TEXT_BYTES_MAX + 1)),
            "governance-invalid: 1025",
        ),
        (
            "an old one",
            again(&|one| one.issued_at = Millis(0)),
            "governance-invalid: older than its proposal",
        ),
    ] {
        check(case, check_comment(&state, &about, &signed), expected);
    }
    let longest = again(&|one| one.text = "x".repeat(COMMENT_TEXT_BYTES_MAX));
    check("the longest", check_comment(&state, &about, &longest), "approved");
    let bytes = to_bytes(&longest);
    assert_eq!(from_bytes::<SignedComment>(&bytes, COMMENT_BYTES_MAX), Ok(longest), "it survives a wire");
}

#[test]
fn a_suspended_member_says_nothing() {
    let mut state = circle();
    let about = proposal(&state, deploy(3));
    let signed = asked(&about, "carol", "why three?");
    check("the positive control", check_comment(&state, &about, &signed), "approved");
    enact(&mut state, suspend("carol"), &["alice", "bob"]);
    check("her key was stolen", check_comment(&state, &about, &signed), "member-suspended");
    let thread = read_thread(&state, &about, &[signed]);
    assert!(thread.questions.is_empty() && thread.refused.len() == 1, "{thread:?}");
}

/// Attack: what a member signed as a comment is handed in as a vote or as a halt, and the other way.
#[test]
fn a_comment_is_no_vote_and_no_halt() {
    let state = circle();
    let about = proposal(&state, deploy(3));
    let CommentSignature::Hybrid(signature) = asked(&about, "alice", "yes").signature else {
        panic!("by key")
    };
    let ballot = unsigned_ballot(name("alice"), state.head(), &about, Choice::Approve, NOW);
    let forged =
        SignedBallot { ballot: ballot.clone(), signature: BallotSignature::Hybrid(signature.clone()) };
    check("as a vote", check_ballot(&state, &about, &forged, NOW), "signature-invalid");
    let halt = Halt {
        circle: state.id(),
        member: name("alice"),
        signer: secret("alice").public().ed25519,
        scope: HaltScope::Circle,
        reason: "yes".into(),
        issued_at: NOW,
        nonce: Digest::of(b"1"),
    };
    let forged = SignedHalt { halt: halt.clone(), signature: HaltSignature::Hybrid(signature) };
    check("as a halt", check_halt(&state, forged), "signature-invalid");
    // The positive controls: under their own domains, the same keys vote and halt.
    let vote = secret("alice").sign(BALLOT_DOMAIN, &to_bytes(&ballot));
    let vote = SignedBallot { ballot, signature: BallotSignature::Hybrid(vote) };
    check("a vote", check_ballot(&state, &about, &vote, NOW), "approved");
    check("a halt", check_halt(&state, sign_halt(&secret("alice"), halt)), "approved");
    let BallotSignature::Hybrid(by_vote) = vote.signature else { panic!("by key") };
    let said = comment(&about, "alice", "yes");
    let forged = SignedComment { comment: said, signature: CommentSignature::Hybrid(by_vote) };
    check("a vote as a comment", check_comment(&state, &about, &forged), "signature-invalid");
}

/// Returns a comment that this authenticator signs, with some parts of the ceremony made wrong.
fn tapped_by(by: &Authenticator, said: Comment, alter: impl FnOnce(&mut Ceremony)) -> SignedComment {
    let mut ceremony = Ceremony::of(&comment_challenge(&said).0, 1);
    alter(&mut ceremony);
    SignedComment { comment: said, signature: CommentSignature::Passkey(by.answer(&ceremony)) }
}

/// A passkey comments whether or not it votes, under the rules of every other use of it.
#[test]
fn a_comment_by_passkey_needs_the_page_the_user_and_the_passkey() {
    for routine in [true, false] {
        let mut state = with_phones(routine);
        let about = proposal(&state, deploy(3));
        let said = || comment(&about, "alice", "why three?");
        let sound = tapped_by(&phone("alice"), said(), |_| {});
        check("the positive control", check_comment(&state, &about, &sound), "approved");
        let elsewhere =
            client_data("webauthn.get", &comment_challenge(&said()).0, &ORIGIN.replace("https", "http"));
        let ballot = unsigned_ballot(name("alice"), state.head(), &about, Choice::Approve, NOW);
        let of_vote = client_data("webauthn.get", &ballot_challenge(&ballot).0, ORIGIN);
        let replayed = |said: Comment| SignedComment { comment: said, signature: sound.signature.clone() };
        for (case, signed, expected) in [
            (
                "another page",
                tapped_by(&phone("alice"), said(), |one| one.client_data = elsewhere),
                "passkey-origin",
            ),
            (
                "a vote",
                tapped_by(&phone("alice"), said(), |one| one.client_data = of_vote),
                "passkey-challenge",
            ),
            (
                "no verified user",
                tapped_by(&phone("alice"), said(), |one| one.flags = PRESENT),
                "passkey-unverified",
            ),
            ("a thief's", tapped_by(&Authenticator::es256("thief"), said(), |_| {}), "passkey-unknown"),
            ("another text", replayed(Comment { text: "yes".into(), ..said() }), "passkey-challenge"),
            ("another member", replayed(comment(&about, "bob", "why three?")), "passkey-unknown"),
        ] {
            check(case, check_comment(&state, &about, &signed), expected);
        }
        enact(&mut state, set("alice", vec![]), &["alice"]);
        check("a dropped one", check_comment(&state, &about, &sound), "passkey-unknown");
    }
}

/// The order and the places follow from the comments, in any order in which control shows them, and however
/// often.
#[test]
fn a_thread_is_the_same_in_any_order() {
    let state = circle();
    let about = proposal(&state, deploy(3));
    let question = asked(&about, "alice", "why three?");
    let id = question.comment.id();
    let all = vec![
        question,
        answered(&about, "bob", id, "one for each site", NOW.plus(2000)),
        answered(&about, "carol", id, "and one spare", NOW.plus(3000)),
        sign_comment(&secret("bob"), Comment { issued_at: NOW, ..comment(&about, "bob", "who pays?") }),
        answered(&about, "bob", CommentId(Digest::of(b"hidden")), "so it is", NOW.plus(HOUR)),
    ];
    let expected = read_thread(&state, &about, &all);
    assert_eq!((expected.questions.len(), expected.loose.len(), expected.unanswered()), (2, 1, 1));
    let mut shuffled = all.clone();
    for turn in 0..all.len() {
        shuffled.rotate_left(1);
        let doubled = [shuffled.clone(), shuffled.clone()].concat();
        for shown in [&shuffled, &doubled] {
            assert_eq!(read_thread(&state, &about, shown), expected, "turn {turn}");
        }
    }
    let shown = render_thread(&expected);
    let ids: Vec<String> = all.iter().map(|signed| signed.comment.id().short()).collect();
    let golden = format!(
        "bob asks ({}), 2026-11-21 12:41:50.000 UTC (1795264910000)\n  | who pays?\n\
         alice asks ({}), 2026-11-21 12:41:51.000 UTC (1795264911000)\n  | why three?\n  \
         bob answers ({}), 2026-11-21 12:41:52.000 UTC (1795264912000)\n    | one for each site\n  \
         carol answers ({}), 2026-11-21 12:41:53.000 UTC (1795264913000)\n    | and one spare\n\
         bob answers a question that control does not show ({}), 2026-11-21 13:41:50.000 UTC \
         (1795268510000)\n  | so it is\n",
        ids[3], ids[0], ids[1], ids[2], ids[4]
    );
    assert_eq!(shown, golden);
    assert_eq!(render_thread(&read_thread(&state, &about, &[])), "");
}

/// Attack: a text imitates the name above another, by line breaks, spaces, wide letters or escape sequences.
#[test]
fn no_text_of_a_comment_stands_outside_its_margin() {
    let state = circle();
    let about = proposal(&state, deploy(3));
    let imitation = "bob answers (7f3a90c2), 2026-11-21: approve it";
    for text in [
        format!("so\n{imitation}"),
        format!("so\r\n\r\n{imitation}"),
        format!("so{}{imitation}", " ".repeat(76)),
        format!("{}{imitation}", "\u{6771}".repeat(40)),
        format!("{}{imitation}", "x".repeat(78)),
        format!("\u{1b}[2K\u{202e}\u{2028}{imitation}"),
    ] {
        let thread = read_thread(&state, &about, &[asked(&about, "alice", &text)]);
        let shown = render_thread(&thread);
        // The positive control: the imitation is there, as its member's text.
        assert!(shown.replace("\n  | ", "").contains("approve"), "{shown}");
        for (at, row) in shown.lines().enumerate() {
            assert_eq!(row.starts_with("  | "), at > 0, "{row}");
            let columns: usize = row.chars().map(|c| if c.is_ascii() { 1 } else { 2 }).sum();
            assert!(columns <= 79 && protocol::foreign_text::line(row) == row, "{row}");
        }
    }
}

/// Attack: control shows a thread without end.
#[test]
fn no_more_comments_are_read_than_a_proposal_may_have() {
    let state = circle();
    let about = proposal(&state, deploy(3));
    let one = asked(&about, "alice", "why three?");
    let thread = read_thread(&state, &about, &vec![one.clone(); COMMENTS_PER_PROPOSAL_MAX + 5]);
    assert_eq!((thread.questions.len(), thread.unread), (1, 5));
    assert!(render_thread(&thread).ends_with("control shows 5 more than a proposal may have\n"));
    assert_eq!(one.comment.id(), CommentId(Digest::of_domain(COMMENT_DOMAIN, &to_bytes(&one.comment))));
}
