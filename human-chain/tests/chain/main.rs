//! Tests of the public interface of `human-chain`: tables of accepted and rejected inputs with their
//! messages, and properties over generated proposals.

mod access;
mod authenticator;
mod bad_input;
mod ballots;
mod bounds;
mod certificates;
mod comments;
mod founding;
mod full_circle;
mod genesis;
mod halts;
mod history;
mod job_data;
mod jobs;
mod kept;
mod known;
mod meetings;
mod members;
mod membership;
mod omissions;
mod orders;
mod passkey_ballots;
mod passkey_halts;
mod passkeys;
mod prices;
mod projects;
mod proposers;
mod recorded;
mod renderings;
mod samples;
mod seeds;
mod support;
mod waiting;
mod wraps;
