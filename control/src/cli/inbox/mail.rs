//! Mail through a program like sendmail: the addresses are arguments, the message is its input.
//!
//! No shell is involved, and no text of others is in a header or an argument.

use super::announce::{Announcement, AttemptError};
use human_chain::show_time;
use protocol::foreign_text::line;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

/// Time for one attempt.
const ATTEMPT_LIMIT: Duration = Duration::from_secs(60);
/// Longest address in bytes (RFC 5321, section 4.5.3.1).
const ADDRESS_BYTES_MAX: usize = 254;
/// Most bytes of the program's complaint that are repeated.
const COMPLAINT_BYTES_MAX: usize = 200;

/// Address of a person: `local@domain`, in letters that mean nothing to a mail program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct MailAddress(String);

impl std::str::FromStr for MailAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let plain = |part: &str, more: &[u8]| {
            !part.is_empty()
                && !part.starts_with(['-', '.'])
                && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || more.contains(&byte))
        };
        let sound = text
            .split_once('@')
            .is_some_and(|(local, domain)| plain(local, b"!#$%&'*+-/=?^_`{|}~.") && plain(domain, b"-."));
        if sound && text.len() <= ADDRESS_BYTES_MAX {
            return Ok(Self(text.to_string()));
        }
        Err("not an address like alice@example.org".into())
    }
}

/// A mail program, and the persons that it writes to.
#[derive(Debug)]
pub(super) struct MailProgram {
    pub(super) program: PathBuf,
    pub(super) to: Vec<MailAddress>,
    /// First digits of the circle's id.
    pub(super) circle: String,
}

impl MailProgram {
    /// Returns the addresses of the persons.
    pub(super) fn addresses(&self) -> Vec<&str> {
        self.to.iter().map(|address| address.0.as_str()).collect()
    }

    /// Returns the program's arguments: a dot does not end the message, and no address is an option.
    fn arguments(&self) -> Vec<&str> {
        ["-i", "--"].into_iter().chain(self.addresses()).collect()
    }

    /// Returns the message (RFC 5322). Its id is that of the notice, so a repeated one is recognized.
    fn message(&self, announcement: &Announcement) -> String {
        let to = self.addresses();
        let (id, until) = (announcement.id, show_time(announcement.expires_at));
        let headers = [
            format!("To: {}", to.join(",\r\n ")),
            format!("Subject: [circle {}] {}", self.circle, announcement.title()),
            format!("Message-ID: <{}@{}.quorate.invalid>", announcement.notice(), self.circle),
            "Auto-Submitted: auto-generated".into(),
            "MIME-Version: 1.0".into(),
            "Content-Type: text/plain; charset=utf-8".into(),
            "Content-Transfer-Encoding: 8bit".into(),
        ];
        let body = [
            line(&announcement.change),
            String::new(),
            format!("words     {}", announcement.words.join(" ")),
            format!("until     {until}"),
            format!("page      {}", line(&announcement.link)),
            format!("terminal  quorate {} {}", announcement.stage.command(), id.short()),
            format!("id        {id}"),
        ];
        headers.join("\r\n") + "\r\n\r\n" + &body.join("\r\n") + "\r\n"
    }

