//! Decoder tests: against an independent implementation, and alone against in a batch.

use crate::models::{assert_close, bits, decoder_shape, files, llama_config, open, options, tokens, write};
use candle_core::Device;
use proptest::prelude::*;
use safetensors::Dtype;
use serde_json::json;
use serving::engine::device::DeviceDecoder;
use serving::engine::{Decode, Engine, SequenceChunk, SequenceId};
use serving::weights::Weights;
use tempfile::TempDir;

/// Returns the logits after each cut of `sequence`, computed alone.
fn alone(engine: &mut dyn Engine, sequence: &[u32], cuts: &[usize]) -> Vec<Vec<f32>> {
    let id = engine.open(sequence.len()).expect("within the context").expect("room");
    let rows = extend(engine, id, sequence, cuts);
    engine.close(id);
    rows
}

fn extend(engine: &mut dyn Engine, id: SequenceId, sequence: &[u32], cuts: &[usize]) -> Vec<Vec<f32>> {
    let mut rows = Vec::new();
    let mut start = 0;
    for end in cuts {
        let chunk = SequenceChunk { sequence: id, tokens: &sequence[start..*end], logits: true };
        rows.extend(engine.step(&[chunk]).expect("computed"));
        start = *end;
    }
    rows
}

fn compare_with_candle(directory: &TempDir, tolerance: f32) {
    let files = files(directory.path());
    let weights = Weights::open(files.clone()).expect("weights");
    let shape = decoder_shape(&files);
    let options = options(2);
    let mut theirs =
        DeviceDecoder::open(&shape, &weights, &Device::Cpu, &options, 200).expect("a candle decoder");
    let mut ours = open(directory.path(), 2);
    let sequence = tokens(70, 3);
    let found = alone(&mut ours, &sequence, &[40, 41, 42, 70]);
    let id = theirs.open_sequence(70).expect("room");
    let mut start = 0;
    for (end, found) in [40, 41, 42, 70].into_iter().zip(&found) {
        let chunk = SequenceChunk { sequence: id, tokens: &sequence[start..end], logits: true };
        assert_close(found, &theirs.step(&[chunk]).expect("computed")[0], tolerance);
        start = end;
    }
}

#[test]
fn it_computes_what_candle_computes() {
    for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16] {
        compare_with_candle(&write(&llama_config(), dtype), 2e-4);
    }
}

#[test]
fn it_computes_what_candle_computes_with_tied_embeddings_and_stretched_rotation() {
    let mut config = llama_config();
    config["tie_word_embeddings"] = json!(true);
    config["num_key_value_heads"] = json!(4);
    config["head_dim"] = json!(10);
    config["rope_scaling"] = json!({ "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 32 });
    compare_with_candle(&write(&config, Dtype::F32), 2e-4);
}

#[test]
fn a_sequence_is_the_same_alone_in_a_batch_cut_anywhere_and_on_any_number_of_threads() {
    for dtype in [Dtype::F32, Dtype::BF16] {
        let directory = write(&llama_config(), dtype);
        let mut engine = open(directory.path(), 1);
        let lengths = [1, 5, 33, 64, 100, 17, 2, 40];
        let sequences: Vec<Vec<u32>> =
            lengths.iter().enumerate().map(|(index, length)| tokens(length + 6, index as u64)).collect();
        let expected: Vec<Vec<Vec<f32>>> = sequences
            .iter()
            .zip(lengths)
            .map(|(sequence, length)| {
                alone(&mut engine, sequence, &(length..=length + 6).collect::<Vec<_>>())
            })
            .collect();
        for threads in [1, 2, 5] {
            let mut engine = open(directory.path(), threads);
            let ids: Vec<SequenceId> = sequences
                .iter()
                .map(|sequence| engine.open(sequence.len()).expect("short").expect("room"))
                .collect();
            for step in 0..=6 {
                let chunks: Vec<SequenceChunk<'_>> = (0..sequences.len())
                    .map(|index| {
                        let end = lengths[index] + step;
                        let start = if step == 0 { 0 } else { end - 1 };
                        SequenceChunk {
                            sequence: ids[index],
                            tokens: &sequences[index][start..end],
                            logits: true,
                        }
                    })
                    .collect();
                let rows = engine.step(&chunks).expect("computed");
                for (index, (row, expected)) in rows.iter().zip(&expected).enumerate() {
                    assert_eq!(bits(row), bits(&expected[step]), "{threads} threads, sequence {index}");
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn cutting_a_prompt_changes_no_bit(
        length in 2_usize..90,
        cuts in prop::collection::vec(0.0_f64..1.0, 0..6),
    ) {
        let directory = write(&llama_config(), Dtype::F32);
        let mut engine = open(directory.path(), 2);
        let sequence = tokens(length, 11);
        let whole = alone(&mut engine, &sequence, &[length]);
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| 1 + (cut * (length - 1) as f64) as usize).collect();
        cuts.push(length);
        cuts.sort_unstable();
        cuts.dedup();
        let pieces = alone(&mut engine, &sequence, &cuts);
        prop_assert_eq!(bits(pieces.last().expect("one at least")), bits(&whole[0]));
    }
}

#[test]
fn a_reused_cache_block_leaks_nothing() {
    let directory = write(&llama_config(), Dtype::F32);
    let mut engine = open(directory.path(), 1);
    let fresh = alone(&mut engine, &tokens(50, 1), &[50]);
    alone(&mut engine, &tokens(190, 2), &[190]);
    assert_eq!(bits(&alone(&mut engine, &tokens(50, 1), &[50])[0]), bits(&fresh[0]));
    assert_eq!(engine.capacity().tokens_reserved, 0);
}

#[test]
fn cache_is_reserved_and_an_oversized_sequence_is_refused() {
    let directory = write(&llama_config(), Dtype::F32);
    let mut engine = open(directory.path(), 1);
    assert_eq!(
        engine.open(201).expect_err("longer than the context").code().as_str(),
        "context-length-exceeded"
    );
    let total = engine.capacity().tokens_total;
    let mut opened = Vec::new();
    while let Some(id) = engine.open(200).expect("within the context") {
        opened.push(id);
    }
    assert_eq!(opened.len(), total / 224, "200 positions are 7 blocks of 32");
    engine.close(opened[0]);
    assert!(engine.open(200).expect("within the context").is_some());
    let texts = engine.embed(&[vec![1]]).expect_err("a decoder does not embed");
    assert_eq!(texts.code().as_str(), "operation-unsupported");
}
