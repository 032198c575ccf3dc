//! The share of a step that prompts may take, so that the gaps between a generation's tokens keep a target.
//!
//! The cost of a step is taken from measurements, passed as arguments: a part for the tokens that are
//! generated, and a part for each token of a prompt. Both change with the model, the machine and the length
//! of the sequences, so the estimates follow the last steps. No time is read here.

use std::time::Duration;

/// Tokens of a prompt in the first step beside a generation: nothing has been measured yet.
const FIRST_TOKENS: usize = 16;
/// Growth of the share from one step to the next, so that one wrong estimate makes no long gap.
const GROWTH_MAX: usize = 2;
/// Weight of the last measurement in an average: one part of this many.
const AVERAGE_PARTS: u64 = 4;

/// Estimates of a step's cost.
#[derive(Debug)]
pub(super) struct Pace {
    gap_ns: u64,
    /// Time of a step without a prompt.
    generating_ns: Option<u64>,
    /// Time of each prompt token beside that.
    token_ns: Option<u64>,
    /// Prompt tokens of the last step beside a generation.
    last: usize,
}

impl Pace {
    /// Starts without measurements; `gap` is the target between two tokens of a generation.
    pub(super) fn new(gap: Duration) -> Self {
        Self { gap_ns: nanoseconds(gap), generating_ns: None, token_ns: None, last: 0 }
    }

    /// Returns the prompt tokens that the next step may compute beside generations: at least 1. Where
    /// generating alone takes the target, prompts still get half as much time as it takes.
    pub(super) fn budget(&self) -> usize {
        let generating = self.generating_ns.unwrap_or(0);
        let room = self.gap_ns.saturating_sub(generating).max(generating / 2);
        let growth = (self.last * GROWTH_MAX).max(FIRST_TOKENS);
        let fits = self.token_ns.map_or(FIRST_TOKENS as u64, |cost| room / cost.max(1));
        usize::try_from(fits).unwrap_or(usize::MAX).clamp(1, growth)
    }

    /// Records a step that computed this many prompt tokens, with or without generations.
    pub(super) fn measured(&mut self, prompt_tokens: usize, is_generating: bool, elapsed: Duration) {
        let elapsed = nanoseconds(elapsed);
        if prompt_tokens == 0 {
            self.generating_ns = Some(average(self.generating_ns, elapsed));
            return;
        }
        let generating = if is_generating { self.generating_ns.unwrap_or(0) } else { 0 };
        let cost = elapsed.saturating_sub(generating) / prompt_tokens as u64;
        // The dearer of the last step and of the average: a gap that is too short harms no client.
        self.token_ns = Some(average(self.token_ns, cost).max(cost));
        if is_generating {
            self.last = prompt_tokens;
        }
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn average(before: Option<u64>, now: u64) -> u64 {
    match before {
        Some(before) => {
            let average = before - before / AVERAGE_PARTS + now / AVERAGE_PARTS;
            debug_assert!((before.min(now)..=before.max(now)).contains(&average), "it is between the two");
            average
        }
        None => now,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn the_share_fills_the_target_and_never_jumps() {
        let mut pace = Pace::new(100 * MS);
        pace.measured(0, true, 20 * MS);
        let mut shares = Vec::new();
        for _ in 0..6 {
            let tokens = pace.budget();
            shares.push(tokens);
            pace.measured(tokens, true, 20 * MS + MS * tokens as u32 / 2);
        }
        assert_eq!(shares, [16, 32, 64, 128, 160, 160], "80 ms of 0.5 ms each");
    }

    #[test]
    fn prompts_advance_where_generating_takes_the_whole_target() {
        let mut pace = Pace::new(100 * MS);
        pace.measured(0, true, 200 * MS);
        pace.measured(16, true, 200 * MS + 160 * MS);
        assert_eq!(pace.budget(), 10, "half of 200 ms, at 10 ms each");
        pace.measured(1, true, 100_000 * MS);
        assert_eq!(pace.budget(), 1, "never none");
    }

    #[test]
    fn a_step_that_became_dear_cuts_the_share_at_once_and_a_cheap_one_slowly() {
        let mut pace = Pace::new(100 * MS);
        pace.measured(100, false, 100 * MS);
        pace.measured(100, true, 1000 * MS);
        assert_eq!(pace.budget(), 10);
        pace.measured(10, true, 10 * MS);
        assert_eq!(pace.budget(), 12, "7.75 ms each");
    }
}
