//! Checkpoint configuration: parses `config.json` and its companion files into the parameters of the engines.
//!
//! These formats are defined elsewhere, so unknown fields are ignored, with care: every field that would
//! change the mathematics is either honoured or refused. Tensors and the tokenizer are read by other modules.

use super::EngineError;
use crate::weights::ModelFiles;
use serde::Deserialize;
use serde::de::DeserializeOwned;

/// Built-in architectures, as `config.json` names them.
pub const ARCHITECTURES: &[&str] = &["BertModel", "LlamaForCausalLM"];

/// Largest value of any dimension: 16 million is far above every published model, and keeps the product of
/// two dimensions within 64 bits.
const DIMENSION_MAX: usize = 1 << 24;

/// A checkpoint's configuration.
#[derive(Debug, Clone)]
pub struct ModelConfig {
    /// Architecture and dimensions.
    pub shape: Shape,
    /// Tokens that end a generation.
    pub end_tokens: Vec<u32>,
    /// Maximum positions that the model was trained for.
    pub context_tokens_max: usize,
    /// Tokens in the vocabulary.
    pub vocabulary: usize,
}

/// The architecture of a checkpoint, with its dimensions.
#[derive(Debug, Clone)]
pub enum Shape {
    /// BERT family.
    Encoder(EncoderShape),
    /// Llama family.
    Decoder(DecoderShape),
}

/// A BERT encoder with its pooling.
#[derive(Debug, Clone, PartialEq)]
pub struct EncoderShape {
    /// Width of a position's hidden state.
    pub hidden: usize,
    /// Inner width of the feed-forward part.
    pub intermediate: usize,
    /// Number of layers.
    pub layers: usize,
    /// Attention heads; divides `hidden`.
    pub heads: usize,
    /// Tokens in the vocabulary.
    pub vocabulary: usize,
    /// Rows of the position table.
    pub positions: usize,
    /// Rows of the token-type table.
    pub token_types: usize,
    /// Epsilon added to the variance in layer norms.
    pub norm_epsilon: f32,
    /// Reduction of all positions to one vector.
    pub pooling: Pooling,
    /// Whether the vector is scaled to length 1.
    pub normalize: bool,
}

/// Reduction of an encoder's positions to one vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// The mean over all positions.
    Mean,
    /// The first position.
    First,
}

/// A Llama decoder.
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderShape {
    /// Width of a position's hidden state.
    pub hidden: usize,
    /// Inner width of the feed-forward part.
    pub intermediate: usize,
    /// Number of layers.
    pub layers: usize,
    /// Number of query heads.
    pub heads: usize,
    /// Number of key and value heads; divides `heads`.
    pub key_value_heads: usize,
    /// Width of a head; even.
    pub head_width: usize,
    /// Tokens in the vocabulary.
    pub vocabulary: usize,
    /// Epsilon added to the mean square in norms.
    pub norm_epsilon: f32,
    /// Frequencies of the rotary embedding.
    pub rotary: Rotary,
    /// Whether the output matrix is the embedding table.
    pub tied_embeddings: bool,
}

/// Rotary position embedding.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rotary {
    /// Base of the geometric series of wavelengths.
    pub theta: f64,
    /// Llama 3's scaling of long wavelengths, if any.
    pub stretch: Option<RotaryStretch>,
}

/// Llama 3's frequency scaling. Wavelengths above `original_context / low_frequency_factor` are stretched by
/// `factor`; those below `original_context / high_frequency_factor` are kept; between them is interpolated.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RotaryStretch {
    /// Factor by which long wavelengths are stretched.
    pub factor: f64,
    /// Divisor for the wavelength above which the full factor applies.
    pub low_frequency_factor: f64,
    /// Divisor for the wavelength below which none applies.
    pub high_frequency_factor: f64,
    /// Context length of the training before the stretch, in tokens.
    pub original_context: f64,
}

#[derive(Deserialize)]
struct RawConfig {
    architectures: Option<Vec<String>>,
    hidden_size: Option<usize>,
    intermediate_size: Option<usize>,
    num_hidden_layers: Option<usize>,
    num_attention_heads: Option<usize>,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    vocab_size: Option<usize>,
    max_position_embeddings: Option<usize>,
    type_vocab_size: Option<usize>,
    layer_norm_eps: Option<f32>,
    rms_norm_eps: Option<f32>,
    rope_theta: Option<f64>,
    rope_scaling: Option<RawRope>,
    rope_parameters: Option<RawRope>,
    tie_word_embeddings: Option<bool>,
    hidden_act: Option<String>,
    position_embedding_type: Option<String>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    quantization_config: Option<serde_json::Value>,
    eos_token_id: Option<OneOrMany>,
}

#[derive(Deserialize)]
struct RawRope {
    #[serde(alias = "type")]
    rope_type: Option<String>,
    rope_theta: Option<f64>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<f64>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(u32),
    Many(Vec<u32>),
}

impl OneOrMany {
    fn into_vec(self) -> Vec<u32> {
        match self {
            Self::One(id) => vec![id],
            Self::Many(ids) => ids,
        }
    }
}

