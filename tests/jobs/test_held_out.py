"""A student is measured without labels: on images that took no part in making it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from netgraft.cli.main import run
from PIL import Image
from torch import nn

import netgraft
from netgraft.data.given_images import names
from netgraft.data.sources import open_data
from netgraft.data.subsets import hold_out
from netgraft.data.view_policy import find_policy
from netgraft.data.views import Views
from netgraft.distillation_result import DistillationResult
from netgraft.errors import RequestError
from netgraft.jobs.distill import DistillJob
from netgraft.methods.netgraft import NetGraft
from netgraft.models.creation import build_student
from netgraft.models.loading import load_teacher
from netgraft.models.own_modules import preprocessing
from netgraft.models.students import load_student
from netgraft.modules import state_digest
from netgraft.training.options import DeviceOptions
from netgraft.zoo import DIGITS_MEAN, DIGITS_STD
from tests.support.cli import FEW_STEPS, fails, run_json
from tests.support.digit_words import WORDS, save_teacher

MODELS = ["--teacher", "teacher", "--student", "digits_vgg7_bn_half", "--precision", "32"]
REQUEST = ["distill", "--data", "photos", *MODELS, *FEW_STEPS]


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_teacher(Path("teacher"))
    write_photos(Path("photos"), 24)


def write_photos(folder: Path, count: int) -> None:
    folder.mkdir()
    source = open_data("digits").train
    for number in range(count):
        source.load(number).save(folder / f"{number:02}.png")


@torch.no_grad()
def answers(model: nn.Module, names: list[str]) -> dict[str, torch.Tensor]:
    """Probabilities by name of the file, one by one and without the package's way of reading."""
    found = {}
    for name in names:
        pixels = torch.from_numpy(np.asarray(Image.open(Path("photos", name)), dtype=np.float32) / 255)
        found[name] = model(((pixels - DIGITS_MEAN[0]) / DIGITS_STD[0])[None, None])[0].softmax(0)
    return found


def others() -> list[str]:
    """Names of the images that are not among the few of the run."""
    few = {f"{number:02}.png" for number in json.loads(Path("run/subset.json").read_text())["indices"]}
    return sorted({path.name for path in Path("photos").iterdir()} - few)


def prepared(**options: Any) -> Any:
    asked = {"data": "photos", "teacher": "teacher", "student": "digits_vgg7_bn_half", "images": 5, "views": "plain"}
    return DistillJob(compute=DeviceOptions(accelerator="cpu", precision="32"), **{**asked, **options}).prepare()


def test_images_that_were_not_chosen_measure_the_agreement(capsys: pytest.CaptureFixture[str]) -> None:
    # so few steps from a random start make another network of it
    assert run([*REQUEST, "--images", "4", "--init", "random", "--out", "run"]) == 0
    captured = capsys.readouterr()
    result = json.loads(Path("run/result.json").read_text())
    names = others()
    assert result["held_out_images"] == len(names) == 20
    teacher, student = answers(load_teacher("digits_vgg7_bn"), names), answers(load_student("run/student"), names)
    different = [name for name in names if teacher[name].argmax() != student[name].argmax()]
    assert len(different) > 3
    assert result["agreement"] == pytest.approx(100 - 100 * len(different) / 20)
    assert result["agreement_low"] < result["agreement"] < result["agreement_high"]
    assert result["estimated_gap_low"] < result["estimated_gap"] < result["estimated_gap_high"]
    assert (result["teacher_top1"], result["student_top1"], result["gap"]) == (None, None, None)
    distance = {name: float((teacher[name] - student[name]).abs().sum() / 2) for name in different}
    farthest = sorted(different, key=lambda name: -distance[name])[:12]
    assert {row["image"] for row in result["differ_most"]} == set(farthest)
    first = result["differ_most"][0]
    assert first["teacher"] == WORDS[int(teacher[first["image"]].argmax())]
    assert first["student"] == WORDS[int(student[first["image"]].argmax())]
    assert "agreement with the teacher will be measured on 20 images that are not among the few" in captured.err
    assert f"agreement with the teacher: {result['agreement']:.2f} (95 % interval" in captured.out
    assert "accuracy lost, estimated from both networks' answers:" in captured.out
    [line] = [line for line in captured.out.splitlines() if line.startswith(f"  {first['image']}")]
    assert f"teacher {first['teacher']} " in line
    assert f"student {first['student']} " in line


