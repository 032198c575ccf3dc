//! Notices that were delivered, kept in a file beside the context: a watcher that is started again repeats
//! none of them.
//!
//! A notice is recorded when its receiver has taken it or wants no more. If the watcher ends before that, the
//! next one sends it, perhaps a second time, under the same id.

use super::stage::NoticeId;
use crate::context::Context;
use crate::print;
use anyhow::{Context as _, Result};
use host::{DirectoryLock, files};
use protocol::{CircleId, Digest, Millis};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Folder beside the context file.
const FOLDER: &str = "inbox";
/// Format of the record that this release reads and writes.
const RECORD_VERSION: u32 = 1;
/// Maximum length of a record in bytes: ten ways of notice, each with as many notices as are remembered.
const RECORD_BYTES_MAX: usize = 1024 * 1024;
/// Most notices that are remembered for one way. Control keeps fewer open proposals and drafts.
const NOTICES_PER_WAY_MAX: usize = 1024;

/// The record as it is on disk.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct DeliveryRecord {
    version: u32,
    circle: CircleId,
    /// End of the wait that each notice announced, by the notice's name, and by the digest that names a way.
    ways: BTreeMap<String, BTreeMap<String, Millis>>,
}

/// The notices of a circle that were delivered, and their file.
#[derive(Debug)]
pub(super) struct DeliveredNotices {
    folder: PathBuf,
    circle: CircleId,
    ways: BTreeMap<String, BTreeMap<String, Millis>>,
}

impl DeliveredNotices {
    /// Opens the record beside a context's file. One that cannot be read is reported and replaced: every
    /// notice is sent again, and none is lost.
    pub(super) fn open(context: &Context) -> Self {
        let parent = context.file.parent().filter(|parent| !parent.as_os_str().is_empty());
        Self::open_in(&parent.unwrap_or(Path::new(".")).join(FOLDER), context.circle)
    }

    /// Opens the record in this folder, as [`DeliveredNotices::open`] does.
    pub(super) fn open_in(folder: &Path, circle: CircleId) -> Self {
        let mut opened = Self { folder: folder.into(), circle, ways: BTreeMap::new() };
        opened.ways = opened.read().unwrap_or_else(|error| {
            print::err(format_args!("note: notices may be sent a second time: {error:#}"));
            BTreeMap::new()
        });
        opened
    }

    fn path(&self) -> PathBuf {
        self.folder.join(format!("{}.json", self.circle))
    }

    fn read(&self) -> Result<BTreeMap<String, BTreeMap<String, Millis>>> {
        let path = self.path();
        let place = || format!("read the notices that were delivered, in `{}`", path.display());
        let Some(bytes) = files::read(&path, RECORD_BYTES_MAX).with_context(place)? else {
            return Ok(BTreeMap::new());
        };
        let record: DeliveryRecord = serde_json::from_slice(&bytes).with_context(place)?;
        anyhow::ensure!(
            record.version == RECORD_VERSION && record.circle == self.circle,
            "`{}` is of another circle or another release",
            path.display()
        );
        Ok(record.ways)
    }

    /// Returns whether a notice was delivered on this way.
    pub(super) fn contains(&self, way: &Digest, notice: &NoticeId) -> bool {
        self.ways.get(&way.to_string()).is_some_and(|known| known.contains_key(&notice.to_string()))
    }

    /// Records a notice, and forgets those whose waits have ended. Another watcher may write the same file.
    ///
    /// # Errors
    /// If the file cannot be written: the notice may be repeated by the next watcher.
    pub(super) fn record(
        &mut self,
        way: &Digest,
        notice: NoticeId,
        expires_at: Millis,
        now: Millis,
    ) -> Result<()> {
        files::private_directory(&self.folder)?;
        let _lock = DirectoryLock::wait(&self.folder)?;
        for (way, known) in self.read().unwrap_or_default() {
            self.ways.entry(way).or_default().extend(known);
        }
        let own = self.ways.entry(way.to_string()).or_default();
        if own.len() < NOTICES_PER_WAY_MAX {
            own.insert(notice.to_string(), expires_at);
        }
        self.ways.values_mut().for_each(|known| known.retain(|_, expires_at| *expires_at >= now));
        self.ways.retain(|_, known| !known.is_empty());
        let (version, circle, ways) = (RECORD_VERSION, self.circle, self.ways.clone());
        let text = serde_json::to_vec(&DeliveryRecord { version, circle, ways })?;
        let path = self.path();
        files::write_atomically(&path, &text, 0o600).with_context(|| format!("write `{}`", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::inbox::stage::WaitingStage;
    use protocol::ProposalId;

    #[test]
    fn a_record_outlives_its_watcher_and_forgets_what_has_ended() {
        let folder = tempfile::tempdir().expect("temporary directory");
        let place = folder.path().join("inbox");
        let circle = CircleId(Digest::of(b"circle"));
        let (hook, mail) = (Digest::of(b"hook"), Digest::of(b"mail"));
        let proposal = |name: &str| ProposalId(Digest::of(name.as_bytes()));
        let id = |name: &str| NoticeId { proposal: proposal(name), stage: WaitingStage::Vote };
        let open = || DeliveredNotices::open_in(&place, circle);
        let (mut first, mut second) = (open(), open());
        first.record(&hook, id("a"), Millis(10), Millis(0)).expect("written");
        second.record(&mail, id("b"), Millis(20), Millis(0)).expect("written beside it");
        let again = open();
        assert!(again.contains(&hook, &id("a")) && again.contains(&mail, &id("b")));
        assert!(!again.contains(&mail, &id("a")), "each way has its own");
        let veto = NoticeId { stage: WaitingStage::Veto, ..id("a") };
        assert!(!again.contains(&hook, &veto), "and each stage");
        first.record(&hook, id("c"), Millis(30), Millis(15)).expect("written");
        assert!(!open().contains(&hook, &id("a")) && open().contains(&hook, &id("c")));
        let other = CircleId(Digest::of(b"another"));
        std::fs::copy(again.path(), place.join(format!("{other}.json"))).expect("copied");
        assert!(DeliveredNotices::open_in(&place, other).ways.is_empty(), "of another circle");
        std::fs::write(again.path(), "{").expect("written");
        let mut damaged = open();
        assert!(damaged.ways.is_empty(), "replaced");
        damaged.record(&hook, id("c"), Millis(30), Millis(15)).expect("written over it");
        assert!(open().contains(&hook, &id("c")));
    }
}
