//! Strategies for what components exchange or keep on disk: syncs, worker and sandbox messages, models.

use crate::governed::{admission, bundle, head, signed_genesis, signed_halt};
use crate::usage::slot_usage;
use crate::values::*;
use crate::workloads::{ISOLATIONS, TASKS, route_table, signed_job_order, signed_order, signed_ticket};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use protocol::agent::{
    Assignment, Desired, EnrolResponse, Gpu, NodeResources, PendingNode, SlotReport, SlotState, SyncRequest,
    SyncResponse, WorkerLine,
};
use protocol::agent_state::{HeldOrder, JobBookRecord, OrderBookRecord, SlotFence, Verdict};
use protocol::artifact::{ArtifactEntry, ArtifactIndex, ArtifactStart, EntryKind};
use protocol::error_code;
use protocol::halt::{HaltBookRecord, HaltCursor, HaltsAnswer, HaltsRequest};
use protocol::job::SlotRanks;
use protocol::job_data::{JobData, JobDataKind, JobDataSource, RegisterJobData, SignedJobData};
use protocol::job_report::{
    ArtifactSource, JobAssignment, JobSlotReport, JobSlotState, RankEnd, RankLine, RankOutcome,
};
use protocol::keys::ByteString;
use protocol::model::{
    ErasureCode, KeyWrap, ModelFile, ModelManifest, ModelNonce, ModelRecord, Recipient, RecipientSignature,
    Segment, SignedComplaint, SignedWrap, StoreReference, StoredKind, WrapComplaint,
};
use protocol::sandbox::{
    DiskArea, EngineProfile, EtcFiles, GangDevice, GroupWrite, InputMount, ProcessProfile, RankProgram,
    SandboxExit, SandboxGroups, SandboxIdentity, SandboxLimits, SandboxProfile, SandboxRecord, SandboxReport,
    SandboxSpec, WritableAreas,
};
use protocol::worker::{
    FromWorker, InitReply, InitRequest, SegmentRange, ToWorker, WorkerLoad, WorkerManifest, WorkerMetrics,
    WorkerState,
};
use protocol::{ArtifactRoot, CircleId, ErrorCode, JobId, Refusal};

pub(crate) const SLOT_STATES: [SlotState; 7] = [
    SlotState::Loading,
    SlotState::Starting,
    SlotState::Ready,
    SlotState::Draining,
    SlotState::Released,
    SlotState::Failed,
    SlotState::Refused,
];
pub(crate) const JOB_SLOT_STATES: [JobSlotState; 4] =
    [JobSlotState::Preparing, JobSlotState::Ready, JobSlotState::Running, JobSlotState::Ended];
pub(crate) const WORKER_STATES: [WorkerState; 4] =
    [WorkerState::Loading, WorkerState::Ready, WorkerState::Draining, WorkerState::Failed];

pub(crate) fn metrics() -> BoxedStrategy<WorkerMetrics> {
    let requests = (millis(), number32(), number32(), number());
    let engine = (number(), number(), number32(), number());
    (requests, engine)
        .prop_map(|((at, running, waiting, total), (prompt, generation, cache, first))| WorkerMetrics {
            at,
            requests_running: running,
            requests_waiting: waiting,
            requests_total: total,
            prompt_tokens_total: prompt,
            generation_tokens_total: generation,
            kv_cache_usage_permille: cache,
            time_to_first_token_p50_us: first,
        })
        .boxed()
}

pub(crate) fn worker_load() -> BoxedStrategy<WorkerLoad> {
    (one_of(&WORKER_STATES), metrics(), any::<Option<u32>>(), option::of(digest()))
        .prop_map(|(state, metrics, context_tokens_max, numeric_class)| WorkerLoad {
            state,
            metrics,
            context_tokens_max,
            numeric_class,
        })
        .boxed()
}

fn report() -> BoxedStrategy<SlotReport> {
    let slot = (name(), slot(), fence(), one_of(&SLOT_STATES), text());
    (slot, number(), number(), number32(), option::of(metrics()))
        .prop_map(
            |(
                (service, slot, fence, state, detail),
                segments_verified,
                segments_total,
                restarts,
                metrics,
            )| {
                SlotReport {
                    service,
                    slot,
                    fence,
                    state,
                    detail,
                    segments_verified,
                    segments_total,
                    restarts,
                    metrics,
                }
            },
        )
        .boxed()
}

