//! Small encoders, cross-encoders and decoders that embed: configurations and files in the form in which the
//! families are published. `goldens/make_logits.py` has the same cases.

use crate::published;
use safetensors::Dtype;
use serde_json::{Value, json};
use serving::engine::text_frontend::{byte_tokenizer_json, pair_template};
use std::collections::BTreeMap;
use tempfile::TempDir;

/// A model as it is published.
pub(crate) struct EncoderCase {
    pub(crate) name: &'static str,
    pub(crate) config: Value,
    /// Mode of the pooling and whether a normalisation follows; `None` for a model without modules.
    pub(crate) modules: Option<(&'static str, bool)>,
    /// Whether the tensors of a decoder lack their prefix.
    pub(crate) is_bare: bool,
}

fn case(
    name: &'static str,
    architecture: &str,
    modules: Option<(&'static str, bool)>,
    fields: Value,
) -> EncoderCase {
    let shared = json!({
        "architectures": [architecture], "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4,
        "num_attention_heads": 4, "vocab_size": 260, "max_position_embeddings": 128, "pad_token_id": 0
    });
    let family = if architecture.starts_with("Bert") {
        json!({ "hidden_act": "gelu", "layer_norm_eps": 1e-12, "type_vocab_size": 2 })
    } else if architecture.starts_with("XLM") {
        json!({ "hidden_act": "gelu", "layer_norm_eps": 1e-5, "type_vocab_size": 1, "pad_token_id": 1,
            "max_position_embeddings": 130 })
    } else {
        json!({ "hidden_activation": "gelu", "norm_eps": 1e-5, "norm_bias": false, "attention_bias": false,
            "mlp_bias": false, "global_attn_every_n_layers": 3, "local_attention": 16,
            "global_rope_theta": 160_000.0, "local_rope_theta": 10_000.0, "classifier_pooling": "mean",
            "classifier_bias": false, "classifier_activation": "gelu" })
    };
    let config = published::with(&published::with(&shared, family), fields);
    EncoderCase { name, config, modules, is_bare: false }
}

/// Returns a case for every property of every family.
pub(crate) fn all() -> Vec<EncoderCase> {
    let one = json!({ "0": "LABEL_0" });
    let labels = |fields: Value| published::with(&json!({ "id2label": one }), fields);
    let identity = json!({ "activation_fn": "torch.nn.modules.linear.Identity" });
    let biased = json!({ "attention_bias": true, "mlp_bias": true, "norm_bias": true });
    let llama = published::config("LlamaForCausalLM", json!({ "hidden_act": "silu" }));
    let qwen3 = published::config("Qwen3ForCausalLM", json!({ "head_dim": 16, "rope_theta": 1_000_000 }));
    let decoder = |name, config, modules, is_bare| EncoderCase { name, config, modules, is_bare };
    vec![
        case("bert", "BertModel", Some(("mean", true)), json!({})),
        case("bert by its first position", "BertModel", Some(("cls", false)), json!({})),
        case(
            "bert cross-encoder",
            "BertForSequenceClassification",
            None,
            labels(json!({ "sentence_transformers": identity })),
        ),
        case("xlm-roberta", "XLMRobertaModel", Some(("cls", true)), json!({})),
        case("xlm-roberta cross-encoder", "XLMRobertaForSequenceClassification", None, labels(json!({}))),
        case("modernbert", "ModernBertModel", Some(("mean", false)), json!({})),
        case("modernbert with biases", "ModernBertModel", Some(("cls", true)), biased),
        case("modernbert cross-encoder", "ModernBertForSequenceClassification", None, labels(json!({}))),
        case(
            "modernbert cross-encoder by its first position",
            "ModernBertForSequenceClassification",
            None,
            labels(json!({ "classifier_pooling": "cls", "classifier_bias": true })),
        ),
        decoder("qwen3 embedder", qwen3, Some(("lasttoken", true)), true),
        decoder("llama embedder", llama, Some(("mean", false)), false),
    ]
}

impl EncoderCase {
    pub(crate) fn architecture(&self) -> &str {
        self.config["architectures"][0].as_str().expect("a name")
    }

    pub(crate) fn is_scoring(&self) -> bool {
        self.architecture().ends_with("ForSequenceClassification")
    }

    /// Returns this case with one field of its configuration changed.
    pub(crate) fn with(self, field: &str, value: Value) -> Self {
        let mut config = self.config.clone();
        config[field] = value;
        Self { config, ..self }
    }

    /// Returns names and shapes of the tensors.
    pub(crate) fn shapes(&self) -> BTreeMap<String, Vec<usize>> {
        if !self.architecture().ends_with("ForCausalLM") {
            return encoder_shapes(&self.config);
        }
        let name = |name: String| match self.is_bare {
            true => name.strip_prefix("model.").map_or(name.clone(), str::to_owned),
            false => name,
        };
        let all = published::shapes(&self.config).into_iter();
        all.filter(|(name, _)| name != "lm_head.weight").map(|(old, shape)| (name(old), shape)).collect()
    }

    /// Returns all tensors by their published names.
    pub(crate) fn tensors(&self) -> published::Tensors {
        let values = |(name, shape): (String, Vec<usize>)| {
            let values = published::values(&name, &shape);
            (name, values)
        };
        self.shapes().into_iter().map(values).collect()
    }

    /// Writes a model directory.
    pub(crate) fn write(&self, dtype: Dtype) -> TempDir {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let put = |name: &str, value: &Value| {
            let path = directory.path().join(name);
            std::fs::create_dir_all(path.parent().expect("a directory")).expect("made");
            std::fs::write(path, value.to_string()).expect("written");
        };
        put("config.json", &self.config);
        let mut tokenizer = byte_tokenizer_json(&["<|end|>"]);
        tokenizer["post_processor"] = pair_template("<|end|>", 256);
        put("tokenizer.json", &tokenizer);
        if let Some((mode, is_normalized)) = self.modules {
            let module = |path: &str, kind: &str| json!({ "path": path, "type": format!("a.models.{kind}") });
            let mut modules = vec![module("", "Transformer"), module("1_Pooling", "Pooling")];
            modules.extend(is_normalized.then(|| module("2_Normalize", "Normalize")));
            put("modules.json", &json!(modules));
            put("1_Pooling/config.json", &json!({ "pooling_mode": mode }));
        }
        published::write_weights(directory.path(), &self.shapes(), dtype);
        directory
    }
}

fn encoder_shapes(config: &Value) -> BTreeMap<String, Vec<usize>> {
    let need = |name: &str| config[name].as_u64().expect("a number") as usize;
    let architecture = config["architectures"][0].as_str().expect("a name");
    let is_scoring = architecture.ends_with("ForSequenceClassification");
    let is_modern = architecture.starts_with("ModernBert");
    let (hidden, inner, layers) = (need("hidden_size"), need("intermediate_size"), need("num_hidden_layers"));
    let flag = |name: &str| !is_modern || config[name] == true;
    let mut all = BTreeMap::new();
    let mut add = |name: String, shape: &[usize], is_biased: bool| {
        if is_biased {
            all.insert(format!("{name}.bias"), shape[..1].to_vec());
        }
        all.insert(format!("{name}.weight"), shape.to_vec());
    };
    let root = match (is_scoring, is_modern) {
        (false, _) => "",
        (true, true) => "model.",
        (true, false) if architecture.starts_with("XLM") => "roberta.",
        (true, false) => "bert.",
    };
    let square = [hidden, hidden];
    let (attention, feed_forward, norms) = (flag("attention_bias"), flag("mlp_bias"), flag("norm_bias"));
    if is_modern {
        add(format!("{root}embeddings.tok_embeddings"), &[need("vocab_size"), hidden], false);
        add(format!("{root}embeddings.norm"), &[hidden], norms);
        add(format!("{root}final_norm"), &[hidden], norms);
        for layer in 0..layers {
            let at = format!("{root}layers.{layer}");
            if layer > 0 {
                add(format!("{at}.attn_norm"), &[hidden], norms);
            }
            add(format!("{at}.attn.Wqkv"), &[3 * hidden, hidden], attention);
            add(format!("{at}.attn.Wo"), &square, attention);
            add(format!("{at}.mlp_norm"), &[hidden], norms);
            add(format!("{at}.mlp.Wi"), &[2 * inner, hidden], feed_forward);
            add(format!("{at}.mlp.Wo"), &[hidden, inner], feed_forward);
        }
    } else {
        add(format!("{root}embeddings.word_embeddings"), &[need("vocab_size"), hidden], false);
        let rows = need("max_position_embeddings");
        add(format!("{root}embeddings.position_embeddings"), &[rows, hidden], false);
        add(format!("{root}embeddings.token_type_embeddings"), &[need("type_vocab_size"), hidden], false);
        add(format!("{root}embeddings.LayerNorm"), &[hidden], true);
        for layer in 0..layers {
            let at = format!("{root}encoder.layer.{layer}");
            for part in ["self.query", "self.key", "self.value", "output.dense"] {
                add(format!("{at}.attention.{part}"), &square, true);
            }
            add(format!("{at}.attention.output.LayerNorm"), &[hidden], true);
            add(format!("{at}.intermediate.dense"), &[inner, hidden], true);
            add(format!("{at}.output.dense"), &[hidden, inner], true);
            add(format!("{at}.output.LayerNorm"), &[hidden], true);
        }
    }
    if is_scoring {
        add_head(&mut add, root, hidden, config);
    }
    all
}

/// Adds the tensors of a cross-encoder's head.
fn add_head(add: &mut dyn FnMut(String, &[usize], bool), root: &str, hidden: usize, config: &Value) {
    let classifier = match root {
        "bert." => {
            add("bert.pooler.dense".to_owned(), &[hidden, hidden], true);
            "classifier"
        }
        "roberta." => {
            add("classifier.dense".to_owned(), &[hidden, hidden], true);
            "classifier.out_proj"
        }
        _ => {
            add("head.dense".to_owned(), &[hidden, hidden], config["classifier_bias"] == true);
            add("head.norm".to_owned(), &[hidden], config["norm_bias"] == true);
            "classifier"
        }
    };
    add(classifier.to_owned(), &[1, hidden], true);
}
