"""``netgraft distill`` without a student: what it derives, writes and says, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from netgraft.cli.main import run
from torch import nn

import netgraft
from netgraft.deriving.low_rank import low_rank_layers
from netgraft.evaluation.metrics import macs
from netgraft.jobs import prepared_derivation
from netgraft.models.creation import pretrained_cfg
from netgraft.modules import parameters, state_digest
from tests.support.cli import fails, run_json

# in a precision that is not measured: digests of runs are compared
FEW = ["distill", "--shots", "2", "--views", "plain", "--precision", "32"]


@pytest.fixture(scope="module")
def solved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that stopped behind its closed form; the views are of ten images, which is little, and quick."""
    folder = tmp_path_factory.mktemp("solved") / "run"
    assert run([*FEW, "--keep", "macs=0.5", "--steps", "0", "--out", str(folder), "--quiet"]) == 0
    return folder


def result_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "result.json").read_text()))


def model_widths(model: nn.Module) -> dict[str, int]:
    """Outputs of all layers, and channels between the two that some are."""
    widths = {}
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            whole = name.removesuffix(".1") if name.removesuffix(".1") in low_rank_layers(model) else name
            rank = f"{name.removesuffix('.0')}.rank" if name.removesuffix(".0") in low_rank_layers(model) else whole
            widths[rank] = len(layer.weight)
    return widths


def test_the_budget_is_met_and_the_result_says_how(solved: Path) -> None:
    result = result_of(solved)
    student = netgraft.load_student(solved / "student")
    assert result["macs"] == macs(student, (1, 8, 8)) <= 0.5 * result["teacher_macs"]
    assert result["macs"] > 0.4 * result["teacher_macs"]
    assert result["parameters"] == parameters(student) < result["teacher_parameters"]
    assert result["steps"] == 0
    assert result["start_top1"] == result["student_top1"]
    assert result["gap"] == pytest.approx(result["teacher_top1"] - result["student_top1"], abs=1e-3)
    teacher = netgraft.load_teacher("digits_vgg7_bn")
    before = model_widths(teacher)
    widths = {
        name: (before[name.removesuffix(".rank")], width)
        for name, width in model_widths(student).items()
        if name != "head.fc"
    }
    narrowed = {name: tuple(sizes) for name, sizes in result["derived"]["narrowed"].items()}
    assert any(name.endswith(".rank") for name in narrowed)
    assert narrowed == {name: sizes for name, sizes in widths.items() if sizes[0] != sizes[1]}
    whole = [name for name, sizes in widths.items() if sizes[0] == sizes[1]]
    assert [name for name in result["derived"]["whole"] if not name.endswith(".rank")] == whole


