//! Builds of artifacts from files of this machine: a program, or an interpreter of Python with pinned wheels.
//!
//! Nothing is executed: shared libraries are found by reading ELF headers, and wheels are unpacked, never
//! installed. A library that the loader would find on its own paths keeps its path; every other one goes to
//! [`LIBRARIES`], which the environment names.

mod requirements;
mod wheels;

pub(crate) use requirements::{REQUIREMENTS_BYTES_MAX, parse_requirements};
pub(crate) use wheels::{WheelBudget, find_wheels, unpack_wheel};

use anyhow::{Context as _, Result};
use model_store::{ArtifactBuilder, ArtifactError};
use protocol::artifact::ArtifactStart;
use protocol::{ErrorCode, Refusal, error_code};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Directory of libraries that the loader would not find on its own paths.
const LIBRARIES: &str = "usr/local/lib";
/// Directory of unpacked wheels.
const PACKAGES: &str = "opt/packages";
/// Directory of the user's own files.
const APPLICATION: &str = "app";
/// Directories that every loader searches.
const LOADER_DIRECTORIES: [&str; 4] = ["/lib/", "/lib64/", "/usr/lib/", "/usr/lib64/"];
/// The loader's table of libraries. It is made for this machine, and the environment replaces it.
const LOADER_CACHE: &str = "/etc/ld.so.cache";
/// Parts of a standard library that are left out: caches with times, other packages, its own tests, and a
/// static library.
const LEFT_OUT: [&str; 5] = ["__pycache__", "site-packages", "dist-packages", "test", "config-3"];

/// Files of this machine that go into an artifact.
pub(crate) struct HostFiles<'a> {
    builder: &'a mut ArtifactBuilder,
    /// Paths of the tree that are left out, with everything below them.
    exclude: &'a [String],
    /// Directory of files that are added by another path, and whose libraries are in the tree.
    own: PathBuf,
    /// Names of these files. One that has loaded a library serves every later file that needs the name.
    own_names: BTreeSet<OsString>,
    /// Libraries that were added, by their path on this machine.
    libraries: BTreeSet<PathBuf>,
    has_other_libraries: bool,
}

/// Inputs of `--python`.
pub(crate) struct PythonBuild<'a> {
    /// Interpreter on this machine.
    pub(crate) interpreter: &'a Path,
    /// Directory of unpacked wheels.
    pub(crate) packages: &'a Path,
}

pub(crate) fn refusal(error: &ArtifactError) -> Refusal {
    Refusal::of(error.code(), error)
}

fn refused(code: ErrorCode, message: String) -> anyhow::Error {
    Refusal::new(code, message).into()
}

impl<'a> HostFiles<'a> {
    /// Starts a build whose unpacked wheels are below `own`.
    pub(crate) fn new(builder: &'a mut ArtifactBuilder, exclude: &'a [String], own: &Path) -> Result<Self> {
        let mut own_names = BTreeSet::new();
        gather_names(own, &mut own_names).with_context(|| format!("read `{}`", own.display()))?;
        Ok(Self {
            builder,
            exclude,
            own: own.to_path_buf(),
            own_names,
            libraries: BTreeSet::new(),
            has_other_libraries: false,
        })
    }

    /// Adds a program with the libraries that it needs, and returns how it starts.
    pub(crate) fn add_program(&mut self, program: &Path) -> Result<ArtifactStart> {
        let name = program.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let path = format!("usr/local/bin/{name}");
        self.add_file(&path, program)?;
        Ok(self.start(vec![format!("/{path}")], BTreeMap::new()))
    }

    /// Adds an interpreter with its standard library and unpacked wheels, and returns how it starts.
    pub(crate) fn add_python(&mut self, build: &PythonBuild<'_>) -> Result<ArtifactStart> {
        let interpreter = fs::canonicalize(build.interpreter)
            .with_context(|| format!("find the interpreter `{}`", build.interpreter.display()))?;
        let name = interpreter.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_string();
        let is_version = |rest: &str| rest.starts_with("3.") && rest[2..].bytes().all(|b| b.is_ascii_digit());
        if !name.strip_prefix("python").is_some_and(is_version) {
            let message = format!("`{}` is not named like `python3.11`", interpreter.display());
            return Err(refused(error_code::ARTIFACT_BUILD_REFUSED, message));
        }
        let prefix = interpreter.parent().and_then(Path::parent).unwrap_or(Path::new("/"));
        let library = prefix.join("lib").join(&name);
        if !library.join("os.py").is_file() {
            let message = format!("`{}` has no standard library: no os.py", library.display());
            return Err(refused(error_code::ARTIFACT_BUILD_REFUSED, message));
        }
        self.add_file(&format!("usr/bin/{name}"), &interpreter)?;
        self.builder.add_link("usr/bin/python3", &name).map_err(|error| refusal(&error))?;
        self.add_directory(&format!("usr/lib/{name}"), &library, &LEFT_OUT)?;
        self.add_directory(PACKAGES, build.packages, &["__pycache__"])?;
        let environment = BTreeMap::from([
            ("PYTHONPATH".to_string(), format!("/{PACKAGES}")),
            ("PYTHONDONTWRITEBYTECODE".to_string(), "1".to_string()),
        ]);
        Ok(self.start(vec![format!("/usr/bin/{name}")], environment))
    }

