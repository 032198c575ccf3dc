//! One entry of a listing.

use object_store::ObjectMeta;
use std::time::SystemTime;

/// One object, or a leftover of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Listed {
    pub(crate) name: String,
    pub(crate) bytes: u64,
    pub(crate) modified: SystemTime,
}

impl From<ObjectMeta> for Listed {
    fn from(meta: ObjectMeta) -> Self {
        let ObjectMeta { location, last_modified, size, .. } = meta;
        Self { name: location.to_string(), bytes: size, modified: last_modified.into() }
    }
}
