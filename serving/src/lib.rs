//! The AI circuit: engines, batcher, OpenAI HTTP, gateway; binary quorate-serve.

pub mod batcher;
pub mod engine;
pub mod weights;
