"""The one loop that trains. It carries out any plan, on any device that Lightning Fabric knows."""

from __future__ import annotations

import atexit
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from lightning_fabric.strategies import DDPStrategy
from torch import Tensor, distributed, nn

from netgraft.data.device_views import DeviceViews
from netgraft.data.views import Views
from netgraft.errors import RequestError, RunError
from netgraft.modules import keep_statistics, without_gradients
from netgraft.plan import Phase, Plan
from netgraft.progress import PlanListener, ProgressReporter, SilentReporter, training_steps
from netgraft.seeding import derived_seed, seed_generators
from netgraft.training.cache_storage import storages
from netgraft.training.checkpoint import load_optimizer
from netgraft.training.frozen_cache import FrozenCache, ReadingOrder
from netgraft.training.fusion import EXAMPLES, fused_copies
from netgraft.training.launchers import Launch
from netgraft.training.onednn_workaround import zeroed_gradients_of_padding_taps
from netgraft.training.optimizers import make_optimizer, set_rates
from netgraft.training.options import PRECISIONS, DeviceOptions
from netgraft.training.parallel import Processes, group_of, independent_groups, told_of_deaths
from netgraft.training.precision import autocast, compute_dtype, fastest, timed_images
from netgraft.training.sampling import Batches
from netgraft.training.session import ResumePoint, Session
from netgraft.training.step import FrozenParts, StepModule, explained, frozen_reads, total

PATIENCE = timedelta(days=7)
"""For which a process waits for others: one may derive, train phases of its own, or measure, far longer than half an
hour, PyTorch's limit. One that dies is noticed at once, by the end of its connections."""

LOG_EVERY = 10  # steps between two looks at the loss; each look waits for the device


def _never() -> bool:
    return False


@dataclass(frozen=True)
class Trained:
    """What a run cost.

    Attributes:
        steps: Optimiser steps of the whole plan.
        seconds: Wall-clock spent in the phases, the computing of what is frozen included, over all resumes.
        frozen_seconds: The part of it that went into computing what is frozen, since the last resume.
        precision: ``32`` or ``bf16``.
    """

    steps: int
    seconds: float
    frozen_seconds: float
    precision: str


