//! Tests of the chain on disk: appended bundles, refused bundles, and damage.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::agent::core::testing::{NOW, TestCircle, service};
use host::files::crash;
use protocol::ModelRoot;
use protocol::governance::{Change, Policy};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// A circle and the directory of a node's copy of its chain.
struct ChainDirectory {
    directory: tempfile::TempDir,
    world: TestCircle,
}

impl ChainDirectory {
    fn new() -> Self {
        let world = TestCircle::new(vec![], &["127.0.0.1:1".into()], NOW);
        Self { directory: tempfile::tempdir().unwrap(), world }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("chain")
    }

    fn open(&self) -> Chain {
        Chain::open(self.path(), self.world.genesis.clone(), self.world.state.id()).unwrap()
    }

    /// Makes the circle deploy as many versions of a service, and returns the bundles.
    fn deploy(&mut self, count: u8) -> Vec<Bundle> {
        let services = (0..count).map(|n| service("chat", ModelRoot(Digest::of(&[n])), 4));
        services.map(|service| self.world.deploy(&service)).collect()
    }

    /// Appends each bundle alone, which gives it a file of its own.
    fn append_singly(&self, bundles: &[Bundle]) -> Chain {
        let mut chain = self.open();
        for bundle in bundles {
            assert_eq!(chain.append(vec![bundle.clone()], NOW).unwrap(), 1);
        }
        chain
    }

    fn files(&self) -> Vec<String> {
        let names = fs::read_dir(self.path()).unwrap().map(|entry| entry.unwrap().file_name());
        let mut names: Vec<String> = names.map(|name| name.into_string().unwrap()).collect();
        names.sort();
        names
    }
}

fn stored(chain: &Chain) -> Vec<Bundle> {
    chain.stored_bundles().collect()
}

#[test]
fn appended_bundles_are_there_after_a_restart() {
    let mut node = ChainDirectory::new();
    let bundles = node.deploy(3);
    assert_eq!(node.open().append(bundles[..2].to_vec(), NOW).unwrap(), 2);
    let mut chain = node.open();
    assert_eq!((chain.state().length(), stored(&chain).as_slice()), (2, &bundles[..2]));
    assert_eq!(chain.append(vec![], NOW).unwrap(), 0);
    assert_eq!(chain.append(bundles[2..].to_vec(), NOW).unwrap(), 1);
    let again = node.open();
    assert_eq!(again.state(), &node.world.state);
    assert_eq!(stored(&again), bundles);
    assert!(bundles.iter().all(|bundle| again.admitted().contains(&bundle.certificate.digest())));
    assert_eq!(node.files(), ["0000000001", "0000000003", "head"], "a page for each answer");
}

#[test]
fn a_genesis_of_another_circle_is_refused() {
    let node = ChainDirectory::new();
    let other = CircleId(Digest::of(b"another"));
    let error = Chain::open(node.path(), node.world.genesis.clone(), other).expect_err("another circle");
    assert!(matches!(error, AgentError::Genesis(_)), "{error:?}");
    assert!(!node.path().exists(), "nothing is written before the genesis is verified");
}

#[test]
fn bundles_before_a_refused_one_count_and_the_others_do_not() {
    type Edit = fn(&mut Bundle);
    let edits: [(Edit, _); 3] = [
        (|bundle| drop(bundle.certificate.ballots.pop()), error_code::QUORUM_NOT_REACHED),
        (|bundle| bundle.version = 99, error_code::GOVERNANCE_INVALID),
        (|bundle| bundle.certificate.proposal.reason = "another".into(), error_code::BALLOT_MISMATCH),
    ];
    for (edit, code) in edits {
        let mut node = ChainDirectory::new();
        let mut bundles = node.deploy(3);
        edit(&mut bundles[1]);
        let mut chain = node.open();
        let refused = chain.append(bundles.clone(), NOW).expect_err("the second is refused");
        assert_eq!((refused.refusal.code, refused.certificate), (code, bundles[1].certificate.digest()));
        assert_eq!(chain.state().length(), 1, "{code}");
        assert_eq!(node.files(), ["0000000001", "head"], "{code}");
    }
}

