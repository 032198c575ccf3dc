//! KV cache: keys and values of open sequences, in blocks of 32 positions from one bounded pool.
//!
//! Opening a sequence reserves blocks for its longest form; blocks are allocated only as it grows. Keys are
//! stored transposed, as the innermost loop reads them.

use super::super::config::DecoderShape;
use super::super::kernels::attention::{KeysValues, PANEL, padded};
use super::super::{Capacity, SequenceId};
use std::collections::BTreeMap;

/// The pool and the blocks of each sequence.
#[derive(Debug, Default)]
pub(super) struct Cache {
    layers: usize,
    heads: usize,
    width: usize,
    blocks_max: usize,
    blocks_reserved: usize,
    /// Freed blocks, kept for reuse.
    spare: Vec<Box<[f32]>>,
    sequences: BTreeMap<SequenceId, Sequence>,
    next: u64,
}

#[derive(Debug)]
struct Sequence {
    length: usize,
    blocks_reserved: usize,
    /// Each holds 32 positions of all layers and heads: per layer and head, keys (`width` rows of 32), then
    /// values (32 rows of the padded width).
    blocks: Vec<Box<[f32]>>,
}

/// One head's panels of one sequence.
#[derive(Debug, Clone, Copy)]
pub(super) struct Blocks<'a> {
    blocks: &'a [Box<[f32]>],
    start: usize,
    width: usize,
}

impl Cache {
    pub(super) fn new(shape: &DecoderShape, bytes_max: usize) -> Self {
        let mut cache = Self {
            layers: shape.layers,
            heads: shape.key_value_heads,
            width: shape.head_width,
            ..Self::default()
        };
        cache.blocks_max = bytes_max / (cache.block_length() * size_of::<f32>());
        cache
    }

    pub(super) fn capacity(&self) -> Capacity {
        Capacity { tokens_total: self.blocks_max * PANEL, tokens_reserved: self.blocks_reserved * PANEL }
    }

    pub(super) fn open(&mut self, tokens_max: usize) -> Option<SequenceId> {
        assert!(tokens_max > 0, "a sequence has positions");
        let blocks_reserved = tokens_max.div_ceil(PANEL);
        if self.blocks_reserved + blocks_reserved > self.blocks_max {
            return None;
        }
        self.blocks_reserved += blocks_reserved;
        self.next += 1;
        let id = SequenceId(self.next);
        self.sequences.insert(id, Sequence { length: 0, blocks_reserved, blocks: Vec::new() });
        Some(id)
    }

    pub(super) fn close(&mut self, sequence: SequenceId) {
        if let Some(closed) = self.sequences.remove(&sequence) {
            self.blocks_reserved -= closed.blocks_reserved;
            self.spare.extend(closed.blocks);
        }
    }

    /// Allocates blocks for `count` more positions; returns the position of the first.
    pub(super) fn extend(&mut self, sequence: SequenceId, count: usize) -> usize {
        let block_length = self.block_length();
        let sequence = self.sequences.get_mut(&sequence).expect("the sequence is open");
        let needed = (sequence.length + count).div_ceil(PANEL);
        assert!(needed <= sequence.blocks_reserved, "a sequence stays within its reservation");
        while sequence.blocks.len() < needed {
            let fresh = || vec![0.0; block_length].into_boxed_slice();
            sequence.blocks.push(self.spare.pop().unwrap_or_else(fresh));
        }
        sequence.length
    }

    /// Records that `count` positions have been stored in all layers.
    pub(super) fn advance(&mut self, sequence: SequenceId, count: usize) {
        let sequence = self.sequences.get_mut(&sequence).expect("the sequence is open");
        sequence.length += count;
        debug_assert!(sequence.length <= sequence.blocks.len() * PANEL, "the positions were allocated");
    }

    pub(super) fn store(
        &mut self,
        sequence: SequenceId,
        layer: usize,
        head: usize,
        position: usize,
        key: &[f32],
        value: &[f32],
    ) {
        debug_assert!(layer < self.layers && head < self.heads && key.len() == self.width);
        let start = self.start(layer, head);
        let sequence = self.sequences.get_mut(&sequence).expect("the sequence is open");
        let part = &mut sequence.blocks[position / PANEL][start..];
        let slot = position % PANEL;
        for (dimension, key) in key.iter().enumerate() {
            part[dimension * PANEL + slot] = *key;
        }
        part[self.width * PANEL + slot * padded(self.width)..][..self.width].copy_from_slice(value);
    }

    pub(super) fn blocks(&self, sequence: SequenceId, layer: usize, head: usize) -> Blocks<'_> {
        let blocks = &self.sequences.get(&sequence).expect("the sequence is open").blocks;
        Blocks { blocks, start: self.start(layer, head), width: self.width }
    }

    /// Checks that the reservations add up and fit the pool, and that each sequence fits its blocks.
    ///
    /// # Errors
    /// Describes the first violation.
    #[cfg(test)]
    fn check_invariants(&self) -> Result<(), String> {
        let reserved: usize = self.sequences.values().map(|sequence| sequence.blocks_reserved).sum();
        if reserved != self.blocks_reserved {
            return Err(format!("sequences reserve {reserved} blocks, {} are counted", self.blocks_reserved));
        }
        let used: usize = self.sequences.values().map(|sequence| sequence.blocks.len()).sum();
        let exists = used + self.spare.len();
        if reserved > self.blocks_max || exists > self.blocks_max {
            return Err(format!("{reserved} blocks reserved, {exists} exist, at most {}", self.blocks_max));
        }
        for (id, sequence) in &self.sequences {
            if sequence.blocks.len() > sequence.blocks_reserved {
                return Err(format!("sequence {} exceeds its reservation", id.0));
            }
            if sequence.length > sequence.blocks.len() * PANEL {
                return Err(format!("sequence {} has {} positions beside its blocks", id.0, sequence.length));
            }
        }
        let mut all = self.sequences.values().flat_map(|sequence| &sequence.blocks).chain(&self.spare);
        match all.all(|block| block.len() == self.block_length()) {
            true => Ok(()),
            false => Err("a block has the wrong length".to_owned()),
        }
    }

    fn head_length(&self) -> usize {
        PANEL * (self.width + padded(self.width))
    }

    fn block_length(&self) -> usize {
        self.layers * self.heads * self.head_length()
    }

    fn start(&self, layer: usize, head: usize) -> usize {
        (layer * self.heads + head) * self.head_length()
    }
}

