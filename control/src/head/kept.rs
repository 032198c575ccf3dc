//! The state of a circle that this machine verified, kept beside its head, so that a long history is verified
//! once.
//!
//! The file replaces the verification of old signatures by the word of this machine. It therefore deserves
//! the trust of the context, which pins the circle, and of the head beside it: all three are files of the
//! user. A file that is damaged, or contradicts the head, is ignored, and the whole history is verified
//! again.

use super::HeadFile;
use anyhow::{Context as _, Result};
use host::{DirectoryLock, files};
use human_chain::CircleState;
use protocol::Millis;
use protocol::governance::HistoryHead;
use std::path::PathBuf;
use std::time::{Duration, UNIX_EPOCH};

impl HeadFile {
    fn state_path(&self) -> PathBuf {
        self.folder.join(format!("{}.state", self.circle))
    }

    /// Reads the state that was kept; none if there is no file.
    ///
    /// # Errors
    /// If the file cannot be read, is damaged, is of another circle, or of a history in which the head is
    /// not.
    pub fn read_state(&self, known: Option<&HistoryHead>) -> Result<Option<CircleState>> {
        let path = self.state_path();
        let name = || format!("`{}`", path.display());
        let read = files::read(&path, CircleState::KEPT_BYTES_MAX).with_context(name)?;
        let Some(bytes) = read else { return Ok(None) };
        let state = CircleState::from_kept_bytes(&bytes, self.circle).with_context(name)?;
        // A state may be older than the head: what follows it is read and verified.
        if let Some(known) = known.filter(|known| known.size <= state.length()) {
            state.check_extends(known).with_context(name)?;
        }
        Ok(Some(state))
    }

    /// Marks the kept state as the one that a leader has now: the time of the file says since when it is old.
    /// A mark that fails makes the state look older than it is, and nothing else.
    pub fn confirm_state(&self) {
        let now = UNIX_EPOCH + Duration::from_millis(host::wall_clock().0);
        if let Ok(file) = std::fs::File::options().write(true).open(self.state_path()) {
            let _ = file.set_modified(now);
        }
    }

    /// Returns the time at which a leader confirmed the kept state last; none if there is no state.
    #[must_use]
    pub fn confirmed_at(&self) -> Option<Millis> {
        let modified = std::fs::metadata(self.state_path()).and_then(|found| found.modified()).ok()?;
        let since = modified.duration_since(UNIX_EPOCH).ok()?;
        u64::try_from(since.as_millis()).ok().map(Millis)
    }

    /// Keeps the state of a verified history whose head was recorded, unless a longer one was recorded since.
    ///
    /// # Errors
    /// If the head cannot be read, or the file cannot be written.
    pub fn keep_state(&self, circle: &CircleState) -> Result<()> {
        let bytes = circle.to_kept_bytes();
        if bytes.len() > CircleState::KEPT_BYTES_MAX {
            return Ok(());
        }
        let _lock = DirectoryLock::wait(&self.folder)?;
        if self.read()? != Some(circle.head()) {
            return Ok(());
        }
        let path = self.state_path();
        files::write_atomically(&path, &bytes, 0o600).with_context(|| format!("write `{}`", path.display()))
    }
}

#[cfg(test)]
mod tests;
