//! Contexts: the cluster, access token and member that the command line uses.
//!
//! A context is a file that holds paths to secrets, never secrets. Those of a user have names, and live in
//! one folder; one of them is chosen. `--context` and `$QUORATE_CONTEXT` select another for one command or
//! one shell: a value with a slash or the ending `.json` is a file, any other is a name. No command replaces
//! a file that it did not make: a context pins a circle, and another one in its place would pin another
//! circle.

use crate::client::ControlClient;
use crate::head::HeadFile;
use anyhow::{Context as _, Result, bail};
use host::files;
use protocol::{CircleId, Refusal, error_code};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Maximum length of a context's name.
const NAME_BYTES_MAX: usize = 63;
/// File in the user's folder that holds the name of the chosen context.
const CHOSEN: &str = "chosen-context";
/// Maximum length of that file in bytes: a name and a line break.
const CHOSEN_BYTES_MAX: usize = NAME_BYTES_MAX + 1;
/// Ending of a context's file.
const EXTENSION: &str = "json";

/// A context file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Context {
    /// Name of the cluster, for people.
    pub name: String,
    /// The pinned circle: everything that a server sends is verified against it.
    pub circle: CircleId,
    /// Base URLs of the control replicas' APIs.
    pub control: Vec<String>,
    /// Base URL of a gateway's OpenAI API.
    pub gateway: Option<String>,
    /// File with the access token.
    pub token_file: PathBuf,
    /// File with this member's key, if the user is a member.
    pub member_key_file: Option<PathBuf>,
    /// State directory of a node on this machine, through which models are imported.
    pub node_directory: Option<PathBuf>,
    /// PEM file of the authority that signed the replicas' API certificates; without one the system's
    /// authorities are trusted.
    pub certificate_authority_file: Option<PathBuf>,
    /// File from which the context was read; it is not part of the file.
    #[serde(skip)]
    pub file: PathBuf,
}

impl Context {
    /// Reads the context that an option asks for, else that of [`VARIABLE`], else the chosen one.
    ///
    /// # Errors
    /// Fails with `context-missing` if there is none, and returns an error that names an invalid file.
    pub fn load(asked: Option<&Path>) -> Result<Self> {
        let folder = ContextFolder::of_user();
        let variable = std::env::var_os(VARIABLE).map(PathBuf::from);
        match asked.map(Path::to_path_buf).or(variable) {
            Some(asked) => Self::read(&folder.resolve(&asked)?),
            None => Self::read(&folder.path(&folder.chosen_or_refuse()?)),
        }
    }

    /// Reads a context file; its relative paths begin at the file's directory.
    ///
    /// # Errors
    /// Fails with `context-missing` if there is no such file, and returns an error that names an invalid one.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| {
            let message = format!(
                "read context `{}` (`quorate up` creates one; `quorate context list` shows the others)",
                path.display()
            );
            Refusal::new(error_code::CONTEXT_MISSING, message)
        })?;
        let mut context: Self =
            serde_json::from_str(&text).with_context(|| format!("context `{}`", path.display()))?;
        context.file = path.to_path_buf();
        let base = path.parent().unwrap_or(Path::new("."));
        context.token_file = base.join(&context.token_file);
        context.member_key_file = context.member_key_file.map(|file| base.join(file));
        context.node_directory = context.node_directory.map(|directory| base.join(directory));
        context.certificate_authority_file = context.certificate_authority_file.map(|file| base.join(file));
        Ok(context)
    }

    /// Returns the record of the highest head of this context's circle.
    #[must_use]
    pub fn head_file(&self) -> HeadFile {
        HeadFile::beside(&self.file, self.circle)
    }

    /// Creates a client for what carries a member's signature in place of an access token. It has this
    /// context's token if there is one.
    ///
    /// # Errors
    /// As [`Context::client`], but for a missing token.
    pub fn client_for_signed(&self) -> Result<ControlClient> {
        if self.token_file.exists() { self.client() } else { self.client_with(String::new()) }
    }

    /// Creates a client with this context's token.
    ///
    /// # Errors
    /// Returns an error if the token's or the certificate authority's file cannot be read.
    pub fn client(&self) -> Result<ControlClient> {
        let token = std::fs::read_to_string(&self.token_file)
            .with_context(|| format!("read token `{}`", self.token_file.display()))?;
        self.client_with(token.trim().to_string())
    }

    fn client_with(&self, token: String) -> Result<ControlClient> {
        if self.control.is_empty() {
            bail!("the context lists no control replica");
        }
        let authority = self.certificate_authority_file.as_deref().map(read_authority).transpose()?;
        ControlClient::new(self.control.clone(), token, authority)
            .context("create a client of the control API")
    }
}

