//! Attacks on the console, each with its positive control: it succeeds when its guard has nothing to go by.

use crate::routes::{PORT, ask, enter, get, vote};
use crate::world::{Lab, member, words};
use axum::http::{Method, StatusCode};
use console::{KnownReview, ReviewedProposal, Visitor};
use host::{Clock, wall_clock};
use human_chain::MemberSecret;
use protocol::api::Finding;
use protocol::governance::{Change, Choice};
use protocol::keys::ByteString;
use protocol::passkey::{Passkey, PasskeyAssertion, PasskeyKey};

/// Attack: a page elsewhere votes with the member's session.
#[tokio::test]
async fn a_vote_that_another_page_sends_is_refused() {
    let lab = Lab::of_member(0, PORT);
    let cookie = enter(&lab, &lab.owner_link(0)).await;
    let proposal = lab.world.deployment();
    let path = format!("/console/proposals/{}/vote", proposal.id());
    let body = format!("words={}&choice=approve", words(&proposal).replace(' ', "+"));
    for foreign in [
        vec![("sec-fetch-site", "cross-site"), ("origin", "https://evil.example")],
        vec![("sec-fetch-site", "same-site"), ("origin", "http://localhost:1")],
        vec![("origin", "null")],
        vec![],
    ] {
        let headers = [foreign.as_slice(), &[("cookie", cookie.as_str())]].concat();
        let refused = ask(&lab, Method::POST, &path, &headers, &body).await;
        assert_eq!(refused.status, StatusCode::FORBIDDEN, "{headers:?}");
        assert!(refused.text.contains("console-origin-refused"), "{}", refused.text);
    }
    assert!(lab.world.state().delivered.is_empty(), "nothing was signed");
    // Positive control: the same request of our own page is a vote.
    let done = vote(&lab, &cookie, proposal.id(), &words(&proposal), "approve").await;
    assert_eq!((done.status, lab.world.state().delivered.len()), (StatusCode::SEE_OTHER, 1));
}

/// Attack: a name that resolves to this machine makes a foreign page one of the same origin.
#[tokio::test]
async fn a_request_for_another_host_is_refused_before_it_is_read() {
    let lab = Lab::of_member(0, PORT);
    let cookie = enter(&lab, &lab.owner_link(0)).await;
    for host in ["evil.example", "evil.example:7607", "127.0.0.1:7607", "localhost:7608", "localhost"] {
        let headers = [("host", host), ("cookie", cookie.as_str()), ("sec-fetch-site", "same-origin")];
        for method in [Method::GET, Method::POST] {
            let refused = ask(&lab, method, "/console/members", &headers, "").await;
            assert_eq!(refused.status, StatusCode::MISDIRECTED_REQUEST, "{host}");
            assert!(refused.text.contains("console-host-refused") && !refused.text.contains("alice"));
        }
    }
    // Positive control: under its own name the same request is answered.
    assert!(get(&lab, &cookie, "/console/members").await.text.contains("alice"));
}

/// Attack: a link is taken from a history or a mail and opened again.
#[tokio::test]
async fn a_link_that_was_used_signs_no_second_browser_in() {
    let lab = Lab::of_member(0, PORT);
    let code = lab.owner_link(0);
    // A program that looks at the link before its owner uses nothing up.
    let looked = ask(&lab, Method::GET, &format!("/console/enter?code={code}"), &[], "").await;
    assert!(looked.status == StatusCode::OK && !looked.headers.contains_key("set-cookie"));
    // Positive control: the first browser is signed in.
    let cookie = enter(&lab, &code).await;
    assert_eq!(get(&lab, &cookie, "/console").await.status, StatusCode::OK);
    let own = [("sec-fetch-site", "same-origin")];
    for code in [code.as_str(), "", "0000", cookie.split('=').next_back().unwrap()] {
        let refused = ask(&lab, Method::POST, "/console/enter", &own, &format!("code={code}")).await;
        assert_eq!(refused.status, StatusCode::FORBIDDEN);
        assert!(refused.text.contains("console-link-invalid") && !refused.headers.contains_key("set-cookie"));
    }
}

