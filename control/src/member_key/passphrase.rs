//! Passphrase of a key file: typed on the terminal without an echo, or read from a file that the variable
//! `QUORATE_PASSPHRASE_FILE` names. Arguments and variables are visible to other programs, so neither carries
//! a passphrase itself.

mod signals;

use anyhow::{Context as _, Result};
use nix::sys::signal::{Signal, raise};
use nix::sys::termios::{LocalFlags, SetArg, SpecialCharacterIndices, Termios, tcgetattr, tcsetattr};
use protocol::{Refusal, error_code};
use signals::SignalGuard;
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

    /// Asks without an echo. A signal ends the process only after the terminal has its echo back.
    fn ask(&mut self, question: &str) -> Result<Zeroizing<String>> {
        let before = tcgetattr(&self.writer).context("read the terminal's settings")?;
        let guard = SignalGuard::new(&self.writer, &before)?;
        let answer = self.ask_silently(question)?;
        drop(guard);
        match answer {
            Typed::Line(line) => Ok(line),
            Typed::Stop(signal) => {
                raise(signal).context("stop as the terminal asks")?;
                // The process handles the signal itself, and continues.
                let message = "the question for the passphrase was interrupted";
                Err(Refusal::new(error_code::KEY_PASSPHRASE_MISSING, message).into())
            }
        }
    }

    /// Asks without an echo. The terminal sends no signal for its keys while it is silent: a process that
    /// ended by one would leave it so. Its keys end the line instead.
    fn ask_silently(&mut self, question: &str) -> Result<Typed> {
        let before = tcgetattr(&self.writer).context("read the terminal's settings")?;
        let keys = StopKeys::of(&before);
        tcsetattr(&self.writer, SetArg::TCSAFLUSH, &keys.silenced(&before))
            .context("silence the terminal")?;
        let answer = self.typed(question, &keys);
        self.restore(&before)?;
        answer
    }

    fn typed(&mut self, question: &str, keys: &StopKeys) -> Result<Typed> {
        self.writer.write_all(question.as_bytes())?;
        read_typed((&mut self.reader).take(PASSPHRASE_BYTES_MAX), keys)
    }

    fn restore(&mut self, before: &Termios) -> Result<()> {
        tcsetattr(&self.writer, SetArg::TCSAFLUSH, before).context("restore the terminal's settings")?;
        Ok(self.writer.write_all(b"\n")?)
    }
}

/// Answer to a question.
enum Typed {
    Line(Zeroizing<String>),
    /// The key for this signal was pressed.
    Stop(Signal),
}

/// Keys of a terminal that stop a command: Ctrl-C, Ctrl-\ and Ctrl-Z, unless they were set otherwise.
struct StopKeys {
    interrupt: u8,
    quit: u8,
    suspend: u8,
}

impl StopKeys {
    fn of(settings: &Termios) -> Self {
        let key = |index: SpecialCharacterIndices| settings.control_chars[index as usize];
        Self {
            interrupt: key(SpecialCharacterIndices::VINTR),
            quit: key(SpecialCharacterIndices::VQUIT),
            suspend: key(SpecialCharacterIndices::VSUSP),
        }
    }

    /// Returns the settings without an echo and without signals, in which the first two keys end a line.
    fn silenced(&self, settings: &Termios) -> Termios {
        let mut silent = settings.clone();
        silent.local_flags.remove(LocalFlags::ECHO | LocalFlags::ISIG);
        silent.control_chars[SpecialCharacterIndices::VEOL as usize] = self.interrupt;
        silent.control_chars[SpecialCharacterIndices::VEOL2 as usize] = self.quit;
        silent
    }
}

