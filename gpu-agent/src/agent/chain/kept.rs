//! The state of the circle that follows from the chain, kept so that a start verifies only what came later.
//!
//! The file replaces the verification of signatures by the word of this node, as the recorded head does, and
//! deserves the trust of the directory, where the node's other files are. A file that is damaged, of another
//! circle, or contradicts the head, is ignored: the whole chain is verified again.

use super::super::core::Refusal;
use super::super::error::AgentError;
use host::files;
use human_chain::CircleState;
use protocol::agent_state::KEPT_STATE_DOMAIN;
use protocol::governance::HistoryHead;
use protocol::{CircleId, Digest, Millis, error_code};
use std::fs;
use std::io;
use std::path::Path;

/// Name of the file.
const FILE: &str = "state";
/// Number of decisions after which the state is kept again. A start verifies fewer than these, in about half
/// a second; a file has some megabytes, which need not be written for every decision.
pub(super) const INTERVAL: u64 = 256;
/// Largest file: its digest, the latest signed time, and the state.
const BYTES_MAX: usize = Digest::LENGTH + size_of::<u64>() + CircleState::KEPT_BYTES_MAX;

/// Returns the state in a chain's directory, and the latest time that the circle had signed by then; none if
/// there is none to use.
pub(super) fn read(
    directory: &Path,
    circle: CircleId,
    highest: Option<&HistoryHead>,
) -> Option<(CircleState, Millis)> {
    let path = directory.join(FILE);
    try_read(&path, circle, highest).unwrap_or_else(|refusal| {
        let file = path.display();
        tracing::warn!(%refusal, %file, "the kept state is not used; the whole chain is verified");
        None
    })
}

fn try_read(
    path: &Path,
    circle: CircleId,
    highest: Option<&HistoryHead>,
) -> Result<Option<(CircleState, Millis)>, Refusal> {
    let damaged = || Refusal::new(error_code::AGENT_STATE_UNUSABLE, "its bytes are damaged");
    let read = files::read(path, BYTES_MAX)
        .map_err(|error| Refusal::of(error_code::AGENT_STATE_UNUSABLE, &error))?;
    let Some(bytes) = read else { return Ok(None) };
    let (digest, content) = bytes.split_first_chunk().ok_or_else(damaged)?;
    if Digest(*digest) != Digest::of_domain(KEPT_STATE_DOMAIN, content) {
        return Err(damaged());
    }
    let (signed_at, state) = content.split_first_chunk().ok_or_else(damaged)?;
    let state = CircleState::from_kept_bytes(state, circle)?;
    // A state may be older than the head: what follows it is read and verified.
    if let Some(highest) = highest.filter(|highest| highest.size <= state.length()) {
        state.check_extends(highest)?;
    }
    Ok(Some((state, Millis(u64::from_be_bytes(*signed_at)))))
}

/// Writes the state of a chain whose bundles are durable.
///
/// # Errors
/// Errors of the system; the file from before is then still in place. A state that is too large is not kept.
pub(super) fn write(directory: &Path, state: &CircleState, signed_at: Millis) -> io::Result<()> {
    let state = state.to_kept_bytes();
    if state.len() > CircleState::KEPT_BYTES_MAX {
        let message = format!("{} bytes; kept: at most {}", state.len(), CircleState::KEPT_BYTES_MAX);
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, message));
    }
    let content = [&signed_at.0.to_be_bytes()[..], &state].concat();
    let digest = Digest::of_domain(KEPT_STATE_DOMAIN, &content);
    files::write_secret(&directory.join(FILE), &[&digest.as_bytes()[..], &content].concat())
}

/// Removes the state, if there is one.
///
/// # Errors
/// If it cannot be removed.
pub(super) fn remove(directory: &Path) -> Result<(), AgentError> {
    let path = directory.join(FILE);
    match fs::remove_file(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.map_err(AgentError::during("remove", &path)),
    }
}
