"""A smaller student made of its teacher for a budget, in closed form, from a few images: no architecture to name."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from netgraft.data.given_images import pictures
from netgraft.data.view_policy import VIEW_POLICIES, ViewPolicy
from netgraft.data.views import Views
from netgraft.deriving.anatomy import Anatomy, noise
from netgraft.deriving.axes import Atom
from netgraft.deriving.budget import Amount, budget_of
from netgraft.deriving.choice import Limit
from netgraft.deriving.costs import Widths
from netgraft.deriving.library import SIZES, Library, scale_of_errors
from netgraft.deriving.low_rank import join_dear_ones, low_rank_layers
from netgraft.deriving.narrowing import Kept, absences, narrow
from netgraft.deriving.options import DerivingOptions
from netgraft.deriving.places import Block, Place
from netgraft.deriving.rank_bases import with_low_rank
from netgraft.deriving.round import Round
from netgraft.deriving.rounds import composed, correspondence, rounds_to
from netgraft.deriving.selection import kept_channels
from netgraft.deriving.solving import narrowed_start, solve_front_to_back
from netgraft.deriving.turning import Turning, turned
from netgraft.deriving.twins import widths_like
from netgraft.errors import RequestError
from netgraft.evaluation.metrics import macs, shortest_milliseconds
from netgraft.evaluation.teacher_answers import check_answers
from netgraft.grafting.pairing import FAR, Pairing, without_cuts
from netgraft.models.card import model_name
from netgraft.models.own_modules import as_classifier, preprocessing
from netgraft.models.students import save_student
from netgraft.modules import eval_mode, images_at_once, parameters
from netgraft.progress import ProgressReporter, SilentReporter

VIEWS = 2048
"""Of small images that statistics are taken of; of large ones as many as have as many pixels together, at least 512."""

HELD_BACK = 256
"""Views that errors are measured on."""

BATCH = 64
"""Views of a batch at most: some of the batches test what is solved on the others."""


@dataclass(frozen=True)
class Narrowed:
    """What was chosen for one place.

    Attributes:
        place: Name of the layer that writes it first.
        width: The teacher's.
        kept: The student's.
        error: Alone, in parts of the logits' variance; None where nobody measured it.
    """

    place: str
    width: int
    kept: int
    error: float | None


@dataclass(frozen=True)
class Choice:
    """What was narrowed, and what it costs; prints itself.

    Attributes:
        places: All, also those that stay whole.
        costs: Teacher's and student's, by unit.
    """

    places: tuple[Narrowed, ...]
    costs: Mapping[str, tuple[float, float]]

    def __str__(self) -> str:
        name = max(len(row.place) for row in self.places)
        lines = [f"{'place':{name}}  width   kept  error alone"]
        for row in self.places:
            kept = "  all" if row.kept == row.width else f"{row.kept:5}" if row.kept else "    -"
            error = "" if row.error is None or row.kept == row.width else f"  {100 * row.error:10.2g} %"
            lines.append(f"{row.place:{name}}  {row.width:5}  {kept}{error}")
        lines += [
            f"{unit}: {student:,.0f} of {teacher:,.0f}, {student / teacher:.1%}"
            for unit, (teacher, student) in self.costs.items()
        ]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Return what a result file says of it."""
        return {
            "narrowed": {row.place: [row.width, row.kept] for row in self.places if 0 < row.kept < row.width},
            "left_out": [row.place for row in self.places if not row.kept],
            "whole": [row.place for row in self.places if row.kept == row.width],
        }


