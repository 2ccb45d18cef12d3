"""Finished runs as reports read them: result, loss curves, and the student's file."""

from __future__ import annotations

import base64
import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import msgspec

from netgraft.data.text_files import parse_json, read_text
from netgraft.errors import RequestError
from netgraft.experiments.results import in_present_form
from netgraft.jobs.options import DistillOptions
from netgraft.jobs.run_folder import RunFolder
from netgraft.jobs.thumbnails import thumbnail
from netgraft.models.descriptions import TIMM
from netgraft.models.folders import weights_file
from netgraft.options import declared, shown

METRICS = "metrics.jsonl"

FEWEST_IMAGES = 5
"""Of a class, with which its agreement means anything."""

MOST_BYTES, JPEG = 2**17, b"\xff\xd8\xff"
"""Of a thumbnail: its size, at most, and how it begins."""


_Percent = Annotated[float, msgspec.Meta(ge=0, le=100)]
_Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
_Positive = Annotated[int, msgspec.Meta(ge=1, le=2**53)]


@dataclass(frozen=True, kw_only=True)
class ReportedFacts:
    """What a report is made of, and of which types it is."""

    data: str
    teacher: str
    student: str
    method: str
    preset: str
    init: str
    labels: str
    views: str
    settings: dict[str, str]
    teacher_top1: float | None
    student_top1: float | None
    gap: float | None
    agreement: float | None
    teacher_parameters: int
    parameters: int
    teacher_macs: int
    macs: int
    teacher_latency_ms_1: float
    latency_ms_1: float
    teacher_latency_ms_64: float
    latency_ms_64: float
    images: int
    shots: int | None
    seed: int
    subset: str
    subset_seed: int | None
    steps: int
    train_seconds: float
    seconds: float
    computed_in: str
    selection: str
    plan: str
    warnings: list[str]
    inherited_blocks: int
    blocks: int
    opens_with_timm: bool
    versions: dict[str, str]
    device: str
    machine: str
    threads: int


@dataclass(frozen=True)
class Derived:
    """What became of each place of the teacher.

    Attributes:
        narrowed: Width before and after, by place.
        left_out: Places that are gone.
        whole: Places as they were.
    """

    narrowed: dict[str, tuple[int, int]]
    left_out: list[str]
    whole: list[str]


@dataclass(frozen=True)
class Differing:
    """An image that both networks answer differently.

    Attributes:
        image: Its name.
        teacher: The teacher's answer.
        teacher_confidence: From 0 to 1.
        student: The student's answer.
        student_confidence: From 0 to 1.
        right: Its class, where that is known.
        thumbnail: JPEG in base64, where the run kept one.
    """

    image: str
    teacher: str
    teacher_confidence: _Share
    student: str
    student_confidence: _Share
    right: str | None = None
    thumbnail: str | None = None


@dataclass(frozen=True)
class ClassAgreement:
    """What the student says where the teacher says ``name``: how many images, and the same in percent of them."""

    name: str
    images: _Positive
    agreement: _Percent


@dataclass(frozen=True)
class Confidence:
    """Images of which the student is sure between ``low`` and ``high``; see :mod:`netgraft.evaluation.confidence`."""

    low: _Share
    high: _Share
    images: _Positive
    confidence: _Percent
    agreement: _Percent
    right: _Percent | None = None


@dataclass(frozen=True)
class Threshold:
    """What is left of all images, in percent, where the student is at least ``low`` sure, and how good that is."""

    low: float
    left: float
    agreement: float
    right: float | None


@dataclass(frozen=True)
class PhaseLosses:
    """The loss terms of one phase.

    Attributes:
        number: Of the phase, from 1.
        steps: At which they were noted, ascending.
        terms: Each term's value at these steps.
    """

    number: int
    steps: tuple[int, ...]
    terms: Mapping[str, tuple[float, ...]]


@dataclass(frozen=True)
class FinishedRun:
    """A run.

    Attributes:
        folder: Of the run.
        result: Of ``result.json``, with the fields of :class:`ReportedFacts`.
        derived: Where the student was made of its teacher.
        losses: Of each phase that noted some.
        student_bytes: Of the student's file of weights.
        differing: Images on which both networks differ most.
        by_class: Agreement where the teacher names a class, of classes with images enough to say something.
        by_confidence: What the student's confidence is worth, the lowest first.
    """

    folder: Path
    result: Mapping[str, Any]
    derived: Derived | None
    losses: tuple[PhaseLosses, ...]
    student_bytes: int
    differing: tuple[Differing, ...]
    by_class: tuple[ClassAgreement, ...]
    by_confidence: tuple[Confidence, ...]

    @property
    def name(self) -> str:
        """Of the folder."""
        return self.folder.resolve().name

    @property
    def thresholds(self) -> tuple[Threshold, ...]:
        """What is left where less sure answers are turned away, at each edge of the bins."""
        images = sum(row.images for row in self.by_confidence)
        found = []
        for number, row in enumerate(self.by_confidence):
            kept = self.by_confidence[number:]
            count = sum(each.images for each in kept)
            right = [each.images * each.right for each in kept if each.right is not None]
            found.append(
                Threshold(
                    0.0 if number == 0 else row.low,
                    100 * count / images,
                    sum(each.images * each.agreement for each in kept) / count,
                    sum(right) / count if len(right) == len(kept) else None,
                )
            )
        return tuple(found)

    @property
    def command(self) -> str | None:
        """The command line that repeats the run; None of one that was made before runs noted what was asked for."""
        options = self.result.get("options")
        if not isinstance(options, Mapping):
            return None
        known = declared(DistillOptions)
        words = ["netgraft", "distill"]
        for name, value in options.items():
            flag = known[name].flag if name in known else f"--{name.replace('_', '-')}"
            words += [flag] if value is True else [flag, shown(tuple(value) if isinstance(value, list) else value)]
        for name, text in self.result["settings"].items():
            words += [f"--{name.replace('_', '-')}", text]
        return shlex.join(words)


