"""Small transformers of several kinds, with random weights."""

from __future__ import annotations

from typing import Any

import timm
import torch
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from tests.support.derivable import CLASSES, randomised


class Apart(nn.Module):
    """Attention with separate queries, keys and values, of widths of their own; no norm stands in front.

    Args:
        by_width: Divide logits by the root of whatever width queries have, and not by a number of its own.
        rotated: Turn pairs of channels by a token's position, as rotary embeddings do.
        said: Keep one width for all three, and reshape by it.
        shared: One head of keys for all heads of queries.
    """

    def __init__(
        self,
        channels: int,
        width: int,
        value_width: int,
        *,
        by_width: bool = True,
        rotated: bool = False,
        said: bool = False,
        shared: bool = False,
    ) -> None:
        super().__init__()
        self.num_heads, self.divisor = 2, width**0.5
        self.by_width, self.rotated, self.shared = by_width, rotated, shared
        if said:
            self.head_dim = width
        self.q = nn.Linear(channels, 2 * width)
        self.k = nn.Linear(channels, (1 if shared else 2) * width)
        self.v, self.proj = nn.Linear(channels, 2 * value_width), nn.Linear(2 * value_width, channels)

    def heads(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        if hasattr(self, "head_dim"):
            return x.reshape(batch, tokens, -1, self.head_dim).transpose(1, 2)
        return x.reshape(batch, tokens, self.num_heads, -1).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        q, v = self.heads(self.q(x)), self.heads(self.v(x))
        k = self.k(x).unsqueeze(1).expand(-1, 2, -1, -1) if self.shared else self.heads(self.k(x))
        if self.rotated:
            q, k = (self.rotate(each) for each in (q, k))
        logits = q @ k.transpose(-2, -1) / (q.shape[-1] ** 0.5 if self.by_width else self.divisor)
        return self.proj((logits.softmax(-1) @ v).transpose(1, 2).flatten(2))

    def rotate(self, x: Tensor) -> Tensor:
        angle = torch.arange(x.shape[-2])[:, None].to(x) * torch.linspace(0.1, 1, x.shape[-1]).to(x)
        left, right = x.chunk(2, -1)
        return x * angle.cos() + torch.cat([-right, left], -1) * angle.sin()


class OfPatches(nn.Module):
    """One attention over the patches of an image of 8 pixels."""

    def __init__(self, attention: nn.Module, channels: int = 12) -> None:
        super().__init__()
        self.embed, self.attn = nn.Conv2d(3, channels, 2, stride=2), attention
        self.position = nn.Parameter(torch.zeros(1, 16, channels))
        self.head = nn.Linear(channels, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2) + self.position
        return self.head(F.gelu(self.attn(x)).mean(1))


def apart(**options: Any) -> nn.Module:
    """Queries and keys 8 wide, values 6."""
    return randomised(OfPatches(Apart(12, 8, 8 if options.get("said") else 6, **options)))


def vit(side: int = 8, **options: Any) -> nn.Module:
    """timm's vision transformer: two blocks, two heads of 16."""
    sizes: dict[str, Any] = {"img_size": side, "patch_size": side // 4, "embed_dim": 32, "num_heads": 2, "depth": 2}
    return randomised(timm.create_model("vit_tiny_patch16_224", num_classes=CLASSES, **sizes, **options))


def swin() -> nn.Module:
    """timm's Swin transformer: two stages, of which the first shifts its windows."""
    model = SwinTransformer(
        img_size=16, patch_size=2, embed_dim=16, depths=(2, 1), num_heads=(2, 2), window_size=4, num_classes=CLASSES
    )
    return randomised(model)


@torch.no_grad()
def redundant(model: nn.Module, rank: int, seed: int = 0) -> nn.Module:
    """Give each head of timm's vision transformer products ``W_Q^T W_K`` and ``W_O W_V`` of some rank, in place.

    No channel of a head is zero, nor a copy of another one.
    """
    generator = torch.Generator().manual_seed(seed)
    for block in model.get_submodule("blocks").children():
        attention = block.get_submodule("attn")
        heads = int(attention.num_heads)  # type: ignore[arg-type]
        weight = attention.get_parameter("qkv.weight")
        bias = attention.get_parameter("qkv.bias")
        rows = weight.unflatten(0, (3, heads, -1))  # a view: queries, keys, values
        for of_heads in rows[1:]:
            for head in of_heads:
                width, channels = head.shape
                mixed = torch.randn(width, rank, generator=generator) / rank**0.5
                head.copy_(mixed @ (torch.randn(rank, channels, generator=generator) / channels**0.5))
        bias.copy_(torch.randn(bias.shape, generator=generator) * 0.3)
    return model
