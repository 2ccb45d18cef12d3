"""Distance to the limit: the runner's phases against the arithmetic that nothing can avoid, as a bare loop.

The bare loop runs the scion forward and backward and the frozen suffix forward and backward to its input, in the same
precision, on tensors already in memory. It updates no weights, reads no views, logs nothing. Filling the cache is
compared with a bare forward of the teacher over as many images in memory. ``benchmarks.gpu`` measures that on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.speed.timing import REPEATS, median, ratio, seconds, side_by_side, write
from benchmarks.studies.cifar_task import faster_precision, task
from netgraft.distillation import Distillation
from netgraft.modules import without_gradients
from netgraft.plan import Phase, StepOutputs
from netgraft.training.frozen_cache import split_before_training
from netgraft.training.fusion import fused_copies
from netgraft.training.precision import autocast, compute_dtype
from netgraft.training.runner import Runner
from netgraft.training.sampling import batch_indices

CHUNK = 256


def _as_it_is(what: Any) -> Any:
    return what


@dataclass(frozen=True)
class Way:
    """How the bare loop runs its steps.

    Attributes:
        compiled: From what is run forward to what computes the same.
        captured: From a step, which takes nothing and works on the same tensors each time, to what repeats it.
    """

    compiled: Callable[[nn.Module], nn.Module] = _as_it_is
    captured: Callable[[Callable[[], None]], Callable[[], None]] = _as_it_is


EAGER = Way()


class BareLoop:
    """The unavoidable arithmetic of a prepared task.

    Args:
        prepared: Its plan is of logits alone, as ``netgraft``'s.
        precision: ``32`` or ``bf16``.
    """

    def __init__(self, prepared: Distillation, precision: str) -> None:
        self.plan, self.precision = prepared.plan, precision
        self.device = prepared.runner.fabric.device
        self.count = prepared.views.images
        images = prepared.views.batch(range(CHUNK)).to(self.device)
        self.images = images.to(memory_format=torch.channels_last)
        models = [m for phase in self.plan.phases for m in (phase.teacher, phase.model) if m is not None]
        self.modules = nn.ModuleList(models).to(self.device)
        with without_gradients(self.modules):
            trained = nn.ModuleList(phase.trainable for phase in self.plan.phases)
            self.copies = fused_copies(models, trained, self.images[:2], compute_dtype(precision))

    def phase(self, phase: Phase, way: Way = EAGER) -> float:
        """Seconds of a phase's steps, run in some way; what making it ready takes is left out."""
        with without_gradients(self.modules):
            phase.trainable.requires_grad_(True)
            phase.trainable.train()
            prefix, rest = split_before_training(phase.model, phase.trainable)
            body = nn.Sequential(*(self.copies.get(block, block) for block in rest))
            with torch.no_grad(), autocast(self.precision, self.device):
                inputs = self.images
                for block in prefix:
                    inputs = self.copies.get(block, block)(inputs.clone())
                target = torch.randn_like(body(inputs.clone()).float())
            sizes, whole = self._sizes(phase), way.compiled(body)
            run = {
                size: way.captured(partial(self._step, phase, whole, inputs[:size].clone(), target[:size]))
                for size in sorted(set(sizes))
            }

            def steps() -> None:
                for size in sizes:
                    run[size]()

            for step in run.values():
                step()
            return seconds(steps)

    def _sizes(self, phase: Phase) -> list[int]:
        schedule = phase.schedule
        epoch = [len(part) for part in torch.arange(self.count).split(schedule.batch_size)]
        return (epoch * schedule.steps)[: schedule.steps]

    def _step(self, phase: Phase, body: nn.Module, inputs: Tensor, target: Tensor) -> None:
        with autocast(self.precision, self.device):
            output = body(inputs.clone())
        loss = phase.objective(StepOutputs(output, target, None))["logits"]
        loss.backward()
        for parameter in phase.trainable.parameters():
            parameter.grad = None

    def teacher(self, views: int) -> float:
        """Seconds of the teacher's forward over some images."""
        teacher = self.plan.phases[0].teacher
        assert teacher is not None
        body = nn.Sequential(*(self.copies.get(block, block) for block in teacher))

        def run() -> None:
            for start in range(0, views, CHUNK):
                body(self.images[: min(CHUNK, views - start)].clone())

        with torch.inference_mode(), autocast(self.precision, self.device):
            body(self.images.clone())
            return seconds(run)


Prepare = Callable[[Runner], Distillation]


def measure(
    prepare: Prepare,
    precision: str,
    *,
    accelerator: str = "auto",
    ways: Mapping[str, Way] | None = None,
    repeats: int = REPEATS,
) -> dict[str, Any]:
    """Measure steps and the filling of the cache side by side with the bare loop.

    Args:
        prepare: Makes the task, anew each time, with a runner.
        precision: ``32`` or ``bf16``.
        accelerator: Where all is run.
        ways: Other ways in which the bare loop runs its steps too.
        repeats: Of each.

    Returns:
        All seconds, their medians, and the ratios to the bare loop.
    """
    first = prepare(Runner(accelerator=accelerator))
    bare = BareLoop(prepare(Runner(accelerator=accelerator)), precision)
    filling: dict[str, list[float]] = {"netgraft": [], "bare": []}
    views = len({int(i) for i in _read(first)})

    def netgraft() -> float:
        prepared = prepare(Runner(accelerator=accelerator, precision=precision))
        trained = prepared.runner.run(prepared.plan, prepared.views)
        filling["netgraft"].append(trained.frozen_seconds)
        return trained.seconds - trained.frozen_seconds

    def bare_loop(way: Way = EAGER) -> float:
        if way is EAGER:
            filling["bare"].append(bare.teacher(views))
        return sum(bare.phase(phase, way) for phase in bare.plan.phases)

    others = {f"bare, {name}": partial(bare_loop, way) for name, way in (ways or {}).items()}
    steps = side_by_side({"netgraft": netgraft, "bare": bare_loop, **others}, repeats)
    return {
        "precision": precision,
        "views": views,
        "seconds": {"steps": steps, "filling": filling},
        "medians": {
            **{f"steps, {name}": median(values) for name, values in steps.items()},
            **{f"filling, {name}": median(values) for name, values in filling.items()},
        },
        "ratios": {
            "steps": ratio(steps, "netgraft", "bare"),
            **{name: ratio(steps, name, "bare") for name in others},
            "filling": ratio(filling, "netgraft", "bare"),
        },
    }


def main() -> None:
    """Measure and write the result file."""
    write(
        "limit",
        {
            "task": "cifar10-jpeg, VGG16 to half, 10 shots, preset reference, 840 steps",
            **measure(lambda runner: task(runner=runner), faster_precision()),
            "targets": {"steps": 1.1},
        },
    )


def _read(prepared: Distillation) -> list[int]:
    """The views that the plan reads."""
    views = prepared.views
    return [
        int(index)
        for number, phase in enumerate(prepared.plan.phases)
        for step in range(phase.schedule.steps)
        for index in batch_indices(
            prepared.runner.seed,
            number,
            step,
            images=views.images,
            per_image=views.per_image,
            batch_size=phase.schedule.batch_size,
            whole_epochs=phase.schedule.whole_epochs,
        )
    ]


if __name__ == "__main__":
    main()
