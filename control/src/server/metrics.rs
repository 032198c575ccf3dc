//! What a control replica tells monitoring: probes and Prometheus metrics, with no secret in them.

use super::{Server, wall_clock};
use axum::extract::State;
use axum::http::StatusCode;
use prometheus::{Counter, Encoder, IntCounter, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder};
use std::sync::Arc;

/// The replica's own counters and gauges.
pub(crate) struct ServerMetrics {
    registry: Registry,
    /// Plans carried out.
    pub(crate) plans: IntCounter,
    pub(crate) steps_dropped: IntGauge,
    /// Agents' requests answered.
    pub(crate) syncs: IntCounter,
    /// Times this replica became leader.
    pub(crate) leader_changes: IntCounter,
    is_leader: IntGauge,
    has_leader: IntGauge,
    replicas: IntGauge,
    replicas_alive: IntGauge,
    applied: IntGauge,
    committed: IntGauge,
    nodes_alive: IntGauge,
    nodes_admitted: IntGauge,
    replicas_desired: IntGaugeVec,
    replicas_ready: IntGaugeVec,
    proposals_open: IntGauge,
    key_exchanges: IntGaugeVec,
    log: LogMetrics,
}

/// What consensus counts by itself, shown as it is.
struct LogMetrics {
    proposals: IntCounter,
    refused: IntCounter,
    snapshots: IntCounter,
    syncs: IntCounter,
    sync_seconds: Counter,
    waits_for_space: IntCounter,
    disk_full: IntGauge,
}

impl LogMetrics {
    fn new(r: &Registry) -> Self {
        let sync_seconds =
            Counter::new("quorate_log_sync_seconds_total", "Seconds spent making the log durable.")
                .expect("the name is a constant of this file");
        r.register(Box::new(sync_seconds.clone())).expect("each name is registered once");
        Self {
            proposals: counter(
                r,
                "quorate_log_proposals_total",
                "Commands appended by this replica as a leader.",
            ),
            refused: counter(
                r,
                "quorate_log_proposals_refused_total",
                "Commands refused because too much waited or the disk was nearly full.",
            ),
            snapshots: counter(r, "quorate_log_snapshots_total", "Snapshots taken and saved."),
            syncs: counter(r, "quorate_log_syncs_total", "Groups of log records made durable."),
            sync_seconds,
            waits_for_space: counter(
                r,
                "quorate_log_waits_for_space_total",
                "Times that the disk had no space for what should be written.",
            ),
            disk_full: gauge(
                r,
                "quorate_log_disk_full",
                "1 while commands are refused for want of disk space.",
            ),
        }
    }

    fn refresh(&self, counts: &consensus::Metrics, disk_full: bool) {
        let raise = |counter: &IntCounter, value: u64| counter.inc_by(value.saturating_sub(counter.get()));
        raise(&self.proposals, counts.proposals);
        raise(&self.refused, counts.proposals_refused);
        raise(&self.snapshots, counts.snapshots);
        raise(&self.syncs, counts.syncs.iter().sum());
        raise(&self.waits_for_space, counts.waits_for_space);
        self.sync_seconds.inc_by((counts.sync_seconds - self.sync_seconds.get()).max(0.0));
        self.disk_full.set(i64::from(disk_full));
    }
}

fn counter(registry: &Registry, name: &str, help: &str) -> IntCounter {
    let metric = IntCounter::new(name, help).expect("the name is a constant of this file");
    registry.register(Box::new(metric.clone())).expect("each name is registered once");
    metric
}

fn gauge(registry: &Registry, name: &str, help: &str) -> IntGauge {
    let metric = IntGauge::new(name, help).expect("the name is a constant of this file");
    registry.register(Box::new(metric.clone())).expect("each name is registered once");
    metric
}

fn gauges(registry: &Registry, name: &str, help: &str, label: &str) -> IntGaugeVec {
    let metric =
        IntGaugeVec::new(Opts::new(name, help), &[label]).expect("the name is a constant of this file");
    registry.register(Box::new(metric.clone())).expect("each name is registered once");
    metric
}

