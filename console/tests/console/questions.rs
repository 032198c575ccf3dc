//! Tests of the questions on the page of a proposal: who asks, how they are shown, and what they change.

use crate::attacks::HOSTILE;
use crate::routes::{Answered, PORT, ask, enter, get};
use crate::world::{Lab, member, secret};
use axum::http::{Method, StatusCode};
use host::Clock;
use protocol::comment::COMMENT_TEXT_BYTES_MAX;
use protocol::governance::{Choice, Proposal};

/// Posts a question or an answer from a page of ours.
async fn comment(lab: &Lab, cookie: &str, proposal: &Proposal, body: &str) -> Answered {
    let own = [("sec-fetch-site", "same-origin"), ("origin", "null"), ("cookie", cookie)];
    ask(lab, Method::POST, &format!("/console/proposals/{}/comment", proposal.id()), &own, body).await
}

async fn page(lab: &Lab, cookie: &str, proposal: &Proposal) -> String {
    get(lab, cookie, &format!("/console/proposals/{}", proposal.id())).await.text
}

#[tokio::test]
async fn members_ask_and_answer_and_it_counts_for_nothing() {
    let lab = Lab::of_member(0, PORT);
    let cookie = enter(&lab, &lab.owner_link(0)).await;
    let proposal = lab.world.deployment();
    assert!(page(&lab, &cookie, &proposal).await.contains("No member has asked."));
    let done = comment(&lab, &cookie, &proposal, "text=why+six%3F%0D%0Aand+why+now%3F&answers=").await;
    assert_eq!(done.status, StatusCode::SEE_OTHER, "{}", done.text);
    let expected = format!("/console/proposals/{}#questions", proposal.id());
    assert_eq!(done.headers["location"].to_str().unwrap(), expected);
    let asked = lab.world.state().open[&proposal.id()].comments[0].clone();
    assert_eq!(asked.comment.text, "why six?\nand why now?");
    assert!(asked.is_hybrid() && asked.comment.member == member(0));
    let inbox = get(&lab, &cookie, "/console/inbox").await.text;
    assert!(inbox.contains("1 open question"), "{inbox}");
    lab.world.comment(1, &proposal, Some(asked.comment.id()), "the archive grows");
    let shown = page(&lab, &cookie, &proposal).await;
    for expected in ["alice</strong> asks", "<bdi>why six?</bdi>", "bob</strong> answers", "0 of 2 signed"] {
        assert!(shown.contains(expected), "{expected}: {shown}");
    }
    assert!(!get(&lab, &cookie, "/console/inbox").await.text.contains("open question"));
    let answered = format!("text=then+it+is+fine&answers={}", asked.comment.id());
    assert_eq!(comment(&lab, &cookie, &proposal, &answered).await.status, StatusCode::SEE_OTHER);
    assert_eq!(lab.world.state().open[&proposal.id()].comments.len(), 3);
    // The thread ends with the vote.
    (0..2).for_each(|at| lab.world.vote(at, &proposal, Choice::Approve));
    lab.world.state().closed.get_mut(&proposal.id()).unwrap().comments.clear();
    let decided = page(&lab, &cookie, &proposal).await;
    assert!(decided.contains("in force") && !decided.contains("Questions"), "{decided}");
}

/// A refused text stays in its form, with the reason.
#[tokio::test]
async fn an_empty_or_too_long_text_is_not_signed() {
    let lab = Lab::of_member(0, PORT);
    let cookie = enter(&lab, &lab.owner_link(0)).await;
    let proposal = lab.world.deployment();
    let long = |length: usize| format!("text={}", "x".repeat(length));
    for (body, status, code) in [
        ("text=+%0D%0A+".to_string(), StatusCode::BAD_REQUEST, "governance-invalid"),
        (long(COMMENT_TEXT_BYTES_MAX + 1), StatusCode::BAD_REQUEST, "governance-invalid"),
        ("text=so&answers=zz".into(), StatusCode::NOT_FOUND, "question-not-found"),
        ("text=so&choice=approve".into(), StatusCode::BAD_REQUEST, "request-invalid"),
        ("answers=".into(), StatusCode::BAD_REQUEST, "request-invalid"),
    ] {
        let refused = comment(&lab, &cookie, &proposal, &body).await;
        assert_eq!(refused.status, status, "{body}: {}", refused.text);
        assert!(refused.text.contains(code), "{body}: {}", refused.text);
    }
    let kept = comment(&lab, &cookie, &proposal, &long(COMMENT_TEXT_BYTES_MAX + 7)).await.text;
    assert!(kept.contains(&"x".repeat(COMMENT_TEXT_BYTES_MAX + 7)), "the text stays in the form");
    assert!(lab.world.state().open[&proposal.id()].comments.is_empty());
    // Positive control: the longest text is taken.
    let done = comment(&lab, &cookie, &proposal, &long(COMMENT_TEXT_BYTES_MAX)).await;
    assert_eq!(done.status, StatusCode::SEE_OTHER, "{}", done.text);
}

