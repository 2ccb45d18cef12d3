"""What layers take in and give, seen on a few images: captured calls, and streamed means and covariances."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from netgraft.modules import eval_mode


@dataclass(frozen=True, eq=False)
class LayerCall:
    """One call of a convolution or linear layer.

    Attributes:
        inputs: Of a linear layer (..., F); of a convolution (B, C, H, W), padded by zeros already.
        outputs: (..., O) or (B, O, H', W').
        kernel: Height and width; None of a linear layer.
        stride: Of a convolution.
        dilation: Likewise.
        groups: Likewise.
    """

    inputs: Tensor
    outputs: Tensor
    kernel: tuple[int, int] | None = None
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    @property
    def positions(self) -> int:
        """How many rows there are: tokens, or positions of the output, of the whole batch."""
        return self.outputs.numel() // self.channels

    @property
    def channels(self) -> int:
        """How many outputs a row has."""
        return self.outputs.shape[1 if self.kernel else -1]

    def output_rows(self, rows: Tensor) -> Tensor:
        """Return outputs (R, O) of some rows."""
        outputs = self.outputs.movedim(1, -1) if self.kernel else self.outputs
        return outputs.reshape(-1, self.channels)[rows]

    def channel_rows(self, rows: Tensor) -> Tensor:
        """Return inputs (R, C) of some rows: under a kernel's middle tap."""
        if self.kernel is None:
            return self.inputs.reshape(-1, self.inputs.shape[-1])[rows]
        taps = self._taps()
        middle = taps[..., (self.kernel[0] - 1) // 2, (self.kernel[1] - 1) // 2]
        return middle[self._coordinates(rows)]

    def unfolded_rows(self, rows: Tensor) -> Tensor:
        """Return inputs (R, C * kernel) of some rows: all that a kernel covers, in the order of its weight."""
        if self.kernel is None:
            return self.channel_rows(rows)
        return self._taps()[self._coordinates(rows)].flatten(1)

    def _taps(self) -> Tensor:
        """A view (B, H', W', C, kernel height, kernel width) of the inputs."""
        assert self.kernel is not None
        view = self.inputs
        for dim, (size, stride, dilation) in enumerate(zip(self.kernel, self.stride, self.dilation, strict=True), 2):
            view = view.unfold(dim, (size - 1) * dilation + 1, stride)[..., ::dilation]
        return view.permute(0, 2, 3, 1, 4, 5)

    def _coordinates(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        height, width = self.outputs.shape[2:]
        return rows // (height * width), rows // width % height, rows % width


class _Finished(Exception):  # noqa: N818  (no error: it ends a forward whose rest nobody needs)
    """All that was looked for has been seen."""


class _Capture(TorchFunctionMode):
    """Sees the calls of some layers, told apart by their weights: modules may lie in any graph that shares them."""

    def __init__(self, weights: Mapping[int, str], seen: Callable[[str, LayerCall], None], *, stop: bool) -> None:
        super().__init__()
        self._weights = weights
        self._seen = seen
        self._missing = set(weights.values()) if stop else None

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func in {torch.conv2d, F.linear}:
            given = dict(zip(_ARGUMENTS, args, strict=False)) | kwargs
            name = self._weights.get(id(given["weight"]))
            if name is None:
                return result
            self._seen(name, _call(func, given, result))
            if self._missing is not None:
                self._missing.discard(name)
                if not self._missing:
                    raise _Finished
        return result


_ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
"""Of a convolution; a linear layer has the first three."""


def _call(func: Any, given: Mapping[str, Any], result: Tensor) -> LayerCall:
    if func is F.linear:
        return LayerCall(given["input"], result)
    kernel = tuple(given["weight"].shape[2:])
    stride, dilation = _pair(given.get("stride", 1)), _pair(given.get("dilation", 1))
    padding = given.get("padding", 0)
    if padding == "same":
        needed = [(size - 1) * step for size, step in zip(kernel, dilation, strict=True)]
        sides = [side for total in reversed(needed) for side in (total // 2, total - total // 2)]
    else:
        height, width = (0, 0) if padding == "valid" else _pair(padding)
        sides = [width, width, height, height]
    inputs = F.pad(given["input"], sides) if any(sides) else given["input"]
    return LayerCall(inputs, result, cast(tuple[int, int], kernel), stride, dilation, given.get("groups", 1))


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


@torch.no_grad()
def capture(
    model: nn.Module,
    images: Tensor,
    layers: Mapping[str, nn.Module],
    seen: Callable[[str, LayerCall], None],
    *,
    stop: bool = False,
) -> None:
    """Run ``model`` in eval mode and hand out the calls of some of its layers.

    Args:
        model: Or one of the blocks of a chain that shares its weights.
        images: What it takes in.
        layers: Convolutions and linear layers, by name.
        seen: Called with a layer's name and each of its calls.
        stop: End the forward as soon as each of the layers has been called.
    """
    weights = {id(layer.weight): name for name, layer in layers.items()}
    with eval_mode(model), _Capture(weights, seen, stop=stop), suppress(_Finished):
        model(images)


@dataclass(eq=False)
class Moments:
    """Mean and covariance of rows, summed up batch by batch.

    Attributes:
        count: Of rows.
        origin: (F,), float64, from which rows are counted, the mean of the first ones: what hardly changes keeps its
            digits in products in single precision.
        total: Of what rows are beyond the origin, (F,), float64.
        products: Sum of its outer products, (F, F), float64.
    """

    count: int
    origin: Tensor
    total: Tensor
    products: Tensor

    @classmethod
    def empty(cls, features: int) -> Moments:
        """Return those of no rows."""
        zeros = torch.zeros(features, dtype=torch.float64)
        return cls(0, zeros, zeros.clone(), torch.zeros(features, features, dtype=torch.float64))

    def add(self, rows: Tensor) -> None:
        """Add rows (R, F)."""
        rows = rows.float()
        if self.count == 0:
            self.origin = rows.mean(0).cpu().double()
        beyond = rows - self.origin.to(rows)
        self.count += len(rows)
        self.total += beyond.sum(0).cpu().double()
        self.products += (beyond.T @ beyond).cpu().double()

    @property
    def mean(self) -> Tensor:
        """(F,), float64."""
        return self.origin + self.total / max(self.count, 1)

    def covariance(self, *, centred: bool) -> Tensor:
        """Return (F, F), float64: about the mean, or about zero."""
        beyond = self.total / max(self.count, 1)
        about_mean = self.products / max(self.count, 1) - torch.outer(beyond, beyond)
        return about_mean if centred else about_mean + torch.outer(self.mean, self.mean)


MOST_FEATURES = 8192
"""That a layer's input may have: the covariance of more would take more than half a gigabyte."""

ROWS_A_FEATURE, LEAST_ROWS = 16, 16384
"""Rows wanted for each feature, and at least: more change a covariance by less than what it is used for."""


def rows_a_batch(features: int, batches: int) -> int:
    """Return how many rows each of several batches is to give for a covariance of so many features."""
    return -(-max(ROWS_A_FEATURE * features, LEAST_ROWS) // batches)


def sampled_rows(call: LayerCall, wanted: int, generator: torch.Generator) -> Tensor:
    """Choose rows of one call at random; all of them where there are no more than wanted."""
    if call.positions <= wanted:
        return torch.arange(call.positions)
    return torch.randint(call.positions, (wanted,), generator=generator)


def input_moments(
    model: nn.Module,
    batches: Sequence[Tensor],
    layers: Mapping[str, nn.Module],
) -> dict[str, Moments]:
    """Return moments of what layers take in, channel by channel.

    Args:
        model: In which the layers are.
        batches: Of images; each gives its part of the rows.
        layers: By name.
    """
    generator = torch.Generator().manual_seed(0)
    moments: dict[str, Moments] = {}

    def seen(name: str, call: LayerCall) -> None:
        features = call.inputs.shape[1 if call.kernel else -1]
        wanted = rows_a_batch(features, len(batches))
        moments.setdefault(name, Moments.empty(features)).add(call.channel_rows(sampled_rows(call, wanted, generator)))

    for images in batches:
        capture(model, images, layers, seen)
    return moments
