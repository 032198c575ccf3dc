//! Control's last answer on disk: this node's desired state, and the time at which it was asked for.
//!
//! An agent that is restarted while no control replica answers continues from it, for as long as the autonomy
//! of each order allows. Every order in it is judged again, as if control had sent it now.
//!
//! The time is one of the boot clock, which restarts with the machine. After a restart of the machine the
//! time that has passed is not known, so the record does not count: nothing starts before control answers.

use super::core::SlotKey;
use host::{Clock, files};
use protocol::agent::Desired;
use protocol::agent_state::{
    LAST_ANSWER_BYTES_MAX, LAST_ANSWER_DOMAIN, LAST_ANSWER_VERSION, LastAnswerRecord,
};
use protocol::{BootId, BootTime, CircleId, Digest, Fence, NodeId, canonical};
use std::io;
use std::path::{Path, PathBuf};

/// Age in milliseconds of a record that the next answer replaces, though it brings nothing new. A restarted
/// agent loses at most this much of an autonomy, and a write costs a sync of the disk. A record that names no
/// work has no autonomy to lose, and stays.
const REFRESH_MS: u64 = 10_000;

/// The file of the last answer.
#[derive(Debug)]
pub(super) struct LastAnswerFile {
    path: PathBuf,
    circle: CircleId,
    node: NodeId,
    /// This start of the machine; none if it cannot be distinguished from another, so that nothing is kept.
    boot: Option<BootId>,
    /// Desired state and time of the record on disk.
    written: Option<(Digest, BootTime)>,
    /// Orders that the record on disk names.
    orders: Vec<(SlotKey, Fence)>,
}

/// Returns the orders that a desired state names.
pub(super) fn orders_of(desired: &Desired) -> impl Iterator<Item = (SlotKey, Fence)> + '_ {
    let orders = desired.assignments.iter().flat_map(|part| &part.orders);
    orders.map(|signed| (SlotKey::of(&signed.order), signed.order.fence))
}

/// Control's last answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LastAnswer {
    /// Boot clock at its request.
    pub(super) heard_at: BootTime,
    /// Desired state of this node.
    pub(super) desired: Desired,
}

impl LastAnswerFile {
    /// Opens the file. Returns it with the last answer, if that was given since the machine started. A record
    /// that cannot be read or trusted counts as none: the agent then waits for control.
    pub(super) fn open(
        path: PathBuf,
        circle: CircleId,
        node: NodeId,
        clock: &Clock,
    ) -> (Self, Option<LastAnswer>) {
        let boot = clock.boot_id();
        let mut file = Self { path, circle, node, boot, written: None, orders: Vec::new() };
        let answer = match file.read(clock.boot()) {
            Ok(answer) => answer,
            Err(reason) => {
                let path = file.path.display();
                tracing::warn!(%path, reason, "control's last answer does not count");
                None
            }
        };
        file.orders = answer.iter().flat_map(|answer| orders_of(&answer.desired)).collect();
        (file, answer)
    }

    /// Returns the orders from which a successor of this agent would continue.
    pub(super) fn orders(&self) -> &[(SlotKey, Fence)] {
        &self.orders
    }

    fn read(&self, now: BootTime) -> Result<Option<LastAnswer>, String> {
        let limit = Digest::LENGTH + LAST_ANSWER_BYTES_MAX;
        let Some(bytes) = files::read(&self.path, limit).map_err(|error| error.to_string())? else {
            return Ok(None);
        };
        let record = decode(&bytes)?;
        if record.version != LAST_ANSWER_VERSION {
            return Err(format!("has form {}; this release reads {LAST_ANSWER_VERSION}", record.version));
        }
        if (record.circle, record.node) != (self.circle, self.node) {
            return Err("belongs to another circle or node".into());
        }
        if Some(record.boot) != self.boot {
            return Err("is from before the machine was restarted".into());
        }
        if record.heard_at > now {
            return Err("is from the future of the boot clock".into());
        }
        Ok(Some(LastAnswer { heard_at: record.heard_at, desired: record.desired }))
    }

    /// Keeps an answer that was requested at `heard_at`. A changed desired state is durable when this
    /// returns. If it cannot be written, no older one stays: a slot that control took away must not
    /// return with it.
    ///
    /// # Errors
    /// Errors of the system; nothing is kept then.
    pub(super) fn keep(&mut self, heard_at: BootTime, digest: Digest, desired: &Desired) -> io::Result<()> {
        let ages = *desired != Desired { assignments: vec![], routes: None, jobs: vec![] };
        let is_due =
            |(known, at): (Digest, BootTime)| known != digest || (ages && heard_at.since(at) >= REFRESH_MS);
        let Some(boot) = self.boot.filter(|_| self.written.is_none_or(is_due)) else { return Ok(()) };
        let record = canonical::to_bytes(&LastAnswerRecord {
            version: LAST_ANSWER_VERSION,
            circle: self.circle,
            node: self.node,
            boot,
            heard_at,
            desired: desired.clone(),
        });
        let digest_of_record = Digest::of_domain(LAST_ANSWER_DOMAIN, &record);
        let written = files::write_secret(&self.path, &[&digest_of_record.as_bytes()[..], &record].concat());
        if written.is_err() {
            self.written = None;
            remove(&self.path)?;
            self.orders.clear();
        } else {
            self.written = Some((digest, heard_at));
            self.orders = orders_of(desired).collect();
        }
        written
    }

