"""``netgraft suggest``: which smaller models pair with a teacher, and how they would start."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import timm
import torch
from timm.data import resolve_model_data_config
from torch import nn

from netgraft.deriving.anatomy import Anatomy
from netgraft.deriving.twins import narrows_to
from netgraft.errors import RequestError
from netgraft.grafting.preparation import cut, pair_with
from netgraft.models.creation import build_model, build_student, class_count, family
from netgraft.models.loading import is_folder, load_teacher
from netgraft.modules import eval_mode, macs_along, parameters
from netgraft.progress import ProgressReporter, SilentReporter
from netgraft.splitting.chain import BlockChain
from netgraft.splitting.split import logits_of

SMALL_MODELS = (
    "mobilenetv2_100",
    "mobilenetv3_large_100",
    "efficientnet_lite0",
    "regnety_004",
    "resnet18",
    "mobilenetv3_small_100",
    "efficientnet_b0",
    "vit_tiny_patch16_224",
    "convnext_atto",
    "ghostnet_100",
    "regnetx_002",
    "mobilenetv2_050",
    "lcnet_100",
)
"""Well-known ones, the first to be tried first."""

NEAREST = 40
"""So many models of the teacher's family are looked at, those of the most similar names."""

Start = Literal["solve", "slice", "random"]

STARTS: Sequence[Start] = ("solve", "slice", "random")
"""In the order in which they are worth most."""


@dataclass(frozen=True)
class Size:
    """What a model costs.

    Attributes:
        parameters: How many it has.
        macs: Multiply-accumulates for one image of the teacher's size.
    """

    parameters: int
    macs: int


@dataclass(frozen=True)
class Suggestion:
    """A smaller model that pairs with the teacher.

    Attributes:
        student: Its name.
        size: What it costs.
        start: What ``--init auto`` makes of it: ``solve``, ``slice`` or ``random``.
        blocks: Pairs of blocks.
        inherited: How many of them in front it takes over from the teacher.
        pretrained: Whether timm has weights for it (``--student-weights pretrained``).
    """

    student: str
    size: Size
    start: Start
    blocks: int
    inherited: int
    pretrained: bool


@dataclass(frozen=True)
class Suggestions:
    """What was found.

    Attributes:
        teacher: Its name.
        size: What it costs.
        input_size: Channels, height and width of the images.
        classes: K.
        students: Those that start with most of the teacher first, of equal starts the largest first.
    """

    teacher: str
    size: Size
    input_size: tuple[int, int, int]
    classes: int
    students: tuple[Suggestion, ...]


def suggest(
    teacher: str,
    *,
    num_classes: int | None = None,
    image_size: int | None = None,
    most: int = 10,
    reporter: ProgressReporter | None = None,
) -> Suggestions:
    """Look for smaller models of the teacher's family, and well-known small ones, that pair with it.

    Nothing is downloaded, and weights don't matter: sizes are computed without memory, and only the most promising
    models are built.

    Args:
        teacher: A timm model, ``torchvision:NAME``, or the folder of a run or model.
        num_classes: K; the model's own by default.
        image_size: Height and width of the images; the model's own by default.
        most: How many are built, and so suggested, at most; half of them of the teacher's family.
        reporter: Told what happens.

    Raises:
        RequestError: No such teacher, it can't take images of this size, or it can't be cut.
    """
    reporter = reporter or SilentReporter()
    if is_folder(teacher):
        network = load_teacher(teacher, image_size=image_size, num_classes=num_classes)
    else:
        options = {} if num_classes is None else {"num_classes": num_classes}
        network = build_model(teacher, seed=0, image_size=image_size, **options).eval()
    channels, height, width = resolve_model_data_config(network)["input_size"]
    input_size = (channels, height, width)
    with eval_mode(network), torch.no_grad():
        logits_of(network, torch.zeros(1, *input_size))
        size = Size(parameters(network), *macs_along([network], torch.zeros(1, *input_size)))
    chosen = _promising(teacher, network, size, input_size, most, reporter)
    narrower = _narrower_twins(network, chosen, input_size)
    # once, for all of them
    [chain] = [cut(each, input_size=input_size) for each in reporter.track([network], total=1, name="cutting")]
    paired = (
        _paired(name, model, network, chain, narrower=name in narrower)
        for name, model in reporter.track(chosen.items(), total=len(chosen), name="pairing models")
    )
    order = sorted(filter(None, paired), key=lambda each: (STARTS.index(each.start), -each.size.macs))
    return Suggestions(teacher, size, input_size, class_count(network), tuple(order))


