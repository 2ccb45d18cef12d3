"""Teacher and student beside each other; a teacher's predictions may be kept, and are never another teacher's."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from netgraft.data.image_set import ArrayStore, ImageSet
from netgraft.data.sources import open_data
from netgraft.evaluation import comparison
from netgraft.evaluation.comparison import KNOWN_BY, cached_predictions, compare, predictions
from netgraft.progress import SilentReporter
from tests.evaluation.hand_made import (
    AGREEMENT,
    CONFIDENT,
    ENSEMBLE,
    ENSEMBLE_TOP1,
    GAP,
    LABELS,
    STUDENT,
    STUDENT_TOP1,
    TEACHER,
    TEACHER_TOP1,
    UNSURE,
    logits,
)

T = TypeVar("T")


class Counting(SilentReporter):
    def __init__(self) -> None:
        self.passes = 0

    def track(self, items: Iterable[T], *, total: int, name: str) -> Iterator[T]:
        self.passes += 1
        yield from items


@pytest.fixture
def images() -> ImageSet:
    test = open_data("digits").test
    assert test is not None
    return test


def test_predictions_are_kept_for_the_same_model_and_images_alone(tmp_path: Path, images: ImageSet) -> None:
    model = timm.create_model("digits_vgg7_bn_half").eval()
    config = resolve_model_data_config(model)
    reporter = Counting()
    logits, labels = predictions(model, images, config, SilentReporter())

    def kept(test: ImageSet = images) -> None:
        found, classes = cached_predictions(tmp_path, model, test, config, reporter, "evaluating")
        assert torch.equal(found, logits)
        assert torch.equal(classes, labels)

    kept()
    kept()
    assert reporter.passes == 1
    # a file cut short is computed again
    [file] = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:100])
    kept()
    assert reporter.passes == 2
    # other labels, other pixels, other preprocessing, another model
    assert images.labels is not None
    shifted = replace(images, labels=(*images.labels[1:], images.labels[0]))
    cached_predictions(tmp_path, model, shifted, config, reporter, "evaluating")
    other = replace(images, store=open_data("digits").train.store)
    cached_predictions(tmp_path, model, other, config, reporter, "evaluating")
    cached_predictions(tmp_path, model, images, {**config, "mean": (0.4,)}, reporter, "evaluating")
    assert reporter.passes == 5
    with torch.no_grad():
        next(model.parameters()).add_(1.0)
    changed, _ = cached_predictions(tmp_path, model, images, config, reporter, "evaluating")
    assert reporter.passes == 6
    assert torch.equal(changed, predictions(model, images, config, SilentReporter())[0])
    assert not torch.equal(changed, logits)


class Answering(nn.Module):
    """Gives the image of brightness k / 255 the logits of row k.

    Args:
        rows: (N, K).
        width: Rows of the weights, of which those behind N are never looked up; tells two models' sizes apart.
    """

    def __init__(self, rows: Tensor, width: int) -> None:
        super().__init__()
        self.num_classes = rows.shape[1]
        self.rows = nn.Parameter(torch.cat([rows, rows.new_zeros(width - len(rows), rows.shape[1])]))

    def forward(self, x: Tensor) -> Tensor:
        numbers = (255 * x.mean(dim=(1, 2, 3))).round().long()
        return nn.functional.one_hot(numbers, len(self.rows)).to(x.dtype) @ self.rows


SIZES = {"teacher": 13, "student": 10, "ensemble": 11}
"""Rows of three weights each."""

GRAY: dict[str, Any] = {
    "input_size": (1, 4, 4),
    "interpolation": "nearest",
    "mean": (0.0,),
    "std": (1.0,),
    "crop_pct": 1.0,
    "crop_mode": "center",
}


@pytest.fixture
def numbered() -> ImageSet:
    """Ten images, each as bright as its number."""
    pixels = np.arange(10, dtype=np.uint8)[:, None, None].repeat(4, axis=1).repeat(4, axis=2)
    return ImageSet("numbered", 10, ArrayStore(pixels), labels=LABELS, classes=3)


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> dict[str, Answering]:
    """Teacher, student and ensemble; a forward of n images takes n + the model's rows in milliseconds."""

    def latency(model: Answering, size: tuple[int, int, int], batch: int, *, repeats: int) -> float:
        assert size == GRAY["input_size"]
        return batch + len(model.rows)

    monkeypatch.setattr(comparison, "latency", latency)
    answers = {"teacher": (TEACHER, CONFIDENT), "student": (STUDENT, UNSURE), "ensemble": (ENSEMBLE, UNSURE)}
    return {name: Answering(logits(*each), SIZES[name]) for name, each in answers.items()}


