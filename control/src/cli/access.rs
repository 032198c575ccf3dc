//! `quorate token` and `quorate key`: access tokens of people and inference keys of applications, and
//! `quorate circle propose-access`, the bounds within which single members grant them.
//!
//! The secret text is generated on this machine and shown once. The cluster receives a member's signed
//! grant with the digest of the text. A grant needs no access token, so that a new circle gets its first one.

use super::Environment;
use super::output::{print_json, table};
use super::proposals::{ProposerArguments, reason_or};
use super::sharing::member_key;
use crate::context::Context;
use crate::grant::{GrantTerms, unsigned_grant};
use crate::member_key::{MemberKey, create_secret};
use crate::print;
use crate::session::Session;
use anyhow::Result;
use clap::{Args, Subcommand};
use host::random::fresh_secret_text;
use host::wall_clock;
use human_chain::{CircleState, check_grant, check_grant_stands, show_time, sign_grant, sign_revocation};
use protocol::access::{ACCESS_VERSION, AccessGrant, AccessRevocation, GrantedAccess, SignedGrant};
use protocol::governance::{Change, TokenScope};
use protocol::{Digest, MemberId, Refusal, ServiceName, TokenName, error_code};
use std::collections::BTreeSet;
use std::path::PathBuf;

/// Seconds of a day.
const DAY_SECONDS: u32 = 24 * 3600;
/// Validity in days of a grant unless the command names another.
const VALID_DAYS: u32 = 90;

#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Grant a person an access token, and print it once
    #[command(after_help = "\
Examples:
  quorate token issue bob --scope read propose
  quorate token issue alice --scope read propose submit --out token    the first one of a new circle")]
    Issue {
        /// Person that holds the token, as `quorate events` names it
        holder: TokenName,
        /// Scopes of the token: read, propose, submit
        #[arg(long, num_args = 1.., required = true, value_name = "SCOPE", value_parser = parse_scope)]
        scope: Vec<TokenScope>,
        #[command(flatten)]
        options: IssueOptions,
    },
    /// List the tokens that stand; their secret texts are not stored
    #[command(after_help = "Example:\n  quorate token list")]
    List,
    /// Revoke a person's token permanently
    #[command(after_help = "\
Examples:
  quorate token revoke bob
  quorate token revoke bob --grant 7f3a    one of two, after its successor is in use")]
    Revoke {
        /// Person that holds the token
        holder: TokenName,
        #[command(flatten)]
        options: RevokeOptions,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum KeyCommand {
    /// Grant an application an inference key, and print it once
    #[command(after_help = "\
Examples:
  export OPENAI_API_KEY=$(quorate key issue my-app)
  quorate key issue my-app --service chat --requests-per-minute 600 --valid-days 30 --out my-app.key")]
    Issue {
        /// Application that holds the key
        holder: TokenName,
        /// Services that the key may call [default: all that the access envelope allows]
        #[arg(long, num_args = 1.., value_name = "SERVICE")]
        service: Vec<ServiceName>,
        /// Requests allowed per minute [default: unlimited]
        #[arg(long)]
        requests_per_minute: Option<u32>,
        #[command(flatten)]
        options: IssueOptions,
    },
    /// List the keys that stand; their secret texts are not stored
    #[command(after_help = "Example:\n  quorate key list")]
    List,
    /// Revoke an application's key permanently
    #[command(after_help = "\
Examples:
  quorate key revoke my-app
  quorate key revoke my-app --grant 7f3a    one of two, after its successor is in use")]
    Revoke {
        /// Application that holds the key
        holder: TokenName,
        #[command(flatten)]
        options: RevokeOptions,
    },
}

#[derive(Debug, Args)]
pub(crate) struct IssueOptions {
    /// Days for which it is valid [default: 90, or what the access envelope allows]
    #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u32).range(1..=366))]
    valid_days: Option<u32>,
    /// File to write the secret to, in place of the terminal
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Certificate of the access envelope in force, if the context has no access token [default: genesis]
    #[arg(long, value_name = "DIGEST")]
    envelope: Option<Digest>,
    /// Print the signed grant for `POST /v1/access/grants`, and hand in nothing
    #[arg(long, requires = "out")]
    print: bool,
    /// Key file of the member [default: the context's]
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct RevokeOptions {
    /// First digits of the grant's id, if the holder has two
    #[arg(long, value_name = "ID")]
    grant: Option<String>,
    /// Print the signed revocation for `POST /v1/access/revocations`, and hand in nothing
    #[arg(long)]
    print: bool,
    /// Key file of the member [default: the context's]
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  quorate circle propose-access --grantors alice bob --tokens 32 --keys 200 --valid-days 90
  quorate circle propose-access --services chat embed --reason 'applications call these alone'
  quorate circle propose-access --end-earlier --reason 'a laptop with tokens was stolen'")]
pub(crate) struct ProposeAccessArguments {
    /// Members that may grant access, each alone
    #[arg(long, num_args = 1.., value_name = "MEMBER")]
    grantors: Vec<MemberId>,
    /// Scopes that tokens may have
    #[arg(long, num_args = 1.., value_name = "SCOPE", value_parser = parse_scope)]
    scopes: Vec<TokenScope>,
    /// Number of access tokens that may stand
    #[arg(long, value_name = "COUNT")]
    tokens: Option<u32>,
    /// Number of inference keys that may stand
    #[arg(long, value_name = "COUNT")]
    keys: Option<u32>,
    /// Services that keys may call
    #[arg(long, num_args = 1.., value_name = "SERVICE", conflicts_with = "every_service")]
    services: Vec<ServiceName>,
    /// Let keys call every service
    #[arg(long)]
    every_service: bool,
    /// Days for which a grant may be valid at most
    #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u32).range(1..=366))]
    valid_days: Option<u32>,
    /// End every grant that was made so far
    #[arg(long)]
    end_earlier: bool,
    /// Reason shown to the voters
    #[arg(long, default_value = "")]
    reason: String,
    #[command(flatten)]
    proposer: ProposerArguments,
}

fn parse_scope(text: &str) -> Result<TokenScope, String> {
    let all = [TokenScope::Read, TokenScope::Propose, TokenScope::Submit];
    let found = all.into_iter().find(|scope| scope.to_string() == text);
    found.ok_or_else(|| format!("`{text}` is none of read, propose, submit"))
}

/// Kind of grants that a command is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Token,
    Key,
}

impl Kind {
    fn of(access: &GrantedAccess) -> Self {
        match access {
            GrantedAccess::Token { .. } => Self::Token,
            GrantedAccess::Key { .. } => Self::Key,
        }
    }

    /// Returns the first part of the secret texts of this kind.
    fn prefix(self) -> &'static str {
        match self {
            Self::Token => "quorate-token",
            Self::Key => "quorate-key",
        }
    }

    fn noun(self) -> &'static str {
        match self {
            Self::Token => "token",
            Self::Key => "key",
        }
    }
}

