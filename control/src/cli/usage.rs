//! `quorate usage`: metered usage, its export, and its verification; `quorate circle propose-prices`.
//!
//! Verification bills every entry again from its interval, rate and price, adds up the distinct ones, and
//! computes the chain over them. It compares all of this with what the cluster, or the export, claims.
//! Online, the prices are those of the history that this machine verified.

use super::Environment;
use super::output::table;
use super::proposals::{ProposerArguments, reason_or};
use crate::client::ControlClient;
use crate::print;
use crate::session::Session;
use anyhow::{Context as _, Result};
use clap::{Args, Subcommand, ValueEnum};
use human_chain::show_time;
use protocol::api::Page;
use protocol::display::counted;
use protocol::governance::{Bundle, Change};
use protocol::job::Submitter;
use protocol::usage::{
    PriceVersion, Prices, USAGE_FORMAT, UsageAmounts, UsageEntry, UsageExportHeader, UsagePage, UsageTotal,
};
use protocol::usage_text::{format_hours, format_units};
use protocol::{Digest, OwnerName, ProjectName, Refusal, ServiceName, error_code};
use scheduler::{Rebill, RebillFault};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::PathBuf;
use std::sync::mpsc::{SyncSender, sync_channel};

/// Longest line of an export in bytes: an entry has some six hundred.
const LINE_BYTES_MAX: usize = 64 * 1024;
/// Entries that are handed from the reader of an export to its verification at once, and portions that wait.
const PORTION: usize = 1024;
const PORTIONS_AHEAD: usize = 4;

/// Columns of `quorate usage show`.
const USAGE_COLUMNS: [&str; 11] = [
    "of",
    "GPU hours",
    "core hours",
    "GiB hours",
    "stored GiB hours",
    "CPU used",
    "tokens in",
    "tokens out",
    "spend",
    "of it open",
    "entries",
];

#[derive(Debug, Subcommand)]
pub(crate) enum UsageCommand {
    /// Show what was used and spent, with what runs now
    Show(UsageShowArguments),
    /// Bill every entry again, and compare entries, sums and chain with what is claimed
    Verify(UsageVerifyArguments),
    /// Export every entry as lines of JSON, with the prices, for `quorate usage verify` and other programs
    Export(UsageExportArguments),
}

/// Grouping of totals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum UsageGrouping {
    /// The whole circle
    Circle,
    /// Each service and job
    Name,
    /// Each project of jobs
    Project,
    /// Each member, token and submit key
    Submitter,
    /// Each owner of nodes
    Owner,
    /// Each day, UTC
    Day,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  quorate usage show
  quorate usage show --by submitter --job train
  quorate usage show --by owner --project vision
  quorate usage show --by day --member alice -o json")]
