//! The process of an external signer: started with a fixed command, a short environment and no directory of
//! the caller; bounded in the bytes of its answer and in time.

use super::SignerCommand;
use super::message::ANSWER_BYTES_MAX;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use zeroize::Zeroizing;

/// Variables that a program gets: what it needs to find its person's desktop, terminal and agents. Everything
/// else stays here, tokens and names of passphrase files too.
pub(super) const ENVIRONMENT: &[&str] = &[
    "DBUS_SESSION_BUS_ADDRESS",
    "DISPLAY",
    "GPG_TTY",
    "HOME",
    "LANG",
    "LOGNAME",
    "PATH",
    "SSH_AUTH_SOCK",
    "TERM",
    "USER",
    "WAYLAND_DISPLAY",
    "XAUTHORITY",
    "XDG_RUNTIME_DIR",
];
/// Interval in milliseconds at which the limit of time is checked.
const TICK_MS: u16 = 50;

/// A child that does not outlive its use.
struct SignerProcess(Child);

impl Drop for SignerProcess {
    fn drop(&mut self) {
        // A child that has ended already is the desired result.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Writes a request to a new process of this command, and returns what it answers until it ends.
///
/// `expired` says whether the limit of time is reached; it is asked again and again.
///
/// # Errors
/// Returns the reason for people: the program is unfit, does not start, ends with an error, writes too much,
/// or is late.
pub(super) fn exchange(
    command: &SignerCommand,
    request: &[u8],
    mut expired: impl FnMut() -> bool,
) -> Result<Zeroizing<Vec<u8>>, String> {
    check_program(&command.program)?;
    let mut child = start(command)?;
    let mut stdin = child.0.stdin.take();
    let mut stdout = child.0.stdout.take().ok_or("has no standard output")?;
    stdin.as_ref().map_or(Ok(()), unblock)?;
    unblock(&stdout)?;
    let mut rest = request;
    let mut answer = Zeroizing::new(Vec::with_capacity(ANSWER_BYTES_MAX + 1));
    loop {
        if expired() {
            return Err("did not answer in time; it was ended".into());
        }
        wait(stdin.as_ref(), &stdout)?;
        if stdin.as_mut().is_some_and(|pipe| write(pipe, &mut rest)) {
            // Its end marks the request as complete.
            stdin = None;
        }
        if read(&mut stdout, &mut answer)? {
            break;
        }
    }
    drop(stdin);
    loop {
        match child.0.try_wait().map_err(|error| format!("is lost ({error})"))? {
            Some(status) if status.success() => return Ok(answer),
            Some(status) => return Err(format!("ended with {status}")),
            None if expired() => return Err("did not end in time; it was ended".into()),
            None => std::thread::sleep(std::time::Duration::from_millis(1)),
        }
    }
}

/// Checks that the file is a program that no other user can replace by writing to it.
fn check_program(program: &str) -> Result<(), String> {
    let metadata = std::fs::metadata(program).map_err(|error| format!("cannot be started ({error})"))?;
    let mode = metadata.permissions().mode();
    if !metadata.is_file() || mode & 0o111 == 0 {
        return Err("is no program".into());
    }
    if mode & 0o022 != 0 {
        return Err(format!("other users can write to it (mode {:o})", mode & 0o777));
    }
    Ok(())
}

/// Starts the program. Its messages for people go to the terminal; the directory is the root, so that no
/// path is relative to a directory in which other people's files may be.
fn start(command: &SignerCommand) -> Result<SignerProcess, String> {
    let variables = ENVIRONMENT.iter().filter_map(|name| Some((name, std::env::var_os(name)?)));
    let child = Command::new(&command.program)
        .args(&command.arguments)
        .env_clear()
        .envs(variables)
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn();
    child.map(SignerProcess).map_err(|error| format!("cannot be started ({error})"))
}

fn unblock(pipe: &impl AsFd) -> Result<(), String> {
    let set = fcntl(pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK));
    set.map(drop).map_err(|error| format!("cannot be reached ({error})"))
}

/// Waits until a pipe is ready, at most for a tick.
fn wait(stdin: Option<&ChildStdin>, stdout: &ChildStdout) -> Result<(), String> {
    let mut pipes = vec![PollFd::new(stdout.as_fd(), PollFlags::POLLIN)];
    pipes.extend(stdin.map(|pipe| PollFd::new(pipe.as_fd(), PollFlags::POLLOUT)));
    match poll(&mut pipes, PollTimeout::from(TICK_MS)) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
        Err(error) => Err(format!("cannot be reached ({error})")),
    }
}

/// Writes as much as the pipe takes; returns whether it is done with. A program may answer without reading
/// all of its request: the answer is verified, so nothing depends on it.
fn write(pipe: &mut ChildStdin, rest: &mut &[u8]) -> bool {
    while !rest.is_empty() {
        match pipe.write(rest) {
            Ok(count) => *rest = &rest[count..],
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return error.kind() != ErrorKind::WouldBlock,
        }
    }
    true
}

/// Reads what the pipe has; returns whether it has ended.
fn read(pipe: &mut ChildStdout, answer: &mut Vec<u8>) -> Result<bool, String> {
    let mut chunk = Zeroizing::new([0; 4096]);
    loop {
        match pipe.read(&mut *chunk) {
            Ok(0) => return Ok(true),
            Ok(count) if answer.len() + count > ANSWER_BYTES_MAX => {
                return Err(format!("writes more than {ANSWER_BYTES_MAX} bytes; it was ended"));
            }
            Ok(count) => answer.extend_from_slice(&chunk[..count]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(format!("cannot be read ({error})")),
        }
    }
}
