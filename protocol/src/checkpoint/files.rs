//! Small files of a model that decide how it is served.

use super::fields::CheckpointError;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;

/// Names of the files, in the model's directory or, for `config.json`, one below it.
const NAMES: &[&str] = &[
    "config.json",
    "modules.json",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_xlm-roberta_config.json",
];

/// The contents of those files that a model has, by their paths.
#[derive(Debug, Clone, Default)]
pub struct CheckpointFiles(BTreeMap<String, Vec<u8>>);

impl CheckpointFiles {
    /// Reports whether a model's file of this path belongs to these.
    #[must_use]
    pub fn includes(path: &str) -> bool {
        match path.split_once('/') {
            None => NAMES.contains(&path),
            Some((directory, name)) => !directory.is_empty() && name == "config.json",
        }
    }

    /// Parses a file; `None` if the model has none of this path. Unknown fields are ignored.
    pub(super) fn read<T: DeserializeOwned>(&self, path: &str) -> Result<Option<T>, CheckpointError> {
        assert!(Self::includes(path), "{path} is one of the files");
        let Some(text) = self.0.get(path) else { return Ok(None) };
        match serde_json::from_slice(text) {
            Ok(content) => Ok(Some(content)),
            Err(error) => Err(CheckpointError::invalid_in(path, error.to_string())),
        }
    }
}

impl FromIterator<(String, Vec<u8>)> for CheckpointFiles {
    fn from_iter<I: IntoIterator<Item = (String, Vec<u8>)>>(files: I) -> Self {
        Self(files.into_iter().filter(|(path, _)| Self::includes(path)).collect())
    }
}
