"""Where the picture lies in a tensor: maps with channels first or last, tokens in rows, or in no such order.

Shapes narrow it down; where they leave a choice, or where the order of tokens can't be seen in a shape, a half of
the image is changed and the positions that change tell.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

MOST_PREFIX_TOKENS = 17
"""Class, distillation and register tokens; timm's largest models have 16 registers and a class token."""


_CONTRAST = 1.1
"""How much more the positions of the changed half must change than the others; unordered tokens change alike."""


_LOCALITY = 1.3
"""Where the half of the positions that changes most changes less than this times the other, nothing is local."""


@dataclass(frozen=True)
class Layout:
    """Of one tensor: ``NCHW``, ``NHWC``, ``tokens`` (batch, length, channels), ``other``, or ``tuple`` for several."""

    kind: str
    size: tuple[int, ...] = ()
    """Height and width of the map; empty where there is none."""
    prefix_tokens: int = 0
    """Tokens in front of the map's."""

    def map_of(self, state: Tensor) -> Tensor:
        """Return the map (B, H, W, C) in a tensor of this layout."""
        if self.kind == "NCHW":
            return state.movedim(1, -1)
        return state[:, self.prefix_tokens :].unflatten(1, self.size) if self.kind == "tokens" else state


NO_MAP = Layout("other")


def halves(images: Tensor) -> Tensor:
    """Return what tells where the picture lies in a tensor.

    Args:
        images: (B, C, H, W).

    Returns:
        Three images (3, C, H, W): the first of ``images``, with its left half changed, with its upper half changed.
    """
    height, width = images.shape[-2:]
    image = images[:1].clone()
    # by no means the image itself, also where it was drawn in the same way or is empty
    other = torch.randn(image.shape, generator=torch.Generator().manual_seed(2)).to(image) - image
    left, top = image.clone(), image.clone()
    left[..., : width // 2] = other[..., : width // 2]
    top[..., : height // 2, :] = other[..., : height // 2, :]
    return torch.cat([image, left, top])


def candidates(shape: Sequence[int], size: Sequence[int], *, prefix_tokens: int = 0) -> list[Layout]:
    """Return the layouts that a tensor may have, likeliest first.

    Args:
        shape: Without the batch dimension.
        size: Height and width of the image.
        prefix_tokens: How many the model says that it has.
    """
    if len(shape) == 3:
        first = [Layout("NCHW", tuple(shape[1:]))] if _in_proportion(shape[1], shape[2], size) else []
        last = [Layout("NHWC", tuple(shape[:2]))] if _in_proportion(shape[0], shape[1], size) else []
        return first + last
    if len(shape) == 2:
        found = [Layout("tokens", grid, shape[0] - grid[0] * grid[1]) for grid in _grids(shape[0], size)]
        return sorted(found, key=lambda layout: (layout.prefix_tokens != prefix_tokens, layout.prefix_tokens))
    return []


def _in_proportion(height: int, width: int, size: Sequence[int]) -> bool:
    if size[0] == size[1]:
        return height == width
    # rounding differs by a pixel at most where convolutions have no padding
    return abs(height * size[1] - width * size[0]) <= max(size)


def _grids(length: int, size: Sequence[int]) -> Iterator[tuple[int, int]]:
    for height in range(1, min(length, size[0]) + 1):
        width = round(height * size[1] / size[0])
        if width and 0 <= length - height * width <= MOST_PREFIX_TOKENS:
            yield height, width


def layout_of(
    state: Tensor | None, shape: Sequence[int], size: Sequence[int], *, prefix_tokens: int = 0, declared: str = ""
) -> Layout:
    """Tell the layout of a tensor by its shape and by what a changed half of the image changes in it.

    Args:
        state: What the model makes of ``halves``, (3, ...); None to go by shapes alone.
        shape: Of the tensor, without the batch dimension.
        size: Height and width of the image.
        prefix_tokens: How many the model says that it has.
        declared: ``NCHW`` or ``NHWC`` if the model says so.

    Returns:
        The likeliest layout; ``other`` where no picture is found.
    """
    possible = candidates(shape, size, prefix_tokens=prefix_tokens)
    if not possible:
        return NO_MAP
    if len(shape) == 3 and (len(possible) == 1 or state is None):
        return next((layout for layout in possible if layout.kind == declared), possible[0])
    if state is None:
        return possible[0]
    measured = [(contrast(state, layout), layout) for layout in possible]
    known = [(value, layout) for value, layout in measured if value is not None]
    if len(shape) == 3:
        return max(known, key=lambda pair: pair[0])[1] if known else possible[0]
    # the likeliest number of prefix tokens under which the rows are in order
    ordered = [layout for value, layout in known if value > _CONTRAST]
    if ordered:
        return ordered[0]
    return possible[0] if measured[0][0] is None else NO_MAP


def contrast(state: Tensor, layout: Layout) -> float | None:
    """Return how many times more the changed half of the map changes than the other, on the worse of two axes.

    None where that says nothing: the map is too small, nothing changes, or everything changes alike, as behind
    untrained attention without a residual path.

    Args:
        state: What the model makes of ``halves``, (3, ...).
        layout: That it may have.
    """
    maps = layout.map_of(state.detach()).float()
    changes = (maps[1:] - maps[:1]).abs().mean(-1)
    height, width = changes.shape[1:]
    if min(height, width) < 2 or not bool(changes.isfinite().all()) or not bool((changes.sum((1, 2)) > 0).all()):
        return None
    left = _ratio(changes[0, :, : width // 2], changes[0, :, (width + 1) // 2 :])
    top = _ratio(changes[1, : height // 2], changes[1, (height + 1) // 2 :])
    # in whatever order the positions are, no halves can differ more
    ordered = changes.flatten(1).sort(descending=True).values
    middle = height * width // 2
    most = min(_ratio(row[:middle], row[-middle:]) for row in ordered)
    return min(left, top) if most > _LOCALITY else None


def _ratio(changed: Tensor, other: Tensor) -> float:
    return float(changed.mean() / (other.mean() + torch.finfo(torch.float32).tiny))
