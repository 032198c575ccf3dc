//! Directories on this node's disk behind the writable areas of a slot, and for packing what they hold.
//!
//! ```text
//! areas/SLOT/checkpoint, outputs    given to the ranks as /checkpoint and /outputs
//! areas/SLOT/inputs                 files of models, which the ranks see under /models
//! areas/SLOT/logs                   what the ranks printed
//! areas/SLOT/work                   packed files on their way to and from the stores
//! ```
//!
//! They go with their slot. Leftovers of a crash go at the next start: nothing of them was registered.

use host::files::private_directory;
use std::fs::{self, DirBuilder, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Place of the directories of all slots.
#[derive(Debug)]
pub(in crate::agent) struct JobAreas {
    root: PathBuf,
}

/// Directories of one slot, which are removed with this value.
#[derive(Debug)]
pub(super) struct SlotAreas {
    path: PathBuf,
}

impl JobAreas {
    /// Returns the place below an agent's directory. A sandbox takes its areas by absolute paths.
    ///
    /// # Errors
    /// Errors of the system, if the directory of this process cannot be found.
    pub(in crate::agent) fn new(directory: &Path) -> io::Result<Self> {
        Ok(Self { root: std::path::absolute(directory.join("areas"))? })
    }

    /// Removes what a predecessor left, as far as that is possible: what a job made must not keep an agent
    /// from its start. No sandbox of the predecessor may run any more.
    ///
    /// # Errors
    /// Errors of the system, if the place itself cannot be made.
    pub(in crate::agent) fn clear(&self) -> io::Result<()> {
        if let Err(error) = remove_all(&self.root) {
            tracing::error!(path = %self.root.display(), %error, "areas of jobs are left behind");
        }
        private_directory(&self.root)
    }

    /// Makes the directories of a slot, in place of those that its last order left.
    pub(super) fn make(&self, name: &str) -> io::Result<SlotAreas> {
        let path = self.root.join(name);
        remove_all(&path)?;
        let areas = SlotAreas { path };
        let areas_of_ranks = [areas.checkpoint(), areas.outputs(), areas.inputs()];
        for directory in [areas.path.clone(), areas.logs(), areas.work()].into_iter().chain(areas_of_ranks) {
            DirBuilder::new().mode(0o700).create(directory)?;
        }
        Ok(areas)
    }
}

impl SlotAreas {
    /// Returns the directory that the ranks see as `/checkpoint`.
    pub(super) fn checkpoint(&self) -> PathBuf {
        self.path.join("checkpoint")
    }

    /// Returns the directory that the ranks see as `/outputs`.
    pub(super) fn outputs(&self) -> PathBuf {
        self.path.join("outputs")
    }

    /// Returns the directory of what the ranks printed. They do not see it.
    pub(super) fn logs(&self) -> PathBuf {
        self.path.join("logs")
    }

    /// Removes what the ranks of an ended slot had, as far as that is possible: its logs may wait for a store
    /// that does not answer.
    pub(super) fn leave_logs(&self) {
        for directory in [self.checkpoint(), self.outputs(), self.inputs()] {
            if let Err(error) = remove_all(&directory) {
                tracing::warn!(path = %directory.display(), %error, "an area of a slot is left behind");
            }
        }
    }

    fn inputs(&self) -> PathBuf {
        self.path.join("inputs")
    }

    /// Makes an empty directory for the files of an input with this number. Returns the path of a file for
    /// its bytes, and the directory.
    pub(super) fn input(&self, number: usize) -> io::Result<(PathBuf, PathBuf)> {
        let to = self.inputs().join(number.to_string());
        DirBuilder::new().mode(0o755).create(&to)?;
        Ok((to.with_extension("map"), to))
    }

    fn work(&self) -> PathBuf {
        self.path.join("work")
    }

    /// Makes an empty directory for one packed file, in place of the last one.
    pub(super) fn fresh_work(&self) -> io::Result<PathBuf> {
        let work = self.work();
        fs::remove_dir_all(&work)?;
        DirBuilder::new().mode(0o700).create(&work)?;
        Ok(work)
    }
}

impl Drop for SlotAreas {
    fn drop(&mut self) {
        if let Err(error) = remove_all(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "the areas of a job's slot are left behind");
        }
    }
}

