"""Tiny Llama decoders: random weights, files, and a forward pass that shares no code."""

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize

from models.zoo import bpe
from models.zoo.gguf_file import GgufFile
from models.zoo.llama import Config, shapes
from models.zoo.llama_onnx import build
from qgraph import onnx_io
from qgraph.graph import Graph

TINY = Config(layers=2, width=32, heads=4, kv_heads=2, hidden=64, vocabulary=40, context=64)
# As byte-level BPE spells bytes: "Ġ" is the space, "Ċ" a line's end, "Ã©" the two bytes of "é".
TOKENS = ["<|endoftext|>", "<|im_start|>", *"abcdefghijklmnopqrstuvwxyz", *"Ġ12Ċ.Ã©!", "ab"]
TOKENS += ["Ġab", "Ġc", "12"]
MERGES = ["a b", "Ġ ab", "Ġ c"]
_GGUF_NAMES = {
    "norm1": "attn_norm",
    "attn.q": "attn_q",
    "attn.k": "attn_k",
    "attn.v": "attn_v",
    "attn.o": "attn_output",
    "norm2": "ffn_norm",
    "mlp.gate": "ffn_gate",
    "mlp.up": "ffn_up",
    "mlp.down": "ffn_down",
}


def random_weights(config=TINY, seed=0):
    rng = np.random.default_rng(seed)

    def draw(name, shape):
        if "norm" in name:
            return rng.uniform(0.5, 1.5, shape).astype(np.float32)
        return (rng.standard_normal(shape) / np.sqrt(shape[0] if name != "embed" else 1)).astype(
            np.float32
        )

    return {name: draw(name, shape) for name, shape in shapes(config).items()}


def forward(config, weights, ids):
    """Logits float64 [len(ids), vocabulary] of one sequence: one head and position at a time."""
    w = {name: array.astype(np.float64) for name, array in weights.items()}
    size, group = config.width // config.heads, config.heads // config.kv_heads

    def norm(x, scale):
        return np.stack([v / np.sqrt(np.mean(v * v) + config.epsilon) * scale for v in x])

    def turn(vector, position):
        out = vector.copy()
        for i in range(size // 2):
            angle = position / config.rope_base ** (2 * i / size)
            rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
            out[[i, i + size // 2]] = rotation @ vector[[i, i + size // 2]]
        return out

    def head(x, matrix, index):
        return x @ matrix[:, index * size : (index + 1) * size]

    x = w["embed"][ids]
    for layer in range(config.layers):
        at = f"layers.{layer}."
        y = norm(x, w[f"{at}norm1"])
        context = np.zeros_like(y)
        for h in range(config.heads):
            q, k, v = (
                head(y, w[f"{at}attn.{part}"], h if part == "q" else h // group) for part in "qkv"
            )
            q, k = (np.stack([turn(r, p) for p, r in enumerate(m)]) for m in (q, k))
            for p in range(len(ids)):
                scores = np.exp(k[: p + 1] @ q[p] / np.sqrt(size))
                context[p, h * size : (h + 1) * size] = scores @ v[: p + 1] / scores.sum()
        x = x + context @ w[f"{at}attn.o"]
        y = norm(x, w[f"{at}norm2"])
        gate = y @ w[f"{at}mlp.gate"]
        x = x + (gate / (1 + np.exp(-gate)) * (y @ w[f"{at}mlp.up"])) @ w[f"{at}mlp.down"]
    return norm(x, w["norm"]) @ w["head"]


def write_gguf(path, config, weights, *, kind=GGMLQuantizationType.F32, head=True, **changed):
    """Write the decoder as llama.cpp's converter does: [out, in], rotary pairs side by side."""
    writer = GGUFWriter(path, changed.get("architecture", "llama"))
    writer.add_block_count(config.layers)
    writer.add_context_length(config.context)
    writer.add_embedding_length(config.width)
    writer.add_feed_forward_length(config.hidden)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_layer_norm_rms_eps(config.epsilon)
    writer.add_rope_freq_base(config.rope_base)
    writer.add_vocab_size(config.vocabulary)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(changed.get("pre", "smollm"))
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3] + [1] * (len(TOKENS) - 2))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(0)
    writer.add_chat_template("{{ messages }}")
    names = {"embed": "token_embd", "norm": "output_norm"} | ({"head": "output"} if head else {})
    for layer in range(config.layers):
        names |= {f"layers.{layer}.{k}": f"blk.{layer}.{v}" for k, v in _GGUF_NAMES.items()}
    for ours, theirs in names.items():
        array = weights[ours]
        if array.ndim == 2 and ours != "embed":
            array = array.T
        heads = {"q": config.heads, "k": config.kv_heads}.get(ours[-1]) if ".attn." in ours else 0
        if heads:
            rows = array.reshape(heads, 2, -1, array.shape[1]).swapaxes(1, 2)
            array = rows.reshape(array.shape)
        array = np.ascontiguousarray(array)
        if array.ndim == 2 and kind != GGMLQuantizationType.F32:
            writer.add_tensor(f"{theirs}.weight", quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(f"{theirs}.weight", array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_decoder(folder, *, kv, config=TINY, name="m.onnx"):
    """Write the decoder as ONNX with its tokenizer beside it; return its weights."""
    weights = random_weights(config)
    onnx_io.save(Graph(build(config, weights, kv=kv)), folder / name)
    file = GgufFile(write_gguf(folder / "m.gguf", config, weights))
    for part, text in bpe.files(file).items():
        (folder / part).write_text(text, encoding="utf-8")
    return weights


def greedy(config, weights, ids, count):
    """The likeliest tokens behind `ids`, one after the other."""
    found = []
    for _ in range(count):
        found.append(int(forward(config, weights, [*ids, *found])[-1].argmax()))
    return found
