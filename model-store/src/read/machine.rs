//! State machine of the read of one batch: requests, hedges, decoding, replacement of shards, failure.
//!
//! A batch is a run of segments whose shards are adjacent in the object of each store. Any k shards of a
//! segment restore it. Shell code beside this file performs each [`ReadAction`] and reports each [`Event`].
//!
//! ```text
//!                  +---------+
//!       +--------->| Waiting |
//!       |          +---------+
//!       |               | room among the bytes in flight: request the best k stores
//!       |               v
//!       |          +----------+
//!       |          |          |--+ answer: the shard is at hand
//!       |          | Fetching |  | error: request the next store
//!       |          |          |<-+ late: hedge, request one more store
//!       |          +----------+
//!       |               | k shards are at hand, or no request is open: drop the late ones
//!       |               v
//!       |          +---------+
//!       +<---------| Fetched |
//!       |          +---------+
//!       |               | a thread is ready
//!       |               v
//!       |          +---------+
//!       |          |         |--+ each shard at hand goes into the block
//!       +<---------| Loading |<-+
//!       |          |         |<--------------------------------+
//!       |          +---------+                                 |
//!       |               |                                      |
//!       |               +-- fewer than k are in the block --+  | the next segment
//!       |               | k are in the block                |  |
//!       |               v                                   |  |
//!       |          +---------+  opened: publish the segment |  |
//!       |          | Opening |------------------------------|--+---> Done: it was the last
//!       |          |         |------------------------------|------> Failed: all shards are right,
//!       |          +---------+                              |                and rejected even so
//!       |            ^     | rejected                       |
//!       |            |     v                                |
//!       |            |  +----------+                        |
//!       |            |<-| Checking |<-----------------------+
//!       |  k shards  |  +----------+
//!       |  are right |     | fewer than k shards have the right digest
//!       |            |     v
//!       |            |  +-----------+
//!       |            +--|           |--+ failed, or wrong too: the next store
//!       | stalled disk: | Replacing |<-+
//!       +<--------------|           |------------------------------> Failed: no store is left
//!        again without  +-----------+
//! ```
//!
//! An event that the current state does not expect, such as the late answer of a dropped request, changes
//! nothing. An attempt that stalls on a disk runs on a copy of the machine, which is discarded with it.

use super::batch::SegmentBatch;
use crate::fault::FaultKind;
use std::collections::VecDeque;
use std::time::Duration;

/// Multiple of the bytes ahead of a request after which it counts as overtaken. Once is its turn; twice is
/// bad luck among requests that share a link.
const OVERTAKEN: u64 = 3;
/// Multiple of the time that the rate explains, beyond which a request is late.
const SLOWER: f64 = 4.0;
/// Wait that a slow link never explains: a segment at 100 kB/s. It bounds the gain of a store that sends a
/// byte now and then.
const WAIT_MAX: Duration = Duration::from_secs(10);

/// State of one shard, of a batch or of its current segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ShardState {
    /// Not requested, or dropped before an answer.
    Unasked,
    /// Requested, without an answer so far.
    Requested,
    /// Fetched, or stored in a directory of this machine.
    AtHand,
    /// In the block of the current segment.
    Present,
    /// Requested, loaded or checked without success.
    Failed(FaultKind),
}

/// Measurements of all requests of a reader at one time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct FlowReading {
    pub(super) now: Duration,
    /// Bytes that have arrived so far.
    pub(super) arrived: u64,
    /// Time of the last arrival.
    pub(super) last_at: Duration,
    /// Bytes that are ahead of a request that goes out now.
    pub(super) in_flight: u64,
    /// Bytes per second; `None` while unknown.
    pub(super) rate: Option<f64>,
}

/// Input of the machine.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Event {
    /// Bytes in flight have room for the batch. `ranked` are the stores that may be asked, best first.
    Started { ranked: Vec<usize>, reading: FlowReading },
    /// A store has answered a request.
    Answered { shard: usize },
    /// No store has answered for `timeout`.
    Quiet { reading: FlowReading, timeout: Duration },
    /// A thread is ready to decode.
    Begun,
    /// A shard of the current segment is in the block.
    Loaded { shard: usize },
    /// A request, a load or a replacement has failed.
    Failed { shard: usize, kind: FaultKind },
    /// The segment is decrypted, and its tag and digest are right.
    Opened,
    /// The segment's tag or digest is wrong, or its shards cannot be decoded.
    Rejected,
    /// Each digest is checked. `wrong` are the shards to discard, `ranked` the stores as of now.
    Checked { wrong: Vec<usize>, ranked: Vec<usize> },
    /// The disk of a shard has stalled, after `done` segments of the attempt that waits for it.
    Stalled { shard: usize, done: usize },
}

