//! The highest head of a circle's history that this machine verified, kept beside the context.
//!
//! Certificates prove each decision, not that none is missing. A server that leaves some out could show an
//! old state, in which removed nodes and members are still trusted. A client therefore keeps the head of the
//! longest history that it verified, and refuses one that does not continue from there.

use anyhow::{Context as _, Result, anyhow};
use host::{DirectoryLock, files};
use human_chain::CircleState;
use protocol::governance::HistoryHead;
use protocol::{CircleId, Refusal, error_code};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

mod kept;

/// Folder beside the context file.
const FOLDER: &str = "heads";
/// Maximum length of a record in bytes; it has about 250.
const RECORD_BYTES_MAX: usize = 4096;
/// Format of the record that this release reads and writes.
const RECORD_VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct HeadRecord {
    version: u32,
    circle: CircleId,
    head: HistoryHead,
}

/// The record of one circle. Clients with contexts in the same folder share it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeadFile {
    folder: PathBuf,
    circle: CircleId,
}

impl HeadFile {
    /// Returns the record of a circle beside a context file.
    #[must_use]
    pub fn beside(context: &Path, circle: CircleId) -> Self {
        let parent = context.parent().filter(|parent| !parent.as_os_str().is_empty());
        Self { folder: parent.unwrap_or(Path::new(".")).join(FOLDER), circle }
    }

    fn path(&self) -> PathBuf {
        self.folder.join(format!("{}.json", self.circle))
    }

    /// Reads the highest head; none if no history of the circle was verified here.
    ///
    /// # Errors
    /// Fails with `head-unusable` if the record cannot be read or is damaged.
    pub fn read(&self) -> Result<Option<HistoryHead>> {
        let unusable = |error: anyhow::Error| error.context(self.unusable("read"));
        let bytes = files::read(&self.path(), RECORD_BYTES_MAX).map_err(|error| unusable(error.into()))?;
        let Some(bytes) = bytes else { return Ok(None) };
        let record: HeadRecord = serde_json::from_slice(&bytes).map_err(|error| unusable(error.into()))?;
        if record.version != RECORD_VERSION || record.circle != self.circle {
            return Err(unusable(anyhow!("it is of another circle or another release")));
        }
        Ok(Some(record.head))
    }

    /// Records the head of a verified history, unless a longer one was recorded while this one was fetched.
    ///
    /// # Errors
    /// Fails with `history-forked` if the recorded head is of another history, and with `head-unusable` if
    /// the record cannot be written.
    pub fn raise(&self, circle: &CircleState) -> Result<()> {
        let unusable = || self.unusable("write");
        files::private_directory(&self.folder).with_context(unusable)?;
        // Another command may raise the record at the same time.
        let _lock = DirectoryLock::wait(&self.folder).with_context(unusable)?;
        let head = circle.head();
        if let Some(known) = self.read()? {
            if known.size <= head.size {
                circle.check_extends(&known).map_err(Refusal::from)?;
            }
            if known.size >= head.size {
                return Ok(());
            }
        }
        let record = HeadRecord { version: RECORD_VERSION, circle: self.circle, head };
        let text = serde_json::to_vec_pretty(&record)?;
        files::write_atomically(&self.path(), &text, 0o600).with_context(unusable)
    }

    fn unusable(&self, verb: &str) -> Refusal {
        Refusal::new(error_code::HEAD_UNUSABLE, format!("{verb} `{}`", self.path().display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{SampleCircle, manifest};
    use protocol::Digest;
    use protocol::governance::Change;

    fn record(directory: &Path, circle: &CircleState) -> HeadFile {
        HeadFile::beside(&directory.join("context.json"), circle.id())
    }

    fn code<T>(outcome: Result<T>) -> Option<protocol::ErrorCode> {
        outcome.err()?.downcast_ref::<Refusal>().map(|refusal| refusal.code)
    }

    #[test]
    fn the_highest_head_is_kept() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let mut circle = SampleCircle::founded();
        let (founded, file) = (circle.state.clone(), record(directory.path(), &circle.state));
        assert_eq!(file.read().expect("none yet"), None);
        file.raise(&circle.state).expect("kept");
        circle.decide(Change::Deploy(Box::new(manifest("bert"))), "run it");
        file.raise(&circle.state).expect("kept");
        assert_eq!(file.read().expect("kept"), Some(circle.state.head()));
        file.raise(&founded).expect("another command was faster");
        assert_eq!(file.read().expect("kept"), Some(circle.state.head()), "it never falls");
        assert_eq!(HeadFile::beside(Path::new("lab.json"), circle.state.id()).folder, Path::new("./heads"));
    }

    #[test]
    fn another_history_of_the_same_length_is_not_recorded() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let mut circle = SampleCircle::founded();
        let file = record(directory.path(), &circle.state);
        let founded = (circle.state.clone(), circle.history.clone());
        circle.decide(Change::Deploy(Box::new(manifest("bert"))), "run it");
        file.raise(&circle.state).expect("kept");
        let kept = circle.state.head();
        (circle.state, circle.history) = founded;
        circle.decide(Change::Deploy(Box::new(manifest("llama"))), "run another");
        assert_eq!(code(file.raise(&circle.state)), Some(error_code::HISTORY_FORKED));
        assert_eq!(file.read().expect("kept"), Some(kept));
    }

    #[test]
    fn a_record_that_cannot_be_read_or_written_is_refused_by_code() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let circle = SampleCircle::founded().state;
        let file = record(directory.path(), &circle);
        file.raise(&circle).expect("kept");
        let sound = std::fs::read_to_string(file.path()).expect("read");
        let other = sound.replace(&circle.id().to_string(), &Digest::of(b"another circle").to_string());
        for text in ["", "{}", &sound.replace("\"version\": 1", "\"version\": 2"), &other] {
            std::fs::write(file.path(), text).expect("written");
            assert_eq!(code(file.read()), Some(error_code::HEAD_UNUSABLE), "{text}");
        }
        std::fs::write(directory.path().join("file"), "").expect("written");
        let in_the_way = HeadFile::beside(&directory.path().join("file/context.json"), circle.id());
        assert_eq!(code(in_the_way.raise(&circle)), Some(error_code::HEAD_UNUSABLE));
    }
}
