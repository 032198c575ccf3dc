//! Test models: directories of random weights, as users have them on disk.

use kernels::sampling::uniform;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use serving::engine::config::{DecoderShape, EncoderShape, ModelConfig, Shape};
use serving::engine::device::{bert, llama};
use serving::engine::text_frontend::byte_tokenizer_json;
use serving::engine::{EngineOptions, LoadedEngine};
use serving::weights::ModelFiles;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use tempfile::TempDir;

/// Returns a small Llama: 2 layers, 4 heads over 2, bytes as tokens, context 200.
pub(crate) fn llama_config() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "hidden_size": 48, "intermediate_size": 80,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 257,
        "max_position_embeddings": 200, "rms_norm_eps": 1e-5, "rope_theta": 1000.0, "hidden_act": "silu",
        "tie_word_embeddings": false, "eos_token_id": 256
    })
}

/// Returns a small BERT: 2 layers, 3 heads of 20, context 90.
pub(crate) fn bert_config() -> Value {
    json!({
        "architectures": ["BertModel"], "hidden_size": 60, "intermediate_size": 100, "num_hidden_layers": 2,
        "num_attention_heads": 3, "vocab_size": 257, "max_position_embeddings": 90, "type_vocab_size": 2,
        "layer_norm_eps": 1e-12, "hidden_act": "gelu", "position_embedding_type": "absolute"
    })
}

/// Writes a model directory of this configuration, with weights of this type.
pub(crate) fn write(config: &Value, dtype: Dtype) -> TempDir {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let put = |name: &str, value: &Value| std::fs::write(directory.path().join(name), value.to_string());
    put("config.json", config).expect("written");
    put("tokenizer.json", &byte_tokenizer_json(&["<|end|>"])).expect("written");
    if config["architectures"][0] == "BertModel" {
        std::fs::create_dir(directory.path().join("1_Pooling")).expect("made");
        put("1_Pooling/config.json", &json!({ "pooling_mode_mean_tokens": true })).expect("written");
        let modules = json!([
            { "path": "", "type": "sentence_transformers.models.Transformer" },
            { "path": "1_Pooling", "type": "sentence_transformers.models.Pooling" },
            { "path": "2_Normalize", "type": "sentence_transformers.models.Normalize" }
        ]);
        put("modules.json", &modules).expect("written");
    } else {
        let template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant: ";
        put("tokenizer_config.json", &json!({ "chat_template": template })).expect("written");
    }
    let files = ModelFiles::open_directory(directory.path()).expect("readable");
    let shape = ModelConfig::read(&files).expect("a valid configuration").shape;
    write_weights(directory.path(), &parameters(&shape), dtype);
    directory
}

/// Returns names and shapes of a model's tensors.
pub(crate) fn parameters(shape: &Shape) -> BTreeMap<String, Vec<usize>> {
    match shape {
        Shape::Encoder(shape) => bert::parameters(shape).into_iter().collect(),
        Shape::Decoder(shape) => llama::parameters(shape).into_iter().collect(),
    }
}

/// Writes random weights, the same for the same name.
pub(crate) fn write_weights(directory: &Path, parameters: &BTreeMap<String, Vec<usize>>, dtype: Dtype) {
    let mut tensors = Vec::new();
    for (name, dimensions) in parameters {
        let seed = name.bytes().fold(7_u64, |seed, byte| seed.wrapping_mul(31).wrapping_add(byte.into()));
        let count: usize = dimensions.iter().product();
        let is_norm = dimensions.len() == 1 && name.ends_with("weight");
        let value = |index: usize| {
            let random = (uniform(seed, index as u64) - 0.5) as f32 * 0.4;
            if is_norm { 1.0 + random } else { random }
        };
        let bytes: Vec<u8> = (0..count)
            .flat_map(|index| match dtype {
                Dtype::F16 => half::f16::from_f32(value(index)).to_le_bytes().to_vec(),
                Dtype::BF16 => half::bf16::from_f32(value(index)).to_le_bytes().to_vec(),
                _ => value(index).to_le_bytes().to_vec(),
            })
            .collect();
        tensors.push((name.clone(), dimensions.clone(), bytes));
    }
    let views = tensors.iter().map(|(name, dimensions, bytes)| {
        (name, TensorView::new(dtype, dimensions.clone(), bytes).expect("sizes agree"))
    });
    safetensors::serialize_to_file(views, None, &directory.join("model.safetensors")).expect("written");
}

/// Returns the decoder shape of a model directory.
pub(crate) fn decoder_shape(files: &ModelFiles) -> DecoderShape {
    match ModelConfig::read(files).expect("a valid configuration").shape {
        Shape::Decoder(shape) => shape,
        Shape::Encoder(_) => unreachable!("a decoder"),
    }
}

/// Returns the encoder shape of a model directory.
pub(crate) fn encoder_shape(files: &ModelFiles) -> EncoderShape {
    match ModelConfig::read(files).expect("a valid configuration").shape {
        Shape::Encoder(shape) => shape,
        Shape::Decoder(_) => unreachable!("an encoder"),
    }
}

/// Returns options with this many threads.
pub(crate) fn options(threads: usize) -> EngineOptions {
    EngineOptions { threads, cache_bytes_max: 8 << 20, ..EngineOptions::default() }
}

/// Opens an engine over a model directory.
pub(crate) fn open(directory: &Path, threads: usize) -> LoadedEngine {
    LoadedEngine::open(&files(directory), &options(threads)).expect("a model that loads")
}

/// Opens the files of a model directory.
pub(crate) fn files(directory: &Path) -> Arc<ModelFiles> {
    ModelFiles::open_directory(directory).expect("readable")
}

/// Returns token ids below 256, determined by the seed.
pub(crate) fn tokens(count: usize, seed: u64) -> Vec<u32> {
    (0..count).map(|index| (uniform(seed, index as u64) * 256.0) as u32).collect()
}

/// Returns the bits of numbers, for exact comparison.
pub(crate) fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Asserts that every number is within `tolerance` of its counterpart.
pub(crate) fn assert_close(found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len());
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!((found - expected).abs() < tolerance, "{found} is not {expected} at {index}");
    }
}

/// Runs a future on a minimal runtime.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().expect("a runtime").block_on(future)
}
