//! Simulations of a node that control does not answer: its slots continue for their orders' autonomy,
//! and give way to what happened in that time. Each has a positive control: without its guard the
//! slots end, or run on.

use super::ending::accept_all;
use super::*;
use protocol::manifest::OnExpiry;
use protocol::sandbox::SandboxExit;
use tokio::net::{TcpListener, TcpSocket};

const TEN_MINUTES: Duration = Duration::from_secs(600);
/// Longest time from the end of a lease to the end of its sandbox, as a test sees it.
const LAPSE: Duration = Duration::from_millis(LEASE_MS + 100);

/// Makes a service exclusive.
pub(super) fn exclusive(manifest: &mut ServiceManifest) {
    (manifest.exclusive, manifest.autonomy_seconds) = (true, 3);
}

/// Leaves out the autonomy.
fn one_lease(manifest: &mut ServiceManifest) {
    manifest.autonomy_seconds = LEASE_MS / 1000;
}

fn of_a_day(manifest: &mut ServiceManifest) {
    manifest.autonomy_seconds = protocol::limits::AUTONOMY_SECONDS_DEFAULT;
}

fn autonomy(seconds: u64) -> impl FnOnce(&mut ServiceManifest) {
    move |manifest| manifest.autonomy_seconds = seconds
}

impl Stage {
    /// Starts the agent with slots 0 and 1, and waits until they serve.
    async fn serving(&self) -> Agent {
        self.want(&[(0, 1), (1, 1)], &[]);
        let agent = self.start();
        self.until_slot(0, 1, SlotState::Ready).await;
        self.until_slot(1, 1, SlotState::Ready).await;
        agent
    }

    fn fall_silent(&self) {
        self.say(|script| script.silent = true);
    }

    /// Lets control answer again, and waits until it has received this node's request.
    async fn answer_again(&self) {
        self.say(|script| (script.silent, script.last) = (false, None));
        self.until("control hears the node", || self.script().last.is_some()).await;
    }

