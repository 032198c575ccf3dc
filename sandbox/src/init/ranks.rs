//! Start of the ranks of a process sandbox, each from a copy of the init, as a worker is.
//!
//! A rank's standard output and error are pipes. The init keeps the reading ends, for its agent and for the
//! agent's successor, and never reads them: a rank whose output no agent takes has to wait, and nothing else.

use super::worker::{Program, Streams, spawn, texts, variables};
use super::{InStep, StepResult, filter};
use crate::ids::WORKER_ID;
use crate::profile::command_paths;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::Pid;
use protocol::sandbox::{ProcessProfile, RankProgram, SandboxIdentity, SandboxSpec};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::fchown;

/// Ranks whose programs run.
pub(super) struct StartedRanks {
    pub(super) pids: Vec<Pid>,
    /// Reading ends of output and error of each rank, in order.
    pub(super) outputs: Vec<OwnedFd>,
    pub(super) not_enforced: Vec<String>,
}

/// Starts every rank, and waits until its program runs. After a failure the caller exits, and with it the
/// ranks that run already: all of them start, or none.
pub(super) fn start(
    spec: &SandboxSpec,
    profile: &ProcessProfile,
    groups: &[File],
) -> StepResult<StartedRanks> {
    let mut started = StartedRanks { pids: vec![], outputs: vec![], not_enforced: vec![] };
    for rank in &profile.ranks {
        let program = program(spec, rank)?;
        let [(output, output_end), (error, error_end)] = [pipe(spec.identity)?, pipe(spec.identity)?];
        let streams = Streams { passed: &[], output: &output_end, error: &error_end };
        let (pid, labels) = spawn(spec, &program, &streams, groups)?;
        started.pids.push(pid);
        started.outputs.extend([output, error]);
        started.not_enforced = labels;
    }
    Ok(started)
}

fn program(spec: &SandboxSpec, rank: &RankProgram) -> StepResult<Program> {
    let command = rank.arguments.first().map(String::as_str).unwrap_or_default();
    Ok(Program {
        paths: texts(command_paths(rank))?,
        arguments: texts(rank.arguments.clone())?,
        environment: variables(&rank.environment)?,
        filters: filter::for_ranks(!spec.devices.is_empty()).step("prepare the filter")?,
        step: format!("execute {command}"),
    })
}

/// Creates a pipe and returns its reading end, which does not block, and its writing end. The pipe belongs to
/// the ranks' user, so that a program can open `/dev/stdout`.
fn pipe(identity: SandboxIdentity) -> StepResult<(OwnedFd, OwnedFd)> {
    let (reader, writer) = io::pipe().step("create a pipe for output")?;
    let (reader, writer) = (OwnedFd::from(reader), OwnedFd::from(writer));
    fcntl(&reader, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).step("make a pipe non-blocking")?;
    if let SandboxIdentity::OwnIds { .. } = identity {
        fchown(&writer, Some(WORKER_ID), Some(WORKER_ID)).step("give a pipe to the ranks")?;
    }
    Ok((reader, writer))
}