/// Attack: a page elsewhere asks with the member's session; a token, or a console without a key, asks.
#[tokio::test]
async fn a_question_comes_from_our_page_and_from_a_member() {
    let lab = Lab::of_member(0, PORT);
    let cookie = enter(&lab, &lab.owner_link(0)).await;
    let proposal = lab.world.deployment();
    let base = format!("/console/proposals/{}/comment", proposal.id());
    let foreign = [("sec-fetch-site", "cross-site"), ("cookie", cookie.as_str())];
    for path in [base.clone(), format!("{base}/compose"), format!("{base}/passkey")] {
        let refused = ask(&lab, Method::POST, &path, &foreign, "text=so").await;
        assert_eq!(refused.status, StatusCode::FORBIDDEN, "{path}");
        assert!(refused.text.contains("console-origin-refused"), "{path}: {}", refused.text);
    }
    let replica = Lab::of_replica(PORT, Clock::machine());
    let there = replica.world.deployment();
    for code in [replica.token_link(), replica.member_link(1)] {
        let cookie = enter(&replica, &code).await;
        assert!(!page(&replica, &cookie, &there).await.contains("Sign and send"));
        let refused = comment(&replica, &cookie, &there, "text=so").await;
        assert_eq!(refused.status, StatusCode::FORBIDDEN);
        assert!(refused.text.contains("console-no-key"), "{}", refused.text);
    }
    assert!(replica.world.state().open[&there.id()].comments.is_empty());
    // Positive control: the same request of our own page is a question.
    assert_eq!(comment(&lab, &cookie, &proposal, "text=so").await.status, StatusCode::SEE_OTHER);
}

/// Attack: a question is markup, and control shows one that its member did not sign, under another proposal,
/// or twice.
#[tokio::test]
async fn questions_are_text_and_are_those_of_their_members() {
    let lab = Lab::of_member(0, PORT);
    let cookie = enter(&lab, &lab.owner_link(0)).await;
    let proposal = lab.world.deployment();
    lab.world.comment(1, &proposal, None, HOSTILE);
    let shown = page(&lab, &cookie, &proposal).await;
    assert!(shown.contains("&lt;img src=x"), "shown as text: {shown}");
    assert!(!shown.contains("<img") && !shown.contains("<script>") && !shown.contains("<style>"), "{shown}");
    assert!(!shown.contains(['\u{202e}', '\u{2066}', '\u{200b}']), "{shown}");
    {
        let mut state = lab.world.state();
        let view = state.open.get_mut(&proposal.id()).unwrap();
        let honest = view.comments[0].clone();
        let mut forged = honest.clone();
        (forged.comment.member, forged.comment.text) = (member(2), "buy now".into());
        let mut moved = honest.comment.clone();
        (moved.proposal, moved.text) = (protocol::ProposalId(protocol::Digest::of(b"other")), "moved".into());
        let moved = human_chain::sign_comment(secret(1), moved);
        let mut loose = honest.comment.clone();
        (loose.answers, loose.text) =
            (Some(protocol::CommentId(protocol::Digest::of(b"x"))), "hidden".into());
        let loose = human_chain::sign_comment(secret(1), loose);
        view.comments.extend([forged, moved, loose, honest]);
    }
    let shown = page(&lab, &cookie, &proposal).await;
    assert!(!shown.contains("buy now") && !shown.contains("moved"), "{shown}");
    assert_eq!(shown.matches("does not verify").count(), 2, "{shown}");
    assert_eq!(shown.matches("&lt;img src=x").count(), 1, "a second copy is no second question: {shown}");
    assert!(shown.contains("An answer to a question that control does not show"), "{shown}");
    // Positive control: what carol signs is shown in her name.
    lab.world.comment(2, &proposal, None, "buy now");
    let shown = page(&lab, &cookie, &proposal).await;
    assert!(shown.contains("carol</strong> asks") && shown.contains("buy now"), "{shown}");
}
