//! Attacks of a hostile control plane, and of clocks, on a whole agent. Each has a positive control: the same
//! attack succeeds where its guard has nothing to go by.

use super::*;
use crate::agent::core::testing::routed;
use human_chain::{FENCE_LEAP_MAX, MemberSecret};
use protocol::governance::Change;
use protocol::manifest::Manifest;
use protocol::order::SlotOrder;
use std::fs;

const DAY_MS: i64 = 24 * 3600 * 1000;
const TEN_YEARS_MS: i64 = 3650 * DAY_MS;

impl Agent {
    /// Returns the table that the gateway was handed last.
    fn handed(&self) -> Option<RouteTable> {
        self.outputs.lock().unwrap().as_ref().and_then(|outputs| outputs.routes.borrow().clone())
    }

    pub(super) fn number(&self, pick: fn(&Numbers) -> u64) -> u64 {
        self.outputs.lock().unwrap().as_ref().map_or(0, |outputs| pick(&outputs.numbers.lock().unwrap()))
    }
}

impl Stage {
    /// Waits until the agent has verified this many decisions.
    pub(super) async fn until_length(&self, length: u64) {
        let reported = || self.script().last.as_ref().map_or(0, |request| request.governance_length);
        self.until(&format!("{length} decisions are verified"), || reported() == length).await;
    }

    /// Waits until an order for a slot is refused, and returns the reason.
    async fn refusal(&self, slot: u32) -> String {
        let find = || {
            let script = self.script();
            let mut slots = script.last.iter().flat_map(|request| &request.slots);
            let refused = slots.find(|r| r.slot == SlotIndex(slot) && r.state == SlotState::Refused);
            refused.map(|report| report.detail.clone())
        };
        self.until(&format!("slot {slot} is refused"), || find().is_some()).await;
        find().unwrap()
    }

    /// Makes the circle deploy another version of the first service, for later orders.
    fn deploy(&mut self, change: impl FnOnce(&mut ServiceManifest)) {
        let mut manifest = service("chat", ModelRoot(Digest::of(b"model")), 300);
        change(&mut manifest);
        let bundle = self.script().world.deploy(&manifest);
        self.bundle = bundle;
    }

    /// Steps the clocks of all machines.
    fn step_all(&self, by_ms: i64) {
        self.clock.step_wall(by_ms);
        self.control_clock.step_wall(by_ms);
    }

    /// Returns the time of the last complete sync, as recorded on disk.
    fn synced(&self) -> u64 {
        let text = fs::read_to_string(self.agent_directory().join("chain/synced")).unwrap_or_default();
        text.parse().unwrap_or(0)
    }

    /// Returns a certificate for a service that the circle approved and control never admitted.
    fn withheld(&self) -> Bundle {
        let manifest = service("evil", ModelRoot(Digest::of(b"evil")), 4);
        self.script().world.certify(Change::Deploy(Box::new(Manifest::Service(manifest))))
    }
}

