//! Models and datasets that ranks read: verified, and mounted read-only.

use super::areas::SlotAreas;
use crate::agent::core::Refusal;
use crate::agent::models::ModelSource;
use crate::agent::node::Node;
use human_chain::RankInput;
use model_store::TreeInUse;
use protocol::error_code;
use protocol::model::StoredKind;
use protocol::sandbox::InputMount;
use std::fs::File;
use std::io;

/// Directory of models inside a sandbox; all other inputs are datasets.
const MODELS: &str = "/models/";

/// Inputs of a slot, which stay as they are while this value is there.
#[derive(Debug)]
pub(super) struct SlotInputs {
    pub(super) mounts: Vec<InputMount>,
    _trees: Vec<TreeInUse>,
}

/// Places every model and dataset of a slot. `sources` are their locations as control names them; the roots
/// are those that members approved.
///
/// # Errors
/// If an item is registered no more, no store has it, this node has no key for it, or it is of another kind.
pub(super) async fn place_inputs(
    node: &Node,
    areas: &SlotAreas,
    inputs: &[RankInput],
    sources: &[ModelSource],
) -> Result<SlotInputs, Refusal> {
    let (mut mounts, mut trees) = (Vec::new(), Vec::new());
    for (number, input) in inputs.iter().enumerate() {
        let source = sources.iter().find(|source| source.record.root == input.root).ok_or_else(|| {
            let message = format!("control names no location of `{}`", input.path);
            Refusal::new(error_code::MODEL_NOT_FOUND, message)
        })?;
        let from = if input.path.starts_with(MODELS) {
            place_model(node, areas, number, input, source).await?
        } else {
            let tree = place_dataset(node, input, source).await?;
            let path = tree.path.display().to_string();
            trees.push(tree);
            path
        };
        mounts.push(InputMount { source: from, path: input.path.clone() });
    }
    Ok(SlotInputs { mounts, _trees: trees })
}

async fn place_model(
    node: &Node,
    areas: &SlotAreas,
    number: usize,
    input: &RankInput,
    source: &ModelSource,
) -> Result<String, Refusal> {
    let failed = |error: io::Error| {
        let message = format!("place `{}`: {error}", input.path);
        Refusal::new(error_code::ARTIFACT_UNREADABLE, message)
    };
    let (map, to) = areas.input(number).map_err(failed)?;
    let work = File::options().read(true).write(true).create_new(true).open(&map).map_err(failed)?;
    node.models.place_model(input.root, source, work, &to).await?;
    std::fs::remove_file(map).map_err(failed)?;
    Ok(to.display().to_string())
}

/// Returns the tree of a dataset from the cache of this node, every byte of which was compared just now. The
/// approved root is that of the stored item, whose manifest names the tree.
async fn place_dataset(node: &Node, input: &RankInput, source: &ModelSource) -> Result<TreeInUse, Refusal> {
    let kind = node.models.kind_of(input.root, source).await?;
    if !matches!(kind, StoredKind::Dataset { .. }) {
        let message = format!("`{}` is of kind {}, not dataset", input.path, kind.name());
        return Err(Refusal::new(error_code::MODEL_KIND_WRONG, message));
    }
    node.trees.get(&node.models, kind, Some(source)).await
}
