//! Placement of shards on stores, with the proof that the loss of any one failure domain is survived. Pure.

use crate::error::PlacementError;
use protocol::model::{ErasureCode, SHARDS_OF_A_KIND_MAX, StoreReference};
use std::collections::{BTreeMap, BTreeSet};

/// Limit on the shards in one failure domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlacementRule {
    /// Maximum number of shards of one segment in one failure domain. At most m, or losing one domain loses
    /// the model.
    pub shards_per_domain_max: u8,
}

/// Chooses one store per shard, in shard order, spread as evenly over failure domains as the stores allow.
/// Proves the rule before anything is written: the loss of any one domain leaves at least k shards.
///
/// # Errors
/// [`PlacementError`] describes the condition that the stores do not meet.
pub fn place(
    stores: &[StoreReference],
    code: ErasureCode,
    rule: PlacementRule,
) -> Result<Vec<StoreReference>, PlacementError> {
    let ErasureCode { data, parity } = code;
    let needed = code.shards();
    if !(1..=SHARDS_OF_A_KIND_MAX).contains(&data) || parity > SHARDS_OF_A_KIND_MAX {
        return Err(PlacementError::Code { data, parity });
    }
    let allowed = rule.shards_per_domain_max;
    if allowed == 0 || allowed > parity {
        return Err(PlacementError::Rule { data, parity, allowed });
    }
    let mut urls = BTreeSet::new();
    if let Some(twice) = stores.iter().find(|store| !urls.insert(store.url.trim_end_matches('/'))) {
        return Err(PlacementError::Duplicate { url: twice.url.clone() });
    }
    if stores.len() < needed {
        return Err(PlacementError::Stores { data, parity, needed, given: stores.len() });
    }
    let chosen = spread(stores, needed, usize::from(allowed));
    if chosen.len() < needed {
        return Err(PlacementError::Domains { placed: chosen.len(), needed, allowed });
    }
    assert!(survives_any_domain(&chosen, code), "a placement within the rule survives any one domain");
    Ok(chosen)
}

/// Takes one store of each domain in turn, so that neighbouring shards are in different domains.
fn spread(stores: &[StoreReference], needed: usize, allowed: usize) -> Vec<StoreReference> {
    debug_assert!(allowed > 0, "a domain may hold a shard");
    let mut domains: BTreeMap<&str, Vec<&StoreReference>> = BTreeMap::new();
    for store in stores {
        domains.entry(&store.failure_domain).or_default().push(store);
    }
    let rounds = (0..allowed).flat_map(|round| domains.values().filter_map(move |of| of.get(round)));
    rounds.take(needed).map(|store| (*store).clone()).collect()
}

/// Returns whether at least k shards remain after the loss of any one domain.
pub(crate) fn survives_any_domain(placement: &[StoreReference], code: ErasureCode) -> bool {
    debug_assert_eq!(placement.len(), code.shards(), "a store per shard");
    let domains: BTreeSet<&str> = placement.iter().map(|store| store.failure_domain.as_str()).collect();
    let left = |lost: &str| placement.iter().filter(|store| store.failure_domain != lost).count();
    domains.iter().all(|lost| left(lost) >= usize::from(code.data))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn stores(domains: &[&str]) -> Vec<StoreReference> {
        let store = |(i, domain): (usize, &&str)| StoreReference {
            url: format!("file:///{i}"),
            failure_domain: (*domain).into(),
        };
        domains.iter().enumerate().map(store).collect()
    }

    fn check(domains: &[&str], data: u8, parity: u8, max: u8) -> Result<Vec<String>, PlacementError> {
        let rule = PlacementRule { shards_per_domain_max: max };
        let placed = place(&stores(domains), ErasureCode { data, parity }, rule)?;
        Ok(placed.into_iter().map(|store| store.failure_domain).collect())
    }

    #[test]
    fn six_stores_behind_three_nodes_hold_four_plus_two() {
        let placed = check(&["a", "a", "b", "b", "c", "c"], 4, 2, 2).expect("two per node");
        assert_eq!(placed, ["a", "b", "c", "a", "b", "c"]);
    }

    #[test]
    fn an_impossible_placement_names_its_missing_condition() {
        let text = |result: Result<_, PlacementError>| result.expect_err("refused").to_string();
        let few = text(check(&["a", "b", "c"], 4, 2, 2));
        assert_eq!(few, "too few stores: 6 are needed for 4+2, 3 are given");
        let narrow = text(check(&["a", "a", "a", "a", "b", "b"], 4, 2, 2));
        assert_eq!(narrow, "too few failure domains: 4 of 6 shards can be placed with at most 2 per domain");
        let lax = text(check(&["a"; 6], 4, 2, 6));
        assert!(lax.contains("survives the loss of 2 only"), "{lax}");
        assert!(text(check(&["a", "b"], 1, 1, 0)).contains("allows 0"));
        assert!(text(check(&["a", "b"], 0, 1, 1)).contains("out of range"));
        assert!(text(check(&["a", "b"], 1, 33, 1)).contains("out of range"));
    }

    #[test]
    fn one_store_under_two_spellings_is_not_two() {
        let mut twice = stores(&["a", "b"]);
        twice[1].url = "file:///0/".into();
        let rule = PlacementRule { shards_per_domain_max: 1 };
        let error = place(&twice, ErasureCode { data: 1, parity: 1 }, rule).expect_err("twice");
        assert_eq!(error, PlacementError::Duplicate { url: "file:///0/".into() });
    }

    proptest! {
        #[test]
        fn every_placement_survives_the_loss_of_any_one_domain(
            domains in proptest::collection::vec("[a-e]", 1..14),
            data in 1u8..6,
            parity in 0u8..5,
            max in 0u8..6,
        ) {
            let names: Vec<&str> = domains.iter().map(String::as_str).collect();
            let code = ErasureCode { data, parity };
            let rule = PlacementRule { shards_per_domain_max: max };
            if let Ok(placed) = place(&stores(&names), code, rule) {
                prop_assert_eq!(placed.len(), code.shards());
                prop_assert!(survives_any_domain(&placed, code));
                let urls: BTreeSet<_> = placed.iter().map(|store| &store.url).collect();
                prop_assert_eq!(urls.len(), placed.len());
            }
        }
    }
}
