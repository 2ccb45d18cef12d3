"""Where a traced forward can be cut, and what has to cross there.

A cut is legal where everything behind it can be computed from what crosses. Usually that is one tensor. Numbers that
are still needed, such as a batch size or the height of a map, are no obstacle: they follow from the tensor's shape.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, fx, nn

from netgraft.splitting.liveness import live_after, module_ends
from netgraft.splitting.shape_propagation import (
    Numbers,
    PropagatedShapes,
    Shape,
    TensorContainer,
    Value,
    propagate_shapes,
)


@dataclass(frozen=True)
class Constant:
    """A number that follows from the size of the images alone."""

    value: object


@dataclass(frozen=True)
class BatchSize:
    """How many images there are."""


@dataclass(frozen=True)
class Property:
    """Number format or device of the tensor that crosses."""

    name: str


@dataclass(frozen=True, eq=False)
class Boundary:
    """A position between two calls of a graph at which it can be cut.

    Attributes:
        name: Of the module that ends here.
        position: Index of the last call in front of it.
        carried: What crosses: one tensor, or several values as a tuple.
        shape: Of the tensor without the batch dimension; empty where several values cross.
        numbers: What the rest needs beside, and how it follows from the tensor.
    """

    name: str
    position: int
    carried: tuple[fx.Node, ...]
    shape: tuple[int, ...] = ()
    numbers: Mapping[fx.Node, Constant | BatchSize | Property] = field(default_factory=dict)

    @property
    def is_single(self) -> bool:
        """Whether one tensor crosses and nothing else."""
        return bool(self.shape)


class TracedForward:
    """The graph of a model's forward, with what a run or two of it showed.

    Attributes:
        nodes: Of the graph, in order.
        shapes: What one image became, and what it cost, call by call.
        relevant: The nodes that depend on the images by more than their sizes, and numbers.

    Args:
        model: The model, in the mode in which it was traced.
        graph: Its forward, traced.
        images: To run it on, (B, C, H, W); the first is enough unless numbers have to be explained.
    """

    def __init__(self, model: nn.Module, graph: fx.Graph, images: Tensor) -> None:
        self.model = model
        self.graph = graph
        self.nodes: list[fx.Node] = list(graph.nodes)
        self.shapes: PropagatedShapes = propagate_shapes(model, graph, images[:1])
        self._images = images
        self.relevant = _relevant(model, self.nodes, self.shapes.values)
        self._ends = module_ends(self.nodes)
        self._live = live_after(self.nodes, self.relevant)

    @cached_property
    def _larger(self) -> Mapping[fx.Node, Value]:
        # other images too: a number that depends on what they show is no matter of sizes
        generator = torch.Generator().manual_seed(1)
        others = torch.randn((2, *self._images.shape[1:]), generator=generator).to(self._images)
        return propagate_shapes(self.model, self.graph, others).values

    def modules(self) -> list[str]:
        """Names of the modules that the image passes, in the order in which they end."""
        return [name for name, end in self._ends.items() if self.nodes[end] in self.relevant]

    def boundary_behind(self, name: str, *, several: bool = False) -> Boundary | None:
        """Return the boundary behind a module, or None where more than one tensor would have to cross.

        The boundary moves behind pooling and activations without weights, and behind the unpacking of a tuple.

        Args:
            name: One of ``modules``.
            several: Whether a tuple may cross.
        """
        if name not in self._ends:
            return None
        furthest = self._behind_local_layers(self._ends[name])
        # what follows may need the tensor on both sides of an activation
        for position in range(furthest, self._ends[name] - 1, -1):
            boundary = self._single_tensor_boundary(name, position)
            if boundary is not None:
                return boundary
        live = self._live[furthest]
        return Boundary(name, furthest, tuple(live)) if several and live else None

    def _single_tensor_boundary(self, name: str, position: int) -> Boundary | None:
        values = self.shapes.values
        tensors = [node for node in self._live[position] if isinstance(values[node], Shape)]
        if len(tensors) != 1:
            return None
        [tensor] = tensors
        shape = values[tensor]
        numbers = {node: self._rule_of(node, tensor) for node in self._live[position] if node is not tensor}
        known = {node: rule for node, rule in numbers.items() if rule is not None}
        if isinstance(shape, Shape) and len(shape.extents) > 1 and len(known) == len(numbers):
            return Boundary(name, position, (tensor,), shape.extents[1:], known)
        return None

    def is_last(self, boundary: Boundary) -> bool:
        """Whether no call with weights follows."""
        return not any(self._uses_weights(node) for node in self.nodes[boundary.position + 1 :])

    def _uses_weights(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            return next(self.model.get_submodule(str(node.target)).parameters(), None) is not None
        return any(source.op == "get_attr" for source in node.all_input_nodes)

    def _behind_local_layers(self, end: int) -> int:
        """Move a boundary: an adapter in front of a max pool or an activation could never be folded."""
        ended = self.nodes[end]
        while end + 1 < len(self.nodes):
            following = self.nodes[end + 1]
            is_container = isinstance(self.shapes.values[ended], TensorContainer)
            unpacks = is_container and following.target is operator.getitem and following.args[0] is ended
            passes = following.op == "call_module" and is_local(self.model.get_submodule(str(following.target)))
            if not unpacks and not passes and following.target is not getattr:
                break
            end += 1
        return end

    def _rule_of(self, node: fx.Node, tensor: fx.Node) -> Constant | BatchSize | Property | None:
        """How a number follows from the tensor that crosses."""
        first = self.shapes.values[node]
        if not isinstance(first, Numbers):
            return None
        if isinstance(first.value, torch.dtype | torch.device):
            return Property("dtype" if isinstance(first.value, torch.dtype) else "device")
        second = self._larger[node]
        if first == second:
            return Constant(first.value)
        pair = self.shapes.values[tensor], self._larger[tensor]
        extents = [shape.extents[0] for shape in pair if isinstance(shape, Shape)]
        return BatchSize() if isinstance(second, Numbers) and extents == [first.value, second.value] else None


def _relevant(model: nn.Module, nodes: Sequence[fx.Node], values: Mapping[fx.Node, Value]) -> set[fx.Node]:
    """The nodes that belong to the block in which they are: all that depend on the images, or on chance.

    A tensor made of weights or of nothing but sizes, such as a table of positions, isn't one of them: each block makes
    its own.
    """
    relevant: set[fx.Node] = set()
    numbers: set[fx.Node] = set()
    for node in nodes:
        sources = [source for source in node.all_input_nodes if source in relevant]
        number = isinstance(values.get(node), Numbers)
        if sources and number:
            numbers.add(node)
        once = node.op in {"placeholder", "output"} or (
            node.op == "call_module" and not _is_repeatable(model.get_submodule(str(node.target)))
        )
        if once or (sources and (number or not numbers.issuperset(sources))):
            relevant.add(node)
    return relevant


def _is_repeatable(module: nn.Module) -> bool:
    """Whether two calls in train mode give one result and leave no trace."""
    return not any(
        (isinstance(part, nn.modules.dropout._DropoutNd) and part.p > 0)
        or getattr(part, "drop_prob", 0)
        or isinstance(part, nn.modules.batchnorm._NormBase)
        for part in module.modules()
    )


_LOCAL = (nn.MaxPool2d, nn.AvgPool2d, nn.Identity, nn.Dropout, nn.Dropout2d)


def is_local(module: nn.Module) -> bool:
    """Whether a cut may move behind ``module``: local, without weights, so that the next block starts with some.

    Global pooling stays in the head.
    """
    if next(module.parameters(), None) is not None or next(module.buffers(), None) is not None:
        return False
    return isinstance(module, _LOCAL) or is_activation(module)


def is_activation(module: nn.Module) -> bool:
    """Whether a module is one of torch's activations, without weights."""
    # attention is defined there too
    return type(module).__module__ == "torch.nn.modules.activation" and next(module.parameters(), None) is None


def named_boundaries(traced: TracedForward, names: Sequence[str], *, several: bool = False) -> list[Boundary]:
    """Return the legal boundaries behind the named modules, each once, in the order of the forward."""
    found: dict[int, Boundary] = {}
    for name in names:
        boundary = traced.boundary_behind(name, several=several)
        if boundary is not None:
            found.setdefault(boundary.position, boundary)
    return [found[position] for position in sorted(found)]
