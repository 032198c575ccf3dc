"""Makes `logits.json`: logits of small random decoders, as `transformers` computes them.

    pip install torch transformers numpy
    python serving/tests/goldens/make_logits.py

A run on a CPU takes less than a minute. The configurations have the form in which each family is published.
The weights come from a generator that the test of the file has too (`values` in `engine/published.rs`), so
the file holds none. Each model is loaded from a directory, as a published one is, and must use every tensor.
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


def main():
    torch.manual_seed(0)
    torch.set_num_threads(1)
    models = [golden(index, *model) for index, model in enumerate(MODELS)]
    made_with = {"transformers": transformers.__version__, "torch": torch.__version__}
    goldens = {"version": VERSION, "made_with": made_with, "models": models}
    path = pathlib.Path(__file__).with_name("logits.json")
    # One line per model, so that a difference shows the models that changed.
    lines = ",\n".join(json.dumps(model, separators=(",", ":")) for model in models)
    head = json.dumps(goldens | {"models": []})[: -len("]}")]
    path.write_text(f"{head}\n{lines}\n]}}\n")
    json.loads(path.read_text())
    print(f"{len(models)} models, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
