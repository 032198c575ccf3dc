//! Shortened embeddings: the first numbers of a vector, scaled to length 1 again.
//!
//! A vector may be cut where the model was trained for it (Kusupati et al. 2022, "Matryoshka Representation
//! Learning"). Its `config.json` says so, in the fields that vLLM reads. The vectors of other models lose
//! their meaning when they are cut, so they are not.

use super::{EngineError, config};
use crate::weights::ModelFiles;
use serde::Deserialize;

/// Lengths to which a model's vectors may be shortened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Matryoshka {
    /// The model's own length.
    own: usize,
    shorter: ShorterLengths,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum ShorterLengths {
    None,
    Any,
    Listed(Vec<usize>),
}

#[derive(Deserialize)]
struct RawMatryoshka {
    #[serde(default)]
    is_matryoshka: bool,
    matryoshka_dimensions: Option<Vec<usize>>,
}

impl Matryoshka {
    /// Returns the lengths of a model whose vectors have `own` numbers and may not be cut.
    #[must_use]
    pub fn none(own: usize) -> Self {
        Self { own, shorter: ShorterLengths::None }
    }

    /// Reads the lengths that `config.json` allows.
    ///
    /// # Errors
    /// [`EngineError`]: the file is invalid.
    pub fn read(files: &ModelFiles, own: usize) -> Result<Self, EngineError> {
        let raw: RawMatryoshka = config::json(files, "config.json")?;
        let shorter = match raw.matryoshka_dimensions {
            Some(listed) => ShorterLengths::Listed(listed),
            None if raw.is_matryoshka => ShorterLengths::Any,
            None => ShorterLengths::None,
        };
        Ok(Self { own, shorter })
    }

    /// Returns the model's own length.
    #[must_use]
    pub fn own(&self) -> usize {
        self.own
    }

    /// Checks a requested length.
    ///
    /// # Errors
    /// Says which lengths there are.
    pub fn check(&self, dimensions: usize) -> Result<(), String> {
        let own = self.own;
        if dimensions == own {
            return Ok(());
        }
        match &self.shorter {
            ShorterLengths::Any if (1..own).contains(&dimensions) => Ok(()),
            ShorterLengths::Listed(listed) if dimensions < own && listed.contains(&dimensions) => Ok(()),
            ShorterLengths::None => Err(format!("is {dimensions}, but this model has vectors of {own} only")),
            ShorterLengths::Any => Err(format!("is {dimensions}, expected 1 to {own}")),
            ShorterLengths::Listed(listed) => {
                let listed = listed.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
                Err(format!("is {dimensions}, expected {own} or one of {listed}"))
            }
        }
    }
}

/// Cuts a vector to its first `dimensions` numbers and scales these to length 1.
pub fn shorten(vector: &mut Vec<f32>, dimensions: usize) {
    if dimensions >= vector.len() {
        return;
    }
    vector.truncate(dimensions);
    // One chain in the order of the numbers: the same bits everywhere.
    let squares = vector.iter().fold(0.0_f32, |sum, number| number.mul_add(*number, sum));
    let length = squares.sqrt();
    if length > 0.0 {
        vector.iter_mut().for_each(|number| *number /= length);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_lengths_that_the_model_was_trained_for_are_served() {
        let of = |shorter| Matryoshka { own: 8, shorter };
        for (lengths, dimensions, expected) in [
            (Matryoshka::none(8), 8, Ok(())),
            (Matryoshka::none(8), 4, Err("is 4, but this model has vectors of 8 only")),
            (of(ShorterLengths::Any), 1, Ok(())),
            (of(ShorterLengths::Any), 9, Err("is 9, expected 1 to 8")),
            (of(ShorterLengths::Listed(vec![4, 16])), 4, Ok(())),
            (of(ShorterLengths::Listed(vec![4, 16])), 16, Err("is 16, expected 8 or one of 4, 16")),
        ] {
            assert_eq!(lengths.check(dimensions), expected.map_err(str::to_owned), "{lengths:?}");
        }
    }

    #[test]
    fn a_shortened_vector_has_length_one() {
        let mut vector = vec![3.0, 4.0, 12.0];
        shorten(&mut vector, 2);
        assert_eq!(vector, [0.6, 0.8]);
        let mut zero = vec![0.0, 0.0, 1.0];
        shorten(&mut zero, 2);
        assert_eq!(zero, [0.0, 0.0]);
        let mut whole = vec![2.0, 0.0];
        shorten(&mut whole, 2);
        assert_eq!(whole, [2.0, 0.0], "the model's own vector stays as it is");
    }
}
