//! Verification of certificates: the only way to an [`Approved`] change. [`verify`] checks against a clock;
//! [`verify_replay`] is for a history that was admitted before.
//!
//! The order of the checks is fixed: cheap checks come before expensive ones, and no input is read before its
//! size is known. A certificate with *any* invalid part is rejected, even if the rest would suffice: one byte
//! string has one meaning.

use crate::approved::{Approved, Basis};
use crate::ballot::{Approvals, BallotBox, Electorate, require_quorum};
use crate::passkey::PasskeyUse;
use crate::propose::{check_bound, check_proposal};
use crate::waiting::admitted_until;
use crate::{ChainError, CircleState};
use protocol::canonical::{from_bytes, to_bytes};
use protocol::governance::{
    BUNDLE_VERSION, Bundle, CERTIFICATE_DOMAIN, Certificate, Change, Choice, SignedBallot, SignedGenesis,
};
use protocol::limits::{self, CLOCK_GRACE_MS};
use protocol::{CircleId, Digest, Millis};
use std::collections::BTreeSet;

/// Verifies a certificate that is presented for the first time.
///
/// `now` is the latest time at which the verifier knows that this certificate was *not* yet admitted. For
/// control, which admits it, that is the present. For a node that follows the chain, it is the time of its
/// last complete synchronization. A certificate that is new since then, but expired before, was admitted too
/// late. A proposal that expired more than [`CLOCK_GRACE_MS`] before `now` is rejected; the waiting time of a
/// change of members extends this limit. [`check_waited`](crate::check_waited) checks that this time is over:
/// it needs the present time.
///
/// # Errors
/// Returns the first check that fails, in this order: size; circle; history; epoch; form; subject and
/// version; change; expiry; proposal, rendering, epoch, history and time of each ballot; its member; both its
/// signatures, or that of its passkey; duplicates and order of ballots; quorum.
pub fn verify(
    state: &CircleState,
    certificate: &Certificate,
    now: Millis,
) -> Result<Approved<Change>, ChainError> {
    check(state, certificate, Some(now))
}

/// Verifies a certificate of a history that was admitted before. It checks everything that [`verify`] checks
/// except expiry, since a certificate that was admitted in time stays valid forever. Without log evidence,
/// only an observer of the admission knows its time. Use this function for certificates that the caller
/// admitted itself or keeps on its own disk. It may also be used to read past decisions, but never to admit a
/// new certificate.
///
/// # Errors
/// Returns the same errors as [`verify`], except for expiry.
pub fn verify_replay(state: &CircleState, certificate: &Certificate) -> Result<Approved<Change>, ChainError> {
    check(state, certificate, None)
}

/// Verifies a certificate about subjects that were changed since: its form, its ballots and its quorum, by
/// the current members; those that were suspended since still count. It finds out whether the certificate was
/// altered; it mints nothing and approves nothing, and it needs no earlier state. A ballot by a passkey that
/// was dropped since then does not verify.
///
/// # Errors
/// Returns the first check that fails, in this order: size; circle; history; epoch; form; proposal,
/// rendering, epoch, history and time of each ballot; its member; both its signatures; duplicates and order
/// of ballots; quorum.
pub fn verify_superseded(state: &CircleState, certificate: &Certificate) -> Result<(), ChainError> {
    let proposal = &certificate.proposal;
    check_size(certificate, to_bytes(certificate).len())?;
    check_bound(state, proposal)?;
    debug_assert_eq!(proposal.epoch, state.epoch(), "the members are those who voted");
    let approvals = check_ballots(&BallotBox::of_the_past(state, proposal), &certificate.ballots)?;
    require_quorum(state, proposal, &approvals)
}

impl CircleState {
    /// Founds a circle and applies certificates in the order in which they were admitted.
    ///
    /// # Errors
    /// Returns the first verification that fails.
    pub fn replay<'a>(
        signed: &SignedGenesis,
        expected: Option<CircleId>,
        certificates: impl IntoIterator<Item = &'a Certificate>,
    ) -> Result<Self, ChainError> {
        let mut state = Self::found(signed, expected)?;
        for certificate in certificates {
            let approved = verify_replay(&state, certificate)?;
            state.advance(approved)?;
        }
        debug_assert_eq!(state.check_invariants(), Ok(()));
        Ok(state)
    }
}