pub(crate) struct UsageShowArguments {
    /// Subject of each row
    #[arg(long, value_enum, default_value = "name")]
    by: UsageGrouping,
    /// Only this job
    #[arg(long, value_name = "NAME", conflicts_with = "service")]
    job: Option<ServiceName>,
    /// Only this service
    #[arg(long, value_name = "NAME")]
    service: Option<ServiceName>,
    /// Only what this member, token or submit key submitted
    #[arg(long, value_name = "NAME")]
    member: Option<String>,
    /// Only jobs of this project
    #[arg(long, value_name = "NAME")]
    project: Option<ProjectName>,
    /// Only nodes of this owner
    #[arg(long, value_name = "NAME")]
    owner: Option<OwnerName>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  quorate usage verify                   what the cluster has, by the prices of the verified history
  quorate usage verify usage.jsonl       an export, offline, by the prices that it names")]
pub(crate) struct UsageVerifyArguments {
    /// Export to verify [default: the cluster's entries]
    file: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  quorate usage export --out usage.jsonl
  quorate usage export | gzip > usage.jsonl.gz")]
pub(crate) struct UsageExportArguments {
    /// File to write [default: standard output]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  quorate circle propose-prices --gpu-hour 2.5 --cpu-hour 0.04 --memory-gib-hour 0.005
  quorate circle propose-prices --storage-gib-hour 0.0001 --million-generated-tokens 1.5

A price that is left out stays as it is. Usage before the vote keeps its prices.")]
pub(crate) struct ProposePricesArguments {
    /// Price of a GPU for an hour, in units of the circle
    #[arg(long, value_name = "UNITS", value_parser = parse_units)]
    gpu_hour: Option<u64>,
    /// Price of a core for an hour
    #[arg(long, value_name = "UNITS", value_parser = parse_units)]
    cpu_hour: Option<u64>,
    /// Price of a GiB of memory for an hour
    #[arg(long, value_name = "UNITS", value_parser = parse_units)]
    memory_gib_hour: Option<u64>,
    /// Price of a GiB of stored data of jobs for an hour
    #[arg(long, value_name = "UNITS", value_parser = parse_units)]
    storage_gib_hour: Option<u64>,
    /// Price of a million tokens of prompts
    #[arg(long, value_name = "UNITS", value_parser = parse_units)]
    million_prompt_tokens: Option<u64>,
    /// Price of a million generated tokens
    #[arg(long, value_name = "UNITS", value_parser = parse_units)]
    million_generated_tokens: Option<u64>,
    /// Reason shown to the voters
    #[arg(long, default_value = "")]
    reason: String,
    #[command(flatten)]
    proposer: ProposerArguments,
}

/// Reads a decimal number of units as millionths; more digits than a millionth has are refused.
fn parse_units(text: &str) -> Result<u64, String> {
    let refuse = || format!("`{text}` is no number of units such as 2.5, with at most six decimals");
    let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || !digits(part) || part.len() > 6 {
        return Err(refuse());
    }
    let millionths: u64 = format!("{part:0<6}").parse().map_err(|_| refuse())?;
    let whole: u64 = whole.parse().map_err(|_| refuse())?;
    whole.checked_mul(1_000_000).and_then(|units| units.checked_add(millionths)).ok_or_else(refuse)
}

pub(crate) async fn run(command: UsageCommand, environment: &Environment) -> Result<()> {
    match command {
        UsageCommand::Show(arguments) => show(&arguments, environment).await,
        UsageCommand::Verify(UsageVerifyArguments { file: Some(file) }) => {
            let file = File::open(&file).with_context(|| format!("open `{}`", file.display()))?;
            let outcome = verify_lines(BufReader::new(file))?;
            environment.output().print(&outcome, verified_text);
            Ok(())
        }
        UsageCommand::Verify(UsageVerifyArguments { file: None }) => verify_cluster(environment).await,
        UsageCommand::Export(arguments) => export(&arguments, environment).await,
    }
}

pub(crate) async fn propose(arguments: ProposePricesArguments, environment: &Environment) -> Result<()> {
    let session = Session::open(&environment.context()?).await?;
    let present = session.circle.prices().prices;
    let prices = asked_prices(&arguments, &present);
    let reason = reason_or(arguments.reason, || "other prices".into());
    arguments.proposer.propose(environment, &session, Change::SetPrices(prices), reason).await?;
    Ok(())
}

/// Returns the present prices with those that were asked for.
fn asked_prices(arguments: &ProposePricesArguments, present: &Prices) -> Prices {
    let or = |asked: Option<u64>, present: u64| asked.unwrap_or(present);
    Prices {
        gpu_hour_micro_units: or(arguments.gpu_hour, present.gpu_hour_micro_units),
        cpu_hour_micro_units: or(arguments.cpu_hour, present.cpu_hour_micro_units),
        memory_gib_hour_micro_units: or(arguments.memory_gib_hour, present.memory_gib_hour_micro_units),
        storage_gib_hour_micro_units: or(arguments.storage_gib_hour, present.storage_gib_hour_micro_units),
        million_prompt_tokens_micro_units: or(
            arguments.million_prompt_tokens,
            present.million_prompt_tokens_micro_units,
        ),
        million_generated_tokens_micro_units: or(
            arguments.million_generated_tokens,
            present.million_generated_tokens_micro_units,
        ),
    }
}

/// Row of `quorate usage show`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct UsageRow {
    /// Circle, service or job, project, submitter, owner, or day.
    subject: String,
    entries: u64,
    /// Entries less credits, and what is open.
    amounts: UsageAmounts,
    /// Of these, the amounts of intervals that are open.
    open: UsageAmounts,
}

/// Returns whether a row is of this submitter, by its name or by its kind and name.
fn is_by(total: &UsageTotal, member: &str) -> bool {
    let text = total.submitter_text();
    let name = match &total.submitter {
        None => return false,
        Some(Submitter::Token(name) | Submitter::Signer(name)) => name.to_string(),
        Some(Submitter::Member(id)) => id.to_string(),
    };
    text == member || name == member
}

/// Returns a name, or `-` if there is none.
fn text_or_none(name: Option<&impl ToString>) -> String {
    name.map_or_else(|| "-".to_string(), ToString::to_string)
}

/// Groups totals into rows.
fn rows(totals: &[UsageTotal], arguments: &UsageShowArguments) -> Vec<UsageRow> {
    let name = arguments.job.as_ref().or(arguments.service.as_ref());
    let mut rows: BTreeMap<String, UsageRow> = BTreeMap::new();
    for total in totals {
        let asked = name.is_none_or(|name| *name == total.envelope)
            && arguments.member.as_ref().is_none_or(|member| is_by(total, member))
            && (arguments.project.is_none() || arguments.project == total.project)
            && (arguments.owner.is_none() || arguments.owner == total.owner);
        if !asked {
            continue;
        }
        let subject = match arguments.by {
            UsageGrouping::Circle => "circle".to_string(),
            UsageGrouping::Name => total.envelope.to_string(),
            UsageGrouping::Project => text_or_none(total.project.as_ref()),
            UsageGrouping::Submitter => total.submitter_text(),
            UsageGrouping::Owner => text_or_none(total.owner.as_ref()),
            UsageGrouping::Day => show_time(total.day).chars().take(10).collect(),
        };
        let row = rows.entry(subject.clone()).or_insert_with(|| UsageRow {
            subject,
            entries: 0,
            amounts: UsageAmounts::default(),
            open: UsageAmounts::default(),
        });
        row.entries += total.entries;
        row.amounts.add(&total.amounts);
        row.amounts.add(&total.open);
        row.open.add(&total.open);
    }
    rows.into_values().collect()
}

async fn show(arguments: &UsageShowArguments, environment: &Environment) -> Result<()> {
    let client = environment.context()?.client()?;
    let mut totals = Vec::new();
    let mut next: Option<String> = None;
    loop {
        let page: UsagePage = client.page("/v1/usage", next.as_deref()).await?;
        let advances = !page.items.is_empty();
        totals.extend(page.items);
        match page.next_page_token {
            Some(token) if advances && next.as_ref() != Some(&token) => next = Some(token),
            Some(_) => return Err(client.endless("/v1/usage").into()),
            None => break,
        }
    }
    environment.output().print(&rows(&totals, arguments), |rows| {
        let row = |row: &UsageRow| {
            let UsageRow { subject, entries, amounts, open } = row;
            vec![
                subject.clone(),
                format_hours(amounts.gpu_microseconds),
                format_hours(amounts.cpu_microseconds),
                gib_hours(amounts.memory_mib_seconds),
                gib_hours(amounts.storage_mib_seconds),
                format_hours(amounts.cpu_used_microseconds),
                amounts.prompt_tokens.to_string(),
                amounts.generated_tokens.to_string(),
                format_units(amounts.spend_micro_units),
                format_units(open.spend_micro_units),
                entries.to_string(),
            ]
        };
        table(&USAGE_COLUMNS, rows.iter().map(row).collect())
    });
    Ok(())
}

/// Returns mebibyte-seconds as gibibyte-hours.
fn gib_hours(mib_seconds: u64) -> String {
    format!("{:.3}", mib_seconds as f64 / (1024.0 * 3600.0))
}

/// Returns the header of an export: what the cluster claims now.
async fn header(client: &ControlClient) -> Result<UsageExportHeader> {
    let page: UsagePage = client.get("/v1/usage?page_size=1").await?;
    let missing = || Refusal::new(error_code::CIRCLE_NOT_FOUNDED, "the circle is not founded yet");
    let UsagePage { circle, recorded, head, charged, credited, prices, .. } = page;
    let circle = circle.ok_or_else(missing)?;
    Ok(UsageExportHeader { format: USAGE_FORMAT.into(), circle, recorded, head, charged, credited, prices })
}

/// Hands on the entries up to a number, page by page.
async fn each_entry(
    client: &ControlClient,
    recorded: u64,
    mut take: impl FnMut(UsageEntry) -> Result<()>,
) -> Result<()> {
    let path = "/v1/usage/entries";
    let mut next: Option<String> = None;
    loop {
        let page: Page<UsageEntry> = client.page(path, next.as_deref()).await?;
        let advances = !page.items.is_empty();
        for entry in page.items {
            if entry.sequence > recorded {
                return Ok(());
            }
            take(entry)?;
        }
        match page.next_page_token {
            Some(token) if advances && next.as_ref() != Some(&token) => next = Some(token),
            Some(_) => return Err(client.endless(path).into()),
            None => return Ok(()),
        }
    }
}

async fn export(arguments: &UsageExportArguments, environment: &Environment) -> Result<()> {
    let client = environment.context()?.client()?;
    let header = header(&client).await?;
    let Some(out) = &arguments.out else {
        print::out(serde_json::to_string(&header)?);
        return each_entry(&client, header.recorded, |entry| {
            print::out(serde_json::to_string(&entry)?);
            Ok(())
        })
        .await;
    };
    let file = File::create_new(out).with_context(|| format!("create `{}`", out.display()))?;
    let mut file = BufWriter::new(file);
    let mut written = 0_u64;
    writeln!(file, "{}", serde_json::to_string(&header)?)?;
    let line = |entry: UsageEntry| {
        written += 1;
        Ok(writeln!(file, "{}", serde_json::to_string(&entry)?)?)
    };
    each_entry(&client, header.recorded, line).await?;
    file.into_inner().map_err(std::io::IntoInnerError::into_error)?.sync_all()?;
    print::err(format!("{} in `{}`", counted(written, "line"), out.display()));
    Ok(())
}

/// Outcome of a verification.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct VerifiedUsage {
    entries: u64,
    /// Number of lines that came twice, and count once.
    duplicates: u64,
    /// Entries that charge, less credits.
    amounts: UsageAmounts,
    head: Digest,
    /// True if the prices are those of the verified history.
    prices_verified: bool,
}

fn verified_text(verified: &VerifiedUsage) -> String {
    let prices = match verified.prices_verified {
        true => "prices of the verified history",
        false => "prices as the export names them",
    };
    format!(
        "ok: {} bill again as they say, by {prices}: {} units in all",
        counted(verified.entries, "line"),
        format_units(verified.amounts.spend_micro_units)
    )
}

/// Run over the entries of an export.
struct Verification<'a> {
    header: &'a UsageExportHeader,
    run: Rebill<'a>,
    next: u64,
    head: Digest,
}

