"""Small networks whose channels go together in different ways, with random weights and statistics."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from timm.layers.grn import GlobalResponseNorm
from torch import Tensor, nn
from torch.nn import functional as F

from netgraft.deriving.anatomy import Anatomy
from netgraft.deriving.following import ChannelMap, follow_channels
from netgraft.deriving.head_losses import losing_at
from netgraft.deriving.library import readers_of
from netgraft.deriving.narrowing import Kept
from netgraft.deriving.places import Place, find_places
from netgraft.deriving.selection import kept_channels, surgeon_removal
from netgraft.deriving.solving import narrowed_start, solve_front_to_back

CLASSES = 5


def conv(inputs: int, outputs: int, kernel: int = 3, *, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """A convolution that keeps the size, a batch norm and a ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class Head(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc = nn.Linear(channels, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.mean((2, 3)))


class Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = conv(inputs, outputs, stride=stride)
        self.conv2 = nn.Sequential(*list(conv(outputs, outputs))[:2])
        self.down = None if inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv2(self.conv1(x)) + (x if self.down is None else self.down(x)))


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(channels, hidden, 1), nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.expand(F.silu(self.reduce(x.mean((2, 3), keepdim=True)))).sigmoid()


class InvertedResidual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        wide = 3 * channels
        self.body = nn.Sequential(
            conv(channels, wide, 1),
            conv(wide, wide, 3, groups=wide),
            SqueezeExcite(wide, 4),
            *list(conv(wide, channels, 1))[:2],
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = conv(3, 8), conv(8, 4), conv(12, 6)

    def forward(self, x: Tensor) -> Tensor:
        first = self.first(x)
        both = torch.cat([first, self.second(first)], 1)
        return torch.cat([both, self.third(both)], 1)


class Shuffle(nn.Module):
    """A half goes on, the other through a layer; then both are interleaved."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch = conv(channels // 2, channels // 2)

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, dim=1)
        x = torch.cat([left, self.branch(right)], 1)
        batch, channels, height, width = x.shape
        return x.view(batch, 2, channels // 2, height, width).transpose(1, 2).reshape(batch, channels, height, width)


class Gated(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(channels, 24), nn.Linear(12, channels)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.fc1(x).chunk(2, dim=-1)
        return self.fc2(F.silu(gate) * value)


class Attention(nn.Module):
    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.head_size = channels // heads
        self.qkv, self.proj = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, -1, self.head_size).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, -1))


class Transformer(nn.Module):
    def __init__(self, channels: int = 12, *, gated: bool = False) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, channels, 2, stride=2)
        self.position = nn.Parameter(torch.zeros(1, 16, channels))
        self.norm1, self.norm2, self.norm = (nn.LayerNorm(channels) for _ in range(3))
        self.attention = Attention(channels, 3)
        self.mlp = (
            Gated(channels) if gated else nn.Sequential(nn.Linear(channels, 20), nn.GELU(), nn.Linear(20, channels))
        )
        self.head = nn.Linear(channels, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2) + self.position
        x = x + self.attention(self.norm1(x))
        x = x + self.mlp(self.norm2(x))
        return self.head(self.norm(x).mean(1))


def plain() -> nn.Module:
    return nn.Sequential(conv(3, 8), conv(8, 16), Head(16))


def flattened() -> nn.Module:
    return nn.Sequential(
        conv(3, 8), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 10), nn.ReLU(), nn.Linear(10, CLASSES)
    )


def responses() -> nn.Module:
    """What a norm gives depends on the mean over all channels, as in ConvNeXt V2."""
    return nn.Sequential(
        conv(3, 8), nn.Conv2d(8, 16, 1), GlobalResponseNorm(16, channels_last=False), conv(16, 8, 1), Head(8)
    )


NETWORKS: Mapping[str, Callable[[], nn.Module]] = {
    "plain": plain,
    "residual": lambda: nn.Sequential(conv(3, 8), Residual(8, 8), Residual(8, 12, stride=2), Head(12)),
    "inverted": lambda: nn.Sequential(conv(3, 6), InvertedResidual(6), conv(6, 8, 1), Head(8)),
    "grouped": lambda: nn.Sequential(conv(3, 16), conv(16, 24, groups=4), Head(24)),
    "dense": lambda: nn.Sequential(Dense(), Head(18)),
    "shuffle": lambda: nn.Sequential(conv(3, 8), Shuffle(8), Shuffle(8), Head(8)),
    "transformer": Transformer,
    "gated": lambda: Transformer(gated=True),
    "flattened": flattened,
    "responses": responses,
}


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give norms and biases values that are not those of a new model; return it in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            fan = max(parameter[0].numel(), 1) if parameter.dim() > 1 else 9
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * (1.5 / fan**0.5))
            if parameter.dim() == 1:
                parameter.add_(0.3)
        for norm in model.modules():
            if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
                assert norm.running_mean is not None
                assert norm.running_var is not None
                norm.running_mean.copy_(torch.randn(norm.num_features, generator=generator) * 0.2)
                norm.running_var.copy_(torch.rand(norm.num_features, generator=generator) + 0.5)
    return model.eval()


def network(kind: str, seed: int = 0) -> nn.Module:
    return randomised(NETWORKS[kind](), seed)


def images(count: int = 2, seed: int = 1, side: int = 8) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def followed(model: nn.Module) -> tuple[ChannelMap, list[Place]]:
    found = follow_channels(model, images())
    return found, find_places(found)


def all_but(place: Place, *gone: int) -> Tensor:
    return torch.tensor([channel for channel in range(place.width) if channel not in gone])


def solved(anatomy: Anatomy, widths: Mapping[str, int], batches: list[Tensor]) -> tuple[nn.Module, Kept]:
    """Return a student in closed form, by names of places, and the channels that it has."""
    readers = readers_of(anatomy, batches)
    kept = {
        place.atom: kept_channels(surgeon_removal(place, losing_at(place, readers)).order, widths[place.name])
        for place in anatomy.places
        if place.name in widths
    }
    student = narrowed_start(anatomy, readers, kept)
    list(solve_front_to_back(anatomy, student, kept, batches))
    return student, kept
