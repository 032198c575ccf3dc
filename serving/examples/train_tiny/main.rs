//! Trains the tiny model that the repository ships, from a seed: a Llama of two thirds of a million
//! parameters. It takes about ten minutes on one CPU thread. Run by `cargo xtask train-tiny`.
//!
//! The model answers small sums in words and questions about Quorate's own commands and terms. The task is
//! narrow enough for a model of this size to be good at, and a reader can check every answer independently.
//! Training uses one thread, so every sum has one order. The same seed gives the same file, bit for bit, on
//! the same machine.
//!
//! `train_tiny gang STEPS EVERY` is a rank of a job: all ranks train one model together, with a checkpoint
//! after each EVERY steps. An attempt that was cut off and continued leaves the same bytes as one that was
//! not.

mod card;
mod checkpoint;
mod gang;
mod lessons;
mod optimizer;
mod score;
mod text;
mod training;

use serving::engine::config::{
    DecoderShape, FeedForward, Gate, LayerShape, NormStyle, ProjectionBiases, Rotary, RotaryScaling,
};
use std::path::{Path, PathBuf};
use std::process::Command;
use training::JobPlaces;

/// Seed of all random numbers.
const SEED: u64 = 20_261_121;
/// Tokens of the vocabulary: 256 bytes, 3 special tokens, and merges enough for every word of the lessons.
const VOCABULARY: usize = 768;
/// Longest context served. Training sees 128; rotary positions extend that for content that fits in 128.
const CONTEXT: usize = 256;

/// Base of the rotary embedding.
const THETA: f64 = 10_000.0;
/// Inner width of the feed-forward part.
const INNER: usize = 320;

fn shape() -> DecoderShape {
    let layer = LayerShape { window: None, rotary: 0, feed_forward: FeedForward::Dense { inner: INNER } };
    DecoderShape {
        hidden: 128,
        layers: vec![layer; 4],
        heads: 4,
        key_value_heads: 2,
        head_width: 32,
        vocabulary: VOCABULARY,
        norm_epsilon: 1e-5,
        norms: NormStyle::Before,
        head_norms: false,
        biases: ProjectionBiases::default(),
        gate: Gate::Silu,
        attention_scale: 1.0 / 32.0_f32.sqrt(),
        attention_soft_cap: None,
        logit_soft_cap: None,
        embedding_scale: 1.0,
        rotaries: vec![Rotary { theta: THETA, scaling: RotaryScaling::None }],
        tied_embeddings: true,
        vector: None,
    }
}

/// Directories of a rank that outlive it, within its sandbox: of checkpoints, and of outputs.
const PLACES: [&str; 2] = ["/checkpoint", "/outputs"];

fn main() -> anyhow::Result<()> {
    if std::env::var("RAYON_NUM_THREADS").as_deref() != Ok("1") {
        return run_on_one_thread();
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["gang", steps, every] => train_as_rank(steps.parse()?, every.parse()?, PLACES),
        ["gang", steps, every, checkpoints, outputs] => {
            train_as_rank(steps.parse()?, every.parse()?, [checkpoints, outputs])
        }
        ["gang", ..] => anyhow::bail!("usage: train_tiny gang STEPS EVERY [CHECKPOINTS OUTPUTS]"),
        [] => train_alone("models/tiny".into(), training::STEPS),
        [directory] => train_alone(directory.into(), training::STEPS),
        [directory, steps, ..] => train_alone(directory.into(), steps.parse()?),
    }
}

fn train_as_rank(steps: usize, every: usize, places: [&str; 2]) -> anyhow::Result<()> {
    anyhow::ensure!(every > 0, "a checkpoint after each 0 steps");
    let lessons = lessons::lessons(SEED);
    let tokenizer = text::train_tokenizer(&lessons)?;
    let [checkpoints, outputs] = places.map(Path::new);
    let places = JobPlaces { checkpoints, outputs };
    training::train_in_gang(&tokenizer, &lessons, (steps, every), &places)
}

fn train_alone(directory: PathBuf, steps: usize) -> anyhow::Result<()> {
    let lessons = lessons::lessons(SEED);
    println!(
        "{} sums and {} facts to learn; {} sums and {} wordings held out",
        lessons.sums.len(),
        lessons.facts.len(),
        lessons.held_out_sums.len(),
        lessons.held_out_wordings.len()
    );
    std::fs::create_dir_all(&directory)?;
    let tokenizer = text::train_tokenizer(&lessons)?;
    text::write_files(&directory, &tokenizer, &shape())?;
    let outcome = training::train(&directory, &tokenizer, &lessons, steps)?;
    let score = score::score(&directory, &lessons)?;
    card::write(&directory, &outcome, &score)
}

/// Restarts this program with one thread, before any library has started others.
fn run_on_one_thread() -> anyhow::Result<()> {
    let status = Command::new(std::env::current_exe()?)
        .args(std::env::args().skip(1))
        .env("RAYON_NUM_THREADS", "1")
        .env("CANDLE_NUM_THREADS", "1")
        // Keep freed tensors: returning their pages and faulting them in again is a third of the time.
        .env("MALLOC_MMAP_THRESHOLD_", "1073741824")
        .env("MALLOC_TRIM_THRESHOLD_", "4294967296")
        .status()?;
    anyhow::ensure!(status.success(), "training ended with {status}");
    Ok(())
}
