//! Benchmark of model loading, from an accepted order to the last segment verified, beside candle's stock
//! loaders reading the same plain file.
//!
//! Our side reads a model from six local stores, erasure-coded 4+2 and encrypted, and verifies it into shared
//! memory. Both sides read from a warm page cache. Our side does more (it decrypts and hashes every byte) and
//! leaves its bytes in a map that every worker of a node shares; candle leaves private tensors. The last row
//! measures the small language model in a whole cluster, up to its first token.

use crate::report::{Bar, BenchmarkReport, ComparisonRow, directory, median, minilm_directory};
use crate::{Options, ceilings, first_token};
use anyhow::{Context as _, ensure};
use candle_core::Device;
use candle_core::safetensors::MmapedSafetensors;
use model_store::{
    Context, EncryptionSecret, ImportOptions, Imported, MapDestination, Pool, Reader, Store, fetch_manifest,
    fresh_nonce, import, log_faults, open_store, unwrap_key, wrap_key,
};
use protocol::model::{KeyWrap, Recipient, StoreReference};
use std::fs::File;
use std::hint::black_box;
use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// Rounds of each side; the sides alternate.
const ROUNDS: usize = 7;
/// Size of a random weight in bytes.
const BF16_BYTES: usize = 2;
/// Names of the ceilings that both sides are compared with.
const MEMCPY: &str = "memcpy_gigabytes_per_second";
const FIRST_TOUCH: &str = "first_touch_shared_gigabytes_per_second";
const DISK: &str = "disk_read_gigabytes_per_second";
/// Directory of shared memory that has no file on a disk.
const SHARED_MEMORY: &str = "/dev/shm";

/// A model to load, and its name in the rows.
struct BenchmarkModel {
    name: &'static str,
    weights: WeightSource,
}

/// Source of a model's weights.
enum WeightSource {
    /// A published model directory.
    Real(PathBuf),
    /// Random bf16 values in tensors of these names and shapes.
    Random(Vec<(String, Vec<usize>)>),
}

/// A model stored on disk twice: as the plain file, and dispersed.
struct Subject {
    name: &'static str,
    plain: PathBuf,
    bytes: u64,
    imported: Imported,
    wrap: KeyWrap,
}

/// Times of one side in milliseconds, one per round.
#[derive(Default)]
struct Times {
    ours: Vec<f64>,
    mapped: Vec<f64>,
    read: Vec<f64>,
}

/// Runs the benchmark; the sides alternate: ours, mapped, read, ours, ...
pub(crate) fn run(options: &Options) -> anyhow::Result<BenchmarkReport> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let scratch = directory()?.join("quickstart");
    if scratch.exists() {
        std::fs::remove_dir_all(&scratch)?;
    }
    std::fs::create_dir_all(&scratch)?;
    let report = runtime.block_on(compare(options, &scratch));
    std::fs::remove_dir_all(&scratch)?;
    report
}

async fn compare(options: &Options, scratch: &Path) -> anyhow::Result<BenchmarkReport> {
    let rounds = if options.quick { 3 } else { ROUNDS };
    let pool = Pool::per_core();
    let secret = EncryptionSecret::generate()?;
    let mut report = BenchmarkReport::new("quickstart");
    let mut loads = Vec::new();
    let minilm = BenchmarkModel { name: "minilm", weights: WeightSource::Real(minilm_directory()?) };
    for source in [minilm, llama(1 << 28), llama(1 << 30)] {
        let subject = prepare(&source, scratch, &pool, &secret).await?;
        let times = alternate(&subject, rounds, &pool, &secret).await?;
        rows(&mut report, &subject, &times);
        loads.push((subject, times));
    }
    let (largest, _) = loads.last().context("there are subjects")?;
    add_ceilings(&mut report, &largest.plain, largest.bytes)?;
    let threads = pool.threads();
    let distances: Vec<String> =
        loads.iter().map(|(subject, times)| distance(&report, subject, times)).collect();
    report.rows.push(first_token::row(rounds).await?);
    report.notes = vec![
        "order to first token: a whole cluster of real processes, from the scheduler's own audit event"
            .into(),
        format!("stores are six directories, 4+2, pages warm; {threads} threads decode; candle loads on one"),
        "mmap is what candle's examples use (MmapedSafetensors, every tensor loaded); \
         read is safetensors::load"
            .into(),
    ];
    report.notes.extend(distances);
    Ok(report)
}

