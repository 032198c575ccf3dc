//! Process tests of the real binary, started as users do: on local files, as a gateway, and under a sandbox's
//! filter. The models have random weights.

use crate::cluster::{Cluster, chat, events_of, eventually, renewed, signed_by, whole};
use crate::models::{bert_config, llama_config, write};
use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::Full;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use overlay::Identity;
use overlay::descriptors::{FrameReceiver, FrameSender};
use protocol::gateway::{ApiKey, RouteTable, TableAccepted};
use protocol::manifest::Task;
use protocol::model::ModelFile;
use protocol::order::Ticket;
use protocol::worker::{
    FromWorker, SegmentRange, ToWorker, WORKER_MANIFEST_FD, WORKER_METRICS_FD, WORKER_PROGRESS_FD,
    WORKER_SOCKET_FD, WORKER_WEIGHTS_FD, WorkerManifest, WorkerMetrics, WorkerState,
};
use protocol::{Digest, Fence, ModelRoot, PublicKey, SlotIndex, canonical};
use safetensors::Dtype;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// A process that ends with its test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // It may have exited already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Process {
    fn start(command: &mut Command) -> Self {
        Self(command.stdout(Stdio::piped()).spawn().expect("the binary starts"))
    }

    /// Reads the line of JSON that the process prints when it is ready.
    fn announcement(&mut self) -> Value {
        let mut line = String::new();
        let stdout = self.0.stdout.as_mut().expect("piped");
        BufReader::new(stdout).read_line(&mut line).expect("a line");
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
    }

    /// Sends SIGTERM and returns the exit code.
    fn terminate(mut self) -> Option<i32> {
        kill(Pid::from_raw(self.0.id() as i32), Signal::SIGTERM).expect("it runs");
        self.0.wait().expect("it ends").code()
    }
}

fn binary() -> Command {
    Command::new(env!("CARGO_BIN_EXE_quorate-serve"))
}

async fn send(method: Method, address: SocketAddr, path: &str, body: &str) -> (StatusCode, Value) {
    let client = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
    let request = Request::builder().method(method).uri(format!("http://{address}{path}"));
    let request = request.body(Full::new(Bytes::from(body.to_owned()))).expect("valid");
    let (status, body) = whole(client.request(request).await.expect("an answer")).await;
    (status, serde_json::from_slice(&body).expect("JSON"))
}

#[tokio::test]
async fn a_worker_serves_local_files() {
    let directory = write(&llama_config(), Dtype::F32);
    let model = directory.path().to_str().expect("UTF-8");
    let mut process = Process::start(binary().args(["worker", "--model-name", "tiny", "--model-dir", model]));
    let announcement = process.announcement();
    let address: SocketAddr = announcement["listening"].as_str().expect("text").parse().expect("an address");
    assert!(address.ip().is_loopback());
    let body = r#"{"model": "tiny", "prompt": "ab", "max_tokens": 4, "temperature": 0}"#;
    let (status, answer) = send(Method::POST, address, "/v1/completions", body).await;
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["usage"]["prompt_tokens"], 2);
    assert_eq!(send(Method::POST, address, "/v1/completions", body).await.1["choices"], answer["choices"]);
    let (status, answer) = send(Method::POST, address, "/v1/completions", &body.replace("tiny", "x")).await;
    assert_eq!((status.as_u16(), &answer["error"]["code"]), (404, &Value::from("model_not_found")));
    let body = r#"{"model": "tiny", "input": "ab"}"#;
    let (status, answer) = send(Method::POST, address, "/v1/embeddings", body).await;
    assert_eq!((status.as_u16(), &answer["error"]["code"]), (400, &Value::from("operation_unsupported")));
    assert_eq!(send(Method::GET, address, "/v1/models", "").await.1["data"][0]["id"], "tiny");
    assert_eq!(process.terminate(), Some(0));
}

