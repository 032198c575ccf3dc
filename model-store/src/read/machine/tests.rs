//! Tests of the state machine: scripts of events and actions, and random orders of events.

use super::super::window::{BytesInFlight, WINDOW_MIN};
use super::*;
use proptest::prelude::*;

const TIMEOUT: Duration = Duration::from_millis(200);

/// Runs a script against a batch of two segments in 2 + 2 shards. Each line is an event and the actions that
/// it causes. `local` are the shards of this machine.
fn check(local: &[usize], script: &str) {
    let mut read = read_of(2, local);
    for line in script.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let (event, expected) = line.split_once("->").expect("event -> actions");
        let actions: Vec<String> = read.on(parse(event)).iter().map(show).collect();
        assert_eq!(actions.join(", "), expected.trim(), "`{line}` of:{script}\n{read:?}");
        assert_eq!(read.check_invariants(), Ok(()), "`{line}` of:{script}");
    }
}

fn read_of(segments: usize, local: &[usize]) -> BatchRead {
    let local = (0..4).map(|shard| local.contains(&shard)).collect();
    BatchRead::new(SegmentBatch { group: 0, positions: 5..5 + segments }, 2, local)
}

fn parse(text: &str) -> Event {
    let words: Vec<&str> = text.split_whitespace().collect();
    let number = |index: usize| words[index].parse().expect("a number");
    let numbers = |words: &[&str]| words.iter().map(|word| word.parse().expect("a number")).collect();
    match words[0] {
        "started" => Event::Started { ranked: numbers(&words[1..]), reading: reading_at(0, 0) },
        "answered" => Event::Answered { shard: number(1) },
        "quiet" => Event::Quiet { reading: reading_at(number(1) as u64, 0), timeout: TIMEOUT },
        "begun" => Event::Begun,
        "loaded" => Event::Loaded { shard: number(1) },
        "failed" => Event::Failed { shard: number(1), kind: FaultKind::Missing },
        "wrong" => Event::Failed { shard: number(1), kind: FaultKind::Wrong },
        "opened" => Event::Opened,
        "rejected" => Event::Rejected,
        "checked" => {
            let ranked = words.iter().position(|word| *word == "ranked").expect("ranked");
            Event::Checked { wrong: numbers(&words[1..ranked]), ranked: numbers(&words[ranked + 1..]) }
        }
        "stalled" => Event::Stalled { shard: number(1), done: number(2) },
        other => panic!("no event `{other}`"),
    }
}

fn show(action: &ReadAction) -> String {
    match action {
        ReadAction::Fetch { shard } => format!("fetch {shard}"),
        ReadAction::Hedge { shard } => format!("hedge {shard}"),
        ReadAction::Drop { shard } => format!("drop {shard}"),
        ReadAction::Decode => "decode".into(),
        ReadAction::Load { shard } => format!("load {shard}"),
        ReadAction::Open => "open".into(),
        ReadAction::Check => "check".into(),
        ReadAction::Replace { shard } => format!("replace {shard}"),
        ReadAction::Publish { position, rebuilt, faults } => {
            let faults: String = faults.iter().map(|(shard, kind)| format!(" {shard}:{kind}")).collect();
            format!("publish {position}{}{faults}", if *rebuilt { " rebuilt" } else { "" })
        }
        ReadAction::Fail { position, reason: ReadFailure::ShardsTooFew { good } } => {
            format!("fail {position} with {good}")
        }
        ReadAction::Fail { position, reason: ReadFailure::SegmentInvalid } => {
            format!("fail {position} invalid")
        }
    }
}

fn reading_at(milliseconds: u64, arrived: u64) -> FlowReading {
    let now = Duration::from_millis(milliseconds);
    FlowReading { now, arrived, last_at: Duration::ZERO, in_flight: 1 << 20, rate: None }
}

