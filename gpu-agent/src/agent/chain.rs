//! The circle's governance chain as verified by this node, on disk and in memory.
//!
//! There is one file per bundle, numbered from 1, and each is durable before the node acts on it. A file that
//! does not verify is discarded: the chain ends before it, and the rest is fetched from control again. The
//! highest head that this node ever verified is kept beside the files, so that the chain comes back whole.

use super::core::{Refusal, signed_at};
use super::error::AgentError;
use host::files;
use human_chain::{ChainError, CircleState, check_waited, read_bundle, verify, verify_replay};
use protocol::agent_state::KEPT_HEAD_DOMAIN;
use protocol::governance::{BUNDLE_VERSION, Bundle, HistoryHead, SignedGenesis};
use protocol::limits::CLOCK_GRACE_MS;
use protocol::{CircleId, Digest, Millis, canonical, error_code, limits};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

#[cfg(test)]
mod tests;

/// Largest bundle file.
const BUNDLE_BYTES_MAX: usize = limits::CERTIFICATE_BYTES_MAX + 1024;
/// Name of the file with the time of the last complete synchronisation.
const SYNCED: &str = "synced";
/// Name of the file with the highest head of the history that this node ever verified.
const HEAD: &str = "head";
/// Largest file with a head.
const HEAD_BYTES_MAX: usize = 1024;
/// Minimum interval between two writes of that time. It may lag, since an older time refuses less.
const SYNCED_INTERVAL_MS: u64 = 60_000;

/// The chain of one circle.
#[derive(Debug)]
pub(super) struct Chain {
    directory: PathBuf,
    genesis: SignedGenesis,
    state: CircleState,
    bundles: Vec<Bundle>,
    /// Digests of the bundles' certificates.
    admitted: BTreeSet<Digest>,
    /// Highest head of the history that this node ever verified. The chain is behind it only after damage.
    highest: HistoryHead,
    /// Latest time that the circle signed.
    signed_at: Millis,
    /// Time of the last complete sync. A bundle that arrives later and had expired before it was admitted too
    /// late.
    synced_at: Millis,
    synced_written: Millis,
}

/// A bundle that was refused.
#[derive(Debug)]
pub(super) struct RefusedBundle {
    pub(super) certificate: Digest,
    pub(super) refusal: Refusal,
}

impl Chain {
    /// Starts from the pinned genesis and replays the bundles in the directory.
    pub(super) fn open(
        directory: PathBuf,
        genesis: SignedGenesis,
        circle: CircleId,
    ) -> Result<Self, AgentError> {
        let state = CircleState::found(&genesis, Some(circle)).map_err(AgentError::Genesis)?;
        files::private_directory(&directory).map_err(AgentError::during("create", &directory))?;
        let highest = read_head(&directory.join(HEAD))?.unwrap_or_else(|| state.head());
        let mut chain = Self {
            highest,
            admitted: BTreeSet::new(),
            signed_at: Millis(0),
            synced_at: read_synced(&directory.join(SYNCED)),
            synced_written: Millis(0),
            directory,
            genesis,
            state,
            bundles: Vec::new(),
        };
        chain.replay()?;
        chain.compare_with_highest()?;
        Ok(chain)
    }

    /// Compares the chain on disk with the highest head.
    fn compare_with_highest(&mut self) -> Result<(), AgentError> {
        match self.state.check_extends(&self.highest) {
            Ok(()) => self.keep_head(),
            // The rest is fetched again.
            Err(ChainError::HistoryShorter { known, length }) => {
                tracing::warn!(known, length, "the stored chain is shorter than it was");
            }
            Err(error) => {
                tracing::error!(code = %error.code(), %error, "the stored chain is not the one it was");
                self.remove_from(1)?;
                self.forget_all().map_err(AgentError::Genesis)?;
            }
        }
        Ok(())
    }

    fn replay(&mut self) -> Result<(), AgentError> {
        loop {
            let path = self.path(self.state.length() + 1);
            let read = files::read(&path, BUNDLE_BYTES_MAX).map_err(AgentError::during("read", &path))?;
            let Some(bytes) = read else { return Ok(()) };
            let bundle = read_bundle(&bytes).and_then(|bundle| {
                let approved = verify_replay(&self.state, &bundle.certificate)?;
                self.state.advance(approved)?;
                Ok(bundle)
            });
            match bundle {
                Ok(bundle) => self.remember(bundle),
                Err(error) => return self.cut(&path, &error),
            }
        }
    }

