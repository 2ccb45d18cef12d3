"""Weights solved front to back against NumPy's least squares, and networks with redundant channels."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from netgraft.deriving import solving as module
from netgraft.deriving.anatomy import Anatomy
from netgraft.deriving.library import readers_of
from netgraft.deriving.solving import RIDGES, Normals, best_step, narrowed_start, solve_front_to_back
from tests.support.derivable import (
    NETWORKS,
    Head,
    Residual,
    conv,
    images,
    network,
    randomised,
    solved,
)


def unfolded(x: np.ndarray, layer: nn.Conv2d) -> np.ndarray:
    """Inputs (B, H', W', C, kernel height, kernel width) under each tap, from padded arrays and loops."""
    (height, width), (down, right), (rows, columns) = layer.kernel_size, layer.stride, layer.dilation
    if layer.padding == "same":
        total = [(size - 1) * step for size, step in zip((height, width), (rows, columns), strict=True)]
        padding = [(each // 2, each - each // 2) for each in total]
    else:
        assert not isinstance(layer.padding, str)
        padding = [(each, each) for each in layer.padding]
    padded = np.pad(x, [(0, 0), (0, 0), *padding])
    high = (padded.shape[2] - (height - 1) * rows - 1) // down + 1
    wide = (padded.shape[3] - (width - 1) * columns - 1) // right + 1
    taps = np.zeros((len(x), high, wide, x.shape[1], height, width))
    for i in range(height):
        for j in range(width):
            part = padded[:, :, i * rows :, j * columns :][:, :, : high * down : down, : wide * right : right]
            taps[..., i, j] = part.transpose(0, 2, 3, 1)
    return taps


def ridge_solution(
    x: np.ndarray, target: np.ndarray, start: np.ndarray, *, constant: bool, ridge: float = RIDGES[0]
) -> tuple[np.ndarray, np.ndarray]:
    """Return (F, O) weights and (O,) constants: least squares of rows on top of rows that pull towards the start."""
    mean_x, mean_y = (x.mean(0), target.mean(0)) if constant else (0 * x[0], 0 * target[0])
    centred = x - mean_x
    pull = np.sqrt(len(x) * ridge * (centred**2).mean()) * np.eye(x.shape[1])
    rows = np.concatenate([centred, pull])
    targets = np.concatenate([target - mean_y, pull @ start])
    weight = np.linalg.lstsq(rows, targets, rcond=None)[0]
    return weight, mean_y - mean_x @ weight


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize(("rows", "unknowns"), [(400, 5), (2000, 700)])
def test_normal_equations_give_numpys_least_squares_in_each_group(*, centred: bool, rows: int, unknowns: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, 2 * unknowns, generator=generator) + 2
    y = x @ torch.randn(2 * unknowns, 6, generator=generator) + torch.randn(rows, 6, generator=generator)
    both = Normals(2, unknowns, 3)
    for part in zip(x.split(rows // 3), y.split(rows // 3), strict=True):
        both.add(*part)
    step, shift = both.solve(centred=centred, ridge=RIDGES[0])

    for group in range(2):
        inputs, outputs = slice(unknowns * group, unknowns * (group + 1)), slice(3 * group, 3 * group + 3)
        start = np.zeros((unknowns, 3))
        weight, constant = ridge_solution(
            x[:, inputs].double().numpy(), y[:, outputs].double().numpy(), start, constant=centred
        )
        np.testing.assert_allclose(step[outputs], weight.T, atol=1e-5)
        if centred:
            # the more weights, each about 1e-5 off, the more their sum is off
            np.testing.assert_allclose(shift[outputs], constant, atol=1e-5 * unknowns / 5)


def lacking(x: np.ndarray, y: np.ndarray, weight: np.ndarray, constant: np.ndarray) -> float:
    """Mean square of what is left of ``y``, less that of ``y``; outputs summed up."""
    return float(np.square(y - x @ weight - constant).sum(1).mean() - np.square(y).sum(1).mean())


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize(("rows", "noise"), [(2000, 0.01), (60, 0.5), (45, 3.0), (45, 30.0)])
def test_the_ridge_is_the_least_that_serves_rows_that_took_no_part(*, centred: bool, rows: int, noise: float) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(rows + 30, 40, generator=generator) + 1
    y = x @ torch.randn(40, 3, generator=generator) + noise * torch.randn(rows + 30, 3, generator=generator) + 2
    sums, tests = Normals(1, 40, 3), Normals(1, 40, 3)
    sums.add(x[:rows], y[:rows])
    tests.add(x[rows:], y[rows:])

    (seen, out), (new, of_new) = (
        (x[part].double().numpy(), y[part].double().numpy()) for part in (slice(rows), slice(rows, None))
    )
    found = {}
    for ridge in RIDGES:
        weight, constant = ridge_solution(seen, out, np.zeros((40, 3)), constant=centred, ridge=ridge)
        found[ridge] = lacking(new, of_new, weight, constant)
        step, shift = sums.solve(centred=centred, ridge=ridge)
        assert tests.missed(step, shift) == pytest.approx(found[ridge], rel=1e-3, abs=0.02)
    found[np.inf] = lacking(new, of_new, np.zeros((40, 3)), out.mean(0) if centred else np.zeros(3))
    enough = 0.95 * min(found.values())
    chosen = next((ridge for ridge in RIDGES if found[ridge] <= enough), np.inf)

    step, shift = best_step(sums, tests, centred=centred)
    if np.isinf(chosen):
        assert not step.any()
    else:
        weight, constant = ridge_solution(
            x.double().numpy(), y.double().numpy(), np.zeros((40, 3)), constant=centred, ridge=chosen
        )
        np.testing.assert_allclose(step, weight.T, atol=1e-4)
        np.testing.assert_allclose(shift, constant, atol=1e-4)


def test_without_rows_to_test_it_the_least_ridge_is_taken() -> None:
    generator = torch.Generator().manual_seed(1)
    sums = Normals(1, 4, 2)
    sums.add(torch.randn(9, 4, generator=generator), torch.randn(9, 2, generator=generator))
    expected = sums.solve(centred=True, ridge=RIDGES[0])
    assert all(map(torch.equal, best_step(sums, Normals(1, 4, 2), centred=True), expected))


@pytest.mark.parametrize("inputs", [torch.zeros(50, 3), torch.full((50, 3), 1000.0), torch.ones(1, 3)])
def test_normal_equations_of_what_never_changes_have_finite_solutions(inputs: Tensor) -> None:
    both = Normals(1, 3, 2)
    for _ in range(2):
        both.add(inputs, torch.ones(len(inputs), 2))
    step, shift = both.solve(centred=True, ridge=RIDGES[0])

    torch.testing.assert_close(inputs.double() @ step.T + shift, torch.ones(len(inputs), 2, dtype=torch.float64))


SECOND_LAYERS: dict[str, dict[str, Any]] = {
    "padded": {"padding": 1},
    "stride": {"padding": 1, "stride": 2},
    "dilation": {"padding": 2, "dilation": 2},
    "same": {"padding": "same"},
    "groups": {"padding": 1, "groups": 2},
    "depthwise": {"padding": 1, "groups": 8, "out_channels": 8},
    "without bias": {"padding": 1, "bias": False},
    "batch norm": {"padding": 1, "bias": False, "norm": True},
    "bias and batch norm": {"padding": 1, "norm": True},
    "pointwise": {"kernel_size": 1},
}


class TwoLayers(nn.Module):
    def __init__(self, *, norm: bool = False, **options: Any) -> None:
        super().__init__()
        self.first = conv(3, 8)
        self.second = nn.Conv2d(8, **{"kernel_size": 3, "out_channels": 6, **options})
        self.norm = nn.BatchNorm2d(self.second.out_channels) if norm else nn.Identity()
        self.head = Head(self.second.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.norm(self.second(self.first(x)))))


@torch.no_grad()
@pytest.mark.parametrize("options", SECOND_LAYERS.values(), ids=SECOND_LAYERS)
def test_a_layer_is_solved_as_numpy_solves_it(options: dict[str, Any]) -> None:
    teacher = randomised(TwoLayers(**options)).requires_grad_(False)
    assert isinstance(teacher, TwoLayers)
    anatomy = Anatomy.of(teacher, images())
    batches = [images(12, seed=7), images(12, seed=8)]
    # of a grouped layer what lies within the groups
    place = max(anatomy.places[:2], key=lambda place: place.width if "second" in place.layers else 0)
    stay = torch.tensor([0, 2, 3]) if place.width == 4 else torch.tensor([0, 2, 3, 5, 6])
    kept = {place.atom: stay}
    readers = readers_of(anatomy, batches)
    student = narrowed_start(anatomy, readers, kept)
    start = copy.deepcopy(student)
    assert isinstance(start, TwoLayers)
    for name in solve_front_to_back(anatomy, student, kept, batches):
        if name == "second":
            break
    assert isinstance(student, TwoLayers)

    layer, groups = start.second, start.second.groups
    rows = unfolded(start.first(torch.cat(batches)).double().numpy(), layer)
    wanted = teacher.second(teacher.first(torch.cat(batches))).double().numpy().transpose(0, 2, 3, 1)
    # a depthwise layer gives as many channels as it takes in, and what is gone has no output
    wanted = wanted[..., stay.numpy()] if options.get("groups") == 8 else wanted
    wanted = wanted.reshape(-1, layer.out_channels)
    rows = rows.reshape(len(wanted), groups, -1)
    within = layer.out_channels // groups
    constant = options.get("bias", True) or "norm" in options
    got, bias = student.second.weight.flatten(1).double().numpy(), student.second.bias
    for group in range(groups):
        outputs = slice(within * group, within * group + within)
        old = layer.weight[outputs].flatten(1).double().numpy().T
        weight, shift = ridge_solution(rows[:, group], wanted[:, outputs], old, constant=constant)
        np.testing.assert_allclose(got[outputs], weight.T, atol=2e-4)
        if bias is not None:
            np.testing.assert_allclose(bias[outputs].double().numpy(), shift, atol=5e-4)
        elif constant:
            # a constant that the start put there already is part of it
            moved = teacher.get_buffer("norm.running_mean") - student.get_buffer("norm.running_mean")
            np.testing.assert_allclose(moved[outputs].double().numpy(), shift, atol=5e-4)


class TwoBlocks(nn.Module):
    """Residual blocks, with a norm behind the layer in front of each sum."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.first, self.third = (nn.Conv2d(6, 16, 3, padding=1) for _ in range(2))
        self.second, self.fourth = (nn.Conv2d(16, 6, 3, padding=1, bias=False) for _ in range(2))
        self.one, self.two = nn.BatchNorm2d(6), nn.BatchNorm2d(6)
        self.head = Head(6)

    def streams(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem(x)
        inner = torch.tanh(x + self.one(self.second(torch.relu(self.first(x)))))
        return inner, inner + self.two(self.fourth(torch.relu(self.third(inner))))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.streams(x)[1]))