pub(crate) async fn run_token(command: TokenCommand, environment: &Environment) -> Result<()> {
    match command {
        TokenCommand::Issue { holder, scope, options } => {
            let scopes = scope.into_iter().collect();
            issue(environment, holder, |_| GrantedAccess::Token { scopes }, options).await
        }
        TokenCommand::List => list(environment, Kind::Token).await,
        TokenCommand::Revoke { holder, options } => revoke(environment, Kind::Token, &holder, options).await,
    }
}

pub(crate) async fn run_key(command: KeyCommand, environment: &Environment) -> Result<()> {
    match command {
        KeyCommand::Issue { holder, service, requests_per_minute, options } => {
            let access = |circle: Option<&CircleState>| {
                let asked: BTreeSet<ServiceName> = service.into_iter().collect();
                let allowed = || circle.and_then(|circle| circle.access().services.clone());
                let services = if asked.is_empty() { allowed() } else { Some(asked) };
                GrantedAccess::Key { services, requests_per_minute }
            };
            issue(environment, holder, access, options).await
        }
        KeyCommand::List => list(environment, Kind::Key).await,
        KeyCommand::Revoke { holder, options } => revoke(environment, Kind::Key, &holder, options).await,
    }
}

async fn issue(
    environment: &Environment,
    holder: TokenName,
    access: impl FnOnce(Option<&CircleState>) -> GrantedAccess,
    options: IssueOptions,
) -> Result<()> {
    let context = environment.context()?;
    let member = member_key(&context, options.key)?;
    // A member of a new circle has no token yet, and cannot read the history.
    let session = match (&options.envelope, context.token_file.exists()) {
        (None, true) => Some(Session::open(&context).await?),
        _ => None,
    };
    let circle = session.as_ref().map(|session| &session.circle);
    let bound = circle.map_or(VALID_DAYS * DAY_SECONDS, |circle| circle.access().seconds_max);
    let asked = options.valid_days.map(|days| days * DAY_SECONDS);
    let access = access(circle);
    let kind = Kind::of(&access);
    let text = fresh_secret_text(kind.prefix());
    let terms = GrantTerms {
        circle: context.circle,
        envelope: circle
            .map(CircleState::access_certificate)
            .or(options.envelope)
            .unwrap_or(context.circle.0),
        holder,
        access,
        valid_seconds: asked.unwrap_or((VALID_DAYS * DAY_SECONDS).min(bound)),
    };
    let grant = unsigned_grant(terms, &member.member, &member.signer, &text, wall_clock());
    if let Some(circle) = circle {
        check_grant_stands(circle, &grant, wall_clock()).map_err(Refusal::from)?;
    }
    let signed = sign_grant(&member.signer, grant)?;
    if let Some(out) = &options.out {
        create_secret(out, text.as_bytes())?;
    }
    if options.print {
        print_json(&signed);
        return Ok(());
    }
    if let Err(error) = hand_in(&context, &signed).await {
        // A secret that opens nothing is not left behind.
        if let Some(out) = &options.out {
            let _ = std::fs::remove_file(out);
        }
        return Err(error);
    }
    print_issued(environment, kind, &signed.grant, options.out.is_none().then_some(text.as_str()));
    if let Some(session) = &session {
        note_predecessor(session, kind, &signed.grant).await;
    }
    Ok(())
}

