//! Relay before the control replicas, by which a benchmark cuts one node off from all of them.
//!
//! The genesis names the relay's ports. A connection belongs to the process that holds its other end; while
//! that process is cut off, nothing passes in either direction, and its new connections are taken and never
//! answered. To the node this is a network that drops every packet.

use anyhow::Result;
use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// A relay of all replicas.
pub(super) struct Relay {
    /// Ports at which the replicas are reached.
    pub(super) ports: Vec<u16>,
    /// Processes that are cut off.
    cut: watch::Sender<BTreeSet<u32>>,
}

impl Relay {
    /// Opens a port for each of these ports of replicas.
    pub(super) async fn open(replicas: &[u16]) -> Result<Self> {
        let (cut, _) = watch::channel(BTreeSet::new());
        let mut ports = Vec::new();
        for replica in replicas {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
            ports.push(listener.local_addr()?.port());
            tokio::spawn(accept(listener, *replica, cut.subscribe()));
        }
        Ok(Self { ports, cut })
    }

    /// Cuts a process off from all replicas.
    pub(super) fn cut(&self, process: u32) {
        self.cut.send_modify(|cut| {
            cut.insert(process);
        });
    }

    /// Lets a process reach the replicas again. Its connections of that time break.
    pub(super) fn heal(&self, process: u32) {
        self.cut.send_modify(|cut| {
            cut.remove(&process);
        });
    }
}

async fn accept(listener: TcpListener, replica: u16, cut: watch::Receiver<BTreeSet<u32>>) {
    while let Ok((stream, peer)) = listener.accept().await {
        tokio::spawn(relay(stream, peer, replica, cut.clone()));
    }
}

async fn relay(mut near: TcpStream, peer: SocketAddr, replica: u16, mut cut: watch::Receiver<BTreeSet<u32>>) {
    let is_cut = |cut: &BTreeSet<u32>| cut.iter().any(|process| holds(*process, peer.port()));
    if !is_cut(&cut.borrow_and_update()) {
        let Ok(mut far) = TcpStream::connect((Ipv4Addr::LOCALHOST, replica)).await else { return };
        // Handshakes and small requests are what is measured.
        let _ = (near.set_nodelay(true), far.set_nodelay(true));
        let copying = copy_bidirectional(&mut near, &mut far);
        tokio::pin!(copying);
        loop {
            tokio::select! {
                _ = &mut copying => return,
                changed = cut.changed() => match changed {
                    Err(_) => return,
                    Ok(()) if is_cut(&cut.borrow_and_update()) => break,
                    Ok(()) => {}
                }
            }
        }
        // Both ends stay open, and nothing passes until the process is no longer cut off.
        let _ = cut.wait_for(|cut| !is_cut(cut)).await;
        return;
    }
    let _ = cut.wait_for(|cut| !is_cut(cut)).await;
}

/// Returns whether a process holds the end of a TCP connection that has this local port.
fn holds(process: u32, port: u16) -> bool {
    let table = std::fs::read_to_string(format!("/proc/{process}/net/tcp")).unwrap_or_default();
    let inodes: BTreeSet<String> = table.lines().skip(1).filter_map(|line| inode_of(line, port)).collect();
    let descriptors = std::fs::read_dir(format!("/proc/{process}/fd")).into_iter().flatten().flatten();
    let links = descriptors.filter_map(|entry| std::fs::read_link(entry.path()).ok());
    links.filter_map(|link| link.to_str().map(str::to_string)).any(|link| {
        let inode = link.strip_prefix("socket:[").and_then(|rest| rest.strip_suffix(']'));
        inode.is_some_and(|inode| inodes.contains(inode))
    })
}

/// Returns the inode in a line of `/proc/net/tcp` whose local port is this one.
fn inode_of(line: &str, port: u16) -> Option<String> {
    let mut fields = line.split_whitespace();
    let (_, local) = fields.nth(1)?.split_once(':')?;
    (u16::from_str_radix(local, 16).ok()? == port).then(|| fields.nth(7).map(str::to_string))?
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// A process that is cut off gets no byte, keeps its connection, and reaches the replica again later.
    #[tokio::test]
    async fn nothing_passes_for_a_process_that_is_cut_off() {
        let replica = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let port = replica.local_addr().expect("bound").port();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = replica.accept().await {
                tokio::spawn(async move {
                    let mut byte = [0];
                    while stream.read_exact(&mut byte).await.is_ok() {
                        stream.write_all(&byte).await.expect("echoed");
                    }
                });
            }
        });
        let relay = Relay::open(&[port]).await.expect("open");
        let connect = async || {
            TcpStream::connect((Ipv4Addr::LOCALHOST, relay.ports[0])).await.expect("the relay accepts")
        };
        let mut stream = connect().await;
        stream.write_all(b"a").await.expect("sent");
        assert_eq!(stream.read_u8().await.expect("echoed"), b'a');
        let own = std::process::id();
        relay.cut(own);
        let (mut second, pause) = (connect().await, Duration::from_millis(200));
        for stream in [&mut stream, &mut second] {
            stream.write_all(b"b").await.expect("buffered");
            assert!(tokio::time::timeout(pause, stream.read_u8()).await.is_err(), "no byte and no end");
        }
        relay.heal(own);
        assert!(stream.read_u8().await.is_err() && second.read_u8().await.is_err(), "both broke");
        let mut third = connect().await;
        third.write_all(b"c").await.expect("sent");
        assert_eq!(third.read_u8().await.expect("echoed"), b'c');
    }
}
