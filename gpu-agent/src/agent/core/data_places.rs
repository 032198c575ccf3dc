//! Stores for data of jobs: those of the admitted storage nodes, and the erasure code that they allow.

use human_chain::CircleState;
use protocol::model::{ErasureCode, StoreReference};
use std::collections::BTreeSet;

/// Places for the shards of one item.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataPlaces {
    /// Stores, each with its node as the failure domain.
    pub stores: Vec<StoreReference>,
    /// Erasure code with one shard on a node.
    pub erasure: ErasureCode,
}

/// Returns the stores of all admitted storage nodes but these, which did not take a shard before.
#[must_use]
pub fn data_places(circle: &CircleState, failed: &BTreeSet<String>) -> DataPlaces {
    let nodes = circle.nodes().filter(|node| !failed.contains(node.name.as_str()));
    let offering: Vec<_> = nodes.filter_map(|node| Some((node, node.storage.as_ref()?))).collect();
    let stores = offering.iter().flat_map(|(node, storage)| {
        storage.stores.iter().map(|store| StoreReference {
            url: format!("node://{}/{store}", node.name),
            failure_domain: node.name.to_string(),
        })
    });
    let erasure = data_code(offering.len());
    debug_assert!(erasure.parity > 0, "the loss of any one node is survived");
    DataPlaces { stores: stores.collect(), erasure }
}

/// Returns the code for so many nodes, with one shard on each of them: any one node may be lost, or two of
/// four. A circle with fewer than two storage nodes has no place, and the placement says so.
fn data_code(nodes: usize) -> ErasureCode {
    let (data, parity) = match nodes {
        0..=2 => (1, 1),
        3 => (2, 1),
        4 | 5 => (2, 2),
        _ => (4, 2),
    };
    ErasureCode { data, parity }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::core::testing::{NOW, TestCircle, admission};
    use overlay::Identity;
    use protocol::governance::{NodeRole, StorageEndpoint};

    #[test]
    fn a_shard_is_on_a_node_of_its_own() {
        for (nodes, data, parity) in
            [(0, 1, 1), (1, 1, 1), (2, 1, 1), (3, 2, 1), (4, 2, 2), (5, 2, 2), (6, 4, 2), (1000, 4, 2)]
        {
            let code = data_code(nodes);
            assert_eq!((code.data, code.parity), (data, parity), "{nodes} nodes");
            assert!(nodes < 2 || code.shards() <= nodes, "{nodes} nodes");
        }
    }

    /// Returns a circle of so many storage nodes with two disks each, and a node without any.
    fn circle(storing: u8) -> TestCircle {
        let node = |number: u8| {
            let identity = Identity::from_seed(&[number + 150; 32]);
            let encryption = human_chain::MemberSecret::generate(&[number + 150; 64]).public().encryption;
            let mut node = admission(&format!("node-{number}"), &identity, encryption);
            if number > 0 {
                node.roles.insert(NodeRole::Storage);
                let address = format!("127.0.0.1:{number}");
                let stores = ["disk-0", "disk-1"].map(|name| name.parse().unwrap()).into();
                node.storage = Some(StorageEndpoint { address, stores });
            }
            crate::agent::core::testing::claimed_by(&identity, node)
        };
        TestCircle::new((0..=storing).map(node).collect(), &["127.0.0.1:9".into()], NOW)
    }

    fn failed(nodes: &[u8]) -> BTreeSet<String> {
        nodes.iter().map(|node| format!("node-{node}")).collect()
    }

    #[test]
    fn every_storage_node_is_a_place_and_no_other() {
        for storing in 0..=7 {
            let world = circle(storing);
            let places = data_places(&world.state, &BTreeSet::new());
            let count = usize::from(storing);
            assert_eq!(places.stores.len(), 2 * count);
            assert!(places.stores.iter().all(|store| store.failure_domain != "node-0"));
            for store in &places.stores {
                let expected = format!("node://{}/disk-", store.failure_domain);
                assert!(store.url.starts_with(&expected), "{}", store.url);
            }
            assert!(count < 2 || places.erasure.shards() <= count, "{storing} nodes");
            // A node without a store that failed makes no difference.
            assert_eq!(data_places(&world.state, &failed(&[0])), places);
        }
    }

    #[test]
    fn a_node_that_did_not_take_a_shard_is_left_out() {
        let world = circle(3);
        let all = data_places(&world.state, &BTreeSet::new());
        assert_eq!((all.stores.len(), all.erasure.shards()), (6, 3));
        let rest = data_places(&world.state, &failed(&[2]));
        let urls: Vec<&str> = rest.stores.iter().map(|store| store.url.as_str()).collect();
        let expected =
            ["node://node-1/disk-0", "node://node-1/disk-1", "node://node-3/disk-0", "node://node-3/disk-1"];
        assert_eq!((urls, rest.erasure.shards()), (expected.to_vec(), 2));
        // Two nodes keep a shard each, and one node alone has no place for the second.
        let two = data_places(&world.state, &failed(&[1, 2]));
        assert_eq!((two.stores.len(), two.erasure.shards()), (2, 2));
        assert_eq!(data_places(&world.state, &failed(&[1, 2, 3])).stores, []);
    }
}
