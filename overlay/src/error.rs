//! Errors of a connection, or of an exchange over it; one variant for each thing a caller can do about it.

use protocol::PublicKey;
use protocol::error_code::{self, ErrorCode};
use std::error::Error as StdError;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

/// The failure to make a connection, or to finish an exchange over it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No peer answers at the address.
    #[error("dial {address}")]
    Dial {
        /// Address that was dialled.
        address: SocketAddr,
        /// Error of the operating system.
        source: io::Error,
    },
    /// The name of the peer's machine cannot be resolved.
    #[error("look up `{name}`")]
    Name {
        /// Name and port.
        name: String,
        /// Error of the resolver.
        source: io::Error,
    },
    /// The answering peer holds another key than the one expected.
    #[error("peer holds key {presented}, expected {expected}")]
    WrongPeer {
        /// Key that was pinned.
        expected: PublicKey,
        /// Key that the peer presented; it has not been proven.
        presented: PublicKey,
    },
    /// The peer holds the expected key, but does not admit ours.
    #[error("peer {peer} refuses our key")]
    PeerRefused {
        /// Peer that refused.
        peer: PublicKey,
    },
    /// The TLS handshake failed: no common key exchange, no raw key, or not TLS at all.
    #[error("tls handshake")]
    Handshake(#[source] io::Error),
    /// The preface of a reversed connection is missing, torn or too long.
    #[error("read the preface of a reversed connection")]
    Preface(#[source] io::Error),
    /// A step took longer than its limit.
    #[error("{step} took longer than {} s", limit.as_secs_f64())]
    TimedOut {
        /// Step that was in progress.
        step: &'static str,
        /// Limit that it exceeded.
        limit: Duration,
    },
    /// A body is larger than the limit.
    #[error("body exceeds {limit} bytes")]
    BodyTooLarge {
        /// Limit in bytes.
        limit: usize,
    },
    /// The connection ended before the exchange did.
    #[error("connection to {peer} lost")]
    Lost {
        /// Peer at the other end.
        peer: PublicKey,
        /// Whether the request may have reached the peer and taken effect.
        sent: bool,
        /// Error of the HTTP/2 library.
        source: Box<dyn StdError + Send + Sync>,
    },
    /// Plain HTTP was requested on an address that other machines can reach.
    #[error("plain http on {address} is refused; give a certificate or listen on loopback")]
    PlainRefused {
        /// Address of the listener.
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
    /// Returns the stable code for users, which has a documentation page of its own.
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

    /// Returns whether the request certainly never reached the peer's program. It may then be sent again,
    /// even to another peer, without taking effect twice.
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