#[test]
fn a_damaged_file_ends_the_chain_which_is_then_fetched_again() {
    let mut node = ChainDirectory::new();
    let bundles = node.deploy(3);
    let mut chain = node.append_singly(&bundles);
    chain.complete_at(NOW);
    for content in [&b"garbage"[..], b"", &canonical::to_bytes(&bundles[2])] {
        fs::write(node.path().join("0000000002"), content).unwrap();
        let mut chain = node.open();
        assert_eq!(chain.state().length(), 1);
        assert_eq!(node.files(), ["0000000001", "head", "synced"], "later files go too");
        assert_eq!(chain.check_whole().unwrap_err().code, error_code::HISTORY_SHORTER);
        assert_eq!(chain.append(bundles[1..].to_vec(), NOW).unwrap(), 2, "old bundles are not late");
        assert_eq!(chain.check_whole(), Ok(()));
        assert_eq!(node.open().state(), &node.world.state);
    }
}

/// Returns another future of the same circle, before its first decision.
fn future(world: &TestCircle) -> TestCircle {
    let mut other = ChainDirectory::new().world;
    other.genesis = world.genesis.clone();
    other.state = CircleState::found(&world.genesis, None).unwrap();
    other
}

/// Returns the bundles of the circle after the same first decision and other ones since.
fn forked(world: &TestCircle, first: &Bundle, count: u8) -> Vec<Bundle> {
    let mut other = future(world);
    let approved = verify_replay(&other.state, &first.certificate).unwrap();
    other.state.advance(approved).unwrap();
    other.bundles.push(first.clone());
    for n in 1..count {
        other.deploy(&service("other", ModelRoot(Digest::of(&[n])), 4));
    }
    other.bundles
}

/// The attack: a damaged chain is fetched again from control that cut or replaced its end. The positive
/// control is a node without a record of its highest head, which takes either.
#[test]
fn a_damaged_chain_comes_back_neither_shorter_nor_forked() {
    let damaged = |keep_head: bool| {
        let mut node = ChainDirectory::new();
        let bundles = node.deploy(3);
        node.append_singly(&bundles);
        fs::write(node.path().join("0000000002"), b"garbage").unwrap();
        if !keep_head {
            fs::remove_file(node.path().join(HEAD)).unwrap();
        }
        let chain = node.open();
        (node, chain, bundles)
    };
    let (_node, mut chain, bundles) = damaged(true);
    chain.append(bundles[1..2].to_vec(), NOW).unwrap();
    assert_eq!(chain.check_whole().unwrap_err().code, error_code::HISTORY_SHORTER);
    let (node, mut chain, bundles) = damaged(true);
    let refused = chain.append(forked(&node.world, &bundles[0], 3)[1..].to_vec(), NOW).expect_err("a fork");
    assert_eq!(refused.refusal.code, error_code::HISTORY_FORKED);
    assert_eq!((chain.state().length(), chain.admitted().len()), (0, 0), "none of it can be trusted");
    assert_eq!(node.files(), ["head"]);
    assert_eq!(chain.check_whole().unwrap_err().code, error_code::HISTORY_SHORTER);
    assert_eq!(chain.append(bundles, NOW).unwrap(), 3);
    assert_eq!((chain.check_whole(), chain.state()), (Ok(()), &node.world.state));

    let (_node, mut chain, bundles) = damaged(false);
    chain.append(bundles[1..2].to_vec(), NOW).unwrap();
    assert_eq!(chain.check_whole(), Ok(()));
    let (node, mut chain, bundles) = damaged(false);
    let fork = forked(&node.world, &bundles[0], 3)[1..].to_vec();
    assert_eq!((chain.append(fork, NOW).unwrap(), chain.check_whole()), (2, Ok(())));
}

