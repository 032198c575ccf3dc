//! The bootstrap marker: permission for the one start in a replica's life that may create a log.
//!
//! A replica that lost its log has forgotten its votes; bootstrapped again under its old number, it could
//! vote twice. Therefore the marker is created together with the replica's key, once, and its first start
//! removes it. No state that can be lost or restored from a backup gives permission to bootstrap: neither a
//! missing log nor the key.

use super::ServerConfig;
use anyhow::{Context as _, Result};
use host::files;
use overlay::Identity;
use protocol::{Refusal, error_code};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// File name of the bootstrap marker, beside the key.
const BOOTSTRAP_MARKER: &str = "never-begun";
/// File name of the replica's key.
const KEY: &str = "identity.key";

/// Creates a replica's directory, its key and its bootstrap marker, or reads the existing key.
///
/// An existing key does not create the marker again.
///
/// # Errors
/// Returns an error if the directory cannot be written or the key file is damaged.
pub fn create_replica(directory: &Path) -> Result<Identity> {
    let key = directory.join(KEY);
    if !key.exists() {
        // The marker is written first, so that no key ever exists without it; a run killed between the two is
        // repeated.
        let marker = directory.join(BOOTSTRAP_MARKER);
        let text =
            b"This control replica was never started. Its first start makes its log and removes this file.\n";
        files::write_atomically(&marker, text, 0o644)
            .with_context(|| format!("write `{}`", marker.display()))?;
    }
    Ok(Identity::load_or_create(&key)?)
}

/// Reads a replica's key.
///
/// # Errors
/// Fails with `replica-not-prepared` if there is no key, and with another error if it is damaged.
pub fn load_replica(directory: &Path) -> Result<Identity> {
    let key = directory.join(KEY);
    if !key.exists() {
        let message = format!(
            "there is no key file `{}`; prepare the directory, once: \
             quorate control init --dir {} --id ID --overlay HOST:PORT --api URL",
            key.display(),
            directory.display()
        );
        return Err(Refusal::new(error_code::REPLICA_NOT_PREPARED, message).into());
    }
    Ok(Identity::load(&key)?)
}

fn marker(config: &ServerConfig) -> PathBuf {
    config.directory.join(BOOTSTRAP_MARKER)
}

/// Returns whether this start may create a log if there is none.
pub(super) fn may_bootstrap(config: &ServerConfig) -> bool {
    marker(config).exists()
}

/// Removes the bootstrap marker durably, once the log is created and durable.
///
/// A replica killed before the removal starts on the log that it created.
pub(super) fn clear_bootstrap_marker(config: &ServerConfig) -> Result<()> {
    let marker = marker(config);
    match fs::remove_file(&marker) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        removed => removed.with_context(|| format!("remove `{}`", marker.display()))?,
    }
    files::sync_directory(&config.directory).with_context(|| format!("sync `{}`", config.directory.display()))
}
