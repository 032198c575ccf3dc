//! The order book on disk: the digest of its record, then the record. It is rewritten whole and durable
//! before any order in it takes effect.

use super::chain::Chain;
use super::core::OrderBook;
use super::error::AgentError;
use host::files;
use protocol::agent_state::{ORDER_BOOK_BYTES_MAX, ORDER_BOOK_DOMAIN, OrderBookRecord};
use protocol::{Digest, NodeId, canonical};
use std::io;
use std::path::{Path, PathBuf};

#[cfg(test)]
mod tests;

/// The file of an order book.
#[derive(Debug)]
pub(super) struct OrderFile {
    path: PathBuf,
    node: NodeId,
}

impl OrderFile {
    /// Opens the file and returns it with its book, which is empty if there is no file yet. Orders that no
    /// longer verify are logged and not held.
    ///
    /// # Errors
    /// If the file cannot be read or trusted. Without it this node could be made to accept an old order
    /// again, so the agent must not continue.
    pub(super) fn open(path: PathBuf, chain: &Chain, node: NodeId) -> Result<(Self, OrderBook), AgentError> {
        let unusable = |reason: String| AgentError::Orders { path: path.clone(), reason };
        let bytes = files::read(&path, Digest::LENGTH + ORDER_BOOK_BYTES_MAX)
            .map_err(|error| unusable(error.to_string()))?;
        let book = match bytes {
            None => OrderBook::default(),
            Some(bytes) => {
                let record = decode(&bytes).map_err(unusable)?;
                let (state, genesis) = (chain.state(), chain.genesis());
                let (book, unproven) =
                    OrderBook::from_record(record, state, genesis, chain.stored_bundles(), node)
                        .map_err(|error| unusable(error.to_string()))?;
                for (key, error) in unproven {
                    let code = error.code();
                    tracing::error!(slot = %key, %code, %error, "a stored order does not verify");
                }
                book
            }
        };
        Ok((Self { path, node }, book))
    }

    /// Writes the book. It is durable when this returns.
    ///
    /// # Errors
    /// Errors of the system; the old content is then still in place.
    pub(super) fn save(&self, book: &OrderBook, chain: &Chain) -> io::Result<()> {
        let record = canonical::to_bytes(&book.to_record(chain.state().id(), self.node));
        let digest = Digest::of_domain(ORDER_BOOK_DOMAIN, &record);
        files::write_secret(&self.path, &[&digest.as_bytes()[..], &record].concat())
    }

    /// Returns the path of the file.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

fn decode(bytes: &[u8]) -> Result<OrderBookRecord, String> {
    let (digest, record) = bytes.split_first_chunk().ok_or("it is too short")?;
    if Digest(*digest) != Digest::of_domain(ORDER_BOOK_DOMAIN, record) {
        return Err("its bytes are damaged".into());
    }
    canonical::from_own_bytes(record, ORDER_BOOK_BYTES_MAX).map_err(|error| error.to_string())
}
