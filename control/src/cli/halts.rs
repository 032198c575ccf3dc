//! `quorate halt`, `lift` and `halts`: one member stops something, the circle lets it run again.
//!
//! A halt goes to every replica, since each takes it alone. It asks no question: what stops too early does no
//! harm, and what stops too late may.

use super::Environment;
use super::circle::read_json;
use super::output::table;
use super::proposals::{ProposerArguments, reason_or};
use super::sharing::member_key;
use crate::client::{ClientError, ControlClient};
use crate::context::Context;
use crate::print;
use crate::session::Session;
use anyhow::{Context as _, Result};
use clap::{Args, Subcommand};
use futures::future::join_all;
use host::random::random_bytes;
use host::{files, wall_clock};
use human_chain::{CircleState, MemberSigner, check_halt, describe_scope, lift, show_time, sign_halt};
use protocol::api::Page;
use protocol::display::counted;
use protocol::halt::{HALT_REASON_BYTES_MAX, Halt, HaltReceipt, HaltScope, HaltedSlot, SignedHalt};
use protocol::{Digest, HaltId, MemberId, NodeName, Refusal, ServiceName, error_code};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::timeout;

/// Time for which one replica may take to answer. The others have answered long before.
const REPLICA_TIMEOUT: Duration = Duration::from_secs(3);

#[derive(Debug, Subcommand)]
pub(crate) enum HaltCommand {
    /// Stop every slot of a service
    #[command(after_help = "Example:\n  quorate halt service chat --reason 'it answers nonsense'")]
    Service {
        /// Name of the service
        service: ServiceName,
        #[command(flatten)]
        options: HaltOptions,
    },
    /// Stop every slot on a node
    #[command(after_help = "Example:\n  quorate halt node node-3 --reason 'smoke'")]
    Node {
        /// Name of the node
        node: NodeName,
        #[command(flatten)]
        options: HaltOptions,
    },
    /// Stop every slot on the nodes of a region
    #[command(after_help = "Example:\n  quorate halt region eu-1 --reason 'the site was raided'")]
    Region {
        /// Region, as the nodes' admissions name it
        region: String,
        #[command(flatten)]
        options: HaltOptions,
    },
    /// Stop everything
    #[command(after_help = "\
Examples:
  quorate halt circle --reason 'keys of two members are stolen'
  quorate halt circle --reason 'no replica answers' --out halt.json
  quorate agent halt halt.json --dir node-1     on each node, if no replica answers")]
    Circle {
        #[command(flatten)]
        options: HaltOptions,
    },
    /// Sign a halt of your own again after your keys were rotated, so that every node takes it
    #[command(after_help = "\
Examples:
  quorate halts --output json                    the whole ids
  quorate halt again ID --key alice-2.key")]
    Again(AgainArguments),
}

