//! A member's machine with the real `quorate` binary, and the hostile control whose API it calls.

use crate::circle::TestCircle;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use control::context::Context;
use control::member_key::MemberKeyFile;
use human_chain::{CircleState, MemberSecret};
use protocol::agent::PendingNode;
use protocol::api::{
    DryRun, History, HistoryPage, LogPage, MemberWraps, Page, Problem, ProposalState, ProposalView, PutWraps,
    SubmitProposal,
};
use protocol::governance::{Change, Choice, Proposal, SignedBallot};
use protocol::halt::{HaltReceipt, SignedHalt};
use protocol::model::{ModelRecord, SignedWrap};
use protocol::{Digest, MemberId, Millis};
use serde::Serialize;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard};

/// Answers of the hostile control, and what it was sent.
pub(crate) struct Stub {
    pub(crate) history: History,
    pub(crate) proposals: Vec<ProposalView>,
    pub(crate) models: Vec<ModelRecord>,
    pub(crate) pending: Vec<PendingNode>,
    pub(crate) wraps: MemberWraps,
    pub(crate) logs: LogPage,
    pub(crate) dry_run: DryRun,
    /// True if ballots are taken and not shown.
    pub(crate) hides_ballots: bool,
    /// True if each page of proposals names a next one.
    pub(crate) is_endless: bool,
    /// True if the body of each answer never ends.
    pub(crate) floods: bool,
    /// Message with which the list of models is refused.
    pub(crate) refusal: Option<String>,
    pub(crate) ballots: Vec<SignedBallot>,
    pub(crate) submitted: Vec<Proposal>,
    pub(crate) stored_wraps: Vec<SignedWrap>,
    pub(crate) halts: Vec<SignedHalt>,
}

/// A member's machine.
pub(crate) struct Desk {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) world: TestCircle,
    stub: Arc<Mutex<Stub>>,
}

/// Outcome of a command.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) status: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ran {
    /// Returns success, or the code of the refusal, which is empty if it has none.
    pub(crate) fn outcome(&self) -> Result<(), String> {
        if self.status == Some(0) {
            return Ok(());
        }
        let problem = self.stderr.lines().rev().find_map(|line| serde_json::from_str(line).ok());
        let problem: serde_json::Value = problem.unwrap_or_default();
        Err(problem["code"].as_str().unwrap_or_default().to_string())
    }
}

pub(crate) fn now() -> Millis {
    host::wall_clock()
}

impl Desk {
    /// Sets up the machine of alice, whose circle has two more members and decides with two of three.
    pub(crate) async fn new(world: TestCircle) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let history = History { genesis: world.genesis.clone(), bundles: world.bundles.clone() };
        let stub = Arc::new(Mutex::new(Stub {
            history,
            proposals: vec![],
            models: vec![],
            pending: vec![],
            wraps: MemberWraps { lacking: vec![], keyless: vec![] },
            logs: LogPage { epoch: 1, items: vec![] },
            dry_run: DryRun {
                desired: 1,
                placements: vec![],
                possible: vec![],
                waiting: vec![],
                needs: String::new(),
                priority: 50,
                outranked: vec![],
                roll_out: vec![],
                spend_micro_units_per_hour: None,
            },
            hides_ballots: false,
            is_endless: false,
            floods: false,
            refusal: None,
            ballots: vec![],
            submitted: vec![],
            stored_wraps: vec![],
            halts: vec![],
        }));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().fallback(answer).with_state(stub.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        let desk = Self { folder, world, stub };
        desk.member_key(0).save(&desk.path("alice.key")).unwrap();
        std::fs::write(desk.path("token"), "token").unwrap();
        let context = Context {
            name: "desk".into(),
            circle: desk.world.state.id(),
            control: vec![format!("http://{address}")],
            gateway: None,
            token_file: "token".into(),
            member_key_file: Some("alice.key".into()),
            node_directory: None,
            certificate_authority_file: None,
            file: PathBuf::new(),
        };
        std::fs::write(desk.path("context.json"), serde_json::to_vec(&context).unwrap()).unwrap();
        desk
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn stub(&self) -> MutexGuard<'_, Stub> {
        self.stub.lock().unwrap()
    }

