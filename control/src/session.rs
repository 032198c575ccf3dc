//! A client's verified view of a cluster, recomputed from signatures.
//!
//! The client replays genesis and every certificate, so a dishonest server can delay it but not mislead it.

use crate::client::{ClientError, ControlClient};
use crate::context::Context;
use anyhow::{Context as _, Result, anyhow, bail};
use host::files;
use host::random::random_bytes;
use host::wall_clock;
use human_chain::{CircleState, MemberSecret};
use protocol::api::{History, ProposalView, SubmitProposal};
use protocol::governance::{Change, Choice, Proposal};
use protocol::{CircleId, Digest, MemberId, Refusal, error_code};
use serde::{Deserialize, Serialize};
use std::path::Path;
use zeroize::Zeroizing;

/// Default lifetime of a proposal, in milliseconds: three days.
pub const PROPOSAL_LIFETIME_MS: u64 = 3 * 24 * 3600 * 1000;

/// A client, and the circle as its signatures prove it.
pub struct Session {
    /// The control API.
    pub client: ControlClient,
    /// Members, policy, nodes and services, recomputed on this machine.
    pub circle: CircleState,
    /// The history from which the circle was recomputed.
    pub history: History,
}

impl Session {
    /// Fetches the history and verifies all of it against the pinned circle.
    ///
    /// # Errors
    /// Returns an error if no replica answers or anything in the history does not verify.
    pub async fn open(context: &Context) -> Result<Self> {
        Self::with_client(context.client()?, context.circle).await
    }

    /// Opens a session as [`Session::open`] does, with an existing client.
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

    /// Creates a proposal bound to the circle's present state and submits it for voting.
    ///
    /// # Errors
    /// Returns an error if the change is not valid in the circle's state, or control rejects it.
    pub async fn propose(&self, change: Change, reason: String, lifetime_ms: u64) -> Result<ProposalView> {
        let proposal = self.draft(change, reason, lifetime_ms)?;
        Ok(self.client.post("/v1/proposals", &SubmitProposal { proposal }).await?)
    }

    /// Creates the proposal that [`Session::propose`] would submit.
    ///
    /// # Errors
    /// Returns an error if the change is not valid in the circle's state.
    pub fn draft(&self, change: Change, reason: String, lifetime_ms: u64) -> Result<Proposal> {
        let now = wall_clock();
        let nonce = Digest(random_bytes());
        let proposal = human_chain::propose(&self.circle, change, reason, now, now.plus(lifetime_ms), nonce);
        proposal.map_err(|error| Refusal::from(error).into())
    }

    /// Signs a vote on a proposal with a member's key and submits it.
    ///
    /// # Errors
    /// Returns an error if control rejects the vote.
    pub async fn vote(
        &self,
        proposal: &Proposal,
        member: &MemberKeyFile,
        choice: Choice,
    ) -> Result<ProposalView, ClientError> {
        let ballot = human_chain::vote(
            &member.secret,
            member.member.clone(),
            self.circle.head(),
            proposal,
            choice,
            wall_clock(),
        );
        self.client.post(&format!("/v1/proposals/{}/ballots", proposal.id()), &ballot).await
    }

    /// Finds a proposal by its id or its first digits.
    ///
    /// # Errors
    /// Returns an error if none or several match.
    pub async fn find_proposal(&self, prefix: &str) -> Result<ProposalView> {
        let page: protocol::api::Page<ProposalView> = self.client.get("/v1/proposals").await?;
        let mut found = page.items.into_iter().filter(|view| view.id.to_string().starts_with(prefix));
        match (found.next(), found.next()) {
            (Some(view), None) => Ok(view),
            (Some(_), Some(_)) => Err(anyhow!("several proposals begin with `{prefix}`; give more digits")),
            (None, _) => {
                let message = format!("no proposal begins with `{prefix}`; `quorate review` lists them");
                Err(Refusal::new(error_code::PROPOSAL_NOT_FOUND, message).into())
            }
        }
    }
}

/// A member's key file: JSON, mode 0600.
pub struct MemberKeyFile {
    /// The member that owns the key.
    pub member: MemberId,
    pub secret: MemberSecret,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct MemberKeyText {
    member: MemberId,
    secret: String,
}

impl MemberKeyFile {
    /// Generates a new key for a member.
    #[must_use]
    pub fn generate(member: MemberId) -> Self {
        Self { member, secret: MemberSecret::generate(&Zeroizing::new(random_bytes())) }
    }

    /// Reads a key file; rejects a file that other users can read.
    ///
    /// # Errors
    /// Returns an error if the file is missing, readable by others, or not a member key.
    pub fn load(path: &Path) -> Result<Self> {
        use std::os::unix::fs::PermissionsExt;
        let named = || format!("member key `{}`", path.display());
        let mode = std::fs::metadata(path).with_context(named)?.permissions().mode();
        if mode & 0o077 != 0 {
            bail!("{} is readable by other users (mode {:o}); run chmod 600 on it", named(), mode & 0o777);
        }
        let text = Zeroizing::new(std::fs::read_to_string(path).with_context(named)?);
        let parsed: MemberKeyText = serde_json::from_str(&text).with_context(named)?;
        let encoded = Zeroizing::new(parsed.secret);
        let bytes = Zeroizing::new(hex::decode(encoded.as_bytes()).with_context(named)?);
        let secret = MemberSecret::from_bytes(&bytes).with_context(named)?;
        Ok(Self { member: parsed.member, secret })
    }

    /// Writes the key file.
    ///
    /// # Errors
    /// Returns the error of the disk.
    pub fn save(&self, path: &Path) -> Result<()> {
        let secret = hex::encode(self.secret.to_bytes().as_slice());
        let text = MemberKeyText { member: self.member.clone(), secret };
        let bytes = Zeroizing::new(serde_json::to_vec(&text)?);
        files::write_secret(path, &bytes).with_context(|| format!("write `{}`", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_member_key_is_read_as_it_was_written_unless_other_users_can_read_it() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("alice.key");
        let written = MemberKeyFile::generate("alice".parse().expect("a name"));
        written.save(&path).expect("saved");
        let read = MemberKeyFile::load(&path).expect("a new file is private");
        assert_eq!(read.member, written.member);
        assert_eq!(read.secret.public(), written.secret.public());
        std::fs::set_permissions(&path, Permissions::from_mode(0o640)).expect("set");
        let error = MemberKeyFile::load(&path).err().expect("others can read it").to_string();
        assert!(error.contains("alice.key") && error.contains("mode 640"), "{error}");
    }

    #[test]
    fn a_damaged_member_key_is_refused_with_its_path() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("alice.key");
        for text in
            ["", "{}", r#"{"member": "alice", "secret": "zz"}"#, r#"{"member": "alice", "secret": "00"}"#]
        {
            std::fs::write(&path, text).expect("written");
            std::fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("set");
            let error = MemberKeyFile::load(&path).err().expect("damaged").to_string();
            assert!(error.contains("member key `") && error.contains("alice.key"), "{text}: {error}");
        }
    }
}
