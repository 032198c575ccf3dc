//! `quorate circle` and `quorate verify`: founding a circle, showing it, and verifying its history offline.
//!
//! A founder reads the genesis as a rendering, made on the founder's machine, and never as JSON. No command
//! replaces the file of a secret.

use super::Environment;
use super::access::{self, ProposeAccessArguments};
use super::members::{self, ProposeMemberArguments, ProposePolicyArguments};
use super::output::{print_json, table};
use super::projects::{self, ProposeProjectsArguments};
use super::usage::{self, ProposePricesArguments};
use super::words::WordsArguments;
use crate::member_key::{MemberKey, MemberKeyFile};
use crate::policy::{VETO_SECONDS, simple_policy};
use crate::print;
use crate::session::Session;
use crate::terminal::line;
use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand};
use host::files;
use host::wall_clock;
use human_chain::{CircleState, MemberSigner as _};
use protocol::access::AccessEnvelope;
use protocol::api::History;
use protocol::display::counted;
use protocol::governance::*;
use protocol::{CircleId, MemberId, Refusal, error_code};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

#[derive(Debug, Subcommand)]
pub(crate) enum CircleCommand {
    /// Generate a member's key without a passphrase, for tests; people use `quorate member init`
    #[command(after_help = "\
Example:
  quorate circle member alice --key alice.key > alice.json

Any reader of the file has the key. For a person: quorate member init alice --key alice.key > alice.json")]
    Member {
        /// Name of the member in the circle
        member: MemberId,
        /// File to write the secret key to
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
    },
    /// Draft a genesis from its parts
    #[command(after_help = "\
Example:
  quorate circle draft --name lab --members alice.json bob.json carol.json --required 2 \\
    --control control-1.json control-2.json control-3.json --nodes node-1.json > genesis.json")]
    Draft(DraftArguments),
    /// Sign a drafted genesis as one of its founders, after reading it and typing the first two of its words
    #[command(after_help = "\
Examples:
  quorate circle sign genesis.json --key alice.key
  quorate circle sign genesis.json --key alice.key --words 'badge pelican'    for scripts")]
    Sign {
        /// Genesis file; the signature is added to it
        genesis: PathBuf,
        /// Key file of the founder
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
        #[command(flatten)]
        words: WordsArguments,
    },
    /// Join the signatures that founders made in parallel, each on a copy of the genesis
    #[command(after_help = "Example:\n  quorate circle merge genesis.json from-bob.json from-carol.json")]
    Merge {
        /// Genesis file; the signatures are added to it
        genesis: PathBuf,
        /// Signed copies of the same genesis
        #[arg(required = true, value_name = "COPY")]
        copies: Vec<PathBuf>,
    },
    /// Show a genesis as its founders read it, and its signatures
    #[command(after_help = "Example:\n  quorate circle read genesis.json")]
    Read {
        /// Genesis file
        genesis: PathBuf,
    },
    /// Propose to add or remove members
    ProposeMember(ProposeMemberArguments),
    /// Propose another policy: its rules, or the time for a veto
    ProposePolicy(ProposePolicyArguments),
    /// Propose other bounds within which single members grant access
    ProposeAccess(ProposeAccessArguments),
    /// Propose other prices for GPUs, cores and memory
    ProposePrices(ProposePricesArguments),
    /// Propose another tree of projects, by which jobs share what the nodes offer
    ProposeProjects(ProposeProjectsArguments),
    /// Show members, policy, epoch and the head of the history
    #[command(after_help = "Example:\n  quorate circle show")]
    Show,
    /// Print the genesis and every decision since, as input for `quorate verify`
    #[command(after_help = "Example:\n  quorate circle history > history.json")]
    History,
}

