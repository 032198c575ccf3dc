//! Dispersed storage of models and artifacts: manifests, tensor-aligned segments, erasure coding, encryption,
//! placement, verified range reads, repair.
//!
//! A model is a set of files laid end to end in one *weights map*. It is cut along tensor boundaries into
//! *segments* of at most 1 MiB. Each segment is encrypted (AES-256-GCM), split and extended by Reed-Solomon
//! into k + m *shards*. Shard `i` of every segment is stored in store `i`. Any k stores restore every byte;
//! fewer restore nothing; a wrong byte is never returned.
//!
//! - [`import`] writes a directory or a file into stores; [`inspect`] finds beforehand what it would refuse.
//! - [`quantize`] writes the weights of a model with 8 bits; [`compare_content`] compares a directory with a
//!   stored model.
//! - [`Reader`] reads any byte range, or fills a whole weights map in the order in which an engine needs it.
//! - [`verify`] checks every shard, [`repair`] rewrites the wrong and missing ones; neither needs the key.
//! - [`sweep`] removes forgotten models and the leftovers of incomplete imports (garbage collection).
//! - [`Store`] is one `file://`, `s3://` or `node://` store; [`ShardService`] offers directories to peers.
//! - [`ArtifactBuilder`] packs the root file system of a program into one file, which is stored like a model;
//!   [`ArtifactCache`] keeps unpacked trees on a node.
//! - [`ModelKey`], [`EncryptionSecret`], [`wrap_key`], [`unwrap_key`] control read access.
//!
//! Out of scope: the meaning of tensors, and decisions, which callers take from a verified history
//! ([`ModelDecisions`]): the peers that are admitted, and the models that are forgotten. Work on bytes runs
//! on the threads of a [`Pool`], never on tokio's; only waiting for other machines is asynchronous.

mod age;
mod artifact;
mod codec;
mod destination;
mod disk;
mod error;
mod fault;
#[doc(hidden)]
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod geometry;
mod import;
mod import_directory;
mod key;
mod layout;
mod placement;
mod pool;
mod quantize;
mod read;
mod remote;
mod repair;
mod service;
mod source;
mod store;
mod sweep;
#[cfg(test)]
mod testing;
mod wire;

pub use artifact::{
    ArtifactBuilder, ArtifactCache, ArtifactError, ArtifactLimits, CachedTree, ImageStart, PackedArtifact,
    TreeFault, TreeInUse, open_data, unpack_data,
};
pub use destination::{Destination, MapDestination, MemoryDestination};
pub use error::{ImportError, KeyError, PlacementError, ReadError, StoreError, SweepError};
pub use fault::{FaultKind, FaultSink, ShardFault, log_faults};
pub use import::{ImportOptions, ImportProgress, Imported, import, let_go};
pub use key::{EncryptionSecret, ModelKey, SharedSecrets, open_wrap, unwrap_key, wrap_key};
pub use placement::{PlacementRule, place};
pub use pool::Pool;
pub use quantize::{Quantized, compare_content, is_quantized, quantize};
pub use read::{FillReport, OnSegment, Reader, fetch_manifest};
pub use remote::RemoteStore;
pub use repair::{HealthReport, RepairReport, repair, verify};
pub use service::{ModelDecisions, ShardService};
pub use source::{InspectedModel, SourceFile, inspect};
pub use store::{Context, NodeAddress, Store, open_store};
pub use sweep::{
    IMPORT_SILENCE_MAX, ObjectTotals, SWEEP_AGE_DEFAULT, SWEEP_AGE_MIN, SweepOptions, SweepProgress,
    SweepReport, sweep,
};

/// Generates a random nonce for one import.
///
/// # Errors
/// [`KeyError::Random`] if the operating system provides no randomness.
pub fn fresh_nonce() -> Result<protocol::model::ModelNonce, KeyError> {
    let mut bytes = [0; 16];
    key::fill_random(&mut bytes)?;
    Ok(protocol::model::ModelNonce(bytes))
}
