"""Cut any timm classifier into a chain of blocks that is proven equal to the model.

The model is traced with ``torch.fx`` through nothing but the ancestors of the modules to cut behind; every
other module stays one call. The graph is then cut wherever exactly one tensor that depends on the input is
alive, so a skip connection across a cut can't be lost: it makes the cut illegal. The blocks share the model's
parameters: training a block trains the model.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from netgraft.errors import RequestError


@dataclass(frozen=True)
class Cut:
    """Where one block ends and the next begins: the shape of the tensor that crosses."""

    name: str
    shape: tuple[int, ...]
    """Without the batch dimension."""
    layout: str
    """``NCHW``, or ``other`` where a 1x1 convolution would not find the channels in dimension 1."""

    @property
    def channels(self) -> int:
        """Width of the tensor that crosses."""
        return self.shape[0] if self.layout == "NCHW" else self.shape[-1]

    @property
    def size(self) -> tuple[int, ...]:
        """Height and width of the map that crosses; empty where it is no map."""
        return self.shape[1:] if self.layout == "NCHW" else ()

    def __str__(self) -> str:
        return "x".join(str(extent) for extent in self.shape)


class BlockChain(nn.Sequential):
    """Named blocks in order, whose composition is the model, and the cuts between them.

    Attributes:
        cuts: One fewer than there are blocks.
        names: Of the blocks: the module that each ends with, ``head`` for the last.
    """

    def __init__(self, blocks: Sequence[nn.Module], names: Sequence[str], cuts: Sequence[Cut]) -> None:
        if len(blocks) != len(names) or len(cuts) != len(blocks) - 1:
            raise ValueError(f"{len(blocks)} blocks with {len(names)} names and {len(cuts)} cuts are no chain")
        super().__init__()
        self.names = tuple(names)
        self.cuts = tuple(cuts)
        for number, (name, block) in enumerate(zip(names, blocks, strict=True)):
            # a key can't hold a dot; the number keeps it apart from other blocks and from attributes
            self.add_module(f"{number}_{name.replace('.', '_')}", block)

    def blocks(self) -> list[nn.Module]:
        """Return the blocks in order."""
        return list(self.children())

    def merge(self, kept: Sequence[int]) -> BlockChain:
        """Join neighbouring blocks so that only the cuts with the numbers in ``kept`` remain."""
        borders = [*(cut + 1 for cut in kept), len(self)]
        blocks, start = [], 0
        for border in borders:
            run = self.blocks()[start:border]
            blocks.append(run[0] if len(run) == 1 else nn.Sequential(*run))
            start = border
        names = [self.names[border - 1] for border in borders]
        return _in_mode(self.training, BlockChain(blocks, names, [self.cuts[cut] for cut in kept]), self)


def _in_mode(training: bool, chain: BlockChain, origin: nn.Module) -> BlockChain:
    """Set the mode of what is new in ``chain``; the modules of ``origin`` keep theirs."""
    known = set(origin.modules())
    for module in chain.modules():
        if module not in known:
            module.training = training
    return chain


class _AncestorTracer(fx.Tracer):
    """Looks only into modules that contain a module to cut behind."""

    def __init__(self, cut_modules: Sequence[str], wrapped: Sequence[Callable[..., Any]]) -> None:
        super().__init__(autowrap_functions=tuple(wrapped))
        self._cut_modules = tuple(cut_modules)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not any(cut.startswith(module_qualified_name + ".") for cut in self._cut_modules)


def default_cuts(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the modules that end timm's stages.

    Raises:
        RequestError: The model has no ``feature_info`` or it names modules that don't exist.
    """
    info = getattr(model, "feature_info", None)
    if not info:
        raise RequestError(
            f"{type(model).__name__} has no timm feature_info to cut at; name the modules to cut behind (cuts=...)"
        )
    return tuple(stage["module"] for stage in info)


def _trace(model: nn.Module, cut_modules: Sequence[str]) -> fx.Graph:
    # timm marks functions that can't be traced; they stay single calls
    from timm.layers import get_notrace_functions

    # the defaults of optional arguments are facts, not inputs
    parameters = list(inspect.signature(model.forward).parameters.values())[1:]
    defaults = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
    for parameter in parameters:
        if parameter.name not in defaults and parameter.kind not in {parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD}:
            raise RequestError(
                f"{type(model).__name__} needs {parameter.name!r} beside the images; only models of images can be cut"
            )
    tracer = _AncestorTracer(cut_modules, get_notrace_functions())
    try:
        graph = tracer.trace(model, concrete_args=defaults)
    except Exception as error:  # fx raises whatever the model's own forward raised
        raise RequestError(
            f"{type(model).__name__} can't be cut at {', '.join(cut_modules)}: following its forward failed "
            f"({type(error).__name__}: {error}); choose other cuts"
        ) from error
    _drop_specialisation_checks(graph)
    return graph


