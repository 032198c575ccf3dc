//! Tests of the judgement: published configurations, and every refusal by its text.

mod encoders;
mod published;

use super::*;
use crate::Digest;
use crate::error_code as code;
use crate::manifest::Task;
use published::PUBLISHED;
use serde_json::{Value, json};

fn judge(config: &Value) -> Result<Servable, CheckpointError> {
    judge_with(config, &[])
}

/// Judges a configuration with other files beside it.
fn judge_with(config: &Value, others: &[(&str, Value)]) -> Result<Servable, CheckpointError> {
    let others = others.iter().map(|(path, content)| ((*path).to_owned(), content.to_string().into_bytes()));
    let config = ("config.json".to_owned(), config.to_string().into_bytes());
    servable(&std::iter::once(config).chain(others).collect())
}

/// Returns the files of a model with this pooling and a normalisation.
fn modules(flag: &str) -> Vec<(&'static str, Value)> {
    let module = |path: &str, kind: &str| json!({ "path": path, "type": format!("st.models.{kind}") });
    let all = [module("", "Transformer"), module("1_Pooling", "Pooling"), module("2_Normalize", "Normalize")];
    vec![("modules.json", json!(all)), ("1_Pooling/config.json", json!({ flag: true }))]
}

fn encoder(config: &Value) -> EncoderShape {
    match judge(config).expect("servable").shape {
        ServableShape::Encoder(shape) => shape,
        ServableShape::Decoder(_) => unreachable!("an encoder"),
    }
}

fn decoder(config: &Value) -> DecoderShape {
    match judge(config).expect("servable").shape {
        ServableShape::Decoder(shape) => shape,
        ServableShape::Encoder(_) => unreachable!("a decoder"),
    }
}

fn published(name: &str) -> Value {
    let (_, config) = PUBLISHED.iter().find(|(other, _)| *other == name).expect("a published model");
    serde_json::from_str(config).expect("JSON")
}

/// Returns a published configuration with one field changed; `null` stays `null`.
fn changed(name: &str, field: &str, value: Value) -> Value {
    let mut config = published(name);
    config[field] = value;
    config
}

/// Returns a recipe of ours with one field changed.
fn quantized(field: &str, value: Value) -> Value {
    let recipe = Quantization { bits: 8, source: Digest::of(b"source") };
    let mut recipe: Value = serde_json::from_str(&recipe.to_json()).expect("JSON");
    recipe[field] = value;
    recipe
}

fn without(name: &str, field: &str) -> Value {
    let mut config = published(name);
    config.as_object_mut().expect("an object").remove(field).expect("a field");
    config
}

/// Returns the windows of all layers as text: `w` is a layer with a window and `.` one without.
fn windows(shape: &DecoderShape) -> String {
    shape.layers.iter().map(|layer| if layer.window.is_some() { 'w' } else { '.' }).collect()
}

#[test]
fn every_published_configuration_is_served_in_its_shape() {
    // Layers, query heads, shared heads, width of a head, inner width, context.
    let expected = [
        ("Llama-3.1-8B", [32, 32, 8, 128, 14_336, 131_072]),
        ("Mistral-7B-v0.1", [32, 32, 8, 128, 14_336, 32_768]),
        ("Mistral-Nemo", [40, 32, 8, 128, 14_336, 1_024_000]),
        ("Mixtral-8x7B", [32, 32, 8, 128, 14_336, 32_768]),
        ("Qwen2.5-0.5B", [24, 14, 2, 64, 4864, 32_768]),
        ("Qwen2.5-7B with YaRN", [28, 28, 4, 128, 18_944, 131_072]),
        ("Qwen3-0.6B", [28, 16, 8, 128, 3072, 40_960]),
        ("Qwen3-30B-A3B", [48, 32, 4, 128, 768, 40_960]),
        ("gemma-2-2b", [26, 8, 4, 256, 9216, 8192]),
        ("gemma-3-1b", [26, 4, 1, 256, 6912, 32_768]),
        ("gemma-3-270m", [18, 4, 1, 256, 2048, 32_768]),
        ("Llama-3.2-1B", [16, 32, 8, 64, 8192, 131_072]),
        ("Qwen3-8B in the newer form", [36, 32, 8, 128, 12_288, 40_960]),
    ];
    let encoders = PUBLISHED.iter().filter(|(_, config)| !config.contains("ForCausalLM")).count();
    assert_eq!(expected.len() + encoders, PUBLISHED.len(), "all but the encoders");
    for (name, expected) in expected {
        let served = judge(&published(name)).expect(name);
        let ServableShape::Decoder(shape) = served.shape else { unreachable!("a decoder") };
        let found = [
            shape.layers.len(),
            shape.heads,
            shape.key_value_heads,
            shape.head_width,
            shape.layers[0].feed_forward.inner(),
            served.context_tokens_max,
        ];
        assert_eq!(found, expected, "{name}");
        assert!(!served.end_tokens.is_empty(), "{name}");
        let scale = 1.0 / (shape.head_width as f32).sqrt();
        assert_eq!(shape.attention_scale, scale, "{name}");
    }
}