#[test]
fn a_worker_that_cannot_serve_reports_the_cause() {
    let directory = write(&bert_config(), Dtype::F32);
    let model = directory.path().to_str().expect("UTF-8").to_owned();
    let refusal = |arguments: &[&str]| {
        let output = binary().arg("worker").args(arguments).output().expect("it runs");
        assert!(!output.status.success());
        String::from_utf8(output.stderr).expect("text")
    };
    assert!(refusal(&["--model-dir", "/nowhere"]).contains("open /nowhere"));
    assert!(refusal(&["--model-dir", &model, "--listen", "0.0.0.0:0"]).contains("not loopback"));
    assert!(refusal(&["--model-dir", &model, "--task", "generate"]).contains("this model embeds text"));
    assert!(refusal(&["--inherited", "--model-dir", &model]).contains("cannot be used with"));
    assert!(refusal(&["--inherited"]).contains("descriptor 7 is not open"));
    std::fs::remove_file(directory.path().join("tokenizer.json")).expect("there");
    assert!(refusal(&["--model-dir", &model]).contains("tokenizer.json"));
}

#[tokio::test]
async fn a_gateway_denies_itself_connections_and_shuts_down_in_order() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = |name: &str| directory.path().join(name).to_str().expect("UTF-8").to_owned();
    let mut process = Process::start(binary().args([
        "gateway",
        "--public",
        "127.0.0.1:0",
        "--workers",
        "127.0.0.1:0",
        "--metrics",
        "127.0.0.1:0",
        "--control-socket",
        &path("gateway.sock"),
        "--identity",
        &path("gateway.key"),
    ]));
    let announcement = process.announcement();
    let public: SocketAddr = announcement["public"].as_str().expect("text").parse().expect("an address");
    assert_eq!(announcement["key"].as_str().expect("a key").len(), 64);
    let (status, answer) = send(Method::GET, public, "/v1/models", "").await;
    assert_eq!((status.as_u16(), &answer["error"]["code"]), (401, &Value::from("invalid_api_key")));
    let threads = std::fs::read_dir(format!("/proc/{}/task", process.0.id())).expect("it runs");
    for thread in threads {
        let status =
            std::fs::read_to_string(thread.expect("a thread").path().join("status")).expect("readable");
        assert!(status.contains("Seccomp:\t2") && status.contains("NoNewPrivs:\t1"), "{status}");
    }
    assert_eq!(process.terminate(), Some(0));
    let mut open = binary();
    open.args(["gateway", "--public", "0.0.0.0:0", "--workers", "127.0.0.1:0"]);
    open.args(["--control-socket", &path("two.sock"), "--identity", &path("gateway.key")]);
    let output = open.output().expect("it runs");
    assert!(String::from_utf8_lossy(&output.stderr).contains("plain http"), "{output:?}");
}

/// Returns a number of KiB from a process's status.
fn memory_kib(process: &Process, field: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.0.id())).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix(field)).expect("the kernel says it");
    line.trim_start_matches(':').trim().trim_end_matches(" kB").parse().expect("a number")
}

