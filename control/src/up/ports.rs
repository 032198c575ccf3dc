//! Listening sockets of a local cluster, inherited by its daemons.
//!
//! They are bound before the circle is founded, so that the genesis can name every address. A later run binds
//! the same ports; a port that is taken is reported, not replaced.

use super::layout::{GATEWAY, Layout, NODES, REPLICAS};
use anyhow::{Context as _, Result};
use host::files;
use protocol::{Refusal, error_code};
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};

/// Every listening socket of the cluster, by name.
#[derive(Debug)]
pub(super) struct Ports {
    listeners: BTreeMap<String, TcpListener>,
}

/// Returns the names of all sockets, in the form `daemon/purpose`.
fn names() -> Vec<String> {
    let mut names = Vec::new();
    for id in 1..=REPLICAS {
        names.extend([format!("control-{id}/overlay"), format!("control-{id}/api")]);
    }
    for node in NODES {
        names.extend([format!("{node}/storage"), format!("{node}/metrics")]);
    }
    for purpose in ["workers", "api", "gateway-metrics", "metrics"] {
        names.push(format!("{GATEWAY}/{purpose}"));
    }
    names
}

impl Ports {
    /// Binds the ports of an earlier run, or free ones.
    ///
    /// # Errors
    /// Fails with `port-in-use` if another process holds a recorded port.
    pub(super) fn bind(layout: &Layout) -> Result<Self> {
        let recorded: BTreeMap<String, u16> = match std::fs::read(layout.ports()) {
            Ok(bytes) => serde_json::from_slice(&bytes).context("ports.json")?,
            Err(error) if error.kind() == ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(error.into()),
        };
        let mut listeners = BTreeMap::new();
        for name in names() {
            let port = recorded.get(&name).copied().unwrap_or(0);
            let listener = match TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
                Ok(listener) => listener,
                Err(error) if error.kind() == ErrorKind::AddrInUse => {
                    let message = format!(
                        "port {port}, which the genesis names for {name}, is taken; free it, or start \
                         afresh with --fresh"
                    );
                    return Err(Refusal::new(error_code::PORT_IN_USE, message).into());
                }
                Err(error) => return Err(error).with_context(|| format!("listen for {name}")),
            };
            listeners.insert(name, listener);
        }
        let ports = Self { listeners };
        ports.record(layout)?;
        Ok(ports)
    }

    fn record(&self, layout: &Layout) -> Result<()> {
        let mut table = BTreeMap::new();
        for (name, listener) in &self.listeners {
            table.insert(name, listener.local_addr()?.port());
        }
        files::write_atomically(&layout.ports(), &serde_json::to_vec_pretty(&table)?, 0o644)?;
        Ok(())
    }

    /// Returns the socket with this name.
    ///
    /// # Panics
    /// Panics if the name is not one of [`names`].
    #[must_use]
    pub(super) fn listener(&self, name: &str) -> &TcpListener {
        self.listeners.get(name).expect("every purpose has a socket")
    }

    /// Returns the address of the socket with this name.
    ///
    /// # Panics
    /// Panics like [`Ports::listener`].
    #[must_use]
    pub(super) fn address(&self, name: &str) -> SocketAddr {
        self.listener(name).local_addr().expect("a bound socket has an address")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns none if another process of this machine took a port while it was free.
    fn ports_of_an_earlier_run() -> Option<()> {
        let temporary = tempfile::tempdir().expect("a directory");
        let layout = Layout::claim(&temporary.path().join("cluster"), false).expect("an empty directory");
        let ports = Ports::bind(&layout).expect("free ports");
        let gateway = ports.address("gateway-1/api");
        drop(ports);
        assert_eq!(Ports::bind(&layout).ok()?.address("gateway-1/api"), gateway);
        let taken = TcpListener::bind(gateway).ok()?;
        let error = Ports::bind(&layout).expect_err("it is taken").to_string();
        assert!(error.starts_with("port-in-use: "), "{error}");
        if !error.contains(&gateway.port().to_string()) {
            return None;
        }
        drop(taken);
        assert_eq!(Ports::bind(&layout).ok()?.address("gateway-1/api"), gateway, "nothing was forgotten");
        Some(())
    }

    #[test]
    fn the_ports_of_an_earlier_run_are_bound_again_and_a_taken_one_is_named() {
        // Each attempt binds ports of its own. Other processes cannot plausibly take one in all of them.
        assert!((0..100).any(|_| ports_of_an_earlier_run().is_some()), "ports are never bound again");
    }
}
