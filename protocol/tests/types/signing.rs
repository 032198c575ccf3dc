//! Properties of signatures: one key, one domain and one value each.

use crate::{stored, workloads};
use ed25519_dalek::{Signer, SigningKey};
use proptest::prelude::*;
use proptest::sample::Index;
use protocol::canonical::{from_bytes, to_bytes};
use protocol::job::{JOB_ORDER_DOMAIN, SignedJobOrder};
use protocol::job_data::{JOB_DATA_DOMAIN, JobData, SignedJobData};
use protocol::keys::signing_input;
use protocol::order::{ORDER_DOMAIN, SignedOrder, SignedTicket, SlotOrder, TICKET_DOMAIN, Ticket};
use protocol::{NodeId, PublicKey, Signature};

fn public(secret: &SigningKey) -> PublicKey {
    PublicKey(secret.verifying_key().to_bytes())
}

fn sign(secret: &SigningKey, domain: &str, bytes: &[u8]) -> Signature {
    Signature(secret.sign(&signing_input(domain, bytes)).to_bytes())
}

fn signed_order(secret: &SigningKey, order: SlotOrder) -> SignedOrder {
    let signature = sign(secret, ORDER_DOMAIN, &to_bytes(&order));
    SignedOrder { order, signer: public(secret), signature }
}

fn signed_ticket(secret: &SigningKey, ticket: Ticket) -> SignedTicket {
    let ticket = Ticket { node: NodeId(public(secret)), ..ticket };
    let signature = sign(secret, TICKET_DOMAIN, &to_bytes(&ticket));
    SignedTicket { ticket, signature }
}

fn flipped(mut bytes: Vec<u8>, bit: Index) -> Vec<u8> {
    let bit = bit.index(bytes.len() * 8);
    bytes[bit / 8] ^= 1 << (bit % 8);
    bytes
}

proptest! {
    #[test]
    fn an_order_holds_as_it_was_signed(order in workloads::order(), seed: [u8; 32], bit: Index) {
        let signed = signed_order(&SigningKey::from_bytes(&seed), order);
        prop_assert!(signed.signature_holds());
        let altered = from_bytes::<SignedOrder>(&flipped(to_bytes(&signed), bit), 1 << 16);
        prop_assert!(!altered.is_ok_and(|altered| altered.signature_holds()));
    }

    #[test]
    fn an_order_of_a_job_holds_as_it_was_signed(
        order in workloads::job_order(), seed: [u8; 32], bit: Index, other in workloads::job_order(),
    ) {
        let secret = SigningKey::from_bytes(&seed);
        let signature = sign(&secret, JOB_ORDER_DOMAIN, &to_bytes(&order));
        let signed = SignedJobOrder { order, signer: public(&secret), signature };
        prop_assert!(signed.signature_holds());
        let altered = from_bytes::<SignedJobOrder>(&flipped(to_bytes(&signed), bit), 1 << 16);
        prop_assert!(!altered.is_ok_and(|altered| altered.signature_holds()));
        let moved = SignedJobOrder { order: other.clone(), ..signed.clone() };
        prop_assert_eq!(moved.signature_holds(), other == signed.order);
        // A submission has one id, which its signature is no part of.
        let submission = &signed.order.submission.submission;
        let same = submission.id() == other.submission.submission.id();
        prop_assert_eq!(same, *submission == other.submission.submission);
        // The same bytes signed as an order of a service are no order of a job.
        let foreign = sign(&secret, ORDER_DOMAIN, &to_bytes(&signed.order));
        let forged = SignedJobOrder { signature: foreign, ..signed };
        prop_assert!(!forged.signature_holds());
    }

    #[test]
    fn a_statement_about_data_of_a_job_holds_as_it_was_signed(
        data in stored::job_data(), seed: [u8; 32], bit: Index, other in stored::job_data(),
    ) {
        let secret = SigningKey::from_bytes(&seed);
        let of = |data: JobData| JobData { node: NodeId(public(&secret)), ..data };
        let (data, other) = (of(data), of(other));
        let signature = sign(&secret, JOB_DATA_DOMAIN, &to_bytes(&data));
        let signed = SignedJobData { data, signature };
        prop_assert!(signed.signature_holds());
        let altered = from_bytes::<SignedJobData>(&flipped(to_bytes(&signed), bit), 1 << 16);
        prop_assert!(!altered.is_ok_and(|altered| altered.signature_holds()));
        let moved = SignedJobData { data: other.clone(), ..signed.clone() };
        prop_assert_eq!(moved.signature_holds(), other == signed.data);
        let foreign = sign(&secret, JOB_ORDER_DOMAIN, &to_bytes(&signed.data));
        let forged = SignedJobData { signature: foreign, ..signed };
        prop_assert!(!forged.signature_holds());
    }

    #[test]
    fn a_ticket_holds_as_it_was_signed(ticket in workloads::ticket(), seed: [u8; 32], bit: Index) {
        let signed = signed_ticket(&SigningKey::from_bytes(&seed), ticket);
        prop_assert!(signed.signature_holds());
        let altered = from_bytes::<SignedTicket>(&flipped(to_bytes(&signed), bit), 1 << 16);
        prop_assert!(!altered.is_ok_and(|altered| altered.signature_holds()));
    }

    /// A signature by another key, or taken from another value, does not hold.
    #[test]
    fn a_signature_cannot_be_moved(
        orders in [workloads::order(), workloads::order()],
        tickets in [workloads::ticket(), workloads::ticket()],
        seeds: [[u8; 32]; 2],
    ) {
        prop_assume!(seeds[0] != seeds[1]);
        let secrets = seeds.map(|seed| SigningKey::from_bytes(&seed));
        let [first, second] = orders.map(|order| signed_order(&secrets[0], order));
        let moved = SignedOrder { signature: second.signature, ..first.clone() };
        prop_assert_eq!(moved.signature_holds(), first.order == second.order);
        let renamed = SignedOrder { signer: public(&secrets[1]), ..first };
        prop_assert!(!renamed.signature_holds());
        let [first, second] = tickets.map(|ticket| signed_ticket(&secrets[0], ticket));
        let moved = SignedTicket { signature: second.signature, ..first.clone() };
        prop_assert_eq!(moved.signature_holds(), first.ticket == second.ticket);
        let mut renamed = first;
        renamed.ticket.node = NodeId(public(&secrets[1]));
        prop_assert!(!renamed.signature_holds());
    }

    /// Arbitrary bytes are no key and no signature; verification refuses them and does not panic.
    #[test]
    fn arbitrary_bytes_verify_nothing(
        order in workloads::signed_order(), ticket in workloads::signed_ticket(),
    ) {
        prop_assert!(!order.signature_holds());
        prop_assert!(!ticket.signature_holds());
    }
}
