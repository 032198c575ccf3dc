//! A client's verified view of a cluster, recomputed from signatures.
//!
//! The client replays genesis and every certificate, and refuses a history that does not continue the longest
//! one that it verified before. So a dishonest server can delay it but not mislead it.

use crate::client::ControlClient;
use crate::context::Context;
use crate::head::HeadFile;
use crate::reviewed::{self, ReviewedProposal};
use anyhow::{Context as _, Result, bail};
use host::files;
use host::random::random_bytes;
use host::wall_clock;
use human_chain::{CircleState, MemberSecret};
use protocol::api::{History, Page, ProposalView, SubmitProposal};
use protocol::governance::{Change, Choice, HistoryHead, Proposal};
use protocol::{CircleId, Digest, MemberId, ProposalId, Refusal, error_code};
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
    /// The record of the longest history of this circle.
    heads: HeadFile,
}

impl Session {
    /// Fetches the history and verifies all of it against the pinned circle and the longest history that this
    /// machine verified before.
    ///
    /// # Errors
    /// Returns an error if no replica answers or anything in the history does not verify. Fails with
    /// `history-shorter` or `history-forked` if decisions that were seen before are missing or are others.
    pub async fn open(context: &Context) -> Result<Self> {
        Self::with_client(context.client()?, context.circle, context.head_file()).await
    }

    /// Opens a session as [`Session::open`] does, with an existing client.
    ///
    /// # Errors
    /// As [`Session::open`].
    pub async fn with_client(client: ControlClient, circle: CircleId, heads: HeadFile) -> Result<Self> {
        // Read first: a head that another command records while the history is on its way is longer, rightly.
        let known: Vec<HistoryHead> = heads.read()?.into_iter().collect();
        Self::fetch(client, circle, heads, &known).await
    }

    /// Fetches the history again; it must continue that of this session and the longest that was verified.
    ///
    /// # Errors
    /// As [`Session::open`].
    pub async fn refresh(&self) -> Result<Self> {
        let known: Vec<HistoryHead> = self.heads.read()?.into_iter().chain([self.circle.head()]).collect();
        Self::fetch(self.client.clone(), self.circle.id(), self.heads.clone(), &known).await
    }

    async fn fetch(
        client: ControlClient,
        circle: CircleId,
        heads: HeadFile,
        known: &[HistoryHead],
    ) -> Result<Self> {
        let history: History = client.get("/v1/history").await?;
        let circle = replay(&history, circle, known)?;
        heads.raise(&circle)?;
        Ok(Self { client, circle, history, heads })
    }

