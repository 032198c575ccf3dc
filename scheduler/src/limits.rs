//! Limits of the cluster state alone, each with its reason.
//!
//! Limits that other crates share are in `protocol::limits`.

/// Most steps of one plan: a log entry stays well below a megabyte, and the next plan continues.
pub const PLAN_STEPS_MAX: usize = 1024;
/// Number of audit events kept: several days of a quiet cluster, in a small snapshot.
pub const AUDIT_EVENTS_MAX: usize = 4096;
/// Number of closed proposals kept for reference; the governance chain keeps all certificates.
pub const CLOSED_PROPOSALS_MAX: usize = 128;
/// Most nodes that wait for admission: any unknown key may ask, so the list must be short.
pub const PENDING_NODES_MAX: usize = 256;
/// Largest admission request of a node, in bytes: keys of 1.3 kB, addresses, labels.
pub const PENDING_BYTES_MAX: usize = 16 * 1024;
/// Silence after which a waiting node is evicted for a new one when the list is full. Agents ask every two
/// seconds, and one request per [`PENDING_REFRESH_MS`] is recorded.
pub const PENDING_SILENT_MS: u64 = 5 * 60 * 1000;
/// Silence after which a waiting node is forgotten: an hour.
pub const PENDING_NODE_MS: u64 = 60 * 60 * 1000;
/// Interval after which a waiting node's unchanged request is written to the log again: a minute.
pub const PENDING_REFRESH_MS: u64 = 60 * 1000;
/// Most registered models: far more than a circle can vote on.
pub const MODELS_MAX: usize = 4096;
/// Largest step of a plan, in bytes: an order with the GPUs of a whole machine that replaces another.
pub const STEP_BYTES_MAX: usize = 1024;
/// Most key wraps in one command: every replica verifies their signatures, a hundred in about 10 ms.
pub const WRAPS_PER_COMMAND_MAX: usize = 128;
/// Largest key wrap, in bytes: 1.1 kB of post-quantum ciphertext, its maker's signature of 3.4 kB, a sealed
/// key and names.
pub const WRAP_BYTES_MAX: usize = 5 * 1024;
/// Most key wraps of all models: fifty models for a thousand nodes and three hundred members.
pub const WRAPS_MAX: usize = 65_536;
/// Longest URL of a store, in bytes.
pub const STORE_URL_BYTES_MAX: usize = 1024;
/// Longest text of an audit event, in bytes.
pub const AUDIT_TEXT_BYTES_MAX: usize = 512;
/// Most outcomes kept for idempotency keys: half a minute of five hundred writes a second. A client stops
/// retrying before that, and a snapshot copies them in a few milliseconds.
pub const IDEMPOTENCY_RECORDS_MAX: usize = 16_384;
/// Largest total size of those outcomes, in bytes; most replies are one short string.
pub const IDEMPOTENCY_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Time for which an outcome is kept if there is space: a day, as is usual for such services.
pub const IDEMPOTENCY_MS: u64 = 24 * 60 * 60 * 1000;
/// Largest part of a command besides its payload, in bytes: time, actor, action tag and idempotency key.
pub const COMMAND_FRAME_BYTES_MAX: usize = 1024;
/// Largest command, in bytes: a genesis; a roster, a plan and wraps are smaller.
pub const COMMAND_BYTES_MAX: usize = protocol::limits::GENESIS_BYTES_MAX + COMMAND_FRAME_BYTES_MAX;
/// Largest snapshot, in bytes: the governance chain of decades. A larger one is refused.
pub const SNAPSHOT_BYTES_MAX: usize = 1 << 30;
/// Time for a slot that moves or is no longer wanted to finish its requests. It is longer than nearly every
/// request, and short enough that a roll-out of ten slots ends within minutes.
pub const DRAIN_MS: u64 = 30_000;
/// Time for which a service avoids a node after a slot failed there. It is long enough that a failing service
/// does not fill the log, and short enough that a repaired node is reused without a command.
pub const AVOID_MS: u64 = 60 * 1000;
/// Most former holders that a slot lists. Several failures of nodes within one autonomy fit, and a snapshot
/// stays small. A slot waits for further ones until their time.
pub const FORMER_HOLDERS_MAX: usize = 8;
/// Most releases of one node that a leader remembers: far more than one report holds. A plan reads them
/// within a second.
pub const RELEASES_REMEMBERED_MAX: usize = 256;
/// Worker restarts after which its slot is tried on another node.
pub const RESTARTS_MAX: u32 = 5;
/// Time without an answer after which a start of a new approval counts as failed: longer than the load of a
/// large model. Each further such time counts again.
pub const START_PATIENCE_MS: u64 = 10 * 60 * 1000;
/// Longest text about a failed start that is taken from a node's report, in characters: a step of a plan has
/// room for it in any script, and for names.
pub const CAUSE_CHARACTERS_MAX: usize = 128;
/// Most replicas that one plan drains for services of a higher priority; the next plan continues. Each costs
/// a look at every node.
pub const PREEMPTIONS_MAX: usize = 16;
/// Most gangs that one plan preempts for those that reclaim the quota of their project: a wide gang needs all
/// of its room at once.
pub const GANGS_PREEMPTED_MAX: usize = 256;
/// Time for which every slot of a service must be unchanged, and a node continuously alive, before a replica
/// moves there for a better spread. It also bounds moves to one per service in this time. An unstable node
/// thus costs at most one model load in two minutes, and nothing moves while the cluster settles.
pub const REBALANCE_CALM_MS: u64 = 2 * 60 * 1000;
/// Time for a moving replica to answer in its new slot before the move is abandoned. It is longer than the
/// load of a large model, and short enough that the surplus slot is not held for an hour.
pub const REBALANCE_PATIENCE_MS: u64 = 10 * 60 * 1000;
/// Smallest difference in replicas of a service between two nodes before one moves. At two, a move always
/// improves the spread; at one, it would only exchange the nodes' shares, indefinitely.
pub const REBALANCE_GAIN_MIN: u32 = 2;
/// Most jobs that have not ended: a queue of days, in a snapshot of ten megabytes.
pub const JOBS_UNFINISHED_MAX: usize = 16_384;
/// Number of finished jobs kept for reference; the oldest is forgotten first.
pub const JOBS_FINISHED_MAX: usize = 1024;
/// Largest total size of all kept submissions, in bytes; most have a few hundred.
pub const JOBS_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Shortest time between two checkpoints of a job in milliseconds: each is a log entry of up to half a
/// megabyte, and a node that makes more asks again.
pub const CHECKPOINT_INTERVAL_MS: u64 = 1_000;
/// Largest total size of the statements about data of jobs with their wraps, in bytes: a thousand checkpoints
/// in a circle with fifty recipients. Checkpoints and logs of finished jobs make room.
pub const JOB_DATA_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Most slots of which a job keeps logs, over all attempts; those of the first attempts go first.
pub const JOB_LOGS_MAX: usize = 256;
/// Time from the first failure of a job to its next attempt; each further failure doubles it.
pub const JOB_BACKOFF_MS: u64 = 5_000;
/// Longest time from a failure of a job to its next attempt.
pub const JOB_BACKOFF_MS_MAX: u64 = 10 * 60 * 1000;
/// Most attempts of a job that may lose a node. They do not count as failures, and a gang that breaks its
/// nodes must end too.
pub const JOB_LOST_NODES_MAX: u32 = 32;
/// Most ends of ranks kept of an attempt: a step of a plan holds them.
pub const JOB_ENDS_KEPT_MAX: usize = 8;
/// Largest total of the submissions that one node reads about one gang: its own and those of its peers.
pub const GANG_BYTES_MAX: u64 = protocol::limits::SYNC_BYTES_MAX as u64 / 8;
/// Number of the latest entries of usage that the state keeps. A replica copies them into its journal after
/// each command; one that joins later finds the entries of days of a small cluster in the snapshot.
pub const USAGE_RECENT_MAX: usize = 4096;
/// Time between two statements of a running slot's counts that are metered, in milliseconds: each is an entry
/// of the log of half a kilobyte. Those of a slot that ends are metered at once.
pub const COUNT_INTERVAL_MS: u64 = 5 * 60 * 1000;
/// Most tokens of prompts, and of answers, that a slot counts in a millisecond: thousand times what one node
/// makes today.
pub const COUNT_TOKENS_PER_MS_MAX: u64 = 1000;
/// Most cores whose time a slot counts: more than a machine has.
pub const COUNT_CORES_MAX: u64 = 1024;
/// Time beyond that of the meter for which a slot may have counted, in milliseconds: clocks differ.
pub const COUNT_SLACK_MS: u64 = 60 * 1000;
/// Most slots of one node of which a leader keeps the stated counts.
pub const COUNTED_SLOTS_MAX: usize = 4096;
/// Most rows of usage totals: a year of days with dozens of envelopes and submitters. The rows of the oldest
/// day go first.
pub const USAGE_TOTALS_MAX: usize = 16_384;