@dataclass(frozen=True, eq=False)
class Derivation:
    """A student that was derived, and how.

    Attributes:
        student: Ready to use, in eval mode, started in closed form.
        library: What could be had; None where nobody asked for errors.
        choice: What was taken.
        kept: Channels of the teacher that the student has.
        anatomy: Of the teacher.
        data_config: Preprocessing, the teacher's own.
        init: How it started: ``solve``, or ``slice`` for the teacher's weights as they are.
        error: Of the start's logits on views that took no part: mean squared difference from the teacher's, in parts of
            their variance.
        projections: Of streams in other bases than the teacher's, what takes its channels to the student's: (student's
            width, teacher's width).
        recovery_steps: Optimiser steps of all trainings between rounds.
        recovery_seconds: Wall-clock of them.

    Examples:
        >>> import netgraft
        >>> teacher = netgraft.load_teacher("digits_vgg7_bn")
        >>> images = netgraft.open_data("digits").train.load_many(range(20))
        >>> derived = netgraft.derive(teacher, images, keep={"parameters": 0.3})
        >>> derived.save("smaller")
        >>> netgraft.load_student("smaller").head.fc.in_features < teacher.head.fc.in_features
        True
    """

    student: nn.Module
    library: Library | None
    choice: Choice
    kept: Kept
    anatomy: Anatomy
    data_config: Mapping[str, Any]
    init: Literal["solve", "slice"] = "solve"
    error: float = 0.0
    projections: Mapping[Atom, Tensor] = field(default_factory=dict)
    recovery_steps: int = 0
    recovery_seconds: float = 0.0

    def save(self, folder: str | Path) -> None:
        """Write a student folder, which :func:`netgraft.load_student` opens.

        Raises:
            RunError: The folder can't be written.
        """
        # as large as the teacher is, whose convolutions are one each
        teacher = copy.deepcopy(self.anatomy.model)
        join_dear_ones(teacher)
        save_student(
            Path(folder),
            self.student,
            self.student,
            cuts=(),
            data_config=self.data_config,
            known=compared_sizes(teacher, self.student, self.data_config),
        )

    def start(self, pairing: Pairing) -> Pairing:
        """Return a pairing of teacher and student that says how the student started.

        Blocks are merged over cuts where both differ by more than a basis: the student's layer norms have no weights of
        their own any more.

        Args:
            pairing: Of the teacher and of this student.
        """
        outputs, normed = self.anatomy.found.outputs, self.anatomy.found.normed
        pairing = without_cuts(pairing, [cut.name in normed for cut in pairing.teacher.cuts])
        selections = []
        for cut in pairing.teacher.cuts:
            axis = outputs[cut.name][1 if cut.layout == "NCHW" else -1]
            stream = next((atom for atom in axis.atoms() if atom in self.projections), None)
            selections.append(axis.indices(self.kept) if stream is None else self.projections[stream])
        left_out = tuple(absences(self.anatomy.blocks, self.kept))
        return replace(pairing, init=self.init, selections=tuple(selections), left_out=left_out, start_error=self.error)

    def kept_names(self) -> dict[str, list[int]]:
        """Return the channels that stay of each place that was narrowed, by its name, as JSON can hold them."""
        return {name: channels.tolist() for name, channels in self._by_name(self.kept).items()}

    def named_projections(self) -> dict[str, Tensor]:
        """Return the projections by the names of the streams' places."""
        return self._by_name(self.projections)

    def _by_name(self, values: Mapping[Atom, Tensor]) -> dict[str, Tensor]:
        names = {place.atom: place.name for place in self.anatomy.all_places}
        return {names[atom]: value for atom, value in values.items()}


class Recovery(Protocol):
    """Trains what a round leaves, before the next one narrows it further."""

    def __call__(self, number: int, solve: Callable[[], Derivation | None]) -> Derivation | None:
        """Return the student of a round, trained, with the steps and seconds of it counted.

        Args:
            number: Of the round, from 1.
            solve: Narrows and solves it; gives None where the round can't be.
        """


