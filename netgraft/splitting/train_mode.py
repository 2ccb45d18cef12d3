"""Blocks that follow their mode: a model's forwards in eval and in train mode, cut at the same boundaries.

Most models have one forward: what differs between the modes, such as batch norm and dropout, differs inside their
layers, which the blocks share. Where the forward itself asks for the mode, a block keeps both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from netgraft.errors import RequestError
from netgraft.splitting.boundaries import Boundary, TracedForward, named_boundaries
from netgraft.splitting.extraction import attach_unused_weights, extract
from netgraft.splitting.liveness import common_prefix, derived_from_input, live_after, module_ends
from netgraft.splitting.tracing import trace


class TrainEvalBlock(nn.Module):
    """A block whose calls differ between the modes.

    Args:
        in_eval: The calls of eval mode.
        in_train: Those of train mode, on the same weights.
    """

    def __init__(self, in_eval: fx.GraphModule, in_train: fx.GraphModule) -> None:
        super().__init__()
        self.in_eval = in_eval
        self.in_train = in_train

    def forward(self, x: Tensor) -> Tensor:
        """Do what the model does in the present mode."""
        return self.in_train(x) if self.training else self.in_eval(x)


@dataclass(frozen=True, eq=False)
class SplitBlocks:
    """The blocks of a model.

    Attributes:
        names: Of the modules behind which it was cut.
        blocks: One more.
        depends_on_mode: Whether the forward in train mode is another one.
        lacks_auxiliary: Whether auxiliary outputs of train mode were left out.
    """

    names: tuple[str, ...]
    blocks: tuple[nn.Module, ...]
    depends_on_mode: bool = False
    lacks_auxiliary: bool = False


def extract_for_both_modes(
    model: nn.Module, cuts: Sequence[str], images: Tensor, *, several: bool = False
) -> SplitBlocks:
    """Cut ``model``, which is in eval mode, behind the named modules where that is legal in both modes.

    Args:
        model: A classifier.
        cuts: Names of its modules.
        images: (B, C, H, W), to run it on.
        several: Whether several tensors may cross.

    Raises:
        RequestError: The model can't be traced, the image doesn't pass a module, or no cut is legal.
    """
    what = type(model).__name__
    graph = trace(model, cuts, images)
    in_eval = TracedForward(model, graph, images)
    passed = set(in_eval.modules())
    for name in cuts:
        if name not in passed:
            raise RequestError(f"{what} has no module {name!r} that the image passes; choose others to cut behind")
    boundaries = named_boundaries(in_eval, cuts, several=several)
    if not boundaries:
        raise RequestError(
            f"{what} has no cut point among {', '.join(cuts)} where only one tensor crosses; choose other cuts"
        )
    model.train()
    try:
        in_train = trace(model, cuts, images)
    finally:
        model.eval()
    length = common_prefix(model, in_eval.nodes, list(in_train.nodes))
    if length == len(in_eval.nodes) == len(in_train.nodes):
        blocks: tuple[nn.Module, ...] = tuple(extract(model, graph, boundaries, in_eval.relevant))
        attach_unused_weights(model, blocks)
        return SplitBlocks(_names(boundaries), blocks)
    pairs = _legal_in_both(in_eval, in_train, boundaries, length)
    lacks_auxiliary = len(pairs) < len(boundaries) and _keep_first_output(in_train)
    if lacks_auxiliary:
        length = common_prefix(model, in_eval.nodes, list(in_train.nodes))
        pairs = _legal_in_both(in_eval, in_train, boundaries, length)
    if not pairs:
        raise RequestError(
            f"{what} has another forward in train mode, where more than one tensor crosses at {', '.join(cuts)}; "
            "choose other cuts"
        )
    boundaries = [boundary for boundary, _ in pairs]
    eval_blocks = extract(model, graph, boundaries, in_eval.relevant)
    train_blocks = extract(model, in_train, [boundary for _, boundary in pairs], _relevant(in_eval, in_train, length))
    blocks = tuple(
        in_eval_mode if _is_same(in_eval_mode, in_train_mode) else TrainEvalBlock(in_eval_mode, in_train_mode)
        for in_eval_mode, in_train_mode in zip(eval_blocks, train_blocks, strict=True)
    )
    attach_unused_weights(model, blocks)
    return SplitBlocks(_names(boundaries), blocks, depends_on_mode=True, lacks_auxiliary=lacks_auxiliary)


def _names(boundaries: Sequence[Boundary]) -> tuple[str, ...]:
    return tuple(boundary.name for boundary in boundaries)


def _is_same(first: fx.GraphModule, second: fx.GraphModule) -> bool:
    """Whether two blocks of one model are the same calls on the same modules and weights."""
    nodes = list(first.graph.nodes), list(second.graph.nodes)
    return len(nodes[0]) == len(nodes[1]) == common_prefix(first, *nodes) and all(
        weights[0] is weights[1] for weights in zip(first.parameters(), second.parameters(), strict=True)
    )


def _relevant(in_eval: TracedForward, in_train: fx.Graph, length: int) -> set[fx.Node]:
    """The relevant nodes of the forward in train mode; where it differs, all that depend on the images."""
    nodes = list(in_train.nodes)
    same = zip(in_eval.nodes[:length], nodes, strict=False)
    first = {counterpart for node, counterpart in same if node in in_eval.relevant}
    return first | (derived_from_input(in_train) & set(nodes[length:]))


def _legal_in_both(
    in_eval: TracedForward, in_train: fx.Graph, boundaries: Sequence[Boundary], length: int
) -> list[tuple[Boundary, Boundary]]:
    """Find the boundaries of eval mode's forward in train mode's; those that aren't legal there are left out.

    Args:
        in_eval: The forward in eval mode.
        in_train: The forward in train mode.
        boundaries: Of ``in_eval``.
        length: How many calls at the beginning are the same.
    """
    eval_nodes, train_nodes = in_eval.nodes, list(in_train.nodes)
    index_of = {node: index for index, node in enumerate(eval_nodes)}
    eval_ends, train_ends = module_ends(eval_nodes), module_ends(train_nodes)
    eval_live = live_after(eval_nodes, in_eval.relevant)
    train_live = live_after(train_nodes, _relevant(in_eval, in_train, length))
    pairs = []
    for boundary in boundaries:
        name, position, shape = boundary.name, boundary.position, boundary.shape
        if position < length:
            counterparts = {node: train_nodes[index_of[node]] for node in eval_live[position]}
            # what isn't needed in train mode may cross all the same
            if set(train_live[position]) <= set(counterparts.values()):
                carried = tuple(counterparts[node] for node in boundary.carried)
                numbers = {counterparts[node]: rule for node, rule in boundary.numbers.items()}
                pairs.append((boundary, Boundary(name, position, carried, shape, numbers)))
        elif name in train_ends and boundary.is_single and not boundary.numbers:
            position += train_ends[name] - eval_ends[name]
            if len(train_live[position]) == 1:
                pairs.append((boundary, Boundary(name, position, tuple(train_live[position]), shape)))
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
def differs_in_train_mode(model: nn.Module, chain: nn.Module, images: Tensor, *, lacks_auxiliary: bool) -> float | None:
    """Compare chain and model in train mode, whose forward is another one.

    Statistics and modes are as before afterwards, and so is the random state. Where auxiliary outputs are left out,
    which may draw random numbers, equality without dropout is enough.

    Args:
        model: In eval mode.
        chain: Of its blocks.
        images: (B, C, H, W).
        lacks_auxiliary: Whether the chain leaves auxiliary outputs out.

    Returns:
        The largest difference; None if the outputs are equal.
    """
    if len(images) == 1:
        images = torch.cat([images, images])  # a batch norm needs more than one value
    difference = _difference_in_train_mode(model, chain, images, dropout=True)
    if difference is not None and lacks_auxiliary:
        # the outputs left out draw random numbers too, so masks differ
        difference = _difference_in_train_mode(model, chain, images, dropout=False)
    return difference


def _difference_in_train_mode(model: nn.Module, chain: nn.Module, images: Tensor, *, dropout: bool) -> float | None:
    kept = [(buffer, buffer.clone()) for buffer in model.buffers()]
    outputs = []
    with torch.random.fork_rng():
        for network in (model, chain):
            torch.manual_seed(0)
            network.train()
            for module in network.modules():
                module.training &= dropout or not isinstance(module, nn.modules.dropout._DropoutNd)
            try:
                output = network(images.clone())
            finally:
                network.eval()
                for buffer, value in kept:
                    buffer.copy_(value)
            outputs.append(list(output) if isinstance(output, tuple | list) else [output])
    # of a chain that leaves outputs out there is but the first
    pairs = list(zip(*outputs, strict=False))
    if all(torch.equal(*pair) for pair in pairs):
        return None
    return max((float((a - b).abs().max()) for a, b in pairs if a.shape == b.shape), default=float("inf"))
