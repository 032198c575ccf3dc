//! Stable codes of every error that a person can meet. Each has a page in `docs/errors/` of its name,
//! which `quorate explain CODE` prints; a test keeps pages and codes in step.

use serde::{Deserialize, Serialize};

/// A stable, kebab-case error code.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ErrorCode(&'static str);

impl ErrorCode {
    /// The code as text.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        self.0
    }

    /// The code of this text, if there is one.
    #[must_use]
    pub fn find(text: &str) -> Option<Self> {
        ALL.iter().copied().find(|code| code.0 == text)
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
        Self::find(&text).ok_or_else(|| serde::de::Error::custom(format!("unknown code `{text}`")))
    }
}

/// Defines the codes and the list of all of them.
macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $text:literal;)*) => {
        $($(#[$doc])* pub const $name: ErrorCode = ErrorCode($text);)*

        /// Every code, sorted as written here.
        pub const ALL: &[ErrorCode] = &[$($name),*];
    };
}

codes! {
    /// A manifest is not valid TOML or a value in it is out of range.
    MANIFEST_INVALID = "manifest-invalid";
    /// A manifest has a field that does not exist.
    MANIFEST_UNKNOWN_FIELD = "manifest-unknown-field";
    /// A manifest's field has a value of the wrong type.
    MANIFEST_WRONG_TYPE = "manifest-wrong-type";
    /// The kind or runtime is read and checked, but running it is not built yet.
    KIND_NOT_BUILT = "kind-not-built";
    /// A workload asks to reach hosts outside.
    EGRESS_NOT_BUILT = "egress-not-built";

    /// A certificate lacks the approvals that the policy asks for.
    QUORUM_NOT_REACHED = "quorum-not-reached";
    /// A signature does not hold.
    SIGNATURE_INVALID = "signature-invalid";
    /// A genesis that one of its founders has not signed.
    FOUNDER_SIGNATURE_MISSING = "founder-signature-missing";
    /// A ballot or signature is by somebody who is no member.
    NOT_A_MEMBER = "not-a-member";
    /// A write carries the idempotency key of another one.
    IDEMPOTENCY_KEY_REUSED = "idempotency-key-reused";
    /// A member's second ballot on the same proposal.
    BALLOT_DUPLICATE = "ballot-duplicate";
    /// A ballot is for another proposal, rendering, circle or epoch.
    BALLOT_MISMATCH = "ballot-mismatch";
    /// A proposal expired.
    PROPOSAL_EXPIRED = "proposal-expired";
    /// A proposal's subject changed after it was made.
    PROPOSAL_STALE = "proposal-stale";
    /// A proposal belongs to another circle or epoch.
    CIRCLE_MISMATCH = "circle-mismatch";
    /// A proposal, ballot or genesis breaks a rule of its form.
    GOVERNANCE_INVALID = "governance-invalid";

    /// An order names a certificate that its agent does not have or that does not verify.
    ORDER_NOT_APPROVED = "order-not-approved";
    /// An order's signature is missing, wrong or not by a control key.
    ORDER_SIGNATURE_INVALID = "order-signature-invalid";
    /// An order's fence is not above the last one seen for its slot.
    ORDER_REPLAYED = "order-replayed";
    /// An order is for another node or a slot outside its envelope.
    ORDER_MISMATCH = "order-mismatch";
    /// A node that no certificate admits.
    NODE_NOT_ADMITTED = "node-not-admitted";

    /// Nothing can be done before the circle is founded.
    CIRCLE_NOT_FOUNDED = "circle-not-founded";
    /// This cluster has a circle already.
    CIRCLE_ALREADY_FOUNDED = "circle-already-founded";
    /// No open proposal has this id.
    PROPOSAL_NOT_FOUND = "proposal-not-found";
    /// No running service has this name.
    SERVICE_NOT_FOUND = "service-not-found";
    /// No model with this root is registered.
    MODEL_NOT_FOUND = "model-not-found";
    /// A model with this root is registered with another record.
    MODEL_RECORD_DIFFERS = "model-record-differs";
    /// A service in force names the model.
    MODEL_IN_USE = "model-in-use";
    /// The recipient holds another wrap of the model's key.
    WRAP_HELD = "wrap-held";
    /// No API key has this name.
    KEY_NOT_FOUND = "key-not-found";
    /// The name is taken.
    NAME_TAKEN = "name-taken";
    /// More replicas than the envelope allows, or fewer.
    SCALE_OUTSIDE_ENVELOPE = "scale-outside-envelope";
    /// The access token is unknown or lacks the scope.
    TOKEN_SCOPE_MISSING = "token-scope-missing";
    /// A limit of the cluster is reached.
    LIMIT_REACHED = "limit-reached";
    /// The cluster changed after the plan was made.
    PLAN_STALE = "plan-stale";
    /// No access token, or one that is not known.
    TOKEN_UNKNOWN = "token-unknown";
    /// This control replica does not lead; another one answers.
    NOT_LEADER = "not-leader";
    /// This control replica cannot answer now.
    CONTROL_UNAVAILABLE = "control-unavailable";
    /// A request's body, path or query is not what the API accepts.
    REQUEST_INVALID = "request-invalid";
    /// A request's body exceeds the limit.
    REQUEST_TOO_LARGE = "request-too-large";
    /// The API has no such path.
    PATH_NOT_FOUND = "path-not-found";
    /// The path exists, but not with this method.
    METHOD_NOT_ALLOWED = "method-not-allowed";
    /// A port that the genesis names is taken by another process.
    PORT_IN_USE = "port-in-use";
    /// A directory holds something that is not a cluster's.
    DIRECTORY_FOREIGN = "directory-foreign";
    /// A model hub was asked for and cannot be reached.
    MODEL_HUB_UNREACHABLE = "model-hub-unreachable";
    /// A model hub has no such model, or does not give it to this caller.
    MODEL_HUB_REFUSED = "model-hub-refused";
    /// A command breaks a rule of its form.
    COMMAND_INVALID = "command-invalid";

    /// There is no context file, so no command knows which cluster is meant.
    CONTEXT_MISSING = "context-missing";
    /// No admitted node has this name, or none of this name asks to be.
    NODE_NOT_FOUND = "node-not-found";
    /// A command goes through a node's directory, and none was named or it is no node's.
    NODE_DIRECTORY_MISSING = "node-directory-missing";

    /// A file or directory of a model cannot be read.
    MODEL_UNREADABLE = "model-unreadable";
    /// A model lacks a file that its kind needs.
    MODEL_FILE_MISSING = "model-file-missing";
    /// A model has no tokenizer.
    MODEL_TOKENIZER_MISSING = "model-tokenizer-missing";
    /// A model has a file in a format that can carry code, such as pickle.
    MODEL_FORMAT_REFUSED = "model-format-refused";
    /// A weights file is of a version, byte order or type of tensor that is not known here.
    MODEL_FORMAT_UNKNOWN = "model-format-unknown";
    /// A weights file is truncated or its header contradicts it.
    MODEL_WEIGHTS_DAMAGED = "model-weights-damaged";
    /// A model's tensors are not those that its configuration implies.
    MODEL_WEIGHTS_MISMATCH = "model-weights-mismatch";
    /// A model's configuration names an architecture that is not built in.
    MODEL_ARCHITECTURE_UNKNOWN = "model-architecture-unknown";
    /// A model's configuration or tokenizer file is not what its format says.
    MODEL_CONFIG_INVALID = "model-config-invalid";
    /// A model of a known architecture uses a part of it that is not built.
    MODEL_FEATURE_UNSUPPORTED = "model-feature-unsupported";
    /// A model has a path that leaves its directory or cannot be stored.
    MODEL_PATH_REFUSED = "model-path-refused";
    /// A model is larger than a manifest can name.
    MODEL_TOO_LARGE = "model-too-large";
    /// An import stood still for too long to be sure that what it wrote is still there.
    MODEL_IMPORT_STALLED = "model-import-stalled";
    /// A model's files changed while they were imported.
    MODEL_SOURCE_CHANGED = "model-source-changed";
    /// A model's manifest is in no store, or is not the one that the root names.
    MODEL_MANIFEST_INVALID = "model-manifest-invalid";
    /// A key does not belong to the model, or a wrap cannot be opened with this secret.
    MODEL_KEY_WRONG = "model-key-wrong";
    /// Too few stores or failure domains for the erasure code and the placement rule.
    STORE_TOO_FEW = "store-too-few";
    /// A store's address cannot be understood or used.
    STORE_ADDRESS_INVALID = "store-address-invalid";
    /// A store does not answer, or answers with a failure.
    STORE_UNREACHABLE = "store-unreachable";
    /// A store sends more or fewer bytes than it was asked for.
    STORE_LENGTH_WRONG = "store-length-wrong";
    /// A store has no room left.
    STORE_FULL = "store-full";
    /// A store refuses an object's name, size or this peer.
    STORE_REFUSED = "store-refused";
    /// A sweep was not begun, because it could not be sure what is still needed.
    SWEEP_REFUSED = "sweep-refused";
    /// A sweep could not list or clean every store.
    SWEEP_INCOMPLETE = "sweep-incomplete";
    /// A shard is missing from its store.
    SHARD_MISSING = "shard-missing";
    /// A shard's bytes are not the ones that were stored.
    SHARD_WRONG = "shard-wrong";
    /// Too few good shards are left to rebuild a segment.
    SHARD_TOO_FEW = "shard-too-few";

    /// Nobody answers at a peer's address.
    PEER_UNREACHABLE = "peer-unreachable";
    /// Whoever answers at a peer's address holds another key.
    PEER_WRONG_KEY = "peer-wrong-key";
    /// A peer does not admit our key.
    PEER_REFUSED = "peer-refused";
    /// A connection could not be agreed on, or ended in the middle of an exchange.
    PEER_LOST = "peer-lost";
    /// An exchange took longer than its limit.
    TIMED_OUT = "timed-out";
    /// A response exceeds the limit.
    RESPONSE_TOO_LARGE = "response-too-large";
    /// Plain HTTP on an address that other machines can reach.
    PLAIN_HTTP_REFUSED = "plain-http-refused";
    /// The operator's TLS certificate or its key cannot be used.
    TLS_CERTIFICATE_INVALID = "tls-certificate-invalid";
    /// An address, port or inherited socket cannot be listened on.
    LISTEN_FAILED = "listen-failed";
    /// A private key file is missing, damaged, or readable by others.
    KEY_FILE_UNUSABLE = "key-file-unusable";

    /// A node gives less isolation than the manifest asks for, or lacks a device that its order names.
    NODE_UNFIT = "node-unfit";
    /// The machine has no user namespaces, so no worker can be isolated.
    ISOLATION_UNAVAILABLE = "isolation-unavailable";
    /// A sandbox could not be built.
    SANDBOX_FAILED = "sandbox-failed";
    /// A worker ended, or said that it cannot serve.
    WORKER_FAILED = "worker-failed";
    /// Control did not renew a node's lease in time, so its sandboxes ended.
    LEASE_LAPSED = "lease-lapsed";
    /// An agent's own files cannot be read, written or believed.
    AGENT_STATE_UNUSABLE = "agent-state-unusable";

    /// A field that a request needs is not there.
    MISSING_PARAMETER = "missing-parameter";
    /// A request has a field that does not exist.
    UNKNOWN_PARAMETER = "unknown-parameter";
    /// A field of OpenAI's API that is not served here, or not with this value.
    UNSUPPORTED_PARAMETER = "unsupported-parameter";
    /// A field has a value of the wrong type or out of range.
    INVALID_VALUE = "invalid-value";
    /// An input, with the answer asked for, is longer than the model's context.
    CONTEXT_LENGTH_EXCEEDED = "context-length-exceeded";
    /// The model does something else: it embeds, or it generates.
    OPERATION_UNSUPPORTED = "operation-unsupported";
    /// The model's chat template is absent or refuses these messages.
    CHAT_TEMPLATE_FAILED = "chat-template-failed";
    /// The API key is missing or unknown.
    INVALID_API_KEY = "invalid-api-key";
    /// An API key has used up its requests per minute.
    RATE_LIMIT_EXCEEDED = "rate-limit-exceeded";
    /// An API key holds its share of the gateway's memory.
    GATEWAY_MEMORY_FULL = "gateway-memory-full";
    /// No worker serves the model at the moment.
    NO_WORKER = "no-worker";
    /// The worker that served a request was lost.
    WORKER_LOST = "worker-lost";
    /// Every worker has as many requests as it takes.
    WORKER_OVERLOADED = "worker-overloaded";
    /// A worker finishes what runs and takes nothing new.
    WORKER_DRAINING = "worker-draining";
    /// A worker is still loading its model.
    WORKER_LOADING = "worker-loading";
    /// Weights stopped arriving while a worker waited for them.
    WEIGHTS_STALLED = "weights-stalled";
    /// The engine failed while it computed.
    ENGINE_FAILED = "engine-failed";

    /// The disk that holds a replica's log is full.
    LOG_DISK_FULL = "log-disk-full";
    /// The operating system refused to read or write a replica's log.
    LOG_IO_FAILED = "log-io-failed";
    /// Bytes of a replica's log that were once durable do not read back.
    LOG_DAMAGED = "log-damaged";
    /// A replica's log, or a peer, belongs to another replica or group.
    LOG_FOREIGN = "log-foreign";
    /// A file of a replica's log is of a version that this build does not read.
    LOG_VERSION_UNSUPPORTED = "log-version-unsupported";
    /// A log directory is empty although the replica should have one.
    LOG_UNKNOWN = "log-unknown";
    /// Another process works in the directory.
    DIRECTORY_IN_USE = "directory-in-use";
    /// Too many proposals wait already.
    LOG_BUSY = "log-busy";
    /// No leader was found or confirmed in time.
    NO_LEADER = "no-leader";
    /// A command may or may not have been applied.
    OUTCOME_UNKNOWN = "outcome-unknown";
    /// A command is larger than the replicas take.
    COMMAND_TOO_LARGE = "command-too-large";
    /// A client session is not known or was forgotten.
    SESSION_EXPIRED = "session-expired";
    /// A client session has moved past this command.
    SEQUENCE_PASSED = "sequence-passed";
    /// The replica has stopped.
    REPLICA_STOPPED = "replica-stopped";
    /// A replica's configuration contradicts itself or its group.
    REPLICA_CONFIG_INVALID = "replica-config-invalid";
    /// A control replica is to run from a directory that was never prepared for one.
    REPLICA_NOT_PREPARED = "replica-not-prepared";
    /// A replica could not be started.
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
