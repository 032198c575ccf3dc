//! Reasons why bytes are not canonical.

/// Reason why bytes are not the canonical form of the expected type.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CanonicalError {
    /// More bytes than the caller's limit; nothing was parsed.
    #[error("{actual} bytes exceed the limit of {limit}")]
    TooLong {
        /// Number of bytes given.
        actual: usize,
        /// Number of bytes allowed.
        limit: usize,
    },
    /// Not CBOR, or not a value of this type.
    #[error("not a valid encoding: {0}")]
    Invalid(String),
    /// Valid CBOR, but not the canonical encoding of its value.
    #[error("not the canonical encoding of its value")]
    NotCanonical,
    /// A float, tag or undefined value, which canonical form excludes.
    #[error("contains a {0}, which canonical form does not have")]
    Forbidden(&'static str),
    /// The value would take several times as much memory as its bytes.
    #[error("its items would take more than four times the memory of its bytes")]
    Costly,
}
