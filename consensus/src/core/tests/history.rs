//! Randomized fault histories: replicas with the whole log, on faulty disks and a faulty network, from a
//! seed.
//!
//! Disks tear, lose, fail and fill up; the network loses, repeats and cuts. Three properties are checked:
//! - at every step: no index ever has two states, on any replica, before or after any crash;
//! - at every start: the log is accepted;
//! - over all seeds: each fault and each recovery path really occurred.

use super::*;
use crate::planted::{Defect, plant};
use std::panic::{AssertUnwindSafe, catch_unwind};

const SEEDS: u64 = 200;
const STEPS: usize = 600;

/// Counts of the events in one history.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Met {
    /// Power cuts between two operations, of one replica or of all.
    power_cuts: u64,
    /// Replicas that stopped in the middle of an operation because their disk failed.
    falls: u64,
    /// Starts that failed because of the disk.
    failed_starts: u64,
    kills: u64,
    snapshots: u64,
    installed: u64,
    segments_removed: u64,
    torn_writes: u64,
    names_lost: u64,
    syncs_failed: u64,
    found_full: u64,
    /// Starts that found several segments, a torn record, a replaced suffix, one replaced from before the
    /// first remaining entry, and a snapshot without its mark.
    long_logs: u64,
    torn_tails: u64,
    replaced: u64,
    replaced_from_front: u64,
    detached: u64,
    acknowledged: u64,
    /// Starts whose newest snapshot was damaged: another one was used, or the log was refused.
    fell_back: u64,
    corruption_rejected: u64,
}

/// A world, with its events.
struct FaultHistory {
    world: World,
    met: Met,
    /// Proposals whose outcome is open: proposer, term, index.
    pending: Vec<(u64, Term, LogIndex)>,
}

impl FaultHistory {
    fn new(seed: u64) -> Self {
        let limits = Limits {
            retained_entries: 2,
            snapshot_entries: 6 + seed % 20,
            message_bytes: 4 * 1024,
            uncommitted_bytes_max: 64 * 1024,
            ..Limits::default()
        };
        let mut world = World::with_limits(3 + 2 * (seed % 2), seed, limits);
        world.loss_percent = seed % 10;
        world.repeat_percent = seed % 7;
        world.cut_installations = seed.is_multiple_of(3);
        Self { world, met: Met::default(), pending: Vec::new() }
    }

    fn step(&mut self, step: usize) {
        let id = 1 + self.world.dice.roll(self.world.disks.len() as u64);
        match self.world.dice.roll(80) {
            0 => self.cut_power(id),
            1 => self.kill(id),
            2 => self.world.disks[&id].files().cut_power_after(step as u64 % 40),
            3 if step.is_multiple_of(4) => {
                self.met.power_cuts += 1;
                (1..=self.world.disks.len() as u64).for_each(|id| self.end(id, true));
            }
            4 => self.world.disks[&id].files().fail_next_sync(),
            5 => self.world.disks[&id].files().set_full(true),
            6 | 7 => self.world.disks.values().for_each(|disk| disk.files().set_full(false)),
            8 => drop(self.world.cut.insert(id)),
            9 | 10 => self.world.cut.clear(),
            11 => drop(self.world.slow_disks.insert(id)),
            12 | 13 => self.world.slow_disks.clear(),
            14..=19 => self.restart_failed(),
            20..=40 => self.propose(step),
            _ => self.world.tick(),
        }
        self.save_snapshots();
        self.count_acknowledged();
    }

    /// Stops a replica between two operations, together with its machine if `power` is set.
    fn end(&mut self, id: u64, power: bool) {
        if self.world.nodes.remove(&id).is_some() {
            self.world.fallen.insert(id);
        }
        if power {
            self.world.disks[&id].crash();
        }
    }

    fn cut_power(&mut self, id: u64) {
        self.met.power_cuts += 1;
        self.end(id, true);
        self.start(id);
    }

    fn kill(&mut self, id: u64) {
        self.met.kills += 1;
        self.end(id, false);
        self.start(id);
    }

