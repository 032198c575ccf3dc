//! Decoder families: defaults and deviations of each, as their publishers' code has them.

use super::fields::{
    CheckpointError, RawCheckpoint, bounded, dimension, divides, expect_feature, named_layers, positive,
};
use super::rotary::{self, RotaryKinds};
use super::shape::{
    DecoderShape, ExpertNames, Experts, FeedForward, Gate, LayerShape, NormStyle, ProjectionBiases,
};

/// Most layers: the largest published model has 126.
const LAYERS_MAX: usize = 1024;
/// Most experts of a layer: the largest published model of these families has 128.
const EXPERTS_MAX: usize = 1024;

/// A decoder family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DecoderFamily {
    Llama,
    Mistral,
    Mixtral,
    Qwen2,
    Qwen3,
    Qwen3Moe,
    Gemma2,
    Gemma3,
}

/// All families, by the name of their architecture.
pub(super) const FAMILIES: &[(&str, DecoderFamily)] = &[
    ("LlamaForCausalLM", DecoderFamily::Llama),
    ("MistralForCausalLM", DecoderFamily::Mistral),
    ("MixtralForCausalLM", DecoderFamily::Mixtral),
    ("Qwen2ForCausalLM", DecoderFamily::Qwen2),
    ("Qwen3ForCausalLM", DecoderFamily::Qwen3),
    ("Qwen3MoeForCausalLM", DecoderFamily::Qwen3Moe),
    ("Gemma2ForCausalLM", DecoderFamily::Gemma2),
    ("Gemma3ForCausalLM", DecoderFamily::Gemma3),
];

impl DecoderFamily {
    fn is_gemma(self) -> bool {
        matches!(self, Self::Gemma2 | Self::Gemma3)
    }

    /// Reports whether the configuration must name the width of a head.
    fn has_own_head_width(self) -> bool {
        self.is_gemma() || matches!(self, Self::Qwen3 | Self::Qwen3Moe)
    }

    /// Reports whether layers of one model may differ in what they see.
    fn has_layer_types(self) -> bool {
        self.is_gemma() || matches!(self, Self::Qwen2 | Self::Qwen3)
    }

    /// Returns the base of the rotary embedding where a configuration names none.
    fn theta(self) -> f64 {
        match self {
            Self::Mixtral | Self::Gemma3 => 1e6,
            _ => 1e4,
        }
    }
}

/// Reads the shape of a decoder, and its longest context in tokens.
pub(super) fn read(
    family: DecoderFamily,
    raw: &RawCheckpoint,
) -> Result<(DecoderShape, usize), CheckpointError> {
    refuse_unsupported(family, raw)?;
    let hidden = dimension("hidden_size", raw.hidden_size)?;
    let heads = dimension("num_attention_heads", raw.num_attention_heads)?;
    let head_width = head_width(family, raw, hidden, heads)?;
    let context = dimension("max_position_embeddings", raw.max_position_embeddings)?;
    let theta_local = (family == DecoderFamily::Gemma3).then_some(1e4);
    let RotaryKinds { global, local, context } = rotary::read(raw, family.theta(), theta_local, context)?;
    let is_gemma = family.is_gemma();
    let shape = DecoderShape {
        hidden,
        heads,
        key_value_heads: dimension("num_key_value_heads", raw.num_key_value_heads.or(Some(heads)))?,
        head_width,
        vocabulary: dimension("vocab_size", raw.vocab_size)?,
        layers: layers(family, raw, local.is_some())?,
        rotaries: std::iter::once(global).chain(local).collect(),
        norm_epsilon: epsilon(family, raw)?,
        norms: if is_gemma { NormStyle::AroundWithOffset } else { NormStyle::Before },
        head_norms: matches!(family, DecoderFamily::Qwen3 | DecoderFamily::Qwen3Moe | DecoderFamily::Gemma3),
        biases: biases(family, raw),
        gate: if is_gemma { Gate::GeluTanh } else { Gate::Silu },
        attention_scale: attention_scale(family, raw, head_width)?,
        attention_soft_cap: match family {
            DecoderFamily::Gemma2 => soft_cap("attn_logit_softcapping", raw.attn_logit_softcapping, 50.0)?,
            _ => None,
        },
        logit_soft_cap: match family {
            DecoderFamily::Gemma2 => soft_cap("final_logit_softcapping", raw.final_logit_softcapping, 30.0)?,
            DecoderFamily::Gemma3 => {
                let given = Some(raw.final_logit_softcapping.flatten());
                soft_cap("final_logit_softcapping", given, 30.0)?
            }
            _ => None,
        },
        embedding_scale: if is_gemma { (hidden as f32).sqrt() } else { 1.0 },
        tied_embeddings: raw.tie_word_embeddings.unwrap_or(is_gemma),
        vector: None,
    };
    divides("num_key_value_heads", shape.key_value_heads, "num_attention_heads", shape.heads)?;
    if !shape.head_width.is_multiple_of(2) {
        return Err(CheckpointError::invalid("`head_dim` is odd"));
    }
    assert!(shape.layers.iter().all(|layer| layer.rotary < shape.rotaries.len()), "rotaries exist");
    Ok((shape, context))
}