@dataclass(frozen=True)
class Runner(DeviceOptions):
    """Carries out plans, where and how the options say.

    Attributes:
        seed: Of batches, dropout and drop path.

    Examples:
        >>> import netgraft, timm
        >>> runner = netgraft.Runner(accelerator="cpu", precision="32", seed=1)
        >>> runner.fabric.device
        device(type='cpu')
        >>> teacher = netgraft.load_teacher("digits_vgg7_bn")
        >>> student = timm.create_model("digits_vgg7_bn_half")
        >>> images = netgraft.open_data("digits").train.load_many(range(20))
        >>> short = netgraft.NetGraft(block_steps=(1,), join_steps=1)
        >>> prepared = netgraft.prepare(teacher, student, images, method=short, runner=runner)
        >>> runner.run(prepared.plan, prepared.views).precision
        '32'
    """

    seed: int = 0

    @cached_property
    def fabric(self) -> Fabric:
        """The devices, launched on first use.

        Raises:
            RequestError: There are no such devices, or other numbers of processes have been started already.
        """
        launch = Launch.of(os.environ)
        if launch is not None and launch.count != self.devices:
            raise RequestError(
                f"expected devices {launch.count}, as many as {launch.by} has started processes, got {self.devices}; "
                f"give --devices {launch.count}, or start one process without {launch.by}"
            )
        nodes = 1 if launch is None else launch.nodes
        try:
            fabric = Fabric(
                accelerator=self.accelerator,
                devices=self.devices // nodes,
                num_nodes=nodes,
                strategy=DDPStrategy(timeout=PATIENCE) if self.devices > 1 else "auto",
                plugins=[_cluster(launch)],
            )
            fabric.launch()
        except (ImportError, RuntimeError, TypeError, ValueError) as error:  # Fabric raises all of these
            raise RequestError(f"can't use {self.devices} devices of kind {self.accelerator!r}: {error}") from error
        if self.devices > 1:
            # threads of gloo that hold a tensor while the interpreter ends abort it; Fabric sees to this for NCCL alone
            atexit.register(_leave_processes)
        return fabric

    def run(
        self,
        plan: Plan,
        views: Views,
        *,
        folder: Path | None = None,
        fingerprint: str = "",
        resume: bool = False,
        reporter: ProgressReporter | None = None,
        stop: Callable[[], bool] | None = None,
        after_step: Callable[[int, int], None] | None = None,
    ) -> Trained:
        """Train what the plan says, in place.

        Args:
            plan: Phases in order.
            views: Images that every phase sees.
            folder: Where checkpoint and metrics go; None keeps nothing.
            fingerprint: Of everything that decides the result; guards the checkpoint.
            resume: Go on from the folder's checkpoint, if it has one.
            reporter: Told what happens.
            stop: Asked before each step; when it says yes, the run saves itself and raises.
            after_step: Told behind each step, before it can be saved, in every process that takes it: number of the
                phase (0-based), and how many of its steps are done. It changes nothing.

        Raises:
            InterruptedRunError: ``stop`` said yes.
            RunError: A loss or a weight is not finite, or the checkpoint can't be written.
            RequestError: The checkpoint belongs to another run, there is no such precision, or a log but no folder.
        """
        if self.precision not in PRECISIONS:
            raise RequestError(f"precision must be one of {', '.join(PRECISIONS)}, not {self.precision!r}")
        if self.log is not None and folder is None:
            raise RequestError(f"expected a folder for the log {self.log}, got none; give folder, or leave log out")
        device = self.fabric.device
        processes = Processes(self.fabric)
        if processes.rank or reporter is None:
            reporter = SilentReporter()  # one process speaks for all
        batches = Batches(
            self.seed,
            images=views.images,
            per_image=views.per_image,
            schedules=[phase.schedule for phase in plan.phases],
        )
        smallest = batches.smallest()
        if smallest is not None and smallest < processes.count:
            raise RequestError(
                f"{processes.count} processes can't share a batch of {smallest}; use larger batches or fewer devices"
            )
        groups = list(independent_groups(plan.phases))
        session = Session(
            folder=folder,
            fingerprint=fingerprint,
            precision=self.precision,
            save_every=self.checkpoint_seconds,
            stop=stop or _never,
            trainables=_trainables(plan),
            steps=[phase.schedule.steps for phase in plan.phases],
            processes=processes,
            log=self.log,
        )
        frozen_seconds = 0.0
        with (
            told_of_deaths(),
            closing(session),
            torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        ):
            modules = _modules(plan).to(device)
            start = session.restore(resume, groups)
            if start.phase < len(plan.phases):
                with without_gradients(modules):
                    rendered = views if device.type == "cpu" else DeviceViews(views, device)
                    examples = rendered.batch(range(min(len(views), timed_images(views.size))))
                    examples = examples.to(device).to(memory_format=torch.channels_last)
                    if session.precision == "auto":
                        session.precision = processes.of_first(_faster_precision(plan.phases[0], examples, reporter))
                    readings = _readings(batches, groups, processes)
                    endless = views.per_image is None
                    limit = None if self.cache_gib is None else int(self.cache_gib * 2**30)
                    cache = FrozenCache(
                        views=rendered,
                        order=ReadingOrder.never_again() if endless else ReadingOrder.of(readings, len(views)),
                        device=device,
                        storages=storages(device, limit, folder, sharing=processes.count),
                        autocast=partial(autocast, session.precision, device),
                        dtype=compute_dtype(session.precision),
                        faster=_faster_copies(plan, examples, session.precision),
                    )
                    if isinstance(reporter, PlanListener):
                        reporter.planned([phase.schedule.steps for phase in plan.phases])
                    loop = _Loop(plan, views, batches, groups, cache, processes, session, reporter, after_step)
                    loop.run(start)
                frozen_seconds = cache.seconds
        return Trained(plan.steps, session.seconds, frozen_seconds, session.precision)


def _cluster(launch: Launch | None) -> ClusterEnvironment:
    """Say how processes find one another. Named, since Fabric takes any shell of an allocation for a start by SLURM."""
    if launch is None:
        return LightningEnvironment()
    return TorchElasticEnvironment() if launch.by == "torchrun" else SLURMEnvironment(auto_requeue=False)


def _leave_processes() -> None:
    if distributed.is_initialized():
        distributed.destroy_process_group()


