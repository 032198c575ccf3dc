//! Step: a node's agent and sandboxes are killed with SIGKILL while requests run.

use super::service::{self, answers, is_on, wait_until_alive};
use super::{Demonstration, POLL_INTERVAL};
use crate::openai::OpenAi;
use crate::processes::{PausedSupervisor, kill_node};
use anyhow::{Context as _, Result, bail};
use protocol::api::{ServiceView, SlotView};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;

/// The service whose requests must not fail.
pub(super) const SERVICE: &str = "minilm";
/// Number of clients that send requests without a pause.
const CLIENTS: usize = 2;
/// Timeout for the service to answer before a node is killed.
const ANSWERED_LIMIT: Duration = Duration::from_secs(120);

/// Counts of requests during a failure.
#[derive(Default)]
struct RequestCounts {
    answered: AtomicU64,
    failed: AtomicU64,
    stop: AtomicBool,
    /// Error of the first failed request.
    reason: Mutex<Option<String>>,
}

/// Clients that send requests without a pause.
pub(super) struct RequestLoad {
    tally: Arc<RequestCounts>,
    clients: Vec<JoinHandle<()>>,
}

impl RequestLoad {
    /// Starts the clients, and waits until each is likely in the middle of a request.
    pub(super) async fn start(api: &OpenAi) -> Result<Self> {
        let tally = Arc::new(RequestCounts::default());
        let clients = (0..CLIENTS).map(|_| tokio::spawn(ask_on(api.clone(), tally.clone()))).collect();
        wait_until_answered(&tally).await?;
        Ok(Self { tally, clients })
    }

    /// Returns the number of requests that were answered so far.
    pub(super) fn answered(&self) -> u64 {
        self.tally.answered.load(Ordering::Relaxed)
    }

    /// Ends the clients; returns the numbers of answered and failed requests.
    pub(super) async fn end(self) -> Result<(u64, u64)> {
        self.tally.stop.store(true, Ordering::Relaxed);
        for client in self.clients {
            client.await.context("a client task")?;
        }
        let tally = self.tally;
        let (answered, failed) =
            (tally.answered.load(Ordering::Relaxed), tally.failed.load(Ordering::Relaxed));
        if failed > 0 || answered == 0 {
            let reason =
                tally.reason.lock().unwrap_or_else(PoisonError::into_inner).take().unwrap_or_default();
            bail!("the service did not answer throughout: {answered} answered, {failed} failed: {reason}");
        }
        Ok((answered, failed))
    }
}

/// Kills a node that serves, and checks that no request fails and that another node takes its slot.
///
/// `quorate up` stands still until then: it would restart the node's agent at once, as any supervisor.
pub(super) async fn kill_a_node(demonstration: &Demonstration, api: &OpenAi) -> Result<()> {
    let before = service::show(demonstration, SERVICE).await?;
    let victim = before.slots.iter().find_map(|slot| slot.node.clone()).context("minilm runs somewhere")?;
    let victim = victim.as_str();
    let load = RequestLoad::start(api).await?;
    let paused = PausedSupervisor::pause(demonstration.up)?;
    let killed_at = Instant::now();
    let processes = kill_node(demonstration.up, &demonstration.node(victim))?;
    let replaced = |view: &ServiceView| replacement(view, &before, victim);
    let (slot, node) = service::wait_until(demonstration, SERVICE, "is whole again", replaced).await?;
    let replaced_after = killed_at.elapsed();
    let (answered, failed) = load.end().await?;
    demonstration.say(format!(
        "killed {victim} with SIGKILL ({processes} processes) while requests ran: {failed} of {} failed; \
         slot {SERVICE}/{slot} answers on {node} after {:.1} s",
        answered + failed,
        replaced_after.as_secs_f64()
    ));
    drop(paused);
    wait_until_alive(demonstration, victim).await?;
    demonstration.say(format!("{victim} is back"));
    Ok(())
}

/// Waits until each client is likely in the middle of a request.
async fn wait_until_answered(tally: &RequestCounts) -> Result<()> {
    let deadline = Instant::now() + ANSWERED_LIMIT;
    while tally.answered.load(Ordering::Relaxed) < 10 * CLIENTS as u64 {
        if Instant::now() > deadline || tally.failed.load(Ordering::Relaxed) > 0 {
            bail!("the service does not answer before anything is killed");
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    Ok(())
}

async fn ask_on(api: OpenAi, tally: Arc<RequestCounts>) {
    while !tally.stop.load(Ordering::Relaxed) {
        let outcome = api.embed(SERVICE, &["a node dies and nobody notices"]).await;
        let count = if outcome.is_ok() { &tally.answered } else { &tally.failed };
        if let Err(error) = outcome {
            let mut reason = tally.reason.lock().unwrap_or_else(PoisonError::into_inner);
            reason.get_or_insert_with(|| format!("{error:#}"));
        }
        count.fetch_add(1, Ordering::Relaxed);
    }
}

/// Returns the new replica, slot and node, once the desired number of replicas answer without the victim.
fn replacement(view: &ServiceView, before: &ServiceView, victim: &str) -> Option<(u32, String)> {
    let known =
        |slot: &SlotView| before.slots.iter().any(|old| (old.slot, old.fence) == (slot.slot, slot.fence));
    let serving: Vec<&SlotView> = view
        .slots
        .iter()
        .filter(|slot| answers(slot) && slot.node.is_some() && !is_on(slot, victim))
        .collect();
    let fresh = serving.iter().find(|slot| !known(slot))?;
    let whole = serving.len() >= usize::try_from(view.desired).ok()?;
    whole.then_some((fresh.slot.0, fresh.node.as_ref()?.to_string()))
}
