//! Judgement of a route table before it is handed to the gateway: prompts go to nodes that the circle
//! admitted, for services that it approved, and nowhere else.
//!
//! API keys of control's table do not pass: the agent adds those that grants cover which it verified itself.

use super::Refusal;
use human_chain::CircleState;
use protocol::error_code;
use protocol::gateway::{Route, RouteTable, RoutedService};
use protocol::governance::NodeRole;
use protocol::manifest::ServiceManifest;
use protocol::{NodeId, ServiceName, SlotIndex};
use std::collections::BTreeSet;

/// Part of a route table that is not handed on: a whole service, or one of its slots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedRoute {
    pub service: ServiceName,
    /// Slot of the route; none if the whole service is refused.
    pub slot: Option<SlotIndex>,
    pub refusal: Refusal,
}

impl std::fmt::Display for RefusedRoute {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.slot {
            Some(slot) => write!(f, "{}/{slot}: {}", self.service, self.refusal),
            None => write!(f, "{}: {}", self.service, self.refusal),
        }
    }
}

/// Returns the part of a table that the chain covers, and what was refused. `last` is the table that was
/// handed on before.
///
/// A route of a retired service is handed on as draining: running requests finish, and no new one is sent. A
/// slot never goes back to a holder with a lower fence, which was replaced: its last route stays.
#[must_use]
pub fn check_routes(
    circle: &CircleState,
    table: &RouteTable,
    last: Option<&RouteTable>,
) -> (RouteTable, Vec<RefusedRoute>) {
    let workers = circle.nodes().filter(|node| node.roles.contains(&NodeRole::Worker));
    let workers: BTreeSet<NodeId> = workers.map(|node| node.id).collect();
    let mut refused = Vec::new();
    let mut services = Vec::new();
    for routed in &table.services {
        match check_service(circle, routed) {
            Ok(checked) => {
                let known = last.and_then(|last| last.services.iter().find(|s| s.service == routed.service));
                let scope = RouteScope { workers: &workers, last: known, checked };
                services.push(scope.admitted_routes(routed, &mut refused));
            }
            Err(message) => refused.push(refused_route(routed, None, message)),
        }
    }
    debug_assert!(services.len() <= table.services.len(), "nothing is added");
    (RouteTable { version: table.version, services, api_keys: Vec::new() }, refused)
}

/// Statement of the circle about a service that it covers.
#[derive(Debug, Clone, Copy)]
struct CoveredService {
    retired: bool,
    /// Version of the certificate in force; no order has a fence of a later one.
    version: u64,
}

/// Scope against which the routes of one service are checked.
struct RouteScope<'a> {
    workers: &'a BTreeSet<NodeId>,
    /// The service as it was handed on last.
    last: Option<&'a RoutedService>,
    checked: CoveredService,
}

/// Returns what the circle says of a service, or why it does not cover it.
fn check_service(circle: &CircleState, routed: &RoutedService) -> Result<CoveredService, String> {
    let approved = circle.service(&routed.service).map(|service| (service, false));
    let retired = || circle.retired_service(&routed.service).map(|retired| (&retired.last, true));
    let Some((service, retired)) = approved.or_else(retired) else {
        return Err("no certificate approves the service".into());
    };
    debug_assert_eq!(service.manifest.name, routed.service, "a service is approved under its own name");
    let is_routed =
        |manifest: &ServiceManifest| manifest.model.name == routed.model && manifest.task == routed.task;
    // A service may have returned to the approval before.
    if !service.manifests().any(is_routed) {
        let model = &service.manifest.model.name;
        return Err(format!("the circle approved it for another model or task: `{model}`"));
    }
    Ok(CoveredService { retired, version: service.version })
}

impl RouteScope<'_> {
    fn admitted_routes(&self, routed: &RoutedService, refused: &mut Vec<RefusedRoute>) -> RoutedService {
        let mut routes = Vec::new();
        for route in &routed.routes {
            match self.admitted_route(route) {
                Ok(route) => routes.push(route),
                Err((kept, message)) => {
                    routes.extend(kept);
                    refused.push(refused_route(routed, Some(route.slot), message));
                }
            }
        }
        let retired = self.checked.retired;
        routes.iter_mut().for_each(|route| route.draining |= retired);
        debug_assert!(routes.len() <= routed.routes.len(), "no route is added");
        let leads_to_worker = |route: &Route| self.workers.contains(&route.node);
        debug_assert!(routes.iter().all(leads_to_worker), "each leads to a worker");
        RoutedService { routes, ..routed.clone() }
    }

    /// Returns a route if it is handed on; otherwise the route that stays in its place, if any, and the
    /// reason.
    fn admitted_route(&self, route: &Route) -> Result<Route, (Option<Route>, String)> {
        if !self.workers.contains(&route.node) {
            return Err((None, format!("no certificate admits node {} as a worker", route.node)));
        }
        if route.fence.version > self.checked.version {
            return Err((None, format!("its fence {} is of no certificate of the service", route.fence)));
        }
        let mut known = self.last.iter().flat_map(|last| &last.routes).filter(|last| last.slot == route.slot);
        match known.find(|known| known.fence > route.fence && self.workers.contains(&known.node)) {
            None => Ok(route.clone()),
            Some(known) => {
                let message =
                    format!("its fence {} is behind {}, which has replaced it", route.fence, known.fence);
                Err((Some(known.clone()), message))
            }
        }
    }
}