/// Output of the machine, to be performed in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ReadAction {
    /// Request the batch's bytes from a store; answer [`Event::Answered`] or [`Event::Failed`].
    Fetch { shard: usize },
    /// Request them from one more store, because another is late.
    Hedge { shard: usize },
    /// Stop waiting for a store that others have overtaken.
    Drop { shard: usize },
    /// Hand over to a thread that decodes; answer [`Event::Begun`].
    Decode,
    /// Put a shard of the current segment into the block.
    Load { shard: usize },
    /// Rebuild, decrypt and verify the current segment.
    Open,
    /// Check the digest of each shard in the block.
    Check,
    /// Get a shard of the current segment from a store that was not asked, and check its digest.
    Replace { shard: usize },
    /// Report that the segment at `position` is in place, and its faulty shards.
    Publish { position: usize, rebuilt: bool, faults: Vec<(usize, FaultKind)> },
    /// Report the faulty shards of the segment at `position`, and end the read.
    Fail { position: usize, reason: ReadFailure },
}

/// Reason for which a read fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ReadFailure {
    /// Only `good` shards are right, and no store is left to ask.
    ShardsTooFew { good: usize },
    /// The segment is rejected although each of its shards has the right digest.
    SegmentInvalid,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum ReadPhase {
    Waiting,
    /// `mark` is the reading at the start or at the last hedge.
    Fetching {
        mark: FlowReading,
    },
    Fetched,
    Loading,
    Opening {
        checked: bool,
    },
    Checking,
    Replacing,
    Done,
    Failed,
}

/// The read of one batch; see the module's picture.
#[derive(Debug, Clone)]
pub(super) struct BatchRead {
    /// Segments that are not in place yet.
    batch: SegmentBatch,
    /// Number of shards that restore a segment.
    needed: usize,
    /// Shards in directories of this machine; a thread reads them while it decodes.
    local: Vec<bool>,
    /// Shards whose disks have stalled.
    stalled: Vec<bool>,
    /// Stores to ask next, best first.
    ranked: VecDeque<usize>,
    shards: Vec<ShardState>,
    /// The shards of the current segment.
    segment: Vec<ShardState>,
    /// Number of requests beyond k, since the start.
    hedges: usize,
    phase: ReadPhase,
}

impl BatchRead {
    /// Returns the read of a batch, of which any `needed` shards restore each segment.
    pub(super) fn new(batch: SegmentBatch, needed: usize, local: Vec<bool>) -> Self {
        assert!((1..=local.len()).contains(&needed), "{needed} of {} shards", local.len());
        assert!(!batch.positions.is_empty(), "a batch has segments");
        let count = local.len();
        Self {
            batch,
            needed,
            local,
            stalled: vec![false; count],
            ranked: VecDeque::new(),
            shards: vec![ShardState::Unasked; count],
            segment: vec![ShardState::Unasked; count],
            hedges: 0,
            phase: ReadPhase::Waiting,
        }
    }

    /// Returns the segments that are not in place yet.
    pub(super) fn batch(&self) -> &SegmentBatch {
        &self.batch
    }

    /// Returns the state of each shard of the current segment.
    pub(super) fn segment(&self) -> &[ShardState] {
        &self.segment
    }

    /// Returns the faulty shards of the current segment.
    pub(super) fn faults(&self) -> Vec<(usize, FaultKind)> {
        let fault = |(shard, state): (usize, &ShardState)| match state {
            ShardState::Failed(kind) => Some((shard, *kind)),
            _ => None,
        };
        self.segment.iter().enumerate().filter_map(fault).collect()
    }

    /// Returns whether every segment of the batch is in place.
    pub(super) fn is_done(&self) -> bool {
        self.phase == ReadPhase::Done
    }

