//! Accounting of the KV cache: which blocks are free, who has the others, and which keep a prefix that a
//! later request may share.
//!
//! A block with references belongs to sequences. A full block may be published: its content is then found by
//! its tenant, the published block before it, and its tokens, compared as they are and not by a hash. A block
//! without references stays published until its place is needed; the least recently used goes first. One
//! tenant never finds another's blocks. The root of the weights is not part of the name, because a cache
//! belongs to one engine, and an engine to one root.

use super::Tenant;
use crate::engine::{BLOCK_TOKENS, BlockId};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Number of a published block, in the order of publication from 1 on. None is used twice: what followed an
/// evicted block is never found after another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) struct PrefixNumber(u64);

/// Content of a published block.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct PrefixKey {
    tenant: Tenant,
    /// The block before it; zero for the first of a sequence.
    before: PrefixNumber,
    tokens: Box<[u32]>,
}

#[derive(Debug)]
struct PublishedPrefix {
    key: Arc<PrefixKey>,
    number: PrefixNumber,
    /// Order among the blocks without references.
    released: u64,
}

#[derive(Debug, Default)]
struct Block {
    references: u32,
    published: Option<PublishedPrefix>,
}

/// The longest published prefix of a sequence.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct SharedPrefix {
    pub(super) blocks: Vec<BlockId>,
    /// Number of the last of these blocks.
    pub(super) number: PrefixNumber,
}

/// All blocks of one cache.
#[derive(Debug)]
pub(super) struct BlockPool {
    total: usize,
    /// Blocks that have been used; all others have higher ids.
    blocks: Vec<Block>,
    /// Used blocks with neither references nor content.
    free: Vec<BlockId>,
    /// Published blocks without references, by the order of their release.
    idle: BTreeMap<u64, BlockId>,
    index: BTreeMap<Arc<PrefixKey>, BlockId>,
    published_total: u64,
    released_total: u64,
}

impl BlockPool {
    pub(super) fn new(total: usize) -> Self {
        debug_assert!(u32::try_from(total).is_ok(), "each block has an id");
        Self {
            total,
            blocks: Vec::new(),
            free: Vec::new(),
            idle: BTreeMap::new(),
            index: BTreeMap::new(),
            published_total: 0,
            released_total: 0,
        }
    }

    /// Returns the number of blocks.
    pub(super) fn total(&self) -> usize {
        self.total
    }

    /// Returns the number of blocks without references.
    pub(super) fn available(&self) -> usize {
        debug_assert!(self.free.len() + self.idle.len() <= self.blocks.len(), "each block counts once");
        self.total - self.blocks.len() + self.free.len() + self.idle.len()
    }

    /// Takes a block for one sequence: a free one, else the published one that was not used for longest.
    pub(super) fn take(&mut self) -> Option<BlockId> {
        let id = match self.free.pop() {
            Some(id) => id,
            None if self.blocks.len() < self.total => {
                self.blocks.push(Block::default());
                BlockId(self.blocks.len() as u32 - 1)
            }
            None => self.evict()?,
        };
        let block = &mut self.blocks[id.0 as usize];
        assert!(block.references == 0 && block.published.is_none(), "a taken block is of no other sequence");
        block.references = 1;
        Some(id)
    }

    fn evict(&mut self) -> Option<BlockId> {
        let is_full = self.free.is_empty() && self.blocks.len() == self.total;
        debug_assert!(is_full, "no prefix is evicted while a block is free");
        let (_, id) = self.idle.pop_first()?;
        let published = self.blocks[id.0 as usize].published.take().expect("an idle block is published");
        let removed = self.index.remove(&published.key);
        assert_eq!(removed, Some(id), "a published block is found by its content");
        Some(id)
    }

    /// Adds a reference to a published block.
    pub(super) fn share(&mut self, id: BlockId) {
        let block = &mut self.blocks[id.0 as usize];
        let published = block.published.as_ref().expect("only published blocks are shared");
        if block.references == 0 {
            let idle = self.idle.remove(&published.released);
            debug_assert_eq!(idle, Some(id), "a published block without references is idle");
        }
        block.references += 1;
    }

    /// Removes a sequence's reference to a block.
    pub(super) fn release(&mut self, id: BlockId) {
        let block = &mut self.blocks[id.0 as usize];
        assert!(block.references > 0, "a sequence releases only blocks that it has");
        block.references -= 1;
        if block.references > 0 {
            return;
        }
        match &mut block.published {
            Some(published) => {
                self.released_total += 1;
                published.released = self.released_total;
                let other = self.idle.insert(published.released, id);
                debug_assert_eq!(other, None, "each release has a number of its own");
            }
            None => self.free.push(id),
        }
    }

    /// Returns whether no sequence has the block.
    pub(super) fn is_idle(&self, id: BlockId) -> bool {
        self.blocks[id.0 as usize].references == 0
    }

