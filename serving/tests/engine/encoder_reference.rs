//! An independent encoder: plain loops in double precision over `config.json` and named tensors, one text at
//! a time, without a shape.

use crate::published_encoders::EncoderCase;
use crate::reference::Reference;

/// Returns the vector or, as its only number, the score of a text. The second type of a pair begins at
/// `second`.
pub(crate) fn result(case: &EncoderCase, tokens: &[u32], second: usize) -> Vec<f64> {
    let tensors = case.tensors();
    let config = &case.config;
    let second = if case.is_scoring() { second } else { tokens.len() };
    if case.architecture().ends_with("ForCausalLM") {
        let prefixed = tensors.into_iter().map(|(name, values)| match name.starts_with("model.") {
            true => (name, values),
            false => (format!("model.{name}"), values),
        });
        let tensors = prefixed.collect();
        return pooled(case, &Reference { config, tensors: &tensors }.states(tokens));
    }
    let encoder = EncoderReference { plain: Reference { config, tensors: &tensors } };
    let states = encoder.states(tokens, second);
    if case.is_scoring() { vec![encoder.score(&states)] } else { pooled(case, &states) }
}

fn mean(states: &[Vec<f64>]) -> Vec<f64> {
    let sum = |index: usize| states.iter().map(|state| state[index]).sum::<f64>();
    (0..states[0].len()).map(|index| sum(index) / states.len() as f64).collect()
}

fn pooled(case: &EncoderCase, states: &[Vec<f64>]) -> Vec<f64> {
    let (mode, is_normalized) = case.modules.expect("modules");
    let vector = match mode {
        "mean" => mean(states),
        "cls" => states[0].clone(),
        _ => states[states.len() - 1].clone(),
    };
    if !is_normalized {
        return vector;
    }
    let length = vector.iter().map(|x| x * x).sum::<f64>().sqrt();
    vector.into_iter().map(|x| x / length).collect()
}

struct EncoderReference<'a> {
    plain: Reference<'a>,
}

