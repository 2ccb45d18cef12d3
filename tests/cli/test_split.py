"""What ``netgraft split`` shows of one model, and what it prints for programs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

import pytest
import torch
from netgraft.cli.main import run

from netgraft.errors import RequestError
from netgraft.models.creation import build_model, class_count
from netgraft.models.loading import load_teacher
from tests.support.cli import fails


def rows(shown: str) -> Iterator[list[str]]:
    for line in shown.splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if cells and (cells[0].isdigit() or cells[1:2] == ["all"]):
            yield cells


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert run(["split", *arguments]) == 0
    return capsys.readouterr().out


def number(cell: str) -> int:
    return int(cell.replace(",", ""))


def test_layouts_and_numbers_of_blocks(capsys: pytest.CaptureFixture[str]) -> None:
    table = list(rows(shown(capsys, "vit_tiny_patch16_224", "--blocks", "3")))
    assert [row[1] for row in table] == ["blocks.3", "blocks.7", "head", "all"]
    assert [row[5] for row in table] == ["tokens 14x14+1", "tokens 14x14+1", "", ""]
    # by hand: four blocks of attention and a perceptron with four times the width, over 197 tokens
    width, tokens = 192, 197
    products = 12 * width * width * tokens + 2 * tokens * tokens * width
    assert number(table[1][4]) == 4 * products
    assert number(table[0][4]) == 4 * products + 196 * width * 3 * 16 * 16


def test_all_cuts_are_the_places_where_one_tensor_crosses(capsys: pytest.CaptureFixture[str]) -> None:
    table = list(rows(shown(capsys, "cifar_resnet8", "--all-cuts")))
    names = [row[1] for row in table[:-1]]
    # the residual blocks of the three stages hold one block each
    assert [name for name in names if name.startswith("layer")] == ["layer1", "layer2", "layer3"]
    totals = [number(row[6]) for row in table[:-1]]
    assert totals == sorted(totals)
    assert totals[-1] == number(table[-1][4])


def test_json_says_what_the_table_says(capsys: pytest.CaptureFixture[str]) -> None:
    printed = json.loads(shown(capsys, "torchvision:squeezenet1_1", "--image-size", "64", "--json"))
    table = list(rows(shown(capsys, "torchvision:squeezenet1_1", "--image-size", "64")))
    assert printed["input_size"] == [3, 64, 64]
    assert printed["classes"] == 1000
    assert [block["ends_with"] for block in printed["blocks"]] == [row[1] for row in table[:-1]]
    for block, row in zip(printed["blocks"], table, strict=False):
        assert [f"{block['parameters']:,}", f"{block['macs']:,}"] == row[3:5]
    for block in printed["blocks"][:-1]:
        output = block["output"]
        assert output["layout"] == "NCHW"
        assert [output["channels"], *output["size"]] == output["shape"]
        assert output["prefix_tokens"] == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["a", "--cuts", "x", "--blocks", "2"],
        ["a", "--blocks", "2", "--all-cuts"],
        ["a", "--blocks", "1"],
        ["a", "b", "--all-cuts"],
        ["a", "b", "--json"],
    ],
)
def test_options_that_exclude_one_another(arguments: Sequence[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert fails(capsys, "split", *arguments).endswith("; see netgraft split --help\n")


def test_names_of_torchvision(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["split", "torchvision:resnet19"]) == 2
    assert "torchvision has no classifier 'resnet19'; did you mean resnet1" in capsys.readouterr().err


def test_models_of_torchvision_are_built_like_those_of_timm() -> None:
    first, second, other = (build_model("torchvision:squeezenet1_1", seed=seed, num_classes=7) for seed in (0, 0, 1))
    assert class_count(first) == 7
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    assert all(torch.equal(*pair) for pair in pairs)
    assert not torch.equal(next(first.parameters()), next(other.parameters()))
    with pytest.raises(RequestError, match="takes images of 3 channels; choose a timm model"):
        build_model("torchvision:squeezenet1_1", seed=0, in_chans=1)
    with pytest.raises(RequestError, match="comes without weights; give --teacher-weights FILE"):
        load_teacher("torchvision:squeezenet1_1")
    with pytest.raises(RequestError, match=r"torchvision could not make 'squeezenet1_1': .*no_such"):
        build_model("torchvision:squeezenet1_1", seed=0, no_such=1)
