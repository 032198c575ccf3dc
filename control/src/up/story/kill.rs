//! Demonstration step: a node's agent and sandboxes are killed with SIGKILL while requests run.

use super::Narrator;
use super::openai::OpenAi;
use crate::up::cluster::{LOOK_AGAIN, LocalCluster};
use anyhow::{Context as _, Result, anyhow, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use protocol::ServiceName;
use protocol::agent::SlotState;
use protocol::api::{Page, ServiceView, SlotView};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Number of clients that send requests without a pause.
const CLIENTS: usize = 2;
/// Timeout for the slot to be served on another node.
const REPLACED_LIMIT: Duration = Duration::from_secs(120);

/// Counts of requests during the failure of the node.
#[derive(Default)]
struct RequestCounts {
    answered: AtomicU64,
    failed: AtomicU64,
    stop: AtomicBool,
    /// Error of the first failed request.
    reason: Mutex<Option<String>>,
}

pub(crate) async fn kill_a_node(cluster: &LocalCluster, api: &OpenAi, narrator: &Narrator) -> Result<()> {
    let session = cluster.session().await?;
    let service: ServiceName = "minilm".parse().map_err(|error: String| anyhow!(error))?;
    let before: ServiceView = session.client.get(&format!("/v1/services/{service}")).await?;
    let victim = before.slots.iter().find_map(|slot| slot.node.clone()).context("minilm runs somewhere")?;
    let tally = Arc::new(RequestCounts::default());
    let clients: Vec<_> = (0..CLIENTS).map(|_| tokio::spawn(ask_on(api.clone(), tally.clone()))).collect();
    wait_until_answered(&tally).await?;
    let killed_at = Instant::now();
    let processes = kill_everything_of(cluster, victim.as_str()).await?;
    let (slot, node) = wait_until_replaced(&session, &service, &before, victim.as_str()).await?;
    let replaced_after = killed_at.elapsed();
    tally.stop.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.context("a client task")?;
    }
    let (answered, failed) = (tally.answered.load(Ordering::Relaxed), tally.failed.load(Ordering::Relaxed));
    narrator.say(format!(
        "killed {victim} with SIGKILL ({processes} processes) while requests ran: {failed} of {} failed; \
         slot {service}/{slot} answers on {node} after {:.1} s",
        answered + failed,
        replaced_after.as_secs_f64()
    ));
    if failed > 0 || answered == 0 {
        let reason = tally.reason.lock().unwrap_or_else(PoisonError::into_inner).take().unwrap_or_default();
        bail!("the service did not answer throughout: {answered} answered, {failed} failed: {reason}");
    }
    cluster.restart(victim.as_str())?;
    wait_until_alive(&session, victim.as_str()).await?;
    narrator.say(format!("{victim} is back"));
    Ok(())
}

/// Waits until each client is likely in the middle of a request.
async fn wait_until_answered(tally: &RequestCounts) -> Result<()> {
    let deadline = Instant::now() + REPLACED_LIMIT;
    while tally.answered.load(Ordering::Relaxed) < 10 * CLIENTS as u64 {
        if Instant::now() > deadline || tally.failed.load(Ordering::Relaxed) > 0 {
            bail!("the service does not answer before any node is killed");
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    Ok(())
}

async fn ask_on(api: OpenAi, tally: Arc<RequestCounts>) {
    while !tally.stop.load(Ordering::Relaxed) {
        let outcome = api.embed("minilm", &["a node dies and nobody notices"]).await;
        let count = if outcome.is_ok() { &tally.answered } else { &tally.failed };
        if let Err(error) = outcome {
            let mut reason = tally.reason.lock().unwrap_or_else(PoisonError::into_inner);
            reason.get_or_insert_with(|| format!("{error:#}"));
        }
        count.fetch_add(1, Ordering::Relaxed);
    }
}

/// Sends SIGKILL to the agent and, at the same moment, to every process below it.
async fn kill_everything_of(cluster: &LocalCluster, node: &str) -> Result<usize> {
    let agent = cluster.pid(node)?;
    let family = descendants(agent)?;
    for pid in &family {
        // A process may already have ended, which is the desired result.
        let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
    }
    cluster.kill(node).await?;
    Ok(family.len() + 1)
}

/// Returns every process below this one, from `/proc`.
pub(crate) fn descendants(root: u32) -> Result<Vec<i32>> {
    let mut parents = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let path = entry?.path();
        let pid = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse::<i32>().ok());
        if let Some((pid, parent)) = pid.and_then(|pid| Some((pid, parent_of(&path)?))) {
            parents.push((pid, parent));
        }
    }
    let mut family = vec![i32::try_from(root)?];
    let mut at = 0;
    while at < family.len() {
        let parent = family[at];
        family.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(pid, _)| *pid));
        at += 1;
    }
    Ok(family.split_off(1))
}

fn parent_of(process: &Path) -> Option<i32> {
    let stat = std::fs::read_to_string(process.join("stat")).ok()?;
    // The name in parentheses may hold any character; the fields after the last parenthesis do not.
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

/// Waits until the desired number of replicas answer without the victim; returns the new replica among them.
async fn wait_until_replaced(
    session: &crate::session::Session,
    service: &ServiceName,
    before: &ServiceView,
    victim: &str,
) -> Result<(u32, String)> {
    let known: Vec<_> = before.slots.iter().map(|slot| (slot.slot, slot.fence)).collect();
    let deadline = Instant::now() + REPLACED_LIMIT;
    loop {
        let view: ServiceView = session.client.get(&format!("/v1/services/{service}")).await?;
        let answers = |slot: &&SlotView| slot.report.as_ref().is_some_and(|r| r.state == SlotState::Ready);
        let elsewhere = |slot: &&SlotView| slot.node.as_ref().is_some_and(|node| node.as_str() != victim);
        let serving: Vec<_> = view.slots.iter().filter(answers).filter(elsewhere).collect();
        let fresh = serving.iter().find(|slot| !known.contains(&(slot.slot, slot.fence)));
        if let Some((slot, node)) = fresh.and_then(|slot| Some((slot.slot.0, slot.node.as_ref()?)))
            && serving.len() >= view.desired as usize
        {
            return Ok((slot, node.to_string()));
        }
        if Instant::now() > deadline {
            let limit = REPLACED_LIMIT.as_secs();
            bail!("{service} was not whole again within {limit} s: {:?}", view.slots);
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// Waits until control receives reports from a node.
pub(crate) async fn wait_until_alive(session: &crate::session::Session, node: &str) -> Result<()> {
    let deadline = Instant::now() + REPLACED_LIMIT;
    loop {
        let page: Page<protocol::api::NodeView> = session.client.get("/v1/nodes").await?;
        if page.items.iter().any(|view| view.name.as_str() == node && view.alive) {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("{node} did not come back within {} s", REPLACED_LIMIT.as_secs());
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}
