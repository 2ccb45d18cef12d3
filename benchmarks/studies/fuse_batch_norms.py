"""Write the shared CIFAR-10 teacher without its batch norms: the same function, as a ``cifar_vgg16``.

    python -m benchmarks.studies.fuse_batch_norms cifar_vgg16.cifar10-jpeg.safetensors

The published networks have no batch norm. With each one multiplied into the convolution before it, the two kinds of
network can be compared below one and the same teacher: benchmarks/experiments/netgraft-cifar10-plain.toml.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import timm
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from benchmarks.studies.cifar_task import teacher


def without_batch_norm(model: nn.Module) -> nn.Module:
    """Return a ``cifar_vgg16`` with the function of a ``cifar_vgg16_bn`` in eval mode."""
    plain = timm.create_model("cifar_vgg16", num_classes=model.get_submodule("head.fc").out_features)
    layers = list(model.eval().get_submodule("features").children())
    norms = {before: norm for before, norm in pairwise(layers) if isinstance(norm, nn.BatchNorm2d)}
    fused = [fuse_conv_bn_eval(layer, norms[layer]) for layer in layers if isinstance(layer, nn.Conv2d)]
    own = [layer for layer in plain.get_submodule("features").children() if isinstance(layer, nn.Conv2d)]
    for layer, source in zip(own, fused, strict=True):
        layer.load_state_dict(source.state_dict())
    plain.get_submodule("head").load_state_dict(model.get_submodule("head").state_dict())
    return plain


def main(arguments: Sequence[str]) -> None:
    """Write the file that is named."""
    if len(arguments) != 1 or Path(arguments[0]).suffix != ".safetensors":
        sys.exit(f"expected the name of one .safetensors file, got {' '.join(arguments) or 'nothing'}")
    path = Path(arguments[0])
    save_file(without_batch_norm(teacher()).state_dict(), path)
    print(f"written: {path}")


if __name__ == "__main__":
    main(sys.argv[1:])