    /// Hands a message to the program once.
    pub(super) async fn send(&self, announcement: &Announcement) -> Result<(), AttemptError> {
        let name = self.program.display();
        let failed = |reason: String| AttemptError::Retry(format!("`{name}`: {}", line(&reason)));
        let mut command = Command::new(&self.program);
        command.args(self.arguments()).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.kill_on_drop(true).spawn().map_err(|error| failed(error.to_string()))?;
        let input = child.stdin.take();
        let message = self.message(announcement);
        let handed = async move {
            if let Some(mut input) = input {
                // A program that ends early says why by its status.
                let _ = input.write_all(message.as_bytes()).await;
            }
            child.wait_with_output().await
        };
        match tokio::time::timeout(ATTEMPT_LIMIT, handed).await {
            Ok(Ok(output)) if output.status.success() => Ok(()),
            Ok(Ok(output)) => {
                let said = String::from_utf8_lossy(&output.stderr).into_owned();
                let said: String = said.trim().chars().take(COMPLAINT_BYTES_MAX).collect();
                Err(failed(format!("{}: {said}", output.status)))
            }
            Ok(Err(error)) => Err(failed(error.to_string())),
            Err(_) => Err(failed(format!("did not end within {} s", ATTEMPT_LIMIT.as_secs()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::inbox::stage::WaitingStage;
    use protocol::{Digest, Millis, ProposalId};

    fn announcement(change: &str) -> Announcement {
        Announcement {
            id: ProposalId(Digest::of(b"one")),
            stage: WaitingStage::Vote,
            words: ["badge", "pelican", "gecko", "iris", "barn", "velvet"],
            change: change.into(),
            expires_at: Millis(1_795_404_316_810),
            link: "https://one.example.org/console/proposals/x".into(),
            open_questions: 0,
        }
    }

    fn program(path: &str) -> MailProgram {
        let to = ["alice@example.org", "bob@example.org"].map(|to| to.parse().expect("an address"));
        MailProgram { program: path.into(), to: to.into(), circle: "7f3a90c2".into() }
    }

    /// Attack: an address is an option, a header or a command.
    #[test]
    fn only_plain_addresses_are_taken() {
        for sound in ["alice@example.org", "a.b+c@localhost", "x_y@mail-1.example.org"] {
            assert_eq!(sound.parse::<MailAddress>().map(|address| address.0), Ok(sound.to_string()));
        }
        for hostile in [
            "",
            "alice",
            "@example.org",
            "alice@",
            "-oQ/tmp@example.org",
            "alice@-Cfile",
            "a b@example.org",
            "alice@example.org\nBcc: eve@example.org",
            "alice@example.org,eve@example.org",
            "alice@example.org@evil.example",
            "\"|sh\"@example.org",
            "älice@example.org",
        ] {
            assert!(hostile.parse::<MailAddress>().is_err(), "{hostile:?}");
        }
    }

    /// Attack: the text of a proposal adds a header, or ends the message.
    #[test]
    fn a_message_has_its_headers_and_no_others() {
        let hostile = "Start it.\r\n\r\n.\r\nBcc: eve@example.org \u{202e}\u{1b}[2J";
        let message = program("sendmail").message(&announcement(hostile));
        let (headers, body) = message.split_once("\r\n\r\n").expect("a blank line");
        assert!(headers.is_ascii() && !headers.contains("Bcc"), "{headers}");
        assert!(
            headers.starts_with("To: alice@example.org,\r\n bob@example.org\r\nSubject: [circle 7f3a90c2] ")
        );
        assert!(
            body.starts_with("Start it.\\r\\n\\r\\n.\\r\\nBcc: eve@example.org \\u{202e}\\u{1b}[2J\r\n"),
            "{body}"
        );
        assert!(body.lines().all(|line| !line.starts_with('.') && line.len() < 998), "{body}");
        for expected in
            ["badge pelican", "2026-11-23 03:25:16.810 UTC", "/console/proposals/x", "quorate approve"]
        {
            assert!(body.contains(expected), "{expected}: {body}");
        }
        let veto = Announcement { stage: WaitingStage::Veto, ..announcement("Remove bob.") };
        let veto = program("sendmail").message(&veto);
        assert!(veto.contains(" waits for a veto\r\n") && veto.contains("quorate reject "), "{veto}");
    }

    #[tokio::test]
    async fn the_program_gets_the_message_and_the_addresses_without_a_shell() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().expect("temporary directory");
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).expect("written");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("made executable");
            path.display().to_string()
        };
        let place = folder.path().display().to_string();
        let good = write(
            "good",
            &format!("#!/bin/sh\nprintf '%s ' \"$@\" > {place}/arguments\ncat > {place}/message\n"),
        );
        let sent = program(&good).send(&announcement("Start `touch x` $(touch y).")).await;
        assert_eq!(sent, Ok(()));
        let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).expect("written");
        assert_eq!(read("arguments"), "-i -- alice@example.org bob@example.org ");
        assert_eq!(read("message"), program(&good).message(&announcement("Start `touch x` $(touch y).")));
        let bad = write("bad", "#!/bin/sh\necho 'no such user' >&2\nexit 67\n");
        let refused = program(&bad).send(&announcement("Start it.")).await;
        let AttemptError::Retry(reason) = refused.expect_err("a failure") else {
            panic!("it may succeed later")
        };
        assert!(reason.contains("67") && reason.contains("no such user"), "{reason}");
        assert!(program(&format!("{place}/none")).send(&announcement("Start it.")).await.is_err());
    }
}
