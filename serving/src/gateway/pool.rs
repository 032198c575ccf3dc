//! The workers that are connected, and the choice among them.
//!
//! A request with which a worker was lost is a suspect: the next one may be lost by it too. A suspect runs alone. It
//! takes a worker that has no request, or has one emptied: a worker that is reserved for a suspect takes no other
//! request until the suspect has begun to be answered. As long as there are several workers, one stays open to all.
//! Where no worker becomes idle for long, answers that have begun may go on beside a suspect: they could not be
//! repeated, but after an ordinary death a whole node's requests are suspects, and they shall not wait for minutes.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use overlay::{CancellationToken, Channel, Limits};
use protocol::gateway::RoutedService;
use protocol::limits::LEASE_MS;
use protocol::order::{TICKET_BYTES_MAX, Ticket};
use protocol::worker::{WorkerLoad, WorkerState};
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use super::table::Table;
use super::ticket::check_route;

/// Largest answer to a poll: a load is below 1 KiB, a ticket below [`TICKET_BYTES_MAX`].
const POLL_BYTES_MAX: usize = 64 * 1024;
const _: () = assert!(TICKET_BYTES_MAX <= POLL_BYTES_MAX);
/// Longest answer to a poll. A ticket that comes later has lapsed.
const POLL_TIME_MAX: Duration = Duration::from_millis(LEASE_MS);
/// No suspect has this number.
const UNRESERVED: u64 = 0;

/// Why a worker leaves the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Departure {
    /// Its connection is gone.
    Closed,
    /// Its ticket was not renewed.
    Lapsed,
    /// Its slot was given to another worker, long ago.
    SlotEnded,
    /// The gateway ends.
    Shutdown,
    /// Its permit is another connection's.
    Evicted,
}

impl Departure {
    /// For the log.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "connection closed",
            Self::Lapsed => "ticket lapsed",
            Self::SlotEnded => "slot ended",
            Self::Shutdown => "shutdown",
            Self::Evicted => "evicted",
        }
    }

    /// Whether no request of the worker can have to do with it.
    fn is_orderly(self) -> bool {
        matches!(self, Self::SlotEnded | Self::Shutdown | Self::Evicted)
    }
}

/// One connection of one worker.
#[derive(Debug)]
pub(super) struct Link {
    /// Unique in this gateway's life.
    pub(super) id: u64,
    /// Requests go here.
    pub(super) channel: Channel,
    /// Questions about the worker itself go here: the same connection, with answers that are small and soon there.
    pub(super) polls: Channel,
    /// Cancelled when the worker is to be left at once: gone, or its ticket lapsed.
    pub(super) lost: CancellationToken,
    /// Whether it was let go in order, so that none of its requests is a suspect.
    left_in_order: AtomicBool,
    /// The suspect that it runs alone, or is being emptied for.
    reserved_for: AtomicU64,
    /// Notified when a worker has room that it had not.
    vacancies: Arc<Notify>,
    ticket: Mutex<Ticket>,
    load: Mutex<Option<WorkerLoad>>,
    is_ready: AtomicBool,
    is_draining: AtomicBool,
    in_flight: AtomicU32,
    /// Of these, requests whose answer has not begun.
    unanswered: AtomicU32,
    last_used: AtomicU64,
}

impl Link {
    /// The newest ticket; its form has been checked.
    pub(super) fn ticket(&self) -> Ticket {
        self.ticket.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A renewal, checked by the caller.
    pub(super) fn renew(&self, ticket: Ticket) {
        *self.ticket.lock().unwrap_or_else(PoisonError::into_inner) = ticket;
    }

    /// Take it out of the choice; what runs on it goes on.
    pub(super) fn drain(&self) {
        self.is_draining.store(true, Ordering::Relaxed);
    }

    /// Whether its model is loaded, as it last said.
    fn is_ready(&self) -> bool {
        self.is_ready.load(Ordering::Relaxed)
    }

    /// Whether it has not said yet that its model is loaded.
    pub(super) fn is_loading(&self) -> bool {
        self.load().is_none_or(|load| load.state == WorkerState::Loading)
    }

    /// What the worker said of itself.
    fn set_load(&self, load: WorkerLoad) {
        *self.load.lock().unwrap_or_else(PoisonError::into_inner) = Some(load);
    }

    /// What the worker last said of itself.
    pub(super) fn load(&self) -> Option<WorkerLoad> {
        self.load.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Requests that this gateway has on it.
    pub(super) fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Whether requests that ran on it when it left the pool are beyond suspicion.
    pub(super) fn left_in_order(&self) -> bool {
        self.left_in_order.load(Ordering::Acquire)
    }

    /// Opens it to all requests again, if it was reserved for this suspect.
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

/// A request's place on a worker, given back when dropped.
#[derive(Debug)]
pub(super) struct Place {
    link: Arc<Link>,
    is_answered: bool,
}

impl Place {
    /// The worker.
    pub(super) fn link(&self) -> &Arc<Link> {
        &self.link
    }

    /// The first byte of the answer has come.
    pub(super) fn answer_begins(&mut self) {
        if !std::mem::replace(&mut self.is_answered, true)
            && self.link.unanswered.fetch_sub(1, Ordering::AcqRel) == 1
        {
            self.link.vacancies.notify_waiters();
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.answer_begins();
        if self.link.in_flight.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.link.vacancies.notify_waiters();
        }
    }
}

/// A request with which a worker was lost. While it lives, at most one worker is reserved for it.
#[derive(Debug)]
pub(super) struct Suspect<'p> {
    pool: &'p Pool,
    id: u64,
}

impl Suspect<'_> {
    /// It has begun to answer: the worker that it runs on is open to all again.
    pub(super) fn acquit(&self) {
        self.pool.links().iter().for_each(|link| link.release(self.id));
    }
}

impl Drop for Suspect<'_> {
    fn drop(&mut self) {
        self.acquit();
    }
}

