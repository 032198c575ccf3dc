//! `quorate node`: lists nodes, shows their state, and proposes their admission and removal.

use super::Environment;
use super::output::table;
use super::proposals::{ProposerArguments, reason_or};
use super::sharing::{member_key, share_text};
use crate::node::share_keys;
use crate::session::Session;
use crate::terminal::line;
use anyhow::{Result, bail};
use clap::Subcommand;
use protocol::agent::PendingNode;
use protocol::api::{NodeView, Page};
use protocol::governance::{Change, NodeRole, StorageEndpoint};
use protocol::manifest::format_bytes;
use protocol::{NodeId, NodeName, Refusal, StoreName, error_code};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

#[derive(Debug, Subcommand)]
pub(crate) enum NodeCommand {
    /// List admitted nodes
    #[command(after_help = "Example:\n  quorate node list")]
    List,
    /// Show one node
    #[command(after_help = "Example:\n  quorate node show node-1")]
    Show {
        /// Name of the node
        node: NodeName,
    },
    /// List the nodes that wait for admission
    #[command(after_help = "Example:\n  quorate node pending")]
    Pending,
    /// Propose to admit a pending node; once it is admitted, members' next commands share the models' keys
    #[command(after_help = "Example:\n  quorate node admit node-4 --reason 'new rack'")]
    Admit {
        /// Name of the node
        node: NodeName,
        /// First digits of the node's key, obtained from its operator
        #[arg(long)]
        identity: Option<String>,
        /// Reason shown to the voters
        #[arg(long, default_value = "")]
        reason: String,
        #[command(flatten)]
        proposer: ProposerArguments,
    },
    /// Share the keys of all models with the nodes and members that lack them, as each vote does too
    #[command(after_help = "Example:\n  quorate node share --key alice.key")]
    Share {
        /// Key file of the member, to open the models' keys [default: the context's]
        #[arg(long, value_name = "FILE")]
        key: Option<PathBuf>,
    },
    /// Propose to remove a node; its slots move to other nodes
    #[command(after_help = "Example:\n  quorate node remove node-4 --reason 'returned to vendor'")]
    Remove {
        /// Name of the node
        node: NodeName,
        /// Reason shown to the voters
        #[arg(long, default_value = "")]
        reason: String,
        #[command(flatten)]
        proposer: ProposerArguments,
    },
}

pub(crate) async fn run(command: NodeCommand, environment: &Environment) -> Result<()> {
    let context = environment.context()?;
    match command {
        NodeCommand::List => {
            let client = context.client()?;
            let page: Page<NodeView> = client.get("/v1/nodes").await?;
            let pending: Page<PendingNode> = client.get("/v1/pending-nodes").await?;
            environment.output().print(&page, |page| {
                nodes_table(&page.items) + &notes(&page.items) + &pending_notes(&pending.items)
            });
        }
        NodeCommand::Show { node } => {
            let page: Page<NodeView> = context.client()?.get("/v1/nodes").await?;
            let found = page.items.into_iter().find(|view| view.name == node);
            let view = found.ok_or_else(|| no_node(&node))?;
            environment
                .output()
                .print(&view, |view| nodes_table(std::slice::from_ref(view)) + &details(view));
        }
        NodeCommand::Pending => {
            let page: Page<PendingNode> = context.client()?.get("/v1/pending-nodes").await?;
            environment.output().print(&page, |page| {
                let row = |node: &PendingNode| vec![node.admission.name.to_string(), node.id.to_string()];
                table(&["node", "identity"], page.items.iter().map(row).collect())
            });
        }
        NodeCommand::Admit { node, identity, reason, proposer } => {
            let session = Session::open(&context).await?;
            let reason = reason_or(reason, || format!("admit node {node}"));
            let change = admission(&session, &node, identity.as_deref()).await?;
            proposer.propose(environment, &session, change, reason).await?;
        }
        NodeCommand::Share { key } => {
            let member = member_key(&context, key)?;
            let session = Session::open(&context).await?;
            let shared = share_keys(&session, &member).await?;
            environment.output().print(&shared, share_text);
        }
        NodeCommand::Remove { node, reason, proposer } => {
            let session = Session::open(&context).await?;
            let reason = reason_or(reason, || format!("remove node {node}"));
            let change = Change::RemoveNode { node };
            proposer.propose(environment, &session, change, reason).await?;
        }
    }
    Ok(())
}

