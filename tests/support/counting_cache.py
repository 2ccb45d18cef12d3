"""A cache over views and blocks that count what they are asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from netgraft.training.cache_storage import MemoryStorage, Storage
from netgraft.training.frozen_cache import FrozenBlocks, FrozenCache, ReadingOrder

COUNT = 300  # more than one chunk, and no multiple of one

CHUNK = 256  # so many small views are computed at a time

FIRST_LOOK = 1  # one view is run to learn the sizes

PLENTY = 2**30


class Pictures:
    """Noise images with numbers."""

    def __init__(self, count: int = COUNT, side: int = 6) -> None:
        self.size = (3, side, side)
        self.pixels = torch.randn(count, *self.size, generator=torch.Generator().manual_seed(0))
        self.rendered: list[int] = []

    def __len__(self) -> int:
        return len(self.pixels)

    def batch(self, indices: Sequence[int] | Tensor) -> Tensor:
        numbers = torch.as_tensor(indices)
        self.rendered += numbers.tolist()
        return self.pixels[numbers].clone()


class Counting(nn.Module):
    """Runs another module and counts the views that it has seen."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.views = 0

    def forward(self, x: Tensor) -> Tensor:
        self.views += len(x)
        return self.inner(x)


def blocks() -> list[Counting]:
    """Three blocks and a head with random weights, in eval mode."""
    torch.manual_seed(0)
    chain = [
        nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)),
        nn.Sequential(nn.ReLU(inplace=True), nn.MaxPool2d(2)),
        nn.Conv2d(4, 8, 3, padding=1),
        nn.Sequential(nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)),
    ]
    return [Counting(block).eval().requires_grad_(False) for block in chain]


def every_view(cycles: int = 2, count: int = COUNT, batch_size: int = 50) -> list[Tensor]:
    """Batches that show every view once a cycle, in an order that differs between cycles."""
    generator = torch.Generator().manual_seed(1)
    return [batch for _ in range(cycles) for batch in torch.randperm(count, generator=generator).split(batch_size)]


def cache(
    views: Pictures,
    *,
    order: Sequence[Tensor] | None = None,
    storages: Sequence[Storage] = (MemoryStorage(torch.device("cpu"), PLENTY),),
    dtype: torch.dtype = torch.float32,
    faster: Mapping[nn.Module, nn.Module] | None = None,
) -> FrozenCache:
    def plain() -> AbstractContextManager[object]:
        return nullcontext()

    read = ReadingOrder.of(every_view() if order is None else order, len(views))
    return FrozenCache(views, read, torch.device("cpu"), storages, plain, dtype, faster or {})


def memory(limit: int) -> MemoryStorage:
    return MemoryStorage(torch.device("cpu"), limit)


def one(outputs: FrozenCache, prefix: FrozenBlocks, indices: Tensor) -> Tensor:
    return outputs.read([prefix], indices)[prefix]


def several(outputs: FrozenCache, prefixes: Sequence[FrozenBlocks], indices: Tensor) -> list[Tensor]:
    found = outputs.read(prefixes, indices)
    return [found[prefix] for prefix in prefixes]


@torch.no_grad()
def direct(views: Pictures, prefix: FrozenBlocks, indices: Tensor) -> Tensor:
    """The prefix on the images themselves, in float64 and one image at a time."""
    outputs = []
    for number in indices.tolist():
        image = views.pixels[number : number + 1].double()
        for block in prefix:
            image = block.double()(image.clone())
            block.float()
        outputs.append(image)
    return torch.cat(outputs)


SOME = torch.tensor([299, 0, 17, 17, 256, 255, 3])
