"""Figures against hand-made ones, and models that are left as they were found."""

from __future__ import annotations

import timeit
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from netgraft.errors import RequestError, RunError
from netgraft.evaluation.metrics import WARM_UP, agreement, is_at_chance, latency, macs, predict, top1
from netgraft.modules import state_digest
from tests.evaluation.hand_made import (
    AGREEMENT,
    CONFIDENT,
    GAP,
    LABELS,
    STUDENT,
    STUDENT_TOP1,
    TEACHER,
    TEACHER_TOP1,
    UNSURE,
    logits,
)


class Recorder(nn.Module):
    """Passes (B, 1, 1, K) on as logits and notes the state it ran in."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[int, bool, bool]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append((len(x), self.training, torch.is_inference_mode_enabled()))
        return x.flatten(1)


class Failing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise ArithmeticError


def mixed_model() -> nn.Sequential:
    """A model of which one norm is frozen, the other in training."""
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.BatchNorm2d(4),
        nn.Flatten(),
        nn.LazyLinear(5),
    )
    model(torch.randn(2, 3, 8, 8))
    model.train()
    model[1].eval()
    return model


def modes(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


def test_predict_keeps_order_labels_and_ragged_last_batch() -> None:
    images = torch.arange(7 * 3, dtype=torch.float32).reshape(7, 1, 1, 3)
    labels = torch.tensor([4, 3, 2, -1, 0, -1, 6])
    heard: list[int] = []
    loader = [(images[:3], labels[:3]), (images[3:6], labels[3:6]), (images[6:], labels[6:])]
    logits, answered = predict(Recorder(), loader, progress=heard.append)
    assert torch.equal(logits, images.flatten(1))
    assert torch.equal(answered, labels)
    assert heard == [3, 3, 1]


def test_predict_runs_in_eval_and_inference_mode_and_returns_normal_tensors() -> None:
    recorder = Recorder()
    logits, _ = predict(recorder, [(torch.randn(2, 1, 1, 3), torch.zeros(2, dtype=torch.long))])
    assert recorder.calls == [(2, False, True)]
    assert recorder.training
    weight = torch.ones(3, requires_grad=True)
    (logits * weight).sum().backward()
    torch.testing.assert_close(weight.grad, logits.sum(0))


def test_predict_answers_in_float32_and_casts_images_to_the_model() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 5)).double()
    images = torch.randn(4, 3, 2, 2)
    logits, _ = predict(model, [(images, torch.zeros(4, dtype=torch.long))])
    linear = model[1]
    assert isinstance(linear, nn.Linear)
    expected = images.double().flatten(1) @ linear.weight.T + linear.bias
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, expected.float().detach())


def test_predict_moves_the_model_to_a_named_device() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
    with pytest.raises(NotImplementedError, match="meta"):
        predict(model, [(torch.randn(1, 3, 2, 2), torch.zeros(1))], device="meta")
    assert next(model.parameters()).device.type == "meta"


def test_predict_refuses_an_empty_loader() -> None:
    with pytest.raises(RequestError, match="at least one image"):
        predict(Recorder(), [])


def test_modes_and_state_are_as_before_after_every_measurement() -> None:
    model = mixed_model()
    before, digest, random_state = modes(model), state_digest(model), torch.get_rng_state()
    assert True in before
    assert False in before
    predict(model, [(torch.zeros(2, 3, 8, 8), torch.zeros(2))])
    macs(model, (3, 8, 8))
    latency(model, (3, 8, 8), batch=2, repeats=2)
    assert modes(model) == before
    assert state_digest(model) == digest
    assert torch.equal(torch.get_rng_state(), random_state)


def test_modes_are_restored_when_the_model_fails() -> None:
    model = nn.Sequential(nn.Dropout(), Failing())
    model[0].eval()
    before = modes(model)
    with pytest.raises(ArithmeticError):
        predict(model, [(torch.zeros(1, 3), torch.zeros(1))])
    assert modes(model) == before


def test_top1_of_hand_made_logits() -> None:
    logits = torch.tensor([[3.0, 1.0, 2.0], [0.0, 5.0, -1.0], [-3.0, -2.0, -1.0], [9.0, 1.0, 2.0]])
    assert top1(logits, torch.tensor([0, 1, 2, 0])) == 100.0
    assert top1(logits, torch.tensor([0, 1, 2, 1])) == 75.0
    assert top1(logits, torch.tensor([1, 2, 0, 1])) == 0.0


def test_agreement_of_hand_made_logits() -> None:
    a = torch.tensor([[3.0, 1.0], [0.0, 5.0], [-1.0, -2.0]])
    b = torch.tensor([[0.2, 0.1], [7.0, 5.0], [-1.0, -9.0]])
    assert agreement(a, a * 17) == 100.0
    assert agreement(a, b) == pytest.approx(200 / 3)
    assert agreement(a, -a) == 0.0


def test_agreement_is_neither_ones_top1_nor_the_gap() -> None:
    teacher, student = logits(TEACHER, CONFIDENT), logits(STUDENT, UNSURE)
    labels = torch.tensor(LABELS)
    assert agreement(student, teacher) == agreement(teacher, student) == AGREEMENT
    assert top1(teacher, labels) == TEACHER_TOP1
    assert top1(student, labels) == STUDENT_TOP1
    assert top1(teacher, labels) - top1(student, labels) == GAP
    # whoever is right, agreement asks for no labels: both wrong alike agree, and what is shifted alike too
    turned = [1, 2, 0]
    assert agreement(student[:, turned], teacher[:, turned]) == AGREEMENT
    assert agreement(student, teacher[:, turned]) != AGREEMENT


@pytest.mark.parametrize("labels", [torch.tensor([0, -1]), torch.tensor([0, 3]), torch.tensor([0])])
def test_top1_refuses_labels_that_do_not_fit(labels: Tensor) -> None:
    with pytest.raises(RequestError, match="expected"):
        top1(torch.eye(2, 3), labels)


def test_figures_of_nothing_or_of_nan_are_refused() -> None:
    with pytest.raises(RequestError, match="at least one image"):
        top1(torch.empty(0, 3), torch.empty(0, dtype=torch.long))
    with pytest.raises(RequestError, match="one loader"):
        agreement(torch.eye(3), torch.eye(2))
    broken = torch.eye(3)
    broken[1, 1] = torch.nan
    with pytest.raises(RunError, match="NaN"):
        top1(broken, torch.arange(3))
    with pytest.raises(RunError, match="NaN"):
        agreement(torch.eye(3), broken)


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (nn.Conv2d(3, 16, 3, padding=1), 16 * 3 * 9 * 10 * 12),
        (nn.Conv2d(3, 16, 3, stride=2, bias=False), 16 * 3 * 9 * 4 * 5),
        (nn.Conv2d(3, 6, 3, padding=1, groups=3), 6 * 1 * 9 * 10 * 12),
        (nn.Sequential(nn.Flatten(), nn.Linear(360, 7)), 360 * 7),
        (nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2)), 0),
    ],
)
def test_macs_of_single_layers(layer: nn.Module, expected: int) -> None:
    assert macs(layer, (3, 10, 12)) == expected


def test_macs_counts_a_layer_at_each_use() -> None:
    conv = nn.Conv2d(3, 3, 1)
    assert macs(nn.Sequential(conv, conv), (3, 4, 4)) == 2 * 9 * 16


def test_macs_of_vgg16_on_cifar() -> None:
    layers: list[nn.Module] = []
    expected, width, size = 10 * 512, 3, 32
    for convs, channels in ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)):
        for _ in range(convs):
            layers += [nn.Conv2d(width, channels, 3, padding=1), nn.ReLU()]
            expected += width * channels * 9 * size**2
            width = channels
        layers.append(nn.MaxPool2d(2))
        size //= 2
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, 10))
    assert expected == 313_201_664
    assert macs(model, (3, 32, 32)) == expected


class Slow(Recorder):
    """Takes its time, forward by forward, on a clock of its own."""

    def __init__(self, seconds: Sequence[float]) -> None:
        super().__init__()
        self.seconds = iter(seconds)
        self.now = 0.0

    def forward(self, x: Tensor) -> Tensor:
        self.now += next(self.seconds)
        return super().forward(x)


def test_latency_is_the_median_of_the_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    warm_up, again = [50.0] * WARM_UP, [60.0, 70.0]  # the timer warms up twice in front of each measurement
    slow = Slow([*warm_up, *again, 0.002, *again, 0.9, *again, 0.004])
    monkeypatch.setattr(timeit, "default_timer", lambda: slow.now)
    assert latency(slow, (1, 1, 3), batch=5, repeats=3) == pytest.approx(4.0)
    assert len(slow.calls) == WARM_UP + 3 * 3
    assert set(slow.calls) == {(5, False, True)}


def test_latency_is_measured_with_the_threads_that_there_are() -> None:
    class Threads(Recorder):
        def forward(self, x: Tensor) -> Tensor:
            seen.add(torch.get_num_threads())
            return super().forward(x)

    seen: set[int] = set()
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        latency(Threads(), (1, 1, 3), batch=1, repeats=2)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert seen == {3}


@pytest.mark.parametrize(("batch", "repeats"), [(0, 3), (1, 0)])
def test_latency_refuses_nothing_to_measure(batch: int, repeats: int) -> None:
    with pytest.raises(RequestError, match="at least 1"):
        latency(Recorder(), (1, 1, 3), batch=batch, repeats=repeats)


@pytest.mark.cuda
def test_cuda_gives_the_same_figures_as_the_cpu() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5)).eval()
    images, labels = torch.randn(6, 3, 8, 8), torch.zeros(6, dtype=torch.long)
    digest, count = state_digest(model), macs(model, (3, 8, 8))
    expected, _ = predict(model, [(images, labels)])
    logits, answered = predict(model, [(images, labels)], device="cuda")
    assert (logits.device.type, answered.device.type) == ("cpu", "cpu")
    torch.testing.assert_close(logits, expected, rtol=1e-2, atol=1e-2)  # TF32 convolutions
    assert state_digest(model) == digest
    assert macs(model, (3, 8, 8)) == count
    assert latency(model, (3, 8, 8), batch=4, device="cuda") > 0


class Placed(nn.Module):
    """A model of one parameter that notes where its images lie, and how."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, dtype=dtype))
        self.seen: set[tuple[str, torch.dtype]] = set()
        self.channels_last: list[bool] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.add((x.device.type, x.dtype))
        if x.ndim == 4:
            self.channels_last.append(x.is_contiguous(memory_format=torch.channels_last))
        return x.flatten(1)


