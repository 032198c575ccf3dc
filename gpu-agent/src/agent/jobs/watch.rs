//! Watch on the directories that ranks rename into `/checkpoint`.
//!
//! A rename is the program's statement that the directory is complete, and the kernel reports renames apart
//! from everything else. A directory that is written in place is never taken for complete.

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent};
use std::ffi::OsString;
use std::io;
use std::path::Path;

/// End of the names under which a program writes what it renames later.
const UNFINISHED: &str = ".part";

/// Watch on one directory.
#[derive(Debug)]
pub(super) struct CheckpointWatch {
    inotify: Inotify,
}

/// Renames since the last look.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Renames {
    /// Names of directories, in the order of the renames.
    pub(super) names: Vec<OsString>,
    /// Whether there were more renames than the kernel keeps for a reader.
    pub(super) is_incomplete: bool,
}

impl CheckpointWatch {
    /// Watches a directory from now on.
    pub(super) fn new(directory: &Path) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        inotify.add_watch(directory, AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_ONLYDIR)?;
        Ok(Self { inotify })
    }

    /// Returns the renames since the last look.
    pub(super) fn renames(&self) -> io::Result<Renames> {
        let mut renames = Renames::default();
        loop {
            match self.inotify.read_events() {
                Ok(events) => events.into_iter().for_each(|event| renames.add(event)),
                Err(Errno::EAGAIN) => return Ok(renames),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl Renames {
    fn add(&mut self, event: InotifyEvent) {
        self.is_incomplete |= event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW);
        let is_directory = event.mask.contains(AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_ISDIR);
        let is_unfinished = |name: &OsString| name.to_string_lossy().ends_with(UNFINISHED);
        let name = event.name.filter(|name| is_directory && !is_unfinished(name));
        // A program that renames one back and forth gets one look at it.
        self.names.extend(name.filter(|name| !self.names.contains(name)));
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn only_a_directory_that_was_renamed_is_complete() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let watch = CheckpointWatch::new(directory.path()).unwrap();
        fs::create_dir(path("written-in-place")).unwrap();
        fs::write(path("written-in-place/weights"), "half").unwrap();
        fs::create_dir(path("one.part")).unwrap();
        fs::write(path("file.part"), "x").unwrap();
        assert_eq!(watch.renames().unwrap(), Renames::default(), "nothing was renamed");
        fs::rename(path("file.part"), path("file")).unwrap();
        fs::rename(path("one.part"), path("one")).unwrap();
        fs::rename(path("one"), path("two.part")).unwrap();
        fs::rename(path("two.part"), path("two")).unwrap();
        let found = watch.renames().unwrap();
        assert_eq!((found.names, found.is_incomplete), (vec!["one".into(), "two".into()], false));
        assert_eq!(watch.renames().unwrap(), Renames::default(), "each is reported once");
    }

    /// The attack is a flood of renames, beyond what the kernel keeps: it is reported, and the watch is of
    /// use afterwards.
    #[test]
    fn a_flood_of_renames_is_reported_as_incomplete() {
        let directory = tempfile::tempdir().unwrap();
        let watch = CheckpointWatch::new(directory.path()).unwrap();
        let kept = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap();
        let kept: usize = kept.trim().parse().unwrap();
        let [one, two] = ["one", "two"].map(|name| directory.path().join(name));
        fs::create_dir(&one).unwrap();
        for _ in 0..=kept / 2 {
            fs::rename(&one, &two).unwrap();
            fs::rename(&two, &one).unwrap();
        }
        let flood = watch.renames().unwrap();
        assert!(flood.is_incomplete);
        assert_eq!(flood.names, ["two", "one"]);
        fs::rename(&one, &two).unwrap();
        assert_eq!(watch.renames().unwrap(), Renames { names: vec!["two".into()], is_incomplete: false });
    }

    #[test]
    fn a_directory_from_elsewhere_counts_too_and_a_name_once_in_a_look() {
        let directory = tempfile::tempdir().unwrap();
        let (area, other) = (directory.path().join("area"), directory.path().join("other"));
        fs::create_dir(&area).unwrap();
        fs::create_dir(&other).unwrap();
        let watch = CheckpointWatch::new(&area).unwrap();
        for _ in 0..3 {
            fs::rename(&other, area.join("step")).unwrap();
            fs::rename(area.join("step"), &other).unwrap();
        }
        assert_eq!(watch.renames().unwrap().names, ["step"]);
        assert!(CheckpointWatch::new(&directory.path().join("none")).is_err());
    }
}
