//! Reduction of the states of a text to one vector, for encoders and for decoders that embed.

use super::config::{Pooling, VectorShape};
use kernels::{Isa, elementwise};

/// Chooses or combines the rows of one text, each as wide as `vector`.
pub(super) fn pool_rows(isa: Isa, pooling: Pooling, rows: &[f32], vector: &mut [f32]) {
    let width = vector.len();
    assert!(!rows.is_empty() && rows.len().is_multiple_of(width), "at least one row, and whole rows");
    match pooling {
        Pooling::Mean => elementwise::mean_rows(isa, rows, vector),
        Pooling::First => vector.copy_from_slice(&rows[..width]),
        Pooling::Last => vector.copy_from_slice(&rows[rows.len() - width..]),
    }
}

/// Computes the vector of one text.
pub(super) fn reduce(isa: Isa, shape: VectorShape, rows: &[f32], vector: &mut [f32]) {
    pool_rows(isa, shape.pooling, rows, vector);
    if shape.is_normalized {
        elementwise::normalize(isa, vector);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_pooling_takes_its_rows() {
        let rows = [1.0, 2.0, 3.0, 6.0, 8.0, 4.0];
        for (pooling, expected) in
            [(Pooling::Mean, [4.0, 4.0]), (Pooling::First, [1.0, 2.0]), (Pooling::Last, [8.0, 4.0])]
        {
            let mut vector = [0.0; 2];
            reduce(Isa::best(), VectorShape { pooling, is_normalized: false }, &rows, &mut vector);
            assert_eq!(vector, expected, "{pooling:?}");
            reduce(Isa::best(), VectorShape { pooling, is_normalized: true }, &rows, &mut vector);
            let length: f32 = vector.iter().map(|x| x * x).sum();
            assert!((length - 1.0).abs() < 1e-6, "{pooling:?}: {length}");
        }
    }
}
