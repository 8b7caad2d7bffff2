"""A jina-clip-v2 checkpoint in its official layout, at full size and tiny; for random weights."""

from pathlib import Path

from edgeclip_bench.families.layout import Config, Layout, write_json
from edgeclip_bench.families.xlmr_tokenizer import synthetic_tokenizer
from edgeclip_export.families.jina_clip.documents import config_document, preprocessor_document


def full_config() -> Config:
    """The official config.json's values."""
    return config_document(
        width=1024,
        text_layers=24,
        vision_layers=24,
        head_width=64,
        text_mlp=4096,
        vocab_size=250002,
        image_size=512,
        matryoshka_dims=[32, 64, 128, 256, 512, 768, 1024],
    )


def tiny_config() -> Config:
    """The same towers with small numbers: two layers, 64 wide, 56 px."""
    return config_document(
        width=64,
        text_layers=2,
        vision_layers=2,
        head_width=16,
        text_mlp=160,
        vocab_size=2000,
        image_size=56,
        matryoshka_dims=[16, 32, 64],
    )


def _write_others(out: Path, config: Config) -> None:
    vocab_size = config["text_config"]["hf_model_config_kwargs"]["vocab_size"]
    synthetic_tokenizer(vocab_size).save(str(out / "tokenizer.json"))
    write_json(out / "preprocessor_config.json", preprocessor_document(config["vision_config"]["image_size"]))


LAYOUT = Layout(full_config=full_config, tiny_config=tiny_config, dtype="float16", write_others=_write_others)
