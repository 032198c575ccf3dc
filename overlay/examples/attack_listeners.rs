//! Load client of `cargo xtask attack listeners`: floods every listener of a cluster from one address.
//!
//! It holds as many connections as it can, while a good client sends requests from another address.
//!
//! `attack_listeners KEY_FILE KEY_OF_ATTACKER GATEWAY control=ADDRESS... public=ADDRESS workers=ADDRESS
//! pid=NAME:PID...`
//!
//! The attack is sustained: a connection that the listener ends is opened again after a short pause. The
//! same attack runs against a listener of this process that admits the first to come, as the positive
//! control: the good client must fail there. The client exits 1 if one request of the good client fails
//! elsewhere, if none fails at the positive control, or if a listener never had to end a connection.

use overlay::{CancellationToken, Identity, Limits, PublicKey, open_files, reverse_serve};
use protocol::limits::LEASE_MS;
use protocol::order::{SignedTicket, TICKET_DOMAIN, Ticket};
use protocol::{BootTime, Fence, Millis, NodeId, SlotIndex, canonical};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Semaphore;

const GOOD: &str = "127.0.0.1";
const ATTACKER: &str = "127.0.0.2";
/// Silent connections on the API of each replica: more than its 1,024.
const SILENT_CONTROL: usize = 1_100;
/// Silent connections on the public API of the gateway: more than its 4,096.
const SILENT_PUBLIC: usize = 4_200;
/// Silent connections on the gateway's listener for workers.
const SILENT_WORKERS: usize = 1_100;
/// Unadmitted peers with a key and a self-signed ticket, on the same listener.
const UNADMITTED: usize = 100;
/// Requests whose body stops short of its end.
const UNFINISHED: usize = 100;
/// Announced length of such a body, and the part of it that is sent, in bytes.
const BODY_BYTES: usize = 8_300_000;
const SENT_BYTES: usize = 8_000_000;
/// Number of requests of the good client to each listener.
const ROUNDS: usize = 1_000;
/// Longest wait of the good client for one answer. It only ends the wait; it is no criterion of success.
const PATIENCE: Duration = Duration::from_secs(60);
/// Pause of an attacker before it reconnects, so that it does not take the machine's processors.
const AGAIN: Duration = Duration::from_millis(200);
/// Connections that one attack opens at a time, and the pause between two on one of these turns. A burst
/// overflows the kernel's queue of handshakes, which then answers with SYN cookies: a silent connection
/// whose last packet is lost exists for its client alone, and the listener is not full.
const DIALS_AT_ONCE: usize = 32;
const DIAL_PAUSE: Duration = Duration::from_millis(2);
/// Connections that the positive control admits: as many as the API of a replica.
const FIRST_COME_MAX: usize = 1_024;
/// Name of the attack with bodies that never end.
const BODIES: &str = "unfinished bodies";
/// Name of the positive control in the output.
const FIRST_COME: &str = "positive control";

/// A listener, and the request that it is sent.
#[derive(Clone)]
struct AttackTarget {
    name: String,
    address: SocketAddr,
    request: Arc<Vec<u8>>,
}

/// The state of one kind of attack.
struct Attack {
    held: AtomicUsize,
    opened: AtomicUsize,
    /// Connections opened in all from which on the attack is under way.
    opened_min: usize,
    dials: Semaphore,
}

impl Attack {
    fn new(opened_min: usize) -> Arc<Self> {
        let dials = Semaphore::new(DIALS_AT_ONCE);
        Arc::new(Self { held: AtomicUsize::new(0), opened: AtomicUsize::new(0), opened_min, dials })
    }

    /// Opens one connection from the attacker's address, at the pace of the attack.
    async fn dial(&self, to: SocketAddr) -> std::io::Result<TcpStream> {
        let _turn = self.dials.acquire().await;
        let stream = dial(ATTACKER, to).await;
        tokio::time::sleep(DIAL_PAUSE).await;
        stream
    }
}

/// Counts a connection as held while it lives.
struct Held(Arc<Attack>);

impl Held {
    fn new(attack: &Arc<Attack>) -> Self {
        attack.held.fetch_add(1, Ordering::Relaxed);
        attack.opened.fetch_add(1, Ordering::Relaxed);
        Self(attack.clone())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.held.fetch_sub(1, Ordering::Relaxed);
    }
}

#[derive(Default)]
struct Arguments {
    key: String,
    attacker: String,
    gateway: Option<PublicKey>,
    controls: Vec<SocketAddr>,
    public: Option<SocketAddr>,
    workers: Option<SocketAddr>,
    pids: Vec<(String, u32)>,
}

