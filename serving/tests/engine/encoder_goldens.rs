//! Vectors and scores of every encoder family against those of `transformers`, which `goldens/make_logits.py`
//! computed.
//!
//! The file holds configurations, tokens and results; both sides generate the same weights. It may not lack a
//! case of [`published_encoders::all`], nor differ from it, so an empty file fails: run the script, as its
//! first lines say.

use crate::encoder_families::compute;
use crate::models::open;
use crate::published_encoders::{EncoderCase, all};
use safetensors::Dtype;
use serde::Deserialize;
use serde_json::{Value, json};

/// The version of the file's form.
const VERSION: u32 = 1;
/// Largest difference from the single precision of `transformers`, which sums in another order.
const TOLERANCE: f32 = 3e-4;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct EncoderGoldens {
    version: u32,
    /// Versions of the libraries that computed the results.
    made_with: Value,
    models: Vec<EncoderGolden>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct EncoderGolden {
    name: String,
    config: Value,
    /// Mode of the pooling, if any.
    pooling: Option<String>,
    is_normalized: bool,
    texts: Vec<EncoderGoldenText>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct EncoderGoldenText {
    tokens: Vec<u32>,
    /// First token of the second type.
    second: usize,
    result: Vec<f32>,
}

/// Reads the goldens; an error says how to make them.
fn goldens(text: &str) -> Result<EncoderGoldens, String> {
    let advice = "run serving/tests/goldens/make_logits.py";
    let goldens: EncoderGoldens = serde_json::from_str(text).map_err(|error| format!("{error}: {advice}"))?;
    if goldens.version != VERSION || goldens.models.is_empty() || !goldens.made_with.is_object() {
        return Err(format!("version {}, {} models: {advice}", goldens.version, goldens.models.len()));
    }
    for case in all() {
        let found = goldens.models.iter().find(|golden| golden.name == case.name);
        let golden = found.ok_or_else(|| format!("no `{}`: {advice}", case.name))?;
        check(&case, golden).map_err(|problem| format!("`{}`: {problem}: {advice}", case.name))?;
    }
    Ok(goldens)
}

/// Checks that a golden is of this case: every field of the configuration, the modules, and its texts.
fn check(case: &EncoderCase, golden: &EncoderGolden) -> Result<(), String> {
    let fields = case.config.as_object().expect("an object");
    if let Some((name, _)) =
        fields.iter().find(|(name, value)| !is_same(&golden.config[name.as_str()], value))
    {
        return Err(format!("another `{name}`"));
    }
    let modules = golden.pooling.as_deref().map(|mode| (mode, golden.is_normalized));
    if modules != case.modules {
        return Err("other modules".to_owned());
    }
    match golden.texts.len() {
        0 | 1 => Err("too few texts".to_owned()),
        _ => Ok(()),
    }
}

/// Compares values; numbers count by their value, in any form.
fn is_same(found: &Value, expected: &Value) -> bool {
    match (found.as_f64(), expected.as_f64()) {
        (Some(found), Some(expected)) => found == expected,
        _ => found == expected,
    }
}

#[test]
fn every_encoder_computes_the_results_of_transformers() {
    let goldens =
        goldens(include_str!("../goldens/encodings.json")).unwrap_or_else(|error| panic!("{error}"));
    for case in all() {
        let golden = goldens.models.iter().find(|golden| golden.name == case.name).expect("checked");
        // The script's own configuration, whose further fields change nothing.
        let case = EncoderCase { config: golden.config.clone(), ..case };
        let directory = case.write(Dtype::F32);
        let texts: Vec<(Vec<u32>, usize)> =
            golden.texts.iter().map(|text| (text.tokens.clone(), text.second)).collect();
        let found = compute(&mut open(directory.path(), 2), &texts);
        for (found, text) in found.iter().zip(&golden.texts) {
            assert_eq!(found.len(), text.result.len(), "{}", case.name);
            for (found, expected) in found.iter().zip(&text.result) {
                let at = format!("{}, {} tokens", case.name, text.tokens.len());
                assert!((found - expected).abs() < TOLERANCE, "{at}: {found}, not {expected}");
            }
        }
    }
}

#[test]
fn goldens_that_lack_a_case_or_differ_from_it_are_refused() {
    let refused = |text: &str| goldens(text).expect_err("refused");
    assert!(refused("{}").contains("missing field"), "{}", refused("{}"));
    assert!(refused(r#"{"version": 1, "made_with": {}, "models": []}"#).contains("0 models"));
    let text = json!({ "tokens": [5], "second": 1, "result": [0.5] });
    let golden = |case: &EncoderCase| {
        let (pooling, is_normalized) = match case.modules {
            Some((mode, is_normalized)) => (json!(mode), is_normalized),
            None => (json!(null), false),
        };
        json!({ "name": case.name, "config": case.config, "pooling": pooling,
            "is_normalized": is_normalized, "texts": [text, text] })
    };
    let file = |models: Vec<Value>| json!({ "version": 1, "made_with": {}, "models": models }).to_string();
    let whole: Vec<Value> = all().iter().map(golden).collect();
    assert!(goldens(&file(whole.clone())).is_ok(), "the control");
    assert!(refused(&file(whole[1..].to_vec())).starts_with("no `bert`: run"));
    let changed = |change: &dyn Fn(&mut Value)| {
        let mut models = whole.clone();
        change(&mut models[5]);
        refused(&file(models))
    };
    let other = changed(&|model| model["config"]["local_attention"] = json!(18));
    assert!(other.contains("`modernbert`: another `local_attention`"), "{other}");
    let other = changed(&|model| model["pooling"] = json!("cls"));
    assert!(other.contains("other modules"), "{other}");
    let other = changed(&|model| model["texts"] = json!([]));
    assert!(other.contains("too few texts"), "{other}");
}