    fn restart_failed(&mut self) {
        let fallen: Vec<u64> = self.world.fallen.iter().copied().collect();
        fallen.into_iter().for_each(|id| self.start(id));
    }

    /// Starts a replica that is down, unless its disk fails again. A refused log is a finding.
    fn start(&mut self, id: u64) {
        let disk = self.world.disks[&id].clone();
        if self.world.dice.roll(6) == 0 {
            self.corrupt(&disk);
        }
        let recovered = match disk.try_open() {
            Ok(recovered) => recovered,
            Err(error) => {
                let code = error.code();
                let passes = ["log-io-failed", "log-disk-full"].contains(&code.as_str());
                assert!(passes, "seed {}: replica {id} is refused: {error:?}", self.world.seed);
                self.met.failed_starts += 1;
                disk.crash();
                self.world.fallen.insert(id);
                return;
            }
        };
        let seen = disk.recovered();
        self.met.long_logs += u64::from(seen.segments > 2);
        self.met.torn_tails += u64::from(seen.torn);
        self.met.replaced += u64::from(seen.replaced > 0);
        self.met.replaced_from_front += u64::from(seen.replaced_from_front > 0);
        self.met.detached += u64::from(seen.detached);
        self.met.fell_back += u64::from(seen.fell_back);
        self.world.fallen.remove(&id);
        self.world.start_from(id, recovered);
    }

    /// Flips a byte of the newest snapshot, unless that snapshot alone holds something acknowledged. A
    /// replica that refuses to start is lost, and too many lost replicas end the group.
    fn corrupt(&mut self, disk: &SimulatedDisk) {
        let offset = self.world.dice.roll(1 << 20) as usize;
        let copy = disk.copy();
        if !copy.files().flip_newest_snapshot(offset) {
            return;
        }
        match copy.try_open() {
            Ok(_) => {
                disk.files().flip_newest_snapshot(offset);
            }
            Err(error) if error.code().as_str() == "log-damaged" => self.met.corruption_rejected += 1,
            Err(_) => {}
        }
    }

    fn propose(&mut self, step: usize) {
        for leader in self.world.leaders() {
            let commands = (0..=step % 4).map(|ordinal| Bytes::from(format!("{step}-{leader}-{ordinal}")));
            let proposed = self.world.node(leader).core.propose(commands.collect());
            if let Ok((term, index)) = proposed {
                self.pending.push((leader, term, index));
            }
        }
    }

    /// Takes the snapshots that are due, and truncates the log behind them.
    fn save_snapshots(&mut self) {
        let ids: Vec<u64> = self.world.nodes.keys().copied().collect();
        for id in ids {
            let node = self.world.node(id);
            let Some(state) = node.state.filter(|_| node.core.snapshot_due()) else { continue };
            let snapshot = node.core.snapshot_here(Bytes::copy_from_slice(&state));
            let saved = node.disk.save_snapshot(&snapshot);
            match saved.and_then(|()| node.disk.truncate(snapshot.index)) {
                Ok(()) => {
                    node.core.snapshot_saved(snapshot);
                    self.met.snapshots += 1;
                }
                Err(error) if error.is_disk_full() => {}
                Err(_) => self.end(id, true),
            }
        }
    }

    /// Counts acknowledged proposals: those that their proposer saw applied at their index in their term.
    /// From then on that index has a fixed state, to which `World::states` holds every replica.
    fn count_acknowledged(&mut self) {
        let (world, met) = (&self.world, &mut self.met);
        self.pending.retain(|(leader, term, index)| {
            let Some(node) = world.nodes.get(leader) else { return false };
            let entry = node.applied.get(index.0 as usize - 1);
            met.acknowledged += u64::from(entry.is_some_and(|entry| entry.term == *term));
            entry.is_none()
        });
    }

