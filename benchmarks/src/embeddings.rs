//! Benchmark of MiniLM embeddings on this machine's cores: our encoder in this process beside
//! sentence-transformers and onnxruntime in another process.
//!
//! Tokenizing is included on every side, the sides alternate, and the vectors are compared. pip installs the
//! peers into `target/bench/venv`; `peers/embeddings.py` runs them.

use crate::peer::PeerProcess;
use crate::process::run_to_end;
use crate::report::{Bar, BenchmarkReport, ComparisonRow, directory, median, minilm_directory};
use crate::{Options, ceilings};
use anyhow::ensure;
use kernels::matmul::{Activation, Matrix, OutputColumns, Product, matmul};
use kernels::{ComputePool, Isa};
use serde::Deserialize;
use serde_json::json;
use serving::engine::{DeviceChoice, Engine, EngineOptions, LoadedEngine};
use serving::weights::ModelFiles;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

/// Packages that pip installs, pinned. PyTorch's exporter needs `onnx`.
const PACKAGES: &[&str] =
    &["sentence-transformers==6.2.0", "torch==2.15.0", "onnxruntime==1.31.1", "onnx==1.23.2"];
/// The peers; the first of them has a bar.
const PEERS: [&str; 2] = ["sentence-transformers", "onnxruntime"];
/// Texts in a request, and tokens in a text, including special tokens.
const SHAPES: [(usize, usize); 6] = [(1, 16), (1, 128), (8, 16), (8, 128), (32, 16), (32, 128)];
/// Batch size for which the bar applies.
const BAR_TEXTS: usize = 32;
/// Least accepted cosine of our vectors to theirs.
const COSINE_MIN: f64 = 0.9999;
/// Bars of 8 bits beside each peer, for every shape, and the least accepted cosine to our own vectors.
const QUANTIZED_BARS: [f64; 2] = [3.0, 1.0];
const QUANTIZED_COSINE_MIN: f64 = 0.995;
/// Multiply-adds of MiniLM's six layers for one token, without attention scores.
const TOKEN_MULTIPLY_ADDS: f64 = 6.0 * (4.0 * 384.0 * 384.0 + 2.0 * 384.0 * 1536.0);
/// Words that are a single token in MiniLM's vocabulary.
const WORDS: &[&str] = &[
    "the", "circle", "people", "signs", "change", "every", "node", "checks", "model", "weights", "storage",
    "river", "mountain", "number", "winter", "paper", "garden", "music", "cloud", "verify",
];

/// Runs the benchmark; the sides alternate: ours, theirs, ours, theirs.
pub(crate) fn run(options: &Options) -> anyhow::Result<BenchmarkReport> {
    let rounds = if options.quick { 5 } else { 15 };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let scratch = directory()?;
    let model = minilm_directory()?;
    let files = ModelFiles::open_directory(&model)?;
    let device = options.gpu.map_or(DeviceChoice::Cpu, DeviceChoice::Cuda);
    let engine_options = EngineOptions { threads, device, ..EngineOptions::default() };
    let mut engine = LoadedEngine::open(&files, &engine_options)?;
    let mut quantized = match options.gpu {
        None => Some(open_quantized(&model, &scratch.join("minilm-int8"), &engine_options)?),
        Some(_) => None,
    };
    let mut peer = EmbeddingPeers::start(&scratch, &model, threads, options.gpu)?;
    let mut found = BTreeMap::new();
    let (mut products, mut copies) = (Vec::new(), Vec::new());
    for round in 1..=rounds {
        products.push(product_gigaflops(threads));
        copies.push(ceilings::copy_gigabytes(threads));
        for (texts, tokens) in SHAPES {
            let batch = texts_of(&engine, texts, tokens)?;
            // A similar amount of work for every shape: 32 texts of 128 tokens once or twice, one text of 16
            // a hundred times.
            let repeat = (4096 / (texts * tokens)).clamp(1, 100);
            let cell: &mut Cell = found.entry((texts, tokens)).or_default();
            let (ours, our_vectors) = ours(&mut engine, &batch, repeat)?;
            cell.ours.push(ours);
            if let Some(quantized) = &mut quantized {
                let (rate, vectors) = self::ours(quantized, &batch, repeat)?;
                cell.quantized.push(rate);
                cell.quantized_cosines.push(least_cosine(&vectors, &widened(&our_vectors))?);
            }
            for (index, name) in PEERS.into_iter().enumerate() {
                let (theirs, their_vectors) = peer.embed(name, &batch, repeat)?;
                cell.theirs[index].push(theirs);
                cell.cosines[index].push(least_cosine(&our_vectors, &their_vectors)?);
            }
        }
        eprintln!("round {round}/{rounds}");
    }
    let mut report = report(&found, &peer.versions);
    report.ceilings.insert("f32_product_gflops (our own kernel)".into(), median(&products));
    report.ceilings.insert("memcpy_gb_per_s".into(), median(&copies));
    if let Some(gpu) = options.gpu {
        report.notes.push(format!("ours and sentence-transformers on GPU {gpu}; onnxruntime on the CPU"));
    }
    for ((texts, tokens), cell) in found.iter().filter(|_| options.gpu.is_none()) {
        let per_second = median(&cell.ours);
        let gigaflops = per_second * *tokens as f64 * 2.0 * TOKEN_MULTIPLY_ADDS / 1e9;
        let share = 100.0 * gigaflops / median(&products);
        report.notes.push(format!(
            "{texts} x {tokens}: ours does {gigaflops:.0} GFLOP/s in its products, \
             {share:.0} % of the ceiling"
        ));
    }
    report.notes.push(format!(
        "{threads} threads on every side, {} here, f32 everywhere, tokenizing included, warm-up excluded",
        Isa::best().name()
    ));
    Ok(report)
}

