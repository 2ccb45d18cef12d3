"""The arguments with which a constructor makes a smaller model of its own: fewer blocks, narrower MLPs all alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from netgraft.deriving.absence import left_out
from netgraft.modules import eval_mode
from netgraft.splitting.split import logits_of

Make = Callable[[Mapping[str, Any]], nn.Module]
"""From arguments, beside those that are known, to a new model. Raises whatever a constructor raises."""


@dataclass(frozen=True, eq=False)
class PlainForm:
    """A model as its constructor makes it.

    Attributes:
        arguments: ``depth``, ``depths`` or ``layers``, and ``mlp_ratio``, where they are others than by default.
        model: In eval mode, with the weights under the names that they have there.
    """

    arguments: Mapping[str, Any]
    model: nn.Module


@torch.no_grad()
def plain_form(model: nn.Module, make: Make, probe: Tensor) -> PlainForm | None:
    """Return arguments and weights with which a constructor makes a model that computes the same, bit by bit.

    Args:
        model: A classifier that a constructor doesn't make without arguments.
        make: Calls the constructor.
        probe: Images (B, C, H, W) on which both must give the same.

    Returns:
        None where no such arguments are found.
    """
    try:
        with torch.device("meta"):
            usual = make({})
    except Exception:  # constructors raise many kinds
        return None
    stacks = _stacks(model, usual)
    names = _renumbered(model, stacks)
    if names is None:
        return None
    state = {names[name]: value for name, value in model.state_dict().items() if name in names}
    for arguments in _candidates(model, usual, stacks):
        made = _made(arguments, state, make)
        if made is not None and _computes_the_same(made.to(probe).eval(), model, probe):
            return PlainForm(arguments, made)
    return None


def _made(arguments: Mapping[str, Any], state: Mapping[str, Tensor], make: Make) -> nn.Module | None:
    """Return the model that arguments make, with its weights; None where these are of other names or sizes."""
    try:
        with torch.device("meta"):
            shapes = {name: value.shape for name, value in make(arguments).state_dict().items()}
        if shapes != {name: value.shape for name, value in state.items()}:
            return None
        with torch.random.fork_rng(devices=[]):
            made = make(arguments)
        made.load_state_dict(state)
    except Exception:  # constructors raise many kinds for arguments that they don't know
        return None
    return made


def _computes_the_same(made: nn.Module, model: nn.Module, probe: Tensor) -> bool:
    with eval_mode(model):
        return torch.equal(logits_of(made, probe), logits_of(model, probe))


def _stacks(model: nn.Module, usual: nn.Module) -> dict[str, list[str]]:
    """Return the numbered children that still do something, of each stack of blocks, by the name of the stack."""
    stacks = {}
    modules = dict(model.named_modules())
    for name, stack in usual.named_modules():
        children = [child for child, _ in stack.named_children()]
        alike = len({type(child) for child in stack.children()}) == 1
        if not (isinstance(stack, nn.Sequential | nn.ModuleList) and name in modules and alike):
            continue
        if children == [str(number) for number in range(len(children))]:
            stacks[name] = [child for child, block in modules[name].named_children() if _works(block)]
    return stacks


def _works(block: nn.Module) -> bool:
    """Whether any layer is left in it, beside norms that nothing is added behind."""
    return any(isinstance(layer, nn.Linear | nn.Conv2d) for layer in block.modules())


def _renumbered(model: nn.Module, stacks: Mapping[str, list[str]]) -> dict[str, str] | None:
    """Return the names of the tensors of all blocks that stay, numbered anew; None where another part is left out."""
    moved, gone = {}, []
    for stack, stay in stacks.items():
        for child, _ in model.get_submodule(stack).named_children():
            if child in stay:
                moved[f"{stack}.{child}."] = f"{stack}.{stay.index(child)}."
            else:
                gone.append(f"{stack}.{child}.")
    if any(not f"{absent}.".startswith(tuple(gone)) for absent in left_out(model)):
        return None
    names = {}
    for name in model.state_dict():
        if not name.startswith(tuple(gone)):
            new = name
            # the outermost stack first, in which the inner ones lie
            for old in sorted((old for old in moved if name.startswith(old)), key=len):
                new = moved[old] + new.removeprefix(old) if new.startswith(old) else new
            names[name] = new
    return names


def _candidates(model: nn.Module, usual: nn.Module, stacks: Mapping[str, list[str]]) -> Iterator[dict[str, Any]]:
    """Yield arguments that may say what is other than usual."""
    before = {stack: len(list(usual.get_submodule(stack).children())) for stack in stacks}
    others = [stack for stack, stay in stacks.items() if len(stay) != before[stack]]
    ratio = _mlp_ratio(model)
    mlps = {} if ratio is None or ratio == _mlp_ratio(usual) else {"mlp_ratio": ratio}
    if not others:
        if mlps:
            yield mlps
        return
    # layer1 and layer3, or stages.0.blocks and stages.2.blocks, are counted in one list
    pattern = {_without_numbers(stack) for stack in others}
    if len(pattern) > 1:
        return
    counted = [len(stay) for stack, stay in stacks.items() if _without_numbers(stack) in pattern]
    if len(counted) == 1:
        yield {"depth": counted[0], **mlps}
    yield {"depths": counted, **mlps}
    yield {"layers": counted, **mlps}


def _without_numbers(name: str) -> str:
    return "".join(character for character in name if not character.isdigit())


def _mlp_ratio(model: nn.Module) -> float | None:
    """Return what all MLPs widen their input by; None where they differ, or there are none."""
    ratios = set()
    for name, module in model.named_modules():
        first = getattr(module, "fc1", None)
        if name.rpartition(".")[2] == "mlp" and isinstance(first, nn.Linear):
            out, taken = first.weight.shape
            ratios.add(out / taken)
    return ratios.pop() if len(ratios) == 1 else None
