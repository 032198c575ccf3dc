//! Tests of the file with the state that a machine verified.

use super::*;
use crate::testing::{SampleCircle, manifest};
use protocol::governance::Change;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

fn heads(directory: &Path, circle: &CircleState) -> HeadFile {
    HeadFile::beside(&directory.join("context.json"), circle.id())
}

fn decide(circle: &mut SampleCircle, architecture: &str) {
    circle.decide(Change::Deploy(Box::new(manifest(architecture))), "run it");
}

#[test]
fn a_state_is_kept_for_its_owner_and_read_again() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let mut circle = SampleCircle::founded();
    decide(&mut circle, "bert");
    let file = heads(directory.path(), &circle.state);
    assert_eq!(file.read_state(None).expect("none yet"), None);
    file.raise(&circle.state).expect("recorded");
    file.keep_state(&circle.state).expect("kept");
    assert_eq!(file.read_state(Some(&circle.state.head())).expect("kept"), Some(circle.state.clone()));
    let mode = std::fs::metadata(file.state_path()).expect("written").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

/// Attack: a machine gives up a longer state for an older one, which another command verified before.
#[test]
fn a_state_is_kept_only_under_the_head_that_is_recorded() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let mut circle = SampleCircle::founded();
    let founded = circle.state.clone();
    let file = heads(directory.path(), &founded);
    decide(&mut circle, "bert");
    file.raise(&circle.state).expect("recorded");
    file.keep_state(&circle.state).expect("kept");
    file.keep_state(&founded).expect("another command was faster");
    assert_eq!(file.read_state(None).expect("kept"), Some(circle.state.clone()));
    // Positive control: while the head is that of the older one, the older one is kept.
    std::fs::remove_file(file.path()).expect("removed");
    file.raise(&founded).expect("recorded");
    file.keep_state(&founded).expect("kept");
    assert_eq!(file.read_state(None).expect("kept"), Some(founded));
}

/// Attack: a damaged state, that of another circle, and that of a history in which the head is not.
#[test]
fn a_state_that_is_damaged_or_foreign_or_forked_is_not_read() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let mut circle = SampleCircle::founded();
    let founded = (circle.state.clone(), circle.history.clone());
    let file = heads(directory.path(), &circle.state);
    decide(&mut circle, "bert");
    file.raise(&circle.state).expect("recorded");
    file.keep_state(&circle.state).expect("kept");
    let sound = std::fs::read(file.state_path()).expect("written");
    let read = |bytes: &[u8], known: Option<&HistoryHead>| {
        std::fs::write(file.state_path(), bytes).expect("written");
        file.read_state(known)
    };
    for at in [0, 31, 32, sound.len() / 2, sound.len() - 1] {
        let mut damaged = sound.clone();
        damaged[at] ^= 1;
        assert!(read(&damaged, None).is_err(), "byte {at}");
        assert!(read(&sound[..at], None).is_err(), "truncated to {at}");
    }
    let other = SampleCircle::founded().state;
    assert!(read(&other.to_kept_bytes(), None).is_err(), "of another circle");
    let known = circle.state.head();
    // A state may be older than the head, which control must then reach again.
    assert!(read(&founded.0.to_kept_bytes(), Some(&known)).expect("older").is_some());
    (circle.state, circle.history) = founded;
    decide(&mut circle, "llama");
    assert!(read(&circle.state.to_kept_bytes(), Some(&known)).is_err(), "of another history");
    // Positive control: only the head distinguishes the two histories.
    assert_eq!(read(&circle.state.to_kept_bytes(), None).expect("sound"), Some(circle.state.clone()));
}
