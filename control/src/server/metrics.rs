//! Monitoring of a control replica: health probes and Prometheus metrics, free of secrets.

use super::Server;
use axum::extract::State;
use axum::http::StatusCode;
use host::wall_clock;
use prometheus::{Counter, Encoder, IntCounter, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder};
use protocol::api::ServiceView;
use protocol::{NodeName, ServiceName};
use scheduler::{ClusterView, LeaderTime, Refusal};
use std::sync::{Arc, Mutex};

/// Counters and gauges of the replica.
pub(crate) struct ServerMetrics {
    registry: Registry,
    /// Number of plans executed.
    pub(crate) plans: IntCounter,
    pub(crate) steps_dropped: IntGauge,
    plans_refused: IntGauge,
    /// Number of agents' requests answered.
    pub(crate) syncs: IntCounter,
    /// Number of times that this replica became leader.
    pub(crate) leader_changes: IntCounter,
    is_leader: IntGauge,
    has_leader: IntGauge,
    replicas: IntGauge,
    replicas_alive: IntGauge,
    clock_wrong: IntGaugeVec,
    applied: IntGauge,
    committed: IntGauge,
    /// Serializes scrapes, because each one resets and refills the gauges of the leader.
    scraping: Mutex<()>,
    nodes_alive: IntGaugeVec,
    nodes_admitted: IntGauge,
    replicas_desired: IntGaugeVec,
    replicas_ready: IntGaugeVec,
    failed_starts: IntGaugeVec,
    returned: IntGaugeVec,
    not_enforced: IntGaugeVec,
    proposals_open: IntGauge,
    jobs: IntGaugeVec,
    halts_standing: IntGaugeVec,
    key_exchanges: IntGaugeVec,
    usage: UsageMetrics,
    log: LogMetrics,
}

/// Gauges of metered usage, as of the last entry.
struct UsageMetrics {
    entries: IntGauge,
    journalled: IntGauge,
    open_meters: IntGauge,
    spend: IntGauge,
}

impl UsageMetrics {
    fn new(r: &Registry) -> Self {
        Self {
            entries: gauge(r, "quorate_usage_entries", "Entries of usage ever made."),
            journalled: gauge(r, "quorate_usage_journal_entry", "Last entry in this replica's journal."),
            open_meters: gauge(r, "quorate_usage_open_meters", "Slots that are metered now."),
            spend: gauge(
                r,
                "quorate_usage_spend_micro_units",
                "Sum of all entries less credits, in millionths of the circle's unit.",
            ),
        }
    }

    fn refresh(&self, cluster: &scheduler::Cluster, journalled: u64) {
        let set = |gauge: &IntGauge, value: u64| gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        let (charged, credited) = cluster.usage().sums();
        set(&self.entries, cluster.usage().recorded());
        set(&self.journalled, journalled);
        set(&self.open_meters, cluster.usage().open_meters() as u64);
        set(&self.spend, charged.spend_micro_units.saturating_sub(credited.spend_micro_units));
    }
}