@torch.no_grad()
def test_a_layer_in_front_of_a_sum_is_solved_for_the_sum_as_numpy_solves_it() -> None:
    teacher = randomised(TwoBlocks()).requires_grad_(False)
    assert isinstance(teacher, TwoBlocks)
    anatomy = Anatomy.of(teacher, images())
    batches = [images(12, seed=7), images(12, seed=8)]
    kept = {place.atom: torch.arange(0, 16, 2) for place in anatomy.places if place.name in {"first", "third"}}
    assert len(kept) == 2
    student = narrowed_start(anatomy, readers_of(anatomy, batches), kept)
    before = copy.deepcopy(student)
    for name in solve_front_to_back(anatomy, student, kept, batches):
        if name == "fourth":
            break
        before.load_state_dict(student.state_dict())
    assert isinstance(student, TwoBlocks)
    assert isinstance(before, TwoBlocks)

    x = torch.cat(batches)
    (shortcut, _), (teachers_shortcut, wanted) = before.streams(x), teacher.streams(x)
    assert not torch.allclose(shortcut, teachers_shortcut, atol=1e-3)
    norm = teacher.two
    assert norm.running_mean is not None
    assert norm.running_var is not None
    # through the norm backwards: what the layer would have to give for the sum to be the teacher's
    scale = (norm.weight / (norm.running_var + norm.eps).sqrt())[:, None, None]
    needed = (wanted - shortcut - norm.bias[:, None, None]) / scale + norm.running_mean[:, None, None]
    rows = unfolded(torch.relu(before.third(shortcut)).double().numpy(), before.fourth)
    targets = needed.double().numpy().transpose(0, 2, 3, 1).reshape(-1, 6)
    rows = rows.reshape(len(targets), -1)
    weight, shift = ridge_solution(rows, targets, before.fourth.weight.flatten(1).double().numpy().T, constant=True)

    np.testing.assert_allclose(student.fourth.weight.flatten(1).double().numpy(), weight.T, atol=5e-4)
    moved = norm.running_mean - student.get_buffer("two.running_mean")
    np.testing.assert_allclose(moved.double().numpy(), shift, atol=1e-3)


