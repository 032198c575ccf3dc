//! The circle's history, read page by page from control and verified as it arrives.
//!
//! A client reads the whole history, or what follows a state that it verified before. Each decision is
//! verified before the next page is asked for. A dishonest server therefore cannot make a client read without
//! end: a page that adds no valid decision ends the reading. Each page names the head of the server's
//! history, and what the client has at the end must be that history.

use crate::client::ControlClient;
use crate::print;
use anyhow::{Context as _, Result};
use futures::future::join_all;
use host::wall_clock;
use human_chain::{ChainError, CircleState, check_waited, verify_replay};
use protocol::api::{History, HistoryPage};
use protocol::governance::{Bundle, HistoryHead};
use protocol::{CircleId, Refusal, error_code};
use std::time::Duration;

/// Path of the history.
const PATH: &str = "/v1/history";
/// Most decisions that are asked for in one request; the server answers with as many as fit into a page.
pub const DECISIONS_ASKED_MAX: usize = 100;
/// Time for which one replica may take to answer without a leader.
const REPLICA_TIMEOUT: Duration = Duration::from_secs(3);

/// Reads the whole history and verifies all of it against the pinned circle.
///
/// # Errors
/// Returns an error if no replica answers or anything in the history does not verify. Fails with
/// `history-shorter` or `history-forked` if the server names another head than that of what it sends.
pub async fn read_history(client: &ControlClient, circle: CircleId) -> Result<(History, CircleState)> {
    let mut bundles = Vec::new();
    let (genesis, state) = read_from_genesis(client, circle, |bundle| bundles.push(bundle)).await?;
    Ok((History { genesis, bundles }, state))
}

/// Verifies the whole history as [`read_history`] does, without keeping it.
///
/// # Errors
/// As [`read_history`].
pub async fn verify_history(client: &ControlClient, circle: CircleId) -> Result<CircleState> {
    Ok(read_from_genesis(client, circle, drop).await?.1)
}

async fn read_from_genesis(
    client: &ControlClient,
    circle: CircleId,
    take: impl FnMut(Bundle),
) -> Result<(protocol::governance::SignedGenesis, CircleState)> {
    let first: HistoryPage = client.page(PATH, None).await?;
    let genesis = first.genesis.clone().context("the history that control sent has no genesis")?;
    let state = CircleState::found(&genesis, Some(circle)).context(UNVERIFIED)?;
    Ok((genesis, follow(client, state, first, take).await?))
}

/// Reads the decisions after a state that was verified before, and verifies that they continue it.
///
/// # Errors
/// As [`read_history`].
pub async fn continue_history(client: &ControlClient, state: CircleState) -> Result<CircleState> {
    let next: HistoryPage = client.get(&format!("{PATH}?after={}", state.length())).await?;
    follow(client, state, next, drop).await
}

/// Reads what each replica has after a verified state, leader or not, and verifies it. Without a leader no
/// replica can say that it is up to date, so one that has less adds nothing. One that does not answer, or
/// sends what does not verify, is left out.
pub async fn continue_without_leader(client: &ControlClient, mut state: CircleState) -> CircleState {
    let each = client.each();
    let length = state.length();
    let probes = join_all(each.iter().map(|(_, replica)| page_of_any(replica, length))).await;
    for ((url, replica), probe) in each.iter().zip(probes) {
        if probe.is_none() {
            continue;
        }
        loop {
            let Some(page) = page_of_any(replica, state.length()).await else { break };
            match extend(&mut state, &page) {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    print::err(format_args!("note: the history of {url} is left out: {error:#}"));
                    break;
                }
            }
        }
    }
    debug_assert!(state.length() >= length, "what was verified stays");
    state
}

/// Fetches the decisions after this number from one replica, leader or not; none if it does not answer.
async fn page_of_any(replica: &ControlClient, after: u64) -> Option<HistoryPage> {
    let path = format!("{PATH}?after={after}&any_replica=true");
    tokio::time::timeout(REPLICA_TIMEOUT, replica.get(&path)).await.ok()?.ok()
}

/// Verifies a page and applies it. Returns whether there may be more: a page that adds nothing ends it.
fn extend(state: &mut CircleState, page: &HistoryPage) -> Result<bool> {
    if page.head.size == state.length() {
        state.check_extends(&page.head).map_err(Refusal::from).context(NAMED)?;
    }
    page.bundles.iter().try_for_each(|bundle| apply(state, bundle))?;
    Ok(!page.bundles.is_empty())
}

