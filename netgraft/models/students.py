"""Save and load a student folder: timm's own format where its constructor makes the model, else a described one."""

from __future__ import annotations

import inspect
import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

import netgraft.zoo  # noqa: F401  (folders may name its models)
from netgraft.deriving.sizes import Sizes
from netgraft.errors import RequestError, RunError
from netgraft.files import check_checksums, write_checksums
from netgraft.grafting.adapters import LinearAdapter, deployed_layer
from netgraft.models.creation import class_count, labels_of, load_trained, pretrained_cfg
from netgraft.models.descriptions import OWN, TIMM, Adapter, OwnDescription
from netgraft.models.folders import AGAIN, bounded_memory, elements_of, reason_of, weights_file
from netgraft.models.weights import load_weights, read_weights
from netgraft.splitting.chain import state_of
from netgraft.splitting.split import logits_of, split

_WEIGHTS = "student.safetensors"

IN_A_RUN = ("student", "model")
"""Folders in that of a finished run: of a distilled student, or of a trained model."""


def save_student(
    folder: Path, student: nn.Module, model: nn.Module, *, cuts: tuple[str, ...], data_config: Mapping[str, Any]
) -> None:
    """Write a student folder; an unfinished one never stands under the final name.

    Args:
        folder: Replaced if it exists.
        student: What is deployed: ``model`` itself, or a sequence of its blocks and of adapters that stayed.
        model: The timm model that the student was built from.
        cuts: Where ``model`` was cut; needed to rebuild a sequence.
        data_config: Preprocessing: ``input_size``, ``mean``, ``std``, ``interpolation``, ``crop_pct``.

    Besides stands the SHA-256 of each file, in ``SHA256SUMS``; timm passes over it.

    The names of the model's classes, timm's ``label_names`` of its ``pretrained_cfg``, are written along: at the root
    of timm's ``config.json``, or in ``pretrained_cfg`` of ``netgraft.json``.

    Raises:
        RunError: The folder can't be written.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import timm, torch
        >>> import netgraft.zoo
        >>> model = timm.create_model("digits_vgg7_bn_half").eval()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_student(Path(folder, "student"), model, model, cuts=(), data_config=model.pretrained_cfg)
        ...     sorted(path.name for path in Path(folder, "student").iterdir())
        ['SHA256SUMS', 'config.json', 'model.safetensors']
    """
    unfinished = folder.with_name(folder.name + ".unfinished")
    replaced = folder.with_name(folder.name + ".replaced")
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        sizes = _sizes(model, data_config)
        if student is not model:
            assert isinstance(student, nn.Sequential)
            _save_sequence(unfinished, student, model, cuts, data_config, sizes)
        elif sizes or _shares_tensors(model):
            _save_narrowed(unfinished, model, data_config, sizes)
        else:
            _save_plain(unfinished, model, data_config)
        write_checksums(unfinished, [path.name for path in unfinished.iterdir()])
        if folder.exists():
            # the old student goes only when the new one stands
            shutil.rmtree(replaced, ignore_errors=True)
            folder.replace(replaced)
        unfinished.replace(folder)
        shutil.rmtree(replaced, ignore_errors=True)
    except (OSError, SafetensorError, RunError) as error:  # safetensors reports a full disk in its own way
        shutil.rmtree(unfinished, ignore_errors=True)
        if replaced.exists() and not folder.exists():
            replaced.replace(folder)
        if isinstance(error, RunError):
            raise
        raise RunError(f"could not write {folder}: {error}; free some space and go on with --resume") from error


def _plain_config(data_config: Mapping[str, Any]) -> dict[str, Any]:
    wanted = ("input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode")
    config = {name: data_config[name] for name in wanted if name in data_config}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in config.items()}


def opens_with_timm(model: nn.Module, data_config: Mapping[str, Any]) -> bool:
    """Return whether timm's constructor makes a model of these sizes and saves it: timm alone opens its folder then."""
    return not _sizes(model, data_config) and not _shares_tensors(model)


def _sizes(model: nn.Module, data_config: Mapping[str, Any]) -> Sizes:
    """What timm's constructor doesn't know of a model's sizes; nothing of a model that it makes as it is."""
    architecture = pretrained_cfg(model).get("architecture")
    if architecture is None or not timm.is_model(architecture):
        return Sizes({}, {}, {})
    with torch.device("meta"):
        reference = _created(architecture, _arguments(model, data_config), data_config)
    return Sizes.of(model, reference)


