"""A stream that is read through layer norms is turned without a difference, and loses channels that hold nothing."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import Tensor, nn

from netgraft.data.view_policy import VIEW_POLICIES
from netgraft.data.views import Views
from netgraft.derivation import Deriver
from netgraft.deriving.anatomy import Anatomy
from netgraft.deriving.budget import budget_of
from netgraft.deriving.following import follow_channels
from netgraft.deriving.narrowing import narrow
from netgraft.deriving.options import DerivingOptions
from netgraft.deriving.places import Place
from netgraft.deriving.stream_bases import StreamBases, centring, reflection, with_stream_norms
from netgraft.distillation import prepare
from netgraft.errors import RequestError
from netgraft.evaluation.metrics import macs
from netgraft.grafting.scions import assemble, graft, make_scions
from netgraft.models.students import load_student
from netgraft.modules import parameters
from tests.support.derivable import Transformer, images, network, randomised

SIZE = (3, 16, 16)
CONFIG: dict[str, Any] = {
    "input_size": SIZE,
    "mean": (0.5,) * 3,
    "std": (0.25,) * 3,
    "interpolation": "bilinear",
    "crop_pct": 1.0,
    "crop_mode": "center",
}


def vision_transformer(**options: Any) -> Any:
    """With a scale for each channel of each branch, as DINOv2 has, unless another model is asked for."""
    given = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 5}
    model = timm.create_model("vit_tiny_patch16_224", **{**given, "init_values": 0.5, **options})
    return randomised(model)


def probe(count: int = 3, seed: int = 5) -> Tensor:
    return torch.randn(count, *SIZE, generator=torch.Generator().manual_seed(seed))


def on_stream_norms(model: nn.Module) -> tuple[nn.Module, StreamBases]:
    images = probe(2).to(next(model.parameters()))
    other = with_stream_norms(model, follow_channels(model, images[:1]), images)
    assert other is not None
    return other, StreamBases.of(follow_channels(other, images[:1]))


@torch.no_grad()
@pytest.mark.parametrize(
    "options",
    [{}, {"init_values": None}, {"class_token": False, "global_pool": "avg"}, {"reg_tokens": 2}],
    ids=["scaled", "plain", "pooled", "registers"],
)
def test_the_turned_teacher_computes_what_the_teacher_does(options: dict[str, Any]) -> None:
    model = vision_transformer(**options).double()
    other, bases = on_stream_norms(model)
    expected = model(probe().double())
    torch.testing.assert_close(other(probe().double()), expected, rtol=0, atol=1e-10)
    bases = bases.turned(other, [probe(seed=1).double(), probe(seed=2).double()])
    torch.testing.assert_close(other(probe().double()), expected, rtol=0, atol=1e-10)
    # and so does what has layer norms again, but for what is added to a mean square
    student = bases.with_layer_norms(copy.deepcopy(other), model, {})
    assert not any(type(module).__name__ == "StreamNorm" for module in student.modules())
    torch.testing.assert_close(student(probe().double()), expected, rtol=0, atol=1e-10)


@torch.no_grad()
def test_directions_are_those_of_numpy_the_largest_first_and_the_mean_in_front() -> None:
    model = vision_transformer(depth=1, global_pool="avg", class_token=False).double()
    batch = probe(4).double()
    outputs: dict[str, np.ndarray] = {}
    norms = [name for name, module in model.named_modules() if isinstance(module, nn.LayerNorm)]
    for name in norms:
        norm = model.get_submodule(name)
        norm.register_forward_hook(
            lambda module, inputs, output, name=name: outputs.update(
                {name: nn.functional.layer_norm(inputs[0], (32,), eps=module.eps).reshape(-1, 32).numpy()}
            )
        )
    model(batch)
    # all of them have fewer rows than are sampled, but the one behind the pooling, which has one an image
    second = sum(rows.T @ rows / np.trace(rows.T @ rows) for rows in outputs.values())
    strengths = np.linalg.eigvalsh(second)[::-1]

    other, bases = on_stream_norms(model)
    bases.turned(other, [batch])
    turned: dict[str, np.ndarray] = {}
    for name in norms:
        other.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, name=name: turned.update({name: output.reshape(-1, 32).numpy()})
        )
    other(batch)
    again = sum(rows.T @ rows / np.trace(rows.T @ rows) for rows in turned.values())
    assert np.abs(again[0]).max() < 1e-12
    np.testing.assert_allclose(np.diag(again)[1:], strengths[:-1], atol=1e-6)
    np.testing.assert_allclose(again - np.diag(np.diag(again)), 0, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["plain", "residual", "inverted"])
def test_where_there_are_no_layer_norms_nothing_is_turned(kind: str) -> None:
    model = network(kind)
    assert with_stream_norms(model, follow_channels(model, images()), images()) is None


class Beside(nn.Module):
    """A transformer whose stream something else reads than its layer norms."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.beside = Transformer(), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        stream = self.body.embed(x).flatten(2).transpose(1, 2) + self.body.position
        stream = stream + self.body.attention(self.body.norm1(stream))
        return self.body.head(self.body.norm(stream).mean(1)) + self.beside(stream.mean(1))