#[expect(clippy::disallowed_methods, reason = "one of the functions that mint: a certificate was verified")]
fn check(
    state: &CircleState,
    certificate: &Certificate,
    now: Option<Millis>,
) -> Result<Approved<Change>, ChainError> {
    let proposal = &certificate.proposal;
    let bytes = to_bytes(certificate);
    check_size(certificate, bytes.len())?;
    check_proposal(state, proposal)?;
    let expired_at = admitted_until(state, proposal);
    if let Some(now) = now.filter(|now| *now > expired_at.plus(CLOCK_GRACE_MS)) {
        return Err(ChainError::Expired { expired_at, now });
    }
    let ballot_box = BallotBox::new(state, proposal);
    let approvals = check_ballots(&ballot_box, &certificate.ballots)?;
    require_quorum(state, proposal, &approvals)?;
    let signed_at = certificate.ballots.iter().map(|signed| signed.ballot.issued_at);
    let basis = Basis {
        circle: state.id(),
        epoch: state.epoch(),
        subjects: proposal.subjects.clone(),
        decided_at: signed_at.max().unwrap_or(proposal.created_at),
        passkey_uses: certificate.ballots.iter().filter_map(PasskeyUse::of).collect(),
    };
    let digest = Digest::of_domain(CERTIFICATE_DOMAIN, &bytes);
    debug_assert!(
        basis.subjects.iter().all(|seen| *seen == state.subject(&seen.subject)),
        "nothing is stale"
    );
    Ok(Approved::after_verification(proposal.change.clone(), digest, ballot_box.id(), basis))
}

fn check_size(certificate: &Certificate, length: usize) -> Result<(), ChainError> {
    let ballots = certificate.ballots.len();
    if length > limits::CERTIFICATE_BYTES_MAX || ballots > limits::BALLOTS_MAX {
        let (most, voters) = (limits::CERTIFICATE_BYTES_MAX, limits::BALLOTS_MAX);
        let reason =
            format!("{length} bytes, {ballots} ballots; accepted: at most {most} bytes, {voters} ballots");
        return Err(ChainError::invalid("certificate", reason));
    }
    Ok(())
}

/// Returns the members whose approvals these are. Every ballot must be a valid approval, sorted by member. Of
/// a member with two sets of keys, the ballot by those in force comes first.
fn check_ballots(ballot_box: &BallotBox<'_>, ballots: &[SignedBallot]) -> Result<Approvals, ChainError> {
    debug_assert!(ballots.len() <= limits::BALLOTS_MAX, "the size is checked before any signature");
    let mut seen = BTreeSet::new();
    for signed in ballots {
        let member = &signed.ballot.member;
        let twice = || ChainError::DuplicateBallot(member.clone());
        let before: Vec<Electorate> = [Electorate::InForce, Electorate::Proposed]
            .into_iter()
            .filter(|keys| seen.contains(&(member.clone(), *keys)))
            .collect();
        if !before.is_empty() && (before != [Electorate::InForce] || !ballot_box.has_two_keys(member)) {
            return Err(twice());
        }
        if seen.last().is_some_and(|(last, _)| last > member) {
            return Err(ChainError::invalid("certificate", "its ballots are not sorted by member"));
        }
        if signed.ballot.choice != Choice::Approve {
            return Err(ChainError::invalid("certificate", "contains a ballot that is no approval"));
        }
        if !seen.insert((member.clone(), ballot_box.check(signed)?)) {
            return Err(twice());
        }
    }
    debug_assert_eq!(seen.len(), ballots.len(), "each ballot is another member's, or by other keys");
    let by = |wanted| {
        let these = seen.iter().filter(move |(_, keys)| *keys == wanted);
        these.map(|(member, _)| member.clone()).collect()
    };
    let by_key = ballots.iter().any(SignedBallot::is_hybrid);
    Ok(Approvals { in_force: by(Electorate::InForce), proposed: by(Electorate::Proposed), by_key })
}

/// Reads a certificate from its canonical bytes.
///
/// # Errors
/// Returns an error for too many bytes, or for bytes that are not the canonical encoding of a certificate.
pub fn read_certificate(bytes: &[u8]) -> Result<Certificate, ChainError> {
    from_bytes(bytes, limits::CERTIFICATE_BYTES_MAX)
        .map_err(|source| ChainError::NotCanonical { what: "certificate", source })
}

/// Reads a bundle from its canonical bytes.
///
/// # Errors
/// Returns an error for too many bytes, for a non-canonical encoding, or for a bundle version that this
/// release does not read.
pub fn read_bundle(bytes: &[u8]) -> Result<Bundle, ChainError> {
    let bundle: Bundle = from_bytes(bytes, limits::BUNDLE_BYTES_MAX)
        .map_err(|source| ChainError::NotCanonical { what: "bundle", source })?;
    if bundle.version != BUNDLE_VERSION {
        let reason = format!("has form {}; this release reads {BUNDLE_VERSION}", bundle.version);
        return Err(ChainError::invalid("bundle", reason));
    }
    Ok(bundle)
}

/// Reads a signed genesis from its canonical bytes, without any verification.
///
/// # Errors
/// Returns an error for too many bytes, or for bytes that are not the canonical encoding of a genesis.
pub fn read_genesis(bytes: &[u8]) -> Result<SignedGenesis, ChainError> {
    from_bytes(bytes, limits::GENESIS_BYTES_MAX)
        .map_err(|source| ChainError::NotCanonical { what: "genesis", source })
}