/// Quantises the model into a fresh directory, and opens it.
fn open_quantized(model: &Path, directory: &Path, options: &EngineOptions) -> anyhow::Result<LoadedEngine> {
    if directory.exists() {
        std::fs::remove_dir_all(directory)?;
    }
    std::fs::create_dir_all(directory)?;
    model_store::quantize(model, directory, |_, _| ())?;
    Ok(LoadedEngine::open(&ModelFiles::open_directory(directory)?, options)?)
}

fn widened(vectors: &[Vec<f32>]) -> Vec<Vec<f64>> {
    vectors.iter().map(|vector| vector.iter().map(|number| f64::from(*number)).collect()).collect()
}

/// Results of one shape, one per round: texts per second, and cosines to each peer.
#[derive(Default)]
struct Cell {
    ours: Vec<f64>,
    /// Ours with weights of 8 bits, and their cosines to ours of 32.
    quantized: Vec<f64>,
    quantized_cosines: Vec<f64>,
    theirs: [Vec<f64>; 2],
    cosines: [Vec<f64>; 2],
}

fn report(found: &BTreeMap<(usize, usize), Cell>, versions: &BTreeMap<String, String>) -> BenchmarkReport {
    let mut report = BenchmarkReport::new("embeddings");
    for (index, name) in PEERS.into_iter().enumerate() {
        let peer = format!("{name} {}", versions.get(name).map_or("", String::as_str));
        for ((texts, tokens), cell) in found {
            let bar = (index == 0 && *texts == BAR_TEXTS).then_some(Bar::AtLeast(1.0));
            let metric = format!("texts {texts} x {tokens} tokens");
            report.rows.push(ComparisonRow::new(
                &metric,
                "texts/s",
                &peer,
                &cell.ours,
                &cell.theirs[index],
                bar,
            ));
        }
        for ((texts, tokens), cell) in found.iter().filter(|(_, cell)| !cell.quantized.is_empty()) {
            let metric = format!("int8: {texts} x {tokens} tokens");
            let bar = Some(Bar::AtLeast(QUANTIZED_BARS[index]));
            let theirs = &cell.theirs[index];
            report.rows.push(ComparisonRow::new(&metric, "texts/s", &peer, &cell.quantized, theirs, bar));
        }
        let cosines: Vec<f64> = found.values().flat_map(|cell| cell.cosines[index].iter().copied()).collect();
        let least = cosines.into_iter().fold(1.0, f64::min);
        let bar = Some(Bar::AtLeast(COSINE_MIN));
        report.rows.push(ComparisonRow::new("least cosine", "", &peer, &[least], &[1.0], bar));
    }
    let cosines = found.values().flat_map(|cell| cell.quantized_cosines.iter().copied());
    if let Some(least) = cosines.reduce(f64::min) {
        let bar = Some(Bar::AtLeast(QUANTIZED_COSINE_MIN));
        report.rows.push(ComparisonRow::new("int8: least cosine", "", "ours, f32", &[least], &[1.0], bar));
    }
    report
}

