//! A BERT encoder in candle tensors: texts padded to the longest, padding masked.

use super::super::config::{EncoderNames, EncoderOutput, EncoderShape, Pooling, VectorShape};
use super::NamedTensors;
use candle_core::{D, Device, Result, Tensor};
use candle_nn::ops::softmax;

/// Returns names and shapes of all parameters, as bare checkpoints store them.
#[must_use]
pub fn parameters(shape: &EncoderShape) -> Vec<(String, Vec<usize>)> {
    let (hidden, inner) = (shape.hidden, shape.intermediate);
    let positions = shape.positions.map_or(0, |table| table.rows);
    let mut all = vec![
        ("embeddings.word_embeddings.weight".to_owned(), vec![shape.vocabulary, hidden]),
        ("embeddings.position_embeddings.weight".to_owned(), vec![positions, hidden]),
        ("embeddings.token_type_embeddings.weight".to_owned(), vec![shape.token_types, hidden]),
        ("embeddings.LayerNorm.weight".to_owned(), vec![hidden]),
        ("embeddings.LayerNorm.bias".to_owned(), vec![hidden]),
    ];
    for layer in 0..shape.layers.len() {
        let mut add = |name: &str, outputs: usize, inputs: Option<usize>| {
            let at = format!("encoder.layer.{layer}.{name}");
            let weight = inputs.map_or(vec![outputs], |inputs| vec![outputs, inputs]);
            all.push((format!("{at}.weight"), weight));
            all.push((format!("{at}.bias"), vec![outputs]));
        };
        for name in ["attention.self.query", "attention.self.key", "attention.self.value"] {
            add(name, hidden, Some(hidden));
        }
        add("attention.output.dense", hidden, Some(hidden));
        add("attention.output.LayerNorm", hidden, None);
        add("intermediate.dense", inner, Some(hidden));
        add("output.dense", hidden, Some(inner));
        add("output.LayerNorm", hidden, None);
    }
    all
}

/// Returns the first property of a shape that is no BERT's.
#[must_use]
pub fn unsupported(shape: &EncoderShape) -> Option<&'static str> {
    match (shape.names, &shape.output) {
        (EncoderNames::XlmRoberta | EncoderNames::ModernBert, _) => Some("another encoder than BERT"),
        (EncoderNames::Bert, EncoderOutput::Score(_)) => Some("a cross-encoder"),
        (EncoderNames::Bert, EncoderOutput::Vector(VectorShape { pooling: Pooling::Last, .. })) => {
            Some("pooling by the last position")
        }
        (EncoderNames::Bert, EncoderOutput::Vector(_)) => None,
    }
}

/// A BERT encoder: dimensions and parameters.
#[derive(Debug)]
pub struct Bert {
    shape: EncoderShape,
    tensors: NamedTensors,
}

impl Bert {
    /// Builds the encoder over these parameters.
    #[must_use]
    pub fn new(shape: &EncoderShape, tensors: NamedTensors) -> Self {
        Self { shape: shape.clone(), tensors }
    }

    /// Computes one row per text.
    ///
    /// # Errors
    /// The device failed.
    pub fn embed(&self, texts: &[Vec<u32>], device: &Device) -> Result<Tensor> {
        let shape = &self.shape;
        let length = texts.iter().map(Vec::len).max().unwrap_or(0);
        let padded = |text: &Vec<u32>, index: usize| text.get(index).copied().unwrap_or(0);
        let tokens: Vec<u32> =
            texts.iter().flat_map(|text| (0..length).map(move |index| padded(text, index))).collect();
        let real: Vec<f32> = texts
            .iter()
            .flat_map(|text| (0..length).map(move |index| if index < text.len() { 1.0 } else { 0.0 }))
            .collect();
        let real = Tensor::from_vec(real, (texts.len(), length, 1), device)?;
        // Far below any score, so that padding gets no attention, and finite, so that nothing becomes NaN.
        let mask = ((&real - 1.0)? * 1e9)?.reshape((texts.len(), 1, 1, length))?;
        let words =
            self.get("embeddings.word_embeddings.weight")?.index_select(&Tensor::new(tokens, device)?, 0)?;
        let words = words.reshape((texts.len(), length, shape.hidden))?;
        let places = self.get("embeddings.position_embeddings.weight")?.narrow(0, 0, length)?;
        let kind = self.get("embeddings.token_type_embeddings.weight")?.narrow(0, 0, 1)?;
        let mut states = words.broadcast_add(&places.broadcast_add(&kind)?)?;
        states = self.norm(&states, "embeddings.LayerNorm")?;
        for layer in 0..shape.layers.len() {
            states = self.run_layer(&states, &mask, &format!("encoder.layer.{layer}"))?;
        }
        let EncoderOutput::Vector(VectorShape { pooling, is_normalized }) = shape.output else {
            return Err(candle_core::Error::msg("a cross-encoder makes no vectors"));
        };
        let vectors = match pooling {
            Pooling::First => states.narrow(1, 0, 1)?.squeeze(1)?,
            Pooling::Mean => states.broadcast_mul(&real)?.sum(1)?.broadcast_div(&real.sum(1)?)?,
            Pooling::Last => return Err(candle_core::Error::msg("no pooling by the last position")),
        };
        if !is_normalized {
            return Ok(vectors);
        }
        let lengths = vectors.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?.maximum(1e-12)?;
        vectors.broadcast_div(&lengths)
    }

    fn run_layer(&self, states: &Tensor, mask: &Tensor, at: &str) -> Result<Tensor> {
        let (texts, length, hidden) = states.dims3()?;
        let width = hidden / self.shape.heads;
        let heads = |name: &str| {
            self.dense(states, &format!("{at}.attention.self.{name}"))?
                .reshape((texts, length, self.shape.heads, width))?
                .transpose(1, 2)?
                .contiguous()
        };
        let (query, key, value) = (heads("query")?, heads("key")?, heads("value")?);
        let scores = (query.matmul(&key.transpose(2, 3)?.contiguous()?)? / (width as f64).sqrt())?;
        let mixed = softmax(&scores.broadcast_add(mask)?, D::Minus1)?.matmul(&value)?;
        let mixed = mixed.transpose(1, 2)?.contiguous()?.reshape((texts, length, hidden))?;
        let projected = self.dense(&mixed, &format!("{at}.attention.output.dense"))?;
        let attended = self.norm(&(projected + states)?, &format!("{at}.attention.output.LayerNorm"))?;
        let inner = self.dense(&attended, &format!("{at}.intermediate.dense"))?.gelu_erf()?;
        let contracted = self.dense(&inner, &format!("{at}.output.dense"))?;
        self.norm(&(contracted + attended)?, &format!("{at}.output.LayerNorm"))
    }

    fn get(&self, name: &str) -> Result<&Tensor> {
        self.tensors.get(name).ok_or_else(|| candle_core::Error::msg(format!("no tensor `{name}`")))
    }

    fn dense(&self, input: &Tensor, at: &str) -> Result<Tensor> {
        let weight = self.get(&format!("{at}.weight"))?.t()?;
        input.broadcast_matmul(&weight)?.broadcast_add(self.get(&format!("{at}.bias"))?)
    }

    fn norm(&self, states: &Tensor, at: &str) -> Result<Tensor> {
        let centred = states.broadcast_sub(&states.mean_keepdim(D::Minus1)?)?;
        let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
        let scaled = centred.broadcast_div(&(variance + f64::from(self.shape.norm_epsilon))?.sqrt()?)?;
        scaled
            .broadcast_mul(self.get(&format!("{at}.weight"))?)?
            .broadcast_add(self.get(&format!("{at}.bias"))?)
    }
}