@pytest.mark.parametrize("amount", ["0.25", "6"])
def test_images_are_held_out_before_the_few_are_drawn(amount: str, capsys: pytest.CaptureFixture[str]) -> None:
    result = run_json(capsys, *REQUEST, "--images", "18", "--hold-out", amount, "--out", "run")
    assert (result["held_out_images"], result["images"], result["hold_out"]) == (6, 18, float(amount))
    # the rest of the folder, whatever the seed
    held_out = set(others())
    assert len(held_out) == 6
    assert run([*REQUEST, "--images", "19", "--hold-out", amount]) == 2
    assert "got 18 besides the 6 that are held out" in capsys.readouterr().err
    test = prepared(images=5, hold_out=float(amount), seed=3).test
    assert set(test.names) == held_out
    said = prepared(hold_out=float(amount)).notes
    assert "agreement with the teacher will be measured on 6 images that are held out" in said


def test_a_number_of_images_is_whole_in_the_name_of_the_folder() -> None:
    assert "-hold_out=6-" in prepared(hold_out=6.0).name
    assert "-hold_out=0.25-" in prepared(hold_out=0.25).name


def test_a_hold_out_belongs_to_the_run() -> None:
    plain, none, part, number, other = (prepared(hold_out=amount).config for amount in (None, 0.0, 0.25, 6.0, 7.0))
    assert "hold_out" not in plain
    assert plain["fingerprint"] == none["fingerprint"]
    assert part["fingerprint"] == number["fingerprint"]
    assert len({each["fingerprint"] for each in (plain, part, other)}) == 3


def test_where_all_images_are_used_it_is_said_that_nothing_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*REQUEST, "--images", "24", "--out", "run"]) == 0
    captured = capsys.readouterr()
    assert "nothing will be measured: all 24 images are among the few" in captured.err
    assert "--hold-out 0.2 holds a part of them back" in captured.err
    assert "agreement not measured (give --hold-out 0.2)" in captured.out
    result = json.loads(Path("run/result.json").read_text())
    figures = ("agreement", "agreement_low", "agreement_high", "estimated_gap", "estimated_gap_low")
    assert [result[name] for name in figures] == [None] * 5
    assert (result["held_out_images"], result["differ_most"]) == (0, [])


def test_an_unlabelled_folder_for_evaluation_is_measured_on_whole(capsys: pytest.CaptureFixture[str]) -> None:
    write_photos(Path("more"), 7)
    result = run_json(capsys, *REQUEST, "--images", "24", "--eval-data", "more", "--out", "run")
    assert result["held_out_images"] == 7
    assert 0 <= result["agreement_low"] <= result["agreement"] <= result["agreement_high"] <= 100


def test_with_labels_the_agreement_has_an_interval_and_nothing_is_estimated(
    capsys: pytest.CaptureFixture[str],
) -> None:
    result = run_json(capsys, "distill", "--shots", "1", *FEW_STEPS, "--out", "run")
    assert result["agreement_low"] < result["agreement"] < result["agreement_high"]
    assert not {"estimated_gap", "held_out_images", "hold_out"} & result.keys()


