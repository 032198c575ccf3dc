//! Architectures in the register of models: by what a model is served for, and whether an engine serves it.

use super::encoder_shape::EncoderOutput;
use super::{Servable, ServableShape};
use crate::manifest::Task;

/// First part of the architecture of a model in the register that no built-in engine serves. The name from
/// its configuration follows.
pub const FOREIGN_PREFIX: &str = "foreign/";
/// Last part of the architecture of a model that scores pairs.
const RERANKER_SUFFIX: &str = "-reranker";
/// Last part of the architecture of a decoder that embeds.
const EMBEDDER_SUFFIX: &str = "-embedder";
/// Architectures of encoders, as `model_type` names them.
const ENCODERS: [&str; 3] = ["bert", "xlm-roberta", "modernbert"];
/// Architectures of files that say nothing of a task.
const UNSAID: [&str; 4] = ["", "file", "gguf", "unknown"];

/// Returns the architecture under which a model is registered that a built-in engine serves. `model_type` is
/// the name in its configuration.
#[must_use]
pub fn registered_architecture(model_type: &str, served: &Servable) -> String {
    assert!(!is_foreign(model_type), "an engine serves it");
    match &served.shape {
        ServableShape::Encoder(shape) => match shape.output {
            EncoderOutput::Vector(_) => model_type.to_owned(),
            EncoderOutput::Score(_) => format!("{model_type}{RERANKER_SUFFIX}"),
        },
        ServableShape::Decoder(shape) => match shape.vector {
            Some(_) => format!("{model_type}{EMBEDDER_SUFFIX}"),
            None => model_type.to_owned(),
        },
    }
}

/// Returns the task of a registered model by its architecture; `None` if that says nothing.
#[must_use]
pub fn task_of(architecture: &str) -> Option<Task> {
    if is_foreign(architecture) || UNSAID.contains(&architecture) {
        None
    } else if architecture.ends_with(RERANKER_SUFFIX) {
        Some(Task::Rerank)
    } else if architecture.ends_with(EMBEDDER_SUFFIX) || ENCODERS.contains(&architecture) {
        Some(Task::Embed)
    } else {
        Some(Task::Generate)
    }
}

/// Returns the architecture under which a model is registered that only a foreign engine can serve.
#[must_use]
pub fn foreign_architecture(name: &str) -> String {
    assert!(!is_foreign(name), "a name is marked once");
    format!("{FOREIGN_PREFIX}{name}")
}

/// Reports whether the architecture of a registered model says that no built-in engine serves it.
#[must_use]
pub fn is_foreign(architecture: &str) -> bool {
    architecture.starts_with(FOREIGN_PREFIX)
}
