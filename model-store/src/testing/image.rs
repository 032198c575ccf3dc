//! Writers of tar archives and container images, in which every part can be set wrong.

use serde_json::{Value, json};
use std::io::Write;

/// Writer of a tar archive.
#[derive(Debug, Clone, Default)]
pub(crate) struct TarWriter(pub(crate) Vec<u8>);

impl TarWriter {
    /// Appends an entry of this kind (`0` file, `1` hard link, `2` link, `5` directory, ...).
    pub(crate) fn entry(mut self, kind: u8, path: &str, link: &str, mode: u32, content: &[u8]) -> Self {
        if path.len() > 100 {
            self = self.entry(b'L', "././@LongLink", "", 0, path.as_bytes());
        }
        let mut block = [0; 512];
        let name = &path.as_bytes()[..path.len().min(100)];
        block[..name.len()].copy_from_slice(name);
        block[100..107].copy_from_slice(format!("{mode:07o}").as_bytes());
        block[124..135].copy_from_slice(format!("{:011o}", content.len()).as_bytes());
        block[156] = kind;
        block[157..157 + link.len()].copy_from_slice(link.as_bytes());
        block[257..263].copy_from_slice(b"ustar\0");
        self.0.extend(with_checksum(block));
        self.0.extend(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub(crate) fn file(self, path: &str, content: &[u8]) -> Self {
        self.entry(b'0', path, "", 0o644, content)
    }

    pub(crate) fn program(self, path: &str) -> Self {
        self.entry(b'0', path, "", 0o755, b"#!/bin/sh\n")
    }

    pub(crate) fn directory(self, path: &str) -> Self {
        self.entry(b'5', path, "", 0o755, b"")
    }

    pub(crate) fn link(self, path: &str, target: &str) -> Self {
        self.entry(b'2', path, target, 0o777, b"")
    }

    /// Returns the archive with its end.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.0.extend([0; 1024]);
        self.0
    }
}

/// Returns a header with its checksum.
pub(crate) fn with_checksum(mut block: [u8; 512]) -> [u8; 512] {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).expect("in memory");
    encoder.finish().expect("in memory")
}

fn sha256(bytes: &[u8]) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Writer of an image of these layers.
#[derive(Debug, Clone)]
pub(crate) struct ImageWriter {
    /// Layers as plain archives.
    pub(crate) layers: Vec<Vec<u8>>,
    /// `config` of the configuration.
    pub(crate) process: Value,
    /// Whether the layers of an OCI layout are compressed.
    pub(crate) is_compressed: bool,
    pub(crate) architecture: String,
}

impl ImageWriter {
    /// Returns an image of these layers, which starts `/bin/run`.
    pub(crate) fn new(layers: Vec<TarWriter>) -> Self {
        Self {
            layers: layers.into_iter().map(TarWriter::finish).collect(),
            process: json!({ "Entrypoint": ["/bin/run"], "Env": ["PATH=/bin"], "WorkingDir": "/srv" }),
            is_compressed: false,
            architecture: "amd64".into(),
        }
    }

    fn config(&self) -> Vec<u8> {
        let ids: Vec<String> = self.layers.iter().map(|layer| format!("sha256:{}", sha256(layer))).collect();
        let config = json!({
            "architecture": self.architecture, "os": "linux", "config": self.process, "history": [],
            "rootfs": { "type": "layers", "diff_ids": ids },
        });
        serde_json::to_vec(&config).expect("json")
    }

    /// Returns the archive that `docker save` writes.
    pub(crate) fn docker(&self) -> Vec<u8> {
        let config = self.config();
        let names: Vec<String> = (0..self.layers.len()).map(|number| format!("{number}/layer.tar")).collect();
        let manifest = json!([{ "Config": "config.json", "RepoTags": ["x:1"], "Layers": names }]);
        let mut archive = TarWriter::default();
        // A reader must not depend on the order of members.
        for (name, layer) in names.iter().zip(&self.layers).rev() {
            archive = archive.file(name, layer);
        }
        let manifest = serde_json::to_vec(&manifest).expect("json");
        archive.file("config.json", &config).file("manifest.json", &manifest).finish()
    }

    /// Returns the archive of an OCI image layout, below an index for two processors.
    pub(crate) fn oci(&self) -> Vec<u8> {
        let mut archive = TarWriter::default().file("oci-layout", b"{\"imageLayoutVersion\":\"1.0.0\"}");
        let mut blob = |bytes: &[u8]| {
            let hex = sha256(bytes);
            archive = std::mem::take(&mut archive).file(&format!("blobs/sha256/{hex}"), bytes);
            json!({ "digest": format!("sha256:{hex}"), "size": bytes.len() })
        };
        let config = blob(&self.config());
        let stored = |layer: &Vec<u8>| if self.is_compressed { gzip(layer) } else { layer.clone() };
        let mut layers: Vec<Value> = Vec::new();
        for layer in &self.layers {
            let stored = stored(layer);
            // An image may have the same layer twice; the archive has its blob once.
            let known = layers.iter().find(|known| known["digest"] == format!("sha256:{}", sha256(&stored)));
            let descriptor = match known {
                Some(known) => known.clone(),
                None => blob(&stored),
            };
            layers.push(descriptor);
        }
        let manifest = json!({ "schemaVersion": 2, "config": config, "layers": layers });
        let mut ours = blob(&serde_json::to_vec(&manifest).expect("json"));
        ours["platform"] = json!({ "os": "linux", "architecture": self.architecture });
        let mut other = json!({ "digest": format!("sha256:{}", "0".repeat(64)), "size": 1 });
        other["platform"] = json!({ "os": "linux", "architecture": "s390x" });
        let index = blob(&serde_json::to_vec(&json!({ "manifests": [other, ours] })).expect("json"));
        let top = serde_json::to_vec(&json!({ "schemaVersion": 2, "manifests": [index] })).expect("json");
        archive.file("index.json", &top).finish()
    }
}