fn no_node(name: &NodeName) -> anyhow::Error {
    let message = format!("no node `{name}` is admitted; `quorate node list` shows all");
    Refusal::new(error_code::NODE_NOT_FOUND, message).into()
}

/// Returns the admission of a pending node. Nothing is shared with it before the vote: its keys are a claim
/// until then.
async fn admission(session: &Session, name: &NodeName, identity: Option<&str>) -> Result<Change> {
    let page: Page<PendingNode> = session.client.get("/v1/pending-nodes").await?;
    let matches = |id: &NodeId| identity.is_none_or(|prefix| id.to_string().starts_with(prefix));
    let mut found = page.items.into_iter().filter(|node| node.admission.name == *name && matches(&node.id));
    let pending = found.next().ok_or_else(|| {
        let message =
            format!("no node `{name}` waits for admission; `quorate node pending` lists those that do");
        Refusal::new(error_code::NODE_NOT_FOUND, message)
    })?;
    if found.next().is_some() {
        bail!("several pending nodes are named `{name}`; choose one with --identity");
    }
    Ok(Change::AdmitNode(Box::new(pending.admission)))
}

/// Lists the nodes that wait for admission, below the list of admitted ones.
fn pending_notes(pending: &[PendingNode]) -> String {
    let line = |node: &PendingNode| {
        let name = &node.admission.name;
        format!("\n{name} waits for admission: quorate node admit {name}")
    };
    pending.iter().map(line).collect()
}

fn nodes_table(nodes: &[NodeView]) -> String {
    let row = |node: &NodeView| {
        let gpus = node.gpus.iter().fold(std::collections::BTreeMap::new(), |mut counts, gpu| {
            let label = if gpu.simulated { format!("{} (simulated)", gpu.name) } else { gpu.name.clone() };
            *counts.entry(label).or_insert(0_u32) += 1;
            counts
        });
        let gpus: Vec<String> = gpus.into_iter().map(|(name, count)| format!("{count}x {name}")).collect();
        vec![
            node.name.to_string(),
            if node.alive { "alive".into() } else { "silent".into() },
            isolation(node),
            format!("{:.1}", node.cpu_millicores as f64 / 1000.0),
            format_bytes(node.memory_bytes),
            if gpus.is_empty() { "-".into() } else { gpus.join(", ") },
            node.slots.to_string(),
            node.admission.region.clone(),
            node.admission.owner.as_ref().map_or_else(|| "-".into(), ToString::to_string),
        ]
    };
    let header = ["node", "state", "isolation", "cores", "memory", "gpus", "slots", "region", "owner"];
    table(&header, nodes.iter().map(row).collect())
}

/// Returns the isolation level of a node, with a mark if the node does not enforce every limit.
fn isolation(node: &NodeView) -> String {
    let Some(isolation) = node.isolation else { return "-".into() };
    let mark = if limits_not_enforced(node).is_empty() { "" } else { "*" };
    format!("{isolation}{mark}")
}

/// Returns the limits that a node does not enforce; empty for a node without the worker role.
fn limits_not_enforced(node: &NodeView) -> BTreeSet<&'static str> {
    let worker = node.admission.roles.contains(&NodeRole::Worker);
    node.not_enforced.iter().filter(|_| worker).map(|label| scheduler::limit_of(label)).collect()
}

/// Returns the footnotes that explain the marks in the list.
fn notes(nodes: &[NodeView]) -> String {
    let mut nodes_of: BTreeMap<Vec<&str>, Vec<&str>> = BTreeMap::new();
    for node in nodes {
        let limits: Vec<&str> = limits_not_enforced(node).into_iter().collect();
        if !limits.is_empty() {
            nodes_of.entry(limits).or_default().push(node.name.as_str());
        }
    }
    let lacking = nodes.iter().filter(|node| !node.keys_lacking.is_empty());
    let lacking = lacking
        .map(|node| format!("\n{} lacks the keys of {}; next: quorate node share", node.name, models(node)));
    let line = |(limits, names): (Vec<&str>, Vec<&str>)| {
        format!(
            "\n* not enforced on {}: {}; why: quorate node show {}",
            names.join(", "),
            limits.join(", "),
            names[0]
        )
    };
    nodes_of.into_iter().map(line).chain(lacking).collect()
}

/// Returns the names of the models whose keys a node lacks.
fn models(node: &NodeView) -> String {
    node.keys_lacking.iter().map(|name| name.as_str()).collect::<Vec<_>>().join(", ")
}

