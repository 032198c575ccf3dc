//! Founding: checks of a genesis before all of its founders have signed it, and the signatures so far.
//!
//! A circle exists only with every signature ([`CircleState::found`](crate::CircleState::found)). A genesis
//! that could never be founded is refused before a founder signs it.

use crate::{ChainError, MemberSigner, Statement, form, render_genesis, signature_holds};
use protocol::MemberId;
use protocol::canonical::to_bytes;
use protocol::governance::{GENESIS_DOMAIN, Genesis, SignedGenesis};
use protocol::keys::HybridSignature;

/// Checks every rule of form of a genesis, for its drafter and for the founders who sign it.
///
/// # Errors
/// Returns the first broken rule, such as a quorum of 4 of 3 members or a member named twice.
pub fn check_draft(genesis: &Genesis) -> Result<(), ChainError> {
    form::check_genesis(genesis)
}

/// Returns a founder's signature of a genesis. The caller must have shown its rendering to the founder.
pub fn sign_as_founder<S: MemberSigner>(signer: &S, genesis: &Genesis) -> S::Signed<HybridSignature> {
    let (summary, text) = ("Found this circle.".to_string(), render_genesis(genesis).text);
    debug_assert!(!text.is_empty(), "a founder reads a genesis");
    let statement = Statement { domain: GENESIS_DOMAIN, bytes: to_bytes(genesis), summary, text };
    signer.sign_statement(&statement, |signature| signature)
}

/// Verifies the founders' signatures so far, and returns the founders that have not signed.
///
/// # Errors
/// Returns an error when a signature is by no founder, or does not verify.
pub fn unsigned_founders(signed: &SignedGenesis) -> Result<Vec<MemberId>, ChainError> {
    let SignedGenesis { genesis, signatures } = signed;
    let bytes = to_bytes(genesis);
    for (id, signature) in signatures {
        let founder = genesis.members.iter().find(|member| member.id == *id);
        let founder = founder.ok_or_else(|| ChainError::NotAMember(id.clone()))?;
        if !signature_holds(&founder.keys, GENESIS_DOMAIN, &bytes, signature) {
            return Err(ChainError::SignatureInvalid(id.clone()));
        }
    }
    let ids = genesis.members.iter().map(|member| &member.id);
    let unsigned: Vec<MemberId> = ids.filter(|id| !signatures.contains_key(id)).cloned().collect();
    debug_assert!(unsigned.len() + signatures.len() >= genesis.members.len(), "a founder signed or did not");
    Ok(unsigned)
}

/// Joins the signatures that founders made in parallel, each on a copy of the same genesis. Of two signatures
/// by one founder the first is kept.
///
/// # Errors
/// Returns an error when a copy is of another genesis, or one of its signatures is by no founder or does not
/// verify. Nothing is joined then.
pub fn merge_signatures(signed: &mut SignedGenesis, copies: &[SignedGenesis]) -> Result<(), ChainError> {
    let expected = crate::circle_id(&signed.genesis);
    unsigned_founders(signed)?;
    for copy in copies {
        let actual = crate::circle_id(&copy.genesis);
        if actual != expected {
            return Err(ChainError::OtherCircle { expected, actual });
        }
        unsigned_founders(copy)?;
    }
    for (id, signature) in copies.iter().flat_map(|copy| &copy.signatures) {
        signed.signatures.entry(id.clone()).or_insert_with(|| signature.clone());
    }
    debug_assert!(unsigned_founders(signed).is_ok(), "each signature was verified over the same bytes");
    debug_assert_eq!(crate::circle_id(&signed.genesis), expected, "joining alters no genesis");
    Ok(())
}
