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

/// Ensures that an npm package (`name`, `version`) is installed in a folder of its own under `target/npm`.
pub(crate) fn npm(name: &str, version: &str) -> Result<(), String> {
    let folder = target().join("npm").join(format!("{name}-{version}"));
    if folder.join("node_modules").join(name).join("package.json").is_file() {
        return Ok(());
    }
    program("npm", "npm")?;
    std::fs::create_dir_all(&folder).map_err(|error| format!("create {}: {error}", folder.display()))?;
    let prefix = folder.display().to_string();
    let package = format!("{name}@{version}");
    let quiet = ["install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", &prefix];
    run(&mut command("npm", &[&quiet[..], &[package.as_str()]].concat()))
}

/// Installs what the tests of the console need: a real browser, and the checker of accessibility.
pub(crate) fn browser() -> Result<(), String> {
    program("chromium", "chromium")?;
    // `console/tests/console/cdp.rs` reads this version.
    npm("axe-core", "4.14.1")
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
