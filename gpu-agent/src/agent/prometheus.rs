//! Metrics for Prometheus, as text, on a loopback listener.

use super::gangs::GangCounters;
use protocol::agent::{SlotReport, SlotState};
use protocol::job_report::{JobSlotReport, JobSlotState};
use std::collections::BTreeMap;
use std::fmt::Write;

/// Values that are exported.
#[derive(Debug, Default)]
pub(super) struct Numbers {
    pub(super) slots: Vec<SlotReport>,
    pub(super) lease_remaining_ms: u64,
    pub(super) control_silent_ms: u64,
    pub(super) governance_length: u64,
    pub(super) syncs: u64,
    pub(super) sync_failures: u64,
    pub(super) bundles_refused: u64,
    pub(super) orders_refused: u64,
    pub(super) routes_refused: u64,
    pub(super) histories_refused: u64,
    /// Halts that stand, by the kind of their scope.
    pub(super) halts_standing: BTreeMap<&'static str, u64>,
    pub(super) shard_faults: u64,
    /// Slots of jobs, as they are reported.
    pub(super) job_slots: Vec<JobSlotReport>,
    /// Trees of artifacts that differed from their root.
    pub(super) trees_changed: u64,
    /// Slots of jobs whose logs could not be stored.
    pub(super) logs_lost: u64,
    /// Packets of the ranks of gangs.
    pub(super) gangs: GangCounters,
    /// Root, segments verified, bytes.
    pub(super) models: Vec<(String, u64, u64)>,
    pub(super) gateway: Option<GatewayNumbers>,
}

/// Metrics of the gateway process.
#[derive(Debug, Default)]
pub(super) struct GatewayNumbers {
    pub(super) routes_version: u64,
    pub(super) restarts: u64,
    pub(super) workers: u64,
}

/// One metric: its name, kind and help text, and its samples as labels and value.
struct Family<'a> {
    name: &'a str,
    kind: &'a str,
    help: &'a str,
    samples: Vec<(String, u64)>,
}

/// Renders the metrics in Prometheus's text format.
pub(super) fn render(numbers: &Numbers) -> String {
    let mut text = String::new();
    for family in node_families(numbers).into_iter().chain(slot_families(&numbers.slots)) {
        let Family { name, kind, help, samples } = family;
        // Writing to a string cannot fail.
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for (labels, value) in samples {
            let _ = writeln!(text, "{name}{labels} {value}");
        }
    }
    text
}

/// Metrics with one sample and no labels: name, kind, help text, value.
type Rows<const N: usize> = [(&'static str, &'static str, &'static str, u64); N];

fn families<const N: usize>(rows: Rows<N>) -> impl Iterator<Item = Family<'static>> {
    let family =
        |(name, kind, help, value)| Family { name, kind, help, samples: vec![(String::new(), value)] };
    rows.into_iter().map(family)
}

fn job_data_families(numbers: &Numbers) -> impl Iterator<Item = Family<'static>> {
    families([
        (
            "quorate_agent_artifact_trees_changed_total",
            "counter",
            "Unpacked artifacts that differed from their root",
            numbers.trees_changed,
        ),
        (
            "quorate_agent_job_logs_lost_total",
            "counter",
            "Slots of jobs whose logs could not be stored",
            numbers.logs_lost,
        ),
    ])
}

fn node_families(numbers: &Numbers) -> Vec<Family<'static>> {
    let counts = families([
        (
            "quorate_agent_lease_remaining_milliseconds",
            "gauge",
            "Time until the lease of control's last answer ends",
            numbers.lease_remaining_ms,
        ),
        (
            "quorate_agent_control_silent_milliseconds",
            "gauge",
            "Time since control's last answer was asked for",
            numbers.control_silent_ms,
        ),
        ("quorate_agent_governance_length", "gauge", "Bundles verified and kept", numbers.governance_length),
        ("quorate_agent_syncs_total", "counter", "Answers of control", numbers.syncs),
        (
            "quorate_agent_sync_failures_total",
            "counter",
            "Rounds in which no replica answered",
            numbers.sync_failures,
        ),
        (
            "quorate_agent_bundles_refused_total",
            "counter",
            "Governance bundles that did not verify",
            numbers.bundles_refused,
        ),
        ("quorate_agent_orders_refused_total", "counter", "Orders refused", numbers.orders_refused),
        (
            "quorate_agent_routes_refused_total",
            "counter",
            "Routes and routed services not handed to the gateway",
            numbers.routes_refused,
        ),
        (
            "quorate_agent_histories_refused_total",
            "counter",
            "Histories that lack or change a decision that this node has verified",
            numbers.histories_refused,
        ),
        (
            "quorate_agent_shard_faults_total",
            "counter",
            "Shards missing, out of reach or wrong",
            numbers.shard_faults,
        ),
    ]);
    let counts = counts.chain(job_data_families(numbers));
    let gateway = numbers.gateway.iter().flat_map(gateway_families);
    let scope = |(kind, count): (&&str, &u64)| (format!("{{scope=\"{kind}\"}}"), *count);
    let halts = Family {
        name: "quorate_agent_halts_standing",
        kind: "gauge",
        help: "Halts that this node obeys, by what they stop",
        samples: numbers.halts_standing.iter().map(scope).collect(),
    };
    let counts =
        counts.chain([halts]).chain(job_families(&numbers.job_slots)).chain(gang_families(&numbers.gangs));
    counts.chain(model_families(&numbers.models)).chain(gateway).collect()
}

