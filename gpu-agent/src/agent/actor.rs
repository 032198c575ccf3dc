//! The agent's main loop: it receives events from control, the slots, the operator and the clock. The core
//! decides what follows and the loop carries it out. Every decision is persisted before it takes effect.

mod answers;
mod jobs;
mod pace;
mod reports;

use self::pace::SyncPace;
use super::access::{self, AccessFile};
use super::admin::{self, InjectedRequest};
use super::chain::Chain;
use super::clocks::{ClockEvent, ask_replicas};
use super::control_client::{AgentControlClient, RequestOutcome};
use super::core::{
    NodeFacts, OrderBook, OrderVerifier, ReconcileInput, Refusal, RefusedRoute, RunningSlot, SlotAction,
    SlotKey, TrustedTime, check_routes, reconcile,
};
use super::drain::Drain;
use super::gateway::GatewayStatus;
use super::halts::{self, HaltFile};
use super::jobs::JobSlots;
use super::last_answer::LastAnswerFile;
use super::models::ModelSource;
use super::node::{Node, RENEWAL_INTERVAL};
use super::orders::OrderFile;
use super::polling::ANSWERS_MAX;
use super::prometheus::{GatewayNumbers, Numbers};
use super::slot::{self, SlotCommand, SlotEnded, SlotHandle};
use super::usage::UsageStatements;
use overlay::CancellationToken;
use protocol::agent::{
    COMPLAINTS_MAX, Desired, EnrolRequest, EnrolResponse, SlotReport, SyncRequest, SyncResponse, WorkerLine,
};
use protocol::agent_state::{AdminRequest, HandOrder};
use protocol::gateway::{ApiKey, RouteTable};
use protocol::governance::{HistoryHead, NodeAdmission};
use protocol::job_report::{JobSlotReport, JobSlotState, RankLine};
use protocol::limits::{LEASE_MS, SYNC_INTERVAL_IDLE_MS, SYNC_INTERVAL_MS};
use protocol::model::SignedComplaint;
use protocol::slot_usage::SignedSlotUsage;
use protocol::usage::UsageCounts;
use protocol::{CircleId, Digest, Fence, Millis, ModelRoot, ServiceName, SlotIndex, error_code};
use sandbox::Running;
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};

/// Events of the replicas' clocks that wait for the main loop.
const CLOCK_EVENTS_MAX: usize = 64;
/// Interval between two reconciliations without an event, for deadlines.
const RESYNC_INTERVAL: Duration = Duration::from_secs(1);
/// Grace period of a worker that must end, in milliseconds. Workers that serve are drained first.
const END_GRACE_MS: u64 = 3_000;
/// Grace period when the agent itself ends. It is shorter than a lease, because leases are not renewed then.
const SHUTDOWN_GRACE_MS: u64 = 2_000;
/// Longest wait for the slots when the agent ends.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(15);
/// Minimum interval between two error logs of the same kind.
const ERROR_LOG_INTERVAL: Duration = Duration::from_secs(30);

/// Outcome of a sync, and of the request for admission that follows one which was refused for lack of it.
struct SyncOutcome {
    sync: RequestOutcome<SyncResponse>,
    enrolment: Option<RequestOutcome<EnrolResponse>>,
}

/// A request in flight, with the items to put back if it does not arrive, and those that its answer
/// acknowledges.
struct InFlight {
    exchange: Pin<Box<dyn Future<Output = SyncOutcome> + Send>>,
    lines: Vec<WorkerLine>,
    rank_lines: Vec<RankLine>,
    usage: Vec<SignedSlotUsage>,
    unacknowledged_releases: BTreeSet<(SlotKey, Fence)>,
}

/// Incarnation of an agent: a random number, different after every start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Incarnation(pub(super) u64);

/// Refused orders, by slot.
type Refusals = BTreeMap<SlotKey, (Fence, Refusal)>;

/// Changes that one reconciliation made to the order book.
#[derive(Debug, Default)]
struct Noted {
    accepted: Vec<(SlotKey, Fence)>,
    forgotten: Vec<(SlotKey, Fence)>,
    released: bool,
}

impl Noted {
    fn is_empty(&self) -> bool {
        self.accepted.is_empty() && self.forgotten.is_empty() && !self.released
    }
}

/// Counters exported as metrics.
#[derive(Debug, Default)]
struct AgentCounters {
    syncs: u64,
    sync_failures: u64,
    bundles_refused: u64,
    orders_refused: u64,
    routes_refused: u64,
    histories_refused: u64,
}