@pytest.mark.parametrize(("device", "dtype"), [("meta", torch.float32), ("cpu", torch.float64)])
def test_costs_are_measured_where_the_model_lies_in_its_type(device: str, dtype: torch.dtype) -> None:
    model = Placed(dtype).to(device)
    macs(model, (2, 3, 3))
    assert model.seen == {(device, dtype)}
    model.seen.clear()
    latency(model, (2, 3, 3), batch=1, repeats=1)
    assert model.seen == {(device, dtype)}
    assert model.weight.device.type == device


def test_latency_moves_the_model_to_a_named_device() -> None:
    model = Placed()
    latency(model, (2, 3, 3), batch=1, repeats=1, device="meta")
    assert model.seen == {("meta", torch.float32)}
    assert model.weight.device.type == "meta"


def test_latency_is_of_twenty_repeats_where_none_are_named() -> None:
    recorder = Recorder()
    latency(recorder, (1, 1, 3), batch=1)
    assert len(recorder.calls) == WARM_UP + 20 * 3


def test_images_come_with_channels_last_and_features_as_they_are() -> None:
    model = Placed()
    images, features = torch.randn(2, 3, 4, 5), torch.randn(2, 7)
    assert torch.equal(predict(model, [(images, torch.zeros(2))])[0], images.flatten(1))
    assert model.channels_last == [True]
    assert torch.equal(predict(model, [(features, torch.zeros(2))])[0], features)