#[test]
fn a_chain_that_is_not_the_one_it_was_is_fetched_again() {
    let mut node = ChainDirectory::new();
    let bundles = node.deploy(3);
    node.open().append(bundles.clone(), NOW).unwrap();
    let mut page = Vec::new();
    for bundle in forked(&node.world, &bundles[0], 4) {
        let bundle = canonical::to_bytes(&bundle);
        page.extend([&(bundle.len() as u32).to_be_bytes()[..], &bundle].concat());
    }
    fs::write(node.path().join("0000000001"), page).unwrap();
    let mut chain = node.open();
    assert_eq!((chain.state().length(), node.files()), (0, vec!["head".to_string()]));
    assert_eq!(chain.append(bundles, NOW).unwrap(), 3);
    assert_eq!(node.open().check_whole(), Ok(()));
}

#[test]
fn a_damaged_head_stops_the_agent() {
    let mut node = ChainDirectory::new();
    let bundles = node.deploy(1);
    node.open().append(bundles, NOW).unwrap();
    let path = node.path().join(HEAD);
    let whole = fs::read(&path).unwrap();
    for bytes in [&b""[..], b"short", &whole[..whole.len() - 1], &[&[whole[0] ^ 1][..], &whole[1..]].concat()]
    {
        fs::write(&path, bytes).unwrap();
        let error = Chain::open(node.path(), node.world.genesis.clone(), node.world.state.id());
        assert_eq!(error.expect_err("damaged").code(), error_code::AGENT_STATE_UNUSABLE);
    }
    fs::write(&path, &whole).unwrap();
    assert_eq!(node.open().check_whole(), Ok(()));
}

#[test]
fn a_bundle_that_expired_before_a_complete_sync_is_refused() {
    let mut node = ChainDirectory::new();
    let bundles = node.deploy(1);
    let expired = bundles[0].certificate.proposal.expires_at.plus(CLOCK_GRACE_MS + 1);
    let mut chain = node.open();
    chain.complete_at(expired);
    // The time survives a restart, and so does the refusal.
    for mut chain in [chain, node.open()] {
        let refused = chain.append(bundles.clone(), NOW).expect_err("withheld until it expired");
        assert_eq!(refused.refusal.code, error_code::PROPOSAL_EXPIRED);
    }
}

/// The attack: a proposal that expired long ago is approved by a hostile quorum of the past and was never
/// admitted. A node without a past gets it after a later decision. The control shows that nothing but
/// that decision refuses it.
#[test]
fn what_expired_before_the_circle_last_signed_is_refused() {
    let evil = service("evil", ModelRoot(Digest::of(b"evil")), 4);
    let evil = Change::Deploy(Box::new(protocol::manifest::Manifest::Service(evil)));
    let origin = ChainDirectory::new();
    let withheld = origin.world.certify(evil);
    let expires = withheld.certificate.proposal.expires_at;
    for (later_ms, expected) in [(4 * CLOCK_GRACE_MS, Some(error_code::PROPOSAL_EXPIRED)), (0, None)] {
        let mut node = ChainDirectory { world: future(&origin.world), ..ChainDirectory::new() };
        node.deploy(1);
        node.world.now = expires.plus(later_ms);
        node.deploy(1);
        let mut chain = node.open();
        chain.append(node.world.bundles.clone(), NOW).unwrap();
        let refused = chain.append(vec![withheld.clone()], NOW).err();
        assert_eq!(refused.map(|refused| refused.refusal.code), expected, "{later_ms}");
    }
}

/// The attack: control hands a change of members on before its waiting time is over, when no veto could have
/// come. The positive control is a circle without a waiting time, and the node's own disk.
#[test]
fn attack_control_is_in_a_hurry_with_a_change_of_members() {
    const DAY_MS: u64 = 24 * 3600 * 1000;
    let change = |world: &TestCircle, veto_seconds| {
        let members = world.state.members().cloned().collect();
        let policy = Policy { veto_seconds, ..world.state.policy().clone() };
        Change::SetMembers { members, policy, proofs: [].into() }
    };
    let mut node = ChainDirectory::new();
    let hasty = node.world.decide(change(&node.world, 24 * 3600));
    let waits = node.world.decide(change(&node.world, 0));
    let mut chain = node.open();
    assert_eq!(chain.append(vec![hasty], NOW).unwrap(), 1, "the first change had no waiting time");
    for now in [NOW, NOW.plus(DAY_MS - CLOCK_GRACE_MS - 1)] {
        let refused = chain.append(vec![waits.clone()], now).expect_err("too soon");
        assert_eq!(refused.refusal.code, error_code::CHANGE_WAITS);
        assert_eq!((chain.state().epoch().0, chain.state().length()), (2, 1));
    }
    assert_eq!(chain.append(vec![waits], NOW.plus(DAY_MS)).unwrap(), 1);
    assert_eq!(node.open().state(), &node.world.state, "a replay from disk asks no clock");
}

