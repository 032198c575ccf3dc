//! Tests of sources: the refusals of an import, each with its code, and the models that it accepts.

use super::*;
use crate::testing::{Gguf, safetensors, write_model};
use protocol::error_code::{self as code, ErrorCode};
use tempfile::TempDir;

fn model() -> TempDir {
    let directory = TempDir::new().expect("a directory");
    write_model(directory.path());
    directory
}

/// Edits a valid model and returns the result of its inspection.
fn after(edit: impl FnOnce(&Path)) -> Result<InspectedModel, (ErrorCode, String)> {
    let directory = model();
    edit(directory.path());
    inspect(directory.path()).map_err(|error| (error.code(), error.to_string()))
}

#[test]
fn a_sound_directory_is_accepted_without_the_files_of_tools() {
    let source = after(|_| ()).expect("sound");
    let paths: Vec<&str> = source.files.iter().map(|file| file.path.as_str()).collect();
    let expected =
        ["1_Pooling/config.json", "config.json", "empty.txt", "tokenizer.json", "model.safetensors"];
    assert_eq!(paths, expected);
    assert_eq!((source.architecture.as_str(), source.notes.len()), ("llama", 0));
}

#[test]
fn models_that_could_run_code_or_not_start_are_refused_by_name() {
    type Edit = fn(&Path);
    let write =
        |path: &Path, name: &str, bytes: &[u8]| std::fs::write(path.join(name), bytes).expect("write");
    let zip = [b"PK\x03\x04".as_slice(), &[0; 26], b"archive/data.pkl"].concat();
    let torch = |path: &Path| write(path, "weights.model", &zip);
    assert_eq!(after(torch).expect_err("an archive").0, code::MODEL_FORMAT_REFUSED);
    let cases: &[(&str, ErrorCode, Edit)] = &[
        ("`pytorch_model.bin` is refused", code::MODEL_FORMAT_REFUSED, |path| {
            std::fs::write(path.join("pytorch_model.bin"), b"x").expect("write");
        }),
        ("`x.PT` is refused", code::MODEL_FORMAT_REFUSED, |path| {
            std::fs::write(path.join("x.PT"), b"x").expect("write");
        }),
        ("is a pickle", code::MODEL_FORMAT_REFUSED, |path| {
            std::fs::write(path.join("innocent.json"), b"\x80\x04\x95").expect("write");
        }),
        ("no `tokenizer.json`", code::MODEL_TOKENIZER_MISSING, |path| {
            std::fs::remove_file(path.join("tokenizer.json")).expect("remove");
        }),
        ("no `config.json`", code::MODEL_FILE_MISSING, |path| {
            std::fs::remove_file(path.join("config.json")).expect("remove");
        }),
        ("no `model.safetensors`", code::MODEL_FILE_MISSING, |path| {
            std::fs::remove_file(path.join("model.safetensors")).expect("remove");
        }),
        ("`config.json` are damaged", code::MODEL_WEIGHTS_DAMAGED, |path| {
            std::fs::write(path.join("config.json"), b"{").expect("write");
        }),
        ("`model_type` is not a name", code::MODEL_WEIGHTS_DAMAGED, |path| {
            std::fs::write(path.join("config.json"), br#"{"model_type": "foreign/x"}"#).expect("write");
        }),
        ("no `model-2.safetensors`", code::MODEL_FILE_MISSING, |path| {
            let index = br#"{"weight_map":{"a":"model.safetensors","b":"model-2.safetensors"}}"#;
            std::fs::write(path.join("model.safetensors.index.json"), index).expect("write");
        }),
        ("leads out of the directory", code::MODEL_PATH_REFUSED, |path| {
            std::os::unix::fs::symlink("/etc/passwd", path.join("vocab.txt")).expect("link");
        }),
        ("links to directories", code::MODEL_PATH_REFUSED, |path| {
            std::os::unix::fs::symlink("1_Pooling", path.join("again")).expect("link");
        }),
        ("read", code::MODEL_UNREADABLE, |path| {
            std::os::unix::fs::symlink("nowhere", path.join("vocab.txt")).expect("link");
        }),
        ("control characters", code::MODEL_PATH_REFUSED, |path| {
            std::fs::write(path.join("a\nb"), b"x").expect("write");
        }),
        ("GGUF header", code::MODEL_WEIGHTS_DAMAGED, |path| {
            std::fs::write(path.join("x.gguf"), b"GGUX").expect("write");
        }),
    ];
    for (text, expected, edit) in cases {
        let (code, message) = after(edit).expect_err(text);
        assert_eq!(code, *expected, "{message}");
        assert!(message.contains(text), "`{message}` should contain `{text}`");
    }
}

#[test]
fn torn_weights_are_refused_wherever_they_tear() {
    let whole = safetensors(&[("a", 100), ("b", 0), ("c", 50)]);
    let directory = model();
    let check = |bytes: &[u8]| {
        std::fs::write(directory.path().join("model.safetensors"), bytes).expect("write");
        inspect(directory.path()).map_err(|error| (error.code(), error.to_string()))
    };
    assert!(check(&whole).is_ok());
    for length in 0..whole.len() {
        let (code, message) = check(&whole[..length]).expect_err("torn");
        assert_eq!(code, code::MODEL_WEIGHTS_DAMAGED, "{length}: {message}");
    }
    let (_, message) = check(&[&whole[..], b"x"].concat()).expect_err("too long");
    assert!(message.contains("1 bytes at its end belong to no tensor"), "{message}");
}

#[test]
fn inconsistent_headers_are_refused() {
    let file = |header: &str, data: usize| {
        [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &vec![0; data]].concat()
    };
    let tensor = |shape: &str, from: u64, to: u64| {
        format!(r#"{{"a":{{"dtype":"F32","shape":{shape},"data_offsets":[{from},{to}]}}}}"#)
    };
    let cases = [
        (file("{", 0), "its header"),
        (file("[]", 0), "its header"),
        (file(&tensor("[2]", 4, 12), 12), ""),
        (file(&tensor("[2]", 0, 12), 12), ""),
        (file(&tensor("[4294967296,4294967296]", 0, 8), 8), ""),
        (file(&tensor("[2]", 8, 0), 8), ""),
        (file(&tensor("[2]", 0, 1 << 60), 8), ""),
        ([&u64::MAX.to_le_bytes()[..], b"{}"].concat(), "over the end"),
        (b"short".to_vec(), "5 bytes"),
    ];
    for (number, (bytes, text)) in cases.iter().enumerate() {
        let result = after(|path| std::fs::write(path.join("model.safetensors"), bytes).expect("write"));
        let (code, message) = result.expect_err("a lie");
        assert_eq!(code, code::MODEL_WEIGHTS_DAMAGED, "case {number}: {message}");
        assert!(message.contains(text), "case {number}: {message}");
    }
}

#[test]
fn single_files_and_gguf_directories_are_models_too() {
    let directory = TempDir::new().expect("a directory");
    let gguf = Gguf::of(&[("blk.0.attn_q.weight", 100)]);
    let path = directory.path().join("tiny.gguf");
    std::fs::write(&path, gguf.bytes()).expect("write");
    for path in [&path, directory.path()] {
        let source = inspect(path).expect("sound");
        assert_eq!(source.architecture, "gguf");
        let [note] = &source.notes[..] else { panic!("one note: {:?}", source.notes) };
        assert!(note.contains("`tiny.gguf`") && note.contains("no built-in engine reads GGUF"), "{note}");
    }
    std::fs::write(&path, [&gguf.bytes()[..], &[0; 32]].concat()).expect("write");
    assert_eq!(inspect(&path).expect_err("too long").code(), code::MODEL_WEIGHTS_DAMAGED);
    std::fs::write(&path, Gguf { version: 9, ..gguf }.bytes()).expect("write");
    assert_eq!(inspect(&path).expect_err("a new version").code(), code::MODEL_FORMAT_UNKNOWN);
    let other = directory.path().join("notes.txt");
    std::fs::write(&other, b"text").expect("write");
    let source = inspect(&other).expect("a file");
    assert_eq!((source.files[0].path.as_str(), source.notes.len()), ("notes.txt", 0));
    assert!(matches!(inspect(&directory.path().join("none")), Err(ImportError::Unreadable { .. })));
}

#[test]
fn a_link_within_the_directory_is_followed() {
    let source = after(|path| {
        std::fs::rename(path.join("tokenizer.json"), path.join("1_Pooling/real.json")).expect("rename");
        std::os::unix::fs::symlink("1_Pooling/real.json", path.join("tokenizer.json")).expect("link");
    });
    let source = source.expect("sound");
    let tokenizer = source.files.iter().find(|file| file.path == "tokenizer.json").expect("there");
    assert_eq!(tokenizer.length, 20_000);
}

#[test]
fn a_snapshot_of_a_cache_is_read_through_its_links_and_no_other_directory_is() {
    for (folder, expected) in [("models--owner--name", true), ("name", false)] {
        let place = tempfile::tempdir().expect("a directory");
        let (blobs, snapshot) =
            (place.path().join(folder).join("blobs"), place.path().join(folder).join("snapshots/0a1b"));
        std::fs::create_dir_all(&blobs).expect("a directory");
        std::fs::create_dir_all(&snapshot).expect("a directory");
        let whole = model();
        let files = inspect(whole.path()).expect("sound").files;
        for file in files.iter().filter(|file| !file.path.contains('/')) {
            std::fs::copy(whole.path().join(&file.path), blobs.join(&file.path)).expect("copy");
            let link = std::path::Path::new("../../blobs").join(&file.path);
            std::os::unix::fs::symlink(link, snapshot.join(&file.path)).expect("link");
        }
        match inspect(&snapshot) {
            Ok(source) => {
                assert!(expected && source.files.iter().any(|file| file.path == "model.safetensors"))
            }
            Err(error) => assert!(!expected && matches!(error, ImportError::PathRefused { .. }), "{error}"),
        }
        // A link into another model of the cache is refused.
        if expected {
            let other = place.path().join("models--owner--other");
            std::fs::create_dir_all(&other).expect("a directory");
            std::fs::write(other.join("secret"), "x").expect("write");
            std::os::unix::fs::symlink(other.join("secret"), snapshot.join("notes.txt")).expect("link");
            assert!(matches!(inspect(&snapshot), Err(ImportError::PathRefused { .. })));
        }
    }
}

#[test]
fn a_file_that_changes_is_detected() {
    let directory = model();
    let source = inspect(directory.path()).expect("sound");
    let tokenizer = source.files.iter().find(|file| file.path == "tokenizer.json").expect("there");
    let mut bytes = [0; 10];
    tokenizer.read(0, &mut bytes).expect("unchanged");
    std::fs::write(directory.path().join("new"), vec![0; 20_000]).expect("write");
    std::fs::rename(directory.path().join("new"), directory.path().join("tokenizer.json")).expect("rename");
    assert!(matches!(tokenizer.read(0, &mut bytes), Err(ImportError::Changed { .. })));
}
