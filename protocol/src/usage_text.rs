//! Amounts of usage and of quotas as text for people.

use crate::manifest::format_bytes;
use crate::project::ProjectQuota;
use crate::usage::UsageRate;

/// Bytes of a mebibyte, the unit in which memory is metered.
const MIB: u64 = 1024 * 1024;

/// Formats millionths of the circle's unit as a decimal number of units: `0.040000`.
#[must_use]
pub fn format_units(millionths: u64) -> String {
    format!("{}.{:06}", millionths / 1_000_000, millionths % 1_000_000)
}

/// Formats millionths of a second as hours, rounded down to thousandths: `1.500`.
#[must_use]
pub fn format_hours(microseconds: u64) -> String {
    let thousandths = microseconds / 3_600_000;
    debug_assert!(thousandths <= microseconds, "an hour has more than a thousand microseconds");
    format!("{}.{:03}", thousandths / 1000, thousandths % 1000)
}

/// Formats a quota: `4 GPU 16 cores 128 GiB`.
#[must_use]
pub fn format_quota(quota: &ProjectQuota) -> String {
    let ProjectQuota { cpu_millicores, memory_bytes, gpus } = quota;
    amounts(*cpu_millicores, *memory_bytes, u64::from(*gpus) * 1000)
}

/// Formats what slots hold: `0.250 GPU 2 cores`.
#[must_use]
pub fn format_rate(rate: &UsageRate) -> String {
    amounts(rate.cpu_millicores, rate.memory_mib.saturating_mul(MIB), rate.gpu_millis)
}

/// Returns amounts that are not 0 in one text; `0` if all are.
fn amounts(cpu_millicores: u64, memory_bytes: u64, gpu_millis: u64) -> String {
    let decimal = |thousandths: u64| match thousandths % 1000 {
        0 => (thousandths / 1000).to_string(),
        part => format!("{}.{part:03}", thousandths / 1000),
    };
    let parts = [
        (gpu_millis > 0).then(|| format!("{} GPU", decimal(gpu_millis))),
        (cpu_millicores > 0).then(|| format!("{} cores", decimal(cpu_millicores))),
        (memory_bytes > 0).then(|| format_bytes(memory_bytes)),
    ];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    debug_assert!(parts.iter().all(|part| part.contains(' ')), "each amount has its unit");
    if parts.is_empty() { "0".into() } else { parts.join(" ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_have_six_decimals_and_are_never_rounded() {
        for (millionths, expected) in [
            (0, "0.000000"),
            (1, "0.000001"),
            (999_999, "0.999999"),
            (1_000_000, "1.000000"),
            (2_500_001, "2.500001"),
            (u64::MAX, "18446744073709.551615"),
        ] {
            assert_eq!(format_units(millionths), expected);
        }
    }

    #[test]
    fn hours_are_rounded_down_to_thousandths() {
        for (microseconds, expected) in [
            (0, "0.000"),
            (3_599_999, "0.000"),
            (3_600_000, "0.001"),
            (3_600_000_000, "1.000"),
            (5_400_000_000, "1.500"),
            (u64::MAX, "5124095576.030"),
        ] {
            assert_eq!(format_hours(microseconds), expected);
        }
    }

    #[test]
    fn a_quota_leaves_out_what_it_does_not_have() {
        let quota = |cpu_millicores, memory_bytes, gpus| ProjectQuota { cpu_millicores, memory_bytes, gpus };
        for (quota, expected) in [
            (quota(0, 0, 0), "0"),
            (quota(16_000, 128 << 30, 4), "4 GPU 16 cores 128 GiB"),
            (quota(500, 0, 0), "0.500 cores"),
            (quota(0, 1536 << 20, 0), "1.5 GiB"),
            (quota(0, 0, u32::MAX), "4294967295 GPU"),
        ] {
            assert_eq!(format_quota(&quota), expected);
        }
    }

    #[test]
    fn a_rate_shows_shares_of_gpus_and_of_cores() {
        let rate =
            |gpu_millis, cpu_millicores, memory_mib| UsageRate { gpu_millis, cpu_millicores, memory_mib };
        for (rate, expected) in [
            (UsageRate::default(), "0"),
            (rate(250, 1500, 0), "0.250 GPU 1.500 cores"),
            (rate(2000, 0, 512), "2 GPU 512 MiB"),
            (rate(0, 0, u64::MAX), "16777216 TiB"),
        ] {
            assert_eq!(format_rate(&rate), expected);
        }
    }
}
