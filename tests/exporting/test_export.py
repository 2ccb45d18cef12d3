"""Files that were exported answer like the model, to whom netgraft (and but for pt2 torch) is unknown."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from torch import nn

import netgraft
from netgraft.deriving.sizes import replace_tensor
from netgraft.errors import RequestError, RunError
from netgraft.exporting import formats, onnx_format
from netgraft.exporting.export import Exported, export, write_files
from netgraft.exporting.opened import OpenedExport
from netgraft.models.creation import describe_labels
from netgraft.models.students import load_student, save_student
from tests.models.test_students import CONFIG, sequence
from tests.support.exports import answers_of_a_stranger
from tests.support.random_models import build, snapshot

BATCHES = (1, 3, 64)

ONNX = pytest.mark.skipif(
    not all(find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime")),
    reason="needs the extra netgraft[export]",
)
OPENVINO = pytest.mark.skipif(
    not all(find_spec(name) for name in ("onnx", "onnxscript", "openvino")),
    reason="needs the extra netgraft[openvino]",
)

LITERT = pytest.mark.skipif(
    not all(find_spec(name) for name in ("litert_torch", "ai_edge_litert")), reason="needs the extra netgraft[litert]"
)


def half(folder: Path) -> nn.Module:
    model = build("digits_vgg7_bn_half")
    save_student(folder, model, model, cuts=(), data_config=resolve_model_data_config(model))
    return load_student(folder)


def with_adapters(folder: Path) -> nn.Module:
    student, model, cuts = sequence("cifar_resnet20", fold=False)
    save_student(folder, student, model, cuts=cuts, data_config=CONFIG)
    return load_student(folder)


def transformer(folder: Path) -> nn.Module:
    model = build("test_vit", img_size=32, num_classes=7)
    save_student(folder, model, model, cuts=(), data_config={**CONFIG, "input_size": (3, 32, 32)})
    return load_student(folder)


def with_irregular_widths(folder: Path) -> nn.Module:
    """As a derived student has them: the second stage 37 and 41 wide instead of 64."""
    model = build("digits_vgg7_bn", 1)
    for conv, inputs, outputs in (("features.7", 32, 37), ("features.10", 37, 41), ("features.14", 41, 128)):
        number = int(conv.partition(".")[2])
        weight = model.get_parameter(f"{conv}.weight").detach()[:outputs, :inputs].clone()
        replace_tensor(model.get_submodule(conv), "weight", weight)
        replace_tensor(
            model.get_submodule(conv), "bias", model.get_parameter(f"{conv}.bias").detach()[:outputs].clone()
        )
        norm = model.get_submodule(f"features.{number + 1}")
        for name in ("weight", "bias", "running_mean", "running_var"):
            replace_tensor(norm, name, getattr(norm, name).detach()[:outputs].clone())
    save_student(folder, model, model, cuts=(), data_config=resolve_model_data_config(model))
    student = load_student(folder)
    assert student.get_parameter("features.10.weight").shape == (41, 37, 3, 3)
    return student


def channels_last(folder: Path) -> nn.Module:
    sizes: dict[str, Any] = {"embed_dim": 16, "depths": (1, 1), "num_heads": (1, 2), "img_size": 56}
    return build("swin_tiny_patch4_window7_224", num_classes=7, **sizes)


MODELS: dict[str, Callable[[Path], nn.Module]] = {
    each.__name__: each for each in (half, with_adapters, transformer, with_irregular_widths, channels_last)
}

SIZES = {"half": (1, 8, 8), "with_irregular_widths": (1, 8, 8), "channels_last": (3, 56, 56)}


def batches(size: tuple[int, ...]) -> dict[str, NDArray[Any]]:
    draws = np.random.default_rng(5)
    return {str(count): draws.standard_normal((count, *size)).astype(np.float32) for count in BATCHES}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, nn.Module]:
    folder = tmp_path_factory.mktemp("students")
    return {name: make(folder / name) for name, make in MODELS.items()}


PIXELS = "pixels"


@dataclass(frozen=True)
class Answers:
    """What went into each file and what came out, by the model's name and the size of the batch."""

    given: dict[str, dict[str, NDArray[Any]]]
    found: dict[str, dict[str, NDArray[np.float32]]]
    with_preprocessing: Exported


ENDINGS = {"onnx": "onnx", "pt2": "pt2", "openvino": "xml", "litert": "tflite"}