#[tokio::test]
async fn prompts_of_megabytes_are_refused_and_cost_a_worker_little() {
    let directory = write(&llama_config(), Dtype::F32);
    let model = directory.path().to_str().expect("UTF-8");
    let mut process = Process::start(binary().args(["worker", "--model-name", "tiny", "--model-dir", model]));
    let announcement = process.announcement();
    let address: SocketAddr = announcement["listening"].as_str().expect("text").parse().expect("an address");
    let before = memory_kib(&process, "VmHWM");
    for _ in 0..4 {
        let prompt = "a word ".repeat(1_150_000);
        let body = format!(r#"{{"model": "tiny", "prompt": "{prompt}"}}"#);
        let (status, answer) = send(Method::POST, address, "/v1/completions", &body).await;
        assert_eq!(
            (status.as_u16(), &answer["error"]["code"]),
            (400, &Value::from("context_length_exceeded"))
        );
    }
    // The tokenizer took 2,000 MiB for one of these.
    let grown = memory_kib(&process, "VmHWM") - before;
    assert!(grown < 128 * 1024, "{grown} KiB");
    assert_eq!(process.terminate(), Some(0));
}

/// Starts a gateway process that knows two keys and no service.
async fn gateway_with_keys(directory: &Path) -> (Process, Value, impl Sized) {
    let path = |name: &str| directory.join(name).to_str().expect("UTF-8").to_owned();
    let (socket, key) = (path("gateway.sock"), path("gateway.key"));
    let mut command = binary();
    command.args([
        "gateway",
        "--public",
        "127.0.0.1:0",
        "--workers",
        "127.0.0.1:0",
        "--metrics",
        "127.0.0.1:0",
    ]);
    let mut process = Process::start(command.args(["--control-socket", &socket, "--identity", &key]));
    let announcement = process.announcement();
    let agent = UnixStream::connect(&socket).await.expect("it listens");
    let (mut sender, mut receiver) = overlay::descriptors::channel(agent);
    let key = |name: &str| ApiKey {
        name: name.parse().expect("a name"),
        hash: Digest::of(name.as_bytes()),
        services: None,
        requests_per_minute: None,
    };
    let table = RouteTable { version: 1, services: Vec::new(), api_keys: vec![key("hog"), key("other")] };
    sender.send(&table, &[]).await.expect("sent");
    receiver.receive::<TableAccepted>().await.expect("a frame").expect("not the end");
    (process, announcement, (sender, receiver))
}

// The flood runs on separate threads: a request delayed by it for 15 s would be cut off as too slow.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_unfinished_bodies_leave_a_gateway_as_it_was() {
    const MIB: u64 = 1024;
    let directory = tempfile::tempdir().expect("a directory");
    let (process, announcement, _agent) = gateway_with_keys(directory.path()).await;
    let address = |name: &str| announcement[name].as_str().expect("text").parse::<SocketAddr>().expect("one");
    let (public, metrics) = (address("public"), address("metrics"));
    // `None` while the machine is too busy to answer in time.
    let held = async || {
        let client = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
        let request = Request::get(format!("http://{metrics}/metrics")).body(Full::default()).expect("valid");
        let text = whole(client.request(request).await.ok()?).await.1;
        let text = String::from_utf8(text.to_vec()).expect("text");
        let line = text.lines().find_map(|line| line.strip_prefix("quorate_request_memory_bytes "));
        Some(line.expect("the metric").parse::<u64>().expect("a number") / 1024)
    };
    let other = async || {
        let body = format!(r#"{{"model": "none", "prompt": "{}"}}"#, "x".repeat(4_000_000));
        let client = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
        let request = Request::post(format!("http://{public}/v1/completions"));
        let request = request.header("authorization", "Bearer other").body(Full::new(Bytes::from(body)));
        Some(whole(client.request(request.expect("valid")).await.ok()?).await.0.as_u16())
    };
    assert_eq!(other().await, Some(404), "the whole body is read, and names a model that is not served");
    let before = memory_kib(&process, "VmRSS");
    let head = "POST /v1/completions HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer hog\r\n\
        content-length: 8388608\r\n\r\n";
    let flood: Vec<_> = (0..100)
        .map(|_| async move {
            let mut tcp = TcpStream::connect(public).await.expect("it listens");
            // A rejection closes the connection during the write.
            let mut sent = tcp.write_all(head.as_bytes()).await;
            if sent.is_ok() {
                sent = tcp.write_all(&vec![b' '; 8_300_000]).await;
            }
            // A byte each second, so that the body does not time out.
            while sent.is_ok() {
                tokio::time::sleep(Duration::from_secs(1)).await;
                sent = tcp.write_all(b" ").await;
            }
        })
        .map(tokio::spawn)
        .collect();
    eventually("the flood fills the budget", async || held().await > Some(200 * MIB)).await;
    eventually("what is beyond it is refused", async || {
        flood.iter().filter(|one| one.is_finished()).count() > 60
    })
    .await;
    let during = memory_kib(&process, "VmRSS");
    assert!(held().await.is_none_or(|bytes| bytes <= 256 * MIB));
    assert!(during < before + (256 + 64) * MIB, "{before} KiB before, {during} KiB during the flood");
    eventually("another key is served", async || {
        let status = other().await;
        assert_ne!(status, Some(429), "its share is free");
        status == Some(404)
    })
    .await;
    flood.iter().for_each(JoinHandle::abort);
    eventually("all is given back", async || held().await == Some(0)).await;
    eventually("to the system too", async || memory_kib(&process, "VmRSS") < before + 48 * MIB).await;
    assert_eq!(process.terminate(), Some(0));
}

/// Returns a model in two shared files, as an agent fills them, and the worker's manifest.
fn shared(directory: &Path) -> (std::fs::File, std::fs::File, WorkerManifest) {
    const SEGMENT: u64 = 65536;
    let (mut bytes, mut files) = (Vec::new(), Vec::new());
    for path in ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"] {
        let content = std::fs::read(directory.join(path)).expect("read");
        bytes.resize(bytes.len().next_multiple_of(4096), 0);
        let (offset, length) = (bytes.len() as u64, content.len() as u64);
        files.push(ModelFile { path: path.to_owned(), offset, length });
        bytes.extend(content);
    }
    let total = bytes.len() as u64;
    let segments: Vec<SegmentRange> = (0..total.div_ceil(SEGMENT))
        .map(|index| index * SEGMENT)
        .map(|offset| SegmentRange { offset, length: SEGMENT.min(total - offset) as u32 })
        .collect();
    let weights = tempfile::tempfile().expect("a file");
    weights.write_all_at(&bytes, 0).expect("written");
    let progress = tempfile::tempfile().expect("a file");
    progress.write_all_at(&vec![1; segments.len()], 0).expect("written");
    let manifest = WorkerManifest {
        service: "chat".parse().expect("a name"),
        slot: SlotIndex(0),
        fence: Fence::new(1, 1),
        task: Task::Generate,
        root: ModelRoot(Digest::of(&bytes)),
        files,
        segments,
        map_bytes: total,
        context_tokens_max: Some(150),
        batch_sequences_max: 4,
        threads: 1,
        memory_bytes: 1 << 30,
        gpus: Vec::new(),
        gpu_memory_bytes: None,
    };
    (weights, progress, manifest)
}

