"""Several methods at once: their terms are added, each under its method's name and with its own weight."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, make_dataclass, replace
from typing import Any

from torch import Tensor

from netgraft.grafting.pairing import Pairing
from netgraft.methods.baseline import (
    HEAD_IS_NOT_TAUGHT,
    THE_DEFAULTS,
    Baseline,
    Objective,
    StudentTraining,
    TermBesideClasses,
)
from netgraft.methods.method import About, Method
from netgraft.options import check_held
from netgraft.plan import StepOutputs


@dataclass(frozen=True, eq=False)
class _Share:
    """One method's part of the student's training: which of the features are its own."""

    name: str
    objective: Objective
    student: slice
    teacher: slice

    def terms(self, batch: StepOutputs) -> dict[str, Tensor]:
        """Return the method's terms, which bear its name."""
        own = replace(
            batch,
            features=batch.features[self.student],
            teacher_features=batch.teacher_features[self.teacher],
        )
        return {f"{self.name}/{term}": value for term, value in self.objective.terms(own).items()}


def _shares(objectives: Mapping[str, Objective]) -> list[_Share]:
    shares, student, teacher = [], 0, 0
    for name, objective in objectives.items():
        ends = student + len(objective.features), teacher + len(objective.teacher_features)
        shares.append(_Share(name, objective, slice(student, ends[0]), slice(teacher, ends[1])))
        student, teacher = ends
    return shares


def sum_of(objectives: Mapping[str, Objective]) -> Objective:
    """Add the objectives of several methods up.

    Args:
        objectives: By the names of the methods, which stand in front of those of their terms.
    """
    shares = _shares(objectives)

    def terms(batch: StepOutputs) -> Mapping[str, Tensor]:
        return {name: value for share in shares for name, value in share.terms(batch).items()}

    return Objective(
        terms,
        features=tuple(feature for one in objectives.values() for feature in one.features),
        teacher_features=tuple(feature for one in objectives.values() for feature in one.teacher_features),
        differentiates_input=any(one.differentiates_input for one in objectives.values()),
        before=tuple(phase for one in objectives.values() for phase in one.before),
        notes=tuple(note for one in objectives.values() for note in one.notes),
    )


def combine(parts: Mapping[str, type[Baseline]], about: About) -> type[Method]:
    """Make a method whose objective is the sum of those of its parts.

    Length and rate of the training are of all together. Of the other hyper-parameters it has every part's; one that
    several parts have bears the name of its part in front, as in ``kd_temperature``.

    Args:
        parts: By their names.
        about: Facts about it.

    Returns:
        A frozen dataclass like those of single methods; it raises ``RequestError`` where one of its parts does.
    """
    shared = [f.name for f in fields(StudentTraining)]
    counts = Counter(f.name for kind in parts.values() for f in fields(kind))

    def name_in_sum(part: str, name: str) -> str:
        if name in shared or counts[name] == 1:
            return name
        return f"{part.replace('-', '_')}_{name}"

    declared: dict[str, tuple[str, Any, Any]] = {}
    for part, kind in parts.items():
        for f in fields(kind):
            name = name_in_sum(part, f.name)
            declared.setdefault(name, (name, f.type, field(default=f.default, metadata=f.metadata)))

    def single(self: Any) -> dict[str, Baseline]:
        return {
            part: kind(**{f.name: getattr(self, name_in_sum(part, f.name)) for f in fields(kind)})
            for part, kind in parts.items()
        }

    def check(self: Any) -> None:
        check_held(self)  # under its own names, before each part does under its
        single(self)

    def objective(self: Any, pairing: Pairing) -> Objective:
        methods = single(self)
        together = sum_of({part: one.objective(pairing) for part, one in methods.items()})
        if all(isinstance(one, TermBesideClasses) and not one.ce_weight for one in methods.values()):
            return replace(together, notes=(*together.notes, HEAD_IS_NOT_TAUGHT))
        return together

    return make_dataclass(
        "+".join(parts),
        [*declared.values()],
        bases=(Baseline,),
        namespace={
            # each part checks its own hyper-parameters
            "__post_init__": check,
            "objective": objective,
            "__doc__": about.summary,
            "about": about,
            "presets": {"default": THE_DEFAULTS},
        },
        frozen=True,
    )


def about_all(summary: str, abouts: Sequence[About]) -> About:
    """Say of several methods at once what each says of itself.

    Args:
        summary: Of all together.
        abouts: Of each.
    """
    return About(
        summary=summary,
        category="+".join(dict.fromkeys(one.category for one in abouts)),
        matches=", ".join(dict.fromkeys(one.matches for one in abouts)),
        phases="+".join(one.phases for one in abouts),
        labels="classes" if any(one.labels == "classes" for one in abouts) else "none",
        article="; ".join(one.article for one in abouts),
        year=max(one.year for one in abouts),
        teacher=any(one.teacher for one in abouts),
    )