/// Verifies a decision and applies it.
fn apply(state: &mut CircleState, bundle: &Bundle) -> Result<()> {
    let approved = verify_replay(state, &bundle.certificate).context(UNVERIFIED)?;
    check_waited(state, &bundle.certificate, wall_clock()).context(UNVERIFIED)?;
    state.advance(approved).context(UNVERIFIED)
}

/// Applies this page and those after it.
async fn follow(
    client: &ControlClient,
    mut state: CircleState,
    mut page: HistoryPage,
    mut take: impl FnMut(Bundle),
) -> Result<CircleState> {
    let mut named = page.head;
    loop {
        let adds = !page.bundles.is_empty();
        for bundle in page.bundles {
            apply(&mut state, &bundle)?;
            take(bundle);
        }
        check_continued(&state, &page.head)?;
        // The history grows while it is read: the longest head that was named must be reached.
        named = if page.head.size >= named.size { page.head } else { named };
        match page.next_page_token {
            None => {
                state.check_extends(&named).map_err(Refusal::from).context(NAMED)?;
                return Ok(state);
            }
            Some(token) if adds => page = client.page(PATH, Some(&token)).await?,
            Some(_) => return Err(client.endless(PATH).into()),
        }
    }
}

/// Checks that a server with this head has the decisions that were verified here.
fn check_continued(state: &CircleState, head: &HistoryHead) -> Result<()> {
    let outcome = if head.size < state.length() {
        Err(ChainError::HistoryShorter { known: state.length(), length: head.size })
    } else if head.size == state.length() {
        state.check_extends(head)
    } else {
        Ok(())
    };
    outcome.map_err(Refusal::from).context("this machine verified another history than control has")
}

/// Reads decisions of a verified history from this number on, at most `count` and at least one.
///
/// # Errors
/// Returns an error if no replica answers. Fails with `history-shorter` if the server lacks the first, and
/// with `history-forked` if it sends another decision than the one that was verified.
pub async fn read_decisions(
    client: &ControlClient,
    circle: &CircleState,
    first: u64,
    count: usize,
) -> Result<Vec<Bundle>> {
    let page: HistoryPage = client.get(&decisions_path(circle, first, count)).await?;
    check_decisions(circle, first, count, page)
}

/// Reads decisions as [`read_decisions`] does, of the first replica that has them, leader or not: each is
/// compared with the one that was verified, so an old replica has them as well as a leader.
///
/// # Errors
/// The last replica's, as [`read_decisions`].
pub async fn read_decisions_of_any(
    client: &ControlClient,
    circle: &CircleState,
    first: u64,
    count: usize,
) -> Result<Vec<Bundle>> {
    let path = format!("{}&any_replica=true", decisions_path(circle, first, count));
    let mut outcome = Err(Refusal::new(error_code::CONTROL_UNAVAILABLE, "no control replica answers").into());
    for (_, replica) in client.each() {
        let Ok(Ok(page)) = tokio::time::timeout(REPLICA_TIMEOUT, replica.get(&path)).await else { continue };
        outcome = check_decisions(circle, first, count, page);
        if outcome.is_ok() {
            break;
        }
    }
    outcome
}

fn decisions_path(circle: &CircleState, first: u64, count: usize) -> String {
    debug_assert!(first > 0 && count > 0 && circle.decision(first).is_some(), "a decision is asked for");
    format!("{PATH}?after={}&page_size={}", first - 1, count.min(DECISIONS_ASKED_MAX))
}

/// Checks that a page holds decisions of the verified history from this number on.
fn check_decisions(circle: &CircleState, first: u64, count: usize, page: HistoryPage) -> Result<Vec<Bundle>> {
    let count = count.min(DECISIONS_ASKED_MAX);
    let bundles: Vec<Bundle> = page.bundles.into_iter().take(count).collect();
    if bundles.is_empty() {
        let missing = ChainError::HistoryShorter { known: circle.length(), length: first - 1 };
        return Err(Refusal::from(missing).into());
    }
    for (number, bundle) in (first..).zip(&bundles) {
        let verified = circle.decision(number).map(|entry| entry.certificate);
        if verified != Some(bundle.certificate.digest()) {
            let message = format!("decision {number} that control sent is not the one that was verified");
            return Err(Refusal::new(error_code::HISTORY_FORKED, message).into());
        }
    }
    Ok(bundles)
}

const UNVERIFIED: &str = "the history that control sent does not verify";
const NAMED: &str = "control names another history than the one that it sends";

#[cfg(test)]
mod tests;
