//! Summaries of a model's verification or repair, for people and for scripts.
//!
//! Each summary holds counts, and each fault with its location.

use crate::terminal::line;
use model_store::{FaultKind, FaultSink, HealthReport, RepairReport, ShardFault};
use protocol::manifest::format_bytes;
use protocol::{ErrorCode, error_code};
use serde::Serialize;
use std::sync::{Arc, Mutex};

/// Maximum number of faults listed one by one: a few screens. A failed store causes one per segment, all
/// alike.
const FAULTS_MAX: usize = 64;

/// A shard that is wrong, missing or unreachable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ShardFaultSummary {
    /// `shard-wrong`, `shard-missing` or `store-unreachable`.
    pub code: ErrorCode,
    /// Store that should hold the shard.
    pub store: String,
    /// Object within the store.
    pub object: String,
    /// Index of the segment.
    pub segment: u32,
    /// Index of the shard within the segment.
    pub shard: u8,
    /// All of the above in a sentence, for people.
    pub message: String,
}

impl From<ShardFault> for ShardFaultSummary {
    fn from(fault: ShardFault) -> Self {
        let (code, message) = (code_of(fault.kind), fault.to_string());
        let ShardFault { store, object, segment, shard, .. } = fault;
        Self { code, store, object, segment, shard, message }
    }
}

fn code_of(kind: FaultKind) -> ErrorCode {
    match kind {
        FaultKind::Missing => error_code::SHARD_MISSING,
        FaultKind::Unreachable => error_code::STORE_UNREACHABLE,
        FaultKind::Long => error_code::STORE_LENGTH_WRONG,
        FaultKind::Short | FaultKind::Wrong => error_code::SHARD_WRONG,
    }
}

/// Collects faults from any thread.
#[derive(Debug, Clone, Default)]
pub(super) struct FaultLog {
    faults: Arc<Mutex<Vec<ShardFaultSummary>>>,
}

impl FaultLog {
    /// Returns the callback that records faults.
    pub(super) fn sink(&self) -> FaultSink {
        let faults = self.faults.clone();
        Arc::new(move |fault| {
            let mut faults = faults.lock().expect("no holder of this lock panics");
            if faults.len() < FAULTS_MAX {
                faults.push(fault.into());
            }
        })
    }

    /// Returns the recorded faults, ordered by segment and shard.
    fn sorted(&self) -> Vec<ShardFaultSummary> {
        let mut faults = self.faults.lock().expect("no holder of this lock panics").clone();
        faults.sort_by_key(|fault| (fault.segment, fault.shard));
        faults
    }
}

/// Result of verifying every shard.
#[derive(Debug, Clone, Serialize)]
pub struct HealthSummary {
    /// Number of shards verified.
    pub shards: u64,
    /// Number of bytes read.
    pub bytes: u64,
    /// Number of wrong or missing shards and manifest copies.
    pub faults: u64,
    /// The first faulty shards.
    pub faulty: Vec<ShardFaultSummary>,
    /// Number of further faulty shards, not listed.
    pub faulty_more: u64,
    /// Number of missing or wrong copies of the manifest.
    pub manifests_wrong: u64,
    /// Number of segments that cannot be rebuilt.
    pub segments_lost: u64,
    /// Duration of the verification, in milliseconds.
    pub elapsed_ms: u64,
}

impl HealthSummary {
    pub(super) fn new(report: &HealthReport, log: &FaultLog) -> Self {
        let (shards_faulty, faulty) = (report.faults.values().sum::<u64>(), log.sorted());
        Self {
            shards: report.shards,
            bytes: report.bytes,
            faults: shards_faulty + report.manifests_wrong,
            faulty_more: shards_faulty.saturating_sub(faulty.len() as u64),
            faulty,
            manifests_wrong: report.manifests_wrong,
            segments_lost: report.segments_lost,
            elapsed_ms: u64::try_from(report.elapsed.as_millis()).unwrap_or(u64::MAX),
        }
    }

    /// Returns the code of the most severe fault; none if there is no fault.
    #[must_use]
    pub fn code(&self) -> Option<ErrorCode> {
        let of_shards = || self.faulty.iter().map(|fault| fault.code).min_by_key(|code| severity(*code));
        let of_manifests = || (self.manifests_wrong > 0).then_some(error_code::MODEL_MANIFEST_INVALID);
        let lost = (self.segments_lost > 0).then_some(error_code::SHARD_TOO_FEW);
        lost.or_else(of_shards).or_else(of_manifests)
    }

    /// Renders the summary for people.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = format!(
            "{} shards ({}) checked in {:.2} s: {} wrong or missing, {} segments lost",
            self.shards,
            format_bytes(self.bytes),
            self.elapsed_ms as f64 / 1000.0,
            self.faults,
            self.segments_lost
        );
        for fault in &self.faulty {
            text.push_str(&format!("\n  {}", line(&fault.message)));
        }
        if self.faulty_more > 0 {
            text.push_str(&format!("\n  and {} more shards", self.faulty_more));
        }
        if self.manifests_wrong > 0 {
            text.push_str(&format!(
                "\n  {} copies of the manifest are missing or wrong",
                self.manifests_wrong
            ));
        }
        text
    }
}