fn refuse(fault: &RebillFault) -> Refusal {
    let code = match fault {
        RebillFault::Missing { .. } => error_code::USAGE_INCOMPLETE,
        _ => error_code::USAGE_INVALID,
    };
    Refusal::new(code, fault.to_string())
}

impl<'a> Verification<'a> {
    fn new(header: &'a UsageExportHeader) -> Result<Self, Refusal> {
        let sorted = header.prices.is_sorted_by(|a, b| a.version < b.version);
        if header.format != USAGE_FORMAT || !sorted {
            let message =
                format!("the format is `{}`; accepted: `{USAGE_FORMAT}`", header.format.escape_debug());
            return Err(Refusal::new(error_code::USAGE_INVALID, message));
        }
        let run = Rebill::new(header.recorded, &header.prices).map_err(|fault| refuse(&fault))?;
        Ok(Self { header, run, next: 1, head: Digest([0; 32]) })
    }

    fn add(&mut self, entry: &UsageEntry) -> Result<(), Refusal> {
        self.run.add(entry).map_err(|fault| refuse(&fault))?;
        if entry.sequence == self.next {
            self.head = entry.head_after(&self.head);
            self.next += 1;
        }
        Ok(())
    }

    fn finish(self, prices_verified: bool) -> Result<VerifiedUsage, Refusal> {
        let sum = self.run.finish().map_err(|fault| refuse(&fault))?;
        let differs = |what: &str| Refusal::new(error_code::USAGE_INVALID, format!("{what} differs"));
        if (sum.charged, sum.credited) != (self.header.charged, self.header.credited) {
            return Err(differs("the sum of the entries"));
        }
        if self.head != self.header.head {
            return Err(differs("the head of the chain over the entries in their order"));
        }
        let mut amounts = sum.charged;
        amounts.take(&sum.credited);
        let (entries, duplicates, head) = (sum.entries, sum.duplicates, self.head);
        Ok(VerifiedUsage { entries, duplicates, amounts, head, prices_verified })
    }
}

