//! Bounds of access in words: in the change that sets them, and in a genesis.

use super::escape::show_duration;
use super::fields::FieldTexts;
use crate::access::{scopes_text, services_text};
use protocol::MemberId;
use protocol::access::AccessEnvelope;
use protocol::display::counted;

/// Returns the sentence of an envelope.
pub(super) fn sentence(envelope: &AccessEnvelope) -> String {
    let grantors = names(envelope);
    let earlier = if envelope.ends_earlier {
        "all earlier grants end"
    } else {
        "earlier grants that are within these bounds stand on"
    };
    format!(
        "Let {grantors} grant access, each by one signature: up to {} ({}) and {} for {}, each valid for at \
         most {}; {earlier}.",
        counted(u64::from(envelope.tokens_max), "access token"),
        scopes_text(&envelope.scopes),
        counted(u64::from(envelope.keys_max), "inference key"),
        services_text(envelope.services.as_ref()),
        show_duration(u64::from(envelope.seconds_max)),
    )
}

/// Returns the fields of an envelope.
pub(super) fn fields(envelope: &AccessEnvelope) -> FieldTexts {
    let AccessEnvelope { grantors: _, scopes, tokens_max, services, keys_max, seconds_max, ends_earlier } =
        envelope;
    let earlier = if *ends_earlier { "end" } else { "stand on within these bounds" };
    vec![
        ("access.granted by".into(), names(envelope)),
        ("access.tokens at most".into(), tokens_max.to_string()),
        ("access.scopes of tokens".into(), scopes_text(scopes)),
        ("access.keys at most".into(), keys_max.to_string()),
        ("access.services of keys".into(), services_text(services.as_ref())),
        ("access.valid at most".into(), format!("{seconds_max} s")),
        ("access.earlier grants".into(), earlier.into()),
    ]
}

fn names(envelope: &AccessEnvelope) -> String {
    let names: Vec<&str> = envelope.grantors.iter().map(MemberId::as_str).collect();
    names.join(", ")
}
