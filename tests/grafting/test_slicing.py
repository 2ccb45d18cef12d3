from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
import torch
from timm.layers import SqueezeExcite
from torch import Tensor, nn
from torch.nn import functional as F

from netgraft.errors import RequestError
from netgraft.grafting.pairing import Pairing, inherit, pair
from netgraft.grafting.scions import assemble, graft, join, make_scions
from netgraft.grafting.slicing import slice_from_teacher
from netgraft.methods.kd import KD
from netgraft.methods.registry import NetGraft
from netgraft.splitting.split import split
from netgraft.zoo import SmallResNet
from tests.support.random_models import build, images, randomise, snapshot

# Modules whose channels are one stream: what writes it, what is added to it, and the norms on it.
Streams = list[list[str]]


def digits_streams() -> Streams:
    return [[f"features.{conv}", f"features.{conv + 1}"] for conv in (7, 10, 14, 17)]


def resnet(width: int) -> nn.Module:
    return SmallResNet(layers=(1, 2), channels=(width, 2 * width), num_classes=5)


def resnet_streams() -> Streams:
    blocks = ["layer1.0", "layer2.0", "layer2.1"]
    inner = [[f"{block}.conv1", f"{block}.bn1"] for block in blocks]
    ends = [[f"{block}.conv2", f"{block}.bn2"] for block in blocks]
    first = ["conv1", "bn1", *ends[0]]
    second = ["layer2.0.downsample.0", "layer2.0.downsample.1", *ends[1], *ends[2]]
    return [first, second, *inner]


LEFT_OUT = ["layer1.1", "layer2.2"]


def deeper_resnet() -> nn.Module:
    """The wide one of the twins, with one block more in each stage."""
    return SmallResNet(layers=(2, 3), channels=(16, 32), num_classes=5)


def deeper_streams() -> Streams:
    first, second, *inner = resnet_streams()
    ends = [[f"{block}.conv2", f"{block}.bn2"] for block in LEFT_OUT]
    return [[*first, *ends[0]], [*second, *ends[1]], *inner]


def mobilenet_streams() -> Streams:
    streams = [["conv_stem", "bn1", "blocks.0.0.conv_dw", "blocks.0.0.bn1"], ["blocks.0.0.conv_pw", "blocks.0.0.bn2"]]
    # repetitions as in table 2 of the article; all blocks of a stage are added to one stream
    for stage, repetitions in enumerate([2, 3, 4, 3, 3, 1], start=1):
        blocks = [f"blocks.{stage}.{number}" for number in range(repetitions)]
        streams.append([f"{block}.{end}" for block in blocks for end in ("conv_pwl", "bn3")])
        streams += [[f"{block}.{layer}" for layer in ("conv_pw", "bn1", "conv_dw", "bn2")] for block in blocks]
    return streams


class Concatenating(nn.Module):
    """A concatenation, a norm on it, and a gate."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 2 * width, 3, padding=1)
        self.side = nn.Conv2d(2 * width, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(3 * width)
        self.conv = nn.Conv2d(3 * width, width, 3, padding=1)
        self.gate = SqueezeExcite(width, rd_channels=width)
        self.fc = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.norm(torch.cat([x, self.side(x)], 1))
        return self.fc(self.gate(self.conv(x)).mean((2, 3)))


class Flattening(nn.Module):
    """A linear layer on a flattened map, as in the classic networks."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, stride=4)
        self.flatten = nn.Flatten()
        self.hidden = nn.Linear(4 * width, 3 * width)
        self.fc = nn.Linear(3 * width, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.hidden(self.flatten(self.conv(x)).relu()).relu())


Cuts = list[str] | None

