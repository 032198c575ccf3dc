//! Tests of builds: the libraries of a program, a stand-in for an interpreter, and wheels that are refused.

use super::*;
use aws_lc_rs::digest::{SHA256, digest};
use model_store::{ArtifactLimits, PackedArtifact};
use protocol::artifact::EntryKind;
use std::io::Write;
use std::os::unix::fs::symlink;

/// Builds in a directory of its own, and returns the packed artifact.
fn built(
    exclude: &[String],
    own: &Path,
    build: impl FnOnce(&mut HostFiles<'_>) -> Result<ArtifactStart>,
) -> Result<PackedArtifact> {
    let work = tempfile::tempdir().expect("a directory");
    let mut builder = ArtifactBuilder::new(work.path(), ArtifactLimits::default()).expect("a builder");
    let start = build(&mut HostFiles::new(&mut builder, exclude, own)?)?;
    Ok(builder.pack(start).map_err(|error| refusal(&error))?)
}

fn paths(packed: &PackedArtifact) -> Vec<&str> {
    packed.index.entries.iter().map(|entry| entry.path.as_str()).collect()
}

fn code_of(error: &anyhow::Error) -> ErrorCode {
    error.downcast_ref::<Refusal>().unwrap_or_else(|| panic!("{error:#}")).code
}

/// Returns the start of a packed program.
fn started(packed: &PackedArtifact) -> &ArtifactStart {
    packed.index.start.as_ref().expect("an artifact has a start")
}

#[test]
fn a_program_is_packed_with_the_libraries_that_its_headers_name() {
    let program = std::env::current_exe().expect("this test is a program");
    let empty = tempfile::tempdir().expect("a directory");
    let nowhere = empty.path();
    let packed = built(&[], nowhere, |files| files.add_program(&program)).expect("built");
    for library in sandbox::libraries_of(&program).expect("its libraries") {
        let path = library.to_string_lossy().trim_start_matches('/').to_string();
        let is_there = packed.index.entries.iter().find(|entry| entry.path == path);
        let is_file = is_there.is_some_and(|at| matches!(at.kind, EntryKind::File { executable: true, .. }));
        assert!(is_file || path.starts_with("etc/"), "{path}");
    }
    assert!(started(&packed).command[0].starts_with("/usr/local/bin/"));
    let again = built(&[], nowhere, |files| files.add_program(&program)).expect("built");
    assert_eq!(again.root, packed.root);
    // A file that is no program is refused as an entry point.
    let text = tempfile::NamedTempFile::new().expect("a file");
    let refused = built(&[], nowhere, |files| files.add_program(text.path())).expect_err("not executable");
    assert_eq!(code_of(&refused), error_code::ARTIFACT_ENTRY_POINT_MISSING);
}

/// Writes a file and the directories above it.
fn write(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().expect("a directory")).expect("created");
    fs::write(path, text).expect("written");
}

