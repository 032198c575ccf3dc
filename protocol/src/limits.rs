//! Limits that two components must agree on, each with its reason. Limits of a single component are defined
//! there.

/// Maximum length of a name in bytes: that of a DNS label, so that a name can become a host name.
pub const NAME_BYTES_MAX: usize = 63;
/// Maximum size of a TOML manifest in bytes: a hundred times a commented one.
pub const MANIFEST_BYTES_MAX: usize = 64 * 1024;
/// Maximum number of members of a circle: circles are meant for 9 to 99 people.
pub const MEMBERS_MAX: usize = 99;
/// Maximum size of one member of a roster in bytes: 3.2 kB of keys and an id as long as a name.
pub const MEMBER_BYTES_MAX: usize = 3400;
/// Maximum number of key sets that one change of members introduces. Larger circles change in steps.
pub const MEMBER_PROOFS_MAX: usize = 16;
/// Maximum size of a proof of possession in bytes: a hybrid signature and an id.
pub const MEMBER_PROOF_BYTES_MAX: usize = 3600;
/// Maximum number of ballots in a certificate: one of each member, and one by each new set of keys.
pub const BALLOTS_MAX: usize = MEMBERS_MAX + MEMBER_PROOFS_MAX;
/// Maximum number of halts that stand after the suspension of their member.
pub const STANDING_HALTS_MAX: usize = 256;
/// Maximum nesting of a quorum rule, `k of (k of (...))`: people cannot read deeper ones.
pub const QUORUM_DEPTH_MAX: usize = 6;
/// Maximum number of bytes that one member adds to a rule of a policy: its id, and a threshold of its own at
/// every depth.
pub const QUORUM_MEMBER_BYTES_MAX: usize = 80 + QUORUM_DEPTH_MAX * 32;
/// Maximum size of a roster in bytes: members, and the two rules that may each name all of them.
pub const ROSTER_BYTES_MAX: usize = MEMBERS_MAX * (MEMBER_BYTES_MAX + 2 * QUORUM_MEMBER_BYTES_MAX);
/// Maximum size of a proposal in bytes without its change and its reason: digests, times and a subject.
pub const PROPOSAL_FRAME_BYTES_MAX: usize = 1024;
/// Maximum size of a proposal in bytes: a full roster fits, so that any circle that can be founded can change
/// its members.
pub const PROPOSAL_BYTES_MAX: usize = 512 * 1024;
/// Maximum length of the reason of a vote in bytes: a sentence or two, read beside those of all other votes.
pub const BALLOT_REASON_BYTES_MAX: usize = 256;
/// Maximum size of a ballot in bytes: a post-quantum signature of 3.3 kB, digests, an id and a reason.
pub const BALLOT_BYTES_MAX: usize = 4096;
/// Maximum number of passkeys of a member: a few devices, and a spare key in a drawer.
pub const PASSKEYS_MAX: usize = 8;
/// Maximum length of a credential's id in bytes (WebAuthn level 3, section 4).
pub const PASSKEY_CREDENTIAL_BYTES_MAX: usize = 1023;
/// Maximum size of an assertion's authenticator data in bytes: 37, and the outputs of extensions.
pub const PASSKEY_AUTHENTICATOR_DATA_BYTES_MAX: usize = 512;
/// Maximum size of a registration's authenticator data in bytes: also a credential's id and its key.
pub const PASSKEY_REGISTRATION_BYTES_MAX: usize =
    PASSKEY_AUTHENTICATOR_DATA_BYTES_MAX + PASSKEY_CREDENTIAL_BYTES_MAX + 128;
