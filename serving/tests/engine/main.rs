//! Engines, weights and batcher together, on small models of random weights that the tests make themselves.

mod batching;
mod decoding;
mod encoding;
mod loading;
mod models;
mod shared;
mod shipped;