fn read_authority(path: &Path) -> Result<reqwest::Certificate> {
    let pem = std::fs::read(path).with_context(|| format!("read `{}`", path.display()))?;
    reqwest::Certificate::from_pem(&pem)
        .with_context(|| format!("`{}` is not a certificate in PEM", path.display()))
}

/// Environment variable that selects the context of one shell, by name or by file; it takes precedence over
/// the chosen one.
pub const VARIABLE: &str = "QUORATE_CONTEXT";

/// Name of a context in a user's folder: 1 to 63 characters, `a-z 0-9 - _`. A dot or a slash makes a value a
/// file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct ContextName(String);

impl std::str::FromStr for ContextName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let ok = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || b"-_".contains(&c);
        if (1..=NAME_BYTES_MAX).contains(&text.len()) && text.bytes().all(ok) {
            return Ok(Self(text.to_string()));
        }
        let rule = "the name of a context has 1 to 63 of a-z, 0-9, `-` and `_`";
        Err(format!("{rule}; `quorate context add NAME --file FILE` gives a file a name"))
    }
}

impl std::fmt::Display for ContextName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(&self.0)
    }
}

/// The folder with a user's contexts, and the choice of one of them.
#[derive(Debug, Clone)]
pub struct ContextFolder {
    root: PathBuf,
}

impl ContextFolder {
    /// Returns the user's folder: `$XDG_CONFIG_HOME/quorate`, or `~/.config/quorate`.
    #[must_use]
    pub fn of_user() -> Self {
        let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".config"));
        let base = std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from).or_else(home);
        Self::at(base.unwrap_or_default().join("quorate"))
    }

    fn at(root: PathBuf) -> Self {
        Self { root }
    }

    fn contexts(&self) -> PathBuf {
        self.root.join("contexts")
    }

    /// Returns the file of the context with this name.
    #[must_use]
    pub fn path(&self, name: &ContextName) -> PathBuf {
        self.contexts().join(format!("{name}.{EXTENSION}"))
    }

    /// Returns the file that an option or a variable means.
    fn resolve(&self, asked: &Path) -> Result<PathBuf> {
        let is_file = asked.components().count() > 1 || asked.extension().is_some_and(|e| e == EXTENSION);
        if is_file {
            return Ok(asked.to_path_buf());
        }
        let name = asked.to_str().unwrap_or_default().parse::<ContextName>();
        let refuse =
            |reason| Refusal::new(error_code::CONTEXT_MISSING, format!("`{}`: {reason}", asked.display()));
        Ok(self.path(&name.map_err(refuse)?))
    }

    /// Returns the names of all contexts, sorted.
    ///
    /// # Errors
    /// Errors of the disk; no folder is no error.
    pub fn names(&self) -> Result<Vec<ContextName>> {
        let entries = match std::fs::read_dir(self.contexts()) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error).with_context(|| format!("read `{}`", self.contexts().display())),
        };
        let mut names = Vec::new();
        for entry in entries {
            let path = entry?.path();
            let stem = path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.parse().ok());
            names.extend(stem.filter(|name| self.path(name) == path));
        }
        names.sort();
        Ok(names)
    }

    /// Returns the name of the chosen context; none if none was chosen.
    ///
    /// # Errors
    /// Errors of the disk, and a damaged choice.
    pub fn chosen(&self) -> Result<Option<ContextName>> {
        let path = self.root.join(CHOSEN);
        let place = || format!("read `{}`", path.display());
        let Some(bytes) = files::read(&path, CHOSEN_BYTES_MAX).with_context(place)? else { return Ok(None) };
        let name = String::from_utf8_lossy(&bytes).trim().parse();
        name.map(Some).map_err(anyhow::Error::msg).with_context(place)
    }

    fn chosen_or_refuse(&self) -> Result<ContextName> {
        let message = "no context is chosen; `quorate up` creates one, `quorate context list` shows all, and \
                       `quorate context use NAME` chooses";
        self.chosen()?.ok_or_else(|| Refusal::new(error_code::CONTEXT_MISSING, message).into())
    }

    /// Makes a context the chosen one.
    ///
    /// # Errors
    /// Fails with `context-missing` if there is no such context.
    pub fn choose(&self, name: &ContextName) -> Result<Context> {
        let context = Context::read(&self.path(name))?;
        let path = self.root.join(CHOSEN);
        files::write_atomically(&path, format!("{name}\n").as_bytes(), 0o644)
            .with_context(|| format!("write `{}`", path.display()))?;
        Ok(context)
    }

    /// Adds a context. Its paths become absolute, since they would begin at another directory here.
    ///
    /// # Errors
    /// Fails with `context-exists` if there is a context of this name.
    pub fn add(&self, name: &ContextName, mut context: Context) -> Result<PathBuf> {
        context.token_file = absolute(context.token_file);
        context.member_key_file = context.member_key_file.map(absolute);
        context.node_directory = context.node_directory.map(absolute);
        context.certificate_authority_file = context.certificate_authority_file.map(absolute);
        let path = self.path(name);
        let place = || format!("write `{}`", path.display());
        files::private_directory(&self.contexts()).with_context(place)?;
        match files::create_new(&path, &serde_json::to_vec_pretty(&context)?, 0o644) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                let message =
                    format!("there is a context `{name}`; `quorate context remove {name}` removes it");
                Err(Refusal::new(error_code::CONTEXT_EXISTS, message).into())
            }
            outcome => outcome.with_context(place).map(|()| path.clone()),
        }
    }

    /// Removes a context, and the choice of it. Keys, tokens and the record of the highest head stay.
    ///
    /// # Errors
    /// Fails with `context-missing` if there is no such context.
    pub fn remove(&self, name: &ContextName) -> Result<()> {
        if self.chosen()?.as_ref() == Some(name) {
            std::fs::remove_file(self.root.join(CHOSEN))?;
        }
        std::fs::remove_file(self.path(name)).with_context(|| {
            let message =
                format!("remove `{}` (`quorate context list` shows all)", self.path(name).display());
            Refusal::new(error_code::CONTEXT_MISSING, message)
        })
    }
}

