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
from netgraft.models.card import CARD, CardFacts, Opener, card
from netgraft.models.creation import class_count, labels_of, load_trained, pretrained_cfg
from netgraft.models.descriptions import MODULE, OWN, TIMM, Adapter, OwnDescription
from netgraft.models.folders import AGAIN, bounded_memory, elements_of, reason_of, weights_file
from netgraft.models.own_modules import LogitsOf, as_classifier
from netgraft.models.plain_form import PlainForm, plain_form
from netgraft.models.torchvision_models import PREFIX, create, is_torchvision
from netgraft.models.weights import load_weights, read_weights
from netgraft.modules import eval_mode, parameters
from netgraft.splitting.chain import state_of
from netgraft.splitting.split import logits_of, split

WEIGHTS = "student.safetensors"

IN_A_RUN = ("student", "model")
"""Folders in that of a finished run: of a distilled student, or of a trained model."""


def save_student(
    folder: Path,
    student: nn.Module,
    model: nn.Module,
    *,
    cuts: tuple[str, ...],
    data_config: Mapping[str, Any],
    known: Mapping[str, Any] | None = None,
) -> None:
    """Write a student folder; an unfinished one never stands under the final name.

    Args:
        folder: Replaced if it exists.
        student: What is deployed: ``model`` itself, or a sequence of its blocks and of adapters that stayed.
        model: The timm model that the student was built from.
        cuts: Where ``model`` was cut; needed to rebuild a sequence.
        data_config: Preprocessing: ``input_size``, ``mean``, ``std``, ``interpolation``, ``crop_pct``.
        known: What the model card, ``README.md``, says besides what is seen of the student: fields of
            :class:`netgraft.models.card.CardFacts`.

    Besides stands the SHA-256 of each file but the card, in ``SHA256SUMS``; timm passes over both.

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
        ['README.md', 'SHA256SUMS', 'config.json', 'model.safetensors']
    """
    unfinished = folder.with_name(folder.name + ".unfinished")
    replaced = folder.with_name(folder.name + ".replaced")
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        if student is model and (form := _timms_form(model, data_config)):
            _save_plain(unfinished, model, form, data_config)
            opener: Opener = "timm"
        else:
            opener = _save_with_own_description(unfinished, student, model, cuts, data_config)
        write_checksums(unfinished, [path.name for path in unfinished.iterdir()])
        name = _class_of(model) if opener == "model" else pretrained_cfg(model)["architecture"]
        about = {"student": name, "opener": opener, "parameters": parameters(student), **(known or {})}
        (unfinished / CARD).write_text(card(CardFacts(**about)), encoding="utf-8")
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
    return _timms_form(model, data_config) is not None


def _timms_form(model: nn.Module, data_config: Mapping[str, Any]) -> PlainForm | None:
    """Return a model as timm's constructor makes it; None where it doesn't, or where timm doesn't save it."""
    if not timm.is_model(pretrained_cfg(model).get("architecture") or "") or _shares_tensors(model):
        return None
    arguments = _arguments(model, data_config)
    if not _why_not_by_name(model, data_config) and not _sizes(model, data_config):
        return PlainForm(arguments, model)
    architecture = pretrained_cfg(model)["architecture"]

    def make(more: Mapping[str, Any]) -> nn.Module:
        return _created(architecture, {**arguments, **more}, data_config)

    form = plain_form(model, make, _probe(model, data_config))
    return form and PlainForm({**arguments, **form.arguments}, form.model)


def _probe(model: nn.Module, data_config: Mapping[str, Any]) -> Tensor:
    probe = torch.randn(2, *data_config["input_size"], generator=torch.Generator().manual_seed(0))
    return probe.to(next(model.parameters()))


def why_not_made_by_name(model: nn.Module, data_config: Mapping[str, Any]) -> str:
    """Say why no name makes a model again, so that its folder opens with such a model alone; empty where one does.

    The model that the name makes gets the sizes and weights, and must give the same logits.

    Args:
        model: A classifier; unchanged.
        data_config: Preprocessing.
    """
    reason = _why_not_by_name(model, data_config)
    return "" if reason and _timms_form(model, data_config) else reason