    /// Adds a bundle that was verified and applied.
    fn remember(&mut self, bundle: Bundle) {
        self.signed_at = self.signed_at.max(signed_at(&bundle.certificate));
        self.admitted.insert(bundle.certificate.digest());
        self.bundles.push(bundle);
        debug_assert_eq!(self.bundles.len() as u64, self.state.length(), "one bundle for each decision");
    }

    /// Truncates the chain before a file that does not verify. Its bundles are fetched again.
    fn cut(&mut self, path: &Path, error: &ChainError) -> Result<(), AgentError> {
        tracing::error!(
            code = %error.code(), %error, file = %path.display(),
            "a stored bundle does not verify; the chain ends before it and is fetched again"
        );
        self.remove_from(self.state.length() + 1)
    }

    /// Removes the files from this number on.
    fn remove_from(&self, first: u64) -> Result<(), AgentError> {
        for number in first.. {
            let path = self.path(number);
            match fs::remove_file(&path) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => break,
                removed => removed.map_err(AgentError::during("remove", &path))?,
            }
        }
        Ok(())
    }

    /// Returns to the genesis. The highest head stays: the chain must reach it again.
    fn forget_all(&mut self) -> Result<(), ChainError> {
        self.state = CircleState::found(&self.genesis, Some(self.state.id()))?;
        self.bundles.clear();
        self.admitted.clear();
        self.signed_at = Millis(0);
        Ok(())
    }

    /// Records the current head as the highest.
    fn keep_head(&mut self) {
        let head = self.state.head();
        let path = self.directory.join(HEAD);
        if head == self.highest && (head.size == 0 || path.exists()) {
            return;
        }
        self.highest = head;
        let bytes = canonical::to_bytes(&head);
        let digest = Digest::of_domain(KEPT_HEAD_DOMAIN, &bytes);
        if let Err(error) = files::write_secret(&path, &[&digest.as_bytes()[..], &bytes].concat()) {
            // The bundles are durable; the next one is recorded again.
            tracing::warn!(%error, file = %path.display(), "cannot persist the head of the history");
        }
    }

    fn path(&self, number: u64) -> PathBuf {
        self.directory.join(format!("{number:010}"))
    }

    /// Returns the current state of the circle.
    pub(super) fn state(&self) -> &CircleState {
        &self.state
    }

    /// Returns the genesis of the circle.
    pub(super) fn genesis(&self) -> &SignedGenesis {
        &self.genesis
    }

    /// Returns the bundles since genesis.
    pub(super) fn bundles(&self) -> &[Bundle] {
        &self.bundles
    }

    /// Returns the digests of the bundles' certificates.
    pub(super) fn admitted(&self) -> &BTreeSet<Digest> {
        &self.admitted
    }

    /// Returns the latest time that the circle signed.
    pub(super) fn signed_at(&self) -> Millis {
        self.signed_at
    }

    /// Checks that the chain has every decision that this node ever verified. Until it has, the node must not
    /// act on it.
    ///
    /// # Errors
    /// If decisions are missing.
    pub(super) fn check_whole(&self) -> Result<(), Refusal> {
        self.state.check_extends(&self.highest).map_err(Refusal::from)
    }

    /// Checks the head of the history that control serves against what this node has verified.
    ///
    /// # Errors
    /// If control's history lacks or changes a decision that this node ever verified.
    pub(super) fn check_served(&self, served: &HistoryHead) -> Result<(), Refusal> {
        self.state.check_claimed(served)?;
        if served.size < self.highest.size {
            let (known, length) = (self.highest.size, served.size);
            return Err(ChainError::HistoryShorter { known, length }.into());
        }
        if served.size == self.highest.size && served.root != self.highest.root {
            return Err(ChainError::HistoryForked { size: served.size }.into());
        }
        Ok(())
    }

    /// Verifies the next bundles and persists each before it counts. Returns the number of new ones. A change
    /// of members whose waiting time is not over at `now` is refused.
    ///
    /// # Errors
    /// The first bundle that is refused. Those before it count; the refused one and those after it do not. A
    /// failed write is a refusal too.
    pub(super) fn append(&mut self, bundles: Vec<Bundle>, now: Millis) -> Result<usize, RefusedBundle> {
        let appended = bundles.into_iter().try_fold(0, |added, bundle| {
            self.append_one(bundle, now)?;
            Ok(added + 1)
        });
        if self.state.length() > self.highest.size {
            self.keep_head();
        }
        appended
    }

    fn append_one(&mut self, bundle: Bundle, now: Millis) -> Result<(), RefusedBundle> {
        let certificate = bundle.certificate.digest();
        let refused = |refusal| RefusedBundle { certificate, refusal };
        if bundle.version != BUNDLE_VERSION {
            let message = format!("bundle of form {}; this release reads {BUNDLE_VERSION}", bundle.version);
            return Err(refused(Refusal::new(error_code::GOVERNANCE_INVALID, message)));
        }
        if let Err(error) = self.check_reaches_highest(&bundle) {
            // The fork may have begun anywhere in the chain.
            let removed = self.remove_from(1).map_err(|error| Refusal::of(error.code(), &error));
            removed.and_then(|()| Ok(self.forget_all()?)).map_err(refused)?;
            return Err(refused(error.into()));
        }
        // A bundle that is fetched again was admitted long ago, not too late.
        let is_known = self.state.length() < self.highest.size;
        let verified = if is_known {
            verify_replay(&self.state, &bundle.certificate)
        } else {
            verify(&self.state, &bundle.certificate, self.mark()).and_then(|approved| {
                check_waited(&self.state, &bundle.certificate, now)?;
                Ok(approved)
            })
        };
        let approved = verified.map_err(|error| refused(error.into()))?;
        // The bundle is on disk before the node acts on it.
        let path = self.path(self.state.length() + 1);
        files::write_secret(&path, &canonical::to_bytes(&bundle)).map_err(|error| {
            let message = format!("write {}: {error}", path.display());
            refused(Refusal::new(error_code::AGENT_STATE_UNUSABLE, message))
        })?;
        self.state.advance(approved).map_err(|error| refused(error.into()))?;
        self.remember(bundle);
        Ok(())
    }

    /// Checks that the highest head is reached again with its root, if this is the bundle that reaches it.
    fn check_reaches_highest(&self, bundle: &Bundle) -> Result<(), ChainError> {
        if self.state.length() + 1 != self.highest.size {
            return Ok(());
        }
        // A bundle that does not verify says nothing about the chain; it is refused for its own error.
        let Ok(approved) = verify_replay(&self.state, &bundle.certificate) else { return Ok(()) };
        let mut next = self.state.clone();
        next.advance(approved)?;
        next.check_extends(&self.highest)
    }

    /// Returns the time up to which each admitted bundle is known here: that of the last complete sync, or of
    /// the latest signatures, less the grace for the clocks of members and of control.
    fn mark(&self) -> Millis {
        self.synced_at.max(Millis(self.signed_at.0.saturating_sub(2 * CLOCK_GRACE_MS)))
    }

    /// Records that the chain was complete at `at`.
    pub(super) fn complete_at(&mut self, at: Millis) {
        self.synced_at = self.synced_at.max(at);
        if self.synced_at.0 >= self.synced_written.0.saturating_add(SYNCED_INTERVAL_MS) {
            self.write_synced();
        }
    }

    /// Discards the time of the last complete sync if it is after `now`, which is certain: a wrong clock
    /// recorded it. The next complete sync records a right one.
    pub(super) fn discard_later_than(&mut self, now: Millis) {
        if self.synced_at > now.plus(CLOCK_GRACE_MS) {
            tracing::warn!(recorded = %self.synced_at, %now, "the time of the last sync was wrong");
            self.synced_at = Millis(0);
            self.write_synced();
        }
    }

    fn write_synced(&mut self) {
        self.synced_written = self.synced_at;
        let path = self.directory.join(SYNCED);
        if let Err(error) = files::write_secret(&path, self.synced_at.to_string().as_bytes()) {
            tracing::warn!(%error, file = %path.display(), "cannot persist the time of this sync");
        }
    }
}

/// Returns the highest head, if one was recorded.
///
/// # Errors
/// If the file cannot be read or trusted: without it this node could be made to believe a shorter history.
fn read_head(path: &Path) -> Result<Option<HistoryHead>, AgentError> {
    let read = files::read(path, HEAD_BYTES_MAX).map_err(AgentError::during("read", path))?;
    let Some(bytes) = read else { return Ok(None) };
    let damaged = || AgentError::Head { path: path.to_path_buf() };
    let (digest, head) = bytes.split_first_chunk().ok_or_else(damaged)?;
    if Digest(*digest) != Digest::of_domain(KEPT_HEAD_DOMAIN, head) {
        return Err(damaged());
    }
    canonical::from_bytes(head, HEAD_BYTES_MAX).map(Some).map_err(|_| damaged())
}

/// Returns the stored time. 0 refuses nothing for its age, the only option for a node without history.
fn read_synced(path: &Path) -> Millis {
    let bytes = files::read(path, 32).ok().flatten().unwrap_or_default();
    let text = String::from_utf8(bytes).unwrap_or_default();
    Millis(text.trim().parse().unwrap_or(0))
}