    /// Adds the user's own file or directory below `/app`.
    pub(crate) fn add_application(&mut self, path: &Path) -> Result<()> {
        let metadata = fs::metadata(path).with_context(|| format!("read `{}`", path.display()))?;
        if metadata.is_dir() {
            return self.add_directory(APPLICATION, path, &["__pycache__", ".git"]);
        }
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        self.add_file(&format!("{APPLICATION}/{name}"), path)
    }

    fn start(&self, command: Vec<String>, mut environment: BTreeMap<String, String>) -> ArtifactStart {
        environment.insert("PATH".into(), "/usr/local/bin:/usr/bin:/bin".into());
        if self.has_other_libraries {
            environment.insert("LD_LIBRARY_PATH".into(), format!("/{LIBRARIES}"));
        }
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        ArtifactStart {
            command,
            environment,
            working_directory: "/".into(),
            architecture: architecture.into(),
        }
    }

    fn is_excluded(&self, path: &str) -> bool {
        let below = |excluded: &String| {
            let excluded = excluded.trim_matches('/');
            path.strip_prefix(excluded).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        self.exclude.iter().any(below)
    }

    /// Adds the content of a directory, without the names that begin with one of `left_out`. Links are
    /// followed to files only.
    fn add_directory(&mut self, path: &str, from: &Path, left_out: &[&str]) -> Result<()> {
        if self.is_excluded(path) {
            return Ok(());
        }
        self.builder.add_directory(path).map_err(|error| refusal(&error))?;
        let entries = fs::read_dir(from).with_context(|| format!("read `{}`", from.display()))?;
        for entry in entries {
            let entry = entry.with_context(|| format!("read `{}`", from.display()))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let is_left_out = |left: &&str| name == **left || left.ends_with('3') && name.starts_with(*left);
            if left_out.iter().any(is_left_out) {
                continue;
            }
            let (place, below) = (entry.path(), format!("{path}/{name}"));
            let kind = entry.file_type().with_context(|| format!("read `{}`", place.display()))?;
            if kind.is_dir() {
                self.add_directory(&below, &place, left_out)?;
            } else if fs::metadata(&place).is_ok_and(|metadata| metadata.is_file()) {
                self.add_file(&below, &place)?;
            } else {
                let message = format!("`{}` is neither a file nor a directory", place.display());
                return Err(refused(error_code::ARTIFACT_BUILD_REFUSED, message));
            }
        }
        Ok(())
    }

    /// Adds a file, and the libraries that it needs if it is a program or a library.
    fn add_file(&mut self, path: &str, from: &Path) -> Result<()> {
        if self.is_excluded(path) {
            return Ok(());
        }
        let reading = || format!("read `{}`", from.display());
        let mut file = File::open(from).with_context(reading)?;
        let metadata = file.metadata().with_context(reading)?;
        let mut head = Vec::new();
        (&mut file).take(4).read_to_end(&mut head).with_context(reading)?;
        let executable = metadata.permissions().mode() & 0o111 != 0;
        let input = head.as_slice().chain(&mut file);
        let added = self.builder.add_file(path, executable, input, metadata.len(), from);
        added.map_err(|error| refusal(&error))?;
        if head == *b"\x7fELF" { self.add_libraries(from) } else { Ok(()) }
    }

    fn add_libraries(&mut self, of: &Path) -> Result<()> {
        let is_loaded = |name: &Path| of.starts_with(&self.own) && self.own_names.contains(name.as_os_str());
        let needed = sandbox::libraries_beside(of, &is_loaded).map_err(|error| {
            refused(error_code::ARTIFACT_BUILD_REFUSED, format!("`{}`: {error}", of.display()))
        })?;
        for library in needed {
            let is_known = library.starts_with(&self.own) || library == Path::new(LOADER_CACHE);
            if is_known || !self.libraries.insert(library.clone()) {
                continue;
            }
            let shown = library.to_string_lossy();
            let is_standard = LOADER_DIRECTORIES.iter().any(|directory| shown.starts_with(*directory));
            let path = match library.file_name().filter(|_| !is_standard) {
                Some(name) => {
                    self.has_other_libraries = true;
                    format!("{LIBRARIES}/{}", name.to_string_lossy())
                }
                None => shown.trim_start_matches('/').to_string(),
            };
            // The libraries of a library are in the same list.
            let file = File::open(&library).with_context(|| format!("read `{shown}`"))?;
            let length = file.metadata().with_context(|| format!("read `{shown}`"))?.len();
            let added = self.builder.add_file(&path, true, file, length, &library);
            added.map_err(|error| refusal(&error))?;
        }
        Ok(())
    }
}

/// Adds the names of all files below a directory.
fn gather_names(directory: &Path, names: &mut BTreeSet<OsString>) -> std::io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            gather_names(&entry.path(), names)?;
        } else {
            names.insert(entry.file_name());
        }
    }
    Ok(())
}

/// Returns the file of this name on the `PATH` of this process.
pub(crate) fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|directory| directory.join(name)).find(|file| file.is_file())
}

#[cfg(test)]
mod tests;
