//! Tests of listeners as named on a command line.

use crate::common::within_deadline;
use std::io::ErrorKind;
use std::os::fd::IntoRawFd;
use tokio::net::{TcpStream, UnixStream};

#[tokio::test]
async fn port_zero_is_chosen_by_the_kernel_and_a_taken_port_is_an_error() {
    let listener = overlay::listen::tcp("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    assert_ne!(address.port(), 0);
    let taken = overlay::listen::tcp(&address.to_string()).await.unwrap_err();
    assert_eq!(taken.kind(), ErrorKind::AddrInUse);
    assert!(taken.to_string().contains(&address.to_string()), "{taken}");
}

#[tokio::test]
async fn an_inherited_listener_is_adopted_once() {
    let inherited = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = inherited.local_addr().unwrap();
    let name = format!("fd:{}", inherited.into_raw_fd());
    let listener = overlay::listen::tcp(&name).await.unwrap();
    let client = TcpStream::connect(address).await.unwrap();
    within_deadline(listener.accept()).await.unwrap();
    drop(client);
    assert_eq!(overlay::listen::tcp(&name).await.unwrap_err().kind(), ErrorKind::InvalidInput);

    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("inherited.sock");
    let inherited = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let listener = overlay::listen::unix(&format!("fd:{}", inherited.into_raw_fd())).await.unwrap();
    let _client = UnixStream::connect(&path).await.unwrap();
    within_deadline(listener.accept()).await.unwrap();
}

#[tokio::test]
async fn anything_but_a_listening_socket_is_refused() {
    let file = tempfile::tempfile().unwrap().into_raw_fd();
    let (connected, _other) = std::os::unix::net::UnixStream::pair().unwrap();
    let connected = connected.into_raw_fd();
    let names = ["localhost", "127.0.0.1", "fd:", "fd:x", "fd:-1", "fd:0", "fd:2", "fd:99999", ""];
    let names = names.map(str::to_owned).into_iter();
    for name in names.chain([format!("fd:{file}"), format!("fd:{connected}")]) {
        assert!(overlay::listen::tcp(&name).await.is_err(), "{name}");
    }
    assert!(overlay::listen::unix(&format!("fd:{connected}")).await.is_err());
}

#[tokio::test]
async fn a_dead_socket_file_is_replaced_and_a_live_one_is_not() {
    use std::os::unix::fs::MetadataExt;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("agent.sock");
    let name = path.to_str().unwrap();
    let first = overlay::listen::unix(name).await.unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    assert_eq!(overlay::listen::unix(name).await.unwrap_err().kind(), ErrorKind::AddrInUse);
    drop(first);
    assert!(path.exists(), "the file outlives its listener");
    overlay::listen::unix(name).await.unwrap();
    // A file that is not a socket must not be removed.
    let plain = directory.path().join("plain");
    std::fs::write(&plain, "precious").unwrap();
    assert!(overlay::listen::unix(plain.to_str().unwrap()).await.is_err());
    assert_eq!(std::fs::read_to_string(&plain).unwrap(), "precious");
}