#[test]
fn python_is_packed_with_its_library_wheels_and_the_users_files() {
    let root = tempfile::tempdir().expect("a directory");
    let at = |path: &str| root.path().join(path);
    fs::create_dir_all(at("usr/bin")).expect("created");
    fs::copy(std::env::current_exe().expect("a program"), at("usr/bin/python3.11")).expect("copied");
    symlink("python3.11", at("usr/bin/python3")).expect("linked");
    for path in ["os.py", "json/decoder.py", "test/x.py", "__pycache__/os.pyc", "site-packages/y.py"] {
        write(&at("usr/lib/python3.11").join(path), "");
    }
    write(&at("packages/jax/core.py"), "");
    write(&at("packages/jax/big.bin"), "");
    write(&at("mine/train.py"), "print()");
    let build = |exclude: &[String]| {
        built(exclude, &at("packages"), |files| {
            files.add_application(&at("mine"))?;
            let (interpreter, packages) = (at("usr/bin/python3"), at("packages"));
            files.add_python(&PythonBuild { interpreter: &interpreter, packages: &packages })
        })
    };
    let packed = build(&["opt/packages/jax/big.bin".to_string()]).expect("built");
    let paths = paths(&packed);
    for path in
        ["app/train.py", "opt/packages/jax/core.py", "usr/bin/python3", "usr/lib/python3.11/json/decoder.py"]
    {
        assert!(paths.contains(&path), "{path} in {paths:?}");
    }
    let is_left_out =
        |path: &&&str| ["big.bin", "x.py", "os.pyc", "y.py"].iter().any(|name| path.ends_with(name));
    assert_eq!(paths.iter().find(is_left_out), None);
    assert_eq!(started(&packed).command, ["/usr/bin/python3.11"]);
    assert_eq!(started(&packed).environment["PYTHONPATH"], "/opt/packages");
    // Without its standard library, or under another name, it is no interpreter.
    fs::rename(at("usr/bin/python3.11"), at("usr/bin/ruby")).expect("renamed");
    fs::remove_file(at("usr/bin/python3")).expect("removed");
    symlink("ruby", at("usr/bin/python3")).expect("linked");
    assert_eq!(code_of(&build(&[]).expect_err("ruby")), error_code::ARTIFACT_BUILD_REFUSED);
    fs::rename(at("usr/bin/ruby"), at("usr/bin/python3.12")).expect("renamed");
    fs::remove_file(at("usr/bin/python3")).expect("removed");
    symlink("python3.12", at("usr/bin/python3")).expect("linked");
    assert_eq!(code_of(&build(&[]).expect_err("no library")), error_code::ARTIFACT_BUILD_REFUSED);
}

type WheelFile<'a> = (&'a str, u32, &'a str);