@dataclass(frozen=True)
class _Candidate:
    """A model without memory, and what it costs."""

    shapes: Mapping[str, torch.Size]
    model: nn.Module
    size: Size


def _promising(
    teacher: str,
    network: nn.Module,
    size: Size,
    input_size: Sequence[int],
    most: int,
    reporter: ProgressReporter,
) -> dict[str, _Candidate]:
    """Return the smaller models that are worth being built: half of them of the family, if it has as many."""
    own = str(getattr(network, "pretrained_cfg", {}).get("architecture") or teacher)
    kin = sorted(family(own), key=lambda name: -difflib.SequenceMatcher(None, own, name).ratio())[:NEAREST]
    names = [name for name in dict.fromkeys([*kin, *SMALL_MODELS]) if name != own]
    smaller = {}
    for name in reporter.track(names, total=len(names), name="looking at smaller models"):
        candidate = _candidate(name, network, size, input_size)
        if candidate is not None:
            smaller[name] = candidate
    layers = set(network.state_dict())
    # a twin has no layer that its teacher has not
    relatives = sorted(
        (name for name in smaller if name in kin), key=lambda name: not layers >= set(smaller[name].shapes)
    )
    others = [name for name in smaller if name not in kin]
    others = others[: max(most - len(relatives), most - most // 2)]
    chosen: dict[str, _Candidate] = {}
    for name in [*relatives[: most - len(others)], *others]:
        # names of one and the same architecture
        if all(smaller[name].shapes != taken.shapes for taken in chosen.values()):
            chosen[name] = smaller[name]
    return chosen


def _candidate(name: str, teacher: nn.Module, most: Size, input_size: Sequence[int]) -> _Candidate | None:
    """Return a model without memory; None where it can't be made for the teacher's images, or isn't smaller."""
    try:
        with torch.device("meta"):
            model = build_student(name, teacher=teacher, seed=0)
    except RequestError:
        return None
    if parameters(model) >= most.parameters:
        return None
    try:
        [macs] = macs_along([model], torch.zeros(1, *input_size, device="meta"))
    except (RuntimeError, NotImplementedError, ValueError, AssertionError):
        return None  # it looks at values, or takes images of another size
    if macs >= most.macs:
        return None
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    return _Candidate(shapes, model, Size(parameters(model), macs))


def _narrower_twins(
    teacher: nn.Module, candidates: Mapping[str, _Candidate], input_size: Sequence[int]
) -> Collection[str]:
    """Return the names of those that narrowing the teacher leads to."""
    layers = teacher.state_dict().keys()
    alike = [name for name, candidate in candidates.items() if candidate.shapes.keys() == layers]
    if not alike:
        return ()  # taking the teacher apart takes a while
    try:
        anatomy = Anatomy.on_noise(teacher, input_size)
    except RequestError:
        return ()
    return [name for name in alike if narrows_to(anatomy, candidates[name].model)]


def _paired(
    name: str, candidate: _Candidate, teacher: nn.Module, chain: BlockChain, *, narrower: bool
) -> Suggestion | None:
    """Build a candidate and pair it with the teacher, cut already; None where they don't pair."""
    student = build_student(name, teacher=teacher, seed=0)
    try:
        pairing = pair_with(chain, student, input_size=resolve_model_data_config(teacher)["input_size"])
    except RequestError:
        return None
    start: Start = "solve" if narrower else "slice" if pairing.init == "slice" else "random"
    pretrained = timm.is_model(name) and timm.models.is_model_pretrained(name)
    return Suggestion(name, candidate.size, start, len(pairing), pairing.inherited, pretrained)