def _created(architecture: str, arguments: Mapping[str, Any], data_config: Mapping[str, Any]) -> nn.Module:
    # some models read the size of their images off this configuration and not off an argument
    overlay = {"input_size": tuple(data_config["input_size"])}
    return timm.create_model(architecture, pretrained_cfg_overlay=overlay, **arguments)


def _save_plain(folder: Path, model: nn.Module, data_config: Mapping[str, Any]) -> None:
    timm.models.save_for_hf(
        model,
        str(folder),
        # at the root of config.json, where timm writes and reads them
        model_config={"pretrained_cfg": _plain_config(data_config), **labels_of(model)},
        model_args=_arguments(model, data_config),
        safe_serialization=True,
    )


def _arguments(model: nn.Module, data_config: Mapping[str, Any]) -> dict[str, Any]:
    arguments: dict[str, Any] = {"num_classes": class_count(model), "in_chans": data_config["input_size"][0]}
    # only what isn't the default: of a VGG with a hidden layer in its head
    arguments |= {name: getattr(model, name) for name in ("head_hidden", "head_norm") if getattr(model, name, None)}
    # position embeddings have as many rows as the size of images, which timm takes as an option, makes patches
    if "img_size" in inspect.signature(type(model).__init__).parameters:
        size = getattr(getattr(model, "patch_embed", None), "img_size", None)
        arguments["img_size"] = list(size or data_config["input_size"][1:])
    return arguments


def _save_sequence(
    folder: Path,
    student: nn.Sequential,
    model: nn.Module,
    cuts: tuple[str, ...],
    data_config: Mapping[str, Any],
    sizes: Sizes,
) -> None:
    layers = [_adapter_spec(layer) or "block" for layer in student]
    described = {"cuts": cuts, "layers": layers, **({"sizes": sizes.to_json()} if sizes else {})}
    _write_described(folder, _layer_states(student), model, data_config, described)


def _save_narrowed(folder: Path, model: nn.Module, data_config: Mapping[str, Any], sizes: Sizes) -> None:
    _write_described(folder, model.state_dict(), model, data_config, {"sizes": sizes.to_json()})


def _write_described(
    folder: Path,
    state: Mapping[str, Tensor],
    model: nn.Module,
    data_config: Mapping[str, Any],
    described: Mapping[str, Any],
) -> None:
    description = {
        "format": 1,
        "architecture": pretrained_cfg(model)["architecture"],
        "model_args": _arguments(model, data_config),
        **described,
        "pretrained_cfg": {**_plain_config(data_config), **labels_of(model)},
    }
    save_file({name: value.contiguous() for name, value in _each_once(state).items()}, folder / _WEIGHTS)
    (folder / OWN).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


