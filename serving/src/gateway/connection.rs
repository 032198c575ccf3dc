//! One worker's connection, from its ticket to its end.
//!
//! The ticket is checked when the worker connects, and each renewal as it is polled ([`super::ticket`], and
//! [`super::lifetime`] for its validity). Every choice of a worker consults the current table
//! ([`super::pool`]), so a slot that moved gets no new requests. Requests that still run on its old worker
//! may end as long as the old node renews the ticket.

use super::pool::{Departure, WorkerConnection};
use super::ticket::{TicketDecision, TicketError, check_form, check_renewal, check_route, decide};
use super::{ANSWER_TIMEOUT, Gateway};
use crate::worker::now;
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use overlay::{Arrival, CancellationToken, Channel, PublicKey, Reversed};
use protocol::canonical;
use protocol::limits::LEASE_MS;
use protocol::order::{SignedTicket, TICKET_BYTES_MAX, Ticket};
use protocol::worker::{WorkerLoad, WorkerState};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Interval at which a worker is polled for its ticket and its load. A lease of 3 s survives one or two lost
/// answers.
const POLL_INTERVAL: Duration = Duration::from_millis(500);
/// Interval at which a loading worker is polled: a fifth of the loading time of the smallest model.
const LOADING_INTERVAL: Duration = Duration::from_millis(10);

/// Checks a new connection's ticket and, if it is valid, keeps the connection in the pool until it ends.
pub(super) async fn admit_worker(
    gateway: Arc<Gateway>,
    reversed: Reversed,
    mut arrival: Arrival,
    shutdown: CancellationToken,
) {
    let worker = reversed.peer();
    let hold = |permit| match permit {
        ConnectionPermit::Unadmitted => arrival.wait_unadmitted(),
        ConnectionPermit::Node(node) => arrival.admit(node),
    };
    let (signed, lapses_at) = match admit(&gateway, worker, &reversed.preface, hold).await {
        Ok(admitted) => admitted,
        Err(error) => {
            if let Some(suppressed) = gateway.refusals.pass() {
                tracing::warn!(worker = worker.short(), %error, suppressed, "worker rejected");
            }
            return gateway.metrics.ticket_refused(error.reason());
        }
    };
    let channel = match reversed.open().await {
        Ok(channel) => channel,
        Err(error) => return tracing::warn!(worker = worker.short(), %error, "worker lost"),
    };
    serve_worker(&gateway, channel, signed, lapses_at, shutdown).await;
}

/// Keeps a worker with an admitted ticket in the pool until its connection ends.
pub(super) async fn serve_worker(
    gateway: &Gateway,
    channel: Channel,
    signed: SignedTicket,
    lapses_at: Instant,
    shutdown: CancellationToken,
) {
    let worker = channel.peer();
    let Ticket { service, slot, fence, .. } = &signed.ticket;
    tracing::info!(worker = worker.short(), %service, %slot, %fence, "worker connected");
    let link = gateway.pool.add(channel, signed.ticket.clone());
    let mut membership = PoolMembership { gateway, link, departure: Departure::Evicted };
    membership.departure = tokio::select! {
        departure = poll_until_departure(gateway, &membership.link, lapses_at) => departure,
        () = shutdown.cancelled() => Departure::Shutdown,
    };
    let ended = membership.departure.as_str();
    drop(membership);
    tracing::info!(worker = worker.short(), %service, %slot, %fence, ended, "worker disconnected");
}

/// A worker in the pool. Dropping it removes the worker: at the end of its connection's task, or when another
/// connection takes its permit.
struct PoolMembership<'a> {
    gateway: &'a Gateway,
    link: Arc<WorkerConnection>,
    departure: Departure,
}

impl Drop for PoolMembership<'_> {
    fn drop(&mut self) {
        self.gateway.pool.remove(&self.link, self.departure);
    }
}

/// Returns the ticket of a worker that may serve, and its expiry. `hold` acquires the permits that are needed
/// on the way. Once admitted, the connection counts as one of the node that signed the ticket, so that no
/// other key can take its permit.
pub(super) async fn admit(
    gateway: &Gateway,
    worker: PublicKey,
    preface: &[u8],
    mut hold: impl FnMut(ConnectionPermit) -> bool,
) -> Result<(SignedTicket, Instant), TicketError> {
    let arrived_at = Instant::now();
    let signed: SignedTicket = canonical::from_bytes(preface, TICKET_BYTES_MAX)
        .map_err(|error| TicketError::Unreadable(error.to_string()))?;
    check_form(&signed, &worker, &gateway.identity.public_key())?;
    let node = ConnectionPermit::Node(signed.ticket.node.0);
    let mut tables = gateway.table.subscribe();
    // A worker may connect before the table names it; it waits for the table no longer than a ticket is
    // valid.
    let early_until = arrived_at + Duration::from_millis(LEASE_MS);
    let mut held = None;
    loop {
        let table = tables.borrow_and_update().clone();
        let decision = decide(&signed.ticket, &table);
        let needed = match &decision {
            TicketDecision::Refuse(error) => return Err(error.clone()),
            TicketDecision::AwaitNode(_) => ConnectionPermit::Unadmitted,
            TicketDecision::AwaitTable(_) | TicketDecision::Admit => node,
        };
        if held < Some(needed) {
            if !hold(needed) {
                return Err(TicketError::TooManyConnections);
            }
            held = Some(needed);
        }
        match decision {
            TicketDecision::Admit | TicketDecision::Refuse(_) => break,
            TicketDecision::AwaitTable(error) | TicketDecision::AwaitNode(error) => {
                match tokio::time::timeout_at(early_until, tables.changed()).await {
                    Ok(Ok(())) => {}
                    _ => return Err(error),
                }
            }
        }
    }
    let lapses_at = gateway.lifetimes.admit(&signed.ticket, arrived_at, now())?;
    Ok((signed, lapses_at))
}

