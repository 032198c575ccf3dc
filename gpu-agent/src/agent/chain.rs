//! The circle's governance chain as verified by this node, on disk and in memory.
//!
//! There is one file per bundle, numbered from 1, and each is durable before the node acts on it. A file that
//! does not verify is discarded: the chain ends before it, and the rest is fetched from control again.

use super::core::{ChainHistory, Refusal};
use super::error::AgentError;
use host::files;
use human_chain::{ChainError, CircleState, read_bundle, verify, verify_replay};
use protocol::governance::{BUNDLE_VERSION, Bundle, SignedGenesis};
use protocol::{CircleId, Digest, Millis, canonical, limits};
use std::fs;
use std::path::{Path, PathBuf};

#[cfg(test)]
mod tests;

/// Largest bundle file.
const BUNDLE_BYTES_MAX: usize = limits::CERTIFICATE_BYTES_MAX + 1024;
/// Name of the file with the time of the last complete synchronisation.
const SYNCED: &str = "synced";
/// Minimum interval between two writes of that time. It may lag, since an older time refuses less.
const SYNCED_INTERVAL_MS: u64 = 60_000;

/// The chain of one circle.
#[derive(Debug)]
pub(super) struct Chain {
    directory: PathBuf,
    genesis: SignedGenesis,
    state: CircleState,
    bundles: Vec<Bundle>,
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
        let mut chain = Self {
            synced_at: read_synced(&directory.join(SYNCED)),
            synced_written: Millis(0),
            directory,
            genesis,
            state,
            bundles: Vec::new(),
        };
        chain.replay()?;
        Ok(chain)
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
                Ok(bundle) => self.bundles.push(bundle),
                Err(error) => return self.cut(&path, &error),
            }
        }
    }

    /// Truncates the chain before a file that does not verify.
    fn cut(&mut self, path: &Path, error: &ChainError) -> Result<(), AgentError> {
        tracing::error!(
            code = %error.code(), %error, file = %path.display(),
            "a stored bundle does not verify; the chain ends before it and is fetched again"
        );
        for number in self.state.length() + 1.. {
            let path = self.path(number);
            match fs::remove_file(&path) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => break,
                removed => removed.map_err(AgentError::during("remove", &path))?,
            }
        }
        // Bundles that are fetched again were admitted long ago, not too late.
        self.synced_at = Millis(0);
        let path = self.directory.join(SYNCED);
        files::write_secret(&path, b"0").map_err(AgentError::during("write", &path))
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

    /// Returns the genesis and the bundles.
    pub(super) fn history(&self) -> ChainHistory<'_> {
        ChainHistory { genesis: &self.genesis, bundles: &self.bundles }
    }

    /// Verifies the next bundles and persists each before it counts. Returns the number of new ones.
    ///
    /// # Errors
    /// The first bundle that is refused. Those before it count; the refused one and those after it do not. A
    /// failed write is a refusal too.
    pub(super) fn append(&mut self, bundles: Vec<Bundle>) -> Result<usize, RefusedBundle> {
        let mut added = 0;
        for bundle in bundles {
            self.append_one(bundle)?;
            added += 1;
        }
        Ok(added)
    }

    fn append_one(&mut self, bundle: Bundle) -> Result<(), RefusedBundle> {
        let certificate = bundle.certificate.digest();
        let refused = |refusal| RefusedBundle { certificate, refusal };
        if bundle.version != BUNDLE_VERSION {
            let message = format!("bundle of form {}; this release reads {BUNDLE_VERSION}", bundle.version);
            return Err(refused(Refusal::new(protocol::error_code::GOVERNANCE_INVALID, message)));
        }
        let approved = verify(&self.state, &bundle.certificate, self.synced_at)
            .map_err(|error| refused(error.into()))?;
        // The bundle is on disk before the node acts on it.
        let path = self.path(self.state.length() + 1);
        files::write_secret(&path, &canonical::to_bytes(&bundle)).map_err(|error| {
            let message = format!("write {}: {error}", path.display());
            refused(Refusal::new(protocol::error_code::AGENT_STATE_UNUSABLE, message))
        })?;
        self.state.advance(approved).map_err(|error| refused(error.into()))?;
        self.bundles.push(bundle);
        Ok(())
    }

    /// Records that the chain was complete at `at`, by this node's wall clock.
    pub(super) fn complete_at(&mut self, at: Millis) {
        self.synced_at = self.synced_at.max(at);
        if self.synced_at.0 >= self.synced_written.0 + SYNCED_INTERVAL_MS {
            self.synced_written = self.synced_at;
            let path = self.directory.join(SYNCED);
            if let Err(error) = files::write_secret(&path, self.synced_at.to_string().as_bytes()) {
                tracing::warn!(%error, file = %path.display(), "cannot persist the time of this sync");
            }
        }
    }
}

/// Returns the stored time. 0 refuses nothing for its age, the only option for a node without history.
fn read_synced(path: &Path) -> Millis {
    let bytes = files::read(path, 32).ok().flatten().unwrap_or_default();
    let text = String::from_utf8(bytes).unwrap_or_default();
    Millis(text.trim().parse().unwrap_or(0))
}
