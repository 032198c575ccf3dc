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
    if parts.is_empty() { "0".into() } else { parts.join(" ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_shown_to_the_last_digit_and_those_of_nothing_are_left_out() {
        assert_eq!(format_units(2_500_001), "2.500001");
        assert_eq!(format_hours(5_400_000_000), "1.500");
        let quota = ProjectQuota { cpu_millicores: 16_000, memory_bytes: 128 << 30, gpus: 4 };
        assert_eq!(format_quota(&quota), "4 GPU 16 cores 128 GiB");
        let rate = UsageRate { gpu_millis: 250, cpu_millicores: 1500, memory_mib: 0 };
        assert_eq!(format_rate(&rate), "0.250 GPU 1.500 cores");
        assert_eq!(format_rate(&UsageRate::default()), "0");
    }
}
