//! Shard service: offers this node's directories to the circle's other nodes. Shards are encrypted, and only
//! admitted peers are served. What a peer may write or remove follows from the node's own verified history.

use super::config::StorageConfig;
use super::error::AgentError;
use host::Clock;
use human_chain::CircleState;
use model_store::{Context, ModelDecisions, NodeAddress, ShardService};
use overlay::{CancellationToken, Identity, Limits, PeerPolicy};
use protocol::governance::NodeRole;
use protocol::{ModelRoot, NodeId, NodeName};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::watch;

/// Serves the stores until `shutdown`. Admission is checked on every request, so a node that the circle
/// removes is rejected immediately.
pub(super) async fn serve(
    config: StorageConfig,
    limits: Limits,
    identity: Identity,
    circle: watch::Receiver<Arc<CircleState>>,
    clock: Clock,
    shutdown: CancellationToken,
) -> Result<(), AgentError> {
    let decisions = CircleDecisions { circle: circle.clone(), clock };
    let service = ShardService::new(&config.stores, Arc::new(decisions))?;
    let admitted = move |key: &overlay::PublicKey| circle.borrow().node_by_id(NodeId(*key)).is_some();
    let policy = PeerPolicy::new(admitted);
    overlay::serve(config.listener, &identity, policy, limits, service.router(), shutdown)
        .await
        .map_err(AgentError::Listener)
}

/// Decisions of the circle as this node verified them.
struct CircleDecisions {
    circle: watch::Receiver<Arc<CircleState>>,
    clock: Clock,
}

impl ModelDecisions for CircleDecisions {
    fn now(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(self.clock.wall().0)
    }

    /// Workers repair, and storage nodes import. A node that is a gateway alone does neither.
    fn is_writer(&self, peer: &overlay::PublicKey) -> bool {
        let circle = self.circle.borrow();
        let roles = circle.node_by_id(NodeId(*peer)).map(|node| &node.roles);
        roles.is_some_and(|roles| roles.contains(&NodeRole::Worker) || roles.contains(&NodeRole::Storage))
    }

    fn is_forgotten(&self, root: ModelRoot) -> bool {
        let now = self.clock.wall();
        self.circle.borrow().forgotten(&root).is_some_and(|forgotten| forgotten.ends_at() <= now)
    }

    fn is_named(&self, root: ModelRoot) -> bool {
        self.circle.borrow().services().any(|service| service.manifest.model.root == root)
    }
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
