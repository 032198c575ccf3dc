//! Strategies for manifests and for what is signed about slots: orders and tickets.

use crate::values::*;
use proptest::collection::{btree_set, vec};
use proptest::option;
use proptest::prelude::*;
use protocol::gateway::{ApiKey, Route, RouteTable, RoutedService};
use protocol::manifest::{
    EdgeManifest, Isolation, JobManifest, Manifest, ModelChoice, OnExpiry, Placement, ReplicaRange,
    Resources, Runtime, ServiceManifest, Task,
};
use protocol::order::{SignedOrder, SignedTicket, SlotOrder, Ticket};

pub(crate) const TASKS: [Task; 3] = [Task::Embed, Task::Generate, Task::Rerank];
pub(crate) const RUNTIMES: [Runtime; 2] = [Runtime::Candle, Runtime::Process];
pub(crate) const ISOLATIONS: [Isolation; 3] = [Isolation::None, Isolation::SameUid, Isolation::Full];
pub(crate) const EXPIRIES: [OnExpiry; 2] = [OnExpiry::Hold, OnExpiry::Drain];

pub(crate) fn model() -> BoxedStrategy<ModelChoice> {
    (name(), root()).prop_map(|(name, root)| ModelChoice { name, root }).boxed()
}

fn resources() -> BoxedStrategy<Resources> {
    (number(), number(), number32(), number32(), number())
        .prop_map(|(cpu_millicores, memory_bytes, gpu_count, gpu_share_percent, gpu_memory_bytes)| {
            Resources { cpu_millicores, memory_bytes, gpu_count, gpu_share_percent, gpu_memory_bytes }
        })
        .boxed()
}

fn placement() -> BoxedStrategy<Placement> {
    let of = |(regions, node_selector, isolation)| Placement { regions, node_selector, isolation };
    (texts(), labels(), one_of(&ISOLATIONS)).prop_map(of).boxed()
}

fn replicas() -> BoxedStrategy<ReplicaRange> {
    (number32(), number32()).prop_map(|(min, max)| ReplicaRange { min, max }).boxed()
}

fn service() -> BoxedStrategy<ServiceManifest> {
    let workload = (name(), model(), one_of(&TASKS), one_of(&RUNTIMES), replicas());
    let bounds = (resources(), placement(), texts(), option::of(number()), option::of(millis()));
    let engine = (one_of(&EXPIRIES), option::of(number32()), number32(), number(), any::<bool>());
    (workload, bounds, engine)
        .prop_map(|(workload, bounds, engine)| {
            let (name, model, task, runtime, replicas) = workload;
            let (resources, placement, egress, spend_micro_units_per_hour, valid_until) = bounds;
            let (on_expiry, context_tokens_max, batch_sequences_max, autonomy_seconds, exclusive) = engine;
            ServiceManifest {
                name,
                model,
                task,
                runtime,
                replicas,
                resources,
                placement,
                egress,
                spend_micro_units_per_hour,
                valid_until,
                on_expiry,
                autonomy_seconds,
                exclusive,
                context_tokens_max,
                batch_sequences_max,
            }
        })
        .boxed()
}

fn job() -> BoxedStrategy<JobManifest> {
    let program = (name(), digest(), texts(), number32());
    (program, resources(), placement(), texts(), number())
        .prop_map(|((name, artefact, command, ranks), resources, placement, egress, run_seconds_max)| {
            JobManifest { name, artefact, command, ranks, resources, placement, egress, run_seconds_max }
        })
        .boxed()
}

fn edge() -> BoxedStrategy<EdgeManifest> {
    (name(), model(), text(), vec(number32(), 0..4), option::of(root()))
        .prop_map(|(name, model, sites, waves_percent, rollback)| EdgeManifest {
            name,
            model,
            sites,
            waves_percent,
            rollback,
        })
        .boxed()
}

/// Returns a manifest of any kind with any values, in bounds or not.
pub(crate) fn manifest() -> BoxedStrategy<Manifest> {
    prop_oneof![
        service().prop_map(Manifest::Service),
        job().prop_map(Manifest::Job),
        edge().prop_map(Manifest::Edge),
    ]
    .boxed()
}

pub(crate) fn order() -> BoxedStrategy<SlotOrder> {
    let subject = (circle(), name(), digest(), slot());
    (subject, fence(), node_id(), vec(number32(), 0..4), millis())
        .prop_map(|((circle, service, certificate, slot), fence, node, gpus, issued_at)| SlotOrder {
            circle,
            service,
            certificate,
            slot,
            fence,
            node,
            gpus,
            issued_at,
        })
        .boxed()
}

pub(crate) fn signed_order() -> BoxedStrategy<SignedOrder> {
    let of = |(order, signer, signature)| SignedOrder { order, signer, signature };
    (order(), key(), signature()).prop_map(of).boxed()
}

pub(crate) fn ticket() -> BoxedStrategy<Ticket> {
    (name(), slot(), fence(), node_id(), key(), key(), millis(), boot_time())
        .prop_map(|(service, slot, fence, node, worker, gateway, expires_at, lease_until_boottime_ms)| {
            Ticket { service, slot, fence, node, worker, gateway, expires_at, lease_until_boottime_ms }
        })
        .boxed()
}

pub(crate) fn signed_ticket() -> BoxedStrategy<SignedTicket> {
    (ticket(), signature()).prop_map(|(ticket, signature)| SignedTicket { ticket, signature }).boxed()
}

fn route() -> BoxedStrategy<Route> {
    let of = |(slot, fence, node, draining)| Route { slot, fence, node, draining };
    (slot(), fence(), node_id(), any::<bool>()).prop_map(of).boxed()
}

pub(crate) fn route_table() -> BoxedStrategy<RouteTable> {
    let routed = (name(), name(), one_of(&TASKS), vec(route(), 0..3))
        .prop_map(|(service, model, task, routes)| RoutedService { service, model, task, routes });
    let api_key = (name(), digest(), option::of(btree_set(name(), 0..3)), option::of(number32()));
    let api_key = api_key.prop_map(|(name, hash, services, requests_per_minute)| ApiKey {
        name,
        hash,
        services,
        requests_per_minute,
    });
    (number(), vec(routed, 0..3), vec(api_key, 0..3))
        .prop_map(|(version, services, api_keys)| RouteTable { version, services, api_keys })
        .boxed()
}
