//! Adapter between the replicated log and the cluster: it passes bytes through, and `scheduler` makes the
//! decisions.

use consensus::{Frozen, LogIndex};
use scheduler::Cluster;

/// The cluster as a state machine of `consensus`.
#[derive(Debug, Default)]
pub struct ClusterMachine {
    cluster: Cluster,
}

impl ClusterMachine {
    /// Returns the cluster as of the last applied command.
    #[must_use]
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }
}

impl consensus::StateMachine for ClusterMachine {
    fn apply(&mut self, index: LogIndex, command: &[u8]) -> Vec<u8> {
        scheduler::apply_bytes(&mut self.cluster, index.0, command)
    }

    fn freeze(&self) -> Frozen {
        let cluster = self.cluster.clone();
        Box::new(move || cluster.to_snapshot())
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<(), String> {
        self.cluster = Cluster::from_snapshot(snapshot).map_err(|error| error.to_string())?;
        Ok(())
    }
}
