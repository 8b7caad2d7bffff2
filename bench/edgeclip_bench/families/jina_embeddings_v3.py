"""A jina-embeddings-v3 checkpoint in its official layout, at full size and tiny; for random weights."""

from pathlib import Path

from edgeclip_bench.families.layout import Config, Layout
from edgeclip_bench.families.xlmr_tokenizer import synthetic_tokenizer

TASKS = ("retrieval.query", "retrieval.passage", "separation", "classification", "text-matching")
_PROMPTS = {
    "retrieval.query": "Represent the query for retrieving evidence documents: ",
    "retrieval.passage": "Represent the document for retrieval: ",
}


def full_config() -> Config:
    """The official config.json's values."""
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
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "layer_norm_eps": 1e-05,
        "lora_adaptations": list(TASKS),
        "lora_alpha": 1,
        "lora_dropout_p": 0.0,
        "lora_main_params_trainable": False,
        "lora_rank": 4,
        "matryoshka_dimensions": [32, 64, 128, 256, 512, 768, 1024],
        "max_position_embeddings": 8194,
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "position_embedding_type": "rotary",
        "rotary_emb_base": 20000.0,
        "task_instructions": {task: _PROMPTS.get(task, "") for task in TASKS},
        "torch_dtype": "bfloat16",
        "truncate_dim": None,
        "type_vocab_size": 1,
        "use_flash_attn": True,
        "vocab_size": 250002,
    }


def tiny_config() -> Config:
    """The same tower with small numbers: two layers, 64 wide."""
    return full_config() | {
        "hidden_size": 64,
        "intermediate_size": 160,
        "matryoshka_dimensions": [16, 32, 64],
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "vocab_size": 2000,
    }


def _write_others(out: Path, config: Config) -> None:
    synthetic_tokenizer(config["vocab_size"]).save(str(out / "tokenizer.json"))


LAYOUT = Layout(full_config=full_config, tiny_config=tiny_config, dtype="float16", write_others=_write_others)
