//! Tests under stress: both cores busy with other work, half the usual CPU quota, a disk with a slow `fsync`.
//! Tests that pass here every time do not depend on luck.
//!
//! Every test that uses time, sockets, threads, processes or disks runs in each round, the others in the
//! first alone: a library observes the calls of each test's first run. Needs root, for the quota's control
//! group, and a C compiler, for the libraries that observe and that slow `fsync` down.

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
/// Number of tests at the same time, per core. Slow syncs make most of them wait: at two to a core, a third
/// of the quota was never used.
const TESTS_PER_CORE: usize = 4;
/// Variable that names the file which `observe.c` creates.
const MARK_VARIABLE: &str = "QUORATE_TOUCHES";

/// Runs the tests `rounds` times under pressure and prints failures by test.
pub(crate) fn tests(rounds: usize, filter: Option<&str>) -> Result<(), String> {
    let (slow_sync, observe) = (library("slow_sync")?, library("observe")?);
    let quota = Quota::half()?;
    let burners = Burners::start()?;
    println!(
        "stress: {rounds} rounds; {} cores kept busy, CPU quota {:.1} cores, \
         every sync {SYNC_DELAY_MS} ms slower",
        burners.count(),
        quota.cores()
    );
    let variables = vec![
        ("LD_PRELOAD", format!("{}:{}", slow_sync.display(), observe.display())),
        ("QUORATE_PRELOAD_REST", slow_sync.display().to_string()),
        ("QUORATE_SYNC_DELAY_MS", SYNC_DELAY_MS.to_string()),
    ];
    let wrap = quota.wrapper(variables, MARK_VARIABLE);
    let plan = TestPlan { rounds, per_core: TESTS_PER_CORE, wrap: Box::new(wrap) };
    let report = suite::run(&plan, filter)?;
    drop(burners);
    let (touching, all) = report.touching();
    println!("{touching} of {all} tests touch time, sockets, threads, processes or disks");
    println!("{}", report.text());
    if report.failed() == 0 {
        Ok(())
    } else {
        Err(format!("{} test runs failed under stress", report.failed()))
    }
}

/// Compiles a library to load before the C library: `slow_sync` or `observe`.
fn library(name: &str) -> Result<PathBuf, String> {
    let place = target().join("stress");
    std::fs::create_dir_all(&place).map_err(|error| format!("create {}: {error}", place.display()))?;
    let library = place.join(format!("{name}.so"));
    let source = root().join(format!("xtask/src/stress/{name}.c")).display().to_string();
    // Another process may be loading the library of before: a new one takes its place whole.
    let fresh = place.join(format!("{name}-{}.so", std::process::id()));
    let out = fresh.display().to_string();
    run(&mut command("cc", &["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", &out, &source]))?;
    std::fs::rename(&fresh, &library).map_err(|error| format!("rename {out}: {error}"))?;
    Ok(library)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    #[test]
    fn a_sync_is_slower_by_the_delay() {
        let library = library("slow_sync").expect("a C compiler");
        let file = target().join("stress/synced");
        let out = format!("of={}", file.display());
        let mut write =
            command("dd", &["if=/dev/zero", &out, "bs=1", "count=1", "conv=fsync", "status=none"]);
        let began = Instant::now();
        run(write.env("LD_PRELOAD", &library).env("QUORATE_SYNC_DELAY_MS", "300")).expect("it writes");
        assert!(began.elapsed() >= Duration::from_millis(300));
    }

    #[test]
    fn programs_that_a_test_starts_load_the_slow_sync_alone() {
        let (slow_sync, observe) = (library("slow_sync").expect("C"), library("observe").expect("C"));
        let mut shell = command("sh", &["-c", "echo $LD_PRELOAD; echo $QUORATE_TOUCHES"]);
        shell.env("LD_PRELOAD", format!("{}:{}", slow_sync.display(), observe.display()));
        shell.env("QUORATE_PRELOAD_REST", &slow_sync).env(MARK_VARIABLE, target().join("stress/none"));
        let inherited = crate::process::output(&mut shell).expect("it runs");
        assert_eq!(inherited, format!("{}\n\n", slow_sync.display()));
    }

    /// Runs one test of this binary under the library, and returns whether it was marked.
    fn is_marked(test: &str) -> bool {
        let mark = target().join(format!("stress/mark-{}", test.replace("::", "-")));
        let library = library("observe").expect("a C compiler");
        let this = std::env::current_exe().expect("this binary").display().to_string();
        let mut test = command(&this, &["--exact", test]);
        let ran = crate::process::output(test.env("LD_PRELOAD", library).env(MARK_VARIABLE, &mark));
        assert!(ran.expect("it passes").contains("1 passed"));
        std::fs::remove_file(&mark).is_ok()
    }

    #[test]
    fn a_test_that_only_computes_is_not_marked() {
        assert!(!is_marked("kills::tests::shares_are_between_zero_and_one"));
    }

    #[test]
    fn a_test_that_uses_time_a_file_a_socket_or_a_process_is_marked() {
        for touching in [
            "stress::tests::reads_a_clock",
            "stress::tests::reads_a_file",
            "stress::tests::binds_a_socket",
            "stress::tests::starts_a_thread",
            "stress::tests::starts_a_process",
        ] {
            assert!(is_marked(touching), "{touching}");
        }
    }

    #[test]
    fn reads_a_clock() {
        assert!(Instant::now().elapsed() < Duration::MAX);
    }

    #[test]
    fn reads_a_file() {
        assert!(std::fs::File::open("/dev/null").is_ok());
    }

    #[test]
    fn binds_a_socket() {
        assert!(std::net::TcpListener::bind("127.0.0.1:0").is_ok());
    }

    #[test]
    fn starts_a_thread() {
        assert!(std::thread::spawn(|| ()).join().is_ok());
    }

    #[test]
    fn starts_a_process() {
        assert!(std::process::Command::new("true").status().is_ok_and(|status| status.success()));
    }
}