/// The attack: one reading of a clock ten years ahead is recorded, and the clock is right again. The positive
/// control is the record before it is discarded.
#[test]
fn one_wrong_reading_of_a_clock_does_not_last() {
    let mut node = ChainDirectory::new();
    let bundles = node.deploy(1);
    let wrong = NOW.plus(10 * 365 * 24 * 3600 * 1000);
    node.open().complete_at(wrong);
    let mut chain = node.open();
    let refused = chain.append(bundles.clone(), NOW).expect_err("before it is discarded");
    assert_eq!(refused.refusal.code, error_code::PROPOSAL_EXPIRED);
    chain.discard_later_than(NOW);
    assert_eq!(read_synced(&node.path().join(SYNCED)), Millis(0), "durably");
    assert_eq!(chain.append(bundles, NOW).unwrap(), 1);
    // A time that is right stays.
    chain.complete_at(NOW);
    for now in [NOW, Millis(NOW.0 - CLOCK_GRACE_MS), NOW.plus(1)] {
        chain.discard_later_than(now);
        assert_eq!(chain.synced_at, NOW, "{now}");
    }
}

#[test]
fn the_time_of_a_sync_is_written_once_a_minute_and_never_falls() {
    let node = ChainDirectory::new();
    let mut chain = node.open();
    let path = node.path().join(SYNCED);
    for (at, written) in [
        (NOW, NOW),
        (NOW.plus(SYNCED_INTERVAL_MS - 1), NOW),
        (NOW.plus(SYNCED_INTERVAL_MS), NOW.plus(SYNCED_INTERVAL_MS)),
        (Millis(0), NOW.plus(SYNCED_INTERVAL_MS)),
    ] {
        chain.complete_at(at);
        assert_eq!(read_synced(&path), written, "after {at}");
    }
    assert_eq!(chain.synced_at, NOW.plus(SYNCED_INTERVAL_MS));
}

#[test]
fn a_time_that_cannot_be_read_refuses_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(SYNCED);
    assert_eq!(read_synced(&path), Millis(0), "no file");
    let long = "1".repeat(33);
    for (text, expected) in [("17", 17), (" 17\n", 17), ("", 0), ("-1", 0), ("many", 0), (&long, 0)] {
        fs::write(&path, text).unwrap();
        assert_eq!(read_synced(&path), Millis(expected), "`{text}`");
    }
    fs::write(&path, [0xff]).unwrap();
    assert_eq!(read_synced(&path), Millis(0), "not UTF-8");
}

#[test]
fn a_bundle_that_cannot_be_written_does_not_count() {
    let mut node = ChainDirectory::new();
    let bundles = node.deploy(1);
    let mut chain = node.open();
    fs::create_dir(node.path().join("0000000001.new")).unwrap();
    let refused = chain.append(bundles.clone(), NOW).expect_err("no space to write it");
    assert_eq!(refused.refusal.code, error_code::AGENT_STATE_UNUSABLE);
    assert_eq!(chain.state().length(), 0);
    fs::remove_dir(node.path().join("0000000001.new")).unwrap();
    assert_eq!(chain.append(bundles, NOW).unwrap(), 1);
}