def test_a_broken_image_that_would_measure_ends_nothing_that_was_trained(capsys: pytest.CaptureFixture[str]) -> None:
    few = prepared().subset.indices
    [broken, *_] = sorted(set(range(24)) - set(few))
    Path(f"photos/{broken:02}.png").write_bytes(b"no picture")
    assert run([*REQUEST, "--images", "5", "--out", "run"]) == 2
    assert f"photos/{broken:02}.png" in capsys.readouterr().err
    assert not Path("run/checkpoint.pt").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--images", "3", "--hold-out", "1.5"], "a part between 0 and 1 or a number of images to hold out, got 1.5"),
        (["--images", "3", "--hold-out", "24"], "expected more than the 24 images to hold out in photos, got 24"),
        (["--images", "3", "--hold-out", "-1"], "must be at least 0"),
        (["--images", "3", "--hold-out", "3", "--eval-data", "digits"], "but digits/test has 600; leave --hold-out"),
    ],
)
def test_hold_outs_that_make_no_sense_are_refused(
    options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in fails(capsys, *REQUEST, *options, "--out", "out")


def test_a_subset_that_has_held_out_images_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    prepared(images=20).subset.save(Path("subset.json"))
    said = fails(capsys, *REQUEST, "--subset", "subset.json", "--hold-out", "6", "--out", "out")
    assert "of the images that --hold-out 6 holds back" in said


# --- in Python


def distilled(images: Any, **options: Any) -> DistillationResult:
    method = NetGraft(block_steps=(2,), join_steps=2)
    student = build_student("digits_vgg7_bn_half", teacher=load_teacher("teacher"), seed=0)
    teacher = load_teacher("teacher")
    return netgraft.distill(teacher, student, images, method=method, precision="32", accelerator="cpu", **options)


FIGURES = (
    *("agreement", "agreement_low", "agreement_high", "held_out_images"),
    *("estimated_gap", "estimated_gap_low", "estimated_gap_high", "differ_most"),
)


def test_python_and_the_command_line_give_the_same_figures(capsys: pytest.CaptureFixture[str]) -> None:
    request = [*REQUEST, "--hold-out", "0.25", "--init", "random", "--views", "rich"]
    expected = run_json(capsys, *request, "--images", "18", "--out", "run")
    # the command line draws its images in an order of its own
    drawn = iter(json.loads(Path("run/subset.json").read_text())["indices"])
    held_out = others()
    paths = [Path(f"{at:02}.png" if f"{at:02}.png" in held_out else f"{next(drawn):02}.png") for at in range(24)]
    os.chdir("photos")
    assert len({*paths}) == 24
    Path("teacher").symlink_to("../teacher")
    result = distilled(paths, hold_out=0.25, init="random")
    assert {name: result.measured[name] for name in FIGURES} == {name: expected[name] for name in FIGURES}
    assert {row["image"] for row in result.measured["differ_most"]} <= set(held_out)
    assert len(result.measured["differ_most"]) > 1
    assert state_digest(result.student) == expected["student_digest"]
    # a number says what a part does; the result prints both figures
    assert distilled(paths, hold_out=6, init="random").measured == result.measured
    lines = str(result).splitlines()
    assert f"agreement with the teacher: {expected['agreement']:.2f} (95 % interval" in "\n".join(lines)
    assert f"accuracy lost, estimated: {expected['estimated_gap']:.2f} (95 % interval" in "\n".join(lines)


def test_nothing_is_made_of_what_python_holds_out() -> None:
    source = open_data("digits").train
    images = source.load_many(range(24))
    out = hold_out(24, 0.25, dataset="images")
    few = [image for at, image in enumerate(images) if at not in out]
    with_others = [Image.new("L", (8, 8)) if at in out else image for at, image in enumerate(images)]
    first, second, third = (
        distilled(images, hold_out=0.25, init="random"),
        distilled(with_others, hold_out=0.25, init="random"),
        distilled(few, init="random"),
    )
    assert state_digest(first.student) == state_digest(second.student) == state_digest(third.student)
    assert third.measured == {}
    assert {row["image"] for row in first.measured["differ_most"]} <= {f"image {at}" for at in out}
    # labels stay with their images
    labels = [int(label) for label in (source.labels or ())[:24]]
    taught = distilled(images, hold_out=0.25, init="random", labels=labels)
    alone = distilled(few, init="random", labels=[label for at, label in enumerate(labels) if at not in out])
    assert state_digest(taught.student) == state_digest(alone.student)


@pytest.mark.parametrize("amount", [-0.5, 1.5, float("nan"), float("inf"), True, "0.2"])
def test_what_can_not_be_held_out_is_refused_in_python(amount: Any) -> None:
    images = open_data("digits").train.load_many(range(5))
    with pytest.raises(RequestError, match="expected a part between 0 and 1 or a number of images to hold out, got"):
        distilled(images, hold_out=amount)


def test_holding_out_all_images_or_those_of_finished_views_is_refused() -> None:
    images = open_data("digits").train.load_many(range(5))
    with pytest.raises(RequestError, match="expected more than the 5 images to hold out in the images, got 5"):
        distilled(images, hold_out=5)
    views = Views.of(images, find_policy("plain"), preprocessing(load_teacher("teacher"), (8, 8)), seed=0)
    with pytest.raises(RequestError, match="views are made of all images already, so none can be held out; give a"):
        distilled(images, hold_out=2, views=views)
    with pytest.raises(RequestError, match="got 5 images with 3 labels; give each image one"):
        distilled(images, hold_out=2, labels=[1, 2, 3])


def test_images_are_named_by_their_files_where_they_come_from_some() -> None:
    paths = sorted(Path("photos").iterdir())
    assert names("photos", 24) == tuple(path.name for path in paths)
    assert names(open_data("photos").train, 24) == names(Path("photos"), 24)
    assert names(paths[:2], 2) == ("photos/00.png", "photos/01.png")
    assert names("photos/00.png", 1) == ("photos/00.png",)
    numbered = ("image 0", "image 1")
    assert names([Image.new("L", (8, 8))] * 2, 2) == names(torch.zeros(2, 1, 8, 8), 2) == numbered
    # a folder among the paths stands for several
    assert names([Path("photos")], 24)[:2] == numbered
