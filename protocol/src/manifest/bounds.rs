//! Bounds of a manifest: values that no cluster could run, or that members could not read before voting, are
//! rejected.
//!
//! Every path into the system applies them: TOML that users write ([`Manifest::from_toml`]), and canonical or
//! JSON form, which programs propose and `human-chain` verifies. Errors name fields as in TOML. A workload
//! that only this release cannot run is within bounds; the component that would run it rejects it.

mod job;

pub use job::check_command_words;

use super::{
    EdgeManifest, Manifest, ModelChoice, Placement, ReplicaRange, Resources, RollOutRules, ServiceManifest,
    format_bytes, parse_bytes,
};
use crate::limits::{
    AUTONOMY_SECONDS_MAX, AUTONOMY_SECONDS_MIN, FAILURES_MAX, LABEL_BYTES_MAX, LABELS_MAX, PRIORITY_MAX,
    READY_SECONDS_MAX, SLOTS_MAX,
};

/// Minimum CPU of one replica: 1 ms, the smallest quota that Linux accepts, of each period of 20 ms. A
/// smaller share needs a longer period. A worker that has used up its quota would then stall for longer than
/// a client should wait. Even the smallest engine of today needs more to load.
pub const CPU_MILLICORES_MIN: u64 = 50;
/// Maximum CPU of one replica: the largest machines sold have fewer cores.
const CPU_MILLICORES_MAX: u64 = 4_096_000;
/// Minimum memory of one replica in bytes: an engine and its runtime do not fit in less.
const MEMORY_BYTES_MIN: u64 = 32 << 20;
/// Maximum memory of one replica, and of one GPU, in bytes.
pub(super) const MEMORY_BYTES_MAX: u64 = 64 << 40;
/// Maximum number of GPUs of one replica: those of one machine.
const GPU_COUNT_MAX: u32 = 64;
/// Maximum share of one GPU in percent; more would be the whole GPU.
pub(super) const GPU_SHARE_PERCENT_MAX: u32 = 99;
/// Maximum number of tokens of a context: four times that of the largest models of today.
const CONTEXT_TOKENS_MAX: u32 = 1 << 20;
/// Maximum number of sequences of one step: beyond it latency grows and throughput does not.
const BATCH_SEQUENCES_MAX: u32 = 1024;

const _: () = assert!(MEMORY_BYTES_MAX < i64::MAX as u64, "TOML's integers hold every amount");
const _: () = assert!(GPU_SHARE_PERCENT_MAX < 100, "all of a GPU is a whole GPU, not a share");

/// Field with a value that no cluster could run, and the accepted range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} {message}")]
pub struct OutOfBounds {
    /// Dotted path of the field, as in TOML: `replicas.max`.
    pub field: String,
    /// Given value and accepted values, as text that follows the field's path.
    pub message: String,
}

impl OutOfBounds {
    pub(super) fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        let (field, message) = (field.into(), message.into());
        debug_assert!(!field.is_empty() && !message.is_empty(), "an error names its field: {message}");
        Self { field, message }
    }
}

impl Manifest {
    /// Checks that every value is one that a cluster could run.
    ///
    /// # Errors
    /// Returns the first field that is out of bounds.
    pub fn check_bounds(&self) -> Result<(), OutOfBounds> {
        match self {
            Manifest::Service(service) => service.check_bounds(),
            Manifest::Job(job) => job.check_bounds(),
            Manifest::Edge(edge) => check_edge(edge),
        }
    }
}

impl ServiceManifest {
    /// Checks that every value is one that a cluster could run.
    ///
    /// # Errors
    /// Returns the first field that is out of bounds.
    pub fn check_bounds(&self) -> Result<(), OutOfBounds> {
        check_model("model.root", &self.model)?;
        check_replicas(self.replicas)?;
        check_resources(&self.resources)?;
        check_placement(&self.placement)?;
        check_autonomy(self.autonomy_seconds, self.exclusive)?;
        in_range("priority", self.priority, 1, PRIORITY_MAX)?;
        check_rollout(&self.rollout, self.replicas)?;
        if let Some(tokens) = self.context_tokens_max {
            in_range("context_tokens_max", tokens, 1, CONTEXT_TOKENS_MAX)?;
        }
        in_range("batch_sequences_max", self.batch_sequences_max, 1, BATCH_SEQUENCES_MAX)
    }
}

fn check_edge(edge: &EdgeManifest) -> Result<(), OutOfBounds> {
    let waves = &edge.waves_percent;
    let rise =
        waves.windows(2).all(|pair| pair[0] < pair[1]) && waves.first().is_some_and(|first| *first > 0);
    if !rise || waves.last() != Some(&100) {
        return Err(OutOfBounds::new("waves_percent", "must rise and end at 100"));
    }
    debug_assert!(waves.len() <= 100, "whole percentages that rise to 100 are at most 100");
    if edge.sites.is_empty() {
        return Err(OutOfBounds::new("sites", "is empty; use a pattern like `ca-*`"));
    }
    check_model("model.root", &edge.model)
}

