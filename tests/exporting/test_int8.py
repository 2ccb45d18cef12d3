"""Students in 8 bits: small, near the float ones, and with the layers in float that measurement asks for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from netgraft.cli.main import run

from netgraft.data.sources import open_data
from netgraft.errors import RequestError, RunError
from netgraft.exporting.export import ExportedInt8, export_int8
from netgraft.models.loading import load_teacher
from tests.support.cli import QUICK, fails, run_json
from tests.support.exports import answers_of_a_stranger
from tests.support.random_models import build

onnx = pytest.importorskip("onnx", reason="needs the extra netgraft[export]")
int8 = pytest.importorskip("netgraft.exporting.int8", reason="needs the extra netgraft[export]")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[ExportedInt8, bytes]:
    """The digits teacher in 8 bits, and its float file."""
    source = open_data("digits")
    assert source.test is not None
    teacher = load_teacher("digits_vgg7_bn")
    floats: list[bytes] = []
    quantise = int8.quantise

    def kept(content: bytes, *arguments: object, **options: object) -> object:
        floats.append(content)
        return quantise(content, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(int8, "quantise", kept)
        exported = export_int8(
            teacher,
            tmp_path_factory.mktemp("int8") / "teacher.onnx",
            calibration=source.train.load_many(range(30)),
            held_out=source.test.load_many(range(100)),
            with_preprocessing=True,
        )
    return exported, floats[0]


def test_a_stranger_gets_nearly_the_answers_of_the_float_network(written: tuple[ExportedInt8, bytes]) -> None:
    exported, content = written
    assert (exported.agreement_images, exported.held_out, exported.calibration_images) == (100, True, 30)
    assert (exported.layers, exported.left_in_float) == (7, ())
    assert exported.bytes == exported.path.stat().st_size < 0.35 * len(content)
    pixels = np.stack(
        [np.asarray(image)[..., None] for image in open_data("digits").test_or_all().load_many(range(100))]
    )
    found = answers_of_a_stranger({exported.path: {"all": pixels}})[exported.path]["all"]
    normal = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - 0.3064) / 0.3753
    with torch.no_grad():
        expected = load_teacher("digits_vgg7_bn")(normal).numpy()
    same = 100 * float((found.argmax(1) == expected.argmax(1)).mean())
    assert same == pytest.approx(exported.agreement)
    assert same >= 98
    assert np.abs(found - expected).max() < 0.1 * np.abs(expected).max()


def test_weights_have_a_scale_for_each_channel(written: tuple[ExportedInt8, bytes]) -> None:
    file = onnx.load(written[0].path)
    onnx.checker.check_model(file)
    tensors = {each.name: onnx.numpy_helper.to_array(each) for each in file.graph.initializer}
    kernels = {name: value for name, value in tensors.items() if value.dtype == np.int8 and value.ndim == 4}
    assert sorted(kernel.shape[0] for kernel in kernels.values()) == [32, 32, 64, 64, 128, 128]
    for node in file.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in kernels:
            assert tensors[node.input[1]].shape == (kernels[node.input[0]].shape[0],)
            # symmetric, and each channel uses the whole range
            assert (np.abs(kernels[node.input[0]]).max((1, 2, 3)) == 127).all()


def in_float(content: bytes) -> set[str]:
    """Names of the layers whose weights are no 8 bits."""
    graph = onnx.load_from_string(content).graph
    made = {name: node.op_type for node in graph.node for name in node.output}
    layers = [node for node in graph.node if node.op_type in int8.LAYERS]
    return {node.name for node in layers if made.get(node.input[1]) != "DequantizeLinear"}


def layers_of(content: bytes) -> list[str]:
    return [node.name for node in onnx.load_from_string(content).graph.node if node.op_type in int8.LAYERS]


IMAGES = torch.zeros(2, 8, 8, 1, dtype=torch.uint8)


def costs(prices: dict[str, float]) -> Callable[[bytes], float]:
    """An agreement that loses so many points for each layer in 8 bits."""
    return lambda content: 100 - sum(price for name, price in prices.items() if name not in in_float(content))


def test_the_fewest_most_sensitive_layers_stay_in_float(written: tuple[ExportedInt8, bytes]) -> None:
    content = written[1]
    names = layers_of(content)
    agreement = costs({names[1]: 2.0, names[4]: 5.0, names[6]: 0.3})
    for max_drop, expected in ((8.0, ()), (3.0, (4,)), (1.0, (4, 1)), (0.0, (4, 1, 6))):
        found = int8.quantise(content, IMAGES, agreement, max_drop=max_drop)
        assert found.left_in_float == tuple(names[number] for number in expected)
        assert in_float(found.content) == set(found.left_in_float)
    assert int8.quantise(content, IMAGES, agreement, max_drop=None).left_in_float == ()


def test_what_can_not_be_kept_is_said(written: tuple[ExportedInt8, bytes]) -> None:
    with pytest.raises(RunError, match=r"expected at most 2 points of agreement lost, got 9.00 even with all layers"):
        int8.quantise(written[1], IMAGES, lambda content: 91.0, max_drop=2)


def test_8_bits_need_photographs_and_leave_nothing_behind_without(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="expected photographs to find the ranges of 8 bits with, got none"):
        export_int8(build("digits_vgg7_bn_half"), tmp_path / "m.onnx", calibration=[])
    assert list(tmp_path.iterdir()) == []


# --- on the command line


def test_the_command_calibrates_on_the_runs_photographs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run([*QUICK, "--quiet", "--out", "run"]) == 0
    result = run_json(capsys, "export", "run", "--to", "onnx", "--int8", "--max-drop", "50", "--out", "m.onnx")
    assert (result["calibration_images"], result["agreement_images"], result["held_out"]) == (20, 600, True)
    assert result["bytes"] == Path("m.onnx").stat().st_size < 0.5 * result["float_bytes"]
    assert result["agreement"] >= 50
    assert result["left_in_float"] == []
    assert all(result[f"{who}latency_ms_{batch}"] > 0 for who in ("", "float_") for batch in (1, 64))
    assert run(["export", "run", "--to", "onnx", "--int8", "--train-steps", "3", "--quiet", "--out", "t.onnx"]) == 0
    assert ", 3 steps through fake quantisation\n" in capsys.readouterr().out
    # the same network with other weights
    before, after = (onnx.load(name).graph for name in ("m.onnx", "t.onnx"))
    assert [node.op_type for node in before.node] == [node.op_type for node in after.node]
    assert Path("m.onnx").read_bytes() != Path("t.onnx").read_bytes()
    wanted = ["export", "run", "--out", "n", "--to"]
    assert "--int8 goes with --to onnx, not pt2" in fails(capsys, *wanted, "pt2", "--int8")
    for asked in (["--max-drop", "1"], ["--train-steps", "5"], ["--data", "digits"]):
        said = fails(capsys, *wanted, "pt2", *asked)
        assert "--max-drop, --train-steps and --data go with --int8" in said
    assert "run/student is no run whose data is still there; give --data" in fails(
        capsys, "export", "run/student", "--out", "n", "--to", "onnx", "--int8"
    )


def test_folders_are_split_into_calibration_and_others(tmp_path: Path) -> None:
    from netgraft.jobs.export import _calibration

    images = open_data("digits").train.load_many(range(300))
    (tmp_path / "photos").mkdir()
    for number, image in enumerate(images):
        image.save(tmp_path / "photos" / f"{number:03}.png")
    few, others = _calibration(tmp_path, str(tmp_path / "photos"), None)
    position = {image.tobytes(): number for number, image in enumerate(images)}
    assert [position[image.tobytes()] for image in few] == list(range(0, 256, 2))
    assert [position[image.tobytes()] for image in others] == list(range(1, 300, 2))
