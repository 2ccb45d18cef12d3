"""Weights from files, without executing anything in them, and into models, without guessing."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

import netgraft.zoo  # noqa: F401  (registers the CIFAR-size models)
from netgraft.errors import RequestError


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a state dict from a safetensors file or from a checkpoint, never executing anything in it.

    Checkpoints may keep the state dict under ``state_dict_ema``, ``state_dict`` or ``model``, and prefix its keys
    with ``module.`` or ``_orig_mod.``, as parallel and compiled models do.

    Args:
        path: A ``.safetensors`` file, or a pickle of any other name.

    Returns:
        Tensors on the CPU, under the names that they have in the model.

    Raises:
        RequestError: No such file, not readable, or a pickle that holds more than tensors and plain values.
    """
    if not path.is_file():
        raise RequestError(f"there is no weights file {path}; check the path")
    # not timm.models.load_state_dict: it unpickles argparse.Namespace too, and prefers other keys
    try:
        if path.suffix == ".safetensors":
            content: object = load_file(path)
        else:
            _check_archive(path)
            content = torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise RequestError(f"{path} is no readable safetensors file ({error}); save it again") from error
    except Exception as error:  # torch.load raises many kinds
        raise RequestError(
            f"{path} holds more than tensors, or is damaged, and was not loaded ({type(error).__name__}); "
            "export its state dict as safetensors"
        ) from error
    for key in ("state_dict_ema", "state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    ):
        raise RequestError(f"{path} holds no state dict: expected names and tensors; save the model's state_dict()")
    return timm.models.clean_state_dict(dict(content))


def _check_archive(path: Path) -> None:
    """Refuse a zip archive that is larger than its file: PyTorch writes none, and a few bytes could become many."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
    if size > path.stat().st_size:
        raise ValueError("it is compressed")


def without_prefix(state: dict[str, Tensor], own: Collection[str]) -> dict[str, Tensor]:
    """Return a module's part of a state dict that holds it under a name, such as ``model.`` or ``net.``.

    Lightning's checkpoints are of a module that holds the network, and perhaps a loss with weights, or metrics, too.

    Args:
        state: Names and tensors.
        own: Names in the module's own state dict.

    Returns:
        What stands below the one prefix under which all of ``own`` stand; ``state`` itself where there is none, or
        where the module's names stand there as they are.

    Raises:
        RequestError: There are several such prefixes.
    """
    first = next(iter(own), None)
    if first is None or first in state:
        return state
    prefixes = [name.removesuffix(first) for name in state if name.endswith(f".{first}")]
    whole = [prefix for prefix in prefixes if all(prefix + name in state for name in own)]
    if len(whole) > 1:
        raise RequestError(
            f"expected one network of this architecture, got {len(whole)}, below {', '.join(map(repr, whole))}; save "
            "the state dict of the one that is meant"
        )
    prefix = whole[0] if whole else ""
    return (
        state
        if not prefix
        else {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    )


_SAFE, _UNSAFE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"


@contextmanager
def without_unpickling() -> Iterator[None]:
    """Let every ``torch.load`` in this context, of whatever package, read nothing but tensors and plain values.

    For weights that timm fetches itself: what it asks of ``torch.load`` depends on its version and on where they are.
    """
    before = {name: os.environ.pop(name, None) for name in (_SAFE, _UNSAFE)}
    os.environ[_SAFE] = "1"
    try:
        yield
    finally:
        del os.environ[_SAFE]
        os.environ.update({name: value for name, value in before.items() if value is not None})


def load_weights(model: nn.Module, state: Mapping[str, Tensor], what: str) -> None:
    """Load all of a state dict into a model, and nothing but it.

    Args:
        model: Changed in place.
        state: Under the model's own names.
        what: For people: which weights, into which model.

    Raises:
        RequestError: Keys are missing or unexpected, or shapes differ; says which.
    """
    own = model.state_dict()
    missing = [name for name in own if name not in state]
    unexpected = [name for name in state if name not in own]
    differing = [name for name in own if name in state and own[name].shape != state[name].shape]
    problems = []
    if missing:
        problems.append(f"{len(missing)} missing keys, first {missing[0]!r}")
    if unexpected:
        problems.append(f"{len(unexpected)} unexpected keys, first {unexpected[0]!r}")
    if differing:
        name = differing[0]
        problems.append(
            f"{len(differing)} differing shapes, first {name!r}: expected {tuple(own[name].shape)}, "
            f"found {tuple(state[name].shape)}"
        )
    if problems:
        raise RequestError(f"can't load {what}: {'; '.join(problems)}; give weights of this very architecture")
    model.load_state_dict(dict(state))
