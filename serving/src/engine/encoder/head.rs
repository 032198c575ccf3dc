//! Heads of cross-encoders: from the state of a pair to its score.

use super::super::config::{EncoderShape, ScoreActivation, ScoreHead, ScoreShape};
use super::super::parameters::Dense;
use super::Encoder;
use super::layer::{EncoderSource, Norm, open_dense};
use crate::weights::{Weights, WeightsError};
use kernels::matmul::{Activation, OutputColumns};
use kernels::{ComputePool, elementwise, math};

/// Weights of a head.
#[derive(Debug)]
pub(super) struct ScoreLayers {
    dense: Dense,
    norm: Option<Norm>,
    classifier: Dense,
}

impl ScoreLayers {
    /// Looks up the tensors without waiting for any.
    pub(super) fn open(
        shape: &EncoderShape,
        score: ScoreShape,
        source: &EncoderSource<'_>,
        weights: &Weights,
    ) -> Result<Self, WeightsError> {
        let hidden = shape.hidden;
        let (dense, is_biased, norm, classifier) = match score.head {
            ScoreHead::Pooler => (source.name("pooler.dense"), true, None, "classifier"),
            ScoreHead::Projection => ("classifier.dense".to_owned(), true, None, "classifier.out_proj"),
            ScoreHead::Prediction { is_biased } => {
                let norm = Norm::open(weights, "head.norm", hidden, shape.biases.norms)?;
                ("head.dense".to_owned(), is_biased, Some(norm), "classifier")
            }
        };
        Ok(Self {
            dense: open_dense(weights, &dense, [hidden, hidden], is_biased)?,
            norm,
            classifier: open_dense(weights, classifier, [1, hidden], true)?,
        })
    }
}

impl Encoder {
    /// Computes the scores of pairs from their pooled states.
    pub(super) fn score_rows(
        &self,
        head: &ScoreLayers,
        shape: ScoreShape,
        pool: &ComputePool,
        pooled: &[f32],
        scores: &mut [f32],
    ) -> Result<(), WeightsError> {
        let hidden = self.shape.hidden;
        assert_eq!(pooled.len(), scores.len() * hidden, "one state for each pair");
        let mut inner = vec![0.0; pooled.len()];
        let activation = match shape.head {
            ScoreHead::Prediction { .. } => Activation::Gelu,
            ScoreHead::Pooler | ScoreHead::Projection => Activation::None,
        };
        let target = OutputColumns { values: &mut inner, stride: hidden, offset: 0 };
        self.product(&head.dense, pool, pooled, activation, target)?;
        match &head.norm {
            Some(norm) => norm.apply(self.isa, &mut inner, &[], self.shape.norm_epsilon)?,
            // A cap of 1 is the hyperbolic tangent.
            None => elementwise::soft_cap(self.isa, &mut inner, 1.0, 1.0),
        }
        let target = OutputColumns { values: &mut *scores, stride: 1, offset: 0 };
        self.product(&head.classifier, pool, &inner, Activation::None, target)?;
        if shape.activation == ScoreActivation::Sigmoid {
            scores.iter_mut().for_each(|score| *score = 1.0 / (1.0 + math::exp(-*score)));
        }
        Ok(())
    }
}
