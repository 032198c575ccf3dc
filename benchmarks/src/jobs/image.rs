//! Images as a container engine saves them, of Debian's smallest system: imported, fetched and run by a job,
//! beside plain `tar`.

use super::ours::{JobCluster, JobEnvelope};
use super::slurm::install;
use crate::process::{run_to_end, sha256_sums};
use crate::report::{self, Bar, BenchmarkReport, ComparisonRow};
use anyhow::{Result, ensure};
use protocol::job_api::JobLogPage;
use serde_json::json;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

/// Release of the system, and the beginning of the line that a job of it prints.
const SUITE: (&str, &str) = ("bookworm", "12.");
/// Most times that our side takes as long as plain `tar`.
const BAR: f64 = 2.0;

/// Imports and starts an image in each round, beside plain `tar`, alternated.
pub(super) async fn measure(cluster: &JobCluster, rounds: usize, report: &mut BenchmarkReport) -> Result<()> {
    install("mmdebstrap", &["mmdebstrap"])?;
    let directory = report::directory()?.join("image");
    fs::create_dir_all(&directory)?;
    let system = system_layer(&directory)?;
    let extracted = directory.join(format!("extracted-{}", std::process::id()));
    fs::create_dir(&extracted)?;
    let (mut imports, mut starts, mut extractions) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..rounds {
        // A file of its own makes each image another tree, which no node has.
        let image = save(&directory, round)?;
        flush()?;
        let (imported, started) = import_and_start(cluster, &image, &format!("debian-{round}")).await?;
        imports.push(imported);
        starts.push(started);
        flush()?;
        extractions.push(extract(&image, &extracted.join(round.to_string()))?);
    }
    // Not before: ext4 looks for inodes beyond those that were removed of late, at a cost for each new file.
    fs::remove_dir_all(&extracted)?;
    let (peer, bar) = ("tar, extracted and flushed", Some(Bar::AtMost(BAR)));
    report.rows.extend([
        ComparisonRow::new("image_import", "s", peer, &imports, &extractions, bar),
        ComparisonRow::new("image_cold_start", "s", peer, &starts, &extractions, bar),
    ]);
    report.notes.push(format!(
        "an image of Debian {} ({} MiB, by mmdebstrap, in the layout of `docker save`): imported and run; an \
         import is encrypted, coded 4+2 and flushed on 3 nodes; a cold start fetches, verifies, unpacks and \
         starts it",
        SUITE.0,
        fs::metadata(system)?.len() >> 20
    ));
    Ok(())
}

/// Returns the seconds of the import, and those from the first submission to its line.
async fn import_and_start(cluster: &JobCluster, image: &Path, name: &str) -> Result<(f64, f64)> {
    let (began, path) = (Instant::now(), image.display().to_string());
    let code = ["--data", "4", "--parity", "2", "--shards-per-domain", "2"];
    cluster.control.quorate(&[&["artifact", "import", &path, "--name", name][..], &code].concat())?;
    let imported = began.elapsed().as_secs_f64();
    let envelope = JobEnvelope {
        name,
        artifact: name,
        command: "['/bin/cat', '/etc/debian_version']",
        ranks: 1,
        ranks_per_slot: 1,
        slots: 1,
        cpu_millicores: 100,
        memory: "64 MiB",
        more: "",
    };
    cluster.approve(&envelope).await?;
    let began = Instant::now();
    let id = cluster.submit(name, BTreeMap::new()).await?;
    let line = loop {
        let page: JobLogPage = cluster.first_lines_of(id).await?;
        if let Some(line) = page.items.into_iter().next() {
            break line.text;
        }
    };
    let started = began.elapsed().as_secs_f64();
    ensure!(line.starts_with(SUITE.1), "the job printed `{line}`");
    cluster.ended(&[id].into()).await?;
    Ok((imported, started))
}

/// Flushes every file system: neither side pays for what was written or removed before it.
fn flush() -> Result<()> {
    run_to_end(&mut Command::new("sync"))
}

/// Returns the seconds in which `tar` extracts every layer of an image to a new directory, flushed.
fn extract(image: &Path, place: &Path) -> Result<f64> {
    fs::create_dir(place)?;
    let began = Instant::now();
    run_to_end(Command::new("tar").arg("--extract").arg("--file").arg(image).arg("-C").arg(place))?;
    let root = place.join("root");
    fs::create_dir(&root)?;
    for layer in ["system.tar", "round.tar"] {
        run_to_end(
            Command::new("tar").arg("--extract").arg("--file").arg(place.join(layer)).arg("-C").arg(&root),
        )?;
    }
    run_to_end(Command::new("sync").arg("--file-system").arg(place))?;
    Ok(began.elapsed().as_secs_f64())
}

/// Makes the layer of the system, once; returns its path.
fn system_layer(directory: &Path) -> Result<PathBuf> {
    let layer = directory.join("system.tar");
    if !layer.is_file() {
        let part = directory.join("part.tar");
        // An engine saves no device nodes either: `/dev` is its own, or that of the sandbox.
        let words = ["--quiet", "--variant=essential", "--mode=root", "--skip=output/dev", SUITE.0];
        run_to_end(Command::new("mmdebstrap").args(words).arg(&part))?;
        fs::rename(part, &layer)?;
    }
    Ok(layer)
}

/// Makes the archive of an image with the layer of the system and one of its own; returns its path.
fn save(directory: &Path, round: usize) -> Result<PathBuf> {
    let own = directory.join("own");
    fs::create_dir_all(&own)?;
    fs::write(own.join("round"), round.to_string())?;
    pack(&directory.join("round.tar"), &own, &["round"])?;
    let layers = ["system.tar", "round.tar"];
    let digests: Vec<String> =
        sha256_sums(directory, &layers)?.into_iter().map(|(digest, _)| format!("sha256:{digest}")).collect();
    let configuration = json!({
        "architecture": std::env::consts::ARCH.replace("x86_64", "amd64").replace("aarch64", "arm64"),
        "os": "linux",
        "config": { "Cmd": ["/bin/cat", "/etc/debian_version"], "Env": ["PATH=/usr/bin:/bin"] },
        "rootfs": { "type": "layers", "diff_ids": digests },
    });
    fs::write(directory.join("config.json"), configuration.to_string())?;
    let manifest = json!([{ "Config": "config.json", "RepoTags": [], "Layers": layers }]);
    fs::write(directory.join("manifest.json"), manifest.to_string())?;
    let image = directory.join("image.tar");
    pack(&image, directory, &[&["manifest.json", "config.json"][..], &layers].concat())?;
    Ok(image)
}

fn pack(archive: &Path, directory: &Path, files: &[&str]) -> Result<()> {
    run_to_end(
        Command::new("tar").arg("--create").arg("--file").arg(archive).arg("-C").arg(directory).args(files),
    )
}