#[derive(Debug, Args)]
pub(crate) struct DraftArguments {
    /// Name of the circle
    #[arg(long)]
    name: String,
    /// Members, in the form that `quorate member init` prints
    #[arg(long, num_args = 1.., value_name = "FILE")]
    members: Vec<PathBuf>,
    /// Number of members that must sign each change
    #[arg(long)]
    required: u32,
    /// Hours that a change of members or policy waits for a veto after its last approval: 0 to 720
    #[arg(long, value_name = "HOURS", default_value_t = VETO_SECONDS / 3600,
        value_parser = clap::value_parser!(u32).range(0..=720))]
    veto_hours: u32,
    /// Whether the ballot of a proposal's proposer counts; if not, one more member must sign
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    proposer_counts: bool,
    /// Control replicas, in the form that `quorate control init` prints
    #[arg(long, num_args = 1.., value_name = "FILE")]
    control: Vec<PathBuf>,
    /// First nodes, in the form that `quorate agent init` prints
    #[arg(long, num_args = 0.., value_name = "FILE")]
    nodes: Vec<PathBuf>,
    /// Domain that the members' passkeys are for, or `localhost` [default: the circle has no passkeys]
    #[arg(long, value_name = "DOMAIN", requires = "passkey_origins")]
    passkey_domain: Option<String>,
    /// Origins of the console's pages, at or below that domain
    #[arg(long, num_args = 1.., value_name = "URL", requires = "passkey_domain")]
    passkey_origins: Vec<String>,
    /// Let votes by passkey count for routine changes, beside one or more with a member's key
    #[arg(long, requires = "passkey_domain")]
    passkey_votes: bool,
    /// Members that may issue access tokens and inference keys, each alone [default: all]
    #[arg(long, num_args = 1.., value_name = "MEMBER")]
    grantors: Vec<MemberId>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  quorate circle history > history.json
  quorate verify history.json --circle ID     offline")]
pub(crate) struct VerifyArguments {
    /// A history, or one certificate from it
    file: PathBuf,
    /// Id of the circle, obtained independently of the file [default: the context's]
    #[arg(long)]
    circle: Option<CircleId>,
    /// The history that a single certificate belongs to
    #[arg(long, value_name = "FILE")]
    history: Option<PathBuf>,
}

pub(crate) async fn run(command: CircleCommand, environment: &Environment) -> Result<()> {
    match command {
        CircleCommand::Member { member, key } => {
            let file = MemberKeyFile::generate(member.clone());
            file.save(&key)?;
            print_json(&file.proven());
            Ok(())
        }
        CircleCommand::Draft(arguments) => draft(&arguments),
        CircleCommand::Sign { genesis, key, words } => sign(&genesis, &key, &words),
        CircleCommand::Merge { genesis, copies } => merge(&genesis, &copies),
        CircleCommand::Read { genesis } => read(&genesis, environment),
        CircleCommand::ProposeMember(arguments) => members::propose_member(arguments, environment).await,
        CircleCommand::ProposePolicy(arguments) => members::propose_policy(arguments, environment).await,
        CircleCommand::ProposeAccess(arguments) => access::propose(arguments, environment).await,
        CircleCommand::ProposePrices(arguments) => usage::propose(arguments, environment).await,
        CircleCommand::ProposeProjects(arguments) => projects::propose(arguments, environment).await,
        CircleCommand::Show => show(environment).await,
        CircleCommand::History => {
            let session = Session::open(&environment.context()?).await?;
            print_json(&session.whole_history().await?);
            Ok(())
        }
    }
}

/// Reads and parses a JSON file; errors name its path.
pub(crate) fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    let text = std::fs::read_to_string(path).with_context(|| format!("read `{}`", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("`{}`", path.display()))
}

fn draft(arguments: &DraftArguments) -> Result<()> {
    let genesis = genesis_of(arguments)?;
    human_chain::check_draft(&genesis).map_err(Refusal::from)?;
    print_json(&SignedGenesis { genesis, signatures: BTreeMap::new() });
    Ok(())
}

fn genesis_of(arguments: &DraftArguments) -> Result<Genesis> {
    let entries = arguments.members.iter().map(|path| members::read_entry(path));
    let members: Vec<Member> = entries.map(|entry| Ok(entry?.member)).collect::<Result<_>>()?;
    let grantors = match arguments.grantors.as_slice() {
        [] => members.iter().map(|member| member.id.clone()).collect(),
        named => named.to_vec(),
    };
    Ok(Genesis {
        name: arguments.name.clone(),
        founded_at: wall_clock(),
        policy: Policy {
            passkeys: passkeys_of(arguments),
            veto_seconds: arguments.veto_hours * 3600,
            proposer_counts: arguments.proposer_counts,
            ..simple_policy(&members, arguments.required)
        },
        members,
        control: read_all(&arguments.control)?,
        nodes: read_all(&arguments.nodes)?,
        access: AccessEnvelope::standard(grantors),
    })
}

