//! The circle's governance chain as verified by this node, on disk and in memory.
//!
//! There is one file per page of bundles that arrived together, numbered by its first bundle, and each is
//! durable before the node acts on it. A bundle that does not verify is discarded: the chain ends before it,
//! and the rest is fetched from control again. The highest head that this node ever verified is kept beside
//! the files, so that the chain comes back whole.
//!
//! The state that follows from the bundles is kept too, so that a start verifies only what came after it.

use super::core::{Refusal, signed_at};
use super::error::AgentError;
use host::files;
use human_chain::{ChainError, CircleState, check_waited, verify, verify_replay};
use page::{DecisionPage, PAGE_BYTES_MAX, next_bundle, number_of};
use protocol::agent_state::KEPT_HEAD_DOMAIN;
use protocol::governance::{BUNDLE_VERSION, Bundle, HistoryHead, SignedGenesis};
use protocol::limits::CLOCK_GRACE_MS;
use protocol::{CircleId, Digest, Millis, canonical, error_code};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

mod kept;
mod page;
#[cfg(test)]
mod tests;

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
    /// Shared with the agent's tasks, which read the state of an earlier decision while this one is made.
    state: Arc<CircleState>,
    /// Number of decisions in the state on disk.
    kept_length: u64,
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
    /// Starts from the state that this node kept, or from the pinned genesis, and verifies the bundles in the
    /// directory that follow.
    pub(super) fn open(
        directory: PathBuf,
        genesis: SignedGenesis,
        circle: CircleId,
    ) -> Result<Self, AgentError> {
        let founded = CircleState::found(&genesis, Some(circle)).map_err(AgentError::Genesis)?;
        files::private_directory(&directory).map_err(AgentError::during("create", &directory))?;
        let highest = read_head(&directory.join(HEAD))?;
        let kept = kept::read(&directory, circle, highest.as_ref());
        let highest = highest.unwrap_or_else(|| founded.head());
        let (state, signed_at) = kept.unwrap_or((founded, Millis(0)));
        let state = Arc::new(state);
        let certificates = (1..=state.length()).filter_map(|number| state.decision(number));
        let mut chain = Self {
            highest,
            admitted: certificates.map(|decision| decision.certificate).collect(),
            signed_at,
            synced_at: read_synced(&directory.join(SYNCED)),
            synced_written: Millis(0),
            kept_length: state.length(),
            directory,
            genesis,
            state,
        };
        chain.replay()?;
        chain.compare_with_highest()?;
        chain.keep_state();
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
                self.forget_all()?;
            }
        }
        Ok(())
    }

    fn replay(&mut self) -> Result<(), AgentError> {
        loop {
            let path = self.path(self.state.length() + 1);
            let read = files::read(&path, PAGE_BYTES_MAX).map_err(AgentError::during("read", &path))?;
            let Some(bytes) = read else { return Ok(()) };
            if let Err((sound, error)) = self.replay_page(&bytes) {
                return self.cut(&path, &bytes[..sound], &error);
            }
        }
    }

    /// Verifies and applies the bundles of a page.
    ///
    /// # Errors
    /// The defect of the first bundle that does not verify, and the number of bytes before it.
    fn replay_page(&mut self, bytes: &[u8]) -> Result<(), (usize, ChainError)> {
        let mut rest = bytes;
        loop {
            let sound = bytes.len() - rest.len();
            rest = self.replay_next(rest).map_err(|error| (sound, error))?;
            if rest.is_empty() {
                return Ok(());
            }
        }
    }

    /// Verifies and applies the first bundle of these bytes. Returns those after it.
    fn replay_next<'a>(&mut self, bytes: &'a [u8]) -> Result<&'a [u8], ChainError> {
        let (bundle, rest) = next_bundle(bytes)?;
        let approved = verify_replay(&self.state, &bundle.certificate)?;
        let certificate = approved.certificate_digest();
        Arc::make_mut(&mut self.state).advance(approved)?;
        self.admitted.insert(certificate);
        self.signed_at = self.signed_at.max(signed_at(&bundle.certificate));
        debug_assert_eq!(self.admitted.len() as u64, self.state.length(), "one bundle for each decision");
        Ok(rest)
    }

    /// Truncates the chain before a bundle that does not verify: these bytes of its page remain. The rest is
    /// fetched again.
    fn cut(&mut self, path: &Path, sound: &[u8], error: &ChainError) -> Result<(), AgentError> {
        tracing::error!(
            code = %error.code(), %error, file = %path.display(),
            "a stored bundle does not verify; the chain ends before it and is fetched again"
        );
        self.remove_from(self.state.length() + 1)?;
        if sound.is_empty() {
            return Ok(());
        }
        files::write_secret(path, sound).map_err(AgentError::during("write", path))
    }

    /// Removes the pages that begin with this number or a later one, the last first: a crash in between
    /// leaves a chain without a gap.
    fn remove_from(&self, first: u64) -> Result<(), AgentError> {
        let listed = AgentError::during("list", &self.directory);
        let names: Vec<_> = fs::read_dir(&self.directory)
            .and_then(|entries| entries.map(|entry| entry.map(|entry| entry.file_name())).collect())
            .map_err(listed)?;
        let numbers: BTreeSet<u64> = names.iter().filter_map(|name| number_of(name)).collect();
        for number in numbers.range(first..).rev() {
            let path = self.path(*number);
            fs::remove_file(&path).map_err(AgentError::during("remove", &path))?;
        }
        Ok(())
    }

    /// Removes every page and returns to the genesis. The highest head stays: the chain must reach it again.
    fn forget_all(&mut self) -> Result<(), AgentError> {
        kept::remove(&self.directory)?;
        self.remove_from(1)?;
        let founded = CircleState::found(&self.genesis, Some(self.state.id()));
        self.state = Arc::new(founded.map_err(AgentError::Genesis)?);
        self.kept_length = 0;
        self.admitted.clear();
        self.signed_at = Millis(0);
        Ok(())
    }

    /// Keeps the state on disk once enough decisions have followed the last one that was kept.
    fn keep_state(&mut self) {
        let is_due = self.state.length() >= self.kept_length + kept::INTERVAL;
        if !is_due || self.check_whole().is_err() {
            return;
        }
        match kept::write(&self.directory, &self.state, self.signed_at) {
            Ok(()) => self.kept_length = self.state.length(),
            // The next start verifies more, and a later decision writes it again.
            Err(error) => tracing::warn!(%error, "cannot persist the verified state"),
        }
    }

    /// Records the current head as the highest. A crash may leave the head before it on disk: the next start
    /// finds it in the bundles, which are durable.
    fn keep_head(&mut self) {
        let head = self.state.head();
        let path = self.directory.join(HEAD);
        if head == self.highest && (head.size == 0 || path.exists()) {
            return;
        }
        self.highest = head;
        let bytes = canonical::to_bytes(&head);
        let digest = Digest::of_domain(KEPT_HEAD_DOMAIN, &bytes);
        if let Err(error) = files::write_derived_secret(&path, &[&digest.as_bytes()[..], &bytes].concat()) {
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

    /// Returns the current state of the circle, for other tasks of the agent.
    pub(super) fn shared_state(&self) -> Arc<CircleState> {
        self.state.clone()
    }

    /// Returns the genesis of the circle.
    pub(super) fn genesis(&self) -> &SignedGenesis {
        &self.genesis
    }

    /// Returns the bundles since genesis from disk, as far as they can be read there. They are not verified.
    pub(super) fn stored_bundles(&self) -> impl Iterator<Item = Bundle> + '_ {
        let (mut next, mut page, mut at) = (1, Vec::new(), 0);
        std::iter::from_fn(move || {
            if at == page.len() {
                page = files::read(&self.path(next), PAGE_BYTES_MAX).ok()??;
                at = 0;
            }
            let (bundle, rest) = next_bundle(&page[at..]).ok()?;
            at = page.len() - rest.len();
            next += 1;
            Some(bundle)
        })
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

    /// Verifies the next bundles and persists them, page by page, before they count. Returns the number of
    /// new ones. A change of members whose waiting time is not over at `now` is refused.
    ///
    /// # Errors
    /// The first bundle that is refused. Those before it count; the refused one and those after it do not. A
    /// failed write is a refusal too.
    pub(super) fn append(&mut self, bundles: Vec<Bundle>, now: Millis) -> Result<usize, RefusedBundle> {
        let appended = self.append_pages(&bundles, now);
        if self.state.length() > self.highest.size {
            self.keep_head();
        }
        self.keep_state();
        appended
    }

    fn append_pages(&mut self, mut bundles: &[Bundle], now: Millis) -> Result<usize, RefusedBundle> {
        let mut appended = 0;
        while !bundles.is_empty() {
            let mut page = DecisionPage::after(self.state.clone(), self.signed_at);
            let verified = self.fill(&mut page, bundles, now);
            if page.forked {
                // The fork may have begun anywhere in the chain.
                let certificate = bundles[page.len()].certificate.digest();
                self.forget_all().map_err(|error| RefusedBundle {
                    certificate,
                    refusal: Refusal::of(error.code(), &error),
                })?;
                return verified.map(|()| 0);
            }
            let written = page.len();
            self.write(page)?;
            verified?;
            (appended, bundles) = (appended + written, &bundles[written..]);
        }
        Ok(appended)
    }

    /// Verifies these bundles, until one is refused or the page is full.
    fn fill(&self, page: &mut DecisionPage, bundles: &[Bundle], now: Millis) -> Result<(), RefusedBundle> {
        for bundle in bundles {
            if page.is_full() {
                break;
            }
            self.verify_next(page, bundle, now)
                .map_err(|refusal| RefusedBundle { certificate: bundle.certificate.digest(), refusal })?;
        }
        Ok(())
    }

    fn verify_next(&self, page: &mut DecisionPage, bundle: &Bundle, now: Millis) -> Result<(), Refusal> {
        if bundle.version != BUNDLE_VERSION {
            let message = format!("bundle of form {}; this release reads {BUNDLE_VERSION}", bundle.version);
            return Err(Refusal::new(error_code::GOVERNANCE_INVALID, message));
        }
        if let Err(error) = self.check_reaches_highest(&page.state, bundle) {
            page.forked = true;
            return Err(error.into());
        }
        // A bundle that is fetched again was admitted long ago, not too late.
        let is_known = page.state.length() < self.highest.size;
        let approved = if is_known {
            verify_replay(&page.state, &bundle.certificate)?
        } else {
            let approved = verify(&page.state, &bundle.certificate, self.mark(page.signed_at))?;
            check_waited(&page.state, &bundle.certificate, now)?;
            approved
        };
        Ok(page.add(approved, bundle)?)
    }

    /// Writes a page of verified bundles. They count once it is durable: the node acts on nothing that a
    /// crash could take back.
    fn write(&mut self, page: DecisionPage) -> Result<(), RefusedBundle> {
        let Some(first) = page.certificates.first().copied() else { return Ok(()) };
        let path = self.path(self.state.length() + 1);
        files::write_secret(&path, &page.bytes).map_err(|error| {
            let message = format!("write {}: {error}", path.display());
            let refusal = Refusal::new(error_code::AGENT_STATE_UNUSABLE, message);
            RefusedBundle { certificate: first, refusal }
        })?;
        self.admitted.extend(page.certificates);
        (self.state, self.signed_at) = (page.state, page.signed_at);
        debug_assert_eq!(self.admitted.len() as u64, self.state.length(), "one bundle for each decision");
        Ok(())
    }

    /// Checks that the highest head is reached again with its root, if this is the bundle that reaches it.
    fn check_reaches_highest(&self, state: &CircleState, bundle: &Bundle) -> Result<(), ChainError> {
        if state.length() + 1 != self.highest.size {
            return Ok(());
        }
        // A bundle that does not verify says nothing about the chain; it is refused for its own error.
        let Ok(approved) = verify_replay(state, &bundle.certificate) else { return Ok(()) };
        let mut next = state.clone();
        next.advance(approved)?;
        next.check_extends(&self.highest)
    }

    /// Returns the time up to which each admitted bundle is known here: that of the last complete sync, or of
    /// the latest signatures, less the grace for the clocks of members and of control.
    fn mark(&self, signed_at: Millis) -> Millis {
        self.synced_at.max(Millis(signed_at.0.saturating_sub(2 * CLOCK_GRACE_MS)))
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
        if let Err(error) = files::write_derived_secret(&path, self.synced_at.to_string().as_bytes()) {
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