/// Maximum size of client data in bytes: five times what browsers write for an origin of usual length.
pub const PASSKEY_CLIENT_DATA_BYTES_MAX: usize = 1536;
/// Maximum length of a passkey's signature in bytes: 72 for ES256 in DER, 64 for EdDSA.
pub const PASSKEY_SIGNATURE_BYTES_MAX: usize = 72;
/// Maximum number of origins whose pages may ask for a passkey: every control replica under two names.
pub const PASSKEY_ORIGINS_MAX: usize = 16;
/// Maximum length of an origin in bytes: a DNS name of 253, a scheme and a port.
pub const ORIGIN_BYTES_MAX: usize = 267;
/// Maximum size of a policy for passkeys in bytes: its origins, and a relying party as long as one of them.
pub const PASSKEY_POLICY_BYTES_MAX: usize = (PASSKEY_ORIGINS_MAX + 2) * (ORIGIN_BYTES_MAX + 3);
/// Maximum size of a certificate in bytes: a proposal and every ballot.
pub const CERTIFICATE_BYTES_MAX: usize = PROPOSAL_BYTES_MAX + BALLOTS_MAX * BALLOT_BYTES_MAX + 1024;
/// Maximum size of a bundle in bytes: a certificate, its version and its position in the log.
pub const BUNDLE_BYTES_MAX: usize = CERTIFICATE_BYTES_MAX + 1024;
/// Maximum size of a genesis in bytes: a full roster, every founder's signature, and the first nodes.
pub const GENESIS_BYTES_MAX: usize = 2 * 1024 * 1024;
/// Maximum number of slots of one service.
pub const SLOTS_MAX: u32 = 1024;
/// Maximum number of services in a route table: as many without a route are read within the memory that
/// foreign bytes may cost.
pub const ROUTED_SERVICES_MAX: usize = 4096;
/// Maximum number of nodes in a cluster.
pub const NODES_MAX: usize = 10_000;
/// Maximum number of stores of one node: more disks than a storage server holds.
pub const NODE_STORES_MAX: usize = 128;
/// Maximum number of proposals open for votes at the same time: members would not read more.
pub const PROPOSALS_OPEN_MAX: usize = 256;
/// Maximum number of labels, regions or selector entries of one node or manifest: members read them before
/// they vote.
pub const LABELS_MAX: usize = 64;
/// Maximum length of a label key, label value or region in bytes: that of a name.
pub const LABEL_BYTES_MAX: usize = NAME_BYTES_MAX;
/// Maximum length of a reason or description in bytes: about one page.
pub const REASON_BYTES_MAX: usize = 4096;
/// Maximum number of bytes of compact JSON per byte of canonical form. A control character takes six, as
/// `\u0001`; a digit pair of a byte string takes two; `null` takes four and a comma.
pub const JSON_BYTES_PER_CANONICAL_BYTE: usize = 6;
/// Maximum length of one text in a JSON document in bytes, with its closing quote. A reader that refuses a
/// text quotes it, which takes several times its length.
pub const JSON_TEXT_BYTES_MAX: usize = 512 * 1024;
/// Maximum size of a request body of the control API in bytes.
pub const API_BODY_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Maximum size of a request body of the inference API in bytes.
pub const INFERENCE_BODY_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Maximum tokens of a request to rerank, the query counted with each document: 2,048 pairs of 512 tokens. A
/// long query repeats for each document, so that the limit on bodies does not bound the work.
pub const RERANK_TOKENS_MAX: usize = 1 << 20;
/// Maximum size of a message between an agent and control in bytes.
pub const SYNC_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Maximum size in bytes of the bundles in one answer to an agent; any bundle fits. A node with 7 Mbit/s
/// reads it before its request times out, and a history of any length reaches it page by page.
pub const HISTORY_PAGE_BYTES_MAX: usize = 1024 * 1024;
/// Maximum size of a frame in bytes on a unix socket between an agent and a process that it started.
pub const FRAME_BYTES_MAX: usize = 1024 * 1024;
/// Maximum size of one line of worker metrics in bytes: within `PIPE_BUF`, so that a write to the pipe is
/// atomic.
pub const METRICS_LINE_BYTES_MAX: usize = 4096;
/// Maximum size of a model manifest in bytes: 64 MiB names about 250,000 segments, 250 GB.
pub const MODEL_MANIFEST_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Maximum plaintext size of a segment in bytes. It is small enough to verify before use, and large enough
/// for AEAD and erasure coding to run at memory speed.
pub const SEGMENT_BYTES_MAX: usize = 1024 * 1024;
/// Lease in milliseconds: the time for which a node may act on one answer of control.
pub const LEASE_MS: u64 = 3_000;
/// Minimum autonomy of a service in seconds, and the only one of an exclusive service: one lease. A node that
/// receives nothing for that long cannot know whether its slots were placed elsewhere.
pub const AUTONOMY_SECONDS_MIN: u64 = LEASE_MS / 1000;
/// Autonomy in seconds of a service whose manifest names none: a day, in which people can restore a control
/// plane.
pub const AUTONOMY_SECONDS_DEFAULT: u64 = 24 * 3600;
/// Maximum autonomy of a service in seconds: a month. A node that control did not reach for longer is not
/// managed.
pub const AUTONOMY_SECONDS_MAX: u64 = 31 * 24 * 3600;
/// Maximum priority of a service, whose minimum is 1, and of a job, whose minimum is 0. A hundred steps are
/// more than people distinguish.
pub const PRIORITY_MAX: u32 = 100;
/// Priority of a service whose manifest names none: half-way, with room on both sides.
pub const PRIORITY_DEFAULT: u32 = 50;
/// Maximum time in seconds for which a new replica must answer before it counts as available: an hour. A
/// roll-out of a few replicas would otherwise not end within a day.
pub const READY_SECONDS_MAX: u32 = 3600;
/// Number of replicas that planned work may take away from a service whose manifest names none: one, so that
/// a service that fills its nodes can be replaced in place.
pub const UNAVAILABLE_DEFAULT: u32 = 1;
/// Maximum number of failed starts that end a roll-out: beyond it, days pass with the waiting times of
/// restarts.
pub const FAILURES_MAX: u32 = 100;
/// Number of failed starts in a row that end the roll-out of a service whose manifest names none: one may be
/// the fault of a node, three are that of the approval.
pub const FAILURES_DEFAULT: u32 = 3;
/// Autonomy in seconds of a job whose envelope names none: an hour, in which a control plane restarts. A gang
/// that is placed again in that time computes at most an hour twice.
pub const JOB_AUTONOMY_SECONDS_DEFAULT: u64 = 3600;
/// Maximum number of parameters of a job, and of entries of each of its other lists: members read them before
/// they vote.
pub const JOB_LIST_MAX: usize = LABELS_MAX;
/// Most jobs and arrays that a submission names to be followed.
pub const JOB_AFTER_MAX: usize = 32;
/// Most tasks of an array.
pub const ARRAY_TASKS_MAX: u32 = 1000;
/// Maximum number of submit keys of a job: each has 2 kB, and a team shares one.
pub const SUBMIT_KEYS_MAX: usize = 8;
/// Maximum length of a parameter's value in bytes: a long path, or a short configuration.
pub const PARAMETER_BYTES_MAX: usize = 1024;
/// Maximum time in seconds from a submission to its deadline: a month, as long as a job may run.
pub const SUBMISSION_SECONDS_MAX: u64 = 31 * 24 * 3600;
/// Maximum size of a signed submission in bytes: every parameter at its longest, an open command at its
/// longest, and a signature.
pub const SUBMISSION_BYTES_MAX: usize = 160 * 1024;
/// Interval in milliseconds between two syncs of an agent that holds work with control.
pub const SYNC_INTERVAL_MS: u64 = 500;
/// The same of an agent that holds nothing: no lease is at stake, and control still notices within one lease
/// that the node is silent. News ends the wait of either at once.
pub const SYNC_INTERVAL_IDLE_MS: u64 = 1_000;
/// Longest time in milliseconds for which a control replica holds a request for halts or for grants: news
/// ends the wait, and pings of the connection show a dead replica much earlier. It is within the 30 s in
/// which the overlay's server wants an answer.
pub const POLL_WAIT_MS_MAX: u32 = 25_000;
/// Tolerated error in milliseconds of the wall-clock times in certificates.
pub const CLOCK_GRACE_MS: u64 = 5 * 60 * 1000;

