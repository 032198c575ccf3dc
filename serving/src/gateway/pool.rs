//! Worker pool: the connected workers, and the choice among them.
//!
//! A request with which a worker was lost is a suspect: it may end the next worker too. A suspect runs alone.
//! It takes a worker without requests, or one is drained for it. A worker reserved for a suspect takes no
//! other request until the suspect's answer has begun. While there are several workers, one stays open to all
//! requests.
//!
//! If no worker becomes idle for long, answers that have begun may continue beside a suspect. They could not
//! be repeated; but after an ordinary death all requests of a node are suspects, and must not wait for
//! minutes.

use super::table::Table;
use super::ticket::check_route;
use overlay::{CancellationToken, Channel, Limits};
use protocol::Digest;
use protocol::gateway::RoutedService;
use protocol::limits::LEASE_MS;
use protocol::order::{TICKET_BYTES_MAX, Ticket};
use protocol::worker::{WorkerLoad, WorkerState};
use std::collections::BTreeMap;
#[cfg(test)]
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

/// Largest answer to a poll, in bytes: a load is below 1 KiB, a ticket below [`TICKET_BYTES_MAX`].
const POLL_BYTES_MAX: usize = 64 * 1024;
const _: () = assert!(TICKET_BYTES_MAX <= POLL_BYTES_MAX);
/// Time limit for a poll. A ticket that arrives later has expired.
const POLL_TIME_MAX: Duration = Duration::from_millis(LEASE_MS);
/// Value of `reserved_for` without a reservation; no suspect has this id.
const UNRESERVED: u64 = 0;

/// Cause of a worker's departure from the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Departure {
    /// The connection is closed.
    Closed,
    /// The ticket was not renewed.
    Lapsed,
    /// The slot was given to another worker, and the time to finish has passed.
    SlotEnded,
    /// The gateway shuts down.
    Shutdown,
    /// Another connection took the permit.
    Evicted,
}

impl Departure {
    /// Returns the text for the log.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "connection closed",
            Self::Lapsed => "ticket lapsed",
            Self::SlotEnded => "slot ended",
            Self::Shutdown => "shutdown",
            Self::Evicted => "evicted",
        }
    }

    /// Reports whether the departure cannot have been caused by a request of the worker.
    fn is_orderly(self) -> bool {
        matches!(self, Self::SlotEnded | Self::Shutdown | Self::Evicted)
    }
}

/// One connection of one worker.
#[derive(Debug)]
pub(super) struct WorkerConnection {
    /// Unique in this gateway's life.
    pub(super) id: u64,
    /// Channel for requests.
    pub(super) channel: Channel,
    /// Channel for polls: the same connection, with small answers and short time limits.
    pub(super) polls: Channel,
    /// Cancelled when the worker must be left immediately: it is gone, or its ticket expired.
    pub(super) lost: CancellationToken,
    /// Whether the worker left in an orderly way, so that none of its requests is a suspect.
    left_in_order: AtomicBool,
    /// The suspect that runs alone on this worker, or for which it is being drained.
    reserved_for: AtomicU64,
    /// Notified when a worker becomes ready, idle, or open to all.
    vacancies: Arc<Notify>,
    ticket: Mutex<Ticket>,
    load: Mutex<Option<WorkerLoad>>,
    is_ready: AtomicBool,
    is_draining: AtomicBool,
    in_flight: AtomicU32,
    /// Part of `in_flight`: requests whose answer has not begun.
    unanswered: AtomicU32,
    last_used: AtomicU64,
    /// Pieces of answers that came from the worker.
    pieces: AtomicU64,
}

