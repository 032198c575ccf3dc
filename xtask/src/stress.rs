//! Tests under stress: both cores busy with other work, half the usual CPU quota, a disk with a slow `fsync`.
//! Tests that pass here every time do not depend on luck.
//!
//! Every test that uses time, sockets, processes or disks runs in each round, the pure ones in the first.
//! Needs root, for the quota's control group, and a C compiler, for the library that slows `fsync` down.

mod burner;
mod quota;

pub(crate) use burner::burn;

use crate::process::{command, root, run, target};
use crate::suite::{self, TestPlan};
use burner::Burners;
use quota::Quota;
use std::path::PathBuf;

/// Additional duration of each `fsync`: that of a spinning disk, or of a busy one in a cloud.
const SYNC_DELAY_MS: u32 = 20;

/// Runs the tests `rounds` times under pressure and prints failures by test.
pub(crate) fn tests(rounds: usize, filter: Option<&str>) -> Result<(), String> {
    let library = slow_sync_library()?;
    let quota = Quota::half()?;
    let burners = Burners::start()?;
    println!(
        "stress: {rounds} rounds; {} cores kept busy, CPU quota {:.1} cores, \
         every sync {SYNC_DELAY_MS} ms slower",
        burners.count(),
        quota.cores()
    );
    let wrap = quota.wrapper(vec![
        ("LD_PRELOAD", library.display().to_string()),
        ("QUORATE_SYNC_DELAY_MS", SYNC_DELAY_MS.to_string()),
    ]);
    let report = suite::run(&TestPlan { rounds, wrap: Box::new(wrap) }, filter)?;
    drop(burners);
    println!("{}", report.text());
    if report.failed() == 0 {
        Ok(())
    } else {
        Err(format!("{} test runs failed under stress", report.failed()))
    }
}

/// Compiles the library that slows down `fsync`, `fdatasync` and `sync_file_range`.
fn slow_sync_library() -> Result<PathBuf, String> {
    let place = target().join("stress");
    std::fs::create_dir_all(&place).map_err(|error| format!("create {}: {error}", place.display()))?;
    let library = place.join("slow_sync.so");
    let (source, out) = (root().join("xtask/src/stress/slow_sync.c"), library.display().to_string());
    let source = source.display().to_string();
    run(&mut command("cc", &["-shared", "-fPIC", "-O1", "-Wall", "-o", &out, &source]))?;
    Ok(library)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    #[test]
    fn a_sync_is_slower_by_the_delay() {
        let library = slow_sync_library().expect("a C compiler");
        let file = target().join("stress/synced");
        let out = format!("of={}", file.display());
        let mut write =
            command("dd", &["if=/dev/zero", &out, "bs=1", "count=1", "conv=fsync", "status=none"]);
        let began = Instant::now();
        run(write.env("LD_PRELOAD", &library).env("QUORATE_SYNC_DELAY_MS", "300")).expect("it writes");
        assert!(began.elapsed() >= Duration::from_millis(300));
    }
}