#[test]
fn families_differ_where_their_publishers_say() {
    let llama = decoder(&published("Llama-3.1-8B"));
    assert_eq!((llama.norms, llama.gate, llama.head_norms), (NormStyle::Before, Gate::Silu, false));
    assert_eq!((llama.biases, llama.embedding_scale), (ProjectionBiases::default(), 1.0));
    assert_eq!((llama.attention_soft_cap, llama.logit_soft_cap, llama.tied_embeddings), (None, None, false));

    let qwen2 = decoder(&published("Qwen2.5-0.5B"));
    let attention = ProjectionBiases { query_key_value: true, output: false, feed_forward: false };
    assert_eq!((qwen2.biases, qwen2.head_norms, qwen2.tied_embeddings), (attention, false, true));

    let qwen3 = decoder(&published("Qwen3-0.6B"));
    assert_eq!((qwen3.biases, qwen3.head_norms), (ProjectionBiases::default(), true));

    let gemma2 = decoder(&published("gemma-2-2b"));
    assert_eq!((gemma2.norms, gemma2.gate), (NormStyle::AroundWithOffset, Gate::GeluTanh));
    assert_eq!((gemma2.attention_soft_cap, gemma2.logit_soft_cap), (Some(50.0), Some(30.0)));
    assert_eq!((gemma2.embedding_scale, gemma2.tied_embeddings), (48.0, true));
    assert!(!gemma2.head_norms);

    let gemma3 = decoder(&published("gemma-3-1b"));
    assert_eq!((gemma3.norms, gemma3.gate), (NormStyle::AroundWithOffset, Gate::GeluTanh));
    assert_eq!((gemma3.attention_soft_cap, gemma3.logit_soft_cap), (None, None));
    assert!(gemma3.head_norms && gemma3.tied_embeddings);
}

#[test]
fn windows_are_those_of_the_family() {
    let of = |config: &Value| windows(&decoder(config));
    assert_eq!(of(&published("Llama-3.1-8B")), ".".repeat(32));
    assert_eq!(of(&published("Mistral-7B-v0.1")), "w".repeat(32));
    assert_eq!(of(&published("Mistral-Nemo")), ".".repeat(40));
    assert_eq!(of(&without("Mistral-7B-v0.1", "sliding_window")), "w".repeat(32));
    assert_eq!(of(&published("Mixtral-8x7B")), ".".repeat(32));
    assert_eq!(of(&without("Mixtral-8x7B", "sliding_window")), ".".repeat(32));
    assert_eq!(of(&changed("Mixtral-8x7B", "sliding_window", json!(4096))), "w".repeat(32));
    assert_eq!(of(&published("Qwen2.5-0.5B")), ".".repeat(24));
    let mut used = changed("Qwen2.5-0.5B", "use_sliding_window", json!(true));
    assert_eq!(of(&used), ".".repeat(24), "no layer beyond `max_window_layers`");
    used["max_window_layers"] = json!(20);
    assert_eq!(of(&used), format!("{}wwww", ".".repeat(20)));
    assert_eq!(of(&published("gemma-2-2b")), "w.".repeat(13));
    assert_eq!(of(&published("gemma-3-1b")), format!("{}ww", "wwwww.".repeat(4)));
    assert_eq!(of(&changed("gemma-3-1b", "sliding_window_pattern", json!(2))), "w.".repeat(13));
    assert_eq!(of(&published("gemma-3-270m")), "wwwww.".repeat(3));
    assert_eq!(of(&without("gemma-3-270m", "layer_types")), "wwwww.".repeat(3));
    let mut types = vec!["full_attention"; 26];
    types[3] = "sliding_attention";
    let named = changed("gemma-3-1b", "layer_types", json!(types));
    assert_eq!(of(&named), format!("...w{}", ".".repeat(22)));
    let shape = decoder(&named);
    assert_eq!((shape.layers[3].window, shape.layers[3].rotary, shape.layers[4].rotary), (Some(512), 1, 0));
}

