//! Unmodified JAX from its wheels: a gang of two ranks on two nodes trains, and both see the same losses.

use super::ours::{JobCluster, JobEnvelope};
use crate::process::sha256_sums;
use crate::report::{self, BenchmarkReport};
use anyhow::{Context as _, Result, bail, ensure};
use protocol::job_api::JobLogLine;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

/// Package that pip downloads with all that it needs, pinned.
const PACKAGE: &str = "jax==0.10.2";
/// Program of a rank.
const PROGRAM: &str = include_str!("../../peers/jax_gang.py");
/// Ranks of the gang, each on a node of its own.
const RANKS: usize = 2;
/// Largest share of the first loss that the last one may be.
const LOSS_SHARE_MAX: f64 = 0.1;

/// Packs JAX, runs the gang, and compares what its ranks say.
pub(super) async fn measure(cluster: &JobCluster, report: &mut BenchmarkReport) -> Result<()> {
    let directory = report::directory()?.join("jax");
    fs::create_dir_all(&directory)?;
    let (wheels, requirements) = download(&directory)?;
    let program = directory.join("gang.py");
    fs::write(&program, PROGRAM)?;
    let interpreter = interpreter()?;
    let began = Instant::now();
    let [requirements, wheels, program] =
        [requirements, wheels, program].map(|path| path.display().to_string());
    let words = [&["--python", &requirements, "--wheels", &wheels][..], &["--add", &program]].concat();
    let words = [&words[..], &["--interpreter", &interpreter]].concat();
    let start = ["--entry-point", "/usr/bin/python3", "--entry-point", "gang.py"];
    cluster.build("jax", &[&words[..], &start].concat())?;
    let packed_s = began.elapsed().as_secs_f64();
    let envelope = JobEnvelope {
        name: "jax",
        artifact: "jax",
        command: "['/usr/bin/python3', '/app/gang.py']",
        ranks: RANKS as u32,
        ranks_per_slot: 1,
        slots: RANKS as u32,
        cpu_millicores: 900,
        memory: "2 GiB",
        more: "",
    };
    cluster.approve(&envelope).await?;
    let began = Instant::now();
    let losses = losses(&cluster.run("jax").await?)?;
    report.notes.push(format!(
        "unmodified {PACKAGE} from wheels: imported in {packed_s:.1} s; a gang of {RANKS} ranks on {RANKS} \
         nodes trained from loss {} to {} on each rank, {:.1} s from submission to end, cold",
        losses.0,
        losses.1,
        began.elapsed().as_secs_f64()
    ));
    Ok(())
}

/// Returns the path of the interpreter itself: `python3` may be a script that chooses one.
fn interpreter() -> Result<String> {
    let program = "import os, sys; print(os.path.realpath(sys.executable))";
    let output = Command::new("python3").args(["-c", program]).output().context("run `python3`")?;
    ensure!(output.status.success(), "`python3` failed: {}", output.status);
    Ok(String::from_utf8(output.stdout)?.trim().to_string())
}

/// Downloads the wheels, and pins each by its digest; returns their directory and the requirements.
fn download(directory: &Path) -> Result<(PathBuf, PathBuf)> {
    let (wheels, requirements) = (directory.join("wheels"), directory.join("requirements.txt"));
    let mut command = Command::new("python3");
    let words = ["-m", "pip", "download", "--quiet", "--disable-pip-version-check"];
    command.args(words).args(["--only-binary", ":all:", "--dest"]).arg(&wheels).arg(PACKAGE);
    let status = command.status().context("run `python3 -m pip`")?;
    ensure!(status.success(), "`pip download {PACKAGE}` failed: {status}");
    let mut files = Vec::new();
    for file in fs::read_dir(&wheels)? {
        files.push(file?.file_name());
    }
    files.sort();
    let sums = sha256_sums(&wheels, &files)?;
    let lines: Vec<String> =
        sums.iter().map(|(digest, file)| requirement(digest, file)).collect::<Result<_>>()?;
    fs::write(&requirements, lines.concat())?;
    Ok((wheels, requirements))
}

/// Returns the requirement that pins a wheel by its digest.
fn requirement(digest: &str, file: &str) -> Result<String> {
    let pinned = pin_of(file).with_context(|| format!("`{file}` is no wheel"))?;
    Ok(format!("{pinned} --hash=sha256:{digest}\n"))
}

/// Returns the name and version of a wheel by the name of its file: `{name}-{version}-...whl`.
fn pin_of(file: &str) -> Option<String> {
    let mut parts = file.strip_suffix(".whl")?.split('-');
    Some(format!("{}=={}", parts.next()?, parts.next()?))
}

/// Returns the first and the last loss, as every rank printed them.
fn losses(lines: &[JobLogLine]) -> Result<(f64, f64)> {
    let said: Vec<&str> = lines.iter().filter_map(|line| line.text.strip_prefix("losses ")).collect();
    let [first, rest @ ..] = said.as_slice() else { bail!("no rank printed its losses: {lines:?}") };
    ensure!(said.len() == RANKS && rest.iter().all(|other| other == first), "the ranks differ: {said:?}");
    let mut numbers = first.split(' ').map_while(|word| word.parse::<f64>().ok());
    let both = numbers.next().zip(numbers.next());
    let (begin, end) = both.with_context(|| format!("`{first}` has no two losses"))?;
    ensure!(end < begin * LOSS_SHARE_MAX, "the gang learned nothing: {first}");
    Ok((begin, end))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(rank: u32, text: &str) -> JobLogLine {
        let node = "node-1".parse().expect("a name");
        JobLogLine { sequence: 1, attempt: 1, rank, number: 1, node, dropped: 0, text: text.into() }
    }

    #[test]
    fn losses_count_if_every_rank_has_the_same_and_they_fell() {
        let said = "losses 30.5 0.25 over 2 devices";
        let both = [line(0, said), line(1, "a warning"), line(1, said)];
        assert_eq!(losses(&both).expect("losses"), (30.5, 0.25));
        let flat = "losses 30.5 30.4 over 2 devices";
        for (lines, reason) in [
            (vec![line(0, said)], "differ"),
            (vec![line(0, said), line(1, flat)], "differ"),
            (vec![line(0, flat), line(1, flat)], "learned nothing"),
            (vec![], "no rank"),
        ] {
            let refused = losses(&lines).expect_err(reason).to_string();
            assert!(refused.contains(reason), "{refused}");
        }
    }

    #[test]
    fn a_wheel_is_pinned_by_the_name_of_its_file() {
        let pinned = pin_of("ml_dtypes-0.5.3-cp311-cp311-manylinux_2_17_x86_64.whl");
        assert_eq!(pinned.as_deref(), Some("ml_dtypes==0.5.3"));
        assert_eq!(pin_of("jax-0.10.2.tar.gz"), None);
        let line = requirement("ab12", "jax-0.10.2-py3-none-any.whl").expect("a requirement");
        assert_eq!(line, "jax==0.10.2 --hash=sha256:ab12\n");
    }
}
