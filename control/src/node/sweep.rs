//! Sweeping stores through a node: what is old, and what no registered model names, goes.

use super::models::{ModelAccess, ModelFailure};
use crate::client::ClientError;
use crate::session::Session;
use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};
use model_store::{Store, SweepOptions, SweepProgress, Tally};
use protocol::api::Page;
use protocol::manifest::format_bytes;
use protocol::model::{ModelRecord, StoreReference};
use serde::Serialize;
use std::time::{Duration, SystemTime};

/// Objects and their bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct ObjectCount {
    /// How many.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl From<Tally> for ObjectCount {
    fn from(tally: Tally) -> Self {
        Self { objects: tally.objects, bytes: tally.bytes }
    }
}

impl std::fmt::Display for ObjectCount {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} objects ({})", self.objects, format_bytes(self.bytes))
    }
}

/// What a sweep found and did.
#[derive(Debug, Clone, Serialize)]
pub struct SweepSummary {
    /// Where it looked.
    pub stores: Vec<String>,
    /// Nothing was removed, only counted.
    pub dry_run: bool,
    /// Of registered models.
    pub registered: ObjectCount,
    /// Of no registered model, but too young to be sure.
    pub young: ObjectCount,
    /// Of no registered model, and old.
    pub dead: ObjectCount,
    /// Removed.
    pub removed: ObjectCount,
    /// Files that are not of this system, never touched.
    pub foreign: ObjectCount,
    /// Stores that could not be listed whole, or refused a removal.
    pub failures: Vec<String>,
}

impl SweepSummary {
    /// For people.
    #[must_use]
    pub fn text(&self) -> String {
        let Self { registered, young, dead, removed, foreign, .. } = self;
        let mut text = format!(
            "{} stores: {registered} of registered models, {dead} dead, {young} too young to judge",
            self.stores.len()
        );
        if foreign.objects > 0 {
            text.push_str(&format!(", {foreign} foreign and left alone"));
        }
        text.push_str(&match self.dry_run {
            true => format!("\nwould remove {dead}; nothing was removed"),
            false => format!("\nremoved {removed}"),
        });
        for failure in &self.failures {
            text.push_str(&format!("\nnot swept: {failure}"));
        }
        text
    }
}

impl ModelAccess {
    /// Removes from `stores` what imports that never ended have left: what no registered model names and what
    /// is older than `older_than`. Stores must be this cluster's alone.
    ///
    /// # Errors
    /// When control cannot say what is registered, or `older_than` is below an hour; nothing was removed.
    pub async fn sweep(
        &self,
        session: &Session,
        stores: &[StoreReference],
        older_than: Duration,
        remove: bool,
        bar: ProgressBar,
    ) -> Result<SweepSummary> {
        let options = SweepOptions { older_than, now: SystemTime::now(), remove };
        let opened = self.open_all(stores);
        // A read of the register goes through a barrier on the leader, so it has every model that was
        // registered before it was asked.
        let register = || async {
            let models: Page<ModelRecord> = session.client.get("/v1/models").await?;
            let opened = |record: ModelRecord| (record.root, self.open_all(&record.stores));
            Ok::<_, ClientError>(models.items.into_iter().map(opened).collect())
        };
        bar.set_style(style());
        let progress = |at: SweepProgress| {
            bar.set_message(format!("{} objects listed", at.listed));
            bar.set_length(at.to_remove);
            bar.set_position(at.removed);
        };
        let report = model_store::sweep(&opened, options, &self.pool, register, progress).await;
        bar.finish_and_clear();
        let report = report.map_err(|error| ModelFailure::of(error.code(), &error))?;
        Ok(SweepSummary {
            stores: stores.iter().map(|store| store.url.clone()).collect(),
            dry_run: !remove,
            registered: report.registered.into(),
            young: report.young.into(),
            dead: report.dead.into(),
            removed: report.removed.into(),
            foreign: report.foreign.into(),
            failures: report.failures,
        })
    }

    fn open_all(&self, stores: &[StoreReference]) -> Vec<Store> {
        stores.iter().map(|store| Store::open_or_closed(store, &self.context)).collect()
    }
}

fn style() -> ProgressStyle {
    ProgressStyle::with_template("{bar:30} {pos}/{len} removed, {msg}").expect("the template is a constant")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(objects: u64) -> ObjectCount {
        ObjectCount { objects, bytes: objects * 1024 }
    }

    #[test]
    fn people_read_what_went_and_what_did_not() {
        let mut summary = SweepSummary {
            stores: vec!["node://a/s".into()],
            dry_run: false,
            registered: count(9),
            young: count(0),
            dead: count(4),
            removed: count(3),
            foreign: count(1),
            failures: vec!["store `node://a/s` is full".into()],
        };
        let text = summary.text();
        assert!(text.starts_with("1 stores: 9 objects (9 KiB) of registered models, 4 objects"), "{text}");
        assert!(text.contains("1 objects (1 KiB) foreign"), "{text}");
        assert!(text.ends_with("removed 3 objects (3 KiB)\nnot swept: store `node://a/s` is full"), "{text}");
        summary.dry_run = true;
        assert!(summary.text().contains("would remove 4 objects"), "{}", summary.text());
    }
}
