//! The circle's history, read page by page from control and verified as it arrives.
//!
//! A client reads the whole history, or what follows a state that it verified before. Each decision is
//! verified before the next page is asked for. A dishonest server therefore cannot make a client read without
//! end: a page that adds no valid decision ends the reading. Each page names the head of the server's
//! history, and what the client has at the end must be that history.

use crate::client::ControlClient;
use anyhow::{Context as _, Result};
use host::wall_clock;
use human_chain::{ChainError, CircleState, check_waited, verify_replay};
use protocol::api::{History, HistoryPage};
use protocol::governance::{Bundle, HistoryHead};
use protocol::{CircleId, Refusal, error_code};

/// Path of the history.
const PATH: &str = "/v1/history";
/// Most decisions that are asked for in one request; the server answers with as many as fit into a page.
pub const DECISIONS_ASKED_MAX: usize = 100;

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
            let approved = verify_replay(&state, &bundle.certificate).context(UNVERIFIED)?;
            check_waited(&state, &bundle.certificate, wall_clock()).context(UNVERIFIED)?;
            state.advance(approved).context(UNVERIFIED)?;
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
    debug_assert!(first > 0 && count > 0 && circle.decision(first).is_some(), "a decision is asked for");
    let count = count.min(DECISIONS_ASKED_MAX);
    let path = format!("{PATH}?after={}&page_size={count}", first - 1);
    let page: HistoryPage = client.get(&path).await?;
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
