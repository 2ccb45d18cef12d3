"""Solve the weights of a narrowed model by least squares, front to back, against the teacher's own responses."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from netgraft.deriving.anatomy import Anatomy, segment_of_layers
from netgraft.deriving.compensation import add_to_output, compensated
from netgraft.deriving.following import Product
from netgraft.deriving.narrowing import Kept, absences, narrow, output_scales
from netgraft.deriving.residual import Seen, seen_in
from netgraft.deriving.selection import Reader, groups_of, has_intercept
from netgraft.deriving.statistics import MOST_FEATURES, rows_a_batch, sampled_rows
from netgraft.errors import RequestError
from netgraft.modules import eval_mode

RIDGES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Towards the weights that a solve starts from, times the mean of the inputs' squares: the least that serves views
well which took no part. With few views for many unknowns the least of all would fit what is chance in them."""

WORTH = 0.05
"""Part of what a step gains on such views that a larger ridge must gain more: it holds the weights back."""

LEAST_SCALE = 0.1
"""Part of the root mean square of what a layer's channels are scaled by: one scaled by less can't make up for its
shortcut."""

COLUMNS = 512
"""Of the normal equations that are summed up at once."""

TESTED = 4
"""Of so many batches of views one tests ridges; with fewer batches the first ridge is taken untested."""


@torch.no_grad()
def narrowed_start(anatomy: Anatomy, readers: Mapping[str, Reader], kept: Kept) -> nn.Module:
    """Return the narrowed teacher in eval mode, each layer making up for the channels that it lost.

    Args:
        anatomy: Of the teacher.
        readers: With moments of the teacher's own inputs.
        kept: Channels that stay.
    """
    student = narrow(anatomy.model, anatomy.found, kept, anatomy.blocks).eval()
    present = {name for name, _ in student.named_modules()}
    for product in anatomy.layers:
        untouched = product.layer not in readers or not set(product.inputs.atoms()) & set(kept)
        if untouched or product.layer not in present:
            continue
        layer, norm = student.get_submodule(product.layer), anatomy.norm_behind(student, product.layer)
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        found = compensated(readers[product.layer], kept)
        outputs = product.outputs.indices(kept)
        scales = _scales_of(anatomy, kept, product.layer, outputs)
        weight = _columns(found.weight[outputs], product, kept)
        layer.weight.copy_(weight * scales.reshape(-1, *[1] * (weight.dim() - 1)))
        if found.shift is not None:
            add_to_output(layer, norm, found.shift[outputs] * scales)
    return student


def _scales_of(anatomy: Anatomy, kept: Kept, layer: str, outputs: Tensor) -> Tensor:
    """Return what the outputs that a layer has left are multiplied by, (O,), float64: one, but for some queries."""
    scales = output_scales(anatomy.found, kept, layer)
    return torch.ones(len(outputs), dtype=torch.float64) if scales is None else scales[outputs]


