//! Step: lists the ports that the nodes have open, from the kernel's tables of every node's processes.
//!
//! An ordinary account may not read the descriptors of a sandbox, even under the same user. The tables of a
//! process's network namespace are readable by all accounts. If they list no open socket, the process has
//! opened none itself. An inherited socket from outside remains possible then, and this is reported.

use super::{Demonstration, NODES};
use crate::processes::{daemon, descendants};
use anyhow::{Context as _, Result, bail};
use nix::errno::Errno;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind};

/// Socket tables in `/proc/PID/net`, each with the `st` value of a socket that accepts traffic from any
/// sender.
///
/// For TCP the value is TCP_LISTEN; for UDP it is TCP_CLOSE, an unconnected socket
/// (include/net/tcp_states.h).
const TABLES: [(&str, &str); 4] = [("tcp", "0A"), ("tcp6", "0A"), ("udp", "07"), ("udp6", "07")];

/// The open ports of a process, as far as this account can determine them.
#[derive(Debug, PartialEq, Eq)]
enum OpenPorts {
    /// All ports that the process holds, from its descriptors.
    Held(BTreeSet<u16>),
    /// Descriptors closed to this account; no open socket in the network namespace.
    NoneInNamespace,
    /// Descriptors closed to this account; open sockets in the network namespace, or unreadable tables.
    Unknown,
}

/// Numbers of processes below the nodes' agents whose ports could not be listed completely.
#[derive(Debug, Default)]
struct Unseen {
    none_in_namespace: usize,
    unknown: usize,
}

impl Unseen {
    /// Returns the checks that were not possible, one sentence each.
    fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        if self.none_in_namespace > 0 {
            lines.push(format!(
                "not checked: the descriptors of {} of these processes, closed to an ordinary account; \
                 no socket is open in their network namespaces, but one could have been handed in",
                self.none_in_namespace
            ));
        }
        if self.unknown > 0 {
            lines.push(format!(
                "not checked: {} of these processes; this account may read neither their descriptors nor \
                 a network namespace of their own",
                self.unknown
            ));
        }
        lines
    }
}

pub(super) fn scan_ports(demonstration: &Demonstration) -> Result<()> {
    let own: BTreeMap<String, u16> =
        serde_json::from_slice(&std::fs::read(demonstration.directory.join("ports.json"))?)?;
    let (mut text, mut unseen) = (Vec::new(), Unseen::default());
    for node in NODES {
        let agent = daemon(demonstration.up, &demonstration.node(node))?;
        let workers = descendants(agent)?;
        let OpenPorts::Held(open) = open_ports(agent)? else {
            bail!("the descriptors of the agent of {node} cannot be read, though it runs under this account");
        };
        let allowed: BTreeSet<u16> = ["storage", "metrics"]
            .iter()
            .filter_map(|purpose| own.get(&format!("{node}/{purpose}")).copied())
            .collect();
        if open != allowed {
            bail!("{node} listens on {open:?}; {allowed:?} are its storage and loopback metrics");
        }
        for worker in &workers {
            match open_ports(*worker)? {
                OpenPorts::Held(open) if open.is_empty() => {}
                OpenPorts::Held(open) => bail!("process {worker} below {node} listens on {open:?}"),
                OpenPorts::NoneInNamespace => unseen.none_in_namespace += 1,
                OpenPorts::Unknown => unseen.unknown += 1,
            }
        }
        text.push(format!("{node} {} (and {} processes below it: none)", open.len(), workers.len()));
    }
    let own = "each node's own are shards over mutual TLS and loopback metrics";
    let mut lines = vec![format!("open ports: {}; {own}", text.join(", "))];
    lines.extend(unseen.lines());
    demonstration.say(lines.join("\n"));
    Ok(())
}

/// Returns the ports that a process holds and that accept traffic from any sender.
fn open_ports(pid: i32) -> Result<OpenPorts> {
    let table = |(table, state): (&str, &str)| {
        // A process that has ended, or a kernel without IPv6, has no such table.
        let text = std::fs::read_to_string(format!("/proc/{pid}/net/{table}")).ok()?;
        Some(text.lines().skip(1).filter_map(|line| open_socket(line, state)).collect::<Vec<_>>())
    };
    let tables: Vec<_> = TABLES.into_iter().map(table).collect();
    ports(&tables, descriptors(pid)).with_context(|| format!("list the descriptors of process {pid}"))
}

