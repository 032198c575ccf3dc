//! The rules of the codebase, as a test: checks that a reviewer would otherwise have to remember.

mod arrows;
mod circles;
mod codes;
mod debug_format;
mod dependencies;
mod documented;
mod marks;
mod names;
mod pages;
mod profiles;
mod prose;
mod purity;
mod ratchets;
mod ratio;
mod sources;
mod text;
mod uncalled;
mod widths;

use sources::SourceTree;

/// Pure crates: they decide and have no side effects.
pub(crate) const PURE: [&str; 3] = ["protocol", "human-chain", "scheduler"];

/// `cargo xtask tidy`.
pub(crate) fn command(arguments: &[String]) -> Result<(), String> {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        [] => run(),
        ["--report"] => SourceTree::read(&crate::process::root()).map(|sources| ratchets::report(&sources)),
        ["--tighten"] => ratchets::tighten(&SourceTree::read(&crate::process::root())?),
        _ => Err("cargo xtask tidy [--report | --tighten]".into()),
    }
}

/// Runs every check and reports all findings together.
pub(crate) fn run() -> Result<(), String> {
    let sources = SourceTree::read(&crate::process::root())?;
    let mut findings = Vec::new();
    findings.extend(arrows::check(&sources));
    findings.extend(dependencies::check(&sources));
    findings.extend(codes::check(&sources));
    findings.extend(debug_format::check(&sources));
    findings.extend(profiles::check(&sources));
    findings.extend(purity::check(&sources));
    findings.extend(marks::check(&sources));
    findings.extend(text::check(&sources));
    findings.extend(pages::check(&sources));
    findings.extend(ratio::check(&sources));
    findings.extend(documented::check(&sources));
    findings.extend(ratchets::check(&sources));
    if findings.is_empty() {
        println!("tidy: {} files, nothing to mend", sources.files.len());
        return Ok(());
    }
    Err(format!("tidy: {} to mend\n{}", findings.len(), findings.join("\n")))
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_repository_is_tidy() {
        if let Err(findings) = super::run() {
            panic!("{findings}");
        }
    }
}
