//! End-to-end tests: the demonstration on real processes, third-party clients against the cluster that it
//! leaves running, an end without leftovers, and a second run in the first one's directory.

use crate::compile::{self, Selection};
use crate::process::{command, root, run, target};
use crate::{demo, setup};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

/// Packages of the client tests, pinned.
const CLIENT_PACKAGES: [&str; 3] = ["openai==3.54.0", "schemathesis==4.32.5", "pyyaml==6.0.3"];
/// Time limit of the demonstration on a busy machine.
const DEMONSTRATION_LIMIT: Duration = Duration::from_secs(1200);
/// Time limit of stopping every process.
const END_LIMIT: Duration = Duration::from_secs(180);
/// User and group id of the account `nobody`.
const ORDINARY: &str = "65534";
/// Text that the demonstration prints when it stays up.
pub(crate) const STAYS_UP: &str = "Kill any process";

fn directory() -> PathBuf {
    target().join("test-cluster")
}

/// Runs the demonstration, then the clients, then sends Ctrl-C; no process may remain.
pub(crate) fn demonstration_and_clients() -> Result<(), String> {
    let python = setup::python("clients", &CLIENT_PACKAGES)?;
    compile::build(Selection::Everything)?;
    let mut up = start(&directory(), &["--fresh"], Stdio::inherit())?;
    let outcome = wait_until_up(&mut up).and_then(|()| a_second_is_refused()).and_then(|()| clients(&python));
    let stopped = stop(up);
    outcome.and(stopped)
}

/// Runs the README's "By hand", with certificates of an operator's own.
pub(crate) fn by_hand() -> Result<(), String> {
    for (program, package) in [("openssl", "openssl"), ("curl", "curl"), ("pgrep", "procps")] {
        setup::program(program, package)?;
    }
    compile::build(Selection::Everything)?;
    let quorate = target().join("debug/quorate").display().to_string();
    run(&mut command("python3", &["control/tests/by_hand.py", &quorate, "models/tiny"]))
}

/// Runs the demonstration once more in the same directory; it must exit without a signal.
pub(crate) fn second_run() -> Result<(), String> {
    let mut up = start(&directory(), &["--once"], Stdio::inherit())?;
    read_until(&mut up, |_| false)?;
    let status = wait(&mut up, END_LIMIT)?;
    if !status.success() {
        return Err(format!("the second run ended with {status}"));
    }
    nothing_is_left(&directory())
}

/// Runs the whole demonstration under an ordinary account, which cannot create control groups, take other
/// user ids or read the descriptors of sandboxes. It must complete, and report which limits are not enforced
/// and which checks were skipped.
pub(crate) fn ordinary_account() -> Result<(), String> {
    if !is_root() {
        println!("this account is an ordinary one: the demonstration showed it");
        return Ok(());
    }
    setup::program("setpriv", "util-linux")?;
    compile::build(Selection::Everything)?;
    let place = std::env::temp_dir().join(format!("quorate-ordinary-{}", std::process::id()));
    let outcome = ordinary_account_in(&place);
    let removed =
        std::fs::remove_dir_all(&place).map_err(|error| format!("remove {}: {error}", place.display()));
    outcome.and(removed)
}

fn ordinary_account_in(place: &Path) -> Result<(), String> {
    // Only root may be able to read this clone.
    let (home, files) = (place.join("home"), place.join("files"));
    let examples = files.join("examples");
    for directory in [&home, &files, &examples] {
        std::fs::create_dir_all(directory)
            .map_err(|error| format!("create {}: {error}", directory.display()))?;
    }
    let sources = [
        (target().join("debug/quorate"), &files),
        (target().join("debug/quorate-serve"), &files),
        (target().join("debug/demo"), &files),
        (target().join("debug/examples/train_tiny"), &examples),
        (crate::minilm::directory()?, &files),
        (root().join("models/tiny"), &files),
    ];
    for (source, to) in sources {
        let words = ["-R", "-L", &source.display().to_string(), &to.display().to_string()];
        run(&mut command("cp", &words))?;
    }
    run(&mut command("chmod", &["-R", "a+rX", &place.display().to_string()]))?;
    run(&mut command("chown", &[ORDINARY, &home.display().to_string()]))?;
    let path = |name: &str| files.join(name).display().to_string();
    let cluster = home.join("demo");
    let (demo, minilm, tiny) = (path("demo"), path("minilm"), path("tiny"));
    let told = crate::process::output(
        command(
            "setpriv",
            &[
                &["--reuid", ORDINARY, "--regid", ORDINARY, "--clear-groups", &demo, "--once"][..],
                &["--minilm", &minilm, "--tiny", &tiny, "--dir", &cluster.display().to_string()],
            ]
            .concat(),
        )
        .current_dir(&home)
        .env("HOME", &home),
    )?;
    println!("{told}");
    for expected in ["open ports: ", "not checked: ", "not enforced: ", "status: all is well"] {
        if !told.contains(expected) {
            return Err(format!("`{expected}` is not in the output"));
        }
    }
    nothing_is_left(place)
}

