"""jina-clip's two towers written plainly in torch: the rival that every export is measured against, and its oracle.

Nothing here is folded, fused or packed: modules and names follow the official layout, attention is torch's
scaled_dot_product_attention, rotary positions are slices and concatenations, images come as normalised float NCHW,
and the last block computes every token. It shares no arithmetic with `edgeclip_export.families.jina_clip`, so tests
can compare the two; LoRA is merged here too, because an export that leaves it in is too slow to be a fair rival.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeclip_export.checkpoint import CONFIG, read_json
from edgeclip_export.families.jina_clip.bert_text import BertTextConfig
from edgeclip_export.families.jina_clip.config import JinaClipConfig, TextConfig, VisionConfig, parse_config
from edgeclip_export.families.jina_clip.tensors import VISION, tensor_shapes, text_prefix
from edgeclip_export.families.jina_clip.weights import open_weights
from edgeclip_export.opening import open_checkpoint
from edgeclip_export.tracing import OPSET


def load_plain(folder: Path, graph: str) -> "PlainTextTower | PlainVisionTower":
    """Load the tower of a checkpoint folder that becomes the graph "text" or "vision", LoRA merged."""
    config = parse_config(read_json(folder / CONFIG))
    text, prefix = config.text, VISION if graph == "vision" else text_prefix(config.text)
    with open_weights(open_checkpoint(folder).checkpoint, config) as opened:
        read, weights = opened.read, {}
        for name in tensor_shapes(opened.config):
            if not name.startswith(prefix) or name.endswith(("lora_A", "lora_B")):
                continue
            weight = read(name)
            if isinstance(text, TextConfig) and name.endswith("original"):
                a, b = (read(name.replace("original", f"0.lora_{which}"))[text.lora.adapter] for which in "AB")
                weight += text.lora.scale * (a @ b if "embeddings" in name else b @ a)
            weights[name.removeprefix(prefix).replace(".parametrizations.weight.original", ".weight")] = weight
    return fill(empty_tower(config, graph), weights)


def load_plain_text(folder: Path) -> "PlainTextTower":
    """Load the text tower of a checkpoint folder."""
    tower = load_plain(folder, "text")
    assert isinstance(tower, PlainTextTower)
    return tower


def load_plain_vision(folder: Path) -> "PlainVisionTower":
    """Load the vision tower of a checkpoint folder."""
    tower = load_plain(folder, "vision")
    assert isinstance(tower, PlainVisionTower)
    return tower


def export_plain(checkpoint: Path, folder: Path, graph: str) -> Path:
    """Write a tower's graph into `folder` as torch.onnx.export leaves it."""
    tower = load_plain(checkpoint, graph)
    dynamic = {0: "batch", 1: "sequence"} if graph == "text" else {0: "batch"}
    size = tower.config.image_size if isinstance(tower, PlainVisionTower) else 0
    example = torch.zeros(2, 3, size, size) if size else torch.full((2, 3), 2)
    program = torch.onnx.export(
        tower, (example,), dynamo=True, opset_version=OPSET, dynamic_shapes=(dynamic,), verbose=False
    )
    assert program is not None
    program.save(folder / f"plain_{graph}.onnx", external_data=True)
    return folder / f"plain_{graph}.onnx"


def empty_tower(config: JinaClipConfig, graph: str) -> "PlainTextTower | PlainVisionTower":
    """The tower of the graph "text" or "vision", without weights."""
    with torch.device("meta"):
        if graph == "vision":
            return PlainVisionTower(config.vision)
        text = config.text
        return PlainAlibiTextTower(text) if isinstance(text, BertTextConfig) else PlainTextTower(text)


def fill(
    tower: "PlainTextTower | PlainVisionTower", weights: Mapping[str, Tensor]
) -> "PlainTextTower | PlainVisionTower":
    """Give an empty tower its weights, for inference."""
    tower.load_state_dict(weights, assign=True)
    return tower.eval().requires_grad_(False)


