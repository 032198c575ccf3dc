//! A person's view of a cluster, recomputed from signatures: the client replays genesis and every
//! certificate itself, so that a lying server can delay it but not mislead it.

use crate::client::{ClientError, ControlClient};
use crate::context::Context;
use anyhow::{Context as _, Result, anyhow};
use gpu_agent::files;
use human_chain::{CircleState, MemberSecret};
use protocol::api::{History, ProposalView, SubmitProposal};
use protocol::governance::{Change, Choice, Proposal};
use protocol::{CircleId, Digest, MemberId, Millis, error_code};
use serde::{Deserialize, Serialize};
use std::path::Path;
use zeroize::Zeroizing;

/// How long a proposal waits for votes unless the proposer says otherwise: three days.
pub const PROPOSAL_LIFETIME_MS: u64 = 3 * 24 * 3600 * 1000;

/// A client, and the circle as its signatures prove it.
pub struct Session {
    /// The control API.
    pub client: ControlClient,
    /// Members, policy, nodes, services: recomputed here.
    pub circle: CircleState,
    /// What it was recomputed from.
    pub history: History,
}

impl Session {
    /// Fetches the history and verifies all of it against the pinned circle.
    ///
    /// # Errors
    /// When no replica answers or anything in the history does not verify.
    pub async fn open(context: &Context) -> Result<Self> {
        Self::with_client(context.client()?, context.circle).await
    }

    /// As [`Session::open`], with a client made elsewhere.
    ///
    /// # Errors
    /// As [`Session::open`].
    pub async fn with_client(client: ControlClient, circle: CircleId) -> Result<Self> {
        let history: History = client.get("/v1/history").await?;
        let certificates = history.bundles.iter().map(|bundle| &bundle.certificate);
        let circle = CircleState::replay(&history.genesis, Some(circle), certificates)
            .context("the history that control sent does not verify")?;
        Ok(Self { client, circle, history })
    }

    /// Makes a proposal bound to the circle's present state and puts it to the vote.
    ///
    /// # Errors
    /// When the change cannot be asked for, or control refuses it.
    pub async fn propose(&self, change: Change, reason: String, lifetime_ms: u64) -> Result<ProposalView> {
        let proposal = self.draft(change, reason, lifetime_ms)?;
        Ok(self.client.post("/v1/proposals", &SubmitProposal { proposal }).await?)
    }

    /// The proposal that [`Session::propose`] would submit.
    ///
    /// # Errors
    /// When the change cannot be asked for.
    pub fn draft(&self, change: Change, reason: String, lifetime_ms: u64) -> Result<Proposal> {
        let now = wall_clock();
        let nonce = Digest(random_bytes());
        let proposal = human_chain::propose(&self.circle, change, reason, now, now.plus(lifetime_ms), nonce);
        proposal.map_err(|error| anyhow!("{}: {error}", error.code()))
    }

    /// Signs a vote on a proposal with a member's key and hands it in.
    ///
    /// # Errors
    /// When control refuses the vote.
    pub async fn vote(
        &self,
        proposal: &Proposal,
        member: &MemberKeyFile,
        choice: Choice,
    ) -> Result<ProposalView, ClientError> {
        let ballot = human_chain::vote(&member.secret, member.member.clone(), proposal, choice, wall_clock());
        self.client.post(&format!("/v1/proposals/{}/ballots", proposal.id()), &ballot).await
    }

    /// Finds a proposal by its id or the first digits of it.
    ///
    /// # Errors
    /// When none or several match.
    pub async fn find_proposal(&self, prefix: &str) -> Result<ProposalView> {
        let page: protocol::api::Page<ProposalView> = self.client.get("/v1/proposals").await?;
        let mut found = page.items.into_iter().filter(|view| view.id.to_string().starts_with(prefix));
        match (found.next(), found.next()) {
            (Some(view), None) => Ok(view),
            (Some(_), Some(_)) => Err(anyhow!("several proposals begin with `{prefix}`; give more digits")),
            (None, _) => Err(anyhow!(
                "{}: no proposal begins with `{prefix}`; `quorate review` lists them",
                error_code::PROPOSAL_NOT_FOUND
            )),
        }
    }
}

/// A member's key, as a file keeps it: JSON, mode 0600.
pub struct MemberKeyFile {
    /// Whose.
    pub member: MemberId,
    /// The key.
    pub secret: MemberSecret,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct MemberKeyText {
    member: MemberId,
    secret: String,
}

impl MemberKeyFile {
    /// A new key for a member.
    #[must_use]
    pub fn generate(member: MemberId) -> Self {
        Self { member, secret: MemberSecret::generate(&Zeroizing::new(random_bytes())) }
    }

    /// Reads a key file; refuses one that others can read.
    ///
    /// # Errors
    /// When the file is missing, readable by others, or no member key.
    pub fn load(path: &Path) -> Result<Self> {
        use std::os::unix::fs::PermissionsExt;
        let place = || format!("member key `{}`", path.display());
        let mode = std::fs::metadata(path).with_context(place)?.permissions().mode();
        if mode & 0o077 != 0 {
            return Err(anyhow!("{} can be read by others (mode {:o}); chmod 600 it", place(), mode & 0o777));
        }
        let text = Zeroizing::new(std::fs::read_to_string(path).with_context(place)?);
        let parsed: MemberKeyText = serde_json::from_str(&text).with_context(place)?;
        let encoded = Zeroizing::new(parsed.secret);
        let bytes = Zeroizing::new(hex::decode(encoded.as_bytes()).with_context(place)?);
        let secret = MemberSecret::from_bytes(&bytes).with_context(place)?;
        Ok(Self { member: parsed.member, secret })
    }

    /// Writes the key file.
    ///
    /// # Errors
    /// The disk's own.
    pub fn save(&self, path: &Path) -> Result<()> {
        let secret = hex::encode(self.secret.to_bytes().as_slice());
        let text = MemberKeyText { member: self.member.clone(), secret };
        let bytes = Zeroizing::new(serde_json::to_vec(&text)?);
        files::write_secret(path, &bytes).with_context(|| format!("write `{}`", path.display()))
    }
}

/// Random bytes from the operating system.
///
/// # Panics
/// When it has none to give: nothing can be safe then.
#[must_use]
pub fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the operating system gives randomness");
    bytes
}

/// A fresh access token or API key: a readable prefix and 256 random bits.
#[must_use]
pub fn fresh_secret_text(prefix: &str) -> Zeroizing<String> {
    Zeroizing::new(format!("{prefix}-{}", hex::encode(random_bytes::<32>())))
}

/// The wall clock.
#[must_use]
pub fn wall_clock() -> Millis {
    crate::server::wall_clock()
}
