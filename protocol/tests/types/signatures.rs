//! Tests of signatures and ids: each signature is bound to one key, domain and byte string, each id to all of
//! its fields.

use ed25519_dalek::{Signer, SigningKey};
use protocol::canonical::to_bytes;
use protocol::governance::{Change, HistoryHead, Proposal, SubjectVersion};
use protocol::keys::signing_input;
use protocol::order::{ORDER_DOMAIN, SignedOrder, SignedTicket, SlotOrder, TICKET_DOMAIN, Ticket};
use protocol::{BootTime, CircleId, Digest, Epoch, Fence, Millis, NodeId, PublicKey, Signature, SlotIndex};
use std::collections::BTreeSet;

fn secret(byte: u8) -> SigningKey {
    SigningKey::from_bytes(&[byte; 32])
}

fn public(byte: u8) -> PublicKey {
    PublicKey(secret(byte).verifying_key().to_bytes())
}

fn sign(byte: u8, domain: &str, bytes: &[u8]) -> Signature {
    Signature(secret(byte).sign(&signing_input(domain, bytes)).to_bytes())
}

fn order() -> SlotOrder {
    SlotOrder {
        circle: CircleId(Digest::of(b"circle")),
        service: "chat".parse().unwrap(),
        certificate: Digest::of(b"certificate"),
        slot: SlotIndex(3),
        fence: Fence::new(1, 7),
        node: NodeId(public(1)),
        gpus: vec![0, 2],
        issued_at: Millis(5),
    }
}

fn signed_order() -> SignedOrder {
    let order = order();
    let signature = sign(9, ORDER_DOMAIN, &to_bytes(&order));
    SignedOrder { order, signer: public(9), signature }
}

fn signed_ticket() -> SignedTicket {
    let ticket = Ticket {
        service: "chat".parse().unwrap(),
        slot: SlotIndex(3),
        fence: Fence::new(1, 7),
        node: NodeId(public(1)),
        worker: public(2),
        gateway: public(3),
        expires_at: Millis(9),
        lease_until_boottime_ms: BootTime(11),
    };
    let signature = sign(1, TICKET_DOMAIN, &to_bytes(&ticket));
    SignedTicket { ticket, signature }
}

#[test]
fn an_order_is_signed_in_every_field() {
    type Edit = fn(&mut SignedOrder);
    assert!(signed_order().signature_holds());
    let edits: [(&str, Edit); 11] = [
        ("circle", |o| o.order.circle = CircleId(Digest::of(b"another"))),
        ("service", |o| o.order.service = "other".parse().unwrap()),
        ("certificate", |o| o.order.certificate = Digest::of(b"another")),
        ("slot", |o| o.order.slot = SlotIndex(4)),
        ("fence", |o| o.order.fence = Fence::new(1, 8)),
        ("node", |o| o.order.node = NodeId(public(2))),
        ("one GPU less", |o| o.order.gpus.truncate(1)),
        ("GPUs in another order", |o| o.order.gpus.reverse()),
        ("time", |o| o.order.issued_at = Millis(6)),
        ("signer", |o| o.signer = public(8)),
        ("signature", |o| o.signature.0[63] ^= 1),
    ];
    for (name, edit) in edits {
        let mut altered = signed_order();
        edit(&mut altered);
        assert!(!altered.signature_holds(), "{name}");
    }
}

#[test]
fn a_ticket_is_signed_by_its_node() {
    type Edit = fn(&mut SignedTicket);
    assert!(signed_ticket().signature_holds());
    let edits: [(&str, Edit); 9] = [
        ("service", |t| t.ticket.service = "other".parse().unwrap()),
        ("slot", |t| t.ticket.slot = SlotIndex(4)),
        ("fence", |t| t.ticket.fence = Fence::new(1, 8)),
        ("another node", |t| t.ticket.node = NodeId(public(2))),
        ("worker", |t| t.ticket.worker = public(4)),
        ("gateway", |t| t.ticket.gateway = public(4)),
        ("time", |t| t.ticket.expires_at = Millis(10)),
        ("lease", |t| t.ticket.lease_until_boottime_ms = BootTime(12)),
        ("signature", |t| t.signature.0[0] ^= 1),
    ];
    for (name, edit) in edits {
        let mut altered = signed_ticket();
        edit(&mut altered);
        assert!(!altered.signature_holds(), "{name}");
    }
    let mut by_the_worker = signed_ticket();
    by_the_worker.signature = sign(2, TICKET_DOMAIN, &to_bytes(&by_the_worker.ticket));
    assert!(!by_the_worker.signature_holds(), "a worker cannot sign for a node");
}

#[test]
fn a_signature_for_one_purpose_is_worth_nothing_for_another() {
    let mut order = signed_order();
    order.signature = sign(9, TICKET_DOMAIN, &to_bytes(&order.order));
    assert!(!order.signature_holds(), "made as a ticket's");
    let mut ticket = signed_ticket();
    ticket.signature = sign(1, ORDER_DOMAIN, &to_bytes(&ticket.ticket));
    assert!(!ticket.signature_holds(), "made as an order's");
    let mut bare = signed_order();
    bare.signature = Signature(secret(9).sign(&to_bytes(&bare.order)).to_bytes());
    assert!(!bare.signature_holds(), "made without a domain");
}

#[test]
fn a_key_that_is_no_point_verifies_nothing() {
    for bytes in [[0; 32], [0xff; 32], [2; 32]] {
        let mut order = signed_order();
        order.signer = PublicKey(bytes);
        assert!(!order.signature_holds(), "{bytes:?}");
    }
}

#[test]
fn a_proposals_id_depends_on_all_of_it() {
    type Edit = fn(&mut Proposal);
    let subject = || SubjectVersion { subject: "service/chat".into(), version: 1, value: None };
    let proposal = Proposal {
        circle: CircleId(Digest::of(b"circle")),
        epoch: Epoch(1),
        history: HistoryHead { size: 3, root: Digest::of(b"history") },
        subjects: vec![subject()],
        change: Change::Retire { service: "chat".parse().unwrap(), grace_seconds: 5 },
        passkeys_count: false,
        reason: "because".into(),
        created_at: Millis(1),
        expires_at: Millis(2),
        nonce: Digest::of(b"nonce"),
    };
    let edits: [Edit; 14] = [
        |_| {},
        |p| p.circle = CircleId(Digest::of(b"another")),
        |p| p.epoch = Epoch(2),
        |p| p.history.size = 4,
        |p| p.history.root = Digest::of(b"another"),
        |p| p.subjects.clear(),
        |p| p.subjects[0].version = 2,
        |p| p.subjects[0].value = Some(Digest::of(b"v")),
        |p| p.change = Change::Retire { service: "chat".parse().unwrap(), grace_seconds: 6 },
        |p| p.passkeys_count = true,
        |p| p.reason.push('.'),
        |p| p.created_at = Millis(0),
        |p| p.expires_at = Millis(3),
        |p| p.nonce = Digest::of(b"another"),
    ];
    let ids: BTreeSet<_> = edits
        .into_iter()
        .map(|edit| {
            let mut altered = proposal.clone();
            edit(&mut altered);
            altered.id()
        })
        .collect();
    assert_eq!(ids.len(), 14, "no two of them share an id");
    assert!(ids.contains(&proposal.id()));
}