/// Counters of the consensus crate, exported unchanged.
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
                "Writes that failed because the disk was full.",
            ),
            disk_full: gauge(
                r,
                "quorate_log_disk_full",
                "1 while commands are refused for lack of disk space.",
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

fn gauges(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
    let metric =
        IntGaugeVec::new(Opts::new(name, help), labels).expect("the name is a constant of this file");
    registry.register(Box::new(metric.clone())).expect("each name is registered once");
    metric
}

fn clock_wrong(registry: &Registry) -> IntGaugeVec {
    let help = "1 for a control replica with a clock far from a majority's; it may not lead.";
    gauges(registry, "quorate_control_clock_wrong", help, &["replica"])
}

fn failed_starts(registry: &Registry) -> IntGaugeVec {
    let help = "Failed starts in a row of an approval that is rolled out; only the leader reports it.";
    gauges(registry, "quorate_service_failed_starts", help, &["service"])
}

fn returned(registry: &Registry) -> IntGaugeVec {
    let help = "1 while a service runs under the approval before; only the leader reports it.";
    gauges(registry, "quorate_service_returned", help, &["service"])
}

fn leader_changes(registry: &Registry) -> IntCounter {
    counter(registry, "quorate_control_leader_changes_total", "Times this replica became leader.")
}

fn halts_standing(registry: &Registry) -> IntGaugeVec {
    let help = "Halts that stand at this replica, by what they stop; every replica reports its own.";
    gauges(registry, "quorate_halts_standing", help, &["scope"])
}

impl ServerMetrics {
    pub(crate) fn new() -> Self {
        let r = Registry::new();
        Self {
            plans: counter(&r, "quorate_scheduler_plans_total", "Plans executed by this replica."),
            steps_dropped: gauge(
                &r,
                "quorate_scheduler_steps_dropped",
                "Steps of the last plan that would have been refused; more than 0 is a fault.",
            ),
            plans_refused: gauge(
                &r,
                "quorate_scheduler_plans_refused",
                "Last plans in a row that were refused although nothing had changed: a fault, always 0.",
            ),
            syncs: counter(&r, "quorate_agent_syncs_total", "Requests of agents answered by this replica."),
            leader_changes: leader_changes(&r),
            is_leader: gauge(&r, "quorate_control_is_leader", "1 while this replica leads."),
            has_leader: gauge(&r, "quorate_control_has_leader", "1 while this replica knows a leader."),
            replicas: gauge(&r, "quorate_control_replicas", "Control replicas of the genesis."),
            replicas_alive: gauge(
                &r,
                "quorate_control_replicas_alive",
                "Control replicas that answered this one recently, itself included.",
            ),
            clock_wrong: clock_wrong(&r),
            applied: gauge(&r, "quorate_control_applied_index", "Last log entry applied."),
            committed: gauge(&r, "quorate_control_commit_index", "Last log entry known to be committed."),
            scraping: Mutex::default(),
            nodes_alive: gauges(
                &r,
                "quorate_nodes_alive",
                "Nodes with a valid lease; only the leader reports it.",
                &[],
            ),
            nodes_admitted: gauge(&r, "quorate_nodes_admitted", "Nodes that the circle admitted."),
            replicas_desired: gauges(
                &r,
                "quorate_service_replicas_desired",
                "Desired replicas; only the leader reports it.",
                &["service"],
            ),
            replicas_ready: gauges(
                &r,
                "quorate_service_replicas_ready",
                "Ready replicas; only the leader reports it.",
                &["service"],
            ),
            failed_starts: failed_starts(&r),
            returned: returned(&r),
            not_enforced: gauges(
                &r,
                "quorate_node_not_enforced",
                "1 for each limit that a worker node does not enforce; only the leader reports it.",
                &["node", "limit"],
            ),
            jobs: gauges(&r, "quorate_jobs", "Jobs that are known, by state.", &["state"]),
            proposals_open: gauge(&r, "quorate_proposals_open", "Proposals that wait for votes."),
            halts_standing: halts_standing(&r),
            key_exchanges: gauges(
                &r,
                "quorate_api_key_exchanges",
                "API connections by key exchange group; `none` is plain HTTP on loopback.",
                &["group"],
            ),
            usage: UsageMetrics::new(&r),
            log: LogMetrics::new(&r),
            registry: r,
        }
    }
}

/// Handles `GET /livez`: the process runs and responds.
pub(crate) async fn livez() -> &'static str {
    "ok\n"
}

/// Handles `GET /readyz`: a leader is known, and this replica has applied every entry that it knows to be
/// committed.
pub(crate) async fn readyz(State(server): State<Arc<Server>>) -> (StatusCode, String) {
    let status = server.handle.status();
    let checks = [
        ("leader known", status.leader.is_some()),
        ("applied every committed entry", status.applied >= status.commit),
        ("circle founded", server.cluster(|cluster| cluster.genesis().is_some())),
    ];
    let line = |(name, holds): &(&str, bool)| format!("{} {name}\n", if *holds { "ok  " } else { "FAIL" });
    let ready = checks.iter().all(|(_, holds)| *holds);
    let code = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, checks.iter().map(line).collect())
}

