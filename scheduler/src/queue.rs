//! Queue of gangs: the order in which they start, backfill behind a reservation, and reclaim.
//!
//! Gangs come in the order of their turns ([`QuotaTree::turns`]). The first for which there is no space gets
//! a reservation: the earliest time at which it fits if every running gang takes all of its declared run
//! time. A later gang starts before it only if that does not move the reservation. A wide gang is thus never
//! starved by narrow ones, and each gang starts whole. A gang that would pass a limit of its project gets
//! such a reservation too, of quota, behind which the gangs of that project alone stand back.
//!
//! Gangs with a claim are decided before all others, those first from which no other could reclaim. They
//! reclaim: gangs that borrow what they lack are preempted, those of the lowest priority first, then the
//! latest. The room that ends is kept for them, so that no other takes a part of it and the gang reclaims
//! again. A gang behind another of its project has no claim: it would overtake that one.
//!
//! Space is abstract here ([`GangRoom`]); the planner's is made of nodes and slots.

mod reclaim;
#[cfg(test)]
mod tests;

use crate::fair_share::{GangCharge, QuotaShortfall, QuotaTree};

/// Most gangs that are considered for backfill in one pass; the next pass begins at the head again.
const BACKFILL_MAX: usize = 256;

/// Space in which gangs are placed.
pub(crate) trait GangRoom: Clone {
    /// Gang with its demands.
    type Gang;
    /// Whole placement of a gang.
    type Place: Clone;

    /// Returns a placement of the whole gang in what is free; none if it does not fit.
    fn place(&self, gang: &Self::Gang) -> Option<Self::Place>;

    /// Takes a placement; returns false and changes nothing if part of it is not free.
    fn take(&mut self, gang: &Self::Gang, place: &Self::Place) -> bool;

    /// Gives a placement back.
    fn give(&mut self, gang: &Self::Gang, place: &Self::Place);
}

/// Gang that holds its placement.
#[derive(Debug, Clone)]
pub(crate) struct RunningGang<G, P> {
    pub(crate) gang: G,
    pub(crate) place: P,
    pub(crate) charge: GangCharge,
    pub(crate) priority: u32,
    /// Time of its start in milliseconds.
    pub(crate) since: u64,
    /// Time at which its run time is over, in milliseconds.
    pub(crate) ends_at: u64,
    /// Time in milliseconds from the request to end until it has ended; none if it ends already.
    pub(crate) grace_ms: Option<u64>,
}

/// Gang that waits.
#[derive(Debug, Clone)]
pub(crate) struct WaitingGang<G> {
    pub(crate) gang: G,
    pub(crate) charge: GangCharge,
    pub(crate) priority: u32,
    pub(crate) submitted_at: u64,
    /// Declared run time in milliseconds.
    pub(crate) run_ms: u64,
}

/// Decision about a waiting gang.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum GangTurn<P> {
    /// It starts now, here.
    Starts(P),
    /// It is the first that waits for space; it starts at this time in milliseconds at the latest.
    Reserved { at: u64 },
    /// Gangs that borrow make room for it, or others end; the room is kept for it, and free by this time.
    Reclaims { at: u64 },
    /// It would not fit if every running gang had ended: nodes are missing.
    NoRoom,
    /// Its project holds what it may, or would with the gang before it.
    Quota(QuotaShortfall),
    /// It waits behind the gang that has the reservation, or does not fit yet.
    Behind,
}

/// Decisions of one pass.
#[derive(Debug, Clone)]
pub(crate) struct Schedule<P> {
    /// One decision for each waiting gang, in their order.
    pub(crate) turns: Vec<GangTurn<P>>,
    /// Positions of the running gangs that are preempted.
    pub(crate) preempted: Vec<usize>,
}

/// State in which the queue is decided.
#[derive(Debug)]
pub(crate) struct QueueState<'a, R: GangRoom> {
    /// Free space.
    pub(crate) room: &'a R,
    /// Projects, with what running gangs hold.
    pub(crate) quotas: &'a QuotaTree,
    pub(crate) running: &'a [RunningGang<R::Gang, R::Place>],
    pub(crate) now: u64,
    /// Most gangs that may be preempted in this pass.
    pub(crate) preempted_max: usize,
}

/// Decides which waiting gangs start now. They come in the order of their turns.
pub(crate) fn schedule<R: GangRoom>(
    state: &QueueState<'_, R>,
    waiting: &[WaitingGang<R::Gang>],
) -> Schedule<R::Place> {
    let mut pass = Pass::new(state, waiting);
    let mut turns: Vec<GangTurn<R::Place>> = waiting.iter().map(|_| GangTurn::Behind).collect();
    let decided = pass.decide_claims(&mut turns);
    let mut considered = 0;
    for at in (0..waiting.len()).filter(|at| !decided.contains(at)) {
        considered += usize::from(pass.reservation.is_some());
        if considered > BACKFILL_MAX {
            break;
        }
        turns[at] = pass.decide(at, false);
    }
    debug_assert_eq!(turns.len(), waiting.len(), "each gang has its decision");
    Schedule { turns, preempted: pass.preempted }
}

