//! Requirements of tests and benchmarks beyond Rust, a C compiler, Python and Node: installed by name, or
//! named in an error so that the user can install them.

use crate::process::{command, exists, run, target};
use std::path::PathBuf;

/// Returns the Python of a virtual environment under `target/` with these packages (`name==version`).
pub(crate) fn python(name: &str, packages: &[&str]) -> Result<PathBuf, String> {
    let environment = target().join("python").join(name);
    let python = environment.join("bin/python");
    let marker = environment.join("packages.txt");
    let wanted = packages.join("\n");
    if std::fs::read_to_string(&marker).is_ok_and(|have| have == wanted) {
        return Ok(python);
    }
    let path = environment.display().to_string();
    run(&mut command("python3", &["-m", "venv", "--clear", &path])).map_err(|error| {
        format!("{error}\nPython's `venv` with pip is needed (Debian's package is `python3-venv`)")
    })?;
    let program = python.display().to_string();
    let mut arguments = vec!["-m", "pip", "install", "--quiet", "--disable-pip-version-check"];
    arguments.extend(packages);
    run(&mut command(&program, &arguments))?;
    std::fs::write(&marker, wanted).map_err(|error| format!("write {}: {error}", marker.display()))?;
    Ok(python)
}

/// Ensures that a program is installed; on Debian as root, installs its package.
pub(crate) fn program(program: &str, package: &str) -> Result<(), String> {
    if exists(program) {
        return Ok(());
    }
    let root = crate::process::output(&mut command("id", &["-u"])).is_ok_and(|user| user.trim() == "0");
    if !exists("apt-get") || !root {
        return Err(format!("`{program}` is needed; install it (Debian's package is `{package}`)"));
    }
    let install = ["install", "--yes", "--quiet", "--no-install-recommends", package];
    let quiet = |arguments: &[&str]| {
        run(command("apt-get", arguments)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .stdout(std::process::Stdio::null()))
    };
    if quiet(&install).is_err() {
        quiet(&["update", "--quiet"])?;
        quiet(&install)?;
    }
    if exists(program) { Ok(()) } else { Err(format!("`{package}` does not contain `{program}`")) }
}