#[test]
fn experts_are_in_the_layers_that_have_them() {
    let mixtral = decoder(&published("Mixtral-8x7B"));
    let experts =
        Experts { count: 8, chosen: 2, inner: 14_336, is_normalized: true, names: ExpertNames::Mixtral };
    assert!(mixtral.layers.iter().all(|layer| layer.feed_forward == FeedForward::Mixture(experts.clone())));

    let qwen = decoder(&published("Qwen3-30B-A3B"));
    let experts =
        Experts { count: 128, chosen: 8, inner: 768, is_normalized: true, names: ExpertNames::Qwen };
    assert!(qwen.layers.iter().all(|layer| layer.feed_forward == FeedForward::Mixture(experts.clone())));

    let mut mixed = changed("Qwen3-30B-A3B", "decoder_sparse_step", json!(2));
    mixed["mlp_only_layers"] = json!([1, 5]);
    let kinds: String = decoder(&mixed).layers[..8]
        .iter()
        .map(|layer| if matches!(layer.feed_forward, FeedForward::Dense { inner: 6144 }) { 'd' } else { 'm' })
        .collect();
    assert_eq!(kinds, "dddmdddm");
    let plain = decoder(&without("Qwen3-30B-A3B", "norm_topk_prob"));
    let FeedForward::Mixture(experts) = &plain.layers[0].feed_forward else { unreachable!("a mixture") };
    assert!(!experts.is_normalized, "the default of its publisher");
}

#[test]
fn rotary_embeddings_are_read_in_every_published_form() {
    let of = |config: &Value| decoder(config).rotaries;
    let plain = |theta: f64| Rotary { theta, scaling: RotaryScaling::None };
    let stretch = RotaryStretch {
        factor: 8.0,
        low_frequency_factor: 1.0,
        high_frequency_factor: 4.0,
        original_context: 8192.0,
    };
    let llama3 = Rotary { theta: 500_000.0, scaling: RotaryScaling::Llama3(stretch) };
    assert_eq!(of(&published("Llama-3.1-8B")), [llama3]);
    assert_eq!(of(&published("Qwen3-0.6B")), [plain(1e6)]);
    assert_eq!(of(&published("gemma-3-1b")), [plain(1e6), plain(1e4)]);
    assert_eq!(of(&without("gemma-3-1b", "rope_theta"))[0], plain(1e6));
    assert_eq!(of(&without("Qwen3-0.6B", "rope_theta")), [plain(1e4)]);

    let scaled = |value| of(&changed("gemma-3-1b", "rope_scaling", value));
    let linear = Rotary { theta: 1e6, scaling: RotaryScaling::Linear { factor: 8.0 } };
    assert_eq!(scaled(json!({ "rope_type": "linear", "factor": 8.0 })), [linear, plain(1e4)]);
    assert_eq!(scaled(json!({ "type": "linear", "factor": 8 })), [linear, plain(1e4)]);
    assert_eq!(scaled(json!({ "type": "dynamic", "factor": 2.0 })), [plain(1e6), plain(1e4)]);
    assert_eq!(scaled(json!({ "type": "mrope", "rope_type": "default" })), [plain(1e6), plain(1e4)]);

    let newer = json!({
        "full_attention": { "rope_type": "linear", "factor": 8.0, "rope_theta": 1e6 },
        "sliding_attention": { "rope_type": "default", "rope_theta": 20_000 }
    });
    let newer = changed("gemma-3-1b", "rope_parameters", newer);
    assert_eq!(of(&newer), [linear, plain(2e4)]);
    let newer =
        changed("Qwen3-0.6B", "rope_parameters", json!({ "rope_type": "default", "rope_theta": 7e5 }));
    assert_eq!(of(&newer), [plain(7e5)]);
}