COST = {
    "teacher_parameters": 39,
    "teacher_macs": 39,
    "teacher_latency_ms_1": 14,
    "teacher_latency_ms_64": 77,
    "parameters": 30,
    "macs": 30,
    "latency_ms_1": 11,
    "latency_ms_64": 74,
}


def test_every_figure_of_a_comparison_is_the_one_counted_by_hand(
    numbered: ImageSet, models: dict[str, Answering]
) -> None:
    compared = compare(
        models["teacher"], models["student"], numbered, GRAY, SilentReporter(), ensemble=models["ensemble"]
    )
    sure = {
        name: [100 * max(np.exp(naming[answer])) / sum(np.exp(naming[answer])) for answer in answers]
        for name, answers, naming in (("teacher", TEACHER, CONFIDENT), ("student", STUDENT, UNSURE))
    }
    # all of the student's are below one half, and in the same bin of the error
    [inside] = compared.pop("by_confidence")
    assert inside["confidence"] == pytest.approx(np.mean(sure["student"]), abs=1e-3)
    assert (inside["images"], inside["agreement"], inside["right"]) == (10, AGREEMENT, STUDENT_TOP1)
    assert compared.pop("calibration_error") == pytest.approx(STUDENT_TOP1 - np.mean(sure["student"]), abs=1e-3)
    # the teacher's answer 1 is less sure than the others: four times, two of them right; five of the other six are
    less = [confidence for confidence, answer in zip(sure["teacher"], TEACHER, strict=True) if answer == 1]
    more = [confidence for confidence, answer in zip(sure["teacher"], TEACHER, strict=True) if answer != 1]
    error = (4 * abs(np.mean(less) - 100 * 2 / 4) + 6 * abs(np.mean(more) - 100 * 5 / 6)) / 10
    assert compared.pop("teacher_calibration_error") == pytest.approx(error, abs=1e-3)
    for row in compared.pop("differ_most"):
        place = row["position"]
        assert (row["image"], row["right"]) == (f"image {place}", str(LABELS[place]))
        assert (row["teacher"], row["student"]) == (str(TEACHER[place]), str(STUDENT[place]))
    for row in compared.pop("by_class"):
        named = [number for number in range(10) if TEACHER[number] == int(row["name"])]
        assert row["images"] == len(named)
        same = [TEACHER[number] == STUDENT[number] for number in named]
        assert row["agreement"] == pytest.approx(100 * sum(same) / len(named))
    assert compared == {
        "teacher_top1": TEACHER_TOP1,
        "student_top1": STUDENT_TOP1,
        "gap": GAP,
        "agreement": AGREEMENT,
        # eight of ten, by the formula
        "agreement_low": 49.0162,
        "agreement_high": 94.3318,
        "test_images": 10,
        "ensemble_top1": ENSEMBLE_TOP1,
        "ensemble_parameters": 33,
        **COST,
    }


def test_percentages_have_four_decimals_and_the_gap_is_the_difference_of_those(models: dict[str, Answering]) -> None:
    """Of images 5, 6 and 7 the teacher is right on two, the student on one; they agree on two."""
    pixels = np.arange(5, 8, dtype=np.uint8)[:, None, None].repeat(4, axis=1).repeat(4, axis=2)
    three = ImageSet("three", 3, ArrayStore(pixels), labels=LABELS[5:8], classes=3)
    compared = compare(models["teacher"], models["student"], three, GRAY, SilentReporter(), ensemble=models["ensemble"])
    figures = {key: compared[key] for key in ("teacher_top1", "student_top1", "gap", "agreement", "ensemble_top1")}
    assert figures == {
        "teacher_top1": 66.6667,
        "student_top1": 33.3333,
        "gap": 33.3334,
        "agreement": 66.6667,
        "ensemble_top1": 0.0,
    }


