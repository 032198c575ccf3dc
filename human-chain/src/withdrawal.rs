//! Withdrawals: a proposer takes a proposal back, and any member a draft.

use crate::signer::{MemberSigner, Statement};
use crate::{ChainError, CircleState, signature_holds};
use protocol::canonical::to_bytes;
use protocol::governance::{SignedWithdrawal, WITHDRAWAL_DOMAIN, Withdrawal};

/// Signs a withdrawal with its member's keys.
#[must_use]
pub fn sign_withdrawal<S: MemberSigner>(signer: &S, withdrawal: Withdrawal) -> S::Signed<SignedWithdrawal> {
    let kind = if withdrawal.draft { "draft" } else { "proposal" };
    let summary = format!("Withdraw the {kind} {} as {}.", withdrawal.proposal, withdrawal.member);
    let statement = Statement::new(WITHDRAWAL_DOMAIN, to_bytes(&withdrawal), summary);
    signer.sign_statement(&statement, |signature| SignedWithdrawal { withdrawal, signature })
}

/// Checks that a withdrawal is signed by the keys of a member in force. The caller compares the member with
/// the proposer, which is no part of the circle's state.
///
/// # Errors
/// Returns an error for a person who is no member, for a suspended one, or for a signature that does not
/// hold.
pub fn check_withdrawal(state: &CircleState, signed: &SignedWithdrawal) -> Result<(), ChainError> {
    let SignedWithdrawal { withdrawal, signature } = signed;
    let member = state.active_member(&withdrawal.member)?;
    if !signature_holds(&member.keys, WITHDRAWAL_DOMAIN, &to_bytes(withdrawal), signature) {
        return Err(ChainError::SignatureInvalid(withdrawal.member.clone()));
    }
    debug_assert!(!state.is_suspended(&withdrawal.member), "a suspended member withdraws nothing");
    Ok(())
}
