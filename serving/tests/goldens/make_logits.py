"""Makes `logits.json` and `encodings.json`: logits of small random decoders, and vectors and scores of small
random encoders, as `transformers` computes them.

    pip install torch transformers numpy
    python serving/tests/goldens/make_logits.py

A run on a CPU takes less than a minute. The configurations have the form in which each family is published.
The weights come from a generator that the tests of the files have too (`values` in `engine/published.rs`), so
the files hold none. Each model is loaded from a directory, as a published one is, and must use every tensor.
The cases of encoders are those of `engine/published_encoders.rs`, under the same names: the test compares
them. Pooling and score functions are those that sentence-transformers defines for the published files.
"""

import json
import math
import pathlib
import tempfile

import numpy
import torch
import transformers
from safetensors.numpy import save_file

VERSION = 1
LENGTH = 70
ENDS = [33, 70]

BASE = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 260, "max_position_embeddings": 128, "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0, "tie_word_embeddings": False, "attention_bias": False, "eos_token_id": 256,
    "bos_token_id": 1, "pad_token_id": 0, "torch_dtype": "float32", "hidden_act": "silu",
}
GEMMA = {
    "head_dim": 16, "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 24, "sliding_window": 24, "tie_word_embeddings": True,
}
EXPERTS = {
    "head_dim": 16, "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
    "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": [1], "use_sliding_window": False,
    "sliding_window": None,
}
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
# The factor is max_position_embeddings / original_max_position_embeddings, by which some versions replace it.
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}

MODELS = [
    ("llama", "llama", "LlamaForCausalLM", {"rope_scaling": LLAMA3}),
    ("llama with biases", "llama", "LlamaForCausalLM",
     {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True,
      "rope_scaling": {"rope_type": "linear", "factor": 2.0}}),
    ("llama with dynamic rotation", "llama", "LlamaForCausalLM",
     {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}),
    ("mistral", "mistral", "MistralForCausalLM", {"sliding_window": 24, "head_dim": 12}),
    ("mistral without a window", "mistral", "MistralForCausalLM", {"sliding_window": None, "head_dim": 8}),
    ("mixtral", "mixtral", "MixtralForCausalLM",
     {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None}),
    ("qwen2", "qwen2", "Qwen2ForCausalLM", {"rope_scaling": YARN, "use_sliding_window": False}),
    ("qwen2 with windows", "qwen2", "Qwen2ForCausalLM",
     {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1}),
    ("qwen3", "qwen3", "Qwen3ForCausalLM", {"head_dim": 16, "rope_theta": 1000000.0}),
    ("qwen3-moe", "qwen3_moe", "Qwen3MoeForCausalLM", EXPERTS),
    ("qwen3-moe without normalization", "qwen3_moe", "Qwen3MoeForCausalLM",
     EXPERTS | {"norm_topk_prob": False, "decoder_sparse_step": 2}),
    ("gemma2", "gemma2", "Gemma2ForCausalLM",
     GEMMA | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}),
    ("gemma3", "gemma3_text", "Gemma3ForCausalLM",
     GEMMA | {"sliding_window_pattern": 3, "rope_theta": 1000000.0, "rope_local_base_freq": 10000.0,
              "rope_scaling": {"rope_type": "linear", "factor": 8.0},
              "attn_logit_softcapping": None, "final_logit_softcapping": None}),
]