/// Attack: control claims that every member approved, without a ballot of any of them.
#[tokio::test]
async fn votes_that_no_ballot_shows_are_not_shown() {
    let lab = Lab::of_replica(PORT, Clock::machine());
    let cookie = enter(&lab, &lab.token_link()).await;
    let proposal = lab.world.deployment();
    lab.world.state().claims_votes = true;
    let page = get(&lab, &cookie, &format!("/console/proposals/{}", proposal.id())).await.text;
    let expected = "control reports it as approved, but the ballots that count do not reach the quorum";
    assert!(page.contains(expected) && page.contains("No member has voted."), "{page}");
    assert!(!page.contains("approves"), "{page}");
    // Positive control: with the ballots, the same claim is shown as votes.
    lab.world.vote(0, &proposal, Choice::Approve);
    lab.world.vote(1, &proposal, Choice::Approve);
    let page = get(&lab, &cookie, &format!("/console/proposals/{}", proposal.id())).await.text;
    assert!(page.contains("quorum reached; the change is in force") && page.contains("approves"), "{page}");
}

/// Attack: control shows a ballot with another member's signature.
#[tokio::test]
async fn a_ballot_that_does_not_verify_is_named_and_not_counted() {
    let lab = Lab::of_replica(PORT, Clock::machine());
    let cookie = enter(&lab, &lab.token_link()).await;
    let proposal = lab.world.deployment();
    lab.world.vote(0, &proposal, Choice::Approve);
    let path = format!("/console/proposals/{}", proposal.id());
    let forge = |name: usize| {
        let mut state = lab.world.state();
        let view = state.open.get_mut(&proposal.id()).unwrap();
        let mut forged = view.ballots[0].clone();
        forged.ballot.member = crate::world::member(name);
        view.ballots.push(forged);
    };
    // Positive control: the ballot counts for the member that signed it.
    assert!(get(&lab, &cookie, &path).await.text.contains("1 of 2 signed"));
    forge(2);
    let page = get(&lab, &cookie, &path).await.text;
    assert!(page.contains("1 of 2 signed") && page.contains("does not count"), "{page}");
    assert!(page.contains("signature-invalid"), "{page}");
}

/// Attack: the form is sent unread, or with the words of another text.
#[tokio::test]
async fn nothing_is_signed_without_the_words_of_this_text() {
    let lab = Lab::of_member(0, PORT);
    let cookie = enter(&lab, &lab.owner_link(0)).await;
    let proposal = lab.world.deployment();
    let other = lab.world.propose(Change::RemoveNode { node: "node-2".parse().unwrap() }, "a test");
    for given in ["", "yes", words(&other).as_str(), words(&proposal).split(' ').next().unwrap()] {
        let refused = vote(&lab, &cookie, proposal.id(), given, "approve").await;
        assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{given}");
        assert!(refused.text.contains("words-mismatch") && refused.text.contains("nothing was signed"));
        assert!(refused.text.contains("id=\"words\""), "the form stays: {}", refused.text);
    }
    assert!(lab.world.state().delivered.is_empty());
    // Positive control: with its words it is signed.
    vote(&lab, &cookie, proposal.id(), &words(&proposal), "approve").await;
    assert_eq!(lab.world.state().delivered.len(), 1);
}

/// Attack: the holder of a stolen device signs in with the passkey of a member that was suspended.
#[tokio::test]
async fn a_suspended_member_does_not_sign_in_by_passkey() {
    let lab = Lab::of_replica(PORT, Clock::machine());
    let credential = ByteString(b"phone".to_vec());
    let key = PasskeyKey::EdDsa(MemberSecret::generate(&[9; 64]).public().ed25519);
    let passkeys = vec![Passkey { credential: credential.clone(), key, label: "phone".into() }];
    let change = lab.world.propose(Change::SetPasskeys { member: member(2), passkeys }, "a phone");
    lab.world.vote(2, &change, Choice::Approve);
    let attempt = async || {
        let json = [("sec-fetch-site", "same-origin"), ("content-type", "application/json")];
        let made = ask(&lab, Method::POST, "/console/passkeys/challenge", &json, "").await;
        let made: serde_json::Value = serde_json::from_str(&made.text).unwrap();
        let empty = || ByteString(vec![]);
        let (authenticator_data, client_data, signature) = (empty(), empty(), empty());
        let credential = credential.clone();
        let assertion = PasskeyAssertion { credential, authenticator_data, client_data, signature };
        let body = serde_json::json!({ "challenge": made["challenge"], "assertion": assertion }).to_string();
        ask(&lab, Method::POST, "/console/passkeys/enter", &json, &body).await
    };
    // The positive control: the passkey is known, and what is wrong is its answer.
    let refused = attempt().await.text;
    assert!(refused.contains("passkey-invalid"), "{refused}");
    let change = Change::SuspendMember { member: member(2), halts: [].into() };
    let suspension = lab.world.propose(change, "the device was stolen");
    (0..2).for_each(|at| lab.world.vote(at, &suspension, Choice::Approve));
    let refused = attempt().await.text;
    assert!(refused.contains("member-suspended"), "{refused}");
}

