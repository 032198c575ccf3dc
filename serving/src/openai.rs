//! OpenAI's HTTP API as far as it is served here: requests read strictly, answers and errors in its shapes.
//!
//! One place for both who speak it: the gateway, which validates before a worker sees a byte, and the worker,
//! which answers. No I/O, no clock, no randomness here.

mod error;
mod json;
mod request;
mod response;

pub use error::{ApiError, printable};
pub use request::{Delivery, Embed, Encoding, Endpoint, Generate, Request};
pub use response::{DONE_EVENT, Label, Usage, embeddings, error_event, model, models};
