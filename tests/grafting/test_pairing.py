from __future__ import annotations

import itertools
import random
import re
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.fx import symbolic_trace

from netgraft.errors import RequestError
from netgraft.grafting.pairing import Pairing, inherit, matching_cuts, merge_to, pair
from netgraft.modules import structure
from netgraft.splitting.chain import BlockChain, Cut
from netgraft.splitting.split import split
from tests.support.random_models import build, images, snapshot


def chain_of(sizes: Sequence[int], layout: str = "NCHW") -> BlockChain:
    """Blocks that do nothing, cut at maps of these sizes; the number of channels tells the cuts apart."""
    cuts = [Cut(f"s{number}", (number + 1, size, size), layout) for number, size in enumerate(sizes)]
    return BlockChain([nn.Identity() for _ in range(len(sizes) + 1)], [*(cut.name for cut in cuts), "head"], cuts)


def longest_common(first: Sequence[int], second: Sequence[int]) -> int:
    """Try every subsequence of the first."""
    for length in range(len(first), 0, -1):
        for chosen in itertools.combinations(first, length):
            rest = iter(second)
            if all(size in rest for size in chosen):
                return length
    return 0


@pytest.mark.parametrize("seed", range(40))
def test_as_many_sizes_match_as_any_common_subsequence_has(seed: int) -> None:
    draw = random.Random(seed)
    teacher, student = ([draw.choice([4, 8, 16, 32]) for _ in range(draw.randint(1, 7))] for _ in range(2))
    length = longest_common(teacher, student)
    if not length:
        with pytest.raises(RequestError):
            pair(chain_of(teacher), chain_of(student))
        return
    pairing = pair(chain_of(teacher), chain_of(student))
    assert len(pairing) == length + 1
    for wide, narrow in zip(pairing.teacher.cuts, pairing.student.cuts, strict=True):
        assert wide.size == narrow.size
    for chain in (pairing.teacher, pairing.student):
        assert len(chain) == length + 1
        positions = [cut.channels for cut in chain.cuts]
        assert positions == sorted(set(positions))
    # every block of the unmerged chain is still there
    assert sum(1 for m in pairing.teacher.modules() if isinstance(m, nn.Identity)) == len(teacher) + 1


@pytest.mark.parametrize("seed", range(20))
def test_a_stage_is_cut_where_it_ends(seed: int) -> None:
    draw = random.Random(seed)
    counts = [(draw.randint(0, 3), draw.randint(0, 3)) for _ in range(4)]
    counts[0] = (2, 1)
    stages = list(zip((32, 16, 8, 4), counts, strict=True))
    teacher, student = ([size for size, both in stages for _ in range(both[k])] for k in (0, 1))
    pairing = pair(chain_of(teacher), chain_of(student))
    for chain, sizes in ((pairing.teacher, teacher), (pairing.student, student)):
        expected: list[int] = []
        for size, both in stages:
            # of n cuts at maps of this size, the last ones
            last = [number + 1 for number, found in enumerate(sizes) if found == size]
            expected += last[len(last) - min(both) :]
        assert [cut.channels for cut in chain.cuts] == expected


def test_refusal_shows_both_tables() -> None:
    with pytest.raises(RequestError) as refusal:
        pair(chain_of([32, 16]), chain_of([24, 12]))
    assert "teacher: s0 1x32x32, s1 2x16x16" in str(refusal.value)
    assert "student: s0 1x24x24, s1 2x12x12" in str(refusal.value)
    assert "can't be paired" in str(refusal.value)


def test_maps_without_channels_in_front_never_match() -> None:
    with pytest.raises(RequestError, match="can't be paired"):
        pair(chain_of([8], "other"), chain_of([8], "other"))


def tokens(count: int, prefix: int, side: int = 14) -> list[Cut]:
    return [Cut(f"blocks.{n}", (side**2 + prefix, 8), "tokens", (side, side), prefix) for n in range(count)]


