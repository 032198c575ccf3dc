//! The real sandboxes of the benchmark, and the time of their end.

use crate::cluster::NODE;
use crate::cluster::workers::lives;
use anyhow::{Result, ensure};
use std::time::{Duration, Instant, SystemTime};
use tokio::task::JoinHandle;

/// Real sandboxes.
pub(super) const COUNT: usize = 20;
/// Region of the node.
pub(super) const REGION: &str = "sandboxes";
/// Nodes that are processes of the product, with their regions: one runs the sandboxes, and all three store
/// the model.
pub(super) const NODES: [(&str, &str); 3] = [(NODE, REGION), ("node-2", "storage"), ("node-3", "storage")];
/// Store of each of them.
pub(super) const STORES: [&str; 1] = ["disk-0"];
/// Time for the sandboxes to end.
const END_LIMIT: Duration = Duration::from_secs(120);
/// Pause between two looks at the processes.
const LOOK: Duration = Duration::from_millis(2);

/// Waits until each process has ended; returns the seconds from `began` to the end of each.
pub(super) fn watch(processes: Vec<u32>, began: SystemTime) -> JoinHandle<Result<Vec<f64>>> {
    tokio::task::spawn_blocking(move || {
        let deadline = Instant::now() + END_LIMIT;
        let (mut living, mut times) = (processes, Vec::new());
        while !living.is_empty() {
            ensure!(Instant::now() < deadline, "{} sandboxes still run", living.len());
            living.retain(|pid| {
                let lives = lives(*pid);
                if !lives {
                    times.push(began.elapsed().map_or(0.0, |elapsed| elapsed.as_secs_f64()));
                }
                lives
            });
            std::thread::sleep(LOOK);
        }
        Ok(times)
    })
}
