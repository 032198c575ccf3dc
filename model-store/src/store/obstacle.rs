//! Obstacles in the path of an object: a directory at its path, or a file at the path of one of its
//! directories.
//!
//! Reads treat such an object as missing, so it is reconstructed from others; the path is cleared before it
//! is written again. An empty directory is removed. Anything else is moved aside under a name that no object
//! has, because its owner may need it. Links are never followed. One at the object's own path is replaced by
//! the write; one above it is the operator's choice of another disk.

use super::{Access, Store};
use crate::error::StoreError;
use crate::store::Progress;
use object_store::PutPayload;
use object_store::path::Path as ObjectPath;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

/// Maximum number of entries moved aside from one path; an operator should have intervened by then.
const ASIDE_MAX: u32 = 16;

impl Store {
    /// Writes as [`Store::put`] does, for an object whose path may be obstructed.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub(crate) async fn put_in_place(
        &self,
        path: &ObjectPath,
        payload: PutPayload,
        progress: &Progress,
    ) -> Result<(), StoreError> {
        if let Access::Directory { root, disk, .. } = &self.access {
            let (root, object) = (root.clone(), path.to_string());
            let clearing = disk.run_blocking(move || clear(&root, &object));
            self.disk_answer(path, clearing).await?;
        }
        self.put(path, payload, progress).await
    }
}

/// Clears the path of `object` below `root`.
pub(crate) fn clear(root: &Path, object: &str) -> io::Result<()> {
    let mut path = root.to_path_buf();
    let mut parts = object.split('/').peekable();
    while let Some(part) = parts.next() {
        path.push(part);
        let kind = match std::fs::symlink_metadata(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            metadata => metadata?.file_type(),
        };
        let last = parts.peek().is_none();
        match (last, kind.is_dir()) {
            (true, true) => match std::fs::remove_dir(&path) {
                Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => move_aside(&path)?,
                removed => removed?,
            },
            (false, false) if !kind.is_symlink() => return move_aside(&path),
            _ => {}
        }
    }
    Ok(())
}

fn move_aside(path: &Path) -> io::Result<()> {
    for number in 1..=ASIDE_MAX {
        let mut aside = path.as_os_str().to_owned();
        aside.push(format!(".aside-{number}"));
        let aside = PathBuf::from(aside);
        if std::fs::symlink_metadata(&aside).is_err_and(|error| error.kind() == ErrorKind::NotFound) {
            tracing::warn!(path = %path.display(), aside = %aside.display(), "moved aside: not an object");
            return std::fs::rename(path, aside);
        }
    }
    Err(io::Error::new(ErrorKind::AlreadyExists, "too many entries were moved aside already"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OBJECT: &str = "models/ab/abcdef/00000000-01";

    #[test]
    fn only_obstacles_move_and_nothing_is_lost() {
        let directory = tempfile::tempdir().expect("a directory");
        let root = directory.path().join("store");
        let path = root.join(OBJECT);
        let aside = |number: u32| root.join(format!("{OBJECT}.aside-{number}"));
        std::fs::create_dir_all(&path).expect("an empty directory");
        clear(&root, OBJECT).expect("cleared");
        assert!(!path.exists() && path.parent().is_some_and(Path::exists));
        for number in 1..=2 {
            std::fs::create_dir_all(path.join("below")).expect("create");
            std::fs::write(path.join("below/letter"), format!("{number}")).expect("write");
            clear(&root, OBJECT).expect("cleared");
            let kept = std::fs::read_to_string(aside(number).join("below/letter")).expect("kept");
            assert!(!path.exists() && kept == number.to_string());
        }
        std::fs::write(&path, b"an object").expect("write");
        clear(&root, OBJECT).expect("nothing to clear");
        assert_eq!(std::fs::read(&path).expect("there"), b"an object");
        std::fs::remove_dir_all(root.join("models")).expect("remove");
        std::fs::write(root.join("models"), b"no directory").expect("write");
        clear(&root, OBJECT).expect("cleared");
        assert_eq!(std::fs::read(root.join("models.aside-1")).expect("kept"), b"no directory");
        clear(&root, OBJECT).expect("nothing is there");
    }

    #[test]
    fn links_are_not_followed() {
        let directory = tempfile::tempdir().expect("a directory");
        let (root, elsewhere) = (directory.path().join("store"), directory.path().join("elsewhere"));
        let path = root.join(OBJECT);
        std::fs::create_dir_all(path.parent().expect("below")).expect("create");
        std::fs::create_dir(&elsewhere).expect("create");
        std::os::unix::fs::symlink(&elsewhere, &path).expect("link");
        clear(&root, OBJECT).expect("nothing to clear");
        assert!(elsewhere.exists() && path.is_symlink());
        std::fs::remove_dir_all(root.join("models")).expect("remove");
        std::os::unix::fs::symlink(&elsewhere, root.join("models")).expect("link");
        clear(&root, OBJECT).expect("nothing to clear");
        assert!(root.join("models").is_symlink());
    }
}
