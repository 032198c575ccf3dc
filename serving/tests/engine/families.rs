//! Tests of every decoder family: against an independent implementation, and to the bit against itself.

use crate::decoding::{alone, blocks, chunk};
use crate::models::{bits, files, open, options, tokens};
use crate::published::{self, all};
use crate::quantized::cosine;
use crate::reference::Reference;
use safetensors::Dtype;
use serde_json::{Value, json};
use serving::engine::config::{ModelConfig, Shape};
use serving::engine::{BlockId, LoadedEngine, SequenceChunk};
use std::path::Path;
use tempfile::TempDir;

/// Ends of the chunks after which logits are compared: within a panel of 32 positions, around the first and
/// beyond a window of 24.
const CUTS: [usize; 7] = [1, 2, 31, 32, 33, 60, 70];
/// Largest difference from double precision: three layers of sums over at most 64 elements.
const TOLERANCE: f64 = 3e-4;

/// Returns the largest difference of the engine's logits from those of the independent implementation.
fn difference(config: &Value) -> f64 {
    let directory = published::write(config, Dtype::F32);
    let mut engine = open(directory.path(), 2);
    let sequence = tokens(70, 3);
    let found = alone(&mut engine, &sequence, &CUTS);
    let tensors = published::tensors(config);
    let expected = Reference { config, tensors: &tensors }.logits(&sequence);
    let mut largest = 0.0_f64;
    for (end, found) in CUTS.into_iter().zip(&found) {
        for (found, expected) in found.iter().zip(&expected[end - 1]) {
            assert!(found.is_finite(), "a number at {end}");
            largest = largest.max((f64::from(*found) - expected).abs());
        }
    }
    largest
}

#[test]
fn every_family_computes_what_an_independent_implementation_computes() {
    for (name, config) in all() {
        let difference = difference(&config);
        assert!(difference < TOLERANCE, "{name}: {difference}");
    }
}

#[test]
fn every_property_of_a_family_changes_its_logits() {
    let changes: &[(&str, &str, Value)] = &[
        ("llama", "rope_scaling", json!(null)),
        ("llama with biases", "rope_scaling", json!(null)),
        ("mistral", "sliding_window", json!(23)),
        ("qwen2", "rope_scaling", json!(null)),
        ("qwen2 with windows", "max_window_layers", json!(2)),
        ("qwen2 with windows", "use_sliding_window", json!(false)),
        ("qwen3", "rope_theta", json!(10_000)),
        ("qwen3-moe", "norm_topk_prob", json!(false)),
        ("mixtral", "num_experts_per_tok", json!(1)),
        ("gemma2", "attn_logit_softcapping", json!(null)),
        ("gemma2", "final_logit_softcapping", json!(null)),
        ("gemma2", "query_pre_attn_scalar", json!(16)),
        ("gemma2", "layer_types", json!(["full_attention", "sliding_attention", "full_attention"])),
        ("gemma3", "rope_local_base_freq", json!(1_000_000)),
        ("gemma3", "rope_scaling", json!(null)),
        ("gemma3", "sliding_window", json!(23)),
    ];
    for (name, field, value) in changes {
        let logits = |config: &Value| {
            let directory = published::write(config, Dtype::F32);
            alone(&mut open(directory.path(), 1), &tokens(70, 3), &[70]).remove(0)
        };
        let (_, config) = all().into_iter().find(|(other, _)| other == name).expect("a family");
        let mut changed = config.clone();
        changed[*field] = value.clone();
        assert_ne!(bits(&logits(&config)), bits(&logits(&changed)), "{name}: {field}");
    }
}

#[test]
fn every_family_keeps_every_bit_in_any_batch_cut_and_number_of_threads() {
    for (name, config) in all() {
        for dtype in [Dtype::F32, Dtype::BF16] {
            let directory = published::write(&config, dtype);
            let sequences = [tokens(70, 1), tokens(45, 2), tokens(33, 3)];
            let mut engine = open(directory.path(), 1);
            let expected: Vec<Vec<f32>> = sequences
                .iter()
                .map(|sequence| alone(&mut engine, sequence, &[sequence.len()]).remove(0))
                .collect();
            for cuts in [[0.1, 0.5], [0.45, 0.97]] {
                let mut engine = open(directory.path(), 3);
                let found = together(&mut engine, &sequences, cuts);
                for (index, (found, expected)) in found.chunks_exact(260).zip(&expected).enumerate() {
                    assert_eq!(bits(found), bits(expected), "{name}, {dtype:?}, sequence {index}");
                }
            }
        }
    }
}

/// Returns a family's model with matrices of 8 bits, of a width whose rows fill groups.
fn quantized(config: &Value) -> (TempDir, TempDir) {
    let original = published::write(config, Dtype::F32);
    let quantized = tempfile::tempdir().expect("a directory");
    let done = model_store::quantize(original.path(), quantized.path(), |_, _| ()).expect("quantised");
    assert!(done.matrices > 0, "{done:?}");
    (original, quantized)
}

