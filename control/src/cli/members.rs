//! `quorate member` and the proposals of `quorate circle`: keys of members, made, rotated, suspended and
//! recovered, and changes of members and policy.
//!
//! Nothing here decides: each command makes a proposal, which members read and sign as any other.

use super::Environment;
use super::circle::read_json;
use super::output::print_json;
use super::passkeys::{self, PasskeyCommand};
use super::proposals::{ProposerArguments, print_submitted, reason_or};
use super::sharing::{member_key, share_after};
use crate::member_key::signer::{ExternalSigner, SignerCommand};
use crate::member_key::{MemberKeyFile, passphrase, save_external};
use crate::policy::adapted_policy;
use crate::print;
use crate::session::{PROPOSAL_LIFETIME_MS, Session};
use anyhow::Result;
use clap::{Args, Subcommand};
use human_chain::{CircleState, check_proven};
use protocol::governance::{Change, Member, Policy, ProvenMember};
use protocol::{Digest, MemberId, Refusal, error_code};
use std::path::{Path, PathBuf};

#[derive(Debug, Subcommand)]
pub(crate) enum MemberCommand {
    /// Generate a member's key, sealed with a passphrase or in an external signer; print the entry that
    /// proves it
    #[command(after_help = "\
Examples:
  quorate member init alice --key alice.key > alice.json
  QUORATE_PASSPHRASE_FILE=/dev/fd/3 quorate member init alice --key alice.key 3< passphrase > alice.json
  quorate member init alice --key alice.key --signer /usr/local/bin/token-signer --slot 2 > alice.json

The passphrase is asked for on the terminal, or read from the file that $QUORATE_PASSPHRASE_FILE names. With
an external signer the file holds no secret: the program, which has the key already, is started for each
signature.")]
    Init {
        /// Name of the member in the circle
        member: MemberId,
        /// New file for the secret key, or for the name of its signer
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
        /// Absolute path of a program that holds the key, and its arguments: the rest of the line
        #[arg(long, value_name = "PROGRAM", num_args = 1.., allow_hyphen_values = true)]
        signer: Vec<String>,
    },
    /// Propose new keys for yourself; the old key works until the change is in force
    #[command(after_help = "\
Example:
  quorate member rotate --key alice.key --new-key alice-2.key
  quorate approve 7f3a --key alice.key        as the member in force
  quorate approve 7f3a --key alice-2.key      as the member to be")]
    Rotate(RotateArguments),
    /// Propose to void the ballots and keys of a member at once, such as after a theft
    #[command(after_help = "\
Example:
  quorate member suspend carol --reason 'laptop stolen'

A suspension has no waiting time. It lasts until the circle gives the member new keys: quorate member
recover.")]
    Suspend(SuspendArguments),
    /// Propose new keys that a member made on a new machine, after a loss or a theft
    #[command(after_help = "\
Example:
  quorate member init carol --key carol-2.key > carol.json      by carol, on the new machine
  quorate member recover carol.json --reason 'laptop lost'      by another member

Compare the keys with carol in person or by voice before you approve: `quorate review` shows them.")]
    Recover(RecoverArguments),
    /// List the passkeys of the members
    #[command(after_help = "Examples:\n  quorate member passkeys\n  quorate member passkeys alice")]
    Passkeys {
        /// Member whose passkeys to list [default: all]
        member: Option<MemberId>,
    },
    /// Add or drop a passkey of your own, with your key file
    #[command(subcommand)]
    Passkey(PasskeyCommand),
}

#[derive(Debug, Args)]
pub(crate) struct RotateArguments {
    /// Key file in force [default: the context's]
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// New file for the new secret key, or for the name of its signer
    #[arg(long, value_name = "FILE")]
    new_key: PathBuf,
    /// Absolute path of a program that holds the new key, and its arguments: the rest of the line
    #[arg(long, value_name = "PROGRAM", num_args = 1.., allow_hyphen_values = true)]
    new_signer: Vec<String>,
    /// Reason shown to the voters
    #[arg(long, default_value = "")]
    reason: String,
}

