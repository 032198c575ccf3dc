//! `cargo xtask attack listeners`: a resource exhaustion test of every listener of a cluster on this machine.
//!
//! One address holds more connections than every listener has, and adds unknown keys and unfinished bodies. A
//! well-behaved client from another address must not fail once.
//!
//! The clients are `overlay/examples/attack_listeners.rs`: they need TLS keys of unadmitted peers and source
//! addresses, which the standard library alone does not provide.

use crate::cluster::{nothing_is_left, stop_in};
use crate::compile::{self, Selection};
use crate::process::{command, output, root, run as run_command, target};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

const HELP: &str = "\
cargo xtask attack listeners

Starts a cluster with the small model and holds, all from 127.0.0.2: 1,100 silent connections on the API of
every replica and on the gateway's listener for workers, 4,200 on its public API, 100 peers with keys of their
own, and 100 requests whose body of 8 MB never ends. During the attack, a client from 127.0.0.1 sends 1,000
requests to each API. The same attack runs against a listener that admits the first to come, as a positive
control: there the client must fail. Prints failures, latencies and memory; exits 1 when one request failed,
or none at the positive control.
";

/// Time limit of the cluster's start on a busy machine.
const START_LIMIT: Duration = Duration::from_secs(300);
/// Interval between two checks whether the cluster serves.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// `cargo xtask attack`.
pub(crate) fn run(arguments: &[String]) -> Result<(), String> {
    if arguments != ["listeners"] {
        print!("{HELP}");
        let asked = arguments.iter().any(|argument| argument == "--help" || argument == "-h");
        return if asked { Ok(()) } else { Err("name the attack: listeners".into()) };
    }
    compile::build(Selection::Everything)?;
    let mut clients = command("cargo", &["build", "--quiet", "--example", "attack_listeners"]);
    run_command(clients.args(Selection::Everything.targets()))?;
    let directory = target().join("attack-cluster");
    let mut up = start(&directory)?;
    let outcome = wait_until_it_serves(&mut up, &directory).and_then(|()| attack(&directory));
    let stopped = stop_in(up, &directory);
    outcome.and(stopped)
}

/// Starts a cluster that serves the small model, with its output in a file.
fn start(directory: &Path) -> Result<Child, String> {
    nothing_is_left(directory)?;
    let output =
        std::fs::File::create(target().join("attack-cluster.log")).map_err(|error| error.to_string())?;
    let errors = output.try_clone().map_err(|error| error.to_string())?;
    let (path, tiny) = (directory.display().to_string(), root().join("models/tiny").display().to_string());
    let program = target().join("debug/quorate").display().to_string();
    command(&program, &["up", "--fresh", "--dir", &path, "--model", &tiny])
        .stdout(Stdio::from(output))
        .stderr(Stdio::from(errors))
        .spawn()
        .map_err(|error| format!("cannot run {program}: {error}"))
}

fn wait_until_it_serves(up: &mut Child, directory: &Path) -> Result<(), String> {
    let began = Instant::now();
    loop {
        if let Some(status) = up.try_wait().map_err(|error| error.to_string())? {
            return Err(format!(
                "the cluster ended with {status}: see {}",
                target().join("attack-cluster.log").display()
            ));
        }
        if ports(directory).is_ok_and(|ports| serves(directory, &ports)) {
            return Ok(());
        }
        if began.elapsed() > START_LIMIT {
            return Err(format!("the cluster did not serve within {} s", START_LIMIT.as_secs()));
        }
        sleep(POLL_INTERVAL);
    }
}

/// Whether the gateway has ready workers.
fn serves(directory: &Path, ports: &BTreeMap<String, u16>) -> bool {
    let Some(port) = ports.get("gateway-1/gateway-metrics") else { return false };
    let url = format!("http://127.0.0.1:{port}/metrics");
    let page = command("curl", &["-sf", &url]).stderr(Stdio::null()).output();
    let text = page.map(|page| String::from_utf8_lossy(&page.stdout).into_owned()).unwrap_or_default();
    let ready = text.lines().filter_map(|line| line.strip_prefix("quorate_workers_ready{"));
    let is_ready = ready.filter_map(|line| line.rsplit_once(' ')).any(|(_, count)| count != "0");
    is_ready && directory.join("api-key").exists()
}

