//! Step of a circle's state: an approved change is checked against the state as it is now, then applied.

use super::CircleState;
use crate::ChainError;
use crate::approved::Approved;
use crate::change::check_change;
use crate::subject::{CIRCLE_SUBJECT, subject_of};
use protocol::governance::{Change, SubjectVersion};

impl CircleState {
    /// Applies an approved change. The approval is consumed, even on an error.
    ///
    /// # Errors
    /// Returns an error when the change was verified against another circle, epoch or version, or is no
    /// longer admissible. The state is then unchanged.
    pub fn advance(&mut self, approved: Approved<Change>) -> Result<(), ChainError> {
        self.check_applicable(&approved)?;
        let subject = subject_of(approved.get());
        let before = (self.length(), self.subject(&subject).version);
        self.apply(approved);
        debug_assert_eq!((self.length(), self.subject(&subject).version), (before.0 + 1, before.1 + 1));
        debug_assert_eq!(
            self.epoch.0,
            self.subject(CIRCLE_SUBJECT).version,
            "the epoch counts the circle's changes"
        );
        Ok(())
    }

    /// Checks every precondition of a change, before any of it is applied.
    ///
    /// The rules for the change are checked again: two changes of different subjects that were verified
    /// side by side can exclude each other, such as two admissions under one key.
    fn check_applicable(&self, approved: &Approved<Change>) -> Result<(), ChainError> {
        let basis = approved.basis();
        let own = |seen: &SubjectVersion| seen.subject == subject_of(approved.get());
        debug_assert!(basis.subjects.iter().all(own), "a change is verified against its own subject");
        if basis.circle != self.id {
            return Err(ChainError::OtherCircle { expected: self.id, actual: basis.circle });
        }
        if basis.epoch != self.epoch {
            return Err(ChainError::OtherEpoch { proposed: basis.epoch, current: self.epoch });
        }
        for seen in &basis.subjects {
            let current = self.subject(&seen.subject);
            if current != *seen {
                let (proposed, current) = (seen.version, current.version);
                return Err(ChainError::Stale { subject: seen.subject.clone(), proposed, current });
            }
        }
        check_change(self, approved.get())
    }
}
