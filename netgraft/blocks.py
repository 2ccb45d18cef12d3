"""Cut any image classifier into a chain of blocks that is proven equal to the model.

The model's forward is followed with ``torch.fx``, into nothing but the modules that contain a place to cut
(:mod:`netgraft.tracing`), and cut wherever what crosses is all that the rest needs (:mod:`netgraft.crossings`): a
skip connection across a cut can't be lost, it makes the cut illegal. The blocks share the model's parameters:
training a block trains the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from netgraft import cuts as choosing
from netgraft.errors import RequestError
from netgraft.layouts import candidates, halves, layout_of
from netgraft.modes import Parts, differs_in_train_mode, take_apart
from netgraft.tracing import defaults_of, left_as_it_was


@dataclass(frozen=True)
class Cut:
    """Where one block ends and the next begins: the shape of the tensor that crosses."""

    name: str
    shape: tuple[int, ...]
    """Without the batch dimension; empty where several tensors cross."""
    layout: str
    """``NCHW``; ``NHWC``; ``tokens`` (batch, length, channels), in rows behind the prefix; ``tuple`` where several
    tensors cross; ``other``, where no picture can be found in the tensor."""
    grid: tuple[int, ...] = ()
    """Height and width of the map that tokens make; empty for other layouts."""
    prefix_tokens: int = 0
    """Class, distillation and register tokens in front of the map's."""

    @property
    def channels(self) -> int:
        """Width of the tensor that crosses; 0 where several do."""
        if not self.shape:
            return 0
        return self.shape[0] if self.layout == "NCHW" else self.shape[-1]

    @property
    def size(self) -> tuple[int, ...]:
        """Height and width of the map that crosses; empty where it is no map."""
        return {"NCHW": self.shape[1:], "NHWC": self.shape[:2], "tokens": self.grid}.get(self.layout, ())

    def __str__(self) -> str:
        return "x".join(str(extent) for extent in self.shape) or self.layout


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


