//! Test binaries: builds them and asks each for its tests.

use super::Test;
use crate::compile::{self, Selection};
use crate::process::{command, output};
use std::path::{Path, PathBuf};

/// A test binary as cargo describes it.
#[derive(Debug, PartialEq, Eq)]
struct Binary {
    package: String,
    target: String,
    program: PathBuf,
    directory: PathBuf,
}

/// Builds every test binary and returns all of their tests.
pub(super) fn tests() -> Result<Vec<Test>, String> {
    compile::build(Selection::Everything)?;
    let mut build = command("cargo", &["build", "--quiet", "--message-format=json-render-diagnostics"]);
    let messages = output(build.args(Selection::Everything.targets()))?;
    let mut tests = Vec::new();
    for binary in messages.lines().filter_map(binary) {
        let program = binary.program.display().to_string();
        let listed = output(command(&program, &["--list", "--format=terse"]).current_dir(&binary.directory))?;
        let names = listed.lines().filter_map(|line| line.strip_suffix(": test"));
        tests.extend(names.map(|name| Test {
            package: binary.package.clone(),
            target: binary.target.clone(),
            name: name.to_string(),
            program: binary.program.clone(),
            directory: binary.directory.clone(),
        }));
    }
    if tests.is_empty() {
        return Err("cargo built no test binary".into());
    }
    Ok(tests)
}

/// Parses one of cargo's messages, if it announces a test binary.
fn binary(message: &str) -> Option<Binary> {
    // A target also has a field `test`: whether it can be tested. The one in its profile marks a test binary.
    let profile = message.split_once("\"profile\":{").map_or("", |(_, rest)| rest);
    let profile = profile.split('}').next().unwrap_or_default();
    let is_test = message.contains("\"reason\":\"compiler-artifact\"") && profile.contains("\"test\":true");
    let program = PathBuf::from(text_after(message, "\"executable\":").filter(|_| is_test)?);
    let directory = Path::new(text_after(message, "\"manifest_path\":")?).parent()?.to_path_buf();
    let target = message.split_once("\"target\":{")?.1;
    Some(Binary {
        package: directory.file_name()?.to_string_lossy().into_owned(),
        target: text_after(target, "\"name\":")?.to_string(),
        program,
        directory,
    })
}

/// Returns the string that follows `key` in a line of JSON. Paths of a checkout contain neither quotes nor
/// backslashes. A path that does is not found, and the run fails for lack of tests.
fn text_after<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    let rest = line.split_once(key)?.1.strip_prefix('"')?;
    rest.split('"').next().filter(|text| !text.contains('\\'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MESSAGE: &str = concat!(
        r#"{"reason":"compiler-artifact","package_id":"path+file:///q/gpu-agent#0.1.0","#,
        r#""manifest_path":"/q/gpu-agent/Cargo.toml","#,
        r#""target":{"kind":["test"],"crate_types":["bin"],"name":"lifecycle","#,
        r#""src_path":"/q/gpu-agent/tests/lifecycle.rs","edition":"2024","test":true},"#,
        r#""profile":{"opt_level":"1","test":true},"features":[],"filenames":["/q/target/x"],"#,
        r#""executable":"/q/target/debug/deps/lifecycle-1","fresh":true}"#,
    );

    #[test]
    fn a_test_binary_is_found_in_cargos_messages() {
        let found = binary(MESSAGE).expect("a test binary");
        assert_eq!((found.package.as_str(), found.target.as_str()), ("gpu-agent", "lifecycle"));
        assert_eq!(found.program, Path::new("/q/target/debug/deps/lifecycle-1"));
        assert_eq!(found.directory, Path::new("/q/gpu-agent"));
    }

    #[test]
    fn libraries_and_other_messages_are_no_test_binaries() {
        assert_eq!(
            binary(&MESSAGE.replace("\"test\":true},\"features\"", "\"test\":false},\"features\"")),
            None
        );
        assert_eq!(binary(&MESSAGE.replace("\"/q/target/debug/deps/lifecycle-1\"", "null")), None);
        assert_eq!(binary(r#"{"reason":"build-finished","success":true}"#), None);
    }
}