/// Reads a line, or up to a key that stops the command. A suspension is not possible here: its key is
/// ignored.
fn read_typed(reader: impl BufRead, keys: &StopKeys) -> Result<Typed> {
    let mut line = Zeroizing::new(Vec::with_capacity(PASSPHRASE_BYTES_MAX as usize));
    for byte in reader.bytes() {
        match byte? {
            b'\n' => break,
            byte if byte == keys.interrupt => return Ok(Typed::Stop(Signal::SIGINT)),
            byte if byte == keys.quit => return Ok(Typed::Stop(Signal::SIGQUIT)),
            byte if byte == keys.suspend => {}
            byte => line.push(byte),
        }
    }
    let text = std::str::from_utf8(&line).context("the passphrase is not UTF-8")?;
    Ok(Typed::Line(Zeroizing::new(text.trim_end_matches('\r').to_string())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::pty::{OpenptyResult, openpty};
    use nix::sys::signal::kill;
    use nix::unistd::Pid;
    use std::os::fd::AsRawFd;
    use std::process::{Command, Stdio};

    const ASKS: &str = "member_key::passphrase::tests::asks_at_a_terminal_when_started_to";
    /// Variable that names the terminal of the program below.
    const TERMINAL: &str = "QUORATE_TEST_TERMINAL";

    /// Types these bytes at a silent terminal. Returns what was read, and the settings before and after.
    fn typed_at_a_terminal(bytes: &'static [u8]) -> (Typed, [Termios; 2]) {
        let OpenptyResult { master, slave } = openpty(None, None).expect("a terminal");
        let writer = File::from(slave);
        let (reader, watched) = (writer.try_clone().expect("open"), writer.try_clone().expect("open"));
        let mut terminal = Terminal { reader: BufReader::new(reader), writer };
        let before = tcgetattr(&watched).expect("settings");
        let typist = std::thread::spawn(move || {
            let mut master = File::from(master);
            let flags = || tcgetattr(&watched).expect("settings").local_flags;
            while flags().contains(LocalFlags::ECHO) {
                std::thread::yield_now();
            }
            assert!(!flags().contains(LocalFlags::ISIG), "no key ends the process");
            master.write_all(bytes).expect("typed");
            (master, watched)
        });
        let answer = terminal.ask_silently("passphrase: ").expect("an answer");
        let (_master, watched) = typist.join().expect("typed");
        (answer, [before, tcgetattr(&watched).expect("settings")])
    }

    /// The attack is the key itself: it ended the process between the two changes of the settings.
    #[test]
    fn a_key_that_stops_the_question_leaves_the_terminal_as_it_was() {
        for (bytes, line, stop) in [
            (&b"correct horse\n"[..], "correct horse", None),
            (b"corr\x1aect horse\r\n", "correct horse", None),
            (b"corr\x03", "", Some(Signal::SIGINT)),
            (b"\x03", "", Some(Signal::SIGINT)),
            (b"corr\x1c", "", Some(Signal::SIGQUIT)),
        ] {
            let (answer, [before, after]) = typed_at_a_terminal(bytes);
            match answer {
                Typed::Line(typed) => assert_eq!((typed.as_str(), None), (line, stop)),
                Typed::Stop(signal) => assert_eq!(Some(signal), stop),
            }
            assert!(after.local_flags.contains(LocalFlags::ECHO | LocalFlags::ISIG), "{bytes:?}");
            assert_eq!(after.local_flags, before.local_flags);
            assert_eq!(after.control_chars, before.control_chars);
        }
    }

    /// A program that asks at a terminal; started in any other way, it does nothing.
    #[test]
    fn asks_at_a_terminal_when_started_to() {
        let Some(path) = std::env::var_os(TERMINAL) else { return };
        let open = || File::options().read(true).write(true).open(&path).expect("a terminal");
        let mut terminal = Terminal { reader: BufReader::new(open()), writer: open() };
        terminal.ask("passphrase: ").map(drop).expect("an answer");
    }

    /// The attack: another program ends the command while it asks. The status is the one of a shell.
    #[test]
    fn a_signal_of_another_program_leaves_the_terminal_as_it_was() {
        let OpenptyResult { master: _master, slave } = openpty(None, None).expect("a terminal");
        let path = format!("/proc/self/fd/{}", slave.as_raw_fd());
        let path = std::fs::read_link(path).expect("the terminal's path");
        let before = tcgetattr(&slave).expect("settings");
        let mut command = Command::new(std::env::current_exe().expect("a path"));
        command.args(["--exact", ASKS, "--nocapture"]).env(TERMINAL, path);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().expect("started");
        let flags = || tcgetattr(&slave).expect("settings").local_flags;
        while flags().contains(LocalFlags::ECHO) {
            assert_eq!(child.try_wait().expect("a state"), None, "it ended before it asked");
            std::thread::yield_now();
        }
        kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM).expect("sent");
        assert_eq!(child.wait().expect("ended").code(), Some(143));
        let after = tcgetattr(&slave).expect("settings");
        assert_eq!(after.local_flags, before.local_flags);
        assert_eq!(after.control_chars, before.control_chars);
    }

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
