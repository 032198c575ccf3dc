//! Demonstration step: an agent rejects altered, replayed and unsigned orders, each with the expected code.

use super::Narrator;
use crate::session::Session;
use crate::up::cluster::LocalCluster;
use crate::up::layout::NODES;
use anyhow::{Context as _, Result, bail};
use gpu_agent::agent::hand_order;
use protocol::agent_state::{HandOrder, ORDER_BOOK_BYTES_MAX, OrderBookRecord};
use protocol::governance::Bundle;
use protocol::order::{ORDER_DOMAIN, SignedOrder};
use protocol::{Digest, ErrorCode, Fence, canonical, error_code};

/// File name of the accepted orders in an agent's directory.
const ORDER_BOOK: &str = "orders";

/// A bad order: the tampering, the request, and the acceptable error codes.
type BadOrder = (&'static str, HandOrder, &'static [ErrorCode]);

pub(crate) async fn hand_over_bad_orders(cluster: &LocalCluster, narrator: &Narrator) -> Result<()> {
    let session = cluster.session().await?;
    let (node, genuine) = held_order(cluster)?;
    let directory = cluster.layout.node(node);
    let mut verdicts = Vec::new();
    for (what, order, expected) in bad_orders(&session, &genuine)? {
        let verdict =
            hand_order(&directory, &order).await.with_context(|| format!("hand {node} an order"))?;
        let code = verdict.code.filter(|code| !verdict.accepted && expected.contains(code));
        let Some(code) = code else {
            bail!("{node} judged an order that was {what}: {verdict:?}, expected {expected:?}");
        };
        verdicts.push(format!("{what}: {code}"));
    }
    narrator.say(format!("handed {node} bad orders, each refused by its code\n{}", verdicts.join("\n")));
    Ok(())
}

/// Returns a node that holds a slot, and the order under which it holds it, from the node's disk.
fn held_order(cluster: &LocalCluster) -> Result<(&'static str, SignedOrder)> {
    for node in NODES {
        let Ok(bytes) = std::fs::read(cluster.layout.node(node).join(ORDER_BOOK)) else { continue };
        let record = bytes.get(Digest::LENGTH..).context("an order book begins with its digest")?;
        let book: OrderBookRecord = canonical::from_bytes(record, ORDER_BOOK_BYTES_MAX)?;
        if let Some(held) = book.held.into_iter().find(|held| !held.released) {
            return Ok((node, held.signed));
        }
    }
    bail!("no node holds an order");
}

fn bad_orders(session: &Session, genuine: &SignedOrder) -> Result<Vec<BadOrder>> {
    let bundle = session
        .history
        .bundles
        .iter()
        .find(|bundle| bundle.certificate.digest() == genuine.order.certificate)
        .context("the order's certificate is in the history")?;
    let hand = |bundle: &Bundle, order: SignedOrder| HandOrder { bundle: bundle.clone(), order };

    let mut altered = genuine.clone();
    altered.order.fence = Fence(genuine.order.fence.0 + 1);

    let mut unsigned = genuine.clone();
    unsigned.order.fence = Fence(genuine.order.fence.0 + 1);
    unsigned.signature = protocol::Signature([0; 64]);

    let mut stranger = unsigned.clone();
    let outsider = overlay::Identity::generate()?;
    stranger.signer = outsider.public_key();
    stranger.signature = outsider.sign(ORDER_DOMAIN, &canonical::to_bytes(&stranger.order));

    let mut forged = bundle.clone();
    forged.certificate.proposal.reason.push_str(", and a little more");

    // An altered certificate has no valid signer: it counts neither as part of the history nor as something
    // new.
    let not_approved =
        &[error_code::ORDER_NOT_APPROVED, error_code::PROPOSAL_STALE, error_code::BALLOT_MISMATCH];
    let unsigned_codes = &[error_code::ORDER_SIGNATURE_INVALID];
    Ok(vec![
        ("altered", hand(bundle, altered), unsigned_codes),
        ("unsigned", hand(bundle, unsigned), unsigned_codes),
        ("signed by a stranger", hand(bundle, stranger), unsigned_codes),
        ("replayed", hand(bundle, genuine.clone()), &[error_code::ORDER_REPLAYED]),
        ("with an altered certificate", hand(&forged, genuine.clone()), not_approved),
    ])
}