#[test]
fn a_healthy_batch_takes_the_best_k_stores_and_opens_each_segment_once() {
    check(
        &[],
        "started 2 0 3 1 -> fetch 2, fetch 0
         answered 0      ->
         answered 2      -> decode
         begun           -> load 0, load 2
         loaded 2        ->
         loaded 0        -> open
         opened          -> publish 5 rebuilt, load 0, load 2
         loaded 0        ->
         loaded 2        -> open
         opened          -> publish 6 rebuilt",
    );
    check(
        &[0, 1, 2, 3],
        "started 0 1 2 3 -> decode
         begun           -> load 0, load 1
         loaded 0        ->
         loaded 1        -> open
         opened          -> publish 5, load 0, load 1",
    );
    check(
        &[1],
        "started 1 3 0 2 -> fetch 3
         answered 3      -> decode
         begun           -> load 1, load 3",
    );
}

#[test]
fn a_failed_request_is_replaced_by_the_next_store() {
    check(
        &[3],
        "started 0 1 2 3 -> fetch 0, fetch 1
         failed 1        -> fetch 2
         failed 0        ->
         answered 2      -> decode
         begun           -> load 2, load 3
         loaded 2        ->
         loaded 3        -> open
         opened          -> publish 5 rebuilt 0:missing 1:missing, load 2, load 3",
    );
}

#[test]
fn a_stalled_store_is_hedged_and_dropped_once_enough_has_arrived() {
    check(
        &[],
        "started 0 1 2 3 -> fetch 0, fetch 1
         answered 0      ->
         quiet 100       ->
         quiet 200       -> hedge 2
         quiet 300       ->
         answered 2      -> drop 1, decode
         begun           -> load 0, load 2",
    );
    check(
        &[3],
        "started 0 1 3 2 -> fetch 0, fetch 1
         quiet 200       ->
         answered 1      -> drop 0, decode",
    );
}

#[test]
fn the_late_answer_of_a_dropped_request_changes_nothing() {
    check(
        &[],
        "started 0 1 2 3 -> fetch 0, fetch 1
         quiet 200       -> hedge 2
         answered 1      ->
         answered 1      ->
         answered 2      -> drop 0, decode
         answered 0      ->
         begun           -> load 1, load 2
         answered 0      ->
         failed 0        ->
         loaded 0        ->
         loaded 1        ->
         loaded 1        ->
         loaded 2        -> open",
    );
}

#[test]
fn a_corrupt_shard_is_discarded_and_replaced_by_another() {
    check(
        &[],
        "started 0 1 2 3          -> fetch 0, fetch 1
         answered 0               ->
         answered 1               -> decode
         begun                    -> load 0, load 1
         loaded 0                 ->
         loaded 1                 -> open
         rejected                 -> check
         checked 1 ranked 3 0 1 2 -> replace 3
         wrong 3                  -> replace 2
         loaded 2                 -> open
         opened                   -> publish 5 rebuilt 1:wrong 3:wrong, load 0, load 1",
    );
}

#[test]
fn a_shard_that_ends_too_early_is_replaced_too() {
    check(
        &[],
        "started 0 1 2 3         -> fetch 0, fetch 1
         answered 0              ->
         answered 1              -> decode
         begun                   -> load 0, load 1
         failed 1                ->
         loaded 0                -> check
         checked ranked 0 1 2 3  -> replace 2
         loaded 2                -> open
         opened                  -> publish 5 rebuilt 1:missing, load 0, load 1",
    );
}

#[test]
fn a_read_fails_when_no_store_is_left_or_the_manifest_contradicts_itself() {
    check(
        &[],
        "started 0 1 2 3          -> fetch 0, fetch 1
         answered 0               ->
         answered 1               -> decode
         begun                    -> load 0, load 1
         loaded 0                 ->
         loaded 1                 -> open
         rejected                 -> check
         checked 0 ranked 0 1 2 3 -> replace 2
         failed 2                 -> replace 3
         wrong 3                  -> fail 5 with 1
         opened                   ->
         started 0 1 2 3          ->",
    );
    check(
        &[0, 1],
        "started 0 1 2 3        -> decode
         begun                  -> load 0, load 1
         loaded 0               ->
         loaded 1               -> open
         rejected               -> check
         checked ranked 0 1 2 3 -> open
         rejected               -> fail 5 invalid",
    );
    check(
        &[],
        "started                -> decode
         begun                  -> check
         checked ranked         -> fail 5 with 0",
    );
}

