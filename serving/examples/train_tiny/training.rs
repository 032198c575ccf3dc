//! Gradient descent with candle's AdamW over conversations of drawn lessons.

use crate::lessons::{Lessons, draw};
use crate::text::{ASSISTANT, END, USER};
use crate::{SEED, shape};
use candle_core::{D, DType, Device, Tensor, Var};
use candle_nn::{AdamW, Optimizer, ParamsAdamW};
use kernels::sampling::uniform;
use serving::engine::device::NamedTensors;
use serving::engine::device::llama::{Llama, parameters};
use std::collections::HashMap;
use std::path::Path;
use std::time::Instant;
use tokenizers::Tokenizer;

/// Steps of the shipped model: about ten minutes on one 2026 server core.
pub(crate) const STEPS: usize = 700;
/// Conversations per step.
const BATCH: usize = 32;
/// Tokens per conversation: four or five questions.
const LENGTH: usize = 128;
/// Highest learning rate, reached after the first twentieth, then a cosine down to a fiftieth.
const RATE: f64 = 3e-3;

/// Result of a training run.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub steps: usize,
    pub parameters: usize,
    pub tokens: usize,
    pub first_loss: f32,
    pub last_loss: f32,
    pub seconds: f64,
}

/// Trains the model and writes `model.safetensors`.
pub(crate) fn train(
    directory: &Path,
    tokenizer: &Tokenizer,
    lessons: &Lessons,
    steps: usize,
) -> anyhow::Result<Outcome> {
    let (device, started) = (Device::Cpu, Instant::now());
    let variables = initial_variables(&device)?;
    let tensors: NamedTensors =
        variables.iter().map(|(name, variable)| (name.clone(), variable.as_tensor().clone())).collect();
    let model = Llama::new(&shape(), tensors, LENGTH, &device)?;
    let settings = ParamsAdamW { lr: RATE, beta1: 0.9, beta2: 0.98, eps: 1e-8, weight_decay: 0.02 };
    let mut optimizer =
        AdamW::new(variables.iter().map(|(_, variable)| variable.clone()).collect(), settings)?;
    let mut losses = Vec::with_capacity(steps);
    let mut number = 0;
    for step in 0..steps {
        optimizer.set_learning_rate(learning_rate(step, steps));
        let batch: Vec<Conversation> = (0..BATCH)
            .map(|_| Conversation::new(tokenizer, lessons, &mut number))
            .collect::<Result<_, _>>()?;
        let loss = loss(&model, &batch, &device)?;
        optimizer.backward_step(&loss)?;
        losses.push(loss.to_scalar::<f32>()?);
        if step % 20 == 0 || step + 1 == steps {
            let recent = &losses[losses.len().saturating_sub(20)..];
            let mean = recent.iter().sum::<f32>() / recent.len() as f32;
            println!("step {step}/{steps}  loss {mean:.4}  {:.0} s", started.elapsed().as_secs_f64());
        }
    }
    save(directory, &variables)?;
    let mean = |losses: &[f32]| losses.iter().sum::<f32>() / losses.len().max(1) as f32;
    Ok(Outcome {
        steps,
        parameters: variables.iter().map(|(_, variable)| variable.elem_count()).sum(),
        tokens: steps * BATCH * LENGTH,
        first_loss: losses.first().copied().unwrap_or_default(),
        last_loss: mean(&losses[steps.saturating_sub(20)..]),
        seconds: started.elapsed().as_secs_f64(),
    })
}

fn learning_rate(step: usize, steps: usize) -> f64 {
    let warm = (steps / 20).max(1);
    if step < warm {
        return RATE * (step + 1) as f64 / warm as f64;
    }
    let done = (step - warm) as f64 / (steps - warm).max(1) as f64;
    RATE * (0.02 + 0.98 * 0.5 * (1.0 + (std::f64::consts::PI * done).cos()))
}

/// Consecutive questions and answers, as the chat template writes them.
struct Conversation {
    tokens: Vec<u32>,
    /// Positions whose next token is part of an answer.
    learned: Vec<usize>,
}

