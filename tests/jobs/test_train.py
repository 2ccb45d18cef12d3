"""Training a teacher with labels: it learns, and each image keeps its own label."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from netgraft.data.sources import open_data
from netgraft.data.view_policy import ViewPolicy
from netgraft.data.views import Views
from netgraft.errors import RequestError
from netgraft.jobs.train import SupervisedTraining, TrainJob
from netgraft.models.creation import build_model
from netgraft.models.students import load_student
from netgraft.plan import StepOutputs
from netgraft.training.runner import Runner
from netgraft.zoo import DIGITS_MEAN, DIGITS_STD
from tests.support.cli import fails, run_json
from tests.support.digit_words import WORDS, counted, write_digits


def make_views(images: Sequence[Image.Image], policy: ViewPolicy, labels: Sequence[int] | None = None) -> Views:
    return Views(
        images,
        policy,
        size=(1, 8, 8),
        mean=DIGITS_MEAN,
        std=DIGITS_STD,
        interpolation="bilinear",
        crop_pct=1.0,
        seed=0,
        labels=labels,
    )


@torch.no_grad()
def answers(model: nn.Module, images: Sequence[Image.Image]) -> Tensor:
    return model.eval()(make_views(images, ViewPolicy("plain", pool=0)).batch(range(len(images)))).argmax(1)


def test_two_epochs_of_digits_beat_chance_by_far() -> None:
    source = open_data("digits")
    assert source.test is not None
    model = build_model("digits_vgg7_bn_half", seed=0)
    recipe = SupervisedTraining(epochs=2, batch_size=32)
    policy = recipe.views(len(source.train), (1, 8, 8), source.hflip)
    views = make_views(source.train.load_many(range(len(source.train))), policy, source.train.labels)
    trained = Runner(accelerator="cpu", precision="32").run(recipe.plan(model, len(source.train)), views)
    assert trained.steps == 2 * 38  # 1,197 images
    right = answers(model, source.test.load_many(range(300))) == torch.tensor((source.test.labels or ())[:300])
    assert right.double().mean() > 0.6  # chance is 0.1


def test_each_image_keeps_its_label() -> None:
    # class k is one grey level, the images are in no order of their classes: only true labels can be learned
    labels = [3, 0, 4, 1, 1, 2, 0, 3, 2, 4, 4, 0, 3, 1, 2]
    images = [Image.fromarray(np.full((8, 8), 50 * label, dtype=np.uint8)) for label in labels]
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 5))
    torch.manual_seed(0)
    for layer in model:
        if isinstance(layer, nn.Linear):
            layer.reset_parameters()
    views = make_views(images, ViewPolicy("plain", pool=0), labels)
    recipe = SupervisedTraining(epochs=150, batch_size=4, lr=0.02)
    Runner(accelerator="cpu", precision="32").run(recipe.plan(model, len(images)), views)
    assert answers(model, images).tolist() == labels


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_is_the_cross_entropy_with_spread_targets(smoothing: float) -> None:
    generator = np.random.default_rng(0)
    logits, labels = generator.normal(size=(6, 5)), generator.integers(0, 5, 6)
    log_probabilities = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    targets = np.full((6, 5), smoothing / 5)
    targets[np.arange(6), labels] += 1 - smoothing
    plan = SupervisedTraining(label_smoothing=smoothing).plan(nn.Linear(2, 5), 6)
    terms = plan.phases[0].objective(StepOutputs(torch.from_numpy(logits), None, torch.from_numpy(labels)))
    assert float(sum(terms.values())) == pytest.approx(-(targets * log_probabilities).sum(1).mean(), rel=1e-9)


@pytest.mark.parametrize(("images", "batch", "steps", "size"), [(100, 32, 12, 32), (10, 32, 3, 10), (64, 32, 6, 32)])
def test_plan_is_one_phase_of_so_many_epochs(images: int, batch: int, steps: int, size: int) -> None:
    model = nn.Linear(2, 5)
    plan = SupervisedTraining(epochs=3, batch_size=batch).plan(model, images)
    assert [(phase.schedule.steps, phase.schedule.batch_size) for phase in plan.phases] == [(steps, size)]
    assert set(plan.phases[0].trainable.parameters()) == set(model.parameters())
    assert plan.phases[0].teacher is None


def test_each_epoch_has_views_of_its_own() -> None:
    recipe = SupervisedTraining(epochs=7)
    for size in [(3, 32, 32), (3, 224, 224)]:
        policy = recipe.views(5, size, hflip=True)
        assert policy.pool == 5 * 7
        assert policy.hflip == 0.5
        assert recipe.views(5, size, hflip=False).hflip == 0
        # a labelled view shows one image
        assert not policy.mixes


def test_impossible_recipes_are_refused() -> None:
    settings: list[dict[str, Any]] = [{"epochs": 0}, {"batch_size": 0}]
    for each in settings:
        with pytest.raises(RequestError, match=f"{next(iter(each))} must be at least 1, not 0"):
            SupervisedTraining(**each)
    with pytest.raises(RequestError, match="optimizer must be one of sgd, adamw, not 'lion'"):
        SupervisedTraining(optimizer="lion")


def test_sgd_step_is_the_papers() -> None:
    # one step from the start: Nesterov momentum 0.9 moves by (1 + 0.9) times the decayed gradient
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 5))
    before = [p.detach().clone() for p in model.parameters()]
    image = [Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))]
    views = make_views(image, ViewPolicy("plain", pool=0), [2])
    recipe = SupervisedTraining(epochs=1, batch_size=1, lr=0.1, weight_decay=0.01)
    loss = F.cross_entropy(model(views.batch([0])), torch.tensor([2]))
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    Runner(accelerator="cpu", precision="32").run(recipe.plan(model, 1), views)
    rate = 0.1 * np.cos(np.pi * (0.5 - 0.25) / 0.75 / 2) ** 2  # half way through the only step of a cycle
    for old, new, gradient in zip(before, model.parameters(), gradients, strict=True):
        decayed = gradient + (0.01 * old if old.dim() > 1 else 0)
        torch.testing.assert_close(new, old - rate * 1.9 * decayed, atol=1e-6, rtol=1e-5)


def test_a_teacher_is_measured_on_images_that_are_named_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    named = dict(enumerate(WORDS))
    write_digits(Path("words"), named, each=2, test=False)
    # in another order, and some of the classes
    write_digits(Path("test"), {digit: WORDS[digit] for digit in (8, 1, 5)}, each=4)
    request = ["train", "digits_vgg7_bn_half", "--epochs", "20", "--batch-size", "20", "--data", "words"]
    result = run_json(capsys, *request, "--eval-data", "test", "--out", "run")
    assert result["test_images"] == 12
    # the model's classes are in the alphabetical order of their names
    order = sorted(WORDS)
    expected = counted(load_student("run/model"), Path("test"), {word: order.index(word) for word in WORDS})
    assert result["top1"] == pytest.approx(expected, abs=1e-4)
    write_digits(Path("flat"), {1: "photos"}, each=2)
    assert "photos has no class folders" in fails(capsys, *request, "--eval-data", "flat/photos", "--out", "other")


def test_a_training_says_how_large_its_images_are() -> None:
    notes = TrainJob(model="digits_vgg7_bn_half", data="digits", image_size=16).prepare().notes
    assert notes[0] == "training digits_vgg7_bn_half on 1,197 images of digits, 16 x 16 pixels in 1 channel"
    assert not any("SupervisedTraining(" in note for note in notes)
