//! Admitted nodes of a circle, found by name and by each of their keys.
//!
//! A history may admit thousands of nodes, and each admission asks whether another party has a key of the new
//! node. The index answers that for one key in logarithmic time, so that no decision walks all nodes.
//!
//! The nodes are shared: a copy of a state copies no admission.

use crate::form;
use protocol::governance::NodeAdmission;
use protocol::{Digest, NodeName};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Admitted nodes, and the index of their keys.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(from = "BTreeMap<NodeName, Arc<NodeAdmission>>", into = "BTreeMap<NodeName, Arc<NodeAdmission>>")]
pub(super) struct AdmittedNodes {
    by_name: BTreeMap<NodeName, Arc<NodeAdmission>>,
    /// Nodes by the digest of each key that they and their gateways have. A key is of one node.
    by_key: BTreeMap<Digest, Arc<NodeAdmission>>,
}

impl AdmittedNodes {
    /// Admits a node, in place of the node that has its name.
    pub(super) fn insert(&mut self, node: NodeAdmission) {
        let (name, node) = (node.name.clone(), Arc::new(node));
        self.remove(&name);
        self.list(&node);
        debug_assert_eq!(self.holder(&node.id.0.0), Some(&*node), "its identity leads to it");
        self.by_name.insert(name, node);
    }

    /// Removes the node with this name, if there is one.
    pub(super) fn remove(&mut self, name: &NodeName) {
        let Some(node) = self.by_name.remove(name) else { return };
        for key in form::node_keys(&node) {
            let listed = self.by_key.remove(&index_of(key));
            debug_assert!(listed.is_some_and(|holder| holder.name == *name), "a key is of one node");
        }
    }

    fn list(&mut self, node: &Arc<NodeAdmission>) {
        for key in form::node_keys(node) {
            self.by_key.insert(index_of(key), Arc::clone(node));
        }
    }

    /// Returns the node with this name.
    pub(super) fn get(&self, name: &NodeName) -> Option<&NodeAdmission> {
        self.by_name.get(name).map(|node| &**node)
    }

    /// Returns the node that has this key, or whose gateway has it.
    pub(super) fn holder(&self, key: &[u8]) -> Option<&NodeAdmission> {
        let holder = self.by_key.get(&index_of(key)).map(|node| &**node);
        debug_assert!(
            holder.is_none_or(|node| form::node_keys(node).any(|own| own == key)),
            "it has the key"
        );
        holder
    }

    /// Returns the nodes, sorted by name.
    pub(super) fn iter(&self) -> impl Iterator<Item = &NodeAdmission> {
        self.by_name.values().map(visited)
    }

    /// Returns the nodes with the names under which they are kept.
    pub(super) fn entries(&self) -> impl Iterator<Item = (&NodeName, &NodeAdmission)> {
        self.by_name.iter().map(|(name, node)| (name, &**node))
    }

    /// Returns the number of nodes.
    pub(super) fn len(&self) -> usize {
        self.by_name.len()
    }

    /// Checks that the index has each key of each node, and no other.
    ///
    /// # Errors
    /// Returns the name of the first node that one of its keys does not lead to, or the number of keys of no
    /// node.
    pub(super) fn check_index(&self) -> Result<(), String> {
        let mut keys = 0;
        for (name, node) in &self.by_name {
            for key in form::node_keys(node) {
                if self.by_key.get(&index_of(key)) != Some(node) {
                    return Err(format!("a key of node `{name}` does not lead to it"));
                }
                keys += 1;
            }
        }
        match self.by_key.len().saturating_sub(keys) {
            0 => Ok(()),
            others => Err(format!("{others} keys of the index are of no node")),
        }
    }
}

impl FromIterator<NodeAdmission> for AdmittedNodes {
    fn from_iter<T: IntoIterator<Item = NodeAdmission>>(admissions: T) -> Self {
        let mut nodes = Self::default();
        admissions.into_iter().for_each(|node| nodes.insert(node));
        nodes
    }
}

impl From<BTreeMap<NodeName, Arc<NodeAdmission>>> for AdmittedNodes {
    fn from(by_name: BTreeMap<NodeName, Arc<NodeAdmission>>) -> Self {
        let mut nodes = Self::default();
        by_name.values().for_each(|node| nodes.list(node));
        debug_assert!(nodes.by_key.len() >= by_name.len(), "each node has keys of its own");
        Self { by_name, ..nodes }
    }
}

impl From<AdmittedNodes> for BTreeMap<NodeName, Arc<NodeAdmission>> {
    fn from(nodes: AdmittedNodes) -> Self {
        nodes.by_name
    }
}

/// Returns the digest under which a key is listed: keys of all kinds have one length there.
fn index_of(key: &[u8]) -> Digest {
    Digest::of(key)
}

/// Returns a node that a walk over all of them visits. Tests count the visits.
fn visited(node: &Arc<NodeAdmission>) -> &NodeAdmission {
    #[cfg(test)]
    VISITS.set(VISITS.get() + 1);
    node
}

