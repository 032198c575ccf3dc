//! Access: tokens of people for the control API, and inference keys of applications.
//!
//! The circle votes an envelope: which members may grant access, of what kind, for how long. A grant is one
//! member's signature within that envelope, and so is its revocation. Both name the digest of a secret, never
//! the secret. `human-chain` verifies them, and decides which of them stand.

use crate::canonical::{self, CanonicalError};
use crate::digest::Digest;
use crate::governance::TokenScope;
use crate::ids::{CircleId, GrantId, MemberId, Millis, ServiceName, TokenName};
use crate::keys::{HybridSignature, PublicKey};
use crate::limits::{BALLOT_BYTES_MAX, LABELS_MAX, NAME_BYTES_MAX};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use utoipa::ToSchema;

/// Signature domain of a grant, and digest domain of its id.
pub const GRANT_DOMAIN: &str = "quorate/access-grant/v1";
/// Signature domain of a revocation.
pub const REVOCATION_DOMAIN: &str = "quorate/access-revocation/v1";
/// Digest domain of an access book on a disk.
pub const ACCESS_BOOK_DOMAIN: &str = "quorate/access-book/v1";
/// Format version of the grants and revocations that this release signs and verifies.
pub const ACCESS_VERSION: u32 = 1;
/// Format version of the access book that this release writes and reads.
pub const ACCESS_BOOK_VERSION: u32 = 1;
/// Maximum number of grants that stand at the same time, tokens and keys together: a circle has 99 members at
/// most, and its applications share their keys among their own users.
pub const GRANTS_MAX: usize = 1024;
/// Maximum number of grants of one kind that one holder has at the same time: the one in use and its
/// successor, so that a secret is replaced without a gap.
pub const GRANTS_PER_HOLDER_MAX: usize = 2;
/// Maximum number of revocations that are kept. Each is forgotten when its grant would have expired; beyond
/// this number, the circle votes an envelope that ends all earlier grants.
pub const REVOCATIONS_MAX: usize = 4096;
/// Maximum number of services that an envelope or a key names: members read them before they vote.
pub const GRANT_SERVICES_MAX: usize = LABELS_MAX;
/// Longest validity of a grant in seconds: a leap year. A grant that is not renewed within a year is not in
/// use.
pub const GRANT_SECONDS_MAX: u32 = 366 * 24 * 3600;
/// Validity in seconds of a grant under the standard envelope: a year.
const STANDARD_SECONDS_MAX: u32 = GRANT_SECONDS_MAX;
/// Number of access tokens and of inference keys under the standard envelope: far more than a circle hands
/// out, and half of what may stand.
const STANDARD_GRANTS_MAX: u32 = 512;
/// Maximum size of a signed grant or revocation in bytes: a ballot's signature, and the services.
pub const ACCESS_RECORD_BYTES_MAX: usize = BALLOT_BYTES_MAX + GRANT_SERVICES_MAX * (NAME_BYTES_MAX + 2);
/// Maximum number of grants and revocations in one answer. Each costs its reader two signature checks.
pub const ACCESS_PAGE_MAX: usize = 16;
/// Maximum size of an access book on a disk in bytes: every grant and every revocation.
pub const ACCESS_BOOK_BYTES_MAX: usize = (GRANTS_MAX + REVOCATIONS_MAX) * ACCESS_RECORD_BYTES_MAX + 1024;

const _: () = assert!(2 * STANDARD_GRANTS_MAX as usize <= GRANTS_MAX, "the standard envelope is sound");
const _: () = assert!(
    ACCESS_PAGE_MAX * ACCESS_RECORD_BYTES_MAX <= crate::limits::SYNC_BYTES_MAX / 64,
    "an answer with grants delays no sync"
);