fn passkeys_of(arguments: &DraftArguments) -> Option<protocol::PasskeyPolicy> {
    arguments.passkey_domain.clone().map(|rp_id| protocol::PasskeyPolicy {
        rp_id,
        origins: arguments.passkey_origins.iter().cloned().collect(),
        routine: arguments.passkey_votes,
    })
}

fn read_all<T: serde::de::DeserializeOwned>(paths: &[PathBuf]) -> Result<Vec<T>> {
    paths.iter().map(|path| read_json(path)).collect()
}

/// Signs a genesis that its founder has just read. A founder's own signature is not replaced.
fn sign(genesis: &Path, key: &Path, words: &WordsArguments) -> Result<()> {
    let mut signed: SignedGenesis = read_json(genesis)?;
    human_chain::check_draft(&signed.genesis).map_err(Refusal::from)?;
    human_chain::unsigned_founders(&signed).map_err(Refusal::from)?;
    let member = MemberKey::load(key)?;
    let founder = signed.genesis.members.iter().find(|founder| founder.id == member.member);
    if founder.is_none_or(|founder| founder.keys != member.signer.public_keys()) {
        let message =
            format!("`{}` is not a founder of this genesis, or the genesis has another key", member.member);
        return Err(Refusal::new(error_code::NOT_A_MEMBER, message).into());
    }
    let rendering = human_chain::render_genesis(&signed.genesis);
    print::err(format_args!("{}\nwords: {}\n", rendering.text, rendering.words.join(" ")));
    words.confirm(&format!("sign as {}", member.member), &rendering.words)?;
    if !signed.signatures.contains_key(&member.member) {
        let signature = human_chain::sign_as_founder(&member.signer, &signed.genesis)?;
        signed.signatures.insert(member.member.clone(), signature);
    }
    write_signed(genesis, &signed)?;
    print::out(format_args!("signed by {}; {}", member.member, progress(&signed)?));
    Ok(())
}

fn merge(genesis: &Path, copies: &[PathBuf]) -> Result<()> {
    let mut signed: SignedGenesis = read_json(genesis)?;
    let copies = read_all::<SignedGenesis>(copies)?;
    human_chain::merge_signatures(&mut signed, &copies).map_err(Refusal::from)?;
    write_signed(genesis, &signed)?;
    print::out(format_args!("merged; {}", progress(&signed)?));
    Ok(())
}

fn read(genesis: &Path, environment: &Environment) -> Result<()> {
    let signed: SignedGenesis = read_json(genesis)?;
    let progress = progress(&signed)?;
    let rendering = human_chain::render_genesis(&signed.genesis);
    let value = serde_json::json!({
        "circle": human_chain::circle_id(&signed.genesis),
        "text": rendering.text,
        "words": rendering.words,
        "signed": signed.signatures.keys().collect::<Vec<_>>(),
    });
    environment
        .output()
        .print(&value, |_| format!("{}\nwords: {}\n{progress}", rendering.text, rendering.words.join(" ")));
    Ok(())
}

/// The file of a genesis is replaced whole: a crash leaves the old signatures or the new ones.
fn write_signed(path: &Path, signed: &SignedGenesis) -> Result<()> {
    let text = serde_json::to_string_pretty(signed)?;
    files::write_atomically(path, text.as_bytes(), 0o644)
        .with_context(|| format!("write `{}`", path.display()))
}

/// Describes the signatures of a genesis, each verified: `2 signatures missing (bob, carol); circle ID`.
fn progress(signed: &SignedGenesis) -> Result<String> {
    let unsigned = human_chain::unsigned_founders(signed).map_err(Refusal::from)?;
    let names: Vec<&str> = unsigned.iter().map(MemberId::as_str).collect();
    let circle = human_chain::circle_id(&signed.genesis);
    Ok(match names.len() {
        0 => format!("every founder has signed; circle {circle}"),
        count => {
            let missing = counted(count as u64, "signature");
            format!("{missing} missing ({}); circle {circle}", names.join(", "))
        }
    })
}

