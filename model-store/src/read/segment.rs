//! Decoding of segments on the pool's threads: from shards to verified bytes, with recovery from bad shards.

use super::attempt::Attempt;
use super::batch::SegmentBatch;
use super::fetch::Piece;
use super::inner::Inner;
use crate::error::ReadError;
use crate::fault::{FaultKind, ShardFault};
use crate::store::is_absence;
use object_store::path::Path as ObjectPath;
use protocol::Digest;
use std::cell::RefCell;
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

/// Totals of a batch.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct BatchReport {
    pub(super) segments: u64,
    pub(super) bytes: u64,
    pub(super) rebuilt: u64,
    pub(super) faults: u64,
}

impl BatchReport {
    pub(super) fn plus(self, other: Self) -> Self {
        Self {
            segments: self.segments + other.segments,
            bytes: self.bytes + other.bytes,
            rebuilt: self.rebuilt + other.rebuilt,
            faults: self.faults + other.faults,
        }
    }
}

/// State of one shard of the current segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hand {
    Untried,
    Present,
    Failed(FaultKind),
}

/// A batch in work: its pieces, and the files of the local ones.
struct Sources<'a> {
    inner: &'a Inner,
    batch: &'a SegmentBatch,
    pieces: &'a [Piece],
    runtime: &'a Handle,
    attempt: &'a Attempt,
    ranges: Vec<Range<u64>>,
    paths: Vec<ObjectPath>,
    files: Vec<Option<Result<File, FaultKind>>>,
}

impl Inner {
    /// Decodes a batch into the destination, reports each segment that is in place, and reports faults. The
    /// result of an abandoned attempt is discarded.
    pub(super) fn decode(
        &self,
        batch: &SegmentBatch,
        pieces: &[Piece],
        runtime: &Handle,
        attempt: &Attempt,
    ) -> Result<(), ReadError> {
        let segments = &self.geometry.segments(&self.manifest, batch.group)[batch.places.clone()];
        let mut sources = Sources {
            inner: self,
            batch,
            pieces,
            runtime,
            attempt,
            ranges: self.geometry.ranges(&self.manifest, batch.group),
            paths: (0..pieces.len()).map(|shard| self.geometry.object(batch.group, shard)).collect(),
            files: pieces.iter().map(|_| None).collect(),
        };
        BLOCK.with_borrow_mut(|memory| {
            for (index, place) in segments.iter().zip(batch.places.clone()) {
                let segment = &self.manifest.segments[*index as usize];
                let needed = self.geometry.shard_length(segment) * pieces.len();
                if memory.len() < needed {
                    memory.resize(needed, 0);
                }
                let one = self.decode_one(*index, place, &mut sources, &mut memory[..needed])?;
                attempt.target().ok_or(ReadError::Stopped).map(|target| (target.on_segment)(*index))?;
                attempt.note(one);
            }
            Ok(())
        })
    }

    fn decode_one(
        &self,
        index: u32,
        place: usize,
        sources: &mut Sources<'_>,
        block: &mut [u8],
    ) -> Result<BatchReport, ReadError> {
        let segment = &self.manifest.segments[index as usize];
        let hands = (0..sources.pieces.len()).map(|shard| sources.take(shard, place, block));
        let mut hands: Vec<Hand> = hands.collect::<Result<_, _>>()?;
        let target = sources.attempt.target().ok_or(ReadError::Stopped)?;
        let attempt = |block: &mut [u8], hands: &[Hand]| {
            let present: Vec<bool> = hands.iter().map(|hand| *hand == Hand::Present).collect();
            if !self.coder.rebuild(block, &present, false) {
                return Ok(false);
            }
            let mut write = |plain: &mut [u8]| self.cipher.open(index, segment, block, plain);
            let lent = target.destination.lend(segment.offset, segment.length as usize, &mut write);
            lent.map_err(ReadError::Destination)
        };
        let mut opened = attempt(block, &hands)?;
        if !opened {
            self.gather(index, place, sources, block, &mut hands)?;
            opened = attempt(block, &hands)?;
        }
        self.report(index, sources, &hands);
        if !opened {
            return Err(ReadError::SegmentInvalid { segment: index });
        }
        let faults = hands.iter().filter(|hand| matches!(hand, Hand::Failed(_))).count() as u64;
        let whole = hands[..self.coder.data()].iter().all(|hand| *hand == Hand::Present);
        Ok(BatchReport { segments: 1, bytes: segment.length.into(), rebuilt: u64::from(!whole), faults })
    }

