//! Tests of encoders and of models that embed: families by their published configurations, and the files of
//! sentence-transformers.

use super::*;

/// Returns the reaches of all layers as text: `w` is a layer with a window and `.` one without.
fn reaches(shape: &EncoderShape) -> String {
    shape.layers.iter().map(|layer| if layer.reach.is_some() { 'w' } else { '.' }).collect()
}

#[test]
fn every_published_encoder_is_served_in_its_shape() {
    // Layers, heads, hidden width, inner width, token types, context.
    let expected = [
        ("all-MiniLM-L6-v2", [6, 12, 384, 1536, 2, 512]),
        ("ms-marco-MiniLM-L6-v2", [6, 12, 384, 1536, 2, 512]),
        ("bge-m3", [24, 16, 1024, 4096, 1, 8192]),
        ("bge-reranker-v2-m3", [24, 16, 1024, 4096, 1, 8192]),
        ("gte-modernbert-base", [22, 12, 768, 1152, 0, 8192]),
        ("gte-reranker-modernbert-base", [22, 12, 768, 1152, 0, 8192]),
    ];
    for (name, expected) in expected {
        let shape = encoder(&published(name));
        let context = judge(&published(name)).expect("servable").context_tokens_max;
        let found =
            [shape.layers.len(), shape.heads, shape.hidden, shape.intermediate, shape.token_types, context];
        assert_eq!(found, expected, "{name}");
        let is_modern = name.contains("modernbert");
        assert_eq!(shape.is_gated, is_modern, "{name}");
        assert_eq!(shape.norms == NormOrder::Before, is_modern, "{name}");
        assert_eq!(shape.positions.is_none(), is_modern, "{name}");
        assert_eq!(shape.has_typed_pairs, shape.token_types == 2, "{name}");
        let biases = shape.biases;
        let are_biased = [biases.attention, biases.feed_forward, biases.norms];
        assert_eq!(are_biased, [!is_modern; 3], "{name}");
    }
}

#[test]
fn positions_of_xlm_roberta_follow_its_padding() {
    let table = |config: &Value| encoder(config).positions.expect("a table");
    assert_eq!(table(&published("bge-m3")), PositionTable { rows: 8194, padding: Some(1) });
    assert_eq!(table(&without("bge-m3", "pad_token_id")).padding, Some(1), "the default of its publisher");
    let later = changed("bge-m3", "pad_token_id", json!(5));
    assert_eq!(judge(&later).expect("servable").context_tokens_max, 8188);
    assert_eq!(table(&published("all-MiniLM-L6-v2")).padding, None);
}

#[test]
fn layers_of_modern_bert_differ_as_published() {
    let shape = encoder(&published("gte-modernbert-base"));
    assert_eq!(reaches(&shape), ".ww.ww.ww.ww.ww.ww.ww.");
    assert_eq!(shape.layers[1].reach, Some(64), "half of the window on each side");
    assert!(shape.layers.iter().all(|layer| layer.rotary == Some(usize::from(layer.reach.is_some()))));
    let normed: Vec<bool> = shape.layers.iter().map(|layer| layer.has_attention_norm).collect();
    assert!(!normed[0] && normed[1..].iter().all(|is_normed| *is_normed), "all but the first");
    let plain = |theta: f64| Rotary { theta, scaling: RotaryScaling::None };
    assert_eq!(shape.rotaries, [plain(160_000.0), plain(10_000.0)]);

    let same = encoder(&changed("gte-modernbert-base", "local_rope_theta", json!(null)));
    assert_eq!(same.rotaries, [plain(160_000.0); 2], "`null` is the base of the other layers");
    let absent = encoder(&without("gte-modernbert-base", "local_rope_theta"));
    assert_eq!(absent.rotaries[1], plain(10_000.0));

    let mut newer = without("gte-modernbert-base", "global_rope_theta");
    newer["layer_types"] = (0..22)
        .map(|index| if index < 2 { "sliding_attention" } else { "full_attention" })
        .collect::<Vec<_>>()
        .into();
    newer["rope_parameters"] = json!({
        "full_attention": { "rope_type": "default", "rope_theta": 80_000.0 },
        "sliding_attention": { "rope_type": "default", "rope_theta": 5_000.0 }
    });
    let newer = encoder(&newer);
    assert_eq!(reaches(&newer), format!("ww{}", ".".repeat(20)));
    assert_eq!(newer.rotaries, [plain(80_000.0), plain(5_000.0)]);
}

