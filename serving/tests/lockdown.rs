//! Tests of the gateway's system call filter, from inside, in a separate process because it cannot be undone.
//! Each call has a positive control: the same call before the filter.

#![allow(unsafe_code)]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::process::Command;
use std::sync::mpsc;

/// Environment variable that is set in the process under the filter.
const PROBE: &str = "QUORATE_LOCKDOWN_PROBE";

#[test]
fn no_connection_leaves_once_the_filter_is_installed() {
    if std::env::var_os(PROBE).is_some() {
        return probe();
    }
    let output = Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", "no_connection_leaves_once_the_filter_is_installed", "--nocapture"])
        .env(PROBE, "1")
        .output()
        .expect("it starts");
    let text =
        String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

/// Returns the result of a system call: its value, or the error's number.
fn outcome(result: libc::c_long) -> Result<libc::c_long, i32> {
    if result < 0 { Err(std::io::Error::last_os_error().raw_os_error().unwrap_or(0)) } else { Ok(result) }
}

fn probe() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind works before");
    let address = listener.local_addr().expect("bound");
    let mut client = TcpStream::connect(address).expect("connect works before");
    assert!(Command::new("true").status().is_ok(), "execve works before");
    assert_eq!(send_message(&client), Ok(0), "sendmsg works before");
    let (go, wait) = mpsc::channel::<()>();
    // The filter applies to threads that exist before it, too.
    let elder = std::thread::spawn(move || {
        wait.recv().expect("told to go");
        denied_calls()
    });
    serving::lockdown::deny_connections().expect("the filter is installed");
    go.send(()).expect("the thread waits");
    for (name, result) in elder.join().expect("no panic").into_iter().chain(denied_calls()) {
        assert_eq!(result, Err(libc::EPERM), "{name}");
    }
    assert!(TcpListener::bind("127.0.0.1:0").is_err() && TcpStream::connect(address).is_err());
    assert!(Command::new("true").status().is_err(), "execve is denied");
    assert_eq!(send_message(&client), Err(libc::EPERM));
    assert_eq!(send_to(&client, Some(address), 0), Err(libc::EPERM), "an address");
    assert_eq!(send_to(&client, None, libc::MSG_FASTOPEN), Err(libc::EPERM), "fast open");
    assert_eq!(reconnect(&client), Err(libc::EPERM), "AF_UNSPEC");
    // Calls that a gateway needs.
    let (mut accepted, _) = listener.accept().expect("accept works");
    assert_eq!(send_to(&client, None, 0), Ok(1));
    client.write_all(b"y").expect("write works");
    let mut bytes = [0; 2];
    accepted.read_exact(&mut bytes).expect("read works");
    assert_eq!(&bytes, b"xy");
    std::thread::spawn(|| {}).join().expect("threads work");
}

/// Returns the results of calls that are denied with any arguments.
fn denied_calls() -> Vec<(&'static str, Result<libc::c_long, i32>)> {
    let calls = [
        ("socket", libc::SYS_socket),
        ("listen", libc::SYS_listen),
        ("io_uring_setup", libc::SYS_io_uring_setup),
        ("ptrace", libc::SYS_ptrace),
        ("process_vm_readv", libc::SYS_process_vm_readv),
        ("mount", libc::SYS_mount),
        ("unshare", libc::SYS_unshare),
        ("bpf", libc::SYS_bpf),
        // The same calls through the second numbering of x86-64.
        #[cfg(target_arch = "x86_64")]
        ("x32 socket", libc::SYS_socket | 0x4000_0000),
    ];
    let call = |(name, number)| {
        // SAFETY: six zeros are valid arguments of each: they fail, without the filter too, and touch
        // nothing.
        let result = unsafe { libc::syscall(number, 0, 0, 0, 0, 0, 0) };
        (name, outcome(result))
    };
    calls.into_iter().map(call).collect()
}

fn send_message(socket: &TcpStream) -> Result<libc::c_long, i32> {
    // SAFETY: an all-zero header is an empty message without name, data or control.
    let header: libc::msghdr = unsafe { std::mem::zeroed() };
    // SAFETY: the header lives through the call.
    outcome(unsafe { libc::sendmsg(socket.as_raw_fd(), &header, 0) } as libc::c_long)
}

fn send_to(
    socket: &TcpStream,
    address: Option<std::net::SocketAddr>,
    flags: i32,
) -> Result<libc::c_long, i32> {
    let name = address.map(nix::sys::socket::SockaddrStorage::from);
    let (pointer, length) = match &name {
        Some(name) => (std::ptr::from_ref(name).cast(), size_of::<libc::sockaddr_in>() as u32),
        None => (std::ptr::null(), 0),
    };
    // SAFETY: one byte and, where given, a whole address live through the call.
    let sent = unsafe { libc::sendto(socket.as_raw_fd(), b"x".as_ptr().cast(), 1, flags, pointer, length) };
    outcome(sent as libc::c_long)
}

fn reconnect(socket: &TcpStream) -> Result<libc::c_long, i32> {
    // SAFETY: an all-zero address is a valid one of the family AF_UNSPEC, which is zero.
    let address: libc::sockaddr = unsafe { std::mem::zeroed() };
    let length = size_of::<libc::sockaddr>() as u32;
    // SAFETY: the address lives through the call.
    outcome(unsafe { libc::connect(socket.as_raw_fd(), &address, length) }.into())
}