/// Handles `GET /metrics` in Prometheus' text format.
pub(crate) async fn metrics(State(server): State<Arc<Server>>) -> (StatusCode, String) {
    let _alone = server.metrics.scraping.lock().expect("no holder of this lock panics");
    server.refresh_metrics();
    let mut text = Vec::new();
    match TextEncoder::new().encode(&server.metrics.registry.gather(), &mut text) {
        Ok(()) => (StatusCode::OK, String::from_utf8_lossy(&text).into_owned()),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

impl Server {
    fn refresh_metrics(&self) {
        let (metrics, status, now) = (&self.metrics, self.handle.status(), LeaderTime(wall_clock()));
        let set = |gauge: &IntGauge, value: u64| gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        set(&metrics.is_leader, u64::from(status.role == consensus::Role::Leader));
        set(&metrics.has_leader, u64::from(status.leader.is_some()));
        set(&metrics.replicas, self.genesis.genesis.control.len() as u64);
        set(&metrics.replicas_alive, self.peers.alive().unwrap_or(0));
        let wrong = self.wrong_clocks();
        for replica in &self.genesis.genesis.control {
            let label = format!("control-{}", replica.id);
            let gauge = metrics.clock_wrong.with_label_values(&[label.as_str()]);
            set(&gauge, u64::from(wrong.contains_key(&replica.id)));
        }
        set(&metrics.applied, status.applied.0);
        set(&metrics.committed, status.commit.0);
        metrics.log.refresh(&self.handle.metrics(), status.disk_full);
        for (group, count) in self.key_exchanges.counts() {
            set(&metrics.key_exchanges.with_label_values(&[group]), count);
        }
        for (kind, count) in self.standing_by_kind() {
            set(&metrics.halts_standing.with_label_values(&[kind]), count);
        }
        self.cluster(|cluster| {
            set(&metrics.nodes_admitted, cluster.nodes().count() as u64);
            set(&metrics.proposals_open, cluster.open_proposals().len() as u64);
            metrics.usage.refresh(cluster, self.usage_journal.last());
            metrics.jobs.reset();
            for job in cluster.jobs().jobs().values() {
                metrics.jobs.with_label_values(&[job.state.as_str()]).inc();
            }
        });
        let clocks = self.clocks.readings();
        let mut leadership = self.lock_leadership();
        let led = self.confirmed(&mut leadership).map(|leadership| {
            self.cluster(|cluster| {
                let (observed, clocks) = (&leadership.observed, &clocks);
                let view = ClusterView { cluster, observed, now, clocks };
                let alive = cluster.nodes().filter(|node| view.is_alive(&node.id));
                let services = scheduler::service_views(view);
                let service = |view: ServiceView| ServiceNumbers {
                    name: view.name,
                    desired: view.desired,
                    ready: view.ready,
                    failed_starts: view.roll_out.failed_starts,
                    returned: view.roll_out.returned_from.is_some(),
                };
                LeaderMetrics {
                    nodes_alive: alive.count(),
                    services: services.into_iter().map(service).collect(),
                    not_enforced: scheduler::limits_not_enforced(view),
                }
            })
        });
        metrics.export_leader_metrics(led.as_ref());
    }
}

/// Values of one service.
struct ServiceNumbers {
    name: ServiceName,
    desired: u32,
    ready: u32,
    failed_starts: u32,
    returned: bool,
}

/// Values that only the leader knows.
struct LeaderMetrics {
    nodes_alive: usize,
    services: Vec<ServiceNumbers>,
    /// Each node with the limits that it does not enforce for its workers.
    not_enforced: Vec<(NodeName, Vec<&'static str>)>,
}

impl ServerMetrics {
    /// Counts a plan that was refused in its own generation; any other plan ends the row.
    pub(crate) fn count_plan(&self, refused: Option<&Refusal>) {
        match refused {
            Some(refusal) => {
                tracing::error!(code = %refusal.code, %refusal, "the planner's own plan was refused");
                self.plans_refused.inc();
            }
            None => self.plans_refused.set(0),
        }
    }

    /// Exports the leader's gauges and resets everything else.
    ///
    /// A former leader's last values, or those of a retired service, would otherwise mask an outage for as
    /// long as the process runs.
    fn export_leader_metrics(&self, led: Option<&LeaderMetrics>) {
        self.nodes_alive.reset();
        self.replicas_desired.reset();
        self.replicas_ready.reset();
        self.failed_starts.reset();
        self.returned.reset();
        self.not_enforced.reset();
        let Some(led) = led else {
            self.steps_dropped.set(0);
            self.plans_refused.set(0);
            return;
        };
        let none: [&str; 0] = [];
        self.nodes_alive.with_label_values(&none).set(i64::try_from(led.nodes_alive).unwrap_or(i64::MAX));
        for service in &led.services {
            let label = [service.name.as_str()];
            self.replicas_desired.with_label_values(&label).set(i64::from(service.desired));
            self.replicas_ready.with_label_values(&label).set(i64::from(service.ready));
            self.failed_starts.with_label_values(&label).set(i64::from(service.failed_starts));
            self.returned.with_label_values(&label).set(i64::from(service.returned));
        }
        for (node, limits) in &led.not_enforced {
            for limit in limits {
                self.not_enforced.with_label_values(&[node.as_str(), *limit]).set(1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(metrics: &ServerMetrics) -> Vec<String> {
        let text = TextEncoder::new().encode_to_string(&metrics.registry.gather()).expect("text");
        let led = [
            "quorate_nodes_alive",
            "quorate_node_not_enforced",
            "quorate_service_",
            "quorate_scheduler_steps_dropped",
            "quorate_scheduler_plans_refused",
        ];
        let wanted = |line: &&str| led.iter().any(|name| line.starts_with(name));
        text.lines().filter(wanted).map(str::to_string).collect()
    }

    #[test]
    fn only_the_leader_exports_metrics_of_existing_nodes_and_services() {
        let metrics = ServerMetrics::new();
        let service = |name: &str, desired, ready| ServiceNumbers {
            name: name.parse().expect("a name"),
            desired,
            ready,
            failed_starts: desired - ready,
            returned: ready == 0,
        };
        let silent = ["quorate_scheduler_plans_refused 0", "quorate_scheduler_steps_dropped 0"];
        assert_eq!(shown(&metrics), silent, "a replica that never led");
        let led = LeaderMetrics {
            nodes_alive: 4,
            services: vec![service("chat", 2, 2), service("embed", 1, 0)],
            not_enforced: vec![("node-1".parse().expect("a name"), vec!["cpu", "memory"])],
        };
        metrics.export_leader_metrics(Some(&led));
        metrics.steps_dropped.set(1);
        let refusal = Refusal::new(protocol::error_code::PLAN_STALE, "slot chat/0 is held");
        (0..2).for_each(|_| metrics.count_plan(Some(&refusal)));
        let expected = [
            "quorate_node_not_enforced{limit=\"cpu\",node=\"node-1\"} 1",
            "quorate_node_not_enforced{limit=\"memory\",node=\"node-1\"} 1",
            "quorate_nodes_alive 4",
            "quorate_scheduler_plans_refused 2",
            "quorate_scheduler_steps_dropped 1",
            "quorate_service_failed_starts{service=\"chat\"} 0",
            "quorate_service_failed_starts{service=\"embed\"} 1",
            "quorate_service_replicas_desired{service=\"chat\"} 2",
            "quorate_service_replicas_desired{service=\"embed\"} 1",
            "quorate_service_replicas_ready{service=\"chat\"} 2",
            "quorate_service_replicas_ready{service=\"embed\"} 0",
            "quorate_service_returned{service=\"chat\"} 0",
            "quorate_service_returned{service=\"embed\"} 1",
        ];
        assert_eq!(shown(&metrics), expected);
        let later =
            LeaderMetrics { nodes_alive: 3, services: vec![service("embed", 1, 1)], not_enforced: vec![] };
        metrics.export_leader_metrics(Some(&later));
        metrics.count_plan(None);
        assert!(
            shown(&metrics).contains(&"quorate_scheduler_plans_refused 0".to_string()),
            "a plan was executed"
        );
        metrics.count_plan(Some(&refusal));
        assert!(!shown(&metrics).concat().contains("chat"), "a service that was retired");
        assert!(!shown(&metrics).concat().contains("node-1"), "a node that enforces everything now");
        metrics.export_leader_metrics(None);
        assert_eq!(shown(&metrics), silent, "a former leader");
    }
}
