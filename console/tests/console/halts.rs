//! Tests of halts on the pages: by key, by passkey, without a leader, and as text of others.

use crate::attacks::HOSTILE;
use crate::browser::Desk;
use crate::cdp::LOOKS;
use crate::passkeys::Office;
use crate::routes::{Answered, PAGES, PORT, ask, enter, get};
use crate::world::{Lab, member};
use axum::http::{Method, StatusCode};
use host::Clock;
use protocol::governance::Choice;
use protocol::halt::{HALT_REASON_BYTES_MAX, HaltScope};
use serde_json::json;

fn service() -> HaltScope {
    HaltScope::Service("minilm".parse().unwrap())
}

/// Posts a halt from a page of ours.
async fn halt(lab: &Lab, cookie: &str, body: &str) -> Answered {
    let own = [("sec-fetch-site", "same-origin"), ("origin", "null"), ("cookie", cookie)];
    ask(lab, Method::POST, "/console/halt", &own, body).await
}

#[tokio::test]
async fn a_red_way_to_halt_stands_on_every_page() {
    let lab = Lab::of_member(0, PORT);
    let cookie = enter(&lab, &lab.owner_link(0)).await;
    let proposal = format!("/console/proposals/{}", lab.world.deployment().id());
    // A page that failed has it too: what failed may be the reason to stop something.
    for path in PAGES.into_iter().chain([proposal.as_str(), "/console/none", "/console/history/77"]) {
        let page = get(&lab, &cookie, path).await.text;
        assert!(page.contains("<a class=\"halt\" href=\"/console/halt\">"), "{path}: {page}");
    }
}

#[tokio::test]
async fn a_member_halts_with_the_key_and_the_circle_lifts() {
    let lab = Lab::of_member(0, PORT);
    let cookie = enter(&lab, &lab.owner_link(0)).await;
    let form = get(&lab, &cookie, "/console/halt?scope=service:minilm").await.text;
    assert!(
        form.contains("<option value=\"service:minilm\" selected>") && form.contains("Halt now"),
        "{form}"
    );
    for choice in ["value=\"circle\"", "value=\"node:node-2\"", "value=\"region:eu-1\""] {
        assert!(form.contains(choice), "{choice}: {form}");
    }
    let done = halt(&lab, &cookie, "scope=service:minilm&reason=it+answers+nonsense").await;
    assert_eq!(
        (done.status, &done.headers["location"]),
        (StatusCode::SEE_OTHER, &"/console/halts".parse().unwrap())
    );
    let signed = lab.world.state().halts[0].clone();
    assert!(signed.is_hybrid() && signed.halt.member == member(0) && signed.halt.scope == service());
    let page = get(&lab, &cookie, "/console/halts").await.text;
    let short = signed.halt.id().short();
    for expected in [
        "the service minilm",
        "it answers nonsense",
        "every slot of it, on any node",
        "1 of 3 control replicas",
        &format!("quorate lift {short}"),
    ] {
        assert!(page.contains(expected), "{expected}: {page}");
    }
    let lift = lab.world.propose(human_chain::lift(vec![signed.halt.clone()]), "fixed");
    let page = get(&lab, &cookie, "/console/halts").await.text;
    assert!(
        page.contains(&format!("/console/proposals/{}", lift.id())) && page.contains("0 of 2 signed"),
        "{page}"
    );
    (0..2).for_each(|at| lab.world.vote(at, &lift, Choice::Approve));
    let page = get(&lab, &cookie, "/console/halts").await.text;
    let (stands, lifted) = page.split_once("Lifted").unwrap();
    assert!(stands.contains("Nothing is halted.") && lifted.contains(&short), "{page}");
}

