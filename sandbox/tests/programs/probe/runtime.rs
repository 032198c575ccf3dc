//! A minimal well-behaved worker, for the test that a real one's needs pass the sandbox's filter. It uses a
//! runtime with threads and timers, signals, randomness, and a passed TCP connection that it answers on.

use crate::own;
use protocol::worker::WORKER_SOCKET_FD;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::signal::unix::{SignalKind, signal};

/// Echoes on every TCP connection that is passed to it; SIGTERM ends it with status 3.
pub(crate) fn run() -> io::Result<()> {
    let seed = u64::from_le_bytes(host::random::random_bytes());
    let threads = std::thread::available_parallelism()?;
    println!("{threads} threads, seed {seed:016x}");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let serving = tokio::task::spawn_blocking(serve);
        tokio::select! {
            _ = terminate.recv() => std::process::exit(3),
            served = serving => served?,
        }
    })
}

fn serve() -> io::Result<()> {
    let listener = UnixListener::from(OwnedFd::from(own(WORKER_SOCKET_FD)));
    for connection in listener.incoming() {
        let connection = connection?;
        while let Some((_, passed)) = crate::request(&connection)? {
            let tcp = std::net::TcpStream::from(passed.ok_or(io::ErrorKind::InvalidData)?);
            tcp.set_nonblocking(true)?;
            tokio::runtime::Handle::current().spawn(echo(tcp));
        }
    }
    Ok(())
}

async fn echo(tcp: std::net::TcpStream) -> io::Result<()> {
    let mut tcp = tokio::net::TcpStream::from_std(tcp)?;
    let mut bytes = [0; 4096];
    loop {
        let length = tcp.read(&mut bytes).await?;
        if length == 0 {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
        tcp.write_all(&bytes[..length]).await?;
    }
}
