"""The one loop that trains. It carries out any plan, on any device that Lightning Fabric knows."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from netgraft.batches import batch_indices, derived_seed
from netgraft.caching import Frozen, FrozenOutputs, frozen_prefix, overlap
from netgraft.checkpoint import Checkpoint, what_stays
from netgraft.errors import InterruptedRunError, RequestError, RunError
from netgraft.files import write_text
from netgraft.phases import Batch, Fit, Phase, Plan
from netgraft.reporting import Quiet, Reporter
from netgraft.views import Views

LOG_EVERY = 10  # steps between two looks at the loss; each look waits for the device
CHECKPOINT = "checkpoint.pt"
METRICS = "metrics.jsonl"


def _never() -> bool:
    return False


@dataclass(frozen=True)
class Trained:
    """What a run cost.

    Attributes:
        steps: Optimiser steps of the whole plan.
        seconds: Wall-clock spent in the phases, the computing of what is frozen included, over all resumes.
    """

    steps: int
    seconds: float


@dataclass(frozen=True)
class Runner:
    """Carries out plans.

    Attributes:
        accelerator: ``auto``, ``cpu``, ``cuda``, ``mps`` (Fabric's names).
        devices: How many processes share each batch.
        precision: ``32-true`` or ``bf16-mixed`` (Fabric's names).
        seed: Of batches, dropout and drop path.
        checkpoint_seconds: At most this much work is lost when the process is killed.
        cache_gib: Memory for the outputs of frozen blocks.
    """

    accelerator: str = "auto"
    devices: int = 1
    precision: str = "32-true"
    seed: int = 0
    checkpoint_seconds: float = 30.0
    cache_gib: float = 4.0

    @cached_property
    def fabric(self) -> Fabric:
        """The devices, launched on first use.

        Raises:
            RequestError: There are no such devices, or they don't know the precision.
        """
        try:
            fabric = Fabric(
                accelerator=self.accelerator,
                devices=self.devices,
                precision=self.precision,  # type: ignore[arg-type]
                strategy="ddp" if self.devices > 1 else "auto",
            )
            fabric.launch()
        except (RuntimeError, TypeError, ValueError) as error:  # Fabric raises all of these
            raise RequestError(
                f"can't use {self.devices} devices of kind {self.accelerator!r} with {self.precision}: {error}"
            ) from error
        return fabric

    def run(
        self,
        plan: Plan,
        views: Views,
        *,
        folder: Path | None = None,
        fingerprint: str = "",
        resume: bool = False,
        reporter: Reporter | None = None,
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
            RequestError: The checkpoint belongs to another run.
        """
        device = self.fabric.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            return _Execution(self, plan, views, folder, fingerprint, reporter or Quiet(), stop or _never).run(resume)


@dataclass
class _Execution:
    """One plan being carried out."""

    runner: Runner
    plan: Plan
    views: Views
    folder: Path | None
    fingerprint: str
    reporter: Reporter
    stop: Callable[[], bool]

    def __post_init__(self) -> None:
        self.fabric = self.runner.fabric
        if not self.fabric.is_global_zero:
            self.folder, self.reporter = None, Quiet()
        everything = [m for phase in self.plan.phases for m in (phase.model, phase.teacher) if m is not None]
        # the deployed student too, whose inherited blocks no phase runs
        self.modules = nn.ModuleList([*everything, self.plan.student]).to(self.fabric.device)
        self.trainables = nn.ModuleList(phase.trainable for phase in self.plan.phases)
        smallest = min((self._smallest_batch(phase.fit) for phase in self.plan.phases), default=self.fabric.world_size)
        if smallest < self.fabric.world_size:
            raise RequestError(
                f"{self.fabric.world_size} processes can't share a batch of {smallest}; use larger batches or fewer "
                "devices"
            )
        mixed = self.runner.precision == "bf16-mixed"
        self.cache = FrozenOutputs(
            views=self.views,
            device=self.fabric.device,
            autocast=self.fabric.autocast,
            budget=int(self.runner.cache_gib * 2**30),
            dtype=torch.bfloat16 if mixed else torch.float32,
        )
        self.saved_at = time.monotonic()
        self.seconds = 0.0

    def run(self, resume: bool) -> Trained:
        first, done, optimizer = self._restore(resume)
        with _frozen(self.modules):
            for number in range(first, len(self.plan.phases)):
                self._fit(number, done if number == first else 0, optimizer if number == first else {})
            if first < len(self.plan.phases):
                self._save(len(self.plan.phases), 0, {})
        return Trained(self.plan.steps, self.seconds)

    def _smallest_batch(self, fit: Fit) -> int:
        last = len(self.views) // self.views.per_image % fit.batch_size
        return last if fit.whole_epochs and last else fit.batch_size

    def _restore(self, resume: bool) -> tuple[int, int, dict[str, Any]]:
        path = self.folder / CHECKPOINT if self.folder else None
        loaded: Checkpoint | None = None
        if resume and path is not None and path.exists():
            loaded = Checkpoint.load(path, self.fingerprint)
        if self.fabric.world_size > 1:
            loaded = self.fabric.broadcast(loaded)
        if loaded is None:
            self._rewind_metrics(0, 0)
            return 0, 0, {}
        self.trainables.load_state_dict(loaded.weights)
        self.seconds = loaded.seconds
        self._rewind_metrics(loaded.phase, loaded.step)
        return loaded.phase, loaded.step, loaded.optimizer

    def _fit(self, number: int, done: int, optimizer_state: dict[str, Any]) -> None:
        phase = self.plan.phases[number]
        started = time.monotonic()
        spent = self.seconds
        self.reporter.phase_started(number + 1, len(self.plan.phases), phase.name, phase.fit.steps, done)
        # one pass over the views serves every phase that reads the same frozen blocks
        self.cache.compute(_still_frozen(self.plan.phases[number:]), self.reporter)
        phase.trainable.requires_grad_(True)
        phase.trainable.train()
        prefix, rest = frozen_prefix(phase.model, phase.trainable)
        optimizer = _optimizer(phase)
        if optimizer_state:
            optimizer.load_state_dict(optimizer_state)
        # the shell's mode means nothing to its children, which keep theirs
        model, optimizer = self.fabric.setup(rest, optimizer)
        for step in range(done, phase.fit.steps):
            self._heed_stop(number, step, optimizer, started, spent)
            terms = self._step(phase, number, step, prefix, model, optimizer)
            looked = (step + 1) % LOG_EVERY == 0 or step + 1 == phase.fit.steps or self.fabric.device.type == "cpu"
            if looked:
                self._look(number, step, terms, phase.fit)
            self.seconds = spent + time.monotonic() - started
            if looked and time.monotonic() - self.saved_at > self.runner.checkpoint_seconds:
                self._save(number, step + 1, optimizer.state_dict())
        self._share_buffers(phase.trainable)
        phase.trainable.eval()
        phase.trainable.requires_grad_(False)
        self.seconds = spent + time.monotonic() - started
        self._save(number + 1, 0, {})
        self.reporter.phase_finished(time.monotonic() - started)

    def _step(
        self, phase: Phase, number: int, step: int, prefix: Frozen, model: nn.Module, optimizer: Any
    ) -> Mapping[str, Tensor]:
        torch.manual_seed(derived_seed("step", self.runner.seed, number, step, self.fabric.global_rank))
        whole = batch_indices(
            self.runner.seed,
            number,
            step,
            images=len(self.views) // self.views.per_image,
            per_image=self.views.per_image,
            batch_size=phase.fit.batch_size,
            whole_epochs=phase.fit.whole_epochs,
        )
        indices = whole[self.fabric.global_rank :: self.fabric.world_size]
        batch = Batch(
            output=model(self.cache.rows(prefix, indices)),
            target=None if phase.teacher is None else self.cache.rows(tuple(phase.teacher), indices),
            labels=self._labels(indices),
        )
        terms = phase.objective(batch)
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * phase.fit.factor(step)
        # the processes' gradients are averaged; each counts by its part of the batch
        part = len(indices) * self.fabric.world_size / len(whole)
        self.fabric.backward(part * _total(terms))
        optimizer.step()
        optimizer.zero_grad()
        return {name: value.detach() for name, value in terms.items()}

    def _labels(self, indices: Tensor) -> Tensor | None:
        labels = self.views.labels(indices)
        return None if labels is None else labels.to(self.fabric.device)

    def _look(self, number: int, step: int, terms: Mapping[str, Tensor], fit: Fit) -> None:
        values = {name: float(value) for name, value in terms.items()}
        if not self._everywhere(all(map(math.isfinite, values.values()))):
            kept = what_stays(self.folder / CHECKPOINT) if self.folder else "nothing was saved"
            raise RunError(
                f"the loss is {values} at step {step + 1} of phase {number + 1} "
                f"({self.plan.phases[number].name}); {kept}; try a lower rate than {fit.lr:g}"
            )
        self.reporter.progressed(step + 1, values)
        if self.folder is not None and ((step + 1) % LOG_EVERY == 0 or step + 1 == fit.steps):
            row = {"phase": number, "step": step + 1, "lr": fit.lr * fit.factor(step), **values}
            try:
                with (self.folder / METRICS).open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
            except OSError as error:
                raise RunError(f"could not write {self.folder / METRICS}: {error}; go on with --resume") from error

    def _heed_stop(self, number: int, step: int, optimizer: Any, started: float, spent: float) -> None:
        if not self._everywhere(not self.stop()):
            self.seconds = spent + time.monotonic() - started
            self._save(number, step, optimizer.state_dict())
            raise InterruptedRunError(
                f"stopped before step {step + 1} of phase {number + 1}"
                + (f"; saved in {self.folder}, go on with --resume" if self.folder else "")
            )

    def _everywhere(self, fine: bool) -> bool:
        """Whether all is fine in every process: they must leave at the same step."""
        if self.fabric.world_size == 1:
            return fine
        votes = self.fabric.all_reduce(torch.tensor(float(fine), device=self.fabric.device), reduce_op="sum")
        assert isinstance(votes, Tensor)
        return int(votes) == self.fabric.world_size

    def _save(self, phase: int, step: int, optimizer: dict[str, Any]) -> None:
        if self.folder is None:
            return
        weights = {name: value.cpu() for name, value in self.trainables.state_dict().items()}
        Checkpoint(self.fingerprint, phase, step, self.seconds, weights, optimizer).save(self.folder / CHECKPOINT)
        self.saved_at = time.monotonic()

    def _rewind_metrics(self, phase: int, step: int) -> None:
        """Drop the lines behind the point from which the run goes on: they will be written again."""
        path = self.folder / METRICS if self.folder else None
        if path is None or not path.exists():
            return
        kept = []
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                break  # cut off by a kill
            if (row["phase"], row["step"]) <= (phase, step):
                kept.append(line + "\n")
        write_text(path, "".join(kept))

    def _share_buffers(self, trainable: nn.Module) -> None:
        """Give every process the batch-norm statistics of the first: what is frozen must be the same everywhere."""
        if self.fabric.world_size > 1:
            for buffer in trainable.buffers():
                torch.distributed.broadcast(buffer, src=0)


def _wanted(phase: Phase) -> Iterator[Frozen]:
    prefix, _ = frozen_prefix(phase.model, phase.trainable)
    yield prefix
    if phase.teacher is not None:
        yield tuple(phase.teacher)


def _still_frozen(phases: Sequence[Phase]) -> Iterator[Frozen]:
    """What the phases read, left out what an earlier one of them trains: that is not final yet."""
    trained: list[nn.Module] = []
    for phase in phases:
        for prefix in _wanted(phase):
            if not any(overlap(block, trainable) for block in prefix for trainable in trained):
                yield prefix
        trained.append(phase.trainable)


def _total(terms: Mapping[str, Tensor]) -> Tensor:
    return torch.stack([value.float() for value in terms.values()]).sum()


@contextmanager
def _frozen(modules: nn.ModuleList) -> Iterator[None]:
    """Freeze everything, in eval mode, and leave flags and modes as they were found."""
    flags = [(parameter, parameter.requires_grad) for parameter in modules.parameters()]
    modes = [(module, module.training) for module in modules.modules()]
    modules.requires_grad_(False)
    modules.eval()
    try:
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
            parameter.grad = None
        for module, mode in modes:
            module.training = mode


def _optimizer(phase: Phase) -> torch.optim.Optimizer:
    fit = phase.fit
    special = {parameter for adapter in phase.adapters for parameter in adapter.parameters()}
    peaks = {True: fit.lr if fit.adapter_lr is None else fit.adapter_lr, False: fit.lr}
    groups: list[dict[str, Any]] = []
    for is_special, peak in peaks.items():
        for decays in (True, False):
            chosen = [
                p for p in phase.trainable.parameters() if (p in special) == is_special and (p.dim() > 1) == decays
            ]
            if chosen:
                decay = fit.weight_decay if decays else 0.0
                groups.append({"params": chosen, "lr": peak, "peak": peak, "weight_decay": decay})
    if fit.optimizer == "adam":
        return torch.optim.Adam(groups)
    if fit.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=fit.lr, momentum=0.9, nesterov=True)
    raise ValueError(f"optimizer must be adam or sgd, not {fit.optimizer!r}")
