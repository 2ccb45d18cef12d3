"""A distillation that can begin: what ``netgraft distill`` says, trains, writes and measures."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from timm.data import resolve_model_data_config
from torch import nn

from netgraft.data.image_set import DataSource, ImageSet
from netgraft.data.subsets import FewShotSubset
from netgraft.distillation import Distillation, DistillationResult, new_layers
from netgraft.evaluation.class_matching import MatchedData
from netgraft.evaluation.comparison import chance_warning, compare
from netgraft.evaluation.metrics import macs
from netgraft.files import write_text
from netgraft.jobs.selection import BestOnTest
from netgraft.jobs.thumbnails import write_thumbnails
from netgraft.methods.method import About
from netgraft.models.card import CARD
from netgraft.models.creation import class_count
from netgraft.modules import parameters
from netgraft.options import asked, declared, held, recorded, shown
from netgraft.progress import ProgressReporter
from netgraft.training.identity import VERSION, described, fingerprint
from netgraft.training.runner import Runner

if TYPE_CHECKING:
    from netgraft.jobs.distill import DistillJob


@dataclass(eq=False)
class PreparedDistillation:
    """A distillation that can begin.

    Attributes:
        job: What was asked for.
        source: Images.
        matched: Training and test images, with the teacher's classes as labels.
        subset: Which images the student learns from.
        about: Facts about the method.
        distillation: Everything decided.
    """

    job: DistillJob
    source: DataSource
    matched: MatchedData
    subset: FewShotSubset
    about: About
    distillation: Distillation
    _result: DistillationResult | None = None
    _selection: BestOnTest | None = None

    @property
    def runner(self) -> Runner:
        """Trains."""
        return self.distillation.runner

    @property
    def timed_model(self) -> nn.Module:
        """The teacher."""
        return self._models[0]

    @property
    def test(self) -> ImageSet | None:
        """Images that took no part, with labels or without; None where there are none."""
        return None if self.matched.test is None else self.matched.test.images

    @property
    def name(self) -> str:
        """Of the folder under ``runs/``, where none is asked for."""
        job, subset = self.job, self.subset
        size = f"{subset.shots}shot" if subset.shots else f"{len(subset.indices)}images"
        selected = "" if job.select == "last" else f"-{job.select}"
        drawn = "" if job.subset_seed in {None, job.seed} else f"-subset{job.subset_seed}"
        front = f"{self.source.name}-{self._student}-{size}-{job.method}-{job.preset}{selected}"
        return in_a_path(f"{front}{self._asked_besides}{drawn}", f"-seed{job.seed}")

    @property
    def _asked_besides(self) -> str:
        """What else was asked for that makes another student, as a part of the folder's name."""
        known, values = declared(type(self.job)), held(self.job)
        asked = {name: values[name] for name in NAMED if values[name] != known[name].default}
        if "teacher" in asked and asked["teacher"] in self._student:
            del asked["teacher"]
        asked |= self.job.settings
        # a number of images, which may be a part, is a whole number all the same
        whole = {name: int(value) for name, value in asked.items() if isinstance(value, float) and value.is_integer()}
        return "".join(f"-{name}={shown(value)}" for name, value in {**asked, **whole}.items())

    @cached_property
    def config(self) -> dict[str, Any]:
        """What was asked for, with a fingerprint of everything that decides the result."""
        selection = {} if self.job.select == "last" else {"select": self.job.select, "looks": self.job.looks}
        class_map = {} if self.matched.class_map is None else {"class_map": str(self.job.class_map)}
        held_out = {"hold_out": self.job.hold_out} if self.job.hold_out else {}
        weights = {} if self.job.student_weights is None else {"student_weights": self.job.student_weights}
        own = self._fingerprint
        # what the map says, wherever it lies; how many images are held back, whether as a part or a number
        besides = {
            **selection,
            **({"class_map": self.matched.class_map} if class_map else {}),
            **({"hold_out": len(self.test or ())} if held_out else {}),
        }
        return {
            "fingerprint": fingerprint(run=own, **besides) if besides else own,
            "identity_version": VERSION,
            "data": self.source.name,
            "teacher": self.job.teacher_name(self.source),
            "student": self._student,
            **weights,
            **recorded(self.job),
            "settings": dict(self.job.settings),
            "options": {name: value for name, value in asked(self.job).items() if name not in WHEREABOUTS},
            **self._start,
            "labels": f"{LABELS_IN_WORDS[self._label_source]}: {self._track} track",
            "subset": self.subset.digest,
            **selection,
            **class_map,
            **held_out,
        }

    @property
    def _student(self) -> str:
        """Name of the student, for people and folders."""
        return self.job.student_name(self.source)

    @property
    def _fingerprint(self) -> str:
        return self.distillation.fingerprint

    @property
    def _start(self) -> dict[str, Any]:
        """What the configuration says of the views and of how the student starts."""
        return {
            "views": str(self.distillation.views.policy),
            "init": self.distillation.pairing.init,
            "blocks": len(self.distillation.pairing),
        }

    @property
    def notes(self) -> Sequence[str]:
        """Warnings, subset, what it will be measured on, and plan."""
        kept = self.distillation.notes if self.distillation.pairing.init == "kept" else ()
        return [*self._warnings, *kept, str(self.subset), *self._measures, *self.distillation.plan.lines()]

    @property
    def _measures(self) -> list[str]:
        """What measures the student where no labels do."""
        job, test = self.job, self.test
        if test is None:
            return [NOTHING_MEASURED.format(len(self.subset.indices))]
        if test.labels is not None:
            return []
        if job.eval_data is not None or self.source.test is not None:
            which = f"the {len(test):,} images of {test.name}, which have no labels"
        elif job.hold_out:
            which = f"{len(test):,} images that are held out"
        else:
            which = f"{len(test):,} images that are not among the few"
        return [f"agreement with the teacher will be measured on {which}"]

    @property
    def _warnings(self) -> list[str]:
        """That the protocol is broken where it is, and that classes may be matched wrongly where they may."""
        selected = [] if self.job.select == "last" else [SELECTED_WARNING]
        return [*selected, *self._of_sizes, *self.matched.warnings, *self.source.remarks]

    @property
    def _models(self) -> tuple[nn.Module, nn.Module | None]:
        """Teacher and student; None where the student isn't derived yet."""
        return self.distillation.teacher, self.distillation.model

    @cached_property
    def _of_sizes(self) -> list[str]:
        """A warning where the student is no smaller than its teacher, or takes no less to compute."""
        teacher, student = self._models
        if student is None:
            return []
        size = tuple(resolve_model_data_config(teacher)["input_size"])
        costs = {
            "parameters": (parameters(student), parameters(teacher)),
            "multiply-accumulates": (macs(student, size), macs(teacher, size)),
        }
        larger = [f"{own:,} {what} against {its:,}" for what, (own, its) in costs.items() if own >= its]
        if not larger:
            return []
        return [
            f"warning: the student is no smaller than its teacher: {' and '.join(larger)}; give a smaller --student, "
            "or --keep macs=0.5 to have one derived"
        ]

    def begin(self, folder: Path) -> None:
        """Write the subset, and the plan for people."""
        prepared = self.distillation
        self.subset.save(folder / "subset.json")
        text = f"{prepared.plan}\nviews: {prepared.views.policy}\n{prepared.pairing}\n"
        write_text(folder / "plan.txt", text)

    def train(self, folder: Path, *, resume: bool, reporter: ProgressReporter, stop: Callable[[], bool] | None) -> None:
        """Train the student and fold its adapters, once it is sure that it can be measured."""
        self._read_held_out(reporter)
        self._carry_out(folder, resume=resume, reporter=reporter, stop=stop)

    def _read_held_out(self, reporter: ProgressReporter) -> None:
        """Decode images that nobody has asked for by name: a broken one must not end a run that has been trained.

        Raises:
            RequestError: One is broken; says which.
        """
        if self.test is None or self.job.eval_data is not None or self.source.test is not None:
            return
        for number in reporter.track(range(len(self.test)), total=len(self.test), name="reading images to measure on"):
            self.test.load(number)

    def _carry_out(
        self, folder: Path, *, resume: bool, reporter: ProgressReporter, stop: Callable[[], bool] | None
    ) -> None:
        """Train the student and fold its adapters."""
        if self.job.select == "last":
            self._result = self.distillation.run(folder=folder, resume=resume, reporter=reporter, stop=stop)
            return
        assert self.test is not None, "checked before"
        selection = BestOnTest(self.distillation, self.test, self.job.looks, folder=folder, resume=resume)
        trained = self.distillation.train(
            folder=folder, resume=resume, reporter=reporter, stop=stop, after_step=selection
        )
        selection.restore()
        self._result, self._selection = self.distillation.deploy(trained), selection

    def finish(self, folder: Path, reporter: ProgressReporter) -> dict[str, Any]:
        """Save the student and compare it with the teacher on the test images."""
        assert self._result is not None, "train() comes first"
        distilled, prepared = self._result, self.distillation
        distilled.save(folder / "student")
        # that of the finished run says more
        (folder / "student" / CARD).unlink()
        compared = compare(
            prepared.teacher,
            distilled.student,
            self.test,
            distilled.data_config,
            reporter,
            ensemble=distilled.plan.ensemble,
            cache=self.job.keep_answers,
        )
        if self.test is not None:
            write_thumbnails(folder, self.test, [row["position"] for row in compared["differ_most"]])
        return {
            **distilled.facts(),
            **compared,
            **self._matching(compared["teacher_top1"], reporter),
            "subset_seed": self.subset.seed,
            "shots": self.subset.shots,
            "images": len(self.subset.indices),
            "category": self.about.category,
            "track": self._track,
            "label_source": self._label_source,
            "policy": described(prepared.views.policy),
            "start": {
                "init": prepared.pairing.init,
                "inherited_blocks": prepared.pairing.inherited,
                "left_out": list(prepared.pairing.left_out),
                **({"new_layers": new} if (new := new_layers(prepared.model, prepared.pairing)) else {}),
            },
            **({"notes": list(prepared.notes)} if prepared.pairing.init == "kept" else {}),
            **self._selected(),
            "plan": str(prepared.plan),
            "phases": [phase.name for phase in prepared.plan.phases],
        }

    def _matching(self, teacher_top1: float | None, reporter: ProgressReporter) -> dict[str, Any]:
        """How the test images' classes were matched; and a warning where the teacher doesn't seem to know them."""
        test, warnings = self.matched.test, [*self._of_sizes, *self.matched.warnings, *self.source.remarks]
        if test is None or teacher_top1 is None:
            return {"warnings": warnings}
        classes = class_count(self.distillation.teacher)
        if warning := chance_warning("the teacher", test.images, teacher_top1, classes):
            reporter.note(warning)
            warnings = [*warnings, warning]
        return {"matched_by": test.by, "classes_seen": test.classes_seen, "warnings": warnings}

    def _selected(self) -> dict[str, Any]:
        """How the student was chosen."""
        if self._selection is None:
            return {"selection": "none: last iterate, test set read once"}
        seen = self._selection.seen
        return {
            "selection": f"best of {len(seen)} looks at the test set in the last phase",
            "selected_on": "test",
            "selected_step": self._selection.best,
            "looked_top1": {str(step): seen[step] for step in sorted(seen)},
        }

    @property
    def _track(self) -> str:
        return "labeled" if self.job.labeled else "unlabeled"

    @property
    def _label_source(self) -> str:
        """Whose labels the method learns from."""
        if self.about.labels == "none":
            return "none"
        return "real" if self.job.labeled else "teacher"


