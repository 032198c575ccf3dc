//! The model card, with the figures of the run that made the model.

use crate::score::{Score, Share};
use crate::training::Outcome;
use crate::{CONTEXT, INNER, SEED, shape};
use std::path::Path;

/// Writes `README.md`.
pub(crate) fn write(directory: &Path, outcome: &Outcome, score: &Score) -> anyhow::Result<()> {
    let share = |share: Share| {
        format!(
            "{} of {} ({:.1} %)",
            share.right,
            share.asked,
            100.0 * share.right as f64 / share.asked.max(1) as f64
        )
    };
    let mistakes: String = score.mistakes.iter().map(|mistake| format!("- {mistake}\n")).collect();
    let mistakes = if mistakes.is_empty() { "None.\n".to_owned() } else { mistakes };
    let shape = shape();
    let card = format!(
        include_str!("card.md"),
        CONTEXT = CONTEXT,
        SEED = SEED,
        mistakes = mistakes,
        parameters = outcome.parameters,
        layers = shape.layers.len(),
        hidden = shape.hidden,
        heads = shape.heads,
        shared = shape.key_value_heads,
        inner = INNER,
        vocabulary = shape.vocabulary,
        steps = outcome.steps,
        tokens = outcome.tokens,
        minutes = (outcome.seconds / 60.0).ceil(),
        first = outcome.first_loss,
        last = outcome.last_loss,
        trained = share(score.trained),
        wordings = share(score.held_out_wordings),
        sums = share(score.held_out_sums),
    );
    std::fs::write(directory.join("README.md"), card)?;
    Ok(())
}
