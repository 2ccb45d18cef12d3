"""Split one model and compare the chain with it: outputs, gradients and statistics, in both modes.

    python -m benchmarks.splitting.checking resnet18

Prints one JSON object. Weights are random, and what starts as a constant (scales, biases, statistics) is given values
of its own, so that nothing is hidden behind a zero.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from netgraft.errors import RequestError
from netgraft.models.creation import build_model
from netgraft.splitting.chain import state_of
from netgraft.splitting.split import split

SIDE = 128
"""Of the images for models that take any size; a split doesn't depend on it."""


@torch.no_grad()
def randomise(model: nn.Module) -> None:
    """Give scales, biases and statistics that start as constants values of their own; what no file keeps stays."""
    generator = torch.Generator().manual_seed(0)
    kept = model.state_dict().keys()
    buffers = (buffer for name, buffer in model.named_buffers() if name in kept and buffer.is_floating_point())
    for tensor in [*model.parameters(), *buffers]:
        if tensor.numel() and bool((tensor == tensor.flatten()[0]).all()):
            tensor.add_(0.5 * torch.rand(tensor.shape, generator=generator))


def _once(network: nn.Module, images: Tensor, *, train: bool, dropout: bool) -> tuple[list[Tensor], dict[int, Tensor]]:
    """Outputs and gradients of one forward and backward, the same random state in front of each."""
    network.train(train)
    if not dropout:
        for module in network.modules():
            module.training &= not isinstance(module, nn.modules.dropout._DropoutNd)
    network.zero_grad(set_to_none=True)
    torch.manual_seed(1)
    returned = network(images.clone())
    outputs = [returned] if isinstance(returned, Tensor) else list(returned)
    outputs[0].float().square().mean().backward()
    gradients = {id(p): p.grad.clone() for p in network.parameters() if p.grad is not None}
    return [output.detach().clone() for output in outputs], gradients


def _difference(found: Tensor, expected: Tensor, least: float = 1e-30) -> float:
    if torch.equal(found, expected):
        return 0.0
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(least))


def compare(model: nn.Module, chain: nn.Module, images: Tensor, *, train: bool) -> dict[str, Any]:
    """Return the largest relative differences of logits, gradients and buffers; 0 means equal bits."""
    kept = [buffer.clone() for buffer in model.buffers()]

    def run(network: nn.Module, *, dropout: bool) -> tuple[list[Tensor], dict[int, Tensor], list[Tensor]]:
        outputs, gradients = _once(network, images, train=train, dropout=dropout)
        after = [buffer.clone() for buffer in model.buffers()]
        with torch.no_grad():
            for buffer, value in zip(model.buffers(), kept, strict=True):
                buffer.copy_(value)
        return outputs, gradients, after

    (expected, gradients, statistics), (found, own_gradients, own_statistics) = (
        run(network, dropout=True) for network in (model, chain)
    )
    left_out = len(expected) - len(found)
    if left_out:
        # auxiliary outputs that the chain leaves out draw random numbers too, so masks differ
        (expected, gradients, statistics), (found, own_gradients, own_statistics) = (
            run(network, dropout=False) for network in (model, chain)
        )
        # so the chain leaves their statistics alone
        changed = [not torch.equal(*pair) for pair in zip(own_statistics, kept, strict=True)]
        statistics = [value for value, used in zip(statistics, changed, strict=True) if used]
        own_statistics = [value for value, used in zip(own_statistics, changed, strict=True) if used]
    # a gradient that is zero but for rounding is no measure
    largest = max((float(gradient.abs().max()) for gradient in gradients.values()), default=0.0)
    missing = gradients.keys() - own_gradients.keys()
    differing = [
        _difference(own_gradients[key], gradients[key], 1e-4 * largest) for key in gradients if key in own_gradients
    ]
    return {
        "logits": _difference(found[0], expected[0]),
        "gradients": max(differing, default=0),
        "gradients_missing": len(missing),
        "statistics": max((_difference(*pair) for pair in zip(own_statistics, statistics, strict=True)), default=0),
        "outputs_left_out": left_out,
    }


@torch.no_grad()
def small_images(model: nn.Module) -> Tensor:
    """Three images, small if the model takes small ones in both modes."""
    size = resolve_model_data_config(model)["input_size"]
    images = torch.randn(3, *size, generator=torch.Generator().manual_seed(1))
    smaller = images[..., :SIDE, :SIDE].contiguous()
    try:
        for train in (True, False):
            model.train(train)(smaller)
    except Exception:  # whatever a forward raises at a size that it doesn't take
        return images
    finally:
        model.eval()
    return smaller


def check(name: str) -> dict[str, Any]:
    """Build, split and compare one model."""
    model = build_model(name, seed=0).eval()
    images = small_images(model)  # before the weights are changed: it moves the statistics
    randomise(model)
    result: dict[str, Any] = {
        "class": type(model).__name__,
        "parameters": sum(p.numel() for p in model.parameters()),
        "input_size": list(images.shape[1:]),
    }
    with torch.no_grad():
        logits = model(images[:2])
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        return {**result, "no_classifier": f"returns {getattr(logits, 'shape', type(logits).__name__)}"}
    del logits
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    try:
        chain = split(model, probe=images[:2])
    except RequestError as error:
        return {**result, "refused": str(error)}
    result["seconds"] = round(time.process_time() - start, 2)
    result["more_mib"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
    result["blocks"] = len(chain)
    result["stages"] = len(getattr(model, "feature_info", None) or ())
    result["cuts"] = [
        {
            "name": cut.name,
            "shape": list(cut.shape),
            "layout": cut.layout,
            "size": list(cut.size),
            "prefix_tokens": cut.prefix_tokens,
        }
        for cut in chain.cuts
    ]
    result["same_keys"] = state_of(chain).keys() == model.state_dict().keys()
    # another number of images than the chain was proven with
    for mode in ("eval", "train"):
        try:
            result[mode] = compare(model, chain, images, train=mode == "train")
        except Exception as error:  # the model's own forward may raise anything in train mode
            result[mode] = {"failed": f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"}
    return result


def main(arguments: Sequence[str]) -> None:
    """Check the named model."""
    torch.set_num_threads(1)
    print(json.dumps(check(arguments[0])))


if __name__ == "__main__":
    main(sys.argv[1:])
