//! Accept loop of every listener, and a connection's path from its handshake to its permit.
//!
//! A connection first holds or waits for a handshake permit, shared by address. Once its peer is known it
//! takes one of two others: that of an admitted source, or one of the few for unadmitted peers. A connection
//! that loses its permit to another is dropped immediately.

use crate::admission::{
    Activity, ActivityMeter, Admission, ConnectionSource, EvictionPolicy, Permit, SourcePrefix,
};
use crate::error::Error;
use crate::limits::{Backoff, Limits};
use crate::log_throttle::LogThrottle;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// The permits of one listener.
#[derive(Debug)]
struct Admissions {
    handshakes: Admission,
    admitted: Admission,
    unadmitted: Admission,
    rejections: LogThrottle,
    evictions: LogThrottle,
    failures: LogThrottle,
}

impl Admissions {
    fn new(limits: &Limits) -> Self {
        Self {
            handshakes: Admission::new(
                EvictionPolicy::MaxMinFair,
                limits.handshakes_max,
                limits.handshakes_waiting_max,
            ),
            admitted: Admission::new(EvictionPolicy::MaxMinFair, limits.connections_max, 0),
            unadmitted: Admission::new(EvictionPolicy::EvictOldest, limits.unadmitted_max, 0),
            rejections: LogThrottle::default(),
            evictions: LogThrottle::default(),
            failures: LogThrottle::default(),
        }
    }
}

/// An incoming connection. It holds the permit of its handshake until it takes another one. Dropping the
/// value returns the permit that it holds.
#[derive(Debug)]
pub struct Arrival {
    address: SocketAddr,
    admissions: Arc<Admissions>,
    permit: Permit,
    evicted: CancellationToken,
}

impl Arrival {
    /// Returns the address from which the connection comes.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the source under which a connection counts while it has proven no key.
    pub(crate) fn prefix(&self) -> ConnectionSource {
        ConnectionSource::Prefix(SourcePrefix::of(self.address.ip()))
    }

    /// Exchanges the permit for that of an admitted source. Returns false if none is available; the
    /// connection must then be closed.
    #[must_use]
    pub(crate) fn take_permit(&mut self, source: ConnectionSource, activity: Activity) -> bool {
        let permit = self.admissions.admitted.try_admit(source, activity, self.evicted.clone());
        if permit.is_none()
            && let Some(suppressed) = self.admissions.rejections.pass()
        {
            tracing::warn!(address = %self.address, suppressed, "too many connections; rejected");
        }
        self.replace(permit)
    }

    /// Exchanges the permit for one of the few for unadmitted peers. The next such peer may take it, so it is
    /// lost soon under load.
    #[must_use]
    pub fn wait_unadmitted(&mut self) -> bool {
        let permit =
            self.admissions.unadmitted.try_admit(self.prefix(), Activity::Silent, self.evicted.clone());
        self.replace(permit)
    }

    /// Exchanges the permit for that of an admitted peer, counted as one of `key`'s connections. The
    /// connection counts as permanently busy, so another one of the same key does not replace it.
    #[must_use]
    pub fn admit(&mut self, key: protocol::PublicKey) -> bool {
        self.take_permit(ConnectionSource::Key(key), Activity::Busy)
    }

    fn replace(&mut self, permit: Option<Permit>) -> bool {
        let Some(permit) = permit else { return false };
        self.permit = permit;
        true
    }

    /// Returns the meter that counts this connection's requests as long as it holds the present permit.
    pub(crate) fn meter(&self) -> ActivityMeter {
        self.permit.meter()
    }

    /// Logs a failed handshake. Unauthenticated clients can cause these at will, so this is not a warning.
    pub(crate) fn failed(&self, error: &Error) {
        if let Some(suppressed) = self.admissions.failures.pass() {
            let cause = std::error::Error::source(error).map(ToString::to_string);
            tracing::info!(address = %self.address, %error, cause, suppressed, "connection refused");
        }
    }
}

