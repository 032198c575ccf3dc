//! Services of a benchmark: the small language model, imported and deployed through the product's client.

use super::ControlCluster;
use anyhow::{Context as _, Result, ensure};
use control::session::Session;
use protocol::agent::SlotState;
use protocol::api::{ServiceView, SlotView};
use protocol::governance::{Change, Choice};
use protocol::manifest::Manifest;
use protocol::model::ModelRecord;
use std::path::Path;
use std::time::{Duration, Instant};

/// Time for all slots of a service to be ready.
const READY_LIMIT: Duration = Duration::from_secs(300);
/// Lifetime of a proposal in milliseconds.
const LIFETIME_MS: u64 = 3_600_000;

/// A service of the small language model.
pub(crate) struct TinyService<'a> {
    pub(crate) name: &'a str,
    pub(crate) region: &'a str,
    pub(crate) replicas: usize,
    pub(crate) cpu_millicores: u32,
}

/// Returns whether a slot is ready.
pub(crate) fn is_ready(slot: &SlotView) -> bool {
    slot.report.as_ref().is_some_and(|report| report.state == SlotState::Ready)
}

impl ControlCluster {
    /// Imports the small language model under this code, with as many shards of a segment on one node.
    pub(crate) fn import_tiny(&self, data: u8, parity: u8, per_domain: u8) -> Result<()> {
        let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tiny").display().to_string();
        let [data, parity, per_domain] = [data, parity, per_domain].map(|number| number.to_string());
        let code = ["--data", &data, "--parity", &parity, "--shards-per-domain", &per_domain];
        self.quorate(&[&["model", "import", &tiny, "--name", "tiny"], &code[..]].concat()).map(drop)
    }

    /// Deploys a service with the votes of the first members, as many as the rule needs, and waits until all
    /// of its slots are ready.
    pub(crate) async fn deploy(&self, service: &TinyService<'_>, voters: usize) -> Result<()> {
        let TinyService { name, region, replicas, cpu_millicores } = service;
        let models: Vec<ModelRecord> = self.client()?.list("/v1/models").await?;
        let root = models.first().context("the model was imported")?.root;
        let manifest = format!(
            "kind = 'service'\nname = '{name}'\ntask = 'generate'\n\
             model = {{ name = 'tiny', root = '{root}' }}\n\
             replicas = {{ min = {replicas}, max = {replicas} }}\n\
             resources = {{ cpu_millicores = {cpu_millicores}, memory = '128 MiB' }}\n\
             placement = {{ regions = ['{region}'], isolation = 'none' }}\n"
        );
        self.decide(&manifest, voters).await?;
        let began = Instant::now();
        loop {
            let slots = self.slots(name).await.unwrap_or_default();
            let ready = slots.iter().filter(|slot| is_ready(slot)).count();
            if ready == *replicas {
                eprintln!("{name}: {ready} slots are ready after {:.1} s", began.elapsed().as_secs_f64());
                return Ok(());
            }
            ensure!(began.elapsed() < READY_LIMIT, "{ready} of {replicas} slots are ready: {slots:?}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// Has the first members decide on a manifest, as many as the rule needs.
    pub(crate) async fn decide(&self, manifest: &str, voters: usize) -> Result<()> {
        let session = Session::open(&self.context).await?;
        let change = Change::Deploy(Box::new(Manifest::from_toml(manifest)?));
        let proposal = session.propose(change, "benchmark".into(), LIFETIME_MS).await?.view.proposal;
        for member in &self.members[..voters] {
            session.vote(&proposal, member, Choice::Approve, String::new()).await?;
        }
        Ok(())
    }

    /// Returns the slots of a service, as control has them.
    pub(crate) async fn slots(&self, service: &str) -> Result<Vec<SlotView>> {
        let view: ServiceView = self.client()?.get(&format!("/v1/services/{service}")).await?;
        Ok(view.slots)
    }
}
