//! Build script: compiles the pages of `docs/errors` into a table for `quorate explain`.

use std::fmt::Write as _;
use std::path::PathBuf;

fn main() {
    let pages =
        PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it")).join("../docs/errors");
    println!("cargo::rerun-if-changed={}", pages.display());
    let mut names: Vec<PathBuf> = std::fs::read_dir(&pages)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "md"))
        .collect();
    names.sort();
    let mut table = String::from("&[\n");
    for path in names {
        let code = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let path = path.canonicalize().expect("the page was just listed");
        println!("cargo::rerun-if-changed={}", path.display());
        writeln!(table, "    ({code:?}, include_str!({:?})),", path.display().to_string())
            .expect("to memory");
    }
    table.push(']');
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets it")).join("error_pages.rs");
    std::fs::write(out, table).expect("the build directory is writable");
}