fn gpu() -> BoxedStrategy<Gpu> {
    (number32(), text(), text(), number(), any::<bool>(), any::<bool>())
        .prop_map(|(index, uuid, name, memory_bytes, simulated, healthy)| Gpu {
            index,
            uuid,
            name,
            memory_bytes,
            simulated,
            healthy,
        })
        .boxed()
}

fn line() -> BoxedStrategy<WorkerLine> {
    let of = |(service, slot, sequence, at, text)| WorkerLine { service, slot, sequence, at, text };
    (name(), slot(), number(), millis(), text()).prop_map(of).boxed()
}

fn rank_line() -> BoxedStrategy<RankLine> {
    let of = |(id, attempt, rank, sequence, text, dropped)| RankLine {
        id: JobId(id),
        attempt,
        rank,
        sequence,
        text,
        dropped,
    };
    (digest(), number32(), number32(), number(), text(), number()).prop_map(of).boxed()
}

fn rank_end() -> BoxedStrategy<RankEnd> {
    let outcome = prop_oneof![
        any::<i32>().prop_map(|code| RankOutcome::Exited { code }),
        any::<i32>().prop_map(|signal| RankOutcome::Signalled { signal }),
        Just(RankOutcome::OutOfMemory),
        Just(RankOutcome::TimeLimit),
        Just(RankOutcome::Stopped),
        Just(RankOutcome::Lost),
    ];
    (number32(), outcome).prop_map(|(rank, outcome)| RankEnd { rank, outcome }).boxed()
}

/// Returns a report with a refusal or without; a refusal has a text.
fn job_report() -> BoxedStrategy<JobSlotReport> {
    let code = prop::sample::select(error_code::ALL.to_vec());
    let refusal = (code, text()).prop_map(|(code, text)| Refusal::new(code, format!("because {text}")));
    let ranks = (number32(), number32()).prop_map(|(first, count)| SlotRanks { first, count });
    let place = (name(), digest(), number32(), slot(), fence(), ranks);
    (place, one_of(&JOB_SLOT_STATES), vec(rank_end(), 0..3), option::of(refusal), number())
        .prop_map(|((job, id, attempt, slot, fence, ranks), state, ends, refusal, cpu_micros)| {
            let id = JobId(id);
            JobSlotReport { job, id, attempt, slot, fence, ranks, state, ends, refusal, cpu_micros }
        })
        .boxed()
}

fn job_assignment() -> BoxedStrategy<JobAssignment> {
    let source =
        (record(), option::of(signed_wrap())).prop_map(|(record, wrap)| ArtifactSource { record, wrap });
    let of = |(order, start, peers, artifact, (inputs, checkpoint))| JobAssignment {
        order,
        start,
        peers,
        artifact,
        inputs,
        checkpoint,
    };
    let peers = vec(signed_job_order(), 0..2);
    let data = (vec(source.clone(), 0..2), option::of(job_data_source()));
    (signed_job_order(), any::<bool>(), peers, option::of(source), data).prop_map(of).boxed()
}

/// Returns a statement about data of a job with any values, sound or not.
pub(crate) fn job_data() -> BoxedStrategy<JobData> {
    let kind = prop_oneof![name().prop_map(JobDataKind::Checkpoint), Just(JobDataKind::Outputs)];
    let ranks = (number32(), number32()).prop_map(|(first, count)| SlotRanks { first, count });
    let place = (name(), digest(), number32(), slot(), fence(), ranks);
    let item = (kind, record(), digest(), digest());
    (number32(), digest(), node_id(), place, item)
        .prop_map(|(version, circle, node, (job, id, attempt, slot, fence, ranks), item)| {
            let (kind, stored, key_commitment, wraps) = item;
            let (circle, id) = (CircleId(circle), JobId(id));
            JobData {
                version,
                circle,
                node,
                job,
                id,
                attempt,
                slot,
                fence,
                ranks,
                kind,
                stored,
                key_commitment,
                wraps,
            }
        })
        .boxed()
}

fn signed_job_data() -> BoxedStrategy<SignedJobData> {
    (job_data(), signature()).prop_map(|(data, signature)| SignedJobData { data, signature }).boxed()
}

fn job_data_source() -> BoxedStrategy<JobDataSource> {
    let wrap = option::of(signed_wrap()).prop_map(|signed| signed.map(|signed| signed.wrap));
    (signed_job_data(), wrap).prop_map(|(signed, wrap)| JobDataSource { signed, wrap }).boxed()
}

