//! Command application: deterministic, total, and all or nothing.
//!
//! A refused command changes nothing, not even the cluster's time, so replicas stay equal for any log
//! content. A command under an idempotency key records its reply, even if it is refused.

mod access;
mod comments;
mod execute;
mod governance;
mod job_data;
mod jobs;
mod known;
mod proposals;
mod registry;
mod roll_back;
mod waiting;

pub(crate) use comments::all as all_comments;
pub(crate) use governance::summary;
pub use job_data::refused_job_data;
pub use registry::enrol_answer;
pub(crate) use waiting::takes_effect_at;

use crate::clock::{ClockReadings, ClusterTime};
use crate::cluster::{Cluster, Leadership, OpenProposal};
use crate::command::{Action, Actor, Command, IdempotencyKey, Refusal, Reply};
use crate::limits::{COMMAND_BYTES_MAX, PENDING_NODE_MS};
use crate::outcomes::request_of;
use crate::usage::{self, MeterEnds};
use protocol::agent::PendingNode;
use protocol::canonical::{from_own_bytes, to_bytes};
use protocol::error_code::{CIRCLE_NOT_FOUNDED, COMMAND_INVALID, TOKEN_SCOPE_MISSING};
use protocol::governance::TokenScope;
use protocol::limits::CLOCK_GRACE_MS;
use protocol::{Millis, ReplicaId};

/// Applies the canonical bytes of a [`Command`] and returns those of its [`Reply`]. Bytes that do not decode
/// to a command are refused like an invalid command.
#[must_use]
pub fn apply_bytes(cluster: &mut Cluster, index: u64, bytes: &[u8]) -> Vec<u8> {
    let reply = match from_own_bytes::<Command>(bytes, COMMAND_BYTES_MAX) {
        Ok(command) => apply(cluster, index, &command),
        Err(error) => {
            Refusal::new(COMMAND_INVALID, format!("the log entry is not a command: {error}")).into()
        }
    };
    to_bytes(&reply)
}

/// Applies the command at this index of the log. Never panics, for any input.
pub fn apply(cluster: &mut Cluster, index: u64, command: &Command) -> Reply {
    debug_assert!(index > 0, "a log begins at index 1");
    let Some(key) = &command.idempotency else { return attempt(cluster, index, command) };
    if let Err(refusal) = check_key(cluster, key) {
        return refusal.into();
    }
    let (request, now) = (request_of(command), cluster.time(&command.clocks));
    match cluster.outcomes.find(key, &request, now) {
        Ok(Some(recorded)) => recorded,
        Err(refusal) => refusal.into(),
        Ok(None) => {
            let reply = attempt(cluster, index, command);
            let now = cluster.now;
            cluster.outcomes.record(key, request, now, &reply);
            reply
        }
    }
}

/// Executes a command, or changes nothing.
fn attempt(cluster: &mut Cluster, index: u64, command: &Command) -> Reply {
    let before = cluster.now;
    cluster.now = cluster.time(&command.clocks);
    debug_assert!(cluster.now >= before, "the cluster's time never goes back");
    match carry_out(cluster, index, command) {
        Ok(reply) => reply,
        Err(refusal) => {
            cluster.now = before;
            refusal.into()
        }
    }
}

