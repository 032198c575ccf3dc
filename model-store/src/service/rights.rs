//! Rights at a store: the peers that may write or remove an object. Pure functions of facts.
//!
//! An import belongs to its writer until its manifest is stored, which *seals* it. A sealed import only takes
//! bytes that its manifest names, from any writing node. It is released against a decision of the circle to
//! forget its model. Its writer may remove it for a short time, while it may not be registered yet.
//!
//! Data of a job is its writer's for as long as it is there, because jobs make more than people vote on. Once
//! no job can need it any more, any writing node may remove it: its writer may be gone.

use crate::age::IMPORT_SILENCE_MAX;
use protocol::job_data::JOB_DATA_HELD_MS;
use protocol::{ModelRoot, PublicKey};
use std::time::{Duration, SystemTime};

/// Decisions of the circle that a store obeys, from the node's own verified history, and the node's clock.
pub trait ModelDecisions: Send + Sync + 'static {
    /// Returns the time of the node's clock.
    fn now(&self) -> SystemTime;
    /// Returns whether the circle admitted this peer for a role that writes shards.
    fn is_writer(&self, peer: &PublicKey) -> bool;
    /// Returns whether the circle decided to forget this model, and the grace period is over.
    fn is_forgotten(&self, root: ModelRoot) -> bool;
    /// Returns whether an approved service names this model.
    fn is_named(&self, root: ModelRoot) -> bool;
}

/// Seal of an import: its manifest was stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seal {
    pub(super) root: ModelRoot,
    pub(super) sealed_at: SystemTime,
    pub(super) is_named: bool,
    pub(super) is_forgotten: bool,
    pub(super) is_job_data: bool,
}

/// Facts about one import in one store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ImportFacts {
    /// Peer that wrote its first object here; none if the objects did not come through the service.
    pub(super) writer: Option<PublicKey>,
    pub(super) seal: Option<Seal>,
    /// Whether the store has no object of the import, and no record of it.
    pub(super) is_empty: bool,
    /// Whether every manifest that might seal the import was read.
    pub(super) is_certain: bool,
}

/// Condition under which a store takes a shard object from a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WriteRule {
    /// The first object of an import: the peer becomes its writer.
    First,
    /// Any bytes, once.
    Once,
    /// The bytes that the manifest of this root names, at any time.
    Named(ModelRoot),
}

/// Returns the rule for a shard object; none if the peer may not write it.
pub(super) fn write_rule(facts: &ImportFacts, peer: &PublicKey) -> Option<WriteRule> {
    match (facts.seal, facts.writer) {
        (Some(seal), _) => Some(WriteRule::Named(seal.root)),
        (None, Some(writer)) => (writer == *peer).then_some(WriteRule::Once),
        (None, None) => facts.is_empty.then_some(WriteRule::First),
    }
}

/// Returns whether a peer may seal an import with the manifest of `root`. The manifest of a model that an
/// approved service names takes the place of one that no service names.
pub(super) fn may_seal(facts: &ImportFacts, root: ModelRoot, is_named: bool, peer: &PublicKey) -> bool {
    match facts.seal {
        Some(seal) => seal.root == root || is_named && !seal.is_named,
        None => is_named || facts.writer == Some(*peer) || facts.writer.is_none() && facts.is_empty,
    }
}

/// Returns whether a peer may remove an object of an import. `is_silent` states that no object of it is
/// young: an import that was silent for so long has failed.
pub(super) fn may_remove(facts: &ImportFacts, peer: &PublicKey, now: SystemTime, is_silent: bool) -> bool {
    let is_own = facts.writer == Some(*peer);
    match facts.seal {
        Some(seal) if seal.is_job_data && !seal.is_named => {
            // Without a shard, the manifest is what is left of a removal.
            seal.is_forgotten || is_own || is_over(seal.sealed_at, now) || facts.is_empty
        }
        Some(seal) => seal.is_forgotten || is_own && !seal.is_named && is_recent(seal.sealed_at, now),
        None => is_own || facts.is_certain && is_silent,
    }
}

