"""What one step of a phase computes, and what it reads instead of computing it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from netgraft.errors import RequestError, RunError
from netgraft.modules import shares_parameters
from netgraft.plan import Feature, Phase, StepOutputs
from netgraft.training.frozen_cache import FrozenBlocks, frozen_prefix


@dataclass(frozen=True)
class FrozenInputs:
    """The frozen outputs that a step of a phase starts from, found from the phase itself."""

    prefix: FrozenBlocks
    front: tuple[FrozenBlocks, ...]
    """For the features of the model that lie within the prefix."""
    teacher: FrozenBlocks | None
    teacher_features: tuple[FrozenBlocks, ...]

    @classmethod
    def of(cls, phase: Phase) -> FrozenInputs:
        """Find what is frozen in a phase: leading blocks that share nothing with its trainable part.

        Raises:
            ValueError: The phase trains a part of its own teacher, whose answers would change meanwhile.
        """
        if phase.teacher is not None and shares_parameters(phase.teacher, phase.trainable):
            raise ValueError(f"phase {phase.name!r} trains a part of its teacher; give it a copy to learn from")
        prefix, _ = frozen_prefix(phase.model, phase.trainable)
        teacher = tuple(phase.teacher) if phase.teacher is not None else None
        inside = sorted({feature.block for feature in phase.features if feature.block < len(prefix)})
        return cls(
            prefix=prefix,
            front=tuple(prefix[: number + 1] for number in inside),
            teacher=teacher,
            teacher_features=tuple(_through(teacher or (), feature) for feature in phase.teacher_features),
        )

    def all(self) -> list[FrozenBlocks]:
        """Return everything that is read."""
        teacher = [] if self.teacher is None else [self.teacher]
        return [self.prefix, *self.front, *teacher, *self.teacher_features]


def _through(blocks: FrozenBlocks, feature: Feature) -> FrozenBlocks:
    return (*blocks[: feature.block + 1], *([] if feature.connector is None else [feature.connector]))


def still_frozen(phases: Sequence[Phase]) -> Iterator[FrozenBlocks]:
    """What the phases read, left out what an earlier one of them trains: that is not final yet."""
    trained: list[nn.Module] = []
    for phase in phases:
        for prefix in FrozenInputs.of(phase).all():
            if not any(shares_parameters(block, trainable) for block in prefix for trainable in trained):
                yield prefix
        trained.append(phase.trainable)


class StepModule(nn.Module):
    """The part of a phase's model that runs at every step, with the objective at its end.

    Args:
        phase: What is trained.
        faster: Copies of frozen blocks that compute the same.
        autocast: Gives the context in which blocks run; the objective runs outside of it.
    """

    def __init__(
        self,
        phase: Phase,
        faster: Mapping[nn.Module, nn.Module],
        autocast: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        super().__init__()
        self._phase = phase
        self.reading = FrozenInputs.of(phase)
        self._autocast = autocast
        start = len(self.reading.prefix)
        self._numbers = range(start, len(phase.model))
        self.blocks = nn.ModuleList(faster.get(block, block) for block in list(phase.model)[start:])
        self.trainable = phase.trainable

    def forward(self, frozen: Sequence[Tensor], labels: Tensor | None) -> dict[str, Tensor]:
        """Return the terms of the loss, from what was read in the order of :meth:`FrozenInputs.all`."""
        inputs, *rest = frozen
        shared = any(other is inputs for other in rest)
        front, rest = rest[: len(self.reading.front)], rest[len(self.reading.front) :]
        outputs = {len(blocks) - 1: value for blocks, value in zip(self.reading.front, front, strict=True)}
        target = rest.pop(0) if self.reading.teacher is not None else None
        if self._phase.differentiates_input:
            inputs = inputs.detach().requires_grad_()  # not a target that is the same tensor
        tapped = {feature.block for feature in self._phase.features}
        state = inputs
        # the fused kernels of attention can't be differentiated twice
        kernel = sdpa_kernel(SDPBackend.MATH) if self._phase.differentiates_input else nullcontext()
        with self._autocast(), kernel:
            for number, block in zip(self._numbers, self.blocks, strict=True):
                # a block may work in place: not on what is differentiated by, nor on what is compared
                needed = shared or state.requires_grad if state is inputs else number - 1 in tapped
                state = block(state.clone() if needed else state)
                if number in tapped:
                    outputs[number] = state
            features = [self._connect(feature, outputs[feature.block]) for feature in self._phase.features]
        terms = self._phase.objective(
            StepOutputs(
                output=state,
                target=target,
                labels=labels,
                features=tuple(features),
                teacher_features=tuple(rest),
                inputs=inputs if self._phase.differentiates_input else None,
            )
        )
        return dict(terms)

    @staticmethod
    def _connect(feature: Feature, output: Tensor) -> Tensor:
        return output if feature.connector is None else feature.connector(output.clone())


@contextmanager
def explained(phase: Phase) -> Iterator[None]:
    """Turn what torch says of a phase that it can't train into what can be done about it.

    Raises:
        RunError: Batch norm met a single value, or a layer has no second derivative.
    """
    try:
        yield
    except (RuntimeError, ValueError) as error:
        if "more than 1 value per channel" in str(error):
            raise RunError(
                f"batch norm can't take statistics of a single value, which it meets in phase {phase.name!r}: "
                f"expected batches of at least 2 views, got one of 1; raise batch_size from {phase.fit.batch_size}"
                + (", or change the number of images: the last batch of an epoch is smaller" * phase.fit.whole_epochs)
            ) from error
        if phase.differentiates_input and "derivative for" in str(error):
            raise RunError(
                f"phase {phase.name!r} differentiates twice, and a layer of the student can't be ({error}); "
                "choose another method or student"
            ) from error
        raise


def total(terms: Mapping[str, Tensor]) -> Tensor:
    """Return the sum of a loss's terms, in float32.

    Raises:
        RequestError: There are none.
    """
    if not terms:
        raise RequestError("every term of the loss has weight 0, so there is nothing to learn; set one of the weights")
    return torch.stack([value.float() for value in terms.values()]).sum()
