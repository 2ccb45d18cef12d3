"""Start a smaller student with the layers of its teacher, and of each the channels that carry the largest weights.

A smaller twin is a student that is built layer by layer like its teacher, with fewer channels, fewer residual blocks,
or both. Which channels it takes is decided once per residual stream: everything that is added together keeps the same
channels, and a layer that reads a stream takes the matching slice of its input weights. A residual block that the
student doesn't have is left out: what comes in goes on as it is (removing one of a trained residual network's blocks
costs it little: Veit et al., NIPS 2016, section 4.1).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from netgraft.errors import RequestError
from netgraft.grafting.pairing import Pairing
from netgraft.modules import LayerTracer

_ADDITIONS = {operator.add, operator.iadd, torch.add, "add", "add_"}

_PRODUCTS = {operator.mul, operator.imul, torch.mul, "mul", "mul_"}

_PASSING_FUNCTIONS = {F.relu, F.avg_pool2d, F.adaptive_avg_pool2d, F.max_pool2d, torch.flatten, torch.relu}

_PASSING_METHODS = {"mean", "flatten", "contiguous", "relu", "relu_", "sigmoid"}


class _NotATwinError(Exception):
    """Says where the student is built differently."""


@dataclass(eq=False)
class _Stream:
    """One set of channels; streams that are added together become one."""

    wide: int
    narrow: int
    score: Tensor
    """Sum over the layers that write the stream of the squared norm of each channel's weights, (wide,)."""
    parent: _Stream | None = None

    def root(self) -> _Stream:
        return self if self.parent is None else self.parent.root()

    def channels(self) -> Tensor:
        top = self.root()
        return torch.topk(top.score, top.narrow).indices.sort().values


_Value = tuple[_Stream, ...]  # a tensor's channels: one stream, or several behind a concatenation


def _unite(first: _Value, second: _Value) -> _Value:
    if len(first) != len(second):
        raise _NotATwinError("tensors made of different streams are added")
    for pair in zip(first, second, strict=True):
        a, b = (stream.root() for stream in pair)
        if a is b:
            continue
        if (a.wide, a.narrow) != (b.wide, b.narrow):
            raise _NotATwinError("streams of different widths are added")
        a.score = a.score + b.score
        b.parent = a
    return first


def _channels(value: _Value) -> Tensor:
    """Indices into the concatenated channels of the teacher."""
    offsets = [0]
    for stream in value:
        offsets.append(offsets[-1] + stream.wide)
    return torch.cat([stream.channels() + offset for stream, offset in zip(value, offsets, strict=False)])


def _width(value: _Value) -> int:
    return sum(stream.wide for stream in value)


def _narrow_width(value: _Value) -> int:
    return sum(stream.narrow for stream in value)


def _geometry(layer: nn.Conv2d) -> tuple[object, ...]:
    return layer.kernel_size, layer.stride, layer.padding, layer.dilation


@dataclass
class _Layers:
    """The nodes of a block in order, without those of residual blocks that are left out."""

    nodes: list[fx.Node]
    left_out: list[str] = field(default_factory=list)
    bypass: dict[fx.Node, fx.Node] = field(default_factory=dict)
    """What leaves a residual block that is left out -> what came into it."""

    def sources(self, node: fx.Node) -> list[fx.Node]:
        """Where a node's tensors come from."""
        return [self._origin(source) for source in node.all_input_nodes]

    def _origin(self, node: fx.Node) -> fx.Node:
        return self._origin(self.bypass[node]) if node in self.bypass else node

    def wiring(self) -> list[tuple[str, str, list[int]]]:
        """Return what is called in which order, and on the results of which calls."""
        numbers = {node: number for number, node in enumerate(self.nodes)}
        return [(node.op, str(node.target), [numbers[each] for each in self.sources(node)]) for node in self.nodes]

    @classmethod
    def shared(cls, teacher: nn.Module, student: nn.Module) -> _Layers:
        """Return the teacher's layers without the residual blocks that the student has not."""
        nodes = list(LayerTracer().trace(teacher).nodes)
        known = {name for name, _ in student.named_modules()}
        layers = cls([])
        left_out: dict[str, list[fx.Node]] = {}
        for node in nodes:
            name = _first_unknown(_module_of(node), known)
            (layers.nodes if name is None else left_out.setdefault(name, [])).append(node)
        for name, inside in left_out.items():
            entries = {source for node in inside for source in node.all_input_nodes} - set(inside)
            exits = [node for node in inside if not set(node.users) <= set(inside)]
            shortcuts = [node for node in inside if node.target in _ADDITIONS and entries <= set(node.all_input_nodes)]
            if len(entries) != 1 or len(exits) != 1 or not shortcuts:
                raise _NotATwinError(f"the student has no {name}, which is no residual block that could be left out")
            layers.bypass[exits[0]] = entries.pop()
            layers.left_out.append(name)
        return layers


