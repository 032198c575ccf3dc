//! Reader of container images: one archive by `docker save`, or of an OCI image layout.
//!
//! The archive is read twice: first its table of members, whose contents are skipped, then each layer in its
//! order. No link of the archive is followed, except that a layer of an old `docker save` may be a link to
//! another member. Digests of blobs and of unpacked layers are compared; the manifest and the configuration
//! of an OCI layout are compared too, so the digest in `index.json` names everything that is read.

use super::builder::Spool;
use super::error::{InputFailure, unreadable};
use super::layer::{ExpectedLayer, LayerBudget, apply};
use super::tar::{TarKind, TarReader};
use super::tree::FileTree;
use super::{ArtifactError, ArtifactLimits};
use aws_lc_rs::digest::{SHA256, digest};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Maximum size of a JSON document of an image in bytes: manifests have kilobytes.
const DOCUMENT_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// Maximum number of indexes above a manifest: an index in `index.json`, and one to spare.
const INDEX_DEPTH_MAX: usize = 3;
/// Size of the buffer in front of the archive in bytes.
const BUFFER_BYTES: usize = 64 * 1024;

/// Start of an image's program.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ImageStart {
    /// Entry point, and the arguments after it; empty if the image names none.
    pub command: Vec<String>,
    /// Environment variables.
    pub environment: BTreeMap<String, String>,
    /// Absolute path; `/` if the image names none.
    pub working_directory: String,
    /// Processor, as OCI names it.
    pub architecture: String,
    /// Notes for the operator on what was left out, as sentences.
    pub notes: Vec<String>,
}

/// Reference to a blob, with its digest and size.
#[derive(Debug, Deserialize)]
struct Descriptor {
    digest: String,
    size: u64,
    #[serde(default)]
    platform: Option<ImagePlatform>,
}

#[derive(Debug, Deserialize)]
struct ImagePlatform {
    architecture: String,
    os: String,
}

/// `index.json`, an index below it, or a manifest.
#[derive(Debug, Deserialize)]
struct LayoutDocument {
    #[serde(default)]
    manifests: Option<Vec<Descriptor>>,
    #[serde(default)]
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Option<Vec<Descriptor>>,
}

/// One image of `manifest.json`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct SavedImage {
    config: String,
    layers: Vec<String>,
}

/// Configuration of an image.
#[derive(Debug, Deserialize)]
struct ImageDocument {
    architecture: String,
    os: String,
    #[serde(default)]
    config: Option<ProcessDocument>,
    rootfs: LayerList,
}

#[derive(Debug, Deserialize)]
struct LayerList {
    diff_ids: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct ProcessDocument {
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    env: Option<Vec<String>>,
    working_dir: Option<String>,
    user: Option<String>,
}

/// Range of a file, as a reader.
struct MemberReader<'a> {
    file: &'a File,
    at: u64,
    end: u64,
}

impl Read for MemberReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = buffer.len().min(usize::try_from(self.end - self.at).unwrap_or(usize::MAX));
        let read = self.file.read_at(&mut buffer[..most], self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

/// The members of an image's archive.
struct ImageArchive<'a> {
    path: &'a Path,
    file: File,
    /// First byte and length of each regular file.
    members: BTreeMap<String, (u64, u64)>,
    /// Targets of links, as the archive names members.
    links: BTreeMap<String, String>,
}

/// Applies an image's layers to the tree, and returns how it starts.
pub(super) fn read(
    path: &Path,
    architecture: Option<&str>,
    tree: &mut FileTree,
    spool: &mut Spool,
    limits: &ArtifactLimits,
) -> Result<ImageStart, ArtifactError> {
    let archive = ImageArchive::open(path, limits)?;
    let (config, layers) = archive.image(architecture)?;
    let diff_ids = &config.rootfs.diff_ids;
    if config.os != "linux" {
        return Err(archive.refused(format!("the image is for `{}`", config.os.escape_debug())));
    }
    if let Some(wanted) = architecture.filter(|wanted| *wanted != config.architecture) {
        let of = config.architecture.escape_debug();
        return Err(archive.refused(format!("the image is for `{of}`, not `{wanted}`")));
    }
    if layers.len() != diff_ids.len() {
        let (layers, named) = (layers.len(), diff_ids.len());
        return Err(archive.refused(format!("it has {layers} layers, and its configuration names {named}")));
    }
    if layers.len() > limits.layers {
        let reason = format!("{} layers, more than {}", layers.len(), limits.layers);
        return Err(ArtifactError::TooLarge { reason });
    }
    let mut budget = LayerBudget::new(limits);
    for (number, layer) in layers.iter().enumerate() {
        let input = archive.member(&layer.member)?;
        apply(input, layer, tree, spool, &mut budget).map_err(|failure| match failure {
            InputFailure::Refused(error) => error,
            InputFailure::Unread(error) => archive.unread(&format!("layer {}", number + 1), error),
        })?;
    }
    Ok(start_of(config))
}

