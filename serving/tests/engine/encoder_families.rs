//! Tests of every encoder family, of cross-encoders and of decoders that embed: against an independent
//! implementation, and to the bit against themselves.

use crate::encoder_reference::result;
use crate::models::{bits, files, open, options, tokens};
use crate::published_encoders::{EncoderCase, all};
use safetensors::Dtype;
use serde_json::{Value, json};
use serving::engine::{Engine, LoadedEngine, Operation, TokenPair};
use std::path::Path;

/// Largest difference from double precision: four layers of sums over at most 64 elements.
const TOLERANCE: f64 = 3e-4;

fn named(name: &str) -> EncoderCase {
    all().into_iter().find(|case| case.name == name).expect("a case")
}

/// Computes the results of texts, each of which has the second type from its given token on.
pub(crate) fn compute(engine: &mut LoadedEngine, texts: &[(Vec<u32>, usize)]) -> Vec<Vec<f32>> {
    if engine.frontend().operation() == Operation::Rerank {
        let pairs: Vec<TokenPair> = texts
            .iter()
            .map(|(tokens, second)| TokenPair { tokens: tokens.clone(), second: *second })
            .collect();
        return engine.score(&pairs).expect("computed").into_iter().map(|score| vec![score]).collect();
    }
    let texts: Vec<Vec<u32>> = texts.iter().map(|(tokens, _)| tokens.clone()).collect();
    engine.embed(&texts).expect("computed")
}

/// Returns texts within, around and beyond a panel of 32 positions; with tokens of padding among others.
fn texts() -> Vec<(Vec<u32>, usize)> {
    let mut texts: Vec<(Vec<u32>, usize)> =
        [1, 2, 31, 33, 70, 128].iter().map(|length| (tokens(*length, 3), length / 3)).collect();
    for (text, _) in texts.iter_mut().skip(2) {
        (text[3], text[20]) = (1, 0);
    }
    texts
}

#[test]
fn every_encoder_computes_what_an_independent_implementation_computes() {
    for case in all() {
        let directory = case.write(Dtype::F32);
        let found = compute(&mut open(directory.path(), 2), &texts());
        for ((tokens, second), found) in texts().iter().zip(&found) {
            let expected = result(&case, tokens, *second);
            assert_eq!(found.len(), expected.len(), "{}", case.name);
            for (found, expected) in found.iter().zip(&expected) {
                let error = (f64::from(*found) - expected).abs();
                assert!(error < TOLERANCE, "{}, {} tokens: {found}, not {expected}", case.name, tokens.len());
            }
        }
    }
}

#[test]
fn every_encoder_keeps_every_bit_in_any_batch_and_number_of_threads() {
    for case in all() {
        for dtype in [Dtype::F32, Dtype::BF16] {
            let directory = case.write(dtype);
            let mut texts: Vec<(Vec<u32>, usize)> =
                (0..24).map(|index| (tokens(1 + (index * 37) % 128, index as u64), 1)).collect();
            texts.push((tokens(128, 99), 60));
            let mut engine = open(directory.path(), 1);
            let expected: Vec<Vec<f32>> =
                texts.iter().flat_map(|text| compute(&mut engine, std::slice::from_ref(text))).collect();
            for (threads, size) in [(1, 25), (3, 4), (3, 25)] {
                let mut engine = open(directory.path(), threads);
                let found = texts.chunks(size).flat_map(|part| compute(&mut engine, part));
                for (index, (found, expected)) in found.zip(&expected).enumerate() {
                    let at = format!("{}, {dtype:?}, text {index}, {threads} threads", case.name);
                    assert_eq!(bits(&found), bits(expected), "{at}");
                }
            }
        }
    }
}

