//! What tests of several modules begin with.

use protocol::model::{ErasureCode, ModelRecord};
use protocol::{Digest, ModelRoot};

/// A registered model of this name and architecture, in no store.
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
