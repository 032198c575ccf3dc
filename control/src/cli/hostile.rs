//! Attacks on members by a hostile control: the real commands, against a server that shows what it likes.
//!
//! Each attack has a positive control: the same answers reach their aim when the guard has nothing to go by.

use super::{Cli, Environment, dispatch, failure, passkeys};
use crate::context::Context;
use crate::member_key::MemberKey;
use crate::testing::{HistoryQuery, SampleCircle, history_page, manifest, model_record, proposal_view};
use axum::extract::{Path as UrlPath, Query, State};
use axum::routing::{get, post};
use axum::{Json, Router};
use clap::Parser;
use human_chain::MemberSigner as _;
use protocol::api::{History, Page, ProposalState, ProposalView, SubmitProposal};
use protocol::comment::SignedComment;
use protocol::governance::{Change, Choice, Policy, Proposal, SignedBallot};
use protocol::halt::{HaltReceipt, HaltScope, SignedHalt};
use protocol::model::ModelRecord;
use protocol::{Digest, ErrorCode, ModelRoot, PasskeyRegistration, ProposalId, error_code};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

/// Answers of a hostile control, and the ballots that it received.
struct Stub {
    history: History,
    proposals: Vec<ProposalView>,
    models: Vec<ModelRecord>,
    /// True if ballots are taken and not shown.
    hides_ballots: bool,
    received: Vec<SignedBallot>,
    /// Halts that were taken, or that are listed.
    halts: Vec<SignedHalt>,
    /// Number of decisions in each page of the history that was sent.
    sent: Vec<usize>,
    /// True if comments are taken and not shown.
    hides_comments: bool,
}

type StubState = State<Arc<Mutex<Stub>>>;

/// Answers with the proposal that is shown under this id, whichever it is.
async fn one(
    State(stub): StubState,
    UrlPath(id): UrlPath<ProposalId>,
) -> Result<Json<ProposalView>, axum::http::StatusCode> {
    let stub = stub.lock().expect("no panic");
    let found = stub.proposals.iter().find(|view| view.id == id).cloned();
    found.map(Json).ok_or(axum::http::StatusCode::NOT_FOUND)
}

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

/// Takes a comment, and shows it unless it hides them.
async fn comment(
    State(stub): StubState,
    UrlPath(id): UrlPath<ProposalId>,
    Json(signed): Json<SignedComment>,
) -> Json<ProposalView> {
    let mut stub = stub.lock().expect("no panic");
    let hides = stub.hides_comments;
    let view = stub.proposals.iter_mut().find(|view| view.proposal.id() == id).expect("it was shown");
    if !hides {
        view.comments.push(signed);
    }
    Json(view.clone())
}

async fn submit(State(stub): StubState, Json(body): Json<SubmitProposal>) -> Json<ProposalView> {
    let mut view = proposal_view(&body.proposal, body.ballot.iter().cloned().collect());
    if body.ballot.is_none() {
        (view.state, view.drafted_by) = (ProposalState::Draft, Some("token/lab".into()));
    }
    let mut stub = stub.lock().expect("no panic");
    stub.received.extend(body.ballot);
    stub.proposals.push(view.clone());
    Json(view)
}

/// Takes a halt, and acknowledges the first one that was ever taken.
async fn take_halt(State(stub): StubState, Json(signed): Json<SignedHalt>) -> Json<HaltReceipt> {
    let mut stub = stub.lock().expect("no panic");
    stub.halts.push(signed);
    Json(HaltReceipt { id: stub.halts[0].halt.id(), slots: 0, shown: vec![] })
}

/// A member's machine, and the control that it talks to.
pub(super) struct Lab {
    folder: tempfile::TempDir,
    pub(super) circle: SampleCircle,
    stub: Arc<Mutex<Stub>>,
}