/// Ranks a code, most severe first: altered bytes, then missing bytes, then a store that may come back.
fn severity(code: ErrorCode) -> u8 {
    match code {
        error_code::SHARD_WRONG => 0,
        error_code::SHARD_MISSING => 1,
        _ => 2,
    }
}

/// Result of a repair.
#[derive(Debug, Clone, Serialize)]
pub struct RepairSummary {
    /// Faults found before the repair.
    pub found: HealthSummary,
    /// Number of shards rewritten.
    pub shards_rewritten: u64,
    /// Number of manifest copies rewritten.
    pub manifests_written: u64,
    /// Number of bytes written.
    pub bytes_written: u64,
    /// Writes that failed.
    pub failures: Vec<String>,
    /// True if nothing is left to repair.
    pub complete: bool,
}

impl RepairSummary {
    pub(super) fn new(report: RepairReport, log: &FaultLog) -> Self {
        Self {
            found: HealthSummary::new(&report.found, log),
            shards_rewritten: report.shards_rewritten,
            manifests_written: report.manifests_written,
            bytes_written: report.bytes_written,
            complete: report.is_complete(),
            failures: report.failures,
        }
    }

    /// Returns the reason why something is left to repair; none if the repair is complete.
    #[must_use]
    pub fn code(&self) -> Option<ErrorCode> {
        if self.complete {
            return None;
        }
        let lost = (self.found.segments_lost > 0).then_some(error_code::SHARD_TOO_FEW);
        Some(lost.unwrap_or(error_code::STORE_UNREACHABLE))
    }

    /// Renders the summary for people.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = format!(
            "{}\n{} shards and {} manifests rewritten ({})",
            self.found.text(),
            self.shards_rewritten,
            self.manifests_written,
            format_bytes(self.bytes_written)
        );
        for failure in &self.failures {
            text.push_str(&format!("\nnot written: {}", line(failure)));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(segment: u32, kind: FaultKind) -> ShardFault {
        ShardFault { store: "node://a/s".into(), object: "models/x".into(), segment, shard: 0, kind }
    }

    /// Builds a report with these faults, and the log that recorded them.
    fn found(kinds: &[FaultKind]) -> (HealthReport, FaultLog) {
        let (mut report, log) =
            (HealthReport { shards: 600, ..HealthReport::default() }, FaultLog::default());
        let sink = log.sink();
        for (segment, kind) in kinds.iter().enumerate().rev() {
            *report.faults.entry(*kind).or_default() += 1;
            sink(fault(segment as u32, *kind));
        }
        (report, log)
    }

    #[test]
    fn each_fault_is_listed_by_location_and_code_and_the_rest_are_counted() {
        let (report, log) = found(&[FaultKind::Missing, FaultKind::Wrong]);
        let summary = HealthSummary::new(&report, &log);
        let json = serde_json::to_value(&summary).expect("JSON");
        let place = |index: usize| (&json["faulty"][index]["segment"], &json["faulty"][index]["code"]);
        assert_eq!(place(0), (&0.into(), &"shard-missing".into()), "in order of place");
        assert_eq!(place(1), (&1.into(), &"shard-wrong".into()));
        assert_eq!(json["faulty"][1]["store"], "node://a/s");
        assert!(summary.text().contains("shard 0 of segment 1 is wrong in `models/x` of `node://a/s`"));

        let (report, log) = found(&[FaultKind::Unreachable; FAULTS_MAX + 36]);
        let summary = HealthSummary::new(&report, &log);
        assert_eq!((summary.faulty.len(), summary.faulty_more, summary.faults), (FAULTS_MAX, 36, 100));
        assert!(summary.text().ends_with("and 36 more shards"), "{}", summary.text());
    }

    #[test]
    fn a_summary_has_the_code_of_the_most_severe_fault() {
        use FaultKind::*;
        for (kinds, lost, manifests, expected) in [
            (&[][..], 0, 0, None),
            (&[Unreachable], 0, 0, Some("store-unreachable")),
            (&[Unreachable, Missing], 0, 1, Some("shard-missing")),
            (&[Unreachable, Missing, Short], 0, 0, Some("shard-wrong")),
            (&[Wrong, Missing], 1, 0, Some("shard-too-few")),
            (&[], 0, 1, Some("model-manifest-invalid")),
        ] {
            let (mut report, log) = found(kinds);
            (report.segments_lost, report.manifests_wrong) = (lost, manifests);
            let code = HealthSummary::new(&report, &log).code();
            assert_eq!(code.map(|code| code.as_str()), expected, "{kinds:?}");
        }
    }

    #[test]
    fn an_incomplete_repair_reports_the_reason() {
        let (report, log) = found(&[FaultKind::Wrong]);
        let repaired = |rewritten, lost| {
            let mut found = report.clone();
            found.segments_lost = lost;
            let report = RepairReport { found, shards_rewritten: rewritten, ..RepairReport::default() };
            RepairSummary::new(report, &log).code().map(|code| code.as_str())
        };
        assert_eq!(repaired(1, 0), None);
        assert_eq!(repaired(0, 0), Some("store-unreachable"), "found and not written");
        assert_eq!(repaired(0, 1), Some("shard-too-few"));
    }
}
