//! Decoding on the pool's threads: performs the loads, checks and replacements of [`BatchRead`].

use super::attempt::Attempt;
use super::batch::BatchReport;
use super::inner::{Inner, fetch_range};
use super::machine::{BatchRead, Event, ReadAction, ReadFailure, ShardState};
use crate::error::ReadError;
use crate::fault::{FaultKind, ShardFault};
use crate::store::is_absence;
use bytes::Bytes;
use object_store::path::Path as ObjectPath;
use protocol::Digest;
use protocol::model::Segment;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::fs::File;
use std::io::ErrorKind;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::time::Instant;
use tokio::runtime::Handle;

thread_local! {
    /// Memory of one coded segment, reused for the next.
    static BLOCK: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Decodes a fetched batch into the destination, reports each segment that is in place, and reports faults.
/// `bodies` are the bytes of each store, `None` for shards of this machine. The result of an abandoned
/// attempt is discarded.
pub(super) fn decode(
    inner: &Inner,
    mut read: BatchRead,
    bodies: &[Option<Bytes>],
    runtime: &Handle,
    attempt: &Attempt,
) -> Result<(), ReadError> {
    let mut decoder = BatchDecoder::new(inner, &read, bodies, runtime, attempt);
    BLOCK.with_borrow_mut(|memory| {
        let mut actions = VecDeque::from(read.on(Event::Begun));
        while let Some(action) = actions.pop_front() {
            if let Some(event) = decoder.perform(action, &read, memory)? {
                actions.extend(read.on(event));
            }
        }
        assert!(read.is_done(), "a read without actions is done");
        Ok(())
    })
}

/// A batch in work: its bytes, and the files of the shards of this machine.
struct BatchDecoder<'a> {
    inner: &'a Inner,
    group: u32,
    bodies: &'a [Option<Bytes>],
    /// Offset in each object at which its body starts.
    base: u64,
    runtime: &'a Handle,
    attempt: &'a Attempt,
    ranges: Vec<Range<u64>>,
    paths: Vec<ObjectPath>,
    files: Vec<Option<Result<File, FaultKind>>>,
}

impl<'a> BatchDecoder<'a> {
    fn new(
        inner: &'a Inner,
        read: &BatchRead,
        bodies: &'a [Option<Bytes>],
        runtime: &'a Handle,
        attempt: &'a Attempt,
    ) -> Self {
        let batch = read.batch();
        let ranges = inner.geometry.ranges(&inner.manifest, batch.group);
        Self {
            inner,
            group: batch.group,
            bodies,
            base: ranges[batch.positions.start].start,
            runtime,
            attempt,
            paths: (0..bodies.len()).map(|shard| inner.geometry.object(batch.group, shard)).collect(),
            files: bodies.iter().map(|_| None).collect(),
            ranges,
        }
    }

    /// Performs one action, and returns the event that reports its result.
    fn perform(
        &mut self,
        action: ReadAction,
        read: &BatchRead,
        memory: &mut Vec<u8>,
    ) -> Result<Option<Event>, ReadError> {
        let position = read.batch().positions.start;
        match action {
            ReadAction::Load { shard } => {
                let block = self.block(position, memory);
                Ok(Some(loaded(shard, self.load(shard, position, block)?)))
            }
            ReadAction::Open => Ok(Some(self.open(read, self.block(position, memory))?)),
            ReadAction::Check => Ok(Some(self.check(read, self.block(position, memory)))),
            ReadAction::Replace { shard } => {
                let block = self.block(position, memory);
                Ok(Some(loaded(shard, self.replace(shard, position, block)?)))
            }
            ReadAction::Publish { position, rebuilt, faults } => {
                self.publish(position, rebuilt, &faults)?;
                Ok(None)
            }
            ReadAction::Fail { position, reason } => {
                self.report(position, &read.faults());
                Err(self.failure(position, reason, read.segment()))
            }
            ReadAction::Fetch { .. }
            | ReadAction::Hedge { .. }
            | ReadAction::Drop { .. }
            | ReadAction::Decode => {
                debug_assert!(false, "the requests precede the decoding: {action:?}");
                Ok(None)
            }
        }
    }

