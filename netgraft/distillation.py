"""The whole way from a teacher and a few images to a student, in one call."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from netgraft.data.given_images import pictures
from netgraft.data.view_policy import VIEW_POLICIES, ViewPolicy
from netgraft.data.views import Views
from netgraft.derivation import Derivation, Deriver, derive
from netgraft.deriving.twins import anatomy_of_wider_twin
from netgraft.errors import RequestError, RunError
from netgraft.grafting.folding import Folding, fold_with_report
from netgraft.grafting.norm_statistics import measure_statistics
from netgraft.grafting.options import PairingOptions
from netgraft.grafting.pairing import Pairing
from netgraft.grafting.preparation import cut_and_pair
from netgraft.methods.method import Budget, Method
from netgraft.methods.registry import choose, name_of
from netgraft.models.creation import class_count, describe_labels, labels_of
from netgraft.models.own_modules import as_classifier, preprocessing
from netgraft.models.students import opens_with_timm, save_student, why_not_made_by_name
from netgraft.modules import eval_mode, parameters, state_digest
from netgraft.plan import Plan
from netgraft.progress import ProgressReporter, SilentReporter
from netgraft.seeding import derived_seed
from netgraft.splitting.chain import state_of
from netgraft.training.identity import fingerprint
from netgraft.training.runner import Runner, Trained


@dataclass(frozen=True, eq=False)
class DistillationResult:
    """A student and how it came about.

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

    Examples:
        >>> import netgraft, timm
        >>> teacher = netgraft.load_teacher("digits_vgg7_bn")
        >>> student = timm.create_model("digits_vgg7_bn_half")
        >>> images = netgraft.open_data("digits").train.load_many(range(20))
        >>> short = netgraft.NetGraft(block_steps=(1,), join_steps=1)
        >>> result = netgraft.distill(teacher, student, images, method=short)
        >>> result.plain, result.student is student, sorted(result.folding.folded)
        (True, True, ['features.14', 'head.fc'])
        >>> result.save("student")
        >>> type(netgraft.load_student("student")).__name__
        'SmallVGG'
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

    def save(self, folder: str | Path) -> None:
        """Write a student folder: timm's own format where every adapter folded; see :mod:`netgraft.models.students`.

        Raises:
            RunError: The folder can't be written.
        """
        save_student(
            Path(folder),
            self.student,
            self.model,
            cuts=self.pairing.student.names[:-1],
            data_config=self.data_config,
        )

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
            "steps": self.trained.steps,
            "train_seconds": round(self.trained.seconds, 2),
            "frozen_seconds": round(self.trained.frozen_seconds, 2),
            "computed_in": self.trained.precision,
            "teacher_digest": self.teacher_digest,
            "student_digest": state_digest(self.student),
        }


Distilled = DistillationResult
"""The name that this class had at first, for programs written then."""


