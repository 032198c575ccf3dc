//! Tests of the halt file: round trips, damage, and halts that do not verify yet.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::agent::core::testing::{NOW, TestCircle};
use human_chain::{MemberSecret, lift};
use protocol::governance::Change;
use protocol::halt::{HALTS_PER_MEMBER_MAX, HaltScope};
use std::fs;
use std::os::unix::fs::PermissionsExt;

/// A node's directory and its circle.
struct HaltDirectory {
    directory: tempfile::TempDir,
    world: TestCircle,
}

impl HaltDirectory {
    fn new() -> Self {
        let world = TestCircle::new(vec![], &["127.0.0.1:1".into()], NOW);
        Self { directory: tempfile::tempdir().unwrap(), world }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("halts")
    }

    fn open(&self) -> Result<HaltFile, AgentError> {
        HaltFile::open(self.path(), self.world.state.id())
    }

    /// Returns a file with one halt by each founder.
    fn filled(&self) -> HaltFile {
        let mut file = self.open().unwrap();
        for founder in 0..3 {
            let signed = self.world.halt(founder, HaltScope::Circle, 1);
            assert_eq!(file.accept(&self.world.state, HaltSource::Replica(0), signed), Ok(true));
        }
        file.save().unwrap();
        file
    }

    fn refusal(&self) -> String {
        let error = self.open().expect_err("it must not be trusted");
        assert_eq!(error.code(), error_code::AGENT_STATE_UNUSABLE);
        error.to_string()
    }
}

#[test]
fn halts_come_back_from_the_disk() {
    let node = HaltDirectory::new();
    assert_eq!(node.open().unwrap().book().in_force(&node.world.state).count(), 0, "no file yet");
    let file = node.filled();
    let again = node.open().unwrap();
    let ids = |file: &HaltFile| file.book().signed().map(|(id, _)| *id).collect::<Vec<_>>();
    assert_eq!((ids(&again), ids(&file).len()), (ids(&file), 3));
    assert_eq!(fs::metadata(node.path()).unwrap().permissions().mode() & 0o777, 0o600);
}

/// The attack: a truncated file makes the node forget a halt.
#[test]
fn a_damaged_file_is_no_empty_one() {
    let node = HaltDirectory::new();
    node.filled();
    let bytes = fs::read(node.path()).unwrap();
    for length in [0, 1, 31, 32, 33, bytes.len() / 2, bytes.len() - 1] {
        fs::write(node.path(), &bytes[..length]).unwrap();
        assert!(node.refusal().ends_with("halts: its bytes are damaged"), "{length}: {}", node.refusal());
    }
    let mut altered = bytes.clone();
    altered[40] ^= 1;
    fs::write(node.path(), altered).unwrap();
    assert!(node.refusal().ends_with("its bytes are damaged"));
    let other = TestCircle::new(vec![], &["127.0.0.1:1".into()], NOW);
    fs::write(node.path(), &bytes).unwrap();
    let foreign = HaltFile::open(node.path(), other.state.id()).expect_err("another circle");
    assert!(foreign.to_string().ends_with("belongs to another circle"), "{foreign}");
    assert!(node.open().is_ok(), "the positive control");
    fs::remove_file(node.path()).unwrap();
    assert_eq!(node.open().unwrap().book().last(), 0, "without the check, damage would mean no halts");
}

#[test]
fn a_halt_of_a_member_to_come_is_judged_again_with_each_decision() {
    let mut node = HaltDirectory::new();
    let mut file = node.open().unwrap();
    let secret = MemberSecret::generate(&[4; 64]);
    let early = node.world.halt_by("dave", &secret, HaltScope::Circle, 1);
    let refused = file.accept(&node.world.state, HaltSource::Replica(1), early.clone());
    assert!(matches!(refused, Err(ChainError::NotAMember(_))), "{refused:?}");
    file.follow(&node.world.state);
    assert_eq!(file.book().in_force(&node.world.state).count(), 0, "nothing has been decided");
    let dave = human_chain::prove_keys(&secret, "dave".parse().unwrap());
    let members = node.world.state.members().cloned().chain([dave.member]).collect();
    let policy = node.world.state.policy().clone();
    let proofs = [("dave".parse().unwrap(), dave.proof)].into();
    node.world.decide(Change::SetMembers { members, policy, proofs });
    file.follow(&node.world.state);
    assert_eq!(file.book().in_force(&node.world.state).count(), 1);
    file.save().unwrap();
    assert!(node.open().unwrap().book().contains(&early.halt.id()));
}

/// Gives carol the keys of this secret, with the votes of alice and bob.
fn replace_keys_of_carol(world: &mut TestCircle, secret: &MemberSecret) {
    let renewed = human_chain::prove_keys(secret, "carol".parse().unwrap());
    let mut members: Vec<_> = world.state.members().cloned().collect();
    for member in members.iter_mut().filter(|member| member.id == renewed.member.id) {
        *member = renewed.member.clone();
    }
    let (policy, proofs) = (world.state.policy().clone(), [(renewed.member.id, renewed.proof)].into());
    world.decide(Change::SetMembers { members, policy, proofs });
}

