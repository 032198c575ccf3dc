//! OpenAI's HTTP API, the supported subset: strict parsing of requests, answers and errors in its format.
//!
//! The gateway, which validates before a worker receives a byte, and the worker, which answers, share this
//! module. Each parses a request once (`docs/decisions/2026-11-22-a-request-is-parsed-twice.md`). The module
//! has no I/O, no clock and no randomness.

mod calls;
mod error;
mod json;
mod logprobs;
mod openapi;
mod request;
mod rerank;
mod response;
mod schema;

pub use error::{ApiError, printable, transport_refusal};
#[cfg(test)]
pub(crate) use openapi::tests::{openapi_paths, routes_of};
pub use openapi::{MODEL_PATH, MODELS_PATH, PATH as OPENAPI_PATH, openapi};
pub use request::{
    Delivery, Detokenize, Embed, Encoding, Endpoint, Generate, InferenceRequest, RequestedGrammar, Rerank,
    Tokenize, ToolRequest,
};
pub use rerank::rerank;
pub use response::{
    ChoicePiece, DONE_EVENT, Label, Usage, WholeCall, WholeChoice, embeddings, error_event, model, models,
    text, tokens,
};
