//! Tests of registration against a fake control that records requests and does not always send a valid
//! response.

use super::*;
use crate::client::ControlClient;
use crate::head::HeadFile;
use crate::member_key::MemberKeyFile;
use crate::member_key::signer::tests::TestSigner;
use crate::node::{ImportRequest, ModelAccess, NodeFile, UNSIGNED, create_keys, store_reference};
use crate::policy::simple_policy;
use crate::testing::{HistoryQuery, history_page};
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use axum::{Json, Router};
use human_chain::MemberSecret;
use indicatif::ProgressBar;
use model_store::{EncryptionSecret, unwrap_key};
use overlay::Identity;
use protocol::api::{History, Page, Problem};
use protocol::governance::*;
use protocol::model::{ErasureCode, SignedComplaint, SignedWrapRequest, StoredKind};
use protocol::{Digest, Millis, ModelRoot, NodeId, ReplicaId};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex};

/// State of a fake control, as an importer sees it: the responses, and the changes that were requested.
struct Register {
    history: History,
    models: Vec<ModelRecord>,
    /// Answer to a member's request for its wraps, until these wraps have been sent.
    lacking: Vec<LackingKey>,
    keyless: Vec<ModelName>,
    /// Number of registrations that still get a response that the client does not understand.
    unanswered: u32,
    /// Number of commands with wraps that another member still outruns.
    outrun: u32,
    registered: Vec<RegisterModel>,
    shared: Vec<SignedWrap>,
    requests: Vec<SignedWrapRequest>,
    complaints: Vec<SignedComplaint>,
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

async fn put_wraps(State(state): RegisterState, Json(body): Json<PutWraps>) -> Response {
    let mut state = locked(&state);
    if state.outrun > 0 {
        state.outrun -= 1;
        let problem: Problem = Refusal::new(error_code::WRAP_HELD, "another wrap is held").into();
        return (StatusCode::CONFLICT, Json(problem)).into_response();
    }
    state.shared.extend(body.wraps);
    Json(serde_json::json!({ "done": true })).into_response()
}

/// Lists the same lacking keys forever, as a hostile control would.
async fn member_wraps(State(state): RegisterState, Json(body): Json<SignedWrapRequest>) -> Json<MemberWraps> {
    let mut state = locked(&state);
    state.requests.push(body);
    Json(MemberWraps { lacking: state.lacking.clone(), keyless: state.keyless.clone() })
}

async fn complain(State(state): RegisterState, Json(body): Json<SignedComplaint>) -> &'static str {
    locked(&state).complaints.push(body);
    r#"{"done":true}"#
}

async fn serve(register: Arc<Mutex<Register>>) -> ControlClient {
    let models =
        |State(state): RegisterState| async move { Json(Page::whole(locked(&state).models.clone())) };
    let history = |State(state): RegisterState, Query(query): Query<HistoryQuery>| async move {
        Json(history_page(&locked(&state).history, query.after))
    };
    let router = Router::new()
        .route("/v1/history", get(history))
        .route("/v1/models", get(models).post(post_model))
        .route("/v1/wraps", put(put_wraps))
        .route("/v1/wraps/mine", post(member_wraps))
        .route("/v1/wraps/complaints", post(complain))
        .with_state(register);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move { axum::serve(listener, router).await });
    ControlClient::new(vec![format!("http://{address}")], "token".into(), None).expect("a client")
}

/// A member, a node with a directory, and the circle of both.
struct Lab {
    folder: tempfile::TempDir,
    member: MemberKey,
    /// The secret of the member.
    own: MemberSecret,
    node: NodeAdmission,
    register: Arc<Mutex<Register>>,
    session: Session,
}

impl Lab {
    async fn new() -> Self {
        let MemberKeyFile { member, secret } = MemberKeyFile::generate("alice".parse().expect("a name"));
        let own = MemberSecret::from_bytes(&secret.to_bytes()).expect("a secret");
        Self::of(MemberKeyFile { member, secret }.into(), own).await
    }

