"""jina-clip-v1's text tower written plainly in torch, as `edgeclip_bench.rivals.plain_towers` has the others."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeclip_export.families.jina_clip.bert_text import BertTextConfig


class PlainAlibiTextTower(nn.Module):
    """(B, T) ids -> (B, D) unit rows. What ALiBi adds to the scores is a tensor (1, H, T, T), as in the reference."""

    def __init__(self, config: BertTextConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = nn.ModuleDict(
            {
                "word_embeddings": nn.Embedding(config.vocab_size, config.width),
                "token_type_embeddings": nn.Embedding(config.token_types, config.width),
            }
        )
        self.emb_ln = nn.LayerNorm(config.width, config.layer_norm_eps)
        self.encoder = _Layers(config)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Normalised embeddings."""
        return F.normalize(self.features(input_ids), dim=-1)

    def features(self, input_ids: Tensor) -> Tensor:
        """Un-normalised features (B, D)."""
        mask = input_ids != self.config.pad_id
        bias = self._bias(input_ids, self.slopes().to(input_ids.device))
        h = self._hidden(input_ids, bias + torch.where(mask, 0.0, -10000.0)[:, None, None])
        return (h * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)

    def tabled_features(self, input_ids: Tensor, slopes: Tensor) -> Tensor:
        """The features (B, D) of texts without padding, without a mask."""
        return self._hidden(input_ids, self._bias(input_ids, slopes)).mean(dim=1)

    def tables(self, longest: int) -> tuple[Tensor]:
        """What `tabled_features` takes besides the ids; a table for the longest text would be gigabytes."""
        return (self.slopes(),)

    def slopes(self) -> Tensor:
        """What each head takes from a score for each token of distance: (H, 1, 1)."""
        heads, power = self.config.heads, 1
        while 2 * power <= heads:
            power *= 2
        slopes = [2.0 ** (-8.0 * step / power) for step in range(1, power + 1)]
        slopes += [2.0 ** (-4.0 * step / power) for step in range(1, 2 * (heads - power), 2)]
        return torch.tensor(slopes)[:, None, None]

    def _bias(self, input_ids: Tensor, slopes: Tensor) -> Tensor:
        tokens = torch.arange(input_ids.shape[1], device=input_ids.device)
        return -slopes * (tokens[:, None] - tokens).abs()[None, None]  # (1, H, T, T)

    def _hidden(self, input_ids: Tensor, bias: Tensor) -> Tensor:
        words, types = self.embeddings["word_embeddings"], self.embeddings["token_type_embeddings"]
        h: Tensor = self.emb_ln(words(input_ids) + types(torch.zeros_like(input_ids)))
        for layer in self.encoder.layers:
            h = layer(h, bias)
        return h


class _Layers(nn.Module):
    def __init__(self, config: BertTextConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.layers))


class _Layer(nn.Module):
    def __init__(self, config: BertTextConfig) -> None:
        super().__init__()
        self.heads = config.heads
        width, mlp = config.width, config.mlp_width
        self.mixer = nn.ModuleDict({"Wqkv": nn.Linear(width, 3 * width), "out_proj": nn.Linear(width, width)})
        self.norm1 = nn.LayerNorm(width, config.layer_norm_eps)
        self.mlp = nn.ModuleDict({"gated_layers": nn.Linear(width, 2 * mlp, bias=False), "wo": nn.Linear(mlp, width)})
        self.norm2 = nn.LayerNorm(width, config.layer_norm_eps)

    def forward(self, h: Tensor, bias: Tensor) -> Tensor:
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in self.mixer["Wqkv"](h).chunk(3, dim=-1))
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        h = self.norm1(h + self.mixer["out_proj"](attended.transpose(1, 2).flatten(2)))
        gate, up = self.mlp["gated_layers"](h).chunk(2, dim=-1)
        last: Tensor = self.norm2(h + self.mlp["wo"](F.gelu(gate) * up))
        return last
