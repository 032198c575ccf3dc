//! Messages between an agent and control about jobs: states and ends of ranks, and the slots of a gang that
//! a node is to run.
//!
//! All slots of an attempt are made ready before any of them starts: no gang runs in part. A slot of all
//! ranks waits for no other, and starts once it is ready.

use crate::ids::{Fence, JobId, ServiceName, SlotIndex};
use crate::job::{SignedJobOrder, SlotRanks};
use crate::job_data::JobDataSource;
use crate::model::{ModelRecord, SignedWrap};
use crate::refusal::Refusal;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Maximum number of job slots in one request of an agent: those that a node runs, and those whose end
/// control has not acknowledged yet.
pub const JOB_REPORTS_MAX: usize = 256;

/// Maximum number of lines of ranks in one request of an agent. Excess lines are dropped, and the next line
/// of that rank has their count.
pub const RANK_LINES_MAX: usize = 256;

/// Maximum number of lines of a rank and attempt that a node keeps, and that a leader keeps: a few screens.
pub const RANK_LINES_KEPT_MAX: usize = 1000;

/// Maximum length of the text of a [`RankLine`] in bytes.
pub const RANK_LINE_BYTES_MAX: usize = 4096;

const _: () = assert!(
    RANK_LINES_MAX * 2 * RANK_LINE_BYTES_MAX < crate::limits::SYNC_BYTES_MAX / 4,
    "lines of ranks leave room for the node's report"
);

/// End of a rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum RankOutcome {
    /// The program exited.
    Exited {
        /// Exit code; 0 = success.
        code: i32,
    },
    /// A signal ended the program.
    Signalled {
        /// Number of the signal.
        signal: i32,
    },
    /// The kernel ended the program for its memory.
    OutOfMemory,
    /// The attempt ran longer than the manifest allows.
    TimeLimit,
    /// Control ordered the end: the job was cancelled or preempted, or another rank ended.
    Stopped,
    /// The agent restarted and does not know the end of the program.
    Lost,
}

impl RankOutcome {
    /// Returns whether the program exited with code 0.
    #[must_use]
    pub fn is_success(self) -> bool {
        self == Self::Exited { code: 0 }
    }
}

impl std::fmt::Display for RankOutcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exited { code } => write!(f, "exit code {code}"),
            Self::Signalled { signal } => write!(f, "signal {signal}"),
            Self::OutOfMemory => f.write_str("out of memory"),
            Self::TimeLimit => f.write_str("time limit"),
            Self::Stopped => f.write_str("stopped"),
            Self::Lost => f.write_str("lost"),
        }
    }
}

/// End of a rank of a gang.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RankEnd {
    /// Rank within the gang.
    pub rank: u32,
    /// Cause of its end.
    pub outcome: RankOutcome,
}

/// State of a job's slot on its node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum JobSlotState {
    /// Fetches the artifact and makes the sandbox.
    Preparing,
    /// The sandbox waits for the start of the gang.
    Ready,
    /// The ranks run.
    Running,
    /// No rank runs any more, or the agent rejected the order.
    Ended,
}

/// State of a job's slot, as its node reports it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct JobSlotReport {
    /// Name of the job.
    pub job: ServiceName,
    /// Job that the slot runs: the id of its submission.
    pub id: JobId,
    /// Number of the attempt.
    pub attempt: u32,
    /// Index of the slot.
    pub slot: SlotIndex,
    /// Fence of the order under which the node holds the slot.
    pub fence: Fence,
    /// Ranks that the slot runs.
    pub ranks: SlotRanks,
    /// State at the time of the report.
    pub state: JobSlotState,
    /// Ends of those ranks that have ended, by rank.
    pub ends: Vec<RankEnd>,
    /// Cause for which the agent rejected the order or could not start it; none otherwise.
    pub refusal: Option<Refusal>,
    /// CPU time of all ranks of the slot so far, in microseconds.
    pub cpu_micros: u64,
}