/// Returns whether an import that was sealed then may not be registered yet. After
/// [`IMPORT_SILENCE_MAX`] it is registered, or will never be. A time in the future proves nothing.
fn is_recent(sealed_at: SystemTime, now: SystemTime) -> bool {
    now.duration_since(sealed_at).is_ok_and(|age| age <= IMPORT_SILENCE_MAX)
}

/// Returns whether data of a job that was sealed then is needed by no job any more.
fn is_over(sealed_at: SystemTime, now: SystemTime) -> bool {
    now.duration_since(sealed_at).is_ok_and(|age| age > Duration::from_millis(JOB_DATA_HELD_MS))
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::Digest;
    use std::time::Duration;

    const WRITER: PublicKey = PublicKey([1; 32]);
    const OTHER: PublicKey = PublicKey([2; 32]);
    const SEALED_AT: SystemTime = SystemTime::UNIX_EPOCH;

    fn root(byte: u8) -> ModelRoot {
        ModelRoot(Digest([byte; 32]))
    }

    fn open(writer: Option<PublicKey>, is_empty: bool) -> ImportFacts {
        ImportFacts { writer, seal: None, is_empty, is_certain: true }
    }

    fn sealed(is_named: bool, is_forgotten: bool) -> ImportFacts {
        let seal = Seal { root: root(1), sealed_at: SEALED_AT, is_named, is_forgotten, is_job_data: false };
        ImportFacts { writer: Some(WRITER), seal: Some(seal), is_empty: false, is_certain: true }
    }

    fn job_data(is_named: bool) -> ImportFacts {
        let facts = sealed(is_named, false);
        ImportFacts { seal: facts.seal.map(|seal| Seal { is_job_data: true, ..seal }), ..facts }
    }

    #[test]
    fn an_open_import_is_its_writers_and_a_sealed_one_takes_what_its_manifest_names() {
        for (facts, peer, expected) in [
            (open(None, true), OTHER, Some(WriteRule::First)),
            (open(None, false), OTHER, None),
            (open(Some(WRITER), false), WRITER, Some(WriteRule::Once)),
            (open(Some(WRITER), true), OTHER, None),
            (sealed(false, false), WRITER, Some(WriteRule::Named(root(1)))),
            (sealed(true, false), OTHER, Some(WriteRule::Named(root(1)))),
        ] {
            assert_eq!(write_rule(&facts, &peer), expected, "{facts:?}");
        }
    }

    #[test]
    fn an_import_is_sealed_by_its_writer_or_by_the_manifest_that_a_service_names() {
        for (facts, to, is_named, peer, expected) in [
            (open(Some(WRITER), false), root(1), false, WRITER, true),
            (open(Some(WRITER), false), root(1), false, OTHER, false),
            (open(Some(WRITER), false), root(1), true, OTHER, true),
            (open(None, true), root(1), false, OTHER, true),
            (open(None, false), root(1), false, OTHER, false),
            (sealed(false, false), root(1), false, OTHER, true),
            (sealed(false, false), root(2), false, WRITER, false),
            (sealed(false, false), root(2), true, OTHER, true),
            (sealed(true, false), root(2), true, WRITER, false),
        ] {
            assert_eq!(may_seal(&facts, to, is_named, &peer), expected, "{facts:?} by {to}");
        }
    }

    #[test]
    fn an_object_goes_with_its_writer_until_it_may_be_registered_and_afterwards_by_decision_alone() {
        let later = |minutes: u64| SEALED_AT + Duration::from_secs(minutes * 60);
        let unread = ImportFacts { is_certain: false, ..open(None, false) };
        for (facts, peer, now, silent, expected) in [
            (unread, OTHER, later(0), true, false),
            (open(Some(WRITER), false), WRITER, later(0), false, true),
            (open(Some(WRITER), false), OTHER, later(0), false, false),
            (open(Some(WRITER), false), OTHER, later(0), true, true),
            (open(None, false), OTHER, later(0), false, false),
            (sealed(false, false), WRITER, later(30), false, true),
            (sealed(false, false), WRITER, later(31), false, false),
            (sealed(false, false), WRITER, SEALED_AT - Duration::from_secs(1), false, false),
            (sealed(true, false), WRITER, later(0), false, false),
            (sealed(false, false), OTHER, later(0), true, false),
            (sealed(false, false), OTHER, later(100_000), true, false),
            (sealed(false, true), OTHER, later(0), false, true),
            (job_data(false), WRITER, later(0), false, true),
            (job_data(false), WRITER, later(1_000), false, true),
            (job_data(false), OTHER, later(0), true, false),
            (job_data(false), OTHER, later(62 * 24 * 60), true, false),
            (job_data(false), OTHER, later(62 * 24 * 60 + 1), false, true),
            (job_data(false), OTHER, SEALED_AT - Duration::from_secs(1), true, false),
            (job_data(true), WRITER, later(1_000), false, false),
            (ImportFacts { is_empty: true, ..job_data(false) }, OTHER, later(0), false, true),
            (ImportFacts { is_empty: true, ..sealed(false, false) }, OTHER, later(0), false, false),
        ] {
            let found = may_remove(&facts, &peer, now, silent);
            assert_eq!(found, expected, "{facts:?} by {} silent {silent}", peer.short());
        }
    }

    /// Returns every combination of the facts of a sealed import.
    fn all_sealed() -> Vec<ImportFacts> {
        let mut all = Vec::new();
        for bits in 0_u8..64 {
            let bit = |at: u8| bits & (1 << at) != 0;
            let seal = Seal {
                root: root(1),
                sealed_at: SEALED_AT,
                is_named: bit(0),
                is_forgotten: bit(1),
                is_job_data: bit(2),
            };
            let writer = bit(3).then_some(WRITER);
            all.push(ImportFacts { writer, seal: Some(seal), is_empty: bit(4), is_certain: bit(5) });
        }
        all
    }

    fn with_mark(facts: ImportFacts, is_job_data: bool) -> ImportFacts {
        ImportFacts { seal: facts.seal.map(|seal| Seal { is_job_data, ..seal }), ..facts }
    }

    #[test]
    fn the_mark_of_job_data_changes_removals_alone() {
        for facts in all_sealed() {
            let (data, model) = (with_mark(facts, true), with_mark(facts, false));
            for peer in [WRITER, OTHER] {
                assert_eq!(write_rule(&data, &peer), write_rule(&model, &peer), "{facts:?}");
                for (to, is_named) in [(1, false), (1, true), (2, false), (2, true)] {
                    let may = |facts| may_seal(&facts, root(to), is_named, &peer);
                    assert_eq!(may(data), may(model), "{facts:?}");
                }
            }
        }
    }

    /// Attacks of every peer at every time: a model that a service names goes by decision alone, marked or
    /// not, and a peer that wrote nothing removes no shard of a job's data while a job may need it.
    #[test]
    fn no_mark_and_no_time_removes_what_is_in_use() {
        let held = Duration::from_millis(JOB_DATA_HELD_MS);
        for facts in all_sealed() {
            let seal = facts.seal.expect("it is sealed");
            for now in [SEALED_AT - held, SEALED_AT, SEALED_AT + held, SEALED_AT + 10 * held] {
                for (peer, silent) in [(WRITER, false), (WRITER, true), (OTHER, false), (OTHER, true)] {
                    let may = may_remove(&facts, &peer, now, silent);
                    let is_in_use = seal.is_named
                        || !seal.is_job_data && peer == OTHER
                        || peer == OTHER && now <= SEALED_AT + held && !facts.is_empty;
                    assert!(!may || seal.is_forgotten || !is_in_use, "{facts:?} at {now:?}");
                    assert!(may || !seal.is_forgotten, "a decision removes all: {facts:?}");
                }
            }
        }
    }
}
