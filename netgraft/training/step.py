"""What one step of a phase computes, and which outputs of frozen blocks it reads instead of computing them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from netgraft.errors import RequestError, RunError
from netgraft.modules import shares_parameters
from netgraft.plan import Feature, Phase, StepOutputs
from netgraft.training.frozen_cache import FrozenBlocks, split_before_training


class StepInputs(NamedTuple):
    """What a step starts from. A named tuple, since what sends inputs to a device (DDP) takes no dataclass apart.

    Attributes:
        prefix: Output of the frozen blocks in front, which the first trained block takes in, (B, ...).
        front: Block number -> output of the model up to that block, for its features that lie in front.
        teacher: The teacher's answer, (B, K); None without a teacher.
        teacher_features: In the order of the phase, connectors included.
        labels: Class indices (B,); None on the unlabeled track.
        whole_batch: See :class:`netgraft.plan.StepOutputs`.
        progress: Likewise.
    """

    prefix: Tensor
    front: dict[int, Tensor]
    teacher: Tensor | None
    teacher_features: tuple[Tensor, ...]
    labels: Tensor | None
    whole_batch: int | None = None
    progress: float = 1.0


@dataclass(frozen=True)
class FrozenParts:
    """The frozen blocks whose outputs a step of a phase starts from, found from the phase itself.

    Attributes:
        prefix: In front of the first trained block.
        front: Block number -> the model up to that block, for its features that lie within the prefix.
        teacher: The whole teacher; None without one.
        teacher_features: The teacher up to each of its features, connectors included.
    """

    prefix: FrozenBlocks
    front: Mapping[int, FrozenBlocks]
    teacher: FrozenBlocks | None
    teacher_features: tuple[FrozenBlocks, ...]

    @classmethod
    def of(cls, phase: Phase) -> FrozenParts:
        """Find what is frozen while a phase runs: leading blocks that share nothing with its trainable part.

        Raises:
            ValueError: The phase trains a part of its own teacher, whose answers would change meanwhile.
        """
        if phase.teacher is not None and shares_parameters(phase.teacher, phase.trainable):
            raise ValueError(f"phase {phase.name!r} trains a part of its teacher; give it a copy to learn from")
        prefix, _ = split_before_training(phase.model, phase.trainable)
        inside = sorted({feature.block for feature in phase.features if feature.block < len(prefix)})
        teacher = None if phase.teacher is None else tuple(phase.teacher)
        return cls(
            prefix=prefix,
            front={number: prefix[: number + 1] for number in inside},
            teacher=teacher,
            teacher_features=tuple(_up_to(feature, teacher or ()) for feature in phase.teacher_features),
        )

    def all(self) -> list[FrozenBlocks]:
        """Return everything whose output is read, the most urgent first."""
        teacher = [] if self.teacher is None else [self.teacher]
        return [self.prefix, *self.front.values(), *teacher, *self.teacher_features]

    def inputs(
        self,
        outputs: Mapping[FrozenBlocks, Tensor],
        labels: Tensor | None,
        *,
        whole_batch: int | None = None,
        progress: float = 1.0,
    ) -> StepInputs:
        """Name the outputs of :meth:`all` for one batch, or for one process's part of it."""
        return StepInputs(
            prefix=outputs[self.prefix],
            front={number: outputs[blocks] for number, blocks in self.front.items()},
            teacher=None if self.teacher is None else outputs[self.teacher],
            teacher_features=tuple(outputs[blocks] for blocks in self.teacher_features),
            labels=labels,
            whole_batch=whole_batch,
            progress=progress,
        )


def _up_to(feature: Feature, blocks: FrozenBlocks) -> FrozenBlocks:
    return (*blocks[: feature.block + 1], *([] if feature.connector is None else [feature.connector]))


def frozen_reads(phases: Sequence[Phase]) -> Iterator[FrozenBlocks]:
    """Yield what the phases read, left out what an earlier one of them trains: that is not frozen yet."""
    trained: list[nn.Module] = []
    for phase in phases:
        for blocks in FrozenParts.of(phase).all():
            if not any(shares_parameters(block, trainable) for block in blocks for trainable in trained):
                yield blocks
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
        self.frozen = FrozenParts.of(phase)
        self._autocast = autocast
        start = len(self.frozen.prefix)
        self._numbers = range(start, len(phase.model))
        self.blocks = nn.ModuleList(faster.get(block, block) for block in list(phase.model)[start:])
        self.trainable = phase.trainable

    def forward(self, given: StepInputs) -> dict[str, Tensor]:
        """Return the terms of the loss."""
        inputs = given.prefix
        # the cache gives equal blocks the very same tensor
        others = (*given.front.values(), given.teacher, *given.teacher_features)
        shared = any(other is inputs for other in others)
        outputs = dict(given.front)
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
                target=given.teacher,
                labels=given.labels,
                features=tuple(features),
                teacher_features=given.teacher_features,
                inputs=inputs if self._phase.differentiates_input else None,
                whole_batch=given.whole_batch,
                progress=given.progress,
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
            remedy = f"raise batch_size from {phase.schedule.batch_size}"
            if phase.schedule.whole_epochs:
                remedy += ", or change the number of images: the last batch of an epoch is smaller"
            raise RunError(
                f"batch norm can't take statistics of a single value, which it meets in phase {phase.name!r}: "
                f"expected batches of at least 2 views, got one of 1; {remedy}"
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
