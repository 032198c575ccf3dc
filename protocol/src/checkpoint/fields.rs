//! Fields of `config.json` as published, and the checks that every architecture shares.

use crate::ErrorCode;
use crate::error_code as code;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// Largest value of any dimension: 16 million is far above every published model, and keeps the product of
/// two dimensions within 64 bits.
const DIMENSION_MAX: usize = 1 << 24;

/// Reason for which no built-in engine serves a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CheckpointError {
    /// `config.json` names an architecture that is not built in.
    #[error("{name} is not known; known: {known}")]
    ArchitectureUnknown {
        /// Architecture named by `config.json`.
        name: String,
        /// Built-in architectures, comma-separated.
        known: String,
    },
    /// A file violates its format.
    #[error("model file `{path}` is invalid: {reason}")]
    Invalid {
        /// Path of the file inside the model.
        path: String,
        /// Description of the violation.
        reason: String,
    },
    /// The architecture is built in, but this checkpoint uses a feature of it that is not.
    #[error("model uses {feature}, which this engine does not support")]
    FeatureUnsupported {
        /// The unsupported feature.
        feature: String,
    },
}

impl CheckpointError {
    /// Returns the stable error code.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::ArchitectureUnknown { .. } => code::MODEL_ARCHITECTURE_UNKNOWN,
            Self::Invalid { .. } => code::MODEL_CONFIG_INVALID,
            Self::FeatureUnsupported { .. } => code::MODEL_FEATURE_UNSUPPORTED,
        }
    }

    pub(super) fn unsupported(feature: impl Into<String>) -> Self {
        let feature = feature.into();
        assert!(!feature.is_empty(), "a feature has a name");
        Self::FeatureUnsupported { feature }
    }

    /// Builds the error for a violation in `config.json`.
    pub(super) fn invalid(reason: impl Into<String>) -> Self {
        Self::invalid_in("config.json", reason)
    }

    pub(super) fn invalid_in(path: &str, reason: impl Into<String>) -> Self {
        let reason = reason.into();
        assert!(!reason.is_empty(), "a violation has a description");
        Self::Invalid { path: path.to_owned(), reason }
    }
}

/// Fields of all architectures. A field whose absence differs from `null` is a nested option.
#[derive(Debug, Deserialize)]
pub(super) struct RawCheckpoint {
    pub(super) architectures: Option<Vec<String>>,
    pub(super) hidden_size: Option<usize>,
    pub(super) intermediate_size: Option<usize>,
    pub(super) moe_intermediate_size: Option<usize>,
    pub(super) num_hidden_layers: Option<usize>,
    pub(super) num_attention_heads: Option<usize>,
    pub(super) num_key_value_heads: Option<usize>,
    pub(super) head_dim: Option<usize>,
    pub(super) vocab_size: Option<usize>,
    pub(super) max_position_embeddings: Option<usize>,
    pub(super) type_vocab_size: Option<usize>,
    pub(super) layer_norm_eps: Option<f32>,
    pub(super) rms_norm_eps: Option<f32>,
    pub(super) rope_theta: Option<f64>,
    pub(super) rope_local_base_freq: Option<f64>,
    pub(super) rope_scaling: Option<RawRopes>,
    pub(super) rope_parameters: Option<RawRopes>,
    pub(super) partial_rotary_factor: Option<f64>,
    pub(super) tie_word_embeddings: Option<bool>,
    pub(super) hidden_act: Option<String>,
    pub(super) hidden_activation: Option<String>,
    pub(super) position_embedding_type: Option<String>,
    pub(super) attention_bias: Option<bool>,
    pub(super) mlp_bias: Option<bool>,
    pub(super) is_causal: Option<bool>,
    pub(super) use_bidirectional_attention: Option<bool>,
    #[serde(default, deserialize_with = "given")]
    pub(super) sliding_window: Option<Option<usize>>,
    pub(super) use_sliding_window: Option<bool>,
    pub(super) max_window_layers: Option<usize>,
    #[serde(alias = "_sliding_window_pattern")]
    pub(super) sliding_window_pattern: Option<usize>,
    pub(super) layer_types: Option<Vec<String>>,
    pub(super) query_pre_attn_scalar: Option<f64>,
    #[serde(default, deserialize_with = "given")]
    pub(super) attn_logit_softcapping: Option<Option<f32>>,
    #[serde(default, deserialize_with = "given")]
    pub(super) final_logit_softcapping: Option<Option<f32>>,
    pub(super) num_experts: Option<usize>,
    pub(super) num_local_experts: Option<usize>,
    pub(super) num_experts_per_tok: Option<usize>,
    pub(super) norm_topk_prob: Option<bool>,
    pub(super) decoder_sparse_step: Option<usize>,
    pub(super) mlp_only_layers: Option<Vec<usize>>,
    pub(super) quantization_config: Option<Value>,
    pub(super) pad_token_id: Option<i64>,
    pub(super) is_decoder: Option<bool>,
    pub(super) add_cross_attention: Option<bool>,
    pub(super) norm_eps: Option<f32>,
    pub(super) norm_bias: Option<bool>,
    pub(super) global_attn_every_n_layers: Option<usize>,
    pub(super) local_attention: Option<usize>,
    pub(super) global_rope_theta: Option<f64>,
    #[serde(default, deserialize_with = "given")]
    pub(super) local_rope_theta: Option<Option<f64>>,
    pub(super) num_labels: Option<usize>,
    pub(super) id2label: Option<Value>,
    pub(super) classifier_pooling: Option<String>,
    pub(super) classifier_activation: Option<String>,
    pub(super) classifier_bias: Option<bool>,
    pub(super) sbert_ce_default_activation_function: Option<String>,
    pub(super) sentence_transformers: Option<Value>,
    eos_token_id: Option<EndTokenIds>,
}