/// Returns the start that a configuration describes.
fn start_of(config: ImageDocument) -> ImageStart {
    let process = config.config.unwrap_or_default();
    let words = [process.entrypoint, process.cmd];
    let mut notes = Vec::new();
    if let Some(user) = process.user.filter(|user| !user.is_empty()) {
        notes.push(format!("the image's user `{}` is left out; a sandbox has one user", user.escape_debug()));
    }
    let variable = |text: String| match text.split_once('=') {
        Some((name, value)) => (name.to_string(), value.to_string()),
        None => (text, String::new()),
    };
    let directory = process.working_dir.unwrap_or_default();
    let directory = directory.trim_matches('/');
    ImageStart {
        command: words.into_iter().flatten().flatten().collect(),
        environment: process.env.into_iter().flatten().map(variable).collect(),
        working_directory: format!("/{directory}"),
        architecture: config.architecture,
        notes,
    }
}

impl<'a> ImageArchive<'a> {
    /// Reads the table of members.
    fn open(path: &'a Path, limits: &ArtifactLimits) -> Result<Self, ArtifactError> {
        let open = || File::open(path).map_err(unreadable(path));
        let mut archive = Self { path, file: open()?, members: BTreeMap::new(), links: BTreeMap::new() };
        let input = BufReader::with_capacity(BUFFER_BYTES, open()?);
        let skip = |input: &mut BufReader<File>, bytes: u64| match i64::try_from(bytes) {
            Ok(bytes) => input.seek_relative(bytes),
            Err(_) => Err(io::ErrorKind::InvalidData.into()),
        };
        let mut reader = TarReader::with_skip(input, skip);
        loop {
            let entry = reader.next_entry().map_err(|error| archive.unread("the archive", error))?;
            let Some(entry) = entry else { return Ok(archive) };
            let name = entry.path.strip_prefix("./").unwrap_or(&entry.path).to_string();
            if archive.members.len() + archive.links.len() >= limits.members {
                let reason = format!("the image has more than {} members", limits.members);
                return Err(ArtifactError::TooLarge { reason });
            }
            let is_new = match entry.kind {
                TarKind::File => archive.members.insert(name.clone(), (entry.offset, entry.length)).is_none(),
                TarKind::Symlink(target) | TarKind::HardLink(target) => {
                    archive.links.insert(name.clone(), member_of(&name, &target)).is_none()
                }
                TarKind::Directory => true,
                TarKind::Device(kind) => return Err(ArtifactError::Device { path: name, kind }),
            };
            if !is_new {
                return Err(archive.refused(format!("member `{}` appears twice", name.escape_debug())));
            }
        }
    }

    fn refused(&self, reason: String) -> ArtifactError {
        ArtifactError::Image { path: self.path.to_path_buf(), reason }
    }

    /// Names what was read when an error came. A form that is wrong is the image's fault.
    fn unread(&self, what: &str, error: io::Error) -> ArtifactError {
        use io::ErrorKind::{InvalidData, InvalidInput, UnexpectedEof};
        match error.kind() {
            InvalidData | InvalidInput | UnexpectedEof => self.refused(format!("{what}: {error}")),
            _ => unreadable(self.path)(error),
        }
    }

