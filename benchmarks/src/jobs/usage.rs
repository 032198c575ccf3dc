//! Time in which the shipped binary bills an export of usage again: each line read, each amount and the sums
//! compared, and the chain over all entries.

use crate::cluster::{built, fresh_directory};
use crate::report::{Bar, BenchmarkReport, ComparisonRow};
use anyhow::{Context as _, Result, ensure};
use protocol::job::Submitter;
use protocol::usage::{
    PriceVersion, Prices, StoredUsage, USAGE_FORMAT, UsageAmounts, UsageEntry, UsageExportHeader, UsageRate,
};
use protocol::{CircleId, Digest, Fence, JobId, Millis, ModelRoot, NodeId, PublicKey, SlotIndex};
use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::Path;
use std::process::Command;
use std::time::Instant;

/// Entries of an export, in a whole run and in a quick one.
pub(super) const ENTRIES: (u64, u64) = (10_000_000, 100_000);
/// Longest time in seconds.
const BAR_SECONDS: f64 = 60.0;
/// Bytes that are kept for the header: its sums are known after the entries.
const HEADER_BYTES: usize = 4096;

/// Measures one verification of an export of this many entries.
pub(super) fn measure(entries: u64, report: &mut BenchmarkReport) -> Result<()> {
    let path = fresh_directory("usage")?.join("usage.jsonl");
    write_export(&path, entries)?;
    let bytes = std::fs::metadata(&path)?.len();
    let began = Instant::now();
    let verified = Command::new(built("quorate")?).args(["usage", "verify"]).arg(&path).output()?;
    let seconds = began.elapsed().as_secs_f64();
    let text = String::from_utf8_lossy(&verified.stdout);
    ensure!(verified.status.success(), "the export does not verify: {verified:?}");
    ensure!(text.contains("bill again as they say"), "an unknown answer: {text}");
    std::fs::remove_file(&path)?;
    let (peer, bar) = (format!("the bar, {BAR_SECONDS} s"), Some(Bar::AtMost(1.0)));
    let metric = format!("usage_{entries}_rebilled");
    report.rows.push(ComparisonRow::new(&metric, "s", &peer, &[seconds], &[BAR_SECONDS], bar));
    report.notes.push(format!("usage: an export of {} MB, {}", bytes / 1_000_000, text.trim()));
    Ok(())
}

fn prices() -> PriceVersion {
    let prices = Prices {
        gpu_hour_micro_units: 2_500_000,
        cpu_hour_micro_units: 40_000,
        memory_gib_hour_micro_units: 5_000,
        storage_gib_hour_micro_units: 100,
        million_prompt_tokens_micro_units: 500_000,
        million_generated_tokens_micro_units: 1_500_000,
    };
    PriceVersion { version: 1, prices }
}

/// Returns a sound entry: each seventh is of stored data, the others of slots of jobs and services.
fn entry(sequence: u64, price: &PriceVersion) -> UsageEntry {
    let stored = sequence.is_multiple_of(7).then_some(StoredUsage {
        root: ModelRoot(Digest([(sequence % 251) as u8; 32])),
        mib: sequence % 10_000,
    });
    let rate =
        UsageRate { gpu_millis: sequence % 8 * 1000, cpu_millicores: 500 + sequence % 4000, memory_mib: 512 };
    let is_job = sequence.is_multiple_of(2);
    let from = 1_795_000_000_000 + sequence * 13;
    let tokens = if is_job { 0 } else { sequence % 100_000 };
    let unbilled = UsageEntry {
        sequence,
        envelope: if is_job { "train" } else { "chat" }.parse().expect("a name"),
        slot: SlotIndex((sequence % 64) as u32),
        fence: Fence { version: 1, count: sequence },
        certificate: Digest([3; 32]),
        node: NodeId(PublicKey([(sequence % 200) as u8; 32])),
        owner: Some("acme".parse().expect("a name")),
        project: is_job.then(|| "vision".parse().expect("a name")),
        submitter: is_job.then(|| Submitter::Token("ci".parse().expect("a name"))),
        job: is_job.then_some(JobId(Digest([5; 32]))),
        attempt: u32::from(is_job),
        from: Millis(from),
        until: Millis(from + 1 + sequence % 3_600_000),
        rate: if stored.is_some() { UsageRate::default() } else { rate },
        stored,
        price_version: price.version,
        amounts: UsageAmounts {
            cpu_used_microseconds: sequence % 1_000_000,
            prompt_tokens: tokens,
            generated_tokens: tokens / 3,
            ..UsageAmounts::default()
        },
        credit_of: None,
    };
    let amounts = unbilled.billed(&price.prices);
    UsageEntry { amounts, ..unbilled }
}

fn write_export(path: &Path, entries: u64) -> Result<()> {
    let file = File::create_new(path).with_context(|| format!("create {}", path.display()))?;
    let mut file = BufWriter::with_capacity(1 << 20, file);
    file.write_all(&[b' '; HEADER_BYTES])?;
    let (price, mut head, mut charged) = (prices(), Digest([0; 32]), UsageAmounts::default());
    for sequence in 1..=entries {
        let entry = entry(sequence, &price);
        head = entry.head_after(&head);
        charged.add(&entry.amounts);
        serde_json::to_writer(&mut file, &entry)?;
        file.write_all(b"\n")?;
    }
    let header = UsageExportHeader {
        format: USAGE_FORMAT.into(),
        circle: CircleId(Digest([1; 32])),
        recorded: entries,
        head,
        charged,
        credited: UsageAmounts::default(),
        prices: vec![PriceVersion { version: 0, prices: Prices::default() }, price],
    };
    let mut line = serde_json::to_vec(&header)?;
    ensure!(line.len() < HEADER_BYTES, "the header has {} bytes", line.len());
    line.resize(HEADER_BYTES - 1, b' ');
    line.push(b'\n');
    file.seek(SeekFrom::Start(0))?;
    file.write_all(&line)?;
    file.flush()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_of_an_export_are_sound_and_of_every_kind() {
        let price = prices();
        let all: Vec<UsageEntry> = (1..=28).map(|sequence| entry(sequence, &price)).collect();
        assert!(all.iter().all(|entry| entry.billed(&price.prices) == entry.amounts));
        assert!(
            all.iter().any(|entry| entry.stored.is_some()) && all.iter().any(|entry| entry.job.is_some())
        );
        assert!(all.iter().any(|entry| entry.amounts.generated_tokens > 0));
        assert!(
            all.iter().all(|entry| entry.amounts.spend_micro_units < 1 << 40),
            "no amount is at its bound"
        );
    }
}
