//! Halts of this node: durable before it acts on them, and fetched from every control replica.
//!
//! Each replica is asked alone, whether it leads or not, with requests that wait for news. No replica can
//! withhold a halt that another one has, and a halt needs neither a leader nor a quorum. A halt that does not
//! verify yet is kept aside and judged again with each decision of the circle.

use super::actor::AgentActor;
use super::control_client::AgentControlClient;
use super::core::{Refusal, SlotKey, halted_slots};
use super::error::AgentError;
use super::polling::poll_replica;
use super::slot::SlotCommand;
use futures::future::join_all;
use host::files;
use human_chain::{ChainError, CircleState, DeferredHalts, HaltBook, check_halt, describe_scope};
use protocol::halt::{HALT_BOOK_BYTES_MAX, HaltBookRecord, HaltCursor, HaltsRequest, SignedHalt};
use protocol::limits::POLL_WAIT_MS_MAX;
use protocol::{CircleId, Digest, error_code};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::{mpsc, watch};

/// Origin of a halt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum HaltSource {
    /// A control replica, by its index in the order of genesis.
    Replica(usize),
    /// The operator, at the admin socket.
    Operator,
}

/// Halts that a replica sent.
#[derive(Debug)]
pub(super) struct ReceivedHalts {
    pub(super) replica: usize,
    pub(super) halts: Vec<SignedHalt>,
}

/// The halts that this node has taken, and their file.
#[derive(Debug)]
pub(super) struct HaltFile {
    path: PathBuf,
    circle: CircleId,
    book: HaltBook,
    deferred: DeferredHalts<HaltSource>,
    /// Whether the book differs from the file.
    unsaved: bool,
}

impl HaltFile {
    /// Opens the file; without one there is no halt.
    ///
    /// # Errors
    /// If the file cannot be read or trusted. Without it this node could start what a member has halted, so
    /// the agent must not continue.
    pub(super) fn open(path: PathBuf, circle: CircleId) -> Result<Self, AgentError> {
        let unusable = |reason: String| AgentError::Halts { path: path.clone(), reason };
        let bytes = files::read(&path, Digest::LENGTH + HALT_BOOK_BYTES_MAX)
            .map_err(|error| unusable(error.to_string()))?;
        let record = bytes.map(|bytes| HaltBookRecord::from_file(&bytes, circle)).transpose();
        let record = record.map_err(|error| unusable(error.to_string()))?;
        let book = record.map(HaltBook::from_record).unwrap_or_default();
        Ok(Self { path, circle, book, deferred: DeferredHalts::default(), unsaved: false })
    }

    /// Returns the halts.
    pub(super) fn book(&self) -> &HaltBook {
        &self.book
    }

    /// Returns the path of the file.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Takes a halt if it verifies; it is durable after [`Self::save`]. Returns whether it is new.
    ///
    /// # Errors
    /// The reason why it does not count. If the history here may be behind, it is kept aside.
    pub(super) fn accept(
        &mut self,
        state: &CircleState,
        source: HaltSource,
        signed: SignedHalt,
    ) -> Result<bool, ChainError> {
        if !self.book.lacks(state, &signed) {
            return Ok(false);
        }
        let outcome = check_halt(state, signed.clone()).and_then(|verified| self.book.take(state, verified));
        match &outcome {
            Ok(_) => {
                let (halt, member) = (signed.halt.id(), &signed.halt.member);
                tracing::warn!(%halt, %member, scope = %describe_scope(&signed.halt.scope), "halt taken");
                self.unsaved = true;
            }
            // No later decision makes these count.
            Err(ChainError::HaltLifted(_) | ChainError::OtherCircle { .. } | ChainError::Invalid { .. }) => {}
            // The sender has handed it over and sends it once, so it must not be lost here.
            Err(_) => self.deferred.defer(source, signed),
        }
        outcome
    }

