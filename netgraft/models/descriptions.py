"""What ``config.json`` and ``netgraft.json`` say of a model, checked before anything is made of it.

Both come with folders that anybody may have written. Nothing they say can make anything be fetched or executed: of a
configuration only what describes images and classes passes.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import timm
from timm.models import build_model_with_cfg

import netgraft.zoo  # noqa: F401  (descriptions may name its models)
from netgraft.data.text_files import read_json
from netgraft.models.torchvision_models import is_torchvision

TIMM = "config.json"
"""timm's own description of the model in a folder."""

OWN = "netgraft.json"
"""The description of a model that timm's constructor doesn't make as it is."""

MODULE = "module:"
"""In front of the name of a class that no name of timm's or torchvision's makes."""

Adapter = tuple[int, int, str]
"""Width of what comes in, width of what goes out, and layout."""

_MOST = 2**20
"""Of anything that is counted: classes, layers, widths, pixels of a side."""

_Count = Annotated[int, msgspec.Meta(ge=0, le=_MOST)]
_Positive = Annotated[int, msgspec.Meta(ge=1, le=_MOST)]
_Side = Annotated[int, msgspec.Meta(ge=1, le=4096)]
_InputSize = tuple[Annotated[int, msgspec.Meta(ge=1, le=1024)], _Side, _Side]
_Share = Annotated[float, msgspec.Meta(gt=0, le=10)]
_Means = Annotated[tuple[Annotated[float, msgspec.Meta(ge=-1e4, le=1e4)], ...], msgspec.Meta(min_length=1)]
_Deviations = Annotated[tuple[Annotated[float, msgspec.Meta(gt=0, le=1e4)], ...], msgspec.Meta(min_length=1)]
_Interpolation = Literal["nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"]
_CropMode = Literal["center", "squash", "border"]
_Position = Annotated[str, msgspec.Meta(pattern=r"^[0-9]{1,9}$")]
_LabelNames = list[str] | dict[_Position, str]
_LayerNames = str | list[str]


class _TimmImages(msgspec.Struct, frozen=True):
    """Those of timm's fields on images, classes and layers that are read; of another type they are refused."""

    input_size: _InputSize | None = None
    test_input_size: _InputSize | None = None
    min_input_size: _InputSize | None = None
    fixed_input_size: bool | None = None
    interpolation: _Interpolation | None = None
    crop_pct: _Share | None = None
    test_crop_pct: _Share | None = None
    crop_mode: _CropMode | None = None
    mean: _Means | None = None
    std: _Deviations | None = None
    num_classes: _Count | None = None
    label_offset: _Count | None = None
    label_names: _LabelNames | None = None
    label_descriptions: dict[str, str] | None = None
    pool_size: tuple[_Positive, ...] | None = None
    test_pool_size: tuple[_Positive, ...] | None = None
    first_conv: _LayerNames | None = None
    classifier: _LayerNames | None = None


_IN_WORDS = ("tag", "license", "description", "origin_url", "paper_name", "paper_ids", "notes")
"""Fields of timm that nothing is made of."""

_TIMM_FIELDS = {*_TimmImages.__struct_fields__, *_IN_WORDS}


class _TimmArguments(msgspec.Struct, frozen=True):
    num_classes: _Count | None = None
    in_chans: _Positive | None = None


class _TimmRoot(msgspec.Struct, frozen=True):
    architecture: str
    pretrained_cfg: _TimmImages
    num_classes: _Count | None = None
    label_names: _LabelNames | None = None
    label_descriptions: dict[str, str] | None = None
    model_args: dict[str, Any] | None = None


_AT_ROOT = ("num_classes", "label_names", "label_descriptions")


class _OwnImages(msgspec.Struct, frozen=True):
    input_size: _InputSize
    mean: _Means | None = None
    std: _Deviations | None = None
    interpolation: _Interpolation | None = None
    crop_pct: _Share | None = None
    crop_mode: _CropMode | None = None
    label_names: _LabelNames | None = None
    label_descriptions: dict[str, str] | None = None