/// Returns the target of each descriptor of a process.
fn descriptors(pid: i32) -> io::Result<Vec<String>> {
    let mut targets = Vec::new();
    for descriptor in std::fs::read_dir(format!("/proc/{pid}/fd"))? {
        match std::fs::read_link(descriptor?.path()) {
            Ok(target) => targets.push(target.to_string_lossy().into_owned()),
            // The descriptor was closed during the scan.
            Err(error) if is_gone(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(targets)
}

/// Returns whether the error is the kernel's for a process or a descriptor that no longer exists.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == ErrorKind::NotFound || error.raw_os_error() == Some(Errno::ESRCH as i32)
}

/// Determines the open ports of a process from its socket tables (inode and port) and its descriptors.
fn ports(
    tables: &[Option<Vec<(String, u16)>>],
    descriptors: io::Result<Vec<String>>,
) -> io::Result<OpenPorts> {
    let mut sockets = tables.iter().flatten().flatten();
    let targets = match descriptors {
        Ok(targets) => targets,
        // The process has ended: no port is open.
        Err(error) if is_gone(&error) => return Ok(OpenPorts::Held(BTreeSet::new())),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            // Every kernel with a network has the first table; without it nothing was read.
            let read = tables.first().is_some_and(Option::is_some);
            let nothing = read && sockets.next().is_none();
            return Ok(if nothing { OpenPorts::NoneInNamespace } else { OpenPorts::Unknown });
        }
        Err(error) => return Err(error),
    };
    let by_inode: BTreeMap<&str, u16> = sockets.map(|(inode, port)| (inode.as_str(), *port)).collect();
    let inode = |target: &String| Some(target.strip_prefix("socket:[")?.strip_suffix(']')?.to_string());
    let held = targets.iter().filter_map(inode).filter_map(|inode| by_inode.get(inode.as_str()).copied());
    Ok(OpenPorts::Held(held.collect()))
}

/// Returns inode and port of a line in such a table, if the socket is in this state.
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
        let line = "   0: 0100007F:A366 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0 \
                    0 51211 1 0000000000000000 100 0 0 10 0";
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
        let OpenPorts::Held(open) = open_ports(own).expect("readable") else { panic!("its own descriptors") };
        assert!(open.contains(&port) && open.contains(&datagrams.0), "{open:?}");
    }

    #[test]
    fn a_process_closed_to_this_account_passes_only_with_nothing_open_in_its_namespace() {
        let socket = |inode: &str, port| (inode.to_string(), port);
        let (none, one) = (Some(vec![]), Some(vec![socket("7", 80), socket("8", 443)]));
        let closed = || Err(io::Error::from(ErrorKind::PermissionDenied));
        let held = |inodes: &[&str]| Ok(inodes.iter().map(|inode| format!("socket:[{inode}]")).collect());
        for (tables, descriptors, expected) in [
            (vec![none.clone(), none.clone()], closed(), OpenPorts::NoneInNamespace),
            (vec![none.clone(), None], closed(), OpenPorts::NoneInNamespace),
            (vec![none.clone(), one.clone()], closed(), OpenPorts::Unknown),
            (vec![None, None], closed(), OpenPorts::Unknown),
            (vec![one.clone()], held(&["8", "9"]), OpenPorts::Held(BTreeSet::from([443]))),
            (vec![one.clone()], held(&[]), OpenPorts::Held(BTreeSet::new())),
            (vec![one], Err(ErrorKind::NotFound.into()), OpenPorts::Held(BTreeSet::new())),
        ] {
            assert_eq!(ports(&tables, descriptors).expect("an answer"), expected, "{tables:?}");
        }
        assert!(ports(&[none], Err(ErrorKind::Other.into())).is_err(), "what is not understood is no pass");
    }

    #[test]
    fn what_was_not_checked_is_said() {
        assert_eq!(Unseen::default().lines(), Vec::<String>::new());
        let lines = Unseen { none_in_namespace: 6, unknown: 1 }.lines();
        assert!(lines.len() == 2 && lines.iter().all(|line| line.starts_with("not checked: ")), "{lines:?}");
    }
}
