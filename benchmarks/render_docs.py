"""Renew the tables and pictures of the pages from the committed result files.

python -m benchmarks.render_docs
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent

END = "<!-- end of results -->"

TABLE = ("netgraft.cli.main", "table")

RESULTS = "benchmarks/results"


PAGES: Mapping[str, Mapping[str, Sequence[str]]] = {
    "docs/baselines.md": {
        "results: digits": (*TABLE, f"{RESULTS}/baselines-digits"),
        "results: cifar10 gaps": (*TABLE, f"{RESULTS}/baselines-cifar10"),
        "results: cifar10 agreement": (*TABLE, f"{RESULTS}/baselines-cifar10", "--metric", "agreement"),
        "results: cifar10 differences": (*TABLE, f"{RESULTS}/baselines-cifar10", "--against", "netgraft"),
        "results: cifar10 differences of agreement": (
            *TABLE,
            f"{RESULTS}/baselines-cifar10",
            "--against",
            "netgraft",
            "--metric",
            "agreement",
        ),
    },
    "docs/results.md": {
        "results: published": (*TABLE, f"{RESULTS}/netgraft-cifar10"),
        "results: plain": (*TABLE, f"{RESULTS}/netgraft-cifar10-plain"),
        "results: selection": ("benchmarks.studies.test_set_selection", "table"),
        "results: ablation": (*TABLE, f"{RESULTS}/ablation"),
        "results: shallower": (*TABLE, f"{RESULTS}/shallower-digits"),
        "results: tinyimagenet": (*TABLE, f"{RESULTS}/tinyimagenet100"),
        "results: ideas": ("benchmarks.studies.grafting_variants", "table"),
        "results: families": (*TABLE, f"{RESULTS}/families-cifar10"),
        "results: kept rates": ("benchmarks.studies.kept_rates", "table"),
        "results: kept imagenet": (*TABLE, f"{RESULTS}/kept-imagenet"),
    },
    "docs/deriving.md": {
        "results: derived cifar10": (*TABLE, f"{RESULTS}/derived-cifar10"),
        "results: derived cifar10 1shot": (*TABLE, f"{RESULTS}/derived-cifar10-1shot"),
        "results: derived cifar10 whole": (*TABLE, f"{RESULTS}/derived-cifar10-whole"),
        "results: derived cifar10 uniform": (*TABLE, f"{RESULTS}/derived-cifar10-uniform"),
        "results: derived digits": (*TABLE, f"{RESULTS}/derived-digits"),
        "results: derived imagenet": (*TABLE, f"{RESULTS}/derived-imagenet"),
        "results: derived cifar100": (*TABLE, f"{RESULTS}/derived-cifar100"),
        "results: derived vit": (*TABLE, f"{RESULTS}/derived-vit"),
        "results: derived vit half": (*TABLE, f"{RESULTS}/derived-vit-half"),
        "results: block adapters": ("benchmarks.studies.block_adapters", "table"),
        "results: derived ablation": (*TABLE, f"{RESULTS}/derived-ablation"),
        "results: derived digits ablation": (*TABLE, f"{RESULTS}/derived-digits-ablation"),
        "results: architectures": ("benchmarks.deriving.table",),
    },
    "docs/benchmark.md": {"results: ray": ("benchmarks.ray_grid.table",)},
    "docs/export.md": {"results: int8": ("benchmarks.studies.int8", "table")},
    "docs/attacks.md": {"results: attacks": ("benchmarks.attacks.table",)},
    "docs/options.md": {"options": ("benchmarks.option_table",)},
    "docs/gpu.md": {"results: gpu": ("benchmarks.gpu.table",)},
    "docs/splitting.md": {"results: splitting": ("benchmarks.splitting.table",)},
    "docs/without-labels.md": {"results: estimates": ("benchmarks.studies.unlabelled_estimates", "table")},
    "docs/speed.md": {"results": ("benchmarks.speed.table", f"{RESULTS}/speed")},
}
"""Page -> marker -> the module and its arguments that print what stands between the marker and END."""


PICTURES: Mapping[str, str] = {
    f"docs/pictures/{name}.svg": f"{RESULTS}/{name}"
    for name in ("netgraft-cifar10", "ablation", "baselines-digits", "baselines-cifar10", "tinyimagenet100")
}
"""Picture -> the folder of results that it shows."""


def printed(command: Sequence[str]) -> str:
    """Return what a command of :data:`PAGES` prints."""
    made = subprocess.run(  # nosec B603  # a command of PAGES
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return made.stdout.rstrip()


def shown(text: str, marker: str) -> str:
    """Return what stands in a page behind a marker. Raises ValueError where there is none, or no end."""
    start = text.index(f"<!-- {marker} -->\n") + len(f"<!-- {marker} -->\n")
    return text[start : text.index(f"\n{END}", start)]


def main() -> None:
    """Rewrite every page whose tables are not what their commands print, and draw every picture."""
    for page, tables in PAGES.items():
        path = ROOT / page
        before = after = path.read_text(encoding="utf-8")
        for marker, command in tables.items():
            opening = f"<!-- {marker} -->\n"
            after = after.replace(f"{opening}{shown(after, marker)}\n{END}", f"{opening}{printed(command)}\n{END}")
        if after != before:
            path.write_text(after, encoding="utf-8")
            print(f"renewed: {page}")
    for picture, folder in PICTURES.items():
        printed((*TABLE, folder, "--plot", picture))
        print(f"drawn: {picture}")


if __name__ == "__main__":
    main()
