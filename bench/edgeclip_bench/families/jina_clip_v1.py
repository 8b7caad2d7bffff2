"""A jina-clip-v1 checkpoint in its official layout, at full size and tiny; for random weights."""

from pathlib import Path

from edgeclip_bench.families.layout import Config, Layout, write_json
from edgeclip_bench.families.wordpiece_tokenizer import wordpiece_tokenizer
from edgeclip_export.families.jina_clip.bert_text import parse_bert_text
from edgeclip_export.families.jina_clip.documents import preprocessor_document, vision_document


def full_config() -> Config:
    """The official config.json's values, which leave the text tower's numbers out."""
    return _config(width=768, layers=12, head_width=64, image_size=224, patch_size=16, text={})


def tiny_config() -> Config:
    """The same towers with small numbers: two layers, 72 wide with 3 heads of texts, 56 px."""
    text = {
        "vocab_size": 1200,
        "hidden_size": 72,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "intermediate_size": 160,
    }
    return _config(width=72, layers=2, head_width=12, image_size=56, patch_size=8, text=text)


def _config(*, width: int, layers: int, head_width: int, image_size: int, patch_size: int, text: Config) -> Config:
    return {
        "model_type": "jina_clip",
        "architectures": ["JinaCLIPModel"],
        "add_projections": False,
        "projection_dim": width,
        "logit_scale_init_value": 2.6592,
        "torch_dtype": "float32",
        "text_config": {
            "embed_dim": width,
            "hf_model_name_or_path": "jinaai/jina-bert-flash-implementation",
            "hf_model_config_kwargs": {"use_flash_attn": False, **text},
            "model_type": "jina_clip_text",
            "pooler_type": "mean_pooler",
            "proj_bias": False,
            "proj_type": None,
        },
        "vision_config": {
            **vision_document(width=width, layers=layers, head_width=head_width, image_size=image_size),
            "intp_freq": False,
            "patch_size": patch_size,
            "pt_hw_seq_len": image_size // patch_size,
            "x_attention": False,
        },
    }


def _write_others(out: Path, config: Config) -> None:
    vocab_size = parse_bert_text(config["text_config"]).vocab_size
    wordpiece_tokenizer(vocab_size).save(str(out / "tokenizer.json"))
    write_json(out / "preprocessor_config.json", preprocessor_document(config["vision_config"]["image_size"]))


LAYOUT = Layout(full_config=full_config, tiny_config=tiny_config, dtype="float32", write_others=_write_others)