class Rectified(nn.Module):
    """A transformer whose stream goes through a function channel by channel, so that it can't be turned."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Transformer()

    def forward(self, x: Tensor) -> Tensor:
        stream = self.body.embed(x).flatten(2).transpose(1, 2) + self.body.position
        stream = stream + torch.relu(stream + self.body.attention(self.body.norm1(stream)))
        return self.body.head(self.body.norm(stream).mean(1))


@pytest.mark.parametrize("model", [Beside, Rectified])
def test_a_stream_that_can_not_be_turned_is_left_alone(model: type[nn.Module]) -> None:
    made = randomised(model())
    assert with_stream_norms(made, follow_channels(made, images(1)), images()) is None


def test_a_transformer_of_no_library_is_turned_too() -> None:
    made = randomised(Transformer())
    other = with_stream_norms(made, follow_channels(made, images(1)), images())
    assert other is not None
    torch.testing.assert_close(other(images()), made(images()), rtol=0, atol=1e-4)


def test_the_reflection_takes_the_mean_to_the_first_channel() -> None:
    for width in (2, 7, 32):
        matrix = reflection(width)
        torch.testing.assert_close(matrix @ matrix.T, torch.eye(width).double(), rtol=0, atol=1e-12)
        mean = torch.full((width,), width**-0.5, dtype=torch.float64)
        torch.testing.assert_close(matrix @ mean, torch.eye(width).double()[0], rtol=0, atol=1e-12)


def stream_width(model: nn.Module) -> int:
    return len(model.get_parameter("patch_embed.proj.weight"))


def stream_of(anatomy: Anatomy) -> Place:
    [stream] = [place for place in anatomy.places if place.is_stream]
    return stream


@torch.no_grad()
def test_a_narrower_stream_with_layer_norms_computes_what_the_one_of_zeros_does() -> None:
    model = vision_transformer().double()
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-14  # what is added to a mean square is not the same in both
    anatomy = Anatomy.with_streams(model, probe(2).double())
    bases, stream = anatomy.bases, stream_of(anatomy)
    assert bases is not None
    bases = bases.turned(anatomy.model, [probe(seed=1).double()])
    kept = {stream.atom: torch.tensor([0, 1, 2, 3, 5, 8, 13, 21])}
    expected = narrow(anatomy.model, anatomy.found, kept)(probe().double())
    student = bases.with_layer_norms(narrow(anatomy.model, anatomy.found, kept), model, kept)
    torch.testing.assert_close(student(probe().double()), expected, rtol=0, atol=1e-9)
    assert stream_width(student) == 8
    assert [each.normalized_shape for each in student.modules() if isinstance(each, nn.LayerNorm)] == [(8,)] * 5


def confined(model: Any, rank: int) -> Any:
    """Let everything that is written into the stream lie in a few directions, whose means over channels are zero."""
    generator = torch.Generator().manual_seed(7)
    width = model.embed_dim
    directions = centring(width) @ torch.randn(width, rank, generator=generator, dtype=torch.float64)
    inside = (directions @ torch.linalg.pinv(directions)).float()
    with torch.no_grad():
        for writer in (
            model.patch_embed.proj,
            *(layer for each in model.blocks for layer in (each.attn.proj, each.mlp.fc2)),
        ):
            writer.weight.copy_((inside @ writer.weight.flatten(1)).reshape(writer.weight.shape))
            writer.bias.copy_(inside @ writer.bias)
        for token in (model.pos_embed, model.cls_token):
            token.copy_(token @ inside)
    return model


@pytest.fixture(scope="module")
def few() -> list[Any]:
    generator = np.random.default_rng(0)
    return [Image.fromarray(generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)) for _ in range(24)]


def deriver(teacher: nn.Module, few: list[Any], **options: Any) -> Deriver:
    return Deriver(teacher, Views.of(few, VIEW_POLICIES["plain"], CONFIG, seed=0), CONFIG, **options)


@torch.no_grad()
def test_a_stream_that_uses_few_directions_becomes_as_narrow_without_an_error(few: list[Any], tmp_path: Any) -> None:
    teacher = confined(vision_transformer(init_values=None), rank=15)
    # the budget is met by the stream alone: all else stays
    derived = deriver(teacher, few, force={"patch_embed.proj": 16}).derive(budget_of({"macs": 0.99}))
    student = derived.student
    assert derived.choice.to_json()["narrowed"] == {"patch_embed.proj": [32, 16]}
    expected = teacher(probe(8))
    torch.testing.assert_close(student(probe(8)), expected, rtol=0, atol=1e-3 * float(expected.std()))
    assert derived.error < 1e-6

    # its costs are those that were reckoned, of the model itself
    assert derived.choice.costs["macs"][1] == macs(student, SIZE)
    assert derived.choice.costs["parameters"][1] == parameters(student)
    assert derived.choice.costs["parameters"][0] == parameters(teacher)

    derived.save(tmp_path / "student")
    again = load_student(tmp_path / "student", model=vision_transformer(init_values=None))
    assert torch.equal(again(probe()), student(probe()))

    # what crosses a cut is the teacher's stream, projected
    [projection] = derived.projections.values()
    streams: dict[str, Tensor] = {}
    for name, model in (("teacher", teacher), ("student", student)):
        model.get_submodule("blocks.0").register_forward_hook(
            lambda _, inputs, output, name=name: streams.update({name: output})
        )
        model(probe())
    torch.testing.assert_close(streams["teacher"] @ projection.T, streams["student"], rtol=0, atol=2e-3)


def test_one_channel_less_than_that_has_an_error(few: list[Any]) -> None:
    teacher = confined(vision_transformer(init_values=None), rank=15)
    made = deriver(teacher, few, force={"patch_embed.proj": 8})
    assert made.derive(budget_of({"macs": 0.99})).error > 1e-3


def test_a_protected_stream_keeps_the_teacher_s_bases(few: list[Any]) -> None:
    teacher = vision_transformer()
    whole = DerivingOptions(convolutions="whole")
    made = deriver(teacher, few, protect=["patch_embed"], options=whole)
    assert made.anatomy.bases is None
    assert made.anatomy.model is teacher
    derived = made.derive(budget_of({"macs": 0.8}))
    assert derived.projections == {}
    assert stream_width(derived.student) == 32


@pytest.mark.parametrize("rounds", [1, 2])
def test_a_student_with_a_narrower_stream_is_what_its_choice_says(few: list[Any], rounds: int) -> None:
    teacher = confined(vision_transformer(init_values=None), rank=20)
    derived = deriver(teacher, few, options=DerivingOptions(rounds=rounds)).derive(budget_of({"macs": 0.4}))
    width = stream_width(derived.student)
    assert width < 32
    assert derived.choice.to_json()["narrowed"]["patch_embed.proj"] == [32, width]
    assert macs(derived.student, SIZE) == derived.choice.costs["macs"][1] <= 0.4 * macs(teacher, SIZE)
    assert parameters(derived.student) == derived.choice.costs["parameters"][1]
    assert all(matrix.shape == (width, 32) for matrix in derived.projections.values())


def test_a_named_twin_is_not_made_in_other_bases(few: list[Any]) -> None:
    teacher = vision_transformer()
    with pytest.raises(ValueError, match="bases"):
        deriver(teacher, few).like(vision_transformer(depth=1))
    assert teacher.blocks[0].norm1.weight.std() > 0  # the teacher is left as it was


def test_what_has_nothing_to_narrow_is_refused_as_before() -> None:
    with pytest.raises(RequestError, match="nothing that could become narrower"):
        Anatomy.with_streams(nn.Sequential(nn.Flatten(), nn.Linear(48, 5)), torch.randn(2, 3, 4, 4))


def test_blocks_of_a_student_in_other_bases_are_grafted_and_joined_as_they_are(few: list[Any]) -> None:
    teacher = confined(vision_transformer(init_values=None), rank=15)
    views = Views.of(few, VIEW_POLICIES["plain"], CONFIG, seed=0)
    derived = Deriver(teacher, views, CONFIG, force={"patch_embed.proj": 16}).derive(budget_of({"macs": 0.99}))
    prepared = prepare(
        teacher, derived.student, few, method="netgraft", steps=1, views=views, data_config=CONFIG, derivation=derived
    )
    pairing = prepared.pairing
    # behind the last norm both differ by the norm's weights
    assert list(pairing.teacher.names) == ["norm_pre", "blocks.0", "head"]
    batch = probe(8)
    with torch.no_grad():
        expected = teacher(batch)
        near = 1e-2 * float(expected.std())
        scions = make_scions(pairing, trained=False)
        for number, scion in enumerate(scions, pairing.inherited):
            grafted = graft(pairing.teacher, scion, range(number, number + 1))
            torch.testing.assert_close(grafted(batch), expected, rtol=0, atol=near)
        torch.testing.assert_close(assemble(pairing, scions)(batch), expected, rtol=0, atol=near)
    result = prepared.run()
    with torch.no_grad():
        torch.testing.assert_close(result.student(batch), expected, rtol=0, atol=0.1 * float(expected.std()))
    assert {type(layer) for layer in result.student.modules()} == {type(layer) for layer in teacher.modules()}
