//! Halts in words: in listings and refusals, and in the change that lifts them.

use super::escape::{quoted, show_time};
use super::fields::FieldTexts;
use protocol::halt::{Halt, HaltScope};

/// Returns what a halt stops, in words: `the service chat`.
#[must_use]
pub fn describe_scope(scope: &HaltScope) -> String {
    match scope {
        HaltScope::Service(name) => format!("the service {name}"),
        HaltScope::Node(name) => format!("the node {name}"),
        HaltScope::Region(region) => format!("the region {}", quoted(region)),
        HaltScope::Circle => "the whole circle".into(),
    }
}

/// Returns why something is halted, in words: `halted by alice: "it answers nonsense" (halt 7f3a90c2)`. The
/// reason is escaped.
#[must_use]
pub fn describe_halt(halt: &Halt) -> String {
    let reason = if halt.reason.is_empty() { String::new() } else { format!(": {}", quoted(&halt.reason)) };
    format!("halted by {}{reason} (halt {})", halt.member, halt.id().short())
}

/// Returns the sentence of a change that lifts halts.
pub(super) fn sentence(halts: &[Halt]) -> String {
    let words = |halt: &Halt| format!("{} by {}", describe_scope(&halt.scope), halt.member);
    let named: Vec<String> = halts.iter().map(words).collect();
    let (noun, pronoun) = if halts.len() == 1 { ("halt", "it") } else { ("halts", "they") };
    format!("Lift the {noun} of {}: what only {pronoun} stopped runs again.", named.join(", "))
}

/// Returns the fields of a change that lifts halts.
pub(super) fn fields(halts: &[Halt]) -> FieldTexts {
    let of_halt = |(number, halt): (usize, &Halt)| {
        let Halt { circle, member, signer, scope, reason, issued_at, nonce } = halt;
        let kind = match scope {
            HaltScope::Service(name) => format!("service {name}"),
            HaltScope::Node(name) => format!("node {name}"),
            HaltScope::Region(region) => format!("region {}", quoted(region)),
            HaltScope::Circle => "circle".into(),
        };
        [
            ("id", halt.id().to_string()),
            ("of circle", circle.to_string()),
            ("member", member.to_string()),
            ("signing key", signer.to_string()),
            ("stops", kind),
            ("reason", quoted(reason)),
            ("issued at", show_time(*issued_at)),
            ("nonce", nonce.to_string()),
        ]
        .map(|(name, value)| (format!("lift.{number}.{name}"), value))
    };
    (1..).zip(halts).flat_map(of_halt).collect()
}