def _columns(weight: Tensor, product: Product, kept: Kept) -> Tensor:
    if product.groups is None:
        return weight[:, product.inputs.indices(kept)]
    # the first group's columns stand for all: what is kept within a group is kept in each
    inside = product.inputs.indices(kept)
    groups = len(product.groups.indices(kept))
    return weight[:, inside[: len(inside) // groups] % weight.shape[1]]


@torch.no_grad()
def solve_front_to_back(
    anatomy: Anatomy,
    student: nn.Module,
    kept: Kept,
    batches: Sequence[Tensor],
) -> Iterator[str]:
    """Solve each layer from the student's own inputs towards the teacher's outputs, in the order of the forward.

    ``W = W_0 + argmin |D X + (W_0 X - Y)|^2 + ridge |D|^2`` over rows about their means where the layer can add a
    constant. So each layer makes up for the errors of all in front of it, and they don't add up. Where a shortcut is
    added behind a layer, ``Y`` is what the sum needs: the layer makes up for what the student's shortcut lacks too (He
    et al., "Channel Pruning for Accelerating Very Deep Neural Networks", ICCV 2017, "enhancements for multi-branch
    networks"). Layers that are called more than once stay as they are, as do those whose equations would take more than
    half a gigabyte.

    Args:
        anatomy: Of the teacher.
        student: From :func:`narrowed_start`; changed in place.
        kept: Channels that stay.
        batches: Views (B, C, H, W) each.

    Yields:
        The names of the layers, one after another, as soon as they are solved.
    """
    absent = absences(anatomy.blocks, kept)
    with eval_mode(anatomy.model), eval_mode(student):
        chains = [anatomy.segments_of(model, absent) for model in (anatomy.model, student)]
        segment_of = segment_of_layers(chains[1], student)
        gone = {layer for block in anatomy.blocks if block.name in absent for layer in block.layers}
        states = [list(batches), list(batches)]
        reached = 0
        changed = False
        for product in anatomy.layers:
            name = product.layer
            changed = changed or name in gone or bool(set(product.inputs.atoms()) & set(kept))
            solvable = name in segment_of and name in anatomy.called_once and not _is_too_wide(student, name)
            if not changed or not solvable:
                yield name
                continue
            while reached < segment_of[name]:
                for segments, of_batches in zip(chains, states, strict=True):
                    for index, state in enumerate(of_batches):
                        # a segment may work in place, and the images are the caller's
                        of_batches[index] = segments[reached](state.clone())
                reached += 1
            _solve(anatomy, student, product, kept, [segments[reached] for segments in chains], states)
            yield name


def _is_too_wide(student: nn.Module, name: str) -> bool:
    layer = student.get_submodule(name)
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    return groups_of(layer) * layer.weight[0].numel() ** 2 > MOST_FEATURES**2


def _solve(
    anatomy: Anatomy,
    student: nn.Module,
    product: Product,
    kept: Kept,
    blocks: Sequence[nn.Module],
    states: Sequence[Sequence[Tensor]],
) -> None:
    name = product.layer
    teachers, layer = (model.get_submodule(name) for model in (anatomy.model, student))
    norm = anatomy.norm_behind(student, name)
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    outputs = product.outputs.indices(kept)
    groups = groups_of(layer)
    unknowns = layer.weight[0].numel()
    generator = torch.Generator().manual_seed(0)
    wanted = rows_a_batch(unknowns, len(states[0]))
    intercept = has_intercept(layer, norm)
    scales = _scales_of(anatomy, kept, name, outputs).to(layer.weight)
    carried = 0 if layer.bias is not None or norm is None else _carried(anatomy, norm, name, outputs)
    sums = Normals(groups, unknowns, len(outputs) // groups)
    tests = Normals(groups, unknowns, len(outputs) // groups)
    for number, (teacher_state, student_state) in enumerate(zip(*states, strict=True), 1):
        of_teacher = seen_in(blocks[0], teacher_state.clone(), teachers)
        of_student = seen_in(blocks[1], student_state.clone(), layer)
        rows = sampled_rows(of_student.call, wanted, generator)
        missing = scales * of_teacher.call.output_rows(rows)[:, outputs] - of_student.call.output_rows(rows) - carried
        missing = missing + _missing_beside(of_teacher, of_student, rows, outputs)
        (sums if number % TESTED else tests).add(of_student.call.unfolded_rows(rows), missing)
    if not (sums.is_finite() and tests.is_finite()):
        raise RequestError(f"{name} takes in values that are no finite numbers once the model is narrower; keep more")
    step, shift = best_step(sums, tests, centred=intercept)
    layer.weight += step.reshape(layer.weight.shape).to(layer.weight)
    if intercept:
        add_to_output(layer, norm, shift)


def _carried(anatomy: Anatomy, norm: nn.modules.batchnorm._BatchNorm, layer: str, outputs: Tensor) -> Tensor | int:
    """Return what the norm behind a layer without bias adds to its outputs already, beyond what the teacher's adds."""
    teachers = anatomy.norm_behind(anatomy.model, layer)
    if norm.running_mean is None or teachers is None or teachers.running_mean is None:
        return 0
    return teachers.running_mean[outputs] - norm.running_mean


def _missing_beside(of_teacher: Seen, of_student: Seen, rows: Tensor, outputs: Tensor) -> Tensor | int:
    """Return what lacks in what is added to the layer's outputs, (R, O), in their own units; 0 without addition."""
    if of_teacher.addend is None or of_student.addend is None:
        return 0
    missing = of_teacher.addend_rows(rows)[:, outputs] - of_student.addend_rows(rows)
    scale = of_student.addend.scale
    return missing * torch.where(scale.abs() < LEAST_SCALE * scale.square().mean().sqrt(), 0.0, 1 / scale)


class Normals:
    """Normal equations of a layer's least squares, group by group, summed up batch by batch.

    Args:
        groups: Of the layer.
        unknowns: Weights of one output.
        outputs: Of one group.
    """

    def __init__(self, groups: int, unknowns: int, outputs: int) -> None:
        self._groups, self._unknowns, self._outputs = groups, unknowns, outputs
        self._count = 0
        self._origin = torch.zeros(groups, unknowns, dtype=torch.float64)
        self._inputs = torch.zeros(groups, unknowns, dtype=torch.float64)
        self._targets = torch.zeros(groups, outputs, dtype=torch.float64)
        self._gram = torch.zeros(groups, unknowns, unknowns, dtype=torch.float64)
        self._cross = torch.zeros(groups, unknowns, outputs, dtype=torch.float64)
        self._known: dict[bool, tuple[Tensor, Tensor]] = {}

    def add(self, inputs: Tensor, missing: Tensor) -> None:
        """Add rows: inputs (R, groups * unknowns) and what the outputs lack, (R, groups * outputs)."""
        x = inputs.reshape(len(inputs), self._groups, self._unknowns).transpose(0, 1)
        y = missing.reshape(len(missing), self._groups, self._outputs).transpose(0, 1)
        x, y = x.float(), y.float()
        if self._count == 0:
            # what hardly changes keeps its digits in single precision
            self._origin = x.mean(1).cpu().double()
        x = x - self._origin.to(x)[:, None, :]
        self._count += len(inputs)
        self._inputs += x.sum(1).cpu().double()
        self._targets += y.sum(1).cpu().double()
        self._known.clear()
        for first in range(0, self._unknowns, COLUMNS):
            # what lies below the diagonal is what lies above: half of the work
            some = slice(first, first + COLUMNS)
            self._gram[:, some, first:] += (x[:, :, some].transpose(1, 2) @ x[:, :, first:]).cpu().double()
        self._cross += (x.transpose(1, 2) @ y).cpu().double()

    @property
    def _products(self) -> Tensor:
        """Sums of products of inputs with inputs, (G, U, U): of what was added above the diagonal, both halves."""
        for last in range(COLUMNS, self._unknowns, COLUMNS):
            some = slice(last - COLUMNS, last)
            self._gram[:, last:, some] = self._gram[:, some, last:].transpose(1, 2)
        return self._gram

    def is_finite(self) -> bool:
        """Whether all sums are."""
        return bool(self._gram.isfinite().all() and self._cross.isfinite().all())

    def solve(self, *, centred: bool, ridge: float) -> tuple[Tensor, Tensor]:
        """Return what is to be added to weights, (groups * outputs, unknowns), and to outputs, (groups * outputs,).

        Args:
            centred: Whether a constant may be added to outputs.
            ridge: Towards no change, times the mean of the inputs' squares; infinite for no change of the weights.
        """
        mean_x, mean_y = self._means(centred=centred)
        gram, cross = self._about(centred=centred)
        if math.isinf(ridge):
            step = torch.zeros_like(cross).transpose(1, 2)
        else:
            scale = gram.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-12)
            damped = gram.clone()
            damped.diagonal(dim1=1, dim2=2).add_(ridge * scale[:, None])
            step = torch.cholesky_solve(cross, torch.linalg.cholesky(damped)).transpose(1, 2)  # (G, O, U)
        shift = mean_y - (step @ mean_x[:, :, None]).squeeze(-1)
        return step.flatten(0, 1), shift.flatten()

    def missed(self, step: Tensor, shift: Tensor) -> float:
        """Return the mean square of what rows still lack behind a step, less what they lack without any.

        Args:
            step: Added to the weights, (groups * outputs, unknowns).
            shift: Added to the outputs, (groups * outputs,).
        """
        weights, constants = step.unflatten(0, (self._groups, -1)), shift.unflatten(0, (self._groups, -1))
        gram, cross = self._about(centred=False)
        mean_x, mean_y = self._means(centred=True)
        squares = ((weights @ gram) * weights).sum() - 2 * (weights.transpose(1, 2) * cross).sum()
        through = (weights @ mean_x[:, :, None]).squeeze(-1)
        return float(squares + (constants * (constants + 2 * (through - mean_y))).sum())

    def _means(self, *, centred: bool) -> tuple[Tensor, Tensor]:
        """Return the means of inputs, (G, U), and of what outputs lack, (G, O); zeros where nothing is taken off."""
        if not centred:
            return torch.zeros_like(self._origin), torch.zeros_like(self._targets)
        count = max(self._count, 1)
        return self._origin + self._inputs / count, self._targets / count

    def _about(self, *, centred: bool) -> tuple[Tensor, Tensor]:
        """Return the mean products of inputs with inputs, (G, U, U), and with what outputs lack, (G, U, O).

        About the means, or about zero; several ridges are tried on the same ones.
        """
        if centred not in self._known:
            point_x, point_y = self._means(centred=centred)
            count = max(self._count, 1)
            mean_x, mean_y = self._inputs / count, self._targets / count
            off = point_x - self._origin
            gram = self._products / count
            # (x - off)(x - off)^T in one pass over the larger matrix
            left, right = torch.stack([off - mean_x, off], 2), torch.stack([off, -mean_x], 1)
            gram.baddbmm_(left, right)
            cross = self._cross / count - off[:, :, None] * mean_y[:, None, :]
            cross -= (mean_x - off)[:, :, None] * point_y[:, None, :]
            self._known[centred] = gram, cross
        return self._known[centred]

    def with_those_of(self, other: Normals) -> Normals:
        """Return the sums over the rows of both."""
        both = Normals(self._groups, self._unknowns, self._outputs)
        both._origin, both._count = self._origin, self._count + other._count
        moved = other._origin - self._origin
        both._inputs = self._inputs + other._inputs + other._count * moved
        both._targets = self._targets + other._targets
        both._gram = self._products + other._products + other._count * moved[:, :, None] * moved[:, None, :]
        both._gram += other._inputs[:, :, None] * moved[:, None, :] + moved[:, :, None] * other._inputs[:, None, :]
        both._cross = self._cross + other._cross + moved[:, :, None] * other._targets[:, None, :]
        return both

    @property
    def count(self) -> int:
        """How many rows were added."""
        return self._count


def best_step(sums: Normals, tests: Normals, *, centred: bool) -> tuple[Tensor, Tensor]:
    """Return the step of the least ridge that serves rows well which took no part, once these take part too.

    Larger ridges are tried as long as they serve them better.

    Args:
        sums: Rows that steps are solved from.
        tests: Rows that test them; where there are none, the least ridge is taken.
        centred: Whether a constant may be added to outputs.
    """
    if not tests.count:
        return sums.solve(centred=centred, ridge=RIDGES[0])
    missed: dict[float, float] = {}
    least = math.inf
    for ridge in (*RIDGES, math.inf):
        missed[ridge] = tests.missed(*sums.solve(centred=centred, ridge=ridge))
        if missed[ridge] > least:
            break
        least = missed[ridge]
    enough = least * (1 - WORTH)
    chosen = next((ridge for ridge in missed if missed[ridge] <= enough), math.inf)
    return sums.with_those_of(tests).solve(centred=centred, ridge=chosen)