/// State owned by the main loop.
pub(super) struct AgentActor {
    pub(super) node: Arc<Node>,
    pub(super) control: Arc<AgentControlClient>,
    pub(super) chain: Chain,
    pub(super) orders: OrderFile,
    pub(super) book: OrderBook,
    pub(super) jobs: JobSlots,
    pub(super) halts: HaltFile,
    pub(super) access: AccessFile,
    pub(super) admission: NodeAdmission,
    pub(super) circle: CircleId,
    pub(super) last_answer: LastAnswerFile,
    pub(super) incarnation: Incarnation,
    pub(super) slots: BTreeMap<SlotKey, SlotHandle>,
    pub(super) tasks: JoinSet<SlotEnded>,
    pub(super) time: TrustedTime,
    pub(super) routes: watch::Sender<Option<RouteTable>>,
    pub(super) gateway: Option<Arc<GatewayStatus>>,
    pub(super) numbers: Arc<Mutex<Numbers>>,
    pub(super) state: Volatile,
}

/// State that is not persisted and may be lost with the process.
#[derive(Default)]
pub(super) struct Volatile {
    desired: Option<Desired>,
    /// Desired state that the predecessor of this agent kept. It counts once no control replica answers.
    predecessor_desired: Option<Desired>,
    desired_digest: Option<Digest>,
    chain_complete: bool,
    refused_bundles: BTreeMap<Digest, Refusal>,
    refusals: Refusals,
    /// Orders of the latest answer, if its history was refused.
    refused_history: Refusals,
    /// Parts of the latest route table that were not handed to the gateway.
    refused_routes: BTreeSet<(ServiceName, Option<SlotIndex>)>,
    /// Table, history and keys that the gateway's table was made from.
    routes_from: Option<(Option<Digest>, HistoryHead, Vec<ApiKey>)>,
    /// Released slots that have not been reported to control yet.
    unacknowledged_releases: BTreeSet<(SlotKey, Fence)>,
    /// Orders that were granted but could not be persisted, and why. They do not count as accepted.
    unwritten: BTreeMap<SlotKey, (Fence, String)>,
    counts: AgentCounters,
    usage: UsageStatements,
    error_logged_at: BTreeMap<&'static str, Instant>,
    answered_at: Option<Instant>,
    /// Time since which no replica has answered.
    unanswered_since: Option<Instant>,
    /// Time at which the drain of this agent is over; none while it does not drain.
    drain_until: Option<Instant>,
}

impl Volatile {
    /// Returns the state of an agent whose predecessor kept this desired state, if any.
    pub(super) fn after(predecessor_desired: Option<Desired>) -> Self {
        Self { predecessor_desired, ..Self::default() }
    }
}

