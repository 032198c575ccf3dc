//! Why a connection or an exchange over it failed; one variant for each thing a caller can do about it.

use protocol::PublicKey;
use protocol::error_code::{self, ErrorCode};
use std::error::Error as StdError;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

/// Why a connection could not be made, or an exchange over it did not finish.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Nobody answers at the address.
    #[error("dial {address}")]
    Dial {
        /// Where to.
        address: SocketAddr,
        /// What the operating system said.
        source: io::Error,
    },
    /// The name of the peer's machine has no address, as far as can be found out.
    #[error("look up `{name}`")]
    Name {
        /// The name and port.
        name: String,
        /// What the resolver said.
        source: io::Error,
    },
    /// Whoever answers holds another key than the one expected.
    #[error("peer holds key {presented}, expected {expected}")]
    WrongPeer {
        /// The key that was pinned.
        expected: PublicKey,
        /// The key that the peer presented; it has not been proven.
        presented: PublicKey,
    },
    /// The peer is who it should be, and does not admit our key.
    #[error("peer {peer} refuses our key")]
    PeerRefused {
        /// The peer that refused.
        peer: PublicKey,
    },
    /// The TLS handshake failed: no common key exchange, no raw key, or not TLS at all.
    #[error("tls handshake")]
    Handshake(#[source] io::Error),
    /// The preface of a reversed connection is missing, torn or too long.
    #[error("read the preface of a reversed connection")]
    Preface(#[source] io::Error),
    /// A step took longer than its limit.
    #[error("{step} took longer than {limit:?}")]
    TimedOut {
        /// What was going on.
        step: &'static str,
        /// The limit that it broke.
        limit: Duration,
    },
    /// A body is larger than the limit.
    #[error("body exceeds {limit} bytes")]
    BodyTooLarge {
        /// The limit in bytes.
        limit: usize,
    },
    /// The connection ended before the exchange did.
    #[error("connection to {peer} lost")]
    Lost {
        /// The peer at the other end.
        peer: PublicKey,
        /// Whether the request may have reached the peer, and been acted on.
        sent: bool,
        /// What HTTP/2 said.
        source: Box<dyn StdError + Send + Sync>,
    },
    /// Plain HTTP was asked for on an address that other machines can reach.
    #[error("plain http on {address} is refused; give a certificate or listen on loopback")]
    PlainRefused {
        /// The address of the listener.
        address: SocketAddr,
    },
    /// The operator's certificate or private key cannot be used.
    #[error("certificate: {0}")]
    Certificate(String),
    /// A listener cannot be used.
    #[error("listener")]
    Listener(#[source] io::Error),
}

impl Error {
    /// The stable code that people meet, with a page of its own.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Dial { .. } | Self::Name { .. } => error_code::PEER_UNREACHABLE,
            Self::WrongPeer { .. } => error_code::PEER_WRONG_KEY,
            Self::PeerRefused { .. } => error_code::PEER_REFUSED,
            Self::Handshake(_) | Self::Preface(_) | Self::Lost { .. } => error_code::PEER_LOST,
            Self::TimedOut { .. } => error_code::TIMED_OUT,
            Self::BodyTooLarge { .. } => error_code::RESPONSE_TOO_LARGE,
            Self::PlainRefused { .. } => error_code::PLAIN_HTTP_REFUSED,
            Self::Certificate(_) => error_code::TLS_CERTIFICATE_INVALID,
            Self::Listener(_) => error_code::LISTEN_FAILED,
        }
    }

    /// Whether the request certainly never reached the peer's program, so that it may be sent again,
    /// even to another peer, without being done twice.
    #[must_use]
    pub fn never_sent(&self) -> bool {
        match self {
            Self::Dial { .. }
            | Self::Name { .. }
            | Self::WrongPeer { .. }
            | Self::PeerRefused { .. }
            | Self::Handshake(_) => true,
            Self::Lost { sent, .. } => !sent,
            _ => false,
        }
    }
}
