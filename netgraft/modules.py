"""What holds for any ``nn.Module``: its layers, size, bytes and modes, what two share, how many images run at once."""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, fx, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

CPU, ACCELERATOR = (16 * 224 * 224, 64), (2**23, 256)
"""Pixels, and images, at most. What lies between the layers of a small batch stays in a processor's caches: at 224 px
an EfficientNet-Lite0 answers 16 images at once in half of the time, an image, that it takes for 256, and in a third of
the memory (one core of an EPYC). An accelerator wants to be busy."""


def images_at_once(size: Sequence[int], device: torch.device) -> int:
    """Return how many images to run at once, a power of two.

    Args:
        size: Channels, height and width of an image.
        device: That runs them.
    """
    pixels, most = CPU if device.type == "cpu" else ACCELERATOR
    fit = max(1, pixels // (size[1] * size[2]))
    return min(most, 2 ** (fit.bit_length() - 1))


@contextmanager
def without_gradients(modules: nn.ModuleList) -> Iterator[None]:
    """Ask for no gradients, in eval mode and channels-last order; leave flags and modes as they were found.

    Args:
        modules: Whose parameters lose their ``grad`` at the end, and lie in contiguous order then.
    """
    flags = [(parameter, parameter.requires_grad) for parameter in modules.parameters()]
    modules.requires_grad_(False)
    modules.to(memory_format=torch.channels_last)
    try:
        with eval_mode(modules):
            yield
    finally:
        modules.to(memory_format=torch.contiguous_format)
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
            parameter.grad = None


def put_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put ``module`` where one of this name stands in ``model``, in place.

    Args:
        model: Of which the other one is a part.
        name: Of the other one, with dots; not empty.
        module: Takes its place.
    """
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, module)


def shares_parameters(first: nn.Module, second: nn.Module) -> bool:
    """Return whether two modules share a module or a parameter, so that training one changes the other."""
    shared_modules = set(first.modules()) & set(second.modules())
    return bool(shared_modules) or not set(first.parameters()).isdisjoint(second.parameters())


class LayerTracer(fx.Tracer):
    """Traces a block down to its layers: modules of torch itself, norms and modules without children."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Stop at torch's own modules, at timm's norms that hold their activation, and at childless modules."""
        norms = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)
        return isinstance(m, norms) or super().is_leaf_module(m, module_qualified_name) or not list(m.children())


def structure(block: nn.Module) -> tuple[object, ...]:
    """Return what a block computes, names and values of weights left aside, to be compared for equality.

    Two blocks of equal structure take each other's weights in the order of their state dicts.

    Args:
        block: A traced block, or a sequence of such.
    """
    if not isinstance(block, fx.GraphModule):
        return tuple(structure(child) for child in block.children())
    try:
        # a skip connection is in the forward and not in what a module prints
        return (*_rows(block, block.graph), *_rows(block, LayerTracer().trace(block)))
    except Exception:  # fx raises whatever the block's own forward raised
        return _rows(block, block.graph)


def _rows(block: nn.Module, graph: fx.Graph) -> tuple[object, ...]:
    numbers = {node: index for index, node in enumerate(graph.nodes)}
    rows: list[object] = []
    for node in graph.nodes:
        if node.op == "call_module":
            what: object = repr(block.get_submodule(str(node.target)))
        elif node.op == "get_attr":
            what = tuple(operator.attrgetter(str(node.target))(block).shape)
        else:
            what = str(node.target)
        arguments = fx.map_arg((node.args, node.kwargs), lambda source: f"%{numbers[source]}")
        rows.append((node.op, what, str(arguments)))
    return tuple(rows)


def parameters(model: nn.Module) -> int:
    """Return how many numbers a model learns, frozen ones too; a shared parameter counts once."""
    return sum(parameter.numel() for parameter in model.parameters())


def state_digest(module: nn.Module) -> str:
    """Return the SHA-256, in hexadecimal, of all parameters and buffers: name, type, shape and bytes, sorted by name.

    Equal for equal bits, wherever a tensor lies and however its memory is laid out. A shared tensor counts
    under each of its names.
    """
    tensors: dict[str, Tensor] = dict(module.named_parameters(remove_duplicate=False))
    tensors.update(module.named_buffers(remove_duplicate=False))
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        # NUL ends the header, so that no name or shape can pass for the bytes of another tensor.
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        # numpy has no bfloat16: the bytes go through uint8, and flat, since a scalar can't change its type.
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put a model in eval mode, then give every module its own mode back: a grafted model has both kinds.

    Args:
        model: Whose modes are left as they were found.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def keep_statistics(model: nn.Module) -> None:
    """Put a model's batch norms in eval mode: they go by the statistics that they hold; their weights still learn."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


class _NoTracker:
    """Stands in for the counter's own, which fails where a module is given a parameter without gradients."""

    parents = ("Global",)

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        pass


@contextmanager
def flop_counter() -> Iterator[FlopCounterMode]:
    """Count the floating-point operations of what runs in this context, for any model in any mode.

    Yields:
        The counter; a multiply-accumulate is two operations.
    """
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = _NoTracker()  # type: ignore[assignment]
    # as the matrix products that it is: the counter has no formula for the CPU's fused kernel (torch 2.14)
    with sdpa_kernel(SDPBackend.MATH), counter:
        yield counter


@torch.no_grad()
def macs_along(blocks: Iterable[nn.Module], images: Tensor) -> list[int]:
    """Return the multiply-accumulates of each of several blocks, run one after another in the mode in which they are.

    Args:
        blocks: Each takes what the one in front of it gives.
        images: (B, C, H, W), for the first; the counts are of all B images.
    """
    counts = []
    state = images
    for block in blocks:
        with flop_counter() as counter:
            state = block(state)
        counts.append(counter.get_total_flops() // 2)
    return counts
