//! Decoder tests: against an independent implementation, and alone against in a batch.

use crate::models::{assert_close, bits, decoder_shape, files, llama_config, open, options, tokens, write};
use candle_core::Device;
use kernels::sampling::Sampling;
use proptest::prelude::*;
use safetensors::Dtype;
use serde_json::json;
use serving::engine::device::DeviceDecoder;
use serving::engine::{BLOCK_TOKENS, BlockId, Decode, Draw, Engine, LoadedEngine, SequenceChunk};
use serving::weights::Weights;
use std::path::Path;
use tempfile::TempDir;

const DRAW: Option<Draw<'static>> = Some(Draw {
    sampling: Sampling { temperature: 0.0, top_p: 1.0, seed: 0 },
    rules: None,
    logprobs: None,
    prompt: 1,
});

/// Returns `count` blocks from `first` on.
pub(crate) fn blocks(first: u32, count: u32) -> Vec<BlockId> {
    (first..first + count).map(BlockId).collect()
}

/// Returns the chunk of these positions of a sequence, and asks for the logits after it.
pub(crate) fn chunk<'a>(
    blocks: &'a [BlockId],
    sequence: &'a [u32],
    positions: std::ops::Range<usize>,
) -> SequenceChunk<'a> {
    SequenceChunk { blocks, position: positions.start, tokens: &sequence[positions], draw: DRAW }
}

/// Returns the logits after each cut of `sequence`, computed alone.
pub(crate) fn alone(engine: &mut LoadedEngine, sequence: &[u32], cuts: &[usize]) -> Vec<Vec<f32>> {
    let blocks = blocks(0, 7);
    let mut start = 0;
    let mut rows = Vec::new();
    for end in cuts {
        rows.push(engine.logits(&[chunk(&blocks, sequence, start..*end)]).expect("computed"));
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
    let blocks = blocks(3, 3);
    let mut start = 0;
    for (end, found) in [40, 41, 42, 70].into_iter().zip(&found) {
        let logits = theirs.logits(&[chunk(&blocks, &sequence, start..end)]).expect("computed");
        assert_close(found, &logits, tolerance);
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
        check_any_batch(write(&llama_config(), dtype).path());
    }
}

/// Checks that the logits of sequences of a model are the same bits alone, in a batch, and on any number of
/// threads.
pub(crate) fn check_any_batch(directory: &Path) {
    let mut engine = open(directory, 1);
    let lengths = [1, 5, 33, 64, 100, 17, 2, 40];
    let sequences: Vec<Vec<u32>> =
        lengths.iter().enumerate().map(|(index, length)| tokens(length + 6, index as u64)).collect();
    let expected: Vec<Vec<Vec<f32>>> = sequences
        .iter()
        .zip(lengths)
        .map(|(sequence, length)| alone(&mut engine, sequence, &(length..=length + 6).collect::<Vec<_>>()))
        .collect();
    for threads in [1, 2, 5] {
        let mut engine = open(directory, threads);
        let tables: Vec<Vec<BlockId>> = (0..8).map(|index| blocks(4 * index, 4)).collect();
        for step in 0..=6 {
            let chunks: Vec<SequenceChunk<'_>> = (0..sequences.len())
                .map(|index| {
                    let end = lengths[index] + step;
                    let start = if step == 0 { 0 } else { end - 1 };
                    chunk(&tables[index], &sequences[index], start..end)
                })
                .collect();
            let logits = engine.logits(&chunks).expect("computed");
            for (index, (row, expected)) in logits.chunks_exact(257).zip(&expected).enumerate() {
                assert_eq!(bits(row), bits(&expected[step]), "{threads} threads, sequence {index}");
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
}

#[test]
fn a_prefix_in_shared_blocks_changes_no_bit() {
    for dtype in [Dtype::F32, Dtype::BF16] {
        let directory = write(&llama_config(), dtype);
        let mut engine = open(directory.path(), 2);
        let sequence = tokens(150, 4);
        let expected = alone(&mut engine, &sequence, &[100, 150]);
        // Another sequence with the same first 96 tokens has computed them, in chunks of its own.
        let mut other = sequence[..96].to_vec();
        other.extend(tokens(20, 5));
        let theirs = blocks(10, 4);
        for positions in [0..7, 7..64, 64..116] {
            engine.logits(&[chunk(&theirs, &other, positions)]).expect("computed");
        }
        let shared = [&theirs[..96 / BLOCK_TOKENS], &blocks(20, 2)[..]].concat();
        let mut found = Vec::new();
        for positions in [96..100, 100..150] {
            // Both read the shared blocks in one step.
            let chunks = [chunk(&shared, &sequence, positions), chunk(&theirs, &other, 115..116)];
            found.push(engine.logits(&chunks).expect("computed")[..257].to_vec());
        }
        for (found, expected) in found.iter().zip(&expected) {
            assert_eq!(bits(found), bits(expected));
        }
    }
}

#[test]
fn a_cache_has_the_whole_blocks_of_its_bytes() {
    let directory = write(&llama_config(), Dtype::F32);
    let mut engine = open(directory.path(), 1);
    // Two layers and two heads of 32 positions: keys 12 wide, values padded to 32; 8 MiB.
    assert_eq!(engine.blocks(), (8 << 20) / (2 * 2 * BLOCK_TOKENS * (12 + 32) * 4));
    let texts = engine.embed(&[vec![1]]).expect_err("a decoder does not embed");
    assert_eq!(texts.code().as_str(), "operation-unsupported");
}
