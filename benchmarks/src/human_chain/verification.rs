//! Benchmark of the verification of a certificate on one core: bytes to approved change, beside tough, which
//! verifies TUF metadata of the same threshold.
//!
//! Ours are hybrid signatures, Ed25519 and ML-DSA-65, over the proposal and its rendering. The peer verifies
//! Ed25519 alone, over a digest of what it will fetch.

use super::circle::SignedCircle;
use super::tuf::{self, TufPeer};
use crate::Options;
use crate::report::{Bar, BenchmarkReport, ComparisonRow, quantile};
use std::time::Instant;

/// Threshold and number of members of each circle; the second has the bar.
const CIRCLES: [(u32, u32); 3] = [(2, 3), (5, 9), (17, 33)];
/// Rounds of each side; the sides alternate.
const ROUNDS: usize = 7;
/// Longest time in milliseconds in which a certificate of 5 of 9 members is verified, as the 99th percentile.
const BAR_MS: f64 = 1.0;

/// Durations of one round in milliseconds: the median and the 99th percentile.
#[derive(Debug, Clone, Copy)]
struct RoundTimes {
    p50: f64,
    p99: f64,
}

impl RoundTimes {
    fn of(milliseconds: &[f64]) -> Self {
        Self { p50: quantile(milliseconds, 0.5), p99: quantile(milliseconds, 0.99) }
    }
}

/// Runs this part of the benchmark; the sides alternate: ours, theirs, ours, theirs.
pub(super) fn run(options: &Options, report: &mut BenchmarkReport) -> anyhow::Result<()> {
    let checks = if options.quick { 300 } else { 2000 };
    let program = tuf::build()?;
    for (required, members) in CIRCLES {
        let circle = SignedCircle::new(required, members)?;
        let mut peer = TufPeer::start(&program, required, members)?;
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for round in 1..=ROUNDS {
            let one = RoundTimes::of(&verified(&circle, checks)?);
            let other = RoundTimes::of(&peer.verified(checks)?);
            eprintln!(
                "{required} of {members}, round {round}/{ROUNDS}   ours p50 {:.3} p99 {:.3} ms   \
                 tough p50 {:.3} p99 {:.3} ms",
                one.p50, one.p99, other.p50, other.p99
            );
            ours.push(one);
            theirs.push(other);
        }
        add_rows(report, (required, members), &ours, &theirs);
        report.notes.push(format!(
            "{required} of {members}: the certificate has {} bytes, the peer's targets {}",
            circle.certificate.len(),
            peer.bytes
        ));
    }
    report.notes.push("ours are hybrid signatures (Ed25519 and ML-DSA-65), the peer's are Ed25519".into());
    Ok(())
}

/// Reads and verifies the certificate this many times; returns the durations in milliseconds.
fn verified(circle: &SignedCircle, times: usize) -> anyhow::Result<Vec<f64>> {
    let one = |_| {
        let began = Instant::now();
        circle.verify()?;
        Ok(began.elapsed().as_secs_f64() * 1000.0)
    };
    (0..times).map(one).collect()
}

fn add_rows(
    report: &mut BenchmarkReport,
    (required, members): (u32, u32),
    ours: &[RoundTimes],
    theirs: &[RoundTimes],
) {
    let column = |rounds: &[RoundTimes], value: fn(&RoundTimes) -> f64| rounds.iter().map(value).collect();
    let of = format!("{required}_of_{members}");
    for (name, value) in [("p50", (|times| times.p50) as fn(&RoundTimes) -> f64), ("p99", |times| times.p99)]
    {
        let (ours, theirs): (Vec<f64>, Vec<f64>) = (column(ours, value), column(theirs, value));
        let metric = format!("verify_{of}_{name}");
        report.rows.push(ComparisonRow::new(&metric, "ms", "tough 0.24.0", &ours, &theirs, None));
    }
    if (required, members) == CIRCLES[1] {
        let ours: Vec<f64> = column(ours, |times| times.p99);
        let bar = vec![BAR_MS; ours.len()];
        let limit = Some(Bar::AtMost(1.0));
        let metric = format!("verify_{of}_p99");
        report.rows.push(ComparisonRow::new(&metric, "ms", "the bar, 1 ms", &ours, &bar, limit));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_verified_and_an_altered_one_is_not() {
        let mut circle = SignedCircle::new(2, 3).expect("a sound circle");
        circle.verify().expect("the members signed");
        let last = circle.certificate.len() - 1;
        circle.certificate[last] ^= 1;
        assert!(circle.verify().is_err(), "the last byte is of a signature");
    }

    #[test]
    fn the_circle_with_the_bar_has_three_rows_and_the_others_two() {
        let mut report = BenchmarkReport::new("test");
        let rounds = [RoundTimes { p50: 0.5, p99: 0.9 }, RoundTimes { p50: 0.6, p99: 1.3 }];
        for circle in CIRCLES {
            add_rows(&mut report, circle, &rounds, &rounds);
        }
        assert_eq!(report.rows.len(), 7);
        assert_eq!(report.shortfalls(), ["verify_5_of_9_p99: 1.100, bar ratio <= 1.00"]);
    }
}
