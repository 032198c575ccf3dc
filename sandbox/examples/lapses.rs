//! Measures how late sandboxes end after their leases: `cargo run -p sandbox --example lapses -- --help`.
//!
//! Each run starts an agent in a separate process. The agent starts a worker, renews its lease until every
//! thread of the worker spins, and is then stopped (SIGSTOP). Only the init is left to end the sandbox.
//! Control could reassign the slot when the lease expires, so a second launcher starts the next holder at
//! that very moment.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use host::boot_time;
use protocol::BootTime;
use protocol::limits::LEASE_MS;
use protocol::sandbox::SandboxLimits;
use sandbox::Start;
use sandbox::{LauncherConfig, MemoryFile, Sandbox, SandboxLauncher, init};
use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

const HELP: &str = "\
Lets leases lapse while every thread of the worker spins and the agent is stopped, and prints how long after
its lease each sandbox had ended, in milliseconds.

  --lapses N       how many, over all sizes [100]
  --millicores L   sizes of the worker, comma-separated [50,100,200,500,1000,2000]
  --at-once N      lapses at a time [2]
  --busy N         threads of other work beside them, at the same priority [0]

Exits with 1 if one ended later than 500 ms after its lease, or was alive when its slot's next holder was.
";

/// Maximum delay between the end of a lease and the end of its sandbox.
const LATE_MS_MAX: i64 = 500;
/// Threads of each worker: the process limit of a one-core worker, less its init and some headroom.
const THREADS: u32 = 32;
const LIMITS: SandboxLimits =
    SandboxLimits { cpu_millicores: 0, memory_bytes: 256 << 20, processes_max: 36, open_files_max: 64 };

type ExampleResult<T = ()> = Result<T, Box<dyn Error + Send + Sync>>;

struct Options {
    lapses: usize,
    millicores: Vec<u64>,
    at_once: usize,
    busy: usize,
}

/// End of one sandbox.
struct Lapse {
    millicores: u64,
    /// Time from the end of the lease to the end of the last process.
    late_ms: i64,
    /// Time from the end of the lease to the start of the next holder, if the first worker was still alive
    /// then.
    two_holders_ms: Option<i64>,
    not_enforced: String,
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let rest = || arguments[1..].iter().cloned();
    let status = match arguments.first().map(String::as_str) {
        Some("sandbox-init") => init::main(rest()),
        Some("worker") => spin(),
        Some("agent") => report(agent(&arguments[1..])),
        _ => report(measure(&arguments)),
    };
    std::process::exit(status);
}

fn report(outcome: ExampleResult<i32>) -> i32 {
    outcome.unwrap_or_else(|error| {
        eprintln!("lapses: {error}");
        2
    })
}

/// The worker: every thread spins forever.
fn spin() -> i32 {
    for _ in 1..THREADS {
        std::thread::spawn(spin_alone);
    }
    spin_alone();
    0
}

fn spin_alone() {
    loop {
        std::hint::spin_loop();
    }
}

/// The agent that is stopped later: starts the worker and renews its lease until all threads spin. Prints the
/// process ids of the init and the worker, the end of the lease and the unenforced limits, then waits.
fn agent(arguments: &[String]) -> ExampleResult<i32> {
    let [directory, name, millicores] = arguments else {
        return Err("agent DIRECTORY NAME MILLICORES".into());
    };
    let directory = Path::new(directory);
    let launcher = launcher(directory, name)?;
    let until = || boot_time().plus(LEASE_MS);
    let mut lease = until();
    let sandbox = start(&launcher, directory, name, millicores.parse()?, lease)?;
    let children = format!("/proc/{0}/task/{0}/children", sandbox.pid());
    let worker: u32 = fs::read_to_string(children)?.trim().parse()?;
    let spins = || -> ExampleResult<bool> {
        let status = fs::read_to_string(format!("/proc/{worker}/status"))?;
        let threads = status.lines().find_map(|line| line.strip_prefix("Threads:"));
        Ok(threads.and_then(|number| number.trim().parse().ok()) == Some(THREADS))
    };
    while !spins()? {
        lease = sandbox.renew(until())?.lease_until_boottime_ms;
        std::thread::sleep(Duration::from_millis(50));
    }
    let labels: Vec<&str> =
        sandbox.not_enforced().iter().filter_map(|label| label.split(':').next()).collect();
    println!(
        "{} {worker} {lease} {}",
        sandbox.pid(),
        if labels.is_empty() { "-".into() } else { labels.join(",") }
    );
    loop {
        std::thread::park();
    }
}

