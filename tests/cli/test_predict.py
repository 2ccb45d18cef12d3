"""``netgraft predict``: names of classes for photographs, for people and for programs."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from netgraft.cli.main import run
from PIL import Image

from netgraft.models.loading import load_teacher
from netgraft.zoo import DIGITS_MEAN, DIGITS_STD
from tests.support.cli import FEW_STEPS, fails
from tests.support.digit_words import WORDS, save_teacher, write_digits

PLACES = {0: "a", 3: "b,c", 7: "d/e"}


def rows(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[list[str]]:
    assert run(["predict", *arguments, "--csv", "--quiet"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return list(csv.reader(io.StringIO(captured.out)))


def by_hand(path: Path) -> torch.Tensor:
    """Probabilities of one photograph, without the package's way of reading it."""
    pixels = torch.from_numpy(np.asarray(Image.open(path), dtype=np.float32) / 255)
    with torch.no_grad():
        logits = load_teacher("digits_vgg7_bn")(((pixels - DIGITS_MEAN[0]) / DIGITS_STD[0])[None, None])
    return logits[0].softmax(0)


def test_answers_are_the_models_for_photographs_in_any_folders(capsys: pytest.CaptureFixture[str]) -> None:
    write_digits(Path("photos"), PLACES, each=2)
    write_digits(Path("photos"), {5: "."}, each=1)
    save_teacher(Path("teacher"))
    [header, *answers] = rows(capsys, "teacher", "photos")
    assert header == ["image", "class", "confidence"]
    files = {str(path.relative_to("photos")) for path in Path("photos").rglob("*.png")}
    assert {image for image, _, _ in answers} == files
    assert any("," in image for image in files)
    for image, name, confidence in answers:
        expected = by_hand(Path("photos", image))
        assert name == WORDS[int(expected.argmax())]
        assert float(confidence) == pytest.approx(float(expected.max()), abs=1e-4)
    # a model that doesn't name its classes has numbers
    numbered = rows(capsys, "digits_vgg7_bn", "photos")[1:]
    assert [WORDS[int(name)] for _, name, _ in numbered] == [name for _, name, _ in answers]


def test_several_classes_an_image_stand_in_rows_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    write_digits(Path("photos"), {4: "four"}, each=1)
    [path] = Path("photos").rglob("*.png")
    answers = rows(capsys, "digits_vgg7_bn", "photos", "--top", "3")[1:]
    expected = by_hand(path).sort(descending=True, stable=True)
    assert [int(name) for _, name, _ in answers] == expected.indices[:3].tolist()
    # no more than there are
    assert len(rows(capsys, "digits_vgg7_bn", "photos", "--top", "99")) == 1 + 10


def test_a_run_answers_by_its_student(capsys: pytest.CaptureFixture[str]) -> None:
    save_teacher(Path("teacher"))
    write_digits(Path("photos"), {1: "one", 2: "two"}, each=3)
    models = ["--teacher", "teacher", "--student", "digits_vgg7_bn_half", "--shots", "2"]
    assert run(["distill", "--data", "photos", *models, *FEW_STEPS, "--quiet", "--out", "run"]) == 0
    assert rows(capsys, "run", "photos") == rows(capsys, "run/student", "photos")
    assert run(["predict", "run", "photos"]) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert [cell.strip() for cell in lines[1].split("|")[1:-1]] == ["image", "class", "confidence"]
    assert len([line for line in lines if ".png" in line]) == 6
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["digits_vgg7_bn", "nowhere"], "expected a folder or a tar archive of images, got nowhere"),
        (["digits_vgg7_bn", "empty"], "empty"),
        (["digits_vgg7", "photos"], "did you mean digits_vgg7_bn"),
        (["digits_vgg7_bn", "photos", "--top", "0"], "--top"),
        (["digits_vgg7_bn"], "folder"),
    ],
)
def test_wrong_requests_are_refused(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("empty").mkdir()
    write_digits(Path("photos"), {1: "one"}, each=1)
    assert said.lower() in fails(capsys, "predict", *arguments).lower()


def test_a_broken_photograph_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    write_digits(Path("photos"), {1: "one"}, each=1)
    Path("photos/one/broken.png").write_bytes(b"\x89PNG of something else")
    said = fails(capsys, "predict", "digits_vgg7_bn", "photos", "--quiet")
    assert "photos/one/broken.png" in said


def test_broken_photographs_are_left_out_where_that_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    write_digits(Path("photos"), {1: "one", 2: "two"}, each=2)
    whole = sorted(Path("photos").rglob("*.png"))
    Path("photos", "cut.png").write_bytes(whole[0].read_bytes()[:60])
    assert "--skip-broken" in fails(capsys, "predict", "digits_vgg7_bn", "photos")
    assert run(["predict", "digits_vgg7_bn", "photos", "--skip-broken", "--csv"]) == 0
    captured = capsys.readouterr()
    assert "1 of 5 images of photos were left out, for they are broken: cut.png" in captured.err
    answered = [row[0] for row in csv.reader(io.StringIO(captured.out))][1:]
    assert sorted(answered) == [str(path.relative_to("photos")) for path in whole]
    for path in whole:
        path.write_bytes(b"")
    assert "5 broken files" in fails(capsys, "predict", "digits_vgg7_bn", "photos", "--skip-broken", "--quiet")
