//! Directory layout of a local cluster, with a lock that admits one `up` at a time.

use anyhow::{Context as _, Result};
use host::DirectoryLock;
use protocol::{Refusal, error_code};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// Number of control replicas.
pub(super) const REPLICAS: u64 = 3;
/// Names of the nodes that run services and store models.
pub(super) const NODES: [&str; 3] = ["node-1", "node-2", "node-3"];
/// Name of the node that runs the gateway.
pub(super) const GATEWAY: &str = "gateway-1";
/// Names of the stores of each node.
pub(super) const STORES: [&str; 2] = ["disk-0", "disk-1"];
/// Names of the circle's members.
pub(super) const MEMBERS: [&str; 3] = ["member-a", "member-b", "member-c"];
/// Number of members that must sign a change.
pub(super) const REQUIRED: u32 = 2;

/// The directory of a local cluster, locked while this value lives.
#[derive(Debug)]
pub(super) struct Layout {
    root: PathBuf,
    _lock: DirectoryLock,
}

impl Layout {
    /// Locks the directory; empties it if `fresh`, or if no founding in it was completed.
    ///
    /// # Errors
    /// Fails with `directory-in-use` if another `up` holds the lock, and with `directory-foreign` if the
    /// directory has other contents.
    pub(super) fn claim(root: &Path, fresh: bool) -> Result<Self> {
        let root = std::path::absolute(root)?;
        let used = root.exists() && root.read_dir()?.next().is_some();
        if used && !root.join("lock").exists() {
            let message =
                format!("`{}` is not empty and not a cluster's; choose another --dir", root.display());
            return Err(Refusal::new(error_code::DIRECTORY_FOREIGN, message).into());
        }
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o711)
            .create(&root)
            .with_context(|| format!("create `{}`", root.display()))?;
        let Some(lock) = DirectoryLock::take(&root).with_context(|| format!("lock `{}`", root.display()))?
        else {
            let message =
                format!("another `quorate up` runs in `{}`; stop it or choose another --dir", root.display());
            return Err(Refusal::new(error_code::DIRECTORY_IN_USE, message).into());
        };
        let layout = Self { root, _lock: lock };
        if fresh || !layout.is_founded() {
            layout.clear()?;
        }
        Ok(layout)
    }

    /// Removes everything but the lock: an unfinished founding leaves nothing behind.
    fn clear(&self) -> Result<()> {
        for entry in std::fs::read_dir(&self.root)? {
            let path = entry?.path();
            if path.file_name().is_some_and(|name| name == "lock") {
                continue;
            }
            let outcome =
                if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
            outcome.with_context(|| format!("remove `{}`", path.display()))?;
        }
        Ok(())
    }

    /// Returns whether an earlier run founded the circle in this directory.
    #[must_use]
    pub(super) fn is_founded(&self) -> bool {
        self.context().exists()
    }

    /// Returns the directory itself.
    #[must_use]
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Returns a control replica's directory.
    #[must_use]
    pub(super) fn control(&self, id: u64) -> PathBuf {
        self.root.join(format!("control-{id}"))
    }

    /// Returns a node's directory.
    #[must_use]
    pub(super) fn node(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Returns the path of the signed genesis.
    #[must_use]
    pub(super) fn genesis(&self) -> PathBuf {
        self.root.join("genesis.json")
    }

    /// Returns the path of a member's key. It is beside the other members' keys: never for real use.
    #[must_use]
    pub(super) fn member_key(&self, member: &str) -> PathBuf {
        self.root.join("members").join(format!("{member}.key"))
    }

    /// Returns the path of the signed grant of the operator's access token.
    pub(super) fn token_grant(&self) -> PathBuf {
        self.root.join("token-grant.json")
    }

    /// Returns the path of the operator's access token.
    #[must_use]
    pub(super) fn token(&self) -> PathBuf {
        self.root.join("token")
    }

    /// Returns the path of the cluster's first inference key.
    #[must_use]
    pub(super) fn api_key(&self) -> PathBuf {
        self.root.join("api-key")
    }

    /// Returns the path of the record of imported directories of the user and their model names.
    #[must_use]
    pub(super) fn own_models(&self) -> PathBuf {
        self.root.join("own-models.json")
    }

    /// Returns the path of the context file; it is written last and marks the founding as complete.
    #[must_use]
    pub(super) fn context(&self) -> PathBuf {
        self.root.join("context.json")
    }

    /// Returns the path of the record of ports bound at the founding.
    #[must_use]
    pub(super) fn ports(&self) -> PathBuf {
        self.root.join("ports.json")
    }

    /// Returns the path of a daemon's log.
    #[must_use]
    pub(super) fn log(&self, name: &str) -> PathBuf {
        self.root.join("logs").join(format!("{name}.log"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_up_in_the_same_directory_is_refused_by_code() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let held = Layout::claim(directory.path(), false).expect("free");
        let error = Layout::claim(directory.path(), false).expect_err("held");
        assert!(error.to_string().starts_with("directory-in-use"), "{error}");
        drop(held);
        Layout::claim(directory.path(), false).expect("free again");
    }

    #[test]
    fn somebody_elses_directory_is_never_cleared() {
        let directory = tempfile::tempdir().expect("temporary directory");
        std::fs::write(directory.path().join("thesis.tex"), "years of work").expect("written");
        let error = Layout::claim(directory.path(), true).expect_err("foreign");
        assert!(error.to_string().starts_with("directory-foreign"), "{error}");
        assert!(directory.path().join("thesis.tex").exists());
    }

    #[test]
    fn an_unfinished_founding_is_begun_anew() {
        let directory = tempfile::tempdir().expect("temporary directory");
        drop(Layout::claim(directory.path(), false).expect("free"));
        std::fs::write(directory.path().join("genesis.json"), "half").expect("written");
        let layout = Layout::claim(directory.path(), false).expect("free");
        assert!(!layout.genesis().exists());
    }
}
