"""The one loop that trains. It carries out any plan, on any device that Lightning Fabric knows."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from netgraft.data.views import Views
from netgraft.errors import InterruptedRunError, RequestError, RunError
from netgraft.modules import freeze
from netgraft.plan import Plan, TrainingSchedule
from netgraft.progress import ProgressReporter, SilentReporter
from netgraft.seeding import derived_seed, seed_generators
from netgraft.training.cache_storage import storages
from netgraft.training.checkpoint import Checkpoint, what_stays
from netgraft.training.frozen_cache import FrozenBlocks, FrozenCache, ReadingOrder
from netgraft.training.fusion import EXAMPLES, fused_copies
from netgraft.training.metrics_log import MetricsLog
from netgraft.training.onednn_workaround import unmet_taps_at_rest
from netgraft.training.optimizers import make_optimizer
from netgraft.training.parallel import independent_groups, lane
from netgraft.training.precision import PRECISIONS, autocast, compute_dtype, fastest, timed_images
from netgraft.training.sampling import batch_indices
from netgraft.training.step import StepModule, explained, still_frozen, total

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
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            return _Execution(self, plan, views, folder, fingerprint, reporter or SilentReporter(), stop or _never).run(
                resume
            )


@dataclass
class _Execution:
    """One plan being carried out by one of the processes."""

    runner: Runner
    plan: Plan
    views: Views
    folder: Path | None
    fingerprint: str
    reporter: ProgressReporter
    stop: Callable[[], bool]

    def __post_init__(self) -> None:
        self.fabric = self.runner.fabric
        self.rank, self.ranks = self.fabric.global_rank, self.fabric.world_size
        # whether this process shares its batches with no other
        self.alone = self.ranks == 1
        if self.rank:
            self.reporter = SilentReporter()
        suffix = f"-{self.rank}" if self.rank else ""
        self.path = self.folder / f"checkpoint{suffix}.pt" if self.folder else None
        self.log = MetricsLog(self.folder / f"metrics{suffix}.jsonl") if self.folder else None
        phases = self.plan.phases
        connectors = [feature.connector for p in phases for feature in (*p.features, *p.teacher_features)]
        parts = [*connectors, *(m for p in phases for m in (p.model, p.teacher, p.trainable))]
        everything = [part for part in parts if part is not None]
        # the deployed student too, whose inherited blocks no phase runs
        self.modules = nn.ModuleList([*everything, self.plan.student]).to(self.fabric.device)
        self.trainables = nn.ModuleList(phase.trainable for phase in self.plan.phases)
        self.groups = list(independent_groups(self.plan.phases))
        self.precision = self.runner.precision
        self.saved_at = time.monotonic()
        self.seconds = 0.0
        smallest = min((self._smallest_batch(phase.fit) for phase in self.plan.phases), default=self.ranks)
        if smallest < self.ranks:
            raise RequestError(
                f"{self.ranks} processes can't share a batch of {smallest}; use larger batches or fewer devices"
            )

    def run(self, resume: bool) -> Trained:
        number, done, optimizer = self._restore(resume)
        if number == len(self.plan.phases):
            return Trained(self.plan.steps, self.seconds, 0.0, self.precision)
        with freeze(self.modules):
            self._prepare()
            while number < len(self.plan.phases):
                group = self._group(number)
                if self.ranks > 1 and len(group) > 1:
                    self._fit_side_by_side(group, number, done, optimizer)
                    number = group.stop
                else:
                    self._fit(number, done, optimizer)
                    number += 1
                done, optimizer = 0, {}
                self._save(number, 0, {})
        return Trained(self.plan.steps, self.seconds, self.cache.seconds, self.precision)

    def _group(self, number: int) -> range:
        return next((group for group in self.groups if number in group), range(number, number + 1))

    def _smallest_batch(self, fit: TrainingSchedule) -> int:
        last = len(self.views) // self.views.per_image % fit.batch_size
        return last if fit.whole_epochs and last else fit.batch_size

    def _restore(self, resume: bool) -> tuple[int, int, dict[str, Any]]:
        """Load weights; return where to go on and the state of the optimiser there."""
        own: Checkpoint | None = None
        if resume and self.path is not None and self.path.exists():
            own = Checkpoint.load(self.path, self.fingerprint)
        main = own if self.ranks == 1 else self.fabric.broadcast(own)
        if main is None:
            self._rewind(0, 0)
            return 0, 0, {}
        # a process that trained phases of its own goes on with those, or begins them again: the first has only its own
        group = self._group(main.phase)
        loaded = own if own is not None and own.phase in group else main
        begins_again = self.rank > 0 and loaded is main and len(group) > 1
        phase, step, optimizer = (group.start, 0, {}) if begins_again else (loaded.phase, loaded.step, loaded.optimizer)
        if self.precision not in {"auto", loaded.precision}:
            raise RequestError(
                f"{self.path} was computed with precision {loaded.precision}, not {self.precision}; "
                "ask for the same, or choose another --out"
            )
        self.precision = loaded.precision
        self.trainables.load_state_dict(loaded.weights)
        self.seconds = loaded.seconds
        self._rewind(phase, step)
        return phase, step, optimizer

    def _rewind(self, phase: int, step: int) -> None:
        if self.log is not None:
            self.log.rewind(phase, step)

    def _prepare(self) -> None:
        """Choose the precision, make the copies of what never trains, and open the cache."""
        device = self.fabric.device
        phases = self.plan.phases
        images = self.views.batch(range(min(len(self.views), timed_images(self.views.size))))
        images = images.to(device).to(memory_format=torch.channels_last)
        if self.precision == "auto":
            chosen, why = fastest(phases[0].model if phases[0].teacher is None else phases[0].teacher, images)
            self.precision = chosen if self.ranks == 1 else self.fabric.broadcast(chosen)
            self.reporter.note(f"precision {self.precision}: {why}")
        models = (m for phase in phases for m in (phase.teacher, phase.model) if m is not None)
        dtype = compute_dtype(self.precision)
        limit = None if self.runner.cache_gib is None else int(self.runner.cache_gib * 2**30)
        self.cache = FrozenCache(
            views=self.views,
            order=ReadingOrder.of(self._readings(), len(self.views)),
            device=device,
            places=storages(device, limit, self.folder, sharing=self.ranks),
            autocast=self._autocast,
            dtype=dtype,
            faster=fused_copies(models, self.trainables, images[:EXAMPLES], dtype),
        )

    def _autocast(self) -> Any:
        return autocast(self.precision, self.fabric.device)

    def _readings(self) -> Iterator[Tensor]:
        """The views that are read over the whole plan; of batches that are shared, the part of this process.

        Phases that other processes train count: so views are computed together as in one process alone, and a matrix
        product, whose rounding depends on the row, gives the same bits.
        """
        for number, phase in enumerate(self.plan.phases):
            apart = self.ranks > 1 and len(self._group(number)) > 1
            for step in range(phase.fit.steps):
                whole = self._batch(number, step)
                yield whole if apart else whole[self.rank :: self.ranks]

    def _batch(self, number: int, step: int) -> Tensor:
        fit = self.plan.phases[number].fit
        return batch_indices(
            self.runner.seed,
            number,
            step,
            images=len(self.views) // self.views.per_image,
            per_image=self.views.per_image,
            batch_size=fit.batch_size,
            whole_epochs=fit.whole_epochs,
        )

    def _fit_side_by_side(self, group: range, first: int, done: int, optimizer: dict[str, Any]) -> None:
        """Train each phase of a group in one process alone, then give its result to all."""
        failure: InterruptedRunError | RunError | None = None
        self.alone = True
        try:
            for number in lane(group, self.rank, self.ranks):
                if number >= first:
                    resumed = number == first
                    self._fit(number, done if resumed else 0, optimizer if resumed else {})
                    # the last of them is done, the group is not
                    self._save(number, self.plan.phases[number].fit.steps, {})
        except (InterruptedRunError, RunError) as error:
            failure = error
        self.alone = False
        if not self._everywhere(failure is None):
            raise failure or InterruptedRunError("another process has stopped; go on with --resume")
        for place, number in enumerate(group):
            self._share(self.plan.phases[number].trainable.state_dict().values(), place % self.ranks)

    def _fit(self, number: int, done: int, optimizer_state: dict[str, Any]) -> None:
        phase = self.plan.phases[number]
        started = time.monotonic()
        spent = self.seconds
        self.reporter.phase_started(number + 1, len(self.plan.phases), phase.name, phase.fit.steps, done)
        # what later phases read of the same views is computed along with it
        self.cache.keep(list(still_frozen(self.plan.phases[number:])), self.reporter)
        phase.trainable.requires_grad_(True)
        phase.trainable.train()
        optimizer = make_optimizer(phase)
        if optimizer_state:
            optimizer.load_state_dict(optimizer_state)
        # the network's own mode means nothing to its blocks, which keep theirs
        plain = StepModule(phase, self.cache.faster, self._autocast)
        reading = plain.reading.all()
        network: Any = plain if self.alone else self.fabric.setup_module(plain)
        with unmet_taps_at_rest(phase.trainable):
            for step in range(done, phase.fit.steps):
                self._heed_stop(number, step, optimizer, started, spent)
                terms = self._step(number, step, reading, network, optimizer)
                looked = (step + 1) % LOG_EVERY == 0 or step + 1 == phase.fit.steps or self.fabric.device.type == "cpu"
                if looked:
                    self._look(number, step, terms, phase.fit)
                self.seconds = spent + time.monotonic() - started
                if looked and time.monotonic() - self.saved_at > self.runner.checkpoint_seconds:
                    self._save(number, step + 1, optimizer.state_dict())
        if not self.alone:
            # what is frozen must be the same everywhere
            self._share(phase.trainable.buffers(), 0)
        phase.trainable.eval()
        phase.trainable.requires_grad_(False)
        self.seconds = spent + time.monotonic() - started
        self.reporter.phase_finished(time.monotonic() - started)

    def _step(
        self, number: int, step: int, reading: Sequence[FrozenBlocks], network: Any, optimizer: torch.optim.Optimizer
    ) -> Mapping[str, Tensor]:
        rank, ranks = (0, 1) if self.alone else (self.rank, self.ranks)
        seed_generators(derived_seed("step", self.runner.seed, number, step, rank), self.fabric.device)
        whole = self._batch(number, step)
        indices = whole[rank::ranks]
        labels = self.views.labels(indices)
        phase = self.plan.phases[number]
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * phase.fit.factor(step)
        with explained(phase):
            terms: dict[str, Tensor] = network(
                self.cache.rows(reading, indices),
                None if labels is None else labels.to(self.fabric.device, non_blocking=True),
            )
            # the processes' gradients are averaged; each counts by its part of the batch
            loss = len(indices) * ranks / len(whole) * total(terms)
            if self.alone:
                loss.backward()
            else:
                self.fabric.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        return {name: value.detach() for name, value in terms.items()}

    def _look(self, number: int, step: int, terms: Mapping[str, Tensor], fit: TrainingSchedule) -> None:
        values = dict(zip(terms, torch.stack([value.float() for value in terms.values()]).tolist(), strict=True))
        if not self._everywhere(all(map(math.isfinite, values.values()))):
            kept = "nothing was saved" if self.path is None else what_stays(self.path)
            raise RunError(
                f"the loss is {values} at step {step + 1} of phase {number + 1} "
                f"({self.plan.phases[number].name}); {kept}; try a lower rate than {fit.lr:g}"
            )
        self.reporter.progressed(step + 1, values)
        if self.log and self._writes and ((step + 1) % LOG_EVERY == 0 or step + 1 == fit.steps):
            self.log.append({"phase": number, "step": step + 1, "lr": fit.lr * fit.factor(step), **values})

    def _heed_stop(self, number: int, step: int, optimizer: Any, started: float, spent: float) -> None:
        if not self._everywhere(not self.stop()):
            self.seconds = spent + time.monotonic() - started
            self._save(number, step, optimizer.state_dict())
            raise InterruptedRunError(
                f"stopped before step {step + 1} of phase {number + 1}"
                + (f"; saved in {self.folder}, go on with --resume" if self.folder else "")
            )

    @property
    def _writes(self) -> bool:
        return self.alone or self.rank == 0

    def _everywhere(self, fine: bool) -> bool:
        """Whether all is fine in every process: they must leave at the same step."""
        if self.alone:
            return fine
        votes = self.fabric.all_reduce(torch.tensor(float(fine), device=self.fabric.device), reduce_op="sum")
        assert isinstance(votes, Tensor)
        return int(votes) == self.ranks

    def _save(self, phase: int, step: int, optimizer: dict[str, Any]) -> None:
        if self.path is None or not self._writes:
            return
        weights = {name: value.cpu() for name, value in self.trainables.state_dict().items()}
        Checkpoint(self.fingerprint, self.precision, phase, step, self.seconds, weights, optimizer).save(self.path)
        self.saved_at = time.monotonic()

    @staticmethod
    def _share(tensors: Iterable[Tensor], owner: int) -> None:
        """Give every process the values of one."""
        for tensor in tensors:
            values = tensor.contiguous()
            torch.distributed.broadcast(values, src=owner)
            tensor.copy_(values)