@dataclass(frozen=True, eq=False)
class Distillation:
    """Everything decided and nothing trained yet: print ``plan`` and ``pairing``, then :meth:`run`.

    ``fingerprint`` is the SHA-256 of everything that decides the result, pixels included. ``notes`` say what becomes of
    the weights that the student came with.
    """

    teacher: nn.Module
    model: nn.Module
    pairing: Pairing
    plan: Plan
    views: Views
    runner: Runner
    data_config: dict[str, Any]
    teacher_digest: str
    fingerprint: str
    derivation: Derivation | None = None
    notes: tuple[str, ...] = ()

    def run(
        self,
        *,
        folder: Path | None = None,
        resume: bool = False,
        reporter: ProgressReporter | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> DistillationResult:
        """Train, fold, and prove that folding changed nothing.

        Runs once: the model that was handed over ends with the folded weights, so ``plan.student``, which shares its
        layers and still has the adapters, is spent.

        Args:
            folder: Where the checkpoint and ``metrics.jsonl`` go; made if it isn't there.
            resume: Go on from the folder's checkpoint.
            reporter: Told what happens.
            stop: Asked before each step whether to save and leave.

        Raises:
            RequestError: The folder's checkpoint is another run's.
            RunError: A loss became NaN, or the disk is full.
            InterruptedRunError: ``stop`` said yes.
        """
        return self.deploy(self.train(folder=folder, resume=resume, reporter=reporter, stop=stop))

    def train(
        self,
        *,
        folder: Path | None = None,
        resume: bool = False,
        reporter: ProgressReporter | None = None,
        stop: Callable[[], bool] | None = None,
        after_step: Callable[[int, int], None] | None = None,
    ) -> Trained:
        """Carry out the plan; the first half of :meth:`run`. Arguments and errors like those of :meth:`Runner.run`."""
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        return self.runner.run(
            self.plan,
            self.views,
            folder=folder,
            fingerprint=self.fingerprint,
            resume=resume,
            reporter=reporter,
            stop=stop,
            after_step=after_step,
        )

    def deploy(self, trained: Trained) -> DistillationResult:
        """Fold what was trained, and prove that folding changed nothing; the second half of :meth:`run`.

        Args:
            trained: What :meth:`train` returned.

        Raises:
            RunError: The teacher has changed, or folding changed the student.
        """
        if state_digest(self.teacher) != self.teacher_digest:
            raise RunError("the teacher's weights have changed during the run; please report this")
        folding = fold_with_report(self.plan.student.eval())
        _prove_folding(self.plan.student, folding, self.data_config["input_size"])
        student: nn.Module = folding.student.eval()
        if not folding.kept:
            self.model.load_state_dict(state_of(folding.student))
            student = self.model.eval()
        return DistillationResult(
            student=student,
            model=self.model,
            plain=not folding.kept,
            pairing=self.pairing,
            plan=self.plan,
            folding=folding,
            trained=trained,
            data_config=self.data_config,
            teacher_digest=self.teacher_digest,
            derivation=self.derivation,
            notes=self.notes,
        )


@torch.no_grad()
def _prove_folding(student: nn.Sequential, folding: Folding, input_size: Sequence[int]) -> None:
    """Compare before and after in float64, where nothing but a mistake can make a difference."""
    probe = torch.randn(2, *input_size, generator=torch.Generator().manual_seed(0)).double()
    before, after = (copy.deepcopy(model).cpu().double().eval()(probe) for model in (student, folding.student))
    scale = before.abs().max().clamp_min(1e-30)
    if not torch.allclose(before / scale, after / scale, atol=1e-4, rtol=0):
        raise RunError("folding the adapters changed the student; please report the two models")


def prepare(
    teacher: nn.Module,
    student: nn.Module,
    images: Any,
    *,
    method: Method | None = None,
    views: ViewPolicy | Views | None = None,
    runner: Runner | None = None,
    data_config: Mapping[str, Any] | None = None,
    labels: Sequence[int] | bool | None = None,
    derivation: Derivation | None = None,
    fresh: Sequence[nn.Module] = (),
    reporter: ProgressReporter | None = None,
    **pairing: Any,
) -> Distillation:
    """Cut, pair, initialise and plan; trains nothing.

    Args:
        teacher: A trained classifier, of timm or any other module that maps images (B, C, H, W) to logits (B, K), or to
            a dictionary or an object with ``logits``; its weights stay as they are.
        student: Another one with as many classes; trained in place. Its classes get the names of the teacher's.
            Weights that it brings are kept with ``init="keep"``, and rates are those of a student that knows something.
            With ``init="auto"`` a smaller twin of the teacher gets the teacher's weights in place of its own, and any
            student the teacher's front blocks where it is built alike; ``notes`` of what is returned say so.
        images: PIL images, paths, a folder, arrays, tensors, or a data set or loader of any of them; see
            :func:`netgraft.data.given_images.pictures`.
        method: Hyper-parameters; NetGraft's default preset if None.
        views: How views are made of the images, or views of them; the default preset's own if None. Another preset's
            views and start are given along with its method.
        runner: Device, precision and seed.
        data_config: Preprocessing in timm's words; wins over the teacher's own. A teacher without any takes images of
            the size of the first one, with values from 0 to 1.
        labels: Class of each image, by its position among the teacher's, or True for those that the data set gives;
            only for methods of the labeled track, and images' own labels are passed over without it.
        derivation: What ``student`` came from, if it was derived.
        fresh: Modules of a student that is kept which start at random, such as a new head; they learn at the whole
            rate.
        reporter: Told what happens where the student's start takes its time, and the notes.
        pairing: Fields of :class:`netgraft.grafting.preparation.PairingOptions`: ``init``, ``inherit``, ``blocks``.

    Raises:
        RequestError: The models can't be cut or paired, or the student can't start as asked.
        TypeError: ``pairing`` names an option that there is not.

    Examples:
        >>> import netgraft, timm
        >>> teacher = netgraft.load_teacher("digits_vgg7_bn")
        >>> student = timm.create_model("digits_vgg7_bn_half")
        >>> images = netgraft.open_data("digits").train.load_many(range(20))
        >>> prepared = netgraft.prepare(teacher, student, images)
        >>> prepared.pairing.init, prepared.plan.steps
        ('solve', 1000)
        >>> prepared = netgraft.prepare(teacher, student, images, init="slice", inherit="none")
        >>> print(prepared.plan.phases[0].name)
        graft block 1
        >>> prepared.plan.steps
        4200
    """
    images, found = pictures(images)
    if not images:
        raise RequestError("there are no images to distill from; give at least one")
    labels = _labels(labels, found)
    options = PairingOptions(**pairing)
    asked, given = options.init, derivation is None
    runner = runner or Runner()
    data_config = preprocessing(teacher, images[0].size, data_config)
    teacher, student = (as_classifier(model, data_config) for model in (teacher, student))
    digest = state_digest(teacher)
    # it learns the teacher's answers, whatever classes its architecture's own weights know
    describe_labels(student, labels_of(teacher))
    anatomy = None
    if derivation is None and options.init == "auto":
        anatomy = anatomy_of_wider_twin(teacher, student, data_config["input_size"])
        options = replace(options, init="auto" if anatomy is None else "solve")
    init = options.init if derivation is None else derivation.init
    budget = Budget(len(images), class_count(teacher), solved=init == "solve", kept=init == "keep")
    default = choose("netgraft", "default", budget)
    method = method or default.method
    made = Views.of(images, views or default.views, data_config, seed=runner.seed, labels=labels)
    measured = measure_statistics(student, _some_of(made)) if init == "keep" else 0
    if derivation is None and options.init == "solve":
        with eval_mode(teacher):
            derivation = Deriver(teacher, made, data_config, anatomy=anatomy, reporter=reporter).like(student)
    # adapters start at random too
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed("adapters", runner.seed))
        if derivation is None:
            paired = cut_and_pair(teacher, student, options, input_size=data_config["input_size"])
            paired = replace(paired, fresh=tuple(fresh))
        else:
            as_it_is = replace(options, init="random")
            paired = derivation.start(cut_and_pair(teacher, student, as_it_is, input_size=data_config["input_size"]))
        plan = method.plan(paired)
    if paired.init in {"solve", "kept"}:
        # they are those that the weights go with; those of mixed views are others
        plan = replace(plan, keeps_statistics=paired.student)
    identity = fingerprint(
        method=name_of(method),
        hyperparameters=method,
        phases=[phase.identity() for phase in plan.phases],
        pairing={
            "teacher": paired.teacher.names,
            "student": paired.student.names,
            "inherited": paired.inherited,
            "init": paired.init,
            "left_out": paired.left_out,
        },
        student=state_digest(plan.student),
        teacher=digest,
        views=made.identity(),
        seed=runner.seed,
        precision=runner.precision,
        devices=runner.devices,
    )
    notes = _notes(paired, measured) if asked == "keep" or (asked == "auto" and given) else ()
    if reason := why_not_made_by_name(student, data_config):
        notes += (f"{reason}; a saved student opens with netgraft.load_student(folder, model=...), one made as it was",)
    for note in notes:
        (reporter or SilentReporter()).note(note)
    return Distillation(teacher, student, paired, plan, made, runner, data_config, digest, identity, derivation, notes)


