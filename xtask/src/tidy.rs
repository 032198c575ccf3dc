//! The rules of the codebase, as a test: checks that a reviewer would otherwise have to remember.

mod areas;
mod arrows;
mod assertions;
mod circles;
mod codes;
mod debug_format;
mod dependencies;
mod documented;
mod floors;
mod functions;
mod invariants;
mod marks;
mod named_files;
mod names;
mod pages;
mod profiles;
mod prose;
mod purity;
mod ratchets;
mod ratio;
mod report;
mod sources;
mod text;
mod uncalled;
mod units;
mod walks;
mod widths;

use sources::SourceTree;

/// `cargo xtask tidy`.
pub(crate) fn command(arguments: &[String]) -> Result<(), String> {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        [] => run(),
        ["--report"] => print_report(),
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
    findings.extend(named_files::check(&sources));
    findings.extend(walks::check(&sources));
    findings.extend(ratio::check(&sources));
    findings.extend(floors::check(&sources));
    findings.extend(documented::check(&sources));
    findings.extend(ratchets::check(&sources));
    if findings.is_empty() {
        println!("tidy: {} files, nothing to mend", sources.files.len());
        return Ok(());
    }
    Err(format!("tidy: {} to mend\n{}", findings.len(), findings.join("\n")))
}

/// Prints the figures of the codebase.
fn print_report() -> Result<(), String> {
    let sources = SourceTree::read(&crate::process::root())?;
    print!("{}", report::text(&sources));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_argument_shows_the_known_ones() {
        let outcome = command(&["--quiet".to_string()]);
        assert_eq!(outcome, Err("cargo xtask tidy [--report | --tighten]".to_string()));
    }

    #[test]
    fn the_repository_is_tidy() {
        if let Err(findings) = run() {
            panic!("{findings}");
        }
    }
}
