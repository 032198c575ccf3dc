//! Small decoders of every family: configurations in the form in which the families are published, and
//! weights from a generator that `goldens/make_logits.py` has too.

use crate::models::files;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use serving::engine::text_frontend::byte_tokenizer_json;
use std::collections::BTreeMap;
use std::path::Path;
use tempfile::TempDir;

/// Values of a model's tensors, by their published names.
pub(crate) type Tensors = BTreeMap<String, Vec<f32>>;

/// Returns a configuration: the fields that all families share, and these.
pub(crate) fn config(architecture: &str, fields: Value) -> Value {
    let shared = json!({
        "architectures": [architecture], "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 260,
        "max_position_embeddings": 128, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
        "tie_word_embeddings": false, "attention_bias": false, "eos_token_id": [256, 7]
    });
    with(&shared, fields)
}

/// Returns a configuration's fields with these changed or added.
pub(crate) fn with(base: &Value, fields: Value) -> Value {
    let mut all = base.clone();
    let Value::Object(fields) = fields else { unreachable!("an object") };
    all.as_object_mut().expect("an object").extend(fields);
    all
}

/// Returns a name and a configuration for every property of every family.
pub(crate) fn all() -> Vec<(&'static str, Value)> {
    let llama3 = json!({ "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 32 });
    let yarn = json!({ "type": "yarn", "rope_type": "yarn", "factor": 4.0,
        "original_max_position_embeddings": 32 });
    let experts = json!({ "head_dim": 16, "num_experts": 6, "num_experts_per_tok": 2,
        "moe_intermediate_size": 24, "norm_topk_prob": true, "decoder_sparse_step": 1,
        "mlp_only_layers": [1], "use_sliding_window": false, "sliding_window": null });
    let mut all = vec![
        ("llama", config("LlamaForCausalLM", json!({ "rope_scaling": llama3, "hidden_act": "silu" }))),
        (
            "llama with biases",
            config(
                "LlamaForCausalLM",
                json!({ "attention_bias": true, "mlp_bias": true, "tie_word_embeddings": true,
                    "rope_scaling": { "type": "linear", "factor": 2.0 } }),
            ),
        ),
        (
            "llama with dynamic rotation",
            config("LlamaForCausalLM", json!({ "rope_scaling": { "type": "dynamic", "factor": 2.0 } })),
        ),
        ("mistral", config("MistralForCausalLM", json!({ "sliding_window": 24, "head_dim": 12 }))),
        ("mistral without a window", config("MistralForCausalLM", json!({ "sliding_window": null }))),
        (
            "mixtral",
            config(
                "MixtralForCausalLM",
                json!({ "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": null }),
            ),
        ),
        ("qwen2", config("Qwen2ForCausalLM", json!({ "rope_scaling": yarn, "use_sliding_window": false }))),
        (
            "qwen2 with windows",
            config(
                "Qwen2ForCausalLM",
                json!({ "use_sliding_window": true, "sliding_window": 24, "max_window_layers": 1 }),
            ),
        ),
        ("qwen3", config("Qwen3ForCausalLM", json!({ "head_dim": 16, "rope_theta": 1_000_000 }))),
        ("qwen3-moe", config("Qwen3MoeForCausalLM", experts.clone())),
        (
            "qwen3-moe without normalization",
            config(
                "Qwen3MoeForCausalLM",
                with(&experts, json!({ "norm_topk_prob": false, "decoder_sparse_step": 2 })),
            ),
        ),
    ];
    all.extend(gemma());
    all
}

/// Returns the configurations of Gemma 2 and 3.
fn gemma() -> [(&'static str, Value); 2] {
    let gemma = json!({ "head_dim": 16, "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 24, "sliding_window": 24,
        "tie_word_embeddings": true });
    [
        (
            "gemma2",
            config(
                "Gemma2ForCausalLM",
                with(&gemma, json!({ "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0 })),
            ),
        ),
        (
            "gemma3",
            config(
                "Gemma3ForCausalLM",
                with(
                    &gemma,
                    json!({ "sliding_window_pattern": 3, "rope_theta": 1_000_000,
                        "rope_local_base_freq": 10_000,
                        "rope_scaling": { "rope_type": "linear", "factor": 8.0 },
                        "attn_logit_softcapping": null, "final_logit_softcapping": null }),
                ),
            ),
        ),
    ]
}

/// Returns names and shapes of a model's tensors, by its configuration.
pub(crate) fn shapes(config: &Value) -> BTreeMap<String, Vec<usize>> {
    let number = |name: &str| config[name].as_u64().map(|value| value as usize);
    let need = |name: &str| number(name).expect("a number");
    let (hidden, heads) = (need("hidden_size"), need("num_attention_heads"));
    let width = number("head_dim").unwrap_or(hidden / heads);
    let (query, shared) = (heads * width, need("num_key_value_heads") * width);
    let architecture = config["architectures"][0].as_str().expect("a name");
    let mut all = BTreeMap::new();
    all.insert("model.embed_tokens.weight".to_owned(), vec![need("vocab_size"), hidden]);
    all.insert("model.norm.weight".to_owned(), vec![hidden]);
    if config["tie_word_embeddings"] == false {
        all.insert("lm_head.weight".to_owned(), vec![need("vocab_size"), hidden]);
    }
    for layer in 0..need("num_hidden_layers") {
        let mut add = |name: &str, dimensions: &[usize]| {
            all.insert(format!("model.layers.{layer}.{name}"), dimensions.to_vec());
        };
        add("input_layernorm.weight", &[hidden]);
        add("post_attention_layernorm.weight", &[hidden]);
        if architecture.starts_with("Gemma") {
            add("pre_feedforward_layernorm.weight", &[hidden]);
            add("post_feedforward_layernorm.weight", &[hidden]);
        }
        let is_biased = config["attention_bias"] == true;
        for (part, outputs, inputs) in
            [("q", query, hidden), ("k", shared, hidden), ("v", shared, hidden), ("o", hidden, query)]
        {
            add(&format!("self_attn.{part}_proj.weight"), &[outputs, inputs]);
            if is_biased || part != "o" && architecture == "Qwen2ForCausalLM" {
                add(&format!("self_attn.{part}_proj.bias"), &[outputs]);
            }
        }
        if architecture.starts_with("Qwen3") || architecture.starts_with("Gemma3") {
            add("self_attn.q_norm.weight", &[width]);
            add("self_attn.k_norm.weight", &[width]);
        }
        for (prefix, names, inner) in networks(config, layer) {
            for (name, dimensions) in names.iter().zip([[inner, hidden], [inner, hidden], [hidden, inner]]) {
                add(&format!("{prefix}.{name}.weight"), &dimensions);
                if config["mlp_bias"] == true {
                    add(&format!("{prefix}.{name}.bias"), &dimensions[..1]);
                }
            }
        }
        if let Some((router, count)) = router(config, layer) {
            add(&format!("{router}.weight"), &[count, hidden]);
        }
    }
    all
}

/// Returns the name and the experts of a layer's router, if it has one.
pub(crate) fn router(config: &Value, layer: usize) -> Option<(&'static str, usize)> {
    let count = |name: &str| config[name].as_u64().expect("a number") as usize;
    match config["architectures"][0].as_str().expect("a name") {
        "MixtralForCausalLM" => Some(("block_sparse_moe.gate", count("num_local_experts"))),
        "Qwen3MoeForCausalLM" => {
            let is_dense = config["mlp_only_layers"].as_array().expect("a list").contains(&json!(layer));
            let is_sparse = !is_dense && (layer + 1).is_multiple_of(count("decoder_sparse_step"));
            is_sparse.then(|| ("mlp.gate", count("num_experts")))
        }
        _ => None,
    }
}

/// Returns the prefix, the names (gate, up, down) and the inner width of a layer's networks.
pub(crate) fn networks(config: &Value, layer: usize) -> Vec<(String, [&'static str; 3], usize)> {
    let width = |name: &str| config[name].as_u64().expect("a number") as usize;
    let names = ["gate_proj", "up_proj", "down_proj"];
    match router(config, layer) {
        None => vec![("mlp".to_owned(), names, width("intermediate_size"))],
        Some(("mlp.gate", count)) => (0..count)
            .map(|expert| (format!("mlp.experts.{expert}"), names, width("moe_intermediate_size")))
            .collect(),
        Some((_, count)) => (0..count)
            .map(|expert| {
                let prefix = format!("block_sparse_moe.experts.{expert}");
                (prefix, ["w1", "w3", "w2"], width("intermediate_size"))
            })
            .collect(),
    }
}

/// Returns the values of a tensor: those of SplitMix64 from the name's FNV-1a hash on, as multiples of 2^-17
/// from -0.25 up to 0.25; for the weights of norms, increased by 1.
pub(crate) fn values(name: &str, dimensions: &[usize]) -> Vec<f32> {
    let seed = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    let is_norm = dimensions.len() == 1 && name.ends_with("weight");
    let value = |index: usize| {
        let mut state = seed.wrapping_add((index as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let random = ((state ^ (state >> 31)) >> 48) as f32 / 65_536.0;
        (random - 0.5) * 0.5 + if is_norm { 1.0 } else { 0.0 }
    };
    let count: usize = dimensions.iter().product();
    (0..count).map(value).collect()
}

/// Returns all tensors of a model.
pub(crate) fn tensors(config: &Value) -> Tensors {
    shapes(config)
        .into_iter()
        .map(|(name, dimensions)| {
            let values = values(&name, &dimensions);
            (name, values)
        })
        .collect()
}

/// Writes a model directory of this configuration, with its weights as f32 or bf16.
pub(crate) fn write(config: &Value, dtype: Dtype) -> TempDir {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let put = |name: &str, value: &Value| std::fs::write(directory.path().join(name), value.to_string());
    put("config.json", config).expect("written");
    put("tokenizer.json", &byte_tokenizer_json(&["<|end|>"])).expect("written");
    write_weights(directory.path(), &shapes(config), dtype);
    assert!(files(directory.path()).contains("model.safetensors"));
    directory
}

/// Writes tensors of these names and shapes, with the values of [`values`] as f32 or bf16.
pub(crate) fn write_weights(directory: &Path, shapes: &BTreeMap<String, Vec<usize>>, dtype: Dtype) {
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = shapes
        .iter()
        .map(|(name, dimensions)| {
            let bytes = values(name, dimensions).into_iter().flat_map(|value| match dtype {
                Dtype::BF16 => half::bf16::from_f32(value).to_le_bytes().to_vec(),
                _ => value.to_le_bytes().to_vec(),
            });
            (name.clone(), dimensions.clone(), bytes.collect())
        })
        .collect();
    let views = tensors.iter().map(|(name, dimensions, bytes)| {
        (name, TensorView::new(dtype, dimensions.clone(), bytes).expect("sizes agree"))
    });
    safetensors::serialize_to_file(views, None, &directory.join("model.safetensors")).expect("written");
}
