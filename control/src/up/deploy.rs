//! Deployment of the user's model: import, proposal, votes, and the first replicas.

use super::StartupLog;
use super::cluster::{LocalCluster, POLL_INTERVAL};
use super::layout::{MEMBERS, NODES};
use crate::cli::service_template;
use crate::grant::{GrantTerms, unsigned_grant};
use crate::member_key::{MemberKey, create_secret};
use crate::node::{ImportRequest, ModelAccess};
use crate::print;
use crate::session::{PROPOSAL_LIFETIME_MS, Session};
use anyhow::{Context as _, Result, anyhow, bail};
use host::random::fresh_secret_text;
use host::wall_clock;
use human_chain::sign_grant;
use indicatif::ProgressBar;
use protocol::access::{GrantedAccess, SignedGrant};
use protocol::agent::SlotState;
use protocol::api::{ProposalState, ScaleRequest, ServiceView};
use protocol::display::counted;
use protocol::governance::{Change, Choice};
use protocol::manifest::{Manifest, format_bytes};
use protocol::model::{ErasureCode, ModelRecord};
use protocol::{ServiceName, TokenName};
use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};
use zeroize::Zeroizing;

/// Name of the cluster's first inference key.
const API_KEY_NAME: &str = "demo";
/// Smallest and largest number of replicas in the proposed envelope.
const ENVELOPE: (u32, u32) = (1, 2);
/// Timeout of a deployment, until all its replicas answer.
const READY_LIMIT: Duration = Duration::from_secs(180);

/// Returns the cluster's first inference key: generated once, kept in a file, and granted by the first
/// member.
///
/// # Errors
/// Returns an error if control does not answer, or the file cannot be written.
pub(super) async fn api_key(cluster: &LocalCluster) -> Result<Zeroizing<String>> {
    let path = cluster.layout.api_key();
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => Zeroizing::new(text.trim().to_string()),
        Err(_) => {
            let text = fresh_secret_text("quorate-key");
            create_secret(&path, text.as_bytes())?;
            text
        }
    };
    let session = cluster.session().await?;
    let known: Vec<SignedGrant> = session.client.list("/v1/access/grants").await?;
    let holder: TokenName = API_KEY_NAME.parse().map_err(|error: String| anyhow!(error))?;
    let is_it = |signed: &SignedGrant| {
        signed.grant.holder == holder && matches!(signed.grant.access, GrantedAccess::Key { .. })
    };
    if !known.iter().any(is_it) {
        let MemberKey { member, signer } = cluster.member(MEMBERS[0])?;
        let terms = GrantTerms {
            circle: session.circle.id(),
            envelope: session.circle.access_certificate(),
            holder,
            access: GrantedAccess::Key { services: None, requests_per_minute: None },
            valid_seconds: session.circle.access().seconds_max,
        };
        let signed = sign_grant(&signer, unsigned_grant(terms, &member, &signer, &text, wall_clock()))?;
        let _: serde_json::Value = session.client.post("/v1/access/grants", &signed).await?;
    }
    Ok(text)
}

/// Imports the model unless it is stored, deploys it unless it is approved, and waits until it answers.
///
/// # Errors
/// Returns an error if the model is rejected or its replicas do not start.
pub(super) async fn serve(cluster: &LocalCluster, log: &StartupLog, name: &str, path: &Path) -> Result<()> {
    let session = cluster.session().await?;
    let record = import(cluster, &session, log, name, path).await?;
    let service: ServiceName = name.parse().map_err(|error: String| anyhow!(error))?;
    let (min, max) = ENVELOPE;
    if session.circle.service(&service).is_none() {
        let manifest = service_template(&service, &record, min, max);
        propose_and_sign(cluster, &session, log, &manifest).await?;
    } else {
        log.line(format!("service {service} was approved in an earlier run; its certificate still holds"));
        // The service may have been scaled since; within the envelope no vote is needed to undo that.
        let body = ScaleRequest { replicas: min };
        let _: serde_json::Value =
            session.client.post(&format!("/v1/services/{service}/scale"), &body).await?;
    }
    wait_until_ready(&cluster.session().await?, log, &service, &record, Instant::now()).await
}