@pytest.fixture(
    scope="module",
    params=[
        pytest.param("onnx", marks=ONNX),
        "pt2",
        pytest.param("openvino", marks=OPENVINO),
        pytest.param("litert", marks=LITERT),
    ],
)
def answers(
    request: pytest.FixtureRequest, models: dict[str, nn.Module], tmp_path_factory: pytest.TempPathFactory
) -> Answers:
    """Export all models, and one with preprocessing, and let a stranger open the files in one process."""
    folder, to = tmp_path_factory.mktemp(request.param), request.param
    ending = ENDINGS[to]
    given: dict[str, dict[str, NDArray[Any]]] = {}
    for name, model in models.items():
        size = SIZES.get(name, (3, 32, 32))
        config = {**resolve_model_data_config(model), "input_size": size}
        export(model, folder / f"{name}.{ending}", to=to, data_config=config)
        given[name] = batches(size)
    draws = np.random.default_rng(1)
    photographs = [Image.fromarray(draws.integers(0, 256, (40 + n, 50, 3), dtype=np.uint8)) for n in range(5)]
    exported = export(
        models["with_adapters"], folder / f"{PIXELS}.{ending}", to=to, with_preprocessing=True, images=photographs
    )
    given[PIXELS] = {"3": draws.integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)}
    found = answers_of_a_stranger({folder / f"{name}.{ending}": each for name, each in given.items()})
    return Answers(given, {path.stem: each for path, each in found.items()}, exported)


@pytest.mark.parametrize("name", MODELS)
def test_a_stranger_gets_the_answers_of_the_student(name: str, answers: Answers, models: dict[str, nn.Module]) -> None:
    assert list(answers.given[name]) == ["1", "3", "64"]
    for batch, images in answers.given[name].items():
        with torch.no_grad():
            expected = models[name](torch.from_numpy(images)).numpy()
        found = answers.found[name][batch]
        assert found.shape == expected.shape == (int(batch), expected.shape[1])
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
        np.testing.assert_array_equal(found.argmax(1), expected.argmax(1))