impl WorkerConnection {
    /// Returns the newest ticket; its form has been checked.
    pub(super) fn ticket(&self) -> Ticket {
        self.ticket.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Stores a renewal, checked by the caller.
    pub(super) fn renew(&self, ticket: Ticket) {
        *self.ticket.lock().unwrap_or_else(PoisonError::into_inner) = ticket;
    }

    /// Stops new requests to this worker; running ones continue.
    pub(super) fn drain(&self) {
        self.is_draining.store(true, Ordering::Relaxed);
    }

    /// Reports whether the model is loaded, by the last poll.
    fn is_ready(&self) -> bool {
        self.is_ready.load(Ordering::Relaxed)
    }

    /// Reports whether the worker has not yet reported its model as loaded.
    pub(super) fn is_loading(&self) -> bool {
        self.load().is_none_or(|load| load.state == WorkerState::Loading)
    }

    /// Stores the load that the worker reported.
    fn set_load(&self, load: WorkerLoad) {
        *self.load.lock().unwrap_or_else(PoisonError::into_inner) = Some(load);
    }

    /// Returns the load that the worker last reported.
    pub(super) fn load(&self) -> Option<WorkerLoad> {
        self.load.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns the class of workers that continue this one's streams, if it has reported one.
    pub(super) fn numeric_class(&self) -> Option<Digest> {
        self.load.lock().unwrap_or_else(PoisonError::into_inner).as_ref()?.numeric_class
    }

    /// Returns the number of this gateway's requests on the worker.
    pub(super) fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Records a piece of an answer.
    pub(super) fn record_progress(&self) {
        self.pieces.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns the number of pieces of answers so far.
    pub(super) fn progress(&self) -> u64 {
        self.pieces.load(Ordering::Relaxed)
    }

    /// Reports whether the worker left in an orderly way, so that its requests are no suspects.
    pub(super) fn left_in_order(&self) -> bool {
        self.left_in_order.load(Ordering::Acquire)
    }

    /// Opens the worker to all requests again, if it was reserved for this suspect.
    fn release(&self, suspect: u64) {
        let reserved = &self.reserved_for;
        if reserved.compare_exchange(suspect, UNRESERVED, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
            self.vacancies.notify_waiters();
        }
    }

    fn is_reserved(&self) -> bool {
        self.reserved_for.load(Ordering::Acquire) != UNRESERVED
    }

    fn may_take(&self, services: &[&RoutedService], table: &Table) -> bool {
        let ticket = self.ticket.lock().unwrap_or_else(PoisonError::into_inner);
        services.iter().any(|service| service.service == ticket.service)
            && check_route(&ticket, table).is_ok()
            && table.route(&ticket.service, ticket.slot).is_some_and(|route| !route.draining)
            && self.is_ready()
            && !self.is_draining.load(Ordering::Relaxed)
            && !self.lost.is_cancelled()
            && !self.channel.is_closed()
    }
}

/// A request's permit on a worker, released when dropped.
#[derive(Debug)]
pub(super) struct RequestPermit {
    link: Arc<WorkerConnection>,
    is_answered: bool,
}

impl RequestPermit {
    /// Returns the worker's connection.
    pub(super) fn link(&self) -> &Arc<WorkerConnection> {
        &self.link
    }

    /// Records that the first byte of the answer has arrived.
    pub(super) fn answer_begins(&mut self) {
        if std::mem::replace(&mut self.is_answered, true) {
            return;
        }
        let unanswered = self.link.unanswered.fetch_sub(1, Ordering::AcqRel);
        assert!(unanswered > 0, "a permit counts as unanswered until its answer begins");
        if unanswered == 1 {
            self.link.vacancies.notify_waiters();
        }
    }
}

impl Drop for RequestPermit {
    fn drop(&mut self) {
        self.answer_begins();
        let in_flight = self.link.in_flight.fetch_sub(1, Ordering::AcqRel);
        assert!(in_flight > 0, "a permit counts until it is dropped");
        if in_flight == 1 {
            self.link.vacancies.notify_waiters();
        }
    }
}

/// A request with which a worker was lost. While it exists, at most one worker is reserved for it.
#[derive(Debug)]
pub(super) struct Suspect<'p> {
    pool: &'p WorkerPool,
    id: u64,
}

impl Suspect<'_> {
    /// Opens the reserved worker to all requests again, once the suspect's answer has begun.
    pub(super) fn release(&self) {
        self.pool.links().iter().for_each(|link| link.release(self.id));
    }
}

impl Drop for Suspect<'_> {
    fn drop(&mut self) {
        self.release();
    }
}

