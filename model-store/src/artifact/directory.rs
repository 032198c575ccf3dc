//! Reading of a directory that a foreign program may change in that time, into the tree of a packed file.
//!
//! Each name is opened relative to the open directory that holds it, and no link is followed, so a name never
//! leads out of the directory. Only files and directories are opened: to open a device has effects, and a
//! pipe would wait.

use super::builder::ArtifactBuilder;
use super::error::unreadable;
use super::{ArtifactError, PackedArtifact};
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat};
use protocol::artifact::data_link_flaw;
use std::ffi::{CStr, OsStr};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Options with which every entry is opened.
const OPEN: OFlag = OFlag::O_RDONLY.union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC).union(OFlag::O_NONBLOCK);

impl ArtifactBuilder {
    /// Adds everything below a directory, as far as data may hold it; `shown` names the directory in errors.
    /// A file that another process changes at the same time is added as it was read.
    ///
    /// # Errors
    /// [`ArtifactError::Link`] for a link that leads out of the directory or is absolute,
    /// [`ArtifactError::Device`] for what is neither file, directory nor link, [`ArtifactError::Path`],
    /// [`ArtifactError::TooLarge`], [`ArtifactError::Unreadable`].
    pub fn add_data(&mut self, directory: &File, shown: &Path) -> Result<(), ArtifactError> {
        let copy = directory.try_clone().map_err(unreadable(shown))?;
        self.add_below(OwnedFd::from(copy), "", shown)
    }

    /// Packs the tree as data, which has no start; none if the tree is empty.
    ///
    /// # Errors
    /// [`ArtifactError::TooLarge`], [`ArtifactError::Unreadable`].
    pub fn pack_data(self) -> Result<Option<PackedArtifact>, ArtifactError> {
        if self.is_empty() { Ok(None) } else { self.finish(None).map(Some) }
    }

    fn add_below(&mut self, directory: OwnedFd, below: &str, shown: &Path) -> Result<(), ArtifactError> {
        let copy = directory.try_clone().map_err(unreadable(shown))?;
        let listed = Dir::from_fd(copy).map_err(|error| unreadable(shown)(error.into()))?;
        for entry in listed {
            let entry = entry.map_err(|error| unreadable(shown)(error.into()))?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let Ok(text) = name.to_str() else {
                let path = format!("{below}{}", name.to_string_lossy());
                return Err(ArtifactError::Path { path, reason: "it is not UTF-8" });
            };
            let path = format!("{below}{text}");
            self.add_entry(&directory, name, &path, &shown.join(text))?;
        }
        Ok(())
    }

    fn add_entry(
        &mut self,
        directory: &OwnedFd,
        name: &CStr,
        path: &str,
        shown: &Path,
    ) -> Result<(), ArtifactError> {
        let failed = |error: Errno| unreadable(shown)(error.into());
        let seen = fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW).map_err(failed)?;
        match kind_of(&seen) {
            SFlag::S_IFLNK => {
                let target = readlinkat(directory, name).map_err(failed)?;
                let target = text_of(&target, path)?;
                if let Some(reason) = data_link_flaw(path, target) {
                    return Err(ArtifactError::Link { path: path.into(), target: target.into(), reason });
                }
                return self.add_link(path, target);
            }
            SFlag::S_IFREG | SFlag::S_IFDIR => {}
            other => return Err(ArtifactError::Device { path: path.into(), kind: name_of(other) }),
        }
        let opened = openat(directory, name, OPEN, Mode::empty()).map_err(failed)?;
        // The name may stand for something else by now.
        let found = fstat(opened.as_fd()).map_err(failed)?;
        match kind_of(&found) {
            // The depth of a path is limited, and with it this recursion.
            SFlag::S_IFDIR => {
                self.add_directory(path)?;
                self.add_below(opened, &format!("{path}/"), shown)
            }
            SFlag::S_IFREG => {
                let length = u64::try_from(found.st_size).unwrap_or(u64::MAX);
                self.check_room(path, length)?;
                let executable = found.st_mode & 0o111 != 0;
                self.add_file(path, executable, File::from(opened), length, shown)
            }
            other => Err(ArtifactError::Device { path: path.into(), kind: name_of(other) }),
        }
    }
}

