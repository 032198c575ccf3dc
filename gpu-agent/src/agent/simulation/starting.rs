//! Simulations of workers that start, fail and restart.

use super::*;
use protocol::BootTime;
use protocol::sandbox::SandboxExit;
use sandbox::Ended;

/// Returns an end on the worker's own account.
fn exits(after_ms: u64, status: i32) -> Option<(Duration, Ended)> {
    let exit = Some(SandboxExit::Exited { status });
    Some((Duration::from_millis(after_ms), Ended { exit, out_of_memory: false }))
}

/// Records the times at which workers are started, on the boot clock.
fn note_starts(stage: &Stage, behaviour: Behaviour) -> Arc<Mutex<Vec<BootTime>>> {
    let (times, clock) = (Arc::new(Mutex::new(Vec::new())), stage.clock.clone());
    let noted = times.clone();
    stage.launcher.decide(move |_| {
        noted.lock().unwrap().push(clock.boot());
        behaviour.clone()
    });
    times
}

fn gaps(times: &Mutex<Vec<BootTime>>) -> Vec<u64> {
    times.lock().unwrap().windows(2).map(|pair| pair[1].since(pair[0])).collect()
}

#[tokio::test(start_paused = true)]
async fn an_order_becomes_a_worker_that_is_ready_within_moments() {
    let stage = Stage::new();
    stage.want(&[(0, 1), (1, 1)], &[]);
    let agent = stage.start();
    let ready = stage.until_slot(0, 1, SlotState::Ready).await;
    stage.until_slot(1, 1, SlotState::Ready).await;
    assert_eq!((ready.segments_verified, ready.segments_total, ready.restarts), (3, 3, 0));
    assert_eq!(stage.launcher.living(), ["chat.0.1.1", "chat.1.1.1"]);
    assert!(stage.launcher.print("chat.0.1.1", "hello"));
    stage.until("lines arrive", || stage.script().lines.iter().any(|line| line == "hello")).await;
    stage
        .until("numbers arrive", || {
            stage.script().last.as_ref().unwrap().slots.iter().all(|slot| slot.metrics.is_some())
        })
        .await;
    agent.stop().await;
    assert!(stage.launcher.present().is_empty(), "an orderly end leaves nothing");
}

