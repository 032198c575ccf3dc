//! Programs that tests copy to where another user may execute them.

use std::path::Path;
use std::process::Command;

/// Copies a program, by a process of its own. Were the copy open for writing in this one, a test beside it could
/// start a child at that moment, which held it open a little longer: and what anybody may write, nobody may
/// execute ("text file busy").
pub fn copy_program(from: &Path, to: &Path) {
    let status = Command::new("cp").args([from, to]).status().unwrap();
    assert!(status.success(), "cp {} {}: {status}", from.display(), to.display());
}