fn carry_out(cluster: &mut Cluster, index: u64, command: &Command) -> Result<Reply, Refusal> {
    let actor = &command.actor;
    if let Some(scope) = scope_of(&command.action) {
        check_actor(cluster, actor, scope)?;
    }
    match &command.action {
        Action::Lead { replica } => Ok(lead(cluster, *replica)),
        Action::Found(signed) => governance::found(cluster, signed),
        Action::SubmitProposal(proposal) => proposals::submit(cluster, actor, proposal),
        Action::DraftDeployment { manifest, reason } => {
            proposals::draft_deployment(cluster, index, actor, manifest, reason)
        }
        Action::OpenProposal { proposal, ballot } => proposals::open(cluster, index, proposal, ballot),
        Action::CastBallot(signed) => proposals::cast(cluster, index, signed),
        Action::Withdraw { proposal, withdrawal } => {
            proposals::withdraw(cluster, actor, *proposal, withdrawal.as_deref())
        }
        Action::PutComment(signed) => comments::put(cluster, signed),
        Action::RegisterModel { record, wraps } => registry::register_model(cluster, actor, record, wraps),
        Action::PutWraps(wraps) => registry::put_wraps(cluster, actor, wraps),
        Action::DropWrap(complaint) => registry::drop_wrap(cluster, complaint),
        Action::GrantAccess(signed) => access::grant(cluster, signed),
        Action::RevokeAccess(signed) => access::revoke(cluster, signed),
        Action::Scale { service, replicas } => registry::scale(cluster, actor, service, *replicas),
        Action::RollBack { service, reason } => roll_back::roll_back(cluster, actor, service, reason),
        Action::RequestJob(request) => jobs::request(cluster, actor, request),
        Action::SubmitJob(signed) => jobs::submit(cluster, actor, signed),
        Action::CancelJob { id } => metered(cluster, |cluster| jobs::cancel(cluster, actor, *id)),
        Action::RetryJob { id, from } => {
            metered(cluster, |cluster| jobs::retry(cluster, actor, *id, from.as_ref()))
        }
        Action::RegisterJobData(request) => metered(cluster, |cluster| job_data::register(cluster, request)),
        Action::Execute { parent_generation, steps } => execute::execute(cluster, *parent_generation, steps),
        Action::Enrol(admission) => registry::enrol(cluster, admission),
        Action::Tick => Ok(tick(cluster, index, &command.clocks)),
    }
}

/// Carries out a command that may change what jobs have stored, and brings the meters in line with that.
fn metered(
    cluster: &mut Cluster,
    command: impl FnOnce(&mut Cluster) -> Result<Reply, Refusal>,
) -> Result<Reply, Refusal> {
    let reply = command(cluster)?;
    usage::settle(cluster, &MeterEnds::default());
    Ok(reply)
}

/// Returns the scope that an access token needs for an action; none if the action takes no token.
fn scope_of(action: &Action) -> Option<TokenScope> {
    match action {
        // A command that a member signed needs no more of a token than a ballot does.
        Action::SubmitProposal(_)
        | Action::DraftDeployment { .. }
        | Action::OpenProposal { .. }
        | Action::CastBallot(_)
        | Action::Withdraw { .. }
        | Action::PutComment(_)
        | Action::PutWraps(_)
        | Action::DropWrap(_) => Some(TokenScope::Propose),
        Action::RegisterModel { .. }
        | Action::Scale { .. }
        | Action::RollBack { .. }
        | Action::RequestJob(_)
        | Action::SubmitJob(_)
        | Action::CancelJob { .. }
        | Action::RetryJob { .. } => Some(TokenScope::Submit),
        // A grant needs no token: a member without one could get none.
        Action::GrantAccess(_)
        | Action::RevokeAccess(_)
        | Action::Lead { .. }
        | Action::Found(_)
        // The node that made the data signs, and holds no token.
        | Action::RegisterJobData(_)
        | Action::Execute { .. }
        | Action::Enrol(_)
        | Action::Tick => None,
    }
}

/// Checks the actor again: the shell has verified the token's text, and this verifies its existence and
/// scope.
fn check_actor(cluster: &Cluster, actor: &Actor, scope: TokenScope) -> Result<(), Refusal> {
    if cluster.circle.is_none() {
        return Err(Refusal::new(CIRCLE_NOT_FOUNDED, "the circle is not founded yet"));
    }
    let Actor::Token(holder) = actor else { return Ok(()) };
    match cluster.token_of(holder) {
        Some(token) if token.scopes.contains(&scope) => Ok(()),
        Some(_) => {
            Err(Refusal::new(TOKEN_SCOPE_MISSING, format!("token `{holder}` lacks the scope `{scope}`")))
        }
        None => Err(Refusal::new(TOKEN_SCOPE_MISSING, format!("no token of `{holder}` stands"))),
    }
}