class PlainTextTower(nn.Module):
    """(B, T) ids -> (B, D) unit rows."""

    def __init__(self, config: TextConfig | BertTextConfig, token_types: int = 1) -> None:
        super().__init__()
        self.config = config
        self.embeddings = nn.ModuleDict(
            {
                "word_embeddings": nn.Embedding(config.vocab_size, config.width),
                "token_type_embeddings": nn.Embedding(token_types, config.width),
            }
        )
        self.emb_ln = nn.LayerNorm(config.width, config.layer_norm_eps)
        self.encoder = nn.ModuleDict({"layers": nn.ModuleList(_TextLayer(config) for _ in range(config.layers))})

    def forward(self, input_ids: Tensor) -> Tensor:
        """Normalised embeddings."""
        return F.normalize(self.features(input_ids), dim=-1)

    def features(self, input_ids: Tensor) -> Tensor:
        """Un-normalised features (B, D)."""
        mask = input_ids != self.config.pad_id
        # One row would do, but onnxruntime's Attention refuses a mask that is broadcast over queries.
        bias = torch.where(mask, 0.0, -10000.0)[:, None, None].expand(-1, -1, input_ids.shape[1], -1)
        tables = (table.to(input_ids.device) for table in self.tables(input_ids.shape[1]))
        return (self._hidden(input_ids, bias, *tables) * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)

    def tabled_features(self, input_ids: Tensor, *tables: Tensor) -> Tensor:
        """The features (B, D) of texts without padding, without a mask, from `tables`."""
        return self._hidden(input_ids, None, *tables).mean(dim=1)

    def tables(self, longest: int) -> tuple[Tensor, ...]:
        """Cosines and sines (T, D) of the rotary positions of texts of up to so many tokens."""
        assert isinstance(self.config, TextConfig)
        half = torch.arange(0, self.config.head_width, 2, dtype=torch.float32)
        position = torch.arange(longest, dtype=torch.float32)
        angles = torch.outer(position, 1.0 / self.config.rotary_base ** (half / self.config.head_width))
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos(), angles.sin()

    def _hidden(self, input_ids: Tensor, bias: Tensor | None, *tables: Tensor) -> Tensor:
        words, types = self.embeddings["word_embeddings"], self.embeddings["token_type_embeddings"]
        h: Tensor = self.emb_ln(words(input_ids) + types(torch.zeros_like(input_ids)))
        rotary = [table[: input_ids.shape[1]] for table in tables]
        for layer in self.encoder["layers"].children():
            h = layer(h, bias, *rotary)
        return h


class PlainAlibiTextTower(PlainTextTower):
    """jina-clip-v1's: what ALiBi adds to the scores is a tensor (1, H, T, T), as in the reference; MLPs are gated."""

    def __init__(self, config: BertTextConfig) -> None:
        super().__init__(config, config.token_types)
        for layer in self.encoder["layers"].children():
            layer.mlp = _GatedMlp(config.width, config.mlp_width)

    def tables(self, longest: int) -> tuple[Tensor, ...]:
        """What each head takes from a score for each token of distance: (H, 1, 1)."""
        heads, power = self.config.heads, 1
        while 2 * power <= heads:
            power *= 2
        slopes = [2.0 ** (-8.0 * step / power) for step in range(1, power + 1)]
        slopes += [2.0 ** (-4.0 * step / power) for step in range(1, 2 * (heads - power), 2)]
        return (torch.tensor(slopes)[:, None, None],)

    def _hidden(self, input_ids: Tensor, bias: Tensor | None, *tables: Tensor) -> Tensor:
        (slopes,) = tables
        tokens = torch.arange(input_ids.shape[1], device=input_ids.device)
        distances = -slopes * (tokens[:, None] - tokens).abs()[None, None]  # (1, H, T, T)
        return super()._hidden(input_ids, distances if bias is None else distances + bias)


class _TextLayer(nn.Module):
    def __init__(self, config: TextConfig | BertTextConfig) -> None:
        super().__init__()
        self.heads = config.heads
        width = config.width
        self.mixer = nn.ModuleDict({"Wqkv": nn.Linear(width, 3 * width), "out_proj": nn.Linear(width, width)})
        self.norm1 = nn.LayerNorm(width, config.layer_norm_eps)
        self.mlp: nn.Module = _Mlp(width, config.mlp_width)
        self.norm2 = nn.LayerNorm(width, config.layer_norm_eps)

    def forward(self, h: Tensor, bias: Tensor | None, *rotary: Tensor) -> Tensor:
        q, k, v = (_split_heads(x, self.heads) for x in self.mixer["Wqkv"](h).chunk(3, dim=-1))
        if rotary:
            cos, sin = rotary
            q, k = (x * cos + _rotate_half(x) * sin for x in (q, k))
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        h = self.norm1(h + self.mixer["out_proj"](attended.transpose(1, 2).flatten(2)))
        return self.norm2(h + self.mlp(h))


