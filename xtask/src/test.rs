//! `cargo xtask test`: installs the requirements of the tests, then runs all of them, as CI does.

use crate::background::Background;
use crate::process::{self, command};
use crate::suite::{self, TestPlan};
use crate::{cluster, kills, setup, stress};
use std::time::Instant;

/// One step of the tests.
enum TestStep {
    /// Runs alone, to its end.
    Alone(fn() -> Result<(), String>),
    /// Starts here and runs beside the later steps, which mostly wait; its verdict comes last.
    Beside(fn() -> Result<Background, String>),
}

use TestStep::{Alone, Beside};

const STEPS: [(&str, TestStep); 10] = [
    ("format", Alone(format)),
    ("tests", Alone(cargo_tests)),
    ("lint", Beside(lint)),
    ("dashboards", Alone(dashboards)),
    ("by hand", Alone(cluster::by_hand)),
    ("demonstration", Alone(cluster::demonstration_and_clients)),
    ("second run", Alone(cluster::second_run)),
    ("own model", Alone(cluster::own_model)),
    ("ordinary account", Alone(cluster::ordinary_account)),
    ("kills", Alone(kills::in_tests)),
];

const HELP: &str = "\
cargo xtask test [STEP ...]
cargo xtask test --stress ROUNDS [FILTER]

Runs all steps, or those named: format, tests, lint, dashboards, \"by hand\", demonstration, \"second run\",
\"own model\", \"ordinary account\", kills.

  --stress ROUNDS  run the Rust tests instead, on a machine that is kept busy: other work on every core, half
                   the usual CPU quota, slow fsync. Tests that are observed to touch time, sockets, threads,
                   processes or disks run ROUNDS times, others once; FILTER keeps those whose name contains
                   it. Needs root.

Example: cargo xtask test --stress 10 consensus
";

/// Runs every step, or those whose name begins with one of the arguments; or the tests under stress.
pub(crate) fn run(arguments: &[String]) -> Result<(), String> {
    match arguments {
        [first, ..] if first == "--help" || first == "-h" => {
            print!("{HELP}");
            Ok(())
        }
        [first, rounds, filter @ ..] if first == "--stress" && filter.len() <= 1 => {
            let rounds = rounds.parse().ok().filter(|rounds| *rounds > 0);
            let rounds = rounds.ok_or_else(|| format!("ROUNDS is a number from 1\n\n{HELP}"))?;
            crate::minilm::directory()?;
            setup::browser()?;
            stress::tests(rounds, filter.first().map(String::as_str))
        }
        [first, ..] if first.starts_with('-') => Err(format!("`{first}` is not an option\n\n{HELP}")),
        names => steps(names),
    }
}

fn steps(names: &[String]) -> Result<(), String> {
    let wanted = |name: &str| names.is_empty() || names.iter().any(|a| name.starts_with(a.as_str()));
    let (mut passed, mut beside) = (0, Vec::new());
    for (name, step) in STEPS.iter().filter(|(name, _)| wanted(name)) {
        match step {
            Alone(step) => timed(name, step)?,
            Beside(start) => {
                println!("== {name} starts and runs beside the later steps");
                beside.push((name, start().map_err(|error| format!("== {name} failed: {error}"))?));
            }
        }
        passed += 1;
    }
    for (name, background) in beside {
        timed(name, || background.finish())?;
    }
    println!("steps: {passed} passed, 0 failed");
    if passed == 0 { Err(format!("no step has such a name\n\n{HELP}")) } else { Ok(()) }
}

/// Runs a step and prints its name and duration; the error names it too.
fn timed(name: &str, step: impl FnOnce() -> Result<(), String>) -> Result<(), String> {
    println!("== {name}");
    let started = Instant::now();
    step().map_err(|error| format!("== {name} failed: {error}"))?;
    println!("== {name}: {:.0} s", started.elapsed().as_secs_f64());
    Ok(())
}

fn format() -> Result<(), String> {
    process::run(&mut command("cargo", &["fmt", "--all", "--check"]))
}

fn lint() -> Result<Background, String> {
    let clippy = ["cargo", "clippy", "--quiet", "--workspace", "--all-targets", "--", "--deny", "warnings"];
    // The fuzz targets are only checked: libFuzzer itself is not compiled.
    Background::start("lint", &clippy, &[("CUSTOM_LIBFUZZER_PATH", "/none")])
}

fn cargo_tests() -> Result<(), String> {
    crate::minilm::directory()?;
    setup::browser()?;
    let report = suite::run(&TestPlan::once(), None)?;
    println!("{}", report.text());
    if report.failed() > 0 {
        return Err(format!("{} tests failed", report.failed()));
    }
    suite::documentation()
}

fn dashboards() -> Result<(), String> {
    setup::program("promtool", "prometheus")?;
    process::run(&mut command("promtool", &["check", "rules", "dashboards/rules.yml"]))?;
    process::run(&mut command("promtool", &["test", "rules", "dashboards/rules_test.yml"]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(arguments: &[&str]) -> String {
        let arguments: Vec<String> = arguments.iter().map(ToString::to_string).collect();
        run(&arguments).expect_err("these arguments run nothing")
    }

    #[test]
    fn wrong_arguments_run_nothing_and_show_the_help() {
        assert!(refused(&["--loud"]).starts_with("`--loud` is not an option\n\ncargo xtask test"));
        assert!(refused(&["--stress", "0"]).starts_with("ROUNDS is a number from 1\n"));
        assert!(refused(&["--stress", "many"]).starts_with("ROUNDS is a number from 1\n"));
        assert!(refused(&["no such step"]).starts_with("no step has such a name\n"));
    }

    #[test]
    fn the_help_names_every_step_once() {
        for (name, _) in STEPS {
            assert_eq!(STEPS.iter().filter(|(other, _)| other.starts_with(name)).count(), 1, "{name}");
            assert!(HELP.replace('\n', " ").contains(name), "{name}");
        }
    }
}