    /// Returns a reader of a member.
    fn member(&self, name: &str) -> Result<MemberReader<'_>, ArtifactError> {
        let found = self.members.get(name).or_else(|| self.members.get(self.links.get(name)?));
        let Some((at, length)) = found else {
            return Err(self.refused(format!("there is no member `{}`", name.escape_debug())));
        };
        let end = at.checked_add(*length).unwrap_or(u64::MAX);
        Ok(MemberReader { file: &self.file, at: *at, end })
    }

    /// Reads a member that is small.
    fn bytes(&self, name: &str) -> Result<Vec<u8>, ArtifactError> {
        let range = self.member(name)?;
        let length = range.end - range.at;
        if length > DOCUMENT_BYTES_MAX {
            return Err(self.refused(format!("`{}` has {length} bytes", name.escape_debug())));
        }
        let mut bytes = Vec::new();
        let read = range.take(length).read_to_end(&mut bytes);
        match read.map_err(|error| self.unread(name, error))? as u64 == length {
            true => Ok(bytes),
            false => Err(self.refused(format!("`{}` ends early", name.escape_debug()))),
        }
    }

    fn document<T: DeserializeOwned>(&self, name: &str, bytes: &[u8]) -> Result<T, ArtifactError> {
        let wrong = |error: serde_json::Error| self.refused(format!("`{}`: {error}", name.escape_debug()));
        serde_json::from_slice(bytes).map_err(wrong)
    }

    /// Reads a blob of an OCI layout, and compares its digest and size.
    fn blob<T: DeserializeOwned>(&self, descriptor: &Descriptor) -> Result<T, ArtifactError> {
        let name = self.blob_name(descriptor)?;
        let bytes = self.bytes(&name)?;
        if bytes.len() as u64 != descriptor.size || hex_of(&bytes) != descriptor.digest {
            return Err(self.refused(format!("`{name}` has another size or digest than the image states")));
        }
        self.document(&name, &bytes)
    }

    fn blob_name(&self, descriptor: &Descriptor) -> Result<String, ArtifactError> {
        let hex = descriptor.digest.strip_prefix("sha256:");
        let is_hex =
            |hex: &&str| hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        match hex.filter(is_hex) {
            Some(hex) => Ok(format!("blobs/sha256/{hex}")),
            None => Err(self.refused(format!("`{}` is no SHA-256", descriptor.digest.escape_debug()))),
        }
    }

    /// Returns the configuration of the image, and its layers.
    fn image(
        &self,
        architecture: Option<&str>,
    ) -> Result<(ImageDocument, Vec<ExpectedLayer>), ArtifactError> {
        if self.members.contains_key("index.json") {
            return self.oci_image(architecture.unwrap_or(this_architecture()));
        }
        if !self.members.contains_key("manifest.json") {
            let reason = "it has neither `index.json` (OCI image layout) nor `manifest.json` (`docker save`)";
            return Err(self.refused(reason.into()));
        }
        let images: Vec<SavedImage> = self.document("manifest.json", &self.bytes("manifest.json")?)?;
        let [image] = images.as_slice() else {
            return Err(self.refused(format!("it holds {} images, not one", images.len())));
        };
        let config: ImageDocument = self.document(&image.config, &self.bytes(&image.config)?)?;
        let layer = |(member, diff_id): (&String, &String)| ExpectedLayer {
            member: member.clone(),
            digest: None,
            length: None,
            diff_id: diff_id.clone(),
        };
        let layers = image.layers.iter().zip(&config.rootfs.diff_ids).map(layer).collect();
        if image.layers.len() != config.rootfs.diff_ids.len() {
            let (layers, named) = (image.layers.len(), config.rootfs.diff_ids.len());
            return Err(self.refused(format!("it has {layers} layers, and its configuration names {named}")));
        }
        Ok((config, layers))
    }

    fn oci_image(&self, architecture: &str) -> Result<(ImageDocument, Vec<ExpectedLayer>), ArtifactError> {
        let mut document: LayoutDocument = self.document("index.json", &self.bytes("index.json")?)?;
        for _ in 0..INDEX_DEPTH_MAX {
            let Some(manifests) = &document.manifests else { break };
            document = self.blob(self.choose(manifests, architecture)?)?;
        }
        let (Some(config), Some(layers)) = (&document.config, &document.layers) else {
            return Err(self.refused("no manifest of an image was found below `index.json`".into()));
        };
        let config: ImageDocument = self.blob(config)?;
        let diff_ids = config.rootfs.diff_ids.iter().map(Some).chain(std::iter::repeat(None));
        let layer = |(descriptor, diff_id): (&Descriptor, Option<&String>)| -> Result<_, ArtifactError> {
            Ok(ExpectedLayer {
                member: self.blob_name(descriptor)?,
                digest: Some(descriptor.digest.clone()),
                length: Some(descriptor.size),
                diff_id: diff_id.cloned().unwrap_or_default(),
            })
        };
        let layers: Result<Vec<ExpectedLayer>, ArtifactError> =
            layers.iter().zip(diff_ids).map(layer).collect();
        Ok((config, layers?))
    }

    /// Returns the one manifest for this processor. A manifest without a platform is for any.
    fn choose<'b>(
        &self,
        manifests: &'b [Descriptor],
        architecture: &str,
    ) -> Result<&'b Descriptor, ArtifactError> {
        let fits = |descriptor: &&Descriptor| {
            let platform = descriptor.platform.as_ref();
            platform.is_none_or(|at| at.os == "linux" && at.architecture == architecture)
        };
        let fitting: Vec<&Descriptor> = manifests.iter().filter(fits).collect();
        match fitting.as_slice() {
            [one] => Ok(*one),
            found => {
                let (found, all) = (found.len(), manifests.len());
                Err(self
                    .refused(format!("{found} of its {all} images are for linux/{architecture}, not one")))
            }
        }
    }
}

/// Returns the name of this machine's processor, as OCI names it.
fn this_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Returns the member that a link of an archive names: a symbolic link is read from its own directory, and a
/// hard link has no `..`.
fn member_of(name: &str, target: &str) -> String {
    let mut parts: Vec<&str> = name.split('/').collect();
    parts.pop();
    if !target.starts_with("../") {
        return target.strip_prefix("./").unwrap_or(target).to_string();
    }
    for part in target.split('/') {
        match part {
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join("/")
}

fn hex_of(bytes: &[u8]) -> String {
    let hex: String = digest(&SHA256, bytes).as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}