class _Mlp(nn.Module):
    def __init__(self, width: int, mlp_width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, mlp_width), nn.Linear(mlp_width, width)

    def forward(self, h: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(h)))


class _GatedMlp(nn.Module):
    def __init__(self, width: int, mlp_width: int) -> None:
        super().__init__()
        self.gated_layers, self.wo = nn.Linear(width, 2 * mlp_width, bias=False), nn.Linear(mlp_width, width)

    def forward(self, h: Tensor) -> Tensor:
        gate, up = self.gated_layers(h).chunk(2, dim=-1)
        return self.wo(F.gelu(gate) * up)


class PlainVisionTower(nn.Module):
    """(B, 3, S, S) normalised pixels -> (B, D) unit rows."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        patch = config.patch_size
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, config.width, patch, stride=patch)})
        self.cls_token = nn.Parameter(torch.empty(1, 1, config.width))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + config.patches, config.width))
        self.blocks = nn.ModuleList(_VisionBlock(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width, config.layer_norm_eps)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Normalised embeddings."""
        return F.normalize(self.features(pixel_values), dim=-1)

    def features(self, pixel_values: Tensor) -> Tensor:
        """Un-normalised features (B, D)."""
        return self.tabled_features(pixel_values, *(table.to(pixel_values.device) for table in self.tables(0)))

    def tabled_features(self, pixel_values: Tensor, *tables: Tensor) -> Tensor:
        """The features (B, D) from tables (P, D) that were made before."""
        patches = self.patch_embed["proj"](pixel_values).flatten(2).transpose(1, 2)
        x = torch.cat((self.cls_token.expand(patches.shape[0], -1, -1), patches), dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x, *tables)
        return self.norm(x)[:, 0]

    def tables(self, longest: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines (P, D): for each patch its row's angles, then its column's, every angle twice."""
        config, half = self.config, self.config.head_width // 2
        frequencies = config.rotary_base ** -(torch.arange(0, half, 2, dtype=torch.float32) / half)
        grid = torch.arange(config.grid, dtype=torch.float32)
        if config.rope_interpolates:
            grid = grid * config.rope_grid / config.grid
        angles = torch.outer(grid, frequencies).repeat_interleave(2, dim=-1)
        row, column = torch.meshgrid(torch.arange(config.grid), torch.arange(config.grid), indexing="ij")
        angles = torch.cat((angles[row.flatten()], angles[column.flatten()]), dim=-1)
        return angles.cos(), angles.sin()


class _VisionBlock(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, config.layer_norm_eps)
        self.attn = _VisionAttention(config)
        self.norm2 = nn.LayerNorm(config.width, config.layer_norm_eps)
        self.mlp = nn.ModuleDict(
            {
                "w1": nn.Linear(config.width, config.mlp_width),
                "w2": nn.Linear(config.width, config.mlp_width),
                "ffn_ln": nn.LayerNorm(config.mlp_width, config.layer_norm_eps),
                "w3": nn.Linear(config.mlp_width, config.width),
            }
        )

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x), cos, sin)
        h, mlp = self.norm2(x), self.mlp
        return x + mlp["w3"](mlp["ffn_ln"](F.silu(mlp["w1"](h)) * mlp["w2"](h)))


class _VisionAttention(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(config.width, config.width, bias=False) for _ in range(3))
        self.q_bias = nn.Parameter(torch.empty(config.width))
        self.v_bias = nn.Parameter(torch.empty(config.width))
        self.inner_attn_ln = nn.LayerNorm(config.width, config.layer_norm_eps)
        self.proj = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        q = _split_heads(self.q_proj(x) + self.q_bias, self.heads)
        k = _split_heads(self.k_proj(x), self.heads)
        v = _split_heads(self.v_proj(x) + self.v_bias, self.heads)
        q, k = (torch.cat((y[:, :, :1], y[:, :, 1:] * cos + _rotate_pairs(y[:, :, 1:]) * sin), dim=2) for y in (q, k))
        attended = F.scaled_dot_product_attention(q, k, v)
        return self.proj(self.inner_attn_ln(attended.transpose(1, 2).flatten(2)))


def _split_heads(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)  # (B, H, T, D)


def _rotate_half(x: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=-1)
    return torch.cat((-b, a), dim=-1)


def _rotate_pairs(x: Tensor) -> Tensor:
    return torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2)
