//! The pages in a real Chromium: they fit, are accessible, ask no other origin, and work by keyboard.

use crate::attacks::HOSTILE;
use crate::cdp::{Browser, LOOKS};
use crate::jobs;
use crate::world::{Lab, words};
use axum::Router;
use axum::response::Html;
use axum::routing::get;
use host::{Clock, wall_clock};
use protocol::ProposalId;
use protocol::api::Finding;
use protocol::governance::{Change, Choice};
use protocol::halt::HaltScope;
use serde_json::json;
use tokio::net::TcpListener;

/// Listens on a free port.
pub(crate) async fn listener() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

/// Serves a router until the test ends.
pub(crate) fn serve(listener: TcpListener, router: Router) {
    tokio::spawn(async move { axum::serve(listener, router).await });
}

/// A console of alice's machine, and a browser that is signed in.
pub(crate) struct Desk {
    pub(crate) lab: Lab,
    pub(crate) browser: Browser,
    base: String,
}

impl Desk {
    pub(crate) async fn of_member(at: usize) -> Self {
        let (listener, port) = listener().await;
        let lab = Lab::of_member(at, port);
        let code = lab.owner_link(at);
        Self::open(listener, lab, &code)
    }

    async fn of_replica() -> Self {
        let (listener, port) = listener().await;
        let lab = Lab::of_replica(port, Clock::machine());
        let code = lab.token_link();
        Self::open(listener, lab, &code)
    }

    /// Signs in by the link, with a click.
    fn open(listener: TcpListener, lab: Lab, code: &str) -> Self {
        serve(listener, lab.router.clone());
        let mut browser = Browser::start();
        browser.open(&lab.origins.sign_in_url(code));
        browser.leave_by("document.querySelector('button').click()");
        let base = lab.origins.address().to_string();
        assert!(browser.text().contains("Overview"), "{}", browser.text());
        Self { lab, browser, base }
    }

    pub(crate) fn go(&mut self, path: &str) {
        let url = format!("{}{path}", self.base);
        self.browser.open(&url);
    }
}

/// Returns the paths of all pages, with names for their pictures.
fn pages(lab: &Lab) -> Vec<(String, &'static str)> {
    let ids: Vec<_> = lab.world.state().open.values().map(|view| view.proposal.clone()).collect();
    let forgets = ids.iter().find(|proposal| matches!(proposal.change, Change::ForgetModel { .. })).unwrap();
    let mut all = vec![
        ("/console".into(), "overview"),
        ("/console/inbox".into(), "inbox"),
        (format!("/console/proposals/{}", lab.world.deployment().id()), "proposal"),
        (format!("/console/proposals/{}", forgets.id()), "proposal-rejected"),
        ("/console/history".into(), "history"),
        ("/console/history/1".into(), "decision"),
        ("/console/members".into(), "members"),
        ("/console/nodes".into(), "nodes"),
        ("/console/halts".into(), "halts"),
        ("/console/halt?scope=service:minilm".into(), "halt"),
    ];
    let job = jobs::give_jobs(&lab.world);
    all.extend([("/console/jobs".into(), "jobs"), (format!("/console/jobs/{job}"), "job")]);
    all.push(("/console/projects".into(), "projects"));
    all.push(("/console/enter?code=0123abcd".into(), "sign-in"));
    all
}

/// Makes a draft and a change that waits for a veto; returns their pages, and that of a member's passkeys.
fn rarer_pages(lab: &Lab, kind: &str) -> Vec<(String, &'static str)> {
    let world = &lab.world;
    let draft = world.propose(Change::RemoveNode { node: "node-1".parse().unwrap() }, "its rack is given up");
    world.draft(&draft);
    let circle = world.state().circle.clone();
    let (members, policy) = (circle.members().cloned().collect(), circle.policy().clone());
    let change = Change::SetMembers { members, policy, proofs: [].into() };
    let waiting = world.propose(change, "the rules of before");
    world.wait_for_veto(&waiting, wall_clock().plus(3_600_000));
    let path = |id: ProposalId| format!("/console/proposals/{id}");
    let mut all = vec![(path(draft.id()), "draft"), (path(waiting.id()), "waiting")];
    if kind == "own" {
        all.push(("/console/passkeys".into(), "passkeys"));
    }
    all
}

