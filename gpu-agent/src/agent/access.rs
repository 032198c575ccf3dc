//! Grants of inference keys at a gateway's agent: fetched from every control replica, verified by this node's
//! own history, and durable together with their revocations.
//!
//! No replica can withhold a revocation that another one has, and a revoked key stays revoked across
//! restarts. A record that does not verify yet is asked for again: the history here may be behind, or the
//! clock wrong.

use super::actor::AgentActor;
use super::control_client::AgentControlClient;
use super::error::AgentError;
use super::polling::poll_replica;
use futures::future::join_all;
use host::files;
use human_chain::{AccessBook, ChainError, CircleState, check_grant, check_revocation};
use protocol::access::{ACCESS_BOOK_BYTES_MAX, AccessBookRecord, AccessRecord, AccessRequest, GrantedAccess};
use protocol::limits::POLL_WAIT_MS_MAX;
use protocol::{CircleId, Digest, Millis, error_code};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

/// First pause before everything is asked for again because a record was refused; it doubles each time.
const REPEAT_PAUSE: Duration = Duration::from_secs(1);
/// Longest such pause: a hostile replica makes honest ones send everything twice a minute at most.
const REPEAT_PAUSE_MAX: Duration = Duration::from_secs(32);

/// Grants and revocations that a replica sent.
#[derive(Debug)]
pub(super) struct ReceivedAccess {
    pub(super) records: Vec<AccessRecord>,
}

/// The inference keys that this node has taken, and their file.
#[derive(Debug)]
pub(super) struct AccessFile {
    path: PathBuf,
    circle: CircleId,
    book: AccessBook,
    /// Whether the book differs from the file.
    unsaved: bool,
    /// Time from which the replicas are asked for everything again; none if nothing was refused.
    repeat_at: Option<Instant>,
    repeat_pause: Duration,
    /// Number of times that everything was to be asked for again.
    repeats: watch::Sender<u64>,
}

impl AccessFile {
    /// Opens the file; without one no key was granted.
    ///
    /// # Errors
    /// If the file cannot be read or trusted. Without it this node could pass on what a member has revoked.
    pub(super) fn open(path: PathBuf, circle: CircleId) -> Result<Self, AgentError> {
        let unusable = |reason: String| AgentError::Access { path: path.clone(), reason };
        let bytes = files::read(&path, Digest::LENGTH + ACCESS_BOOK_BYTES_MAX)
            .map_err(|error| unusable(error.to_string()))?;
        let record = bytes.map(|bytes| AccessBookRecord::from_file(&bytes, circle)).transpose();
        let record = record.map_err(|error| unusable(error.to_string()))?;
        let book = record.map(AccessBook::from_record).unwrap_or_default();
        let (repeat_at, repeats) = (None, watch::Sender::new(0));
        Ok(Self { path, circle, book, unsaved: false, repeat_at, repeat_pause: REPEAT_PAUSE, repeats })
    }

    /// Returns the grants and revocations.
    pub(super) fn book(&self) -> &AccessBook {
        &self.book
    }

    /// Returns the path of the file.
    fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the counter that rises when everything must be asked for again.
    pub(super) fn repeats(&self) -> watch::Receiver<u64> {
        self.repeats.subscribe()
    }

    /// Takes a grant or a revocation of an inference key if it verifies. Returns whether it is new. Those of
    /// access tokens are no business of a gateway.
    ///
    /// # Errors
    /// The reason why it does not count.
    pub(super) fn take(
        &mut self,
        state: &CircleState,
        record: AccessRecord,
        now: Millis,
    ) -> Result<bool, ChainError> {
        let outcome = self.judge(state, record, now);
        match &outcome {
            Ok(is_new) => self.unsaved |= is_new,
            // No later decision and no other time makes these count.
            Err(ChainError::GrantRevoked(_) | ChainError::GrantExpired { .. }) => {}
            Err(_) => self.repeat_later(),
        }
        outcome
    }

    fn judge(&mut self, state: &CircleState, record: AccessRecord, now: Millis) -> Result<bool, ChainError> {
        match record {
            AccessRecord::Grant(signed) => {
                let id = signed.grant.id();
                if !is_key(&signed.grant.access) || self.book.contains(&id) {
                    return Ok(false);
                }
                if self.book.is_revoked(&id) {
                    return Err(ChainError::GrantRevoked(id));
                }
                self.book.accept(check_grant(state, signed, now)?)
            }
            AccessRecord::Revocation(signed) => {
                let grant = &signed.revocation.grant;
                if !is_key(&grant.access) || self.book.is_revoked(&grant.id()) || grant.expires_at <= now {
                    return Ok(false);
                }
                self.book.revoke(check_revocation(state, signed)?)
            }
        }
    }

