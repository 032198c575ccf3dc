//! Gradient descent over conversations of drawn lessons, by one process or by the ranks of a gang.

use crate::checkpoint::{self, Place};
use crate::gang::Gang;
use crate::lessons::{Lessons, draw};
use crate::optimizer::AdamW;
use crate::text::{ASSISTANT, END, USER, write_files};
use crate::{SEED, shape};
use candle_core::{D, DType, Device, Tensor, Var};
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

/// A run: the model, and all that its next step depends on.
pub(crate) struct TrainingRun<'a> {
    tokenizer: &'a Tokenizer,
    lessons: &'a Lessons,
    steps: usize,
    model: Llama,
    pub(crate) variables: Vec<(String, Var)>,
    pub(crate) optimizer: AdamW,
    pub(crate) place: Place,
}

impl<'a> TrainingRun<'a> {
    /// Returns a run of this many steps, before the first.
    pub(crate) fn new(tokenizer: &'a Tokenizer, lessons: &'a Lessons, steps: usize) -> anyhow::Result<Self> {
        let variables = initial_variables(&Device::Cpu)?;
        let tensors: NamedTensors =
            variables.iter().map(|(name, variable)| (name.clone(), variable.as_tensor().clone())).collect();
        let model = Llama::new(&shape(), tensors, LENGTH, &Device::Cpu)?;
        let optimizer = AdamW::new(&variables)?;
        Ok(Self {
            tokenizer,
            lessons,
            steps,
            model,
            variables,
            optimizer,
            place: Place { step: 0, drawn: 0 },
        })
    }

    pub(crate) fn is_done(&self) -> bool {
        self.place.step >= self.steps
    }

    /// Takes a step together with the other ranks; returns the mean loss over the tokens of all.
    pub(crate) fn step(&mut self, gang: &mut Gang) -> anyhow::Result<f32> {
        let batch: Vec<Conversation> = (0..BATCH)
            .map(|_| Conversation::new(self.tokenizer, self.lessons, &mut self.place.drawn))
            .collect::<Result<_, _>>()?;
        let own = &batch[gang.share(BATCH)];
        let learned = |batch: &[Conversation]| batch.iter().map(|item| item.learned.len()).sum::<usize>();
        let mut loss = loss(&self.model, own, &Device::Cpu)?;
        if !gang.is_alone() {
            loss = (loss * (learned(own) as f64 / learned(&batch) as f64))?;
        }
        let found = loss.backward()?;
        let gradient = |(name, variable): &(String, Var)| {
            let found = found.get(variable.as_tensor()).cloned();
            found.ok_or_else(|| anyhow::anyhow!("`{name}` has no gradient"))
        };
        let mut gradients = self.variables.iter().map(gradient).collect::<anyhow::Result<Vec<Tensor>>>()?;
        let mut mean = loss.to_scalar::<f32>()?;
        if !gang.is_alone() {
            (mean, gradients) = summed(gang, mean, &gradients)?;
        }
        let rate = learning_rate(self.place.step, self.steps);
        self.optimizer.step(&self.variables, &gradients, rate)?;
        self.place.step += 1;
        Ok(mean)
    }
}

/// Returns the sums of the loss and the gradients of all ranks.
fn summed(gang: &mut Gang, loss: f32, gradients: &[Tensor]) -> anyhow::Result<(f32, Vec<Tensor>)> {
    let mut values = vec![loss];
    for gradient in gradients {
        values.extend(gradient.flatten_all()?.to_vec1::<f32>()?);
    }
    gang.sum(&mut values)?;
    let mut rest = &values[1..];
    let mut sums = Vec::with_capacity(gradients.len());
    for gradient in gradients {
        let (own, others) = rest.split_at(gradient.elem_count());
        sums.push(Tensor::from_slice(own, gradient.dims(), &Device::Cpu)?);
        rest = others;
    }
    Ok((values[0], sums))
}

/// Trains the model alone and writes `model.safetensors`.
pub(crate) fn train(
    directory: &Path,
    tokenizer: &Tokenizer,
    lessons: &Lessons,
    steps: usize,
) -> anyhow::Result<Outcome> {
    let started = Instant::now();
    let mut run = TrainingRun::new(tokenizer, lessons, steps)?;
    let mut losses = Vec::with_capacity(steps);
    while !run.is_done() {
        let step = run.place.step;
        losses.push(run.step(&mut Gang::alone())?);
        if step % 20 == 0 || step + 1 == steps {
            let recent = &losses[losses.len().saturating_sub(20)..];
            let mean = recent.iter().sum::<f32>() / recent.len() as f32;
            println!("step {step}/{steps}  loss {mean:.4}  {:.0} s", started.elapsed().as_secs_f64());
        }
    }
    save(directory, &run.variables)?;
    let mean = |losses: &[f32]| losses.iter().sum::<f32>() / losses.len().max(1) as f32;
    Ok(Outcome {
        steps,
        parameters: run.variables.iter().map(|(_, variable)| variable.elem_count()).sum(),
        tokens: steps * BATCH * LENGTH,
        first_loss: losses.first().copied().unwrap_or_default(),
        last_loss: mean(&losses[steps.saturating_sub(20)..]),
        seconds: started.elapsed().as_secs_f64(),
    })
}

/// Trains the model together with the other ranks of a job. A checkpoint is written after each `every` steps,
/// and the newest one is where a later attempt begins; rank 0 leaves the model as outputs.
pub(crate) fn train_in_gang(
    tokenizer: &Tokenizer,
    lessons: &Lessons,
    (steps, every): (usize, usize),
    places: &JobPlaces,
) -> anyhow::Result<()> {
    let mut gang = Gang::from_environment()?;
    let mut run = TrainingRun::new(tokenizer, lessons, steps)?;
    if let Some(place) = checkpoint::read_newest(places.checkpoints, &run.variables, &mut run.optimizer)? {
        println!("continues after step {}", place.step);
        run.place = place;
    }
    while !run.is_done() {
        let loss = run.step(&mut gang)?;
        let step = run.place.step;
        println!("step {step}/{steps}  loss {loss:.6}");
        if gang.rank == 0 && step % every == 0 && !run.is_done() {
            let path = checkpoint::write(places.checkpoints, run.place, &run.variables, &run.optimizer)?;
            println!("checkpoint {}", path.display());
        }
    }
    if gang.rank == 0 {
        write_files(places.outputs, tokenizer, &shape())?;
        save(places.outputs, &run.variables)?;
    }
    Ok(())
}

/// Directories of a job that outlive its ranks.
pub(crate) struct JobPlaces<'a> {
    pub(crate) checkpoints: &'a Path,
    pub(crate) outputs: &'a Path,
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