    /// Returns the key file of a founder: 0 is alice, 1 is bob, 2 is carol.
    pub(crate) fn member_key(&self, founder: usize) -> MemberKeyFile {
        let (member, secret) = &self.world.founders[founder];
        let secret = MemberSecret::from_bytes(&secret.to_bytes()).unwrap();
        MemberKeyFile { member: member.clone(), secret }
    }

    /// Returns the keys of the founders.
    pub(crate) fn founders(&self) -> Vec<(MemberId, MemberSecret)> {
        (0..3).map(|founder| self.member_key(founder)).map(|file| (file.member, file.secret)).collect()
    }

    /// Returns the circle as it was founded.
    pub(crate) fn founded(&self) -> CircleState {
        CircleState::found(&self.world.genesis, None).unwrap()
    }

    /// Shows the history as it is now.
    pub(crate) fn show_history(&self) {
        self.stub().history.bundles = self.world.bundles.clone();
    }

    /// Lets this machine forget the histories that it has verified.
    pub(crate) fn forget(&self) {
        let heads = self.path("heads");
        if heads.exists() {
            std::fs::remove_dir_all(heads).unwrap();
        }
    }

    pub(crate) fn proposal(&self, change: Change, reason: &str) -> Proposal {
        let (made, nonce) = (now(), Digest::of(reason.as_bytes()));
        human_chain::propose(&self.world.state, change, reason.into(), made, made.plus(3_600_000), nonce)
            .unwrap()
    }

    pub(crate) fn ballot(&self, founder: usize, proposal: &Proposal) -> SignedBallot {
        let (member, secret) = &self.world.founders[founder];
        human_chain::vote(secret, member.clone(), self.world.state.head(), proposal, Choice::Approve, now())
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_quorate"));
        command.arg("--context").arg(self.path("context.json")).args(words);
        command.stdin(Stdio::null()).current_dir(self.folder.path());
        command.env_remove("QUORATE_CONTEXT").env("HOME", self.folder.path());
        command
    }

    /// Runs a command of alice's to its end.
    pub(crate) async fn run(&self, words: &[&str]) -> Ran {
        self.run_as(words, |_| {}).await
    }