impl Lab {
    pub(super) async fn new(circle: SampleCircle) -> Self {
        let folder = tempfile::tempdir().expect("temporary directory");
        let (history, hides_ballots) = (circle.history.clone(), false);
        let (proposals, models, received, halts) = (vec![], vec![], vec![], vec![]);
        let sent = vec![];
        let hides_comments = false;
        let stub = Stub { history, proposals, models, hides_ballots, received, halts, sent, hides_comments };
        let stub = Arc::new(Mutex::new(stub));
        let history = |State(stub): StubState, Query(query): Query<HistoryQuery>| async move {
            let mut stub = stub.lock().expect("no panic");
            let page = history_page(&stub.history, query.after);
            stub.sent.push(page.bundles.len());
            Json(page)
        };
        let proposals = |State(stub): StubState| async move {
            Json(Page::whole(stub.lock().expect("no panic").proposals.clone()))
        };
        let models = |State(stub): StubState| async move {
            Json(Page::whole(stub.lock().expect("no panic").models.clone()))
        };
        let halts = |State(stub): StubState| async move {
            Json(Page::whole(stub.lock().expect("no panic").halts.clone()))
        };
        let router = Router::new()
            .route("/v1/history", get(history))
            .route("/v1/proposals", get(proposals).post(submit))
            .route("/v1/proposals/{id}", get(one))
            .route("/v1/proposals/{id}/ballots", post(cast))
            .route("/v1/proposals/{id}/comments", post(comment))
            .route("/v1/models", get(models))
            .route("/v1/halts", get(halts).post(take_halt))
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

    pub(super) fn context(&self) -> Context {
        Context::read(&self.folder.path().join("context.json")).expect("a context")
    }

    fn stub(&self) -> MutexGuard<'_, Stub> {
        self.stub.lock().expect("no panic")
    }

    pub(super) fn show(&self, views: Vec<ProposalView>) {
        self.stub().proposals = views;
    }

    fn received(&self) -> Vec<SignedBallot> {
        std::mem::take(&mut self.stub().received)
    }

    /// Runs a command of alice's; the code of its refusal.
    pub(super) async fn run(&self, words: &[&str]) -> Result<(), Option<ErrorCode>> {
        let context = self.folder.path().join("context.json").display().to_string();
        let all = [&["quorate", "--context", &context], words].concat();
        let cli = Cli::try_parse_from(all).expect("a command");
        let environment = Environment { context: cli.context, output: cli.output };
        let outcome = dispatch(cli.command, &environment).await;
        outcome.map(|_| ()).map_err(|error| failure::code_of(&error))
    }

    pub(super) fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }
}

fn words_of(proposal: &Proposal) -> String {
    human_chain::render(proposal).words[..2].join(" ")
}

/// Attack: a replica acknowledges another halt than the one that was sent. The positive control is the first
/// halt, whose own id it returns.
#[tokio::test]
async fn a_halt_that_a_replica_does_not_acknowledge_is_not_reported_as_taken() {
    let lab = Lab::new(SampleCircle::founded()).await;
    let file = lab.path("halt.json");
    assert_eq!(lab.run(&["halt", "service", "chat", "--reason", "smoke", "--out", &file]).await, Ok(()));
    let [sent] = <[SignedHalt; 1]>::try_from(lab.stub().halts.clone()).expect("one halt");
    assert!(human_chain::check_halt(&lab.circle.state, sent.clone()).is_ok(), "alice signed it");
    assert_eq!(
        (sent.halt.reason.as_str(), &sent.halt.scope),
        ("smoke", &HaltScope::Service("chat".parse().expect("a name")))
    );
    let written: SignedHalt = serde_json::from_slice(&std::fs::read(&file).expect("written")).expect("JSON");
    assert_eq!(written, sent, "the file is the same halt");
    let refused = lab.run(&["halt", "circle", "--reason", "more smoke"]).await;
    assert_eq!(refused, Err(Some(error_code::CONTROL_UNAVAILABLE)));
    assert_eq!(lab.run(&["halts"]).await, Ok(()));
    let unknown = lab.run(&["lift", "zz"]).await;
    assert_eq!(unknown, Err(Some(error_code::HALT_NOT_FOUND)));
    let long = "x".repeat(257);
    let refused = lab.run(&["halt", "circle", "--reason", &long]).await;
    assert_eq!(refused, Err(Some(error_code::GOVERNANCE_INVALID)), "nothing was signed");
    assert_eq!(lab.stub().halts.len(), 2);
}