#[tokio::test(start_paused = true)]
async fn route_to_a_stranger() {
    let stage = Stage::new();
    let (name, stranger) = ("node-2", Identity::from_seed(&[66; 32]));
    let services = vec![
        routed("chat", &[(0, node_id()), (1, NodeId(stranger.public_key()))]),
        routed("evil", &[(0, node_id())]),
    ];
    let table = |services| RouteTable { version: 7, services, api_keys: vec![] };
    stage.say(|script| script.desired.routes = Some(table(services.clone())));
    let agent = stage.start();
    stage.until("a table is handed on", || agent.handed().is_some()).await;
    assert_eq!(agent.handed(), Some(table(vec![routed("chat", &[(0, node_id())])])));
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(agent.number(|numbers| numbers.routes_refused), 2, "each is counted once");
    // The positive control: the circle admits the node and approves the service, and the same table passes.
    stage.say(|script| {
        let encryption = MemberSecret::generate(&[66; 64]).public().encryption;
        script.world.decide(Change::AdmitNode(Box::new(admission(name, &stranger, encryption))));
        script.world.deploy(&service("evil", ModelRoot(Digest::of(b"model")), 4));
    });
    let passes = || agent.handed().is_some_and(|table| table.services == services && table.version > 7);
    stage.until("all of it passes, as a newer table", passes).await;
    // The circle removes the node, and the gateway loses the route, though control's table stays.
    stage.say(|script| drop(script.world.decide(Change::RemoveNode { node: name.parse().unwrap() })));
    let gone = || agent.handed().is_some_and(|table| table.services[0].routes.len() == 1);
    stage.until("the removed node gets no prompt", gone).await;
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn one_wrong_clock_reading() {
    for all in [false, true] {
        let mut stage = Stage::new();
        let agent = stage.start();
        stage.until_length(1).await;
        let step = |stage: &Stage, by_ms| match all {
            true => stage.step_all(by_ms),
            false => stage.clock.step_wall(by_ms),
        };
        step(&stage, TEN_YEARS_MS);
        tokio::time::sleep(Duration::from_secs(5)).await;
        // The positive control: the reading is recorded where every clock confirms it, and only there.
        let leapt = stage.synced() > BEGAN.0 + TEN_YEARS_MS as u64 / 2;
        assert_eq!(leapt, all);
        step(&stage, -TEN_YEARS_MS);
        agent.kill().await;
        stage.deploy(|_| {});
        let agent = stage.start();
        stage.until_length(2).await;
        stage.want(&[(0, 1)], &[]);
        stage.until("it runs", || stage.launcher.started() == 1).await;
        assert!(stage.synced() < BEGAN.0 + DAY_MS as u64, "the record is right again");
        agent.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn freshness_held_back() {
    for offline in [false, true] {
        let stage = Stage::new();
        let withheld = stage.withheld();
        let mut junk = withheld.clone();
        junk.certificate.ballots.pop();
        let agent = stage.start();
        stage.until_length(1).await;
        stage.say(|script| (script.forged, script.silent) = (vec![junk], offline));
        tokio::time::sleep(Duration::from_secs(5)).await;
        stage.step_all(40 * DAY_MS);
        tokio::time::sleep(Duration::from_secs(5)).await;
        let order = stage.script().world.order(&withheld, node_id(), 0, 1);
        let wanted = desired(&withheld, vec![order], &[]);
        stage.say(|script| {
            (script.forged, script.silent, script.desired) = (vec![withheld], false, wanted);
        });
        if offline {
            // The positive control: a node that was offline cannot know that the certificate comes too late.
            stage.until_length(2).await;
        } else {
            let refusal = stage.refusal(0).await;
            assert!(refusal.starts_with("proposal-expired: "), "{refusal}");
            assert!(agent.number(|numbers| numbers.bundles_refused) > 10, "junk came with each answer");
            assert_eq!(stage.script().last.as_ref().unwrap().governance_length, 1);
        }
        agent.kill().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_clock_starts_nothing_that_expired() {
    for all in [false, true] {
        let mut stage = Stage::new();
        stage.deploy(|manifest| manifest.valid_until = Some(BEGAN.plus(DAY_MS as u64)));
        stage.control_clock.step_wall(30 * DAY_MS);
        stage.clock.step_wall(-400 * DAY_MS);
        if all {
            stage.control_clock.step_wall(-430 * DAY_MS);
        }
        stage.want(&[(0, 1)], &[]);
        let agent = stage.start();
        if all {
            // The positive control: no clock is right.
            stage.until("it runs", || stage.launcher.started() == 1).await;
        } else {
            let refusal = stage.refusal(0).await;
            assert!(refusal.starts_with("order-not-approved: "), "{refusal}");
            assert_eq!(stage.launcher.started(), 0);
        }
        agent.stop().await;
    }
}

/// All clocks are slow, but the circle has signed something since the approval ended.
#[tokio::test(start_paused = true)]
async fn no_time_falls_behind_what_is_signed() {
    let mut stage = Stage::new();
    stage.deploy(|manifest| manifest.valid_until = Some(BEGAN.plus(DAY_MS as u64)));
    {
        let world = &mut stage.script().world;
        world.now = BEGAN.plus(30 * DAY_MS as u64);
        world.deploy(&service("other", ModelRoot(Digest::of(b"model")), 4));
        world.now = BEGAN;
    }
    stage.step_all(-400 * DAY_MS);
    stage.want(&[(0, 1)], &[]);
    let agent = stage.start();
    let refusal = stage.refusal(0).await;
    assert!(refusal.starts_with("order-not-approved: "), "{refusal}");
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn twenty_slots_on_a_node_with_memory_for_four() {
    // The weights of the model take their part, once.
    for (memory_bytes, weights, slots_run) in
        [((1 << 30) + tiny().file_bytes(), 0, 4), (1 << 30, 512 << 20, 2), (1 << 40, 512 << 20, 20)]
    {
        let mut stage = Stage::new();
        stage.memory_bytes = memory_bytes;
        let slots: Vec<(u32, u64)> = (0..20).map(|slot| (slot, 1)).collect();
        stage.want(&slots, &[]);
        stage.say(|script| script.desired.assignments[0].model.bytes = weights);
        let agent = stage.start();
        stage.until("as many as fit run", || stage.launcher.living().len() == slots_run).await;
        if slots_run < 20 {
            let refusal = stage.refusal(19).await;
            assert!(refusal.starts_with("resources-exceeded: "), "{refusal}");
        }
        tokio::time::sleep(Duration::from_secs(30)).await;
        assert_eq!(stage.launcher.living().len(), slots_run);
        assert_eq!(agent.number(|numbers| numbers.orders_refused), 20 - slots_run as u64);
        agent.stop().await;
    }
}

/// One order with the highest fence of all once blocked a slot for the node's life.
#[tokio::test(start_paused = true)]
async fn fast_forward() {
    let mut stage = Stage::new();
    let agent = stage.start();
    let leap = stage.order(0, u64::MAX);
    stage.want_orders(vec![leap], &[]);
    let refusal = stage.refusal(0).await;
    assert!(refusal.starts_with("order-mismatch: "), "{refusal}");
    // The farthest leap that passes blocks lower counts under the same certificate alone.
    stage.want(&[(0, FENCE_LEAP_MAX)], &[]);
    stage.until_slot(0, FENCE_LEAP_MAX, SlotState::Ready).await;
    stage.want(&[(0, 2)], &[]);
    let refusal = stage.refusal(0).await;
    assert!(refusal.starts_with("order-replayed: "), "the positive control: {refusal}");
    stage.deploy(|_| {});
    stage.until_length(2).await;
    stage.want(&[(0, 1)], &[]);
    let second = Fence::new(2, 1);
    let serves = || {
        let script = stage.script();
        let mut slots = script.last.iter().flat_map(|request| &request.slots);
        slots.any(|report| (report.fence, report.state) == (second, SlotState::Ready))
    };
    stage.until("the next certificate opens the slot", serves).await;
    // Any order under the earlier certificate is behind it, with any count.
    let earlier = {
        let script = stage.script();
        let order = script.world.plain_order(&stage.bundle, node_id(), 0, 1);
        script.world.sign(0, SlotOrder { fence: Fence::new(1, u64::MAX), ..order })
    };
    stage.want_orders(vec![earlier], &[]);
    let refusal = stage.refusal(0).await;
    assert!(refusal.starts_with("order-replayed: "), "{refusal}");
    agent.stop().await;
}

/// A damaged chain is fetched again, and control leaves its last decision out.
#[tokio::test(start_paused = true)]
async fn a_history_that_comes_back_shorter() {
    let stage = Stage::new();
    let decide = |script: &mut SimulatedControl, name: &str| {
        script.world.deploy(&service(name, ModelRoot(Digest::of(b"model")), 4));
    };
    stage.say(|script| {
        ["one", "two"].iter().for_each(|name| decide(script, name));
        // Each decision arrives alone, and has a file of its own.
        script.page = 1;
    });
    let agent = stage.start();
    stage.until_length(3).await;
    agent.kill().await;
    let chain = stage.agent_directory().join("chain");
    fs::write(chain.join("0000000003"), b"damaged").unwrap();
    let whole = stage.script().world.bundles.clone();
    stage.say(|script| script.world.bundles.truncate(2));
    stage.want(&[(0, 1)], &[]);
    let agent = stage.start();
    let refusal = stage.refusal(0).await;
    assert!(refusal.starts_with("history-shorter: "), "{refusal}");
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert!(agent.number(|numbers| numbers.histories_refused) > 1);
    assert_eq!(agent.number(|numbers| numbers.lease_remaining_ms), 0, "nor does anything run on");
    assert_eq!(stage.launcher.started(), 0);
    stage.say(|script| script.world.bundles = whole);
    stage.until_slot(0, 1, SlotState::Ready).await;
    agent.kill().await;
    // The positive control: a node that never verified the third decision serves on the first two.
    fs::remove_file(chain.join("0000000003")).unwrap();
    fs::remove_file(chain.join("head")).unwrap();
    stage.say(|script| script.world.bundles.truncate(2));
    stage.want(&[(1, 1)], &[]);
    let agent = stage.start();
    stage.until_slot(1, 1, SlotState::Ready).await;
    agent.stop().await;
}

/// The attack: control shows an undamaged node a shorter history, or another one, and orders by it.
#[tokio::test(start_paused = true)]
async fn a_shorter_or_another_history_starts_nothing_on_a_node_that_lacks_nothing() {
    for (code, shorter) in [("history-shorter: ", true), ("history-forked: ", false)] {
        let stage = Stage::new();
        stage.say(|script| drop(script.world.deploy(&service("two", ModelRoot(Digest::of(b"model")), 4))));
        stage.want(&[(0, 1)], &[]);
        let agent = stage.start();
        stage.until_length(2).await;
        stage.until_slot(0, 1, SlotState::Ready).await;
        let claimed = match shorter {
            true => stage.script().world.heads[1],
            false => HistoryHead { size: 2, root: Digest::of(b"another history") },
        };
        stage.say(|script| script.claimed = Some(claimed));
        stage.want(&[(0, 1), (1, 1)], &[]);
        let refusal = stage.refusal(1).await;
        assert!(refusal.starts_with(code), "{refusal}");
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(stage.launcher.living(), ["chat.0.1.1"], "what runs continues, and nothing starts");
        assert!(agent.number(|numbers| numbers.histories_refused) > 1);
        // The positive control: the same order under an honest head starts.
        stage.say(|script| script.claimed = None);
        stage.until_slot(1, 1, SlotState::Ready).await;
        agent.stop().await;
    }
}