/// Returns the path as it is found from any directory.
fn absolute(path: PathBuf) -> PathBuf {
    std::path::absolute(&path).unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::Digest;

    /// Writes a context with these control replicas and relative paths, and returns its path.
    fn write(directory: &Path, control: &[&str]) -> PathBuf {
        let context = Context {
            name: "lab".into(),
            circle: CircleId(Digest::of(b"circle")),
            control: control.iter().map(|url| (*url).to_string()).collect(),
            gateway: None,
            token_file: "token".into(),
            member_key_file: Some("keys/alice.key".into()),
            node_directory: Some("/var/node".into()),
            certificate_authority_file: Some("authority.pem".into()),
            file: PathBuf::new(),
        };
        let file = directory.join("lab.json");
        std::fs::write(&file, serde_json::to_vec(&context).expect("JSON")).expect("written");
        file
    }

    #[test]
    fn a_missing_context_is_refused_by_code_with_the_path_and_the_cause() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let file = directory.path().join("none.json");
        let error = Context::read(&file).expect_err("there is none");
        let refusal = error.downcast_ref::<Refusal>().expect("with a code");
        assert_eq!(refusal.code, error_code::CONTEXT_MISSING);
        assert!(
            refusal.message.contains("none.json") && refusal.message.contains("`quorate up`"),
            "{refusal}"
        );
        let cause = error.root_cause().downcast_ref::<std::io::Error>().expect("of the system");
        assert_eq!(cause.kind(), std::io::ErrorKind::NotFound);
    }

    #[test]
    fn relative_paths_begin_at_the_file() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let context = Context::read(&write(directory.path(), &["http://127.0.0.1:1"])).expect("valid");
        let inside = |path: &str| directory.path().join(path);
        assert_eq!(context.token_file, inside("token"));
        assert_eq!(context.member_key_file, Some(inside("keys/alice.key")));
        assert_eq!(context.node_directory, Some(PathBuf::from("/var/node")), "an absolute path stays");
        assert_eq!(context.certificate_authority_file, Some(inside("authority.pem")));
    }

    #[test]
    fn an_unknown_field_is_refused_and_named() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let file = write(directory.path(), &[]);
        let mut value: serde_json::Value =
            serde_json::from_slice(&std::fs::read(&file).expect("read")).expect("JSON");
        value["sky"] = "blue".into();
        std::fs::write(&file, value.to_string()).expect("written");
        let error = format!("{:#}", Context::read(&file).expect_err("unknown"));
        assert!(error.contains("lab.json") && error.contains("`sky`"), "{error}");
    }

    #[test]
    fn a_client_needs_a_token_a_replica_and_an_authority_in_pem() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let client = |control: &[&str]| {
            let context = Context::read(&write(directory.path(), control)).expect("valid");
            context.client().map(|_| ()).map_err(|error| format!("{error:#}"))
        };
        assert!(client(&[]).expect_err("no token").starts_with("read token"));
        std::fs::write(directory.path().join("token"), "secret\n").expect("written");
        assert_eq!(client(&[]), Err("the context lists no control replica".into()));
        assert!(client(&["https://10.0.0.1"]).expect_err("no authority").starts_with("read `"));
    }
    fn folder(directory: &Path) -> (ContextFolder, Context) {
        let context = Context::read(&write(directory, &["http://127.0.0.1:1"])).expect("valid");
        (ContextFolder::at(directory.join("config/quorate")), context)
    }

    fn name(text: &str) -> ContextName {
        text.parse().expect("a name")
    }

    fn code<T>(outcome: Result<T>) -> Option<protocol::ErrorCode> {
        outcome.err()?.downcast_ref::<Refusal>().map(|refusal| refusal.code)
    }

    #[test]
    fn contexts_are_added_listed_chosen_and_removed() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let (folder, context) = folder(directory.path());
        assert_eq!((folder.names().expect("none yet"), folder.chosen().expect("none yet")), (vec![], None));
        assert_eq!(code(folder.chosen_or_refuse()), Some(error_code::CONTEXT_MISSING));
        for wanted in ["lab", "attic"] {
            folder.add(&name(wanted), context.clone()).expect("added");
        }
        std::fs::write(folder.contexts().join("Not A Name.json"), "{}").expect("written");
        assert_eq!(folder.names().expect("read"), [name("attic"), name("lab")]);
        assert_eq!(code(folder.choose(&name("cellar"))), Some(error_code::CONTEXT_MISSING));
        let chosen = folder.choose(&name("lab")).expect("there is one");
        assert_eq!((&chosen.circle, &chosen.token_file), (&context.circle, &context.token_file));
        assert_eq!(folder.chosen_or_refuse().expect("chosen"), name("lab"));
        folder.remove(&name("lab")).expect("removed");
        assert_eq!(
            (folder.names().expect("read"), folder.chosen().expect("read")),
            (vec![name("attic")], None)
        );
        assert_eq!(code(folder.remove(&name("lab"))), Some(error_code::CONTEXT_MISSING));
    }

    /// Attack: another context under the name of one that pins a circle.
    #[test]
    fn a_context_is_never_overwritten() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let (folder, context) = folder(directory.path());
        let other = Context { circle: CircleId(Digest::of(b"another circle")), ..context.clone() };
        let path = folder.add(&name("lab"), context.clone()).expect("added");
        assert_eq!(code(folder.add(&name("lab"), other.clone())), Some(error_code::CONTEXT_EXISTS));
        assert_eq!(Context::read(&path).expect("valid").circle, context.circle);
        // Choosing writes the choice alone, and a file that was named is only read.
        folder.add(&name("other"), other.clone()).expect("added");
        folder.choose(&name("other")).expect("chosen");
        assert_eq!(Context::read(&path).expect("valid").circle, context.circle);
        // Positive control: a write that replaces a file pins the other circle.
        files::write_atomically(&path, &serde_json::to_vec(&other).expect("JSON"), 0o644).expect("replaced");
        assert_eq!(Context::read(&path).expect("valid").circle, other.circle);
    }

    #[test]
    fn a_value_with_a_slash_or_the_ending_is_a_file_and_any_other_a_name() {
        let folder = ContextFolder::at("/home/alice/.config/quorate".into());
        for (asked, expected) in [
            ("lab", "/home/alice/.config/quorate/contexts/lab.json"),
            ("lab.json", "lab.json"),
            ("./lab", "./lab"),
            ("/etc/lab", "/etc/lab"),
            (".quorate/demo/context.json", ".quorate/demo/context.json"),
        ] {
            assert_eq!(folder.resolve(Path::new(asked)).expect("a file or a name"), Path::new(expected));
        }
        for asked in ["Lab", "lab.toml", "", "two words"] {
            assert_eq!(code(folder.resolve(Path::new(asked))), Some(error_code::CONTEXT_MISSING), "{asked}");
        }
        for text in ["a/b", "..", "a.b", "A", "", &"x".repeat(64)] {
            assert!(text.parse::<ContextName>().is_err(), "{text}");
        }
    }
}
