//! A well-behaved worker and gateway, for the tests of the agent alone. No part of the product starts it.
//!
//! The worker sends its key and state, waits for its weights, prints their digest, and presents its tickets
//! to each gateway without TLS. The gateway accepts tables and reports them on its public socket. The rank is
//! one of a gang of two. The trainer leaves checkpoints and outputs.

mod rank;
mod trainer;

use overlay::descriptors::{FrameError, blocking};
use protocol::gateway::{RouteTable, TableAccepted};
use protocol::order::SignedTicket;
use protocol::worker::{
    FromWorker, ToWorker, WORKER_MANIFEST_FD, WORKER_METRICS_FD, WORKER_PROGRESS_FD, WORKER_SOCKET_FD,
    WORKER_WEIGHTS_FD, WorkerManifest, WorkerMetrics, WorkerState,
};
use protocol::{Digest, Millis, PublicKey, canonical};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// State shared by the threads.
struct PretendWorker {
    key: PublicKey,
    state: Mutex<WorkerState>,
    agents: Mutex<Vec<UnixStream>>,
    gateways: Mutex<BTreeMap<PublicKey, File>>,
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let outcome = match arguments.next().as_deref() {
        Some("sandbox-init") => std::process::exit(sandbox::init::main(arguments)),
        Some("worker") => run(),
        Some("gateway") => gateway(&arguments.collect::<Vec<_>>()),
        Some("rank") => rank::run(),
        Some("trainer") => trainer::run(&arguments.collect::<Vec<_>>()),
        _ => Err(io::Error::other("used by the tests of gpu-agent")),
    };
    if let Err(error) = outcome {
        eprintln!("pretend-worker: {error}");
        std::process::exit(1);
    }
}

/// Runs until it is ended. A service called `dies` exits as soon as it is ready, and one called `spins` then
/// computes without end.
fn run() -> io::Result<()> {
    let mut bytes = Vec::new();
    own(WORKER_MANIFEST_FD).read_to_end(&mut bytes)?;
    let manifest: WorkerManifest = canonical::from_bytes(&bytes, bytes.len()).map_err(io::Error::other)?;
    let worker = Arc::new(PretendWorker {
        key: PublicKey(host::random::random_bytes()),
        state: Mutex::new(WorkerState::Loading),
        agents: Mutex::default(),
        gateways: Mutex::default(),
    });
    let listener = UnixListener::from(OwnedFd::from(own(WORKER_SOCKET_FD)));
    let listening = worker.clone();
    std::thread::spawn(move || listening.listen(&listener));
    let metrics = own(WORKER_METRICS_FD);
    std::thread::spawn(move || write_metrics(metrics));

    wait_for_weights(&manifest)?;
    let mut weights = vec![0; usize::try_from(manifest.map_bytes).map_err(io::Error::other)?];
    own(WORKER_WEIGHTS_FD).read_exact_at(&mut weights, 0)?;
    println!("weights {}", Digest::of(&weights));
    worker.enter(WorkerState::Ready);
    if manifest.service.as_str() == "dies" {
        std::thread::sleep(Duration::from_millis(50));
        println!("these are my last words");
        std::process::exit(7);
    }
    if manifest.service.as_str() == "spins" {
        std::thread::spawn(|| {
            loop {
                std::hint::spin_loop();
            }
        });
        loop {
            std::hint::spin_loop();
        }
    }
    loop {
        std::thread::park();
    }
}

