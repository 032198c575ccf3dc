//! Judgement of a submission by the nodes that there are: whether its gang can ever fit.

use crate::plan::{has_meeting_node, ranks_of_empty_nodes};
use crate::project_fit::quota_misfit;
use crate::view::ClusterView;
use protocol::error_code::JOB_NEVER_FITS;
use protocol::manifest::{JobManifest, format_bytes};
use protocol::{Refusal, ServiceName};

/// Checks that the gang of an approved job fits on the admitted nodes if nothing else runs there. A job that
/// is not approved, and nodes that this leader does not know yet, are no obstacle here.
///
/// # Errors
/// The gang never fits: the code is `job-never-fits`, and the text names the smallest change.
pub fn check_fits(view: ClusterView, name: &ServiceName) -> Result<(), Refusal> {
    let approved = view.cluster.circle_state().and_then(|state| state.job(name));
    let Some(manifest) = approved.map(|approved| &approved.manifest) else { return Ok(()) };
    match misfit_of(view, manifest) {
        Some(text) => Err(Refusal::new(JOB_NEVER_FITS, text)),
        None => Ok(()),
    }
}

/// Returns why the gang of a manifest never fits into its project or on the admitted nodes, with the smallest
/// change; none if it does, or this leader does not know every node.
pub(crate) fn misfit_of(view: ClusterView, manifest: &JobManifest) -> Option<String> {
    if let Some(text) = quota_misfit(view.cluster, manifest) {
        return Some(text);
    }
    let counts = ranks_of_empty_nodes(view, manifest)?;
    let on_one_node = counts.first().copied().unwrap_or(0);
    if on_one_node < manifest.ranks && !has_meeting_node(view.cluster) {
        return Some(unreachable(manifest, on_one_node));
    }
    let total: u32 =
        counts.iter().take(manifest.slots as usize).fold(0, |sum, count| sum.saturating_add(*count));
    (total < manifest.ranks).then(|| misfit(manifest, total, counts.len()))
}

/// Returns the text for a gang that needs several nodes, of which none listens.
fn unreachable(manifest: &JobManifest, on_one_node: u32) -> String {
    debug_assert!(on_one_node < manifest.ranks, "the gang needs several nodes");
    format!(
        "the gang of job {} never fits: of its {} ranks, at most {on_one_node} fit on one node, and ranks on \
         several nodes cannot reach each other, since no admitted node has a storage address; smallest \
         change: admit a node with the role `storage`",
        manifest.name, manifest.ranks
    )
}

/// Returns the text for a gang of which at most `total` ranks fit on these many workers.
fn misfit(manifest: &JobManifest, total: u32, workers: usize) -> String {
    debug_assert!(total < manifest.ranks, "the gang does not fit");
    let needs = &manifest.resources;
    let gpus = match (needs.gpu_count, needs.gpu_share_percent) {
        (0, 0) => String::new(),
        (0, share) => format!(", {share} % of a GPU"),
        (count, _) => format!(", {count} GPUs"),
    };
    let change = match total {
        0 => "approve ranks with smaller resources, or admit a node that holds one".to_string(),
        _ => format!("approve `ranks = {total}`, or admit nodes for {} more ranks", manifest.ranks - total),
    };
    format!(
        "the gang of job {} never fits: of its {} ranks with {} millicores, {} of memory{gpus} each, \
         {total} fit on {workers} workers at the same time; smallest change: {change}",
        manifest.name,
        manifest.ranks,
        needs.cpu_millicores,
        format_bytes(needs.memory_bytes)
    )
}
