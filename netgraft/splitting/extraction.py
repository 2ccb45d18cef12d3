"""Extract the blocks between the boundaries of a traced forward: graph modules that share the model's weights."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence, Set
from typing import Any, cast

from torch import Tensor, fx, nn

from netgraft.errors import RequestError
from netgraft.splitting.boundaries import BatchSize, Boundary, Constant, Property
from netgraft.splitting.liveness import DROPOUTS


def extract(
    model: nn.Module, graph: fx.Graph, boundaries: Sequence[Boundary], relevant: Set[fx.Node]
) -> Iterator[fx.GraphModule]:
    """Yield the blocks, one more than there are boundaries.

    Args:
        model: The model.
        graph: Its forward, traced.
        boundaries: In ``graph``, in order.
        relevant: The nodes that belong to the block in which they are; others, such as constants, are computed again
            in each block that needs them.
    """
    nodes = list(graph.nodes)
    entry: Boundary | None = None
    start = 0
    for boundary in boundaries:
        calls = [node for node in nodes[start : boundary.position + 1] if node in relevant]
        yield _block(model, calls, entry, boundary.carried if len(boundary.carried) > 1 else boundary.carried[0])
        entry, start = boundary, boundary.position + 1
    calls = [node for node in nodes[start:] if node in relevant]
    yield _block(model, calls, entry, nodes[-1].args[0])


def attach_unused_weights(model: nn.Module, blocks: Sequence[nn.Module]) -> None:
    """Give the last block the weights that no block uses, so that the blocks together have all of the model's.

    These are auxiliary classifiers, layers that an option turned off, and second names of shared weights.

    Args:
        model: The model.
        blocks: Graph modules, or modules made of graph modules.
    """
    graphs = [module for block in blocks for module in block.modules() if isinstance(module, fx.GraphModule)]
    held = {name for block in graphs for name in block.state_dict()}
    for name in model.state_dict():
        if name in held:
            continue
        path, _, field = name.rpartition(".")
        origin: nn.Module = model
        target: nn.Module = graphs[-1]
        for part in path.split(".") if path else ():
            origin = origin.get_submodule(part)
            if not hasattr(target, part):
                target.add_module(part, nn.Module())
            target = target.get_submodule(part)
        if origin is not target:
            value = getattr(origin, field)
            kind = target.register_parameter if isinstance(value, nn.Parameter) else target.register_buffer
            kind(field, value)


def _block(model: nn.Module, calls: Sequence[fx.Node], entry: Boundary | None, result: object) -> fx.GraphModule:
    graph = fx.Graph()
    copies = _receive(graph, entry)

    def copy(node: fx.Node) -> object:
        if node not in copies:
            if node.op == "placeholder":
                copies[node] = graph.placeholder("x")
                return copies[node]
            for source in node.all_input_nodes:
                copy(source)
            copies[node] = graph.node_copy(node, lambda source: cast(Any, copies[source]))
        return copies[node]

    for node in calls:
        if node.op != "output":
            copy(node)
    graph.output(fx.map_arg(cast(Any, result), cast(Any, copy)))
    _follow_mode_in_dropouts(block := _with_shared_weights(model, graph))
    return block


def _receive(graph: fx.Graph, entry: Boundary | None) -> dict[fx.Node, object]:
    """Let what crosses come in; returns what stands for each node in front of the boundary."""
    if entry is None:
        return {}
    state = graph.placeholder("x")
    if not entry.is_single:
        if len(entry.carried) == 1:
            return {entry.carried[0]: state}
        return {node: graph.call_function(operator.getitem, (state, index)) for index, node in enumerate(entry.carried)}
    if any(isinstance(rule, Constant) for rule in entry.numbers.values()):
        state = graph.call_function(of_shape, (state, entry.shape))
    copies: dict[fx.Node, object] = {entry.carried[0]: state}
    for node, rule in entry.numbers.items():
        match rule:
            case Constant(value):
                copies[node] = value
            case BatchSize():
                copies[node] = graph.call_method("size", (state, 0))
            case Property(name):
                copies[node] = graph.call_function(getattr, (state, name))
    return copies


def of_shape(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return ``x`` if it has this shape behind the batch dimension: numbers in the block hold for no other.

    Raises:
        RequestError: It has another.
    """
    if isinstance(x, fx.Proxy):
        return x.tracer.create_proxy("call_function", of_shape, (x, shape), {})
    if tuple(x.shape[1:]) != tuple(shape):
        expected, found = ("x".join(map(str, extents)) for extents in (shape, x.shape[1:]))
        raise RequestError(
            f"this block was cut for {expected} and got {found}; split the model with images of the size to be used"
        )
    return x


def _with_shared_weights(model: nn.Module, graph: fx.Graph) -> fx.GraphModule:
    graph.lint()
    block = fx.GraphModule(model, graph, class_name=f"{type(model).__name__}Block")
    known = model.state_dict().keys()
    for path, module in block.named_modules():
        for name, _ in module.named_buffers(recurse=False):
            if f"{path}.{name}".lstrip(".") not in known:
                # computed in the forward, or not for keeping: files must not hold it
                module._non_persistent_buffers_set.add(name)
    return block


def _follow_mode_in_dropouts(block: fx.GraphModule) -> None:
    """Replace ``F.dropout`` calls, whose train/eval flag fx has frozen, by modules that follow the block's mode."""
    for node in list(block.graph.nodes):
        if node.op == "call_function" and node.target in DROPOUTS:
            rate = node.kwargs.get("p", node.args[1] if len(node.args) > 1 else 0.5)
            block.add_module(node.name, DROPOUTS[node.target](cast(float, rate)))
            with block.graph.inserting_after(node):
                replacement = block.graph.call_module(node.name, (node.all_input_nodes[0],))
            node.replace_all_uses_with(replacement)
            block.graph.erase_node(node)
    block.recompile()
