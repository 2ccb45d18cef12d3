"""A second device without a machine that has one: it computes on the CPU, and refuses what a GPU would refuse.

Its tensors hold a tensor of the CPU each. Whoever mixes them with tensors of the CPU, or asks for their memory as
NumPy's, meets an error as on CUDA; so does whoever asks for float64, which Apple's devices lack. What a GPU computes
otherwise, or at another time, can't be seen here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

NAME = "second"

OWN_PROCESS = "NETGRAFT_SECOND_DEVICE"
"""Set in the environment of a process that is there for the second device alone: PyTorch keeps it until the process
ends, and must not have computed a gradient before it is made up."""

NO_HOOK = "needs a PyTorch in which Python can make up a device"

_MIXING = {"aten::copy_", "aten::_to_copy", "aten::to", "aten::index", "aten::index_put", "aten::index_put_"}
"""Operations that CUDA tensors may do together with those of the CPU: copies, and indices from there."""


class MixedDevicesError(RuntimeError):
    """Tensors of both devices met."""


@cache
def _registered() -> torch.device:
    if not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"):
        pytest.skip(NO_HOOK)

    class Backend(backend_registration._DummyBackendModule):
        def is_available(self) -> bool:
            return False  # nobody else should compute on it

        def synchronize(self) -> None: ...

        def manual_seed(self, seed: int) -> None: ...

        def get_amp_supported_dtype(self) -> list[torch.dtype]:
            return [torch.bfloat16]

    backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=Backend())
    return torch.device(NAME, 0)


class Held(torch.Tensor):
    """A tensor of the second device."""

    on_cpu: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Held:
        held = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=_registered(),
        )
        held.on_cpu = inner
        return held

    def tolist(self) -> Any:
        return self.on_cpu.tolist()

    def numpy(self, **how: Any) -> Any:
        raise TypeError("can't convert a tensor of the second device to numpy; use .cpu() first")

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.on_cpu.__reduce_ex__(protocol)

    @classmethod
    def __torch_dispatch__(cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        return _compute(operation, args, kwargs or {})


def _compute(operation: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name = operation._schema.name
    tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
    held = [each for each in tensors if isinstance(each, Held)]
    # single numbers of the CPU go along with any device
    if held and name not in _MIXING and any(each.dim() and not isinstance(each, Held) for each in tensors):
        raise MixedDevicesError(f"expected all tensors on one device, got two in {operation}")
    target = next((each for each in tree_leaves((args, kwargs)) if isinstance(each, torch.device)), None)
    there = bool(held) if target is None else target.type == NAME
    found = operation(*tree_map(_on_cpu, args), **tree_map(_on_cpu, kwargs))
    # what is computed in place is the tensor that was given
    given = {id(each.on_cpu): each for each in held}
    if name == "aten::copy_":
        return args[0]
    if there and any(isinstance(each, Tensor) and each.dtype == torch.float64 for each in tree_leaves(found)):
        raise TypeError("the second device has no float64")
    return tree_map(lambda each: given.get(id(each), Held(each)) if there and type(each) is Tensor else each, found)


def _on_cpu(value: Any) -> Any:
    if isinstance(value, torch.device):
        return torch.device("cpu") if value.type == NAME else value
    return value.on_cpu if isinstance(value, Held) else value


class _Second(TorchDispatchMode):
    """Carries out what makes tensors on the second device, and what meets them."""

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(operation, args, kwargs or {})


@contextmanager
def second_device() -> Iterator[torch.device]:
    """Make the device up."""
    if OWN_PROCESS not in os.environ:
        pytest.skip(f"needs a process of its own, with {OWN_PROCESS} in its environment")
    device = _registered()
    swapped = torch.__future__.get_swap_module_params_on_conversion()
    # parameters stay the same objects when they move, as they do on CUDA
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        with _Second():
            yield device
    finally:
        torch.__future__.set_swap_module_params_on_conversion(swapped)