/// Removes a directory with everything in it, if it is there. Ranks that share the agent's user may have
/// closed directories to it.
fn remove_all(path: &Path) -> io::Result<()> {
    let removed = match fs::remove_dir_all(path) {
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            open_up(path)?;
            fs::remove_dir_all(path)
        }
        removed => removed,
    };
    match removed {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Lets this user into a directory and all below it. No link is followed.
fn open_up(path: &Path) -> io::Result<()> {
    fs::set_permissions(path, Permissions::from_mode(0o700))?;
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            open_up(&entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn areas_are_empty_at_first_and_go_with_their_slot() {
        let directory = tempfile::tempdir().unwrap();
        let all = JobAreas::new(directory.path()).unwrap();
        all.clear().unwrap();
        let areas = all.make("train.0.1.1").unwrap();
        fs::write(areas.outputs().join("weights"), "x").unwrap();
        fs::write(areas.fresh_work().unwrap().join("spool"), "x").unwrap();
        assert_eq!(fs::read_dir(areas.fresh_work().unwrap()).unwrap().count(), 0);
        let path = areas.path.clone();
        drop(areas);
        assert!(!path.exists());
    }

    #[test]
    fn the_logs_of_an_ended_slot_outlive_its_other_areas() {
        let directory = tempfile::tempdir().unwrap();
        let all = JobAreas::new(directory.path()).unwrap();
        all.clear().unwrap();
        let areas = all.make("train.0.1.1").unwrap();
        for of in [areas.checkpoint(), areas.outputs(), areas.logs()] {
            fs::write(of.join("file"), "x").unwrap();
        }
        areas.leave_logs();
        assert_eq!(fs::read_to_string(areas.logs().join("file")).unwrap(), "x");
        assert!(!areas.checkpoint().exists() && !areas.outputs().exists());
        drop(areas);
        assert_eq!(fs::read_dir(directory.path().join("areas")).unwrap().count(), 0);
    }

    /// The attack is a rank that closes its directories, so that the agent could not remove them. A
    /// privileged user passes in any case.
    #[test]
    fn a_closed_directory_does_not_stay() {
        let directory = tempfile::tempdir().unwrap();
        let all = JobAreas::new(directory.path()).unwrap();
        all.clear().unwrap();
        let areas = all.make("train.0.1.1").unwrap();
        fs::create_dir_all(areas.outputs().join("deep/er")).unwrap();
        fs::set_permissions(areas.outputs().join("deep"), Permissions::from_mode(0o000)).unwrap();
        open_up(&areas.path).unwrap();
        assert!(areas.outputs().join("deep/er").is_dir());
        fs::set_permissions(areas.outputs().join("deep"), Permissions::from_mode(0o000)).unwrap();
        drop(areas);
        assert_eq!(fs::read_dir(directory.path().join("areas")).unwrap().count(), 0);
    }

    /// The attack is a link to a directory of the machine: its files must outlive the slot, and keep their
    /// modes.
    #[test]
    fn no_link_is_followed_when_areas_go() {
        let directory = tempfile::tempdir().unwrap();
        let host = directory.path().join("host");
        fs::create_dir(&host).unwrap();
        fs::write(host.join("file"), "x").unwrap();
        fs::set_permissions(&host, Permissions::from_mode(0o755)).unwrap();
        let all = JobAreas::new(directory.path()).unwrap();
        all.clear().unwrap();
        let areas = all.make("train.0.1.1").unwrap();
        for at in [areas.checkpoint(), areas.outputs(), areas.fresh_work().unwrap()] {
            std::os::unix::fs::symlink(&host, at.join("link")).unwrap();
        }
        open_up(&areas.path).unwrap();
        assert_eq!(fs::metadata(&host).unwrap().permissions().mode() & 0o777, 0o755);
        drop(areas);
        all.clear().unwrap();
        assert_eq!(fs::read_to_string(host.join("file")).unwrap(), "x");
    }

    #[test]
    fn each_input_has_an_empty_directory_that_ranks_can_read() {
        let directory = tempfile::tempdir().unwrap();
        let all = JobAreas::new(directory.path()).unwrap();
        all.clear().unwrap();
        let areas = all.make("train.0.1.1").unwrap();
        let (map, to) = areas.input(0).unwrap();
        let (other_map, other) = areas.input(1).unwrap();
        assert!(map != other_map && to != other && !map.exists());
        assert_eq!(fs::metadata(&to).unwrap().permissions().mode() & 0o777, 0o755);
        assert_eq!(fs::read_dir(&to).unwrap().count(), 0);
        assert_eq!(areas.input(0).unwrap_err().kind(), ErrorKind::AlreadyExists, "never two in one");
        // Two slots share nothing.
        let second = all.make("train.1.1.1").unwrap();
        assert!(second.input(0).is_ok() && second.checkpoint() != areas.checkpoint());
        drop(second);
        assert!(to.is_dir(), "the end of one slot leaves the other's");
    }

    /// The attack is a crash: without the removal, an attempt begins with files that were never registered.
    #[test]
    fn what_a_crash_left_is_gone_before_the_next_attempt() {
        let directory = tempfile::tempdir().unwrap();
        let all = JobAreas::new(directory.path()).unwrap();
        all.clear().unwrap();
        let left = || {
            let areas = all.make("train.0.1.1").unwrap();
            fs::write(areas.checkpoint().join("half"), "x").unwrap();
            std::mem::forget(areas);
        };
        left();
        let areas = all.make("train.0.1.1").unwrap();
        assert_eq!(fs::read_dir(areas.checkpoint()).unwrap().count(), 0, "under the same name");
        drop(areas);
        left();
        all.clear().unwrap();
        assert_eq!(fs::read_dir(directory.path().join("areas")).unwrap().count(), 0, "at a start");
    }
}
