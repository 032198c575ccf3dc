//! The files of sentence-transformers: modules after the network, and the longest text.

use super::encoder_shape::{Pooling, VectorShape};
use super::fields::CheckpointError;
use super::files::CheckpointFiles;
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;

/// The list of modules.
const MODULES: &str = "modules.json";
/// Names under which the longest text is published; the first that exists counts.
const LIMITS: [&str; 3] =
    ["sentence_bert_config.json", "sentence_roberta_config.json", "sentence_xlm-roberta_config.json"];

/// Properties of a model that these files name.
#[derive(Debug, Clone, Copy)]
pub(super) struct SentenceModel {
    /// Vector that the modules make; `None` without a list of modules.
    pub(super) vector: Option<VectorShape>,
    /// Longest text, in tokens.
    pub(super) context_tokens_max: Option<usize>,
}

#[derive(Deserialize)]
struct RawModule {
    path: String,
    #[serde(rename = "type")]
    kind: String,
}

/// Fields of a pooling module: newer files name the mode, older ones have a flag for each. `include_prompt`
/// matters with a prompt alone, which is never added.
#[derive(Deserialize)]
struct RawPooling {
    pooling_mode: Option<Value>,
    #[serde(default)]
    pooling_mode_cls_token: bool,
    #[serde(default)]
    pooling_mode_mean_tokens: bool,
    #[serde(default)]
    pooling_mode_max_tokens: bool,
    #[serde(default)]
    pooling_mode_mean_sqrt_len_tokens: bool,
    #[serde(default)]
    pooling_mode_weightedmean_tokens: bool,
    #[serde(default)]
    pooling_mode_lasttoken: bool,
}

#[derive(Deserialize)]
struct RawLimit {
    max_seq_length: Option<usize>,
    do_lower_case: Option<bool>,
}

#[derive(Deserialize)]
struct RawPrompts {
    #[serde(default)]
    prompts: BTreeMap<String, String>,
    default_prompt_name: Option<String>,
}

/// Reads the files. `is_scoring` says that the model has a head of its own, after which no module may come.
pub(super) fn read(files: &CheckpointFiles, is_scoring: bool) -> Result<SentenceModel, CheckpointError> {
    refuse_prompt(files)?;
    let context_tokens_max = limit(files)?;
    assert!(context_tokens_max != Some(0), "a text has a token");
    let Some(modules) = files.read::<Vec<RawModule>>(MODULES)? else {
        return Ok(SentenceModel { vector: None, context_tokens_max });
    };
    let (mut pooling, mut is_normalized, mut last_stage) = (None, false, 0);
    for module in &modules {
        let name = module.kind.rsplit('.').next().unwrap_or_default();
        let stage = match name {
            "Transformer" if module.path.is_empty() => 1,
            "Transformer" => {
                let feature = format!("a transformer in `{}`", module.path);
                return Err(CheckpointError::unsupported(feature));
            }
            "Pooling" if !is_scoring => 2,
            "Normalize" if !is_scoring => 3,
            other => return Err(CheckpointError::unsupported(format!("the module `{other}`"))),
        };
        if stage <= last_stage {
            return Err(CheckpointError::unsupported(format!("the module `{name}` in this order")));
        }
        last_stage = stage;
        match stage {
            2 => pooling = Some(mode(files, &module.path)?),
            3 => is_normalized = true,
            _ => {}
        }
    }
    assert!(!is_scoring || (pooling.is_none() && !is_normalized), "no module follows a head");
    if is_scoring {
        return Ok(SentenceModel { vector: None, context_tokens_max });
    }
    let no_pooling = || CheckpointError::invalid_in(MODULES, "no module `Pooling`");
    let vector = VectorShape { pooling: pooling.ok_or_else(no_pooling)?, is_normalized };
    Ok(SentenceModel { vector: Some(vector), context_tokens_max })
}

/// Reads the mode of the pooling module in a directory.
fn mode(files: &CheckpointFiles, directory: &str) -> Result<Pooling, CheckpointError> {
    let path = format!("{directory}/config.json");
    if !CheckpointFiles::includes(&path) {
        let reason = format!("the path `{}` is not served", directory.escape_debug());
        return Err(CheckpointError::invalid_in(MODULES, reason));
    }
    assert!(!directory.is_empty(), "a directory below the model's");
    let missing = || CheckpointError::invalid_in(MODULES, format!("there is no `{path}`"));
    let raw: RawPooling = files.read(&path)?.ok_or_else(missing)?;
    let named = |name: &str| raw.pooling_mode.as_ref().is_some_and(|mode| mode == name);
    let is_known = raw.pooling_mode.is_none() || ["mean", "cls", "lasttoken"].into_iter().any(named);
    let is_other = raw.pooling_mode_max_tokens
        || raw.pooling_mode_mean_sqrt_len_tokens
        || raw.pooling_mode_weightedmean_tokens
        || !is_known;
    let modes = [
        (Pooling::Mean, raw.pooling_mode_mean_tokens || named("mean")),
        (Pooling::First, raw.pooling_mode_cls_token || named("cls")),
        (Pooling::Last, raw.pooling_mode_lasttoken || named("lasttoken")),
    ];
    let mut chosen = modes.into_iter().filter(|(_, is_chosen)| *is_chosen).map(|(mode, _)| mode);
    match (chosen.next(), chosen.next()) {
        (Some(mode), None) if !is_other => Ok(mode),
        _ => Err(CheckpointError::unsupported(format!("the pooling in `{path}`"))),
    }
}

/// Reads the longest text. A text is never changed to lower case but by the tokenizer.
fn limit(files: &CheckpointFiles) -> Result<Option<usize>, CheckpointError> {
    for path in LIMITS {
        let Some(raw) = files.read::<RawLimit>(path)? else { continue };
        if raw.do_lower_case == Some(true) {
            return Err(CheckpointError::unsupported(format!("`do_lower_case` in `{path}`")));
        }
        return match raw.max_seq_length {
            Some(0) => Err(CheckpointError::invalid_in(path, "`max_seq_length` is 0")),
            limit => Ok(limit),
        };
    }
    Ok(None)
}

/// Refuses a model that puts a prompt before each text by default: texts are embedded as they are.
fn refuse_prompt(files: &CheckpointFiles) -> Result<(), CheckpointError> {
    let raw: Option<RawPrompts> = files.read("config_sentence_transformers.json")?;
    let name = raw.as_ref().and_then(|raw| raw.default_prompt_name.as_deref());
    match (raw.as_ref(), name) {
        (Some(raw), Some(name)) if raw.prompts.get(name).is_none_or(|prompt| !prompt.is_empty()) => {
            Err(CheckpointError::unsupported("`default_prompt_name`"))
        }
        _ => Ok(()),
    }
}
