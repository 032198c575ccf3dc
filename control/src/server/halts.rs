//! Halts at a control replica: durable before they are acknowledged, and handed on to nodes and to the other
//! replicas.
//!
//! A replica takes a halt alone, without a leader and without a quorum: the member's signature is all that it
//! takes. Nodes and replicas ask every replica with requests that wait for news, so no replica can withhold
//! what another one has. Halts are no part of the replicated log, which would need a quorum; lifts are.

use super::Server;
use super::polls::hold;
use super::problem::{Failure, unavailable};
use anyhow::{Context as _, Result};
use axum::body::Bytes;
use futures::future::join_all;
use host::files;
use host::random::random_bytes;
use human_chain::{ChainError, CircleState, DeferredHalts, HaltBook, VerifiedHalt, check_halt, covers};
use overlay::{CancellationToken, Client, Rate, RateLimiter};
use protocol::governance::HistoryHead;
use protocol::halt::{
    HALT_BOOK_BYTES_MAX, HALT_BYTES_MAX, HALTED_SLOTS_SHOWN, HALTS_PAGE_MAX, Halt, HaltBookRecord,
    HaltCursor, HaltReceipt, HaltedSlot, HaltsAnswer, HaltsRequest, SignedHalt,
};
use protocol::limits::{MEMBERS_MAX, POLL_WAIT_MS_MAX};
use protocol::{CircleId, Digest, HaltId, MemberId, Refusal, ReplicaId, canonical, error_code};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// File name of the halts in a replica's directory.
const FILE: &str = "halts";
/// Path on which admitted nodes and other replicas ask a replica for its halts.
pub(super) const PATH: &str = "/agent/v1/halts";
/// Maximum size of a request for halts in bytes.
pub(super) const REQUEST_BYTES_MAX: usize = 128;
/// Time for which another replica may hold a request; its limit on a request is twice as long.
const PEER_WAIT_MS: u32 = 500;
/// Minimum interval between two requests to one replica.
const REQUEST_GAP: Duration = Duration::from_millis(200);
/// Interval of the check whether the circle's history has grown.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(500);
/// Largest answer of another replica in bytes.
const ANSWER_BYTES_MAX: usize = HALTS_PAGE_MAX * HALT_BYTES_MAX + 64;
/// Rate limit of the new halts of one member, each of which costs a write. It counts verified halts alone:
/// the holder of a leaked token, or of another member's key, takes nothing from it.
const HALTS_PER_MEMBER: Rate = Rate { burst: 64, interval: Duration::from_millis(500) };

/// The halts of a replica, and their file.
pub(crate) struct HaltStore {
    path: PathBuf,
    circle: CircleId,
    /// Incarnation, for the cursors of those who ask.
    boot: u64,
    book: Mutex<HaltBook>,
    /// Held while the file is written. The book is never locked for as long as a disk takes.
    writing: Mutex<()>,
    deferred: Mutex<DeferredHalts<ReplicaId>>,
    /// Head of the history by which the halts were judged last.
    judged_at: Mutex<Option<HistoryHead>>,
    news: watch::Sender<u64>,
    /// Origin of the limiter's clock, which is monotonic.
    began: Instant,
    limiter: Mutex<RateLimiter<MemberId>>,
}

impl HaltStore {
    /// Opens the file in a replica's directory; without one there is no halt.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read or trusted: the replica would forget halts.
    pub(crate) fn open(directory: &Path, circle: CircleId) -> Result<Self> {
        let path = directory.join(FILE);
        let place = || format!("read the halts in `{}`", path.display());
        let bytes = files::read(&path, Digest::LENGTH + HALT_BOOK_BYTES_MAX).with_context(place)?;
        let record = bytes.map(|bytes| HaltBookRecord::from_file(&bytes, circle)).transpose();
        let book = record.with_context(place)?.map(HaltBook::from_record).unwrap_or_default();
        Ok(Self {
            circle,
            boot: u64::from_le_bytes(random_bytes()),
            news: watch::Sender::new(book.last()),
            book: Mutex::new(book),
            writing: Mutex::default(),
            deferred: Mutex::default(),
            judged_at: Mutex::default(),
            began: Instant::now(),
            limiter: Mutex::new(RateLimiter::new(MEMBERS_MAX, None)),
            path,
        })
    }

    /// Takes one verified halt from the limit of its member.
    ///
    /// # Errors
    /// `limit-reached`, with the time to wait.
    pub(super) fn admit(&self, member: &MemberId) -> Result<(), Failure> {
        let mut limiter = lock(&self.limiter);
        limiter.take(member, HALTS_PER_MEMBER, self.began.elapsed()).map_err(|wait| {
            let failure = Failure::new(error_code::LIMIT_REACHED, format!("too many halts of {member}"));
            failure.remedy(format!("retry in {} s", wait.as_millis().div_ceil(1000)))
        })
    }

