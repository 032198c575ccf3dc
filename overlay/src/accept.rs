//! The accept loop of every listener, and a connection's way from its handshake to its permit.
//!
//! A connection first holds or waits for a handshake's permit, shared by address. Once its peer is known it
//! takes one of two others: that of an admitted source, or one of the few of peers that are not admitted. A
//! connection whose permit becomes another's is dropped at that moment.

use crate::admission::{Activity, ActivityMeter, Admission, Permit, Policy, Source, SourcePrefix};
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
                Policy::MaxMinFair,
                limits.handshakes_max,
                limits.handshakes_waiting_max,
            ),
            admitted: Admission::new(Policy::MaxMinFair, limits.connections_max, 0),
            unadmitted: Admission::new(Policy::EvictOldest, limits.unadmitted_max, 0),
            rejections: LogThrottle::default(),
            evictions: LogThrottle::default(),
            failures: LogThrottle::default(),
        }
    }
}

/// A connection on its way in. It holds the permit of its handshake until it takes another one, and all of them
/// as long as this value lives.
#[derive(Debug)]
pub struct Arrival {
    address: SocketAddr,
    admissions: Arc<Admissions>,
    permit: Permit,
    evicted: CancellationToken,
}

impl Arrival {
    /// Where the connection comes from.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The source as which a connection counts that has proven no key.
    pub(crate) fn prefix(&self) -> Source {
        Source::Prefix(SourcePrefix::of(self.address.ip()))
    }

    /// Exchanges the permit for that of an admitted source; none to be had, and the connection is to be closed.
    #[must_use]
    pub(crate) fn take_permit(&mut self, source: Source, activity: Activity) -> bool {
        let permit = self.admissions.admitted.try_admit(source, activity, self.evicted.clone());
        if permit.is_none()
            && let Some(suppressed) = self.admissions.rejections.pass()
        {
            tracing::warn!(address = %self.address, suppressed, "too many connections; turned away");
        }
        self.replace(permit)
    }

    /// Exchanges the permit for one of the few of peers that are not admitted. The next of them may take it, so it
    /// is lost soon where many come.
    #[must_use]
    pub fn wait_unadmitted(&mut self) -> bool {
        let permit =
            self.admissions.unadmitted.try_admit(self.prefix(), Activity::Silent, self.evicted.clone());
        self.replace(permit)
    }

    /// Exchanges the permit for that of an admitted peer, counted as one of `key`'s connections. A connection is
    /// kept as if a request were always under way: another of the same key does not replace it.
    #[must_use]
    pub fn admit(&mut self, key: protocol::PublicKey) -> bool {
        self.take_permit(Source::Key(key), Activity::Busy)
    }

    fn replace(&mut self, permit: Option<Permit>) -> bool {
        let Some(permit) = permit else { return false };
        self.permit = permit;
        true
    }

    /// What counts the requests of this connection, as long as it holds the present permit.
    pub(crate) fn meter(&self) -> ActivityMeter {
        self.permit.meter()
    }

    /// Logs why a handshake failed. Strangers cause these at will, so they are no warnings.
    pub(crate) fn failed(&self, error: &Error) {
        if let Some(suppressed) = self.admissions.failures.pass() {
            let cause = std::error::Error::source(error).map(ToString::to_string);
            tracing::info!(address = %self.address, %error, cause, suppressed, "connection refused");
        }
    }
}

/// Accepts until `shutdown`, running `handle` for each connection in a task of its own; returns when
/// the last task has ended. Handshakes wait their turn, address by address.
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
                    AfterFailure::GoOn => tracing::debug!(%error, "a connection was gone before it was accepted"),
                    AfterFailure::Wait => {
                        failures += 1;
                        if failures == 1 {
                            tracing::warn!(%error, "cannot accept; trying again until it passes");
                        }
                        let pause = ACCEPT_BACKOFF.delay(failures, u32::MAX);
                        // Tasks that end meanwhile are what mends it.
                        let _ = shutdown.run_until_cancelled(tokio::time::sleep(pause)).await;
                    }
                },
            },
        }
    };
    drop(listener);
    // A listener's connections end with it: whoever hears of that starts anew.
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
    let source = Source::Prefix(SourcePrefix::of(address.ip()));
    // Before the task runs, so that turns follow the order of arrival.
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

/// Long enough not to spin, short enough not to matter, when descriptors or memory run out.
const ACCEPT_BACKOFF: Backoff = Backoff { first: Duration::from_millis(50), most: Duration::from_secs(1) };

/// What a failure to accept means for the listener.
#[derive(Debug, PartialEq, Eq)]
enum AfterFailure {
    /// It was that connection's alone.
    GoOn,
    /// The machine lacks something that it may have again.
    Wait,
    /// The listener is none any more.
    GiveUp,
}

fn after_failure(error: &io::Error) -> AfterFailure {
    use nix::errno::Errno;
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EBADF | Errno::EINVAL | Errno::ENOTSOCK | Errno::EOPNOTSUPP | Errno::EFAULT) => {
            AfterFailure::GiveUp
        }
        // Linux hands on what became of a connection before it was accepted (accept(2)).
        Some(
            Errno::ECONNABORTED
            | Errno::EPROTO
            | Errno::ENETDOWN
            | Errno::ENETUNREACH
            | Errno::EHOSTDOWN
            | Errno::EHOSTUNREACH
            | Errno::EPERM
            | Errno::EINTR,
        ) => AfterFailure::GoOn,
        // Descriptors or memory are short; or something that trying again at once would hardly mend.
        _ => AfterFailure::Wait,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::errno::Errno;

    #[test]
    fn only_failures_that_cannot_pass_end_a_listener() {
        use AfterFailure::{GiveUp, GoOn, Wait};
        let table = [
            (Errno::EBADF, GiveUp),
            (Errno::EINVAL, GiveUp),
            (Errno::ENOTSOCK, GiveUp),
            (Errno::EMFILE, Wait),
            (Errno::ENFILE, Wait),
            (Errno::ENOBUFS, Wait),
            (Errno::ENOMEM, Wait),
            (Errno::ECONNABORTED, GoOn),
            (Errno::EPROTO, GoOn),
            (Errno::EHOSTUNREACH, GoOn),
        ];
        for (errno, expected) in table {
            let error = io::Error::from_raw_os_error(errno as i32);
            assert_eq!(after_failure(&error), expected, "{errno}");
        }
        assert_eq!(after_failure(&io::Error::other("no errno")), Wait);
    }
}