/// A page with one damaged bundle keeps those before it, and the chain continues behind them.
#[test]
fn a_page_keeps_the_bundles_before_a_damaged_one() {
    let mut node = ChainDirectory::new();
    let bundles = node.deploy(4);
    node.open().append(bundles.clone(), NOW).unwrap();
    let path = node.path().join("0000000001");
    let whole = fs::read(&path).unwrap();
    let (_, rest) = next_bundle(&whole).unwrap();
    let (_, rest) = next_bundle(rest).unwrap();
    let third = whole.len() - rest.len();
    for damage in [third, third + 4, third + 300] {
        let mut damaged = whole.clone();
        damaged[damage] ^= 0x40;
        fs::write(&path, damaged).unwrap();
        let chain = node.open();
        assert_eq!((chain.state().length(), stored(&chain).as_slice()), (2, &bundles[..2]), "byte {damage}");
        assert_eq!(fs::read(&path).unwrap(), whole[..third]);
    }
    let mut chain = node.open();
    assert_eq!(chain.append(bundles[2..].to_vec(), NOW).unwrap(), 2);
    assert_eq!(node.files(), ["0000000001", "0000000003", "head"]);
    assert_eq!((node.open().state(), stored(&node.open())), (&node.world.state, bundles));
}

/// A long answer is written in pages, each with one wait for the disk, and not in one file for each bundle.
#[test]
fn a_page_that_is_full_is_followed_by_another() {
    let mut node = ChainDirectory::new();
    let bundles = node.deploy(3);
    let mut chain = node.open();
    let mut page = DecisionPage::after(chain.shared_state(), Millis(0));
    assert!(chain.fill(&mut page, &bundles[..1], NOW).is_ok() && !page.is_full());
    page.bytes.resize(protocol::limits::HISTORY_PAGE_BYTES_MAX, 0);
    assert!(page.is_full());
    assert!(chain.fill(&mut page, &bundles[1..], NOW).is_ok());
    assert_eq!(page.len(), 1, "a full page takes no more");
    // The others follow in the next page.
    assert_eq!(chain.append(bundles.clone(), NOW).unwrap(), 3);
    assert_eq!(node.files(), ["0000000001", "head"]);
}

/// An agent that dies between any two steps of a write has the whole page or nothing of it, and its successor
/// fetches the rest.
#[test]
fn a_crash_at_any_point_of_an_append_loses_no_bundle_that_counted() {
    let mut node = ChainDirectory::new();
    let bundles = node.deploy(5);
    node.open().append(bundles[..2].to_vec(), NOW).unwrap();
    let before: Vec<_> =
        node.files().iter().map(|name| (name.clone(), fs::read(node.path().join(name)).unwrap())).collect();
    let mut lengths = BTreeSet::new();
    for points in 0.. {
        fs::remove_dir_all(node.path()).unwrap();
        fs::create_dir(node.path()).unwrap();
        before.iter().for_each(|(name, bytes)| fs::write(node.path().join(name), bytes).unwrap());
        let mut chain = node.open();
        crash::after(Some(points));
        let died = catch_unwind(AssertUnwindSafe(|| chain.append(bundles[2..].to_vec(), NOW))).is_err();
        crash::after(None);
        let mut successor = node.open();
        let length = successor.state().length();
        assert!(length == 2 || length == 5, "{length} after {points}");
        assert_eq!(successor.check_whole(), Ok(()), "after {points}");
        successor.append(bundles[length as usize..].to_vec(), NOW).unwrap();
        assert_eq!(successor.state(), &node.world.state, "after {points}");
        assert_eq!(stored(&node.open()), bundles, "after {points}");
        lengths.insert(length);
        if !died {
            break;
        }
    }
    assert_eq!(lengths, BTreeSet::from([2, 5]), "both sides of the write were met");
}

/// Writes the state that a chain verified, before it is due.
fn keep(chain: &Chain) {
    kept::write(&chain.directory, chain.state(), chain.signed_at()).unwrap();
}

/// A start verifies what follows the kept state, and nothing before it.
#[test]
fn a_start_verifies_only_what_follows_the_kept_state() {
    let mut node = ChainDirectory::new();
    let bundles = node.deploy(3);
    let chain = node.append_singly(&bundles);
    let signed_at = chain.signed_at();
    // The bundles before the state are not read: without them the chain is whole.
    keep(&chain);
    fs::remove_file(node.path().join("0000000001")).unwrap();
    let chain = node.open();
    assert_eq!((chain.state(), chain.signed_at()), (&node.world.state, signed_at));
    assert!(bundles.iter().all(|bundle| chain.admitted().contains(&bundle.certificate.digest())));
    assert_eq!(chain.check_whole(), Ok(()));
    // Bundles after the state are verified.
    let more = node.deploy(1);
    node.open().append(more, NOW).unwrap();
    assert_eq!(node.open().state().length(), 4);
    fs::write(node.path().join("0000000004"), b"garbage").unwrap();
    let chain = node.open();
    assert_eq!(chain.state().length(), 3);
    assert_eq!(chain.check_whole().unwrap_err().code, error_code::HISTORY_SHORTER);
    // The positive control: without the kept state, the chain ends where its first file is missing.
    kept::remove(&node.path()).unwrap();
    assert_eq!(node.open().state().length(), 0);
}

