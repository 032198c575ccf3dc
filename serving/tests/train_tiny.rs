//! Test of the program that trains the small language model, as the ranks of a job: an attempt that was cut
//! off, and continued from its checkpoint, leaves the same bytes as one that was not.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Steps of a run, and the steps between two checkpoints.
const STEPS: &str = "4";
const EVERY: &str = "2";
/// Files of a model that a vote can serve.
const FILES: [&str; 5] =
    ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"];

/// Returns the program, which is built with the tests.
fn program() -> PathBuf {
    let own = std::env::current_exe().expect("this program has a path");
    let profile = own.parent().and_then(Path::parent).expect("a test is built below a profile's directory");
    let program = profile.join("examples/train_tiny");
    assert!(program.is_file(), "`{}` is built with the tests", program.display());
    program
}

/// Returns a port that is free, below those that the system gives to connections.
fn free_port() -> u16 {
    let first = 20_000 + (std::process::id() % 6_000) as u16;
    (first..32_000).find(|port| TcpListener::bind(("0.0.0.0", *port)).is_ok()).expect("a free port")
}

/// Starts two ranks with these directories, rank 0 first.
fn start(place: &Path) -> [Child; 2] {
    let port = free_port();
    [0, 1].map(|rank| {
        let mut command = Command::new(program());
        command
            .args(["gang", STEPS, EVERY])
            .args([place.join("checkpoint"), place.join("outputs")])
            .env("RANK", rank.to_string())
            .env("WORLD_SIZE", "2")
            .env("MASTER_ADDR", "127.0.0.1")
            .env("MASTER_PORT", port.to_string())
            .env("RAYON_NUM_THREADS", "1")
            .stdout(Stdio::piped());
        command.spawn().expect("start a rank")
    })
}

/// Makes the directories of a job.
fn directories(place: &Path) {
    for name in ["checkpoint", "outputs"] {
        fs::create_dir_all(place.join(name)).expect("make a directory");
    }
}

/// Waits for the ranks, which must succeed; returns what rank 0 printed.
fn finish(ranks: [Child; 2]) -> String {
    let [first, second] = ranks.map(|rank| rank.wait_with_output().expect("a rank ends"));
    assert!(first.status.success() && second.status.success(), "{first:?}\n{second:?}");
    String::from_utf8(first.stdout).expect("text")
}

fn outputs(place: &Path) -> Vec<Vec<u8>> {
    FILES.iter().map(|file| fs::read(place.join("outputs").join(file)).expect("an output")).collect()
}

#[test]
fn an_attempt_that_continues_from_a_checkpoint_leaves_the_bytes_of_an_undisturbed_one() {
    let place = tempfile::tempdir().expect("a directory");
    let [undisturbed, disturbed] = ["undisturbed", "disturbed"].map(|name| place.path().join(name));
    for place in [&undisturbed, &disturbed] {
        directories(place);
    }
    let printed = finish(start(&undisturbed));
    assert!(printed.contains("step 4/4") && !printed.contains("continues"), "{printed}");

    let mut ranks = start(&disturbed);
    let lines = BufReader::new(ranks[0].stdout.take().expect("a pipe")).lines();
    let reached = lines.map_while(Result::ok).any(|line| line.starts_with("checkpoint "));
    assert!(reached, "rank 0 writes a checkpoint");
    for rank in &mut ranks {
        rank.kill().expect("kill a rank");
        rank.wait().expect("it ends");
    }
    assert!(!disturbed.join("outputs/model.safetensors").exists(), "the attempt was cut off");
    let printed = finish(start(&disturbed));
    assert!(printed.contains("continues after step 2") && !printed.contains("step 1/4"), "{printed}");
    assert!(outputs(&undisturbed) == outputs(&disturbed), "the same bytes");
}

#[test]
fn a_rank_says_what_it_lacks() {
    let run = |environment: &[(&str, &str)], arguments: &[&str]| {
        let mut command = Command::new(program());
        command.args(arguments).env("RAYON_NUM_THREADS", "1").envs(environment.iter().copied());
        let output = command.output().expect("start a rank");
        assert!(!output.status.success());
        String::from_utf8(output.stderr).expect("text")
    };
    assert!(run(&[], &["gang", "4"]).contains("usage: train_tiny gang STEPS EVERY"));
    assert!(run(&[], &["gang", "4", "0"]).contains("after each 0 steps"));
    let text = run(&[("WORLD_SIZE", "two")], &["gang", "4", "2"]);
    assert!(text.contains("WORLD_SIZE is `two`, not a number"), "{text}");
    let text = run(&[("WORLD_SIZE", "2"), ("RANK", "2")], &["gang", "4", "2"]);
    assert!(text.contains("rank 2 is none of 2"), "{text}");
}