    /// Returns the shards that no store was asked for, or whose request was dropped.
    pub(super) fn unasked(&self) -> impl Iterator<Item = usize> {
        shards_in(&self.shards, ShardState::Unasked)
    }

    /// Advances by one event, and returns the actions that it causes.
    pub(super) fn on(&mut self, event: Event) -> Vec<ReadAction> {
        let actions = match (self.phase, event) {
            (ReadPhase::Waiting, Event::Started { ranked, reading }) => self.start(ranked, reading),
            (ReadPhase::Fetching { .. }, Event::Answered { shard }) if self.is_requested(shard) => {
                self.answer(shard)
            }
            (ReadPhase::Fetching { .. }, Event::Failed { shard, kind }) if self.is_requested(shard) => {
                self.request_another(shard, kind)
            }
            (ReadPhase::Fetching { mark }, Event::Quiet { reading, timeout })
                if is_late(&mark, &reading, timeout) =>
            {
                self.hedge(reading)
            }
            (ReadPhase::Fetched, Event::Begun) => self.load(),
            (ReadPhase::Loading, Event::Loaded { shard }) if self.is_loading(shard) => {
                self.loaded(shard, ShardState::Present)
            }
            (ReadPhase::Loading, Event::Failed { shard, kind }) if self.is_loading(shard) => {
                self.loaded(shard, ShardState::Failed(kind))
            }
            (ReadPhase::Opening { .. }, Event::Opened) => self.publish(),
            (ReadPhase::Opening { checked: false }, Event::Rejected) => self.check(),
            (ReadPhase::Opening { checked: true }, Event::Rejected) => self.fail(ReadFailure::SegmentInvalid),
            (ReadPhase::Checking, Event::Checked { wrong, ranked }) => self.checked(&wrong, ranked),
            (ReadPhase::Replacing, Event::Loaded { shard }) if self.is_replacing(shard) => {
                self.replaced(shard, ShardState::Present)
            }
            (ReadPhase::Replacing, Event::Failed { shard, kind }) if self.is_replacing(shard) => {
                self.replaced(shard, ShardState::Failed(kind))
            }
            (
                ReadPhase::Fetched | ReadPhase::Loading | ReadPhase::Replacing,
                Event::Stalled { shard, done },
            ) => self.restart(shard, done),
            _ => Vec::new(),
        };
        debug_assert_eq!(self.check_invariants(), Ok(()));
        actions
    }

    fn start(&mut self, ranked: Vec<usize>, reading: FlowReading) -> Vec<ReadAction> {
        debug_assert!(ranked.iter().all(|shard| *shard < self.shards.len()), "a store per shard: {ranked:?}");
        self.ranked = ranked.into_iter().filter(|shard| !self.stalled[*shard]).collect();
        let asked = (0..self.needed).filter_map(|_| self.ask()).collect::<Vec<usize>>();
        self.phase = ReadPhase::Fetching { mark: reading };
        let actions = asked.into_iter().filter(|shard| !self.local[*shard]);
        self.fetch_or_decode(actions.map(|shard| ReadAction::Fetch { shard }).collect())
    }

    fn answer(&mut self, shard: usize) -> Vec<ReadAction> {
        debug_assert!(!self.local[shard], "shards of this machine are not requested");
        self.shards[shard] = ShardState::AtHand;
        self.fetch_or_decode(Vec::new())
    }

    fn request_another(&mut self, failed: usize, kind: FaultKind) -> Vec<ReadAction> {
        self.shards[failed] = ShardState::Failed(kind);
        let asked = self.ask().filter(|shard| !self.local[*shard]);
        self.fetch_or_decode(asked.map(|shard| ReadAction::Fetch { shard }).into_iter().collect())
    }

    fn hedge(&mut self, reading: FlowReading) -> Vec<ReadAction> {
        self.phase = ReadPhase::Fetching { mark: reading };
        let asked = self.ask();
        self.hedges += usize::from(asked.is_some());
        let asked = asked.filter(|shard| !self.local[*shard]);
        self.fetch_or_decode(asked.map(|shard| ReadAction::Hedge { shard }).into_iter().collect())
    }

    /// Marks the best store that was not asked as asked. A shard of this machine is at hand immediately.
    fn ask(&mut self) -> Option<usize> {
        let shard = self.ranked.pop_front()?;
        debug_assert_eq!(self.shards[shard], ShardState::Unasked, "a store is asked once");
        self.shards[shard] = if self.local[shard] { ShardState::AtHand } else { ShardState::Requested };
        Some(shard)
    }

