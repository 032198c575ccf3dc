//! Writer of a GGUF file of version 3 for llama.cpp: matrices as Q8_0, norms as f32, and a vocabulary of
//! nothing but numbers.

use super::model::{CONTEXT, HEADS, HIDDEN, INNER, LAYERS, SHARED_HEADS, VOCABULARY};
use anyhow::Result;
use half::f16;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

/// Numbers of types of values, as the format has them.
const U32: u32 = 4;
const I32: u32 = 5;
const F32: u32 = 6;
const STRING: u32 = 8;
const ARRAY: u32 = 9;
/// Numbers of types of tensors.
const TENSOR_F32: u32 = 0;
const TENSOR_Q8_0: u32 = 8;
/// Tensors begin at multiples of this.
const ALIGNMENT: usize = 32;
/// Weights of a block of Q8_0.
const BLOCK: usize = 32;

/// A file that is being made.
pub(super) struct GgufFile {
    /// Descriptions of the tensors.
    index: Vec<u8>,
    count: u64,
    data: Vec<u8>,
}

impl GgufFile {
    pub(super) fn new() -> Self {
        Self { index: Vec::new(), count: 0, data: Vec::new() }
    }

    /// Adds a tensor of these bf16 numbers.
    pub(super) fn add(&mut self, name: &str, shape: &[usize], numbers: &[u8]) {
        let numbers: Vec<f32> = numbers
            .as_chunks::<2>()
            .0
            .iter()
            .map(|b| f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16))
            .collect();
        let is_matrix = shape.len() == 2;
        text(&mut self.index, name);
        self.index.extend((shape.len() as u32).to_le_bytes());
        // The innermost dimension comes first.
        shape.iter().rev().for_each(|length| self.index.extend((*length as u64).to_le_bytes()));
        self.index.extend(if is_matrix { TENSOR_Q8_0 } else { TENSOR_F32 }.to_le_bytes());
        self.index.extend((self.data.len() as u64).to_le_bytes());
        match is_matrix {
            true => numbers.chunks_exact(BLOCK).for_each(|block| quantize(block, &mut self.data)),
            false => numbers.iter().for_each(|number| self.data.extend(number.to_le_bytes())),
        }
        self.data.resize(self.data.len().next_multiple_of(ALIGNMENT), 0);
        self.count += 1;
    }

    pub(super) fn write(&self, path: &Path) -> Result<()> {
        let (count, metadata) = metadata();
        let mut head = b"GGUF".to_vec();
        head.extend(3_u32.to_le_bytes());
        head.extend(self.count.to_le_bytes());
        head.extend(count.to_le_bytes());
        head.extend(metadata);
        head.extend(&self.index);
        head.resize(head.len().next_multiple_of(ALIGNMENT), 0);
        let mut file = BufWriter::new(File::create(path)?);
        file.write_all(&head)?;
        file.write_all(&self.data)?;
        Ok(file.flush()?)
    }
}

/// Appends a block of Q8_0: a scale, and 32 integers.
fn quantize(block: &[f32], data: &mut Vec<u8>) {
    let most = block.iter().fold(0.0_f32, |most, number| most.max(number.abs()));
    let scale = f16::from_f32(most / 127.0);
    data.extend(scale.to_le_bytes());
    let steps = if most > 0.0 { 127.0 / most } else { 0.0 };
    data.extend(block.iter().map(|number| (number * steps).round_ties_even() as i8 as u8));
}

fn text(to: &mut Vec<u8>, text: &str) {
    to.extend((text.len() as u64).to_le_bytes());
    to.extend(text.as_bytes());
}