TWINS: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module], Streams, tuple[int, ...], Cuts]] = {
    "vgg": (
        lambda: build("digits_vgg7_bn"),
        lambda: build("digits_vgg7_bn_half", 1),
        digits_streams(),
        (1, 8, 8),
        None,
    ),
    "resnet": (lambda: resnet(16), lambda: resnet(6), resnet_streams(), (3, 8, 8), None),
    "fewer blocks": (deeper_resnet, lambda: resnet(6), deeper_streams(), (3, 8, 8), None),
    "mobilenet": (
        lambda: build("mobilenetv2_100", num_classes=5),
        lambda: build("mobilenetv2_050", 1, num_classes=5),
        mobilenet_streams(),
        (3, 32, 32),
        None,
    ),
    "concatenation": (
        lambda: Concatenating(8),
        lambda: Concatenating(5),
        [["stem"], ["side"], ["conv", "gate.fc2"], ["gate.fc1"]],
        (3, 8, 8),
        ["stem", "norm", "conv"],
    ),
    "flattened map": (lambda: Flattening(8), lambda: Flattening(5), [["conv"], ["hidden"]], (3, 8, 8), ["conv"]),
}


@torch.no_grad()
def zero_channels(model: nn.Module, names: Iterable[str], dead: Tensor) -> None:
    """Let the channels be zero behind these layers."""
    for name in names:
        layer: Any = model.get_submodule(name)
        layer.weight[dead] = 0
        if layer.bias is not None:
            layer.bias[dead] = 0


def twins(name: str) -> tuple[Pairing, nn.Module, nn.Module, Tensor]:
    """A teacher with as many dead channels in each stream as the student has fewer, both in float64."""
    torch.manual_seed(0)
    make_teacher, make_student, streams, shape, cuts = TWINS[name]
    teacher, student = randomise(make_teacher()), randomise(make_student(), 1)
    dead_of = {}
    for layers in streams:
        wide, narrow = (model.get_submodule(layers[0]).get_parameter("weight").shape[0] for model in (teacher, student))
        dead_of[layers[0]] = torch.randperm(wide)[: wide - narrow]
        zero_channels(teacher, layers, dead_of[layers[0]])
    if name == "concatenation":
        zero_channels(teacher, ["norm"], torch.cat([dead_of["stem"], 16 + dead_of["side"]]))
    if name == "fewer blocks":
        for block, width in zip(LEFT_OUT, (16, 32), strict=True):
            zero_channels(teacher, [f"{block}.bn2"], torch.arange(width))
    x = images(4, *shape).double()
    chains = [split(model.double().eval(), probe=x, cuts=cuts) for model in (teacher, student)]
    return pair(*chains), teacher, student, x


@pytest.mark.parametrize("name", TWINS)
def test_without_its_dead_channels_the_teacher_answers_the_same(name: str) -> None:
    pairing, teacher, student, x = twins(name)
    before = snapshot(teacher)
    assert not torch.allclose(student(x), teacher(x))
    sliced = slice_from_teacher(pairing)
    torch.testing.assert_close(student(x), teacher(x), rtol=0, atol=1e-10)
    assert teacher(x).std() > 1e-6
    assert snapshot(teacher) == before
    assert sliced.init == "slice"
    assert pairing.init == "random"
    assert [len(chosen) for chosen in sliced.selections] == [narrow for _, narrow in sliced.widths]


@pytest.mark.parametrize("name", TWINS)
def test_grafted_and_sliced_the_teacher_answers_the_same(name: str) -> None:
    pairing, teacher, _, x = twins(name)
    pairing = slice_from_teacher(pairing)
    scions = [scion.double() for scion in make_scions(pairing)]
    for number, scion in enumerate(scions):
        grafted = graft(pairing.teacher, scion, range(number, number + 1))
        torch.testing.assert_close(grafted(x), teacher(x), rtol=0, atol=1e-10)
    for stop in range(2, len(scions) + 1):
        grafted = graft(pairing.teacher, join(scions[:stop]), range(stop))
        torch.testing.assert_close(grafted(x), teacher(x), rtol=0, atol=1e-10)
    torch.testing.assert_close(assemble(pairing, scions)(x), teacher(x), rtol=0, atol=1e-10)


def paired(teacher: nn.Module, student: nn.Module, x: Tensor, cuts: Cuts = None) -> Pairing:
    return pair(*(split(randomise(model).eval(), probe=x, cuts=cuts) for model in (teacher, student)))


