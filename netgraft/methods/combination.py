"""Several methods at once: their terms are added, each once and with its own weight."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, make_dataclass, replace
from typing import Any

from torch import Tensor

from netgraft.errors import RequestError
from netgraft.grafting.pairing import Pairing
from netgraft.methods.baseline import Baseline, Objective, StudentTraining, preset_on_rich_views
from netgraft.methods.method import About, Budget, Preset
from netgraft.plan import StepOutputs


@dataclass(frozen=True, eq=False)
class _Share:
    """One method's part of the student's training: which of the features are its own."""

    lesson: Objective
    mine: slice
    theirs: slice

    def terms(self, batch: StepOutputs) -> Mapping[str, Tensor]:
        return self.lesson.objective(
            replace(
                batch,
                features=batch.features[self.mine],
                teacher_features=batch.teacher_features[self.theirs],
            )
        )


def _shares(lessons: Sequence[Objective]) -> list[_Share]:
    shares, mine, theirs = [], 0, 0
    for lesson in lessons:
        ends = mine + len(lesson.features), theirs + len(lesson.teacher_features)
        shares.append(_Share(lesson, slice(mine, ends[0]), slice(theirs, ends[1])))
        mine, theirs = ends
    return shares


def combine(kinds: Mapping[str, type]) -> tuple[type, dict[str, Callable[[Budget], Preset]]]:
    """Make a method that teaches the lessons of several, and its presets.

    It has every hyper-parameter of its parts; one that two of them have, such as the number of steps, has the first
    one's default. A term that two of them have, such as KD's, counts once; the cross-entropy of ``supervised`` is
    another than the one inside of KD.

    Args:
        kinds: Names and classes of the parts.

    Raises:
        RequestError: One of them doesn't train the student by a lesson of its own.
    """
    for name, kind in kinds.items():
        if not issubclass(kind, Baseline):
            raise RequestError(f"{name} can't be combined: it adds no terms to the student's training")
    own = {
        f.name: (f.name, f.type, field(default=f.default, metadata=f.metadata))
        for k in [*kinds.values()][::-1]
        for f in fields(k)
    }
    first = [f.name for f in fields(StudentTraining)]
    ordered = [*first, *(name for name in own if name not in first)]

    def lesson(self: Any, pairing: Pairing) -> Objective:
        parts = [kind(**{f.name: getattr(self, f.name) for f in fields(kind)}) for kind in kinds.values()]
        lessons = [part.lesson(pairing) for part in parts]
        shares = _shares(lessons)

        def objective(batch: StepOutputs) -> Mapping[str, Tensor]:
            terms: dict[str, Tensor] = {}
            for share in shares:
                terms = {**share.terms(batch), **terms}
            return terms

        return Objective(
            objective,
            features=tuple(feature for one in lessons for feature in one.features),
            teacher_features=tuple(feature for one in lessons for feature in one.teacher_features),
            differentiates_input=any(one.differentiates_input for one in lessons),
            before=tuple(phase for one in lessons for phase in one.before),
        )

    about = [kind.about for kind in kinds.values()]  # type: ignore[attr-defined]
    kind = make_dataclass(
        "+".join(kind.__name__ for kind in kinds.values()),
        [own[name] for name in ordered],
        bases=(Baseline,),
        namespace={
            "lesson": lesson,
            "__doc__": f"The terms of {', '.join(kinds)} added.",
            "about": About(
                "+".join(dict.fromkeys(one.category for one in about)),
                ", ".join(dict.fromkeys(one.matches for one in about)),
                "+".join(one.phases for one in about),
                "classes" if any(one.labels == "classes" for one in about) else "none",
                "; ".join(one.article for one in about),
                max(one.year for one in about),
                any(one.teacher for one in about),
            ),
        },
        frozen=True,
    )
    return kind, {"default": preset_on_rich_views(kind)}
