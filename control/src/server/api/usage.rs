//! Metered usage: totals of the state, and entries of the journal.

use super::ApiResult;
use crate::server::Server;
use crate::server::extract::LeaderRead;
use crate::server::paging::{PageParameters, PageRequest, PagedList};
use crate::server::problem::{Failure, unavailable};
use axum::Json;
use axum::extract::Query;
use axum::extract::rejection::QueryRejection;
use protocol::api::Page;
use protocol::usage::{UsageEntry, UsagePage, UsageTotal};
use std::fmt::Display;

/// Most entries that one page reads from the journal.
const ENTRIES_MAX: usize = 500;

/// A page of the totals by day, service or job, project, owner and submitter, with what is open now; and the
/// prices of each vote. The number of all entries, and the head of the chain over them, are those of the
/// totals.
#[utoipa::path(get, path = "/v1/usage", params(PageParameters),
    responses((status = 200, body = UsagePage)), tag = "usage")]
pub(super) async fn usage(
    LeaderRead { server, .. }: LeaderRead,
    query: Result<Query<PageParameters>, QueryRejection>,
) -> ApiResult<UsagePage> {
    let page: PageRequest<String> = PageRequest::of(PagedList::Usage, query)?;
    let answer = server.read_view(|view| {
        let (usage, at) = (view.cluster.usage(), view.cluster_time());
        let (charged, credited) = usage.sums();
        let mut rows: Vec<(String, UsageTotal)> =
            usage.totals(at).into_iter().map(|row| (key_of(&row), row)).collect();
        rows.sort_by(|a, b| a.0.cmp(&b.0));
        let rest = rows.into_iter().filter(|(key, _)| page.after.as_ref().is_none_or(|after| key > after));
        let (items, next_page_token) = page.take(rest);
        UsagePage {
            circle: view.cluster.circle_id(),
            at: at.0,
            recorded: usage.recorded(),
            head: usage.head(),
            charged,
            credited,
            prices: scheduler::price_versions(view.cluster),
            items,
            next_page_token,
        }
    })?;
    Ok(Json(answer))
}

/// Returns the place of a row in the list: by day, name, project, owner and submitter.
fn key_of(row: &UsageTotal) -> String {
    let text = |name: Option<&dyn Display>| name.map_or_else(|| "-".to_string(), |name| name.to_string());
    let project = text(row.project.as_ref().map(|name| name as &dyn Display));
    let owner = text(row.owner.as_ref().map(|name| name as &dyn Display));
    format!("{:020}/{}/{project}/{owner}/{}", row.day.0, row.envelope, row.submitter_text())
}

/// A page of the entries, by number: one for each slot, fence and closed interval. An entry never changes.
#[utoipa::path(get, path = "/v1/usage/entries", params(PageParameters),
    responses((status = 200, body = Page<UsageEntry>)), tag = "usage")]
pub(super) async fn entries(
    LeaderRead { server, .. }: LeaderRead,
    query: Result<Query<PageParameters>, QueryRejection>,
) -> ApiResult<Page<UsageEntry>> {
    let page: PageRequest<u64> = PageRequest::of(PagedList::UsageEntries, query)?;
    let found = behind(&server, page.after.unwrap_or(0)).await?;
    let (items, next_page_token) = page.take(found.into_iter().map(|entry| (entry.sequence, entry)));
    Ok(Json(Page { items, next_page_token }))
}

/// Returns the entries behind a number: one more than a page has, or all. Entries that the journal does not
/// have yet are in the state.
async fn behind(server: &Server, mut after: u64) -> Result<Vec<UsageEntry>, Failure> {
    let mut found: Vec<UsageEntry> = Vec::new();
    let unreadable =
        |error: &dyn Display| unavailable(format!("the journal of usage is unreadable: {error}"));
    while found.len() <= ENTRIES_MAX {
        let journal = server.usage_journal.clone();
        let read = tokio::task::spawn_blocking(move || journal.page(after, ENTRIES_MAX + 1)).await;
        let kept = read.map_err(|error| unreadable(&error))?.map_err(|error| unreadable(&error))?;
        let Some(last) = kept.last() else { break };
        after = last.sequence;
        found.extend(kept);
    }
    server.cluster(|cluster| {
        let fresh = cluster.usage().recent().filter(|entry| entry.sequence > after);
        found.extend(fresh.take(ENTRIES_MAX + 1).cloned());
    });
    debug_assert!(found.is_sorted_by(|a, b| a.sequence < b.sequence), "entries are read in order, once");
    Ok(found)
}
