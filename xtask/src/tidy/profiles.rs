//! Check that every crate of ours has a build profile of its own. The default profile is written for
//! dependencies, without assertions, so an unnamed crate would silently lose its own.

use super::sources::SourceTree;

/// Checks the root manifest.
pub(crate) fn check(sources: &SourceTree) -> Vec<String> {
    let manifest = sources.get("Cargo.toml").map_or("", |file| file.text.as_str());
    let named: Vec<&str> = table(manifest, "[profile.dev.package]").collect();
    let missing = members(manifest).filter(|name| !named.contains(name));
    missing
        .map(|name| format!("Cargo.toml: [profile.dev.package] does not say how `{name}` is built"))
        .collect()
}

/// Returns the workspace's members.
fn members(manifest: &str) -> impl Iterator<Item = &str> {
    let list = manifest.split_once("\nmembers = [").map_or("", |(_, rest)| rest);
    let list = list.split(']').next().unwrap_or_default();
    list.split(',').map(|name| name.trim().trim_matches('"')).filter(|name| !name.is_empty())
}

/// Returns the keys of a table that keep overflow checks.
fn table<'a>(manifest: &'a str, head: &str) -> impl Iterator<Item = &'a str> {
    let lines = manifest.lines().skip_while(move |line| *line != head).skip(1);
    let lines = lines
        .take_while(|line| !line.starts_with('['))
        .filter(|line| line.contains("overflow-checks = true"));
    lines.filter_map(|line| line.split(' ').next())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crate_without_a_profile_of_its_own_is_found() {
        let manifest = "[workspace]\nmembers = [\n    \"a\", \"b\",\n    \"c\",\n]\n\n[profile.dev.package]\n\
                        a = { opt-level = 1, overflow-checks = true }\nb = { opt-level = 1 }\n\n\
                        [profile.release]\n";
        let found = check(&SourceTree::of(&[("Cargo.toml", manifest)]));
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].contains("`b`") && found[1].contains("`c`"), "{found:?}");
    }
}
