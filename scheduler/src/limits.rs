//! Limits of the cluster state alone, each with its reason. Those shared with other parts are in
//! `protocol::limits`.

/// Most steps of one plan: an entry of the log stays well below a megabyte, and the next plan goes on.
pub const PLAN_STEPS_MAX: usize = 1024;
/// Audit events kept: several days of a quiet cluster, and a snapshot stays small.
pub const AUDIT_EVENTS_MAX: usize = 4096;
/// Decided proposals kept for people to look back on; the governance chain keeps all certificates.
pub const CLOSED_PROPOSALS_MAX: usize = 128;
/// Nodes that wait for admission at once: an unknown key may ask, so the list must be short.
pub const PENDING_NODES_MAX: usize = 256;
/// Most bytes of a node's request to be admitted: keys of 1.3 kB, addresses, labels.
pub const PENDING_BYTES_MAX: usize = 16 * 1024;
/// Where the list is full, a node that has not asked for so long gives its place to one that asks. Agents ask
/// every two seconds, and one in [`PENDING_REFRESH_MS`] is noted.
pub const PENDING_SILENT_MS: u64 = 5 * 60 * 1000;
/// A node that waits for admission and stopped asking is forgotten after an hour.
pub const PENDING_NODE_MS: u64 = 60 * 60 * 1000;
/// A waiting node's request is written to the log again only after a minute, however often it asks.
pub const PENDING_REFRESH_MS: u64 = 60 * 1000;
/// Registered models: far more than a circle can vote on.
pub const MODELS_MAX: usize = 4096;
/// Inference keys; a gateway keeps all of them in memory and receives them with every table.
pub const API_KEYS_MAX: usize = 4096;
/// Largest step of a plan: an order with the GPUs of a whole machine that replaces another.
pub const STEP_BYTES_MAX: usize = 1024;
/// Key wraps in one command: so many that a model's key reaches a thousand nodes at once.
pub const WRAPS_PER_COMMAND_MAX: usize = 1024;
/// Largest key wrap: 1.1 kB of post-quantum ciphertext, a sealed key and names.
pub const WRAP_BYTES_MAX: usize = 1536;
/// Longest URL of a store, in bytes.
pub const STORE_URL_BYTES_MAX: usize = 1024;
/// Longest text of an audit event, in bytes.
pub const AUDIT_TEXT_BYTES_MAX: usize = 512;
/// Commands whose outcomes are kept for their idempotency keys: half a minute of five hundred writes a second, which is
/// longer than a client sends a write again. A few milliseconds to copy for a snapshot.
pub const IDEMPOTENCY_RECORDS_MAX: usize = 16_384;
/// Bytes of those outcomes: most are a word.
pub const IDEMPOTENCY_BYTES_MAX: usize = 8 * 1024 * 1024;
/// How long an outcome is kept where there is room: a day, as services elsewhere keep theirs.
pub const IDEMPOTENCY_MS: u64 = 24 * 60 * 60 * 1000;
/// Largest rest of a command: its time, who asked, and what for.
pub const COMMAND_FRAME_BYTES_MAX: usize = 1024;
/// Largest command: a genesis; a roster, a plan and wraps are smaller.
pub const COMMAND_BYTES_MAX: usize = protocol::limits::GENESIS_BYTES_MAX + COMMAND_FRAME_BYTES_MAX;
/// Largest snapshot: the governance chain of decades. A larger one is refused rather than believed.
pub const SNAPSHOT_BYTES_MAX: usize = 1 << 30;
/// How long a slot that moves or is no longer wanted may finish its requests: longer than nearly every
/// request, short enough that a roll-out of ten slots ends within minutes.
pub const DRAIN_MS: u64 = 30_000;
/// How long a service in which a slot failed on a node is not tried there again: long enough that a failing
/// service does not fill the log, short enough that a repaired node is used again without a command.
pub const AVOID_MS: u64 = 60 * 1000;
/// Restarts of a worker after which its slot is tried on another node.
pub const RESTARTS_MAX: u32 = 5;
/// How long every slot of a service must have been unchanged, and a node heard without a gap, before a replica
/// moves there for a better spread. It is also the bound on moves: one a service in this time, so a node that
/// comes and goes costs at most one load of the model in two minutes, and nothing moves while things settle.
pub const REBALANCE_CALM_MS: u64 = 2 * 60 * 1000;
/// How long a replica that moves may take to answer in its new place before it is given up there: longer than
/// the load of a large model, short enough that the surplus slot is not held for an hour.
pub const REBALANCE_PATIENCE_MS: u64 = 10 * 60 * 1000;
/// By how many replicas of a service two nodes must differ before one moves. At two a move always makes
/// the spread better; at one it would only exchange the nodes' parts, for ever.
pub const REBALANCE_GAIN_MIN: u32 = 2;

const _: () = {
    use protocol::limits::{CERTIFICATE_BYTES_MAX, PROPOSAL_BYTES_MAX, PROPOSALS_OPEN_MAX};
    let command = COMMAND_BYTES_MAX - COMMAND_FRAME_BYTES_MAX;
    assert!(PROPOSAL_BYTES_MAX <= command, "what may be asked for can be written");
    assert!(PLAN_STEPS_MAX * STEP_BYTES_MAX <= command, "a plan fits into the log");
    assert!(WRAPS_PER_COMMAND_MAX * WRAP_BYTES_MAX <= command, "wraps fit into the log");
    let proposals = PROPOSALS_OPEN_MAX + CLOSED_PROPOSALS_MAX;
    assert!(
        proposals * CERTIFICATE_BYTES_MAX <= SNAPSHOT_BYTES_MAX / 2,
        "a snapshot holds proposals and votes"
    );
};
const _: () = assert!(REBALANCE_CALM_MS > DRAIN_MS + AVOID_MS, "a move is over before the next one begins");
const _: () = assert!(REBALANCE_GAIN_MIN >= 2, "a move that gains nothing is undone by the next");
const _: () = assert!(DRAIN_MS > protocol::limits::LEASE_MS, "a drain outlives a lost answer");
const _: () = assert!(PENDING_SILENT_MS > 4 * PENDING_REFRESH_MS, "whoever asks all the time is not silent");
const _: () = assert!(PENDING_SILENT_MS < PENDING_NODE_MS);
const _: () = assert!(AVOID_MS > DRAIN_MS, "a failed slot does not return to its node at once");