fn is_root() -> bool {
    crate::process::output(&mut command("id", &["-u"])).is_ok_and(|user| user.trim() == "0")
}

/// Runs `up --model` with the small model under its directory's name, and then with a second directory, which
/// is another model.
pub(crate) fn own_model() -> Result<(), String> {
    compile::build(Selection::Everything)?;
    let (place, tiny) = (target().join("test-own"), root().join("models/tiny"));
    let second = target().join("test-own-model/second");
    std::fs::create_dir_all(&second).map_err(|error| error.to_string())?;
    for file in std::fs::read_dir(&tiny).map_err(|error| error.to_string())?.filter_map(Result::ok) {
        std::fs::copy(file.path(), second.join(file.file_name())).map_err(|error| error.to_string())?;
    }
    let program = target().join("debug/quorate").display().to_string();
    let place_text = place.display().to_string();
    for (model, fresh, name) in [(&tiny, &["--fresh"][..], "tiny"), (&second, &[], "second")] {
        let model = model.display().to_string();
        let words = [&["up", "--once", "--dir", &place_text, "--model", &model], fresh].concat();
        let told = crate::process::output(&mut command(&program, &words))?;
        println!("{told}");
        for expected in [format!("{name} answers on"), format!("{name}: \"Once upon a time\" -> ")] {
            if !told.contains(&expected) {
                return Err(format!("`{expected}` is not in the output"));
            }
        }
        nothing_is_left(&place)?;
    }
    Ok(())
}

/// Starts the demonstration in this directory; the caller reads its output.
pub(crate) fn start(directory: &Path, flags: &[&str], errors: Stdio) -> Result<Child, String> {
    let mut arguments = demo::arguments()?;
    arguments.extend(["--dir".into(), directory.display().to_string()]);
    arguments.extend(flags.iter().map(|flag| (*flag).to_string()));
    let program = target().join("debug/demo").display().to_string();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    command(&program, &arguments)
        .stdout(Stdio::piped())
        .stderr(errors)
        .spawn()
        .map_err(|error| format!("cannot run {program}: {error}"))
}

/// Checks that another `up` in the same directory is refused with a code and changes nothing, even with
/// `--fresh`: the clients that follow still find every file.
fn a_second_is_refused() -> Result<(), String> {
    let second = start(&directory(), &["--fresh"], Stdio::piped())?;
    let output = second.wait_with_output().map_err(|error| error.to_string())?;
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.code() == Some(1) && said.contains("directory-in-use") {
        return Ok(());
    }
    Err(format!("a second `up` in the same directory was not refused: {} {said}", output.status))
}

/// Prints the demonstration's output until it stays up.
fn wait_until_up(up: &mut Child) -> Result<(), String> {
    read_until(up, |line| line.contains(STAYS_UP))?
        .then_some(())
        .ok_or_else(|| "the demonstration ended before it stayed up".into())
}

