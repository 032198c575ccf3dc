//! Strategies for manifests and for what is signed about slots: orders and tickets.

use crate::values::*;
use proptest::collection::{btree_map, btree_set, vec};
use proptest::option;
use proptest::prelude::*;
use protocol::gateway::{ApiKey, Route, RouteTable, RoutedService};
use protocol::job::{
    ArrayTask, JobOrder, JobSubmission, SignedJobOrder, SignedSubmission, SlotRanks, Submitter,
};
use protocol::keys::ByteString;
use protocol::manifest::{
    ArtifactChoice, EdgeManifest, Isolation, JobBudget, JobManifest, JobParameter, JobSubmitters, Manifest,
    ModelChoice, OnExpiry, OnFailure, ParameterRule, Placement, ReplicaRange, Resources, RollOutRules,
    Runtime, ServiceManifest, SubmitKey, Task, TextCharacters,
};
use protocol::order::{SignedOrder, SignedTicket, SlotOrder, Ticket};
use protocol::{ArtifactRoot, JobId, ParameterName};

pub(crate) const TASKS: [Task; 3] = [Task::Embed, Task::Generate, Task::Rerank];
pub(crate) const RUNTIMES: [Runtime; 2] = [Runtime::Candle, Runtime::Process];
pub(crate) const ISOLATIONS: [Isolation; 3] = [Isolation::None, Isolation::SameUid, Isolation::Full];
pub(crate) const EXPIRIES: [OnExpiry; 2] = [OnExpiry::Hold, OnExpiry::Drain];
pub(crate) const FAILURES: [OnFailure; 2] = [OnFailure::Hold, OnFailure::Return];

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

fn rollout() -> BoxedStrategy<RollOutRules> {
    let of = |(ready_seconds, max_unavailable, failure_limit, on_failure)| RollOutRules {
        ready_seconds,
        max_unavailable,
        failure_limit,
        on_failure,
    };
    (number32(), number32(), number32(), one_of(&FAILURES)).prop_map(of).boxed()
}

fn service() -> BoxedStrategy<ServiceManifest> {
    let workload = (name(), model(), one_of(&TASKS), one_of(&RUNTIMES), replicas());
    let bounds = (resources(), placement(), texts(), option::of(number()), option::of(millis()));
    let engine = (one_of(&EXPIRIES), option::of(number32()), number32(), number(), any::<bool>());
    (workload, bounds, engine, number32(), rollout())
        .prop_map(|(workload, bounds, engine, priority, rollout)| {
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
                priority,
                rollout,
                context_tokens_max,
                batch_sequences_max,
            }
        })
        .boxed()
}

fn parameter() -> BoxedStrategy<(ParameterName, JobParameter)> {
    let rule = prop_oneof![
        (any::<i64>(), any::<i64>()).prop_map(|(least, most)| ParameterRule::Integer { least, most }),
        Just(ParameterRule::Decimal { least: "-0.5".parse().unwrap(), most: "12.25".parse().unwrap() }),
        texts().prop_map(ParameterRule::Choice),
        number32().prop_map(|length| ParameterRule::Text { length, characters: TextCharacters::Path }),
    ];
    (name(), rule, option::of(text()))
        .prop_map(|(name, rule, default)| (name, JobParameter { rule, default }))
        .boxed()
}

fn submitters() -> BoxedStrategy<JobSubmitters> {
    let submit_key = (name(), key()).prop_map(|(name, ed25519)| {
        let ml_dsa = ByteString(vec![7; 1952]);
        (name, SubmitKey { ed25519, ml_dsa })
    });
    (any::<bool>(), btree_set(name(), 0..3), any::<bool>(), vec(submit_key, 0..2))
        .prop_map(|(any_token, tokens, members, signers)| JobSubmitters {
            any_token,
            tokens,
            members,
            signers: signers.into_iter().collect(),
        })
        .boxed()
}

