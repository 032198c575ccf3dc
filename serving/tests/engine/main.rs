//! Integration tests of engines, weights and batcher, on small models of random weights that the tests
//! generate.

mod batching;
mod decoding;
mod encoder_families;
mod encoder_goldens;
mod encoder_reference;
mod encoding;
mod families;
mod goldens;
mod loading;
mod models;
mod published;
mod published_encoders;
mod quantized;
mod reference;
mod shared;
mod shipped;
