//! From TOML to a checked [`Manifest`], with errors that name the line and the field.
//!
//! Two passes: the text becomes a raw form whose every value remembers where it stood; the raw form is
//! checked and becomes the manifest. An error of either pass points at the line to mend.

use super::*;
use crate::agent::Isolation;
use crate::error_code::{self, ErrorCode};
use crate::limits;
use std::ops::Range;
use toml::Spanned;

/// What is wrong with a manifest, where, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code}: line {line}, {field}: {message}")]
pub struct ManifestError {
    /// Stable code.
    pub code: ErrorCode,
    /// Line, from 1.
    pub line: usize,
    /// Column, from 1.
    pub column: usize,
    /// Dotted path of the field, or `manifest`.
    pub field: String,
    /// What is wrong and what is accepted.
    pub message: String,
}

impl Manifest {
    /// Reads and checks a manifest.
    ///
    /// # Errors
    /// The first problem found, with its line and field.
    pub fn from_toml(text: &str) -> Result<Self, ManifestError> {
        let source = Source { text };
        if text.len() > limits::MANIFEST_BYTES_MAX {
            let message = format!("is {} bytes; at most {}", text.len(), limits::MANIFEST_BYTES_MAX);
            return Err(source.error(error_code::MANIFEST_INVALID, 0..0, "manifest", &message));
        }
        let kind: RawKind = toml::from_str(text).map_err(|error| source.toml_error(&error))?;
        match kind.kind.get_ref().as_str() {
            "service" => source.read(RawService::check).map(Manifest::Service),
            "job" => source.read(RawJob::check).map(Manifest::Job),
            "edge" => source.read(RawEdge::check).map(Manifest::Edge),
            other => {
                let message = format!("`{}` is not a kind; known: service, job, edge", other.escape_debug());
                Err(source.error(error_code::MANIFEST_INVALID, kind.kind.span(), "kind", &message))
            }
        }
    }
}

/// A check that failed, still as a byte range.
struct Fault {
    span: Range<usize>,
    field: &'static str,
    message: String,
    code: ErrorCode,
}

fn fault<T>(at: &Spanned<T>, field: &'static str, message: impl Into<String>) -> Fault {
    Fault { span: at.span(), field, message: message.into(), code: error_code::MANIFEST_INVALID }
}

/// The text, for turning byte ranges into lines.
struct Source<'a> {
    text: &'a str,
}

impl Source<'_> {
    fn read<R: serde::de::DeserializeOwned, T>(
        &self,
        check: impl FnOnce(R) -> Result<T, Fault>,
    ) -> Result<T, ManifestError> {
        let raw: R = toml::from_str(self.text).map_err(|error| self.toml_error(&error))?;
        check(raw).map_err(|f| self.error(f.code, f.span, f.field, &f.message))
    }

    fn toml_error(&self, error: &toml::de::Error) -> ManifestError {
        let message = error.message().to_string();
        let span = error.span().unwrap_or(0..0);
        // The parser names an unknown or missing field in backquotes; elsewhere the line's key is it.
        let named = message.split('`').nth(1).filter(|_| message.contains("field")).map(str::to_string);
        let field = named.unwrap_or_else(|| self.key_at(span.start));
        let code = if message.starts_with("unknown field") {
            error_code::MANIFEST_UNKNOWN_FIELD
        } else if message.starts_with("invalid type") {
            error_code::MANIFEST_WRONG_TYPE
        } else {
            error_code::MANIFEST_INVALID
        };
        self.error(code, span, &field, &message)
    }

    fn error(&self, code: ErrorCode, span: Range<usize>, field: &str, message: &str) -> ManifestError {
        let before = &self.text[..self.text.floor_char_boundary(span.start)];
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        ManifestError {
            code,
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
            field: field.to_string(),
            message: message.to_string(),
        }
    }

    fn key_at(&self, at: usize) -> String {
        let at = self.text.floor_char_boundary(at);
        let start = self.text[..at].rfind('\n').map_or(0, |newline| newline + 1);
        let line = self.text[start..].lines().next().unwrap_or_default();
        let key = line.split('=').next().unwrap_or_default().trim();
        if key.is_empty() { "manifest".into() } else { key.to_string() }
    }
}

