"""What a job takes from the preset that it names, and what from its own options; and whose classes its labels are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from netgraft.cli.main import run
from safetensors.torch import save_file
from timm.data import resolve_model_data_config
from timm.models import save_for_hf
from torch import nn

from netgraft.data.sources import open_data
from netgraft.experiments.specification import Experiment
from netgraft.grafting.options import PairingOptions
from netgraft.jobs.distill import DistillJob
from netgraft.jobs.prepared_distillation import PreparedDistillation
from netgraft.models.creation import build_model, label_names, pretrained_cfg
from netgraft.models.loading import load_teacher
from netgraft.models.students import load_student, save_student
from netgraft.training.options import DeviceOptions
from tests.support.cli import FEW_STEPS, fails, run_json
from tests.support.digit_words import WORDS, counted, save_teacher, write_digits
from tests.support.random_models import build, images

NAMED = dict(enumerate(WORDS))
TO_DIGIT = {word: digit for digit, word in NAMED.items()}
STUDENT = ["--student", "digits_vgg7_bn_half", "--precision", "32", *FEW_STEPS]


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def write_words(folder: Path = Path("words"), **few: Any) -> Path:
    """Training and test images in folders of words."""
    write_digits(folder / "train", few.get("train", NAMED), each=3, test=False)
    write_digits(folder / "test", few.get("test", NAMED), each=6)
    return folder


def prepared(**options: Any) -> PreparedDistillation:
    job = DistillJob(
        **{
            "data": "words",
            "teacher": "local-dir:teacher",
            "student": "digits_vgg7_bn_half",
            "shots": 2,
            "views": "plain",
            "compute": DeviceOptions(accelerator="cpu", precision="32"),
            **options,
        }
    )
    return job.prepare()


def names_of(model: str | Path) -> tuple[str, ...]:
    return tuple(pretrained_cfg(timm.create_model(f"local-dir:{model}"))["label_names"])


@pytest.mark.parametrize(
    ("preset", "asked", "init"),
    [
        ("reference", "auto", "random"),
        ("reference", "random", "random"),
        ("reference", "slice", "slice"),
        ("default", "slice", "slice"),
        ("default", "random", "random"),
    ],
)
def test_the_presets_own_start_is_taken_unless_another_is_asked_for(preset: str, asked: str, init: str) -> None:
    job = DistillJob(shots=1, preset=preset, pairing=PairingOptions(init=asked, inherit="none"))
    prepared = job.prepare()
    assert prepared.distillation.pairing.init == init
    # the run says which it was; what else was asked for stays
    assert prepared.config["init"] == init
    assert prepared.config["inherit"] == "none"
    assert prepared.distillation.pairing.inherited == 0


@pytest.mark.parametrize(
    ("models", "init"),
    [
        (("digits_vgg7_bn", "digits_vgg7_bn_half"), "solve"),
        (("digits_vgg7_bn", "cifar_resnet8"), "random"),
        (("cifar_resnet20", "cifar_resnet8"), "slice"),
    ],
)
def test_a_student_starts_in_closed_form_where_it_is_a_narrower_twin(models: tuple[str, str], init: str) -> None:
    teacher, student = models
    if teacher != "digits_vgg7_bn":
        model = build_model(teacher, seed=0, num_classes=10, in_chans=1)
        config = {**resolve_model_data_config(model), "input_size": (1, 8, 8), "mean": (0.5,), "std": (0.5,)}
        save_student(Path("teacher"), model, model, cuts=(), data_config=config)
        teacher = "teacher"
    prepared = DistillJob(shots=1, teacher=teacher, student=student).prepare()
    assert prepared.config["init"] == init


def test_the_presets_own_views_are_taken_unless_others_are_asked_for() -> None:
    def policy(preset: str, views: str | None = None) -> str:
        views_are: str = DistillJob(shots=1, preset=preset, views=views).prepare().config["views"]
        return views_are.partition(":")[0]

    assert (policy("reference"), policy("reference", "rich")) == ("crop", "rich")
    assert (policy("default"), policy("default", "crop")) == ("rich", "crop")


# --- classes


def test_figures_of_a_run_are_of_the_teachers_classes(capsys: pytest.CaptureFixture[str]) -> None:
    write_words()
    save_teacher(Path("teacher"))
    result = run_json(
        capsys, "distill", "--data", "words", "--teacher", "local-dir:teacher", "--shots", "2", *STUDENT, "--out", "run"
    )
    assert (result["matched_by"], result["classes_seen"], result["warnings"]) == ("names", 10, [])
    for prefix, folder in (("teacher", "teacher"), ("student", "run/student")):
        expected = counted(load_student(folder), Path("words/test"), TO_DIGIT)
        assert result[f"{prefix}_top1"] == pytest.approx(expected, abs=1e-4)
    assert result["teacher_top1"] > 85
    assert "class_map" not in result


def test_folders_without_labels_say_nothing_of_classes(capsys: pytest.CaptureFixture[str]) -> None:
    write_digits(Path("flat"), {3: "photos"}, each=4)
    request = ["distill", "--data", "flat/photos", "--teacher", "digits_vgg7_bn", "--images", "3"]
    result = run_json(capsys, *request, *STUDENT, "--out", "run")
    assert result["warnings"] == []
    assert not {"matched_by", "classes_seen"} & result.keys()


# --- students that know something


def write_student_weights(classes: int = 10) -> nn.Module:
    """Save weights of a student with statistics of its own."""
    model = build("digits_vgg7_bn_half", seed=5, num_classes=classes)
    save_file(model.state_dict(), "own.safetensors")
    return model


def test_a_students_own_weights_are_kept_and_told(capsys: pytest.CaptureFixture[str]) -> None:
    model = write_student_weights()
    request = ["distill", "--shots", "1", "--student-weights", "own.safetensors", "--views", "plain"]
    result = run_json(capsys, *request, "--method", "kd", "--steps", "0", "--out", "as-it-was")
    assert (result["init"], result["start"]["init"], result["inherited_blocks"]) == ("kept", "kept", 0)
    assert result["student_weights"] == "own.safetensors"
    assert result["notes"][0].startswith("the student keeps the weights that it brings")
    x = images(3, 1, 8, 8)
    assert torch.equal(load_student("as-it-was")(x), model(x))
    # NetGraft's own default trains all blocks at once, at a tenth of its rate, and adds no layer
    assert run([*request, "--steps", "2", "--out", "further"]) == 0
    plan = json.loads(Path("further/result.json").read_text())["plan"]
    assert "1 phases, 2 steps" in plan
    assert "lr 0.0001" in plan
    assert "the student keeps the weights that it brings" in " ".join(capsys.readouterr().err.split())
    assert not torch.equal(load_student("further")(x), model(x))


def test_a_kept_student_of_other_classes_gets_a_new_head(capsys: pytest.CaptureFixture[str]) -> None:
    write_student_weights(classes=4)
    request = ["distill", "--shots", "1", "--student-weights", "own.safetensors", "--views", "plain", "--steps", "2"]
    result = run_json(capsys, *request, "--method", "kd", "--out", "run")
    assert "its head is of another number of classes, and a new one starts at random" in result["notes"][0]
    assert load_student("run")(images(1, 1, 8, 8)).shape == (1, 10)


@pytest.mark.parametrize("method", [["--method", "kd"], []])
def test_a_student_from_a_folder_of_other_classes_gets_a_new_head(
    method: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    model = build("digits_vgg7_bn_half", seed=5, num_classes=4)
    save_student(Path("own/student"), model, model, cuts=(), data_config=resolve_model_data_config(model))
    request = ["distill", "--shots", "1", "--student", "own", "--views", "plain", *method, "--steps", "0"]
    assert run([*request, "--dry-run"]) == 0
    assert "a new one starts at random (head.fc)" in " ".join(capsys.readouterr().out.split())
    assert run([*request, "--out", "run"]) == 0
    note = "its head is of another number of classes, and a new one starts at random (head.fc)"
    assert note in " ".join(capsys.readouterr().err.split())
    result = json.loads(Path("run/result.json").read_text())
    assert note in result["notes"][0]
    assert (result["init"], result["start"]["new_layers"]) == ("kept", ["head.fc"])
    student = load_student("run")
    own, given = student.state_dict(), model.state_dict()
    assert [key for key in own if not torch.equal(own[key], given[key])] == ["head.fc.weight", "head.fc.bias"]
    assert student(images(1, 1, 8, 8)).shape == (1, 10)
    # with as many classes all is kept
    assert run([*request[:4], "run", *request[5:], "--out", "again"]) == 0
    result = json.loads(Path("again/result.json").read_text())
    assert "new_layers" not in result["start"]
    assert "new one" not in result["notes"][0]
    assert all(torch.equal(value, load_student("again").state_dict()[key]) for key, value in own.items())


def test_a_student_from_a_folder_whose_head_is_not_to_be_replaced_is_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = build("digits_vgg7_bn_half", num_classes=4)
    save_student(Path("own"), model, model, cuts=(), data_config=resolve_model_data_config(model))
    said = fails(capsys, "distill", "--shots", "1", "--student", "own", "--init", "slice", "--out", "out")
    assert "the teacher has 10 classes and the student 4; they must be the same, or the student must be kept" in said


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["--student-weights", "none.safetensors"], "there is no weights file none.safetensors; check the path"),
        (["--student-weights", "pretrained"], "timm has no pretrained weights for digits_vgg7_bn_half; give"),
        (["--student-weights", "own.safetensors", "--init", "slice"], "--init slice would replace the weights of"),
        (["--student-weights", "own.safetensors", "--keep", "0.5"], "a derived student gets its weights from the"),
        (["--student-weights", "own.safetensors", "--student", "folder"], "brings weights along, and no others; leave"),
        (["--student-weights", "own.safetensors", "--student", "cifar_resnet8"], "can't load own.safetensors into"),
        (["--init", "keep"], "--init keep needs a student with weights, not digits_vgg7_bn_half alone; give"),
    ],
)
def test_weights_that_a_student_can_not_start_with_are_refused(
    asked: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_student_weights()
    Path("folder").mkdir()
    assert said in fails(capsys, "distill", "--shots", "1", *asked, "--out", "out")


def test_an_experiment_may_name_a_students_weights() -> None:
    Path("own.toml").write_text(
        'title = "Own"\n[[pair]]\ndata = "d"\nteacher = "t"\nstudent = "s"\nstudent_weights = "own.safetensors"\n'
        "[[run]]\nshots = 1\n"
    )
    [cell] = Experiment.load(Path("own.toml")).cells
    assert cell.job().student_weights == "own.safetensors"


# --- folders of photographs


def test_folders_in_folders_are_no_classes_where_nobody_asks_for_any(capsys: pytest.CaptureFixture[str]) -> None:
    write_digits(Path("photos"), {3: "2023/spring", 4: "2023/autumn", 5: "2024"}, each=3)
    request = ["distill", "--data", "photos", "--teacher", "digits_vgg7_bn", *STUDENT]
    result = run_json(capsys, *request, "--images", "4", "--out", "run")
    assert result["images"] == 4
    assert result["warnings"] == [
        "the 2 folders of photos are none of the teacher's classes: all 9 images are taken alike"
    ]
    # who asks for classes is refused as ever
    assert "answers with 10 classes but photos has 2" in fails(capsys, *request, "--shots", "1", "--out", "out")
    assert "answers with 10 classes but photos has 2" in fails(
        capsys, *request, "--images", "4", "--labeled", "--out", "out"
    )
    Path("photos/2023/spring").rename("photos/spring")
    next(Path("photos/2024").iterdir()).rename("photos/stray.png")
    result = run_json(capsys, *request, "--images", "4", "--out", "again")
    [remark] = result["warnings"]
    assert (
        "all 9 images in 4 folders of photos are taken alike, for some lie beside folders, such as stray.png" in remark
    )
    assert "no class folders (images such as stray.png lie beside its folders), so there are no shots" in fails(
        capsys, *request, "--shots", "1", "--out", "out"
    )
    assert "(images such as stray.png lie beside its folders), so there is nothing to compare" in fails(
        capsys, "evaluate", "digits_vgg7_bn", "--data", "photos"
    )


def test_broken_photographs_are_left_out_where_that_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    write_digits(Path("flat"), {3: "photos"}, each=4)
    Path("flat/photos/0.png").write_bytes(b"broken")
    request = ["distill", "--data", "flat/photos", "--teacher", "digits_vgg7_bn", *STUDENT, "--images"]
    assert "expected an image in flat/photos/0.png, got" in fails(capsys, *request, "5", "--out", "out")
    result = run_json(capsys, *request, "4", "--skip-broken", "--out", "run")
    assert result["warnings"] == ["1 of 5 images of photos were left out, for they are broken: 0.png"]
    write_digits(Path("sorted"), {3: "3"}, each=4)
    Path("sorted/3/0.png").write_bytes(b"broken")
    Path("map.json").write_text('{"3": 3}')
    counted_ = ["evaluate", "digits_vgg7_bn", "--data", "sorted", "--class-map", "map.json"]
    assert run(counted_) == 2
    assert "expected an image in sorted/3/0.png, got: no known" in capsys.readouterr().err
    assert run([*counted_, "--skip-broken", "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["images"] == 4
    assert "1 of 5 images of sorted were left out" in captured.err


# --- models of torchvision, and what can't be opened again


def test_models_of_torchvision_teach_and_learn(capsys: pytest.CaptureFixture[str]) -> None:
    write_digits(Path("flat"), {3: "photos"}, each=4)
    save_file(build_model("torchvision:squeezenet1_0", seed=0, num_classes=5).state_dict(), "own.safetensors")
    models = ["--teacher", "torchvision:squeezenet1_0", "--teacher-weights", "own.safetensors", "--num-classes", "5"]
    student = ["--student", "torchvision:squeezenet1_1", "--image-size", "64"]
    size = ["--steps", "2", "--batch-size", "2", "--views", "plain", "--precision", "32"]
    request = ["distill", "--data", "flat/photos", "--images", "3", *models, *student, "--method", "kd", *size]
    result = run_json(capsys, *request, "--out", "run")
    assert not result["opens_with_timm"]
    assert load_student("run")(images(2, 3, 64, 64)).shape == (2, 5)
    wrong = [*request[:-8], "--out", "other"]
    wrong[wrong.index("--num-classes") + 1] = "6"
    assert "expected weights of 6 classes, got 5 in own.safetensors" in fails(capsys, *wrong)


def test_a_student_that_no_name_makes_again_is_refused_before_anything_is_trained(
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = timm.create_model("test_efficientnet", pad_type="same", num_classes=10, in_chans=1)
    save_for_hf(
        model,
        "hub",
        model_config={"pretrained_cfg": {"input_size": [1, 32, 32], "mean": [0.5], "std": [0.5]}},
        model_args={"pad_type": "same", "num_classes": 10, "in_chans": 1},
        safe_serialization=True,
    )
    said = fails(capsys, "distill", "--shots", "1", "--teacher", "local-dir:hub", "--student", "hub", "--out", "out")
    assert "computes something else, since this one has other arguments; register it with timm" in said


# --- the labeled track


@pytest.mark.parametrize("shown", [NAMED, {digit: WORDS[digit] for digit in (9, 2, 4)}])
def test_training_labels_are_the_teachers_classes(shown: dict[int, str]) -> None:
    write_words(train=shown, test=shown)
    save_teacher(Path("teacher"))
    run_ = prepared(labeled=True, method="supervised", pairing=PairingOptions(init="slice"))
    source = open_data("words")
    views, few = run_.distillation.views, run_.subset.indices
    assert len(few) == 2 * len(shown) == 2 * (run_.subset.classes or 0)
    labels = views.labels(range(len(few)))
    assert labels is not None
    assert source.train.names is not None
    assert labels.tolist() == [TO_DIGIT[source.train.names[each].split("/")[1]] for each in few]


def test_which_images_are_drawn_does_not_depend_on_the_match() -> None:
    write_words()
    save_teacher(Path("teacher"))
    save_teacher(Path("unnamed"), None)
    digests = {prepared(teacher=f"local-dir:{name}").subset.digest for name in ("teacher", "unnamed")}
    assert len(digests) == 1


def test_a_labeled_run_learns_the_right_classes(capsys: pytest.CaptureFixture[str]) -> None:
    """A student that is trained on real labels alone, from slices of the teacher, answers in the teacher's order."""
    write_words()
    save_teacher(Path("teacher"))
    request = ["distill", "--data", "words", "--teacher", "local-dir:teacher", "--shots", "3", "--labeled", "--method"]
    options = ["supervised", "--steps", "60", "--views", "plain", "--precision", "32", "--out", "run"]
    result = run_json(capsys, *request, *options, "--student", "digits_vgg7_bn_half")
    assert result["student_top1"] > 50
    assert result["student_top1"] == pytest.approx(
        counted(load_student("run/student"), Path("words/test"), TO_DIGIT), abs=1e-4
    )