def default_cuts(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the modules that end timm's stages.

    Raises:
        RequestError: The model has no ``feature_info`` or it names modules that don't exist.
    """
    names = choosing.stages(model)
    if not names:
        raise RequestError(
            f"{type(model).__name__} has no timm feature_info to cut at; name the modules to cut behind (cuts=...)"
        )
    return names


def legal_cuts(model: nn.Module, *, probe: Tensor) -> tuple[str, ...]:
    """Return the names of all modules behind which a single tensor crosses, in the order of the forward.

    Of modules that end at one place the outermost is named. Lists of blocks are looked into, blocks are not.

    Args:
        model: A classifier: images (B, C, H, W) to logits (B, K).
        probe: Images (B, C, H, W).

    Raises:
        RequestError: The model can't be followed.
    """
    with left_as_it_was(model):
        return tuple(place.name for place in choosing.places(model, probe).single)


def split(
    model: nn.Module, *, probe: Tensor, cuts: Sequence[str] | None = None, blocks: int | None = None
) -> BlockChain:
    """Cut ``model`` into blocks whose composition is the model.

    Args:
        model: A classifier: images (B, C, H, W) to logits (B, K).
        probe: Images (B, C, H, W) on which the chain is compared with the model, bit by bit, in eval mode; in train
            mode too where the model takes another way there. Auxiliary outputs that a model has in train mode alone
            and that need more than what crosses the cuts are left out.
        cuts: Names of the modules to cut behind, in the order of the forward. A cut moves behind the pooling and
            activations without parameters that follow it. Cuts where more than one tensor crosses are left out.
            By default timm's stages; where all of them have one shape, and where there are no stages, cuts
            between four blocks of about equal cost.
        blocks: Instead of ``cuts``, how many blocks of about equal cost.

    Returns:
        The chain. Its blocks share the model's parameters and buffers.

    Raises:
        RequestError: The model can't be followed, has no such modules, or the chain's output differs.
    """
    if cuts is not None and blocks is not None:
        raise RequestError("split takes names of modules to cut behind or a number of blocks, not both")
    what = type(model).__name__
    known = dict(model.named_modules())
    for name in cuts or ():
        if name not in known:
            raise RequestError(f"{what} has no module {name!r} to cut behind")
    defaults_of(model)  # a forward that needs more than images is refused by that name
    with left_as_it_was(model):
        expected = logits_of(model, probe)
        several = False
        if cuts is None:
            found = choosing.places(model, probe)
            chosen = choosing.default(found) if blocks is None else choosing.by_number(found, blocks, what)
            if not chosen:
                raise RequestError(f"{what} has no place where it can be cut: everything happens in one module")
            cuts = [place.name for place in chosen]
            several = any(not place.shape for place in chosen)
        parts = take_apart(model, tuple(cuts), probe, several=several)
        chain = BlockChain(parts.blocks, [*parts.names, "head"], [Cut(name, (), "other") for name in parts.names])
        proven = _prove(model, chain, parts, probe, expected)
    return _in_mode(model.training, BlockChain(chain.blocks(), chain.names, proven), model)


@torch.no_grad()
def logits_of(model: nn.Module, probe: Tensor) -> Tensor:
    """Return a classifier's answer (B, K) to images (B, C, H, W).

    Raises:
        RequestError: It can't take images of this size, or answers with something else than one tensor.
    """
    try:
        # a forward may work in place, also on its input
        answer = model(probe.clone())
    except Exception as error:  # a model's own forward may raise anything
        size = "x".join(str(extent) for extent in probe.shape[1:])
        raise RequestError(
            f"{type(model).__name__} can't take images of {size} ({type(error).__name__}: {error}); "
            "choose another model or image size"
        ) from error
    if not isinstance(answer, Tensor):
        raise RequestError(
            f"{type(model).__name__} returns {type(answer).__name__}, not one tensor of logits; only classifiers "
            "with a single output can be cut"
        )
    return answer


@torch.no_grad()
def _prove(model: nn.Module, chain: BlockChain, parts: Parts, probe: Tensor, expected: Tensor) -> list[Cut]:
    """Run the chain on the probe and compare it with the model's answer; return the cuts or refuse."""
    chain.eval()
    shapes: list[tuple[int, ...]] = []
    state: object = probe.clone()
    for block in chain:
        state = block(state)
        shapes.append(tuple(state.shape[1:]) if isinstance(state, Tensor) else ())
    where = f"{type(model).__name__} can't be cut at {', '.join(parts.names)}"
    assert isinstance(state, Tensor)
    if not torch.equal(state, expected):
        difference = float((state - expected).abs().max()) if state.shape == expected.shape else float("inf")
        raise RequestError(
            f"{where}: the chain's logits differ from the model's by up to {difference:.3g} on the probe; "
            "choose other cuts"
        )
    in_train = differs_in_train_mode(model, chain, parts, probe) if parts.two_ways else None
    if in_train is not None:
        raise RequestError(
            f"{where}: in train mode the chain's logits differ from the model's by up to {in_train:.3g} on the probe; "
            "choose other cuts"
        )
    return _cuts(model, chain, shapes[:-1], probe)


def _cuts(model: nn.Module, chain: BlockChain, shapes: Sequence[tuple[int, ...]], probe: Tensor) -> list[Cut]:
    """Tell the layouts at the cuts; the chain runs once more where shapes leave a doubt."""
    size = tuple(probe.shape[-2:])
    possible = [candidates(shape, size) for shape in shapes]
    doubts = [
        number for number, layouts in enumerate(possible) if len(layouts) > 1 or (len(shapes[number]) == 2 and layouts)
    ]
    states: dict[int, Tensor] = {}
    state = halves(probe)
    for number, block in enumerate(chain.blocks()[: max(doubts, default=-1) + 1]):
        state = block(state)
        if number in doubts:
            states[number] = state.clone()  # the next block may work in place
    prefix = int(getattr(model, "num_prefix_tokens", 0) or 0)
    declared = str(getattr(model, "output_fmt", "")).rpartition(".")[-1]
    cuts = []
    for number, (name, shape) in enumerate(zip(chain.names, shapes, strict=False)):
        layout = layout_of(states.get(number), shape, size, prefix_tokens=prefix, declared=declared)
        kind = layout.kind if shape else "tuple"
        grid = layout.size if kind == "tokens" else ()
        cuts.append(Cut(name, shape, kind, grid, layout.prefix_tokens))
    return cuts


def state_of(blocks: nn.Module) -> dict[str, Tensor]:
    """Collect the weights of the blocks inside ``blocks`` under the names that they have in the model."""
    if isinstance(blocks, fx.GraphModule):
        return blocks.state_dict()
    state: dict[str, Tensor] = {}
    for child in blocks.children():
        state.update(state_of(child))
    return state