NOTHING_MEASURED = (
    "nothing will be measured: all {:,} images are among the few, and there are no test images; --hold-out 0.2 holds a "
    "part of them back, --eval-data gives others"
)

NAMED = (
    *("teacher", "views", "init", "inherit", "blocks", "criterion", "allocation", "convolutions", "protect", "force"),
    *("image_size", "labeled", "hold_out", "precision", "recovery_steps"),
)
"""Options that make another student, besides those whose values stand in every folder's name."""

LONGEST = 160
"""Characters of a folder's name."""


def in_a_path(front: str, end: str) -> str:
    """Make one name of a folder that any system takes; what is too long is cut, and told apart by its SHA-256."""
    whole = re.sub(r"[^\w.,=+-]", "_", front + end)
    if len(whole) <= LONGEST:
        return whole
    digest = f"-{hashlib.sha256(whole.encode()).hexdigest()[:8]}"
    return whole[: LONGEST - len(digest) - len(end)] + digest + end


SELECTED_WARNING = (
    "warning: the student will be chosen on the test set, so its accuracy there is too good; the result says so, and "
    "compares only with figures that were chosen in the same way"
)

WHEREABOUTS = {"out", "resume", "data_root", "download", "keep_answers", "library", "log"}
"""Options that change where a run lies and how long it takes, and not what comes out."""

LABELS_IN_WORDS = {"none": "none", "real": "real", "teacher": "the teacher's answers"}
