"""Names and folders -> models with weights."""

from __future__ import annotations

from pathlib import Path

import timm
from torch import nn

from netgraft.errors import RequestError
from netgraft.models.creation import class_count, load_trained
from netgraft.models.downloads import HUB
from netgraft.models.students import load_student
from netgraft.models.torchvision_models import PREFIX


def load_teacher(
    name: str, *, weights: str | Path | None = None, image_size: int | None = None, num_classes: int | None = None
) -> nn.Module:
    """Return a trained classifier in eval mode.

    Args:
        name: A timm model, ``torchvision:NAME``, ``hf-hub:...``, ``local-dir:FOLDER``, or a folder that netgraft saved:
            a student's, a trained model's, or a run's, which holds one of these.
        weights: A safetensors file, or a checkpoint that holds nothing but tensors and plain values; without it
            timm's own pretrained weights. The model gets as many outputs as its classifier in there.
        image_size: Height and width of the images that it takes; the model's own if None.
        num_classes: How many classes it must have; as many as its weights if None.

    Returns:
        A model of images (B, C, H, W) to logits (B, K).

    Raises:
        RequestError: No such model, no pretrained weights, or weights that don't fit.

    Examples:
        >>> import torch
        >>> teacher = load_teacher("digits_vgg7_bn")
        >>> teacher(torch.randn(2, 1, 8, 8)).shape
        torch.Size([2, 10])
        >>> teacher.training
        False
    """
    if not is_folder(name):
        file = None if weights is None else Path(weights)
        return load_trained(name, weights=file, image_size=image_size, num_classes=num_classes)
    if weights is not None:
        raise RequestError(f"{name} brings its weights along; leave the weights out")
    model = load_student(name, image_size=image_size)
    if num_classes not in {None, class_count(model)}:
        raise RequestError(
            f"expected a model of {num_classes:,} classes, got one of {class_count(model):,} in {name}; name another, "
            "or leave --num-classes out"
        )
    return model


def is_folder(name: str) -> bool:
    """Whether a model's name is the path of a folder, where timm has no model of that name."""
    return not timm.is_model(name) and Path(name).is_dir()


def lies_on_disk(name: str) -> bool:
    """Whether a model's name is a path, there or not, and says nothing to others."""
    source, _, rest = name.partition(":")
    return not (timm.is_model(name) or (rest and source in (*HUB, PREFIX.removesuffix(":"))))
