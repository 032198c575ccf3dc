//! Halts: one member stops a service, a node, a region or the whole circle. A halt never expires; only the
//! circle lifts it, by a vote that names it.
//!
//! A halt is signed, and needs no order: any party that has it verifies it alone, and takes it once. It
//! therefore travels without a leader and without a quorum. `human-chain` verifies halts and decides which of
//! them stand.

use crate::canonical::{self, CanonicalError};
use crate::digest::Digest;
use crate::ids::{CircleId, HaltId, MemberId, Millis, NodeName, ServiceName, SlotIndex};
use crate::keys::{HybridSignature, PublicKey};
use crate::limits::{BALLOT_BYTES_MAX, MEMBERS_MAX};
use crate::passkey::PasskeyAssertion;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Signature domain of a halt's hybrid signature, and digest domain of its id.
pub const HALT_DOMAIN: &str = "quorate/halt/v1";
/// Digest domain of a halt book on a disk.
pub const HALT_BOOK_DOMAIN: &str = "quorate/halt-book/v1";
/// Format version of the halt book that this release writes and reads.
pub const HALT_BOOK_VERSION: u32 = 2;
/// Maximum number of halts of one member that stand at the same time. A member that needs more halts the
/// circle; a stolen key fills no disk.
pub const HALTS_PER_MEMBER_MAX: usize = 64;
/// Maximum length of a halt's reason in bytes: a sentence or two, since people read it in every listing.
pub const HALT_REASON_BYTES_MAX: usize = 256;
/// Maximum size of a signed halt in bytes: that of a ballot, which carries the same signature.
pub const HALT_BYTES_MAX: usize = BALLOT_BYTES_MAX;
/// Maximum size of a halt book on a disk in bytes: every halt of every member.
pub const HALT_BOOK_BYTES_MAX: usize = MEMBERS_MAX * HALTS_PER_MEMBER_MAX * HALT_BYTES_MAX + 1024;
/// Maximum number of halts in one answer. Each costs its reader two signature checks.
pub const HALTS_PAGE_MAX: usize = 16;
/// Maximum number of halts that one change lifts: each is a few lines of the text that members read.
pub const LIFTED_MAX: usize = 256;
/// Maximum number of stopped slots that an answer names.
pub const HALTED_SLOTS_SHOWN: usize = 32;

const _: () = assert!(
    HALTS_PAGE_MAX * HALT_BYTES_MAX <= crate::limits::SYNC_BYTES_MAX / 64,
    "an answer with halts delays no sync"
);
const _: () = assert!(
    LIFTED_MAX * (HALT_REASON_BYTES_MAX + 512) <= crate::limits::PROPOSAL_BYTES_MAX / 2,
    "a proposal holds the halts that it lifts"
);

/// Part of the circle that a halt stops.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum HaltScope {
    /// Every slot of a service, on any node.
    Service(ServiceName),
    /// Every slot on a node.
    Node(NodeName),
    /// Every slot on the nodes of a region.
    Region(String),
    /// Every slot.
    Circle,
}

impl HaltScope {
    /// Names of the kinds of scopes, as metrics label them.
    pub const KINDS: [&'static str; 4] = ["service", "node", "region", "circle"];

    /// Returns the kind of this scope: one of [`Self::KINDS`].
    #[must_use]
    pub fn kind(&self) -> &'static str {
        let at = match self {
            Self::Service(_) => 0,
            Self::Node(_) => 1,
            Self::Region(_) => 2,
            Self::Circle => 3,
        };
        Self::KINDS[at]
    }
}

/// Statement of one member: stop this now. It needs no other signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Halt {
    /// Circle that the halt belongs to.
    pub circle: CircleId,
    /// Member that halts.
    pub member: MemberId,
    /// Ed25519 key of the member at the time of signing. The halt is judged by that set of keys, also once
    /// the member has others.
    pub signer: PublicKey,
    /// Part of the circle that stops.
    pub scope: HaltScope,
    /// Reason in the member's words; at most [`HALT_REASON_BYTES_MAX`].
    pub reason: String,
    /// Time of signing, by the member's clock. Nothing is judged by it.
    pub issued_at: Millis,
    /// Random value that distinguishes this halt from an equal one that was lifted.
    pub nonce: Digest,
}