/// Accepts connections until `shutdown`, running `handle` for each in a task of its own; returns when the
/// last task has ended. Handshakes wait their turn, address by address.
pub(crate) async fn accept_loop<F, T>(
    listener: TcpListener,
    limits: &Limits,
    shutdown: CancellationToken,
    handle: F,
) -> Result<(), Error>
where
    F: Fn(TcpStream, Arrival) -> T + Clone + Send + 'static,
    T: Future<Output = ()> + Send + 'static,
{
    let admissions = Arc::new(Admissions::new(limits));
    let mut tasks = JoinSet::new();
    let mut failures = 0;
    let outcome = loop {
        tokio::select! {
            () = shutdown.cancelled() => break Ok(()),
            Some(_) = tasks.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((tcp, address)) => {
                    failures = 0;
                    tasks.spawn(run_admitted(tcp, address, admissions.clone(), handle.clone()));
                }
                Err(error) => match after_failure(&error) {
                    AfterFailure::GiveUp => break Err(Error::Listener(error)),
                    AfterFailure::Continue => tracing::debug!(%error, "connection lost before accept"),
                    AfterFailure::Wait => {
                        failures += 1;
                        if failures == 1 {
                            tracing::warn!(%error, "accept failed; retrying");
                        }
                        let pause = ACCEPT_BACKOFF.delay(failures, u32::MAX);
                        // Tasks that end during the pause free the missing resources.
                        let _ = shutdown.run_until_cancelled(tokio::time::sleep(pause)).await;
                    }
                },
            },
        }
    };
    drop(listener);
    // A failed listener ends its connections too: returning early drops and aborts their tasks.
    outcome?;
    while tasks.join_next().await.is_some() {}
    Ok(())
}

/// Runs `handle` once a handshake is permitted, as long as the connection holds a permit.
fn run_admitted<F, T>(
    tcp: TcpStream,
    address: SocketAddr,
    admissions: Arc<Admissions>,
    handle: F,
) -> impl Future<Output = ()>
where
    F: Fn(TcpStream, Arrival) -> T,
    T: Future<Output = ()>,
{
    let evicted = CancellationToken::new();
    let source = ConnectionSource::Prefix(SourcePrefix::of(address.ip()));
    // Enqueued before the task runs, so that turns follow the order of arrival.
    let permit = admissions.handshakes.enqueue(source, Activity::Busy, evicted.clone());
    async move {
        let Some(permit) = permit.admitted().await else { return };
        let arrival = Arrival { address, admissions: admissions.clone(), permit, evicted: evicted.clone() };
        if evicted.run_until_cancelled(handle(tcp, arrival)).await.is_none()
            && let Some(suppressed) = admissions.evictions.pass()
        {
            tracing::info!(%address, suppressed, "too many connections; evicted for another source");
        }
    }
}

/// Back-off while descriptors or memory are short: long enough not to spin, short enough not to matter.
const ACCEPT_BACKOFF: Backoff = Backoff { first: Duration::from_millis(50), most: Duration::from_secs(1) };

/// The consequence of a failed accept for the listener.
#[derive(Debug, PartialEq, Eq)]
enum AfterFailure {
    /// Only this connection has failed.
    Continue,
    /// The machine lacks a resource that it may have again.
    Wait,
    /// The listener is no longer usable.
    GiveUp,
}

fn after_failure(error: &io::Error) -> AfterFailure {
    use nix::errno::Errno;
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EBADF | Errno::EINVAL | Errno::ENOTSOCK | Errno::EOPNOTSUPP | Errno::EFAULT) => {
            AfterFailure::GiveUp
        }
        // Linux passes pending network errors of a connection on through accept(2).
        Some(
            Errno::ECONNABORTED
            | Errno::EPROTO
            | Errno::ENETDOWN
            | Errno::ENETUNREACH
            | Errno::EHOSTDOWN
            | Errno::EHOSTUNREACH
            | Errno::EPERM
            | Errno::EINTR,
        ) => AfterFailure::Continue,
        // Descriptors or memory are short, or an immediate retry would hardly help.
        _ => AfterFailure::Wait,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::errno::Errno;

    #[test]
    fn only_permanent_failures_end_a_listener() {
        use AfterFailure::{Continue, GiveUp, Wait};
        let table = [
            (Errno::EBADF, GiveUp),
            (Errno::EINVAL, GiveUp),
            (Errno::ENOTSOCK, GiveUp),
            (Errno::EMFILE, Wait),
            (Errno::ENFILE, Wait),
            (Errno::ENOBUFS, Wait),
            (Errno::ENOMEM, Wait),
            (Errno::ECONNABORTED, Continue),
            (Errno::EPROTO, Continue),
            (Errno::EHOSTUNREACH, Continue),
        ];
        for (errno, expected) in table {
            let error = io::Error::from_raw_os_error(errno as i32);
            assert_eq!(after_failure(&error), expected, "{errno}");
        }
        assert_eq!(after_failure(&io::Error::other("no errno")), Wait);
    }
}
