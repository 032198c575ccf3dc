//! Garbage collection of stores through a node (`quorate model sweep`).
//!
//! An object is removed if the circle decided to forget its model, or if its import was never completed and
//! is old. Control's word removes no model. Checkpoints and outputs of jobs are control's to keep: those that
//! it does not list are removed once they are old, from the node that wrote them.

use super::models::ModelAccess;
use crate::client::ClientError;
use crate::session::Session;
use anyhow::Result;
use host::wall_clock;
use indicatif::{ProgressBar, ProgressStyle};
use model_store::{ObjectTotals, Store, SweepOptions, SweepProgress};
use protocol::manifest::format_bytes;
use protocol::model::{ModelRecord, StoreReference};
use protocol::{ModelRoot, Refusal};
use serde::Serialize;
use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

/// Number of objects and their total size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct ObjectCount {
    /// Number of objects.
    pub objects: u64,
    /// Total size of the objects, in bytes.
    pub bytes: u64,
}

impl From<ObjectTotals> for ObjectCount {
    fn from(totals: ObjectTotals) -> Self {
        Self { objects: totals.objects, bytes: totals.bytes }
    }
}

impl std::fmt::Display for ObjectCount {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} objects ({})", self.objects, format_bytes(self.bytes))
    }
}

/// Result of a garbage collection.
#[derive(Debug, Clone, Serialize)]
pub struct SweepSummary {
    /// Stores that were listed.
    pub stores: Vec<String>,
    /// True if garbage was only counted and not removed.
    pub dry_run: bool,
    /// Objects of registered models.
    pub registered: ObjectCount,
    /// Objects of complete imports that are not registered.
    pub sealed: ObjectCount,
    /// Those imports, as `NAME ROOT`.
    pub unregistered: Vec<String>,
    /// Objects of incomplete imports that may still run.
    pub young: ObjectCount,
    /// Garbage: objects of forgotten models, and old objects of incomplete imports.
    pub dead: ObjectCount,
    pub removed: ObjectCount,
    /// Files that do not belong to this system; they are never touched.
    pub foreign: ObjectCount,
    /// Stores that could not be listed completely, or refused a removal.
    pub failures: Vec<String>,
}

impl SweepSummary {
    /// Renders the summary for people.
    #[must_use]
    pub fn text(&self) -> String {
        let Self { registered, young, dead, removed, foreign, .. } = self;
        let mut text = format!(
            "{} stores: {registered} of registered models, {dead} of garbage, {young} too recent to collect",
            self.stores.len()
        );
        if foreign.objects > 0 {
            text.push_str(&format!(", {foreign} foreign and kept"));
        }
        text.push_str(&match self.dry_run {
            true => format!("\nwould remove {dead}; nothing was removed"),
            false => format!("\nremoved {removed}"),
        });
        for model in &self.unregistered {
            text.push_str(&format!(
                "\nkept: {model}, complete and not registered; `model forget` removes it"
            ));
        }
        for failure in &self.failures {
            text.push_str(&format!("\nnot swept: {}", crate::terminal::line(failure)));
        }
        text
    }
}

impl ModelAccess {
    /// Removes from `stores` the objects of forgotten models, and those that unfinished imports have left for
    /// longer than `older_than`. The stores must belong to this cluster alone.
    ///
    /// # Errors
    /// Returns an error if control cannot list the registered models, or if `older_than` is below an hour.
    /// Nothing is removed then.
    pub async fn sweep(
        &self,
        session: &Session,
        stores: &[StoreReference],
        older_than: Duration,
        remove: bool,
        bar: ProgressBar,
    ) -> Result<SweepSummary> {
        let options = SweepOptions { older_than, now: SystemTime::now(), remove };
        let now = wall_clock();
        let over = session.circle.forgotten_models().filter(|forgotten| forgotten.ends_at() <= now);
        let forgotten: BTreeSet<ModelRoot> = over.map(|forgotten| forgotten.model.root).collect();
        let opened = self.open_all(stores);
        // A read of the register passes a read barrier on the leader, so it includes every model registered
        // before the request.
        let register = || async {
            let models: Vec<ModelRecord> = session.client.list("/v1/models").await?;
            let job_data: Vec<ModelRecord> = session.client.list("/v1/job-data").await?;
            let opened = |record: ModelRecord| (record.root, self.open_all(&record.stores));
            Ok::<_, ClientError>(models.into_iter().chain(job_data).map(opened).collect())
        };
        bar.set_style(style());
        let progress = |at: SweepProgress| {
            bar.set_message(format!("{} objects listed", at.listed));
            bar.set_length(at.to_remove);
            bar.set_position(at.removed);
        };
        let report = model_store::sweep(&opened, options, &forgotten, &self.pool, register, progress).await;
        bar.finish_and_clear();
        let report = report.map_err(|error| Refusal::of(error.code(), &error))?;
        Ok(SweepSummary {
            stores: stores.iter().map(|store| store.url.clone()).collect(),
            dry_run: !remove,
            registered: report.registered.into(),
            sealed: report.sealed.into(),
            unregistered: report.unregistered.iter().map(|(root, name)| format!("{name} {root}")).collect(),
            young: report.young.into(),
            dead: report.garbage.into(),
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
    fn the_summary_lists_removed_objects_and_failures() {
        let mut summary = SweepSummary {
            stores: vec!["node://a/s".into()],
            dry_run: false,
            registered: count(9),
            sealed: count(2),
            unregistered: vec!["tiny 00".into()],
            young: count(0),
            dead: count(4),
            removed: count(3),
            foreign: count(1),
            failures: vec!["store `node://a/s` is full".into()],
        };
        let text = summary.text();
        assert!(text.starts_with("1 stores: 9 objects (9 KiB) of registered models, 4 objects"), "{text}");
        assert!(text.contains("1 objects (1 KiB) foreign"), "{text}");
        assert!(text.contains("kept: tiny 00, complete and not registered"), "{text}");
        assert!(text.ends_with("\nnot swept: store `node://a/s` is full"), "{text}");
        summary.dry_run = true;
        assert!(summary.text().contains("would remove 4 objects"), "{}", summary.text());
    }
}