ENCODER_BASE = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
    "vocab_size": 260, "max_position_embeddings": 128, "pad_token_id": 0, "torch_dtype": "float32",
}
BERT = {"model_type": "bert", "hidden_act": "gelu", "layer_norm_eps": 1e-12, "type_vocab_size": 2}
XLM_ROBERTA = {
    "model_type": "xlm-roberta", "hidden_act": "gelu", "layer_norm_eps": 1e-5, "type_vocab_size": 1,
    "pad_token_id": 1, "max_position_embeddings": 130, "bos_token_id": 0, "eos_token_id": 2,
}
MODERN_BERT = {
    "model_type": "modernbert", "hidden_activation": "gelu", "norm_eps": 1e-5, "norm_bias": False,
    "attention_bias": False, "mlp_bias": False, "global_attn_every_n_layers": 3, "local_attention": 16,
    "global_rope_theta": 160000.0, "local_rope_theta": 10000.0, "classifier_pooling": "mean",
    "classifier_bias": False, "classifier_activation": "gelu", "reference_compile": False,
    "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2,
}
LABEL = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
IDENTITY = {"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}}
BIASED = {"attention_bias": True, "mlp_bias": True, "norm_bias": True}
LLAMA_EMBEDDER = BASE | {"model_type": "llama", "eos_token_id": [256, 7]}
QWEN3_EMBEDDER = BASE | {
    "model_type": "qwen3", "head_dim": 16, "rope_theta": 1000000, "eos_token_id": [256, 7],
}

# Name, architecture, mode of the pooling and whether a normalisation follows, configuration, whether the
# tensors lack the prefix of a decoder.
ENCODERS = [
    ("bert", "BertModel", ("mean", True), ENCODER_BASE | BERT, False),
    ("bert by its first position", "BertModel", ("cls", False), ENCODER_BASE | BERT, False),
    ("bert cross-encoder", "BertForSequenceClassification", None,
     ENCODER_BASE | BERT | LABEL | IDENTITY, False),
    ("xlm-roberta", "XLMRobertaModel", ("cls", True), ENCODER_BASE | XLM_ROBERTA, False),
    ("xlm-roberta cross-encoder", "XLMRobertaForSequenceClassification", None,
     ENCODER_BASE | XLM_ROBERTA | LABEL, False),
    ("modernbert", "ModernBertModel", ("mean", False), ENCODER_BASE | MODERN_BERT, False),
    ("modernbert with biases", "ModernBertModel", ("cls", True), ENCODER_BASE | MODERN_BERT | BIASED, False),
    ("modernbert cross-encoder", "ModernBertForSequenceClassification", None,
     ENCODER_BASE | MODERN_BERT | LABEL, False),
    ("modernbert cross-encoder by its first position", "ModernBertForSequenceClassification", None,
     ENCODER_BASE | MODERN_BERT | LABEL | {"classifier_pooling": "cls", "classifier_bias": True}, False),
    ("qwen3 embedder", "Qwen3ForCausalLM", ("lasttoken", True), QWEN3_EMBEDDER, True),
    ("llama embedder", "LlamaForCausalLM", ("mean", False), LLAMA_EMBEDDER, False),
]
ENCODER_LENGTHS = [1, 33, 70]


def values(name, shape):
    """Returns a tensor's values: SplitMix64 from the name's FNV-1a hash on, as multiples of 2^-17."""
    seed = 0xCBF29CE484222325
    for byte in name.encode():
        seed = ((seed ^ byte) * 0x100000001B3) % 2**64
    count = math.prod(shape)
    with numpy.errstate(over="ignore"):
        state = numpy.arange(1, count + 1, dtype=numpy.uint64) * numpy.uint64(0x9E3779B97F4A7C15)
        state += numpy.uint64(seed)
        state = (state ^ (state >> numpy.uint64(30))) * numpy.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> numpy.uint64(27))) * numpy.uint64(0x94D049BB133111EB)
        state = (state ^ (state >> numpy.uint64(31))) >> numpy.uint64(48)
    random = (state.astype(numpy.float64) / 65536.0 - 0.5) * 0.5
    if len(shape) == 1 and name.endswith("weight"):
        random += 1.0
    return random.astype(numpy.float32).reshape(shape)


def networks(config, layer):
    """Returns the router of a layer and its networks: prefix, names (gate, up, down), inner width."""
    names = ["gate_proj", "up_proj", "down_proj"]
    if config["architectures"] == ["MixtralForCausalLM"]:
        count = config["num_local_experts"]
        prefixes = [f"block_sparse_moe.experts.{expert}" for expert in range(count)]
        parts = [(prefix, ["w1", "w3", "w2"], config["intermediate_size"]) for prefix in prefixes]
        return ("block_sparse_moe.gate", count), parts
    is_sparse = "num_experts" in config and layer not in config["mlp_only_layers"]
    if is_sparse and (layer + 1) % config["decoder_sparse_step"] == 0:
        count = config["num_experts"]
        inner = config["moe_intermediate_size"]
        return ("mlp.gate", count), [(f"mlp.experts.{expert}", names, inner) for expert in range(count)]
    return None, [("mlp", names, config["intermediate_size"])]


