//! Tests of registration against a fake control that records requests and does not always send a valid
//! response.

use super::*;
use crate::client::ControlClient;
use crate::head::HeadFile;
use crate::node::{ImportRequest, ModelAccess, NodeFile, create_keys, store_reference};
use crate::policy::simple_policy;
use axum::extract::{Path as UrlPath, State};
use axum::routing::{get, put};
use axum::{Json, Router};
use indicatif::ProgressBar;
use protocol::api::History;
use protocol::governance::*;
use protocol::model::ErasureCode;
use protocol::{Digest, Millis, ModelRoot, NodeId, ReplicaId};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex};

/// State of a fake control, as an importer sees it: the responses, and the changes that were requested.
struct Register {
    history: History,
    models: Vec<ModelRecord>,
    wraps: BTreeMap<ModelRoot, Vec<KeyWrap>>,
    /// Number of registrations that still get a response that the client does not understand.
    unanswered: u32,
    registered: Vec<RegisterModel>,
    shared: Vec<KeyWrap>,
}

type RegisterState = State<Arc<Mutex<Register>>>;

fn locked(register: &Mutex<Register>) -> std::sync::MutexGuard<'_, Register> {
    register.lock().expect("no test panics while it holds this")
}

async fn post_model(State(state): RegisterState, Json(body): Json<RegisterModel>) -> String {
    let mut state = locked(&state);
    state.registered.push(body);
    if state.unanswered > 0 {
        state.unanswered -= 1;
        return "cut off".into();
    }
    r#"{"done":true}"#.into()
}

async fn put_wraps(State(state): RegisterState, Json(body): Json<PutWraps>) -> &'static str {
    locked(&state).shared.extend(body.wraps);
    r#"{"done":true}"#
}

async fn get_wraps(State(state): RegisterState, UrlPath(root): UrlPath<ModelRoot>) -> Json<ModelWraps> {
    let wraps = locked(&state).wraps.get(&root).cloned().unwrap_or_default();
    Json(ModelWraps { root, wraps })
}

async fn serve(register: Arc<Mutex<Register>>) -> ControlClient {
    let models =
        |State(state): RegisterState| async move { Json(Page { items: locked(&state).models.clone() }) };
    let history = |State(state): RegisterState| async move { Json(locked(&state).history.clone()) };
    let router = Router::new()
        .route("/v1/history", get(history))
        .route("/v1/models", get(models).post(post_model))
        .route("/v1/models/{root}/wraps", put(put_wraps).get(get_wraps))
        .with_state(register);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move { axum::serve(listener, router).await });
    ControlClient::new(vec![format!("http://{address}")], "token".into(), None).expect("a client")
}

/// A member, a node with a directory, and the circle of both.
struct Lab {
    folder: tempfile::TempDir,
    member: MemberKeyFile,
    node: NodeAdmission,
    register: Arc<Mutex<Register>>,
    session: Session,
}

impl Lab {
    async fn new() -> Self {
        let folder = tempfile::tempdir().expect("temporary directory");
        let member = MemberKeyFile::generate("alice".parse().expect("a name"));
        let keys = create_keys(folder.path(), false).expect("keys");
        let node = NodeAdmission {
            name: "node-1".parse().expect("a name"),
            id: NodeId(keys.identity),
            encryption: keys.encryption,
            roles: BTreeSet::from([NodeRole::Worker]),
            region: "eu".into(),
            labels: BTreeMap::new(),
            storage: None,
            gateway: None,
        };
        NodeFile { admission: node.clone() }.save(folder.path()).expect("saved");
        let members = vec![Member { id: member.member.clone(), keys: member.secret.public() }];
        let control = ControlReplica {
            id: ReplicaId(1),
            key: member.secret.public().ed25519,
            address: "127.0.0.1:1".into(),
            api: "http://127.0.0.1:1".into(),
        };
        let genesis = Genesis {
            name: "lab".into(),
            founded_at: Millis(1),
            policy: simple_policy(&members, 1),
            members,
            control: vec![control],
            nodes: vec![node.clone()],
            tokens: vec![],
        };
        let genesis = human_chain::sign_genesis(genesis, &[(member.member.clone(), &member.secret)]);
        let id = human_chain::circle_id(&genesis.genesis);
        let register = Arc::new(Mutex::new(Register {
            history: History { genesis, bundles: vec![] },
            models: vec![],
            wraps: BTreeMap::new(),
            unanswered: 0,
            registered: vec![],
            shared: vec![],
        }));
        let client = serve(register.clone()).await;
        let heads = HeadFile::beside(&folder.path().join("context.json"), id);
        let session = Session::with_client(client, id, heads).await.expect("a circle");
        Self { folder, member, node, register, session }
    }

    /// Imports the small model of the repository into two directories.
    async fn import(&self) -> Result<ModelRecord> {
        let access = ModelAccess::open(self.folder.path(), &self.session.circle).expect("a node");
        let store =
            |name: &str| store_reference(&format!("file://{}", self.folder.path().join(name).display()));
        let mut stores = vec![store("a"), store("b")];
        stores[1].failure_domain.push('b');
        let request = ImportRequest {
            name: "tiny".parse().expect("a name"),
            erasure: ErasureCode { data: 1, parity: 1 },
            stores,
            shards_per_domain_max: 1,
        };
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tiny");
        let summary = access.import(&self.session, &source, request, ProgressBar::hidden()).await?;
        Ok(summary.record)
    }

