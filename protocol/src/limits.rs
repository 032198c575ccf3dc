//! Every limit that two parts must agree on, with its reason. Limits of one part alone live there.

/// Longest name: a DNS label, so that a name can become a host name.
pub const NAME_BYTES_MAX: usize = 63;
/// Largest manifest people may write: a hundred times a commented one.
pub const MANIFEST_BYTES_MAX: usize = 64 * 1024;
/// Most members of a circle: 9 to 99 people is what a circle is for.
pub const MEMBERS_MAX: usize = 99;
/// Largest member of a roster: 3.2 kB of keys and an id of a name's length.
pub const MEMBER_BYTES_MAX: usize = 3400;
/// Deepest nesting of a quorum rule, `k of (k of (...))`: people cannot read deeper ones.
pub const QUORUM_DEPTH_MAX: usize = 6;
/// Most bytes that naming a member adds to one rule of a policy: the id, and a threshold of its own at every
/// depth.
pub const QUORUM_MEMBER_BYTES_MAX: usize = 80 + QUORUM_DEPTH_MAX * 32;
/// Largest roster: members, and the two rules that may each name all of them.
pub const ROSTER_BYTES_MAX: usize = MEMBERS_MAX * (MEMBER_BYTES_MAX + 2 * QUORUM_MEMBER_BYTES_MAX);
/// Largest rest of a proposal besides its change and its reason: digests, times and a subject.
pub const PROPOSAL_FRAME_BYTES_MAX: usize = 1024;
/// Largest proposal: a full roster, so that whatever circle can be founded can also change its members.
pub const PROPOSAL_BYTES_MAX: usize = 512 * 1024;
/// Largest ballot: a post-quantum signature of 3.3 kB, digests and an id.
pub const BALLOT_BYTES_MAX: usize = 4096;
/// Largest certificate: a proposal and every member's ballot.
pub const CERTIFICATE_BYTES_MAX: usize = PROPOSAL_BYTES_MAX + MEMBERS_MAX * BALLOT_BYTES_MAX + 1024;
/// Largest bundle: a certificate, its version and where the log holds it.
pub const BUNDLE_BYTES_MAX: usize = CERTIFICATE_BYTES_MAX + 1024;
/// Largest genesis: a full roster, every founder's signature, and the first nodes.
pub const GENESIS_BYTES_MAX: usize = 2 * 1024 * 1024;
/// Most numbered slots of one service.
pub const SLOTS_MAX: u32 = 1024;
/// Most nodes in a cluster.
pub const NODES_MAX: usize = 10_000;
/// Most stores of one node: more disks than a storage server holds.
pub const NODE_STORES_MAX: usize = 128;
/// Most proposals that wait for votes at once; more and nobody reads them.
pub const PROPOSALS_OPEN_MAX: usize = 256;
/// Most labels, regions or selector entries of one node or one manifest: people read them before they vote.
pub const LABELS_MAX: usize = 64;
/// Longest label key or value, or region, in bytes: as a name.
pub const LABEL_BYTES_MAX: usize = NAME_BYTES_MAX;
/// Longest reason or description, in bytes: a page, not a book.
pub const REASON_BYTES_MAX: usize = 4096;
/// Most bytes of compact JSON for one byte of canonical form: a control character is six, `\u0001`; a byte
/// string's digits are two, `null` is four and a comma.
pub const JSON_BYTES_PER_CANONICAL_BYTE: usize = 6;
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

const _: () = assert!(2 * MANIFEST_BYTES_MAX < PROPOSAL_BYTES_MAX, "canonical form may be longer than TOML");
const _: () = assert!(
    ROSTER_BYTES_MAX + REASON_BYTES_MAX + PROPOSAL_FRAME_BYTES_MAX <= PROPOSAL_BYTES_MAX,
    "a circle that can be founded can change its members"
);
const _: () =
    assert!(ROSTER_BYTES_MAX + MEMBERS_MAX * BALLOT_BYTES_MAX <= GENESIS_BYTES_MAX / 2, "room for nodes");
const _: () = assert!(
    JSON_BYTES_PER_CANONICAL_BYTE * (PROPOSAL_BYTES_MAX + 1024) <= API_BODY_BYTES_MAX,
    "people bring every proposal as JSON"
);
const _: () = assert!(BUNDLE_BYTES_MAX <= SYNC_BYTES_MAX / 4, "an agent's share of history holds any bundle");
const _: () = assert!(METRICS_LINE_BYTES_MAX <= 4096, "PIPE_BUF on Linux");
const _: () = assert!(SYNC_INTERVAL_MS * 4 < LEASE_MS, "a lease survives three lost answers");