/// Measures our side: texts per second, and the vectors.
fn ours(engine: &mut LoadedEngine, texts: &[String], repeat: usize) -> anyhow::Result<(f64, Vec<Vec<f32>>)> {
    let mut embed = || -> anyhow::Result<Vec<Vec<f32>>> {
        let encode = |text: &String| engine.frontend().encode(text, true);
        let tokens: Vec<Vec<u32>> = texts.iter().map(encode).collect::<Result<_, _>>()?;
        Ok(engine.embed(&tokens)?)
    };
    let mut vectors = embed()?;
    let begin = Instant::now();
    for _ in 0..repeat {
        vectors = embed()?;
    }
    Ok(((texts.len() * repeat) as f64 / begin.elapsed().as_secs_f64(), vectors))
}

/// Returns distinct texts of exactly this many tokens.
fn texts_of(engine: &LoadedEngine, texts: usize, tokens: usize) -> anyhow::Result<Vec<String>> {
    let word = |text: usize, at: usize| WORDS[(text * 7 + at * (3 + text % 5) + at / 11) % WORDS.len()];
    // The tokenizer adds two tokens of its own.
    let text = |text: usize| (2..tokens).map(|at| word(text, at)).collect::<Vec<_>>().join(" ");
    let texts: Vec<String> = (0..texts).map(text).collect();
    for text in &texts {
        let found = engine.frontend().encode(text, true)?.len();
        ensure!(found == tokens, "{text:?} has {found} tokens, not {tokens}");
    }
    Ok(texts)
}

/// Returns the least cosine of vectors at equal positions. Vectors that cannot be compared are an error, not
/// a large cosine.
fn least_cosine(ours: &[Vec<f32>], theirs: &[Vec<f64>]) -> anyhow::Result<f64> {
    ensure!(ours.len() == theirs.len(), "{} vectors beside {}", ours.len(), theirs.len());
    let alike = ours.iter().zip(theirs).all(|(ours, theirs)| ours.len() == theirs.len() && !ours.is_empty());
    ensure!(alike, "vectors of other widths");
    let cosine = |ours: &Vec<f32>, theirs: &Vec<f64>| {
        let length = |sum: f64| sum.sqrt();
        let product: f64 = ours.iter().zip(theirs).map(|(a, b)| f64::from(*a) * b).sum();
        let our_length = length(ours.iter().map(|a| f64::from(*a).powi(2)).sum());
        product / our_length / length(theirs.iter().map(|b| b * b).sum())
    };
    let cosines: Vec<f64> = ours.iter().zip(theirs).map(|(ours, theirs)| cosine(ours, theirs)).collect();
    ensure!(cosines.iter().all(|cosine| cosine.is_finite()), "vectors without a direction: {cosines:?}");
    Ok(cosines.into_iter().fold(1.0, f64::min))
}

/// Measures our own product at a favourable shape, on all threads: the practical ceiling of the layers.
fn product_gigaflops(threads: usize) -> f64 {
    const ROWS: usize = 252;
    const OUTPUTS: usize = 1536;
    const INPUTS: usize = 384;
    let pool = ComputePool::new(threads);
    let (input, weight) = (vec![0.5; ROWS * INPUTS], vec![0.25; OUTPUTS * INPUTS]);
    let mut values = vec![0.0; ROWS * OUTPUTS];
    let mut once = || {
        let target = OutputColumns { values: &mut values, stride: OUTPUTS, offset: 0 };
        let weight = Matrix::from_f32(&weight, OUTPUTS, INPUTS);
        let product = Product { input: &input, rows: ROWS, weight, bias: None, activation: Activation::None };
        pool.enter(|| matmul(Isa::best(), &pool, &product, target));
    };
    once();
    let (begin, repeat) = (Instant::now(), 100);
    (0..repeat).for_each(|_| once());
    (2 * ROWS * OUTPUTS * INPUTS * repeat) as f64 / begin.elapsed().as_secs_f64() / 1e9
}

