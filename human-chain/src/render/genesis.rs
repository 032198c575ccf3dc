//! Rendering of a genesis: the text that founders read before they sign.
//!
//! It is made as the rendering of a proposal is: a sentence, then every field, from the genesis alone. The
//! signature of a founder covers the genesis itself; digest and words let founders compare their screens.

use super::escape::{quoted, show_time};
use super::fields::{self, FieldTexts};
use super::{RENDERER_VERSION, Rendering, access, text_of, words};
use crate::circle_id;
use crate::quorum::describe;
use protocol::Digest;
use protocol::display::counted;
use protocol::governance::{ControlReplica, GENESIS_RENDERING_DOMAIN, Genesis, NodeAdmission};

/// Renders a genesis. No two different ones have the same rendering: every field is in it, and so is the
/// digest of the whole, which is the circle's id.
#[must_use]
pub fn render_genesis(genesis: &Genesis) -> Rendering {
    let text = text_of(&sentence(genesis), of_genesis(genesis));
    debug_assert!(text.contains(&circle_id(genesis).to_string()), "the digest of the whole is shown");
    let digest = Digest::of_domain(GENESIS_RENDERING_DOMAIN, text.as_bytes());
    Rendering { words: words::of(&digest), text, digest }
}

fn sentence(genesis: &Genesis) -> String {
    let members: Vec<&str> = genesis.members.iter().map(|member| member.id.as_str()).collect();
    let quorum = |(class, rule)| format!("{class} changes need {}", describe(rule));
    let quorums: Vec<String> = genesis.policy.quorums.iter().map(quorum).collect();
    debug_assert_eq!(quorums.len(), genesis.policy.quorums.len(), "each class shows its rule");
    format!(
        "Found the circle {} of {}: {}; {}; it begins with {} and {}. {}",
        quoted(&genesis.name),
        counted(members.len() as u64, "member"),
        members.join(", "),
        quorums.join(", "),
        counted(genesis.control.len() as u64, "control replica"),
        counted(genesis.nodes.len() as u64, "admitted node"),
        access::sentence(&genesis.access),
    )
}

fn of_genesis(genesis: &Genesis) -> FieldTexts {
    let Genesis { name, founded_at, members, policy, control, nodes, access: envelope } = genesis;
    let mut fields = vec![
        ("circle".to_string(), circle_id(genesis).to_string()),
        ("rendering version".into(), RENDERER_VERSION.to_string()),
        ("name".into(), quoted(name)),
        ("founded at".into(), show_time(*founded_at)),
    ];
    fields.extend(fields::of_members(members, policy));
    fields.extend(control.iter().flat_map(of_replica));
    fields.extend(nodes.iter().flat_map(of_admitted));
    fields.extend(access::fields(envelope));
    debug_assert!(fields.len() >= 4 + members.len() + control.len() + nodes.len());
    fields
}

fn of_replica(replica: &ControlReplica) -> FieldTexts {
    let ControlReplica { id, key, address, api } = replica;
    vec![
        (format!("control.{id}.key"), key.to_string()),
        (format!("control.{id}.address"), quoted(address)),
        (format!("control.{id}.api"), quoted(api)),
    ]
}

/// Returns the fields of a node as its admission shows them, each under the node's name.
fn of_admitted(node: &NodeAdmission) -> FieldTexts {
    let under_name = |(field, value): (String, String)| {
        debug_assert!(field.starts_with("node."), "`{field}` is a field of a node");
        (field.replacen("node.", &format!("node.{}.", node.name), 1), value)
    };
    fields::of_node(node).into_iter().map(under_name).collect()
}
