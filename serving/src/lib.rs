//! The AI circuit: engines, batcher, OpenAI HTTP, gateway; binary quorate-serve.
//!
//! A request meets [`openai`] (is it one?), [`gateway`] (who serves it?), [`worker`] (one engine behind HTTP),
//! [`batcher`] (what does the next step compute?) and [`engine`] (the mathematics), in this order.
//!
//! It stands on `protocol` and `overlay` and on no other crate of ours: no control code, no key but a TLS key,
//! no storage credential is within its reach.

pub mod batcher;
pub mod cli;
pub mod engine;
pub mod gateway;
pub mod lockdown;
pub mod memory;
pub mod metrics;
pub mod openai;
pub mod weights;
pub mod worker;

mod body;