/// The Python process that runs the peers.
struct EmbeddingPeers {
    process: PeerProcess,
    versions: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Hello {
    versions: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct PeerEmbeddings {
    seconds: Vec<f64>,
    vectors: Vec<Vec<f64>>,
}

impl EmbeddingPeers {
    fn start(directory: &Path, model: &Path, threads: usize, gpu: Option<usize>) -> anyhow::Result<Self> {
        let python = install(&directory.join("venv"))?;
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/embeddings.py");
        let mut command = Command::new(python);
        command
            .arg(script)
            .arg(model)
            .arg(threads.to_string())
            .arg(directory.join("minilm.onnx"))
            .arg(gpu.map_or("cpu".to_string(), |ordinal| format!("cuda:{ordinal}")));
        let mut process = PeerProcess::start(&mut command, &directory.join("embeddings-peer.log"))?;
        let versions = process.read::<Hello>()?.versions;
        Ok(Self { process, versions })
    }

    /// Measures a peer: texts per second, and the vectors.
    fn embed(&mut self, peer: &str, texts: &[String], repeat: usize) -> anyhow::Result<(f64, Vec<Vec<f64>>)> {
        // One more repetition, the first, is a warm-up and does not count.
        let request = json!({ "peer": peer, "texts": texts, "repeat": repeat + 1 });
        let answer: PeerEmbeddings = self.process.ask(&request)?;
        let seconds: f64 = answer.seconds[1..].iter().sum();
        Ok(((texts.len() * repeat) as f64 / seconds, answer.vectors))
    }
}

/// Returns the Python of the virtual environment, with the peers installed.
fn install(directory: &Path) -> anyhow::Result<PathBuf> {
    let python = directory.join("bin/python");
    let wanted = PACKAGES.join("\n");
    let mark = directory.join("installed");
    if std::fs::read_to_string(&mark).is_ok_and(|installed| installed == wanted) {
        return Ok(python);
    }
    eprintln!("installing {} into {} (several GB, once)", PACKAGES.join(", "), directory.display());
    run_to_end(Command::new("python3").args(["-m", "venv"]).arg(directory))?;
    run_to_end(Command::new(&python).args(["-m", "pip", "install", "--quiet"]).args(PACKAGES))?;
    std::fs::write(mark, wanted)?;
    Ok(python)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_applies_to_the_large_batches_and_to_the_cosine() {
        let cell = |cosine| Cell {
            ours: vec![20.0],
            quantized: vec![],
            quantized_cosines: vec![],
            theirs: [vec![10.0], vec![40.0]],
            cosines: [vec![1.0], vec![cosine]],
        };
        let found = BTreeMap::from([((1, 16), cell(1.0)), ((BAR_TEXTS, 16), cell(0.5))]);
        let report = report(&found, &BTreeMap::from([(PEERS[0].to_string(), "6".to_string())]));
        assert_eq!(report.rows.len(), 6);
        assert_eq!(report.rows[0].peer, "sentence-transformers 6");
        let bars: Vec<bool> = report.rows.iter().map(|row| row.bar.is_some()).collect();
        assert_eq!(bars, [false, true, true, false, false, true]);
        assert_eq!(report.shortfalls(), ["least cosine: 0.500, bar ratio >= 1.00"]);
    }

    #[test]
    fn incomparable_vectors_have_no_cosine() {
        let ours = vec![vec![1.0, 0.0], vec![0.0, 2.0]];
        let cosine = least_cosine(&ours, &[vec![2.0, 0.0], vec![1.0, 1.0]]).expect("comparable");
        assert!((cosine - 0.5_f64.sqrt()).abs() < 1e-9, "{cosine}");
        for theirs in [
            vec![vec![1.0, 0.0]],
            vec![vec![1.0, 0.0], vec![1.0]],
            vec![vec![1.0, 0.0], vec![f64::NAN, 0.0]],
            vec![vec![1.0, 0.0], vec![0.0, 0.0]],
        ] {
            assert!(least_cosine(&ours, &theirs).is_err(), "{theirs:?}");
        }
    }
}