# --- class maps


def test_a_class_map_belongs_to_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    write_words()
    save_teacher(Path("unnamed"), None)
    Path("map.txt").write_text("\n".join(WORDS))
    Path("same.json").write_text(json.dumps(TO_DIGIT))
    Path("other.json").write_text(json.dumps({**TO_DIGIT, "one": 2, "two": 1}))
    plain = prepared(teacher="local-dir:unnamed")
    configs = {
        name: prepared(teacher="local-dir:unnamed", class_map=Path(name)).config
        for name in ("map.txt", "same.json", "other.json")
    }
    assert "class_map" not in plain.config
    assert configs["map.txt"]["class_map"] == "map.txt"
    # what a map says counts, not where it lies
    assert configs["map.txt"]["fingerprint"] == configs["same.json"]["fingerprint"]
    assert len({plain.config["fingerprint"], *(each["fingerprint"] for each in configs.values())}) == 3
    request = ["distill", "--data", "words", "--teacher", "local-dir:unnamed", "--shots", "2", *STUDENT, "--out", "run"]
    result = run_json(capsys, *request, "--class-map", "map.txt")
    assert (result["matched_by"], result["class_map"]) == ("map", "map.txt")
    assert result["teacher_top1"] > 85
    assert run([*request, "--class-map", "other.json", "--resume", "--quiet"]) == 2
    assert "class_map 'map.txt' there, 'other.json' now" in capsys.readouterr().err


