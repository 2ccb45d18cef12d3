"""What is printed at the end fits the terminal that it is printed in."""

from __future__ import annotations

import io
import sys

import pytest
from netgraft.cli.output import emit_lines

LINES = [
    "agreement with the teacher: 100.00 (95 % interval 83.89 to 100.00) % of 20 images that took no part",
    "run: a-name-without-any-space-that-is-longer-than-the-terminal-is-wide; nothing was written",
    "short",
    '  model = timm.create_model("local-dir:a/long/way/to/a/folder", pretrained=True).eval()',
]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("columns", [40, 60, 120])
def test_sentences_break_between_words_and_what_is_copied_stays(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    emit_lines(LINES)
    rows = terminal.getvalue().splitlines()
    assert " ".join(rows).split() == " ".join(LINES).split()
    assert rows[-1] == LINES[-1]
    for row in rows[:-1]:
        assert len(row) <= columns or len(row.split()) == 1
    if columns == 120:
        assert rows == LINES


def test_programs_read_a_line_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    emit_lines(LINES)
    assert capsys.readouterr().out.splitlines() == LINES
