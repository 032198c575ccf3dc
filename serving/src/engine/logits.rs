//! Rules of a request that change a row of logits before a token is drawn from it: biases, penalties, `top_k`
//! and `min_p`, in vLLM's order.
//!
//! A grammar forbids tokens first, so that the rules choose among those that it allows. The rules are a
//! function of the row and of the tokens so far, so a continued or replayed stream draws the same tokens.

use super::grammar::GrammarState;
use kernels::math::exp;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Rules of one request. The default changes no row.
#[derive(Debug, Clone, PartialEq)]
pub struct LogitRules {
    /// Added to the logits of these tokens; -100 forbids a token and 100 demands it, in effect.
    pub bias: BTreeMap<u32, f32>,
    /// Subtracted from the logit of each token that was generated. Within -2..=2.
    pub presence_penalty: f32,
    /// Subtracted once for each time that the token was generated. Within -2..=2.
    pub frequency_penalty: f32,
    /// Divides the positive logits of tokens of prompt and answer, and multiplies the negative ones. Above 0.
    pub repetition_penalty: f32,
    /// Keeps this many of the most likely tokens, and those as likely as the last of them.
    pub top_k: Option<usize>,
    /// Keeps tokens of at least this share of the highest probability, at the request's temperature. Within
    /// 0..=1.
    pub min_p: f32,
}

impl Default for LogitRules {
    fn default() -> Self {
        Self {
            bias: BTreeMap::new(),
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            repetition_penalty: 1.0,
            top_k: None,
            min_p: 0.0,
        }
    }
}

/// Rules, and the tokens so far that they depend on.
#[derive(Debug, Clone, PartialEq)]
pub struct LogitState {
    rules: LogitRules,
    temperature: f32,
    /// Occurrences of each token in the answer; 0 for one that occurs in the prompt alone.
    counts: BTreeMap<u32, u32>,
    barred: BarredTokens,
    /// Tokens of the answer so far.
    drawn: usize,
    /// State of the answer in its grammar, if it has one.
    grammar: Option<Arc<GrammarState>>,
}

/// Tokens that are not drawn at the beginning of an answer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BarredTokens {
    /// Sorted.
    pub tokens: Vec<u32>,
    /// Number of the answer's first tokens that are none of them.
    pub count: usize,
}

impl LogitState {
    /// Returns the state at the end of a prompt; `None` where nothing changes a row.
    #[must_use]
    pub fn new(
        rules: LogitRules,
        temperature: f32,
        prompt: &[u32],
        barred: BarredTokens,
        grammar: Option<GrammarState>,
    ) -> Option<Self> {
        if rules == LogitRules::default() && barred.count == 0 && grammar.is_none() {
            return None;
        }
        let is_counted = rules.repetition_penalty != 1.0;
        let counts =
            if is_counted { prompt.iter().map(|token| (*token, 0)).collect() } else { BTreeMap::new() };
        Some(Self { rules, temperature, counts, barred, drawn: 0, grammar: grammar.map(Arc::new) })
    }

    /// Records the next token of the answer.
    pub fn push(&mut self, token: u32) {
        self.drawn += 1;
        *self.counts.entry(token).or_default() += 1;
        if let Some(grammar) = &self.grammar {
            grammar.push(token);
        }
    }

    /// Records tokens that another worker drew.
    ///
    /// # Errors
    /// The grammar does not allow one of them.
    pub fn replay(&mut self, tokens: &[u32]) -> Result<(), String> {
        tokens.iter().for_each(|token| self.push(*token));
        self.grammar.as_ref().and_then(|grammar| grammar.failure()).map_or(Ok(()), Err)
    }

    /// Returns the state in the grammar, whose mask may be computed beside the forward pass.
    #[must_use]
    pub fn grammar(&self) -> Option<&Arc<GrammarState>> {
        self.grammar.as_ref()
    }

    /// Changes one row, as wide as the vocabulary. A token that may not be drawn gets minus infinity.
    ///
    /// # Panics
    /// If a token so far, or one with a bias, is not of the vocabulary.
    pub fn apply(&self, row: &mut [f32]) {
        let rules = &self.rules;
        if let Some(grammar) = &self.grammar {
            grammar.apply(row);
        }
        if self.drawn < self.barred.count && self.leaves_a_token(row) {
            self.barred.tokens.iter().for_each(|token| row[*token as usize] = f32::NEG_INFINITY);
        }
        for (token, bias) in &rules.bias {
            row[*token as usize] += bias;
        }
        for (token, count) in &self.counts {
            let logit = &mut row[*token as usize];
            *logit = if *logit > 0.0 {
                *logit / rules.repetition_penalty
            } else {
                *logit * rules.repetition_penalty
            };
            *logit -= rules.frequency_penalty * *count as f32;
            if *count > 0 {
                *logit -= rules.presence_penalty;
            }
        }
        if self.temperature > 0.0 {
            self.apply_min_p(row);
            self.apply_top_k(row);
        }
    }

