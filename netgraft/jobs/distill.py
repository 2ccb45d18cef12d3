"""``netgraft distill``: from names and options to a run folder with a student."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from netgraft.data.image_set import DataSource, ImageSet
from netgraft.data.sources import data_root, open_data
from netgraft.data.subsets import FewShotSubset
from netgraft.data.view_policy import find_policy
from netgraft.distillation import Distillation, DistillationResult, prepare
from netgraft.errors import RequestError
from netgraft.evaluation.comparison import check_classes, compare
from netgraft.files import write_text
from netgraft.jobs.job import Job
from netgraft.jobs.options import DistillOptions
from netgraft.jobs.selection import BestOnTest
from netgraft.methods.method import About, Budget
from netgraft.methods.registry import choose, find
from netgraft.models.creation import build_student, class_count, load_teacher
from netgraft.options import recorded
from netgraft.progress import ProgressReporter
from netgraft.training.identity import VERSION, described, fingerprint
from netgraft.training.runner import Runner

DEFAULT_MODELS = {"digits": ("digits_vgg7_bn", "digits_vgg7_bn_half")}
"""Teacher and student that come with a data set."""

DEFAULT_SHOTS = 10


@dataclass(frozen=True)
class DistillJob(DistillOptions, Job):
    """``netgraft distill``."""

    def prepare(self) -> PreparedDistillation:
        """Open the images, load the models, cut, pair and plan. Raises like :meth:`Job.prepare`."""
        source = open_data(self.data, root=self.data_root, download=self.download)
        test = self._test(source)
        self._check_selection(test)
        subset = self._subset(source)
        teacher, student = self.models(source)
        for images in (source.train, test):
            check_classes(teacher, self.names(source)[0], images)
        about = find(self.method).about
        budget = Budget(len(subset.indices), class_count(teacher))
        chosen = choose(self.method, self.preset, budget, self.settings)
        policy = chosen.views if self.views is None else find_policy(self.views)
        if not source.hflip:
            policy = replace(policy, hflip=0.0)
        if self.labeled:
            policy = replace(policy, mixup=0.0, cutmix=0.0)
        pairing = replace(self.pairing, init=chosen.init) if self.pairing.init == "auto" else self.pairing
        distillation = prepare(
            teacher,
            student,
            source.train.load_many(subset.indices),
            method=chosen.method,
            views=policy,
            runner=self._runner(),
            labels=self._labels(source, subset),
            **vars(pairing),
        )
        return PreparedDistillation(self, source, test, subset, about, distillation)

    def _check_selection(self, test: ImageSet | None) -> None:
        if self.select == "last":
            return
        if test is None or test.labels is None:
            raise RequestError(
                f"--select {self.select} needs test images with labels to choose on, but {self.eval_data or self.data} "
                "has none; give --eval-data, or leave --select out"
            )
        if self.compute.devices > 1:
            raise RequestError(
                f"--select {self.select} watches one process that trains everything, not {self.compute.devices}; "
                "add --devices 1"
            )

    def _labels(self, source: DataSource, subset: FewShotSubset) -> list[int] | None:
        if not self.labeled:
            return None
        labels = source.train_labels("so there are no labels; leave --labeled out")
        return [labels[index] for index in subset.indices]

    def models(self, source: DataSource) -> tuple[nn.Module, nn.Module]:
        """Load the teacher and build the student. Raises RequestError where there are no such models or weights."""
        teacher_name, student_name = self.names(source)
        weights = self.teacher_weights
        if weights is not None and not weights.exists():
            named = (self.data_root or data_root()) / weights
            weights = named if named.exists() else weights
        teacher = load_teacher(teacher_name, weights=weights, image_size=self.image_size)
        return teacher, build_student(student_name, teacher=teacher, seed=self.seed)

    def names(self, source: DataSource) -> tuple[str, str]:
        """Return the names of teacher and student, those of the data set where none were given.

        Raises:
            RequestError: It has none.
        """
        defaults = DEFAULT_MODELS.get(source.name, (None, None))
        teacher, student = self.teacher or defaults[0], self.student or defaults[1]
        if teacher is None or student is None:
            missing = "--teacher" if teacher is None else "--student"
            raise RequestError(f"{source.name} has no default models; give {missing}, a timm model's name")
        return teacher, student

    def _test(self, source: DataSource) -> ImageSet | None:
        if self.eval_data is None:
            return source.test
        return open_data(self.eval_data, root=self.data_root, download=self.download).test_or_all()

    def _subset(self, source: DataSource) -> FewShotSubset:
        images = source.train
        seed = self.seed if self.subset_seed is None else self.subset_seed
        if sum(given is not None for given in (self.shots, self.images, self.subset)) > 1:
            raise RequestError("give one of --shots, --images and --subset")
        if self.subset is not None:
            subset = FewShotSubset.load(self.subset)
            if (subset.dataset, subset.population) != (source.name, len(images)):
                raise RequestError(
                    f"{self.subset} was drawn from {subset.dataset} ({subset.population} images), not from "
                    f"{source.name} ({len(images)}); give the data that it belongs to"
                )
            return subset
        if self.images is not None:
            return FewShotSubset.draw_unlabeled(len(images), images=self.images, seed=seed, dataset=source.name)
        shots = DEFAULT_SHOTS if self.shots is None else self.shots
        labels = source.train_labels("so there are no shots; give --images N")
        return FewShotSubset.draw(labels, shots=shots, seed=seed, dataset=source.name)


@dataclass(eq=False)
class PreparedDistillation:
    """A distillation that can begin.

    Attributes:
        job: What was asked for.
        source: Images.
        test: Test images; None where there are none.
        subset: Which images the student learns from.
        about: Facts about the method.
        distillation: Everything decided.
    """

    job: DistillJob
    source: DataSource
    test: ImageSet | None
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
    def name(self) -> str:
        """Of the folder under ``runs/``, where none is asked for."""
        job, subset = self.job, self.subset
        size = f"{subset.shots}shot" if subset.shots else f"{len(subset.indices)}images"
        selected = "" if job.select == "last" else f"-{job.select}"
        drawn = "" if job.subset_seed in {None, job.seed} else f"-subset{job.subset_seed}"
        _, student = job.names(self.source)
        parts = f"{self.source.name}-{student}-{size}-{job.method}-{job.preset}{selected}{drawn}-seed{job.seed}"
        return parts.replace("/", "_")

    @cached_property
    def config(self) -> dict[str, Any]:
        """What was asked for, with a fingerprint of everything that decides the result."""
        teacher, student = self.job.names(self.source)
        selection = {} if self.job.select == "last" else {"select": self.job.select, "looks": self.job.looks}
        own = self.distillation.fingerprint
        return {
            "fingerprint": fingerprint(run=own, **selection) if selection else own,
            "identity_version": VERSION,
            "data": self.source.name,
            "teacher": teacher,
            "student": student,
            **recorded(self.job),
            "settings": dict(self.job.settings),
            "views": str(self.distillation.views.policy),
            "init": self.distillation.pairing.init,
            "blocks": len(self.distillation.pairing),
            "labels": f"{LABELS_IN_WORDS[self._label_source]}: {self._track} track",
            "subset": self.subset.digest,
            **selection,
        }

    @property
    def notes(self) -> Sequence[str]:
        """Subset and plan, and that the protocol is broken where it is."""
        warning = [] if self.job.select == "last" else [SELECTED_WARNING]
        return [*warning, str(self.subset), str(self.distillation.plan)]

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
        return {
            **distilled.facts(),
            **compare(
                prepared.teacher,
                distilled.student,
                self.test,
                distilled.data_config,
                reporter,
                ensemble=distilled.plan.ensemble,
                cache=self.job.keep_answers,
            ),
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
        }

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

LABELS_IN_WORDS = {"none": "none", "real": "real", "teacher": "the teacher's answers"}
