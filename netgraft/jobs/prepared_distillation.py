"""A distillation that can begin: what ``netgraft distill`` says, trains, writes and measures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from netgraft.data.image_set import DataSource, ImageSet
from netgraft.data.subsets import FewShotSubset
from netgraft.distillation import Distillation, DistillationResult
from netgraft.evaluation.class_matching import MatchedData
from netgraft.evaluation.comparison import chance_warning, compare
from netgraft.files import write_text
from netgraft.jobs.selection import BestOnTest
from netgraft.methods.method import About
from netgraft.models.creation import class_count
from netgraft.options import asked, recorded
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
    def test(self) -> ImageSet | None:
        """Test images; None where there are none."""
        return None if self.matched.test is None else self.matched.test.images

    @property
    def name(self) -> str:
        """Of the folder under ``runs/``, where none is asked for."""
        job, subset = self.job, self.subset
        size = f"{subset.shots}shot" if subset.shots else f"{len(subset.indices)}images"
        selected = "" if job.select == "last" else f"-{job.select}"
        drawn = "" if job.subset_seed in {None, job.seed} else f"-subset{job.subset_seed}"
        parts = f"{self.source.name}-{self._student}-{size}-{job.method}-{job.preset}{selected}{drawn}-seed{job.seed}"
        return parts.replace("/", "_")

    @cached_property
    def config(self) -> dict[str, Any]:
        """What was asked for, with a fingerprint of everything that decides the result."""
        selection = {} if self.job.select == "last" else {"select": self.job.select, "looks": self.job.looks}
        class_map = {} if self.matched.class_map is None else {"class_map": str(self.job.class_map)}
        own = self._fingerprint
        # what the map says, wherever it lies
        besides = {**selection, **({"class_map": self.matched.class_map} if class_map else {})}
        return {
            "fingerprint": fingerprint(run=own, **besides) if besides else own,
            "identity_version": VERSION,
            "data": self.source.name,
            "teacher": self.job.teacher_name(self.source),
            "student": self._student,
            **recorded(self.job),
            "settings": dict(self.job.settings),
            "options": {name: value for name, value in asked(self.job).items() if name not in WHEREABOUTS},
            **self._start,
            "labels": f"{LABELS_IN_WORDS[self._label_source]}: {self._track} track",
            "subset": self.subset.digest,
            **selection,
            **class_map,
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
        """Warnings, subset and plan."""
        return [*self._warnings, str(self.subset), str(self.distillation.plan)]

    @property
    def _warnings(self) -> list[str]:
        """That the protocol is broken where it is, and that classes may be matched wrongly where they may."""
        return [*([] if self.job.select == "last" else [SELECTED_WARNING]), *self.matched.warnings]

    def begin(self, folder: Path) -> None:
        """Write the subset, and the plan for people."""
        prepared = self.distillation
        self.subset.save(folder / "subset.json")
        text = f"{prepared.plan}\nviews: {prepared.views.policy}\n{prepared.pairing}\n"
        write_text(folder / "plan.txt", text)

    def train(self, folder: Path, *, resume: bool, reporter: ProgressReporter, stop: Callable[[], bool] | None) -> None:
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
        compared = compare(
            prepared.teacher,
            distilled.student,
            self.test,
            distilled.data_config,
            reporter,
            ensemble=distilled.plan.ensemble,
            cache=self.job.keep_answers,
        )
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
            },
            **self._selected(),
            "plan": str(prepared.plan),
            "phases": [phase.name for phase in prepared.plan.phases],
        }

    def _matching(self, teacher_top1: float | None, reporter: ProgressReporter) -> dict[str, Any]:
        """How the test images' classes were matched; and a warning where the teacher doesn't seem to know them."""
        test, warnings = self.matched.test, self.matched.warnings
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


SELECTED_WARNING = (
    "warning: the student will be chosen on the test set, so its accuracy there is too good; the result says so, and "
    "compares only with figures that were chosen in the same way"
)

WHEREABOUTS = {"out", "resume", "data_root", "download", "keep_answers", "library"}
"""Options that change where a run lies and how long it takes, and not what comes out."""

LABELS_IN_WORDS = {"none": "none", "real": "real", "teacher": "the teacher's answers"}