/// Parameters of the rotary embedding: of all layers alike, or of each kind of layer.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum RawRopes {
    /// By the kind of layer.
    ByKind { full_attention: Box<RawRope>, sliding_attention: Box<RawRope> },
    /// The same for all layers.
    Same(Box<RawRope>),
}

/// Parameters of one rotary embedding. Files of some years name the type twice.
#[derive(Debug, Default, Deserialize)]
pub(super) struct RawRope {
    pub(super) rope_type: Option<String>,
    #[serde(rename = "type")]
    pub(super) kind: Option<String>,
    pub(super) rope_theta: Option<f64>,
    pub(super) partial_rotary_factor: Option<f64>,
    pub(super) factor: Option<f64>,
    pub(super) low_freq_factor: Option<f64>,
    pub(super) high_freq_factor: Option<f64>,
    pub(super) original_max_position_embeddings: Option<f64>,
    pub(super) attention_factor: Option<f64>,
    pub(super) beta_fast: Option<f64>,
    pub(super) beta_slow: Option<f64>,
    pub(super) mscale: Option<f64>,
    pub(super) mscale_all_dim: Option<f64>,
    pub(super) truncate: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum EndTokenIds {
    One(u32),
    Many(Vec<u32>),
}

impl RawCheckpoint {
    /// Returns the tokens that end a generation.
    pub(super) fn end_tokens(&self) -> Vec<u32> {
        match &self.eos_token_id {
            None => Vec::new(),
            Some(EndTokenIds::One(id)) => vec![*id],
            Some(EndTokenIds::Many(ids)) => ids.clone(),
        }
    }
}

/// Deserializes a field that is present, so that `null` differs from an absent field.
fn given<'de, D: Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<Option<Option<T>>, D::Error> {
    Option::deserialize(from).map(Some)
}

/// Returns a dimension that must be there.
pub(super) fn dimension(name: &str, value: Option<usize>) -> Result<usize, CheckpointError> {
    bounded(name, value, DIMENSION_MAX)
}

/// Returns a number from 1 to `max` that must be there.
pub(super) fn bounded(name: &str, value: Option<usize>, max: usize) -> Result<usize, CheckpointError> {
    assert!((1..=DIMENSION_MAX).contains(&max), "a bound is a dimension");
    match value {
        None => Err(CheckpointError::invalid(format!("no `{name}`"))),
        Some(value) if (1..=max).contains(&value) => Ok(value),
        Some(value) => Err(CheckpointError::invalid(format!("`{name}` is {value}, not within 1..={max}"))),
    }
}

/// Returns a number above 0, which must be there.
pub(super) fn positive(name: &str, value: Option<f64>) -> Result<f64, CheckpointError> {
    match value {
        None => Err(CheckpointError::invalid(format!("no `{name}`"))),
        Some(value) if value > 0.0 && value.is_finite() => Ok(value),
        Some(value) => Err(CheckpointError::invalid(format!("`{name}` is {value}, not above 0"))),
    }
}

/// Checks that one dimension is a multiple of another.
pub(super) fn divides(
    part_name: &str,
    part: usize,
    whole_name: &str,
    whole: usize,
) -> Result<(), CheckpointError> {
    assert!(part > 0, "dimensions were checked");
    if whole.is_multiple_of(part) {
        return Ok(());
    }
    let reason = format!("`{part_name}` {part} does not divide `{whole_name}` {whole}");
    Err(CheckpointError::invalid(reason))
}

/// Returns for each layer whether it has a window, if the configuration names the layers' types.
pub(super) fn named_layers(raw: &RawCheckpoint, count: usize) -> Result<Option<Vec<bool>>, CheckpointError> {
    assert!(count > 0, "a model has a layer");
    let Some(types) = &raw.layer_types else { return Ok(None) };
    if types.len() != count {
        let reason = format!("`layer_types` has {} entries for {count} layers", types.len());
        return Err(CheckpointError::invalid(reason));
    }
    let parse = |name: &String| match name.as_str() {
        "full_attention" => Ok(false),
        "sliding_attention" => Ok(true),
        other => Err(CheckpointError::unsupported(format!("the layer type `{other}`"))),
    };
    types.iter().map(parse).collect::<Result<_, _>>().map(Some)
}

/// Checks that a named feature is the supported one, or absent.
pub(super) fn expect_feature(
    what: &str,
    found: Option<&str>,
    supported: &str,
) -> Result<(), CheckpointError> {
    match found {
        None => Ok(()),
        Some(found) if found == supported => Ok(()),
        Some(found) => Err(CheckpointError::unsupported(format!("the {what} `{found}`"))),
    }
}