#[derive(Debug, Args)]
pub(crate) struct AgainArguments {
    /// Id of the halt, in full
    #[arg(value_name = "HALT")]
    halt: String,
    /// Key file of the member [default: the context's]
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct HaltOptions {
    /// Reason that every member reads
    #[arg(long)]
    reason: String,
    /// Key file of the member [default: the context's]
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// File to write the signed halt to as well, for `quorate agent halt` on a node that no replica reaches
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  quorate lift 7f3a90c2 --reason 'fixed in chat-2'
  quorate lift --file halt.json     one that no replica has")]
pub(crate) struct LiftArguments {
    /// Ids of the halts, or their first digits
    #[arg(value_name = "HALT", required_unless_present = "file")]
    halts: Vec<String>,
    /// File with a signed halt; may be given several times
    #[arg(long, value_name = "FILE")]
    file: Vec<PathBuf>,
    /// Reason shown to the voters
    #[arg(long, default_value = "")]
    reason: String,
    #[command(flatten)]
    proposer: ProposerArguments,
}

/// Outcome of a halt at all replicas.
#[derive(Debug, Serialize)]
pub(super) struct HaltOutcome {
    id: HaltId,
    halt: Halt,
    /// Base URLs of the replicas that have the halt on their disks.
    taken: Vec<String>,
    /// The other replicas, each with the reason.
    not_taken: BTreeMap<String, String>,
    /// Number of slots that stop, as the replica knows that knows most.
    slots: u32,
    /// The first of these slots.
    shown: Vec<HaltedSlot>,
}

pub(crate) async fn halt(command: HaltCommand, environment: &Environment) -> Result<()> {
    let (scope, options) = match command {
        HaltCommand::Service { service, options } => (HaltScope::Service(service), options),
        HaltCommand::Node { node, options } => (HaltScope::Node(node), options),
        HaltCommand::Region { region, options } => (HaltScope::Region(region), options),
        HaltCommand::Circle { options } => (HaltScope::Circle, options),
        HaltCommand::Again(arguments) => return halt_again(arguments, environment).await,
    };
    let context = environment.context()?;
    let length = options.reason.len();
    if length > HALT_REASON_BYTES_MAX {
        let message = format!("the reason is {length} bytes; accepted: at most {HALT_REASON_BYTES_MAX}");
        return Err(Refusal::new(error_code::GOVERNANCE_INVALID, message).into());
    }
    let member = member_key(&context, options.key)?;
    let halt = Halt {
        circle: context.circle,
        member: member.member.clone(),
        signer: member.signer.public_keys().ed25519,
        scope,
        reason: options.reason,
        issued_at: wall_clock(),
        nonce: Digest(random_bytes()),
    };
    let signed = sign_halt(&member.signer, halt)?;
    // A halt that cannot be written is sent all the same.
    let written = options.out.as_deref().map_or(Ok(()), |file| write(file, &signed));
    let sent = send(&context.client()?, signed).await;
    if let (Err(_), Err(error)) = (&sent, &written) {
        print::err(format_args!("note: {error:#}"));
    }
    environment.output().print(&sent?, outcome_text);
    written
}

/// Signs a halt of this member again with the keys in force, unchanged, and sends it to every replica.
async fn halt_again(arguments: AgainArguments, environment: &Environment) -> Result<()> {
    let context = environment.context()?;
    let member = member_key(&context, arguments.key)?;
    let session = Session::open(&context).await?;
    let collected = collect(&session.client).await?;
    collected.silent.iter().for_each(|silent| print::err(format_args!("note: {silent}")));
    let halt = find(&session.circle, &collected, &arguments.halt)?;
    // A hostile replica can make a halt whose id begins with some digits.
    if halt.id().to_string() != arguments.halt {
        let message =
            format!("`{}` is no whole id; `quorate halts --output json` shows them", arguments.halt);
        return Err(Refusal::new(error_code::HALT_NOT_FOUND, message).into());
    }
    let signed = sign_halt(&member.signer, halt)?;
    check_halt(&session.circle, signed.clone()).map(drop).map_err(Refusal::from)?;
    let sent = send(&session.client, signed).await?;
    environment.output().print(&sent, outcome_text);
    Ok(())
}

/// Writes a signed halt to a new file. An existing one, such as a member's key, is never replaced.
fn write(file: &Path, signed: &SignedHalt) -> Result<()> {
    let text = serde_json::to_vec_pretty(signed)?;
    files::create_new(file, &text, 0o644).with_context(|| format!("write the halt to `{}`", file.display()))
}

/// Sends a halt to every replica at the same time.
///
/// # Errors
/// If none has taken it: the refusal of the first that refused it, or `control-unavailable`.
pub(super) async fn send(client: &ControlClient, signed: SignedHalt) -> Result<HaltOutcome> {
    let each = client.each();
    let sent = each.iter().map(|(url, replica)| {
        let sent = replica.post::<_, HaltReceipt>("/v1/halts", &signed);
        async move { (url.clone(), timeout(REPLICA_TIMEOUT, sent).await) }
    });
    let id = signed.halt.id();
    let (mut taken, mut not_taken, mut refused) = (Vec::new(), BTreeMap::new(), None);
    let (mut slots, mut shown) = (0, Vec::new());
    for (url, answer) in join_all(sent).await {
        match answer {
            Ok(Ok(receipt)) if receipt.id == id => {
                if receipt.slots >= slots {
                    (slots, shown) = (receipt.slots, receipt.shown);
                }
                taken.push(url);
            }
            Ok(Ok(_)) => drop(not_taken.insert(url, "acknowledged another halt".into())),
            Ok(Err(error)) => {
                not_taken.insert(url, error.to_string());
                if matches!(error, ClientError::Refused(_)) {
                    refused.get_or_insert(error);
                }
            }
            Err(_) => drop(not_taken.insert(url, "does not answer".into())),
        }
    }
    if !taken.is_empty() {
        return Ok(HaltOutcome { id, halt: signed.halt, taken, not_taken, slots, shown });
    }
    if let Some(refused) = refused {
        return Err(refused.into());
    }
    let reasons: Vec<String> = not_taken.iter().map(|(url, reason)| format!("{url}: {reason}")).collect();
    let message = format!(
        "no control replica has taken the halt ({}); write it with --out FILE, and hand it to each node: \
         quorate agent halt FILE --dir DIR",
        reasons.join("; ")
    );
    Err(Refusal::new(error_code::CONTROL_UNAVAILABLE, message).into())
}

fn outcome_text(outcome: &HaltOutcome) -> String {
    let all = outcome.taken.len() + outcome.not_taken.len();
    let mut text = format!("halted {}\nhalt {}\n", describe_scope(&outcome.halt.scope), outcome.id);
    text.push_str(&format!("taken by {} of {all} control replicas\n", outcome.taken.len()));
    for (url, reason) in &outcome.not_taken {
        text.push_str(&format!("not taken by {url}: {reason}\n"));
    }
    text.push_str(&match outcome.slots {
        0 => "no slot in use is covered; none will start\n".to_string(),
        1 => "1 slot stops\n".to_string(),
        slots => format!("{} stop\n", counted(slots.into(), "slot")),
    });
    for HaltedSlot { service, slot, node } in &outcome.shown {
        text.push_str(&format!("  {service}/{slot} on {node}\n"));
    }
    text.push_str(&format!("only a vote lifts it: quorate lift {}", outcome.id.short()));
    text
}

/// A halt as the replicas show it. An id covers the halt and not its signature, so that a replica can show a
/// copy that does not verify; the copy of another may.
#[derive(Debug)]
pub(super) struct CollectedHalt {
    /// Copies that differ in their signature, each with the replicas that have it. There is at least one.
    copies: Vec<(SignedHalt, Vec<String>)>,
}

impl CollectedHalt {
    /// Returns the copy that verifies by this circle, or else the first; the replicas that have it; and
    /// whether it verifies.
    pub(super) fn judged(&self, circle: Option<&CircleState>) -> (&SignedHalt, &[String], bool) {
        let is_sound =
            |signed: &SignedHalt| circle.is_some_and(|circle| check_halt(circle, signed.clone()).is_ok());
        let sound = self.copies.iter().find(|(signed, _)| is_sound(signed));
        let (signed, replicas) = sound.unwrap_or(&self.copies[0]);
        (signed, replicas, sound.is_some())
    }

    /// Returns the halt, which all copies have in common.
    fn halt(&self) -> &Halt {
        &self.copies[0].0.halt
    }
}

/// Halts that the replicas have.
#[derive(Debug, Default)]
pub(super) struct CollectedHalts {
    pub(super) halts: BTreeMap<HaltId, CollectedHalt>,
    pub(super) replicas: usize,
    /// Replicas that did not answer, each with the reason.
    pub(super) silent: Vec<String>,
}

impl CollectedHalts {
    /// Adds a halt that this replica has. Its id is computed here.
    fn add(&mut self, url: &str, signed: SignedHalt) {
        let known = self.halts.entry(signed.halt.id());
        let copies = &mut known.or_insert_with(|| CollectedHalt { copies: Vec::new() }).copies;
        match copies.iter_mut().find(|(copy, _)| *copy == signed) {
            Some((_, replicas)) => replicas.push(url.to_string()),
            None => copies.push((signed, vec![url.to_string()])),
        }
    }
}

/// Asks every replica for its halts at the same time.
///
/// # Errors
/// If no replica answers.
pub(super) async fn collect(client: &ControlClient) -> Result<CollectedHalts> {
    let each = client.each();
    let asked = each.iter().map(|(url, replica)| async move {
        (url.clone(), timeout(REPLICA_TIMEOUT, replica.list::<SignedHalt>("/v1/halts")).await)
    });
    let mut collected = CollectedHalts { replicas: each.len(), ..CollectedHalts::default() };
    for (url, answer) in join_all(asked).await {
        match answer {
            Ok(Ok(halts)) => {
                halts.into_iter().for_each(|signed| collected.add(&url, signed));
            }
            Ok(Err(error)) => collected.silent.push(format!("{url}: {error}")),
            Err(_) => collected.silent.push(format!("{url}: does not answer")),
        }
    }
    if collected.silent.len() == collected.replicas {
        let message = format!("no control replica answers: {}", collected.silent.join("; "));
        return Err(Refusal::new(error_code::CONTROL_UNAVAILABLE, message).into());
    }
    Ok(collected)
}

pub(crate) async fn lift_halts(arguments: LiftArguments, environment: &Environment) -> Result<()> {
    let session = Session::open(&environment.context()?).await?;
    let mut halts = read_halts(&arguments.file)?;
    if !arguments.halts.is_empty() {
        let collected = collect(&session.client).await?;
        collected.silent.iter().for_each(|silent| print::err(format_args!("note: {silent}")));
        for prefix in &arguments.halts {
            halts.push(find(&session.circle, &collected, prefix)?);
        }
    }
    let reason = reason_or(arguments.reason, || "let it run again".into());
    arguments.proposer.propose(environment, &session, lift(halts), reason).await?;
    Ok(())
}

fn read_halts(paths: &[PathBuf]) -> Result<Vec<Halt>> {
    paths.iter().map(|path| Ok(read_json::<SignedHalt>(path)?.halt)).collect()
}

/// Reads a signed halt from a file, for the agent on this machine.
pub(super) fn read_halt(path: &Path) -> Result<SignedHalt> {
    read_json(path)
}

/// Finds the halt whose id begins with these digits. It need not verify here: a member's key may have changed
/// since, and what a vote lifts is what its text shows.
fn find(circle: &CircleState, collected: &CollectedHalts, prefix: &str) -> Result<Halt, Refusal> {
    let matching = collected.halts.iter().filter(|(id, _)| id.to_string().starts_with(prefix));
    let mut found = matching.map(|(_, found)| found.halt()).filter(|halt| halt.circle == circle.id());
    let not_found = |message: String| Err(Refusal::new(error_code::HALT_NOT_FOUND, message));
    match (found.next(), found.next()) {
        (Some(halt), None) => Ok(halt.clone()),
        (Some(_), Some(_)) => not_found(format!("several halts begin with `{prefix}`; give more digits")),
        (None, _) => not_found(format!("no halt begins with `{prefix}`; `quorate halts` lists them")),
    }
}

/// A halt in the list.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct ListedHalt {
    id: HaltId,
    state: &'static str,
    member: MemberId,
    scope: HaltScope,
    reason: String,
    issued_at: protocol::Millis,
    /// Number of replicas that have it.
    replicas: usize,
}

/// Returns the list: halts that stand, then those that the circle lifted. Without a verified history, nothing
/// is said about signatures.
fn list(circle: Option<&CircleState>, collected: &CollectedHalts) -> Vec<ListedHalt> {
    let listed = |id: HaltId, halt: &Halt, state, replicas| ListedHalt {
        id,
        state,
        member: halt.member.clone(),
        scope: halt.scope.clone(),
        reason: halt.reason.clone(),
        issued_at: halt.issued_at,
        replicas,
    };
    let standing = collected.halts.iter().filter_map(|(id, found)| {
        if circle.is_some_and(|circle| circle.lifted(id).is_some()) {
            return None;
        }
        let (signed, replicas, is_sound) = found.judged(circle);
        // The key may have changed since the replicas took it; or they show what no member signed.
        let state = if is_sound { "stands" } else { "not verified" };
        Some(listed(*id, &signed.halt, state, replicas.len()))
    });
    let lifted = circle.into_iter().flat_map(CircleState::lifted_halts);
    standing.chain(lifted.map(|(id, lifted)| listed(*id, &lifted.halt, "lifted", 0))).collect()
}

pub(crate) async fn halts(environment: &Environment) -> Result<()> {
    let context = environment.context()?;
    let client = context.client()?;
    let (collected, circle) = tokio::join!(collect(&client), history(&context));
    let collected = collected?;
    collected.silent.iter().for_each(|silent| print::err(format_args!("note: {silent}")));
    let page = Page::whole(list(circle.as_ref(), &collected));
    environment.output().print(&page, |page| list_text(&page.items, collected.replicas));
    Ok(())
}

/// Returns the circle as its history proves it, if a leader answers in time.
async fn history(context: &Context) -> Option<CircleState> {
    match timeout(REPLICA_TIMEOUT, Session::open(context)).await {
        Ok(Ok(session)) => Some(session.circle),
        Ok(Err(error)) => {
            print::err(format_args!(
                "note: the history cannot be verified now ({error:#}); signatures are not checked"
            ));
            None
        }
        Err(_) => {
            print::err("note: no leader answers; signatures are not checked");
            None
        }
    }
}

fn list_text(list: &[ListedHalt], replicas: usize) -> String {
    if list.is_empty() {
        return "nothing is halted".into();
    }
    let row = |halt: &ListedHalt| {
        vec![
            halt.id.short(),
            halt.state.to_string(),
            halt.member.to_string(),
            describe_scope(&halt.scope),
            if halt.state == "lifted" { "-".into() } else { format!("{} of {replicas}", halt.replicas) },
            show_time(halt.issued_at),
            halt.reason.clone(),
        ]
    };
    table(
        &["halt", "state", "member", "stops", "replicas", "issued at", "reason"],
        list.iter().map(row).collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::simulated::{Does, SimulatedReplicas};
    use crate::testing::SampleCircle;

    fn signed(circle: &SampleCircle, member: usize, scope: HaltScope, nonce: &[u8]) -> SignedHalt {
        let file = &circle.members[member];
        let halt = Halt {
            circle: circle.state.id(),
            member: file.member.clone(),
            signer: file.secret.public().ed25519,
            scope,
            reason: "smoke\nhalted nothing".into(),
            issued_at: protocol::Millis(5),
            nonce: Digest::of(nonce),
        };
        sign_halt(&file.secret, halt)
    }

    fn collected(halts: Vec<SignedHalt>) -> CollectedHalts {
        let mut collected = CollectedHalts { replicas: 3, ..CollectedHalts::default() };
        halts.into_iter().for_each(|signed| collected.add("http://a", signed));
        collected
    }

    /// The attack: the replica that is asked first shows a halt under a signature that is none, and another
    /// replica shows the sound one. The positive control: both show the bad copy.
    #[tokio::test(start_paused = true)]
    async fn attack_a_bad_copy_of_a_halt_shadows_no_good_one() {
        let circle = SampleCircle::founded();
        let sound = signed(&circle, 0, HaltScope::Circle, b"1");
        let mut bad = sound.clone();
        bad.signature = signed(&circle, 1, HaltScope::Circle, b"1").signature;
        for (shown, expected) in [
            ([&bad, &sound], ("stands", 1)),
            ([&sound, &bad], ("stands", 1)),
            ([&sound, &sound], ("stands", 2)),
            ([&bad, &bad], ("not verified", 2)),
        ] {
            let leads = Does::Leads(Duration::ZERO);
            let (client, world) = SimulatedReplicas::client(vec![leads, Does::Follows(Some(0))]);
            shown.iter().enumerate().for_each(|(replica, signed)| world.hold_at(replica, (*signed).clone()));
            let collected = collect(&client).await.expect("both answer");
            let list = list(Some(&circle.state), &collected);
            assert_eq!(list.iter().map(|halt| (halt.state, halt.replicas)).collect::<Vec<_>>(), [expected]);
        }
    }

    #[test]
    fn the_list_shows_what_stands_what_was_lifted_and_what_does_not_verify() {
        let mut circle = SampleCircle::founded();
        let [stands, lifted] = [b"1", b"2"].map(|nonce| signed(&circle, 0, HaltScope::Circle, nonce));
        let mut forged = signed(&circle, 1, HaltScope::Circle, b"3");
        forged.signature = stands.signature.clone();
        circle.decide(lift(vec![lifted.halt.clone()]), "fixed");
        let all = collected(vec![stands.clone(), lifted.clone(), forged.clone()]);
        let state = |list: &[ListedHalt], halt: &SignedHalt| {
            list.iter().find(|listed| listed.id == halt.halt.id()).map(|listed| listed.state)
        };
        let verified = list(Some(&circle.state), &all);
        assert_eq!(verified.len(), 3);
        assert_eq!(state(&verified, &stands), Some("stands"));
        assert_eq!(state(&verified, &lifted), Some("lifted"), "no replica's word counts for that");
        assert_eq!(state(&verified, &forged), Some("not verified"));
        let unverified = list(None, &all);
        assert!(unverified.iter().all(|listed| listed.state == "not verified"));
        let text = list_text(&verified, 3);
        assert_eq!(text.lines().count(), 4, "a reason adds no row: {text}");
        assert!(text.contains("1 of 3") && text.contains("the whole circle"), "{text}");
        assert_eq!(list_text(&[], 3), "nothing is halted");
    }

    #[test]
    fn a_halt_is_found_by_its_first_digits() {
        let circle = SampleCircle::founded();
        let [first, second] = [b"1", b"2"].map(|nonce| signed(&circle, 0, HaltScope::Circle, nonce));
        let mut foreign = signed(&circle, 0, HaltScope::Circle, b"4");
        foreign.halt.circle = protocol::CircleId(Digest::of(b"another"));
        let all = collected(vec![first.clone(), second, foreign.clone()]);
        let find = |prefix: &str| find(&circle.state, &all, prefix);
        assert_eq!(find(&first.halt.id().to_string()), Ok(first.halt.clone()));
        for (prefix, expected) in [
            (String::new(), "several halts"),
            ("zz".into(), "no halt begins"),
            (foreign.halt.id().to_string(), "no halt begins"),
        ] {
            let refused = find(&prefix).expect_err("none, or several");
            assert_eq!(refused.code, error_code::HALT_NOT_FOUND);
            assert!(refused.message.starts_with(expected), "{refused}");
        }
    }

    #[test]
    fn the_outcome_names_the_slots_that_stop_and_the_replicas_that_lack_it() {
        let circle = SampleCircle::founded();
        let halt = signed(&circle, 0, HaltScope::Service("chat".parse().expect("a name")), b"1").halt;
        let slot = HaltedSlot {
            service: "chat".parse().expect("a name"),
            slot: protocol::SlotIndex(0),
            node: "node-1".parse().expect("a name"),
        };
        let mut outcome = HaltOutcome {
            id: halt.id(),
            halt,
            taken: vec!["http://a".into(), "http://b".into()],
            not_taken: BTreeMap::from([("http://c".into(), "does not answer".into())]),
            slots: 1,
            shown: vec![slot],
        };
        let text = outcome_text(&outcome);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "halted the service chat");
        assert_eq!(
            lines[2..6],
            [
                "taken by 2 of 3 control replicas",
                "not taken by http://c: does not answer",
                "1 slot stops",
                "  chat/0 on node-1",
            ]
        );
        assert_eq!(lines[6], format!("only a vote lifts it: quorate lift {}", outcome.id.short()));
        (outcome.slots, outcome.shown) = (0, vec![]);
        assert!(outcome_text(&outcome).contains("no slot in use is covered"));
    }

    /// No replica takes it: the command fails, and says how to hand the halt to the nodes.
    #[tokio::test(start_paused = true)]
    async fn a_halt_that_no_replica_takes_is_a_failure() {
        let circle = SampleCircle::founded();
        let halt = || signed(&circle, 0, HaltScope::Circle, b"1");
        let (client, world) = SimulatedReplicas::client(vec![Does::IsDead, Does::Hangs, Does::IsDead]);
        let error = send(&client, halt()).await.expect_err("all are dead");
        let refusal = error.downcast_ref::<Refusal>().expect("a code");
        assert_eq!(refusal.code, error_code::CONTROL_UNAVAILABLE);
        assert!(refusal.message.contains("quorate agent halt FILE"), "{refusal}");
        assert!(world.elapsed() <= REPLICA_TIMEOUT + Duration::from_millis(100), "{:?}", world.elapsed());
        let asked: std::collections::BTreeSet<usize> =
            world.arrived().iter().map(|arrived| arrived.replica).collect();
        assert_eq!(asked.len(), 3, "each was asked, whether another leads or not");
        let (client, _) = SimulatedReplicas::client(vec![Does::IsDead, Does::Refuses(400, "not-a-member")]);
        let error = send(&client, halt()).await.expect_err("refused");
        assert_eq!(super::super::failure::code_of(&error), Some(error_code::NOT_A_MEMBER));
    }
}