#[test]
fn silence_of_all_stores_ends_in_an_error() {
    check(
        &[],
        "started 0 1 2 3        -> fetch 0, fetch 1
         quiet 200              -> hedge 2
         quiet 400              -> hedge 3
         quiet 600              ->
         failed 0               ->
         failed 1               ->
         failed 2               ->
         failed 3               -> decode
         begun                  -> check
         checked ranked 0 1 2 3 -> fail 5 with 0",
    );
}

#[test]
fn a_stalled_disk_starts_the_rest_again_without_it() {
    let again = "
         started 0 1 2 3        -> decode
         begun                  -> load 1, load 2
         loaded 1               ->
         loaded 2               -> open
         opened                 -> publish";
    let loading = "started 0 1 2 3 -> decode
         begun     -> load 0, load 1
         loaded 1  ->
         stalled 0 0 ->";
    check(&[0, 1, 2, 3], &format!("{loading}{again} 5 rebuilt 0:unreachable, load 1, load 2"));
    let watcher = "started 0 1 2 3 -> decode
         stalled 0 1 ->";
    check(&[0, 1, 2, 3], &format!("{watcher}{again} 6 rebuilt 0:unreachable"));
    let replacing = "started 1 2 0 3 -> decode
         begun    -> load 1, load 2
         loaded 1 ->
         failed 2 -> check
         checked ranked 0 3 -> replace 0
         stalled 0 0 ->";
    check(&[0, 1, 2, 3], &format!("{replacing}{again} 5 rebuilt 0:unreachable, load 1, load 2"));
}

#[test]
fn events_of_another_phase_change_nothing() {
    let events = "started 0 1 2 3 | answered 0 | quiet 10000 | begun | loaded 0 | failed 0 | opened
        | rejected | checked ranked 1 2 3 | stalled 0 0";
    let steps = ["started 0 1 2 3", "answered 0", "answered 1", "begun", "loaded 0", "loaded 1", "rejected"];
    let expected = [
        &["started"][..],
        &["answered", "failed", "quiet"],
        &["quiet"],
        &["begun", "stalled"],
        &["loaded", "failed", "stalled"],
        &["stalled"],
        &["opened", "rejected"],
        &["checked"],
    ];
    let mut read = read_of(1, &[]);
    for (number, expected) in expected.iter().enumerate() {
        for event in events.split('|') {
            let mut tried = read.clone();
            tried.on(parse(event));
            let changed = format!("{tried:?}") != format!("{read:?}");
            let name = event.split_whitespace().next().expect("a name");
            assert_eq!(changed, expected.contains(&name), "`{name}` after {number} steps: {read:?}");
        }
        if let Some(step) = steps.get(number) {
            read.on(parse(step));
        }
    }
}

#[test]
fn late_is_a_request_that_the_link_does_not_explain() {
    let second = Duration::from_secs;
    let mark = FlowReading { now: second(100), in_flight: 3_000_000, ..reading_at(0, 0) };
    let late = |seconds: u64, arrived: u64, silent: u64, rate: Option<f64>| {
        let now = second(100 + seconds);
        let reading = FlowReading { now, arrived, last_at: now - second(silent), in_flight: 0, rate };
        is_late(&mark, &reading, second(1))
    };
    let cases = [
        (0, 100_000_000, 0, None, false),
        (1, 0, 50, None, true),
        (2, 1, 0, None, false),
        (9, 1, 0, None, false),
        (10, 1, 0, None, true),
        (9, 8_999_999, 0, None, false),
        (2, 9_000_000, 0, None, true),
        (4, 3_000_000, 0, Some(3e6), false),
        (5, 3_000_000, 0, Some(3e6), true),
        (1, 1, 0, Some(3e9), false),
        (2, 1, 0, Some(3e9), true),
    ];
    for (seconds, arrived, silent, rate, expected) in cases {
        let is_late = late(seconds, arrived, silent, rate);
        assert_eq!(is_late, expected, "{seconds} s, {arrived} bytes, silent {silent} s, rate {rate:?}");
    }
}

/// Behaviour of one simulated shard.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Shard {
    Good,
    /// Answers with wrong bytes.
    Corrupt,
    /// Answers with an error.
    Missing,
    /// A remote store never answers; a disk stalls.
    Silent,
}

