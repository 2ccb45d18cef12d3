"""Questions about a traced forward: what depends on the images, what is still needed, where a module ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

DROPOUTS: dict[object, Callable[[float], nn.Module]] = {
    nn.functional.dropout: nn.Dropout,
    nn.functional.dropout1d: nn.Dropout1d,
    nn.functional.dropout2d: nn.Dropout2d,
    nn.functional.alpha_dropout: nn.AlphaDropout,
}
"""Functions whose train flag fx freezes, and the modules that follow the mode in their place."""


def derived_from_input(graph: fx.Graph) -> set[fx.Node]:
    """Return the nodes whose values depend on the images."""
    derived: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder" or any(source in derived for source in node.all_input_nodes):
            derived.add(node)
    return derived


def live_after(nodes: Sequence[fx.Node], relevant: set[fx.Node]) -> list[list[fx.Node]]:
    """Return for each position the relevant nodes in front of it that something relevant behind it still needs.

    Other nodes are computed again wherever they are needed; what they need is needed there.
    """
    position = {node: index for index, node in enumerate(nodes)}
    last_use: dict[fx.Node, int] = {}
    for node in reversed(nodes):
        uses = [position[user] if user in relevant else last_use[user] for user in node.users]
        last_use[node] = max(uses, default=position[node])
    alive: list[fx.Node] = []
    result = []
    for index, node in enumerate(nodes):
        born = [node] if node in relevant else []
        alive = [candidate for candidate in alive + born if last_use[candidate] > index]
        result.append(alive)
    return result


def module_ends(nodes: Sequence[fx.Node]) -> dict[str, int]:
    """Return the position of the last call that belongs to each module, in the order of these positions.

    A list of modules that isn't called itself ends with the last of its modules.
    """
    last: dict[str, int] = {}
    within: dict[str, int] = {}
    for index, node in enumerate(nodes):
        inside = [path for path, _ in (node.meta.get("nn_module_stack") or {}).values()]
        for name in [*inside, *([str(node.target)] if node.op == "call_module" else [])]:
            last[name] = index
            parts = name.split(".")
            within.update({".".join(parts[:depth]): index for depth in range(1, len(parts))})
    return dict(sorted(((name, end) for name, end in (within | last).items() if name), key=lambda item: item[1]))


def common_prefix(model: nn.Module, first: Sequence[fx.Node], second: Sequence[fx.Node]) -> int:
    """Return how many nodes at the beginning of two traced forwards of ``model`` are the same calls."""
    numbers: dict[fx.Node, int] = {}
    for index, pair in enumerate(zip(first, second, strict=False)):
        numbers.update(dict.fromkeys(pair, index))
        if not _same_call(model, *pair, numbers):
            return index
    return min(len(first), len(second))


def _same_call(model: nn.Module, first: fx.Node, second: fx.Node, numbers: dict[fx.Node, int]) -> bool:
    if first.op != second.op:
        return False
    if first.op == "get_attr":
        values = [_attribute(model, str(node.target)) for node in (first, second)]
        if first.target != second.target and not _equal(*values):
            return False
    elif first.target != second.target:
        return False
    flagged = first.target in DROPOUTS

    def normal(node: fx.Node) -> str:
        args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), lambda source: f"%{numbers[source]}")
        if flagged:
            args, kwargs = args[:2], {name: value for name, value in kwargs.items() if name != "training"}
        return repr((args, kwargs))

    return normal(first) == normal(second)


def _attribute(model: nn.Module, name: str) -> object:
    value: Any = model
    for part in name.split("."):
        value = getattr(value, part, None)
    return value


def _equal(first: object, second: object) -> bool:
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return first.shape == second.shape and first.dtype == second.dtype and torch.equal(first, second)
    return first is second and first is not None
