"""Cut a block once more, in front of its last activation: what enters it has both signs."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import fx, nn
from torch.nn import functional as F

from netgraft.errors import RequestError
from netgraft.splitting.boundaries import is_activation, is_local

_ACTIVATIONS = frozenset({F.relu, torch.relu, F.relu6, F.leaky_relu, F.gelu, F.silu})


class _OneLevel(fx.Tracer):
    """Traces into one module, down to calls of its children."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._module = module

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return m is not self._module


def split_before_activation(block: nn.Module) -> tuple[fx.GraphModule, fx.GraphModule]:
    """Cut a block in front of the activation that it ends with; pooling and dropout may follow the activation.

    Args:
        block: Of a chain: (B, ...) to (B, ...). Its last module is cut within where that is no activation.

    Returns:
        What is in front, whose output the activation takes in, and the rest. Together they compute what the block
        does, in both modes; they share its layers, so that training one trains the other.

    Raises:
        RequestError: The block ends in something else, what enters the activation is needed elsewhere too, or the
            forward of a module that would have to be cut depends on the mode.

    Examples:
        >>> block = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2))
        >>> front, rest = split_before_activation(block)
        >>> images = torch.randn(4, 1, 8, 8)
        >>> bool((front(images) < 0).any()), torch.equal(rest(front(images)), block(images))
        (True, True)
    """
    around = nn.Sequential(block)  # called by it, a forward's other arguments have their defaults
    graph = _trace(around, block)
    node = next(iter(reversed(graph.nodes))).args[0]
    behind: list[fx.Node] = []
    while isinstance(node, fx.Node) and len(node.users) == 1:
        module = around.get_submodule(str(node.target)) if node.op == "call_module" else None
        ends = node.target in _ACTIVATIONS if module is None else is_activation(module)
        inputs = node.all_input_nodes
        if ends and len(inputs) == 1 and len(inputs[0].users) == 1:
            behind.insert(0, node)
            front = [each for each in graph.nodes if each.op != "output" and each not in behind]
            return _piece(around, front), _piece(around, behind)
        if module is None or ends:
            break
        if is_local(module):
            behind.insert(0, node)
            [node] = inputs
            continue
        if not any(module.children()):
            break
        parts = split_before_activation(module)
        earlier = [each for each in graph.nodes if each.op != "output" and each not in behind and each is not node]
        return _piece(around, [*earlier, node], {node: parts[0]}), _piece(around, [node, *behind], {node: parts[1]})
    raise RequestError(
        f"{_kind(block)} doesn't end in an activation, possibly followed by pooling, that alone takes in what is in "
        "front of it; choose models whose blocks end in a ReLU, or compare what leaves the blocks"
    )


def _trace(around: nn.Sequential, block: nn.Module) -> fx.Graph:
    training = block.training
    graphs = []
    try:
        for mode in (True, False):
            block.training = mode  # its children are called, whatever their modes
            graphs.append(_OneLevel(block).trace(around))
    except Exception as error:  # fx raises whatever the block's own forward raised
        raise RequestError(
            f"{_kind(block)} can't be traced ({type(error).__name__}: {error}), so it can't be cut in front of its "
            "last activation; choose another model"
        ) from error
    finally:
        block.training = training
    if str(graphs[0]) != str(graphs[1]):
        raise RequestError(
            f"{_kind(block)} has another forward in train mode, so it can't be cut in front of its last activation; "
            "choose another model"
        )
    return graphs[0]


def _kind(block: nn.Module) -> str:
    return "a block" if isinstance(block, fx.GraphModule | nn.Sequential) else type(block).__name__


def _piece(
    around: nn.Module, nodes: Iterable[fx.Node], replaced: dict[fx.Node, fx.GraphModule] | None = None
) -> fx.GraphModule:
    """Make a module of some calls of a block, in order, of which the last is returned.

    What comes from none of them comes in. Calls of modules that are cut themselves call a part.
    """
    replaced = replaced or {}
    graph, parts = fx.Graph(), dict[str, object]()
    copies: dict[fx.Node, fx.Node] = {}

    def copy(source: fx.Node) -> fx.Node:
        if source not in copies:
            copies[source] = graph.placeholder("x")
        return copies[source]

    last = None
    for node in nodes:
        last = copies[node] = graph.node_copy(node, copy)
        if node in replaced:
            last.target = f"{node.name}_part"
            parts[str(last.target)] = replaced[node]
        elif node.op == "call_module":
            parts[str(node.target)] = around.get_submodule(str(node.target))
        elif node.op == "get_attr":
            parent, _, name = str(node.target).rpartition(".")
            parts[str(node.target)] = getattr(around.get_submodule(parent), name)
    graph.output(last)
    return fx.GraphModule(parts, graph)