@torch.no_grad()
def _why_not_by_name(model: nn.Module, data_config: Mapping[str, Any]) -> str:
    """Say the same of what its name makes without further arguments."""
    architecture = pretrained_cfg(model).get("architecture")
    if architecture is None or not _is_known(architecture):
        return f"{_class_of(model)} is no model of timm's or torchvision's"
    probe = _probe(model, data_config)
    try:
        sizes = _sizes(model, data_config)
        with torch.random.fork_rng(devices=[]):
            reference = _created(architecture, _arguments(model, data_config), data_config)
        sizes.put_on(reference)
        reference.load_state_dict(model.state_dict())
        expected = logits_of(reference.to(probe).eval(), probe)
        with eval_mode(model):
            logits = logits_of(model, probe)
    except Exception as error:  # constructors raise many kinds for arguments that don't fit
        return f"the name {architecture} makes another model ({reason_of(error)})"
    if logits.shape == expected.shape and torch.allclose(logits, expected, rtol=1e-3, atol=1e-4, equal_nan=True):
        return ""
    return f"the name {architecture} makes a model that computes something else, since this one has other arguments"


def _class_of(model: nn.Module) -> str:
    return type(model.model if isinstance(model, LogitsOf) else model).__qualname__


def _is_known(architecture: str | None) -> bool:
    return architecture is not None and (timm.is_model(architecture) or is_torchvision(architecture))


def _sizes(model: nn.Module, data_config: Mapping[str, Any]) -> Sizes:
    """What timm's constructor doesn't know of a model's sizes; nothing of a model that it makes as it is."""
    architecture = pretrained_cfg(model).get("architecture")
    if architecture is None or not _is_known(architecture):
        return Sizes({}, {}, {})
    with torch.device("meta"):
        reference = _created(architecture, _arguments(model, data_config), data_config)
    try:
        return Sizes.of(model, reference)
    except ValueError:  # of another kind: opened with a model that is given
        return Sizes({}, {}, {})


def _created(architecture: str, arguments: Mapping[str, Any], data_config: Mapping[str, Any]) -> nn.Module:
    # some models read the size of their images off this configuration and not off an argument
    overlay = {"input_size": tuple(data_config["input_size"])}
    if architecture.startswith(PREFIX):
        return create(architecture, {**arguments, "pretrained_cfg_overlay": overlay})
    return timm.create_model(architecture, pretrained_cfg_overlay=overlay, **arguments)


