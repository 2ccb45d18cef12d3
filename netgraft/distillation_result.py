"""What a distillation leaves: the student, what it is worth, and how it came about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from netgraft.data.given_images import pictures
from netgraft.data.image_set import ImageSet, PictureStore
from netgraft.data.sources import open_data
from netgraft.derivation import Derivation, compared_sizes
from netgraft.errors import RequestError
from netgraft.evaluation.class_matching import match_classes
from netgraft.evaluation.comparison import predictions
from netgraft.evaluation.metrics import agreement, macs, top1
from netgraft.exporting.export import Exported, ExportedInt8, export, export_int8
from netgraft.grafting.folding import Folding
from netgraft.grafting.pairing import Pairing
from netgraft.models.card import OWN_MODEL
from netgraft.models.creation import label_names
from netgraft.models.students import opens_with_timm, save_student
from netgraft.modules import parameters, state_digest
from netgraft.plan import Plan
from netgraft.progress import SilentReporter
from netgraft.training.runner import Trained


class Prediction(NamedTuple):
    """What a student says of an image.

    Attributes:
        label: Position of the class.
        name: Of the class; its position where it has no name.
        confidence: The softmax's, from 0 to 1; not calibrated.
    """

    label: int
    name: str
    confidence: float


@dataclass(frozen=True, eq=False, repr=False)
class DistillationResult:
    """A student and how it came about; prints itself as a short table.

    Attributes:
        student: Ready to use, in eval mode: the very model that was handed over where every adapter folded, otherwise
            a sequence of its blocks and the adapters that stayed.
        model: The student model that was handed over.
        plain: Whether ``student`` is ``model``, so that timm can open it by itself.
        pairing: Blocks, inheritance and initialisation.
        plan: What was trained.
        folding: What was folded and what stayed.
        trained: Steps and seconds.
        data_config: Preprocessing, the teacher's own.
        teacher_digest: Of the teacher's weights, the same before and after.
        derivation: What the student was made of, where its start was solved; its ``student`` is this one, trained.
        notes: What became of the weights that the student came with, a sentence each.
        history: The terms of the loss as training went on: name of the phase, step in it and each term by its name.
        measured: What images that were held out say of the student, by its name in a result file: ``agreement`` with
            the teacher in percent and ``estimated_gap``, the points of accuracy that were probably lost, each with the
            ends of its 95 % interval (``agreement_low``, ...), ``held_out_images`` and ``differ_most``; empty without.
        images: How many the student learned from.
        teacher_name: Its architecture's, where timm knows it.

    Examples:
        >>> import netgraft, timm
        >>> teacher = netgraft.load_teacher("digits_vgg7_bn")
        >>> student = timm.create_model("digits_vgg7_bn_half")
        >>> images = netgraft.open_data("digits").train.load_many(range(20))
        >>> short = netgraft.NetGraft(block_steps=(1,), join_steps=1)
        >>> result = netgraft.distill(teacher, student, images, method=short)
        >>> result.plain, result.student is student, sorted(result.folding.folded)
        (True, True, ['features.14', 'head.fc'])
        >>> test = netgraft.open_data("digits").test
        >>> sorted(result.evaluate(test))
        ['agreement', 'gap', 'images', 'teacher_top1', 'top1']
        >>> result.predict(test.load_many([0]))[0].label in range(10)
        True
        >>> [line.split()[0] for line in str(result).splitlines()[1:3]]
        ['teacher', 'student']
        >>> result.save("student")
        >>> type(netgraft.load_student("student")).__name__
        'SmallVGG'
        >>> result.export("student.pt2", to="pt2", images=images).proof.images
        24
    """

    student: nn.Module
    model: nn.Module
    plain: bool
    pairing: Pairing
    plan: Plan
    folding: Folding
    trained: Trained
    data_config: dict[str, Any]
    teacher_digest: str
    derivation: Derivation | None = None
    notes: tuple[str, ...] = ()
    history: tuple[Mapping[str, Any], ...] = ()
    measured: Mapping[str, Any] = field(default_factory=dict)
    images: int | None = None
    teacher_name: str = OWN_MODEL

    @property
    def teacher(self) -> nn.Module:
        """The teacher, as the blocks that it was cut into."""
        return self.pairing.teacher

    def __str__(self) -> str:
        size = tuple(self.data_config["input_size"])
        rows = [
            (name, parameters(model), macs(model, size))
            for name, model in (("teacher", self.teacher), ("student", self.student))
        ]
        lines = [f"{'':8}{'parameters':>14}{'MACs':>16}"]
        lines += [f"{name:8}{count:>14,}{products:>16,}" for name, count, products in rows]
        (_, most, all_products), (_, count, products) = rows
        lines.append(f"{'':8}{count / most:>14.1%}{products / all_products:>16.1%}")
        inherited = f"{self.pairing.inherited} of {len(self.pairing)} blocks inherited, "
        lines.append(f"start: {inherited if self.pairing.inherited else ''}{self.pairing.init}")
        trained = self.trained
        lines.append(f"training: {trained.steps:,} steps in {trained.seconds:.1f} s, precision {trained.precision}")
        steps, seconds = self._between_rounds
        lines += [f"between rounds: {steps:,} steps in {seconds:.1f} s"] if steps else []
        if self.folding.kept:
            lines.append(f"adapters that stayed: {len(self.folding.kept)}")
        if self.measured:
            images = self.measured["held_out_images"]
            lines.append(f"agreement with the teacher: {self._interval('agreement')} % of {images:,} images")
            lines.append(f"accuracy lost, estimated: {self._interval('estimated_gap')} points")
        return "\n".join([*lines, *self.notes])

    def _interval(self, name: str) -> str:
        middle, low, high = (self.measured[f"{name}{end}"] for end in ("", "_low", "_high"))
        return f"{middle:.2f} (95 % interval {low:.2f} to {high:.2f})"

    __repr__ = __str__

    def evaluate(self, images: Any, labels: Sequence[int] | None = None) -> dict[str, Any]:
        """Measure the student beside its teacher.

        Args:
            images: As for :func:`netgraft.distill`, or the name of a data set, whose test partition is taken. Classes
                of a folder or a data set with names are matched to the teacher's by name.
            labels: Class of each image, by its position among the teacher's; those that the images come with if None.

        Returns:
            ``images``, how many; ``agreement`` of both in percent; with labels also ``top1`` and ``teacher_top1`` in
            percent, and ``gap``.

        Raises:
            RequestError: There are no images, or classes that the teacher doesn't know.
        """
        asked = self._image_set(images, labels)
        expected, classes = predictions(self.teacher, asked, self.data_config, SilentReporter())
        logits, _ = predictions(self.student, asked, self.data_config, SilentReporter())
        figures = {"images": len(asked), "agreement": agreement(logits, expected)}
        if asked.labels is not None:
            own, teachers = top1(logits, classes), top1(expected, classes)
            figures |= {"top1": own, "teacher_top1": teachers, "gap": teachers - own}
        return figures

    def predict(self, images: Any) -> list[Prediction]:
        """Name the class of each image.

        Args:
            images: As for :func:`netgraft.distill`.

        Raises:
            RequestError: There are none, or something else came.
        """
        logits, _ = predictions(self.student, self._image_set(images, None), self.data_config, SilentReporter())
        names = label_names(self.model)
        confidences, positions = logits.softmax(1).max(1)
        return [
            Prediction(position, names.get(position, str(position)), confidence)
            for position, confidence in zip(positions.tolist(), confidences.tolist(), strict=True)
        ]

    def _image_set(self, images: Any, labels: Sequence[int] | None) -> ImageSet:
        if isinstance(images, str | Path) and labels is None:
            images = open_data(str(images)).test_or_all()
        if isinstance(images, ImageSet):
            return match_classes(images, self.model, name="the student").images
        found, own = pictures(images)
        if not found:
            raise RequestError("there are no images to answer; give at least one")
        known = own if labels is None else labels
        if known is not None and len(known) != len(found):
            raise RequestError(f"got {len(found):,} images with {len(known):,} labels; give each image one")
        return ImageSet("images", len(found), PictureStore(found), None if known is None else tuple(map(int, known)))

    def save(self, folder: str | Path) -> None:
        """Write a student folder: timm's own format where every adapter folded; see :mod:`netgraft.models.students`.

        A model card, ``README.md``, says what is known of it.

        Raises:
            RunError: The folder can't be written.
        """
        save_student(
            Path(folder),
            self.student,
            self.model,
            cuts=self.pairing.student.names[:-1],
            data_config=self.data_config,
            known={
                **compared_sizes(self.teacher, self.student, self.data_config),
                "teacher": self.teacher_name,
                "images": self.images,
                "agreement": self.measured.get("agreement"),
                "measured_on": self.measured.get("held_out_images"),
            },
        )

    def export(
        self,
        path: str | Path,
        *,
        to: str = "onnx",
        with_preprocessing: bool = False,
        images: Any = (),
        license: str | None = None,
    ) -> Exported:
        """Write the student into one file that runs without netgraft, and prove it, as ``netgraft export`` does.

        Args:
            path: Of the file, which must not exist.
            to: ``onnx``, ``pt2``, ``openvino`` or ``litert``.
            with_preprocessing: Whether scaling and normalisation stand in the file.
            images: Photographs to prove it on besides seeded images, as for :func:`netgraft.distill`; those that the
                student learned from, for instance.
            license: Of the weights, to be noted in the file.

        Returns:
            The file, what was proven, and ``latencies()`` beside PyTorch's.

        Raises:
            RequestError: As for :func:`netgraft.export`.
            RunError: Likewise.
        """
        return export(
            self.student,
            path,
            to=to,
            with_preprocessing=with_preprocessing,
            data_config=self.data_config,
            images=pictures(images)[0],
            license=license,
        )

    def export_int8(
        self,
        path: str | Path,
        *,
        calibration: Any,
        held_out: Any = (),
        max_drop: float | None = None,
        train_steps: int = 0,
        with_preprocessing: bool = False,
        license: str | None = None,
    ) -> ExportedInt8:
        """Write the student into one ONNX file in 8 bits, as ``netgraft export --int8`` does.

        Args:
            path: As for :meth:`export`.
            calibration: Photographs that say how large activations become; no labels. Those that the student learned
                from will do.
            held_out: Others, on which the agreement with the float student is measured; those of the calibration if
                empty.
            max_drop: Points of agreement that may be lost: the most sensitive layers then stay in float.
            train_steps: Of distillation through fake quantisation in front, on views of ``calibration``.
            with_preprocessing: As for :meth:`export`.
            license: Likewise.

        Raises:
            RequestError: As for :func:`netgraft.exporting.export.export_int8`.
            RunError: Likewise.
        """
        return export_int8(
            self.student,
            path,
            calibration=pictures(calibration)[0],
            held_out=pictures(held_out)[0],
            max_drop=max_drop,
            train_steps=train_steps,
            with_preprocessing=with_preprocessing,
            data_config=self.data_config,
            license=license,
        )

    @property
    def _between_rounds(self) -> tuple[int, float]:
        """Steps and seconds of training that the derivation took before there was this student."""
        derived = self.derivation
        return (0, 0.0) if derived is None else (derived.recovery_steps, derived.recovery_seconds)

    def facts(self) -> dict[str, Any]:
        """Return what a result file says of the student and of its training; all of it can be written as JSON."""
        return {
            "inherited_blocks": self.pairing.inherited,
            "left_out": list(self.pairing.left_out),
            "conversions": self.pairing.conversions,
            "folded_into": list(self.folding.folded),
            "kept_adapters": {str(place): reason for place, reason in self.folding.kept.items()},
            "kept_adapter_parameters": sum(parameters(self.folding.student[place]) for place in self.folding.kept),
            "opens_with_timm": self.plain and opens_with_timm(self.model, self.data_config),
            "steps": self.trained.steps + self._between_rounds[0],
            "train_seconds": round(self.trained.seconds + self._between_rounds[1], 2),
            "frozen_seconds": round(self.trained.frozen_seconds, 2),
            "computed_in": self.trained.precision,
            "teacher_digest": self.teacher_digest,
            "student_digest": state_digest(self.student),
        }


Distilled = DistillationResult
"""The name that this class had at first, for programs written then."""