fn launcher(directory: &Path, name: &str) -> ExampleResult<SandboxLauncher> {
    let number: u32 = name.trim_start_matches(|c: char| !c.is_ascii_digit()).parse()?;
    Ok(SandboxLauncher::new(LauncherConfig {
        program: directory.join("program"),
        arguments: vec!["sandbox-init".into()],
        state_dir: directory.join(name),
        cgroup_parent: format!(
            "quorate-lapses/{}/{name}",
            directory.file_name().unwrap_or_default().display()
        ),
        ids_first: 700_000 + 2 * number,
        id_pairs: 1,
        lease_ms_max: LEASE_MS,
    })?)
}

fn start(
    launcher: &SandboxLauncher,
    directory: &Path,
    name: &str,
    cpu_millicores: u64,
    lease: BootTime,
) -> ExampleResult<Sandbox> {
    let file = |name| -> ExampleResult<OwnedFd> { Ok(MemoryFile::create(name, 4096)?.reader()?) };
    Ok(launcher.start(&Start {
        name: name.into(),
        binary: directory.join("program"),
        arguments: vec!["worker".into()],
        environment: BTreeMap::new(),
        limits: SandboxLimits { cpu_millicores, ..LIMITS },
        read_only: vec![],
        devices: vec![],
        weights: file("weights")?,
        progress: file("progress")?,
        manifest: vec![],
        lease_until: lease,
    })?)
}

fn options(arguments: &[String]) -> ExampleResult<Option<Options>> {
    let mut options =
        Options { lapses: 100, millicores: vec![50, 100, 200, 500, 1000, 2000], at_once: 2, busy: 0 };
    let mut arguments = arguments.iter();
    while let Some(name) = arguments.next() {
        if name == "--help" {
            return Ok(None);
        }
        let value = arguments.next().ok_or_else(|| format!("{name}: a value is missing; see --help"))?;
        match name.as_str() {
            "--lapses" => options.lapses = value.parse()?,
            "--millicores" => {
                options.millicores = value.split(',').map(str::parse).collect::<Result<_, _>>()?;
            }
            "--at-once" => options.at_once = value.parse()?,
            "--busy" => options.busy = value.parse()?,
            _ => return Err(format!("{name}: no such option; see --help").into()),
        }
    }
    Ok(Some(options))
}

fn measure(arguments: &[String]) -> ExampleResult<i32> {
    let Some(options) = options(arguments)? else {
        print!("{HELP}");
        return Ok(0);
    };
    let directory = tempfile::tempdir()?;
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755))?;
    // The copy is in a directory where every user may execute it: a build directory may be closed to the ids
    // of a sandbox. A separate process copies it, so that no child of this one holds the file open for
    // writing.
    let program = directory.path().join("program");
    let copied = Command::new("cp").arg(std::env::current_exe()?).arg(&program).status()?;
    if !copied.success() {
        return Err(format!("copy the program: {copied}").into());
    }
    for _ in 0..options.busy {
        std::thread::spawn(spin_alone);
    }
    let (next, lapses) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let failures = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..options.at_once {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= options.lapses {
                        return;
                    }
                    let millicores = options.millicores[number % options.millicores.len()];
                    match lapse(directory.path(), number, millicores) {
                        Ok(lapse) => lapses.lock().expect("no holder panics").push(lapse),
                        Err(error) => failures.lock().expect("no holder panics").push(error.to_string()),
                    }
                }
            });
        }
    });
    let lapses = lapses.into_inner().expect("no holder panics");
    let failures = failures.into_inner().expect("no holder panics");
    Ok(print(&options, &lapses, &failures))
}

