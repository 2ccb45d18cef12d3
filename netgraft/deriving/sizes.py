"""The sizes in which a narrowed model differs from what its constructor makes: read off it, written down, put on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Sizes:
    """What is of another size than the constructor makes it.

    Attributes:
        shapes: Of parameters and buffers, by name.
        groups: Of convolutions, by name.
    """

    shapes: Mapping[str, tuple[int, ...]]
    groups: Mapping[str, int]

    def __bool__(self) -> bool:
        return bool(self.shapes or self.groups)

    @classmethod
    def of(cls, model: nn.Module, reference: nn.Module) -> Sizes:
        """Compare a model with a new one of its constructor.

        Args:
            model: Narrowed.
            reference: As it was before.

        Raises:
            ValueError: They have other parameters, buffers or modules.
        """
        tensors, originals = dict(_tensors(model)), dict(_tensors(reference))
        if tensors.keys() != originals.keys():
            raise ValueError(
                f"the models have other parameters; the first is {min(tensors.keys() ^ originals.keys())!r}"
            )
        groups, old_groups = _groups(model), _groups(reference)
        return cls(
            {name: tuple(value.shape) for name, value in tensors.items() if value.shape != originals[name].shape},
            {name: count for name, count in groups.items() if count != old_groups[name]},
        )

    def put_on(self, model: nn.Module) -> None:
        """Give a new model these sizes; what changes its size is zero.

        Raises:
            ValueError: It has no such parameters or layers.
        """
        tensors = dict(_tensors(model))
        for name, shape in self.shapes.items():
            if name not in tensors:
                raise ValueError(f"the model has no {name!r}")
            if len(shape) != tensors[name].dim():
                raise ValueError(f"{name!r} has {tensors[name].dim()} dimensions, not {len(shape)}")
            replace_tensor(model, name, torch.zeros(shape, dtype=tensors[name].dtype))
        if not self.groups.keys() <= _groups(model).keys():
            raise ValueError(f"the model has no convolution {min(self.groups.keys() - _groups(model).keys())!r}")
        tell_sizes(model, self.groups)

    def to_json(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        return {"shapes": {name: list(shape) for name, shape in self.shapes.items()}, "groups": dict(self.groups)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Sizes:
        """Return what :meth:`to_json` wrote.

        Raises:
            ValueError: It is damaged.
        """
        parts = (value["shapes"], value["groups"])
        if not all(isinstance(part, dict) for part in parts):
            raise ValueError("sizes must be given by name")
        shapes = {str(name): tuple(shape) for name, shape in value["shapes"].items()}
        numbers = [*value["groups"].values(), *(size for shape in shapes.values() for size in shape)]
        if not all(type(number) is int and number > 0 for number in numbers):
            raise ValueError("sizes must be positive numbers")
        return cls(shapes, {str(name): count for name, count in value["groups"].items()})


def _tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]


def _groups(model: nn.Module) -> dict[str, int]:
    return {name: layer.groups for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d)}


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


def tell_sizes(model: nn.Module, groups: Mapping[str, int]) -> None:
    """Make the numbers that layers print and compute with those of their weights.

    Args:
        model: Changed in place.
        groups: Of convolutions, by name; the others keep theirs.
    """
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Conv2d):
            layer.groups = groups.get(name, layer.groups)
            layer.out_channels = layer.weight.shape[0]
            layer.in_channels = layer.weight.shape[1] * layer.groups
        elif isinstance(layer, nn.Linear):
            layer.out_features, layer.in_features = layer.weight.shape
        elif isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.weight is not None:
            layer.num_features = len(layer.weight)
