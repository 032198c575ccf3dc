//! Named parameters of a layer: matrices used in place, vectors copied as f32. The first use of a parameter
//! waits until it is loaded.

use crate::weights::{TensorView, Weights, WeightsError};
use kernels::matmul::Matrix;
use std::sync::OnceLock;

/// A matrix with an optional bias, used in place.
#[derive(Debug)]
pub(super) struct Dense {
    weight: TensorView,
    bias: Option<Vector>,
}

/// A small vector, copied and converted once.
#[derive(Debug)]
pub(super) struct Vector {
    view: TensorView,
    /// Added to each element.
    offset: f32,
    values: OnceLock<Vec<f32>>,
}

impl Dense {
    /// Opens `{prefix}.weight` alone.
    pub(super) fn open(
        weights: &Weights,
        prefix: &str,
        outputs: usize,
        inputs: usize,
    ) -> Result<Self, WeightsError> {
        let weight = weights.tensor(&format!("{prefix}.weight"), &[outputs, inputs])?;
        Ok(Self { weight, bias: None })
    }

    /// Opens `{prefix}.weight` and `{prefix}.bias`.
    pub(super) fn open_biased(
        weights: &Weights,
        prefix: &str,
        outputs: usize,
        inputs: usize,
    ) -> Result<Self, WeightsError> {
        let bias = Vector::open(weights, &format!("{prefix}.bias"), outputs)?;
        Ok(Self { bias: Some(bias), ..Self::open(weights, prefix, outputs, inputs)? })
    }

    /// Returns the matrix; blocks until it is present.
    pub(super) fn matrix(&self) -> Result<Matrix<'_>, WeightsError> {
        let [outputs, inputs] = *self.weight.shape() else { unreachable!("opened with two dimensions") };
        Ok(Matrix { bytes: self.weight.bytes()?, element: self.weight.element(), outputs, inputs })
    }

    /// Returns the bias; blocks until it is present.
    pub(super) fn bias(&self) -> Result<Option<&[f32]>, WeightsError> {
        self.bias.as_ref().map(Vector::get).transpose()
    }
}

impl Vector {
    /// Opens the vector of this name and length.
    pub(super) fn open(weights: &Weights, name: &str, length: usize) -> Result<Self, WeightsError> {
        Self::open_offset(weights, name, length, 0.0)
    }

    /// Opens the vector of this name and length, of which each element is to be increased by `offset`.
    pub(super) fn open_offset(
        weights: &Weights,
        name: &str,
        length: usize,
        offset: f32,
    ) -> Result<Self, WeightsError> {
        Ok(Self { view: weights.tensor(name, &[length])?, offset, values: OnceLock::new() })
    }

    /// Returns the values; blocks until they are present.
    pub(super) fn get(&self) -> Result<&[f32], WeightsError> {
        if let Some(values) = self.values.get() {
            return Ok(values);
        }
        let mut values = self.view.to_f32()?;
        if self.offset != 0.0 {
            values.iter_mut().for_each(|value| *value += self.offset);
        }
        Ok(self.values.get_or_init(|| values))
    }
}