fn kind_of(status: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(status.st_mode & SFlag::S_IFMT.bits())
}

fn text_of<'a>(target: &'a OsStr, path: &str) -> Result<&'a str, ArtifactError> {
    let unreadable = ArtifactError::Path { path: path.into(), reason: "the target of the link is not UTF-8" };
    std::str::from_utf8(target.as_bytes()).map_err(|_| unreadable)
}

fn name_of(kind: SFlag) -> &'static str {
    match kind {
        SFlag::S_IFIFO => "a pipe",
        SFlag::S_IFSOCK => "a socket",
        _ => "a device",
    }
}

/// Opens a directory for [`ArtifactBuilder::add_data`], without following a link in its last name.
///
/// # Errors
/// Errors of the system, also if it is no directory.
pub fn open_data(parent: &File, name: &OsStr) -> io::Result<File> {
    let opened = openat(parent, name, OPEN | OFlag::O_DIRECTORY, Mode::empty())?;
    Ok(File::from(opened))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::artifact::{ArtifactLimits, unpack_data};
    use nix::unistd::mkfifoat;
    use protocol::error_code;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::path::PathBuf;

    struct Place {
        _directory: tempfile::TempDir,
        data: PathBuf,
        work: PathBuf,
    }

    fn place() -> Place {
        let directory = tempfile::tempdir().unwrap();
        let (data, work) = (directory.path().join("data"), directory.path().join("work"));
        fs::create_dir(&data).unwrap();
        fs::create_dir(&work).unwrap();
        Place { _directory: directory, data, work }
    }

    impl Place {
        fn pack(&self, limits: ArtifactLimits) -> Result<Option<PackedArtifact>, ArtifactError> {
            let mut builder = ArtifactBuilder::new(&self.work, limits).unwrap();
            let packed = builder.add_data(&File::open(&self.data).unwrap(), &self.data);
            let packed = packed.and_then(|()| builder.pack_data());
            fs::remove_dir_all(&self.work).unwrap();
            fs::create_dir(&self.work).unwrap();
            packed
        }

        fn code(&self) -> protocol::ErrorCode {
            self.pack(ArtifactLimits::default()).expect_err("it is refused").code()
        }
    }

    #[test]
    fn data_is_packed_and_unpacked_as_it_was() {
        let place = place();
        fs::create_dir_all(place.data.join("deep/er")).unwrap();
        fs::write(place.data.join("deep/er/weights"), vec![7; 300_000]).unwrap();
        fs::write(place.data.join("run"), "#!").unwrap();
        fs::set_permissions(place.data.join("run"), fs::Permissions::from_mode(0o700)).unwrap();
        symlink("deep/er/weights", place.data.join("latest")).unwrap();
        let mut builder = ArtifactBuilder::new(&place.work, ArtifactLimits::default()).unwrap();
        builder.add_data(&File::open(&place.data).unwrap(), &place.data).unwrap();
        let packed = builder.pack_data().unwrap().expect("not empty");
        assert_eq!(packed.index.start, None);
        let to = place.work.join("unpacked");
        unpack_data(&File::open(&packed.path).unwrap(), packed.root, &to).unwrap();
        assert_eq!(fs::read(to.join("latest")).unwrap(), vec![7; 300_000]);
        assert_eq!(fs::metadata(to.join("run")).unwrap().permissions().mode() & 0o777, 0o755);
        // The same tree has the same root, whenever and under whichever owner it was written.
        let twin = self::place();
        fs::create_dir_all(twin.data.join("deep/er")).unwrap();
        symlink("deep/er/weights", twin.data.join("latest")).unwrap();
        fs::copy(to.join("run"), twin.data.join("run")).unwrap();
        fs::copy(to.join("deep/er/weights"), twin.data.join("deep/er/weights")).unwrap();
        let again = twin.pack(ArtifactLimits::default()).unwrap().expect("not empty");
        assert_eq!(again.root, packed.root);
    }

    #[test]
    fn an_empty_directory_is_no_data() {
        assert!(place().pack(ArtifactLimits::default()).unwrap().is_none());
    }

    /// The attacks are links to files of the host, which the agent can read and the job cannot.
    #[test]
    fn a_link_that_leads_out_is_refused_and_never_read() {
        for target in ["/etc/passwd", "..", "../secret", "a/../../secret"] {
            let place = place();
            symlink(target, place.data.join("a")).unwrap();
            assert_eq!(place.code(), error_code::ARTIFACT_LINK_REFUSED, "{target}");
        }
    }

    /// Without the second look, an entry that was exchanged for a link between look and open is followed.
    #[test]
    fn a_name_is_opened_without_following_a_link() {
        let place = place();
        fs::write(place.data.with_file_name("secret"), "secret").unwrap();
        symlink("../secret", place.data.join("file")).unwrap();
        symlink("..", place.data.join("directory")).unwrap();
        let data = File::open(&place.data).unwrap();
        for name in [c"file", c"directory"] {
            assert_eq!(openat(&data, name, OPEN, Mode::empty()).expect_err("a link"), Errno::ELOOP);
        }
        assert!(open_data(&data, OsStr::new("directory")).is_err(), "nor as the top directory");
    }

    #[test]
    fn a_pipe_is_refused_and_does_not_hold_the_reader() {
        let place = place();
        let data = File::open(&place.data).unwrap();
        mkfifoat(&data, "pipe", Mode::S_IRWXU).unwrap();
        assert_eq!(place.code(), error_code::ARTIFACT_DEVICE_REFUSED);
    }

    /// The attack is a sparse file of a petabyte: it must not be read before it is refused.
    #[test]
    fn data_beyond_its_bound_is_refused_before_it_is_copied() {
        let place = place();
        File::create(place.data.join("sparse")).unwrap().set_len(1 << 40).unwrap();
        assert_eq!(place.code(), error_code::ARTIFACT_TOO_LARGE);
        let place = self::place();
        (0..3).for_each(|number| fs::write(place.data.join(number.to_string()), [0; 100]).unwrap());
        let limits = ArtifactLimits { bytes: 300, ..ArtifactLimits::default() };
        assert!(place.pack(limits).is_ok(), "positive control");
        let less = ArtifactLimits { bytes: 299, ..limits };
        assert_eq!(place.pack(less).expect_err("too large").code(), error_code::ARTIFACT_TOO_LARGE);
        let few = ArtifactLimits { entries: 2, ..limits };
        assert_eq!(place.pack(few).expect_err("too many").code(), error_code::ARTIFACT_TOO_LARGE);
    }

    #[test]
    fn a_name_that_cannot_be_stored_is_refused() {
        let place = place();
        fs::write(place.data.join(OsStr::from_bytes(b"\xff")), "").unwrap();
        assert_eq!(place.code(), error_code::ARTIFACT_PATH_REFUSED);
        let place = self::place();
        let deep: PathBuf = std::iter::once(place.data.clone()).chain((0..70).map(|_| "d".into())).collect();
        fs::create_dir_all(deep).unwrap();
        assert_eq!(place.code(), error_code::ARTIFACT_PATH_REFUSED);
    }

    /// The attack is a stored program that is offered as data: its links may be absolute.
    #[test]
    fn a_program_is_not_unpacked_as_data() {
        let place = place();
        let mut builder = ArtifactBuilder::new(&place.work, ArtifactLimits::default()).unwrap();
        builder.add_file("run", true, &b"#!"[..], 2, &place.work).unwrap();
        builder.add_link("passwd", "/etc/passwd").unwrap();
        let start = protocol::artifact::ArtifactStart {
            command: vec!["/run".into()],
            environment: std::collections::BTreeMap::new(),
            working_directory: "/".into(),
            architecture: "amd64".into(),
        };
        let packed = builder.pack(start).unwrap();
        let to = place.work.join("unpacked");
        let refused = unpack_data(&File::open(&packed.path).unwrap(), packed.root, &to);
        assert_eq!(refused.expect_err("a program").code(), error_code::ARTIFACT_INVALID);
        assert!(!to.exists(), "nothing was written");
    }
}