/// Distance from a majority's clocks beyond which a replica's clock is wrong, so that it may not lead. It is
/// thirty times the error of a reading over a slow network. Clocks that any time service keeps are within it.
pub const CLOCK_BOUND_MS: u64 = 30_000;
/// Most clock readings of one command: more than a circle has control replicas.
pub const CLOCK_READINGS_MAX: usize = 8;
/// Most open proposals of one member, so that a stolen key leaves room for those of others.
pub const PROPOSALS_PER_MEMBER_MAX: usize = 16;
/// Most drafts of one access token, so that a leaked token leaves room for those of others.
pub const DRAFTS_PER_TOKEN_MAX: usize = 16;
/// Most drafts of all tokens. They take no place of open proposals.
pub const DRAFTS_MAX: usize = 256;
/// Most proposals of one member that are open, or were rejected or withdrawn and have not expired. A member
/// beyond this number waits for an expiry, so no such proposal is ever forgotten for another.
pub const BURNED_PER_MEMBER_MAX: usize = 256;
/// Most proposals that are remembered until they expire. A change of members ends their epoch, and no
/// proposal of an earlier epoch can be brought.
pub const BURNED_PROPOSALS_MAX: usize = protocol::limits::MEMBERS_MAX * BURNED_PER_MEMBER_MAX;
/// Lifetime of the draft that the cluster makes of a manifest: three days, as that of the command line.
pub const DRAFT_LIFETIME_MS: u64 = 3 * 24 * 60 * 60 * 1000;

