//! A worker: one engine behind OpenAI's API. It runs either on plain local files ([`local`]), or inside a
//! node's sandbox ([`inherited`]), where it receives everything as descriptors and can open nothing.
//!
//! Client authentication is elsewhere. A sandboxed worker answers the gateways that its agent connects it to;
//! a local one answers every client of its loopback port.

mod agent;
mod answer;
mod form;
pub mod inherited;
pub mod local;
mod outstanding;
mod resumed;
mod service;
mod streaming;

pub use answer::{COMPLETION_TOKENS, PROMPT_TOKENS};
pub(crate) use answer::{
    REQUEST_ID, TENANT, event_stream, json, no_such_method, no_such_path, random_number, request_id,
};
pub use inherited::{Tickets, serving_limits};
pub use service::WorkerService;
pub(crate) use service::now;