    /// Reports whether a token is left beside the barred ones. The end of a grammar counts more than a least
    /// length: nothing may follow a complete answer.
    fn leaves_a_token(&self, row: &[f32]) -> bool {
        let is_barred = |token: u32| self.barred.tokens.binary_search(&token).is_ok();
        let is_left = |(token, logit): (u32, &f32)| *logit > f32::NEG_INFINITY && !is_barred(token);
        self.grammar.is_none() || (0..).zip(row).any(is_left)
    }

    fn apply_min_p(&self, row: &mut [f32]) {
        let min_p = self.rules.min_p;
        if min_p <= 0.0 {
            return;
        }
        let highest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        for logit in row {
            if exp((*logit - highest) / self.temperature) < min_p {
                *logit = f32::NEG_INFINITY;
            }
        }
    }

    fn apply_top_k(&self, row: &mut [f32]) {
        let Some(top_k) = self.rules.top_k.filter(|top_k| *top_k < row.len()) else { return };
        assert!(top_k > 0, "checked when the request was parsed");
        let mut sorted = row.to_vec();
        let (_, last, _) = sorted.select_nth_unstable_by(top_k - 1, |a, b| b.total_cmp(a));
        let last = *last;
        for logit in row {
            if *logit < last {
                *logit = f32::NEG_INFINITY;
            }
        }
    }
}

/// Log-probabilities of one token and of the most likely ones, before any rule.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprobs {
    /// The token that was drawn.
    pub token: u32,
    pub logprob: f32,
    /// The most likely tokens, in descending order, ties by ascending id.
    pub top: Vec<(u32, f32)>,
}

/// Returns the log-probability of `token` under a row of logits, and those of the `top` most likely tokens.
///
/// # Panics
/// If `token` is not of the vocabulary.
#[must_use]
pub fn logprobs(row: &[f32], token: u32, top: usize) -> TokenLogprobs {
    let highest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    // Weights are at most 1 and summed in the order of tokens: the same bits on every machine.
    let sum: f64 = row.iter().map(|logit| f64::from(exp(logit - highest))).sum();
    let log_sum = ln(sum);
    let of = |logit: f32| (f64::from(logit) - f64::from(highest) - log_sum) as f32;
    let mut likely: Vec<(u32, f32)> = Vec::with_capacity(top + 1);
    for (candidate, logit) in (0_u32..).zip(row) {
        if top == 0 || (likely.len() == top && likely.last().is_some_and(|(_, least)| logit <= least)) {
            continue;
        }
        let at = likely.partition_point(|(_, other)| other >= logit);
        likely.insert(at, (candidate, *logit));
        likely.truncate(top);
    }
    let top = likely.into_iter().map(|(candidate, logit)| (candidate, of(logit))).collect();
    TokenLogprobs { token, logprob: of(row[token as usize]), top }
}