#[test]
fn heads_and_scores_are_those_of_the_family_and_its_publisher() {
    let score = |config: &Value| match encoder(config).output {
        EncoderOutput::Score(score) => score,
        EncoderOutput::Vector(_) => unreachable!("a cross-encoder"),
    };
    let marco = score(&published("ms-marco-MiniLM-L6-v2"));
    assert_eq!((marco.head, marco.pooling), (ScoreHead::Pooler, Pooling::First));
    assert_eq!(marco.activation, ScoreActivation::Identity, "as its file says");
    let bge = score(&published("bge-reranker-v2-m3"));
    assert_eq!((bge.head, bge.activation), (ScoreHead::Projection, ScoreActivation::Sigmoid));
    let gte = score(&published("gte-reranker-modernbert-base"));
    assert_eq!((gte.head, gte.pooling), (ScoreHead::Prediction { is_biased: false }, Pooling::Mean));
    let first = score(&without("gte-reranker-modernbert-base", "classifier_pooling"));
    assert_eq!(first.pooling, Pooling::First, "the default of its publisher");
    let older = "sbert_ce_default_activation_function";
    for (function, expected) in [
        ("torch.nn.modules.linear.Identity", ScoreActivation::Identity),
        ("torch.nn.modules.activation.Sigmoid", ScoreActivation::Sigmoid),
    ] {
        assert_eq!(score(&changed("bge-reranker-v2-m3", older, json!(function))).activation, expected);
    }
    let counted = changed("bge-reranker-v2-m3", "id2label", json!(null));
    assert!(judge(&counted).is_err(), "two labels are the default");
    let mut counted = counted;
    counted["num_labels"] = json!(1);
    assert_eq!(score(&counted), bge);
}

/// Returns the vector that the files beside a configuration define.
fn vector(name: &str, files: &[(&str, Value)]) -> Result<Option<VectorShape>, CheckpointError> {
    Ok(match judge_with(&published(name), files)?.shape {
        ServableShape::Decoder(shape) => shape.vector,
        ServableShape::Encoder(shape) => match shape.output {
            EncoderOutput::Vector(vector) => Some(vector),
            EncoderOutput::Score(_) => None,
        },
    })
}

#[test]
fn pooling_is_read_in_every_published_form() {
    let of = |pooling| Some(VectorShape { pooling, is_normalized: true });
    for (flag, expected) in [
        ("pooling_mode_mean_tokens", Pooling::Mean),
        ("pooling_mode_cls_token", Pooling::First),
        ("pooling_mode_lasttoken", Pooling::Last),
    ] {
        for name in ["bge-m3", "gte-modernbert-base", "Qwen3-0.6B"] {
            assert_eq!(vector(name, &modules(flag)), Ok(of(expected)), "{name}");
        }
    }
    for (mode, expected) in [("mean", Pooling::Mean), ("cls", Pooling::First), ("lasttoken", Pooling::Last)] {
        let mut files = modules("x");
        files[1].1 = json!({ "embedding_dimension": 8, "pooling_mode": mode, "include_prompt": true });
        assert_eq!(vector("bge-m3", &files), Ok(of(expected)), "{mode}");
    }
    let plain = VectorShape { pooling: Pooling::Mean, is_normalized: false };
    assert_eq!(vector("bge-m3", &[]), Ok(Some(plain)), "the default of sentence-transformers");
    assert_eq!(vector("Qwen3-0.6B", &[]), Ok(None), "a decoder without modules generates");
    let kinds = json!([
        { "path": "", "type": "sentence_transformers.base.modules.transformer.Transformer", "name": "0" },
        { "path": "1_Pooling", "type": "sentence_transformers.sentence_transformer.modules.pooling.Pooling" }
    ]);
    let files = [("modules.json", kinds), modules("pooling_mode_cls_token").remove(1)];
    let first = VectorShape { pooling: Pooling::First, is_normalized: false };
    assert_eq!(vector("bge-m3", &files), Ok(Some(first)));
}

