"""The sizes in which a narrowed model differs from what its constructor makes: read off it, written down, put on."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
import torch
from timm.layers.grn import GlobalResponseNorm
from torch import Tensor, nn

from netgraft.deriving.absence import leave_out, left_out
from netgraft.deriving.low_rank import factor, low_rank_layers

Positive = Annotated[int, msgspec.Meta(gt=0)]
PositiveFloat = Annotated[float, msgspec.Meta(gt=0)]


@dataclass(frozen=True)
class Sizes:
    """What is of another size than the constructor makes it.

    Attributes:
        shapes: Of parameters and buffers, by name.
        counts: Numbers that modules compute with and that no shape tells: groups of convolutions, heads of attention,
            how wide these are, what logits are scaled by, and what norms of responses add to their mean; by the name of
            the module and of its attribute.
        absent: What was left out: names of modules, and of what stands in their place.
        low_rank: Names of the convolutions that are two each.
    """

    shapes: Mapping[str, tuple[Positive, ...]]
    counts: Mapping[str, Mapping[str, Positive | PositiveFloat]]
    absent: Mapping[str, str]
    low_rank: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.shapes or self.counts or self.absent or self.low_rank)

    @classmethod
    def of(cls, model: nn.Module, reference: nn.Module) -> Sizes:
        """Compare a model with a new one of its constructor.

        Args:
            model: Narrowed.
            reference: As it was before; loses what the other has lost.

        Raises:
            ValueError: They have other parameters, buffers or modules.
        """
        absent, low_rank = left_out(model), tuple(low_rank_layers(model))
        leave_out(reference, absent)
        factor(reference, low_rank)
        tensors, originals = dict(_tensors(model)), dict(_tensors(reference))
        if tensors.keys() != originals.keys():
            raise ValueError(
                f"the models have other parameters; the first is {min(tensors.keys() ^ originals.keys())!r}"
            )
        counts, old_counts = _counts(model), _counts(reference)
        return cls(
            {name: tuple(value.shape) for name, value in tensors.items() if value.shape != originals[name].shape},
            {name: count for name, count in counts.items() if count != old_counts[name]},
            absent,
            low_rank,
        )

    @classmethod
    def whole(cls, model: nn.Module) -> Sizes:
        """Return all sizes of a model that there is no reference for."""
        shapes = {name: tuple(value.shape) for name, value in _tensors(model)}
        return cls(shapes, _counts(model), left_out(model), tuple(low_rank_layers(model)))

    def put_on(self, model: nn.Module) -> None:
        """Give a new model these sizes, and leave out what is left out; what changes its size is zero.

        Raises:
            ValueError: It has no such parameters or layers.
        """
        leave_out(model, self.absent)
        factor(model, self.low_rank)
        tensors = dict(_tensors(model))
        for name, shape in self.shapes.items():
            if name not in tensors:
                raise ValueError(f"the model has no {name!r}")
            if shape == tuple(tensors[name].shape):
                continue
            if len(shape) != tensors[name].dim():
                raise ValueError(f"{name!r} has {tensors[name].dim()} dimensions, not {len(shape)}")
            replace_tensor(model, name, torch.zeros(shape, dtype=tensors[name].dtype))
        known = _counts(model)
        for name, counts in self.counts.items():
            if name not in known or not counts.keys() <= known[name].keys():
                raise ValueError(f"the model has no {name!r} with {', '.join(counts)}")
        tell_sizes(model, self.counts)

    def to_json(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        return {
            "shapes": {name: list(shape) for name, shape in self.shapes.items()},
            "counts": {name: dict(counts) for name, counts in self.counts.items()},
            "absent": dict(self.absent),
            **({"low_rank": list(self.low_rank)} if self.low_rank else {}),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Sizes:
        """Return what :meth:`to_json` wrote.

        Raises:
            ValueError: It is damaged.
        """
        try:
            return msgspec.convert(value, cls)
        except msgspec.ValidationError as error:
            raise ValueError(f"the sizes are damaged: {error}") from error


def _tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Return what a file keeps; the constructor or a forward makes the other buffers, and none of them is narrowed."""
    kept = model.state_dict().keys()
    return [(name, value) for name, value in (*model.named_parameters(), *model.named_buffers()) if name in kept]


