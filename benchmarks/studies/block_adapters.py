"""What one adapter in the place of a whole block would lose, beside narrower blocks that cost as much.

    python -m benchmarks.studies.block_adapters          # finished tasks are not computed again
    python -m benchmarks.studies.block_adapters table    # as Markdown

Each residual block of a teacher, or branch of one, is replaced alone: by nothing, or by a linear map of its channels
with a constant, solved by least squares on views of the few images towards what the block gives. The error is that of
the library, on views that took no part; of the narrower block it is read off the library.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from netgraft.data.sources import data_root, open_data
from netgraft.data.subsets import FewShotSubset
from netgraft.data.view_policy import VIEW_POLICIES
from netgraft.data.views import Views
from netgraft.derivation import BATCH, HELD_BACK, Deriver
from netgraft.deriving.anatomy import Anatomy
from netgraft.deriving.costs import Macs
from netgraft.deriving.library import Library, scale_of_errors
from netgraft.deriving.places import Block, Place
from netgraft.models.loading import load_teacher
from netgraft.reports.formats import markdown
from netgraft.reports.tables import Column, Line, Table

RESULTS = Path(__file__).parents[1] / "results" / "block-adapters"
OWN = Path(__file__).parents[1] / "teachers"
ROWS = 4096
"""Positions of each batch of views, that an adapter is solved on."""


@dataclass(frozen=True)
class Task:
    """A teacher and its few images.

    Attributes:
        data: Their source.
        teacher: Its name.
        weights: Of the teacher.
        shots: Images a class.
        views: That adapters are solved on.
        image_size: Where it isn't that of the teacher's name.
    """

    data: str
    teacher: str
    weights: Path
    shots: int
    views: int = 1024
    image_size: int | None = None


TASKS = {
    "vit": Task("cifar10-jpeg", "test_vit2", OWN / "test_vit2.cifar10-jpeg.safetensors", 10, image_size=64),
    "resnet20": Task("cifar100-q95", "cifar_resnet20", OWN / "cifar_resnet20.cifar100-q95.safetensors", 10),
    "efficientnet": Task(
        "imagenet1000", "tf_efficientnet_lite0", Path("tf_efficientnet_lite0.imagenet.safetensors"), 1, views=256
    ),
}


class ChannelMap(nn.Module):
    """A linear map of channels with a constant; what stands behind a residual block's sum comes after it.

    Args:
        weight: (channels, channels).
        constant: (channels,).
        dim: That channels lie in.
        is_rectified: Whether the block gives nothing negative.
    """

    def __init__(self, weight: Tensor, constant: Tensor, dim: int, *, is_rectified: bool) -> None:
        super().__init__()
        self._weight, self._constant, self._dim, self._is_rectified = weight, constant, dim, is_rectified

    def forward(self, x: Tensor, *others: Any, **more: Any) -> Tensor:
        """Return what the block would give."""
        mapped = (x.movedim(self._dim, -1) @ self._weight + self._constant).movedim(-1, self._dim)
        return mapped.relu() if self._is_rectified else mapped


@contextmanager
def instead(model: nn.Module, name: str, module: nn.Module) -> Iterator[None]:
    """Put a module into another one's place, as long as the context lasts."""
    owner, _, leaf = name.rpartition(".")
    modules = model.get_submodule(owner)._modules
    original = modules[leaf]
    modules[leaf] = module
    try:
        yield
    finally:
        modules[leaf] = original