/// Returns the part of the sandbox's filter for a worker that concerns connections.
fn sandbox_filter() -> BpfProgram {
    let denied = [
        libc::SYS_socket,
        libc::SYS_connect,
        libc::SYS_bind,
        libc::SYS_listen,
        libc::SYS_sendmsg,
        libc::SYS_setsockopt,
        libc::SYS_io_uring_setup,
        libc::SYS_ptrace,
    ];
    let rules = denied.into_iter().map(|number| (number, Vec::new())).collect();
    let architecture = std::env::consts::ARCH.try_into().expect("a known processor");
    let filter = SeccompFilter::new(
        rules,
        SeccompAction::Allow,
        SeccompAction::Errno(libc::EPERM as u32),
        architecture,
    );
    filter.expect("valid rules").try_into().expect("it compiles")
}

/// Starts the sandboxed worker with these descriptors at their numbers, under the filter.
fn start_sandboxed(descriptors: Vec<(RawFd, OwnedFd)>) -> Process {
    // Copies above all target numbers, so that duplicating one does not overwrite another.
    let copy = |source: &OwnedFd| {
        let copied = fcntl(source, FcntlArg::F_DUPFD_CLOEXEC(20)).expect("a copy");
        // SAFETY: the call has just created it, and no other code owns it.
        unsafe { OwnedFd::from_raw_fd(copied) }
    };
    let copies: Vec<(RawFd, OwnedFd)> =
        descriptors.iter().map(|(target, source)| (*target, copy(source))).collect();
    let filter = sandbox_filter();
    let mut command = binary();
    command.args(["worker", "--inherited"]);
    // SAFETY: between fork and exec the closure only calls dup2, prctl and seccomp; it allocates nothing.
    unsafe {
        command.pre_exec(move || {
            for (target, source) in &copies {
                if libc::dup2(source.as_raw_fd(), *target) < 0 {
                    return Err(std::io::Error::last_os_error());
                }
            }
            seccompiler::apply_filter(&filter).map_err(|_| std::io::ErrorKind::PermissionDenied.into())
        });
    }
    Process::start(&mut command)
}

/// Sends a worker fresh tickets, as its agent does, until stopped; the task then returns the sender.
fn keep_renewed(
    mut sender: FrameSender,
    node: Identity,
    ticket: Ticket,
) -> (oneshot::Sender<()>, JoinHandle<FrameSender>) {
    let (stop, mut stopped) = oneshot::channel();
    let renewing = tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = &mut stopped => return sender,
                () = tokio::time::sleep(Duration::from_millis(250)) => {
                    let fresh = signed_by(&node, renewed(&ticket));
                    sender.send(&ToWorker::Ticket(fresh), &[]).await.expect("sent");
                }
            }
        }
    });
    (stop, renewing)
}