/// Returns the natural logarithm of a finite number of at least 1, with the same bits on every machine:
/// exponent and mantissa, and the series of the inverse hyperbolic tangent. Relative error below 1e-12.
fn ln(x: f64) -> f64 {
    assert!(x >= 1.0 && x.is_finite(), "a sum that has a 1 in it");
    let bits = x.to_bits();
    let exponent = ((bits >> 52) as i64 - 1023) as f64;
    let mantissa = f64::from_bits((bits & ((1 << 52) - 1)) | (1023 << 52));
    // Within 1/sqrt(2)..sqrt(2), so that the series converges quickly.
    let (mantissa, exponent) = if mantissa > std::f64::consts::SQRT_2 {
        (mantissa / 2.0, exponent + 1.0)
    } else {
        (mantissa, exponent)
    };
    let z = (mantissa - 1.0) / (mantissa + 1.0);
    let square = z * z;
    let series = (0..12).rev().fold(0.0, |sum: f64, term| sum.mul_add(square, 1.0 / f64::from(2 * term + 1)));
    exponent.mul_add(std::f64::consts::LN_2, 2.0 * z * series)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NO: f32 = f32::NEG_INFINITY;

    fn applied(rules: LogitRules, temperature: f32, prompt: &[u32], answer: &[u32], row: &[f32]) -> Vec<f32> {
        let mut row = row.to_vec();
        if let Some(mut state) = LogitState::new(rules, temperature, prompt, BarredTokens::default(), None) {
            answer.iter().for_each(|token| state.push(*token));
            state.apply(&mut row);
        }
        row
    }

    #[test]
    fn barred_tokens_are_not_drawn_until_the_answer_has_its_least_length() {
        let barred = || BarredTokens { tokens: vec![1, 3], count: 2 };
        let bias = BTreeMap::from([(3, 100.0)]);
        for rules in
            [LogitRules::default(), LogitRules { bias, repetition_penalty: 1.5, ..LogitRules::default() }]
        {
            let mut state = LogitState::new(rules, 1.0, &[3], barred(), None).expect("tokens are barred");
            for (drawn, is_barred) in [true, true, false, false].into_iter().enumerate() {
                let mut row = [0.5; 4];
                state.apply(&mut row);
                assert_eq!(row.map(|logit| logit == NO), [false, is_barred, false, is_barred], "{drawn}");
                state.push(2);
            }
        }
        assert_eq!(LogitState::new(LogitRules::default(), 1.0, &[3], BarredTokens::default(), None), None);
    }

    #[test]
    fn each_rule_does_what_its_name_says() {
        let rules = LogitRules::default;
        let row = [2.0, -2.0, 1.0, 0.5];
        let cases = [
            (rules(), row),
            (LogitRules { bias: BTreeMap::from([(1, 5.0), (2, -1.0)]), ..rules() }, [2.0, 3.0, 0.0, 0.5]),
            // The prompt is 0, the answer 1, 2, 2.
            (LogitRules { presence_penalty: 0.5, ..rules() }, [2.0, -2.5, 0.5, 0.5]),
            (LogitRules { frequency_penalty: 0.5, ..rules() }, [2.0, -2.5, 0.0, 0.5]),
            (LogitRules { repetition_penalty: 2.0, ..rules() }, [1.0, -4.0, 0.5, 0.5]),
            (LogitRules { top_k: Some(2), ..rules() }, [2.0, NO, 1.0, NO]),
            (LogitRules { top_k: Some(4), ..rules() }, row),
            // exp(-1) = 0.37, exp(-1.5) = 0.22.
            (LogitRules { min_p: 0.3, ..rules() }, [2.0, NO, 1.0, NO]),
            (LogitRules { min_p: 1.0, ..rules() }, [2.0, NO, NO, NO]),
        ];
        for (rules, expected) in cases {
            assert_eq!(applied(rules.clone(), 1.0, &[0], &[1, 2, 2], &row), expected, "{rules:?}");
        }
        let both = LogitRules { top_k: Some(1), min_p: 0.9, ..rules() };
        assert_eq!(applied(both, 0.0, &[], &[], &row), row, "the most likely token is taken anyway");
        let warm = LogitRules { min_p: 0.3, ..rules() };
        assert_eq!(applied(warm, 2.0, &[], &[], &row), [2.0, NO, 1.0, 0.5], "of the scaled distribution");
        let tie = LogitRules { top_k: Some(1), ..rules() };
        assert_eq!(applied(tie, 1.0, &[], &[], &[1.0, 0.0, 1.0]), [1.0, NO, 1.0]);
    }

    #[test]
    fn logprobs_are_those_of_a_softmax() {
        let row = [0.5_f32.ln(), 0.25_f32.ln(), 0.125_f32.ln(), 0.125_f32.ln()];
        let shifted: Vec<f32> = row.iter().map(|logit| logit + 7.0).collect();
        let found = logprobs(&shifted, 1, 3);
        assert_eq!(found.top.iter().map(|(token, _)| *token).collect::<Vec<_>>(), [0, 1, 2]);
        for (logprob, expected) in [(found.logprob, 0.25_f32), (found.top[0].1, 0.5), (found.top[2].1, 0.125)]
        {
            assert!((logprob - expected.ln()).abs() < 1e-5, "{logprob} {expected}");
        }
        assert!(logprobs(&row, 0, 0).top.is_empty());
        assert_eq!(logprobs(&row, 0, 9).top.len(), 4);
    }

    #[test]
    fn the_logarithm_agrees_with_the_c_librarys() {
        for x in [1.0, 1.0 + 1e-12, 1.41, 1.42, 1.999, 2.0, 3.0, 1e3, 151_936.0, 1e300] {
            assert!((ln(x) - x.ln()).abs() <= 1e-12 * x.ln().abs().max(1e-3), "{x}");
        }
    }
}