    /// Returns the halts after a position, as many as one answer holds.
    fn after(&self, cursor: HaltCursor) -> HaltsAnswer {
        let number = if cursor.boot == self.boot { cursor.number } else { 0 };
        let (number, halts) = lock(&self.book).after(number);
        HaltsAnswer { last: HaltCursor { boot: self.boot, number }, halts }
    }

    /// Waits until there is a halt after a position, for a limited time, or until the replica stops.
    pub(super) async fn wait(&self, request: HaltsRequest, ending: &CancellationToken) -> HaltsAnswer {
        let wait = Duration::from_millis(request.wait_ms.min(POLL_WAIT_MS_MAX).into());
        hold(wait, self.news.subscribe(), ending.cancelled(), || {
            let answer = self.after(request.after);
            let is_news = !answer.halts.is_empty();
            (answer, is_news)
        })
        .await
    }

    /// Changes the book, and returns once the change is durable. Blocks for as long as the disk takes.
    fn change(&self, edit: impl FnOnce(&mut HaltBook) -> Result<bool, ChainError>) -> Result<bool, Failure> {
        let _writing = lock(&self.writing);
        let mut book = lock(&self.book).clone();
        if !edit(&mut book).map_err(Refusal::from)? {
            return Ok(false);
        }
        let record = book.to_record(self.circle).to_file();
        files::write_secret(&self.path, &record)
            .map_err(|error| unavailable(format!("write `{}`: {error}", self.path.display())))?;
        let last = book.last();
        *lock(&self.book) = book;
        self.news.send_replace(last);
        Ok(true)
    }

    /// Keeps a halt for later that did not count by the history up to this head. If a later one was followed
    /// since, the next check judges it again, without a new decision.
    pub(super) fn defer(&self, peer: ReplicaId, signed: SignedHalt, judged_by: Option<HistoryHead>) {
        lock(&self.deferred).defer(peer, signed);
        let mut followed = lock(&self.judged_at);
        if *followed != judged_by {
            *followed = None;
        }
    }

    /// Returns the signed halts behind this one, by id.
    pub(super) fn listed(&self, after: Option<HaltId>) -> Vec<(HaltId, SignedHalt)> {
        let book = lock(&self.book);
        let later = book.signed().filter(|(id, _)| after.is_none_or(|after| **id > after));
        later.map(|(id, signed)| (*id, signed.clone())).collect()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no holder of this lock panics")
}

impl Server {
    /// Verifies a halt by the circle's state here.
    fn verify_halt(&self, signed: SignedHalt) -> Result<VerifiedHalt, Failure> {
        let missing = || Failure::new(error_code::CIRCLE_NOT_FOUNDED, "the circle is not founded yet");
        self.cluster(|cluster| {
            let state = cluster.circle_state().ok_or_else(missing)?;
            Ok(check_halt(state, signed).map_err(Refusal::from)?)
        })
    }

    /// Takes a member's halt. It is durable on this replica's disk when this returns.
    ///
    /// # Errors
    /// Returns an error if the halt does not verify here, its member has sent too many, or the disk does not
    /// take it.
    pub(super) async fn take_halt(self: &Arc<Self>, signed: SignedHalt) -> Result<HaltReceipt, Failure> {
        let verified = self.verify_halt(signed.clone())?;
        let (id, halt) = (verified.id(), verified.halt().clone());
        // Only now is it the member's own, and only a new one costs a write: any reader can send a halt that
        // stands again.
        if self.lacks_halt(&signed) {
            self.halts.admit(&halt.member)?;
            if self.keep(verified).await? {
                let member = &halt.member;
                tracing::warn!(%id, %member, scope = %human_chain::describe_scope(&halt.scope), "halt taken");
            }
        }
        Ok(self.receipt(id, &halt))
    }

    /// Returns whether this copy of a halt is new here, or may replace one that verifies no longer.
    fn lacks_halt(&self, signed: &SignedHalt) -> bool {
        self.cluster(|cluster| {
            let book = lock(&self.halts.book);
            match cluster.circle_state() {
                Some(state) => book.lacks(state, signed),
                None => !book.contains(&signed.halt.id()),
            }
        })
    }

    /// Writes a halt to this replica's disk; false if it is there already.
    async fn keep(self: &Arc<Self>, verified: VerifiedHalt) -> Result<bool, Failure> {
        let server = self.clone();
        let written = tokio::task::spawn_blocking(move || {
            server.halts.change(|book| {
                server.cluster(|cluster| match cluster.circle_state() {
                    Some(state) => book.take(state, verified),
                    None => book.accept(verified),
                })
            })
        });
        written.await.map_err(unavailable)?
    }

