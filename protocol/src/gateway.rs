//! Route table that an agent pushes to its gateway: services with their slots, and API keys. A longer list
//! than a limit allows is refused when it is read.

use crate::access::GRANTS_MAX;
use crate::digest::Digest;
use crate::ids::{Fence, ModelName, NodeId, ServiceName, SlotIndex, TokenName};
use crate::limits::{ROUTED_SERVICES_MAX, SLOTS_MAX};
use crate::manifest::Task;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::BTreeSet;
use utoipa::ToSchema;

/// Route to one slot: the slot and the node that holds it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// Index of the slot within its service.
    pub slot: SlotIndex,
    /// Fence of the order under which the slot is held; the gateway rejects a ticket with another fence.
    pub fence: Fence,
    /// Node whose tickets are valid for the slot.
    pub node: NodeId,
    /// True if the slot is about to end: running requests finish, and the gateway sends no new ones.
    pub draining: bool,
}

/// Service with its routes, as the gateway sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RoutedService {
    /// Name of the service; clients may send it as the model name.
    pub service: ServiceName,
    /// Model name that clients send.
    pub model: ModelName,
    /// Task that the service performs.
    pub task: Task,
    /// Slots of the service, each with the node that holds it; at most [`SLOTS_MAX`].
    #[serde(deserialize_with = "at_most::<{ SLOTS_MAX as usize }, _, _>")]
    pub routes: Vec<Route>,
}

/// Inference key, identified by its hash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ApiKey {
    /// Name of the application that holds the key.
    pub name: TokenName,
    /// BLAKE3 digest of the key's text.
    pub hash: Digest,
    /// Services that the key may call; none = every service.
    pub services: Option<BTreeSet<ServiceName>>,
    /// Maximum number of requests per minute; none = unlimited.
    pub requests_per_minute: Option<u32>,
}

/// Complete route table; each push replaces the previous one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema, Default)]
#[serde(deny_unknown_fields)]
pub struct RouteTable {
    /// Version; rises with every change. The gateway ignores an older table.
    pub version: u64,
    /// Services, by name; at most [`ROUTED_SERVICES_MAX`].
    #[serde(deserialize_with = "at_most::<ROUTED_SERVICES_MAX, _, _>")]
    pub services: Vec<RoutedService>,
    /// API keys, by name; at most [`GRANTS_MAX`]. Control sends none: the agent adds those that verified
    /// grants cover.
    #[serde(deserialize_with = "at_most::<GRANTS_MAX, _, _>")]
    pub api_keys: Vec<ApiKey>,
}

/// Answer of the gateway to a pushed table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TableAccepted {
    /// Version of the table now in force.
    pub version: u64,
    /// Number of connected workers with a valid ticket.
    pub workers: u32,
}

/// Reads a list of limited length.
fn at_most<'de, const MOST: usize, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Vec<T>, D::Error> {
    let items = Vec::deserialize(deserializer)?;
    if items.len() > MOST {
        return Err(D::Error::custom(format!("{} items; accepted: at most {MOST}", items.len())));
    }
    Ok(items)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PublicKey;
    use crate::canonical::{from_bytes, to_bytes};

    /// Attack: control sends a table that fills the memory of the agent and its gateway.
    #[test]
    fn a_table_is_read_up_to_its_limits() {
        let route = Route {
            slot: SlotIndex(0),
            fence: Fence::new(1, 1),
            node: NodeId(PublicKey([1; 32])),
            draining: false,
        };
        let service = |routes: usize| RoutedService {
            service: "chat".parse().expect("a name"),
            model: "tiny".parse().expect("a name"),
            task: Task::Embed,
            routes: vec![route.clone(); routes],
        };
        let key = ApiKey {
            name: "app".parse().expect("a name"),
            hash: Digest::of(b"key"),
            services: None,
            requests_per_minute: None,
        };
        let table = |routes, services, keys| RouteTable {
            version: 1,
            services: vec![service(routes); services],
            api_keys: vec![key.clone(); keys],
        };
        let slots = SLOTS_MAX as usize;
        let is_read = |table: RouteTable| {
            let bytes = to_bytes(&table);
            from_bytes::<RouteTable>(&bytes, bytes.len()).is_ok_and(|read| read == table)
        };
        for (routes, services, keys) in [(slots, 1, 0), (0, ROUTED_SERVICES_MAX, 0), (0, 0, GRANTS_MAX)] {
            assert!(
                is_read(table(routes, services, keys)),
                "the positive control: {routes} {services} {keys}"
            );
        }
        for (routes, services, keys) in
            [(slots + 1, 1, 0), (0, ROUTED_SERVICES_MAX + 1, 0), (0, 0, GRANTS_MAX + 1)]
        {
            assert!(!is_read(table(routes, services, keys)), "{routes} {services} {keys}");
        }
    }
}
