"""A jina-embeddings-v3 checkpoint in its official layout, at full size and tiny; for random weights."""

from pathlib import Path

from edgeclip_bench.families.layout import Config, Layout, Shapes
from edgeclip_bench.families.xlmr_tokenizer import synthetic_tokenizer
from edgeclip_export import tensor_shapes

TASKS = ("retrieval.query", "retrieval.passage", "separation", "classification", "text-matching")
_PROMPTS = {
    "retrieval.query": "Represent the query for retrieving evidence documents: ",
    "retrieval.passage": "Represent the document for retrieval: ",
}


def full_config() -> Config:
    """The official config.json's values."""
    return _config(
        width=1024, layers=24, heads=16, mlp=4096, vocab_size=250002, dims=(32, 64, 128, 256, 512, 768, 1024)
    )


def tiny_config() -> Config:
    """The same tower with small numbers: two layers, 64 wide."""
    return _config(width=64, layers=2, heads=4, mlp=160, vocab_size=2000, dims=(16, 32, 64))


def _config(*, width: int, layers: int, heads: int, mlp: int, vocab_size: int, dims: tuple[int, ...]) -> Config:
    return {
        "_name_or_path": "jinaai/jina-embeddings-v3",
        "architectures": ["XLMRobertaModel"],
        "auto_map": {
            "AutoModel": "jinaai/xlm-roberta-flash-implementation--modeling_lora.XLMRobertaLoRA",
        },
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 1,
        "hidden_act": "gelu",
        "hidden_size": width,
        "intermediate_size": mlp,
        "layer_norm_eps": 1e-05,
        "lora_adaptations": list(TASKS),
        "lora_alpha": 1,
        "lora_dropout_p": 0.0,
        "lora_main_params_trainable": False,
        "lora_rank": 4,
        "matryoshka_dimensions": list(dims),
        "max_position_embeddings": 8194,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "position_embedding_type": "rotary",
        "rotary_emb_base": 20000.0,
        "task_instructions": {task: _PROMPTS.get(task, "") for task in TASKS},
        "torch_dtype": "bfloat16",
        "truncate_dim": None,
        "type_vocab_size": 1,
        "use_flash_attn": True,
        "vocab_size": vocab_size,
    }


def _files(config: Config) -> dict[str, Shapes]:
    return {"model.safetensors": tensor_shapes(config)}


def _write_others(out: Path, config: Config) -> None:
    synthetic_tokenizer(config["vocab_size"]).save(str(out / "tokenizer.json"))


LAYOUT = Layout(
    full_config=full_config, tiny_config=tiny_config, dtype="float16", files=_files, write_others=_write_others
)
