"""Several methods at once: their terms are added, each with its own weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, make_dataclass, replace
from typing import Any

from torch import Tensor

from netgraft.grafting.pairing import Pairing
from netgraft.methods.baseline import THE_DEFAULTS, Baseline, Objective, StudentTraining
from netgraft.methods.method import About, Method, Preset
from netgraft.plan import StepOutputs


@dataclass(frozen=True, eq=False)
class _Share:
    """One method's part of the student's training, and which of all features are its own."""

    objective: Objective
    student: slice
    teacher: slice

    def terms(self, batch: StepOutputs) -> Mapping[str, Tensor]:
        return self.objective.terms(
            replace(
                batch,
                features=batch.features[self.student],
                teacher_features=batch.teacher_features[self.teacher],
            )
        )


def _shares(objectives: Sequence[Objective]) -> list[_Share]:
    shares, student, teacher = [], 0, 0
    for objective in objectives:
        ends = student + len(objective.features), teacher + len(objective.teacher_features)
        shares.append(_Share(objective, slice(student, ends[0]), slice(teacher, ends[1])))
        student, teacher = ends
    return shares


def sum_of(objectives: Sequence[Objective]) -> Objective:
    """Add objectives up; a term that two of them have under one name counts once, as the first one has it.

    Args:
        objectives: All for one pairing.

    Returns:
        The objective with the terms, features and phases of all of them, in their order.
    """
    shares = _shares(objectives)

    def terms(batch: StepOutputs) -> Mapping[str, Tensor]:
        found: dict[str, Tensor] = {}
        for share in shares:
            for name, value in share.terms(batch).items():
                found.setdefault(name, value)
        return found

    return Objective(
        terms,
        features=tuple(feature for one in objectives for feature in one.features),
        teacher_features=tuple(feature for one in objectives for feature in one.teacher_features),
        differentiates_input=any(one.differentiates_input for one in objectives),
        before=tuple(phase for one in objectives for phase in one.before),
    )


def combine(name: str, parts: Sequence[type[Baseline]], about: About, presets: Mapping[str, Preset]) -> type[Method]:
    """Make a method whose objective is the sum of those of its parts.

    It has every hyper-parameter of its parts; one that two of them have, such as the number of steps, has the first
    one's default.

    Args:
        name: Of its class.
        parts: Whose objectives are added; each once.
        about: Facts about it.
        presets: Of the hyper-parameters of all parts.

    Returns:
        A frozen dataclass like those of single methods; it raises ``RequestError`` where one of its parts does.
    """
    declared: dict[str, tuple[str, Any, Any]] = {}
    # what all have comes first; a default is the first part's
    for f in (*fields(StudentTraining), *(f for kind in parts for f in fields(kind))):
        default = next(own.default for kind in parts for own in fields(kind) if own.name == f.name)
        declared.setdefault(f.name, (f.name, f.type, field(default=default, metadata=f.metadata)))

    def single(self: Any) -> list[Baseline]:
        return [kind(**{f.name: getattr(self, f.name) for f in fields(kind)}) for kind in parts]

    def check(self: Any) -> None:
        single(self)

    def objective(self: Any, pairing: Pairing) -> Objective:
        return sum_of([one.objective(pairing) for one in single(self)])

    return make_dataclass(
        name,
        [*declared.values()],
        bases=(Baseline,),
        namespace={
            # each part checks its own hyper-parameters
            "__post_init__": check,
            "objective": objective,
            "__doc__": about.summary,
            "about": about,
            "presets": presets,
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


ONLY_DEFAULT = {"default": THE_DEFAULTS}
"""Presets of a method that nobody has published."""
