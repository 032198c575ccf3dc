//! Recipients that lack a model's key: the wraps that members' clients have still to make, and the names that
//! people read until then.

use crate::cluster::Cluster;
use protocol::api::{KEYS_LACKING_SHOWN, LackingKey, MemberWraps};
use protocol::model::{ModelRecord, Recipient};
use protocol::{MemberId, ModelName};
use std::collections::BTreeMap;

/// Returns whether a member holds a wrap of the model's key, and so can share it.
fn is_held_by_member(cluster: &Cluster, record: &ModelRecord) -> bool {
    let wraps = cluster.wraps.get(&record.root);
    wraps.is_some_and(|wraps| wraps.keys().any(|recipient| matches!(recipient, Recipient::Member(_))))
}

/// Returns every party that may hold keys: members and workers.
fn all_recipients(cluster: &Cluster) -> Vec<Recipient> {
    let state = cluster.circle_state();
    state.into_iter().flat_map(human_chain::recipients).map(|(recipient, _)| recipient).collect()
}

/// Returns the parties of `all` that have no wrap of the model's key.
fn lacking<'a>(
    cluster: &'a Cluster,
    record: &'a ModelRecord,
    all: &'a [Recipient],
) -> impl Iterator<Item = &'a Recipient> {
    // Wraps of departed parties are dropped, so a model with as many wraps as parties lacks none.
    let complete = cluster.wraps.get(&record.root).is_some_and(|wraps| wraps.len() >= all.len());
    let asked: &[Recipient] = if complete { &[] } else { all };
    debug_assert!(asked.len() <= all.len(), "only parties of the circle are asked");
    asked.iter().filter(|recipient| cluster.wrap_of(&record.root, recipient).is_none())
}

/// Returns the keys that a member can share and others lack, and the models whose key no member holds. The
/// answer names at most `recipients_max` recipients in all.
#[must_use]
pub fn member_wraps(cluster: &Cluster, member: &MemberId, recipients_max: usize) -> MemberWraps {
    let (all, own) = (all_recipients(cluster), Recipient::Member(member.clone()));
    let mut answer = MemberWraps { lacking: Vec::new(), keyless: Vec::new() };
    let mut left = recipients_max;
    for record in cluster.models.values() {
        if !is_held_by_member(cluster, record) {
            answer.keyless.push(record.name.clone());
            continue;
        }
        let Some(wrap) = cluster.wrap_of(&record.root, &own) else { continue };
        let recipients: Vec<Recipient> = lacking(cluster, record, &all).take(left).cloned().collect();
        if !recipients.is_empty() {
            left -= recipients.len();
            answer.lacking.push(LackingKey { model: record.name.clone(), wrap: wrap.clone(), recipients });
        }
    }
    debug_assert!(left <= recipients_max, "the answer names no more than it may");
    answer
}

/// Returns the models whose key a member holds and a recipient lacks, for people: the first few of each
/// recipient.
#[must_use]
pub(crate) fn keys_lacking(cluster: &Cluster) -> BTreeMap<Recipient, Vec<ModelName>> {
    let all = all_recipients(cluster);
    let mut found: BTreeMap<Recipient, Vec<ModelName>> = BTreeMap::new();
    for record in cluster.models.values().filter(|record| is_held_by_member(cluster, record)) {
        for recipient in lacking(cluster, record, &all) {
            let names = found.entry(recipient.clone()).or_default();
            if names.len() < KEYS_LACKING_SHOWN {
                names.push(record.name.clone());
            }
        }
    }
    let is_shown = |names: &Vec<ModelName>| (1..=KEYS_LACKING_SHOWN).contains(&names.len());
    debug_assert!(found.values().all(is_shown), "a recipient that lacks a key has a first few names");
    found
}