    /// Returns whether one sequence alone has the block.
    pub(super) fn is_exclusive(&self, id: BlockId) -> bool {
        self.blocks[id.0 as usize].references == 1
    }

    /// Finds the longest published prefix of `tokens` that leaves one token to compute.
    pub(super) fn find(&self, tenant: &Tenant, tokens: &[u32]) -> SharedPrefix {
        let mut found = SharedPrefix::default();
        for part in tokens[..tokens.len().saturating_sub(1)].chunks_exact(BLOCK_TOKENS) {
            let key = PrefixKey { tenant: tenant.clone(), before: found.number, tokens: part.into() };
            let Some(id) = self.index.get(&key) else { break };
            let published = self.blocks[id.0 as usize].published.as_ref().expect("it is in the index");
            debug_assert!(published.number > found.number, "a prefix is published before what continues it");
            found.number = published.number;
            found.blocks.push(*id);
        }
        debug_assert!(found.blocks.len() * BLOCK_TOKENS <= tokens.len().saturating_sub(1), "a token is left");
        found
    }

    /// Publishes a full block that a sequence has. Returns its number, or that of an older block with the
    /// same content.
    pub(super) fn publish(
        &mut self,
        id: BlockId,
        tenant: &Tenant,
        before: PrefixNumber,
        tokens: &[u32],
    ) -> PrefixNumber {
        assert_eq!(tokens.len(), BLOCK_TOKENS, "only full blocks never change");
        debug_assert!(before.0 <= self.published_total, "the block before it was published first");
        let key = PrefixKey { tenant: tenant.clone(), before, tokens: tokens.into() };
        if let Some(older) = self.index.get(&key) {
            let published = self.blocks[older.0 as usize].published.as_ref();
            return published.expect("it is in the index").number;
        }
        let block = &mut self.blocks[id.0 as usize];
        assert!(block.references > 0 && block.published.is_none(), "a sequence publishes its own block once");
        self.published_total += 1;
        let (key, number) = (Arc::new(key), PrefixNumber(self.published_total));
        block.published = Some(PublishedPrefix { key: Arc::clone(&key), number, released: 0 });
        self.index.insert(key, id);
        number
    }

    /// Returns a block that another tenant has published.
    #[cfg(test)]
    pub(super) fn other_tenant(&self, blocks: &[BlockId], tenant: Option<&Tenant>) -> Option<BlockId> {
        let publisher =
            |id: &BlockId| self.blocks[id.0 as usize].published.as_ref().map(|one| &one.key.tenant);
        blocks.iter().copied().find(|id| publisher(id).is_some_and(|publisher| Some(publisher) != tenant))
    }