    /// Ends the fetch once k shards are at hand, or no request is open that could bring one.
    fn fetch_or_decode(&mut self, mut actions: Vec<ReadAction>) -> Vec<ReadAction> {
        let open: Vec<usize> = shards_in(&self.shards, ShardState::Requested).collect();
        if count(&self.shards, ShardState::AtHand) < self.needed && !open.is_empty() {
            return actions;
        }
        for shard in open {
            self.shards[shard] = ShardState::Unasked;
            actions.push(ReadAction::Drop { shard });
        }
        self.phase = ReadPhase::Fetched;
        actions.push(ReadAction::Decode);
        actions
    }

    fn load(&mut self) -> Vec<ReadAction> {
        debug_assert!(!self.batch.positions.is_empty(), "a segment is left");
        self.segment.clone_from(&self.shards);
        self.phase = ReadPhase::Loading;
        let actions = shards_in(&self.segment, ShardState::AtHand);
        let actions: Vec<ReadAction> = actions.map(|shard| ReadAction::Load { shard }).collect();
        if actions.is_empty() { self.check() } else { actions }
    }

    fn loaded(&mut self, shard: usize, state: ShardState) -> Vec<ReadAction> {
        self.segment[shard] = state;
        if self.segment.contains(&ShardState::AtHand) {
            return Vec::new();
        }
        if count(&self.segment, ShardState::Present) < self.needed {
            return self.check();
        }
        self.phase = ReadPhase::Opening { checked: false };
        vec![ReadAction::Open]
    }

    fn check(&mut self) -> Vec<ReadAction> {
        debug_assert!(!self.segment.contains(&ShardState::AtHand), "each shard at hand was loaded");
        self.phase = ReadPhase::Checking;
        vec![ReadAction::Check]
    }

    fn checked(&mut self, wrong: &[usize], ranked: Vec<usize>) -> Vec<ReadAction> {
        for shard in wrong {
            debug_assert_eq!(
                self.segment[*shard],
                ShardState::Present,
                "only shards in the block are checked"
            );
            self.segment[*shard] = ShardState::Failed(FaultKind::Wrong);
        }
        self.ranked = ranked.into();
        self.replace_or_open()
    }

    fn replaced(&mut self, shard: usize, state: ShardState) -> Vec<ReadAction> {
        self.segment[shard] = state;
        self.replace_or_open()
    }

    fn replace_or_open(&mut self) -> Vec<ReadAction> {
        let good = count(&self.segment, ShardState::Present);
        if good >= self.needed {
            self.phase = ReadPhase::Opening { checked: true };
            return vec![ReadAction::Open];
        }
        while let Some(shard) = self.ranked.pop_front() {
            if self.segment[shard] == ShardState::Unasked {
                self.segment[shard] = ShardState::Requested;
                self.phase = ReadPhase::Replacing;
                return vec![ReadAction::Replace { shard }];
            }
        }
        self.fail(ReadFailure::ShardsTooFew { good })
    }

    fn publish(&mut self) -> Vec<ReadAction> {
        let present = count(&self.segment, ShardState::Present);
        assert!(present >= self.needed, "a segment opened from {present} shards");
        let position = self.batch.positions.start;
        let rebuilt = self.segment[..self.needed].iter().any(|state| *state != ShardState::Present);
        let mut actions = vec![ReadAction::Publish { position, rebuilt, faults: self.faults() }];
        self.batch.positions.start += 1;
        if self.batch.positions.is_empty() {
            self.phase = ReadPhase::Done;
        } else {
            actions.extend(self.load());
        }
        actions
    }

    fn fail(&mut self, reason: ReadFailure) -> Vec<ReadAction> {
        debug_assert!(!self.batch.positions.is_empty(), "a segment has failed");
        self.phase = ReadPhase::Failed;
        vec![ReadAction::Fail { position: self.batch.positions.start, reason }]
    }

