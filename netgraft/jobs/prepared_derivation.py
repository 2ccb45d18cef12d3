"""A distillation whose student first gets its weights from the teacher: library, start, then training as always."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from timm.data import resolve_model_data_config
from torch import nn

from netgraft.data.text_files import read_json
from netgraft.data.view_policy import ViewPolicy
from netgraft.data.views import Views
from netgraft.derivation import Derivation, Deriver
from netgraft.deriving.anatomy import Anatomy
from netgraft.deriving.budget import Amount
from netgraft.deriving.library import Library
from netgraft.deriving.options import DerivingOptions
from netgraft.deriving.twins import widths_like
from netgraft.distillation import Distillation, RecoveryTraining, prepare, recovering
from netgraft.errors import RequestError
from netgraft.evaluation.comparison import predictions
from netgraft.evaluation.metrics import top1
from netgraft.files import write_atomically, write_text
from netgraft.grafting.options import PairingOptions
from netgraft.grafting.pairing import FAR
from netgraft.jobs.prepared_distillation import PreparedDistillation
from netgraft.methods.method import Method
from netgraft.methods.registry import name_of
from netgraft.models.students import load_student
from netgraft.modules import state_digest
from netgraft.plan import Plan
from netgraft.progress import ProgressReporter, SilentReporter
from netgraft.training.identity import fingerprint
from netgraft.training.runner import Runner

LIBRARY, START, CHOICE = "library.json", "start", "derived.json"
"""What a run folder holds besides: all that could be chosen, the student before training, and what was chosen."""

BASES = "bases.safetensors"
"""What takes the teacher's streams to those of the student, where these are in other bases."""


@dataclass(frozen=True, eq=False)
class AskedDerivation:
    """What is asked for.

    Attributes:
        teacher: In eval mode.
        images: The few.
        labels: Of each image, on the labeled track.
        policy: How views are made of them.
        method: Trains the student from its start.
        runner: Trains.
        budget: What the student may cost; nothing where it is given.
        pairing: How both are cut and paired, and how the student starts.
        deriving: Which channels go, and how many of each layer.
        twin: A smaller twin of the teacher that is to be started in closed form; None has a student derived.
        anatomy: Of the teacher, where it was taken apart before.

    Raises:
        RequestError: A student that is derived can't start at random.
    """

    teacher: nn.Module
    images: Sequence[Image.Image]
    labels: Sequence[int] | None
    policy: ViewPolicy
    method: Method
    runner: Runner
    budget: tuple[Amount, ...]
    pairing: PairingOptions
    deriving: DerivingOptions
    twin: nn.Module | None = None
    anatomy: Anatomy | None = None

    def __post_init__(self) -> None:
        if self.pairing.init in {"random", "keep"}:
            raise RequestError(
                f"a derived student starts with weights of its teacher, not with init {self.pairing.init!r}; leave "
                "--init out, or give --student"
            )

    @property
    def init(self) -> Literal["solve", "slice"]:
        """How the student starts."""
        return "slice" if self.pairing.init == "slice" else "solve"

    @cached_property
    def data_config(self) -> dict[str, Any]:
        """The teacher's preprocessing."""
        return dict(resolve_model_data_config(self.teacher))

    @cached_property
    def views(self) -> Views:
        """Of the images."""
        return Views.configured(self.images, self.policy, self.data_config, seed=self.runner.seed, labels=self.labels)