/// Returns a worker's first report of another state than ready. Reports from before an order may come first.
async fn report_after_ready(receiver: &mut FrameReceiver) -> FromWorker {
    loop {
        let report = receiver.receive::<FromWorker>().await.expect("a frame").expect("not the end").0;
        if !matches!(report, FromWorker::State { state: WorkerState::Ready, .. }) {
            return report;
        }
    }
}

/// A sandboxed worker whose model is loaded, and its agent's side.
struct LoadedWorker {
    process: Process,
    metrics: std::io::PipeReader,
    sender: FrameSender,
    receiver: FrameReceiver,
    key: PublicKey,
}

/// Starts a sandboxed worker on the model in `directory`, and waits until it is ready.
async fn load_sandboxed(directory: &Path, sequences_max: u32) -> LoadedWorker {
    let (weights, progress, mut manifest) = shared(directory);
    manifest.batch_sequences_max = sequences_max;
    let manifest_file = tempfile::tempfile().expect("a file");
    manifest_file.write_all_at(&canonical::to_bytes(&manifest), 0).expect("written");
    let scratch = tempfile::tempdir().expect("a directory");
    let socket = scratch.path().join("worker.sock");
    let listener = std::os::unix::net::UnixListener::bind(&socket).expect("a socket");
    let (metrics, metrics_write) = std::io::pipe().expect("a pipe");
    let process = start_sandboxed(vec![
        (WORKER_SOCKET_FD, listener.into()),
        (WORKER_WEIGHTS_FD, weights.into()),
        (WORKER_PROGRESS_FD, progress.into()),
        (WORKER_METRICS_FD, metrics_write.into()),
        (WORKER_MANIFEST_FD, manifest_file.into()),
    ]);

    let agent = UnixStream::connect(&socket).await.expect("it listens");
    let (mut sender, mut receiver) = overlay::descriptors::channel(agent);
    sender.send(&ToWorker::Hello, &[]).await.expect("sent");
    let hello = receiver.receive::<FromWorker>().await.expect("a frame").expect("not the end").0;
    let FromWorker::Hello { worker: key, mut state } = hello else { panic!("{hello:?}") };
    while state == WorkerState::Loading {
        match receiver.receive::<FromWorker>().await.expect("a frame").expect("not the end").0 {
            FromWorker::State { state: next, detail } => {
                assert_eq!(detail, "");
                state = next;
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(state, WorkerState::Ready);
    LoadedWorker { process, metrics, sender, receiver, key }
}

/// Passes a connection to the gateway to a worker, as its agent does; returns the ticket to renew.
async fn connect_sandboxed(cluster: &Cluster, worker: &mut LoadedWorker, slot: u32) -> Ticket {
    let mut ticket = cluster.ticket(&cluster.node, "chat", slot);
    ticket.worker = worker.key;
    let ticket = cluster.signed(ticket);
    let gateway = cluster.gateway.public_key();
    let tcp = TcpStream::connect(cluster.workers).await.expect("it listens");
    tcp.set_nodelay(true).expect("tcp");
    let tcp = tcp.into_std().expect("a socket");
    let message = ToWorker::Connection { gateway, ticket: ticket.clone() };
    worker.sender.send(&message, &[tcp.as_fd()]).await.expect("sent");
    ticket.ticket
}

/// Returns the bytes of a stream without its id and time, which differ between two streams.
fn without_identity(stream: &[u8]) -> Vec<String> {
    let text = std::str::from_utf8(stream).expect("UTF-8");
    let event = |event: &str| {
        let Ok(mut value) = serde_json::from_str::<Value>(event.trim_start_matches("data: ")) else {
            return event.to_owned();
        };
        for name in ["id", "created"] {
            assert!(value.as_object_mut().and_then(|fields| fields.remove(name)).is_some(), "{event}");
        }
        value.to_string()
    };
    events_of(text).map(event).collect()
}

/// One process of two is killed under forty streams. Each client gets the bytes of an undisturbed stream.
#[tokio::test(start_paused = true)]
async fn streams_survive_the_kill_of_their_worker() {
    const STREAMS: u64 = 40;
    let cluster = Cluster::slow().await;
    // Deep enough that no stream ends before the kill.
    let mut config = llama_config();
    config["num_hidden_layers"] = Value::from(24);
    let directory = write(&config, Dtype::F32);
    let (mut processes, mut renewals) = (Vec::new(), Vec::new());
    for slot in 0..2 {
        let mut worker = load_sandboxed(directory.path(), 64).await;
        let ticket = connect_sandboxed(&cluster, &mut worker, slot).await;
        processes.push(worker.process);
        renewals.push(keep_renewed(worker.sender, cluster.node.clone(), ticket));
    }
    eventually("both serve", async || cluster.ready().await == 2).await;
    let post = |seed: u64| {
        let more = format!(
            r#", "stream": true, "stream_options": {{"include_usage": true}}, "seed": {seed},
               "max_tokens": 100, "ignore_eos": true"#
        );
        cluster.post("/v1/chat/completions", chat("hi", &more))
    };
    let undisturbed = futures::future::join_all((0..STREAMS).map(post)).await;
    let undisturbed = futures::future::join_all(undisturbed.into_iter().map(whole)).await;
    let retries = "quorate_request_retries_total{model_name=\"echo\"}";
    assert_eq!(cluster.metrics().await.get(retries), None);

    // Each answer has begun when its head is there.
    let begun = futures::future::join_all((0..STREAMS).map(post)).await;
    let (stop, renewing) = renewals.remove(0);
    stop.send(()).expect("it renews");
    let _sender = renewing.await.expect("it renewed");
    drop(processes.remove(0));
    let streams = futures::future::join_all(begun.into_iter().map(whole)).await;
    for ((status, found), expected) in streams.iter().zip(&undisturbed) {
        assert_eq!(*status, 200);
        assert_eq!(without_identity(found), without_identity(&expected.1));
    }
    let moved = cluster.metrics().await.get(retries).copied().unwrap_or(0.0);
    assert!(moved >= 1.0, "the kill came under streams");
    let (stop, renewing) = renewals.remove(0);
    stop.send(()).expect("it renews");
    renewing.await.expect("it renewed");
}

#[tokio::test(start_paused = true)]
async fn a_sandboxed_worker_needs_its_descriptors_alone() {
    let cluster = Cluster::slow().await;
    let directory = write(&llama_config(), Dtype::F32);
    let mut worker = load_sandboxed(directory.path(), 4).await;
    let ticket = connect_sandboxed(&cluster, &mut worker, 0).await;
    let LoadedWorker { process, mut metrics, sender, mut receiver, .. } = worker;
    let (stop, renewing) = keep_renewed(sender, cluster.node.clone(), ticket);
    eventually("it serves", async || cluster.ready().await == 1).await;
    let (status, answer) = cluster.json("/v1/chat/completions", &chat("hi", r#", "max_tokens": 3"#)).await;
    assert_eq!(status, 200, "{answer}");
    let more = r#", "max_tokens": 300"#;
    let (status, answer) = cluster.json("/v1/chat/completions", &chat("hi", more)).await;
    assert_eq!((status.as_u16(), &answer["error"]["code"]), (400, &Value::from("context_length_exceeded")));

    let mut lines = BufReader::new(&mut metrics).lines();
    let measured = lines.find_map(|line| {
        let line: WorkerMetrics = serde_json::from_str(&line.expect("a line")).expect("metrics");
        (line.requests_total == 1).then_some(line)
    });
    assert!(measured.expect("a line").generation_tokens_total > 0);

    stop.send(()).expect("it renews");
    let mut sender = renewing.await.expect("it renewed");
    sender.send(&ToWorker::Drain, &[]).await.expect("sent");
    let drained = report_after_ready(&mut receiver).await;
    assert!(matches!(drained, FromWorker::State { state: WorkerState::Draining, .. }), "{drained:?}");
    assert_eq!(process.terminate(), Some(0), "SIGTERM ends a worker that has nothing to do");
    let mut rest = Vec::new();
    metrics.read_to_end(&mut rest).expect("the pipe ends with its worker");
}