@torch.no_grad()
def test_a_linear_layer_on_tokens_is_solved_as_numpy_solves_it() -> None:
    teacher = network("transformer")
    anatomy = Anatomy.of(teacher, images())
    batches = [images(20, seed=7), images(20, seed=8)]
    place = next(place for place in anatomy.places if place.name == "mlp.0")
    kept = {place.atom: torch.tensor([0, 1, 4, 5, 7, 11, 12, 18])}
    student = narrowed_start(anatomy, readers_of(anatomy, batches), kept)
    start = copy.deepcopy(student)
    for name in solve_front_to_back(anatomy, student, kept, batches):
        if name == "mlp.2":
            break

    seen: dict[str, np.ndarray] = {}
    start.get_submodule("mlp.2").register_forward_pre_hook(
        lambda module, args: seen.update(x=args[0].flatten(0, 1).double().numpy())
    )
    teacher.get_submodule("mlp.2").register_forward_hook(
        lambda module, args, output: seen.update(y=output.flatten(0, 1).double().numpy())
    )
    for model in (start, teacher):
        model(torch.cat(batches))
    weight, shift = ridge_solution(
        seen["x"], seen["y"], start.get_parameter("mlp.2.weight").double().numpy().T, constant=True
    )
    np.testing.assert_allclose(student.get_parameter("mlp.2.weight").double().numpy(), weight.T, atol=2e-4)
    np.testing.assert_allclose(student.get_parameter("mlp.2.bias").double().numpy(), shift, atol=2e-4)