/// Names the grant that a new one succeeds: both count until the earlier one is revoked or expires.
async fn note_predecessor(session: &Session, kind: Kind, grant: &AccessGrant) {
    let standing = standing(session, kind).await.unwrap_or_default();
    let is_earlier = |other: &&AccessGrant| other.holder == grant.holder && other.id() != grant.id();
    for earlier in standing.iter().filter(is_earlier) {
        let (noun, holder, id) = (kind.noun(), &grant.holder, earlier.id().short());
        print::err(format_args!(
            "note: the earlier {noun} counts until `quorate {noun} revoke {holder} --grant {id}`"
        ));
    }
}

async fn hand_in(context: &Context, signed: &SignedGrant) -> Result<()> {
    let _: serde_json::Value = context.client_for_signed()?.post("/v1/access/grants", signed).await?;
    Ok(())
}

fn print_issued(environment: &Environment, kind: Kind, grant: &AccessGrant, text: Option<&str>) {
    let value = serde_json::json!({
        "holder": grant.holder,
        "grant": grant.id(),
        "expires_at": grant.expires_at,
        kind.noun(): text,
    });
    let until = show_time(grant.expires_at);
    environment.output().print(&value, |_| match text {
        Some(text) => text.to_string(),
        None => format!("{} of `{}` until {until}; the secret is in the file", kind.noun(), grant.holder),
    });
}

/// Fetches the grants of a kind, each verified on this machine.
async fn standing(session: &Session, kind: Kind) -> Result<Vec<AccessGrant>> {
    let all: Vec<SignedGrant> = session.client.list("/v1/access/grants").await?;
    let mut verified = Vec::new();
    for signed in all.into_iter().filter(|signed| Kind::of(&signed.grant.access) == kind) {
        match check_grant(&session.circle, signed, wall_clock()) {
            Ok(sound) => verified.push(sound.grant().clone()),
            Err(error) => {
                print::err(format_args!("note: control lists a grant that does not count: {error}"))
            }
        }
    }
    verified.sort_by(|a, b| (&a.holder, a.issued_at).cmp(&(&b.holder, b.issued_at)));
    Ok(verified)
}

async fn list(environment: &Environment, kind: Kind) -> Result<()> {
    let session = Session::open(&environment.context()?).await?;
    let grants = standing(&session, kind).await?;
    environment.output().print(&grants, |grants| {
        let row = |grant: &AccessGrant| {
            let (what, rate) = match &grant.access {
                GrantedAccess::Token { scopes } => {
                    let names: Vec<String> = scopes.iter().map(TokenScope::to_string).collect();
                    (names.join(" "), None)
                }
                GrantedAccess::Key { services, requests_per_minute } => {
                    let names = services.iter().flatten().map(ServiceName::as_str).collect::<Vec<_>>();
                    let names = if services.is_none() { "every service".into() } else { names.join(" ") };
                    (names, *requests_per_minute)
                }
            };
            let rate = rate.map_or("-".into(), |rate| rate.to_string());
            let (holder, issuer) = (grant.holder.to_string(), grant.issuer.to_string());
            vec![holder, grant.id().short(), what, rate, issuer, show_time(grant.expires_at)]
        };
        let heads = match kind {
            Kind::Token => ["token of", "grant", "scopes", "", "issued by", "until"],
            Kind::Key => ["key of", "grant", "services", "requests per minute", "issued by", "until"],
        };
        table(&heads, grants.iter().map(row).collect())
    });
    Ok(())
}

