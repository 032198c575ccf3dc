//! Named parameters of a layer: matrices used in place, vectors copied as f32. The first use of a parameter
//! waits until it is loaded.

use crate::weights::{QuantizedView, TensorView, Weights, WeightsError};
use kernels::int8::{self, ProductPart, QuantizedMatrix};
use kernels::matmul::{Activation, Matrix, OutputColumns, Product, copy_row, matmul};
use kernels::pool::Parts;
use kernels::{ComputePool, Isa};
use std::ops::Range;
use std::sync::OnceLock;

/// A matrix with an optional bias, used in place.
#[derive(Debug)]
pub(super) struct Dense {
    weight: StoredMatrix,
    bias: Option<Vector>,
}

#[derive(Debug)]
enum StoredMatrix {
    Plain(TensorView),
    Quantized(QuantizedView),
}

/// A matrix that is present.
#[derive(Debug, Clone, Copy)]
pub(super) enum PresentMatrix<'a> {
    Plain(Matrix<'a>),
    Quantized(QuantizedMatrix<'a>),
}

/// Columns of results, of which several matrices may have some each.
#[derive(Debug, Clone, Copy)]
pub(super) struct SharedColumns<'a> {
    /// All rows.
    pub(super) values: Parts<'a>,
    /// Elements from one row to the next.
    pub(super) stride: usize,
    /// Index of the first column written.
    pub(super) offset: usize,
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
    /// Opens `{prefix}.weight` alone, as numbers or quantised.
    pub(super) fn open(
        weights: &Weights,
        prefix: &str,
        outputs: usize,
        inputs: usize,
    ) -> Result<Self, WeightsError> {
        let name = format!("{prefix}.weight");
        let weight = match weights.quantized(&name, outputs, inputs)? {
            Some(quantized) => StoredMatrix::Quantized(quantized),
            None => StoredMatrix::Plain(weights.tensor(&name, &[outputs, inputs])?),
        };
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

    /// Returns the matrix if parts of so many outputs can be used alone.
    pub(super) fn in_parts(self, outputs: usize) -> Result<Self, WeightsError> {
        if let StoredMatrix::Quantized(quantized) = &self.weight {
            quantized.check_parts(outputs)?;
        }
        Ok(self)
    }

    /// Returns the matrix; blocks until it is present.
    pub(super) fn matrix(&self) -> Result<PresentMatrix<'_>, WeightsError> {
        Ok(match &self.weight {
            StoredMatrix::Quantized(quantized) => PresentMatrix::Quantized(quantized.matrix()?),
            StoredMatrix::Plain(plain) => {
                let [outputs, inputs] = *plain.shape() else { unreachable!("opened with two dimensions") };
                let (bytes, element) = (plain.bytes()?, plain.element());
                PresentMatrix::Plain(Matrix { bytes, element, outputs, inputs })
            }
        })
    }

    /// Returns the bias; blocks until it is present.
    pub(super) fn bias(&self) -> Result<Option<&[f32]>, WeightsError> {
        self.bias.as_ref().map(Vector::get).transpose()
    }

    /// Computes the product of rows and the matrix, with its bias.
    pub(super) fn multiply(
        &self,
        isa: Isa,
        pool: &ComputePool,
        (input, rows): (&[f32], usize),
        activation: Activation,
        target: OutputColumns<'_>,
    ) -> Result<(), WeightsError> {
        let (weight, bias) = (self.matrix()?, self.bias()?);
        multiply(isa, pool, Product { input, rows, weight, bias, activation }, target);
        Ok(())
    }
}

/// Computes the products of the same rows and several matrices, each with its bias, into its columns.
pub(super) fn multiply_all(
    isa: Isa,
    pool: &ComputePool,
    (input, rows): (&[f32], usize),
    parts: &[(&Dense, SharedColumns<'_>)],
) -> Result<(), WeightsError> {
    let mut quantized = Vec::with_capacity(parts.len());
    for (dense, SharedColumns { values, stride, offset }) in parts.iter().copied() {
        let bias = dense.bias()?;
        match dense.matrix()? {
            PresentMatrix::Quantized(weight) => {
                quantized.push(ProductPart { weight, bias, values, stride, offset });
            }
            PresentMatrix::Plain(weight) => {
                // SAFETY: no other product is computed at the same time.
                let values = unsafe { values.part(0..rows * stride) };
                let product = Product { input, rows, weight, bias, activation: Activation::None };
                matmul(isa, pool, &product, OutputColumns { values, stride, offset });
            }
        }
    }
    int8::matmul_all(isa, pool, (input, rows), &quantized);
    Ok(())
}

impl PresentMatrix<'_> {
    pub(super) fn inputs(&self) -> usize {
        match self {
            Self::Plain(plain) => plain.inputs,
            Self::Quantized(quantized) => quantized.inputs(),
        }
    }

    /// Returns the matrix of these outputs alone. Those of a quantised one begin with a panel.
    pub(super) fn rows(&self, rows: Range<usize>) -> Self {
        match self {
            Self::Plain(plain) => Self::Plain(plain.rows(rows)),
            Self::Quantized(quantized) => Self::Quantized(quantized.rows(rows)),
        }
    }

    /// Copies one row as f32: an embedding.
    pub(super) fn copy_row(&self, row: usize, into: &mut [f32]) {
        match self {
            Self::Plain(plain) => copy_row(plain, row, into),
            Self::Quantized(quantized) => quantized.copy_row(row, into),
        }
    }
}

/// Computes one product.
pub(super) fn multiply(
    isa: Isa,
    pool: &ComputePool,
    product: Product<'_, PresentMatrix<'_>>,
    target: OutputColumns<'_>,
) {
    let Product { input, rows, weight, bias, activation } = product;
    match weight {
        PresentMatrix::Plain(weight) => {
            matmul(isa, pool, &Product { input, rows, weight, bias, activation }, target);
        }
        PresentMatrix::Quantized(weight) => {
            int8::matmul(isa, pool, &Product { input, rows, weight, bias, activation }, target);
        }
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