@torch.no_grad()
@pytest.mark.parametrize("kind", NETWORKS)
def test_solving_brings_a_student_nearer_and_leaves_the_teacher_as_it_was(kind: str) -> None:
    teacher = network(kind).train()
    before = copy.deepcopy(teacher.state_dict())
    anatomy = Anatomy.of(teacher, images())
    batches = [images(32, seed=number) for number in (7, 8)]
    views = [batch.clone() for batch in batches]
    widths = {place.name: max(1, 3 * place.width // 4) for place in anatomy.places}

    student, kept = solved(anatomy, widths, batches)

    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert all(torch.equal(*pair) for pair in zip(batches, views, strict=True))
    assert all(module.training for module in teacher.modules())
    assert not any(module.training for module in student.modules())
    pointers = [{value.data_ptr() for value in model.state_dict().values()} for model in (teacher, student)]
    assert not pointers[0] & pointers[1]
    unsolved = narrowed_start(anatomy, readers_of(anatomy, batches), kept)
    teacher.eval()
    errors = [
        float(sum((model(batch) - teacher(batch)).square().mean() for batch in batches))
        for model in (student, unsolved)
    ]
    assert errors[0] < 1.02 * errors[1]


def duplicated(layer: nn.Module, norm: nn.Module | None, target: int, source: int) -> None:
    for module_ in (layer, norm):
        for tensor in [] if module_ is None else [*module_.parameters(), *module_.buffers()]:
            if tensor.dim():
                tensor.data[target] = tensor.data[source]


def close_to_teacher(teacher: nn.Module, widths: dict[str, int]) -> None:
    """Narrow a teacher to some widths and see that its logits stay, on images that were seen and on others."""
    batches = [images(48, seed=number) for number in range(4)]
    anatomy = Anatomy.of(teacher, images())
    student, _ = solved(anatomy, widths, batches)
    assert sum(p.numel() for p in student.parameters()) < sum(p.numel() for p in teacher.parameters())
    for batch in (batches[0], images(16, seed=99)):
        logits = teacher(batch)
        assert float((student(batch) - logits).abs().max() / logits.std()) < 1e-5


@torch.no_grad()
def test_copies_of_channels_go_without_any_error() -> None:
    teacher = network("plain")
    for target in (2, 5, 7):
        duplicated(teacher.get_submodule("0.0"), teacher.get_submodule("0.1"), target, target - 1)
    close_to_teacher(teacher, {"0.0": 5})


@torch.no_grad()
def test_dead_channels_go_without_any_error() -> None:
    teacher = network("plain")
    for norm, dead in (("0.1", [1, 6]), ("1.1", [0, 3, 4, 12])):
        teacher.get_parameter(f"{norm}.weight")[dead] = 0
        teacher.get_parameter(f"{norm}.bias")[dead] = -1
    close_to_teacher(teacher, {"0.0": 6, "1.0": 12})


@torch.no_grad()
def test_sums_of_other_channels_in_front_of_a_linear_reader_go_without_any_error() -> None:
    teacher = randomised(nn.Sequential(conv(3, 8), nn.Flatten(), nn.Linear(512, 12), nn.Linear(12, 5)))
    weight = teacher.get_parameter("2.weight")
    mixing = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    weight[8:] = mixing @ weight[:8]
    close_to_teacher(teacher, {"2": 8})


@torch.no_grad()
def test_copies_in_a_residual_stream_go_without_any_error() -> None:
    teacher = randomised(nn.Sequential(conv(3, 8), Residual(8, 8), Residual(8, 8), Head(8)))
    for layer, norm in (("0.0", "0.1"), ("1.conv2.0", "1.conv2.1"), ("2.conv2.0", "2.conv2.1")):
        duplicated(teacher.get_submodule(layer), teacher.get_submodule(norm), 3, 4)
    close_to_teacher(teacher, {"0.0": 7})


@torch.no_grad()
@pytest.mark.parametrize("groups", [[1, 2, 3], [0, 2], [3]])
def test_groups_may_go_the_first_one_too(groups: list[int]) -> None:
    teacher = network("grouped")
    anatomy = Anatomy.of(teacher, images())
    batches = [images(16, seed=3)]
    of_groups, inside = anatomy.places[:2]
    kept = {of_groups.atom: torch.tensor(groups), inside.atom: torch.tensor([1, 2])}
    student = narrowed_start(anatomy, readers_of(anatomy, batches), kept)
    list(solve_front_to_back(anatomy, student, kept, batches))

    assert student.get_parameter("1.0.weight").shape == (6 * len(groups), 2, 3, 3)
    assert student(images()).isfinite().all()


class Repeats(nn.Module):
    """Blocks between which one layer comes again."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.again, self.between, self.head = conv(3, 8), conv(8, 8), conv(8, 8), Head(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.again(self.between(self.again(self.stem(x)))))


@torch.no_grad()
def test_a_layer_that_is_called_twice_keeps_its_compensated_weights() -> None:
    teacher = randomised(Repeats())
    anatomy = Anatomy.of(teacher, images())
    batches = [images(32, seed=3)]
    widths = {place.name: place.width - 2 for place in anatomy.places}
    assert widths

    student, kept = solved(anatomy, widths, batches)

    start = narrowed_start(anatomy, readers_of(anatomy, batches), kept)
    assert torch.equal(student.get_parameter("again.0.weight"), start.get_parameter("again.0.weight"))
    assert (student(batches[0]) - teacher(batches[0])).square().mean() < teacher(batches[0]).var()


@torch.no_grad()
def test_layers_of_too_many_unknowns_are_not_solved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_FEATURES", 50)
    teacher = network("plain")
    anatomy = Anatomy.of(teacher, images())
    student, kept = solved(anatomy, {"0.0": 6}, [images(32, seed=3)])
    start = narrowed_start(anatomy, readers_of(anatomy, [images(32, seed=3)]), kept)

    assert torch.equal(student.get_parameter("1.0.weight"), start.get_parameter("1.0.weight"))
    assert not torch.equal(student.get_parameter("2.fc.weight"), start.get_parameter("2.fc.weight"))