/// Returns the families with matrices whose inputs fill groups of 32, as those of published models do.
fn whole_groups() -> impl Iterator<Item = (&'static str, Value)> {
    all().into_iter().map(|(name, mut config)| {
        for field in ["hidden_size", "intermediate_size", "moe_intermediate_size"] {
            if let Some(width) = config[field].as_u64() {
                config[field] = json!(width.next_multiple_of(64));
            }
        }
        (name, config)
    })
}

#[test]
fn every_family_is_near_its_original_with_8_bits() {
    for (name, config) in whole_groups() {
        let (original, quantized) = quantized(&config);
        let logits = |directory: &Path| alone(&mut open(directory, 2), &tokens(70, 3), &CUTS);
        for (found, expected) in logits(quantized.path()).iter().zip(&logits(original.path())) {
            let near = cosine(found, expected);
            assert!(near > 0.99, "{name}: {near}");
            assert_ne!(bits(found), bits(expected), "{name}: the weights are others");
        }
    }
}

#[test]
fn every_family_keeps_every_bit_with_8_bits_in_any_batch_cut_and_number_of_threads() {
    for (name, config) in whole_groups() {
        let (_original, quantized) = quantized(&config);
        let sequences = [tokens(70, 1), tokens(45, 2), tokens(33, 3)];
        let mut engine = open(quantized.path(), 1);
        let expected: Vec<Vec<f32>> = sequences
            .iter()
            .map(|sequence| alone(&mut engine, sequence, &[sequence.len()]).remove(0))
            .collect();
        for (cuts, threads) in [([0.1, 0.5], 3), ([0.45, 0.97], 2)] {
            let found = together(&mut open(quantized.path(), threads), &sequences, cuts);
            for (index, (found, expected)) in found.chunks_exact(260).zip(&expected).enumerate() {
                assert_eq!(bits(found), bits(expected), "{name}, sequence {index}");
            }
        }
    }
}

/// Computes all sequences side by side, each cut at these shares of its length; returns the last logits.
fn together(engine: &mut LoadedEngine, sequences: &[Vec<u32>], cuts: [f64; 2]) -> Vec<f32> {
    let tables: Vec<Vec<BlockId>> = (0..sequences.len() as u32).map(|index| blocks(4 * index, 3)).collect();
    let at = |sequence: &[u32], share: f64| 1 + (share * (sequence.len() - 1) as f64) as usize;
    let shares = [(None, Some(cuts[0])), (Some(cuts[0]), Some(cuts[1])), (Some(cuts[1]), None)];
    let mut logits = Vec::new();
    for (from, to) in shares {
        let chunks: Vec<SequenceChunk<'_>> = sequences
            .iter()
            .zip(&tables)
            .map(|(sequence, table)| {
                let start = from.map_or(0, |share| at(sequence, share));
                let end = to.map_or(sequence.len(), |share| at(sequence, share));
                chunk(table, sequence, start..end)
            })
            .collect();
        logits = engine.logits(&chunks).expect("computed");
    }
    logits
}

#[test]
fn newer_files_name_the_rotary_embeddings_of_each_kind_of_layer() {
    let (_, config) = all().into_iter().find(|(name, _)| *name == "gemma3").expect("a family");
    let mut newer = config.clone();
    for field in ["rope_theta", "rope_local_base_freq", "rope_scaling", "sliding_window_pattern"] {
        newer.as_object_mut().expect("an object").remove(field);
    }
    newer["rope_parameters"] = json!({
        "full_attention": { "rope_type": "linear", "factor": 8.0, "rope_theta": 1_000_000 },
        "sliding_attention": { "rope_type": "default", "rope_theta": 10_000 }
    });
    newer["layer_types"] = json!(["sliding_attention", "sliding_attention", "full_attention"]);
    let shape = |config: &Value| {
        let directory = published::write(config, Dtype::F32);
        match ModelConfig::read(&files(directory.path())).expect("a valid configuration").shape {
            Shape::Decoder(shape) => shape,
            Shape::Encoder(_) => unreachable!("a decoder"),
        }
    };
    assert_eq!(shape(&newer), shape(&config));
}

#[test]
fn an_expert_that_is_missing_is_named() {
    let (_, mut config) = all().into_iter().find(|(name, _)| *name == "mixtral").expect("a family");
    let directory = published::write(&config, Dtype::F32);
    config["num_local_experts"] = json!(5);
    std::fs::write(directory.path().join("config.json"), config.to_string()).expect("written");
    let error = LoadedEngine::open(&files(directory.path()), &options(1)).err().expect("refused");
    assert_eq!(error.code().as_str(), "model-weights-mismatch");
    let cause = std::error::Error::source(&error).expect("a cause").to_string();
    assert!(cause.contains("model.layers.0.block_sparse_moe."), "{cause}");
}

#[test]
fn end_tokens_and_context_come_from_the_configuration() {
    for (name, config) in all() {
        let directory = published::write(&config, Dtype::F32);
        let read = ModelConfig::read(&files(directory.path())).expect("a valid configuration");
        assert_eq!((read.end_tokens, read.context_tokens_max), (vec![256, 7], 128), "{name}");
    }
}