#[derive(Deserialize)]
struct RawGeneration {
    eos_token_id: Option<OneOrMany>,
}

#[derive(Deserialize)]
struct RawModule {
    path: String,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Deserialize)]
struct RawPooling {
    #[serde(default)]
    pooling_mode: Option<String>,
    #[serde(default)]
    pooling_mode_cls_token: bool,
    #[serde(default)]
    pooling_mode_mean_tokens: bool,
    #[serde(default)]
    pooling_mode_max_tokens: bool,
    #[serde(default)]
    pooling_mode_mean_sqrt_len_tokens: bool,
    #[serde(default)]
    pooling_mode_weightedmean_tokens: bool,
    #[serde(default)]
    pooling_mode_lasttoken: bool,
}

#[derive(Deserialize)]
struct RawSentence {
    max_seq_length: Option<usize>,
}

impl ModelConfig {
    /// Reads `config.json` and the companion files that complete it.
    ///
    /// # Errors
    /// [`EngineError`]: a file is missing or invalid, or the checkpoint is not supported.
    pub fn read(files: &ModelFiles) -> Result<Self, EngineError> {
        let raw: RawConfig = json(files, "config.json")?;
        let architecture = raw.architectures.as_deref().and_then(<[String]>::first).cloned();
        let architecture = architecture.ok_or_else(|| invalid("config.json", "no `architectures`"))?;
        if raw.quantization_config.is_some() {
            return Err(EngineError::FeatureUnsupported { feature: "quantized weights".to_owned() });
        }
        match architecture.as_str() {
            "BertModel" => read_encoder(files, &raw),
            "LlamaForCausalLM" => read_decoder(files, raw),
            _ => {
                Err(EngineError::ArchitectureUnknown { name: architecture, known: ARCHITECTURES.join(", ") })
            }
        }
    }
}

fn read_encoder(files: &ModelFiles, raw: &RawConfig) -> Result<ModelConfig, EngineError> {
    expect_feature("activation", raw.hidden_act.as_deref(), "gelu")?;
    expect_feature("position embedding", raw.position_embedding_type.as_deref(), "absolute")?;
    let (pooling, normalize) = read_pooling(files)?;
    let shape = EncoderShape {
        hidden: dimension("hidden_size", raw.hidden_size)?,
        intermediate: dimension("intermediate_size", raw.intermediate_size)?,
        layers: dimension("num_hidden_layers", raw.num_hidden_layers)?,
        heads: dimension("num_attention_heads", raw.num_attention_heads)?,
        vocabulary: dimension("vocab_size", raw.vocab_size)?,
        positions: dimension("max_position_embeddings", raw.max_position_embeddings)?,
        token_types: dimension("type_vocab_size", raw.type_vocab_size.or(Some(2)))?,
        norm_epsilon: raw.layer_norm_eps.unwrap_or(1e-12),
        pooling,
        normalize,
    };
    divides("num_attention_heads", shape.heads, "hidden_size", shape.hidden)?;
    let mut context_tokens_max = shape.positions;
    if files.contains("sentence_bert_config.json") {
        let sentence: RawSentence = json(files, "sentence_bert_config.json")?;
        context_tokens_max = context_tokens_max.min(sentence.max_seq_length.unwrap_or(usize::MAX));
    }
    let vocabulary = shape.vocabulary;
    Ok(ModelConfig { shape: Shape::Encoder(shape), end_tokens: Vec::new(), context_tokens_max, vocabulary })
}

fn read_pooling(files: &ModelFiles) -> Result<(Pooling, bool), EngineError> {
    if !files.contains("modules.json") {
        // The default of sentence-transformers for a bare encoder.
        return Ok((Pooling::Mean, false));
    }
    let modules: Vec<RawModule> = json(files, "modules.json")?;
    let mut pooling = Pooling::Mean;
    let mut normalize = false;
    for module in modules {
        match module.kind.rsplit('.').next().unwrap_or_default() {
            "Transformer" => {}
            "Pooling" => pooling = read_pooling_mode(files, &format!("{}/config.json", module.path))?,
            "Normalize" => normalize = true,
            other => {
                return Err(EngineError::FeatureUnsupported { feature: format!("the module `{other}`") });
            }
        }
    }
    Ok((pooling, normalize))
}

fn read_pooling_mode(files: &ModelFiles, path: &str) -> Result<Pooling, EngineError> {
    let raw: RawPooling = json(files, path)?;
    let other = raw.pooling_mode_max_tokens
        || raw.pooling_mode_mean_sqrt_len_tokens
        || raw.pooling_mode_weightedmean_tokens
        || raw.pooling_mode_lasttoken;
    let mean = raw.pooling_mode_mean_tokens || raw.pooling_mode.as_deref() == Some("mean");
    let first = raw.pooling_mode_cls_token || raw.pooling_mode.as_deref() == Some("cls");
    match (mean, first, other) {
        (true, false, false) => Ok(Pooling::Mean),
        (false, true, false) => Ok(Pooling::First),
        _ => Err(EngineError::FeatureUnsupported { feature: format!("the pooling in `{path}`") }),
    }
}