/// Reservation of space for the first gang that does not fit.
struct Reservation<R> {
    at: u64,
    /// Space at that time, without that of the gang.
    room: R,
    /// Quotas at that time, with the gang.
    quotas: QuotaTree,
}

/// Reservation of quota for the first gang that a node of the tree keeps back.
struct QuotaHold {
    shortfall: QuotaShortfall,
    at: u64,
    /// Quotas at that time, with the gang.
    quotas: QuotaTree,
}

/// End of a gang to come: its time, the gang, its place and its charge.
type ToCome<'a, R> = (u64, &'a <R as GangRoom>::Gang, &'a <R as GangRoom>::Place, &'a GangCharge);

/// A pass over the queue under construction.
struct Pass<'a, R: GangRoom> {
    state: &'a QueueState<'a, R>,
    waiting: &'a [WaitingGang<R::Gang>],
    free: R,
    quotas: QuotaTree,
    /// Space and quotas once what ends has ended, without what is kept for gangs that reclaim.
    later: R,
    later_quotas: QuotaTree,
    /// Times at which running gangs end that end already or are preempted.
    ends: Vec<Option<u64>>,
    /// Gangs for which room is kept, with the time by which it is free.
    kept: Vec<(usize, R::Place, u64)>,
    started: Vec<(usize, R::Place)>,
    reservation: Option<Reservation<R>>,
    holds: Vec<QuotaHold>,
    preempted: Vec<usize>,
    /// Number of gangs for which victims were sought.
    searches: usize,
}

impl<'a, R: GangRoom> Pass<'a, R> {
    fn new(state: &'a QueueState<'a, R>, waiting: &'a [WaitingGang<R::Gang>]) -> Self {
        let (mut later, mut later_quotas) = (state.room.clone(), state.quotas.clone());
        for gang in state.running.iter().filter(|gang| gang.grace_ms.is_none()) {
            later.give(&gang.gang, &gang.place);
            later_quotas.give(&gang.charge);
        }
        let ends = |gang: &RunningGang<R::Gang, R::Place>| {
            gang.grace_ms.is_none().then(|| gang.ends_at.max(state.now))
        };
        Self {
            state,
            waiting,
            free: state.room.clone(),
            quotas: state.quotas.clone(),
            later,
            later_quotas,
            ends: state.running.iter().map(ends).collect(),
            kept: Vec::new(),
            started: Vec::new(),
            reservation: None,
            holds: Vec::new(),
            preempted: Vec::new(),
            searches: 0,
        }
    }

    fn decide(&mut self, at: usize, has_claim: bool) -> GangTurn<R::Place> {
        let waiting = self.waiting;
        let entry = &waiting[at];
        debug_assert!(self.started.iter().all(|(other, _)| *other != at), "a gang is decided once");
        if let Some(shortfall) = self.quotas.permanent_shortfall(&entry.charge) {
            return GangTurn::Quota(shortfall);
        }
        let shortfall = self.quotas.shortfall(&entry.charge);
        let place = self.free.place(&entry.gang).filter(|_| shortfall.is_none());
        if let Some(place) = place {
            return match self.start(at, &place) {
                Ok(()) => GangTurn::Starts(place),
                Err(Some(shortfall)) => GangTurn::Quota(shortfall),
                Err(None) => GangTurn::Behind,
            };
        }
        if has_claim && let Some(at) = self.reclaim(at) {
            return GangTurn::Reclaims { at };
        }
        if let Some(shortfall) = shortfall {
            self.hold_quota(entry, &shortfall);
            return GangTurn::Quota(shortfall);
        }
        if self.reservation.is_some() {
            return GangTurn::Behind;
        }
        self.reservation = self.reserve(entry);
        self.reservation.as_ref().map_or(GangTurn::NoRoom, |reserved| GangTurn::Reserved { at: reserved.at })
    }

