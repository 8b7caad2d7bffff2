"""Makes tests/data/nllb_clip, a tiny nllb-clip-siglip of random weights: python make_nllb_goldens.py

Its answers are those of two implementations of others: the encoder of transformers' M2M100 (5.23) and the vision
transformer of timm (1.0.31), which needs torchvision (0.29) beside it and is no dependency of edgeclip:

    pip install --no-deps --target /tmp/timm timm torchvision
    PYTHONPATH=/tmp/timm python tests/data/make_nllb_goldens.py

checkpoint/            open_clip's layout; every dimension differs from the real models'
text.npz               CODE/input_ids (N, T) int64, padded with 1; CODE/features: the projected first token
vision.npz             FILE/pixels (S, S, 3) uint8, by Pillow and torchvision's rules; FILE/features: the pooled token
texts.json             the texts, by CODE
controls.npz           text/MISTAKE and vision/MISTAKE: the same features, of an implementation with one mistake
"""

import html
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor

for _operator in ("nms", "qnms"):  # torchvision's compiled half is for another torch, and nothing here needs it
    torch.library.define(f"torchvision::{_operator}", "(Tensor boxes, Tensor scores, float threshold) -> Tensor")
import timm  # noqa: E402
from transformers import M2M100Config  # noqa: E402
from transformers.models.m2m_100.modeling_m2m_100 import M2M100Encoder  # noqa: E402

OUT = Path(__file__).parent / "nllb_clip"
IMAGES = Path(__file__).parent / "images"
CODES = ("ace_Latn", "arb_Arab", "deu_Latn", "eng_Latn", "jpn_Jpan", "rus_Cyrl", "zho_Hans")
TEXTS = {
    "eng_Latn": ["a red bicycle leaning on a wall", "", "Berlin", "a <pad> in a text", "deu_Latn is a code"],
    "deu_Latn": ["ein rotes Fahrrad an einer Wand", "  zwei   Leute\n am Strand ", "Berlin", "Tom &amp; Jerry"],
    "rus_Cyrl": ["красный велосипед у стены", "two <s> and </s> here <mask>"],
    "jpn_Jpan": ["夕日の海辺を歩く二人", " ".join(["sheep"] * 30)],
}
FILES = ("rgb_tall.png", "rgb_small_upscale.png", "rgb_odd.png", "gray.png", "rgba.png", "palette_trns.png")
WIDTH, LAYERS, HEADS, MLP, CONTEXT, DIM = 48, 3, 4, 100, 24, 60
PATCH, SIZE, DEPTH, VISION_HEADS, RATIO = 12, 40, 3, 5, 2.6
CONFIG: dict[str, Any] = {
    "model_cfg": {
        "embed_dim": DIM,
        "custom_text": True,
        "init_logit_bias": -10,
        "vision_cfg": {
            "image_size": SIZE,
            "timm_model_name": "vit_base_patch16_siglip_384",
            "timm_model_pretrained": False,
            "timm_pool": "map",
            "timm_proj": "none",
            "timm_model_kwargs": {
                "embed_dim": DIM,
                "depth": DEPTH,
                "num_heads": VISION_HEADS,
                "mlp_ratio": RATIO,
                "patch_size": PATCH,
            },
        },
        "text_cfg": {
            "context_length": CONTEXT,
            "hf_model_name": "facebook/nllb-200-distilled-600M",
            "hf_tokenizer_name": "facebook/nllb-200-distilled-600M",
            "hf_proj_type": "linear",
            "hf_pooler_type": "cls_pooler",
            "hf_model_config_kwargs": {
                "d_model": WIDTH,
                "encoder_layers": LAYERS,
                "encoder_attention_heads": HEADS,
                "encoder_ffn_dim": MLP,
                "vocab_size": 0,
            },
        },
    },
    "preprocess_cfg": {
        "mode": "RGB",
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "interpolation": "bicubic",
        "resize_mode": "squash",
        "fill_color": 0,
    },
}
Weights = dict[str, Tensor]


