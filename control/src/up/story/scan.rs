//! Which ports do the nodes really have open? Asked of the kernel, for every process of every node.

use super::Narrator;
use super::kill::descendants;
use crate::up::cluster::Cluster;
use crate::up::layout::NODES;
use anyhow::{Context as _, Result, bail};
use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;

/// Tables of sockets in `/proc/PID/net`, and the `st` of one that anybody may send to: TCP_LISTEN, and for
/// UDP an unconnected socket, TCP_CLOSE (include/net/tcp_states.h).
const TABLES: [(&str, &str); 4] = [("tcp", "0A"), ("tcp6", "0A"), ("udp", "07"), ("udp6", "07")];

pub(crate) fn scan_ports(cluster: &Cluster, narrator: &Narrator) -> Result<()> {
    let mut text = Vec::new();
    for node in NODES {
        let agent = cluster.pid(node)?;
        let workers = descendants(agent)?;
        let open = open_ports(i32::try_from(agent)?)?;
        let allowed: BTreeSet<u16> = ["storage", "metrics"]
            .iter()
            .map(|purpose| cluster.address(&format!("{node}/{purpose}")).port())
            .collect();
        if open != allowed {
            bail!("{node} listens on {open:?}; {allowed:?} are its storage and loopback metrics");
        }
        for worker in &workers {
            let open = open_ports(*worker)?;
            if !open.is_empty() {
                bail!("process {worker} below {node} listens on {open:?}");
            }
        }
        text.push(format!("{node} {} (and {} processes below it: none)", open.len(), workers.len()));
    }
    narrator.say(format!(
        "open ports: {}; each node's own are shards over mutual TLS and loopback metrics",
        text.join(", ")
    ));
    Ok(())
}

/// Ports of sockets that a process holds and anybody may send to.
fn open_ports(pid: i32) -> Result<BTreeSet<u16>> {
    let mut by_inode = BTreeMap::new();
    for (table, state) in TABLES {
        // A process that ended, or a kernel without IPv6, has no such table.
        let text = std::fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap_or_default();
        by_inode.extend(text.lines().skip(1).filter_map(|line| open_socket(line, state)));
    }
    let mut ports = BTreeSet::new();
    let descriptors = match std::fs::read_dir(format!("/proc/{pid}/fd")) {
        Ok(descriptors) => descriptors,
        // It ended: nothing is open.
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(ports),
        Err(error) => return Err(error).with_context(|| format!("list the descriptors of process {pid}")),
    };
    for descriptor in descriptors.filter_map(Result::ok) {
        let Ok(target) = std::fs::read_link(descriptor.path()) else { continue };
        let target = target.to_string_lossy();
        let inode = target.strip_prefix("socket:[").and_then(|rest| rest.strip_suffix(']'));
        if let Some(port) = inode.and_then(|inode| by_inode.get(inode)) {
            ports.insert(*port);
        }
    }
    Ok(ports)
}

/// Inode and port of a line of such a table, if it is in this state.
fn open_socket(line: &str, state: &str) -> Option<(String, u16)> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    (*fields.get(3)? == state).then_some(())?;
    let port = u16::from_str_radix(fields.get(1)?.rsplit(':').next()?, 16).ok()?;
    Some(((*fields.get(9)?).to_string(), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listening_line_gives_its_inode_and_port() {
        let line = "   0: 0100007F:A366 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 51211 1 0000000000000000 100 0 0 10 0";
        assert_eq!(open_socket(line, "0A"), Some(("51211".into(), 0xA366)));
        assert_eq!(open_socket(&line.replace(" 0A ", " 01 "), "0A"), None);
    }

    #[test]
    fn an_open_port_of_this_process_is_seen() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = socket.local_addr().expect("bound").port();
        let datagrams = std::net::UdpSocket::bind("127.0.0.1:0").expect("a free port");
        let datagrams = (datagrams.local_addr().expect("bound").port(), datagrams);
        let own = i32::try_from(std::process::id()).expect("a process id");
        let open = open_ports(own).expect("readable");
        assert!(open.contains(&port) && open.contains(&datagrams.0), "{open:?}");
    }
}