impl Halt {
    /// Returns the halt's id: the digest of its canonical bytes. The signature is no part of it.
    #[must_use]
    pub fn id(&self) -> HaltId {
        HaltId(Digest::of_domain(HALT_DOMAIN, &canonical::to_bytes(self)))
    }
}

/// Signature of a halt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum HaltSignature {
    /// Signature by both of the member's keys, domain [`HALT_DOMAIN`].
    Hybrid(HybridSignature),
    /// Signature by one of the member's passkeys, whose challenge is the halt's digest in the domain
    /// [`crate::passkey::PASSKEY_HALT_DOMAIN`].
    Passkey(PasskeyAssertion),
}

/// Halt with its member's signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SignedHalt {
    /// Halt that the member signed.
    pub halt: Halt,
    /// Signature by the member's keys, or by a passkey.
    pub signature: HaltSignature,
}

impl SignedHalt {
    /// Returns whether the halt has the signature of the member's keys, and not that of a passkey.
    #[must_use]
    pub fn is_hybrid(&self) -> bool {
        matches!(self.signature, HaltSignature::Hybrid(_))
    }
}

/// Halts that a node or a control replica keeps, as stored on its disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HaltBookRecord {
    /// Format version of this record: [`HALT_BOOK_VERSION`].
    pub version: u32,
    /// Circle that the halts belong to.
    pub circle: CircleId,
    /// Halts that were verified and not lifted, sorted by id.
    pub halts: Vec<SignedHalt>,
}

/// Reason why a file is not this party's halt book.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HaltBookError {
    /// The file ends early, or a bit of it has changed.
    #[error("its bytes are damaged")]
    Damaged,
    /// The bytes are not a record.
    #[error(transparent)]
    Form(#[from] CanonicalError),
    /// The version is not the one that this release reads.
    #[error("has form {0}; this release reads {HALT_BOOK_VERSION}")]
    Version(u32),
    /// The halts are those of another circle.
    #[error("belongs to another circle")]
    Foreign,
}

impl HaltBookRecord {
    /// Returns the content of the file: the digest of the record, then the record.
    #[must_use]
    pub fn to_file(&self) -> Vec<u8> {
        let record = canonical::to_bytes(self);
        debug_assert!(record.len() <= HALT_BOOK_BYTES_MAX, "a book that is written can be read");
        let digest = Digest::of_domain(HALT_BOOK_DOMAIN, &record);
        [digest.as_bytes().as_slice(), &record].concat()
    }

    /// Reads the content of a file of this circle.
    ///
    /// # Errors
    /// [`HaltBookError`]: the file must not be trusted, and halts may be missing without it.
    pub fn from_file(bytes: &[u8], circle: CircleId) -> Result<Self, HaltBookError> {
        let (digest, record) = bytes.split_first_chunk().ok_or(HaltBookError::Damaged)?;
        if Digest(*digest) != Digest::of_domain(HALT_BOOK_DOMAIN, record) {
            return Err(HaltBookError::Damaged);
        }
        let record: Self = canonical::from_own_bytes(record, HALT_BOOK_BYTES_MAX)?;
        if record.version != HALT_BOOK_VERSION {
            return Err(HaltBookError::Version(record.version));
        }
        if record.circle != circle { Err(HaltBookError::Foreign) } else { Ok(record) }
    }
}

/// Request of a node or a control replica to a control replica for the halts that it has not received yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HaltsRequest {
    /// Position of the last answer; the default asks for all halts.
    pub after: HaltCursor,
    /// Long-poll timeout: the longest time in milliseconds to wait for a new halt.
    pub wait_ms: u32,
}

/// Position in the halts that a control replica has taken since it started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HaltCursor {
    /// Incarnation of the replica; numbers of two incarnations cannot be compared.
    pub boot: u64,
    /// Number of the last halt that was sent.
    pub number: u64,
}