/// One read in simulation, with what it has asked for.
#[derive(Debug)]
struct SimulatedRead {
    read: BatchRead,
    shards: [Shard; 4],
    local: [bool; 4],
    ranked: Vec<usize>,
    /// Bytes of one store's answer.
    bytes: u64,
    /// Bytes reserved among those in flight, until the first decoding.
    reserved: Option<u64>,
    /// Whether the read waits for room among the bytes in flight.
    is_queued: bool,
    has_begun: bool,
    open: Vec<usize>,
    hedges: usize,
    actions: VecDeque<ReadAction>,
    published: Vec<usize>,
    failure: Option<ReadFailure>,
}

impl SimulatedRead {
    fn new(shards: [Shard; 4], local: [bool; 4], ranked: Vec<usize>, segments: usize, bytes: u64) -> Self {
        let batch = SegmentBatch { group: 0, positions: 0..segments };
        Self {
            read: BatchRead::new(batch, 2, local.to_vec()),
            shards,
            local,
            ranked,
            bytes,
            reserved: None,
            is_queued: false,
            has_begun: false,
            open: Vec::new(),
            hedges: 0,
            actions: VecDeque::new(),
            published: Vec::new(),
            failure: None,
        }
    }

    fn is_over(&self) -> bool {
        self.read.is_done() || self.failure.is_some()
    }

    /// Performs one step, which `choice` selects among those that are possible.
    fn step(&mut self, flow: &mut BytesInFlight, now: Duration, choice: usize) {
        if self.read.phase == ReadPhase::Waiting {
            self.begin(flow, now);
        } else if let Some(action) = self.actions.pop_front() {
            self.perform(action, flow);
        } else if !self.open.is_empty() {
            self.answer(flow, now, choice);
        }
        assert_eq!(self.read.check_invariants(), Ok(()));
        let planned = self.reserved.unwrap_or(u64::MAX / 2) / self.bytes;
        assert!(self.open.len() - self.hedges.min(self.open.len()) <= planned as usize, "{self:?}");
    }

    fn begin(&mut self, flow: &mut BytesInFlight, now: Duration) {
        let remote = self.ranked.iter().take(2).filter(|shard| !self.local[**shard]).count() as u64;
        if !self.has_begun && remote > 0 {
            if !std::mem::replace(&mut self.is_queued, true) {
                flow.enqueue();
            }
            if !flow.reserve(remote * self.bytes, now) {
                return;
            }
            flow.dequeue();
            self.reserved = Some(remote * self.bytes);
        }
        self.has_begun = true;
        self.feed(Event::Started { ranked: self.ranked.clone(), reading: flow.reading(now) });
    }

    fn feed(&mut self, event: Event) {
        self.actions.extend(self.read.on(event));
    }

    /// Lets one store answer. If all are silent, time passes, and at last one request fails.
    fn answer(&mut self, flow: &mut BytesInFlight, now: Duration, choice: usize) {
        let shard = self.open[choice % self.open.len()];
        if self.shards[shard] == Shard::Silent {
            self.feed(Event::Quiet { reading: flow.reading(now + WAIT_MAX), timeout: TIMEOUT });
            let is_last = self.open.iter().all(|shard| self.shards[*shard] == Shard::Silent);
            if !(self.actions.is_empty() && is_last) {
                return;
            }
        }
        self.open.retain(|other| *other != shard);
        match self.shards[shard] {
            Shard::Missing => self.feed(Event::Failed { shard, kind: FaultKind::Missing }),
            Shard::Silent => self.feed(Event::Failed { shard, kind: FaultKind::Unreachable }),
            Shard::Good | Shard::Corrupt => {
                flow.arrived(self.bytes, now);
                self.feed(Event::Answered { shard });
                self.feed(Event::Answered { shard });
            }
        }
    }

