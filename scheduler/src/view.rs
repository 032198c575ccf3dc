//! The input of every answer about the cluster: the replicated state, the leader's view, and the time.

use crate::clock::{ClockReadings, ClusterTime, LeaderTime};
use crate::cluster::{Cluster, Holding};
use crate::observed::{Liveness, Observed};
use human_chain::covers;
use protocol::governance::NodeAdmission;
use protocol::halt::{Halt, HaltScope};
use protocol::{NodeId, ServiceName};

/// The cluster as its leader sees it at one moment.
#[derive(Debug, Clone, Copy)]
pub struct ClusterView<'a> {
    /// Replicated state.
    pub cluster: &'a Cluster,
    /// Leases and reports of the nodes, recorded by this leader.
    pub observed: &'a Observed,
    /// Leader's clock, by which `observed` recorded them.
    pub now: LeaderTime,
    /// Clocks of the replicas, as the leader knows them.
    pub clocks: &'a ClockReadings,
}

impl ClusterView<'_> {
    /// Returns the cluster's time if the leader proposed a command now. Deadlines are judged by it.
    #[must_use]
    pub fn cluster_time(&self) -> ClusterTime {
        self.cluster.time(self.clocks)
    }

    /// Returns the state of a node's lease now.
    #[must_use]
    pub fn liveness(&self, node: &NodeId) -> Liveness {
        self.observed.liveness(node, self.now)
    }

    /// Returns a halt that covers a service on a node.
    #[must_use]
    pub fn halt_on(&self, service: &ServiceName, node: &NodeAdmission) -> Option<&Halt> {
        let halt = self.observed.halts().iter().find(|halt| covers(halt, service, node));
        debug_assert!(halt.is_some() || self.halt_of(service).is_none(), "what stops everywhere stops here");
        halt
    }

    /// Returns a halt that covers a service on every node.
    #[must_use]
    pub fn halt_of(&self, service: &ServiceName) -> Option<&Halt> {
        let everywhere = |halt: &&Halt| match &halt.scope {
            HaltScope::Service(name) => name == service,
            HaltScope::Circle => true,
            HaltScope::Node(_) | HaltScope::Region(_) => false,
        };
        self.observed.halts().iter().find(everywhere)
    }

    /// Returns whether a slot counts as available: its node is alive, and it has answered requests for this
    /// time in milliseconds or longer. A new leader counts from its first report.
    #[must_use]
    pub(crate) fn is_available(&self, holding: &Holding, ready_ms: u64) -> bool {
        let order = &holding.order;
        let since = self.observed.answering_since(&order.node, &order.service, order.slot, order.fence);
        self.is_alive(&order.node)
            && since.is_some_and(|since| ready_ms == 0 || since.plus(ready_ms) <= self.now)
    }

    /// Returns whether a node's lease certainly holds now, so that it can be given work.
    #[must_use]
    pub fn is_alive(&self, node: &NodeId) -> bool {
        self.observed.is_alive(node, self.now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::WallTime;
    use protocol::{Millis, PublicKey, ReplicaId};

    /// Clocks that are ahead of the leader's own move deadlines, and no lease.
    #[test]
    fn clocks_that_are_ahead_move_deadlines_and_no_lease() {
        let observed = Observed::new(LeaderTime(Millis(1_000)));
        let node = NodeId(PublicKey([7; 32]));
        let clocks: ClockReadings = [(ReplicaId(1), WallTime(Millis(2_000)))].into_iter().collect();
        for (cluster_now, expected) in [(0, 2_000), (2_000, 2_000), (90_000, 90_000)] {
            let cluster = Cluster { now: ClusterTime(Millis(cluster_now)), ..Cluster::default() };
            let now = LeaderTime(Millis(2_000));
            let view = ClusterView { cluster: &cluster, observed: &observed, now, clocks: &clocks };
            assert_eq!(view.cluster_time(), ClusterTime(Millis(expected)));
            assert!(matches!(view.liveness(&node), Liveness::Unknown { .. }), "at {cluster_now}");
            assert!(!view.is_alive(&node), "at {cluster_now}");
        }
    }
}