fn details(node: &NodeView) -> String {
    let mut text = format!("\nidentity {}\n", node.id);
    if let Some(StorageEndpoint { address, stores }) = &node.admission.storage {
        let stores: Vec<&str> = stores.iter().map(StoreName::as_str).collect();
        text.push_str(&format!("storage at {}: {}\n", line(address), stores.join(", ")));
    }
    for label in &node.not_enforced {
        text.push_str(&format!("not enforced: {}\n", line(label)));
    }
    if !node.keys_lacking.is_empty() {
        text.push_str(&format!("lacks the keys of {}\n", models(node)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::manifest::Isolation;

    fn node(name: &str, isolation: Isolation, not_enforced: &[&str]) -> NodeView {
        let admission = crate::testing::admission(name);
        NodeView {
            name: admission.name.clone(),
            id: admission.id,
            admission,
            alive: true,
            heard_ms_ago: Some(1),
            cpu_millicores: 1000,
            memory_bytes: 1 << 30,
            gpus: vec![],
            isolation: Some(isolation),
            not_enforced: not_enforced.iter().map(|label| (*label).to_string()).collect(),
            slots: 0,
            keys_lacking: vec![],
        }
    }

    #[test]
    fn a_pending_node_is_listed_with_the_command_that_admits_it() {
        let admission = crate::testing::admission("node-4");
        let pending = PendingNode { id: admission.id, admission, last_seen: protocol::Millis(1) };
        assert_eq!(pending_notes(&[]), "");
        let expected = "\nnode-4 waits for admission: quorate node admit node-4";
        assert_eq!(pending_notes(&[pending]), expected);
    }

    #[test]
    fn a_node_that_lacks_keys_is_named_with_the_command_that_shares_them() {
        let mut view = node("node-4", Isolation::Full, &[]);
        assert_eq!(notes(std::slice::from_ref(&view)), "");
        view.keys_lacking = ["minilm", "tiny"].map(|name| name.parse().expect("a name")).into();
        let expected = "\nnode-4 lacks the keys of minilm, tiny; next: quorate node share";
        assert_eq!(notes(std::slice::from_ref(&view)), expected);
        assert!(details(&view).ends_with("lacks the keys of minilm, tiny\n"));
    }

    #[test]
    fn details_name_the_stores_and_every_limit_that_is_not_enforced() {
        let mut view = node("node-1", Isolation::SameUid, &["cpu: Permission denied"]);
        let stores = ["disk-0", "disk-1"].map(|store| store.parse().expect("a name"));
        view.admission.storage =
            Some(StorageEndpoint { address: "10.0.0.7:7700".into(), stores: stores.into() });
        let text = details(&view);
        assert!(text.contains("\nstorage at 10.0.0.7:7700: disk-0, disk-1\n"), "{text}");
        assert!(text.ends_with("not enforced: cpu: Permission denied\n"), "{text}");
        assert!(text.starts_with(&format!("\nidentity {}\n", view.id)), "{text}");
    }

    #[test]
    fn a_node_that_does_not_enforce_a_limit_is_marked_in_the_list() {
        let denied =
            ["cpu: Permission denied", "memory: Permission denied", "user-ids: the agent's own user"];
        let nodes = [
            node("node-1", Isolation::Full, &[]),
            node("node-2", Isolation::SameUid, &denied),
            node("node-3", Isolation::SameUid, &denied),
        ];
        let mut gateway = node("gateway-1", Isolation::SameUid, &denied);
        gateway.admission.roles = BTreeSet::from([NodeRole::Gateway]);
        assert!(!nodes_table(std::slice::from_ref(&gateway)).contains('*'), "it runs nothing to be limited");
        assert_eq!(notes(&[gateway]), "");
        let text = nodes_table(&nodes) + &notes(&nodes);
        let line = |name: &str| text.lines().find(|line| line.starts_with(name)).expect("a line").to_string();
        assert!(line("node-1").contains("full ") && !line("node-1").contains('*'), "{text}");
        assert!(line("node-2").contains("same_uid*") && line("node-3").contains("same_uid*"), "{text}");
        let expected =
            "* not enforced on node-2, node-3: cpu, memory, user-ids; why: quorate node show node-2";
        assert!(text.ends_with(expected), "{text}");
        assert_eq!(notes(&nodes[..1]), "");
    }
}
