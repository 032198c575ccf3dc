//! Tests of wraps of model keys at control: they leave for their recipients alone, and garbage is replaced.

use super::circle::{TOKEN, admission, alice, claimed_by, other, sync_request};
use super::faults::{SimulatedServers, ask};
use super::outcomes::ballot;
use crate::server::{Server, agents, leader};
use crate::testing::{manifest, model_record};
use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use host::wall_clock;
use human_chain::{MemberSecret, sign_complaint, sign_wrap, sign_wrap_request};
use model_store::{EncryptionSecret, ModelKey, unwrap_key, wrap_key};
use overlay::{Identity, Peer};
use protocol::agent::{SyncRequest, SyncResponse};
use protocol::api::{MemberWraps, Problem, PutWraps, RegisterModel, SubmitProposal};
use protocol::governance::{Change, NodeAdmission};
use protocol::keys::EncryptionKey;
use protocol::limits::SYNC_BYTES_MAX;
use protocol::model::{
    ModelRecord, Recipient, RecipientSignature, SignedComplaint, SignedWrap, SignedWrapRequest,
    StoreReference, WRAP_COMPLAINT_DOMAIN, WrapComplaint, WrapRequest,
};
use protocol::{CircleId, Digest, canonical};
use std::sync::Arc;
use tower::ServiceExt as _;

/// A control replica that leads, a model, and a worker that was admitted by a vote.
struct Lab {
    world: SimulatedServers,
    node: Identity,
    secret: EncryptionSecret,
    key: ModelKey,
    record: ModelRecord,
}

impl Lab {
    async fn new() -> Self {
        let world = SimulatedServers::start(1);
        world.lead().await;
        let mut record = model_record("mine", "bert");
        let store = |n| StoreReference { url: format!("file:///s{n}"), failure_domain: format!("d{n}") };
        record.stores = (0..6).map(store).collect();
        let (node, secret) = (other(1), EncryptionSecret::generate().unwrap());
        let lab = Self { world, node, secret, key: ModelKey::generate().unwrap(), record };
        lab.decide(Change::AdmitNode(Box::new(lab.admission()))).await;
        lab
    }

    fn server(&self) -> &Arc<Server> {
        &self.world.servers[0]
    }

    fn admission(&self) -> NodeAdmission {
        let encryption = self.secret.public().clone();
        claimed_by(&self.node, NodeAdmission { encryption, ..admission("late", &self.node) })
    }

    fn circle(&self) -> CircleId {
        self.server().cluster(|cluster| cluster.circle_state().unwrap().id())
    }

    fn to_node(&self) -> Recipient {
        Recipient::Node(protocol::NodeId(self.node.public_key()))
    }

    /// Returns a key, wrapped to this party by alice.
    fn wrap(&self, key: &ModelKey, to: &EncryptionKey, recipient: Recipient) -> SignedWrap {
        let (member, secret) = alice();
        let wrap = wrap_key(key, to, self.record.root, recipient).unwrap();
        sign_wrap(secret, member, self.circle(), to, wrap)
    }

    /// Has the circle decide a change, by its only member's vote.
    async fn decide(&self, change: Change) {
        let now = wall_clock();
        let proposal = self.server().cluster(|cluster| {
            let nonce = Digest::of(&cluster.generation().to_le_bytes());
            let state = cluster.circle_state().unwrap();
            human_chain::propose(state, change, "a test".into(), now, now.plus(3_600_000), nonce).unwrap()
        });
        let vote = ballot(&proposal);
        let path = format!("/v1/proposals/{}/ballots", proposal.id());
        self.must(Method::POST, "/v1/proposals", &SubmitProposal { proposal, ballot: None }).await;
        self.must(Method::POST, &path, &vote).await;
    }

    async fn must<B: serde::Serialize>(&self, method: Method, path: &str, body: &B) -> Vec<u8> {
        let (status, body) = ask(self.server(), method, path, Some(body)).await;
        assert_eq!(status, StatusCode::OK, "{path}: {}", String::from_utf8_lossy(&body));
        body
    }

    async fn code<B: serde::Serialize>(&self, method: Method, path: &str, body: Option<&B>) -> String {
        let (status, body) = ask(self.server(), method, path, body).await;
        assert!(!status.is_success(), "{path}: {}", String::from_utf8_lossy(&body));
        serde_json::from_slice::<Problem>(&body).unwrap().code
    }

