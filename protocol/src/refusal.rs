//! A refusal: a stable error code, and text for people.

use crate::error_code::ErrorCode;
use serde::{Deserialize, Serialize};
use std::error::Error;
use utoipa::ToSchema;

/// The refusal of a request, command or operation.
///
/// The code is a value, so no caller parses it from a text. `Display` prints `code: message`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[error("{code}: {message}")]
pub struct Refusal {
    /// Stable code of the cause.
    #[schema(value_type = String)]
    pub code: ErrorCode,
    /// Cause, as text for people.
    pub message: String,
}

impl Refusal {
    /// Creates a refusal with this code and text.
    #[must_use]
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        let message = message.into();
        debug_assert!(!message.is_empty(), "a refusal says why: {code}");
        Self { code, message }
    }

    /// Creates a refusal whose text is an error and all of its causes.
    #[must_use]
    pub fn of(code: ErrorCode, error: &dyn Error) -> Self {
        Self::new(code, crate::error_chain(error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error_code::{NAME_TAKEN, STORE_FULL};

    #[test]
    fn the_code_comes_before_the_message() {
        let refusal = Refusal::new(NAME_TAKEN, "an API key `app` exists");
        assert_eq!(refusal.to_string(), "name-taken: an API key `app` exists");
    }

    #[test]
    fn a_refusal_of_an_error_has_the_causes_in_its_message() {
        #[derive(Debug, thiserror::Error)]
        #[error("write shard 3")]
        struct WriteFailed(#[source] std::fmt::Error);

        let refusal = Refusal::of(STORE_FULL, &WriteFailed(std::fmt::Error));
        assert_eq!(refusal.code, STORE_FULL);
        assert_eq!(refusal.message, format!("write shard 3: {}", std::fmt::Error));
    }
}
