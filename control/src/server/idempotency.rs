//! The idempotency key of a write: an HTTP header as in the IETF draft
//! `draft-ietf-httpapi-idempotency-key-header`.
//!
//! A key is opaque and scoped to the token of the request. The state machine keeps the outcomes, so they
//! survive the crash of a replica and a change of leader. This module handles the header alone.

use super::Server;
use super::problem::Failure;
use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use protocol::api::IDEMPOTENCY_KEY_HEADER;
use protocol::{Digest, TokenName, error_code};
use std::sync::Arc;
use utoipa::openapi::path::{Operation, Parameter, ParameterBuilder, ParameterIn};
use utoipa::openapi::{ObjectBuilder, RefOr, Required, Type};

/// Maximum length of a key in bytes: more than a UUID or 64 random bytes in hexadecimal need.
pub(super) const KEY_BYTES_MAX: usize = 128;
/// Domain separator of a key's digest.
const KEY_DOMAIN: &str = "quorate/idempotency-key/v1";

/// The idempotency key of a request, if it carries one.
pub(super) struct Key(Option<Digest>);

impl Key {
    /// Returns the digest of the key's text, if the client sent one.
    pub(super) fn digest(&self) -> Option<protocol::Digest> {
        self.0
    }

    /// Returns the key in the log's form, scoped to this token.
    pub(super) fn of(self, token: &TokenName) -> Option<scheduler::IdempotencyKey> {
        self.0.map(|key| scheduler::IdempotencyKey { token: token.clone(), key })
    }
}

impl FromRequestParts<Arc<Server>> for Key {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &Arc<Server>) -> Result<Self, Failure> {
        let mut values = parts.headers.get_all(IDEMPOTENCY_KEY_HEADER).iter();
        let Some(value) = values.next() else { return Ok(Self(None)) };
        let text = value.to_str().ok().filter(|_| values.next().is_none()).and_then(opaque);
        let key = text.ok_or_else(|| {
            let message = format!("an idempotency key is 1 to {KEY_BYTES_MAX} visible ASCII characters");
            Failure::new(error_code::REQUEST_INVALID, message).at("header Idempotency-Key")
        })?;
        Ok(Self(Some(Digest::of_domain(KEY_DOMAIN, key.as_bytes()))))
    }
}

/// Extracts the key from the header's text: the draft puts it in quotation marks, and most clients do not.
fn opaque(text: &str) -> Option<&str> {
    let bare = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text);
    let visible = bare.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'"');
    (visible && (1..=KEY_BYTES_MAX).contains(&bare.len())).then_some(bare)
}

/// Adds the header to the parameters of an operation.
pub(super) fn describe(operation: &mut Operation) {
    let schema = ObjectBuilder::new()
        .schema_type(Type::String)
        .min_length(Some(1))
        .max_length(Some(KEY_BYTES_MAX))
        .pattern(Some("^[!#-~]+$"));
    let parameter: Parameter = ParameterBuilder::new()
        .name("Idempotency-Key")
        .parameter_in(ParameterIn::Header)
        .required(Required::False)
        .description(Some(
            "Names this write. A write sent again under the same key is applied once and gets the same \
             response; another write under it is refused with `idempotency-key-reused`. Keys are kept for a \
             day, or for the last 16,384 writes.",
        ))
        .schema(Some(schema))
        .build();
    operation.parameters.get_or_insert_default().push(RefOr::T(parameter));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_short_visible_and_may_stand_in_quotation_marks() {
        let longest = "k".repeat(KEY_BYTES_MAX);
        let uuid = "8e03978e-40d5-43dd-bc93-6894a57f9324";
        for (text, expected) in [
            (uuid, Some(uuid)),
            (&format!("\"{uuid}\""), Some(uuid)),
            (&longest, Some(longest.as_str())),
            ("", None),
            ("\"\"", None),
            ("\"", None),
            ("two words", None),
            ("a\"b", None),
            (&format!("{longest}k"), None),
            ("\u{e4}", None),
        ] {
            assert_eq!(opaque(text), expected, "{text}");
        }
    }
}