def main() -> None:
    """Write all of it."""
    (OUT / "checkpoint").mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer()
    tokenizer.save(str(OUT / "checkpoint" / "tokenizer.json"))
    rows = tokenizer.get_vocab_size() + 3  # the real table has rows to spare, too
    CONFIG["model_cfg"]["text_cfg"]["hf_model_config_kwargs"]["vocab_size"] = rows
    (OUT / "checkpoint" / "open_clip_config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    (OUT / "texts.json").write_text(json.dumps(TEXTS, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    vision, encoder = make_vision(), make_encoder(rows)
    weights = draw_weights(vision, encoder)
    save_file(
        {name: tensor.numpy().astype(np.float16) for name, tensor in weights.items()},
        OUT / "checkpoint" / "open_clip_model.safetensors",
    )
    project = weights["text.proj.weight"]
    arrays: dict[str, np.ndarray] = {}
    controls: dict[str, np.ndarray] = {}
    batches = {code: tokens(tokenizer, texts, code) for code, texts in TEXTS.items()}
    for code, ids in batches.items():
        arrays |= {f"{code}/input_ids": ids.numpy(), f"{code}/features": text_features(encoder, project, ids).numpy()}
    np.savez_compressed(OUT / "text.npz", **arrays)
    for mistake, ids, wrong in text_mistakes(encoder, project, tokenizer, batches["deu_Latn"]):
        controls[f"text/{mistake}"] = wrong(ids).numpy()
    arrays = {}
    for file in FILES:
        pixels = squash(Image.open(IMAGES / file))
        arrays |= {f"{file}/pixels": pixels, f"{file}/features": vision(normalise(pixels))[0].numpy()}
    np.savez_compressed(OUT / "vision.npz", **arrays)
    for mistake, answer in vision_mistakes(vision, weights):
        controls[f"vision/{mistake}"] = answer.numpy()
    np.savez_compressed(OUT / "controls.npz", **controls)


def make_tokenizer() -> Tokenizer:
    """A tokenizer of NLLB's kind, trained on the texts; the code stands behind the text, as in the official file."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace("\n", " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace("▁", prepend_scheme="always")
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<s>", "<pad>", "</s>", "<unk>"], show_progress=False
    )
    tokenizer.train_from_iterator([text for texts in TEXTS.values() for text in texts] * 3, trainer)
    tokenizer.add_special_tokens([AddedToken(code, normalized=False) for code in CODES])
    tokenizer.add_special_tokens([AddedToken("<mask>", normalized=False, lstrip=True)])
    ids = [("</s>", 2), ("eng_Latn", tokenizer.token_to_id("eng_Latn"))]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s> eng_Latn", pair="$A $B </s> eng_Latn", special_tokens=ids
    )
    return tokenizer


def tokens(tokenizer: Tokenizer, texts: list[str], code: str) -> Tensor:
    """[code] X </s> of each text, cut at the model's length and padded to the longest."""
    first, rows = tokenizer.token_to_id(code), []
    for text in texts:
        clean = " ".join(html.unescape(html.unescape(text)).split())
        inner = tokenizer.encode(clean, add_special_tokens=False).ids
        rows.append([first, *inner[: CONTEXT - 2], 2])
    longest = max(map(len, rows))
    return torch.tensor([row + [1] * (longest - len(row)) for row in rows])


def make_encoder(rows: int) -> M2M100Encoder:
    """transformers' encoder."""
    config = M2M100Config(
        vocab_size=rows,
        d_model=WIDTH,
        encoder_layers=LAYERS,
        encoder_attention_heads=HEADS,
        encoder_ffn_dim=MLP,
        max_position_embeddings=CONTEXT,
        activation_function="relu",
        scale_embedding=True,
        dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        encoder_layerdrop=0.0,
        attn_implementation="eager",
    )
    return M2M100Encoder(config).eval().requires_grad_(False)


def make_vision() -> torch.nn.Module:
    """timm's vision transformer with attention pooling."""
    settings = CONFIG["model_cfg"]["vision_cfg"]
    model: torch.nn.Module = timm.create_model(
        settings["timm_model_name"],
        pretrained=False,
        img_size=SIZE,
        global_pool="map",
        num_classes=0,
        **settings["timm_model_kwargs"],
    )
    return model.eval().requires_grad_(False)


def draw_weights(vision: torch.nn.Module, encoder: M2M100Encoder) -> Weights:
    """Random weights in float16's precision, given to both models; open_clip's names.

    Patches and positions are so small that LayerNorm's eps counts, and the pool's latent so large that its attention
    is far from a mean.
    """
    draw = torch.Generator().manual_seed(0)
    shapes = {f"visual.trunk.{name}": tensor.shape for name, tensor in vision.state_dict().items()}
    shapes |= {f"text.transformer.{name}": tensor.shape for name, tensor in encoder.state_dict().items()}
    shapes |= {
        "text.proj.weight": torch.Size((DIM, WIDTH)),
        "logit_scale": torch.Size(()),
        "logit_bias": torch.Size(()),
    }
    weights = {}
    for name, shape in shapes.items():
        values = torch.randn(shape, generator=draw)
        if len(shape) == 1 and name.endswith("weight"):
            values = 1 + 0.2 * values
        elif name.endswith("latent"):
            values *= 3
        elif name.endswith(("pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias")):
            values *= 0.005
        elif len(shape) < 2:
            values *= 0.2
        else:
            values *= 1.5 / np.sqrt(np.prod(shape[1:]))
        weights[name] = values.half().float()
    for model, prefix in ((vision, "visual.trunk."), (encoder, "text.transformer.")):
        own = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
        model.load_state_dict(own)
    return weights


@torch.no_grad()
def text_features(encoder: M2M100Encoder, project: Tensor, ids: Tensor) -> Tensor:
    """The projection of the first token of what the encoder gives."""
    states = encoder(input_ids=ids, attention_mask=(ids != 1).long()).last_hidden_state
    return states[:, 0] @ project.T


def text_mistakes(
    encoder: M2M100Encoder, project: Tensor, tokenizer: Tokenizer, ids: Tensor
) -> list[tuple[str, Tensor, Callable[[Tensor], Tensor]]]:
    """Each mistake: its name, the ids that it is given, and what it answers them."""
    scale = encoder.embed_tokens.embed_scale

    def unscaled(given: Tensor) -> Tensor:
        encoder.embed_tokens.embed_scale = 1.0
        try:
            return text_features(encoder, project, given)
        finally:
            encoder.embed_tokens.embed_scale = scale

    def moved(given: Tensor) -> Tensor:
        kept = encoder.embed_positions.weights.clone()
        encoder.embed_positions.weights[1:] = kept[:-1]
        try:
            return text_features(encoder, project, given)
        finally:
            encoder.embed_positions.weights[:] = kept

    @torch.no_grad()
    def mean(given: Tensor) -> Tensor:
        mask = (given != 1).float()[..., None]
        states = encoder(input_ids=given, attention_mask=(given != 1).long()).last_hidden_state
        return (states * mask).sum(1) / mask.sum(1) @ project.T

    def gelu(given: Tensor) -> Tensor:
        kept = [layer.activation_fn for layer in encoder.layers]
        for layer in encoder.layers:
            layer.activation_fn = torch.nn.GELU()
        try:
            return text_features(encoder, project, given)
        finally:
            for layer, one in zip(encoder.layers, kept, strict=True):
                layer.activation_fn = one

    def right(given: Tensor) -> Tensor:
        return text_features(encoder, project, given)

    english = ids.clone()
    english[:, 0] = tokenizer.token_to_id("eng_Latn")
    pieces = [[id for id in row if id != 1][1:] for row in ids.tolist()]
    longest = max(map(len, pieces))
    absent = torch.tensor([row + [1] * (longest - len(row)) for row in pieces])
    behind = torch.tensor([row + [int(ids[0, 0])] + [1] * (longest - len(row)) for row in pieces])
    return [
        ("unscaled embedding", ids, unscaled),
        ("positions one too low", ids, moved),
        ("mean pooling", ids, mean),
        ("gelu", ids, gelu),
        ("another language's code", english, right),
        ("no code", absent, right),
        ("code behind the text", behind, right),
    ]


def squash(image: Image.Image, *, to_rgb_first: bool = False) -> np.ndarray:
    """torchvision's Resize of both sides on a PIL image, then RGB."""
    image = image.convert("RGB") if to_rgb_first else image
    return np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BICUBIC).convert("RGB"))


