//! Step: an agent rejects altered, replayed and unsigned orders, each with the expected code.

use super::{Demonstration, NODES};
use anyhow::{Context as _, Result, bail};
use overlay::descriptors::blocking;
use protocol::agent_state::{AdminRequest, HandOrder, ORDER_BOOK_BYTES_MAX, OrderBookRecord, Verdict};
use protocol::api::History;
use protocol::governance::Bundle;
use protocol::order::{ORDER_DOMAIN, SignedOrder};
use protocol::{Digest, ErrorCode, canonical, error_code};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// File name of the accepted orders in an agent's directory.
const ORDER_BOOK: &str = "orders";
/// File name of the admin socket in an agent's directory.
const ADMIN_SOCKET: &str = "agent.sock";
/// Timeout for the agent's verdict.
const VERDICT_LIMIT: Duration = Duration::from_secs(30);

/// A bad order: the tampering, the request, and the acceptable error codes.
type BadOrder = (&'static str, HandOrder, &'static [ErrorCode]);

pub(super) async fn hand_over_bad_orders(demonstration: &Demonstration) -> Result<()> {
    let history: History = demonstration.quorate.json(&["circle", "history"]).await?;
    let (node, genuine) = held_order(demonstration)?;
    let directory = demonstration.node(node);
    let mut verdicts = Vec::new();
    for (what, order, expected) in bad_orders(&history, &genuine)? {
        let verdict = hand_order(&directory, &order).with_context(|| format!("hand {node} an order"))?;
        let code = verdict.code.filter(|code| !verdict.accepted && expected.contains(code));
        let Some(code) = code else {
            bail!("{node} judged an order that was {what}: {verdict:?}, expected {expected:?}");
        };
        verdicts.push(format!("{what}: {code}"));
    }
    demonstration.say(format!("handed {node} bad orders, each refused by its code\n{}", verdicts.join("\n")));
    Ok(())
}

/// Submits an order through the agent's admin socket, and returns the agent's verdict.
fn hand_order(directory: &Path, order: &HandOrder) -> Result<Verdict> {
    let handle = File::open(directory)?;
    // The address of a socket is at most 107 bytes, the path of a directory may be longer.
    let socket = UnixStream::connect(format!("/proc/self/fd/{}/{ADMIN_SOCKET}", handle.as_raw_fd()))?;
    socket.set_read_timeout(Some(VERDICT_LIMIT))?;
    blocking::send(&socket, &AdminRequest::Order(Box::new(order.clone())), &[])?;
    let (verdict, _) = blocking::receive::<Verdict>(&socket)?.context("the agent answers")?;
    Ok(verdict)
}

/// Returns a node that holds a slot, and the order under which it holds it, from the node's disk.
fn held_order(demonstration: &Demonstration) -> Result<(&'static str, SignedOrder)> {
    for node in NODES {
        let Ok(bytes) = std::fs::read(demonstration.node(node).join(ORDER_BOOK)) else { continue };
        let record = bytes.get(Digest::LENGTH..).context("an order book begins with its digest")?;
        let book: OrderBookRecord = canonical::from_bytes(record, ORDER_BOOK_BYTES_MAX)?;
        if let Some(held) = book.held.into_iter().find(|held| !held.released) {
            return Ok((node, held.signed));
        }
    }
    bail!("no node holds an order");
}

fn bad_orders(history: &History, genuine: &SignedOrder) -> Result<Vec<BadOrder>> {
    let bundle = history
        .bundles
        .iter()
        .find(|bundle| bundle.certificate.digest() == genuine.order.certificate)
        .context("the order's certificate is in the history")?;
    let hand = |bundle: &Bundle, order: SignedOrder| HandOrder { bundle: bundle.clone(), order };

    let mut altered = genuine.clone();
    altered.order.fence =
        genuine.order.fence.next(genuine.order.fence.version).expect("a fence is not the last");

    let mut unsigned = genuine.clone();
    unsigned.order.fence =
        genuine.order.fence.next(genuine.order.fence.version).expect("a fence is not the last");
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