/// Lines of an export, with their numbers.
struct ExportLines<R> {
    lines: R,
    number: u64,
    line: Vec<u8>,
}

impl<R: BufRead> ExportLines<R> {
    /// Reads the next line; none at the end.
    fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>> {
        self.line.clear();
        self.number += 1;
        let limit = LINE_BYTES_MAX as u64 + 1;
        if std::io::Read::take(&mut self.lines, limit).read_until(b'\n', &mut self.line)? == 0 {
            return Ok(None);
        }
        let invalid = |reason: String| {
            Refusal::new(error_code::USAGE_INVALID, format!("line {}: {reason}", self.number))
        };
        if self.line.len() > LINE_BYTES_MAX {
            return Err(invalid(format!("more than {LINE_BYTES_MAX} bytes")).into());
        }
        let read = serde_json::from_slice(&self.line);
        Ok(Some(read.map_err(|error| invalid(error.to_string()))?))
    }

    /// Hands on the entries in portions, until the end, an error, or the end of their receiver.
    fn hand_on(mut self, portions: &SyncSender<Result<Vec<UsageEntry>>>) {
        loop {
            let mut portion = Vec::with_capacity(PORTION);
            let mut end = Ok(false);
            while portion.len() < PORTION {
                match self.next() {
                    Ok(Some(entry)) => portion.push(entry),
                    Ok(None) => end = Ok(true),
                    Err(error) => end = Err(error),
                }
                if !matches!(end, Ok(false)) {
                    break;
                }
            }
            let is_gone = portions.send(Ok(portion)).is_err();
            match end {
                Ok(false) if !is_gone => {}
                Err(error) => return drop(portions.send(Err(error))),
                Ok(_) => return,
            }
        }
    }
}

