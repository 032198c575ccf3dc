//! The human chain through its public interface: tables of what must pass, what must be refused and with
//! which words, and properties over generated proposals.

mod ballots;
mod bounds;
mod certificates;
mod chronicles;
mod full_circle;
mod genesis;
mod history;
mod members;
mod orders;
mod renderings;
mod samples;
mod support;