/// Attack: a stolen device is signed in, and reads on after its passkey was dropped or its member suspended.
#[tokio::test]
async fn a_session_ends_with_its_passkey() {
    let lab = Lab::of_replica(PORT, Clock::machine());
    let read = async |cookie: &str| get(&lab, cookie, "/console/members").await.status;
    let (stolen, other) = (enter(&lab, &lab.member_link(2)).await, enter(&lab, &lab.member_link(1)).await);
    // Positive control: until then both of them read.
    assert_eq!((read(&stolen).await, read(&other).await), (StatusCode::OK, StatusCode::OK));
    let key = PasskeyKey::EdDsa(MemberSecret::generate(&[77; 64]).public().ed25519);
    let new = Passkey { credential: ByteString(b"new phone".to_vec()), key, label: "new phone".into() };
    lab.world.set_passkeys(2, vec![new.clone()]);
    assert_eq!(read(&stolen).await, StatusCode::UNAUTHORIZED, "the member has another passkey now");
    assert_eq!(read(&other).await, StatusCode::OK, "a session of another passkey is another session");
    let visitor = Visitor::Member { member: member(2), credential: new.credential };
    let stolen = enter(&lab, &lab.sign_in.create_link(visitor)).await;
    assert_eq!(read(&stolen).await, StatusCode::OK, "positive control: the new one reads");
    let change = Change::SuspendMember { member: member(2), halts: [].into() };
    let suspension = lab.world.propose(change, "the device was stolen");
    (0..2).for_each(|at| lab.world.vote(at, &suspension, Choice::Approve));
    assert_eq!(read(&stolen).await, StatusCode::UNAUTHORIZED, "a suspended member reads nothing");
    assert_eq!(read(&other).await, StatusCode::OK);
    // A passkey of one member is none of another.
    let swapped = Visitor::Member { member: member(0), credential: lab.world.give_passkey(1) };
    assert!(!swapped.holds_passkey(&lab.world.state().circle));
}

/// Signatures that a page has verified are not verified for the next one; what is new is, and a verdict is
/// for one head of the history, one proposal and the very bytes.
#[tokio::test]
async fn a_review_verifies_what_is_new_alone() {
    let lab = Lab::of_member(0, PORT);
    let proposal = lab.world.deployment();
    let mut known = KnownReview::default();
    let review = |known: &mut KnownReview| {
        let state = lab.world.state();
        let view = state.open[&proposal.id()].clone();
        ReviewedProposal::with_known(&state.circle, None, view, known).unwrap()
    };
    lab.world.vote(1, &proposal, Choice::Approve);
    let question = lab.world.comment(1, &proposal, None, "why six?");
    assert_eq!((review(&mut known).counted.len(), known.verified()), (1, 2));
    assert_eq!((review(&mut known).counted.len(), known.verified()), (1, 2), "nothing is new");
    lab.world.vote(2, &proposal, Choice::Reject);
    lab.world.comment(0, &proposal, Some(question), "the archive grows");
    let reviewed = review(&mut known);
    assert_eq!((reviewed.counted.len(), known.verified()), (2, 4), "one ballot and one comment are new");
    assert_eq!(reviewed.thread.questions[0].answers.len(), 1);
    // Attack: control alters a ballot that was verified before. It is verified again, and does not count.
    lab.world.state().open.get_mut(&proposal.id()).unwrap().ballots[0].ballot.choice = Choice::Reject;
    let reviewed = review(&mut known);
    assert_eq!((reviewed.counted.len(), reviewed.refused.len(), known.verified()), (1, 1, 5));
    lab.world.state().open.get_mut(&proposal.id()).unwrap().ballots[0].ballot.choice = Choice::Approve;
    assert_eq!(review(&mut known).counted.len(), 2, "positive control: as it was signed, it counts");
    // Another head of the history voids every verdict: carol's keys count for nothing from then on.
    let verified = known.verified();
    let change = Change::SuspendMember { member: member(2), halts: [].into() };
    let suspension = lab.world.propose(change, "her key was stolen");
    (0..2).for_each(|at| lab.world.vote(at, &suspension, Choice::Approve));
    let reviewed = review(&mut known);
    assert_eq!((reviewed.counted.len(), reviewed.refused.len()), (1, 1), "her ballot was verified before");
    assert_eq!(known.verified(), verified + 4, "every signature is verified at the new head");
}