/// Prints the demonstration's output until a line that is `enough`, and returns whether there was one. A
/// thread keeps reading after that, since the demonstration must not fail on its last lines.
fn read_until(up: &mut Child, enough: impl Fn(&str) -> bool) -> Result<bool, String> {
    let output = up.stdout.take().ok_or("the demonstration has no output")?;
    let (said, lines) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            // The receiver may be gone: the thread keeps reading all the same.
            let _ = said.send(line);
        }
    });
    let deadline = Instant::now() + DEMONSTRATION_LIMIT;
    loop {
        match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => {
                println!("{line}");
                if enough(&line) {
                    return Ok(true);
                }
            }
            Err(RecvTimeoutError::Disconnected) => return Ok(false),
            Err(RecvTimeoutError::Timeout) => {
                let _ = up.kill();
                return Err(format!("the demonstration took more than {} s", DEMONSTRATION_LIMIT.as_secs()));
            }
        }
    }
}

/// Waits for the demonstration's end, up to `limit`.
fn wait(up: &mut Child, limit: Duration) -> Result<ExitStatus, String> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(status) = up.try_wait().map_err(|error| error.to_string())? {
            return Ok(status);
        }
        if Instant::now() > deadline {
            let _ = up.kill();
            return Err(format!("the demonstration did not end within {} s", limit.as_secs()));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn clients(python: &Path) -> Result<(), String> {
    let python = python.display().to_string();
    let context = directory().join("context.json").display().to_string();
    let key = std::fs::read_to_string(directory().join("api-key")).map_err(|error| error.to_string())?;
    let gateway = value_of(&context, "gateway")?;
    run(command(&python, &["serving/tests/openai_client.py"])
        .env("OPENAI_BASE_URL", format!("{gateway}/v1"))
        .env("OPENAI_API_KEY", key.trim())
        .env("QUORATE_EMBEDDING_MODEL", "minilm")
        .env("QUORATE_CHAT_MODEL", "tiny"))?;
    let quorate = target().join("debug/quorate").display().to_string();
    run(&mut command(&python, &["docker/check.py", &quorate]))?;
    let (place, binaries) = (directory().display().to_string(), target().join("debug").display().to_string());
    run(&mut command(&python, &["control/tests/readme.py", &place, &binaries]))?;
    run(&mut command(&python, &["control/tests/control_api.py", &context]))
}

/// Returns a string value of a flat JSON file that this project wrote.
fn value_of(file: &str, name: &str) -> Result<String, String> {
    let text = std::fs::read_to_string(file).map_err(|error| format!("read {file}: {error}"))?;
    let after = text.split(&format!("\"{name}\":")).nth(1).and_then(|rest| rest.split('"').nth(1));
    after.map(str::to_string).ok_or_else(|| format!("{file} has no `{name}`"))
}

fn stop(up: Child) -> Result<(), String> {
    stop_in(up, &directory())
}

/// Sends Ctrl-C, and checks that no process remains.
pub(crate) fn stop_in(mut up: Child, directory: &Path) -> Result<(), String> {
    run(&mut command("kill", &["-INT", &up.id().to_string()]))?;
    let status = wait(&mut up, END_LIMIT)?;
    if !status.success() {
        return Err(format!("the demonstration ended with {status} after Ctrl-C"));
    }
    nothing_is_left(directory)
}

/// Checks that no process names the cluster's directory or is in a control group of its circle.
pub(crate) fn nothing_is_left(directory: &Path) -> Result<(), String> {
    let place = directory.display().to_string();
    let context = directory.join("context.json").display().to_string();
    // A cluster that ended before it was founded has no circle.
    let circle = value_of(&context, "circle").ok().and_then(|id| id.get(..8).map(str::to_string));
    let group = circle.map(|short| format!("/quorate-{short}/"));
    let mut left = Vec::new();
    let processes = std::fs::read_dir("/proc").map_err(|error| error.to_string())?;
    for process in processes.filter_map(Result::ok) {
        let line = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        let groups = std::fs::read_to_string(process.path().join("cgroup")).unwrap_or_default();
        let sandboxed = group.as_ref().is_some_and(|group| groups.contains(group.as_str()));
        let own = process.file_name().to_string_lossy() == std::process::id().to_string();
        if (line.contains(&place) || sandboxed) && !own {
            left.push(line);
        }
    }
    if left.is_empty() { Ok(()) } else { Err(format!("left running: {left:?} (from {})", root().display())) }
}