impl Conversation {
    fn new(tokenizer: &Tokenizer, lessons: &Lessons, number: &mut u64) -> anyhow::Result<Self> {
        let mut conversation = Self { tokens: Vec::new(), learned: Vec::new() };
        let encode = |text: &str| {
            tokenizer.encode_fast(text, false).map_err(|error| anyhow::anyhow!("tokenize: {error}"))
        };
        while conversation.tokens.len() <= LENGTH {
            let lesson = draw(lessons, SEED, *number);
            *number += 1;
            conversation.tokens.push(USER);
            conversation.tokens.extend(encode(&lesson.question)?.get_ids());
            let answer = conversation.tokens.len();
            conversation.tokens.push(ASSISTANT);
            conversation.tokens.extend(encode(&lesson.answer)?.get_ids());
            conversation.learned.extend(answer..conversation.tokens.len());
            conversation.tokens.push(END);
        }
        conversation.tokens.truncate(LENGTH + 1);
        conversation.learned.retain(|position| *position < LENGTH);
        Ok(conversation)
    }
}

/// Computes the mean cross-entropy over the tokens of answers.
fn loss(model: &Llama, batch: &[Conversation], device: &Device) -> candle_core::Result<Tensor> {
    let shape = shape();
    let tokens: Vec<u32> = batch.iter().flat_map(|item| item.tokens[..LENGTH].iter().copied()).collect();
    let positions: Vec<u32> = batch.iter().flat_map(|_| 0..LENGTH as u32).collect();
    let states = model.forward(&tokens, &positions, device, |_, query, key, value| {
        let split = |tensor: &Tensor, heads: usize| {
            tensor.reshape((batch.len(), LENGTH, heads, shape.head_width))?.transpose(1, 2)?.contiguous()
        };
        let query = split(&query, shape.heads)?;
        let (key, value) = (split(&key, shape.key_value_heads)?, split(&value, shape.key_value_heads)?);
        let mixed = model.serve_worker(&query, &key, &value, 0)?;
        mixed.transpose(1, 2)?.contiguous()?.reshape((batch.len() * LENGTH, shape.heads, shape.head_width))
    })?;
    let mut rows = Vec::new();
    let mut targets = Vec::new();
    for (index, item) in batch.iter().enumerate() {
        for position in &item.learned {
            rows.push((index * LENGTH + position) as u32);
            targets.push(item.tokens[position + 1]);
        }
    }
    let states = states.index_select(&Tensor::new(rows, device)?, 0)?;
    let chances = candle_nn::ops::log_softmax(&model.logits(&states)?, D::Minus1)?;
    candle_nn::loss::nll(&chances, &Tensor::new(targets, device)?)
}

/// Draws matrices from a normal distribution of deviation 0.02 (smaller where a layer writes to the residual
/// stream); sets norms to 1.
fn initial_variables(device: &Device) -> anyhow::Result<Vec<(String, Var)>> {
    let mut variables = Vec::new();
    let mut counter = 0_u64;
    let mut next = || {
        // Box-Muller; the counter makes every number a function of its position.
        counter += 2;
        let (u, v) = (1.0 - uniform(SEED, 1 << 40 | counter), uniform(SEED, 1 << 40 | (counter + 1)));
        (-2.0 * u.ln()).sqrt() * (2.0 * std::f64::consts::PI * v).cos()
    };
    for (name, dimensions) in parameters(&shape()) {
        let count: usize = dimensions.iter().product();
        let into_residual = name.contains("o_proj") || name.contains("down_proj");
        let deviation = if into_residual { 0.02 / (2.0 * shape().layers.len() as f64).sqrt() } else { 0.02 };
        let values: Vec<f32> = match dimensions.len() {
            1 => vec![1.0; count],
            _ => (0..count).map(|_| (next() * deviation) as f32).collect(),
        };
        variables.push((name, Var::from_vec(values, dimensions, device)?));
    }
    Ok(variables)
}

/// Saves the weights as bf16, which halves the file; the score is taken after this rounding.
fn save(directory: &Path, variables: &[(String, Var)]) -> anyhow::Result<()> {
    let mut tensors = Vec::new();
    for (name, variable) in variables {
        let values: Vec<f32> = variable.as_tensor().to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
        let bytes: Vec<u8> =
            values.iter().flat_map(|value| half::bf16::from_f32(*value).to_le_bytes()).collect();
        tensors.push((name.clone(), variable.dims().to_vec(), bytes));
    }
    let mut views = Vec::new();
    for (name, dimensions, bytes) in &tensors {
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::BF16, dimensions.clone(), bytes)?;
        views.push((name, view));
    }
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    safetensors::serialize_to_file(views, Some(metadata), &directory.join("model.safetensors"))?;
    Ok(())
}
