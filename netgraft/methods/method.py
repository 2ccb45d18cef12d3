"""What a method must have: hyper-parameters, a plan, presets and facts about itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass
from typing import Any, ClassVar, Protocol

from netgraft.data.view_policy import ViewPolicy
from netgraft.grafting.pairing import Pairing
from netgraft.plan import Plan


@dataclass(frozen=True)
class About:
    """Facts about a method.

    Attributes:
        summary: What the student is taught, in a sentence.
        category: ``offline`` (from a trained teacher), ``online`` (peers learn together), ``self`` (from itself), or
            ``reference`` (no distillation).
        matches: What of the networks is compared: logits, features, attention, sparsity, relations; or ``labels``.
        phases: Stages, in words.
        labels: ``none``; ``classes``: real ones on the labeled track, the teacher's arg-max on the unlabeled one.
        article: Authors, venue and number.
        year: Of the article; 0 for a reference point.
        teacher: Whether the teacher teaches; where not, its arg-max stands for labels on the unlabeled track.
    """

    summary: str
    category: str
    matches: str
    phases: str
    labels: str
    article: str
    year: int
    teacher: bool = True


@dataclass(frozen=True)
class Budget:
    """What a preset may depend on.

    Attributes:
        images: How many there are to train on, of all classes.
        classes: How many they are of; as many as the teacher knows where that is unknown.
        solved: Whether the student starts in closed form.
        kept: Whether it starts with weights that it brings.
    """

    images: int
    classes: int
    solved: bool = False
    kept: bool = False


@dataclass(frozen=True)
class Preset:
    """Hyper-parameters under a name, with the views and the start that belong to them.

    Attributes:
        meaning: What they are, in a sentence.
        views: How views are made of the images.
        hyperparameters: Those that differ from the method's defaults, for a budget.
        init: How the student starts unless it is said otherwise: ``random``, ``slice``, or ``auto``, which names none;
            see :class:`netgraft.grafting.options.PairingOptions`.
    """

    meaning: str
    views: ViewPolicy
    hyperparameters: Callable[[Budget], Mapping[str, Any]]
    init: str = "auto"


class Method(Protocol):
    """Turns a teacher and a student into a plan; a frozen dataclass whose fields are hyper-parameters with defaults.

    Attributes:
        about: What kind of method it is, for lists and results.
        presets: By their names; ``default`` among them.
    """

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]
    about: ClassVar[About]
    presets: ClassVar[Mapping[str, Preset]]

    def plan(self, pairing: Pairing) -> Plan:
        """Say what will be trained, in which order, on what loss.

        Args:
            pairing: Teacher and student, cut at corresponding points.

        Raises:
            RequestError: The method can't train this pair.
        """
        ...
