//! AdamW whose moments can be kept and restored: candle's own hides them. The arithmetic is candle's,
//! operation by operation, so that both make the same bits (Loshchilov and Hutter, "Decoupled weight decay
//! regularization", arXiv 1711.05101).

use candle_core::{Result, Tensor, Var};

/// Decay of the first moment, and of the second.
const BETAS: (f64, f64) = (0.9, 0.98);
const EPSILON: f64 = 1e-8;
const WEIGHT_DECAY: f64 = 0.02;

/// The optimiser with its state.
pub(crate) struct AdamW {
    /// Number of steps that were taken.
    pub(crate) steps: usize,
    /// First and second moment of each variable, in the order of the variables.
    pub(crate) moments: Vec<(Tensor, Tensor)>,
}

impl AdamW {
    /// Returns an optimiser that has taken no step.
    pub(crate) fn new(variables: &[(String, Var)]) -> Result<Self> {
        let zeros = |variable: &Var| variable.as_tensor().zeros_like();
        let moments = variables.iter().map(|(_, variable)| Ok((zeros(variable)?, zeros(variable)?)));
        Ok(Self { steps: 0, moments: moments.collect::<Result<_>>()? })
    }

    /// Takes a step at this learning rate along these gradients, in the order of the variables.
    pub(crate) fn step(
        &mut self,
        variables: &[(String, Var)],
        gradients: &[Tensor],
        rate: f64,
    ) -> Result<()> {
        self.steps += 1;
        let power = i32::try_from(self.steps).unwrap_or(i32::MAX);
        let (first_scale, second_scale) =
            (1.0 / (1.0 - BETAS.0.powi(power)), 1.0 / (1.0 - BETAS.1.powi(power)));
        for (((_, variable), gradient), (first, second)) in
            variables.iter().zip(gradients).zip(&mut self.moments)
        {
            *first = ((&*first * BETAS.0)? + (gradient * (1.0 - BETAS.0))?)?;
            *second = ((&*second * BETAS.1)? + (gradient.sqr()? * (1.0 - BETAS.1))?)?;
            let (first, second) = ((&*first * first_scale)?, (&*second * second_scale)?);
            let decayed = (variable.as_tensor() * (1.0 - rate * WEIGHT_DECAY))?;
            let direction = (first / (second.sqrt()? + EPSILON)?)?;
            variable.set(&(decayed - (direction * rate)?)?)?;
        }
        Ok(())
    }
}
