//! Options of an answer beyond OpenAI's oldest: log-probabilities, rules on the logits, arguments of the chat
//! template.

use super::super::error::{ApiError, printable};
use super::super::json::{ObjectFields, invalid, wrong_type};
use super::{TOKENS_MAX, tokens};
use crate::batcher::StopConditions;
use crate::engine::logits::LogitRules;
use serde_json::Value;
use std::collections::BTreeMap;

/// Maximum alternatives to each token: OpenAI's limit on `top_logprobs`.
pub(super) const LOGPROBS_MAX: u64 = 20;
/// Maximum tokens with a bias: OpenAI's limit.
const BIASES_MAX: usize = 300;
/// Maximum stop strings, as in OpenAI's API.
const STOPS_MAX: usize = 4;
/// Longest stop string, in bytes: text is held back while it could begin one.
const STOP_BYTES_MAX: usize = 256;
/// Maximum `stop_token_ids`: more than any model's end and turn tokens.
const STOP_TOKENS_MAX: usize = 128;
/// Limits of `repetition_penalty`, beyond which no text is left.
const REPETITION_PENALTY: std::ops::RangeInclusive<f64> = 0.01..=100.0;
/// Maximum arguments of a chat template, and the longest name of one in bytes.
const TEMPLATE_ARGUMENTS_MAX: usize = 32;
const TEMPLATE_ARGUMENT_NAME_BYTES_MAX: usize = 64;

/// Takes `chat_template_kwargs`: further variables of the model's chat template, as in vLLM.
pub(super) fn template_arguments(
    fields: &mut ObjectFields,
) -> Result<serde_json::Map<String, Value>, ApiError> {
    let path = "chat_template_kwargs";
    match fields.take(path) {
        None => Ok(serde_json::Map::new()),
        Some(Value::Object(arguments)) => {
            if arguments.len() > TEMPLATE_ARGUMENTS_MAX {
                let problem = format!("has {} fields, at most {TEMPLATE_ARGUMENTS_MAX}", arguments.len());
                return Err(invalid(path.to_owned(), problem));
            }
            match arguments.keys().find(|name| name.len() > TEMPLATE_ARGUMENT_NAME_BYTES_MAX) {
                Some(_) => Err(invalid(
                    path.to_owned(),
                    format!("has a name longer than {TEMPLATE_ARGUMENT_NAME_BYTES_MAX} bytes"),
                )),
                None => Ok(arguments),
            }
        }
        Some(other) => Err(wrong_type(path.to_owned(), &other, "an object")),
    }
}

/// Takes `logprobs` and `top_logprobs` of a chat.
pub(super) fn chat_logprobs(fields: &mut ObjectFields) -> Result<Option<usize>, ApiError> {
    let is_wanted = fields.flag("logprobs")?;
    let top = fields.whole("top_logprobs", 0, LOGPROBS_MAX)?.map(|count| count as usize);
    if top.is_some() && !is_wanted {
        let problem = "is allowed only when `logprobs` is true".to_owned();
        return Err(invalid("top_logprobs".to_owned(), problem));
    }
    Ok(is_wanted.then(|| top.unwrap_or(0)))
}

/// Takes OpenAI's `stop`, and the conditions that vLLM adds. An answer has at most `tokens_max` tokens.
pub(super) fn stop_conditions(
    fields: &mut ObjectFields,
    tokens_max: Option<u64>,
) -> Result<StopConditions, ApiError> {
    let tokens_min = fields.whole("min_tokens", 0, TOKENS_MAX)?.unwrap_or(0);
    if let Some(most) = tokens_max.filter(|most| tokens_min > *most) {
        let problem = format!("is {tokens_min}, expected at most the {most} tokens of the answer");
        return Err(invalid("min_tokens".to_owned(), problem));
    }
    let path = "stop_token_ids";
    let stop_tokens = match fields.take(path) {
        None => Vec::new(),
        Some(Value::Array(items)) if items.len() > STOP_TOKENS_MAX => {
            let problem = format!("has {} tokens, at most {STOP_TOKENS_MAX}", items.len());
            return Err(invalid(path.to_owned(), problem));
        }
        Some(Value::Array(items)) => tokens(&items, path)?,
        Some(other) => return Err(wrong_type(path.to_owned(), &other, "an array of tokens")),
    };
    Ok(StopConditions {
        strings: stops(fields)?,
        tokens: stop_tokens,
        is_included: fields.flag("include_stop_str_in_output")?,
        ignores_end: fields.flag("ignore_eos")?,
        tokens_min: tokens_min as usize,
    })
}