/// The overview begins with what is halted; a halt that was lifted, or that no member signed, is not in it.
#[tokio::test]
async fn the_overview_names_what_is_halted() {
    let lab = Lab::of_member(0, PORT);
    let cookie = enter(&lab, &lab.owner_link(0)).await;
    assert!(!get(&lab, &cookie, "/console").await.text.contains("<h2>Halted</h2>"), "nothing is halted");
    let halt = lab.world.halt(1, service(), HOSTILE);
    let page = get(&lab, &cookie, "/console").await.text;
    let (before, banner) = page.split_once("<h2>Halted</h2>").unwrap();
    assert!(!before.contains("What runs") && banner.contains("the service minilm"), "{page}");
    assert!(
        banner.contains("halted by bob since 20") && banner.contains("href=\"/console/halts\""),
        "{page}"
    );
    assert!(page.contains("&lt;img src=x") && !page.contains("<img"), "{page}");
    // Attack: a replica shows a halt that its member did not sign.
    {
        let mut state = lab.world.state();
        let mut forged = state.halts[0].clone();
        forged.halt.scope = HaltScope::Circle;
        state.halts.push(forged);
    }
    let page = get(&lab, &cookie, "/console").await.text;
    assert!(!page.contains("the whole circle</bdi></strong>"), "{page}");
    let lift = lab.world.propose(human_chain::lift(vec![halt]), "fixed");
    (0..2).for_each(|at| lab.world.vote(at, &lift, Choice::Approve));
    let page = get(&lab, &cookie, "/console").await.text;
    assert!(!page.contains("<h2>Halted</h2>"), "{page}");
}

/// The pages need no leader: a member halts when no vote is possible any more.
#[tokio::test]
async fn a_halt_needs_no_leader() {
    let lab = Lab::of_member(0, PORT);
    let cookie = enter(&lab, &lab.owner_link(0)).await;
    lab.world.state().no_leader = true;
    // Positive control: what is open for votes is not known, and the page says so.
    let inbox = get(&lab, &cookie, "/console/inbox").await;
    assert!(inbox.status == StatusCode::OK && inbox.text.contains("open proposals are not known"));
    assert!(!inbox.text.contains("the archive grows"), "{}", inbox.text);
    let (form, list) =
        (get(&lab, &cookie, "/console/halt").await, get(&lab, &cookie, "/console/halts").await);
    assert!(form.status == StatusCode::OK && form.text.contains("Halt now"), "{}", form.text);
    assert!(list.status == StatusCode::OK && list.text.contains("A halt needs no leader."), "{}", list.text);
    assert_eq!(halt(&lab, &cookie, "scope=circle").await.status, StatusCode::SEE_OTHER);
    assert_eq!(lab.world.state().halts[0].halt.scope, HaltScope::Circle);
}

/// Attack: a page elsewhere halts with the member's session; a token, or a console without a key, halts.
#[tokio::test]
async fn a_halt_comes_from_our_page_and_from_a_member() {
    let lab = Lab::of_member(0, PORT);
    let cookie = enter(&lab, &lab.owner_link(0)).await;
    let foreign = [("sec-fetch-site", "cross-site"), ("cookie", cookie.as_str())];
    for path in ["/console/halt", "/console/halt/compose", "/console/halt/passkey"] {
        let refused = ask(&lab, Method::POST, path, &foreign, "scope=circle").await;
        assert_eq!(refused.status, StatusCode::FORBIDDEN, "{path}");
        assert!(refused.text.contains("console-origin-refused"), "{path}: {}", refused.text);
    }
    let replica = Lab::of_replica(PORT, Clock::machine());
    for code in [replica.token_link(), replica.member_link(1)] {
        let cookie = enter(&replica, &code).await;
        let page = get(&replica, &cookie, "/console/halt").await.text;
        // A member with a passkey sees the form, without the button of a key.
        assert!(!page.contains("Halt now"), "{page}");
        let refused = halt(&replica, &cookie, "scope=circle").await;
        assert_eq!(refused.status, StatusCode::FORBIDDEN);
        assert!(refused.text.contains("console-no-key"), "{}", refused.text);
    }
    assert!(lab.world.state().halts.is_empty() && replica.world.state().halts.is_empty());
    // Positive control: the same request of our own page is a halt.
    assert_eq!(halt(&lab, &cookie, "scope=circle").await.status, StatusCode::SEE_OTHER);
    assert_eq!(lab.world.state().halts.len(), 1);
}