fn arguments() -> Result<Arguments, String> {
    let mut words = std::env::args().skip(1);
    let mut found = Arguments::default();
    let key_file = words.next().ok_or("name the file of the API key")?;
    found.key = std::fs::read_to_string(&key_file).map_err(|error| format!("{key_file}: {error}"))?;
    found.attacker = words.next().ok_or("give the attacker's API key")?;
    let gateway = words.next().ok_or("give the gateway's key")?;
    found.gateway = Some(gateway.parse().map_err(|_| format!("`{gateway}` is no key"))?);
    for word in words {
        let (name, value) = word.split_once('=').ok_or(format!("`{word}` is not NAME=VALUE"))?;
        let address = || value.parse().map_err(|_| format!("`{value}` is no address"));
        match name {
            "control" => found.controls.push(address()?),
            "public" => found.public = Some(address()?),
            "workers" => found.workers = Some(address()?),
            "pid" => {
                let (name, pid) = value.split_once(':').ok_or(format!("`{value}` is not NAME:PID"))?;
                found.pids.push((name.into(), pid.parse().map_err(|_| format!("`{pid}` is no number"))?));
            }
            _ => return Err(format!("`{name}` is not known")),
        }
    }
    Ok(found)
}

#[tokio::main]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<(), String> {
    let arguments = arguments()?;
    let public = arguments.public.ok_or("give public=ADDRESS")?;
    let workers = arguments.workers.ok_or("give workers=ADDRESS")?;
    let gateway = arguments.gateway.ok_or("give the gateway's key")?;
    // The positive control holds the other end of its connections in this process.
    let wanted = SILENT_CONTROL * (arguments.controls.len() + 2)
        + SILENT_PUBLIC
        + SILENT_WORKERS
        + UNADMITTED
        + UNFINISHED;
    let [own] = open_files::fit(256, [Limits { connections_max: wanted, ..Limits::default() }]);
    // A share of the plan if this process may not open as many files.
    let share = |count: usize| count * own.connections_max / wanted;

    let first_come = admit_the_first_to_come().await.map_err(|error| format!("listen: {error}"))?;
    let targets = targets(&arguments, public, first_come);
    println!("before: {}", memory(&arguments.pids));
    let calm = ask_all(&targets, ROUNDS).await;
    report("without attack", &calm);

    let over = Arc::new(AtomicBool::new(false));
    let mut attacks = Vec::new();
    let mut begin = |name: String, count: usize| {
        // A listener that is full ends a connection, which is opened again; bodies are kept or refused.
        let attack = Attack::new(if name == BODIES { count } else { count + 1 });
        attacks.push((name, count, attack.clone()));
        attack
    };
    for (number, address) in arguments.controls.iter().enumerate() {
        let attack = begin(format!("silent on control {}", number + 1), share(SILENT_CONTROL));
        silence(&attack, &over, *address, share(SILENT_CONTROL));
    }
    let attack = begin(format!("silent on the {FIRST_COME}"), share(SILENT_CONTROL));
    silence(&attack, &over, first_come, share(SILENT_CONTROL));
    let attack = begin("silent on the public API".into(), share(SILENT_PUBLIC));
    silence(&attack, &over, public, share(SILENT_PUBLIC));
    let attack = begin("silent on the workers' listener".into(), share(SILENT_WORKERS));
    silence(&attack, &over, workers, share(SILENT_WORKERS));
    let attack = begin("unadmitted keys on the workers' listener".into(), share(UNADMITTED));
    unadmitted_peers(&attack, &over, workers, gateway, share(UNADMITTED));
    let attack = begin(BODIES.into(), share(UNFINISHED));
    unfinished_bodies(&attack, &over, public, arguments.attacker.trim(), share(UNFINISHED));

    wait_until_under_way(&attacks).await?;
    let attacked = ask_all(&targets, ROUNDS).await;
    println!("during: {}", memory(&arguments.pids));
    let state = |(name, count, attack): &(String, usize, Arc<Attack>)| {
        let (held, opened) = (attack.held.load(Ordering::Relaxed), attack.opened.load(Ordering::Relaxed));
        println!("attack: {name}: {held} of {count} held, {opened} opened in all");
    };
    attacks.iter().for_each(state);
    report("under attack", &attacked);
    over.store(true, Ordering::Relaxed);
    let after = ask_all(&targets, ROUNDS / 10).await;
    report("afterwards", &after);
    println!("after: {}", memory(&arguments.pids));

    judge(&calm, &attacked, &after)
}

/// Returns an error if the good client failed at a listener of the cluster, or never at the positive control.
fn judge(calm: &Outcome, attacked: &Outcome, after: &Outcome) -> Result<(), String> {
    let failed_at = |outcome: &Outcome, control: bool| -> usize {
        let chosen = outcome.iter().filter(|(name, _)| (name == FIRST_COME) == control);
        chosen.map(|(_, answers)| answers.failures.len()).sum()
    };
    let failed: usize = [calm, attacked, after].iter().map(|outcome| failed_at(outcome, false)).sum();
    if failed > 0 {
        return Err(format!("{failed} requests of the good client failed"));
    }
    if failed_at(calm, true) > 0 || failed_at(attacked, true) == 0 {
        return Err(
            "the positive control did not fail under attack, or without: the attack shows nothing".into()
        );
    }
    Ok(())
}

