//! Commands to the replicated log, each done once, however often the way there and back breaks.
//!
//! The log forgets nothing under a session: a command asked again is answered again, not done again. But one
//! session's commands come one after the other, so a replica has a few, and a command borrows one. Borrowed
//! again from the top, one session serves whoever asks in turn: an ordinary command costs one round.

use super::Server;
use bytes::Bytes;
use consensus::{ProposeError, SessionId};
use std::sync::{Mutex, MutexGuard};
use tokio::sync::{Semaphore, SemaphorePermit};

/// Sessions of one replica, and with that its commands at once: far more than people give. The log remembers
/// 4,096 sessions and one answer for each: those of five replicas and of all that they opened since some
/// hundred starts, of which the least used are forgotten.
const SESSIONS_MAX: usize = 16;
/// Sessions that only the leader's own commands use: it announces itself and carries out plans one command after
/// the other, and must do so within a lease however many clients write. One more for the command whose caller left.
const RESERVED: usize = 2;
/// Clients' commands that wait for a session; more are refused as busy.
const WAITING_MAX: usize = 1024;

/// Whose command it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lane {
    /// The leader's own.
    Leader,
    /// Of people, programs and nodes that ask to be admitted: as many as come.
    Clients,
}

/// The sessions of this replica.
#[derive(Debug)]
pub(super) struct Desk {
    free: Mutex<Vec<Session>>,
    reserved: Semaphore,
    places: Semaphore,
    waiting: Semaphore,
}

/// A session and the number of its last command.
#[derive(Debug, Clone, Copy)]
struct Session {
    id: SessionId,
    sequence: u64,
}

impl Default for Desk {
    fn default() -> Self {
        let (places, waiting) = (Semaphore::new(SESSIONS_MAX - RESERVED), Semaphore::new(WAITING_MAX));
        Self { free: Mutex::default(), reserved: Semaphore::new(RESERVED), places, waiting }
    }
}

impl Desk {
    fn lock(&self) -> MutexGuard<'_, Vec<Session>> {
        self.free.lock().expect("no holder of this lock panics")
    }

    /// The right to borrow a session; refused as busy where too many clients wait for one.
    async fn permit(&self, lane: Lane) -> Result<SemaphorePermit<'_>, ProposeError> {
        let (permits, waiting) = match lane {
            Lane::Leader => (&self.reserved, None),
            Lane::Clients => {
                (&self.places, Some(self.waiting.try_acquire().map_err(|_| ProposeError::Busy)?))
            }
        };
        let permit = permits.acquire().await.expect("the semaphore is never closed");
        drop(waiting);
        Ok(permit)
    }

    /// Takes every session that clients may have, and every place in their queue.
    #[cfg(test)]
    pub(super) fn fill(&self) -> [SemaphorePermit<'_>; 2] {
        let all = |permits: &Semaphore| u32::try_from(permits.available_permits()).expect("a few");
        [&self.places, &self.waiting]
            .map(|permits| permits.try_acquire_many(all(permits)).expect("all of them"))
    }
}

/// A borrowed session. It is given back however its command ends, also when nobody waits for it any more:
/// what comes next in the session has a higher number, so an earlier command cannot be done after it.
struct Borrowed<'a> {
    desk: &'a Desk,
    session: Option<Session>,
}

impl Drop for Borrowed<'_> {
    fn drop(&mut self) {
        self.desk.lock().extend(self.session.take());
    }
}

impl Server {
    /// Has `command` committed and applied exactly once, and returns the state machine's answer.
    pub(super) async fn once(&self, command: Bytes, lane: Lane) -> Result<Bytes, ProposeError> {
        let desk = &self.desk;
        let _permit = desk.permit(lane).await?;
        let session = desk.lock().pop();
        let mut borrowed = Borrowed { desk, session };
        let renewable = borrowed.session.is_some();
        match self.once_in(&mut borrowed, &command).await {
            // It was forgotten after long disuse, so nothing was done in it lately: this command was not either.
            Err(ProposeError::SessionExpired) if renewable => {
                borrowed.session = None;
                self.once_in(&mut borrowed, &command).await
            }
            outcome => outcome,
        }
    }

    async fn once_in(&self, borrowed: &mut Borrowed<'_>, command: &Bytes) -> Result<Bytes, ProposeError> {
        if borrowed.session.is_none() {
            // Lost on the way, the opening of a session is no command that was lost: that one was never sent.
            let id = self.handle.open_session().await.map_err(|error| match error {
                ProposeError::OutcomeUnknown => ProposeError::NoLeader,
                other => other,
            })?;
            borrowed.session = Some(Session { id, sequence: 0 });
        }
        let session = borrowed.session.as_mut().expect("it was just opened");
        session.sequence += 1;
        let (id, sequence) = (session.id, session.sequence);
        self.handle.propose(command.clone(), Some((id, sequence))).await
    }
}
