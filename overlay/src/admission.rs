//! Fair admission to a limited number of connections: a source that holds many loses one to a source with
//! fewer.
//!
//! [`queue::FairQueue`] decides, as a pure function; [`Admission`] signals its decisions to the connections'
//! tasks. A [`ConnectionSource`] is the best evidence of a single party: a proven key, or a network address
//! before that.

mod queue;

pub(crate) use queue::{Activity, EvictionPolicy};

use protocol::PublicKey;
use queue::{Decision, FairQueue};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

/// Addresses that count as one party: one IPv4 address, or one IPv6 network of 64 bits, the least that a site
/// has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct SourcePrefix(IpAddr);

impl SourcePrefix {
    /// Returns the prefix of an address. An IPv4 address written as IPv6 counts as the IPv4 address.
    #[must_use]
    pub fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V6(address) => {
                Self(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into())
            }
            v4 => Self(v4),
        }
    }
}

/// A party among which permits are shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ConnectionSource {
    /// A party known by its address alone.
    Prefix(SourcePrefix),
    /// A party that has proven a key.
    Key(PublicKey),
}

/// A fair queue whose connections are tasks.
#[derive(Debug, Clone)]
pub(crate) struct Admission(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    queue: FairQueue<ConnectionSource>,
    signals: BTreeMap<u64, Signals>,
}

/// The channels that signal decisions to a connection.
#[derive(Debug)]
struct Signals {
    /// None once the connection is admitted.
    admitted: Option<oneshot::Sender<()>>,
    /// Cancelled when the permit passes to another connection, or too many wait.
    evicted: CancellationToken,
}

impl Admission {
    pub(crate) fn new(policy: EvictionPolicy, permits: usize, waiting_max: usize) -> Self {
        let queue = FairQueue::new(policy, permits, waiting_max);
        Self(Arc::new(Mutex::new(Inner { queue, signals: BTreeMap::new() })))
    }

    /// Takes a permit or a turn for one. `evicted` is cancelled when either is lost. Dropping the permit
    /// returns it.
    pub(crate) fn enqueue(
        &self,
        source: ConnectionSource,
        activity: Activity,
        evicted: CancellationToken,
    ) -> Permit {
        let (admit, admitted) = oneshot::channel();
        let mut inner = self.lock();
        let (number, decisions) = inner.queue.arrive(source, activity);
        inner.signals.insert(number, Signals { admitted: Some(admit), evicted });
        inner.signal(decisions);
        drop(inner);
        Permit { meter: ActivityMeter { admission: self.clone(), number }, admitted: Some(admitted) }
    }

    /// Returns a permit if one is immediately available.
    pub(crate) fn try_admit(
        &self,
        source: ConnectionSource,
        activity: Activity,
        evicted: CancellationToken,
    ) -> Option<Permit> {
        let mut permit = self.enqueue(source, activity, evicted);
        let is_admitted = permit.admitted.take().is_none_or(|mut admitted| admitted.try_recv().is_ok());
        is_admitted.then_some(permit)
    }

    /// Returns the number of connections that hold a permit.
    #[cfg(test)]
    fn admitted(&self) -> usize {
        self.lock().queue.admitted()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn signal(&mut self, decisions: Vec<Decision>) {
        for decision in decisions {
            match decision {
                Decision::Admit(number) => {
                    let admitted = self.signals.get_mut(&number).and_then(|signals| signals.admitted.take());
                    // A connection that no longer waits returns its permit when it is dropped.
                    let _ = admitted.map(|admitted| admitted.send(()));
                }
                Decision::Evict(number) | Decision::Reject(number) => {
                    if let Some(signals) = self.signals.remove(&number) {
                        signals.evicted.cancel();
                    }
                }
            }
        }
    }
}

/// A permit for a connection, or a turn to receive one.
#[derive(Debug)]
pub(crate) struct Permit {
    meter: ActivityMeter,
    admitted: Option<oneshot::Receiver<()>>,
}

impl Permit {
    /// Waits for admission; returns none if the connection was rejected.
    pub(crate) async fn admitted(mut self) -> Option<Self> {
        match self.admitted.take() {
            Some(admitted) => admitted.await.ok().map(|()| self),
            None => Some(self),
        }
    }