#[cfg(test)]
thread_local! {
    /// Nodes that walks of this thread visited.
    pub(super) static VISITS: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{claimed_by, encryption, node};
    use proptest::prelude::*;
    use protocol::PublicKey;
    use protocol::canonical::{from_own_bytes, to_bytes};
    use protocol::governance::{GatewayEndpoint, NodeRole};
    use std::sync::LazyLock;

    impl AdmittedNodes {
        /// Keeps a node under a name that need not be its own.
        pub(crate) fn plant(&mut self, name: NodeName, node: NodeAdmission) {
            self.by_name.remove(&name);
            let node = Arc::new(node);
            self.list(&node);
            self.by_name.insert(name, node);
        }

        /// Removes a key from the index.
        pub(crate) fn unlist(&mut self, key: &[u8]) {
            self.by_key.remove(&index_of(key));
        }
    }

    fn name(text: &str) -> NodeName {
        text.parse().expect("a name")
    }

    fn with_gateway(text: &str) -> NodeAdmission {
        let mut node = node(text);
        node.roles.insert(NodeRole::Gateway);
        let key = PublicKey(Digest::of_domain("test/gateway", text.as_bytes()).0);
        let (address, api) = ("127.0.0.1:7100".into(), "http://127.0.0.1:7101".into());
        node.gateway = Some(GatewayEndpoint { key, address, api });
        claimed_by(text, node)
    }

    #[test]
    fn each_key_leads_to_its_node() {
        let admitted = [with_gateway("n1"), node("n2")];
        let nodes: AdmittedNodes = admitted.iter().cloned().collect();
        for node in &admitted {
            for key in form::node_keys(node) {
                assert_eq!(nodes.holder(key), Some(node));
            }
        }
        assert_eq!((nodes.holder(b"unknown"), nodes.holder(&node("n3").id.0.0)), (None, None));
        assert_eq!((nodes.len(), nodes.check_index()), (2, Ok(())));
    }

    #[test]
    fn a_removed_and_a_replaced_node_leave_no_key() {
        let mut nodes: AdmittedNodes = [with_gateway("n1"), node("n2")].into_iter().collect();
        let replaced = NodeAdmission { name: name("n1"), ..node("other") };
        nodes.insert(replaced.clone());
        assert_eq!(nodes.check_index(), Ok(()));
        for key in form::node_keys(&with_gateway("n1")) {
            assert_eq!(nodes.holder(key), None, "it was given up");
        }
        assert_eq!(nodes.holder(&replaced.id.0.0), Some(&replaced));
        nodes.remove(&name("n1"));
        nodes.remove(&name("n9"));
        assert_eq!((nodes.len(), nodes.check_index(), nodes.holder(&replaced.id.0.0)), (1, Ok(()), None));
    }

    #[test]
    fn the_index_is_made_anew_from_what_is_kept() {
        let nodes: AdmittedNodes = [with_gateway("n1"), node("n2")].into_iter().collect();
        let bytes = to_bytes(&nodes);
        let plain: BTreeMap<NodeName, NodeAdmission> =
            nodes.entries().map(|(name, node)| (name.clone(), node.clone())).collect();
        assert_eq!(bytes, to_bytes(&plain), "the index is not written");
        let read: AdmittedNodes = from_own_bytes(&bytes, bytes.len()).expect("its own bytes");
        assert_eq!((read.check_index(), read), (Ok(()), nodes));
    }

    #[test]
    fn a_damaged_index_is_found() {
        let mut nodes: AdmittedNodes = [node("n1"), node("n2")].into_iter().collect();
        nodes.unlist(&node("n1").id.0.0);
        assert_eq!(nodes.check_index(), Err("a key of node `n1` does not lead to it".into()));
        let mut nodes: AdmittedNodes = [node("n1"), node("n2")].into_iter().collect();
        nodes.plant(name("n1"), node("n3"));
        assert_eq!(nodes.check_index(), Err("3 keys of the index are of no node".into()));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// However nodes come and go, the index is the one that a walk over all of them would make.
        #[test]
        fn the_index_follows_every_admission_and_removal(
            steps in prop::collection::vec((0_usize..5, any::<bool>(), any::<bool>()), 0..24),
        ) {
            let mut nodes = AdmittedNodes::default();
            let mut expected: BTreeMap<NodeName, NodeAdmission> = BTreeMap::new();
            for (number, other_keys, removed) in steps {
                let text = format!("n{number}");
                let keys = if other_keys { format!("{text} again") } else { text.clone() };
                let admitted = NodeAdmission { name: name(&text), ..KEYED[&keys].clone() };
                if removed {
                    nodes.remove(&name(&text));
                    expected.remove(&name(&text));
                } else {
                    nodes.insert(admitted.clone());
                    expected.insert(name(&text), admitted);
                }
                prop_assert_eq!(nodes.check_index(), Ok(()));
            }
            prop_assert!(nodes.iter().eq(expected.values()));
            for node in expected.values() {
                prop_assert_eq!(nodes.holder(&node.id.0.0), Some(node));
            }
        }
    }

    /// Admissions by the text that their keys are made of, each signed once.
    static KEYED: LazyLock<BTreeMap<String, NodeAdmission>> = LazyLock::new(|| {
        let texts = (0..5).flat_map(|number| [format!("n{number}"), format!("n{number} again")]);
        let keyed = |text: String| {
            let admission = NodeAdmission { encryption: encryption(&text), ..node("n") };
            (text.clone(), claimed_by(&text, admission))
        };
        texts.map(keyed).collect()
    });
}