fn stops(fields: &mut ObjectFields) -> Result<Vec<String>, ApiError> {
    let path = || "stop".to_owned();
    let texts = match fields.take("stop") {
        None => return Ok(Vec::new()),
        Some(Value::String(text)) => vec![Value::String(text)],
        Some(Value::Array(texts)) => texts,
        Some(other) => return Err(wrong_type(path(), &other, "a string or an array of strings")),
    };
    if texts.len() > STOPS_MAX {
        return Err(invalid(path(), format!("has {} strings, at most {STOPS_MAX}", texts.len())));
    }
    let check = |(index, text): (usize, Value)| match text {
        Value::String(text) if (1..=STOP_BYTES_MAX).contains(&text.len()) => Ok(text),
        Value::String(_) => {
            Err(invalid(format!("stop[{index}]"), format!("must have 1 to {STOP_BYTES_MAX} bytes")))
        }
        other => Err(wrong_type(format!("stop[{index}]"), &other, "a string")),
    };
    texts.into_iter().enumerate().map(check).collect()
}

/// Takes the fields that change the logits: OpenAI's, and those that vLLM adds.
pub(super) fn rules(fields: &mut ObjectFields) -> Result<LogitRules, ApiError> {
    let (least, most) = (*REPETITION_PENALTY.start(), *REPETITION_PENALTY.end());
    Ok(LogitRules {
        bias: biases(fields)?,
        presence_penalty: fields.number("presence_penalty", -2.0, 2.0)?.unwrap_or(0.0) as f32,
        frequency_penalty: fields.number("frequency_penalty", -2.0, 2.0)?.unwrap_or(0.0) as f32,
        repetition_penalty: fields.number("repetition_penalty", least, most)?.unwrap_or(1.0) as f32,
        top_k: top_k(fields)?,
        min_p: fields.number("min_p", 0.0, 1.0)?.unwrap_or(0.0) as f32,
    })
}

/// Takes `top_k`; -1 and 0 keep all tokens, as in vLLM.
fn top_k(fields: &mut ObjectFields) -> Result<Option<usize>, ApiError> {
    let Some(value) = fields.take("top_k") else { return Ok(None) };
    match value.as_i64() {
        Some(-1 | 0) => Ok(None),
        Some(top_k) if (1..=TOKENS_MAX as i64).contains(&top_k) => Ok(Some(top_k as usize)),
        _ if value.is_number() => Err(invalid(
            "top_k".to_owned(),
            format!("is {value}, expected -1 or a whole number up to {TOKENS_MAX}"),
        )),
        _ => Err(wrong_type("top_k".to_owned(), &value, "a whole number")),
    }
}

/// Takes `logit_bias`: an object from tokens, as text, to numbers from -100 to 100.
fn biases(fields: &mut ObjectFields) -> Result<BTreeMap<u32, f32>, ApiError> {
    let path = "logit_bias";
    let biases = match fields.take(path) {
        None => return Ok(BTreeMap::new()),
        Some(Value::Object(biases)) => biases,
        Some(other) => return Err(wrong_type(path.to_owned(), &other, "an object")),
    };
    if biases.len() > BIASES_MAX {
        return Err(invalid(path.to_owned(), format!("has {} tokens, at most {BIASES_MAX}", biases.len())));
    }
    let read = |(token, bias): (String, Value)| {
        let path = format!("{path}.{}", printable(&token));
        let token =
            token.parse::<u32>().map_err(|_| invalid(path.clone(), "is no token's number".to_owned()))?;
        match bias.as_f64() {
            Some(bias) if (-100.0..=100.0).contains(&bias) => Ok((token, bias as f32)),
            Some(bias) => Err(invalid(path, format!("is {bias}, expected -100 to 100"))),
            None => Err(wrong_type(path, &bias, "a number")),
        }
    };
    biases.into_iter().map(read).collect()
}
