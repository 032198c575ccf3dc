//! Passkeys in a real Chromium with a virtual authenticator: registered, signed in with, voted with.

use crate::browser::{listener, serve};
use crate::cdp::Browser;
use crate::routes::{PORT, ask, enter, get};
use crate::world::{Lab, World, member, words};
use axum::http::{Method, StatusCode};
use console::PageSource;
use host::Clock;
use protocol::governance::{BallotSignature, Change, Choice, Proposal};
use serde_json::json;

/// Two consoles of one circle, alice's own and a replica's, and a browser with an authenticator.
pub(crate) struct Office {
    pub(crate) own: Lab,
    pub(crate) replica: Lab,
    pub(crate) browser: Browser,
    pub(crate) authenticator: String,
}

impl Office {
    /// Signs in at alice's own console.
    pub(crate) async fn open() -> Self {
        let ((first, own_port), (second, replica_port)) = (listener().await, listener().await);
        let world = World::new(PageSource::OwnMachine, Some(0), &[own_port, replica_port]);
        let replica = Lab::new(world.replica(), replica_port, Clock::machine());
        let own = Lab::new(world, own_port, Clock::machine());
        serve(first, own.router.clone());
        serve(second, replica.router.clone());
        let mut browser = Browser::start();
        let authenticator = browser.add_authenticator();
        browser.open(&own.origins.sign_in_url(&own.owner_link(0)));
        browser.leave_by("document.querySelector('button').click()");
        Self { own, replica, browser, authenticator }
    }

    pub(crate) fn fill(&mut self, field: &str, text: &str) {
        self.browser.eval(&format!("document.getElementById('{field}').value = {}", json!(text)));
    }

    /// Makes a passkey, and signs the change with alice's key.
    pub(crate) fn register(&mut self, label: &str) {
        self.browser.open(&format!("{}/console/passkeys", self.own.origins.address()));
        self.fill("label", label);
        self.browser.leave_by("document.querySelector('[data-act=register]').click()");
        assert!(self.browser.text().contains("Proposal"), "{}", self.browser.text());
        let proposal = {
            let state = self.own.world.state();
            let mut open = state.open.values().map(|view| &view.proposal);
            open.find(|proposal| matches!(proposal.change, Change::SetPasskeys { .. })).unwrap().clone()
        };
        self.fill("words", &words(&proposal));
        self.browser.leave_by("document.querySelector('button[value=approve]').click()");
        assert!(self.browser.text().contains("the change is in force"), "{}", self.browser.text());
    }

    /// Opens a proposal at the replica and types its words.
    fn read_at_replica(&mut self, proposal: &Proposal) {
        self.browser.open(&format!("{}/console/proposals/{}", self.replica.origins.address(), proposal.id()));
        self.fill("words", &words(proposal));
    }
}

/// A member registers a passkey on the own machine, signs in at a replica, and votes beside one with a key.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_registers_a_passkey_signs_in_and_votes_with_it() {
    let mut office = Office::open().await;
    office.register("phone");
    assert_eq!(office.own.world.state().circle.passkeys(&member(0)).len(), 1);
    office.browser.open(&format!("{}/console/passkeys", office.own.origins.address()));
    assert!(office.browser.text().contains("phone"), "{}", office.browser.text());
    assert_eq!(office.browser.barriers(), Vec::<String>::new());
    office.browser.picture("own-passkeys-1280-light");

    office.browser.open(&format!("{}/console", office.replica.origins.address()));
    assert_eq!(office.browser.barriers(), Vec::<String>::new());
    office.browser.leave_by("document.querySelector('[data-act=enter]').click()");
    assert!(office.browser.text().contains("Signed in as member alice"), "{}", office.browser.text());

    let proposal = office.own.world.deployment();
    office.own.world.state().delivered.clear();
    office.read_at_replica(&proposal);
    assert_eq!(office.browser.barriers(), Vec::<String>::new());
    office.fill("question", "why six?");
    office.browser.leave_by("document.querySelector('[data-act=comment]').click()");
    assert!(office.browser.text().contains("why six?"), "{}", office.browser.text());
    let asked = office.own.world.state().open[&proposal.id()].comments[0].clone();
    assert!(!asked.is_hybrid() && asked.comment.member == member(0), "{asked:?}");
    office.fill("words", &words(&proposal));
    office.browser.leave_by("document.querySelector('[data-choice=approve]').click()");
    let text = office.browser.text();
    assert!(text.contains("approves, by passkey") && text.contains("1 of 2 signed"), "{text}");
    {
        let state = office.own.world.state();
        assert!(matches!(state.delivered[0].signature, BallotSignature::Passkey(_)));
    }
    office.own.world.vote(1, &proposal, Choice::Approve);
    office.browser.open(&format!("{}/console/proposals/{}", office.replica.origins.address(), proposal.id()));
    assert!(office.browser.text().contains("quorum reached; the change is in force"));
    office.browser.open(&format!("{}/console", office.replica.origins.address()));
    assert!(office.browser.text().contains("2 of 2 ready"), "{}", office.browser.text());
    assert_eq!(office.browser.errors(), Vec::<String>::new());
}

