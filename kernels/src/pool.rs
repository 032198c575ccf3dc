//! The compute thread pool.
//!
//! Work is a count of independent tasks; their assignment to threads never changes a result (see the module
//! above).

use std::marker::PhantomData;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Elements of a part of work on each element: some 10 microseconds.
const PART_ELEMENTS: usize = 1 << 13;
/// Fewer elements are computed on one thread.
const PARALLEL_MIN: usize = 4 * PART_ELEMENTS;

/// A fixed set of threads.
#[derive(Debug)]
pub struct ComputePool {
    /// `None` for a single thread: the caller then does the work.
    threads: Option<rayon::ThreadPool>,
    count: usize,
}

impl ComputePool {
    /// Starts a pool of this many threads, at least one.
    #[must_use]
    pub fn new(count: usize) -> Self {
        let count = count.max(1);
        let build = || {
            rayon::ThreadPoolBuilder::new()
                .num_threads(count)
                .thread_name(|index| format!("engine-{index}"))
                .build()
        };
        // A process that cannot start threads still computes, on the caller's thread.
        let threads = if count == 1 { None } else { build().ok() };
        let count = if threads.is_some() { count } else { 1 };
        Self { threads, count }
    }

    /// Returns the number of threads.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count
    }

    /// Runs `work` on a thread of the pool, so that the `each` calls inside it start without a hand-over.
    pub fn enter<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        match &self.threads {
            Some(threads) => threads.install(work),
            None => work(),
        }
    }

    /// Runs `work` on parts of whole rows of a slice, with the elements that each part has. Few elements are
    /// one part, computed here.
    pub fn each_part<T: Send>(
        &self,
        values: &mut [T],
        width: usize,
        work: impl Fn(Range<usize>, &mut [T]) + Send + Sync,
    ) {
        assert!(width > 0 && values.len().is_multiple_of(width), "whole rows");
        let length = values.len();
        if length < PARALLEL_MIN || self.count == 1 {
            return work(0..length, values);
        }
        let part = PART_ELEMENTS.div_ceil(width) * width;
        let parts = Parts::new(values);
        self.each(length.div_ceil(part), |index| {
            let range = index * part..length.min((index + 1) * part);
            // SAFETY: each task has a part of its own.
            work(range.clone(), unsafe { parts.part(range) });
        });
    }

    /// Runs `task(0)` to `task(tasks - 1)` on all threads and returns when all are done.
    pub fn each(&self, tasks: usize, task: impl Fn(usize) + Send + Sync) {
        let helpers = self.count.min(tasks).saturating_sub(1);
        let next = AtomicUsize::new(0);
        let work = || {
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= tasks {
                    return;
                }
                task(index);
            }
        };
        let Some(threads) = self.threads.as_ref().filter(|_| helpers > 0) else {
            return work();
        };
        threads.in_place_scope(|scope| {
            for _ in 0..helpers {
                scope.spawn(|_| work());
            }
            work();
        });
    }
}

/// A slice that several tasks write, each its own part.
#[derive(Debug, Clone, Copy)]
pub struct Parts<'a, T = f32> {
    first: *mut T,
    length: usize,
    life: PhantomData<&'a mut [T]>,
}

// SAFETY: an element may be written from any thread; each caller of the unsafe methods guarantees that tasks
// keep to their own parts.
unsafe impl<T: Send> Send for Parts<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Parts<'_, T> {}

impl<'a, T> Parts<'a, T> {
    /// Borrows this slice for division into parts.
    #[must_use]
    pub fn new(whole: &'a mut [T]) -> Self {
        Self { first: whole.as_mut_ptr(), length: whole.len(), life: PhantomData }
    }

    /// Returns one part.
    ///
    /// # Safety
    /// No two parts that are alive at the same time may overlap.
    #[allow(clippy::mut_from_ref, reason = "disjointness is the caller's promise")]
    pub unsafe fn part(&self, range: Range<usize>) -> &'a mut [T] {
        assert!(range.start <= range.end && range.end <= self.length, "the part lies in the whole");
        // SAFETY: inside the whole by the assertion; exclusive by the caller's guarantee.
        unsafe { std::slice::from_raw_parts_mut(self.first.add(range.start), range.len()) }
    }

    /// Returns whether both are the same elements.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.first == other.first && self.length == other.length
    }

    /// Returns whether no element belongs to both.
    pub(super) fn is_apart_from(&self, other: &Self) -> bool {
        let range = |parts: &Self| {
            let first = parts.first as usize;
            first..first + parts.length * size_of::<T>()
        };
        let (own, theirs) = (range(self), range(other));
        own.end <= theirs.start || theirs.end <= own.start
    }

    /// Returns the address of an element, for strided writes that form no slice.
    pub(super) fn address(&self, index: usize) -> *mut T {
        assert!(index < self.length, "the element lies in the whole");
        // SAFETY: inside the allocation by the assertion.
        unsafe { self.first.add(index) }
    }

    /// Returns the total number of elements.
    pub(super) fn length(&self) -> usize {
        self.length
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_part_has_whole_rows_and_every_element_once() {
        for count in [1, 2, 5] {
            let pool = ComputePool::new(count);
            for (rows, width) in [(0, 3), (1, 7), (1_000, 33), (3, 20_000), (70_000, 1)] {
                let mut values = vec![0_usize; rows * width];
                pool.enter(|| {
                    pool.each_part(&mut values, width, |range, part| {
                        assert_eq!(range.len(), part.len());
                        assert!(range.start.is_multiple_of(width) && range.end.is_multiple_of(width));
                        part.iter_mut().zip(range).for_each(|(value, at)| *value += at + 1);
                    });
                });
                assert!(values.iter().enumerate().all(|(at, value)| *value == at + 1), "{rows} x {width}");
            }
        }
    }

    #[test]
    fn each_task_is_done_once_on_any_number_of_threads() {
        for count in [0, 1, 2, 5] {
            let pool = ComputePool::new(count);
            for tasks in [0, 1, 2, 100] {
                let done: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                pool.enter(|| {
                    pool.each(tasks, |index| {
                        done[index].fetch_add(1, Ordering::Relaxed);
                    })
                });
                assert!(done.iter().all(|times| times.load(Ordering::Relaxed) == 1));
            }
        }
    }
}