/// Returns every port of the cluster, by purpose.
fn ports(directory: &Path) -> Result<BTreeMap<String, u16>, String> {
    let file = directory.join("ports.json");
    let text = std::fs::read_to_string(&file).map_err(|error| format!("read {}: {error}", file.display()))?;
    Ok(numbers_of(&text))
}

/// Reads a flat JSON object of numbers that this project wrote.
fn numbers_of(text: &str) -> BTreeMap<String, u16> {
    let entries = text.trim().trim_start_matches('{').trim_end_matches('}').split(',');
    let pairs = entries.filter_map(|entry| {
        let (name, number) = entry.rsplit_once(':')?;
        Some((name.trim().trim_matches('"').to_owned(), number.trim().parse().ok()?))
    });
    pairs.collect()
}

fn attack(directory: &Path) -> Result<(), String> {
    let ports = ports(directory)?;
    let port = |name: &str| ports.get(name).ok_or(format!("ports.json has no {name}"));
    let key_file = directory.join("api-key").display().to_string();
    let mut words = vec![key_file, attackers_key(directory)?, gateway_key(directory)?];
    for id in 1..=3 {
        words.push(format!("control=127.0.0.1:{}", port(&format!("control-{id}/api"))?));
    }
    words.push(format!("public=127.0.0.1:{}", port("gateway-1/api")?));
    words.push(format!("workers=127.0.0.1:{}", port("gateway-1/workers")?));
    words.extend(daemons(directory).into_iter().map(|(name, pid)| format!("pid={name}:{pid}")));
    let program = target().join("debug/examples/attack_listeners").display().to_string();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    run_command(&mut command(&program, &words))
}

/// Creates an API key of the attacker's own: memory in the gateway counts against the share of its key.
fn attackers_key(directory: &Path) -> Result<String, String> {
    let program = target().join("debug/quorate").display().to_string();
    let mut create = command(&program, &["key", "issue", "attacker"]);
    Ok(output(create.env("QUORATE_CONTEXT", directory.join("context.json")))?.trim().to_owned())
}

/// Returns the key that the gateway logged when it started, from its agent's log.
fn gateway_key(directory: &Path) -> Result<String, String> {
    let logs = std::fs::read_dir(directory.join("logs")).map_err(|error| error.to_string())?;
    for log in logs.filter_map(Result::ok) {
        let text = std::fs::read(log.path()).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let line = text.lines().rev().find(|line| line.contains("gateway serves"));
        if let Some(key) = line.and_then(|line| line.split("\"key\":\"").nth(1)?.split('"').next()) {
            return Ok(key.to_owned());
        }
    }
    Err("no log has the gateway's key".into())
}

/// Returns the cluster's daemons and their process ids.
fn daemons(directory: &Path) -> Vec<(String, u32)> {
    let root = directory.display().to_string();
    let describe = |process: std::fs::DirEntry| {
        let pid = process.file_name().to_str()?.parse().ok()?;
        let line = std::fs::read(process.path().join("cmdline")).ok()?;
        let words: Vec<String> =
            line.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect();
        let named = |word: &String| word.starts_with(&root);
        let own = words.iter().find(|word| named(word) && !word.contains("genesis")).cloned();
        let name = match words.get(1).map(String::as_str)? {
            "gateway" => "gateway".to_owned(),
            "control" | "agent" => own?.strip_prefix(&root)?.trim_matches('/').to_owned(),
            _ => return None,
        };
        Some((name, pid))
    };
    let processes = std::fs::read_dir("/proc").into_iter().flatten().filter_map(Result::ok);
    let mut found: Vec<(String, u32)> = processes.filter_map(describe).collect();
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read_as_they_were_written() {
        let text = "{\n  \"control-1/api\": 40123,\n  \"gateway-1/api\": 7\n}";
        let expected = [("control-1/api".to_owned(), 40_123), ("gateway-1/api".to_owned(), 7)];
        assert_eq!(numbers_of(text), BTreeMap::from(expected));
    }
}
