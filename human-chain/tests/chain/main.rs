//! Tests of the public interface of `human-chain`: tables of accepted and rejected inputs with their
//! messages, and properties over generated proposals.

mod ballots;
mod bounds;
mod certificates;
mod founding;
mod full_circle;
mod genesis;
mod history;
mod members;
mod omissions;
mod orders;
mod recorded;
mod renderings;
mod samples;
mod support;
