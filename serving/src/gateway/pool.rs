//! The workers that are connected, and the choice among them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use overlay::{CancellationToken, Channel};
use protocol::gateway::RoutedService;
use protocol::order::Ticket;
use protocol::worker::{WorkerLoad, WorkerState};
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use super::table::Table;
use super::ticket::check_route;

/// One connection of one worker.
#[derive(Debug)]
pub(super) struct Link {
    /// Unique in this gateway's life.
    pub(super) id: u64,
    /// Requests go here.
    pub(super) channel: Channel,
    /// Cancelled when the worker is to be left at once: gone, or its ticket lapsed.
    pub(super) lost: CancellationToken,
    ticket: Mutex<Ticket>,
    load: Mutex<Option<WorkerLoad>>,
    is_ready: AtomicBool,
    is_draining: AtomicBool,
    in_flight: AtomicU32,
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
pub(super) struct Place(Arc<Link>);

impl Place {
    /// The worker.
    pub(super) fn link(&self) -> &Arc<Link> {
        &self.0
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// All connected workers.
#[derive(Debug, Default)]
pub(super) struct Pool {
    links: Mutex<BTreeMap<u64, Arc<Link>>>,
    counter: AtomicU64,
    arrivals: Notify,
}

impl Pool {
    /// Adds a worker whose ticket has been checked.
    pub(super) fn add(&self, channel: Channel, ticket: Ticket) -> Arc<Link> {
        let link = Arc::new(Link {
            id: self.counter.fetch_add(1, Ordering::Relaxed),
            channel,
            lost: CancellationToken::new(),
            ticket: Mutex::new(ticket),
            load: Mutex::default(),
            is_ready: AtomicBool::new(false),
            is_draining: AtomicBool::new(false),
            in_flight: AtomicU32::new(0),
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
            self.arrivals.notify_waiters();
        }
    }

    /// Ends when the next worker has become ready.
    pub(super) fn arrival(&self) -> Notified<'_> {
        self.arrivals.notified()
    }

    /// Takes a worker out, and tells the requests on it.
    pub(super) fn remove(&self, link: &Link) {
        self.lock().remove(&link.id);
        link.lost.cancel();
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
        let chosen = fit.min_by_key(|link| (link.in_flight(), link.last_used.load(Ordering::Relaxed)))?;
        // Under the lock, so that two requests do not both see the same idle worker.
        chosen.in_flight.fetch_add(1, Ordering::Relaxed);
        chosen.last_used.store(self.counter.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
        Some(Place(chosen.clone()))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, Arc<Link>>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