def _module_of(node: fx.Node) -> str:
    """Name of the module that a node calls, or in whose forward it stands."""
    if node.op == "call_module":
        return str(node.target)
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return str(stack[-1][0]) if stack else ""


def _first_unknown(name: str, known: Container[str]) -> str | None:
    """Return the outermost module around the one with this name that is not among ``known``."""
    parts = name.split(".")
    ancestors = (".".join(parts[: end + 1]) for end in range(len(parts)))
    return next((ancestor for ancestor in ancestors if ancestor not in known), None)


@dataclass
class _ChannelPropagation:
    """Propagates the channels that are kept through the layers of both models and notes what is to be copied."""

    copies: list[Callable[[], None]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def block(self, teacher: nn.Module, student: nn.Module, entry: _Value) -> _Value:
        try:
            layers, narrow = _Layers.shared(teacher, student), _Layers.shared(student, student)
        except _NotATwinError:
            raise
        except Exception as error:  # fx raises whatever the block's own forward raised
            raise _NotATwinError(f"{type(error).__name__} while tracing the layers") from error
        if layers.wiring() != narrow.wiring():
            raise _NotATwinError("the layers differ in number, name or order")
        self.left_out += layers.left_out
        values: dict[fx.Node, _Value] = {}
        result: _Value = ()
        for node in layers.nodes:
            sources = [values[source] for source in layers.sources(node)]
            if node.op == "placeholder":
                values[node] = entry
            elif node.op == "output":
                result = sources[0]
            elif node.op == "call_module":
                name = str(node.target)
                values[node] = self.layer(name, teacher.get_submodule(name), student.get_submodule(name), sources[0])
            else:
                values[node] = self.operation(node, sources)
        return result

    def operation(self, node: fx.Node, inputs: Sequence[_Value]) -> _Value:
        if node.target is torch.cat and (node.args[1:] == (1,) or node.kwargs == {"dim": 1}):
            return tuple(stream for value in inputs for stream in value)
        if node.target in _ADDITIONS or node.target in _PRODUCTS:
            return inputs[0] if len(inputs) == 1 else _unite(inputs[0], inputs[1])
        if node.target in _PASSING_FUNCTIONS or node.target in _PASSING_METHODS:
            return inputs[0]
        raise _NotATwinError(f"{node.name} is an operation whose channels can't be propagated")

    def layer(self, name: str, wide: nn.Module, narrow: nn.Module, entry: _Value) -> _Value:
        if type(wide) is not type(narrow):
            raise _NotATwinError(f"{name} is a {type(wide).__name__} and a {type(narrow).__name__}")
        if wide.state_dict().keys() != narrow.state_dict().keys():
            raise _NotATwinError(f"{name} has other weights, a bias for instance")
        if isinstance(wide, nn.Conv2d) and isinstance(narrow, nn.Conv2d):
            return self._convolution(name, wide, narrow, entry)
        if isinstance(wide, nn.Linear) and isinstance(narrow, nn.Linear):
            return self._linear(name, wide, narrow, entry)
        for model, width in ((wide, _width(entry)), (narrow, _narrow_width(entry))):
            if any(tuple(value.shape) not in {(width,), ()} for value in model.state_dict().values()):
                raise _NotATwinError(f"{name} ({type(wide).__name__}) has weights that are not one for each channel")
        # a value per channel (batch norm, layer scale), or nothing at all
        self.copies.append(lambda: _copy_sliced(wide, narrow, lambda value: value[_channels(entry)]))
        return entry

    def _convolution(self, name: str, wide: nn.Conv2d, narrow: nn.Conv2d, entry: _Value) -> _Value:
        if _geometry(wide) != _geometry(narrow):
            raise _NotATwinError(f"{name} has another kernel, stride, padding or dilation")
        if (wide.in_channels, narrow.in_channels) != (_width(entry), _narrow_width(entry)):
            raise _NotATwinError(f"{name} takes {wide.in_channels} and {narrow.in_channels} channels, other than come")
        if wide.groups == 1 and narrow.groups == 1:
            return self._weighted(wide, narrow, entry, wide.out_channels, narrow.out_channels)
        if wide.groups == wide.in_channels == wide.out_channels and narrow.groups == narrow.out_channels:
            self.copies.append(lambda: _copy_sliced(wide, narrow, lambda value: value[_channels(entry)]))
            return entry
        if tuple(wide.weight.shape) == tuple(narrow.weight.shape) and wide.groups == narrow.groups:
            return self._weighted(wide, narrow, entry, wide.out_channels, narrow.out_channels, grouped=True)
        raise _NotATwinError(f"{name} is a grouped convolution of another width")

    def _linear(self, name: str, wide: nn.Linear, narrow: nn.Linear, entry: _Value) -> _Value:
        # behind a flattened map there is a column for each channel and position
        positions = wide.in_features // _width(entry)
        if (wide.in_features, narrow.in_features) != (positions * _width(entry), positions * _narrow_width(entry)):
            raise _NotATwinError(f"{name} takes {wide.in_features} and {narrow.in_features} features, other than come")
        return self._weighted(wide, narrow, entry, wide.out_features, narrow.out_features)

    def _weighted(
        self, wide: nn.Module, narrow: nn.Module, entry: _Value, outputs: int, kept: int, grouped: bool = False
    ) -> _Value:
        assert isinstance(wide.weight, Tensor)
        score = wide.weight.detach().cpu().double().flatten(1).square().sum(1)
        if kept > outputs:
            raise _NotATwinError("the student is wider than the teacher")
        stream = _Stream(outputs, kept, score)

        def take(value: Tensor) -> Tensor:
            rows = value[stream.channels()]
            if value.dim() == 1 or grouped:
                return rows
            return rows.unflatten(1, (_width(entry), -1))[:, _channels(entry)].flatten(1, 2)

        self.copies.append(lambda: _copy_sliced(wide, narrow, take))
        return (stream,)


@torch.no_grad()
def _copy_sliced(wide: nn.Module, narrow: nn.Module, take: Callable[[Tensor], Tensor]) -> None:
    target = narrow.state_dict()
    for name, value in wide.state_dict().items():
        # a batch norm's counter has no channels
        target[name].copy_(take(value) if value.dim() else value)


def slice_from_teacher(pairing: Pairing) -> Pairing:
    """Copy into the student the teacher's channels of largest weight norm, one index set per residual stream.

    Inherited blocks are passed through: all of their channels stay where they are. Channels are ranked by the norm of
    their weights as in Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017; there it is the L1 norm, here
    the L2 norm.

    Args:
        pairing: The student's weights are changed in place.

    Returns:
        The pairing with ``init="slice"``, the selection of channels at each cut, and the residual blocks left out.

    Raises:
        RequestError: The student is no smaller twin of the teacher, with the block where they differ.
    """
    propagation = _ChannelPropagation()
    image = next((layer.in_channels for layer in pairing.teacher.modules() if isinstance(layer, nn.Conv2d)), 0)
    value: _Value = (_Stream(image, image, torch.zeros(image, dtype=torch.float64)),)
    ends: list[_Value] = []
    try:
        for teacher, student in zip(pairing.teacher, pairing.student, strict=True):
            value = propagation.block(teacher, student, value)
            ends.append(value)
    except _NotATwinError as reason:
        number = len(ends)
        names = f"{pairing.teacher.names[number]} / {pairing.student.names[number]}"
        raise RequestError(
            "init='slice' needs a student that is built like the teacher layer by layer, only narrower or with fewer "
            f"residual blocks; in block {number + 1} ({names}) {reason}; use init='random'"
        ) from None
    for copy_weights in propagation.copies:
        copy_weights()
    selections = tuple(_channels(end).cpu() for end in ends[:-1])
    for (_, narrow), chosen in zip(pairing.widths, selections, strict=True):
        assert len(chosen) == narrow
    return replace(pairing, init="slice", selections=selections, left_out=tuple(propagation.left_out))