def shapes(config):
    """Returns names and shapes of a model's tensors, as published."""
    architecture = config["architectures"][0]
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    width = config.get("head_dim") or hidden // heads
    query, shared = heads * width, config["num_key_value_heads"] * width
    all_shapes = {"model.embed_tokens.weight": [config["vocab_size"], hidden], "model.norm.weight": [hidden]}
    if not config["tie_word_embeddings"]:
        all_shapes["lm_head.weight"] = [config["vocab_size"], hidden]
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        norms = ["input_layernorm", "post_attention_layernorm"]
        if architecture.startswith("Gemma"):
            norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
        for norm in norms:
            all_shapes[f"{at}.{norm}.weight"] = [hidden]
        for part, outputs, inputs in [
            ("q", query, hidden), ("k", shared, hidden), ("v", shared, hidden), ("o", hidden, query)
        ]:
            all_shapes[f"{at}.self_attn.{part}_proj.weight"] = [outputs, inputs]
            if config["attention_bias"] or (architecture == "Qwen2ForCausalLM" and part != "o"):
                all_shapes[f"{at}.self_attn.{part}_proj.bias"] = [outputs]
        if architecture.startswith(("Qwen3", "Gemma3")):
            all_shapes[f"{at}.self_attn.q_norm.weight"] = [width]
            all_shapes[f"{at}.self_attn.k_norm.weight"] = [width]
        router, parts = networks(config, layer)
        if router:
            all_shapes[f"{at}.{router[0]}.weight"] = [router[1], hidden]
        for prefix, names, inner in parts:
            for name, shape in zip(names, [[inner, hidden], [inner, hidden], [hidden, inner]]):
                all_shapes[f"{at}.{prefix}.{name}.weight"] = shape
                if config.get("mlp_bias"):
                    all_shapes[f"{at}.{prefix}.{name}.bias"] = shape[:1]
    return all_shapes


def load(config):
    """Loads a model from a directory, and asserts that it uses exactly the published tensors."""
    with tempfile.TemporaryDirectory() as directory:
        folder = pathlib.Path(directory)
        (folder / "config.json").write_text(json.dumps(config))
        tensors = {name: values(name, shape) for name, shape in shapes(config).items()}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        model, info = transformers.AutoModelForCausalLM.from_pretrained(
            directory, attn_implementation="eager", output_loading_info=True
        )
    for kind in ["missing_keys", "unexpected_keys", "mismatched_keys"]:
        left = {key for key in info.get(kind) or [] if key != "lm_head.weight"}
        assert not left, f"{config['architectures']}: {kind}: {left}"
    return model.float().eval()


def golden(index, name, model_type, architecture, fields):
    """Computes one model's logits."""
    config = BASE | {"model_type": model_type, "architectures": [architecture]} | fields
    tokens = [(17 * position * position + 31 * position + 7 * index) % 256 for position in range(LENGTH)]
    with torch.no_grad():
        logits = load(config)(torch.tensor([tokens]), use_cache=False).logits[0]
    chosen = [[round(float(x), 6) for x in logits[end - 1]] for end in ENDS]
    assert all(math.isfinite(x) for row in chosen for x in row), name
    return {"name": name, "config": config, "tokens": tokens, "ends": ENDS, "logits": chosen}


def encoder_shapes(config):
    """Returns names and shapes of an encoder's tensors, as published."""
    architecture = config["architectures"][0]
    is_scoring = architecture.endswith("ForSequenceClassification")
    is_modern = architecture.startswith("ModernBert")
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    all_shapes = {}

    def add(name, shape, is_biased):
        all_shapes[f"{name}.weight"] = shape
        if is_biased:
            all_shapes[f"{name}.bias"] = shape[:1]

    prefix = {"bert": "bert.", "xlm-roberta": "roberta.", "modernbert": "model."}[config["model_type"]]
    root = prefix if is_scoring else ""
    if is_modern:
        attention, mlp, norms = config["attention_bias"], config["mlp_bias"], config["norm_bias"]
        add(f"{root}embeddings.tok_embeddings", [config["vocab_size"], hidden], False)
        add(f"{root}embeddings.norm", [hidden], norms)
        add(f"{root}final_norm", [hidden], norms)
        for layer in range(config["num_hidden_layers"]):
            at = f"{root}layers.{layer}"
            if layer > 0:
                add(f"{at}.attn_norm", [hidden], norms)
            add(f"{at}.attn.Wqkv", [3 * hidden, hidden], attention)
            add(f"{at}.attn.Wo", [hidden, hidden], attention)
            add(f"{at}.mlp_norm", [hidden], norms)
            add(f"{at}.mlp.Wi", [2 * inner, hidden], mlp)
            add(f"{at}.mlp.Wo", [hidden, inner], mlp)
    else:
        rows = {"word": "vocab_size", "position": "max_position_embeddings", "token_type": "type_vocab_size"}
        for table, field in rows.items():
            add(f"{root}embeddings.{table}_embeddings", [config[field], hidden], False)
        add(f"{root}embeddings.LayerNorm", [hidden], True)
        for layer in range(config["num_hidden_layers"]):
            at = f"{root}encoder.layer.{layer}"
            for part in ["self.query", "self.key", "self.value", "output.dense"]:
                add(f"{at}.attention.{part}", [hidden, hidden], True)
            add(f"{at}.attention.output.LayerNorm", [hidden], True)
            add(f"{at}.intermediate.dense", [inner, hidden], True)
            add(f"{at}.output.dense", [hidden, inner], True)
            add(f"{at}.output.LayerNorm", [hidden], True)
    if is_scoring:
        if config["model_type"] == "bert":
            add("bert.pooler.dense", [hidden, hidden], True)
        elif config["model_type"] == "xlm-roberta":
            add("classifier.dense", [hidden, hidden], True)
        else:
            add("head.dense", [hidden, hidden], config["classifier_bias"])
            add("head.norm", [hidden], config["norm_bias"])
        is_projection = config["model_type"] == "xlm-roberta"
        add("classifier.out_proj" if is_projection else "classifier", [1, hidden], True)
    return all_shapes


