//! Control socket: the gateway's agent pushes the route table here. A process that can open the socket
//! controls the routing, so only the owner may access its file.

use super::Gateway;
use super::table::Table;
use overlay::CancellationToken;
use overlay::descriptors::FrameError;
use protocol::gateway::{RouteTable, TableAccepted};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream};

/// Pause after a failed accept: long enough not to spin when descriptors run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Receives tables until `shutdown`.
pub(super) async fn serve(listener: UnixListener, gateway: Arc<Gateway>, shutdown: CancellationToken) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shutdown.cancelled() => return,
        };
        match accepted {
            Ok((stream, _)) => {
                tokio::spawn(serve_agent(stream, gateway.clone()));
            }
            Err(error) => {
                tracing::warn!(%error, "accepting the agent failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve_agent(stream: UnixStream, gateway: Arc<Gateway>) {
    if let Err(error) = answer_pushes(stream, &gateway).await {
        tracing::warn!(%error, "agent connection ended");
    }
}

async fn answer_pushes(stream: UnixStream, gateway: &Gateway) -> Result<(), FrameError> {
    let (mut sender, mut receiver) = overlay::descriptors::channel(stream);
    while let Some((pushed, _)) = receiver.receive::<RouteTable>().await? {
        let version = gateway.replace_table(pushed);
        let workers = u32::try_from(gateway.pool.links().len()).unwrap_or(u32::MAX);
        sender.send(&TableAccepted { version, workers }, &[]).await?;
    }
    Ok(())
}

impl Gateway {
    /// Installs a newer table; an older or invalid one is ignored. Returns the version in force.
    fn replace_table(&self, pushed: RouteTable) -> u64 {
        let pushed_version = pushed.version;
        let table = Table::new(pushed);
        self.table.send_if_modified(|current| match table {
            Ok(table) if table.version() > current.version() => {
                tracing::info!(version = table.version(), "route table installed");
                *current = Arc::new(table);
                true
            }
            Ok(_) => false,
            Err(reason) => {
                tracing::error!(version = pushed_version, reason, "route table rejected");
                false
            }
        });
        self.table.borrow().version()
    }
}
