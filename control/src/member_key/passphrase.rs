//! Passphrase of a key file: typed on the terminal without an echo, or read from a file that the variable
//! `QUORATE_PASSPHRASE_FILE` names. Arguments and variables are visible to other programs, so neither carries
//! a passphrase itself.

use anyhow::{Context as _, Result};
use nix::sys::termios::{LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};
use protocol::{Refusal, error_code};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// Variable that names the file with the passphrase; `/dev/fd/3` reads an open descriptor.
pub(crate) const VARIABLE: &str = "QUORATE_PASSPHRASE_FILE";
/// Maximum length of a passphrase in bytes.
const PASSPHRASE_BYTES_MAX: u64 = 1024;
/// Minimum length of a new passphrase in characters. The derivation is slow, but a short word is still tried.
const CHARACTERS_MIN: usize = 12;

/// Returns the passphrase of an existing key file.
pub(super) fn present(key: &Path) -> Result<Zeroizing<String>> {
    match file() {
        Some(file) => read_file(&file),
        None => Terminal::open()?.ask(&format!("passphrase of `{}`: ", key.display())),
    }
}

/// Returns the passphrase for a new key file, typed twice or read from the file.
pub(crate) fn chosen(key: &Path) -> Result<Zeroizing<String>> {
    let passphrase = match file() {
        Some(file) => read_file(&file)?,
        None => {
            let mut terminal = Terminal::open()?;
            let first = terminal.ask(&format!("new passphrase for `{}`: ", key.display()))?;
            let again = terminal.ask("again: ")?;
            if *first != *again {
                let message = "the two passphrases differ; nothing was written";
                return Err(Refusal::new(error_code::KEY_PASSPHRASE_WRONG, message).into());
            }
            first
        }
    };
    check_new(&passphrase)?;
    Ok(passphrase)
}

/// Checks that a new passphrase is long enough.
fn check_new(passphrase: &str) -> Result<(), Refusal> {
    let count = passphrase.chars().count();
    if count < CHARACTERS_MIN {
        let message = format!(
            "the passphrase has {count} characters; accepted: at least {CHARACTERS_MIN}, such as 4 words"
        );
        return Err(Refusal::new(error_code::KEY_PASSPHRASE_WRONG, message));
    }
    Ok(())
}

fn file() -> Option<PathBuf> {
    std::env::var_os(VARIABLE).map(PathBuf::from)
}

/// Reads the first line of a file.
fn read_file(path: &Path) -> Result<Zeroizing<String>> {
    let named = || format!("{VARIABLE}: `{}`", path.display());
    let missing =
        |reason: String| Refusal::new(error_code::KEY_PASSPHRASE_MISSING, format!("{}: {reason}", named()));
    let opened = File::open(path).map_err(|error| missing(error.to_string()))?;
    let mut text = Zeroizing::new(String::new());
    let read = opened.take(PASSPHRASE_BYTES_MAX + 1).read_to_string(&mut text);
    read.map_err(|error| missing(error.to_string()))?;
    if text.len() as u64 > PASSPHRASE_BYTES_MAX {
        return Err(missing(format!("more than {PASSPHRASE_BYTES_MAX} bytes")).into());
    }
    let line = Zeroizing::new(text.lines().next().unwrap_or_default().to_string());
    if line.is_empty() {
        return Err(missing("its first line is empty".into()).into());
    }
    Ok(line)
}

/// The terminal of this process, without an echo while a passphrase is typed.
struct Terminal {
    reader: BufReader<File>,
    writer: File,
}

impl Terminal {
    fn open() -> Result<Self> {
        let open = || File::options().read(true).write(true).open("/dev/tty");
        let missing = |_| {
            let message =
                format!("there is no terminal to ask for the passphrase; name a file with it in {VARIABLE}");
            Refusal::new(error_code::KEY_PASSPHRASE_MISSING, message)
        };
        let writer = open().map_err(missing)?;
        Ok(Self { reader: BufReader::new(open().map_err(missing)?), writer })
    }

    fn ask(&mut self, question: &str) -> Result<Zeroizing<String>> {
        let before = tcgetattr(&self.writer).context("read the terminal's settings")?;
        let mut silent = before.clone();
        silent.local_flags.remove(LocalFlags::ECHO);
        tcsetattr(&self.writer, SetArg::TCSAFLUSH, &silent).context("silence the terminal")?;
        let answer = self.typed(question);
        self.restore(&before)?;
        answer
    }

    fn typed(&mut self, question: &str) -> Result<Zeroizing<String>> {
        self.writer.write_all(question.as_bytes())?;
        let mut line = Zeroizing::new(String::new());
        (&mut self.reader).take(PASSPHRASE_BYTES_MAX).read_line(&mut line)?;
        Ok(Zeroizing::new(line.trim_end_matches(['\r', '\n']).to_string()))
    }

    fn restore(&mut self, before: &Termios) -> Result<()> {
        tcsetattr(&self.writer, SetArg::TCSAFLUSH, before).context("restore the terminal's settings")?;
        Ok(self.writer.write_all(b"\n")?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code<T>(outcome: Result<T>) -> Option<protocol::ErrorCode> {
        outcome.err()?.downcast_ref::<Refusal>().map(|refusal| refusal.code)
    }

    #[test]
    fn a_passphrase_is_the_first_line_of_its_file() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let file = directory.path().join("passphrase");
        assert_eq!(code(read_file(&file)), Some(error_code::KEY_PASSPHRASE_MISSING), "no such file");
        for (content, expected) in [
            ("correct horse battery", Some("correct horse battery")),
            ("first line \nsecond", Some("first line ")),
            ("windows\r\n", Some("windows")),
            ("", None),
            ("\nsecond", None),
            (&"x".repeat(1024), Some(&*"x".repeat(1024))),
            (&"x".repeat(1025), None),
        ] {
            std::fs::write(&file, content).expect("written");
            let read = read_file(&file);
            match expected {
                Some(expected) => assert_eq!(read.expect("read").as_str(), expected),
                None => assert_eq!(
                    code(read),
                    Some(error_code::KEY_PASSPHRASE_MISSING),
                    "{} bytes",
                    content.len()
                ),
            }
        }
    }

    #[test]
    fn a_new_passphrase_has_twelve_characters() {
        for (passphrase, accepted) in
            [("", false), ("elevenchars", false), ("twelve chars", true), ("ñandú ñandú!", true)]
        {
            assert_eq!(check_new(passphrase).is_ok(), accepted, "{passphrase}");
        }
    }
}
