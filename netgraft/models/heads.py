"""Which layers of a classifier give its logits, a row a class, and new ones in their place for other classes."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from netgraft.errors import RequestError
from netgraft.models.creation import class_count
from netgraft.modules import eval_mode
from netgraft.seeding import derived_seed
from netgraft.splitting.split import logits_of


def replace_head(model: nn.Module, classes: int, data_config: Mapping[str, Any], *, seed: int) -> tuple[nn.Module, ...]:
    """Give a classifier a head for another number of classes, in place; all other weights stay.

    The head is what it does: the linear layers and convolutions with a row a class that moves that class's logit alone.
    Two of them whose logits are averaged are both replaced.

    Args:
        model: (B, C, H, W) -> logits (B, K); unchanged where it is refused.
        classes: How many it gets.
        data_config: Preprocessing; ``input_size`` (C, H, W) is what it is tried with.
        seed: Of the new weights, which start as PyTorch starts such layers.

    Returns:
        The new layers.

    Raises:
        RequestError: No such layer, or other layers depend on how many classes there are.
    """
    had, weight = class_count(model), next(model.parameters())
    probe = torch.randn(2, *data_config["input_size"], generator=torch.Generator().manual_seed(0)).to(weight)
    refusal = (
        f"expected a student of {classes:,} classes, or one whose head can be replaced, got {type(model).__name__} of "
        f"{had:,} whose logits no linear layer or convolution gives a row a class; give it a head for {classes:,}"
    )
    old = head_layers(model, probe)
    if not old:
        raise RequestError(refusal)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed("head", seed))
        new = {name: _for_classes(layer, classes) for name, layer in old.items()}
    try:
        _put(model, new, classes)
        with torch.no_grad(), eval_mode(model):
            fits = logits_of(model, probe).shape == (len(probe), classes)
    except RequestError:
        fits = False
    if not fits:
        _put(model, old, had)
        raise RequestError(refusal)
    return tuple(new.values())


@torch.no_grad()
def head_layers(model: nn.Module, probe: Tensor) -> dict[str, nn.Module]:
    """Return the layers that have a row for each of a model's K classes, each of which moves its own logit alone.

    Args:
        model: A classifier.
        probe: Images (B, C, H, W).

    Returns:
        Layers by their names; empty where there are none.
    """
    count = class_count(model)
    candidates = {
        name: layer
        for name, layer in model.named_modules()
        if name and isinstance(layer, nn.Linear | nn.Conv2d) and _rows(layer) == count
    }
    with eval_mode(model):
        before = logits_of(model, probe)
        if before.shape[1:] != (count,):
            return {}
        return {name: layer for name, layer in candidates.items() if _moves_its_own(layer, model, probe, before)}


def _rows(layer: nn.Linear | nn.Conv2d) -> int:
    """How many outputs a layer's own weight has; none where it is computed of others, as by weight norm."""
    weight = layer._parameters.get("weight")
    return 0 if weight is None else len(weight)


def _moves_its_own(layer: nn.Module, model: nn.Module, probe: Tensor, before: Tensor) -> bool:
    """Whether other weights in every second row change the logits of these classes, and of no others."""
    weight = cast(Tensor, layer.weight)
    kept = weight.clone()
    try:
        weight[::2] = 2 * kept.std(correction=0).clamp_min(1e-3) - kept[::2]
        after = logits_of(model, probe)
    finally:
        weight.copy_(kept)
    moved = (after - before).abs().amax(0)
    # a sum over other rows may be taken in another order
    return bool(moved[::2].max() > 0) and bool((moved[1::2] <= 1e-5 * before.abs().max()).all())


def _for_classes(layer: nn.Module, classes: int) -> nn.Module:
    """Return a layer of the same kind with so many rows."""
    new: Any = copy.deepcopy(layer)
    for name, parameter in new.named_parameters(recurse=False):
        shape = (classes, *parameter.shape[1:])
        setattr(new, name, nn.Parameter(parameter.new_empty(shape), requires_grad=parameter.requires_grad))
    setattr(new, "out_features" if isinstance(new, nn.Linear) else "out_channels", classes)
    new.reset_parameters()
    return new


def _put(model: nn.Module, layers: Mapping[str, nn.Module], classes: int) -> None:
    for name, layer in layers.items():
        model.set_submodule(name, layer)
    cast(Any, model).num_classes = classes
