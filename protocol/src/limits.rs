//! Every limit that two parts must agree on, with its reason. Limits of one part alone live there.

/// Longest name: a DNS label, so that a name can become a host name.
pub const NAME_BYTES_MAX: usize = 63;
/// Largest manifest people may write: a hundred times a commented one.
pub const MANIFEST_BYTES_MAX: usize = 64 * 1024;
/// Largest proposal: a manifest, or a roster of members with their 2 kB post-quantum keys.
pub const PROPOSAL_BYTES_MAX: usize = 256 * 1024;
/// Most members of a circle: 9 to 99 people is what a circle is for.
pub const MEMBERS_MAX: usize = 99;
/// Largest certificate: a proposal and every member's ballot of about 4 kB.
pub const CERTIFICATE_BYTES_MAX: usize = PROPOSAL_BYTES_MAX + MEMBERS_MAX * 8 * 1024;
/// Largest genesis: 99 members of 4 kB of keys and 4 kB of signature, and the first nodes.
pub const GENESIS_BYTES_MAX: usize = 2 * 1024 * 1024;
/// Most numbered slots of one service.
pub const SLOTS_MAX: u32 = 1024;
/// Most nodes in a cluster.
pub const NODES_MAX: usize = 10_000;
/// Most stores of one node: more disks than a storage server holds.
pub const NODE_STORES_MAX: usize = 128;
/// Most proposals that wait for votes at once; more and nobody reads them.
pub const PROPOSALS_OPEN_MAX: usize = 256;
/// Longest reason or description, in bytes: a page, not a book.
pub const REASON_BYTES_MAX: usize = 4096;
/// Largest request body of the control API.
pub const API_BODY_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Largest request body of the inference API.
pub const INFERENCE_BODY_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Largest exchange between an agent and control.
pub const SYNC_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Largest frame on a unix socket between an agent and what it started.
pub const FRAME_BYTES_MAX: usize = 1024 * 1024;
/// One line of worker metrics: within `PIPE_BUF`, so that a write to the pipe is atomic.
pub const METRICS_LINE_BYTES_MAX: usize = 4096;
/// Largest model manifest: 64 MiB names about 250,000 segments, 250 GB.
pub const MODEL_MANIFEST_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Plaintext bytes of a segment, at most: small enough to verify before use, large enough for AEAD and
/// erasure coding to run at memory speed.
pub const SEGMENT_BYTES_MAX: usize = 1024 * 1024;
/// How long a node may act on one answer of control.
pub const LEASE_MS: u64 = 3_000;
/// How often an agent asks control.
pub const SYNC_INTERVAL_MS: u64 = 500;
/// How far certificates' wall-clock times may be off.
pub const CLOCK_GRACE_MS: u64 = 5 * 60 * 1000;

const _: () = assert!(MANIFEST_BYTES_MAX < PROPOSAL_BYTES_MAX);
const _: () = assert!(CERTIFICATE_BYTES_MAX < API_BODY_BYTES_MAX);
const _: () = assert!(CERTIFICATE_BYTES_MAX < SYNC_BYTES_MAX);
const _: () = assert!(METRICS_LINE_BYTES_MAX <= 4096, "PIPE_BUF on Linux");
const _: () = assert!(SYNC_INTERVAL_MS * 4 < LEASE_MS, "a lease survives three lost answers");
