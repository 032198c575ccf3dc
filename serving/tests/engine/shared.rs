//! Tests of weights that load while the engine already computes.

use crate::models::{bert_config, bits, open, options, tokens, write};
use safetensors::Dtype;
use serving::engine::{Engine, LoadedEngine};
use serving::weights::{FileRange, ModelFiles, SharedLayout};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Small segments, so that a small model has many.
const SEGMENT: u64 = 4096;

/// Simulated agent: the two shared files, and the bytes to fill in.
struct Filling {
    weights: std::fs::File,
    progress: std::fs::File,
    bytes: Vec<u8>,
    layout: SharedLayout,
}

impl Filling {
    fn of(directory: &Path) -> Self {
        let (mut bytes, mut files) = (Vec::new(), Vec::new());
        for path in
            ["1_Pooling/config.json", "config.json", "modules.json", "tokenizer.json", "model.safetensors"]
        {
            let content = std::fs::read(directory.join(path)).expect("read");
            // An odd offset on purpose: no reader may assume alignment.
            bytes.push(0);
            let (offset, length) = (bytes.len() as u64, content.len() as u64);
            files.push(FileRange { path: path.to_owned(), offset, length });
            bytes.extend(content);
        }
        let total = bytes.len() as u64;
        let segments: Vec<(u64, u64)> =
            (0..total.div_ceil(SEGMENT)).map(|i| (i * SEGMENT, SEGMENT.min(total - i * SEGMENT))).collect();
        let weights = tempfile::tempfile().expect("a file");
        weights.set_len(total).expect("sized");
        let progress = tempfile::tempfile().expect("a file");
        progress.set_len(segments.len() as u64).expect("sized");
        Self { weights, progress, bytes, layout: SharedLayout { files, segments } }
    }

    fn map(&self, stall: Duration) -> Arc<ModelFiles> {
        let clone = |file: &std::fs::File| OwnedFd::from(file.try_clone().expect("cloned"));
        ModelFiles::from_shared(&clone(&self.weights), &clone(&self.progress), &self.layout, stall)
            .expect("a consistent layout")
    }

    fn deliver(&self, segment: usize) {
        let (offset, length) = self.layout.segments[segment];
        let bytes = &self.bytes[offset as usize..(offset + length) as usize];
        self.weights.write_all_at(bytes, offset).expect("written");
        self.progress.write_all_at(&[1], segment as u64).expect("written");
    }
}

#[test]
fn the_answer_is_the_same_for_any_order_in_which_weights_arrive() {
    let directory = write(&bert_config(), Dtype::F32);
    let texts = vec![tokens(20, 1), tokens(60, 2)];
    let expected = open(directory.path(), 2).embed(&texts).expect("computed");
    let filling = Filling::of(directory.path());
    let files = filling.map(Duration::from_secs(60));
    let count = filling.layout.segments.len();
    assert!(count > 20, "{count} segments");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Backwards, so that the bytes needed first arrive last.
            for segment in (0..count).rev() {
                filling.deliver(segment);
                std::thread::yield_now();
            }
        });
        let mut engine = LoadedEngine::open(&files, &options(2)).expect("opened");
        let found = engine.embed(&texts).expect("computed");
        for (found, expected) in found.iter().zip(&expected) {
            assert_eq!(bits(found), bits(expected));
        }
    });
    assert_eq!(files.arrived(), (count, count));
}

#[test]
fn the_engine_opens_before_its_weights_arrive() {
    let directory = write(&bert_config(), Dtype::F32);
    let filling = Filling::of(directory.path());
    let files = filling.map(Duration::from_millis(200));
    // All small files and the header, but hardly any tensor.
    let header = filling.layout.files[4].offset + 8192;
    for segment in 0..=(header / SEGMENT) as usize {
        filling.deliver(segment);
    }
    let mut engine = LoadedEngine::open(&files, &options(1)).expect("opened");
    let error = engine.embed(&[tokens(5, 1)]).expect_err("nothing more arrives");
    assert_eq!(error.code().as_str(), "weights-stalled");
    for segment in 0..filling.layout.segments.len() {
        filling.deliver(segment);
    }
    engine.embed(&[tokens(5, 1)]).expect("now it can");
}

#[test]
fn layouts_that_contradict_the_files_are_refused() {
    let directory = write(&bert_config(), Dtype::F32);
    let filling = Filling::of(directory.path());
    let total = filling.bytes.len() as u64;
    let refuse = |layout: &SharedLayout| {
        let clone = |file: &std::fs::File| OwnedFd::from(file.try_clone().expect("cloned"));
        let second = Duration::from_secs(1);
        let outcome =
            ModelFiles::from_shared(&clone(&filling.weights), &clone(&filling.progress), layout, second);
        outcome.expect_err("refused").code().to_string()
    };
    let mut beyond = filling.layout.clone();
    beyond.files[0].length = total;
    let mut overflowing = filling.layout.clone();
    overflowing.files[0].offset = u64::MAX;
    let mut unordered = filling.layout.clone();
    unordered.segments.swap(0, 5);
    let mut more = filling.layout.clone();
    more.segments.extend([(total, 0); 2]);
    for layout in [beyond, overflowing, unordered, more] {
        assert_eq!(refuse(&layout), "model-manifest-invalid");
    }
}