@dataclass
class _Loop:
    """The phases of a plan, one after another, in one of the processes; everything is frozen between them."""

    plan: Plan
    views: Views
    batches: Batches
    groups: Sequence[range]
    cache: FrozenCache
    processes: Processes
    session: Session
    reporter: ProgressReporter
    after_step: Callable[[int, int], None] | None = None

    def run(self, start: ResumePoint) -> None:
        """Go on from some point to the end."""
        while start.phase < len(self.plan.phases):
            group = group_of(start.phase, self.groups)
            if self.processes.divide(group):
                self._fit_side_by_side(group, start)
                start = ResumePoint(group.stop)
            else:
                self._fit(start)
                start = ResumePoint(start.phase + 1)
            self.session.save(start.phase, 0, {})

    def _fit_side_by_side(self, group: range, start: ResumePoint) -> None:
        """Train each phase of a group in one process alone."""

        def train(number: int) -> None:
            if number < start.phase:
                return
            self._fit(start if number == start.phase else ResumePoint(number))
            # the last of them is done, the group is not
            self.session.save(number, self.plan.phases[number].schedule.steps, {})

        self.processes.each_alone(group, train, _trainables(self.plan))

    def _fit(self, start: ResumePoint) -> None:
        """Train a phase from some step on."""
        number, phase, session = start.phase, self.plan.phases[start.phase], self.session
        before = session.seconds
        with session.training():
            self.reporter.phase_started(number + 1, len(self.plan.phases), phase.name, phase.schedule.steps, start.step)
            # what later phases read of the same views is computed along with it
            self.cache.keep(list(frozen_reads(self.plan.phases[number:])), self.reporter)
            phase.trainable.requires_grad_(True)
            phase.trainable.train()
            if self.plan.keeps_statistics is not None:
                keep_statistics(self.plan.keeps_statistics)
            optimizer = make_optimizer(phase)
            if start.optimizer:
                load_optimizer(optimizer, start.optimizer)
            # the network's own mode means nothing to its blocks, which keep theirs
            module = StepModule(phase, self.cache.faster, self.cache.autocast)
            network = self.processes.connect(module)
            with zeroed_gradients_of_padding_taps(phase.trainable), training_steps():
                for step in range(start.step, phase.schedule.steps):
                    session.heed_stop(number, step, optimizer)
                    set_rates(optimizer, phase.schedule.factor(step))
                    with explained(phase):
                        terms = self._compute_gradients(number, step, network, module.frozen)
                    optimizer.step()
                    optimizer.zero_grad()
                    if self.after_step is not None:
                        self.after_step(number, step + 1)
                    if _is_logged(step, phase) or self.cache.device.type == "cpu":
                        self._report(number, step, terms)
                        if session.due:
                            session.save(number, step + 1, optimizer.state_dict())
            # what is frozen from here on must be the same everywhere
            self.processes.share(phase.trainable.buffers(), 0)
            phase.trainable.eval()
            phase.trainable.requires_grad_(False)
        self.reporter.phase_finished(session.seconds - before)

    def _compute_gradients(self, number: int, step: int, network: Any, frozen: FrozenParts) -> dict[str, Tensor]:
        """Run a step forward and backward; return the terms of its loss."""
        processes, device = self.processes, self.cache.device
        seed_generators(derived_seed("step", self.batches.seed, number, step, processes.place_in_batch), device)
        batch = self.batches.indices(number, step)
        part = processes.part(batch)
        labels = self.views.labels(part)
        outputs = self.cache.read(frozen.all(), part)
        if not self.cache.order.repeated and step + 1 < self.plan.phases[number].schedule.steps:
            self.views.ahead(processes.part(self.batches.indices(number, step + 1)))
        inputs = frozen.inputs(
            outputs,
            None if labels is None else labels.to(device, non_blocking=True),
            whole_batch=len(batch),
            progress=step / self.plan.phases[number].schedule.steps,
        )
        terms: dict[str, Tensor] = network(inputs)
        processes.backward(processes.weight(part, batch) * total(terms))
        return {name: value.detach() for name, value in terms.items()}

    def _report(self, number: int, step: int, terms: Mapping[str, Tensor]) -> None:
        """Look at the terms of a loss.

        Raises:
            RunError: One is not finite, here or in another process.
        """
        phase = self.plan.phases[number]
        values = dict(zip(terms, torch.stack([value.float() for value in terms.values()]).tolist(), strict=True))
        if not self.processes.everywhere(all(map(math.isfinite, values.values()))):
            raise RunError(
                f"the loss is {values} at step {step + 1} of phase {number + 1} ({phase.name}); "
                f"{self.session.what_stays()}; try a lower rate than {phase.schedule.lr:g}"
            )
        self.reporter.progressed(step + 1, values)
        if _is_logged(step, phase):
            lr = phase.schedule.lr * phase.schedule.factor(step)
            self.session.log({"phase": number, "step": step + 1, "lr": lr, **values})


def _is_logged(step: int, phase: Phase) -> bool:
    return (step + 1) % LOG_EVERY == 0 or step + 1 == phase.schedule.steps


def _trainables(plan: Plan) -> nn.ModuleList:
    return nn.ModuleList(phase.trainable for phase in plan.phases)


def _modules(plan: Plan) -> nn.ModuleList:
    """Return everything that a plan runs or trains, and the deployed student, whose inherited blocks no phase runs."""
    features = [feature for phase in plan.phases for feature in (*phase.features, *phase.teacher_features)]
    parts = [feature.connector for feature in features]
    parts += [part for phase in plan.phases for part in (phase.model, phase.teacher, phase.trainable)]
    return nn.ModuleList([*(part for part in parts if part is not None), plan.student])


def _faster_precision(first: Phase, images: Tensor, reporter: ProgressReporter) -> str:
    chosen, why = fastest(first.model if first.teacher is None else first.teacher, images)
    reporter.note(f"precision {chosen}: {why}")
    return chosen


def _faster_copies(plan: Plan, images: Tensor, precision: str) -> dict[nn.Module, nn.Module]:
    models = (model for phase in plan.phases for model in (phase.teacher, phase.model) if model is not None)
    return fused_copies(models, _trainables(plan), images[:EXAMPLES], compute_dtype(precision))


def _readings(batches: Batches, groups: Sequence[range], processes: Processes) -> Iterator[Tensor]:
    """Yield the views that are read over the whole plan; of shared batches, the part of this process.

    Phases that other processes train count: so views are computed together as in one process alone, and a matrix
    product, whose rounding depends on the row, gives the same bits.
    """
    for number, schedule in enumerate(batches.schedules):
        divided = processes.divide(group_of(number, groups))
        for step in range(schedule.steps):
            batch = batches.indices(number, step)
            yield batch if divided else processes.part(batch)
