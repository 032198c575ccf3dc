//! Needs of ordinary programs in a process sandbox. Each need is met inside, or the sandbox is too narrow.

use crate::call::{address, call, in_a_child};
use crate::rank::owned;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream, ToSocketAddrs, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::process::{Command, Stdio};

type Need = (&'static str, fn() -> io::Result<()>);

const NEEDS: &[Need] = &[
    ("fork", || in_a_child(|| Ok(())).map_err(io::Error::from_raw_os_error)),
    ("execute", execute),
    ("search-path", search_path),
    ("thread", thread),
    ("write-scratch", || write_and_rename("/scratch")),
    ("write-tmp", || write_and_rename("/tmp")),
    ("write-shared-memory", || write_and_rename("/dev/shm")),
    ("write-checkpoint", || write_and_rename("/checkpoint")),
    ("write-outputs", || write_and_rename("/outputs")),
    ("lock", lock),
    ("named-pipe", named_pipe),
    ("tcp", || tcp("127.0.0.1:0")),
    ("tcp-by-ipv6", || tcp("[::1]:0")),
    ("udp", udp),
    ("unix-socket", unix_socket),
    ("abstract-socket", abstract_socket),
    ("socket-options", socket_options),
    ("route-table", route_table),
    ("host-name", host_name),
    ("own-user", own_user),
    ("cpuinfo", || not_empty("/proc/cpuinfo")),
    ("meminfo", || not_empty("/proc/meminfo")),
    ("own-status", || not_empty("/proc/self/status")),
    ("thread-name", || fs::write("/proc/self/comm", "renamed")),
    ("standard-output", || File::options().write(true).open("/dev/stdout").map(drop)),
    ("devices", devices),
    ("signals", signals),
    ("working-directory", working_directory),
    ("read-artifact", || not_empty("/opt/open")),
    ("time-zone", || not_empty("/etc/localtime")),
    ("input", || not_empty("/data/input")),
    ("environment", || expect("RANK", std::env::var("RANK").is_ok_and(|rank| rank == "0"))),
];

/// Prints each need with `ok`, or with the error that it met.
pub(crate) fn run() -> io::Result<()> {
    for (name, need) in NEEDS {
        match need() {
            Ok(()) => println!("{name} ok"),
            Err(error) => println!("{name} failed: {error}"),
        }
    }
    Ok(())
}

/// Waits for SIGTERM, then writes a checkpoint and exits with status 0.
pub(crate) fn checkpoint_at_the_end() -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        println!("waiting");
        terminate.recv().await;
        fs::write("/checkpoint/step-7.part", "state")?;
        fs::rename("/checkpoint/step-7.part", "/checkpoint/step-7")
    })
}

fn expect(what: &str, holds: bool) -> io::Result<()> {
    if holds { Ok(()) } else { Err(io::Error::other(what.to_string())) }
}

fn not_empty(path: &str) -> io::Result<()> {
    let bytes = fs::read(path)?;
    expect("it is empty", !bytes.is_empty())
}

fn execute() -> io::Result<()> {
    let status = Command::new("/usr/bin/probe").args(["rank", "exit", "7"]).status()?;
    expect("another status", status.code() == Some(7))
}

fn search_path() -> io::Result<()> {
    let status = Command::new("probe").args(["rank", "exit", "0"]).status()?;
    expect("another status", status.success())
}

fn thread() -> io::Result<()> {
    let found = std::thread::spawn(|| 7).join();
    expect("another value", found.is_ok_and(|value| value == 7))
}

fn write_and_rename(directory: &str) -> io::Result<()> {
    let path = |name: &str| format!("{directory}/need/{name}");
    fs::create_dir(path(""))?;
    fs::write(path("part"), "content")?;
    File::open(path("part"))?.sync_all()?;
    fs::rename(path("part"), path("whole"))?;
    std::os::unix::fs::symlink("whole", path("link"))?;
    expect("another content", fs::read(path("link"))? == b"content")?;
    fs::remove_dir_all(path(""))
}