def test_bytes_go_in_with_preprocessing(answers: Answers, models: dict[str, nn.Module]) -> None:
    assert answers.with_preprocessing.proof.images == 1 + 3 + 5
    # timm's own transform, of images that have the size already
    transform = create_transform(**{**CONFIG, "crop_pct": 1.0}, is_training=False)
    images = torch.stack([transform(Image.fromarray(each)) for each in answers.given[PIXELS]["3"]])
    with torch.no_grad():
        expected = models["with_adapters"](images).numpy()
    found = answers.found[PIXELS]["3"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


# --- what a file says of itself


def named() -> nn.Module:
    model = build("digits_vgg7_bn_half", num_classes=3)
    describe_labels(model, {"label_names": ["null", "eins", "<b>zwei</b>"]})
    return model


FACTS = {
    "input_size": [1, 8, 8],
    "mean": [0.3064],
    "std": [0.3753],
    "interpolation": "bilinear",
    "crop_pct": 1.0,
    "label_names": {"0": "null", "1": "eins", "2": "<b>zwei</b>"},
    "license": "cc-by-4.0",
    "architecture": "digits_vgg7_bn_half",
}


@ONNX
def test_an_onnx_file_says_what_goes_in_and_what_comes_out(tmp_path: Path) -> None:
    import onnx

    before = snapshot(model := named())
    export(model, tmp_path / "m.onnx", license="cc-by-4.0")
    assert snapshot(model) == before
    file = onnx.load(tmp_path / "m.onnx")
    onnx.checker.check_model(file, full_check=True)
    about = {each.key: json.loads(each.value) for each in file.metadata_props}
    assert {name: about[name] for name in FACTS} == FACTS
    assert about["preprocessing"] == "outside"
    [taken], [given] = file.graph.input, file.graph.output
    assert (taken.name, given.name) == ("images", "logits")
    dims = [[d.dim_param or d.dim_value for d in each.type.tensor_type.shape.dim] for each in (taken, given)]
    assert dims == [["batch", 1, 8, 8], ["batch", 3]]
    assert taken.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_a_pt2_file_says_the_same(tmp_path: Path) -> None:
    export(named(), tmp_path / "m.pt2", to="pt2", with_preprocessing=True, license="cc-by-4.0")
    found = {"netgraft.json": ""}
    torch.export.load(tmp_path / "m.pt2", extra_files=found)
    about = {name: json.loads(text) for name, text in json.loads(found["netgraft.json"]).items()}
    assert {name: about[name] for name in FACTS} == FACTS
    assert about["preprocessing"] == "inside"


@OPENVINO
def test_an_openvino_file_says_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import openvino
    import openvino_telemetry

    monkeypatch.setattr(openvino_telemetry, "Telemetry", None)  # would be called; nothing is reported to anybody
    before = snapshot(model := named())
    exported = export(model, tmp_path / "m.v1.xml", to="openvino", license="cc-by-4.0")
    assert snapshot(model) == before
    assert exported.files == (tmp_path / "m.v1.xml", tmp_path / "m.v1.bin")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.v1.bin", "m.v1.xml"]
    assert exported.bytes == sum(path.stat().st_size for path in tmp_path.iterdir())
    file = openvino.Core().read_model(tmp_path / "m.v1.xml")
    about = {name: json.loads(file.get_rt_info(["netgraft", name]).value) for name in [*FACTS, "preprocessing"]}
    assert about == {**FACTS, "preprocessing": "outside"}
    [taken], [given] = file.inputs, file.outputs
    assert (taken.get_names(), str(taken.partial_shape)) == ({"images"}, "[?,1,8,8]")
    assert (given.get_names(), str(given.partial_shape)) == ({"logits"}, "[?,3]")
    assert taken.element_type == given.element_type == openvino.Type.f32
    # no weight was rounded
    constants = [node for node in file.get_ops() if node.get_type_name() == "Constant"]
    kinds = {node.get_element_type().get_type_name() for node in constants}
    assert "f32" in kinds
    assert not kinds & {"f16", "bf16"}


@LITERT
def test_a_litert_file_says_the_same_and_its_makers_are_silent(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from ai_edge_litert.interpreter import Interpreter

    before = snapshot(model := named())
    exported = export(model, tmp_path / "m.tflite", to="litert", license="cc-by-4.0")
    assert tuple(capfd.readouterr()) == ("", "")
    assert snapshot(model) == before
    assert exported.batch == 1
    with ZipFile(tmp_path / "m.tflite") as archive:
        about = {name: json.loads(text) for name, text in json.loads(archive.read("netgraft.json")).items()}
    assert {name: about[name] for name in FACTS} == FACTS
    assert about["preprocessing"] == "outside"
    file = Interpreter(model_path=str(tmp_path / "m.tflite")).get_signature_runner()
    ends = [
        {name: (list(each["shape"]), each["dtype"]) for name, each in details.items()}
        for details in (file.get_input_details(), file.get_output_details())
    ]
    assert ends == [{"images": ([1, 1, 8, 8], np.float32)}, {"logits": ([1, 3], np.float32)}]
    assert [path.name for path in tmp_path.iterdir()] == ["m.tflite"]
    capfd.readouterr()  # what the interpreter in this test logs
    with pytest.raises(RunError, match=r"^could not export the model to litert: .*; nothing was written$"):
        export(Eigenvalues(), tmp_path / "n.tflite", to="litert", data_config=CONFIG)
    assert [path.name for path in tmp_path.iterdir()] == ["m.tflite"]
    assert tuple(capfd.readouterr()) == ("", "")


# --- what fails leaves nothing behind


class Answering(OpenedExport):
    """Stands for a file that was translated wrongly."""

    def __init__(self, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        model = build("digits_vgg7_bn_half")
        super().__init__(lambda images: change(model(images)), torch.float32)


CHANGES: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], str]] = {
    "another scale": (lambda logits: 1.01 * logits, "logits differ by"),
    "not a number": (lambda logits: logits * float("nan"), "logits differ by"),
    "another shape": (lambda logits: logits[:, :-1], "expected logits"),
    "wrong in larger batches": (lambda logits: logits * (len(logits) == 1), "on batch 2, of 3 images"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_an_export_that_answers_otherwise_is_not_kept(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong, said = CHANGES[change]
    broken = formats.Format("pt2", "", (), lambda program, facts: (b"",), lambda content, threads: Answering(wrong))
    monkeypatch.setitem(formats.FORMATS, "pt2", broken)
    with pytest.raises(RunError, match=f"the export isn't the model.*{said}"):
        export(build("digits_vgg7_bn_half"), tmp_path / "m.pt2", to="pt2")
    assert list(tmp_path.iterdir()) == []


class Eigenvalues(nn.Module):
    """Runs, but ONNX has no operator for it."""

    num_classes = 4

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.linalg.eigvals(x[:, 0, :4, :4]).abs()


class Branching(nn.Module):
    """Runs, but what it does depends on its numbers."""

    num_classes = 4

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)[:, :4] * (2 if x.sum() > 0 else 1)


@pytest.mark.parametrize(
    ("model", "to"), [pytest.param(Eigenvalues(), "onnx", marks=ONNX), (Branching(), "pt2")], ids=["operator", "branch"]
)
def test_what_can_not_be_expressed_is_one_sentence(model: nn.Module, to: str, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=f"^could not export the model to {to}: .*; nothing was written$") as raised:
        export(model, tmp_path / "m", to=to, data_config=CONFIG)
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes) -> int:
        with path.open("wb") as file:
            file.write(content[:100])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(RunError, match=r"No space left on device.*; free some space and export again$"):
        export(build("digits_vgg7_bn_half"), tmp_path / "m.pt2", to="pt2")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("full", [".bin", ".xml"])
def test_of_two_files_none_stays_where_one_has_no_room(
    full: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = (tmp_path / "m.xml", tmp_path / "m.bin")
    # the weights have their name first: who finds an .xml finds both
    write_files(paths, (b"network", b"weights"))
    assert [path.read_bytes() for path in paths] == [b"network", b"weights"]
    for path in paths:
        path.unlink()
    write, tried = Path.write_bytes, []

    def limited(path: Path, content: bytes) -> int:
        tried.append(sorted(each.name for each in tmp_path.iterdir()))
        if content == {".bin": b"weights", ".xml": b"network"}[full]:
            write(path, content[:3])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", limited)
    with pytest.raises(RunError, match=rf"could not write .*m\{full}: .*No space left on device"):
        write_files(paths, (b"network", b"weights"))
    assert tried == [[], ["m.bin"]][: 1 + (full == ".xml")]
    assert list(tmp_path.iterdir()) == []


@OPENVINO
def test_files_that_openvino_can_not_make_are_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnx
    import openvino

    model = build("digits_vgg7_bn_half")
    with pytest.raises(RequestError, match=r"expected a name that ends in \.xml for --to openvino, got m\.onnx"):
        export(model, tmp_path / "m.onnx", to="openvino")
    (tmp_path / "there.bin").write_text("mine")
    with pytest.raises(RequestError, match=r"expected a new file, got .*there\.bin, which exists"):
        export(model, tmp_path / "there.xml", to="openvino")
    assert [path.name for path in tmp_path.iterdir()] == ["there.bin"]
    (tmp_path / "there.bin").unlink()

    def full(*given: object, **options: object) -> None:
        raise RuntimeError("basic_ios::clear: iostream error")

    # one node, which is quicker than what PyTorch's exporter writes
    ends = [onnx.helper.make_tensor_value_info(name, 1, [None, 64]) for name in ("images", "logits")]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Flatten", ["images"], ["logits"])], "one", ends[:1], ends[1:]
    )
    content = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)]).SerializeToString()
    monkeypatch.setattr(onnx_format, "encode", lambda program, facts: (content,))
    monkeypatch.setattr(openvino, "save_model", full)
    said = "^could not export the model to openvino: OpenVINO can't write to .* TMPDIR .*; nothing was written$"
    with pytest.raises(RunError, match=said):
        export(model, tmp_path / "m.xml", to="openvino")

    def cut(model: object, path: Path, **options: object) -> None:
        path.write_bytes(b"<net")
        path.with_suffix(".bin").write_bytes(b"")

    monkeypatch.setattr(openvino, "save_model", cut)
    with pytest.raises(RunError, match=r"^could not export the model to openvino: .*; nothing was written$"):
        export(model, tmp_path / "m.xml", to="openvino")
    assert list(tmp_path.iterdir()) == []


