//! Copies of programs that another user may execute.

use std::path::Path;
use std::process::Command;

/// Copies a program in a separate process. If this process had the copy open for writing, a concurrent test
/// could fork a child that keeps it open a little longer. Executing a file that is open for writing fails
/// ("text file busy").
pub fn copy_program(from: &Path, to: &Path) {
    let status = Command::new("cp").args([from, to]).status().unwrap();
    assert!(status.success(), "cp {} {}: {status}", from.display(), to.display());
}