def test_an_experiment_may_name_a_class_map() -> None:
    Path("own.toml").write_text(
        'title = "Own"\n[[pair]]\ndata = "words"\nteacher = "t"\nstudent = "s"\nclass_map = "map.txt"\n'
        "[[run]]\nshots = 1\n"
    )
    [cell] = Experiment.load(Path("own.toml")).cells
    assert cell.job().class_map == Path("map.txt")


# --- warnings


def test_a_match_by_number_is_said_before_and_after(capsys: pytest.CaptureFixture[str]) -> None:
    write_words()
    save_teacher(Path("teacher"), [f"class {digit}" for digit in range(10)])
    request = ["distill", "--data", "words", "--teacher", "local-dir:teacher", "--shots", "2", *STUDENT, "--out", "run"]
    assert run(request) == 0
    captured = capsys.readouterr()
    result = json.loads(Path("run/result.json").read_text())
    by_number, at_chance = result["warnings"]
    assert result["matched_by"] == "number"
    assert "no class of words/train ('eight', ...)" in by_number
    # and the figure shows that the order was wrong
    assert result["teacher_top1"] < 20
    assert at_chance.startswith(f"warning: the teacher is right on {result['teacher_top1']:.2f} % of words/test")
    for warning in result["warnings"]:
        assert warning in captured.out
        assert " ".join(warning.split()[:6]) in " ".join(captured.err.split())


