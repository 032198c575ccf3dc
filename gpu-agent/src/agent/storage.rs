//! Shard service: offers this node's directories to the circle's other nodes. Shards are encrypted, and only
//! admitted peers are served. The rights to write and remove follow from the node's own verified history.

use super::config::StorageConfig;
use super::error::AgentError;
use host::Clock;
use human_chain::CircleState;
use model_store::{Context, ModelDecisions, NodeAddress, ShardService};
use overlay::{CancellationToken, Identity, Limits, PeerPolicy, StreamHandler};
use protocol::governance::NodeRole;
use protocol::manifest::ServiceManifest;
use protocol::{ModelRoot, NodeId, NodeName};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::watch;

/// Serves the stores, and the links of gangs beside them, until `shutdown`. Admission is checked on every
/// request, so a node that the circle removes is rejected immediately.
pub(super) async fn serve(
    (config, limits): (StorageConfig, Limits),
    identity: Identity,
    circle: watch::Receiver<Arc<CircleState>>,
    clock: Clock,
    gangs: StreamHandler,
    shutdown: CancellationToken,
) -> Result<(), AgentError> {
    let decisions = CircleDecisions { circle: circle.clone(), clock };
    let service = ShardService::new(&config.stores, Arc::new(decisions))?;
    let admitted = move |key: &overlay::PublicKey| circle.borrow().node_by_id(NodeId(*key)).is_some();
    let policy = PeerPolicy::new(admitted);
    overlay::serve_with_streams(config.listener, &identity, policy, limits, service.router(), gangs, shutdown)
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

    fn is_writer(&self, peer: &overlay::PublicKey) -> bool {
        self.circle.borrow().node_by_id(NodeId(*peer)).is_some_and(|node| has_writing_role(&node.roles))
    }

    fn is_forgotten(&self, root: ModelRoot) -> bool {
        let now = self.clock.wall();
        self.circle.borrow().forgotten(&root).is_some_and(|forgotten| forgotten.ends_at() <= now)
    }

    fn is_named(&self, root: ModelRoot) -> bool {
        let names = |manifest: &ServiceManifest| manifest.model.root == root;
        self.circle.borrow().services().any(|service| service.manifests().any(names))
    }
}

/// Returns whether a node of these roles imports and repairs models. A gateway alone does neither.
fn has_writing_role(roles: &BTreeSet<NodeRole>) -> bool {
    roles.contains(&NodeRole::Worker) || roles.contains(&NodeRole::Storage)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::core::testing::{NOW, TestCircle, admission, service};
    use protocol::governance::Change;
    use protocol::manifest::ModelChoice;
    use protocol::{BootTime, Digest, PublicKey};

    #[test]
    fn a_node_that_is_a_gateway_alone_writes_nothing() {
        use NodeRole::{Gateway, Storage, Worker};
        for (roles, expected) in [
            (vec![Worker], true),
            (vec![Storage], true),
            (vec![Gateway, Storage], true),
            (vec![Gateway], false),
        ] {
            assert_eq!(has_writing_role(&roles.iter().copied().collect()), expected, "{roles:?}");
        }
    }

    /// Every decision that a store obeys is read from the verified history, which a client cannot alter.
    #[tokio::test(start_paused = true)]
    async fn a_store_obeys_the_decisions_of_the_nodes_own_history() {
        let identity = Identity::from_seed(&[7; 32]);
        let encryption = human_chain::MemberSecret::generate(&[9; 64]).public().encryption;
        let node = admission("node-1", &identity, encryption);
        let mut world = TestCircle::new(vec![node], &["127.0.0.1:1".into()], NOW);
        let (used, spare) = (ModelRoot(Digest::of(b"used")), ModelRoot(Digest::of(b"spare")));
        world.deploy(&service("chat", used, 1));
        let (sender, circle) = watch::channel(Arc::new(world.state.clone()));
        let decisions = CircleDecisions { circle, clock: Clock::of_runtime(BootTime(0), NOW) };
        assert!(decisions.is_writer(&identity.public_key()) && !decisions.is_writer(&PublicKey([9; 32])));
        assert!(decisions.is_named(used) && !decisions.is_named(spare));
        assert!(!decisions.is_forgotten(spare), "the circle has decided nothing");
        let model = ModelChoice { name: "spare".parse().expect("a name"), root: spare };
        world.decide(Change::ForgetModel { model, grace_seconds: 60 });
        assert!(!decisions.is_forgotten(spare), "this node has not verified the decision yet");
        sender.send_replace(Arc::new(world.state.clone()));
        assert!(!decisions.is_forgotten(spare), "the grace period runs");
        decisions.clock.step_wall(60_000);
        assert!(decisions.is_forgotten(spare) && !decisions.is_forgotten(used));
    }
}
