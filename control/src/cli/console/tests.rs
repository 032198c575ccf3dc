//! Tests of a member's console without a leader: simulated replicas in simulated time, and the state that the
//! machine keeps.

use super::*;
use crate::cli::hostile::Desk;
use crate::client::ControlClient;
use crate::client::simulated::{Does, SimulatedReplicas};
use crate::head::HeadFile;
use crate::testing::{SampleCircle, history_page, manifest};
use bytes::Bytes;
use protocol::api::History;
use std::path::Path;

/// Three replicas that have this history, of which the first leads.
fn replicas(history: &Arc<Mutex<History>>) -> (ControlClient, Arc<SimulatedReplicas>) {
    let leads = Does::Leads(Duration::ZERO);
    let (client, replicas) =
        SimulatedReplicas::client(vec![leads, Does::Follows(Some(0)), Does::Follows(Some(0))]);
    let history = history.clone();
    replicas.serve(move |path| {
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        let after = query.split('&').find_map(|part| part.strip_prefix("after=")?.parse().ok());
        match path {
            "/v1/history" => {
                let page = history_page(&history.lock().expect("no panic"), after);
                Some(Bytes::from(serde_json::to_vec(&page).expect("JSON")))
            }
            "/v1/proposals" => {
                let none = Page::<ProposalView>::whole(vec![]);
                Some(Bytes::from(serde_json::to_vec(&none).expect("JSON")))
            }
            _ => None,
        }
    });
    (client, replicas)
}

fn heads(folder: &Path, circle: &SampleCircle) -> HeadFile {
    HeadFile::beside(&folder.join("context.json"), circle.state.id())
}

/// Opens a session as a console does for which no leader answers.
async fn kept(client: &ControlClient, heads: HeadFile) -> Option<Session> {
    Session::kept_with(client.clone(), heads).await.expect("no replica is needed")
}

/// The night in which control is lost: a member's console starts over what the machine verified before, takes
/// what the last replica adds, says how old that is, and halts.
#[tokio::test(start_paused = true)]
async fn a_console_starts_without_a_leader_and_halts_with_one_replica_left() {
    let folder = tempfile::tempdir().expect("temporary directory");
    let mut circle = SampleCircle::founded();
    let history = Arc::new(Mutex::new(circle.history.clone()));
    let (client, replicas) = replicas(&history);
    let place = heads(folder.path(), &circle);
    assert!(kept(&client, place.clone()).await.is_none(), "nothing was verified here before");
    let opened = Session::with_client(client.clone(), circle.state.id(), place.clone()).await;
    assert_eq!(opened.expect("positive control: a leader answers").circle.length(), 0);
    for replica in [0, 1, 2] {
        replicas.set(replica, Does::IsDead);
    }
    let alone = kept(&client, place.clone()).await.expect("kept");
    assert_eq!(alone.circle.head(), circle.state.head());
    assert!(alone.confirmed_at().is_some_and(|at| wall_clock().0.abs_diff(at.0) < 3_600_000));
    // One replica is back, with a decision that this machine has not seen, and without a leader.
    circle.decide(Change::Deploy(Box::new(manifest("bert"))), "run it");
    history.lock().expect("no panic").clone_from(&circle.history);
    replicas.set(1, Does::Follows(None));
    let session = kept(&client, place).await.expect("kept");
    assert_eq!(session.circle.head(), circle.state.head(), "what a replica has is verified and taken");
    let file = folder.path().join("alice.key");
    circle.members[0].save(&file).expect("saved");
    let desk = Desk::over(session, MemberKey::load(&file).expect("her key")).await;
    for path in ["/console", "/console/members", "/console/inbox", "/console/halts"] {
        let (page, head) = desk.send("GET", path, "").await;
        assert!(head.status.is_success() && page.contains("1 decision"), "{path}: {page}");
        assert!(page.contains("a leader confirmed it last at"), "{path}: {page}");
    }
    let (page, _) = desk.send("GET", "/console/history/1", "").await;
    assert!(page.contains("Decision 1 of 1") && page.contains("Start the service mine"), "{page}");
    let (page, head) = desk.send("POST", "/console/halt", "scope=circle&reason=smoke").await;
    assert_eq!(head.status, axum::http::StatusCode::SEE_OTHER, "{page}");
    let (page, _) = desk.send("GET", "/console/halts", "").await;
    assert!(page.contains("the whole circle") && page.contains("1 of 1 control replica"), "{page}");
    // The overview says what is halted, by whom and since when.
    let (page, _) = desk.send("GET", "/console", "").await;
    assert!(page.contains("<h2>Halted</h2>") && page.contains("halted by alice since"), "{page}");
}

/// Attack: the one replica that is left sends another history than the one that this machine verified.
#[tokio::test(start_paused = true)]
async fn a_replica_without_a_leader_adds_nothing_that_does_not_verify() {
    let folder = tempfile::tempdir().expect("temporary directory");
    let mut circle = SampleCircle::founded();
    let founded = (circle.state.clone(), circle.history.clone());
    circle.decide(Change::Deploy(Box::new(manifest("bert"))), "run it");
    let history = Arc::new(Mutex::new(circle.history.clone()));
    let (client, replicas) = replicas(&history);
    let place = heads(folder.path(), &circle);
    let opened = Session::with_client(client.clone(), circle.state.id(), place.clone()).await;
    let seen = opened.expect("an honest history").circle.head();
    [0, 2].into_iter().for_each(|replica| replicas.set(replica, Does::IsDead));
    replicas.set(1, Does::Follows(None));
    let honest = circle.history.clone();
    (circle.state, circle.history) = founded;
    let shorter = circle.history.clone();
    circle.decide(Change::Deploy(Box::new(manifest("llama"))), "run another");
    circle.decide(Change::Deploy(Box::new(manifest("bert"))), "and that");
    for shown in [circle.history.clone(), shorter, SampleCircle::founded().history, honest] {
        history.lock().expect("no panic").clone_from(&shown);
        let session = kept(&client, place.clone()).await.expect("it starts all the same");
        assert_eq!(session.circle.head(), seen);
    }
}

#[test]
fn an_age_is_described_in_words() {
    let at = Millis(1_795_404_316_810);
    let note = age_note(Some(at), at.plus(7_265_000));
    assert!(
        note.ends_with("confirmed it last at 2026-11-23 03:25:16.810 UTC, 2 hours 1 minute 5 seconds ago."),
        "{note}"
    );
    assert!(age_note(None, at).contains("no leader has confirmed it"));
}
