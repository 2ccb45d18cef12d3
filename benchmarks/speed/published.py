"""The whole published schedule, 10 shots: this project against a plain loop that does what the published code does.

The plain loop runs the teacher twice a step (once for its logits, once with the scion in it), in float32, with
gradients for the teacher's weights too, and the whole test set after each epoch. It is timed over one epoch of each
phase and a tenth of the test set, and multiplied; ``python -m benchmarks.speed.published --complete`` runs it once from
the beginning to the end, without tests, as a check.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.speed.timing import median, ratio, seconds, side_by_side, write
from benchmarks.studies.cifar_task import source, task
from netgraft.data.loader import eval_loader
from netgraft.distillation import Distillation
from netgraft.plan import Phase, StepOutputs

TEST_IMAGES = 1000


class PlainLoop:
    """The published code's way through a plan."""

    def __init__(self, prepared: Distillation) -> None:
        self.plan = prepared.plan
        self.views = prepared.views
        self.teacher = prepared.teacher.eval()
        self.images = self.views.images
        loader = eval_loader(source().test_or_all(), prepared.data_config, batch_size=TEST_IMAGES)
        self.test: Tensor = next(iter(loader))[0]

    def epochs(self, phase: Phase) -> int:
        """How often a phase sees each image."""
        return phase.schedule.steps // -(-self.images // phase.schedule.batch_size)

    def train(self, phase: Phase, epochs: int) -> None:
        """Train a phase for some epochs."""
        device = next(self.teacher.parameters()).device
        phase.model.eval().requires_grad_(True)
        phase.trainable.train()
        optimizer = torch.optim.Adam(phase.trainable.parameters(), lr=phase.schedule.lr)
        for epoch in range(epochs):
            for indices in self._batches(phase, epoch):
                images = self.views.batch(indices).to(device)
                with torch.no_grad():
                    target = self.teacher(images)
                loss = phase.objective(StepOutputs(phase.model(images), target, None))["logits"]
                phase.model.zero_grad()
                loss.backward()
                optimizer.step()

    def _batches(self, phase: Phase, epoch: int) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(epoch)
        order = torch.randperm(self.images, generator=generator)
        assert self.views.per_image is not None, "the preset has a pool"
        view = epoch % self.views.per_image
        yield from (order + self.images * view).split(phase.schedule.batch_size)

    @torch.no_grad()
    def test_pass(self, phase: Phase) -> None:
        """Run a phase's model on a part of the test set."""
        phase.model.eval()
        for images in self.test.split(250):
            phase.model(images.to(next(phase.model.parameters()).device))

    def estimate(self) -> tuple[float, float]:
        """Seconds of the training steps and of the test passes of the whole plan."""
        training = testing = 0.0
        whole = len(source().test_or_all()) / len(self.test)
        for phase in self.plan.phases:
            epochs = self.epochs(phase)
            training += epochs * seconds(lambda phase=phase: self.train(phase, 1))  # type: ignore[misc]
            testing += epochs * whole * seconds(lambda phase=phase: self.test_pass(phase))  # type: ignore[misc]
        return training, testing


def main() -> None:
    """Measure and write the result file."""
    plain = PlainLoop(task())
    if "--complete" in sys.argv:
        estimated = plain.estimate()[0]
        whole = sum(seconds(lambda phase=phase: plain.train(phase, plain.epochs(phase))) for phase in plain.plan.phases)  # type: ignore[misc]
        write("published-complete", {"plain_seconds": round(whole, 1), "estimated_seconds": round(estimated, 1)})
        return
    training: list[float] = []
    precision = ""

    def netgraft() -> float:
        nonlocal precision
        prepared = task()
        elapsed = seconds(lambda: prepared.runner.run(prepared.plan, prepared.views))
        precision = prepared.runner.precision
        return elapsed

    def published_loop() -> float:
        steps, tests = plain.estimate()
        training.append(steps)
        return steps + tests

    measured = side_by_side({"netgraft": netgraft, "published loop": published_loop})
    measured["published loop without tests"] = training
    write(
        "published",
        {
            "task": "cifar10-jpeg, VGG16 to half, 10 shots, preset reference, 840 steps",
            "precision": precision,
            "seconds": measured,
            "medians": {name: median(values) for name, values in measured.items()},
            "ratios": {
                "published loop": ratio(measured, "published loop", "netgraft"),
                "published loop without tests": ratio(measured, "published loop without tests", "netgraft"),
            },
            "targets": {"published loop": 400, "published loop without tests": 12},
        },
    )


if __name__ == "__main__":
    main()