pub(crate) fn register_job_data() -> BoxedStrategy<RegisterJobData> {
    let wraps = vec(signed_wrap().prop_map(|signed| signed.wrap), 0..3);
    (signed_job_data(), wraps).prop_map(|(signed, wraps)| RegisterJobData { signed, wraps }).boxed()
}

pub(crate) fn sync_request() -> BoxedStrategy<SyncRequest> {
    let capacity = (number(), number(), vec(gpu(), 0..2)).prop_map(|(cpu_millicores, memory_bytes, gpus)| {
        NodeResources { cpu_millicores, memory_bytes, gpus }
    });
    let node = (number(), text(), capacity, one_of(&ISOLATIONS), texts());
    let known = (vec(report(), 0..3), number(), option::of(number()));
    let wish = (number32(), digest(), vec(line(), 0..3), vec(complaint(), 0..2));
    let ranks = (vec(job_report(), 0..3), number(), vec(rank_line(), 0..3), vec(slot_usage(), 0..3));
    (node, known, wish, ranks)
        .prop_map(|(node, known, (wait_ms, desired, logs, complaints), ranks)| {
            let (boot, version, resources, isolation, not_enforced) = node;
            let (slots, governance_length, routes_version) = known;
            let (jobs, rank_lines_term, rank_lines, usage) = ranks;
            SyncRequest {
                boot,
                version,
                resources,
                isolation,
                not_enforced,
                slots,
                governance_length,
                routes_version,
                wait_ms,
                desired,
                logs,
                complaints,
                jobs,
                rank_lines_term,
                rank_lines,
                usage,
            }
        })
        .boxed()
}

fn assignment() -> BoxedStrategy<Assignment> {
    (digest(), vec(signed_order(), 0..2), vec(slot(), 0..3), record(), option::of(signed_wrap()))
        .prop_map(|(certificate, orders, draining, model, wrap)| Assignment {
            certificate,
            orders,
            draining,
            model,
            wrap,
        })
        .boxed()
}

pub(crate) fn desired() -> BoxedStrategy<Desired> {
    (vec(assignment(), 0..2), option::of(route_table()), vec(job_assignment(), 0..2))
        .prop_map(|(assignments, routes, jobs)| Desired { assignments, routes, jobs })
        .boxed()
}

pub(crate) fn sync_response() -> BoxedStrategy<SyncResponse> {
    let of = |(now, (term, lease_ms), history, governance, desired)| SyncResponse {
        now,
        term,
        lease_ms,
        history,
        governance,
        desired,
    };
    (millis(), (number(), number()), head(), vec(bundle(), 0..2), option::of(desired())).prop_map(of).boxed()
}

pub(crate) fn enrol_response() -> BoxedStrategy<EnrolResponse> {
    (any::<bool>(), signed_genesis())
        .prop_map(|(admitted, genesis)| EnrolResponse { admitted, genesis })
        .boxed()
}

pub(crate) fn pending_node() -> BoxedStrategy<PendingNode> {
    let of = |(admission, id, last_seen)| PendingNode { admission, id, last_seen };
    (admission(), node_id(), millis()).prop_map(of).boxed()
}

pub(crate) fn order_book() -> BoxedStrategy<OrderBookRecord> {
    let fence =
        (name(), slot(), fence()).prop_map(|(service, slot, fence)| SlotFence { service, slot, fence });
    let held = (signed_order(), number(), millis(), any::<bool>()).prop_map(
        |(signed, governance_length, accepted_at, released)| HeldOrder {
            signed,
            governance_length,
            accepted_at,
            released,
        },
    );
    let of = |(version, circle, node, fences, held)| OrderBookRecord { version, circle, node, fences, held };
    (number32(), circle(), node_id(), vec(fence, 0..3), vec(held, 0..3)).prop_map(of).boxed()
}

pub(crate) fn job_book() -> BoxedStrategy<JobBookRecord> {
    let fence =
        (name(), slot(), fence()).prop_map(|(service, slot, fence)| SlotFence { service, slot, fence });
    let of = |(version, circle, node, fences, held)| JobBookRecord { version, circle, node, fences, held };
    (number32(), circle(), node_id(), vec(fence, 0..3), vec(job_report(), 0..3)).prop_map(of).boxed()
}

pub(crate) fn halt_book() -> BoxedStrategy<HaltBookRecord> {
    let of = |(version, circle, halts)| HaltBookRecord { version, circle, halts };
    (number32(), circle(), vec(signed_halt(), 0..3)).prop_map(of).boxed()
}