#[test]
fn yarn_lengthens_the_context_and_scales_its_cosines() {
    let yarn = |fields: Value| {
        let mut rope = json!({ "type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32_768 });
        rope.as_object_mut().expect("an object").extend(fields.as_object().expect("an object").clone());
        let served = judge(&changed("Qwen2.5-0.5B", "rope_scaling", rope)).expect("servable");
        let ServableShape::Decoder(shape) = served.shape else { unreachable!("a decoder") };
        let RotaryScaling::Yarn(yarn) = shape.rotaries[0].scaling else { unreachable!("YaRN") };
        (yarn, served.context_tokens_max)
    };
    let (usual, context) = yarn(json!({}));
    assert_eq!(context, 131_072);
    assert_eq!((usual.factor, usual.original_context), (4.0, 32_768.0));
    assert_eq!((usual.turns_fast, usual.turns_slow, usual.is_truncated), (32.0, 1.0, true));
    assert!((usual.magnitude - (0.1 * 4.0_f64.ln() + 1.0)).abs() < 1e-12);
    let (given, _) =
        yarn(json!({ "attention_factor": 1.25, "beta_fast": 16, "beta_slow": 2, "truncate": false }));
    assert_eq!((given.magnitude, given.turns_fast, given.turns_slow), (1.25, 16.0, 2.0));
    assert!(!given.is_truncated);
    let (equal, _) = yarn(json!({ "mscale": 1.0, "mscale_all_dim": 1.0 }));
    assert_eq!(equal.magnitude, 1.0);
    let (shrunk, context) = yarn(json!({ "factor": 0.5 }));
    assert_eq!((shrunk.magnitude, context), (1.0, 32_768));
    let (long, context) = yarn(json!({ "original_max_position_embeddings": null }));
    assert_eq!((long.original_context, context), (32_768.0, 131_072));
}

#[test]
fn what_no_engine_serves_is_refused_by_name() {
    let unsupported: &[(&str, &str, Value, &str)] = &[
        ("Llama-3.1-8B", "hidden_act", json!("gelu"), "the activation `gelu`"),
        ("gemma-2-2b", "hidden_activation", json!("gelu"), "the activation `gelu`"),
        ("all-MiniLM-L6-v2", "hidden_act", json!("relu"), "the activation `relu`"),
        ("all-MiniLM-L6-v2", "position_embedding_type", json!("rotary"), "the position embedding `rotary`"),
        ("all-MiniLM-L6-v2", "is_decoder", json!(true), "`is_decoder`"),
        ("bge-m3", "add_cross_attention", json!(true), "`add_cross_attention`"),
        ("bge-m3", "position_embedding_type", json!("relative_key"), "the position embedding `relative_key`"),
        ("gte-modernbert-base", "hidden_activation", json!("silu"), "the activation `silu`"),
        (
            "gte-modernbert-base",
            "layer_types",
            json!(vec!["linear_attention"; 22]),
            "the layer type `linear_attention`",
        ),
        ("gte-modernbert-base", "partial_rotary_factor", json!(0.5), "`partial_rotary_factor`"),
        ("gte-reranker-modernbert-base", "classifier_pooling", json!("max"), "the classifier pooling `max`"),
        ("gte-reranker-modernbert-base", "classifier_activation", json!("silu"), "the classifier activation"),
        ("ms-marco-MiniLM-L6-v2", "id2label", json!({ "0": "a", "1": "b" }), "a classifier of 2 labels"),
        ("ms-marco-MiniLM-L6-v2", "id2label", json!(null), "a classifier of 2 labels"),
        (
            "ms-marco-MiniLM-L6-v2",
            "sentence_transformers",
            json!({ "activation_fn": "torch.nn.modules.activation.Tanh" }),
            "the score function `Tanh`",
        ),
        ("Llama-3.1-8B", "quantization_config", json!({ "bits": 4 }), "quantized weights"),
        ("Mistral-7B-v0.1", "attention_bias", json!(true), "`attention_bias`"),
        ("Qwen3-0.6B", "mlp_bias", json!(true), "`mlp_bias`"),
        ("Qwen2.5-0.5B", "is_causal", json!(false), "`is_causal`"),
        ("gemma-3-1b", "use_bidirectional_attention", json!(true), "`use_bidirectional_attention`"),
        ("Qwen3-30B-A3B", "use_sliding_window", json!(true), "`use_sliding_window`"),
        ("gemma-3-1b", "attn_logit_softcapping", json!(50.0), "`attn_logit_softcapping`"),
        ("Llama-3.1-8B", "final_logit_softcapping", json!(30.0), "`final_logit_softcapping`"),
        ("Llama-3.1-8B", "partial_rotary_factor", json!(0.5), "`partial_rotary_factor`"),
        ("Llama-3.1-8B", "rope_scaling", json!({ "rope_type": "longrope" }), "rope type `longrope`"),
        ("Llama-3.1-8B", "rope_scaling", json!({ "partial_rotary_factor": 0.25 }), "`partial_rotary_factor`"),
        (
            "Llama-3.1-8B",
            "rope_parameters",
            json!({ "full_attention": {}, "sliding_attention": {} }),
            "a rotary embedding by kind of layer",
        ),
        ("Mistral-7B-v0.1", "layer_types", json!(vec!["full_attention"; 32]), "`layer_types`"),
        (
            "Qwen3-0.6B",
            "layer_types",
            json!(vec!["linear_attention"; 28]),
            "the layer type `linear_attention`",
        ),
    ];
    for (name, field, value, text) in unsupported {
        let error = judge(&changed(name, field, value.clone())).expect_err(text);
        assert_eq!(error.code(), code::MODEL_FEATURE_UNSUPPORTED, "{name}: {error}");
        let expected = format!("model uses {text}");
        assert!(error.to_string().starts_with(&expected), "{name}, {field}: {error}");
    }
}

#[test]
fn quantised_weights_of_another_recipe_are_refused_by_name() {
    let foreign = json!({ "bits": 4, "group_size": 128, "quant_method": "gptq" });
    for (recipe, text) in [
        (foreign, "quantized weights of another tool"),
        (json!({}), "quantized weights of another tool"),
        (json!("int8"), "quantized weights of another tool"),
        (quantized("bits", json!(4)), "quantized weights of version 1, with 4 bits"),
        (quantized("version", json!(2)), "quantized weights of version 2"),
        (quantized("group_size", json!(64)), "quantized weights of version 1, with 8 bits in groups of 64"),
    ] {
        let error = judge(&changed("Qwen3-0.6B", "quantization_config", recipe)).expect_err(text);
        assert_eq!(error.code(), code::MODEL_FEATURE_UNSUPPORTED, "{error}");
        assert!(error.to_string().contains(text), "{error}");
    }
}

#[test]
fn the_recipe_of_quantised_weights_is_read_as_it_is_written() {
    let recipe = Quantization { bits: 8, source: Digest::of(b"source") };
    let pinned = format!(
        r#"{{"bits":8,"group_size":32,"quant_method":"quorate","source":"{}","version":1}}"#,
        Digest::of(b"source")
    );
    assert_eq!(recipe.to_json(), pinned);
    let config = changed("Qwen3-0.6B", "quantization_config", quantized("bits", json!(8)));
    assert_eq!(judge(&config).expect("served").quantization, Some(recipe));
    assert_eq!(judge(&published("Qwen3-0.6B")).expect("served").quantization, None);
    let more = changed("Qwen3-0.6B", "quantization_config", quantized("scheme", json!("x")));
    assert_eq!(judge(&more).expect_err("an unknown field").code(), code::MODEL_CONFIG_INVALID);
}

#[test]
fn an_invalid_configuration_is_refused_with_its_reason() {
    let invalid: &[(&str, &str, Value, &str)] = &[
        ("Llama-3.1-8B", "architectures", json!([]), "no `architectures`"),
        ("Llama-3.1-8B", "hidden_size", json!(-1), "invalid value"),
        ("Llama-3.1-8B", "hidden_size", json!(0), "`hidden_size` is 0, not within 1..=16777216"),
        ("Llama-3.1-8B", "vocab_size", json!(1 << 25), "`vocab_size` is 33554432"),
        (
            "Llama-3.1-8B",
            "num_hidden_layers",
            json!(1025),
            "`num_hidden_layers` is 1025, not within 1..=1024",
        ),
        ("Llama-3.1-8B", "num_key_value_heads", json!(5), "`num_key_value_heads` 5 does not divide"),
        ("Llama-3.1-8B", "head_dim", json!(127), "`head_dim` is odd"),
        ("Llama-3.1-8B", "rms_norm_eps", json!(0.0), "`rms_norm_eps` is 0, not above 0"),
        ("Llama-3.1-8B", "rope_theta", json!(1.0), "`rope_theta` is 1, not above 1"),
        ("Llama-3.1-8B", "rope_theta", json!(-3.0), "`rope_theta` is -3, not above 0"),
        ("Llama-3.1-8B", "rope_scaling", json!({ "type": "linear" }), "no `factor`"),
        ("Llama-3.1-8B", "rope_scaling", json!({ "type": "llama3", "factor": 8 }), "no `low_freq_factor`"),
        ("Llama-3.1-8B", "eos_token_id", json!(vec![1; 65]), "65 end tokens, at most 64"),
        ("Mistral-7B-v0.1", "sliding_window", json!(0), "`sliding_window` is 0"),
        ("Qwen3-0.6B", "head_dim", json!(null), "no `head_dim`"),
        ("Qwen3-0.6B", "layer_types", json!(["full_attention"]), "has 1 entries for 28 layers"),
        ("Qwen3-0.6B", "layer_types", json!(vec!["sliding_attention"; 28]), "there is no `sliding_window`"),
        ("Mixtral-8x7B", "num_local_experts", json!(null), "no `num_local_experts`"),
        ("Mixtral-8x7B", "num_experts_per_tok", json!(9), "`num_experts_per_tok` is 9, not within 1..=8"),
        ("Qwen3-30B-A3B", "num_experts", json!(5000), "`num_experts` is 5000"),
        ("gemma-2-2b", "attn_logit_softcapping", json!(-1.0), "`attn_logit_softcapping` is -1, not above 0"),
        ("gemma-2-2b", "query_pre_attn_scalar", json!(0), "`query_pre_attn_scalar` is 0"),
        ("gemma-3-1b", "sliding_window_pattern", json!(0), "`sliding_window_pattern` is 0"),
        ("all-MiniLM-L6-v2", "num_attention_heads", json!(7), "`num_attention_heads` 7 does not divide"),
        ("all-MiniLM-L6-v2", "layer_norm_eps", json!(0.0), "`layer_norm_eps` is 0, not above 0"),
        ("ms-marco-MiniLM-L6-v2", "type_vocab_size", json!(1), "`type_vocab_size` is 1"),
        ("bge-m3", "pad_token_id", json!(-1), "`pad_token_id` is -1"),
        ("bge-m3", "pad_token_id", json!(8193), "`pad_token_id` is 8193"),
        ("bge-m3", "num_hidden_layers", json!(1025), "`num_hidden_layers` is 1025"),
        ("gte-modernbert-base", "num_attention_heads", json!(256), "the width of a head is odd"),
        ("gte-modernbert-base", "global_attn_every_n_layers", json!(0), "`global_attn_every_n_layers` is 0"),
        ("gte-modernbert-base", "local_attention", json!(0), "`local_attention` is 0"),
        ("gte-modernbert-base", "global_rope_theta", json!(1.0), "`global_rope_theta` is 1, not above 1"),
        ("gte-modernbert-base", "local_rope_theta", json!(-1.0), "`local_rope_theta` is -1, not above 0"),
        ("gte-modernbert-base", "layer_types", json!(["full_attention"]), "has 1 entries for 22 layers"),
    ];
    for (name, field, value, text) in invalid {
        let error = judge(&changed(name, field, value.clone())).expect_err(text);
        assert_eq!(error.code(), code::MODEL_CONFIG_INVALID, "{name}: {error}");
        assert!(error.to_string().contains(text), "{name}, {field}: {error}");
    }
    for text in [&b""[..], b"{", b"[]", b"\xff", b"null"] {
        let files = std::iter::once(("config.json".to_owned(), text.to_vec())).collect();
        assert_eq!(servable(&files).expect_err("no configuration").code(), code::MODEL_CONFIG_INVALID);
    }
    let none = servable(&CheckpointFiles::default()).expect_err("no file");
    assert_eq!(none.to_string(), "model file `config.json` is invalid: there is none");
}

/// Checks the rules of an encoder's shape, on which its engine relies.
fn keeps_its_rules(shape: &EncoderShape, context_tokens_max: usize, at: &str) {
    assert!(shape.hidden.is_multiple_of(shape.heads) && !shape.layers.is_empty(), "{at}");
    assert!(context_tokens_max > 0 && shape.norm_epsilon > 0.0, "{at}");
    for layer in &shape.layers {
        assert!(layer.rotary.is_none_or(|index| index < shape.rotaries.len()), "{at}");
    }
    if let Some(table) = shape.positions {
        let first = table.padding.map_or(0, |padding| padding as usize + 1);
        assert!(first + context_tokens_max <= table.rows, "{at}");
    }
}

/// Every field of every published configuration takes values that no publisher writes. None may panic, and a
/// shape that is served keeps its rules.
#[test]
fn no_value_of_a_field_breaks_the_judgement() {
    let values = [
        json!(null),
        json!(true),
        json!(0),
        json!(1),
        json!(3),
        json!(-1),
        json!(0.5),
        json!(1e-300),
        json!(1e300),
        json!(u64::MAX),
        json!("x"),
        json!([]),
        json!([1, "x"]),
        json!({}),
        json!({ "rope_type": "yarn", "factor": 1e300, "original_max_position_embeddings": 1e-300 }),
        json!({ "type": "linear", "factor": -1 }),
    ];
    let mut served = 0;
    for (name, config) in PUBLISHED {
        let config: Value = serde_json::from_str(config).expect("JSON");
        let mut fields: Vec<String> = config.as_object().expect("an object").keys().cloned().collect();
        let others =
            ["layer_types", "rope_parameters", "mlp_only_layers", "partial_rotary_factor", "num_experts"];
        fields.extend(others.map(str::to_owned));
        for (field, value) in fields.iter().flat_map(|field| values.iter().map(move |value| (field, value))) {
            let mut config = config.clone();
            config[field.as_str()] = value.clone();
            let at = format!("{name}: {field} = {value}");
            let (shape, context_tokens_max) = match judge(&config) {
                Err(_) => continue,
                Ok(Servable { shape: ServableShape::Encoder(shape), context_tokens_max, .. }) => {
                    keeps_its_rules(&shape, context_tokens_max, &at);
                    continue;
                }
                Ok(Servable { shape: ServableShape::Decoder(shape), context_tokens_max, .. }) => {
                    (shape, context_tokens_max)
                }
            };
            served += 1;
            assert!(shape.heads.is_multiple_of(shape.key_value_heads) && shape.head_width > 0, "{at}");
            assert!(!shape.layers.is_empty() && context_tokens_max > 0, "{at}");
            assert!(shape.attention_scale > 0.0 && shape.attention_scale.is_finite(), "{at}");
            for layer in &shape.layers {
                assert!(layer.rotary < shape.rotaries.len() && layer.window != Some(0), "{at}");
                assert!(layer.feed_forward.inner() > 0, "{at}");
            }
            for rotary in &shape.rotaries {
                assert!(rotary.theta > 1.0 && rotary.theta.is_finite(), "{at}");
            }
        }
    }
    assert!(served > 500, "the control: {served} of the changes are harmless");
}

#[test]
fn an_unknown_architecture_is_refused_with_the_known_ones() {
    let error = judge(&changed("Qwen3-0.6B", "architectures", json!(["Qwen9ForCausalLM"]))).expect_err("new");
    assert_eq!(error.code(), code::MODEL_ARCHITECTURE_UNKNOWN);
    let text = error.to_string();
    assert!(text.starts_with("Qwen9ForCausalLM is not known; known: BertModel, Bert"), "{text}");
    for name in architectures() {
        assert!(text.contains(name), "{name}: {text}");
        let is_published = PUBLISHED.iter().any(|(_, config)| config.contains(&format!("\"{name}\"")));
        assert!(is_published, "{name} has a published configuration among the tests");
    }
}

#[test]
fn absent_and_null_soft_caps_differ_in_gemma_2() {
    let caps = |config: &Value| {
        let shape = decoder(config);
        (shape.attention_soft_cap, shape.logit_soft_cap)
    };
    assert_eq!(caps(&without("gemma-2-2b", "attn_logit_softcapping")), (Some(50.0), Some(30.0)));
    assert_eq!(caps(&changed("gemma-2-2b", "attn_logit_softcapping", json!(null))), (None, Some(30.0)));
    assert_eq!(caps(&changed("gemma-2-2b", "final_logit_softcapping", json!(null))), (Some(50.0), None));
    assert_eq!(caps(&changed("gemma-3-1b", "final_logit_softcapping", json!(20.0))), (None, Some(20.0)));
}

#[test]
fn biases_follow_the_configuration_where_a_family_has_the_choice() {
    let of = |name: &str, field: &str| decoder(&changed(name, field, json!(true))).biases;
    let all = ProjectionBiases { query_key_value: true, output: true, feed_forward: false };
    assert_eq!(of("Llama-3.1-8B", "attention_bias"), all);
    assert_eq!(of("Qwen3-0.6B", "attention_bias"), all);
    let inner = ProjectionBiases { feed_forward: true, ..ProjectionBiases::default() };
    assert_eq!(of("Llama-3.1-8B", "mlp_bias"), inner);
}

#[test]
fn end_tokens_are_one_or_many() {
    let of =
        |value: Value| judge(&changed("Qwen3-0.6B", "eos_token_id", value)).map(|served| served.end_tokens);
    assert_eq!(of(json!(5)), Ok(vec![5]));
    assert_eq!(of(json!([5, 6])), Ok(vec![5, 6]));
    assert_eq!(of(json!(null)), Ok(Vec::new()));
    assert_eq!(of(json!("five")).expect_err("text").code(), code::MODEL_CONFIG_INVALID);
}

#[test]
fn a_foreign_architecture_is_marked_and_found() {
    let marked = foreign_architecture("qwen9");
    assert_eq!(marked, "foreign/qwen9");
    assert!(is_foreign(&marked));
    for architecture in ["llama", "gguf", "file", "bert", ""] {
        assert!(!is_foreign(architecture), "{architecture}");
    }
}

#[test]
fn a_registered_architecture_says_the_task() {
    let registered = |name: &str, files: &[(&str, Value)]| {
        let config = published(name);
        let served = judge_with(&config, files).expect("servable");
        registered_architecture(config["model_type"].as_str().expect("a name"), &served)
    };
    for (name, files, architecture, task) in [
        ("Llama-3.1-8B", Vec::new(), "llama", Task::Generate),
        ("Qwen3-0.6B", modules("pooling_mode_lasttoken"), "qwen3-embedder", Task::Embed),
        ("all-MiniLM-L6-v2", Vec::new(), "bert", Task::Embed),
        ("bge-m3", Vec::new(), "xlm-roberta", Task::Embed),
        ("gte-modernbert-base", Vec::new(), "modernbert", Task::Embed),
        ("ms-marco-MiniLM-L6-v2", Vec::new(), "bert-reranker", Task::Rerank),
        ("bge-reranker-v2-m3", Vec::new(), "xlm-roberta-reranker", Task::Rerank),
    ] {
        let found = registered(name, &files);
        assert_eq!((found.as_str(), task_of(&found)), (architecture, Some(task)), "{name}");
    }
    for architecture in ["gguf", "file", "unknown", "", "foreign/bert"] {
        assert_eq!(task_of(architecture), None, "{architecture}");
    }
}