/// Serves the first clients to connect to a port of this process: beyond [`FIRST_COME_MAX`] connections it
/// closes the newest, as a listener without fair admission does.
async fn admit_the_first_to_come() -> std::io::Result<SocketAddr> {
    let listener = TcpListener::bind((GOOD, 0)).await?;
    let address = listener.local_addr()?;
    let places = Arc::new(Semaphore::new(FIRST_COME_MAX));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            if let Ok(place) = places.clone().try_acquire_owned() {
                tokio::spawn(async move {
                    // The end of one connection concerns no other.
                    let _ = answer(stream).await;
                    drop(place);
                });
            }
        }
    });
    Ok(address)
}

/// Answers one request without a body.
async fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read_buf(&mut head).await? == 0 {
            return Ok(());
        }
    }
    stream.write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n").await
}

fn targets(arguments: &Arguments, public: SocketAddr, first_come: SocketAddr) -> Vec<AttackTarget> {
    let get =
        |path: &str| format!("GET {path} HTTP/1.1\r\nhost: q\r\nconnection: close\r\n\r\n").into_bytes();
    let mut targets: Vec<AttackTarget> = arguments
        .controls
        .iter()
        .enumerate()
        .map(|(number, address)| AttackTarget {
            name: format!("control {}", number + 1),
            address: *address,
            request: Arc::new(get("/readyz")),
        })
        .collect();
    targets.push(AttackTarget { name: FIRST_COME.into(), address: first_come, request: Arc::new(get("/")) });
    let body = r#"{"model": "tiny", "prompt": "Once upon a time", "max_tokens": 1}"#;
    let request = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: q\r\nconnection: close\r\nauthorization: Bearer {}\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        arguments.key.trim(),
        body.len()
    );
    targets.push(AttackTarget {
        name: "public".into(),
        address: public,
        request: Arc::new(request.into_bytes()),
    });
    targets
}

/// The results of the good client, by the name of the listener.
type Outcome = Vec<(String, Answers)>;

/// The results of the good client at one listener.
#[derive(Default)]
struct Answers {
    latencies: Vec<Duration>,
    failures: Vec<String>,
}

/// Sends `rounds` requests to every listener, each on a connection of its own.
async fn ask_all(targets: &[AttackTarget], rounds: usize) -> Outcome {
    let ask_one = |target: AttackTarget| async move {
        let mut answers = Answers::default();
        for _ in 0..rounds {
            let began = Instant::now();
            let answer = tokio::time::timeout(PATIENCE, ask(&target)).await;
            match answer.unwrap_or_else(|_| Err("no answer".into())) {
                Ok(()) => answers.latencies.push(began.elapsed()),
                Err(failure) => answers.failures.push(failure),
            }
        }
        (target.name, answers)
    };
    let tasks: Vec<_> = targets.iter().map(|target| tokio::spawn(ask_one(target.clone()))).collect();
    let mut all = Vec::new();
    for task in tasks {
        all.push(task.await.expect("the good client does not panic"));
    }
    all
}

async fn ask(target: &AttackTarget) -> Result<(), String> {
    let mut stream = dial(GOOD, target.address).await.map_err(|error| format!("connect: {error}"))?;
    let mut answer = Vec::new();
    stream.write_all(&target.request).await.map_err(|error| format!("send: {error}"))?;
    stream.read_to_end(&mut answer).await.map_err(|error| format!("read: {error}"))?;
    if answer.starts_with(b"HTTP/1.1 200") {
        return Ok(());
    }
    Err(String::from_utf8_lossy(&answer).lines().next().unwrap_or("nothing").to_owned())
}

async fn dial(from: &str, to: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::new(from.parse().expect("a literal address"), 0))?;
    socket.connect(to).await
}

/// Sustains an attack: `count` tasks, each with one connection at a time, reopened after it ends.
fn keep_up<F>(over: &Arc<AtomicBool>, count: usize, one: impl Fn() -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let tasks: Vec<_> = (0..count).map(|_| tokio::spawn(one())).collect();
    let over = over.clone();
    tokio::spawn(async move {
        while !over.load(Ordering::Relaxed) {
            tokio::time::sleep(AGAIN).await;
        }
        tasks.iter().for_each(tokio::task::JoinHandle::abort);
    });
}