#[test]
fn the_state_is_kept_once_enough_decisions_followed() {
    let mut node = ChainDirectory::new();
    let root = ModelRoot(Digest::of(b"one"));
    for number in 0..kept::INTERVAL {
        node.world.deploy(&service("chat", root, 4 + (number % 2) as u32));
    }
    let bundles = node.world.bundles.clone();
    let (last, before) = bundles.split_last().unwrap();
    let file = node.path().join("state");
    let mut chain = node.open();
    chain.append(before.to_vec(), NOW).unwrap();
    assert!(!file.exists(), "one decision too few");
    chain.append(vec![last.clone()], NOW).unwrap();
    let circle = node.world.state.id();
    let kept = || kept::read(&node.path(), circle, None).map(|(state, _)| state);
    assert_eq!(kept().as_ref(), Some(&node.world.state));
    // A start that had to verify as much keeps the state too, once it can be written.
    fs::remove_file(&file).unwrap();
    fs::create_dir(node.path().join("state.new")).unwrap();
    assert_eq!((node.open().state(), kept()), (&node.world.state, None));
    fs::remove_dir(node.path().join("state.new")).unwrap();
    assert_eq!((node.open().state(), kept().as_ref()), (&node.world.state, Some(&node.world.state)));
}

/// The attack: a kept state of another circle, of a fork, or with one bit changed is planted or left by
/// damage. It is not used, and the chain is verified whole. The positive control is the sound state.
#[test]
fn attack_a_planted_state_is_not_believed() {
    let mut node = ChainDirectory::new();
    let bundles = node.deploy(3);
    let chain = node.append_singly(&bundles);
    keep(&chain);
    let path = node.path().join("state");
    let sound = fs::read(&path).unwrap();
    let highest = chain.state().head();
    let read = || kept::read(&node.path(), chain.state().id(), Some(&highest)).map(|(state, _)| state);
    assert_eq!(read().as_ref(), Some(chain.state()), "the positive control");
    let mut flipped = sound.clone();
    flipped[sound.len() / 2] ^= 1;
    for bytes in [&b""[..], b"short", &sound[..sound.len() - 1], &flipped] {
        fs::write(&path, bytes).unwrap();
        assert_eq!(read(), None);
        assert_eq!(node.open().state(), &node.world.state, "verified whole");
    }
    let mut fork = future(&node.world);
    forked(&node.world, &bundles[0], 3).iter().for_each(|bundle| {
        let approved = verify_replay(&fork.state, &bundle.certificate).unwrap();
        fork.state.advance(approved).unwrap();
    });
    kept::write(&node.path(), &fork.state, NOW).unwrap();
    assert_eq!(read(), None, "another history than the recorded head");
    assert_eq!(node.open().state(), &node.world.state);
    fs::write(&path, &sound).unwrap();
    let foreign = CircleId(Digest::of(b"another"));
    assert_eq!(kept::read(&node.path(), foreign, None), None, "of another circle");
}

/// An order of an earlier approval is proven by the bundles on disk, also when the state was kept after them.
#[test]
fn a_chain_that_starts_from_a_kept_state_still_has_its_bundles() {
    let mut node = ChainDirectory::new();
    let bundles = node.deploy(3);
    keep(&node.append_singly(&bundles));
    assert_eq!(stored(&node.open()), bundles);
    fs::write(node.path().join("0000000002"), b"garbage").unwrap();
    assert_eq!(stored(&node.open()), bundles[..1], "as far as they can be read");
}