#[derive(Deserialize)]
struct RawKind {
    kind: Spanned<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawModel {
    name: ModelName,
    root: Spanned<ModelRoot>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawReplicas {
    min: Spanned<u32>,
    max: Spanned<u32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawResources {
    cpu_millicores: Spanned<u64>,
    memory: Spanned<String>,
    gpu_count: Option<Spanned<u32>>,
    gpu_share_percent: Option<Spanned<u32>>,
    gpu_memory: Option<Spanned<String>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct RawPlacement {
    regions: Vec<String>,
    node_selector: BTreeMap<String, String>,
    isolation: Option<Isolation>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawService {
    #[serde(rename = "kind")]
    _kind: String,
    name: ServiceName,
    task: Task,
    #[serde(default = "candle")]
    runtime: Spanned<Runtime>,
    model: RawModel,
    replicas: RawReplicas,
    resources: RawResources,
    #[serde(default)]
    placement: RawPlacement,
    egress: Option<Spanned<Vec<String>>>,
    spend_micro_units_per_hour: Option<u64>,
    valid_until: Option<Spanned<toml::value::Datetime>>,
    on_expiry: Option<OnExpiry>,
    context_tokens_max: Option<Spanned<u32>>,
    batch_sequences_max: Option<Spanned<u32>>,
}

fn candle() -> Spanned<Runtime> {
    Spanned::new(0..0, Runtime::Candle)
}

impl RawService {
    fn check(self) -> Result<ServiceManifest, Fault> {
        if *self.runtime.get_ref() == Runtime::Process {
            return Err(Fault {
                code: error_code::KIND_NOT_BUILT,
                ..fault(&self.runtime, "runtime", "`process` is not built yet; use `candle`")
            });
        }
        let batch = self.batch_sequences_max;
        Ok(ServiceManifest {
            name: self.name,
            model: self.model.check()?,
            task: self.task,
            runtime: self.runtime.into_inner(),
            replicas: self.replicas.check()?,
            resources: self.resources.check()?,
            placement: self.placement.check(),
            egress: check_egress(self.egress)?,
            spend_micro_units_per_hour: self.spend_micro_units_per_hour,
            valid_until: self.valid_until.map(|at| check_time(&at, "valid_until")).transpose()?,
            on_expiry: self.on_expiry.unwrap_or(OnExpiry::Hold),
            context_tokens_max: in_range(self.context_tokens_max, "context_tokens_max", 1, 1 << 20)?,
            batch_sequences_max: in_range(batch, "batch_sequences_max", 1, 1024)?.unwrap_or(32),
        })
    }
}

impl RawModel {
    fn check(self) -> Result<ModelChoice, Fault> {
        if self.root.get_ref().0.0 == [0; 32] {
            return Err(fault(&self.root, "model.root", "is all zeros; `quorate model list` shows roots"));
        }
        Ok(ModelChoice { name: self.name, root: self.root.into_inner() })
    }
}

impl RawReplicas {
    fn check(self) -> Result<ReplicaRange, Fault> {
        let (min, max) = (*self.min.get_ref(), *self.max.get_ref());
        if max == 0 || max > limits::SLOTS_MAX {
            let message = format!("is {max}; accepted: 1 to {}", limits::SLOTS_MAX);
            return Err(fault(&self.max, "replicas.max", message));
        }
        if min > max {
            let message = format!("is {min}, more than replicas.max, which is {max}");
            return Err(fault(&self.min, "replicas.min", message));
        }
        Ok(ReplicaRange { min, max })
    }
}

/// Most cores of one replica: the largest machines sold have fewer.
const CPU_MILLICORES_MAX: u64 = 4_096_000;
/// Most memory of one replica.
const MEMORY_BYTES_MAX: u64 = 64 << 40;
/// Least memory of one replica: an engine and its runtime do not fit in less.
const MEMORY_BYTES_MIN: u64 = 32 << 20;
/// Most GPUs of one replica: one machine's.
const GPU_COUNT_MAX: u32 = 64;

impl RawResources {
    fn check(self) -> Result<Resources, Fault> {
        let cpu = *self.cpu_millicores.get_ref();
        if cpu == 0 || cpu > CPU_MILLICORES_MAX {
            let message = format!("is {cpu}; accepted: 1 to {CPU_MILLICORES_MAX}");
            return Err(fault(&self.cpu_millicores, "resources.cpu_millicores", message));
        }
        let memory = check_bytes(&self.memory, "resources.memory", MEMORY_BYTES_MIN, MEMORY_BYTES_MAX)?;
        let gpu_memory = match &self.gpu_memory {
            Some(text) => check_bytes(text, "resources.gpu_memory", 1, MEMORY_BYTES_MAX)?,
            None => 0,
        };
        let share_at = self.gpu_share_percent.as_ref().map(Spanned::span);
        let count = in_range(self.gpu_count, "resources.gpu_count", 0, GPU_COUNT_MAX)?.unwrap_or(0);
        let share = in_range(self.gpu_share_percent, "resources.gpu_share_percent", 1, 99)?.unwrap_or(0);
        if count > 0 && share > 0 {
            let at = Spanned::new(share_at.unwrap_or_default(), ());
            let message = "asks for a share of a GPU while resources.gpu_count asks for whole ones";
            return Err(fault(&at, "resources.gpu_share_percent", message));
        }
        if let Some(at) = self.gpu_memory.filter(|_| count == 0 && share == 0) {
            return Err(fault(&at, "resources.gpu_memory", "is given, but no GPU is asked for"));
        }
        Ok(Resources {
            cpu_millicores: cpu,
            memory_bytes: memory,
            gpu_count: count,
            gpu_share_percent: share,
            gpu_memory_bytes: gpu_memory,
        })
    }
}

impl RawPlacement {
    fn check(self) -> Placement {
        Placement {
            regions: self.regions,
            node_selector: self.node_selector,
            isolation: self.isolation.unwrap_or(Isolation::SameUid),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawJob {
    #[serde(rename = "kind")]
    _kind: String,
    name: ServiceName,
    artefact: Digest,
    command: Spanned<Vec<String>>,
    ranks: Spanned<u32>,
    resources: RawResources,
    #[serde(default)]
    placement: RawPlacement,
    egress: Option<Spanned<Vec<String>>>,
    run_seconds_max: Spanned<u64>,
}

/// Longest job: a month.
const RUN_SECONDS_MAX: u64 = 31 * 24 * 3600;

impl RawJob {
    fn check(self) -> Result<JobManifest, Fault> {
        if self.command.get_ref().is_empty() {
            return Err(fault(&self.command, "command", "is empty; name the entry point"));
        }
        let seconds = *self.run_seconds_max.get_ref();
        if seconds == 0 || seconds > RUN_SECONDS_MAX {
            let message = format!("is {seconds}; accepted: 1 to {RUN_SECONDS_MAX}");
            return Err(fault(&self.run_seconds_max, "run_seconds_max", message));
        }
        Ok(JobManifest {
            name: self.name,
            artefact: self.artefact,
            command: self.command.into_inner(),
            ranks: in_range(Some(self.ranks), "ranks", 1, 4096)?.unwrap_or(1),
            resources: self.resources.check()?,
            placement: self.placement.check(),
            egress: check_egress(self.egress)?,
            run_seconds_max: seconds,
        })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEdge {
    #[serde(rename = "kind")]
    _kind: String,
    name: ServiceName,
    model: RawModel,
    sites: Spanned<String>,
    waves_percent: Spanned<Vec<u32>>,
    rollback: Option<ModelRoot>,
}

impl RawEdge {
    fn check(self) -> Result<EdgeManifest, Fault> {
        let waves = self.waves_percent.get_ref();
        if waves.last() != Some(&100) || waves.windows(2).any(|pair| pair[0] >= pair[1]) || waves[0] == 0 {
            return Err(fault(&self.waves_percent, "waves_percent", "must rise and end at 100"));
        }
        if self.sites.get_ref().is_empty() {
            return Err(fault(&self.sites, "sites", "is empty; use a pattern like `ca-*`"));
        }
        Ok(EdgeManifest {
            name: self.name,
            model: self.model.check()?,
            sites: self.sites.into_inner(),
            waves_percent: self.waves_percent.into_inner(),
            rollback: self.rollback,
        })
    }
}

fn check_bytes(text: &Spanned<String>, field: &'static str, min: u64, max: u64) -> Result<u64, Fault> {
    let bytes = parse_bytes(text.get_ref()).map_err(|message| fault(text, field, message))?;
    if bytes < min || bytes > max {
        // Rounded, an amount just outside would look like the bound that it misses.
        let rounded = format_bytes(bytes);
        let given = if parse_bytes(&rounded) == Ok(bytes) { rounded } else { format!("{bytes} B") };
        let message = format!("is {given}; accepted: {} to {}", format_bytes(min), format_bytes(max));
        return Err(fault(text, field, message));
    }
    Ok(bytes)
}

fn in_range(
    value: Option<Spanned<u32>>,
    field: &'static str,
    min: u32,
    max: u32,
) -> Result<Option<u32>, Fault> {
    match value {
        Some(at) if !(min..=max).contains(at.get_ref()) => {
            Err(fault(&at, field, format!("is {}; accepted: {min} to {max}", at.get_ref())))
        }
        other => Ok(other.map(Spanned::into_inner)),
    }
}

fn check_egress(egress: Option<Spanned<Vec<String>>>) -> Result<Vec<String>, Fault> {
    match egress {
        Some(list) if !list.get_ref().is_empty() => Err(Fault {
            code: error_code::EGRESS_NOT_BUILT,
            ..fault(&list, "egress", "must be empty: workloads reach nothing outside in this release")
        }),
        _ => Ok(Vec::new()),
    }
}

/// Milliseconds since the epoch of a TOML date-time with offset.
fn check_time(at: &Spanned<toml::value::Datetime>, field: &'static str) -> Result<Millis, Fault> {
    let refuse = || fault(at, field, "must be a time with offset, like 2027-01-31T12:00:00Z");
    let value = at.get_ref();
    let (Some(date), Some(time), Some(offset)) = (value.date, value.time, value.offset) else {
        return Err(refuse());
    };
    let offset_minutes = match offset {
        toml::value::Offset::Z => 0,
        toml::value::Offset::Custom { minutes } => i64::from(minutes),
    };
    let days = days_since_epoch(i64::from(date.year), i64::from(date.month), i64::from(date.day));
    let seconds = days * 86_400
        + i64::from(time.hour) * 3600
        + i64::from(time.minute) * 60
        + i64::from(time.second.unwrap_or(0))
        - offset_minutes * 60;
    u64::try_from(seconds).map(|seconds| Millis(seconds * 1000)).map_err(|_| refuse())
}

/// Days from 1970-01-01 of a Gregorian date (Howard Hinnant, "chrono-Compatible Low-Level Date
/// Algorithms", `days_from_civil`).
fn days_since_epoch(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

#[cfg(test)]
mod tests;
