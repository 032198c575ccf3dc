//! Ends of the ranks of a slot, from the end of their sandbox and the agent's own cause.

use super::JobSlotEnd;
use protocol::job::SlotRanks;
use protocol::job_report::{RankEnd, RankOutcome};
use protocol::sandbox::SandboxExit;
use protocol::{Refusal, error_code};

/// Signal by which the kernel ends a process for lack of memory.
const SIGKILL: i32 = 9;

/// Returns the end of every rank of a slot.
///
/// `exit` is the end of the sandbox; none if its init was killed. `out_of_memory` is true if the kernel
/// killed one of its processes for lack of memory. `cause` is the reason for which the agent
/// ended it; none if it did not. One rank's failure ends the others: they count as stopped.
#[must_use]
pub fn job_end(
    ranks: SlotRanks,
    (exit, out_of_memory): (Option<SandboxExit>, bool),
    cause: Option<RankOutcome>,
    cpu_micros: u64,
) -> JobSlotEnd {
    let all = |outcome| JobSlotEnd::of_all(ranks, outcome, None);
    let one = |local: u32, outcome| {
        let failed = ranks.first.saturating_add(local);
        let outcome_of = |end: RankEnd| if end.rank == failed { RankEnd { outcome, ..end } } else { end };
        let JobSlotEnd { ends, .. } = all(RankOutcome::Stopped);
        JobSlotEnd { ends: ends.into_iter().map(outcome_of).collect(), refusal: None, cpu_micros: 0 }
    };
    let end = match (exit, cause) {
        // The last rank exited, and none before it failed.
        (Some(SandboxExit::RankExited { status: 0, .. }), _) => all(RankOutcome::Exited { code: 0 }),
        (_, Some(cause)) => all(cause),
        (Some(SandboxExit::RankExited { rank, status }), None) => {
            one(rank, RankOutcome::Exited { code: status })
        }
        (Some(SandboxExit::RankSignaled { rank, signal }), None) if signal == SIGKILL && out_of_memory => {
            one(rank, RankOutcome::OutOfMemory)
        }
        (Some(SandboxExit::RankSignaled { rank, signal }), None) => {
            one(rank, RankOutcome::Signalled { signal })
        }
        (Some(SandboxExit::LeaseLapsed), None) => lapsed(ranks),
        (Some(SandboxExit::Stopped), None) => all(RankOutcome::Stopped),
        (Some(SandboxExit::Exited { .. } | SandboxExit::Signaled { .. }) | None, None) => {
            all(RankOutcome::Lost)
        }
    };
    debug_assert_eq!(end.ends.len() as u64, u64::from(ranks.count), "each rank has its end");
    JobSlotEnd { cpu_micros, ..end }
}

/// Returns the end of a slot whose autonomy is over.
#[must_use]
pub fn lapsed(ranks: SlotRanks) -> JobSlotEnd {
    let message = "control was silent for longer than the autonomy of the job";
    let refusal = Refusal::new(error_code::LEASE_LAPSED, message);
    JobSlotEnd::of_all(ranks, RankOutcome::Lost, Some(refusal))
}

#[cfg(test)]
mod tests {
    use super::*;

    const RANKS: SlotRanks = SlotRanks { first: 4, count: 2 };

    fn ended(exit: SandboxExit, out_of_memory: bool) -> (Option<SandboxExit>, bool) {
        (Some(exit), out_of_memory)
    }

    #[test]
    fn the_end_of_a_sandbox_names_the_end_of_each_rank() {
        let (exited, signalled) = (
            |rank, status| SandboxExit::RankExited { rank, status },
            |rank, signal| SandboxExit::RankSignaled { rank, signal },
        );
        let (stopped, lost) = (RankOutcome::Stopped, RankOutcome::Lost);
        let code = |code| RankOutcome::Exited { code };
        for (what, end, cause, expected) in [
            ("all succeed", ended(exited(1, 0), false), None, [code(0); 2]),
            ("one fails", ended(exited(1, 3), false), None, [stopped, code(3)]),
            ("137 is an exit code", ended(exited(0, 137), false), None, [code(137), stopped]),
            (
                "a signal",
                ended(signalled(0, 11), false),
                None,
                [RankOutcome::Signalled { signal: 11 }, stopped],
            ),
            (
                "killed from within",
                ended(signalled(0, 9), false),
                None,
                [RankOutcome::Signalled { signal: 9 }, stopped],
            ),
            ("no memory", ended(signalled(1, 9), true), None, [stopped, RankOutcome::OutOfMemory]),
            (
                "a signal after the limit of memory",
                ended(signalled(1, 11), true),
                None,
                [stopped, RankOutcome::Signalled { signal: 11 }],
            ),
            ("control ends it", ended(SandboxExit::Stopped, false), Some(stopped), [stopped; 2]),
            (
                "the time limit",
                ended(signalled(0, 15), false),
                Some(RankOutcome::TimeLimit),
                [RankOutcome::TimeLimit; 2],
            ),
            ("success within the grace", ended(exited(0, 0), false), Some(stopped), [code(0); 2]),
            ("the init was killed", (None, false), None, [lost; 2]),
            ("the lease lapsed", ended(SandboxExit::LeaseLapsed, false), None, [lost; 2]),
        ] {
            let end = job_end(RANKS, end, cause, 7);
            let found: Vec<(u32, RankOutcome)> = end.ends.iter().map(|end| (end.rank, end.outcome)).collect();
            assert_eq!(found, [(4, expected[0]), (5, expected[1])], "{what}");
            assert_eq!(end.cpu_micros, 7, "{what}");
            let code = end.refusal.map(|refusal| refusal.code);
            assert_eq!(code, (what == "the lease lapsed").then_some(error_code::LEASE_LAPSED), "{what}");
        }
    }
}