fn halt_cursor() -> BoxedStrategy<HaltCursor> {
    (number(), number()).prop_map(|(boot, number)| HaltCursor { boot, number }).boxed()
}

pub(crate) fn halts_request() -> BoxedStrategy<HaltsRequest> {
    (halt_cursor(), number32()).prop_map(|(after, wait_ms)| HaltsRequest { after, wait_ms }).boxed()
}

pub(crate) fn halts_answer() -> BoxedStrategy<HaltsAnswer> {
    (halt_cursor(), vec(signed_halt(), 0..3)).prop_map(|(last, halts)| HaltsAnswer { last, halts }).boxed()
}

pub(crate) fn verdict() -> BoxedStrategy<Verdict> {
    let code = prop::sample::select(error_code::ALL.to_vec());
    let of =
        |(accepted, code, message): (bool, Option<ErrorCode>, String)| Verdict { accepted, code, message };
    (any::<bool>(), option::of(code), text()).prop_map(of).boxed()
}

pub(crate) fn model_file() -> BoxedStrategy<ModelFile> {
    (text(), number(), number()).prop_map(|(path, offset, length)| ModelFile { path, offset, length }).boxed()
}

fn segment() -> BoxedStrategy<Segment> {
    let of = |(offset, length, digest, shards)| Segment { offset, length, digest, shards };
    (number(), number32(), digest(), vec(digest(), 0..3)).prop_map(of).boxed()
}

fn erasure() -> BoxedStrategy<ErasureCode> {
    (any::<u8>(), any::<u8>()).prop_map(|(data, parity)| ErasureCode { data, parity }).boxed()
}

fn stored_kind() -> BoxedStrategy<StoredKind> {
    prop_oneof![
        Just(StoredKind::Model),
        digest().prop_map(|tree| StoredKind::Artifact { tree: ArtifactRoot(tree) }),
        digest().prop_map(|tree| StoredKind::Dataset { tree: ArtifactRoot(tree) }),
        digest().prop_map(|tree| StoredKind::JobData { tree: ArtifactRoot(tree) }),
    ]
    .boxed()
}

fn entry_kind() -> BoxedStrategy<EntryKind> {
    prop_oneof![
        Just(EntryKind::Directory),
        (any::<bool>(), number(), digest()).prop_map(|(executable, length, digest)| EntryKind::File {
            executable,
            length,
            digest
        }),
        text().prop_map(|target| EntryKind::Link { target }),
    ]
    .boxed()
}

/// Returns an artifact's index with any values, sound or not.
pub(crate) fn artifact_index() -> BoxedStrategy<ArtifactIndex> {
    let entry = (text(), entry_kind()).prop_map(|(path, kind)| ArtifactEntry { path, kind });
    let environment = proptest::collection::btree_map(text(), text(), 0..3);
    let start = (texts(), environment, text(), text()).prop_map(
        |(command, environment, working_directory, architecture)| ArtifactStart {
            command,
            environment,
            working_directory,
            architecture,
        },
    );
    (number32(), option::of(start), vec(entry, 0..4))
        .prop_map(|(version, start, entries)| ArtifactIndex { version, start, entries })
        .boxed()
}

/// Returns a model manifest with any values, sound or not.
pub(crate) fn model_manifest() -> BoxedStrategy<ModelManifest> {
    let identity = (number32(), name(), stored_kind(), erasure(), number32());
    let secrets = (any::<[u8; 16]>().prop_map(ModelNonce), digest());
    let content = (vec(model_file(), 0..3), vec(segment(), 0..3), vec(number32(), 0..3));
    (identity, secrets, content)
        .prop_map(|(identity, (nonce, key_commitment), (files, segments, order))| {
            let (version, name, kind, erasure, segments_per_object) = identity;
            ModelManifest {
                version,
                name,
                kind,
                erasure,
                segments_per_object,
                nonce,
                key_commitment,
                files,
                segments,
                order,
            }
        })
        .boxed()
}

pub(crate) fn record() -> BoxedStrategy<ModelRecord> {
    let store = (text(), text()).prop_map(|(url, failure_domain)| StoreReference { url, failure_domain });
    (name(), stored_kind(), root(), number(), number(), erasure(), vec(store, 0..3), text())
        .prop_map(|(name, kind, root, bytes, segments, erasure, stores, architecture)| ModelRecord {
            name,
            kind,
            root,
            bytes,
            segments,
            erasure,
            stores,
            architecture,
        })
        .boxed()
}

