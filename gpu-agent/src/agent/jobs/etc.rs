//! Files of `/etc` that the ranks of a slot find.

use super::network::SlotNetwork;
use protocol::sandbox::EtcFiles;
use sandbox::{SandboxError, etc_files, time_zone_of_machine};
use std::path::Path;

/// File of this machine's time zone.
pub(super) const LOCALTIME: &str = "/etc/localtime";

/// Returns the files of `/etc` for ranks of this network, with the time zone of this file. A zone that cannot
/// be read keeps no job from running: its ranks have UTC.
///
/// # Errors
/// [`SandboxError::Profile`] for a rank whose name is not a host name.
pub(super) fn etc_of(network: &SlotNetwork, localtime: &Path) -> Result<EtcFiles, SandboxError> {
    let zone = time_zone_of_machine(localtime).unwrap_or_else(|error| {
        tracing::warn!(%error, "ranks run in UTC");
        Vec::new()
    });
    etc_files(&network.hosts, zone)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn ranks_have_the_time_zone_of_their_node_and_utc_if_it_has_none_that_can_be_read() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("localtime");
        let network = SlotNetwork { hosts: Vec::new(), device: None };
        let zone = || etc_of(&network, &path).expect("files").localtime.0;
        assert!(zone().is_empty(), "no file");
        fs::write(&path, b"TZif2 and rules").expect("write");
        assert_eq!(zone(), b"TZif2 and rules");
        fs::write(&path, b"Europe/Berlin").expect("write");
        assert!(zone().is_empty(), "no time zone");
    }
}
