"""What a block is made of: its layers in order, names and values of weights left aside."""

from __future__ import annotations

import operator

from torch import fx, nn


class LayerTracer(fx.Tracer):
    """Traces a block down to its layers: modules of torch itself, normalisations and modules without children."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Stop at torch's own modules, at timm's norms that hold their activation, and at childless modules."""
        norms = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)
        return isinstance(m, norms) or super().is_leaf_module(m, module_qualified_name) or not list(m.children())


def structure(block: nn.Module) -> tuple[object, ...]:
    """Describe what a block computes, names and values of weights left aside.

    Two blocks of equal structure take each other's weights in the order of their state dicts.
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
