//! Attempts to escape: their results outside a sandbox, and their targets on the host.

use super::Bench;
use serde::Deserialize;
use std::fs;
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::process::{Child, Command, Stdio};

/// Result of an attempt outside a sandbox: the positive control.
#[derive(Deserialize)]
pub enum Outside {
    Succeeds,
    SucceedsForRoot,
    FailsBy(Vec<i32>),
    FailsByForRoot(Vec<i32>),
}

impl Outside {
    /// Returns the results that are right for this user; none if there is no control for it.
    pub fn expected(&self, root: bool) -> Option<Vec<i32>> {
        match self {
            Self::Succeeds => Some(vec![0]),
            Self::SucceedsForRoot => root.then(|| vec![0]),
            Self::FailsBy(errors) => Some(errors.clone()),
            Self::FailsByForRoot(errors) => root.then(|| errors.clone()),
        }
    }
}

/// Targets on the host, alive while the attempts run: listeners, another process, and files of other people.
pub struct HostTargets {
    pub control: TcpListener,
    /// The targets as a probe reads them.
    pub values: serde_json::Value,
    victim: Child,
    _store: TcpListener,
    _sockets: [UnixListener; 2],
}

impl HostTargets {
    pub fn new(bench: &Bench) -> Self {
        let path = |name: &str| bench.directory.path().join(name);
        let listen = || TcpListener::bind("127.0.0.1:0").unwrap();
        let (control, store) = (listen(), listen());
        let secret = path("secret");
        fs::write(&secret, "for people of the host only").unwrap();
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o644)).unwrap();
        let name = format!("quorate-probe-{}", control.local_addr().unwrap().port());
        let hidden = SocketAddr::from_abstract_name(&name).unwrap();
        let sockets =
            [UnixListener::bind(path("other.sock")).unwrap(), UnixListener::bind_addr(&hidden).unwrap()];
        let victim = Command::new(&bench.probe).arg("victim").stdin(Stdio::piped()).spawn().unwrap();
        let values = serde_json::json!({
            "control": control.local_addr().unwrap(),
            "store": store.local_addr().unwrap(),
            "unix_path": path("other.sock"),
            "abstract_name": name,
            "victim": victim.id(),
            "secret": secret,
            "shared": path("shared"),
        });
        Self { control, values, victim, _store: store, _sockets: sockets }
    }
}

impl Drop for HostTargets {
    fn drop(&mut self) {
        let _ = self.victim.kill();
        let _ = self.victim.wait();
    }
}