/// The permit that a connection holds after its handshake's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum ConnectionPermit {
    /// One of the few permits for nodes that the table does not name.
    Unadmitted,
    /// A permit of this node, which the table names.
    Node(PublicKey),
}

/// Polls a worker until it must leave; returns the cause.
async fn poll_until_departure(gateway: &Gateway, link: &WorkerConnection, lapses_at: Instant) -> Departure {
    let mut deadline = lapses_at;
    let mut retirement = None;
    // The first ticket may have aged while it waited for the table.
    let mut next_poll = Instant::now();
    loop {
        tokio::select! {
            () = link.channel.closed() => return Departure::Closed,
            () = tokio::time::sleep_until(deadline) => return Departure::Lapsed,
            () = tokio::time::sleep_until(next_poll) => {}
        }
        next_poll = Instant::now() + if link.is_loading() { LOADING_INTERVAL } else { POLL_INTERVAL };
        match tokio::time::timeout_at(deadline, poll(gateway, link)).await {
            Err(_) => return Departure::Lapsed,
            Ok(Ok(Some(renewed))) => deadline = renewed,
            Ok(Ok(None)) => {}
            Ok(Err(error)) => {
                tracing::warn!(worker = link.channel.peer().short(), %error, "ticket renewal rejected");
                gateway.metrics.ticket_refused(error.reason());
            }
        }
        let table = gateway.table.borrow().clone();
        if check_route(&link.ticket(), &table).is_ok() {
            retirement = None;
            continue;
        }
        // Requests on a worker that lost its slot may finish; their silence is limited, not their length.
        let silence = retirement.get_or_insert_with(|| Silence::begin(link.progress()));
        if link.in_flight() == 0 || silence.lasts(link.progress()) > ANSWER_TIMEOUT {
            return Departure::SlotEnded;
        }
    }
}

/// Time in which no piece of an answer came from a worker.
struct Silence {
    since: Instant,
    progress: u64,
}

impl Silence {
    fn begin(progress: u64) -> Self {
        Self { since: Instant::now(), progress }
    }

    /// Returns the length of the silence at this progress.
    fn lasts(&mut self, progress: u64) -> Duration {
        if progress != self.progress {
            *self = Self::begin(progress);
        }
        self.since.elapsed()
    }
}

/// Polls for a fresh ticket and for the load. Returns the expiry of the ticket, if it is a newer one.
async fn poll(gateway: &Gateway, link: &WorkerConnection) -> Result<Option<Instant>, TicketError> {
    if let Some(body) = send_poll(link, "/worker/v1/load").await
        && let Ok(load) = serde_json::from_slice::<WorkerLoad>(&body)
    {
        if matches!(load.state, WorkerState::Draining | WorkerState::Failed) {
            link.drain();
        }
        gateway.pool.record_load(link, load);
    }
    let Some(body) = send_poll(link, "/worker/v1/ticket").await else { return Ok(None) };
    let signed: SignedTicket = canonical::from_bytes(&body, TICKET_BYTES_MAX)
        .map_err(|error| TicketError::Unreadable(error.to_string()))?;
    let known = link.ticket();
    if signed.ticket == known {
        return Ok(None);
    }
    let arrived_at = Instant::now();
    check_form(&signed, &link.channel.peer(), &gateway.identity.public_key())?;
    check_renewal(&known, &signed.ticket)?;
    let lapses_at = gateway.lifetimes.admit(&signed.ticket, arrived_at, now())?;
    link.renew(signed.ticket);
    Ok(Some(lapses_at))
}

async fn send_poll(link: &WorkerConnection, path: &'static str) -> Option<Bytes> {
    let request = Request::get(path).body(Bytes::new()).expect("a literal path is valid");
    match link.polls.request(request).await {
        Ok(response) => Some(response).filter(|r| r.status() == StatusCode::OK).map(Response::into_body),
        Err(error) => {
            tracing::debug!(worker = link.channel.peer().short(), path, %error, "poll failed");
            None
        }
    }
}
