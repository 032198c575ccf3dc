//! Layout of files in the weights map, segment boundaries, and the order in which an engine needs segments.
//! Pure: works on names and lengths.

use protocol::limits::SEGMENT_BYTES_MAX;
use protocol::model::FILE_ALIGNMENT;
use std::ops::Range;

/// Minimum length in bytes of a segment that ends at a layer boundary. A shorter one costs more in digests
/// and requests than it saves in waiting.
const LAYER_CUT_BYTES_MIN: u64 = 64 * 1024;

/// Rank in the order of need; lower is earlier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rank(pub(crate) u32);

impl Rank {
    /// Configuration, tokenizer, and headers of weights files.
    pub(crate) const FIRST: Self = Self(0);
    const EMBEDDING: Self = Self(1);
    const LAYERS: u32 = 2;
    /// Final norms, heads, poolers, and tensors of unknown position.
    pub(crate) const LAST: Self = Self(u32::MAX);

    /// Returns the rank of a tensor by its name: `model.layers.12.mlp.up_proj.weight` belongs to layer 12.
    pub(crate) fn of_tensor(name: &str) -> Self {
        let mut parts = name.split('.').peekable();
        while let Some(part) = parts.next() {
            let stack = matches!(part, "layers" | "layer" | "h" | "blocks" | "block" | "blk");
            let number = parts.peek().and_then(|next| next.parse::<u32>().ok());
            if let (true, Some(number)) = (stack, number) {
                return Self(Self::LAYERS.saturating_add(number).min(u32::MAX - 1));
            }
        }
        if name.contains("embed") || name.contains("embd") || name.contains("wte") || name.contains("wpe") {
            return Self::EMBEDDING;
        }
        Self::LAST
    }
}

/// A part of a file that has one rank: a header, a tensor, or a whole opaque file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Extent {
    /// Byte range in the file.
    pub(crate) range: Range<u64>,
    pub(crate) rank: Rank,
}

/// A planned segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PlannedSegment {
    /// Byte range in the file.
    pub(crate) range: Range<u64>,
    /// Rank of the extent that is needed first.
    pub(crate) rank: Rank,
}

/// Cuts a file along its extents, which cover it in order. Small ones share a segment; large ones are cut
/// into segments of the largest size from their start.
pub(crate) fn cut(extents: &[Extent]) -> Vec<PlannedSegment> {
    let joined = extents.windows(2).all(|pair| pair[0].range.end == pair[1].range.start);
    assert!(joined, "extents cover their file in order");
    let limit = SEGMENT_BYTES_MAX as u64;
    let mut cuts = Vec::new();
    let mut open: Option<PlannedSegment> = None;
    for Extent { range, rank } in extents.iter().filter(|extent| !extent.range.is_empty()) {
        let joins = open.as_ref().is_some_and(|open| {
            let fits = range.end - open.range.start <= limit;
            let length = open.range.end - open.range.start;
            fits && (open.rank == *rank || length < LAYER_CUT_BYTES_MIN && open.rank != Rank::FIRST)
        });
        if !joins {
            cuts.extend(open.take());
        }
        let cut = open.get_or_insert(PlannedSegment { range: range.start..range.start, rank: *rank });
        cut.rank = cut.rank.min(*rank);
        cut.range.end = range.end;
        while cut.range.end - cut.range.start > limit {
            let middle = cut.range.start + limit;
            cuts.push(PlannedSegment { range: cut.range.start..middle, rank: cut.rank });
            *cut = PlannedSegment { range: middle..range.end, rank: *rank };
        }
    }
    cuts.extend(open);
    cuts
}

/// Returns the offset of each file in the weights map, by the files' lengths.
pub(crate) fn offsets(lengths: impl IntoIterator<Item = u64>) -> Vec<u64> {
    let mut at: u64 = 0;
    let advance = |length: u64| {
        let offset = at;
        debug_assert!(at.is_multiple_of(FILE_ALIGNMENT) || at == u64::MAX, "a file at {at}");
        at = at.saturating_add(length).checked_next_multiple_of(FILE_ALIGNMENT).unwrap_or(u64::MAX);
        offset
    };
    lengths.into_iter().map(advance).collect()
}

