//! Return of a service to the approval before, by a failed roll-out or by hand.
//!
//! A service that returns runs under the certificate before, with fences of the one in force. Nodes accept
//! that only if the certificate in force names the earlier approval to return to. The replicas that still run
//! under it are then up to date, and those of the new approval are replaced like any earlier ones. Only the
//! circle's next decision about the service ends the return.

use crate::cluster::{Cluster, Service, ServicePhase};
use crate::command::Refusal;
use crate::roll_out::{ReturnTarget, RollOut, RollOutPhase};
use protocol::error_code::{ROLLBACK_NOT_APPROVED, SERVICE_NOT_FOUND};
use protocol::manifest::ServiceManifest;

impl Service {
    /// Returns whether the service runs under the approval before.
    #[must_use]
    pub fn has_returned(&self) -> bool {
        matches!(self.roll_out.phase, RollOutPhase::Returned { .. })
    }

    /// Returns whether replicas of an earlier approval are being replaced, and the roll-out has not failed.
    pub(crate) fn is_rolling_out(&self) -> bool {
        self.roll_out.phase == RollOutPhase::Progressing
    }

    /// Runs the service under the approval before from now on.
    pub(crate) fn return_to(&mut self, target: ReturnTarget, manifest: &ServiceManifest, cause: String) {
        debug_assert_eq!(self.before, Some(target), "a service returns to what its certificate names");
        debug_assert_eq!(self.manifest.name, manifest.name, "an approval of the same service");
        debug_assert!(!self.has_returned(), "a service returns once");
        let from = std::mem::replace(&mut self.certificate, target.certificate);
        let valid_until = self.manifest.valid_until;
        self.manifest = manifest.clone();
        self.desired = self.desired.min(manifest.replicas.max).max(manifest.replicas.min);
        self.avoid.clear();
        let phase = RollOutPhase::Returned { from, valid_until, cause };
        self.roll_out = RollOut { phase, ..RollOut::default() };
        debug_assert!(self.has_returned() && self.certificate != from, "another approval is ordered now");
    }
}

/// Returns the approval to which a service may return now, with its manifest.
///
/// # Errors
/// The service does not run, its certificate names no approval to return to, or it has returned already.
pub(crate) fn return_target<'a>(
    cluster: &'a Cluster,
    service: &Service,
) -> Result<(ReturnTarget, &'a ServiceManifest), Refusal> {
    let name = &service.manifest.name;
    if service.phase != ServicePhase::Active {
        return Err(Refusal::new(SERVICE_NOT_FOUND, format!("no service `{name}` runs")));
    }
    let refuse = |message: String| Err(Refusal::new(ROLLBACK_NOT_APPROVED, message));
    if service.has_returned() {
        return refuse(format!("`{name}` has returned already; going on needs a new approval"));
    }
    let known = service.before.and_then(|target| Some((target, cluster.manifest_of(&target.certificate)?)));
    let Some((target, manifest)) = known else {
        return refuse(format!(
            "the approval of `{name}` names none to return to; propose the earlier manifest instead"
        ));
    };
    if manifest.valid_until.is_some_and(|until| until <= cluster.now().0) {
        return refuse(format!("the approval to which `{name}` would return has ended"));
    }
    Ok((target, manifest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::Digest;
    use protocol::manifest::{Manifest, ReplicaRange};
    use std::collections::BTreeMap;

    fn manifest(min: u32, max: u32) -> ServiceManifest {
        let text = "kind = 'service'\nname = 'chat'\ntask = 'embed'\n\
            model = { name = 'minilm', root = 'ROOT' }\nreplicas = { min = 1, max = 2 }\n\
            resources = { cpu_millicores = 500, memory = '1 GiB' }\n";
        let manifest = Manifest::from_toml(&text.replace("ROOT", &"1".repeat(64))).expect("a sound manifest");
        let Manifest::Service(mut service) = manifest else { panic!("a service") };
        service.replicas = ReplicaRange { min, max };
        service
    }

    #[test]
    fn a_return_is_inside_the_envelope_before() {
        let target = ReturnTarget { certificate: Digest::of(b"before"), failed: false };
        for (desired, expected) in [(1, 2), (2, 2), (3, 3), (8, 3)] {
            let mut service = Service {
                manifest: manifest(1, 8),
                certificate: Digest::of(b"in force"),
                version: 2,
                desired,
                phase: ServicePhase::Active,
                slots: BTreeMap::new(),
                avoid: BTreeMap::new(),
                before: Some(target),
                roll_out: RollOut { phase: RollOutPhase::Progressing, failed_starts: 3, available: 0 },
            };
            service.return_to(target, &manifest(2, 3), "it failed".into());
            assert_eq!((service.desired, service.version), (expected, 2), "fences are of the one in force");
            assert_eq!(service.certificate, target.certificate);
            let from = Digest::of(b"in force");
            assert_eq!(
                service.roll_out.phase,
                RollOutPhase::Returned { from, valid_until: None, cause: "it failed".into() }
            );
        }
    }
}