/// Opens each page at two widths, in two themes.
fn look_at_every_page(desk: &mut Desk, kind: &str) {
    let halt = desk.lab.world.halt(1, HaltScope::Node("node-2".parse().unwrap()), "smoke in the hall");
    desk.lab.world.propose(human_chain::lift(vec![halt]), "the fan was replaced");
    let proposal = desk.lab.world.deployment();
    let question = desk.lab.world.comment(1, &proposal, None, "why six?\nthree have been enough for a year");
    desk.lab.world.comment(2, &proposal, Some(question), "the archive grows by a third in December");
    desk.lab.world.comment(2, &proposal, None, &format!("and what of {}?", "a-very-long-name".repeat(9)));
    let mut all = pages(&desk.lab);
    all.extend(rarer_pages(&desk.lab, kind));
    for (path, name) in all {
        for (width, theme) in LOOKS {
            desk.browser.show_as(width, theme);
            desk.go(&path);
            let place = format!("{path} at {width} px, {theme}");
            let scroll = desk.browser.eval("document.documentElement.scrollWidth").as_u64().unwrap();
            assert!(scroll <= u64::from(width), "{place} is {scroll} px wide");
            assert_eq!(desk.browser.barriers(), Vec::<String>::new(), "{place}");
            assert_eq!(desk.browser.errors(), Vec::<String>::new(), "{place}");
            let button = "getComputedStyle(document.querySelector('a.halt') ?? document.body)\
                          .backgroundColor.match(/\\d+/g).map(Number)";
            let colour: Vec<u64> = serde_json::from_value(desk.browser.eval(button)).unwrap();
            let is_red = colour[0] > colour[1] + 60 && colour[0] > colour[2] + 60;
            assert_eq!(is_red, name != "sign-in", "{place}: the way to halt is {colour:?}");
            let foreign: Vec<String> =
                desk.browser.requests().into_iter().filter(|url| !url.starts_with(&desk.base)).collect();
            assert_eq!(foreign, Vec::<String>::new(), "{place}");
            desk.browser.picture(&format!("{kind}-{name}-{width}-{theme}"));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_page_of_a_member_fits_and_is_accessible() {
    let mut desk = Desk::of_member(0).await;
    look_at_every_page(&mut desk, "own");
    // Positive control: a page that is too wide, and one with faint text, are found.
    desk.browser.show_as(360, "light");
    desk.go("/console");
    desk.browser.eval("document.querySelector('main').style.width = '50rem'");
    assert!(desk.browser.eval("document.documentElement.scrollWidth").as_u64().unwrap() > 360);
    desk.browser.eval("document.querySelector('h1').style.color = '#eeeeee'");
    assert!(desk.browser.barriers().iter().any(|found| found.starts_with("color-contrast")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_page_of_a_replica_fits_and_is_accessible() {
    let mut desk = Desk::of_replica().await;
    look_at_every_page(&mut desk, "replica");
}

/// A member reads, approves with the keyboard alone, and sees the quorum and the running service.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_approves_by_keyboard_until_the_quorum_is_reached() {
    let mut desk = Desk::of_member(0).await;
    let proposal = desk.lab.world.deployment();
    desk.go("/console/inbox");
    let title =
        human_chain::render(&proposal).text.lines().next().unwrap().trim_start_matches("| ").to_string();
    let is_link = format!("document.activeElement.textContent === {}", json!(title));
    for _ in 0..40 {
        if desk.browser.eval(&is_link) == true {
            break;
        }
        desk.browser.press_tab();
    }
    desk.browser.press_enter();
    let rendering = human_chain::render(&proposal);
    let shown = desk.browser.eval("document.querySelector('.rendering').textContent");
    assert_eq!(shown, rendering.text, "the bytes of the terminal");
    let shown =
        desk.browser.eval("[...document.querySelectorAll('.words li')].map((w) => w.textContent).join(' ')");
    assert_eq!(shown, rendering.words.join(" "));
    desk.browser.eval("document.getElementById('question').focus()");
    desk.browser.type_text("why six?");
    desk.browser.press_tab();
    desk.browser.press_enter();
    assert!(desk.browser.text().contains("alice asks"), "{}", desk.browser.text());
    for _ in 0..40 {
        if desk.browser.eval("document.activeElement.id === 'words'") == true {
            break;
        }
        desk.browser.press_tab();
    }
    desk.browser.type_text("other words");
    desk.browser.press_enter();
    assert!(desk.browser.text().contains("words-mismatch"), "{}", desk.browser.text());
    assert!(desk.lab.world.state().delivered.is_empty());
    desk.browser.eval("document.getElementById('words').focus()");
    desk.browser.type_text(&words(&proposal));
    desk.browser.press_enter();
    assert!(desk.browser.text().contains("1 of 2 signed"), "{}", desk.browser.text());
    assert_eq!(desk.lab.world.state().delivered.len(), 1);
    desk.lab.world.vote(1, &proposal, Choice::Approve);
    desk.go(&format!("/console/proposals/{}", proposal.id()));
    assert!(desk.browser.text().contains("quorum reached; the change is in force"));
    desk.go("/console");
    assert!(desk.browser.text().contains("2 of 2 ready"), "{}", desk.browser.text());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_page_reads_without_script() {
    let (listener, port) = listener().await;
    let lab = Lab::of_replica(port, Clock::machine());
    let code = lab.token_link();
    serve(listener, lab.router.clone());
    let mut browser = Browser::start();
    browser.call("Emulation.setScriptExecutionDisabled", &json!({"value": true}));
    browser.open(&lab.origins.sign_in_url(&code));
    browser.leave_by("document.querySelector('button').click()");
    for (path, name) in pages(&lab) {
        browser.open(&format!("{}{path}", lab.origins.address()));
        let text = browser.text();
        assert!(
            text.contains(if name == "sign-in" { "Sign in" } else { "Signed in as token ops" }),
            "{path}: {text}"
        );
    }
}

/// Attack: text of others is markup and code.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn text_of_others_runs_nothing_and_hides_nothing() {
    let mut desk = Desk::of_member(0).await;
    let proposal = desk.lab.world.propose(Change::RemoveNode { node: "node-1".parse().unwrap() }, HOSTILE);
    {
        let mut state = desk.lab.world.state();
        let status = state.report.status.as_mut().unwrap();
        status.findings.push(Finding { message: HOSTILE.into(), next: HOSTILE.into() });
    }
    for path in ["/console".to_string(), format!("/console/proposals/{}", proposal.id())] {
        desk.go(&path);
        assert_eq!(desk.browser.eval("window.taken === undefined"), true, "{path}");
        assert_eq!(
            desk.browser.eval("document.querySelectorAll('main img, main script, main style').length"),
            0
        );
        assert!(desk.browser.text().contains("<img src=x"), "{path}: shown as text");
        assert_eq!(desk.browser.errors(), Vec::<String>::new(), "{path}");
    }
    // Positive control: as markup, the same text would be an image. Trusted Types refuse that too.
    let made = desk.browser.eval(&format!(
        "(() => {{ try {{ document.body.innerHTML = {}; return 'made'; }} \
         catch (error) {{ return error.name; }} }})()",
        json!(HOSTILE)
    ));
    assert_eq!(made, "TypeError");
    let page = Html(format!("<!DOCTYPE html><title>t</title>{HOSTILE}"));
    let (foreign, port) = listener().await;
    serve(foreign, Router::new().route("/", get(move || std::future::ready(page.clone()))));
    desk.browser.open(&format!("http://127.0.0.1:{port}/"));
    desk.browser.until("window.taken === 1");
}

/// Attack: a page elsewhere sends the browser of a signed-in member here with a vote.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_elsewhere_cannot_vote_with_a_members_browser() {
    let mut desk = Desk::of_member(0).await;
    let proposal = desk.lab.world.deployment();
    let form = |base: &str| {
        format!(
            "<!DOCTYPE html><title>t</title><form method=post action='{base}/console/proposals/{}/vote'>\
             <input name=words value='{}'><input name=choice value=approve></form>",
            proposal.id(),
            words(&proposal)
        )
    };
    let page = Html(form(&desk.base));
    let (foreign, port) = listener().await;
    serve(foreign, Router::new().route("/", get(move || std::future::ready(page.clone()))));
    for host in ["127.0.0.1", "localhost"] {
        desk.browser.open(&format!("http://{host}:{port}/"));
        desk.browser.leave_by("document.querySelector('form').submit()");
        assert!(desk.browser.text().contains("console-origin-refused"), "{host}: {}", desk.browser.text());
    }
    assert!(desk.lab.world.state().delivered.is_empty(), "nothing was signed");
    // Positive control: the same fields in a page of ours are a vote.
    desk.go(&format!("/console/proposals/{}", proposal.id()));
    let fill = format!("document.getElementById('words').value = {}", json!(words(&proposal)));
    desk.browser.eval(&fill);
    desk.browser.leave_by("document.querySelector('button[value=approve]').click()");
    assert_eq!(desk.lab.world.state().delivered.len(), 1, "{}", desk.browser.text());
}