/// Bounds within which single members grant access, as the circle votes them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AccessEnvelope {
    /// Members that may grant access, each by its own signature. If none of them is an active member any
    /// more, every member may.
    pub grantors: BTreeSet<MemberId>,
    /// Scopes that an access token may have; `read` and `propose` are among them, so that a circle can always
    /// vote another envelope.
    pub scopes: BTreeSet<TokenScope>,
    /// Maximum number of access tokens that stand at the same time; at least 1.
    pub tokens_max: u32,
    /// Services that an inference key may call, at most [`GRANT_SERVICES_MAX`]; none = every service.
    pub services: Option<BTreeSet<ServiceName>>,
    /// Maximum number of inference keys that stand at the same time.
    pub keys_max: u32,
    /// Longest validity of a grant in seconds: 1 to [`GRANT_SECONDS_MAX`].
    pub seconds_max: u32,
    /// True if this envelope ends every grant that was made under an earlier one. If false, those that fit
    /// it stand on.
    pub ends_earlier: bool,
}

impl AccessEnvelope {
    /// Returns an envelope for a new circle: these members grant access of every scope to every service, for
    /// at most a year.
    #[must_use]
    pub fn standard(grantors: impl IntoIterator<Item = MemberId>) -> Self {
        Self {
            grantors: grantors.into_iter().collect(),
            scopes: BTreeSet::from([TokenScope::Read, TokenScope::Propose, TokenScope::Submit]),
            tokens_max: STANDARD_GRANTS_MAX,
            services: None,
            keys_max: STANDARD_GRANTS_MAX,
            seconds_max: STANDARD_SECONDS_MAX,
            ends_earlier: false,
        }
    }
}

/// Access that a grant gives to the holder of its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum GrantedAccess {
    /// Access token for the control API.
    Token {
        /// Scopes that the token has; at least one.
        scopes: BTreeSet<TokenScope>,
    },
    /// Inference key for the gateways.
    Key {
        /// Services that the key may call, at most [`GRANT_SERVICES_MAX`]; none = every service.
        services: Option<BTreeSet<ServiceName>>,
        /// Maximum number of requests per minute, at least 1; none = unlimited.
        requests_per_minute: Option<u32>,
    },
}

impl GrantedAccess {
    /// Returns the kind of the access, as audit events and listings name it: `token` or `key`.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Token { .. } => "token",
            Self::Key { .. } => "key",
        }
    }
}

/// Statement of one member: the holder of this secret has this access.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AccessGrant {
    /// Format version of the grant: [`ACCESS_VERSION`].
    pub version: u32,
    /// Circle that the grant belongs to.
    pub circle: CircleId,
    /// Digest of the certificate that approved the envelope; of the envelope in genesis, the circle's id.
    pub envelope: Digest,
    /// Member that grants the access.
    pub issuer: MemberId,
    /// Ed25519 key of the issuer. The grant ends when the issuer is given other keys.
    pub signer: PublicKey,
    /// Person or application that holds the secret. Each has one token, or one key, at a time.
    pub holder: TokenName,
    /// Access that the holder gets.
    pub access: GrantedAccess,
    /// BLAKE3 digest of the secret text. The text has 256 random bits, so a plain hash cannot be reversed.
    pub secret: Digest,
    /// Time of signing, by the issuer's clock. The validity begins with it.
    pub issued_at: Millis,
    /// Time from which the grant is of no use.
    pub expires_at: Millis,
}

impl AccessGrant {
    /// Returns the grant's id: the digest of its canonical bytes. The signature is no part of it.
    #[must_use]
    pub fn id(&self) -> GrantId {
        GrantId(Digest::of_domain(GRANT_DOMAIN, &canonical::to_bytes(self)))
    }
}

/// Grant with its issuer's signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SignedGrant {
    /// Grant that the member signed.
    pub grant: AccessGrant,
    /// Signature by both of the member's keys, domain [`GRANT_DOMAIN`].
    pub signature: HybridSignature,
}

/// Statement of one member: this grant is of no use from now on. It is never taken back.
///
/// It carries the whole grant, so that a party that never had the grant knows what it must refuse, and for
/// how long.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AccessRevocation {
    /// Format version of the revocation: [`ACCESS_VERSION`].
    pub version: u32,
    /// Grant that ends.
    pub grant: AccessGrant,
    /// Member that revokes it: its issuer, or any member that may grant access.
    pub member: MemberId,
    /// Time of signing, by the member's clock. Nothing is judged by it.
    pub issued_at: Millis,
}

