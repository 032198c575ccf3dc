//! Tests of invalid model directories: each must end in a clear error, whose text is checked.

use crate::models::{bert_config, files, llama_config, options, write};
use kernels::sampling::Sampling;
use safetensors::Dtype;
use serde_json::{Value, json};
use serving::engine::chat::{ChatMessage, Conversation};
use serving::engine::tools::{CallStyle, ToolDefinition};
use serving::engine::{BlockId, Draw, Engine, EngineError, LoadedEngine, SequenceChunk};
use std::path::Path;

fn failure(directory: &Path) -> EngineError {
    LoadedEngine::open(&files(directory), &options(1)).err().expect("refused")
}

/// Returns the error's code and its whole chain of causes.
fn told(error: &EngineError) -> (String, String) {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    (error.code().to_string(), text)
}

#[test]
fn wrong_configurations_are_refused_by_name() {
    let cases: &[(&str, Value, &str, &str)] = &[
        (
            "architectures",
            json!(["PhiForCausalLM"]),
            "model-architecture-unknown",
            "PhiForCausalLM is not known; known: BertModel, BertForSequenceClassification, XLMRobertaModel, ",
        ),
        ("architectures", json!(null), "model-config-invalid", "no `architectures`"),
        ("hidden_size", json!(0), "model-config-invalid", "`hidden_size` is 0"),
        ("hidden_size", json!("wide"), "model-config-invalid", "config.json"),
        ("hidden_size", json!(47), "model-config-invalid", "does not divide"),
        ("num_key_value_heads", json!(3), "model-config-invalid", "does not divide"),
        ("head_dim", json!(9), "model-config-invalid", "odd"),
        ("max_position_embeddings", json!(null), "model-config-invalid", "max_position_embeddings"),
        ("hidden_act", json!("gelu_new"), "model-feature-unsupported", "gelu_new"),
        ("attention_bias", json!(true), "model-weights-mismatch", "model.layers.0.self_attn.q_proj.bias"),
        ("mlp_bias", json!(true), "model-weights-mismatch", "model.layers.0.mlp.gate_proj.bias"),
        ("final_logit_softcapping", json!(30.0), "model-feature-unsupported", "final_logit_softcapping"),
        ("quantization_config", json!({}), "model-feature-unsupported", "quantized"),
        ("rope_scaling", json!({ "rope_type": "yarn" }), "model-config-invalid", "no `factor`"),
        ("rope_scaling", json!({ "type": "longrope" }), "model-feature-unsupported", "`longrope`"),
        ("intermediate_size", json!(81), "model-weights-mismatch", "[80, 48], expected shape [81, 48]"),
        ("num_hidden_layers", json!(3), "model-weights-mismatch", "model.layers.2."),
        ("vocab_size", json!(256), "model-config-invalid", "257 tokens, but the model knows 256"),
    ];
    let directory = write(&llama_config(), Dtype::F32);
    for (field, value, code, text) in cases {
        let mut config = llama_config();
        config[*field] = value.clone();
        std::fs::write(directory.path().join("config.json"), config.to_string()).expect("written");
        let (found_code, found_text) = told(&failure(directory.path()));
        assert_eq!(found_code, *code, "{field} = {value}: {found_text}");
        assert!(found_text.contains(text), "{field} = {value}: {found_text}");
    }
}

#[test]
fn missing_files_are_named() {
    for (name, code) in [
        ("config.json", "model-file-missing"),
        ("tokenizer.json", "model-tokenizer-missing"),
        ("model.safetensors", "model-file-missing"),
    ] {
        let directory = write(&llama_config(), Dtype::F32);
        std::fs::remove_file(directory.path().join(name)).expect("removed");
        let (found, text) = told(&failure(directory.path()));
        assert_eq!(found, code);
        assert!(text.contains(name), "{text}");
    }
}

#[test]
fn other_formats_are_refused_by_name() {
    for (name, format) in [("pytorch_model.bin", "pickle"), ("model.pt", "pickle"), ("m.gguf", "GGUF")] {
        let directory = write(&llama_config(), Dtype::F32);
        std::fs::rename(directory.path().join("model.safetensors"), directory.path().join(name))
            .expect("moved");
        let (code, text) = told(&failure(directory.path()));
        assert_eq!(code, "model-format-refused");
        assert!(text.contains(name) && text.contains(format), "{text}");
    }
}

