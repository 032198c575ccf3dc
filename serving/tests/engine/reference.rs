//! An independent decoder: plain loops in double precision over `config.json` and named tensors, without a
//! cache, a batch or a shape.

use crate::published::{Tensors, networks, router};
use serde_json::Value;
use std::f64::consts::PI;

/// A model as it is published.
pub(crate) struct Reference<'a> {
    pub(crate) config: &'a Value,
    pub(crate) tensors: &'a Tensors,
}

impl Reference<'_> {
    pub(crate) fn number(&self, name: &str) -> Option<f64> {
        self.config[name].as_f64()
    }

    pub(crate) fn size(&self, name: &str) -> usize {
        self.number(name).expect("a number") as usize
    }

    pub(crate) fn architecture(&self) -> &str {
        self.config["architectures"][0].as_str().expect("a name")
    }

    fn is_gemma(&self) -> bool {
        self.architecture().starts_with("Gemma")
    }

    fn width(&self) -> usize {
        let usual = self.size("hidden_size") / self.size("num_attention_heads");
        self.number("head_dim").map_or(usual, |width| width as usize)
    }

    pub(crate) fn tensor(&self, name: &str) -> Vec<f64> {
        let values = self.tensors.get(name).unwrap_or_else(|| panic!("tensor {name}"));
        values.iter().map(|value| f64::from(*value)).collect()
    }

    /// Multiplies by `{prefix}.weight` and adds `{prefix}.bias`, if there is one.
    pub(crate) fn product(&self, prefix: &str, input: &[f64]) -> Vec<f64> {
        let weight = self.tensor(&format!("{prefix}.weight"));
        let mut output: Vec<f64> = weight
            .chunks_exact(input.len())
            .map(|row| row.iter().zip(input).map(|(weight, x)| weight * x).sum())
            .collect();
        if self.tensors.contains_key(&format!("{prefix}.bias")) {
            let bias = self.tensor(&format!("{prefix}.bias"));
            output.iter_mut().zip(bias).for_each(|(output, bias)| *output += bias);
        }
        output
    }

    fn norm(&self, prefix: &str, input: &[f64]) -> Vec<f64> {
        let square = input.iter().map(|x| x * x).sum::<f64>() / input.len() as f64;
        let root = (square + self.number("rms_norm_eps").expect("an epsilon")).sqrt();
        let offset = if self.is_gemma() { 1.0 } else { 0.0 };
        let weight = self.tensor(&format!("{prefix}.weight"));
        input.iter().zip(weight).map(|(x, weight)| x / root * (weight + offset)).collect()
    }

    /// Returns how many positions a layer sees, if not all.
    fn window(&self, layer: usize) -> Option<usize> {
        let window = self.number("sliding_window").map(|window| window as usize);
        let is_local = match self.architecture() {
            "MistralForCausalLM" | "MixtralForCausalLM" => true,
            "Qwen2ForCausalLM" | "Qwen3ForCausalLM" => {
                let from = self.number("max_window_layers").unwrap_or(28.0) as usize;
                self.config["use_sliding_window"] == true && layer >= from
            }
            "Gemma2ForCausalLM" => layer.is_multiple_of(2),
            "Gemma3ForCausalLM" => !(layer + 1).is_multiple_of(self.size("sliding_window_pattern")),
            _ => false,
        };
        window.filter(|_| is_local)
    }

    /// Returns a layer's angles per position, and the factor of cosines and sines.
    fn angles(&self, layer: usize) -> (Vec<f64>, f64) {
        let width = self.width() as f64;
        let is_local = self.architecture() == "Gemma3ForCausalLM" && self.window(layer).is_some();
        let theta = if is_local { "rope_local_base_freq" } else { "rope_theta" };
        let theta = self.number(theta).expect("a base");
        let plain: Vec<f64> = (0..self.width() / 2).map(|i| theta.powf(-2.0 * i as f64 / width)).collect();
        let rope = &self.config["rope_scaling"];
        let number = |name: &str| rope[name].as_f64();
        let kind = rope["rope_type"].as_str().or(rope["type"].as_str());
        let Some(kind) = kind.filter(|_| !is_local) else { return (plain, 1.0) };
        let factor = number("factor").expect("a factor");
        let original = number("original_max_position_embeddings");
        match kind {
            "linear" => (plain.iter().map(|x| x / factor).collect(), 1.0),
            "llama3" => {
                let original = original.expect("a context");
                let (low, high) =
                    (number("low_freq_factor").expect("low"), number("high_freq_factor").expect("high"));
                let scaled = |x: &f64| {
                    let wave = 2.0 * PI / x;
                    if wave < original / high {
                        return *x;
                    }
                    if wave > original / low {
                        return x / factor;
                    }
                    let smooth = (original / wave - low) / (high - low);
                    (1.0 - smooth) * x / factor + smooth * x
                };
                (plain.iter().map(scaled).collect(), 1.0)
            }
            "yarn" => {
                let original = original.expect("a context");
                let of = |turns: f64| width * (original / (turns * 2.0 * PI)).ln() / (2.0 * theta.ln());
                let (low, high) = (of(32.0).floor().max(0.0), of(1.0).ceil().min(width - 1.0));
                let scaled = |(index, x): (usize, &f64)| {
                    let ramp = ((index as f64 - low) / (high - low)).clamp(0.0, 1.0);
                    x / factor * ramp + x * (1.0 - ramp)
                };
                let magnitude = 0.1 * factor.ln() + 1.0;
                (plain.iter().enumerate().map(scaled).collect(), magnitude)
            }
            _ => (plain, 1.0),
        }
    }

    /// Returns the heads of a projection, normalised and rotated as the family does.
    fn heads(&self, layer: usize, part: &str, states: &[Vec<f64>]) -> Vec<Vec<Vec<f64>>> {
        let at = format!("model.layers.{layer}.self_attn");
        let (angles, magnitude) = self.angles(layer);
        let half = self.width() / 2;
        let norm = format!("{at}.{part}_norm");
        let one = |(position, state): (usize, &Vec<f64>)| -> Vec<Vec<f64>> {
            let projected = self.product(&format!("{at}.{part}_proj"), state);
            let head = |head: &[f64]| -> Vec<f64> {
                if part == "v" {
                    return head.to_vec();
                }
                let is_normed = self.tensors.contains_key(&format!("{norm}.weight"));
                let head = if is_normed { self.norm(&norm, head) } else { head.to_vec() };
                let turned = |i: usize| {
                    let (sine, cosine) = (position as f64 * angles[i % half]).sin_cos();
                    let other = if i < half { -head[i + half] } else { head[i - half] };
                    (head[i] * cosine + other * sine) * magnitude
                };
                (0..head.len()).map(turned).collect()
            };
            projected.chunks_exact(self.width()).map(head).collect()
        };
        states.iter().enumerate().map(one).collect()
    }

    /// Computes attention of all positions, before its output projection.
    fn attention(&self, layer: usize, states: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let [query, key, value] = ["q", "k", "v"].map(|part| self.heads(layer, part, states));
        let heads = self.size("num_attention_heads");
        let group = heads / self.size("num_key_value_heads");
        let width = self.width() as f64;
        let scalar =
            if self.is_gemma() { self.number("query_pre_attn_scalar").expect("a scalar") } else { width };
        let cap = self.number("attn_logit_softcapping");
        let window = self.window(layer).unwrap_or(usize::MAX);
        let one = |position: usize| -> Vec<f64> {
            let first = (position + 1).saturating_sub(window);
            (0..heads)
                .flat_map(|head| {
                    let score = |other: usize| {
                        let pairs = query[position][head].iter().zip(&key[other][head / group]);
                        let score = pairs.map(|(a, b)| a * b).sum::<f64>() / scalar.sqrt();
                        cap.map_or(score, |cap| (score / cap).tanh() * cap).exp()
                    };
                    let weights: Vec<f64> = (first..=position).map(score).collect();
                    let total: f64 = weights.iter().sum();
                    let mixed = |i: usize| -> f64 {
                        let values = (first..=position).map(|other| value[other][head / group][i]);
                        values.zip(&weights).map(|(value, weight)| value * weight / total).sum()
                    };
                    (0..self.width()).map(mixed).collect::<Vec<_>>()
                })
                .collect()
        };
        (0..states.len()).map(one).collect()
    }

    fn network(&self, prefix: &str, [gate, up, down]: [&str; 3], state: &[f64]) -> Vec<f64> {
        let activation = |x: f64| match self.is_gemma() {
            true => 0.5 * x * (1.0 + ((2.0 / PI).sqrt() * (x + 0.044_715 * x.powi(3))).tanh()),
            false => x / (1.0 + (-x).exp()),
        };
        let gate = self.product(&format!("{prefix}.{gate}"), state);
        let up = self.product(&format!("{prefix}.{up}"), state);
        let inner: Vec<f64> = gate.iter().zip(up).map(|(gate, up)| activation(*gate) * up).collect();
        self.product(&format!("{prefix}.{down}"), &inner)
    }

    fn feed_forward(&self, layer: usize, state: &[f64]) -> Vec<f64> {
        let at = |name: &str| format!("model.layers.{layer}.{name}");
        let networks = networks(self.config, layer);
        let Some((name, _)) = router(self.config, layer) else {
            return self.network(&at(&networks[0].0), networks[0].1, state);
        };
        let scores: Vec<f64> = self.product(&at(name), state).into_iter().map(f64::exp).collect();
        let total: f64 = scores.iter().sum();
        let mut order: Vec<usize> = (0..scores.len()).collect();
        order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
        order.truncate(self.size("num_experts_per_tok"));
        let is_normalized = name != "mlp.gate" || self.config["norm_topk_prob"] == true;
        let chosen: f64 = order.iter().map(|expert| scores[*expert]).sum();
        let total = if is_normalized { chosen } else { total };
        let mut output = vec![0.0; state.len()];
        for expert in order {
            let result = self.network(&at(&networks[expert].0), networks[expert].1, state);
            let weighted = result.into_iter().map(|x| x * scores[expert] / total);
            output.iter_mut().zip(weighted).for_each(|(output, x)| *output += x);
        }
        output
    }

    /// Returns the states after the last norm of every position.
    pub(crate) fn states(&self, tokens: &[u32]) -> Vec<Vec<f64>> {
        let hidden = self.size("hidden_size");
        let table = self.tensor("model.embed_tokens.weight");
        let scale = if self.is_gemma() { (hidden as f64).sqrt() } else { 1.0 };
        let row = |token: &u32| -> Vec<f64> {
            table[*token as usize * hidden..][..hidden].iter().map(|x| x * scale).collect()
        };
        let mut states: Vec<Vec<f64>> = tokens.iter().map(row).collect();
        for layer in 0..self.size("num_hidden_layers") {
            let at = |name: &str| format!("model.layers.{layer}.{name}");
            let normed: Vec<_> = states.iter().map(|x| self.norm(&at("input_layernorm"), x)).collect();
            for (state, mixed) in states.iter_mut().zip(self.attention(layer, &normed)) {
                let mut part = self.product(&at("self_attn.o_proj"), &mixed);
                if self.is_gemma() {
                    part = self.norm(&at("post_attention_layernorm"), &part);
                }
                state.iter_mut().zip(part).for_each(|(state, x)| *state += x);
                let before =
                    if self.is_gemma() { "pre_feedforward_layernorm" } else { "post_attention_layernorm" };
                let mut part = self.feed_forward(layer, &self.norm(&at(before), state));
                if self.is_gemma() {
                    part = self.norm(&at("post_feedforward_layernorm"), &part);
                }
                state.iter_mut().zip(part).for_each(|(state, x)| *state += x);
            }
        }
        states.iter().map(|state| self.norm("model.norm", state)).collect()
    }

    /// Returns the logits after every position.
    pub(crate) fn logits(&self, tokens: &[u32]) -> Vec<Vec<f64>> {
        let is_tied = self.config["tie_word_embeddings"] == true;
        let output = if is_tied { "model.embed_tokens" } else { "lm_head" };
        let cap = self.number("final_logit_softcapping");
        let capped = |x: f64| cap.map_or(x, |cap| (x / cap).tanh() * cap);
        let finish =
            |state: &Vec<f64>| -> Vec<f64> { self.product(output, state).into_iter().map(capped).collect() };
        self.states(tokens).iter().map(finish).collect()
    }
}
