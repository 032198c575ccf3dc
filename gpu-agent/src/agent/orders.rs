//! The order book on disk: the digest of its record, then the record. Rewritten whole, durably, before
//! anything starts because of it.

use super::chain::Chain;
use super::core::OrderBook;
use super::error::AgentError;
use crate::files;
use protocol::agent_state::{ORDER_BOOK_BYTES_MAX, ORDER_BOOK_DOMAIN, OrderBookRecord};
use protocol::{Digest, NodeId, canonical};
use std::io;
use std::path::{Path, PathBuf};

/// The file of an order book.
#[derive(Debug)]
pub(super) struct OrderFile {
    path: PathBuf,
    node: NodeId,
}

impl OrderFile {
    /// The file, and the book that it holds; an empty one if there is no file yet. Orders that do not
    /// verify any more are said so and not held.
    ///
    /// # Errors
    /// A file that cannot be read or believed. Without it this node could be made to accept an old order
    /// again, so it must not go on.
    pub(super) fn open(path: PathBuf, chain: &Chain, node: NodeId) -> Result<(Self, OrderBook), AgentError> {
        let unusable = |reason: String| AgentError::Orders { path: path.clone(), reason };
        let bytes = files::read(&path, Digest::LENGTH + ORDER_BOOK_BYTES_MAX)
            .map_err(|error| unusable(error.to_string()))?;
        let book = match bytes {
            None => OrderBook::default(),
            Some(bytes) => {
                let record = decode(&bytes).map_err(unusable)?;
                let circle = chain.state().id();
                let (book, unproven) =
                    OrderBook::from_record(record, chain.genesis(), chain.bundles(), circle, node)
                        .map_err(|error| unusable(error.to_string()))?;
                for (key, error) in unproven {
                    tracing::error!(slot = %key, code = %error.code(), %error, "a stored order does not verify");
                }
                book
            }
        };
        Ok((Self { path, node }, book))
    }

    /// Writes the book; it is durable when this returns.
    ///
    /// # Errors
    /// What the system answers; the old content is still there then.
    pub(super) fn save(&self, book: &OrderBook, chain: &Chain) -> io::Result<()> {
        let record = canonical::to_bytes(&book.to_record(chain.state().id(), self.node));
        let digest = Digest::of_domain(ORDER_BOOK_DOMAIN, &record);
        files::write_secret(&self.path, &[&digest.as_bytes()[..], &record].concat())
    }

    /// Where it lies.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

fn decode(bytes: &[u8]) -> Result<OrderBookRecord, String> {
    let (digest, record) = bytes.split_first_chunk().ok_or("it is too short")?;
    if Digest(*digest) != Digest::of_domain(ORDER_BOOK_DOMAIN, record) {
        return Err("its bytes are damaged".into());
    }
    canonical::from_bytes(record, ORDER_BOOK_BYTES_MAX).map_err(|error| error.to_string())
}
