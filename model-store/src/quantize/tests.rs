//! A small decoder is quantised: the same bytes each time, and every refusal by its code.

use super::*;
use crate::key::ModelKey;
use crate::placement::PlacementRule;
use crate::pool::Pool;
use crate::{Context, ImportOptions, fetch_manifest, import, open_store};
use kernels::int8::QuantizedMatrix;
use proptest::prelude::*;
use protocol::error_code as code;
use protocol::model::{ErasureCode, ModelNonce, StoreReference};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::json;

const HIDDEN: usize = 64;
const VOCABULARY: usize = 40;

/// Writes a decoder of one layer with these values of its first matrix.
fn decoder(directory: &Path, first: f32) {
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN,
        "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": VOCABULARY, "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": true,
    });
    fs::write(directory.join("config.json"), format!("  {}\n", config)).unwrap();
    fs::write(directory.join("tokenizer.json"), "{}").unwrap();
    let at = |name: &str| format!("model.layers.0.{name}.weight");
    let mut shapes = vec![
        ("model.embed_tokens.weight".to_string(), vec![VOCABULARY, HIDDEN]),
        ("model.norm.weight".to_string(), vec![HIDDEN]),
        (at("self_attn.q_proj"), vec![HIDDEN, HIDDEN]),
        (at("self_attn.k_proj"), vec![HIDDEN / 2, HIDDEN]),
        (at("mlp.down_proj"), vec![HIDDEN, 96]),
    ];
    shapes.push((at("input_layernorm"), vec![HIDDEN]));
    let bytes_of = |index: usize, count: usize| -> Vec<u8> {
        let value =
            |at: usize| if at == 0 { first } else { ((at * 31 + index * 7) % 97) as f32 / 97.0 - 0.5 };
        (0..count).flat_map(|at| value(at).to_le_bytes()).collect()
    };
    let bytes: Vec<Vec<u8>> = (0..shapes.len()).map(|i| bytes_of(i, shapes[i].1.iter().product())).collect();
    let views = shapes.iter().zip(&bytes).map(|((name, shape), bytes)| {
        (name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap())
    });
    let file = safetensors::serialize(views, Some([("format".into(), "pt".into())].into())).unwrap();
    fs::write(directory.join("model.safetensors"), file).unwrap();
}

fn directory() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn files(directory: &Path) -> Vec<(String, Vec<u8>)> {
    let names = ["config.json", "model.safetensors", "tokenizer.json"];
    names.map(|name| (name.to_string(), fs::read(directory.join(name)).unwrap())).into()
}

#[test]
fn matrices_become_panels_and_all_else_stays_the_same_bytes_each_time() {
    let (source, one, other) = (directory(), directory(), directory());
    decoder(source.path(), 0.25);
    let mut seen = Vec::new();
    let quantized = quantize(source.path(), one.path(), |done, total| seen.push((done, total))).unwrap();
    assert_eq!(quantized.matrices, 4);
    assert!(quantized.bytes_after < quantized.bytes_before / 2, "{quantized:?}");
    assert!(seen.is_sorted() && seen.last().is_some_and(|(done, total)| done == total), "{seen:?}");
    assert_eq!(quantize(source.path(), other.path(), |_, _| ()).unwrap(), quantized);
    assert_eq!(files(one.path()), files(other.path()));
    let (before, after) = (files(source.path()), files(one.path()));
    assert_eq!(before[2], after[2], "another file");
    let recipe = Quantization { bits: 8, source: quantized.source };
    let text = String::from_utf8(after[0].1.clone()).unwrap();
    assert!(text.contains(&recipe.to_json()), "{text}");
    let without = text.replacen(&format!("\n  \"quantization_config\": {},", recipe.to_json()), "", 1);
    assert_eq!(without.as_bytes(), before[0].1, "all else of the configuration stays");
    let (before, after) =
        (SafeTensors::deserialize(&before[1].1).unwrap(), SafeTensors::deserialize(&after[1].1).unwrap());
    assert_eq!(before.names().len(), after.names().len());
    for (name, before) in before.tensors() {
        let after = after.tensor(&name).unwrap();
        if !is_quantized(&name, before.shape()) {
            assert_eq!((after.dtype(), after.data()), (before.dtype(), before.data()), "{name}");
            continue;
        }
        let [outputs, inputs] = *before.shape() else { unreachable!("a matrix") };
        assert_eq!(after.shape(), QuantizedMatrix::dimensions(outputs, inputs), "{name}");
        let matrix = QuantizedMatrix::new(after.data(), outputs, inputs);
        let mut row = vec![0.0; inputs];
        matrix.copy_row(1, &mut row);
        let first = f32::from_le_bytes(before.data()[inputs * 4..][..4].try_into().unwrap());
        assert!((row[0] - first).abs() < 0.005, "{name}: {} is near {first}", row[0]);
    }
}