#[test]
fn modules_that_no_engine_serves_are_refused_by_name() {
    let list = |kinds: &[&str]| {
        let module = |kind: &&str| {
            let path = if *kind == "Transformer" { "" } else { "1_Pooling" };
            json!({ "path": path, "type": format!("sentence_transformers.models.{kind}") })
        };
        vec![
            ("modules.json", kinds.iter().map(module).collect::<Vec<_>>().into()),
            ("1_Pooling/config.json", json!({ "pooling_mode_mean_tokens": true })),
        ]
    };
    let pooled = |fields: Value| {
        let mut files = list(&["Transformer", "Pooling"]);
        files[1].1 = fields;
        files
    };
    let beside = |path: &'static str, fields: Value| vec![(path, fields)];
    let prompts = |name: Value| {
        let prompts = json!({ "prompts": { "query": "query: ", "none": "" }, "default_prompt_name": name });
        beside("config_sentence_transformers.json", prompts)
    };
    let mut moved = list(&["Transformer", "Pooling"]);
    moved[0].1[0]["path"] = json!("0_Transformer");
    for (files, text) in [
        (list(&["Transformer", "Pooling", "Dense"]), "the module `Dense`"),
        (list(&["Transformer", "WordWeights"]), "the module `WordWeights`"),
        (list(&["Pooling", "Transformer"]), "the module `Transformer` in this order"),
        (list(&["Transformer", "Pooling", "Pooling"]), "the module `Pooling` in this order"),
        (moved, "a transformer in `0_Transformer`"),
        (pooled(json!({ "pooling_mode_max_tokens": true })), "the pooling in `1_Pooling/config.json`"),
        (pooled(json!({})), "the pooling in `1_Pooling/config.json`"),
        (
            pooled(json!({ "pooling_mode_mean_tokens": true, "pooling_mode_cls_token": true })),
            "the pooling in",
        ),
        (
            pooled(json!({ "pooling_mode_mean_tokens": true, "pooling_mode_weightedmean_tokens": true })),
            "the pooling in",
        ),
        (pooled(json!({ "pooling_mode": "max" })), "the pooling in"),
        (pooled(json!({ "pooling_mode": ["mean", "cls"] })), "the pooling in"),
        (beside("sentence_bert_config.json", json!({ "do_lower_case": true })), "`do_lower_case` in"),
        (prompts(json!("query")), "`default_prompt_name`"),
        (prompts(json!("absent")), "`default_prompt_name`"),
    ] {
        for name in ["bge-m3", "Qwen3-0.6B"] {
            let error = vector(name, &files).expect_err(text);
            assert_eq!(error.code(), code::MODEL_FEATURE_UNSUPPORTED, "{name}: {error}");
            assert!(error.to_string().starts_with(&format!("model uses {text}")), "{name}: {error}");
        }
    }
    for harmless in [json!(null), json!("none")] {
        assert!(vector("bge-m3", &prompts(harmless)).is_ok(), "the control");
    }
    let after_head = vector("ms-marco-MiniLM-L6-v2", &list(&["Transformer", "Pooling"]));
    assert!(after_head.is_err_and(|error| error.to_string().contains("the module `Pooling`")));
    assert_eq!(vector("ms-marco-MiniLM-L6-v2", &list(&["Transformer"])), Ok(None));
}

#[test]
fn invalid_modules_are_refused_with_their_file() {
    let pooling =
        |path: &str| json!([{ "path": "", "type": "a.Transformer" }, { "path": path, "type": "a.Pooling" }]);
    for (path, content, text) in [
        ("modules.json", json!({}), "model file `modules.json` is invalid"),
        ("modules.json", json!([]), "no module `Pooling`"),
        ("modules.json", pooling("1_Pooling"), "there is no `1_Pooling/config.json`"),
        ("modules.json", pooling("../up"), "the path `../up` is not served"),
        ("modules.json", pooling(""), "the path `` is not served"),
        ("sentence_bert_config.json", json!({ "max_seq_length": 0 }), "`max_seq_length` is 0"),
        ("sentence_roberta_config.json", json!([]), "model file `sentence_roberta_config.json` is invalid"),
    ] {
        let error = vector("bge-m3", &[(path, content)]).expect_err(text);
        assert_eq!(error.code(), code::MODEL_CONFIG_INVALID, "{error}");
        assert!(error.to_string().contains(text), "{error}");
    }
}

#[test]
fn the_longest_text_is_the_least_that_a_file_says() {
    let context = |name: &str, limit: usize| {
        let files = [("sentence_bert_config.json", json!({ "max_seq_length": limit }))];
        judge_with(&published(name), &files).expect("servable").context_tokens_max
    };
    assert_eq!(context("all-MiniLM-L6-v2", 256), 256);
    assert_eq!(context("all-MiniLM-L6-v2", 4096), 512);
    assert_eq!(context("bge-m3", 8192), 8192);
    assert_eq!(context("Qwen3-0.6B", 1000), 1000);
}
