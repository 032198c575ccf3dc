//! `quorate circle` and `quorate verify`: founding a circle, showing it, and verifying its history offline.

use super::Environment;
use super::output::table;
use crate::policy::simple_policy;
use crate::session::{MemberKeyFile, Session};
use anyhow::{Context as _, Result, anyhow, bail};
use clap::{Args, Subcommand};
use host::files;
use host::random::fresh_secret_text;
use host::wall_clock;
use human_chain::CircleState;
use protocol::api::History;
use protocol::governance::*;
use protocol::{CircleId, Digest, MemberId, Refusal};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

#[derive(Debug, Subcommand)]
pub(crate) enum CircleCommand {
    /// Generate a member's key pair and print the member's public entry
    #[command(after_help = "Example:\n  quorate circle member alice --key alice.key > alice.json")]
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
    --control control-1.json control-2.json control-3.json --nodes node-1.json \\
    --token-file token > genesis.json")]
    Draft(DraftArguments),
    /// Sign a drafted genesis as one of its founders
    #[command(after_help = "Example:\n  quorate circle sign genesis.json --key alice.key")]
    Sign {
        /// Genesis file; the signature is added to it
        genesis: PathBuf,
        /// Key file of the founder
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
    },
    /// Show members, policy and epoch
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
    /// Members, in the form that `quorate circle member` prints
    #[arg(long, num_args = 1.., value_name = "FILE")]
    members: Vec<PathBuf>,
    /// Number of members that must sign each change
    #[arg(long)]
    required: u32,
    /// Control replicas, in the form that `quorate control init` prints
    #[arg(long, num_args = 1.., value_name = "FILE")]
    control: Vec<PathBuf>,
    /// First nodes, in the form that `quorate agent init` prints
    #[arg(long, num_args = 0.., value_name = "FILE")]
    nodes: Vec<PathBuf>,
    /// File to write the first access token to
    #[arg(long, value_name = "FILE")]
    token_file: PathBuf,
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
            print_json(&Member { id: member, keys: file.secret.public() })
        }
        CircleCommand::Draft(arguments) => draft(&arguments),
        CircleCommand::Sign { genesis, key } => sign(&genesis, &key),
        CircleCommand::Show => show(environment).await,
        CircleCommand::History => {
            let session = Session::open(&environment.context()?).await?;
            print_json(&session.history)
        }
    }
}

fn print_json<T: serde::Serialize>(value: &T) -> Result<()> {
    println!("{}", serde_json::to_string_pretty(value)?);
    Ok(())
}

/// Reads and parses a JSON file; errors name its path.
pub(crate) fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    let text = std::fs::read_to_string(path).with_context(|| format!("read `{}`", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("`{}`", path.display()))
}

fn draft(arguments: &DraftArguments) -> Result<()> {
    let members = read_all::<Member>(&arguments.members)?;
    let token = fresh_secret_text("quorate-token");
    files::write_secret(&arguments.token_file, token.as_bytes())
        .with_context(|| format!("write `{}`", arguments.token_file.display()))?;
    let genesis = Genesis {
        name: arguments.name.clone(),
        founded_at: wall_clock(),
        policy: simple_policy(&members, arguments.required),
        members,
        control: read_all(&arguments.control)?,
        nodes: read_all(&arguments.nodes)?,
        tokens: vec![AccessToken {
            name: "founder".parse().map_err(|error: String| anyhow!(error))?,
            scopes: BTreeSet::from([TokenScope::Read, TokenScope::Propose, TokenScope::Submit]),
            hash: Digest::of(token.as_bytes()),
        }],
    };
    print_json(&SignedGenesis { genesis, signatures: BTreeMap::new() })
}

fn read_all<T: serde::de::DeserializeOwned>(paths: &[PathBuf]) -> Result<Vec<T>> {
    paths.iter().map(|path| read_json(path)).collect()
}