/// All connected workers.
#[derive(Debug, Default)]
pub(super) struct WorkerPool {
    links: Mutex<BTreeMap<u64, Arc<WorkerConnection>>>,
    counter: AtomicU64,
    vacancies: Arc<Notify>,
}

impl WorkerPool {
    /// Adds a worker whose ticket has been checked.
    pub(super) fn add(&self, channel: Channel, ticket: Ticket) -> Arc<WorkerConnection> {
        let limits =
            Limits { request: POLL_TIME_MAX, response_bytes_max: POLL_BYTES_MAX, ..Limits::default() };
        let link = Arc::new(WorkerConnection {
            id: self.counter.fetch_add(1, Ordering::Relaxed),
            polls: channel.with_limits(limits),
            channel,
            lost: CancellationToken::new(),
            left_in_order: AtomicBool::new(false),
            reserved_for: AtomicU64::new(UNRESERVED),
            vacancies: self.vacancies.clone(),
            ticket: Mutex::new(ticket),
            load: Mutex::default(),
            is_ready: AtomicBool::new(false),
            is_draining: AtomicBool::new(false),
            in_flight: AtomicU32::new(0),
            unanswered: AtomicU32::new(0),
            last_used: AtomicU64::new(0),
            pieces: AtomicU64::new(0),
        });
        self.lock().insert(link.id, link.clone());
        link
    }

    /// Records a worker's load and wakes waiting requests when it becomes ready.
    pub(super) fn record_load(&self, link: &WorkerConnection, load: WorkerLoad) {
        let is_ready = load.state == WorkerState::Ready;
        let was_ready = link.is_ready.swap(is_ready, Ordering::Relaxed);
        // Published after readiness: a client that sees a ready worker in the metrics may rely on it.
        link.set_load(load);
        if is_ready && !was_ready {
            self.vacancies.notify_waiters();
        }
    }