fn refused_route(routed: &RoutedService, slot: Option<SlotIndex>, message: String) -> RefusedRoute {
    let refusal = Refusal::new(error_code::ROUTE_REFUSED, message);
    RefusedRoute { service: routed.service.clone(), slot, refusal }
}

#[allow(clippy::unwrap_used)]
#[cfg(test)]
mod tests {
    use super::super::testing::{NOW, TestCircle, admission, claimed_by, model_name, routed, service};
    use super::*;
    use human_chain::MemberSecret;
    use overlay::Identity;
    use protocol::gateway::ApiKey;
    use protocol::governance::Change;
    use protocol::manifest::Task;
    use protocol::{Digest, ModelRoot};

    fn identity(seed: u8) -> Identity {
        Identity::from_seed(&[seed; 32])
    }

    fn id(seed: u8) -> NodeId {
        NodeId(identity(seed).public_key())
    }

    /// Returns a circle with a worker, a node for storage alone, and a service.
    fn world() -> TestCircle {
        let encryption = |seed| MemberSecret::generate(&[seed; 64]).public().encryption;
        let worker = admission("worker", &identity(7), encryption(9));
        let mut storage = admission("storage", &identity(8), encryption(10));
        storage.roles = BTreeSet::from([NodeRole::Gateway]);
        storage.gateway = Some(protocol::governance::GatewayEndpoint {
            key: identity(18).public_key(),
            address: "127.0.0.1:1".into(),
            api: "http://127.0.0.1:1".into(),
        });
        let storage = claimed_by(&identity(8), storage);
        let mut world = TestCircle::new(vec![worker, storage], &["127.0.0.1:1".into()], NOW);
        world.deploy(&service("chat", ModelRoot(Digest::of(b"model")), 4));
        world
    }

    fn table(services: Vec<RoutedService>) -> RouteTable {
        RouteTable { version: 7, services, api_keys: vec![] }
    }

    /// The attack: control puts an API key into its table, for which no member signed. The positive control
    /// is the table itself, which the gateway would follow.
    #[test]
    fn an_api_key_of_control_is_not_handed_on() {
        let wanted = table(vec![routed("chat", &[(0, id(7))])]);
        let (name, hash) = ("app".parse().unwrap(), Digest::of(b"secret"));
        let key = ApiKey { name, hash, services: None, requests_per_minute: None };
        let hostile = RouteTable { api_keys: vec![key], ..wanted.clone() };
        assert_eq!(check_routes(&world().state, &hostile, None), (wanted, vec![]));
    }

    fn refusals(refused: &[RefusedRoute]) -> Vec<String> {
        assert!(refused.iter().all(|refused| refused.refusal.code == error_code::ROUTE_REFUSED));
        refused.iter().map(|refused| refused.to_string().replace("route-refused: ", "")).collect()
    }

    #[test]
    fn what_the_circle_covers_passes_unchanged() {
        let wanted = table(vec![routed("chat", &[(0, id(7)), (3, id(7))])]);
        assert_eq!(check_routes(&world().state, &wanted, None), (wanted, vec![]));
    }

    /// The attack: prompts are routed to a key that no certificate admits. The positive control is the table
    /// itself, which the gateway would follow.
    #[test]
    fn route_to_an_unadmitted_key() {
        let world = world();
        let wanted = table(vec![routed("chat", &[(0, id(7)), (1, id(66)), (2, id(8))])]);
        let (handed, refused) = check_routes(&world.state, &wanted, None);
        assert_eq!(handed, table(vec![routed("chat", &[(0, id(7))])]));
        let no_worker = |slot, node| format!("chat/{slot}: no certificate admits node {node} as a worker");
        assert_eq!(refusals(&refused), [no_worker(1, id(66)), no_worker(2, id(8))]);
        assert_eq!(wanted.services[0].routes.len(), 3, "unjudged, all three would be handed on");
    }

