"""Few-shot knowledge distillation for timm image classifiers: network grafting, and baselines under one protocol.

Names are imported on first use, so that ``import netgraft`` costs nothing; ``import netgraft.zoo`` registers the
CIFAR-size models with timm.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from netgraft.api import Distilled, distill, prepare
    from netgraft.blocks import BlockChain, split
    from netgraft.data import open_data
    from netgraft.folding import fold
    from netgraft.grafting import graft
    from netgraft.methods.netgraft import NetGraft
    from netgraft.models import load_teacher
    from netgraft.pairing import pair
    from netgraft.runner import Runner
    from netgraft.students import load_student, save_student
    from netgraft.subsets import FewShotSubset
    from netgraft.views import ViewPolicy

_HOMES = {
    "BlockChain": "blocks",
    "Distilled": "api",
    "FewShotSubset": "subsets",
    "NetGraft": "methods.netgraft",
    "Runner": "runner",
    "ViewPolicy": "views",
    "distill": "api",
    "fold": "folding",
    "graft": "grafting",
    "load_student": "students",
    "load_teacher": "models",
    "open_data": "data",
    "pair": "pairing",
    "prepare": "api",
    "save_student": "students",
    "split": "blocks",
}

__all__ = [
    "BlockChain",
    "Distilled",
    "FewShotSubset",
    "NetGraft",
    "Runner",
    "ViewPolicy",
    "distill",
    "fold",
    "graft",
    "load_student",
    "load_teacher",
    "open_data",
    "pair",
    "prepare",
    "save_student",
    "split",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"netgraft has no {name!r}")
    return getattr(importlib.import_module(f"netgraft.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