/// Attack: an unauthenticated client asks for sign-in challenges without end.
#[tokio::test]
async fn an_unauthenticated_client_makes_a_replica_ask_no_other() {
    let lab = Lab::of_replica(PORT, Clock::machine());
    let json = [("sec-fetch-site", "same-origin"), ("content-type", "application/json")];
    for _ in 0..50 {
        let made = ask(&lab, Method::POST, "/console/passkeys/challenge", &json, "").await;
        let made: serde_json::Value = serde_json::from_str(&made.text).unwrap();
        let empty = || ByteString(vec![]);
        let (credential, authenticator_data) = (ByteString(b"unknown".to_vec()), empty());
        let (client_data, signature) = (empty(), empty());
        let assertion = PasskeyAssertion { credential, authenticator_data, client_data, signature };
        let body = serde_json::json!({ "challenge": made["challenge"], "assertion": assertion }).to_string();
        let refused = ask(&lab, Method::POST, "/console/passkeys/enter", &json, &body).await;
        assert!(refused.text.contains("passkey-unknown"), "{}", refused.text);
    }
    for path in ["/console", "/console/enter", "/console/static/console.js", "/console/halt"] {
        ask(&lab, Method::GET, path, &[], "").await;
    }
    assert_eq!(lab.world.state().barriers, 0, "no visitor without a session makes a replica ask others");
    // Positive control: a page of a session asks once.
    let cookie = enter(&lab, &lab.token_link()).await;
    assert_eq!(get(&lab, &cookie, "/console/members").await.status, StatusCode::OK);
    assert_eq!(lab.world.state().barriers, 1);
}

/// Attack: the holders of two stolen keys change the members. The third member sees it on the console, until
/// when it can be ended, and ends it there.
#[tokio::test]
async fn a_change_that_waits_is_shown_and_vetoed() {
    let lab = Lab::of_member(0, PORT);
    let cookie = enter(&lab, &lab.owner_link(0)).await;
    let circle = lab.world.state().circle.clone();
    let (members, policy) = (circle.members().cloned().collect(), circle.policy().clone());
    let change = Change::SetMembers { members, policy, proofs: [].into() };
    let proposal = lab.world.propose(change, "the rules of before");
    let path = format!("/console/proposals/{}", proposal.id());
    // The positive control: while it is open, time alone changes nothing.
    let open = get(&lab, &cookie, &path).await.text;
    assert!(open.contains("it expires, and nothing changes") && !open.contains("Veto"), "{open}");
    lab.world.wait_for_veto(&proposal, wall_clock().plus(3_600_000));
    assert!(get(&lab, &cookie, "/console/inbox").await.text.contains("unless a member vetoes it"));
    let waits = get(&lab, &cookie, &path).await.text;
    assert!(waits.contains("it takes effect at ") && !waits.contains("it expires"), "{waits}");
    assert!(waits.contains(">Veto<") && !waits.contains(">Approve<"), "{waits}");
    vote(&lab, &cookie, proposal.id(), &words(&proposal), "reject").await;
    let delivered = lab.world.state().delivered.clone();
    assert_eq!((delivered.len(), delivered[0].ballot.choice), (1, Choice::Reject));
}

/// Text that is markup and code, and that reorders what stands around it.
pub(crate) const HOSTILE: &str = "<img src=x onerror=\"window.taken=1\"><script>window.taken=1</script>\
    \u{202e}</pre><style>*{display:none}</style>&lt;b&gt; \u{2066}quorum reached\u{200b}";

/// Attack: a reason, a finding and a node's report are markup.
#[tokio::test]
async fn text_of_others_stays_text() {
    let lab = Lab::of_member(0, PORT);
    let cookie = enter(&lab, &lab.owner_link(0)).await;
    lab.world.propose(Change::RemoveNode { node: "node-1".parse().unwrap() }, HOSTILE);
    {
        let mut state = lab.world.state();
        state.report.services[0].slots[0].why = HOSTILE.into();
        state.report.note = Some(HOSTILE.into());
        let status = state.report.status.as_mut().unwrap();
        status.findings.push(Finding { message: HOSTILE.into(), next: HOSTILE.into() });
        status.summary = HOSTILE.into();
    }
    let ids: Vec<String> = lab.world.state().open.keys().map(ToString::to_string).collect();
    let pages = ids.iter().map(|id| format!("/console/proposals/{id}"));
    let mut seen = 0;
    for path in pages.chain(["/console".to_string(), "/console/inbox".to_string()]) {
        let page = get(&lab, &cookie, &path).await.text;
        assert!(!page.contains("<img") && !page.contains("<script>") && !page.contains("<style>"), "{path}");
        assert!(!page.contains(['\u{202e}', '\u{2066}', '\u{200b}']), "{path}");
        seen += page.matches("&lt;img src=x").count();
    }
    assert!(seen >= 5, "it is shown as text: {seen} times");
}
