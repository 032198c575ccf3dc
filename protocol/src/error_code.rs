//! Stable codes of all errors that users can meet. Each code has a page of the same name in `docs/errors/`,
//! printed by `quorate explain CODE`. A test keeps pages and codes in step.

use serde::{Deserialize, Serialize};

/// Stable error code in kebab case.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ErrorCode(&'static str);

impl ErrorCode {
    /// Returns the code as text.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        self.0
    }

    /// Returns the code with this text, if there is one.
    #[must_use]
    pub fn find(text: &str) -> Option<Self> {
        let found = ALL.iter().copied().find(|code| code.0 == text);
        debug_assert!(found.is_none_or(|code| code.as_str() == text), "a code is found by its own text");
        found
    }
}

impl std::fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.0)
    }
}

impl std::fmt::Debug for ErrorCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0)
    }
}

impl Serialize for ErrorCode {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.0)
    }
}

impl<'de> Deserialize<'de> for ErrorCode {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::find(&text).ok_or_else(|| serde::de::Error::custom(format_args!("unknown code `{text}`")))
    }
}

/// Defines the codes and the list of all of them.
macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $text:literal;)*) => {
        $($(#[$doc])* pub const $name: ErrorCode = ErrorCode($text);)*

        /// All codes, in the order of their definition.
        pub const ALL: &[ErrorCode] = &[$($name),*];
    };
}

codes! {
    /// A manifest is not valid TOML, or a value in it is out of range.
    MANIFEST_INVALID = "manifest-invalid";
    /// A manifest has an unknown field.
    MANIFEST_UNKNOWN_FIELD = "manifest-unknown-field";
    /// A manifest's field has a value of the wrong type.
    MANIFEST_WRONG_TYPE = "manifest-wrong-type";
    /// The kind or runtime is read and checked, but this release cannot run it.
    KIND_NOT_BUILT = "kind-not-built";
    /// A workload asks for egress, which this release does not allow.
    EGRESS_NOT_BUILT = "egress-not-built";

    /// A submission sets a parameter to a value outside the bounds that members approved.
    PARAMETER_OUT_OF_BOUNDS = "parameter-out-of-bounds";
    /// A submission sets a parameter that the job does not have.
    PARAMETER_UNKNOWN = "parameter-unknown";
    /// A submission leaves out a parameter that has no default.
    PARAMETER_MISSING = "parameter-missing";
    /// The approved job does not let this party submit.
    SUBMITTER_REFUSED = "submitter-refused";
    /// The job demands a submission that a member or a submit key signed.
    SUBMISSION_UNSIGNED = "submission-unsigned";
    /// A submission has passed its deadline.
    SUBMISSION_EXPIRED = "submission-expired";
    /// A submission does not fit the approved job that it names.
    SUBMISSION_MISMATCH = "submission-mismatch";
    /// The approval of a job has ended.
    ENVELOPE_EXPIRED = "envelope-expired";
    /// There is no such job, or it is forgotten.
    JOB_NOT_FOUND = "job-not-found";
    /// A job that has not ended is to be retried.
    JOB_NOT_ENDED = "job-not-ended";
    /// A job that a command waited for failed or was cancelled.
    JOB_UNSUCCESSFUL = "job-unsuccessful";
    /// The gang of a job fits on no set of the admitted nodes.
    JOB_NEVER_FITS = "job-never-fits";
    /// A job belongs to a project that the circle did not vote.
    PROJECT_UNKNOWN = "project-unknown";
    /// The projects of a proposal are no tree, or a quota in it exceeds that of its parent.
    PROJECTS_INVALID = "projects-invalid";
    /// A checkpoint or outputs come from a slot that its node does not hold under the fence in force.
    JOB_DATA_FENCED = "job-data-fenced";
    /// A statement about a checkpoint or outputs does not hold.
    JOB_DATA_INVALID = "job-data-invalid";
    /// A job has no such checkpoint, or no outputs.
    JOB_DATA_MISSING = "job-data-missing";

    /// A certificate lacks the approvals that the policy asks for.
    QUORUM_NOT_REACHED = "quorum-not-reached";
    /// A change of members has new keys without the proof that their member holds them.
    MEMBER_KEYS_UNPROVEN = "member-keys-unproven";
    /// A change of members has new keys of which one is or was a member's.
    MEMBER_KEY_RETURNS = "member-key-returns";
    /// A change both takes a member's vote and lowers a rule.
    POLICY_LOWERED = "policy-lowered";
    /// A suspended member signed, or is to be suspended again.
    MEMBER_SUSPENDED = "member-suspended";
    /// The waiting time of a change of members runs.
    CHANGE_WAITS = "change-waits";
    /// A history lacks decisions that a signature or this machine has seen.
    HISTORY_SHORTER = "history-shorter";
    /// Two histories of one circle differ in a decision.
    HISTORY_FORKED = "history-forked";
    /// A model's name is bound to another root.
    MODEL_NAME_TAKEN = "model-name-taken";
    /// A signature does not verify.
    SIGNATURE_INVALID = "signature-invalid";
    /// A founder has not signed the genesis.
    FOUNDER_SIGNATURE_MISSING = "founder-signature-missing";
    /// A ballot or signature is by a person who is not a member of the circle.
    NOT_A_MEMBER = "not-a-member";
    /// A write reuses the idempotency key of a different write.
    IDEMPOTENCY_KEY_REUSED = "idempotency-key-reused";
    /// A member has more than one ballot on the same proposal.
    BALLOT_DUPLICATE = "ballot-duplicate";
    /// A ballot is for another proposal, rendering, circle or epoch.
    BALLOT_MISMATCH = "ballot-mismatch";
    /// A passkey's assertion or registration does not have the form of one.
    PASSKEY_INVALID = "passkey-invalid";
    /// A passkey's assertion is for another relying party or another origin than the policy names.
    PASSKEY_ORIGIN = "passkey-origin";
    /// An authenticator did not verify its user, or no person was present.
    PASSKEY_UNVERIFIED = "passkey-unverified";
    /// A passkey signed another challenge than this ballot's.
    PASSKEY_CHALLENGE = "passkey-challenge";
    /// The counter of a passkey went back.
    PASSKEY_COUNTER = "passkey-counter";
    /// A passkey is not one of the member's.
    PASSKEY_UNKNOWN = "passkey-unknown";
    /// Ballots by passkey do not count for this change.
    PASSKEY_NOT_COUNTED = "passkey-not-counted";
    /// All approvals are by passkey; one by a member's keys is needed.
    PASSKEYS_ALONE = "passkeys-alone";
    /// A proposal has expired.
    PROPOSAL_EXPIRED = "proposal-expired";
    /// A proposal's subject changed after it was made.
    PROPOSAL_STALE = "proposal-stale";
    /// A draft waits for a member who proposes it: only an approval by keys in force opens it.
    PROPOSAL_UNSIGNED = "proposal-unsigned";
    /// A proposal is withdrawn by its proposer alone, and a draft by its maker or any member.
    WITHDRAWAL_REFUSED = "withdrawal-refused";
    /// A proposal has no question of this id, or several begin with these digits.
    QUESTION_NOT_FOUND = "question-not-found";
    /// A proposal belongs to another circle or epoch.
    CIRCLE_MISMATCH = "circle-mismatch";
    /// A proposal, ballot or genesis breaks a rule of its form.
    GOVERNANCE_INVALID = "governance-invalid";

    /// A member's halt covers the service, the node or the circle.
    HALTED = "halted";
    /// A halt was lifted by the circle and stays so.
    HALT_LIFTED = "halt-lifted";
    /// No halt that stands has this id, or several have.
    HALT_NOT_FOUND = "halt-not-found";

    /// An order names a certificate that its agent does not have or cannot verify.
    ORDER_NOT_APPROVED = "order-not-approved";
    /// An order's signature is missing, wrong or not by a control key.
    ORDER_SIGNATURE_INVALID = "order-signature-invalid";
    /// An order's fence is not above the last one seen for its slot.
    ORDER_REPLAYED = "order-replayed";
    /// An order is for another node or a slot outside its envelope.
    ORDER_MISMATCH = "order-mismatch";
    /// An order needs resources of its node that other slots hold.
    RESOURCES_EXCEEDED = "resources-exceeded";
    /// A route leads to a node or a service that the circle does not cover.
    ROUTE_REFUSED = "route-refused";
    /// No certificate admits the node.
    NODE_NOT_ADMITTED = "node-not-admitted";

    /// The operation needs a circle, and none is founded yet.
    CIRCLE_NOT_FOUNDED = "circle-not-founded";
    /// The cluster already has a circle.
    CIRCLE_ALREADY_FOUNDED = "circle-already-founded";
    /// No open proposal has this id.
    PROPOSAL_NOT_FOUND = "proposal-not-found";
    /// A server shows a proposal under an id that is not the digest of its bytes.
    PROPOSAL_MISMATCH = "proposal-mismatch";
    /// The words given are not the first words of the text to sign.
    WORDS_MISMATCH = "words-mismatch";
    /// A request to a console names another host than the console's own.
    CONSOLE_HOST_REFUSED = "console-host-refused";
    /// A request that changes something does not come from a page of the console.
    CONSOLE_ORIGIN_REFUSED = "console-origin-refused";
    /// A sign-in link was used, has expired or never existed.
    CONSOLE_LINK_INVALID = "console-link-invalid";
    /// A browser's session at a console has ended.
    CONSOLE_SIGNED_OUT = "console-signed-out";
    /// A console holds no key of the member that votes.
    CONSOLE_NO_KEY = "console-no-key";
    /// No running service has this name.
    SERVICE_NOT_FOUND = "service-not-found";
    /// No model with this root is registered.
    MODEL_NOT_FOUND = "model-not-found";
    /// A model with this root is registered with another record.
    MODEL_RECORD_DIFFERS = "model-record-differs";
    /// A service in force names the model.
    MODEL_IN_USE = "model-in-use";
    /// The circle decided to forget the model.
    MODEL_FORGOTTEN = "model-forgotten";
    /// A name or root stands for a stored item of another kind.
    MODEL_KIND_WRONG = "model-kind-wrong";
    /// The recipient holds another wrap of the model's key.
    WRAP_HELD = "wrap-held";
    /// The recipient does not hold the wrap that a complaint names.
    WRAP_NOT_HELD = "wrap-not-held";
    /// A wrap is for a node that runs no workers, and so needs no model key.
    WRAP_RECIPIENT_INVALID = "wrap-recipient-invalid";
    /// A node's admission lacks the node's own signature over its keys.
    NODE_KEYS_UNPROVEN = "node-keys-unproven";
    /// No access token or inference key of this name stands.
    GRANT_NOT_FOUND = "grant-not-found";
    /// The name is taken.
    NAME_TAKEN = "name-taken";
    /// The requested number of replicas is outside the envelope.
    SCALE_OUTSIDE_ENVELOPE = "scale-outside-envelope";
    /// A new approval failed, or an operator rolled it back: the service runs under the one before.
    SERVICE_RETURNED = "service-returned";
    /// The certificate in force names no approval to which the service may return.
    ROLLBACK_NOT_APPROVED = "rollback-not-approved";
    /// The access token is unknown or lacks the scope.
    TOKEN_SCOPE_MISSING = "token-scope-missing";
    /// A limit of the cluster is reached.
    LIMIT_REACHED = "limit-reached";
    /// The cluster changed after the plan was made.
    PLAN_STALE = "plan-stale";
    /// An export of usage is unreadable, or does not bill as it says.
    USAGE_INVALID = "usage-invalid";
    /// Entries of usage are missing.
    USAGE_INCOMPLETE = "usage-incomplete";
    /// The access token is missing or unknown.
    TOKEN_UNKNOWN = "token-unknown";
    /// This control replica is not the leader; another one answers.
    NOT_LEADER = "not-leader";
    /// This control replica cannot answer at the moment.
    CONTROL_UNAVAILABLE = "control-unavailable";
    /// The body, path or query of a request is not what the API accepts.
    REQUEST_INVALID = "request-invalid";
    /// A page token is not one that this list's last page named.
    PAGE_TOKEN_INVALID = "page-token-invalid";
    /// A request's body exceeds the limit.
    REQUEST_TOO_LARGE = "request-too-large";
    /// The API has no such path.
    PATH_NOT_FOUND = "path-not-found";
    /// The path exists, but does not support this method.
    METHOD_NOT_ALLOWED = "method-not-allowed";
    /// Another process uses a port that the genesis names.
    PORT_IN_USE = "port-in-use";
    /// A directory holds files that are not a cluster's.
    DIRECTORY_FOREIGN = "directory-foreign";
    /// A requested model hub is unreachable.
    MODEL_HUB_UNREACHABLE = "model-hub-unreachable";
    /// A model hub does not have the model, or denies it to this client.
    MODEL_HUB_REFUSED = "model-hub-refused";
    /// A command breaks a rule of its form.
    COMMAND_INVALID = "command-invalid";

    /// There is no context file, so the command cannot determine the cluster.
    CONTEXT_MISSING = "context-missing";
    /// A context of this name exists already.
    CONTEXT_EXISTS = "context-exists";
    /// A file for a new secret exists already.
    KEY_EXISTS = "key-exists";
    /// A passphrase does not open its key file, or is no good for a new one.
    KEY_PASSPHRASE_WRONG = "key-passphrase-wrong";
    /// A key file needs a passphrase, and there is no terminal and no file to read it from.
    KEY_PASSPHRASE_MISSING = "key-passphrase-missing";
    /// An external signer did not start, did not answer, refused, or answered in no form of the protocol.
    SIGNER_FAILED = "signer-failed";
    /// An external signer answered with something else than was asked for.
    SIGNER_INVALID = "signer-invalid";
    /// The record of the highest verified history cannot be read or written.
    HEAD_UNUSABLE = "head-unusable";
    /// No admitted node has this name, or no node of this name waits for admission.
    NODE_NOT_FOUND = "node-not-found";
    /// A command needs a node's directory; none was given, or the given one is not a node's.
    NODE_DIRECTORY_MISSING = "node-directory-missing";

    /// A file or directory of a model cannot be read.
    MODEL_UNREADABLE = "model-unreadable";
    /// A model lacks a file that its architecture or format needs.
    MODEL_FILE_MISSING = "model-file-missing";
    /// A model has no tokenizer.
    MODEL_TOKENIZER_MISSING = "model-tokenizer-missing";
    /// A model has a file in a format that can carry code, such as pickle.
    MODEL_FORMAT_REFUSED = "model-format-refused";
    /// A weights file has an unknown version, byte order or tensor type.
    MODEL_FORMAT_UNKNOWN = "model-format-unknown";
    /// A weights file is truncated, or its header contradicts its contents.
    MODEL_WEIGHTS_DAMAGED = "model-weights-damaged";
    /// A model's tensors do not match its configuration.
    MODEL_WEIGHTS_MISMATCH = "model-weights-mismatch";
    /// A model's weights have a value that is no finite number.
    MODEL_WEIGHTS_NOT_FINITE = "model-weights-not-finite";
    /// A model's configuration names an architecture that this release does not have.
    MODEL_ARCHITECTURE_UNKNOWN = "model-architecture-unknown";
    /// A model's configuration or tokenizer file does not conform to its format.
    MODEL_CONFIG_INVALID = "model-config-invalid";
    /// A model of a known architecture uses a feature that this release does not support.
    MODEL_FEATURE_UNSUPPORTED = "model-feature-unsupported";
    /// A quantisation applies to nothing in a model, or has been applied.
    MODEL_NOT_QUANTIZABLE = "model-not-quantizable";
    /// The files of a quantised model cannot be written.
    MODEL_UNWRITABLE = "model-unwritable";
    /// A directory does not give the content of a stored model.
    MODEL_CONTENT_DIFFERS = "model-content-differs";
    /// A model has a path that leaves its directory or cannot be stored.
    MODEL_PATH_REFUSED = "model-path-refused";
    /// A model is larger than a model manifest can describe.
    MODEL_TOO_LARGE = "model-too-large";
    /// An import stalled for so long that the shards it wrote may have been garbage-collected.
    MODEL_IMPORT_STALLED = "model-import-stalled";
    /// A model's files changed while they were imported.
    MODEL_SOURCE_CHANGED = "model-source-changed";
    /// A model's manifest is in no store, or does not match the model's root.
    MODEL_MANIFEST_INVALID = "model-manifest-invalid";
    /// A key does not belong to the model, or this secret cannot open a wrap.
    MODEL_KEY_WRONG = "model-key-wrong";
    /// Too few stores or failure domains for the erasure code and the placement rule.
    STORE_TOO_FEW = "store-too-few";
    /// A store's address is malformed or unusable.
    STORE_ADDRESS_INVALID = "store-address-invalid";
    /// A store does not answer, or answers with an error.
    STORE_UNREACHABLE = "store-unreachable";
    /// A store sends more or fewer bytes than requested.
    STORE_LENGTH_WRONG = "store-length-wrong";
    /// A store is full.
    STORE_FULL = "store-full";
    /// A store refuses the name or size of an object, or refuses this peer.
    STORE_REFUSED = "store-refused";
    /// A store has an object with other bytes; an object is taken once.
    STORE_OBJECT_EXISTS = "store-object-exists";
    /// A store does not let an object go, or takes it from another node alone.
    STORE_OBJECT_HELD = "store-object-held";
    /// Garbage collection (`model sweep`) did not start, because the set of needed objects is uncertain.
    SWEEP_REFUSED = "sweep-refused";
    /// Garbage collection (`model sweep`) could not list or clean every store.
    SWEEP_INCOMPLETE = "sweep-incomplete";
    /// A shard is missing from its store.
    SHARD_MISSING = "shard-missing";
    /// A shard's bytes do not match its digest.
    SHARD_WRONG = "shard-wrong";
    /// Too few valid shards are left to rebuild a segment.
    SHARD_TOO_FEW = "shard-too-few";

    /// An image is neither `docker save`'s nor an OCI layout, or contradicts its own digests or sizes.
    ARTIFACT_IMAGE_INVALID = "artifact-image-invalid";
    /// An artifact has a path that leaves its root or cannot be stored.
    ARTIFACT_PATH_REFUSED = "artifact-path-refused";
    /// A link of an artifact leads out of its root, or a hard link names no earlier file.
    ARTIFACT_LINK_REFUSED = "artifact-link-refused";
    /// An image holds a device, a pipe or a socket.
    ARTIFACT_DEVICE_REFUSED = "artifact-device-refused";
    /// An artifact exceeds a limit on entries, bytes or layers.
    ARTIFACT_TOO_LARGE = "artifact-too-large";
    /// An artifact has no entry point, or its tree lacks it.
    ARTIFACT_ENTRY_POINT_MISSING = "artifact-entry-point-missing";
    /// A packed artifact does not match its root, or its index contradicts itself.
    ARTIFACT_INVALID = "artifact-invalid";
    /// A file of an image, a build or a cache of artifacts cannot be read or written.
    ARTIFACT_UNREADABLE = "artifact-unreadable";
    /// An unpacked tree in a node's cache differed from its root, and was removed.
    ARTIFACT_TREE_CHANGED = "artifact-tree-changed";
    /// The trees in use leave too little space in a node's cache for another one.
    ARTIFACT_CACHE_FULL = "artifact-cache-full";
    /// Another process uses the tree in the cache.
    ARTIFACT_IN_USE = "artifact-in-use";
    /// A build would be incomplete or not reproducible: a requirement without a hash, a missing library.
    ARTIFACT_BUILD_REFUSED = "artifact-build-refused";
    /// A wheel is missing, has another hash, or cannot be read.
    WHEEL_REFUSED = "wheel-refused";

    /// No process answers at a peer's address.
    PEER_UNREACHABLE = "peer-unreachable";
    /// The process at a peer's address holds another key.
    PEER_WRONG_KEY = "peer-wrong-key";
    /// A peer does not admit this process's key.
    PEER_REFUSED = "peer-refused";
    /// A handshake failed, or a connection ended during an exchange.
    PEER_LOST = "peer-lost";
    /// An exchange took longer than its limit.
    TIMED_OUT = "timed-out";
    /// A response exceeds its size limit.
    RESPONSE_TOO_LARGE = "response-too-large";
    /// Plain HTTP is refused on an address that other machines can reach.
    PLAIN_HTTP_REFUSED = "plain-http-refused";
    /// The operator's TLS certificate or its key cannot be used.
    TLS_CERTIFICATE_INVALID = "tls-certificate-invalid";
    /// The process cannot listen on an address, port or inherited socket.
    LISTEN_FAILED = "listen-failed";
    /// A private key file is missing, damaged, or readable by others.
    KEY_FILE_UNUSABLE = "key-file-unusable";

    /// A node offers less isolation than the manifest asks for, or lacks a device that its order names.
    NODE_UNFIT = "node-unfit";
    /// The machine has no user namespaces, so no worker can be isolated.
    ISOLATION_UNAVAILABLE = "isolation-unavailable";
    /// A sandbox could not be built.
    SANDBOX_FAILED = "sandbox-failed";
    /// The profile of a process sandbox contradicts itself or passes a limit.
    PROCESS_PROFILE_INVALID = "process-profile-invalid";
    /// The nodes of a gang have no network: no TUN device, or no storage address at which they could meet.
    GANG_NETWORK_UNAVAILABLE = "gang-network-unavailable";
    /// A node refused a link of a gang: it does not hold the attempt with this peer, or its limits are
    /// reached.
    GANG_LINK_REFUSED = "gang-link-refused";
    /// Two nodes of a gang could not reach each other in time, so the ranks did not start.
    GANG_LINK_DOWN = "gang-link-down";
    /// A worker ended, or reported that it cannot serve.
    WORKER_FAILED = "worker-failed";
    /// A member that the access envelope does not name granted access, or revoked a grant of another member.
    GRANTOR_REFUSED = "grantor-refused";
    /// A grant is outside the access envelope in force.
    GRANT_OUTSIDE_ENVELOPE = "grant-outside-envelope";
    /// A grant was made under an access envelope whose grants have ended.
    GRANT_ENVELOPE_ENDED = "grant-envelope-ended";
    /// A grant has expired.
    GRANT_EXPIRED = "grant-expired";
    /// A grant was revoked.
    GRANT_REVOKED = "grant-revoked";
    /// Control did not renew a node's lease in time, so the node's sandboxes ended.
    LEASE_LAPSED = "lease-lapsed";
    /// An agent's own files cannot be read, written or verified.
    AGENT_STATE_UNUSABLE = "agent-state-unusable";

    /// A request lacks a required field.
    MISSING_PARAMETER = "missing-parameter";
    /// A request has an unknown field.
    UNKNOWN_PARAMETER = "unknown-parameter";
    /// A field of OpenAI's API is not supported, or not with this value.
    UNSUPPORTED_PARAMETER = "unsupported-parameter";
    /// A field has a value of the wrong type or out of range.
    INVALID_VALUE = "invalid-value";
    /// The input and the requested output are together longer than the model's context.
    CONTEXT_LENGTH_EXCEEDED = "context-length-exceeded";
    /// The model does not support the operation: it embeds or generates, not both.
    OPERATION_UNSUPPORTED = "operation-unsupported";
    /// The model's chat template is absent or rejects these messages.
    CHAT_TEMPLATE_FAILED = "chat-template-failed";
    /// A schema or grammar asks for what cannot be enforced, contradicts itself, or is invalid.
    GRAMMAR_UNSUPPORTED = "grammar-unsupported";
    /// A schema or grammar is larger than what is compiled for a request.
    GRAMMAR_TOO_LARGE = "grammar-too-large";
    /// An answer could not be kept within its grammar.
    GRAMMAR_FAILED = "grammar-failed";
    /// An API key may not call this service.
    API_KEY_NOT_FOR_SERVICE = "api-key-not-for-service";
    /// The API key is missing or unknown.
    INVALID_API_KEY = "invalid-api-key";
    /// An API key has used up its requests per minute.
    RATE_LIMIT_EXCEEDED = "rate-limit-exceeded";
    /// An API key has used up its share of the gateway's memory.
    GATEWAY_MEMORY_FULL = "gateway-memory-full";
    /// No worker serves the model at the moment.
    NO_WORKER = "no-worker";
    /// The worker that served a request failed or disconnected.
    WORKER_LOST = "worker-lost";
    /// Every worker of the model is at its limit of requests.
    WORKER_OVERLOADED = "worker-overloaded";
    /// A worker is draining: it finishes running requests and admits no new ones.
    WORKER_DRAINING = "worker-draining";
    /// A worker is still loading its model.
    WORKER_LOADING = "worker-loading";
    /// Weights stopped arriving while a worker waited for them.
    WEIGHTS_STALLED = "weights-stalled";
    /// The engine failed during a computation.
    ENGINE_FAILED = "engine-failed";

    /// The disk that holds a replica's log is full.
    LOG_DISK_FULL = "log-disk-full";
    /// The operating system could not read or write a replica's log.
    LOG_IO_FAILED = "log-io-failed";
    /// A replica's log is corrupt: bytes that were durable do not read back.
    LOG_DAMAGED = "log-damaged";
    /// A replica's log, or a peer, belongs to another replica or group.
    LOG_FOREIGN = "log-foreign";
    /// A file of a replica's log has a version that this build does not read.
    LOG_VERSION_UNSUPPORTED = "log-version-unsupported";
    /// A log directory is empty although the replica should have a log.
    LOG_UNKNOWN = "log-unknown";
    /// Another process uses the directory.
    DIRECTORY_IN_USE = "directory-in-use";
    /// Too many proposals are pending in the replicated log.
    LOG_BUSY = "log-busy";
    /// No leader was elected or confirmed in time.
    NO_LEADER = "no-leader";
    /// A command may or may not have been applied.
    OUTCOME_UNKNOWN = "outcome-unknown";
    /// A command is larger than the replicas accept.
    COMMAND_TOO_LARGE = "command-too-large";
    /// A client session is unknown or has expired.
    SESSION_EXPIRED = "session-expired";
    /// A client session has advanced past this command.
    SEQUENCE_PASSED = "sequence-passed";
    /// The replica has stopped.
    REPLICA_STOPPED = "replica-stopped";
    /// A replica's configuration contradicts itself or its group.
    REPLICA_CONFIG_INVALID = "replica-config-invalid";
    /// A control replica was started from a directory that was never prepared for one.
    REPLICA_NOT_PREPARED = "replica-not-prepared";
    /// A replica failed to start.
    REPLICA_START_FAILED = "replica-start-failed";
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn codes_are_unique_and_kebab_case() {
        let texts: BTreeSet<_> = ALL.iter().map(|code| code.as_str()).collect();
        assert_eq!(texts.len(), ALL.len());
        for text in texts {
            assert!(text.bytes().all(|b| b.is_ascii_lowercase() || b == b'-'), "{text}");
        }
    }

    #[test]
    fn codes_are_found_by_their_text() {
        for code in ALL {
            assert_eq!(ErrorCode::find(code.as_str()), Some(*code));
        }
        assert_eq!(ErrorCode::find("no-such-code"), None);
    }
}
