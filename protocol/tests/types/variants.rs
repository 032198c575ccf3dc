//! Tests of enumerations: each variant has one name, in text for people, in JSON and in canonical form, and
//! no other name is read as it.

use crate::governed::{CHOICES, CLASSES, ROLES, SCOPES};
use crate::stored::{JOB_SLOT_STATES, SLOT_STATES, WORKER_STATES};
use crate::workloads::{EXPIRIES, ISOLATIONS, RUNTIMES, TASKS};
use protocol::api::ProposalState;
use protocol::canonical::{from_bytes, to_bytes};
use protocol::error_code;
use protocol::sandbox::SandboxGo;
use serde::{Serialize, de::DeserializeOwned};
use std::fmt::{Debug, Display};

const PROPOSAL_STATES: [ProposalState; 6] = [
    ProposalState::Open,
    ProposalState::Approved,
    ProposalState::Rejected,
    ProposalState::Expired,
    ProposalState::Stale,
    ProposalState::Waiting,
];

/// Checks that these are the names of the variants in both forms, in this order, and that no other spelling
/// of a name, and no name of another enumeration, is read.
fn named<T>(variants: &[T], names: &str)
where
    T: Serialize + DeserializeOwned + PartialEq + Debug,
{
    let names: Vec<&str> = names.split(' ').collect();
    assert_eq!(names.len(), variants.len(), "{names:?}");
    for (variant, name) in variants.iter().zip(&names) {
        assert_eq!(serde_json::to_value(variant).unwrap(), *name);
        assert_eq!(serde_json::from_value::<T>((*name).into()).ok().as_ref(), Some(variant));
        assert_eq!(to_bytes(variant), to_bytes(*name), "the canonical form is the name");
        assert_eq!(from_bytes::<T>(&to_bytes(*name), 64).as_ref(), Ok(variant));
        for wrong in [name.to_uppercase(), format!("{name} "), format!(" {name}"), format!("{name}s")] {
            unknown::<T>(&wrong);
        }
        unknown::<T>(&name[1..]);
        unknown::<T>(&format!("{}{}", name[..1].to_uppercase(), &name[1..]));
    }
    for other in ["", "null", "0", "true", "other", "unknown"] {
        unknown::<T>(other);
    }
    let all: std::collections::BTreeSet<_> = names.iter().collect();
    assert_eq!(all.len(), names.len(), "no two variants share a name");
}

fn unknown<T: Serialize + DeserializeOwned + Debug>(name: &str) {
    let json = serde_json::from_value::<T>(name.into());
    assert!(json.is_err(), "{name:?} is read as {json:?}");
    let canonical = from_bytes::<T>(&to_bytes(name), 64);
    assert!(canonical.is_err(), "{name:?} is read as {canonical:?}");
}

/// Checks that people read the names that JSON has, and that columns of a listing can be aligned.
fn shown<T: Serialize + Display>(variants: &[T]) {
    for variant in variants {
        let name = serde_json::to_value(variant).unwrap();
        assert_eq!(name, variant.to_string());
        assert_eq!(format!("{variant:>12}|{variant:<12}|"), {
            let name = name.as_str().unwrap();
            format!("{name:>12}|{name:<12}|")
        });
    }
}

#[test]
fn variants_have_their_names_in_every_form() {
    named(&CLASSES, "routine sensitive personal");
    named(&CHOICES, "approve reject");
    named(&ROLES, "worker storage gateway");
    named(&SCOPES, "read propose submit");
    named(&TASKS, "embed generate rerank");
    named(&RUNTIMES, "candle process");
    named(&ISOLATIONS, "none same_uid full");
    named(&EXPIRIES, "hold drain");
    named(&SLOT_STATES, "loading starting ready draining released failed refused");
    named(&JOB_SLOT_STATES, "preparing ready running ended");
    named(&WORKER_STATES, "loading ready draining failed");
    named(&PROPOSAL_STATES, "open approved rejected expired stale waiting");
    named(&[SandboxGo::Go], "go");
}

#[test]
fn people_read_the_names_that_programs_write() {
    shown(&CLASSES);
    shown(&CHOICES);
    shown(&ROLES);
    shown(&SCOPES);
    shown(&ISOLATIONS);
    shown(&SLOT_STATES);
    shown(&PROPOSAL_STATES);
    shown(error_code::ALL);
}

/// A later variant is stronger: placement compares isolations by their order.
#[test]
fn isolations_are_ordered_by_strength() {
    assert!(ISOLATIONS.is_sorted_by(|weak, strong| weak < strong));
    assert!(CLASSES.is_sorted_by(|less, more| less < more), "a sensitive change follows a routine one");
}
