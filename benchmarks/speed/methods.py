"""Every method: images a second against a bare loop with the same loss that caches nothing.

The bare loop is what one would write by hand: render the views, run the teacher without gradients and the student with
them, in the same precision and channels-last, nothing frozen asks for a gradient, Adam as it comes. Steps and number of
views are the defaults' divided by the same number, so that each view is read as often as in a default run; preparing a
run (choosing the precision, proving the rewrites: about a second, whatever the length) is left out.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.speed.timing import median, ratio, seconds, side_by_side, write
from benchmarks.studies.cifar_task import faster_precision, task
from netgraft.data.view_policy import VIEW_POLICIES
from netgraft.distillation import Distillation
from netgraft.methods.registry import METHODS, find
from netgraft.modules import without_gradients
from netgraft.options import declared
from netgraft.plan import Phase, StepOutputs
from netgraft.training.precision import autocast
from netgraft.training.runner import Runner

SHORTER = 50

BARE_STEPS = 4

UNTRAINED = "none"
"""All that it does is one pass over the views, which no cache makes shorter."""


def shortened(method: str, precision: str) -> Distillation:
    """Prepare a method's default run with a fiftieth of its steps and views."""
    steps = {}
    for name, option in declared(find(method)).items():
        default = option.default
        if name.endswith("steps") and default is not None:  # None: their sum
            steps[name] = str((default[0] if isinstance(default, tuple) else default) // SHORTER)
    policy = VIEW_POLICIES["rich"]
    return task(
        method=method,
        preset="default",
        settings=steps,
        runner=Runner(precision=precision),
        views=replace(policy, pool=(policy.pool or 0) // SHORTER),
    )


class BareLoop:
    """One method's plan, as a loop by hand."""

    def __init__(self, prepared: Distillation, precision: str) -> None:
        self.plan, self.views, self.precision = prepared.plan, prepared.views, precision
        self.device = prepared.runner.fabric.device
        parts = [m for p in self.plan.phases for m in (p.model, p.teacher, p.trainable) if m is not None]
        self.modules = nn.ModuleList(parts).to(self.device)

    def rate(self) -> float:
        """Seconds an image, over the whole plan."""
        with without_gradients(self.modules):
            spent = sum(phase.schedule.steps * self._step_seconds(phase) for phase in self.plan.phases)
        return spent / sum(phase.schedule.steps * phase.schedule.batch_size for phase in self.plan.phases)

    def _step_seconds(self, phase: Phase) -> float:
        phase.trainable.requires_grad_(True)
        phase.trainable.train()
        optimizer = torch.optim.Adam(phase.trainable.parameters(), lr=phase.schedule.lr)
        step = partial(self._step, phase, optimizer)
        step()
        spent = statistics.median(seconds(step) for _ in range(BARE_STEPS))
        phase.trainable.eval()
        phase.trainable.requires_grad_(False)
        return spent

    def _step(self, phase: Phase, optimizer: torch.optim.Optimizer) -> None:
        indices = torch.randint(len(self.views), (phase.schedule.batch_size,))
        images = self.views.batch(indices).to(self.device).to(memory_format=torch.channels_last)
        target: Tensor | None = None
        teacher_outputs: dict[int, Tensor] = {-1: images}
        with torch.no_grad(), autocast(self.precision, self.device):
            if phase.teacher is not None:
                teacher_outputs |= _outputs(phase.teacher, images)
                target = teacher_outputs[len(phase.teacher) - 1]
            wanted = [(feature, teacher_outputs[feature.block]) for feature in phase.teacher_features]
            teacher_features = tuple(value if f.connector is None else f.connector(value) for f, value in wanted)
        front = len(phase.model) - len(_behind(phase))
        with autocast(self.precision, self.device):
            with torch.no_grad():
                given = _outputs(phase.model[:front], images)
            inputs = given[front - 1] if front else images
            inputs.requires_grad_(phase.differentiates_input)
            outputs = given | {front + n: value for n, value in _outputs(phase.model[front:], inputs).items()}
            features = tuple(
                outputs[f.block] if f.connector is None else f.connector(outputs[f.block]) for f in phase.features
            )
        output = outputs[len(phase.model) - 1]
        terms = phase.objective(
            StepOutputs(
                output, target, None, features, teacher_features, inputs if phase.differentiates_input else None
            )
        )
        loss = torch.stack([value.float() for value in terms.values()]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def _behind(phase: Phase) -> list[nn.Module]:
    """The blocks from the first trained one on."""
    trained = set(phase.trainable.modules())
    blocks = list(phase.model)
    first = next(number for number, block in enumerate(blocks) if trained & set(block.modules()))
    return blocks[first:]


def _outputs(blocks: nn.Sequential, state: Tensor) -> dict[int, Tensor]:
    outputs = {}
    for number, block in enumerate(blocks):
        state = block(state.clone())
        outputs[number] = state
    return outputs


def main() -> None:
    """Measure and write the result file."""
    precision = faster_precision()
    ratios: dict[str, float] = {}
    rates: dict[str, dict[str, float]] = {}
    measured: dict[str, dict[str, list[float]]] = {}
    for method in METHODS:
        print(method, flush=True)
        bare = BareLoop(shortened(method, precision), precision)
        runs: dict[str, Callable[[], float]] = {"netgraft": partial(_netgraft, method, precision), "bare": bare.rate}
        measured[method] = side_by_side(runs)
        ratios[method] = ratio(measured[method], "bare", "netgraft")
        rates[method] = {name: round(1 / median(values), 1) for name, values in measured[method].items()}
    write(
        "methods",
        {
            "task": "cifar10-jpeg, VGG16 to half, 10 shots, default presets, random start",
            "precision": precision,
            "seconds an image": measured,
            "images a second": rates,
            "ratios": ratios,
            "targets": {method: 1.0 if method == UNTRAINED else 2.0 for method in METHODS},
        },
    )


def _netgraft(method: str, precision: str) -> float:
    prepared = shortened(method, precision)
    trained = prepared.runner.run(prepared.plan, prepared.views)
    return trained.seconds / sum(phase.schedule.steps * phase.schedule.batch_size for phase in prepared.plan.phases)


if __name__ == "__main__":
    main()
