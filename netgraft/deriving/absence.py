"""What stands in the place of a block that was left out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from netgraft.modules import put_module


class Passed(nn.Module):
    """Gives its first input as it is: a residual block without its branch."""

    def forward(self, x: Tensor, *others: Any, **more: Any) -> Tensor:
        """Return ``x``, (B, ...)."""
        return x


class Nothing(nn.Module):
    """Gives zeros: a branch that nothing is added from."""

    def forward(self, x: Tensor, *others: Any, **more: Any) -> Tensor:
        """Return zeros of the shape of ``x``, (B, ...)."""
        return torch.zeros_like(x)


ABSENCES: dict[str, type[nn.Module]] = {"passed": Passed, "nothing": Nothing}
"""By what a record calls them."""


def leave_out(model: nn.Module, absent: Mapping[str, str]) -> None:
    """Replace modules of ``model`` in place.

    Args:
        model: Whose modules these are.
        absent: Names of modules, and of what takes their place.

    Raises:
        ValueError: There is no such module, or no such absence.
    """
    known = {name for name, _ in model.named_modules()}
    for name, how in absent.items():
        if name not in known or not name or how not in ABSENCES:
            raise ValueError(f"there is no {name!r} to leave out as {how!r}")
        put_module(model, name, ABSENCES[how]())


def left_out(model: nn.Module) -> dict[str, str]:
    """Return what was left out of a model, by name, and what stands there."""
    names = {kind: name for name, kind in ABSENCES.items()}
    return {name: names[type(module)] for name, module in model.named_modules() if type(module) in names}