/// Returns the number of fields, and the fields.
fn metadata() -> (u64, Vec<u8>) {
    let mut fields = Vec::new();
    let mut count = 0;
    let mut field = |name: &str, kind: u32, value: &[u8]| {
        text(&mut fields, name);
        fields.extend(kind.to_le_bytes());
        fields.extend(value);
        count += 1;
    };
    for (name, value) in [("general.architecture", "llama"), ("tokenizer.ggml.model", "llama")] {
        let mut bytes = Vec::new();
        text(&mut bytes, value);
        field(name, STRING, &bytes);
    }
    for (name, value) in [
        ("general.file_type", 7),
        ("general.quantization_version", 2),
        ("llama.block_count", LAYERS),
        ("llama.context_length", CONTEXT),
        ("llama.embedding_length", HIDDEN),
        ("llama.feed_forward_length", INNER),
        ("llama.attention.head_count", HEADS),
        ("llama.attention.head_count_kv", SHARED_HEADS),
        ("llama.rope.dimension_count", HIDDEN / HEADS),
        ("llama.vocab_size", VOCABULARY),
        ("tokenizer.ggml.unknown_token_id", 0),
        ("tokenizer.ggml.bos_token_id", 1),
        ("tokenizer.ggml.eos_token_id", 2),
    ] {
        field(name, U32, &(value as u32).to_le_bytes());
    }
    for (name, value) in
        [("llama.attention.layer_norm_rms_epsilon", 1e-5_f32), ("llama.rope.freq_base", 10_000.0)]
    {
        field(name, F32, &value.to_le_bytes());
    }
    let words: Vec<(String, i32)> = (0..VOCABULARY).map(word).collect();
    let array = |kind: u32| [&kind.to_le_bytes()[..], &(VOCABULARY as u64).to_le_bytes()].concat();
    let mut tokens = array(STRING);
    words.iter().for_each(|(word, _)| text(&mut tokens, word));
    field("tokenizer.ggml.tokens", ARRAY, &tokens);
    let mut scores = array(F32);
    (0..VOCABULARY).for_each(|at| scores.extend((-(at as f32)).to_le_bytes()));
    field("tokenizer.ggml.scores", ARRAY, &scores);
    let mut kinds = array(I32);
    words.iter().for_each(|(_, kind)| kinds.extend(kind.to_le_bytes()));
    field("tokenizer.ggml.token_type", ARRAY, &kinds);
    (count, fields)
}

/// Returns a token and its type: unknown, control, byte or ordinary.
fn word(at: usize) -> (String, i32) {
    match at {
        0 => ("<unk>".into(), 2),
        1 => ("<s>".into(), 3),
        2 => ("</s>".into(), 3),
        3..=258 => (format!("<0x{:02X}>", at - 3), 6),
        _ => (format!("t{at}"), 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_its_tensors_at_the_offsets_that_its_index_names() {
        let mut file = GgufFile::new();
        let bf16 = |number: f32| ((number.to_bits() >> 16) as u16).to_le_bytes();
        file.add("norm", &[32], &[bf16(1.0); 32].concat());
        file.add("matrix", &[2, 32], &[bf16(-0.5); 64].concat());
        // A norm is 128 bytes, and a matrix of two rows two blocks of 34, filled up.
        assert_eq!(file.data.len(), 128 + 96);
        assert_eq!(&file.data[..4], &1.0_f32.to_le_bytes());
        let block = &file.data[128..162];
        assert_eq!(f16::from_le_bytes([block[0], block[1]]), f16::from_f32(0.5 / 127.0));
        assert!(block[2..].iter().all(|byte| *byte as i8 == -127));
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("model.gguf");
        file.write(&path).expect("written");
        let bytes = std::fs::read(&path).expect("read");
        assert_eq!(&bytes[..4], b"GGUF");
        assert_eq!(u64::from_le_bytes(bytes[8..16].try_into().expect("eight")), 2, "tensors");
        assert!((bytes.len() - file.data.len()).is_multiple_of(ALIGNMENT), "aligned");
        let offset = file.index[file.index.len() - 8..].try_into().expect("eight");
        assert_eq!(u64::from_le_bytes(offset), 128, "of the matrix");
    }

    #[test]
    fn every_token_has_a_text_of_its_own() {
        let words: std::collections::BTreeSet<String> = (0..VOCABULARY).map(|at| word(at).0).collect();
        assert_eq!(words.len(), VOCABULARY);
        assert_eq!((word(3), word(258)), (("<0x00>".into(), 6), ("<0xFF>".into(), 6)));
    }
}