    /// Returns the meter that counts this connection's requests.
    pub(crate) fn meter(&self) -> ActivityMeter {
        self.meter.clone()
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let ActivityMeter { admission, number } = &self.meter;
        let mut inner = admission.lock();
        inner.signals.remove(number);
        let decisions = inner.queue.depart(*number);
        inner.signal(decisions);
    }
}

/// Reports to the queue whether a connection has a request under way.
#[derive(Debug, Clone)]
pub(crate) struct ActivityMeter {
    admission: Admission,
    number: u64,
}

impl ActivityMeter {
    /// Begins a request; it is under way until the result is dropped.
    pub(crate) fn begin(&self) -> RequestUnderWay {
        self.admission.lock().queue.begin(self.number);
        RequestUnderWay(self.clone())
    }
}

/// A request that has not been answered yet.
#[derive(Debug)]
pub(crate) struct RequestUnderWay(ActivityMeter);

impl Drop for RequestUnderWay {
    fn drop(&mut self) {
        self.0.admission.lock().queue.end(self.0.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(text: &str) -> ConnectionSource {
        ConnectionSource::Prefix(SourcePrefix::of(text.parse().unwrap()))
    }

    #[test]
    fn a_source_prefix_is_an_address_or_half_of_one() {
        assert_eq!(source("::ffff:10.0.0.1"), source("10.0.0.1"));
        assert_ne!(source("10.0.0.2"), source("10.0.0.1"));
        assert_eq!(source("2001:db8:1:2::3"), source("2001:db8:1:2:ffff::1"));
        assert_ne!(source("2001:db8:1:2::3"), source("2001:db8:1:3::3"));
    }

    #[tokio::test]
    async fn a_dropped_permit_admits_the_next_and_an_eviction_is_signalled() {
        let admission = Admission::new(EvictionPolicy::MaxMinFair, 2, 1);
        let (many, few) = (source("127.0.0.2"), source("127.0.0.1"));
        let tokens: Vec<CancellationToken> = (0..4).map(|_| CancellationToken::new()).collect();
        let enqueue = |source, which: usize| admission.enqueue(source, Activity::Busy, tokens[which].clone());
        let first = enqueue(many, 0).admitted().await.unwrap();
        let second = enqueue(many, 1).admitted().await.unwrap();
        let waiting = enqueue(many, 2);
        let newcomer = enqueue(few, 3).admitted().await.unwrap();
        assert_eq!(
            tokens.iter().map(CancellationToken::is_cancelled).collect::<Vec<_>>(),
            [true, false, false, false]
        );
        drop(first);
        assert_eq!(admission.admitted(), 2, "an evicted connection gives nothing back");
        drop(second);
        let waiting = waiting.admitted().await.unwrap();
        drop((waiting, newcomer));
        assert_eq!(admission.admitted(), 0);
    }

    #[test]
    fn a_rejected_connection_takes_no_permit() {
        let admission = Admission::new(EvictionPolicy::MaxMinFair, 1, 0);
        let (held, newcomer) = (CancellationToken::new(), CancellationToken::new());
        let _held = admission.try_admit(source("10.0.0.1"), Activity::Busy, held.clone()).unwrap();
        assert!(admission.try_admit(source("10.0.0.2"), Activity::Silent, newcomer.clone()).is_none());
        assert!(newcomer.is_cancelled() && !held.is_cancelled());
    }

    #[test]
    fn a_request_under_way_protects_its_connection_until_it_is_answered() {
        let admission = Admission::new(EvictionPolicy::MaxMinFair, 2, 0);
        let tokens: Vec<CancellationToken> = (0..4).map(|_| CancellationToken::new()).collect();
        let admit = |which: usize, address| {
            admission.try_admit(source(address), Activity::Silent, tokens[which].clone())
        };
        let busy = admit(0, "10.0.0.1").unwrap();
        let request = busy.meter().begin();
        let _silent = admit(1, "10.0.0.1").unwrap();
        let _newcomer = admit(2, "10.0.0.2").unwrap();
        assert!(tokens[1].is_cancelled() && !tokens[0].is_cancelled());
        drop(request);
        let _another = admit(3, "10.0.0.3").unwrap();
        assert_eq!(
            (tokens[0].is_cancelled(), tokens[2].is_cancelled()),
            (false, true),
            "the silent one first"
        );
    }
}
