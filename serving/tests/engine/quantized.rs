//! Models of 8 bits: near the model that they were made from, and the same bits in any batch.

use crate::decoding::{alone, check_any_batch};
use crate::models::{bert_config, bits, llama_config, open, tokens, write};
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};
use serving::engine::{Engine, LoadedEngine};
use std::path::Path;
use tempfile::TempDir;

/// Returns a small decoder whose matrices have whole groups of inputs.
fn decoder_config() -> Value {
    let mut config = llama_config();
    (config["hidden_size"], config["intermediate_size"]) = (json!(64), json!(96));
    config
}

fn encoder_config() -> Value {
    let mut config = bert_config();
    (config["hidden_size"], config["intermediate_size"]) = (json!(96), json!(128));
    config
}

/// Quantises a model directory.
fn quantized(directory: &Path) -> TempDir {
    let to = tempfile::tempdir().expect("a temporary directory");
    let done = model_store::quantize(directory, to.path(), |_, _| ()).expect("quantised");
    assert!(done.matrices >= 12, "{done:?}");
    to
}

pub(crate) fn cosine(one: &[f32], other: &[f32]) -> f32 {
    let product = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f32>();
    product(one, other) / (product(one, one) * product(other, other)).sqrt()
}

#[test]
fn the_logits_of_a_decoder_are_near_those_of_its_original() {
    for (is_tied, dtype) in [(false, Dtype::F32), (true, Dtype::BF16)] {
        let mut config = decoder_config();
        config["tie_word_embeddings"] = json!(is_tied);
        let original = write(&config, dtype);
        let quantized = quantized(original.path());
        let logits = |directory: &Path| alone(&mut open(directory, 2), &tokens(70, 3), &[40, 41, 70]);
        for (found, expected) in logits(quantized.path()).iter().zip(&logits(original.path())) {
            let near = cosine(found, expected);
            assert!(near > 0.998, "tied: {is_tied}, {near}");
            assert_ne!(bits(found), bits(expected), "the weights are others");
        }
    }
}

#[test]
fn a_quantised_sequence_is_the_same_alone_in_a_batch_and_on_any_number_of_threads() {
    let original = write(&decoder_config(), Dtype::F32);
    check_any_batch(quantized(original.path()).path());
}

#[test]
fn cutting_a_prompt_of_a_quantised_decoder_changes_no_bit() {
    let original = write(&decoder_config(), Dtype::F32);
    let quantized = quantized(original.path());
    let sequence = tokens(90, 11);
    let mut engine = open(quantized.path(), 2);
    let whole = alone(&mut engine, &sequence, &[90]);
    for cuts in [&[1, 90][..], &[32, 64, 90], &[7, 8, 9, 50, 89, 90]] {
        let pieces = alone(&mut engine, &sequence, cuts);
        assert_eq!(bits(pieces.last().expect("one at least")), bits(&whole[0]), "{cuts:?}");
    }
}

#[test]
fn vectors_of_an_encoder_are_near_those_of_its_original_and_the_same_in_any_batch() {
    let original = write(&encoder_config(), Dtype::F32);
    let quantized = quantized(original.path());
    let texts: Vec<Vec<u32>> = (0..20).map(|index| tokens(1 + (index * 37) % 90, index as u64)).collect();
    let embed = |engine: &mut LoadedEngine, size: usize| -> Vec<Vec<f32>> {
        texts.chunks(size).flat_map(|part| engine.embed(part).expect("computed")).collect()
    };
    let expected = embed(&mut open(original.path(), 2), 20);
    let found = embed(&mut open(quantized.path(), 1), 1);
    for (found, expected) in found.iter().zip(&expected) {
        let near = cosine(found, expected);
        assert!(near > 0.998, "{near}");
    }
    for (threads, size) in [(1, 20), (3, 3), (2, 20)] {
        let again = embed(&mut open(quantized.path(), threads), size);
        for (found, again) in found.iter().zip(&again) {
            assert_eq!(bits(found), bits(again), "{size} at once on {threads} threads");
        }
    }
}

/// A file that was not made by a quantisation is refused by name, and no engine starts with it.
#[test]
fn panels_of_another_shape_and_scales_that_are_not_finite_are_refused() {
    let original = write(&decoder_config(), Dtype::F32);
    let quantized = quantized(original.path());
    let path = quantized.path().join("model.safetensors");
    let whole = std::fs::read(&path).expect("written");
    let code = || {
        let opened = LoadedEngine::open(&crate::models::files(quantized.path()), &crate::models::options(1));
        let checked = opened.and_then(|mut engine| {
            let blocks = crate::decoding::blocks(0, 1);
            engine.logits(&[crate::decoding::chunk(&blocks, &[1, 2], 0..2)])
        });
        checked.expect_err("refused").code().to_string()
    };
    // Panels of 512 bytes instead of 544: as many bytes, in more groups.
    let text = String::from_utf8_lossy(&whole[..4096]).into_owned();
    let at = text.find("[4,2,544]").expect("the shape of a matrix of 64 by 64");
    let mut lied = whole.clone();
    lied[at..at + 9].copy_from_slice(b"[2,4,544]");
    std::fs::write(&path, &lied).expect("written");
    assert_eq!(code(), "model-weights-mismatch");
    let (length, header) = SafeTensors::read_metadata(&whole).expect("a header");
    let (_, end) = header.info("lm_head.weight").expect("a matrix").data_offsets;
    let mut damaged = whole.clone();
    // The last bytes of a matrix are scales.
    let end = 8 + length + end;
    damaged[end - 2..end].copy_from_slice(&half::f16::NAN.to_le_bytes());
    std::fs::write(&path, &damaged).expect("written");
    assert_eq!(code(), "model-weights-not-finite");
}