def largest(model: nn.Module, writers: Iterable[str], count: int) -> Tensor:
    """Sort all channels by the norm of the weights that write them."""
    rows = [model.get_submodule(name).get_parameter("weight").detach().numpy().astype(np.float64) for name in writers]
    squares = sum((row.reshape(len(row), -1) ** 2).sum(1) for row in rows)
    ranked = sorted(range(len(rows[0])), key=lambda channel: -np.asarray(squares)[channel])
    return torch.tensor(sorted(ranked[:count]))


def test_largest_norms_are_taken_one_index_set_for_a_residual_stream() -> None:
    torch.manual_seed(0)
    wide, narrow = resnet(16), resnet(6)
    pairing = slice_from_teacher(paired(wide, narrow, images(2, 3, 8, 8)))
    first = largest(wide, ["conv1", "layer1.0.conv2"], 6)
    second = largest(wide, ["layer2.0.conv2", "layer2.0.downsample.0", "layer2.1.conv2"], 12)
    inner = {block: largest(wide, [f"{block}.conv1"], 6 if "1." in block else 12) for block in ("layer1.0", "layer2.1")}
    assert [chosen.tolist() for chosen in pairing.selections] == [first.tolist(), first.tolist(), second.tolist()]
    t, s = wide.state_dict(), narrow.state_dict()
    expected = {
        "conv1.weight": t["conv1.weight"][first],
        "bn1.running_var": t["bn1.running_var"][first],
        "layer1.0.conv1.weight": t["layer1.0.conv1.weight"][inner["layer1.0"]][:, first],
        "layer1.0.conv2.weight": t["layer1.0.conv2.weight"][first][:, inner["layer1.0"]],
        "layer2.0.downsample.0.weight": t["layer2.0.downsample.0.weight"][second][:, first],
        "layer2.0.downsample.1.bias": t["layer2.0.downsample.1.bias"][second],
        "layer2.1.conv2.weight": t["layer2.1.conv2.weight"][second][:, inner["layer2.1"]],
        "layer2.1.bn2.running_mean": t["layer2.1.bn2.running_mean"][second],
        "fc.weight": t["fc.weight"][:, second],
        "fc.bias": t["fc.bias"],
    }
    for name, value in expected.items():
        assert torch.equal(s[name], value), name


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv2_100", "efficientnet_b0", "regnety_002", "densenet121"])
def test_equal_widths_are_copied_in_order(name: str) -> None:
    teacher, student = build(name, num_classes=3), build(name, 1, num_classes=3)
    x = images(1, 3, 32, 32)
    pairing = slice_from_teacher(pair(split(teacher, probe=x), split(student, probe=x)))
    expected, found = teacher.state_dict(), student.state_dict()
    assert all(torch.equal(value, found[key]) for key, value in expected.items())
    assert all(value.data_ptr() != found[key].data_ptr() for key, value in expected.items())
    for chosen, (wide, _) in zip(pairing.selections, pairing.widths, strict=True):
        assert torch.equal(chosen, torch.arange(wide))


def test_residual_blocks_that_the_student_has_not_are_left_out() -> None:
    teacher, student = build("resnet34", num_classes=3), build("resnet18", 1, num_classes=3)
    x = images(1, 3, 32, 32)
    pairing = slice_from_teacher(pair(split(teacher, probe=x), split(student, probe=x)))
    expected = teacher.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in student.state_dict().items())
    # 3, 4, 6 and 3 blocks against 2 in each stage (He et al. 2016, table 1)
    repeats = [(1, [2]), (2, [2, 3]), (3, [2, 3, 4, 5]), (4, [2])]
    assert pairing.left_out == tuple(f"layer{stage}.{number}" for stage, numbers in repeats for number in numbers)
    assert str(pairing).endswith("left out: " + ", ".join(pairing.left_out))


def test_rates_fall_only_where_the_student_starts_close() -> None:
    def rates(teacher: nn.Module, student: nn.Module) -> set[float]:
        pairing = slice_from_teacher(paired(teacher, student, images(2, 3, 8, 8)))
        return {phase.schedule.lr for method in (NetGraft(), KD()) for phase in method.plan(pairing).phases}

    assert rates(resnet(16), resnet(6)) == {1e-4}
    assert rates(deeper_resnet(), resnet(6)) == {1e-3}