    /// Follows a decision of the circle: forgets the halts that stand no longer, and judges again those that
    /// were kept aside.
    pub(super) fn follow(&mut self, state: &CircleState) {
        self.unsaved |= self.book.prune(state);
        for (source, signed) in self.deferred.take() {
            if let Err(error) = self.accept(state, source, signed) {
                tracing::debug!(code = %error.code(), %error, "a halt does not count yet");
            }
        }
    }

    /// Writes the halts, if they differ from the file. They are durable when this returns.
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

impl AgentActor {
    /// Takes the halts that a replica sent, and ends what they cover.
    pub(super) fn take_halts(&mut self, received: ReceivedHalts) {
        let ReceivedHalts { replica, halts } = received;
        let mut is_news = false;
        for signed in halts {
            match self.halts.accept(self.chain.state(), HaltSource::Replica(replica), signed) {
                Ok(is_new) => is_news |= is_new,
                Err(error) => {
                    self.log_throttled("halt", &format!("a halt does not count: {}: {error}", error.code()));
                }
            }
        }
        // A replica that repeats what is known sets no pace: news break off the request to control.
        if is_news {
            self.act_on_halts();
        }
    }

    /// Takes a halt that the operator handed over.
    ///
    /// # Errors
    /// The reason why it does not count; or that it counts, and is not durable.
    pub(super) fn take_injected_halt(&mut self, signed: SignedHalt) -> Result<(), Refusal> {
        self.halts.accept(self.chain.state(), HaltSource::Operator, signed)?;
        self.act_on_halts();
        self.halts.save().map_err(|error| {
            let path = self.halts.path().display();
            let message = format!("the halt is obeyed, but not durable: write {path}: {error}");
            Refusal::new(error_code::AGENT_STATE_UNUSABLE, message)
        })
    }

    fn act_on_halts(&mut self) {
        self.save_halts();
        self.reconcile();
        self.node.news.notify_one();
    }

    /// Follows the circle's decisions. Nothing is forgotten while the chain is not whole.
    pub(super) fn follow_halts(&mut self) {
        if self.chain.check_whole().is_ok() {
            self.halts.follow(self.chain.state());
            self.save_halts();
        }
    }

    /// Writes the halts. A halt that the disk does not take is obeyed all the same, since it does no harm to
    /// stop early. The next reconciliation writes it again.
    pub(super) fn save_halts(&mut self) {
        if let Err(error) = self.halts.save() {
            let path = self.halts.path().display().to_string();
            self.log_throttled(
                "disk",
                &format!("{}: write {path}: {error}", error_code::AGENT_STATE_UNUSABLE),
            );
        }
    }

    /// Kills the slots that a halt covers, whether control answers or not.
    pub(super) fn enforce_halts(&self) {
        let slots: Vec<&SlotKey> = self.slots.keys().collect();
        for (key, refusal) in halted_slots(self.halts.book(), self.chain.state(), self.node.id(), slots) {
            self.tell(&key, SlotCommand::Kill, &refusal.message);
        }
        self.kill_halted_jobs();
    }
}

/// Asks every replica for halts until the receiver is gone.
pub(super) async fn follow_replicas(control: Arc<AgentControlClient>, received: mpsc::Sender<ReceivedHalts>) {
    join_all((0..control.replica_count()).map(|replica| follow(&control, replica, &received))).await;
}

async fn follow(control: &AgentControlClient, replica: usize, received: &mpsc::Sender<ReceivedHalts>) {
    let ask = move |after: HaltCursor| async move {
        let answer = control.halts_of(replica, &HaltsRequest { after, wait_ms: POLL_WAIT_MS_MAX }).await?;
        Some((answer.last, answer.halts))
    };
    // A halt that does not count yet is kept aside here, so none is asked for again.
    let (_, never) = watch::channel(0);
    poll_replica(ask, never, |halts| ReceivedHalts { replica, halts }, received).await;
}

#[cfg(test)]
mod tests;