impl ServerMetrics {
    pub(crate) fn new() -> Self {
        let r = Registry::new();
        Self {
            plans: counter(&r, "quorate_scheduler_plans_total", "Plans carried out by this replica."),
            steps_dropped: gauge(
                &r,
                "quorate_scheduler_steps_dropped",
                "Steps that the last plan left out because applying them would be refused: a fault, always 0.",
            ),
            syncs: counter(&r, "quorate_agent_syncs_total", "Requests of agents answered by this replica."),
            leader_changes: counter(
                &r,
                "quorate_control_leader_changes_total",
                "Times this replica became leader.",
            ),
            is_leader: gauge(&r, "quorate_control_is_leader", "1 while this replica leads."),
            has_leader: gauge(&r, "quorate_control_has_leader", "1 while this replica knows a leader."),
            replicas: gauge(&r, "quorate_control_replicas", "Control replicas of the genesis."),
            replicas_alive: gauge(
                &r,
                "quorate_control_replicas_alive",
                "Control replicas that answered this one lately, itself included.",
            ),
            applied: gauge(&r, "quorate_control_applied_index", "Last log entry applied."),
            committed: gauge(&r, "quorate_control_commit_index", "Last log entry known to be committed."),
            nodes_alive: gauge(&r, "quorate_nodes_alive", "Nodes whose lease holds; the leader knows."),
            nodes_admitted: gauge(&r, "quorate_nodes_admitted", "Nodes that the circle admitted."),
            replicas_desired: gauges(&r, "quorate_service_replicas_desired", "Replicas wanted.", "service"),
            replicas_ready: gauges(&r, "quorate_service_replicas_ready", "Replicas that answer.", "service"),
            proposals_open: gauge(&r, "quorate_proposals_open", "Proposals that wait for votes."),
            key_exchanges: gauges(
                &r,
                "quorate_api_key_exchanges",
                "Connections of people by key exchange group; `none` is plain HTTP on loopback.",
                "group",
            ),
            log: LogMetrics::new(&r),
            registry: r,
        }
    }
}

/// `GET /livez`: the process runs and answers.
pub(crate) async fn livez() -> &'static str {
    "ok\n"
}

/// `GET /readyz`: a leader is known and this replica has applied what it knows to be committed.
pub(crate) async fn readyz(State(server): State<Arc<Server>>) -> (StatusCode, String) {
    let status = server.handle.status();
    let checks = [
        ("leader known", status.leader.is_some()),
        ("applied what is committed", status.applied >= status.commit),
        ("circle founded", server.cluster(|cluster| cluster.genesis().is_some())),
    ];
    let line = |(name, holds): &(&str, bool)| format!("{} {name}\n", if *holds { "ok  " } else { "FAIL" });
    let ready = checks.iter().all(|(_, holds)| *holds);
    let code = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, checks.iter().map(line).collect())
}

/// `GET /metrics` in Prometheus' text format.
pub(crate) async fn metrics(State(server): State<Arc<Server>>) -> (StatusCode, String) {
    server.refresh_metrics();
    let mut text = Vec::new();
    match TextEncoder::new().encode(&server.metrics.registry.gather(), &mut text) {
        Ok(()) => (StatusCode::OK, String::from_utf8_lossy(&text).into_owned()),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

impl Server {
    fn refresh_metrics(&self) {
        let (metrics, status, now) = (&self.metrics, self.handle.status(), wall_clock());
        let set = |gauge: &IntGauge, value: u64| gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        set(&metrics.is_leader, u64::from(status.role == consensus::Role::Leader));
        set(&metrics.has_leader, u64::from(status.leader.is_some()));
        set(&metrics.replicas, self.genesis.genesis.control.len() as u64);
        set(&metrics.replicas_alive, self.peers.alive().map_or(0, u64::from));
        set(&metrics.applied, status.applied);
        set(&metrics.committed, status.commit);
        metrics.log.refresh(&self.handle.metrics(), status.disk_full);
        for (group, count) in self.key_exchanges.counts() {
            set(&metrics.key_exchanges.with_label_values(&[group]), count);
        }
        self.cluster(|cluster| {
            set(&metrics.nodes_admitted, cluster.nodes().count() as u64);
            set(&metrics.proposals_open, cluster.open_proposals().len() as u64);
        });
        let leadership = self.lock_leadership();
        let Some(leadership) = leadership.as_ref() else { return };
        self.cluster(|cluster| {
            let alive = cluster.nodes().filter(|node| leadership.observed.is_alive(&node.id, now));
            set(&metrics.nodes_alive, alive.count() as u64);
            for view in scheduler::service_views(cluster, &leadership.observed, now) {
                let label = [view.name.as_str()];
                set(&metrics.replicas_desired.with_label_values(&label), u64::from(view.desired));
                set(&metrics.replicas_ready.with_label_values(&label), u64::from(view.ready));
            }
        });
    }
}