    /// Runs a command of alice's with other standard streams.
    pub(crate) async fn run_as(&self, words: &[&str], edit: impl FnOnce(&mut Command)) -> Ran {
        let mut command = self.command(words);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        edit(&mut command);
        let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Ran { status: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    /// Runs a command, and returns its outcome alone.
    pub(crate) async fn outcome(&self, words: &[&str]) -> Result<(), String> {
        self.run(&[&["-o", "json"], words].concat()).await.outcome()
    }
}

/// Returns an open proposal as an honest server shows it, with these ballots.
pub(crate) fn view(proposal: &Proposal, ballots: Vec<SignedBallot>) -> ProposalView {
    ProposalView {
        id: proposal.id(),
        proposal: proposal.clone(),
        class: human_chain::class_of(&proposal.change),
        state: ProposalState::Open,
        approved: ballots.iter().map(|signed| signed.ballot.member.clone()).collect(),
        rejected: vec![],
        missing: vec![],
        certificate: None,
        takes_effect_at: None,
        proposer: ballots.first().map(|signed| signed.ballot.member.clone()),
        drafted_by: None,
        comments: vec![],
        ballots,
    }
}

/// Returns the decisions after those that the client has, with the head of the longest part that verifies.
fn history_page(history: &History, query: &str) -> HistoryPage {
    let History { genesis, bundles } = history;
    let replay = |size| {
        let certificates = bundles.iter().take(size).map(|bundle| &bundle.certificate);
        CircleState::replay(genesis, None, certificates).ok()
    };
    let head = (0..=bundles.len()).rev().find_map(replay).expect("a genesis that verifies").head();
    let after = query.split('&').find_map(|pair| pair.strip_prefix("after=")?.parse::<usize>().ok());
    let bundles = bundles.iter().skip(after.unwrap_or(0)).cloned().collect();
    HistoryPage { genesis: after.is_none().then(|| genesis.clone()), head, bundles, next_page_token: None }
}

fn json<T: Serialize>(value: &T) -> Response {
    ([("content-type", "application/json")], serde_json::to_vec(value).unwrap()).into_response()
}

async fn answer(State(stub): State<Arc<Mutex<Stub>>>, method: Method, uri: Uri, body: Bytes) -> Response {
    let mut stub = stub.lock().unwrap();
    if stub.floods {
        let chunk = || Ok::<_, std::io::Error>(Bytes::from(vec![b' '; 1 << 20]));
        return Body::from_stream(futures::stream::repeat_with(chunk)).into_response();
    }
    let parts: Vec<&str> = uri.path().trim_start_matches("/v1/").split('/').collect();
    let reads = method == Method::GET;
    match (reads, parts.as_slice()) {
        (true, ["history"]) => json(&history_page(&stub.history, uri.query().unwrap_or_default())),
        (true, ["proposals"]) if stub.is_endless => {
            let next_page_token = Some(format!("p{}", uri.query().map_or(0, str::len)));
            json(&Page::<ProposalView> { items: vec![], next_page_token })
        }
        (true, ["proposals"]) => json(&Page::whole(stub.proposals.clone())),
        (true, ["proposals", id]) => {
            let found = stub.proposals.iter().find(|view| view.id.to_string() == *id);
            found.map_or_else(|| StatusCode::NOT_FOUND.into_response(), json)
        }
        (false, ["proposals"]) => {
            let SubmitProposal { proposal, ballot } = serde_json::from_slice(&body).unwrap();
            let view = view(&proposal, ballot.into_iter().collect());
            stub.submitted.push(proposal);
            stub.proposals.push(view.clone());
            json(&view)
        }
        (false, ["proposals", _, "ballots"]) => {
            let ballot: SignedBallot = serde_json::from_slice(&body).unwrap();
            stub.ballots.push(ballot.clone());
            let hides = stub.hides_ballots;
            let voted = stub.proposals.iter_mut().find(|view| view.proposal.id() == ballot.ballot.proposal);
            let voted = voted.unwrap();
            if !hides {
                voted.ballots.push(ballot);
            }
            json(voted)
        }
        (true, ["models"]) => match &stub.refusal {
            None => json(&Page::whole(stub.models.clone())),
            Some(message) => {
                let problem = Problem {
                    code: "limit-reached".into(),
                    message: message.clone(),
                    at: None,
                    remedy: None,
                };
                (StatusCode::TOO_MANY_REQUESTS, json(&problem)).into_response()
            }
        },
        (true, ["job-data"]) => json(&Page::<ModelRecord>::whole(vec![])),
        (false, ["dry-run"]) => json(&stub.dry_run),
        (true, ["pending-nodes"]) => json(&Page::whole(stub.pending.clone())),
        (true, ["services", _, "logs"]) => json(&stub.logs),
        (true, ["halts"]) => json(&Page::whole(stub.halts.clone())),
        (false, ["halts"]) => {
            stub.halts.push(serde_json::from_slice(&body).unwrap());
            json(&HaltReceipt { id: stub.halts[0].halt.id(), slots: 0, shown: vec![] })
        }
        (false, ["wraps", "mine"]) => json(&stub.wraps),
        (false, ["wraps"]) => {
            let PutWraps { wraps } = serde_json::from_slice(&body).unwrap();
            stub.stored_wraps.extend(wraps);
            stub.wraps.lacking.clear();
            json(&serde_json::json!({}))
        }
        _ => StatusCode::NOT_FOUND.into_response(),
    }
}