@pytest.mark.parametrize(
    ("teacher", "student", "expected"),
    [
        # blocks: 12 and 6, 6 and 12, 4 and 4, 4 and 3
        (11, 5, [(1, 0), (3, 1), (5, 2), (7, 3), (9, 4)]),
        (5, 11, [(0, 1), (1, 3), (2, 5), (3, 7), (4, 9)]),
        (3, 3, [(0, 0), (1, 1), (2, 2)]),
        (3, 2, [(1, 0), (2, 1)]),
    ],
)
def test_blocks_that_are_all_alike_pair_by_number(teacher: int, student: int, expected: list[tuple[int, int]]) -> None:
    # a distillation token more is no obstacle
    assert matching_cuts(tokens(teacher, 1), tokens(student, 2)) == expected
    wide, narrow = ([Cut(f"s{n}", (4, 8, 8), "NCHW") for n in range(count)] for count in (teacher, student))
    assert matching_cuts(wide, narrow) == expected
    assert matching_cuts(tokens(teacher, 1), tokens(student, 1, side=7)) == []


# Widths behind the stages as in the articles; map sizes follow from strides 4, 8, 16, 32 (ImageNet) on 64 pixels.
REAL = {
    ("resnet50", "mobilenetv2_100", 64): ([16, 8, 4, 2], [(256, 24), (512, 32), (1024, 96), (2048, 320)]),
    ("resnet34", "resnet18", 64): ([16, 16, 8, 4, 2], [(64, 64), (64, 64), (128, 128), (256, 256), (512, 512)]),
    ("cifar_vgg16_bn", "cifar_vgg16_bn_half", 32): (
        [16, 8, 4, 2, 1],
        [(64, 64), (128, 128), (256, 256), (512, 256), (512, 256)],
    ),
    ("cifar_vgg16_bn", "cifar_mobilenetv2", 32): ([16, 8, 4], [(64, 32), (128, 96), (256, 320)]),
    ("cifar_vgg16_bn", "cifar_resnet18", 32): ([16, 8, 4], [(64, 128), (128, 256), (256, 512)]),
}


@pytest.mark.parametrize(("teacher", "student", "size"), REAL, ids=lambda value: str(value))
def test_real_pairs(teacher: str, student: str, size: int) -> None:
    sizes, widths = REAL[teacher, student, size]
    x = images(2, 3, size, size)
    models = build(teacher, num_classes=7), build(student, seed=1, num_classes=7)
    pairing = pair(*(split(model, probe=x) for model in models))
    assert [cut.size[0] for cut in pairing.teacher.cuts] == sizes
    assert [cut.size[0] for cut in pairing.student.cuts] == sizes
    assert pairing.widths == widths
    assert torch.equal(pairing.teacher(x), models[0](x))
    assert torch.equal(pairing.student(x), models[1](x))
    printed = str(pairing).splitlines()
    assert len(printed) == len(pairing) == len(sizes) + 1
    wide, narrow = widths[0]
    assert f"{wide}x{sizes[0]}x{sizes[0]} / {narrow}x{sizes[0]}x{sizes[0]}" in printed[0]


def paired(teacher: str, student: str, size: int) -> tuple[Pairing, nn.Module, nn.Module]:
    models = build(teacher), build(student, seed=1)
    x = images(2, next(models[0].parameters()).shape[1], size, size)
    return pair(*(split(model, probe=x) for model in models)), *models


@pytest.mark.parametrize(
    ("teacher", "student", "size", "same", "first_other"),
    [
        # the slim VGG keeps the teacher's first three stages; ResNet-20 and ResNet-8 share the stem
        ("cifar_vgg16_bn", "cifar_vgg16_bn_half", 32, ["features.0.", "features.1.", "features.20."], "features.24."),
        ("cifar_resnet20", "cifar_resnet8", 16, ["conv1.", "bn1."], "layer1.0.conv1."),
        ("digits_vgg7_bn", "digits_vgg7_bn_half", 8, ["features.0.", "features.4."], "features.7."),
    ],
)
def test_inherit_copies_exactly_the_blocks_that_are_alike(
    teacher: str, student: str, size: int, same: list[str], first_other: str
) -> None:
    pairing, wide, narrow = paired(teacher, student, size)
    state, before = wide.state_dict(), {k: v.clone() for k, v in narrow.state_dict().items()}
    untouched = snapshot(wide)
    inherited = inherit(pairing)
    after = narrow.state_dict()
    for key, value in after.items():
        position = int(key.split(".")[1]) if key.startswith("features.") else None
        front = position < int(first_other.split(".")[1]) if position is not None else key.startswith(tuple(same))
        assert torch.equal(value, state[key] if front else before[key]), key
        assert value.data_ptr() != state[key].data_ptr()
    assert any(key.startswith(prefix) for prefix in same for key in after)
    assert snapshot(wide) == untouched
    assert inherited.inherited > 0
    assert pairing.inherited == 0
    assert "inherited" in str(inherited).splitlines()[0]
    assert "inherited" not in str(inherited).splitlines()[inherited.inherited]