@dataclass(eq=False)
class PreparedDerivation(PreparedDistillation):
    """A derivation that can begin; what is trained is known once the student has been derived."""

    distillation: Distillation = field(init=False)
    asked: AskedDerivation = field(kw_only=True)

    def __post_init__(self) -> None:
        asked = self.asked
        self._deriver = Deriver(
            asked.teacher,
            asked.views,
            asked.data_config,
            protect=_words(self.job.protect),
            force=_parse_widths(self.job.force),
            options=asked.deriving,
            init=asked.init,
            anatomy=self._teachers_own_anatomy(),
        )
        self._recovery = RecoveryTraining(
            asked.teacher,
            asked.images,
            asked.method,
            asked.deriving.recovery_steps,
            asked.views,
            asked.runner,
            asked.data_config,
        )
        if asked.twin is None:
            self._deriver.check(asked.budget)
        else:
            widths_like(self._deriver.anatomy, asked.twin)
            # whether the pair can be trained at all is said before anything is written
            self._blocks = len(self._prepared(asked.twin, replace(asked.pairing, init="random")).pairing)
        if self.job.library is not None:
            if not self._deriver.scores:
                raise RequestError(
                    f"--allocation {asked.deriving.allocation} asks no library; leave --library out, or --allocation"
                )
            self._deriver.library = self._read_library(self.job.library)

    def _teachers_own_anatomy(self) -> Anatomy | None:
        """Return what a named twin is compared with; None where the student is derived."""
        asked = self.asked
        if asked.twin is None:
            return None
        return asked.anatomy or Anatomy.on_noise(asked.teacher, asked.data_config["input_size"])

    @property
    def runner(self) -> Runner:
        """Trains."""
        return self.asked.runner

    @property
    def _student(self) -> str:
        if self.asked.twin is not None:
            return self.job.student_name(self.source)
        return f"{self.job.teacher_name(self.source)}-{','.join(map(_short, self.asked.budget))}"

    @property
    def _models(self) -> tuple[nn.Module, nn.Module | None]:
        return self.asked.teacher, self.asked.twin

    @cached_property
    def _identity(self) -> str:
        """Of what a library depends on: teacher, views, bases of channels, and the order in which they go."""
        criterion = self.asked.deriving.criterion
        besides = {} if criterion == DerivingOptions().criterion else {"criterion": criterion}
        if turned := self._deriver.anatomy.turned_kinds:
            besides["bases"] = ",".join(turned)
        return fingerprint(teacher=state_digest(self.asked.teacher), views=self.asked.views.identity(), **besides)

    @property
    def _fingerprint(self) -> str:
        asked, allocation, rounds = self.asked, self.asked.deriving.allocation, self.asked.deriving.rounds
        return fingerprint(
            library=self._identity,
            budget=asked.budget,
            protect=self.job.protect,
            method=name_of(asked.method),
            hyperparameters=asked.method,
            pairing=replace(asked.pairing, init="slice" if asked.init == "slice" else "auto"),
            **({} if allocation == DerivingOptions().allocation else {"allocation": allocation}),
            **({} if rounds is None else {"rounds": rounds}),
            **({"recovery_steps": asked.deriving.recovery_steps} if asked.deriving.recovery_steps else {}),
            **({} if self.job.force is None else {"force": self.job.force}),
            **({} if asked.twin is None else {"sizes": _sizes(asked.twin)}),
            seed=asked.runner.seed,
            precision=asked.runner.precision,
            devices=asked.runner.devices,
        )

    @property
    def _start(self) -> dict[str, Any]:
        start = {"views": str(self.asked.policy), "init": self.asked.init}
        if self.asked.twin is not None:
            return {**start, "blocks": self._blocks}
        return {**start, "keep": {each.unit: each.value for each in self.asked.budget}, **vars(self.asked.deriving)}

    @property
    def notes(self) -> Sequence[str]:
        """Warnings, subset and budget."""
        budget = " and ".join(map(str, self.asked.budget))
        what = f"a student that keeps {budget}" if self.asked.twin is None else f"the start of {self._student}"
        return [*self._warnings, str(self.subset), *self._measures, f"deriving {what}"]

    def expected(self) -> Plan:
        """Return what will be trained as far as it is known: phases and steps, neither sizes nor rates.

        Raises:
            RequestError: The pair can't be trained in this way.
        """
        student = copy.deepcopy(self.asked.teacher) if self.asked.twin is None else self.asked.twin
        # the whole of a twin of equal widths would be inherited
        inherit = "none" if self.asked.twin is None else self.asked.pairing.inherit
        pairing = replace(self.asked.pairing, init="random", inherit=inherit)
        plan = self._prepared(student, pairing).plan
        steps = self.asked.deriving.recovery_steps
        if not steps:
            return plan
        rounds = self._deriver.rounds(self.asked.budget)
        [phase] = self._prepared(student, pairing, method=recovering(self.asked.method, steps)).plan.phases
        between = [
            replace(phase, in_words=f"train all blocks behind round {number} of {rounds}")
            for number in range(1, rounds)
        ]
        return replace(plan, phases=(*between, *plan.phases))

    def forwards(self) -> int:
        """Return about how many forwards of one image it takes to derive the student."""
        return self._deriver.forwards()

    def begin(self, folder: Path) -> None:
        """Write the subset; the plan follows once there is a student."""
        self.subset.save(folder / "subset.json")

    def _carry_out(
        self, folder: Path, *, resume: bool, reporter: ProgressReporter, stop: Callable[[], bool] | None
    ) -> None:
        """Derive the student, or take up the one that was derived; then train it."""
        fabric = self.runner.fabric
        if fabric.is_global_zero and not (folder / CHOICE).exists():
            self._derive(folder, replace(self._recovery, folder=folder, resume=resume, reporter=reporter, stop=stop))
        fabric.barrier()
        derivation = self._derived(folder)
        self.distillation = self._prepared(derivation.student, self.asked.pairing, derivation)
        if fabric.is_global_zero:
            super().begin(folder)
        for line in self.distillation.plan.lines():
            reporter.note(line)
        if derivation.init == "solve" and derivation.error >= FAR and self.distillation.plan.steps:
            longer = "--steps 4000 --objective kl" if self.job.method == "netgraft" else "--steps 4000"
            reporter.note(
                f"the start is far from the teacher: its logits differ by {derivation.error:.0%} of their variance, "
                f"and rates are those of a random start; longer training pays then ({longer})"
            )
        super()._carry_out(folder, resume=resume, reporter=reporter, stop=stop)

    def _prepared(
        self,
        student: nn.Module,
        pairing: PairingOptions,
        derivation: Derivation | None = None,
        method: Method | None = None,
    ) -> Distillation:
        asked = self.asked
        return prepare(
            asked.teacher,
            student,
            asked.images,
            method=method or asked.method,
            views=asked.views,
            runner=asked.runner,
            derivation=derivation,
            **vars(pairing),
        )

    def _derive(self, folder: Path, recovery: RecoveryTraining) -> None:
        """Write the library as soon as it is known, then the start, and at last what was chosen."""
        deriver, reporter = self._deriver, recovery.reporter or SilentReporter()
        deriver.reporter = reporter
        twin = self.asked.twin
        if twin is None and deriver.scores:
            self._keep_library(folder)
        trained_between = partial(self._recovered, recovery)
        derived = deriver.derive(self.asked.budget, trained_between) if twin is None else deriver.like(twin)
        if twin is None:
            reporter.note(str(derived.choice))
        _keep(derived, folder)

    def _recovered(
        self, recovery: RecoveryTraining, number: int, solve: Callable[[], Derivation | None]
    ) -> Derivation | None:
        """Return the student of a round, trained; take up what a run that goes on had solved already."""
        folder = recovery.folder_of(number)
        assert folder is not None

        def solved() -> Derivation | None:
            if not (folder / CHOICE).exists():
                derived = solve()
                if derived is None:
                    return None
                _keep(derived, folder)
            return self._derived(folder)

        return recovery(number, solved)

    def _keep_library(self, folder: Path) -> None:
        """Take up the library that lies in the run folder or that other runs made for another budget; or make it."""
        shared = [self.job.keep_answers / f"library-{self._identity[:32]}.json"] if self.job.keep_answers else []
        known = [path for path in (folder / LIBRARY, *shared) if path.exists()]
        if known:
            self._deriver.library = self._read_library(known[0])
        content = {"of": self._identity, **self._deriver.library.to_json()}
        for path in (folder / LIBRARY, *shared):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, json.dumps(content) + "\n")

    def _read_library(self, path: Path) -> Library:
        try:
            content = read_json(path)
            of = content["of"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RequestError(f"{path} is no library ({error}); give the library.json of a run") from error
        if of != self._identity:
            raise RequestError(
                f"{path} was made with another teacher or other views; leave --library out, or give the images, "
                "--views, --seed and --subset-seed that it was made with"
            )
        return Library.from_json(content, self._deriver.anatomy.all_places)

    def _derived(self, folder: Path) -> Derivation:
        chosen = _read_choice(folder / CHOICE)
        channels = {name: torch.tensor(numbers, dtype=torch.long) for name, numbers in chosen["kept"].items()}
        projections = _read_bases(folder / BASES)
        taken_up = self._deriver.taken_up(load_student(folder / START), channels, chosen["start_error"], projections)
        return replace(taken_up, **{name: chosen[name] for name in RECOVERY if name in chosen})

    def finish(self, folder: Path, reporter: ProgressReporter) -> dict[str, Any]:
        """Save and compare as always; and say what was derived, and how good it was before training."""
        result = super().finish(folder, reporter)
        # what wasn't trained is the start, and was measured
        start = None if result["phases"] else result["student_top1"]
        if result["phases"] and self.test is not None and self.test.labels is not None:
            logits, labels = predictions(
                load_student(folder / START).to(self.runner.fabric.device),
                self.test,
                self.asked.data_config,
                reporter,
                "evaluating the start",
            )
            start = round(top1(logits, labels), 4)
        chosen = {name: value for name, value in _read_choice(folder / CHOICE).items() if name != "kept"}
        blocks = len(self.distillation.pairing)
        return {**result, "blocks": blocks, "start_top1": start, "derived": chosen}


RECOVERY = ("recovery_steps", "recovery_seconds")
"""What a choice says of training between rounds, where there was any."""


def _keep(derived: Derivation, folder: Path) -> None:
    """Write a start, and at last what was chosen: where that lies, all of it does."""
    derived.save(folder / START)
    if derived.projections:
        write_atomically(folder / BASES, lambda temporary: save_file(derived.named_projections(), temporary))
    recovery = {name: getattr(derived, name) for name in RECOVERY} if derived.recovery_steps else {}
    chosen = {"kept": derived.kept_names(), "start_error": derived.error, **recovery, **derived.choice.to_json()}
    write_text(folder / CHOICE, json.dumps(chosen) + "\n")


def _read_choice(path: Path) -> dict[str, Any]:
    try:
        chosen = dict(read_json(path))
        chosen["kept"] = {name: [int(number) for number in numbers] for name, numbers in chosen["kept"].items()}
        chosen["start_error"] = float(chosen["start_error"])
        for name, kind in zip(RECOVERY, (int, float), strict=True):
            if name in chosen:
                chosen[name] = kind(chosen[name])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RequestError(
            f"{path} is damaged ({error!r}); remove it, and --resume derives the student again"
        ) from error
    return chosen


def _read_bases(path: Path) -> dict[str, torch.Tensor]:
    if not path.exists():
        return {}
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise RequestError(
            f"{path} is damaged ({error}); remove it and {CHOICE}, and --resume derives the student again"
        ) from error


def _sizes(model: nn.Module) -> dict[str, list[int]]:
    return {name: list(value.shape) for name, value in model.state_dict().items()}


def _words(text: str | None) -> list[str]:
    return [word.strip() for word in (text or "").split(",") if word.strip()]


def _parse_widths(text: str | None) -> dict[str, int]:
    widths = {}
    for word in _words(text):
        name, _, width = (part.strip() for part in word.partition("="))
        if not name or not width.isdecimal():
            raise RequestError(f"--force takes names of places and their widths, features.3=32, not {word!r}")
        widths[name] = int(width)
    return widths


def _short(amount: Amount) -> str:
    return f"{amount.unit}{amount.value:g}"
