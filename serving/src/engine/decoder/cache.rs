//! KV cache: keys and values in blocks of 32 positions. The batcher decides which sequence has which blocks;
//! memory is allocated at the first use of a block. Keys are stored transposed, as the innermost loop reads
//! them.
//!
//! A decoder that embeds computes whole texts, so that no later step reads what a layer stored: its cache has
//! room for one layer, which all layers use in turn.

use super::super::BlockId;
use super::super::config::DecoderShape;
use kernels::attention::{KeysValues, PANEL, padded};

/// All blocks.
#[derive(Debug, Default)]
pub(super) struct Cache {
    layers: usize,
    heads: usize,
    width: usize,
    /// Each holds 32 positions of all layers and heads: per layer and head, keys (`width` rows of 32), then
    /// values (32 rows of the padded width).
    blocks: Vec<Option<Box<[f32]>>>,
}

/// One head's panels of one sequence.
#[derive(Debug, Clone, Copy)]
pub(super) struct Blocks<'a> {
    all: &'a [Option<Box<[f32]>>],
    table: &'a [BlockId],
    start: usize,
    width: usize,
}

impl Cache {
    pub(super) fn new(shape: &DecoderShape, bytes_max: usize) -> Self {
        let mut cache = Self {
            layers: if shape.vector.is_some() { 1 } else { shape.layers.len() },
            heads: shape.key_value_heads,
            width: shape.head_width,
            blocks: Vec::new(),
        };
        let count = bytes_max / (cache.block_length() * size_of::<f32>());
        cache.blocks.resize(count, None);
        cache
    }

    /// Returns the number of blocks.
    pub(super) fn count(&self) -> usize {
        self.blocks.len()
    }

    /// Allocates what is missing of a sequence's blocks for `count` positions from `position` on.
    pub(super) fn prepare(&mut self, table: &[BlockId], position: usize, count: usize) {
        assert_eq!(self.check_chunk(table, position, count), Ok(()), "a chunk of a sequence");
        let length = self.block_length();
        for block in &table[..(position + count).div_ceil(PANEL)] {
            self.blocks[block.0 as usize].get_or_insert_with(|| vec![0.0; length].into_boxed_slice());
        }
    }

    /// Checks that a sequence's blocks hold `count` positions from `position` on, and all earlier ones.
    fn check_chunk(&self, table: &[BlockId], position: usize, count: usize) -> Result<(), String> {
        let needed = (position + count).div_ceil(PANEL);
        if needed > table.len() {
            return Err(format!("{} blocks do not hold {} positions", table.len(), position + count));
        }
        let stored = &table[..position.div_ceil(PANEL)];
        match stored.iter().find(|block| self.blocks[block.0 as usize].is_none()) {
            Some(block) => Err(format!("block {} of earlier positions is not stored", block.0)),
            None => Ok(()),
        }
    }

    pub(super) fn store(
        &mut self,
        table: &[BlockId],
        layer: usize,
        head: usize,
        position: usize,
        key: &[f32],
        value: &[f32],
    ) {
        debug_assert!(head < self.heads && key.len() == self.width);
        let (start, width) = (self.start(layer, head), self.width);
        let block = self.blocks[table[position / PANEL].0 as usize].as_mut().expect("prepared");
        let part = &mut block[start..];
        let slot = position % PANEL;
        for (dimension, key) in key.iter().enumerate() {
            part[dimension * PANEL + slot] = *key;
        }
        part[width * PANEL + slot * padded(width)..][..width].copy_from_slice(value);
    }

    pub(super) fn blocks<'a>(&'a self, table: &'a [BlockId], layer: usize, head: usize) -> Blocks<'a> {
        Blocks { all: &self.blocks, table, start: self.start(layer, head), width: self.width }
    }

    fn head_length(&self) -> usize {
        PANEL * (self.width + padded(self.width))
    }

    fn block_length(&self) -> usize {
        self.layers * self.heads * self.head_length()
    }

    fn start(&self, layer: usize, head: usize) -> usize {
        assert!(layer < self.layers || self.layers == 1, "a layer of the cache, or the only one");
        (layer % self.layers * self.heads + head) * self.head_length()
    }
}