/// All connected workers.
#[derive(Debug, Default)]
pub(super) struct Pool {
    links: Mutex<BTreeMap<u64, Arc<Link>>>,
    counter: AtomicU64,
    vacancies: Arc<Notify>,
}

impl Pool {
    /// Adds a worker whose ticket has been checked.
    pub(super) fn add(&self, channel: Channel, ticket: Ticket) -> Arc<Link> {
        let limits =
            Limits { request: POLL_TIME_MAX, response_bytes_max: POLL_BYTES_MAX, ..Limits::default() };
        let link = Arc::new(Link {
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
        });
        self.lock().insert(link.id, link.clone());
        link
    }

    /// Notes what a worker said of itself; those who wait for one learn when it is ready.
    pub(super) fn heard(&self, link: &Link, load: WorkerLoad) {
        let is_ready = load.state == WorkerState::Ready;
        let was_ready = link.is_ready.swap(is_ready, Ordering::Relaxed);
        // Shown once it is so: who sees a ready worker in the metrics may count on it.
        link.set_load(load);
        if is_ready && !was_ready {
            self.vacancies.notify_waiters();
        }
    }

    /// Ends when the next worker has become ready, idle, or open to all.
    pub(super) fn vacancy(&self) -> Notified<'_> {
        self.vacancies.notified()
    }

    /// Takes a worker out, and tells the requests on it.
    pub(super) fn remove(&self, link: &Link, departure: Departure) {
        self.lock().remove(&link.id);
        link.left_in_order.store(departure.is_orderly(), Ordering::Release);
        link.lost.cancel();
    }

    /// A request with which a worker was lost.
    pub(super) fn suspect(&self) -> Suspect<'_> {
        Suspect { pool: self, id: self.counter.fetch_add(1, Ordering::Relaxed) + 1 }
    }

    /// Every worker.
    pub(super) fn links(&self) -> Vec<Arc<Link>> {
        self.lock().values().cloned().collect()
    }

    /// The least busy worker of these services that has not been `tried`; among equals the one that was
    /// chosen longest ago.
    pub(super) fn choose(&self, services: &[&RoutedService], table: &Table, tried: &[u64]) -> Option<Place> {
        let links = self.lock();
        let fit = links.values().filter(|link| !tried.contains(&link.id) && link.may_take(services, table));
        let open = fit.filter(|link| !link.is_reserved());
        let chosen = open.min_by_key(|link| (link.in_flight(), link.last_used.load(Ordering::Relaxed)))?;
        Some(self.take(chosen))
    }

    /// A worker that has no request and gets no other one before the suspect is acquitted. Where there is none, one
    /// is reserved, so that it becomes idle. When time presses, the last one that is open to all is reserved too,
    /// and answers that have begun do not count.
    pub(super) fn choose_alone(
        &self,
        services: &[&RoutedService],
        table: &Table,
        tried: &[u64],
        suspect: &Suspect<'_>,
        is_pressed: bool,
    ) -> Option<Place> {
        let links = self.lock();
        let fit: Vec<&Arc<Link>> = links
            .values()
            .filter(|link| !tried.contains(&link.id) && link.may_take(services, table))
            .collect();
        let is_mine = |link: &Link| link.reserved_for.load(Ordering::Acquire) == suspect.id;
        let open = fit.iter().filter(|link| !link.is_reserved()).count();
        let busy = |link: &&&Arc<Link>| (link.in_flight(), link.last_used.load(Ordering::Relaxed));
        let mine = fit.iter().find(|link| is_mine(link));
        // The last open worker may be taken where it is the only one there is, if it is idle or time presses.
        let least = fit.iter().filter(|link| !link.is_reserved()).min_by_key(busy);
        let least =
            least.filter(|link| open > 1 || (fit.len() == 1 && (link.in_flight() == 0 || is_pressed)));
        let is_idle = |link: &Link| {
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

    /// Under the lock, so that two requests do not both see the same idle worker.
    fn take(&self, link: &Arc<Link>) -> Place {
        link.in_flight.fetch_add(1, Ordering::AcqRel);
        link.unanswered.fetch_add(1, Ordering::AcqRel);
        link.last_used.store(self.counter.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
        Place { link: link.clone(), is_answered: false }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, Arc<Link>>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