    /// Registers the model with alice's wrap and this one for the node.
    async fn register(&self, for_node: SignedWrap) {
        let (member, secret) = alice();
        let to = secret.public().encryption;
        let own = self.wrap(&self.key, &to, Recipient::Member(member));
        let body = RegisterModel { record: self.record.clone(), wraps: vec![own, for_node] };
        self.must(Method::POST, "/v1/models", &body).await;
    }

    /// Sends the sync of a node with this key, over its authenticated connection.
    async fn sync(
        &self,
        identity: &Identity,
        complaints: Vec<SignedComplaint>,
    ) -> Result<SyncResponse, StatusCode> {
        let request = SyncRequest { complaints, ..sync_request() };
        let mut request =
            Request::post(agents::SYNC).body(Body::from(canonical::to_bytes(&request))).unwrap();
        request.extensions_mut().insert(Peer(identity.public_key()));
        let answer = agents::router(self.server().clone()).oneshot(request).await.unwrap();
        let (head, body) = answer.into_parts();
        let body = axum::body::to_bytes(body, SYNC_BYTES_MAX).await.unwrap();
        match head.status {
            StatusCode::OK => Ok(canonical::from_bytes(&body, SYNC_BYTES_MAX).unwrap()),
            status => Err(status),
        }
    }

    async fn plan(&self) {
        leader::planning_round(self.server(), self.server().handle.status().term).await;
    }

    /// Returns the wrap that the node is sent with its order.
    async fn sent(&self) -> Option<SignedWrap> {
        let answer = self.sync(&self.node, vec![]).await.unwrap();
        answer.desired.unwrap().assignments.pop().expect("an order").wrap
    }

    fn request(&self, secret: &MemberSecret) -> SignedWrapRequest {
        sign_wrap_request(secret, WrapRequest { circle: self.circle(), member: alice().0 })
    }
}

/// Attack: the holder of an access token with every scope fetches the wraps of a model's key. The control
/// case is the member, with the same token and its signature: it gets its own wrap.
#[tokio::test(start_paused = true)]
async fn an_access_token_alone_fetches_no_wrap() {
    let lab = Lab::new().await;
    let (member, secret) = alice();
    let to = secret.public().encryption;
    let own = lab.wrap(&lab.key, &to, Recipient::Member(member.clone()));
    let body = RegisterModel { record: lab.record.clone(), wraps: vec![own] };
    lab.must(Method::POST, "/v1/models", &body).await;

    let of_model = format!("/v1/models/{}/wraps", lab.record.root);
    assert_eq!(lab.code::<()>(Method::GET, &of_model, None).await, "path-not-found");
    for path in ["/v1/wraps", "/v1/wraps/mine", "/v1/wraps/complaints"] {
        assert_eq!(lab.code::<()>(Method::GET, path, None).await, "method-not-allowed", "{path}");
    }
    let mallory = MemberSecret::generate(&[66; 64]);
    let forged = lab.request(&mallory);
    assert_eq!(lab.code(Method::POST, "/v1/wraps/mine", Some(&forged)).await, "signature-invalid");
    let mut elsewhere = lab.request(secret);
    elsewhere.request.circle = CircleId(Digest::of(b"another"));
    assert_eq!(lab.code(Method::POST, "/v1/wraps/mine", Some(&elsewhere)).await, "circle-mismatch");
    let unknown = WrapRequest { circle: lab.circle(), member: "mallory".parse().unwrap() };
    let unknown = sign_wrap_request(&mallory, unknown);
    assert_eq!(lab.code(Method::POST, "/v1/wraps/mine", Some(&unknown)).await, "not-a-member");
    // No answer that a token opens carries a wrap.
    for path in ["/v1/models", "/v1/nodes", "/v1/history", "/v1/status", "/v1/events", "/v1/services"] {
        let (status, body) = ask::<()>(lab.server(), Method::GET, path, None).await;
        assert_eq!(status, StatusCode::OK, "{path}");
        assert!(!String::from_utf8_lossy(&body).contains("encapsulated"), "{path} with {TOKEN}");
    }

    let answer = lab.must(Method::POST, "/v1/wraps/mine", &lab.request(secret)).await;
    let answer: MemberWraps = serde_json::from_slice(&answer).unwrap();
    let [lacking] = answer.lacking.as_slice() else { panic!("one model: {answer:?}") };
    assert_eq!(lacking.wrap.wrap.recipient, Recipient::Member(member));
    assert_eq!(lacking.recipients, [lab.to_node()]);
}

