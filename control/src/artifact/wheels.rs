//! Wheels: found by the hashes of their requirements, downloaded from the URLs that the requirements name,
//! and unpacked into a fresh directory.

use super::refused;
use super::requirements::{Requirement, normalized};
use anyhow::{Context as _, Result};
use aws_lc_rs::digest::{Context, SHA256};
use futures::StreamExt;
use protocol::artifact::{ARTIFACT_BYTES_MAX, ARTIFACT_ENTRIES_MAX, path_flaw};
use protocol::error_code::WHEEL_REFUSED;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Maximum size of a downloaded wheel in bytes: several times the largest published one.
const WHEEL_BYTES_MAX: u64 = 16 * 1024 * 1024 * 1024;
/// Timeouts for connecting to a server of wheels, and for its silence.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
const SILENCE_LIMIT: Duration = Duration::from_secs(30);

/// Returns the wheel of each requirement. Wheels with a URL are downloaded into `downloads`; the others are
/// in `directory`.
///
/// # Errors
/// `wheel-refused` for a wheel that is missing, ambiguous, too large, or has another hash.
pub(crate) async fn find_wheels(
    requirements: &[Requirement],
    directory: Option<&Path>,
    downloads: &Path,
) -> Result<Vec<PathBuf>> {
    let mut wheels = Vec::new();
    for (number, requirement) in requirements.iter().enumerate() {
        let wheel = match &requirement.url {
            Some(url) => {
                let wheel = downloads.join(format!("{number}.whl"));
                download(url, &wheel, WHEEL_BYTES_MAX).await?;
                if !requirement.hashes.contains(&hash_of(&wheel)?) {
                    let message =
                        format!("`{}` has another hash than its requirement names", requirement.shown);
                    return Err(refused(WHEEL_REFUSED, message));
                }
                wheel
            }
            None => find_wheel(requirement, directory)?,
        };
        wheels.push(wheel);
    }
    Ok(wheels)
}

fn find_wheel(requirement: &Requirement, directory: Option<&Path>) -> Result<PathBuf> {
    let shown = &requirement.shown;
    let Some(directory) = directory else {
        let message = format!("`{shown}` names no URL, and no directory of wheels is given (--wheels DIR)");
        return Err(refused(WHEEL_REFUSED, message));
    };
    let reading = || format!("read `{}`", directory.display());
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).with_context(reading)? {
        let path = entry.with_context(reading)?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let of = name.strip_suffix(".whl").and_then(|name| name.split('-').next()).map(normalized);
        if of.is_some_and(|of| of == requirement.name) && requirement.hashes.contains(&hash_of(&path)?) {
            found.push(path);
        }
    }
    let at = directory.display();
    match (found.pop(), found.len()) {
        (Some(wheel), 0) => Ok(wheel),
        (Some(_), more) => {
            let message = format!("{} wheels of `{shown}` in `{at}` have its hashes; keep one", more + 1);
            Err(refused(WHEEL_REFUSED, message))
        }
        (None, _) => {
            let message = format!("no wheel of `{shown}` in `{at}` has one of its hashes");
            Err(refused(WHEEL_REFUSED, message))
        }
    }
}

async fn download(url: &str, to: &Path, bytes_max: u64) -> Result<()> {
    let failed =
        |error: reqwest::Error| refused(WHEEL_REFUSED, format!("`{url}`: {}", protocol::error_chain(&error)));
    let client = reqwest::Client::builder().connect_timeout(CONNECT_LIMIT).read_timeout(SILENCE_LIMIT);
    let response = client.build()?.get(url).send().await.and_then(|answer| answer.error_for_status());
    let mut chunks = response.map_err(failed)?.bytes_stream();
    let mut file = File::create_new(to).with_context(|| format!("write `{}`", to.display()))?;
    let mut bytes = 0;
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(failed)?;
        bytes += chunk.len() as u64;
        if bytes > bytes_max {
            return Err(refused(WHEEL_REFUSED, format!("`{url}` has more than {bytes_max} bytes")));
        }
        file.write_all(&chunk).with_context(|| format!("write `{}`", to.display()))?;
    }
    Ok(())
}