    /// Completes when the next worker becomes ready, idle, or open to all.
    pub(super) fn vacancy(&self) -> Notified<'_> {
        self.vacancies.notified()
    }

    /// Removes a worker and notifies the requests on it.
    pub(super) fn remove(&self, link: &WorkerConnection, departure: Departure) {
        self.lock().remove(&link.id);
        link.left_in_order.store(departure.is_orderly(), Ordering::Release);
        link.lost.cancel();
    }

    /// Registers a request with which a worker was lost.
    pub(super) fn suspect(&self) -> Suspect<'_> {
        let id = self.counter.fetch_add(1, Ordering::Relaxed) + 1;
        assert_ne!(id, UNRESERVED, "a suspect's id is never that of an open worker");
        Suspect { pool: self, id }
    }

    /// Returns all workers.
    pub(super) fn links(&self) -> Vec<Arc<WorkerConnection>> {
        self.lock().values().cloned().collect()
    }

    /// Chooses the least busy worker of these services that is not in `tried`, and of this class if one is
    /// given; among equals the one that was chosen longest ago.
    pub(super) fn choose(
        &self,
        services: &[&RoutedService],
        table: &Table,
        tried: &[u64],
        class: Option<Digest>,
    ) -> Option<RequestPermit> {
        assert!(!services.is_empty(), "a request without a service is rejected earlier");
        let links = self.lock();
        let fit = links.values().filter(|link| !tried.contains(&link.id) && link.may_take(services, table));
        let of_class = fit.filter(|link| class.is_none() || link.numeric_class() == class);
        let open = of_class.filter(|link| !link.is_reserved());
        let chosen = open.min_by_key(|link| (link.in_flight(), link.last_used.load(Ordering::Relaxed)))?;
        Some(self.take(chosen))
    }

    /// Chooses a worker without requests that takes no other until its reservation ends. If there is
    /// none, one is reserved, so that it becomes idle. Under time pressure the last worker open to all is
    /// reserved too, and answers that have begun do not count.
    pub(super) fn choose_alone(
        &self,
        services: &[&RoutedService],
        table: &Table,
        tried: &[u64],
        suspect: &Suspect<'_>,
        is_pressed: bool,
    ) -> Option<RequestPermit> {
        assert!(!services.is_empty(), "a request without a service is rejected earlier");
        let links = self.lock();
        let fit: Vec<&Arc<WorkerConnection>> = links
            .values()
            .filter(|link| !tried.contains(&link.id) && link.may_take(services, table))
            .collect();
        let is_mine = |link: &WorkerConnection| link.reserved_for.load(Ordering::Acquire) == suspect.id;
        let open = fit.iter().filter(|link| !link.is_reserved()).count();
        let busy =
            |link: &&&Arc<WorkerConnection>| (link.in_flight(), link.last_used.load(Ordering::Relaxed));
        let mine = fit.iter().find(|link| is_mine(link));
        // The last open worker may be taken if it is the only one, and is idle or time presses.
        let least = fit.iter().filter(|link| !link.is_reserved()).min_by_key(busy);
        let least =
            least.filter(|link| open > 1 || (fit.len() == 1 && (link.in_flight() == 0 || is_pressed)));
        let is_idle = |link: &WorkerConnection| {
            link.in_flight() == 0 || (is_pressed && link.unanswered.load(Ordering::Acquire) == 0)
        };
        let idle = mine.into_iter().chain(least).find(|link| is_idle(link));
        match (idle, mine, least) {
            (Some(idle), mine, _) => {
                if let Some(other) = mine.filter(|mine| mine.id != idle.id) {
                    other.release(suspect.id);
                }
                idle.reserved_for.store(suspect.id, Ordering::Release);
                Some(self.take(idle))
            }
            (None, None, Some(least)) => {
                least.reserved_for.store(suspect.id, Ordering::Release);
                None
            }
            (None, ..) => None,
        }
    }

    /// Takes a permit. Called under the lock, so that two requests cannot both take the same idle worker.
    fn take(&self, link: &Arc<WorkerConnection>) -> RequestPermit {
        link.in_flight.fetch_add(1, Ordering::AcqRel);
        link.unanswered.fetch_add(1, Ordering::AcqRel);
        link.last_used.store(self.counter.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
        RequestPermit { link: link.clone(), is_answered: false }
    }

    /// Checks that permits, reservations and departures of the pool agree with each other.
    ///
    /// # Errors
    /// Describes the first violation.
    #[cfg(test)]
    pub(super) fn check_invariants(&self) -> Result<(), String> {
        let mut suspects = BTreeSet::new();
        for (id, link) in self.lock().iter() {
            let unanswered = link.unanswered.load(Ordering::Acquire);
            if unanswered > link.in_flight() {
                let requests = link.in_flight();
                return Err(format!("worker {id} has {requests} requests, {unanswered} of them unanswered"));
            }
            if link.lost.is_cancelled() {
                return Err(format!("worker {id} is lost, but in the pool"));
            }
            let suspect = link.reserved_for.load(Ordering::Acquire);
            let is_reserved = suspect != UNRESERVED && !link.channel.is_closed();
            if is_reserved && !suspects.insert(suspect) {
                return Err(format!("suspect {suspect} has reserved two workers"));
            }
        }
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, Arc<WorkerConnection>>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::Simulation;
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_planted_violation_of_the_pool_is_reported() {
        type Plant = fn(&[Arc<WorkerConnection>]);
        let cases: [(Plant, &str); 3] = [
            (|links| links[1].unanswered.store(1, Ordering::Release), "0 requests, 1 of them unanswered"),
            (|links| links[0].lost.cancel(), "is lost, but in the pool"),
            (
                |links| links.iter().for_each(|link| link.reserved_for.store(7, Ordering::Release)),
                "suspect 7 has reserved two workers",
            ),
        ];
        for (plant, expected) in cases {
            let simulation = Simulation::new(1 << 20);
            let _workers = [simulation.worker().await, simulation.worker().await];
            let pool = &simulation.gateway.pool;
            assert_eq!(pool.check_invariants(), Ok(()));
            plant(&pool.links());
            let found = pool.check_invariants().expect_err(expected);
            assert!(found.contains(expected), "{found} lacks {expected}");
        }
    }
}