/// Refuses fields that would change the mathematics in a way that is not implemented.
fn refuse_unsupported(family: DecoderFamily, raw: &RawCheckpoint) -> Result<(), CheckpointError> {
    if family.is_gemma() {
        expect_feature("activation", raw.hidden_activation.as_deref(), "gelu_pytorch_tanh")?;
    } else {
        expect_feature("activation", raw.hidden_act.as_deref(), "silu")?;
    }
    let has_no_bias = matches!(family, DecoderFamily::Mistral | DecoderFamily::Mixtral);
    let is_capped = |cap: Option<Option<f32>>| cap.flatten().is_some();
    let refused = [
        ("`attention_bias`", has_no_bias && raw.attention_bias == Some(true)),
        ("`mlp_bias`", family != DecoderFamily::Llama && raw.mlp_bias == Some(true)),
        ("`is_causal` of false", raw.is_causal == Some(false)),
        ("`use_bidirectional_attention`", raw.use_bidirectional_attention == Some(true)),
        ("`use_sliding_window`", family == DecoderFamily::Qwen3Moe && raw.use_sliding_window == Some(true)),
        (
            "`attn_logit_softcapping`",
            family != DecoderFamily::Gemma2 && is_capped(raw.attn_logit_softcapping),
        ),
        ("`final_logit_softcapping`", !family.is_gemma() && is_capped(raw.final_logit_softcapping)),
    ];
    match refused.iter().find(|(_, is_used)| *is_used) {
        Some((feature, _)) => Err(CheckpointError::unsupported(*feature)),
        None => Ok(()),
    }
}

fn head_width(
    family: DecoderFamily,
    raw: &RawCheckpoint,
    hidden: usize,
    heads: usize,
) -> Result<usize, CheckpointError> {
    if raw.head_dim.is_none() && !family.has_own_head_width() {
        divides("num_attention_heads", heads, "hidden_size", hidden)?;
        return dimension("head_dim", Some(hidden / heads));
    }
    dimension("head_dim", raw.head_dim)
}

fn attention_scale(
    family: DecoderFamily,
    raw: &RawCheckpoint,
    head_width: usize,
) -> Result<f32, CheckpointError> {
    let scalar = match family.is_gemma() {
        true => positive("query_pre_attn_scalar", Some(raw.query_pre_attn_scalar.unwrap_or(256.0)))? as f32,
        false => head_width as f32,
    };
    if !scalar.is_normal() {
        return Err(CheckpointError::invalid(format!("`query_pre_attn_scalar` is {scalar}, out of range")));
    }
    let scale = 1.0 / scalar.sqrt();
    assert!(scale.is_finite() && scale > 0.0, "a normal number has a normal root");
    Ok(scale)
}

fn epsilon(family: DecoderFamily, raw: &RawCheckpoint) -> Result<f32, CheckpointError> {
    let default = if family == DecoderFamily::Mixtral { 1e-5 } else { 1e-6 };
    let epsilon = raw.rms_norm_eps.unwrap_or(default);
    positive("rms_norm_eps", Some(epsilon.into())).map(|_| epsilon)
}

fn biases(family: DecoderFamily, raw: &RawCheckpoint) -> ProjectionBiases {
    let attention = raw.attention_bias == Some(true);
    match family {
        // Its attention has them always, and the output projection never.
        DecoderFamily::Qwen2 => ProjectionBiases { query_key_value: true, ..ProjectionBiases::default() },
        _ => ProjectionBiases {
            query_key_value: attention,
            output: attention,
            feed_forward: raw.mlp_bias == Some(true),
        },
    }
}

/// Returns a soft cap: absent is the family's default, and `null` is none.
fn soft_cap(name: &str, given: Option<Option<f32>>, default: f32) -> Result<Option<f32>, CheckpointError> {
    let cap = given.unwrap_or(Some(default));
    cap.map(|cap| positive(name, Some(cap.into())).map(|_| cap)).transpose()
}