    fn receipt(&self, id: HaltId, halt: &Halt) -> HaltReceipt {
        self.cluster(|cluster| {
            let mut slots: Vec<HaltedSlot> = cluster
                .holdings()
                .filter_map(|(service, slot, holding)| {
                    let node = cluster.node(&holding.order.node)?;
                    let service = covers(halt, service, node).then(|| service.clone())?;
                    Some(HaltedSlot { service, slot, node: node.name.clone() })
                })
                .collect();
            let count = u32::try_from(slots.len()).unwrap_or(u32::MAX);
            slots.truncate(HALTED_SLOTS_SHOWN);
            HaltReceipt { id, slots: count, shown: slots }
        })
    }

    /// Returns the number of halts that stand at this replica, by the kind of their scope.
    pub(super) fn standing_by_kind(&self) -> BTreeMap<&'static str, u64> {
        self.cluster(|cluster| {
            let state = cluster.circle_state();
            state.map(|state| lock(&self.halts.book).standing_by_kind(state)).unwrap_or_default()
        })
    }

    /// Returns the halts that stand, for the leader's plan.
    pub(crate) fn standing_halts(&self) -> Vec<Halt> {
        self.cluster(|cluster| {
            let Some(state) = cluster.circle_state() else { return Vec::new() };
            lock(&self.halts.book).in_force(state).cloned().collect()
        })
    }

    fn decisions_head(&self) -> Option<HistoryHead> {
        self.cluster(|cluster| cluster.circle_state().map(CircleState::head))
    }

    /// Takes the halts that another replica sent. Those that do not verify yet wait for the circle's history.
    pub(super) async fn take_halts_of(self: &Arc<Self>, peer: ReplicaId, halts: Vec<SignedHalt>) {
        for signed in halts {
            if !self.lacks_halt(&signed) {
                continue;
            }
            let judged_by = self.decisions_head();
            let outcome = match self.verify_halt(signed.clone()) {
                Ok(verified) => self.keep(verified).await.map(drop),
                Err(failure) => Err(failure),
            };
            let Err(failure) = outcome else { continue };
            let problem = failure.problem();
            tracing::debug!(%peer, code = %problem.code, reason = %problem.message, "a halt does not count");
            if problem.code == error_code::CONTROL_UNAVAILABLE.as_str() {
                // The disk did not take it. The next check tries again, without a new decision.
                *lock(&self.halts.judged_at) = None;
            }
            // A lifted one never counts; a history or a disk that is behind may change.
            if problem.code != error_code::HALT_LIFTED.as_str() {
                self.halts.defer(peer, signed, judged_by);
            }
        }
    }

    /// Follows the circle's decisions, if there are new ones: forgets the halts that stand no longer, and
    /// judges again those that wait.
    pub(super) async fn follow_decisions(self: &Arc<Self>) {
        let head = self.decisions_head();
        if head.is_none() || *lock(&self.halts.judged_at) == head {
            return;
        }
        let server = self.clone();
        let pruned = tokio::task::spawn_blocking(move || {
            server.halts.change(|book| {
                Ok(server.cluster(|cluster| cluster.circle_state().is_some_and(|state| book.prune(state))))
            })
        });
        if let Ok(Err(failure)) = pruned.await {
            let reason = &failure.problem().message;
            tracing::warn!(reason, "lifted halts were not removed; the next check repeats it");
            return;
        }
        *lock(&self.halts.judged_at) = head;
        let waiting = lock(&self.halts.deferred).take();
        for (peer, signed) in waiting {
            self.take_halts_of(peer, vec![signed]).await;
        }
    }
}

/// Exchanges halts with the other replicas and follows the circle's decisions, until `shutdown`.
pub(crate) async fn watch(server: Arc<Server>, shutdown: CancellationToken) {
    let following = async {
        loop {
            server.follow_decisions().await;
            tokio::time::sleep(FOLLOW_INTERVAL).await;
        }
    };
    let asking = join_all(server.peers.clients().map(|(peer, client)| follow(&server, *peer, client)));
    tokio::select! {
        () = shutdown.cancelled() => {}
        _ = following => {}
        _ = async { asking.await; std::future::pending::<()>().await } => {}
    }
}

/// Asks one replica for its halts, for as long as this one runs.
async fn follow(server: &Arc<Server>, peer: ReplicaId, client: &Client) {
    let mut after = HaltCursor::default();
    loop {
        let asked_at = tokio::time::Instant::now();
        let request = HaltsRequest { after, wait_ms: PEER_WAIT_MS };
        if let Some(answer) = ask(client, &request).await {
            after = answer.last;
            server.take_halts_of(peer, answer.halts).await;
        }
        tokio::time::sleep_until(asked_at + REQUEST_GAP).await;
    }
}

async fn ask(client: &Client, request: &HaltsRequest) -> Option<HaltsAnswer> {
    let body = Bytes::from(canonical::to_bytes(request));
    let request = http::Request::post(PATH).body(body).expect("a constant request");
    let response = client.request(request).await.ok().filter(|answer| answer.status().is_success())?;
    canonical::from_bytes(response.body(), ANSWER_BYTES_MAX).ok()
}
