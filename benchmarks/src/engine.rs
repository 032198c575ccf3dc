//! Benchmark of the decoder on this machine's cores, with weights of 8 bits: our engine in this process
//! beside llama.cpp in another one.
//!
//! Both compute a Llama of 0.35 billion random weights: ours in its panels, llama.cpp's as Q8_0, each from
//! the same bf16 numbers and with 8.5 bits a weight. npm installs the peer into `target/bench/llama`;
//! `peers/llama.mjs` runs it. Ours with bf16 is a row of its own.

mod gguf;
mod model;

use crate::peer::PeerProcess;
use crate::process::run_to_end;
use crate::report::{Bar, BenchmarkReport, ComparisonRow, directory, median};
use crate::{Options, ceilings};
use anyhow::{Context as _, Result, ensure};
use kernels::Isa;
use kernels::int8::IntegerIsa;
use kernels::sampling::Sampling;
use model::LlamaOnDisk;
use serde::Deserialize;
use serde_json::{Value, json};
use serving::engine::{BLOCK_TOKENS, BlockId, Draw, Engine, EngineOptions, LoadedEngine, SequenceChunk};
use serving::weights::ModelFiles;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

/// Package of the peer, pinned. It brings llama.cpp built for every level of x86.
const PACKAGE: &str = "node-llama-cpp@3.22.1";
/// Tokens of the prompt whose reading is measured.
const PROMPT: usize = 512;
/// Streams that generate at once, and tokens of the prompt of each.
const STREAMS: [usize; 3] = [1, 8, 32];
const SHORT: usize = 16;
/// Tokens that each stream generates.
const GENERATED: usize = 48;
/// Rounds of a whole run and of a quick one.
const ROUNDS: (usize, usize) = (5, 1);
/// KV cache of ours in bytes.
const CACHE_BYTES: usize = 512 << 20;

/// Runs the benchmark; the sides alternate.
pub(crate) fn run(options: &Options) -> Result<BenchmarkReport> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let scratch = directory()?.join("engine");
    let model = LlamaOnDisk::make(&scratch)?;
    let mut plain = open(&model.plain, threads)?;
    let mut quantized = open(&model.quantized, threads)?;
    let mut peer = LlamaProcess::start(&scratch, &model.gguf, threads)?;
    let mut measured = EngineRounds::default();
    let rounds = if options.quick { ROUNDS.1 } else { ROUNDS.0 };
    for round in 0..=rounds {
        let one = EngineRound::measure(&mut plain, &mut quantized, &mut peer, round as u64)?;
        // The first warms caches and page tables up on all sides.
        if round > 0 {
            measured.take(one);
            measured.reads.push(ceilings::read_gigabytes(threads)?);
            eprintln!("round {round}/{rounds}");
        }
    }
    Ok(report(&measured, &model, &peer.version, threads))
}

fn open(path: &Path, threads: usize) -> Result<LoadedEngine> {
    let options = EngineOptions { threads, cache_bytes_max: CACHE_BYTES, ..EngineOptions::default() };
    let engine = LoadedEngine::open(&ModelFiles::open_directory(path)?, &options)?;
    engine.weights().check()?;
    Ok(engine)
}

/// Tokens a second of one side: of the prompt, and of each number of streams.
type Rates = [f64; 1 + STREAMS.len()];

struct EngineRound {
    plain: Rates,
    quantized: Rates,
    peer: Rates,
}

impl EngineRound {
    fn measure(
        plain: &mut LoadedEngine,
        quantized: &mut LoadedEngine,
        peer: &mut LlamaProcess,
        seed: u64,
    ) -> Result<Self> {
        let (mut of_plain, mut of_quantized, mut of_peer) =
            (Rates::default(), Rates::default(), Rates::default());
        let prompt = model::tokens(PROMPT, seed);
        of_quantized[0] = PROMPT as f64 / prefill(quantized, &prompt)?;
        of_peer[0] = PROMPT as f64 / peer.ask(&json!({ "prefill": prompt }))?.seconds;
        of_plain[0] = PROMPT as f64 / prefill(plain, &prompt)?;
        for (index, streams) in STREAMS.into_iter().enumerate() {
            let prompts: Vec<Vec<u32>> =
                (0..streams).map(|stream| model::tokens(SHORT, seed * 100 + stream as u64)).collect();
            of_quantized[index + 1] = decode(quantized, &prompts)?;
            let answer = peer.ask(&json!({ "decode": prompts, "count": GENERATED }))?;
            ensure!(answer.generated >= streams * GENERATED / 2, "the peer generates: {answer:?}");
            of_peer[index + 1] = answer.generated as f64 / answer.seconds;
            of_plain[index + 1] = decode(plain, &prompts)?;
        }
        Ok(Self { plain: of_plain, quantized: of_quantized, peer: of_peer })
    }
}

