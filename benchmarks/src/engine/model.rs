//! A Llama of random weights, written three times: bf16, ours of 8 bits, and Q8_0 in a GGUF file.

use super::gguf::GgufFile;
use anyhow::{Result, ensure};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::json;
use serving::engine::text_frontend::byte_tokenizer_json;
use std::fs;
use std::path::{Path, PathBuf};

/// Dimensions: those of published models of this size.
pub(super) const HIDDEN: usize = 1024;
pub(super) const INNER: usize = 2816;
pub(super) const LAYERS: usize = 24;
pub(super) const HEADS: usize = 16;
pub(super) const SHARED_HEADS: usize = 8;
pub(super) const VOCABULARY: usize = 32_000;
pub(super) const CONTEXT: usize = 1024;
/// First token that is an ordinary one on both sides.
const ORDINARY: u32 = 300;

/// The model on disk.
pub(super) struct LlamaOnDisk {
    pub(super) plain: PathBuf,
    pub(super) quantized: PathBuf,
    pub(super) gguf: PathBuf,
    pub(super) parameters: usize,
    pub(super) quantized_bytes: u64,
}

/// A tensor: its name of ours and in GGUF, and its shape.
struct NamedTensor {
    name: String,
    gguf: String,
    shape: Vec<usize>,
}

impl LlamaOnDisk {
    /// Writes the model into a fresh directory.
    pub(super) fn make(scratch: &Path) -> Result<Self> {
        if scratch.exists() {
            fs::remove_dir_all(scratch)?;
        }
        let [plain, quantized] = ["bf16", "int8"].map(|name| scratch.join(name));
        fs::create_dir_all(&plain)?;
        fs::create_dir_all(&quantized)?;
        let config = json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN,
            "intermediate_size": INNER, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
            "num_key_value_heads": SHARED_HEADS, "vocab_size": VOCABULARY, "hidden_act": "silu",
            "max_position_embeddings": CONTEXT, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
            "tie_word_embeddings": false,
        });
        fs::write(plain.join("config.json"), config.to_string())?;
        fs::write(plain.join("tokenizer.json"), byte_tokenizer_json(&["<|end|>"]).to_string())?;
        let tensors = tensors();
        let mut file = GgufFile::new();
        let mut values = Vec::with_capacity(tensors.len());
        for (seed, tensor) in (1..).zip(&tensors) {
            let numbers = numbers(seed, &tensor.shape);
            file.add(&tensor.gguf, &tensor.shape, &numbers);
            values.push(numbers);
        }
        let gguf = scratch.join("model.gguf");
        file.write(&gguf)?;
        let views = tensors.iter().zip(&values).map(|(tensor, values)| {
            let view = TensorView::new(Dtype::BF16, tensor.shape.clone(), values);
            (tensor.name.as_str(), view.expect("as many bytes as the shape needs"))
        });
        safetensors::serialize_to_file(views, None, &plain.join("model.safetensors"))?;
        drop(values);
        let done = model_store::quantize(&plain, &quantized, |_, _| ())?;
        ensure!(done.matrices == 2 + 7 * LAYERS, "every matrix is quantised: {done:?}");
        let parameters = tensors.iter().map(|tensor| tensor.shape.iter().product::<usize>()).sum();
        let quantized_bytes = fs::metadata(quantized.join("model.safetensors"))?.len();
        Ok(Self { plain, quantized, gguf, parameters, quantized_bytes })
    }
}

/// Returns token ids that are determined by the seed.
pub(super) fn tokens(count: usize, seed: u64) -> Vec<u32> {
    let draw = |at: usize| {
        (kernels::sampling::uniform(seed, at as u64) * f64::from(VOCABULARY as u32 - ORDINARY)) as u32
    };
    (0..count).map(|at| ORDINARY + draw(at)).collect()
}

fn tensors() -> Vec<NamedTensor> {
    let tensor = |name: &str, gguf: &str, shape: &[usize]| NamedTensor {
        name: format!("{name}.weight"),
        gguf: format!("{gguf}.weight"),
        shape: shape.to_vec(),
    };
    let mut all = vec![tensor("model.embed_tokens", "token_embd", &[VOCABULARY, HIDDEN])];
    let shared = SHARED_HEADS * HIDDEN / HEADS;
    for layer in 0..LAYERS {
        let parts: [(&str, &str, &[usize]); 9] = [
            ("input_layernorm", "attn_norm", &[HIDDEN]),
            ("self_attn.q_proj", "attn_q", &[HIDDEN, HIDDEN]),
            ("self_attn.k_proj", "attn_k", &[shared, HIDDEN]),
            ("self_attn.v_proj", "attn_v", &[shared, HIDDEN]),
            ("self_attn.o_proj", "attn_output", &[HIDDEN, HIDDEN]),
            ("post_attention_layernorm", "ffn_norm", &[HIDDEN]),
            ("mlp.gate_proj", "ffn_gate", &[INNER, HIDDEN]),
            ("mlp.up_proj", "ffn_up", &[INNER, HIDDEN]),
            ("mlp.down_proj", "ffn_down", &[HIDDEN, INNER]),
        ];
        for (name, gguf, shape) in parts {
            all.push(tensor(&format!("model.layers.{layer}.{name}"), &format!("blk.{layer}.{gguf}"), shape));
        }
    }
    all.push(tensor("model.norm", "output_norm", &[HIDDEN]));
    all.push(tensor("lm_head", "output", &[VOCABULARY, HIDDEN]));
    all
}

/// Returns random bf16 numbers, near 0, or near 1 for a norm.
fn numbers(seed: u64, shape: &[usize]) -> Vec<u8> {
    let center = if shape.len() == 1 { 1.0 } else { 0.0 };
    // SplitMix64, of Steele, Lea and Flood.
    let mut state = seed;
    let mut draw = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        center + ((mixed >> 40) as f32 / (1 << 24) as f32 - 0.5) * 0.06
    };
    let count: usize = shape.iter().product();
    // The upper half of an f32 is a bf16.
    (0..count).flat_map(|_| ((draw().to_bits() >> 16) as u16).to_le_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn both_sides_have_the_same_tensors_and_ordinary_tokens() {
        let tensors = tensors();
        assert_eq!(tensors.len(), 3 + 9 * LAYERS);
        let names: BTreeSet<&str> = tensors.iter().map(|tensor| tensor.gguf.as_str()).collect();
        assert_eq!(names.len(), tensors.len());
        let matrices = tensors.iter().filter(|tensor| model_store::is_quantized(&tensor.name, &tensor.shape));
        assert_eq!(matrices.count(), 2 + 7 * LAYERS);
        let tokens = tokens(1_000, 3);
        assert!(tokens.iter().all(|token| (ORDINARY..VOCABULARY as u32).contains(token)));
        assert!(tokens.iter().collect::<BTreeSet<_>>().len() > 900);
    }

    #[test]
    fn numbers_are_small_finite_and_the_same_each_time() {
        let read = |bytes: &[u8]| -> Vec<f32> {
            let pairs = bytes.as_chunks::<2>().0.iter();
            pairs.map(|b| f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16)).collect()
        };
        let (weights, norm) = (read(&numbers(1, &[8, 64])), read(&numbers(2, &[64])));
        assert!(weights.iter().all(|number| number.abs() <= 0.031), "{weights:?}");
        assert!(norm.iter().all(|number| (number - 1.0).abs() <= 0.04), "{norm:?}");
        assert_eq!(numbers(1, &[8, 64]), numbers(1, &[8, 64]));
        assert_ne!(numbers(1, &[64]), numbers(2, &[64]));
    }
}
