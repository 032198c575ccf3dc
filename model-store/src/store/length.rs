//! Answers whose length is wrong: longer than requested, or past the end of the object.

/// A service sent, or announced, more bytes than the request allows.
#[derive(Debug, thiserror::Error)]
#[error("the answer is larger than the {limit} bytes that were asked for")]
pub(crate) struct Surplus {
    pub(crate) limit: u64,
}

/// The range starts after the end of the object.
#[derive(Debug, thiserror::Error)]
#[error("the object ends before the range")]
pub(crate) struct BehindEnd;