def test_inherited_blocks_pass_their_channels_on_in_order() -> None:
    teacher, student = build("digits_vgg7_bn"), build("digits_vgg7_bn_half", 1)
    x = images(2, 1, 8, 8)
    pairing = slice_from_teacher(inherit(pair(split(teacher, probe=x), split(student, probe=x))))
    assert (pairing.inherited, pairing.init) == (1, "slice")
    assert torch.equal(pairing.selections[0], torch.arange(32))
    assert torch.equal(pairing.teacher[0](x), pairing.student[0](x))
    rows = largest(teacher, ["features.7"], 32)
    assert torch.equal(student.state_dict()["features.7.weight"], teacher.state_dict()["features.7.weight"][rows])


def net(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(5))


OTHERS: dict[str, tuple[tuple[nn.Module, ...], tuple[nn.Module, ...], str]] = {
    "kernel": ((nn.Conv2d(8, 8, 3, padding=1),), (nn.Conv2d(8, 6, 1),), "1 has another kernel, stride, padding"),
    "dilation": ((nn.Conv2d(8, 8, 1),), (nn.Conv2d(8, 6, 1, dilation=2),), "1 has another kernel, stride, padding"),
    "bias": ((nn.Conv2d(8, 8, 1),), (nn.Conv2d(8, 6, 1, bias=False),), "1 has other weights, a bias for instance"),
    "wider": ((nn.Conv2d(8, 6, 1),), (nn.Conv2d(8, 8, 1),), "the student is wider than the teacher"),
    "groups": (
        (nn.Conv2d(8, 8, 1, groups=2),),
        (nn.Conv2d(8, 6, 1, groups=2),),
        "1 is a grouped convolution of another",
    ),
    "type": ((nn.ReLU(),), (nn.GELU(),), "1 is a ReLU and a GELU"),
    "depth": ((nn.Conv2d(8, 8, 1), nn.ReLU()), (nn.ReLU(),), "the layers differ in number, name or order"),
    "fewer layers": (
        (nn.ReLU(), nn.Conv2d(8, 8, 1)),
        (nn.ReLU(),),
        "the student has no 5, which is no residual block",
    ),
    "one slope": ((nn.PReLU(),), (nn.PReLU(),), r"1 \(PReLU\) has weights that are not one for each channel"),
    "maps": ((nn.LayerNorm((8, 6, 6)),), (nn.LayerNorm((8, 6, 6)),), r"1 \(LayerNorm\) has weights that are not one"),
}


@pytest.mark.parametrize("difference", OTHERS)
def test_models_that_are_no_twins_are_refused_with_the_place(difference: str) -> None:
    wide, narrow, reason = OTHERS[difference]
    x = images(2, 3, 8, 8)
    teacher, student = net(*wide), net(*narrow)
    for model in (teacher, student):
        model(x)
    pairing = paired(teacher, student, x, cuts=["0"])
    before = snapshot(teacher), snapshot(student)
    with pytest.raises(RequestError, match=f"in block [12] \\(.*{reason}.*; use init='random'") as refusal:
        slice_from_teacher(pairing)
    assert len(str(refusal.value).splitlines()) == 1
    assert (snapshot(teacher), snapshot(student)) == before


