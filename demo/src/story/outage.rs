//! Step: every control replica is killed with SIGKILL while requests run.

use super::kill::{RequestLoad, SERVICE};
use super::{Demonstration, POLL_INTERVAL, service};
use crate::openai::OpenAi;
use crate::processes::{PausedSupervisor, kill_daemon};
use anyhow::{Result, bail};
use protocol::api::ServiceView;
use protocol::{Fence, SlotIndex};
use std::time::{Duration, Instant};

/// Time without any control replica: more than twice the lease that once ended everything.
const OUTAGE: Duration = Duration::from_secs(7);
/// Timeout for control to answer again.
const RETURN_LIMIT: Duration = Duration::from_secs(60);
/// Directories of the control replicas.
const REPLICAS: [&str; 3] = ["control-1", "control-2", "control-3"];

/// Kills every control replica, and checks that requests continue and that nothing restarts when control is
/// back.
///
/// `quorate up` is paused during the outage: it would start the replicas again at once, as any supervisor.
pub(super) async fn kill_control(demonstration: &Demonstration, api: &OpenAi) -> Result<()> {
    let before = held(&service::show(demonstration, SERVICE).await?);
    let load = RequestLoad::start(api).await?;
    let paused = PausedSupervisor::pause(demonstration.up)?;
    for replica in REPLICAS {
        kill_daemon(demonstration.up, &demonstration.directory.join(replica))?;
    }
    let answered_before = load.answered();
    tokio::time::sleep(OUTAGE).await;
    if load.answered() == answered_before {
        bail!("no request was answered without control");
    }
    drop(paused);
    let began = Instant::now();
    wait_until_control_answers(demonstration).await?;
    let returned_after = began.elapsed();
    let after = held(&service::show(demonstration, SERVICE).await?);
    if after != before {
        bail!("the slots of {SERVICE} are others after the outage: {before:?}, then {after:?}");
    }
    let (answered, failed) = load.end().await?;
    demonstration.say(format!(
        "killed all {} control replicas with SIGKILL for {} s while requests ran: {failed} of {} failed; \
         they lead again after {:.1} s, and nothing was restarted",
        REPLICAS.len(),
        OUTAGE.as_secs(),
        answered + failed,
        returned_after.as_secs_f64()
    ));
    Ok(())
}

/// Returns the held slots with their nodes and fences: a replica that was started again elsewhere, or under a
/// new order, has others.
fn held(view: &ServiceView) -> Vec<(SlotIndex, Option<String>, Fence)> {
    let slot =
        |slot: &protocol::api::SlotView| (slot.slot, slot.node.as_ref().map(ToString::to_string), slot.fence);
    view.slots.iter().map(slot).collect()
}

async fn wait_until_control_answers(demonstration: &Demonstration) -> Result<()> {
    let deadline = Instant::now() + RETURN_LIMIT;
    loop {
        let verdict = demonstration.quorate.verdict(&["status"]).await;
        if matches!(verdict, Ok((Some(0), _))) {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("control does not answer again: {verdict:?}");
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}
