//! Time zone of ranks: that of the machine, in the TZif format of RFC 9636.

use crate::error::SandboxError;
use host::files;
use std::path::Path;

/// Largest time zone file in bytes: ten times the largest of the IANA database.
const BYTES_MAX: usize = 64 * 1024;
/// First bytes of every time zone file.
const MAGIC: &[u8] = b"TZif";

/// Reads the time zone of a machine from its file, usually `/etc/localtime`. Without that file it is UTC,
/// which no bytes stand for.
///
/// # Errors
/// [`SandboxError::Profile`] if the file cannot be read, is too long, or is not a time zone.
pub fn time_zone_of_machine(path: &Path) -> Result<Vec<u8>, SandboxError> {
    let of_file = |detail: String| SandboxError::Profile { detail: format!("{}: {detail}", path.display()) };
    let bytes = files::read(path, BYTES_MAX).map_err(|error| of_file(error.to_string()))?;
    let bytes = bytes.unwrap_or_default();
    check(&bytes).map_err(of_file)?;
    Ok(bytes)
}

/// Checks that these bytes are a time zone, or none for UTC.
pub(crate) fn check(bytes: &[u8]) -> Result<(), String> {
    if bytes.len() > BYTES_MAX {
        return Err(format!("a time zone of {} bytes; at most {BYTES_MAX}", bytes.len()));
    }
    if bytes.is_empty() || bytes.starts_with(MAGIC) {
        Ok(())
    } else {
        Err("not a time zone in TZif format".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_zone_of_a_machine_is_read_as_it_is_and_a_wrong_one_is_named() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("localtime");
        assert_eq!(time_zone_of_machine(&path).expect("no file is UTC"), b"");
        std::fs::write(&path, b"TZif2 and rules").expect("write");
        assert_eq!(time_zone_of_machine(&path).expect("a time zone"), b"TZif2 and rules");
        for (bytes, reason) in [(b"Europe/Berlin".to_vec(), "TZif"), (vec![0; 70_000], "more than")] {
            std::fs::write(&path, bytes).expect("write");
            let error = time_zone_of_machine(&path).expect_err("it is no time zone").to_string();
            assert!(error.contains(reason) && error.contains("localtime"), "{error}");
        }
    }
}
