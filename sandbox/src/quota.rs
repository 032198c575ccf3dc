//! Bounds on writable directories of the disk, by project quotas: the kernel charges every file below a
//! directory to the directory's project, and refuses what exceeds the project's limit (`EDQUOT`).
//!
//! A file system enforces this if it was made and mounted for it (ext4: `-O project,quota` and `prjquota`;
//! XFS: `pquota`). Where it does not, the caller labels the area.

use crate::profile::files_max;
use crate::system;
use nix::sys::statvfs::statvfs;
use protocol::sandbox::SandboxIdentity;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

/// Unit of the kernel's block limits in bytes (`QIF_DQBLKSIZE`).
const BLOCK_BYTES: u64 = 1024;
/// Project ids for each pair of user ids: one for each area on disk, and one to spare.
const PROJECTS_PER_PAIR: u32 = 4;

/// Returns the project of a sandbox's area. No two live sandboxes of a machine share one, because no two
/// share user ids. None for a sandbox without ids of its own: an ordinary user may not set quotas.
pub(crate) fn project_of(identity: SandboxIdentity, area: u32) -> Option<u32> {
    debug_assert!(area < PROJECTS_PER_PAIR, "an area has a project");
    match identity {
        // Pairs are consecutive even steps, so half of the first id numbers them.
        SandboxIdentity::OwnIds { first } => (first / 2).checked_mul(PROJECTS_PER_PAIR)?.checked_add(area),
        SandboxIdentity::SameUid => None,
    }
}

/// Bounds everything that is created below an empty directory from now on.
///
/// # Errors
/// If the file system enforces no project quotas.
pub(crate) fn bound(directory: &Path, project: u32, bytes: u64) -> io::Result<()> {
    let handle = File::open(directory)?;
    system::set_project(handle.as_fd(), project)?;
    let blocks = bytes / BLOCK_BYTES;
    system::set_project_limits(handle.as_fd(), project, blocks, files_max(bytes))?;
    // Both ext4 and XFS report the project's limit as the size of the file system, but only if they enforce
    // it. A quota that is only counted is no bound.
    let seen = statvfs(directory)?;
    let size = seen.blocks().saturating_mul(seen.fragment_size());
    if size <= bytes { Ok(()) } else { Err(io::Error::other("the quota is counted, not enforced")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn no_two_sandboxes_share_a_project() {
        let mut seen = BTreeSet::new();
        for pair in 0..64 {
            for area in 0..3 {
                let project = project_of(SandboxIdentity::OwnIds { first: 231_072 + 2 * pair }, area);
                assert!(seen.insert(project.expect("an own id")), "pair {pair}, area {area}");
            }
        }
        assert_eq!(project_of(SandboxIdentity::SameUid, 0), None);
        assert_eq!(project_of(SandboxIdentity::OwnIds { first: u32::MAX - 1 }, 2), None, "out of range");
    }

    /// This machine's temporary directory has no project quotas, or this user may not set them; if it has,
    /// the bound must show.
    #[test]
    fn a_directory_without_quotas_is_no_bounded_one() {
        let directory = tempfile::tempdir().expect("directory");
        if bound(directory.path(), 77, 1 << 20).is_ok() {
            let seen = statvfs(directory.path()).expect("statvfs");
            assert!(seen.blocks() * seen.fragment_size() <= 1 << 20);
        }
    }
}