    /// Returns a circle of one member, whose key is held in any way.
    async fn of(member: MemberKey, own: MemberSecret) -> Self {
        let folder = tempfile::tempdir().expect("temporary directory");
        let keys = create_keys(folder.path(), false).expect("keys");
        let node = keys.claim(NodeAdmission {
            name: "node-1".parse().expect("a name"),
            id: NodeId(keys.identity.public_key()),
            encryption: keys.encryption.clone(),
            roles: BTreeSet::from([NodeRole::Worker]),
            region: "eu".into(),
            owner: None,
            labels: BTreeMap::new(),
            storage: None,
            gateway: None,
            proof: UNSIGNED,
        });
        NodeFile { admission: node.clone() }.save(folder.path()).expect("saved");
        let members = vec![Member { id: member.member.clone(), keys: own.public() }];
        let control = ControlReplica {
            id: ReplicaId(1),
            key: Identity::from_seed(&[1; 32]).public_key(),
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
            access: protocol::access::AccessEnvelope::standard([member.member.clone()]),
        };
        let genesis = human_chain::sign_genesis(genesis, &[(member.member.clone(), &own)]);
        let id = human_chain::circle_id(&genesis.genesis);
        let register = Arc::new(Mutex::new(Register {
            history: History { genesis, bundles: vec![] },
            models: vec![],
            lacking: vec![],
            keyless: vec![],
            unanswered: 0,
            outrun: 0,
            registered: vec![],
            shared: vec![],
            requests: vec![],
            complaints: vec![],
        }));
        let client = serve(register.clone()).await;
        let heads = HeadFile::beside(&folder.path().join("context.json"), id);
        let session = Session::with_client(client, id, heads).await.expect("a circle");
        Self { folder, member, own, node, register, session }
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
            is_foreign_allowed: false,
        };
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tiny");
        let summary =
            access.import(&self.session, &self.member, &source, request, ProgressBar::hidden()).await?;
        Ok(summary.record)
    }

    fn secret(&self) -> EncryptionSecret {
        let secret = &self.own;
        let public = secret.public().encryption;
        EncryptionSecret::from_parts(secret.x25519_secret(), secret.ml_kem_secret(), &public).expect("a key")
    }

    fn to_node(&self) -> Recipient {
        Recipient::Node(self.node.id)
    }

    /// States to the client that these parties lack a model's key, which the member has wrapped to itself.
    fn lacks(&self, name: &str, key: &ModelKey, recipients: Vec<Recipient>) {
        let to = Recipient::Member(self.member.member.clone());
        let wrap = make_wrap(&self.session, &self.member, key, self.record(name).root, &to).expect("wrapped");
        let model = name.parse().expect("a name");
        locked(&self.register).lacking.push(LackingKey { model, wrap, recipients });
    }

    async fn share(&self) -> SharedKeys {
        share_keys(&self.session, &self.member).await.expect("shared")
    }

    fn record(&self, name: &str) -> ModelRecord {
        ModelRecord {
            name: name.parse().expect("a name"),
            kind: StoredKind::Model,
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
    let recipients: Vec<Recipient> = body.wraps.iter().map(|signed| signed.wrap.recipient.clone()).collect();
    let (member, node) = (Recipient::Member(lab.member.member.clone()), lab.to_node());
    assert_eq!(recipients, [member, node], "members first");
    unwrap_key(&body.wraps[0].wrap, &lab.secret()).expect("the member can share it");
    for signed in &body.wraps {
        assert_eq!(check_wrap(&lab.session.circle, signed), Ok(()), "signed by the importer");
    }
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
async fn a_member_shares_what_others_lack_once_and_signs_it() {
    let lab = Lab::new().await;
    let key = ModelKey::generate().expect("a key");
    lab.lacks("mine", &key, vec![lab.to_node()]);
    locked(&lab.register).keyless.push("keyless".parse().expect("a name"));
    locked(&lab.register).outrun = 1;
    let shared = lab.share().await;
    assert_eq!(shared.lines(), ["shared the key of mine with node node-1"]);
    assert!(shared.notes().concat().contains("keyless"));
    let state = locked(&lab.register);
    assert_eq!(state.shared.len(), 1, "once, though control says that it is lacking still");
    assert_eq!(state.shared[0].wrap.recipient, lab.to_node());
    assert_eq!(check_wrap(&lab.session.circle, &state.shared[0]), Ok(()));
    let asked = &state.requests[0];
    assert_eq!(human_chain::check_wrap_request(&lab.session.circle, asked), Ok(()), "signed by the member");
    let (node, wrap) = (EncryptionSecret::load(&lab.folder.path().join("encryption.key")), &state.shared[0]);
    let opened = unwrap_key(&wrap.wrap, &node.expect("the node's")).expect("opens");
    assert_eq!(opened.commitment(), key.commitment());
}

/// Attack: control names a machine that the circle never admitted, or one that it removed, as a party that
/// lacks keys. The control case is the node that the verified history admits.
#[tokio::test]
async fn a_client_wraps_no_key_for_a_party_outside_the_verified_circle() {
    let lab = Lab::new().await;
    let key = ModelKey::generate().expect("a key");
    let stranger = Recipient::Node(NodeId(Identity::from_seed(&[66; 32]).public_key()));
    let outsider = Recipient::Member("mallory".parse().expect("a name"));
    lab.lacks("mine", &key, vec![stranger, outsider]);
    assert_eq!(lab.share().await.shared, []);
    assert!(locked(&lab.register).shared.is_empty());
    lab.lacks("other", &key, vec![lab.to_node()]);
    assert_eq!(lab.share().await.lines(), ["shared the key of other with node node-1"]);
}

/// Attack: control exchanges the encryption key of a node that asks, so that models' keys are wrapped to a
/// key of its own. The control case is the same exchange, signed by the node: its signature is all that is
/// missing.
#[tokio::test]
async fn an_admission_with_an_exchanged_key_is_not_proposed() {
    let lab = Lab::new().await;
    let keys = create_keys(&lab.folder.path().join("late"), false).expect("keys");
    let sound = keys.claim(NodeAdmission {
        name: "late".parse().expect("a name"),
        id: NodeId(keys.identity.public_key()),
        encryption: keys.encryption.clone(),
        ..lab.node.clone()
    });
    let own = EncryptionSecret::generate().expect("a key");
    let swapped = NodeAdmission { encryption: own.public().clone(), ..sound.clone() };
    let draft = |admission: NodeAdmission| {
        lab.session.draft(Change::AdmitNode(Box::new(admission)), "new rack".into(), 1000)
    };
    draft(sound).expect("as the node signed it");
    let error = draft(swapped.clone()).expect_err("the key is not the node's");
    let refusal = error.downcast_ref::<Refusal>().expect("with a code");
    assert_eq!(refusal.code, error_code::NODE_KEYS_UNPROVEN);
    draft(keys.claim(swapped)).expect("the node itself chose the key");
}

/// Attack: garbage is planted as a member's wrap. The member complains with its signature, and shares the
/// other keys.
#[tokio::test]
async fn a_member_complains_about_a_wrap_that_does_not_open() {
    let lab = Lab::new().await;
    let key = ModelKey::generate().expect("a key");
    lab.lacks("garbage", &key, vec![lab.to_node()]);
    lab.lacks("sound", &key, vec![lab.to_node()]);
    locked(&lab.register).lacking[0].wrap.wrap.sealed.0[0] ^= 1;
    let shared = lab.share().await;
    assert_eq!(shared.lines(), ["shared the key of sound with node node-1"]);
    assert!(shared.notes()[0].contains("garbage"));
    let state = locked(&lab.register);
    let complaint = state.complaints.first().expect("it complains");
    assert_eq!(complaint.complaint.wrap, state.lacking[0].wrap.digest());
    assert_eq!(human_chain::check_complaint(&lab.session.circle, complaint), Ok(()));
    assert_eq!(state.complaints.len(), 1, "once");
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
    let ballot = human_chain::vote(&lab.own, member, state.head(), &proposal, Choice::Approve, now);
    let certificate = human_chain::certify(state, &proposal, &[ballot]).expect("one of one");
    let bundle = Bundle { version: BUNDLE_VERSION, certificate, log_evidence: None };
    locked(&lab.register).history.bundles.push(bundle);
    let session = lab.session.refresh().await.expect("it continues the session's history");
    let (key, record) = (ModelKey::generate().expect("a key"), lab.record("tiny"));
    locked(&lab.register).history = founded;
    let error = register(&session, &lab.member, &key, &record).await.expect_err("a decision is missing");
    let code = error.downcast_ref::<Refusal>().map(|refusal| refusal.code);
    assert_eq!(code, Some(error_code::HISTORY_SHORTER), "{error:#}");
    assert!(locked(&lab.register).registered.is_empty(), "no key was wrapped");
    // Positive control: an importer that has not seen the decision wraps the key over the same answer.
    std::fs::remove_dir_all(lab.folder.path().join("heads")).expect("removed");
    register(&lab.session, &lab.member, &key, &record).await.expect("registered");
    assert_eq!(locked(&lab.register).registered.len(), 1);
}

/// A member whose key is in an external signer imports models, and shares their keys.
#[tokio::test]
async fn an_external_signer_wraps_and_opens_models_keys() {
    let signer = TestSigner::new();
    let (key, secret) = (signer.enrol().expect("enrolled").0.into_key(), signer.secret());
    let lab = Lab::of(key, secret).await;
    lab.import().await.expect("imported");
    let key = ModelKey::generate().expect("a key");
    lab.lacks("tiny", &key, vec![lab.to_node()]);
    let outcome = lab.share().await;
    assert_eq!((outcome.shared.len(), outcome.closed.len()), (1, 0));
    let shared = locked(&lab.register).shared.clone();
    assert_eq!(check_wrap(&lab.session.circle, &shared[0]), Ok(()), "signed by the member");
}

/// Attack: a faulty signer makes its member complain about a sound wrap, which control then drops.
#[tokio::test]
async fn attack_a_signer_with_other_secrets_spoils_no_wrap() {
    for (behaviour, complaints, refused) in [
        // Positive control: of a garbage wrap the member complains, since its signer opens wraps.
        ("honest", 1, None),
        ("other-secrets", 0, Some(error_code::SIGNER_INVALID)),
        ("signatures-only", 0, Some(error_code::SIGNER_FAILED)),
    ] {
        let signer = TestSigner::new();
        let (key, secret) = (signer.enrol().expect("enrolled").0.into_key(), signer.secret());
        let lab = Lab::of(key, secret).await;
        lab.lacks("tiny", &ModelKey::generate().expect("a key"), vec![lab.to_node()]);
        if refused.is_none() {
            let mut state = locked(&lab.register);
            let wrap = &mut state.lacking[0].wrap;
            wrap.wrap.sealed.0[0] ^= 1;
            let to = &lab.own.public().encryption;
            *wrap = sign_wrap(&lab.own, wrap.maker.clone(), lab.session.circle.id(), to, wrap.wrap.clone());
        }
        signer.behave(behaviour);
        let outcome = share_keys(&lab.session, &lab.member).await;
        let code = outcome.err().and_then(|error| Some(error.downcast_ref::<Refusal>()?.code));
        assert_eq!(code, refused, "{behaviour}");
        assert_eq!(locked(&lab.register).complaints.len(), complaints, "{behaviour}");
    }
}