class Wired(nn.Module):
    """The same layers in the same order with another wiring, or with an operation across channels."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.a = nn.Conv2d(4, 4, 3, padding=1)
        self.b = nn.Conv2d(4, 4, 3, padding=1)
        self.fc = nn.Linear(4, 5)
        self.way = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.way(self, self.stem(x)).mean((2, 3)))


@pytest.mark.parametrize(
    ("teacher", "student", "reason"),
    [
        (
            lambda m, x: x.add(m.b(m.a(x))),
            lambda m, x: m.a(x).add(m.b(x)),
            "the layers differ in number, name or order",
        ),
        (lambda m, x: m.b(m.a(x)).roll(1, 1), lambda m, x: m.b(m.a(x)).roll(1, 1), "roll is an operation whose"),
        (
            lambda m, x: torch.cat([m.a(x), m.b(x)], 2),
            lambda m, x: torch.cat([m.a(x), m.b(x)], 2),
            "cat is an operation",
        ),
    ],
)
def test_other_wirings_are_refused(teacher: Callable[..., Tensor], student: Callable[..., Tensor], reason: str) -> None:
    pairing = paired(Wired(teacher), Wired(student), images(2, 3, 8, 8), cuts=["stem"])
    with pytest.raises(RequestError, match=re.escape(reason)):
        slice_from_teacher(pairing)


@pytest.mark.parametrize("way", [lambda x: x * 2, lambda x: x + 1, lambda x: 2 * x], ids=["times", "plus", "first"])
def test_numbers_are_no_streams(way: Callable[[Tensor], Tensor]) -> None:
    """A constant has no channels: what is multiplied by it, or added to it, goes on as it is."""
    x = images(2, 3, 8, 8)
    teacher, student = (Wired(lambda m, x: way(m.b(m.a(x)))).eval() for _ in range(2))
    pairing = slice_from_teacher(paired(teacher, student, x, cuts=["stem"]))
    assert torch.equal(pairing.selections[0], torch.arange(4))
    with torch.no_grad():
        torch.testing.assert_close(student(x), teacher(x))


def test_streams_of_different_widths_are_not_united() -> None:
    class Broadcasting(nn.Module):
        """A gate of one channel on a map of several."""

        def __init__(self, width: int) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 4, 3, padding=1)
            self.a = nn.Conv2d(4, width, 1)
            self.gate = nn.Conv2d(4, 1, 1)
            self.fc = nn.Linear(width, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return self.fc((self.a(x) * self.gate(x)).mean((2, 3)))

    pairing = paired(Broadcasting(6), Broadcasting(4), images(2, 3, 8, 8), cuts=["stem"])
    with pytest.raises(RequestError, match=r"in block 2 .* streams of different widths are added; use init='random'"):
        slice_from_teacher(pairing)


def test_tensors_of_several_streams_are_not_added_to_one() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 4, 3, padding=1)
            self.a, self.b, self.c = nn.Conv2d(4, 2, 1), nn.Conv2d(4, 2, 1), nn.Conv2d(4, 4, 1)
            self.fc = nn.Linear(4, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return self.fc((torch.cat([self.a(x), self.b(x)], 1) + self.c(x)).mean((2, 3)))

    pairing = paired(Mixed(), Mixed(), images(2, 3, 8, 8), cuts=["stem"])
    with pytest.raises(RequestError, match="tensors made of different streams are added"):
        slice_from_teacher(pairing)


def test_layers_of_other_names_are_no_twins() -> None:
    pairing = paired(
        Wired(lambda m, x: m.b(m.a(x))), Wired(lambda m, x: m.a(m.b(x))), images(2, 3, 8, 8), cuts=["stem"]
    )
    with pytest.raises(RequestError, match="the layers differ in number, name or order"):
        slice_from_teacher(pairing)


@pytest.mark.parametrize("flat", [False, True])
def test_a_linear_layer_that_takes_other_features_than_come_is_named(flat: bool) -> None:
    class Wide(nn.Module):
        def __init__(self, width: int, columns: int) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 4, 3, padding=1)
            self.a = nn.Conv2d(4, width, 1)
            self.fc = nn.Linear(columns, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(self.stem(x))
            return self.fc(torch.flatten(F.adaptive_avg_pool2d(x, 2), 1))

    teacher, student = Wide(6, 24), Wide(4, 16)
    pairing = paired(teacher, student, images(2, 3, 8, 8), cuts=["stem"])
    if flat:
        student.fc.in_features = 12
        with pytest.raises(RequestError, match=r"fc takes 24 and 12 features, other than come"):
            slice_from_teacher(pairing)
    else:
        kept = teacher.a.weight.double().flatten(1).norm(dim=1).topk(4).indices.sort().values
        slice_from_teacher(pairing)
        expected = teacher.fc.weight.view(5, 6, 4)[:, kept].flatten(1)
        assert torch.equal(student.fc.weight, expected)