def adapters(model: nn.Module, blocks: Sequence[Block], batches: Sequence[Tensor], dim: int) -> dict[str, ChannelMap]:
    """Solve a linear map for each block, from what it takes in to what it gives."""
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {block.name: [] for block in blocks}

    def noting(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            both = [each.movedim(dim, -1).flatten(0, -2) for each in (inputs[0], output)]
            rows = slice(None, None, max(1, len(both[0]) // ROWS))
            seen[name].append((both[0][rows].double(), both[1][rows].double()))

        return hook

    hooks = [model.get_submodule(name).register_forward_hook(noting(name)) for name in seen]
    for images in batches:
        model(images.clone())
    for hook in hooks:
        hook.remove()
    found = {}
    for name, pairs in seen.items():
        taken, given = (torch.cat(side) for side in zip(*pairs, strict=True))
        weight = torch.linalg.lstsq(taken - taken.mean(0), given - given.mean(0)).solution
        constant = given.mean(0) - taken.mean(0) @ weight
        found[name] = ChannelMap(weight.float(), constant.float(), dim, is_rectified=bool((given >= 0).all()))
    return found


def hidden_place(anatomy: Anatomy, block: Block) -> Place | None:
    """Return the widest place of which all layers are inside a block; None where it has none."""
    inside = [place for place in anatomy.places if set(place.layers) <= set(block.layers)]
    return max(inside, key=lambda place: place.width, default=None)


def narrowed_at(anatomy: Anatomy, library: Library, block: Block, price: float) -> tuple[int, float] | None:
    """Return the smallest width of a block's hidden channels that costs ``price`` or more, and its error."""
    place = hidden_place(anatomy, block)
    if place is None:
        return None
    cost = Macs(anatomy.found, anatomy.blocks)
    without = cost({block.atom: 0})
    options = library.options()[place]
    for width, error in zip(options.widths, options.errors, strict=True):
        if cost({place.atom: width}) - without >= price:
            return width, error
    return None


@torch.no_grad()
def compute(task: Task) -> dict[str, Any]:
    """Replace each block in three ways."""
    teacher = load_teacher(task.teacher, weights=data_root() / task.weights, image_size=task.image_size).eval()
    config = resolve_model_data_config(teacher)
    source = open_data(task.data)
    subset = FewShotSubset.draw(source.train_labels("no subset"), shots=task.shots, seed=0, dataset=source.name)
    views = Views.configured(source.train.load_many(subset.indices), VIEW_POLICIES["rich"], config, seed=0)
    anatomy = Anatomy.on_noise(teacher, config["input_size"])
    library = Deriver(teacher, views, config, anatomy=anatomy).library
    held_back = views.batch(range(len(views) - HELD_BACK, len(views))).split(BATCH)
    logits = torch.cat([teacher(images.clone()) for images in held_back])

    def error() -> float:
        got = torch.cat([teacher(images.clone()) for images in held_back])
        return float((got - logits).square().mean() / scale_of_errors(logits))

    is_transformer = any(block.is_branch for block in anatomy.blocks)
    numbers = torch.arange(task.views).split(BATCH)
    solved = adapters(teacher, anatomy.blocks, [views.batch(some) for some in numbers], -1 if is_transformer else 1)
    left_out = {entry.place.name: entry.errors[0] for entry in library.entries}
    rows = []
    for block in anatomy.blocks:
        channels = len(solved[block.name]._constant)
        positions = anatomy.found.outputs[block.name]
        count = 1
        for axis in positions[1:-1] if is_transformer else positions[2:]:
            count *= axis.size
        with instead(teacher, block.name, solved[block.name]):
            lost = error()
        narrowed = narrowed_at(anatomy, library, block, channels**2 * count)
        rows.append(
            {
                "block": block.name,
                "left_out": left_out[block.name],
                "adapter": lost,
                "width": narrowed[0] if narrowed else None,
                "narrowed": narrowed[1] if narrowed else None,
            }
        )
    return {"teacher": task.teacher, "data": task.data, "views": task.views, "blocks": rows}


def table() -> str:
    """Return all results as Markdown."""
    headings = ("model", "block", "left out", "one adapter", "channels that cost as much", "narrowed to them")
    columns = tuple(
        Column(heading, heading, "text" if number < 2 else "number") for number, heading in enumerate(headings)
    )
    lines = []
    for name in (name for name in TASKS if (RESULTS / f"{name}.json").exists()):
        result = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
        for row in result["blocks"]:
            left_out, adapter, narrowed = (
                None if row[kind] is None else round(100 * row[kind], 2) for kind in ("left_out", "adapter", "narrowed")
            )
            lines.append(Line((result["teacher"], row["block"], left_out, adapter, row["width"], narrowed), 0))
    note = "Errors of the logits in percent of their variance, on 256 views that took no part; each block alone."
    return markdown(Table("", columns, tuple(lines), notes=(note,)))


def main(arguments: Sequence[str]) -> None:
    """Compute what is missing, or print the table."""
    if list(arguments) == ["table"]:
        print(table())
        return
    RESULTS.mkdir(parents=True, exist_ok=True)
    for name, task in TASKS.items():
        path = RESULTS / f"{name}.json"
        if not path.exists():
            path.write_text(json.dumps(compute(task), indent=1) + "\n", encoding="utf-8")
            print(path, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