    /// Starts a gang, unless it would delay one before it; the error is the shortfall of the project for
    /// whose gang quota is held, if that is the reason.
    fn start(&mut self, at: usize, place: &R::Place) -> Result<(), Option<QuotaShortfall>> {
        let waiting = self.waiting;
        let entry = &waiting[at];
        let ends_at = self.state.now.saturating_add(entry.run_ms);
        let delays = |hold: &&QuotaHold| ends_at > hold.at && !hold.quotas.admits(&entry.charge);
        if let Some(hold) = self.holds.iter().find(delays) {
            return Err(Some(hold.shortfall.clone()));
        }
        // A gang that is over before the reserved time takes nothing of it.
        let reservation = self.reservation.as_mut().filter(|reserved| ends_at > reserved.at);
        if let Some(reserved) = &reservation
            && !reserved.quotas.admits(&entry.charge)
        {
            return Err(None);
        }
        if !self.later_quotas.admits(&entry.charge) || !self.later.take(&entry.gang, place) {
            return Err(None);
        }
        if let Some(reserved) = reservation {
            if !reserved.room.take(&entry.gang, place) {
                self.later.give(&entry.gang, place);
                return Err(None);
            }
            reserved.quotas.take(&entry.charge);
        }
        self.later_quotas.take(&entry.charge);
        let taken = self.free.take(&entry.gang, place);
        debug_assert!(taken, "a placement is of what is free");
        debug_assert!(self.quotas.admits(&entry.charge), "no limit is passed");
        self.quotas.take(&entry.charge);
        self.holds
            .iter_mut()
            .filter(|hold| ends_at > hold.at)
            .for_each(|hold| hold.quotas.take(&entry.charge));
        self.started.push((at, place.clone()));
        Ok(())
    }

    /// Returns the state from which reservations are made: space and quotas at a time, and the ends to come
    /// after it, the first first. Gangs that are over by now end now. While room is kept for gangs that
    /// reclaim, the state is that in which they have it.
    fn forecast(&self) -> (R, QuotaTree, u64, Vec<ToCome<'_, R>>) {
        let (now, has_kept) = (self.state.now, !self.kept.is_empty());
        let running = self.state.running.iter().zip(&self.ends);
        let held = running.filter(|(_, end)| end.is_none() || !has_kept).map(|(gang, end)| {
            let ends_at = end.unwrap_or(gang.ends_at).max(now);
            (ends_at, &gang.gang, &gang.place, &gang.charge)
        });
        let begun = self.started.iter().map(|(at, place)| (at, place, now));
        let kept = self.kept.iter().map(|(at, place, from)| (at, place, *from));
        let fresh = begun.chain(kept).map(|(at, place, from)| {
            let entry = &self.waiting[*at];
            (from.saturating_add(entry.run_ms), &entry.gang, place, &entry.charge)
        });
        let mut ends: Vec<ToCome<'_, R>> = held.chain(fresh).collect();
        ends.sort_by_key(|(time, ..)| *time);
        debug_assert!(ends.iter().all(|(time, ..)| *time >= now), "no end to come is in the past");
        match has_kept {
            true => (self.later.clone(), self.later_quotas.clone(), self.ended_by(), ends),
            false => (self.free.clone(), self.quotas.clone(), now, ends),
        }
    }

    /// Returns the time by which what ends has ended.
    fn ended_by(&self) -> u64 {
        self.ends.iter().flatten().copied().max().unwrap_or(self.state.now)
    }

    /// Returns the earliest time at which a gang fits, with the space that is left then beside it.
    fn reserve(&self, head: &WaitingGang<R::Gang>) -> Option<Reservation<R>> {
        let (mut room, mut quotas, earliest, ends) = self.forecast();
        let reserved = |room: &mut R, quotas: &mut QuotaTree, at: u64| {
            let place = room.place(&head.gang)?;
            let taken = room.take(&head.gang, &place);
            debug_assert!(taken, "a reservation is of what is free");
            quotas.take(&head.charge);
            Some(Reservation { at, room: room.clone(), quotas: quotas.clone() })
        };
        if let Some(reservation) = reserved(&mut room, &mut quotas, earliest) {
            return Some(reservation);
        }
        for (at, (time, gang, place, charge)) in ends.iter().enumerate() {
            room.give(gang, place);
            quotas.give(charge);
            // Gangs that end at the same time give their space back together.
            if ends.get(at + 1).is_some_and(|(next, ..)| next == time) {
                continue;
            }
            let at = (*time).max(earliest);
            if let Some(reservation) = reserved(&mut room, &mut quotas, at) {
                return Some(reservation);
            }
        }
        None
    }

    /// Holds quota for a gang, until running gangs of the project have ended. The first gang that a project
    /// keeps back is the one for which quota is held there.
    fn hold_quota(&mut self, head: &WaitingGang<R::Gang>, shortfall: &QuotaShortfall) {
        if self.holds.iter().any(|hold| hold.shortfall.is_of_same_node(shortfall)) {
            return;
        }
        let (_, mut quotas, earliest, ends) = self.forecast();
        let mut ends = ends.into_iter();
        let mut at = quotas.admits(&head.charge).then_some(earliest);
        while at.is_none() {
            let Some((time, _, _, charge)) = ends.next() else { return };
            quotas.give(charge);
            at = quotas.admits(&head.charge).then_some(time.max(earliest));
        }
        let Some(at) = at else { return };
        quotas.take(&head.charge);
        debug_assert!(at >= self.state.now, "quota is not held in the past");
        self.holds.push(QuotaHold { shortfall: shortfall.clone(), at, quotas });
    }
}
