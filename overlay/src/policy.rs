//! Peer policy: the keys that may connect to a listener, and those that have permits of their own.

use protocol::PublicKey;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Decides which public keys may connect. It is consulted in the handshake and again at every request, so a
/// removed key loses its open connections too.
#[derive(Clone)]
pub struct PeerPolicy {
    admits: KeyPredicate,
    knows: Option<KeyPredicate>,
}

type KeyPredicate = Arc<dyn Fn(&PublicKey) -> bool + Send + Sync>;

impl std::fmt::Debug for PeerPolicy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PeerPolicy")
    }
}

impl PeerPolicy {
    /// Admits the keys for which `admits` is true. It runs inside handshakes, so it must be quick and must
    /// not block.
    pub fn new(admits: impl Fn(&PublicKey) -> bool + Send + Sync + 'static) -> Self {
        Self { admits: Arc::new(admits), knows: None }
    }

    /// Returns the same policy, with the keys for which `knows` is false as unadmitted peers. They share the
    /// few permits of [`crate::Limits::unadmitted_max`] and take none of the others'. `knows` is called once
    /// for each connection.
    #[must_use]
    pub fn knowing(self, knows: impl Fn(&PublicKey) -> bool + Send + Sync + 'static) -> Self {
        Self { knows: Some(Arc::new(knows)), ..self }
    }

    /// Admits any key that its holder can prove; the caller then decides about its rights.
    #[must_use]
    pub fn any() -> Self {
        Self::new(|_| true)
    }

    /// Admits exactly these keys.
    pub fn only(keys: impl IntoIterator<Item = PublicKey>) -> Self {
        let keys: BTreeSet<PublicKey> = keys.into_iter().collect();
        Self::new(move |key| keys.contains(key))
    }

    /// Returns whether `key` may connect.
    #[must_use]
    pub fn admits(&self, key: &PublicKey) -> bool {
        (self.admits)(key)
    }

    /// Returns whether `key` belongs to an admitted peer.
    pub(crate) fn knows(&self, key: &PublicKey) -> bool {
        self.knows.as_ref().is_none_or(|knows| knows(key))
    }
}
