//! Which keys may connect to a listener.

use protocol::PublicKey;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Decides which public keys may connect. It is asked in the handshake and again at every request, so
/// a key that is struck off loses its open connections too.
#[derive(Clone)]
pub struct PeerPolicy(Arc<dyn Fn(&PublicKey) -> bool + Send + Sync>);

impl std::fmt::Debug for PeerPolicy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PeerPolicy")
    }
}

impl PeerPolicy {
    /// Admits the keys for which `admits` is true. It runs inside handshakes: it must be quick and must
    /// not block.
    pub fn new(admits: impl Fn(&PublicKey) -> bool + Send + Sync + 'static) -> Self {
        Self(Arc::new(admits))
    }

    /// Admits any key that its holder can prove; what it may do is then for the caller to decide.
    #[must_use]
    pub fn any() -> Self {
        Self::new(|_| true)
    }

    /// Admits exactly these keys.
    pub fn only(keys: impl IntoIterator<Item = PublicKey>) -> Self {
        let keys: BTreeSet<PublicKey> = keys.into_iter().collect();
        Self::new(move |key| keys.contains(key))
    }

    /// Whether `key` may connect.
    #[must_use]
    pub fn admits(&self, key: &PublicKey) -> bool {
        (self.0)(key)
    }
}
