//! Ticket verification: a worker's ticket against the table, its TLS key and this gateway. Pure: every input
//! is an argument.

use super::table::Table;
use protocol::order::{SignedTicket, Ticket};
use protocol::{Fence, PublicKey};

/// Cause of a ticket's rejection.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TicketError {
    /// The bytes are not a ticket.
    #[error("ticket is unreadable: {0}")]
    Unreadable(String),
    /// The signature is not that of the ticket's node.
    #[error("ticket's signature is invalid")]
    Signature,
    /// The ticket names a different worker key from the one that the peer has proven.
    #[error("ticket names another worker")]
    ForeignWorker,
    /// The ticket names another gateway.
    #[error("ticket names another gateway")]
    ForeignGateway,
    /// The node's lease has expired.
    #[error("ticket expired {0} ms ago")]
    Expired(u64),
    /// The node's wall clock is too far ahead of the gateway's, or the gateway's is too far behind.
    #[error("ticket is {0} ms ahead of the tolerated clock skew")]
    Ahead(u64),
    /// The table has no such service or slot.
    #[error("no such service or slot")]
    UnknownSlot,
    /// The slot has been ordered again, or the order has not reached the table.
    #[error("ticket has fence {ticket}, the table {table}")]
    Fence { ticket: Fence, table: Fence },
    /// Another node holds the slot.
    #[error("another node holds the slot")]
    ForeignNode,
    /// A renewal changes the service, slot or node, or lowers the fence.
    #[error("renewal names another slot or node")]
    Altered,
    /// The gateway has no permit for another connection of this node or address.
    #[error("too many connections of this node or address")]
    TooManyConnections,
}

impl TicketError {
    /// Returns a one-word label for metrics.
    pub(super) fn reason(&self) -> &'static str {
        match self {
            Self::Unreadable(_) => "unreadable",
            Self::Signature => "signature",
            Self::ForeignWorker => "foreign_worker",
            Self::ForeignGateway => "foreign_gateway",
            Self::Expired(_) => "expired",
            Self::Ahead(_) => "ahead",
            Self::UnknownSlot => "unknown_slot",
            Self::Fence { .. } => "fence",
            Self::ForeignNode => "foreign_node",
            Self::Altered => "altered",
            Self::TooManyConnections => "too_many_connections",
        }
    }

    /// Reports whether a newer table could make the ticket valid: the worker may have connected before the
    /// table came.
    fn may_be_early(&self) -> bool {
        matches!(self, Self::UnknownSlot | Self::ForeignNode)
            || matches!(self, Self::Fence { ticket, table } if ticket > table)
    }
}

/// Checks the ticket alone: this worker, this gateway, signed by the node it names. Its validity in time is
/// checked by [`super::lifetime`].
///
/// # Errors
/// See [`TicketError`].
pub(super) fn check_form(
    signed: &SignedTicket,
    worker: &PublicKey,
    gateway: &PublicKey,
) -> Result<(), TicketError> {
    let ticket = &signed.ticket;
    if ticket.worker != *worker {
        return Err(TicketError::ForeignWorker);
    }
    if ticket.gateway != *gateway {
        return Err(TicketError::ForeignGateway);
    }
    if !signed.signature_holds() {
        return Err(TicketError::Signature);
    }
    Ok(())
}

/// Checks that the table gives the ticket's slot to the ticket's node under the ticket's fence.
///
/// # Errors
/// See [`TicketError`].
pub(super) fn check_route(ticket: &Ticket, table: &Table) -> Result<(), TicketError> {
    let route = table.route(&ticket.service, ticket.slot).ok_or(TicketError::UnknownSlot)?;
    if route.fence != ticket.fence {
        return Err(TicketError::Fence { ticket: ticket.fence, table: route.fence });
    }
    if route.node != ticket.node {
        return Err(TicketError::ForeignNode);
    }
    Ok(())
}