/// Verifies an export. One thread reads lines while this one bills them: each has half of the work.
fn verify_lines(lines: impl BufRead + Send) -> Result<VerifiedUsage> {
    let mut lines = ExportLines { lines, number: 0, line: Vec::new() };
    let missing = || Refusal::new(error_code::USAGE_INVALID, "line 1: the export is empty");
    let header: UsageExportHeader = lines.next()?.ok_or_else(missing)?;
    let mut verification = Verification::new(&header)?;
    std::thread::scope(|scope| {
        let (sender, portions) = sync_channel(PORTIONS_AHEAD);
        scope.spawn(move || lines.hand_on(&sender));
        for portion in portions {
            for entry in portion? {
                verification.add(&entry)?;
            }
        }
        anyhow::Ok(())
    })?;
    Ok(verification.finish(false)?)
}

/// Returns the prices of each vote of a verified history.
fn voted_prices<'a>(bundles: impl Iterator<Item = &'a Bundle>) -> Vec<PriceVersion> {
    let voted = bundles.filter_map(|bundle| match &bundle.certificate.proposal.change {
        Change::SetPrices(prices) => Some(*prices),
        _ => None,
    });
    let all = std::iter::once(Prices::default()).chain(voted);
    (0..).zip(all).map(|(version, prices)| PriceVersion { version, prices }).collect()
}