impl AgentActor {
    /// Runs until `shutdown`, or until a requested drain is over; then ends the slots in an orderly way.
    pub(super) async fn run(
        mut self,
        mut injected: mpsc::Receiver<InjectedRequest>,
        drain: Drain,
        shutdown: CancellationToken,
    ) {
        let mut in_flight: Option<InFlight> = None;
        let mut next_sync = Instant::now();
        let mut pace = SyncPace::new(next_sync);
        let mut resyncs = tokio::time::interval(RESYNC_INTERVAL);
        let mut renewals = tokio::time::interval(RENEWAL_INTERVAL);
        renewals.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let node = self.node.clone();
        let (events, mut clocks) = mpsc::channel(CLOCK_EVENTS_MAX);
        // Dropped with this function, which ends the task.
        let mut asking = JoinSet::new();
        asking.spawn(ask_replicas(self.control.clone(), events));
        let (received, mut halt_answers) = mpsc::channel(ANSWERS_MAX);
        asking.spawn(halts::follow_replicas(self.control.clone(), received));
        let (received, mut granted) = mpsc::channel(ANSWERS_MAX);
        if self.gateway.is_some() {
            let repeats = self.access.repeats();
            asking.spawn(access::follow_replicas(self.control.clone(), repeats, received));
        }
        // The ticks of renewals wake this loop often enough to see that a drain is over.
        while !self.is_drained(&drain) {
            // The order is fixed so that a simulation is reproducible; each of these events is rare.
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                () = drain.requested.cancelled(), if !self.drains() => self.begin_drain(drain.limit),
                Some(received) = halt_answers.recv() => self.take_halts(received),
                Some(received) = granted.recv() => self.take_access(received),
                _ = renewals.tick() => node.renew_liveness(),
                () = tokio::time::sleep_until(next_sync), if in_flight.is_none() => {
                    next_sync = pace.next(Instant::now());
                    in_flight = Some(self.begin_sync());
                }
                outcome = exchange(&mut in_flight) => {
                    let sent = in_flight.take().expect("it has just ended");
                    self.settle_time(&mut clocks).await;
                    let pause = self.synced(sent, outcome);
                    next_sync = next_sync.max(Instant::now() + pause);
                }
                () = node.news.notified() => {
                    // A change is reported to control immediately, unless that would keep its answers from
                    // arriving.
                    if self.is_answered_lately() && let Some(sent) = in_flight.take() {
                        self.put_back(sent);
                    }
                }
                Some(event) = clocks.recv() => self.note_clock(event),
                Some(ended) = self.tasks.join_next() => self.slot_ended(ended),
                Some(ended) = self.jobs.tasks.join_next() => self.job_slot_ended(ended),
                Some(request) = injected.recv() => self.decide(request),
                _ = resyncs.tick() => {
                    self.renew_access();
                    self.reconcile();
                }
            }
        }
        self.end_slots().await;
    }

    /// Decides on an order or a halt that the operator submitted.
    fn decide(&mut self, InjectedRequest { request, decision }: InjectedRequest) {
        let verdict = match request {
            AdminRequest::Order(order) => admin::decision_on_order(self.verify_injected(&order)),
            AdminRequest::Halt(halt) => admin::decision_on_halt(self.take_injected_halt(*halt)),
        };
        let (accepted, code) = (verdict.accepted, verdict.code);
        tracing::info!(accepted, ?code, "decision on a submitted order or halt");
        // The operator may have gone; the verdict changes nothing.
        let _ = decision.send(verdict);
    }

    /// Puts back the lines of a request that may not have arrived.
    fn put_back(&self, sent: InFlight) {
        self.node.logs.put_back(sent.lines);
        self.node.rank_lines.put_back(&sent.rank_lines);
    }

    fn drains(&self) -> bool {
        self.state.drain_until.is_some()
    }

    /// Begins to drain: every slot finishes its requests, and none starts any more.
    fn begin_drain(&mut self, limit: Duration) {
        let slots = self.slots.len();
        tracing::info!(slots, limit_s = limit.as_secs(), "draining; a second signal ends at once");
        self.state.drain_until = Some(Instant::now() + limit);
        for slot in self.slots.values_mut() {
            // If control names its order no more, its requests still finish.
            slot.gives_way = true;
            slot.command(SlotCommand::Drain);
        }
        self.end_jobs();
        self.node.news.notify_one();
    }

    /// Returns whether a drain is over: nothing is left to finish, or its time has passed.
    fn is_drained(&self, drain: &Drain) -> bool {
        let Some(until) = self.state.drain_until else { return false };
        let is_idle = self.slots.is_empty() && self.jobs.slots.is_empty();
        (is_idle && drain.gateway_gone.is_cancelled()) || Instant::now() >= until
    }

    /// Waits until the replicas' clocks are known, as far as they will be soon. Nothing is judged before.
    async fn settle_time(&mut self, clocks: &mut mpsc::Receiver<ClockEvent>) {
        let node = self.node.clone();
        while !self.time.is_settled() {
            let Some(event) = node.while_renewing(clocks.recv()).await else { return };
            self.note_clock(event);
        }
    }

    fn note_clock(&mut self, event: ClockEvent) {
        match event {
            ClockEvent::Reading { replica, wall, asked_at } => self.time.record(replica, wall, asked_at),
            ClockEvent::RoundEnded => self.time.record_round(),
        }
    }

    /// Returns the time by which approvals are judged.
    pub(super) fn trusted_now(&mut self) -> Millis {
        let clock = &self.node.clock;
        self.time.now(clock.wall(), clock.boot(), self.chain.signed_at())
    }

    /// Returns whether grants can be judged: the time is known, and the history is whole.
    pub(super) fn can_judge(&self) -> bool {
        self.time.is_settled() && self.chain.check_whole().is_ok()
    }

    fn is_answered_lately(&self) -> bool {
        let limit = Duration::from_millis(LEASE_MS / 3);
        self.state.answered_at.is_some_and(|at| at.elapsed() < limit)
    }

    fn with_verifier<R>(&self, now: Millis, act: impl FnOnce(OrderVerifier<'_>) -> R) -> R {
        let facts = NodeFacts {
            id: self.node.id(),
            isolation: self.node.launcher.isolation().level,
            resources: self.left_to_services(),
            weights: self.weights(),
        };
        act(OrderVerifier {
            circle: self.chain.state(),
            admitted: self.chain.admitted(),
            facts: &facts,
            book: &self.book,
            halts: self.halts.book(),
            now,
        })
    }

    /// Returns the size of the weights of each model that is in memory or that control names, in bytes.
    fn weights(&self) -> BTreeMap<ModelRoot, u64> {
        let mut weights: BTreeMap<ModelRoot, u64> = self.node.models.weights().into_iter().collect();
        for assignment in self.state.desired.iter().flat_map(|desired| &desired.assignments) {
            let known = weights.entry(assignment.model.root).or_default();
            *known = assignment.model.bytes.max(*known);
        }
        weights
    }

    /// Verifies an order as if control had sent it.
    fn verify_injected(&mut self, HandOrder { bundle, order }: &HandOrder) -> Result<(), Refusal> {
        let now = self.trusted_now();
        self.chain.check_whole()?;
        self.with_verifier(now, |verifier| verifier.verify(bundle, order).map(drop))
    }

    /// Starts a sync: reports this node's state and requests the desired state.
    fn begin_sync(&mut self) -> InFlight {
        let lines = self.node.logs.take();
        let (rank_lines_term, rank_lines) = self.node.rank_lines.unacknowledged(Instant::now());
        let mut slots = self.reports();
        self.publish(&slots);
        slots.extend(self.pending_reports(&slots));
        let jobs = self.job_reports();
        let usage = self.usage_to_send(&jobs);
        // No lease is at stake where nothing is held.
        let is_idle = slots.is_empty() && jobs.is_empty() && self.gateway.is_none();
        let wait_ms = if is_idle { SYNC_INTERVAL_IDLE_MS } else { SYNC_INTERVAL_MS };
        let isolation = self.node.launcher.isolation();
        let request = SyncRequest {
            boot: self.incarnation.0,
            version: env!("CARGO_PKG_VERSION").into(),
            resources: self.node.resources.now(&*self.node.device),
            isolation: isolation.level,
            not_enforced: self.not_enforced(&isolation.not_enforced),
            slots,
            governance_length: self.chain.state().length(),
            routes_version: self.gateway.as_ref().map(|status| status.routes_version.load(Ordering::Relaxed)),
            wait_ms: wait_ms as u32,
            desired: self.state.desired_digest.unwrap_or(Digest([0; Digest::LENGTH])),
            logs: lines.clone(),
            complaints: self.complaints(),
            jobs,
            rank_lines_term,
            rank_lines: rank_lines.clone(),
            usage: usage.clone(),
        };
        let (control, enrolment) = (self.control.clone(), EnrolRequest { admission: self.admission.clone() });
        let exchange = Box::pin(async move {
            let sync = control.sync(&request).await;
            let enrolment = match sync {
                RequestOutcome::NotAdmitted => Some(control.enrol(&enrolment).await),
                RequestOutcome::Answered(_) | RequestOutcome::Failed(_) => None,
            };
            SyncOutcome { sync, enrolment }
        });
        let unacknowledged_releases = self.state.unacknowledged_releases.clone();
        InFlight { exchange, lines, rank_lines, usage, unacknowledged_releases }
    }

    /// Returns what control is to know of the counts of slots.
    fn usage_to_send(&mut self, jobs: &[JobSlotReport]) -> Vec<SignedSlotUsage> {
        let statements = &mut self.state.usage;
        for (key, slot) in &self.slots {
            statements.note((key.clone(), slot.fence), slot.status.lock().counter.total(), false);
        }
        for report in jobs.iter().filter(|report| report.cpu_micros > 0) {
            let key = SlotKey { service: report.job.clone(), slot: report.slot };
            let counts = UsageCounts { cpu_used_microseconds: report.cpu_micros, ..UsageCounts::default() };
            statements.note((key, report.fence), counts, report.state == JobSlotState::Ended);
        }
        let (node, circle) = (&self.node, self.circle);
        statements.next_statements(Instant::now(), |(key, fence), counts| {
            node.slot_usage(circle, (&key.service, key.slot, *fence), counts)
        })
    }

    /// Returns a complaint about every wrap that control sends and that this node cannot use.
    fn complaints(&self) -> Vec<SignedComplaint> {
        let assignments = self.state.desired.iter().flat_map(|desired| &desired.assignments);
        let unusable = self.node.models.unusable_wraps(assignments.filter_map(|part| part.wrap.as_ref()));
        unusable.into_iter().take(COMPLAINTS_MAX).map(|signed| self.node.complaint(signed)).collect()
    }

    fn not_enforced(&self, of_node: &[String]) -> Vec<String> {
        let mut labels: BTreeSet<String> = of_node.iter().cloned().collect();
        for slot in self.slots.values() {
            labels.extend(slot.status.lock().not_enforced.iter().cloned());
        }
        for slot in self.jobs.slots.values() {
            labels.extend(slot.status().not_enforced.iter().cloned());
        }
        labels.into_iter().collect()
    }

    /// Hands the gateway the part of control's route table that the circle covers, with the API keys that
    /// stand. While the chain is not complete, or if control sends no table, the routes of the last table
    /// stay; its keys do not.
    pub(super) fn hand_routes(&mut self) {
        let now = self.trusted_now();
        let api_keys = self.access.book().keys(self.chain.state(), now);
        let from = Some((self.state.desired_digest, self.chain.state().head(), api_keys.clone()));
        if self.state.routes_from == from {
            return;
        }
        let last = self.routes.borrow().clone();
        let renewed = last.clone().map(|last| RouteTable { api_keys: api_keys.clone(), ..last });
        let table = self.state.desired.as_ref().and_then(|desired| desired.routes.as_ref());
        let checked = table.map(|table| check_routes(self.chain.state(), table, last.as_ref()));
        let judged = checked.filter(|(_, refused)| refused.is_empty() || self.state.chain_complete);
        let Some((table, refused)) = judged else {
            if let Some(renewed) = renewed {
                self.routes.send_if_modified(|handed| replace_table(handed, renewed));
            }
            return;
        };
        let table = RouteTable { api_keys, ..table };
        let key = |refused: &RefusedRoute| (refused.service.clone(), refused.slot);
        let known = std::mem::take(&mut self.state.refused_routes);
        let news: Vec<&RefusedRoute> = refused.iter().filter(|part| !known.contains(&key(part))).collect();
        self.state.counts.routes_refused += news.len() as u64;
        if let Some(first) = news.first() {
            let text = format!("{} routes are refused, the first of {first}", news.len());
            self.log_throttled("routes", &text);
        }
        self.state.refused_routes = refused.iter().map(key).collect();
        self.state.routes_from = from;
        self.routes.send_if_modified(|handed| replace_table(handed, table));
    }

    /// Reconciles the desired with the observed state and carries out the resulting actions.
    pub(super) fn reconcile(&mut self) {
        self.save_halts();
        self.enforce_halts();
        while self.reconcile_once() {}
        while self.reconcile_jobs_once() {}
        self.set_source();
    }

    /// Runs one reconciliation. Returns true if orders were accepted, so that the next one starts them.
    fn reconcile_once(&mut self) -> bool {
        if !self.time.is_settled() || self.chain.check_whole().is_err() {
            return false;
        }
        let now = self.trusted_now();
        let Some(desired) = &self.state.desired else { return false };
        let observe =
            |slot: &SlotHandle| RunningSlot { gives_way: slot.gives_way, ..slot.status.running(slot.fence) };
        let running: BTreeMap<_, _> =
            self.slots.iter().map(|(key, slot)| (key.clone(), observe(slot))).collect();
        let actions = self.with_verifier(now, |verifier| {
            reconcile(&ReconcileInput {
                verifier,
                boot: self.node.clock.boot(),
                desired,
                chain_complete: self.state.chain_complete,
                refused_bundles: &self.state.refused_bundles,
                running: &running,
            })
        });
        let before = self.book.clone();
        let known = std::mem::take(&mut self.state.refusals);
        let mut noted = Noted::default();
        for action in actions {
            self.perform(action, now, &known, &mut noted);
        }
        self.state.unwritten.clear();
        if let Err(trouble) = self.save_or_undo(before, &noted) {
            let unwritten = noted.accepted.into_iter().map(|(key, fence)| (key, (fence, trouble.clone())));
            self.state.unwritten = unwritten.collect();
            return false;
        }
        for (key, fence) in &noted.accepted {
            tracing::info!(slot = %key, %fence, "order accepted");
        }
        self.state.unacknowledged_releases.extend(noted.forgotten);
        !noted.accepted.is_empty()
    }

    /// Carries out one action, or records it in the book, where it does not count until it is persisted.
    fn perform(&mut self, action: SlotAction, now: Millis, known: &Refusals, noted: &mut Noted) {
        let fence_of =
            |book: &OrderBook, key: &SlotKey| book.held(key).map(|held| held.order.signed.order.fence);
        match action {
            // The next agent accepts and starts what is still wanted.
            SlotAction::Accept { .. } | SlotAction::Start { .. } if self.drains() => {}
            SlotAction::Accept { signed, grant } => {
                noted.accepted.push((SlotKey::of(&signed.order), signed.order.fence));
                self.book.accept(*signed, *grant, self.chain.state().length(), now);
            }
            SlotAction::Start { key } => self.start_slot(key, None),
            SlotAction::Drain { key, reason } => self.tell(&key, SlotCommand::Drain, &reason),
            SlotAction::GiveWay { key, reason } => {
                if let Some(slot) = self.slots.get_mut(&key) {
                    slot.gives_way = true;
                }
                self.tell(&key, SlotCommand::Drain, &reason);
            }
            SlotAction::End { key, reason } => {
                self.tell(&key, SlotCommand::End { grace_ms: END_GRACE_MS }, &reason);
            }
            SlotAction::Release { key, reason } => {
                tracing::info!(slot = %key, reason, "slot released");
                self.book.release(&key);
                noted.released = true;
            }
            SlotAction::Forget { key } => {
                noted.forgotten.extend(fence_of(&self.book, &key).map(|fence| (key.clone(), fence)));
                self.book.forget(&key);
            }
            SlotAction::Refuse { key, fence, refusal } => {
                let order = (fence, refusal);
                if known.get(&key) != Some(&order) {
                    let refusal = &order.1;
                    self.state.counts.orders_refused += 1;
                    tracing::error!(
                        slot = %key, %fence, code = %refusal.code, reason = refusal.message, "order refused"
                    );
                    self.node.news.notify_one();
                }
                self.state.refusals.insert(key, order);
            }
        }
    }

    /// Persists the book if it changed. If that fails, undoes the changes just made and returns the reason.
    fn save_or_undo(&mut self, before: OrderBook, noted: &Noted) -> Result<(), String> {
        if noted.is_empty() {
            return Ok(());
        }
        // A book that contradicts itself must not become durable: the process ends, and starts from the last.
        let sound = self.book.check_invariants().and_then(|()| self.book.check_follows(&before));
        assert_eq!(sound, Ok(()), "the order book");
        self.orders.save(&self.book, &self.chain).map_err(|error| {
            self.book = before;
            let path = self.orders.path().display();
            let trouble = format!("{}: write {path}: {error}", error_code::AGENT_STATE_UNUSABLE);
            self.log_throttled("disk", &trouble);
            trouble
        })
    }

    pub(super) fn tell(&self, key: &SlotKey, command: SlotCommand, reason: &str) {
        if let Some(slot) = self.slots.get(key)
            && slot.command(command)
        {
            tracing::info!(slot = %key, fence = %slot.fence, ?command, reason, "stopping slot");
        }
    }

    /// Starts the task of a slot whose order is held. Nothing starts without the proof in the book.
    pub(super) fn start_slot(&mut self, key: SlotKey, adopted: Option<Arc<dyn Running>>) {
        let Some(held) = self.book.held(&key) else { return };
        let (order, grant) = (held.order.signed.order.clone(), held.grant.clone());
        let handle = slot::spawn(&mut self.tasks, self.node.clone(), grant, order, None, adopted);
        self.slots.insert(key, handle);
    }

    /// Passes every slot the model location that control currently reports.
    fn set_source(&self) {
        for assignment in self.state.desired.iter().flat_map(|desired| &desired.assignments) {
            for signed in &assignment.orders {
                if let Some(slot) = self.slots.get(&SlotKey::of(&signed.order)) {
                    let (record, wrap) = (assignment.model.clone(), assignment.wrap.clone());
                    slot.set_source(ModelSource { record, wrap });
                }
            }
        }
    }

    fn slot_ended(&mut self, ended: Result<SlotEnded, tokio::task::JoinError>) {
        let SlotEnded { key, fence } = match ended {
            Ok(ended) => ended,
            // A broken invariant. Known state is on disk, and the process supervisor restarts the agent.
            Err(error) => panic!("a slot's task broke: {error}"),
        };
        if self.slots.get(&key).is_some_and(|slot| slot.fence == fence)
            && let Some(slot) = self.slots.remove(&key)
        {
            let counts = slot.status.lock().counter.total();
            self.state.usage.note((key.clone(), fence), counts, true);
        }
        let is_held = self.book.held(&key).is_some_and(|held| held.order.signed.order.fence == fence);
        // The order of a slot that ends with its agent stays held, for the next agent.
        if is_held && !self.drains() {
            let before = self.book.clone();
            self.book.release(&key);
            // If this is not persisted, the next reconciliation finds nothing running and decides again.
            let _ = self.save_or_undo(before, &Noted { released: true, ..Noted::default() });
        }
        self.reconcile();
        self.node.news.notify_one();
    }

    /// Logs an error; another of the same kind within `ERROR_LOG_INTERVAL` is not logged as an error.
    pub(super) fn log_throttled(&mut self, kind: &'static str, text: &str) {
        let last = self.state.error_logged_at.get(kind);
        if last.is_none_or(|at| at.elapsed() > ERROR_LOG_INTERVAL) {
            self.state.error_logged_at.insert(kind, Instant::now());
            tracing::error!("{text}");
        } else {
            tracing::debug!("{text}");
        }
    }

    fn publish(&self, slots: &[SlotReport]) {
        let (now, lease) = (self.node.clock.boot(), *self.node.lease.borrow());
        let models = self.node.models.in_memory().into_iter();
        let counts = &self.state.counts;
        let numbers = Numbers {
            slots: slots.to_vec(),
            lease_remaining_ms: lease.granted_until().since(now),
            control_silent_ms: lease.silent_ms(now),
            governance_length: self.chain.state().length(),
            syncs: counts.syncs,
            sync_failures: counts.sync_failures,
            bundles_refused: counts.bundles_refused,
            orders_refused: counts.orders_refused,
            routes_refused: counts.routes_refused,
            histories_refused: counts.histories_refused,
            halts_standing: self.halts.book().standing_by_kind(self.chain.state()),
            shard_faults: self.node.models.faults(),
            job_slots: self.job_reports(),
            trees_changed: self.node.trees.changed(),
            logs_lost: self.node.log_storage.lost(),
            gangs: self.node.gangs.counters(),
            models: models.map(|(root, verified, bytes)| (root.to_string(), verified, bytes)).collect(),
            gateway: self.gateway.as_ref().map(|status| GatewayNumbers {
                routes_version: status.routes_version.load(Ordering::Relaxed),
                restarts: u64::from(status.restarts.load(Ordering::Relaxed)),
                workers: u64::from(status.workers.load(Ordering::Relaxed)),
            }),
        };
        *self.numbers.lock().unwrap_or_else(PoisonError::into_inner) = numbers;
    }

    /// Ends every slot in an orderly way. Their orders stay held: the next start of the agent resumes them if
    /// control still names them.
    async fn end_slots(&mut self) {
        for slot in self.slots.values() {
            slot.command(SlotCommand::End { grace_ms: SHUTDOWN_GRACE_MS });
        }
        self.quit_jobs(SHUTDOWN_GRACE_MS);
        let all = async {
            while self.tasks.join_next().await.is_some() {}
            while self.jobs.tasks.join_next().await.is_some() {}
        };
        if tokio::time::timeout(SHUTDOWN_LIMIT, all).await.is_err() {
            tracing::error!("some slots did not end in time; their leases end them");
        }
    }
}

/// Replaces the table that the gateway was handed, if the new one differs. Its version rises, since the
/// gateway ignores an older one, and the circle's decisions change a table that control sent once. Returns
/// whether it was replaced.
fn replace_table(handed: &mut Option<RouteTable>, mut table: RouteTable) -> bool {
    if let Some(last) = handed {
        let same = last.services == table.services && last.api_keys == table.api_keys;
        if same && table.version <= last.version {
            return false;
        }
        table.version = table.version.max(last.version.saturating_add(1));
    }
    *handed = Some(table);
    true
}

async fn exchange(in_flight: &mut Option<InFlight>) -> SyncOutcome {
    match in_flight {
        Some(sent) => sent.exchange.as_mut().await,
        None => std::future::pending().await,
    }
}