/// Decision on a ticket whose form has been checked, under one table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum TicketDecision {
    /// The worker may serve.
    Admit,
    /// A newer table may make it valid; the table names its node, so the connection counts as one of the
    /// node's.
    AwaitTable(TicketError),
    /// A newer table may make it valid, and may name its node: the worker of a node's first slot may connect
    /// before the table arrives. Any key can sign such a ticket, so few of them may wait.
    AwaitNode(TicketError),
    /// No table makes it valid.
    Refuse(TicketError),
}

/// Decides on a ticket by the table in force.
pub(super) fn decide(ticket: &Ticket, table: &Table) -> TicketDecision {
    match check_route(ticket, table) {
        Ok(()) => TicketDecision::Admit,
        Err(error) if !error.may_be_early() => TicketDecision::Refuse(error),
        Err(error) if table.names_node(&ticket.node) => TicketDecision::AwaitTable(error),
        Err(error) => TicketDecision::AwaitNode(error),
    }
}

/// Checks that a renewal changes nothing but fence and expiry.
///
/// # Errors
/// [`TicketError::Altered`].
pub(super) fn check_renewal(old: &Ticket, new: &Ticket) -> Result<(), TicketError> {
    let is_same = (&old.service, old.slot, old.node) == (&new.service, new.slot, new.node);
    if is_same && new.fence >= old.fence { Ok(()) } else { Err(TicketError::Altered) }
}

#[cfg(test)]
mod tests {
    use super::TicketDecision::{Admit, AwaitNode, AwaitTable, Refuse};
    use super::*;
    use overlay::Identity;
    use protocol::gateway::{Route, RouteTable, RoutedService};
    use protocol::manifest::Task;
    use protocol::order::TICKET_DOMAIN;
    use protocol::{BootTime, Millis, NodeId, SlotIndex, canonical};

    struct Scene {
        node: Identity,
        worker: PublicKey,
        gateway: PublicKey,
    }

    fn scene() -> Scene {
        let key = |seed: u8| Identity::from_seed(&[seed; 32]);
        Scene { node: key(1), worker: key(2).public_key(), gateway: key(3).public_key() }
    }

    fn table(scene: &Scene) -> Table {
        let route = Route {
            slot: SlotIndex(2),
            fence: Fence::new(1, 5),
            node: NodeId(scene.node.public_key()),
            draining: false,
        };
        let service = RoutedService {
            service: "chat".parse().expect("a name"),
            model: "tiny".parse().expect("a name"),
            task: Task::Generate,
            routes: vec![route],
        };
        Table::new(RouteTable { version: 1, services: vec![service], api_keys: Vec::new() }).expect("valid")
    }

    fn ticket(scene: &Scene) -> Ticket {
        Ticket {
            service: "chat".parse().expect("a name"),
            slot: SlotIndex(2),
            fence: Fence::new(1, 5),
            node: NodeId(scene.node.public_key()),
            worker: scene.worker,
            gateway: scene.gateway,
            expires_at: Millis(1_000_000),
            lease_until_boottime_ms: BootTime(5_000),
        }
    }

    fn sign(node: &Identity, ticket: Ticket) -> SignedTicket {
        let signature = node.sign(TICKET_DOMAIN, &canonical::to_bytes(&ticket));
        SignedTicket { ticket, signature }
    }