    /// Asks for everything again after a pause.
    pub(super) fn repeat_later(&mut self) {
        if self.repeat_at.is_none() {
            self.repeat_at = Some(Instant::now() + self.repeat_pause);
            self.repeat_pause = (self.repeat_pause * 2).min(REPEAT_PAUSE_MAX);
        }
    }

    /// Asks for everything again if it is time to.
    pub(super) fn repeat_if_due(&mut self) {
        if self.repeat_at.is_some_and(|at| at <= Instant::now()) {
            self.repeat_at = None;
            self.repeats.send_modify(|count| *count += 1);
        }
    }

    /// Follows a decision of the circle: forgets what stands no longer, and asks again for what was refused.
    pub(super) fn follow(&mut self, state: &CircleState, now: Millis) {
        self.unsaved |= self.book.prune(state, now);
        self.repeat_pause = REPEAT_PAUSE;
        if self.repeat_at.is_some() {
            self.repeat_at = Some(Instant::now());
        }
    }

    /// Writes the grants and revocations, if they differ from the file. They are durable when this returns.
    ///
    /// # Errors
    /// Errors of the system; the old content is then still in place, and the next call tries again.
    pub(super) fn save(&mut self) -> io::Result<()> {
        if self.unsaved {
            files::write_secret(&self.path, &self.book.to_record(self.circle).to_file())?;
            self.unsaved = false;
        }
        Ok(())
    }
}

fn is_key(access: &GrantedAccess) -> bool {
    matches!(access, GrantedAccess::Key { .. })
}

impl AgentActor {
    /// Takes the grants and revocations that a replica sent. The gateway gets them at once.
    pub(super) fn take_access(&mut self, received: ReceivedAccess) {
        if !self.can_judge() {
            self.access.repeat_later();
            return;
        }
        let now = self.trusted_now();
        let mut is_news = false;
        for record in received.records {
            match self.access.take(self.chain.state(), record, now) {
                Ok(is_new) => is_news |= is_new,
                Err(error) => {
                    let text = format!("a grant does not count: {}: {error}", error.code());
                    self.log_throttled("access", &text);
                }
            }
        }
        if is_news {
            self.save_access();
            self.hand_routes();
        }
    }

    /// Follows the circle's decisions.
    pub(super) fn follow_access(&mut self) {
        if self.can_judge() {
            let now = self.trusted_now();
            self.access.follow(self.chain.state(), now);
            self.save_access();
        }
    }

    /// Takes expired keys from the gateway, and asks again for what was refused.
    pub(super) fn renew_access(&mut self) {
        self.access.repeat_if_due();
        self.save_access();
        if self.can_judge() {
            self.hand_routes();
        }
    }

    /// Writes the grants. A revocation that the disk does not take is obeyed all the same, and written again.
    fn save_access(&mut self) {
        if let Err(error) = self.access.save() {
            let path = self.access.path().display().to_string();
            let text = format!("{}: write {path}: {error}", error_code::AGENT_STATE_UNUSABLE);
            self.log_throttled("disk", &text);
        }
    }
}

/// Asks every replica for grants and revocations until the receiver is gone.
pub(super) async fn follow_replicas(
    control: Arc<AgentControlClient>,
    repeats: watch::Receiver<u64>,
    received: mpsc::Sender<ReceivedAccess>,
) {
    let follow_one = |replica| follow(&control, replica, repeats.clone(), &received);
    join_all((0..control.replica_count()).map(follow_one)).await;
}

async fn follow(
    control: &AgentControlClient,
    replica: usize,
    repeats: watch::Receiver<u64>,
    received: &mpsc::Sender<ReceivedAccess>,
) {
    let ask = move |after: u64| async move {
        let answer = control.access_of(replica, &AccessRequest { after, wait_ms: POLL_WAIT_MS_MAX }).await?;
        Some((answer.last, answer.records))
    };
    poll_replica(ask, repeats, |records| ReceivedAccess { records }, received).await;
}

#[cfg(test)]
mod tests;
