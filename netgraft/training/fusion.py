"""Faster copies of frozen blocks: norms and tiny maps that cost less, proven equal."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterable
from itertools import product

import torch
from timm.layers import BatchNormAct2d, Conv2dSame
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_weights

from netgraft.modules import LayerTracer, put_module, shares_parameters


class DenseConvolution(nn.Module):
    """A frozen convolution on maps of one small size: (B, C, H, W) -> (B, O, H', W'), by one matrix product.

    Where a map has fewer positions than the kernel, most of a convolution's products are with padding: a 3x3 kernel on
    a 2x2 map multiplies 9 numbers for each output and channel, 4 of them not zero.

    Args:
        convolution: Without groups, zero-padded.
        size: H and W.
    """

    def __init__(self, convolution: nn.Conv2d, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size
        kernel, stride, dilation = convolution.kernel_size, convolution.stride, convolution.dilation
        assert not isinstance(convolution.padding, str)
        padding, weight = convolution.padding, convolution.weight.detach()
        self.output_size = tuple(
            (size[a] + 2 * padding[a] - dilation[a] * (kernel[a] - 1) - 1) // stride[a] + 1 for a in range(2)
        )
        # channels last, as the maps are: no values have to move
        matrix = weight.new_zeros(*self.output_size, weight.shape[0], *size, weight.shape[1])
        for end in product(*map(range, self.output_size)):
            for offset in product(*map(range, kernel)):
                start = tuple(end[a] * stride[a] - padding[a] + offset[a] * dilation[a] for a in range(2))
                if all(0 <= start[a] < size[a] for a in range(2)):
                    matrix[end[0], end[1], :, start[0], start[1], :] = weight[:, :, offset[0], offset[1]]
        outputs = matrix[..., 0, 0, 0].numel()
        self.weight = nn.Parameter(matrix.reshape(outputs, -1), requires_grad=False)
        positions = self.output_size[0] * self.output_size[1]
        bias = None if convolution.bias is None else convolution.bias.detach().repeat(positions)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def forward(self, maps: Tensor) -> Tensor:
        """Convolve.

        Raises:
            ValueError: The maps have another size.
        """
        if tuple(maps.shape[2:]) != self.size:
            raise ValueError(f"expected maps of {self.size}, got {tuple(maps.shape[2:])}")
        outputs = F.linear(maps.permute(0, 2, 3, 1).flatten(1), self.weight, self.bias)
        return outputs.view(len(maps), *self.output_size, -1).permute(0, 3, 1, 2)


def with_dense_convolutions(network: nn.Module, example: Tensor) -> nn.Module:
    """Replace, in place, the convolutions that pay as matrix products on what ``network`` makes of ``example``."""
    sizes: dict[nn.Module, list[tuple[int, int]]] = defaultdict(list)

    def note(convolution: nn.Module, given: tuple[Tensor]) -> None:
        sizes[convolution].append((given[0].shape[2], given[0].shape[3]))

    small = {name: module for name, module in network.named_modules() if _is_plain(module)}
    handles = [module.register_forward_pre_hook(note) for module in small.values()]
    with torch.no_grad():
        network(example.clone())
    for handle in handles:
        handle.remove()
    for name, convolution in small.items():
        assert isinstance(convolution, nn.Conv2d)
        found = sizes[convolution]
        height, width = convolution.kernel_size
        if len(found) == 1 and found[0][0] * found[0][1] < height * width:
            put_module(network, name, DenseConvolution(convolution, found[0]))
    return network


def _is_plain(module: nn.Module) -> bool:
    # by exact type: a subclass may do more with its weight than convolve
    return (
        type(module) is nn.Conv2d
        and module.groups == 1
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
    )


EXAMPLES = 2  # images on which a rewrite is proven

TOLERANCE = 1e-9  # of the largest output, in float64: nothing but a mistake is above


# exact types only: a subclass may do more with its weight than convolve
_CONVOLUTIONS = (nn.Conv2d, Conv2dSame)

_NORMS = (nn.BatchNorm2d, BatchNormAct2d)


@torch.no_grad()
def fused_copies(
    models: Iterable[nn.Sequential], trained: nn.Module, images: Tensor, dtype: torch.dtype
) -> dict[nn.Module, nn.Module]:
    """Copy, by :func:`fused_copy`, every block of some models that shares nothing with what is trained.

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
        wanted = [block for block in model if block not in copies and not shares_parameters(block, trained)]
        state = images
        for block in model:
            if not wanted:
                break
            if block in wanted:
                wanted.remove(block)
                copies[block] = _lowered(fused_copy(block, state), dtype)
            state = block(state.clone())  # a forward may work in place on its input
    return copies


def _lowered(block: nn.Module, dtype: torch.dtype) -> nn.Module:
    for module in block.modules():
        # by exact type: norms, and layers that compute their weights, need all the digits
        if type(module) in {*_CONVOLUTIONS, nn.Linear, DenseConvolution}:
            module.to(dtype)
    return block.to(memory_format=torch.channels_last)


def fused_copy(block: nn.Module, example: Tensor) -> nn.Module:
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
            put_module(network, str(node.target), rest)
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