    fn secret(&self) -> EncryptionSecret {
        let secret = &self.member.secret;
        let public = secret.public().encryption;
        EncryptionSecret::from_parts(secret.x25519_secret(), secret.ml_kem_secret(), &public).expect("a key")
    }

    fn record(&self, name: &str) -> ModelRecord {
        ModelRecord {
            name: name.parse().expect("a name"),
            root: ModelRoot(Digest::of(name.as_bytes())),
            bytes: 1,
            segments: 1,
            erasure: ErasureCode { data: 1, parity: 1 },
            stores: vec![],
            architecture: "llama".into(),
        }
    }
}

/// Registration is one step: before it nothing is known, and after it the members hold the key.
///
/// A registration without a valid response is sent again with the same contents, which control treats as one.
#[tokio::test]
async fn an_import_registers_a_model_and_its_key_in_one_step() {
    let lab = Lab::new().await;
    locked(&lab.register).unanswered = 2;
    let record = lab.import().await.expect("imported");
    let state = locked(&lab.register);
    assert_eq!(state.registered.len(), 3, "two were not answered");
    assert!(state.registered.iter().all(|body| *body == state.registered[0]), "the same each time");
    assert!(state.shared.is_empty(), "nothing is left for a second step");
    let body = &state.registered[0];
    assert_eq!(body.record, record);
    let recipients: Vec<Recipient> = body.wraps.iter().map(|wrap| wrap.recipient.clone()).collect();
    let (member, node) = (Recipient::Member(lab.member.member.clone()), Recipient::Node(lab.node.id));
    assert_eq!(recipients, [member, node], "members first");
    unwrap_key(&body.wraps[0], &lab.secret()).expect("the member can share it");
}

#[tokio::test]
async fn a_taken_name_is_refused_before_anything_is_uploaded() {
    let lab = Lab::new().await;
    let taken = lab.record("tiny");
    locked(&lab.register).models.push(taken);
    let error = lab.import().await.expect_err("taken");
    let failure = error.downcast_ref::<Refusal>().expect("with a code");
    assert_eq!(failure.code, error_code::NAME_TAKEN);
    assert!(locked(&lab.register).registered.is_empty());
    assert!(!lab.folder.path().join("a").exists(), "no store was opened");
}

#[tokio::test]
async fn models_without_a_key_are_listed_and_do_not_block_the_others() {
    let lab = Lab::new().await;
    let key = ModelKey::generate().expect("a key");
    let public = lab.member.secret.public().encryption;
    {
        let mut state = locked(&lab.register);
        for name in ["keyless", "held", "mine"] {
            let record = lab.record(name);
            let to = match name {
                "held" => Some((&lab.node.encryption, Recipient::Node(lab.node.id))),
                "mine" => Some((&public, Recipient::Member(lab.member.member.clone()))),
                _ => None,
            };
            let wrap = to.map(|(to, who)| wrap_key(&key, to, record.root, who).expect("wrapped"));
            state.wraps.insert(record.root, wrap.into_iter().collect());
            state.models.push(record);
        }
    }
    let shared = wrap_models_to(&lab.session, &lab.member, &lab.node).await.expect("shared");
    let names = |models: &[ModelName]| models.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(
        (names(&shared.models), names(&shared.keyless)),
        (vec!["held".into(), "mine".into()], vec!["keyless".into()])
    );
    assert!(shared.note().is_some_and(|note| note.contains("keyless")));
    let state = locked(&lab.register);
    let given: Vec<_> = state.shared.iter().map(|wrap| (wrap.root, wrap.recipient.clone())).collect();
    assert_eq!(given, [(lab.record("mine").root, Recipient::Node(lab.node.id))], "only what it lacked");
}

/// Attack: the importer's last look at the circle leaves out a decision, such as the removal of a node.
#[tokio::test]
async fn no_key_is_wrapped_over_a_shorter_history() {
    let lab = Lab::new().await;
    let founded = locked(&lab.register).history.clone();
    let state = &lab.session.circle;
    let change = Change::Deploy(Box::new(crate::testing::manifest("bert")));
    let now = host::wall_clock();
    let nonce = Digest::of(b"nonce");
    let proposal = human_chain::propose(state, change, "run it".into(), now, now.plus(1000), nonce);
    let proposal = proposal.expect("it may be proposed");
    let member = lab.member.member.clone();
    let ballot = human_chain::vote(&lab.member.secret, member, state.head(), &proposal, Choice::Approve, now);
    let certificate = human_chain::certify(state, &proposal, &[ballot]).expect("one of one");
    let bundle = Bundle { version: BUNDLE_VERSION, certificate, log_evidence: None };
    locked(&lab.register).history.bundles.push(bundle);
    let session = lab.session.refresh().await.expect("it continues the session's history");
    let (key, record) = (ModelKey::generate().expect("a key"), lab.record("tiny"));
    locked(&lab.register).history = founded;
    let error = register(&session, &key, &record).await.expect_err("a decision is missing");
    let code = error.downcast_ref::<Refusal>().map(|refusal| refusal.code);
    assert_eq!(code, Some(error_code::HISTORY_SHORTER), "{error:#}");
    assert!(locked(&lab.register).registered.is_empty(), "no key was wrapped");
    // Positive control: an importer that has not seen the decision wraps the key over the same answer.
    std::fs::remove_dir_all(lab.folder.path().join("heads")).expect("removed");
    register(&lab.session, &key, &record).await.expect("registered");
    assert_eq!(locked(&lab.register).registered.len(), 1);
}
