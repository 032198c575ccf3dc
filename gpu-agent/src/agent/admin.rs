//! The agent's admin socket: an operator submits an order or a halt and gets the decision on it. Orders
//! submitted here are verified but never executed, and a halt carries its member's signature, so the socket
//! grants no authority.

use super::core::Refusal;
use overlay::CancellationToken;
use overlay::descriptors::{FrameError, channel};
use protocol::agent_state::{AdminRequest, HandOrder, Verdict};
use protocol::halt::SignedHalt;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};

#[cfg(test)]
mod tests;

/// Name of the socket in the agent's directory, mode 0600.
pub const ADMIN_SOCKET: &str = "agent.sock";
/// Maximum number of concurrent connections; an operator needs one.
const CONNECTIONS_MAX: usize = 8;
/// Idle timeout of a connection.
const IDLE_LIMIT: Duration = Duration::from_secs(30);
/// Pause after a failed `accept`: long enough not to spin when descriptors run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A request of a local operator, and the channel for its decision.
pub(super) struct InjectedRequest {
    pub(super) request: AdminRequest,
    pub(super) decision: oneshot::Sender<Verdict>,
}

/// Converts the result of an order's verification to the answer.
pub(super) fn decision_on_order(verified: Result<(), Refusal>) -> Verdict {
    decision(verified, "this node would carry it out")
}

/// Converts the result of taking a halt to the answer.
pub(super) fn decision_on_halt(taken: Result<(), Refusal>) -> Verdict {
    decision(taken, "this node obeys it, and has it on its disk")
}

fn decision(outcome: Result<(), Refusal>, accepted: &str) -> Verdict {
    match outcome {
        Ok(()) => Verdict { accepted: true, code: None, message: accepted.into() },
        Err(refusal) => Verdict { accepted: false, code: Some(refusal.code), message: refusal.message },
    }
}

/// Binds the socket in the agent's own directory, which no other user may enter. A socket left by a dead
/// agent is replaced. The path may be longer than the limit on a socket address.
pub(super) fn bind(directory: &Path) -> io::Result<UnixListener> {
    let path = directory.join(ADMIN_SOCKET);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let handle = File::open(directory)?;
    let listener = UnixListener::bind(short_path(&handle, ADMIN_SOCKET))?;
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    Ok(listener)
}

/// Returns a socket address of at most 107 bytes for a path of any length.
pub(super) fn short_path(directory: &File, name: &str) -> String {
    format!("/proc/self/fd/{}/{name}", directory.as_raw_fd())
}

/// Serves the socket until `shutdown`.
pub(super) async fn serve(
    listener: UnixListener,
    injected: mpsc::Sender<InjectedRequest>,
    shutdown: CancellationToken,
) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shutdown.cancelled() => return,
        };
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let Ok(permit) = permits.clone().try_acquire_owned() else { continue };
        let (injected, shutdown) = (injected.clone(), shutdown.clone());
        tokio::spawn(async move {
            let _permit = permit;
            tokio::select! {
                ended = converse(stream, injected) => if let Err(error) = ended {
                    tracing::info!(%error, "admin socket connection failed");
                },
                () = shutdown.cancelled() => {}
            }
        });
    }
}

async fn converse(stream: UnixStream, injected: mpsc::Sender<InjectedRequest>) -> Result<(), FrameError> {
    let (mut sender, mut receiver) = channel(stream);
    loop {
        let frame = tokio::time::timeout(IDLE_LIMIT, receiver.receive::<AdminRequest>()).await;
        let Ok(frame) = frame else { return Ok(()) };
        let Some((request, _)) = frame? else { return Ok(()) };
        let (decision, answer) = oneshot::channel();
        if injected.send(InjectedRequest { request, decision }).await.is_err() {
            return Ok(());
        }
        let Ok(answer) = answer.await else { return Ok(()) };
        sender.send(&answer, &[]).await?;
    }
}

/// Submits an order to the agent that works in `directory` and returns its decision.
///
/// # Errors
/// If no agent answers there, or the answer is malformed.
pub async fn hand_order(directory: &Path, order: &HandOrder) -> Result<Verdict, FrameError> {
    hand(directory, &AdminRequest::Order(Box::new(order.clone()))).await
}

/// Hands a signed halt to the agent that works in `directory` and returns its decision. The halt is durable
/// there, and what it covers is ending, when it is accepted.
///
/// # Errors
/// If no agent answers there, or the answer is malformed.
pub async fn hand_halt(directory: &Path, halt: &SignedHalt) -> Result<Verdict, FrameError> {
    hand(directory, &AdminRequest::Halt(Box::new(halt.clone()))).await
}

async fn hand(directory: &Path, request: &AdminRequest) -> Result<Verdict, FrameError> {
    let handle = File::open(directory)?;
    let stream = UnixStream::connect(short_path(&handle, ADMIN_SOCKET)).await?;
    let (mut sender, mut receiver) = channel(stream);
    sender.send(request, &[]).await?;
    let answer = tokio::time::timeout(IDLE_LIMIT, receiver.receive::<Verdict>()).await;
    match answer.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?? {
        Some((decision, _)) => Ok(decision),
        None => Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
    }
}
