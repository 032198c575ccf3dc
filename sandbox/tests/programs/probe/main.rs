//! A hostile worker, for tests alone. Inside a sandbox it tries to escape; outside, without the guards, it
//! makes the same attempts to show that each would have succeeded. No part of the product starts it.

mod attempts;
mod call;
mod exhaust;
mod needs;
mod rank;
mod runtime;

use attempts::{ATTEMPTS, AttemptTargets};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use protocol::worker::{WORKER_MANIFEST_FD, WORKER_SOCKET_FD, WORKER_WEIGHTS_FD};
use std::io::{self, IoSliceMut, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};

fn main() {
    let mut arguments = std::env::args().skip(1);
    let status = match arguments.next().as_deref() {
        Some("sandbox-init") => sandbox::init::main(arguments),
        Some("worker") => run(inside(&arguments.next().unwrap_or_default())),
        Some("outside") => run(outside(&arguments.next().unwrap_or_default())),
        Some("rank") => run(rank::run(&arguments.collect::<Vec<_>>())),
        Some("victim") => run(victim()),
        Some("list") => run(list()),
        _ => {
            eprintln!("sandbox-probe is used by the tests of sandbox");
            2
        }
    };
    std::process::exit(status);
}

fn run(result: io::Result<()>) -> i32 {
    match result {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("sandbox-probe: {error}");
            1
        }
    }
}

/// Runs as a worker, with the descriptors at their fixed numbers and the targets in the manifest.
fn inside(mode: &str) -> io::Result<()> {
    println!("the probe runs as a worker, mode {mode:?}");
    match mode {
        "runtime" => return runtime::run(),
        mode if mode.starts_with("exhaust=") => return exhaust::run(&mode["exhaust=".len()..]),
        "exit-7" => std::process::exit(7),
        "metrics" => {
            let mut pipe = own(protocol::worker::WORKER_METRICS_FD);
            loop {
                pipe.write_all(
                    b"garbage\n{\"at\":1,\"requests_running\":2,\"requests_waiting\":0,\
                    \"requests_total\":9,\"prompt_tokens_total\":0,\"generation_tokens_total\":0,\
                    \"kv_cache_usage_permille\":0,\"time_to_first_token_p50_us\":0}\n",
                )?;
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
        }
        "metrics-read" => {
            let read = own(protocol::worker::WORKER_METRICS_FD).read(&mut [0; 64]);
            println!("reading its own numbers: {:?}", read.err().and_then(|error| error.raw_os_error()));
            loop {
                std::thread::park();
            }
        }
        "eat-memory" => {
            let mut eaten: Vec<Vec<u8>> = Vec::new();
            loop {
                eaten.push(vec![1; 1 << 20]);
            }
        }
        _ => {}
    }
    let mut text = String::new();
    own(WORKER_MANIFEST_FD).read_to_string(&mut text)?;
    let target = serde_json::from_str(&text)?;
    let listener = UnixListener::from(OwnedFd::from(own(WORKER_SOCKET_FD)));
    serve(&listener, &target, false)
}

/// Runs without a sandbox: makes the same attempts, each in a separate process that it may corrupt.
fn outside(path: &str) -> io::Result<()> {
    let target = serde_json::from_slice(&std::fs::read(format!("{path}.targets"))?)?;
    serve(&UnixListener::bind(path)?, &target, true)
}

/// Prints the attempts, for the test to compare with the results.
fn list() -> io::Result<()> {
    serde_json::to_writer(io::stdout(), ATTEMPTS).map_err(io::Error::other)
}

/// Runs as the victim of attempts until its standard input closes.
fn victim() -> io::Result<()> {
    io::stdin().read_to_end(&mut Vec::new()).map(drop)
}

/// Runs one attempt per line, with an optional descriptor, and answers `ok` or the number of the error.
fn serve(listener: &UnixListener, target: &AttemptTargets, apart: bool) -> io::Result<()> {
    for connection in listener.incoming() {
        let mut connection = connection?;
        while let Some((name, passed)) = request(&connection)? {
            let own_weights = WORKER_WEIGHTS_FD;
            let passed = passed.as_ref().map_or(own_weights, AsRawFd::as_raw_fd);
            let attempt = ATTEMPTS.iter().find(|attempt| attempt.name == name);
            let attempt = attempt.ok_or_else(|| io::Error::other(format!("no attempt {name}")))?;
            let result = if apart {
                call::in_a_child(|| (attempt.run)(target, passed))
            } else {
                (attempt.run)(target, passed)
            };
            let answer = result.map_or_else(|errno| errno.to_string(), |()| "ok".into());
            connection.write_all(format!("{answer}\n").as_bytes())?;
        }
    }
    Ok(())
}

fn request(connection: &UnixStream) -> io::Result<Option<(String, Option<OwnedFd>)>> {
    let mut bytes = [0; 256];
    let mut control = nix::cmsg_space!(RawFd);
    let mut buffers = [IoSliceMut::new(&mut bytes)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let descriptor = connection.as_raw_fd();
    let message = recvmsg::<()>(descriptor, &mut buffers, Some(&mut control), flags)?;
    let mut passed = None;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(numbers) = control {
            passed = numbers.into_iter().map(|number| OwnedFd::from(own(number))).next();
        }
    }
    let length = message.bytes;
    if length == 0 {
        return Ok(None);
    }
    let text = String::from_utf8_lossy(&bytes[..length]);
    Ok(Some((text.trim_end().to_string(), passed)))
}

fn own(descriptor: RawFd) -> std::fs::File {
    // SAFETY: each number was passed to this process by exec or by recvmsg for its sole use, and is taken
    // once.
    unsafe { std::fs::File::from_raw_fd(descriptor) }
}