/// Checks that the key belongs to a token of the circle. Only those tokens leave records, which bounds the
/// number of parties.
fn check_key(cluster: &Cluster, key: &IdempotencyKey) -> Result<(), Refusal> {
    match cluster.token_of(&key.token) {
        Some(_) => Ok(()),
        None => Err(Refusal::new(TOKEN_SCOPE_MISSING, format!("no token of `{}` stands", key.token))),
    }
}

fn lead(cluster: &mut Cluster, replica: ReplicaId) -> Reply {
    let led_since = cluster.leadership.map(|leadership| leadership.since);
    debug_assert!(led_since.is_none_or(|since| since <= cluster.now), "leaders follow each other in time");
    cluster.leadership = Some(Leadership { replica, since: cluster.now });
    cluster.generation += 1;
    cluster.audit.record(cluster.now, "scheduler", "lead", &format!("replica/{replica}"), "");
    Reply::Leads { generation: cluster.generation }
}

/// Returns whether an [`Action::Tick`] would change something now; the leader proposes one only then.
#[must_use]
pub fn tick_is_due(cluster: &Cluster, clocks: &ClockReadings) -> bool {
    cluster.earlier_time(clocks).is_some() || is_anything_over(cluster, cluster.time(clocks))
}

fn is_anything_over(cluster: &Cluster, now: ClusterTime) -> bool {
    let proposal = cluster.open.values().any(|open| is_expired(open, now))
        || proposals::expired_drafts(cluster, now).next().is_some()
        || waiting::is_any_due(cluster, now)
        || usage::is_day_over(cluster, now)
        || jobs::past_deadline(cluster, now).next().is_some();
    let model = registry::models_to_forget(cluster, now).next().is_some();
    model
        || proposal
        || cluster.access.is_anything_over(access::forgotten_until(cluster, now).0)
        || cluster.pending.values().any(|pending| is_forgotten(pending, now))
}

fn is_over(expires_at: Millis, now: ClusterTime) -> bool {
    now > ClusterTime(expires_at).plus(CLOCK_GRACE_MS)
}

/// Returns whether a proposal ends undecided. One that waits to take effect has been decided.
fn is_expired(open: &OpenProposal, now: ClusterTime) -> bool {
    open.decided_at.is_none() && is_over(open.proposal.expires_at, now)
}

fn is_forgotten(pending: &PendingNode, now: ClusterTime) -> bool {
    ClusterTime(pending.last_seen).plus(PENDING_NODE_MS) <= now
}

fn tick(cluster: &mut Cluster, index: u64, clocks: &ClockReadings) -> Reply {
    // Nothing expires by a time that is taken back.
    if let Some(earlier) = cluster.earlier_time(clocks) {
        cluster.set_back(earlier);
    }
    let now = cluster.now;
    let over: Vec<_> =
        cluster.open.iter().filter(|(_, open)| is_expired(open, now)).map(|(id, _)| *id).collect();
    for id in over {
        cluster.close_proposal(id, protocol::api::ProposalState::Expired, None);
        cluster.audit.record(now, "scheduler", "expire", &format!("proposal/{}", id.short()), "");
    }
    proposals::drop_expired_drafts(cluster);
    waiting::admit_due(cluster, index);
    jobs::end_past_deadline(cluster);
    cluster.pending.retain(|_, pending| !is_forgotten(pending, now));
    registry::forget_models(cluster);
    access::prune(cluster);
    usage::settle(cluster, &MeterEnds::default());
    debug_assert!(!is_anything_over(cluster, now), "a tick leaves nothing due");
    Reply::Done
}