async fn show(environment: &Environment) -> Result<()> {
    let session = Session::open(&environment.context()?).await?;
    let circle = &session.circle;
    let members: Vec<&Member> = circle.members().collect();
    let value = serde_json::json!({
        "circle": circle.id(),
        "name": circle.name(),
        "epoch": circle.epoch(),
        "head": circle.head(),
        "members": members,
        "suspended": circle.suspended().keys().collect::<Vec<_>>(),
        "policy": circle.policy(),
        "access": circle.access(),
    });
    environment.output().print(&value, |_| {
        let state = |member: &Member| if circle.is_suspended(&member.id) { "suspended" } else { "" };
        let row = |member: &&Member| {
            vec![member.id.to_string(), member.keys.ed25519.short(), state(member).to_string()]
        };
        let rows = members.iter().map(row).collect();
        let rules: Vec<String> = circle
            .policy()
            .quorums
            .iter()
            .map(|(class, quorum)| format!("{class}: {}", human_chain::describe(quorum)))
            .collect();
        format!(
            "circle {} ({})\nepoch {}\n{}\n{}\nchanges of members wait {} for a veto\n\n{}",
            line(circle.name()),
            circle.id(),
            circle.epoch(),
            head_text(&circle.head()),
            rules.join("\n"),
            human_chain::show_duration(circle.policy().veto_seconds.into()),
            table(&["member", "key", ""], rows)
        )
    });
    Ok(())
}

/// Names a history, so that members can compare theirs: `4 decisions, root ROOT`.
fn head_text(head: &HistoryHead) -> String {
    format!("{}, root {}", counted(head.size, "decision"), head.root)
}

