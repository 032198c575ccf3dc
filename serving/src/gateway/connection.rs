//! One worker's connection, from its ticket to its end.
//!
//! The ticket is checked when the worker comes, and each renewal as it is polled; the table is asked anew at
//! every choice ([`super::pool`]), so a slot that moved is left at once, while what still runs on its old
//! worker may end as long as the old node keeps renewing.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use overlay::{CancellationToken, Reversed};
use protocol::canonical;
use protocol::order::{SignedTicket, TICKET_BYTES_MAX, Ticket};
use protocol::worker::{WorkerLoad, WorkerState};
use tokio::time::Instant;

use super::Gateway;
use super::pool::Link;
use super::ticket::{TicketError, check_form, check_renewal, check_route};
use crate::worker::now;

/// How often a worker is asked for its ticket and its load. A lease of 3 s survives a lost answer or two.
const POLL_INTERVAL: Duration = Duration::from_millis(500);
/// How long a worker that may be faster than the table waits for it.
const EARLY_WAIT: Duration = Duration::from_secs(5);
/// No ticket is believed for longer, whatever it says: the architecture's freshness limit.
const TICKET_LIFE_MAX: Duration = Duration::from_secs(30);
/// How long requests on a worker that lost its slot may take to end.
const RETIREMENT: Duration = Duration::from_secs(30);
/// How often a worker that loads its model is asked whether it is done: a fifth of what the smallest model takes.
const LOADING_INTERVAL: Duration = Duration::from_millis(10);

/// Judges a new connection and, if its ticket is good, keeps it in the pool until it ends.
pub(super) async fn attend(gateway: Arc<Gateway>, reversed: Reversed, shutdown: CancellationToken) {
    let worker = reversed.peer();
    let signed = match admit(&gateway, &reversed).await {
        Ok(signed) => signed,
        Err(error) => {
            tracing::warn!(worker = worker.short(), %error, "worker refused");
            return gateway.metrics.ticket_refused(error.reason());
        }
    };
    let channel = match reversed.open().await {
        Ok(channel) => channel,
        Err(error) => return tracing::warn!(worker = worker.short(), %error, "worker lost"),
    };
    let Ticket { service, slot, fence, .. } = &signed.ticket;
    tracing::info!(worker = worker.short(), %service, %slot, %fence, "worker connected");
    let link = gateway.pool.add(channel, signed.ticket.clone());
    let ended = tokio::select! {
        ended = keep(&gateway, &link) => ended,
        () = shutdown.cancelled() => "shutdown",
    };
    gateway.pool.remove(&link);
    tracing::info!(worker = worker.short(), %service, %slot, %fence, ended, "worker disconnected");
}

async fn admit(gateway: &Gateway, reversed: &Reversed) -> Result<SignedTicket, TicketError> {
    let signed: SignedTicket = canonical::from_bytes(&reversed.preface, TICKET_BYTES_MAX)
        .map_err(|error| TicketError::Unreadable(error.to_string()))?;
    check_form(&signed, &reversed.peer(), &gateway.identity.public_key(), now())?;
    let mut tables = gateway.table.subscribe();
    let early_until = Instant::now() + EARLY_WAIT;
    loop {
        let table = tables.borrow_and_update().clone();
        match check_route(&signed.ticket, &table) {
            Ok(()) => break,
            Err(error) if !error.may_be_early() => return Err(error),
            Err(error) => match tokio::time::timeout_at(early_until, tables.changed()).await {
                Ok(Ok(())) => {}
                _ => return Err(error),
            },
        }
    }
    // It may have expired while it waited for the table; the poll that follows at once will renew it.
    Ok(signed)
}

/// Returns why the worker is to be left.
async fn keep(gateway: &Gateway, link: &Link) -> &'static str {
    let mut deadline = deadline(&link.ticket());
    let mut retired_at = None;
    // The first ticket may be old from waiting for the table.
    let mut next_poll = Instant::now();
    loop {
        tokio::select! {
            () = link.channel.closed() => return "connection closed",
            () = tokio::time::sleep_until(deadline) => return "ticket lapsed",
            () = tokio::time::sleep_until(next_poll) => {}
        }
        next_poll = Instant::now() + if link.is_loading() { LOADING_INTERVAL } else { POLL_INTERVAL };
        match tokio::time::timeout_at(deadline, poll(gateway, link)).await {
            Err(_) => return "ticket lapsed",
            Ok(Ok(Some(renewed))) => deadline = renewed,
            Ok(Ok(None)) => {}
            Ok(Err(error)) => {
                tracing::warn!(worker = link.channel.peer().short(), %error, "renewal refused");
                gateway.metrics.ticket_refused(error.reason());
            }
        }
        let table = gateway.table.borrow().clone();
        if check_route(&link.ticket(), &table).is_ok() {
            retired_at = None;
            continue;
        }
        let retired_at = *retired_at.get_or_insert(Instant::now());
        if link.in_flight() == 0 || retired_at.elapsed() > RETIREMENT {
            return "slot ended";
        }
    }
}

/// Asks for a fresh ticket and for the load. Returns until when the ticket is good, if it is a newer one.
async fn poll(gateway: &Gateway, link: &Link) -> Result<Option<Instant>, TicketError> {
    if let Some(body) = ask(link, "/worker/v1/load").await
        && let Ok(load) = serde_json::from_slice::<WorkerLoad>(&body)
    {
        if matches!(load.state, WorkerState::Draining | WorkerState::Failed) {
            link.drain();
        }
        gateway.pool.heard(link, load);
    }
    let Some(body) = ask(link, "/worker/v1/ticket").await else { return Ok(None) };
    let signed: SignedTicket = canonical::from_bytes(&body, TICKET_BYTES_MAX)
        .map_err(|error| TicketError::Unreadable(error.to_string()))?;
    let known = link.ticket();
    if signed.ticket == known {
        return Ok(None);
    }
    check_form(&signed, &link.channel.peer(), &gateway.identity.public_key(), now())?;
    check_renewal(&known, &signed.ticket)?;
    let deadline = deadline(&signed.ticket);
    link.renew(signed.ticket);
    Ok(Some(deadline))
}

async fn ask(link: &Link, path: &'static str) -> Option<Bytes> {
    let request = Request::get(path).body(Bytes::new()).expect("a literal path is valid");
    match link.channel.request(request).await {
        Ok(response) => Some(response).filter(|r| r.status() == StatusCode::OK).map(Response::into_body),
        Err(error) => {
            tracing::debug!(worker = link.channel.peer().short(), path, %error, "poll failed");
            None
        }
    }
}

/// When a ticket ends by the monotonic clock, which nobody sets back.
fn deadline(ticket: &Ticket) -> Instant {
    let left = Duration::from_millis(ticket.expires_at.0.saturating_sub(now().0));
    Instant::now() + left.min(TICKET_LIFE_MAX)
}
