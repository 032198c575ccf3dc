//! Attacks on members by a hostile control: the real commands, against a server that shows what it likes.
//!
//! Each attack has a positive control: the same answers reach their aim when the guard has nothing to go by.

use super::{Cli, Environment, dispatch, failure};
use crate::context::Context;
use crate::testing::{SampleCircle, manifest, model_record, proposal_view};
use axum::extract::{Path as UrlPath, State};
use axum::routing::{get, post};
use axum::{Json, Router};
use clap::Parser;
use protocol::api::{History, Page, ProposalState, ProposalView};
use protocol::governance::{Change, Choice, Proposal, SignedBallot};
use protocol::model::ModelRecord;
use protocol::{Digest, ErrorCode, ModelRoot, ProposalId, error_code};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

/// Answers of a hostile control, and the ballots that it received.
struct Stub {
    history: History,
    proposals: Vec<ProposalView>,
    models: Vec<ModelRecord>,
    /// True if ballots are taken and not shown.
    hides_ballots: bool,
    received: Vec<SignedBallot>,
}

type StubState = State<Arc<Mutex<Stub>>>;

async fn cast(
    State(stub): StubState,
    UrlPath(id): UrlPath<ProposalId>,
    Json(ballot): Json<SignedBallot>,
) -> Json<ProposalView> {
    let mut stub = stub.lock().expect("no panic");
    stub.received.push(ballot.clone());
    let hides = stub.hides_ballots;
    let view = stub.proposals.iter_mut().find(|view| view.proposal.id() == id).expect("it was shown");
    if !hides {
        view.ballots.push(ballot);
    }
    Json(view.clone())
}

/// A member's machine, and the control that it talks to.
struct Lab {
    folder: tempfile::TempDir,
    circle: SampleCircle,
    stub: Arc<Mutex<Stub>>,
}

impl Lab {
    async fn new(circle: SampleCircle) -> Self {
        let folder = tempfile::tempdir().expect("temporary directory");
        let (history, hides_ballots) = (circle.history.clone(), false);
        let (proposals, models, received) = (vec![], vec![], vec![]);
        let stub = Arc::new(Mutex::new(Stub { history, proposals, models, hides_ballots, received }));
        let history =
            |State(stub): StubState| async move { Json(stub.lock().expect("no panic").history.clone()) };
        let proposals = |State(stub): StubState| async move {
            Json(Page { items: stub.lock().expect("no panic").proposals.clone() })
        };
        let models = |State(stub): StubState| async move {
            Json(Page { items: stub.lock().expect("no panic").models.clone() })
        };
        let router = Router::new()
            .route("/v1/history", get(history))
            .route("/v1/proposals", get(proposals))
            .route("/v1/proposals/{id}/ballots", post(cast))
            .route("/v1/models", get(models))
            .with_state(stub.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        tokio::spawn(async move { axum::serve(listener, router).await });
        circle.members[0].save(&folder.path().join("alice.key")).expect("saved");
        std::fs::write(folder.path().join("token"), "token").expect("written");
        let context = Context {
            name: "lab".into(),
            circle: circle.state.id(),
            control: vec![format!("http://{address}")],
            gateway: None,
            token_file: "token".into(),
            member_key_file: Some("alice.key".into()),
            node_directory: None,
            certificate_authority_file: None,
            file: PathBuf::new(),
        };
        let text = serde_json::to_vec(&context).expect("JSON");
        std::fs::write(folder.path().join("context.json"), text).expect("written");
        Self { folder, circle, stub }
    }

    fn stub(&self) -> MutexGuard<'_, Stub> {
        self.stub.lock().expect("no panic")
    }

    fn show(&self, views: Vec<ProposalView>) {
        self.stub().proposals = views;
    }

    fn received(&self) -> Vec<SignedBallot> {
        std::mem::take(&mut self.stub().received)
    }

    /// Runs a command of alice's; the code of its refusal.
    async fn run(&self, words: &[&str]) -> Result<(), Option<ErrorCode>> {
        let context = self.folder.path().join("context.json").display().to_string();
        let all = [&["quorate", "--context", &context], words].concat();
        let cli = Cli::try_parse_from(all).expect("a command");
        let environment = Environment { context: cli.context, output: cli.output };
        let outcome = dispatch(cli.command, &environment).await;
        outcome.map(|_| ()).map_err(|error| failure::code_of(&error))
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }
}

