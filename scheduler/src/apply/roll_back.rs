//! Return of a service to the approval before, by the request of an operator.

use super::execute::settle;
use crate::cluster::Cluster;
use crate::command::{Actor, Refusal, Reply};
use crate::returning::return_target;
use protocol::ServiceName;
use protocol::error_code::{COMMAND_INVALID, SERVICE_NOT_FOUND};
use protocol::limits::REASON_BYTES_MAX;

/// Returns a service to the approval before, by hand. Nothing goes forward without a vote.
pub(super) fn roll_back(
    cluster: &mut Cluster,
    actor: &Actor,
    name: &ServiceName,
    reason: &str,
) -> Result<Reply, Refusal> {
    if reason.len() > REASON_BYTES_MAX {
        let message = format!("a reason of {} bytes; accepted: at most {REASON_BYTES_MAX}", reason.len());
        return Err(Refusal::new(COMMAND_INVALID, message));
    }
    let unknown = || Refusal::new(SERVICE_NOT_FOUND, format!("no service `{name}` runs"));
    let service = cluster.services.get(name).ok_or_else(unknown)?;
    let (target, manifest) = return_target(cluster, service)?;
    let (manifest, mut service) = (manifest.clone(), service.clone());
    let cause =
        if reason.is_empty() { format!("{actor} asked for it") } else { format!("{actor}: {reason}") };
    service.return_to(target, &manifest, cause.clone());
    cluster.services.insert(name.clone(), service);
    cluster.generation += 1;
    settle(cluster);
    cluster.audit.record(cluster.now, &actor.to_string(), "roll-back", &format!("service/{name}"), &cause);
    Ok(Reply::Done)
}