#[test]
fn every_property_of_an_encoder_changes_its_results() {
    let identity = json!({ "activation_fn": "torch.nn.modules.linear.Identity" });
    let changes: &[(&str, &str, Value)] = &[
        ("bert", "layer_norm_eps", json!(0.1)),
        ("xlm-roberta", "pad_token_id", json!(0)),
        ("modernbert", "norm_eps", json!(0.1)),
        ("modernbert", "local_attention", json!(14)),
        ("modernbert", "global_attn_every_n_layers", json!(2)),
        ("modernbert", "global_rope_theta", json!(10_000.0)),
        ("modernbert", "local_rope_theta", json!(160_000.0)),
        ("modernbert with biases", "attention_bias", json!(false)),
        ("modernbert with biases", "mlp_bias", json!(false)),
        ("modernbert with biases", "norm_bias", json!(false)),
        ("modernbert cross-encoder", "classifier_pooling", json!("cls")),
        ("modernbert cross-encoder", "sentence_transformers", identity.clone()),
        ("modernbert cross-encoder by its first position", "classifier_bias", json!(false)),
        ("xlm-roberta cross-encoder", "sentence_transformers", identity),
        ("bert cross-encoder", "sentence_transformers", json!(null)),
    ];
    for (name, field, value) in changes {
        let text = [(tokens(70, 3), 20)];
        let results = |case: EncoderCase| {
            let directory = case.write(Dtype::F32);
            compute(&mut open(directory.path(), 1), &text).remove(0)
        };
        let (whole, changed) = (results(named(name)), results(named(name).with(field, value.clone())));
        assert_ne!(bits(&whole), bits(&changed), "{name}: {field}");
    }
}

#[test]
fn the_second_type_matters_to_bert_alone() {
    for (name, matters) in [
        ("bert cross-encoder", true),
        ("xlm-roberta cross-encoder", false),
        ("modernbert cross-encoder", false),
    ] {
        let directory = named(name).write(Dtype::F32);
        let text = tokens(40, 5);
        let found = compute(&mut open(directory.path(), 1), &[(text.clone(), 10), (text, 40)]);
        assert_eq!(bits(&found[0]) != bits(&found[1]), matters, "{name}");
    }
}

#[test]
fn a_model_does_its_own_operation_alone() {
    for case in all() {
        let directory = case.write(Dtype::F32);
        let mut engine = open(directory.path(), 1);
        let pair = TokenPair { tokens: vec![5, 6], second: 1 };
        let (embeds, scores) = (engine.embed(&[vec![5, 6]]), engine.score(&[pair]));
        assert_eq!(
            (embeds.is_err(), scores.is_err()),
            (case.is_scoring(), !case.is_scoring()),
            "{}",
            case.name
        );
        let refused = embeds.err().or(scores.err()).expect("one of both");
        assert_eq!(refused.code().as_str(), "operation-unsupported");
        assert_eq!(engine.step(&[]).expect_err("no generation").code().as_str(), "operation-unsupported");
        assert_eq!(engine.blocks(), 0, "nothing is kept between two requests");
    }
}

#[test]
fn a_text_beyond_the_context_is_refused() {
    for (name, context) in [("bert", 128), ("xlm-roberta", 128), ("modernbert", 128), ("qwen3 embedder", 128)]
    {
        let directory = named(name).write(Dtype::F32);
        let mut engine = open(directory.path(), 1);
        engine.embed(&[tokens(context, 1)]).expect("the control");
        let error = engine.embed(&[tokens(context + 1, 1)]).expect_err("one token more");
        assert_eq!(error.code().as_str(), "context-length-exceeded", "{name}");
    }
    // A decoder's whole text must fit its cache: one layer of 2 heads of 16, in blocks of 32 positions.
    let directory = named("qwen3 embedder").write(Dtype::F32);
    let block = 2 * 32 * (16 + 32) * size_of::<f32>();
    let small = serving::engine::EngineOptions { cache_bytes_max: 3 * block, ..options(1) };
    let mut engine = LoadedEngine::open(&files(directory.path()), &small).expect("it loads");
    assert_eq!(engine.frontend().context_tokens_max(), 96);
    engine.embed(&[tokens(96, 1), tokens(96, 2)]).expect("one after another");
    assert!(engine.embed(&[tokens(97, 1)]).is_err());
}

fn failure(directory: &Path) -> (String, String) {
    let error = LoadedEngine::open(&files(directory), &options(1)).err().expect("refused");
    let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
    (error.code().to_string(), format!("{error}: {cause}"))
}