/// Line that a rank wrote to its standard output or standard error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RankLine {
    /// Job that the rank belongs to.
    pub id: JobId,
    /// Number of the attempt.
    pub attempt: u32,
    /// Rank within the gang.
    pub rank: u32,
    /// Number of the line within this rank and attempt; it only rises. A line that is resent because no
    /// answer acknowledged it keeps its number.
    pub sequence: u64,
    /// Text of the line, at most [`RANK_LINE_BYTES_MAX`] bytes.
    pub text: String,
    /// Number of lines of this rank that were dropped just before this one.
    pub dropped: u64,
}

/// Stored artifact, model or dataset of a job, as control knows it. It grants nothing: the node compares
/// every byte with the root that the envelope or the submission names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ArtifactSource {
    /// Stores, size and erasure code of the item.
    pub record: ModelRecord,
    /// Key of the item, wrapped to this node alone.
    pub wrap: Option<SignedWrap>,
}

/// Slot of a gang that a node is to run. The node ends a slot that its desired state lacks: it sends
/// SIGTERM, waits for the grace of the manifest, and sends SIGKILL.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobAssignment {
    /// Order for the slot.
    pub order: SignedJobOrder,
    /// True once every slot of the attempt has been reported as ready, and at once for a slot of all ranks:
    /// the ranks start when the slot is ready.
    pub start: bool,
    /// Orders for the other slots of the attempt, by which the node knows the holder of each rank.
    pub peers: Vec<SignedJobOrder>,
    /// Location of the artifact; none if control does not know it. A node that has the tree needs none.
    pub artifact: Option<ArtifactSource>,
    /// Location of each model and dataset that the ranks read, as far as control knows it.
    pub inputs: Vec<ArtifactSource>,
    /// Checkpoint with which the attempt begins; none without one, and once control has learned
    /// that the ranks start.
    pub checkpoint: Option<JobDataSource>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::canonical::{from_bytes, to_bytes};
    use crate::error_code::ORDER_MISMATCH;

    const OUTCOMES: [RankOutcome; 6] = [
        RankOutcome::Exited { code: 137 },
        RankOutcome::Signalled { signal: 9 },
        RankOutcome::OutOfMemory,
        RankOutcome::TimeLimit,
        RankOutcome::Stopped,
        RankOutcome::Lost,
    ];

    #[test]
    fn outcomes_have_one_name_and_text_each() {
        let json = OUTCOMES.map(|outcome| serde_json::to_string(&outcome).unwrap());
        let written = [
            r#"{"exited":{"code":137}}"#,
            r#"{"signalled":{"signal":9}}"#,
            r#""out_of_memory""#,
            r#""time_limit""#,
            r#""stopped""#,
            r#""lost""#,
        ];
        assert_eq!(json, written);
        let texts = OUTCOMES.map(|outcome| outcome.to_string());
        assert_eq!(texts, ["exit code 137", "signal 9", "out of memory", "time limit", "stopped", "lost"]);
        assert!(serde_json::from_str::<RankOutcome>(r#"{"exited":{"code":0,"core":1}}"#).is_err());
    }

    #[test]
    fn only_exit_code_0_is_success() {
        assert!(RankOutcome::Exited { code: 0 }.is_success());
        assert!(OUTCOMES.iter().all(|outcome| !outcome.is_success()));
    }

    #[test]
    fn a_report_survives_its_encoding() {
        let report = JobSlotReport {
            job: "train".parse().unwrap(),
            id: JobId(crate::Digest([1; 32])),
            attempt: 2,
            slot: SlotIndex(3),
            fence: Fence::new(1, 4),
            ranks: SlotRanks { first: 0, count: 6 },
            state: JobSlotState::Ended,
            ends: (0..6).zip(OUTCOMES).map(|(rank, outcome)| RankEnd { rank, outcome }).collect(),
            refusal: Some(Refusal::new(ORDER_MISMATCH, "the order is for another node")),
            cpu_micros: 7,
        };
        assert_eq!(from_bytes(&to_bytes(&report), 4096), Ok(report.clone()));
        let json = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<JobSlotReport>(&json).unwrap(), report);
        let unknown = json.replacen('{', r#"{"node":1,"#, 1);
        assert!(serde_json::from_str::<JobSlotReport>(&unknown).is_err());
    }
}
