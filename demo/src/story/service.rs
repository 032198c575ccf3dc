//! A service as `quorate service show` prints it, and waits for a state of it.

use super::{Demonstration, POLL_INTERVAL};
use anyhow::{Result, bail};
use protocol::agent::SlotState;
use protocol::api::{NodeView, Page, ServiceView, SlotView};
use std::time::{Duration, Instant};

/// Timeout of every wait for a service or a node, on a busy machine.
const LIMIT: Duration = Duration::from_secs(180);

/// Returns a service.
pub(super) async fn show(demonstration: &Demonstration, name: &str) -> Result<ServiceView> {
    demonstration.quorate.json(&["service", "show", name]).await
}

/// Changes the number of a service's replicas, within its envelope.
pub(super) async fn scale(demonstration: &Demonstration, name: &str, replicas: u32) -> Result<()> {
    demonstration.quorate.text(&["scale", name, &replicas.to_string()]).await.map(|_| ())
}

/// Waits until `find` finds something in a service; a timeout names what was expected, and why it is not so.
pub(super) async fn wait_until<T>(
    demonstration: &Demonstration,
    name: &str,
    expected: &str,
    find: impl Fn(&ServiceView) -> Option<T>,
) -> Result<T> {
    let deadline = Instant::now() + LIMIT;
    loop {
        let view = show(demonstration, name).await?;
        if let Some(found) = find(&view) {
            return Ok(found);
        }
        if Instant::now() > deadline {
            let why = demonstration.quorate.text(&["why", name]).await.unwrap_or_default();
            bail!("not within {} s: {name} {expected}: {why}: {:?}", LIMIT.as_secs(), view.slots);
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// Changes the number of a service's replicas and waits until `find` finds something in it. The number is
/// requested again if another client has changed it since.
pub(super) async fn scale_until<T>(
    demonstration: &Demonstration,
    name: &str,
    replicas: u32,
    expected: &str,
    find: impl Fn(&ServiceView) -> Option<T>,
) -> Result<T> {
    loop {
        scale(demonstration, name, replicas).await?;
        let changed_or_found = |view: &ServiceView| match find(view) {
            Some(found) => Some(Some(found)),
            None => (view.desired != replicas).then_some(None),
        };
        if let Some(found) = wait_until(demonstration, name, expected, changed_or_found).await? {
            return Ok(found);
        }
    }
}

/// Returns whether a slot's replica answers.
pub(super) fn answers(slot: &SlotView) -> bool {
    slot.report.as_ref().is_some_and(|report| report.state == SlotState::Ready)
}

/// Returns whether a slot's replica answers and its node has verified every segment of the model; it may
/// answer before.
pub(super) fn is_complete(slot: &SlotView) -> bool {
    let report = slot.report.as_ref();
    answers(slot) && report.is_some_and(|report| report.segments_verified == report.segments_total)
}

/// Returns whether a slot is held by this node.
pub(super) fn is_on(slot: &SlotView, node: &str) -> bool {
    slot.node.as_ref().is_some_and(|name| name.as_str() == node)
}

/// Waits until control receives reports from a node.
pub(super) async fn wait_until_alive(demonstration: &Demonstration, node: &str) -> Result<()> {
    let deadline = Instant::now() + LIMIT;
    loop {
        let page: Page<NodeView> = demonstration.quorate.json(&["node", "list"]).await?;
        if page.items.iter().any(|view| view.name.as_str() == node && view.alive) {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("{node} did not come back within {} s", LIMIT.as_secs());
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}