def _each_once(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Leave out what is another one's tensor: modules may stand in several places."""
    seen: dict[object, str] = {}
    for name, value in state.items():
        seen.setdefault((value.data_ptr(), value.shape, value.stride()) if value.numel() else name, name)
    return {name: state[name] for name in seen.values()}


def _shares_tensors(model: nn.Module) -> bool:
    """Whether a tensor of its state has several names, which timm doesn't save."""
    state = model.state_dict()
    return len(_each_once(state)) < len(state)


def _everywhere(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Return what :func:`_each_once` left, under all names that it has in ``model``."""
    of_tensor: dict[int, str] = {}
    whole = dict(state)
    for name, value in model.state_dict(keep_vars=True).items():
        first = of_tensor.setdefault(id(value), name)
        if name not in whole and first in whole:
            whole[name] = whole[first]
    return whole


def _layer_states(student: nn.Sequential) -> dict[str, Tensor]:
    """Weights under the layer's number and the name in the model, whichever blocks a layer was merged from."""
    states = [layer.state_dict() if _adapter_spec(layer) else state_of(layer) for layer in student]
    # copies: what is shared between layers is read by each of them
    return {f"{number}.{name}": value.clone() for number, state in enumerate(states) for name, value in state.items()}


def load_student(folder: str | Path) -> nn.Module:
    """Return the student in eval mode, ready for images (B, C, H, W).

    Args:
        folder: What ``save_student`` wrote, or that of a run, which holds one.

    Returns:
        A timm model, or a sequence of a timm model's blocks and of adapters that stayed; its ``pretrained_cfg`` holds
        its preprocessing, and the ``label_names`` of its classes where they are known.

    Raises:
        RequestError: The folder holds no student, or a damaged one: other bits than were saved, or of another kind.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import timm, torch
        >>> import netgraft.zoo
        >>> from netgraft import save_student
        >>> model, images = timm.create_model("digits_vgg7_bn_half").eval(), torch.randn(2, 1, 8, 8)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_student(Path(folder, "student"), model, model, cuts=(), data_config=model.pretrained_cfg)
        ...     torch.equal(load_student(Path(folder, "student"))(images), model(images))
        True
    """
    folder = Path(folder)
    folder = next((folder / name for name in IN_A_RUN if (folder / name).is_dir()), folder)
    if (folder / TIMM).is_file():
        return load_trained(f"local-dir:{folder}")
    if not (folder / OWN).is_file():
        raise RequestError(f"{folder} holds no student: expected {TIMM} (timm's) or {OWN} in it; check the path")
    check_checksums(folder, (OWN, _WEIGHTS), advice=AGAIN)
    try:
        return _load_described(folder)
    except RequestError as error:
        raise RequestError(f"{folder} holds a damaged student: {error}") from error
    except Exception as error:  # constructors raise many kinds for arguments that don't fit
        raise RequestError(f"{folder} holds a damaged student ({reason_of(error)}); save it again") from error


def stands(folder: Path) -> bool:
    """Return whether a folder holds a student whose files are all there and have the bits that were saved."""
    if (folder / TIMM).is_file():
        weights = weights_file(folder)
        names = [] if weights is None else [TIMM, weights.name]
    else:
        names = [name for name in (OWN, _WEIGHTS) if (folder / name).is_file()]
    try:
        check_checksums(folder, names, advice=AGAIN)
    except RequestError:
        return False
    return len(names) == 2


def _load_described(folder: Path) -> nn.Module:
    description = OwnDescription.read(folder)
    state = read_weights(folder / _WEIGHTS)
    size, classes = description.pretrained_cfg["input_size"], description.model_args["num_classes"]
    if classes and not any(classes in tensor.shape for tensor in state.values()):
        raise ValueError(f"expected weights of a classifier of {classes} classes, got none of that size")
    with bounded_memory():
        model = _created(description.architecture, description.model_args, description.pretrained_cfg).eval()
    if description.sizes is not None:
        _put_on(model, Sizes.from_json(description.sizes), elements_of(state))
    student: Any = model
    if description.layers is None:
        load_weights(model, _everywhere(state, model), f"the weights of {folder}")
    else:
        student = _sequence(model, description, state)
    student.pretrained_cfg = {**pretrained_cfg(student), **description.pretrained_cfg}
    student.num_classes = classes
    student.eval()
    with torch.no_grad():
        logits = logits_of(student, torch.zeros(1, *size))
    if classes and logits.shape != (1, classes):
        raise ValueError(f"expected logits of {classes} classes, got {tuple(logits.shape)}")
    return cast(nn.Module, student)


def _put_on(model: nn.Module, sizes: Sizes, elements: int) -> None:
    """Give a model its sizes, unless they are larger than its weights and what it had before explain."""
    asked = sum(math.prod(shape) for shape in sizes.shapes.values())
    had = sum(tensor.numel() for tensor in (*model.parameters(), *model.buffers()))
    if asked > elements + had:
        raise ValueError(f"expected sizes of at most {elements + had} numbers, got {asked}")
    sizes.put_on(model)


def _sequence(model: nn.Module, description: OwnDescription, state: dict[str, Tensor]) -> nn.Sequential:
    """Return a model's blocks, and adapters between them, with their weights."""
    assert description.layers is not None
    size = description.pretrained_cfg["input_size"]
    blocks = iter(split(model, probe=torch.zeros(1, *size), cuts=description.cuts))
    student = nn.Sequential(
        *(
            next(blocks) if layer == "block" else _adapter(layer, bias=f"{number}.bias" in state)
            for number, layer in enumerate(description.layers)
        )
    )
    for number, layer in enumerate(student):
        layer.load_state_dict({name: state.pop(f"{number}.{name}") for name in layer.state_dict()})
    if state:
        raise ValueError(f"unexpected weights, first {next(iter(state))!r}")
    return student


def _adapter_spec(layer: nn.Module) -> list[int | str] | None:
    """Widths of an adapter, and its layout unless that is NCHW; None for blocks."""
    if isinstance(layer, LinearAdapter):
        return [layer.in_features, layer.out_features, layer.layout]
    return [layer.in_channels, layer.out_channels] if isinstance(layer, nn.Conv2d) else None


def _adapter(described: Adapter, *, bias: bool) -> nn.Module:
    in_channels, out_channels, layout = described
    return deployed_layer(layout, in_channels, out_channels, bias=bias)