def _labels(asked: Sequence[int] | bool | None, found: Sequence[int] | None) -> Sequence[int] | None:
    """Return the labels that are asked for: given ones, those that the images came with, or none."""
    if asked is True:
        if found is None:
            raise RequestError("expected images with labels, got images alone; give labels=[...], or leave labels out")
        return found
    return None if asked is False else asked


MEASURED = 512
"""Views, of which statistics of batch norms are taken that came without."""


def _some_of(views: Views) -> Iterator[Tensor]:
    for numbers in torch.arange(min(len(views), MEASURED)).split(64):
        yield views.batch(numbers)


def _notes(pairing: Pairing, measured: int) -> tuple[str, ...]:
    """Say what becomes of the weights that a student came with."""
    if pairing.init == "kept":
        notes = ["the student keeps the weights that it brings, and learns at rates for one that knows something"]
        if pairing.fresh:
            notes.append("but its head is of another number of classes, and a new one starts at random")
        if measured:
            notes.append(f"{measured} batch norms came without statistics; theirs are taken on views, its answers stay")
        return ("; ".join(notes),)
    if pairing.init in {"solve", "slice"}:
        what = "all of its weights"
    elif pairing.inherited:
        what = f"the weights of its first {pairing.inherited} blocks"
    else:
        return ()
    return (f"the student got {what} from the teacher (init {pairing.init}); init='keep' keeps those that it brings",)


