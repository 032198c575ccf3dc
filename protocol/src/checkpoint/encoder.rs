//! Encoder families: defaults and deviations of each, as their publishers' code has them.

use super::encoder_shape::{
    EncoderBiases, EncoderLayerShape, EncoderNames, EncoderOutput, EncoderShape, NormOrder, Pooling,
    PositionTable, ScoreActivation, ScoreHead, ScoreShape, VectorShape,
};
use super::fields::{
    CheckpointError, RawCheckpoint, bounded, dimension, divides, expect_feature, named_layers, positive,
};
use super::rotary::{self, RotaryKinds};
use super::sentence::SentenceModel;
use super::shape::Rotary;
use serde_json::Value;

/// Most layers: the largest published encoder of these families has 48.
const LAYERS_MAX: usize = 1024;
/// Labels of a classifier whose configuration names none, as in `transformers`.
const LABELS: usize = 2;

/// An encoder family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EncoderFamily {
    Bert,
    XlmRoberta,
    ModernBert,
}

/// All architectures: name, family, and whether it scores pairs.
pub(super) const FAMILIES: &[(&str, EncoderFamily, bool)] = &[
    ("BertModel", EncoderFamily::Bert, false),
    ("BertForSequenceClassification", EncoderFamily::Bert, true),
    ("XLMRobertaModel", EncoderFamily::XlmRoberta, false),
    ("XLMRobertaForSequenceClassification", EncoderFamily::XlmRoberta, true),
    ("ModernBertModel", EncoderFamily::ModernBert, false),
    ("ModernBertForSequenceClassification", EncoderFamily::ModernBert, true),
];

/// Reads the shape of an encoder, and its longest context in tokens.
pub(super) fn read(
    (family, is_scoring): (EncoderFamily, bool),
    raw: &RawCheckpoint,
    sentence: &SentenceModel,
) -> Result<(EncoderShape, usize), CheckpointError> {
    refuse_unsupported(family, raw)?;
    let hidden = dimension("hidden_size", raw.hidden_size)?;
    let heads = dimension("num_attention_heads", raw.num_attention_heads)?;
    divides("num_attention_heads", heads, "hidden_size", hidden)?;
    let vocabulary = dimension("vocab_size", raw.vocab_size)?;
    let rows = dimension("max_position_embeddings", raw.max_position_embeddings)?;
    let (positions, context) = positions(family, raw, rows, vocabulary)?;
    let is_modern = family == EncoderFamily::ModernBert;
    let (layers, rotaries, context) = match is_modern {
        true => modern_layers(raw, hidden / heads, context)?,
        false => (plain_layers(raw)?, Vec::new(), context),
    };
    let token_types = match is_modern {
        true => 0,
        false => dimension("type_vocab_size", raw.type_vocab_size.or(Some(2)))?,
    };
    let shape = EncoderShape {
        hidden,
        intermediate: dimension("intermediate_size", raw.intermediate_size)?,
        heads,
        vocabulary,
        layers,
        rotaries,
        positions,
        token_types,
        has_typed_pairs: family == EncoderFamily::Bert,
        norm_epsilon: epsilon(family, raw)?,
        norms: if is_modern { NormOrder::Before } else { NormOrder::After },
        biases: EncoderBiases {
            attention: !is_modern || raw.attention_bias == Some(true),
            feed_forward: !is_modern || raw.mlp_bias == Some(true),
            norms: !is_modern || raw.norm_bias == Some(true),
        },
        is_gated: is_modern,
        names: match family {
            EncoderFamily::Bert => EncoderNames::Bert,
            EncoderFamily::XlmRoberta => EncoderNames::XlmRoberta,
            EncoderFamily::ModernBert => EncoderNames::ModernBert,
        },
        output: match is_scoring {
            true => EncoderOutput::Score(score(family, raw)?),
            // The default of sentence-transformers for a bare encoder.
            false => EncoderOutput::Vector(
                sentence.vector.unwrap_or(VectorShape { pooling: Pooling::Mean, is_normalized: false }),
            ),
        },
    };
    if is_scoring && shape.has_typed_pairs && token_types < 2 {
        return Err(CheckpointError::invalid("`type_vocab_size` is 1, but pairs have two types"));
    }
    assert!(shape.hidden.is_multiple_of(shape.heads), "heads are of one width");
    let has_rotary =
        |layer: &EncoderLayerShape| layer.rotary.is_none_or(|index| index < shape.rotaries.len());
    assert!(shape.layers.iter().all(has_rotary), "rotaries exist");
    Ok((shape, context))
}

/// Refuses fields that would change the mathematics in a way that is not implemented.
fn refuse_unsupported(family: EncoderFamily, raw: &RawCheckpoint) -> Result<(), CheckpointError> {
    let activation = match family {
        EncoderFamily::ModernBert => raw.hidden_activation.as_deref(),
        _ => raw.hidden_act.as_deref(),
    };
    expect_feature("activation", activation, "gelu")?;
    // ModernBERT's publisher writes the field too, and ignores it.
    expect_feature("position embedding", raw.position_embedding_type.as_deref(), "absolute")?;
    if raw.is_decoder == Some(true) {
        return Err(CheckpointError::unsupported("`is_decoder`"));
    }
    if raw.add_cross_attention == Some(true) {
        return Err(CheckpointError::unsupported("`add_cross_attention`"));
    }
    Ok(())
}

