//! The pages of the jobs, and the lines that the page of a running one reads.

use super::{Console, PageFailure, PageResult, SignedIn, html, invalid, is_silence};
use crate::page::jobs::{LINES_SHOWN, ShownLines, written_line};
use crate::page::{self, Section};
use axum::Json;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use protocol::job_api::{JobLogPage, JobView};
use protocol::{JobId, Refusal, error_code};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Most pages of lines that one page of the console reads: control keeps fewer.
const LINE_PAGES_MAX: usize = 64;

/// Query of a page of the jobs.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct JobsQuery {
    #[serde(default)]
    skip: usize,
}

pub(super) async fn list(
    SignedIn(visitor): SignedIn,
    State(console): State<Arc<Console>>,
    query: Result<Query<JobsQuery>, QueryRejection>,
) -> PageResult {
    let Query(JobsQuery { skip }) = query.map_err(|rejection| invalid(&rejection.body_text()))?;
    let look = console.look(visitor).await?;
    let (jobs, note) = match console.backend.jobs().await {
        Err(refusal) if is_silence(refusal.code) => (Vec::new(), Some(refusal.message)),
        jobs => (jobs?, None),
    };
    Ok(html(page::jobs::page(&look.frame(Section::Jobs), &jobs, skip, note.as_deref())))
}

pub(super) async fn projects(SignedIn(visitor): SignedIn, State(console): State<Arc<Console>>) -> PageResult {
    let look = console.look(visitor).await?;
    let (list, note) = match console.backend.projects().await {
        Err(refusal) if is_silence(refusal.code) => (None, Some(refusal.message)),
        list => (Some(list?), None),
    };
    Ok(html(page::projects::page(&look.frame(Section::Jobs), list.as_ref(), note.as_deref())))
}

pub(super) async fn one(
    SignedIn(visitor): SignedIn,
    State(console): State<Arc<Console>>,
    id: Result<Path<JobId>, PathRejection>,
) -> PageResult {
    let Path(id) = id.map_err(|rejection| invalid(&rejection.body_text()))?;
    let look = console.look(visitor).await?;
    let job = console.job(id).await?;
    let data = console.backend.job_data(id).await?;
    let events = console.backend.job_events(id).await?;
    let lines = console.latest_lines(id).await?;
    let shown = page::jobs::ShownJob { job: &job, data: &data, events: &events, lines: &lines };
    Ok(html(page::jobs::one(&look.frame(Section::Jobs), &shown)))
}

/// Query for the lines that follow.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LinesQuery {
    /// Sequence number of the last line that the page shows.
    after: u64,
    /// Epoch of the leader that numbered it.
    epoch: u64,
}

/// Lines that follow those of a page.
#[derive(Debug, Serialize)]
pub(super) struct FollowingLines {
    epoch: u64,
    after: u64,
    /// True if none follow these.
    ended: bool,
    /// Lines as text of one line each.
    lines: Vec<String>,
}

pub(super) async fn lines(
    SignedIn(_): SignedIn,
    State(console): State<Arc<Console>>,
    id: Result<Path<JobId>, PathRejection>,
    query: Result<Query<LinesQuery>, QueryRejection>,
) -> Result<Json<FollowingLines>, PageFailure> {
    let Path(id) = id.map_err(|rejection| invalid(&rejection.body_text()))?;
    let Query(LinesQuery { after, epoch }) = query.map_err(|rejection| invalid(&rejection.body_text()))?;
    // The state first: lines that a rank wrote before its end are then in the answer.
    let ended = console.job(id).await?.has_ended();
    let mut page = console.backend.job_lines(id, after).await?;
    if page.epoch != epoch {
        // Another leader has numbered its lines from the beginning.
        page = console.backend.job_lines(id, 0).await?;
    }
    let JobLogPage { epoch, items } = page;
    let after = items.last().map_or(after, |line| line.sequence);
    let ended = ended && items.is_empty();
    Ok(Json(FollowingLines { epoch, after, ended, lines: items.iter().map(written_line).collect() }))
}

impl Console {
    async fn job(&self, id: JobId) -> Result<JobView, PageFailure> {
        let job = self.backend.job(id).await?;
        Ok(job.ok_or_else(|| {
            let message = format!("no job {}; ended ones are forgotten after a while", id.short());
            Refusal::new(error_code::JOB_NOT_FOUND, message)
        })?)
    }

    /// Reads the latest lines of a job's ranks.
    async fn latest_lines(&self, id: JobId) -> Result<ShownLines, PageFailure> {
        let mut shown = ShownLines::default();
        for _ in 0..LINE_PAGES_MAX {
            let after = shown.lines.last().map_or(0, |line| line.sequence);
            let page = match self.backend.job_lines(id, after).await {
                Err(refusal) if is_silence(refusal.code) => {
                    return Ok(ShownLines { note: Some(refusal.message), ..shown });
                }
                page => page?,
            };
            if page.epoch != shown.epoch && !shown.lines.is_empty() {
                shown = ShownLines::default();
                continue;
            }
            shown.epoch = page.epoch;
            if page.items.is_empty() {
                break;
            }
            shown.lines.extend(page.items);
            shown.lines.drain(..shown.lines.len().saturating_sub(LINES_SHOWN));
        }
        Ok(shown)
    }
}
