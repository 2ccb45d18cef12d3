"""The one loop that trains. It carries out any plan, on any device that Lightning Fabric knows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from netgraft.data.views import Views
from netgraft.errors import RequestError, RunError
from netgraft.modules import freeze
from netgraft.plan import Plan
from netgraft.progress import ProgressReporter, SilentReporter, training_steps
from netgraft.seeding import derived_seed, seed_generators
from netgraft.training.cache_storage import storages
from netgraft.training.frozen_cache import FrozenCache, ReadingOrder
from netgraft.training.fusion import EXAMPLES, fused_copies
from netgraft.training.onednn_workaround import zeroed_gradients_of_padding_taps
from netgraft.training.optimizers import make_optimizer
from netgraft.training.parallel import Processes, group_of, independent_groups
from netgraft.training.precision import PRECISIONS, autocast, compute_dtype, fastest, timed_images
from netgraft.training.sampling import Batches
from netgraft.training.session import ResumePoint, Session
from netgraft.training.step import FrozenParts, StepModule, explained, frozen_reads, total

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
class Runner:
    """Carries out plans.

    Attributes:
        accelerator: ``auto``, ``cpu``, ``cuda``, ``mps`` (Fabric's names).
        devices: How many processes share each batch; phases that don't depend on one another run side by side instead.
        precision: ``32``, ``bf16``, or ``auto``: the one in which this machine runs the teacher faster.
        seed: Of batches, dropout and drop path.
        checkpoint_seconds: At most this much work is lost when the process is killed.
        cache_gib: Memory for the outputs of frozen blocks; half of what is free if None.
    """

    accelerator: str = "auto"
    devices: int = 1
    precision: str = "auto"
    seed: int = 0
    checkpoint_seconds: float = 30.0
    cache_gib: float | None = None

    @cached_property
    def fabric(self) -> Fabric:
        """The devices, launched on first use.

        Raises:
            RequestError: There are no such devices.
        """
        try:
            fabric = Fabric(
                accelerator=self.accelerator,
                devices=self.devices,
                strategy="ddp" if self.devices > 1 else "auto",
            )
            fabric.launch()
        except (RuntimeError, TypeError, ValueError) as error:  # Fabric raises all of these
            raise RequestError(f"can't use {self.devices} devices of kind {self.accelerator!r}: {error}") from error
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

        Raises:
            InterruptedRunError: ``stop`` said yes.
            RunError: A loss or a weight is not finite, or the checkpoint can't be written.
            RequestError: The checkpoint belongs to another run, or there is no such precision.
        """
        if self.precision not in PRECISIONS:
            raise RequestError(f"precision must be one of {', '.join(PRECISIONS)}, not {self.precision!r}")
        device = self.fabric.device
        processes = Processes(self.fabric)
        batches = Batches(
            self.seed,
            images=len(views) // views.per_image,
            per_image=views.per_image,
            schedules=[phase.fit for phase in plan.phases],
        )
        smallest = batches.smallest()
        if smallest is not None and smallest < processes.count:
            raise RequestError(
                f"{processes.count} processes can't share a batch of {smallest}; use larger batches or fewer devices"
            )
        session = Session(
            folder=folder,
            fingerprint=fingerprint,
            precision=self.precision,
            save_every=self.checkpoint_seconds,
            stop=stop or _never,
            trainables=_trainables(plan),
            processes=processes,
        )
        loop = _Loop(
            plan=plan,
            views=views,
            batches=batches,
            device=device,
            cache_gib=self.cache_gib,
            folder=folder,
            processes=processes,
            session=session,
            # one process speaks for all
            reporter=SilentReporter() if reporter is None or processes.rank else reporter,
        )
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            return loop.run(resume)


@dataclass
class _Loop:
    """The phases of a plan, one after another, in one of the processes."""

    plan: Plan
    views: Views
    batches: Batches
    device: torch.device
    cache_gib: float | None
    folder: Path | None
    processes: Processes
    session: Session
    reporter: ProgressReporter

    def run(self, resume: bool) -> Trained:
        phases, session = self.plan.phases, self.session
        groups = list(independent_groups(phases))
        modules = _modules(self.plan).to(self.device)
        start = session.restore(resume, groups)
        frozen_seconds = 0.0
        if start.phase < len(phases):
            with freeze(modules):
                examples = self._examples()
                self._choose_precision(examples)
                cache = self._open_cache(groups, examples)
                while start.phase < len(phases):
                    start = self._fit_next(start, group_of(start.phase, groups), cache)
                    session.save(start.phase, 0, {})
            frozen_seconds = cache.seconds
        return Trained(self.plan.steps, session.seconds, frozen_seconds, session.precision)

    def _choose_precision(self, images: Tensor) -> None:
        if self.session.precision == "auto":
            first = self.plan.phases[0]
            chosen, why = fastest(first.model if first.teacher is None else first.teacher, images)
            self.session.precision = self.processes.of_first(chosen)
            self.reporter.note(f"precision {self.session.precision}: {why}")

    def _examples(self) -> Tensor:
        """Return a few views, for measurements and proofs."""
        images = self.views.batch(range(min(len(self.views), timed_images(self.views.size))))
        return images.to(self.device).to(memory_format=torch.channels_last)

    def _autocast(self) -> AbstractContextManager[Any]:
        return autocast(self.session.precision, self.device)

    def _open_cache(self, groups: Sequence[range], images: Tensor) -> FrozenCache:
        models = (m for phase in self.plan.phases for m in (phase.teacher, phase.model) if m is not None)
        dtype = compute_dtype(self.session.precision)
        limit = None if self.cache_gib is None else int(self.cache_gib * 2**30)
        return FrozenCache(
            views=self.views,
            order=ReadingOrder.of(self._readings(groups), len(self.views)),
            device=self.device,
            storages=storages(self.device, limit, self.folder, sharing=self.processes.count),
            autocast=self._autocast,
            dtype=dtype,
            faster=fused_copies(models, _trainables(self.plan), images[:EXAMPLES], dtype),
        )

    def _readings(self, groups: Sequence[range]) -> Iterator[Tensor]:
        """Yield the views that are read over the whole plan; of shared batches, the part of this process.

        Phases that other processes train count: so views are computed together as in one process alone, and a matrix
        product, whose rounding depends on the row, gives the same bits.
        """
        for number, phase in enumerate(self.plan.phases):
            divided = self.processes.divide(group_of(number, groups))
            for step in range(phase.fit.steps):
                batch = self.batches.indices(number, step)
                yield batch if divided else self.processes.part(batch)

    def _fit_next(self, start: ResumePoint, group: range, cache: FrozenCache) -> ResumePoint:
        """Train a phase, or a group of phases side by side; return where to go on."""
        if not self.processes.divide(group):
            self._fit(start, cache)
            return ResumePoint(start.phase + 1)

        def fit_alone(number: int) -> None:
            if number < start.phase:
                return
            self._fit(start if number == start.phase else ResumePoint(number), cache)
            # the last of them is done, the group is not
            self.session.save(number, self.plan.phases[number].fit.steps, {})

        self.processes.each_alone(group, fit_alone, _trainables(self.plan))
        return ResumePoint(group.stop)

    def _fit(self, start: ResumePoint, cache: FrozenCache) -> None:
        """Train a phase from some step on."""
        number, phase = start.phase, self.plan.phases[start.phase]
        before = self.session.seconds
        with self.session.training():
            self.reporter.phase_started(number + 1, len(self.plan.phases), phase.name, phase.fit.steps, start.step)
            # what later phases read of the same views is computed along with it
            cache.keep(list(frozen_reads(self.plan.phases[number:])), self.reporter)
            phase.trainable.requires_grad_(True)
            phase.trainable.train()
            optimizer = make_optimizer(phase)
            if start.optimizer:
                optimizer.load_state_dict(start.optimizer)
            # the network's own mode means nothing to its blocks, which keep theirs
            module = StepModule(phase, cache.faster, self._autocast)
            network = self.processes.connect(module)
            with zeroed_gradients_of_padding_taps(phase.trainable), training_steps():
                for step in range(start.step, phase.fit.steps):
                    self.session.heed_stop(number, step, optimizer)
                    terms = self._step(number, step, network, module.frozen, cache, optimizer)
                    logged = (step + 1) % LOG_EVERY == 0 or step + 1 == phase.fit.steps
                    if logged or self.device.type == "cpu":
                        values = self._checked(number, step, terms)
                        self.reporter.progressed(step + 1, values)
                        if logged:
                            lr = phase.fit.lr * phase.fit.factor(step)
                            self.session.log({"phase": number, "step": step + 1, "lr": lr, **values})
                        if self.session.due:
                            self.session.save(number, step + 1, optimizer.state_dict())
            # what is frozen from here on must be the same everywhere
            self.processes.share(phase.trainable.buffers(), 0)
            phase.trainable.eval()
            phase.trainable.requires_grad_(False)
        self.reporter.phase_finished(self.session.seconds - before)

    def _step(
        self,
        number: int,
        step: int,
        network: Any,
        frozen: FrozenParts,
        cache: FrozenCache,
        optimizer: torch.optim.Optimizer,
    ) -> Mapping[str, Tensor]:
        """Take one optimiser step; return the terms of the loss."""
        phase, processes = self.plan.phases[number], self.processes
        seed_generators(derived_seed("step", self.batches.seed, number, step, processes.place_in_batch), self.device)
        batch = self.batches.indices(number, step)
        part = processes.part(batch)
        labels = self.views.labels(part)
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * phase.fit.factor(step)
        with explained(phase):
            outputs = cache.read(frozen.all(), part)
            on_device = None if labels is None else labels.to(self.device, non_blocking=True)
            terms: dict[str, Tensor] = network(frozen.inputs(outputs, on_device))
            processes.backward(processes.weight(part, batch) * total(terms))
        optimizer.step()
        optimizer.zero_grad()
        return {name: value.detach() for name, value in terms.items()}

    def _checked(self, number: int, step: int, terms: Mapping[str, Tensor]) -> dict[str, float]:
        """Return the terms of a loss as numbers.

        Raises:
            RunError: One is not finite, here or in another process.
        """
        values = dict(zip(terms, torch.stack([value.float() for value in terms.values()]).tolist(), strict=True))
        if not self.processes.everywhere(all(map(math.isfinite, values.values()))):
            phase = self.plan.phases[number]
            raise RunError(
                f"the loss is {values} at step {step + 1} of phase {number + 1} ({phase.name}); "
                f"{self.session.what_stays()}; try a lower rate than {phase.fit.lr:g}"
            )
        return values


def _trainables(plan: Plan) -> nn.ModuleList:
    return nn.ModuleList(phase.trainable for phase in plan.phases)


def _modules(plan: Plan) -> nn.ModuleList:
    """Return everything that a plan runs or trains, and the deployed student, whose inherited blocks no phase runs."""
    features = [feature for phase in plan.phases for feature in (*phase.features, *phase.teacher_features)]
    parts = [feature.connector for feature in features]
    parts += [part for phase in plan.phases for part in (phase.model, phase.teacher, phase.trainable)]
    return nn.ModuleList([*(part for part in parts if part is not None), plan.student])