impl EncoderReference<'_> {
    fn is_modern(&self) -> bool {
        self.plain.architecture().starts_with("ModernBert")
    }

    /// Returns the whole name of a part of the encoder.
    fn at(&self, name: &str) -> String {
        let architecture = self.plain.architecture();
        let root = match architecture.ends_with("ForSequenceClassification") {
            false => "",
            true if self.is_modern() => "model.",
            true if architecture.starts_with("XLM") => "roberta.",
            true => "bert.",
        };
        format!("{root}{name}")
    }

    fn norm(&self, prefix: &str, input: &[f64]) -> Vec<f64> {
        let name = if self.is_modern() { "norm_eps" } else { "layer_norm_eps" };
        let epsilon = self.plain.number(name).expect("an epsilon");
        let mean = input.iter().sum::<f64>() / input.len() as f64;
        let variance = input.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / input.len() as f64;
        let weight = self.plain.tensor(&format!("{prefix}.weight"));
        let bias = match self.plain.tensors.contains_key(&format!("{prefix}.bias")) {
            true => self.plain.tensor(&format!("{prefix}.bias")),
            false => vec![0.0; input.len()],
        };
        let scaled = |(index, x): (usize, &f64)| {
            (x - mean) / (variance + epsilon).sqrt() * weight[index] + bias[index]
        };
        input.iter().enumerate().map(scaled).collect()
    }

    /// Returns the states before the first layer.
    fn embedded(&self, tokens: &[u32], second: usize) -> Vec<Vec<f64>> {
        let hidden = self.plain.size("hidden_size");
        let table = |name: &str| self.plain.tensor(&format!("{}.weight", self.at(name)));
        let row = |table: &[f64], index: usize| table[index * hidden..][..hidden].to_vec();
        if self.is_modern() {
            let words = table("embeddings.tok_embeddings");
            let norm = self.at("embeddings.norm");
            return tokens.iter().map(|token| self.norm(&norm, &row(&words, *token as usize))).collect();
        }
        let words = table("embeddings.word_embeddings");
        let (places, kinds) =
            (table("embeddings.position_embeddings"), table("embeddings.token_type_embeddings"));
        let is_roberta = self.plain.architecture().starts_with("XLM");
        let padding = self.plain.size("pad_token_id");
        let norm = self.at("embeddings.LayerNorm");
        let one = |(index, token): (usize, &u32)| {
            let others = tokens[..index].iter().filter(|token| **token as usize != padding).count();
            let place = match is_roberta {
                false => index,
                true if *token as usize == padding => padding,
                true => padding + 1 + others,
            };
            let kind = usize::from(!is_roberta && index >= second);
            let parts = [row(&words, *token as usize), row(&places, place), row(&kinds, kind)];
            let sum: Vec<f64> = (0..hidden).map(|i| parts.iter().map(|part| part[i]).sum::<f64>()).collect();
            self.norm(&norm, &sum)
        };
        tokens.iter().enumerate().map(one).collect()
    }

    /// Returns queries, keys and values of all positions, rotated where the family does.
    fn heads(&self, layer: usize, states: &[Vec<f64>]) -> [Vec<Vec<f64>>; 3] {
        let hidden = self.plain.size("hidden_size");
        if !self.is_modern() {
            return ["query", "key", "value"].map(|part| {
                let name = self.at(&format!("encoder.layer.{layer}.attention.self.{part}"));
                states.iter().map(|state| self.plain.product(&name, state)).collect()
            });
        }
        let width = hidden / self.plain.size("num_attention_heads");
        let theta = if self.is_local(layer) { "local_rope_theta" } else { "global_rope_theta" };
        let theta = self.plain.number(theta).expect("a base");
        let name = self.at(&format!("layers.{layer}.attn.Wqkv"));
        let all: Vec<Vec<f64>> = states.iter().map(|state| self.plain.product(&name, state)).collect();
        let turned = |position: usize, head: &[f64]| -> Vec<f64> {
            let half = width / 2;
            let one = |i: usize| {
                let angle = position as f64 * theta.powf(-2.0 * (i % half) as f64 / width as f64);
                let other = if i < half { -head[i + half] } else { head[i - half] };
                head[i] * angle.cos() + other * angle.sin()
            };
            (0..width).map(one).collect()
        };
        [0, 1, 2].map(|part| {
            let one = |(position, row): (usize, &Vec<f64>)| -> Vec<f64> {
                let row = &row[part * hidden..][..hidden];
                let head = |head: &[f64]| if part == 2 { head.to_vec() } else { turned(position, head) };
                row.chunks_exact(width).flat_map(head).collect()
            };
            all.iter().enumerate().map(one).collect()
        })
    }

    fn is_local(&self, layer: usize) -> bool {
        self.is_modern() && !layer.is_multiple_of(self.plain.size("global_attn_every_n_layers"))
    }

    /// Computes attention of all positions, before its output projection.
    fn attention(&self, layer: usize, states: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let [query, key, value] = self.heads(layer, states);
        let heads = self.plain.size("num_attention_heads");
        let width = self.plain.size("hidden_size") / heads;
        let reach = match self.is_local(layer) {
            true => self.plain.size("local_attention") / 2,
            false => usize::MAX,
        };
        let one = |position: usize| -> Vec<f64> {
            let seen: Vec<usize> =
                (0..states.len()).filter(|other| other.abs_diff(position) <= reach).collect();
            let mixed = |index: usize| -> f64 {
                let head = index / width * width..(index / width + 1) * width;
                let score = |other: &usize| -> f64 {
                    let pairs = query[position][head.clone()].iter().zip(&key[*other][head.clone()]);
                    (pairs.map(|(a, b)| a * b).sum::<f64>() / (width as f64).sqrt()).exp()
                };
                let weights: Vec<f64> = seen.iter().map(score).collect();
                let total: f64 = weights.iter().sum();
                seen.iter().zip(&weights).map(|(other, weight)| value[*other][index] * weight / total).sum()
            };
            (0..heads * width).map(mixed).collect()
        };
        (0..states.len()).map(one).collect()
    }

    fn feed_forward(&self, layer: usize, state: &[f64]) -> Vec<f64> {
        if !self.is_modern() {
            let at = |name: &str| self.at(&format!("encoder.layer.{layer}.{name}"));
            let inner = self.plain.product(&at("intermediate.dense"), state);
            let inner: Vec<f64> = inner.into_iter().map(gelu).collect();
            return self.plain.product(&at("output.dense"), &inner);
        }
        let at = |name: &str| self.at(&format!("layers.{layer}.mlp.{name}"));
        let both = self.plain.product(&at("Wi"), state);
        let (inner, gate) = both.split_at(both.len() / 2);
        let inner: Vec<f64> = inner.iter().zip(gate).map(|(x, gate)| gelu(*x) * gate).collect();
        self.plain.product(&at("Wo"), &inner)
    }

    /// Returns the states after the last layer, and the last norm if there is one.
    fn states(&self, tokens: &[u32], second: usize) -> Vec<Vec<f64>> {
        let add = |a: &[f64], b: &[f64]| -> Vec<f64> { a.iter().zip(b).map(|(a, b)| a + b).collect() };
        let mut states = self.embedded(tokens, second);
        for layer in 0..self.plain.size("num_hidden_layers") {
            if self.is_modern() {
                let at = |name: &str| self.at(&format!("layers.{layer}.{name}"));
                let normed = |state: &Vec<f64>| match layer {
                    0 => state.clone(),
                    _ => self.norm(&at("attn_norm"), state),
                };
                let input: Vec<Vec<f64>> = states.iter().map(normed).collect();
                for (state, mixed) in states.iter_mut().zip(self.attention(layer, &input)) {
                    *state = add(state, &self.plain.product(&at("attn.Wo"), &mixed));
                    let part = self.feed_forward(layer, &self.norm(&at("mlp_norm"), state));
                    *state = add(state, &part);
                }
            } else {
                let at = |name: &str| self.at(&format!("encoder.layer.{layer}.{name}"));
                let mixed = self.attention(layer, &states);
                for (state, mixed) in states.iter_mut().zip(mixed) {
                    let part = self.plain.product(&at("attention.output.dense"), &mixed);
                    *state = self.norm(&at("attention.output.LayerNorm"), &add(state, &part));
                    let part = self.feed_forward(layer, state);
                    *state = self.norm(&at("output.LayerNorm"), &add(state, &part));
                }
            }
        }
        match self.is_modern() {
            true => states.iter().map(|state| self.norm(&self.at("final_norm"), state)).collect(),
            false => states,
        }
    }

    /// Returns the score of a pair.
    fn score(&self, states: &[Vec<f64>]) -> f64 {
        let first = &states[0];
        let tanh = |inner: Vec<f64>| inner.into_iter().map(f64::tanh).collect::<Vec<_>>();
        let (inner, classifier) = if self.is_modern() {
            let is_mean = self.plain.config["classifier_pooling"] == "mean";
            let input = if is_mean { mean(states) } else { first.clone() };
            let inner: Vec<f64> = self.plain.product("head.dense", &input).into_iter().map(gelu).collect();
            (self.norm("head.norm", &inner), "classifier")
        } else if self.plain.architecture().starts_with("XLM") {
            (tanh(self.plain.product("classifier.dense", first)), "classifier.out_proj")
        } else {
            (tanh(self.plain.product("bert.pooler.dense", first)), "classifier")
        };
        let score = self.plain.product(classifier, &inner)[0];
        let is_plain = self.plain.config["sentence_transformers"].is_object();
        if is_plain { score } else { 1.0 / (1.0 + (-score).exp()) }
    }
}

/// Returns x times the normal distribution function at x, whose density is integrated by Simpson's rule.
fn gelu(x: f64) -> f64 {
    let density = |t: f64| (-t * t / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt();
    let steps = 200;
    let width = x / f64::from(steps);
    let inner = (1..steps).map(|i| density(f64::from(i) * width) * if i % 2 == 1 { 4.0 } else { 2.0 });
    let integral = (density(0.0) + density(x) + inner.sum::<f64>()) * width / 3.0;
    x * (0.5 + integral)
}