    /// Creates a proposal bound to the circle's present state and submits it for voting.
    ///
    /// # Errors
    /// Returns an error if the change is not valid in the circle's state, or control rejects it.
    pub async fn propose(
        &self,
        change: Change,
        reason: String,
        lifetime_ms: u64,
    ) -> Result<ReviewedProposal> {
        let proposal = self.draft(change, reason, lifetime_ms)?;
        let id = proposal.id();
        let view = self.client.post("/v1/proposals", &SubmitProposal { proposal }).await?;
        self.review_as(&id, view)
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
    /// Returns an error if control rejects the vote, or its answer does not show it.
    pub async fn vote(
        &self,
        proposal: &Proposal,
        member: &MemberKeyFile,
        choice: Choice,
    ) -> Result<ReviewedProposal> {
        let ballot = human_chain::vote(
            &member.secret,
            member.member.clone(),
            self.circle.head(),
            proposal,
            choice,
            wall_clock(),
        );
        let id = proposal.id();
        let view: ProposalView = self.client.post(&format!("/v1/proposals/{id}/ballots"), &ballot).await?;
        if !view.ballots.contains(&ballot) {
            let message =
                format!("control does not show the ballot that it took; check `quorate review {id}`");
            return Err(Refusal::new(error_code::OUTCOME_UNKNOWN, message).into());
        }
        self.review_as(&id, view)
    }

    /// Lists the proposals, each verified on this machine.
    ///
    /// # Errors
    /// Returns an error if control does not answer, or shows a proposal under a false id.
    pub async fn proposals(&self) -> Result<Vec<ReviewedProposal>> {
        let views = self.proposal_views().await?;
        let review = |view| Ok(ReviewedProposal::new(&self.circle, &self.history, view)?);
        views.into_iter().map(review).collect()
    }

    /// Fetches one proposal.
    ///
    /// # Errors
    /// Returns an error if control does not answer, or answers with another proposal.
    pub async fn proposal(&self, id: &ProposalId) -> Result<ReviewedProposal> {
        let view = self.client.get(&format!("/v1/proposals/{id}")).await?;
        self.review_as(id, view)
    }

    /// Finds a proposal by its id or its first digits.
    ///
    /// # Errors
    /// Returns an error if none or several match, or if control shows a proposal under a false id.
    pub async fn find_proposal(&self, prefix: &str) -> Result<ReviewedProposal> {
        Ok(reviewed::find(&self.circle, &self.history, self.proposal_views().await?, prefix)?)
    }

    async fn proposal_views(&self) -> Result<Vec<ProposalView>> {
        let page: Page<ProposalView> = self.client.get("/v1/proposals").await?;
        Ok(page.items)
    }

    /// Verifies an answer that must be about this proposal.
    fn review_as(&self, id: &ProposalId, view: ProposalView) -> Result<ReviewedProposal> {
        let reviewed = ReviewedProposal::new(&self.circle, &self.history, view)?;
        if reviewed.view.id == *id {
            return Ok(reviewed);
        }
        let message = format!("control answered with the proposal {} to {id}", reviewed.view.id);
        Err(Refusal::new(error_code::PROPOSAL_MISMATCH, message).into())
    }
}

/// Verifies a history against the pinned circle, and that it continues what was verified before.
fn replay(history: &History, circle: CircleId, known: &[HistoryHead]) -> Result<CircleState> {
    let certificates = history.bundles.iter().map(|bundle| &bundle.certificate);
    let state = CircleState::replay(&history.genesis, Some(circle), certificates)
        .context("the history that control sent does not verify")?;
    for head in known {
        state.check_extends(head).map_err(Refusal::from).context("this machine verified a longer history")?;
    }
    Ok(state)
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

    /// Writes the key to a new file.
    ///
    /// # Errors
    /// Fails with `key-exists` if there is a file of this name, else with the error of the disk.
    pub fn save(&self, path: &Path) -> Result<()> {
        let secret = hex::encode(self.secret.to_bytes().as_slice());
        let text = MemberKeyText { member: self.member.clone(), secret };
        let bytes = Zeroizing::new(serde_json::to_vec(&text)?);
        create_secret(path, &bytes)
    }
}

/// Writes a new secret to a new file, in a directory that is created as needed.
///
/// # Errors
/// Fails with `key-exists` if there is a file of this name: a secret that is overwritten is lost.
pub(crate) fn create_secret(path: &Path, bytes: &[u8]) -> Result<()> {
    let place = || format!("write `{}`", path.display());
    if let Some(directory) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        std::fs::create_dir_all(directory).with_context(place)?;
    }
    match files::create_secret(path, bytes) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            let message = format!("`{}` exists; give another file, or move that one away", path.display());
            Err(Refusal::new(error_code::KEY_EXISTS, message).into())
        }
        outcome => outcome.with_context(place),
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

    /// Attack: an existing secret is overwritten by a new one.
    #[test]
    fn a_key_is_never_overwritten() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("keys/alice.key");
        let generate = || MemberKeyFile::generate("alice".parse().expect("a name"));
        let first = generate();
        first.save(&path).expect("a new file, in a new folder");
        let error = generate().save(&path).expect_err("taken");
        assert_eq!(error.downcast_ref::<Refusal>().map(|refusal| refusal.code), Some(error_code::KEY_EXISTS));
        let kept = |path: &Path| MemberKeyFile::load(path).expect("a key").secret.public();
        assert_eq!(kept(&path), first.secret.public());
        // Positive control: a write that replaces a file, as it was before, loses the first key.
        let text = std::fs::read(&path).expect("read");
        generate().save(&directory.path().join("second.key")).expect("saved");
        let second = std::fs::read(directory.path().join("second.key")).expect("read");
        files::write_secret(&path, &second).expect("replaced");
        assert_ne!(kept(&path), first.secret.public());
        assert_ne!(std::fs::read(&path).expect("read"), text);
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