/// Revocation with its member's signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SignedRevocation {
    /// Revocation that the member signed.
    pub revocation: AccessRevocation,
    /// Signature by both of the member's keys, domain [`REVOCATION_DOMAIN`].
    pub signature: HybridSignature,
}

/// Grant or revocation, as it travels from control to the agents of gateways.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum AccessRecord {
    /// Grant that stood when it was sent.
    Grant(SignedGrant),
    /// Revocation; its grant is no longer sent.
    Revocation(SignedRevocation),
}

/// Request of a gateway's agent to a control replica for the grants and revocations that it lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccessRequest {
    /// Number of the last record that this replica sent; 0 asks for all.
    pub after: u64,
    /// Long-poll timeout: the longest time in milliseconds to wait for a new record.
    pub wait_ms: u32,
}

/// Answer to an [`AccessRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccessAnswer {
    /// Number of the last of these records, for the next request.
    pub last: u64,
    /// Records after the requested one; at most [`ACCESS_PAGE_MAX`].
    pub records: Vec<AccessRecord>,
}

/// Grants and revocations that a gateway's agent keeps, as stored on its disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccessBookRecord {
    /// Format version of this record: [`ACCESS_BOOK_VERSION`].
    pub version: u32,
    /// Circle that the grants belong to.
    pub circle: CircleId,
    /// Grants that were verified and not revoked, sorted by id.
    pub grants: Vec<SignedGrant>,
    /// Revocations that were verified, sorted by the id of their grant.
    pub revocations: Vec<SignedRevocation>,
}

/// Reason why a file is not this party's access book.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AccessBookError {
    /// The file ends early, or a bit of it has changed.
    #[error("its bytes are damaged")]
    Damaged,
    /// The bytes are not a record.
    #[error(transparent)]
    Form(#[from] CanonicalError),
    /// The version is not the one that this release reads.
    #[error("has form {0}; this release reads {ACCESS_BOOK_VERSION}")]
    Version(u32),
    /// The grants are those of another circle.
    #[error("belongs to another circle")]
    Foreign,
}

impl AccessBookRecord {
    /// Returns the content of the file: the digest of the record, then the record.
    #[must_use]
    pub fn to_file(&self) -> Vec<u8> {
        let record = canonical::to_bytes(self);
        debug_assert!(record.len() <= ACCESS_BOOK_BYTES_MAX, "a book that is written can be read");
        let digest = Digest::of_domain(ACCESS_BOOK_DOMAIN, &record);
        [digest.as_bytes().as_slice(), &record].concat()
    }