/// Writes a wheel of these files: path, mode, content.
fn wheel(path: &Path, files: &[WheelFile<'_>]) {
    let mut writer = zip::ZipWriter::new(File::create(path).expect("created"));
    for (name, mode, content) in files {
        let options = zip::write::SimpleFileOptions::default().unix_permissions(*mode);
        writer.start_file(*name, options).expect("started");
        writer.write_all(content.as_bytes()).expect("written");
    }
    writer.finish().expect("finished");
}

fn unpacked(files: &[WheelFile<'_>], mut budget: WheelBudget) -> Result<Vec<String>> {
    let work = tempfile::tempdir().expect("a directory");
    let (path, to) = (work.path().join("x-1-py3-none-any.whl"), work.path().join("packages"));
    wheel(&path, files);
    fs::create_dir(&to).expect("created");
    unpack_wheel(&path, &to, &mut budget)?;
    let mut found = Vec::new();
    let mut waiting = vec![to.clone()];
    while let Some(directory) = waiting.pop() {
        for entry in fs::read_dir(directory).expect("read").flatten() {
            match entry.path().is_dir() {
                true => waiting.push(entry.path()),
                false => {
                    let mode = entry.metadata().expect("metadata").permissions().mode() & 0o777;
                    let path = entry.path().strip_prefix(&to).expect("below").display().to_string();
                    found.push(format!("{mode:o} {path}"));
                }
            }
        }
    }
    found.sort();
    Ok(found)
}

#[test]
fn a_wheel_is_unpacked_as_an_installer_does_without_its_scripts() {
    let files = [
        ("x/__init__.py", 0o644, "1"),
        ("x/tool", 0o755, "2"),
        ("x-1.data/purelib/y.py", 0o644, "3"),
        ("x-1.data/scripts/run", 0o755, "4"),
        ("x-1.dist-info/METADATA", 0o644, "5"),
    ];
    let found = unpacked(&files, WheelBudget::default()).expect("unpacked");
    assert_eq!(found, ["644 x-1.dist-info/METADATA", "644 x/__init__.py", "644 y.py", "755 x/tool"]);
}

#[test]
fn a_wheel_that_leads_out_or_fills_the_disk_is_refused() {
    let refused = |files: &[WheelFile<'_>], budget: WheelBudget| {
        let error = unpacked(files, budget).expect_err("refused");
        assert_eq!(code_of(&error), error_code::WHEEL_REFUSED);
        error.to_string()
    };
    for (path, reason) in [("../x", "`..`"), ("/etc/x", "absolute"), ("x//y", "empty part")] {
        let message = refused(&[(path, 0o644, "")], WheelBudget::default());
        assert!(message.contains(reason), "{message}");
    }
    let small = |entries, bytes| WheelBudget { entries, bytes };
    let files = [("a", 0o644, "12345"), ("b", 0o644, "67890")];
    refused(&files, small(1, 100));
    refused(&files, small(10, 9));
    assert_eq!(unpacked(&files, small(2, 10)).expect("unpacked").len(), 2);
    // A second wheel may not replace a file of the first: neither order would be the requirements' own.
    let twice = [("x-1.data/purelib/a", 0o644, ""), ("a", 0o644, "")];
    assert!(refused(&twice, WheelBudget::default()).contains("exists"));
}

#[tokio::test]
async fn a_wheel_is_taken_by_its_hash_alone() {
    let directory = tempfile::tempdir().expect("a directory");
    let at = |name: &str| directory.path().join(name);
    wheel(&at("My_Pkg-1.0-py3-none-any.whl"), &[("a", 0o644, "right")]);
    wheel(&at("other-1.0-py3-none-any.whl"), &[("a", 0o644, "other")]);
    let hash = |name: &str| hex::encode(digest(&SHA256, &fs::read(at(name)).expect("read")));
    let right = hash("My_Pkg-1.0-py3-none-any.whl");
    let find = async |line: String, from: Option<&Path>| {
        let requirements = parse_requirements(&line).expect("pinned");
        find_wheels(&requirements, from, directory.path()).await
    };
    let line = |hash: &str| format!("my.pkg==1.0 --hash=sha256:{hash}");
    let found = find(line(&right), Some(directory.path())).await.expect("found");
    assert_eq!(found, [at("My_Pkg-1.0-py3-none-any.whl")]);
    let others = hash("other-1.0-py3-none-any.whl");
    for (line, from) in [
        (line(&others), Some(directory.path())),
        (line(&right), None),
        (format!("absent==1 --hash=sha256:{right}"), Some(directory.path())),
    ] {
        let error = find(line, from).await.expect_err("refused");
        assert_eq!(code_of(&error), error_code::WHEEL_REFUSED);
    }
    fs::copy(at("My_Pkg-1.0-py3-none-any.whl"), at("my.pkg-1.0-1-py3-none-any.whl")).expect("copied");
    let error = find(line(&right), Some(directory.path())).await.expect_err("ambiguous");
    assert!(error.to_string().contains("keep one"), "{error:#}");
}

#[tokio::test]
async fn a_wheel_is_downloaded_from_the_url_that_its_requirement_names() {
    let directory = tempfile::tempdir().expect("a directory");
    let app = axum::Router::new().route("/x-1.whl", axum::routing::get(async || "wheel"));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let server = tokio::spawn(async move { axum::serve(listener, app).await });
    let find = async |path: &str, hash: String, to: &str| {
        let line = format!("x @ http://{address}/{path} --hash=sha256:{hash}");
        let requirements = parse_requirements(&line).expect("pinned");
        let to = directory.path().join(to);
        fs::create_dir(&to).expect("created");
        find_wheels(&requirements, None, &to).await
    };
    let right = hex::encode(digest(&SHA256, b"wheel"));
    let found = find("x-1.whl", right.clone(), "right").await.expect("downloaded");
    assert_eq!(fs::read(&found[0]).expect("read"), b"wheel");
    for (path, hash, to) in [("x-1.whl", "0".repeat(64), "wrong"), ("none.whl", right, "missing")] {
        let error = find(path, hash, to).await.expect_err("refused");
        assert_eq!(code_of(&error), error_code::WHEEL_REFUSED);
    }
    server.abort();
}
