"""The whole way from a teacher and a few images to a student, in one call."""

from __future__ import annotations

import copy
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from netgraft.data.given_images import names, pictures
from netgraft.data.image_set import HeldPictures, ImageSet, PictureStore
from netgraft.data.subsets import hold_out as choose_held_out
from netgraft.data.view_policy import ViewPolicy, find_policy
from netgraft.data.views import Views
from netgraft.derivation import Derivation, Deriver, derive
from netgraft.deriving.anatomy import Anatomy
from netgraft.deriving.options import DerivingOptions
from netgraft.deriving.twins import anatomy_of_wider_twin
from netgraft.distillation_result import DistillationResult
from netgraft.errors import RequestError, RunError
from netgraft.evaluation.comparison import compare_without_labels
from netgraft.evaluation.teacher_answers import check_answers
from netgraft.grafting.folding import Folding, fold_with_report
from netgraft.grafting.norm_statistics import measure_statistics
from netgraft.grafting.options import PairingOptions
from netgraft.grafting.pairing import Pairing
from netgraft.grafting.preparation import cut_and_pair
from netgraft.methods.method import Budget, Method, Preset
from netgraft.methods.netgraft import NetGraft
from netgraft.methods.registry import check_names, configure, name_of
from netgraft.models.card import model_name
from netgraft.models.creation import class_count, describe_labels, labels_of
from netgraft.models.heads import replace_head
from netgraft.models.own_modules import as_classifier, preprocessing
from netgraft.models.students import why_not_made_by_name
from netgraft.modules import eval_mode, state_digest
from netgraft.plan import Plan
from netgraft.progress import LineReporter, ProgressReporter, Recorder, SilentReporter
from netgraft.seeding import derived_seed
from netgraft.splitting.chain import state_of
from netgraft.training.identity import fingerprint
from netgraft.training.runner import Runner, Trained


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
        recorder = Recorder(reporter or SilentReporter())
        trained = self.train(folder=folder, resume=resume, reporter=recorder, stop=stop)
        return replace(self.deploy(trained), history=tuple(recorder.history))

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
        for model in (self.teacher, self.model):
            # whole, also where no phase runs all of it: both are measured there
            model.to(self.runner.fabric.device)
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
            images=self.views.images,
            teacher_name=model_name(self.teacher),
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
    method: str | Method | type[Method] = "netgraft",
    preset: str | Preset = "default",
    steps: int | None = None,
    init: str = "auto",
    inherit: str = "auto",
    blocks: int | None = None,
    fresh: Sequence[nn.Module] = (),
    views: str | ViewPolicy | Views | None = None,
    labels: Sequence[int] | bool | None = None,
    data_config: Mapping[str, Any] | None = None,
    derivation: Derivation | None = None,
    seed: int | None = None,
    accelerator: str | None = None,
    precision: str | None = None,
    runner: Runner | None = None,
    reporter: ProgressReporter | None = None,
    **hyperparameters: Any,
) -> Distillation:
    """Cut, pair, initialise and plan; trains nothing.

    Args:
        teacher: A trained classifier, of timm or any other module that maps images (B, C, H, W) to logits (B, K), or to
            a dictionary or an object with ``logits``; its weights stay as they are.
        student: Another one with as many classes; trained in place. Its classes get the names of the teacher's.
            Weights that it brings are kept with ``init="keep"``, and rates are those of a student that knows something;
            a head of another number of classes is replaced then, see :func:`netgraft.models.heads.replace_head`.
            With ``init="auto"`` a smaller twin of the teacher gets the teacher's weights in place of its own, and any
            student the teacher's front blocks where it is built alike; ``notes`` of what is returned say so.
        images: PIL images, paths, a folder, arrays, tensors, or a data set or loader of any of them; see
            :func:`netgraft.data.given_images.pictures`.
        method: A name (``netgraft methods`` lists them; several joined by ``+``), its class, or an object of it.
        preset: Of a method that is named, by its name or as an object: hyper-parameters, views and start.
        steps: Optimiser steps in all (of a baseline: of the student's training); the preset's own if None.
        init: How the student starts: ``auto``, ``random``, ``keep``, ``slice`` or ``solve``; see
            :class:`netgraft.grafting.options.PairingOptions`.
        inherit: Whether front blocks that are built alike are the teacher's, and stay frozen: ``auto`` or ``none``.
        blocks: Merge the paired blocks to so many; as many as there are if None.
        fresh: Modules of a student that is kept which start at random, such as a new head; they learn at the whole
            rate.
        views: How views are made of the images, a policy or the name of one (``rich``, ``rich-endless``, ``crop``,
            ``plain``), or views of them; the preset's own if None, ``rich`` where the method is an object.
        labels: Class of each image, by its position among the teacher's, or True for those that the data set gives;
            only for methods of the labeled track, and images' own labels are passed over without it. Views then show
            one image each.
        data_config: Preprocessing in timm's words; wins over the teacher's own. A teacher without any takes images of
            the size of the first one, with values from 0 to 1.
        derivation: What ``student`` came from, if it was derived.
        seed: Of views, batches and adapters; 0 if None.
        accelerator: ``auto``, ``cpu``, ``cuda`` or ``mps``; ``auto`` if None.
        precision: ``auto``, which measures, ``32`` or ``bf16``; ``auto`` if None.
        runner: Instead of the last three, with what else there is: processes, memory for caches.
        reporter: Told what happens where the student's start takes its time, and the notes.
        hyperparameters: Others of the method, by their names (``temperature=2``); ``netgraft methods NAME`` lists them.

    Raises:
        RequestError: The models can't be cut or paired, the student can't start as asked, its head can't be replaced,
            the teacher answers every image alike, the images are of no kind that is known, there is no such method,
            preset or hyper-parameter, or a value is of another type or out of range.

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
    check_names(method, hyperparameters, own=inspect.signature(prepare).parameters, what="prepare")
    images, found = pictures(images)
    if not images:
        raise RequestError("there are no images to distill from; give at least one")
    labels = _labels(labels, found)
    runner = _runner(runner, seed, accelerator, precision)
    data_config = preprocessing(teacher, images[0].size, data_config)
    teacher, student = (as_classifier(model, data_config) for model in (teacher, student))
    check_answers(teacher, images, data_config)
    digest = state_digest(teacher)
    if init == "keep" and derivation is None and class_count(student) != class_count(teacher):
        fresh = (*fresh, *replace_head(student, class_count(teacher), data_config, seed=runner.seed))
    # it learns the teacher's answers, whatever classes its architecture's own weights know
    describe_labels(student, labels_of(teacher))
    if steps is not None:
        hyperparameters["steps"] = steps
    budget = Budget(len(images), class_count(teacher))
    options = PairingOptions(init, inherit, blocks)
    anatomy = None
    if derivation is not None:
        init = derivation.init
    elif init == "auto":
        init = configure(method, preset, budget, hyperparameters).init
        anatomy = anatomy_of_wider_twin(teacher, student, data_config["input_size"]) if init == "auto" else None
        init = "solve" if anatomy is not None else init
    budget = replace(budget, solved=init == "solve", kept=init == "keep")
    chosen = configure(method, preset, budget, hyperparameters)
    method = chosen.method
    made = Views.of(images, _policy(views, chosen.views, labels), data_config, seed=runner.seed, labels=labels)
    measured = measure_statistics(student, _some_of(made)) if init == "keep" else 0
    notes_due = derivation is None and options.init in {"auto", "keep"}
    if derivation is None and init == "solve":
        with eval_mode(teacher):
            anatomy = anatomy or Anatomy.on_noise(teacher, data_config["input_size"])
            derivation = Deriver(teacher, made, data_config, anatomy=anatomy, reporter=reporter).like(student)
    # what is derived has its weights already
    options = replace(options, init=init if derivation is None else "random")
    # adapters start at random too
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed("adapters", runner.seed))
        paired = cut_and_pair(teacher, student, options, input_size=data_config["input_size"])
        paired = replace(paired, fresh=tuple(fresh)) if derivation is None else derivation.start(paired)
        plan = method.plan(paired)
    if paired.init in {"solve", "kept"}:
        # they are those that the weights go with; those of mixed views are others
        plan = replace(plan, keeps_statistics=paired.student)
    identity = _identity(method, paired, plan, made, runner, digest)
    notes = _notes(paired, new_layers(student, paired), measured) if notes_due else ()
    if reason := why_not_made_by_name(student, data_config):
        notes += (f"{reason}; a saved student opens with netgraft.load_student(folder, model=...), one made as it was",)
    notes += made.notes
    for note in notes:
        (reporter or SilentReporter()).note(note)
    return Distillation(teacher, student, paired, plan, made, runner, data_config, digest, identity, derivation, notes)


def _identity(method: Method, paired: Pairing, plan: Plan, views: Views, runner: Runner, teacher_digest: str) -> str:
    """Return the SHA-256 of everything that decides the result."""
    return fingerprint(
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
        teacher=teacher_digest,
        views=views.identity(),
        seed=runner.seed,
        precision=runner.precision,
        devices=runner.devices,
    )


def _runner(runner: Runner | None, seed: int | None, accelerator: str | None, precision: str | None) -> Runner:
    """Return the runner that is given, or one of what is said of it."""
    said = {"seed": seed, "accelerator": accelerator, "precision": precision}
    said = {name: value for name, value in said.items() if value is not None}
    if runner is None:
        return Runner(**said)  # type: ignore[arg-type]
    if said:
        raise RequestError(f"expected a runner or {', '.join(said)}, got both; make the runner with {', '.join(said)}")
    return runner


def _policy(
    asked: str | ViewPolicy | Views | None, of_preset: ViewPolicy, labels: Sequence[int] | None
) -> ViewPolicy | Views:
    """Return how views are made; with labels each shows one image, unless a policy that mixes them is given."""
    policy = find_policy(asked) if isinstance(asked, str) else asked or of_preset
    if labels is None or isinstance(policy, Views) or not policy.mixes:
        return policy
    if isinstance(asked, ViewPolicy):
        raise RequestError(
            f"views of policy {policy.name!r} show two images, which have no label; leave one of both out"
        )
    return replace(policy, mixup=0.0, cutmix=0.0)


def _labels(asked: Sequence[int] | bool | None, found: Sequence[int] | None) -> Sequence[int] | None:
    """Return the labels that are asked for: given ones, those that the images came with, or none."""
    if asked is True:
        if found is None:
            raise RequestError("expected images with labels, got images alone; give labels=[...], or leave labels out")
        return found
    return None if asked is False else asked


ROUNDS = "rounds"
"""Folder in that of a run: what each round left that was trained."""


@dataclass(frozen=True, eq=False)
class RecoveryTraining:
    """Trains the student of a round on the teacher's logits and maps, before the next one narrows it further.

    All blocks at once, as a solved start is trained at the end; see :class:`netgraft.derivation.Recovery`.

    Attributes:
        teacher: Unchanged.
        images: The few.
        method: Of the training at the end; its settings hold here where it is NetGraft.
        steps: Of each training.
        views: Of the images.
        runner: Trains, in one process.
        data_config: Preprocessing.
        folder: Of the run; nothing is kept if None.
        resume: Go on from what is kept.
        reporter: Told what happens.
        stop: Asked before each step whether to save and leave.

    Raises:
        RequestError: Several processes are to train.
    """

    teacher: nn.Module
    images: Sequence[Image.Image]
    method: Method
    steps: int
    views: Views
    runner: Runner
    data_config: Mapping[str, Any]
    folder: Path | None = None
    resume: bool = False
    reporter: ProgressReporter | None = None
    stop: Callable[[], bool] | None = None

    def __post_init__(self) -> None:
        if self.steps and self.runner.devices > 1:
            raise RequestError(
                f"recovery_steps {self.steps} trains between rounds in one process, not in {self.runner.devices}; give "
                "devices 1, or leave recovery_steps out"
            )

    def folder_of(self, number: int) -> Path | None:
        """Return what a round keeps its own in."""
        return None if self.folder is None else self.folder / ROUNDS / str(number)

    def __call__(self, number: int, solve: Callable[[], Derivation | None]) -> Derivation | None:
        """Return the student of a round, trained; it has the storage of the solved one."""
        solved = solve()
        if solved is None:
            return None
        reporter = self.reporter or SilentReporter()
        reporter.note(
            f"behind round {number} the student's logits differ by {solved.error:.1%} of their variance; it is trained "
            f"for {self.steps:,} steps"
        )
        device = next(self.teacher.parameters()).device
        prepared = prepare(
            self.teacher,
            copy.deepcopy(solved.student),
            self.images,
            method=recovering(self.method, self.steps),
            views=self.views,
            # the log is that of the end
            runner=self.runner if self.runner.log is None else replace(self.runner, log=None),
            data_config=self.data_config,
            derivation=solved,
        )
        trained = prepared.train(
            folder=self.folder_of(number), resume=self.resume, reporter=self.reporter, stop=self.stop
        )
        self.teacher.to(device)
        # between its blocks adapters only choose channels and put them back, so the model is what was trained; in the
        # same storage as ever one that goes on is the same bit by bit as one that was never stopped
        solved.student.load_state_dict(prepared.model.state_dict())
        return replace(
            solved,
            student=solved.student.eval(),
            recovery_steps=solved.recovery_steps + trained.steps,
            recovery_seconds=solved.recovery_seconds + trained.seconds,
        )


def recovering(method: Method, steps: int) -> NetGraft:
    """Return what trains a student between rounds: all blocks at once, by the settings of the end if that is NetGraft.

    Args:
        method: Of the training at the end.
        steps: Of a training.
    """
    if not isinstance(method, NetGraft):
        of_preset = configure("netgraft", "default", Budget(1, 1, solved=True), {}).method
        assert isinstance(of_preset, NetGraft)
        method = of_preset
    return replace(method, block_steps=(0,), joins="at-once", adapters="frozen", join_steps=steps, steps=None)


MEASURED = 512
"""Views, of which statistics of batch norms are taken that came without."""


def _some_of(views: Views) -> Iterator[Tensor]:
    for numbers in torch.arange(min(len(views), MEASURED)).split(64):
        yield views.batch(numbers)


def new_layers(student: nn.Module, pairing: Pairing) -> list[str]:
    """Return the names of those modules of a student that start at random beside weights that are kept."""
    return [name for name, module in student.named_modules() if any(module is fresh for fresh in pairing.fresh)]


def _notes(pairing: Pairing, fresh: Sequence[str], measured: int) -> tuple[str, ...]:
    """Say what becomes of the weights that a student came with."""
    if pairing.init == "kept":
        notes = ["the student keeps the weights that it brings, and learns at rates for one that knows something"]
        if fresh:
            what = ", ".join(fresh)
            notes.append(f"but its head is of another number of classes, and a new one starts at random ({what})")
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
    method: str | Method | type[Method] = "netgraft",
    preset: str | Preset = "default",
    steps: int | None = None,
    keep: Mapping[str, float | str] | None = None,
    protect: Sequence[str] = (),
    force: Mapping[str, int] | None = None,
    deriving: DerivingOptions | None = None,
    init: str = "auto",
    inherit: str = "auto",
    blocks: int | None = None,
    fresh: Sequence[nn.Module] = (),
    views: str | ViewPolicy | Views | None = None,
    labels: Sequence[int] | bool | None = None,
    hold_out: float | None = None,
    data_config: Mapping[str, Any] | None = None,
    seed: int | None = None,
    accelerator: str | None = None,
    precision: str | None = None,
    runner: Runner | None = None,
    folder: str | Path | None = None,
    resume: bool = False,
    progress: bool | None = None,
    reporter: ProgressReporter | None = None,
    **hyperparameters: Any,
) -> DistillationResult:
    """Turn a teacher into a smaller stand-in, from a few unlabeled images: a given student, or one that is derived.

    The same as ``prepare(...).run(...)``; see :func:`prepare` and :meth:`Distillation.run`.

    Args:
        teacher: A trained classifier, of timm or any other module that maps images (B, C, H, W) to logits (B, K), or to
            a dictionary or an object with ``logits``; its weights stay as they are.
        student: Another one with as many classes; trained in place. Derived from the teacher if None. Weights that it
            brings are kept with ``init="keep"``, and a head of another number of classes is replaced then.
        images: PIL images, paths, a folder, arrays, tensors, or a data set or loader of any of them; see
            :func:`netgraft.data.given_images.pictures`.
        method: A name (``netgraft methods`` lists them; several joined by ``+``), its class, or an object of it.
        preset: Of a method that is named, by its name or as an object: hyper-parameters, views and start.
        steps: Optimiser steps in all (of a baseline: of the student's training); the preset's own if None.
        keep: What a derived student may cost, as for :func:`netgraft.derive`; half of the multiply-accumulates if None.
        protect: Names of modules that stay whole in a derived student, as for :func:`netgraft.derive`.
        force: Widths of its places that are given and not chosen, likewise.
        deriving: Which channels it loses, how many of each layer, in how many rounds, and for how many steps it is
            trained between them.
        init: How the student starts: ``auto``, ``random``, ``keep``, ``slice`` or ``solve``; see
            :class:`netgraft.grafting.options.PairingOptions`.
        inherit: Whether front blocks that are built alike are the teacher's, and stay frozen: ``auto`` or ``none``.
        blocks: Merge the paired blocks to so many; as many as there are if None.
        fresh: Modules of a student that is kept which start at random, such as a new head.
        views: How views are made of the images, a policy or the name of one (``rich``, ``crop``, ``plain``), or views
            of them; the preset's own if None.
        labels: Class of each image, by its position among the teacher's, or True for those that the data set gives;
            only for methods of the labeled track.
        hold_out: Images that nothing is made of and that measure the student without labels, a part of all (0.2) or a
            number: ``measured`` of the result has the agreement with the teacher and an estimate of the accuracy lost.
            Which they are depends on how many images there are and on nothing else.
        data_config: Preprocessing in timm's words; wins over the teacher's own. A teacher without any takes images of
            the size of the first one, with values from 0 to 1.
        seed: Of views, batches and adapters; 0 if None.
        accelerator: ``auto``, ``cpu``, ``cuda`` or ``mps``; ``auto`` if None.
        precision: ``auto``, which measures, ``32`` or ``bf16``; ``auto`` if None.
        runner: Instead of the last three, with what else there is: processes, memory for caches.
        folder: Where the checkpoint and ``metrics.jsonl`` go; nothing is written if None.
        resume: Go on from the folder's checkpoint.
        progress: Whether a line on standard error (in a notebook: in the cell) says how far it is; in a terminal and a
            notebook if None.
        reporter: Told what happens, instead of that line.
        hyperparameters: Others of the method, by their names (``temperature=2``); ``netgraft methods NAME`` lists them.

    Raises:
        RequestError: As of :func:`prepare`; or both a student and ``keep`` are given, the budget can't be met, or so
            many images can't be held out.
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
    if student is not None and deriving is not None:
        raise RequestError("a student that is given isn't derived; leave deriving out, or the student")
    check_names(method, hyperparameters, own=inspect.signature(distill).parameters, what="distill")
    if reporter is None and progress is not False:
        reporter = LineReporter(sys.stderr) if progress else LineReporter.where_somebody_looks()
    runner = _runner(runner, seed, accelerator, precision)
    asked = images
    images, found = pictures(images)
    labels = _labels(labels, found)
    images, labels, kept_back = _held_out(asked, images, labels, hold_out, views)
    derivation = None
    if student is None:
        if not images:
            raise RequestError("there are no images to derive a student from; give at least one")
        data_config = preprocessing(teacher, images[0].size, data_config)
        teacher = as_classifier(teacher, data_config)
        known = configure(method, preset, Budget(len(images), class_count(teacher), solved=True), hyperparameters)
        policy = _policy(views, known.views, labels)
        views = Views.of(images, policy, data_config, seed=runner.seed, labels=labels)
        derivation = derive(
            teacher,
            images,
            keep,
            protect=protect,
            force=force,
            views=views,
            data_config=data_config,
            options=deriving,
            recovery=RecoveryTraining(
                teacher,
                images,
                known.method,
                0 if deriving is None else deriving.recovery_steps,
                views,
                runner,
                data_config,
                None if folder is None else Path(folder),
                resume,
                reporter,
            ),
            reporter=reporter,
        )
        student = derivation.student
    prepared = prepare(
        teacher,
        student,
        images,
        method=method,
        preset=preset,
        steps=steps,
        init=init,
        inherit=inherit,
        blocks=blocks,
        fresh=fresh,
        views=views,
        labels=labels,
        data_config=data_config,
        derivation=derivation,
        runner=runner,
        reporter=reporter,
        **hyperparameters,
    )
    result = prepared.run(folder=None if folder is None else Path(folder), resume=resume, reporter=reporter)
    if kept_back is None:
        return result
    told = reporter or SilentReporter()
    measured = compare_without_labels(prepared.teacher, result.student, kept_back, result.data_config, told)
    return replace(result, measured=measured)


def _held_out(
    asked: Any,
    images: Sequence[Image.Image],
    labels: Sequence[int] | None,
    amount: float | None,
    views: str | ViewPolicy | Views | None,
) -> tuple[Sequence[Image.Image], Sequence[int] | None, ImageSet | None]:
    """Return images to learn from, their labels, and those that are held out; without labels: they may be learned."""
    if amount is None or amount == 0:
        return images, labels, None
    if isinstance(views, Views):
        raise RequestError("views are made of all images already, so none can be held out; give a policy as views")
    if labels is not None and len(labels) != len(images):
        raise RequestError(f"got {len(images):,} images with {len(labels):,} labels; give each image one")
    out = choose_held_out(len(images), amount, dataset="the images")
    named = names(asked, len(images))
    kept_back = ImageSet(
        "held out", len(out), PictureStore([images[at] for at in out]), names=tuple(named[at] for at in out)
    )
    few = sorted(set(range(len(images))).difference(out))
    kept: Sequence[Image.Image] = images.part(few) if isinstance(images, HeldPictures) else [images[at] for at in few]
    return kept, None if labels is None else [labels[at] for at in few], kept_back
