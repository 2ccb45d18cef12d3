"""Convolutional families of models at a size at which a test runs all of them."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from tests.support.random_models import build, images

# Height of the images, and how many cuts there must be at least.
FAMILIES = {
    "resnet18": (64, 5),
    "resnet50": (64, 5),
    "resnet18d": (64, 5),
    "vgg11_bn": (64, 5),
    "mobilenetv2_100": (64, 5),
    "mobilenetv3_small_100": (64, 5),
    "efficientnet_b0": (64, 5),
    "regnetx_002": (64, 5),
    "regnety_002": (64, 5),
    "densenet121": (64, 4),
    "cifar_vgg16_bn": (32, 5),
    "cifar_vgg16_half": (32, 5),
    "cifar_resnet8": (32, 3),
    "cifar_resnet18": (32, 4),
    "cifar_mobilenetv2": (32, 4),
}


def family(name: str) -> tuple[nn.Module, Tensor]:
    """Return an untrained model of one of the families, and two images for it."""
    # the hidden layers of VGG's head would take half a gigabyte
    options: dict[str, Any] = {"mlp_ratio": 1 / 64} if name == "vgg11_bn" else {}
    return build(name, num_classes=10, drop_rate=0.3, **options), images(2, 3, FAMILIES[name][0], FAMILIES[name][0])
