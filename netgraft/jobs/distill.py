"""``netgraft distill``: from names and options to a run folder with a student."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from netgraft.data.image_set import DataSource, ImageSet
from netgraft.data.sources import data_root, open_data
from netgraft.data.subsets import FewShotSubset
from netgraft.data.view_policy import find_policy
from netgraft.distillation import prepare
from netgraft.errors import RequestError
from netgraft.evaluation.comparison import check_classes, compare
from netgraft.files import write_text
from netgraft.jobs.job import RunOptions, claim, conclude
from netgraft.methods.method import About, Budget
from netgraft.methods.registry import choose, find
from netgraft.models.creation import build_student, class_count, load_teacher
from netgraft.progress import ProgressReporter, SilentReporter

DEFAULT_MODELS = {"digits": ("digits_vgg7_bn", "digits_vgg7_bn_half")}

"""Teacher and student that come with a data set."""


DEFAULT_SHOTS = 10


@dataclass(frozen=True)
class DistillJob(RunOptions):
    """``netgraft distill``: everything that can be asked for.

    Attributes:
        data: Name or path; see :func:`netgraft.data.sources.open_data`.
        teacher: A timm name or source; the data set's own where there is one.
        student: A timm name; likewise.
        teacher_weights: File for the teacher, sought among the named data sets too; timm's pretrained weights if None.
        shots: Images a class; 10 if neither ``images`` nor ``subset`` is given.
        images: Images in all, without classes.
        subset: A subset file to use instead of drawing one.
        eval_data: Where the test images come from, if not from ``data``.
        method: Name of the method.
        preset: Of the method.
        settings: Hyper-parameters as text, over the preset's.
        views: Name of a view policy instead of the preset's.
        init: ``auto``, ``random`` or ``slice``.
        inherit: ``auto`` or ``none``.
        blocks: How many blocks to merge the pairs to; all of them stay if None.
        labeled: Give the images' labels to the method; views then show one image each.
        subset_seed: Of the drawn subset; ``seed`` if None.
        keep_answers: Folder where the teacher's answers to the test images are kept for other runs; None keeps none.
    """

    data: str = "digits"
    teacher: str | None = None
    student: str | None = None
    teacher_weights: Path | None = None
    shots: int | None = None
    images: int | None = None
    subset: Path | None = None
    eval_data: str | None = None
    method: str = "netgraft"
    preset: str = "default"
    settings: Mapping[str, str] = field(default_factory=dict)
    views: str | None = None
    init: str = "auto"
    inherit: str = "auto"
    blocks: int | None = None
    labeled: bool = False
    subset_seed: int | None = None
    keep_answers: Path | None = None

    def run(self, reporter: ProgressReporter | None = None, stop: Callable[[], bool] | None = None) -> dict[str, Any]:
        """Distill, evaluate, save; return what ``result.json`` holds, in every process.

        Raises:
            RequestError: Something asked for is wrong; nothing has been written.
            RunError: Something failed while running; the last checkpoint is kept.
            InterruptedRunError: ``stop`` said yes; the run is saved.
        """
        started = time.monotonic()
        reporter = reporter or SilentReporter()
        source = open_data(self.data, root=self.data_root, download=self.download)
        test = self._test(source)
        runner = replace(self.runner, seed=self.seed)
        teacher_name, student_name = self._names(source)
        subset = self._subset(source)
        teacher, student = self.models(source)
        for images in (source.train, test):
            check_classes(teacher, teacher_name, images)
        about = find(self.method).about
        preset = choose(self.method, self.preset, Budget(len(subset.indices), class_count(teacher)), self.settings)
        policy = preset.views if self.views is None else find_policy(self.views)
        if not source.hflip:
            policy = replace(policy, hflip=0.0)
        if self.labeled:
            policy = replace(policy, mixup=0.0, cutmix=0.0)
        prepared = prepare(
            teacher,
            student,
            source.train.load_many(subset.indices),
            method=preset.method,
            views=policy,
            init=self.init,
            inherit=self.inherit,
            blocks=self.blocks,
            runner=runner,
            **self._labels(source, subset),
        )
        config = {
            "fingerprint": prepared.fingerprint,
            "data": source.name,
            "teacher": teacher_name,
            "student": student_name,
            "method": self.method,
            "preset": self.preset,
            "settings": dict(self.settings),
            "views": str(prepared.views.policy),
            "init": prepared.pairing.init,
            "inherit": self.inherit,
            "blocks": len(prepared.pairing),
            "labels": self._track(about),
            "subset": subset.digest,
            "seed": self.seed,
            "precision": runner.precision,
            "devices": runner.devices,
        }
        size = f"{subset.shots}shot" if subset.shots else f"{len(subset.indices)}images"
        drawn = "" if self.subset_seed in {None, self.seed} else f"-subset{self.subset_seed}"
        name = f"{source.name}-{student_name}-{size}-{self.method}-{self.preset}{drawn}-seed{self.seed}".replace(
            "/", "_"
        )
        with claim(runner, self.out, name, config, resume=self.resume) as (out, finished):
            if not runner.fabric.is_global_zero:
                reporter = SilentReporter()
            if finished is not None:
                reporter.note(f"{out} is finished; nothing was left to do")
                return finished
            if runner.fabric.is_global_zero:
                subset.save(out / "subset.json")
                write_text(out / "plan.txt", f"{prepared.plan}\nviews: {prepared.views.policy}\n{prepared.pairing}\n")
            reporter.note(str(subset))
            reporter.note(str(prepared.plan))
            distilled = prepared.run(folder=out, resume=self.resume, reporter=reporter, stop=stop)

            def finish() -> dict[str, Any]:
                distilled.save(out / "student")
                return {
                    **config,
                    **distilled.facts(),
                    **compare(
                        teacher,
                        distilled.student,
                        test,
                        distilled.data_config,
                        reporter,
                        ensemble=distilled.plan.ensemble,
                        kept=self.keep_answers,
                    ),
                    "subset_seed": subset.seed,
                    "shots": subset.shots,
                    "images": len(subset.indices),
                    "category": about.category,
                    "selection": "none: last iterate, test set read once",
                    "plan": str(prepared.plan),
                }

            return conclude(runner, out, started, finish)

    def _labels(self, source: DataSource, subset: FewShotSubset) -> dict[str, Any]:
        if not self.labeled:
            return {}
        labels = source.train_labels("so there are no labels; leave --labeled out")
        return {"labels": [labels[index] for index in subset.indices]}

    def _track(self, about: About) -> str:
        """Say which labels the method learns from."""
        track = "labeled track" if self.labeled else "unlabeled track"
        if about.labels == "none":
            return f"none: {track}"
        return f"real: {track}" if self.labeled else f"the teacher's answers: {track}"

    def models(self, source: DataSource) -> tuple[nn.Module, nn.Module]:
        """Load the teacher and build the student. Raises RequestError where there are no such models or weights."""
        teacher_name, student_name = self._names(source)
        weights = self.teacher_weights
        if weights is not None and not weights.exists():
            named = (self.data_root or data_root()) / weights
            weights = named if named.exists() else weights
        teacher = load_teacher(teacher_name, weights=weights, image_size=self.image_size)
        return teacher, build_student(student_name, teacher=teacher, seed=self.seed)

    def _names(self, source: DataSource) -> tuple[str, str]:
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