async fn import(
    cluster: &LocalCluster,
    session: &Session,
    log: &StartupLog,
    name: &str,
    path: &Path,
) -> Result<ModelRecord> {
    let models: Vec<ModelRecord> = session.client.list("/v1/models").await?;
    if let Some(record) = models.into_iter().find(|record| record.name.as_str() == name) {
        log.line(format!("model {name} is stored already ({})", counted(record.segments, "segment")));
        return Ok(record);
    }
    let access = ModelAccess::open(&cluster.layout.node(NODES[0]), &session.circle)?;
    let request = ImportRequest {
        name: name.parse().map_err(|error: String| anyhow!(error))?,
        erasure: ErasureCode { data: 4, parity: 2 },
        stores: access.stores_of_all_nodes(&session.circle).await?,
        shards_per_domain_max: 2,
        is_foreign_allowed: false,
    };
    let began = Instant::now();
    let importer = cluster.member(MEMBERS[0])?;
    let record = access.import(session, &importer, path, request, ProgressBar::hidden()).await?.record;
    log.line(format!(
        "model {name}  {}  {} segments  4+2 over {} stores  {:.2} s",
        format_bytes(record.bytes),
        record.segments,
        record.stores.len(),
        began.elapsed().as_secs_f64()
    ));
    Ok(record)
}

/// Proposes and signs a deployment, and prints the text that the members sign.
///
/// The votes are given here and not through a console, as the first one of the demonstration is: this command
/// has all keys in one process, so a browser's forms to itself would show nothing. The last lines of `up`
/// name the console in which a person votes next.
async fn propose_and_sign(
    cluster: &LocalCluster,
    session: &Session,
    log: &StartupLog,
    manifest: &str,
) -> Result<()> {
    let manifest = Manifest::from_toml(manifest).map_err(|error| anyhow!("the template: {error}"))?;
    let change = Change::Deploy(Box::new(manifest));
    let view = session.propose(change, "started with quorate up".into(), PROPOSAL_LIFETIME_MS).await?.view;
    let rendering = human_chain::render(&view.proposal);
    log.line(format!("proposal {}  words: {}", view.id.short(), rendering.words.join(" ")));
    for line in rendering.text.lines() {
        print::out(format_args!("            {line}"));
    }
    let mut state = view.state;
    for (count, name) in MEMBERS.iter().enumerate() {
        if !matches!(state, ProposalState::Open | ProposalState::Draft) {
            break;
        }
        // The signer renders the proposal from its own bytes: that rendering is what the ballot binds.
        let signed =
            session.vote(&view.proposal, &cluster.member(name)?, Choice::Approve, String::new()).await?;
        state = signed.view.state;
        log.line(format!("signed by {name} (Ed25519 and ML-DSA-65)  {} of 2", count + 1));
    }
    if state != ProposalState::Approved {
        bail!("two votes did not carry the proposal: {state}");
    }
    Ok(())
}

/// Waits until every desired replica of a service answers.
async fn wait_until_ready(
    session: &Session,
    log: &StartupLog,
    service: &ServiceName,
    record: &ModelRecord,
    since: Instant,
) -> Result<()> {
    let deadline = Instant::now() + READY_LIMIT;
    loop {
        let view: ServiceView = session.client.get(&format!("/v1/services/{service}")).await?;
        if view.ready >= view.desired && all_verified(&view, record) {
            let nodes: BTreeSet<String> =
                view.slots.iter().filter_map(|slot| slot.node.as_ref()).map(ToString::to_string).collect();
            log.line(format!(
                "{service} answers on {} after {:.2} s: on each {} in {} segments, every one verified",
                nodes.iter().map(String::as_str).collect::<Vec<_>>().join(", "),
                since.elapsed().as_secs_f64(),
                format_bytes(record.bytes),
                record.segments,
            ));
            return Ok(());
        }
        if Instant::now() > deadline {
            let why: serde_json::Value =
                session.client.get(&format!("/v1/why/{service}")).await.unwrap_or_default();
            return Err(anyhow!("{service} has {} of {} replicas", view.ready, view.desired))
                .with_context(|| format!("why: {why}"));
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// Returns whether each ready replica reports that it verified every segment; it may answer before it has
/// read all.
fn all_verified(view: &ServiceView, record: &ModelRecord) -> bool {
    let mut reports = view.slots.iter().filter_map(|slot| slot.report.as_ref());
    reports.all(|report| report.state != SlotState::Ready || report.segments_verified == record.segments)
}