def sampled(available: int, input_size: Sequence[int]) -> tuple[int, int]:
    """Return on how many views statistics are taken, and on how many errors are measured.

    Args:
        available: Views that there are.
        input_size: Channels, height and width of them.
    """
    wanted = max(512, VIEWS * 32 * 32 // (input_size[1] * input_size[2]) // BATCH * BATCH)
    return min(available, VIEWS, wanted), min(available, HELD_BACK)


def expected_forwards(views: tuple[int, int], places: int) -> int:
    """Return about how many forwards of one image it takes to derive a student.

    Args:
        views: That statistics are taken on, and that errors are measured on.
        places: That are tried at several widths.
    """
    statistics, errors = views
    # for the moments, and for the weights behind one another; from each place on, on average half of the network
    return 2 * statistics + SIZES * places * errors // 2


class SampledViews:
    """Views of the few images that a student is derived from, made when they are first needed.

    Args:
        views: Of the images.
        input_size: Channels, height and width of them.
        device: That they are moved to.
        reporter: Told what happens.
    """

    def __init__(
        self, views: Views, input_size: Sequence[int], device: torch.device, reporter: ProgressReporter
    ) -> None:
        self._views, self._size, self._device = views, input_size, device
        self.reporter = reporter
        self.counts = sampled(len(views), input_size)
        """Of those that statistics are taken on, and of those that errors are measured on."""

    @cached_property
    def batches(self) -> list[Tensor]:
        """Views that statistics are taken of, (B, C, H, W) each."""
        together = min(BATCH, images_at_once(self._size, self._device))
        numbers = torch.arange(self.counts[0]).split(together)
        return [self._batch(some) for some in self.reporter.track(numbers, total=len(numbers), name="making views")]

    @cached_property
    def held_back(self) -> Tensor:
        """The last views, of which the first don't learn; where there are too few views, they are the same."""
        last = range(len(self._views) - self.counts[1], len(self._views))
        return self._batch(last)

    def _batch(self, numbers: Tensor | range) -> Tensor:
        """Return views in the layout in which CPUs convolve faster, above all depthwise."""
        return self._views.batch(numbers).to(self._device, memory_format=torch.channels_last)


def taken_apart(
    teacher: nn.Module,
    input_size: Sequence[int],
    options: DerivingOptions,
    init: Literal["solve", "slice"],
    protect: Sequence[str],
) -> tuple[Anatomy, set[str]]:
    """Return a teacher's anatomy, and the names of the places that are protected.

    It is in other bases where widths are chosen by what they cost at the logits, and a stream may become narrower;
    convolutions are two each there, where that can be cheaper. What is trained between rounds has the teacher's
    bases: what a layer norm learns can't be turned.

    Args:
        teacher: A classifier; unchanged.
        input_size: Channels, height and width of its images.
        options: Which channels go, and how many of each layer.
        init: How students start.
        protect: Places, or modules around them, that stay whole.

    Raises:
        RequestError: The teacher has nothing that could become narrower, or there is no place of such a name.
    """
    probe = noise(teacher, input_size)
    # channels go by what the layers behind can't make up for, and widths by their errors
    in_closed_form = init == "solve" and options.criterion == "surgeon" and options.scores
    if in_closed_form and options.convolutions == "low-rank":
        teacher = with_low_rank(teacher, probe)
    if not in_closed_form or options.recovery_steps:
        anatomy = Anatomy.of(teacher, probe)
        return anatomy, _protected(anatomy, protect)
    anatomy = Anatomy.with_streams(teacher, probe)
    stay = _protected(anatomy, protect)
    if anatomy.bases is not None and all(place.name in stay for place in anatomy.places if place.is_stream):
        # its own bases serve as well, and its other places have the same names
        return Anatomy.of(teacher, probe), stay
    return anatomy, stay


class Deriver:
    """Derives students of one teacher from the same views: each step is made when it is first needed.

    Args:
        teacher: A classifier; unchanged.
        views: Of the few images.
        data_config: The teacher's preprocessing.
        protect: Places, or modules around them, that stay whole; ``*`` stands for any part of a name.
        force: Widths that are given and not chosen, by the names of their places; 0 leaves a block out.
        options: Which channels go, and how many of each layer.
        init: How students start: ``solve``, or ``slice`` for the teacher's weights as they are.
        anatomy: Of the teacher, where it was taken apart before; its streams stay in their bases then.
        reporter: Told what happens.

    Raises:
        RequestError: The teacher has nothing that could become narrower, there is no place of such a name, or it can't
            have such a width.
    """

    def __init__(
        self,
        teacher: nn.Module,
        views: Views,
        data_config: Mapping[str, Any],
        *,
        protect: Sequence[str] = (),
        force: Mapping[str, int] | None = None,
        options: DerivingOptions | None = None,
        init: Literal["solve", "slice"] = "solve",
        anatomy: Anatomy | None = None,
        reporter: ProgressReporter | None = None,
    ) -> None:
        self._teacher = teacher.eval()
        self._options = options or DerivingOptions()
        self._init = init
        self._data_config = data_config
        self._reporter = reporter or SilentReporter()
        if anatomy is None:
            self.anatomy, stay = taken_apart(self._teacher, data_config["input_size"], self._options, init, protect)
        else:
            self.anatomy, stay = anatomy, _protected(anatomy, protect)
        self._samples = SampledViews(views, data_config["input_size"], self.anatomy.probe.device, self._reporter)
        forced = _forced(self.anatomy, force or {})
        settled = stay | {place.name for place in self.anatomy.all_places if place.atom in forced}
        self._open = [place for place in self.anatomy.all_places if place.name not in settled]
        # what others do chooses by the weights as they are
        turning = turned if self._options.criterion == "surgeon" else None
        self._first = self._round(self.anatomy, self._open, forced, turning)

    def _round(
        self, anatomy: Anatomy, among: Sequence[Place | Block], forced: Mapping[Atom, int], turning: Turning | None
    ) -> Round:
        return Round(
            anatomy,
            self._samples,
            self._options,
            among=among,
            forced=forced,
            turning=turning,
            stopwatch=shortest_milliseconds,
            reporter=self._reporter,
        )

    @property
    def reporter(self) -> ProgressReporter:
        """Told what happens."""
        return self._reporter

    @reporter.setter
    def reporter(self, reporter: ProgressReporter) -> None:
        self._reporter = self._samples.reporter = self._first.reporter = reporter

    @property
    def library(self) -> Library:
        """All places of the teacher at several widths."""
        return self._first.library

    @library.setter
    def library(self, library: Library) -> None:
        self._first.library = library

    @property
    def scores(self) -> bool:
        """Whether widths are chosen by their errors, so that there is a library."""
        return self._options.scores

    def forwards(self) -> int:
        """Return about how many forwards of one image it takes to derive a student."""
        tries = self.scores and not self._first.has_library
        return expected_forwards(self._samples.counts, len(self.anatomy.all_places) if tries else 0)

    def check(self, budget: Sequence[Amount]) -> None:
        """Make sure that a budget can be met.

        Raises:
            RequestError: It can't, or is none.
        """
        limits = self._limits(budget)
        self._first.check(limits)
        self._rounds(limits)

    def _limits(self, budget: Sequence[Amount]) -> list[Limit]:
        return self._first.limits({amount.unit: amount.limit(self._first.cost(amount.unit)({})) for amount in budget})

    def rounds(self, budget: Sequence[Amount]) -> int:
        """Return in how many rounds a student is derived, where one doesn't end near already."""
        return len(self._rounds(self._limits(budget)))

    def _rounds(self, limits: Sequence[Limit]) -> list[list[Limit]]:
        """Return what may be spent behind each round. Raises RequestError where nothing lies between that is asked."""
        options = self._options
        # where nothing is measured, or nothing makes up for it, another round would say nothing new
        repeats = self.scores and self._init == "solve"
        several = rounds_to(limits, options.rounds) if repeats else [list(limits)]
        if options.recovery_steps and len(several) == 1:
            why = "the budget is reached in one" if options.rounds is None else "rounds 1 asks for one"
            if not repeats:
                why = "init slice solves nothing" if self.scores else f"allocation {options.allocation} measures none"
            raise RequestError(
                f"recovery_steps {options.recovery_steps} trains between rounds, but there are no several rounds: "
                f"{why}; leave recovery_steps out, or ask for rounds of a solved student"
            )
        return several

    def taken_up(
        self, student: nn.Module, kept: Mapping[str, Tensor], error: float, projections: Mapping[str, Tensor]
    ) -> Derivation:
        """Return a derivation that was made and saved before.

        Args:
            student: As it started.
            kept: Channels of each place that was narrowed, by its name.
            error: Of its logits, as it was then.
            projections: From the teacher's streams to the student's, by the names of their places.
        """
        places = {place.name: place.atom for place in self.anatomy.all_places}
        channels = {places[name]: numbers for name, numbers in kept.items()}
        choice = self._choice({atom: len(numbers) for atom, numbers in channels.items()}, {})
        derivation = self._derivation(student, choice, channels, error)
        return replace(derivation, projections={places[name]: matrix for name, matrix in projections.items()})

    def like(self, student: nn.Module) -> Derivation:
        """Start a student of given widths in closed form: the library says which channels it takes.

        Args:
            student: Built like the teacher, but narrower or with fewer blocks; gets the weights.

        Raises:
            RequestError: It is no smaller twin of the teacher.
            ValueError: The teacher was taken apart in other bases than its own, or its convolutions are two each.
        """
        if self.anatomy.bases is not None or low_rank_layers(self.anatomy.model) != low_rank_layers(self._teacher):
            raise ValueError(
                "a named student has its teacher's bases and layers; give the anatomy of the teacher as it is"
            )
        widths = widths_like(self.anatomy, student)
        narrower = [place for place in self.anatomy.places if widths[place.atom] < place.width]
        kept = {place.atom: kept_channels(self._first.order(place), widths[place.atom]) for place in narrower}
        kept |= {block.atom: torch.arange(0) for block in self.anatomy.blocks if not widths[block.atom]}
        state = self._solved(self._narrowed(self._first, kept), kept).state_dict()
        # of a block whose branches are left out norms may stay that nothing reads
        student.load_state_dict({name: state[name] for name in student.state_dict()})
        student.to(self.anatomy.probe.device)
        return self._derivation(student.eval(), self._choice(widths, {}), kept, self._error_of(student))

    def derive(self, budget: Sequence[Amount], recovery: Recovery | None = None) -> Derivation:
        """Choose widths for a budget and start the student in closed form.

        Args:
            budget: What the student may cost.
            recovery: Trains between rounds, where that is asked for.

        Raises:
            RequestError: The budget can't be met, or is none; or training between rounds is asked for where there is
                one round only, or where nothing trains.
        """
        limits = self._limits(budget)
        several = self._rounds(limits)
        if self._options.recovery_steps:
            if recovery is None:
                raise RequestError(
                    f"recovery_steps {self._options.recovery_steps} asks for training between rounds, and deriving "
                    "alone trains nothing; leave it out, or use distill"
                )
            return self._in_rounds(several, recovery) or self._in_one(limits)
        if self._options.rounds is not None or len(several) == 1:
            return self._in_rounds(several) or self._in_one(limits)
        once = self._in_one(limits)
        if once.error < FAR:
            return once
        return min((once, self._in_rounds(several) or once), key=lambda derived: derived.error)

    def _in_one(self, limits: Sequence[Limit]) -> Derivation:
        """Take all channels at once."""
        derivation = self._in_rounds([limits])
        assert derivation is not None, "only a later round finds nothing to do"
        return derivation

    def _in_rounds(self, rounds: Sequence[Sequence[Limit]], recovery: Recovery | None = None) -> Derivation | None:
        """Narrow in rounds, each on the student of the one before; None where a later one can't meet its limits."""
        derived: Derivation | None = None
        for number, limits in enumerate(rounds, 1):
            solve = partial(self._in_round, f"round {number} of {len(rounds)}", limits, derived)
            derived = solve() if recovery is None or number == len(rounds) else recovery(number, solve)
            if derived is None:
                return None
        assert derived is not None, "there is a round"
        errors: dict[Atom, dict[int, float]] = {}
        if self.scores:
            options = self.library.options().values()
            errors = {each.atom: dict(zip(each.widths, each.errors, strict=True)) for each in options}
        choice = self._choice({atom: len(channels) for atom, channels in derived.kept.items()}, errors)
        library = self.library if self.scores else None
        derived = self._with_layer_norms(replace(derived, choice=choice, library=library))
        # what doesn't pay as two convolutions is one, the same but for rounding; last, since names change
        join_dear_ones(derived.student)
        return derived

    def _with_layer_norms(self, derived: Derivation) -> Derivation:
        """Put plain layer norms into a student whose streams were turned."""
        bases = self._first.measured.bases
        if bases is None:
            return derived
        student = bases.with_layer_norms(derived.student, self._teacher, derived.kept).requires_grad_()
        projections = {atom: bases.projection(atom, derived.kept).float() for atom in bases.turns}
        return replace(derived, student=student, error=self._error_of(student), projections=projections)

    def _in_round(self, called: str, limits: Sequence[Limit], before: Derivation | None) -> Derivation | None:
        """Narrow the student of the round before, or the teacher; None where it can't meet the limits."""
        kept: Kept = {} if before is None else before.kept
        teachers = {place.atom: place.atom for place in self.anatomy.all_places}
        present = self._first
        if before is not None:
            self._reporter.note(f"{called}: what each channel is worth is measured anew")
            try:
                present, teachers = self._next_round(before.student)
                limits = present.limits({limit.name: limit.most for limit in limits})
                present.check(limits)
            except RequestError:
                return None
        further = present.kept_for(limits)
        kept = composed(kept, further, teachers)
        student = self._solved(self._narrowed(present, further), kept)
        choice = self._choice({atom: len(channels) for atom, channels in kept.items()}, {})
        derived = self._derivation(student, choice, kept, self._error_of(student))
        if before is None:
            return derived
        return replace(derived, recovery_steps=before.recovery_steps, recovery_seconds=before.recovery_seconds)

    def _next_round(self, student: nn.Module) -> tuple[Round, dict[Atom, Atom]]:
        """Return what narrows a student of the teacher further, and which of the teacher's channels its own are."""
        anatomy = Anatomy.on_noise(student, self._data_config["input_size"])
        teachers = correspondence(anatomy, self.anatomy)
        still_open = {place.atom for place in self._open}
        among = [place for place in anatomy.all_places if teachers.get(place.atom) in still_open]
        # the student has the bases of the first round, in which the teacher's outputs are its targets
        return self._round(anatomy, among, {}, None), teachers

    def _derivation(self, student: nn.Module, choice: Choice, kept: Kept, error: float) -> Derivation:
        return Derivation(student, None, choice, kept, self.anatomy, self._data_config, self._init, error)

    @torch.no_grad()
    def _error_of(self, student: nn.Module) -> float:
        """Mean squared difference of the logits from the teacher's, in parts of their variance."""
        held_back = self._samples.held_back
        batches = held_back.split(images_at_once(held_back.shape[1:], held_back.device))
        with eval_mode(student):
            logits, got = (torch.cat([model(some.clone()) for some in batches]) for model in (self._teacher, student))
        return float((got - logits).square().mean() / scale_of_errors(logits))

    def _narrowed(self, present: Round, kept: Kept) -> nn.Module:
        """Return the model with fewer channels: each layer makes up for those that it lost, unless slices are asked."""
        if self._init == "slice":
            anatomy = present.measured
            return narrow(anatomy.model, anatomy.found, kept, anatomy.blocks).eval()
        return narrowed_start(present.measured, present.readers, kept)

    def _solved(self, student: nn.Module, kept: Kept) -> nn.Module:
        """Solve the weights of a narrowed student front to back, in place, unless slices are asked."""
        if self._init == "solve":
            solved = solve_front_to_back(self._first.measured, student, kept, self._samples.batches)
            for _ in self._reporter.track(solved, total=len(self.anatomy.layers), name="solving layers"):
                pass
        # a teacher may be frozen, and a student is there to learn
        return student.requires_grad_()

    def _choice(self, widths: Widths, errors: Mapping[Atom, Mapping[int, float]]) -> Choice:
        rows = []
        for place in self.anatomy.all_places:
            width = widths.get(place.atom, place.width)
            rows.append(Narrowed(place.name, place.width, width, errors.get(place.atom, {}).get(width)))
        return Choice(tuple(rows), {unit: (cost({}), cost(widths)) for unit, cost in self._first.counted.items()})


def compared_sizes(teacher: nn.Module, student: nn.Module, data_config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a model card says of both models' sizes, and of the teacher's name."""
    size = tuple(data_config["input_size"])
    return {
        "teacher": model_name(teacher),
        "teacher_parameters": parameters(teacher),
        "teacher_macs": macs(teacher, size),
        "macs": macs(student, size),
    }


def _with_parents(layer: str) -> list[str]:
    """Return a layer's name and those of the modules around it."""
    parts = layer.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts) + 1)]


