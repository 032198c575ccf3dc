//! Simulations of a node that is away for a month, asleep or switched off: what it held has ended when it
//! returns, it learns every decision of the month, and runs nothing that was retired in that time.

use super::*;
use protocol::governance::Change;
use protocol::sandbox::SandboxExit;

const DAY_MS: u64 = 24 * 3_600_000;
/// Days of the absence, far beyond the autonomy of the services.
const DAYS: u64 = 31;
/// Longest time from the end of a lease to the end of its sandbox, and to the next report.
const SETTLED: Duration = Duration::from_secs(60);

/// Returns the desired state of slot 0 of each of these services, under this order of its bundle. The
/// scheduler orders a slot again once its lease has ended.
fn slots_of(stage: &Stage, bundles: &[&Bundle], count: u64) -> Desired {
    let script = stage.script();
    let assignments = bundles.iter().flat_map(|bundle| {
        let order = script.world.order(bundle, node_id(), 0, count);
        desired(bundle, vec![order], &[]).assignments
    });
    Desired { assignments: assignments.collect(), routes: None, jobs: vec![] }
}

/// Returns the number of slots that the agent reports as ready.
fn ready(agent: &Agent) -> u64 {
    agent.number(|numbers| numbers.slots.iter().filter(|slot| slot.state == SlotState::Ready).count() as u64)
}

/// Lets the days of the absence pass. The clocks of the node advance together, as in a sleep, and so does
/// that of control.
fn pass_days(stage: &Stage) {
    stage.clock.suspend(DAYS * DAY_MS);
    stage.control_clock.suspend(DAYS * DAY_MS);
}

/// Lets the circle decide once a day: it changes the kept service, and may retire the other. Returns the last
/// bundle of the kept one.
fn decide_daily(stage: &Stage, retires: bool) -> Bundle {
    let mut script = stage.script();
    let root = ModelRoot(Digest::of(b"model"));
    let mut last = None;
    for day in 1..DAYS {
        script.world.now = BEGAN.plus(day * DAY_MS);
        if retires && day == DAYS / 2 {
            let service = "chat".parse().unwrap();
            script.world.decide(Change::Retire { service, grace_seconds: 0 });
        }
        last = Some(script.world.deploy(&service("kept", root, 4 + (day % 2) as u32)));
    }
    last.unwrap()
}

/// The attack is the absence itself. The positive control is the service that was not retired: it comes back.
#[tokio::test(start_paused = true)]
async fn a_node_that_returns_after_a_month_knows_every_decision_and_runs_nothing_that_was_retired() {
    for (is_off, retires) in [(false, true), (false, false), (true, true), (true, false)] {
        let case = format!("off: {is_off}, retired: {retires}");
        let mut stage = Stage::new();
        let kept = stage.script().world.deploy(&service("kept", ModelRoot(Digest::of(b"model")), 4));
        let wanted = slots_of(&stage, &[&stage.bundle, &kept], 1);
        stage.say(|script| script.desired = wanted);
        let agent = stage.start();
        stage.until("both serve", || ready(&agent) == 2).await;
        stage.say(|script| script.silent = true);
        tokio::time::sleep(SETTLED).await;
        assert_eq!(stage.launcher.living(), ["chat.0.1.1", "kept.0.1.1"], "{case}: within the autonomy");

        let agent = if is_off {
            agent.kill().await;
            for name in stage.launcher.living() {
                stage.launcher.end(&name, SandboxExit::Signaled { signal: 9 });
            }
            pass_days(&stage);
            stage.clock = Clock::of_runtime(stage.clock.boot(), stage.clock.wall());
            stage.start()
        } else {
            pass_days(&stage);
            agent
        };
        tokio::time::sleep(SETTLED).await;
        // Still without control: nothing runs, nothing starts, and the state says so.
        assert_eq!((stage.launcher.living(), stage.launcher.started()), (vec![], 2), "{case}");
        assert_eq!((ready(&agent), agent.number(|numbers| numbers.lease_remaining_ms)), (0, 0), "{case}");
        assert!(agent.number(|numbers| numbers.control_silent_ms) >= DAYS * DAY_MS, "{case}");

        let last = decide_daily(&stage, retires);
        let still = [&stage.bundle, &last];
        let wanted = slots_of(&stage, if retires { &still[1..] } else { &still }, 2);
        stage.say(|script| (script.silent, script.last, script.desired) = (false, None, wanted));
        let length = stage.script().world.bundles.len() as u64;
        assert_eq!(length, DAYS + 1 + u64::from(retires), "a decision each day, in pages of three");
        stage.until_length(length).await;
        let running = ["chat.0.1.2", "kept.0.31.2"];
        let expected = if retires { &running[1..] } else { &running };
        stage.until("what was decided last runs", || stage.launcher.living() == expected).await;
        stage.until("and is reported", || ready(&agent) == expected.len() as u64).await;
        tokio::time::sleep(SETTLED).await;
        assert_eq!(stage.launcher.living(), expected, "{case}");
        assert_eq!(
            stage.launcher.started(),
            2 + expected.len() as u64,
            "{case}: and nothing else was started"
        );
        let refused = agent.number(|n| n.bundles_refused + n.histories_refused + n.orders_refused);
        assert_eq!(refused, 0, "{case}: the month's decisions are late, and in order");
        agent.stop().await;
    }
}