fn check_model(field: &str, model: &ModelChoice) -> Result<(), OutOfBounds> {
    if model.root.0.0 == [0; 32] {
        return Err(OutOfBounds::new(field, "is all zeros; `quorate model list` shows roots"));
    }
    Ok(())
}

fn check_replicas(replicas: ReplicaRange) -> Result<(), OutOfBounds> {
    let ReplicaRange { min, max } = replicas;
    in_range("replicas.max", max, 1, SLOTS_MAX)?;
    if min > max {
        let message = format!("is {min}, more than replicas.max, which is {max}");
        return Err(OutOfBounds::new("replicas.min", message));
    }
    debug_assert!((1..=SLOTS_MAX).contains(&max), "a service has a slot, and a bounded number of them");
    Ok(())
}

fn check_resources(resources: &Resources) -> Result<(), OutOfBounds> {
    let (count, share) = (resources.gpu_count, resources.gpu_share_percent);
    let millicores = resources.cpu_millicores;
    in_range("resources.cpu_millicores", millicores, CPU_MILLICORES_MIN, CPU_MILLICORES_MAX)?;
    bytes_in_range("resources.memory", resources.memory_bytes, MEMORY_BYTES_MIN, MEMORY_BYTES_MAX)?;
    in_range("resources.gpu_count", count, 0, GPU_COUNT_MAX)?;
    in_range("resources.gpu_share_percent", share, 0, GPU_SHARE_PERCENT_MAX)?;
    if count > 0 && share > 0 {
        let message = "asks for a share of a GPU while resources.gpu_count asks for whole ones";
        return Err(OutOfBounds::new("resources.gpu_share_percent", message));
    }
    if resources.gpu_memory_bytes > 0 && count == 0 && share == 0 {
        return Err(OutOfBounds::new("resources.gpu_memory", "is given, but no GPU is asked for"));
    }
    bytes_in_range("resources.gpu_memory", resources.gpu_memory_bytes, 0, MEMORY_BYTES_MAX)
}

fn check_placement(placement: &Placement) -> Result<(), OutOfBounds> {
    let (regions, selector) = (&placement.regions, &placement.node_selector);
    for (field, length) in [("placement.regions", regions.len()), ("placement.node_selector", selector.len())]
    {
        if length > LABELS_MAX {
            let message = format!("has {length} entries; accepted: at most {LABELS_MAX}");
            return Err(OutOfBounds::new(field, message));
        }
    }
    for (at, region) in regions.iter().enumerate() {
        let named = |message| OutOfBounds::new(format!("placement.regions[{at}]"), message);
        check_label(region).map_err(named)?;
    }
    for (key, value) in selector {
        let named =
            |message| OutOfBounds::new("placement.node_selector", format!("has a key that {message}"));
        check_label(key).map_err(named)?;
        let named = |message| OutOfBounds::new(join("placement.node_selector", key), message);
        check_label(value).map_err(named)?;
    }
    Ok(())
}

/// Checks the autonomy of a service. A slot of an exclusive one ends with the lease, before control gives it
/// to another node.
fn check_autonomy(seconds: u64, exclusive: bool) -> Result<(), OutOfBounds> {
    in_range("autonomy_seconds", seconds, AUTONOMY_SECONDS_MIN, AUTONOMY_SECONDS_MAX)?;
    if exclusive && seconds != AUTONOMY_SECONDS_MIN {
        let message = format!(
            "is {seconds}, and the service is exclusive; accepted: {AUTONOMY_SECONDS_MIN}, or \
             exclusive = false"
        );
        return Err(OutOfBounds::new("autonomy_seconds", message));
    }
    Ok(())
}

/// Checks the rules for roll-outs. If planned work may take no replica away, a new one needs a slot beside
/// those of the wanted replicas.
fn check_rollout(rollout: &RollOutRules, replicas: ReplicaRange) -> Result<(), OutOfBounds> {
    in_range("rollout.ready_seconds", rollout.ready_seconds, 0, READY_SECONDS_MAX)?;
    in_range("rollout.max_unavailable", rollout.max_unavailable, 0, SLOTS_MAX)?;
    in_range("rollout.failure_limit", rollout.failure_limit, 1, FAILURES_MAX)?;
    if rollout.max_unavailable == 0 && replicas.min == replicas.max {
        let message = format!(
            "is 0, and each of the {} slots is always in use; accepted: 1 or more, or replicas.max above \
             replicas.min",
            replicas.max
        );
        return Err(OutOfBounds::new("rollout.max_unavailable", message));
    }
    Ok(())
}

