//! Listeners as named on a command line: an address, a path, or `fd:N`.
//!
//! The parent process has bound `fd:N` and left it open, so that it knows every address before it starts
//! anything.

use nix::sys::socket::{AddressFamily, SockaddrLike, SockaddrStorage, getsockname, getsockopt, sockopt};
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use std::sync::Mutex;
use tokio::net::{TcpListener, UnixListener, UnixStream};

/// Listens on an address such as `127.0.0.1:0`, or adopts `fd:N`. With port 0 the kernel chooses one.
///
/// # Errors
/// The name is neither, the address is taken, or the descriptor is not a listening TCP socket.
pub async fn tcp(name: &str) -> io::Result<TcpListener> {
    if let Some(number) = name.strip_prefix("fd:") {
        let families = [AddressFamily::Inet, AddressFamily::Inet6];
        let listener = std::net::TcpListener::from(adopt(number, &families)?);
        listener.set_nonblocking(true)?;
        return TcpListener::from_std(listener);
    }
    let address: SocketAddr =
        name.parse().map_err(|_| invalid(format!("`{name}` is neither ADDRESS:PORT nor fd:N")))?;
    let bound = TcpListener::bind(address).await;
    bound.map_err(|error| io::Error::new(error.kind(), format!("listen on {address}: {error}")))
}

/// Listens on a unix socket at a path, readable by its owner only, or adopts `fd:N`. The socket file of a
/// dead process is replaced; one that answers is in use.
///
/// # Errors
/// The path is taken, or the descriptor is not a listening unix socket.
pub async fn unix(name: &str) -> io::Result<UnixListener> {
    if let Some(number) = name.strip_prefix("fd:") {
        let adopted = adopt(number, &[AddressFamily::Unix])?;
        let listener = std::os::unix::net::UnixListener::from(adopted);
        listener.set_nonblocking(true)?;
        return UnixListener::from_std(listener);
    }
    let path = Path::new(name);
    // Connecting to a plain file is refused too, but that file must not be removed.
    if fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket())
        && let Err(error) = UnixStream::connect(path).await
        && error.kind() == io::ErrorKind::ConnectionRefused
    {
        fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)
        .map_err(|error| io::Error::new(error.kind(), format!("listen on {name}: {error}")))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Takes ownership of an inherited descriptor, once in the life of the process.
fn adopt(number: &str, families: &[AddressFamily]) -> io::Result<OwnedFd> {
    static ADOPTED: Mutex<BTreeSet<RawFd>> = Mutex::new(BTreeSet::new());
    let number: RawFd = number
        .parse()
        .ok()
        .filter(|number| *number > 2)
        .ok_or_else(|| invalid(format!("`fd:{number}` names no descriptor above 2")))?;
    let mut adopted = ADOPTED.lock().expect("nothing panics while it holds this lock");
    let name: SockaddrStorage = getsockname(number)?;
    if !name.family().is_some_and(|family| families.contains(&family)) {
        return Err(invalid(format!("fd:{number} is a socket of another family")));
    }
    // SAFETY: `getsockname` has shown that it is open; it is borrowed for this one call.
    let listens = getsockopt(&unsafe { BorrowedFd::borrow_raw(number) }, sockopt::AcceptConn)?;
    if !listens {
        return Err(invalid(format!("fd:{number} does not listen")));
    }
    if !adopted.insert(number) {
        return Err(invalid(format!("fd:{number} is in use already")));
    }
    // SAFETY: it is an open listening socket that came from the parent process, so no other part of this one
    // owns it. `adopted` ensures that this function returns it only once.
    let socket = unsafe { OwnedFd::from_raw_fd(number) };
    // Child processes must not inherit it in turn.
    nix::fcntl::fcntl(&socket, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC))?;
    Ok(socket)
}

fn invalid(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, message)
}
