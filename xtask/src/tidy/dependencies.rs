//! Check of dependencies: each has its reason in the root manifest, pure crates use a short list, all come
//! from the registry, and each excepted advisory has a reason.

use super::sources::SourceTree;
use super::units::PURE_CRATES;

/// Permitted dependencies of a pure crate. None of them reaches a clock, a file or a socket on its own, and
/// randomness only in functions called for it.
const PURE_MAY_USE: [&str; 16] = [
    "aws-lc-rs",
    "base64",
    "blake3",
    "ciborium",
    "ed25519-dalek",
    "hex",
    "human-chain",
    "protocol",
    "scheduler",
    "serde",
    "serde_json",
    "subtle",
    "thiserror",
    "toml",
    "utoipa",
    "zeroize",
];

/// Checks the manifests, the lock file and the list of advisories.
pub(crate) fn check(sources: &SourceTree) -> Vec<String> {
    let text = |path: &str| sources.get(path).map_or("", |file| file.text.as_str());
    let mut findings = argued(text("Cargo.toml"));
    for name in PURE_CRATES {
        let path = format!("{name}/Cargo.toml");
        let used = product_dependencies(text(&path));
        let foreign = used.iter().filter(|used| !PURE_MAY_USE.contains(&used.as_str()));
        findings
            .extend(foreign.map(|used| format!("{path}: `{used}` is not among what pure crates may use")));
    }
    let elsewhere = text("Cargo.lock").lines().filter(|line| line.starts_with("source = "));
    let elsewhere =
        elsewhere.filter(|line| !line.contains("registry+https://github.com/rust-lang/crates.io-index"));
    findings.extend(elsewhere.map(|line| format!("Cargo.lock: not from the registry: {line}")));
    findings.extend(excused(text("deny.toml")));
    findings
}

/// Checks that each third-party dependency of the workspace has a reason.
fn argued(manifest: &str) -> Vec<String> {
    let lines = manifest.lines().skip_while(|line| *line != "[workspace.dependencies]").skip(1);
    let lines = lines.take_while(|line| !line.starts_with('['));
    let foreign = lines.filter(|line| line.contains(" = ") && !line.contains("{ path = "));
    let bare =
        foreign.filter(|line| line.split_once(" # ").is_none_or(|(_, reason)| reason.trim().len() < 10));
    bare.map(|line| {
        let name = line.split(' ').next().unwrap_or_default();
        format!("Cargo.toml: `{name}` does not say in one line why it is here")
    })
    .collect()
}

/// Checks that each excepted advisory has a reason, and states until when.
fn excused(list: &str) -> Vec<String> {
    let entries =
        list.lines().filter(|line| line.contains("RUSTSEC-") && !line.trim_start().starts_with('#'));
    let bare = entries.filter(|line| line.split("reason = \"").nth(1).is_none_or(|reason| reason.len() < 20));
    bare.map(|line| format!("deny.toml: no reason: {}", line.trim())).collect()
}

/// Returns a crate's product dependencies: every table of dependencies except those of tests.
pub(crate) fn product_dependencies(manifest: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut inside = false;
    for line in manifest.lines() {
        if let Some(table) = line.strip_prefix('[').and_then(|rest| rest.trim_end().strip_suffix(']')) {
            let parts: Vec<&str> = table.split('.').collect();
            let kind = parts.iter().position(|part| *part == "dependencies" || *part == "build-dependencies");
            inside = kind.is_some_and(|at| at + 1 == parts.len());
            // `[dependencies.name]`
            names.extend(kind.and_then(|at| parts.get(at + 1)).map(|name| (*name).to_string()));
        } else if inside && !line.starts_with([' ', '#', '\t']) {
            names.extend(line.split(['.', ' ', '=']).next().filter(|n| !n.is_empty()).map(str::to_string));
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_table_of_dependencies_is_read() {
        let manifest = "[dependencies]\na.workspace = true\nb = { version = \"1\" }\n\n[dependencies.c]\n\
                        version = \"1\"\n[target.'cfg(unix)'.dependencies]\nd = \"1\"\n[build-dependencies]\n\
                        e = \"1\"\n[dev-dependencies]\nf = \"1\"\n";
        assert_eq!(product_dependencies(manifest), ["a", "b", "c", "d", "e"]);
    }

    #[test]
    fn a_dependency_without_a_reason_is_found() {
        let manifest = "[workspace.dependencies]\nours = { path = \"ours\" }\nhex = \"0.4\"   # digests as \
                        people read them\nrayon = \"1\"\n\n[workspace.lints]\n";
        assert_eq!(argued(manifest), ["Cargo.toml: `rayon` does not say in one line why it is here"]);
    }

    #[test]
    fn a_pure_crate_with_a_runtime_and_a_crate_from_elsewhere_are_found() {
        let found = check(&SourceTree::of(&[
            ("scheduler/Cargo.toml", "[dependencies]\ntokio.workspace = true\n"),
            ("Cargo.lock", "source = \"git+https://example.org/fork\"\n"),
            ("deny.toml", "    { id = \"RUSTSEC-2000-0001\", reason = \"\" },\n"),
        ]));
        assert_eq!(found.len(), 3, "{found:?}");
    }
}
