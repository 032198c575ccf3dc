//! A worker: one engine behind OpenAI's API. Either on plain local files ([`local`]), or inside a node's
//! sandbox ([`inherited`]), where it is handed everything as descriptors and can open nothing.
//!
//! Not here: who may ask. A sandboxed worker answers the gateways that its agent connects it to; a local one
//! answers whoever reaches its loopback port.

mod agent;
mod answer;
pub mod inherited;
pub mod local;
mod service;

pub use answer::{COMPLETION_TOKENS, PROMPT_TOKENS};
pub use inherited::{Tickets, serving_limits};
pub use service::Service;

pub(crate) use answer::{REQUEST_ID, event_stream, json, no_such_method, no_such_path, request_id};
pub(crate) use service::now;
