//! The rules of the codebase, as a test: what a reviewer would otherwise have to remember.

mod arrows;
mod codes;
mod dependencies;
mod marks;
mod pages;
mod profiles;
mod purity;
mod ratio;
mod sources;
mod text;

use sources::Sources;

/// Crates that decide and touch nothing.
pub(crate) const PURE: [&str; 3] = ["protocol", "human-chain", "scheduler"];

/// Runs every check and reports every finding at once.
pub(crate) fn run() -> Result<(), String> {
    let sources = Sources::read(&crate::process::root())?;
    let mut findings = Vec::new();
    findings.extend(arrows::check(&sources));
    findings.extend(dependencies::check(&sources));
    findings.extend(codes::check(&sources));
    findings.extend(profiles::check(&sources));
    findings.extend(purity::check(&sources));
    findings.extend(marks::check(&sources));
    findings.extend(text::check(&sources));
    findings.extend(pages::check(&sources));
    findings.extend(ratio::check(&sources));
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
