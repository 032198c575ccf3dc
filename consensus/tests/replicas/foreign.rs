//! Replica of another group with the right key: every peer endpoint rejects it.

use crate::group::{Client, GROUP, Group, lines};
use bytes::Bytes;
use consensus::{GroupId, Limits};
use http::{Method, Request, StatusCode};
use protocol::ReplicaId;

const PATHS: [(Method, &str); 4] = [
    (Method::GET, "/consensus/v1/messages"),
    (Method::POST, "/consensus/v1/snapshot"),
    (Method::POST, "/consensus/v1/propose"),
    (Method::POST, "/consensus/v1/read"),
];

/// Returns the answer of replica 1 to the key of replica 2, in the name of this group.
async fn ask(group: &Group, named: Option<GroupId>, method: Method, path: &str) -> (StatusCode, Bytes) {
    let (identity, target) = (&group.identities[&ReplicaId(2)], &group.peers[&ReplicaId(1)]);
    let client = overlay::Client::new(
        (**identity).clone(),
        target.address.clone(),
        target.key,
        overlay::Limits::default(),
    );
    let mut request = Request::builder().method(method).uri(path);
    if let Some(named) = named {
        request = request.header("quorate-group", named.to_string());
    }
    let body = overlay::Body::from(Bytes::from_static(b"\0attack"));
    let response = client.send(request.body(body).expect("a request")).await.expect("an answer");
    let status = response.status();
    if path.ends_with("messages") && status == StatusCode::OK {
        // The stream has no end: its beginning is enough.
        return (status, Bytes::new());
    }
    let body = http_body_util::BodyExt::collect(response.into_body()).await.expect("a body");
    (status, body.to_bytes())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_of_another_group_is_rejected_even_with_the_right_key() {
    let group = Group::start(Limits::default());
    let mut client = Client::new(&group.handle(ReplicaId(1))).await;
    client.propose(&group.handle(ReplicaId(1)), "before").await.expect("taken");
    for (method, path) in PATHS {
        for other in [None, Some(GroupId([8; 32]))] {
            let (status, body) = ask(&group, other, method.clone(), path).await;
            assert_eq!((status, &body[..]), (StatusCode::PRECONDITION_FAILED, &b"log-foreign"[..]), "{path}");
        }
    }
    assert_eq!(lines(&group.handle(ReplicaId(1))).await, ["before"]);
    // The same requests in the name of the right group are admitted, and judged by their content.
    for (method, path) in PATHS {
        let (status, body) = ask(&group, Some(GROUP), method, path).await;
        assert_ne!(&body[..], b"log-foreign", "{path}");
        assert!(
            !matches!(status, StatusCode::PRECONDITION_FAILED | StatusCode::FORBIDDEN),
            "{path}: {status}"
        );
    }
}
