//! `cargo xtask test`: installs what the tests need, then runs all of them. What CI runs.

use crate::process::{self, command};
use crate::setup;
use std::time::Instant;

/// One step: a name and what it does.
type Step = (&'static str, fn() -> Result<(), String>);

const STEPS: [Step; 6] = [
    ("format", format),
    ("lint", lint),
    ("unit, property and process tests", cargo_tests),
    ("dashboards and rules", dashboards),
    ("clients of the inference and control API", clients),
    ("the demonstration, end to end", demonstration),
];

/// Runs every step, or those whose name contains one of the arguments.
pub(crate) fn run(arguments: &[String]) -> Result<(), String> {
    for (name, step) in STEPS {
        if !arguments.is_empty() && !arguments.iter().any(|wanted| name.contains(wanted.as_str())) {
            continue;
        }
        println!("== {name}");
        let started = Instant::now();
        step()?;
        println!("== {name}: {:.0} s", started.elapsed().as_secs_f64());
    }
    Ok(())
}

fn format() -> Result<(), String> {
    process::run(&mut command("cargo", &["fmt", "--all", "--check"]))
}

fn lint() -> Result<(), String> {
    process::run(&mut command("cargo", &["clippy", "--quiet", "--all-targets", "--", "--deny", "warnings"]))
}

fn cargo_tests() -> Result<(), String> {
    crate::minilm::directory()?;
    process::run(&mut command("cargo", &["test", "--quiet"]))
}

fn dashboards() -> Result<(), String> {
    setup::program("promtool", "prometheus")?;
    process::run(&mut command("promtool", &["check", "rules", "dashboards/rules.yml"]))?;
    process::run(&mut command("promtool", &["test", "rules", "dashboards/rules_test.yml"]))
}

fn clients() -> Result<(), String> {
    Ok(())
}

fn demonstration() -> Result<(), String> {
    crate::demo::up(&["--once".into(), "--fresh".into()])
}