def _drop_specialisation_checks(graph: fx.Graph) -> None:
    """Remove the placeholders, and the checks on them, that fx leaves behind for arguments with defaults."""
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    for placeholder in placeholders[1:]:
        pending = list(placeholder.users)
        doomed = [placeholder]
        while pending:
            node = pending.pop()
            doomed.append(node)
            pending.extend(node.users)
        for node in reversed(doomed):
            if not node._erased:
                graph.erase_node(node)


def _derived_from_input(graph: fx.Graph) -> set[fx.Node]:
    derived: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder" or any(source in derived for source in node.all_input_nodes):
            derived.add(node)
    return derived


def _live_after(nodes: Sequence[fx.Node], derived: set[fx.Node]) -> list[list[fx.Node]]:
    """For each position, the input-derived nodes that something behind it still needs."""
    position = {node: index for index, node in enumerate(nodes)}
    last_use = {node: max((position[user] for user in node.users), default=position[node]) for node in derived}
    alive: list[fx.Node] = []
    result = []
    for index, node in enumerate(nodes):
        born = [node] if node in derived else []
        alive = [candidate for candidate in alive + born if last_use[candidate] > index]
        result.append(alive)
    return result


_LOCAL = (nn.MaxPool2d, nn.AvgPool2d, nn.Identity, nn.Dropout, nn.Dropout2d)


def _is_parameterless(module: nn.Module) -> bool:
    """Whether a cut may move behind ``module``: local, without weights, so that the next block starts with some.

    An adapter in front of a max pool or an activation could never be folded. Global pooling stays in the head.
    """
    if next(module.parameters(), None) is not None or next(module.buffers(), None) is not None:
        return False
    return isinstance(module, _LOCAL) or type(module).__module__ == "torch.nn.modules.activation"


def _end_of(module_name: str, nodes: Sequence[fx.Node]) -> int | None:
    """Position of the last call that belongs to ``module_name``."""
    last = None
    for index, node in enumerate(nodes):
        stack = node.meta.get("nn_module_stack") or {}
        if (node.op == "call_module" and node.target == module_name) or module_name in stack:
            last = index
    return last


def _cut_positions(model: nn.Module, graph: fx.Graph, cut_modules: Sequence[str]) -> dict[int, str]:
    """Positions behind which the graph may be cut, with the name of the module that ends there."""
    nodes = list(graph.nodes)
    derived = _derived_from_input(graph)
    live = _live_after(nodes, derived)
    positions: dict[int, str] = {}
    for name in cut_modules:
        end = _end_of(name, nodes)
        if end is None:
            raise RequestError(
                f"{type(model).__name__} has no module {name!r} on the way of the image; "
                f"its stages end at {', '.join(default_cuts(model))}"
            )
        while True:
            following = nodes[end + 1]
            if following.op != "call_module" or not _is_parameterless(model.get_submodule(str(following.target))):
                break
            end += 1
        if len(live[end]) == 1:
            positions.setdefault(end, name)
    return dict(sorted(positions.items()))


def _extract(model: nn.Module, nodes: Sequence[fx.Node], entry: fx.Node, exit_: fx.Node) -> fx.GraphModule:
    """Build the block that computes ``exit_`` from ``entry`` out of ``nodes``.

    Constants that don't depend on the input are recomputed in each block that needs them.
    """
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {entry: graph.placeholder("x")}

    def copy(node: fx.Node) -> fx.Node:
        if node not in copies:
            for source in node.all_input_nodes:
                copy(source)
            copies[node] = graph.node_copy(node, lambda source: copies[source])
        return copies[node]

    for node in nodes:
        if node.op not in {"placeholder", "output"}:
            copy(node)
    graph.output(copies[exit_])
    graph.lint()
    block = fx.GraphModule(model, graph, class_name=f"{type(model).__name__}Block")
    _follow_mode_in_dropout(block)
    return block


_DROPOUTS: dict[object, Callable[[float], nn.Module]] = {
    F.dropout: nn.Dropout,
    F.dropout1d: nn.Dropout1d,
    F.dropout2d: nn.Dropout2d,
    F.alpha_dropout: nn.AlphaDropout,
}


