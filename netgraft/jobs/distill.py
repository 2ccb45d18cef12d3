"""``netgraft distill``: from names and options to a run folder with a student."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import ClassVar

from timm.data import resolve_model_data_config
from torch import nn

from netgraft.data.image_set import DataSource, ImageSet
from netgraft.data.sources import data_root, open_data
from netgraft.data.subsets import FewShotSubset, hold_out
from netgraft.data.view_policy import find_policy
from netgraft.deriving.anatomy import Anatomy
from netgraft.deriving.budget import Amount, parse_budget
from netgraft.deriving.options import DerivingOptions
from netgraft.deriving.twins import anatomy_of_wider_twin
from netgraft.distillation import prepare
from netgraft.errors import RequestError
from netgraft.evaluation.class_matching import MatchedData, read_class_map
from netgraft.evaluation.teacher_answers import check_answers
from netgraft.jobs.job import Job
from netgraft.jobs.options import DistillOptions
from netgraft.jobs.prepared_derivation import AskedDerivation, PreparedDerivation
from netgraft.jobs.prepared_distillation import PreparedDistillation
from netgraft.methods.method import Budget
from netgraft.methods.registry import choose, find
from netgraft.models.creation import PRETRAINED, build_kept_student, build_student, class_count
from netgraft.models.heads import replace_head
from netgraft.models.loading import is_folder, load_teacher
from netgraft.models.students import why_not_made_by_name

DEFAULT_MODELS = {"digits": ("digits_vgg7_bn", "digits_vgg7_bn_half")}
"""Teacher and student that come with a data set."""

DEFAULT_SHOTS = 10

DEFAULT_KEEP = "macs=0.5"
"""Where neither a student nor a budget is given, and the data set comes without a pair."""


MOST_MEASURED = 2000
"""Images that measure a student without being asked for: of so many an agreement of 90 % is known to 1.3 points."""


@dataclass(frozen=True)
class Start:
    """How a student starts.

    Attributes:
        init: As :class:`netgraft.grafting.options.PairingOptions` calls it.
        anatomy: Of the teacher, where it had to be taken apart to know.
    """

    init: str
    anatomy: Anatomy | None = None

    def known_to(self, budget: Budget) -> Budget:
        """Return what a preset may depend on, with how the student starts."""
        return replace(budget, solved=self.init == "solve", kept=self.init == "keep")


@dataclass(frozen=True)
class DistillJob(DistillOptions, Job):
    """``netgraft distill``."""

    command: ClassVar[str] = "distill"

    @property
    def hyperparameters(self) -> Mapping[str, str]:
        """Those that were asked for, over the preset's."""
        return self.settings

    def prepare(self) -> PreparedDistillation:
        """Open the images, load the models, cut, pair and plan. Raises like :meth:`Job.prepare`."""
        source = self._opened(self.data)
        test = self._test(source)
        self._check_selection(test)
        held_out = self._held_out(source, test)
        subset = self._subset(source, held_out)
        if test is None:
            test = _took_no_part(source.train, subset, held_out)
        teacher = self.teacher_model(source)
        named = None if self.class_map is None else read_class_map(self.class_map)
        source, matched = self._matched(source, test, teacher, named)
        few = source.train.pictures(subset.indices)
        check_answers(teacher, few, resolve_model_data_config(teacher))
        about = find(self.method).about
        classes = source.train.classes or class_count(teacher)
        budget = Budget(len(subset.indices), classes)
        student, fresh = (None, ()) if self.derives(source) else self._student_model(source, teacher)
        start = self.start(source, teacher, student, choose(self.method, self.preset, budget, self.settings).init)
        chosen = choose(self.method, self.preset, start.known_to(budget), self.settings)
        policy = chosen.views if self.views is None else find_policy(self.views)
        if not source.hflip:
            policy = replace(policy, hflip=0.0)
        if self.labeled:
            policy = replace(policy, mixup=0.0, cutmix=0.0)
        labels = self._labels(replace(source, train=matched.train.images), subset)
        self._check_given(student)
        pairing = replace(self.pairing, init=start.init)
        if student is None or start.init == "solve":
            derivation = AskedDerivation(
                teacher,
                few,
                labels,
                policy,
                chosen.method,
                self._runner(),
                () if student is not None else self.budget(),
                self.pairing if student is None else pairing,
                self.deriving,
                twin=student,
                anatomy=start.anatomy,
            )
            prepared = PreparedDerivation(self, source, matched, subset, about, asked=derivation)
            self._check_can_be_saved(teacher if student is None else student, teacher)
            return prepared
        distillation = prepare(
            teacher,
            student,
            few,
            method=chosen.method,
            views=policy,
            runner=self._runner(),
            labels=labels,
            fresh=fresh,
            **vars(pairing),
        )
        self._check_can_be_saved(student, teacher)
        return PreparedDistillation(self, source, matched, subset, about, distillation)

    def _matched(
        self, source: DataSource, test: ImageSet | None, teacher: nn.Module, class_map: Mapping[str, int] | None
    ) -> tuple[DataSource, MatchedData]:
        """Match the classes; folders that aren't the teacher's classes are none where nobody asks for classes."""
        match = partial(MatchedData.of, test=test, model=teacher, name=self.teacher_name(source), class_map=class_map)
        try:
            return source, match(source.train)
        except RequestError:
            if self.images is None or self.labeled or class_map is not None:
                raise
            folders = source.train.classes
            plain = replace(source.train, labels=None, classes=None, class_names=None)
            matched = match(plain)
            remark = (
                f"the {folders:,} folders of {source.name} are none of the teacher's classes: all {len(plain):,} "
                "images are taken alike"
            )
            return replace(source, train=plain, remarks=(*source.remarks, remark)), matched

    def _check_can_be_saved(self, model: nn.Module, teacher: nn.Module) -> None:
        """Refuse what the run would train for nothing: a student that no name makes again."""
        if reason := why_not_made_by_name(model, resolve_model_data_config(teacher)):
            raise RequestError(
                f"expected a model that its name makes again, got one whose student couldn't be opened: {reason}; "
                "register it with timm under a name of its own (timm.models.register_model), or distill in Python"
            )

    def _check_given(self, student: nn.Module | None) -> None:
        """Refuse options that say how a student is derived where one is given."""
        if student is None:
            return
        asked = {
            "--criterion, --allocation, --convolutions, --rounds or --recovery-steps": self.deriving
            != DerivingOptions()
        }
        asked |= {f"--{name}": getattr(self, name) is not None for name in ("protect", "force", "library")}
        for flags in (flags for flags, given in asked.items() if given):
            raise RequestError(
                f"a student that is given by its name isn't derived and takes no {flags}; leave them out, or give "
                "--keep instead of --student"
            )

    def derives(self, source: DataSource) -> bool:
        """Whether the student is made of the teacher. Raises RequestError where it is named too, or has weights."""
        if self.keep is not None and self.student is not None:
            raise RequestError(
                f"give --student {self.student}, or --keep {self.keep} to have a student derived, not both"
            )
        derives = self.keep is not None or (self.student is None and source.name not in DEFAULT_MODELS)
        if derives and self.student_weights is not None:
            raise RequestError(
                "a derived student gets its weights from the teacher and takes no --student-weights; leave them out, "
                "or give --student"
            )
        return derives

    def start(self, source: DataSource, teacher: nn.Module, student: nn.Module | None, of_preset: str) -> Start:
        """Say how the student starts where that is left open: as it is, as the preset wants it, or in closed form.

        Args:
            source: Of the images.
            teacher: Loaded.
            student: Built; None where it is derived from the teacher.
            of_preset: The start that belongs to the preset.
        """
        init = self.pairing.init
        if init != "auto":
            return Start(init)
        if student is None:
            return Start("solve")
        if self.student_weights is not None or is_folder(self.student_name(source)):
            return Start("keep")
        if of_preset != "auto":
            return Start(of_preset)
        anatomy = anatomy_of_wider_twin(teacher, student, resolve_model_data_config(teacher)["input_size"])
        return Start("auto" if anatomy is None else "solve", anatomy)

    def budget(self) -> tuple[Amount, ...]:
        """Return what a derived student may cost. Raises RequestError where that can't be read."""
        return parse_budget(DEFAULT_KEEP if self.keep is None else self.keep)

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
        teacher = self.teacher_model(source)
        return teacher, self._student_model(source, teacher)[0]

    def _student_model(self, source: DataSource, teacher: nn.Module) -> tuple[nn.Module, tuple[nn.Module, ...]]:
        """Return the student, and the modules of a new head."""
        name, weights, init = self.student_name(source), self.student_weights, self.pairing.init
        if is_folder(name):
            if init == "random" or weights is not None:
                asked = "not a random start" if weights is None else "and no others"
                flag = "--init" if weights is None else "--student-weights"
                raise RequestError(f"{name} brings weights along, {asked}; leave {flag} out to keep them")
            student = load_teacher(name)
            if init not in {"auto", "keep"} or class_count(student) == class_count(teacher):
                return student, ()
            config = resolve_model_data_config(teacher)
            return student, replace_head(student, class_count(teacher), config, seed=self.seed)
        if weights is not None:
            if init not in {"auto", "keep"}:
                raise RequestError(
                    f"--init {init} would replace the weights of --student-weights; leave one of both out"
                )
            found = weights if weights == PRETRAINED else str(self._found(Path(weights)))
            student, head = build_kept_student(name, found, teacher=teacher, seed=self.seed)
            return student, tuple(student.get_submodule(part) for part in head)
        if init == "keep":
            raise RequestError(
                f"--init keep needs a student with weights, not {name} alone; give --student-weights, or a folder, or "
                "leave --init out"
            )
        return build_student(name, teacher=teacher, seed=self.seed), ()

    def _found(self, weights: Path) -> Path:
        """Look for a weights file among the named data sets where it isn't here."""
        named = (self.data_root or data_root()) / weights
        return named if not weights.exists() and named.exists() else weights

    def teacher_model(self, source: DataSource) -> nn.Module:
        """Load the teacher. Raises RequestError where there is no such model or weights."""
        weights = None if self.teacher_weights is None else self._found(self.teacher_weights)
        return load_teacher(
            self.teacher_name(source), weights=weights, image_size=self.image_size, num_classes=self.num_classes
        )

    def teacher_name(self, source: DataSource) -> str:
        """Return the teacher's name, that of the data set where none was given. Raises RequestError if it has none."""
        return self._name(source, self.teacher, 0, "--teacher")

    def student_name(self, source: DataSource) -> str:
        """Return the student's name, that of the data set where none was given. Raises RequestError if it has none."""
        return self._name(source, self.student, 1, "--student")

    def _name(self, source: DataSource, given: str | None, which: int, flag: str) -> str:
        name = given or DEFAULT_MODELS.get(source.name, (None, None))[which]
        if name is None:
            raise RequestError(f"{source.name} has no default models; give {flag}, a timm model's name")
        return name

    def _test(self, source: DataSource) -> ImageSet | None:
        if self.eval_data is None:
            return source.test
        return self._opened(self.eval_data).test_or_all()

    def _opened(self, data: str) -> DataSource:
        return open_data(data, root=self.data_root, download=self.download, skip_broken=self.skip_broken)

    def _held_out(self, source: DataSource, test: ImageSet | None) -> tuple[int, ...]:
        """Return the positions of the training images that were asked to be held back."""
        if not self.hold_out:
            return ()
        if test is not None:
            raise RequestError(
                f"--hold-out measures a student where there are no test images, but {test.name} has {len(test):,}; "
                "leave --hold-out out"
            )
        return hold_out(len(source.train), self.hold_out, dataset=source.name)

    def _subset(self, source: DataSource, held_out: tuple[int, ...]) -> FewShotSubset:
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
            if taken := set(held_out) & set(subset.indices):
                raise RequestError(
                    f"{self.subset} has {len(taken)} of the images that --hold-out {self.hold_out:g} holds back; leave "
                    "--hold-out out: images that are in no subset measure the student anyway"
                )
            return subset
        if self.images is not None:
            return FewShotSubset.draw_unlabeled(
                len(images), images=self.images, seed=seed, dataset=source.name, held_out=held_out
            )
        shots = DEFAULT_SHOTS if self.shots is None else self.shots
        labels = source.train_labels("so there are no shots; give --images N")
        return FewShotSubset.draw(labels, shots=shots, seed=seed, dataset=source.name, held_out=held_out)


def _took_no_part(images: ImageSet, subset: FewShotSubset, held_out: tuple[int, ...]) -> ImageSet | None:
    """Return images that the student hasn't seen, or None; without labels, since the teacher may have learned them."""
    positions = held_out or subset.others(MOST_MEASURED)
    return images.part(positions, f"{images.name}/held-out").without_labels() if positions else None
