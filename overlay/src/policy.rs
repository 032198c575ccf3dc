//! Which keys may connect to a listener, and which of them permits are kept for.

use protocol::PublicKey;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Decides which public keys may connect. It is asked in the handshake and again at every request, so
/// a key that is struck off loses its open connections too.
#[derive(Clone)]
pub struct PeerPolicy {
    admits: Judge,
    knows: Option<Judge>,
}

type Judge = Arc<dyn Fn(&PublicKey) -> bool + Send + Sync>;

impl std::fmt::Debug for PeerPolicy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PeerPolicy")
    }
}

impl PeerPolicy {
    /// Admits the keys for which `admits` is true. It runs inside handshakes: it must be quick and must
    /// not block.
    pub fn new(admits: impl Fn(&PublicKey) -> bool + Send + Sync + 'static) -> Self {
        Self { admits: Arc::new(admits), knows: None }
    }

    /// The same keys, of which those for which `knows` is false are unadmitted peers: they share the few permits of
    /// [`crate::Limits::unadmitted_max`] and take none of the others'. Asked once for each connection.
    #[must_use]
    pub fn knowing(self, knows: impl Fn(&PublicKey) -> bool + Send + Sync + 'static) -> Self {
        Self { knows: Some(Arc::new(knows)), ..self }
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
        (self.admits)(key)
    }

    /// Whether `key` is an admitted peer's.
    pub(crate) fn knows(&self, key: &PublicKey) -> bool {
        self.knows.as_ref().is_none_or(|knows| knows(key))
    }
}
