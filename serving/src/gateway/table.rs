//! Route table: the table that the agent pushes, indexed for lookups. Replaced as a whole, never edited.

use protocol::access::GRANTS_MAX;
use protocol::gateway::{ApiKey, Route, RouteTable, RoutedService};
use protocol::{Digest, ModelName, NodeId, ServiceName, SlotIndex};
use std::collections::{BTreeMap, BTreeSet};
use subtle::ConstantTimeEq;

/// A route table that has been checked.
#[derive(Debug, Default)]
pub(super) struct Table {
    version: u64,
    services: BTreeMap<ServiceName, RoutedService>,
    routes: BTreeMap<(ServiceName, SlotIndex), Route>,
    nodes: BTreeSet<NodeId>,
    api_keys: Vec<ApiKey>,
}

impl Table {
    /// Checks and indexes a pushed table.
    ///
    /// # Errors
    /// A description of the fault: a duplicate service or slot, or too many keys.
    pub(super) fn new(pushed: RouteTable) -> Result<Self, String> {
        // A key that a client presents is compared with every one.
        if pushed.api_keys.len() > GRANTS_MAX {
            return Err(format!("{} api keys, at most {GRANTS_MAX}", pushed.api_keys.len()));
        }
        let mut services = BTreeMap::new();
        let mut routes: BTreeMap<_, Route> = BTreeMap::new();
        for service in pushed.services {
            let name = service.service.clone();
            for route in &service.routes {
                if routes.insert((name.clone(), route.slot), route.clone()).is_some() {
                    return Err(format!("slot {} of `{name}` is a duplicate", route.slot));
                }
            }
            if services.insert(name.clone(), service).is_some() {
                return Err(format!("service `{name}` is a duplicate"));
            }
        }
        let nodes = routes.values().map(|route| route.node).collect();
        Ok(Self { version: pushed.version, services, routes, nodes, api_keys: pushed.api_keys })
    }

    /// Returns the version, which rises with every change.
    pub(super) fn version(&self) -> u64 {
        self.version
    }

    /// Returns the holder of a slot.
    pub(super) fn route(&self, service: &ServiceName, slot: SlotIndex) -> Option<&Route> {
        self.routes.get(&(service.clone(), slot))
    }

    /// Reports whether a node holds any slot.
    pub(super) fn names_node(&self, node: &NodeId) -> bool {
        self.nodes.contains(node)
    }

    /// Returns the services that `model` denotes: the one of that name, or all that serve that model.
    pub(super) fn services(&self, model: &str) -> Vec<&RoutedService> {
        let named = self.services.values().find(|service| service.service.as_str() == model);
        match named {
            Some(service) => vec![service],
            None => self.services.values().filter(|service| service.model.as_str() == model).collect(),
        }
    }

    /// Returns the names of the models that a key for these services may call, sorted.
    pub(super) fn models(&self, allowed: Option<&BTreeSet<ServiceName>>) -> BTreeSet<&str> {
        let open = self.services.values().filter(|service| may_call(allowed, &service.service));
        open.map(|service| service.model.as_str()).collect()
    }

    /// Returns the model that a service serves.
    pub(super) fn model_of(&self, service: &ServiceName) -> Option<&ModelName> {
        self.services.get(service).map(|service| &service.model)
    }

    /// Returns the key with this text. Every key is compared in full, so that timing reveals nothing.
    pub(super) fn api_key(&self, shown: &str) -> Option<&ApiKey> {
        let hash = Digest::of(shown.as_bytes());
        let mut found = None;
        for key in &self.api_keys {
            if bool::from(key.hash.0.ct_eq(&hash.0)) {
                found = Some(key);
            }
        }
        found
    }
}

/// Returns whether a key for these services may call this one; none = every service.
pub(super) fn may_call(allowed: Option<&BTreeSet<ServiceName>>, service: &ServiceName) -> bool {
    allowed.is_none_or(|names| names.contains(service))
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::manifest::Task;
    use protocol::{Fence, NodeId, PublicKey};

    fn service(name: &str, model: &str, slots: &[u32]) -> RoutedService {
        let route = |slot: &u32| Route {
            slot: SlotIndex(*slot),
            fence: Fence::new(1, 1),
            node: NodeId(PublicKey([1; 32])),
            draining: false,
        };
        RoutedService {
            service: name.parse().expect("a name"),
            model: model.parse().expect("a name"),
            task: Task::Generate,
            routes: slots.iter().map(route).collect(),
        }
    }

    fn table(services: Vec<RoutedService>) -> Result<Table, String> {
        Table::new(RouteTable { version: 1, services, api_keys: Vec::new() })
    }

    #[test]
    fn a_model_is_found_by_service_or_model_name() {
        let table =
            table(vec![service("a", "tiny", &[0]), service("b", "tiny", &[0]), service("tiny2", "x", &[])]);
        let table = table.expect("valid");
        let found =
            |model| table.services(model).iter().map(|found| found.service.to_string()).collect::<Vec<_>>();
        assert_eq!(found("a"), ["a"]);
        assert_eq!(found("tiny"), ["a", "b"]);
        assert_eq!(found("nothing"), [""; 0]);
        let models = |allowed: Option<&str>| {
            let allowed = allowed.map(|name| BTreeSet::from([name.parse::<ServiceName>().expect("a name")]));
            table.models(allowed.as_ref()).into_iter().collect::<Vec<_>>()
        };
        assert_eq!(models(None), ["tiny", "x"]);
        assert_eq!((models(Some("b")), models(Some("gone"))), (vec!["tiny"], vec![]));
    }

    #[test]
    fn a_duplicate_name_or_slot_is_refused() {
        assert!(table(vec![service("a", "m", &[0, 1]), service("b", "m", &[0])]).is_ok());
        assert!(
            table(vec![service("a", "m", &[0]), service("a", "m", &[1])]).expect_err("a").contains("`a`")
        );
        assert!(table(vec![service("a", "m", &[1, 1])]).expect_err("1").contains("slot 1"));
    }

    #[test]
    fn a_key_is_found_by_its_text_alone() {
        let key = ApiKey {
            name: "app".parse().expect("a name"),
            hash: Digest::of(b"secret"),
            services: None,
            requests_per_minute: None,
        };
        let table = RouteTable { version: 1, services: Vec::new(), api_keys: vec![key.clone()] };
        let table = Table::new(table).expect("valid");
        assert_eq!(table.api_key("secret"), Some(&key));
        for wrong in ["", "Secret", "secret ", &key.hash.to_string()] {
            assert_eq!(table.api_key(wrong), None, "{wrong}");
        }
    }
}