    /// Checks each shard that is present, discards the wrong ones, and gets others until k are right.
    fn gather(
        &self,
        index: u32,
        place: usize,
        sources: &mut Sources<'_>,
        block: &mut [u8],
        hands: &mut [Hand],
    ) -> Result<(), ReadError> {
        let segment = &self.manifest.segments[index as usize];
        let (length, needed) = (self.geometry.shard_length(segment), self.coder.data());
        let right = |block: &[u8], shard: usize| {
            Digest::of(&block[shard * length..(shard + 1) * length]) == segment.shards[shard]
        };
        // A rebuild may have overwritten absent shards; present ones are unchanged.
        for (shard, hand) in hands.iter_mut().enumerate() {
            if *hand == Hand::Present && !right(block, shard) {
                *hand = Hand::Failed(FaultKind::Wrong);
            }
        }
        let good = |hands: &[Hand]| hands.iter().filter(|hand| **hand == Hand::Present).count();
        for shard in self.health.preference() {
            if good(hands) == needed {
                break;
            }
            if hands[shard] == Hand::Untried {
                hands[shard] = sources.get(shard, place, block)?;
                if hands[shard] == Hand::Present && !right(block, shard) {
                    hands[shard] = Hand::Failed(FaultKind::Wrong);
                }
            }
        }
        let good = good(hands);
        if good >= needed {
            return Ok(());
        }
        self.report(index, sources, hands);
        let faults = self.describe(hands);
        Err(ReadError::ShardsTooFew { segment: index, good, needed, faults })
    }

    fn describe(&self, hands: &[Hand]) -> String {
        let describe = |(shard, hand): (usize, &Hand)| match hand {
            Hand::Failed(kind) => Some(format!("shard {shard} is {kind} in `{}`", self.stores[shard].url())),
            Hand::Untried => Some(format!("store `{}` is out of reach", self.stores[shard].url())),
            Hand::Present => None,
        };
        hands.iter().enumerate().filter_map(describe).collect::<Vec<_>>().join(", ")
    }

    fn report(&self, index: u32, sources: &Sources<'_>, hands: &[Hand]) {
        for (shard, hand) in hands.iter().enumerate() {
            let Hand::Failed(kind) = *hand else { continue };
            self.health.failed(shard, kind);
            (self.faults)(ShardFault {
                store: self.stores[shard].url().into(),
                object: sources.paths[shard].to_string(),
                segment: index,
                shard: shard as u8,
                kind,
            });
        }
    }
}

impl Sources<'_> {
    /// Puts the shard of the segment at `place` into its part of the block, if its piece is available.
    fn take(&mut self, shard: usize, place: usize, block: &mut [u8]) -> Result<Hand, ReadError> {
        Ok(match &self.pieces[shard] {
            Piece::Untried => Hand::Untried,
            Piece::Failed(kind) => Hand::Failed(*kind),
            Piece::Local => return self.read(shard, place, block),
            Piece::Fetched(bytes) => {
                let base = self.ranges[self.batch.places.start].start;
                let range = &self.ranges[place];
                let bytes = bytes.get((range.start - base) as usize..(range.end - base) as usize);
                let Some(bytes) = bytes else { return Ok(Hand::Failed(FaultKind::Short)) };
                self.part(shard, block).copy_from_slice(bytes);
                Hand::Present
            }
        })
    }

    /// Gets the shard from its store now, local or remote.
    fn get(&mut self, shard: usize, place: usize, block: &mut [u8]) -> Result<Hand, ReadError> {
        if self.inner.stores[shard].directory().is_some() {
            return self.read(shard, place, block);
        }
        let range = self.ranges[place].clone();
        Ok(match self.inner.get_now(self.runtime, shard, &self.paths[shard], range) {
            Ok(bytes) => {
                self.part(shard, block).copy_from_slice(&bytes);
                Hand::Present
            }
            Err(kind) => Hand::Failed(kind),
        })
    }

    /// Reads from a directory of this machine, by position. Returns [`ReadError::Stopped`] if the attempt was
    /// abandoned during the read: shared state must then not be touched any more.
    fn read(&mut self, shard: usize, place: usize, block: &mut [u8]) -> Result<Hand, ReadError> {
        let Some(disk) = self.inner.stores[shard].disk().filter(|disk| !disk.hangs()) else {
            return Ok(Hand::Failed(FaultKind::Unreachable));
        };
        let began = Instant::now();
        self.attempt.begin_read(shard);
        let hand = self.read_disk(shard, place, block);
        if !self.attempt.end_read() {
            disk.came_back();
            crate::pool::replaced();
            return Err(ReadError::Stopped);
        }
        self.inner.health.read_disk(shard, began.elapsed());
        Ok(hand)
    }

    fn read_disk(&mut self, shard: usize, place: usize, block: &mut [u8]) -> Hand {
        let open = || {
            let root = self.inner.stores[shard].directory().ok_or(FaultKind::Unreachable)?;
            File::open(root.join(self.paths[shard].as_ref())).map_err(|error| fault(error.kind()))
        };
        let file = match self.files[shard].get_or_insert_with(open) {
            Ok(file) => file,
            Err(kind) => return Hand::Failed(*kind),
        };
        let length = block.len() / self.pieces.len();
        let part = &mut block[shard * length..(shard + 1) * length];
        match file.read_exact_at(part, self.ranges[place].start) {
            Ok(()) => Hand::Present,
            Err(error) => Hand::Failed(fault(error.kind())),
        }
    }

    fn part<'b>(&self, shard: usize, block: &'b mut [u8]) -> &'b mut [u8] {
        let length = block.len() / self.pieces.len();
        &mut block[shard * length..(shard + 1) * length]
    }
}

fn fault(kind: ErrorKind) -> FaultKind {
    match kind {
        kind if is_absence(kind) => FaultKind::Missing,
        ErrorKind::UnexpectedEof => FaultKind::Short,
        _ => FaultKind::Unreachable,
    }
}