#[test]
fn damaged_weights_are_refused() {
    let directory = write(&llama_config(), Dtype::F32);
    let path = directory.path().join("model.safetensors");
    let whole = std::fs::read(&path).expect("read");
    let mut longer = whole.clone();
    longer.push(0);
    let mut huge_header = whole.clone();
    huge_header[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    let mut broken_header = whole.clone();
    broken_header[8] = b'x';
    let cases = [
        whole[..whole.len() - 1].to_vec(),
        whole[..5].to_vec(),
        whole[..100].to_vec(),
        Vec::new(),
        longer,
        huge_header,
        broken_header,
    ];
    for (index, bytes) in cases.into_iter().enumerate() {
        std::fs::write(&path, bytes).expect("written");
        let (code, text) = told(&failure(directory.path()));
        assert_eq!(code, "model-weights-damaged", "case {index}: {text}");
        assert!(text.contains("model.safetensors"), "{text}");
    }
}

#[test]
fn weights_with_a_value_that_is_no_number_are_refused_by_name() {
    for (dtype, bad) in [
        (Dtype::F32, f32::NAN.to_le_bytes().to_vec()),
        (Dtype::F16, half::f16::INFINITY.to_le_bytes().to_vec()),
        (Dtype::BF16, half::bf16::NAN.to_le_bytes().to_vec()),
    ] {
        for config in [llama_config(), bert_config()] {
            let directory = write(&config, dtype);
            let sound = LoadedEngine::open(&files(directory.path()), &options(1)).expect("it loads");
            sound.weights().check().expect("the control: all values are numbers");
            // The last element of the file, which belongs to the tensor that is last by its name.
            let path = directory.path().join("model.safetensors");
            let mut bytes = std::fs::read(&path).expect("read");
            let at = bytes.len() - bad.len();
            bytes[at..].copy_from_slice(&bad);
            std::fs::write(&path, bytes).expect("written");
            let mut engine =
                LoadedEngine::open(&files(directory.path()), &options(1)).expect("headers are sound");
            let error = engine.weights().check().expect_err("one value is no number");
            assert_eq!(error.code().as_str(), "model-weights-not-finite");
            assert!(error.to_string().contains("tensor `"), "{error}");
            // A request that comes before the check is refused for the same reason.
            let refused = match engine.embed(&[vec![1, 2]]) {
                Err(EngineError::OperationUnsupported { .. }) => {
                    let draw = Draw {
                        sampling: Sampling { temperature: 0.0, top_p: 1.0, seed: 0 },
                        rules: None,
                        logprobs: None,
                        prompt: 1,
                    };
                    let chunk = SequenceChunk {
                        blocks: &[BlockId(0)],
                        position: 0,
                        tokens: &[1, 2],
                        draw: Some(draw),
                    };
                    engine.step(&[chunk]).expect_err("no token")
                }
                embedded => embedded.expect_err("no vector"),
            };
            assert_eq!(told(&refused).0, "model-weights-not-finite");
        }
    }
}

#[test]
fn unusual_pooling_and_element_types_are_refused() {
    let directory = write(&bert_config(), Dtype::F32);
    let pooling = directory.path().join("1_Pooling/config.json");
    std::fs::write(pooling, r#"{"pooling_mode_max_tokens": true}"#).expect("written");
    assert_eq!(told(&failure(directory.path())).0, "model-feature-unsupported");

    let directory = write(&llama_config(), Dtype::F32);
    let path = directory.path().join("model.safetensors");
    let mut bytes = std::fs::read(&path).expect("read");
    let at = bytes.windows(5).position(|window| window == b"\"F32\"").expect("in the header");
    bytes[at..at + 5].copy_from_slice(b"\"I32\"");
    std::fs::write(path, bytes).expect("written");
    let (code, text) = told(&failure(directory.path()));
    assert_eq!(code, "model-weights-mismatch");
    assert!(text.contains("I32"), "{text}");
}

#[test]
fn a_missing_directory_is_an_error() {
    let error =
        serving::weights::ModelFiles::open_directory(Path::new("/nowhere/at/all")).expect_err("absent");
    assert_eq!(error.code().as_str(), "model-unreadable");
}

#[test]
fn a_chat_template_in_its_own_file_takes_precedence() {
    let directory = write(&llama_config(), Dtype::F32);
    let own = directory.path().join("chat_template.jinja");
    let prompt = || {
        let engine = LoadedEngine::open(&files(directory.path()), &options(1)).expect("it loads");
        let frontend = engine.frontend();
        let tokens =
            frontend.encode_chat(&vec![ChatMessage::new("user", "hi")].into()).expect("a prompt").tokens;
        frontend.decode(&tokens)
    };
    // The control: the template of tokenizer_config.json.
    assert_eq!(prompt(), "user: hi\nassistant: ");
    std::fs::write(&own, "own {{ messages[0].content }}").expect("written");
    assert_eq!(prompt(), "own hi");
    std::fs::remove_file(directory.path().join("tokenizer_config.json")).expect("removed");
    assert_eq!(prompt(), "own hi", "without the other file there is a template too");
    std::fs::write(&own, b"\xff").expect("written");
    let (code, text) = told(&failure(directory.path()));
    assert_eq!(code, "model-config-invalid");
    assert!(text.contains("chat_template.jinja"), "{text}");
}

#[test]
fn a_template_of_its_own_prints_conversations_with_functions() {
    let directory = write(&llama_config(), Dtype::F32);
    let named = |name: &str, template: &str| json!({ "name": name, "template": template });
    let templates =
        [named("default", "plain"), named("tool_use", "{{ tools[0].function.name }} <tool_call>")];
    let config = json!({ "chat_template": templates }).to_string();
    std::fs::write(directory.path().join("tokenizer_config.json"), config).expect("written");
    let engine = LoadedEngine::open(&files(directory.path()), &options(1)).expect("it loads");
    let frontend = engine.frontend();
    let prompt = |tools: Vec<ToolDefinition>| {
        let messages = vec![ChatMessage::new("user", "hi")];
        let conversation = Conversation { messages, tools, ..Conversation::default() };
        frontend.decode(&frontend.encode_chat(&conversation).expect("a prompt").tokens)
    };
    assert_eq!(prompt(Vec::new()), "plain");
    let parameters = json!({ "type": "object" });
    let tool = ToolDefinition { name: "wind".to_owned(), description: None, parameters, is_strict: false };
    assert_eq!(prompt(vec![tool]), "wind <tool_call>");
    assert!(frontend.call_format().is_some_and(|format| format.style == CallStyle::Tagged));
}
