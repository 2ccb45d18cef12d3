"""NetGraft (Shen et al., AAAI 2021)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import accumulate
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from netgraft.data.view_policy import VIEW_POLICIES
from netgraft.errors import RequestError
from netgraft.grafting.adapters import AdapterForm, AnyAdapter, AsKept, ChannelSelection, onto_start
from netgraft.grafting.pairing import Pairing
from netgraft.grafting.scions import Scion, assemble, graft, join, make_scions
from netgraft.losses import LogitMSE, NormalizedLogits, RelativeError, SoftTargets
from netgraft.methods.baseline import logits_of_both
from netgraft.methods.hyperparameters import check_choices, checked, hyperparameter
from netgraft.methods.method import About, Budget, Preset
from netgraft.options import check_held
from netgraft.plan import Feature, Phase, Plan, StepOutputs, TrainingSchedule, steps_per_epoch


def _reference(budget: Budget) -> Mapping[str, Any]:
    """Return the settings of the published code, which depend on the number of images and classes.

    Batch and rates of stage 1 grow with the number of images, so that the number of steps hardly does.

    Source: https://github.com/zju-vipa/NetGraft, ``utils/parser_cifar10.py``, ``utils/parser_cifar100.py``,
    ``graft_block.py`` and ``graft_net.py``.
    """
    scale = budget.images / budget.classes / 10
    batch_size = max(1, int(64 * scale))
    cifar10 = budget.classes <= 10
    block_epochs = (100, 60, 60) if cifar10 else (1000, 200, 200)
    block_lr = (2.5e-4, 2.5e-4, 2.5e-4) if cifar10 else (2.5e-4, 1e-3, 1e-3)
    adapter_lr, join_epochs = (2.5e-3, 100) if cifar10 else (1e-3, 150)
    epoch = steps_per_epoch(budget.images, batch_size)
    return {
        "block_steps": tuple(epochs * epoch for epochs in block_epochs),
        "join_steps": join_epochs * epoch,
        "batch_size": batch_size,
        "block_lr": tuple(lr * scale for lr in block_lr),
        "adapter_lr": adapter_lr * scale,
        "join_lr": 1e-4,
        "schedule": "constant",
        "whole_epochs": True,
        "objective": "normalized",
        "sliced_rate": 1.0,
        "adapter_bias": True,
        "adapter_init": "fan-out",
    }


def _default(budget: Budget) -> Mapping[str, Any]:
    """Return the settings where they differ from the hyper-parameters' defaults: for a start that isn't random.

    Blocks that are solved one behind the other, or that come with weights, fit together already, so all of them are
    trained at once; where they have the teacher's channels, maps at the cuts say more than logits of so few images. A
    student with weights of its own learns soft targets: plain logits, whose scale isn't its own, cost it answers.
    """
    if budget.kept:
        return {"block_steps": (0,), "joins": "at-once", "objective": "kl"}
    if not budget.solved:
        return {}
    return {"block_steps": (0,), "joins": "at-once", "adapters": "frozen", "maps_weight": 0.3}


def _thorough(budget: Budget) -> Mapping[str, Any]:
    """Return the default's settings with longer joins, on soft targets: what is far from the teacher gains by both."""
    return {**_default(budget), "objective": "kl", "join_steps": 4000}


_REFERENCE = (
    "The published code's settings for CIFAR-10, or for CIFAR-100 where there are more than ten classes: a random "
    "start, steps, rates, batches and the sum over each, crops, adapters. Still different: the last iterate, not the "
    "best epoch on the test set, unless --select best-on-test asks for it; one linear layer behind the last pool, "
    "not its two linear layers (in the teacher with a batch norm between them), unless the models are "
    "cifar_vgg16_head512 and cifar_vgg16_half_head512; an image's views are drawn once, 16,384 in all, and shown "
    "again in each phase; images are normalised as the teacher at hand wants it; bfloat16 where that is faster "
    "(--precision 32 asks for its float32); fewer adapters where widths are equal; adapters fold at the end where "
    "that is exact."
)
"""Meaning of the preset ``reference``, with all in which it departs from https://github.com/zju-vipa/NetGraft."""


