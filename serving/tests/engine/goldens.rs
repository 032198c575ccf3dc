//! Logits of every decoder family against those of `transformers`, which `goldens/make_logits.py` computed.
//!
//! The file holds configurations, tokens and logits; both sides generate the same weights. It may not lack a
//! family, so an empty file fails: run the script, as its first lines say.

use crate::decoding::alone;
use crate::models::open;
use crate::published;
use safetensors::Dtype;
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeSet;

/// The version of the file's form.
const VERSION: u32 = 1;
/// Largest difference from the single precision of `transformers`, which sums in another order.
const TOLERANCE: f32 = 1e-3;
/// Types of rotary embeddings that the file covers besides the plain one.
const ROTARIES: [&str; 4] = ["dynamic", "linear", "llama3", "yarn"];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Goldens {
    version: u32,
    /// Versions of the libraries that computed the logits.
    made_with: Value,
    models: Vec<Golden>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Golden {
    name: String,
    config: Value,
    tokens: Vec<u32>,
    /// Numbers of tokens after which there are logits, ascending.
    ends: Vec<usize>,
    logits: Vec<Vec<f32>>,
}

/// Reads the goldens; an error says how to make them.
fn goldens(text: &str) -> Result<Goldens, String> {
    let advice = "run serving/tests/goldens/make_logits.py";
    let goldens: Goldens = serde_json::from_str(text).map_err(|error| format!("{error}: {advice}"))?;
    if goldens.version != VERSION || goldens.models.is_empty() || !goldens.made_with.is_object() {
        return Err(format!("version {}, {} models: {advice}", goldens.version, goldens.models.len()));
    }
    let names = |golden: &Golden| golden.config["architectures"][0].as_str().map(str::to_owned);
    let found: BTreeSet<String> = goldens.models.iter().filter_map(names).collect();
    let all = protocol::checkpoint::architectures().into_iter();
    let decoders = all.filter(|name| name.ends_with("ForCausalLM"));
    let missing: Vec<&str> = decoders.filter(|name| !found.contains(*name)).collect();
    let texts: Vec<String> = goldens.models.iter().map(|golden| golden.config.to_string()).collect();
    let rotaries = ROTARIES.into_iter().filter(|kind| !texts.iter().any(|text| text.contains(*kind)));
    let missing: Vec<&str> = missing.into_iter().chain(rotaries).collect();
    if missing.is_empty() { Ok(goldens) } else { Err(format!("no {}: {advice}", missing.join(", "))) }
}

#[test]
fn every_family_computes_the_logits_of_transformers() {
    let goldens = goldens(include_str!("../goldens/logits.json")).unwrap_or_else(|error| panic!("{error}"));
    for Golden { name, config, tokens, ends, logits } in &goldens.models {
        let directory = published::write(config, Dtype::F32);
        let found = alone(&mut open(directory.path(), 2), tokens, ends);
        assert_eq!(found.len(), logits.len(), "{name}");
        for ((found, expected), end) in found.iter().zip(logits).zip(ends) {
            assert_eq!(found.len(), expected.len(), "{name}");
            for (token, (found, expected)) in found.iter().zip(expected).enumerate() {
                let error = (found - expected).abs();
                assert!(error < TOLERANCE, "{name}, after {end}, token {token}: {found}, not {expected}");
            }
        }
    }
}

#[test]
fn goldens_that_are_empty_or_lack_a_family_are_refused() {
    let refused = |text: &str| goldens(text).err().expect("refused");
    assert!(refused("{}").contains("missing field"), "{}", refused("{}"));
    assert!(refused(r#"{"version": 1, "made_with": {}, "models": []}"#).contains("0 models"));
    let one = r#"{"version": 1, "made_with": {}, "models": [{"name": "x", "tokens": [], "ends": [],
        "config": {"architectures": ["LlamaForCausalLM"], "rope": "yarn"}, "logits": []}]}"#;
    let text = refused(one);
    assert!(text.starts_with("no MistralForCausalLM, ") && text.contains("llama3: run"), "{text}");
    assert!(!text.contains("Llama") && !text.contains("yarn"), "{text}");
}