    /// Returns the index and the description of the segment at a position.
    fn segment(&self, position: usize) -> (u32, &'a Segment) {
        let index = self.inner.geometry.segments(&self.inner.manifest, self.group)[position];
        (index, &self.inner.manifest.segments[index as usize])
    }

    /// Returns the memory of a segment's shards, side by side.
    fn block<'b>(&self, position: usize, memory: &'b mut Vec<u8>) -> &'b mut [u8] {
        let needed = self.inner.geometry.shard_length(self.segment(position).1) * self.bodies.len();
        if memory.len() < needed {
            memory.resize(needed, 0);
        }
        &mut memory[..needed]
    }

    fn part<'b>(&self, shard: usize, block: &'b mut [u8]) -> &'b mut [u8] {
        let length = block.len() / self.bodies.len();
        &mut block[shard * length..(shard + 1) * length]
    }

    /// Puts a shard that is at hand into its part of the block.
    fn load(
        &mut self,
        shard: usize,
        position: usize,
        block: &mut [u8],
    ) -> Result<Result<(), FaultKind>, ReadError> {
        let Some(body) = &self.bodies[shard] else { return self.read_local(shard, position, block) };
        let range = &self.ranges[position];
        let bytes = body.get((range.start - self.base) as usize..(range.end - self.base) as usize);
        let Some(bytes) = bytes else { return Ok(Err(FaultKind::Short)) };
        self.part(shard, block).copy_from_slice(bytes);
        Ok(Ok(()))
    }

    /// Rebuilds absent data shards, decrypts into the destination, and verifies.
    fn open(&self, read: &BatchRead, block: &mut [u8]) -> Result<Event, ReadError> {
        let (index, segment) = self.segment(read.batch().positions.start);
        let target = self.attempt.target().ok_or(ReadError::Stopped)?;
        let present: Vec<bool> = read.segment().iter().map(|state| *state == ShardState::Present).collect();
        if !self.inner.coder.rebuild(block, &present, false) {
            return Ok(Event::Rejected);
        }
        let mut write = |plain: &mut [u8]| self.inner.cipher.open(index, segment, block, plain);
        let length = segment.length as usize;
        let opened = target.destination.with_buffer(segment.offset, length, &mut write);
        Ok(if opened.map_err(ReadError::Destination)? { Event::Opened } else { Event::Rejected })
    }

    /// Checks the digest of each shard in the block. A rebuild has not changed those.
    fn check(&self, read: &BatchRead, block: &mut [u8]) -> Event {
        let position = read.batch().positions.start;
        let present = read.segment().iter().enumerate().filter(|(_, state)| **state == ShardState::Present);
        let wrong = present.map(|(shard, _)| shard).filter(|shard| !self.is_right(*shard, position, block));
        Event::Checked { wrong: wrong.collect(), ranked: self.inner.health.preference() }
    }

    fn is_right(&self, shard: usize, position: usize, block: &[u8]) -> bool {
        let length = block.len() / self.bodies.len();
        let part = &block[shard * length..(shard + 1) * length];
        Digest::of(part) == self.segment(position).1.shards[shard]
    }

    /// Gets a shard from its store now, on this machine or another, and checks its digest.
    fn replace(
        &mut self,
        shard: usize,
        position: usize,
        block: &mut [u8],
    ) -> Result<Result<(), FaultKind>, ReadError> {
        let got = if self.inner.stores[shard].directory().is_some() {
            self.read_local(shard, position, block)?
        } else {
            let range = self.ranges[position].clone();
            let bytes = self.runtime.block_on(fetch_range(self.inner, shard, &self.paths[shard], range));
            bytes.map(|bytes| self.part(shard, block).copy_from_slice(&bytes))
        };
        let is_wrong = got.is_ok() && !self.is_right(shard, position, block);
        Ok(if is_wrong { Err(FaultKind::Wrong) } else { got })
    }

    /// Reads from a directory of this machine, by position. Returns [`ReadError::Stopped`] if the attempt was
    /// abandoned during the read: shared state must then not be touched any more.
    fn read_local(
        &mut self,
        shard: usize,
        position: usize,
        block: &mut [u8],
    ) -> Result<Result<(), FaultKind>, ReadError> {
        let Some(disk) = self.inner.stores[shard].disk().filter(|disk| !disk.is_stalled()) else {
            return Ok(Err(FaultKind::Unreachable));
        };
        let began = Instant::now();
        self.attempt.begin_read(shard);
        let read = self.read_disk(shard, position, block);
        if !self.attempt.end_read() {
            disk.read_returned();
            crate::pool::replaced();
            return Err(ReadError::Stopped);
        }
        self.inner.health.read_disk(shard, began.elapsed());
        Ok(read)
    }

    fn read_disk(&mut self, shard: usize, position: usize, block: &mut [u8]) -> Result<(), FaultKind> {
        let open = || {
            let root = self.inner.stores[shard].directory().ok_or(FaultKind::Unreachable)?;
            File::open(root.join(self.paths[shard].as_ref())).map_err(|error| fault(error.kind()))
        };
        let file = self.files[shard].get_or_insert_with(open).as_ref().map_err(|kind| *kind)?;
        let length = block.len() / self.bodies.len();
        let part = &mut block[shard * length..(shard + 1) * length];
        file.read_exact_at(part, self.ranges[position].start).map_err(|error| fault(error.kind()))
    }

    /// Reports a segment that is in place.
    fn publish(
        &self,
        position: usize,
        rebuilt: bool,
        faults: &[(usize, FaultKind)],
    ) -> Result<(), ReadError> {
        self.report(position, faults);
        let (index, segment) = self.segment(position);
        let target = self.attempt.target().ok_or(ReadError::Stopped)?;
        (target.on_segment)(index);
        self.attempt.note(BatchReport {
            segments: 1,
            bytes: segment.length.into(),
            rebuilt: u64::from(rebuilt),
            faults: faults.len() as u64,
        });
        Ok(())
    }

    fn report(&self, position: usize, faults: &[(usize, FaultKind)]) {
        let (segment, _) = self.segment(position);
        for (shard, kind) in faults.iter().copied() {
            self.inner.health.failed(shard, kind);
            (self.inner.faults)(ShardFault {
                store: self.inner.stores[shard].url().into(),
                object: self.paths[shard].to_string(),
                segment,
                shard: shard as u8,
                kind,
            });
        }
    }

    fn failure(&self, position: usize, reason: ReadFailure, states: &[ShardState]) -> ReadError {
        let (segment, _) = self.segment(position);
        let needed = self.inner.coder.data();
        match reason {
            ReadFailure::SegmentInvalid => ReadError::SegmentInvalid { segment },
            ReadFailure::ShardsTooFew { good } => {
                ReadError::ShardsTooFew { segment, good, needed, faults: self.describe(states) }
            }
        }
    }

    /// Returns a text that names each shard that is not in the block, with its store.
    fn describe(&self, states: &[ShardState]) -> String {
        let describe = |(shard, state): (usize, &ShardState)| {
            let url = self.inner.stores[shard].url();
            match state {
                ShardState::Present => None,
                ShardState::Failed(kind) => Some(format!("shard {shard} is {kind} in `{url}`")),
                _ => Some(format!("store `{url}` is unreachable")),
            }
        };
        states.iter().enumerate().filter_map(describe).collect::<Vec<_>>().join(", ")
    }
}

fn loaded(shard: usize, result: Result<(), FaultKind>) -> Event {
    match result {
        Ok(()) => Event::Loaded { shard },
        Err(kind) => Event::Failed { shard, kind },
    }
}

fn fault(kind: ErrorKind) -> FaultKind {
    match kind {
        kind if is_absence(kind) => FaultKind::Missing,
        ErrorKind::UnexpectedEof => FaultKind::Short,
        _ => FaultKind::Unreachable,
    }
}