/// Attack: a passkey is used without its owner, and a vote is sent without the words.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_passkey_signs_nothing_unverified_or_unread() {
    let mut office = Office::open().await;
    office.register("phone");
    office.browser.open(&format!("{}/console", office.replica.origins.address()));
    office.browser.leave_by("document.querySelector('[data-act=enter]').click()");
    let proposal = office.own.world.deployment();
    office.own.world.state().delivered.clear();
    office.read_at_replica(&proposal);
    let verified = |is: bool| json!({"authenticatorId": office.authenticator, "isUserVerified": is});
    let (unverified, verified) = (verified(false), verified(true));
    office.browser.call("WebAuthn.setUserVerified", &unverified);
    office.browser.eval("document.querySelector('[data-choice=approve]').click()");
    // The form of the questions has a refusal of its own.
    let refusal = "document.querySelector('[data-choice=approve]').form.querySelector('[data-refusal]')";
    office.browser.until(&format!("!{refusal}.hidden"));
    office.browser.call("WebAuthn.setUserVerified", &verified);
    office.fill("words", "other words");
    office.browser.eval("document.querySelector('[data-choice=approve]').click()");
    office.browser.until(&format!("{refusal}.textContent.includes('words-mismatch')"));
    assert!(office.own.world.state().delivered.is_empty(), "nothing was signed");
    // Positive control: with the words and its owner, the same page votes.
    office.fill("words", &words(&proposal));
    office.browser.leave_by("document.querySelector('[data-choice=approve]').click()");
    assert_eq!(office.own.world.state().delivered.len(), 1);
}

/// Attack: a page of a replica registers a key of its own for a member.
#[tokio::test]
async fn a_replica_registers_no_passkey() {
    let lab = Lab::of_replica(PORT, Clock::machine());
    let cookie = enter(&lab, &lab.member_link(0)).await;
    let page = get(&lab, &cookie, "/console/passkeys").await.text;
    assert!(page.contains("where your key signs the change") && !page.contains("Make a passkey"), "{page}");
    let own = [("sec-fetch-site", "same-origin"), ("cookie", cookie.as_str())];
    for path in ["/console/passkeys/options", "/console/passkeys/add", "/console/passkeys/drop"] {
        let refused = ask(&lab, Method::POST, path, &own, "credential=00").await;
        assert_eq!(refused.status, StatusCode::FORBIDDEN, "{path}: {}", refused.text);
        assert!(refused.text.contains("console-no-key"), "{path}: {}", refused.text);
    }
    // Positive control: at her own console the same request is answered.
    let lab = Lab::of_member(0, PORT);
    let cookie = enter(&lab, &lab.owner_link(0)).await;
    let own = [("sec-fetch-site", "same-origin"), ("cookie", cookie.as_str())];
    let options = ask(&lab, Method::POST, "/console/passkeys/options", &own, "").await;
    assert!(options.status == StatusCode::OK && options.text.contains("localhost"), "{}", options.text);
}
