//! Choice of experts: a router's scores to the rows that each expert computes.

use super::super::config::Experts;
use kernels::Isa;
use kernels::elementwise::softmax;

/// Rows of a step that one expert computes, in ascending order, each with the weight of its result.
pub(super) type ExpertRows = Vec<(usize, f32)>;

/// Chooses experts for each row of `scores`, which become probabilities. Returns the rows of each expert. A
/// row's choice depends on the row alone; of equal probabilities the expert with the lower index comes first.
pub(super) fn choose(isa: Isa, experts: &Experts, scores: &mut [f32]) -> Vec<ExpertRows> {
    assert!(scores.len().is_multiple_of(experts.count), "one score per row and expert");
    let mut rows_of = vec![ExpertRows::new(); experts.count];
    let mut order: Vec<usize> = Vec::with_capacity(experts.count);
    for (row, chances) in scores.chunks_exact_mut(experts.count).enumerate() {
        softmax(isa, chances, experts.count, 1.0);
        order.clear();
        order.extend(0..experts.count);
        order.sort_by(|a, b| chances[*b].total_cmp(&chances[*a]).then(a.cmp(b)));
        let chosen = &order[..experts.chosen];
        let total: f32 = match experts.is_normalized {
            true => chosen.iter().map(|expert| chances[*expert]).sum(),
            false => 1.0,
        };
        for expert in chosen {
            rows_of[*expert].push((row, chances[*expert] / total));
        }
    }
    rows_of
}

#[cfg(test)]
mod tests {
    use super::super::super::config::ExpertNames;
    use super::*;

    fn experts(count: usize, chosen: usize, is_normalized: bool) -> Experts {
        Experts { count, chosen, inner: 1, is_normalized, names: ExpertNames::Qwen }
    }

    #[test]
    fn the_likeliest_experts_compute_a_row_and_equal_ones_by_their_index() {
        let mut scores = [2.0, 1.0, 3.0, 0.0, 1.0, 1.0, 1.0, 1.0];
        let rows = choose(Isa::best(), &experts(4, 2, true), &mut scores);
        let of = |expert: usize| rows[expert].iter().map(|(row, _)| *row).collect::<Vec<_>>();
        assert_eq!([of(0), of(1), of(2), of(3)], [vec![0, 1], vec![1], vec![0], vec![]]);
        assert_eq!(rows[1], [(1, 0.5)]);
        let logistic = 1.0 / (1.0 + (-1.0_f32).exp());
        assert!((rows[2][0].1 - logistic).abs() < 1e-6, "{rows:?}");
    }

    #[test]
    fn without_normalization_the_weights_are_the_probabilities() {
        let mut scores = [0.0, 0.0, 0.0, 0.0];
        let rows = choose(Isa::best(), &experts(4, 3, false), &mut scores);
        assert_eq!(rows, [vec![(0, 0.25)], vec![(0, 0.25)], vec![(0, 0.25)], vec![]]);
    }

    #[test]
    fn a_row_is_routed_the_same_beside_others() {
        let row = |seed: usize| (0..6).map(|i| ((seed * 7 + i * 5) % 11) as f32 * 0.3).collect::<Vec<_>>();
        let mut all: Vec<f32> = (0..9).flat_map(row).collect();
        let together = choose(Isa::best(), &experts(6, 2, true), &mut all);
        for seed in 0..9 {
            let alone = choose(Isa::best(), &experts(6, 2, true), &mut row(seed));
            for (alone, together) in alone.iter().zip(&together) {
                let weight = |rows: &ExpertRows, row| {
                    rows.iter().find(|(other, _)| *other == row).map(|(_, weight)| weight.to_bits())
                };
                assert_eq!(weight(alone, 0), weight(together, seed));
            }
        }
    }
}