/// News interrupts the request that the agent waits on, after control has read it. Its lines are sent again,
/// and must not be shown twice.
#[tokio::test(start_paused = true)]
async fn each_line_is_shown_once_however_often_its_slot_has_news() {
    let stage = Stage::new();
    stage.launcher.decide(always(Behaviour { ends: exits(15, 7), ..Behaviour::default() }));
    stage.want(&[(0, 1)], &[]);
    let agent = stage.start();
    stage.until("eight starts", || stage.launcher.started() >= 8).await;
    stage.launcher.decide(always(Behaviour::default()));
    // The eighth answers for a moment too.
    stage.until("the ninth start", || stage.launcher.started() >= 9).await;
    stage.until_slot(0, 1, SlotState::Ready).await;
    stage.launcher.print("chat.0.1.1", "the last line");
    stage.until("lines arrive", || stage.script().lines.iter().any(|line| line == "the last line")).await;
    let (shown, again) = {
        let script = stage.script();
        let greetings = script.lines.iter().filter(|line| line.contains("computes nothing"));
        (greetings.count() as u64, script.lines_again)
    };
    assert_eq!(shown, stage.launcher.started(), "each worker says it once");
    assert!(again > 0, "the agent sends lines again, so this shows something");
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_crashes_is_started_again_ever_more_slowly() {
    let stage = Stage::new();
    let times = note_starts(&stage, Behaviour { ends: exits(15, 7), ..Behaviour::default() });
    stage.want(&[(0, 1)], &[]);
    let agent = stage.start();
    let failed = stage.until_slot(0, 1, SlotState::Failed).await;
    assert!(failed.detail.starts_with("worker-failed: the worker exited with status 7"), "{}", failed.detail);
    assert!(failed.detail.contains("it computes nothing"), "its last words: {}", failed.detail);
    stage.until("twelve starts", || times.lock().unwrap().len() >= 12).await;
    // Each gap is the pause and the worker's short life.
    let expected = [250, 500, 1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000, 30_000, 30_000];
    for (gap, pause) in gaps(&times).into_iter().zip(expected) {
        assert!((pause..pause + 100).contains(&gap), "{:?}", gaps(&times));
    }
    stage.launcher.decide(always(Behaviour::default()));
    // The twelfth answers for a moment too.
    stage.until("the thirteenth start", || stage.launcher.started() >= 13).await;
    let ready = stage.until_slot(0, 1, SlotState::Ready).await;
    assert_eq!(ready.restarts, times.lock().unwrap().len() as u32);
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_crashes_after_it_served_long_is_started_again_at_once() {
    let stage = Stage::new();
    // It serves for more than a minute each time.
    let times = note_starts(&stage, Behaviour { ends: exits(70_000, 7), ..Behaviour::default() });
    stage.want(&[(0, 1)], &[]);
    let agent = stage.start();
    stage.until("six starts", || times.lock().unwrap().len() >= 6).await;
    assert!(gaps(&times).iter().all(|gap| (70_250..70_400).contains(gap)), "{:?}", gaps(&times));
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn waiting_long_for_a_model_is_no_good_life() {
    let stage = Stage::with_gateway(None);
    // Each start waits for more than a minute and then fails, without ever having served.
    let behaviour = Behaviour { start: Duration::from_secs(70), ..Behaviour::default() };
    let times = note_starts(&stage, Behaviour { start_failure: Some("no room".into()), ..behaviour });
    stage.want(&[(0, 1)], &[]);
    let agent = stage.start();
    stage.until("six starts", || times.lock().unwrap().len() >= 6).await;
    let pauses: Vec<u64> = gaps(&times).iter().map(|gap| (gap - 35_000) / 250 * 250).collect();
    assert_eq!(pauses, [250, 500, 1_000, 2_000, 4_000]);
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_start_that_fails_says_why_and_leaves_nothing() {
    let stage = Stage::new();
    let failing = Behaviour { start_failure: Some("no such file".into()), ..Behaviour::default() };
    stage.launcher.decide(always(failing));
    stage.want(&[(0, 1)], &[]);
    let agent = stage.start();
    let failed = stage.until_slot(0, 1, SlotState::Failed).await;
    assert!(failed.detail.starts_with("sandbox-failed: ") && failed.detail.contains("no such file"));
    assert!(stage.launcher.present().is_empty());
    stage.launcher.decide(always(Behaviour::default()));
    assert!(stage.until_slot(0, 1, SlotState::Ready).await.restarts >= 1);
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn the_reason_why_a_worker_cannot_serve_is_reported() {
    let stage = Stage::new();
    let failure = Some("the tokenizer is broken".into());
    stage.launcher.decide(always(Behaviour { failure, ..Behaviour::default() }));
    stage.want(&[(0, 1)], &[]);
    let agent = stage.start();
    let failed = stage.until_slot(0, 1, SlotState::Failed).await;
    assert_eq!(failed.detail, "worker-failed: the tokenizer is broken");
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_worker_out_of_memory_is_started_again_and_said_so() {
    let stage = Stage::new();
    stage.want(&[(0, 1)], &[]);
    let agent = stage.start();
    for restarts in 1..=3 {
        stage.until_slot(0, 1, SlotState::Ready).await;
        assert!(stage.launcher.run_out_of_memory("chat.0.1.1"));
        let failed = stage.until_slot(0, 1, SlotState::Failed).await;
        assert!(failed.detail.contains("after it reached its memory limit"), "{}", failed.detail);
        assert_eq!(failed.restarts, restarts);
    }
    stage.until_slot(0, 1, SlotState::Ready).await;
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn weights_that_arrive_late_keep_a_worker_waiting_and_nothing_else() {
    let stage = Stage::with_gateway(None);
    stage.want(&[(0, 1)], &[]);
    let agent = stage.start();
    let loading = stage.until_slot(0, 1, SlotState::Loading).await;
    assert_eq!(loading.segments_verified, 0);
    stage.until("the worker runs", || stage.launcher.started() == 1).await;
    stage.model.trouble("store-unreachable: two stores too few");
    tokio::time::sleep(Duration::from_secs(1200)).await;
    let loading = stage.until_slot(0, 1, SlotState::Loading).await;
    assert_eq!(loading.detail, "store-unreachable: two stores too few");
    stage.model.complete();
    let ready = stage.until_slot(0, 1, SlotState::Ready).await;
    assert_eq!((ready.segments_verified, ready.restarts, stage.launcher.started()), (3, 0, 1));
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_hangs_is_given_up_and_started_again() {
    let mute = Behaviour { speaks: false, ..Behaviour::default() };
    let never_ready = Behaviour { ready_after: None, ..Behaviour::default() };
    for (behaviour, limit_ms, lacks) in [
        (mute, 60_000, "worker-failed: it hangs: it has not sent its hello for 60 s"),
        (
            never_ready,
            300_000,
            "worker-failed: it hangs: its weights are complete and it is not ready for 300 s",
        ),
    ] {
        let stage = Stage::new();
        let times = note_starts(&stage, behaviour);
        stage.want(&[(0, 1)], &[]);
        let agent = stage.start();
        let failed = stage.until_slot(0, 1, SlotState::Failed).await;
        assert!(failed.detail.starts_with(lacks), "{}", failed.detail);
        stage.launcher.decide(always(Behaviour::default()));
        let ready = stage.until_slot(0, 1, SlotState::Ready).await;
        assert_eq!(ready.restarts, 1);
        let took = stage.clock.boot().since(times.lock().unwrap()[0]);
        assert!((limit_ms..limit_ms + 2_000).contains(&took), "{took}");
        agent.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_falls_silent_while_it_serves_is_given_up() {
    let stage = Stage::new();
    stage.want(&[(0, 1)], &[]);
    let agent = stage.start();
    stage.until_slot(0, 1, SlotState::Ready).await;
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!(stage.launcher.started(), 1, "one that writes its numbers is left alone");
    assert!(stage.launcher.hang("chat.0.1.1"));
    let failed = stage.until_slot(0, 1, SlotState::Failed).await;
    let expected = "worker-failed: it hangs: it has written no metrics for 60 s";
    assert!(failed.detail.starts_with(expected), "{}", failed.detail);
    stage.until_slot(0, 1, SlotState::Ready).await;
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn hundreds_of_slots_start_at_once() {
    let stage = Stage::new();
    let slots: Vec<(u32, u64)> = (0..200).map(|slot| (slot, 1)).collect();
    stage.want(&slots, &[]);
    let began = stage.clock.boot();
    let agent = stage.start();
    stage
        .until("all are ready", || {
            let script = stage.script();
            let slots = script.last.iter().flat_map(|request| &request.slots);
            slots.filter(|slot| slot.state == SlotState::Ready).count() == 200
        })
        .await;
    assert!(stage.clock.boot().since(began) < 5_000);
    assert_eq!(stage.launcher.started(), 200);
    // All of them outlive many leases.
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(stage.launcher.living().len(), 200);
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_gpu_that_is_gone_keeps_its_worker_from_starting_on_less() {
    let mut stage = Stage::new();
    let mut manifest = service("trains", ModelRoot(Digest::of(b"model")), 4);
    manifest.resources.gpu_count = 2;
    let bundle = stage.script().world.deploy(&manifest);
    stage.bundle = bundle;
    let signed = {
        let world = &stage.script().world;
        let order = world.plain_order(&stage.bundle, node_id(), 0, 1);
        world.sign(0, protocol::order::SlotOrder { gpus: vec![1, 2], ..order })
    };
    stage.want_orders(vec![signed], &[]);
    let agent = stage.start();
    stage.until_slot(0, 1, SlotState::Ready).await;
    stage.device.set_lost(2, true);
    // The listing is refreshed, and the worker notices before its agent does.
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert!(stage.launcher.end("trains.0.1.1", SandboxExit::Exited { status: 1 }));
    stage
        .until("it is said", || {
            let script = stage.script();
            let slots = &script.last.as_ref().unwrap().slots;
            slots
                .iter()
                .any(|slot| slot.detail == "node-unfit: GPU 2 of this node is gone or does not answer")
        })
        .await;
    assert_eq!(stage.launcher.started(), 1);
    let listed = stage.script().last.as_ref().unwrap().resources.gpus.len();
    assert_eq!(listed, 3, "control sees that it is gone");
    stage.device.set_lost(2, false);
    stage.until_slot(0, 1, SlotState::Ready).await;
    agent.stop().await;
}
