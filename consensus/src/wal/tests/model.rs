//! Model test: after any sequence of operations and starts, the log recovers what a list in memory holds.

use super::*;
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Operation {
    Append {
        count: u64,
        size: usize,
    },
    /// A new leader replaces the last uncommitted entries, and adds one.
    Replace {
        count: u64,
    },
    Commit,
    SaveSnapshot,
    Kill,
    CutPower,
}

fn operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        4 => (1u64..5, 0usize..9000).prop_map(|(count, size)| Operation::Append { count, size }),
        2 => (0u64..6).prop_map(|count| Operation::Replace { count }),
        2 => Just(Operation::Commit),
        1 => Just(Operation::SaveSnapshot),
        1 => Just(Operation::Kill),
        1 => Just(Operation::CutPower),
    ]
}

/// A log on simulated files, and the state that it must recover.
struct Model {
    files: SimulatedFiles,
    log: WriteAheadLog,
    term: u64,
    commit: u64,
    /// Every entry ever written and not replaced, from the first one on.
    entries: Vec<LogEntry>,
    expected: Recovered,
}

impl Model {
    fn new() -> Self {
        let files = SimulatedFiles::new(3);
        let (log, expected) = open_simulated(&files, Making::Inline);
        Self { files, log, term: 1, commit: 0, entries: Vec::new(), expected }
    }

    fn last(&self) -> u64 {
        self.entries.len() as u64
    }

    fn append(&mut self, mut batch: Batch, first: u64) {
        self.entries.truncate(first as usize - 1);
        self.entries.extend(batch.entries.iter().cloned());
        batch.hard_state = Some(state(self.term, self.commit));
        self.expected.hard_state = state(self.term, self.commit);
        self.log.write(&[batch]).expect("space");
    }

    fn apply(&mut self, operation: &Operation) {
        let next = self.last() + 1;
        match operation {
            Operation::Append { count, size } => {
                self.append(entries_of(self.term, next..=self.last() + count, *size), next);
            }
            Operation::Replace { count } => {
                self.term += 1;
                let first = next.saturating_sub(*count).max(self.commit + 1);
                self.append(entries_of(self.term, first..=next, 10), first);
            }
            Operation::Commit => {
                self.commit = self.last();
                self.append(Batch { sync: true, ..Batch::default() }, next);
            }
            Operation::SaveSnapshot => self.save_snapshot(),
            Operation::Kill => self.restart(),
            Operation::CutPower => {
                self.files.crash();
                self.restart();
            }
        }
    }

    fn save_snapshot(&mut self) {
        let known = self.expected.snapshot.as_ref().map_or(0, |found| found.index.0);
        if self.commit > known {
            let term = self.entries[self.commit as usize - 1].term;
            let taken = Snapshot { term, ..snapshot(self.commit) };
            self.log.save_snapshot(&taken).expect("space");
            self.log.truncate(taken.index).expect("removal");
            self.expected.snapshot = Some(taken);
        }
    }

    /// Starts again, and compares the recovered state.
    fn restart(&mut self) {
        let (log, found) = open_simulated(&self.files, Making::Inline);
        self.log = log;
        let behind = self.expected.snapshot.as_ref().map_or(0, |found| found.index.0);
        self.expected.entries = self.entries[behind as usize..].to_vec();
        self.expected.incarnation = self.expected.incarnation.next();
        assert_eq!(found.check_invariants(), Ok(()));
        assert!(found == self.expected, "{found:?} instead of {:?}", self.expected);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn the_log_recovers_everything_that_was_written(
        operations in proptest::collection::vec(operation(), 1..40),
    ) {
        let mut model = Model::new();
        operations.iter().for_each(|operation| model.apply(operation));
        model.restart();
    }
}