    /// Checks that each block has as many references as `held` names it, and that every other one can be
    /// taken.
    ///
    /// # Errors
    /// Describes the first violation.
    #[cfg(test)]
    pub(super) fn check_invariants(&self, held: impl Iterator<Item = BlockId>) -> Result<(), String> {
        let mut references: BTreeMap<BlockId, u32> = BTreeMap::new();
        held.for_each(|id| *references.entry(id).or_default() += 1);
        for (index, block) in self.blocks.iter().enumerate() {
            let held = references.get(&BlockId(index as u32)).copied().unwrap_or(0);
            if block.references != held {
                return Err(format!("block {index} has {} references, {held} are held", block.references));
            }
        }
        if self.available() + references.len() != self.total {
            let (available, held) = (self.available(), references.len());
            return Err(format!("{available} blocks are available and {held} held, of {}", self.total));
        }
        let published = self.blocks.iter().filter(|block| block.published.is_some()).count();
        match published == self.index.len() {
            true => Ok(()),
            false => Err(format!("{published} blocks are published, {} are found", self.index.len())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tokens(blocks: usize, seed: u32) -> Vec<u32> {
        (0..(blocks * BLOCK_TOKENS) as u32).map(|index| index * 7 + seed).collect()
    }

    /// Takes and publishes the blocks of these tokens.
    fn published(pool: &mut BlockPool, tenant: &Tenant, tokens: &[u32]) -> Vec<BlockId> {
        let mut number = PrefixNumber::default();
        tokens
            .chunks_exact(BLOCK_TOKENS)
            .map(|part| {
                let id = pool.take().expect("room");
                number = pool.publish(id, tenant, number, part);
                id
            })
            .collect()
    }

    /// Releases as a sequence does: its last block first, so that the first is evicted last.
    fn release(pool: &mut BlockPool, blocks: &[BlockId]) {
        blocks.iter().rev().for_each(|id| pool.release(*id));
    }

    #[test]
    fn a_prefix_is_found_by_its_tenant_alone_and_leaves_a_token_to_compute() {
        let (mut pool, ann) = (BlockPool::new(8), Tenant::new("ann"));
        let prompt = tokens(3, 1);
        let blocks = published(&mut pool, &ann, &prompt);
        assert_eq!(pool.find(&ann, &prompt).blocks, blocks[..2]);
        let longer = [&prompt[..], &[9]].concat();
        assert_eq!(pool.find(&ann, &longer).blocks, blocks);
        assert_eq!(pool.find(&Tenant::new("bob"), &longer), SharedPrefix::default());
        let mut other = longer.clone();
        other[40] += 1;
        assert_eq!(pool.find(&ann, &other).blocks, blocks[..1], "the second block differs");
        assert_eq!(pool.find(&ann, &longer[32..]).blocks, [], "the same tokens at another position");
    }

    #[test]
    fn the_least_recently_used_prefix_is_evicted_and_its_tail_first() {
        let (mut pool, ann) = (BlockPool::new(5), Tenant::new("ann"));
        let (old, new) = (tokens(2, 1), tokens(2, 2));
        let first = published(&mut pool, &ann, &old);
        release(&mut pool, &first);
        let second = published(&mut pool, &ann, &new);
        release(&mut pool, &second);
        assert_eq!(pool.available(), 5);
        let taken: Vec<BlockId> = (0..2).map(|_| pool.take().expect("room")).collect();
        assert_eq!(taken, [BlockId(4), first[1]], "the unused block, then the tail of the older prefix");
        assert_eq!(pool.find(&ann, &[&old[..], &[0]].concat()).blocks, first[..1]);
        assert_eq!(pool.find(&ann, &[&new[..], &[0]].concat()).blocks, second);
        let in_use = published(&mut pool, &ann, &tokens(3, 3));
        assert_eq!(pool.take(), None, "blocks with references stay");
        assert_eq!(pool.check_invariants(taken.into_iter().chain(in_use)), Ok(()));
    }

    #[test]
    fn what_followed_an_evicted_block_is_not_found_after_another() {
        let (mut pool, ann) = (BlockPool::new(2), Tenant::new("ann"));
        let prompt = tokens(2, 1);
        let blocks = published(&mut pool, &ann, &prompt);
        // The first block goes before the second: not the order in which a sequence releases.
        blocks.iter().for_each(|id| pool.release(*id));
        let id = pool.take().expect("the first block's place");
        pool.publish(id, &ann, PrefixNumber::default(), &prompt[..32]);
        assert_eq!(pool.find(&ann, &[&prompt[..], &[0]].concat()).blocks, [id]);
    }

    #[test]
    fn a_planted_violation_of_the_pool_is_reported() {
        type Plant = fn(&mut BlockPool);
        let cases: [(Plant, &str); 4] = [
            (|pool| pool.blocks[0].references = 2, "block 0 has 2 references, 1 are held"),
            (|pool| pool.blocks[1].references = 0, "block 1 has 0 references, 1 are held"),
            (|pool| pool.free.push(BlockId(0)), "3 blocks are available and 2 held, of 4"),
            (|pool| pool.index.clear(), "1 blocks are published, 0 are found"),
        ];
        for (plant, expected) in cases {
            let mut pool = BlockPool::new(4);
            let held = published(&mut pool, &Tenant::new("ann"), &tokens(1, 1))[0];
            let other = pool.take().expect("room");
            assert_eq!(pool.check_invariants([held, other].into_iter()), Ok(()));
            plant(&mut pool);
            assert_eq!(pool.check_invariants([held, other].into_iter()), Err(expected.to_owned()));
        }
    }

    proptest! {
        #[test]
        fn blocks_that_are_taken_shared_and_released_are_never_lost(
            acts in prop::collection::vec((0_u8..3, 0_usize..6, 1_usize..4, 0_u32..3), 1..200),
        ) {
            let mut pool = BlockPool::new(9);
            let tenants = ["ann", "bob"].map(Tenant::new);
            let mut sequences: Vec<Vec<BlockId>> = Vec::new();
            for (act, index, length, seed) in acts {
                let (tenant, tokens) = (&tenants[index % 2], tokens(length, seed));
                if act == 0 && index < sequences.len() {
                    release(&mut pool, &sequences.remove(index));
                } else {
                    let found = pool.find(tenant, &[&tokens[..], &[0]].concat());
                    found.blocks.iter().for_each(|id| pool.share(*id));
                    let (mut blocks, mut number) = (found.blocks, found.number);
                    for part in tokens.chunks_exact(BLOCK_TOKENS).skip(blocks.len()) {
                        let Some(id) = pool.take() else { break };
                        blocks.push(id);
                        if act == 1 {
                            number = pool.publish(id, tenant, number, part);
                        }
                    }
                    sequences.push(blocks);
                }
                prop_assert_eq!(pool.check_invariants(sequences.iter().flatten().copied()), Ok(()));
            }
            sequences.iter().for_each(|blocks| release(&mut pool, blocks));
            prop_assert_eq!(pool.available(), 9);
        }
    }
}