def test_a_student_like_the_teacher_is_refused() -> None:
    pairing, _, narrow = paired("cifar_resnet8", "cifar_resnet8", 16)
    before = snapshot(narrow)
    with pytest.raises(RequestError, match=re.escape("built exactly like the teacher")):
        inherit(pairing)
    assert snapshot(narrow) == before


class Residual(nn.Module):
    """Prints alike whether or not it has a skip connection."""

    def __init__(self, skip: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.act = nn.ReLU()
        self.skip = skip

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.conv(x))
        return x + y if self.skip else y


def toy(skip: bool = False, width: int = 4, stride: int = 1, scale: bool = False) -> nn.Module:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 4, 3, stride=stride, padding=1)
            self.stage = Residual(skip)
            self.fc = nn.Linear(4, width)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x) * 2 if scale else self.stem(x)
            return self.fc(self.stage(x).mean((2, 3)))

    return Net().eval()


def structures(model: nn.Module) -> list[tuple[object, ...]]:
    return [structure(block) for block in split(model, probe=images(2, 3, 8, 8), cuts=["stem", "stage"])]


def test_structure_is_equal_where_blocks_are_built_alike() -> None:
    reference = structures(toy())
    assert structures(toy()) == reference
    cases: dict[str, tuple[nn.Module, list[bool]]] = {
        "skip connection": (toy(skip=True), [True, False, True]),
        "width": (toy(width=5), [True, True, False]),
        "stride": (toy(stride=2), [False, True, True]),
        "arithmetic": (toy(scale=True), [True, False, True]),
    }
    for name, (model, alike) in cases.items():
        assert [first == second for first, second in zip(reference, structures(model), strict=True)] == alike, name


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv2_100", "efficientnet_b0", "regnety_002", "densenet121"])
def test_structure_of_one_architecture_is_stable(name: str) -> None:
    x = images(1, 3, 32, 32)
    first, second = (split(build(name, seed, num_classes=5), probe=x) for seed in (0, 1))
    assert [structure(block) for block in first] == [structure(block) for block in second]
    assert structure(first.merge([1])) == structure(second.merge([1]))
    assert structure(first.merge([1])) != structure(second.merge([0]))


@pytest.mark.parametrize("seed", range(30))
def test_merged_pairs_cost_as_evenly_as_any_choice_of_cuts(seed: int) -> None:
    draw = random.Random(seed)
    costs = [draw.choice([0, 1, 2, 5, 90]) for _ in range(draw.randint(2, 8))]
    sizes = list(range(len(costs) - 1, 0, -1))
    blocks = draw.randint(2, len(costs))

    def unevenness(kept: Sequence[int]) -> int:
        ends = [0, *(cut + 1 for cut in kept), len(costs)]
        return sum(sum(costs[start:end]) ** 2 for start, end in itertools.pairwise(ends))

    choices = list(itertools.combinations(range(len(sizes)), blocks - 1))
    least = min(choices, key=unevenness)  # the first of equals
    merged = merge_to(pair(chain_of(sizes), chain_of(sizes)), blocks, costs=costs)
    for chain in (merged.teacher, merged.student):
        assert len(chain) == blocks
        assert [cut.channels - 1 for cut in chain.cuts] == list(least)
        assert sum(1 for m in chain.modules() if isinstance(m, nn.Identity)) == len(costs)


def working(forms: Sequence[tuple[str, int, int]], *, last: int = 1) -> BlockChain:
    """Blocks with weights, cut at maps of (layout, side, weights in front of it)."""
    cuts, blocks = [], []
    for number, (layout, side, weights) in enumerate(forms):
        shape = {"NCHW": (4, side, side), "NHWC": (side, side, 4), "tokens": (side**2 + 1, 4)}.get(layout, (4, side))
        grid, prefix = ((side, side), 1) if layout == "tokens" else ((), 0)
        cuts.append(Cut(f"s{number}", shape, layout, grid, prefix))
        blocks.append(nn.Linear(weights, 1))
    return BlockChain([*blocks, nn.Linear(last, 1)], [*(cut.name for cut in cuts), "head"], cuts)


