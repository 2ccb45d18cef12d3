"""torchvision's classifiers by their names, described as timm describes its own."""

from __future__ import annotations

import difflib
import warnings
from typing import Any

from torch import nn

from netgraft.errors import RequestError

PREFIX = "torchvision:"
"""In front of a name of torchvision's, wherever a model is named."""


def is_torchvision(name: str) -> bool:
    """Whether a name is of a classifier of torchvision."""
    return name.startswith(PREFIX) and name.removeprefix(PREFIX) in _known()


def create(name: str, options: dict[str, Any]) -> nn.Module:
    """Return a model with random weights.

    Args:
        name: With the prefix.
        options: As for timm; ``pretrained_cfg_overlay`` may say another image size.

    Raises:
        RequestError: No such model, or torchvision refuses the options.
    """
    own = name.removeprefix(PREFIX)
    if own not in _known():
        close = difflib.get_close_matches(own, _known(), n=3)
        hint = f"did you mean {', '.join(close)}?" if close else "see torchvision.models.list_models()"
        raise RequestError(f"torchvision has no classifier {own!r}; {hint}")
    if options.pop("pretrained", False):
        raise RequestError(f"{name} comes without weights; give --teacher-weights FILE")
    overlay = options.pop("pretrained_cfg_overlay", {})
    if options.pop("in_chans", 3) != 3:
        raise RequestError(f"{name} takes images of 3 channels; choose a timm model for others")
    from torchvision import models  # takes a while to import and is seldom needed

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of initialisations that will change in a later version
            model: Any = models.get_model(own, weights=None, **options)
    except (ValueError, TypeError) as error:
        raise RequestError(f"torchvision could not make {own!r}: {error}") from error
    # as timm's models say of themselves
    model.num_classes = options.get("num_classes", 1000)
    model.pretrained_cfg = {"architecture": name, **_preprocessing(own), **overlay}
    return model


def family(name: str) -> list[str]:
    """Return the names, with the prefix, of the models that the same file of torchvision's makes; none for no model."""
    from torchvision import models

    if not is_torchvision(name):
        return []
    file = models.get_model_builder(name.removeprefix(PREFIX)).__module__
    return [f"{PREFIX}{own}" for own in _known() if models.get_model_builder(own).__module__ == file]


def _known() -> list[str]:
    from torchvision import models

    return models.list_models(module=models)


def _preprocessing(own: str) -> dict[str, Any]:
    """Return what the first weights that torchvision lists for a model were evaluated with."""
    from torchvision import models

    transform = next(iter(models.get_model_weights(own))).transforms()
    [side], [resized] = transform.crop_size, transform.resize_size
    return {
        "input_size": (3, side, side),
        "mean": tuple(transform.mean),
        "std": tuple(transform.std),
        "interpolation": transform.interpolation.value,
        "crop_pct": side / resized,
    }