#[test]
fn what_is_missing_is_named() {
    let directory = named("modernbert cross-encoder").write(Dtype::F32);
    let path = directory.path().join("tokenizer.json");
    let mut tokenizer: Value = serde_json::from_slice(&std::fs::read(&path).expect("read")).expect("JSON");
    tokenizer["post_processor"] = json!(null);
    std::fs::write(&path, tokenizer.to_string()).expect("written");
    let (code, text) = failure(directory.path());
    assert_eq!(code, "model-config-invalid");
    assert!(text.contains("`post_processor`"), "{text}");

    for (name, architecture, tensor) in [
        ("bert", "BertForSequenceClassification", "pooler.dense"),
        ("xlm-roberta", "XLMRobertaForSequenceClassification", "classifier.dense"),
        ("modernbert", "ModernBertForSequenceClassification", "head."),
    ] {
        let mut case = named(name);
        let directory = case.write(Dtype::F32);
        case.config["architectures"] = json!([architecture]);
        case.config["id2label"] = json!({ "0": "LABEL_0" });
        std::fs::write(directory.path().join("config.json"), case.config.to_string()).expect("written");
        std::fs::remove_file(directory.path().join("modules.json")).expect("removed");
        let (code, text) = failure(directory.path());
        assert_eq!(code, "model-weights-mismatch", "{name}: {text}");
        assert!(text.contains(tensor), "{name}: {text}");
    }
}

/// Returns a tokenizer of SentencePiece's unigrams, in the form in which XLM-RoBERTa's is published.
fn unigrams() -> Value {
    let special = |id: u32, content: &str| {
        json!({ "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true })
    };
    let token = |name: &str, id: u32| json!({ "id": name, "ids": [id], "tokens": [name] });
    let piece = |name: &str| json!({ "SpecialToken": { "id": name, "type_id": 0 } });
    let text = |name: &str| json!({ "Sequence": { "id": name, "type_id": 0 } });
    let (begin, end) = (piece("<s>"), piece("</s>"));
    json!({
        "version": "1.0", "truncation": { "direction": "Right", "max_length": 4, "strategy": "LongestFirst",
            "stride": 0 }, "padding": null,
        "added_tokens": [special(0, "<s>"), special(1, "<pad>"), special(2, "</s>"), special(3, "<unk>")],
        "normalizer": { "type": "NFKC" },
        "pre_tokenizer": { "type": "Sequence", "pretokenizers": [
            { "type": "WhitespaceSplit" },
            { "type": "Metaspace", "replacement": "\u{2581}", "add_prefix_space": true }
        ] },
        "post_processor": { "type": "TemplateProcessing",
            "single": [begin, text("A"), end],
            "pair": [begin, text("A"), end, end, text("B"), end],
            "special_tokens": { "<s>": token("<s>", 0), "</s>": token("</s>", 2) } },
        "decoder": { "type": "Metaspace", "replacement": "\u{2581}", "add_prefix_space": true },
        "model": { "type": "Unigram", "unk_id": 3, "vocab": [
            ["<s>", 0.0], ["<pad>", 0.0], ["</s>", 0.0], ["<unk>", 0.0], ["\u{2581}a", -1.0],
            ["\u{2581}b", -2.0], ["c", -3.0], ["\u{2581}", -4.0]
        ] }
    })
}

#[test]
fn texts_and_pairs_of_xlm_roberta_are_tokenized_as_published() {
    let directory = named("xlm-roberta cross-encoder").write(Dtype::F32);
    std::fs::write(directory.path().join("tokenizer.json"), unigrams().to_string()).expect("written");
    let engine = open(directory.path(), 1);
    let frontend = engine.frontend();
    // Longer than the file's own truncation, which is not applied.
    assert_eq!(frontend.encode_document("a  bc a").expect("tokens"), [0, 4, 5, 6, 4, 2]);
    let pair = |query: &str, document: &str| {
        frontend.encode_pair(&frontend.encode_query(query).expect("tokens"), document).expect("tokens")
    };
    assert_eq!(pair("a", "bc"), TokenPair { tokens: vec![0, 4, 2, 2, 5, 6, 2], second: 7 });
    // The second query becomes the first by its normalization.
    for query in ["</s>", "\u{ff1c}/s\u{ff1e}"] {
        let written = pair(query, "<s>a").tokens;
        let count = |id: u32| written.iter().filter(|token| **token == id).count();
        assert_eq!((count(0), count(2)), (1, 3), "special tokens in texts are text: {query}: {written:?}");
    }
}