def crop(image: Image.Image) -> np.ndarray:
    """The shortest side resized, then the middle."""
    short = min(image.size)
    width, height = (SIZE * side // short for side in image.size)
    left, top = (width - SIZE) // 2, (height - SIZE) // 2
    resized = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(resized.crop((left, top, left + SIZE, top + SIZE)))


def normalise(pixels: np.ndarray, mean: float = 0.5, std: float = 0.5) -> Tensor:
    """The float tensor (1, 3, S, S)."""
    scaled = (pixels.astype(np.float32) / np.float32(255) - np.float32(mean)) / np.float32(std)
    return torch.from_numpy(scaled.transpose(2, 0, 1).copy())[None]


@torch.no_grad()
def vision_mistakes(vision: torch.nn.Module, weights: Weights) -> list[tuple[str, Tensor]]:
    """Each mistake and its answers to the first picture; of two of them, to the picture that shows it."""
    first, transparent = (Image.open(IMAGES / file) for file in ("rgb_tall.png", "rgba.png"))
    picture = normalise(squash(first))
    answers = [
        ("mean pooling", vision.forward_features(picture).mean(dim=1)),
        ("crop", vision(normalise(crop(first)))),
        ("bilinear", vision(normalise(np.asarray(first.resize((SIZE, SIZE), Image.Resampling.BILINEAR))))),
        ("mean and std of CLIP", vision(normalise(squash(first), 0.45, 0.27))),
        ("rgb before the resize", vision(normalise(squash(transparent, to_rgb_first=True)))),
    ]
    tokens = vision.forward_features(picture)
    pool = vision.attn_pool
    attended = {}
    hook = pool.proj.register_forward_hook(lambda module, inputs, output: attended.update(o=output))
    pool(tokens)
    hook.remove()
    answers.append(("pool without its MLP", attended["o"][:, 0]))
    unnormed, vision.norm = vision.norm, torch.nn.Identity()
    answers.append(("no norm before the pool", vision(picture)))
    vision.norm = unnormed
    for module in vision.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-5
    answers.append(("eps 1e-5", vision(picture)))
    for module in vision.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-6
        if isinstance(module, torch.nn.GELU):
            module.approximate = "tanh"
        if type(module).__name__ == "Mlp":
            module.act = torch.nn.GELU(approximate="tanh")
    answers.append(("tanh GELU", vision(picture)))
    return [(name, answer[0]) for name, answer in answers]


if __name__ == "__main__":
    main()
