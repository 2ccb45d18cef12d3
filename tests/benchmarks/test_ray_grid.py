"""The comparison of a grid with and without a cluster notices what goes wrong."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from benchmarks.ray_grid.table import table
from netgraft.experiments.cell_process import CellRun, Ended, Tell
from netgraft.experiments.results import ResultStore
from netgraft.experiments.scheduler import Compute, on_this_machine
from netgraft.experiments.specification import Cell

pytest.importorskip("ray", reason="needs the extra netgraft[ray]")
ray_grid = pytest.importorskip("benchmarks.ray_grid.__main__", reason="needs the extra netgraft[ray]")


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.ray_grid.stand_in.SECONDS", 0.05)


def opened(folder: Path) -> tuple[ResultStore, tuple[Cell, ...]]:
    folder.mkdir()
    source = folder / "small.toml"
    source.write_text(ray_grid.EXPERIMENT.format(subsets=[0, 1, 2, 3]))
    results = ResultStore(folder / "results")
    results.claim(source)
    return results, results.experiment().cells


def test_a_grid_without_faults_is_the_same_again(tmp_path: Path) -> None:
    found, half = [], []
    for name in ("one", "two"):
        results, cells = opened(tmp_path / name)
        figures = ray_grid.compute(
            results, cells, on_this_machine, stand_ins=True, at_half=lambda name=name: half.append(name)
        )
        assert not any(figures[fault] for fault in ("lost", "twice", "failures", "started_again"))
        assert 0 <= figures["overhead_median"] <= figures["overhead_largest"]
        found.append([ray_grid.untimed(results.find(cell) or {}) for cell in cells])
    assert half == ["one", "two"]
    assert found[0] == found[1]
    assert len({cell["student_digest"] for cell in found[0]}) == 4


@pytest.mark.parametrize("last", ["end", "report"])
def test_half_is_noticed_whichever_comes_last(tmp_path: Path, last: str) -> None:
    _, cells = opened(tmp_path / "grid")
    noticed: list[str] = []
    count = ray_grid.Count(2, lambda: noticed.append("half"))
    count.progressed(cells[0], {})
    count.finished(cells[0], {})
    events = {"end": lambda: count.finished(cells[1], {}), "report": lambda: count.progressed(cells[2], {})}
    count.progressed(cells[1], {})
    events.pop("report" if last == "end" else "end")()
    assert noticed == []
    events.popitem()[1]()
    count.progressed(cells[3], {})
    assert noticed == ["half"]


@pytest.mark.parametrize("ended", ["failed", "left"])
def test_a_cell_that_failed_or_is_left_computes_no_longer(tmp_path: Path, ended: str) -> None:
    _, cells = opened(tmp_path / "grid")
    noticed: list[str] = []
    count = ray_grid.Count(1, lambda: noticed.append("half"))
    count.progressed(cells[0], {})
    getattr(count, ended)(cells[0], "for a reason")
    count.progressed(cells[1], {})
    count.finished(cells[1], {})
    assert noticed == []
    count.progressed(cells[2], {})
    assert noticed == ["half"]


def test_what_is_lost_or_computed_twice_is_named(tmp_path: Path) -> None:
    results, cells = opened(tmp_path / "faulty")
    lost, twice = cells[0].name, cells[1].name
    computed = results.scratch / "computed"
    computed.mkdir(parents=True)
    (computed / twice).write_text("once\n")

    @asynccontextmanager
    async def forgetful(stopping: asyncio.Event) -> AsyncIterator[Compute]:
        async with on_this_machine(stopping) as compute:

            async def all_but_one(run: CellRun, tell: Tell) -> Ended | None:
                return None if run.name == lost else await compute(run, tell)

            yield all_but_one

    figures = ray_grid.compute(results, cells, forgetful, stand_ins=True)
    assert (figures["lost"], figures["twice"]) == ([lost], [twice])


def test_the_table_has_a_line_for_each_grid() -> None:
    header, rule, *lines = table().partition("\n\n")[0].splitlines()
    assert header.count("|") == rule.count("|") == 10
    assert lines
    assert all(line.count("|") == 10 for line in lines)
