"""Names and files -> models: any timm name, hub or folder source, or weights read without unpickling.

Names that start with ``torchvision:`` are of that package's models.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import timm
import torch
from timm.data import resolve_model_data_config
from torch import Tensor, nn

import netgraft.zoo  # noqa: F401  (registers the CIFAR-size models)
from netgraft.errors import RequestError
from netgraft.models import torchvision_models
from netgraft.models.downloads import within_reach
from netgraft.models.folders import in_a_line, open_folder
from netgraft.models.torchvision_models import PREFIX, create
from netgraft.models.weights import load_weights, read_weights, without_prefix, without_unpickling
from netgraft.seeding import derived_seed

_FOLDER = "local-dir:"


def load_trained(
    name: str, *, weights: Path | None = None, image_size: int | None = None, num_classes: int | None = None
) -> nn.Module:
    """Return a trained model that timm or torchvision can make, in eval mode.

    Args:
        name: A timm model, ``torchvision:NAME``, ``hf-hub:...`` or ``local-dir:FOLDER``.
        weights: A safetensors file, or a checkpoint that holds nothing but tensors and plain values; without it
            timm's own pretrained weights. The model gets as many outputs as its classifier in there.
        image_size: Height and width of the images that it takes; the model's own if None.
        num_classes: How many classes it must have; whatever its weights have if None.

    Raises:
        RequestError: No such model, no pretrained weights, or weights that don't fit, or that are of another number of
            classes.
    """
    model = _load_trained(name, weights, image_size)
    if num_classes not in {None, class_count(model)}:
        whose = name if weights is None else str(weights)
        raise RequestError(
            f"expected weights of {num_classes:,} classes, got {class_count(model):,} in {whose}; give others, or "
            "leave --num-classes out"
        )
    return model


def _load_trained(name: str, weights: Path | None, image_size: int | None) -> nn.Module:
    if name.startswith(_FOLDER) and image_size is not None:
        return open_folder(Path(name.removeprefix(_FOLDER)), trained=True, image_size=image_size).eval()
    sized = {} if image_size is None else _sized(name, (image_size, image_size))
    if weights is None:
        if timm.is_model(name) and not _has_pretrained_weights(name):
            raise RequestError(f"timm has no pretrained weights for {name}; give --teacher-weights FILE")
        return _create(name, pretrained=True, **sized).eval()
    state = _own_names(name, read_weights(weights))
    model = _create(name, **_outputs(name, state), **sized)
    load_weights(model, state, f"{weights} into {name}")
    return model.eval()


def build_student(name: str, *, teacher: nn.Module, seed: int) -> nn.Module:
    """Return an untrained model with the teacher's inputs and outputs, in eval mode.

    Args:
        name: A timm model.
        teacher: A timm model, which says how many channels, pixels and classes there are.
        seed: Of the weights, which depend on nothing else.

    Raises:
        RequestError: No such model.
    """
    size = pretrained_cfg(teacher).get("input_size")
    sized = {} if size is None or _is_source(name) else _sized(name, size[1:])
    classes, channels = class_count(teacher), image_channels(teacher)
    return _build(name, seed, num_classes=classes, in_chans=channels, **sized).eval()


def family(name: str) -> list[str]:
    """Return the names of the models that the same file of timm's or torchvision's makes, itself among them.

    Args:
        name: A timm model, or ``torchvision:NAME``; of others no family is known.
    """
    if not timm.is_model(name):
        return torchvision_models.family(name)
    file = timm.model_entrypoint(name).__module__
    return [own for own in timm.list_models() if timm.model_entrypoint(own).__module__ == file]


PRETRAINED = "pretrained"
"""In place of a weights file: timm's own weights."""


def build_kept_student(name: str, weights: str, *, teacher: nn.Module, seed: int) -> tuple[nn.Module, tuple[str, ...]]:
    """Return a student with weights of its own, with the teacher's inputs and outputs, in eval mode.

    A head of another number of classes than the teacher's is left out of the weights, and a new one starts at random.

    Args:
        name: A timm model, or ``torchvision:NAME``.
        weights: A safetensors file or a checkpoint, as for :func:`load_trained`; or ``pretrained``, timm's own.
        teacher: A classifier, which says how many channels, pixels and classes there are.
        seed: Of a new head.

    Returns:
        The student, and the names of the modules of its head that are new.

    Raises:
        RequestError: No such model or weights, or weights that don't fit.
    """
    student = build_student(name, teacher=teacher, seed=seed)
    if weights == PRETRAINED:
        if not timm.is_model(name) or not _has_pretrained_weights(name):
            raise RequestError(f"timm has no pretrained weights for {name}; give --student-weights FILE")
        # with the number of classes that they were trained for
        state: Mapping[str, Tensor] = _create(name, pretrained=True, in_chans=image_channels(teacher)).state_dict()
        what = f"timm's weights into {name}"
    else:
        state, what = _own_names(name, read_weights(Path(weights))), f"{weights} into {name}"
    own = student.state_dict()
    head = head_tensors(name)
    other = [key for key in head if key in own and key in state and own[key].shape != state[key].shape]
    # all of a new head, its biases too
    fresh = tuple(dict.fromkeys(key.rpartition(".")[0] for key in other))
    kept = {key: own[key] if key.rpartition(".")[0] in fresh else value for key, value in state.items()}
    load_weights(student, kept, what)
    return student.eval(), fresh