def distill(
    teacher: nn.Module,
    student: nn.Module | None = None,
    images: Any = (),
    *,
    keep: Mapping[str, float | str] | None = None,
    protect: Sequence[str] = (),
    force: Mapping[str, int] | None = None,
    views: ViewPolicy | Views | None = None,
    runner: Runner | None = None,
    data_config: Mapping[str, Any] | None = None,
    folder: Path | None = None,
    resume: bool = False,
    reporter: ProgressReporter | None = None,
    **options: Any,
) -> DistillationResult:
    """Turn a teacher into a smaller stand-in, from a few unlabeled images: a given student, or one that is derived.

    The same as ``prepare(...).run(...)``; see :func:`prepare`, which takes the other ``options``, and
    :meth:`Distillation.run`.

    Args:
        teacher: A trained timm classifier; unchanged.
        student: A timm model with as many classes; trained in place. Derived from the teacher if None.
        images: PIL images, paths, a folder, arrays, tensors, or a data set or loader of any of them; see
            :func:`netgraft.data.given_images.pictures`.
        keep: What a derived student may cost, as for :func:`netgraft.derive`; half of the multiply-accumulates if None.
        protect: Names of modules that stay whole in a derived student, as for :func:`netgraft.derive`.
        force: Widths of its places that are given and not chosen, likewise.
        views: As for :func:`prepare`.
        runner: Device, precision and seed.
        data_config: Preprocessing in timm's words; the teacher's own if None.
        folder: Where the checkpoint and ``metrics.jsonl`` go.
        resume: Go on from the folder's checkpoint.
        reporter: Told what happens.
        options: Of :func:`prepare`.

    Raises:
        RequestError: As of :func:`prepare`; or both a student and ``keep`` are given, or the budget can't be met.
        RunError: A loss became NaN, or the disk is full.

    Examples:
        >>> import netgraft, timm
        >>> teacher = netgraft.load_teacher("digits_vgg7_bn")
        >>> student = timm.create_model("digits_vgg7_bn_half")
        >>> images = netgraft.open_data("digits").train.load_many(range(20))
        >>> short = netgraft.NetGraft(block_steps=(2,), join_steps=2)
        >>> result = netgraft.distill(teacher, student, images, method=short)
        >>> result.trained.steps
        10
        >>> sum(p.numel() for p in result.student.parameters()) / sum(p.numel() for p in teacher.parameters()) < 0.3
        True
        >>> result = netgraft.distill(teacher, images=images, keep={"parameters": 0.3}, method=short)
        >>> teachers, students = result.derivation.choice.costs["parameters"]
        >>> 0.2 < students / teachers <= 0.3
        True
    """
    if student is not None and keep is not None:
        raise RequestError("give a student, or keep to have one derived, not both")
    runner = runner or Runner()
    derivation = None
    images, found = pictures(images)
    options["labels"] = _labels(options.get("labels"), found)
    if student is None:
        if not images:
            raise RequestError("there are no images to derive a student from; give at least one")
        data_config = preprocessing(teacher, images[0].size, data_config)
        teacher = as_classifier(teacher, data_config)
        policy = views or VIEW_POLICIES["rich"]
        views = Views.of(images, policy, data_config, seed=runner.seed, labels=options.get("labels"))
        derivation = derive(
            teacher,
            images,
            keep,
            protect=protect,
            force=force,
            views=views,
            data_config=data_config,
            reporter=reporter,
        )
        student = derivation.student
    prepared = prepare(
        teacher,
        student,
        images,
        views=views,
        runner=runner,
        data_config=data_config,
        derivation=derivation,
        reporter=reporter,
        **options,
    )
    return prepared.run(folder=folder, resume=resume, reporter=reporter)