HEADS = ("num_heads", "heads")
"""What attention calls the number of its heads."""

WIDTHS_OF_A_HEAD = ("head_dim", "dim_head", "attention_head_size", "key_dim", "val_dim", "value_dim", "d")
"""What it calls the width of a head."""

_WIDTHS_OF_HEADS = ("attn_dim", "val_attn_dim", "key_attn_dim", "inner_dim", "all_head_size")
"""What it calls the width of all heads together."""

SCALE = "scale"
"""What it multiplies logits by."""

EPSILON = "eps"
"""What a norm of responses adds to their mean."""


def _counts(model: nn.Module) -> dict[str, dict[str, int | float]]:
    found: dict[str, dict[str, int | float]] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            found[name] = {"groups": module.groups}
        elif isinstance(module, GlobalResponseNorm):
            found[name] = {EPSILON: module.eps}
        else:
            counts = {key: vars(module).get(key) for key in (*HEADS, *WIDTHS_OF_A_HEAD, *_WIDTHS_OF_HEADS)}
            found[name] = {key: count for key, count in counts.items() if isinstance(count, int) and count > 0}
            scale = vars(module).get(SCALE)
            if isinstance(scale, float) and scale > 0:
                found[name][SCALE] = scale
    return {name: counts for name, counts in found.items() if counts}


def counts_of_heads(
    module: nn.Module, heads: tuple[int, int] | None, widths: Sequence[tuple[int, int]], scaled: Collection[int] = ()
) -> dict[str, int | float]:
    """Return the numbers of an attention that lost some of its heads, or of their widths; of those that change.

    Args:
        module: That says how many heads it has, or how wide they are.
        heads: How many it has, and how many stay; None where that isn't known.
        widths: Of a head, and what stays of it; of those that become narrower.
        scaled: The widths from whose root its scale of logits comes, if it has one.
    """
    before, after = heads or (1, 1)
    left: dict[str, int | float] = {}
    for key, count in _counts(module).get("", {}).items():
        if key in HEADS:
            left[key] = after
        elif key in WIDTHS_OF_A_HEAD:
            left[key] = next((kept for width, kept in widths if width == count), count)
        elif key in _WIDTHS_OF_HEADS:
            of_each = next(((width, kept) for width, kept in widths if width * before == count), (1, 1))
            left[key] = int(count) // before * after // of_each[0] * of_each[1]
        elif key == SCALE:
            roots = [kept for width, kept in widths if width in scaled and math.isclose(width**-0.5, count)]
            left[key] = roots[0] ** -0.5 if roots else count
    return {key: count for key, count in left.items() if count != vars(module)[key]}


def replace_tensor(model: nn.Module, name: str, value: Tensor) -> None:
    """Put ``value`` wherever the parameter or buffer with this name stands; a shared one has several places."""
    owner, _, leaf = name.rpartition(".")
    old = getattr(model.get_submodule(owner), leaf)
    new = nn.Parameter(value, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else value
    for module in model.modules():
        for store in (module._parameters, module._buffers):
            for key, tensor in store.items():
                if tensor is old:
                    store[key] = new  # type: ignore[assignment]


def tell_sizes(model: nn.Module, counts: Mapping[str, Mapping[str, int | float]]) -> None:
    """Make the numbers that layers print and compute with those of their weights.

    Args:
        model: Changed in place.
        counts: What no weight tells, by the name of the module and of its attribute; the others keep theirs.
    """
    for name, layer in model.named_modules():
        for key, count in counts.get(name, {}).items():
            setattr(layer, key, count)
        if isinstance(layer, nn.Conv2d):
            layer.out_channels = layer.weight.shape[0]
            layer.in_channels = layer.weight.shape[1] * layer.groups
        elif isinstance(layer, nn.Linear):
            layer.out_features, layer.in_features = layer.weight.shape
        elif isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.weight is not None:
            layer.num_features = len(layer.weight)
        elif isinstance(layer, nn.LayerNorm) and layer.weight is not None:
            layer.normalized_shape = tuple(layer.weight.shape)