def chosen(teacher: BlockChain, student: BlockChain) -> list[tuple[str, str]]:
    pairing = pair(teacher, student)
    return [(wide.name, narrow.name) for wide, narrow in zip(pairing.teacher.cuts, pairing.student.cuts, strict=True)]


def test_layouts_are_no_obstacle_where_sizes_are_equal() -> None:
    wide = working([("NHWC", 16, 1), ("NHWC", 8, 1), ("NHWC", 4, 1)])
    narrow = working([("NCHW", 32, 1), ("NCHW", 16, 1), ("tokens", 8, 1), ("NCHW", 4, 1)])
    assert chosen(wide, narrow) == [("s0", "s1"), ("s1", "s2"), ("s2", "s3")]
    pairing = pair(wide, narrow)
    assert pairing.conversions == [
        "NHWC 16x16 / NCHW 16x16",
        "NHWC 8x8 / tokens 8x8+1",
        "NHWC 4x4 / NCHW 4x4",
    ]
    printed = str(pairing).splitlines()
    assert [f"adapters convert {what}" in line for what, line in zip(pairing.conversions, printed, strict=False)] == [
        True
    ] * 3
    assert "convert" not in printed[-1]
    assert pair(wide, wide).conversions == [""] * 3
    assert "convert" not in str(pair(wide, wide))


def test_sizes_that_were_rounded_in_another_way_pair_where_none_are_equal() -> None:
    wide = working([("NCHW", 55, 1), ("NCHW", 27, 1), ("NCHW", 13, 1)])
    narrow = working([("NCHW", 56, 1), ("NCHW", 28, 1), ("NCHW", 14, 1), ("NCHW", 7, 1)])
    assert chosen(wide, narrow) == [("s0", "s0"), ("s1", "s1"), ("s2", "s2")]
    assert pair(wide, narrow).conversions[0] == "NCHW 55x55 / NCHW 56x56"
    # an equal size is enough to trust no other
    wide = working([("NCHW", 55, 1), ("NCHW", 28, 1)])
    assert chosen(wide, narrow) == [("s1", "s1")]


@pytest.mark.parametrize("seed", range(25))
def test_one_size_from_front_to_end_pairs_by_the_work_that_is_done(seed: int) -> None:
    draw = random.Random(seed)
    sides = sorted((draw.choice([4, 8, 16, 32]) for _ in range(draw.randint(2, 6))), reverse=True)
    if len(set(sides)) == 1:
        sides.append(2)
    stages = [("NCHW", side, draw.randint(1, 9)) for side in sides]
    layers = [("tokens", 7, draw.randint(1, 9)) for _ in range(draw.randint(2, 6))]
    pyramid, isotropic = working(stages, last=50), working(layers, last=6)
    # what lies behind the last map of a pyramid works on no map, an isotropic head goes on as before
    done = list(itertools.accumulate([*(weights * side**2 for _, side, weights in stages), 50]))
    depths = [part / done[-1] for part in done[:-1]]
    done = list(itertools.accumulate([*(weights * 49 for *_, weights in layers), 6 * 49]))
    others = [part / done[-1] for part in done[:-1]]

    def distance(choice: Sequence[tuple[int, int]]) -> float:
        return sum(abs(depths[i] - others[j]) for i, j in choice)

    count = min(len(depths), len(others))
    choices = [
        list(zip(rows, columns, strict=True))
        for rows in itertools.combinations(range(len(depths)), count)
        for columns in itertools.combinations(range(len(others)), count)
    ]
    least = min(map(distance, choices))
    for teacher, student in ((pyramid, isotropic), (isotropic, pyramid)):
        numbers = [(int(a[1:]), int(b[1:])) for a, b in chosen(teacher, student)]
        found = numbers if teacher is pyramid else [(b, a) for a, b in numbers]
        assert len(found) == count
        assert distance(found) == pytest.approx(least, abs=1e-12)


def test_cuts_without_a_map_pair_with_nothing() -> None:
    wide = working([("tokens", 8, 1), ("other", 8, 1), ("tuple", 8, 1)])
    assert chosen(wide, working([("other", 8, 1), ("NHWC", 8, 1)])) == [("s0", "s1")]
    with pytest.raises(RequestError) as refusal:
        pair(wide, working([("other", 8, 1)]))
    assert "teacher: s0 65x4 (tokens 8x8+1), s1 4x8 (other), s2 4x8\n" in str(refusal.value)
    assert "student: s0 4x8 (other)\n" in str(refusal.value)