    /// Returns the decision on a ticket that `alter` changed before its node signed it.
    fn verdict(alter: impl Fn(&mut Ticket, &Scene)) -> &'static str {
        let scene = scene();
        let mut ticket = ticket(&scene);
        alter(&mut ticket, &scene);
        let signed = sign(&scene.node, ticket);
        let form = check_form(&signed, &scene.worker, &scene.gateway);
        match form.and_then(|()| check_route(&signed.ticket, &table(&scene))) {
            Ok(()) => "accepted",
            Err(error) => error.reason(),
        }
    }

    #[test]
    fn every_field_of_a_ticket_counts() {
        let outsider = |seed: u8| Identity::from_seed(&[seed; 32]).public_key();
        assert_eq!(verdict(|_, _| {}), "accepted");
        assert_eq!(verdict(|ticket, _| ticket.worker = outsider(9)), "foreign_worker");
        assert_eq!(verdict(|ticket, _| ticket.gateway = outsider(9)), "foreign_gateway");
        assert_eq!(verdict(|ticket, _| ticket.service = "other".parse().expect("a name")), "unknown_slot");
        assert_eq!(verdict(|ticket, _| ticket.slot = SlotIndex(0)), "unknown_slot");
        assert_eq!(verdict(|ticket, _| ticket.fence = Fence::new(1, 4)), "fence");
        assert_eq!(verdict(|ticket, _| ticket.fence = Fence::new(1, 6)), "fence");
        // The node signs a ticket that names another node: the signature is not that node's.
        assert_eq!(verdict(|ticket, _| ticket.node = NodeId(outsider(9))), "signature");
    }

    #[test]
    fn another_node_cannot_sign_itself_into_a_slot() {
        let scene = scene();
        let intruder = Identity::from_seed(&[9; 32]);
        let mut forged = ticket(&scene);
        forged.node = NodeId(intruder.public_key());
        let signed = sign(&intruder, forged);
        assert_eq!(check_form(&signed, &scene.worker, &scene.gateway), Ok(()));
        assert_eq!(check_route(&signed.ticket, &table(&scene)), Err(TicketError::ForeignNode));
        let stolen = sign(&intruder, ticket(&scene));
        assert_eq!(check_form(&stolen, &scene.worker, &scene.gateway), Err(TicketError::Signature));
    }

    #[test]
    fn a_renewal_renews_and_nothing_else() {
        let old = ticket(&scene());
        let with = |alter: fn(&mut Ticket)| {
            let mut new = old.clone();
            alter(&mut new);
            check_renewal(&old, &new).is_ok()
        };
        assert!(with(|ticket| ticket.lease_until_boottime_ms = BootTime(5_009)));
        assert!(with(|ticket| ticket.fence = Fence::new(1, 6)));
        assert!(!with(|ticket| ticket.fence = Fence::new(1, 4)));
        assert!(!with(|ticket| ticket.slot = SlotIndex(3)));
        assert!(!with(|ticket| ticket.node = NodeId(PublicKey([8; 32]))));
    }

    #[test]
    fn only_a_ticket_ahead_of_the_table_waits_and_counts_for_a_node_in_it() {
        let scene = scene();
        let table = table(&scene);
        let decision = |alter: &dyn Fn(&mut Ticket)| {
            let mut ticket = ticket(&scene);
            alter(&mut ticket);
            decide(&ticket, &table)
        };
        let fence = |ticket| TicketError::Fence { ticket: Fence::new(1, ticket), table: Fence::new(1, 5) };
        let outsider = NodeId(Identity::from_seed(&[9; 32]).public_key());
        assert_eq!(decision(&|_| {}), Admit);
        assert_eq!(decision(&|ticket| ticket.fence = Fence::new(1, 4)), Refuse(fence(4)));
        assert_eq!(decision(&|ticket| ticket.fence = Fence::new(1, 6)), AwaitTable(fence(6)));
        assert_eq!(decision(&|ticket| ticket.slot = SlotIndex(0)), AwaitTable(TicketError::UnknownSlot));
        assert_eq!(decision(&|ticket| ticket.node = outsider), AwaitNode(TicketError::ForeignNode));
        let unknown_slot = |ticket: &mut Ticket| (ticket.node, ticket.slot) = (outsider, SlotIndex(0));
        assert_eq!(decision(&unknown_slot), AwaitNode(TicketError::UnknownSlot));
        // A gateway that has just started has no table.
        assert_eq!(decide(&ticket(&scene), &Table::default()), AwaitNode(TicketError::UnknownSlot));
    }
}