#[test]
fn what_cannot_be_quantised_is_refused_by_code_and_nothing_is_overwritten() {
    let (source, once) = (directory(), directory());
    let refused = |from: &Path, to: &Path| quantize(from, to, |_, _| ()).unwrap_err();
    decoder(source.path(), f32::NAN);
    assert_eq!(refused(source.path(), once.path()).code(), code::MODEL_WEIGHTS_DAMAGED);
    let (source, once, twice) = (directory(), directory(), directory());
    decoder(source.path(), 0.5);
    quantize(source.path(), once.path(), |_, _| ()).unwrap();
    assert_eq!(refused(once.path(), twice.path()).code(), code::MODEL_NOT_QUANTIZABLE);
    assert_eq!(fs::read_dir(twice.path()).unwrap().count(), 0);
    assert_eq!(refused(source.path(), once.path()).code(), code::MODEL_UNWRITABLE);
    fs::remove_file(source.path().join("config.json")).unwrap();
    assert_eq!(refused(source.path(), twice.path()).code(), code::MODEL_FILE_MISSING);
}

/// The content of a stored model is compared with what its source gives again.
#[tokio::test]
async fn a_stored_model_is_compared_with_what_its_source_gives_again() {
    let (source, quantized, stores) = (directory(), directory(), directory());
    decoder(source.path(), 0.75);
    quantize(source.path(), quantized.path(), |_, _| ()).unwrap();
    let open = |index: usize| {
        let url = format!("file://{}/{index}", stores.path().display());
        open_store(&StoreReference { url, failure_domain: format!("d{index}") }, &Context::new()).unwrap()
    };
    let stores: Vec<_> = (0..3).map(open).collect();
    let options = ImportOptions {
        erasure: ErasureCode { data: 2, parity: 1 },
        placement: PlacementRule { shards_per_domain_max: 1 },
        ..ImportOptions::new("tiny".parse().unwrap(), ModelNonce([1; 16]))
    };
    let (key, pool) = (ModelKey::from_bytes([7; 32]), Pool::per_core());
    let imported = import(quantized.path(), options, &stores, &key, &pool, |_| ()).await.unwrap();
    assert_eq!(imported.record.architecture, "llama");
    let manifest = fetch_manifest(imported.record.root, &stores, &pool).await.unwrap();
    let again = directory();
    quantize(source.path(), again.path(), |_, _| ()).unwrap();
    compare_content(again.path(), &manifest).unwrap();
    let differs = |expected: &str| match compare_content(again.path(), &manifest).unwrap_err() {
        ImportError::ContentDiffers { path, .. } => assert_eq!(path, expected),
        other => panic!("{other}"),
    };
    let path = again.path().join("model.safetensors");
    let whole = fs::read(&path).unwrap();
    let mut changed = whole.clone();
    *changed.last_mut().unwrap() ^= 1;
    fs::write(&path, &changed).unwrap();
    differs("model.safetensors");
    fs::write(&path, &whole).unwrap();
    fs::write(again.path().join("more.txt"), "more").unwrap();
    differs("more.txt");
    fs::remove_file(again.path().join("more.txt")).unwrap();
    fs::write(again.path().join("tokenizer.json"), "{ }").unwrap();
    differs("tokenizer.json");
}

/// The index of a model in several files keeps its map, and loses the sizes of the original.
#[test]
fn an_index_of_several_files_keeps_its_map_alone() {
    let (source, to) = (directory(), directory());
    decoder(source.path(), 0.5);
    let index = json!({
        "metadata": { "total_size": 123_456 },
        "weight_map": { "model.norm.weight": "model.safetensors", "lm_head.weight": "model.safetensors" },
    });
    assert!(without_sizes(b"[]").is_err() && without_sizes(b"{}").is_err());
    let kept = without_sizes(index.to_string().as_bytes()).unwrap();
    let kept: serde_json::Value = serde_json::from_slice(&kept).unwrap();
    assert_eq!(kept, json!({ "weight_map": index["weight_map"] }));
    // A file that is no part of a quantisation is copied, in a directory too.
    fs::create_dir(source.path().join("1_Pooling")).unwrap();
    fs::write(source.path().join("1_Pooling/notes.txt"), vec![7; PART + 3]).unwrap();
    quantize(source.path(), to.path(), |_, _| ()).unwrap();
    assert_eq!(fs::read(to.path().join("1_Pooling/notes.txt")).unwrap(), vec![7; PART + 3]);
}

/// The recipe is put in front of what is there, in any spelling of an object, and into nothing else.
#[test]
fn the_recipe_is_put_into_a_configuration_of_any_spelling() {
    let recipe = Quantization { bits: 8, source: Digest::of(b"source") };
    for text in
        ["{}", "{ }", " \n{\"a\":1}", "{\"a\":{\"b\":[1.50,1e5]},\"c\":\"}{\"}\n", "{\n \"x\": 0.10\n}"]
    {
        let written = with_recipe(text.as_bytes(), recipe).unwrap();
        let mut value: serde_json::Value = serde_json::from_slice(&written).unwrap();
        let given: serde_json::Value = serde_json::from_str(&recipe.to_json()).unwrap();
        assert_eq!(value[FIELD], given, "{text}");
        value.as_object_mut().unwrap().remove(FIELD);
        assert_eq!(value, serde_json::from_str::<serde_json::Value>(text).unwrap(), "{text}");
        let (_, rest) = text.split_once('{').unwrap();
        assert!(written.ends_with(rest.as_bytes()), "the spelling of the rest stays");
    }
    for text in ["", "[]", "{", "1", "null", "{\"a\":}"] {
        let error = with_recipe(text.as_bytes(), recipe).unwrap_err();
        assert_eq!(error.code(), code::MODEL_WEIGHTS_DAMAGED, "{text}");
    }
}