#[tokio::test]
async fn a_halt_of_nothing_or_with_a_page_of_a_reason_is_not_signed() {
    let lab = Lab::of_member(0, PORT);
    let cookie = enter(&lab, &lab.owner_link(0)).await;
    let long = |length: usize| format!("scope=circle&reason={}", "x".repeat(length));
    for (body, code) in [
        ("scope=".to_string(), "request-invalid"),
        ("reason=smoke".into(), "request-invalid"),
        ("scope=planet:earth".into(), "request-invalid"),
        ("scope=service:".into(), "request-invalid"),
        ("scope=region:".into(), "request-invalid"),
        ("scope=circle&more=1".into(), "request-invalid"),
        (long(HALT_REASON_BYTES_MAX + 1), "governance-invalid"),
    ] {
        let refused = halt(&lab, &cookie, &body).await;
        assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{body}");
        assert!(refused.text.contains(code), "{body}: {}", refused.text);
    }
    assert!(lab.world.state().halts.is_empty());
    // Positive control: the longest reason is taken.
    assert_eq!(halt(&lab, &cookie, &long(HALT_REASON_BYTES_MAX)).await.status, StatusCode::SEE_OTHER);
}

/// Attack: the reasons of a halt and of a vote are markup, and a vote's reason is put into a member's mouth.
#[tokio::test]
async fn reasons_are_text_and_are_those_of_their_members() {
    let lab = Lab::of_member(0, PORT);
    let cookie = enter(&lab, &lab.owner_link(0)).await;
    lab.world.halt(1, service(), HOSTILE);
    let proposal = lab.world.deployment();
    lab.world.vote_because(1, &proposal, Choice::Approve, HOSTILE);
    let path = format!("/console/proposals/{}", proposal.id());
    for path in ["/console/halts", path.as_str()] {
        let page = get(&lab, &cookie, path).await.text;
        assert!(page.contains("&lt;img src=x"), "{path}: shown as text: {page}");
        assert!(!page.contains("<img") && !page.contains("<script>") && !page.contains("<style>"), "{path}");
        assert!(!page.contains(['\u{202e}', '\u{2066}', '\u{200b}']), "{path}");
    }
    // Control adds a ballot in carol's name, and a second one in bob's: neither speaks for them.
    {
        let mut state = lab.world.state();
        let view = state.open.get_mut(&proposal.id()).unwrap();
        for name in [1, 2] {
            let mut forged = view.ballots[0].clone();
            (forged.ballot.member, forged.ballot.reason) = (member(name), "buy now".into());
            view.ballots.push(forged);
        }
    }
    let page = get(&lab, &cookie, &path).await.text;
    assert!(!page.contains("buy now") && page.matches("does not count").count() == 2, "{page}");
    // Positive control: what carol signed is shown.
    {
        let mut state = lab.world.state();
        state.open.get_mut(&proposal.id()).unwrap().ballots.truncate(1);
    }
    lab.world.vote_because(2, &proposal, Choice::Reject, "buy now");
    assert!(get(&lab, &cookie, &path).await.text.contains("buy now"));
}