/// Runs a gateway: accepts tables on its control socket, and answers each public connection with the version.
fn gateway(arguments: &[String]) -> io::Result<()> {
    let value = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name)?;
        arguments.get(at + 1).cloned()
    };
    let missing = || io::Error::from(io::ErrorKind::InvalidInput);
    let number = value("--public").ok_or_else(missing)?;
    let number: i32 = number.trim_start_matches("fd:").parse().map_err(io::Error::other)?;
    let public = std::net::TcpListener::from(OwnedFd::from(own(number)));
    public.set_nonblocking(false)?;
    let path = value("--control-socket").ok_or_else(missing)?;
    let _ = std::fs::remove_file(&path);
    let control = UnixListener::bind(path)?;
    let version = Arc::new(AtomicU64::new(0));
    let shown = version.clone();
    std::thread::spawn(move || {
        for mut client in public.incoming().flatten() {
            let (version, pid) = (shown.load(Ordering::Relaxed), std::process::id());
            let _ = client.write_all(format!("{version} {pid}").as_bytes());
        }
    });
    for agent in control.incoming().flatten() {
        while let Ok(Some((table, _))) = blocking::receive::<RouteTable>(&agent) {
            version.store(table.version, Ordering::Relaxed);
            let accepted = TableAccepted { version: table.version, workers: 0 };
            if blocking::send(&agent, &accepted, &[]).is_err() {
                break;
            }
        }
    }
    Ok(())
}

fn wait_for_weights(manifest: &WorkerManifest) -> io::Result<()> {
    let progress = own(WORKER_PROGRESS_FD);
    let mut bytes = vec![0; manifest.segments.len()];
    loop {
        progress.read_exact_at(&mut bytes, 0)?;
        if bytes.iter().all(|byte| *byte == 1) {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn write_metrics(mut pipe: File) {
    let mut total = 0;
    loop {
        total += 1;
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let at = Millis(u64::try_from(since.as_millis()).unwrap_or(0));
        // Each line counts two tokens of a prompt, and three of its answer.
        let (prompt_tokens_total, generation_tokens_total) = (2 * total, 3 * total);
        let metrics = WorkerMetrics {
            at,
            requests_total: total,
            prompt_tokens_total,
            generation_tokens_total,
            ..WorkerMetrics::default()
        };
        let mut line = serde_json::to_vec(&metrics).unwrap_or_default();
        line.push(b'\n');
        let _ = pipe.write_all(&line);
        std::thread::sleep(Duration::from_millis(50));
    }
}

impl PretendWorker {
    fn listen(self: Arc<Self>, listener: &UnixListener) {
        for stream in listener.incoming().flatten() {
            let worker = self.clone();
            std::thread::spawn(move || {
                let ended = worker.talk(&stream);
                println!("talk with an agent ended: {ended:?}");
            });
        }
    }

    fn talk(&self, stream: &UnixStream) -> Result<(), FrameError> {
        while let Some((message, descriptors)) = blocking::receive::<ToWorker>(stream)? {
            match message {
                ToWorker::Hello => {
                    let state = *lock(&self.state);
                    lock(&self.agents).push(stream.try_clone()?);
                    blocking::send(stream, &FromWorker::Hello { worker: self.key, state }, &[])?;
                }
                ToWorker::Drain => self.enter(WorkerState::Draining),
                ToWorker::Ticket(ticket) => self.show(ticket.ticket.gateway, &ticket),
                ToWorker::Connection { gateway, ticket } => {
                    if let Some(descriptor) = descriptors.into_iter().next() {
                        lock(&self.gateways).insert(gateway, File::from(descriptor));
                        self.show(gateway, &ticket);
                    }
                }
            }
        }
        Ok(())
    }

    /// Presents a ticket to a gateway; a lost connection is reported to the agents.
    fn show(&self, gateway: PublicKey, ticket: &SignedTicket) {
        let bytes = canonical::to_bytes(ticket);
        let length = u32::try_from(bytes.len()).unwrap_or(0).to_be_bytes();
        let mut gateways = lock(&self.gateways);
        let Some(connection) = gateways.get_mut(&gateway) else { return };
        if connection.write_all(&[&length[..], &bytes].concat()).is_err() {
            gateways.remove(&gateway);
            drop(gateways);
            self.tell(&FromWorker::Disconnected { gateway });
        }
    }

    fn enter(&self, state: WorkerState) {
        *lock(&self.state) = state;
        self.tell(&FromWorker::State { state, detail: String::new() });
    }

    fn tell(&self, message: &FromWorker) {
        lock(&self.agents).retain(|agent| blocking::send(agent, message, &[]).is_ok());
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn own(descriptor: RawFd) -> File {
    // SAFETY: each number was passed to this process by exec for its sole use, and is taken once.
    unsafe { File::from_raw_fd(descriptor) }
}
