//! Feed-forward part of a layer: one gated network for all rows, or a mixture of experts.

use super::super::config::{DecoderShape, Experts, FeedForward, Gate};
use super::super::parameters::{Dense, SharedColumns, multiply_all};
use super::layer::{GatedNetwork, LayerWeights};
use super::router::choose;
use crate::weights::WeightsError;
use kernels::elementwise::{add_scaled, gelu_tanh_multiply, silu_multiply};
use kernels::matmul::{Activation, OutputColumns};
use kernels::pool::Parts;
use kernels::{ComputePool, Isa};

/// Instruction set and threads of a computation.
#[derive(Debug, Clone, Copy)]
pub(super) struct Machine<'a> {
    pub(super) isa: Isa,
    pub(super) pool: &'a ComputePool,
}

/// Activations inside the feed-forward part, kept from step to step.
#[derive(Debug, Default)]
pub(super) struct InnerBuffers {
    gate: Vec<f32>,
    up: Vec<f32>,
    /// Scores of the router.
    scores: Vec<f32>,
    /// Rows of one expert: its inputs and its results.
    gathered: Vec<f32>,
    results: Vec<f32>,
}

impl Machine<'_> {
    /// Computes the product of rows and a matrix, with its bias.
    pub(super) fn dense(
        &self,
        dense: &Dense,
        input: &[f32],
        rows: usize,
        target: OutputColumns<'_>,
    ) -> Result<(), WeightsError> {
        dense.multiply(self.isa, self.pool, (input, rows), Activation::None, target)
    }

    /// Computes the part of layer `index` for all rows of `input` into `output`.
    pub(super) fn feed_forward(
        &self,
        (shape, index): (&DecoderShape, usize),
        layer: &LayerWeights,
        input: &[f32],
        output: &mut [f32],
        buffers: &mut InnerBuffers,
    ) -> Result<(), WeightsError> {
        match (&shape.layers[index].feed_forward, &layer.router) {
            (FeedForward::Mixture(experts), Some(router)) => {
                let experts = (experts, router, &layer.networks[..]);
                self.mixture(shape, experts, input, output, buffers)
            }
            (FeedForward::Dense { inner }, _) => {
                let network = (&layer.networks[0], *inner);
                self.network(shape, network, input, output, buffers)
            }
            (FeedForward::Mixture(_), None) => unreachable!("a mixture is opened with its router"),
        }
    }

    /// Computes one gated network for all rows of `input`.
    fn network(
        &self,
        shape: &DecoderShape,
        (network, inner): (&GatedNetwork, usize),
        input: &[f32],
        output: &mut [f32],
        buffers: &mut InnerBuffers,
    ) -> Result<(), WeightsError> {
        let rows = input.len() / shape.hidden;
        buffers.gate.resize(rows * inner, 0.0);
        buffers.up.resize(rows * inner, 0.0);
        let InnerBuffers { gate, up, .. } = buffers;
        let columns = [&mut *gate, &mut *up].map(|values| SharedColumns {
            values: Parts::new(values),
            stride: inner,
            offset: 0,
        });
        let parts = [(&network.gate, columns[0]), (&network.up, columns[1])];
        multiply_all(self.isa, self.pool, (input, rows), &parts)?;
        self.pool.each_part(gate, inner, |range, gate| match shape.gate {
            Gate::Silu => silu_multiply(self.isa, gate, &up[range]),
            Gate::GeluTanh => gelu_tanh_multiply(self.isa, gate, &up[range]),
        });
        let target = OutputColumns { values: output, stride: shape.hidden, offset: 0 };
        self.dense(&network.down, gate, rows, target)
    }

    /// Computes for each row the experts that the router chooses. Their results are added in the order of the
    /// experts, so that a row's sum depends on the row alone.
    fn mixture(
        &self,
        shape: &DecoderShape,
        (experts, router, networks): (&Experts, &Dense, &[GatedNetwork]),
        input: &[f32],
        output: &mut [f32],
        buffers: &mut InnerBuffers,
    ) -> Result<(), WeightsError> {
        let hidden = shape.hidden;
        let rows = input.len() / hidden;
        buffers.scores.resize(rows * experts.count, 0.0);
        let target = OutputColumns { values: &mut buffers.scores, stride: experts.count, offset: 0 };
        self.dense(router, input, rows, target)?;
        let rows_of = choose(self.isa, experts, &mut buffers.scores);
        output.fill(0.0);
        // Taken, because a network uses the other buffers.
        let mut gathered = std::mem::take(&mut buffers.gathered);
        let mut results = std::mem::take(&mut buffers.results);
        for (network, rows) in networks.iter().zip(&rows_of).filter(|(_, rows)| !rows.is_empty()) {
            gathered.clear();
            for (row, _) in rows {
                gathered.extend_from_slice(&input[row * hidden..][..hidden]);
            }
            results.resize(rows.len() * hidden, 0.0);
            self.network(shape, (network, experts.inner), &gathered, &mut results, buffers)?;
            for ((row, weight), result) in rows.iter().zip(results.chunks_exact(hidden)) {
                add_scaled(self.isa, &mut output[row * hidden..][..hidden], result, *weight);
            }
        }
        (buffers.gathered, buffers.results) = (gathered, results);
        Ok(())
    }
}