def load_encoder(config, is_bare):
    """Loads a model that embeds or scores, and asserts that it uses exactly the published tensors."""
    architecture = config["architectures"][0]
    if architecture.endswith("ForCausalLM"):
        decoder = {name: shape for name, shape in shapes(config).items() if name != "lm_head.weight"}
        prefix = "model." if is_bare else ""
        all_shapes = {name.removeprefix(prefix): shape for name, shape in decoder.items()}
    else:
        all_shapes = encoder_shapes(config)
    options = {"attn_implementation": "eager", "output_loading_info": True}
    loader = transformers.AutoModel
    if architecture.endswith("ForSequenceClassification"):
        loader = transformers.AutoModelForSequenceClassification
    elif config["model_type"] in ("bert", "xlm-roberta"):
        options["add_pooling_layer"] = False
    with tempfile.TemporaryDirectory() as directory:
        folder = pathlib.Path(directory)
        (folder / "config.json").write_text(json.dumps(config))
        tensors = {name: values(name, shape) for name, shape in all_shapes.items()}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        model, info = loader.from_pretrained(directory, **options)
    for kind in ["missing_keys", "unexpected_keys", "mismatched_keys"]:
        left = set(info.get(kind) or [])
        assert not left, f"{config['architectures']}: {kind}: {left}"
    return model.float().eval()


def encode(model, config, modules, tokens, second):
    """Computes the vector or, as its only number, the score of a text; its second type begins at `second`."""
    mask = torch.ones(1, len(tokens), dtype=torch.long)
    inputs = {"input_ids": torch.tensor([tokens]), "attention_mask": mask}
    if config["model_type"] == "bert":
        types = [int(index >= second) for index in range(len(tokens))]
        inputs["token_type_ids"] = torch.tensor([types])
    with torch.no_grad():
        outputs = model(**inputs)
    if modules is None:
        score = outputs.logits[0]
        assert score.shape == (1,), score.shape
        return score if "sentence_transformers" in config else torch.sigmoid(score)
    states = outputs.last_hidden_state[0]
    mode, is_normalized = modules
    vector = {"mean": states.mean(0), "cls": states[0], "lasttoken": states[-1]}[mode]
    return torch.nn.functional.normalize(vector, dim=0) if is_normalized else vector


def encoder_golden(index, name, architecture, modules, fields, is_bare):
    """Computes one model's results, of texts alone."""
    config = {"architectures": [architecture]} | fields
    model = load_encoder(config, is_bare)
    texts = []
    for length in ENCODER_LENGTHS:
        tokens = [(17 * place * place + 31 * place + 7 * index + 3) % 256 for place in range(length)]
        if length > 20:
            # Tokens of padding among others: they have a position of their own in XLM-R.
            tokens[3], tokens[20] = 1, 0
        second = length if modules else length // 3
        result = [round(float(x), 6) for x in encode(model, config, modules, tokens, second)]
        assert all(math.isfinite(x) for x in result), name
        texts.append({"tokens": tokens, "second": second, "result": result})
    pooling, is_normalized = modules or (None, False)
    head = {"name": name, "config": config, "pooling": pooling, "is_normalized": is_normalized}
    return head | {"texts": texts}


def write(name, models):
    made_with = {"transformers": transformers.__version__, "torch": torch.__version__}
    goldens = {"version": VERSION, "made_with": made_with, "models": models}
    path = pathlib.Path(__file__).with_name(name)
    # One line per model, so that a difference shows the models that changed.
    lines = ",\n".join(json.dumps(model, separators=(",", ":")) for model in models)
    head = json.dumps(goldens | {"models": []})[: -len("]}")]
    path.write_text(f"{head}\n{lines}\n]}}\n")
    json.loads(path.read_text())
    print(f"{name}: {len(models)} models, {path.stat().st_size} bytes")


def main():
    torch.manual_seed(0)
    torch.set_num_threads(1)
    write("logits.json", [golden(index, *model) for index, model in enumerate(MODELS)])
    write("encodings.json", [encoder_golden(index, *model) for index, model in enumerate(ENCODERS)])


if __name__ == "__main__":
    main()
