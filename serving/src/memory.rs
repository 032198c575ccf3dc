//! Memory admission: one byte budget for request bodies and buffered answers, divided max-min fairly among
//! API keys.
//!
//! A request opens a [`Charge`] and grows it by the bytes that it buffers, before it buffers them. While the
//! budget has free bytes, every growth is granted. When it is full, a key that holds less than another is
//! served at the other's expense. The largest request of the key that holds most is evicted, and its bytes
//! are freed once its task notices. A key that itself holds most is rejected. The decisions are pure
//! ([`budget`]); this file performs them.

pub(crate) mod budget;
mod buffer;

use budget::{ByteBudget, ChargeDecision, RequestId};
use overlay::CancellationToken;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

pub(crate) use buffer::{Buffer, ChargedBody};

/// Bytes charged for the smallest request: its connection, headers and future.
pub(crate) const REQUEST_BYTES_MIN: usize = 16 * 1024;

/// The budget is full, or the request was evicted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Exhausted;

/// A byte budget shared by all requests of a process. Clones share it.
#[derive(Debug)]
pub(crate) struct Memory<K: Ord>(Arc<SharedBudget<K>>);

#[derive(Debug)]
struct SharedBudget<K: Ord> {
    state: Mutex<BudgetState<K>>,
    released: Notify,
}

#[derive(Debug)]
struct BudgetState<K: Ord> {
    budget: ByteBudget<K>,
    evictions: BTreeMap<RequestId, CancellationToken>,
}

impl<K: Ord> Clone for Memory<K> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<K: Ord + Clone> Memory<K> {
    /// Creates a budget of this many bytes.
    pub(crate) fn new(bytes_max: usize) -> Self {
        let state = BudgetState { budget: ByteBudget::new(bytes_max), evictions: BTreeMap::new() };
        Self(Arc::new(SharedBudget { state: Mutex::new(state), released: Notify::new() }))
    }

    /// Opens a request of this key, which holds no bytes yet.
    pub(crate) fn open(&self, key: K) -> Charge<K> {
        let mut state = self.lock();
        let id = state.budget.open(key.clone());
        let evicted = CancellationToken::new();
        state.evictions.insert(id, evicted.clone());
        drop(state);
        Charge { memory: self.clone(), key, id, evicted }
    }

    /// Returns the bytes held now.
    pub(crate) fn used(&self) -> usize {
        self.lock().budget.used()
    }

    /// Reports whether less than a quarter of the budget is free.
    pub(crate) fn is_scarce(&self) -> bool {
        self.lock().budget.is_scarce()
    }

    fn lock(&self) -> MutexGuard<'_, BudgetState<K>> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The bytes that one request holds; dropping it releases them.
#[derive(Debug)]
pub(crate) struct Charge<K: Ord + Clone> {
    memory: Memory<K>,
    key: K,
    id: RequestId,
    evicted: CancellationToken,
}

impl<K: Ord + Clone> Charge<K> {
    /// Returns the key that it was opened for.
    pub(crate) fn key(&self) -> &K {
        &self.key
    }

    /// Charges `bytes` more; waits while evicted requests release theirs.
    ///
    /// # Errors
    /// [`Exhausted`]: this key holds most, or this request was evicted.
    pub(crate) async fn grow(&mut self, bytes: usize) -> Result<(), Exhausted> {
        loop {
            // The waiter registers before the check, so that no release in between is missed.
            let released = self.memory.0.released.notified();
            tokio::pin!(released);
            released.as_mut().enable();
            match self.try_grow(bytes) {
                ChargeDecision::Admit => return Ok(()),
                ChargeDecision::Reject => return Err(Exhausted),
                ChargeDecision::Evict(_) => continue,
                ChargeDecision::Wait => {}
            }
            tokio::select! {
                () = released => {}
                () = self.evicted.cancelled() => return Err(Exhausted),
            }
        }
    }

    fn try_grow(&self, bytes: usize) -> ChargeDecision {
        let mut state = self.memory.lock();
        let decision = state.budget.grow(self.id, bytes);
        if let ChargeDecision::Evict(other) = &decision
            && let Some(eviction) = state.evictions.get(other)
        {
            eviction.cancel();
        }
        decision
    }

    /// Releases all but `bytes`.
    pub(crate) fn shrink_to(&mut self, bytes: usize) {
        self.memory.lock().budget.shrink_to(self.id, bytes);
        self.memory.0.released.notify_waiters();
    }

    /// Returns a token that is cancelled when this request is evicted in favour of another key's.
    pub(crate) fn eviction(&self) -> CancellationToken {
        self.evicted.clone()
    }
}

impl<K: Ord + Clone> Drop for Charge<K> {
    fn drop(&mut self) {
        let mut state = self.memory.lock();
        state.budget.close(self.id);
        state.evictions.remove(&self.id);
        drop(state);
        self.memory.0.released.notify_waiters();
    }
}

/// Makes the allocator return large buffers to the system as soon as they are freed. By default glibc raises
/// that threshold to the largest buffer freed so far, and then keeps the memory of a past flood.
pub fn return_freed_buffers() {
    #[cfg(target_env = "gnu")]
    {
        /// Half of the smallest step by which a large body's buffer grows.
        const MMAP_THRESHOLD_BYTES: libc::c_int = 128 * 1024;
        // SAFETY: the call changes a number inside the allocator, under the allocator's own lock.
        #[allow(unsafe_code)]
        let is_set = unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES) };
        if is_set == 0 {
            tracing::warn!("the allocator keeps freed buffers");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_small_holder_waits_for_the_bytes_of_the_largest() {
        let memory = Memory::new(100);
        let mut large = memory.open("a");
        assert_eq!(large.grow(90).await, Ok(()));
        assert_eq!(large.grow(20).await, Err(Exhausted), "it holds most itself");
        let mut small = memory.open("b");
        let eviction = large.eviction();
        let give_back = async {
            eviction.cancelled().await;
            assert_eq!(memory.used(), 90, "nothing is over-committed meanwhile");
            drop(large);
        };
        let (granted, ()) = tokio::join!(small.grow(40), give_back);
        assert_eq!((granted, memory.used()), (Ok(()), 40));
        drop(small);
        assert_eq!(memory.used(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn an_evicted_request_stops_waiting() {
        let memory = Memory::new(100);
        let (mut a, mut b, mut c) = (memory.open("a"), memory.open("b"), memory.open("c"));
        a.grow(60).await.expect("room");
        b.grow(40).await.expect("room");
        // `c` evicts `a` and waits until `a` releases its bytes.
        let mut waiting = Box::pin(c.grow(30));
        assert!(futures::poll!(waiting.as_mut()).is_pending());
        assert_eq!(a.grow(1).await, Err(Exhausted));
        drop(a);
        assert_eq!(waiting.await, Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn released_bytes_are_granted_to_others() {
        let memory = Memory::new(100);
        let (mut a, mut b) = (memory.open("a"), memory.open("a"));
        a.grow(80).await.expect("room");
        assert_eq!(b.grow(40).await, Err(Exhausted));
        a.shrink_to(10);
        assert_eq!(b.grow(40).await, Ok(()));
        assert_eq!(memory.used(), 50);
    }
}
