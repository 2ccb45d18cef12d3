"""Any module that maps images to logits -> a classifier as the rest of the package takes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from netgraft.errors import RequestError
from netgraft.modules import eval_mode

_LOGITS = "logits"


class LogitsOf(nn.Module):
    """Returns the bare logits of a model that has them in a dictionary or an object, as Hugging Face's classifiers do.

    Args:
        model: (B, C, H, W) -> something with ``logits``, (B, K).
        as_key: Whether they are an entry of a dictionary and not an attribute.
    """

    def __init__(self, model: nn.Module, *, as_key: bool) -> None:
        super().__init__()
        self.model = model
        self.as_key = as_key

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, K)."""
        output = self.model(x)
        return cast(Tensor, output[_LOGITS] if self.as_key else output.logits)


@torch.no_grad()
def as_classifier(model: nn.Module, data_config: Mapping[str, Any]) -> nn.Module:
    """Return what maps images to logits, and says how many classes it has and which images it takes.

    Args:
        model: Gets the attributes ``num_classes`` and ``pretrained_cfg`` where it has none.
        data_config: Preprocessing; ``input_size`` (C, H, W) is what it is tried with.

    Returns:
        The model itself, or a :class:`LogitsOf` around it.

    Raises:
        RequestError: It takes no such images, or gives something else than logits.
    """
    size = tuple(data_config["input_size"])
    if isinstance(getattr(model, "num_classes", None), int) and getattr(model, "pretrained_cfg", None):
        return model
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    probe = torch.randn(2, *size, generator=torch.Generator().manual_seed(0)).to(device)
    with eval_mode(model):
        try:
            output = model(probe)
        except Exception as error:  # a model's own forward may raise anything
            shown = "x".join(map(str, size))
            raise RequestError(
                f"{type(model).__name__} can't take images of {shown} ({type(error).__name__}: {error}); give its "
                "input_size, (C, H, W), in data_config"
            ) from error
    classifier: Any = model
    if not isinstance(output, Tensor):
        as_key = isinstance(output, Mapping) and _LOGITS in output
        output = output[_LOGITS] if as_key else getattr(output, _LOGITS, output)
        classifier = LogitsOf(model, as_key=as_key)
    if not isinstance(output, Tensor) or output.ndim != 2 or len(output) != 2:
        got = f"a tensor of shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
        raise RequestError(
            f"expected logits (B, K) of {type(model).__name__}, or a dictionary or an object with logits, got {got}; "
            "wrap it in a module that returns them"
        )
    if not isinstance(getattr(classifier, "num_classes", None), int):
        classifier.num_classes = output.shape[1]
    if not getattr(classifier, "pretrained_cfg", None):
        names = getattr(getattr(model, "config", None), "id2label", None)
        classifier.pretrained_cfg = dict(data_config) | ({"label_names": dict(names)} if names else {})
    return cast(nn.Module, classifier)


PLAIN = {"interpolation": "bilinear", "crop_pct": 1.0, "crop_mode": "center"}
"""Preprocessing of a model that says nothing of its own: images as they are, resized, values from 0 to 1."""


def preprocessing(model: nn.Module, size: tuple[int, int], given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return how images are made ready for a model, in timm's words.

    Args:
        model: Says it in its ``pretrained_cfg``, as timm's models do; of another one the first convolution says how
            many channels it takes.
        size: Width and height of the images at hand, which a model without a ``pretrained_cfg`` takes.
        given: What is known; wins.
    """
    if getattr(model, "pretrained_cfg", None):
        return {**resolve_model_data_config(model), **(given or {})}
    given = given or {}
    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    channels = given["input_size"][0] if "input_size" in given else 3 if first is None else first.in_channels
    width, height = size
    scale = {"mean": (0.0,) * channels, "std": (1.0,) * channels}
    return {"input_size": (channels, height, width), **scale, **PLAIN, **given}
