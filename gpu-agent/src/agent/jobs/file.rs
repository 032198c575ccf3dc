//! The job book on disk: the digest of its record, then the record. It is rewritten whole and durable before
//! any order in it takes effect.

use crate::agent::core::JobOrderBook;
use crate::agent::error::AgentError;
use host::files;
use protocol::agent_state::{JOB_BOOK_DOMAIN, JobBookRecord, ORDER_BOOK_BYTES_MAX};
use protocol::{CircleId, Digest, NodeId, canonical};
use std::io;
use std::path::{Path, PathBuf};

/// The file of a job book.
#[derive(Debug)]
pub(in crate::agent) struct JobFile {
    path: PathBuf,
    circle: CircleId,
    node: NodeId,
}

impl JobFile {
    /// Opens the file and returns it with its book, which is empty if there is no file yet.
    ///
    /// # Errors
    /// If the file cannot be read or trusted. Without it this node could be made to accept an old order
    /// again, so the agent must not continue.
    pub(in crate::agent) fn open(
        path: PathBuf,
        circle: CircleId,
        node: NodeId,
    ) -> Result<(Self, JobOrderBook), AgentError> {
        let unusable = |reason: String| AgentError::Orders { path: path.clone(), reason };
        let bytes = files::read(&path, Digest::LENGTH + ORDER_BOOK_BYTES_MAX)
            .map_err(|error| unusable(error.to_string()))?;
        let book = match bytes {
            None => JobOrderBook::default(),
            Some(bytes) => {
                let record = decode(&bytes).map_err(unusable)?;
                JobOrderBook::from_record(record, circle, node)
                    .map_err(|error| unusable(error.to_string()))?
            }
        };
        Ok((Self { path, circle, node }, book))
    }

    /// Writes the book. It is durable when this returns.
    ///
    /// # Errors
    /// Errors of the system; the old content is then still in place.
    pub(in crate::agent) fn save(&self, book: &JobOrderBook) -> io::Result<()> {
        let record = canonical::to_bytes(&book.to_record(self.circle, self.node));
        let digest = Digest::of_domain(JOB_BOOK_DOMAIN, &record);
        files::write_secret(&self.path, &[&digest.as_bytes()[..], &record].concat())
    }

    /// Returns the path of the file.
    pub(in crate::agent) fn path(&self) -> &Path {
        &self.path
    }
}

fn decode(bytes: &[u8]) -> Result<JobBookRecord, String> {
    let (digest, record) = bytes.split_first_chunk().ok_or("it is too short")?;
    if Digest(*digest) != Digest::of_domain(JOB_BOOK_DOMAIN, record) {
        return Err("its bytes are damaged".into());
    }
    canonical::from_own_bytes(record, ORDER_BOOK_BYTES_MAX).map_err(|error| error.to_string())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use protocol::PublicKey;

    #[test]
    fn a_damaged_or_foreign_book_stops_the_agent() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("jobs");
        let (circle, node) = (CircleId(Digest::of(b"circle")), NodeId(PublicKey([7; 32])));
        let open = |circle| JobFile::open(path.clone(), circle, node);
        let (file, book) = open(circle).unwrap();
        file.save(&book).unwrap();
        assert!(open(circle).is_ok(), "positive control");
        assert!(open(CircleId(Digest::of(b"other"))).is_err(), "another circle");
        let whole = std::fs::read(&path).unwrap();
        for at in [0, Digest::LENGTH, whole.len() - 1] {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            std::fs::write(&path, &damaged).unwrap();
            assert!(open(circle).is_err(), "byte {at}");
        }
    }
}
