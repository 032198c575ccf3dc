//! Randomised simulation: events in an order that a seed decides. The same seed gives the same history, byte
//! for byte.

use super::*;
use protocol::sandbox::SandboxExit;
use std::collections::BTreeMap;
use std::fmt::Write;

/// Number of events in one history.
const STEPS: u32 = 60;
/// Slots of the node.
const SLOTS: u64 = 3;

/// Pseudo-random numbers from a seed (splitmix64).
struct SplitMix(u64);

impl SplitMix {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % sides
    }
}

/// Returns the behaviour of a worker: a function of seed and name, never of the order of calls.
fn fate(seed: u64, name: &str, nth: u64) -> Behaviour {
    let mut text = Digest::of(format!("{seed} {name} {nth}").as_bytes()).as_bytes()[..8].to_vec();
    text.reverse();
    let mut dice = SplitMix(u64::from_le_bytes(text.try_into().unwrap()));
    let mut behaviour = Behaviour {
        start: Duration::from_millis(2 * dice.roll(300)),
        ready_after: Some(Duration::from_millis(dice.roll(500))),
        obeys_after: (dice.roll(4) > 0).then(|| Duration::from_millis(dice.roll(2_000))),
        requests_running: dice.roll(2) as u32,
        ..Behaviour::default()
    };
    match dice.roll(10) {
        0 => behaviour.start_failure = Some("fate".into()),
        1 => behaviour.speaks = false,
        2 => behaviour.ready_after = None,
        3 => behaviour.failure = Some("fate".into()),
        _ => {}
    }
    behaviour
}

/// A history in progress.
struct SimulatedHistory {
    stage: Stage,
    agent: Option<Agent>,
    dice: SplitMix,
    fences: BTreeMap<u32, u64>,
    draining: Vec<u32>,
    trace: String,
}

impl SimulatedHistory {
    fn new(seed: u64) -> Self {
        let stage = Stage::new();
        let counts: Mutex<BTreeMap<String, u64>> = Mutex::default();
        stage.launcher.decide(move |start| {
            let mut counts = counts.lock().unwrap();
            let nth = counts.entry(start.name.clone()).or_default();
            *nth += 1;
            fate(seed, &start.name, *nth)
        });
        let fences = (0..SLOTS as u32).map(|slot| (slot, 1)).collect();
        Self { stage, agent: None, dice: SplitMix(seed), fences, draining: vec![], trace: String::new() }
    }

    fn note(&mut self, what: &str) {
        let (at, living) = (self.stage.clock.boot(), self.stage.launcher.living());
        writeln!(self.trace, "{at} {what}; living {living:?}").unwrap();
    }

    fn want(&self) {
        let wanted: Vec<(u32, u64)> = self.fences.iter().map(|(slot, fence)| (*slot, *fence)).collect();
        self.stage.want(&wanted, &self.draining);
    }

    /// Makes one event happen.
    async fn step(&mut self) {
        let slot = self.dice.roll(SLOTS) as u32;
        let name = format!("chat.{slot}.1.{}", self.fences[&slot]);
        let what = match self.dice.roll(11) {
            0 => {
                if let Some(agent) = self.agent.take() {
                    agent.kill().await;
                }
                "the agent is killed".to_string()
            }
            1 | 2 => {
                self.agent.get_or_insert_with(|| self.stage.start());
                "the agent is started".to_string()
            }
            3 => {
                *self.fences.get_mut(&slot).unwrap() += 1;
                self.draining.retain(|other| *other != slot);
                self.want();
                format!("slot {slot} is ordered anew")
            }
            4 => {
                self.draining.push(slot);
                self.want();
                format!("slot {slot} drains")
            }
            5 => {
                format!("{name} dies: {}", self.stage.launcher.end(&name, SandboxExit::Exited { status: 1 }))
            }
            6 => format!("{name} out of memory: {}", self.stage.launcher.run_out_of_memory(&name)),
            7 => format!("{name} hangs: {}", self.stage.launcher.hang(&name)),
            8 => {
                self.stage.say(|script| script.silent = !script.silent);
                "control falls silent, or speaks again".to_string()
            }
            9 => {
                let step = self.dice.roll(240_000) as i64 - 120_000;
                self.stage.clock.step_wall(step);
                format!("somebody sets the wall clock by {step} ms")
            }
            _ => format!("{name} is idle: {}", self.stage.launcher.set_requests(&name, 0)),
        };
        self.note(&what);
    }

    /// Lets time pass, and checks throughout that no slot runs twice.
    async fn pass(&mut self, time_ms: u64) {
        let until = self.stage.clock.boot().plus(time_ms);
        while self.stage.clock.boot() < until {
            let living = self.stage.launcher.living();
            let slots: std::collections::BTreeSet<_> =
                living.iter().map(|name| name.rsplit_once('.').unwrap().0).collect();
            assert_eq!(slots.len(), living.len(), "a slot is held twice: {living:?}\n{}", self.trace);
            tokio::time::sleep(Duration::from_millis(1 + time_ms / 50)).await;
        }
    }

    /// Ends all faults and checks that the desired slots come to run, and nothing else.
    async fn converge(&mut self) {
        self.stage.launcher.decide(always(Behaviour::default()));
        self.stage.say(|script| script.silent = false);
        for fence in self.fences.values_mut() {
            *fence += 1;
        }
        self.draining.clear();
        self.want();
        let agent = self.agent.take().unwrap_or_else(|| self.stage.start());
        for (slot, fence) in self.fences.clone() {
            self.stage.until_slot(slot, fence, SlotState::Ready).await;
        }
        let expected: Vec<String> =
            self.fences.iter().map(|(slot, fence)| format!("chat.{slot}.1.{fence}")).collect();
        assert_eq!(self.stage.launcher.living(), expected, "{}", self.trace);
        // Without the time: at the millisecond at which the last slot gets ready, this task may look before
        // the agent's.
        writeln!(self.trace, "all is well; living {expected:?}").unwrap();
        agent.stop().await;
        assert!(self.stage.launcher.present().is_empty(), "{}", self.trace);
    }
}

/// Returns the log of one history.
fn history(seed: u64) -> String {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
    runtime.unwrap().block_on(async {
        let mut history = SimulatedHistory::new(seed);
        history.want();
        history.agent = Some(history.stage.start());
        for _ in 0..STEPS {
            let time_ms = 1 + history.dice.roll(4_000);
            history.pass(time_ms).await;
            history.step().await;
        }
        history.converge().await;
        let reports = history.stage.script().reports.join("\n");
        format!("{}{reports}\n", history.trace)
    })
}

#[test]
fn no_interleaving_holds_a_slot_twice_and_each_ends_in_order() {
    for seed in 0..24 {
        history(seed);
    }
}

#[test]
fn the_same_seed_gives_the_same_history() {
    let mut histories = std::collections::BTreeSet::new();
    for seed in [1, 42, 4711] {
        let (first, second) = (history(seed), history(seed));
        let differs = first.lines().zip(second.lines()).find(|(a, b)| a != b);
        assert_eq!(first, second, "seed {seed}: {differs:?}");
        histories.insert(first);
    }
    assert_eq!(histories.len(), 3, "and another seed another one");
}