/// One lapse, from starting the agent to an empty state directory.
fn lapse(directory: &Path, number: usize, millicores: u64) -> ExampleResult<Lapse> {
    let (first, second) = (format!("first-{}", 2 * number), format!("second-{}", 2 * number + 1));
    let successor = launcher(directory, &second)?;
    let arguments = ["agent".into(), directory.display().to_string(), first.clone(), millicores.to_string()];
    let agent = Command::new(directory.join("program")).args(arguments).stdout(Stdio::piped()).spawn()?;
    let mut agent = Killed(agent);
    let mut line = String::new();
    BufReader::new(agent.0.stdout.take().ok_or("no output")?).read_line(&mut line)?;
    // SAFETY: passes integers; the process is this one's child and has not been waited for.
    unsafe { libc::kill(i32::try_from(agent.0.id())?, libc::SIGSTOP) };
    let words: Vec<&str> = line.trim_end().split(' ').collect();
    let [init, worker, lease, not_enforced] = words[..] else {
        return Err(format!("agent: {line:?}").into());
    };
    let lease = BootTime(lease.parse()?);
    let processes = [pidfd(init.parse()?), pidfd(worker.parse()?)];
    let two_holders_ms = std::thread::scope(|scope| -> ExampleResult<_> {
        let next = scope.spawn(|| next_holder(&successor, directory, &second, millicores, lease, &processes));
        for process in processes.iter().flatten() {
            wait(process, -1);
        }
        let ended = boot_time();
        let two_holders = next.join().map_err(|_| "the next holder's thread panicked")??;
        Ok((ended, two_holders))
    });
    drop(agent);
    let (ended, two_holders_ms) = two_holders_ms?;
    launcher(directory, &first)?.remove_stale()?;
    successor.remove_stale()?;
    let late_ms = i64::try_from(ended.0)? - i64::try_from(lease.0)?;
    Ok(Lapse { millicores, late_ms, two_holders_ms, not_enforced: not_enforced.to_string() })
}

/// Starts the slot's next holder when the lease expires. Returns a value if the previous worker was still
/// alive then.
fn next_holder(
    launcher: &SandboxLauncher,
    directory: &Path,
    name: &str,
    millicores: u64,
    lease: BootTime,
    before: &[Option<OwnedFd>],
) -> ExampleResult<Option<i64>> {
    std::thread::sleep(Duration::from_millis(lease.since(boot_time())));
    let sandbox = start(launcher, directory, name, millicores, boot_time().plus(LEASE_MS))?;
    let alive = before.iter().flatten().any(|process| !wait(process, 0));
    let began = i64::try_from(boot_time().0)? - i64::try_from(lease.0)?;
    sandbox.remove()?;
    Ok(alive.then_some(began))
}

/// A process that is killed when this value is dropped, stopped or not.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Returns none for a process that has already ended.
fn pidfd(process: u32) -> Option<OwnedFd> {
    // SAFETY: passes integers.
    let descriptor = unsafe { libc::syscall(libc::SYS_pidfd_open, process, 0) };
    // SAFETY: the kernel has just handed it to this process.
    (descriptor >= 0).then(|| unsafe { OwnedFd::from_raw_fd(i32::try_from(descriptor).expect("32 bits")) })
}

/// Waits up to the timeout for a process to end. Returns whether it has ended.
fn wait(process: &OwnedFd, timeout_ms: i32) -> bool {
    let mut poll = libc::pollfd { fd: process.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one entry, which outlives the call.
    unsafe { libc::poll(&raw mut poll, 1, timeout_ms) > 0 }
}

/// Prints the table. Returns the exit status.
fn print(options: &Options, lapses: &[Lapse], failures: &[String]) -> i32 {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    println!(
        "{} lapses, {} at once, {THREADS} spinning threads each, {} busy threads beside them, {cores} cores",
        lapses.len(),
        options.at_once,
        options.busy
    );
    println!(
        "{:>10} {:>7} {:>9} {:>9} {:>9} {:>9}  two holders",
        "millicores", "lapses", "min", "median", "p99", "max"
    );
    for millicores in &options.millicores {
        let of_size = || lapses.iter().filter(|lapse| lapse.millicores == *millicores);
        let mut late: Vec<i64> = of_size().map(|lapse| lapse.late_ms).collect();
        late.sort_unstable();
        let Some(last) = late.len().checked_sub(1) else { continue };
        let at = |percent: usize| format!("{} ms", late[(last * percent).div_ceil(100)]);
        let two = of_size().filter(|lapse| lapse.two_holders_ms.is_some()).count();
        println!(
            "{millicores:>10} {:>7} {:>9} {:>9} {:>9} {:>9}  {two}",
            late.len(),
            at(0),
            at(50),
            at(99),
            at(100)
        );
    }
    if let Some(label) = lapses.iter().map(|lapse| &lapse.not_enforced).find(|labels| *labels != "-") {
        println!("not enforced here: {label}");
    }
    failures.iter().for_each(|failure| println!("failed: {failure}"));
    let late = lapses.iter().filter(|lapse| lapse.late_ms > LATE_MS_MAX).count();
    let two = lapses.iter().filter(|lapse| lapse.two_holders_ms.is_some()).count();
    println!("{late} later than {LATE_MS_MAX} ms, {two} with two holders, {} failed", failures.len());
    i32::from(late + two + failures.len() > 0)
}
