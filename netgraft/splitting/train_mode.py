"""Blocks that follow their mode: a model's ways in eval and in train mode, cut at the same places.

Most models go one way: what differs between the modes, such as batch norm and dropout, differs inside their layers,
which the blocks share. Where the forward itself asks for the mode, a block keeps both ways.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from netgraft.errors import RequestError
from netgraft.splitting.boundaries import Boundary, TracedForward, named_boundaries
from netgraft.splitting.extraction import extract, hold_the_rest
from netgraft.splitting.liveness import common_prefix, derived_from_input, ends, live_after
from netgraft.splitting.tracing import trace


class TrainEvalBlock(nn.Module):
    """A block whose calls differ between the modes."""

    def __init__(self, in_eval: fx.GraphModule, in_train: fx.GraphModule) -> None:
        super().__init__()
        self.in_eval = in_eval
        self.in_train = in_train

    def forward(self, x: Tensor) -> Tensor:
        """Go the way of the present mode."""
        return self.in_train(x) if self.training else self.in_eval(x)


@dataclass(frozen=True, eq=False)
class SplitBlocks:
    """A model taken apart.

    Attributes:
        names: Of the modules behind which it was cut.
        blocks: One more.
        two_ways: Whether train mode goes another way.
        shortened: Whether auxiliary outputs of train mode were left out.
    """

    names: tuple[str, ...]
    blocks: tuple[nn.Module, ...]
    two_ways: bool = False
    shortened: bool = False


def take_apart(model: nn.Module, cuts: Sequence[str], images: Tensor, *, several: bool = False) -> SplitBlocks:
    """Cut ``model``, which is in eval mode, behind the named modules where that is legal in both modes.

    Args:
        model: A classifier.
        cuts: Names of its modules.
        images: (B, C, H, W), to run it on.
        several: Whether several tensors may cross.

    Raises:
        RequestError: The model can't be followed, the image doesn't pass a module, or no cut is legal.
    """
    what = type(model).__name__
    graph = trace(model, cuts, images)
    route = TracedForward(model, graph, images)
    passed = set(route.modules())
    for name in cuts:
        if name not in passed:
            raise RequestError(f"{what} has no module {name!r} on the way of the image; choose others to cut behind")
    crossings = named_boundaries(route, cuts, several=several)
    if not crossings:
        raise RequestError(f"{what} has no place among {', '.join(cuts)} where only one tensor crosses")
    model.train()
    try:
        trained = trace(model, cuts, images)
    finally:
        model.eval()
    length = common_prefix(model, route.nodes, list(trained.nodes))
    if length == len(route.nodes) == len(trained.nodes):
        whole = tuple(extract(model, graph, crossings, route.relevant))
        hold_the_rest(model, whole)
        return SplitBlocks(_names(crossings), whole)
    pairs = _in_both(route, trained, crossings, length)
    shortened = len(pairs) < len(crossings) and _keep_first_output(trained)
    if shortened:
        length = common_prefix(model, route.nodes, list(trained.nodes))
        pairs = _in_both(route, trained, crossings, length)
    if not pairs:
        raise RequestError(
            f"{what} goes another way in train mode, where more than one tensor crosses at {', '.join(cuts)}; "
            "choose other cuts"
        )
    crossings = [crossing for crossing, _ in pairs]
    in_train = extract(model, trained, [crossing for _, crossing in pairs], _relevant(route, trained, length))
    ways = zip(extract(model, graph, crossings, route.relevant), in_train, strict=True)
    blocks = tuple(mine if _alike(mine, theirs) else TrainEvalBlock(mine, theirs) for mine, theirs in ways)
    hold_the_rest(model, blocks)
    return SplitBlocks(_names(crossings), blocks, two_ways=True, shortened=shortened)


def _names(crossings: Sequence[Boundary]) -> tuple[str, ...]:
    return tuple(crossing.name for crossing in crossings)


def _alike(first: fx.GraphModule, second: fx.GraphModule) -> bool:
    """Whether two blocks of one model are the same calls on the same modules and weights."""
    mine, theirs = list(first.graph.nodes), list(second.graph.nodes)
    return len(mine) == len(theirs) == common_prefix(first, mine, theirs) and all(
        values[0] is values[1] for values in zip(first.parameters(), second.parameters(), strict=True)
    )


def _relevant(route: TracedForward, trained: fx.Graph, length: int) -> set[fx.Node]:
    """The relevant nodes of the way in train mode; where it differs, all that depend on the images."""
    nodes = list(trained.nodes)
    first = {theirs for mine, theirs in zip(route.nodes[:length], nodes, strict=False) if mine in route.relevant}
    return first | (derived_from_input(trained) & set(nodes[length:]))


def _in_both(
    route: TracedForward, trained: fx.Graph, crossings: Sequence[Boundary], length: int
) -> list[tuple[Boundary, Boundary]]:
    """Find the crossings of one way on the other; those that aren't legal there are left out.

    Args:
        route: The way in eval mode.
        trained: The way in train mode.
        crossings: Of ``route``.
        length: How many calls at the beginning are the same.
    """
    mine, theirs = route.nodes, list(trained.nodes)
    position = {node: index for index, node in enumerate(mine)}
    last, last_trained = ends(mine), ends(theirs)
    live = live_after(mine, route.relevant)
    live_trained = live_after(theirs, _relevant(route, trained, length))
    pairs = []
    for crossing in crossings:
        place = crossing.position
        if place < length:
            counterparts = {node: theirs[position[node]] for node in live[place]}
            # what isn't needed in train mode may cross all the same
            if set(live_trained[place]) <= set(counterparts.values()):
                carried = tuple(counterparts[node] for node in crossing.carried)
                numbers = {counterparts[node]: rule for node, rule in crossing.numbers.items()}
                pairs.append((crossing, Boundary(crossing.name, place, carried, crossing.shape, numbers)))
        elif crossing.name in last_trained and crossing.is_single and not crossing.numbers:
            place = last_trained[crossing.name] + place - last[crossing.name]
            if len(live_trained[place]) == 1:
                pairs.append((crossing, Boundary(crossing.name, place, tuple(live_trained[place]), crossing.shape)))
    return pairs


def _keep_first_output(graph: fx.Graph) -> bool:
    """Let a graph that returns a tuple return its first element, without what only the others need."""
    output = next(node for node in reversed(graph.nodes) if node.op == "output")
    results = output.args[0]
    pending: list[fx.Node] = []
    if isinstance(results, fx.Node) and isinstance(results.target, type) and issubclass(results.target, tuple):
        pending.append(results)  # fx makes a call of a named tuple
        results = results.args
    if not isinstance(results, tuple | list) or not results or not isinstance(results[0], fx.Node):
        return False
    output.args = (results[0],)
    pending += [node for node in results[1:] if isinstance(node, fx.Node)]
    pending.reverse()
    while pending:
        node = pending.pop()
        if not node._erased and not node.users and node.op != "placeholder":
            pending.extend(node.all_input_nodes)
            graph.erase_node(node)
    return True


@torch.no_grad()
def differs_in_train_mode(model: nn.Module, chain: nn.Module, parts: SplitBlocks, images: Tensor) -> float | None:
    """Compare chain and model in train mode, which takes another way; None if their outputs are equal.

    Statistics and modes are as before afterwards, and so is the random state. Where auxiliary outputs are left out,
    which may draw random numbers, equality without dropout is enough.

    Args:
        model: In eval mode.
        chain: Of its parts.
        parts: Of the model.
        images: (B, C, H, W).

    Returns:
        The largest difference.
    """
    if len(images) == 1:
        images = torch.cat([images, images])  # a batch norm needs more than one value
    difference = _difference_in_train_mode(model, chain, images, dropout=True)
    if difference is not None and parts.shortened:
        # the outputs left out draw random numbers too, so masks differ
        difference = _difference_in_train_mode(model, chain, images, dropout=False)
    return difference


def _difference_in_train_mode(model: nn.Module, chain: nn.Module, images: Tensor, *, dropout: bool) -> float | None:
    kept = [(buffer, buffer.clone()) for buffer in model.buffers()]
    answers = []
    with torch.random.fork_rng():
        for network in (model, chain):
            torch.manual_seed(0)
            network.train()
            for module in network.modules():
                module.training &= dropout or not isinstance(module, nn.modules.dropout._DropoutNd)
            try:
                answer = network(images.clone())
            finally:
                network.eval()
                for buffer, value in kept:
                    buffer.copy_(value)
            answers.append(list(answer) if isinstance(answer, tuple | list) else [answer])
    # of a chain that leaves outputs out there is but the first
    pairs = list(zip(*answers, strict=False))
    if all(torch.equal(*pair) for pair in pairs):
        return None
    return max((float((a - b).abs().max()) for a, b in pairs if a.shape == b.shape), default=float("inf"))
