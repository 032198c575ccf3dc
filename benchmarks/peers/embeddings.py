"""The peers of `cargo xtask bench embeddings`: sentence-transformers (PyTorch) and onnxruntime, in one process.

Reads one JSON object a line, {"peer": NAME, "texts": [...], "repeat": N}, and answers each with
{"seconds": [...], "vectors": [[...], ...]}: the time of every repetition, tokenizing included, and the last
result. Arguments: model directory, threads, a path for the exported ONNX model, PyTorch's device.

onnxruntime has no model of its own here, so the same weights are exported once with PyTorch and fused by
onnxruntime's own BERT optimizer; pooling and normalisation are done in numpy.
"""

import json
import os
import sys
import time

MODEL, THREADS, EXPORTED, DEVICE = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["RAYON_NUM_THREADS"] = str(THREADS)  # the tokenizers' threads

import numpy
import onnxruntime
import sentence_transformers
import torch
from tokenizers import Tokenizer
from transformers import BertModel

BATCH = 32  # sentence-transformers' own default

torch.set_num_threads(THREADS)


def sentence_transformer():
    model = sentence_transformers.SentenceTransformer(MODEL, device=DEVICE)
    return lambda texts: model.encode(texts, batch_size=BATCH, show_progress_bar=False)


class States(torch.nn.Module):
    """The encoder with nothing around it, for the export."""

    def __init__(self):
        super().__init__()
        self.model = BertModel.from_pretrained(MODEL, attn_implementation="eager").eval()

    def forward(self, input_ids, attention_mask):
        return self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state


def export():
    from onnxruntime.transformers import optimizer

    example = torch.ones(2, 8, dtype=torch.long)
    axes = {0: "texts", 1: "tokens"}
    torch.onnx.export(
        States(),
        (example, example),
        EXPORTED + ".plain",
        input_names=["input_ids", "attention_mask"],
        output_names=["states"],
        dynamic_axes={"input_ids": axes, "attention_mask": axes, "states": axes},
        opset_version=17,
        dynamo=False,
    )
    with open(os.path.join(MODEL, "config.json")) as file:
        config = json.load(file)
    fused = optimizer.optimize_model(
        EXPORTED + ".plain",
        model_type="bert",
        num_heads=config["num_attention_heads"],
        hidden_size=config["hidden_size"],
    )
    fused.save_model_to_file(EXPORTED)


def onnx_runtime():
    if not os.path.exists(EXPORTED):
        export()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    session = onnxruntime.InferenceSession(EXPORTED, options, providers=["CPUExecutionProvider"])
    tokenizer = Tokenizer.from_file(os.path.join(MODEL, "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.enable_padding()

    def encode(texts):
        vectors = []
        for start in range(0, len(texts), BATCH):
            encodings = tokenizer.encode_batch(texts[start : start + BATCH])
            ids = numpy.array([encoding.ids for encoding in encodings], dtype=numpy.int64)
            mask = numpy.array([encoding.attention_mask for encoding in encodings], dtype=numpy.int64)
            states = session.run(None, {"input_ids": ids, "attention_mask": mask})[0]
            weights = mask[:, :, None].astype(numpy.float32)
            mean = (states * weights).sum(1) / weights.sum(1)
            vectors.append(mean / numpy.linalg.norm(mean, axis=1, keepdims=True))
        return numpy.concatenate(vectors)

    return encode


def main():
    # Only JSON goes to standard output, whatever libraries print.
    answers, sys.stdout = sys.stdout, sys.stderr
    peers = {"sentence-transformers": sentence_transformer(), "onnxruntime": onnx_runtime()}
    versions = {
        "sentence-transformers": f"{sentence_transformers.__version__} (torch {torch.__version__})",
        "onnxruntime": onnxruntime.__version__,
    }
    print(json.dumps({"versions": versions}), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        encode, seconds, vectors = peers[request["peer"]], [], None
        for _ in range(request["repeat"]):
            begin = time.perf_counter()
            vectors = encode(request["texts"])
            seconds.append(time.perf_counter() - begin)
        answer = {"seconds": seconds, "vectors": [[float(x) for x in vector] for vector in vectors]}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