def test_a_student_ahead_of_its_teacher_has_a_gap_below_zero(numbered: ImageSet, models: dict[str, Answering]) -> None:
    compared = compare(models["student"], models["teacher"], numbered, GRAY, SilentReporter())
    figures = {key: compared[key] for key in ("teacher_top1", "student_top1", "gap", "agreement")}
    assert figures == {
        "teacher_top1": STUDENT_TOP1,
        "student_top1": TEACHER_TOP1,
        "gap": -GAP,
        "agreement": AGREEMENT,
    }
    assert "ensemble_top1" not in compared


def test_a_comparison_is_the_same_with_the_teachers_kept_answers(
    tmp_path: Path, numbered: ImageSet, models: dict[str, Answering]
) -> None:
    plain = compare(models["teacher"], models["student"], numbered, GRAY, SilentReporter())
    for passes in (2, 1):  # teacher and student, then the student alone
        reporter = Counting()
        assert compare(models["teacher"], models["student"], numbered, GRAY, reporter, cache=tmp_path) == plain
        assert reporter.passes == passes


def test_without_labels_there_are_no_accuracies(numbered: ImageSet, models: dict[str, Answering]) -> None:
    agreed = {"agreement": AGREEMENT, "agreement_low": 49.0162, "agreement_high": 94.3318}
    for test, images, known in (
        (None, 0, dict.fromkeys(agreed)),
        (replace(numbered, labels=None, classes=None), 10, agreed),
    ):
        compared = compare(models["teacher"], models["student"], test, GRAY, SilentReporter())
        estimated = {name: compared.pop(name) for name in list(compared) if name.startswith("estimated_gap")}
        different = [row["image"] for row in compared.pop("differ_most")]
        for name in ("by_class", "by_confidence"):
            assert sum(row["images"] for row in compared.pop(name, [])) == images
        assert compared == {
            "teacher_top1": None,
            "student_top1": None,
            "gap": None,
            "held_out_images": images,
            **known,
            **COST,
        }
        assert len(estimated) == 3
        assert all((value is None) == (test is None) for value in estimated.values())
        # they answer two images differently, of which the teacher is sure
        assert sorted(different) == ([] if test is None else ["image 6", "image 9"])


class Listening(SilentReporter):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.passes: list[tuple[str, int]] = []
        self.notes: list[str] = []

    def track(self, items: Iterable[T], *, total: int, name: str) -> Iterator[T]:
        self.passes.append((name, total))
        yield from items

    def note(self, message: str) -> None:
        self.notes.append(message)


def brightnesses(*values: int) -> ArrayStore:
    return ArrayStore(np.array(values, dtype=np.uint8)[:, None, None].repeat(4, axis=1).repeat(4, axis=2))


def test_progress_says_which_model_runs(tmp_path: Path, numbered: ImageSet, models: dict[str, Answering]) -> None:
    heard = Listening()
    folder = tmp_path / "made" / "too"
    arguments = (models["teacher"], models["student"], numbered, GRAY, heard)
    compare(*arguments, ensemble=models["ensemble"], cache=folder)
    others = [("evaluating the student", 1), ("evaluating the ensemble", 1)]
    assert heard.passes == [("evaluating the teacher", 1), *others]
    assert heard.notes == []
    compare(*arguments, ensemble=models["ensemble"], cache=folder)
    assert heard.passes[3:] == others
    [file] = folder.iterdir()
    assert heard.notes == [f"evaluating the teacher: kept in {file}"]
    predictions(models["teacher"], numbered, GRAY, heard)
    assert heard.passes[5:] == [("evaluating", 1)]


def test_an_ensembles_accuracy_has_four_decimals_and_milliseconds_three(
    models: dict[str, Answering], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison, "latency", lambda *_, **__: 1.23456)
    three = ImageSet("three", 3, brightnesses(5, 6, 7), labels=LABELS[5:8], classes=3)
    compared = compare(models["student"], models["student"], three, GRAY, SilentReporter(), ensemble=models["teacher"])
    assert compared["ensemble_top1"] == 66.6667
    assert {value for key, value in compared.items() if "latency" in key} == {1.235}


