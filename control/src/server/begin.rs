//! The one start in a replica's life that may make a log.
//!
//! A replica that lost its log has forgotten its votes; begun anew under its old number it could vote twice. So the
//! leave to begin is made with the replica's key, once, and taken away by the first start. No other thing that may
//! vanish or come back from a backup gives it: not that the log is missing, not the key.

use super::ServerConfig;
use anyhow::{Context as _, Result, bail};
use gpu_agent::files;
use overlay::Identity;
use protocol::error_code;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// The leave to begin, beside the key.
const LEAVE: &str = "never-begun";
/// The replica's key.
const KEY: &str = "identity.key";

/// Makes a replica's directory, its key, and the leave to begin; or reads the key that is there, which gives no
/// leave again.
///
/// # Errors
/// When the directory cannot be written or the key file is damaged.
pub fn create_replica(directory: &Path) -> Result<Identity> {
    let key = directory.join(KEY);
    if !key.exists() {
        // First, so that no key is ever without it; killed between the two, this is done again.
        let leave = directory.join(LEAVE);
        let text =
            b"This control replica was never started. Its first start makes its log and removes this file.\n";
        files::write_atomically(&leave, text, 0o644)
            .with_context(|| format!("write `{}`", leave.display()))?;
    }
    Ok(Identity::load_or_create(&key)?)
}

/// Reads a replica's key.
///
/// # Errors
/// `replica-not-prepared` when there is none; or when it is damaged.
pub fn load_replica(directory: &Path) -> Result<Identity> {
    let key = directory.join(KEY);
    if !key.exists() {
        let (code, key, directory) = (error_code::REPLICA_NOT_PREPARED, key.display(), directory.display());
        bail!(
            "{code}: there is no key file `{key}`; prepare the directory, once: \
             quorate control init --dir {directory} --id ID --overlay HOST:PORT --api URL"
        );
    }
    Ok(Identity::load(&key)?)
}

fn leave(config: &ServerConfig) -> PathBuf {
    config.directory.join(LEAVE)
}

/// Whether this start may make a log where there is none.
pub(super) fn may_begin(config: &ServerConfig) -> bool {
    leave(config).exists()
}

/// The log is made and durable: takes the leave away, durably. Killed before this, the replica starts on the log
/// that it made.
pub(super) fn begun(config: &ServerConfig) -> Result<()> {
    let leave = leave(config);
    match fs::remove_file(&leave) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        removed => removed.with_context(|| format!("remove `{}`", leave.display()))?,
    }
    File::open(&config.directory)
        .and_then(|directory| directory.sync_all())
        .with_context(|| format!("sync `{}`", config.directory.display()))
}
