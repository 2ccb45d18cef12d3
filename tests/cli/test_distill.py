"""The command line as its users meet it: output, exit codes, one sentence for each mistake."""

from __future__ import annotations

import json
import os
import pickle
import re
import resource
import subprocess
import sys
from pathlib import Path
from types import NoneType
from typing import Any

import pytest
import timm
import torch
from netgraft.cli.main import run
from netgraft.cli.output import show_distilled
from PIL import Image
from safetensors.torch import save_file
from timm.models import register_model
from torch import Tensor, nn

import netgraft.zoo
from netgraft.jobs.options import DistillOptions
from netgraft.methods.netgraft import NetGraft
from netgraft.modules import state_digest
from netgraft.options import declared
from tests.support.cli import FEW_STEPS, QUICK, fails, run_json
from tests.support.processes import HANGS, held_port

COMMAND = [sys.executable, "-m", "netgraft.cli.main"]


@register_model
def odd_map(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """A classifier whose one cut has a map of 3x3 pixels: the digits' teacher has none of that size."""
    return OddMap(kwargs.get("num_classes", 10), kwargs.get("in_chans", 1))


class OddMap(nn.Module):
    def __init__(self, num_classes: int, in_chans: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.feature_info = [{"module": "stem", "num_chs": 4, "reduction": 1}]
        self.stem = nn.Conv2d(in_chans, 4, 6)
        self.fc = nn.Linear(4, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.stem(x).mean((2, 3)))


def shell(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=HANGS, check=False, **options)


def write_images(folder: Path, count: int) -> None:
    folder.mkdir(parents=True)
    for number in range(count):
        Image.new("L", (8, 8), number).save(folder / f"{number}.png")


def test_help_is_answered_without_torch() -> None:
    code = (
        "import sys; from netgraft.cli.main import run; code = run(['--help'])\n"
        "heavy = {'torch', 'timm', 'numpy', 'rich'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}, code {code}' if heavy or code else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert all(name in done.stdout for name in ("distill", "train", "evaluate", "split", "methods"))


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.split()[-1] == netgraft.__version__


def test_the_package_runs_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "netgraft", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == netgraft.__version__


def test_help_lists_the_methods_own_fields(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["distill", "--method", "netgraft", "--help"]) == 0
    options, heading, own = capsys.readouterr().out.partition("Hyper-parameters of netgraft")
    assert heading
    for name, declaration in declared(NetGraft).items():
        default = declaration.default
        option = f"--{name.replace('_', '-')} "
        assert option in own
        assert option not in options
        assert f"[{default}]" in own or isinstance(default, tuple | bool | NoneType)
    assert "constant|cosine|one-cycle" in own
    groups = re.split(r"^(Data|Models|Method|Run|For experts):$", options, flags=re.MULTILINE)
    found = dict(zip(groups[1::2], groups[2::2], strict=True))
    assert [*found] == ["Data", "Models", "Method", "Run", "For experts"]
    for group, some in {
        "Data": ("--data ", "--shots ", "--eval-data ", "--hold-out "),
        "Models": ("--teacher ", "--student ", "--keep "),
        "Method": ("--method ", "--preset ", "--init [auto|random|keep|slice|solve]", "--views [rich|"),
        "Run": ("--out ", "--resume ", "--config ", "--dry-run ", "--json ", "--help "),
        "For experts": ("--criterion [surgeon|weight-norm]", "--library ", "--looks "),
    }.items():
        assert all(option in found[group] for option in some), group
    # each option stands in one of them
    for declaration in declared(DistillOptions).values():
        lines = [line.split() for text in found.values() for line in text.splitlines() if line.startswith("  --")]
        assert [line[0] for line in lines].count(declaration.flag) == 1


def test_methods(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["methods"]) == 0
    assert "arXiv 2012.04915" in capsys.readouterr().out
    assert run(["methods", "netgraft"]) == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("--block-steps", "default", "reference", "cosine", "arXiv"))
    assert run(["methods", "netgrafd"]) == 2


def test_distill_as_json_keeps_the_contract(capsys: pytest.CaptureFixture[str]) -> None:
    result = run_json(capsys, *QUICK, "--out", "run")
    assert result == json.loads(Path("run/result.json").read_text())
    assert result["gap"] == pytest.approx(result["teacher_top1"] - result["student_top1"])
    assert 0 <= result["agreement"] <= 100
    assert result["steps"] == 2 * (result["blocks"] - result["inherited_blocks"]) + 2
    assert result["seconds"] >= result["train_seconds"] > 0
    assert {"teacher_digest", "student_digest", "subset", "macs"} <= result.keys()
    student = timm.create_model("local-dir:run/student", pretrained=True)
    assert sum(p.numel() for p in student.parameters()) == result["parameters"]
    assert json.loads(Path("run/subset.json").read_text())["digest"] == result["subset"]
    measured = run_json(capsys, "evaluate", "run/student", "--data", "digits")
    assert measured["top1"] == result["student_top1"]
    assert measured["images"] == 600
    assert run_json(capsys, "evaluate", "run", "--data", "digits")["top1"] == measured["top1"]

    assert "already holds a run" in fails(capsys, *QUICK, "--out", "run")
    other = fails(capsys, *QUICK, "--seed", "1", "--out", "run", "--resume")
    assert "run holds another run" in other
    assert "seed 0 there, 1 now" in other
    assert "--config run/config.toml" in other
    assert run_json(capsys, *QUICK, "--out", "run", "--resume") == result
    assert run_json(capsys, "distill", "--config", "run/config.toml", "--out", "run", "--resume") == result


def test_the_summary_tells_both_models_and_how_to_load_the_student(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*QUICK, "--out", "run"]) == 0
    captured = capsys.readouterr()
    result = json.loads(Path("run/result.json").read_text())
    assert "digits_vgg7_bn -> digits_vgg7_bn_half on digits" in captured.out
    [teacher] = [line for line in captured.out.splitlines() if line.startswith("| teacher")]
    [student] = [line for line in captured.out.splitlines() if line.startswith("| student")]
    assert f"{result['teacher_top1']:.2f}" in teacher
    assert f"{result['student_top1']:.2f}" in student
    assert f"{result['gap']:.2f}" in student
    assert "1 of 4 inherited" in captured.out
    assert "folded into features.14, head.fc" in captured.out
    assert result["subset"][:12] in captured.out
    assert 'timm.create_model("local-dir:run/student", pretrained=True)' in captured.out
    assert "graft block 2: done" in captured.err
    assert max(map(len, captured.out.splitlines())) <= 160


def test_the_summary_tells_what_adapters_converted(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*QUICK, "--out", "run"]) == 0
    result = json.loads(Path("run/result.json").read_text())
    assert result["conversions"] == ["", "", ""]
    assert "converted" not in capsys.readouterr().out
    show_distilled({**result, "conversions": ["NCHW 8x8 / tokens 4x4+1", "", "NHWC 4x4 / NCHW 2x2"]})
    said = "adapters in training converted between NCHW 8x8 / tokens 4x4+1, NHWC 4x4 / NCHW 2x2 (teacher / student)"
    assert said in capsys.readouterr().out