fn job_families(slots: &[JobSlotReport]) -> [Family<'static>; 2] {
    let labels = |slot: &JobSlotReport| {
        let JobSlotReport { job, slot: index, attempt, .. } = slot;
        format!("job=\"{job}\",slot=\"{index}\",attempt=\"{attempt}\"")
    };
    let state = |slot: &JobSlotReport| {
        let state = match slot.state {
            JobSlotState::Preparing => "preparing",
            JobSlotState::Ready => "ready",
            JobSlotState::Running => "running",
            JobSlotState::Ended => "ended",
        };
        (format!("{{{},state=\"{state}\"}}", labels(slot)), 1)
    };
    let used = |slot: &JobSlotReport| (format!("{{{}}}", labels(slot)), slot.cpu_micros);
    [
        Family {
            name: "quorate_agent_job_slot",
            kind: "gauge",
            help: "Slots of jobs on this node, with their state",
            samples: slots.iter().map(state).collect(),
        },
        Family {
            name: "quorate_agent_job_slot_cpu_microseconds",
            kind: "gauge",
            help: "CPU time of all ranks of a slot's attempt",
            samples: slots.iter().map(used).collect(),
        },
    ]
}

fn gang_families(gangs: &GangCounters) -> impl Iterator<Item = Family<'static>> + use<> {
    let counts = families([
        ("quorate_agent_gang_packets_total", "counter", "Packets between ranks", gangs.packets),
        ("quorate_agent_gang_bytes_total", "counter", "Bytes of packets between ranks", gangs.bytes),
        (
            "quorate_agent_gang_links_refused_total",
            "counter",
            "Links of other nodes that were refused",
            gangs.links_refused,
        ),
    ]);
    let dropped = |(reason, count): (&&str, &u64)| (format!("{{reason=\"{reason}\"}}"), *count);
    counts.chain([Family {
        name: "quorate_agent_gang_packets_dropped_total",
        kind: "counter",
        help: "Packets of ranks that were dropped, by reason",
        samples: gangs.dropped.iter().map(dropped).collect(),
    }])
}

fn gateway_families(gateway: &GatewayNumbers) -> impl Iterator<Item = Family<'static>> + use<> {
    families([
        (
            "quorate_agent_gateway_routes_version",
            "gauge",
            "Route table in force; 0 = none",
            gateway.routes_version,
        ),
        (
            "quorate_agent_gateway_restarts_total",
            "counter",
            "Times the gateway was started again",
            gateway.restarts,
        ),
        ("quorate_agent_gateway_workers", "gauge", "Workers connected at the last push", gateway.workers),
    ])
}

fn model_families(models: &[(String, u64, u64)]) -> [Family<'static>; 2] {
    let samples = |pick: fn(&(String, u64, u64)) -> u64| {
        models.iter().map(|model| (format!("{{root=\"{}\"}}", model.0), pick(model))).collect()
    };
    let family = |name, help, samples| Family { name, kind: "gauge", help, samples };
    [
        family("quorate_agent_model_segments_verified", "Segments in memory", samples(|model| model.1)),
        family("quorate_agent_model_bytes", "Bytes of a model's weights in memory", samples(|model| model.2)),
    ]
}