    #[test]
    fn a_service_that_is_not_approved_as_routed_is_refused() {
        let world = world();
        let approved = model_name(ModelRoot(Digest::of(b"model")));
        let other = format!("chat: the circle approved it for another model or task: `{approved}`");
        for (change, expected) in [
            (
                (|routed| routed.service = "other".parse().unwrap()) as fn(&mut RoutedService),
                "other: no certificate approves the service",
            ),
            (|routed| routed.model = "medical".parse().unwrap(), &other),
            (|routed| routed.task = Task::Generate, &other),
        ] {
            let mut wrong = routed("chat", &[(0, id(7))]);
            change(&mut wrong);
            let (handed, refused) = check_routes(&world.state, &table(vec![wrong]), None);
            assert_eq!((handed, refusals(&refused)), (table(vec![]), vec![expected.to_string()]));
        }
    }

    #[test]
    fn a_service_that_returned_is_routed_under_its_earlier_model() {
        let mut world = world();
        let wanted = table(vec![routed("chat", &[(0, id(7))])]);
        let handed = |world: &TestCircle| check_routes(&world.state, &wanted, None).0.services.len();
        let mut next = service("chat", ModelRoot(Digest::of(b"other model")), 4);
        world.deploy(&next);
        assert_eq!(handed(&world), 0, "the earlier approval was replaced");
        world.deploy(&service("chat", ModelRoot(Digest::of(b"model")), 4));
        next.rollout.on_failure = protocol::manifest::OnFailure::Return;
        world.deploy(&next);
        assert_eq!(handed(&world), 1, "the certificate in force names it to return to");
    }

    #[test]
    fn a_retired_service_finishes_its_requests_and_gets_no_new_ones() {
        let mut world = world();
        world.decide(Change::Retire { service: "chat".parse().unwrap(), grace_seconds: 30 });
        let (handed, refused) = check_routes(&world.state, &table(vec![routed("chat", &[(0, id(7))])]), None);
        assert!(refused.is_empty() && handed.services[0].routes[0].draining);
        world.decide(Change::RemoveNode { node: "worker".parse().unwrap() });
        let (handed, refused) = check_routes(&world.state, &table(vec![routed("chat", &[(0, id(7))])]), None);
        assert_eq!((handed.services[0].routes.len(), refused.len()), (0, 1), "not on a removed node");
    }

    /// Returns a table with one slot under this fence, held by the worker.
    fn under(fence: protocol::Fence, node: NodeId) -> RouteTable {
        let mut routed = routed("chat", &[(0, node)]);
        routed.routes[0].fence = fence;
        table(vec![routed])
    }

    /// The attack: control that lags behind, or deceives, routes prompts to a holder that was replaced. The
    /// positive control is an agent that has handed on no table yet.
    #[test]
    fn a_slot_never_goes_back_to_a_holder_that_was_replaced() {
        let mut world = world();
        let encryption = MemberSecret::generate(&[11; 64]).public().encryption;
        let second = admission("second", &identity(9), encryption);
        world.decide(Change::AdmitNode(Box::new(second)));
        let fence = |count| protocol::Fence::new(1, count);
        let (old, new) = (under(fence(1), id(7)), under(fence(2), id(9)));
        assert_eq!(check_routes(&world.state, &old, None), (old.clone(), vec![]), "it passes unguarded");
        assert_eq!(check_routes(&world.state, &new, Some(&old)), (new.clone(), vec![]));
        let (handed, refused) = check_routes(&world.state, &old, Some(&new));
        assert_eq!(handed.services, new.services, "the higher fence stays");
        assert_eq!(refusals(&refused), ["chat/0: its fence 1.1 is behind 1.2, which has replaced it"]);
        // The holder that stays must still be a worker of the circle.
        world.decide(Change::RemoveNode { node: "second".parse().unwrap() });
        assert_eq!(check_routes(&world.state, &old, Some(&new)), (old, vec![]));
    }

    /// The attack: one route with the highest fence of all would keep every later one out.
    #[test]
    fn a_fence_of_no_certificate_is_refused() {
        let mut world = world();
        let leap = under(protocol::Fence::new(u64::MAX, 1), id(7));
        let (handed, refused) = check_routes(&world.state, &leap, None);
        assert_eq!((handed.services[0].routes.len(), refused.len()), (0, 1));
        assert!(refusals(&refused)[0].contains("is of no certificate"), "{refused:?}");
        // The highest count lasts until the next certificate, as it does for orders.
        let most = under(protocol::Fence::new(1, u64::MAX), id(7));
        world.deploy(&service("chat", ModelRoot(Digest::of(b"model")), 4));
        let next = under(protocol::Fence::new(2, 1), id(7));
        assert_eq!(check_routes(&world.state, &next, Some(&most)), (next.clone(), vec![]));
    }
}