pub(crate) async fn verify(arguments: VerifyArguments, environment: &Environment) -> Result<()> {
    // Without a context only the given id can be checked, for instance on a machine that is offline.
    let (circle, known) = match (arguments.circle, environment.context()) {
        (Some(circle), Ok(context)) if context.circle == circle => (circle, context.head_file().read()?),
        (Some(circle), _) => (circle, None),
        (None, context) => {
            let context = context.context("no --circle was given")?;
            (context.circle, context.head_file().read()?)
        }
    };
    let history: History = match &arguments.history {
        Some(file) => read_json(file)?,
        None => read_json(&arguments.file)?,
    };
    let certificates = history.bundles.iter().map(|bundle| &bundle.certificate);
    let state = CircleState::replay(&history.genesis, Some(circle), certificates).map_err(Refusal::from)?;
    if let Some(known) = known {
        state.check_extends(&known).map_err(Refusal::from)?;
    }
    if arguments.history.is_some() {
        let wanted: Certificate = read_json(&arguments.file)?;
        let digest = wanted.digest();
        if !history.bundles.iter().any(|bundle| bundle.certificate.digest() == digest) {
            bail!("certificate {digest} is not part of this history");
        }
    }
    let ballots: usize = history.bundles.iter().map(|bundle| bundle.certificate.ballots.len()).sum();
    let summary = serde_json::json!({
        "circle": circle,
        "decisions": state.length(),
        "head": state.head(),
        "ballots": ballots,
        "epoch": state.epoch(),
        "verified": true,
    });
    environment.output().print(&summary, |_| {
        format!(
            "verified: circle {} ({}), {}, {}, all signatures valid\nhead: {}",
            line(state.name()),
            circle.short(),
            counted(history.genesis.genesis.members.len() as u64, "founder"),
            counted(ballots as u64, "ballot"),
            head_text(&state.head()),
        )
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::Millis;

    fn key_file(name: &str) -> MemberKeyFile {
        MemberKeyFile::generate(name.parse().expect("a name"))
    }

    fn member(file: &MemberKeyFile) -> Member {
        Member { id: file.member.clone(), keys: file.secret.public() }
    }

    #[test]
    fn a_simple_policy_has_one_quorum_for_every_class() {
        let members = ["alice", "bob", "carol"].map(|name| member(&key_file(name)));
        let policy = simple_policy(&members, 2);
        for class in [ActionClass::Routine, ActionClass::Sensitive] {
            assert_eq!(human_chain::describe(&policy.quorums[&class]), "2 of (alice, bob, carol)");
        }
    }

    fn code<T>(outcome: Result<T>) -> Option<protocol::ErrorCode> {
        outcome.err()?.downcast_ref::<Refusal>().map(|refusal| refusal.code)
    }

    fn replica() -> ControlReplica {
        ControlReplica {
            id: protocol::ReplicaId(1),
            key: key_file("control").secret.public().ed25519,
            address: "127.0.0.1:7600".into(),
            api: "http://127.0.0.1:7601".into(),
        }
    }

    fn genesis(founders: &[&MemberKeyFile]) -> SignedGenesis {
        let members: Vec<Member> = founders.iter().map(|file| member(file)).collect();
        let required = u32::try_from(members.len()).expect("few");
        let policy = simple_policy(&members, required);
        let access = AccessEnvelope::standard(members.iter().map(|member| member.id.clone()));
        let (control, nodes) = (vec![replica()], vec![]);
        let name = "lab".to_string();
        let genesis = Genesis { name, founded_at: Millis(1), policy, members, control, nodes, access };
        SignedGenesis { genesis, signatures: BTreeMap::new() }
    }

    fn words_of(signed: &SignedGenesis) -> WordsArguments {
        WordsArguments { words: Some(human_chain::render_genesis(&signed.genesis).words[..2].join(" ")) }
    }

    fn write<T: serde::Serialize>(directory: &Path, name: &str, value: &T) -> PathBuf {
        let path = directory.join(name);
        std::fs::write(&path, serde_json::to_vec(value).expect("JSON")).expect("written");
        path
    }

    #[test]
    fn only_a_founder_with_the_key_of_the_genesis_signs_it() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let [alice, other_alice, mallory] = ["alice", "alice", "mallory"].map(key_file);
        let signed = genesis(&[&alice]);
        let file = write(directory.path(), "genesis.json", &signed);
        let key = directory.path().join("key");
        for outsider in [other_alice, mallory] {
            outsider.save(&key).expect("saved");
            assert_eq!(code(sign(&file, &key, &words_of(&signed))), Some(error_code::NOT_A_MEMBER));
            assert_eq!(read_json::<SignedGenesis>(&file).expect("read"), signed, "nothing was signed");
            std::fs::remove_file(&key).expect("removed");
        }
        alice.save(&key).expect("saved");
        sign(&file, &key, &words_of(&signed)).expect("signed");
        let now: SignedGenesis = read_json(&file).expect("read");
        assert_eq!(now.signatures.keys().collect::<Vec<_>>(), [&alice.member]);
        assert_eq!(now.genesis, signed.genesis);
    }

    /// Attack: a genesis that was altered after it was shown to the founder is signed unseen.
    #[test]
    fn a_genesis_is_signed_by_the_words_of_its_own_text() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let [alice, bob, mallory] = ["alice", "bob", "mallory"].map(key_file);
        let (shown, altered) = (genesis(&[&alice, &bob]), genesis(&[&alice, &bob, &mallory]));
        let key = directory.path().join("alice.key");
        alice.save(&key).expect("saved");
        let file = write(directory.path(), "genesis.json", &altered);
        assert_eq!(code(sign(&file, &key, &words_of(&shown))), Some(error_code::WORDS_MISMATCH));
        let unseen = WordsArguments { words: None };
        assert_eq!(
            code(sign(&file, &key, &unseen)),
            Some(error_code::WORDS_MISMATCH),
            "no terminal to ask at"
        );
        assert_eq!(read_json::<SignedGenesis>(&file).expect("read"), altered, "nothing was signed");
        // Positive control: without the words it is signed, since the altered genesis is sound.
        sign(&file, &key, &words_of(&altered)).expect("signed");
        assert!(read_json::<SignedGenesis>(&file).expect("read").signatures.contains_key(&alice.member));
    }

    #[test]
    fn an_unsound_genesis_is_not_signed() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let [alice, bob] = ["alice", "bob"].map(key_file);
        let key = directory.path().join("alice.key");
        alice.save(&key).expect("saved");
        let mut unsound = genesis(&[&alice, &bob]);
        unsound.genesis.policy = simple_policy(&unsound.genesis.members, 3);
        let mut forged = genesis(&[&alice, &bob]);
        forged.signatures.insert(bob.member.clone(), alice.secret.sign(GENESIS_DOMAIN, b"another"));
        for (signed, expected) in
            [(unsound, error_code::GOVERNANCE_INVALID), (forged, error_code::SIGNATURE_INVALID)]
        {
            let file = write(directory.path(), "genesis.json", &signed);
            assert_eq!(code(sign(&file, &key, &words_of(&signed))), Some(expected));
        }
    }

    #[test]
    fn founders_sign_copies_in_parallel_and_merge_them() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let founders = ["alice", "bob", "carol"].map(key_file);
        let draft = genesis(&founders.each_ref());
        let copies = founders.each_ref().map(|founder| {
            let name = founder.member.as_str();
            let (copy, key) =
                (write(directory.path(), name, &draft), directory.path().join(format!("{name}.key")));
            founder.save(&key).expect("saved");
            sign(&copy, &key, &words_of(&draft)).expect("signed");
            copy
        });
        merge(&copies[0], &copies[1..]).expect("copies of one genesis");
        let merged: SignedGenesis = read_json(&copies[0]).expect("read");
        CircleState::found(&merged, None).expect("every founder has signed");
        let other = write(directory.path(), "other.json", &genesis(&[&founders[0]]));
        assert_eq!(code(merge(&copies[0], &[other])), Some(error_code::CIRCLE_MISMATCH));
        assert_eq!(read_json::<SignedGenesis>(&copies[0]).expect("read"), merged);
    }

    /// Attacks: 4 of 3 members, one member twice, and a person outside that is to grant access.
    #[test]
    fn a_draft_that_could_not_be_founded_is_refused() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let members: Vec<PathBuf> = ["alice", "bob", "carol"]
            .map(|name| write(directory.path(), &format!("{name}.json"), &key_file(name).proven()))
            .to_vec();
        let control = vec![write(directory.path(), "control-1.json", &replica())];
        let arguments = |members: &[PathBuf], required| DraftArguments {
            name: "lab".into(),
            members: members.to_vec(),
            required,
            veto_hours: 48,
            proposer_counts: true,
            control: control.clone(),
            nodes: vec![],
            passkey_domain: None,
            passkey_origins: vec![],
            passkey_votes: false,
            grantors: vec![],
        };
        let mut elsewhere = arguments(&members, 2);
        elsewhere.passkey_domain = Some("example.org".into());
        elsewhere.passkey_origins = vec!["https://console.example.com".into()];
        assert_eq!(code(draft(&elsewhere)), Some(error_code::GOVERNANCE_INVALID));
        let twice: Vec<PathBuf> = members.iter().chain(&members[..1]).cloned().collect();
        let mut every_other = arguments(&members, 3);
        every_other.proposer_counts = false;
        let short = [arguments(&members, 4), arguments(&twice, 3), arguments(&members, 1)];
        for refused in short.into_iter().chain([every_other]) {
            assert_eq!(code(draft(&refused)), Some(error_code::GOVERNANCE_INVALID));
        }
        elsewhere.passkey_origins = vec!["https://console.example.org".into()];
        let genesis = genesis_of(&elsewhere).expect("sound");
        assert_eq!(human_chain::check_draft(&genesis), Ok(()));
        assert!(human_chain::render_genesis(&genesis).text.contains("console.example.org"));
        draft(&arguments(&members, 2)).expect("drafted");
        let mut by_bob = arguments(&members, 2);
        by_bob.grantors = vec!["bob".parse().expect("a name")];
        assert_eq!(genesis_of(&by_bob).expect("sound").access.grantors.len(), 1);
        by_bob.grantors.push("mallory".parse().expect("a name"));
        assert_eq!(code(draft(&by_bob)), Some(error_code::GOVERNANCE_INVALID));
    }

    #[test]
    fn a_file_that_cannot_be_parsed_is_named() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let file = directory.path().join("history.json");
        let error = |file: &Path| format!("{:#}", read_json::<History>(file).expect_err("unreadable"));
        assert!(error(&file).starts_with("read `") && error(&file).contains("history.json"));
        std::fs::write(&file, "{").expect("written");
        assert!(error(&file).starts_with('`') && error(&file).contains("history.json"));
    }
}