fn words_of(proposal: &Proposal) -> String {
    human_chain::render(proposal).words[..2].join(" ")
}

/// Attack: `quorate approve ID` is shown another proposal under this id.
#[tokio::test]
async fn no_ballot_is_signed_for_another_proposal_under_the_asked_id() {
    let lab = Lab::new(SampleCircle::founded()).await;
    let (asked, other) = (lab.circle.proposal("asked"), lab.circle.proposal("other"));
    let (id, prefix) = (asked.id().to_string(), asked.id().short());
    let mut forged = proposal_view(&other, vec![]);
    forged.id = asked.id();
    lab.show(vec![forged]);
    for given in [&id, &prefix] {
        for words in [words_of(&asked), words_of(&other)] {
            let refused = lab.run(&["approve", given, "--words", &words]).await;
            assert_eq!(refused, Err(Some(error_code::PROPOSAL_MISMATCH)));
        }
        assert_eq!(lab.run(&["review", given]).await, Err(Some(error_code::PROPOSAL_MISMATCH)));
    }
    assert_eq!(lab.run(&["review"]).await, Err(Some(error_code::PROPOSAL_MISMATCH)));
    assert!(lab.received().is_empty(), "nothing was signed");
    // Positive control: under an id of its own, the other proposal is signed.
    lab.show(vec![proposal_view(&other, vec![]), proposal_view(&asked, vec![])]);
    let own = other.id().to_string();
    assert_eq!(lab.run(&["approve", &own, "--words", &words_of(&other)]).await, Ok(()));
    assert_eq!(lab.received()[0].ballot.proposal, other.id());
}

/// Attack: a proposal is altered after a script learned its words.
#[tokio::test]
async fn no_ballot_is_signed_without_the_words_of_the_text() {
    let lab = Lab::new(SampleCircle::founded()).await;
    let (written_for, shown) = (lab.circle.proposal("as agreed"), lab.circle.proposal("altered"));
    lab.show(vec![proposal_view(&shown, vec![])]);
    let id = shown.id().to_string();
    for words in [words_of(&written_for), "yes".into(), String::new()] {
        let refused = lab.run(&["approve", &id, "--words", &words]).await;
        assert_eq!(refused, Err(Some(error_code::WORDS_MISMATCH)), "{words}");
    }
    assert_eq!(lab.run(&["reject", &id]).await, Err(Some(error_code::WORDS_MISMATCH)), "no terminal");
    assert!(Cli::try_parse_from(["quorate", "approve", &id, "--yes"]).is_err(), "nothing skips reading");
    assert!(lab.received().is_empty(), "nothing was signed");
    assert_eq!(lab.run(&["reject", &id, "--words", &words_of(&shown)]).await, Ok(()));
    assert_eq!(lab.received()[0].ballot.choice, Choice::Reject);
}

/// Attack: a ballot is taken, dropped, and said to be counted.
#[tokio::test]
async fn a_ballot_that_control_does_not_show_is_not_recorded() {
    let lab = Lab::new(SampleCircle::founded()).await;
    let proposal = lab.circle.proposal("run it");
    let mut view = proposal_view(&proposal, vec![]);
    (view.approved, view.state) = (vec![lab.circle.members[0].member.clone()], ProposalState::Approved);
    lab.show(vec![view]);
    lab.stub().hides_ballots = true;
    let (id, words) = (proposal.id().to_string(), words_of(&proposal));
    let outcome = lab.run(&["approve", &id, "--words", &words]).await;
    assert_eq!(outcome, Err(Some(error_code::OUTCOME_UNKNOWN)));
    lab.stub().hides_ballots = false;
    assert_eq!(lab.run(&["approve", &id, "--words", &words]).await, Ok(()));
}