def _protected(anatomy: Anatomy, names: Sequence[str]) -> set[str]:
    found = set()
    for name in names:
        inside = {
            place.name
            for place in anatomy.all_places
            if any(fnmatchcase(part, name) for layer in (place.name, *place.layers) for part in _with_parents(layer))
        }
        if not inside:
            known = ", ".join(place.name for place in anatomy.places[:5])
            raise RequestError(f"there is nothing to protect at {name!r}; the first places are {known}")
        found |= inside
    return found


def _forced(anatomy: Anatomy, widths: Mapping[str, int]) -> dict[Atom, int]:
    places = {place.name: place for place in anatomy.all_places}
    for name, width in widths.items():
        if name not in places:
            raise RequestError(
                f"there is no place {name!r} whose width could be given; the first are {', '.join([*places][:5])}"
            )
        least = 0 if isinstance(places[name], Block) else 1
        if not least <= width <= places[name].width:
            raise RequestError(f"{name} can be {least} to {places[name].width} wide, not {width}")
    return {places[name].atom: width for name, width in widths.items()}


def derive(
    teacher: nn.Module,
    images: Any,
    keep: Mapping[str, float | str] | None = None,
    *,
    protect: Sequence[str] = (),
    force: Mapping[str, int] | None = None,
    views: ViewPolicy | Views | None = None,
    data_config: Mapping[str, Any] | None = None,
    seed: int = 0,
    options: DerivingOptions | None = None,
    recovery: Recovery | None = None,
    reporter: ProgressReporter | None = None,
) -> Derivation:
    """Derive a smaller student from a teacher and a few unlabeled images, in closed form: nothing is trained.

    Args:
        teacher: A trained timm classifier; unchanged.
        images: PIL images, paths, a folder, arrays, tensors, or a data set or loader of any of them; see
            :func:`netgraft.data.given_images.pictures`.
        keep: What the student may cost: ``{"macs": 0.5}``, ``{"parameters": "2.5M"}``, or both; fractions are of the
            teacher's. Half of the multiply-accumulates if None.
        protect: Names of modules that stay whole; ``*`` stands for any part of a name: ``blocks.*.attn``.
        force: Widths that are given and not chosen, by the names of their places; 0 leaves a block out.
        views: How views are made of the images, or views of them; rich ones if None.
        data_config: Preprocessing in timm's words; the teacher's own if None.
        seed: Of the views.
        options: Which channels go, how many of each layer, and in how many rounds.
        recovery: Trains between rounds where ``options`` ask for it; :func:`netgraft.distill` brings one.
        reporter: Told what happens.

    Returns:
        The student, ready to use, with the library that it was chosen from.

    Raises:
        RequestError: There are no images, the budget can't be met, the teacher answers every image alike, or nothing of
            it could become narrower.

    Examples:
        >>> import netgraft
        >>> teacher = netgraft.load_teacher("digits_vgg7_bn")
        >>> images = netgraft.open_data("digits").train.load_many(range(20))
        >>> derived = netgraft.derive(teacher, images, keep={"macs": 0.5})
        >>> teachers, students = derived.choice.costs["macs"]
        >>> 0.4 < students / teachers <= 0.5
        True
    """
    images, _ = pictures(images)
    if not images:
        raise RequestError("there are no images to derive a student from; give at least one")
    data_config = preprocessing(teacher, images[0].size, data_config)
    teacher = as_classifier(teacher, data_config)
    check_answers(teacher, images, data_config)
    made = Views.of(images, views or VIEW_POLICIES["rich"], data_config, seed=seed)
    with eval_mode(teacher):
        deriver = Deriver(teacher, made, data_config, protect=protect, force=force, options=options, reporter=reporter)
        return deriver.derive(budget_of(keep or {"macs": 0.5}), recovery)
