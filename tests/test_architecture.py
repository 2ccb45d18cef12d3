"""What the import contracts in pyproject.toml can't say of the sources, read from the syntax trees."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted(path for folder in ("netgraft", "cli", "benchmarks") for path in (ROOT / folder).rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    """Every imported module, also those inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module


def ids(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", SOURCES, ids=ids)
def test_every_file_says_what_it_is_for(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert path.name not in {"utils.py", "util.py", "helpers.py", "misc.py", "common.py"}


def test_only_the_ground_and_the_front_doors_lie_loose() -> None:
    assert len(list((ROOT / "netgraft").glob("*.py"))) <= 12


@pytest.mark.parametrize("path", SOURCES, ids=ids)
def test_nothing_unpickles(path: Path) -> None:
    assert not {name.split(".")[0] for name in imports(path)} & {"pickle", "cloudpickle", "dill", "joblib", "shelve"}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
            options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert options.get("weights_only") == "True"


def test_importing_the_package_costs_nothing() -> None:
    code = "import sys, netgraft; print([m for m in ('torch', 'timm', 'numpy', 'rich') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_every_public_name_can_be_imported() -> None:
    import netgraft

    assert "distill" in dir(netgraft)
    for name in dir(netgraft):
        # one class has the name that it had at first beside its own
        own = "DistillationResult" if name == "Distilled" else name
        assert getattr(netgraft, name).__name__ == own
    with pytest.raises(AttributeError, match="nothing"):
        _ = netgraft.nothing  # type: ignore[attr-defined]