def test_unlabelled_images_are_not_measured(capsys: pytest.CaptureFixture[str]) -> None:
    write_images(Path("photos"), 5)
    request = ["distill", "--data", "photos", "--teacher", "digits_vgg7_bn", "--student", "digits_vgg7_bn_half"]
    assert "give --images" in fails(capsys, *request)
    assert run([*request, "--images", "3", *FEW_STEPS, "--out", "run"]) == 0
    assert "accuracy not measured (give --eval-data)" in capsys.readouterr().out
    assert json.loads(Path("run/result.json").read_text())["student_top1"] is None


def test_a_student_chosen_on_the_test_set_is_announced_and_labelled(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*QUICK, "--select", "best-on-test", "--looks", "2", "--out", "run"]) == 0
    captured = capsys.readouterr()
    [warning] = [line for line in captured.err.splitlines() if "warning: " in line]
    assert "the student will be chosen on the test set" in warning
    assert (
        "CHOSEN ON THE TEST SET, against the protocol: best of 2 looks at the test set in the last phase"
        in captured.out
    )
    assert json.loads(Path("run/result.json").read_text())["selected_on"] == "test"
    assert run([*QUICK, "--out", "usual"]) == 0
    captured = capsys.readouterr()
    assert "test set" not in (captured.out + captured.err).replace("test set read once", "")
    assert "chosen" not in captured.out.lower()
    for wrong in (["--looks", "0"], ["--select", "best"]):
        assert run([*QUICK, *wrong]) == 2
        assert wrong[0] in capsys.readouterr().err