/// Returns the table of positions, and the tokens that fit it.
fn positions(
    family: EncoderFamily,
    raw: &RawCheckpoint,
    rows: usize,
    vocabulary: usize,
) -> Result<(Option<PositionTable>, usize), CheckpointError> {
    match family {
        EncoderFamily::ModernBert => Ok((None, rows)),
        EncoderFamily::Bert => Ok((Some(PositionTable { rows, padding: None }), rows)),
        EncoderFamily::XlmRoberta => {
            let given = raw.pad_token_id.unwrap_or(1);
            let padding = u32::try_from(given).ok().filter(|id| {
                let id = *id as usize;
                id < vocabulary && id + 1 < rows
            });
            let Some(padding) = padding else {
                let reason = format!("`pad_token_id` is {given}, which leaves no row for a position");
                return Err(CheckpointError::invalid(reason));
            };
            let context = rows - padding as usize - 1;
            assert!(context > 0, "a row is left");
            Ok((Some(PositionTable { rows, padding: Some(padding) }), context))
        }
    }
}

fn plain_layers(raw: &RawCheckpoint) -> Result<Vec<EncoderLayerShape>, CheckpointError> {
    let count = bounded("num_hidden_layers", raw.num_hidden_layers, LAYERS_MAX)?;
    assert!(count > 0, "a model has a layer");
    Ok(vec![EncoderLayerShape { reach: None, rotary: None, has_attention_norm: true }; count])
}

/// Reads ModernBERT's layers: every third sees all positions, and the others a window around each. The first
/// has no norm before its attention, because the embeddings have one.
fn modern_layers(
    raw: &RawCheckpoint,
    head_width: usize,
    context: usize,
) -> Result<(Vec<EncoderLayerShape>, Vec<Rotary>, usize), CheckpointError> {
    if !head_width.is_multiple_of(2) {
        return Err(CheckpointError::invalid("the width of a head is odd"));
    }
    let count = bounded("num_hidden_layers", raw.num_hidden_layers, LAYERS_MAX)?;
    let every =
        bounded("global_attn_every_n_layers", raw.global_attn_every_n_layers.or(Some(3)), LAYERS_MAX)?;
    let window = dimension("local_attention", raw.local_attention.or(Some(128)))?;
    let global = base("global_rope_theta", raw.global_rope_theta.unwrap_or(160_000.0))?;
    // Absent is the family's default, and `null` is the base of the other layers.
    let local = base("local_rope_theta", raw.local_rope_theta.unwrap_or(Some(10_000.0)).unwrap_or(global))?;
    let RotaryKinds { global, local, context } = rotary::read(raw, global, Some(local), context)?;
    let usual = (0..count).map(|index| !index.is_multiple_of(every)).collect();
    let locals: Vec<bool> = named_layers(raw, count)?.unwrap_or(usual);
    let layer = |(index, is_local): (usize, bool)| EncoderLayerShape {
        reach: is_local.then_some(window / 2),
        rotary: Some(usize::from(is_local)),
        has_attention_norm: index > 0,
    };
    let layers = locals.into_iter().enumerate().map(layer).collect();
    let rotaries: Vec<Rotary> = std::iter::once(global).chain(local).collect();
    assert_eq!(rotaries.len(), 2, "one for each kind of layer");
    Ok((layers, rotaries, context))
}

/// Checks the base of a rotary embedding.
fn base(name: &str, theta: f64) -> Result<f64, CheckpointError> {
    let theta = positive(name, Some(theta))?;
    if theta <= 1.0 {
        return Err(CheckpointError::invalid(format!("`{name}` is {theta}, not above 1")));
    }
    assert!(theta.is_finite(), "a base is a number");
    Ok(theta)
}

fn epsilon(family: EncoderFamily, raw: &RawCheckpoint) -> Result<f32, CheckpointError> {
    let (name, given, default) = match family {
        EncoderFamily::ModernBert => ("norm_eps", raw.norm_eps, 1e-5),
        _ => ("layer_norm_eps", raw.layer_norm_eps, 1e-12),
    };
    let epsilon = given.unwrap_or(default);
    positive(name, Some(epsilon.into())).map(|_| epsilon)
}

/// Reads the head of a cross-encoder: one label, and the score's function as sentence-transformers has it.
fn score(family: EncoderFamily, raw: &RawCheckpoint) -> Result<ScoreShape, CheckpointError> {
    let named = raw.id2label.as_ref().and_then(Value::as_object).map(serde_json::Map::len);
    let labels = named.or(raw.num_labels).unwrap_or(LABELS);
    if labels != 1 {
        return Err(CheckpointError::unsupported(format!("a classifier of {labels} labels")));
    }
    let (head, pooling) = match family {
        EncoderFamily::Bert => (ScoreHead::Pooler, Pooling::First),
        EncoderFamily::XlmRoberta => (ScoreHead::Projection, Pooling::First),
        EncoderFamily::ModernBert => {
            expect_feature("classifier activation", raw.classifier_activation.as_deref(), "gelu")?;
            let pooling = match raw.classifier_pooling.as_deref() {
                None | Some("cls") => Pooling::First,
                Some("mean") => Pooling::Mean,
                Some(other) => {
                    return Err(CheckpointError::unsupported(format!("the classifier pooling `{other}`")));
                }
            };
            (ScoreHead::Prediction { is_biased: raw.classifier_bias == Some(true) }, pooling)
        }
    };
    let newer = raw.sentence_transformers.as_ref().and_then(|fields| fields["activation_fn"].as_str());
    let named = newer.or(raw.sbert_ce_default_activation_function.as_deref());
    let activation = match named.map(|name| name.rsplit('.').next().unwrap_or_default()) {
        None | Some("Sigmoid") => ScoreActivation::Sigmoid,
        Some("Identity") => ScoreActivation::Identity,
        Some(other) => return Err(CheckpointError::unsupported(format!("the score function `{other}`"))),
    };
    Ok(ScoreShape { pooling, head, activation })
}