    /// Returns to the start, without the segments that are in place and without the disk that has stalled.
    fn restart(&mut self, stalled: usize, done: usize) -> Vec<ReadAction> {
        assert!(done < self.batch.positions.len(), "a segment is being read");
        self.batch.positions.start += done;
        self.stalled[stalled] = true;
        let state = |stalled: &bool| match stalled {
            true => ShardState::Failed(FaultKind::Unreachable),
            false => ShardState::Unasked,
        };
        self.shards = self.stalled.iter().map(state).collect();
        self.segment.clone_from(&self.shards);
        self.ranked.clear();
        self.hedges = 0;
        self.phase = ReadPhase::Waiting;
        Vec::new()
    }

    fn is_requested(&self, shard: usize) -> bool {
        self.shards[shard] == ShardState::Requested
    }

    fn is_loading(&self, shard: usize) -> bool {
        self.segment[shard] == ShardState::AtHand
    }

    fn is_replacing(&self, shard: usize) -> bool {
        self.segment[shard] == ShardState::Requested
    }

    /// Returns the first contradiction in the state.
    pub(super) fn check_invariants(&self) -> Result<(), String> {
        let requested = count(&self.shards, ShardState::Requested);
        let at_hand = count(&self.shards, ShardState::AtHand);
        let present = count(&self.segment, ShardState::Present);
        let stalled = |shard: usize| self.shards[shard] == ShardState::Failed(FaultKind::Unreachable);
        let all = 0..self.shards.len();
        let is_fetching = matches!(self.phase, ReadPhase::Fetching { .. });
        let rules = [
            (
                "more requests than k, replacements and hedges",
                requested + at_hand <= self.needed + self.hedges,
            ),
            ("requests are open exactly while it fetches", (requested > 0) == is_fetching),
            ("it fetches although k shards are at hand", !is_fetching || at_hand < self.needed),
            (
                "a shard of this machine was requested",
                all.clone().all(|shard| !(self.local[shard] && self.is_requested(shard))),
            ),
            ("a stalled disk is in use", all.clone().all(|shard| !self.stalled[shard] || stalled(shard))),
            (
                "a store was ranked twice, or asked before",
                !is_fetching || self.ranked.iter().all(|shard| self.shards[*shard] == ShardState::Unasked),
            ),
            (
                "one replacement at a time, and only while it replaces",
                count(&self.segment, ShardState::Requested)
                    == usize::from(self.phase == ReadPhase::Replacing),
            ),
            (
                "it loads although no shard is at hand",
                self.phase != ReadPhase::Loading || self.segment.contains(&ShardState::AtHand),
            ),
            (
                "fewer than k shards are opened",
                !matches!(self.phase, ReadPhase::Opening { .. }) || present >= self.needed,
            ),
            (
                "segments are left exactly until it is done",
                self.batch.positions.is_empty() == (self.phase == ReadPhase::Done),
            ),
        ];
        match rules.into_iter().find(|(_, holds)| !holds) {
            Some((rule, _)) => Err(format!("{rule}: {self:?}")),
            None => Ok(()),
        }
    }
}

/// Returns whether a request that went out at `mark` is late. It is if no byte arrives at all, or if three
/// times as many bytes have arrived as were ahead. A wait far longer than the rate explains is late too.
///
/// A store that is slow because the link is full would only be slower if another were asked too.
fn is_late(mark: &FlowReading, reading: &FlowReading, timeout: Duration) -> bool {
    debug_assert!(mark.arrived <= reading.arrived, "bytes only arrive");
    let waited = reading.now.saturating_sub(mark.now);
    if waited < timeout {
        return false;
    }
    let silence = reading.now.saturating_sub(reading.last_at.max(mark.now));
    let passed = reading.arrived - mark.arrived;
    let explained = reading.rate.map(|rate| Duration::from_secs_f64(SLOWER * mark.in_flight as f64 / rate));
    silence >= timeout
        || passed >= OVERTAKEN * mark.in_flight.max(1)
        || explained.is_some_and(|explained| waited >= timeout + explained)
        || waited >= WAIT_MAX
}

fn shards_in(states: &[ShardState], wanted: ShardState) -> impl Iterator<Item = usize> {
    states.iter().enumerate().filter(move |(_, state)| **state == wanted).map(|(shard, _)| shard)
}

fn count(states: &[ShardState], wanted: ShardState) -> usize {
    shards_in(states, wanted).count()
}

#[cfg(test)]
mod tests;
