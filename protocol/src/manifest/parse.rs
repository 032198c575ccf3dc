//! Parser from TOML to a checked [`Manifest`]; its errors name the line and the field.
//!
//! Two passes: TOML to a raw form, and the raw form to a manifest within its bounds. An error of either pass
//! carries the dotted path of its field and that field's line.

mod job;

use self::job::RawJob;
use super::bounds::{GPU_SHARE_PERCENT_MAX, MEMORY_BYTES_MAX, bytes_in_range, in_range, join};
use super::fields::Fields;
use super::*;
use crate::canonical::to_bytes;
use crate::error_code::{self, ErrorCode};
use crate::manifest::Isolation;
use std::ops::Range;

/// Error in a manifest: location, problem and accepted values.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code}: line {line}, {field}: {message}")]
pub struct ManifestError {
    /// Stable error code.
    pub code: ErrorCode,
    /// Line, from 1.
    pub line: usize,
    /// Column, from 1.
    pub column: usize,
    /// Dotted path of the field, or `manifest`.
    pub field: String,
    /// Problem and accepted values.
    pub message: String,
}

impl Manifest {
    /// Reads and checks a manifest.
    ///
    /// # Errors
    /// Returns the first problem found, with its line and field.
    pub fn from_toml(text: &str) -> Result<Self, ManifestError> {
        let source = Source { text };
        if text.len() > limits::MANIFEST_BYTES_MAX {
            let message = format!("is {} bytes; at most {}", text.len(), limits::MANIFEST_BYTES_MAX);
            return Err(source.error(error_code::MANIFEST_INVALID, 0..0, "manifest".into(), message));
        }
        let kind: RawKind = toml::from_str(text).map_err(|error| source.toml_error(&error))?;
        match kind.kind.as_str() {
            "service" => source.read(RawService::check),
            "job" => source.read(RawJob::check),
            "edge" => source.read(RawEdge::check),
            other => {
                let message = format!("`{}` is not a kind; known: service, job, edge", other.escape_debug());
                Err(source.fault(fault("kind", message)))
            }
        }
    }
}

/// Failed check, with the field that it concerns.
struct Fault {
    field: String,
    message: String,
    code: ErrorCode,
}

fn fault(field: &str, message: impl Into<String>) -> Fault {
    Fault { field: field.into(), message: message.into(), code: error_code::MANIFEST_INVALID }
}

impl From<OutOfBounds> for Fault {
    fn from(OutOfBounds { field, message }: OutOfBounds) -> Self {
        Self { field, message, code: error_code::MANIFEST_INVALID }
    }
}

/// Text of a manifest, for mapping fields and byte ranges to lines.
struct Source<'a> {
    text: &'a str,
}

impl Source<'_> {
    fn read<R: serde::de::DeserializeOwned>(
        &self,
        check: impl FnOnce(R) -> Result<Manifest, Fault>,
    ) -> Result<Manifest, ManifestError> {
        let raw: R = toml::from_str(self.text).map_err(|error| self.toml_error(&error))?;
        let manifest = check(raw).map_err(|fault| self.fault(fault))?;
        manifest.check_bounds().map_err(|error| self.fault(error.into()))?;
        debug_assert!(to_bytes(&manifest).len() <= 2 * limits::MANIFEST_BYTES_MAX, "it can be proposed");
        Ok(manifest)
    }

    fn fault(&self, Fault { field, message, code }: Fault) -> ManifestError {
        self.error(code, Fields::of(self.text).span_of(&field), field, message)
    }

    fn toml_error(&self, error: &toml::de::Error) -> ManifestError {
        let message = match error.message() {
            // The parser's text for a variant of an enumeration that is no string.
            "wanted string or table" => "invalid type: expected a string".to_string(),
            message => message.to_string(),
        };
        let span = error.span().unwrap_or(0..0);
        let fields = Fields::of(self.text);
        let field = match message.strip_prefix("missing field `").and_then(|rest| rest.split('`').next()) {
            // The span of the error is that of the table; the missing field has none.
            Some(missing) => join(fields.path_of_value(&span).unwrap_or_default(), missing),
            None => fields.path_of(&span).map_or_else(|| self.key_at(span.start), str::to_string),
        };
        let code = if message.starts_with("unknown field") {
            error_code::MANIFEST_UNKNOWN_FIELD
        } else if message.starts_with("invalid type") {
            error_code::MANIFEST_WRONG_TYPE
        } else {
            error_code::MANIFEST_INVALID
        };
        self.error(code, span, field, message)
    }

    fn error(&self, code: ErrorCode, span: Range<usize>, field: String, message: String) -> ManifestError {
        debug_assert!(!field.is_empty() && !message.is_empty(), "an error names its field: {message}");
        let before = &self.text[..self.text.floor_char_boundary(span.start)];
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        debug_assert!(line_start <= before.len(), "a line begins before its error");
        ManifestError {
            code,
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
            field,
            message,
        }
    }

    /// Returns the key on the line at this offset, under the last table opened before it. Used for text that
    /// is not valid TOML.
    fn key_at(&self, at: usize) -> String {
        let at = self.text.floor_char_boundary(at);
        let start = self.text[..at].rfind('\n').map_or(0, |newline| newline + 1);
        let line = self.text[start..].lines().next().unwrap_or_default();
        let key = line.split('=').next().unwrap_or_default().trim();
        let header = |line: &str| Some(line.trim().strip_prefix('[')?.strip_suffix(']')?.trim().to_string());
        let table = self.text[..start].lines().rev().find_map(header);
        match table.filter(|_| line.contains('=')) {
            Some(table) => format!("{table}.{key}"),
            None if key.is_empty() => "manifest".into(),
            None => key.to_string(),
        }
    }
}