/// Answer to a [`HaltsRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HaltsAnswer {
    /// Position behind these halts, for the next request.
    pub last: HaltCursor,
    /// Halts after the requested position; at most [`HALTS_PAGE_MAX`].
    pub halts: Vec<SignedHalt>,
}

/// Answer of a control replica that has taken a halt: it is durable there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct HaltReceipt {
    /// Id of the halt.
    pub id: HaltId,
    /// Number of slots in use that the halt covers, as far as this replica knows.
    pub slots: u32,
    /// The first of these slots; at most [`HALTED_SLOTS_SHOWN`].
    pub shown: Vec<HaltedSlot>,
}

/// Slot that a halt covers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct HaltedSlot {
    /// Service that the slot belongs to.
    pub service: ServiceName,
    /// Index of the slot within the service.
    pub slot: SlotIndex,
    /// Node that holds the slot.
    pub node: NodeName,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::{ByteString, Signature};

    fn circle() -> CircleId {
        CircleId(Digest::of(b"circle"))
    }

    fn signed(nonce: &[u8]) -> SignedHalt {
        let halt = Halt {
            circle: circle(),
            member: "alice".parse().expect("a name"),
            signer: PublicKey([1; 32]),
            scope: HaltScope::Region("ghent".into()),
            reason: "smoke in the hall".into(),
            issued_at: Millis(5),
            nonce: Digest::of(nonce),
        };
        let signature = HybridSignature { ed25519: Signature([6; 64]), ml_dsa: ByteString(vec![7; 3309]) };
        SignedHalt { halt, signature: HaltSignature::Hybrid(signature) }
    }

    fn record() -> HaltBookRecord {
        let halts = vec![signed(b"1"), signed(b"2")];
        HaltBookRecord { version: HALT_BOOK_VERSION, circle: circle(), halts }
    }

    #[test]
    fn an_id_names_every_field_and_not_the_signature() {
        type Edit = fn(&mut Halt);
        let sample = signed(b"1").halt;
        let edits: [(&str, Edit); 7] = [
            ("circle", |halt| halt.circle = CircleId(Digest::of(b"another"))),
            ("member", |halt| halt.member = "bob".parse().expect("a name")),
            ("signer", |halt| halt.signer = PublicKey([2; 32])),
            ("scope", |halt| halt.scope = HaltScope::Circle),
            ("reason", |halt| halt.reason.push('.')),
            ("time", |halt| halt.issued_at = Millis(6)),
            ("nonce", |halt| halt.nonce = Digest::of(b"2")),
        ];
        for (name, edit) in edits {
            let mut other = sample.clone();
            edit(&mut other);
            assert_ne!(other.id(), sample.id(), "{name}");
        }
        let mut resigned = signed(b"1");
        let HaltSignature::Hybrid(signature) = &mut resigned.signature else { panic!("a hybrid one") };
        signature.ed25519.0[0] ^= 1;
        assert_eq!(resigned.halt.id(), sample.id(), "signing twice makes no second halt");
    }

    #[test]
    fn any_damaged_byte_and_any_lost_end_of_a_file_is_found() {
        let bytes = record().to_file();
        assert_eq!(HaltBookRecord::from_file(&bytes, circle()), Ok(record()), "the positive control");
        for at in (0..bytes.len()).step_by(7) {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert_eq!(
                HaltBookRecord::from_file(&damaged, circle()),
                Err(HaltBookError::Damaged),
                "byte {at}"
            );
            let cut = HaltBookRecord::from_file(&bytes[..at], circle());
            assert_eq!(cut, Err(HaltBookError::Damaged), "only {at} bytes");
        }
    }

    #[test]
    fn a_file_of_another_circle_or_version_is_refused() {
        let other = CircleId(Digest::of(b"another"));
        let read = HaltBookRecord::from_file(&record().to_file(), other);
        assert_eq!(read, Err(HaltBookError::Foreign));
        let newer = HaltBookRecord { version: 3, ..record() };
        let error = HaltBookRecord::from_file(&newer.to_file(), circle()).expect_err("a later release");
        assert_eq!(error.to_string(), "has form 3; this release reads 2");
    }
}