/// A file that cannot be written delays no halt, and one that exists stays as it is: it may be a key.
#[tokio::test]
async fn a_halt_is_sent_even_if_its_file_cannot_be_written() {
    let lab = Lab::new(SampleCircle::founded()).await;
    let (key, nowhere) = (lab.path("alice.key"), lab.path("none/halt.json"));
    let before = std::fs::read(&key).expect("her key");
    let halt = ["halt", "circle", "--reason", "smoke", "--out"];
    for file in [&nowhere, &key] {
        lab.stub().halts.clear();
        let outcome = lab.run(&[&halt[..], &[file.as_str()]].concat()).await;
        assert_eq!((outcome, lab.stub().halts.len()), (Err(None), 1), "{file}: sent, and the failure told");
    }
    assert_eq!(std::fs::read(&key).expect("read"), before);
    // The positive control: a new file is written.
    lab.stub().halts.clear();
    let file = lab.path("halt.json");
    assert_eq!(lab.run(&[&halt[..], &[file.as_str()]].concat()).await, Ok(()));
    assert_eq!(lab.stub().halts.len(), 1);
}

/// Attack: a replica shows a halt of its own for the first digits of an id, or another member's halt, to be
/// signed again. The positive control is the member's own halt of rotated keys, by its whole id.
#[tokio::test]
async fn attack_a_halt_is_signed_again_by_its_whole_id_and_its_own_member_alone() {
    let mut circle = SampleCircle::founded();
    let (carol, secret) = (circle.members[2].member.clone(), &circle.members[2].secret);
    let halt = protocol::halt::Halt {
        circle: circle.state.id(),
        member: carol.clone(),
        signer: secret.public().ed25519,
        scope: HaltScope::Circle,
        reason: "smoke".into(),
        issued_at: protocol::Millis(5),
        nonce: Digest::of(b"1"),
    };
    let old = human_chain::sign_halt(secret, halt);
    let rotated = crate::member_key::MemberKeyFile::generate(carol);
    let entry = rotated.proven();
    let mut members: Vec<_> = circle.state.members().cloned().collect();
    members[2] = entry.member.clone();
    let (policy, proofs) = (circle.state.policy().clone(), [(entry.member.id, entry.proof)].into());
    circle.decide(Change::SetMembers { members, policy, proofs }, "other keys");
    let lab = Lab::new(circle).await;
    let (id, key) = (old.halt.id().to_string(), lab.path("carol-2.key"));
    rotated.save(std::path::Path::new(&key)).expect("saved");
    lab.stub().halts.push(old.clone());
    let by_digits = lab.run(&["halt", "again", &id[..8], "--key", &key]).await;
    assert_eq!(by_digits, Err(Some(error_code::HALT_NOT_FOUND)));
    let by_alice = lab.run(&["halt", "again", &id]).await;
    assert_eq!(by_alice, Err(Some(error_code::SIGNATURE_INVALID)));
    assert_eq!(lab.stub().halts.len(), 1, "nothing was sent");
    assert_eq!(lab.run(&["halt", "again", &id, "--key", &key]).await, Ok(()));
    let halts = lab.stub().halts.clone();
    assert_eq!((halts.len(), &halts[1].halt), (2, &old.halt), "the same halt");
    let sound = |signed: &SignedHalt| human_chain::check_halt(&lab.circle.state, signed.clone()).is_ok();
    assert_eq!((sound(&old), sound(&halts[1])), (false, true));
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

/// Attack: a vote has ended before the signature is there, as with a device that waits for its person. It is
/// not sent, by the command line or by the console.
#[tokio::test]
async fn no_ballot_is_sent_after_the_end_of_the_vote() {
    let lab = Lab::new(SampleCircle::founded()).await;
    let at = |ms_ago: u64| {
        let made_at = protocol::Millis(host::wall_clock().0 - ms_ago);
        lab.circle.proposal_at(Change::Deploy(Box::new(manifest("bert"))), "run it", made_at)
    };
    let hour = 3_600_000;
    let (late, open) = (at(hour + protocol::limits::CLOCK_GRACE_MS + 1_000), at(hour - 60_000));
    lab.show(vec![proposal_view(&late, vec![]), proposal_view(&open, vec![])]);
    let (id, words) = (late.id().to_string(), words_of(&late));
    for vote in ["approve", "reject"] {
        let refused = lab.run(&[vote, &id, "--words", &words]).await;
        assert_eq!(refused, Err(Some(error_code::PROPOSAL_EXPIRED)), "{vote}");
    }
    let desk = Desk::of(&lab).await;
    let page = desk.approve(late.id(), &late).await;
    assert!(page.contains("proposal-expired"), "{page}");
    assert!(lab.received().is_empty(), "nothing was sent");
    // Positive control: a minute before its end, the same vote is sent on both ways.
    assert_eq!(lab.run(&["approve", &open.id().to_string(), "--words", &words_of(&open)]).await, Ok(()));
    desk.approve(open.id(), &open).await;
    assert_eq!(lab.received().len(), 2);
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

/// Attack: a page hands out a passkey of its own, or one that was made for another member.
#[tokio::test]
async fn no_passkey_is_signed_but_the_one_whose_words_the_browser_shows() {
    let passkeys = Some(passkeys::sample_policy());
    let circle = SampleCircle::founded_with(|policy| Policy { passkeys, ..policy });
    let at = |who: &str, key: u8| passkeys::sample(&circle.state, &who.parse().expect("a name"), key);
    let (mine, planted, bobs) = (at("alice", 0), at("alice", 1), at("bob", 2));
    let lab = Lab::new(circle).await;
    let save = |name: &str, registration: &PasskeyRegistration| {
        std::fs::write(lab.path(name), serde_json::to_vec(registration).expect("JSON")).expect("written");
        lab.path(name)
    };
    let words = |registration: &PasskeyRegistration| {
        let circle = &lab.circle.state;
        let policy = circle.policy().passkeys.as_ref().expect("a policy");
        let challenge = human_chain::registration_challenge(circle.id(), &lab.circle.members[0].member);
        let passkey = human_chain::read_registration(registration, &challenge.0, policy).expect("sound");
        human_chain::passkey_words(&passkey)[..2].join(" ")
    };
    let shown = words(&mine);
    let add = ["member", "passkey", "add", "--words", &shown, "--from"];
    let from = |file: &str| [&add[..], &[file]].concat().iter().map(ToString::to_string).collect::<Vec<_>>();
    let run = |words: Vec<String>| {
        let lab = &lab;
        async move { lab.run(&words.iter().map(String::as_str).collect::<Vec<_>>()).await }
    };
    assert_eq!(run(from(&save("planted.json", &planted))).await, Err(Some(error_code::WORDS_MISMATCH)));
    assert_eq!(run(from(&save("bob.json", &bobs))).await, Err(Some(error_code::PASSKEY_CHALLENGE)));
    let dropped = lab.run(&["member", "passkey", "drop", "phone"]).await;
    assert_eq!(dropped, Err(Some(error_code::PASSKEY_UNKNOWN)));
    assert!(lab.received().is_empty() && lab.stub().proposals.is_empty(), "nothing was signed or proposed");
    // Positive control: the same command with the browser's own passkey proposes it and approves it.
    assert_eq!(run(from(&save("mine.json", &mine))).await, Ok(()));
    let change = lab.stub().proposals[0].proposal.change.clone();
    let Change::SetPasskeys { member, passkeys } = change else { panic!("{change:?}") };
    assert_eq!((member.as_str(), passkeys.len()), ("alice", 1));
    let received = lab.received();
    assert!(received.len() == 1 && received[0].is_hybrid(), "one signature, of the key");
    assert_eq!(lab.run(&["member", "passkeys"]).await, Ok(()));
    // Under the words of the planted one, it would be signed as well: only the words differ.
    let planted_words = words(&planted);
    let file = lab.path("planted.json");
    let add = ["member", "passkey", "add", "--words", &planted_words, "--from", &file];
    assert_eq!(lab.run(&add).await, Ok(()));
}

/// Attack: a command that makes a key is run twice, and destroys the first one.
#[tokio::test]
async fn a_second_founding_command_destroys_no_key() {
    let lab = Lab::new(SampleCircle::founded()).await;
    let (key, other) = (lab.path("dana.key"), lab.path("other.key"));
    let made = ["circle", "member", "dana", "--key", &key];
    assert_eq!(lab.run(&made).await, Ok(()));
    let first = std::fs::read(&key).expect("written");
    let again: [&[&str]; 3] =
        [&made, &["member", "init", "dana", "--key", &key], &["member", "rotate", "--new-key", &key]];
    for words in again {
        assert_eq!(lab.run(words).await, Err(Some(error_code::KEY_EXISTS)), "{words:?}");
        assert_eq!(std::fs::read(&key).expect("read"), first, "{words:?}");
    }
    // Positive control: each run makes another key, and a write that replaces the file loses the first.
    let held = || MemberKey::load(Path::new(&key)).expect("a key").signer.public_keys();
    let lost = held();
    assert_eq!(lab.run(&["circle", "member", "dana", "--key", &other]).await, Ok(()));
    std::fs::rename(&other, &key).expect("replaced");
    assert_ne!(held(), lost);
}

/// A browser on a member's machine, signed in at the member's console.
pub(super) struct Desk {
    router: Router,
    cookie: String,
}

impl Desk {
    const HOST: &str = "localhost:7607";

    async fn of(lab: &Lab) -> Self {
        let session = crate::session::Session::open(&lab.context()).await.expect("an honest history");
        let key = MemberKey::load(&lab.folder.path().join("alice.key")).expect("her key");
        Self::over(session, key).await
    }

    /// Signs in at the console of this member over a session.
    pub(super) async fn over(session: crate::session::Session, key: MemberKey) -> Self {
        let sign_in = Arc::new(console::SignIn::new(host::Clock::machine()));
        let code = sign_in.create_link(console::Visitor::Owner { member: Some(key.member.clone()) });
        let origins = console::WebOrigins::of_localhost(7607);
        let router = super::console::router(session, Some(key), sign_in, origins);
        let mut desk = Self { router, cookie: String::new() };
        let (_, head) = desk.send("POST", "/console/enter", &format!("code={code}")).await;
        let cookie = head.headers["set-cookie"].to_str().expect("text");
        desk.cookie = cookie.split(';').next().expect("a pair").to_string();
        desk
    }

    pub(super) async fn send(
        &self,
        method: &str,
        path: &str,
        body: &str,
    ) -> (String, axum::http::response::Parts) {
        let request = axum::http::Request::builder()
            .method(method)
            .uri(path)
            .header("host", Self::HOST)
            .header("sec-fetch-site", "same-origin")
            .header("cookie", &self.cookie)
            .header("content-type", "application/x-www-form-urlencoded")
            .body(axum::body::Body::from(body.to_string()))
            .expect("a request");
        let answer = tower::ServiceExt::oneshot(self.router.clone(), request).await.expect("an answer");
        let (head, body) = answer.into_parts();
        let bytes = axum::body::to_bytes(body, 1 << 20).await.expect("a page");
        (String::from_utf8(bytes.to_vec()).expect("text"), head)
    }

    /// Votes with the words of this proposal's text, on the page of this id.
    async fn approve(&self, id: ProposalId, words_of: &Proposal) -> String {
        let words = words_of_text(words_of);
        let path = format!("/console/proposals/{id}/vote");
        self.send("POST", &path, &format!("words={words}&choice=approve")).await.0
    }
}

fn words_of_text(proposal: &Proposal) -> String {
    words_of(proposal).replace(' ', "+")
}

/// Attack: the console is shown another proposal under this id, and ballots that no member cast.
#[tokio::test]
async fn no_console_signs_another_proposal_under_the_asked_id() {
    let lab = Lab::new(SampleCircle::founded()).await;
    let (asked, other) = (lab.circle.proposal("asked"), lab.circle.proposal("other"));
    let mut forged = proposal_view(&other, vec![]);
    forged.id = asked.id();
    lab.show(vec![forged]);
    let desk = Desk::of(&lab).await;
    for words in [&asked, &other] {
        let page = desk.approve(asked.id(), words).await;
        assert!(page.contains("proposal-mismatch"), "{page}");
    }
    assert!(lab.received().is_empty(), "nothing was signed");
    // Positive control: under an id of its own, the other proposal is signed, and the claimed votes are not
    // shown.
    let mut honest = proposal_view(&other, vec![]);
    honest.approved = vec!["bob".parse().expect("a name"), "carol".parse().expect("a name")];
    lab.show(vec![honest]);
    let path = format!("/console/proposals/{}", other.id());
    let (page, _) = desk.send("GET", &path, "").await;
    assert!(page.contains("0 of 2 signed") && page.contains("Verified on this machine"), "{page}");
    desk.approve(other.id(), &other).await;
    assert_eq!(lab.received()[0].ballot.proposal, other.id());
}

/// Attack: a history with decisions left out, after the console has seen them.
#[tokio::test]
async fn a_console_refuses_a_history_that_became_shorter() {
    let mut circle = SampleCircle::founded();
    circle.decide(Change::Deploy(Box::new(manifest("bert"))), "run it");
    let lab = Lab::new(circle).await;
    let desk = Desk::of(&lab).await;
    let (page, _) = desk.send("GET", "/console/history", "").await;
    // Positive control: as long as it is whole, it is shown.
    assert!(page.contains("1 decision since the founding"), "{page}");
    lab.stub().history.bundles.clear();
    let (page, head) = desk.send("GET", "/console/history", "").await;
    assert!(page.contains("history-shorter") && !head.status.is_success(), "{page}");
}

/// Attack: control alters a draft between its listing and the signature of a member. The id and the words are
/// computed on the member's machine.
#[tokio::test]
async fn no_draft_is_proposed_but_the_one_that_was_read() {
    let lab = Lab::new(SampleCircle::founded()).await;
    let (read, altered) = (lab.circle.proposal("as the client asked"), lab.circle.proposal("altered"));
    let draft = |proposal: &Proposal| {
        let mut view = proposal_view(proposal, vec![]);
        (view.state, view.drafted_by) = (ProposalState::Draft, Some("token/ci".into()));
        view
    };
    let (id, words) = (read.id().to_string(), words_of(&read));
    let mut under_its_id = draft(&altered);
    under_its_id.id = read.id();
    lab.show(vec![under_its_id]);
    let refused = lab.run(&["approve", &id, "--words", &words]).await;
    assert_eq!(refused, Err(Some(error_code::PROPOSAL_MISMATCH)));
    lab.show(vec![draft(&altered)]);
    let own_id = altered.id().to_string();
    let refused = lab.run(&["approve", &own_id, "--words", &words]).await;
    assert_eq!(refused, Err(Some(error_code::WORDS_MISMATCH)));
    assert!(lab.received().is_empty(), "nothing was signed");
    // Positive control: the draft that was read is proposed by the same command.
    lab.show(vec![draft(&read)]);
    assert_eq!(lab.run(&["review"]).await, Ok(()));
    assert_eq!(lab.run(&["approve", &id, "--words", &words]).await, Ok(()));
    assert_eq!(lab.received()[0].ballot.proposal, read.id());
}

/// A command proposes with a key only after its text was read; without one it makes a draft.
#[tokio::test]
async fn a_command_signs_no_proposal_unread() {
    let mut circle = SampleCircle::founded();
    circle.decide(Change::Deploy(Box::new(manifest("bert"))), "run it");
    let lab = Lab::new(circle).await;
    let key = lab.path("alice.key");
    let refused = lab.run(&["retire", "mine", "--key", &key]).await;
    assert_eq!(refused, Err(Some(error_code::WORDS_MISMATCH)), "no terminal, no reader");
    assert!(lab.received().is_empty() && lab.stub().proposals.is_empty(), "nothing was signed or sent");
    assert_eq!(lab.run(&["retire", "mine"]).await, Ok(()));
    let draft = lab.stub().proposals[0].clone();
    assert_eq!((draft.state, draft.ballots.len()), (ProposalState::Draft, 0));
    let (id, words) = (draft.id.to_string(), words_of(&draft.proposal));
    assert_eq!(lab.run(&["approve", &id, "--words", &words]).await, Ok(()));
    assert_eq!(lab.received().len(), 1);
}

/// Attack: control takes a question and drops it, puts words into a member's mouth, or has an answer signed
/// for a question that was not asked.
#[tokio::test]
async fn questions_are_signed_for_their_place_and_shown_as_they_were_signed() {
    let lab = Lab::new(SampleCircle::founded()).await;
    let proposal = lab.circle.proposal("run it");
    lab.show(vec![proposal_view(&proposal, vec![])]);
    let id = proposal.id().to_string();
    lab.stub().hides_comments = true;
    assert_eq!(lab.run(&["ask", &id, "why now?"]).await, Err(Some(error_code::OUTCOME_UNKNOWN)));
    lab.stub().hides_comments = false;
    assert_eq!(lab.run(&["ask", &id, "why now?"]).await, Ok(()));
    let asked = lab.stub().proposals[0].comments[0].clone();
    assert_eq!((asked.comment.member.as_str(), asked.comment.text.as_str()), ("alice", "why now?"));
    assert!(human_chain::check_comment(&lab.circle.state, &proposal, &asked).is_ok(), "alice signed it");
    for (text, code) in
        [("  ", error_code::GOVERNANCE_INVALID), (&"x".repeat(1025), error_code::GOVERNANCE_INVALID)]
    {
        assert_eq!(lab.run(&["ask", &id, text]).await, Err(Some(code)));
    }
    let mut forged = asked.clone();
    forged.comment.text = "who has read this?".into();
    let forged_id = forged.comment.id().to_string();
    lab.stub().proposals[0].comments.push(forged);
    let refused = lab.run(&["answer", &id, &forged_id, "alice has"]).await;
    assert_eq!(refused, Err(Some(error_code::QUESTION_NOT_FOUND)), "the question was not asked");
    assert_eq!(lab.run(&["answer", &id, "zz", "so"]).await, Err(Some(error_code::QUESTION_NOT_FOUND)));
    assert_eq!(lab.stub().proposals[0].comments.len(), 2, "nothing was signed");
    // Positive control: the question that was asked is answered, and all of it is shown.
    let short = asked.comment.id().short();
    assert_eq!(lab.run(&["answer", &id, &short, "the archive grows"]).await, Ok(()));
    let answer = lab.stub().proposals[0].comments[2].clone();
    assert_eq!(answer.comment.answers, Some(asked.comment.id()));
    assert_eq!(lab.run(&["review", &id]).await, Ok(()));
    assert_eq!(lab.run(&["review"]).await, Ok(()));
    assert_eq!(lab.run(&["inbox"]).await, Ok(()));
}

/// A change that waits for a veto stands in the member's inbox, as it does on every replica's pages.
#[tokio::test]
async fn a_change_that_waits_is_in_the_inbox() {
    let lab = Lab::new(SampleCircle::founded()).await;
    let mut view = proposal_view(&lab.circle.proposal("a change of members"), vec![]);
    (view.state, view.takes_effect_at) = (ProposalState::Waiting, Some(protocol::Millis(1)));
    let id = view.id;
    lab.show(vec![view.clone()]);
    let desk = Desk::of(&lab).await;
    let (page, _) = desk.send("GET", "/console/inbox", "").await;
    assert!(page.contains(&id.to_string()), "{page}");
    // Positive control: what was decided is no longer in it.
    view.state = ProposalState::Rejected;
    lab.show(vec![view]);
    let (page, _) = desk.send("GET", "/console/inbox", "").await;
    assert!(!page.contains(&id.to_string()), "{page}");
}

/// Attack: the state that a client kept is damaged, of another circle, or an older one from a backup, and
/// control serves less than was verified.
#[tokio::test]
async fn a_kept_state_spares_no_client_the_longest_history() {
    let mut circle = SampleCircle::founded();
    circle.decide(Change::Deploy(Box::new(manifest("bert"))), "run it");
    let grace_seconds = 1;
    circle.decide(Change::Retire { service: "mine".parse().expect("a name"), grace_seconds }, "end it");
    let lab = Lab::new(circle).await;
    lab.stub().history.bundles.truncate(1);
    let show = &["circle", "show"];
    assert_eq!(lab.run(show).await, Ok(()));
    let state = lab.folder.path().join("heads").join(format!("{}.state", lab.circle.state.id()));
    let older = std::fs::read(&state).expect("kept");
    lab.stub().history = lab.circle.history.clone();
    assert_eq!(lab.run(show).await, Ok(()));
    let newer = std::fs::read(&state).expect("kept");
    assert_ne!(older, newer, "the state follows the history");
    let foreign = SampleCircle::founded().state.to_kept_bytes();
    for kept in [older, newer[..newer.len() - 1].to_vec(), foreign, Vec::new(), newer.clone()] {
        std::fs::write(&state, &kept).expect("written");
        lab.stub().history.bundles.truncate(1);
        assert_eq!(lab.run(show).await, Err(Some(error_code::HISTORY_SHORTER)));
        lab.stub().history = lab.circle.history.clone();
        assert_eq!(lab.run(show).await, Ok(()), "the whole history still passes");
        assert_eq!(std::fs::read(&state).expect("kept"), newer, "and is kept again");
    }
    // Positive control: without the head, an older state and the short history go together.
    std::fs::remove_dir_all(lab.folder.path().join("heads")).expect("removed");
    lab.stub().history.bundles.truncate(1);
    assert_eq!(lab.run(show).await, Ok(()));
}

/// A command asks control for nothing that this machine verified before.
#[tokio::test]
async fn a_second_command_fetches_no_decision_again() {
    let mut circle = SampleCircle::founded();
    circle.decide(Change::Deploy(Box::new(manifest("bert"))), "run it");
    let lab = Lab::new(circle).await;
    assert_eq!(lab.run(&["circle", "show"]).await, Ok(()));
    assert_eq!(lab.run(&["circle", "show"]).await, Ok(()));
    assert_eq!(lab.stub().sent, [1, 0]);
    assert_eq!(lab.run(&["circle", "history"]).await, Ok(()));
    assert_eq!(lab.stub().sent, [1, 0, 0, 1], "what is printed is fetched");
}