def _follow_mode_in_dropout(block: fx.GraphModule) -> None:
    """Replace ``F.dropout`` calls, whose train/eval flag fx has frozen, by modules that follow the block's mode."""
    for node in list(block.graph.nodes):
        if node.op == "call_function" and node.target in _DROPOUTS:
            rate = node.kwargs.get("p", node.args[1] if len(node.args) > 1 else 0.5)
            block.add_module(node.name, _DROPOUTS[node.target](cast(float, rate)))
            with block.graph.inserting_after(node):
                replacement = block.graph.call_module(node.name, (node.all_input_nodes[0],))
            node.replace_all_uses_with(replacement)
            block.graph.erase_node(node)
    block.recompile()


def _blocks(model: nn.Module, graph: fx.Graph, positions: Sequence[int]) -> Iterator[fx.GraphModule]:
    nodes = list(graph.nodes)
    derived = _derived_from_input(graph)
    live = _live_after(nodes, derived)
    entry = next(node for node in nodes if node.op == "placeholder")
    start = 0
    for position in positions:
        [exit_] = live[position]
        yield _extract(model, [n for n in nodes[start : position + 1] if n in derived], entry, exit_)
        entry, start = exit_, position + 1
    result = nodes[-1].args[0]
    if not isinstance(result, fx.Node):
        raise RequestError(
            f"{type(model).__name__} returns {type(result).__name__}, not one tensor of logits; only classifiers "
            "with a single output can be cut"
        )
    yield _extract(model, [n for n in nodes[start:] if n in derived], entry, result)


def _layout(model: nn.Module, output: Tensor) -> str:
    channels_first = getattr(model, "output_fmt", "NCHW") in {"NCHW", "Format.NCHW"}
    return "NCHW" if output.dim() == 4 and channels_first else "other"


def split(model: nn.Module, *, probe: Tensor, cuts: Sequence[str] | None = None) -> BlockChain:
    """Cut ``model`` into blocks whose composition is the model.

    Args:
        model: A classifier: images (B, C, H, W) to logits (B, K).
        probe: Images (B, C, H, W) on which the chain is compared with the model, bit by bit, in eval mode.
        cuts: Names of the modules to cut behind, in the order of the forward; timm's stages by default. A cut
            moves behind the pooling and activations without parameters that follow it. Cuts where more than one
            tensor crosses are left out.

    Returns:
        The chain. Its blocks share the model's parameters and buffers.

    Raises:
        RequestError: The model can't be followed, has no such modules, or the chain's output differs.
    """
    cut_modules = tuple(cuts) if cuts is not None else default_cuts(model)
    known = dict(model.named_modules())
    for name in cut_modules:
        if name not in known:
            raise RequestError(f"{type(model).__name__} has no module {name!r} to cut behind")
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        graph = _trace(model, cut_modules)
        positions = _cut_positions(model, graph, cut_modules)
        if not positions:
            raise RequestError(
                f"{type(model).__name__} has no place among {', '.join(cut_modules)} where only one tensor crosses"
            )
        blocks = list(_blocks(model, graph, list(positions)))
        found = _prove(model, blocks, list(positions.values()), probe)
    finally:
        for module, training in modes:
            module.training = training
    return _in_mode(model.training, BlockChain(blocks, [*positions.values(), "head"], found), model)


@torch.no_grad()
def _prove(model: nn.Module, blocks: Sequence[nn.Module], names: Sequence[str], probe: Tensor) -> list[Cut]:
    """Run chain and model on the probe; return the cuts' shapes or refuse."""
    try:
        # a forward may work in place, also on its input
        expected = model(probe.clone())
    except Exception as error:  # a model's own forward may raise anything
        size = "x".join(str(extent) for extent in probe.shape[1:])
        raise RequestError(
            f"{type(model).__name__} can't take images of {size} ({type(error).__name__}: {error}); "
            "choose another model or image size"
        ) from error
    cuts = []
    state: Tensor = probe.clone()
    for index, block in enumerate(blocks):
        block.eval()
        state = block(state)
        if not isinstance(state, Tensor):
            raise RequestError(
                f"{type(model).__name__}: what leaves {names[index]!r} is no tensor but {type(state).__name__}"
            )
        if index < len(names):
            cuts.append(Cut(names[index], tuple(state.shape[1:]), _layout(model, state)))
    if not torch.equal(state, expected):
        difference = (state - expected).abs().max().item() if state.shape == expected.shape else float("inf")
        raise RequestError(
            f"{type(model).__name__} can't be cut at {', '.join(names)}: the chain's logits differ from the model's "
            f"by up to {difference:.3g} on the probe; choose other cuts"
        )
    return cuts


def state_of(blocks: nn.Module) -> dict[str, Tensor]:
    """Collect the weights of the blocks inside ``blocks`` under the names that they have in the model."""
    if isinstance(blocks, fx.GraphModule):
        return blocks.state_dict()
    state: dict[str, Tensor] = {}
    for child in blocks.children():
        state.update(state_of(child))
    return state