/// Returns the order in which segments are needed: by rank, then by index.
pub(crate) fn order(ranks: &[Rank]) -> Vec<u32> {
    let mut order: Vec<u32> = (0..ranks.len() as u32).collect();
    order.sort_by_key(|index| (ranks[*index as usize], *index));
    debug_assert_eq!(order.len(), ranks.len(), "each segment has one position");
    order
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn tensors_are_ranked_by_their_layer() {
        let mut names = [
            "lm_head.weight",
            "model.layers.10.mlp.up_proj.weight",
            "model.layers.2.self_attn.q_proj.weight",
            "encoder.layer.0.output.dense.bias",
            "transformer.h.1.ln_1.weight",
            "blk.3.attn_q.weight",
            "token_embd.weight",
            "pooler.dense.weight",
        ];
        names.sort_by_key(|name| Rank::of_tensor(name));
        let expected = [
            "token_embd.weight",
            "encoder.layer.0.output.dense.bias",
            "transformer.h.1.ln_1.weight",
            "model.layers.2.self_attn.q_proj.weight",
            "blk.3.attn_q.weight",
            "model.layers.10.mlp.up_proj.weight",
            "lm_head.weight",
            "pooler.dense.weight",
        ];
        assert_eq!(names, expected);
        assert!(Rank::of_tensor("layers.4294967295.w") < Rank::LAST);
        assert_eq!(Rank::of_tensor("layers.x.embeddings"), Rank::EMBEDDING);
        assert_eq!(Rank::of_tensor("model.embed_tokens.weight"), Rank::EMBEDDING);
    }

    #[test]
    fn small_tensors_share_a_segment_and_large_ones_are_cut_from_their_beginning() {
        let mib = 1 << 20;
        let layer = Rank(5);
        let extent = |start, end, rank| Extent { range: start..end, rank };
        let cuts = cut(&[
            extent(0, 1000, Rank::FIRST),
            extent(1000, 2000, layer),
            extent(2000, 3000, layer),
            extent(3000, 3000 + 2 * mib + 7, layer),
            extent(3000 + 2 * mib + 7, 5000 + 2 * mib, layer),
        ]);
        let ranges: Vec<_> = cuts.iter().map(|cut| (cut.range.clone(), cut.rank)).collect();
        let (a, b, c) = (3000, 3000 + mib, 3000 + 2 * mib);
        let expected = [
            (0..1000, Rank::FIRST),
            (1000..a, layer),
            (a..b, layer),
            (b..c, layer),
            (c..5000 + 2 * mib, layer),
        ];
        assert_eq!(ranges, expected);
    }

    #[test]
    fn files_begin_at_pages() {
        assert_eq!(offsets([0, 1, 4096, 4097]), [0, 0, 4096, 8192]);
        assert_eq!(offsets([u64::MAX, 1]), [0, u64::MAX]);
    }

    proptest! {
        #[test]
        fn cuts_cover_every_byte_once_and_stay_within_the_limit(
            lengths in proptest::collection::vec((0u64..3_000_000, 0u32..4), 0..40)
        ) {
            let mut at = 0;
            let extents: Vec<Extent> = lengths
                .iter()
                .map(|(length, rank)| {
                    let range = at..at + length;
                    at = range.end;
                    Extent { range, rank: Rank(*rank) }
                })
                .collect();
            let mut end = 0;
            for cut in cut(&extents) {
                prop_assert_eq!(cut.range.start, end);
                prop_assert!(cut.range.end > end && cut.range.end - end <= SEGMENT_BYTES_MAX as u64);
                end = cut.range.end;
            }
            prop_assert_eq!(end, at);
        }

        #[test]
        fn the_order_is_a_permutation_sorted_by_need(ranks in proptest::collection::vec(0u32..5, 0..60)) {
            let ranks: Vec<Rank> = ranks.into_iter().map(Rank).collect();
            let order = order(&ranks);
            let mut sorted = order.clone();
            sorted.sort_unstable();
            prop_assert!(sorted.iter().enumerate().all(|(n, index)| n as u32 == *index));
            prop_assert!(order.is_sorted_by_key(|index| (ranks[*index as usize], *index)));
        }
    }
}