def test_refusals_say_what_fits() -> None:
    with pytest.raises(RequestError, match=r"labels from 0 to 2, .* got -1 to 5; use labelled data"):
        top1(torch.eye(3), torch.tensor([-1, 0, 5]))
    with pytest.raises(RequestError, match=r"each of 3 answers.* shape \(2,\); pass the labels that predict returned"):
        top1(torch.eye(3), torch.tensor([0, 1]))
    with pytest.raises(RequestError, match=r"got \(3,\); pass what predict returned"):
        agreement(torch.ones(3), torch.ones(3))


@pytest.mark.parametrize(("images", "classes"), [(40, 2), (600, 2), (100, 10), (600, 10), (1000, 1000), (50_000, 1000)])
def test_guesses_are_at_chance_and_so_are_shuffled_classes(images: int, classes: int) -> None:
    draws = np.random.default_rng(0)
    guesses = draws.integers(0, classes, (300, images)) == draws.integers(0, classes, (300, images))
    assert all(is_at_chance(100 * right, images, classes) for right in guesses.mean(1).tolist())
    assert is_at_chance(0.0, images, classes)
    if classes == 1000:
        # a right classifier (75 %) whose classes are shuffled: those that fall on their own place count
        own = (draws.permuted(np.tile(np.arange(classes), (300, 1)), axis=1) == np.arange(classes)).sum(1)
        assert np.mean([is_at_chance(75.0 * each / classes, images, classes) for each in own.tolist()]) > 0.85


@pytest.mark.parametrize(
    ("top1_", "images", "classes", "chance"),
    [
        # in tenths of a point around 1.5 / 10.5 + 3 sqrt(...) = 18.57 %
        (18.5, 600, 10, True),
        (18.6, 600, 10, False),
        # a teacher of two classes that is right on three of four knows something
        (75.0, 600, 2, False),
        (62.0, 600, 2, True),
        (5.0, 1000, 1000, False),
        # of few images, half way from one in ten to all: 55 %
        (50.0, 4, 10, True),
        (75.0, 4, 10, False),
        (100.0, 1, 10, False),
        (100.0, 5, 1, False),
    ],
)
def test_what_is_better_than_a_guess_is_not_at_chance(top1_: float, images: int, classes: int, chance: bool) -> None:
    assert is_at_chance(top1_, images, classes) is chance
