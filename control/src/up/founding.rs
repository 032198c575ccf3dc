//! Founding of a demonstration circle: three members with a rule of 2 of 3, three control replicas, three
//! nodes and a gateway.
//!
//! Keys and signatures are real. Only the safekeeping is a demonstration: the members' keys are files beside
//! each other.

use super::layout::{GATEWAY, Layout, MEMBERS, NODES, REPLICAS, REQUIRED, STORES};
use super::ports::Ports;
use crate::context::Context;
use crate::grant::{GrantTerms, unsigned_grant};
use crate::member_key::{MemberKeyFile, create_secret};
use crate::node::{NodeFile, UNSIGNED, create_keys};
use crate::policy::simple_policy;
use crate::server::create_replica;
use anyhow::{Result, anyhow};
use host::files;
use host::random::fresh_secret_text;
use host::wall_clock;
use human_chain::sign_grant;
use protocol::access::{AccessEnvelope, GRANT_SECONDS_MAX, GrantedAccess};
use protocol::governance::*;
use protocol::{CircleId, MemberId, NodeId, ReplicaId};
use std::collections::{BTreeMap, BTreeSet};

/// Creates every key, the genesis signed by every founder, and the context file.
///
/// # Errors
/// Returns an error if the directory cannot be written.
pub(super) fn found(layout: &Layout, ports: &Ports) -> Result<()> {
    let keys: Vec<MemberKeyFile> = MEMBERS
        .iter()
        .map(|name| {
            let key = MemberKeyFile::generate(name.parse().map_err(|error: String| anyhow!(error))?);
            key.save(&layout.member_key(name))?;
            Ok(key)
        })
        .collect::<Result<_>>()?;
    let members: Vec<Member> =
        keys.iter().map(|key| Member { id: key.member.clone(), keys: key.secret.public() }).collect();
    let genesis = Genesis {
        name: "demo".into(),
        founded_at: wall_clock(),
        policy: simple_policy(&members, REQUIRED),
        access: AccessEnvelope::standard(members.iter().map(|member| member.id.clone())),
        members,
        control: (1..=REPLICAS).map(|id| replica(layout, ports, id)).collect::<Result<_>>()?,
        nodes: NODES
            .iter()
            .map(|name| worker(layout, ports, name))
            .chain([gateway(layout, ports)])
            .collect::<Result<_>>()?,
    };
    let founders: Vec<(MemberId, &_)> = keys.iter().map(|key| (key.member.clone(), &key.secret)).collect();
    let signed = human_chain::sign_genesis(genesis, &founders);
    files::write_atomically(&layout.genesis(), &serde_json::to_vec_pretty(&signed)?, 0o644)?;
    grant_token(layout, human_chain::circle_id(&signed.genesis), &keys[0])?;
    write_context(layout, ports, &signed)
}

/// Creates the operator's access token, and the grant of it by the first member, which goes to control when
/// that runs.
fn grant_token(layout: &Layout, circle: CircleId, issuer: &MemberKeyFile) -> Result<()> {
    let token = fresh_secret_text("quorate-token");
    create_secret(&layout.token(), token.as_bytes())?;
    let scopes = BTreeSet::from([TokenScope::Read, TokenScope::Propose, TokenScope::Submit]);
    let terms = GrantTerms {
        circle,
        envelope: circle.0,
        holder: "operator".parse().map_err(|error: String| anyhow!(error))?,
        access: GrantedAccess::Token { scopes },
        valid_seconds: GRANT_SECONDS_MAX,
    };
    let grant = unsigned_grant(terms, &issuer.member, &issuer.secret, &token, wall_clock());
    let signed = sign_grant(&issuer.secret, grant);
    files::write_atomically(&layout.token_grant(), &serde_json::to_vec_pretty(&signed)?, 0o644)?;
    Ok(())
}

fn replica(layout: &Layout, ports: &Ports, id: u64) -> Result<ControlReplica> {
    let identity = create_replica(&layout.control(id))?;
    Ok(ControlReplica {
        id: ReplicaId(id),
        key: identity.public_key(),
        address: ports.address(&format!("control-{id}/overlay")).to_string(),
        api: format!("http://{}", ports.address(&format!("control-{id}/api"))),
    })
}

/// Prepares a node that runs services and stores models; creates its keys if its directory has none.
///
/// # Errors
/// Returns an error if the directory cannot be written.
pub(super) fn worker(layout: &Layout, ports: &Ports, name: &str) -> Result<NodeAdmission> {
    let directory = layout.node(name);
    let keys = create_keys(&directory, false)?;
    let stores = STORES.iter().map(|store| store.parse()).collect::<Result<_, _>>();
    let admission = NodeAdmission {
        name: name.parse().map_err(|error: String| anyhow!(error))?,
        id: NodeId(keys.identity.public_key()),
        encryption: keys.encryption.clone(),
        roles: BTreeSet::from([NodeRole::Worker, NodeRole::Storage]),
        region: "local".into(),
        owner: None,
        labels: BTreeMap::new(),
        storage: Some(StorageEndpoint {
            address: ports.address(&format!("{name}/storage")).to_string(),
            stores: stores.map_err(|error: String| anyhow!(error))?,
        }),
        gateway: None,
        proof: UNSIGNED,
    };
    let admission = keys.claim(admission);
    NodeFile { admission: admission.clone() }.save(&directory)?;
    Ok(admission)
}

fn gateway(layout: &Layout, ports: &Ports) -> Result<NodeAdmission> {
    let directory = layout.node(GATEWAY);
    let keys = create_keys(&directory, true)?;
    let key = keys.gateway.ok_or_else(|| anyhow!("a gateway has a key"))?;
    let admission = NodeAdmission {
        name: GATEWAY.parse().map_err(|error: String| anyhow!(error))?,
        id: NodeId(keys.identity.public_key()),
        encryption: keys.encryption.clone(),
        roles: BTreeSet::from([NodeRole::Gateway]),
        region: "local".into(),
        owner: None,
        labels: BTreeMap::new(),
        storage: None,
        gateway: Some(GatewayEndpoint {
            key,
            address: ports.address(&format!("{GATEWAY}/workers")).to_string(),
            api: format!("http://{}", ports.address(&format!("{GATEWAY}/api"))),
        }),
        proof: UNSIGNED,
    };
    let admission = keys.claim(admission);
    NodeFile { admission: admission.clone() }.save(&directory)?;
    Ok(admission)
}

fn write_context(layout: &Layout, ports: &Ports, signed: &SignedGenesis) -> Result<()> {
    let relative = |path: std::path::PathBuf| {
        path.strip_prefix(layout.root()).map(std::path::Path::to_path_buf).unwrap_or(path)
    };
    let context = Context {
        name: "demo".into(),
        circle: human_chain::circle_id(&signed.genesis),
        control: signed.genesis.control.iter().map(|replica| replica.api.clone()).collect(),
        gateway: Some(format!("http://{}", ports.address(&format!("{GATEWAY}/api")))),
        token_file: relative(layout.token()),
        member_key_file: Some(relative(layout.member_key(MEMBERS[0]))),
        node_directory: Some(relative(layout.node(NODES[0]))),
        certificate_authority_file: None,
        file: layout.context(),
    };
    files::write_atomically(&layout.context(), &serde_json::to_vec_pretty(&context)?, 0o644)?;
    Ok(())
}