class _OwnArguments(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    num_classes: _Count
    in_chans: _Positive
    head_hidden: _Positive | None = None
    head_norm: bool | None = None
    img_size: tuple[_Side, _Side] | None = None


class _OwnRoot(msgspec.Struct, frozen=True):
    format: Literal[1]
    architecture: str
    model_args: _OwnArguments
    pretrained_cfg: _OwnImages
    cuts: list[str] = []
    layers: list[Any] | None = None
    sizes: dict[str, Any] | None = None


@dataclass(frozen=True)
class TimmDescription:
    """What timm makes a model of.

    Attributes:
        architecture: A name that timm knows.
        model_args: Of its constructor.
        pretrained_cfg: Of images and classes, as timm's ``PretrainedCfg`` takes it; no source of weights.
    """

    architecture: str
    model_args: Mapping[str, Any]
    pretrained_cfg: Mapping[str, Any]

    @property
    def classes(self) -> int:
        """Number of outputs K of the weights beside the description."""
        classes: int = self.pretrained_cfg["num_classes"]
        return classes

    def sized(self, side: int) -> TimmDescription:
        """Return the same for images of another height and width."""
        config, arguments = dict(self.pretrained_cfg), dict(self.model_args)
        config["input_size"] = ((config.get("input_size") or (3,))[0], side, side)
        for name in ("test_input_size", "pool_size", "test_pool_size"):
            config.pop(name, None)
        if "img_size" in arguments:
            arguments["img_size"] = side
        return TimmDescription(self.architecture, arguments, config)

    @classmethod
    def read(cls, folder: Path) -> TimmDescription:
        """Read a ``config.json`` as timm writes it, now or in its first versions.

        Raises:
            ValueError: It is damaged, or describes no classifier.
        """
        content = _read(folder / TIMM)
        if "pretrained_cfg" not in content:
            # one dictionary of everything, as timm wrote at first
            nested = {name: value for name, value in content.items() if name not in {"architecture", "num_features"}}
            if "labels" in nested:
                nested["label_names"] = nested.pop("labels")
            content = {"architecture": content.get("architecture"), "pretrained_cfg": nested}
        root = _converted(content, _TimmRoot)
        _check_architecture(root.architecture)
        arguments = root.model_args or {}
        _check_arguments(arguments)
        config = {name: value for name, value in content["pretrained_cfg"].items() if name in _TIMM_FIELDS}
        # timm lets the root win
        config |= {name: content[name] for name in _AT_ROOT if name in content}
        classes = config.setdefault("num_classes", 1000)
        if classes is None or arguments.get("num_classes", classes) != classes:
            raise ValueError(
                f"expected one number of classes, got num_classes {classes} of the weights and "
                f"{arguments.get('num_classes')} in model_args"
            )
        return cls(root.architecture, arguments, _agreeing(config, arguments))


@dataclass(frozen=True)
class OwnDescription:
    """What a model is made of that timm's constructor doesn't make as it is.

    Attributes:
        architecture: A name that timm knows, ``torchvision:NAME``, or ``module:CLASS``, which no name makes.
        model_args: Of its constructor.
        pretrained_cfg: Preprocessing and names of classes.
        cuts: Where the model was cut.
        layers: Of a sequence: ``"block"``, or an adapter; None for a whole model.
        sizes: As :meth:`netgraft.deriving.sizes.Sizes.from_json` takes them; None where the constructor's are right.
    """

    architecture: str
    model_args: Mapping[str, Any]
    pretrained_cfg: Mapping[str, Any]
    cuts: tuple[str, ...]
    layers: tuple[Literal["block"] | Adapter, ...] | None
    sizes: Mapping[str, Any] | None

    @property
    def is_named(self) -> bool:
        """Whether the architecture's name makes the model."""
        return not self.architecture.startswith(MODULE)

    def sized(self, side: int) -> OwnDescription:
        """Return the same for images of another height and width."""
        config = {**self.pretrained_cfg, "input_size": (self.pretrained_cfg["input_size"][0], side, side)}
        arguments = {**self.model_args, **({"img_size": [side, side]} if "img_size" in self.model_args else {})}
        return replace(self, pretrained_cfg=config, model_args=arguments)

    @classmethod
    def read(cls, folder: Path) -> OwnDescription:
        """Read a ``netgraft.json``.

        Raises:
            ValueError: It is damaged.
        """
        content = _read(folder / OWN)
        root = _converted(content, _OwnRoot)
        if not root.architecture.startswith(MODULE) and not is_torchvision(root.architecture):
            _check_architecture(root.architecture)
        images = content["pretrained_cfg"]
        channels = root.pretrained_cfg.input_size[0]
        if root.model_args.in_chans != channels:
            raise ValueError(f"expected in_chans {channels} as in input_size, got {root.model_args.in_chans}")
        for name, values in (("mean", root.pretrained_cfg.mean), ("std", root.pretrained_cfg.std)):
            if values is not None and len(values) not in {1, channels}:
                raise ValueError(f"expected {channels} numbers as {name}, got {len(values)}")
        return cls(
            root.architecture,
            content["model_args"],
            {name: images[name] for name in _OwnImages.__struct_fields__ if name in images},
            tuple(root.cuts),
            None if root.layers is None else tuple(_layer(layer) for layer in root.layers),
            root.sizes,
        )


def _layer(value: object) -> Literal["block"] | Adapter:
    if value == "block":
        return "block"
    if not isinstance(value, list) or len(value) not in {2, 3}:
        raise ValueError(f"expected 'block' or widths and layout of an adapter as a layer, got {str(value)[:100]}")
    into, out = _converted(value[:2], tuple[_Positive, _Positive])
    return into, out, *_converted(value[2:] or ["NCHW"], tuple[str])


def _read(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
    except ValueError as error:
        raise ValueError(f"expected JSON in {path.name}, got something else: {error}") from error
    fields: dict[str, Any] = _converted(content, dict[str, Any])
    return fields


def _converted(content: object, kind: Any) -> Any:
    try:
        return msgspec.convert(content, kind)
    except msgspec.ValidationError as error:
        text = str(error)
        raise ValueError(text[:1].lower() + text[1:]) from error


def _check_architecture(name: str) -> None:
    """An architecture is a name of timm's registry: no source, no path, no tag that isn't there."""
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture) or (tag and name not in timm.list_pretrained(f"{architecture}.*")):
        raise ValueError(f"expected the name of a timm model as architecture, got {name[:100]!r}")


_NOT_A_MODELS = {
    *inspect.signature(timm.create_model).parameters,
    *inspect.signature(build_model_with_cfg).parameters,
    "features_only",
} - {"kwargs"}
"""Options that say where weights come from or how they are loaded, not what a model is."""


def _check_arguments(arguments: Mapping[str, Any]) -> None:
    refused = sorted(_NOT_A_MODELS & arguments.keys())
    if refused:
        raise ValueError(f"expected arguments of a model in model_args, got {', '.join(refused)}")
    _converted(arguments, _TimmArguments)
    waiting = list(arguments.values())
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict | list):
            waiting += value.values() if isinstance(value, dict) else value
        elif isinstance(value, int | float) and not abs(value) <= _MOST:
            raise ValueError(f"expected numbers up to {_MOST} in model_args, got {str(value)[:20]}")


def _agreeing(config: dict[str, Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Let the sizes of images agree with a constructor's arguments, as newer versions of timm do themselves."""
    if arguments.get("dynamic_img_size") or arguments.get("strict_img_size") is False or arguments.get("use_naflex"):
        config["fixed_input_size"] = False
    channels, size = arguments.get("in_chans"), arguments.get("img_size")
    if channels is not None:
        config["input_size"] = (channels, *(config.get("input_size") or (3, 224, 224))[1:])
        for name in ("test_input_size", "min_input_size"):
            if config.get(name):
                config[name] = (channels, *config[name][1:])
    if size is not None and config.get("fixed_input_size", False):
        # not in one schema: msgspec 0.22 confuses a number with bounds and a tuple in a union
        sides = _converted([size, size] if isinstance(size, int) else size, tuple[_Side, _Side])
        config["input_size"] = ((config.get("input_size") or (3,))[0], *sides)
    return config
