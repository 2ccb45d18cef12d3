"""What is frozen, and how it runs faster: copies of blocks in which norms and tiny maps cost less."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from timm.layers import BatchNormAct2d, Conv2dSame
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from netgraft.dense import DenseConvolution, with_dense_convolutions
from netgraft.layers import LayerTracer
from netgraft.metrics import eval_mode

EXAMPLES = 2  # images on which a rewrite is proven
TOLERANCE = 1e-9  # of the largest output, in float64: nothing but a mistake is above

# exact types only: a subclass may do more with its weight than convolve
_CONVOLUTIONS = (nn.Conv2d, Conv2dSame)
_NORMS = (nn.BatchNorm2d, BatchNormAct2d)


@torch.no_grad()
def frozen_copies(
    models: Iterable[nn.Sequential], trained: nn.Module, images: Tensor, dtype: torch.dtype
) -> dict[nn.Module, nn.Module]:
    """Copy, by :func:`frozen_copy`, every block of some models that shares nothing with what is trained.

    Args:
        models: In eval mode.
        trained: Everything that will ever be trained.
        images: (B, C, H, W), on the models' device.
        dtype: Of the weights of convolutions and linear layers: cast once here instead of at every step.

    Returns:
        Block -> its copy.
    """
    copies: dict[nn.Module, nn.Module] = {}
    for model in models:
        wanted = [block for block in model if block not in copies and not overlap(block, trained)]
        state = images
        for block in model:
            if not wanted:
                break
            if block in wanted:
                wanted.remove(block)
                copies[block] = _lowered(frozen_copy(block, state), dtype)
            state = block(state.clone())  # a forward may work in place on its input
    return copies


def _lowered(block: nn.Module, dtype: torch.dtype) -> nn.Module:
    for module in block.modules():
        # by exact type: norms, and layers that compute their weights, need all the digits
        if type(module) in {*_CONVOLUTIONS, nn.Linear, DenseConvolution}:
            module.to(dtype)
    return block.to(memory_format=torch.channels_last)


@contextmanager
def frozen(modules: nn.ModuleList) -> Iterator[None]:
    """Freeze everything, in eval mode and channels-last order, and leave flags and modes as they were found."""
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


def overlap(first: nn.Module, second: nn.Module) -> bool:
    """Whether two modules share a module or a parameter, so that training one changes the other."""
    shared_modules = set(first.modules()) & set(second.modules())
    return bool(shared_modules) or not set(first.parameters()).isdisjoint(second.parameters())


def frozen_copy(block: nn.Module, example: Tensor) -> nn.Module:
    """Copy a frozen block, in eval mode, with its batch norms folded into the convolutions in front of them.

    ``gamma (W x + b - mean) / sqrt(var + eps) + beta`` is a convolution with other weights: an exact rewrite. So is a
    convolution on maps smaller than its kernel as a matrix product. Both are proven on ``example`` in float64; where
    they can't be made or proven the copy is a plain one.

    Args:
        block: In eval mode; unchanged.
        example: What the block takes in, (B, C, H, W); the copy takes maps of this size alone.

    Returns:
        A copy in the block's own type, without gradients.
    """
    plain = copy.deepcopy(block).eval().requires_grad_(False)
    try:
        wide = copy.deepcopy(plain).cpu().double()
        seen = example.cpu().double()
        folded = with_dense_convolutions(_folded(copy.deepcopy(wide)), seen)
        if not _equal(wide, folded, seen):
            return plain
    except Exception:  # following a foreign forward, or running it in float64, may raise anything
        return plain
    return folded.eval().to(example.device, _dtype(block))


def _folded(block: nn.Module) -> nn.Module:
    network = fx.GraphModule(block, LayerTracer().trace(block))
    modules = dict(network.named_modules())
    uses = [node.target for node in network.graph.nodes if node.op == "call_module"]
    for node in list(network.graph.nodes):
        pair = _convolution_and_norm(node, modules, uses)
        if pair is None:
            continue
        convolution, norm = pair
        _absorb(convolution, norm)
        rest = nn.Sequential(norm.drop, norm.act) if isinstance(norm, BatchNormAct2d) else None
        if rest is None:
            node.replace_all_uses_with(node.args[0])
            network.graph.erase_node(node)
        else:
            parent, _, name = str(node.target).rpartition(".")
            setattr(network.get_submodule(parent), name, rest)
    network.graph.lint()
    network.recompile()
    network.delete_all_unused_submodules()
    return network.eval().requires_grad_(False)


def _convolution_and_norm(
    node: fx.Node, modules: dict[str, nn.Module], uses: list[fx.node.Target]
) -> tuple[nn.Conv2d, nn.BatchNorm2d | BatchNormAct2d] | None:
    """Find a norm, called once, behind a convolution that is called once and read by nothing else."""
    if node.op != "call_module" or type(modules[str(node.target)]) not in _NORMS:
        return None
    norm = modules[str(node.target)]
    [source] = node.all_input_nodes
    if source.op != "call_module" or type(modules[str(source.target)]) not in _CONVOLUTIONS:
        return None
    convolution = modules[str(source.target)]
    assert isinstance(convolution, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d | BatchNormAct2d)
    called_once = len(source.users) == 1 and uses.count(source.target) == uses.count(node.target) == 1
    return (convolution, norm) if called_once and norm.running_mean is not None else None


def _absorb(convolution: nn.Conv2d, norm: nn.BatchNorm2d | BatchNormAct2d) -> None:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    weight, bias = fuse_conv_bn_weights(
        convolution.weight,
        convolution.bias,
        norm.running_mean,
        norm.running_var,
        norm.eps,
        norm.weight,
        norm.bias,
    )
    convolution.weight, convolution.bias = nn.Parameter(weight), nn.Parameter(bias)


def _dtype(block: nn.Module) -> torch.dtype | None:
    """Return the type of the block's weights; None, which changes nothing, without any."""
    return next((p.dtype for p in block.parameters() if p.is_floating_point()), None)


@torch.no_grad()
def _equal(plain: nn.Module, folded: nn.Module, example: Tensor) -> bool:
    # a forward may work in place on its input
    expected, got = plain(example.clone()), folded(example.clone())
    return bool((expected - got).abs().max() <= TOLERANCE * expected.abs().max())
