//! Tokenizer of the tiny model, and the small files beside its weights.

use crate::lessons::{Lessons, draw};
use crate::{CONTEXT, INNER, SEED, THETA, VOCABULARY};
use serde_json::json;
use serving::engine::config::DecoderShape;
use std::path::Path;
use tokenizers::decoders::byte_level::ByteLevel as ByteLevelDecoder;
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::normalizers::Lowercase;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Tokenizer};

/// Token ids that the trainer assigns first.
pub(crate) const END: u32 = 0;
pub(crate) const USER: u32 = 1;
pub(crate) const ASSISTANT: u32 = 2;
const SPECIAL: [&str; 3] = ["<|end|>", "<|user|>", "<|assistant|>"];
/// Drawn lessons in the tokenizer's training text besides all others, for the words of unanswerable
/// questions.
const DRAWN: u64 = 4000;

/// Trains a byte-level byte-pair tokenizer over the lessons; it lower-cases its input.
pub(crate) fn train_tokenizer(lessons: &Lessons) -> anyhow::Result<Tokenizer> {
    let failed = |error| anyhow::anyhow!("train the tokenizer: {error}");
    let mut tokenizer = Tokenizer::new(BPE::default());
    tokenizer.with_normalizer(Some(Lowercase)).map_err(failed)?;
    tokenizer.with_pre_tokenizer(Some(ByteLevel::new(false, true, true)));
    tokenizer.with_decoder(Some(ByteLevelDecoder::default()));
    let trainer = BpeTrainerBuilder::new()
        .show_progress(false)
        .vocab_size(VOCABULARY)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .special_tokens(SPECIAL.iter().map(|token| AddedToken::from(*token, true)).collect())
        .build();
    let all = lessons.sums.iter().chain(&lessons.facts).cloned();
    let texts = all.chain((0..DRAWN).map(|number| draw(lessons, SEED, number)));
    let texts = texts.flat_map(|lesson| [lesson.question, lesson.answer]);
    tokenizer.train(&mut TrainerWrapper::BpeTrainer(trainer), texts).map_err(failed)?;
    for (id, token) in SPECIAL.iter().enumerate() {
        anyhow::ensure!(tokenizer.token_to_id(token) == Some(id as u32), "special tokens come first");
    }
    anyhow::ensure!(tokenizer.get_vocab_size(true) <= VOCABULARY, "the vocabulary fits the model");
    Ok(tokenizer)
}

/// Writes every file but weights and card.
pub(crate) fn write_files(
    directory: &Path,
    tokenizer: &Tokenizer,
    shape: &DecoderShape,
) -> anyhow::Result<()> {
    tokenizer
        .save(directory.join("tokenizer.json"), true)
        .map_err(|error| anyhow::anyhow!("save the tokenizer: {error}"))?;
    let write =
        |name: &str, value: &serde_json::Value| std::fs::write(directory.join(name), format!("{value:#}\n"));
    write(
        "config.json",
        &json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16",
            "hidden_size": shape.hidden, "intermediate_size": INNER,
            "num_hidden_layers": shape.layers.len(), "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.key_value_heads, "head_dim": shape.head_width,
            "vocab_size": shape.vocabulary, "max_position_embeddings": CONTEXT, "hidden_act": "silu",
            "rms_norm_eps": 1e-5, "rope_theta": THETA, "tie_word_embeddings": true,
            "attention_bias": false, "mlp_bias": false, "bos_token_id": null, "eos_token_id": END,
        }),
    )?;
    write("generation_config.json", &json!({ "eos_token_id": END, "do_sample": false }))?;
    write(
        "tokenizer_config.json",
        &json!({
            "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": CONTEXT,
            "eos_token": SPECIAL[END as usize], "chat_template": CHAT_TEMPLATE,
        }),
    )?;
    Ok(())
}

/// System messages are left out: the model has never seen one.
const CHAT_TEMPLATE: &str = "{% for message in messages %}\
    {% if message['role'] == 'user' %}<|user|>{{ message['content'] }}\
    {% elif message['role'] == 'assistant' %}<|assistant|>{{ message['content'] }}<|end|>{% endif %}\
    {% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}";
