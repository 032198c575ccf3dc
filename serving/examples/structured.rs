//! Measures grammars over real JSON schemas, for `cargo xtask bench structured`.
//!
//! `QUORATE_DATA` names a directory with `maskbench/schemas.jsonl.gz`: one object a line, with `name`,
//! `schema` and `tests`, each with `valid` and `data`. Every valid instance must be allowed token by token
//! and may then end, no invalid one may, and a schema that is not enforced must be refused by name. The
//! tokens are those of the shipped language model.

use anyhow::Context;
use flate2::read::GzDecoder;
use serde_json::Value;
use serving::engine::grammar::{AnswerGrammar, CompiledGrammar, GrammarCompiler, GrammarSource};
use serving::engine::{Engine, EngineOptions, LoadedEngine, TextFrontend};
use serving::weights::ModelFiles;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Share of schemas that may be refused.
const REFUSED_MAX: f64 = 0.02;

/// Counts and times of all schemas.
#[derive(Default)]
struct Outcome {
    schemas: usize,
    /// Refused schemas by the first words of the reason.
    refused: BTreeMap<String, Vec<String>>,
    /// Instances that were treated rightly, valid and invalid.
    right: [usize; 2],
    /// Instances that were not: their schema, and the text up to the token that decided.
    wrong: [Vec<String>; 2],
    compile: Vec<Duration>,
    masks: Vec<Duration>,
}

/// The tokens of a model by their bytes. Its own tokenizer writes lower case.
struct Vocabulary {
    tokens: BTreeMap<Vec<u8>, u32>,
    longest: usize,
    end: u32,
}

impl Vocabulary {
    fn of(frontend: &TextFrontend) -> Self {
        let end = frontend.end_tokens()[0];
        let texts = (0..frontend.vocabulary() as u32).map(|token| (frontend.token_bytes(token), token));
        let tokens: BTreeMap<Vec<u8>, u32> = texts.filter(|(bytes, _)| !bytes.starts_with(b"<|")).collect();
        let longest = tokens.keys().map(Vec::len).max().unwrap_or(1);
        Self { tokens, longest, end }
    }

    /// Returns the longest token at the beginning of a text, and its length; the end token of an empty one.
    fn next(&self, text: &[u8]) -> (u32, usize) {
        let longest = (1..=self.longest.min(text.len())).rev();
        let found = longest.filter_map(|length| Some((*self.tokens.get(&text[..length])?, length))).next();
        found.unwrap_or((self.end, 0))
    }
}

fn main() -> anyhow::Result<()> {
    let data = std::env::var("QUORATE_DATA").context("QUORATE_DATA names the directory of the data")?;
    let path = PathBuf::from(data).join("maskbench/schemas.jsonl.gz");
    let file = File::open(&path).with_context(|| format!("open {}", path.display()))?;
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tiny");
    let files = ModelFiles::open_directory(&model)?;
    let engine = LoadedEngine::open(&files, &EngineOptions::default())?;
    let frontend = engine.frontend();
    let compiler = frontend.grammars()?;
    let vocabulary = Vocabulary::of(frontend);
    let mut outcome = Outcome::default();
    for line in BufReader::new(GzDecoder::new(file)).lines() {
        measure(&serde_json::from_str(&line?)?, compiler, &vocabulary, &mut outcome);
    }
    outcome.print();
    let refused: usize = outcome.refused.values().map(Vec::len).sum();
    let share = refused as f64 / outcome.schemas as f64;
    let is_within = outcome.wrong.iter().all(Vec::is_empty) && share <= REFUSED_MAX;
    println!(
        "bar: no instance wrong, at most {REFUSED_MAX} refused: {}",
        if is_within { "holds" } else { "FALLS SHORT" }
    );
    Ok(())
}

/// Compiles one schema and writes its instances.
fn measure(case: &Value, compiler: &GrammarCompiler, vocabulary: &Vocabulary, outcome: &mut Outcome) {
    let name = case["name"].as_str().unwrap_or_default();
    outcome.schemas += 1;
    let source = Some(GrammarSource::Schema { schema: case["schema"].clone(), is_strict: false });
    let begun = Instant::now();
    let compiled = compiler.compile(&AnswerGrammar { answer: source, calls: None }, None);
    outcome.compile.push(begun.elapsed());
    let compiled = match compiled {
        Ok(compiled) => compiled,
        Err(error) => {
            let reason: Vec<String> = error.to_string().split(' ').take(4).map(str::to_owned).collect();
            outcome.refused.entry(reason.join(" ")).or_default().push(name.to_owned());
            return;
        }
    };
    for test in case["tests"].as_array().into_iter().flatten() {
        let is_valid = test["valid"] == true;
        let text = test["data"].to_string();
        let (allowed, stop) = write(&compiled, vocabulary, &text, &mut outcome.masks);
        if allowed == is_valid {
            outcome.right[usize::from(!is_valid)] += 1;
        } else {
            outcome.wrong[usize::from(!is_valid)].push(format!("{name}: {stop}"));
        }
    }
}

/// Writes a text by its tokens; returns whether it is allowed and may end, and where it is not.
fn write(
    compiled: &CompiledGrammar,
    vocabulary: &Vocabulary,
    text: &str,
    masks: &mut Vec<Duration>,
) -> (bool, String) {
    let state = compiled.begin();
    let mut at = 0;
    loop {
        let (token, length) = vocabulary.next(&text.as_bytes()[at..]);
        let begun = Instant::now();
        state.prepare();
        masks.push(begun.elapsed());
        if !state.allows(token) {
            let reason = state.failure().unwrap_or_default();
            return (false, format!("{}\u{2038} {reason}", String::from_utf8_lossy(&text.as_bytes()[..at])));
        }
        if length == 0 {
            return (true, text.to_owned());
        }
        state.push(token);
        at += length;
    }
}

impl Outcome {
    fn print(&self) {
        let refused: usize = self.refused.values().map(Vec::len).sum();
        println!("{} schemas, {refused} refused by name", self.schemas);
        for (reason, names) in &self.refused {
            println!("  {:4} {reason} ({})", names.len(), names[..names.len().min(3)].join(", "));
        }
        for (kind, index) in [("valid", 0), ("invalid", 1)] {
            let (right, wrong) = (self.right[index], &self.wrong[index]);
            println!("{} {kind} instances, {} treated wrongly", right + wrong.len(), wrong.len());
            wrong
                .iter()
                .take(20)
                .for_each(|line| println!("  {}", line.chars().take(300).collect::<String>()));
        }
        for (what, times) in [("compile", &self.compile), ("mask", &self.masks)] {
            let mut sorted = times.clone();
            sorted.sort_unstable();
            let at = |share: f64| {
                sorted.get(((sorted.len() - 1) as f64 * share) as usize).copied().unwrap_or_default()
            };
            println!(
                "{what}: p50 {:?}, p99 {:?}, p99.9 {:?}, largest {:?}",
                at(0.5),
                at(0.99),
                at(0.999),
                at(1.0)
            );
        }
    }
}