/// Describes the speed of both sides as shares of the ceilings of memory and disk.
fn distance(report: &BenchmarkReport, subject: &Subject, times: &Times) -> String {
    let share = |ms: &[f64]| {
        let speed = subject.bytes as f64 / median(ms) / 1e6;
        let of = |ceiling: &str| 100.0 * speed / report.ceilings[ceiling];
        format!(
            "{speed:.2} GB/s, {:.0} % of first touch, {:.0} % of memcpy, {:.0} % of the disk",
            of(FIRST_TOUCH),
            of(MEMCPY),
            of(DISK)
        )
    };
    format!("{}: ours {}; candle mmap {}", subject.name, share(&times.ours), share(&times.mapped))
}

fn rows(report: &mut BenchmarkReport, subject: &Subject, times: &Times) {
    let Subject { name, .. } = subject;
    let bar = (*name != "llama_256_mib").then_some(Bar::AtMost(1.5));
    let row = |what: &str, peer: &str, theirs: &[f64], bar| {
        ComparisonRow::new(&format!("load_{name}_{what}"), "ms", peer, &times.ours, theirs, bar)
    };
    report.rows.push(row("mmap", "candle 0.11.1", &times.mapped, bar));
    report.rows.push(row("read", "candle 0.11.1", &times.read, None));
}

async fn alternate(
    subject: &Subject,
    rounds: usize,
    pool: &Arc<Pool>,
    secret: &EncryptionSecret,
) -> anyhow::Result<Times> {
    let mut times = Times::default();
    for round in 0..=rounds {
        let ours = ours(subject, pool, secret).await?;
        let (mapped, read) = (mapped(subject)?, read(subject)?);
        // The first round only warms caches and allocators.
        if round > 0 {
            times.ours.push(ours);
            times.mapped.push(mapped);
            times.read.push(read);
        }
        eprintln!(
            "{} round {round}/{rounds}  ours {ours:7.1} ms   candle mmap {mapped:7.1} ms   \
             candle read {read:7.1} ms",
            subject.name
        );
    }
    Ok(times)
}

/// Measures the work of an agent between an accepted order and the last segment: open the stores, unwrap the
/// key, fetch and check the manifest, map shared memory, fill it.
async fn ours(subject: &Subject, pool: &Arc<Pool>, secret: &EncryptionSecret) -> anyhow::Result<f64> {
    let began = Instant::now();
    let record = &subject.imported.record;
    let context = Context::new();
    let stores: Vec<Store> =
        record.stores.iter().map(|store| Store::open_or_closed(store, &context)).collect();
    let key = unwrap_key(&subject.wrap, secret)?;
    let manifest = fetch_manifest(record.root, &stores, pool).await?;
    let reader = Reader::open(manifest.clone(), &key, stores, pool.clone(), log_faults())?;
    let memory = tempfile::tempfile_in(SHARED_MEMORY)?;
    memory.set_len(manifest.map_bytes())?;
    let map = Arc::new(MapDestination::map(&memory, manifest.map_bytes())?);
    let report = reader.fill(map.clone(), Arc::new(|_| ())).await?;
    let elapsed = milliseconds(began);
    ensure!(report.segments == record.segments && report.faults == 0, "a healthy fill: {report:?}");
    Ok(elapsed)
}

/// Measures candle's usual loader: it maps the file and copies each tensor out of it.
fn mapped(subject: &Subject) -> anyhow::Result<f64> {
    let began = Instant::now();
    // SAFETY: the file belongs to this process alone, and no writer changes it while it is mapped.
    let file = unsafe { MmapedSafetensors::new(&subject.plain)? };
    let tensors: Vec<_> =
        file.tensors().into_iter().map(|(name, _)| file.load(&name, &Device::Cpu)).collect();
    let elapsed = milliseconds(began);
    black_box(&tensors);
    for tensor in tensors {
        tensor?;
    }
    Ok(elapsed)
}

