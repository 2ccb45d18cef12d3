"""The file of loss terms: one line a look, none twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from netgraft.errors import RequestError, RunError
from netgraft.training.metrics_log import MetricsLog

ROWS: list[dict[str, Any]] = [
    {"phase": phase, "step": step, "lr": 0.1, "loss": 1 / (phase + step)} for phase in range(3) for step in (10, 20)
]


def written(folder: Path) -> MetricsLog:
    log = MetricsLog(folder / "metrics.jsonl")
    for row in ROWS:
        log.append(row)
    return log


def read(log: MetricsLog) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.path.read_text().splitlines()]


def test_rows_are_lines_in_order(tmp_path: Path) -> None:
    assert read(written(tmp_path)) == ROWS


@pytest.mark.parametrize(
    ("phase", "step", "kept"), [(0, 0, 0), (0, 9, 0), (0, 10, 1), (1, 0, 2), (1, 15, 3), (2, 20, 6), (9, 0, 6)]
)
def test_lines_behind_a_point_are_dropped(tmp_path: Path, phase: int, step: int, kept: int) -> None:
    log = written(tmp_path)
    log.rewind(phase, step)
    assert read(log) == ROWS[:kept]
    for row in ROWS[kept:]:
        log.append(row)
    assert log.path.read_bytes() == written_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def written_bytes() -> bytes:
    return "".join(json.dumps(row) + "\n" for row in ROWS).encode()


@pytest.mark.parametrize("rest", ['{"phase": 2, "st', '{"phase"', "{"])
def test_a_line_that_a_kill_has_cut_off_is_dropped(tmp_path: Path, rest: str) -> None:
    log = written(tmp_path)
    with log.path.open("a") as file:
        file.write(rest)
    log.rewind(2, 20)
    assert log.path.read_bytes() == written_bytes()


def test_no_file_has_no_lines_to_drop(tmp_path: Path) -> None:
    MetricsLog(tmp_path / "metrics.jsonl").rewind(0, 0)
    assert list(tmp_path.iterdir()) == []


def test_what_can_not_be_written_says_how_to_go_on(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"could not write .*metrics.jsonl: .*; go on with --resume"):
        MetricsLog(tmp_path / "missing" / "metrics.jsonl").append(ROWS[0])


@pytest.mark.parametrize(
    "line",
    [
        *("3", "[]", '"text"', "null", "{}", "{", "[" * 100_000, "\udcff"),
        *('{"phase": 0}', '{"phase": "0", "step": 1}', '{"phase": 0, "step": 1.5}', '{"phase": true, "step": 1}'),
        '{"phase": [0], "step": {}}',
    ],
    ids=range(13),
)
def test_a_line_of_another_kind_is_refused(tmp_path: Path, line: str) -> None:
    log = written(tmp_path)
    content = f"{line}\n".encode(errors="surrogateescape") + log.path.read_bytes()
    log.path.write_bytes(content)
    with pytest.raises(RequestError, match=r"metrics.jsonl is damaged: .*; remove it, and the run goes on") as refusal:
        log.rewind(2, 20)
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 400
    assert log.path.read_bytes() == content
