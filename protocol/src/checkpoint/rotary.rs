//! Rotary embeddings of a configuration: every type that the built-in families publish.
//!
//! The type `dynamic` changes the frequencies only beyond the model's own context, which is never served: it
//! equals `default` here. The type `longrope`, which switches tables by the length of a sequence, is refused.

use super::fields::{CheckpointError, RawCheckpoint, RawRope, RawRopes, positive};
use super::shape::{Rotary, RotaryScaling, RotaryStretch, Yarn};

/// Turns of [`Yarn`] where a configuration names none, as in its paper.
const TURNS_FAST: f64 = 32.0;
const TURNS_SLOW: f64 = 1.0;

/// Rotary embeddings of a model, and the context that they allow.
#[derive(Debug)]
pub(super) struct RotaryKinds {
    /// Embedding of layers that see all positions.
    pub(super) global: Rotary,
    /// Embedding of layers with a window, where it differs.
    pub(super) local: Option<Rotary>,
    /// Longest context, in tokens.
    pub(super) context: usize,
}

/// Reads the rotary embeddings. `theta` is the base where none is given, `theta_local` that of layers with a
/// window, for families whose layers differ.
pub(super) fn read(
    raw: &RawCheckpoint,
    theta: f64,
    theta_local: Option<f64>,
    context: usize,
) -> Result<RotaryKinds, CheckpointError> {
    assert!(theta > 1.0 && context > 0, "a default base, and a context that was checked");
    refuse_partial(raw.partial_rotary_factor)?;
    let theta = raw.rope_theta.unwrap_or(theta);
    let theta_local = theta_local.map(|default| raw.rope_local_base_freq.unwrap_or(default));
    let none = RawRope::default();
    let ropes = raw.rope_parameters.as_ref().or(raw.rope_scaling.as_ref());
    let (global, local): (&RawRope, &RawRope) = match (ropes, theta_local) {
        (None, _) => (&none, &none),
        (Some(RawRopes::Same(rope)), _) => (rope.as_ref(), &none),
        (Some(RawRopes::ByKind { full_attention, sliding_attention }), Some(_)) => {
            (full_attention.as_ref(), sliding_attention.as_ref())
        }
        (Some(RawRopes::ByKind { .. }), None) => {
            return Err(CheckpointError::unsupported("a rotary embedding by kind of layer"));
        }
    };
    let global = rotary(global, theta, context)?;
    let local = theta_local.map(|theta| rotary(local, theta, context)).transpose()?;
    Ok(RotaryKinds { context: stretched_context(&global, context), global, local })
}

fn rotary(rope: &RawRope, theta: f64, context: usize) -> Result<Rotary, CheckpointError> {
    refuse_partial(rope.partial_rotary_factor)?;
    let theta = positive("rope_theta", Some(rope.rope_theta.unwrap_or(theta)))?;
    if theta <= 1.0 {
        return Err(CheckpointError::invalid(format!("`rope_theta` is {theta}, not above 1")));
    }
    let scaling = match rope.rope_type.as_deref().or(rope.kind.as_deref()) {
        None | Some("default" | "dynamic") => RotaryScaling::None,
        Some("linear") => RotaryScaling::Linear { factor: positive("factor", rope.factor)? },
        Some("llama3") => RotaryScaling::Llama3(RotaryStretch {
            factor: positive("factor", rope.factor)?,
            low_frequency_factor: positive("low_freq_factor", rope.low_freq_factor)?,
            high_frequency_factor: positive("high_freq_factor", rope.high_freq_factor)?,
            original_context: positive(
                "original_max_position_embeddings",
                rope.original_max_position_embeddings,
            )?,
        }),
        Some("yarn") => RotaryScaling::Yarn(yarn(rope, context)?),
        Some(other) => return Err(CheckpointError::unsupported(format!("rope type `{other}`"))),
    };
    Ok(Rotary { theta, scaling })
}

fn yarn(rope: &RawRope, context: usize) -> Result<Yarn, CheckpointError> {
    let factor = positive("factor", rope.factor)?;
    let original = rope.original_max_position_embeddings.unwrap_or(context as f64);
    let original_context = positive("original_max_position_embeddings", Some(original))?;
    let magnitude = |scale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * scale * factor.ln() + 1.0 };
    let magnitude = match (rope.attention_factor, rope.mscale, rope.mscale_all_dim) {
        (Some(given), _, _) => given,
        (None, Some(scale), Some(all)) if scale != 0.0 && all != 0.0 => magnitude(scale) / magnitude(all),
        _ => magnitude(1.0),
    };
    Ok(Yarn {
        factor,
        turns_fast: positive("beta_fast", Some(rope.beta_fast.unwrap_or(TURNS_FAST)))?,
        turns_slow: positive("beta_slow", Some(rope.beta_slow.unwrap_or(TURNS_SLOW)))?,
        original_context,
        magnitude: positive("attention_factor", Some(magnitude))?,
        is_truncated: rope.truncate.unwrap_or(true),
    })
}

/// Returns the context that a scaling allows: YaRN is added to configurations that keep the old context.
fn stretched_context(rotary: &Rotary, context: usize) -> usize {
    let RotaryScaling::Yarn(yarn) = rotary.scaling else { return context };
    // The product of two checked numbers; a conversion from f64 saturates.
    let stretched = (yarn.factor * yarn.original_context).min((1_u64 << 24) as f64) as usize;
    let longest = stretched.max(context);
    assert!(longest >= context, "a scaling takes no position away");
    longest
}

fn refuse_partial(factor: Option<f64>) -> Result<(), CheckpointError> {
    match factor {
        Some(factor) if factor != 1.0 => Err(CheckpointError::unsupported("`partial_rotary_factor`")),
        _ => Ok(()),
    }
}