const _: () = assert!(2 * MANIFEST_BYTES_MAX < PROPOSAL_BYTES_MAX, "canonical form may be longer than TOML");
const _: () = assert!(
    ROSTER_BYTES_MAX
        + PASSKEY_POLICY_BYTES_MAX
        + MEMBER_PROOFS_MAX * MEMBER_PROOF_BYTES_MAX
        + REASON_BYTES_MAX
        + PROPOSAL_FRAME_BYTES_MAX
        <= PROPOSAL_BYTES_MAX,
    "a circle that can be founded can change its members"
);
const _: () = assert!(
    PASSKEY_CREDENTIAL_BYTES_MAX
        + PASSKEY_AUTHENTICATOR_DATA_BYTES_MAX
        + PASSKEY_CLIENT_DATA_BYTES_MAX
        + PASSKEY_SIGNATURE_BYTES_MAX
        + BALLOT_REASON_BYTES_MAX
        + 640
        <= BALLOT_BYTES_MAX,
    "a ballot holds an assertion"
);
const _: () =
    assert!(ROSTER_BYTES_MAX + MEMBERS_MAX * BALLOT_BYTES_MAX <= GENESIS_BYTES_MAX / 2, "room for nodes");
const _: () = assert!(
    JSON_BYTES_PER_CANONICAL_BYTE * (PROPOSAL_BYTES_MAX + 1024) <= API_BODY_BYTES_MAX,
    "people bring every proposal as JSON"
);
const _: () = assert!(NAME_BYTES_MAX <= 63 && LABEL_BYTES_MAX <= 63, "names and labels fit in a DNS label");
const _: () = assert!(
    JSON_BYTES_PER_CANONICAL_BYTE * MANIFEST_BYTES_MAX < API_BODY_BYTES_MAX,
    "a dry run carries any manifest"
);
const _: () = assert!(
    JSON_BYTES_PER_CANONICAL_BYTE * MANIFEST_BYTES_MAX < JSON_TEXT_BYTES_MAX,
    "no text of a manifest is too long as JSON"
);
const _: () = assert!(SEGMENT_BYTES_MAX < MODEL_MANIFEST_BYTES_MAX, "segments are the smaller unit");
const _: () = assert!(BUNDLE_BYTES_MAX <= HISTORY_PAGE_BYTES_MAX, "a page of history holds any bundle");
const _: () = assert!(HISTORY_PAGE_BYTES_MAX <= SYNC_BYTES_MAX / 8, "a page leaves room for a node's orders");
const _: () = assert!(METRICS_LINE_BYTES_MAX <= 4096, "PIPE_BUF on Linux");
const _: () =
    assert!(AUTONOMY_SECONDS_MIN * 1000 == LEASE_MS, "exclusive work is held for exactly one lease");
const _: () = assert!(AUTONOMY_SECONDS_MIN < AUTONOMY_SECONDS_DEFAULT);
const _: () = assert!(AUTONOMY_SECONDS_MIN < JOB_AUTONOMY_SECONDS_DEFAULT);
const _: () = assert!(AUTONOMY_SECONDS_DEFAULT < AUTONOMY_SECONDS_MAX);
const _: () = assert!(1 < PRIORITY_DEFAULT && PRIORITY_DEFAULT < PRIORITY_MAX, "others go before and after");
const _: () = assert!(UNAVAILABLE_DEFAULT <= SLOTS_MAX && FAILURES_DEFAULT <= FAILURES_MAX);
const _: () = assert!(SYNC_INTERVAL_MS * 4 < LEASE_MS, "a lease survives three lost answers");
const _: () =
    assert!(SYNC_INTERVAL_IDLE_MS * 2 < LEASE_MS, "an idle node counts as alive after a lost answer");