#[tokio::test]
async fn a_vote_carries_its_reason_into_the_history() {
    let lab = Lab::of_member(0, PORT);
    let cookie = enter(&lab, &lab.owner_link(0)).await;
    let proposal = lab.world.deployment();
    let own = [("sec-fetch-site", "same-origin"), ("cookie", cookie.as_str())];
    let path = format!("/console/proposals/{}/vote", proposal.id());
    let words = crate::world::words(&proposal).replace(' ', "+");
    let with = |reason: &str| format!("words={words}&choice=approve&reason={reason}");
    let refused = ask(&lab, Method::POST, &path, &own, &with(&"x".repeat(257))).await;
    assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{}", refused.text);
    assert!(refused.text.contains("governance-invalid") && lab.world.state().delivered.is_empty());
    // Positive control: a sentence is signed, and shown where the vote is.
    let done = ask(&lab, Method::POST, &path, &own, &with("we+measured+it")).await;
    assert_eq!(done.status, StatusCode::SEE_OTHER, "{}", done.text);
    assert_eq!(lab.world.state().delivered[0].ballot.reason, "we measured it");
    lab.world.vote(1, &proposal, Choice::Approve);
    for path in [format!("/console/proposals/{}", proposal.id()), "/console/history/2".into()] {
        let page = get(&lab, &cookie, &path).await.text;
        assert!(page.contains("we measured it") && page.contains("none given"), "{path}: {page}");
    }
}

/// A member halts with a click and a choice, by keyboard from any page.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_halts_by_keyboard() {
    let mut desk = Desk::of_member(0).await;
    desk.go("/console/members");
    for _ in 0..20 {
        if desk.browser.eval("document.activeElement.className === 'halt'") == true {
            break;
        }
        desk.browser.press_tab();
    }
    desk.browser.press_enter();
    assert!(desk.browser.text().contains("Your signature alone stops it"), "{}", desk.browser.text());
    desk.browser.eval("document.getElementById('scope').value = 'node:node-2'");
    desk.browser.eval("document.getElementById('reason').focus()");
    desk.browser.type_text("smoke in the hall");
    desk.browser.press_enter();
    let text = desk.browser.text();
    assert!(text.contains("the node node-2") && text.contains("smoke in the hall"), "{text}");
    assert_eq!(desk.lab.world.state().halts.len(), 1);
    assert_eq!(desk.browser.barriers(), Vec::<String>::new());
}

/// A member halts at a replica by passkey, where passkeys also vote; without its user it halts nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_passkey_halts_at_a_replica_without_a_leader() {
    let mut office = Office::open().await;
    office.register("phone");
    office.browser.open(&format!("{}/console", office.replica.origins.address()));
    office.browser.leave_by("document.querySelector('[data-act=enter]').click()");
    office.own.world.state().no_leader = true;
    office.browser.open(&format!("{}/console/halt?scope=service:minilm", office.replica.origins.address()));
    for (width, theme) in LOOKS {
        office.browser.show_as(width, theme);
        assert_eq!(office.browser.barriers(), Vec::<String>::new(), "{width} {theme}");
        office.browser.picture(&format!("replica-halt-passkey-{width}-{theme}"));
    }
    office.fill("reason", "it answers nonsense");
    let verified = |is: bool| json!({"authenticatorId": office.authenticator, "isUserVerified": is});
    let (unverified, verified) = (verified(false), verified(true));
    office.browser.call("WebAuthn.setUserVerified", &unverified);
    office.browser.eval("document.querySelector('[data-act=halt]').click()");
    office.browser.until("!document.querySelector('[data-refusal]').hidden");
    assert!(office.own.world.state().halts.is_empty(), "an authenticator without its user halts nothing");
    // Positive control: with its owner, the same page halts.
    office.browser.call("WebAuthn.setUserVerified", &verified);
    office.browser.leave_by("document.querySelector('[data-act=halt]').click()");
    let text = office.browser.text();
    assert!(text.contains("the service minilm") && text.contains("alice, by passkey"), "{text}");
    let signed = office.own.world.state().halts[0].clone();
    assert!(
        !signed.is_hybrid() && signed.halt.scope == service() && signed.halt.reason == "it answers nonsense"
    );
    let circle = office.own.world.state().circle.clone();
    assert!(human_chain::check_halt(&circle, signed.clone()).is_ok(), "every node verifies it");
    // Attack: the assertion is handed in for the whole circle.
    let mut wider = signed;
    wider.halt.scope = HaltScope::Circle;
    let refused = human_chain::check_halt(&circle, wider).expect_err("another halt");
    assert_eq!(refused.code(), protocol::error_code::PASSKEY_CHALLENGE);
}