/// Measures candle's other loader: it reads the whole file and copies each tensor out of it.
fn read(subject: &Subject) -> anyhow::Result<f64> {
    let began = Instant::now();
    let tensors = candle_core::safetensors::load(&subject.plain, &Device::Cpu)?;
    let elapsed = milliseconds(began);
    ensure!(!tensors.is_empty(), "there are tensors");
    Ok(elapsed)
}

fn milliseconds(began: Instant) -> f64 {
    began.elapsed().as_secs_f64() * 1000.0
}

/// Imports a model; one of random weights is written first.
async fn prepare(
    source: &BenchmarkModel,
    scratch: &Path,
    pool: &Arc<Pool>,
    secret: &EncryptionSecret,
) -> anyhow::Result<Subject> {
    let home = scratch.join(source.name);
    std::fs::create_dir_all(&home)?;
    let model = match &source.weights {
        WeightSource::Real(directory) => directory.clone(),
        WeightSource::Random(tensors) => write_model(&home.join("model"), tensors)?,
    };
    let plain = model.join("model.safetensors");
    let bytes = std::fs::metadata(&plain)?.len();
    let open = |number: usize| {
        let url = format!("file://{}", home.join(format!("store-{number}")).display());
        let reference = StoreReference { url, failure_domain: format!("disk-{}", number / 2) };
        open_store(&reference, &Context::new())
    };
    let stores = (0..6).map(open).collect::<Result<Vec<Store>, _>>()?;
    let key = model_store::ModelKey::generate()?;
    let name = source.name.replace('_', "-").parse().map_err(anyhow::Error::msg)?;
    let options = ImportOptions::new(name, fresh_nonce()?);
    let imported = import(&model, options, &stores, &key, pool, |_| ()).await?;
    eprintln!(
        "{}: {:.0} MB imported 4+2 in {:.1} s, {:.0} MB written",
        source.name,
        bytes as f64 / 1e6,
        imported.elapsed.as_secs_f64(),
        imported.bytes_written as f64 / 1e6
    );
    let recipient = Recipient::Member("bench".parse().map_err(anyhow::Error::msg)?);
    let wrap = wrap_key(&key, secret.public(), imported.record.root, recipient)?;
    Ok(Subject { name: source.name, plain, bytes, imported, wrap })
}

/// Returns a Llama shape of about `bytes` bytes of bf16.
fn llama(bytes: usize) -> BenchmarkModel {
    const HIDDEN: usize = 2048;
    const INNER: usize = 5632;
    const VOCABULARY: usize = 32_000;
    let embedding = VOCABULARY * HIDDEN * 2;
    let layer_bytes = 2 * (4 * HIDDEN * HIDDEN + 3 * HIDDEN * INNER + 2 * HIDDEN);
    let layers = (bytes.saturating_sub(embedding) / layer_bytes).max(1);
    let mut tensors = vec![("model.embed_tokens.weight".to_string(), vec![VOCABULARY, HIDDEN])];
    for layer in 0..layers {
        let mut add = |name: &str, shape: &[usize]| {
            tensors.push((format!("model.layers.{layer}.{name}.weight"), shape.to_vec()));
        };
        for name in ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"] {
            add(name, &[HIDDEN, HIDDEN]);
        }
        add("mlp.gate_proj", &[INNER, HIDDEN]);
        add("mlp.up_proj", &[INNER, HIDDEN]);
        add("mlp.down_proj", &[HIDDEN, INNER]);
        add("input_layernorm", &[HIDDEN]);
        add("post_attention_layernorm", &[HIDDEN]);
    }
    tensors.push(("model.norm.weight".into(), vec![HIDDEN]));
    let name = if bytes < 1 << 30 { "llama_256_mib" } else { "llama_1_gib" };
    BenchmarkModel { name, weights: WeightSource::Random(tensors) }
}

