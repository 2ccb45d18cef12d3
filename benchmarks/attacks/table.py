"""Print the committed results as the Markdown table of docs/attacks.md: ``python -m benchmarks.attacks.table``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.attacks.__main__ import RESULTS

PROMISES: Mapping[str, tuple[str, str]] = {
    "kills": ("a killed run goes on to the same student", "SIGKILL in front of a file event, every method"),
    "kills-of-two": ("so does one on two processes", "SIGKILL of both at some moment"),
    "disks": ("a full disk loses nothing", "files, or a whole disk, of 4 KiB to 2 MiB; then more room"),
    "stops": ("two runs never meet in a folder", "SIGSTOP in front of a file event, and a second command"),
    "threads": ("a result names its number of threads", "1, 2 and 4 threads"),
    "flips": ("damage is noticed", "one bit of a checkpoint, a student or a result"),
    "meetings": ("whoever comes second waits or is told", "6 processes with one folder or file, 3 with one grid"),
    "damaged-inputs": ("time and memory are bounded", "1,000 mutants of images or archives each"),
    "requests": ("a wrong request is one sentence, and writes nothing", "a table of requests to all commands"),
    "lowest": ("nothing that a file brings along is executed", "weights that are programs, lowest dependencies"),
}
"""Part of the campaign -> what is promised, and how it is attacked."""


def table(path: Path = RESULTS) -> str:
    """Return the table, and what did not hold."""
    results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    lines = ["| promise | attack | attacks | held |", "|---|---|---|---|"]
    broken = []
    for part, (promise, attack) in PROMISES.items():
        tried = results.get(part, {})
        held = sum(not wrong for wrong in tried.values())
        lines.append(f"| {promise} | {attack} | {len(tried) or 'not tried yet'} | {held if tried else ''} |")
        broken += [f"- {promise}: {name}: {' '.join(wrong.split())[:300]}" for name, wrong in tried.items() if wrong]
    facts = results["made_with"]
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    return "\n".join(
        [*lines, "", *(["Not held:", "", *broken, ""] if broken else []), f"{versions}; {facts['machine']}."]
    )


if __name__ == "__main__":
    print(table())
