//! Exactly-once commands: each runs in a client session, so a retry after a lost reply returns the recorded
//! result.
//!
//! The commands of one session are sequential, so a replica holds a few sessions in a pool, and each command
//! borrows one. The pool is a stack: commands that follow one another share one session, so an ordinary
//! command costs one round.

use super::Server;
use bytes::Bytes;
use consensus::{ProposeError, SessionId};
use std::sync::{Mutex, MutexGuard};
use tokio::sync::{Semaphore, SemaphorePermit};

/// Sessions of one replica, and thus its maximum of concurrent commands: far more than people issue.
///
/// The log remembers 4,096 sessions and one reply for each. That suffices for five replicas and all the
/// sessions that they opened in some hundred starts; the least recently used are evicted.
const SESSIONS_MAX: usize = 16;
/// Sessions reserved for the leader's own commands: it announces itself and executes plans sequentially. It
/// must do so within a lease, however many clients write. The second is for a command whose caller was
/// cancelled.
const RESERVED: usize = 2;
/// Maximum number of clients' commands that wait for a session; further ones are rejected as busy.
const WAITING_MAX: usize = 1024;

/// Origin of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lane {
    /// The leader's own commands.
    Leader,
    /// Commands of users, programs and nodes that ask for admission, in any number.
    Clients,
}

/// Pool of this replica's sessions.
#[derive(Debug)]
pub(super) struct SessionPool {
    free: Mutex<Vec<PooledSession>>,
    reserved: Semaphore,
    permits: Semaphore,
    waiting: Semaphore,
}

/// A session and the sequence number of its last command.
#[derive(Debug, Clone, Copy)]
struct PooledSession {
    id: SessionId,
    sequence: u64,
}

impl Default for SessionPool {
    fn default() -> Self {
        let (permits, waiting) = (Semaphore::new(SESSIONS_MAX - RESERVED), Semaphore::new(WAITING_MAX));
        Self { free: Mutex::default(), reserved: Semaphore::new(RESERVED), permits, waiting }
    }
}

impl SessionPool {
    fn lock(&self) -> MutexGuard<'_, Vec<PooledSession>> {
        self.free.lock().expect("no holder of this lock panics")
    }

    /// Returns a permit to borrow a session; fails as busy if too many clients wait for one.
    async fn permit(&self, lane: Lane) -> Result<SemaphorePermit<'_>, ProposeError> {
        let (permits, waiting) = match lane {
            Lane::Leader => (&self.reserved, None),
            Lane::Clients => {
                (&self.permits, Some(self.waiting.try_acquire().map_err(|_| ProposeError::Busy)?))
            }
        };
        let permit = permits.acquire().await.expect("the semaphore is never closed");
        drop(waiting);
        Ok(permit)
    }

    /// Takes every session permit and every queue permit of the clients.
    #[cfg(test)]
    pub(super) fn fill(&self) -> [SemaphorePermit<'_>; 2] {
        let all = |permits: &Semaphore| u32::try_from(permits.available_permits()).expect("a few");
        [&self.permits, &self.waiting]
            .map(|permits| permits.try_acquire_many(all(permits)).expect("all of them"))
    }
}

/// A guard session, returned to the pool however its command ends, even if its caller was cancelled.
///
/// The next command in the session has a higher sequence number, so an earlier one cannot be applied after
/// it.
struct SessionGuard<'a> {
    session_pool: &'a SessionPool,
    session: Option<PooledSession>,
}

impl Drop for SessionGuard<'_> {
    fn drop(&mut self) {
        self.session_pool.lock().extend(self.session.take());
    }
}

impl Server {
    /// Commits and applies `command` exactly once, and returns the state machine's reply.
    pub(super) async fn once(&self, command: Bytes, lane: Lane) -> Result<Bytes, ProposeError> {
        let session_pool = &self.session_pool;
        let _permit = session_pool.permit(lane).await?;
        let session = session_pool.lock().pop();
        let mut guard = SessionGuard { session_pool, session };
        let renewable = guard.session.is_some();
        match self.propose_in(&mut guard, &command).await {
            // The session was evicted after long disuse, so no recent command ran in it, and neither did this
            // one.
            Err(ProposeError::SessionExpired) if renewable => {
                guard.session = None;
                self.propose_in(&mut guard, &command).await
            }
            outcome => outcome,
        }
    }

    async fn propose_in(&self, guard: &mut SessionGuard<'_>, command: &Bytes) -> Result<Bytes, ProposeError> {
        if guard.session.is_none() {
            // If the reply to opening a session is lost, the command has not been sent yet, so its outcome is
            // known.
            let id = self.handle.open_session().await.map_err(|error| match error {
                ProposeError::OutcomeUnknown => ProposeError::NoLeader,
                other => other,
            })?;
            guard.session = Some(PooledSession { id, sequence: 0 });
        }
        let session = guard.session.as_mut().expect("it was just opened");
        session.sequence += 1;
        let (id, sequence) = (session.id, session.sequence);
        self.handle.propose(command.clone(), Some((id, sequence))).await
    }
}
