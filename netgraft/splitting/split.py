"""Cut any image classifier into a chain of blocks that is proven equal to the model.

The model's forward is traced with ``torch.fx``, into nothing but the modules that contain a cut point
(``netgraft.splitting.tracing``), and cut wherever what crosses is all that the rest needs
(``netgraft.splitting.boundaries``): a skip connection across a cut can't be lost, it makes the cut illegal. The
blocks share the model's parameters: training a block trains the model.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from netgraft.errors import RequestError
from netgraft.splitting.chain import BlockChain, Cut, keep_modes
from netgraft.splitting.cut_points import cut_points_for, default_cut_points, find_cut_points
from netgraft.splitting.layouts import candidates, halves, layout_of
from netgraft.splitting.tracing import defaults_of, eval_mode_for_tracing
from netgraft.splitting.train_mode import SplitBlocks, differs_in_train_mode, extract_for_both_modes


def legal_cuts(model: nn.Module, *, probe: Tensor) -> tuple[str, ...]:
    """Return the names of all modules behind which a single tensor crosses, in the order of the forward.

    Of modules that end together the outermost is named. Lists of blocks are traced into, blocks are not.

    Args:
        model: A classifier: images (B, C, H, W) to logits (B, K).
        probe: Images (B, C, H, W).

    Raises:
        RequestError: The model can't be traced.
    """
    with eval_mode_for_tracing(model):
        return tuple(point.name for point in find_cut_points(model, probe).single)


def split(
    model: nn.Module, *, probe: Tensor, cuts: Sequence[str] | None = None, blocks: int | None = None
) -> BlockChain:
    """Cut ``model`` into blocks whose composition is the model.

    Args:
        model: A classifier: images (B, C, H, W) to logits (B, K).
        probe: Images (B, C, H, W) on which the chain is compared with the model, bit by bit, in eval mode; in train
            mode too where the model has another forward there. Auxiliary outputs that a model has in train mode alone
            and that need more than what crosses the cuts are left out.
        cuts: Names of the modules to cut behind, in the order of the forward. A cut moves behind the pooling and
            activations without parameters that follow it. Cuts where more than one tensor crosses are left out.
            By default timm's stages; where all of them have one shape, and where there are no stages, cuts
            between four blocks of about equal cost.
        blocks: Instead of ``cuts``, how many blocks of about equal cost.

    Returns:
        The chain. Its blocks share the model's parameters and buffers.

    Raises:
        RequestError: The model can't be traced, has no such modules, or the chain's output differs.

    Examples:
        >>> import torch
        >>> from netgraft import load_teacher
        >>> teacher = load_teacher("digits_vgg7_bn")
        >>> images = torch.randn(2, 1, 8, 8)
        >>> chain = split(teacher, probe=images)
        >>> [str(cut) for cut in chain.cuts]
        ['32x4x4', '64x2x2', '128x1x1']
        >>> torch.equal(chain(images), teacher(images))
        True
        >>> len(split(teacher, probe=images, blocks=2))
        2
    """
    if cuts is not None and blocks is not None:
        raise RequestError("split takes names of modules to cut behind or a number of blocks, not both; leave one out")
    what = type(model).__name__
    known = dict(model.named_modules())
    for name in cuts or ():
        if name not in known:
            raise RequestError(f"{what} has no module {name!r} to cut behind; choose one of its named_modules()")
    defaults_of(model)  # a forward that needs more than images is refused by that name
    with eval_mode_for_tracing(model):
        expected = logits_of(model, probe)
        several = False
        if cuts is None:
            found = find_cut_points(model, probe)
            chosen = default_cut_points(found) if blocks is None else cut_points_for(found, blocks, what)
            if not chosen:
                raise RequestError(f"{what} has no cut point: everything happens in one module; choose another model")
            cuts = [point.name for point in chosen]
            several = any(not point.shape for point in chosen)
        extracted = extract_for_both_modes(model, tuple(cuts), probe, several=several)
        names = extracted.names
        chain = BlockChain(extracted.blocks, [*names, "head"], [Cut(name, (), "other") for name in names])
        proven = _prove(model, chain, extracted, probe, expected)
    return keep_modes(model.training, BlockChain(chain.blocks(), chain.names, proven), model)


@torch.no_grad()
def logits_of(model: nn.Module, probe: Tensor) -> Tensor:
    """Return a classifier's logits, in the mode in which it is.

    Args:
        model: A classifier.
        probe: Images (B, C, H, W); not changed, whatever the forward does in place.

    Returns:
        Logits (B, K).

    Raises:
        RequestError: It can't take images of this size, or returns something else than one tensor.
    """
    try:
        # a forward may work in place, also on its input
        logits = model(probe.clone())
    except Exception as error:  # a model's own forward may raise anything
        size = "x".join(str(extent) for extent in probe.shape[1:])
        raise RequestError(
            f"{type(model).__name__} can't take images of {size} ({type(error).__name__}: {error}); "
            "choose another model or image size"
        ) from error
    if not isinstance(logits, Tensor):
        raise RequestError(
            f"{type(model).__name__} returns {type(logits).__name__}, not one tensor of logits; only classifiers "
            "with a single output can be cut"
        )
    return logits


@torch.no_grad()
def _prove(model: nn.Module, chain: BlockChain, extracted: SplitBlocks, probe: Tensor, expected: Tensor) -> list[Cut]:
    """Run the chain on the probe and compare its logits with the model's; return the cuts or refuse."""
    chain.eval()
    shapes: list[tuple[int, ...]] = []
    state: object = probe.clone()
    for block in chain:
        state = block(state)
        shapes.append(tuple(state.shape[1:]) if isinstance(state, Tensor) else ())
    where = f"{type(model).__name__} can't be cut at {', '.join(extracted.names)}"
    assert isinstance(state, Tensor)
    if not torch.equal(state, expected):
        difference = float((state - expected).abs().max()) if state.shape == expected.shape else float("inf")
        raise RequestError(
            f"{where}: the chain's logits differ from the model's by up to {difference:.3g} on the probe; "
            "choose other cuts"
        )
    in_train = None
    if extracted.depends_on_mode:
        in_train = differs_in_train_mode(model, chain, probe, lacks_auxiliary=extracted.lacks_auxiliary)
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