fn recipient() -> BoxedStrategy<Recipient> {
    prop_oneof![node_id().prop_map(Recipient::Node), name().prop_map(Recipient::Member)].boxed()
}

pub(crate) fn complaint() -> BoxedStrategy<SignedComplaint> {
    let statement = (circle(), root(), recipient(), digest())
        .prop_map(|(circle, root, recipient, wrap)| WrapComplaint { circle, root, recipient, wrap });
    let signature = prop_oneof![
        signature().prop_map(RecipientSignature::Node),
        hybrid_signature().prop_map(RecipientSignature::Member)
    ];
    (statement, signature).prop_map(|(complaint, signature)| SignedComplaint { complaint, signature }).boxed()
}

pub(crate) fn signed_wrap() -> BoxedStrategy<SignedWrap> {
    (wrap(), name(), hybrid_signature())
        .prop_map(|(wrap, maker, signature)| SignedWrap { wrap, maker, signature })
        .boxed()
}

fn wrap() -> BoxedStrategy<KeyWrap> {
    (root(), recipient(), key(), bytes(), bytes())
        .prop_map(|(root, recipient, ephemeral, encapsulated, sealed)| KeyWrap {
            root,
            recipient,
            ephemeral,
            encapsulated,
            sealed,
        })
        .boxed()
}

pub(crate) fn worker_manifest() -> BoxedStrategy<WorkerManifest> {
    let range = (number(), number32()).prop_map(|(offset, length)| SegmentRange { offset, length });
    let slot = (name(), slot(), fence(), one_of(&TASKS));
    let model = (root(), vec(model_file(), 0..3), vec(range, 0..3), number());
    let limits = (option::of(number32()), number32(), number32(), number());
    let devices = (vec(number32(), 0..3), option::of(number()));
    (slot, model, limits, devices)
        .prop_map(|(slot, (root, files, segments, map_bytes), limits, devices)| {
            let (service, slot, fence, task) = slot;
            let (context_tokens_max, batch_sequences_max, threads, memory_bytes) = limits;
            let (gpus, gpu_memory_bytes) = devices;
            WorkerManifest {
                service,
                slot,
                fence,
                task,
                root,
                files,
                segments,
                map_bytes,
                context_tokens_max,
                batch_sequences_max,
                threads,
                memory_bytes,
                gpus,
                gpu_memory_bytes,
            }
        })
        .boxed()
}

pub(crate) fn to_worker() -> BoxedStrategy<ToWorker> {
    prop_oneof![
        Just(ToWorker::Hello),
        (key(), signed_ticket()).prop_map(|(gateway, ticket)| ToWorker::Connection { gateway, ticket }),
        signed_ticket().prop_map(ToWorker::Ticket),
        Just(ToWorker::Drain),
    ]
    .boxed()
}

pub(crate) fn from_worker() -> BoxedStrategy<FromWorker> {
    let state = || one_of(&WORKER_STATES);
    prop_oneof![
        (key(), state()).prop_map(|(worker, state)| FromWorker::Hello { worker, state }),
        (state(), text()).prop_map(|(state, detail)| FromWorker::State { state, detail }),
        key().prop_map(|gateway| FromWorker::Disconnected { gateway }),
    ]
    .boxed()
}

pub(crate) fn init_request() -> BoxedStrategy<InitRequest> {
    prop_oneof![
        boot_time().prop_map(|until_boottime_ms| InitRequest::Renew { until_boottime_ms }),
        Just(InitRequest::Status),
        number().prop_map(|grace_ms| InitRequest::Stop { grace_ms }),
        Just(InitRequest::Descriptors),
    ]
    .boxed()
}

pub(crate) fn init_reply() -> BoxedStrategy<InitReply> {
    (any::<bool>(), option::of(any::<i32>()), boot_time())
        .prop_map(|(running, exit, lease_until_boottime_ms)| InitReply {
            running,
            exit,
            lease_until_boottime_ms,
        })
        .boxed()
}

fn identity() -> BoxedStrategy<SandboxIdentity> {
    prop_oneof![
        number32().prop_map(|first| SandboxIdentity::OwnIds { first }),
        Just(SandboxIdentity::SameUid),
    ]
    .boxed()
}

fn engine_profile() -> BoxedStrategy<SandboxProfile> {
    (text(), texts(), labels(), texts())
        .prop_map(|(binary, arguments, environment, read_only)| {
            SandboxProfile::Engine(EngineProfile { binary, arguments, environment, read_only })
        })
        .boxed()
}

