"""The jobs behind the command line: from names and options to a run folder with a result."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from timm.data import resolve_model_data_config
from torch import nn

from netgraft.api import prepare
from netgraft.blocks import logits_of
from netgraft.data import DataSource, ImageSet, data_root, open_data
from netgraft.errors import RequestError, RunError
from netgraft.evaluation import answers, check_classes, compare, environment
from netgraft.files import write_text
from netgraft.methods import choose, find
from netgraft.methods.about import About
from netgraft.metrics import eval_mode, macs, parameters, state_digest, top1
from netgraft.models import build_model, build_student, class_count, load_teacher
from netgraft.phases import Budget
from netgraft.reporting import Quiet, Reporter
from netgraft.run_folder import RESULT, RunFolder, default_folder
from netgraft.runner import Runner
from netgraft.students import save_student
from netgraft.subsets import FewShotSubset
from netgraft.training import SupervisedTraining
from netgraft.views import Views, find_policy

DEFAULT_MODELS = {"digits": ("digits_vgg7_bn", "digits_vgg7_bn_half")}
"""Teacher and student that come with a data set."""

DEFAULT_SHOTS = 10


@dataclass(frozen=True, kw_only=True)
class _Job:
    """What every job can be asked for.

    Attributes:
        seed: Of weights, views and batches.
        out: The run folder; ``runs/...`` if None.
        resume: Go on with the run in the folder.
        data_root: Where named data sets lie.
        download: Let torchvision download.
        image_size: Height and width of the images that the teacher takes; the model's own if None.
        runner: Device and precision; its seed is replaced by ``seed``.
    """

    seed: int = 0
    out: Path | None = None
    resume: bool = False
    data_root: Path | None = None
    download: bool = False
    image_size: int | None = None
    runner: Runner = field(default_factory=Runner)


@dataclass(frozen=True)
class DistillJob(_Job):
    """``netgraft distill``: everything that can be asked for.

    Attributes:
        data: Name or path; see :func:`netgraft.data.open_data`.
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

    def run(self, reporter: Reporter | None = None, stop: Callable[[], bool] | None = None) -> dict[str, Any]:
        """Distill, evaluate, save; return what ``result.json`` holds, in every process.

        Raises:
            RequestError: Something asked for is wrong; nothing has been written.
            RunError: Something failed while running; the last checkpoint is kept.
            InterruptedRunError: ``stop`` said yes; the run is saved.
        """
        started = time.monotonic()
        reporter = reporter or Quiet()
        source = open_data(self.data, root=self.data_root, download=self.download)
        test = self._test(source)
        runner = replace(self.runner, seed=self.seed)
        teacher_name, student_name = self._names(source)
        subset = self._subset(source)
        teacher, student = self.models(source)
        for images in (source.train, test):
            check_classes(teacher, teacher_name, images)
        about: About = find(self.method).kind.about  # type: ignore[attr-defined]
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
        out, finished = _claim(runner, self.out, name, config, resume=self.resume)
        if not runner.fabric.is_global_zero:
            reporter = Quiet()
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

        return _conclude(runner, out, started, finish)

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


@dataclass(frozen=True)
class TrainJob(_Job):
    """``netgraft train``: a teacher, from labelled images.

    Attributes:
        model: A timm name.
        data: Name or path; see :func:`netgraft.data.open_data`.
        recipe: Hyper-parameters.
    """

    model: str
    data: str
    recipe: SupervisedTraining = field(default_factory=SupervisedTraining)

    def run(self, reporter: Reporter | None = None, stop: Callable[[], bool] | None = None) -> dict[str, Any]:
        """Train, evaluate, save; return what ``result.json`` holds. Raises like :meth:`DistillJob.run`."""
        started = time.monotonic()
        reporter = reporter or Quiet()
        source = open_data(self.data, root=self.data_root, download=self.download)
        labels = source.train_labels("and a teacher is trained from labelled images; sort them into one a class")
        model = build_model(self.model, seed=self.seed, image_size=self.image_size, num_classes=source.train.classes)
        data_config = resolve_model_data_config(model)
        with eval_mode(model):
            logits_of(model, torch.zeros(1, *data_config["input_size"]))
        runner = replace(self.runner, seed=self.seed)
        count = len(source.train)
        plan = self.recipe.plan(model, count)
        policy = self.recipe.views(count, data_config["input_size"], source.hflip)
        config = {
            "data": f"{source.name} ({count} images)",
            "model": self.model,
            "input_size": list(data_config["input_size"]),
            "recipe": str(self.recipe),
            "views": str(policy),
            "seed": self.seed,
            "precision": runner.precision,
            "devices": runner.devices,
        }
        fingerprint = _digest({**config, "plan": str(plan), "weights": state_digest(model)})
        config["fingerprint"] = fingerprint
        name = f"{source.name}-{self.model}-train-seed{self.seed}".replace("/", "_")
        out, finished = _claim(runner, self.out, name, config, resume=self.resume)
        if not runner.fabric.is_global_zero:
            reporter = Quiet()
        if finished is not None:
            reporter.note(f"{out} is finished; nothing was left to do")
            return finished
        reporter.note(str(plan))
        images = source.train.load_many(range(count))
        views = Views.configured(images, policy, data_config, seed=self.seed, labels=labels)
        trained = runner.run(
            plan, views, folder=out, fingerprint=fingerprint, resume=self.resume, reporter=reporter, stop=stop
        )

        def finish() -> dict[str, Any]:
            save_student(out / "model", model.eval(), model, cuts=(), data_config=data_config)
            result: dict[str, Any] = {
                **config,
                "steps": trained.steps,
                "train_seconds": round(trained.seconds, 2),
                "parameters": parameters(model),
                "macs": macs(model, data_config["input_size"]),
                "weights_digest": state_digest(model),
                "top1": None,
            }
            if source.test is not None:
                logits, labels = answers(model, source.test, data_config, reporter)
                result["top1"] = round(top1(logits, labels), 4)
                result["test_images"] = len(source.test)
            return result

        return _conclude(runner, out, started, finish)


def _claim(
    runner: Runner, out: Path | None, name: str, config: dict[str, Any], *, resume: bool
) -> tuple[Path, dict[str, Any] | None]:
    """Start the processes and let the first take the folder; all learn where it is and what came out already.

    Every process raises what the first one met: none may wait for one that has left.
    """
    fabric = runner.fabric
    claimed: tuple[str, dict[str, Any] | None] = ("", None)
    failure: RequestError | RunError | None = None
    if fabric.is_global_zero:
        try:
            path = out or default_folder(name, resume=resume, fingerprint=config["fingerprint"])
            folder = RunFolder(path)
            folder.claim(config, resume=resume)
            claimed = (str(path), folder.result())
        except (RequestError, RunError) as error:
            failure = error
    claimed, failure = fabric.broadcast((claimed, failure))
    if failure is not None:
        raise failure
    return Path(claimed[0]), claimed[1]


def _conclude(runner: Runner, out: Path, started: float, finish: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Let the first process finish and write the result; return it in all of them."""
    result: dict[str, Any] = {}
    if runner.fabric.is_global_zero:
        result = {
            **finish(),
            **environment(runner),
            "seconds": round(time.monotonic() - started, 2),
            "run_folder": str(out),
        }
        RunFolder(out).write(RESULT, result)
    return runner.fabric.broadcast(result)


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