impl<'a> Blocks<'a> {
    pub(super) fn get(&self, index: usize) -> KeysValues<'a> {
        let wide = padded(self.width);
        let keys = self.width * PANEL;
        let part = &self.blocks[index][self.start..][..keys + PANEL * wide];
        KeysValues { keys: &part[..keys], values: &part[keys..], value_stride: wide }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::config::Rotary;
    use proptest::prelude::*;

    fn cache(blocks: usize) -> Cache {
        let shape = DecoderShape {
            hidden: 8,
            intermediate: 8,
            layers: 2,
            heads: 2,
            key_value_heads: 1,
            head_width: 4,
            vocabulary: 8,
            norm_epsilon: 1e-5,
            rotary: Rotary { theta: 1e4, stretch: None },
            tied_embeddings: true,
        };
        let one = 2 * PANEL * (4 + PANEL) * 4;
        Cache::new(&shape, blocks * one + one / 2)
    }

    #[test]
    fn the_pool_is_bounded_by_reservations_and_takes_back_all_blocks() {
        let mut cache = cache(3);
        assert_eq!(cache.capacity(), Capacity { tokens_total: 96, tokens_reserved: 0 });
        let first = cache.open(33).expect("two blocks of three");
        assert!(cache.open(33).is_none());
        let second = cache.open(32).expect("the third block");
        assert_eq!(cache.extend(first, 33), 0);
        cache.advance(first, 33);
        assert_eq!(cache.extend(first, 31), 33);
        cache.close(first);
        cache.close(first);
        assert_eq!(cache.capacity().tokens_reserved, 32);
        cache.close(second);
        assert_eq!(cache.capacity().tokens_reserved, 0);
        assert_eq!(cache.spare.len(), 2);
    }

    #[test]
    fn a_planted_violation_of_the_pool_is_reported() {
        type Plant = fn(&mut Cache, SequenceId);
        let cases: [(Plant, &str); 6] = [
            (|cache, _| cache.blocks_reserved = 1, "reserve 2 blocks, 1 are counted"),
            (|cache, _| cache.blocks_max = 1, "2 blocks reserved, 2 exist, at most 1"),
            (|cache, _| cache.spare.extend(vec![Box::default(); 2]), "2 blocks reserved, 4 exist, at most 3"),
            (|cache, _| cache.spare.push(Box::default()), "wrong length"),
            (
                |cache, id| cache.sequences.get_mut(&id).expect("open").length = 97,
                "has 97 positions beside its blocks",
            ),
            (
                |cache, id| {
                    let block = vec![0.0; cache.block_length()].into_boxed_slice();
                    cache.sequences.get_mut(&id).expect("open").blocks.push(block);
                },
                "exceeds its reservation",
            ),
        ];
        for (plant, expected) in cases {
            let mut cache = cache(3);
            let id = cache.open(33).expect("two blocks");
            cache.extend(id, 33);
            cache.advance(id, 33);
            assert_eq!(cache.check_invariants(), Ok(()));
            plant(&mut cache, id);
            let found = cache.check_invariants().expect_err(expected);
            assert!(found.contains(expected), "{found} lacks {expected}");
        }
    }

    proptest! {
        #[test]
        fn sequences_that_come_grow_and_go_keep_the_pools_invariants(
            acts in proptest::collection::vec((0u8..3, 0usize..4, 1usize..80), 1..100),
        ) {
            let mut cache = cache(5);
            let mut open: Vec<(SequenceId, usize)> = Vec::new();
            for (act, index, tokens) in acts {
                match act {
                    0 => open.extend(cache.open(tokens).map(|id| (id, tokens))),
                    1 if index < open.len() => cache.close(open.remove(index).0),
                    _ => {
                        if let Some((id, left)) = open.get_mut(index) {
                            let count = tokens.min(*left);
                            cache.extend(*id, count);
                            cache.advance(*id, count);
                            *left -= count;
                        }
                    }
                }
                prop_assert_eq!(cache.check_invariants(), Ok(()));
            }
        }
    }

    #[test]
    fn stored_keys_and_values_are_read_from_their_panel() {
        let mut cache = cache(3);
        let id = cache.open(40).expect("two blocks");
        cache.extend(id, 40);
        cache.store(id, 1, 0, 35, &[1.0, 2.0, 3.0, 4.0], &[5.0, 6.0, 7.0, 8.0]);
        let panel = cache.blocks(id, 1, 0).get(1);
        assert_eq!([0, 1, 2, 3].map(|dimension| panel.keys[dimension * PANEL + 3]), [1.0, 2.0, 3.0, 4.0]);
        assert_eq!(panel.values[3 * panel.value_stride..][..5], [5.0, 6.0, 7.0, 8.0, 0.0]);
        assert!(cache.blocks(id, 0, 0).get(1).keys.iter().all(|x| *x == 0.0));
    }
}