const _: () = assert!(
    CLOCK_BOUND_MS * 10 <= protocol::limits::CLOCK_GRACE_MS,
    "a replica that may lead errs little by the measure of certificates"
);
const _: () = {
    use protocol::comment::{COMMENT_BYTES_MAX, COMMENTS_OF_MEMBER_MAX};
    let comments = protocol::limits::MEMBERS_MAX * COMMENTS_OF_MEMBER_MAX * COMMENT_BYTES_MAX;
    assert!(comments <= SNAPSHOT_BYTES_MAX / 16, "a snapshot holds comments");
};
const _: () = assert!(16 * PROPOSALS_PER_MEMBER_MAX <= protocol::limits::PROPOSALS_OPEN_MAX);
const _: () = assert!(16 * DRAFTS_PER_TOKEN_MAX <= DRAFTS_MAX);
const _: () = assert!(PROPOSALS_PER_MEMBER_MAX < BURNED_PER_MEMBER_MAX);
const _: () =
    assert!(BURNED_PROPOSALS_MAX * 256 <= SNAPSHOT_BYTES_MAX / 64, "a snapshot holds burned proposals");
const _: () = {
    use protocol::limits::{CERTIFICATE_BYTES_MAX, PROPOSAL_BYTES_MAX, PROPOSALS_OPEN_MAX};
    let command = COMMAND_BYTES_MAX - COMMAND_FRAME_BYTES_MAX;
    assert!(PROPOSAL_BYTES_MAX <= command, "a proposal that is accepted can be written");
    assert!(PLAN_STEPS_MAX * STEP_BYTES_MAX <= command, "a plan fits into the log");
    assert!(WRAPS_PER_COMMAND_MAX * WRAP_BYTES_MAX <= command, "wraps fit into the log");
    assert!(WRAPS_MAX * WRAP_BYTES_MAX <= SNAPSHOT_BYTES_MAX / 3, "a snapshot holds wraps");
    let proposals = PROPOSALS_OPEN_MAX + CLOSED_PROPOSALS_MAX;
    assert!(
        proposals * CERTIFICATE_BYTES_MAX + DRAFTS_MAX * (PROPOSAL_BYTES_MAX + 1024)
            <= SNAPSHOT_BYTES_MAX / 2,
        "a snapshot holds proposals and votes"
    );
};
const _: () = assert!(JOBS_BYTES_MAX <= SNAPSHOT_BYTES_MAX as u64 / 16, "a snapshot holds submissions");
const _: () = assert!(JOB_DATA_BYTES_MAX <= SNAPSHOT_BYTES_MAX as u64 / 16, "a snapshot holds data of jobs");
const _: () = assert!(
    protocol::job_data::JOB_DATA_BYTES_MAX + COMMAND_FRAME_BYTES_MAX <= COMMAND_BYTES_MAX,
    "a registration fits into the log"
);
const _: () = assert!(JOB_BACKOFF_MS < JOB_BACKOFF_MS_MAX && JOB_ENDS_KEPT_MAX * 64 <= STEP_BYTES_MAX / 2);
const _: () = assert!(REBALANCE_CALM_MS > DRAIN_MS + AVOID_MS, "a move is over before the next one begins");
const _: () =
    assert!(PREEMPTIONS_MAX + GANGS_PREEMPTED_MAX < PLAN_STEPS_MAX, "a plan has room for other steps");
const _: () = assert!(CAUSE_CHARACTERS_MAX * 4 <= STEP_BYTES_MAX / 2, "a step holds a cause and names");
const _: () = assert!(REBALANCE_GAIN_MIN >= 2, "a move that gains nothing is undone by the next");
const _: () = assert!(DRAIN_MS > protocol::limits::LEASE_MS, "a drain outlives a lost answer");
const _: () =
    assert!(PENDING_SILENT_MS > 4 * PENDING_REFRESH_MS, "a node that asks all the time is not silent");
const _: () = assert!(PENDING_SILENT_MS < PENDING_NODE_MS);
const _: () = assert!(AVOID_MS > DRAIN_MS, "a failed slot does not return to its node at once");