    /// Returns the path of the file.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

fn decode(bytes: &[u8]) -> Result<LastAnswerRecord, String> {
    let (digest, record) = bytes.split_first_chunk().ok_or("it is too short")?;
    if Digest(*digest) != Digest::of_domain(LAST_ANSWER_DOMAIN, record) {
        return Err("its bytes are damaged".into());
    }
    canonical::from_own_bytes(record, LAST_ANSWER_BYTES_MAX).map_err(|error| error.to_string())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use protocol::{Millis, PublicKey};
    use std::time::Duration;

    const NODE: NodeId = NodeId(PublicKey([7; 32]));

    fn circle() -> CircleId {
        CircleId(Digest::of(b"circle"))
    }

    fn desired(routes: bool) -> Desired {
        Desired { assignments: vec![], routes: routes.then(Default::default), jobs: vec![] }
    }

    fn machine() -> Clock {
        Clock::of_runtime(BootTime(1_000), Millis(0))
    }

    fn open(path: &Path, clock: &Clock) -> (LastAnswerFile, Option<LastAnswer>) {
        LastAnswerFile::open(path.to_path_buf(), circle(), NODE, clock)
    }

    /// Keeps an answer of `heard_at` in a file of its own.
    fn kept(path: &Path, clock: &Clock, heard_at: u64) {
        let wanted = desired(true);
        open(path, clock).0.keep(BootTime(heard_at), wanted.digest(), &wanted).unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_read_back_until_the_machine_restarts() {
        let directory = tempfile::tempdir().unwrap();
        let (path, clock) = (directory.path().join("last-answer"), machine());
        assert_eq!(open(&path, &clock).1, None, "there is none yet");
        kept(&path, &clock, 900);
        let answer = LastAnswer { heard_at: BootTime(900), desired: desired(true) };
        assert_eq!(open(&path, &clock).1, Some(answer));
        assert_eq!(open(&path, &machine()).1, None, "the machine was restarted");
        let later = LastAnswerFile::open(path.clone(), circle(), NodeId(PublicKey([8; 32])), &clock).1;
        assert_eq!(later, None, "another node's");
        kept(&path, &clock, 2_000);
        assert_eq!(open(&path, &clock).1, None, "its time has not come");
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(open(&path, &clock).1.is_some(), "the positive control");
    }

    #[tokio::test(start_paused = true)]
    async fn a_damaged_answer_counts_as_none() {
        let directory = tempfile::tempdir().unwrap();
        let (path, clock) = (directory.path().join("last-answer"), machine());
        kept(&path, &clock, 900);
        let whole = std::fs::read(&path).unwrap();
        for at in [0, Digest::LENGTH, whole.len() - 1] {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            std::fs::write(&path, &damaged).unwrap();
            assert_eq!(open(&path, &clock).1, None, "byte {at}");
        }
        std::fs::write(&path, &whole[..9]).unwrap();
        assert_eq!(open(&path, &clock).1, None, "cut off");
    }

    #[tokio::test(start_paused = true)]
    async fn only_news_and_old_records_of_work_are_written() {
        let directory = tempfile::tempdir().unwrap();
        let (path, clock) = (directory.path().join("last-answer"), machine());
        tokio::time::advance(Duration::from_secs(3_600)).await;
        let mut file = open(&path, &clock).0;
        let mut heard = |at: u64, routes: bool| {
            let wanted = desired(routes);
            file.keep(BootTime(at), wanted.digest(), &wanted).unwrap();
            open(&path, &clock).1.unwrap().heard_at.0
        };
        assert_eq!(heard(2_000, false), 2_000);
        assert_eq!(heard(2_500, false), 2_000, "nothing is new");
        assert_eq!(heard(999_000, false), 2_000, "a record without work does not age");
        assert_eq!(heard(3_000, true), 3_000, "the desired state is");
        assert_eq!(heard(12_999, true), 3_000);
        assert_eq!(heard(13_000, true), 13_000, "the record is old");
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_cannot_be_written_leaves_no_older_one() {
        let directory = tempfile::tempdir().unwrap();
        let (path, clock) = (directory.path().join("last-answer"), machine());
        kept(&path, &clock, 900);
        let mut file = open(&path, &clock).0;
        let wanted = desired(false);
        // A file cannot hold another one.
        file.path = path.join("last-answer");
        assert!(file.keep(BootTime(950), wanted.digest(), &wanted).is_err());
        assert_eq!(file.written, None, "the next answer is written again");
        assert!(remove(&path).is_ok() && remove(&path).is_ok(), "one that is gone is gone");
    }
}
