//! Jobs and arrays by the beginnings of their ids, as people type them.

use crate::client::ControlClient;
use anyhow::Result;
use protocol::api::Page;
use protocol::job_api::JobView;
use protocol::{JobId, Refusal, error_code};
use std::collections::BTreeSet;

/// Returns the id of the one job whose id begins so.
pub(super) async fn find(client: &ControlClient, beginning: &str) -> Result<JobId> {
    if let Ok(id) = beginning.parse() {
        return Ok(id);
    }
    let jobs = jobs_of(client).await?;
    Ok(only(jobs.iter().map(|job| job.id), beginning, "job")?)
}

/// Returns the one job whose id begins so, or all tasks of the one array, by their index.
pub(super) async fn find_set(client: &ControlClient, beginning: &str) -> Result<Vec<JobId>> {
    Ok(set_of(&jobs_of(client).await?, beginning)?)
}

/// Returns the ids of the jobs and arrays that begin so.
pub(super) async fn find_all(client: &ControlClient, beginnings: &[String]) -> Result<BTreeSet<JobId>> {
    if beginnings.is_empty() {
        return Ok(BTreeSet::new());
    }
    let jobs = jobs_of(client).await?;
    let found: Result<BTreeSet<JobId>, Refusal> =
        beginnings.iter().map(|beginning| job_or_array(&jobs, beginning)).collect();
    Ok(found?)
}

async fn jobs_of(client: &ControlClient) -> Result<Vec<JobView>> {
    let page: Page<JobView> = client.get("/v1/jobs").await?;
    Ok(page.items)
}

fn set_of(jobs: &[JobView], beginning: &str) -> Result<Vec<JobId>, Refusal> {
    let named = job_or_array(jobs, beginning)?;
    let task = |job: &JobView| {
        let task = job.array.filter(|task| task.array == named)?;
        Some((task.index, job.id))
    };
    let mut tasks: Vec<(u32, JobId)> = jobs.iter().filter_map(task).collect();
    tasks.sort_unstable();
    Ok(if tasks.is_empty() { vec![named] } else { tasks.into_iter().map(|(_, id)| id).collect() })
}

fn job_or_array(jobs: &[JobView], beginning: &str) -> Result<JobId, Refusal> {
    let ids = jobs.iter().flat_map(|job| [Some(job.id), job.array.map(|task| task.array)]);
    only(ids.flatten(), beginning, "job or array")
}

/// Returns the one id that begins so.
fn only(ids: impl Iterator<Item = JobId>, beginning: &str, what: &str) -> Result<JobId, Refusal> {
    let found: BTreeSet<JobId> = ids.filter(|id| id.to_string().starts_with(beginning)).collect();
    match (found.first(), found.len()) {
        (Some(id), 1) => Ok(*id),
        (None, _) => {
            Err(Refusal::new(error_code::JOB_NOT_FOUND, format!("no {what} begins with `{beginning}`")))
        }
        (Some(_), several) => {
            let message = format!("more than one {what} begins with `{beginning}`: {several} do");
            Err(Refusal::new(error_code::JOB_NOT_FOUND, message))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::job_runs::tests::job;
    use super::*;
    use protocol::Digest;
    use protocol::job::ArrayTask;

    fn id(byte: u8) -> JobId {
        JobId(Digest([byte; 32]))
    }

    /// Returns two jobs of their own and the tasks of an array, the last first.
    fn jobs() -> Vec<JobView> {
        let task = |byte, index| {
            let array = Some(ArrayTask { array: id(0xa1), index, count: 2 });
            JobView { array, ..job(byte, "queued") }
        };
        vec![task(0x21, 1), task(0x22, 0), job(0x11, "queued"), job(0x12, "running")]
    }

    #[test]
    fn a_job_is_found_by_the_beginning_of_its_id() {
        let ids = || jobs().into_iter().map(|job| job.id);
        assert_eq!(only(ids(), "12", "job"), Ok(id(0x12)));
        for beginning in ["1", "3", "a1"] {
            let refused = only(ids(), beginning, "job").expect_err(beginning);
            assert_eq!(refused.code, error_code::JOB_NOT_FOUND);
        }
    }

    #[test]
    fn an_array_stands_for_its_tasks_in_their_order() {
        assert_eq!(set_of(&jobs(), "a1"), Ok(vec![id(0x22), id(0x21)]));
        assert_eq!(set_of(&jobs(), "21"), Ok(vec![id(0x21)]), "a task is a job too");
        assert_eq!(set_of(&jobs(), "2").map_err(|refusal| refusal.code), Err(error_code::JOB_NOT_FOUND));
        assert_eq!(job_or_array(&jobs(), "a"), Ok(id(0xa1)));
    }
}
