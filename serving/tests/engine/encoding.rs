//! Encoder tests: against an independent implementation, and alone against in a batch.

use crate::models::{assert_close, bert_config, bits, encoder_shape, files, open, tokens, write};
use candle_core::Device;
use safetensors::Dtype;
use serving::engine::device::DeviceEncoder;
use serving::engine::{Encode, Engine};
use serving::weights::Weights;

#[test]
fn it_computes_what_candle_computes() {
    let texts: Vec<Vec<u32>> = [1, 7, 90, 33].iter().map(|length| tokens(*length, 5)).collect();
    for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16] {
        let directory = write(&bert_config(), dtype);
        let files = files(directory.path());
        let weights = Weights::open(files.clone()).expect("weights");
        let shape = encoder_shape(&files);
        let mut theirs = DeviceEncoder::open(&shape, &weights, &Device::Cpu).expect("candle's");
        let found = open(directory.path(), 2).embed(&texts).expect("computed");
        for (found, expected) in found.iter().zip(theirs.embed(&texts).expect("computed")) {
            assert_close(found, &expected, 1e-5);
            let length: f32 = found.iter().map(|x| x * x).sum();
            assert!((length - 1.0).abs() < 1e-5);
        }
    }
}

#[test]
fn a_text_is_the_same_alone_in_a_batch_and_on_any_number_of_threads() {
    let directory = write(&bert_config(), Dtype::F32);
    let texts: Vec<Vec<u32>> = (0..40).map(|index| tokens(1 + (index * 37) % 90, index as u64)).collect();
    let mut engine = open(directory.path(), 1);
    let expected: Vec<Vec<f32>> =
        texts.iter().flat_map(|text| engine.embed(std::slice::from_ref(text)).expect("computed")).collect();
    for threads in [1, 2, 3] {
        let mut engine = open(directory.path(), threads);
        for size in [1, 3, 40] {
            let found: Vec<Vec<f32>> =
                texts.chunks(size).flat_map(|part| engine.embed(part).expect("computed")).collect();
            for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
                assert_eq!(bits(found), bits(expected), "text {index}, {size} at once on {threads} threads");
            }
        }
    }
}

#[test]
fn an_oversized_text_and_a_generation_are_refused() {
    let directory = write(&bert_config(), Dtype::F32);
    let mut engine = open(directory.path(), 1);
    let error = engine.embed(&[tokens(91, 1)]).expect_err("longer than the position table");
    assert_eq!(error.code().as_str(), "context-length-exceeded");
    assert_eq!(engine.step(&[]).expect_err("an encoder").code().as_str(), "operation-unsupported");
    assert!(engine.embed(&[]).expect("nothing to do").is_empty());
}