@pytest.mark.parametrize(("layout", "inherited"), [("NCHW", 2), ("NHWC", 0)])
def test_blocks_that_are_built_alike_are_inherited_where_they_are_cut_alike(layout: str, inherited: int) -> None:
    def chain(layout: str, last: int) -> BlockChain:
        built = working([(layout, 4, 5), ("NCHW", 2, 3)], last=last)
        return BlockChain([symbolic_trace(nn.Sequential(block)) for block in built], built.names, built.cuts)

    assert inherit(pair(chain("NCHW", 7), chain(layout, 8))).inherited == inherited


def test_a_chain_that_no_single_map_crosses_is_named() -> None:
    tuples = BlockChain([nn.Identity(), nn.Identity()], ["a", "head"], [Cut("a", (), "tuple")])
    with pytest.raises(RequestError, match=r"crosses any cut of the teacher, .*; choose another teacher"):
        pair(tuples, chain_of([8]))
    with pytest.raises(RequestError, match=r"crosses any cut of the student, .*; choose another student"):
        pair(chain_of([8]), tuples)
    with pytest.raises(RequestError, match="choose a student with the teacher's resolutions"):
        pair(chain_of([8]), chain_of([3]))


def test_a_printed_pairing_numbers_its_blocks_from_one() -> None:
    teacher, student = working([("NCHW", 8, 3), ("NHWC", 4, 3)]), working([("NCHW", 8, 3), ("NCHW", 4, 3)])
    pairing = replace(pair(teacher, student), inherited=1, left_out=("a.1", "b.2"))
    assert str(pairing).splitlines() == [
        "block 1: s0 / s0  4x8x8 / 4x8x8  inherited",
        "block 2: s1 / s1  4x4x4 / 4x4x4  adapters convert NHWC 4x4 / NCHW 4x4",
        "block 3: head / head",
        "left out: a.1, b.2",
    ]
    assert str(replace(pairing, inherited=0, left_out=())).splitlines()[0] == "block 1: s0 / s0  4x8x8 / 4x8x8"
    assert "left out" not in str(replace(pairing, left_out=()))


def test_a_refusal_is_three_facts_and_what_to_do() -> None:
    with pytest.raises(RequestError) as refusal:
        pair(chain_of([32, 16]), chain_of([24]))
    assert str(refusal.value).splitlines() == [
        "the blocks can't be paired: no cut of the teacher has a map of the same size as one of the student",
        "  teacher: s0 1x32x32, s1 2x16x16",
        "  student: s0 1x24x24",
        "choose a student with the teacher's resolutions",
    ]


@pytest.mark.parametrize("blocks", [-1, 0, 1, 4])
def test_other_numbers_of_blocks_are_refused(blocks: int) -> None:
    pairing = pair(chain_of([8, 4]), chain_of([8, 4]))
    complaint = f"pair in 3 blocks, which can be merged to between 2 and 3, not to {blocks}; choose another number"
    with pytest.raises(RequestError, match=complaint):
        merge_to(pairing, blocks, costs=[1, 1, 1])
    for count in (2, 3):
        assert len(merge_to(pairing, count, costs=[1, 1, 1])) == count


def test_blocks_are_not_merged_once_the_student_has_started() -> None:
    pairing = pair(chain_of([8, 4]), chain_of([8, 4]))
    for started in (replace(pairing, inherited=1), replace(pairing, selections=(torch.zeros(1),) * 2)):
        with pytest.raises(ValueError, match="blocks are merged before the student inherits or is sliced"):
            merge_to(started, 2, costs=[1, 1, 1])


def test_sizes_are_close_up_to_the_given_factor() -> None:
    first, second = ([Cut("a", (1, *size), "NCHW")] for size in ((10, 13), (13, 10)))
    other = [Cut("b", (1, 3, 3), "NCHW")]
    assert matching_cuts(first + other, second + other, within=1.3) == [(0, 0), (1, 1)]
    assert matching_cuts(first + other, second + other, within=1.29) == [(1, 1)]
    assert matching_cuts(first + other, second + other) == [(1, 1)]
    assert matching_cuts([], second) == matching_cuts(first, []) == []