/// Returns the seconds in which a prompt is read.
fn prefill(engine: &mut LoadedEngine, prompt: &[u32]) -> Result<f64> {
    let blocks = blocks(0, PROMPT);
    let begin = Instant::now();
    engine.step(&[SequenceChunk { blocks: &blocks, position: 0, tokens: prompt, draw: None }])?;
    Ok(begin.elapsed().as_secs_f64())
}

/// Returns the tokens a second that the streams of these prompts generate together.
fn decode(engine: &mut LoadedEngine, prompts: &[Vec<u32>]) -> Result<f64> {
    let sampling = Sampling { temperature: 0.0, top_p: 1.0, seed: 0 };
    let draw = Some(Draw { sampling, rules: None, logprobs: None, prompt: SHORT });
    let tables: Vec<Vec<BlockId>> =
        (0..prompts.len()).map(|stream| blocks(stream, SHORT + GENERATED)).collect();
    let step = |engine: &mut LoadedEngine, tokens: &[Vec<u32>], position: usize| -> Result<Vec<Vec<u32>>> {
        let chunks: Vec<_> = tokens
            .iter()
            .zip(&tables)
            .map(|(tokens, blocks)| SequenceChunk { blocks, position, tokens, draw })
            .collect();
        let drawn = engine.step(&chunks)?;
        let tokens = drawn.into_iter().map(|drawn| Ok(vec![drawn.context("a token")?.token]));
        tokens.collect()
    };
    let mut tokens = step(engine, prompts, 0)?;
    let begin = Instant::now();
    for generated in 0..GENERATED {
        tokens = step(engine, &tokens, SHORT + generated)?;
    }
    Ok((prompts.len() * GENERATED) as f64 / begin.elapsed().as_secs_f64())
}

/// Returns the blocks of a stream with room for so many tokens.
fn blocks(stream: usize, tokens: usize) -> Vec<BlockId> {
    let count = tokens.div_ceil(BLOCK_TOKENS);
    (stream * count..(stream + 1) * count).map(|block| BlockId(block as u32)).collect()
}

#[derive(Default)]
struct EngineRounds {
    rounds: Vec<EngineRound>,
    /// Gigabytes a second that the machine reads.
    reads: Vec<f64>,
}

impl EngineRounds {
    fn take(&mut self, round: EngineRound) {
        self.rounds.push(round);
    }

    fn column(&self, of: impl Fn(&EngineRound) -> &Rates, index: usize) -> Vec<f64> {
        self.rounds.iter().map(|round| of(round)[index]).collect()
    }
}

fn report(measured: &EngineRounds, model: &LlamaOnDisk, version: &str, threads: usize) -> BenchmarkReport {
    let mut report = BenchmarkReport::new("engine");
    let peer = format!("llama.cpp {version}, Q8_0");
    let names = ["prompt of 512", "1 stream", "8 streams", "32 streams"];
    let bars = [Some(Bar::AtLeast(3.0)), Some(Bar::AtLeast(1.4)), None, None];
    for (index, (name, bar)) in names.into_iter().zip(bars).enumerate() {
        let ours = measured.column(|round| &round.quantized, index);
        let theirs = measured.column(|round| &round.peer, index);
        report.rows.push(ComparisonRow::new(name, "tokens/s", &peer, &ours, &theirs, bar));
    }
    for (index, name) in names.into_iter().enumerate() {
        let ours = measured.column(|round| &round.quantized, index);
        let plain = measured.column(|round| &round.plain, index);
        report.rows.push(ComparisonRow::new(name, "tokens/s", "ours with bf16", &ours, &plain, None));
    }
    let [one, many] = [1, 3].map(|index| measured.column(|round| &round.quantized, index));
    let eight = measured.column(|round| &round.peer, 2);
    let bar = Some(Bar::AtLeast(8.0));
    let row = ComparisonRow::new("32 streams", "tokens/s", "llama.cpp with 8 streams", &many, &eight, bar);
    report.rows.push(row);
    // A token reads every weight but those of the table of embeddings, of which it reads a row.
    let table = model::VOCABULARY * model::HIDDEN;
    let gigabytes =
        (model.parameters - table) as f64 / model.parameters as f64 * model.quantized_bytes as f64 / 1e9;
    let read: Vec<f64> = one.iter().map(|tokens| tokens * gigabytes).collect();
    let (bar, peer) = (Some(Bar::AtLeast(0.85)), "what this machine reads");
    report.rows.push(ComparisonRow::new("1 stream, weights", "GB/s", peer, &read, &measured.reads, bar));
    report.ceilings.insert("read_gb_per_s".into(), median(&measured.reads));
    report.notes.push(format!(
        "a Llama of {:.2} billion weights, {:.2} GB with 8 bits, {gigabytes:.2} of which a token reads",
        model.parameters as f64 / 1e9,
        model.quantized_bytes as f64 / 1e9,
    ));
    report.notes.push(format!(
        "{threads} threads on both sides; here {} and {}; greedy",
        Isa::best().name(),
        IntegerIsa::within(Isa::best()).name()
    ));
    report
}