def test_paths_that_can_not_be_written_are_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.export, "export", None)  # would be called
    model = build("digits_vgg7_bn_half")
    (tmp_path / "there").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("there", "link"):
        with pytest.raises(RequestError, match=f"expected a new file, got .*{name}, which exists"):
            export(model, tmp_path / name, to="pt2")
    assert (tmp_path / "there").read_text() == "mine"
    with pytest.raises(RequestError, match=r"expected a folder for m, got .*none, which is none"):
        export(model, tmp_path / "none" / "m", to="pt2")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(RequestError, match="expected a folder that can be written to"):
        export(model, tmp_path / "m", to="pt2")


def test_formats_that_there_are_not_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("digits_vgg7_bn_half")
    with pytest.raises(RequestError, match="expected one of onnx, pt2, openvino, litert as format, got 'tflite'"):
        export(model, tmp_path / "m", to="tflite")
    monkeypatch.setattr(formats, "find_spec", lambda name: None)
    with pytest.raises(RequestError, match=r"needs onnx, onnxscript, onnxruntime, .* pip install 'netgraft\[export\]'"):
        export(model, tmp_path / "m", to="onnx")
    wanted = r"needs onnx, onnxscript, openvino, not installed here; pip install 'netgraft\[openvino\]'"
    with pytest.raises(RequestError, match=wanted):
        export(model, tmp_path / "m.xml", to="openvino")
    wanted = r"needs litert_torch, ai_edge_litert, not installed here; pip install 'netgraft\[litert\]'"
    with pytest.raises(RequestError, match=wanted):
        export(model, tmp_path / "m.tflite", to="litert")


def test_a_model_that_trains_on_is_left_alone(tmp_path: Path) -> None:
    model = build("digits_vgg7_bn_half").train().double()
    before = snapshot(model)
    exported = netgraft.export(model, tmp_path / "m.pt2", to="pt2")
    assert isinstance(exported, Exported)
    assert snapshot(model) == before
    assert exported.bytes == (tmp_path / "m.pt2").stat().st_size
    times = exported.latencies()
    assert [list(times), *map(list, times.values())] == [["pytorch", "export"], [1, 64], [1, 64]]
