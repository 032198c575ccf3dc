//! The AI circuit: engines, batcher, OpenAI HTTP, gateway; binary quorate-serve.
//!
//! A request passes through [`openai`] (validation), [`gateway`] (routing), [`worker`] (one engine behind
//! HTTP), [`batcher`] (continuous batching) and [`engine`] (the mathematics), in this order.
//!
//! This crate depends on `protocol` and `overlay` and on no other crate of the workspace. It has no access to
//! control code, to storage credentials, or to any key but a TLS key.

pub mod batcher;
mod body;
pub mod cli;
pub mod engine;
pub mod gateway;
pub mod lockdown;
pub mod memory;
pub mod metrics;
pub mod openai;
mod resumable;
pub mod weights;
pub mod worker;
