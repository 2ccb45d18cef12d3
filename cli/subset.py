"""The command that draws few-shot subsets: subset."""

from __future__ import annotations

from pathlib import Path

import click

from .options import PATH, DeclaredCommand, given, job_options


@click.command(cls=DeclaredCommand, declared=lambda: job_options("data_root", "download", "skip_broken"))
@click.option("--data", required=True, help="Name or path of labelled images.")
@click.option("--shots", type=click.IntRange(min=1), multiple=True, required=True, help="Images a class; repeatable.")
@click.option("--seed", "seeds", type=int, multiple=True, default=(0,), show_default=True, help="Repeatable.")
@click.option("--out", type=PATH, default=Path("subsets"), show_default=True, help="Folder of the files.")
def subset(
    data: str,
    shots: tuple[int, ...],
    seeds: tuple[int, ...],
    out: Path,
    data_root: Path | None,
    download: bool | None,
    skip_broken: bool | None,
) -> None:
    """Write subset files, for others to use with netgraft distill --subset.

    They are drawn as netgraft distill draws them with the same seed. A file that says the same is left as it is.
    """
    from netgraft.data.sources import open_data
    from netgraft.data.subsets import FewShotSubset
    from netgraft.errors import RequestError

    from .output import emit

    source = open_data(data, **given({"root": data_root, "download": download, "skip_broken": skip_broken}))
    labels = source.train_labels("so there are no images of a class to draw")
    drawn = {
        f"{source.name}-{number}shot-seed{seed}.json".replace("/", "_"): FewShotSubset.draw(
            labels, shots=number, seed=seed, dataset=source.name
        )
        for number in shots
        for seed in seeds
    }
    out.mkdir(parents=True, exist_ok=True)
    for name, content in drawn.items():
        path = out / name
        if path.exists() and FewShotSubset.load(path).digest != content.digest:
            raise RequestError(f"{path} holds another subset; choose another --out")
        content.save(path)
        emit(f"{path}: {content}")
