//! Requirements of Python in the form that `pip install --require-hashes` takes: every line names one version
//! and the SHA-256 of its wheels. Pure.

use protocol::{Refusal, error_code};
use std::collections::BTreeSet;

/// Maximum size of a file of requirements in bytes: hundreds of packages with all their hashes.
pub(crate) const REQUIREMENTS_BYTES_MAX: usize = 4 * 1024 * 1024;

/// One pinned package.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Requirement {
    /// Name as packages are compared: lower case, `-` for `_` and `.`.
    pub(crate) name: String,
    /// The line up to its hashes, for messages.
    pub(crate) shown: String,
    /// URL of the wheel, if the line names one.
    pub(crate) url: Option<String>,
    /// Accepted digests, in lower-case hexadecimal.
    pub(crate) hashes: BTreeSet<String>,
}

/// Parses a file of requirements.
///
/// # Errors
/// `artifact-build-refused`, with the number of the line, for a line that is not pinned or that asks for a
/// decision: a marker, an option, a range of versions.
pub(crate) fn parse_requirements(text: &str) -> Result<Vec<Requirement>, Refusal> {
    let (mut requirements, mut names) = (Vec::new(), BTreeSet::new());
    let (mut joined, mut first) = (String::new(), 1);
    for (number, line) in text.lines().enumerate() {
        if joined.is_empty() {
            first = number + 1;
        }
        let line = if line.trim_start().starts_with('#') { "" } else { line };
        let line = line.split(" #").next().unwrap_or_default().trim();
        joined.push_str(line.trim_end_matches('\\'));
        if line.ends_with('\\') {
            joined.push(' ');
            continue;
        }
        let whole = std::mem::take(&mut joined);
        if whole.trim().is_empty() {
            continue;
        }
        let refused = |reason: &str| {
            let message = format!("requirements, line {first}: {reason}: `{}`", whole.trim().escape_debug());
            Refusal::new(error_code::ARTIFACT_BUILD_REFUSED, message)
        };
        let requirement = parse_line(&whole).map_err(refused)?;
        if !names.insert(requirement.name.clone()) {
            return Err(refused("the package is named twice"));
        }
        requirements.push(requirement);
    }
    match joined.trim().is_empty() {
        true => Ok(requirements),
        false => {
            let message = format!("requirements, line {first}: the last line continues");
            Err(Refusal::new(error_code::ARTIFACT_BUILD_REFUSED, message))
        }
    }
}

fn parse_line(line: &str) -> Result<Requirement, &'static str> {
    if line.trim_start().starts_with('-') {
        return Err("options are not read; name every package");
    }
    if line.contains(';') {
        return Err("a marker asks for a decision; resolve the requirements for one platform");
    }
    let mut hashes = BTreeSet::new();
    let mut words = Vec::new();
    for word in line.split_whitespace() {
        match word.strip_prefix("--hash=") {
            Some(hash) => {
                let hex = hash.strip_prefix("sha256:").ok_or("a hash is not `sha256:HEX`")?;
                let is_hex = hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
                hashes.insert(is_hex.then(|| hex.to_string()).ok_or("a hash is not `sha256:HEX`")?);
            }
            None if word.starts_with("--") => return Err("only --hash is read"),
            None if !hashes.is_empty() => return Err("text follows the hashes"),
            None => words.push(word),
        }
    }
    if hashes.is_empty() {
        return Err("the wheel's hash is missing (--hash=sha256:HEX)");
    }
    let shown = words.join(" ");
    let (name, url) = match shown.split_once(" @ ") {
        Some((name, url)) if url.starts_with("https://") || url.starts_with("http://") => {
            (name, Some(url.to_string()))
        }
        Some(_) => return Err("the URL is neither https nor http"),
        None => {
            let (name, version) = shown.split_once("==").ok_or("no version is pinned with `==`")?;
            let is_version = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '+' | '!' | '-' | '_');
            if version.trim().is_empty() || !version.trim().chars().all(is_version) {
                return Err("the version is not one version");
            }
            (name, None)
        }
    };
    let name = name.split('[').next().unwrap_or_default().trim();
    if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_')) {
        return Err("the package has no name");
    }
    Ok(Requirement { name: normalized(name), shown: shown.clone(), url, hashes })
}

/// Returns a package's name in the form in which names are compared.
pub(super) fn normalized(name: &str) -> String {
    name.to_ascii_lowercase().replace(['_', '.'], "-")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(digit: char) -> String {
        format!("--hash=sha256:{}", digit.to_string().repeat(64))
    }

    #[test]
    fn pinned_requirements_are_read() {
        let (a, b) = (hash('a'), hash('b'));
        let text = format!(
            "# by pip-compile\nNumPy==2.4.6 \\\n    {a} \\\n    {b}\n    # via jax\n\n\
             jax[cpu]==0.10.2 {a}\nMy_own.pkg @ https://example.org/my-1.0-py3-none-any.whl {b}  # ours\n"
        );
        let found = parse_requirements(&text).expect("pinned");
        let names: Vec<&str> = found.iter().map(|requirement| requirement.name.as_str()).collect();
        assert_eq!(names, ["numpy", "jax", "my-own-pkg"]);
        assert_eq!(found[0].hashes.len(), 2);
        assert_eq!((found[0].shown.as_str(), &found[0].url), ("NumPy==2.4.6", &None));
        assert_eq!(found[2].url.as_deref(), Some("https://example.org/my-1.0-py3-none-any.whl"));
        assert_eq!(parse_requirements("\n# nothing\n").expect("empty"), []);
    }

    #[test]
    fn a_line_that_is_not_pinned_is_refused_with_its_number() {
        let a = hash('a');
        let cases = [
            ("x==1".to_string(), "hash is missing"),
            (format!("x>=1 {a}"), "no version is pinned"),
            (format!("x {a}"), "no version is pinned"),
            (format!("x==1,<2 {a}"), "not one version"),
            (format!("x== {a}"), "not one version"),
            (format!("x==1 ; python_version > \"3\" {a}"), "marker"),
            ("-r other.txt".to_string(), "options are not read"),
            (format!("x==1 --no-binary {a}"), "only --hash"),
            (format!("x==1 {a} y"), "follows the hashes"),
            ("x==1 --hash=md5:00".to_string(), "sha256:HEX"),
            (format!("x==1 --hash=sha256:{}", "A".repeat(64)), "sha256:HEX"),
            (format!("x @ file:///tmp/x.whl {a}"), "neither https nor http"),
            (format!("==1 {a}"), "no name"),
            (format!("x==1 {a}\nX==2 {a}"), "named twice"),
            (format!("x==1 {a} \\"), "continues"),
        ];
        for (line, expected) in cases {
            let refusal = parse_requirements(&format!("\n{line}")).expect_err(&line);
            assert_eq!(refusal.code, error_code::ARTIFACT_BUILD_REFUSED);
            assert!(refusal.message.contains(expected), "{} for {line}", refusal.message);
            assert!(refusal.message.contains("line 2") || refusal.message.contains("line 3"), "{line}");
        }
    }
}
