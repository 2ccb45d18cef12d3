"""Folders in timm's own format: opened by timm's constructor, but read here.

timm never sees the folder. Its reader unpickled whatever lay there up to release 1.0.25, and its configuration can name
places elsewhere.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from threading import get_ident
from typing import Any, cast

import psutil
import timm
from timm.models import build_model_with_cfg
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from netgraft.errors import RequestError
from netgraft.files import check_checksums
from netgraft.models.descriptions import TIMM, TimmDescription
from netgraft.models.weights import read_weights

# as timm looks for them
_NAMES = (
    "model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.pth",
    "model.pth",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
)
_ENDINGS = (".safetensors", ".pth", ".pth.tar", ".bin")

_MOST_MODULES = 2**16

_SPARE = 2**24
"""Parameters that a constructor may make for a while, besides twice those of the weights."""


AGAIN = "copy the folder again or save it again"
"""What can be done about a damaged one."""


def open_folder(folder: Path, *, trained: bool, image_size: int | None = None, **options: Any) -> nn.Module:
    """Return the model of a folder that timm, :func:`netgraft.models.students.save_student` or a person wrote.

    Args:
        folder: With ``config.json``, and weights as safetensors or as a pickle of tensors.
        trained: Whether with its weights; else as the constructor makes it.
        image_size: Height and width of the images that it takes; its own if None.
        options: For timm; they win over ``model_args`` of the folder. None for a trained one.

    Raises:
        RequestError: It holds no model, or a damaged one.
    """
    if not (folder / TIMM).is_file():
        raise RequestError(f"{folder} holds no model: expected {TIMM} (timm's) in it; check the path")
    weights = weights_file(folder) if trained else None
    check_checksums(folder, [TIMM] if weights is None else [TIMM, weights.name], advice=AGAIN)
    try:
        description = TimmDescription.read(folder)
        if image_size is not None:
            description = description.sized(image_size)
        state = _read(folder, weights) if trained else None
        with bounded_memory(None if state is None else elements_of(state)):
            return _made(description, state, options)
    except RequestError:
        raise
    except Exception as error:  # constructors raise many kinds for arguments that don't fit
        raise RequestError(f"{folder} holds a damaged model ({reason_of(error)}); save it again") from error


def _made(description: TimmDescription, state: dict[str, Tensor] | None, options: Mapping[str, Any]) -> nn.Module:
    arguments = {**description.model_args, **options}
    if "pretrained_model_args" in inspect.signature(build_model_with_cfg).parameters:
        arguments["pretrained_model_args"] = dict(description.model_args)
    config = dict(description.pretrained_cfg)
    if state is None:
        return timm.create_model(description.architecture, pretrained_cfg=config, **arguments)
    if not state:
        raise ValueError("expected weights, got none")
    config["state_dict"] = state
    model: Any = timm.create_model(description.architecture, pretrained=True, pretrained_cfg=config, **arguments)
    del model.pretrained_cfg["state_dict"]
    # where these differ timm would have left the head as it was made
    if model.num_classes != description.classes:
        raise ValueError(f"expected a model of {description.classes} classes, got one of {model.num_classes}")
    return cast(nn.Module, model)


def weights_file(folder: Path) -> Path | None:
    """Return the file with the weights of a folder in timm's format; None if there is none."""
    found = (folder / name for name in _NAMES)
    others = (path for ending in _ENDINGS for path in sorted(folder.glob(f"*{ending}")))
    return next((path for path in chain(found, others) if path.is_file()), None)


def _read(folder: Path, weights: Path | None) -> dict[str, Tensor]:
    if weights is None:
        raise RequestError(f"{folder} holds no weights: expected {_NAMES[0]} in it; save the model again")
    return read_weights(weights)


def elements_of(state: Mapping[str, Tensor]) -> int:
    """Return how many numbers the tensors of a state dict hold."""
    return sum(tensor.numel() for tensor in state.values())


@contextmanager
def bounded_memory(elements: int | None = None) -> Iterator[None]:
    """Keep what is made in this context from taking all memory, or more than its weights explain.

    A layer's tensors are refused when it gets them, before they are filled, so they have taken no memory yet.

    Args:
        elements: Of the weights that will be loaded; None if there are none, or of another size.

    Raises:
        ValueError: A model in the context is too large.
    """
    thread, free = get_ident(), psutil.virtual_memory().available
    most = None if elements is None else 2 * elements + _SPARE
    taken = parameters = modules = 0

    def count(_module: nn.Module, _name: str, tensor: Tensor | None) -> None:
        nonlocal taken, parameters
        if tensor is None or get_ident() != thread:
            return
        taken += tensor.nbytes
        if isinstance(tensor, nn.Parameter):
            parameters += tensor.numel()
        if tensor.device.type == "cpu" and taken > free:
            raise ValueError(f"expected a model that fits into {free} bytes of free memory, got a larger one")
        if most is not None and parameters > most:
            raise ValueError(f"expected a model of about {elements} parameters, as its weights have, got a larger one")

    def count_module(_module: nn.Module, _name: str, _submodule: nn.Module | None) -> None:
        nonlocal modules
        modules += get_ident() == thread
        if modules > _MOST_MODULES:
            raise ValueError(f"expected at most {_MOST_MODULES} layers, got more")

    hooks = [
        register_module_parameter_registration_hook(count),
        register_module_buffer_registration_hook(count),
        register_module_module_registration_hook(count_module),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def reason_of(error: Exception) -> str:
    """Say an error of a library in a line, shortened, with its kind where it isn't one of ours."""
    text = in_a_line(error)
    return text if type(error) is ValueError else f"{type(error).__name__}: {text}"


def in_a_line(error: Exception) -> str:
    """Say an error of a library in a line, shortened."""
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else f"{text[:297]}..."
