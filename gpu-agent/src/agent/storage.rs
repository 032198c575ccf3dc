//! Shard service: offers this node's directories to the circle's other nodes. Shards are encrypted, and only
//! admitted peers are served.

use super::config::StorageConfig;
use super::error::AgentError;
use human_chain::CircleState;
use model_store::{Context, NodeAddress, ShardService};
use overlay::{CancellationToken, Identity, Limits, PeerPolicy};
use protocol::{NodeId, NodeName};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::watch;

/// Serves the stores until `shutdown`. Admission is checked on every request, so a node that the circle
/// removes is rejected immediately.
pub(super) async fn serve(
    config: StorageConfig,
    limits: Limits,
    identity: Identity,
    circle: watch::Receiver<Arc<CircleState>>,
    shutdown: CancellationToken,
) -> Result<(), AgentError> {
    let service = ShardService::new(&config.stores)?;
    let admitted = move |key: &overlay::PublicKey| circle.borrow().node_by_id(NodeId(*key)).is_some();
    let policy = PeerPolicy::new(admitted);
    overlay::serve(config.listener, &identity, policy, limits, service.router(), shutdown)
        .await
        .map_err(AgentError::Listener)
}

/// Returns the context for opening stores: local ones as directories, other nodes' at their admitted
/// addresses.
pub(super) fn context(
    identity: &Identity,
    name: NodeName,
    own: BTreeMap<String, PathBuf>,
    circle: watch::Receiver<Arc<CircleState>>,
) -> Context {
    let resolve = move |name: &NodeName| {
        let circle = circle.borrow().clone();
        let node = circle.node(name)?;
        let address = node.storage.as_ref()?.address.parse().ok()?;
        Some(NodeAddress { address, key: node.id.0 })
    };
    Context::new().with_nodes(identity.clone(), resolve).with_own_stores(name, own)
}
