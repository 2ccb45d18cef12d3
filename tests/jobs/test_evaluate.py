"""A model is measured on folders that are called like its classes, whatever their order and however few."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image

import netgraft.zoo  # noqa: F401  (registers the models)
from netgraft.data.image_set import ImageSet
from netgraft.data.sources import open_data
from netgraft.errors import RequestError
from netgraft.evaluation.class_matching import match_classes
from netgraft.evaluation.comparison import predictions
from netgraft.evaluation.metrics import top1
from netgraft.jobs.evaluate import evaluate
from netgraft.models.creation import build_model
from netgraft.models.loading import load_teacher
from netgraft.models.students import load_student, save_student
from netgraft.progress import SilentReporter
from tests.support.cli import fails, run_json
from tests.support.digit_words import WORDS, counted, save_teacher, write_digits

NAMED = dict(enumerate(WORDS))


class Listening(SilentReporter):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def teacher() -> Path:
    return save_teacher(Path("teacher"))


def measured(model: Path, data: Path, **options: Any) -> tuple[dict[str, Any], list[str]]:
    heard = Listening()
    return evaluate(str(model), str(data), reporter=heard, accelerator="cpu", **options), heard.notes


def test_folders_in_another_order_than_the_classes_give_the_same_accuracy(teacher: Path) -> None:
    folder = write_digits(Path("words"), NAMED)
    expected = counted(load_student(teacher), folder, {word: digit for digit, word in NAMED.items()})
    result, notes = measured(teacher, folder)
    assert (result["matched_by"], result["classes_seen"], result["images"]) == ("names", 10, 120)
    assert result["top1"] == pytest.approx(expected, abs=1e-4)
    assert result["top1"] > 85
    assert notes == []


def test_some_of_the_classes_are_measured_among_all_answers(teacher: Path) -> None:
    shown = {digit: WORDS[digit].upper() for digit in (8, 1, 5, 9)}
    folder = write_digits(Path("few"), shown, each=30)
    # among all ten answers
    expected = counted(load_student(teacher), folder, {word: digit for digit, word in shown.items()})
    result, notes = measured(teacher, folder)
    assert (result["matched_by"], result["classes_seen"], result["images"]) == ("names", 4, 120)
    assert result["top1"] == pytest.approx(expected, abs=1e-4)
    assert notes == []


@pytest.mark.parametrize("kind", ["txt", "json"])
def test_a_class_map_says_where_classes_stand(kind: str) -> None:
    folder = write_digits(Path("coded"), {3: "a", 0: "b", 7: "c"})
    numbers = {"a": 3, "b": 0, "c": 7}
    path = Path(f"map.{kind}")
    path.write_text(json.dumps(numbers) if kind == "json" else "b\n1\n2\na\n4\n5\n6\nc\n8\n9\n")
    unnamed = save_teacher(Path("unnamed"), None)
    result, notes = measured(unnamed, folder, class_map=path)
    assert (result["matched_by"], result["classes_seen"]) == ("map", 3)
    assert result["top1"] == pytest.approx(counted(load_student(unnamed), folder, numbers), abs=1e-4)
    assert result["top1"] > 85
    assert notes == []


def test_the_order_alone_is_said_and_a_wrong_one_is_seen(teacher: Path) -> None:
    sorted_alike = write_digits(Path("alike"), {digit: f"class {digit}" for digit in range(10)})
    result, notes = measured(teacher, sorted_alike)
    assert (result["matched_by"], result["top1"] > 85) == ("number", True)
    assert [note.startswith("warning: no class of alike ('class 0', ...) has the name") for note in notes] == [True]
    # without names nobody can tell but by the figure
    words = write_digits(Path("words"), NAMED)
    result, notes = measured(save_teacher(Path("unnamed"), None), words)
    assert result["matched_by"] == "number"
    assert result["top1"] == pytest.approx(
        counted(load_student(teacher), words, {word: n for n, word in enumerate(sorted(WORDS))}), abs=1e-4
    )
    assert result["top1"] < 20
    [warning] = notes
    assert warning.startswith(
        f"warning: unnamed is right on {result['top1']:.2f} % of words, hardly more often than a guess"
    )
    assert "another order" in warning
    assert "preprocessed" in warning


def test_the_digits_and_their_teacher_match_by_number() -> None:
    result, notes = measured(Path("digits_vgg7_bn"), Path("digits"))
    assert (result["matched_by"], result["classes_seen"], result["images"]) == ("number", 10, 600)
    assert notes == []


def synsets() -> list[str]:
    file = Path(timm.data.__file__).parent / "_info" / "imagenet_synsets.txt"
    return file.read_text(encoding="utf-8").split()


def test_wnid_folders_are_positions_among_all_thousand() -> None:
    model = build_model("cifar_resnet8", seed=0, num_classes=1000)
    model.eval()
    config: Mapping[str, Any] = vars(model)["pretrained_cfg"]
    known, levels = synsets(), {3: 20, 500: 120, 999: 220}
    tensors = {n: torch.full((1, 3, 32, 32), level / 255) for n, level in levels.items()}
    mean, std = (torch.tensor(config[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    # answers come from the model itself: one image is put into the folder of its answer, two into others
    with torch.no_grad():
        answers = {n: int(model((x - mean) / std).argmax()) for n, x in tensors.items()}
    folders = {3: known[answers[3]], 500: known[(answers[500] + 1) % 1000], 999: known[(answers[999] + 7) % 1000]}
    assert len(set(folders.values())) == 3
    for n, folder in folders.items():
        Path("data", folder).mkdir(parents=True)
        Image.new("RGB", (32, 32), (levels[n],) * 3).save(Path("data", folder, "x.png"))
    save_student(Path("model"), model, model, cuts=(), data_config=config)
    result, _ = measured(Path("model"), Path("data"))
    assert (result["matched_by"], result["classes_seen"]) == ("wnid", 3)
    assert result["top1"] == pytest.approx(100 / 3, abs=1e-4)


def test_photographs_of_636_classes_are_measured_among_all_thousand(shared_data: Path) -> None:
    """The first forty of the thousand; 83.6 % of all."""
    weights = shared_data / "tf_efficientnet_lite0.imagenet.safetensors"
    model = load_teacher("tf_efficientnet_lite0", weights=weights)
    images = open_data(str(shared_data / "imagenet1000-val1000.tar")).train
    whole = open_data("imagenet1000", root=shared_data).test
    assert whole is not None
    matched = [match_classes(each, model, name="the teacher") for each in (images, whole)]
    assert [(each.by, each.classes_seen, each.images.classes) for each in matched] == [("wnid", 636, 1000)] * 2
    assert images.classes == 636
    assert matched[0].images.labels == matched[1].images.labels == whole.labels
    labels = matched[0].images.labels
    assert labels is not None
    few = ImageSet("few", 40, images.store, labels[:40], 1000)
    config = timm.data.resolve_model_data_config(model)
    assert top1(*predictions(model, few, config, SilentReporter())) > 70


# --- on the command line


def test_the_command_says_how_classes_were_matched(teacher: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_digits(Path("words"), {3: "three", 0: "zero"}, each=5)
    Path("map.json").write_text('{"three": 0, "zero": 3}')
    result = run_json(capsys, "evaluate", "teacher", "--data", "words")
    assert (result["matched_by"], result["classes_seen"], result["top1"] > 70) == ("names", 2, True)
    result = run_json(capsys, "evaluate", "teacher", "--data", "words", "--class-map", "map.json")
    assert (result["matched_by"], result["classes_seen"], result["top1"] < 30) == ("map", 2, True)


def test_what_can_not_be_matched_is_refused(teacher: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_digits(Path("words"), {3: "three", 0: "nought"}, each=1)
    write_digits(Path("others"), {3: "drei", 0: "null"}, each=1)
    Path("map.txt").write_text("three\n")
    said = fails(capsys, "evaluate", "teacher", "--data", "words")
    assert "teacher knows 'three' of the classes of words by name, but 'nought' is none of them" in said
    assert "--class-map" in said
    said = fails(capsys, "evaluate", "teacher", "--data", "others")
    assert "teacher answers with 10 classes but others has 2" in said
    assert "--class-map" in said
    assert "says nothing of 'nought'" in fails(
        capsys, "evaluate", "teacher", "--data", "words", "--class-map", "map.txt"
    )
    with pytest.raises(RequestError, match="No such file"):
        measured(teacher, Path("words"), class_map=Path("none.txt"))