async fn revoke(
    environment: &Environment,
    kind: Kind,
    holder: &TokenName,
    options: RevokeOptions,
) -> Result<()> {
    let context = environment.context()?;
    let MemberKey { member, signer } = member_key(&context, options.key)?;
    let session = Session::open(&context).await?;
    let grant = find(standing(&session, kind).await?, kind, holder, options.grant.as_deref())?;
    let issued_at = wall_clock();
    let revocation = AccessRevocation { version: ACCESS_VERSION, grant, member, issued_at };
    let signed = sign_revocation(&signer, revocation)?;
    if options.print {
        print_json(&signed);
        return Ok(());
    }
    let done: serde_json::Value = session.client.post("/v1/access/revocations", &signed).await?;
    environment.output().print(&done, |_| format!("revoked the {} of `{holder}`", kind.noun()));
    Ok(())
}

/// Finds the grant of a holder: the only one, or the one whose id begins with these digits.
fn find(
    standing: Vec<AccessGrant>,
    kind: Kind,
    holder: &TokenName,
    prefix: Option<&str>,
) -> Result<AccessGrant, Refusal> {
    let begins = |grant: &AccessGrant| prefix.is_none_or(|prefix| grant.id().to_string().starts_with(prefix));
    let is_asked = |grant: &AccessGrant| grant.holder == *holder && begins(grant);
    let mut found = standing.into_iter().filter(is_asked);
    let noun = kind.noun();
    let not_found = |message: String| Err(Refusal::new(error_code::GRANT_NOT_FOUND, message));
    match (found.next(), found.next()) {
        (Some(grant), None) => Ok(grant),
        (Some(first), Some(second)) => {
            let ids = format!("{} and {}", first.id().short(), second.id().short());
            not_found(format!("`{holder}` has the {noun}s {ids}; name one of them with `--grant`"))
        }
        (None, _) => {
            not_found(format!("no such {noun} of `{holder}` stands; `quorate {noun} list` shows them"))
        }
    }
}

pub(crate) async fn propose(arguments: ProposeAccessArguments, environment: &Environment) -> Result<()> {
    let session = Session::open(&environment.context()?).await?;
    let mut envelope = session.circle.access().clone();
    if !arguments.grantors.is_empty() {
        envelope.grantors = arguments.grantors.into_iter().collect();
    }
    if !arguments.scopes.is_empty() {
        envelope.scopes = arguments.scopes.into_iter().collect();
    }
    if arguments.every_service {
        envelope.services = None;
    } else if !arguments.services.is_empty() {
        envelope.services = Some(arguments.services.into_iter().collect());
    }
    envelope.tokens_max = arguments.tokens.unwrap_or(envelope.tokens_max);
    envelope.keys_max = arguments.keys.unwrap_or(envelope.keys_max);
    envelope.seconds_max = arguments.valid_days.map_or(envelope.seconds_max, |days| days * DAY_SECONDS);
    envelope.ends_earlier = arguments.end_earlier;
    let change = Change::SetAccess(Box::new(envelope));
    let reason = reason_or(arguments.reason, || "other bounds of access".into());
    arguments.proposer.propose(environment, &session, change, reason).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use human_chain::MemberSecret;
    use protocol::CircleId;

    #[test]
    fn a_scope_is_read_by_its_name() {
        assert_eq!(parse_scope("propose"), Ok(TokenScope::Propose));
        assert_eq!(parse_scope("vote"), Err("`vote` is none of read, propose, submit".to_string()));
    }

    fn granted(holder: &str, secret: &str) -> AccessGrant {
        let terms = GrantTerms {
            circle: CircleId(Digest([0; 32])),
            envelope: Digest([0; 32]),
            holder: holder.parse().expect("a name"),
            access: GrantedAccess::Key { services: None, requests_per_minute: None },
            valid_seconds: DAY_SECONDS,
        };
        let (signer, issuer) = (MemberSecret::generate(&[1; 64]), "alice".parse().expect("a name"));
        unsigned_grant(terms, &issuer, &signer, secret, wall_clock())
    }

    #[test]
    fn one_of_two_grants_of_a_holder_is_found_by_its_first_digits_alone() {
        let app: TokenName = "app".parse().expect("a name");
        let (first, second) = (granted("app", "1"), granted("app", "2"));
        let both = || vec![first.clone(), granted("other", "3"), second.clone()];
        let find = |standing, prefix: Option<&str>| find(standing, Kind::Key, &app, prefix);
        assert_eq!(find(vec![first.clone()], None), Ok(first.clone()));
        assert_eq!(find(both(), Some(&second.id().to_string())), Ok(second.clone()));
        for (standing, prefix, expected) in [
            (both(), None, "`app` has the keys "),
            (both(), Some(""), "`app` has the keys "),
            (both(), Some("zz"), "no such key of `app` stands"),
            (Vec::new(), None, "no such key of `app` stands"),
        ] {
            let refused = find(standing, prefix).expect_err("none, or two");
            assert_eq!(refused.code, error_code::GRANT_NOT_FOUND);
            assert!(refused.message.starts_with(expected), "{refused}");
        }
    }
}