fn job() -> BoxedStrategy<JobManifest> {
    let artifact =
        (name(), digest()).prop_map(|(name, root)| ArtifactChoice { name, root: ArtifactRoot(root) });
    let program = (name(), option::of(artifact), option::of(texts()), labels(), vec(parameter(), 0..3));
    let inputs = (vec(model(), 0..3), vec(model(), 0..3), texts(), texts());
    let gang = (number32(), number32(), number32(), number32(), number32(), number32());
    let times = (number(), number(), number(), option::of(millis()));
    let budget = (number(), option::of(number()), option::of(number())).prop_map(
        |(period_seconds, gpu_seconds, spend_micro_units)| JobBudget {
            period_seconds,
            gpu_seconds,
            spend_micro_units,
        },
    );
    let envelope = (resources(), placement(), option::of(budget), submitters(), option::of(name()));
    (program, inputs, gang, times, envelope)
        .prop_map(|(program, inputs, gang, times, envelope)| {
            let (name, artifact, command, environment, parameters) = program;
            let (models, datasets, gpu_models, egress) = inputs;
            let (ranks, ranks_per_slot, slots, priority, retries, checkpoints) = gang;
            let (run_seconds_max, grace_seconds, autonomy_seconds, valid_until) = times;
            let (resources, placement, budget, submit, project) = envelope;
            let parameters = parameters.into_iter().collect();
            JobManifest {
                name,
                project,
                artifact,
                command,
                environment,
                parameters,
                models,
                datasets,
                ranks,
                ranks_per_slot,
                slots,
                resources,
                gpu_models,
                placement,
                egress,
                priority,
                run_seconds_max,
                grace_seconds,
                autonomy_seconds,
                retries,
                checkpoints,
                budget,
                submit,
                valid_until,
            }
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

fn submission() -> BoxedStrategy<JobSubmission> {
    let submitter = prop_oneof![
        name().prop_map(Submitter::Token),
        name().prop_map(Submitter::Member),
        name().prop_map(Submitter::Signer),
    ];
    let artifact =
        (name(), digest()).prop_map(|(name, root)| ArtifactChoice { name, root: ArtifactRoot(root) });
    let subject = (circle(), name(), digest(), digest());
    let choice = (btree_map(name(), text(), 0..3), option::of(artifact), option::of(texts()), number32());
    let task = (digest(), number32(), number32());
    let task = task.prop_map(|(array, index, count)| ArrayTask { array: JobId(array), index, count });
    let place = (vec(digest().prop_map(JobId), 0..3), option::of(task));
    (subject, choice, submitter, place, millis(), millis())
        .prop_map(|(subject, choice, submitter, (after, array), issued_at, deadline)| {
            let (circle, job, certificate, idempotency) = subject;
            let (parameters, artifact, command, priority) = choice;
            JobSubmission {
                circle,
                job,
                certificate,
                idempotency,
                parameters,
                artifact,
                command,
                priority,
                submitter,
                issued_at,
                deadline,
                after,
                array,
            }
        })
        .boxed()
}

pub(crate) fn job_order() -> BoxedStrategy<JobOrder> {
    let signed = (submission(), option::of(hybrid_signature()))
        .prop_map(|(submission, signature)| SignedSubmission { submission, signature });
    let place = (number32(), slot(), fence(), node_id());
    let ranks = (number32(), number32()).prop_map(|(first, count)| SlotRanks { first, count });
    (circle(), digest(), signed, place, ranks, texts(), millis())
        .prop_map(|(circle, certificate, submission, place, ranks, gpus, issued_at)| {
            let (attempt, slot, fence, node) = place;
            JobOrder { circle, certificate, submission, attempt, slot, fence, node, ranks, gpus, issued_at }
        })
        .boxed()
}

pub(crate) fn signed_job_order() -> BoxedStrategy<SignedJobOrder> {
    let of = |(order, signer, signature)| SignedJobOrder { order, signer, signature };
    (job_order(), key(), signature()).prop_map(of).boxed()
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
