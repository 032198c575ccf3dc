//! Scalar functions with the same bits on every machine and in every vector width.
//!
//! They are built from correctly rounded operations only: add, multiply, fused multiply-add, divide, integer
//! shifts.

/// Returns e to the power of `x`. Relative error below 2e-7 for -87 <= x <= 88; below that range 0, above it
/// the value at 88. Range reduction and coefficients as in Cephes' `expf` (Moshier 1992).
#[inline(always)]
#[must_use]
pub fn exp(x: f32) -> f32 {
    // Adding and subtracting 1.5 * 2^23 rounds to the nearest integer.
    const ROUND: f32 = 12_582_912.0;
    // ln 2 in two parts; the first has few bits, so that its product with an integer is exact.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let clamped = x.clamp(-87.0, 88.0);
    let rounded = clamped.mul_add(std::f32::consts::LOG2_E, ROUND);
    let whole = rounded - ROUND;
    let rest = whole.mul_add(-LN2_HIGH, clamped);
    let rest = whole.mul_add(-LN2_LOW, rest);
    let polynomial = 1.987_569_1e-4_f32;
    let polynomial = polynomial.mul_add(rest, 1.398_199_9e-3);
    let polynomial = polynomial.mul_add(rest, 8.333_452e-3);
    let polynomial = polynomial.mul_add(rest, 4.166_579_6e-2);
    let polynomial = polynomial.mul_add(rest, 0.166_666_65);
    let polynomial = polynomial.mul_add(rest, 0.5);
    let value = polynomial.mul_add(rest * rest, rest) + 1.0;
    // The low bits of the rounded number are the integer; shifted up, with the bias, they are the exponent.
    // Wrapping, because an overflow check would prevent vectorization of the surrounding loop.
    let scaled = value * f32::from_bits(rounded.to_bits().wrapping_add(127) << 23);
    if x < -87.0 { 0.0 } else { scaled }
}

/// Returns the Gaussian error linear unit, exact form: x times the normal distribution function at x.
/// Absolute error below 4e-7 * max(1, |x|): Abramowitz and Stegun 7.1.26 for erf.
#[inline(always)]
#[must_use]
pub fn gelu(x: f32) -> f32 {
    let z = x * std::f32::consts::FRAC_1_SQRT_2;
    let magnitude = z.abs();
    let t = 1.0 / magnitude.mul_add(0.327_591_1, 1.0);
    let polynomial = 1.061_405_4_f32;
    let polynomial = polynomial.mul_add(t, -1.453_152_1);
    let polynomial = polynomial.mul_add(t, 1.421_413_8);
    let polynomial = polynomial.mul_add(t, -0.284_496_74);
    let polynomial = polynomial.mul_add(t, 0.254_829_6);
    let complement = polynomial * t * exp(-magnitude * magnitude);
    let erf = (1.0 - complement).copysign(z);
    let half = 0.5 * x;
    half.mul_add(erf, half)
}

/// Returns x times the logistic function of x.
#[inline(always)]
#[must_use]
pub fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// Returns the hyperbolic tangent of x. Relative error below 5e-7. Below 0.625 the polynomial of Cephes'
/// `tanhf` (Moshier 1992), above it by the exponential.
#[inline(always)]
#[must_use]
pub fn tanh(x: f32) -> f32 {
    let magnitude = x.abs();
    let square = x * x;
    let polynomial = -5.704_988_7e-3_f32;
    let polynomial = polynomial.mul_add(square, 2.063_908_8e-2);
    let polynomial = polynomial.mul_add(square, -5.373_971_5e-2);
    let polynomial = polynomial.mul_add(square, 1.333_144_2e-1);
    let polynomial = polynomial.mul_add(square, -3.333_328e-1);
    let small = (polynomial * square).mul_add(x, x);
    let large = (1.0 - 2.0 / (exp(2.0 * magnitude) + 1.0)).copysign(x);
    if magnitude < 0.625 { small } else { large }
}

/// Returns the Gaussian error linear unit in the form with a hyperbolic tangent, as Gemma was trained with:
/// x times the logistic function of twice that tangent's argument.
#[inline(always)]
#[must_use]
pub fn gelu_tanh(x: f32) -> f32 {
    // Twice the square root of 2 / pi.
    let argument = 1.595_769_2 * x * (0.044_715 * x).mul_add(x, 1.0);
    x / (1.0 + exp(-argument))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_close_over_its_range_and_zero_below() {
        for step in -8700..=8800 {
            let x = step as f32 / 100.0;
            let exact = f64::from(x).exp();
            assert!((f64::from(exp(x)) / exact - 1.0).abs() < 2e-7, "{x}");
        }
        assert_eq!(exp(-88.0), 0.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(1000.0).is_finite());
    }

    #[test]
    fn gelu_and_silu_match_double_precision() {
        for step in -2000..=2000_i32 {
            let x = f64::from(step) / 100.0;
            // The complementary error function by its continued fraction would do; integrate finely instead.
            let logistic = x / (1.0 + (-x).exp());
            assert!((f64::from(silu(x as f32)) - logistic).abs() < 2e-6, "silu {x}");
            let normal = normal_distribution(x);
            let error = (f64::from(gelu(x as f32)) - x * normal).abs();
            assert!(error < 4e-7 * x.abs().max(1.0), "gelu {x}: {error}");
        }
    }

    #[test]
    fn tanh_and_its_gelu_match_double_precision() {
        for step in -12_000..=12_000_i32 {
            let x = f64::from(step) / 1000.0;
            let x = f64::from(x as f32);
            let error = (f64::from(tanh(x as f32)) - x.tanh()).abs();
            assert!(error <= 5e-7 * x.tanh().abs(), "tanh {x}: {error}");
            let argument = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
            let exact = 0.5 * x * (1.0 + argument.tanh());
            let error = (f64::from(gelu_tanh(x as f32)) - exact).abs();
            assert!(error < 1e-6 * x.abs().max(1.0), "gelu {x}: {error}");
        }
        assert_eq!([tanh(0.0), tanh(100.0), tanh(-100.0), tanh(f32::INFINITY)], [0.0, 1.0, -1.0, 1.0]);
        assert!(tanh(f32::NAN).is_nan() && gelu_tanh(-1000.0).abs() < 1e-30);
    }

    /// Integrates the normal density from 0 to x by Simpson's rule.
    fn normal_distribution(x: f64) -> f64 {
        let density = |t: f64| (-t * t / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt();
        let steps = 2000;
        let width = x / f64::from(steps);
        let mut sum = density(0.0) + density(x);
        for i in 1..steps {
            sum += density(f64::from(i) * width) * if i % 2 == 1 { 4.0 } else { 2.0 };
        }
        0.5 + sum * width / 3.0
    }
}