/// A garbage wrap that a member planted first reaches the node, which complains; then another wrap takes its
/// place. A node that was removed gets nothing more.
#[tokio::test(start_paused = true)]
async fn a_node_gets_its_wraps_over_its_own_connection_and_garbage_is_replaced() {
    let lab = Lab::new().await;
    let garbage = lab.wrap(&lab.key, EncryptionSecret::generate().unwrap().public(), lab.to_node());
    // Signed for the node's key, as a hostile member would.
    let garbage = {
        let (member, secret) = alice();
        sign_wrap(secret, member, lab.circle(), lab.secret.public(), garbage.wrap)
    };
    lab.register(garbage.clone()).await;
    lab.decide(Change::Deploy(Box::new(manifest("bert")))).await;
    lab.sync(&lab.node, vec![]).await.unwrap();
    lab.plan().await;
    let sent = lab.sent().await.expect("the garbage");
    assert_eq!(sent, garbage);
    assert!(unwrap_key(&sent.wrap, &lab.secret).is_err());

    let sound = PutWraps { wraps: vec![lab.wrap(&lab.key, lab.secret.public(), lab.to_node())] };
    assert_eq!(lab.code(Method::PUT, "/v1/wraps", Some(&sound)).await, "wrap-held", "garbage is in the way");
    let complaint = WrapComplaint {
        circle: lab.circle(),
        root: lab.record.root,
        recipient: lab.to_node(),
        wrap: sent.digest(),
    };
    let sign = |identity: &Identity| SignedComplaint {
        signature: RecipientSignature::Node(
            identity.sign(WRAP_COMPLAINT_DOMAIN, &canonical::to_bytes(&complaint)),
        ),
        complaint: complaint.clone(),
    };
    lab.sync(&lab.node, vec![sign(&other(7))]).await.unwrap();
    assert_eq!(lab.sent().await, Some(garbage), "a complaint by another key drops nothing");
    lab.sync(&lab.node, vec![sign(&lab.node)]).await.unwrap();
    assert_eq!(lab.sent().await, None);
    lab.must(Method::PUT, "/v1/wraps", &sound).await;
    let opened = unwrap_key(&lab.sent().await.expect("a wrap").wrap, &lab.secret).expect("opens");
    assert_eq!(opened.commitment(), lab.key.commitment());
    let late = lab.code(Method::POST, "/v1/wraps/complaints", Some(&sign(&lab.node))).await;
    assert_eq!(late, "wrap-not-held", "the wrap that replaced it stays");

    lab.decide(Change::RemoveNode { node: "late".parse().unwrap() }).await;
    assert_eq!(lab.sync(&lab.node, vec![]).await, Err(StatusCode::FORBIDDEN), "it is removed");
    assert_eq!(lab.sync(&other(9), vec![]).await, Err(StatusCode::FORBIDDEN), "it was never admitted");
    assert_eq!(lab.code(Method::PUT, "/v1/wraps", Some(&sound)).await, "node-not-admitted");
}

/// A member whose own wrap is garbage has it dropped by its signature, and not by a token alone.
#[tokio::test(start_paused = true)]
async fn a_members_complaint_needs_the_members_signature() {
    let lab = Lab::new().await;
    lab.register(lab.wrap(&lab.key, lab.secret.public(), lab.to_node())).await;
    let (member, secret) = alice();
    let recipient = Recipient::Member(member);
    let wrap =
        lab.server().cluster(|cluster| cluster.wrap_of(&lab.record.root, &recipient).unwrap().digest());
    let complaint = WrapComplaint { circle: lab.circle(), root: lab.record.root, recipient, wrap };
    let forged = sign_complaint(&MemberSecret::generate(&[66; 64]), complaint.clone());
    assert_eq!(lab.code(Method::POST, "/v1/wraps/complaints", Some(&forged)).await, "signature-invalid");
    lab.must(Method::POST, "/v1/wraps/complaints", &sign_complaint(secret, complaint)).await;
}
