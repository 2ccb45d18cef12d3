"""Large pools and large images: how seconds and memory grow, and what decoding on demand costs.

Photographs are links to a few JPEGs of 500x375 pixels in a temporary folder. Each number of images runs in a process of
its own, whose peak memory is read at its end.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from benchmarks.speed.timing import median, ratio, seconds, side_by_side, write
from netgraft.data.sources import open_data
from netgraft.data.subsets import FewShotSubset
from netgraft.data.view_policy import VIEW_POLICIES
from netgraft.data.views import Views

POOL, CHOSEN = 100_000, 20_000

COUNTS = (100, 200, 300, 400)

SIZES = (64, 128, 192, 256)

HELD = 16 * 2**20

BATCH, BATCHES = 32, 6

REPEATS = 3

MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)


def write_pool(folder: Path, count: int) -> None:
    """Fill a folder with links to twenty photographs of smooth noise, a thousand in a subfolder."""
    generator = np.random.default_rng(0)
    originals = []
    for number in range(20):
        originals.append(folder / f".{number}.jpg")
        noise = Image.fromarray(generator.integers(0, 256, (47, 63, 3), dtype=np.uint8))
        noise.resize((500, 375), Image.Resampling.BICUBIC).save(originals[-1], quality=90)
    for number in range(count):
        inside = folder / f"{number // 1000:03}"
        inside.mkdir(exist_ok=True)
        os.link(originals[number % len(originals)], inside / f"{number:06}.jpg")


def pool_views(folder: Path, count: int, size: int, held_bytes: int) -> Views:
    """Return views without an end of some photographs of a folder."""
    train = open_data(str(folder)).train
    subset = FewShotSubset.draw_unlabeled(len(train), images=count, seed=0, dataset="pool")
    return Views(
        train.pictures(subset.indices, held_bytes),
        VIEW_POLICIES["rich-endless"],
        size=(3, size, size),
        mean=MEAN,
        std=STD,
        interpolation="bicubic",
        crop_pct=0.9,
        seed=0,
        held_bytes=held_bytes,
    )


def one(folder: Path, count: int) -> None:
    """Choose some photographs and render an epoch of them; print seconds and the peak MiB above those before."""

    def run() -> None:
        views = pool_views(folder, count, 224, HELD)
        for start in range(0, count, BATCH):
            views.batch(range(start, min(start + BATCH, count)))

    before = _peak()
    print(json.dumps({"seconds": seconds(run), "mib": _peak() - before}))


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Photographs(Dataset[Any]):
    """What a program without netgraft would load, by torchvision's transforms."""

    def __init__(self, paths: Sequence[Path], size: int) -> None:
        self._paths = paths
        self._transform = v2.Compose(
            [
                v2.RandomResizedCrop(size, (0.25, 1.0), interpolation=v2.InterpolationMode.BICUBIC, antialias=True),
                v2.RandomHorizontalFlip(),
                v2.ColorJitter(0.4, 0.4, 0.4),
                v2.PILToTensor(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, number: int) -> Any:
        with Image.open(self._paths[number]) as image:
            return self._transform(image.convert("RGB"))


def on_demand(folder: Path) -> dict[str, list[float]]:
    """Seconds a view of images that nobody holds: ours, and a DataLoader's with a worker for each thread of torch."""
    count = BATCH * BATCHES
    views = pool_views(folder, count, 224, 0)
    paths = sorted(folder.rglob("*/*.jpg"))[:count]
    loader = DataLoader(Photographs(paths, 224), BATCH, num_workers=torch.get_num_threads(), persistent_workers=True)
    epochs = iter(range(10**6))

    def ours() -> None:
        first = next(epochs) * count
        for start in range(first, first + count, BATCH):
            views.batch(range(start, start + BATCH))

    def loaded() -> None:
        for _ in loader:
            pass

    loaded()  # starts the workers
    return side_by_side(
        {"netgraft": lambda: seconds(ours) / count, "DataLoader": lambda: seconds(loaded) / count}, REPEATS
    )


def fit(places: Sequence[float], values: Sequence[float]) -> dict[str, float]:
    """Return the straight line through some points by least squares, and what part of their variance it explains."""
    slope, start = np.polyfit(places, values, 1)
    residual = np.var(np.array(values) - (slope * np.array(places) + start))
    explained = 1 - residual / max(float(np.var(values)), 1e-30)
    return {"slope": float(f"{slope:.4g}"), "start": float(f"{start:.4g}"), "explained": round(float(explained), 4)}


def _by_size(folder: Path) -> Iterator[tuple[int, Any]]:
    for size in SIZES:
        views = pool_views(folder, BATCH, size, 2**30)
        yield size, lambda views=views: seconds(lambda: views.batch(range(BATCH * 4))) / (BATCH * 4)


def main() -> None:
    """Measure and write the result file."""
    memory: dict[str, list[float]] = {str(count): [] for count in COUNTS}

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_pool(folder, POOL)

        def run(count: int) -> float:
            command = [sys.executable, "-m", "benchmarks.speed.pools", str(folder), str(count)]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout  # nosec B603  # netgraft
            found = json.loads(output.splitlines()[-1])
            memory[str(count)].append(round(found["mib"], 1))
            return float(found["seconds"])

        listing = seconds(lambda: open_data(str(folder)))
        choosing = seconds(lambda: FewShotSubset.draw_unlabeled(POOL, images=CHOSEN, seed=0, dataset="pool"))
        counts = side_by_side({str(count): lambda count=count: run(count) for count in COUNTS}, REPEATS)  # type: ignore[misc]
        sizes = side_by_side({str(size): view for size, view in _by_size(folder)}, REPEATS)
        demand = on_demand(folder)
    seconds_of = [median(values) for values in counts.values()]
    mib_of = [median(values) for values in memory.values()]
    milliseconds = [1000 * median(values) for values in sizes.values()]
    write(
        "pools",
        {
            "task": f"{POOL:,} photographs of 500x375 in a folder, {HELD // 2**20} MiB held; an epoch at 224 pixels",
            "seconds": counts,
            "mib_above_start": memory,
            "seconds a view, by size": sizes,
            "seconds a view, decoded on demand": demand,
            "fits": {
                "seconds by images": fit(COUNTS, seconds_of),
                "MiB by images": fit(COUNTS, mib_of),
                "milliseconds a view by pixels": fit([size * size for size in SIZES], milliseconds),
            },
            "medians": {
                f"seconds to list {POOL:,} files": median([listing]),
                f"seconds to choose {CHOSEN:,} of them": median([choosing]),
                **{f"seconds, {count} images": value for count, value in zip(COUNTS, seconds_of, strict=True)},
                **{f"MiB, {count} images": value for count, value in zip(COUNTS, mib_of, strict=True)},
                **{
                    f"milliseconds a view, {size} pixels": round(value, 3)
                    for size, value in zip(SIZES, milliseconds, strict=True)
                },
            },
            "on_demand": {"DataLoader / netgraft": ratio(demand, "DataLoader", "netgraft")},
        },
    )


if __name__ == "__main__":
    one(Path(sys.argv[1]), int(sys.argv[2])) if len(sys.argv) > 2 else main()