/// Writes a Llama directory of pseudo-random weights, the same in every run.
fn write_model(directory: &Path, tensors: &[(String, Vec<usize>)]) -> anyhow::Result<PathBuf> {
    std::fs::create_dir_all(directory)?;
    let config = r#"{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 2048,
        "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32, "vocab_size": 32000,
        "max_position_embeddings": 2048}"#;
    std::fs::write(directory.join("config.json"), config)?;
    std::fs::write(directory.join("tokenizer.json"), "{}")?;
    write_weights(tensors, &directory.join("model.safetensors"))?;
    Ok(directory.to_path_buf())
}

/// Writes a safetensors file of bf16 values.
fn write_weights(tensors: &[(String, Vec<usize>)], path: &Path) -> anyhow::Result<()> {
    let mut header = serde_json::Map::new();
    let mut end = 0;
    for (name, dimensions) in tensors {
        let begin = end;
        end += dimensions.iter().product::<usize>() * BF16_BYTES;
        let offsets = [begin, end];
        let info = serde_json::json!({ "dtype": "BF16", "shape": dimensions, "data_offsets": offsets });
        header.insert(name.clone(), info);
    }
    let mut header = serde_json::to_vec(&header)?;
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(&header)?;
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut block = vec![0; 64 * 1024];
    let mut left = end;
    while left > 0 {
        for word in block.chunks_exact_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            // Small exponents, so that no value is infinite or not a number.
            word.copy_from_slice(&(state & 0x3fff_3fff_3fff_3fff).to_le_bytes());
        }
        let part = left.min(block.len());
        file.write_all(&block[..part])?;
        left -= part;
    }
    file.flush()?;
    Ok(())
}

fn add_ceilings(report: &mut BenchmarkReport, plain: &Path, bytes: u64) -> anyhow::Result<()> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut add = |name: &str, value: f64| report.ceilings.insert(name.into(), value);
    add(MEMCPY, ceilings::copy_gigabytes(threads));
    add("page_cache_read_gigabytes_per_second", read_gigabytes(plain)?);
    add(FIRST_TOUCH, first_touch_gigabytes(threads, bytes)?);
    ceilings::forget_pages(plain)?;
    add(DISK, read_gigabytes(plain)?);
    Ok(())
}

/// Returns the gigabytes per second of reading the plain file through one small buffer.
fn read_gigabytes(path: &Path) -> anyhow::Result<f64> {
    let mut file = File::open(path)?;
    let mut buffer = vec![0; 256 * 1024];
    let (began, mut total) = (Instant::now(), 0);
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            read => total += read,
        }
    }
    Ok(total as f64 / began.elapsed().as_secs_f64() / 1e9)
}

/// Returns the gigabytes per second of writing fresh shared memory once, each thread its own part.
fn first_touch_gigabytes(threads: usize, bytes: u64) -> anyhow::Result<f64> {
    let file = tempfile::tempfile_in(SHARED_MEMORY)?;
    file.set_len(bytes)?;
    // SAFETY: the file has no name, and only this process writes it.
    let mut map = unsafe { memmap2::MmapOptions::new().map_mut(&file)? };
    let part = map.len().div_ceil(threads);
    let began = Instant::now();
    std::thread::scope(|scope| {
        for part in map.chunks_mut(part) {
            scope.spawn(|| part.fill(1));
        }
    });
    Ok(bytes as f64 / began.elapsed().as_secs_f64() / 1e9)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_random_model_is_nearly_as_large_as_asked() {
        for bytes in [1 << 28, 1 << 30] {
            let WeightSource::Random(tensors) = llama(bytes).weights else { panic!("weights are random") };
            let elements: usize = tensors.iter().map(|(_, shape)| shape.iter().product::<usize>()).sum();
            let written = elements * BF16_BYTES;
            assert!(written <= bytes && written > bytes / 4 * 3, "{written} of {bytes}");
        }
    }

    #[test]
    fn written_weights_are_read_with_their_names_and_shapes() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("model.safetensors");
        let tensors = [("a".to_string(), vec![3, 5]), ("b".to_string(), vec![7])];
        write_weights(&tensors, &path).expect("written");
        let read = candle_core::safetensors::load(&path, &Device::Cpu).expect("a safetensors file");
        assert_eq!(read.len(), 2);
        assert_eq!((read["a"].dims(), read["b"].dims()), (&[3, 5][..], &[7][..]));
    }
}