def test_a_derivation_warns_too() -> None:
    write_words()
    save_teacher(Path("teacher"), [f"class {digit}" for digit in range(10)])
    derived = prepared(student=None, keep="macs=0.5", select="best-on-test")
    warnings = [note for note in derived.notes if note.startswith("warning: ")]
    assert ["chosen on the test set" in warnings[0], "by number" in warnings[1]] == [True, True]


def test_a_good_teacher_is_no_reason_to_warn(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_json(capsys, "distill", "--shots", "2", *FEW_STEPS, "--out", "run")["warnings"] == []


# --- names go along


def test_train_names_the_classes_and_students_inherit_the_names(capsys: pytest.CaptureFixture[str]) -> None:
    write_words()
    trained = run_json(
        capsys, "train", "digits_vgg7_bn", "--data", "words", "--image-size", "8", "--epochs", "1", "--out", "trained"
    )
    names = tuple(sorted(WORDS))
    assert names_of("trained/model") == names
    assert json.loads(Path("trained/model/config.json").read_text())["label_names"] == list(names)
    assert run_json(capsys, "evaluate", "trained/model", "--data", "words")["top1"] == trained["top1"]
    request = ["distill", "--data", "words", "--teacher", "local-dir:trained/model", "--shots", "2"]
    run_json(capsys, *request, *STUDENT, "--out", "named")
    derived = ["--keep", "macs=0.6", "--steps", "2", "--views", "plain", "--precision", "32"]
    run_json(capsys, *request, *derived, "--out", "derived")
    for folder in ("named/student", "derived/start", "derived/student"):
        assert label_names(load_student(folder)) == dict(enumerate(names))
    assert not Path("derived/student/config.json").exists()
    # a student's student, measured on folders that sort in another order than its classes
    upper = write_digits(Path("upper"), {digit: f"{word.upper()}" for digit, word in NAMED.items()}, each=2)
    again = run_json(capsys, "evaluate", "named/student", "--data", str(upper))
    assert again["matched_by"] == "names"


def test_digits_are_named_by_their_folders_too(capsys: pytest.CaptureFixture[str]) -> None:
    request = ["train", "digits_vgg7_bn_half", "--data", "digits", "--epochs", "1", "--batch-size", "256"]
    run_json(capsys, *request, "--out", "run")
    assert names_of("run/model") == tuple("0123456789")
    assert run_json(capsys, "evaluate", "run/model", "--data", "digits")["matched_by"] == "names"


def test_a_student_has_its_teachers_names_and_no_others() -> None:
    """An architecture that is read from a folder brings along the names of classes that its weights knew there."""
    write_words()
    save_teacher(Path("teacher"))
    save_teacher(Path("foreign"), [f"other {digit}" for digit in range(10)])
    named = prepared(student="local-dir:foreign", pairing=PairingOptions(inherit="none", init="random"))
    assert label_names(named.distillation.model) == NAMED
    nameless = prepared(
        teacher="digits_vgg7_bn", student="local-dir:foreign", pairing=PairingOptions(inherit="none", init="random")
    )
    assert label_names(nameless.distillation.model) == {}


def test_the_shipped_teacher_has_no_names() -> None:
    assert label_names(load_teacher("digits_vgg7_bn")) == {}


# --- sizes


def test_a_student_that_is_no_smaller_than_its_teacher_is_pointed_out() -> None:
    save_student_of_half(Path("half"))
    swapped = DistillJob(shots=1, teacher="half", student="digits_vgg7_bn", pairing=PairingOptions(init="random"))
    [said] = [note for note in swapped.prepare().notes if "no smaller" in note]
    assert "288,618 parameters against 84,650 and " in said
    assert "multiply-accumulates against" in said
    usual = DistillJob(shots=1, pairing=PairingOptions(init="slice")).prepare()
    assert not any("no smaller" in note for note in usual.notes)


def save_student_of_half(folder: Path) -> None:
    """Save an untrained model of half of the teacher's widths, as somebody's teacher."""
    model = build_model("digits_vgg7_bn_half", seed=0).eval()
    save_student(folder, model, model, cuts=(), data_config=resolve_model_data_config(model))


# --- names of folders


def test_the_name_of_a_folder_says_what_differs_from_the_defaults() -> None:
    plain = "digits-digits_vgg7_bn_half-1shot-netgraft-default"
    assert DistillJob(shots=1).prepare().name == f"{plain}-seed0"
    asked: dict[str, Any] = {"shots": 1, "views": "plain", "settings": {"join_steps": "2", "block_lr": "1e-3,2e-3"}}
    assert DistillJob(**asked).prepare().name == f"{plain}-views=plain-join_steps=2-block_lr=1e-3,2e-3-seed0"
    save_teacher(Path("my teachers/first"))
    named = DistillJob(shots=1, teacher="my teachers/first", student="digits_vgg7_bn_half").prepare().name
    assert named == f"{plain}-teacher=my_teachers_first-seed0"


def test_a_long_name_is_cut_and_stays_its_own() -> None:
    steps = [",".join(["1"] * count) for count in (200, 201)]
    names = {DistillJob(shots=1, settings={"block_steps": each}).prepare().name for each in steps}
    assert len(names) == 2
    assert all(len(name) <= 160 and name.endswith("-seed0") for name in names)