    fn perform(&mut self, action: ReadAction, flow: &mut BytesInFlight) {
        match action {
            ReadAction::Fetch { shard } => self.open.push(shard),
            ReadAction::Hedge { shard } => {
                self.hedges += 1;
                self.open.push(shard);
            }
            ReadAction::Drop { shard } => self.open.retain(|other| *other != shard),
            ReadAction::Decode => {
                assert!(self.open.is_empty(), "no request outlives the fetch");
                self.reserved.take().into_iter().for_each(|bytes| flow.release(bytes));
                self.hedges = 0;
                self.feed(Event::Begun);
            }
            ReadAction::Load { shard } | ReadAction::Replace { shard } => self.get(shard, &action),
            ReadAction::Open => {
                let mut states = self.read.segment().iter().zip(self.shards);
                let wrong =
                    states.any(|(state, shard)| *state == ShardState::Present && shard != Shard::Good);
                self.feed(if wrong { Event::Rejected } else { Event::Opened });
            }
            ReadAction::Check => {
                let present = shards_in(self.read.segment(), ShardState::Present);
                let wrong = present.filter(|shard| self.shards[*shard] != Shard::Good).collect();
                self.feed(Event::Checked { wrong, ranked: self.ranked.clone() });
            }
            ReadAction::Publish { position, .. } => self.published.push(position),
            ReadAction::Fail { reason, .. } => self.failure = Some(reason),
        }
    }

    fn get(&mut self, shard: usize, action: &ReadAction) {
        let is_replacement = matches!(action, ReadAction::Replace { .. });
        match self.shards[shard] {
            Shard::Silent if self.local[shard] => {
                // The actions of an abandoned attempt are discarded with it.
                self.actions.clear();
                self.feed(Event::Stalled { shard, done: 0 });
            }
            Shard::Silent => self.feed(Event::Failed { shard, kind: FaultKind::Unreachable }),
            Shard::Missing => self.feed(Event::Failed { shard, kind: FaultKind::Missing }),
            Shard::Corrupt if is_replacement => self.feed(Event::Failed { shard, kind: FaultKind::Wrong }),
            Shard::Good | Shard::Corrupt => self.feed(Event::Loaded { shard }),
        }
    }
}

fn simulated_read() -> impl Strategy<Value = SimulatedRead> {
    let shard = prop_oneof![
        4 => Just(Shard::Good),
        1 => Just(Shard::Corrupt),
        1 => Just(Shard::Missing),
        1 => Just(Shard::Silent),
    ];
    let ranked = Just(vec![0, 1, 2, 3]).prop_shuffle();
    let parts = (prop::array::uniform4(shard), prop::array::uniform4(any::<bool>()), ranked);
    (parts, 1..4_usize, 1..2 * WINDOW_MIN).prop_map(|((shards, local, ranked), segments, bytes)| {
        SimulatedRead::new(shards, local, ranked, segments, bytes)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn bytes_in_flight_stay_within_the_budget_in_any_order_of_events(
        mut reads in prop::collection::vec(simulated_read(), 1..6),
        choices in prop::collection::vec((any::<prop::sample::Index>(), any::<usize>()), 1..200),
    ) {
        let most = 4 * WINDOW_MIN;
        let mut flow = BytesInFlight::new(most);
        let mut now = Duration::ZERO;
        // After the random steps each read is advanced in turn, until all are over.
        let count = reads.len();
        let turns = (0..2_000).map(|turn| (turn, turn / count));
        let random = choices.iter().map(|(index, choice)| (index.index(count), *choice));
        for (index, choice) in random.chain(turns) {
            now += Duration::from_millis(choice as u64 % 50);
            reads[index % count].step(&mut flow, now, choice);
            prop_assert_eq!(flow.check_invariants(), Ok(()));
            let reserved: Vec<u64> = reads.iter().filter_map(|read| read.reserved).collect();
            let sum = reserved.iter().sum::<u64>();
            prop_assert_eq!(flow.reading(now).in_flight, sum);
            prop_assert!(sum <= most || reserved.len() == 1, "{} bytes in flight", sum);
        }
        for read in reads {
            prop_assert!(read.is_over(), "a read that never ends: {:?}", read);
            let good = read.shards.iter().filter(|shard| **shard == Shard::Good).count();
            match read.failure {
                None => prop_assert!(read.published.is_sorted() && good >= 2, "{:?}", read),
                Some(failure) => prop_assert!(
                    failure == ReadFailure::ShardsTooFew { good } && good < 2,
                    "{:?}", read
                ),
            }
        }
    }
}
