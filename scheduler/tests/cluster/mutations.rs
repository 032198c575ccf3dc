//! Mutation tests: nearly correct commands, applied to a cluster in which everything is there.

use crate::common::World;
use crate::common::samples::{Edit, commands, count, edit, judge, running, tree};
use ciborium::value::Value as Cbor;
use proptest::prelude::*;
use protocol::canonical::to_bytes;
use protocol::error_code::COMMAND_INVALID;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;

/// Returns the cluster, and the trees of the commands that fit it.
fn samples() -> &'static (World, Vec<(&'static str, Cbor)>) {
    static SAMPLES: OnceLock<(World, Vec<(&'static str, Cbor)>)> = OnceLock::new();
    SAMPLES.get_or_init(|| {
        let world = running();
        let trees = commands(&world).iter().map(|(name, command)| (*name, tree(command))).collect();
        (world, trees)
    })
}

/// Returns a command by its number, edited with parts of another.
fn edited(which: usize, donor: usize, edits: &[Edit]) -> Vec<u8> {
    let (_, trees) = samples();
    let mut value = trees[which % trees.len()].1.clone();
    for one in edits {
        edit(&mut value, &trees[donor % trees.len()].1, *one);
    }
    to_bytes(&value)
}

fn any_edit() -> impl Strategy<Value = Edit> {
    (0..5u8, any::<u16>(), any::<u16>()).prop_map(|(kind, at, with)| Edit { kind, at, with })
}

#[test]
fn every_sample_is_executed_but_a_second_founding() {
    let (world, trees) = samples();
    for (name, tree) in trees {
        let outcome = judge(world, &to_bytes(tree)).map(|_| "taken").unwrap_or_else(|code| code.as_str());
        let expected = if *name == "found" { "circle-already-founded" } else { "taken" };
        assert_eq!(outcome, expected, "{name}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn no_edit_of_a_command_makes_a_running_cluster_panic(
        which in any::<usize>(), donor in any::<usize>(), edits in prop::collection::vec(any_edit(), 1..4),
    ) {
        let _ = judge(&samples().0, &edited(which, donor, &edits));
    }

    #[test]
    fn no_flipped_bit_and_no_cut_makes_a_running_cluster_panic(
        which in any::<usize>(), bits in prop::collection::vec(any::<usize>(), 0..3), cut in any::<usize>(),
    ) {
        let mut bytes = edited(which, 0, &[]);
        for bit in &bits {
            let bit = bit % (bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        if bits.is_empty() {
            bytes.truncate(cut % bytes.len());
        }
        let _ = judge(&samples().0, &bytes);
    }
}

/// Edits every part of every command in every way: no part is trusted. For each kind of command some edits
/// are judged by a rule, not by form alone.
#[test]
fn every_part_of_every_command_may_be_wrong() {
    const EDITS: [(u8, u16); 9] = [(0, 0), (0, 2), (0, 3), (0, 8), (1, 7), (2, 0), (3, 0), (4, 0), (4, 1)];
    let (world, trees) = samples();
    let mut codes: BTreeMap<&str, BTreeMap<&str, u32>> = BTreeMap::new();
    for (which, (name, tree)) in trees.iter().enumerate() {
        // Many edits change nothing, or give the same bytes.
        let mut seen = BTreeSet::from([to_bytes(tree)]);
        for at in 0..count(tree) {
            for (kind, with) in EDITS {
                let bytes = edited(which, which + at, &[Edit { kind, at: at as u16, with }]);
                if !seen.insert(bytes.clone()) {
                    continue;
                }
                let outcome = judge(world, &bytes).map(|_| "taken").unwrap_or_else(|code| code.as_str());
                *codes.entry(name).or_default().entry(outcome).or_default() += 1;
            }
        }
    }
    for (name, outcome) in &codes {
        let beyond = outcome.keys().any(|code| *code != COMMAND_INVALID.as_str());
        assert!(beyond, "{name}: {outcome:?}");
    }
    let reached: BTreeSet<_> = codes.values().flat_map(|outcome| outcome.keys()).collect();
    assert!(reached.len() >= 14, "{} outcomes: {codes:#?}", reached.len());
}