    /// Reads the content of a file of this circle.
    ///
    /// # Errors
    /// [`AccessBookError`]: the file must not be trusted, and revocations may be missing without it.
    pub fn from_file(bytes: &[u8], circle: CircleId) -> Result<Self, AccessBookError> {
        let (digest, record) = bytes.split_first_chunk().ok_or(AccessBookError::Damaged)?;
        if Digest(*digest) != Digest::of_domain(ACCESS_BOOK_DOMAIN, record) {
            return Err(AccessBookError::Damaged);
        }
        let record: Self = canonical::from_own_bytes(record, ACCESS_BOOK_BYTES_MAX)?;
        if record.version != ACCESS_BOOK_VERSION {
            return Err(AccessBookError::Version(record.version));
        }
        if record.circle != circle { Err(AccessBookError::Foreign) } else { Ok(record) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::{ByteString, Signature};

    fn grant() -> AccessGrant {
        AccessGrant {
            version: ACCESS_VERSION,
            circle: CircleId(Digest::of(b"circle")),
            envelope: Digest::of(b"envelope"),
            issuer: "alice".parse().expect("a name"),
            signer: PublicKey([1; 32]),
            holder: "app".parse().expect("a name"),
            access: GrantedAccess::Key { services: None, requests_per_minute: None },
            secret: Digest::of(b"secret"),
            issued_at: Millis(5),
            expires_at: Millis(9),
        }
    }

    fn record() -> AccessBookRecord {
        let signature = || HybridSignature { ed25519: Signature([6; 64]), ml_dsa: ByteString(vec![7; 3309]) };
        let (member, issued_at) = ("bob".parse().expect("a name"), Millis(6));
        let revocation = AccessRevocation { version: ACCESS_VERSION, grant: grant(), member, issued_at };
        AccessBookRecord {
            version: ACCESS_BOOK_VERSION,
            circle: grant().circle,
            grants: vec![SignedGrant { grant: grant(), signature: signature() }],
            revocations: vec![SignedRevocation { revocation, signature: signature() }],
        }
    }

    #[test]
    fn an_id_names_every_field() {
        type Edit = fn(&mut AccessGrant);
        let edits: [(&str, Edit); 10] = [
            ("version", |grant| grant.version = 2),
            ("circle", |grant| grant.circle = CircleId(Digest::of(b"another"))),
            ("envelope", |grant| grant.envelope = Digest::of(b"another")),
            ("issuer", |grant| grant.issuer = "bob".parse().expect("a name")),
            ("signer", |grant| grant.signer = PublicKey([2; 32])),
            ("holder", |grant| grant.holder = "other".parse().expect("a name")),
            ("access", |grant| {
                grant.access = GrantedAccess::Token { scopes: BTreeSet::from([TokenScope::Read]) };
            }),
            ("secret", |grant| grant.secret = Digest::of(b"another")),
            ("time", |grant| grant.issued_at = Millis(6)),
            ("expiry", |grant| grant.expires_at = Millis(10)),
        ];
        for (name, edit) in edits {
            let mut other = grant();
            edit(&mut other);
            assert_ne!(other.id(), grant().id(), "{name}");
        }
    }

    #[test]
    fn a_damaged_foreign_or_later_file_is_refused() {
        let (bytes, circle) = (record().to_file(), grant().circle);
        assert_eq!(AccessBookRecord::from_file(&bytes, circle), Ok(record()), "the positive control");
        for at in (0..bytes.len()).step_by(11) {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            let read = AccessBookRecord::from_file(&damaged, circle);
            assert_eq!(read, Err(AccessBookError::Damaged), "byte {at}");
            let cut = AccessBookRecord::from_file(&bytes[..at], circle);
            assert_eq!(cut, Err(AccessBookError::Damaged), "only {at} bytes");
        }
        let other = CircleId(Digest::of(b"another"));
        assert_eq!(AccessBookRecord::from_file(&bytes, other), Err(AccessBookError::Foreign));
        let newer = AccessBookRecord { version: 2, ..record() };
        let error = AccessBookRecord::from_file(&newer.to_file(), circle).expect_err("a later release");
        assert_eq!(error.to_string(), "has form 2; this release reads 1");
    }

    /// The largest grant and the largest revocation are within the limits by which they are read.
    #[test]
    fn the_largest_records_fit_their_limits() {
        let mut largest = record();
        let name = |number: usize| format!("{number:x<width$}", width = NAME_BYTES_MAX);
        let services = (0..GRANT_SERVICES_MAX).map(|number| name(number).parse().expect("a name"));
        let access =
            GrantedAccess::Key { services: Some(services.collect()), requests_per_minute: Some(u32::MAX) };
        let long = AccessGrant {
            issuer: name(0).parse().expect("a name"),
            holder: name(0).parse().expect("a name"),
            access,
            issued_at: Millis(u64::MAX),
            expires_at: Millis(u64::MAX),
            ..grant()
        };
        largest.grants[0].grant = long.clone();
        let revocation = &mut largest.revocations[0].revocation;
        (revocation.grant, revocation.member) = (long, name(0).parse().expect("a name"));
        let grant = canonical::to_bytes(&AccessRecord::Grant(largest.grants.remove(0))).len();
        let revocation = canonical::to_bytes(&AccessRecord::Revocation(largest.revocations.remove(0))).len();
        assert!(grant < revocation && revocation <= ACCESS_RECORD_BYTES_MAX, "{grant} {revocation}");
    }
}