def _save_plain(folder: Path, model: nn.Module, form: PlainForm, data_config: Mapping[str, Any]) -> None:
    timm.models.save_for_hf(
        form.model,
        str(folder),
        # at the root of config.json, where timm writes and reads them
        model_config={"pretrained_cfg": _plain_config(data_config), **labels_of(model)},
        model_args=dict(form.arguments),
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


def _save_with_own_description(
    folder: Path, student: nn.Module, model: nn.Module, cuts: tuple[str, ...], data_config: Mapping[str, Any]
) -> Opener:
    """Write what timm alone doesn't open; return what does."""
    named = not _why_not_by_name(model, data_config)
    sizes = _sizes(model, data_config) if named else Sizes.whole(model)
    if student is model:
        _save_narrowed(folder, model, data_config, sizes, named)
    else:
        assert isinstance(student, nn.Sequential)
        _save_sequence(folder, student, model, cuts, data_config, sizes, named)
    return "netgraft" if named else "model"


def _save_sequence(
    folder: Path,
    student: nn.Sequential,
    model: nn.Module,
    cuts: tuple[str, ...],
    data_config: Mapping[str, Any],
    sizes: Sizes,
    named: bool,
) -> None:
    layers = [_adapter_spec(layer) or "block" for layer in student]
    described = {"cuts": cuts, "layers": layers, **({"sizes": sizes.to_json()} if sizes else {})}
    _write_described(folder, _layer_states(student), model, data_config, described, named)


def _save_narrowed(folder: Path, model: nn.Module, data_config: Mapping[str, Any], sizes: Sizes, named: bool) -> None:
    _write_described(folder, model.state_dict(), model, data_config, {"sizes": sizes.to_json()}, named)


def _write_described(
    folder: Path,
    state: Mapping[str, Tensor],
    model: nn.Module,
    data_config: Mapping[str, Any],
    described: Mapping[str, Any],
    named: bool,
) -> None:
    description = {
        "format": 1,
        "architecture": pretrained_cfg(model)["architecture"] if named else f"{MODULE}{_class_of(model)}",
        "model_args": _arguments(model, data_config),
        **described,
        "pretrained_cfg": {**_plain_config(data_config), **labels_of(model)},
    }
    save_file({name: value.contiguous() for name, value in _each_once(state).items()}, folder / WEIGHTS)
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


def load_student(folder: str | Path, *, image_size: int | None = None, model: nn.Module | None = None) -> nn.Module:
    """Return the student in eval mode, ready for images (B, C, H, W).

    Args:
        folder: What ``save_student`` wrote, or that of a run, which holds one.
        image_size: Height and width of the images that it takes; its own if None.
        model: Gets the weights, where the folder is of a class that no name of timm's or torchvision's makes: an
            untrained model of that class, made as the one that was saved.

    Returns:
        A timm model, or a sequence of a timm model's blocks and of adapters that stayed; its ``pretrained_cfg`` holds
        its preprocessing, and the ``label_names`` of its classes where they are known.

    Raises:
        RequestError: The folder holds no student, or a damaged one: other bits than were saved, or of another kind; or
            ``model`` is needed, doesn't fit, or is not needed.

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
        if model is not None:
            raise RequestError(f"{folder} holds a model that timm makes; leave model out")
        return load_trained(f"local-dir:{folder}", image_size=image_size)
    if not (folder / OWN).is_file():
        raise RequestError(f"{folder} holds no student: expected {TIMM} (timm's) or {OWN} in it; check the path")
    check_checksums(folder, (OWN, WEIGHTS), advice=AGAIN)
    try:
        return _load_described(folder, image_size, model)
    except _NeedsModelError:
        raise
    except RequestError as error:
        raise RequestError(f"{folder} holds a damaged student: {error}") from error
    except Exception as error:  # constructors raise many kinds for arguments that don't fit
        if model is not None:
            raise RequestError(
                f"{folder} holds another model than the {type(model).__name__} that was given ({reason_of(error)}); "
                "give one made as it was"
            ) from error
        raise RequestError(f"{folder} holds a damaged student ({reason_of(error)}); save it again") from error


class _NeedsModelError(RequestError):
    """A folder's model can't be made by its name, or can, and something else was given."""

    def __init__(self, folder: Path, architecture: str, *, needed: bool) -> None:
        what = architecture.removeprefix(MODULE)
        super().__init__(
            f"{folder} holds weights of {what}, which no name of timm's or torchvision's makes; in Python give "
            "netgraft.load_student(folder, model=...) an untrained one, made as it was"
            if needed
            else f"{folder} holds a {what}, which its name makes; leave model out"
        )


def stands(folder: Path) -> bool:
    """Return whether a folder holds a student whose files are all there and have the bits that were saved."""
    if (folder / TIMM).is_file():
        weights = weights_file(folder)
        names = [] if weights is None else [TIMM, weights.name]
    else:
        names = [name for name in (OWN, WEIGHTS) if (folder / name).is_file()]
    try:
        check_checksums(folder, names, advice=AGAIN)
    except RequestError:
        return False
    return len(names) == 2


def _load_described(folder: Path, image_size: int | None, given: nn.Module | None) -> nn.Module:
    description = OwnDescription.read(folder)
    if image_size is not None:
        description = description.sized(image_size)
    if description.is_named == (given is not None):
        raise _NeedsModelError(folder, description.architecture, needed=given is None)
    state = read_weights(folder / WEIGHTS)
    size, classes = description.pretrained_cfg["input_size"], description.model_args["num_classes"]
    if classes and not any(classes in tensor.shape for tensor in state.values()):
        raise ValueError(f"expected weights of a classifier of {classes} classes, got none of that size")
    if given is None:
        with bounded_memory():
            model = _created(description.architecture, description.model_args, description.pretrained_cfg).eval()
    else:
        model = as_classifier(given, description.pretrained_cfg).eval()
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
