//! Fuzz target of the state machine: no bytes in the log make it panic, neither on an empty cluster nor on
//! one in which every kind of object exists. The circle satisfies its invariants after every command.
//!
//! An input that begins like a command (a map of three) is used unchanged. Any other input selects a sample
//! command to edit, another one that supplies parts, and the edits: random bytes alone would hardly ever be
//! canonical.
#![no_main]

#[allow(unused_imports)]
#[path = "../../scheduler/tests/cluster/common/mod.rs"]
mod common;

use ciborium::value::Value as Cbor;
use common::World;
use common::samples::{Edit, commands, edit, judge, running, tree};
use libfuzzer_sys::fuzz_target;
use scheduler::{Cluster, apply_bytes};
use std::sync::OnceLock;

/// First byte of every command: a map of three fields.
const COMMAND: u8 = 0xa3;
/// Maximum number of edits of one input.
const EDITS_MAX: usize = 8;

fn samples() -> &'static (World, Vec<Cbor>) {
    static SAMPLES: OnceLock<(World, Vec<Cbor>)> = OnceLock::new();
    SAMPLES.get_or_init(|| {
        let world = running();
        let trees = commands(&world).iter().map(|(_, command)| tree(command)).collect();
        (world, trees)
    })
}

fn edited(bytes: &[u8]) -> Option<Vec<u8>> {
    let (_, trees) = samples();
    let ([which, donor], rest) = bytes.split_first_chunk()?;
    let mut value = trees[usize::from(*which) % trees.len()].clone();
    for chunk in rest.as_chunks::<5>().0.iter().take(EDITS_MAX) {
        let [kind, at @ .., with_high, with_low] = *chunk;
        let (at, with) = (u16::from_be_bytes(at), u16::from_be_bytes([with_high, with_low]));
        edit(&mut value, &trees[usize::from(*donor) % trees.len()], Edit { kind, at, with });
    }
    Some(protocol::canonical::to_bytes(&value))
}

/// Checks the invariants of the circle, if one is founded.
fn check_circle(cluster: &Cluster) {
    if let Some(state) = cluster.circle_state() {
        assert_eq!(state.check_invariants(), Ok(()));
    }
}

fuzz_target!(|bytes: &[u8]| {
    let command = if bytes.first() == Some(&COMMAND) { Some(bytes.to_vec()) } else { edited(bytes) };
    let Some(command) = command else { return };
    if let Ok(cluster) = judge(&samples().0, &command) {
        check_circle(&cluster);
    }
    let mut cluster = Cluster::default();
    let _ = apply_bytes(&mut cluster, 1, &command);
    check_circle(&cluster);
    assert_eq!(cluster.check_invariants(), Ok(()));
    assert_eq!(Cluster::default().check_succession(&cluster), Ok(()));
    assert!(Cluster::from_snapshot(&cluster.to_snapshot()).is_ok());
});
