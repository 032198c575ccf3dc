//! Printing: every line that a command writes to its standard output or standard error.
//!
//! A reader that closes its pipe, such as `head`, ends no command. A vote, a halt or a whole cluster was
//! asked for beside its output, and the default disposition of SIGPIPE would kill the process at its next
//! line, before or between such acts. So the rest of the output is dropped, and the command ends with its own
//! exit status. A command that only prints, such as `quorate logs -f`, asks [`is_closed`] and ends early. Any
//! other failure, such as a full disk, is reported once the command has ended: see [`failure`].

use std::fmt::Display;
use std::io::{self, ErrorKind, Write};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// True once the reader of standard output has closed its pipe.
static CLOSED: AtomicBool = AtomicBool::new(false);
/// First failure of standard output other than a closed pipe.
static FAILURE: OnceLock<String> = OnceLock::new();

/// Prints a line on standard output.
pub fn out(line: impl Display) {
    let mut stdout = io::stdout().lock();
    note(write_line(&mut stdout, line), &CLOSED, &FAILURE);
}

/// Prints a line on standard error. A failure is dropped, since there is no other place to report it.
pub fn err(line: impl Display) {
    let _ = write_line(&mut io::stderr().lock(), line);
}

/// Asks a question on standard error, without a line break.
///
/// # Errors
/// If the question cannot be shown: its answer would be one to another text.
pub fn ask(question: impl Display) -> io::Result<()> {
    let mut stderr = io::stderr().lock();
    write!(stderr, "{question}")?;
    stderr.flush()
}

/// Returns whether the reader of standard output has gone.
#[must_use]
pub fn is_closed() -> bool {
    CLOSED.load(Ordering::Relaxed)
}

/// Returns the first failure of standard output, unless its reader has gone.
#[must_use]
pub fn failure() -> Option<&'static str> {
    FAILURE.get().map(String::as_str)
}

fn write_line(sink: &mut impl Write, line: impl Display) -> io::Result<()> {
    writeln!(sink, "{line}")?;
    sink.flush()
}

fn note(written: io::Result<()>, closed: &AtomicBool, failure: &OnceLock<String>) {
    match written {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::BrokenPipe => closed.store(true, Ordering::Relaxed),
        Err(error) => drop(failure.set(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writer whose every write fails in one way.
    struct Broken(ErrorKind);

    impl Write for Broken {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_closed_pipe_is_no_failure_and_any_other_error_is() {
        let (closed, failure) = (AtomicBool::new(false), OnceLock::new());
        let mut buffer = Vec::new();
        note(write_line(&mut buffer, format_args!("{} {}", "a", 1)), &closed, &failure);
        assert_eq!(buffer, b"a 1\n");
        assert!(!closed.load(Ordering::Relaxed) && failure.get().is_none());
        note(write_line(&mut Broken(ErrorKind::BrokenPipe), "lost"), &closed, &failure);
        assert!(closed.load(Ordering::Relaxed) && failure.get().is_none());
        for kind in [ErrorKind::StorageFull, ErrorKind::Other] {
            note(write_line(&mut Broken(kind), "lost"), &closed, &failure);
        }
        assert_eq!(failure.get(), Some(&io::Error::from(ErrorKind::StorageFull).to_string()), "the first");
    }
}
