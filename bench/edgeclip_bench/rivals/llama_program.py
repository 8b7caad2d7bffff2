"""llama.cpp's decoder of the sizes in a config.json, with random weights in Q4_K_M: a contender's process.

`edgeclip bench side-by-side` runs this file with an interpreter that has llama-cpp-python and gguf, and nothing of
edgeclip: `python llama_program.py CONFIG GGUF`. The GGUF file is written where it is missing. Each line of stdin is a
text as the ids of its tokens, JSON of a string with blanks between them; the answer is the shape of the mean vector.

Q4_K_M is llama.cpp's usual mixture: 4-bit blocks, and 6 bits for the table and for v and down of half of the layers
(llama.cpp's llama-quant.cpp). Times do not depend on the numbers.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np

_BLOCK = 256
# Bytes of a block of weights, and where its half-precision scales stand in them (ggml-common.h).
_TYPES = {
    "Q4_K": (gguf.GGMLQuantizationType.Q4_K, 144, (0, 2)),
    "Q6_K": (gguf.GGMLQuantizationType.Q6_K, 210, (208,)),
}
_SCALE = np.float16(1e-4)
_MOST_TOKENS = 8192


def write_model(config: dict[str, Any], out: Path) -> None:
    """Write a GGUF file of a Qwen2 decoder of these sizes without a tokenizer, one tensor in memory at a time."""
    width, middle, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    kv_width, draw = width // heads * kv_heads, np.random.default_rng(0)
    writer = gguf.GGUFWriter(out, "qwen2", use_temp_file=True)
    writer.add_block_count(layers)
    writer.add_context_length(_MOST_TOKENS)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(middle)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_K_M)
    writer.add_tokenizer_model("none")
    writer.add_vocab_size(config["vocab_size"])

    def add(name: str, outputs: int, inputs: int, kind: str = "Q4_K") -> None:
        dtype, block_bytes, scales = _TYPES[kind]
        blocks = draw.integers(0, 256, (outputs, inputs // _BLOCK, block_bytes), np.uint8)
        for start in scales:
            blocks[..., start : start + 2] = np.frombuffer(_SCALE.tobytes(), np.uint8)
        writer.add_tensor(f"{name}.weight", blocks.reshape(outputs, -1), raw_dtype=dtype)

    def add_vector(name: str, size: int, value: float) -> None:
        writer.add_tensor(name, np.full(size, value, np.float32))

    add("token_embd", config["vocab_size"], width, "Q6_K")
    add_vector("output_norm.weight", width, 1.0)
    for layer in range(layers):
        begin = f"blk.{layer}"
        finer = "Q6_K" if _takes_more_bits(layer, layers) else "Q4_K"
        for name, size in (("q", width), ("k", kv_width), ("v", kv_width)):
            add(f"{begin}.attn_{name}", size, width, finer if name == "v" else "Q4_K")
            add_vector(f"{begin}.attn_{name}.bias", size, 0.0)
        add(f"{begin}.attn_output", width, width)
        add(f"{begin}.ffn_gate", middle, width)
        add(f"{begin}.ffn_up", middle, width)
        add(f"{begin}.ffn_down", width, middle, finer)
        add_vector(f"{begin}.attn_norm.weight", width, 1.0)
        add_vector(f"{begin}.ffn_norm.weight", width, 1.0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _takes_more_bits(layer: int, layers: int) -> bool:
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


# Kept, or the callback would be freed while llama.cpp calls it.
_silence = llama_cpp.llama_log_callback(lambda *_: None)


class Decoder:
    """llama.cpp in its embedding mode with mean pooling, on as many threads as there are processors."""

    def __init__(self, path: Path) -> None:
        llama_cpp.llama_log_set(_silence, None)
        llama_cpp.llama_backend_init()
        model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
        options = llama_cpp.llama_context_default_params()
        options.n_ctx = options.n_batch = options.n_ubatch = 512
        options.n_threads = options.n_threads_batch = os.cpu_count() or 1
        options.embeddings = True
        options.pooling_type = llama_cpp.LLAMA_POOLING_TYPE_MEAN
        self._context = llama_cpp.llama_init_from_model(model, options)
        self._width = llama_cpp.llama_model_n_embd(model)

    def encode(self, ids: list[int]) -> Any:
        """The mean of the last hidden states of a text (D,)."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)
        batch = llama_cpp.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for place, token in enumerate(ids):
            batch.token[place], batch.pos[place] = token, place
            batch.n_seq_id[place], batch.seq_id[place][0], batch.logits[place] = 1, 0, 1
        if llama_cpp.llama_decode(self._context, batch):
            raise RuntimeError(f"llama.cpp cannot decode {len(ids)} tokens")
        llama_cpp.llama_batch_free(batch)
        found = llama_cpp.llama_get_embeddings_seq(self._context, 0)
        return np.ctypeslib.as_array(found, (self._width,)).copy()


def main(config: Path, path: Path) -> None:
    """Answer every line of stdin with one of stdout."""
    document = json.loads(config.read_text(encoding="utf-8"))
    if not path.exists():
        part = path.with_suffix(".tmp")
        write_model(document.get("text_config", document), part)
        part.rename(path)
    decoder = Decoder(path)
    print(json.dumps(["text"]), flush=True)
    for line in sys.stdin:
        print(json.dumps(decoder.encode([int(word) for word in json.loads(line).split()]).shape), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