/// Reads the layers. `differs` says that layers with a window have the second rotary embedding.
fn layers(
    family: DecoderFamily,
    raw: &RawCheckpoint,
    differs: bool,
) -> Result<Vec<LayerShape>, CheckpointError> {
    let count = bounded("num_hidden_layers", raw.num_hidden_layers, LAYERS_MAX)?;
    let window = window(family, raw)?;
    let locals = local_layers(family, raw, count, window.is_some())?;
    let mixture = mixture(family, raw)?;
    let step = raw.decoder_sparse_step.unwrap_or(1).max(1);
    let dense_only = raw.mlp_only_layers.as_deref().unwrap_or_default();
    let layer = |(index, is_local): (usize, bool)| {
        let is_dense = dense_only.contains(&index) || !(index + 1).is_multiple_of(step);
        let feed_forward = match &mixture {
            Some(experts) if family == DecoderFamily::Mixtral || !is_dense => {
                FeedForward::Mixture(experts.clone())
            }
            _ => FeedForward::Dense { inner: dimension("intermediate_size", raw.intermediate_size)? },
        };
        if is_local && window.is_none() {
            return Err(CheckpointError::invalid("a layer has a window, but there is no `sliding_window`"));
        }
        Ok(LayerShape {
            window: window.filter(|_| is_local),
            rotary: usize::from(differs && is_local),
            feed_forward,
        })
    };
    locals.into_iter().enumerate().map(layer).collect()
}

/// Returns the width of the windows of a model's local layers.
fn window(family: DecoderFamily, raw: &RawCheckpoint) -> Result<Option<usize>, CheckpointError> {
    let is_used = match family {
        DecoderFamily::Llama | DecoderFamily::Qwen3Moe => false,
        DecoderFamily::Qwen2 | DecoderFamily::Qwen3 => raw.use_sliding_window == Some(true),
        DecoderFamily::Mistral | DecoderFamily::Mixtral => true,
        DecoderFamily::Gemma2 | DecoderFamily::Gemma3 => true,
    };
    let default = if family == DecoderFamily::Mixtral { None } else { Some(4096) };
    match raw.sliding_window.unwrap_or(default).filter(|_| is_used) {
        Some(window) => dimension("sliding_window", Some(window)).map(Some),
        None => Ok(None),
    }
}

/// Returns for each layer whether it has a window.
fn local_layers(
    family: DecoderFamily,
    raw: &RawCheckpoint,
    count: usize,
    has_window: bool,
) -> Result<Vec<bool>, CheckpointError> {
    assert!((1..=LAYERS_MAX).contains(&count), "the count was checked");
    let pattern = bounded("sliding_window_pattern", raw.sliding_window_pattern.or(Some(6)), LAYERS_MAX)?;
    let window_from = raw.max_window_layers.unwrap_or(28);
    let is_local = |index: usize| match family {
        DecoderFamily::Llama | DecoderFamily::Qwen3Moe => false,
        DecoderFamily::Mistral | DecoderFamily::Mixtral => has_window,
        DecoderFamily::Qwen2 | DecoderFamily::Qwen3 => has_window && index >= window_from,
        DecoderFamily::Gemma2 => index.is_multiple_of(2),
        DecoderFamily::Gemma3 => !(index + 1).is_multiple_of(pattern),
    };
    let usual: Vec<bool> = (0..count).map(is_local).collect();
    let Some(named) = named_layers(raw, count)? else { return Ok(usual) };
    if named != usual && !family.has_layer_types() {
        return Err(CheckpointError::unsupported("`layer_types`"));
    }
    Ok(named)
}

/// Reads the experts of families that have them.
fn mixture(family: DecoderFamily, raw: &RawCheckpoint) -> Result<Option<Experts>, CheckpointError> {
    let (count, inner, names) = match family {
        DecoderFamily::Mixtral => {
            let inner = dimension("intermediate_size", raw.intermediate_size)?;
            (bounded("num_local_experts", raw.num_local_experts, EXPERTS_MAX)?, inner, ExpertNames::Mixtral)
        }
        DecoderFamily::Qwen3Moe => {
            let count = raw.num_experts.or(raw.num_local_experts);
            let inner = dimension("moe_intermediate_size", raw.moe_intermediate_size)?;
            (bounded("num_experts", count, EXPERTS_MAX)?, inner, ExpertNames::Qwen)
        }
        _ => return Ok(None),
    };
    let chosen = bounded("num_experts_per_tok", raw.num_experts_per_tok, count)?;
    let is_normalized = family == DecoderFamily::Mixtral || raw.norm_topk_prob == Some(true);
    assert!(chosen <= count, "the choice is among the experts");
    Ok(Some(Experts { count, chosen, inner, is_normalized, names }))
}
