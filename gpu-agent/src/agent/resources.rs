//! Resources that this machine offers, within the operator's limits.

use crate::device::Device;
use protocol::agent::{Gpu, NodeResources};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// Lifetime of a listing of GPUs. A query of the driver takes milliseconds, and a worker notices first when a
/// card falls off the bus.
const GPUS_FRESH: Duration = Duration::from_secs(5);
/// Lifetime of the numbers of cores and of bytes of memory. They hardly ever change, and reading them opens
/// files of the kernel, several times a second if each report and each reconciliation did it.
const MACHINE_FRESH: Duration = Duration::from_secs(60);

/// Operator's limits on the resources that an agent offers; none = all resources of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ResourceCaps {
    /// Limit in thousandths of a core.
    pub cpu_millicores: Option<u64>,
    /// Limit in bytes.
    pub memory_bytes: Option<u64>,
}

/// Resources that the machine offers.
#[derive(Debug)]
pub(super) struct OfferedResources {
    caps: ResourceCaps,
    gpus: Mutex<Option<(Instant, Vec<Gpu>)>>,
    /// Cores in thousandths and memory in bytes of the machine, when they were read last.
    machine: Mutex<Option<(Instant, (u64, u64))>>,
    /// Cores in thousandths and memory in bytes of a machine that a simulation pretends to run on.
    #[cfg(test)]
    pretended: std::sync::OnceLock<(u64, u64)>,
}

impl OfferedResources {
    pub(super) fn new(caps: ResourceCaps) -> Self {
        Self {
            caps,
            gpus: Mutex::default(),
            machine: Mutex::default(),
            #[cfg(test)]
            pretended: std::sync::OnceLock::new(),
        }
    }

    /// Returns the current resources. May occasionally take milliseconds.
    pub(super) fn now(&self, device: &dyn Device) -> NodeResources {
        let (cpu_millicores, memory_bytes) = self.machine();
        NodeResources {
            cpu_millicores: capped(cpu_millicores, self.caps.cpu_millicores),
            memory_bytes: capped(memory_bytes, self.caps.memory_bytes),
            gpus: self.gpus(device),
        }
    }

    /// Returns the cores of this machine in thousandths, and its memory in bytes.
    fn machine(&self) -> (u64, u64) {
        #[cfg(test)]
        if let Some(pretended) = self.pretended.get() {
            return *pretended;
        }
        kept_for(MACHINE_FRESH, &self.machine, || (cores() * 1000, memory_bytes()))
    }

    /// Pretends that the machine has these cores and this memory.
    #[cfg(test)]
    pub(super) fn pretend(&self, cpu_millicores: u64, memory_bytes: u64) {
        let _ = self.pretended.set((cpu_millicores, memory_bytes));
    }

    /// Returns the current GPUs.
    pub(super) fn gpus(&self, device: &dyn Device) -> Vec<Gpu> {
        kept_for(GPUS_FRESH, &self.gpus, || device.list())
    }
}

/// Returns a value that was read less than `fresh` ago, or reads it again.
fn kept_for<T: Clone>(fresh: Duration, kept: &Mutex<Option<(Instant, T)>>, read: impl FnOnce() -> T) -> T {
    let mut known = kept.lock().unwrap_or_else(PoisonError::into_inner);
    match &*known {
        Some((at, value)) if at.elapsed() < fresh => value.clone(),
        _ => known.insert((Instant::now(), read())).1.clone(),
    }
}

fn capped(there: u64, cap: Option<u64>) -> u64 {
    cap.map_or(there, |cap| there.min(cap))
}

fn cores() -> u64 {
    std::thread::available_parallelism().map_or(1, |cores| cores.get() as u64)
}

fn memory_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    parse_memory_bytes(&text).unwrap_or(0)
}

fn parse_memory_bytes(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Simulated;
    use proptest::prelude::*;

    #[test]
    fn memory_is_read_as_the_kernel_writes_it() {
        for (text, expected) in [
            ("MemTotal:       32768 kB\nMemFree: 1 kB\n", Some(32768 * 1024)),
            ("MemFree: 1 kB\n", None),
            ("MemTotal: many kB\n", None),
            ("", None),
        ] {
            assert_eq!(parse_memory_bytes(text), expected, "{text}");
        }
        assert!(memory_bytes() > 0 && cores() > 0);
    }

    #[test]
    fn a_limit_never_raises_what_is_there() {
        for (there, cap, expected) in [
            (8, None, 8),
            (8, Some(4), 4),
            (8, Some(8), 8),
            (8, Some(9), 8),
            (8, Some(0), 0),
            (0, Some(9), 0),
            (u64::MAX, Some(u64::MAX), u64::MAX),
        ] {
            assert_eq!(capped(there, cap), expected, "{cap:?} of {there}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_listing_of_gpus_is_kept_for_its_lifetime_and_no_longer() {
        let device: Simulated = "2xL4".parse().expect("valid");
        let resources = OfferedResources::new(ResourceCaps::default());
        let indices = || resources.gpus(&device).into_iter().map(|gpu| gpu.index).collect::<Vec<_>>();
        assert_eq!(indices(), [0, 1]);
        device.set_lost(0, true);
        tokio::time::advance(GPUS_FRESH - Duration::from_millis(1)).await;
        assert_eq!(indices(), [0, 1], "the driver is not asked again");
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(indices(), [1]);
        device.set_lost(0, false);
        tokio::time::advance(GPUS_FRESH).await;
        assert_eq!(indices(), [0, 1]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_value_is_read_again_once_it_is_no_longer_fresh() {
        let (kept, reads) = (Mutex::default(), std::cell::Cell::new(0));
        let now = || kept_for(MACHINE_FRESH, &kept, || reads.replace(reads.get() + 1));
        assert_eq!([now(), now()], [0, 0]);
        tokio::time::advance(MACHINE_FRESH - Duration::from_millis(1)).await;
        assert_eq!(now(), 0, "it is fresh");
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!([now(), now()], [1, 1]);
    }

    proptest! {
        #[test]
        fn a_table_of_memory_is_read_or_refused(text in "(MemTotal:)?[ \\tkB0-9\\n]{0,40}") {
            // The result is an amount that the text contains.
            if let Some(bytes) = parse_memory_bytes(&text) {
                let kib = (bytes / 1024).to_string();
                prop_assert!(bytes % 1024 == 0 && text.contains(&kib), "{bytes}");
            }
        }

        #[test]
        fn every_amount_of_memory_is_read(kib in 0..=u64::MAX) {
            let read = parse_memory_bytes(&format!("MemFree: 7 kB\nMemTotal: {kib} kB\n"));
            prop_assert_eq!(read, kib.checked_mul(1024));
        }
    }

    #[test]
    fn an_operator_can_offer_less_but_not_more() {
        let device: Simulated = "2xL4".parse().expect("valid");
        let offer = |cpu, memory| {
            OfferedResources::new(ResourceCaps { cpu_millicores: cpu, memory_bytes: memory }).now(&device)
        };
        let all = offer(None, None);
        assert_eq!(all.gpus.len(), 2);
        assert_eq!(offer(Some(u64::MAX), Some(u64::MAX)), all);
        let some = offer(Some(500), Some(1 << 20));
        assert_eq!((some.cpu_millicores, some.memory_bytes), (500, 1 << 20));
    }
}