fn hash_of(path: &Path) -> Result<String> {
    let reading = || format!("read `{}`", path.display());
    let mut file = File::open(path).with_context(reading)?;
    let (mut digest, mut buffer) = (Context::new(&SHA256), vec![0; 256 * 1024]);
    loop {
        match file.read(&mut buffer).with_context(reading)? {
            0 => return Ok(hex::encode(digest.finish())),
            read => digest.update(&buffer[..read]),
        }
    }
}

/// Space that all wheels of a build may still take.
pub(crate) struct WheelBudget {
    pub(crate) entries: usize,
    pub(crate) bytes: u64,
}

impl Default for WheelBudget {
    fn default() -> Self {
        Self { entries: ARTIFACT_ENTRIES_MAX, bytes: ARTIFACT_BYTES_MAX }
    }
}

/// Unpacks a wheel into a directory. Files of `NAME.data/purelib` and `platlib` go beside the packages, as an
/// installer puts them; its scripts and other data are left out.
///
/// # Errors
/// `wheel-refused` for a damaged wheel, a path that leads out, a link, a file that another wheel has, and for
/// more than the budget.
pub(crate) fn unpack_wheel(wheel: &Path, to: &Path, budget: &mut WheelBudget) -> Result<()> {
    let shown = wheel.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let flaw = |what: String| refused(WHEEL_REFUSED, format!("wheel `{shown}`: {what}"));
    let file = File::open(wheel).with_context(|| format!("read `{}`", wheel.display()))?;
    let mut archive = zip::ZipArchive::new(file).map_err(|error| flaw(error.to_string()))?;
    for index in 0..archive.len() {
        let mut entry = archive.by_index(index).map_err(|error| flaw(error.to_string()))?;
        let name = entry.name().map_err(|error| flaw(error.to_string()))?.into_owned();
        if entry.is_dir() {
            continue;
        }
        if let Some(reason) = path_flaw(&name) {
            return Err(flaw(format!("path `{}` is refused: {reason}", name.escape_debug())));
        }
        let mode = entry.unix_mode().unwrap_or(0o644);
        if entry.is_symlink() || !matches!(mode & 0o170_000, 0 | 0o100_000) {
            return Err(flaw(format!("`{}` is no regular file", name.escape_debug())));
        }
        let Some(path) = installed(&name) else { continue };
        let size = entry.size();
        let (Some(entries), Some(bytes)) = (budget.entries.checked_sub(1), budget.bytes.checked_sub(size))
        else {
            return Err(flaw("the wheels have more files or bytes than an artifact may have".into()));
        };
        (budget.entries, budget.bytes) = (entries, bytes);
        let place = to.join(path);
        fs::create_dir_all(place.parent().unwrap_or(to)).with_context(|| format!("write `{path}`"))?;
        let mode = if mode & 0o111 != 0 { 0o755 } else { 0o644 };
        let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&place);
        let mut file = file.map_err(|error| flaw(format!("`{}`: {error}", path.escape_debug())))?;
        // The archive states the size; more bytes than that are an attempt to fill the disk.
        let copied = io::copy(&mut (&mut entry).take(size.saturating_add(1)), &mut file);
        let copied = copied.map_err(|error| flaw(format!("`{}`: {error}", path.escape_debug())))?;
        if copied != size {
            return Err(flaw(format!("`{}` has another size than the wheel states", path.escape_debug())));
        }
    }
    Ok(())
}

/// Returns the path at which a file of a wheel is installed; none for scripts and other data.
fn installed(name: &str) -> Option<&str> {
    let data = name.split_once('/').filter(|(first, _)| first.ends_with(".data"));
    match data.map(|(_, rest)| rest.split_once('/')) {
        None => Some(name),
        Some(Some(("purelib" | "platlib", path))) => Some(path),
        Some(_) => None,
    }
}