/// llama.cpp in its process.
struct LlamaProcess {
    process: PeerProcess,
    version: String,
}

#[derive(Debug, Deserialize)]
struct PeerRun {
    seconds: f64,
    generated: usize,
}

impl LlamaProcess {
    fn start(scratch: &Path, gguf: &Path, threads: usize) -> Result<Self> {
        let script = install(&directory()?.join("llama"))?;
        let most = STREAMS.into_iter().max().unwrap_or(1);
        let mut command = Command::new("node");
        command.arg(script).arg(gguf).args([threads.to_string(), most.to_string()]);
        let mut process = PeerProcess::start(&mut command, &scratch.join("llama.log"))?;
        let hello: Value = process.read()?;
        let version = hello["version"].as_str().unwrap_or("unknown").to_string();
        Ok(Self { process, version })
    }

    fn ask(&mut self, request: &Value) -> Result<PeerRun> {
        self.process.ask(request)
    }
}

/// Installs the package of the peer, and returns the script beside it: modules are found from there.
fn install(directory: &Path) -> Result<PathBuf> {
    std::fs::create_dir_all(directory)?;
    let script = directory.join("llama.mjs");
    std::fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/llama.mjs"), &script)?;
    let mark = directory.join("installed");
    if !std::fs::read_to_string(&mark).is_ok_and(|installed| installed == PACKAGE) {
        eprintln!("installing {PACKAGE} into {}", directory.display());
        let install = ["install", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix"];
        run_to_end(Command::new("npm").args(install).arg(directory).arg(PACKAGE))?;
        std::fs::write(mark, PACKAGE)?;
    }
    Ok(script)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn streams_have_blocks_of_their_own_within_the_cache() {
        let all = (0..32).flat_map(|stream| blocks(stream, SHORT + GENERATED));
        let found: Vec<BlockId> = all.collect();
        assert_eq!(found.iter().collect::<BTreeSet<_>>().len(), found.len());
        assert!(blocks(0, PROMPT).len() * BLOCK_TOKENS >= PROMPT);
        // Keys and values of all layers and shared heads, f32.
        let width = 2 * model::SHARED_HEADS * model::HIDDEN / model::HEADS * model::LAYERS;
        assert!(found.len() * BLOCK_TOKENS * width * 4 <= CACHE_BYTES, "the cache holds them");
    }

    #[test]
    fn bars_are_for_the_prompt_one_stream_many_and_the_bandwidth() {
        let round =
            EngineRound { plain: [1.0; 4], quantized: [30.0, 2.0, 8.0, 9.0], peer: [10.0, 1.0, 1.0, 1.0] };
        let measured = EngineRounds { rounds: vec![round], reads: vec![2.0] };
        let path = PathBuf::new;
        let (plain, quantized, gguf) = (path(), path(), path());
        let model =
            LlamaOnDisk { plain, quantized, gguf, parameters: 1 << 40, quantized_bytes: 1_000_000_000 };
        let report = report(&measured, &model, "b1", 2);
        let held: Vec<bool> =
            report.rows.iter().filter(|row| row.bar.is_some()).map(|row| row.holds).collect();
        assert_eq!(held, [true, true, true, true]);
    }
}