@pytest.mark.parametrize("size", [10, 70])
@pytest.mark.parametrize("changed", ["name", "first image", "last image that is looked at", "number"])
def test_kept_predictions_are_of_images_alike_in_every_respect(tmp_path: Path, size: int, changed: str) -> None:
    step = max(1, size // KNOWN_BY)
    blank = [9] * size
    images = ImageSet("blank", size, brightnesses(*blank), labels=None)
    model, heard = Answering(torch.eye(10, 3), 12), Listening()
    for _ in range(2):
        cached_predictions(tmp_path, model, images, GRAY, heard, "first")
    if changed == "name":
        other = replace(images, name="white")
    elif changed == "number":
        # of 70 and of 69 images the same 35 are looked at
        other = replace(images, size=size - 1, store=brightnesses(*blank[:-1]))
    else:
        blank[0 if changed == "first image" else (size - 1) // step * step] = 3
        other = replace(images, store=brightnesses(*blank))
    logits, _ = cached_predictions(tmp_path, model, other, GRAY, heard, "second")
    assert heard.passes == [("first", -(-size // 64)), ("second", -(-len(other) // 64))]
    assert len(logits) == len(other)


class Looked(ArrayStore):
    """Counts the images that are looked at."""

    count = 0

    def images(self, indices: Sequence[int]) -> list[Image.Image]:
        Looked.count += len(indices)
        return super().images(indices)


def test_of_many_images_few_are_looked_at(tmp_path: Path) -> None:
    images = ImageSet("many", 1000, Looked(brightnesses(*[9] * 1000).pixels), labels=None)
    model = Answering(torch.eye(10, 3), 12)
    cached_predictions(tmp_path, model, images, GRAY, SilentReporter(), "evaluating")
    Looked.count = 0
    cached_predictions(tmp_path, model, images, GRAY, SilentReporter(), "evaluating")
    assert KNOWN_BY <= Looked.count < 2 * KNOWN_BY


@pytest.mark.parametrize("error", [KeyError("logits"), OSError("disk")])
def test_a_kept_file_that_does_not_open_is_written_again(
    tmp_path: Path, numbered: ImageSet, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def broken(path: Path) -> dict[str, Tensor]:
        raise error

    model, heard = Answering(logits(TEACHER, CONFIDENT), 12), Listening()
    kept, _ = cached_predictions(tmp_path, model, numbered, GRAY, heard, "evaluating")
    with monkeypatch.context() as patch:
        patch.setattr(comparison, "load_file", broken)
        again, _ = cached_predictions(tmp_path, model, numbered, GRAY, heard, "evaluating")
    assert torch.equal(kept, again)
    assert len(heard.passes) == 2


def test_a_flipped_bit_in_a_kept_file_is_noticed_and_the_file_written_again(tmp_path: Path, numbered: ImageSet) -> None:
    model, heard = Answering(logits(TEACHER, CONFIDENT), 12), Listening()
    kept, labels = cached_predictions(tmp_path, model, numbered, GRAY, heard, "evaluating")
    [path] = tmp_path.iterdir()
    content = path.read_bytes()
    positions = range(0, len(content), 7)
    for position in positions:
        flipped = bytearray(content)
        flipped[position] ^= 1 << position % 8
        path.write_bytes(flipped)
        again = cached_predictions(tmp_path, model, numbered, GRAY, heard, "evaluating")
        assert torch.equal(again[0], kept)
        assert torch.equal(again[1], labels)
        assert path.read_bytes() == content
    assert len(heard.passes) == 1 + len(positions)
    assert heard.notes == [f"evaluating: {path} is damaged, or of an older version, and is computed again"] * len(
        positions
    )


def test_a_kept_file_under_another_s_name_is_not_taken(tmp_path: Path, numbered: ImageSet) -> None:
    heard = Listening()
    first, second = Answering(logits(TEACHER, CONFIDENT), 12), Answering(torch.eye(10, 3), 12)
    for number, model in enumerate((first, second)):
        cached_predictions(tmp_path / str(number), model, numbered, GRAY, heard, "evaluating")
    [other], [own] = (tmp_path / "0").iterdir(), (tmp_path / "1").iterdir()
    shutil.copy(other, own)
    found, _ = cached_predictions(tmp_path / "1", second, numbered, GRAY, heard, "evaluating")
    assert torch.equal(found, predictions(second, numbered, GRAY, SilentReporter())[0])
