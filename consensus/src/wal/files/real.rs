//! Directory of the log on a real file system.

use super::{Directory, File};
use crate::error::LogError;
use std::fs::{self, OpenOptions, TryLockError};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};

/// A directory of the operating system, created if it is missing.
#[derive(Debug)]
pub(crate) struct RealDirectory {
    path: PathBuf,
}

impl RealDirectory {
    pub(crate) fn open(path: &Path) -> Result<Self, LogError> {
        // Other accounts of the machine must not be able to read the circle's decisions.
        let created = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
        created.map_err(|e| LogError::io("create directory", path, e))?;
        Ok(Self { path: path.to_path_buf() })
    }
}

impl Directory for RealDirectory {
    fn path(&self) -> &Path {
        &self.path
    }

    /// Locks the directory. The operating system releases the lock when the process ends, even if it is
    /// killed.
    fn lock(&self) -> Result<Box<dyn Send + Sync>, LogError> {
        let path = self.file("lock");
        let file = fs::File::create(&path).map_err(|e| LogError::io("create", &path, e))?;
        match file.try_lock() {
            Ok(()) => Ok(Box::new(file)),
            Err(TryLockError::WouldBlock) => Err(LogError::InUse { path: self.path.clone() }),
            Err(TryLockError::Error(source)) => Err(LogError::io("lock", &path, source)),
        }
    }

    fn list(&self) -> Result<Vec<String>, LogError> {
        let failed = |error| LogError::io("list", &self.path, error);
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(failed)? {
            // A name that is not valid UTF-8 is not a name of the log's files.
            names.extend(entry.map_err(failed)?.file_name().into_string());
        }
        names.sort();
        Ok(names)
    }

    fn create(&self, name: &str) -> Result<Box<dyn File>, LogError> {
        let path = self.file(name);
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path);
        Ok(Box::new(file.map_err(|e| LogError::io("create", &path, e))?))
    }

    fn open(&self, name: &str) -> Result<Option<Box<dyn File>>, LogError> {
        let path = self.file(name);
        match OpenOptions::new().read(true).write(true).open(&path) {
            Ok(file) => Ok(Some(Box::new(file))),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(LogError::io("open", &path, error)),
        }
    }

    fn rename(&self, from: &str, to: &str) -> Result<(), LogError> {
        let path = self.file(from);
        fs::rename(&path, self.file(to)).map_err(|e| LogError::io("rename", &path, e))
    }

    fn remove(&self, name: &str) -> Result<(), LogError> {
        let path = self.file(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(LogError::io("remove", &path, error)),
            _ => Ok(()),
        }
    }

    fn sync(&self) -> Result<(), LogError> {
        let opened = fs::File::open(&self.path).map_err(|e| LogError::io("open", &self.path, e))?;
        opened.sync_all().map_err(|e| LogError::io("sync", &self.path, e))
    }
}

impl File for fs::File {
    fn length(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read(&self) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(File::length(self)?).map_err(io::Error::other)?];
        self.read_exact_at(&mut bytes, 0)?;
        Ok(bytes)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_all()
    }

    fn sync_data(&self) -> io::Result<()> {
        fs::File::sync_data(self)
    }
}