fn sign(genesis: &Path, key: &Path) -> Result<()> {
    let mut signed: SignedGenesis = read_json(genesis)?;
    let member = MemberKeyFile::load(key)?;
    let founder = signed.genesis.members.iter().find(|founder| founder.id == member.member);
    if founder.is_none_or(|founder| founder.keys != member.secret.public()) {
        bail!("`{}` is not a founder of this genesis, or the genesis has another key", member.member);
    }
    let bytes = protocol::canonical::to_bytes(&signed.genesis);
    signed.signatures.insert(member.member.clone(), member.secret.sign(GENESIS_DOMAIN, &bytes));
    let text = serde_json::to_string_pretty(&signed)?;
    files::write_atomically(genesis, text.as_bytes(), 0o644)?;
    let missing = signed.genesis.members.len() - signed.signatures.len();
    let id = human_chain::circle_id(&signed.genesis);
    println!("signed by {}; {missing} signatures missing; circle {id}", member.member);
    Ok(())
}

async fn show(environment: &Environment) -> Result<()> {
    let session = Session::open(&environment.context()?).await?;
    let circle = &session.circle;
    let members: Vec<&Member> = circle.members().collect();
    environment.output().print(&session.history.genesis.genesis, |_| {
        let rows =
            members.iter().map(|member| vec![member.id.to_string(), member.keys.ed25519.short()]).collect();
        let rules: Vec<String> = circle
            .policy()
            .quorums
            .iter()
            .map(|(class, quorum)| format!("{class}: {}", human_chain::describe(quorum)))
            .collect();
        format!(
            "circle {} ({})\nepoch {}, {} decisions\n{}\n\n{}",
            circle.name(),
            circle.id(),
            circle.epoch(),
            circle.length(),
            rules.join("\n"),
            table(&["member", "key"], rows)
        )
    });
    Ok(())
}

pub(crate) async fn verify(arguments: VerifyArguments, environment: &Environment) -> Result<()> {
    let circle = match arguments.circle {
        Some(circle) => circle,
        None => environment.context().context("no --circle was given")?.circle,
    };
    let history: History = match &arguments.history {
        Some(file) => read_json(file)?,
        None => read_json(&arguments.file)?,
    };
    let certificates = history.bundles.iter().map(|bundle| &bundle.certificate);
    let state = CircleState::replay(&history.genesis, Some(circle), certificates).map_err(Refusal::from)?;
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
        "ballots": ballots,
        "epoch": state.epoch(),
        "verified": true,
    });
    environment.output().print(&summary, |_| {
        format!(
            "verified: circle {} ({}), {} founders, {} decisions, {ballots} ballots, all signatures valid",
            state.name(),
            circle.short(),
            history.genesis.genesis.members.len(),
            state.length(),
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

    #[test]
    fn only_a_founder_with_the_key_of_the_genesis_signs_it() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let [alice, other_alice, mallory] = ["alice", "alice", "mallory"].map(key_file);
        let members = vec![member(&alice)];
        let genesis = Genesis {
            name: "lab".into(),
            founded_at: Millis(1),
            policy: simple_policy(&members, 1),
            members,
            control: vec![],
            nodes: vec![],
            tokens: vec![],
        };
        let file = directory.path().join("genesis.json");
        let signed = SignedGenesis { genesis, signatures: BTreeMap::new() };
        std::fs::write(&file, serde_json::to_vec(&signed).expect("JSON")).expect("written");
        let key = directory.path().join("key");
        for outsider in [other_alice, mallory] {
            outsider.save(&key).expect("saved");
            let error = sign(&file, &key).expect_err("no founder").to_string();
            assert!(error.contains("is not a founder"), "{error}");
            assert_eq!(read_json::<SignedGenesis>(&file).expect("read"), signed, "nothing was signed");
            std::fs::remove_file(&key).expect("removed");
        }
        alice.save(&key).expect("saved");
        sign(&file, &key).expect("signed");
        let now: SignedGenesis = read_json(&file).expect("read");
        assert_eq!(now.signatures.keys().collect::<Vec<_>>(), [&alice.member]);
        assert_eq!(now.genesis, signed.genesis);
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