@lru_cache(maxsize=32)
def head_tensors(name: str) -> tuple[str, ...]:
    """Return the names of a model's tensors that have a row for each class.

    Two models without memory are made, for two numbers of classes, and compared.

    Args:
        name: A timm model, or ``torchvision:NAME``.
    """
    counts = (7, 11)
    with torch.device("meta"):
        few, more = (_create(name, num_classes=count).state_dict() for count in counts)
    return tuple(key for key, value in few.items() if (*value.shape[:1], *more[key].shape[:1]) == counts)


def build_model(name: str, *, seed: int, image_size: int | None = None, **options: Any) -> nn.Module:
    """Return an untrained timm model, made with ``options``.

    Args:
        name: A timm model, or ``torchvision:NAME``.
        seed: Of the weights, which depend on nothing else.
        image_size: Height and width of the images that it takes; the model's own if None.
        options: For timm.

    Raises:
        RequestError: No such model, or timm refuses the options.
    """
    return _build(name, seed, **options, **({} if image_size is None else _sized(name, (image_size, image_size))))


def _build(name: str, seed: int, **options: Any) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed("weights", seed))
        return _create(name, **options)


def image_channels(model: nn.Module) -> int:
    """Return the channels of the images that ``model`` takes, by its first convolution or else its configuration."""
    # the configuration is the architecture's, whatever in_chans the model was made with
    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    return int(resolve_model_data_config(model)["input_size"][0]) if first is None else first.in_channels


def class_count(model: nn.Module) -> int:
    """Return the number of outputs K of a timm classifier."""
    return int(cast(Any, model).num_classes)


LABELS = ("label_names", "label_descriptions")
"""timm's fields for a model's classes: names by position, and descriptions by name."""


def label_names(model: nn.Module) -> dict[int, str]:
    """Return the names of a model's classes by their positions among its K outputs, which may have gaps.

    They are those of its configuration; a list of another length is of another classifier, and no name is known then.
    """
    named, count = pretrained_cfg(model).get("label_names") or (), class_count(model)
    if not isinstance(named, Mapping):
        return dict(enumerate(named)) if len(named) == count else {}
    # keys of JSON are texts
    names = {int(position): name for position, name in named.items()}
    return names if all(0 <= position < count for position in names) else {}


def labels_of(model: nn.Module) -> dict[str, Any]:
    """Return the fields of a model's configuration that describe its classes; empty where none of them has a name."""
    if not label_names(model):
        return {}
    config = pretrained_cfg(model)
    return {field: config[field] for field in LABELS if config.get(field)}


def describe_labels(model: nn.Module, labels: Mapping[str, Any]) -> None:
    """Make the classes of a model those of ``labels``: of what :func:`labels_of` returned, or of ``label_names``."""
    config = pretrained_cfg(model)
    described = {name: value for name, value in config.items() if name not in LABELS} | dict(labels)
    if described != config:
        cast(Any, model).pretrained_cfg = described


def pretrained_cfg(model: nn.Module) -> dict[str, Any]:
    """Return a timm model's description of itself; empty for other modules."""
    return getattr(model, "pretrained_cfg", None) or {}


def _sized(name: str, size: Sequence[int]) -> dict[str, Any]:
    """As options for timm: a model for images of this height and width, of which preprocessing cuts nothing off."""
    if min(size) < 1:
        raise RequestError(f"expected an image size of at least 1 pixel, got {min(size)}; give another")
    if _is_source(name):
        raise RequestError(f"{name} brings its image size along; leave --image-size out")
    config = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    channels = config.input_size[0] if config else 3
    return {"pretrained_cfg_overlay": {"input_size": (channels, *size), "crop_pct": 1.0}}


def _outputs(name: str, state: Mapping[str, Tensor]) -> dict[str, int]:
    """As an option for timm, how many classes a state dict was trained with; nothing if that can't be told."""
    config = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    classifier = state.get(f"{config.classifier}.weight") if config else None
    if classifier is None and not _is_source(name):
        classifier = next((state[key] for key in head_tensors(name) if key in state), None)
    return {} if classifier is None or not classifier.dim() else {"num_classes": classifier.shape[0]}


def _own_names(name: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Leave a prefix of all names out that isn't the model's, such as that of Lightning's modules."""
    config = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    if _is_source(name) or (config is not None and f"{config.classifier}.weight" in state):
        return state
    with torch.device("meta"):
        own = _create(name).state_dict()
    return without_prefix(state, own)


def _has_pretrained_weights(name: str) -> bool:
    config = timm.get_pretrained_cfg(name)
    return config is not None and config.has_weights


def _is_source(name: str) -> bool:
    """Whether timm reads both architecture and weights from there."""
    return name.split(":", 1)[0] in {"hf-hub", "hf_hub", "local-dir"}


def _create(name: str, **options: Any) -> nn.Module:
    if name.startswith(PREFIX):
        return create(name, options)
    if not _is_source(name) and not timm.is_model(name.split(".", 1)[0]):
        close = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"did you mean {', '.join(close)}?" if close else "see timm.list_models()"
        raise RequestError(f"timm has no model {name!r}; {hint}")
    if name.startswith(_FOLDER):
        return open_folder(Path(name.removeprefix(_FOLDER)), trained=options.pop("pretrained", False), **options)
    try:
        with within_reach(name) if options.get("pretrained") else nullcontext(), without_unpickling():
            return timm.create_model(name, **options)
    except RequestError:
        raise
    except Exception as error:  # constructors and readers raise many kinds
        raise RequestError(f"timm could not make {name!r}: {in_a_line(error)}") from error