async fn verify_cluster(environment: &Environment) -> Result<()> {
    let session = Session::open(&environment.context()?).await?;
    let header = header(&session.client).await?;
    let history = session.whole_history().await?;
    let voted = voted_prices(history.bundles.iter());
    if header.circle != session.circle.id() || !voted.starts_with(&header.prices) {
        let message = "the cluster bills by prices that the circle did not vote";
        return Err(Refusal::new(error_code::USAGE_INVALID, message).into());
    }
    let mut verification = Verification::new(&header)?;
    each_entry(&session.client, header.recorded, |entry| Ok(verification.add(&entry)?)).await?;
    let verified = verification.finish(true)?;
    environment.output().print(&verified, verified_text);
    Ok(())
}

#[allow(clippy::unwrap_used, reason = "a test may panic")]
#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::usage_entry;
    use protocol::{CircleId, Millis};

    /// Returns an export of this many entries, as lines.
    fn exported(count: u64) -> Vec<String> {
        let entries: Vec<UsageEntry> = (1..=count).map(usage_entry).collect();
        let head = entries.iter().fold(Digest([0; 32]), |head, entry| entry.head_after(&head));
        let mut charged = UsageAmounts::default();
        entries.iter().for_each(|entry| charged.add(&entry.amounts));
        let header = UsageExportHeader {
            format: USAGE_FORMAT.into(),
            circle: CircleId(Digest([1; 32])),
            recorded: count,
            head,
            charged,
            credited: UsageAmounts::default(),
            prices: vec![PriceVersion { version: 0, prices: Prices::default() }],
        };
        let line = |entry: &UsageEntry| serde_json::to_string(entry).unwrap();
        let header = serde_json::to_string(&header).unwrap();
        std::iter::once(header).chain(entries.iter().map(line)).collect()
    }

    fn verdict(lines: &[String]) -> Result<VerifiedUsage, String> {
        verify_lines(lines.join("\n").as_bytes()).map_err(|error| match error.downcast_ref::<Refusal>() {
            Some(refusal) => format!("{}: {}", refusal.code, refusal.message),
            None => error.to_string(),
        })
    }

    #[test]
    fn a_sound_export_verifies_and_a_line_that_comes_twice_counts_once() {
        let lines = exported(3);
        let verified = verdict(&lines).unwrap();
        assert_eq!((verified.entries, verified.duplicates), (3, 0));
        assert_eq!(verified.amounts.cpu_microseconds, 3 * 60_000_000);
        let twice: Vec<String> = lines.iter().chain(&lines[1..]).cloned().collect();
        let again = verdict(&twice).unwrap();
        assert_eq!((again.entries, again.duplicates, again.amounts), (3, 3, verified.amounts));
        assert!(
            verified_text(&verified).starts_with("ok: 3 lines bill again"),
            "{}",
            verified_text(&verified)
        );
    }

    /// Attack: an export is altered, cut or mixed. The sound one is the control above.
    #[test]
    fn attack_an_altered_export_is_refused_with_a_code() {
        let lines = exported(3);
        let altered = |at: usize, from: &str, to: &str| {
            let mut lines = lines.clone();
            assert!(lines[at].contains(from), "{}", lines[at]);
            lines[at] = lines[at].replacen(from, to, 1);
            verdict(&lines).unwrap_err()
        };
        let spend = "\"spend_micro_units\":0";
        assert!(altered(2, spend, "\"spend_micro_units\":1").starts_with("usage-invalid: entry 2 claims"));
        assert!(altered(2, "\"cpu_millicores\":1000", "\"cpu_millicores\":1").starts_with("usage-invalid"));
        let renamed = altered(2, "\"envelope\":\"mine\"", "\"envelope\":\"yours\"");
        assert!(renamed.contains("the head of the chain"), "{renamed}");
        assert!(altered(0, "quorate-usage/1", "quorate-usage/9").contains("accepted: `quorate-usage/1`"));
        assert!(altered(0, "\"recorded\":3", "\"recorded\":4").starts_with("usage-incomplete: 1 entries"));
        assert!(altered(0, spend, "\"spend_micro_units\":1").contains("the sum of the entries"));
        assert!(altered(1, "{", "[").starts_with("usage-invalid: line 2"));
        let cut: Vec<String> = lines[..3].to_vec();
        assert!(verdict(&cut).unwrap_err().starts_with("usage-incomplete: 1 entries are missing"));
        let mixed = [&lines[..1], &lines[2..4], &lines[1..2]].concat();
        assert!(verdict(&mixed).unwrap_err().contains("the head of the chain"));
        assert!(verdict(&[]).unwrap_err().starts_with("usage-invalid: line 1"));
        let long = [lines[0].clone(), "x".repeat(LINE_BYTES_MAX + 1)];
        assert!(verdict(&long).unwrap_err().contains("more than 65536 bytes"));
    }

    /// Two threads share the work: the first fault in the order of the lines is the one that is named,
    /// however far the reader is ahead.
    #[test]
    fn the_first_fault_of_an_export_of_many_portions_is_named() {
        let count = 3 * PORTION as u64 + 7;
        let lines = exported(count);
        assert_eq!(verdict(&lines).unwrap().entries, count);
        let mut faulty = lines.clone();
        let (wrong, broken) = (2 * PORTION, 2 * PORTION + 3);
        faulty[wrong] = faulty[wrong].replacen("\"price_version\":0", "\"price_version\":9", 1);
        faulty[broken].truncate(20);
        let first = verdict(&faulty).unwrap_err();
        assert!(first.contains(&format!("entry {wrong} names prices 9")), "{first}");
        faulty[wrong].clone_from(&lines[wrong]);
        let second = verdict(&faulty).unwrap_err();
        assert!(second.starts_with(&format!("usage-invalid: line {}:", broken + 1)), "{second}");
    }

    #[test]
    fn prices_that_are_left_out_stay() {
        let present = Prices {
            gpu_hour_micro_units: 1,
            cpu_hour_micro_units: 2,
            memory_gib_hour_micro_units: 3,
            storage_gib_hour_micro_units: 4,
            million_prompt_tokens_micro_units: 5,
            million_generated_tokens_micro_units: 6,
        };
        #[derive(clap::Parser)]
        struct Words {
            #[command(flatten)]
            prices: ProposePricesArguments,
        }
        let asked = |words: &[&str]| {
            let words = ["quorate"].iter().chain(words);
            let Words { prices } = <Words as clap::Parser>::try_parse_from(words).unwrap();
            asked_prices(&prices, &present)
        };
        assert_eq!(asked(&[]), present);
        let all = [
            "--gpu-hour=2.5",
            "--cpu-hour=0.04",
            "--memory-gib-hour=0.005",
            "--storage-gib-hour=0.0001",
            "--million-prompt-tokens=0.5",
            "--million-generated-tokens=1.5",
        ];
        let prices = asked(&all).named().map(|(_, price)| price);
        assert_eq!(prices, [2_500_000, 40_000, 5_000, 100, 500_000, 1_500_000]);
        let one = asked(&all[3..4]);
        assert_eq!(one, Prices { storage_gib_hour_micro_units: 100, ..present });
    }

    #[test]
    fn amounts_are_shown_in_hours() {
        assert_eq!(gib_hours(1024 * 3600), "1.000");
        assert_eq!(gib_hours(1024 * 3600 / 4), "0.250");
        assert_eq!(text_or_none(None::<&ProjectName>), "-");
    }

    /// A client may fetch the rest of an incomplete export; an invalid one is beyond repair.
    #[test]
    fn a_gap_and_a_contradiction_have_different_codes() {
        let lines = exported(3);
        let code = |lines: &[String]| {
            let error = verify_lines(lines.join("\n").as_bytes()).expect_err("no sound export");
            error.downcast_ref::<Refusal>().map(|refusal| refusal.code)
        };
        let gap = [&lines[..2], &lines[3..]].concat();
        assert_eq!(code(&gap), Some(error_code::USAGE_INCOMPLETE), "entry 2 is missing");
        let beyond: Vec<String> = [&lines[..], &exported(4)[4..]].concat();
        assert_eq!(code(&beyond), Some(error_code::USAGE_INVALID), "entry 4 is beyond those claimed");
        let mut twice: UsageExportHeader = serde_json::from_str(&lines[0]).unwrap();
        twice.prices.push(twice.prices[0]);
        let twice = serde_json::to_string(&twice).unwrap();
        assert_eq!(code(&[twice]), Some(error_code::USAGE_INVALID), "a version has two prices");
    }

    #[test]
    fn units_are_read_to_the_millionth() {
        for (text, expected) in
            [("2.5", Some(2_500_000)), ("0.000001", Some(1)), ("7", Some(7_000_000)), ("0.04", Some(40_000))]
        {
            assert_eq!(parse_units(text).ok(), expected, "{text}");
        }
        for text in ["", ".5", "1.", "-1", "1e3", "0.0000001", "99999999999999999999", "1,5"] {
            assert!(parse_units(text).is_err(), "{text}");
        }
    }

    #[test]
    fn totals_are_grouped_and_filtered() {
        let total = |day: u64, name: &str, submitter: Option<Submitter>, spend| UsageTotal {
            day: Millis(day * 86_400_000),
            envelope: name.parse().unwrap(),
            project: (name == "train").then(|| "vision".parse().unwrap()),
            owner: (day == 1).then(|| "acme".parse().unwrap()),
            submitter,
            entries: 1,
            amounts: UsageAmounts { spend_micro_units: spend, ..UsageAmounts::default() },
            open: UsageAmounts { spend_micro_units: 1, ..UsageAmounts::default() },
        };
        let alice = || Some(Submitter::Member("alice".parse().unwrap()));
        let totals = [
            total(1, "chat", None, 10),
            total(1, "train", alice(), 20),
            total(2, "train", Some(Submitter::Token("bob".parse().unwrap())), 40),
        ];
        let grouped = |by, job: Option<&str>, member: Option<&str>| {
            let job = job.map(|job| job.parse().unwrap());
            let member = member.map(Into::into);
            let arguments = UsageShowArguments { by, job, service: None, member, project: None, owner: None };
            let row =
                |row: UsageRow| (row.subject, row.amounts.spend_micro_units, row.open.spend_micro_units);
            rows(&totals, &arguments).into_iter().map(row).collect::<Vec<_>>()
        };
        let row = |subject: &str, spend, open| (subject.to_string(), spend, open);
        assert_eq!(grouped(UsageGrouping::Circle, None, None), [row("circle", 73, 3)]);
        assert_eq!(grouped(UsageGrouping::Name, None, None), [row("chat", 11, 1), row("train", 62, 2)]);
        assert_eq!(
            grouped(UsageGrouping::Submitter, Some("train"), None),
            [row("member/alice", 21, 1), row("token/bob", 41, 1)]
        );
        assert_eq!(grouped(UsageGrouping::Day, None, Some("alice")), [row("1970-01-02", 21, 1)]);
        assert_eq!(grouped(UsageGrouping::Name, None, Some("token/bob")), [row("train", 41, 1)]);
        assert_eq!(grouped(UsageGrouping::Project, None, None), [row("-", 11, 1), row("vision", 62, 2)]);
        assert_eq!(grouped(UsageGrouping::Owner, None, None), [row("-", 41, 1), row("acme", 32, 2)]);
        let of = |project: Option<&str>, owner: Option<&str>| {
            let (project, owner) =
                (project.map(|name| name.parse().unwrap()), owner.map(|name| name.parse().unwrap()));
            let by = UsageGrouping::Circle;
            let arguments = UsageShowArguments { by, job: None, service: None, member: None, project, owner };
            rows(&totals, &arguments).iter().map(|row| row.amounts.spend_micro_units).sum::<u64>()
        };
        assert_eq!(
            (of(Some("vision"), None), of(None, Some("acme")), of(Some("vision"), Some("acme"))),
            (62, 32, 21)
        );
    }
}