impl<'a> Blocks<'a> {
    pub(super) fn get(&self, index: usize) -> KeysValues<'a> {
        let wide = padded(self.width);
        let keys = self.width * PANEL;
        let block = self.all[self.table[index].0 as usize].as_ref().expect("prepared");
        let part = &block[self.start..][..keys + PANEL * wide];
        KeysValues { keys: &part[..keys], values: &part[keys..], value_stride: wide }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::checkpoint::{CheckpointFiles, Pooling, ServableShape, VectorShape, servable};

    fn shape() -> DecoderShape {
        let config = br#"{"architectures": ["LlamaForCausalLM"], "hidden_size": 8, "intermediate_size": 8,
            "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4,
            "vocab_size": 8, "max_position_embeddings": 96}"#;
        let files: CheckpointFiles = std::iter::once(("config.json".to_owned(), config.to_vec())).collect();
        match servable(&files).expect("a Llama").shape {
            ServableShape::Decoder(shape) => shape,
            ServableShape::Encoder(_) => unreachable!("a decoder"),
        }
    }

    fn cache(blocks: usize) -> Cache {
        let one = 2 * PANEL * (4 + PANEL) * 4;
        Cache::new(&shape(), blocks * one + one / 2)
    }

    #[test]
    fn a_decoder_that_embeds_has_room_for_one_layer_that_all_use() {
        let vector = Some(VectorShape { pooling: Pooling::Last, is_normalized: true });
        let one = PANEL * (4 + PANEL) * 4;
        let mut cache = Cache::new(&DecoderShape { vector, ..shape() }, 3 * one);
        assert_eq!(cache.count(), 3);
        let table = [BlockId(0)];
        cache.prepare(&table, 0, 1);
        for layer in 0..2 {
            cache.store(&table, layer, 0, 0, &[layer as f32; 4], &[7.0; 4]);
            assert_eq!(cache.blocks(&table, layer, 0).get(0).keys[0], layer as f32);
        }
    }

    #[test]
    fn blocks_fill_the_bytes_and_are_allocated_at_their_first_use() {
        let mut cache = cache(3);
        assert_eq!(cache.count(), 3);
        let allocated = |cache: &Cache| cache.blocks.iter().map(Option::is_some).collect::<Vec<_>>();
        cache.prepare(&[BlockId(2), BlockId(0)], 0, PANEL);
        assert_eq!(allocated(&cache), [false, false, true]);
        cache.prepare(&[BlockId(2), BlockId(0)], PANEL, 1);
        assert_eq!(allocated(&cache), [true, false, true]);
    }

    #[test]
    fn a_chunk_beyond_its_blocks_is_refused() {
        let mut cache = cache(3);
        cache.prepare(&[BlockId(2)], 0, 30);
        assert_eq!(cache.check_chunk(&[BlockId(2)], 30, 2), Ok(()));
        let refused = cache.check_chunk(&[BlockId(2)], 30, 3);
        assert_eq!(refused, Err("1 blocks do not hold 33 positions".to_owned()));
    }

    #[test]
    fn a_chunk_after_positions_that_were_never_stored_is_refused() {
        let mut cache = cache(3);
        let table = [BlockId(2), BlockId(0)];
        let refused = cache.check_chunk(&table, PANEL, 1);
        assert_eq!(refused, Err("block 2 of earlier positions is not stored".to_owned()));
        cache.prepare(&table, 0, PANEL);
        assert_eq!(cache.check_chunk(&table, PANEL, 1), Ok(()));
    }

    #[test]
    fn stored_keys_and_values_are_read_from_their_panel() {
        let mut cache = cache(3);
        let table = [BlockId(1), BlockId(2)];
        cache.prepare(&table, 0, 40);
        cache.store(&table, 1, 0, 35, &[1.0, 2.0, 3.0, 4.0], &[5.0, 6.0, 7.0, 8.0]);
        let panel = cache.blocks(&table, 1, 0).get(1);
        assert_eq!([0, 1, 2, 3].map(|dimension| panel.keys[dimension * PANEL + 3]), [1.0, 2.0, 3.0, 4.0]);
        assert_eq!(panel.values[3 * panel.value_stride..][..5], [5.0, 6.0, 7.0, 8.0, 0.0]);
        assert!(cache.blocks(&table, 0, 0).get(1).keys.iter().all(|x| *x == 0.0));
    }
}
