//! Simulated GPUs: `8xH100` lets a laptop simulate the scheduling of a GPU cluster. They have sizes and
//! names, are marked as simulated in every listing, and compute nothing.

use super::Device;
use protocol::agent::Gpu;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

const GIB: u64 = 1 << 30;
/// Products that can be simulated, with their memory in GiB as advertised.
const PRODUCTS: [(&str, u64); 9] = [
    ("A10", 24),
    ("A100", 80),
    ("B200", 180),
    ("H100", 80),
    ("H200", 141),
    ("L4", 24),
    ("L40S", 48),
    ("RTX4090", 24),
    ("T4", 16),
];
/// Maximum number of GPUs. The largest machines sold have 16; 64 leaves headroom.
const COUNT_MAX: u32 = 64;

/// A set of identical simulated GPUs.
#[derive(Debug, Clone)]
pub struct Simulated {
    count: u32,
    product: &'static str,
    memory_bytes: u64,
    /// Indices of GPUs that have fallen off the bus; shared by clones.
    lost: Arc<Mutex<BTreeSet<u32>>>,
}

impl Simulated {
    /// Makes a GPU fall off the bus, or come back to it.
    pub fn set_lost(&self, index: u32, lost: bool) {
        let mut all = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        if lost {
            all.insert(index)
        } else {
            all.remove(&index)
        };
    }
}

/// Error of a description like `8xH100` that cannot be parsed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("simulated GPUs are written COUNTxPRODUCT, like 8xH100: `{text}` {reason}")]
pub struct SimulatedError {
    text: String,
    reason: String,
}

impl FromStr for Simulated {
    type Err = SimulatedError;

    fn from_str(text: &str) -> Result<Self, SimulatedError> {
        let refuse = |reason: String| SimulatedError { text: text.escape_debug().to_string(), reason };
        let (count, product) = text.split_once('x').ok_or_else(|| refuse("has no `x`".to_string()))?;
        let count = count
            .parse()
            .ok()
            .filter(|count| (1..=COUNT_MAX).contains(count))
            .ok_or_else(|| refuse(format!("must begin with a number from 1 to {COUNT_MAX}")))?;
        let known = PRODUCTS.iter().find(|(name, _)| name.eq_ignore_ascii_case(product));
        let (product, gib) = *known.ok_or_else(|| {
            let names: Vec<_> = PRODUCTS.iter().map(|(name, _)| *name).collect();
            refuse(format!("names none of {}", names.join(", ")))
        })?;
        Ok(Self { count, product, memory_bytes: gib * GIB, lost: Arc::default() })
    }
}

impl Device for Simulated {
    fn list(&self) -> Vec<Gpu> {
        let gpu = |index| Gpu {
            index,
            uuid: format!("simulated-{}-{index}", self.product),
            name: format!("{} (simulated)", self.product),
            memory_bytes: self.memory_bytes,
            simulated: true,
            healthy: true,
        };
        let lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        (0..self.count).filter(|index| !lost.contains(index)).map(gpu).collect()
    }

    fn nodes(&self, _: &[u32]) -> Vec<PathBuf> {
        vec![]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn descriptions_are_understood_or_refused_with_a_reason() {
        for (text, expected) in [
            ("8xH100", "8 of H100 (simulated) with 80 GiB"),
            ("1xl4", "1 of L4 (simulated) with 24 GiB"),
            ("64xT4", "64 of T4 (simulated) with 16 GiB"),
            ("H100", "`H100` has no `x`"),
            ("", "`` has no `x`"),
            ("0xH100", "`0xH100` must begin with a number from 1 to 64"),
            ("65xH100", "`65xH100` must begin with a number from 1 to 64"),
            ("-1xH100", "`-1xH100` must begin with a number from 1 to 64"),
            ("2xRTX4090", "2 of RTX4090 (simulated) with 24 GiB"),
            ("2xQ9", "`2xQ9` names none of A10, A100, B200, H100, H200, L4, L40S, RTX4090, T4"),
        ] {
            let found = match text.parse::<Simulated>() {
                Ok(device) => {
                    let gpus = device.list();
                    let first = &gpus[0];
                    format!("{} of {} with {} GiB", gpus.len(), first.name, first.memory_bytes / GIB)
                }
                Err(error) => error.to_string().split(": ").nth(1).expect("a reason").to_string(),
            };
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn a_lost_gpu_is_lost_for_every_clone_and_can_come_back() {
        let device: Simulated = "3xA100".parse().expect("valid");
        let clone = device.clone();
        let indices = |device: &Simulated| device.list().iter().map(|gpu| gpu.index).collect::<Vec<_>>();
        device.set_lost(1, true);
        device.set_lost(1, true);
        assert_eq!((indices(&device), indices(&clone)), (vec![0, 2], vec![0, 2]));
        clone.set_lost(7, true);
        assert_eq!(indices(&device), [0, 2], "one that was never there");
        clone.set_lost(1, false);
        assert_eq!(indices(&device), [0, 1, 2]);
    }

    proptest! {
        #[test]
        fn any_text_is_a_number_of_a_known_product_or_refused(text in "[0-9]{0,3}x?[A-Za-z0-9+ -]{0,8}") {
            if let Ok(device) = text.parse::<Simulated>() {
                let count = text.split('x').next().expect("the part before it");
                prop_assert_eq!(count.parse(), Ok(device.list().len()));
                let (_, product) = text.split_once('x').expect("it has an x");
                prop_assert!(PRODUCTS.iter().any(|(name, _)| name.eq_ignore_ascii_case(product)));
            }
        }

        #[test]
        fn every_product_can_be_simulated_in_any_number(
            (name, gib) in prop::sample::select(PRODUCTS.to_vec()), count in 1..=COUNT_MAX,
        ) {
            let device: Simulated = format!("{count}x{}", name.to_lowercase()).parse().expect("valid");
            let gpus = device.list();
            prop_assert_eq!(gpus.len(), count as usize);
            prop_assert!(gpus.iter().all(|gpu| gpu.memory_bytes == gib * GIB && gpu.healthy));
            prop_assert!(gpus.is_sorted_by(|a, b| a.index < b.index && a.uuid != b.uuid));
        }
    }

    #[test]
    fn every_listing_says_that_they_are_simulated() {
        let device: Simulated = "3xA100".parse().expect("valid");
        for gpu in device.list() {
            assert!(gpu.simulated && gpu.name.contains("simulated") && gpu.uuid.contains("simulated"));
        }
        assert!(device.nodes(&[0, 1]).is_empty());
    }
}