/// A directory and one of its files are different sources, and so are two names of the same bytes.
#[test]
fn the_digest_of_a_source_depends_on_names_lengths_and_contents() {
    let digest = |change: &dyn Fn(&Path)| {
        let source = directory();
        decoder(source.path(), 0.5);
        fs::write(source.path().join("a.txt"), "ab").unwrap();
        change(source.path());
        digest_of(&inspect(source.path()).unwrap()).unwrap()
    };
    let same = digest(&|_| ());
    assert_eq!(digest(&|_| ()), same);
    let renamed = digest(&|at| fs::rename(at.join("a.txt"), at.join("b.txt")).unwrap());
    let longer = digest(&|at| fs::write(at.join("a.txt"), "abc").unwrap());
    let moved = digest(&|at| {
        fs::write(at.join("a.txt"), "a").unwrap();
        fs::write(at.join("b.txt"), "b").unwrap();
    });
    let changed = digest(&|at| fs::write(at.join("a.txt"), "aB").unwrap());
    let all = [same, renamed, longer, moved, changed];
    assert_eq!(all.iter().collect::<std::collections::BTreeSet<_>>().len(), all.len(), "{all:?}");
}

/// Names that are matrices of linear layers, and others.
const NAMES: [&str; 6] = [
    "model.layers.0.self_attn.q_proj.weight",
    "model.layers.0.mlp.down_proj.weight",
    "lm_head.weight",
    "model.layers.0.mlp.gate.weight",
    "model.norm.weight",
    "model.layers.0.self_attn.q_proj.bias",
];

/// Writes tensors of these names, types and shapes over the weights of a decoder, with bytes that repeat.
fn with_tensors(directory: &Path, tensors: &[(&'static str, Dtype, Vec<usize>)]) -> Vec<Vec<u8>> {
    decoder(directory, 0.5);
    let bytes_of = |index: usize, dtype: Dtype, shape: &[usize]| -> Vec<u8> {
        let count: usize = shape.iter().product();
        // The lowest bytes of small numbers: no exponent is that of infinity.
        (0..count * dtype.bitsize() / 8).map(|at| ((at * 7 + index * 13) % 60) as u8).collect()
    };
    let all: Vec<Vec<u8>> =
        tensors.iter().enumerate().map(|(index, (_, dtype, shape))| bytes_of(index, *dtype, shape)).collect();
    let views = tensors
        .iter()
        .zip(&all)
        .map(|((name, dtype, shape), bytes)| (*name, TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
    fs::write(directory.join("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
    all
}

fn shape() -> impl Strategy<Value = Vec<usize>> {
    prop_oneof![
        (1_usize..40).prop_map(|length| vec![length]),
        (1_usize..40, 1_usize..70).prop_map(|(outputs, inputs)| vec![outputs, inputs]),
        (16_usize..40, 1_usize..4).prop_map(|(outputs, groups)| vec![outputs, groups * 32]),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Any tensors come through: those of the rule as panels of their rows, all others byte for byte.
    #[test]
    fn any_tensors_are_quantised_by_the_rule_or_copied(
        shapes in prop::collection::vec((shape(), 0_usize..4), NAMES.len()),
    ) {
        let types = [Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::I32];
        let tensors: Vec<_> =
            NAMES.iter().zip(shapes).map(|(name, (shape, dtype))| (*name, types[dtype], shape)).collect();
        let (source, to) = (directory(), directory());
        let all = with_tensors(source.path(), &tensors);
        let is_float = |dtype: &Dtype| *dtype != Dtype::I32;
        let is_matrix = |(name, dtype, shape): &&(&str, Dtype, Vec<usize>)| {
            is_float(dtype) && is_quantized(name, shape)
        };
        match (tensors.iter().filter(is_matrix).count(), quantize(source.path(), to.path(), |_, _| ())) {
            (0, refused) => prop_assert_eq!(refused.unwrap_err().code(), code::MODEL_NOT_QUANTIZABLE),
            (count, done) => prop_assert_eq!(done.unwrap().matrices, count),
        }
        let file = fs::read(to.path().join("model.safetensors")).unwrap();
        let found = SafeTensors::deserialize(&file).unwrap();
        for ((name, dtype, shape), bytes) in tensors.iter().zip(&all) {
            let tensor = found.tensor(name).unwrap();
            if is_float(dtype) && is_quantized(name, shape) {
                let matrix = QuantizedMatrix::new(tensor.data(), shape[0], shape[1]);
                let mut row = vec![0.0; shape[1]];
                matrix.copy_row(shape[0] - 1, &mut row);
                prop_assert!(row.iter().all(|value| value.is_finite()));
            } else {
                prop_assert_eq!((tensor.dtype(), tensor.data()), (*dtype, &bytes[..]));
            }
        }
    }
}