def test_the_student_that_was_measured_is_the_one_that_was_saved(
    solved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = result_of(solved)
    assert state_digest(netgraft.load_student(solved / "student")) == result["student_digest"]
    measured = run_json(capsys, "evaluate", str(solved / "student"), "--data", "digits")
    assert measured["top1"] == result["student_top1"]
    assert measured["macs"] == result["macs"]


def test_a_library_serves_another_budget(solved: Path) -> None:
    library = str(solved / "library.json")
    request = [*FEW, "--keep", "parameters=0.2", "--steps", "0", "--library", library, "--out", "smaller", "--quiet"]
    assert run(request) == 0
    smaller = result_of(Path("smaller"))
    assert smaller["parameters"] <= 0.2 * smaller["teacher_parameters"]
    assert json.loads(Path("smaller/library.json").read_text()) == json.loads((solved / "library.json").read_text())


def test_a_library_of_other_images_is_refused(solved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    library = str(solved / "library.json")
    request = [*FEW, "--keep", "macs=0.5", "--library", library, "--seed", "1", "--out", "out"]
    assert "was made with another teacher or other views" in fails(capsys, *request)


def test_training_goes_on_from_the_start_after_a_stop(solved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    request = [*FEW, "--keep", "macs=0.5", "--library", str(solved / "library.json"), "--steps", "6"]
    whole = run_json(capsys, *request, "--out", "whole")
    assert run([*request, "--out", "taken-up", "--quiet"]) == 0
    for name in ("result.json", "student"):
        path = Path("taken-up") / name
        path.rename(path.with_name(f"{name}.gone"))
    # the start and what was chosen lie there: nothing is derived again
    (Path("taken-up") / "library.json").unlink()
    again = run_json(capsys, *request, "--out", "taken-up", "--resume")
    assert again["student_digest"] == whole["student_digest"] != result_of(solved)["student_digest"]
    assert whole["steps"] == 6
    assert not (Path("taken-up") / "library.json").exists()
    # what was chosen is damaged: that is said, and what helps does
    (Path("taken-up") / "result.json").unlink()
    (Path("taken-up") / "derived.json").write_text('{"kept": {"features.0": [0, 1')
    assert "derived.json is damaged" in fails(capsys, *request, "--out", "taken-up", "--resume", "--quiet")
    (Path("taken-up") / "derived.json").unlink()
    derived_again = run_json(capsys, *request, "--out", "taken-up", "--resume")
    assert derived_again["student_digest"] == whole["student_digest"]


def test_a_derived_student_is_derived_from_again(solved: Path) -> None:
    student = netgraft.load_student(solved / "student")
    images = netgraft.open_data("digits").train.load_many(range(20))
    smaller = netgraft.derive(student, images, keep={"macs": 0.6}, data_config=pretrained_cfg(student))
    assert macs(smaller.student, (1, 8, 8)) <= 0.6 * macs(student, (1, 8, 8))
    smaller.save("again")
    batch = torch.randn(3, 1, 8, 8)
    assert torch.equal(netgraft.load_student("again")(batch), smaller.student(batch))


def test_a_run_s_student_is_a_teacher_a_student_and_a_model_to_split(
    solved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(solved / "student")
    first = result_of(solved)
    assert run(["split", folder, "--json"]) == 0
    blocks = json.loads(capsys.readouterr().out)
    assert sum(block["parameters"] for block in blocks["blocks"]) == first["parameters"]

    request = [*FEW, "--data", "digits", "--teacher", folder]
    assert run([*request, "--keep", "macs=0.7", "--steps", "0", "--out", "smaller", "--quiet"]) == 0
    smaller = result_of(Path("smaller"))
    assert smaller["teacher_digest"] == first["student_digest"]
    assert smaller["teacher_top1"] == first["student_top1"]
    assert smaller["macs"] <= 0.7 * first["macs"]

    # as a student it goes on learning from where it was
    for steps, out in ((0, "as-it-was"), (20, "further")):
        request = [*FEW, "--student", folder, "--method", "kd", "--steps", str(steps), "--out", out, "--quiet"]
        assert run(request) == 0
        result = result_of(Path(out))
        assert tuple(result["start"].values()) == ("kept", 0, [])
        assert (result["student_digest"] == first["student_digest"]) == (steps == 0)
        assert netgraft.load_student(Path(out) / "student")(torch.zeros(1, 1, 8, 8)).shape == (1, 10)


def test_what_is_protected_stays_whole(solved: Path) -> None:
    request = [*FEW, "--keep", "macs=0.6", "--protect", "features.3,features.7", "--steps", "0"]
    assert run([*request, "--library", str(solved / "library.json"), "--out", "protected", "--quiet"]) == 0
    derived = result_of(Path("protected"))["derived"]
    assert {"features.3", "features.7"} <= set(derived["whole"])


def test_a_width_can_be_given(solved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    request = [*FEW, "--keep", "macs=0.6", "--library", str(solved / "library.json"), "--steps", "0"]
    assert run([*request, "--force", "features.3=24", "--out", "forced", "--quiet"]) == 0
    assert result_of(Path("forced"))["derived"]["narrowed"]["features.3"][1] == 24
    assert run([*request, "--force", "features.3=wide", "--out", "refused"]) == 2
    assert "--force takes names of places and their widths" in capsys.readouterr().err
    assert not Path("refused").exists()


def test_a_named_twin_starts_in_closed_form(capsys: pytest.CaptureFixture[str]) -> None:
    twin = run_json(capsys, *FEW, "--init", "solve", "--steps", "0", "--out", "twin")
    plain = run_json(capsys, *FEW, "--init", "slice", "--steps", "0", "--out", "sliced")
    assert twin["init"] == twin["start"]["init"] == "solve"
    assert twin["opens_with_timm"]
    assert twin["parameters"] == plain["parameters"]
    # without training weights that make up for what is gone are worth more than slices
    assert twin["agreement"] > plain["agreement"] + 10


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--keep", "0.5", "--student", "digits_vgg7_bn_half"], "give --student digits_vgg7_bn_half, or --keep 0.5"),
        (["--keep", "weight=0.5"], "a budget is of macs, parameters or ms, not of 'weight'"),
        (["--keep", "macs=half"], "amount must be a number, not 'half'"),
        (["--keep", "macs=1.5"], "lies between 0 and 1, not at 1.5"),
        (["--keep", "macs=0"], "lies between 0 and 1, not at 0"),
        (["--keep", "macs=0.5,macs=0.4"], "each unit once"),
        (["--keep", "macs=0.0001"], "can't be met; the least that can is"),
        (["--keep", "parameters=900M"], "is within the budget of 9e+08 already"),
        (["--keep", "0.5", "--protect", "tail"], "nothing to protect at 'tail'; the first places are features.0"),
        (["--keep", "0.5", "--init", "random"], "leave --init out, or give --student"),
        (["--init", "keep"], "--init keep needs a student with weights, not digits_vgg7_bn_half alone"),
        (["--student", ".", "--data", "digits"], "holds no student: expected config.json"),
        (["--allocation", "greedy"], "leave them out, or give --keep instead of --student"),
        (["--protect", "head"], "isn't derived and takes no --protect"),
        (
            ["--keep", "0.5", "--library", "nested.json"],
            "nested.json is no library (lists or objects within",
        ),
        (["--keep", "0.5", "--library", "none.json"], "none.json is no library"),
        (["--init", "solve", "--student", "cifar_resnet8"], "init='solve' needs a student that is built like"),
    ],
)
def test_a_wrong_request_gets_one_sentence(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("nested.json").write_text("[" * 100_000)
    assert said in fails(capsys, *FEW, *arguments, "--out", "out")


def test_a_student_of_even_widths_by_weight_norm_in_slices_is_what_others_are_compared_with() -> None:
    request = [*FEW, "--keep", "macs=0.5", "--steps", "0", "--quiet"]
    even = ["--allocation", "uniform", "--criterion", "weight-norm", "--init", "slice"]
    assert run([*request, *even, "--out", "even"]) == 0
    result = result_of(Path("even"))
    assert (result["criterion"], result["allocation"], result["init"]) == ("weight-norm", "uniform", "slice")
    assert 0.4 * result["teacher_macs"] < result["macs"] <= 0.5 * result["teacher_macs"]
    # nobody needs errors, so nobody measures them
    assert not Path("even/library.json").exists()

    teacher, student = netgraft.load_teacher("digits_vgg7_bn"), netgraft.load_student("even/student")
    first, second = (next(m for m in model.modules() if isinstance(m, nn.Conv2d)) for model in (teacher, student))
    sizes = first.weight.detach().abs().sum((1, 2, 3))
    largest = sizes.argsort()[-len(second.weight) :].sort().values
    assert torch.equal(second.weight, first.weight[largest])
    parts = [kept / width for width, kept in result["derived"]["narrowed"].values()]
    assert max(parts) - min(parts) < 0.15


def test_a_library_of_another_criterion_is_another_one(solved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    library = ["--library", str(solved / "library.json"), "--keep", "macs=0.5", "--out", "out"]
    assert "was made with another teacher" in fails(capsys, *FEW, *library, "--criterion", "weight-norm")
    assert "leave --library out" in fails(capsys, *FEW, *library, "--allocation", "uniform")
    assert run([*FEW, *library, "--allocation", "greedy", "--steps", "0", "--quiet"]) == 0
    greedy, knapsack = result_of(Path("out")), result_of(solved)
    assert greedy["macs"] <= 0.5 * greedy["teacher_macs"]
    assert greedy["derived"] != knapsack["derived"]


def test_runs_that_share_answers_share_a_library(solved: Path) -> None:
    request = [*FEW, "--steps", "0", "--keep-answers", "answers", "--quiet"]
    library = json.loads((solved / "library.json").read_text())
    library["places"][0]["errors"][0] *= 1.5
    for out, keep in (("first", "macs=0.5"), ("second", "macs=0.6")):
        assert run([*request, "--keep", keep, "--out", out]) == 0
        [shared] = Path("answers").glob("library-*.json")
        # what lies there is taken up, not made again
        shared.write_text(json.dumps(library))
    assert json.loads(Path("second/library.json").read_text()) == library


def test_a_series_makes_a_student_for_each_budget_from_one_library(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*FEW, "--keep", "0.7,0.4", "--steps", "0", "--out", "series", "--quiet"]) == 0
    results = [result_of(Path("series") / name) for name in ("macs=0.7", "macs=0.4")]
    assert [result["macs"] / result["teacher_macs"] <= most for result, most in zip(results, (0.7, 0.4), strict=True)]
    assert results[0]["macs"] > results[1]["macs"]
    texts = [(Path("series") / name / "library.json").read_text() for name in ("macs=0.7", "macs=0.4")]
    assert texts[0] == texts[1]
    assert "each budget once" in fails(capsys, *FEW, "--keep", "0.5,0.5", "--out", "out")


def test_a_series_of_even_widths_needs_no_library() -> None:
    request = [*FEW, "--keep", "0.7,0.4", "--allocation", "uniform", "--steps", "0", "--out", "series", "--quiet"]
    assert run(request) == 0
    shares = [
        result["macs"] / result["teacher_macs"]
        for result in (result_of(Path("series") / name) for name in ("macs=0.7", "macs=0.4"))
    ]
    assert shares[0] <= 0.7
    assert shares[1] <= 0.4
    assert not list(Path("series").glob("*/library.json"))


@pytest.mark.parametrize("is_far", [False, True])
def test_a_start_that_is_far_off_is_said_to_need_longer_training(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *, is_far: bool
) -> None:
    # the digits are too easy for any student to start as far off as that really is
    monkeypatch.setattr(prepared_derivation, "FAR", 0.01 if is_far else 0.5)
    assert run([*FEW, "--keep", "macs=0.03", "--allocation", "uniform", "--steps", "1", "--out", "out"]) == 0
    said = " ".join(capsys.readouterr().err.split())
    error = json.loads(Path("out/derived.json").read_text())["start_error"]
    assert 0.01 < error < 0.5
    assert (f"its logits differ by {error:.0%} of their variance" in said) == is_far
    assert ("(--steps 4000 --objective kl)" in said) == is_far


def test_the_bases_of_a_transformer_s_streams_are_taken_up_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        run(
            ["train", "test_vit2", "--data", "digits", "--image-size", "32", "--epochs", "1", "--out", "vit", "--quiet"]
        )
        == 0
    )
    request = [*FEW, "--data", "digits", "--teacher", "vit", "--image-size", "32", "--keep", "macs=0.5", "--steps", "3"]
    whole = run_json(capsys, *request, "--out", "whole")
    assert whole["derived"]["narrowed"]["patch_embed.proj"][1] < 64
    folder = Path("whole")
    for name in ("result.json", "student"):
        (folder / name).rename(folder / f"{name}.gone")
    again = run_json(capsys, *request, "--out", "whole", "--resume")
    assert again["student_digest"] == whole["student_digest"]
    # the answers are those of the start, but for three steps
    assert abs(again["student_top1"] - again["start_top1"]) < 10

    (folder / "result.json").unlink()
    (folder / "bases.safetensors").write_bytes(b"no tensors")
    assert "bases.safetensors is damaged" in fails(capsys, *request, "--out", "whole", "--resume", "--quiet")