#[derive(Debug, Args)]
pub(crate) struct SuspendArguments {
    /// Name of the member
    member: MemberId,
    /// Digests of those of the member's halts that stand; its other halts become void
    #[arg(long, num_args = 0.., value_name = "DIGEST")]
    halts: Vec<Digest>,
    /// Reason shown to the voters
    #[arg(long, default_value = "")]
    reason: String,
    #[command(flatten)]
    proposer: ProposerArguments,
}

#[derive(Debug, Args)]
pub(crate) struct RecoverArguments {
    /// Entry that `quorate member init` printed on the new machine
    entry: PathBuf,
    /// Reason shown to the voters
    #[arg(long, default_value = "")]
    reason: String,
    #[command(flatten)]
    proposer: ProposerArguments,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  quorate circle propose-member --add dana.json --reason 'welcome dana'
  quorate circle propose-member --remove carol
  quorate circle propose-member --add dana.json --remove carol --required 2

The members in force and the proposed members must both approve. A member is not removed in a change that
lowers a rule: make two changes.")]
pub(crate) struct ProposeMemberArguments {
    /// Entries of new members, in the form that `quorate member init` prints
    #[arg(long, num_args = 1.., value_name = "FILE", required_unless_present = "remove")]
    add: Vec<PathBuf>,
    /// Names of members to remove
    #[arg(long, num_args = 1.., value_name = "MEMBER")]
    remove: Vec<MemberId>,
    #[command(flatten)]
    rules: RuleArguments,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  quorate circle propose-policy --required 3
  quorate circle propose-policy --veto-hours 48
  quorate circle propose-policy --proposer-counts false
  quorate circle propose-policy --policy policy.json")]
pub(crate) struct ProposePolicyArguments {
    /// Hours that a change of members or policy waits for a veto after its last approval: 0 to 720
    #[arg(long, value_name = "HOURS", value_parser = clap::value_parser!(u32).range(0..=720))]
    veto_hours: Option<u32>,
    /// Whether the ballot of a proposal's proposer counts; if not, one more member must sign
    #[arg(long, value_name = "BOOL")]
    proposer_counts: Option<bool>,
    #[command(flatten)]
    rules: RuleArguments,
}

/// Rules of the proposed policy.
#[derive(Debug, Args)]
pub(crate) struct RuleArguments {
    /// Number of members that must sign each change
    #[arg(long, conflicts_with = "policy")]
    required: Option<u32>,
    /// File with the whole policy as JSON, in the form that `quorate -o json circle show` prints
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// Reason shown to the voters
    #[arg(long, default_value = "")]
    reason: String,
    #[command(flatten)]
    proposer: ProposerArguments,
}

pub(crate) async fn run(command: MemberCommand, environment: &Environment) -> Result<()> {
    match command {
        MemberCommand::Init { member, key, signer } => {
            print_json(&init(member, &key, &signer)?);
            Ok(())
        }
        MemberCommand::Rotate(arguments) => rotate(arguments, environment).await,
        MemberCommand::Suspend(arguments) => suspend(arguments, environment).await,
        MemberCommand::Recover(arguments) => recover(arguments, environment).await,
        MemberCommand::Passkeys { member } => passkeys::list(member, environment).await,
        MemberCommand::Passkey(command) => passkeys::run(command, environment).await,
    }
}

/// Generates a key and seals it, or asks an external signer for its own. The file is durable before its entry
/// is printed.
fn init(member: MemberId, key: &Path, signer: &[String]) -> Result<ProvenMember> {
    if key.exists() {
        let message = format!("`{}` exists; give another file, or move that one away", key.display());
        return Err(Refusal::new(error_code::KEY_EXISTS, message).into());
    }
    if signer.is_empty() {
        let passphrase = passphrase::chosen(key)?;
        let file = MemberKeyFile::generate(member);
        file.save_sealed(key, &passphrase)?;
        return Ok(file.proven());
    }
    let (signer, proven) = ExternalSigner::enrol(member, SignerCommand::new(signer)?)?;
    match signer.check_opens_wraps() {
        Err(refusal) if refusal.code == error_code::SIGNER_FAILED => {
            print::err(format_args!(
                "note: this signer opens no models' keys, so other members share them ({refusal})"
            ));
        }
        outcome => outcome?,
    }
    save_external(&signer, key)?;
    Ok(proven)
}

async fn rotate(arguments: RotateArguments, environment: &Environment) -> Result<()> {
    let context = environment.context()?;
    let old_file = arguments.key.clone();
    let old = member_key(&context, arguments.key)?;
    let session = Session::open(&context).await?;
    let change_of = |entry| rekeying(&session.circle, entry);
    // A member of no circle writes no key file.
    session.circle.active_member(&old.member).map_err(Refusal::from)?;
    let new = init(old.member.clone(), &arguments.new_key, &arguments.new_signer)?;
    let change = change_of(new)?;
    let reason = reason_or(arguments.reason, || format!("new keys for {}", old.member));
    let proposal = session.propose(change, reason, PROPOSAL_LIFETIME_MS).await?;
    print_submitted(environment, &session, &proposal);
    let id = proposal.view.id.short();
    let own = old_file.map(|file| format!(" --key {}", file.display())).unwrap_or_default();
    print::err(format_args!("first, with the key in force: quorate approve {id}{own}"));
    print::err(format_args!(
        "then, with the new key: quorate approve {id} --key {}",
        arguments.new_key.display()
    ));
    print::err(format_args!("keep the old key file until the change is in force: quorate review {id}"));
    // The models' keys that only this member holds are wrapped to the old key, which is dropped then.
    share_after(&session, &old).await;
    Ok(())
}

async fn suspend(arguments: SuspendArguments, environment: &Environment) -> Result<()> {
    let session = Session::open(&environment.context()?).await?;
    let SuspendArguments { member, halts, reason, proposer } = arguments;
    let reason = reason_or(reason, || format!("suspend {member}"));
    let change = Change::SuspendMember { member, halts: halts.into_iter().collect() };
    proposer.propose(environment, &session, change, reason).await?;
    Ok(())
}

async fn recover(arguments: RecoverArguments, environment: &Environment) -> Result<()> {
    let entry = read_entry(&arguments.entry)?;
    let session = Session::open(&environment.context()?).await?;
    let reason = reason_or(arguments.reason, || format!("new keys for {}", entry.member.id));
    let change = rekeying(&session.circle, entry)?;
    arguments.proposer.propose(environment, &session, change, reason).await?;
    Ok(())
}

pub(crate) async fn propose_member(
    arguments: ProposeMemberArguments,
    environment: &Environment,
) -> Result<()> {
    let ProposeMemberArguments { add, remove, rules } = arguments;
    let entries = add.iter().map(|path| read_entry(path)).collect::<Result<Vec<_>>>()?;
    let session = Session::open(&environment.context()?).await?;
    let joining: Vec<MemberId> = entries.iter().map(|entry| entry.member.id.clone()).collect();
    let policy = rules.policy(&session.circle, &remove, &joining)?;
    let change = roster(&session.circle, entries, &remove, policy)?;
    let names = |ids: &[MemberId]| ids.iter().map(MemberId::as_str).collect::<Vec<_>>().join(", ");
    let default = || match (joining.as_slice(), remove.as_slice()) {
        (joining, []) => format!("add {}", names(joining)),
        ([], leaving) => format!("remove {}", names(leaving)),
        (joining, leaving) => format!("add {}, remove {}", names(joining), names(leaving)),
    };
    let reason = reason_or(rules.reason, default);
    rules.proposer.propose(environment, &session, change, reason).await?;
    Ok(())
}

pub(crate) async fn propose_policy(
    arguments: ProposePolicyArguments,
    environment: &Environment,
) -> Result<()> {
    let session = Session::open(&environment.context()?).await?;
    let ProposePolicyArguments { veto_hours, proposer_counts, rules } = arguments;
    let mut policy = rules.policy(&session.circle, &[], &[])?;
    policy.proposer_counts = proposer_counts.unwrap_or(policy.proposer_counts);
    if let Some(hours) = veto_hours {
        policy.veto_seconds = hours * 3600;
    }
    let change = roster(&session.circle, vec![], &[], policy)?;
    let reason = reason_or(rules.reason, || "another policy".into());
    rules.proposer.propose(environment, &session, change, reason).await?;
    Ok(())
}

impl RuleArguments {
    fn policy(&self, circle: &CircleState, leaving: &[MemberId], joining: &[MemberId]) -> Result<Policy> {
        match &self.policy {
            Some(file) => read_json(file),
            None => Ok(adapted_policy(circle.policy(), leaving, joining, self.required)?),
        }
    }
}

/// Reads the entry of a member, and checks that the person holds its keys.
pub(super) fn read_entry(path: &Path) -> Result<ProvenMember> {
    let entry: ProvenMember = read_json(path)?;
    check_proven(&entry).map_err(Refusal::from)?;
    Ok(entry)
}

/// Returns the change that gives a member in force other keys; the policy stays.
fn rekeying(circle: &CircleState, entry: ProvenMember) -> Result<Change, Refusal> {
    if circle.member(&entry.member.id).is_none() {
        let message = format!(
            "`{}` is not a member of the circle; `quorate circle propose-member` adds one",
            entry.member.id
        );
        return Err(Refusal::new(error_code::NOT_A_MEMBER, message));
    }
    let policy = circle.policy().clone();
    let replaced =
        |member: &Member| if member.id == entry.member.id { entry.member.clone() } else { member.clone() };
    let members = circle.members().map(replaced).collect();
    Ok(Change::SetMembers { members, policy, proofs: [(entry.member.id, entry.proof)].into() })
}

/// Returns the change after which these members joined and those left.
fn roster(
    circle: &CircleState,
    joining: Vec<ProvenMember>,
    leaving: &[MemberId],
    policy: Policy,
) -> Result<Change, Refusal> {
    if let Some(unknown) = leaving.iter().find(|id| circle.member(id).is_none()) {
        return Err(Refusal::new(
            error_code::NOT_A_MEMBER,
            format!("`{unknown}` is not a member of the circle"),
        ));
    }
    if let Some(known) = joining.iter().find(|entry| circle.member(&entry.member.id).is_some()) {
        let message = format!(
            "`{}` is a member already; `quorate member recover` gives a member other keys",
            known.member.id
        );
        return Err(Refusal::new(error_code::GOVERNANCE_INVALID, message));
    }
    let mut members: Vec<Member> =
        circle.members().filter(|member| !leaving.contains(&member.id)).cloned().collect();
    members.extend(joining.iter().map(|entry| entry.member.clone()));
    let proofs = joining.into_iter().map(|entry| (entry.member.id, entry.proof)).collect();
    Ok(Change::SetMembers { members, policy, proofs })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::member_key::MemberKey;
    use crate::member_key::signer::tests::TestSigner;
    use crate::testing::SampleCircle;
    use human_chain::MemberSigner as _;
    use protocol::governance::Choice;

    fn id(name: &str) -> MemberId {
        name.parse().expect("a name")
    }

    fn entry(name: &str) -> ProvenMember {
        MemberKeyFile::generate(id(name)).proven()
    }

    fn code<T>(outcome: Result<T, Refusal>) -> Option<protocol::ErrorCode> {
        outcome.err().map(|refusal| refusal.code)
    }

    #[test]
    fn an_entry_without_its_proof_is_refused() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("dave.json");
        let (sound, mut forged) = (entry("dave"), entry("dave"));
        forged.proof = sound.proof.clone();
        for (entry, expected) in [(&sound, None), (&forged, Some(error_code::MEMBER_KEYS_UNPROVEN))] {
            std::fs::write(&path, serde_json::to_vec(entry).expect("JSON")).expect("written");
            let read = read_entry(&path);
            assert_eq!(read.as_ref().ok().is_some(), expected.is_none());
            let found =
                read.err().and_then(|error| error.downcast_ref::<Refusal>().map(|refusal| refusal.code));
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn a_member_is_enrolled_with_an_external_signer_that_works() {
        let (folder, signer) = (tempfile::tempdir().expect("temporary directory"), TestSigner::new());
        let enrol = |name: &str| init(id("alice"), &folder.path().join(name), &signer.words());
        let refused = |outcome: Result<ProvenMember>| {
            outcome.err().and_then(|error| Some(error.downcast_ref::<Refusal>()?.code))
        };
        let entry = enrol("alice.key").expect("enrolled");
        assert_eq!(check_proven(&entry), Ok(()));
        let key = MemberKey::load(&folder.path().join("alice.key")).expect("no passphrase is asked for");
        assert_eq!((key.member, key.signer.public_keys()), (id("alice"), entry.member.keys));
        assert_eq!(refused(enrol("alice.key")), Some(error_code::KEY_EXISTS));
        signer.behave("signatures-only");
        enrol("signs-only.key").expect("a device that opens no wraps is enough to vote");
        for (behaviour, expected) in [
            ("other-secrets", error_code::SIGNER_INVALID),
            ("another-statement", error_code::SIGNER_INVALID),
            ("refuses", error_code::SIGNER_FAILED),
        ] {
            signer.behave(behaviour);
            assert_eq!(refused(enrol("faulty.key")), Some(expected), "{behaviour}");
            assert!(!folder.path().join("faulty.key").exists(), "nothing was written");
        }
    }

    /// The procedures for a lost and for a rotated key, as the commands propose them.
    #[test]
    fn a_member_gets_new_keys_and_votes_with_them() {
        let mut circle = SampleCircle::founded();
        let lost = MemberKeyFile::generate(id("carol"));
        assert_eq!(code(rekeying(&circle.state, entry("dave"))), Some(error_code::NOT_A_MEMBER));
        let change = rekeying(&circle.state, lost.proven()).expect("carol is a member");
        circle.decide(change, "carol lost her key");
        let carol = circle.state.member(&id("carol")).expect("a member");
        assert_eq!(carol.keys, lost.secret.public());
        let old = std::mem::replace(&mut circle.members[2], lost);
        let proposal = circle.proposal("run it");
        let ballots = [1, 2].map(|at| circle.ballot(at, &proposal, Choice::Approve));
        assert!(human_chain::tally(&circle.state, &proposal, &ballots).reached, "by the new key");
        circle.members[2] = old;
        let ballots = [1, 2].map(|at| circle.ballot(at, &proposal, Choice::Approve));
        assert!(!human_chain::tally(&circle.state, &proposal, &ballots).reached, "the lost key is void");
    }

    #[test]
    fn members_join_and_leave_with_rules_that_follow() {
        let mut circle = SampleCircle::founded();
        let adapted = |circle: &SampleCircle, leaving: &[MemberId], joining: &[MemberId]| {
            adapted_policy(circle.state.policy(), leaving, joining, None).expect("a plain rule")
        };
        let (dave, carol) = (entry("dave"), [id("carol")]);
        let policy = adapted(&circle, &carol, &[id("dave")]);
        let swap = roster(&circle.state, vec![dave.clone()], &carol, policy).expect("dave for carol");
        circle.decide(swap, "dave for carol");
        let ids: Vec<&str> = circle.state.members().map(|member| member.id.as_str()).collect();
        assert_eq!(ids, ["alice", "bob", "dave"]);
        let same = || adapted(&circle, &[], &[]);
        assert_eq!(
            code(roster(&circle.state, vec![dave], &[], same())),
            Some(error_code::GOVERNANCE_INVALID)
        );
        assert_eq!(code(roster(&circle.state, vec![], &carol, same())), Some(error_code::NOT_A_MEMBER));
    }
}