@dataclass(frozen=True)
class NetGraft:
    """Graft each student block into the frozen teacher alone, then join them front to back.

    Stage 1 trains block after block, each between the teacher's blocks; stage 2 joins the trained blocks
    progressively until no teacher block is left. Both compare the logits of the grafted network with the
    teacher's. No labels.

    Blocks of a student that is solved fit together already and have some of the teacher's channels. Alone each is
    trained from these in front of it to these behind it (``block_targets``): put into the teacher it would lack the
    channels that are gone, and learn to make up for what the student's next block doesn't miss.

    A stage without steps is left out: ``join_steps`` 0 leaves blocks that only their adapters connect, and with
    ``block_steps`` 0 a join trains what it joins from its start. ``joins`` says in which order teacher blocks make room
    in stage 2: the last of them first (``back-to-front``), or all in one phase (``at-once``), which is the last join
    alone. Frozen ``adapters`` stay as they start: the choice of the teacher's channels that the student is sliced
    from, or a random projection; where widths are equal there are none. Then only the student's own blocks learn. With
    ``adapter_bias`` what remains of the adapters stays a visible layer wherever a bias can't be folded exactly, such as
    in front of a convolution that pads with zeros; frozen adapters have none.

    The preset ``reference`` is the published code's settings; its meaning lists in what it still departs from them.

    Source: Shen et al., "Progressive Network Grafting for Few-Shot Knowledge Distillation", AAAI 2021,
    arXiv 2012.04915, sections "Block Grafting" and "Network Grafting".

    Raises:
        RequestError: A hyper-parameter is out of its range, or none of its choices.

    Examples:
        >>> import netgraft, timm
        >>> teacher = netgraft.load_teacher("digits_vgg7_bn")
        >>> student = timm.create_model("digits_vgg7_bn_half")
        >>> images = netgraft.open_data("digits").train.load_many(range(20))
        >>> method = netgraft.NetGraft(block_steps=(20,), join_steps=50)
        >>> for phase in netgraft.prepare(teacher, student, images, method=method).plan.phases:
        ...     print(f"{phase.name}: {phase.schedule.steps} steps")
        graft block 2: 20 steps
        graft block 3: 20 steps
        graft block 4: 20 steps
        join blocks 2-3: 50 steps
        join blocks 2-4: 50 steps
    """

    about: ClassVar[About] = About(
        summary="Graft each student block into the frozen teacher alone, then join them front to back.",
        category="offline",
        matches="logits",
        phases="each block, then each join",
        labels="none",
        article="Shen et al., AAAI 2021, arXiv 2012.04915",
        year=2021,
    )

    presets: ClassVar[Mapping[str, Preset]] = {
        "default": Preset(
            "This project's honest best: rates, batch and steps don't depend on the number of images; a student that "
            "starts in closed form is trained at once, on maps too, and one that brings weights at once.",
            VIEW_POLICIES["rich"],
            _default,
        ),
        "thorough": Preset(
            "The default with four times as many steps of each join, on soft targets; students that start in closed "
            "form end nearer to their teachers, above all where much was cut.",
            VIEW_POLICIES["rich"],
            _thorough,
        ),
        "reference": Preset(_REFERENCE, VIEW_POLICIES["crop"], _reference, init="random"),
    }

    block_steps: tuple[int, ...] = hyperparameter((300,), "steps of stage 1, a block each; the last one repeats")
    join_steps: int = hyperparameter(1000, "steps of each join in stage 2")
    steps: int | None = hyperparameter(
        None, "of all phases together, shared out as block_steps and join_steps would have it; their sum by default"
    )
    batch_size: int = hyperparameter(64, "views a step")
    block_lr: tuple[float, ...] = hyperparameter((1e-3,), "peak rate in stage 1, a block each; the last one repeats")
    adapter_lr: float = hyperparameter(1e-3, "peak rate of the adapters in stage 1")
    join_lr: float = hyperparameter(1e-3, "peak rate of blocks and adapters in stage 2")
    schedule: str = hyperparameter("cosine", "of the rates in a phase", choices=("constant", "cosine", "one-cycle"))
    whole_epochs: bool = hyperparameter(False, "end a batch where an epoch ends")
    objective: str = hyperparameter(
        "mse",
        "what is compared: the logits' direction (normalized, the article's), the logits (mse), soft targets (kl)",
        choices=("normalized", "mse", "kl"),
    )
    sliced_rate: float = hyperparameter(0.1, "factor on all rates where the student starts with slices of all layers")
    joins: str = hyperparameter(
        "front-to-back",
        "order in which stage 2 replaces the teacher's blocks",
        choices=("front-to-back", "back-to-front", "at-once"),
    )
    adapters: str = hyperparameter("trained", "or frozen as they start", choices=("trained", "frozen"))
    adapter_bias: bool = hyperparameter(False, "adapters with a bias, which stay as layers where it can't be folded")
    adapter_init: str = hyperparameter(
        "fan-in",
        "how adapters start: fan-in (PyTorch's default, or the identity where widths are equal) or fan-out (He et al., "
        "the published code's); a sliced student's choose channels",
        choices=("fan-in", "fan-out"),
    )
    maps_weight: float = hyperparameter(
        0.0,
        "of the maps at the cuts beside the logits: squared differences in parts of the teacher's variance, times that "
        "of the logits; for students that start with channels of the teacher",
    )
    temperature: float = hyperparameter(4.0, "what logits are divided by in front of the softmax of soft targets (kl)")
    block_targets: str = hyperparameter(
        "auto",
        "what a block alone is compared on in stage 1: the logits behind the teacher's other blocks (logits, the "
        "article's), the teacher's own outputs there, of channels that it has (outputs), or outputs where the start is "
        "solved and else logits (auto)",
        choices=("auto", "logits", "outputs"),
    )

    def __post_init__(self) -> None:
        check_held(self)
        check_choices(self, *(known.name for known in fields(self)))
        if self.batch_size < 1 or min(self.join_steps, *self.block_steps, 0) < 0:
            raise RequestError(f"batch_size must be at least 1 and steps at least 0, not {self}")
        if self.steps is not None and self.steps < 0:
            raise RequestError(f"steps must be at least 0, not {self}")
        if not self.block_steps or not self.block_lr:
            raise RequestError(f"block_steps and block_lr need at least one value, not {self}")
        if not min(self.join_lr, self.adapter_lr, self.sliced_rate, *self.block_lr) > 0:
            raise RequestError(f"rates must be positive, not {self}")
        if self.maps_weight < 0:
            raise RequestError(f"maps_weight can't be negative, not {self}")
        with checked():
            SoftTargets(self.temperature)

    def plan(self, pairing: Pairing) -> Plan:
        """Return one phase for each block alone, then one for each join; those without steps are left out.

        Source: sections "Block Grafting" and "Network Grafting" of the article.

        Args:
            pairing: Teacher and student. Blocks that the student inherits are not trained.
        """
        # the bias of a frozen adapter would stay zero
        form = AdapterForm(bias=self.adapter_bias and self._trains_adapters, init=self.adapter_init)
        scions = make_scions(pairing, trained=self._trains_adapters, form=form)
        factor = self.sliced_rate if pairing.starts_close else 1.0
        # adapters, and a new head, of a student that brings its weights start at random all the same
        beside = 1.0 if pairing.init == "kept" else factor
        schedules = [self._block_schedule(k, factor, beside) for k in range(len(scions))]
        if self._compares_outputs(pairing):
            blocks = self._alone(pairing, schedules)
        else:
            blocks = [self._phase(pairing, "graft", scions, range(k, k + 1), each) for k, each in enumerate(schedules)]
        joins = [
            self._phase(pairing, "join", scions, run, self._join_schedule(factor, beside))
            for run in self._joined(len(scions))
        ]
        phases = self._shared_out([phase for phase in blocks + joins if phase.schedule.steps])
        return Plan(str(self), tuple(phase for phase in phases if phase.schedule.steps), assemble(pairing, scions))

    def _shared_out(self, phases: Sequence[Phase]) -> list[Phase]:
        """Give phases their part of ``steps``, so that these are neither more nor fewer in the end."""
        if self.steps is None or not phases:
            return list(phases)
        ends = list(accumulate(phase.schedule.steps for phase in phases))
        ends = [self.steps * end // ends[-1] for end in ends]
        return [
            replace(phase, schedule=replace(phase.schedule, steps=end - start))
            for phase, start, end in zip(phases, [0, *ends], ends, strict=False)
        ]

    @property
    def _trains_adapters(self) -> bool:
        return self.adapters == "trained"

    def _joined(self, count: int) -> list[range]:
        """Say which neighbours among ``count`` scions each phase of stage 2 trains, in order."""
        # one scion alone has nothing to be joined with, but must be trained if stage 1 leaves it out
        shortest = 2 if count > 1 or self.block_steps[0] else 1
        lengths = range(shortest, count + 1)
        if self.joins == "at-once":
            lengths = lengths[-1:]
        if self.joins == "back-to-front":
            return [range(count - length, count) for length in lengths]
        return [range(length) for length in lengths]

    def _phase(
        self, pairing: Pairing, verb: str, scions: Sequence[Scion], run: range, schedule: TrainingSchedule
    ) -> Phase:
        """Make a phase that trains a run of scions between the teacher's blocks in front of it and behind it."""
        scion = join(scions[run.start : run.stop], directly=pairing.fits_together)
        at = range(pairing.inherited + run.start, pairing.inherited + run.stop)
        numbers = f"block {at[0] + 1}" if len(at) == 1 else f"blocks {at[0] + 1}-{at[-1] + 1}"
        alone = len(at) < len(pairing) - pairing.inherited
        where = " inside the teacher" if alone else " together" if len(at) > 1 else ""
        model = graft(pairing.teacher, scion, at)
        maps = self._maps(pairing, scion, at)
        if maps:
            # their blocks must be layers of the model, one by one
            model = nn.Sequential(*(layer for part in model for layer in (scion if part is scion else [part])))
        return Phase(
            name=f"{verb} {numbers}",
            in_words=f"train {numbers} of {len(pairing)}{where}",
            model=model,
            features=tuple(student for student, _ in maps),
            teacher_features=tuple(teacher for _, teacher in maps),
            # the runner trains all of this, and nothing else
            trainable=scion if self._trains_adapters else nn.ModuleList(scion.blocks()),
            objective=self._objective,
            schedule=schedule,
            teacher=pairing.teacher,
            adapters=(*(scion.adapters() if self._trains_adapters else ()), *pairing.fresh_in(scion)),
        )

    def _compares_outputs(self, pairing: Pairing) -> bool:
        """Whether blocks alone are compared with the teacher's own outputs.

        Raises:
            RequestError: They are to be, but have no channels of the teacher.
        """
        if self.block_targets == "outputs" and not pairing.selections:
            raise RequestError(
                f"block_targets outputs compares channels that student and teacher share, and a student of init "
                f"{pairing.init!r} shares none; give logits, or a student that starts with solve or slice"
            )
        return self.block_targets == "outputs" or (
            self.block_targets == "auto" and pairing.init == "solve" and bool(pairing.selections)
        )

    def _alone(self, pairing: Pairing, schedules: Sequence[TrainingSchedule]) -> list[Phase]:
        """Make a phase a block, from the teacher's channels in front of it that it has to those behind it.

        Nothing of the teacher behind the block runs: without the channels that are gone it would answer something else.
        """
        teacher = pairing.teacher.blocks()
        # one for each cut: what is behind a block is kept for the next one too
        ends: list[list[nn.Module]] = [
            []
            if len(start) == cut.channels and not start.is_floating_point()
            else [onto_start(start, cut.layout), AsKept()]
            for start, cut in zip(pairing.selections, pairing.teacher.cuts, strict=True)
        ]
        phases = []
        for number, schedule in enumerate(schedules, pairing.inherited):
            block, last = pairing.student[number], number == len(pairing) - 1
            front = [*teacher[:number], *(ends[number - 1] if number else [])]
            wanted = [*teacher[: number + 1], *([] if last else ends[number])]
            phase = Phase(
                name=f"graft block {number + 1}",
                in_words=f"train block {number + 1} of {len(pairing)} on the teacher's own outputs",
                model=nn.Sequential(*front, block),
                trainable=nn.ModuleList([block]),
                objective=self._compared_logits if last else _compared_outputs,
                schedule=schedule,
                teacher=nn.Sequential(*wanted),
                adapters=pairing.fresh_in(block),
            )
            phases.append(phase)
        return phases

    def _maps(self, pairing: Pairing, scion: Scion, at: range) -> list[tuple[Feature, Feature]]:
        """Say which maps are compared: what the student's blocks give, with the teacher's channels that they have.

        What is in other bases has none of these; compared with the teacher's stream, projected, it ends farther off.
        """
        if not self.maps_weight or not pairing.selections:
            return []
        positions = [at.start + place for place, layer in enumerate(scion) if not isinstance(layer, AnyAdapter)]
        return [
            (
                Feature(position),
                Feature(number, ChannelSelection(pairing.selections[number], pairing.teacher.cuts[number].layout)),
            )
            for position, number in zip(positions, at, strict=True)
            if number < len(pairing.selections) and not pairing.selections[number].is_floating_point()
        ]

    def _objective(self, batch: StepOutputs) -> Mapping[str, Tensor]:
        return {**self._compared_logits(batch), **self._compared_maps(batch)}

    def _compared_maps(self, batch: StepOutputs) -> Mapping[str, Tensor]:
        if not self.maps_weight or not batch.features:
            return {}
        assert batch.target is not None
        logits = batch.target.float()
        scale = (logits - logits.mean(0)).square().mean()
        pairs = zip(batch.features, batch.teacher_features, strict=True)
        return {"maps": self.maps_weight * scale * torch.stack([RelativeError()(*pair) for pair in pairs]).sum()}

    def _compared_logits(self, batch: StepOutputs) -> Mapping[str, Tensor]:
        student, teacher = logits_of_both(batch)
        if self.objective == "mse":
            return {"logits": LogitMSE()(student, teacher)}
        if self.objective == "kl":
            return {"logits": SoftTargets(self.temperature)(student, teacher)}
        # the article's sum over the batch, of the views that are in it, whatever the number of processes
        return {"logits": batch.batch_size * NormalizedLogits(reduction="mean")(student, teacher)}

    def _block_schedule(self, number: int, factor: float, beside: float) -> TrainingSchedule:
        steps = self.block_steps[min(number, len(self.block_steps) - 1)]
        lr = self.block_lr[min(number, len(self.block_lr) - 1)]
        return self._schedule(steps, lr * factor, self.adapter_lr * beside)

    def _join_schedule(self, factor: float, beside: float) -> TrainingSchedule:
        return self._schedule(self.join_steps, self.join_lr * factor, self.join_lr * beside)

    def _schedule(self, steps: int, lr: float, adapter_lr: float) -> TrainingSchedule:
        return TrainingSchedule(
            steps=steps,
            batch_size=self.batch_size,
            lr=lr,
            adapter_lr=adapter_lr,
            lr_schedule=self.schedule,
            whole_epochs=self.whole_epochs,
        )


def _compared_outputs(batch: StepOutputs) -> Mapping[str, Tensor]:
    assert batch.target is not None
    return {"outputs": RelativeError()(batch.output, batch.target)}
