//! Operators' scripts: plans, causes of waiting, and remedies.
//!
//! Each is a text file in `tests/golden`; `REFRESH_GOLDEN=1 cargo test -p scheduler` writes the answers
//! again, for review as a diff.

use crate::common::script;

#[test]
fn scripts_give_the_written_answers() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut paths: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(paths.len() >= 10, "only {} scripts", paths.len());
    let mut different = Vec::new();
    for path in paths {
        let written = std::fs::read_to_string(&path).unwrap();
        let answered = script::run(&written);
        if std::env::var_os("REFRESH_GOLDEN").is_some() {
            let mut file = std::fs::OpenOptions::new().write(true).truncate(true).open(&path).unwrap();
            std::io::Write::write_all(&mut file, answered.as_bytes()).unwrap();
        } else if answered != written {
            different.push(format!("{}:\n{answered}", path.display()));
        }
    }
    assert!(different.is_empty(), "answers differ:\n{}", different.join("\n"));
}