fn lock() -> io::Result<()> {
    let file = File::create("/scratch/lock")?;
    file.lock()?;
    file.unlock()
}

fn named_pipe() -> io::Result<()> {
    nix::unistd::mkfifo("/scratch/pipe", nix::sys::stat::Mode::S_IRWXU)?;
    fs::remove_file("/scratch/pipe")
}

fn tcp(address: &str) -> io::Result<()> {
    let listener = TcpListener::bind(address)?;
    let mut here = TcpStream::connect(listener.local_addr()?)?;
    let (mut there, _) = listener.accept()?;
    here.write_all(b"x")?;
    there.read_exact(&mut [0])
}

fn udp() -> io::Result<()> {
    let (here, there) = (UdpSocket::bind("127.0.0.1:0")?, UdpSocket::bind("127.0.0.1:0")?);
    here.send_to(b"x", there.local_addr()?)?;
    there.recv(&mut [0]).map(drop)
}

fn unix_socket() -> io::Result<()> {
    let listener = UnixListener::bind("/tmp/socket")?;
    let _connected = UnixStream::connect("/tmp/socket")?;
    listener.accept()?;
    fs::remove_file("/tmp/socket")
}

fn abstract_socket() -> io::Result<()> {
    let address = SocketAddr::from_abstract_name("of-this-sandbox")?;
    let listener = UnixListener::bind_addr(&address)?;
    let _connected = UnixStream::connect_addr(&address)?;
    listener.accept().map(drop)
}

fn socket_options() -> io::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let stream = TcpStream::connect(listener.local_addr()?)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(std::time::Duration::from_secs(1)))?;
    stream.set_ttl(9)
}

/// As the C library's `getifaddrs` does.
fn route_table() -> io::Result<()> {
    let (family, kind) = (libc::AF_NETLINK as usize, libc::SOCK_RAW as usize);
    let socket = call(libc::SYS_socket, &[family, kind, libc::NETLINK_ROUTE as usize]);
    let socket: OwnedFd = socket.map(owned).map_err(io::Error::from_raw_os_error)?;
    let local = [libc::AF_NETLINK as u8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let bound = call(libc::SYS_bind, &[socket.as_raw_fd() as usize, address(&local), local.len()]);
    bound.map(drop).map_err(io::Error::from_raw_os_error)
}

/// The sandbox's own host name resolves, by `/etc/hosts`.
fn host_name() -> io::Result<()> {
    let name = nix::unistd::gethostname()?.to_string_lossy().into_owned();
    expect(&name, name == "rank-0")?;
    let found = (name.as_str(), 80).to_socket_addrs()?.any(|address| address.ip().to_string() == "10.77.0.1");
    expect("another address", found)
}

fn own_user() -> io::Result<()> {
    let (user, group) = (nix::unistd::getuid(), nix::unistd::getgid());
    expect("an id of 0", user.as_raw() == 1 && group.as_raw() == 1)?;
    let passwd = fs::read_to_string("/etc/passwd")?;
    expect("no entry", passwd.lines().any(|line| line.split(':').nth(2) == Some("1")))
}

fn devices() -> io::Result<()> {
    for path in ["/dev/zero", "/dev/random", "/dev/urandom", "/dev/full"] {
        File::open(path)?.read_exact(&mut [0; 4])?;
    }
    fs::write("/dev/null", "gone")?;
    let full = fs::write("/dev/full", "x").err().and_then(|error| error.raw_os_error());
    expect("a full device takes a byte", full == Some(libc::ENOSPC))
}

fn signals() -> io::Result<()> {
    let mut waiting = Command::new("/usr/bin/probe");
    let mut child = waiting.args(["rank", "say", ""]).stdout(Stdio::null()).spawn()?;
    child.kill()?;
    expect("it exited", child.wait()?.code().is_none())
}

fn working_directory() -> io::Result<()> {
    expect("another directory", std::env::current_dir()?.as_os_str() == "/scratch")
}