/// A replica that is ahead sends each halt once. A suspended member was given new keys and halts by them.
#[test]
fn a_halt_by_the_new_keys_of_a_suspended_member_is_judged_again_with_each_decision() {
    let mut node = HaltDirectory::new();
    let mut file = node.open().unwrap();
    node.world.decide(Change::SuspendMember { member: "carol".parse().unwrap(), halts: [].into() });
    let secret = MemberSecret::generate(&[4; 64]);
    let early = node.world.halt_by("carol", &secret, HaltScope::Circle, 1);
    let by_old_keys = node.world.halt(2, HaltScope::Circle, 2);
    for signed in [&early, &by_old_keys] {
        let refused = file.accept(&node.world.state, HaltSource::Replica(1), signed.clone());
        assert!(matches!(refused, Err(ChainError::MemberSuspended(_))), "{refused:?}");
    }
    replace_keys_of_carol(&mut node.world, &secret);
    file.follow(&node.world.state);
    assert!(file.book().contains(&early.halt.id()), "it counts by the keys in force");
    assert!(!file.book().contains(&by_old_keys.halt.id()), "the positive control: the old keys do not");
}

/// The keys of a member were rotated after its halt. A node that was away takes the copy that the member
/// signed again, and one that took the halt before keeps this copy too.
#[test]
fn a_halt_of_rotated_keys_is_taken_once_its_member_signed_it_again() {
    let mut node = HaltDirectory::new();
    let mut taken = node.open().unwrap();
    let old = node.world.halt(2, HaltScope::Circle, 1);
    assert_eq!(taken.accept(&node.world.state, HaltSource::Replica(0), old.clone()), Ok(true));
    let secret = MemberSecret::generate(&[4; 64]);
    replace_keys_of_carol(&mut node.world, &secret);
    let state = &node.world.state;
    let mut late = HaltFile::open(node.directory.path().join("late"), state.id()).unwrap();
    let refused = late.accept(state, HaltSource::Replica(0), old.clone());
    assert!(matches!(refused, Err(ChainError::SignatureInvalid(_))), "{refused:?}");
    let again = human_chain::sign_halt(&secret, old.halt.clone());
    for file in [&mut late, &mut taken] {
        assert_eq!(file.accept(state, HaltSource::Replica(1), again.clone()), Ok(true));
        assert_eq!(file.accept(state, HaltSource::Replica(1), old.clone()), Ok(false), "it is known");
        file.save().unwrap();
        let kept: Vec<_> = file.book().signed().map(|(_, signed)| signed.clone()).collect();
        assert_eq!(kept, std::slice::from_ref(&again));
    }
    let copies: Vec<_> = node.open().unwrap().book().signed().map(|(_, signed)| signed.clone()).collect();
    assert_eq!(copies, [again], "on the disk too");
}

#[test]
fn a_lift_makes_room_for_a_halt_that_was_over_the_limit() {
    let mut node = HaltDirectory::new();
    let mut file = node.open().unwrap();
    let halts: Vec<_> = (0..=HALTS_PER_MEMBER_MAX as u64)
        .map(|number| node.world.halt(0, HaltScope::Region("there".into()), number))
        .collect();
    let outcomes: Vec<bool> = halts
        .iter()
        .map(|signed| file.accept(&node.world.state, HaltSource::Operator, signed.clone()).is_ok())
        .collect();
    assert_eq!(outcomes.iter().filter(|taken| **taken).count(), HALTS_PER_MEMBER_MAX);
    assert_eq!(outcomes.last(), Some(&false), "one over the limit");
    node.world.decide(lift(vec![halts[0].halt.clone()]));
    file.follow(&node.world.state);
    let stands = |file: &HaltFile, at: usize| file.book().contains(&halts[at].halt.id());
    assert_eq!((stands(&file, 0), stands(&file, HALTS_PER_MEMBER_MAX)), (false, true));
    let replayed = file.accept(&node.world.state, HaltSource::Replica(0), halts[0].clone());
    assert!(matches!(replayed, Err(ChainError::HaltLifted(_))), "{replayed:?}");
}

#[test]
fn a_failed_write_is_tried_again() {
    let node = HaltDirectory::new();
    let mut file = node.open().unwrap();
    let obstacle = node.directory.path().join("halts.new");
    fs::create_dir(&obstacle).unwrap();
    let signed = node.world.halt(0, HaltScope::Circle, 1);
    file.accept(&node.world.state, HaltSource::Operator, signed).unwrap();
    assert!(file.save().is_err());
    assert_eq!(file.book().in_force(&node.world.state).count(), 1, "it is obeyed all the same");
    assert_eq!(node.open().unwrap().book().last(), 0);
    fs::remove_dir(&obstacle).unwrap();
    file.save().unwrap();
    assert_eq!(node.open().unwrap().book().last(), 1);
}
