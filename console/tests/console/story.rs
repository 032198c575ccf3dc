//! One member's story in a real Chromium with a virtual authenticator: read, approve by passkey, quorum,
//! running, halt, lift. Each page on the way is looked at in two widths and both themes.

use crate::cdp::{Browser, LOOKS};
use crate::passkeys::Office;
use crate::world::words;
use protocol::governance::Choice;

/// Looks at the page that is open, in two widths and both themes.
fn look(browser: &mut Browser, name: &str) {
    let here = browser.eval("location.origin + location.pathname + location.search");
    let here = here.as_str().unwrap().to_string();
    for (width, theme) in LOOKS {
        browser.show_as(width, theme);
        browser.open(&here);
        let place = format!("{name} at {width} px, {theme}");
        let scroll = browser.eval("document.documentElement.scrollWidth").as_u64().unwrap();
        assert!(scroll <= u64::from(width), "{place} is {scroll} px wide");
        assert_eq!(browser.barriers(), Vec::<String>::new(), "{place}");
        assert_eq!(browser.errors(), Vec::<String>::new(), "{place}");
        browser.picture(&format!("story-{name}-{width}-{theme}"));
    }
}

fn at_replica(office: &mut Office, path: &str) {
    let url = format!("{}{path}", office.replica.origins.address());
    office.browser.open(&url);
}

fn at_home(office: &mut Office, path: &str) {
    let url = format!("{}{path}", office.own.origins.address());
    office.browser.open(&url);
}

/// Approves the larger deployment by passkey at a replica; bob's key completes the quorum.
fn approve_and_run(office: &mut Office) {
    let proposal = office.own.world.deployment();
    let path = format!("/console/proposals/{}", proposal.id());
    at_replica(office, &path);
    look(&mut office.browser, "proposal");
    office.fill("words", &words(&proposal));
    office.browser.leave_by("document.querySelector('[data-choice=approve]').click()");
    let text = office.browser.text();
    assert!(text.contains("approves, by passkey") && text.contains("1 of 2 signed"), "{text}");
    look(&mut office.browser, "approved");
    office.own.world.vote(1, &proposal, Choice::Approve);
    at_replica(office, &path);
    assert!(office.browser.text().contains("quorum reached; the change is in force"));
    look(&mut office.browser, "in-force");
    at_replica(office, "/console");
    assert!(office.browser.text().contains("2 of 2 ready"), "{}", office.browser.text());
    look(&mut office.browser, "running");
}

/// Halts what runs by passkey, by the red button of the page that is open, while no leader answers.
fn halt_without_a_leader(office: &mut Office) {
    office.own.world.state().no_leader = true;
    office.browser.leave_by("document.querySelector('a.halt').click()");
    look(&mut office.browser, "halt");
    office.fill("scope", "service:minilm");
    office.fill("reason", "it answers nonsense");
    office.browser.leave_by("document.querySelector('[data-act=halt]').click()");
    let text = office.browser.text();
    assert!(text.contains("the service minilm") && text.contains("alice, by passkey"), "{text}");
    look(&mut office.browser, "halted");
    office.own.world.state().no_leader = false;
    at_replica(office, "/console");
    assert!(office.browser.text().contains("halted by alice"), "{}", office.browser.text());
    look(&mut office.browser, "overview-halted");
}

/// Lifts the halt. A lift is a sensitive change: alice signs it with her key, on her own machine.
fn lift(office: &mut Office) {
    let world = office.own.world.clone();
    let halt = world.state().halts[0].halt.clone();
    let proposal = world.propose(human_chain::lift(vec![halt]), "fixed in the next version");
    let path = format!("/console/proposals/{}", proposal.id());
    at_replica(office, &path);
    assert_eq!(office.browser.eval("document.querySelectorAll('[data-choice]').length"), 0);
    let text = office.browser.text();
    assert!(text.contains("Nothing on this machine can sign for you"), "no passkey votes here: {text}");
    at_home(office, &path);
    look(&mut office.browser, "lift");
    office.fill("words", &words(&proposal));
    office.browser.leave_by("document.querySelector('button[value=approve]').click()");
    assert!(office.browser.text().contains("1 of 2 signed"), "{}", office.browser.text());
    at_home(office, "/console/halts");
    let text = office.browser.text();
    assert!(text.contains("the service minilm") && !text.contains("Nothing is halted."), "one key: {text}");
    world.vote(1, &proposal, Choice::Approve);
    at_home(office, "/console/halts");
    assert!(office.browser.text().contains("Nothing is halted."), "{}", office.browser.text());
    look(&mut office.browser, "lifted");
    at_home(office, "/console");
    let text = office.browser.text();
    assert!(text.contains("2 of 2 ready") && !text.contains("halted by alice"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_governs_in_a_browser_from_a_vote_to_a_lift() {
    let mut office = Office::open().await;
    office.register("phone");
    at_home(&mut office, "/console/passkeys");
    look(&mut office.browser, "passkeys");
    at_replica(&mut office, "/console");
    look(&mut office.browser, "sign-in");
    office.browser.leave_by("document.querySelector('[data-act=enter]').click()");
    assert!(office.browser.text().contains("Signed in as member alice"), "{}", office.browser.text());
    approve_and_run(&mut office);
    halt_without_a_leader(&mut office);
    lift(&mut office);
}