/// Checks that a text can be a label's key or value, or a region.
///
/// # Errors
/// Returns an error text that states the accepted form.
pub fn check_label(text: &str) -> Result<(), String> {
    if text.len() > LABEL_BYTES_MAX {
        return Err(format!("is {} bytes; accepted: at most {LABEL_BYTES_MAX}", text.len()));
    }
    match text.chars().find(|c| c.is_control()) {
        Some(c) => Err(format!("contains the control character `{}`; leave it out", c.escape_debug())),
        None => Ok(()),
    }
}

/// Joins a path and a key, with the key quoted unless it is a bare key of TOML.
pub(super) fn join(path: &str, key: &str) -> String {
    let bare = !key.is_empty() && key.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-' || c == b'_');
    let key = if bare { key.to_string() } else { format!("\"{}\"", key.escape_debug()) };
    debug_assert!(!key.is_empty(), "an empty key is quoted, so that each path names its field");
    if path.is_empty() { key } else { format!("{path}.{key}") }
}

pub(super) fn in_range<N: PartialOrd + std::fmt::Display>(
    field: &str,
    value: N,
    min: N,
    max: N,
) -> Result<(), OutOfBounds> {
    debug_assert!(min <= max, "no value of `{field}` is in bounds");
    if value < min || value > max {
        return Err(OutOfBounds::new(field, format!("is {value}; accepted: {min} to {max}")));
    }
    Ok(())
}

pub(super) fn bytes_in_range(field: &str, bytes: u64, min: u64, max: u64) -> Result<(), OutOfBounds> {
    debug_assert!(min <= max, "no value of `{field}` is in bounds");
    let reads_back = |bound| parse_bytes(&format_bytes(bound)) == Ok(bound);
    debug_assert!(reads_back(min) && reads_back(max), "an error shows the bounds of `{field}` exactly");
    if bytes < min || bytes > max {
        // A rounded amount just out of range would look equal to the bound.
        let rounded = format_bytes(bytes);
        let given = if parse_bytes(&rounded) == Ok(bytes) { rounded } else { format!("{bytes} B") };
        let message = format!("is {given}; accepted: {} to {}", format_bytes(min), format_bytes(max));
        return Err(OutOfBounds::new(field, message));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ModelRoot;
    use crate::digest::Digest;

    const ROOT: &str = "1111111111111111111111111111111111111111111111111111111111111111";

    fn read(text: &str) -> Manifest {
        Manifest::from_toml(&text.replace("ROOT", ROOT)).expect("a sound manifest")
    }

    fn edge() -> EdgeManifest {
        let text = "kind = 'edge'\nname = 'detector'\nsites = 'ca-*'\nwaves_percent = [1, 10, 100]\n\
            model = { name = 'detector', root = 'ROOT' }\n";
        let Manifest::Edge(edge) = read(text) else { panic!("kind = edge reads as a rollout") };
        edge
    }

    fn outcome(manifest: &Manifest) -> String {
        manifest.check_bounds().map_or_else(|error| error.to_string(), |()| "ok".into())
    }

    #[test]
    fn rollouts_have_bounds_however_they_are_made() {
        for (waves, expected) in [
            (&[100][..], "ok"),
            (&[1, 100], "ok"),
            (&[], "waves_percent must rise and end at 100"),
            (&[0, 100], "waves_percent must rise and end at 100"),
            (&[50, 50, 100], "waves_percent must rise and end at 100"),
            (&[50, 101], "waves_percent must rise and end at 100"),
        ] {
            assert_eq!(
                outcome(&Manifest::Edge(EdgeManifest { waves_percent: waves.to_vec(), ..edge() })),
                expected
            );
        }
        let nowhere = EdgeManifest { sites: String::new(), ..edge() };
        assert_eq!(outcome(&Manifest::Edge(nowhere)), "sites is empty; use a pattern like `ca-*`");
        let mut nothing = edge();
        nothing.model.root = ModelRoot(Digest([0; 32]));
        assert_eq!(
            outcome(&Manifest::Edge(nothing)),
            "model.root is all zeros; `quorate model list` shows roots"
        );
    }

    #[test]
    fn paths_are_written_as_toml_would() {
        for (path, key, expected) in [
            ("", "kind", "kind"),
            ("replicas", "min", "replicas.min"),
            ("a", "b-c_9", "a.b-c_9"),
            ("a", "b.c", "a.\"b.c\""),
            ("a", "", "a.\"\""),
            ("", "ö", "\"ö\""),
        ] {
            assert_eq!(join(path, key), expected);
        }
    }
}