fn read_decoder(files: &ModelFiles, raw: RawConfig) -> Result<ModelConfig, EngineError> {
    expect_feature("activation", raw.hidden_act.as_deref(), "silu")?;
    for (name, value) in [("attention_bias", raw.attention_bias), ("mlp_bias", raw.mlp_bias)] {
        if value == Some(true) {
            return Err(EngineError::FeatureUnsupported { feature: name.to_owned() });
        }
    }
    let hidden = dimension("hidden_size", raw.hidden_size)?;
    let heads = dimension("num_attention_heads", raw.num_attention_heads)?;
    if raw.head_dim.is_none() {
        divides("num_attention_heads", heads, "hidden_size", hidden)?;
    }
    let shape = DecoderShape {
        hidden,
        intermediate: dimension("intermediate_size", raw.intermediate_size)?,
        layers: dimension("num_hidden_layers", raw.num_hidden_layers)?,
        heads,
        key_value_heads: dimension("num_key_value_heads", raw.num_key_value_heads.or(Some(heads)))?,
        head_width: dimension("head_dim", raw.head_dim.or(Some(hidden / heads)))?,
        vocabulary: dimension("vocab_size", raw.vocab_size)?,
        norm_epsilon: raw.rms_norm_eps.unwrap_or(1e-6),
        rotary: read_rotary(raw.rope_theta, raw.rope_parameters.or(raw.rope_scaling))?,
        tied_embeddings: raw.tie_word_embeddings.unwrap_or(false),
    };
    divides("num_key_value_heads", shape.key_value_heads, "num_attention_heads", shape.heads)?;
    if !shape.head_width.is_multiple_of(2) {
        return Err(invalid("config.json", "`head_dim` is odd"));
    }
    let mut end_tokens = raw.eos_token_id.map(OneOrMany::into_vec).unwrap_or_default();
    if files.contains("generation_config.json") {
        let generation: RawGeneration = json(files, "generation_config.json")?;
        end_tokens = generation.eos_token_id.map(OneOrMany::into_vec).unwrap_or(end_tokens);
    }
    let context_tokens_max = dimension("max_position_embeddings", raw.max_position_embeddings)?;
    let vocabulary = shape.vocabulary;
    Ok(ModelConfig { shape: Shape::Decoder(shape), end_tokens, context_tokens_max, vocabulary })
}

fn read_rotary(theta: Option<f64>, rope: Option<RawRope>) -> Result<Rotary, EngineError> {
    let theta = rope.as_ref().and_then(|rope| rope.rope_theta).or(theta).unwrap_or(10_000.0);
    let Some(rope) = rope else { return Ok(Rotary { theta, stretch: None }) };
    match rope.rope_type.as_deref() {
        None | Some("default") => Ok(Rotary { theta, stretch: None }),
        Some("llama3") => {
            let need = |name: &str, value: Option<f64>| {
                value.filter(|v| *v > 0.0).ok_or_else(|| invalid("config.json", &format!("no `{name}`")))
            };
            Ok(Rotary {
                theta,
                stretch: Some(RotaryStretch {
                    factor: need("factor", rope.factor)?,
                    low_frequency_factor: need("low_freq_factor", rope.low_freq_factor)?,
                    high_frequency_factor: need("high_freq_factor", rope.high_freq_factor)?,
                    original_context: need(
                        "original_max_position_embeddings",
                        rope.original_max_position_embeddings,
                    )?,
                }),
            })
        }
        Some(other) => Err(EngineError::FeatureUnsupported { feature: format!("rope type `{other}`") }),
    }
}

/// Parses a JSON file of the model.
///
/// # Errors
/// [`EngineError`]: the file is missing or invalid.
pub fn json<T: DeserializeOwned>(files: &ModelFiles, path: &str) -> Result<T, EngineError> {
    serde_json::from_slice(files.read(path)?).map_err(|error| invalid(path, &error.to_string()))
}

fn invalid(path: &str, reason: &str) -> EngineError {
    EngineError::ConfigInvalid { path: path.to_owned(), reason: reason.to_owned() }
}

fn dimension(name: &str, value: Option<usize>) -> Result<usize, EngineError> {
    match value {
        None => Err(invalid("config.json", &format!("no `{name}`"))),
        Some(value) if value == 0 || value > DIMENSION_MAX => {
            Err(invalid("config.json", &format!("`{name}` is {value}, not within 1..={DIMENSION_MAX}")))
        }
        Some(value) => Ok(value),
    }
}

fn divides(part_name: &str, part: usize, whole_name: &str, whole: usize) -> Result<(), EngineError> {
    if whole.is_multiple_of(part) {
        return Ok(());
    }
    Err(invalid("config.json", &format!("`{part_name}` {part} does not divide `{whole_name}` {whole}")))
}

fn expect_feature(what: &str, found: Option<&str>, supported: &str) -> Result<(), EngineError> {
    match found {
        None => Ok(()),
        Some(found) if found == supported => Ok(()),
        Some(found) => Err(EngineError::FeatureUnsupported { feature: format!("the {what} `{found}`") }),
    }
}