def load_run(folder: Path) -> FinishedRun:
    """Read a run that distilled.

    Raises:
        RequestError: It isn't finished, damaged, or another kind of run.
    """
    if not folder.is_dir():
        raise RequestError(f"expected the folder of a run, got {folder}, which is none; check the path")
    run = RunFolder(folder)
    result = run.finished()
    if result is None:
        what = "an unfinished run; finish it with --resume" if run.config() else "no run; check the path"
        raise RequestError(f"expected a finished run in {folder}, got {what}")
    result = in_present_form(result)
    wrong = [name for name, kind in get_type_hints(ReportedFacts).items() if not _holds(result, name, kind)]
    if "teacher_digest" not in result:
        raise RequestError(f"expected a run of netgraft distill in {folder}, got one of another command; give another")
    if wrong:
        raise RequestError(
            f"{folder / 'result.json'} is damaged, or of another version: it has no valid {', '.join(wrong[:3])}; "
            "run it again"
        )
    student = folder / "student"
    weights = weights_file(student) if (student / TIMM).is_file() else student / "student.safetensors"
    return FinishedRun(
        folder,
        result,
        _derived(folder, result.get("derived")),
        _losses(folder / METRICS),
        weights.stat().st_size if weights is not None and weights.is_file() else 0,
        tuple(
            replace(each, thumbnail=_thumbnail(thumbnail(folder, number)))
            for number, each in enumerate(_rows(folder, result, "differ_most", Differing))
        ),
        tuple(row for row in _rows(folder, result, "by_class", ClassAgreement) if row.images >= FEWEST_IMAGES),
        tuple(_rows(folder, result, "by_confidence", Confidence)),
    )


def _holds(result: Mapping[str, Any], name: str, kind: Any) -> bool:
    try:
        value = msgspec.convert(result.get(name, msgspec.UNSET), kind)
    except (msgspec.ValidationError, OverflowError):
        return False
    return name in result and not (isinstance(value, float) and not math.isfinite(value))


T = TypeVar("T")


def _rows(folder: Path, result: Mapping[str, Any], name: str, kind: type[T]) -> list[T]:
    """Read a list of a result; empty in those of versions that had none."""
    return _converted(folder, name, result.get(name, []), list[kind])  # type: ignore[valid-type]


def _derived(folder: Path, content: object) -> Derived | None:
    return None if content is None else _converted(folder, "derived", content, Derived)


def _converted(folder: Path, name: str, content: object, kind: type[T]) -> T:
    try:
        return msgspec.convert(content, kind)
    except msgspec.ValidationError as error:
        raise RequestError(
            f"{folder / 'result.json'} is damaged: {name}, {str(error).lower()}; run it again"
        ) from error


def _thumbnail(path: Path) -> str | None:
    """Return a small JPEG in base64; None where there is none, or something else."""
    if not path.is_file() or path.stat().st_size > MOST_BYTES:
        return None
    content = path.read_bytes()
    return base64.b64encode(content).decode() if content.startswith(JPEG) else None


def _losses(path: Path) -> tuple[PhaseLosses, ...]:
    """Read what was noted of each phase; nothing where no step was."""
    if not path.exists():
        return ()
    phases: dict[int, dict[int, dict[str, float]]] = {}
    try:
        for number, line in enumerate(read_text(path).splitlines(), 1):
            row = _numbers(line, number)
            terms = {name: float(value) for name, value in row.items() if name not in {"phase", "step", "lr"}}
            phases.setdefault(int(row["phase"]), {})[int(row["step"])] = terms
    except (OSError, ValueError, KeyError) as error:
        raise RequestError(f"{path} is damaged ({error}); remove it, and the report goes without curves") from error
    return tuple(_phase(number, rows) for number, rows in sorted(phases.items()))


def _numbers(line: str, number: int) -> dict[str, float]:
    row = parse_json(line)
    if not isinstance(row, dict) or not all(isinstance(value, int | float) for value in row.values()):
        raise ValueError(f"expected an object of numbers in line {number}, got {line[:50]!r}")
    return row


def _phase(number: int, rows: Mapping[int, Mapping[str, float]]) -> PhaseLosses:
    steps = tuple(sorted(rows))
    # a term that isn't in all of them, or not finite, is no curve
    names = [name for name in rows[steps[0]] if all(math.isfinite(rows[step].get(name, math.nan)) for step in steps)]
    return PhaseLosses(number + 1, steps, {name: tuple(rows[step][name] for step in steps) for name in names})
