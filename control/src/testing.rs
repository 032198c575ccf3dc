//! Fixtures shared by the tests of several modules.

use protocol::api::{ServiceView, Status};
use protocol::governance::{NodeAdmission, NodeRole};
use protocol::keys::{ByteString, EncryptionKey, ML_KEM_768_PUBLIC_KEY_LENGTH};
use protocol::manifest::Manifest;
use protocol::model::{ErasureCode, ModelRecord};
use protocol::{Digest, Epoch, ModelRoot, NodeId, PublicKey};
use std::collections::{BTreeMap, BTreeSet};

/// Returns the status of a healthy cluster without findings.
pub(crate) fn status() -> Status {
    Status {
        healthy: true,
        summary: "all is well".into(),
        findings: vec![],
        leader: None,
        replicas: 3,
        replicas_silent: vec![],
        nodes: 4,
        nodes_alive: 4,
        services: 2,
        epoch: Epoch(1),
        simulated: vec![],
        not_enforced: vec![],
    }
}

/// Returns the admission of a worker with this name.
pub(crate) fn admission(name: &str) -> NodeAdmission {
    let id = NodeId(PublicKey([7; 32]));
    NodeAdmission {
        name: name.parse().expect("a name"),
        id,
        encryption: EncryptionKey { x25519: id.0, ml_kem: ByteString(vec![7; ML_KEM_768_PUBLIC_KEY_LENGTH]) },
        roles: BTreeSet::from([NodeRole::Worker]),
        region: "local".into(),
        labels: BTreeMap::new(),
        storage: None,
        gateway: None,
        proof: crate::node::UNSIGNED,
    }
}

/// Returns the record of a registered model with this name and architecture, in no store.
pub(crate) fn model_record(name: &str, architecture: &str) -> ModelRecord {
    ModelRecord {
        name: name.parse().expect("a name"),
        root: ModelRoot(Digest::of(b"model")),
        bytes: 1,
        segments: 1,
        erasure: ErasureCode { data: 4, parity: 2 },
        stores: Vec::new(),
        architecture: architecture.into(),
    }
}

/// Returns the manifest of the service `mine`, as `quorate new` prints it for a model of this architecture.
pub(crate) fn manifest(architecture: &str) -> Manifest {
    let record = model_record("mine", architecture);
    let text = crate::cli::service_template(&"mine".parse().expect("a name"), &record, 1, 3);
    Manifest::from_toml(&text).expect("the template is valid")
}

/// Returns the service `mine` with two desired replicas and no slots, approved by this certificate.
pub(crate) fn service_view(certificate: &[u8], ready: u32, ready_current: u32) -> ServiceView {
    ServiceView {
        name: "mine".parse().expect("a name"),
        manifest: manifest("bert"),
        certificate: Digest::of(certificate),
        desired: 2,
        ready,
        ready_current,
        retiring: false,
        slots: vec![],
    }
}