fn writable_areas() -> BoxedStrategy<WritableAreas> {
    let area = || {
        (number(), option::of(text())).prop_map(|(bytes_max, directory)| DiskArea { bytes_max, directory })
    };
    (number(), number(), area(), area(), area())
        .prop_map(|(tmp_bytes, shared_memory_bytes, scratch, checkpoint, outputs)| WritableAreas {
            tmp_bytes,
            shared_memory_bytes,
            scratch,
            checkpoint,
            outputs,
        })
        .boxed()
}

fn process_profile() -> BoxedStrategy<SandboxProfile> {
    let rank =
        (texts(), labels()).prop_map(|(arguments, environment)| RankProgram { arguments, environment });
    let input = (text(), text()).prop_map(|(source, path)| InputMount { source, path });
    let etc = (text(), text(), text(), text(), vec(any::<u8>(), 0..5)).prop_map(
        |(passwd, group, hosts, resolv_conf, localtime)| EtcFiles {
            passwd,
            group,
            hosts,
            resolv_conf,
            localtime: ByteString(localtime),
        },
    );
    let network = (texts(), number32()).prop_map(|(addresses, mtu)| GangDevice { addresses, mtu });
    let places = (text(), text(), text());
    (places, vec(rank, 0..3), vec(input, 0..3), writable_areas(), etc, option::of(network))
        .prop_map(|((root, host_name, working_directory), ranks, inputs, areas, etc, network)| {
            SandboxProfile::Process(Box::new(ProcessProfile {
                root,
                host_name,
                working_directory,
                ranks,
                inputs,
                areas,
                etc,
                network,
            }))
        })
        .boxed()
}

pub(crate) fn sandbox_spec() -> BoxedStrategy<SandboxSpec> {
    let write = (text(), text()).prop_map(|(path, value)| GroupWrite { path, value });
    let groups = (texts(), texts(), vec(write, 0..2)).prop_map(|(init, worker, release)| SandboxGroups {
        init,
        worker,
        release,
    });
    let limits = (number(), number(), number32(), number32()).prop_map(
        |(cpu_millicores, memory_bytes, processes_max, open_files_max)| SandboxLimits {
            cpu_millicores,
            memory_bytes,
            processes_max,
            open_files_max,
        },
    );
    let profile = prop_oneof![engine_profile(), process_profile()];
    let confinement = (identity(), groups, texts(), limits);
    let lease = (any::<bool>(), any::<bool>(), boot_time(), number());
    (text(), profile, confinement, lease)
        .prop_map(|(name, profile, confinement, lease)| {
            let (identity, groups, devices, limits) = confinement;
            let (memory_by_rlimit, cpu_by_nice, lease_until_boottime_ms, lease_ms_max) = lease;
            SandboxSpec {
                name,
                profile,
                identity,
                groups,
                devices,
                limits,
                memory_by_rlimit,
                cpu_by_nice,
                lease_until_boottime_ms,
                lease_ms_max,
            }
        })
        .boxed()
}

pub(crate) fn sandbox_record() -> BoxedStrategy<SandboxRecord> {
    let process = (text(), text(), number32(), number());
    (process, texts(), identity(), texts())
        .prop_map(|((name, boot_id, pid, start_ticks), cgroups, identity, not_enforced)| SandboxRecord {
            name,
            boot_id,
            pid,
            start_ticks,
            cgroups,
            identity,
            not_enforced,
        })
        .boxed()
}

pub(crate) fn sandbox_report() -> BoxedStrategy<SandboxReport> {
    prop_oneof![
        number32().prop_map(|pid| SandboxReport::Created { pid }),
        texts().prop_map(|not_enforced| SandboxReport::Started { not_enforced }),
        (text(), text()).prop_map(|(step, detail)| SandboxReport::Failed { step, detail }),
    ]
    .boxed()
}

pub(crate) fn sandbox_exit() -> BoxedStrategy<SandboxExit> {
    prop_oneof![
        any::<i32>().prop_map(|status| SandboxExit::Exited { status }),
        any::<i32>().prop_map(|signal| SandboxExit::Signaled { signal }),
        (number32(), any::<i32>()).prop_map(|(rank, status)| SandboxExit::RankExited { rank, status }),
        (number32(), any::<i32>()).prop_map(|(rank, signal)| SandboxExit::RankSignaled { rank, signal }),
        Just(SandboxExit::LeaseLapsed),
        Just(SandboxExit::Stopped),
    ]
    .boxed()
}