/// Attack: a client is served genesis alone, or less than it verified before.
#[tokio::test]
async fn a_history_with_decisions_left_out_is_refused() {
    let mut circle = SampleCircle::founded();
    circle.decide(Change::Deploy(Box::new(manifest("bert"))), "run it");
    let grace_seconds = 1;
    circle.decide(Change::Retire { service: "mine".parse().expect("a name"), grace_seconds }, "end it");
    let lab = Lab::new(circle).await;
    assert_eq!(lab.run(&["circle", "show"]).await, Ok(()));
    let whole = lab.circle.history.clone();
    for kept in [0, 1] {
        lab.stub().history.bundles.truncate(kept);
        for words in [&["circle", "show"][..], &["review"], &["retire", "mine"], &["circle", "history"]] {
            assert_eq!(lab.run(words).await, Err(Some(error_code::HISTORY_SHORTER)), "{kept} {words:?}");
        }
        let file = lab.folder.path().join("history.json");
        std::fs::write(&file, serde_json::to_vec(&lab.stub().history).expect("JSON")).expect("written");
        let verified = lab.run(&["verify", &file.display().to_string()]).await;
        assert_eq!(verified, Err(Some(error_code::HISTORY_SHORTER)));
        lab.stub().history = whole.clone();
    }
    assert_eq!(lab.run(&["circle", "show"]).await, Ok(()), "the whole history still passes");
    // Positive control: a client that remembers nothing believes the same answer.
    std::fs::remove_dir_all(lab.folder.path().join("heads")).expect("removed");
    lab.stub().history.bundles.clear();
    assert_eq!(lab.run(&["circle", "show"]).await, Ok(()));
}

/// Attack: a client is served another history of its circle.
#[tokio::test]
async fn another_history_of_the_circle_is_refused() {
    let mut circle = SampleCircle::founded();
    let founded = (circle.state.clone(), circle.history.clone());
    circle.decide(Change::Deploy(Box::new(manifest("bert"))), "run it");
    let seen = circle.history.clone();
    (circle.state, circle.history) = founded;
    circle.decide(Change::Deploy(Box::new(manifest("llama"))), "run another");
    let lab = Lab::new(circle).await;
    lab.stub().history = seen;
    assert_eq!(lab.run(&["circle", "show"]).await, Ok(()));
    lab.stub().history = lab.circle.history.clone();
    assert_eq!(lab.run(&["circle", "show"]).await, Err(Some(error_code::HISTORY_FORKED)));
    // Positive control: to a client that remembers nothing it is as good as the other.
    std::fs::remove_dir_all(lab.folder.path().join("heads")).expect("removed");
    assert_eq!(lab.run(&["circle", "show"]).await, Ok(()));
}

/// Attack: `quorate new service` is given another root under an approved model's name.
#[tokio::test]
async fn another_root_under_an_approved_name_is_refused() {
    let mut circle = SampleCircle::founded();
    let founded = circle.history.clone();
    circle.decide(Change::Deploy(Box::new(manifest("bert"))), "run it");
    let lab = Lab::new(circle).await;
    let approved = model_record("mine", "bert");
    let other = ModelRecord { root: ModelRoot(Digest::of(b"mallory")), ..approved.clone() };
    let new = ["new", "service", "--model", "mine"];
    lab.stub().models = vec![approved];
    assert_eq!(lab.run(&new).await, Ok(()));
    lab.stub().models = vec![other];
    assert_eq!(lab.run(&new).await, Err(Some(error_code::MODEL_NAME_TAKEN)));
    // Positive control: before any approval of the name, nothing distinguishes the two roots.
    std::fs::remove_dir_all(lab.folder.path().join("heads")).expect("removed");
    lab.stub().history = founded;
    assert_eq!(lab.run(&new).await, Ok(()));
}

/// Attack: the commands of the founding, run twice, destroy the first key and the first token.
#[tokio::test]
async fn a_second_founding_command_destroys_no_key() {
    let lab = Lab::new(SampleCircle::founded()).await;
    let key = lab.path("dana.key");
    let member = ["circle", "member", "dana", "--key", &key];
    assert_eq!(lab.run(&member).await, Ok(()));
    let first = std::fs::read(&key).expect("written");
    assert_eq!(lab.run(&member).await, Err(Some(error_code::KEY_EXISTS)));
    assert_eq!(std::fs::read(&key).expect("read"), first);
}
