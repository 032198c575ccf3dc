//! The circle's history, read page by page from control and verified as it arrives.
//!
//! Each decision is verified before the next page is asked for. A dishonest server therefore cannot make a
//! client read without end: a page that adds no valid decision ends the reading.

use crate::client::ControlClient;
use anyhow::{Context as _, Result};
use host::wall_clock;
use human_chain::{CircleState, check_waited, verify_replay};
use protocol::CircleId;
use protocol::api::{History, HistoryPage};

/// Path of the history.
const PATH: &str = "/v1/history";

/// Reads the whole history and verifies all of it against the pinned circle.
///
/// # Errors
/// Returns an error if no replica answers or anything in the history does not verify.
pub async fn read_history(client: &ControlClient, circle: CircleId) -> Result<(History, CircleState)> {
    let first: HistoryPage = client.page(PATH, None).await?;
    let genesis = first.genesis.clone().context("the history that control sent has no genesis")?;
    let mut state = CircleState::found(&genesis, Some(circle)).context(UNVERIFIED)?;
    let mut history = History { genesis, bundles: Vec::new() };
    let mut page = first;
    loop {
        let adds = !page.bundles.is_empty();
        for bundle in page.bundles {
            let approved = verify_replay(&state, &bundle.certificate).context(UNVERIFIED)?;
            check_waited(&state, &bundle.certificate, wall_clock()).context(UNVERIFIED)?;
            state.advance(approved).context(UNVERIFIED)?;
            history.bundles.push(bundle);
        }
        match page.next_page_token {
            None => return Ok((history, state)),
            Some(token) if adds => page = client.page(PATH, Some(&token)).await?,
            Some(_) => return Err(client.endless(PATH).into()),
        }
    }
}

const UNVERIFIED: &str = "the history that control sent does not verify";

#[cfg(test)]
mod tests;