fn silence(attack: &Arc<Attack>, over: &Arc<AtomicBool>, to: SocketAddr, count: usize) {
    keep_up(over, count, || {
        let attack = attack.clone();
        async move {
            loop {
                if let Ok(mut stream) = attack.dial(to).await {
                    let _held = Held::new(&attack);
                    // Until the listener ends it.
                    let _ = stream.read(&mut [0; 64]).await;
                }
                tokio::time::sleep(AGAIN).await;
            }
        }
    });
}

fn unadmitted_peers(
    attack: &Arc<Attack>,
    over: &Arc<AtomicBool>,
    to: SocketAddr,
    gateway: PublicKey,
    count: usize,
) {
    keep_up(over, count, || {
        let attack = attack.clone();
        async move {
            loop {
                if let (Ok(tcp), Ok(worker)) = (attack.dial(to).await, Identity::generate()) {
                    let _held = Held::new(&attack);
                    let preface = canonical::to_bytes(&ticket(&worker, gateway)).into();
                    let (limits, never) = (Limits::default(), CancellationToken::new());
                    let router = axum::Router::new();
                    // Every result counts as an end.
                    let _ = reverse_serve(tcp, &worker, gateway, preface, limits, router, never).await;
                }
                tokio::time::sleep(AGAIN).await;
            }
        }
    });
}

/// Returns a well-formed ticket, signed by a node that no circle admits: the worker itself.
fn ticket(worker: &Identity, gateway: PublicKey) -> SignedTicket {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let expires_at = Millis(u64::try_from(now.as_millis()).unwrap_or(u64::MAX)).plus(LEASE_MS);
    let ticket = Ticket {
        service: "tiny".parse().expect("a name"),
        slot: SlotIndex(0),
        fence: Fence::new(1, 1_000_000),
        node: NodeId(worker.public_key()),
        worker: worker.public_key(),
        gateway,
        expires_at,
        lease_until_boottime_ms: BootTime(expires_at.0),
    };
    let signature = worker.sign(TICKET_DOMAIN, &canonical::to_bytes(&ticket));
    SignedTicket { ticket, signature }
}

fn unfinished_bodies(attack: &Arc<Attack>, over: &Arc<AtomicBool>, to: SocketAddr, key: &str, count: usize) {
    let head = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: q\r\nauthorization: Bearer {key}\r\n\
         content-type: application/json\r\ncontent-length: {BODY_BYTES}\r\n\r\n"
    );
    let bytes = Arc::new([head.into_bytes(), vec![b' '; SENT_BYTES]].concat());
    keep_up(over, count, || {
        let (attack, bytes) = (attack.clone(), bytes.clone());
        async move {
            loop {
                if let Ok(mut stream) = attack.dial(to).await {
                    let _held = Held::new(&attack);
                    // Refused or not, it reads until the listener ends it.
                    let _ = stream.write_all(&bytes).await;
                    let mut answer = Vec::new();
                    let _ = stream.read_to_end(&mut answer).await;
                }
                tokio::time::sleep(AGAIN).await;
            }
        }
    });
}

/// Waits until every attack is under way: every listener is full, and every body has begun.
async fn wait_until_under_way(attacks: &[(String, usize, Arc<Attack>)]) -> Result<(), String> {
    let began = Instant::now();
    while let Some((name, count, attack)) =
        attacks.iter().find(|(_, _, attack)| attack.opened.load(Ordering::Relaxed) < attack.opened_min)
    {
        if began.elapsed() > PATIENCE {
            let opened = attack.opened.load(Ordering::Relaxed);
            return Err(format!("the attack is not under way: {name}: {opened} of {count}"));
        }
        tokio::time::sleep(AGAIN).await;
    }
    Ok(())
}

fn report(when: &str, all: &[(String, Answers)]) {
    for (name, answers) in all {
        let mut latencies = answers.latencies.clone();
        latencies.sort();
        let at = |share: f64| {
            let place = (latencies.len().saturating_sub(1) as f64 * share) as usize;
            latencies.get(place).map_or(0.0, |latency| latency.as_secs_f64() * 1000.0)
        };
        let asked = latencies.len() + answers.failures.len();
        let (failed, half, most, last) = (answers.failures.len(), at(0.5), at(0.99), at(1.0));
        println!(
            "{when}: {name}: {failed} of {asked} failed, p50 {half:.1} ms, p99 {most:.1} ms, max {last:.1} ms"
        );
        for failure in answers.failures.iter().take(3) {
            println!("  {failure}");
        }
    }
}

/// Returns the resident memory of the daemons.
fn memory(pids: &[(String, u32)]) -> String {
    let of = |pid: u32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or("0 kB").to_owned();
        line.trim().trim_end_matches(" kB").parse().map_or(0, |kilobytes: u64| kilobytes / 1024)
    };
    let texts = pids.iter().map(|(name, pid)| format!("{name} {} MiB", of(*pid)));
    texts.collect::<Vec<_>>().join(", ")
}
