//! Tests of the order file: round trips, damage, and records of other nodes.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::agent::core::SlotKey;
use crate::agent::core::testing::{NOW, TestCircle, admission, service};
use human_chain::{MemberSecret, check_order};
use overlay::Identity;
use protocol::error_code;
use protocol::governance::Bundle;
use protocol::{Fence, ModelRoot, Signature, SlotIndex};
use std::fs;
use std::os::unix::fs::PermissionsExt;

/// A node's directory, with the chain of a circle that has deployed a service.
struct NodeDirectory {
    directory: tempfile::TempDir,
    world: TestCircle,
    bundle: Bundle,
    chain: Chain,
    node: NodeId,
}

impl NodeDirectory {
    fn new() -> Self {
        let identity = Identity::from_seed(&[7; 32]);
        let encryption = MemberSecret::generate(&[9; 64]).public().encryption;
        let nodes = vec![admission("node-1", &identity, encryption)];
        let mut world = TestCircle::new(nodes, &["127.0.0.1:1".into()], NOW);
        let bundle = world.deploy(&service("chat", ModelRoot(Digest::of(b"model")), 4));
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("chain");
        let mut chain = Chain::open(path, world.genesis.clone(), world.state.id()).unwrap();
        chain.append(vec![bundle.clone()], NOW).unwrap();
        Self { directory, world, bundle, chain, node: NodeId(identity.public_key()) }
    }

    /// Returns a book that holds slots 0 and 1, and remembers the fence of slot 2.
    fn book(&self) -> OrderBook {
        let mut book = OrderBook::default();
        for (slot, fence) in [(0, 3), (1, 9), (2, 4)] {
            let signed = self.world.order(&self.bundle, self.node, slot, fence);
            let grant = check_order(&self.world.state, &signed, self.node, None, NOW).unwrap();
            book.accept(signed, grant, 1, NOW);
        }
        book.release(&key(1));
        book.forget(&key(2));
        book
    }

    fn file(&self) -> OrderFile {
        OrderFile { path: self.directory.path().join("orders"), node: self.node }
    }

    fn save(&self, book: &OrderBook) {
        self.file().save(book, &self.chain).unwrap();
    }

    fn open(&self) -> Result<OrderBook, AgentError> {
        let path = self.directory.path().join("orders");
        OrderFile::open(path, &self.chain, self.node).map(|(_, book)| book)
    }

    fn record(&self, book: &OrderBook) -> OrderBookRecord {
        book.to_record(self.world.state.id(), self.node)
    }

    /// Writes a record as the agent would, valid or not.
    fn write(&self, record: &OrderBookRecord) {
        let record = canonical::to_bytes(record);
        let digest = Digest::of_domain(ORDER_BOOK_DOMAIN, &record);
        fs::write(self.file().path(), [&digest.as_bytes()[..], &record].concat()).unwrap();
    }

    fn refusal(&self) -> String {
        let error = self.open().expect_err("it must not be trusted");
        assert_eq!(error.code(), error_code::AGENT_STATE_UNUSABLE);
        error.to_string()
    }
}

fn key(slot: u32) -> SlotKey {
    SlotKey { service: "chat".parse().unwrap(), slot: SlotIndex(slot) }
}

#[test]
fn a_node_without_a_file_has_accepted_nothing() {
    let node = NodeDirectory::new();
    let book = node.open().unwrap();
    assert_eq!(book.all_held().count(), 0);
    assert_eq!(book.last_fence(&key(0)), None);
}

#[test]
fn a_saved_book_is_read_back_with_releases_and_fences() {
    let node = NodeDirectory::new();
    let book = node.book();
    node.save(&book);
    let again = node.open().unwrap();
    assert_eq!(node.record(&again), node.record(&book));
    assert_eq!(again.check_invariants(), Ok(()));
    assert!(again.held(&key(1)).unwrap().order.released && !again.held(&key(0)).unwrap().order.released);
    assert_eq!(again.last_fence(&key(2)), Some(Fence::new(1, 4)), "the fence of a forgotten order stays");
    let mode = fs::metadata(node.file().path()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn any_damaged_byte_and_any_lost_end_is_found() {
    let node = NodeDirectory::new();
    node.save(&node.book());
    let bytes = fs::read(node.file().path()).unwrap();
    assert!(decode(&bytes).is_ok());
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1;
        assert_eq!(decode(&damaged), Err("its bytes are damaged".into()), "byte {at}");
        assert!(decode(&bytes[..at]).is_err(), "only {at} bytes");
    }
    fs::write(node.file().path(), &bytes[..bytes.len() - 1]).unwrap();
    assert!(node.refusal().ends_with("orders: its bytes are damaged"), "{}", node.refusal());
}

#[test]
fn a_book_of_another_node_or_version_is_refused() {
    let node = NodeDirectory::new();
    let record = node.record(&node.book());
    type Edit = fn(&mut OrderBookRecord);
    let edits: [(Edit, &str); 4] = [
        (|record| record.node = NodeId(Identity::from_seed(&[8; 32]).public_key()), "another node"),
        (|record| record.circle = protocol::CircleId(Digest::of(b"another")), "another circle"),
        (|record| record.version = 7, "has form 7"),
        (|record| record.fences.push(record.fences[0].clone()), "two fences"),
    ];
    for (edit, expected) in edits {
        let mut other = record.clone();
        edit(&mut other);
        node.write(&other);
        assert!(node.refusal().contains(expected), "{}", node.refusal());
    }
    node.write(&record);
    assert_eq!(node.record(&node.open().unwrap()), record, "the positive control");
}

#[test]
fn a_stored_order_that_does_not_verify_is_not_held_and_its_fence_stays() {
    let node = NodeDirectory::new();
    let mut record = node.record(&node.book());
    record.held[0].signed.signature = Signature([0; 64]);
    node.write(&record);
    let book = node.open().unwrap();
    assert!(book.held(&key(0)).is_none() && book.held(&key(1)).is_some());
    assert_eq!(book.last_fence(&key(0)), Some(Fence::new(1, 3)));
}

#[test]
fn a_failed_write_leaves_the_previous_book() {
    let node = NodeDirectory::new();
    node.save(&OrderBook::default());
    fs::create_dir(node.directory.path().join("orders.new")).unwrap();
    assert!(node.file().save(&node.book(), &node.chain).is_err());
    assert_eq!(node.open().unwrap().all_held().count(), 0);
}
