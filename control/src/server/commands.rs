//! Commands to the replicated log, each done once, however often the way there and back breaks.
//!
//! The log forgets nothing under a session: a command asked again is answered again, not done again. But one
//! session's commands come one after the other, so a replica has a few, and a command borrows one. Borrowed
//! again from the top, one session serves whoever asks in turn: an ordinary command costs one round.

use super::Server;
use bytes::Bytes;
use consensus::{ProposeError, SessionId};
use std::sync::{Mutex, MutexGuard};
use tokio::sync::Semaphore;

/// Sessions of one replica, and with that its commands at once: far more than people give. The log remembers
/// 4,096 sessions and one answer for each: those of five replicas and of all that they opened since some
/// hundred starts, of which the least used are forgotten.
const SESSIONS_MAX: usize = 16;
/// Commands that wait for a session; more are refused as busy.
const WAITING_MAX: usize = 1024;

/// The sessions of this replica.
#[derive(Debug)]
pub(super) struct Desk {
    free: Mutex<Vec<Session>>,
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
        let (places, waiting) = (Semaphore::new(SESSIONS_MAX), Semaphore::new(WAITING_MAX));
        Self { free: Mutex::default(), places, waiting }
    }
}

impl Desk {
    fn lock(&self) -> MutexGuard<'_, Vec<Session>> {
        self.free.lock().expect("no holder of this lock panics")
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
    pub(super) async fn once(&self, command: Bytes) -> Result<Bytes, ProposeError> {
        let desk = &self.desk;
        let waiting = desk.waiting.try_acquire().map_err(|_| ProposeError::Busy)?;
        let _place = desk.places.acquire().await.expect("the semaphore is never closed");
        drop(waiting);
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
            let id = self.handle.open_session().await?;
            borrowed.session = Some(Session { id, sequence: 0 });
        }
        let session = borrowed.session.as_mut().expect("it was just opened");
        session.sequence += 1;
        let (id, sequence) = (session.id, session.sequence);
        self.handle.propose(command.clone(), Some((id, sequence))).await
    }
}