#[derive(Deserialize)]
struct RawKind {
    kind: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawModel {
    name: ModelName,
    root: ModelRoot,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawReplicas {
    min: u32,
    max: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawResources {
    cpu_millicores: u64,
    memory: String,
    gpu_count: Option<u32>,
    gpu_share_percent: Option<u32>,
    gpu_memory: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct RawPlacement {
    regions: Vec<String>,
    node_selector: BTreeMap<String, String>,
    isolation: Option<Isolation>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct RawRollout {
    ready_seconds: Option<u32>,
    max_unavailable: Option<u32>,
    failure_limit: Option<u32>,
    on_failure: Option<OnFailure>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawService {
    #[serde(rename = "kind")]
    _kind: String,
    name: ServiceName,
    task: Task,
    runtime: Option<Runtime>,
    model: RawModel,
    replicas: RawReplicas,
    resources: RawResources,
    #[serde(default)]
    placement: RawPlacement,
    egress: Option<Vec<String>>,
    spend_micro_units_per_hour: Option<u64>,
    valid_until: Option<toml::value::Datetime>,
    on_expiry: Option<OnExpiry>,
    autonomy_seconds: Option<u64>,
    exclusive: Option<bool>,
    priority: Option<u32>,
    #[serde(default)]
    rollout: RawRollout,
    context_tokens_max: Option<u32>,
    batch_sequences_max: Option<u32>,
}

impl RawService {
    fn check(self) -> Result<Manifest, Fault> {
        let runtime = self.runtime.unwrap_or(Runtime::Candle);
        if runtime == Runtime::Process {
            return Err(Fault {
                code: error_code::KIND_NOT_BUILT,
                ..fault("runtime", "`process` is not built yet; use `candle`")
            });
        }
        let exclusive = self.exclusive.unwrap_or(false);
        let autonomy_default =
            if exclusive { limits::AUTONOMY_SECONDS_MIN } else { limits::AUTONOMY_SECONDS_DEFAULT };
        Ok(Manifest::Service(ServiceManifest {
            name: self.name,
            model: self.model.choice(),
            task: self.task,
            runtime,
            replicas: ReplicaRange { min: self.replicas.min, max: self.replicas.max },
            resources: self.resources.check()?,
            placement: self.placement.choice(),
            egress: check_egress(self.egress)?,
            spend_micro_units_per_hour: self.spend_micro_units_per_hour,
            valid_until: self.valid_until.map(|at| check_time(&at, "valid_until")).transpose()?,
            on_expiry: self.on_expiry.unwrap_or(OnExpiry::Hold),
            autonomy_seconds: self.autonomy_seconds.unwrap_or(autonomy_default),
            exclusive,
            priority: self.priority.unwrap_or(limits::PRIORITY_DEFAULT),
            rollout: self.rollout.choice(),
            context_tokens_max: self.context_tokens_max,
            batch_sequences_max: self.batch_sequences_max.unwrap_or(32),
        }))
    }
}

impl RawModel {
    fn choice(self) -> ModelChoice {
        ModelChoice { name: self.name, root: self.root }
    }
}

impl RawResources {
    /// Checks the GPU fields as given: an explicit zero share or amount is an error, although an absent field
    /// means zero.
    fn check(self) -> Result<Resources, Fault> {
        let gpu_memory_bytes = match &self.gpu_memory {
            Some(text) => read_bytes(text, "resources.gpu_memory")?,
            None => 0,
        };
        if self.gpu_memory.is_some() {
            bytes_in_range("resources.gpu_memory", gpu_memory_bytes, 1, MEMORY_BYTES_MAX)?;
        }
        if let Some(share) = self.gpu_share_percent {
            in_range("resources.gpu_share_percent", share, 1, GPU_SHARE_PERCENT_MAX)?;
        }
        Ok(Resources {
            cpu_millicores: self.cpu_millicores,
            memory_bytes: read_bytes(&self.memory, "resources.memory")?,
            gpu_count: self.gpu_count.unwrap_or(0),
            gpu_share_percent: self.gpu_share_percent.unwrap_or(0),
            gpu_memory_bytes,
        })
    }
}

impl RawPlacement {
    fn choice(self) -> Placement {
        Placement {
            regions: self.regions,
            node_selector: self.node_selector,
            isolation: self.isolation.unwrap_or(Isolation::SameUid),
        }
    }
}

impl RawRollout {
    fn choice(self) -> RollOutRules {
        let default = RollOutRules::default();
        RollOutRules {
            ready_seconds: self.ready_seconds.unwrap_or(default.ready_seconds),
            max_unavailable: self.max_unavailable.unwrap_or(default.max_unavailable),
            failure_limit: self.failure_limit.unwrap_or(default.failure_limit),
            on_failure: self.on_failure.unwrap_or(default.on_failure),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEdge {
    #[serde(rename = "kind")]
    _kind: String,
    name: ServiceName,
    model: RawModel,
    sites: String,
    waves_percent: Vec<u32>,
    rollback: Option<ModelRoot>,
}

impl RawEdge {
    fn check(self) -> Result<Manifest, Fault> {
        Ok(Manifest::Edge(EdgeManifest {
            name: self.name,
            model: self.model.choice(),
            sites: self.sites,
            waves_percent: self.waves_percent,
            rollback: self.rollback,
        }))
    }
}

fn read_bytes(text: &str, field: &str) -> Result<u64, Fault> {
    parse_bytes(text).map_err(|message| fault(field, message))
}

fn check_egress(egress: Option<Vec<String>>) -> Result<Vec<String>, Fault> {
    match egress {
        Some(list) if !list.is_empty() => Err(Fault {
            code: error_code::EGRESS_NOT_BUILT,
            ..fault("egress", "must be empty: workloads reach nothing outside in this release")
        }),
        _ => Ok(Vec::new()),
    }
}

/// Converts a TOML date-time with offset to milliseconds since the Unix epoch.
fn check_time(value: &toml::value::Datetime, field: &str) -> Result<Millis, Fault> {
    let refuse = || fault(field, "must be a time with offset, like 2027-01-31T12:00:00Z");
    let (Some(date), Some(time), Some(offset)) = (value.date, value.time, value.offset) else {
        return Err(refuse());
    };
    let offset_minutes = match offset {
        toml::value::Offset::Z => 0,
        toml::value::Offset::Custom { minutes } => i64::from(minutes),
    };
    debug_assert!(offset_minutes.abs() <= 24 * 60, "an offset is a day at most: {offset_minutes} minutes");
    let days = days_since_epoch(i64::from(date.year), i64::from(date.month), i64::from(date.day));
    let seconds = days * 86_400
        + i64::from(time.hour) * 3600
        + i64::from(time.minute) * 60
        + i64::from(time.second.unwrap_or(0))
        - offset_minutes * 60;
    debug_assert!(seconds.abs() < (1 << 53) / 1000, "a year of four digits is exact in JSON: {seconds}");
    u64::try_from(seconds).map(|seconds| Millis(seconds * 1000)).map_err(|_| refuse())
}

/// Returns the days from 1970-01-01 to a Gregorian date (Howard Hinnant, "chrono-Compatible Low-Level Date
/// Algorithms", `days_from_civil`).
fn days_since_epoch(year: i64, month: i64, day: i64) -> i64 {
    debug_assert!((1..=12).contains(&month) && (1..=31).contains(&day), "{year}-{month}-{day} is no date");
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    debug_assert!((0..366).contains(&day_of_year), "a year has at most 366 days: {day_of_year}");
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    debug_assert!((0..146_097).contains(&day_of_era), "an era is 400 years: day {day_of_era}");
    era * 146_097 + day_of_era - 719_468
}

#[cfg(test)]
mod tests;