    /// Repairs everything, and checks that all replicas reach one state.
    fn repair(&mut self) {
        self.world.loss_percent = 0;
        self.world.cut_installations = false;
        self.world.cut.clear();
        self.world.slow_disks.clear();
        for id in self.world.disks.keys().copied().collect::<Vec<_>>() {
            self.world.disks[&id].files().set_full(false);
            // Faults that were scheduled for later must not occur now.
            self.end(id, true);
            self.start(id);
        }
        let leader = self.world.elect();
        self.world.propose(leader, "end");
        self.world.run(60);
        let seed = self.world.seed;
        let ends: BTreeSet<_> =
            self.world.nodes.values().map(|node| (node.applied.len(), node.state)).collect();
        assert_eq!(self.world.nodes.len(), self.world.disks.len(), "seed {seed}");
        assert_eq!(ends.len(), 1, "seed {seed}: the replicas ended in different states");
        let highest = self.world.states.last_key_value().map(|(index, _)| index.0 as usize);
        assert_eq!(
            ends.first().map(|(length, _)| *length),
            highest,
            "seed {seed}: something applied is gone"
        );
    }
}

/// Runs a whole history, and returns its events and a digest of everything delivered and applied.
fn history(seed: u64) -> (Met, String) {
    let mut history = FaultHistory::new(seed);
    (0..STEPS).for_each(|step| history.step(step));
    history.repair();
    let FaultHistory { world, mut met, .. } = history;
    for disk in world.disks.values() {
        let seen = disk.files().seen();
        met.segments_removed += seen.segments_removed;
        met.torn_writes += seen.torn;
        met.names_lost += seen.names_lost;
        met.syncs_failed += seen.syncs_failed;
        met.found_full += seen.found_full;
        met.falls += seen.power_cut_within;
    }
    met.installed = world.installed;
    (met, world.trace.finalize().to_hex().to_string())
}

type CounterField = fn(&Met) -> u64;

/// Sums the events of all histories.
fn sum(all: &[Met]) -> Vec<(&'static str, u64)> {
    let fields: [(&str, CounterField); 20] = [
        ("power cuts", |met| met.power_cuts),
        ("falls", |met| met.falls),
        ("failed starts", |met| met.failed_starts),
        ("kills", |met| met.kills),
        ("snapshots", |met| met.snapshots),
        ("installed", |met| met.installed),
        ("segments removed", |met| met.segments_removed),
        ("torn writes", |met| met.torn_writes),
        ("names lost", |met| met.names_lost),
        ("syncs failed", |met| met.syncs_failed),
        ("found full", |met| met.found_full),
        ("long logs", |met| met.long_logs),
        ("torn tails", |met| met.torn_tails),
        ("replaced", |met| met.replaced),
        ("replaced from front", |met| met.replaced_from_front),
        ("detached", |met| met.detached),
        ("acknowledged", |met| met.acknowledged),
        ("fell back", |met| met.fell_back),
        ("corruption rejected", |met| met.corruption_rejected),
        ("histories", |_| 1),
    ];
    fields.map(|(name, field)| (name, all.iter().map(field).sum::<u64>())).to_vec()
}

#[test]
fn fault_histories_lose_nothing_acknowledged() {
    let all: Vec<Met> = (0..SEEDS).map(|seed| history(seed).0).collect();
    let sums = sum(&all);
    println!("{sums:?}");
    // A fault that never occurred proves nothing.
    for (name, count) in sums {
        assert!(count >= 5, "{name}: {count} in {SEEDS} histories");
    }
}

#[test]
fn the_same_seed_gives_the_same_history() {
    for seed in [1, 17, 42] {
        assert_eq!(history(seed), history(seed), "seed {seed}");
    }
}

#[test]
fn the_simulation_detects_planted_defects() {
    for defect in [
        Defect::FrontRefused,
        Defect::MarkForgotten,
        Defect::SyncForgotten,
        Defect::NameForgotten,
        Defect::TornLeft,
        Defect::BytesLeft,
    ] {
        plant(Some(defect));
        let found = (0..SEEDS).find(|seed| catch_unwind(AssertUnwindSafe(|| history(*seed))).is_err());
        plant(None);
        println!("{defect:?}: found by seed {found:?}");
        assert!(found.is_some(), "{defect:?} is not found by {SEEDS} seeds");
    }
}