fn slot_families(slots: &[SlotReport]) -> Vec<Family<'static>> {
    let labels = |slot: &SlotReport| format!("service=\"{}\",slot=\"{}\"", slot.service, slot.slot);
    let state = slots.iter().map(|slot| {
        (format!("{{{},fence=\"{}\",state=\"{}\"}}", labels(slot), slot.fence, state_name(slot.state)), 1)
    });
    let each = |name, kind, help, pick: &dyn Fn(&SlotReport) -> Option<u64>| {
        let samples = slots.iter().filter_map(|slot| Some((format!("{{{}}}", labels(slot)), pick(slot)?)));
        Family { name, kind, help, samples: samples.collect() }
    };
    let metric = |pick: fn(&protocol::worker::WorkerMetrics) -> u64| {
        move |slot: &SlotReport| slot.metrics.as_ref().map(pick)
    };
    vec![
        Family {
            name: "quorate_agent_slot_state",
            kind: "gauge",
            help: "1 for the state that a slot is in",
            samples: state.collect(),
        },
        each("quorate_agent_slot_restarts_total", "counter", "Times a worker was started again", &|slot| {
            Some(u64::from(slot.restarts))
        }),
        each("quorate_agent_slot_segments_verified", "gauge", "Segments verified for a slot", &|slot| {
            Some(slot.segments_verified)
        }),
        each("quorate_agent_slot_segments", "gauge", "Segments of a slot's model", &|slot| {
            Some(slot.segments_total)
        }),
        each(
            "quorate_agent_worker_requests_running",
            "gauge",
            "Requests in the engine",
            &metric(|m| u64::from(m.requests_running)),
        ),
        each(
            "quorate_agent_worker_requests_waiting",
            "gauge",
            "Requests in the queue",
            &metric(|m| u64::from(m.requests_waiting)),
        ),
        each(
            "quorate_agent_worker_requests_total",
            "counter",
            "Requests answered",
            &metric(|m| m.requests_total),
        ),
        each(
            "quorate_agent_worker_prompt_tokens_total",
            "counter",
            "Prompt tokens",
            &metric(|m| m.prompt_tokens_total),
        ),
        each(
            "quorate_agent_worker_generation_tokens_total",
            "counter",
            "Generated tokens",
            &metric(|m| m.generation_tokens_total),
        ),
        each(
            "quorate_agent_worker_kv_cache_usage_permille",
            "gauge",
            "KV cache in use",
            &metric(|m| u64::from(m.kv_cache_usage_permille)),
        ),
    ]
}

fn state_name(state: SlotState) -> &'static str {
    match state {
        SlotState::Loading => "loading",
        SlotState::Starting => "starting",
        SlotState::Ready => "ready",
        SlotState::Draining => "draining",
        SlotState::Released => "released",
        SlotState::Failed => "failed",
        SlotState::Refused => "refused",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::worker::WorkerMetrics;
    use protocol::{Fence, SlotIndex};

    #[test]
    fn every_line_is_one_that_prometheus_understands() {
        let slot = SlotReport {
            service: "chat".parse().expect("a name"),
            slot: SlotIndex(3),
            fence: Fence::new(1, 7),
            state: SlotState::Ready,
            detail: "not \"exported\"\n".into(),
            segments_verified: 1,
            segments_total: 2,
            restarts: 3,
            metrics: Some(WorkerMetrics { requests_total: 9, ..WorkerMetrics::default() }),
        };
        let job_slot = JobSlotReport {
            job: "train".parse().expect("a name"),
            id: protocol::JobId(protocol::Digest::of(b"job")),
            attempt: 2,
            slot: SlotIndex(1),
            fence: Fence::new(1, 4),
            ranks: protocol::job::SlotRanks { first: 0, count: 2 },
            state: JobSlotState::Running,
            ends: vec![],
            refusal: None,
            cpu_micros: 7,
        };
        let numbers = Numbers {
            slots: vec![slot],
            job_slots: vec![job_slot],
            trees_changed: 1,
            logs_lost: 2,
            gangs: GangCounters { packets: 3, dropped: [("forged-source", 2)].into(), ..Default::default() },
            control_silent_ms: 1_500,
            halts_standing: [("circle", 2)].into(),
            models: vec![("00ff".into(), 1, 4096)],
            gateway: Some(GatewayNumbers { routes_version: 5, restarts: 0, workers: 2 }),
            ..Numbers::default()
        };
        let text = render(&numbers);
        for line in text.lines() {
            let sample = line.rsplit_once(' ').is_some_and(|(_, value)| value.parse::<u64>().is_ok());
            assert!(
                line.starts_with("# HELP quorate_") || line.starts_with("# TYPE quorate_") || sample,
                "{line}"
            );
        }
        for expected in [
            "quorate_agent_slot_state{service=\"chat\",slot=\"3\",fence=\"1.7\",state=\"ready\"} 1",
            "quorate_agent_worker_requests_total{service=\"chat\",slot=\"3\"} 9",
            "quorate_agent_model_bytes{root=\"00ff\"} 4096",
            "quorate_agent_gateway_routes_version 5",
            "quorate_agent_control_silent_milliseconds 1500",
            "quorate_agent_halts_standing{scope=\"circle\"} 2",
            "quorate_agent_job_slot{job=\"train\",slot=\"1\",attempt=\"2\",state=\"running\"} 1",
            "quorate_agent_job_slot_cpu_microseconds{job=\"train\",slot=\"1\",attempt=\"2\"} 7",
            "quorate_agent_artifact_trees_changed_total 1",
            "quorate_agent_job_logs_lost_total 2",
            "quorate_agent_gang_packets_total 3",
            "quorate_agent_gang_packets_dropped_total{reason=\"forged-source\"} 2",
        ] {
            assert!(text.contains(expected), "{expected}");
        }
    }
}