def test_train_makes_a_teacher_that_evaluate_reads(capsys: pytest.CaptureFixture[str]) -> None:
    train = ["train", "digits_vgg7_bn_half", "--data", "digits", "--epochs", "1", "--batch-size", "256"]
    result = run_json(capsys, *train, "--out", "run")
    assert result["steps"] == -(-1197 // 256)
    measured = run_json(capsys, "evaluate", "run/model", "--data", "digits")
    assert measured["top1"] == result["top1"]
    assert "epochs must be like its default 30, not 'many'" in fails(capsys, *train[:4], "--epochs", "many")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--shots", "0"], "expected at least 1 image a class, got 0 shots"),
        (["--shots", "-3"], "got -3 shots"),
        (["--shots", "500"], "ask for fewer shots"),
        (["--images", "0"], "expected at least 1 image, got 0"),
        (["--shots", "1", "--images", "5"], "give one of --shots, --images and --subset"),
        (["--subset", "none.json"], "none.json"),
        (["--teacher", "digits_vgg7"], "did you mean digits_vgg7_bn"),
        (["--student", "digits_vgg_bn_half"], "did you mean digits_vgg7_bn_half"),
        (["--student", "odd_map"], "the blocks can't be paired"),
        (["--data", "digit"], "did you mean digits?"),
        (["--data", "no/such/folder"], "which does not exist"),
        (["--data", "empty"], "empty"),
        (["--method", "netgrafd"], "there is no method 'netgrafd'; choose from netgraft"),
        (["--preset", "best"], "choose from default, thorough, reference"),
        (["--views", "wild"], "'wild' is not one of 'rich'"),
        (["--init", "zeros"], "'zeros' is not one of 'auto', 'random', 'keep', 'slice', 'solve'"),
        (["--inherit", "all"], "'all' is not one of 'auto', 'none'"),
        (["--schedule", "linear"], "schedule must be one of constant"),
        (["--block-steps", "2,x"], "block_steps must be like its default 300, not '2,x'"),
        (["--teacher-weights", "none.safetensors"], "there is no weights file none.safetensors"),
        (["--device", "cuda", "--devices", "64"], "can't use 64 devices of kind 'cuda'"),
    ],
)
def test_a_wrong_request_gets_one_sentence(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("empty").mkdir()
    assert said in fails(capsys, "distill", *arguments, "--out", "out")


@pytest.mark.parametrize(
    "arguments",
    [
        ["distill", "--shots", "x"],
        ["distill", "--no-such"],
        ["distil"],
        ["split"],
        ["split", "a", "b", "--cuts", "c"],
    ],
)
def test_wrong_usage_ends_with_two(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    message = fails(capsys, *arguments)
    assert message.count("\n") == 1
    assert "; see netgraft" in message
    assert message.endswith(" --help\n")


def test_class_counts_must_agree(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("cats", "dogs"):
        write_images(Path("pets") / name, 3)
    request = ["distill", "--data", "pets", "--teacher", "digits_vgg7_bn", "--student", "digits_vgg7_bn_half"]
    said = fails(capsys, *request, "--shots", "1", "--out", "out")
    assert "digits_vgg7_bn answers with 10 classes but pets has 2" in said


def test_a_broken_image_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    write_images(Path("photos"), 2)
    whole = Path("photos/1.png").read_bytes()
    Path("photos/1.png").write_bytes(whole[: len(whole) // 2])
    request = ["distill", "--data", "photos", "--teacher", "digits_vgg7_bn", "--student", "digits_vgg7_bn_half"]
    assert "photos/1.png" in fails(capsys, *request, "--images", "2", "--out", "out")


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("executed"),)


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_a_pickle_is_not_executed(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"state_dict": {"weight": Bomb()}}, "weights.pth")
    Path("weights.safetensors").write_bytes(pickle.dumps(Bomb()))
    assert name in fails(capsys, "distill", "--teacher-weights", name, "--out", "out")
    assert not Path("executed").exists()
    pickle.loads(Path("weights.safetensors").read_bytes())
    assert Path("executed").exists()  # the bomb is a live one


def test_weights_that_do_not_fit_name_their_keys(capsys: pytest.CaptureFixture[str]) -> None:
    state = timm.create_model("digits_vgg7_bn").state_dict()
    state["head.extra"] = state.pop("features.0.weight")
    save_file(state, "weights.safetensors")
    said = fails(capsys, "distill", "--teacher-weights", "weights.safetensors", "--out", "out")
    assert "1 missing keys, first 'features.0.weight'" in said
    assert "1 unexpected keys, first 'head.extra'" in said


def test_a_folder_with_other_things_is_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    Path("out").mkdir()
    Path("out/thesis.tex").write_text("precious")
    assert "holds no run of netgraft" in fails(capsys, *QUICK, "--out", "out")


def test_split_shows_blocks_that_add_up_to_the_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["split", "digits_vgg7_bn"]) == 0
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    blocks = [row for row in rows if row and row[0].isdigit()]
    assert [row[2] for row in blocks] == ["32x4x4", "64x2x2", "128x1x1", "10"]
    model = timm.create_model("digits_vgg7_bn")
    assert sum(int(row[3].replace(",", "")) for row in blocks) == sum(p.numel() for p in model.parameters())
    widths = [(1, 32, 64), (32, 32, 64), (32, 64, 16), (64, 64, 16), (64, 128, 4), (128, 128, 4)]
    convolutions = [9 * before * after * pixels for before, after, pixels in widths]
    macs = [sum(convolutions[n : n + 2]) for n in (0, 2, 4)] + [128 * 10]
    assert [int(row[4].replace(",", "")) for row in blocks] == macs


def test_split_shows_how_two_models_pair(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["split", "digits_vgg7_bn", "digits_vgg7_bn_half"]) == 0
    shown = capsys.readouterr().out
    assert "enter 64 -> 32; exit 64 -> 128" in shown
    assert "inherited: 1 of 4 blocks" in shown
    assert "stays" not in shown
    assert run(["split", "cifar_resnet18", "cifar_resnet8", "--image-size", "16"]) == 0
    assert f"stays: {16 * 16} parameters, a residual path carries the" in capsys.readouterr().out
    assert "choose another model or image size" in fails(capsys, "split", "cifar_vgg16_bn", "--image-size", "8")
    # a student that is made for one size is made for that of its teacher
    assert run(["split", "cifar_resnet18", "test_vit", "--image-size", "64"]) == 0
    assert "at 3x64x64" in capsys.readouterr().out


def test_quiet_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    assert run([*QUICK, "--quiet", "--out", "run"]) == 0
    assert capfd.readouterr() == ("", "")
    assert Path("run/student/model.safetensors").exists()


def test_two_processes_make_one_student_and_one_summary() -> None:
    with held_port() as port:
        done = shell(*QUICK, "--devices", "2", "--device", "cpu", env={**os.environ, "MASTER_PORT": str(port)})
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    assert done.stdout.count("load the student") == 1
    assert done.stderr.count("join blocks 2-4: done") == 1
    [folder] = Path("runs").iterdir()
    result = json.loads((folder / "result.json").read_text())
    assert result["devices"] == 2
    student = timm.create_model(f"local-dir:{folder}/student", pretrained=True)
    assert state_digest(student) == result["student_digest"]

    refused = shell(*QUICK, "--devices", "2", "--device", "cpu", "--out", str(folder))
    assert refused.returncode == 2
    assert refused.stderr.count("already holds a run") == 1


def test_torchrun_starts_the_processes_of_one_run() -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    asked = [*QUICK, "--init", "slice", "--device", "cpu", "--devices", "2", "--out", "run"]
    done = subprocess.run(
        [*torchrun, "-m", "netgraft", *asked], capture_output=True, text=True, timeout=HANGS, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("load the student") == 1
    assert done.stderr.count("digits: 2 images a class x 10 classes") == 1
    result = json.loads(Path("run/result.json").read_text())
    assert result["devices"] == 2
    student = timm.create_model("local-dir:run/student", pretrained=True)
    assert state_digest(student) == result["student_digest"]


def test_output_into_a_closed_pipe_is_no_failure() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as pipe:
        done = subprocess.run([*COMMAND, "methods"], stdout=pipe, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(("init", "file"), [("solve", "start"), ("slice", "checkpoint.pt")])
def test_a_full_disk_ends_with_one_sentence(init: str, file: str) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    done = shell(*QUICK, "--init", init, "--out", "run", preexec_fn=limit)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    [said] = [line for line in done.stderr.splitlines() if line.startswith("netgraft: ")]
    assert f"could not write run/{file}" in said
    assert "go on with --resume" in said

    with Path("/dev/full").open("w") as full:
        done = subprocess.run([*COMMAND, "methods"], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("netgraft: No space left on device")


# --- models that are not as their names alone make them


def test_images_of_another_size_than_the_model_was_made_for(capsys: pytest.CaptureFixture[str]) -> None:
    plain, size = ["train", "digits_vgg7_bn", "--data", "digits", "--epochs", "1"], ["--image-size", "16"]
    small = run_json(capsys, *plain, "--out", "small")
    large = run_json(capsys, *plain, *size, "--out", "large")
    assert (small["input_size"], large["input_size"]) == ([1, 8, 8], [1, 16, 16])
    # convolutions and their norms see four times as many places
    assert 3.9 < large["macs"] / small["macs"] < 4.0
    weights = ["--teacher-weights", "large/model/model.safetensors"]
    evaluate = ["evaluate", "digits_vgg7_bn", "--data", "digits", *weights]
    assert run_json(capsys, *evaluate, *size)["top1"] == large["top1"]
    assert run_json(capsys, *evaluate)["macs"] == small["macs"]
    folder = ["evaluate", "large/model", *evaluate[2:4]]
    assert run_json(capsys, *folder)["top1"] == run_json(capsys, *folder, *size)["top1"] == large["top1"]
    distilled = run_json(capsys, *QUICK, *weights, *size, "--out", "run")
    assert (distilled["teacher_top1"], distilled["teacher_macs"]) == (large["top1"], large["macs"])
    tiny = ["--image-size", "1"]
    assert "SmallVGG can't take images of 1x1x1" in fails(capsys, *plain, *tiny)
    assert "SmallVGG can't take images of 1x1x1" in fails(capsys, *evaluate, *tiny)
    described = json.loads(Path("run/student/config.json").read_text())["pretrained_cfg"]
    assert (described["input_size"], described["crop_pct"]) == ([1, 16, 16], 1.0)


def test_residual_blocks_that_were_left_out_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    teacher = timm.create_model("cifar_resnet20")
    save_file(teacher.state_dict(), "teacher.safetensors")
    models = ["--teacher", "cifar_resnet20", "--student", "cifar_resnet8", "--teacher-weights", "teacher.safetensors"]
    assert run([*QUICK, *models, "--image-size", "8", "--out", "run"]) == 0
    names = [f"layer{stage}.{number}" for stage in (1, 2, 3) for number in (1, 2)]
    assert f"initialisation of the others: slice, without {', '.join(names)}\n" in capsys.readouterr().out
    assert json.loads(Path("run/result.json").read_text())["left_out"] == names