    /// Checks throughout this time that both slots run.
    async fn both_live_for(&self, time: Duration) {
        let end = tokio::time::Instant::now() + time;
        while tokio::time::Instant::now() < end {
            assert_eq!(self.launcher.living(), ["chat.0.1.1", "chat.1.1.1"], "at {}", self.clock.boot());
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// Replaces the machine's boot clock by that of another start, as a restart of the machine does.
    fn restart_machine(&mut self) {
        for name in self.launcher.living() {
            self.launcher.end(&name, SandboxExit::Signaled { signal: 9 });
        }
        self.clock = Clock::of_runtime(self.clock.boot(), self.clock.wall());
    }
}

#[tokio::test(start_paused = true)]
async fn ten_minutes_without_any_control_replica_end_no_slot_and_restart_none() {
    let stage = Stage::new();
    stage.launcher.decide(always(Behaviour { requests_running: 2, ..Behaviour::default() }));
    let agent = stage.serving().await;
    stage.fall_silent();
    stage.both_live_for(TEN_MINUTES).await;
    stage.answer_again().await;
    stage.both_live_for(TEN_MINUTES).await;
    assert_eq!(stage.launcher.started(), 2, "nothing was started again");
    let reports = stage.script().last.clone().unwrap().slots;
    assert!(reports.iter().all(|slot| (slot.state, slot.restarts) == (SlotState::Ready, 0)), "{reports:?}");
    agent.kill().await;
}

/// The positive control of the test above: the slots' orders have no autonomy beyond one lease.
#[tokio::test(start_paused = true)]
async fn without_autonomy_the_slots_end_with_the_lease() {
    for change in [exclusive as fn(&mut ServiceManifest), one_lease] {
        let stage = Stage::of(change);
        let agent = stage.serving().await;
        stage.fall_silent();
        tokio::time::sleep(LAPSE).await;
        assert!(stage.launcher.living().is_empty());
        agent.kill().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_slot_ends_with_its_autonomy_and_comes_back_with_control() {
    let stage = Stage::of(autonomy(60));
    let agent = stage.serving().await;
    stage.fall_silent();
    // Control last answered up to half a second ago.
    stage.both_live_for(Duration::from_millis(59_000)).await;
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    assert!(stage.launcher.living().is_empty());
    tokio::time::sleep(TEN_MINUTES).await;
    assert_eq!(stage.launcher.started(), 2, "nothing starts without control");
    stage.answer_again().await;
    let ready = stage.until_slot(0, 1, SlotState::Ready).await;
    assert_eq!(ready.restarts, 0, "an end of autonomy is no failure of the worker");
    agent.stop().await;
}

/// Tickets are what a gateway sees of a node that control does not answer.
#[tokio::test(start_paused = true)]
async fn tickets_are_renewed_while_control_is_silent() {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = socket.local_addr().unwrap().to_string();
    let listener: TcpListener = socket.listen(8).unwrap();
    let stage = Stage::with(Some(address), 1, |_| {});
    stage.model.complete();
    let accepted = accept_all(listener);
    let agent = stage.serving().await;
    stage.until("both are connected", || *accepted.borrow() > 1).await;
    stage.until("tickets are renewed", || stage.launcher.tickets("chat.0.1.1").len() > 5).await;
    stage.fall_silent();
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_secs(10)).await;
        let newest = stage.launcher.tickets("chat.0.1.1").pop().unwrap().ticket;
        let left = newest.lease_until_boottime_ms.since(stage.clock.boot());
        assert!((1_000..=LEASE_MS).contains(&left), "a ticket is good for a lease, never more: {left}");
    }
    agent.stop().await;
}

/// The liveness lease is not the autonomy: a dead agent leaves nothing running, regardless of its
/// orders.
#[tokio::test(start_paused = true)]
async fn an_agent_that_dies_while_control_is_silent_leaves_nothing_running() {
    let stage = Stage::new();
    let agent = stage.serving().await;
    stage.fall_silent();
    stage.both_live_for(Duration::from_secs(60)).await;
    agent.kill().await;
    tokio::time::sleep(Duration::from_millis(LEASE_MS)).await;
    assert!(stage.launcher.living().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_restarted_agent_goes_on_without_control() {
    let stage = Stage::new();
    let agent = stage.serving().await;
    stage.fall_silent();
    stage.both_live_for(Duration::from_secs(60)).await;
    agent.kill().await;
    let agent = stage.start();
    stage.both_live_for(TEN_MINUTES).await;
    assert_eq!(stage.launcher.started(), 2, "the sandboxes were found again");
    assert!(stage.launcher.end("chat.1.1.1", SandboxExit::Exited { status: 1 }));
    stage.until("the worker is started again, from the kept answer", || stage.launcher.started() == 3).await;
    stage.until("it lives", || stage.launcher.living().len() == 2).await;
    stage.answer_again().await;
    stage.until_slot(0, 1, SlotState::Ready).await;
    agent.stop().await;
    // The positive control: without the kept answer nothing is resumed.
    stage.say(|script| script.last = None);
    let agent = stage.serving().await;
    agent.kill().await;
    std::fs::remove_file(stage.agent_directory().join("last-answer")).unwrap();
    stage.fall_silent();
    let agent = stage.start();
    tokio::time::sleep(LAPSE).await;
    assert!(stage.launcher.living().is_empty());
    agent.kill().await;
}

/// The attack: control has ended slots whose agent was restarted, and every answer is lost on its way to it.
/// A report that left them out would free them for other nodes, beside the agent that continues without
/// answers. The positive control is that it does continue.
#[tokio::test(start_paused = true)]
async fn attack_no_report_frees_a_slot_that_a_restarted_agent_may_still_start() {
    let stage = Stage::of(autonomy(60));
    let agent = stage.serving().await;
    // The slots end with their agent, and their orders stay held.
    agent.stop().await;
    assert!(stage.launcher.living().is_empty());
    stage.want(&[], &[]);
    stage.say(|script| {
        (script.loses_answers, script.last) = (true, None);
        script.reports.clear();
    });
    let agent = stage.start();
    stage.until("it goes on without an answer", || stage.launcher.living().len() == 2).await;
    let reports = stage.script().reports.clone();
    assert!(!reports.is_empty() && stage.script().released.is_empty());
    let names_both = |report: &String| report.contains(" 0.1.1 ") && report.contains(" 1.1.1 ");
    assert!(reports.iter().all(names_both), "{reports:#?}");
    // Once an answer arrives, the slots end, and the node says so.
    stage.say(|script| script.loses_answers = false);
    stage.until_released(0, 1).await;
    stage.until_released(1, 1).await;
    stage
        .until("nothing may start", || stage.script().last.as_ref().is_some_and(|l| l.slots.is_empty()))
        .await;
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_agents_restart_prolongs_no_autonomy() {
    let stage = Stage::of(autonomy(60));
    let mut agent = stage.serving().await;
    stage.fall_silent();
    // Killed every ten seconds: each start counts from the same last answer.
    for _ in 0..6 {
        tokio::time::sleep(Duration::from_secs(10)).await;
        agent.kill().await;
        agent = stage.start();
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(stage.launcher.living().is_empty());
    agent.kill().await;
}

/// The boot clock restarts with the machine, so the time since the last answer is not known.
#[tokio::test(start_paused = true)]
async fn after_a_restart_of_the_machine_nothing_starts_before_control_answers() {
    let mut stage = Stage::new();
    let agent = stage.serving().await;
    stage.fall_silent();
    agent.kill().await;
    stage.restart_machine();
    let agent = stage.start();
    tokio::time::sleep(TEN_MINUTES).await;
    assert_eq!((stage.launcher.started(), stage.launcher.living().len()), (2, 0));
    stage.answer_again().await;
    stage.until_slot(0, 1, SlotState::Ready).await;
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_restarted_agent_starts_nothing_exclusive_without_control() {
    let stage = Stage::of(exclusive);
    let agent = stage.serving().await;
    stage.fall_silent();
    agent.kill().await;
    let agent = stage.start();
    tokio::time::sleep(TEN_MINUTES).await;
    assert_eq!((stage.launcher.started(), stage.launcher.living().len()), (2, 0));
    stage.answer_again().await;
    stage.until_slot(0, 1, SlotState::Ready).await;
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn autonomy_does_not_outlast_an_approval_that_drains() {
    for (on_expiry, left) in [(OnExpiry::Drain, 0), (OnExpiry::Hold, 2)] {
        let stage = Stage::of(|manifest| {
            (manifest.valid_until, manifest.on_expiry) = (Some(BEGAN.plus(3_600_000)), on_expiry);
        });
        let agent = stage.serving().await;
        stage.fall_silent();
        stage.both_live_for(Duration::from_secs(3_500)).await;
        // The node's wall clock is set back; the time of agreement with control continues.
        stage.clock.step_wall(-24 * 3_600_000);
        tokio::time::sleep(Duration::from_millis(100_000 + protocol::limits::CLOCK_GRACE_MS + 10_000)).await;
        assert_eq!(stage.launcher.living().len(), left, "{on_expiry:?}");
        agent.kill().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_that_returns_gives_way_and_drains_first() {
    let stage = Stage::new();
    stage.launcher.decide(always(Behaviour { requests_running: 1, ..Behaviour::default() }));
    let agent = stage.serving().await;
    stage.fall_silent();
    stage.both_live_for(Duration::from_secs(60)).await;
    // Slot 0 was placed elsewhere during the silence; slot 1 still belongs to this node.
    stage.want(&[(1, 1)], &[]);
    stage.answer_again().await;
    stage.until_slot(0, 1, SlotState::Draining).await;
    stage.both_live_for(Duration::from_secs(20)).await;
    assert!(stage.launcher.set_requests("chat.0.1.1", 0));
    stage.until_released(0, 1).await;
    assert_eq!(stage.launcher.living(), ["chat.1.1.1"]);
    // A slot with a request that never ends is given up nevertheless.
    let began = stage.clock.boot();
    stage.want(&[], &[]);
    stage.until_released(1, 1).await;
    let took = stage.clock.boot().since(began);
    assert!((35_000..45_000).contains(&took), "{took}");
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn exclusive_work_that_control_names_no_more_ends_at_once() {
    let stage = Stage::of(exclusive);
    stage.launcher.decide(always(Behaviour { requests_running: 1, ..Behaviour::default() }));
    let agent = stage.serving().await;
    let began = stage.clock.boot();
    stage.want(&[(1, 1)], &[]);
    stage.until_released(0, 1).await;
    assert!(stage.clock.boot().since(began) < 1_000);
    agent.stop().await;
}

/// The slot was ordered again on the same node while it was silent: the old worker ends before the new one.
#[tokio::test(start_paused = true)]
async fn a_higher_fence_ends_the_lower_after_its_requests() {
    let stage = Stage::new();
    stage.launcher.decide(always(Behaviour { requests_running: 1, ..Behaviour::default() }));
    let agent = stage.serving().await;
    stage.want(&[(0, 2), (1, 1)], &[]);
    stage.until_slot(0, 1, SlotState::Draining).await;
    stage.both_live_for(Duration::from_secs(10)).await;
    assert!(stage.launcher.set_requests("chat.0.1.1", 0));
    stage.until_slot(0, 2, SlotState::Ready).await;
    assert_eq!(stage.launcher.living(), ["chat.0.1.2", "chat.1.1.1"]);
    agent.stop().await;
}

/// Adds control replicas that take every call and answer none.
fn hostile_replicas(stage: &mut Stage, before: usize, after: usize) {
    let silent = || {
        let (calls, mut queue) = mpsc::channel(16);
        tokio::spawn(async move {
            let mut kept: Vec<ControlCall> = Vec::new();
            while let Some(call) = queue.recv().await {
                kept.push(call);
            }
        });
        calls
    };
    let honest = std::mem::take(&mut stage.calls);
    stage.calls.extend((0..before).map(|_| silent()));
    stage.calls.extend(honest);
    stage.calls.extend((0..after).map(|_| silent()));
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_says_nothing_ends_no_slot() {
    for change in [exclusive as fn(&mut ServiceManifest), of_a_day] {
        let mut stage = Stage::of_replicas(3, change);
        hostile_replicas(&mut stage, 1, 1);
        let agent = stage.serving().await;
        stage.both_live_for(TEN_MINUTES).await;
        assert_eq!(stage.launcher.started(), 2);
        // The one that answers is enough to end a slot.
        stage.want(&[(1, 1)], &[]);
        stage.until_released(0, 1).await;
        agent.stop().await;
    }
}
